"""Annotations of every format become one truth; what is wrong with them is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from pycocotools import mask as coco_mask
from rasterio import features
from rasterio.transform import Affine

from segworker.errors import ConfigError, StorageError
from segworker.io.annotations import TruthOptions, read_truth
from segworker.io.annotations.coco import rle_lengths, runs_of_rle
from segworker.io.header import open_scene
from segworker.masks import areas_px, boxes_xyxy, fingerprints, labels_from_runs
from segworker.rasterise import runs_of_polygons
from segworker.synthetic.paint import write_raster
from segworker.synthetic.render import SAMPLE_CRS, sample
from segworker.truth import Fault, TruthSet
from segworker.types import Scene

WIDTH, HEIGHT = 60, 40


def plain(scene_id: str = "a", *, width: int = WIDTH, height: int = HEIGHT) -> Scene:
    return Scene(scene_id, f"/in/{scene_id}.tif", width, height, 3, "uint8")


def random_polygons(count: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (count, 9)), axis=1)
    radii, centres = rng.uniform(2, 14, (count, 9)), rng.uniform(-5, 65, (count, 1, 2))
    points = centres + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=2)
    return np.array([shapely.make_valid(shapely.Polygon(p)) for p in points], object)


class TestPixels:
    def test_polygons_fill_the_pixels_whose_centres_they_hold(self) -> None:
        shapes = random_polygons(60, seed=1)
        shapes[0] = shapely.box(0, 0, 50, 30).difference(shapely.box(10, 10, 20, 20))
        shapes[1] = shapely.union(shapely.box(0, 0, 5, 5), shapely.box(5, 0, 9, 5).buffer(0.0))
        runs = runs_of_polygons(shapes, width=WIDTH, height=HEIGHT)
        for k, shape in enumerate(shapes):
            want = features.rasterize([(shape, 1)], out_shape=(HEIGHT, WIDTH))
            np.testing.assert_array_equal(labels_from_runs(runs.take(np.array([k])), window=plain().window), want)

    def test_runs_that_touch_are_one(self) -> None:
        shapes = np.array([shapely.multipolygons([shapely.box(0, 0, 5, 2), shapely.box(5, 0, 9, 2)])], object)
        assert runs_of_polygons(shapes, width=WIDTH, height=HEIGHT).stops.tolist() == [9, 9]
        assert len(runs_of_polygons(np.array([None, shapely.Polygon()], object), width=9, height=9)) == 2

    @pytest.mark.parametrize("seed", range(4))
    def test_run_lengths_are_those_of_pycocotools(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        mask = rng.random((HEIGHT, WIDTH)) < (0.0, 0.5, 0.02, 1.0)[seed]
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs = runs_of_rle({"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}, plain())
        np.testing.assert_array_equal(labels_from_runs(runs, window=plain().window), mask)
        raw = rle_lengths(packed["counts"]).tolist()
        again = runs_of_rle({"size": [HEIGHT, WIDTH], "counts": raw}, plain())
        np.testing.assert_array_equal(again.starts, runs.starts)

    def test_long_run_lengths(self) -> None:
        packed = coco_mask.frPyObjects({"size": [70_000, 40_000], "counts": [5, 2**30, 2_800_000_000 - 5 - 2**30]},
                                       70_000, 40_000)  # fmt: skip
        assert rle_lengths(packed["counts"]).tolist() == [5, 2**30, 2_800_000_000 - 5 - 2**30]


def annotation(number: int, segmentation: object, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}


def square(x: float, y: float, side: float = 8) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def coco(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.tif", "width": WIDTH, "height": HEIGHT, **image}],
        "categories": [{"id": 1, "name": "house"}, {"id": 7, "name": "pond", "isthing": 0}],
        "annotations": list(annotations),
    }


def written(folder: Path, document: object, name: str = "truth.json") -> str:
    (folder / name).write_text(json.dumps(document))
    return str(folder / name)


def faults(truth: TruthSet) -> list[tuple[str, str, str]]:
    return [(issue.object_id, issue.action, issue.fault.value) for issue in truth.issues]


class TestCoco:
    def test_every_form(self, tmp_path: Path) -> None:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[3:9, 20:31] = 1
        packed = coco_mask.encode(np.asfortranarray(mask))
        rle = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}
        document = coco(
            annotation(1, square(2, 3)),
            annotation(2, rle, category_id=7),
            annotation(3, square(40, 10), iscrowd=1),
            annotation(4, square(20, 20) + square(32, 20), keypoints=[21, 22, 2, 0, 0, 0], num_keypoints=1),
            annotation(5, [], bbox=[50, 30, 4, 5]),
            not_exhaustive_category_ids=[7],
        )
        document["categories"][0]["keypoints"] = ["door", "chimney"]
        truth = read_truth([written(tmp_path, document)], [plain(), plain("b")])
        (scene,) = truth.scenes
        assert areas_px(scene.runs).tolist() == [64, 66, 64, 128, 20]
        assert scene.class_ids.tolist() == [1, 7, 1, 1, 1]
        assert scene.crowd.tolist() == [False, False, True, False, False]
        assert scene.keypoints_NK3 is not None
        assert scene.keypoints_NK3[3].tolist() == [[21, 22, 2], [0, 0, 0]]
        assert scene.partial_class_ids == {7}
        assert [(c.name, c.isthing) for c in truth.categories] == [("house", True), ("pond", False)]
        assert truth.keypoint_names == {1: ("door", "chimney")}
        assert truth.objects_by_class() == {"house": 3, "pond": 1}
        assert not truth.issues

    def test_bad_annotations_are_told(self, tmp_path: Path) -> None:
        document = coco(
            annotation(1, square(2, 3)),
            annotation(1, square(30, 3)),
            annotation(2, [[10, 10, 20, 20, 20, 10, 10, 20]]),
            annotation(3, square(100, 3)),
            annotation(4, square(55, 3)),
            annotation(5, [[1, 1, 2, 2]]),
            annotation(6, [[30, 30, 40, 30, 35, 30]]),
            annotation(7, square(20.6, 30.6, 0.3)),
            annotation(8, square(2, 20), category_id=5),
            annotation(9, square(2, 3)),
            annotation(10, {"size": [4, 4], "counts": [16]}),
            annotation(11, {"size": [HEIGHT, WIDTH], "counts": [3, 3]}),
            annotation(12, {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}),
            annotation(13, [[float("nan"), 1, 4, 4, 9, 1]]),
            annotation(14, square(2, 3), image_id=44),
        )
        truth = read_truth([written(tmp_path, document)], [plain()])
        assert truth.scenes[0].object_ids == ("1", "2", "4")
        assert sorted(faults(truth), key=lambda issue: int(issue[0])) == [
            ("1", "skipped", "duplicate"),
            ("2", "fixed", "self-crossing"),
            ("3", "skipped", "outside"),
            ("4", "fixed", "outside"),
            ("5", "skipped", "broken"),
            ("6", "skipped", "broken"),
            ("7", "skipped", "empty"),
            ("8", "skipped", "unknown class"),
            ("9", "skipped", "duplicate"),
            ("10", "skipped", "broken"),
            ("11", "skipped", "broken"),
            ("12", "skipped", "empty"),
            ("13", "skipped", "broken"),
            ("14", "skipped", "unknown scene"),
        ]
        assert truth.counts()["skipped: broken"] == 5
        assert "category_id 5" in " ".join(map(str, truth.issues))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"categories": []}, "declares its categories"),
            ({"images": [{"id": 1, "file_name": "a.tif", "width": 7, "height": 7}]}, "not a resized copy"),
            ({"images": [{"id": 1, "file_name": "z.tif"}]}, "annotations must be of the scenes"),
            ({"images": [{"id": 1, "file_name": "a.tif", "offset_xy": [0, 0]}]}, "a block of a"),
        ],
    )
    def test_files_that_do_not_fit(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read_truth([written(tmp_path, coco() | change)], [plain()])

    def test_names_that_mean_two_scenes(self, tmp_path: Path) -> None:
        scenes = [plain("a"), Scene("x__a", "/other/a.tif", WIDTH, HEIGHT, 3, "uint8")]
        with pytest.raises(ConfigError, match="fits a and x__a"):
            read_truth([written(tmp_path, coco())], scenes)

    def test_panoptic_pictures(self, shared_data: Path) -> None:
        folder = shared_data / "data" / "panoptic" / "coco_panopticapi"
        path = folder / "annotations" / "panoptic_examples.json"
        scenes = [open_scene(str(p), p.stem) for p in sorted((folder / "images").glob("*.jpg"))]
        truth = read_truth([str(path)], scenes, TruthOptions(panoptic_folder=str(folder / "panoptic")))
        told = {a["file_name"]: a for a in json.loads(path.read_text())["annotations"]}
        assert [len(scene) for scene in truth.scenes] == [len(a["segments_info"]) for _, a in sorted(told.items())]
        for scene, (_, image) in zip(truth.scenes, sorted(told.items()), strict=True):
            assert areas_px(scene.runs).tolist() == [segment["area"] for segment in image["segments_info"]]
        assert not truth.issues
        packed = read_truth([str(path.with_name("panoptic_coco_detection_format.json"))], scenes)
        for one, other in zip(truth.scenes, packed.scenes, strict=True):
            assert set(fingerprints(one.runs).tolist()) == set(fingerprints(other.runs).tolist())


@pytest.fixture(scope="module")
def aerial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scene]:
    folder = tmp_path_factory.mktemp("aerial")
    sample(folder, size_px=256)
    return folder / "truth", open_scene(str(folder / "scenes" / "aerial.tif"), "aerial")


class TestVector:
    @pytest.mark.parametrize(
        ("ending", "crs"), [("geojson", "EPSG:4326"), ("gpkg", SAMPLE_CRS), ("parquet", "EPSG:3857")]
    )
    def test_formats_and_other_crs_give_the_labels(
        self, tmp_path: Path, aerial: tuple[Path, Scene], ending: str, crs: str
    ) -> None:
        folder, scene = aerial
        labels = read_truth([str(folder / "aerial.tif")], [scene]).scenes[0]
        frame = geopandas.read_file(folder / "aerial.geojson").to_crs(crs)
        path = tmp_path / f"polygons.{ending}"
        frame.to_parquet(path) if ending == "parquet" else frame.to_file(path)
        drawn = read_truth([str(path)], [scene]).scenes[0]
        assert len(drawn) == len(labels) > 15
        key = np.lexsort(boxes_xyxy(drawn.runs).T), np.lexsort(boxes_xyxy(labels.runs).T)
        same = areas_px(drawn.runs)[key[0]] - areas_px(labels.runs)[key[1]]
        assert np.abs(same).max() <= (0 if crs == SAMPLE_CRS else 3)  # a centre on an outline may fall either way

    def test_classes_scenes_and_bad_rows(self, tmp_path: Path) -> None:
        rows = [
            {"kind": "house", "tile": "a", "geometry": shapely.box(1, 1, 9, 9)},
            {"kind": None, "tile": "a", "geometry": shapely.box(11, 1, 19, 9)},
            {"kind": "pond", "tile": "b.tif", "geometry": shapely.box(1, 1, 9, 9)},
            {"kind": "pond", "tile": "a", "geometry": shapely.LineString([(1, 1), (5, 5)])},
            {"kind": "pond", "tile": "zz", "geometry": shapely.box(1, 1, 9, 9)},
            {"kind": "pond", "tile": "a", "geometry": None},
            {"kind": "unsure", "tile": "a", "geometry": shapely.box(30, 1, 40, 9)},
        ]
        path = tmp_path / "rows.parquet"
        geopandas.GeoDataFrame(rows, geometry="geometry", crs=None).to_parquet(path)
        options = TruthOptions(class_field="kind", scene_field="tile", ignore_classes=frozenset({"unsure"}))
        truth = read_truth([str(path)], [plain("a"), plain("b")], options)
        assert [len(scene) for scene in truth.scenes] == [2, 1]
        assert truth.objects_by_class() == {"house": 1, "pond": 1}
        assert truth.scenes[0].crowd.tolist() == [False, True]
        assert sorted(faults(truth)) == [
            ("1", "skipped", Fault.UNKNOWN_CLASS),
            ("3", "skipped", Fault.BROKEN),
            ("4", "skipped", Fault.OUTSIDE),
            ("5", "skipped", Fault.BROKEN),
        ]
        for field in ("class_field", "scene_field"):
            with pytest.raises(ConfigError, match=r"got 'colour' .* kind, tile"):
                read_truth([str(path)], [plain("a")], TruthOptions(**{field: "colour"}))

    def test_map_annotations_need_map_scenes(self, aerial: tuple[Path, Scene]) -> None:
        with pytest.raises(ConfigError, match="need scenes with a CRS"):
            read_truth([str(aerial[0] / "aerial.geojson")], [plain()])

    def test_real_buildings_lie_on_the_scene(self, shared_data: Path) -> None:
        folder = shared_data / "data" / "aerial" / "fair_uganda_buildings"
        scene = open_scene(str(folder / "images" / "fair_z21_block_a.tif"), "block")
        truth = read_truth([str(folder / "annotations" / "fair_z21_block_a.geojson")], [scene])
        assert truth.num_objects + sum(issue.action == "skipped" for issue in truth.issues) == 108
        frame = geopandas.read_file(folder / "annotations" / "fair_z21_block_a.geojson").to_crs(scene.crs)
        with rasterio.open(scene.uri) as dataset:
            want = features.rasterize(frame.geometry, out_shape=dataset.shape, transform=dataset.transform)
        got = labels_from_runs(truth.scenes[0].runs, window=scene.window) > 0
        assert (got != (want > 0)).mean() < 1e-5


class TestLabels:
    def test_names_classes_and_ignored_places(self, tmp_path: Path) -> None:
        labels = np.zeros((HEIGHT, WIDTH), np.uint16)
        labels[2:6, 2:6], labels[10:20, 30:50], labels[30:, :] = 3, 700, 65_535
        write_raster(tmp_path / "a_labels.tif", labels[None])
        write_raster(tmp_path / "other.tif", labels[None])
        options = TruthOptions(ignore_label=65_535)
        truth = read_truth([str(tmp_path)], [plain()], options)
        assert truth.scenes[0].object_ids == ("3", "700", "65535")
        assert truth.scenes[0].crowd.tolist() == [False, False, True]
        assert areas_px(truth.scenes[0].runs).tolist() == [16, 200, 600]
        written(tmp_path, {"3": "house"}, "a_labels.classes.json")
        truth = read_truth([str(tmp_path / "a_labels.tif")], [plain()], options)
        assert truth.objects_by_class()["house"] == 1
        assert faults(truth) == [("700", "skipped", "unknown class")]

    def test_unusable_rasters(self, tmp_path: Path) -> None:
        write_raster(tmp_path / "a.tif", np.zeros((3, HEIGHT, WIDTH), np.uint8))
        with pytest.raises(ConfigError, match="one band of integers"):
            read_truth([str(tmp_path / "a.tif")], [plain()])
        write_raster(tmp_path / "a.tif", np.zeros((1, 8, 8), np.uint8), transform=Affine.identity())
        with pytest.raises(ConfigError, match="as large as its scene"):
            read_truth([str(tmp_path / "a.tif")], [plain()])

    def test_scenes_without_objects(self, tmp_path: Path) -> None:
        uri = written(tmp_path, coco())
        assert [len(scene) for scene in read_truth([uri], [plain(), plain("b")]).scenes] == [0]
        both = read_truth([uri], [plain(), plain("b")], TruthOptions(empty_scenes=True))
        assert [scene.scene_id for scene in both.scenes] == ["a", "b"]

    def test_nothing_there(self, tmp_path: Path) -> None:
        for name in ("no.tif", "no.geojson", "no.json"):
            with pytest.raises((ConfigError, StorageError), match=r"got .*no\.|no\.json"):
                read_truth([str(tmp_path / name)], [plain()])
