"""Scenes of any size whose labels can be asked for window by window.

The ground is a lattice of cells whose borders are moved by a hash of the cell, so that they partition the scene; most
cells hold one blob that may touch its neighbours. Over it lie networks (streets) that span the scene as one object
each. Everything is computed from (seed, row, column): no window needs another one.

Every object is one 4-connected component: a blob's rows all contain its middle column, and clipping by lines along the
axes keeps it so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segworker.types import Category, Window

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
VirtualKind = Literal["nuclei", "city", "combs"]

CATEGORIES = (Category(1, "blob"), Category(2, "network"))
FIRST_BLOB = 3
"Labels 1 and 2 are the networks."
_JITTER = 3


@dataclass(frozen=True, slots=True)
class VirtualScene:
    """A scene that exists only where it is looked at."""

    width: int
    "Pixels."
    height: int
    "Pixels."
    seed: int = 0
    kind: VirtualKind = "nuclei"
    """nuclei: blobs alone. city: also one grid of streets, label 1. combs: also two combs of streets, labels 1 and 2,
    whose teeth alternate over the whole width and never touch."""
    cell_px: int = 28
    "Side of a cell; blobs are a little smaller."
    block_cells: int = 6
    "Cells between two streets."
    period_cells: int | None = None
    "Looks repeat after this many cells (labels do not); None: never."

    def __post_init__(self) -> None:
        if self.cell_px < 16:
            raise ValueError(f"cell_px must be at least 16, got {self.cell_px}")

    @property
    def labels_per_row(self) -> int:
        """Labels set aside for each row of cells."""
        return self.width // self.cell_px + 3

    @property
    def max_label(self) -> int:
        """No label is above it."""
        return FIRST_BLOB + self.labels_per_row * (self.height // self.cell_px + 3)

    def labels(self, window: Window) -> Ints:
        """Return the (H, W) labels of a window; 0 is background, outside of the scene too."""
        ys = np.arange(window.row_off, window.row_end)
        xs = np.arange(window.col_off, window.col_end)
        labels = self._blobs(ys, xs)
        if self.kind == "city":
            labels[self._street(ys)[:, None] | self._street(xs)[None, :]] = 1
        elif self.kind == "combs":
            self._paint_combs(labels, ys, xs)
        labels[(ys < 0) | (ys >= self.height)] = 0
        labels[:, (xs < 0) | (xs >= self.width)] = 0
        return labels

    def class_ids(self, labels: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the class of each label, 0 for the background."""
        return np.where(labels == 0, 0, np.where(labels < FIRST_BLOB, 2, 1)).astype(np.int32)

    def count_objects(self) -> int:
        """Return the number of distinct labels in the scene: inner cells by their hash, those at the rim by looking."""
        if self.kind != "nuclei":
            raise ValueError(f"objects are counted for kind='nuclei' only, got {self.kind!r}")
        size = self.cell_px
        if min(self.width, self.height) < 6 * size:
            return len(np.unique(self.labels(Window(0, 0, self.width, self.height)))) - 1
        cols = np.arange(1, self.width // size - 1)
        inner = sum(int(self._present(np.array([r]), cols).sum()) for r in range(1, self.height // size - 1))
        band = 4 * size
        rim = (
            Window(0, 0, self.width, band),
            Window(0, self.height - band, self.width, band),
            Window(0, 0, band, self.height),
            Window(self.width - band, 0, band, self.height),
        )
        seen = np.unique(np.concatenate([np.unique(self.labels(w)) for w in rim]))
        row, col = np.divmod(seen[seen >= FIRST_BLOB] - FIRST_BLOB, self.labels_per_row)
        is_inner = np.isin(row - 1, np.arange(1, self.height // size - 1)) & np.isin(col - 1, cols)
        return inner + int((~is_inner).sum())

    def _blobs(self, ys: Ints, xs: Ints) -> Ints:
        size = self.cell_px
        r = ys // size
        r = r - (ys < self._line_y(r)) + (ys >= self._line_y(r + 1))
        rows, of_y = np.unique(r, return_inverse=True)
        top, bottom = self._line_y(rows), self._line_y(rows + 1)
        c = np.broadcast_to(xs // size, (len(rows), len(xs)))
        c = c - (xs < self._line_x(rows[:, None], c)) + (xs >= self._line_x(rows[:, None], c + 1))
        left, right = self._line_x(rows[:, None], c), self._line_x(rows[:, None], c + 1)
        across = self._square_of_offset(xs, left, right, rows[:, None], c, axis=3)
        down = self._square_of_offset(ys, top[of_y], bottom[of_y], r, np.zeros_like(r), axis=4)
        labels = FIRST_BLOB + (rows[:, None] + 1) * self.labels_per_row + c + 1
        labels = np.where(self._present(rows[:, None], c), labels, 0)[of_y]
        labels[across[of_y] + down[:, None] > 1] = 0
        return np.asarray(labels, np.int64)

    def _square_of_offset(self, places: Ints, start: Ints, stop: Ints, r: Ints, c: Ints, *, axis: int) -> Floats:
        """Return the squared distance from the middle pixel of each cell in half axes of its blob."""
        middle = (start + stop - 1) // 2
        stretch = 0.8 + 0.3 * self._uniform(r, c, axis)
        return np.asarray(((places - middle) / ((stop - start) / 2 * stretch)) ** 2, np.float32)

    def _present(self, r: Ints, c: Ints) -> NDArray[np.bool_]:
        """Tell which cells hold a blob."""
        return np.asarray(self._uniform(np.asarray(r), np.asarray(c), 5) < 0.94)

    def _line_y(self, r: Ints) -> Ints:
        """Return the first pixel row of a row of cells."""
        return r * self.cell_px + self._jitter(r, np.zeros_like(r), 1)

    def _line_x(self, r: Ints, c: Ints) -> Ints:
        """Return the first pixel column of a cell."""
        return c * self.cell_px + self._jitter(r, c, 2)

    def _jitter(self, r: Ints, c: Ints, purpose: int) -> Ints:
        return np.floor(self._uniform(r, c, purpose) * (2 * _JITTER + 1)).astype(np.int64) - _JITTER

    def _uniform(self, r: Ints, c: Ints, purpose: int) -> NDArray[np.float64]:
        """Return a number in [0, 1) for each cell: the splitmix64 mix of its place, the seed and what it is for."""
        if self.period_cells is not None:
            r, c = r % self.period_cells, c % self.period_cells
        place = (r.astype(np.uint64) << np.uint64(32)) ^ (c.astype(np.uint64) & np.uint64(0xFFFFFFFF))
        z = place + np.uint64((self.seed * 8 + purpose) * 0x9E3779B97F4A7C15 % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11), np.float64) / 2.0**53

    def _street(self, places: Ints) -> NDArray[np.bool_]:
        """Tell which rows or columns lie in a street, 8 px wide, in the middle of cell borders."""
        block = self.cell_px * self.block_cells
        return np.asarray((places + block // 2 // self.cell_px * self.cell_px + 4) % block < 8)

    def _paint_combs(self, labels: Ints, ys: Ints, xs: Ints) -> None:
        """Paint two combs: spines at the left and right rim, teeth on every other street."""
        block = self.cell_px * self.block_cells
        tooth = (ys + block // 2 // self.cell_px * self.cell_px + 4) // block % 2 + 1
        street = self._street(ys)
        spine = 8
        for comb in (1, 2):
            reach = xs < self.width - 2 * spine if comb == 1 else xs >= 2 * spine
            labels[(street & (tooth == comb))[:, None] & reach[None, :]] = comb
        labels[:, xs < spine] = 1
        labels[:, (xs >= self.width - spine) & (xs < self.width)] = 2
