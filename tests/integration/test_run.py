"""What a run does besides finding objects: nothing twice, only what was asked for, and it says what it did."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from PIL import Image

from segworker import cli
from segworker.report.overview import COLOURS
from segworker.synthetic.paint import paint_bands, paint_scene, write_raster
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.truth import TruthScene
from tests.painted import SCORED, assert_is_truth, features, of_scene, scenes, segment, shapes

pytestmark = pytest.mark.usefixtures("local_ray")

UTM = "EPSG:32636"
PIXEL_M = 0.5
GRID = {"tile": 128, "overlap": 32, "model": SCORED}


def place(column: int) -> rasterio.Affine:
    return rasterio.Affine(PIXEL_M, 0, 400_000 + 1000 * column, 0, -PIXEL_M, 30_000)


@pytest.fixture(scope="module")
def truth() -> dict[str, TruthScene]:
    return {name: make_scene("aerial", (280, 300), seed) for seed, name in enumerate(("a", "b", "c"))}


@pytest.fixture(scope="module")
def folder(truth: dict[str, TruthScene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for k, (name, scene) in enumerate(truth.items()):
        paint_scene(scene, folder / f"{name}.tif", crs=UTM, transform=place(k))
    return folder


@pytest.fixture(scope="module")
def first(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A store with one run of three scenes in it, and that run's record."""
    store = tmp_path_factory.mktemp("run") / "store"
    summary = segment(store, folder, overview=2, name="nightly", notes="as every night", **GRID)
    assert summary.exit_code == 0, summary.text
    return store, summary.record


def counts_by_class(truth: dict[str, TruthScene]) -> dict[str, int]:
    found = Counter(c for scene in truth.values() for c in scene.class_ids[1:].tolist())
    return {f"class {c}": n for c, n in sorted(found.items())}


def areas_px(truth: dict[str, TruthScene]) -> np.ndarray:
    return np.concatenate([np.bincount(s.labels_HW.ravel())[1:] for s in truth.values()])


# -- the report ------------------------------------------------------------------------------------------------------


def test_a_run_writes_its_report_and_names_it(first) -> None:
    store, record = first
    path = record["outputs"]["report"]
    assert json.loads((store / f"runs/{record['run_id']}/run.json").read_text())["outputs"]["report"] == path
    html = (store / path).read_text()
    assert f"Run {record['run_id']} (nightly)" in html
    assert "tiles of 128 px that overlap by 32 px" in html
    for name, count in record["counts"]["features_by_class"].items():
        assert f"<title>{name}: {count:,}</title>" in html
    num_joined = sum(n for kind, n in record["seams"]["features"].items() if kind in ("merged", "cut"))
    assert html.count('alt="joined over a seam') + html.count('alt="cut at a seam') == min(12, num_joined)
    assert "overview/a.png" in html


def test_a_report_that_fails_is_logged_and_the_run_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no report today")

    monkeypatch.setattr(sys.modules["segworker.engine.run"], "gather", fails)
    summary = segment(tmp_path / "store", folder / "a.tif", **GRID)
    assert summary.exit_code == 0
    assert summary.record["outputs"]["report"] is None
    assert len(features(tmp_path / "store")) == summary.record["counts"]["features"] > 0
    assert "no report today" in caplog.text
    assert "\nreport " not in summary.text


# -- nothing twice --------------------------------------------------------------------------------------------------


def test_running_twice_leaves_one_version_and_predicts_nothing(first, folder: Path, truth) -> None:
    store, record = first
    before = features(store)
    again = segment(store, folder, **GRID).record
    after = features(store)
    assert len(scenes(store)) == len(truth)
    assert record["counts"]["tiles_predicted"] == record["counts"]["tiles"] == again["counts"]["tiles_reused"]
    assert again["counts"]["tiles_predicted"] == again["counts"]["bytes_read"] == 0
    assert set(after["run_id"].to_pylist()) == {again["run_id"]} != {record["run_id"]}
    assert after.drop_columns("run_id").equals(before.drop_columns("run_id")), "the same ids too"
    assert again["table_version"] > record["table_version"]


def test_a_changed_tile_is_predicted_anew(first, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, _ = first
    before = features(store)
    with caplog.at_level("INFO", "segworker"):
        changed = segment(store, folder, **(GRID | {"tile": 96})).record
    assert "tile results of earlier runs with other settings are not used: tile (128, now 96)" in caplog.text
    assert changed["counts"]["tiles_reused"] == 0
    assert changed["counts"]["tiles_predicted"] == changed["counts"]["tiles"] > 0
    assert features(store)["geometry"].equals(before["geometry"])


def test_a_changed_file_is_predicted_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    old, new = make_scene("nuclei", 100, 1), make_scene("nuclei", 100, 2)
    paint_scene(old, path)
    segment(tmp_path / "store", path, tile=64, overlap=24)
    assert_is_truth(features(tmp_path / "store"), old)
    paint_scene(new, path)
    os.utime(path, (1e9, 1e9))
    changed = segment(tmp_path / "store", path, tile=64, overlap=24).record
    assert changed["counts"]["tiles_reused"] == 0
    assert_is_truth(features(tmp_path / "store"), new)
    assert len(scenes(tmp_path / "store")) == 1


def test_a_run_of_some_scenes_leaves_the_others(first, folder: Path, truth) -> None:
    store, _ = first
    segment(store, folder, **GRID)
    before = features(store)
    alone = segment(store, folder / "b.tif", min_score=0.25, **GRID).record
    after = features(store)
    assert set(scenes(store)) == set(truth)
    for name in ("a", "c"):
        assert of_scene(after, name).equals(of_scene(before, name))
    assert set(of_scene(after, "b")["run_id"].to_pylist()) == {alone["run_id"]}
    assert len(of_scene(after, "b")) == int((truth["b"].class_ids[1:] >= 3).sum())


# -- only what was asked for ------------------------------------------------------------------------------------------

FILTERS = {
    "a score": ({"min_score": 0.15}, lambda c, _px: c >= 2),
    "a score of one class": ({"min_score": 0.15, "class_min_score": {"class 1": 0.05}}, lambda c, _px: c >= 1),
    "a higher score of one class": ({"class_min_score": {"class 2": 0.5}}, lambda c, _px: c != 2),
    "classes": ({"classes": ["class 1", "class 3"]}, lambda c, _px: c != 2),
    "an area in pixels": ({"min_area": "150px", "max_area": "900px"}, lambda _c, px: (px >= 150) & (px <= 900)),
}


@pytest.mark.parametrize("name", FILTERS)
def test_thresholds_need_no_prediction(first, folder: Path, truth, name: str) -> None:
    store, _ = first
    options, kept = FILTERS[name]
    classes = np.concatenate([s.class_ids[1:] for s in truth.values()])
    areas = areas_px(truth)
    wanted = kept(classes, areas)
    assert wanted.sum() > 0
    record = segment(store, folder, **GRID, **options).record
    assert record["counts"]["tiles_predicted"] == 0
    rows = features(store)
    assert sorted(zip(rows["class_id"].to_pylist(), rows["area_px"].to_pylist(), strict=True)) == sorted(
        zip(classes[wanted].tolist(), areas[wanted].tolist(), strict=True)
    )
    ids = [
        a["id"] for path in record["outputs"]["coco"] for a in json.loads((store / path).read_bytes())["annotations"]
    ]
    assert sorted(ids) == rows["feature_id"].to_pylist()


def test_areas_in_square_metres(first, folder: Path) -> None:
    store, _ = first
    segment(store, folder, **GRID)
    every = features(store)["area_m2"].to_numpy()
    low, high = np.quantile(every, [0.3, 0.8])
    record = segment(store, folder, min_area=f"{low}m2", max_area=f"{high}m2", **GRID).record
    found = features(store)["area_m2"].to_numpy()
    assert np.array_equal(np.sort(found), np.sort(every[(every >= low) & (every <= high)]))
    assert record["counts"]["tiles_predicted"] == 0


def test_an_area_of_interest_in_another_crs(first, folder: Path, tmp_path: Path) -> None:
    """A triangle in longitudes and latitudes, drawn in the corner of scene b."""
    store, _ = first
    segment(store, folder, **GRID)
    before = features(store)
    transform = place(1)
    corners = [transform @ (0, 0), transform @ (110, 0), transform @ (0, 90)]
    lon, lat = pyproj.Transformer.from_crs(UTM, "OGC:CRS84", always_xy=True).transform(*zip(*corners, strict=True))
    aoi = tmp_path / "farm.geojson"
    ring = [*zip(lon, lat, strict=True)]
    aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [[*ring, ring[0]]]}))
    record = segment(tmp_path / "store", folder, aoi=str(aoi), **GRID).record
    rows = features(tmp_path / "store")
    inside = shapely.intersects(shapes(before), shapely.Polygon(corners))
    assert 0 < inside.sum() < len(before) / 3
    assert (
        rows["feature_id"].to_pylist() == before.filter(inside)["feature_id"].to_pylist() or len(rows) == inside.sum()
    )
    assert sorted(rows["geometry"].to_pylist()) == sorted(before.filter(inside)["geometry"].to_pylist())
    assert record["counts"]["tiles_skipped"] > record["counts"]["tiles_predicted"] > 0


def test_bands_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    truth = make_scene("aerial", (150, 140), 6)
    bands = paint_bands(truth.labels_HW, truth.class_ids[truth.labels_HW])
    noise = np.random.default_rng(0).integers(0, 2**16, bands[:1].shape, np.uint16)
    write_raster(tmp_path / "mixed.tif", np.concatenate([noise, bands[2:], bands[:1], bands[1:2]]))
    segment(tmp_path / "store", tmp_path / "mixed.tif", bands="3,4,2", tile=96, overlap=24)
    assert_is_truth(features(tmp_path / "store"), truth)


# -- many small scenes ------------------------------------------------------------------------------------------------


def test_many_small_pictures_share_files(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    labels = np.zeros((20, 24), np.int32)
    labels[2:9, 3:12], labels[11:18, 5:20] = 1, 2
    bands = paint_bands(labels, layout="rgb")
    for k in range(300):
        write_raster(pictures / f"{k:04d}.png", np.roll(bands, k % 5, axis=2))
    store = tmp_path / "store"
    summary = segment(store, pictures, model="segworker.synthetic.models:perfect_rgb", overview=3, tile=64, overlap=16)
    assert summary.exit_code == 0, summary.text
    counts = summary.record["counts"]
    assert counts["scenes"] == counts["tiles"] == 300
    assert counts["features"] == 600
    assert counts["parts"] == counts["coco_files"] == 1
    assert len(list((store / "features").glob("*.parquet"))) == 1
    assert len(summary.record["outputs"]["overviews"]) == 3
    assert sum(path.is_file() for path in store.rglob("*")) < 50, "nothing grows with the number of small scenes"
    assert len({row["scene_no"] for row in scenes(store).values()}) == 300


# -- what it says of itself ------------------------------------------------------------------------------------------


def test_the_record_tells_what_was_done(first, truth, folder: Path) -> None:
    store, record = first
    on_disk = json.loads((store / "runs" / record["run_id"] / "run.json").read_text())
    assert on_disk == json.loads(json.dumps(record))
    assert (on_disk["exit_code"], on_disk["name"], on_disk["notes"]) == (0, "nightly", "as every night")
    counts = on_disk["counts"]
    assert counts["features_by_class"] == counts_by_class(truth)
    assert counts["features"] == sum(s.num_objects for s in truth.values())
    assert (counts["scenes"], counts["failed_scenes"], counts["tiles_failed"]) == (3, 0, 0)
    assert on_disk["configuration"]["grid"] | {"tile": 128, "overlap": 32} == on_disk["configuration"]["grid"]
    assert on_disk["configuration"]["inputs"]["scenes"] == [str(folder)]
    assert {"total", "predict", "stitch", "commit"} <= set(on_disk["seconds"])
    assert {"ray", "torch", "python", "segworker"} <= set(on_disk["versions"])
    assert on_disk["seams"]["agreement"] == 1.0
    assert on_disk["throughput"]["tiles_per_s"] > 0
    for path in [*on_disk["outputs"]["parts"], *on_disk["outputs"]["coco"], *on_disk["outputs"]["overviews"]]:
        assert (store / path).is_file()


def test_overviews_show_the_outlines(first, truth) -> None:
    store, record = first
    assert [Path(path).stem for path in record["outputs"]["overviews"]] == ["a", "b"]
    rgb = {tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5)) for colour in COLOURS}
    for path in record["outputs"]["overviews"]:
        scene = truth[Path(path).stem]
        picture = np.asarray(Image.open(store / path).convert("RGB"))
        height, width = scene.labels_HW.shape
        scale = picture.shape[1] / width
        assert picture.shape[0] == round(height * scale)
        coloured = np.zeros(picture.shape[:2], bool)
        for colour in rgb:
            coloured |= (picture == colour).all(axis=2)
        for class_id in np.unique(scene.class_ids[1:]).tolist():
            colour = COLOURS[class_id - 1]
            wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
            assert (picture == wanted).all(axis=2).any(), f"class {class_id} is drawn in {colour}"
        assert _near_outlines(scene, coloured, scale) > 0.95
        assert coloured.mean() < 0.5, "outlines, not fillings"


def _near_outlines(scene: TruthScene, coloured: np.ndarray, scale: float) -> float:
    """Return the share of an object's rim pixels that have a coloured pixel of the picture beside them."""
    labels = scene.labels_HW
    rim = np.zeros(labels.shape, bool)
    rim[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    rows, cols = np.nonzero(rim)
    hits = [coloured[int(r * scale) : int((r + 1) * scale) + 1, max(0, int(c * scale) - 2) : int(c * scale) + 3].any()
            for r, c in zip(rows.tolist(), cols.tolist(), strict=True)]  # fmt: skip
    return float(np.mean(hits))


def test_a_plan_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = np.zeros((3, 256, 256), np.uint16)
    half[:, :, :128] = 5
    write_raster(tmp_path / "half.tif", half, crs=UTM, transform=place(5), nodata=0)
    store = tmp_path / "new" / "store"
    arguments = [str(folder), str(tmp_path / "half.tif"), "--output", str(store), "--tile", "128", "--overlap", "32"]
    assert cli.main(["run", *arguments, "--model", SCORED, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert not store.parent.exists()
    assert "300 x 280 px, 3 x uint16, EPSG:32636" in text
    assert "0.5 m/px" in text
    assert "9 tiles" in text
    assert "36 in " in text, "tiles of all scenes"
    assert "50% nodata" in text
    assert str(store) in text
    assert "GB for the tiles of one worker" in text


def test_simplified_outlines_stay_where_they_were(first, folder: Path) -> None:
    store, _ = first
    segment(store, folder, **GRID)
    before = shapes(features(store))
    segment(store, folder, simplify=1.5, **GRID)
    after = shapes(features(store))
    assert shapely.get_num_coordinates(after).sum() < 0.7 * shapely.get_num_coordinates(before).sum()
    assert (shapely.hausdorff_distance(before, after) < 3 * PIXEL_M).all()
