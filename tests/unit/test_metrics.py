"""Metrics against slow definitions by the book, with sets of pixels, written apart from the fast ones."""

from __future__ import annotations

import numpy as np
import pytest

from segworker import masks, metrics
from segworker.types import Runs, Window

Cells = dict[int, set[tuple[int, int]]]


def cells_of_labels(labels: np.ndarray) -> Cells:
    return {
        int(i): {(int(y), int(x)) for y, x in zip(*np.nonzero(labels == i), strict=True)}
        for i in np.unique(labels)
        if i > 0
    }


def cells_of_runs(runs: Runs) -> Cells:
    cells: Cells = {}
    for i in range(len(runs)):
        cells[i + 1] = set()
        for k in range(runs.offsets[i], runs.offsets[i + 1]):
            cells[i + 1] |= {(int(runs.rows[k]), x) for x in range(runs.starts[k], runs.stops[k])}
    return cells


def brute_quality(truth: Cells, pred: Cells) -> tuple[float, float, float]:
    pairs = [(len(a & b) / len(a | b), t, p) for t, a in truth.items() for p, b in pred.items() if a & b]
    free_t, free_p, ious = set(truth), set(pred), []
    for iou, t, p in sorted(pairs, key=lambda k: (-k[0], k[1], k[2])):
        if iou > 0.5 and t in free_t and p in free_p:
            ious.append(iou)
            free_t.remove(t)
            free_p.remove(p)
    if not ious:
        return 0.0, 0.0, 0.0
    rq = len(ious) / (len(ious) + len(free_t) / 2 + len(free_p) / 2)
    return sum(ious) / len(ious) * rq, sum(ious) / len(ious), rq


def brute_faults(truth: Cells, pred: Cells, share: float = 0.2) -> dict[str, int]:
    cut, held, duplicates, missed = set(), dict.fromkeys(pred, 0), set(), 0
    for t, a in truth.items():
        shared = {p: len(a & b) for p, b in pred.items() if a & b}
        main = min(shared, key=lambda p: (-shared[p], p), default=None)
        holders = [p for p in shared if shared[p] >= share * len(a)]
        missed += not holders
        for p in holders:
            held[p] += 1
        for p, n in shared.items():
            if p == main:
                continue
            if p in holders and n <= len(a) / 2:
                cut.add(t)
            elif 2 * n >= len(pred[p]):
                duplicates.add(p)
    best = {p: max((len(a & b) for a in truth.values()), default=0) for p, b in pred.items()}
    return {
        "cut": len(cut),
        "merged": sum(n > 1 for n in held.values()),
        "welds": sum(max(0, n - 1) for n in held.values()),
        "duplicates": len(duplicates),
        "missed": missed,
        "false": sum(best[p] < share * len(b) for p, b in pred.items()),
    }


def random_labels(seed: int, *, side: int = 40, num: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    for i in range(1, num + 1):
        y, x = rng.integers(0, side, 2)
        height, width = rng.integers(2, 14, 2)
        labels[y : y + height, x : x + width] = i
    return labels


def disturbed(labels: np.ndarray, seed: int) -> np.ndarray:
    """Shift, cut and merge some objects."""
    rng = np.random.default_rng(seed)
    pred = np.roll(labels, rng.integers(-1, 2, 2), (0, 1))
    half = labels.shape[1] // 2
    pred[:, half:][pred[:, half:] == 3] = 90
    pred[pred == 5] = 6
    pred[rng.random(pred.shape) < 0.02] = 0
    return pred


@pytest.mark.parametrize("seed", range(8))
def test_rasters_agree_with_brute_force(seed: int) -> None:
    truth = random_labels(seed)
    pred = disturbed(truth, seed)
    overlaps = metrics.overlap_rasters(truth, pred)
    a, b = cells_of_labels(truth), cells_of_labels(pred)
    quality = metrics.panoptic_quality(overlaps)
    assert (quality.pq, quality.sq, quality.rq) == pytest.approx(brute_quality(a, b))
    assert metrics.object_f1(overlaps) == pytest.approx(brute_quality(a, b)[2])
    assert metrics.seam_faults(overlaps) == metrics.SeamFaults(**brute_faults(a, b))


def overlapping_runs(seed: int) -> Runs:
    """Masks of two label images: they overlap one another."""
    window = Window(0, 0, 40, 40)
    layers = [masks.runs_from_labels(random_labels(seed + k), 12, window=window) for k in (0, 50)]
    both = Runs.concatenate(layers)
    return both.take(np.flatnonzero(np.diff(both.offsets)))


@pytest.mark.parametrize("seed", range(8))
def test_overlapping_runs_agree_with_brute_force(seed: int) -> None:
    truth = random_labels(seed)
    pred = overlapping_runs(seed)
    a, b = cells_of_labels(truth), cells_of_runs(pred)
    from_raster = metrics.overlap_runs_with_raster(truth, pred)
    assert metrics.seam_faults(from_raster) == metrics.SeamFaults(**brute_faults(a, b))
    assert metrics.panoptic_quality(from_raster).pq == pytest.approx(brute_quality(a, b)[0])
    other = overlapping_runs(seed + 7)
    joined = metrics.overlap_runs(other, pred)
    assert metrics.panoptic_quality(joined).pq == pytest.approx(brute_quality(cells_of_runs(other), b)[0])


def test_runs_and_raster_give_one_table() -> None:
    truth = random_labels(3)
    present = np.unique(truth[truth > 0])
    window = Window(0, 0, 40, 40)
    pred = overlapping_runs(11)
    from_runs = metrics.overlap_runs(masks.runs_from_labels(truth, 12, window=window).take(present - 1), pred)
    from_raster = metrics.overlap_runs_with_raster(truth, pred)
    for name in ("truth_areas_px", "pred_ids", "pred_areas_px", "truth_index", "pred_index", "pixels"):
        assert np.array_equal(getattr(from_runs, name), getattr(from_raster, name)), name


def test_a_perfect_result_is_perfect() -> None:
    truth = random_labels(1)
    overlaps = metrics.overlap_rasters(truth, truth * 7 % 13)
    assert metrics.panoptic_quality(overlaps).pq == 1.0
    assert metrics.seam_faults(overlaps) == metrics.SeamFaults(0, 0, 0, 0, 0, 0)


def test_faults_are_told_apart() -> None:
    truth = np.zeros((40, 100), np.int32)
    for k in range(5):
        truth[5:35, 2 + 20 * k : 18 + 20 * k] = k + 1
    pred = truth.copy()
    pred[5:20, 2:18] = 11  # object 1 in two halves
    pred[truth == 3] = 2  # 2 and 3 in one
    pred[truth == 4] = 0  # 4 missed
    pred[5:35, 82:84] = 12  # a sliver beside 5
    pred[38:40, :] = 13  # nothing there
    faults = metrics.seam_faults(metrics.overlap_rasters(truth, pred))
    assert faults == metrics.SeamFaults(cut=1, merged=1, welds=1, duplicates=1, missed=1, false=1)


def test_a_second_whole_view_is_a_duplicate() -> None:
    window = Window(0, 0, 20, 20)
    truth = np.zeros((20, 20), np.int32)
    truth[4:16, 4:16] = 1
    twice = Runs.concatenate([masks.runs_from_labels(truth, 1, window=window)] * 2)
    overlaps = metrics.overlap_runs_with_raster(truth, twice)
    assert metrics.seam_faults(overlaps) == metrics.SeamFaults(0, 0, 0, 1, 0, 0)
    assert metrics.panoptic_quality(overlaps).false_positives == 1


def test_classes_must_agree() -> None:
    truth = random_labels(2)
    overlaps = metrics.overlap_rasters(truth, truth)
    classes = np.arange(len(overlaps.truth_ids)) % 3
    wrong = np.where(np.arange(len(classes)) == 0, 9, classes)
    assert metrics.panoptic_quality(overlaps, classes, wrong).true_positives == len(classes) - 1
    per_class = metrics.class_qualities(overlaps, classes, wrong)
    assert set(per_class) == {0, 1, 2, 9}
    assert per_class[9].false_positives == 1
    assert per_class[0].false_negatives == 1
    assert per_class[1].pq == 1.0


def test_empty_scenes() -> None:
    nothing = np.zeros((5, 7), np.int32)
    assert metrics.panoptic_quality(metrics.overlap_rasters(nothing, nothing)).pq == 1.0
    full = nothing + 1
    assert metrics.panoptic_quality(metrics.overlap_rasters(full, nothing)).pq == 0.0
    assert metrics.panoptic_quality(metrics.overlap_runs_with_raster(full, Runs.empty())).false_negatives == 1
    assert metrics.panoptic_quality(metrics.overlap_runs(Runs.empty(), Runs.empty())).pq == 1.0


def test_no_object_beyond_int32_of_pairs() -> None:
    truth = np.array([[2**31 - 1, 2**31 - 1, 0]], np.int64)
    overlaps = metrics.overlap_rasters(truth, truth)
    assert overlaps.truth_ids.tolist() == [2**31 - 1]
    assert overlaps.pixels.tolist() == [2]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.overlap_rasters(np.zeros((2, 2), np.int32), np.zeros((2, 3), np.int32))
