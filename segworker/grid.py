"""The grid: tiles whose cores partition a scene, and the blocks of tiles that are the units of work.

Along one axis of `size` pixels, tile k's core begins at k * (tile - overlap) + halo (the first at 0) and ends where the
next one begins (the last at `size`). Windows are the core and a halo on each side; the last window of an axis is moved
back into the scene, so that it has the full side and sees more than its halo. A scene smaller than a tile is one window
of its own size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.types import Scene, Tile, Window

MAX_SCENE_PX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Axis:
    """The tiles along one axis."""

    size: int
    "Grid pixels."
    tile: int
    overlap: int
    shift: int = 0
    "All borders between cores lie this far before those of the plain grid, 0 to step - 1."

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ConfigError(f"tile must be at least 1 px, got tile={self.tile}; raise --tile")
        if self.overlap < 0:
            raise ConfigError(f"overlap must not be negative, got overlap={self.overlap}; raise --overlap")
        if self.overlap >= self.tile:
            raise ConfigError(
                f"overlap must be smaller than the tile, got overlap={self.overlap}, tile={self.tile}; lower --overlap"
            )
        if not 0 < self.size <= MAX_SCENE_PX:
            raise ConfigError(f"a scene side must be 1 to {MAX_SCENE_PX} px, got {self.size}")

    @property
    def step(self) -> int:
        """Distance of neighbouring windows, and the side of an inner core."""
        return self.tile - self.overlap

    @property
    def count(self) -> int:
        """Number of tiles along the axis."""
        return max(1, math.ceil((self.size + self.shift - self.overlap) / self.step))

    def core(self, k: int) -> tuple[int, int]:
        """Return the half-open core of tile k."""
        halo = self.overlap // 2 - self.shift
        start = 0 if k == 0 else k * self.step + halo
        stop = self.size if k == self.count - 1 else (k + 1) * self.step + halo
        return start, stop

    def window(self, k: int) -> tuple[int, int]:
        """Return the half-open window of tile k."""
        start = max(0, min(k * self.step - self.shift, self.size - self.tile))
        return start, min(self.size, start + self.tile)

    def owner(self, position: int) -> int:
        """Return the tile whose core holds a pixel position."""
        return min(max(0, (position + self.shift - self.overlap // 2) // self.step), self.count - 1)


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles of one scene."""

    scene_id: str
    width: int
    "Grid pixels."
    height: int
    "Grid pixels."
    tile_px: int
    overlap_px: int
    scale: float = 1.0
    "Grid pixels per scene pixel."
    is_shifted: bool = False
    "All borders between cores lie half a core before those of the plain grid, to see whether results depend on them."

    def __post_init__(self) -> None:
        _ = self.x, self.y

    @classmethod
    def of_scene(cls, scene: Scene, *, tile_px: int, overlap_px: int, scale: float = 1.0) -> Grid:
        """Return the grid of a scene read at `scale` grid pixels per scene pixel."""
        width, height = (max(1, math.ceil(side * scale - 1e-6)) for side in (scene.width, scene.height))
        return cls(scene.scene_id, width, height, tile_px, overlap_px, scale)

    @property
    def x(self) -> Axis:
        """The columns of tiles."""
        return Axis(self.width, self.tile_px, self.overlap_px, self._shift)

    @property
    def y(self) -> Axis:
        """The rows of tiles."""
        return Axis(self.height, self.tile_px, self.overlap_px, self._shift)

    @property
    def _shift(self) -> int:
        return (self.tile_px - self.overlap_px) // 2 if self.is_shifted else 0

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.y.count, self.x.count

    @property
    def num_tiles(self) -> int:
        """Tiles of the scene."""
        return self.x.count * self.y.count

    def tile(self, row: int, col: int) -> Tile:
        """Return one tile."""
        (left, right), (top, bottom) = self.x.core(col), self.y.core(row)
        (win_left, win_right), (win_top, win_bottom) = self.x.window(col), self.y.window(row)
        core = Window(left, top, right - left, bottom - top)
        window = Window(win_left, win_top, win_right - win_left, win_bottom - win_top)
        return Tile(self.scene_id, row, col, core, window, self.scale)

    def tiles(self) -> Iterator[Tile]:
        """Yield every tile in row order."""
        rows, cols = self.shape_yx
        for row in range(rows):
            for col in range(cols):
                yield self.tile(row, col)
