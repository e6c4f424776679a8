"""COCO files, judged by pycocotools and rasterio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rasterio.features import rasterize

from segworker.errors import StoreError
from segworker.io.coco import CocoFeatures, CocoWriter, coco_path, images_of_scene
from segworker.io.coco_masks import rle_counts, segmentations_of
from segworker.io.ids import feature_ids
from segworker.io.storage import open_storage
from segworker.types import Category

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
CATEGORIES = (Category(1, "house"), Category(2, "field", isthing=False))
RING = shapely.Polygon([(2, 2), (9, 2), (9, 8), (2, 8)], [[(4, 4), (6, 4), (6, 6), (4, 6)]])


def features_of(scene_no: int, polygons: list[shapely.Geometry], **options) -> CocoFeatures:
    count = len(polygons)
    shapes = np.array(polygons, object)
    return CocoFeatures(
        feature_ids(scene_no, np.arange(count)),
        np.ones(count, np.int32),
        np.full(count, 0.5, np.float32),
        shapely.area(shapes),
        shapes,
        **options,
    )


def write(folder: Path, *scenes, **options) -> Path:
    storage = open_storage(str(folder))
    with CocoWriter(storage, coco_path("r1", 0), CATEGORIES, info={"description": "test"}, **options) as writer:
        for images, features in scenes:
            writer.add(images, features)
    return folder / "runs/r1/coco/instances-0.json"


@pytest.mark.parametrize(
    "polygon",
    [
        shapely.box(1, 2, 5, 9),
        shapely.box(0, 0, 12, 10),
        RING,
        shapely.MultiPolygon([RING, shapely.box(10, 0, 12, 1)]),
        shapely.box(-5, -5, 3, 30),
        shapely.Polygon([(1.2, 0.3), (10.7, 4.4), (3.3, 9.6)]),
    ],
)
def test_runs_are_the_pixels_whose_centres_are_inside(polygon: shapely.Geometry):
    counts = rle_counts(polygon, 10, 12)
    mask = coco_mask.decode(coco_mask.frPyObjects({"counts": counts.tolist(), "size": [10, 12]}, 10, 12))
    assert (mask == rasterize([polygon], out_shape=(10, 12))).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 2), min_size=1, max_size=60, unique=True))
def test_unions_of_pixels_come_back_as_they_were(pixels: list[tuple[int, int]]):
    truth = np.zeros((10, 10), np.uint8)
    truth[tuple(np.array(pixels).T)] = 1
    union = shapely.union_all([shapely.box(x, y, x + 1, y + 1) for y, x in pixels])
    counts = rle_counts(union, 10, 10)
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    assert (truth == values.reshape(10, 10).T).all()


def test_the_cost_of_a_run_length_code_does_not_grow_with_the_image():
    counts = rle_counts(shapely.box(60_000, 60_000, 60_003, 60_002), 65_000, 65_000)
    assert counts.sum() == 65_000**2
    assert len(counts) == 7


def test_pycocotools_reads_what_was_written(tmp_path: Path):
    a, b = images_of_scene(0, "a", "s3://in/a.tif", 12, 10), images_of_scene(5, "b", "b.png", 20, 20)
    two = shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(5, 5, 7, 8)])
    file = write(tmp_path, (a, features_of(0, [shapely.box(1, 2, 5, 9), RING, two])), (b, features_of(5, [])))

    coco = COCO(str(file))
    assert sorted(coco.imgs) == [0, 5]
    assert [c["name"] for c in coco.loadCats([1, 2])] == ["house", "field"]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[0]))
    assert [x["id"] for x in annotations] == [x["feature_id"] for x in annotations] == [0, 1, 2]
    assert annotations[0]["bbox"] == [1, 2, 4, 7]
    assert isinstance(annotations[0]["segmentation"], list)
    assert isinstance(annotations[1]["segmentation"], dict)
    for annotation, polygon in zip(annotations, (shapely.box(1, 2, 5, 9), RING, two), strict=True):
        assert annotation["area"] == polygon.area
        assert annotation["iscrowd"] == 0
    assert (coco.annToMask(annotations[1]) == rasterize([RING], out_shape=(10, 12))).all()


def test_keypoints(tmp_path: Path):
    points = np.array([[[1.0, 2.0, 0.9], [3.25, 4.0, 0.0]]], np.float32)
    images, features = images_of_scene(0, "a", "a.png", 12, 10), features_of(0, [RING], keypoints_NK3=points)
    coco = COCO(str(write(tmp_path, (images, features), keypoint_names={1: ["head", "tail"]})))
    annotation = coco.loadAnns([0])[0]
    assert annotation["keypoints"] == [1, 2, 2, 0, 0, 0]
    assert annotation["num_keypoints"] == 1
    assert coco.loadCats([1])[0]["keypoints"] == ["head", "tail"]


def test_a_scene_too_large_to_count_becomes_blocks(tmp_path: Path):
    images = images_of_scene(3, "big", "big.tif", 25, 10, max_px=100)
    assert [image.window.width for image in images] == [10, 10, 5]
    features = features_of(3, [shapely.box(8, 2, 22, 6), shapely.box(0, 0, 10, 10), RING])
    coco = COCO(str(write(tmp_path, (images, features))))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(coco.imgs) == 3
    assert len(coco.anns) == len(annotations) == 5
    assert (
        {x["feature_id"] for x in annotations} == set(features.feature_ids.tolist()) <= {x["id"] for x in annotations}
    )
    areas = {i: sum(x["area"] for x in annotations if x["feature_id"] == i) for i in features.feature_ids.tolist()}
    assert list(areas.values()) == features.areas_px.tolist()
    whole = np.zeros((10, 25), np.uint8)
    for annotation in annotations:
        left, top = coco.imgs[annotation["image_id"]]["offset_xy"]
        mask = coco.annToMask(annotation)
        if annotation["feature_id"] == features.feature_ids[0]:
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] |= mask
    assert (whole == rasterize([features.polygons[0]], out_shape=(10, 25))).all()
    assert max(x["id"] for x in annotations) < 2**53


def test_only_scenes_beyond_32_bits_are_cut():
    assert len(images_of_scene(0, "a", "a.tif", 65_536, 65_535)) == 1
    images = images_of_scene(0, "a", "a.tif", 100_000, 100_000)
    assert len(images) == 16
    assert sum(image.window.area_px for image in images) == 10**10


def test_a_file_is_valid_json_also_without_scenes(tmp_path: Path):
    document = json.loads(write(tmp_path).read_text())
    assert document["images"] == document["annotations"] == []
    assert document["info"] == {"description": "test"}


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path):
    with pytest.raises(RuntimeError), CocoWriter(open_storage(str(tmp_path)), "x.json", CATEGORIES):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_classes_that_are_no_category_are_refused(tmp_path: Path):
    features = features_of(0, [RING])
    features.class_ids[:] = 9
    with pytest.raises(StoreError, match="category of the model"):
        write(tmp_path, (images_of_scene(0, "a", "a.png", 12, 10), features))


def test_coordinates_are_short():
    polygons = np.array([shapely.box(1, 2, 3, 4), shapely.box(1, 2, 3, 4.123456)], object)
    first, second = segmentations_of(polygons, 9, 9)
    assert json.dumps(first) == "[[3, 2, 3, 4, 1, 4, 1, 2]]"
    assert second == [[3, 2, 3, 4.12, 1, 4.12, 1, 2]]
