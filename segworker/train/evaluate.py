"""Average precision of a model on annotated samples, whole images at native resolution, as pycocotools counts it.

H and W are pixels of an image, N objects, M the lattice of compact masks.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from segworker.errors import PredictionError
from segworker.models.protocol import Model
from segworker.train.data import Sample
from segworker.types import BoxMasks, Prediction

MAX_DETECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Scores:
    """How well the objects of a set of images were found."""

    num_images: int
    num_objects: int
    ap: float
    "Mask AP, mean over IoU 0.50:0.05:0.95."
    ap50: float
    "Mask AP at IoU 0.5."
    tp_share50: float
    "TP / (TP + FP + FN) at IoU 0.5 of the predictions that score 0.5 or more."


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was found on one image."""

    size_yx: tuple[int, int]
    rles: list[dict[str, Any]]
    "Compressed COCO RLE of each object."
    scores: NDArray[np.floating]
    "(N,) 0..1."


def evaluate(model: Model, samples: Sequence[Sample]) -> dict[str, Scores]:
    """Measure a model on annotated images: over all of them, and for each modality.

    Args:
        model: returns `BoxMasks`, or boxes alone which count as full; put it into eval mode first (not checked).
        samples: at least one; one class of objects, whatever class the model names.
    """
    return score_found(samples, [_predict(model, sample) for sample in samples])


def score_found(samples: Sequence[Sample], found: Sequence[Found]) -> dict[str, Scores]:
    """Measure what was found on annotated images, by any means: over all of them, and for each modality."""
    truth = [_truth_rles(sample.labels_HW) for sample in samples]
    groups: dict[str, list[int]] = {"all": list(range(len(samples)))}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.modality, []).append(index)
    return {name: _score([truth[i] for i in where], [found[i] for i in where]) for name, where in groups.items()}


def as_table(scores: Mapping[str, Scores]) -> str:
    """Return the scores as a Markdown table."""
    head = "| images | number | objects | mask AP | mask AP50 | TP/(TP+FP+FN) at IoU 0.5 |\n|---|---|---|---|---|---|\n"
    rows = (
        f"| {name} | {s.num_images} | {s.num_objects} | {s.ap:.3f} | {s.ap50:.3f} | {s.tp_share50:.3f} |"
        for name, s in scores.items()
    )
    return head + "\n".join(rows)


def paste(prediction: Prediction, shape_yx: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    """Yield the full mask (H, W) of each instance, by the rule of `BoxMasks`; the lattice is zero outside itself."""
    if not isinstance(prediction.masks, BoxMasks):
        raise PredictionError(f"only box masks are measured here, got {type(prediction.masks).__name__}")
    for box_xyxy, probs_MM in zip(prediction.boxes_xyxy, prediction.masks.probs_NMM, strict=True):
        yield _paste_one(box_xyxy, np.asarray(probs_MM, np.float32), shape_yx)


def _paste_one(
    box_xyxy: NDArray[np.floating], probs_MM: NDArray[np.float32], shape_yx: tuple[int, int]
) -> NDArray[np.bool_]:
    full = np.zeros(shape_yx, np.bool_)
    (top, bottom, rows), (left, right, cols) = (
        _axis(float(box_xyxy[1]), float(box_xyxy[3]), shape_yx[0]),
        _axis(float(box_xyxy[0]), float(box_xyxy[2]), shape_yx[1]),
    )
    grid = torch.stack([cols[None].expand(len(rows), -1), rows[:, None].expand(-1, len(cols))], dim=2)[None]
    values = F.grid_sample(torch.from_numpy(probs_MM)[None, None], grid, align_corners=False)[0, 0]
    full[top:bottom, left:right] = (values >= 0.5).numpy()
    return full


def _axis(low: float, high: float, size: int) -> tuple[int, int, Tensor]:
    """Return the pixels that an interval touches and their centres, the interval being -1..1."""
    begin, end = min(max(0, int(np.floor(low))), size), min(max(0, int(np.ceil(high))), size)
    centres = torch.arange(begin, max(begin, end), dtype=torch.float32) + 0.5
    return begin, max(begin, end), (centres - low) / max(high - low, 1e-6) * 2 - 1


def _predict(model: Model, sample: Sample) -> Found:
    height, width = sample.labels_HW.shape
    stride = model.spec.stride
    padded = F.pad(
        torch.from_numpy(sample.pixels_HWC.copy()).permute(2, 0, 1).float() / 255,
        (0, -width % stride, 0, -height % stride),
    )
    valid = torch.zeros(padded.shape[1:], dtype=torch.bool)
    valid[:height, :width] = True
    prediction = model.predict(padded[None], valid[None])[0]
    rles = [_encode(mask) for mask in paste(prediction, (height, width))]
    return Found((height, width), rles, prediction.scores)


def _encode(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    encoded: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask_HW.view(np.uint8)))
    return encoded


def _truth_rles(labels_HW: NDArray[np.int32]) -> list[dict[str, Any]]:
    return [_encode(labels_HW == label) for label in np.unique(labels_HW) if label > 0]


def _score(truth: Sequence[list[dict[str, Any]]], found: Sequence[Found]) -> Scores:
    ap, ap50 = _average_precision(truth, found)
    num_objects = sum(len(one) for one in truth)
    return Scores(len(truth), num_objects, ap, ap50, _tp_share(truth, found))


def _average_precision(truth: Sequence[list[dict[str, Any]]], found: Sequence[Found]) -> tuple[float, float]:
    annotations = [
        {"id": 0, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": int(coco_mask.area(rle))}
        for i, rles in enumerate(truth)
        for rle in rles
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    results = [
        {"image_id": i, "category_id": 1, "segmentation": rle, "score": float(score)}
        for i, one in enumerate(found)
        for rle, score in zip(one.rles, one.scores, strict=True)
    ]
    if not results or not annotations:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        precision = _coco_precision(annotations, results, sizes_yx=[one.size_yx for one in found])
    return float(precision.mean()), float(precision[0].mean())


def _coco_precision(
    annotations: list[dict[str, Any]], results: list[dict[str, Any]], *, sizes_yx: Sequence[tuple[int, int]]
) -> NDArray[np.floating]:
    """Return precision (10 IoU thresholds, 101 recalls); prints, as pycocotools does."""
    reference = COCO()
    reference.dataset = {
        "info": {},
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes_yx)],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": annotations,
    }
    reference.createIndex()
    judged = COCOeval(reference, reference.loadRes(results), "segm")
    judged.params.maxDets = [MAX_DETECTIONS]
    judged.params.areaRng, judged.params.areaRngLbl = [[0, 1e10]], ["all"]
    judged.evaluate()
    judged.accumulate()
    precision: NDArray[np.floating] = judged.eval["precision"][:, :, 0, 0, 0]
    return precision


def _tp_share(truth: Sequence[list[dict[str, Any]]], found: Sequence[Found], *, min_score: float = 0.5) -> float:
    """Return TP / (TP + FP + FN): each prediction, best score first, takes the free object it fits best."""
    hits = num_found = num_true = 0
    for rles, one in zip(truth, found, strict=True):
        order = [i for i in np.argsort(-one.scores, kind="stable") if one.scores[i] >= min_score]
        num_found, num_true = num_found + len(order), num_true + len(rles)
        if order and rles:
            overlaps = np.array(coco_mask.iou([one.rles[i] for i in order], rles, [0] * len(rles)))
            hits += _greedy_hits(overlaps)
    return hits / max(1, num_found + num_true - hits)


def _greedy_hits(overlaps_PT: NDArray[np.floating]) -> int:
    free = np.ones(overlaps_PT.shape[1], bool)
    hits = 0
    for row in overlaps_PT:
        best = int(np.argmax(np.where(free, row, -1)))
        if free[best] and row[best] >= 0.5:
            free[best] = False
            hits += 1
    return hits
