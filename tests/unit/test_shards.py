"""Tile shards: what is written comes back, whole or a few tiles of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segworker import masks
from segworker.errors import StorageError, StoreError
from segworker.grid import Grid
from segworker.io.shards import (
    SHARD,
    TileResult,
    durable_blocks,
    empty_instances,
    read_shard,
    shard_path,
    tiles_in_shard,
    write_shard,
)
from segworker.io.storage import Storage, open_storage
from segworker.types import Instances, Runs
from tests.strategies import seeds

GRIDS = {"a": Grid("a", 300, 200, 64, 16), "b": Grid("b", 100_000, 100_000, 96, 8, 0.5)}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path)


def result(
    scene_id: str, row: int, col: int, seed: int = 0, *, count: int = 5, keypoints: int | None = None
) -> TileResult:
    """A tile with seeded instances that overlap."""
    rng = np.random.default_rng([seed, row, col])
    grid = GRIDS[scene_id]
    tile = grid.tile(row, col)
    images = rng.random((count, *tile.window.shape_yx)) < 0.02
    runs = Runs.concatenate([masks.runs_from_mask(image, window=tile.window) for image in images])
    points = None if keypoints is None else rng.random((count, keypoints, 3)).astype(np.float32)
    found = Instances(
        tile,
        rng.integers(1, 2**31 - 1, count).astype(np.int32),
        rng.random(count).astype(np.float32),
        masks.boxes_xyxy(runs),
        rng.integers(0, 16, count).astype(np.uint8),
        runs,
        points,
    )
    return TileResult((scene_id, row, col), "done", found)


def arrays_of(found: Instances) -> list[np.ndarray]:
    runs = found.runs
    arrays = [found.class_ids, found.scores, found.boxes_xyxy, found.edges]
    arrays += [runs.rows, runs.starts, runs.stops, runs.offsets]
    return arrays if found.keypoints_NK3 is None else [*arrays, found.keypoints_NK3]


def check_equal(one: TileResult, other: TileResult) -> None:
    assert one.tile_id == other.tile_id
    assert one.status == other.status
    assert one.instances.tile == other.instances.tile
    pairs = list(zip(arrays_of(one.instances), arrays_of(other.instances), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert [a.dtype for a, _ in pairs] == [b.dtype for _, b in pairs]
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seeds, st.lists(st.integers(0, 8), max_size=6), st.sampled_from([None, 0, 1, 17]))
def test_results_come_back(storage: Storage, seed: int, counts: list[int], keypoints: int | None) -> None:
    results = [result("a", 0, k, seed, count=n, keypoints=keypoints) for k, n in enumerate(counts[:4])]
    results += [result("b", 200, k, seed, count=n, keypoints=keypoints) for k, n in enumerate(counts[4:])]
    size = write_shard(storage, "work/k/x.parquet", results)
    assert storage.head("work/k/x.parquet").size_bytes == size
    back = read_shard(storage, "work/k/x.parquet", GRIDS)
    assert len(back) == len(results)
    for one, other in zip(results, back, strict=True):
        check_equal(one, other)


def test_what_was_read_can_be_written_to(storage: Storage) -> None:
    write_shard(storage, "x.parquet", [result("a", 0, 0)])
    (back,) = read_shard(storage, "x.parquet", GRIDS)
    assert all(a.flags.writeable for a in arrays_of(back.instances))


def test_tiles_without_a_prediction_keep_their_reason(storage: Storage) -> None:
    empty = [
        TileResult(("a", 0, k), status, empty_instances(GRIDS["a"], 0, k))
        for k, status in enumerate(["done", "nodata", "outside"])
    ]
    write_shard(storage, "x.parquet", empty)
    back = read_shard(storage, "x.parquet", GRIDS)
    assert [r.status for r in back] == ["done", "nodata", "outside"]
    assert [len(r.instances) for r in back] == [0, 0, 0]
    for one, other in zip(empty, back, strict=True):
        check_equal(one, other)


def test_a_few_tiles_are_read_without_the_others(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [result("a", row, col) for row in range(3) for col in range(4)]
    write_shard(storage, "x.parquet", results)
    with storage.open_input("x.parquet") as source:
        assert pq.ParquetFile(source).num_row_groups == len(results)
    chosen = []
    read = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, **more: chosen.extend(groups) or read(self, groups, **more),
    )
    back = read_shard(storage, "x.parquet", GRIDS, wanted={("a", 1, 1), ("a", 2, 3), ("a", 9, 9), ("b", 1, 1)})
    assert [r.tile_id for r in back] == [("a", 1, 1), ("a", 2, 3)]
    assert chosen == [5, 11]
    check_equal(back[1], results[11])


def test_nothing_wanted_nothing_read(storage: Storage) -> None:
    write_shard(storage, "x.parquet", [result("a", 0, 0)])
    assert read_shard(storage, "x.parquet", GRIDS, wanted={("a", 1, 1)}) == []
    assert read_shard(storage, "x.parquet", GRIDS, wanted=set()) == []
    write_shard(storage, "empty.parquet", [])
    assert read_shard(storage, "empty.parquet", GRIDS) == []
    assert tiles_in_shard(storage, "empty.parquet") == set()


def test_the_footer_tells_the_tiles(storage: Storage) -> None:
    write_shard(storage, "x.parquet", [result("a", 1, 2), result("b", 3, 100)])
    assert tiles_in_shard(storage, "x.parquet") == {("a", 1, 2), ("b", 3, 100)}
    with storage.open_input("x.parquet") as source:
        schema = pq.read_schema(source)
    assert schema.remove_metadata().equals(SHARD)
    assert json.loads(schema.metadata[b"tiles"]) == [["a", 1, 2], ["b", 3, 100]]


def test_the_same_results_give_the_same_bytes(storage: Storage) -> None:
    for path in ("x.parquet", "y.parquet"):
        write_shard(storage, path, [result("a", 0, 0), result("a", 0, 1)])
    assert storage.read("x.parquet") == storage.read("y.parquet")


def test_a_listing_tells_whole_shards_from_partial_ones(storage: Storage) -> None:
    sizes = {
        path: write_shard(storage, path, [result("a", 0, 0, count=n)])
        for n, path in enumerate(
            [
                shard_path("key", "whole"),
                shard_path("key", "begun", partial=True),
                shard_path("key", "mended"),
                shard_path("key", "mended", partial=True),
                shard_path("key", "of another plan"),
                shard_path("key 2", "missing"),
            ]
        )
    }
    whole, partial = durable_blocks(storage, "key", ["whole", "begun", "mended", "missing"])
    assert whole == {k: sizes[shard_path("key", k)] for k in ("whole", "mended")}
    assert partial == {"begun": sizes[shard_path("key", "begun", partial=True)]}
    assert durable_blocks(storage, "no such key", ["whole"]) == ({}, {})


def test_a_missing_shard_is_an_error_of_the_store(storage: Storage) -> None:
    with pytest.raises(StorageError):
        read_shard(storage, shard_path("key", "gone"), GRIDS)


def test_what_is_left_of_a_file_is_no_shard(storage: Storage) -> None:
    """After a power cut a file may be there without its content, or without the end of it."""
    path = shard_path("key", "block")
    write_shard(storage, path, [result("a", 0, 0)])
    whole = storage.read(path)
    storage.write(path, b"")
    assert durable_blocks(storage, "key", ["block"]) == ({}, {})
    for part in (whole[: len(whole) // 2], whole[:-20] + bytes(20)):
        storage.write(path, part)
        for read in (lambda: read_shard(storage, path, GRIDS), lambda: tiles_in_shard(storage, path)):
            with pytest.raises(StoreError, match=r"block.parquet; remove it and run the same command again"):
                read()


def test_results_are_added_to_those_that_are_there(storage: Storage) -> None:
    """Of scenes that the writer does not know too; a tile that comes again replaces its older result."""
    write_shard(storage, "old", [result("a", 0, 0), result("b", 3, 4), result("a", 0, 1)])
    new = [result("a", 1, 0), result("a", 0, 1, seed=7)]
    write_shard(storage, "new", new, kept="old")
    assert tiles_in_shard(storage, "new") == {("a", 0, 0), ("b", 3, 4), ("a", 1, 0), ("a", 0, 1)}
    found = {r.tile_id: r for r in read_shard(storage, "new", GRIDS)}
    for expected in [result("a", 0, 0), result("b", 3, 4), *new]:
        check_equal(found[expected.tile_id], expected)


def test_scenes_without_a_grid_are_passed_over(storage: Storage) -> None:
    write_shard(storage, "both", [result("a", 0, 0), result("b", 3, 4)])
    (found,) = read_shard(storage, "both", {"b": GRIDS["b"]})
    check_equal(found, result("b", 3, 4))
