"""One scene's truth and findings brought face to face: one set of classes, one area, places that are not judged.

T true objects, P found ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.evaluate.found import FoundObjects
from segworker.masks import areas_px, merge_runs
from segworker.metrics import Overlaps, match_objects, overlap_runs
from segworker.rasterise import runs_of_polygons
from segworker.truth import SceneTruth
from segworker.types import Runs, Scene

INSIDE_SHARE = 0.5
"Of an object that has to lie in the judged area, and of a finding in an ignored place that excuses it."


@dataclass(frozen=True, slots=True, eq=False)
class Ignored:
    """Places where findings are not held against a run."""

    runs: Runs
    "Masks in scene pixels."
    class_ids: NDArray[np.int32]
    "The class of each; 0: every class."


@dataclass(frozen=True, slots=True, eq=False)
class JudgedScene:
    """What is compared on a scene. Classes are ids of the judged categories."""

    scene: Scene
    truth: Runs
    truth_classes: NDArray[np.int32]
    "(T,)."
    truth_names: tuple[str, ...]
    "(T,) as the annotations call them."
    pred: Runs
    pred_classes: NDArray[np.int32]
    "(P,)."
    pred_scores: NDArray[np.float32]
    "(P,)."
    pred_ids: NDArray[np.int64]
    "(P,) feature ids."
    ignored: Ignored
    partial: frozenset[int]
    "Classes of which only some objects are annotated."
    overlaps: Overlaps
    matches: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
    "Positions of true and found objects of one class with an IoU above 0.5, and the IoU."
    excused: NDArray[np.bool_]
    "(P,) without a match, and not to be judged."

    @property
    def matched(self) -> NDArray[np.bool_]:
        """(P,) whether a found object has a match."""
        flags = np.zeros(len(self.pred), bool)
        flags[self.matches[1]] = True
        return flags


def judge_scene(
    scene: Scene,
    truth: SceneTruth,
    found: FoundObjects,
    *,
    truth_class: dict[int, int],
    found_class: dict[str, int],
    area: shapely.Geometry | None = None,
    min_score: float = 0.0,
) -> JudgedScene:
    """Prepare a scene for all metrics.

    Args:
        scene: the scene.
        truth: its annotations.
        found: what the run found there.
        truth_class: judged class of each class of the truth; a class that is left out is ignored everywhere.
        found_class: judged class by the names of the run; findings of other classes are not looked at.
        area: only this part of the scene is judged, in scene pixels. Both sides are cut by it; an object that has less
            than half of itself inside is not judged, and excuses what was found there.
        min_score: findings below are not looked at.
    """
    classes = np.array([truth_class.get(c, 0) for c in truth.class_ids.tolist()], np.int32)
    crowd = truth.crowd | (classes == 0)
    true_runs, names = truth.runs, np.array(truth.object_ids, object)
    pred_classes = np.array([found_class.get(name, 0) for name in found.class_names.tolist()], np.int32)
    kept = (pred_classes > 0) & (found.scores >= min_score)
    pred, pred_classes = found.runs.take(kept), pred_classes[kept]
    scores, ids = found.scores[kept], found.feature_ids[kept]
    if area is not None:
        region = runs_of_polygons(np.array([area], object), width=scene.width, height=scene.height)
        true_runs, share = _cut(true_runs, region)
        crowd |= share < INSIDE_SHARE
        pred, share = _cut(pred, region)
        inside = share >= INSIDE_SHARE
        pred, pred_classes, scores, ids = pred.take(inside), pred_classes[inside], scores[inside], ids[inside]
    left = areas_px(true_runs) > 0
    crowds = np.flatnonzero(left & crowd)
    objects = np.flatnonzero(left & ~crowd)
    ignored = Ignored(true_runs.take(crowds), classes[crowds])
    partial = frozenset(truth_class[c] for c in truth.partial_class_ids if c in truth_class)
    overlaps = overlap_runs(true_runs.take(objects), pred)
    matches = match_objects(overlaps, classes[objects], pred_classes)
    excused = _in_ignored(ignored, pred, pred_classes) | np.isin(pred_classes, sorted(partial))
    excused[matches[1]] = False
    return JudgedScene(
        scene,
        true_runs.take(objects),
        classes[objects],
        tuple(names[objects].tolist()),
        pred,
        pred_classes,
        scores,
        ids,
        ignored,
        partial,
        overlaps,
        matches,
        excused,
    )


def _cut(runs: Runs, region: Runs) -> tuple[Runs, NDArray[np.float64]]:
    """Return the masks' parts inside a region, and the share of each that they are."""
    inside = intersect_runs(runs, region)
    return inside, areas_px(inside) / np.maximum(areas_px(runs), 1)


def intersect_runs(runs: Runs, region: Runs) -> Runs:
    """Return the parts of N masks inside one mask; none is dropped."""
    mask = np.repeat(np.arange(len(runs)), np.diff(runs.offsets))
    rows, region_rows = runs.rows.astype(np.int64), region.rows.astype(np.int64)
    first = np.searchsorted(region_rows << 32 | region.stops, rows << 32 | runs.starts, side="right")
    last = np.maximum(first, np.searchsorted(region_rows << 32 | region.starts, rows << 32 | runs.stops, side="left"))
    counts = last - first
    mine = np.repeat(np.arange(len(rows)), counts)
    other = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    starts = np.maximum(runs.starts[mine], region.starts[other])
    stops = np.minimum(runs.stops[mine], region.stops[other])
    sizes = np.bincount(mask[mine], minlength=len(runs))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int64)
    return Runs(runs.rows[mine], starts.astype(np.int32), stops.astype(np.int32), offsets)


def _in_ignored(ignored: Ignored, pred: Runs, pred_classes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which findings have half of their pixels in ignored places of their class."""
    result = np.zeros(len(pred), bool)
    if not len(ignored.runs) or not len(pred):
        return result
    areas = areas_px(pred)
    for class_id in np.unique(pred_classes).tolist():
        mine = np.flatnonzero(pred_classes == class_id)
        places = ignored.runs.take(np.isin(ignored.class_ids, [0, class_id]))
        region = merge_runs(places, np.zeros(len(places), np.int64), 1)
        inside = areas_px(intersect_runs(pred.take(mine), region))
        result[mine] = inside >= INSIDE_SHARE * areas[mine]
    return result
