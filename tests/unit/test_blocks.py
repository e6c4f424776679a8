"""Blocks: each tile in one of them, keys that tell everything they depend on, packing within its limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segworker import blocks
from segworker.blocks import Block, SceneGrid, TileRange, block_side, plan_blocks
from segworker.grid import Grid
from segworker.types import Window


def scene(
    number: int = 0, width: int = 3000, height: int = 2000, tile: int = 256, overlap: int = 32, pixel_bytes: int = 3
):
    return SceneGrid(Grid(f"s{number}", width, height, tile, overlap), f"identity {number}", pixel_bytes)


@st.composite
def plans(draw) -> list[SceneGrid]:
    tile = draw(st.sampled_from([128, 256, 512]))
    overlap, pixel_bytes = draw(st.integers(0, 64)), draw(st.sampled_from([1, 3, 16, 200]))
    sides = draw(st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 6000)), max_size=8))
    return [scene(k, *side, tile, overlap, pixel_bytes) for k, side in enumerate(sides)]


def tile_bytes(found: SceneGrid, part: TileRange) -> int:
    return sum(t.window.area_px for t in part.tiles(found.grid)) * found.pixel_bytes


@settings(deadline=None, max_examples=60)
@given(plans())
def test_each_tile_is_in_one_block(scenes: list[SceneGrid]) -> None:
    planned = plan_blocks(scenes)
    seen = Counter((r.scene_id, *key) for b in planned for r in b.ranges for key in r.tile_keys())
    expected = {(s.grid.scene_id, t.row, t.col) for s in scenes for t in s.grid.tiles()}
    assert set(seen) == expected
    assert set(seen.values()) <= {1}
    assert [b.number for b in planned] == list(range(len(planned)))
    assert len({b.key for b in planned}) == len(planned)
    assert sum(b.num_tiles for b in planned) == len(expected)


@settings(deadline=None, max_examples=60)
@given(plans())
def test_blocks_stay_within_their_limits(scenes: list[SceneGrid]) -> None:
    by_id = {s.grid.scene_id: s for s in scenes}
    for block in plan_blocks(scenes):
        assert block.num_tiles <= blocks.MAX_TILES
        assert len(block.ranges) <= blocks.MAX_SCENES
        whole = {r.whole for r in block.ranges}
        assert whole == {True} or len(block.ranges) == 1
        if len(block.ranges) > 1:
            assert sum(tile_bytes(by_id[r.scene_id], r) for r in block.ranges) <= blocks.BLOCK_BYTES
        if not block.ranges[0].whole:
            grid = by_id[block.ranges[0].scene_id].grid
            side = block_side(grid.tile_px, grid.overlap_px, by_id[grid.scene_id].pixel_bytes)
            part = block.ranges[0]
            assert max(part.row_stop - part.row_start, part.col_stop - part.col_start) <= side


@settings(deadline=None, max_examples=40)
@given(plans())
def test_the_regions_of_a_scene_partition_it_and_rings_surround_them(scenes: list[SceneGrid]) -> None:
    grids = {s.grid.scene_id: s.grid for s in scenes}
    areas = Counter()
    for block in plan_blocks(scenes):
        for part in block.ranges:
            grid = grids[part.scene_id]
            region = part.region(grid)
            assert sum(t.core.area_px for t in part.tiles(grid)) == region.area_px
            assert all(region.intersect(t.core) == t.core for t in part.tiles(grid))
            areas[part.scene_id] += region.area_px
            assert ring_by_distance(part, grid) == list(part.ring(grid))
            assert part.whole == (region == Window(0, 0, grid.width, grid.height))
    assert areas == {i: g.width * g.height for i, g in grids.items()}


def ring_by_distance(part: TileRange, grid: Grid) -> list[tuple[int, int]]:
    rows, cols = grid.shape_yx
    own = set(part.tile_keys())
    near = {
        (row + down, col + right)
        for row, col in own
        if row in (part.row_start, part.row_stop - 1) or col in (part.col_start, part.col_stop - 1)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    return sorted(k for k in near - own if 0 <= k[0] < rows and 0 <= k[1] < cols)


def test_a_ring_by_hand() -> None:
    grid = scene(width=2000, height=2000).grid
    assert list(TileRange("s0", 0, 1, 1, 2, whole=False).ring(grid)) == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_many_small_scenes_share_blocks() -> None:
    planned = plan_blocks([scene(k, 200, 200) for k in range(5000)])
    assert len(planned) == -(-5000 // blocks.MAX_SCENES)
    assert [r.scene_id for b in planned for r in b.ranges] == [f"s{k}" for k in range(5000)]


def test_a_large_scene_between_small_ones_keeps_the_small_ones_together() -> None:
    planned = plan_blocks([scene(0, 100, 100), scene(1, 9000, 9000), scene(2, 100, 100)])
    together = [b for b in planned if len(b.ranges) == 2]
    assert [r.scene_id for r in together[0].ranges] == ["s0", "s2"]
    assert len(together) == 1
    assert all(not r.whole for b in planned for r in b.ranges if r.scene_id == "s1")


def keys(*scenes: SceneGrid) -> set[str]:
    return {b.key for b in plan_blocks(list(scenes))}


@pytest.mark.parametrize("size", [300, 9000], ids=["small", "large"])
def test_keys_are_stable_and_change_with_identity_and_grid(size: int) -> None:
    first = scene(width=size, height=size)
    grid = first.grid
    assert keys(first) == keys(scene(width=size, height=size))
    others = [
        replace(first, identity="another version of the file"),
        replace(first, grid=replace(grid, width=size + 1)),
        replace(first, grid=replace(grid, height=size + 1)),
        replace(first, grid=replace(grid, tile_px=255)),
        replace(first, grid=replace(grid, overlap_px=33)),
        replace(first, grid=replace(grid, scale=0.5)),
    ]
    for other in others:
        assert not keys(first) & keys(other)


def test_one_key_never_names_two_sets_of_tiles() -> None:
    """Blocks of more bands are smaller: where they begin at the same tile, they still are other blocks."""
    found: dict[str, set] = {}
    for pixel_bytes in (1, 3, 12, 50, 400):
        for block in plan_blocks([scene(width=9000, height=9000, pixel_bytes=pixel_bytes)]):
            found.setdefault(block.key, set()).add(block.ranges)
    assert all(len(ranges) == 1 for ranges in found.values())


def test_a_block_of_scenes_changes_when_one_of_them_does() -> None:
    small = [scene(k, 100, 100) for k in range(3)]
    assert keys(*small).isdisjoint(keys(small[0], replace(small[1], identity="new"), small[2]))
    assert keys(*small).isdisjoint(keys(*small[:2]))


@given(st.integers(1, 4096), st.integers(0, 4095), st.integers(1, 10_000))
def test_a_block_has_a_tile_at_least(tile: int, overlap: int, pixel_bytes: int) -> None:
    side = block_side(tile, min(overlap, tile - 1), pixel_bytes)
    assert side >= 1
    assert side**2 <= blocks.MAX_TILES


def test_the_tiles_of_an_empty_plan() -> None:
    assert plan_blocks([]) == []
    assert Block(0, "k", ()).num_tiles == 0
