"""Painted scenes keep their promises: seeded, whole objects, windows that agree; models see what was painted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from pycocotools.coco import COCO
from rasterio import features
from scipy import ndimage

from segworker import masks, metrics
from segworker.grid import Grid
from segworker.synthetic import models, paint
from segworker.synthetic.noise import Noise, SeenTile, noisy_tiles, oracle_pairs, perfect_tiles
from segworker.synthetic.render import sample
from segworker.synthetic.scenes import KINDS, make_scene, split_objects
from segworker.synthetic.town import Town
from segworker.synthetic.truth import TruthScene, connected_components, label_components, visible_truth
from segworker.synthetic.virtual import VirtualScene
from segworker.types import Category, LabelMasks, Window

EIGHT = np.ones((3, 3), int)


def parts_of(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, EIGHT)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_whole_and_classed(kind: str) -> None:
    scene = make_scene(kind, (420, 510), 3)
    assert scene.labels_HW.shape == (420, 510)
    assert scene.num_objects == len(np.unique(scene.labels_HW[scene.labels_HW > 0])) > 0
    things = {c.id for c in scene.categories if c.isthing}
    assert set(scene.class_ids[1:].tolist()) <= things
    boxes = ndimage.find_objects(scene.labels_HW)
    assert all(parts_of(scene.labels_HW[box] == i + 1) == 1 for i, box in enumerate(boxes))


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_are_seeded(kind: str) -> None:
    first, again, other = (make_scene(kind, 300, seed).labels_HW for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nuclei_touch_and_fields_fill() -> None:
    nuclei, fields = make_scene("nuclei", 400, 0).labels_HW, make_scene("fields", 1200, 0)
    touching = (nuclei[:, 1:] != nuclei[:, :-1]) & (nuclei[:, 1:] > 0) & (nuclei[:, :-1] > 0)
    assert touching.sum() > 100
    sizes = np.bincount(nuclei.ravel())[1:]
    assert 80 < np.median(sizes) < 1200
    assert (fields.labels_HW > 0).mean() > 0.6
    classes = fields.class_ids[fields.labels_HW]
    border = (fields.labels_HW[:, 1:] != fields.labels_HW[:, :-1]) & (classes[:, 1:] == classes[:, :-1])
    assert border.any()


def test_panoptic_ground_is_complete() -> None:
    scene = make_scene("panoptic", 300, 0)
    assert scene.stuff_HW is not None
    stuff = {c.id for c in scene.categories if not c.isthing}
    assert set(np.unique(scene.stuff_HW).tolist()) <= stuff


def test_split_objects_have_parts() -> None:
    scene = make_scene("aerial", 400, 5)
    split = split_objects(scene, share=1.0, seed=0)
    boxes = ndimage.find_objects(split.labels_HW)
    several = [parts_of(split.labels_HW[box] == i + 1) > 1 for i, box in enumerate(boxes) if box is not None]
    assert sum(several) > len(several) / 2
    assert split.num_objects == scene.num_objects


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="choose from nuclei"):
        make_scene("moon", 100, 0)


@pytest.mark.parametrize("kind", ["nuclei", "city", "combs"])
def test_virtual_windows_agree_and_objects_are_whole(kind: str) -> None:
    scene = VirtualScene(700, 610, 4, kind)  # type: ignore[arg-type]
    every = Window(0, 0, 700, 610)
    whole = scene.labels(every)
    for window in (Window(33, 70, 301, 257), Window(0, 500, 64, 110), Window(699, 609, 1, 1)):
        assert np.array_equal(scene.labels(window), whole[window.slices_in(every)])
    assert whole.max() <= scene.max_label
    assert label_components(whole).max() == len(np.unique(whole)) - 1
    assert not scene.labels(Window(-50, -50, 50, 50)).any()
    if kind == "nuclei":
        assert scene.count_objects() == len(np.unique(whole)) - 1
    else:
        assert (scene.class_ids(whole)[whole == 1] == 2).all()


def test_virtual_scenes_repeat_their_looks_only() -> None:
    scene = VirtualScene(28 * 60, 28 * 60, 1, period_cells=16)
    near = scene.labels(Window(28 * 10, 28 * 10, 200, 200))
    far = scene.labels(Window(28 * 26, 28 * 26, 200, 200))
    assert np.array_equal(near > 0, far > 0)
    assert not set(near[near > 0]) & set(far[far > 0])


def test_visible_truth_joins_what_a_window_sees_together() -> None:
    labels = np.zeros((20, 100), np.int32)
    labels[5:9, 10:20] = labels[5:9, 30:40] = labels[5:9, 80:90] = 7
    labels[15, 50] = 3
    windows = [Window(0, 0, 50, 20), Window(45, 0, 55, 20)]
    several, old = visible_truth(labels, windows, parts="several")
    assert several.max() == 4
    assert old.tolist() == [0, 7, 7, 7, 3]
    one, old = visible_truth(labels, windows, parts="one")
    assert sorted(old.tolist()) == [0, 3, 7, 7]
    assert one[6, 12] == one[6, 35] != one[6, 85]
    assert np.array_equal(visible_truth(labels, [Window(0, 0, 100, 20)])[0] > 0, labels > 0)
    assert visible_truth(labels, [Window(0, 0, 100, 20)])[0].max() == 2


def test_connected_components_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 300, (2, 220))
    roots = connected_components(300, a, b)
    graph = np.zeros((300, 300))
    graph[a, b] = 1
    from scipy.sparse.csgraph import connected_components as reference

    expected = reference(graph, directed=False)[1]
    assert len(np.unique(np.stack([roots, expected]), axis=1).T) == len(np.unique(expected))
    assert (roots <= np.arange(300)).all()


def painted(scene: TruthScene) -> tuple[torch.Tensor, torch.Tensor]:
    labels = scene.labels_HW.astype(np.int64) + 70_000 * (scene.labels_HW > 0)
    bands = np.stack([labels & 0xFFFF, labels >> 16, scene.class_ids[scene.labels_HW]]).astype(np.float32)
    valid = np.ones(labels.shape, bool)
    return torch.from_numpy(bands)[None], torch.from_numpy(valid)[None]


@pytest.mark.parametrize("factory", [models.perfect, models.perfect_parts, models.perfect_cropped])
def test_perfect_models_give_back_the_truth(factory: object) -> None:
    scene = make_scene("aerial", 300, 2)
    model = factory()  # type: ignore[operator]
    (prediction,) = model.predict(*painted(scene))
    assert len(prediction) == scene.num_objects
    assert np.unique(prediction.scores).tolist() == [np.float32(models.SCORE)]
    found = np.zeros(scene.labels_HW.shape, np.int32)
    if isinstance(prediction.masks, LabelMasks):
        found = prediction.masks.labels_HW
    else:
        for i, (mask, (x, y)) in enumerate(zip(prediction.masks.masks, prediction.masks.corners_xy, strict=True)):
            found[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = i + 1
    assert metrics.panoptic_quality(metrics.overlap_rasters(scene.labels_HW, found)).pq == 1.0
    assert np.array_equal(prediction.class_ids[found[found > 0] - 1], scene.class_ids[scene.labels_HW][found > 0])
    boxes = masks.boxes_xyxy(masks.runs_from_labels(found, len(prediction), window=Window(0, 0, 300, 300)))
    assert np.array_equal(boxes, prediction.boxes_xyxy)


def test_perfect_models_leak_no_identity() -> None:
    images, valid = painted(make_scene("nuclei", 200, 2))
    model = models.perfect()
    (whole,), (half,) = model.predict(images, valid), model.predict(images[..., :120], valid[..., :120])
    assert isinstance(whole.masks, LabelMasks)
    assert isinstance(half.masks, LabelMasks)
    assert not np.array_equal(whole.masks.labels_HW[:, :120], half.masks.labels_HW)
    (again,) = model.predict(images, valid)
    assert np.array_equal(whole.masks.labels_HW, again.masks.labels_HW)


def test_invalid_pixels_hold_nothing() -> None:
    images, valid = painted(make_scene("nuclei", 64, 2))
    (nothing,) = models.perfect().predict(images, torch.zeros_like(valid))
    assert len(nothing) == 0
    (empty,) = models.perfect().predict(images[..., :0, :0], valid[..., :0, :0])
    assert len(empty) == 0


def test_panoptic_model_knows_the_ground() -> None:
    scene = make_scene("panoptic", 128, 1)
    assert scene.stuff_HW is not None
    images, valid = painted(scene)
    ground = np.where(scene.labels_HW > 0, scene.class_ids[scene.labels_HW], scene.stuff_HW)
    images[0, 2] = torch.from_numpy(ground.astype(np.float32))
    (prediction,) = models.perfect_panoptic().predict(images, valid)
    assert prediction.semantic_scores_CHW is not None
    assert np.array_equal(prediction.semantic_scores_CHW.argmax(0) + 1, ground)


def block_scene() -> tuple[TruthScene, Grid]:
    """Two squares: one in the strip of two tiles, one in the first tile alone."""
    labels = np.zeros((128, 224), np.int32)
    labels[40:80, 90:130] = 1
    labels[40:80, 10:50] = 2
    return TruthScene("", 0, labels, np.array([0, 1, 1], np.int32), (Category(1, "square"),)), Grid(
        "", 224, 128, 128, 32
    )


def by_truth(seen: SeenTile) -> dict[int, int]:
    return {int(t): i for i, t in enumerate(seen.truth_ids)}


def test_perfect_tiles_and_their_oracle() -> None:
    scene, grid = block_scene()
    left, right = perfect_tiles(scene, grid)
    assert len(left.truth_ids) == 2
    assert len(right.truth_ids) == 1
    assert oracle_pairs(left, right).tolist() == [[by_truth(left)[1], by_truth(right)[1]]]
    assert masks.areas_px(left.instances.runs)[by_truth(left)[2]] == 1600


def test_noise_is_seeded_and_differs_between_tiles() -> None:
    scene, grid = make_scene("nuclei", 300, 1), Grid("", 300, 300, 192, 64)
    first, again = noisy_tiles(scene, grid), noisy_tiles(scene, grid)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.instances.runs.starts, b.instances.runs.starts)
        assert np.array_equal(a.truth_ids, b.truth_ids)
    areas = [dict(zip(s.truth_ids.tolist(), masks.areas_px(s.instances.runs).tolist(), strict=True)) for s in first]
    common = set(areas[0]) & set(areas[1]) - {0}
    assert any(areas[0][i] != areas[1][i] for i in common)


def test_noise_keeps_its_measures() -> None:
    scene, grid = make_scene("nuclei", 600, 1), Grid("", 600, 600, 300, 36)
    perfect, noisy = perfect_tiles(scene, grid, parts="several"), noisy_tiles(scene, grid)
    num_perfect = sum(len(s.truth_ids) for s in perfect)
    invented = sum(int((s.truth_ids == 0).sum()) for s in noisy)
    assert 0 < invented < 0.05 * num_perfect
    assert 0.85 * num_perfect < sum(len(s.truth_ids) for s in noisy) - invented < num_perfect
    for seen in noisy:
        window, real = seen.instances.tile.window, seen.truth_ids > 0
        boxes = seen.instances.boxes_xyxy[real]
        assert (boxes[:, 0] >= window.col_off + (window.col_off > 0)).all()
        assert (boxes[:, 2] <= window.col_end - (window.col_end < grid.width)).all()
        inner = Window(window.col_off + 40, window.row_off + 40, window.width - 80, window.height - 80)
        truth = np.isin(scene.labels_HW[inner.slices_in(Window(0, 0, 600, 600))], seen.truth_ids[real])
        shown = masks.labels_from_runs(seen.instances.runs.take(real), window=inner) > 0
        for error in (
            shown & ~ndimage.binary_dilation(truth, iterations=4),
            ndimage.binary_erosion(truth, iterations=4) & ~shown,
        ):
            assert error.mean() < 0.02


def test_no_noise_is_no_noise() -> None:
    scene, grid = make_scene("aerial", 300, 1), Grid("", 300, 300, 192, 64)
    calm = Noise(jitter_px=0, miss_share=0, false_share=0, margin_px=0)
    for a, b in zip(perfect_tiles(scene, grid, parts="several"), noisy_tiles(scene, grid, noise=calm), strict=True):
        order_a, order_b = np.argsort(a.truth_ids), np.argsort(b.truth_ids)
        assert np.array_equal(np.sort(masks.areas_px(a.instances.runs)), np.sort(masks.areas_px(b.instances.runs)))
        assert np.array_equal(a.truth_ids[order_a], b.truth_ids[order_b])


def read(path: Path, window: Window | None = None) -> np.ndarray:
    with paint.unreferenced_allowed(), rasterio.open(path) as raster:
        if window is None:
            return raster.read()
        return raster.read(window=rasterio.windows.Window(window.col_off, window.row_off, window.width, window.height))


@pytest.mark.parametrize(
    ("layout", "factory"),
    [("classes", models.perfect), ("rgb", models.perfect_rgb), ("single", models.perfect_single)],
)
def test_painted_rasters_are_read_back(layout: str, factory: object, tmp_path: Path) -> None:
    scene = make_scene("panoptic", 140, 1)
    bands = read(paint.paint_scene(scene, tmp_path / "scene.tif", layout=layout)).astype(np.float32)
    (prediction,) = factory().predict(torch.from_numpy(bands)[None], torch.ones((1, 140, 140), dtype=torch.bool))  # type: ignore[operator]
    found = prediction.masks.labels_HW
    assert np.array_equal(found > 0, scene.labels_HW > 0)
    assert metrics.panoptic_quality(metrics.overlap_rasters(scene.labels_HW, found)).pq == 1.0
    if layout == "classes":
        assert np.array_equal(bands[2], np.where(found > 0, scene.class_ids[scene.labels_HW], scene.stuff_HW))


def test_labels_too_large_for_a_layout() -> None:
    labels = np.full((2, 2), 2**24)
    with pytest.raises(ValueError, match="use 'classes'"):
        paint.paint_bands(labels, layout="rgb")
    assert paint.paint_bands(labels)[1, 0, 0] == 2**8


def test_virtual_scenes_as_rasters(tmp_path: Path) -> None:
    scene = VirtualScene(300, 220, 1, "city")
    source = paint.paint_windows(
        tmp_path / "city.tif", scene.labels, scene.class_ids, width=300, height=220, block_px=64
    )
    labels = scene.labels(Window(0, 0, 300, 220))
    assert np.array_equal(read(source), paint.paint_bands(labels, scene.class_ids(labels)))
    endless = paint.repeat_raster(tmp_path / "endless.vrt", source, width=1000, height=500)
    assert np.array_equal(read(endless, Window(290, 210, 100, 100))[:, 10:, 10:], read(source)[:, :90, :90])
    assert read(endless, Window(990, 490, 10, 10)).shape == (3, 10, 10)


@pytest.mark.parametrize(
    "town",
    [
        Town(1152, cell_px=16, period_cells=24, district_periods=3),
        Town(1536, cell_px=16, period_cells=24, district_periods=2),
        Town(1900, cell_px=28, period_cells=12, district_periods=2),
        Town(1500, cell_px=16, period_cells=24, block_cells=3, district_periods=3),
    ],
    ids=str,
)
def test_a_town_knows_what_is_in_it(town: Town, tmp_path: Path) -> None:
    labels = read(town.paint(tmp_path))[0]
    assert labels.shape == (town.size_px, town.size_px)
    assert label_components(labels).max() == town.count_blobs() + town.num_networks
    assert sum(int(label_components(labels == k).max()) for k in (1, 2)) == town.num_networks
    assert sum(int((picture > 0).sum()) * count for picture, count in town.pictures()) == (labels > 0).sum()
    period = town.period_px
    inner = labels[period + 40 : 2 * period - 40, period + 40 : 2 * period - 40]
    if town.district_periods > 2:
        assert np.array_equal(inner, town._picture("city", (1, 1))[40:-40, 40:-40])


def test_towns_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="pairs of streets"):
        Town(2000, period_cells=9)
    with pytest.raises(ValueError, match="a street of its own"):
        Town(1536 + 50, cell_px=16, period_cells=24, district_periods=2)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 7), (9, 1), (60, 47)])
def test_parts_are_the_components(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for num_labels in (1, 2, 5):
        labels = rng.integers(0, num_labels + 1, shape) * (rng.random(shape) < 0.7)
        found, first, boxes = models.renumber_parts(labels)
        wanted = label_components(labels) if labels.size else labels
        pairs = set(zip(found.ravel().tolist(), wanted.ravel().tolist(), strict=True))
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        assert len(first) == len(boxes) == wanted.max(initial=0)
        for i in range(len(first)):
            ys, xs = np.nonzero(found == i + 1)
            assert first[i] == ys[0] * shape[1] + xs[0]
            assert boxes[i].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_sample_data_and_its_truth_agree(tmp_path: Path) -> None:
    for path in sample(tmp_path, 3, size_px=256):
        picture, labels = read(path), read(tmp_path / "truth" / path.name)[0]
        assert picture.shape == (3, 256, 256)
        assert picture.std() > 10
        coco = COCO(tmp_path / "truth" / f"{path.stem}.json")
        painted_again = np.zeros_like(labels)
        for annotation in coco.anns.values():
            painted_again[coco.annToMask(annotation) > 0] = annotation["id"]
        assert np.array_equal(painted_again, labels)
    with rasterio.open(tmp_path / "scenes" / "aerial.tif") as raster:
        assert raster.crs.to_epsg() == 32636
        transform = raster.transform
    truth = json.loads((tmp_path / "truth" / "aerial.geojson").read_text())["features"]
    shapes = [(f["geometry"], f["properties"]["label"]) for f in truth]
    again = features.rasterize(shapes, (256, 256), transform=transform, dtype=np.int32)
    assert np.array_equal(again, read(tmp_path / "truth" / "aerial.tif")[0])
