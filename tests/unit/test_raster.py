"""Reading windows: against rasterio's own reading, and the law that a grid pixel has one value in every tile."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window as RioWindow
from scipy import ndimage

from segworker.config_values import ValueRange
from segworker.errors import ReadError, SceneError
from segworker.grid import Grid
from segworker.io.bands import BandPlan, plan_bands
from segworker.io.raster import Limits, SceneReader, open_scene
from segworker.io.scaling import valid_share, value_range
from segworker.types import InputSpec, Scene, Tile, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 16}


def write(path: Path, pixels: np.ndarray, colours=None, mask=None, **options) -> Path:
    options = {"driver": "GTiff", "dtype": pixels.dtype, **options}
    count, height, width = pixels.shape
    with rasterio.open(path, "w", width=width, height=height, count=count, **options) as dataset:
        if colours:
            dataset.colorinterp = colours
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def noise(count: int = 3, height: int = 90, width: int = 130, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(count * height + width)
    if np.issubdtype(np.dtype(dtype), np.floating):
        return rng.normal(size=(count, height, width)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (count, height, width), dtype, endpoint=True)


def opened(path: Path, **more) -> Scene:
    return open_scene(str(path), "scene", **more)


def read(scene: Scene, window: Window | None = None, **options) -> tuple[np.ndarray, np.ndarray]:
    with SceneReader(scene, **options) as reader:
        return reader.read_window(window or Grid.of_scene(scene, tile_px=9999, overlap_px=0).tile(0, 0).window)


# -- pixels and validity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("layout", [TILED, {"interleave": "band"}, {"interleave": "pixel", "compress": "deflate"}])
def test_windows_are_what_rasterio_reads(tmp_path: Path, dtype: str, layout: dict[str, object]) -> None:
    path = write(tmp_path / "a.tif", noise(5, dtype=dtype), **layout)
    scene = opened(path)
    assert (scene.num_bands, scene.dtype, scene.width, scene.height) == (5, dtype, 130, 90)
    grid = Grid.of_scene(scene, tile_px=64, overlap_px=16)
    with SceneReader(scene) as reader, rasterio.open(path) as dataset:
        for tile in grid.tiles():
            image = reader.read(tile)
            w = tile.window
            expected = dataset.read(window=RioWindow(w.col_off, w.row_off, w.width, w.height))
            assert image.pixels.dtype == np.dtype(dtype)
            assert np.array_equal(image.pixels, expected)
            assert image.valid.all()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_photographs(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, noise(), driver={"png": "PNG", "jpg": "JPEG"}[name[-3:]])
    scene = opened(path)
    with rasterio.open(path) as dataset:
        assert np.array_equal(read(scene, Window(10, 20, 30, 40))[0], dataset.read(window=RioWindow(10, 20, 30, 40)))
    assert scene.crs is None
    assert scene.transform == (1, 0, 0, 0, 1, 0)


def test_nodata_counts_where_all_read_bands_say_so(tmp_path: Path) -> None:
    pixels = noise(4)
    pixels[:, :10] = 0
    pixels[3, 20:30] = 0
    scene = opened(write(tmp_path / "a.tif", pixels, colours=(*RGB, ColorInterp.undefined), nodata=0))
    _, valid = read(scene)
    assert np.array_equal(valid, (pixels != 0).any(axis=0))
    _, valid = read(scene, bands=(4,))
    assert np.array_equal(valid, pixels[3] != 0)
    assert scene.nodata == 0


@pytest.mark.parametrize("nodata", [-9999.0, -3.4028234663852886e38, 0.1])
def test_nodata_of_floats_survives_rounding(tmp_path: Path, nodata: float) -> None:
    pixels = noise(1, dtype="float32")
    pixels[0, 3:7] = nodata
    path = write(tmp_path / "a.tif", pixels, nodata=nodata)
    with rasterio.open(path) as dataset:
        assert np.array_equal(read(opened(path))[1], dataset.dataset_mask() > 0)


def test_nodata_and_alpha_both_count(tmp_path: Path) -> None:
    pixels = noise(4)
    pixels[:3, 4:9] = 7
    pixels[3, :, :20] = 0
    path = write(tmp_path / "a.tif", pixels, colours=(*RGB, ColorInterp.alpha), nodata=7)
    assert np.array_equal(read(opened(path))[1], (pixels[3] > 0) & (pixels[:3] != 7).any(axis=0))


def test_nan_is_never_valid_and_never_passed_on(tmp_path: Path) -> None:
    pixels = noise(dtype="float32")
    pixels[0, 5:9, 5:9] = np.nan
    pixels[1, 50, 60] = np.inf
    for nodata in (None, float("nan")):
        got, valid = read(opened(write(tmp_path / "a.tif", pixels, nodata=nodata)))
        assert np.array_equal(valid, np.isfinite(pixels).all(axis=0))
        assert np.isfinite(got).all()
        assert np.array_equal(got[:, valid], pixels[:, valid])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_alpha_becomes_valid_and_is_no_band(tmp_path: Path, dtype: str) -> None:
    pixels = noise(4, dtype=dtype)
    pixels[3] = np.arange(130) % 3  # the least opaque value counts, in 16 bits too
    scene = opened(write(tmp_path / "a.tif", pixels, colours=(*RGB, ColorInterp.alpha)))
    got, valid = read(scene)
    assert scene.num_bands == 3
    assert np.array_equal(got, pixels[:3])
    assert np.array_equal(valid, pixels[3] > 0)


@pytest.mark.parametrize("internal", ["YES", "NO"])
def test_masks_inside_and_beside_the_file(tmp_path: Path, internal: str) -> None:
    mask = noise(1)[0] > 100
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = write(tmp_path / "a.tif", noise(), mask=mask)
    assert (tmp_path / "a.tif.msk").exists() == (internal == "NO")
    assert np.array_equal(read(opened(path))[1], mask)


def test_palettes_become_colours(tmp_path: Path) -> None:
    indices = noise(1) % 3
    table = {0: (0, 0, 0, 0), 1: (10, 20, 30, 255), 2: (200, 100, 50, 255)}
    path = write(tmp_path / "a.tif", indices, photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, table)
    scene = opened(path)
    got, valid = read(scene, spec=InputSpec(num_bands=3))
    assert (scene.num_bands, scene.dtype) == (3, "uint8")
    assert np.array_equal(got, np.array([table[i][:3] for i in range(3)], np.uint8)[indices[0]].transpose(2, 0, 1))
    assert np.array_equal(valid, indices[0] > 0) or valid.all(), "GDAL may drop a palette's transparency"
    assert read(scene, bands=(3,))[0].max() == 50
    assert value_range(scene, ValueRange()) == ((0.0, 255.0),) * 3


# -- bands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colours", "wanted", "explicit", "expected"),
    [
        ("blue green red alpha", 3, None, BandPlan((3, 2, 1))),
        ("gray undefined undefined undefined", 3, None, BandPlan((1, 2, 3))),
        ("gray alpha", 3, None, BandPlan((1,), "repeat", 3)),
        ("red green blue", 1, None, BandPlan((1, 2, 3), "luminance")),
        ("gray undefined undefined", 1, None, BandPlan((1,))),
        ("red green blue undefined", 4, None, BandPlan((1, 2, 3, 4))),
        ("red green blue undefined", 3, (4, 3, 2), BandPlan((4, 3, 2))),
        ("red green blue undefined", 3, (4,), BandPlan((4,), "repeat", 3)),
        ("red green blue undefined", 1, (4, 3, 2), BandPlan((4, 3, 2), "luminance")),
        ("palette", 3, None, BandPlan((1, 2, 3), palette=True)),
        ("palette", 1, None, BandPlan((1, 2, 3), "luminance", palette=True)),
        ("red green blue alpha", None, None, BandPlan((1, 2, 3))),
    ],
)
def test_choice_of_bands(colours: str, wanted: int | None, explicit, expected: BandPlan) -> None:
    assert plan_bands(tuple(colours.split()), wanted, explicit, "s") == expected


@pytest.mark.parametrize(
    ("colours", "wanted", "explicit", "message"),
    [
        ("gray undefined", 3, None, "wants 3 bands, got 2 from s; name 3 bands"),
        ("red green blue", 4, None, "wants 4 bands, got 3"),
        ("red green blue", 3, (1, 2), "wants 3 bands, got 2"),
        ("red green blue", 3, (1, 2, 9), "from 1 to the scene's 3, got 9"),
        ("cyan magenta yellow black", 3, None, "got CMYK"),
    ],
)
def test_bands_that_do_not_fit_are_refused(colours: str, wanted: int, explicit, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        plan_bands(tuple(colours.split()), wanted, explicit, "s")


def test_luminance_and_repetition(tmp_path: Path) -> None:
    pixels = noise()
    scene = opened(write(tmp_path / "a.tif", pixels, colours=RGB))
    got, _ = read(scene, spec=InputSpec(num_bands=1))
    expected = np.rint(np.tensordot([0.299, 0.587, 0.114], pixels.astype(float), 1))
    assert got.shape == (1, 90, 130)
    assert np.abs(got[0] - expected).max() <= 1
    assert got.dtype == np.uint8
    grey, _ = read(opened(write(tmp_path / "g.tif", pixels[:1])), spec=InputSpec(num_bands=3))
    assert np.array_equal(grey, np.repeat(pixels[:1], 3, axis=0))


# -- other resolutions ---------------------------------------------------------------------------------------------

SCALES = [0.11, 1 / 3, 0.5, 0.73, 1.9, 2.0]


@pytest.fixture(scope="module")
def odd_scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """Scenes with nodata, alpha, overviews, floats; no side is a multiple of anything."""
    folder = tmp_path_factory.mktemp("odd")
    holes = noise(3, 77, 101)
    holes[:, 30:50, 40:60] = 0
    paths = [
        write(folder / "nodata.tif", holes, nodata=0),
        write(folder / "alpha.tif", noise(4, 77, 101), colours=(*RGB, ColorInterp.alpha)),
        write(folder / "float.tif", noise(2, 77, 101, "float32")),
        write(folder / "overviews.tif", noise(3, 77, 101, "uint16"), **TILED),
    ]
    with rasterio.open(paths[-1], "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    return [opened(path) for path in paths]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_grid_pixel_has_one_value_in_every_window(odd_scenes: list[Scene], data: st.DataObject) -> None:
    scene, scale = data.draw(st.sampled_from(odd_scenes)), data.draw(st.sampled_from(SCALES))
    grid = Grid.of_scene(scene, tile_px=9999, overlap_px=0, scale=scale)
    left, top = data.draw(st.integers(0, grid.width - 1)), data.draw(st.integers(0, grid.height - 1))
    right, bottom = data.draw(st.integers(left + 1, grid.width)), data.draw(st.integers(top + 1, grid.height))
    window = Window(left, top, right - left, bottom - top)
    with SceneReader(scene, scale=scale) as reader:
        whole, whole_valid = reader.read_window(Window(0, 0, grid.width, grid.height))
        part, part_valid = reader.read_window(window)
    rows, cols = window.slices_in(Window(0, 0, grid.width, grid.height))
    assert np.array_equal(part, whole[:, rows, cols])
    assert np.array_equal(part_valid, whole_valid[rows, cols])


def test_strips_make_no_difference(odd_scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    for scene in odd_scenes:
        whole = read_scaled(scene, 0.3)
        with monkeypatch.context() as patch:
            patch.setattr("segworker.io.raster._STRIP_PX", 700)
            strips = read_scaled(scene, 0.3)
        assert all(np.array_equal(a, b) for a, b in zip(whole, strips, strict=True))


def read_scaled(scene: Scene, scale: float) -> tuple[np.ndarray, np.ndarray]:
    grid = Grid.of_scene(scene, tile_px=9999, overlap_px=0, scale=scale)
    with SceneReader(scene, scale=scale) as reader:
        return reader.read_window(Window(0, 0, grid.width, grid.height))


def test_half_size_is_the_mean_of_four_valid_pixels(tmp_path: Path) -> None:
    pixels = noise(1, 40, 60, "float32")
    pixels[0, 10, 10] = np.nan
    got, valid = read_scaled(opened(write(tmp_path / "a.tif", pixels)), 0.5)
    blocks = pixels[0].reshape(20, 2, 30, 2).transpose(0, 2, 1, 3).reshape(20, 30, 4)
    assert np.allclose(got[0], np.nanmean(blocks, axis=2), atol=1e-6)
    assert np.count_nonzero(~valid) == 0, "the pixel under the centre decides, and is valid"
    pixels[0, 11, 11] = np.nan
    _, valid = read_scaled(opened(write(tmp_path / "a.tif", pixels)), 0.5)
    assert np.argwhere(~valid).tolist() == [[5, 5]]


def test_double_size_is_linear_between_centres(tmp_path: Path) -> None:
    pixels = noise(1, 20, 30, "float32")
    got, valid = read_scaled(opened(write(tmp_path / "a.tif", pixels)), 2.0)
    y, x = np.meshgrid((np.arange(40) + 0.5) / 2 - 0.5, (np.arange(60) + 0.5) / 2 - 0.5, indexing="ij")
    assert np.allclose(got[0], ndimage.map_coordinates(pixels[0], [y, x], order=1, mode="nearest"), atol=1e-5)
    assert valid.all()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.02, 3.0), st.integers(1, 60))
def test_a_flat_scene_is_flat_at_any_scale(scale: float, side: int) -> None:
    from segworker.io.resample import Taps, resample

    size = max(1, int(np.ceil(side * scale - 1e-6)))
    taps = Taps.of_range(0, size, 1 / scale, side)
    start, stop = taps.span
    pixels = np.full((1, stop - start, stop - start), 201, np.uint8)
    got, valid = resample(pixels, np.ones(pixels.shape[1:], bool), taps, taps)
    assert (got == 201).all()
    assert valid.all()


def test_overviews_serve_where_they_are_fine_enough(odd_scenes: list[Scene]) -> None:
    for scale, width in ((1.0, 101), (0.6, 101), (0.5, 51), (0.3, 51), (0.25, 26), (0.1, 26)):
        with SceneReader(odd_scenes[3], scale=scale) as reader:
            assert reader.level.width == width
    by_overview, _ = read_scaled(odd_scenes[3], 0.25)
    with rasterio.open(odd_scenes[3].uri) as dataset:
        direct = dataset.read().astype(float)
    mean = direct[:, :76, :100].reshape(3, 19, 4, 25, 4).mean(axis=(2, 4))
    assert np.corrcoef(by_overview[:, :19, :25].ravel(), mean.ravel())[0, 1] > 0.7


def test_a_tile_of_another_scale_is_our_own_bug(odd_scenes: list[Scene]) -> None:
    with SceneReader(odd_scenes[0]) as reader, pytest.raises(ValueError, match="one scale"):
        reader.read(Tile("scene", 0, 0, Window(0, 0, 1, 1), Window(0, 0, 1, 1), 0.5))


# -- values --------------------------------------------------------------------------------------------------------


def test_ranges_of_integers_are_those_of_the_dtype(tmp_path: Path) -> None:
    assert (
        value_range(opened(write(tmp_path / "a.tif", noise(2, dtype="int16"))), ValueRange()) == ((-32768, 32767),) * 2
    )
    twelve = write(tmp_path / "b.tif", noise(1, dtype="uint16") % 4096, nbits=12)
    assert value_range(opened(twelve), ValueRange(), spec=InputSpec(num_bands=3)) == ((0, 4095),) * 3
    grey = value_range(
        opened(write(tmp_path / "c.tif", noise(), colours=RGB)), ValueRange(), spec=InputSpec(num_bands=1)
    )
    assert grey[0] == pytest.approx((0, 255))


def test_floats_need_a_stated_range(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(1, dtype="float32"))
    with pytest.raises(SceneError, match=r"got float32 in scene; give --value-range"):
        value_range(opened(path), ValueRange())
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, STATISTICS_MINIMUM="0.01", STATISTICS_MAXIMUM="0.98")
    assert value_range(opened(path), ValueRange()) == ((0.0, 1.0),)


def test_stated_ranges_are_in_real_units(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(2, dtype="uint16"))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001, 1.0), (-0.1, 0.0)
    got = value_range(opened(path), ValueRange.parse("0,0.4"))
    assert got[0] == pytest.approx((1000, 5000))
    assert got[1] == (0, 0.4)


def test_percentiles_are_of_valid_pixels_of_the_whole_scene(tmp_path: Path) -> None:
    pixels = noise(3, 300, 400, "uint16") // 2
    pixels[:, :100] = 65535
    scene = opened(write(tmp_path / "a.tif", pixels, nodata=65535))
    got = value_range(scene, ValueRange.parse("percentile:2,98"))
    assert np.allclose(got, np.percentile(pixels[:, 100:].reshape(3, -1), [2, 98], axis=1).T)
    flat = opened(write(tmp_path / "b.tif", np.full((1, 8, 8), 7, np.uint8)))
    assert value_range(flat, ValueRange.parse("percentile:1,99")) == ((7, 8),)
    empty = opened(write(tmp_path / "c.tif", np.zeros((1, 8, 8), np.uint8), nodata=0))
    assert value_range(empty, ValueRange.parse("percentile:1,99")) == ((0, 1),)


def test_samples_of_large_scenes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((1, 700, 1500), np.uint8)
    pixels[:, :, 500:] = np.linspace(1, 255, 1000).astype(np.uint8)
    scene = opened(write(tmp_path / "a.tif", pixels, nodata=0, **TILED))
    assert valid_share(scene) == pytest.approx(2 / 3, abs=1e-6)
    assert valid_share(scene, sample_px=300_000) == pytest.approx(2 / 3, abs=0.1)
    monkeypatch.setattr("segworker.io.scaling.SAMPLE_PX", 300_000)
    ((low, high),) = value_range(scene, ValueRange.parse("percentile:1,99"))
    assert low == pytest.approx(3, abs=20)
    assert high == pytest.approx(252, abs=20)


def test_left_out_blocks_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path, "w", "GTiff", 100_000, 100_000, 1, dtype="uint8", nodata=0, sparse_ok=True, tiled=True,
        blockxsize=1024, blockysize=1024, bigtiff="YES", compress="deflate",
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 1024, 1024), 9, np.uint8), window=RioWindow(51_200, 51_200, 1024, 1024))
    scene = opened(path)
    assert path.stat().st_size < 2**20
    assert valid_share(scene) <= 1.1e-4
    _, valid = read(scene, Window(51_190, 51_190, 64, 64))
    assert np.array_equal(valid, np.add.outer(np.arange(64) >= 10, np.arange(64) >= 10) == 2) or valid.sum() == 54**2


# -- refusals ------------------------------------------------------------------------------------------------------


def test_complex_values_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(1, dtype="float32").astype("complex64"))
    with pytest.raises(SceneError, match=r"got complex64 .*amplitude"):
        opened(path)


def test_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    with rasterio.open(
        path, "w", "GTiff", 40_000, 40_000, 1, dtype="uint8", sparse_ok=True, compress="deflate", tiled=True,
        blockxsize=40_000, blockysize=40_000,
    ):  # fmt: skip
        pass
    assert path.stat().st_size < 10_000
    with pytest.raises(SceneError, match=r"a block of a scene takes at most .*rewrite it in tiles"):
        opened(path)
    with pytest.raises(SceneError, match=r"at most 1,000,000 pixels, got 40,000 x 40,000 .*--max-scene-px"):
        opened(path, limits=Limits(scene_px=10**6))
    photo = write(tmp_path / "a.png", noise(), driver="PNG")
    with pytest.raises(SceneError, match="a PNG holds at most"):
        opened(photo, limits=Limits(unblocked_bytes=1000))


@pytest.mark.parametrize("name", ["missing.tif", "text.tif", "empty.tif"])
def test_what_is_no_raster(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "empty.tif").touch()
    with pytest.raises(SceneError, match="does not exist" if name == "missing.tif" else "must be a raster"):
        opened(tmp_path / name)


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG"])
def test_truncated_files_name_the_window(tmp_path: Path, driver: str) -> None:
    path = write(tmp_path / f"a.{driver.lower()[-4:].replace('tiff', 'tif')}", noise(3, 300, 300), driver=driver)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    scene = opened(path)
    read(scene, Window(0, 0, 300, 10))
    with pytest.raises(ReadError, match=r"columns 0-300, rows 280-300 of scene \(.*: .+; replace") as caught:
        read(scene, Window(0, 280, 300, 20))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_scene_that_changed_since_the_plan(tmp_path: Path) -> None:
    scene = opened(write(tmp_path / "a.tif", noise()))
    write(tmp_path / "a.tif", noise(3, 50, 50))
    with pytest.raises(SceneError, match="must stay as it was planned"):
        read(scene)


# -- places and sizes ----------------------------------------------------------------------------------------------


def test_georeference_is_kept_as_it_is(tmp_path: Path) -> None:
    rotated = rasterio.Affine(0.4, 0.3, 5e5, 0.3, -0.4, 5e6)
    scene = opened(write(tmp_path / "a.tif", noise(), crs="EPSG:32633", transform=rotated))
    assert scene.transform == tuple(rotated)[:6]
    assert rasterio.crs.CRS.from_wkt(scene.crs or "") == rasterio.crs.CRS.from_epsg(32633)


def points(*corners: tuple[float, float, float, float]) -> list[GroundControlPoint]:
    return [GroundControlPoint(row, col, x, y) for row, col, x, y in corners]


def test_scenes_with_control_points_are_warped_north_up(tmp_path: Path) -> None:
    corners = points((0, 0, 10.0, 50.0), (0, 130, 10.013, 50.0), (90, 0, 10.0, 49.991), (90, 130, 10.013, 49.991))
    path = write(tmp_path / "a.tif", noise(), gcps=corners, crs="EPSG:4326")
    scene = opened(path)
    a, b, c, d, e, f = scene.transform
    assert scene.crs is not None
    assert (b, d) == (0, 0)
    assert (c, f) == pytest.approx((10.0, 50.0), abs=1e-6)
    assert (c + a * scene.width, f + e * scene.height) == pytest.approx((10.013, 49.991), abs=2e-4)
    pixels, valid = read(scene)
    assert pixels.shape == (3, scene.height, scene.width)
    assert valid[5:-5, 5:-5].all()
    part, _ = read(scene, Window(20, 30, 40, 50))
    assert np.array_equal(part, pixels[:, 30:80, 20:60])
    assert read_scaled(scene, 0.5)[0].shape[0] == 3


def test_control_points_that_place_nothing_are_refused(tmp_path: Path) -> None:
    corners = points((0, 0, 10.0, 50.0), (0, 130, 10.0, 50.0), (90, 0, 10.0, 50.0), (90, 130, 10.0, 50.0))
    with pytest.raises(SceneError, match="ground control points must place a scene"):
        opened(write(tmp_path / "a.tif", noise(), gcps=corners, crs="EPSG:4326"))


FOUR_PER_UNIT = {"TIFFTAG_XRESOLUTION": "4", "TIFFTAG_YRESOLUTION": "4", "TIFFTAG_RESOLUTIONUNIT": "1"}
OME = '<?xml version="1.0"?><OME><Image><Pixels PhysicalSizeX="{}" {}SizeX="5"/></Image></OME>'


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"TIFFTAG_IMAGEDESCRIPTION": "Aperio Image|AppMag = 20|MPP = 0.4990|Left = 25"}, 0.499),
        ({"TIFFTAG_IMAGEDESCRIPTION": OME.format("0.25", "")}, 0.25),
        ({"TIFFTAG_IMAGEDESCRIPTION": OME.format("250", 'PhysicalSizeXUnit="nm" ')}, 0.25),
        ({"TIFFTAG_IMAGEDESCRIPTION": OME.format("1", 'PhysicalSizeXUnit="pixel" ')}, None),
        ({"TIFFTAG_IMAGEDESCRIPTION": "ImageJ=1.53\nunit=micron\n", **FOUR_PER_UNIT}, 0.25),
        ({"TIFFTAG_IMAGEDESCRIPTION": "Aperio Image|MPP = 0"}, None),
        ({"TIFFTAG_XRESOLUTION": "72", "TIFFTAG_RESOLUTIONUNIT": "2"}, None),
    ],
)
def test_physical_pixel_sizes(tmp_path: Path, tags: dict[str, str], expected: float | None) -> None:
    path = write(tmp_path / "a.tif", noise())
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**tags)
    assert opened(path).pixel_size_um == (None if expected is None else pytest.approx(expected))
