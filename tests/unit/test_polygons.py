"""Polygons along pixel edges, judged by shapely, by rasterio's rasterising and by scipy's labelling."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage

from segworker import masks
from segworker.polygons import Outlines, trace
from segworker.types import Runs, Window
from tests.strategies import binary_masks, blobs, label_images

CHECKERBOARD = np.indices((6, 7)).sum(axis=0) % 2 == 0
RINGS = np.array([[max(abs(y - 6), abs(x - 6)) % 2 == 0 for x in range(13)] for y in range(13)])
TOUCHING_HOLES = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], bool)
HOLE_TOUCHING_OUTSIDE = np.array([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], bool)
CORNER_LOOP = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]], bool)


def window_of(image: np.ndarray) -> Window:
    return Window(0, 0, image.shape[1], image.shape[0])


def polygon_of(mask: np.ndarray) -> shapely.Geometry:
    return trace(masks.runs_from_mask(mask, window=window_of(mask))).geometries()[0]


def check(mask: np.ndarray, polygon: shapely.Geometry) -> None:
    """The laws of one mask's polygon."""
    assert shapely.is_valid(polygon), shapely.is_valid_reason(polygon)
    assert shapely.area(polygon) == mask.sum()
    if mask.any():
        burnt = rasterize([polygon], out_shape=mask.shape, dtype=np.uint8)
        assert np.array_equal(burnt.astype(bool), mask)
    found, count = ndimage.label(mask)
    parts = shapely.get_parts(polygon)
    assert len(parts) == count
    crops = [found[box] == i + 1 for i, box in enumerate(ndimage.find_objects(found))]
    assert shapely.get_num_interior_rings(parts).tolist() == [holes_in(crop) for crop in crops]


def holes_in(part: np.ndarray) -> int:
    """Count the 4-connected regions that a part of a mask encloses."""
    return int(ndimage.label(np.pad(~part, 1, constant_values=True))[1]) - 1


@settings(deadline=None, max_examples=150)
@given(binary_masks())
@example(CHECKERBOARD)
@example(~CHECKERBOARD)
@example(RINGS)
@example(~RINGS)
@example(TOUCHING_HOLES)
@example(HOLE_TOUCHING_OUTSIDE)
@example(CORNER_LOOP)
@example(~CORNER_LOOP)
@example(np.zeros((3, 3), bool))
@example(np.ones((1, 1), bool))
def test_a_polygon_is_valid_and_holds_just_the_mask(mask: np.ndarray) -> None:
    check(mask, polygon_of(mask))


@settings(deadline=None, max_examples=15)
@given(blobs())
def test_large_objects_too(labels: np.ndarray) -> None:
    count = int(labels.max(initial=0))
    polygons = trace(masks.runs_from_labels(labels, count, window=window_of(labels))).geometries()
    assert shapely.is_valid(polygons).all()
    assert np.array_equal(shapely.area(polygons), np.bincount(labels.ravel(), minlength=count + 1)[1:])
    if count:
        shapes = zip(polygons, range(1, count + 1), strict=True)
        assert np.array_equal(rasterize(shapes, out_shape=labels.shape, dtype=np.int32), labels)
    check(labels > 0, polygon_of(labels > 0))


@settings(deadline=None, max_examples=60)
@given(label_images())
def test_masks_do_not_disturb_each_other(labels: np.ndarray) -> None:
    together = trace(masks.runs_from_labels(labels, 5, window=window_of(labels)))
    assert len(together) == 5
    for i, polygon in enumerate(together.geometries()):
        alone = polygon_of(labels == i + 1)
        assert shapely.equals_identical(polygon, alone)


@settings(deadline=None, max_examples=60)
@given(binary_masks(), st.data())
def test_the_polygon_does_not_tell_how_the_mask_was_cut(mask: np.ndarray, data) -> None:
    height, width = mask.shape
    x, y = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    cuts = [Window(0, 0, x, y), Window(x, 0, width - x, y), Window(0, y, x, height - y)]
    cuts = data.draw(st.permutations([*cuts, Window(x, y, width - x, height - y)]))
    runs = masks.runs_from_mask(mask, window=window_of(mask))
    merged = masks.merge_runs(Runs.concatenate([masks.clip_runs(runs, c) for c in cuts]), np.zeros(4, np.int64), 1)
    one, other = trace(runs), trace(merged)
    assert np.array_equal(one.xy, other.xy)
    assert np.array_equal(one.ring_offsets, other.ring_offsets)
    assert np.array_equal(one.polygon_offsets, other.polygon_offsets)


@settings(deadline=None, max_examples=60)
@given(binary_masks(), st.integers(0, 2**30), st.integers(0, 2**30))
def test_a_moved_mask_has_a_moved_polygon(mask: np.ndarray, right: int, down: int) -> None:
    here = trace(masks.runs_from_mask(mask, window=window_of(mask)))
    there = trace(masks.runs_from_mask(mask, window=Window(right, down, mask.shape[1], mask.shape[0])))
    assert np.array_equal(here.xy + np.array([right, down]), there.xy)
    assert np.array_equal(here.ring_offsets, there.ring_offsets)


def signed_area(ring: np.ndarray) -> float:
    x, y = ring.astype(float).T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


@settings(deadline=None, max_examples=60)
@given(binary_masks())
def test_rings_are_closed_turn_their_way_and_have_no_idle_vertex(mask: np.ndarray) -> None:
    outlines = trace(masks.runs_from_mask(mask, window=window_of(mask)))
    shells = set(outlines.polygon_offsets[:-1].tolist())
    for r in range(len(outlines.ring_offsets) - 1):
        ring = outlines.xy[outlines.ring_offsets[r] : outlines.ring_offsets[r + 1]]
        assert (ring[0] == ring[-1]).all()
        assert (signed_area(ring) < 0) == (r in shells)
        steps = np.diff(ring, axis=0)
        assert ((steps == 0).sum(axis=1) == 1).all()
        across = steps[:, 0] == 0
        assert (across != np.roll(across, 1)).all()
        assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1


@settings(deadline=None, max_examples=60)
@given(binary_masks())
def test_polygons_come_by_first_pixel(mask: np.ndarray) -> None:
    found, count = ndimage.label(mask)
    parts = shapely.get_parts(polygon_of(mask))
    for part, label in zip(parts, range(1, count + 1), strict=True):  # scipy numbers them by first pixel
        assert shapely.area(part) == (found == label).sum()
        burnt = rasterize([part], out_shape=mask.shape, dtype=np.uint8)
        assert np.array_equal(burnt == 1, found == label)


@pytest.mark.parametrize(
    ("mask", "num_parts", "num_holes"),
    [
        (np.eye(3, dtype=bool), 3, 0),
        (RINGS, 4, 3),
        (~RINGS, 3, 3),
        (TOUCHING_HOLES, 1, 2),
        (HOLE_TOUCHING_OUTSIDE, 1, 1),
        (CORNER_LOOP, 4, 0),
        (~CORNER_LOOP, 5, 0),
    ],
)
def test_corners_by_hand(mask: np.ndarray, num_parts: int, num_holes: int) -> None:
    parts = shapely.get_parts(polygon_of(mask))
    assert len(parts) == num_parts
    assert shapely.get_num_interior_rings(parts).sum() == num_holes


def test_kinds_of_geometry() -> None:
    labels = np.array([[1, 0, 2], [1, 2, 0]])
    geometries = trace(masks.runs_from_labels(labels, 3, window=window_of(labels))).geometries()
    assert [g.geom_type for g in geometries] == ["Polygon", "MultiPolygon", "MultiPolygon"]
    assert [g.is_empty for g in geometries] == [False, False, True]


def test_nothing_to_trace() -> None:
    outlines = trace(Runs.empty())
    assert isinstance(outlines, Outlines)
    assert len(outlines) == 0
    assert len(outlines.geometries()) == 0


def test_other_coordinates_for_the_same_vertices() -> None:
    outlines = trace(masks.runs_from_mask(np.ones((2, 3), bool), window=Window(0, 0, 3, 2)))
    moved = outlines.geometries(outlines.xy * 0.5 + 10)[0]
    assert shapely.equals(moved, shapely.box(10, 10, 11.5, 11))
