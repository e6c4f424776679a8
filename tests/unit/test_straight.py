"""Straight edges on tile borders, counted pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segworker import masks
from segworker.grid import Grid
from segworker.straight import line_lengths_px, straight_edges_px
from segworker.types import Window
from tests.strategies import grids, seeds


def lines_of(grid: Grid) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the positions of core borders, and of the lines half a core behind, for x and y."""
    borders, behind = [], []
    for axis in (grid.x, grid.y):
        at = np.array([axis.core(k)[0] for k in range(1, axis.count)], int)
        borders.append(at)
        half = at + max(1, axis.step // 2)
        behind.append(half[half < axis.size])
    return borders, behind


def outline_px(mask: np.ndarray, at: list[np.ndarray]) -> int:
    """Count the pixel edges of a mask's outline on vertical and horizontal lines."""
    padded = np.pad(mask, 1)
    vertical = padded[1:-1, 1:] != padded[1:-1, :-1]
    horizontal = padded[1:, 1:-1] != padded[:-1, 1:-1]
    return int(vertical[:, at[0]].sum() + horizontal[at[1]].sum())


@settings(deadline=None, max_examples=150)
@given(grids(), seeds, st.integers(1, 4))
def test_lengths_are_those_of_the_outline(grid: Grid, seed: int, count: int) -> None:
    assume(grid.x.step > 1)  # cores of one pixel have no line between their borders
    labels = np.random.default_rng(seed).integers(0, count + 1, (grid.height, grid.width))
    runs = masks.runs_from_labels(labels, count, window=Window(0, 0, grid.width, grid.height))
    found = straight_edges_px(runs, grid)
    borders, behind = lines_of(grid)
    for i in range(count):
        assert found[i].tolist() == [outline_px(labels == i + 1, borders), outline_px(labels == i + 1, behind)]
    lengths = [sum(len(x) * grid.height + len(y) * grid.width for x, y in [at]) for at in (borders, behind)]
    assert list(line_lengths_px(grid)) == lengths


def test_a_cut_object_leaves_its_cut() -> None:
    grid = Grid("s", 100, 80, 40, 8)
    whole = np.zeros((80, 100), bool)
    whole[20:30, 10:70] = True
    left, right = whole.copy(), whole.copy()
    border = grid.x.core(0)[1]
    left[:, border:] = False
    right[:, :border] = False
    window = Window(0, 0, 100, 80)

    def lengths(mask: np.ndarray) -> list[int]:
        return straight_edges_px(masks.runs_from_mask(mask, window=window), grid)[0].tolist()

    assert lengths(whole) == [0, 0]
    assert lengths(left) == lengths(right) == [10, 0]


def test_without_borders_there_are_no_lines() -> None:
    grid = Grid("s", 50, 40, 64, 8)
    assert line_lengths_px(grid) == (0, 0)
    full = masks.runs_from_mask(np.ones((40, 50), bool), window=Window(0, 0, 50, 40))
    assert straight_edges_px(full, grid).tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [np.int32])
def test_nothing_has_no_edges(dtype: type) -> None:
    runs = masks.runs_from_labels(np.zeros((4, 4), dtype), 0, window=Window(0, 0, 4, 4))
    assert straight_edges_px(runs, Grid("s", 4, 4, 2, 0)).shape == (0, 2)
