"""Which sheets of a mosaic lie under which of its blocks. Pure.

A block's tiles depend on the sheets under their windows and on no other: a changed sheet changes the keys of the blocks
that see it, and a worker is told of the sheets that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segworker.types import Scene, Window


@dataclass(frozen=True, slots=True, eq=False)
class SheetIndex:
    """Where the sheets of a mosaic lie."""

    bounds: NDArray[np.int64]
    "(N, 4) left, top, right, bottom of each sheet, half-open, scene pixels, the lowest sheet first."
    identities: tuple[str, ...]
    "(N,) change whenever a sheet, or its place, may have changed."
    common: str
    "Changes with what every block depends on."

    @classmethod
    def of_scene(cls, scene: Scene, identity: Callable[[Scene], str], *, common: str) -> SheetIndex:
        """Return the index of a mosaic's sheets.

        Args:
            scene: the mosaic.
            identity: tells one version of a sheet from another.
            common: as above.
        """
        windows = [sheet.window for sheet in scene.sheets]
        bounds = np.array([(w.col_off, w.row_off, w.col_end, w.row_end) for w in windows], np.int64).reshape(-1, 4)
        told = (f"{identity(sheet.scene)} {sheet.window}" for sheet in scene.sheets)
        return cls(bounds, tuple(told), common)

    def under(self, window: Window) -> list[int]:
        """Return the sheets that a window of scene pixels touches, the lowest first."""
        left, top, right, bottom = self.bounds.T
        apart = (left >= window.col_end) | (right <= window.col_off)
        apart |= (top >= window.row_end) | (bottom <= window.row_off)
        return np.flatnonzero(~apart).tolist()

    def identity(self, window: Window) -> list[str]:
        """Return what the pixels of a window depend on."""
        return [self.common, *(self.identities[k] for k in self.under(window))]

    def part_of(self, scene: Scene, window: Window) -> Scene:
        """Return the mosaic with those of its sheets that a window touches."""
        return replace(scene, sheets=tuple(scene.sheets[k] for k in self.under(window)))
