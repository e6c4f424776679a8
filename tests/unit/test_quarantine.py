"""What failed is written down with all that a person needs to find it, and no secret."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segworker.grid import Grid
from segworker.io.failures import redact_text
from segworker.io.quarantine import QUARANTINE, Quarantined, quarantine_path, read_quarantine, write_quarantine
from segworker.io.storage import open_storage


def test_scenes_and_tiles(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert len(read_quarantine(storage, "a run")) == 0
    tile = Grid("b", 500, 300, 100, 20, 0.5).tile(1, 2)
    uri = "https://host/b.tif?X-Amz-Signature=abc"
    items = [
        Quarantined("a", "a.tif", "scene", "SceneError: no raster"),
        Quarantined("b", uri, "read", f"ReadError: cannot read {uri}", f"Traceback\n  {uri}", 3, tile),
    ]
    path = write_quarantine(storage, "a run", items)
    assert path == quarantine_path("a run")
    table = pq.read_table(tmp_path / path)
    assert table.schema.equals(QUARANTINE)
    scene, row = table.to_pylist()
    assert (scene["row"], scene["col"], scene["window"]) == (None, None, None)
    assert (row["row"], row["col"], row["stage"], row["tries"]) == (1, 2, "read", 3)
    w = tile.window
    assert row["window"] == {k: 2 * getattr(w, k) for k in ("col_off", "row_off", "width", "height")}, "scene pixels"
    assert "abc" not in str(row)
    assert "https://host/b.tif" in row["error"]
    assert read_quarantine(storage, "a run").equals(table)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read https://h/a.tif?sig=secret: 403", "cannot read https://h/a.tif 403"),
        ("see 'https://user:secret@h/a.tif'", "see 'https://h/a.tif'"),
        ("s3://bucket/a.tif and /data/b.tif?", "s3://bucket/a.tif and /data/b.tif?"),
        ("two: http://a/x?k=secret http://b/y?k=secret", "two: http://a/x http://b/y"),
        ("why? mail@host", "why? mail@host"),
    ],
)
def test_no_secret_stays_in_a_text(text: str, shown: str) -> None:
    assert redact_text(text) == shown
