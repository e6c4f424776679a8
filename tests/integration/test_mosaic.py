"""Laws of mosaics: a scene cut into sheets gives what the scene in one file gives, to the last id and vertex."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import rasterio

from segworker import engine
from segworker.config_load import from_flat
from segworker.synthetic.paint import paint_bands, write_raster
from segworker.synthetic.scenes import make_scene
from segworker.types import Window
from tests.painted import PERFECT, features, of_scene, scenes, segment
from tests.sheets import PLACE, UTM, lattice, write_sheets

pytestmark = pytest.mark.usefixtures("local_ray")

HEIGHT, WIDTH = 700, 820
GRID = {"tile": 128, "overlap": 32}
SAME = ["feature_id", "class_id", "score", "area_px", "area_m2", "centroid_x", "centroid_y", "bbox", "seam", "geometry"]


@pytest.fixture(scope="module")
def bands() -> np.ndarray:
    """Streets over the whole scene, and fields: objects that cross many sheets."""
    scene = make_scene("roads", (HEIGHT, WIDTH), 3)
    return paint_bands(scene.labels_HW, scene.class_ids[scene.labels_HW])


@pytest.fixture(scope="module")
def whole(bands: np.ndarray, tmp_path_factory: pytest.TempPathFactory):
    """Features of the scene in one file."""
    folder = tmp_path_factory.mktemp("one")
    write_raster(folder / "one.tif", bands, crs=UTM, transform=PLACE)
    assert segment(folder / "store", folder / "one.tif", **GRID).exit_code == 0
    found = features(folder / "store")
    assert set(found["seam"].to_pylist()) == {"merged", "none"}
    return found.select(SAME)


def sheet_list(store: Path, record: dict, scene_id: str) -> list[dict[str, str]]:
    return list(csv.DictReader((store / record["mosaics"][scene_id]["list"]).read_text().splitlines()))


def shrouded(folder: Path, bands: np.ndarray) -> list[Path]:
    """Overlapping sheets of which the upper ones hide nothing: beyond their own lattice cell they are masked, or say
    nodata, or are transparent, with rubbish below."""
    windows = lattice(WIDTH, HEIGHT, 200, overlap=60)
    paths = []
    for k, (window, cell) in enumerate(zip(windows, lattice(WIDTH, HEIGHT, 200), strict=True)):
        own = cell.slices_in(window)
        inside = np.zeros(window.shape_yx, bool)
        inside[own] = True
        cut = bands[:, *window.slices_in(Window(0, 0, WIDTH, HEIGHT))].copy()
        extra: dict = {}
        if k % 3 == 0:
            cut[:, ~inside], extra = 4000, {"nodata": 4000}
        elif k % 3 == 1:
            cut[:, ~inside] = 77
        else:
            cut[:, ~inside] = 5
            cut = np.concatenate([cut, np.where(inside, 65535, 0).astype(cut.dtype)[None]])
        place = PLACE @ rasterio.Affine.translation(window.col_off, window.row_off)
        paths.append(write_raster(folder / f"{k:03d}.tif", cut, crs=UTM, transform=place, **extra))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(paths[-1], "r+") as dataset:
            if k % 3 == 1:
                dataset.write_mask(inside)
            elif k % 3 == 2:
                dataset.colorinterp = [*dataset.colorinterp[:3], rasterio.enums.ColorInterp.alpha]
    return paths


@pytest.mark.parametrize("layout", ["adjoining", "overlapping", "shrouded", "many"])
def test_sheets_give_what_the_whole_gives(layout: str, bands: np.ndarray, whole, tmp_path: Path) -> None:
    sheets = tmp_path / "sheets"
    sheets.mkdir()
    if layout == "shrouded":
        paths = shrouded(sheets, bands)
    else:
        side, overlap = {"adjoining": (300, 0), "overlapping": (150, 41), "many": (50, 0)}[layout]
        paths = write_sheets(sheets, bands, lattice(WIDTH, HEIGHT, side, overlap=overlap))
    assert layout != "many" or len(paths) > 200
    inputs = random.Random(4).sample(paths, len(paths)) if layout != "many" else [sheets]
    summary = segment(tmp_path / "store", *inputs, mosaic=True, overview=1, **GRID)
    assert summary.exit_code == 0, summary.text
    found = features(tmp_path / "store")
    assert found.select(SAME).equals(whole)
    assert set(found["scene_id"].to_pylist()) == {"sheets"}
    record = summary.record
    assert record["counts"]["scenes"] == 1
    assert record["mosaics"]["sheets"]["sheets"] == len(paths)
    assert f"1 of {len(paths)} sheets" in summary.text
    listed = sheet_list(tmp_path / "store", record, "sheets")
    assert {row["uri"] for row in listed} == {str(path) for path in paths}
    assert {row["state"] for row in listed} == {"read"}
    row = scenes(tmp_path / "store")["sheets"]
    assert (row["width"], row["height"], row["uri"]) == (WIDTH, HEIGHT, f"{sheets}/")
    assert len(record["outputs"]["overviews"]) == 1


def test_a_missing_and_a_broken_sheet_are_nodata(bands: np.ndarray, tmp_path: Path) -> None:
    windows = lattice(WIDTH, HEIGHT, 180)
    missing, broken = 7, 13
    holes = bands.copy()
    for k in (missing, broken):
        holes[:, *windows[k].slices_in(Window(0, 0, WIDTH, HEIGHT))] = 999
    local = rasterio.Affine(1, 0, 0, 0, -1, 0)
    write_raster(tmp_path / "one.tif", holes, nodata=999)
    paths = write_sheets(tmp_path / "farm", bands, windows, crs=None, transform=local)
    paths[missing].unlink()
    paths[broken].write_bytes(b"this was a TIFF once")
    assert segment(tmp_path / "plain", tmp_path / "one.tif", **GRID).exit_code == 0
    options = {"mosaic_id": "north-field", **GRID}
    summary = segment(tmp_path / "store", tmp_path / "farm", **options)
    assert summary.exit_code == 3
    columns = [name for name in SAME if name != "area_m2"]
    assert features(tmp_path / "store").select(columns).equals(features(tmp_path / "plain").select(columns))
    assert set(scenes(tmp_path / "store")) == {"north-field"}
    counts = summary.record["counts"]
    assert (counts["failed_scenes"], counts["failed_sheets"], counts["tiles_failed"]) == (0, 1, 0)
    assert counts["tiles_skipped"] > 0, "no tile is read where no sheet is"
    assert "not recognized" in summary.record["failed_sheets"][0]["error"]
    assert str(paths[broken]) in summary.text
    listed = sheet_list(tmp_path / "store", summary.record, "north-field")
    assert [row["uri"] for row in listed if row["state"] == "failed"] == [str(paths[broken])]
    assert segment(tmp_path / "store", tmp_path / "farm", **options, partial_ok=True).exit_code == 0


def test_only_blocks_that_see_a_changed_sheet_are_predicted_again(bands: np.ndarray, tmp_path: Path) -> None:
    grid = {"tile": 24, "overlap": 8}  # several blocks
    width, height = 620, 400
    bands = bands[:, :height, :width]
    windows = lattice(width, height, 155)
    paths = write_sheets(tmp_path / "farm", bands, windows)
    late = [path for path, w in zip(paths, windows, strict=True) if w.col_end == width]
    kept = [path.rename(tmp_path / path.name) for path in late]

    def run() -> dict:
        summary = segment(tmp_path / "store", tmp_path / "farm", mosaic=True, **grid)
        assert summary.exit_code == 0, summary.text
        return summary.record["counts"]

    first = run()
    assert run()["tiles_predicted"] == 0
    before = paths[0].read_bytes()
    with rasterio.open(paths[0], "r+") as dataset:
        dataset.write(np.rot90(dataset.read(), 2, (1, 2)))
    changed = run()
    assert 0 < changed["tiles_predicted"] < first["tiles"] / 2
    assert changed["tiles_predicted"] + changed["tiles_reused"] == first["tiles"]
    paths[0].write_bytes(before)
    for path in kept:
        path.rename(tmp_path / "farm" / path.name)
    added = run()
    assert added["tiles"] > first["tiles"]
    assert added["tiles_reused"] > 0, "the blocks that see nothing of what was added"
    write_raster(tmp_path / "one.tif", bands, crs=UTM, transform=PLACE)
    assert segment(tmp_path / "one", tmp_path / "one.tif", **grid).exit_code == 0
    found, fresh = (features(tmp_path / name).select(SAME) for name in ("store", "one"))
    assert found.equals(fresh), "what is used again is what would be found anew"


def test_farms_of_a_manifest_on_s3(s3, bucket: str, bands: np.ndarray, whole, tmp_path: Path) -> None:
    east = write_sheets(tmp_path / "east", bands, lattice(WIDTH, HEIGHT, 410))
    west = write_sheets(tmp_path / "west", bands[:, :200, :300], lattice(300, 200, 150))
    lines = ["uri,scene_id,mosaic"]
    for farm, paths in (("east", east), ("west", west)):
        for path in paths:
            s3.client().upload_file(str(path), bucket, f"in/{farm}/{path.name}")
            lines.append(f"{farm}/{path.name},,{farm}-farm")
    lines.append("west/sheet_000.tif,corner,")
    s3.client().put_object(Bucket=bucket, Key="in/list.csv", Body="\n".join(lines).encode())
    store = f"s3://{bucket}/store"
    summary = segment(store, manifest=f"s3://{bucket}/in/list.csv", **GRID)
    assert summary.exit_code == 0, summary.text
    rows = scenes(store)
    assert {name: row["uri"] for name, row in rows.items()} == {
        "east-farm": f"s3://{bucket}/in/east/",
        "west-farm": f"s3://{bucket}/in/west/",
        "corner": f"s3://{bucket}/in/west/sheet_000.tif",
    }
    assert rows["east-farm"]["etag"]
    columns = [name for name in SAME if name != "feature_id"]
    assert of_scene(features(store), "east-farm").select(columns).equals(whole.select(columns))


def test_a_plan_tells_of_sheets(bands: np.ndarray, tmp_path: Path) -> None:
    paths = write_sheets(tmp_path / "farm", bands, lattice(WIDTH, HEIGHT, 300))
    paths[-1].write_bytes(b"nothing")
    plan = engine.plan(
        from_flat(scenes=[str(tmp_path / "farm")], output=str(tmp_path / "store"), model=PERFECT, mosaic=True, **GRID)
    )
    assert f"farm: {WIDTH} x {HEIGHT} px" in plan.text
    assert f"{len(paths) - 1} sheets" in plan.text
    assert f"cannot    {paths[-1]} of farm" in plan.text
    assert (plan.record["scenes"], plan.record["failed_scenes"], plan.record["failed_sheets"]) == (1, 0, 1)
    assert not (tmp_path / "store").exists()
