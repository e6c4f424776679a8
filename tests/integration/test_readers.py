"""Real files, odd and malformed: each is read as rasterio reads it, or refused with a message that says why."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.windows
from rasterio.errors import RasterioError

from segworker import geo
from segworker.config_values import ValueRange
from segworker.errors import ReadError, SceneError, SegworkerError
from segworker.grid import Grid
from segworker.io.header import WARPED
from segworker.io.raster import SceneReader
from segworker.io.scaling import valid_share, value_range
from segworker.sources import ScenePlan, find_scenes, scene_identity
from segworker.types import InputSpec, Scene, Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

REFUSED = {
    "geotiff_solaris_rotterdam__sar_hh": "complex64",
    "malformed__histolab__broken": "not recognized",
}


@pytest.fixture(scope="module")
def plan(shared_data: Path) -> ScenePlan:
    return find_scenes([str(shared_data / "data" / "readers")])


@pytest.fixture(scope="module")
def scenes(plan: ScenePlan) -> dict[str, Scene]:
    return {scene.scene_id.rpartition("__")[2]: scene for scene in plan.scenes}


def read_all(scene: Scene, **options: object) -> float:
    """Read every tile; return the share of valid pixels."""
    num_valid = 0
    with SceneReader(scene, **options) as reader:
        grid = Grid.of_scene(scene, tile_px=1024, overlap_px=0, scale=reader.scale)
        for tile in grid.tiles():
            num_valid += int(reader.read(tile).valid[tile.core.slices_in(tile.window)].sum())
    return num_valid / (grid.width * grid.height)


def test_every_file_is_planned_or_refused(plan: ScenePlan, shared_data: Path) -> None:
    files = [p for p in (shared_data / "data" / "readers").rglob("*") if p.is_file()]
    assert len(plan.scenes) + len(plan.failures) == len(files)
    assert len({scene_identity(scene) for scene in plan.scenes}) == len(plan.scenes)
    for failure in plan.failures:
        message = str(failure.error)
        assert isinstance(failure.error, SceneError)
        assert REFUSED.get(failure.scene_id, "must be a raster") in message
        assert "; " in message, "a remedy follows the rule"
        assert failure.scene_id in REFUSED or "malformed" in failure.scene_id


def test_the_sound_files_are_read_as_rasterio_reads_them(plan: ScenePlan) -> None:
    for scene in plan.scenes:
        if "malformed" in scene.scene_id or WARPED in scene.options or scene.width * scene.height > 1e7:
            continue
        with rasterio.open(scene.uri) as dataset, SceneReader(scene) as reader:
            bands = [i for i, c in enumerate(dataset.colorinterp, 1) if c.name != "alpha"]
            expected, mask = dataset.read(bands), dataset.dataset_mask() > 0
            pixels, valid = reader.read_window(scene.window)
        finite = np.isfinite(expected).all(axis=0)
        assert np.array_equal(valid, mask & finite), scene.scene_id
        assert pixels.dtype == expected.dtype
        assert np.array_equal(pixels[:, finite], expected[:, finite]), scene.scene_id


def test_a_palette_is_read_as_its_colours(scenes: dict[str, Scene]) -> None:
    window = Window(3000, 4000, 700, 600)
    with rasterio.open(scenes["cog_cmap"].uri) as dataset, SceneReader(scenes["cog_cmap"]) as reader:
        indices = dataset.read(1, window=rasterio.windows.Window(3000, 4000, 700, 600))
        table = dataset.colormap(1)
        pixels, valid = reader.read_window(window)
    assert np.array_equal(valid, indices != 0)
    for index in np.unique(indices):
        assert np.array_equal(np.unique(pixels[:, indices == index], axis=1).ravel(), table[index][:3])


def test_malformed_files_end_in_a_message_and_in_time(plan: ScenePlan) -> None:
    malformed = [scene for scene in plan.scenes if "malformed" in scene.scene_id]
    refused: list[str] = []
    for scene in malformed:
        started = time.monotonic()
        try:
            read_all(scene)
        except ReadError as error:
            refused.append(str(error))
        assert time.monotonic() - started < 20
    assert all("malformed__" in message and "replace the file" in message for message in refused)
    assert len(refused) >= len(malformed) - 1, "a fax whose bits are wrong is still a picture; GDAL reads that one"


@pytest.mark.parametrize("scale", [0.37, 1.5])
def test_every_sound_file_is_read_at_other_scales(plan: ScenePlan, scale: float) -> None:
    for scene in plan.scenes:
        if "malformed" not in scene.scene_id and scene.width * scene.height < 2e6:
            tolerance = 0.02 if scene.width > 100 else 0.35
            assert read_all(scene, scale=scale) == pytest.approx(read_all(scene), abs=tolerance), scene.scene_id


def test_a_model_of_three_bands_reads_them_or_says_why(plan: ScenePlan) -> None:
    refused = []
    for scene in plan.scenes:
        try:
            with SceneReader(scene, spec=InputSpec(num_bands=3)) as reader:
                assert reader.plan.num_bands == 3
        except SegworkerError as error:
            refused.append(str(error))
    assert len(refused) == 1
    assert "got 2 from geotiff_riotiler__cog_scale; name 3 bands with --bands" in refused[0]


def test_what_headers_tell(scenes: dict[str, Scene]) -> None:
    assert scenes["cog_gcps"].crs is not None
    assert WARPED in scenes["cog_gcps"].options
    assert scenes["RGB.byte.rpc"].crs is None
    assert scenes["RGBA.uint16"].num_bands == 3
    assert scenes["cog_cmap"].num_bands == 3
    assert np.isnan(scenes["float_nan"].nodata or 0)
    assert scenes["rotated"].transform[1] == pytest.approx(5.0)
    assert scenes["inverted_lat"].transform[4] == 0.5
    assert geo.pixel_size_m(scenes["cog_hirise_mars"]) == pytest.approx(4.96, abs=0.05)
    assert geo.pixel_size_m(scenes["inverted_lat"]) == pytest.approx(55_500, rel=0.01)


def test_bands_by_colour_not_by_number(scenes: dict[str, Scene]) -> None:
    with SceneReader(scenes["RGBA.uint16"], spec=InputSpec(num_bands=3)) as reader:
        assert reader.plan.indexes == (3, 2, 1)


def test_value_ranges_of_real_files(scenes: dict[str, Scene]) -> None:
    assert value_range(scenes["12bit.cropped.rgb"], ValueRange()) == ((0, 4095),) * 3
    real = value_range(scenes["cog_scale"], ValueRange.parse("1000,1002"))
    assert real[0] == pytest.approx((0, 20_000))
    with pytest.raises(SceneError, match="--value-range"):
        value_range(scenes["sar_masked"], ValueRange())
    assert valid_share(scenes["all-nodata"]) == 0
    assert valid_share(scenes["cog_cmap"]) == pytest.approx(0.55, abs=0.05)


def test_areas_on_mars_and_on_the_antimeridian(scenes: dict[str, Scene]) -> None:
    for name in ("cog_hirise_mars", "cog_dateline"):
        scene = scenes[name]
        corners = np.array([_frame(scene)], dtype=object)
        expected = scene.width * scene.height * (geo.pixel_size_m(scene) or 0) ** 2
        assert geo.area_m2(geo.to_map(corners, scene.transform), scene.crs)[0] == pytest.approx(expected, rel=0.01)


def _frame(scene: Scene) -> object:
    import shapely

    return shapely.box(0, 0, scene.width, scene.height)


def test_a_slide_is_read_by_its_pages_not_by_its_label(shared_data: Path) -> None:
    path = shared_data / "data" / "microscopy" / "large_wsi" / "cmu-1-small-region.svs"
    (slide,) = find_scenes([str(path)]).scenes
    assert (slide.width, slide.height, slide.pixel_size_um) == (2220, 2967, 0.499)
    with SceneReader(slide, scale=0.15) as reader:
        assert reader.level.width == 2220, "GDAL takes the label and the macro picture for overviews"
        assert reader.overview_sizes_wh() == []
        small, _ = reader.read_window(Grid.of_scene(slide, tile_px=512, overlap_px=0, scale=0.15).tile(0, 0).window)
    with rasterio.open(path) as dataset:
        mean = dataset.read().mean(axis=(1, 2))
    assert np.abs(small.mean(axis=(1, 2)) - mean).max() < 2


def test_a_large_scene_is_planned_and_sampled_in_moments(shared_data: Path) -> None:
    started = time.monotonic()
    (scene,) = find_scenes([str(shared_data / "data" / "large" / "cog_world_36000x18000")]).scenes
    assert (scene.width, scene.height) == (36_000, 18_000)
    assert valid_share(scene) == pytest.approx(1 / 3, abs=0.02)
    with SceneReader(scene, scale=0.1) as reader:
        assert reader.level.width == 4500
        reader.read(Grid.of_scene(scene, tile_px=512, overlap_px=64, scale=0.1).tile(2, 3))
    assert time.monotonic() - started < 20


def test_polygons_of_the_truth_lie_on_the_buildings(shared_data: Path) -> None:
    """Outlines in longitudes on an orthomosaic in Web Mercator: roofs are brighter than their surroundings."""
    from rasterio.features import rasterize

    from segworker.io.aoi import load_aoi

    folder = shared_data / "data" / "aerial" / "fair_uganda_buildings"
    (scene,) = find_scenes([str(folder / "images")]).scenes
    truth = load_aoi(str(folder / "annotations" / "fair_z21_block_a.geojson"))
    assert len(truth.polygons) == 108
    inside = geo.aoi_to_scene(truth.polygons, truth.crs, scene)
    burnt = rasterize([inside], out_shape=(scene.height, scene.width)).astype(bool)
    on_map = geo.to_map(np.array([inside], dtype=object), scene.transform)
    again = rasterize(on_map, out_shape=burnt.shape, transform=rasterio.Affine(*scene.transform)).astype(bool)
    assert np.count_nonzero(burnt != again) < 20
    with SceneReader(scene) as reader:
        pixels, valid = reader.read_window(scene.window)
    red = pixels[0].astype(float)
    assert red[burnt & valid].mean() > red[~burnt & valid].mean() + 10
    assert geo.pixel_size_m(scene) == pytest.approx(0.0746, abs=0.0005)


def test_rasterio_is_left_as_it_was(plan: ScenePlan) -> None:
    assert plan.scenes
    with pytest.raises(RasterioError):
        rasterio.open("/nowhere.tif")
