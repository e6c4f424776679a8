"""Blocks of tiles: the units of durable work and of stitching.

A block is a rectangle of one large scene's tiles, or all tiles of several small scenes. Blocks depend on scenes and
grid alone, never on the machine, so that a resumed run, or one on other workers, finds the same work done.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from segworker.grid import Grid
from segworker.sheets import SheetIndex
from segworker.types import Tile, Window

BLOCK_BYTES = 64_000_000
"Decoded pixels of a block's tiles, about."
BLOCK_SIDE_PX = 4096
MAX_TILES = 256
MAX_SCENES = 64


@dataclass(frozen=True, slots=True)
class SceneGrid:
    """What planning needs to know of a scene."""

    grid: Grid
    identity: str
    "Changes whenever the scene's pixels may have changed."
    pixel_bytes: int
    "Bytes of one grid pixel over all bands."
    sheets: SheetIndex | None = None
    "Of a mosaic: the blocks' keys depend on the sheets that they see instead of on `identity`."


@dataclass(frozen=True, slots=True)
class TileRange:
    """A rectangle of tiles of one scene, half-open."""

    scene_id: str
    row_start: int
    row_stop: int
    col_start: int
    col_stop: int
    whole: bool
    "Whether these are all tiles of the scene."

    def tile_keys(self) -> Iterator[tuple[int, int]]:
        """Yield (row, column) of each tile in row order."""
        for row in range(self.row_start, self.row_stop):
            for col in range(self.col_start, self.col_stop):
                yield row, col

    def ring(self, grid: Grid) -> Iterator[tuple[int, int]]:
        """Yield the tiles around the rectangle, inside the scene."""
        rows, cols = grid.shape_yx
        for row in range(max(0, self.row_start - 1), min(rows, self.row_stop + 1)):
            for col in range(max(0, self.col_start - 1), min(cols, self.col_stop + 1)):
                inside = self.row_start <= row < self.row_stop and self.col_start <= col < self.col_stop
                if not inside:
                    yield row, col

    def region(self, grid: Grid) -> Window:
        """Return the union of the cores."""
        left, top = grid.x.core(self.col_start)[0], grid.y.core(self.row_start)[0]
        right, bottom = grid.x.core(self.col_stop - 1)[1], grid.y.core(self.row_stop - 1)[1]
        return Window(left, top, right - left, bottom - top)

    def seen(self, grid: Grid) -> Window:
        """Return the scene pixels that reading the windows may touch."""
        (left, _), (_, right) = grid.x.window(self.col_start), grid.x.window(self.col_stop - 1)
        (top, _), (_, bottom) = grid.y.window(self.row_start), grid.y.window(self.row_stop - 1)
        margin = 0 if grid.scale == 1 else 2 / grid.scale + 4  # resampling looks around, in an overview's pixels too
        low = [math.floor(v / grid.scale - margin) for v in (left, top)]
        high = [math.ceil(v / grid.scale + margin) for v in (right, bottom)]
        return Window(low[0], low[1], high[0] - low[0], high[1] - low[1])

    def tiles(self, grid: Grid) -> Iterator[Tile]:
        """Yield the tiles."""
        for row, col in self.tile_keys():
            yield grid.tile(row, col)


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of work."""

    number: int
    "Position in the plan."
    key: str
    "Names the block's shard: changes with everything that its pixels and its tiles depend on."
    ranges: tuple[TileRange, ...]

    @property
    def num_tiles(self) -> int:
        """Tiles of the block."""
        return sum((r.row_stop - r.row_start) * (r.col_stop - r.col_start) for r in self.ranges)


def block_side(tile_px: int, overlap_px: int, pixel_bytes: int) -> int:
    """Return how many tiles a block of a large scene spans in each direction."""
    side_px = min(BLOCK_SIDE_PX, math.isqrt(BLOCK_BYTES // max(1, pixel_bytes)))
    return max(1, min(math.isqrt(MAX_TILES), round(side_px / (tile_px - overlap_px) - 0.25)))


def plan_blocks(scenes: Sequence[SceneGrid]) -> list[Block]:
    """Return the blocks of all scenes: those of large scenes by rows, small scenes packed together in order."""
    blocks: list[tuple[str, tuple[TileRange, ...]]] = []
    packed: list[SceneGrid] = []
    num_bytes = num_tiles = 0
    for scene in scenes:
        grid = scene.grid
        side = block_side(grid.tile_px, grid.overlap_px, scene.pixel_bytes)
        rows, cols = grid.shape_yx
        if rows > side or cols > side:
            blocks += [_block([(scene, r)]) for r in _rectangles(grid, side)]
            continue
        size = sum(t.window.area_px for t in grid.tiles()) * scene.pixel_bytes
        full = num_bytes + size > BLOCK_BYTES or num_tiles + rows * cols > MAX_TILES or len(packed) == MAX_SCENES
        if packed and full:
            blocks.append(_block([(s, _all(s.grid)) for s in packed]))
            packed, num_bytes, num_tiles = [], 0, 0
        packed.append(scene)
        num_bytes, num_tiles = num_bytes + size, num_tiles + rows * cols
    if packed:
        blocks.append(_block([(s, _all(s.grid)) for s in packed]))
    return [Block(number, key, ranges) for number, (key, ranges) in enumerate(blocks)]


def _rectangles(grid: Grid, side: int) -> Iterable[TileRange]:
    rows, cols = grid.shape_yx
    for row in range(0, rows, side):
        for col in range(0, cols, side):
            yield TileRange(grid.scene_id, row, min(rows, row + side), col, min(cols, col + side), whole=False)


def _all(grid: Grid) -> TileRange:
    rows, cols = grid.shape_yx
    return TileRange(grid.scene_id, 0, rows, 0, cols, whole=True)


def _block(parts: Sequence[tuple[SceneGrid, TileRange]]) -> tuple[str, tuple[TileRange, ...]]:
    told = [
        [
            *_told(s, r),
            s.grid.tile_px,
            s.grid.overlap_px,
            s.grid.scale,
            r.row_start,
            r.row_stop,
            r.col_start,
            r.col_stop,
        ]
        for s, r in parts
    ]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
    return key, tuple(r for _, r in parts)


def _told(scene: SceneGrid, part: TileRange) -> list[object]:
    """Return what tells a block's pixels from others: of a mosaic no more than what its windows see."""
    grid = scene.grid
    if scene.sheets is None:
        return [scene.identity, grid.width, grid.height]
    ends = [
        [axis.window(first)[0], axis.window(last - 1)[1], axis.core(last - 1)[1], last == axis.count]
        for axis, first, last in ((grid.x, part.col_start, part.col_stop), (grid.y, part.row_start, part.row_stop))
    ]
    return [*scene.sheets.identity(part.seen(grid)), ends]
