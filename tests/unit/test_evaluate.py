"""Judging a run: figures against other tools and slow definitions, areas, crowds, classes, what cannot be judged."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from faster_coco_eval import COCO as FASTER_COCO
from faster_coco_eval import COCOeval_faster
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segworker import cli
from segworker.evaluate import average_precision as ap_module
from segworker.evaluate.average_precision import Dataset, average_precision, evaluate_coco
from segworker.evaluate.figures import calibration_figures, count_figures, near_borders, quality_figures, seam_figures
from segworker.evaluate.found import FoundObjects
from segworker.evaluate.judge import JudgedScene, intersect_runs, judge_scene
from segworker.evaluate.worst import worst_mistakes
from segworker.grid import Grid
from segworker.io.coco import CocoFeatures
from segworker.io.coco_masks import segmentations_of
from segworker.masks import areas_px, boxes_xyxy, labels_from_runs, runs_from_labels
from segworker.metrics import overlap_runs, panoptic_quality
from segworker.polygons import trace
from segworker.rasterise import runs_of_polygons
from segworker.synthetic.paint import write_raster
from segworker.truth import SceneTruth
from segworker.types import Category, Runs, Scene, Window
from tests.committed import commit_objects

SIDE = 420
CATEGORIES = (Category(1, "house"), Category(2, "pond"))
NAMES = {"house": 1, "pond": 2}


def plain(scene_id: str = "a", side: int = SIDE) -> Scene:
    return Scene(scene_id, f"/nowhere/{scene_id}.tif", side, side, 3, "uint8")


def truth_of(runs: Runs, classes: np.ndarray, *, crowd: np.ndarray | None = None, **more: Any) -> SceneTruth:
    none = np.zeros(len(runs), bool)
    ids = tuple(f"t{k}" for k in range(len(runs)))
    return SceneTruth("a", SIDE, SIDE, ids, classes.astype(np.int32), runs, none if crowd is None else crowd, **more)


def found_of(runs: Runs, names: list[str], scores: np.ndarray) -> FoundObjects:
    return FoundObjects(np.arange(len(runs)), np.array(names, object), scores.astype(np.float32), runs)


def noisy(seed: int, count: int = 60, *, side: int = SIDE) -> tuple[SceneTruth, FoundObjects]:
    """Discs of many sizes, and findings of them that are shifted, of a wrong class, doubled, missing or invented."""
    rng = np.random.default_rng(seed)
    centres, radii = rng.uniform(0, side, (count, 2)), np.exp(rng.uniform(1.2, 4.3, count))
    classes = rng.integers(1, 3, count)
    true = runs_of_polygons(shapely.buffer(shapely.points(centres), radii), width=side, height=side)
    again = rng.permutation(np.concatenate([np.arange(count), rng.integers(0, count, count // 3)]))
    again = again[rng.random(len(again)) > 0.15]
    moved = centres[again] + rng.normal(0, 0.2, (len(again), 2)) * radii[again, None]
    grown = radii[again] * np.exp(rng.normal(0, 0.12, len(again)))
    moved, grown = np.concatenate([moved, rng.uniform(0, side, (8, 2))]), np.append(grown, rng.uniform(4, 30, 8))
    ids = np.append(np.where(rng.random(len(again)) < 0.1, 3 - classes[again], classes[again]), rng.integers(1, 3, 8))
    pred = runs_of_polygons(shapely.buffer(shapely.points(moved), grown), width=side, height=side)
    kept, full = areas_px(pred) > 0, areas_px(true) > 0
    names = [list(NAMES)[k - 1] for k in ids[kept].tolist()]
    scores = rng.uniform(0.05, 1, int(kept.sum()))
    truth = truth_of(true.take(full), classes[full])
    return replace(truth, width=side, height=side), found_of(pred.take(kept), names, scores)


def judged(truth: SceneTruth, found: FoundObjects, **more: Any) -> JudgedScene:
    scene = plain(side=truth.width)
    return judge_scene(scene, truth, found, truth_class={1: 1, 2: 2}, found_class=NAMES, **more)


def rle_of(runs: Runs, i: int, side: int = SIDE) -> dict[str, Any]:
    mask = labels_from_runs(runs.take(np.array([i])), window=Window(0, 0, side, side))
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def by_the_book(scenes: list[JudgedScene], kind: str) -> Any:
    """pycocotools over plain COCO files of whole masks, written apart from ours."""
    reference, results, annotations = COCO(), [], []
    for k, scene in enumerate(scenes):
        for i, (x, y, right, bottom) in enumerate(boxes_xyxy(scene.truth).tolist()):
            rle = rle_of(scene.truth, i)
            shape = {"segmentation": rle, "bbox": [x, y, right - x, bottom - y], "area": float(coco_mask.area(rle))}
            ids = {"id": len(annotations) + 1, "image_id": k, "category_id": int(scene.truth_classes[i]), "iscrowd": 0}
            annotations.append(ids | shape)
        for i, (x, y, right, bottom) in enumerate(boxes_xyxy(scene.pred).tolist()):
            shape = (
                {"segmentation": rle_of(scene.pred, i)} if kind == "segm" else {"bbox": [x, y, right - x, bottom - y]}
            )
            score = float(scene.pred_scores[i])
            results.append({"image_id": k, "category_id": int(scene.pred_classes[i]), "score": score, **shape})
    images = [{"id": k, "height": SIDE, "width": SIDE} for k in range(len(scenes))]
    categories = [{"id": c.id, "name": c.name} for c in CATEGORIES]
    reference.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    reference.createIndex()
    evaluation = COCOeval(reference, reference.loadRes(results), kind)
    evaluation.params.maxDets = [1, 10, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., 2]


class TestPrecision:
    @pytest.mark.parametrize("kind", ["segm", "bbox"])
    def test_it_is_that_of_pycocotools(self, kind: Any) -> None:
        scenes = [judged(*noisy(seed)) for seed in range(3)]
        ours = average_precision(scenes, CATEGORIES, kind)
        np.testing.assert_allclose(ours.precision, by_the_book(scenes, kind), atol=1e-12)
        assert 0.1 < (ours.ap() or 0) < 0.9
        assert ours.ap(iou=0.5, size="large") is not None

    @pytest.mark.parametrize("kind", ["segm", "bbox"])
    def test_another_library_agrees(self, kind: Any) -> None:
        data = Dataset(kind)
        for seed in range(3, 6):
            truth, found = noisy(seed)
            crowd = np.arange(len(truth)) % 9 == 4
            ap_module._add_scene(data, judged(replace(truth, crowd=crowd), found), [1, 2])
        theirs = evaluate_coco(FASTER_COCO, COCOeval_faster, deepcopy(data), CATEGORIES).eval["precision"]
        ours = evaluate_coco(COCO, COCOeval, data, CATEGORIES).eval["precision"]
        np.testing.assert_allclose(np.asarray(theirs).reshape(ours.shape), ours, atol=1e-9)

    @pytest.mark.parametrize("kind", ["segm", "bbox"])
    @pytest.mark.parametrize("limit", [{"WHOLE": 0, "GROUP_SIZE": 7}, {"MAX_IMAGE_PX": 1}])
    def test_groups_of_objects_change_nothing(self, monkeypatch: pytest.MonkeyPatch, kind: Any, limit: Any) -> None:
        scenes = [judged(*noisy(seed, 25)) for seed in range(2)]
        whole = average_precision(scenes, CATEGORIES, kind)
        for name, value in limit.items():
            monkeypatch.setattr(ap_module, name, value)
        groups = average_precision(scenes, CATEGORIES, kind)
        np.testing.assert_array_equal(whole.precision, groups.precision)
        np.testing.assert_array_equal(whole.recall, groups.recall)

    def test_more_findings_than_the_limit_are_all_looked_at(self) -> None:
        true = runs_of_polygons(
            np.array([shapely.box(x, y, x + 8, y + 8) for x in range(0, 420, 12) for y in range(0, 420, 12)], object),
            width=SIDE,
            height=SIDE,
        )
        assert len(true) > 1000
        truth = truth_of(true, np.ones(len(true)))
        scene = judged(truth, found_of(true, ["house"] * len(true), np.full(len(true), 0.5)))
        for kind in ("segm", "bbox"):
            assert average_precision([scene], CATEGORIES, kind).ap() == 1.0  # pycocotools alone: 0.82

    def test_nothing_found_and_nothing_there(self) -> None:
        truth, found = noisy(1, 10)
        nothing = found_of(Runs.empty(), [], np.zeros(0))
        assert average_precision([judged(truth, nothing)], CATEGORIES, "segm").ap() == 0.0
        empty = truth.take(np.zeros(len(truth), bool))
        assert average_precision([judged(empty, found)], CATEGORIES, "segm").ap() is None


class TestFigures:
    def test_quality_is_that_of_the_metrics(self) -> None:
        scenes = [judged(*noisy(seed)) for seed in range(2)]
        ours = quality_figures(scenes, CATEGORIES)["by_class"]["house"]
        qualities = []
        for scene in scenes:
            true, pred = scene.truth.take(scene.truth_classes == 1), scene.pred.take(scene.pred_classes == 1)
            qualities.append(panoptic_quality(overlap_runs(true, pred)))
        hits = sum(q.true_positives for q in qualities)
        assert ours["true_positives"] == hits
        assert ours["false_negatives"] == sum(q.false_negatives for q in qualities)
        assert ours["sq"] == pytest.approx(sum(q.sq * q.true_positives for q in qualities) / hits)

    def test_counts_and_calibration(self) -> None:
        squares = np.array([shapely.box(x, 0, x + 9, 9) for x in range(0, 400, 20)], object)
        runs = runs_of_polygons(squares, width=SIDE, height=SIDE)
        truth = truth_of(runs.take(np.arange(15)), np.ones(15))
        scene = judged(truth, found_of(runs, ["house"] * 20, np.full(20, 0.95)))
        assert count_figures([scene])["error"] == 5
        found = calibration_figures([scene])
        assert found["bins"][9]["right"] == 0.75
        assert found["expected_calibration_error"] == pytest.approx(0.2, abs=1e-6)

    def test_seam_faults_are_told_from_those_of_the_interior(self) -> None:
        """Tiles of 100 and an overlap of 20: borders between cores at 90, 170, 250, 330."""
        boxes = [(84, 10, 96, 20), (84, 40, 96, 50), (130, 10, 138, 20), (128, 60, 138, 70), (84, 70, 94, 80)]
        true = runs_of_polygons(np.array([shapely.box(*b) for b in boxes], object), width=SIDE, height=SIDE)
        halves = [(84, 10, 90, 20), (90, 10, 96, 20), *boxes[1:], (84, 40, 96, 50)]
        pred = runs_of_polygons(np.array([shapely.box(*b) for b in halves], object), width=SIDE, height=SIDE)
        scene = judged(truth_of(true, np.ones(5)), found_of(pred, ["house"] * 7, np.full(7, 0.9)))
        grid = Grid("a", SIDE, 30, 100, 20)
        assert near_borders(true, replace(grid, height=SIDE)).tolist() == [True, True, False, True, True]
        assert near_borders(true, grid).tolist() == [True, True, False, False, True]
        found = seam_figures([scene], {"a": grid})
        assert found is not None
        assert (found["near_borders"]["cut"], found["near_borders"]["duplicates"]) == (1, 1)
        assert (found["interior"]["objects"], found["interior"]["cut"], found["interior"]["missed"]) == (2, 0, 0)
        assert seam_figures([scene], {}) is None

    def test_the_worst_come_first(self) -> None:
        boxes = [shapely.box(0, 0, 60, 60), shapely.box(100, 0, 110, 10), shapely.box(200, 0, 240, 40)]
        true = runs_of_polygons(np.array(boxes, object), width=SIDE, height=SIDE)
        drawn = np.array([boxes[1], shapely.box(200, 0, 240, 34), shapely.box(300, 0, 345, 45)], object)
        pred = runs_of_polygons(drawn, width=SIDE, height=SIDE)
        scene = judged(truth_of(true, np.ones(3)), found_of(pred, ["house"] * 3, np.full(3, 0.9)))
        worst = worst_mistakes([scene])
        assert [(m.kind, m.area_px) for m in worst] == [("missed", 3600), ("false", 2025), ("poor", 1600)]
        assert worst[2].iou == pytest.approx(0.85)
        assert len(worst_mistakes([scene], 1)) == 1


class TestPlaces:
    def test_intersections(self) -> None:
        truth, _ = noisy(4)
        region = shapely.Point(200, 200).buffer(120).difference(shapely.box(150, 150, 220, 230))
        area = runs_of_polygons(np.array([region], object), width=SIDE, height=SIDE)
        inside = labels_from_runs(area, window=Window(0, 0, SIDE, SIDE)) > 0
        cut = intersect_runs(truth.runs, area)
        for i in range(0, len(truth), 7):
            one = labels_from_runs(truth.runs.take(np.array([i])), window=Window(0, 0, SIDE, SIDE)) > 0
            got = labels_from_runs(cut.take(np.array([i])), window=Window(0, 0, SIDE, SIDE)) > 0
            np.testing.assert_array_equal(got, one & inside)

    def test_an_area_hides_what_lies_outside(self) -> None:
        boxes = np.array([shapely.box(x, 10, x + 20, 30) for x in (10, 50, 95, 150, 300)], object)
        runs = runs_of_polygons(boxes, width=SIDE, height=SIDE)
        truth = truth_of(runs.take(np.array([0, 1, 2, 4])), np.ones(4))
        scene = judged(truth, found_of(runs, ["house"] * 5, np.full(5, 0.9)), area=shapely.box(0, 0, 104, SIDE))
        assert (len(scene.truth), len(scene.pred), len(scene.matches[0])) == (2, 2, 2)
        scene = judged(truth, found_of(runs, ["house"] * 5, np.full(5, 0.9)), area=shapely.box(0, 0, 106, SIDE))
        assert areas_px(scene.truth).tolist() == [400, 400, 220]
        assert len(scene.matches[0]) == 3

    def test_crowds_partial_classes_and_low_scores_are_not_held_against_a_run(self) -> None:
        boxes = np.array([shapely.box(x, 10, x + 20, 30) for x in range(10, 310, 30)], object)
        runs = runs_of_polygons(boxes, width=SIDE, height=SIDE)
        field = runs_of_polygons(np.array([shapely.box(95, 0, 199, 60)], object), width=SIDE, height=SIDE)
        truth = truth_of(
            Runs.concatenate([runs.take(np.arange(3)), field]),
            np.ones(4),
            crowd=np.array([False] * 3 + [True]),
            partial_class_ids=frozenset({2}),
        )
        names = ["house"] * 8 + ["pond"] * 2
        scene = judged(truth, found_of(runs, names, np.linspace(0.9, 0.1, 10)))
        assert scene.excused.tolist() == [False] * 3 + [True] * 3 + [False] * 2 + [True] * 2
        quality = quality_figures([scene], CATEGORIES)["all_objects"]
        assert (quality["true_positives"], quality["false_positives"]) == (3, 2)
        with_field = average_precision([scene], CATEGORIES, "segm")
        assert with_field.ap(iou=0.5) == 1.0  # both false ones score less than the three right ones
        assert len(judged(truth, found_of(runs, names, np.linspace(0.9, 0.1, 10)), min_score=0.5).pred) == 5


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A georeferenced scene of squares, its truth as COCO, and a run that misses one and cuts one at a core border."""
    labels = np.zeros((200, 200), np.int32)
    for k, (y, x) in enumerate([(10, 10), (10, 94), (60, 20), (60, 150), (150, 60)], start=1):
        labels[y : y + 20, x : x + 16] = k
    runs = runs_from_labels(labels, 5, window=Window(0, 0, 200, 200))
    transform = (0.5, 0.0, 400_000.0, 0.0, -0.5, 30_000.0)
    import rasterio

    write_raster(tmp_path / "s.tif", np.stack([(labels > 0) * 180] * 3).astype(np.uint8), crs="EPSG:32636",
                 transform=rasterio.Affine(*transform))  # fmt: skip
    crs = rasterio.crs.CRS.from_epsg(32636).to_wkt()
    scene = Scene("s", str(tmp_path / "s.tif"), 200, 200, 3, "uint8", crs, transform)
    split = labels.copy()
    split[:, 102:][labels[:, 102:] == 2] = 6
    split[labels == 4] = 0
    pred = runs_from_labels(split, 6, window=Window(0, 0, 200, 200)).take(np.array([0, 1, 2, 4, 5]))
    commit_objects(tmp_path / "store", scene, pred, ["building"] * 5, np.linspace(0.9, 0.5, 5), grid=(110, 20))
    outlines = trace(runs)
    polygons = outlines.geometries(outlines.xy)
    coco = {
        "images": [{"id": 1, "file_name": "s.tif", "width": 200, "height": 200}],
        "categories": [{"id": 9, "name": "Building"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 9, "iscrowd": 0, "segmentation": s}
            for k, s in enumerate(segmentations_of(polygons, 200, 200))
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    return tmp_path / "store", tmp_path / "truth.json", polygons


class TestCommand:
    def evaluate(self, *arguments: object) -> int:
        return cli.main(["evaluate", *map(str, arguments)])

    def test_a_run_is_judged(self, store: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
        assert self.evaluate("latest", store[0], "--truth", store[1]) == 0
        told = capsys.readouterr().out
        assert "F1 0.600: 3 right, 2 false, 2 missed" in told
        assert "near tile borders: 3 objects, 1 cut" in told
        (folder,) = (store[0] / "runs").glob("*/evaluation")
        result = json.loads((folder / "truth.json").read_text())
        assert result["seams"]["near_borders"]["cut"] == 1
        assert result["ap"]["mask"]["ap50"] < 1
        assert len(result["worst"]) == 4
        html = (folder / "truth.html").read_text()
        assert html.count("data:image/jpeg;base64,") == 4
        assert not re.search(r"(src|href)=\"(?!data:|#)", html)
        assert str(folder / "truth.html") in told

    def test_vector_truth_areas_and_other_names(
        self, store: tuple[Path, Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        xy = [shapely.transform(p, lambda c: c * (0.5, -0.5) + (400_000, 30_000)) for p in store[2]]
        frame = geopandas.GeoDataFrame({"kind": ["hut"] * 5}, geometry=xy, crs="EPSG:32636").to_crs("EPSG:4326")
        frame.to_file(tmp_path / "truth.geojson")
        flags = ("--truth", tmp_path / "truth.geojson", "--class-field", "kind")
        assert self.evaluate("latest", store[0], *flags) == 2
        assert "building and hut; pair them with --class-map" in capsys.readouterr().err
        area = geopandas.GeoDataFrame(geometry=[shapely.box(400_000, 29_940, 400_045, 30_000)], crs="EPSG:32636")
        area.to_file(tmp_path / "area.geojson")
        flags += ("--aoi", tmp_path / "area.geojson", "--output", tmp_path / "out", "--name", "x")
        for pairing in (("--class-map", "building=hut"), ("--any-class",)):
            assert self.evaluate("latest", store[0], *flags, *pairing) == 0
            assert "F1 1.000: 2 right, 0 false, 0 missed" in capsys.readouterr().out
        assert (tmp_path / "out" / "x.json").is_file()

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["nosuchrun"], 1, "a run is named by its id"),
            (["latest", "--class-map", "building"], 2, "--class-map pairs classes"),
            (["latest", "--class-map", "house=Building"], 2, "--class-map names a class of the run"),
            (["latest", "--class-map", "building=hut"], 2, "--class-map names a class of the truth"),
            (["latest", "--nonsense"], 2, "unrecognized"),
            (["latest", "--aoi", "{folder}/far.geojson"], 2, "an area of interest meets annotated scenes"),
        ],
    )
    def test_what_cannot_be_judged(
        self,
        store: tuple[Path, Path, np.ndarray],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        code: int,
        message: str,
    ) -> None:
        far = geopandas.GeoDataFrame(geometry=[shapely.box(500_000, 0, 500_010, 9)], crs="EPSG:32636")
        far.to_file(tmp_path / "far.geojson")
        run, *flags = (a.format(folder=tmp_path) for a in arguments)
        assert self.evaluate(run, store[0], "--truth", store[1], *flags) == code
        assert message in capsys.readouterr().err

    def test_other_failures(
        self, store: tuple[Path, Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.evaluate("latest", tmp_path / "empty", "--truth", store[1]) == 1
        assert self.evaluate("latest", store[0], "--truth", tmp_path / "none.tif") == 2
        assert self.evaluate("latest", store[0]) == 2
        (tmp_path / "empty.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
        assert self.evaluate("latest", store[0], "--truth", tmp_path / "empty.json") == 2
        told = capsys.readouterr().err
        assert "declares its categories" in told

    def test_pieces_of_a_segment_are_one_object(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        boxes = np.array([shapely.box(10, 10, 50, 40), shapely.box(50, 10, 90, 40)], object)
        runs = runs_of_polygons(boxes, width=100, height=100)
        scene = replace(plain(side=100), uri=str(tmp_path / "a.tif"))
        commit_objects(tmp_path / "store", scene, runs, ["pond", "pond"], np.ones(2), pieces=[0, 0])
        labels = np.zeros((1, 100, 100), np.uint8)
        labels[0, 10:40, 10:90] = 4
        write_raster(tmp_path / "a_labels.tif", labels)
        flags = ("--truth", tmp_path / "a_labels.tif", "--default-class", "pond")
        assert self.evaluate("latest", tmp_path / "store", *flags) == 0
        told = capsys.readouterr().out
        assert "F1 1.000: 1 right, 0 false, 0 missed" in told
        assert "seams" not in told
        assert self.evaluate("latest", tmp_path / "store", *flags, "--tile", "60", "--overlap", "10") == 0
        assert "near tile borders: 1 objects, 0 cut" in capsys.readouterr().out


def test_our_own_coco_can_be_the_truth() -> None:
    """What a run writes as COCO is read back pixel for pixel."""
    truth, _ = noisy(7)
    outlines = trace(truth.runs)
    polygons = outlines.geometries(outlines.xy)
    features = CocoFeatures(np.arange(len(truth)), truth.class_ids, np.ones(len(truth)), np.ones(len(truth)), polygons)
    from segworker.io.annotations.coco import _shape

    for i, segmentation in enumerate(segmentations_of(features.polygons, SIDE, SIDE)):
        shape, _ = _shape({"segmentation": segmentation}, plain())
        runs = (
            shape if isinstance(shape, Runs) else runs_of_polygons(np.array([shape], object), width=SIDE, height=SIDE)
        )
        assert areas_px(runs)[0] == areas_px(truth.runs)[i]
