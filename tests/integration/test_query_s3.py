"""Asking a store on S3, with the credentials and the endpoint that every client has."""

from __future__ import annotations

from pathlib import Path

import geopandas
import pytest
import shapely

import segworker
from segworker import cli
from segworker.errors import StorageError
from segworker.io.storage import open_storage
from segworker.query.sql import ask
from tests.stores import commit_squares, ids, meeting


def test_a_store_on_s3_is_asked_and_exported(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"s3://{bucket}/a store"
    rows = commit_squares(open_storage(uri), "r1", {"a": 300, "b": 200})
    store = segworker.open_store(uri)
    box = (402_000, 31_000, 406_000, 35_000)
    expected = meeting(rows, shapely.box(*box))
    assert sorted(store.features(bbox=box)["feature_id"]) == expected
    with ask(store, "SELECT feature_id FROM features", bbox=box) as answer:
        assert sorted(i for batch in answer for i in batch.column(0).to_pylist()) == expected
    assert cli.main(["query", uri, "SELECT scene_id FROM scenes ORDER BY 1", "--format", "csv"]) == 0
    assert capsys.readouterr().out.split() == ['"scene_id"', '"a"', '"b"']
    assert cli.main(["export", uri, "--out", f"s3://{bucket}/handed out/all.gpkg"]) == 0
    (tmp_path / "all.gpkg").write_bytes(open_storage(f"s3://{bucket}/handed out").read("all.gpkg"))
    assert sorted(geopandas.read_file(tmp_path / "all.gpkg")["feature_id"]) == ids(rows)


def test_a_secret_stays_out_of_errors(bucket: str, s3) -> None:
    uri = f"s3://{bucket}/store"
    commit_squares(open_storage(uri), "r1", {"a": 30})
    store = segworker.open_store(uri)
    for info in list(store.storage.list("features")):
        if info.path.endswith(".parquet"):
            store.storage.delete([info.path])
    with pytest.raises(StorageError) as caught, ask(store, "SELECT count(*), avg(score) FROM features") as answer:
        list(answer)
    assert s3.secret_key not in str(caught.value)
