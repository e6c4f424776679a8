"""How far two segmentations of one region agree, object by object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

Booleans = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """Objects of two segmentations, by class, and which of them are the same."""

    table: NDArray[np.int64]
    "(C, 4) class id, matched pairs, objects of the first, objects of the second; without those left out."
    iou_sum: float
    "Over the matched pairs."
    left_out: int
    "Objects of either that reach the region's rim, or lie by half in one of the other's that does."


def judge(
    first: NDArray[np.object_],
    second: NDArray[np.object_],
    *,
    class_ids: tuple[NDArray[np.int64], NDArray[np.int64]],
    rim: shapely.Geometry,
    min_iou: float = 0.5,
) -> Judgement:
    """Match the objects of two segmentations of a region: same class, an IoU of at least `min_iou`, the best first.

    Args:
        first: (N,) valid polygons.
        second: (M,) valid polygons.
        class_ids: (N,) and (M,).
        rim: the part of the region's outline behind which only one of them knows the scene; may be empty.
        min_iou: least intersection over union of two that are the same.
    """
    i, j = shapely.STRtree(second).query(first, predicate="intersects") if len(first) and len(second) else _NONE
    common = shapely.area(shapely.intersection(first[i], second[j]))
    areas = shapely.area(first), shapely.area(second)
    iou = common / np.maximum(areas[0][i] + areas[1][j] - common, 1e-12)
    cut = shapely.intersects(first, rim), shapely.intersects(second, rim)
    out = cut[0].copy(), cut[1].copy()
    out[0][i[cut[1][j] & (common >= 0.5 * areas[0][i])]] = True
    out[1][j[cut[0][i] & (common >= 0.5 * areas[1][j])]] = True
    good = (iou >= min_iou) & (class_ids[0][i] == class_ids[1][j]) & ~out[0][i] & ~out[1][j]
    matched = _best_first(i, j, iou, good)
    classes = np.unique(np.concatenate([class_ids[0][~out[0]], class_ids[1][~out[1]]]))
    pairs = class_ids[0][i[matched]]
    columns = (pairs, class_ids[0][~out[0]], class_ids[1][~out[1]])
    table = np.column_stack([classes, *(np.array([(c == k).sum() for k in classes], np.int64) for c in columns)])
    return Judgement(table.astype(np.int64), float(iou[matched].sum()), int(out[0].sum() + out[1].sum()))


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _best_first(
    i: NDArray[np.int64], j: NDArray[np.int64], iou: NDArray[np.float64], good: Booleans
) -> NDArray[np.int64]:
    """Return positions of pairs, each object in one pair at most: by falling IoU, then by position."""
    taken: tuple[set[int], set[int]] = set(), set()
    matched = []
    for k in np.lexsort((j, i, -iou)).tolist():
        if good[k] and i[k] not in taken[0] and j[k] not in taken[1]:
            taken[0].add(int(i[k]))
            taken[1].add(int(j[k]))
            matched.append(k)
    return np.array(matched, np.int64)
