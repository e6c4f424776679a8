"""Mosaics: sheets in their places, read as an independent tool merges them, refused where they do not go together."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.merge import merge
from rasterio.warp import transform_bounds

from segworker.blocks import Block, SceneGrid, plan_blocks
from segworker.config_values import ValueRange
from segworker.errors import ConfigError, ReadError, SceneError
from segworker.grid import Grid
from segworker.io.header import REGRIDDED, Limits
from segworker.io.raster import SceneReader
from segworker.io.scaling import valid_share, value_range
from segworker.sheets import SheetIndex
from segworker.sources import ScenePlan, find_scenes, scene_identity
from segworker.sources.mosaic import MosaicOptions
from segworker.synthetic.paint import write_raster
from segworker.types import InputSpec, Scene, Window
from tests.sheets import PLACE, UTM, lattice, write_sheets

MOSAIC = MosaicOptions(all_inputs=True)
HEIGHT, WIDTH = 192, 256


@pytest.fixture
def bands() -> np.ndarray:
    """Three bands of which no two pixels are alike, and none is 0."""
    values = np.arange(1, HEIGHT * WIDTH + 1, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    return np.stack([values, values[::-1], values[:, ::-1]])


def found(*inputs: Path | str, options: MosaicOptions = MOSAIC, **more) -> Scene:
    plan = find_scenes([str(path) for path in inputs], mosaic=options, **more)
    assert not plan.failures, plan.failures
    assert len(plan.scenes) == 1
    return plan.scenes[0]


def refusal(plan: ScenePlan) -> str:
    assert not plan.scenes
    assert isinstance(plan.failures[0].error, SceneError)
    assert not plan.failures[0].is_sheet
    return str(plan.failures[0].error)


def read(scene: Scene, **options):
    with SceneReader(scene, **options) as reader:
        grid = Grid.of_scene(scene, tile_px=100, overlap_px=0, scale=reader.scale)
        return reader.read_window(Window(0, 0, grid.width, grid.height))


def squares(places: list[tuple[int, int]], side: int = 40, **profile) -> list[tuple[Window, np.ndarray, dict]]:
    """Sheets of one value each, 1, 2, 3 ..."""
    return [
        (Window(x, y, side, side), np.full((1, side, side), k + 1, np.uint8), profile)
        for k, (x, y) in enumerate(places)
    ]


def write(folder: Path, name: str, window: Window, bands: np.ndarray, transform=PLACE, crs=UTM, **profile) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    placed = transform @ rasterio.Affine.translation(window.col_off, window.row_off)
    return write_raster(folder / name, bands, crs=crs, transform=placed, **profile)


# -- places and pixels -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning:rasterio")
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning:affine")
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_overlapping_sheets_are_read_as_rasterio_merges_them(data: st.DataObject, tmp_path_factory) -> None:
    """Later names on top, each with a nodata value of its own, at any window."""
    folder = tmp_path_factory.mktemp("sheets")
    count = data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    paths = []
    for k in range(count):
        x, y = data.draw(st.integers(-30, 60)), data.draw(st.integers(-30, 60))
        width, height = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
        values = rng.integers(1, 5, (2, height, width), np.uint8)
        values[:, rng.random((height, width)) < 0.3] = 9
        paths.append(write(folder, f"{k}.tif", Window(x, y, width, height), values, nodata=9))
    scene = found(folder)
    datasets = [rasterio.open(path) for path in reversed(paths)]
    expected, transform = merge(datasets, nodata=9)
    for dataset in datasets:
        dataset.close()
    assert tuple(transform)[:6] == pytest.approx(scene.transform)
    assert (scene.height, scene.width) == expected.shape[1:]
    pixels, valid = read(scene)
    assert np.array_equal(valid, (expected != 9).any(axis=0))
    assert np.array_equal(pixels[:, valid], expected[:, valid])
    left, top = data.draw(st.integers(0, scene.width - 1)), data.draw(st.integers(0, scene.height - 1))
    window = Window(left, top, scene.width - left, math.ceil((scene.height - top) / 2))
    with SceneReader(scene) as reader:
        part, seen = reader.read_window(window)
    assert np.array_equal(part, pixels[:, *window.slices_in(scene.window)])
    assert np.array_equal(seen, valid[window.slices_in(scene.window)])


def test_all_bands_of_a_pixel_come_from_one_sheet(tmp_path: Path) -> None:
    """A band that happens to hold the nodata value does not let the sheet below shine through."""
    below, above = np.full((3, 20, 20), 50, np.uint8), np.full((3, 20, 20), 80, np.uint8)
    above[1] = 0
    write(tmp_path / "m", "a.tif", Window(0, 0, 20, 20), below, nodata=0)
    write(tmp_path / "m", "b.tif", Window(0, 0, 20, 20), above, nodata=0)
    pixels, valid = read(found(tmp_path / "m"))
    assert valid.all()
    assert pixels[:, 5, 5].tolist() == [80, 0, 80]


def test_gaps_masks_alpha_and_palettes(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    grey = np.full((1, 20, 20), 7, np.uint8)
    path = write(folder, "a.tif", Window(0, 0, 20, 20), grey, photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {7: (10, 20, 30, 255)})
    path = write(folder, "b.tif", Window(30, 0, 20, 20), np.repeat(grey, 4, axis=0))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        dataset.write(np.triu(np.full((20, 20), 255, np.uint8)), 4)
    path = write(folder, "c.tif", Window(10, 10, 20, 20), np.repeat(grey, 3, axis=0))
    mask = np.zeros((20, 20), bool)
    mask[:, 12:] = True
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    pixels, valid = read(found(folder), spec=InputSpec(num_bands=3))
    expected = np.zeros((30, 50), bool)
    expected[:20, :20] = True
    expected[:20, 30:] = np.triu(np.ones((20, 20), bool))
    expected[10:, 22:30] = True
    assert np.array_equal(valid, expected)
    assert pixels[:, 15, 15].tolist() == [10, 20, 30], "the palette's colours, under the masked part of another sheet"
    assert pixels[:, 15, 25].tolist() == [7, 7, 7]
    assert not pixels[:, ~valid].any()


@pytest.mark.parametrize("scale", [0.5, 0.3, 0.125, 1.7])
@pytest.mark.parametrize("overviews", [True, False])
def test_other_scales_are_those_of_one_file(bands: np.ndarray, tmp_path: Path, scale: float, overviews: bool) -> None:
    one = write_raster(tmp_path / "one.tif", bands, crs=UTM, transform=PLACE)
    paths = write_sheets(tmp_path / "m", bands, lattice(WIDTH, HEIGHT, 64))
    for path in [one, *paths] if overviews else []:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4], Resampling.average)
    scene = found(tmp_path / "m")
    assert scene.overviews == ((2, 4) if overviews else ())
    single = find_scenes([str(one)]).scenes[0]
    for image, twin in zip(read(scene, scale=scale), read(single, scale=scale), strict=True):
        assert np.array_equal(image, twin)


def test_overviews_that_do_not_meet_on_one_grid_are_not_used(bands: np.ndarray, tmp_path: Path) -> None:
    paths = write_sheets(tmp_path / "m", bands, lattice(WIDTH, HEIGHT, 66))
    for path in paths:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4], Resampling.average)
    assert found(tmp_path / "m").overviews == (2,)
    paths[3].unlink()
    write(tmp_path / "m", "plain.tif", Window(198, 0, 58, 66), bands[:, :66, 198:])
    assert found(tmp_path / "m").overviews == ()


def test_more_sheets_than_a_reader_holds_open(bands: np.ndarray, tmp_path: Path) -> None:
    paths = write_sheets(tmp_path / "m", bands, lattice(WIDTH, HEIGHT, 20))
    assert len(paths) > 100
    pixels, valid = read(found(tmp_path / "m"))
    assert valid.all()
    assert np.array_equal(pixels, bands)


# -- other grids -----------------------------------------------------------------------------------------------------


def waves(transform, width: int, height: int) -> np.ndarray:
    """A smooth picture of the ground, the same wherever it is sampled."""
    x, y = transform @ np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return (1000 + 400 * np.sin(x / 9) + 400 * np.cos(y / 11))[None].astype(np.uint16)


OTHER_GRIDS = {
    "shifted": PLACE @ rasterio.Affine.translation(60.4, 3.7),
    "finer": rasterio.Affine(0.3, 0, 400_030, 0, -0.3, 30_200),
    "south up": rasterio.Affine(0.5, 0, 400_030, 0, 0.5, 30_150),
    "rotated": rasterio.Affine(0.4, 0.3, 400_020, 0.3, -0.4, 30_170),
}


@pytest.mark.parametrize("name", OTHER_GRIDS)
@pytest.mark.parametrize("crs", [UTM, None])
def test_a_sheet_on_another_grid_is_resampled_to_that_of_the_most(name: str, crs: str | None, tmp_path: Path) -> None:
    other = OTHER_GRIDS[name]
    for k in range(3):
        place = PLACE @ rasterio.Affine.translation(0, 30 * k)
        write_raster(tmp_path / "m" / f"b{k}.tif", waves(place, 64, 30), crs=crs, transform=place) if k else write(
            tmp_path / "m", "b0.tif", Window(0, 0, 64, 30), waves(place, 64, 30), crs=crs
        )
    write_raster(tmp_path / "m" / "a.tif", waves(other, 90, 80), crs=crs, transform=other)
    scene = found(tmp_path / "m")
    assert [REGRIDDED in sheet.scene.options for sheet in scene.sheets] == [True, False, False, False]
    assert scene.transform[0] == PLACE.a
    pixels, valid = read(scene)
    expected = waves(rasterio.Affine(*scene.transform), scene.width, scene.height)
    assert np.abs(pixels[0][valid].astype(int) - expected[0][valid]).max() <= 12, "bilinear, of a smooth picture"
    cells = abs(other.determinant) / abs(PLACE.determinant) * 90 * 80
    alone = np.zeros_like(valid)
    for sheet in scene.sheets[1:]:
        alone[sheet.window.slices_in(scene.window)] = True
    assert valid[alone].all()
    assert 0.4 * cells < (valid & ~alone).sum() < 1.1 * cells
    first = scene.sheets[0].window
    assert valid[first.slices_in(scene.window)].any()
    _, seen = read(scene, scale=0.5)
    assert abs(seen.sum() * 4 - valid.sum()) < 0.06 * valid.sum()


def test_a_sheet_placed_by_ground_control_points(tmp_path: Path) -> None:
    for k in range(2):
        place = PLACE @ rasterio.Affine.translation(0, 60 * k)
        write(tmp_path / "m", f"b{k}.tif", Window(0, 60 * k, 80, 60), waves(place, 80, 60))
    place = PLACE @ rasterio.Affine.translation(80, 10)
    corners = [(0, 0), (0, 90), (70, 90), (70, 0)]
    points = [GroundControlPoint(row, col, *(place @ (col, row))) for row, col in corners]
    write_raster(tmp_path / "m" / "c.tif", waves(place, 90, 70), crs=UTM, gcps=points)
    scene = found(tmp_path / "m")
    assert scene.transform == tuple(PLACE)[:6]
    pixels, valid = read(scene)
    expected = waves(PLACE, scene.width, scene.height)
    inner = np.zeros_like(valid)
    inner[:120, :80] = True
    inner[12:78, 82:168] = True
    assert valid[inner].all()
    assert np.abs(pixels[0][inner].astype(int) - expected[0][inner]).max() <= 12


def test_sheets_of_another_crs_are_refused_or_warped_by_choice(tmp_path: Path) -> None:
    write(tmp_path / "m", "a.tif", Window(0, 0, 80, 60), waves(PLACE, 80, 60))
    write(tmp_path / "m", "b.tif", Window(0, 60, 80, 60), waves(PLACE @ rasterio.Affine.translation(0, 60), 80, 60))
    left, bottom, right, top = transform_bounds(UTM, "EPSG:32637", 400_040, 30_140, 400_080, 30_200)
    write_raster(
        tmp_path / "m" / "c.tif",
        np.full((1, 120, 80), 5000, np.uint16),
        crs="EPSG:32637",
        transform=rasterio.Affine((right - left) / 80, 0, left, 0, (bottom - top) / 120, top),
    )
    message = refusal(find_scenes([str(tmp_path / "m")], mosaic=MOSAIC))
    for part in ("EPSG:32636 in 2", "EPSG:32637 in 1", "c.tif", "--mosaic-crs"):
        assert part in message
    scene = found(tmp_path / "m", options=MosaicOptions(True, crs="EPSG:32636"))
    pixels, valid = read(scene)
    for sheet in scene.sheets[:2]:
        assert valid[sheet.window.slices_in(scene.window)].all()
        x, y = sheet.window.col_off, sheet.window.row_off
        assert rasterio.Affine(*scene.transform) @ (x, y) in (PLACE @ (0, 0), PLACE @ (0, 60))
    x, y = (int(v) for v in ~rasterio.Affine(*scene.transform) @ (400_060, 30_170))
    assert pixels[0, y, x] == 5000, "where it lies on the ground"
    assert "EPSG:32633" in refusal(find_scenes([str(tmp_path / "m")], mosaic=MosaicOptions(True, crs="EPSG:32633")))
    with pytest.raises(ConfigError, match="authority code"):
        find_scenes([str(tmp_path / "m")], mosaic=MosaicOptions(True, crs="not a CRS"))


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSED = {
    "dtype": ({"dtype": np.uint16}, "one dtype, got uint8 in 2"),
    "bands": ({"count": 4}, "one number of bands, got 1 bands in 2"),
    "place": ({"crs": None, "transform": rasterio.Affine.identity()}, "1 without a georeference"),
    "zoom": ({"transform": rasterio.Affine(5, 0, 400_000, 0, -5, 30_200)}, "by a factor of 4"),
    "far": ({"transform": rasterio.Affine(0.5, 0, 9_000_000, 0, -0.5, -9_000_000)}, "at most 100,000,000 pixels"),
    "no crs": ({"crs": None, "transform": PLACE}, "one CRS, got EPSG:32636 in 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    change, wanted = REFUSED[name]
    write_sheets(tmp_path / "m", np.ones((1, 20, 40), np.uint8), [Window(0, 0, 20, 20), Window(20, 0, 20, 20)])
    count, dtype = change.get("count", 1), change.get("dtype", np.uint8)
    write_raster(
        tmp_path / "m" / "odd.tif",
        np.ones((count, 30, 30), dtype),
        **{"crs": UTM, "transform": PLACE, **{k: v for k, v in change.items() if k in ("crs", "transform")}},
    )
    message = refusal(find_scenes([str(tmp_path / "m")], mosaic=MOSAIC, limits=Limits(scene_px=10**8)))
    assert wanted in message
    assert "; " in message


def test_sheets_that_store_values_in_other_ways_are_refused(tmp_path: Path) -> None:
    paths = write_sheets(tmp_path / "m", np.ones((1, 20, 40), np.uint8), [Window(0, 0, 20, 20), Window(20, 0, 20, 20)])
    with rasterio.open(paths[1], "r+") as dataset:
        dataset.scales = [0.1]
    assert "one scale, offset and bit depth" in refusal(find_scenes([str(tmp_path / "m")], mosaic=MOSAIC))


def test_a_mosaic_of_broken_sheets_is_a_failed_scene(tmp_path: Path) -> None:
    write_sheets(tmp_path / "good", np.ones((1, 20, 20), np.uint8), [Window(0, 0, 20, 20)])
    (tmp_path / "bad.tif").write_bytes(b"no")
    (tmp_path / "list.csv").write_text("uri,mosaic\nbad.tif,one\ngone.tif,one\ngood/sheet_000.tif,two\n")
    plan = find_scenes([str(tmp_path / "list.csv")])
    assert [scene.scene_id for scene in plan.scenes] == ["two"]
    assert [(f.scene_id, f.is_sheet) for f in plan.failures] == [("one", False), ("one", True), ("one", True)]
    assert "at least one sheet" in str(plan.failures[0].error)


def test_a_sheet_that_is_gone_fails_the_windows_that_need_it(tmp_path: Path) -> None:
    paths = write_sheets(tmp_path / "m", np.ones((1, 20, 60), np.uint8), lattice(60, 20, 20))
    scene = found(tmp_path / "m")
    paths[1].unlink()
    with SceneReader(scene) as reader:
        for left in (0, 40):
            assert reader.read_window(Window(left, 0, 20, 20))[1].all()
        with pytest.raises(ReadError, match="which does not exist"):
            reader.read_window(Window(10, 0, 20, 20))


def test_signatures_of_sheets_are_not_told(tmp_path: Path) -> None:
    write_sheets(tmp_path, np.ones((1, 20, 20), np.uint8), [Window(0, 0, 20, 20)])
    presigned = "http://127.0.0.1:9/farm/b.tif?X-Amz-Signature=hidden"
    (tmp_path / "list.csv").write_text(f"uri,mosaic\nsheet_000.tif,m\n{presigned},m\n")
    plan = find_scenes([str(tmp_path / "list.csv")])
    assert [scene.scene_id for scene in plan.scenes] == ["m"]
    assert plan.failures[0].uri == "http://127.0.0.1:9/farm/b.tif"
    assert "hidden" not in repr(plan)


# -- names -----------------------------------------------------------------------------------------------------------


def test_names(tmp_path: Path) -> None:
    ones = np.ones((1, 20, 20), np.uint8)
    a, b = write_sheets(tmp_path / "north field" / "a", np.ones((1, 20, 40), np.uint8), lattice(40, 20, 20))
    [c] = write_sheets(tmp_path / "north field" / "c", ones, [Window(0, 0, 20, 20)])
    assert found(tmp_path / "north field/a").scene_id == "a"
    assert found(a, b) == found(b, a), "whatever the order"
    assert found(a, b).scene_id == "a"
    assert found(tmp_path / "north field").scene_id.startswith("north_field-")
    assert found(a, c).scene_id == found(tmp_path / "north field").scene_id, "the folder above all sheets"
    assert found(f"{tmp_path}/north field/a/*.tif").scene_id == "a"
    assert found(a, options=MosaicOptions(True, "mine")).scene_id == "mine"
    assert found(a).uri == f"{tmp_path}/north field/a/"
    with pytest.raises(ConfigError, match="scene_id"):
        find_scenes([str(a)], mosaic=MosaicOptions(True, "no/name"))


def test_manifests(tmp_path: Path) -> None:
    write_sheets(tmp_path, np.ones((1, 20, 60), np.uint8), lattice(60, 20, 20))
    names = [f"sheet_{k:03d}.tif" for k in range(3)]

    def plan(*lines: str, **options) -> ScenePlan:
        (tmp_path / "list.csv").write_text("\n".join(["uri,scene_id,mosaic", *lines]))
        return find_scenes([str(tmp_path / "list.csv")], **options)

    shared = plan(f"{names[0]},,m", f"{names[1]},,m", f"{names[1]},,n", f"{names[2]},,n", f"{names[0]},alone,")
    assert [(s.scene_id, len(s.sheets)) for s in shared.scenes] == [("alone", 0), ("m", 2), ("n", 2)]
    assert [len(s.sheets) for s in plan(f"{names[0]},,m", f"{names[0]},,m").scenes] == [1], "a file named twice"
    rest = plan(f"{names[0]},,m", f"{names[1]},,", f"{names[2]},,", mosaic=MosaicOptions(True, "rest"))
    assert [(s.scene_id, len(s.sheets)) for s in rest.scenes] == [("m", 1), ("rest", 2)]
    for lines, options, wanted in (
        ([f"{names[0]},x,m"], {}, "leave one of them empty"),
        ([f"{names[0]},x,"], {"mosaic": MOSAIC}, "drop --mosaic"),
        ([f"{names[0]},x,", f"{names[1]},,x"], {}, "rename the mosaic"),
        ([f"{names[0]},,no/name"], {}, "rename it"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            plan(*lines, **options)


# -- versions and blocks ---------------------------------------------------------------------------------------------


def blocks_of(scene: Scene, tile: int = 64, scale: float = 1.0) -> dict[tuple[int, int], Block]:
    index = SheetIndex.of_scene(scene, scene_identity, common="all")
    grid = Grid.of_scene(scene, tile_px=tile, overlap_px=16, scale=scale)
    planned = plan_blocks([SceneGrid(grid, scene_identity(scene), 1000, index)])
    return {(b.ranges[0].row_start, b.ranges[0].col_start): b for b in planned}


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_a_block_is_known_by_the_sheets_that_it_sees(tmp_path: Path, scale: float) -> None:
    values = np.ones((1, 900, 1500), np.uint8)
    paths = write_sheets(tmp_path / "m", values, lattice(1500, 900, 300))
    before = found(tmp_path / "m")
    assert {b.key for b in blocks_of(before).values()} == {b.key for b in blocks_of(found(tmp_path / "m")).values()}
    with rasterio.open(paths[7], "r+") as dataset:
        dataset.write(np.full((1, 300, 300), 2, np.uint8))
    after = found(tmp_path / "m")
    assert scene_identity(before) != scene_identity(after)
    old, new = blocks_of(before, scale=scale), blocks_of(after, scale=scale)
    grid = Grid.of_scene(before, tile_px=64, overlap_px=16, scale=scale)
    touched = {k for k, b in old.items() if b.ranges[0].seen(grid).intersect(before.sheets[7].window).area_px}
    assert {k for k in old if old[k].key != new[k].key} == touched
    assert 0 < len(touched) < len(old) / 2
    paths[14].unlink()
    gap = blocks_of(found(tmp_path / "m"), scale=scale)
    assert gap.keys() == new.keys()
    assert {k for k in new if gap[k].key != new[k].key}, "what saw the sheet that is gone"


def test_a_sheet_added_at_the_end_leaves_the_other_blocks(tmp_path: Path) -> None:
    values = np.ones((1, 600, 1800), np.uint8)
    windows = lattice(1800, 600, 300)
    paths = write_sheets(tmp_path / "m", values, windows)
    last = [p for p, w in zip(paths, windows, strict=True) if w.col_off == 1500]
    for path in last:
        path.rename(tmp_path / path.name)
    before = found(tmp_path / "m")
    old = blocks_of(before)
    for path in last:
        (tmp_path / path.name).rename(path)
    new = blocks_of(found(tmp_path / "m"))
    kept = {b.key for b in old.values()} & {b.key for b in new.values()}
    grid = Grid.of_scene(before, tile_px=64, overlap_px=16)
    inner = {b.key for b in old.values() if b.ranges[0].col_stop < grid.x.count - 1}
    assert inner
    assert inner <= kept
    assert len(kept) < len(old), "the blocks at the side where it was added see more now"


@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_what_a_block_is_told_of_is_what_its_tiles_need(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("m")
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for k in range(data.draw(st.integers(1, 5))):
        x, y = data.draw(st.integers(0, 150)), data.draw(st.integers(0, 150))
        path = write(folder, f"{k}.tif", Window(x, y, 64, 64), rng.integers(1, 255, (1, 64, 64), np.uint8))
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4], Resampling.average)
    scene = found(folder)
    scale = data.draw(st.sampled_from([1.0, 0.6, 0.25, 2.0]))
    grid = Grid.of_scene(scene, tile_px=24, overlap_px=8, scale=scale)
    index = SheetIndex.of_scene(scene, scene_identity, common="")
    planned = plan_blocks([SceneGrid(grid, "", 40_000, index)])
    for block in planned:
        part = block.ranges[0]
        told = index.part_of(scene, part.seen(grid))
        with SceneReader(scene, scale=scale) as all_of_it, SceneReader(told, scale=scale) as own:
            for tile in part.tiles(grid):
                one, other = all_of_it.read(tile), own.read(tile)
                assert np.array_equal(one.pixels, other.pixels)
                assert np.array_equal(one.valid, other.valid)


# -- values ----------------------------------------------------------------------------------------------------------


def test_one_range_for_all_sheets(tmp_path: Path) -> None:
    values = np.concatenate([np.full((1, 100, 100), 10, np.uint16), np.full((1, 100, 100), 1000, np.uint16)], axis=2)
    paths = write_sheets(tmp_path / "m", values, lattice(200, 100, 50))
    scene = found(tmp_path / "m")
    percentiles = value_range(scene, ValueRange("percentile", 1, 99))
    assert percentiles == ((10.0, 1000.0),)
    assert value_range(scene, ValueRange()) == ((0.0, 65535.0),)
    assert valid_share(scene) == 1.0
    paths[0].unlink()
    assert valid_share(found(tmp_path / "m")) == pytest.approx(0.875)
    damaged = bytearray(paths[1].read_bytes())
    with rasterio.open(paths[1]) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    damaged[start : start + 20] = b"x" * 20
    paths[1].write_bytes(bytes(damaged))
    with pytest.raises(SceneError):
        read(found(tmp_path / "m"))
    assert value_range(found(tmp_path / "m"), ValueRange("percentile", 0, 100))[0][1] == 1000.0
