"""A town of any size as a virtual raster (VRT) over a few small ones, and how many objects are in it.

Blobs of `VirtualScene` fill the ground. Over them lie districts, each with street networks of its own that no gap
interrupts: one grid of streets, or two combs whose teeth alternate over the whole district. A district keeps its size
when the town grows, so that its networks are the largest objects at any size of the town. The whole repeats every
`period_px`; labels do, too, which is harmless as long as no window is larger than a period (`models.perfect_single`
with parts='several' reads them back).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segworker.synthetic.paint import place_rasters, write_raster
from segworker.synthetic.virtual import FIRST_BLOB, VirtualKind, VirtualScene
from segworker.types import Window

GAP_PX = 16
"Streets stop this far from a district's rim."
_SLIVER_PX = 4
"A comb's spine would cut a sliver of at most this width from the blobs across the rim: it is left out."
FIRST, MIDDLE, LAST, BESIDE_COMB = 0, 1, 2, 3
"Places of a period along a side of its district; the last is added where a comb's spine is next to it."
Places = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Town:
    """What a town is made of; nothing is painted yet."""

    size_px: int
    "Side of the square town."
    cell_px: int = 28
    "Side of a cell, which holds one blob or none."
    period_cells: int = 144
    "Cells after which the looks repeat; a multiple of twice `block_cells`."
    block_cells: int = 6
    "Cells between two streets."
    district_periods: int = 7
    "Periods along a side of a district."
    seed: int = 0

    def __post_init__(self) -> None:
        if self.period_cells % (2 * self.block_cells) or self.district_periods < 2:
            raise ValueError(f"periods hold pairs of streets, and districts at least 2 periods, got {self}")
        if 0 < self.size_px % self.district_px <= self.cell_px * self.block_cells:
            raise ValueError(f"the last district must have a street of its own, got {self}")

    @property
    def period_px(self) -> int:
        """Side of a picture that repeats; windows must be smaller."""
        return self.period_cells * self.cell_px

    @property
    def district_px(self) -> int:
        """Side of a district."""
        return self.period_px * self.district_periods

    @property
    def num_networks(self) -> int:
        """Street networks: one in a grid of streets, two in a district of combs."""
        across = -(-self.size_px // self.district_px)
        return sum(2 if self._kind(row, col) == "combs" else 1 for row in range(across) for col in range(across))

    def count_blobs(self) -> int:
        """Return the number of blobs of which something is seen, from the pictures and the lattice alone."""
        across = -(-self.size_px // self.period_px) + 2
        seen: dict[object, NDArray[np.int64]] = {}
        keys = []
        for picture, x, y in self._places():
            size = min(self.period_px, self.size_px - y), min(self.period_px, self.size_px - x)
            if (picture, size) not in seen:
                seen[picture, size] = self._blobs(self._picture(*picture)[: size[0], : size[1]])
            label, step_y, step_x = seen[picture, size].T
            row, col = y // self.period_px + 1 + step_y, x // self.period_px + 1 + step_x
            keys.append((row * across + col) * self.period_cells**2 + label)
        return len(np.unique(np.concatenate(keys)))

    def paint(self, folder: Path) -> Path:
        """Write the pictures and the VRT over them; return the VRT."""
        folder.mkdir(parents=True, exist_ok=True)
        pictures: dict[tuple[VirtualKind, Places], Path] = {}
        places = []
        for picture, x, y in self._places():
            if picture not in pictures:
                kind, place = picture
                name = folder / f"{kind}-{place[0]}-{place[1]}.tif"
                pictures[picture] = write_raster(name, self._picture(kind, place)[None], block_px=256)
            places.append((pictures[picture], x, y))
        return place_rasters(folder / "town.vrt", places, width=self.size_px, height=self.size_px)

    def pictures(self) -> Iterator[tuple[NDArray[np.uint16], int]]:
        """Yield each picture, cut at the town's rim, and how often it occurs: enough to add up anything."""
        counts: dict[tuple[VirtualKind, Places, Places], int] = {}
        for (kind, place), x, y in self._places():
            size = min(self.period_px, self.size_px - y), min(self.period_px, self.size_px - x)
            counts[kind, place, size] = counts.get((kind, place, size), 0) + 1
        for (kind, place, (height, width)), count in counts.items():
            yield self._picture(kind, place)[:height, :width], count

    def _places(self) -> Iterator[tuple[tuple[VirtualKind, Places], int, int]]:
        """Yield (kind and place in its district, column, row) of each picture."""
        across = -(-self.size_px // self.period_px)
        for y in range(across):
            for x in range(across):
                (row, in_y), (col, in_x) = (divmod(k, self.district_periods) for k in (y, x))
                kind = self._kind(row, col)
                place_x = self._place(in_x)
                if kind == "city" and place_x in (FIRST, LAST):
                    beside = col + (1 if place_x == LAST else -1)
                    place_x += BESIDE_COMB if beside >= 0 and self._kind(row, beside) == "combs" else 0
                yield (kind, (self._place(in_y), place_x)), x * self.period_px, y * self.period_px

    def _kind(self, row: int, col: int) -> VirtualKind:
        """Return what a district is; combs must be whole."""
        whole = self.size_px // self.district_px
        return "combs" if (row + col) % 2 and max(row, col) < whole else "city"

    def _place(self, k: int) -> int:
        """Return where in its district a period is; those in the middle look alike."""
        return FIRST if k == 0 else LAST if k == self.district_periods - 1 else MIDDLE

    def _picture(self, kind: VirtualKind, place: Places) -> NDArray[np.uint16]:
        """Return the (P, P) labels of one period: networks 1 and 2, blobs from 3 on."""
        side = self.period_px
        row, col = ((0, 1, self.district_periods - 1)[k % BESIDE_COMB] for k in place)
        district = self._virtual(self.district_px, kind)
        labels = district.labels(Window(col * side, row * side, side, side))
        labels = self._repeating(labels, district.labels_per_row)
        if place[0] == FIRST:
            _clear(labels[:GAP_PX], FIRST_BLOB)
        if kind == "city" and place[1] % BESIDE_COMB == FIRST:
            _clear(labels[:, :GAP_PX], FIRST_BLOB)
        if kind == "city" and place[1] % BESIDE_COMB == LAST:
            _clear(labels[:, -GAP_PX:], FIRST_BLOB)
        if place[1] == FIRST + BESIDE_COMB:
            _clear(labels[:, :_SLIVER_PX])
        if place[1] == LAST + BESIDE_COMB:
            _clear(labels[:, -_SLIVER_PX:])
        return labels.astype(np.uint16)

    def _blobs(self, labels: NDArray[np.uint16]) -> NDArray[np.int64]:
        """Return (N, 3) of the blobs in a picture: label, and in which period their cell is, counted from this one."""
        ys, xs = np.nonzero(labels >= FIRST_BLOB)
        label = labels[ys, xs].astype(np.int64) - FIRST_BLOB
        n, middle = self.period_cells, self.period_px // 2
        steps = [
            np.where((cell == 0) & (at > middle), 1, np.where((cell == n - 1) & (at < middle), -1, 0))
            for cell, at in ((label // n, ys), (label % n, xs))
        ]
        key = np.unique((label * 3 + steps[0] + 1) * 3 + steps[1] + 1)
        return np.column_stack([key // 9, key // 3 % 3 - 1, key % 3 - 1])

    def _repeating(self, labels: NDArray[np.int64], labels_per_row: int) -> NDArray[np.int64]:
        """Return the labels with those of blobs counted within one period."""
        blob = labels >= FIRST_BLOB
        row, col = np.divmod(labels[blob] - FIRST_BLOB, labels_per_row)
        n = self.period_cells
        labels[blob] = FIRST_BLOB + (row - 1) % n * n + (col - 1) % n
        return labels

    def _virtual(self, size_px: int, kind: VirtualKind) -> VirtualScene:
        return VirtualScene(
            size_px,
            size_px,
            self.seed,
            kind,
            cell_px=self.cell_px,
            block_cells=self.block_cells,
            period_cells=self.period_cells,
        )


def _clear(labels: NDArray[np.int64], below: int | None = None) -> None:
    """Set labels to background, those `below` a label only, in place."""
    labels[labels < below if below is not None else np.ones(labels.shape, np.bool_)] = 0
