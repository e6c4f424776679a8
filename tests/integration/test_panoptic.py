"""Panoptic runs, judged exactly: every pixel of a painted scene comes back as what it is, whatever the tiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from scipy import ndimage

from segworker.blocks import block_side
from segworker.metrics import class_qualities, overlap_rasters
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.truth import TruthScene
from tests.painted import burnt, features, segment, shapes

pytestmark = pytest.mark.usefixtures("local_ray")

MODEL = "segworker.synthetic.models:perfect_panoptic"
GRIDS = {
    "in one task": {"tile": 256, "overlap": 32, "in_one_task": True},
    "many blocks": {"tile": 48, "overlap": 24},  # 26 x 23 tiles: four blocks
    "one tile": {"tile": 1024, "overlap": 64},
}


@pytest.fixture(scope="module")
def scene() -> TruthScene:
    return make_scene("panoptic", (611, 533), 7)


@pytest.fixture(scope="module")
def runs(scene: TruthScene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict]]:
    path = paint_scene(scene, tmp_path_factory.mktemp("scenes") / "ground.tif")
    found = {}
    for name, options in GRIDS.items():
        store = tmp_path_factory.mktemp("stores") / name.replace(" ", "_")
        summary = segment(store, path, model=MODEL, min_stuff=0, **options)
        assert summary.exit_code == 0, summary.text
        found[name] = store, summary.record
    return found


def truth_of(scene: TruthScene) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels of things and of 4-connected regions of stuff from 1, class of each; 0 of 0)."""
    labels = scene.labels_HW.astype(np.int64)
    classes = scene.class_ids.tolist()
    assert scene.stuff_HW is not None
    for class_id in (4, 5, 6):
        regions, count = ndimage.label((scene.stuff_HW == class_id) & (scene.labels_HW == 0))
        labels[regions > 0] = regions[regions > 0] + len(classes) - 1
        classes += [class_id] * count
    return labels, np.array(classes)


def test_the_grid_of_many_blocks_has_several(scene: TruthScene) -> None:
    tile, overlap = GRIDS["many blocks"]["tile"], GRIDS["many blocks"]["overlap"]
    assert min(scene.labels_HW.shape) > (block_side(tile, overlap, 12) + 2) * (tile - overlap)


def raster_paths(store: Path, record: dict) -> tuple[Path, Path]:
    index, classes = record["outputs"]["rasters"]
    return store / index, store / classes


@pytest.mark.parametrize("grid", GRIDS)
def test_every_pixel_is_in_one_segment_and_in_the_right_one(runs: dict, scene: TruthScene, grid: str) -> None:
    store, record = runs[grid]
    labels, classes = truth_of(scene)
    index_path, class_path = raster_paths(store, record)
    with rasterio.open(index_path) as raster:
        index = raster.read(1).astype(np.int64)
        assert raster.profile["dtype"] == "uint32"
    assert index.min() == 1
    pairs = np.unique(np.column_stack([labels.ravel(), index.ravel()]), axis=0)
    assert len(pairs) == len(classes) - 1 == index.max()  # one segment for each region, one region for each segment
    with rasterio.open(class_path) as raster:
        assert np.array_equal(raster.read(1), classes[labels])
    rows = features(store)
    assert np.array_equal(burnt(shapes(rows), index.shape), index)
    assert rows["is_thing"].to_pylist() == [c < 4 for c in rows["class_id"].to_pylist()]
    assert shapely.is_valid(shapes(rows)).all()
    assert sum(rows["area_px"].to_pylist()) == index.size


@pytest.mark.parametrize("grid", ["many blocks", "one tile"])
def test_tiles_do_not_matter(runs: dict, grid: str) -> None:
    columns = ["feature_id", "segment_id", "class_id", "is_thing", "score", "area_px", "bbox", "geometry"]
    one, other = (features(runs[name][0]).select(columns) for name in ("in one task", grid))
    assert one.equals(other)


def test_quality_read_back_from_raster_and_json_is_one(runs: dict, scene: TruthScene) -> None:
    store, record = runs["many blocks"]
    index_path, _ = raster_paths(store, record)
    told = json.loads(index_path.with_suffix(".json").read_text())
    (annotation,) = told["annotations"]
    assert annotation["file_name"] == index_path.name
    with rasterio.open(index_path) as raster:
        index = raster.read(1).astype(np.int64)
    segments = {s["id"]: s for s in annotation["segments_info"]}
    labels, classes = truth_of(scene)
    overlaps = overlap_rasters(labels, index)
    found = np.array([segments[i]["category_id"] for i in overlaps.pred_ids.tolist()])
    quality = class_qualities(overlaps, classes[overlaps.truth_ids], found)
    assert {q.pq for q in quality.values()} == {1.0}
    ids, areas = np.unique(index, return_counts=True)
    assert {i: segments[i]["area"] for i in ids.tolist()} == dict(zip(ids.tolist(), areas.tolist(), strict=True))
    rows = features(store)
    assert sorted(s["feature_id"] for s in segments.values()) == rows["feature_id"].to_pylist()
    boxes = {s["feature_id"]: s["bbox"] for s in segments.values()}
    for row in rows.select(["feature_id", "bbox"]).to_pylist():
        x, y, w, h = boxes[row["feature_id"]]
        assert [x, y, x + w, y + h] == [row["bbox"][side] for side in ("xmin", "ymin", "xmax", "ymax")]


@pytest.mark.slow
def test_small_regions_go_to_neighbours_whatever_the_blocks(scene: TruthScene, tmp_path: Path) -> None:
    path = paint_scene(scene, tmp_path / "ground.tif")
    found = []
    for name, options in (("one", GRIDS["in one task"]), ("many", GRIDS["many blocks"])):
        summary = segment(tmp_path / name, path, model=MODEL, min_stuff=3000, **options)
        rows = features(tmp_path / name)
        assert sum(rows["area_px"].to_pylist()) == scene.labels_HW.size
        found.append(rows.select(["feature_id", "class_id", "geometry"]))
        assert summary.record["counts"]["features"] == len(rows)
    assert found[0].equals(found[1])
