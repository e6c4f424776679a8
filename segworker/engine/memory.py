"""What a predictor needs for pixels, and whether it may have that."""

from __future__ import annotations

import numpy as np

from segworker.engine.job import Job
from segworker.errors import ConfigError

BLOCKS_HELD = 3
"Two waiting and one at work."


def worker_bytes(job: Job) -> int:
    """Return the memory that a predictor needs for pixels: the blocks that it holds, and one batch as float32."""
    if not job.blocks:
        return 0
    largest = max(job.blocks, key=lambda b: b.num_tiles)
    block = 0
    batch = 0
    for part in largest.ranges:
        scene, grid = job.scenes[part.scene_id], job.grids[part.scene_id]
        tile = grid.tile(part.row_start, part.col_start).window
        bands = job.common.model.spec.num_bands
        count = (part.row_stop - part.row_start) * (part.col_stop - part.col_start)
        block += count * tile.area_px * bands * np.dtype(scene.dtype).itemsize
        size = min(count, job.common.tiles_per_batch(tile.shape_yx))
        batch = max(batch, size * tile.area_px * (bands * 4 + 1))
    return BLOCKS_HELD * block + batch


def check_memory(job: Job) -> None:
    """Refuse a plan whose largest block does not fit what `--memory` allows a predictor."""
    allowed, needed = job.config.engine.memory, worker_bytes(job)
    if allowed is not None and needed > allowed:
        grid = next(iter(job.grids.values()))
        raise ConfigError(
            f"the tiles of one worker must fit --memory, got {needed / 1e6:.0f} MB ({BLOCKS_HELD} blocks of tiles of "
            f"{grid.tile_px} px and one batch in float32) for {allowed / 1e6:.0f} MB; lower --tile or --batch-size, or "
            "raise --memory"
        )
