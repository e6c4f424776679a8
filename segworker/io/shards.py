"""Tile shards: what each tile of a block saw, as one Parquet object with a row group for each tile.

A shard is written once, in one step, so that a shard that is there is whole: work/<tile key>/<block key>.parquet. A
block of which some tiles failed leaves a `.partial.parquet`, from which the next run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segworker.errors import StoreError
from segworker.grid import Grid
from segworker.io.storage import ObjectInfo, Storage
from segworker.panoptic.blend import StuffTile
from segworker.types import Instances, Runs, Tile

TileId = tuple[str, int, int]
"scene_id, row and column of a tile."
Status = Literal["done", "nodata", "outside"]

SHARED_AFTER_S = 86_400.0
_INTS = pa.list_(pa.int32())
SHARD = pa.schema(
    [
        ("scene_id", pa.string()),
        ("row", pa.int32()),
        ("col", pa.int32()),
        ("status", pa.string()),
        ("class_ids", _INTS),
        ("scores", pa.list_(pa.float32())),
        ("boxes", _INTS),
        ("edges", pa.list_(pa.uint8())),
        ("run_counts", _INTS),
        ("run_rows", _INTS),
        ("run_starts", _INTS),
        ("run_lengths", _INTS),
        ("keypoints", pa.list_(pa.float32())),
        ("num_keypoints", pa.int32()),
        ("stuff", pa.list_(pa.binary())),
    ]
)
"""One row for each tile; -1 keypoints: the model has none. Stuff: the bytes of the arrays of `StuffTile`, or null; what
is constant outside the strips costs nothing there."""

_DELTA = {
    f"{name}.list.element": "DELTA_BINARY_PACKED" for name in ("run_counts", "run_rows", "run_starts", "run_lengths")
}


@dataclass(frozen=True, slots=True, eq=False)
class TileResult:
    """What became of one tile."""

    tile_id: TileId
    status: Status
    "'nodata': no valid pixel in the core; 'outside': not touched by the area of interest; neither was predicted."
    instances: Instances
    stuff: StuffTile | None = None
    "None: the tile was not predicted, the model has no stuff, or it was not asked for."


def shard_path(tile_key: str, block_key: str, *, partial: bool = False) -> str:
    """Return where a block's shard lies in the store."""
    return f"work/{tile_key}/{block_key}{'.partial' if partial else ''}.parquet"


def write_shard(storage: Storage, path: str, results: Sequence[TileResult], *, kept: str | None = None) -> int:
    """Write the results of a block's tiles; return the bytes written.

    Args:
        storage: the store.
        path: where to.
        results: of distinct tiles.
        kept: a shard of which the other tiles are taken over as they are, those of other scenes too.
    """
    sink = pa.BufferOutputStream()
    table = _table(results)
    if kept is not None:
        table = pa.concat_tables([_without(_read_table(storage, kept), {r.tile_id for r in results}), table])
    tiles = [list(tile_id) for tile_id in _ids(table)]
    schema = SHARD.with_metadata({b"tiles": json.dumps(tiles).encode()})
    with pq.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=False, column_encoding=_DELTA, write_statistics=False
    ) as writer:
        writer.write_table(table, row_group_size=1)
    content = sink.getvalue().to_pybytes()
    storage.write(path, content)
    return len(content)


def read_shard(
    storage: Storage,
    path: str,
    grids: Mapping[str, Grid],
    *,
    wanted: Collection[TileId] | None = None,
    stuff: bool = False,
) -> list[TileResult]:
    """Return the results of a shard's tiles: of those in `wanted` that it holds, or of all scenes with a grid.

    Stuff, which is larger than the rest, is read where it is asked for.
    """
    with storage.open_input(path) as source, _named(storage, path):
        file = pq.ParquetFile(source)
        tiles = [(str(t[0]), int(t[1]), int(t[2])) for t in json.loads(file.schema_arrow.metadata[b"tiles"])]
        chosen = [
            k for k, tile_id in enumerate(tiles) if (tile_id[0] in grids if wanted is None else tile_id in wanted)
        ]
        if not chosen:
            return []
        names = [name for name in SHARD.names if stuff or name != "stuff"]
        table = file.read_row_groups(chosen, columns=names)
    return [_result(table, k, grids[str(table["scene_id"][k])]) for k in range(len(table))]


def tiles_in_shard(storage: Storage, path: str) -> set[TileId]:
    """Return which tiles a shard holds, from its footer."""
    with storage.open_input(path) as source, _named(storage, path):
        metadata = pq.read_schema(source).metadata
    return {(str(t[0]), int(t[1]), int(t[2])) for t in json.loads(metadata[b"tiles"])}


def _read_table(storage: Storage, path: str) -> pa.Table:
    with storage.open_input(path) as source, _named(storage, path):
        return pq.ParquetFile(source).read().cast(SHARD)


def _without(table: pa.Table, tile_ids: Collection[TileId]) -> pa.Table:
    return table.filter(pa.array([tile_id not in tile_ids for tile_id in _ids(table)], pa.bool_()))


def _ids(table: pa.Table) -> list[TileId]:
    columns = (table[name].to_pylist() for name in ("scene_id", "row", "col"))
    return list(zip(*columns, strict=True))


@contextmanager
def _named(storage: Storage, path: str) -> Iterator[None]:
    """Name a shard that cannot be read."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(
            f"a shard must be whole, got {error} for {storage.location(path)}; remove it and run the same command again"
        ) from None


def durable_blocks(storage: Storage, tile_key: str, block_keys: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the sizes in bytes of (whole shards, partial shards) by block key, by one listing.

    Empty files, which a power cut can leave on a disk, are none.
    """
    found = [info for info in storage.list(f"work/{tile_key}") if info.size_bytes]
    sizes = {info.path.rsplit("/", 1)[-1]: info.size_bytes for info in found}
    keys = set(block_keys)
    whole = {k: sizes[f"{k}.parquet"] for k in keys if f"{k}.parquet" in sizes}
    partial = {k: sizes[f"{k}.partial.parquet"] for k in keys - set(whole) if f"{k}.partial.parquet" in sizes}
    return whole, partial


def expire_shards(storage: Storage, tile_key: str, *, keep_s: float, now_s: float, in_use: Collection[str] = ()) -> int:
    """Remove shards older than `keep_s` seconds and return how many.

    Below a day only those of `tile_key` go: a run may mean to go on from the others.

    Args:
        storage: the store's root.
        tile_key: of the run that is done.
        keep_s: what is younger stays.
        now_s: seconds since the epoch.
        in_use: tile keys of which all shards stay, because other runs are at work with them.
    """
    folder = "work" if keep_s >= SHARED_AFTER_S else f"work/{tile_key}"
    old = [info.path for info in old_shards(storage, folder, keep_s=keep_s, now_s=now_s, in_use=in_use)]
    storage.delete(old)
    return len(old)


def old_shards(
    storage: Storage, folder: str = "work", *, keep_s: float, now_s: float, in_use: Collection[str] = ()
) -> list[ObjectInfo]:
    """Return the shards below a folder that are older than `keep_s` seconds and not in use."""
    found = (info for info in storage.list(folder) if now_s - info.mtime_s >= keep_s)
    return [info for info in found if info.path.split("/")[1] not in in_use]


def empty_instances(grid: Grid, row: int, col: int) -> Instances:
    """Return the result of a tile in which there is nothing."""
    return Instances(
        tile=grid.tile(row, col),
        class_ids=np.zeros(0, np.int32),
        scores=np.zeros(0, np.float32),
        boxes_xyxy=np.zeros((0, 4), np.int32),
        edges=np.zeros(0, np.uint8),
        runs=Runs.empty(),
    )


def _table(results: Sequence[TileResult]) -> pa.Table:
    """Return one row for each tile, its arrays as lists."""
    found = [r.instances for r in results]
    points = [f.keypoints_NK3 for f in found]
    arrays: dict[str, list[NDArray[Any]]] = {
        "class_ids": [f.class_ids for f in found],
        "scores": [f.scores for f in found],
        "boxes": [f.boxes_xyxy.ravel() for f in found],
        "edges": [f.edges for f in found],
        "run_counts": [np.diff(f.runs.offsets) for f in found],
        "run_rows": [f.runs.rows for f in found],
        "run_starts": [f.runs.starts for f in found],
        "run_lengths": [f.runs.stops - f.runs.starts for f in found],
        "keypoints": [np.zeros(0) if p is None else p.ravel() for p in points],
    }
    columns: dict[str, pa.Array] = {
        "scene_id": pa.array([r.tile_id[0] for r in results], pa.string()),
        "row": pa.array([r.tile_id[1] for r in results], pa.int32()),
        "col": pa.array([r.tile_id[2] for r in results], pa.int32()),
        "status": pa.array([r.status for r in results], pa.string()),
        "num_keypoints": pa.array([-1 if p is None else p.shape[1] for p in points], pa.int32()),
        "stuff": pa.array([_stuff_bytes(r.stuff) for r in results], SHARD.field("stuff").type),
    }
    for name, parts in arrays.items():
        dtype = SHARD.field(name).type
        offsets = np.cumsum([0, *(len(p) for p in parts)]).astype(np.int32)
        values = np.concatenate([np.zeros(0, parts[0].dtype if parts else np.int32), *parts]).astype(
            dtype.value_type.to_pandas_dtype()
        )
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, dtype.value_type))
    return pa.table({name: columns[name] for name in SHARD.names}, schema=SHARD)


def _result(table: pa.Table, k: int, grid: Grid) -> TileResult:
    def values(name: str) -> NDArray[Any]:
        return np.array(table[name][k].values.to_numpy(zero_copy_only=False))

    scene_id, row, col = str(table["scene_id"][k]), table["row"][k].as_py(), table["col"][k].as_py()
    starts = values("run_starts")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(values("run_counts"), dtype=np.int64)])
    num_keypoints = table["num_keypoints"][k].as_py()
    class_ids = values("class_ids")
    instances = Instances(
        tile=grid.tile(row, col),
        class_ids=class_ids,
        scores=values("scores"),
        boxes_xyxy=values("boxes").reshape(-1, 4),
        edges=values("edges"),
        runs=Runs(values("run_rows"), starts, starts + values("run_lengths"), offsets),
        keypoints_NK3=None if num_keypoints < 0 else values("keypoints").reshape(len(class_ids), num_keypoints, 3),
    )
    stuff = table["stuff"][k].as_py() if "stuff" in table.column_names else None
    return TileResult(
        (scene_id, row, col),
        str(table["status"][k]),  # type: ignore[arg-type]
        instances,
        None if stuff is None else _stuff_tile(stuff, instances.tile),
    )


def _stuff_bytes(stuff: StuffTile | None) -> list[bytes] | None:
    return None if stuff is None else [a.tobytes() for a in (stuff.best_HW, stuff.second_HW, stuff.scores_2HW)]


def _stuff_tile(content: Sequence[bytes], tile: Tile) -> StuffTile:
    best, second, scores = (np.frombuffer(part, np.uint8) for part in content)
    shape = tile.window.shape_yx
    return StuffTile(tile, best.reshape(shape), second.reshape(shape), scores.reshape(2, *shape))
