"""A perfect model gives the truth, at the grids that people use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segworker.grid import Grid
from tests.exact import KINDS, check_exact, scene_of

SHAPES = {
    (512, 64): (930, 970),
    (1024, 128): (1100, 1930),
    (384, 48): (1000, 730),
    (256, 32): (700, 710),
    (300, 36): (590, 860),
}
"Sides of the scenes: a few tiles of each grid."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiling", SHAPES, ids=lambda t: f"{t[0]}-{t[1]}")
def test_one_object_one_feature(kind: str, tiling: tuple[int, int]) -> None:
    height, width = SHAPES[tiling]
    grid = Grid("s", width, height, *tiling)
    for parts in ("one", "several"):
        assert check_exact(scene_of(kind, (height, width), 7, grid=grid, parts=parts), grid, parts=parts) > 3


@settings(deadline=None, max_examples=20)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from(["one", "several"]), st.integers(0, 2**32 - 1))
def test_one_object_one_feature_in_any_scene_on_any_grid(data, kind: str, parts, seed: int) -> None:
    height, width = data.draw(st.integers(100, 330)), data.draw(st.integers(100, 330))
    tile = data.draw(st.integers(40, 200))
    grid = Grid("s", width, height, tile, data.draw(st.integers(1, tile // 2)))
    check_exact(scene_of(kind, (height, width), seed, grid=grid, parts=parts), grid, parts=parts)
