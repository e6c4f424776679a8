"""Which shards hold the tiles around a block of a scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segworker.blocks import Block, TileRange
from segworker.engine.job import Job
from segworker.grid import Grid
from segworker.io.shards import shard_path
from segworker.stitch import TileKey


class Neighbours:
    """Finds the blocks around a block of a scene; those without a shard are absent."""

    def __init__(self, job: Job, blocks: Sequence[Block], grid: Grid) -> None:
        self.job, self.grid = job, grid
        self.corners = {(b.ranges[0].row_start, b.ranges[0].col_start): b for b in blocks}
        self.rows = np.unique([row for row, _ in self.corners])
        self.cols = np.unique([col for _, col in self.corners])

    def ring(self, block: Block) -> list[tuple[str, list[TileKey]]]:
        """Return where the tiles around a block are: shard paths and tile keys."""
        wanted: dict[str, list[TileKey]] = {}
        for row, col in block.ranges[0].ring(self.grid):
            other = self._block_at(row, col)
            if other is not None:
                partial = other.number in self.job.partial
                path = shard_path(self.job.common.tile_key, other.key, partial=partial)
                wanted.setdefault(path, []).append((row, col))
        return sorted(wanted.items())

    def _block_at(self, row: int, col: int) -> Block | None:
        place_y, place_x = np.searchsorted(self.rows, row, "right"), np.searchsorted(self.cols, col, "right")
        if not place_y or not place_x:
            return None
        found = self.corners.get((int(self.rows[place_y - 1]), int(self.cols[place_x - 1])))
        return found if found is not None and _holds(found.ranges[0], row, col) else None


def _holds(part: TileRange, row: int, col: int) -> bool:
    return part.row_start <= row < part.row_stop and part.col_start <= col < part.col_stop
