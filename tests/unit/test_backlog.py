"""What a night has to do, and how much of it fits a budget."""

from __future__ import annotations

import csv
import io

import pytest

from segworker.engine.backlog import batches_within, cost_hours, hours_per_byte_of, manifest_of, state_of
from segworker.io.header import FileStat
from segworker.sources.find import SceneFiles
from segworker.sources.identity import Candidate

ROW = {"uri": "s3://in/a.tif", "etag": "e1", "size_bytes": 10, "mtime_s": 5.0, "tile_key": "t", "stitch_key": "s"}
KEYS = ("t", "s")


def files(scene_id: str = "a", *, size: int = 10, etag: str | None = "e1", mtime_s: float = 5.0, **more) -> SceneFiles:
    stat = FileStat(size, etag, mtime_s)
    uri = more.pop("uri", f"s3://in/{scene_id}.tif")
    return SceneFiles(scene_id, (Candidate(uri, "s3://in", f"{scene_id}.tif", stat, **more),), is_mosaic=False)


@pytest.mark.parametrize(
    ("found", "row", "keys", "state"),
    [
        (files(), ROW, KEYS, "done"),
        (files(), None, KEYS, "new"),
        (files(etag="e2"), ROW, KEYS, "changed"),
        (files(mtime_s=6.0), ROW, KEYS, "done"),  # the etag is the truth where there is one
        (files(etag=None, mtime_s=6.0), ROW, KEYS, "changed"),
        (files(etag=None, size=11), ROW, KEYS, "changed"),
        (files(etag=None), ROW, KEYS, "done"),
        (files(uri="s3://other/a.tif"), ROW, KEYS, "changed"),
        (files(), ROW, ("other model", "s"), "settings"),
        (files(), ROW, ("t", "other thresholds"), "settings"),
        (files(problem="no such object"), ROW, KEYS, "unreadable"),
    ],
)
def test_what_a_scene_is(found: SceneFiles, row: dict | None, keys: tuple[str, str], state: str) -> None:
    assert state_of(found, row, keys) == state


def test_a_mosaic_is_its_sheets() -> None:
    sheets = tuple(file for k in range(3) for file in files(f"sheet{k}", size=k, mtime_s=k, etag=None).files)
    mosaic = SceneFiles("m", sheets, is_mosaic=True)
    row = ROW | {"etag": "a digest of the sheets", "size_bytes": 3, "mtime_s": 2.0}
    assert state_of(mosaic, row, KEYS) == "done"
    assert state_of(mosaic, row | {"size_bytes": 2}, KEYS) == "changed", "a sheet came"


def test_batches_fit_what_is_left() -> None:
    todo = [files(name, size=size) for name, size in (("a", 100), ("b", 4), ("c", 5), ("d", 4))]
    batch, later, too_large = batches_within(todo, 10.0, 1.0)
    assert [[f.scene_id for f in part] for part in (batch, later, too_large)] == [["b", "c"], ["d"], ["a"]]
    assert batches_within(todo, 0.0, 1.0) == ([], todo, [])
    assert batches_within(todo, 1.0, None) == (todo[:1], todo[1:], []), "one scene, to learn what scenes cost"


def test_costs_are_those_of_whole_runs() -> None:
    record = {"run_id": "r", "status": "done", "seconds": {"total": 1800}, "workers": {"count": 4},
              "counts": {"tiles_predicted": 3, "tiles_reused": 0}}  # fmt: skip
    assert cost_hours(record) == 2.0
    reused = record | {"run_id": "q", "counts": {"tiles_predicted": 3, "tiles_reused": 1}}
    assert hours_per_byte_of(iter([reused, record]), {"q": 10, "r": 100}) == pytest.approx(0.02)
    assert hours_per_byte_of(iter([reused]), {"q": 10}) is None


def test_a_batch_keeps_ids_as_a_manifest() -> None:
    rows = list(csv.DictReader(io.StringIO(manifest_of([files('odd, "name"')]))))
    assert rows == [{"uri": 's3://in/odd, "name".tif', "scene_id": 'odd, "name"', "mosaic": ""}]
