"""Masks as runs, judged by numpy on the images they stand for, and by pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from segworker import masks
from segworker.stitch.exclusive import exclusive_runs
from segworker.types import Runs, Window
from tests.strategies import label_images, mask_lists, windows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
few = settings(deadline=None, max_examples=60)


def runs_of(stack_NHW: np.ndarray, window: Window | None = None) -> Runs:
    """Runs of masks that may overlap, at the origin unless a window says where."""
    window = Window(0, 0, stack_NHW.shape[2], stack_NHW.shape[1]) if window is None else window
    return Runs.concatenate([masks.runs_from_mask(m, window=window) for m in stack_NHW])


def images_of(runs: Runs, window: Window) -> np.ndarray:
    """The masks painted pixel by pixel, (N, H, W)."""
    images = np.zeros((len(runs), *window.shape_yx), bool)
    for i in range(len(runs)):
        for k in range(runs.offsets[i], runs.offsets[i + 1]):
            assert window.row_off <= runs.rows[k] < window.row_end
            assert window.col_off <= runs.starts[k] < runs.stops[k] <= window.col_end
            images[
                i, runs.rows[k] - window.row_off, runs.starts[k] - window.col_off : runs.stops[k] - window.col_off
            ] = 1
    return images


def check_order(runs: Runs) -> None:
    """What `Runs` promises: sorted by row and column, neither overlapping nor touching."""
    for i in range(len(runs)):
        here = slice(runs.offsets[i], runs.offsets[i + 1])
        rows, starts, stops = runs.rows[here].tolist(), runs.starts[here].tolist(), runs.stops[here].tolist()
        assert all(a < b for a, b in zip(starts, stops, strict=True))
        for k in range(1, len(rows)):
            assert rows[k - 1] < rows[k] or (rows[k - 1] == rows[k] and stops[k - 1] < starts[k])
    assert [a.dtype for a in (runs.rows, runs.starts, runs.stops, runs.offsets)] == [np.int32] * 3 + [np.int64]


@few
@given(label_images(), st.integers(0, 1000), st.integers(0, 1000))
def test_labels_come_back(labels: np.ndarray, col_off: int, row_off: int) -> None:
    window = Window(col_off, row_off, labels.shape[1], labels.shape[0])
    runs = masks.runs_from_labels(labels, 5, window=window)
    check_order(runs)
    assert len(runs) == 5
    assert np.array_equal(masks.labels_from_runs(runs, window=window), labels)
    assert np.array_equal(images_of(runs, window), labels == np.arange(1, 6)[:, None, None])


@few
@given(label_images())
def test_labels_above_the_number_of_masks_are_not_looked_at(labels: np.ndarray) -> None:
    runs = masks.runs_from_labels(labels, 2, window=Window(0, 0, labels.shape[1], labels.shape[0]))
    painted = masks.labels_from_runs(runs, window=Window(0, 0, labels.shape[1], labels.shape[0]))
    assert np.array_equal(painted, np.where(labels <= 2, labels, 0))


@few
@given(mask_lists(), windows(max_off=15, max_side=15))
def test_painting_is_later_over_earlier_and_cut_by_the_window(stack: np.ndarray, window: Window) -> None:
    values = np.arange(len(stack)) * 7 + 3
    expected = np.zeros((40, 40), np.int32)
    for value, mask in zip(values, stack, strict=True):
        expected[3:12, 5:14][mask] = value
    painted = masks.labels_from_runs(runs_of(stack, Window(5, 3, 9, 9)), window=window, labels=values)
    assert np.array_equal(painted, expected[window.slices_in(Window(0, 0, 40, 40))])


@few
@given(mask_lists())
def test_measures_are_those_of_the_pixels(stack: np.ndarray) -> None:
    runs = runs_of(stack, Window(100, 200, 9, 9))
    areas, boxes, first = masks.areas_px(runs), masks.boxes_xyxy(runs), masks.first_pixels_yx(runs)
    sums = masks.coordinate_sums_xy2(runs)
    for i, mask in enumerate(stack):
        ys, xs = np.nonzero(mask)
        assert areas[i] == len(ys)
        if not len(ys):
            assert boxes[i].tolist() == [0, 0, 0, 0]
            assert first[i].tolist() == [-1, -1]
            continue
        assert boxes[i].tolist() == [100 + xs.min(), 200 + ys.min(), 101 + xs.max(), 201 + ys.max()]
        assert first[i].tolist() == [200 + ys[0], 100 + xs[0]]
        assert np.allclose(sums[i] / (2 * areas[i]), [100.5 + xs.mean(), 200.5 + ys.mean()])


@few
@given(mask_lists())
def test_areas_and_boxes_are_those_of_pycocotools(stack: np.ndarray) -> None:
    runs = runs_of(stack)
    for i, mask in enumerate(stack):
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert masks.areas_px(runs)[i] == coco_mask.area(rle)
        left, top, right, bottom = masks.boxes_xyxy(runs)[i].tolist()
        assert coco_mask.toBbox(rle).tolist() == [left, top, right - left, bottom - top]


@few
@given(mask_lists(), windows())
def test_clipping_keeps_what_lies_inside(stack: np.ndarray, window: Window) -> None:
    where, whole = Window(5, 3, 9, 9), Window(0, 0, 50, 50)
    clipped = masks.clip_runs(runs_of(stack, where), window)
    check_order(clipped)
    inside = np.zeros(whole.shape_yx, bool)
    inside[window.slices_in(whole)] = True
    assert np.array_equal(images_of(clipped, whole), images_of(runs_of(stack, where), whole) & inside)


@few
@given(mask_lists(), st.data())
def test_merging_is_the_union_of_each_group(stack: np.ndarray, data) -> None:
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(stack), max_size=len(stack))), np.int64)
    merged = masks.merge_runs(runs_of(stack), groups, 4)
    check_order(merged)
    expected = np.stack([stack[groups == g].any(axis=0) for g in range(4)])
    assert np.array_equal(images_of(merged, Window(0, 0, 9, 9)), expected)


@few
@given(mask_lists(), st.data())
def test_merging_undoes_cutting(stack: np.ndarray, data) -> None:
    runs = runs_of(stack)
    x, y = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    quarters = [Window(0, 0, x, y), Window(x, 0, 9 - x, y), Window(0, y, x, 9 - y), Window(x, y, 9 - x, 9 - y)]
    order = data.draw(st.permutations(quarters))
    pieces = Runs.concatenate([masks.clip_runs(runs, q) for q in order])
    merged = masks.merge_runs(pieces, np.tile(np.arange(len(stack)), 4), len(stack))
    for one, other in zip(fields_of(merged), fields_of(runs), strict=True):
        assert np.array_equal(one, other)


def fields_of(runs: Runs) -> tuple[np.ndarray, ...]:
    return runs.rows, runs.starts, runs.stops, runs.offsets


@few
@given(mask_lists(), st.randoms(use_true_random=False), windows(max_off=8, max_side=12))
def test_exclusive_pixels_go_to_the_group_with_the_lowest_value(stack: np.ndarray, random, window: Window) -> None:
    groups = np.array([random.randrange(4) for _ in stack], np.int64)
    priority = np.array(random.sample(range(100), 4), np.int64)
    keys = np.stack([priority // 10, priority % 10], axis=1)
    exclusive, claimed = exclusive_runs(runs_of(stack), groups=groups, keys=keys, window=window)
    check_order(exclusive)
    whole = Window(0, 0, 20, 20)
    best = np.full(whole.shape_yx, 1000)
    for group, mask in zip(groups, stack, strict=True):
        best[:9, :9] = np.where(mask, np.minimum(best[:9, :9], priority[group]), best[:9, :9])
    inside = np.zeros(whole.shape_yx, bool)
    inside[window.slices_in(whole)] = True
    assert np.array_equal(images_of(exclusive, whole), (best == priority[:, None, None]) & inside)
    unions = [np.zeros(whole.shape_yx, bool) for _ in priority]
    for group, mask in zip(groups, stack, strict=True):
        unions[group][:9, :9] |= mask
    assert claimed.tolist() == [(u & inside).sum() for u in unions]


@few
@given(mask_lists(), windows())
def test_sums_in_a_window_are_those_of_the_clipped_masks(stack: np.ndarray, window: Window) -> None:
    runs = runs_of(stack, Window(5, 3, 9, 9))
    clipped = masks.clip_runs(runs, window)
    areas, first = masks.sums_in(runs, window)
    assert areas.tolist() == masks.areas_px(clipped).tolist()
    assert first.tolist() == masks.first_pixels_yx(clipped).tolist()


@few
@given(mask_lists(), st.data())
def test_taking_picks_masks_in_order(stack: np.ndarray, data) -> None:
    places = st.lists(st.integers(0, len(stack) - 1), max_size=8) if len(stack) else st.just([])
    picked = np.array(data.draw(places), np.int64)
    taken = runs_of(stack).take(picked)
    assert np.array_equal(images_of(taken, Window(0, 0, 9, 9)), stack[picked])
    wanted = np.isin(np.arange(len(stack)), picked)
    assert np.array_equal(images_of(runs_of(stack).take(wanted), Window(0, 0, 9, 9)), stack[wanted])


def test_no_masks_and_empty_masks() -> None:
    window = Window(0, 0, 4, 4)
    for runs, count in ((Runs.empty(), 0), (Runs.empty(3), 3), (Runs.concatenate([]), 0)):
        assert len(runs) == count
        assert masks.areas_px(runs).tolist() == [0] * count
        assert masks.boxes_xyxy(runs).shape == (count, 4)
        assert masks.coordinate_sums_xy2(runs).shape == (count, 2)
        assert len(masks.clip_runs(runs, window)) == count
        every = np.arange(count)
        assert len(exclusive_runs(runs, groups=every, keys=every[:, None], window=window)[0]) == count
        assert masks.sums_in(runs, window)[1].tolist() == [[-1, -1]] * count
        assert len(masks.merge_runs(runs, np.zeros(count, np.int64), 2)) == 2
        assert not masks.labels_from_runs(runs, window=window).any()
    assert masks.runs_from_labels(np.zeros((0, 0), int), 2, window=Window(0, 0, 0, 0)).offsets.tolist() == [0, 0, 0]


def test_sums_of_a_scene_sized_mask_are_exact() -> None:
    side = 2**31 - 1
    runs = Runs(np.array([side - 1], np.int32), np.array([0], np.int32), np.array([side], np.int32), np.array([0, 1]))
    assert masks.areas_px(runs).tolist() == [side]
    assert masks.coordinate_sums_xy2(runs).tolist() == [[side * side, side * (2 * side - 1)]]
