"""The grid: cores partition a scene, windows hold their cores, everything has the full side where it fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segworker.errors import ConfigError
from segworker.grid import MAX_SCENE_PX, Axis, Grid
from segworker.types import Scene
from tests.strategies import axes, grids


@settings(deadline=None, max_examples=200)
@given(axes())
def test_cores_follow_each_other_from_end_to_end(axis: Axis) -> None:
    cores = [axis.core(k) for k in range(axis.count)]
    assert cores[0][0] == 0
    assert cores[-1][1] == axis.size
    assert all(start < stop for start, stop in cores)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cores))


@settings(deadline=None, max_examples=200)
@given(axes())
def test_windows_hold_their_cores_and_have_the_full_side(axis: Axis) -> None:
    for k in range(axis.count):
        (start, stop), (begin, end) = axis.core(k), axis.window(k)
        assert 0 <= begin <= start < stop <= end <= axis.size
        assert end - begin == min(axis.tile, axis.size)


@settings(deadline=None, max_examples=200)
@given(axes())
def test_neighbours_share_the_overlap_and_a_halo_is_half_of_it(axis: Axis) -> None:
    for k in range(axis.count - 1):
        begin, end = axis.window(k + 1)[0], axis.window(k)[1]
        border = axis.core(k)[1]
        assert end - begin >= axis.overlap
        assert border - begin >= axis.overlap // 2
        assert end - border >= axis.overlap - axis.overlap // 2


@settings(deadline=None, max_examples=100)
@given(axes())
def test_every_position_has_the_owner_whose_core_holds_it(axis: Axis) -> None:
    owners = np.array([axis.owner(p) for p in range(axis.size)])
    for k in range(axis.count):
        assert np.flatnonzero(owners == k).tolist() == list(range(*axis.core(k)))


@settings(deadline=None, max_examples=50)
@given(grids())
def test_cores_partition_the_scene(grid: Grid) -> None:
    owned = np.zeros((grid.height, grid.width), int)
    tiles = list(grid.tiles())
    for tile in tiles:
        owned[tile.core.slices_in(Scene("s", "s", grid.width, grid.height, 1, "uint8").window)] += 1
        assert tile.window.intersect(tile.core) == tile.core
        assert tile == grid.tile(tile.row, tile.col)
        assert (grid.y.owner(tile.core.row_off), grid.x.owner(tile.core.col_off)) == (tile.row, tile.col)
    assert (owned == 1).all()
    assert len(tiles) == grid.num_tiles == len({(t.row, t.col) for t in tiles})
    assert [(t.row, t.col) for t in tiles] == sorted((t.row, t.col) for t in tiles)
    assert len({t.window.shape_yx for t in tiles}) == 1


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "cores", "windows"),
    [
        (1, 64, 16, [(0, 1)], [(0, 1)]),
        (64, 64, 16, [(0, 64)], [(0, 64)]),
        (65, 64, 16, [(0, 56), (56, 65)], [(0, 64), (1, 65)]),
        (112, 64, 16, [(0, 56), (56, 112)], [(0, 64), (48, 112)]),
        (10, 4, 0, [(0, 4), (4, 8), (8, 10)], [(0, 4), (4, 8), (6, 10)]),
        (7, 4, 3, [(0, 2), (2, 3), (3, 4), (4, 7)], [(0, 4), (1, 5), (2, 6), (3, 7)]),
    ],
)
def test_axes_by_hand(size: int, tile: int, overlap: int, cores: list, windows: list) -> None:
    axis = Axis(size, tile, overlap)
    assert [axis.core(k) for k in range(axis.count)] == cores
    assert [axis.window(k) for k in range(axis.count)] == windows


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "message"),
    [
        (10, 0, 0, "tile must be at least 1 px, got tile=0"),
        (10, 4, -1, "overlap must not be negative, got overlap=-1"),
        (10, 4, 4, "overlap must be smaller than the tile, got overlap=4, tile=4; lower --overlap"),
        (0, 4, 1, "a scene side must be"),
        (MAX_SCENE_PX + 1, 4, 1, "a scene side must be"),
    ],
)
def test_impossible_grids_are_refused(size: int, tile: int, overlap: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid("s", size, 10, tile, overlap)
    with pytest.raises(ConfigError, match=message):
        Grid("s", 10, size, tile, overlap)


def test_the_largest_scene_has_a_grid() -> None:
    grid = Grid("s", MAX_SCENE_PX, MAX_SCENE_PX, 1024, 128)
    last = grid.tile(grid.y.count - 1, grid.x.count - 1)
    assert last.core.col_end == last.window.col_end == MAX_SCENE_PX
    assert last.window.shape_yx == (1024, 1024)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.one_of(st.just(1.0), st.floats(0.05, 8), st.sampled_from([1 / 3, 0.1, 0.3])),
)
def test_a_scaled_grid_covers_the_scene_and_no_pixel_more(width: int, height: int, scale: float) -> None:
    grid = Grid.of_scene(Scene("s", "s", width, height, 1, "uint8"), tile_px=512, overlap_px=64, scale=scale)
    for side, pixels in ((width, grid.width), (height, grid.height)):
        assert pixels >= side * scale - 1e-5
        assert pixels == 1 or pixels - 1 < side * scale
    assert grid.tile(0, 0).scale == grid.scale == scale
