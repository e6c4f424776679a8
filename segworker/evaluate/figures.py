"""What a run's objects are worth: panoptic quality, F1, counts, seams, calibration. Dictionaries for JSON.

All but the seams count a match where the IoU of a true and a found object of one class is above 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segworker.evaluate.average_precision import SIZES, Precision
from segworker.evaluate.judge import JudgedScene
from segworker.grid import Axis, Grid
from segworker.masks import boxes_xyxy
from segworker.metrics import object_faults
from segworker.types import Category, Runs

BINS = 10
"Of scores, for calibration."


def precision_figures(precision: Precision, categories: Sequence[Category]) -> dict[str, Any]:
    """Return COCO's figures: over all, by class and by size."""
    by_class = {
        c.name: {
            "ap": precision.ap(class_index=k),
            "ap50": precision.ap(iou=0.5, class_index=k),
            "ap50_by_size": {size: precision.ap(iou=0.5, class_index=k, size=size) for size in list(SIZES)[1:]},
        }
        for k, c in enumerate(categories)
    }
    return {
        "ap": precision.ap(),
        "ap50": precision.ap(iou=0.5),
        "ap75": precision.ap(iou=0.75),
        "by_size": {
            size: {"ap": precision.ap(size=size), "ap50": precision.ap(iou=0.5, size=size)} for size in list(SIZES)[1:]
        },
        "by_class": by_class,
    }


def precision_recall(precision: Precision, categories: Sequence[Category]) -> dict[str, list[float]]:
    """Return the precision at the 101 recalls 0 to 1 at IoU 0.5, by class; classes without objects are left out."""
    curves = {c.name: precision.precision[0, :, k, 0] for k, c in enumerate(categories)}
    return {name: np.round(curve, 5).tolist() for name, curve in curves.items() if (curve > -1).any()}


def quality_figures(scenes: Sequence[JudgedScene], categories: Sequence[Category]) -> dict[str, Any]:
    """Return PQ, SQ, RQ and object F1: the mean over classes as in the literature, and all objects pooled."""
    by_class = {c.name: _quality(*_tallies(scenes, c.id)) for c in categories}
    present = [q for q in by_class.values() if q["pq"] is not None]
    things = [by_class[c.name] for c in categories if c.isthing and by_class[c.name]["pq"] is not None]
    mean = {name: _mean([q[name] for q in present]) for name in ("pq", "sq", "rq")}
    return {
        **mean,
        "pq_things": _mean([q["pq"] for q in things]),
        "all_objects": _quality(*_tallies(scenes, None)),
        "by_class": by_class,
    }


def _tallies(scenes: Sequence[JudgedScene], class_id: int | None) -> tuple[list[float], int, int]:
    """Return (IoUs of the matches, true objects, findings that are judged) of a class, or of all."""
    ious: list[float] = []
    num_truth = num_pred = 0
    for scene in scenes:
        matched = scene.truth_classes[scene.matches[0]]
        ious += scene.matches[2][np.ones(len(matched), bool) if class_id is None else matched == class_id].tolist()
        judged = ~scene.excused
        num_truth += int((scene.truth_classes == class_id).sum()) if class_id is not None else len(scene.truth)
        num_pred += (
            int((judged & (scene.pred_classes == class_id)).sum()) if class_id is not None else int(judged.sum())
        )
    return ious, num_truth, num_pred


def _quality(ious: Sequence[float], num_truth: int, num_pred: int) -> dict[str, Any]:
    hits = len(ious)
    counts = {"true_positives": hits, "false_positives": num_pred - hits, "false_negatives": num_truth - hits}
    if num_truth + num_pred == 0:
        return {"pq": None, "sq": None, "rq": None, "f1": None, "precision": None, "recall": None, **counts}
    sq = float(np.mean(ious)) if hits else 0.0
    rq = 2 * hits / (num_truth + num_pred)
    return {
        "pq": sq * rq,
        "sq": sq,
        "rq": rq,
        "f1": rq,
        "precision": hits / num_pred if num_pred else None,
        "recall": hits / num_truth if num_truth else None,
        **counts,
    }


def count_figures(scenes: Sequence[JudgedScene]) -> dict[str, Any]:
    """Return how far the numbers of objects are off: in all, and the mean error of a scene."""
    true = np.array([len(scene.truth) for scene in scenes], np.float64)
    found = np.array([int((~scene.excused).sum()) for scene in scenes], np.float64)
    total = float(true.sum())
    return {
        "true": int(total),
        "found": int(found.sum()),
        "error": int((found - true).sum()),
        "relative_error": float((found - true).sum() / total) if total else None,
        "mean_absolute_error_of_scenes": float(np.abs(found - true).mean()) if len(scenes) else None,
    }


def seam_figures(scenes: Sequence[JudgedScene], grids: Mapping[str, Grid]) -> dict[str, Any] | None:
    """Return the faults of objects near borders between cores, beside those of the interior; None without grids.

    Near is within one overlap of a border. `metrics.seam_faults` defines the faults. Rates are per true object (cut,
    missed) and per finding (merged, duplicates).
    """
    sums = {place: np.zeros(6, np.int64) for place in ("near_borders", "interior")}
    known = [scene for scene in scenes if scene.scene.scene_id in grids]
    for scene in known:
        grid = grids[scene.scene.scene_id]
        faults = object_faults(scene.overlaps)
        judged = ~scene.excused
        true_near, found_near = near_borders(scene.truth, grid), near_borders(scene.pred, grid)
        for place, true, found in (("near_borders", true_near, found_near), ("interior", ~true_near, ~found_near)):
            found = found & judged  # noqa: PLW2901 - one place at a time
            flags = (
                *(true, faults.cut & true, faults.missed & true),
                *(found, (faults.held > 1) & found, faults.duplicate & found),
            )
            sums[place] += np.array([int(flag.sum()) for flag in flags])
    if not known:
        return None
    return {
        "tile": sorted({grids[s.scene.scene_id].tile_px for s in known}),
        "overlap": sorted({grids[s.scene.scene_id].overlap_px for s in known}),
        **{place: _seam_counts(counts) for place, counts in sums.items()},
    }


def _seam_counts(counts: NDArray[np.int64]) -> dict[str, Any]:
    true, cut, missed, found, merged, duplicates = counts.tolist()
    return {
        "objects": true,
        "found": found,
        "cut": cut,
        "missed": missed,
        "merged": merged,
        "duplicates": duplicates,
        "cut_rate": cut / true if true else None,
        "missed_rate": missed / true if true else None,
        "merged_rate": merged / found if found else None,
        "duplicate_rate": duplicates / found if found else None,
    }


def near_borders(runs: Runs, grid: Grid) -> NDArray[np.bool_]:
    """Return which masks come within an overlap of a border between cores, by their boxes."""
    boxes = boxes_xyxy(runs).astype(np.float64) * grid.scale
    reach = max(1, grid.overlap_px)
    result = np.zeros(len(runs), bool)
    for axis, low, high in ((grid.x, boxes[:, 0], boxes[:, 2]), (grid.y, boxes[:, 1], boxes[:, 3])):
        borders = _borders(axis)
        first = np.searchsorted(borders, low - reach)
        result |= first < np.searchsorted(borders, high + reach, side="right")
    return result


def _borders(axis: Axis) -> NDArray[np.float64]:
    return np.array([axis.core(k)[0] for k in range(1, axis.count)], np.float64)


def calibration_figures(scenes: Sequence[JudgedScene]) -> dict[str, Any]:
    """Return how often findings of a score are right, in ten bins of scores, and the expected calibration error.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017). A finding is right where it matches.
    """
    scores = np.concatenate([np.zeros(0), *(scene.pred_scores[~scene.excused] for scene in scenes)])
    right = np.concatenate([np.zeros(0, bool), *(scene.matched[~scene.excused] for scene in scenes)])
    place = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    bins = [_bin(k, scores[place == k], right[place == k]) for k in range(BINS)]
    gap = sum(abs(float(scores[place == k].sum()) - float(right[place == k].sum())) for k in range(BINS))
    return {"bins": bins, "expected_calibration_error": gap / len(scores) if len(scores) else None}


def _bin(k: int, scores: NDArray[np.floating], right: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a bin's bounds, its findings, their mean score and the share of them that is right."""
    mean, share = (float(scores.mean()), float(right.mean())) if len(scores) else (None, None)
    return {"from": k / BINS, "to": (k + 1) / BINS, "count": len(scores), "mean_score": mean, "right": share}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
