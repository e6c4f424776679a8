"""A perfect model gives the truth in large scenes, at the grids that people use."""

from __future__ import annotations

import pytest

from segworker.grid import Grid
from segworker.synthetic.scenes import COMMON_GRIDS
from tests.exact import KINDS, check_exact, scene_of

pytestmark = pytest.mark.slow
SIDE_PX = 4096


@pytest.mark.parametrize("parts", ["one", "several"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiling", COMMON_GRIDS, ids=lambda t: f"{t[0]}-{t[1]}")
def test_one_object_one_feature(kind: str, tiling: tuple[int, int], parts) -> None:
    grid = Grid("s", SIDE_PX, SIDE_PX - 77, *tiling)
    shape_yx = (grid.height, grid.width)
    for seed in (1, 2):
        assert check_exact(scene_of(kind, shape_yx, seed, grid=grid, parts=parts), grid, parts=parts) > 30
