"""The report of a run: what it shows is what was committed, and nothing makes it large or dangerous."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segworker.io.storage import open_storage
from segworker.report import finds
from segworker.report.crops import Cropper
from segworker.report.page import render
from segworker.report.run_page import run_page
from segworker.report.run_report import MAX_PICTURE_BYTES, report_path, write_report
from segworker.synthetic.paint import write_raster
from tests.report_store import CUT, HOSTILE, HUGE, NUM, RUN, found, make_store, record_of

MAGENTA = (255, 43, 214)


@pytest.fixture(params=[True, False], ids=["map", "pixels"])
def findings(request: pytest.FixtureRequest, tmp_path: Path):
    return found(*make_store(tmp_path, on_map=request.param))


def index_of(suspect: finds.Suspect) -> int:
    return suspect.feature_id & (2**32 - 1)


def picture_in(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_cut_object_and_the_huge_one_are_named(findings) -> None:
    looked = findings.finds
    assert [index_of(s) for s in looked.seams] == [CUT]
    assert looked.seams[0].reason == "cut at a seam"
    huge = next(s for s in looked.suspects if index_of(s) == HUGE)
    assert huge.reason.endswith("times the median area of its class")
    low = [s for s in looked.suspects if s.reason.startswith("large for so low")]
    assert not {CUT, HUGE} & {index_of(s) for s in low}, "each object once"
    assert [s.score for s in low] == sorted(s.score for s in low), "of objects of one size the lowest scores first"


def test_figures_of_classes_are_those_of_the_objects(tmp_path: Path) -> None:
    looked = found(*make_store(tmp_path)).finds
    assert {name: f.count for name, f in looked.classes.items()} == {"house": NUM // 2, HOSTILE: NUM // 2}
    assert looked.num_rows == NUM
    assert looked.area_column() == "area_px"  # the store of this test has no other areas
    total = looked.all_classes()
    assert total.seams == {"cut": 1, "none": NUM - 1}
    assert total.scores.sum() == NUM
    assert total.score_sum / NUM == pytest.approx((0.95 + 0.4) / 2, abs=1e-6)
    assert total.quantile("area_px", 0.5) == pytest.approx(144, rel=0.07)
    assert total.quantile("area_px", 1.0) == pytest.approx(3600, rel=0.07)
    assert total.quantile("area_m2", 0.5) is None


@pytest.mark.parametrize("on_map", [True, False])
def test_a_crop_shows_the_object_where_it_is(tmp_path: Path, *, on_map: bool) -> None:
    storage, scene, grid = make_store(tmp_path, on_map=on_map)
    looked = found(storage, scene, grid)
    cropper = Cropper(storage, _files(storage), _table_crs(scene))
    huge = next(s for s in looked.finds.suspects if index_of(s) == HUGE)
    image = np.asarray(cropper.crop(huge, scene, grid))
    rows, cols = np.nonzero((image == MAGENTA).all(axis=-1))
    zoom = image.shape[0] // 102  # the window is 1.7 times the object's 60 px
    assert (rows.max() - rows.min()) / zoom == pytest.approx(60, abs=2)
    assert (cols.max() - cols.min()) / zoom == pytest.approx(60, abs=2)
    middle = image[(rows.min() + rows.max()) // 2, (cols.min() + cols.max()) // 2]
    assert middle.tolist() == [200, 200, 200], "the scene's own pixels are inside"


def test_crops_of_a_scene_that_is_gone_are_outlines(tmp_path: Path) -> None:
    storage, scene, grid = make_store(tmp_path)
    looked = found(storage, scene, grid).finds
    Path(scene.uri).unlink()
    image = np.asarray(Cropper(storage, _files(storage), _table_crs(scene)).crop(looked.seams[0], scene, grid))
    assert (image == MAGENTA).all(axis=-1).any()
    assert (image == 90).all(axis=-1).mean() > 0.5


def test_a_crop_reads_its_window_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segworker.io.raster import SceneReader

    storage, scene, grid = make_store(tmp_path)
    looked = found(storage, scene, grid).finds
    read: list[int] = []
    original = SceneReader.read_window
    monkeypatch.setattr(
        SceneReader, "read_window", lambda self, window: (read.append(window.area_px), original(self, window))[1]
    )
    Cropper(storage, _files(storage), _table_crs(scene)).crop(looked.seams[0], scene, grid)
    assert read == [48 * 48]


def test_failed_tiles_are_red_on_the_overview(tmp_path: Path) -> None:
    storage, scene, grid = make_store(tmp_path)
    found(storage, scene, grid)
    with Image.open(io.BytesIO(storage.read(f"runs/{RUN}/overview/s.png"))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    core, scale = grid.tile(0, 1).core, pixels.shape[1] / scene.width
    inside = pixels[5, round((core.col_off + core.col_end) / 2 * scale)]
    outside = pixels[5, round((core.col_off - 20) * scale)]
    assert inside[0] - inside[2] > 60 > abs(outside[0] - outside[2])


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    html = render(run_page(record_of(), found(*make_store(tmp_path))))
    assert HOSTILE not in html
    assert "<script" not in html
    assert "onerror=alert(2)&gt;" in html
    assert "{{ 7*7 }}" in html, "a name is no template"
    assert "default-src 'none'" in html
    assert not re.search(r'(?:src|href)="(?!data:|#|overview/s\.png")', html), "nothing is loaded from elsewhere"


def test_what_failed_and_what_it_cost_is_told(tmp_path: Path) -> None:
    shown = found(*make_store(tmp_path))
    html = render(run_page(record_of(), shown))
    for told in ("row 0, column 1", f"segworker retry {RUN}", "1.50 EUR", "1 h 1 min", "+9.00%"):
        assert told in html
    record = record_of()
    record["outputs"]["quarantine"] = None
    assert "Tiles in quarantine" not in render(run_page(record, shown))


def test_the_page_is_bounded(tmp_path: Path) -> None:
    """Pictures of noise compress badly, names are long, classes and failures are many."""
    storage, scene, grid = make_store(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (3, 240, 320), dtype=np.uint8)
    write_raster(Path(scene.uri), noise)
    limit = 200_000
    shown = found(storage, scene, grid, max_picture_bytes=limit)
    pictures = [*shown.overviews, *shown.seams, *shown.suspects]
    assert 0 < sum(len(p.uri) for p in pictures) <= limit
    assert len(shown.seams) + len(shown.suspects) < len(shown.finds.seams) + len(shown.finds.suspects)
    record = record_of()
    names = [f"{k}" * 2000 for k in range(10_000, 12_000)]
    record["counts"]["features_by_class"] = dict.fromkeys(names, 1)
    record["seams"]["by_class"] = dict.fromkeys(names, record["seams"]["by_class"]["house"])
    record["failed_tiles"] = [{**record["failed_tiles"][0], "error": "e" * 10_000}] * 1000
    record["outputs"]["coco"] = [f"runs/{RUN}/coco/instances-{k}.json" for k in range(100_000)]
    html = render(run_page(record, shown))
    assert len(html.encode()) < limit + 600_000 < 10 * 2**20 - MAX_PICTURE_BYTES


def test_a_look_ends_at_its_limit_and_says_so(tmp_path: Path) -> None:
    storage, scene, grid = make_store(tmp_path)
    looked = finds.look(storage, _files(storage), RUN, count=4, max_rows=10)
    assert looked.num_rows == 10
    shown = found(storage, scene, grid)
    shown.finds.num_rows = 10
    assert "10 of 30 objects" in render(run_page(record_of(), shown))


def test_rows_of_other_runs_are_not_looked_at(tmp_path: Path) -> None:
    storage, *_ = make_store(tmp_path)
    assert finds.look(storage, _files(storage), "another", count=4).num_rows == 0


def test_a_report_is_written_where_it_is_looked_for(tmp_path: Path) -> None:
    storage, scene, grid = make_store(tmp_path)
    path = write_report(storage, record_of(), found(storage, scene, grid))
    assert path == report_path(RUN) == f"runs/{RUN}/report.html"
    assert open_storage(tmp_path / "store").read(path).startswith(b"<!doctype html>")


def _files(storage):
    from segworker.io.table import live_files

    return live_files(storage)


def _table_crs(scene):
    from segworker.io.table_crs import TableCrs

    return TableCrs.of(scene.crs)
