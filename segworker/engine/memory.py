"""What a predictor needs for pixels, and whether it may have that: `--memory`.

A predictor takes a block of tiles from the object store, predicts it batch by batch, and hands it on. At its peak it
holds the block as it came, the block unpacked, and what it hands on, which is at most as large; and one batch as the
model wants it. The model itself and what it computes come on top: nobody knows them before it runs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from segworker.blocks import TileRange
from segworker.engine.job import Common, Job, digest
from segworker.errors import ConfigError

BLOCKS_HELD = 3
"As it came, unpacked, and on its way out."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a predictor needs for one block."""

    num_tiles: int
    "Of the block."
    block_bytes: int
    batch: int
    "Tiles of its largest batch."
    tile_px: int
    "Pixels of one tile of that batch."
    num_bands: int
    dtype: str

    @property
    def bytes_per_px(self) -> int:
        """Bytes of a batch for each pixel: float32 bands, and whether it is valid."""
        return 4 * self.num_bands + 1

    @property
    def batch_bytes(self) -> int:
        """Bytes of the largest batch."""
        return self.batch * self.tile_px * self.bytes_per_px

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return BLOCKS_HELD * self.block_bytes + self.batch_bytes

    def arithmetic(self) -> str:
        """Return how the total comes about."""
        return (
            f"{BLOCKS_HELD} x {_mb(self.block_bytes)} for a block ({self.num_tiles} tiles, {self.num_bands} bands of "
            f"{self.dtype}) + {_mb(self.batch_bytes)} for a batch ({self.batch} x {self.tile_px:,} px x "
            f"({self.num_bands} bands x 4 bytes + 1)) = {_mb(self.total)}"
        )


def worker_bytes(job: Job) -> int:
    """Return the memory that a predictor needs for pixels."""
    return max((n.total for n in _needs(job, job.common)), default=0)


def fit_memory(job: Job) -> Job:
    """Return the job with batches that fit what `--memory` allows a predictor, or refuse it.

    Smaller batches are another plan, with keys of its own: the same command gives the same results, on any machine.

    Raises:
        ConfigError: where not even one tile at a time fits.
    """
    allowed = job.config.engine.memory
    if allowed is None or worker_bytes(job) <= allowed:
        return job
    single = max(_needs(job, replace(job.common, batch_limit_px=1)), key=lambda n: n.total)
    if single.total > allowed:
        raise ConfigError(
            f"the pixels of one worker must fit --memory, got {single.arithmetic()}, for {_mb(allowed)}; raise "
            f"--memory{', or lower --tile' if single.num_tiles == 1 else ''}"
        )
    grid = next(iter(job.grids.values()))
    full_px = grid.tile_px**2
    room = min(
        (allowed - BLOCKS_HELD * n.block_bytes) // n.bytes_per_px for n in _needs(job, job.common) if n.total > allowed
    )
    limit = room // full_px * full_px or room
    common = job.common
    fitted = replace(
        common,
        batch_limit_px=limit,
        tile_key=digest([common.tile_key, "batches of", limit]),
        stitch_key=digest([common.stitch_key, "batches of", limit]),
    )
    largest = max(_needs(job, fitted), key=lambda n: n.total)
    _log.warning("batches are smaller, to fit --memory (%s): %s", _mb(allowed), largest.arithmetic())
    return replace(job, common=fitted)


def _needs(job: Job, common: Common) -> list[Need]:
    """Return what different kinds of blocks need."""
    bands = common.model.spec.num_bands
    found: dict[object, Need] = {}
    for block in job.blocks:
        key = tuple(
            (job.grids[r.scene_id].tile_px, job.scenes[r.scene_id].dtype, *_shape(job, r)) for r in block.ranges
        )
        if key in found:
            continue
        block_bytes, batch, tile_px = 0, 1, 0
        for part in block.ranges:
            rows, cols, area_px = _shape(job, part)
            block_bytes += rows * cols * area_px * bands * np.dtype(job.scenes[part.scene_id].dtype).itemsize
            size = min(block.num_tiles, common.tiles_per_batch((area_px, 1)))
            if size * area_px > batch * tile_px:
                batch, tile_px = size, area_px
        dtype = job.scenes[block.ranges[0].scene_id].dtype
        found[key] = Need(block.num_tiles, block_bytes, batch, tile_px, bands, dtype)
    return list(found.values())


def _shape(job: Job, part: TileRange) -> tuple[int, int, int]:
    """Return (rows, columns, pixels of a window) of a rectangle of tiles."""
    window = job.grids[part.scene_id].tile(part.row_start, part.col_start).window
    return part.row_stop - part.row_start, part.col_stop - part.col_start, window.area_px


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
