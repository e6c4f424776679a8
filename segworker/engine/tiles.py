"""Phase 1, the work of one block: read its tiles, predict them, decode them, write its shard.

Plain functions over numpy; `engine.phase1` strings them together on Ray Data. A tile that fails in one of them is
carried along as a failure and harms no other tile.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.blocks import TileRange
from segworker.config_values import ValueRange
from segworker.decode import decode_instances
from segworker.engine.job import BlockTask, Common
from segworker.engine.mosaics import Ranges
from segworker.engine.watch import time_limit
from segworker.errors import ReadError, StorageError
from segworker.geo import aoi_to_scene
from segworker.io.failures import redact_text
from segworker.io.raster import SceneReader
from segworker.io.scaling import value_range
from segworker.io.shards import (
    Status,
    TileId,
    TileResult,
    empty_instances,
    shard_path,
    tiles_in_shard,
    write_shard,
)
from segworker.panoptic.scores import stuff_of
from segworker.types import InputSpec, Prediction, Scene, Tile

MAX_TRACE = 4000
"Characters of a traceback that are kept, the last ones."


@dataclass(frozen=True, slots=True)
class TileFailure:
    """A tile without a result."""

    tile_id: TileId
    stage: str
    "'read', 'load' (of the model), 'predict', 'decode' or 'write'."
    error: str
    trace: str
    tries: int = 1
    "How often this was tried."

    @classmethod
    def of(cls, tile_id: TileId, stage: str, error: BaseException) -> TileFailure:
        """Return the failure for an exception that is being handled; secrets of uris are taken out."""
        text = f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))[-MAX_TRACE:]
        return cls(tile_id, stage, redact_text(text), redact_text(trace))


@dataclass(slots=True, eq=False)
class Batch:
    """Tiles of one window shape and dtype, of one scene or several, to be predicted in one call."""

    tile_ids: list[TileId] = field(default_factory=list)
    pixels: list[NDArray[np.generic]] = field(default_factory=list)
    "(bands, h, w) each, in the source's dtype."
    valid: list[NDArray[np.bool_] | None] = field(default_factory=list)
    "(h, w) each; None: all pixels are valid."
    ranges: list[Ranges | None] = field(default_factory=list)
    "(low, high) that become 0 and 1 for each band; None: raw values."
    predictions: list[Prediction] = field(default_factory=list)

    def drop_pixels(self) -> None:
        """Forget what the next stage does not need."""
        self.pixels, self.ranges = [], []


@dataclass(slots=True, eq=False)
class BlockWork:
    """A block on its way through phase 1."""

    task: BlockTask
    batches: list[Batch] = field(default_factory=list)
    filling: dict[tuple[object, ...], Batch] = field(default_factory=dict)
    "Batches that are not full yet, by shape and dtype."
    skipped: dict[TileId, Status] = field(default_factory=dict)
    failures: list[TileFailure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_read: int = 0
    num_halved: int = 0
    "Calls of the model that ran out of memory and were made again with half as many tiles."


@dataclass(frozen=True, slots=True)
class BlockReceipt:
    """What the driver hears of a finished block."""

    number: int
    num_done: int
    "Tiles predicted now."
    num_skipped: int
    "Tiles without data, or outside the area of interest."
    num_reused: int
    "Tiles of an earlier run's partial shard."
    num_instances: int
    failures: tuple[TileFailure, ...]
    seconds: dict[str, float]
    bytes_read: int
    shard_bytes: int
    "0: nothing of the block is durable."
    num_halved: int = 0


def read_block(task: BlockTask, common: Common, wanted: Collection[TileId] | None = None) -> BlockWork:
    """Read tiles of a block as batches of one shape: those in `wanted`, or all that have no durable result."""
    work = BlockWork(task)
    begin = time.perf_counter()
    chosen = set(tile_ids(task)) - durable_tiles(task, common) if wanted is None else set(wanted)
    for part in task.block.ranges:
        todo = [key for key in part.tile_keys() if (part.scene_id, *key) in chosen]
        if todo:
            _read_range(work, part, todo, common)
    work.batches += work.filling.values()
    work.filling = {}
    work.seconds["read"] = time.perf_counter() - begin
    return work


def decode_block(work: BlockWork, common: Common) -> BlockReceipt:
    """Decode a block's predictions and write its shard: a partial one where tiles failed."""
    begin = time.perf_counter()
    task = work.task
    fresh = skipped_results(work)
    for batch in work.batches:
        found, failures = decode_batch(batch, task, common)
        fresh += found
        work.failures += failures
    try:
        num_bytes = save_block(task, common, fresh, complete=not work.failures)
    except StorageError as error:  # a full disk, say: what is not durable is not done
        work.failures += [TileFailure.of(r.tile_id, "write", error) for r in fresh]
        fresh, num_bytes = [], 0
    work.seconds["decode"] = time.perf_counter() - begin
    return BlockReceipt(
        task.block.number,
        sum(r.status == "done" for r in fresh),
        sum(r.status != "done" for r in fresh),
        task.block.num_tiles - len(fresh) - len(work.failures),
        sum(len(r.instances) for r in fresh),
        tuple(work.failures),
        work.seconds,
        work.bytes_read,
        num_bytes,
        work.num_halved,
    )


def decode_batch(batch: Batch, task: BlockTask, common: Common) -> tuple[list[TileResult], list[TileFailure]]:
    """Return the results of a predicted batch, and the tiles of which the model returned what it must not."""
    results: list[TileResult] = []
    failures: list[TileFailure] = []
    for k, tile_id in enumerate(batch.tile_ids):
        try:
            with time_limit(common.tile_timeout_s):
                results.append(_decoded(batch.predictions[k], tile_id, batch.valid[k], task, common))
        except Exception as error:  # noqa: BLE001 - a model may return anything, and numpy raises what it likes then
            failures.append(TileFailure.of(tile_id, "decode", error))
    return results, failures


def skipped_results(work: BlockWork) -> list[TileResult]:
    """Return the results of tiles that need no prediction."""
    grids = work.task.grids
    return [
        TileResult(tile_id, status, empty_instances(grids[tile_id[0]], *tile_id[1:]))
        for tile_id, status in work.skipped.items()
    ]


def save_block(task: BlockTask, common: Common, results: Sequence[TileResult], *, complete: bool) -> int:
    """Add results to a block's shard, and return its size: a partial one until all tiles are there.

    Args:
        task: the block; what its partial shard holds stays.
        common: of the run.
        results: of distinct tiles.
        complete: no tile of the task is missing.
    """
    partial = shard_path(common.tile_key, task.block.key, partial=True)
    if not (results or task.partial):
        return 0
    whole = complete and not task.narrowed  # of a narrowed task's block, other scenes' tiles may be missing
    path = shard_path(common.tile_key, task.block.key) if whole else partial
    num_bytes = write_shard(common.storage, path, results, kept=partial if task.partial else None)
    if whole and task.partial:
        common.storage.delete([partial])
    return num_bytes


def scaled(batch: Batch, indices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (images (B, C, H, W), valid (B, H, W)) of some tiles of a batch: float32, 0..1 where they have ranges.

    Invalid pixels are 0.
    """
    images = np.stack([batch.pixels[k] for k in indices]).astype(np.float32)
    valid = np.ones((len(images), *images.shape[2:]), np.bool_)
    for position, k in enumerate(indices):
        ranges, mask = batch.ranges[k], batch.valid[k]
        if ranges is not None:
            low, high = (np.array([r[side] for r in ranges], np.float32)[:, None, None] for side in (0, 1))
            images[position] = np.clip((images[position] - low) / (high - low), 0, 1)
        if mask is not None:
            valid[position] = mask
            images[position][:, ~mask] = 0
    return images, valid


def durable_tiles(task: BlockTask, common: Common) -> set[TileId]:
    """Return which tiles of the task a partial shard of the block holds."""
    if not task.partial:
        return set()
    path = shard_path(common.tile_key, task.block.key, partial=True)
    return tiles_in_shard(common.storage, path) & set(tile_ids(task))


def tile_ids(task: BlockTask) -> Iterator[TileId]:
    """Yield the tiles of a block, in the order of its shard."""
    for part in task.block.ranges:
        for row, col in part.tile_keys():
            yield part.scene_id, row, col


def _decoded(
    prediction: Prediction, tile_id: TileId, valid: NDArray[np.bool_] | None, task: BlockTask, common: Common
) -> TileResult:
    grid, model = task.grids[tile_id[0]], common.model
    tile = grid.tile(*tile_id[1:])
    found = decode_instances(
        prediction,
        tile,
        grid=grid,
        class_ids=model.class_ids,
        valid_HW=valid,
        cut_trust_px=model.spec.cut_trust_px,
    )
    stuff = None
    if model.has_stuff:
        stuff = stuff_of(
            prediction, tile, grid=grid, categories=model.categories, valid_HW=valid, stride=model.spec.stride
        )
    return TileResult(tile_id, "done", found, stuff)


def _read_range(work: BlockWork, part: TileRange, todo: list[tuple[int, int]], common: Common) -> None:
    """Read one scene's tiles of a block into batches; failures and skipped tiles are noted."""
    scene, grid = work.task.scenes[part.scene_id], work.task.grids[part.scene_id]
    tiles = [grid.tile(*key) for key in todo]
    try:
        with ExitStack() as stack:
            with time_limit(common.tile_timeout_s):
                area = None if common.aoi is None else aoi_to_scene(common.aoi.polygons, common.aoi.crs, scene)
                if part.scene_id in work.task.ranges:
                    ranges = work.task.ranges[part.scene_id]
                else:
                    ranges = _ranges(scene, common.value_range, common.bands, common.model.spec)
                opened = SceneReader(scene, scale=grid.scale, bands=common.bands, spec=common.model.spec)
                reader = stack.enter_context(opened)
            for tile in tiles:
                if area is not None and not _touches(tile, area):
                    work.skipped[_id(tile)] = "outside"
                else:
                    _read_tile(work, reader, tile, ranges, common)
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes GDAL raise: each tile tells it
        known = {i for b in [*work.batches, *work.filling.values()] for i in b.tile_ids} | set(work.skipped)
        known |= {f.tile_id for f in work.failures}
        work.failures += [TileFailure.of(_id(t), "read", error) for t in tiles if _id(t) not in known]


def _read_tile(work: BlockWork, reader: SceneReader, tile: Tile, ranges: Ranges | None, common: Common) -> None:
    try:
        with time_limit(common.tile_timeout_s):
            image = reader.read(tile)
    except (ReadError, OSError, MemoryError) as error:
        work.failures.append(TileFailure.of(_id(tile), "read", error))
        return
    work.bytes_read += image.pixels.nbytes
    if not image.valid[tile.core.slices_in(tile.window)].any():
        work.skipped[_id(tile)] = "nodata"
        return
    kind = (image.pixels.shape, image.pixels.dtype.str)
    batch = work.filling.setdefault(kind, Batch())
    batch.tile_ids.append(_id(tile))
    batch.pixels.append(image.pixels)
    batch.valid.append(None if image.valid.all() else image.valid)
    batch.ranges.append(ranges)
    if len(batch.tile_ids) >= common.tiles_per_batch(tile.window.shape_yx):
        work.batches.append(work.filling.pop(kind))


def _id(tile: Tile) -> TileId:
    return tile.scene_id, tile.row, tile.col


def _touches(tile: Tile, area: shapely.Geometry) -> bool:
    window = tile.window
    corners = np.array([window.col_off, window.row_off, window.col_end, window.row_end]) / tile.scale
    return bool(shapely.intersects(area, shapely.box(*corners)))


def _ranges(scene: Scene, mode: ValueRange, bands: tuple[int, ...] | None, spec: InputSpec) -> Ranges | None:
    return None if spec.scaling == "none" else _cached_ranges(scene, mode, bands, spec)


@lru_cache(maxsize=64)
def _cached_ranges(scene: Scene, mode: ValueRange, bands: tuple[int, ...] | None, spec: InputSpec) -> Ranges:
    return value_range(scene, mode, bands=bands, spec=spec)
