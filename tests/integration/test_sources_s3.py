"""The same scenes on a real S3 server: found, named, read and told apart as on disk."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from segworker.errors import StorageError
from segworker.grid import Grid
from segworker.io.aoi import load_aoi
from segworker.io.raster import SceneReader
from segworker.sources import find_scenes, scene_identity
from segworker.types import Scene

PLACE = rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scenes with an external mask and external overviews, in folders, and what is no scene."""
    rng = np.random.default_rng(3)
    for name in ("a.tif", "deep/b.tif", "deep/er/c#1 ü.tif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        with rasterio.open(
            path, "w", "GTiff", 300, 200, 3, dtype="uint8", crs="EPSG:32633", transform=PLACE
        ) as dataset:
            dataset.write(rng.integers(0, 255, (3, 200, 300), np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.write_mask(rng.integers(0, 2, (200, 300), np.uint8) * 255)
    with rasterio.Env(TIFF_USE_OVR="YES"), rasterio.open(tmp_path / "deep/b.tif", "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert (tmp_path / "a.tif.msk").exists()
    assert (tmp_path / "deep/b.tif.ovr").exists()
    (tmp_path / "readme.txt").write_text("not a manifest that anyone named")
    return tmp_path


@pytest.fixture
def prefix(s3, bucket: str, folder: Path) -> str:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        s3.client().upload_file(str(path), bucket, f"in/put/{path.relative_to(folder).as_posix()}")
    return f"s3://{bucket}/in/put"


def ids(*inputs: str) -> list[str]:
    return [scene.scene_id for scene in find_scenes(inputs).scenes]


def same_pixels(one: Scene, other: Scene, scale: float) -> bool:
    tile = Grid.of_scene(one, tile_px=128, overlap_px=32, scale=scale).tile(0, 1 if scale == 1 else 0)
    with SceneReader(one, scale=scale) as a, SceneReader(other, scale=scale) as b:
        assert a.level.width == b.level.width
        image, twin = a.read(tile), b.read(tile)
    return np.array_equal(image.pixels, twin.pixels) and np.array_equal(image.valid, twin.valid)


def test_a_prefix_holds_what_the_folder_holds(prefix: str, folder: Path) -> None:
    local, remote = find_scenes([str(folder)]).scenes, find_scenes([f"{prefix}/"]).scenes
    assert [s.scene_id for s in remote] == [s.scene_id for s in local]
    assert remote == find_scenes([prefix]).scenes, "with or without the slash"
    for one, other in zip(local, remote, strict=True):
        assert (one.width, one.crs, one.transform, one.size_bytes) == (
            other.width,
            other.crs,
            other.transform,
            other.size_bytes,
        )
        assert other.etag
        assert len(one.options) == len(other.options), "masks and overviews beside the image are found there too"
        assert same_pixels(one, other, 1.0)
        assert same_pixels(one, other, 0.3)


def test_objects_and_globs(prefix: str) -> None:
    assert ids(f"{prefix}/a.tif") == ["a"]
    assert ids(f"{prefix}/*.tif") == ["a"]
    assert ids(f"{prefix}/**/*.tif")[:2] == ["a", "deep__b"]
    assert ids(f"{prefix}/deep/?.tif") == ["b"]
    assert find_scenes([f"{prefix}/a.tif"]).scenes == find_scenes([f"{prefix}/*.tif"]).scenes


def test_manifests_on_s3(prefix: str, s3, bucket: str) -> None:
    s3.client().put_object(
        Bucket=bucket, Key="in/put/list.csv", Body=b"uri,scene_id\na.tif,north\ndeep/b.tif,\ngone.tif,\n"
    )
    plan = find_scenes([f"{prefix}/list.csv"])
    assert [scene.scene_id for scene in plan.scenes] == ["b", "north"]
    assert [failure.scene_id for failure in plan.failures] == ["gone"]
    assert "no such object" in str(plan.failures[0].error)


def test_a_replaced_object_or_mask_is_another_identity(prefix: str, s3, bucket: str, folder: Path) -> None:
    def now() -> Scene:
        return find_scenes([f"{prefix}/a.tif"]).scenes[0]

    first = now()
    assert scene_identity(now()) == scene_identity(first)
    s3.client().upload_file(str(folder / "deep/b.tif"), bucket, "in/put/a.tif")
    second = now()
    s3.client().upload_file(str(folder / "deep/b.tif"), bucket, "in/put/a.tif.msk")
    assert len({scene_identity(scene) for scene in (first, second, now())}) == 3


def test_pixels_follow_a_replaced_object(prefix: str, s3, bucket: str, folder: Path) -> None:
    scene = find_scenes([f"{prefix}/deep/b.tif"]).scenes[0]
    with SceneReader(scene) as reader:
        before, _ = reader.read_window(scene.window)
    s3.client().upload_file(str(folder / "a.tif"), bucket, "in/put/deep/b.tif")
    with SceneReader(scene) as reader:
        after, _ = reader.read_window(scene.window)
    assert not np.array_equal(before, after), "nothing stale from a cache"


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_does_not_exist() -> None:
    with pytest.raises(StorageError, match="bucket"):
        find_scenes(["s3://no-such-bucket-here/x/"])


def test_public_data_without_credentials(s3, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.client().upload_file(str(folder / "a.tif"), s3.public_bucket, "open/a.tif")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    scene = find_scenes([f"s3://{s3.public_bucket}/open/"]).scenes[0]
    with SceneReader(scene) as reader:
        assert reader.read_window(scene.window)[0].any()


def test_an_area_of_interest_on_s3(s3, bucket: str) -> None:
    body = b'{"type":"Polygon","crs":null,"coordinates":[[[0,0],[9,0],[9,9],[0,0]]]}'
    s3.client().put_object(Bucket=bucket, Key="aoi.geojson", Body=body)
    aoi = load_aoi(f"s3://{bucket}/aoi.geojson")
    assert aoi.crs is None
    assert aoi.polygons[0].area == 40.5


def test_warnings_stay_away(prefix: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(f"{prefix}/a.tif")
