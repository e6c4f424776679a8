"""COCO's average precision of masks and boxes by pycocotools, for scenes of any size.

pycocotools looks at no more than `maxDets` findings of a class in an image, and at every pair of a finding and an
object. A scene with many findings is therefore handed over in groups of objects that share no pixel (for boxes: whose
boxes share none) with those of other groups. Only objects that overlap can match, so the figures are those of the
whole scene without a limit.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segworker.evaluate.judge import JudgedScene
from segworker.io.coco_masks import rle_counts
from segworker.masks import areas_px, boxes_xyxy, find_root, unite
from segworker.metrics import overlap_runs
from segworker.polygons import trace
from segworker.types import Category, Runs, Window

MAX_DETECTIONS = 1000
"Of a class in an image."
WHOLE = 100
"Findings up to which a scene is handed over as one image."
GROUP_SIZE = 40
"Findings of other scenes that are handed over together: pycocotools' time grows with the square."
MAX_IMAGE_PX = 2**31 - 1
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"COCO's, in square pixels."
Kind = Literal["segm", "bbox"]


@dataclass(frozen=True, slots=True, eq=False)
class Precision:
    """Average precision of one kind."""

    precision: NDArray[np.float64]
    "(10 IoU thresholds 0.50 to 0.95, 101 recalls, K classes, 4 sizes); -1 where there is no object."
    recall: NDArray[np.float64]
    "(10, K, 4)."

    def ap(self, *, iou: float | None = None, class_index: int | None = None, size: str = "all") -> float | None:
        """Return the mean precision over thresholds (or at one), classes (or of one) and recalls; None: no objects."""
        found = self.precision[:, :, :, list(SIZES).index(size)]
        found = found if iou is None else found[[round((iou - 0.5) / 0.05)]]
        found = found if class_index is None else found[:, :, [class_index]]
        found = found[found > -1]
        return float(found.mean()) if len(found) else None


@dataclass(slots=True)
class Dataset:
    """Objects and findings as pycocotools takes them."""

    kind: Kind
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def average_precision(scenes: Sequence[JudgedScene], categories: Sequence[Category], kind: Kind) -> Precision:
    """Return COCO's precision of all scenes together.

    Args:
        scenes: from `judge_scene`.
        categories: the judged classes.
        kind: 'segm' compares masks, 'bbox' boxes.
    """
    data = Dataset(kind)
    for scene in scenes:
        _add_scene(data, scene, [category.id for category in categories])
    if not data.results or not data.annotations:
        return _nothing(data, categories)
    judged = evaluate_coco(COCO, COCOeval, data, categories)
    return Precision(judged.eval["precision"][..., 0], judged.eval["recall"][..., 0])


def evaluate_coco(coco: Any, coco_eval: Any, data: Dataset, categories: Sequence[Category]) -> Any:  # noqa: ANN401 - untyped libraries
    """Run pycocotools, or a library with its interface, over a dataset; it prints, which is swallowed."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco()
        reference.dataset = {
            "info": {},
            "images": data.images,
            "categories": [{"id": c.id, "name": c.name} for c in categories],
            "annotations": data.annotations,
        }
        reference.createIndex()
        judged = coco_eval(reference, reference.loadRes(data.results), data.kind)
        most = max((len(group) for group in _by_image_and_class(data)), default=0)
        judged.params.maxDets = [max(MAX_DETECTIONS, most)]
        judged.params.areaRng, judged.params.areaRngLbl = [list(limits) for limits in SIZES.values()], list(SIZES)
        judged.evaluate()
        judged.accumulate()
    return judged


def _by_image_and_class(data: Dataset) -> Iterator[list[dict[str, Any]]]:
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    split = {image["id"] for image in data.images if image["in_groups"]}
    for result in data.results:
        if result["image_id"] in split:
            groups.setdefault((result["image_id"], result["category_id"]), []).append(result)
    yield from groups.values()


def _nothing(data: Dataset, categories: Sequence[Category]) -> Precision:
    """Return zeros for classes and sizes with objects and -1 for others, as pycocotools does where some were found."""
    precision = -np.ones((10, 101, len(categories), len(SIZES)))
    recall = -np.ones((10, len(categories), len(SIZES)))
    for k, category in enumerate(categories):
        areas = [a["area"] for a in data.annotations if a["category_id"] == category.id and not a["iscrowd"]]
        for m, (low, high) in enumerate(SIZES.values()):
            if any(low <= area <= high for area in areas):
                precision[:, :, k, m], recall[:, k, m] = 0.0, 0.0
    return Precision(precision, recall)


def _add_scene(data: Dataset, judged: JudgedScene, class_ids: Sequence[int]) -> None:
    """Append a scene as one image, or as one image for each group where it has many findings."""
    scene = judged.scene
    crowds, crowd_classes = _crowds(judged, class_ids)
    truth = Runs.concatenate([judged.truth, crowds])
    classes = np.concatenate([judged.truth_classes, crowd_classes])
    is_crowd = np.arange(len(truth)) >= len(judged.truth)
    large = scene.width * scene.height > MAX_IMAGE_PX
    if len(judged.pred) <= WHOLE and not large:
        groups = [(np.arange(len(truth)), np.arange(len(judged.pred)))]
    else:
        groups = list(_groups(truth, judged.pred, data.kind, size=0 if large else GROUP_SIZE))
    for true, found in groups:
        frame = _frame(truth.take(true), judged.pred.take(found)) if large else scene.window
        image_id = len(data.images) + 1
        data.images.append({"id": image_id, "height": frame.height, "width": frame.width, "in_groups": len(groups) > 1})
        for i, shape in zip(true.tolist(), _shapes(truth.take(true), frame, data.kind), strict=True):
            data.annotations.append(
                {
                    "id": len(data.annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(classes[i]),
                    "iscrowd": int(is_crowd[i]),
                    **shape,
                }
            )
        for i, shape in zip(found.tolist(), _shapes(judged.pred.take(found), frame, data.kind), strict=True):
            del shape["area"]
            data.results.append(
                {
                    "image_id": image_id,
                    "category_id": int(judged.pred_classes[i]),
                    "score": float(judged.pred_scores[i]),
                    **shape,
                }
            )


def _crowds(judged: JudgedScene, class_ids: Sequence[int]) -> tuple[Runs, NDArray[np.int32]]:
    """Return COCO's crowd regions: ignored places, once for each class that they are ignored for.

    A class of which only some objects are annotated gets the whole scene: what is found there and fits nothing is free.
    """
    parts, classes = [Runs.empty()], []
    for class_id in class_ids:
        mine = judged.ignored.runs.take(np.isin(judged.ignored.class_ids, [0, class_id]))
        parts.append(mine)
        classes += [class_id] * len(mine)
        if class_id in judged.partial:
            parts.append(_whole(judged.scene.window))
            classes.append(class_id)
    return Runs.concatenate(parts), np.array(classes, np.int32)


def _whole(window: Window) -> Runs:
    rows = np.arange(window.height, dtype=np.int32)
    return Runs(rows, np.zeros_like(rows), np.full_like(rows, window.width), np.array([0, len(rows)], np.int64))


def _groups(truth: Runs, pred: Runs, kind: Kind, *, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (truth, findings) of groups of connected overlaps, joined up to `size` findings (0: never)."""
    pairs = _overlapping(truth, pred, kind)
    root = _components(len(truth), len(pred), *pairs)
    _, label = np.unique(root, return_inverse=True)
    true_label, found_label = label[: len(truth)], label[len(truth) :]
    found_order, true_order = np.argsort(found_label, kind="stable"), np.argsort(true_label, kind="stable")
    counts = np.bincount(found_label, minlength=label.max(initial=-1) + 1)
    pack = np.cumsum(counts) // size if size else np.arange(len(counts))
    for number in np.unique(pack).tolist():
        low, high = np.searchsorted(pack, [number, number + 1])
        found = found_order[slice(*np.searchsorted(found_label[found_order], [low, high]))]
        true = true_order[slice(*np.searchsorted(true_label[true_order], [low, high]))]
        yield np.sort(true), np.sort(found)


def _overlapping(truth: Runs, pred: Runs, kind: Kind) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if kind == "segm":
        overlaps = overlap_runs(truth, pred)
        return overlaps.truth_index, overlaps.pred_index
    tree = shapely.STRtree(shapely.box(*boxes_xyxy(truth).T.astype(float)))
    pred_index, truth_index = tree.query(shapely.box(*boxes_xyxy(pred).T.astype(float)), predicate="intersects")
    return truth_index.astype(np.int64), pred_index.astype(np.int64)


def _components(num_truth: int, num_pred: int, truth: NDArray[np.int64], pred: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the root of each node (truth, then findings) of the graph of overlaps."""
    parent = np.arange(num_truth + num_pred, dtype=np.int64)
    for a, b in zip(truth.tolist(), (pred + num_truth).tolist(), strict=True):
        unite(parent, a, b)
    return np.array([find_root(parent, k) for k in range(len(parent))], np.int64)


def _frame(truth: Runs, pred: Runs) -> Window:
    boxes = boxes_xyxy(Runs.concatenate([truth, pred]))
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    return Window(left, top, right - left, bottom - top)


def _shapes(runs: Runs, frame: Window, kind: Kind) -> Iterator[dict[str, Any]]:
    """Yield each mask as COCO has it, in pixels of a frame: run lengths or a box, and the area of the mask."""
    corner = (frame.col_off, frame.row_off)
    areas = areas_px(runs).astype(float).tolist()
    if kind == "bbox":
        boxes = boxes_xyxy(runs).astype(float)
        boxes[:, 2:] -= boxes[:, :2]
        boxes[:, :2] -= corner
        yield from ({"bbox": box, "area": area} for box, area in zip(boxes.tolist(), areas, strict=True))
        return
    outlines = trace(runs)
    polygons = outlines.geometries(outlines.xy.astype(np.float64) - np.array(corner, np.float64))
    for polygon, area in zip(polygons, areas, strict=True):
        yield {"segmentation": _rle(polygon, frame), "area": area}


def _rle(polygon: shapely.Geometry, frame: Window) -> dict[str, Any]:
    """Return a mask's compressed run lengths, made from its outline: its box may be as large as a scene."""
    raw = {"counts": rle_counts(polygon, frame.height, frame.width).tolist(), "size": [frame.height, frame.width]}
    packed: dict[str, Any] = coco_mask.frPyObjects(raw, frame.height, frame.width)
    return packed
