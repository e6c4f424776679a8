"""Perfect models: the truth is painted into a raster's bands, and the model reads it back.

Nothing that a tile returns tells which object it was: instances are renumbered by a permutation that depends on what
the tile shows, and every score is the same. `render.paint_bands` paints what these models read.

Shape suffixes: B images, C bands, H and W pixels, R runs of equal pixels in a row, N instances.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from segworker.jit import kernel
from segworker.types import Category, CroppedMasks, InputSpec, LabelMasks, Masks, Prediction

SCORE = 0.9
"Of every instance."
_THINGS = tuple(Category(k, f"class {k}") for k in range(1, 10))
_PANOPTIC = tuple(Category(k, f"class {k}", isthing=k < 4) for k in range(1, 7))
_NAMELESS = (Category(1, "object"),)


def _raw(num_bands: int) -> InputSpec:
    return InputSpec(num_bands=num_bands, scaling="none", stride=1, cut_trust_px=0, tile_px=512, overlap_px=64)


@dataclass(frozen=True, slots=True)
class PerfectModel:
    """Reads labels, and classes where there is a band for them, out of the pixels."""

    spec: InputSpec
    categories: tuple[Category, ...] = _THINGS
    label_bands: int = 2
    "The first bands hold the label's digits, the lowest first."
    digit_base: int = 2**16
    "Each below 2^24, so that float32 holds it exactly."
    has_class_band: bool = True
    "The band after the labels holds class ids, for every pixel; otherwise all objects are of the first category."
    parts: Literal["one", "several"] = "one"
    "Whether an object's disconnected parts in one tile are one instance, or each 8-connected component is its own."
    mask_form: Literal["labels", "cropped"] = "labels"
    _is_panoptic: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.spec.num_bands != self.label_bands + self.has_class_band:
            raise ValueError(f"the spec must ask for the label and class bands, got {self.spec.num_bands} bands")
        object.__setattr__(self, "_is_panoptic", not all(c.isthing for c in self.categories))

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        """Return for each image the objects painted into it, without a loss at its borders."""
        images, valid = images_BCHW.detach().cpu().numpy(), valid_BHW.detach().cpu().numpy()
        return [self._predict_one(image, seen) for image, seen in zip(images, valid, strict=True)]

    def _predict_one(self, image_CHW: NDArray[np.floating], valid_HW: NDArray[np.bool_]) -> Prediction:
        labels = self._labels(image_CHW, valid_HW)
        classes = image_CHW[self.label_bands] if self.has_class_band else None
        instances_HW, first, boxes = renumber(labels) if self.parts == "one" else renumber_parts(labels)
        n = len(first)
        class_ids = np.full(n, self.categories[0].id, np.int32)
        if classes is not None:
            class_ids = classes.ravel()[first].astype(np.int32)
        return Prediction(
            boxes_xyxy=boxes.astype(np.float32),
            class_ids=class_ids,
            scores=np.full(n, SCORE, np.float32),
            masks=self._masks(instances_HW, boxes),
            semantic_scores_CHW=self._semantic(classes) if classes is not None and self._is_panoptic else None,
        )

    def _labels(self, image_CHW: NDArray[np.floating], valid_HW: NDArray[np.bool_]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = image_CHW[0].astype(np.int64)
        for k in range(1, self.label_bands):
            labels += image_CHW[k].astype(np.int64) * self.digit_base**k
        labels[~valid_HW] = 0
        return labels

    def _semantic(self, classes_HW: NDArray[np.floating]) -> NDArray[np.float32]:
        ids = np.array([c.id for c in self.categories], classes_HW.dtype)
        return np.asarray(classes_HW[None] == ids[:, None, None], np.float32)

    def _masks(self, instances_HW: NDArray[np.int32], boxes: NDArray[np.int64]) -> Masks:
        if self.mask_form == "labels":
            return LabelMasks(instances_HW)
        crops = tuple(instances_HW[t:b, x:r] == i + 1 for i, (x, t, r, b) in enumerate(boxes.tolist()))
        return CroppedMasks(crops, boxes[:, :2])


def renumber(labels_HW: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Give the labels of an image new numbers 1..N in an order that only depends on the image.

    Returns:
        (H, W) new labels, (N,) flat index of a pixel of each, (N, 4) half-open boxes xyxy.
    """
    height, width = labels_HW.shape
    if labels_HW.size == 0:
        return labels_HW.astype(np.int32), np.zeros(0, np.int64), np.zeros((0, 4), np.int64)
    starts = np.ones((height, width), bool)
    starts[:, 1:] = labels_HW[:, 1:] != labels_HW[:, :-1]
    begins_R = np.flatnonzero(starts)
    lengths_R = np.diff(np.append(begins_R, labels_HW.size))
    values_R = labels_HW.ravel()[begins_R]
    kept, index, inverse_R = np.unique(values_R, return_index=True, return_inverse=True)
    things = kept != 0
    order = np.random.default_rng(zlib.crc32(values_R.tobytes())).permutation(int(things.sum()))
    new = np.zeros(len(kept), np.int32)
    new[things] = order + 1
    numbers_R = new[inverse_R]
    first = np.zeros(len(order), np.int64)
    first[order] = begins_R[index[things]]
    return np.repeat(numbers_R, lengths_R).reshape(height, width), first, _boxes(numbers_R, begins_R, lengths_R, width)


def renumber_parts(labels_HW: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """As `renumber`, but each 8-connected component of a label is one, in one pass over the runs of equal pixels."""
    labels = np.ascontiguousarray(labels_HW, np.int64)
    values_R, begins_R, component_R, num = _runs_kernel(labels)
    order = np.random.default_rng(zlib.crc32(values_R.tobytes())).permutation(num)
    numbers_R = np.where(component_R >= 0, order[component_R] + 1, 0).astype(np.int32) if num else component_R + 1
    return _painted_kernel(labels.shape[0], labels.shape[1], begins_R, numbers_R.astype(np.int32), num)


@kernel
def _runs_kernel(  # noqa: C901, PLR0912 - one pass over the pixels and one over the runs, which a kernel cannot split
    labels_HW: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Return runs of equal pixels (value, flat index of the first, component or -1 of 0), and how many components."""
    height, width = labels_HW.shape
    count = 0
    for y in range(height):
        for x in range(width):
            count += x == 0 or labels_HW[y, x] != labels_HW[y, x - 1]
    values, begins = np.empty(count, np.int64), np.empty(count + 1, np.int64)
    parent = np.arange(count)
    n = upper = row_start = 0
    for y in range(height):
        upper, row_start = row_start, n
        end_of_upper = n
        for x in range(width):
            if x and labels_HW[y, x] == labels_HW[y, x - 1]:
                continue
            values[n], begins[n] = labels_HW[y, x], y * width + x
            n += 1
        begins[n] = y * width + width
        for k in range(row_start, n):
            if values[k] == 0:
                continue
            first, stop = begins[k] - width, begins[k + 1] - width
            while upper < end_of_upper and begins[upper + 1] < first:
                upper += 1
            j = upper
            while j < end_of_upper and begins[j] <= stop:
                if values[j] == values[k]:
                    a, b = j, k
                    while parent[a] != a:
                        parent[a] = parent[parent[a]]
                        a = parent[a]
                    while parent[b] != b:
                        parent[b] = parent[parent[b]]
                        b = parent[b]
                    parent[max(a, b)] = min(a, b)
                j += 1
    component = np.full(count, -1, np.int64)
    num = 0
    for k in range(count):
        if values[k] == 0:
            continue
        if parent[k] == k:
            component[k] = num
            num += 1
        else:
            component[k] = component[parent[k]]
    return values, begins, component, num


@kernel
def _painted_kernel(
    height: int, width: int, begins_R: NDArray[np.int64], numbers_R: NDArray[np.int32], num: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Paint runs with their numbers; return the image, and for each number its first pixel and its box."""
    image = np.empty(height * width, np.int32)
    first = np.full(num, -1, np.int64)
    boxes = np.zeros((num, 4), np.int64)
    for k in range(len(numbers_R)):
        image[begins_R[k] : begins_R[k + 1]] = numbers_R[k]
        i = numbers_R[k] - 1
        if i < 0:
            continue
        y, left = begins_R[k] // width, begins_R[k] % width
        right = left + begins_R[k + 1] - begins_R[k]
        if first[i] < 0:
            first[i] = begins_R[k]
            boxes[i] = np.array([left, y, right, y + 1])
        boxes[i, 0], boxes[i, 2] = min(boxes[i, 0], left), max(boxes[i, 2], right)
        boxes[i, 3] = max(boxes[i, 3], y + 1)
    return image.reshape(height, width), first, boxes


def _boxes(
    numbers_R: NDArray[np.int32], begins_R: NDArray[np.int64], lengths_R: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
    """Return the boxes of runs that are numbered 1..N; 0 is background."""
    order = np.argsort(numbers_R, kind="stable")
    order = order[np.searchsorted(numbers_R[order], 1) :]
    if not len(order):
        return np.zeros((0, 4), np.int64)
    numbers, begins = numbers_R[order], begins_R[order]
    heads = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    rows, cols = np.divmod(begins, width)
    left, right = np.minimum.reduceat(cols, heads), np.maximum.reduceat(cols + lengths_R[order], heads)
    return np.stack([left, np.minimum.reduceat(rows, heads), right, np.maximum.reduceat(rows, heads) + 1], axis=1)


def perfect() -> PerfectModel:
    """Return the model for three bands: low 16 bits of the label, high 16 bits, class id 1..9."""
    return PerfectModel(_raw(3))


def perfect_parts() -> PerfectModel:
    """Return the same model, but each 8-connected component in a tile is an instance of its own."""
    return PerfectModel(_raw(3), parts="several")


def perfect_cropped() -> PerfectModel:
    """Return the same model with one cropped mask for each instance."""
    return PerfectModel(_raw(3), mask_form="cropped")


def perfect_panoptic() -> PerfectModel:
    """Return the model for three bands with classes 1..3 things and 4..6 stuff; also gives semantic scores."""
    return PerfectModel(_raw(3), categories=_PANOPTIC)


def perfect_rgb() -> PerfectModel:
    """Return the model for three 8-bit bands that hold the label's digits to base 256; one class."""
    return PerfectModel(_raw(3), categories=_NAMELESS, label_bands=3, digit_base=256, has_class_band=False)


def perfect_single(parts: Literal["one", "several"] = "one") -> PerfectModel:
    """Return the model for one band of labels below 2^24; one class."""
    return PerfectModel(_raw(1), categories=_NAMELESS, label_bands=1, has_class_band=False, parts=parts)
