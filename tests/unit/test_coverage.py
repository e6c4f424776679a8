"""Simplified outlines: still a coverage, valid, whole, and the same however the scene was cut."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segworker import masks
from segworker.coverage import Fragments, cell_window, cells_in, join_fragments, simplify_alone, simplify_cell
from segworker.polygons import trace
from segworker.types import Runs, Window
from tests.strategies import label_images, partitions

CHECKERBOARD = (np.indices((7, 9)).sum(axis=0) % 2 + 1).astype(np.int32)
RINGS = np.array([[max(abs(y - 7), abs(x - 7)) + 1 for x in range(15)] for y in range(15)], np.int32)
tolerances = st.sampled_from([0.3, 1.0, 2.0, 7.0, 50.0])


def simplified(labels: np.ndarray, tolerance: float, *, cell: int = 40) -> np.ndarray:
    height, width = labels.shape
    count = int(labels.max(initial=0))
    runs = masks.runs_from_labels(labels, count, window=Window(0, 0, width, height))
    keys = np.arange(count)
    parts = [
        simplify_cell(runs, keys, cell_window(row, col, width, height, cell_px=cell), tolerance)
        for row, col in cells_in(Window(0, 0, width, height), cell_px=cell)
    ]
    return join_fragments(Fragments.concatenate(parts), keys)


def exact(labels: np.ndarray) -> np.ndarray:
    window = Window(0, 0, labels.shape[1], labels.shape[0])
    return trace(masks.runs_from_labels(labels, int(labels.max(initial=0)), window=window)).geometries()


def compact(labels: np.ndarray) -> np.ndarray:
    """Number the labels of an image without gaps."""
    values, inverse = np.unique(labels, return_inverse=True)
    first = int(values[0] > 0)
    return (inverse.reshape(labels.shape) + first).astype(np.int32)


def check(labels: np.ndarray, polygons: np.ndarray, *, whole: bool) -> None:
    """The laws of a simplified coverage."""
    assert shapely.is_valid(polygons).all(), shapely.is_valid_reason(polygons)
    assert not shapely.is_empty(polygons).any()
    areas = shapely.area(polygons)
    assert (areas > 0).all()
    i, j = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    common = shapely.area(shapely.intersection(polygons[i[i < j]], polygons[j[i < j]]))
    assert common.sum() == pytest.approx(0, abs=1e-9), "no overlaps"
    union = shapely.union_all(polygons)
    assert shapely.area(union) == pytest.approx(areas.sum(), rel=1e-12)
    if whole:
        assert areas.sum() == pytest.approx(labels.size, rel=1e-12), "no gaps, and the scene's rim is where it was"
        assert shapely.equals(union, shapely.box(0, 0, labels.shape[1], labels.shape[0]))
    before = exact(labels)
    holes = [shapely.get_num_interior_rings(shapely.get_parts(p)).sum() for p in (before, polygons)]
    assert holes[0] == holes[1], "holes are kept"
    assert len(shapely.get_parts(before)) >= len(shapely.get_parts(polygons)) > 0


@settings(deadline=None, max_examples=25)
@given(partitions(), tolerances)
def test_a_partition_stays_a_partition(labels: np.ndarray, tolerance: float) -> None:
    labels = compact(labels)
    check(labels, simplified(labels, tolerance), whole=True)


@settings(deadline=None, max_examples=60)
@given(label_images(max_side=24, max_label=4), tolerances, st.integers(5, 30))
@example(CHECKERBOARD, 2.0, 4)
@example(CHECKERBOARD, 50.0, 100)
@example(RINGS, 2.0, 100)
@example(RINGS, 3.0, 6)
def test_every_small_configuration_of_pixels(labels: np.ndarray, tolerance: float, cell: int) -> None:
    labels = compact(labels)
    if labels.max() > 0:
        check(labels, simplified(labels, tolerance, cell=cell), whole=bool(labels.min()))


@settings(deadline=None, max_examples=25)
@given(partitions(max_fields=8), st.integers(1, 100), st.integers(1, 100), st.randoms(use_true_random=False))
def test_outlines_do_not_tell_how_the_scene_was_cut(labels: np.ndarray, x: int, y: int, random) -> None:
    """Features in parts, in any order and under any keys, give the same polygons."""
    labels = compact(labels)
    labels[labels == labels.max()] = 0
    height, width = labels.shape
    count = int(labels.max(initial=0))
    if not count:
        return
    runs = masks.runs_from_labels(labels, count, window=Window(0, 0, width, height))
    x, y = min(x, width), min(y, height)
    quarters = [Window(0, 0, x, y), Window(x, 0, width - x, y), Window(0, y, x, height - y)]
    quarters.append(Window(x, y, width - x, height - y))
    names = np.array(random.sample(range(1000), count), np.int64)
    parts = Runs.concatenate([masks.clip_runs(runs, q) for q in quarters])
    owners = np.tile(names, 4)
    order = np.array(random.sample(range(len(owners)), len(owners)), np.int64)
    cells = [cell_window(r, c, width, height, cell_px=30) for r, c in cells_in(Window(0, 0, width, height), cell_px=30)]
    found = [simplify_cell(parts.take(order), owners[order], cell, 1.5) for cell in cells]
    one, other = simplified(labels, 1.5, cell=30), join_fragments(Fragments.concatenate(found), names)
    assert shapely.equals_identical(one, other).all()


def test_objects_that_may_overlap_are_simplified_each_by_itself() -> None:
    ys, xs = np.mgrid[0:60, 0:80]
    discs = [np.hypot(ys - 30, xs - x) < 25 for x in (30, 45)]
    ring = discs[0] & (np.hypot(ys - 30, xs - 30) > 10)
    polygons = np.concatenate([exact(m.astype(np.int32)) for m in (*discs, ring)])
    found = simplify_alone(polygons, 2.0)
    assert shapely.is_valid(found).all()
    assert (shapely.get_num_coordinates(found) < shapely.get_num_coordinates(polygons) / 2).all()
    assert shapely.area(found) == pytest.approx(shapely.area(polygons), rel=0.05)
    assert len(found[2].interiors) == 1
    assert shapely.equals_identical(simplify_alone(polygons[1:2], 2.0)[0], found[1])


def test_a_tolerance_takes_out_vertices_and_moves_borders_little() -> None:
    ys, xs = np.mgrid[0:300, 0:200]
    labels = (1 + (ys + 0.4 * xs > 180)).astype(np.int32)
    before, fine, coarse = exact(labels), simplified(labels, 1.0, cell=1024), simplified(labels, 4.0, cell=1024)
    vertices = [shapely.get_num_coordinates(p).sum() for p in (before, fine, coarse)]
    assert vertices[0] > 1.5 * vertices[1] > 4 * vertices[2]
    for after, distance in ((fine, 2), (coarse, 4)):
        assert (shapely.hausdorff_distance(before, after) < distance).all()
