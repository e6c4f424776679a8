"""Decoding: each form of mask against scipy's interpolation, and what broken models return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segworker import masks
from segworker.decode import decode_instances
from segworker.errors import PredictionError
from segworker.grid import Grid
from segworker.types import (
    BoxMasks,
    CroppedMasks,
    Edge,
    Instances,
    LabelMasks,
    Masks,
    Prediction,
    PrototypeMasks,
    Tile,
)
from tests.strategies import seeds

GRID = Grid("scene", 300, 200, 64, 16)
TILE = GRID.tile(1, 2)
SIDE = 64
few = settings(deadline=None, max_examples=25)


def prediction(boxes=(), found: Masks | None = None, classes=None, scores=None, **more) -> Prediction:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    return Prediction(
        boxes,
        np.ones(n, np.int32) if classes is None else np.asarray(classes),
        np.full(n, 0.5, np.float32) if scores is None else np.asarray(scores, np.float32),
        found,
        **more,
    )


def decode(what: Prediction, tile: Tile = TILE, **options) -> Instances:
    return decode_instances(what, tile, grid=GRID, class_ids={1, 2}, **options)


def images_of(found: Instances) -> np.ndarray:
    """(N, H, W) of the window."""
    window = found.tile.window
    each = [found.runs.take(np.array([i])) for i in range(len(found))]
    return np.array([masks.labels_from_runs(r, window=window) for r in each], bool).reshape(-1, *window.shape_yx)


def stretched(values: np.ndarray, box, *, mode: str) -> np.ndarray:
    """A lattice stretched over a box, at the pixel centres of the window, by scipy."""
    left, top, right, bottom = box
    ys = (np.arange(SIDE) + 0.5 - top) * values.shape[0] / (bottom - top) - 0.5
    xs = (np.arange(SIDE) + 0.5 - left) * values.shape[1] / (right - left) - 0.5
    where = np.meshgrid(ys, xs, indexing="ij")
    return ndimage.map_coordinates(values.astype(float), where, order=1, mode=mode, cval=0.0)


def inside(box) -> np.ndarray:
    """The pixels that a box touches."""
    image = np.zeros((SIDE, SIDE), bool)
    left, top, right, bottom = (*np.floor(box[:2]).astype(int), *np.ceil(box[2:]).astype(int))
    image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return image


def check_equal_but_for_ties(got: np.ndarray, values: np.ndarray, where: np.ndarray) -> None:
    sure = np.abs(values - 0.5) > 1e-4
    assert np.array_equal(got[sure], ((values >= 0.5) & where)[sure])


boxes_anywhere = st.tuples(st.floats(-40, 90), st.floats(-40, 90), st.floats(1, 80), st.floats(1, 80)).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]], np.float32).astype(float)
)


@few
@given(boxes_anywhere, seeds, st.integers(1, 28))
def test_box_masks_are_stretched_over_their_box(box, seed: int, lattice: int) -> None:
    probs = np.random.default_rng(seed).random((1, lattice, lattice)).astype(np.float32)
    got = decode(prediction([box], BoxMasks(probs)))
    expected = stretched(probs[0], box, mode="grid-constant")
    image = images_of(got)[0] if len(got) else np.zeros((SIDE, SIDE), bool)
    check_equal_but_for_ties(image, expected, inside(box))


@few
@given(boxes_anywhere, seeds, st.sampled_from([1.0, 2.0, 4.0, 8.0]))
def test_prototype_masks_are_one_smooth_map_cut_by_the_box(box, seed: int, stride: float) -> None:
    rng = np.random.default_rng(seed)
    cells = int(np.ceil(SIDE / stride))
    prototypes, coefficients = rng.normal(size=(3, cells, cells)), rng.normal(size=(1, 3)) * 3
    got = decode(prediction([box], PrototypeMasks(prototypes, coefficients, stride)))
    probs = 1 / (1 + np.exp(-np.tensordot(coefficients[0], prototypes, 1)))
    expected = stretched(probs, (0, 0, cells * stride, cells * stride), mode="nearest")
    image = images_of(got)[0] if len(got) else np.zeros((SIDE, SIDE), bool)
    check_equal_but_for_ties(image, expected, inside(box))


def test_a_prototype_mask_reaches_the_corners_of_the_window() -> None:
    found = PrototypeMasks(np.full((1, 16, 16), 4.0), np.ones((1, 1)))
    assert images_of(decode(prediction([(0, 0, 64, 64)], found))).all()


@few
@given(boxes_anywhere)
def test_without_masks_the_boxes_are_the_objects(box) -> None:
    got = decode(prediction([box]))
    assert np.array_equal(images_of(got).any(axis=0), inside(box))


@few
@given(seeds)
def test_label_masks_are_read_as_they_are(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, (SIDE, SIDE)) * (np.indices((SIDE, SIDE)).sum(0) % 7 > 2)
    got = decode(prediction(np.zeros((4, 4)), LabelMasks(labels)))
    assert np.array_equal(images_of(got), labels == np.arange(1, 5)[:, None, None])


@few
@given(seeds, st.lists(st.tuples(st.integers(-30, 80), st.integers(-30, 80)), min_size=1, max_size=5))
def test_cropped_masks_are_placed_by_their_corner(seed: int, corners) -> None:
    rng = np.random.default_rng(seed)
    crops = tuple(rng.random((rng.integers(0, 25), rng.integers(0, 25))) < 0.5 for _ in corners)
    got = decode(prediction(np.zeros((len(corners), 4)), CroppedMasks(crops, np.array(corners))))
    expected = np.zeros((len(corners), 200, 200), bool)
    for image, crop, (x, y) in zip(expected, crops, corners, strict=True):
        image[50 + y : 50 + y + crop.shape[0], 50 + x : 50 + x + crop.shape[1]] = crop
    expected = expected[:, 50 : 50 + SIDE, 50 : 50 + SIDE]
    assert np.array_equal(images_of(got), expected[expected.any(axis=(1, 2))])


def test_everything_is_in_grid_pixels_and_boxes_are_tight() -> None:
    crop = np.array([[0, 1, 0], [0, 1, 1]], bool)
    points = np.array([[[5.5, 6.5, 2.0]]], np.float32)
    what = prediction([(0, 0, 60, 60)], CroppedMasks((crop,), np.array([[10, 20]])), keypoints_NK3=points)
    got = decode(what)
    left, top = TILE.window.col_off, TILE.window.row_off
    assert got.boxes_xyxy.tolist() == [[left + 11, top + 20, left + 13, top + 22]]
    assert got.keypoints_NK3.tolist() == [[[left + 5.5, top + 6.5, 2.0]]]
    assert points.tolist() == [[[5.5, 6.5, 2.0]]], "the model's arrays stay as they were"
    assert [a.dtype for a in (got.class_ids, got.scores, got.boxes_xyxy, got.edges)] == [
        np.int32,
        np.float32,
        np.int32,
        np.uint8,
    ]


def test_empty_masks_are_dropped_with_all_that_belongs_to_them() -> None:
    crops = (np.zeros((3, 3), bool), np.ones((2, 2), bool), np.zeros((0, 5), bool), np.ones((1, 1), bool))
    corners = np.array([[1, 1], [5, 5], [9, 9], [64, 3]])
    points = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
    what = prediction(
        np.zeros((4, 4)), CroppedMasks(crops, corners), [1, 2, 1, 1], [0.1, 0.2, 0.3, 0.4], keypoints_NK3=points
    )
    got = decode(what)
    assert got.class_ids.tolist() == [2]
    assert got.scores.tolist() == [np.float32(0.2)]
    assert got.keypoints_NK3[0, 0, 2] == 5
    assert len(got) == len(got.runs) == len(got.boxes_xyxy) == len(got.edges) == 1


@pytest.mark.parametrize("form", ["boxes", "lattice", "prototypes"])
def test_boxes_outside_the_window_are_cut_or_dropped(form: str) -> None:
    boxes = np.array(
        [(-100, -100, -5, -5), (70, 70, 90, 90), (-50, 10, 5, 20), (60, 60, 1e6, 1e6), (30, 30, 20, 20), (9, 9, 9, 9)]
    )
    found = {
        "boxes": None,
        "lattice": BoxMasks(np.ones((6, 7, 7), np.float32)),
        "prototypes": PrototypeMasks(np.full((1, 16, 16), 9.0, np.float32), np.ones((6, 1), np.float32)),
    }[form]
    got = decode(prediction(boxes, found, scores=np.arange(1, 7) / 10))
    left, top = TILE.window.col_off, TILE.window.row_off
    wanted = [[left, top + 10, left + 5, top + 20], [left + 60, top + 60, left + 64, top + 64]]
    if form == "lattice":  # half of the outer cell is below 0.5, which is far outside for the second box: cut there
        assert len(got) <= 2
        assert (
            (got.boxes_xyxy >= np.array([left, top] * 2)) & (got.boxes_xyxy <= np.array([left + 64, top + 64] * 2))
        ).all()
    else:
        assert got.boxes_xyxy.tolist() == wanted
        assert np.allclose(got.scores, [0.3, 0.4])


@few
@given(seeds)
def test_invalid_pixels_leave_every_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (SIDE, SIDE))
    valid = rng.random((SIDE, SIDE)) < rng.choice([0.02, 0.5, 1.0])
    got = decode(prediction(np.zeros((3, 4)), LabelMasks(labels)), valid_HW=valid)
    expected = (labels == np.arange(1, 4)[:, None, None]) & valid
    assert np.array_equal(images_of(got), expected[expected.any(axis=(1, 2))])


def test_nothing_is_left_where_nothing_is_valid() -> None:
    got = decode(prediction([(0, 0, 64, 64)]), valid_HW=np.zeros((SIDE, SIDE), bool))
    assert len(got) == 0


@pytest.mark.parametrize(
    ("row", "col", "edges"),
    [
        (0, 0, Edge.RIGHT | Edge.BOTTOM),
        (1, 2, Edge.LEFT | Edge.TOP | Edge.RIGHT | Edge.BOTTOM),
        (GRID.y.count - 1, GRID.x.count - 1, Edge.LEFT | Edge.TOP),
    ],
)
def test_only_cut_sides_count_as_edges(row: int, col: int, edges: int) -> None:
    tile = GRID.tile(row, col)
    assert decode(prediction([(0, 0, 64, 64)]), tile).edges.tolist() == [edges]
    assert decode(prediction([(8, 8, 56, 56)]), tile, cut_trust_px=7).edges.tolist() == [0]
    assert decode(prediction([(8, 8, 56, 56)]), tile, cut_trust_px=8).edges.tolist() == [edges]


def copies(n: int) -> Prediction:
    return prediction(np.tile([10, 12, 40, 40], (n, 1)), BoxMasks(np.ones((n, 4, 4), np.float32)))


def test_a_few_copies_are_all_there_and_thousands_are_refused() -> None:
    got = decode(copies(100))
    assert len(got) == 100
    assert len({tuple(b) for b in got.boxes_xyxy.tolist()}) == 1
    assert len(set(masks.areas_px(got.runs).tolist())) == 1
    with pytest.raises(PredictionError, match=r"at most 100 objects .* got 5000 at column 1., row 12 of .*; suppress"):
        decode(copies(5000))


def test_many_objects_beside_each_other_are_no_copies() -> None:
    places = [(x, y, x + 2, y + 2) for y in range(0, SIDE, 2) for x in range(0, SIDE, 2)]
    assert len(decode(prediction(places))) == len(places) > 1000


def test_cropped_masks_anywhere_are_cut_to_the_window() -> None:
    corners = np.array([[10**12, 0], [-(10**12), 5], [SIDE - 1, SIDE - 1], [-2, -2], [-3, 0]])
    found = CroppedMasks((np.ones((3, 3), bool),) * 5, corners)
    assert masks.areas_px(decode(prediction([(0, 0, 9, 9)] * 5, found)).runs).tolist() == [1, 1]


NAN, INF = float("nan"), float("inf")
ONE = [(0, 0, 9, 9)]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (prediction(ONE, scores=[NAN]), "scores must be finite"),
        (prediction(ONE, scores=[INF]), "scores must be finite"),
        (prediction(ONE, scores=[1.5]), "scores must lie in 0..1, got 1.5"),
        (prediction(ONE, scores=[-0.1]), "scores must lie in 0..1"),
        (prediction([(0, 0, NAN, 9)]), "boxes_xyxy must be finite"),
        (prediction([(0, 0, INF, 9)]), "boxes_xyxy must be finite"),
        (prediction(ONE, classes=[3]), r"categories \[1, 2\], got \[3\]"),
        (prediction(ONE, classes=[0]), r"categories \[1, 2\], got \[0\]"),
        (prediction(ONE, BoxMasks(np.ones((2, 4, 4)))), "masks must fit"),
        (prediction(ONE, BoxMasks(np.ones((1, 1, 4, 4)))), "masks must fit"),
        (prediction(ONE, BoxMasks(np.full((1, 4, 4), NAN))), "masks must be finite"),
        (prediction(ONE, LabelMasks(np.ones((63, 64), int))), r"masks must fit \(64, 64\), got \(63, 64\)"),
        (prediction(ONE, LabelMasks(np.ones((64, 64)))), "labels_HW must be a numpy array of integers, got float64"),
        (prediction(ONE, LabelMasks(-np.ones((64, 64), int))), "labels must be at least 0 .* got -1"),
        (prediction(ONE, BoxMasks(np.full((1, 4, 4), 3.5))), "mask probabilities must lie in 0..1, got 3.5"),
        (prediction(ONE, BoxMasks(torch.ones(1, 4, 4))), "probs_NMM must be a numpy array of numbers, got Tensor"),
        (prediction(ONE, classes=np.array([1.0])), "class_ids must be a numpy array of integers, got float64 array"),
        (prediction(ONE, CroppedMasks((np.ones(4, bool),), np.zeros((1, 2), int))), "cropped masks must be"),
        (prediction(ONE, CroppedMasks(([[1]],), np.zeros((1, 2), int))), "masks must be a numpy array.* got list"),
        (prediction(ONE, CroppedMasks((np.ones((2, 2), bool),), np.zeros((1, 2)))), "corners_xy must be a numpy array"),
        (prediction(ONE, CroppedMasks((), np.zeros((0, 2), int))), "masks must fit"),
        (prediction(ONE, CroppedMasks((np.ones((2, 2), bool),), np.zeros((2, 2), int))), "masks must fit"),
        (prediction(ONE, PrototypeMasks(np.ones((3, 16, 16)), np.ones((1, 4)))), "masks must fit"),
        (prediction(ONE, PrototypeMasks(np.ones((3, 16, 16)), np.ones((2, 3)))), "masks must fit"),
        (prediction(ONE, PrototypeMasks(np.ones((3, 16, 16)), np.full((1, 3), NAN))), "masks must be finite"),
        (prediction(ONE, PrototypeMasks(np.full((3, 16, 16), NAN), np.ones((1, 3)))), "masks must be finite"),
        (prediction(ONE, keypoints_NK3=np.ones((2, 5, 3))), "keypoints must be"),
        (prediction(ONE, keypoints_NK3=np.ones((1, 5, 2))), "keypoints must be"),
        (prediction(ONE, keypoints_NK3=np.full((1, 5, 3), NAN)), "keypoints_NK3 must be finite"),
    ],
)
def test_broken_predictions_are_refused(broken: Prediction, message: str) -> None:
    with pytest.raises(PredictionError, match=message) as caught:
        decode(broken)
    assert "tile (1, 2) of scene" in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        (np.zeros((2, 4)), np.ones(1, int), np.ones(1)),
        (np.zeros((1, 5)), np.ones(1, int), np.ones(1)),
        (np.zeros((1, 4)), np.ones(2, int), np.ones(1)),
    ],
)
def test_arrays_of_different_length_are_refused_at_birth(arrays) -> None:
    with pytest.raises(PredictionError, match="fix the model's predict"):
        Prediction(*arrays)


@pytest.mark.parametrize(
    "found",
    [
        None,
        BoxMasks(np.zeros((0, 28, 28))),
        LabelMasks(np.zeros((SIDE, SIDE), int)),
        CroppedMasks((), np.zeros((0, 2), int)),
        PrototypeMasks(np.zeros((3, 16, 16)), np.zeros((0, 3))),
    ],
)
def test_a_tile_without_objects(found: Masks | None) -> None:
    got = decode(prediction([], found))
    assert len(got) == len(got.runs) == 0
    assert got.boxes_xyxy.shape == (0, 4)


def test_a_labelled_object_without_a_score_is_refused() -> None:
    labels = np.zeros((SIDE, SIDE), int)
    labels[3, 3] = 2
    with pytest.raises(PredictionError, match="labels must be at least 0 and at most N for N=1 scores, got 2"):
        decode(prediction(ONE, LabelMasks(labels)))
