"""How good a segmentation is: panoptic quality, object F1, and what seams do to objects.

Everything starts from `Overlaps`, the sparse table of how many pixels each predicted object shares with each true one.
It comes from label rasters, from runs, or from both, and never holds an N x M matrix.

Panoptic quality is that of Kirillov et al., "Panoptic Segmentation" (CVPR 2019): a prediction and a true object match
when their intersection over union is above 0.5; SQ is the mean IoU of the matches, RQ = TP / (TP + FP/2 + FN/2) and
PQ = SQ * RQ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segworker.masks import areas_px
from segworker.types import Runs

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """Areas of both sets of objects, and the pixels of each pair that shares any."""

    truth_ids: Ints
    "(T,) ascending; 0 is background and never listed."
    truth_areas_px: Ints
    "(T,)."
    pred_ids: Ints
    "(P,) ascending."
    pred_areas_px: Ints
    "(P,)."
    truth_index: Ints
    "(K,) position in truth_ids of each pair."
    pred_index: Ints
    "(K,) position in pred_ids of each pair."
    pixels: Ints
    "(K,) shared pixels of each pair, at least 1."

    def ious(self) -> NDArray[np.float64]:
        """Return the intersection over union of each pair."""
        union = self.truth_areas_px[self.truth_index] + self.pred_areas_px[self.pred_index] - self.pixels
        return self.pixels / union


@dataclass(frozen=True, slots=True)
class Quality:
    """Panoptic quality with its counts."""

    pq: float
    sq: float
    "Mean IoU of the matches; 0 where nothing matches."
    rq: float
    "Also the object F1 at the threshold."
    true_positives: int
    false_positives: int
    false_negatives: int


@dataclass(frozen=True, slots=True)
class SeamFaults:
    """What went wrong with whole objects. `seam_faults` defines each count."""

    cut: int
    "True objects in two or more pieces."
    merged: int
    "Predictions that hold two or more true objects."
    welds: int
    "True objects too many in merged predictions: the sum of (objects held - 1)."
    duplicates: int
    "Predictions that show an object again."
    missed: int
    "True objects that no prediction holds."
    false: int
    "Predictions that lie on no true object."


def overlap_rasters(truth_HW: NDArray[np.integer], pred_HW: NDArray[np.integer]) -> Overlaps:
    """Count the shared pixels of two label rasters of one shape; 0 is background.

    Labels are at least 0 and below 2^31. Not checked.
    """
    if truth_HW.shape != pred_HW.shape:
        raise ValueError(f"label rasters must have one shape, got {truth_HW.shape} and {pred_HW.shape}")
    truth, pred = truth_HW.ravel().astype(np.int64), pred_HW.ravel().astype(np.int64)
    keys, counts = _count(truth << 32 | pred)
    return _from_pairs(keys >> 32, keys & 0xFFFFFFFF, counts)


def overlap_runs_with_raster(truth_HW: NDArray[np.integer], pred: Runs) -> Overlaps:
    """Count the pixels that masks share with a label raster; prediction i gets id i + 1, and masks may overlap.

    Runs are in the raster's pixels and inside it. Empty masks are counted as predictions of area 0. Not checked.
    """
    lengths = (pred.stops - pred.starts).astype(np.int64)
    mask_of_run = np.repeat(np.arange(len(pred)), np.diff(pred.offsets))
    first = pred.rows.astype(np.int64) * truth_HW.shape[1] + pred.starts
    flat = np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    labels = truth_HW.ravel()[flat].astype(np.int64)
    keys, counts = _count(labels << 32 | np.repeat(mask_of_run + 1, lengths))
    inside = keys >> 32 > 0
    truth_ids, truth_areas = _count(truth_HW.ravel().astype(np.int64))
    areas = np.bincount(mask_of_run, weights=lengths, minlength=len(pred)).astype(np.int64)
    known = truth_ids > 0
    return _build(
        (truth_ids[known], truth_areas[known]),
        (np.arange(1, len(pred) + 1), areas),
        (keys[inside] >> 32, keys[inside] & 0xFFFFFFFF, counts[inside]),
    )


def overlap_runs(truth: Runs, pred: Runs) -> Overlaps:
    """Count the shared pixels of two sets of masks; mask i gets id i + 1. Masks may overlap within a set."""
    a, b, pixels = _join_runs(truth, pred)
    keys, inverse = np.unique(a << 32 | b, return_inverse=True)
    shared = np.bincount(inverse, weights=pixels, minlength=len(keys)).astype(np.int64)
    return _build(
        (np.arange(1, len(truth) + 1), areas_px(truth)),
        (np.arange(1, len(pred) + 1), areas_px(pred)),
        ((keys >> 32) + 1, (keys & 0xFFFFFFFF) + 1, shared),
    )


def match_objects(
    overlaps: Overlaps,
    truth_classes: NDArray[np.integer] | None = None,
    pred_classes: NDArray[np.integer] | None = None,
    *,
    min_iou: float = 0.5,
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return (truth positions, prediction positions, IoUs) of the pairs with an IoU above `min_iou`.

    Every object is in one pair at most. Where neither set overlaps itself and min_iou is 0.5 or more this needs no
    choice; otherwise the best IoU goes first, ties to the smaller ids. Classes, given by position in `truth_ids` and
    `pred_ids`, must agree where given.
    """
    ious = overlaps.ious()
    good = ious > min_iou
    if truth_classes is not None and pred_classes is not None:
        good &= truth_classes[overlaps.truth_index] == pred_classes[overlaps.pred_index]
    truth, pred, ious = overlaps.truth_index[good], overlaps.pred_index[good], ious[good]
    order = np.lexsort((pred, truth, -ious))
    kept = _greedy(truth[order], pred[order])
    chosen = order[kept]
    return truth[chosen], pred[chosen], ious[chosen]


def panoptic_quality(
    overlaps: Overlaps,
    truth_classes: NDArray[np.integer] | None = None,
    pred_classes: NDArray[np.integer] | None = None,
    *,
    min_iou: float = 0.5,
) -> Quality:
    """Return the panoptic quality of things, pooled over all objects; empty against empty is 1.

    Args:
        overlaps: from one of the `overlap_*` functions.
        truth_classes: (T,) class of each of `overlaps.truth_ids`; None compares shapes alone.
        pred_classes: (P,) likewise for `overlaps.pred_ids`.
        min_iou: pairs above it match.
    """
    _, _, ious = match_objects(overlaps, truth_classes, pred_classes, min_iou=min_iou)
    return _quality(len(overlaps.truth_ids), len(overlaps.pred_ids), ious)


def class_qualities(
    overlaps: Overlaps,
    truth_classes: NDArray[np.integer],
    pred_classes: NDArray[np.integer],
    *,
    min_iou: float = 0.5,
) -> dict[int, Quality]:
    """Return the panoptic quality of each class that occurs on either side; their mean is the PQ of the literature."""
    truth, _, ious = match_objects(overlaps, truth_classes, pred_classes, min_iou=min_iou)
    classes = np.union1d(truth_classes, pred_classes)
    return {
        int(c): _quality(
            int((truth_classes == c).sum()), int((pred_classes == c).sum()), ious[truth_classes[truth] == c]
        )
        for c in classes
    }


def object_f1(overlaps: Overlaps, *, min_iou: float = 0.5) -> float:
    """Return the F1 of objects, a match being an IoU above `min_iou`; 1 where both sides are empty."""
    return panoptic_quality(overlaps, min_iou=min_iou).rq


@dataclass(frozen=True, slots=True, eq=False)
class ObjectFaults:
    """What went wrong with each object. `seam_faults` defines the faults."""

    cut: NDArray[np.bool_]
    "(T,) true objects in two or more pieces."
    missed: NDArray[np.bool_]
    "(T,) true objects that no prediction holds."
    held: Ints
    "(P,) true objects that a prediction holds; two or more are merged."
    duplicate: NDArray[np.bool_]
    "(P,) predictions that show an object again."
    false: NDArray[np.bool_]
    "(P,) predictions that lie on no true object."


def seam_faults(overlaps: Overlaps, *, share: float = 0.2) -> SeamFaults:
    """Count objects that were cut, merged, shown twice, missed or invented.

    A prediction *holds* a true object when at least `share` of the object's pixels are its own. Of the predictions on
    an object the one with most of its pixels is the main one (ties: the smaller id).

    - cut: objects that have, besides the main prediction, one that holds them and shares at most half their pixels
    - merged: predictions that hold two objects or more; welds: the objects too many
    - duplicates: predictions with at least half their pixels on an object of which another one is the main prediction,
      that share more than half of it (so the two lie on each other) or do not hold it (a sliver beside the main one)
    - missed: objects that no prediction holds
    - false: predictions with less than `share` of their pixels on any one object
    """
    faults = object_faults(overlaps, share=share)
    return SeamFaults(
        cut=int(faults.cut.sum()),
        merged=int((faults.held > 1).sum()),
        welds=int(np.maximum(faults.held - 1, 0).sum()),
        duplicates=int(faults.duplicate.sum()),
        missed=int(faults.missed.sum()),
        false=int(faults.false.sum()),
    )


def object_faults(overlaps: Overlaps, *, share: float = 0.2) -> ObjectFaults:
    """Tell for each object what `seam_faults` counts."""
    t, p, shared = overlaps.truth_index, overlaps.pred_index, overlaps.pixels
    num_truth, num_pred = len(overlaps.truth_ids), len(overlaps.pred_ids)
    of_truth = shared / overlaps.truth_areas_px[t]
    of_pred = shared / overlaps.pred_areas_px[p]
    holds = of_truth >= share
    other = ~_is_main(t, p, shared)
    return ObjectFaults(
        cut=_any(num_truth, t[other & holds & (of_truth <= 0.5)]),
        missed=~_any(num_truth, t[holds]),
        held=np.bincount(p[holds], minlength=num_pred),
        duplicate=_any(num_pred, p[other & (of_pred >= 0.5) & (~holds | (of_truth > 0.5))]),
        false=~_any(num_pred, p[of_pred >= share]),
    )


def _any(count: int, indices: Ints) -> NDArray[np.bool_]:
    flags = np.zeros(count, bool)
    flags[indices] = True
    return flags


def _is_main(t: Ints, p: Ints, shared: Ints) -> NDArray[np.bool_]:
    """Tell for each pair whether its prediction has the most pixels of its true object."""
    order = np.lexsort((p, -shared, t))
    main = np.zeros(len(t), bool)
    main[order[np.unique(t[order], return_index=True)[1]]] = True
    return main


def _greedy(truth: Ints, pred: Ints) -> Ints:
    """Return the pairs, best first, whose two objects were both still free."""
    clash = len(np.unique(truth)) < len(truth) or len(np.unique(pred)) < len(pred)
    if not clash:
        return np.arange(len(truth))
    used_truth: set[int] = set()
    used_pred: set[int] = set()
    kept = []
    for k, (t, p) in enumerate(zip(truth.tolist(), pred.tolist(), strict=True)):
        if t not in used_truth and p not in used_pred:
            used_truth.add(t)
            used_pred.add(p)
            kept.append(k)
    return np.array(kept, np.int64)


def _quality(num_truth: int, num_pred: int, ious: NDArray[np.float64]) -> Quality:
    """Return PQ, SQ and RQ of a matching."""
    if num_truth + num_pred == 0:
        return Quality(1.0, 1.0, 1.0, 0, 0, 0)
    tp = len(ious)
    sq = float(ious.mean()) if tp else 0.0
    rq = 2 * tp / (num_truth + num_pred)
    return Quality(sq * rq, sq, rq, tp, num_pred - tp, num_truth - tp)


def _count(values: Ints) -> tuple[Ints, Ints]:
    """Return unique values and their counts; long equal stretches, as labels have, are counted at once."""
    if not len(values):
        return values, np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    keys, inverse = np.unique(values[starts], return_inverse=True)
    lengths = np.diff(np.append(starts, len(values)))
    return keys, np.bincount(inverse, weights=lengths).astype(np.int64)


def _from_pairs(truth: Ints, pred: Ints, counts: Ints) -> Overlaps:
    """Build the table from all (truth, prediction, pixels), background included."""
    sides = []
    for ids in (truth, pred):
        unique, inverse = np.unique(ids, return_inverse=True)
        areas = np.bincount(inverse, weights=counts, minlength=len(unique)).astype(np.int64)
        sides.append((unique[unique > 0], areas[unique > 0]))
    both = (truth > 0) & (pred > 0)
    return _build(sides[0], sides[1], (truth[both], pred[both], counts[both]))


def _build(truth: tuple[Ints, Ints], pred: tuple[Ints, Ints], pairs: tuple[Ints, Ints, Ints]) -> Overlaps:
    """Build the table from (ids, areas) of both sides and (truth id, prediction id, pixels)."""
    truth_index, pred_index = np.searchsorted(truth[0], pairs[0]), np.searchsorted(pred[0], pairs[1])
    return Overlaps(*truth, *pred, truth_index, pred_index, pairs[2])


def _join_runs(truth: Runs, pred: Runs) -> tuple[Ints, Ints, Ints]:
    """Return (truth mask, prediction mask, shared pixels) of every pair of runs that meet in a row."""
    t_rows, t_starts, t_stops, t_mask = _by_row(truth)
    p_rows, p_starts, p_stops, p_mask = _by_row(pred)
    if not len(t_rows) or not len(p_rows):
        none = np.zeros(0, np.int64)
        return none, none, none
    # Within a row the furthest stop so far never falls, so what can still reach a run is found by bisection.
    reach = np.maximum.accumulate(p_rows << 32 | p_stops)
    first = np.searchsorted(reach, t_rows << 32 | t_starts, side="right")
    last = np.maximum(first, np.searchsorted(p_rows << 32 | p_starts, t_rows << 32 | t_stops, side="left"))
    counts = last - first
    t = np.repeat(np.arange(len(t_rows)), counts)
    p = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    pixels = np.minimum(t_stops[t], p_stops[p]) - np.maximum(t_starts[t], p_starts[p])
    meet = pixels > 0
    return t_mask[t[meet]], p_mask[p[meet]], pixels[meet]


def _by_row(masks: Runs) -> tuple[Ints, Ints, Ints, Ints]:
    """Return rows, starts, stops and masks of all runs, sorted by row and start."""
    mask = np.repeat(np.arange(len(masks), dtype=np.int64), np.diff(masks.offsets))
    order = np.lexsort((masks.starts, masks.rows))
    rows, starts, stops = (a[order].astype(np.int64) for a in (masks.rows, masks.starts, masks.stops))
    return rows, starts, stops, mask[order]
