"""From a model's prediction to instances: compact masks become runs in grid pixels, and broken output is refused.

A pixel is inside a mask where the bilinear value at its centre is at least 0.5, the lattice being zero outside itself
(the pasting rule of Mask R-CNN, https://arxiv.org/abs/1703.06870, as its public implementations agree on it).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from segworker import masks
from segworker.errors import PredictionError
from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I32, I64
from segworker.types import (
    BoxMasks,
    CroppedMasks,
    Edge,
    Instances,
    LabelMasks,
    Prediction,
    PrototypeMasks,
    Runs,
    Tile,
    Window,
)

F32 = NDArray[np.float32]
MAX_DEPTH = 100
"Objects of one tile that may lie over one pixel: beyond, they are copies, and pairs of two tiles' copies too many."
PROBABILITY_SLACK = 1e-2
"Beyond 0 and 1, as half precision may round."
MAX_INSTANCES = 1 << 20
"Of one tile, see `stitch.parts`."


def decode_instances(
    prediction: Prediction,
    tile: Tile,
    *,
    grid: Grid,
    class_ids: Collection[int],
    valid_HW: NDArray[np.bool_] | None = None,
    cut_trust_px: int = 0,
) -> Instances:
    """Return what one tile saw as instances in grid pixels.

    Args:
        prediction: the model's answer for the tile's window.
        tile: the tile.
        grid: the scene's grid; it says which window sides cut the scene.
        class_ids: the ids of the model's categories.
        valid_HW: (H, W) of the window; instances lose their invalid pixels. None: all are valid.
        cut_trust_px: an instance whose box comes within this distance of a cut side gets that side's `Edge` bit.

    Raises:
        PredictionError: what is no array, NaN or infinite numbers, unknown classes, masks that do not fit the boxes or
            the window, mask values that are no probabilities, more than MAX_DEPTH objects over one pixel.

    Masks without a pixel are dropped, boxes and masks are cut to the window.
    """
    _check(prediction, tile, class_ids)
    runs = masks.clip_runs(_mask_runs(prediction, tile.window), tile.window)
    _check_depth(runs, prediction, tile)
    if valid_HW is not None and not valid_HW.all():
        runs = _keep_valid(runs, valid_HW, tile.window)
    kept = np.flatnonzero(np.diff(runs.offsets))
    runs = runs.take(kept)
    boxes = masks.boxes_xyxy(runs)
    points = prediction.keypoints_NK3
    if points is not None:
        points = points[kept].astype(np.float32)
        points[..., :2] += (tile.window.col_off, tile.window.row_off)
    return Instances(
        tile=tile,
        class_ids=prediction.class_ids[kept].astype(np.int32),
        scores=prediction.scores[kept].astype(np.float32),
        boxes_xyxy=boxes,
        edges=edge_bits(boxes, tile.window, grid=grid, margin_px=cut_trust_px),
        runs=runs,
        keypoints_NK3=points,
    )


def edge_bits(boxes_xyxy: I32, window: Window, *, grid: Grid, margin_px: int) -> NDArray[np.uint8]:
    """Return (N,) `Edge` bits: cut sides of the window (not the scene's rim) that a box comes within a margin of."""
    bits = np.zeros(len(boxes_xyxy), np.uint8)
    for bit, cut, near in (
        (Edge.LEFT, window.col_off > 0, boxes_xyxy[:, 0] <= window.col_off + margin_px),
        (Edge.TOP, window.row_off > 0, boxes_xyxy[:, 1] <= window.row_off + margin_px),
        (Edge.RIGHT, window.col_end < grid.width, boxes_xyxy[:, 2] >= window.col_end - margin_px),
        (Edge.BOTTOM, window.row_end < grid.height, boxes_xyxy[:, 3] >= window.row_end - margin_px),
    ):
        if cut:
            bits[near] |= bit
    return bits


def _check(prediction: Prediction, tile: Tile, class_ids: Collection[int]) -> None:
    where = _where(tile)
    _check_arrays(prediction, where)
    for name, values in _numbers(prediction):
        if not np.isfinite(values).all():
            raise PredictionError(f"{name} must be finite, got NaN or infinity in {where}; check weights and precision")
    if len(prediction) and (prediction.scores.min() < 0 or prediction.scores.max() > 1):
        raise PredictionError(
            f"scores must lie in 0..1, got {prediction.scores.min()}..{prediction.scores.max()} in {where}"
        )
    unknown = sorted(set(np.unique(prediction.class_ids).tolist()) - set(class_ids))
    if unknown:
        raise PredictionError(
            f"class ids must be those of the model's categories {sorted(class_ids)[:8]}, got {unknown[:8]} in {where}"
        )
    if len(prediction) >= MAX_INSTANCES:
        raise PredictionError(f"a tile has fewer than {MAX_INSTANCES} objects, got {len(prediction)} in {where}")
    got, want = _mask_shape(prediction, tile)
    if got != want:
        raise PredictionError(f"masks must fit {want}, got {got} in {where}; fix the model's predict()")
    _check_mask_values(prediction, where)
    points = prediction.keypoints_NK3
    if points is not None and (points.ndim != 3 or points.shape[0] != len(prediction) or points.shape[2] != 3):
        raise PredictionError(f"keypoints must be (N, K, 3) for N={len(prediction)}, got {points.shape} in {where}")


def _where(tile: Tile) -> str:
    return f"tile ({tile.row}, {tile.col}) of {tile.scene_id}"


def _check_arrays(prediction: Prediction, where: str) -> None:
    """Refuse what is no array (tensors, lists), or an array of another kind of number."""
    for name, value, kinds in _arrays(prediction):
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            got = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
            wanted = "integers" if "f" not in kinds else "numbers"
            raise PredictionError(
                f"{name} must be a numpy array of {wanted}, got {got} in {where}; convert it in the model's predict()"
            )


def _arrays(prediction: Prediction) -> Iterator[tuple[str, object, str]]:
    """Yield the name, value and allowed kinds of dtype of each array."""
    yield "boxes_xyxy", prediction.boxes_xyxy, "fiu"
    yield "class_ids", prediction.class_ids, "iu"
    yield "scores", prediction.scores, "fiu"
    if prediction.keypoints_NK3 is not None:
        yield "keypoints_NK3", prediction.keypoints_NK3, "fiu"
    found = prediction.masks
    if isinstance(found, BoxMasks):
        yield "masks.probs_NMM", found.probs_NMM, "fiub"
    if isinstance(found, LabelMasks):
        yield "masks.labels_HW", found.labels_HW, "iub"
    if isinstance(found, CroppedMasks):
        yield "masks.corners_xy", found.corners_xy, "iu"
        for mask in found.masks:
            yield "masks.masks", mask, "biu"
    if isinstance(found, PrototypeMasks):
        yield "masks.prototypes_KHW", found.prototypes_KHW, "fiu"
        yield "masks.coefficients_NK", found.coefficients_NK, "fiu"


def _check_mask_values(prediction: Prediction, where: str) -> None:
    found = prediction.masks
    if isinstance(found, LabelMasks):
        low, high = int(found.labels_HW.min(initial=0)), int(found.labels_HW.max(initial=0))
        if low < 0 or high > len(prediction):
            raise PredictionError(
                f"labels must be at least 0 and at most N for N={len(prediction)} scores, got "
                f"{low if low < 0 else high} in {where}; fix the model's predict()"
            )
    if isinstance(found, BoxMasks) and found.probs_NMM.size:
        least, most = float(found.probs_NMM.min()), float(found.probs_NMM.max())
        if least < -PROBABILITY_SLACK or most > 1 + PROBABILITY_SLACK:
            raise PredictionError(
                f"mask probabilities must lie in 0..1, got {least:.3g}..{most:.3g} in {where}; apply the "
                "sigmoid in the model's predict()"
            )
    if isinstance(found, CroppedMasks) and any(mask.ndim != 2 for mask in found.masks):
        raise PredictionError(f"cropped masks must be (h, w), got other shapes in {where}; fix the model's predict()")


def _check_depth(runs: Runs, prediction: Prediction, tile: Tile) -> None:
    if isinstance(prediction.masks, LabelMasks) or len(runs) <= MAX_DEPTH:
        return
    window = tile.window
    depth, row, col = _depth(runs.rows, runs.starts, runs.stops, window.row_off, window.col_off, *window.shape_yx)
    if depth > MAX_DEPTH:
        raise PredictionError(
            f"at most {MAX_DEPTH} objects may lie over one pixel, got {depth} at column {col}, row {row} of "
            f"{_where(tile)}; suppress copies in the model's predict(), or raise its own score threshold"
        )


@kernel
def _depth(
    rows: I32, starts: I32, stops: I32, row_off: int, col_off: int, height: int, width: int
) -> tuple[int, int, int]:
    """Return the largest number of runs over one pixel, and that pixel's row and column in the window."""
    changes = np.zeros((height, width + 1), np.int32)
    for k in range(len(rows)):
        changes[rows[k] - row_off, starts[k] - col_off] += 1
        changes[rows[k] - row_off, stops[k] - col_off] -= 1
    best, best_row, best_col = 0, 0, 0
    for y in range(height):
        now = 0
        for x in range(width):
            now += changes[y, x]
            if now > best:
                best, best_row, best_col = now, y, x
    return best, best_row, best_col


def _numbers(prediction: Prediction) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """Yield the names and values of what must be finite."""
    yield "scores", prediction.scores
    yield "boxes_xyxy", prediction.boxes_xyxy
    if prediction.keypoints_NK3 is not None:
        yield "keypoints_NK3", prediction.keypoints_NK3
    if isinstance(prediction.masks, BoxMasks):
        yield "masks", prediction.masks.probs_NMM
    if isinstance(prediction.masks, PrototypeMasks):
        yield "masks", prediction.masks.prototypes_KHW
        yield "masks", prediction.masks.coefficients_NK


def _mask_shape(prediction: Prediction, tile: Tile) -> tuple[object, object]:
    """Return what the masks have and what they should have: a count of instances or a window shape."""
    n, found = len(prediction), prediction.masks
    if isinstance(found, BoxMasks):
        return (found.probs_NMM.ndim, len(found.probs_NMM)), (3, n)
    if isinstance(found, LabelMasks):
        return found.labels_HW.shape, tile.window.shape_yx
    if isinstance(found, CroppedMasks):
        return (len(found.masks), found.corners_xy.shape), (n, (n, 2))
    if isinstance(found, PrototypeMasks):
        return found.coefficients_NK.shape, (n, len(found.prototypes_KHW))
    return None, None


def _mask_runs(prediction: Prediction, window: Window) -> Runs:
    found = prediction.masks
    n = len(prediction)
    if n == 0:
        return Runs.empty()
    if isinstance(found, LabelMasks):
        return masks.runs_from_labels(found.labels_HW, n, window=window)
    if isinstance(found, CroppedMasks):
        return Runs.concatenate(
            [_placed(m, corner, window) for m, corner in zip(found.masks, found.corners_xy, strict=True)]
        )
    boxes = prediction.boxes_xyxy.astype(np.float32)
    if isinstance(found, BoxMasks):
        size = found.probs_NMM.shape[1:]
        shapes = np.tile(np.array(size, np.int64), (n, 1))
        values = np.ascontiguousarray(found.probs_NMM, dtype=np.float32).reshape(-1)
        return _sampled(values, shapes, boxes, boxes, window)
    if isinstance(found, PrototypeMasks):
        return _sampled(*_prototype_lattices(found, boxes), boxes, window)
    return _sampled(np.ones(n, np.float32), np.ones((n, 2), np.int64), _far_around(boxes), boxes, window)


def _placed(mask: NDArray[np.bool_], corner_xy: NDArray[np.integer], window: Window) -> Runs:
    height, width = mask.shape
    if not (-width < corner_xy[0] < window.width and -height < corner_xy[1] < window.height):
        return Runs.empty(1)  # far outside, where int32 may not reach
    col, row = int(corner_xy[0]) + window.col_off, int(corner_xy[1]) + window.row_off
    labels = np.ascontiguousarray(mask != 0, dtype=np.int32)
    counts = masks.runs_from_labels(labels, 1, window=Window(0, 0, width, height))
    return Runs(
        counts.rows + np.int32(row), counts.starts + np.int32(col), counts.stops + np.int32(col), counts.offsets
    )


def _far_around(boxes: F32) -> F32:
    """Return frames so large that a lattice of one cell is 1 all over the box: the box itself is the mask."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    return np.concatenate([boxes[:, :2] - sides, boxes[:, 2:] + sides], axis=1).astype(np.float32)


def _prototype_lattices(found: PrototypeMasks, boxes: F32) -> tuple[F32, NDArray[np.int64], F32]:
    """Return (values, shapes, frames): the probabilities on the prototype cells under each box."""
    prototypes = np.pad(found.prototypes_KHW, ((0, 0), (1, 1), (1, 1)), mode="edge")  # the maps go on at their rim
    _, height, width = prototypes.shape
    cells = boxes / found.stride + 1
    left, top = np.floor(cells[:, 0]).astype(int) - 1, np.floor(cells[:, 1]).astype(int) - 1
    right, bottom = np.ceil(cells[:, 2]).astype(int) + 1, np.ceil(cells[:, 3]).astype(int) + 1
    left, right = np.clip(left, 0, width - 1), np.clip(right, 1, width)
    top, bottom = np.clip(top, 0, height - 1), np.clip(bottom, 1, height)
    right, bottom = np.maximum(right, left + 1), np.maximum(bottom, top + 1)
    values = []
    for c, x0, y0, x1, y1 in zip(found.coefficients_NK, left, top, right, bottom, strict=True):
        logits = np.tensordot(c, prototypes[:, y0:y1, x0:x1], axes=1)
        values.append((1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float32), -80, 80)))).ravel())
    shapes = np.stack([bottom - top, right - left], axis=1).astype(np.int64)
    frames = ((np.stack([left, top, right, bottom], axis=1) - 1) * found.stride).astype(np.float32)
    return np.concatenate(values).astype(np.float32), shapes, frames


def _sampled(values: F32, shapes: NDArray[np.int64], frames: F32, boxes: F32, window: Window) -> Runs:
    """Return runs where the lattice stretched over each frame is at least 0.5, within its box and the window."""
    height, width = window.shape_yx
    pixels = np.empty((len(boxes), 4), np.int64)
    pixels[:, :2] = np.clip(np.floor(boxes[:, :2]), 0, (width, height))
    pixels[:, 2:] = np.clip(np.ceil(boxes[:, 2:]), 0, (width, height))
    rows, starts, stops, offsets = _sample_kernel(values, shapes, frames, pixels)
    return Runs(
        rows + np.int32(window.row_off), starts + np.int32(window.col_off), stops + np.int32(window.col_off), offsets
    )


@kernel
def _sample_kernel(values: F32, shapes: I64, frames: F32, pixels: I64) -> tuple[I32, I32, I32, I64]:
    n = len(frames)
    capacity = np.int64(1024)
    out = np.empty((3, capacity), np.int32)
    offsets = np.zeros(n + 1, np.int64)
    base, size = np.int64(0), np.int64(0)
    for i in range(n):
        h, w = shapes[i]
        scale_x = w / max(frames[i, 2] - frames[i, 0], np.float32(1e-6))
        scale_y = h / max(frames[i, 3] - frames[i, 1], np.float32(1e-6))
        for y in range(pixels[i, 1], pixels[i, 3]):
            begin = -1
            fy = (y + np.float32(0.5) - frames[i, 1]) * scale_y - np.float32(0.5)
            for x in range(pixels[i, 0], pixels[i, 2] + 1):
                inside = bool(x < pixels[i, 2])
                if inside:
                    fx = (x + np.float32(0.5) - frames[i, 0]) * scale_x - np.float32(0.5)
                    inside = bool(_bilinear(values, base, h, w, fy, fx) >= np.float32(0.5))
                if inside and begin < 0:
                    begin = x
                elif not inside and begin >= 0:
                    if size == capacity:
                        bigger = np.empty((3, 2 * capacity), np.int32)
                        bigger[:, :capacity] = out
                        out, capacity = bigger, 2 * capacity
                    out[0, size], out[1, size], out[2, size] = y, begin, x
                    size += 1
                    begin = -1
        base += h * w
        offsets[i + 1] = size
    return out[0, :size].copy(), out[1, :size].copy(), out[2, :size].copy(), offsets


@kernel
def _bilinear(values: F32, base: np.int64, h: int, w: int, fy: float, fx: float) -> np.float32:
    y0, x0 = int(np.floor(fy)), int(np.floor(fx))
    total = np.float32(0)
    for dy in range(2):
        for dx in range(2):
            y, x = y0 + dy, x0 + dx
            if 0 <= y < h and 0 <= x < w:
                weight_y = fy - y0 if dy == 1 else 1 - (fy - y0)
                weight_x = fx - x0 if dx == 1 else 1 - (fx - x0)
                total += np.float32(weight_y * weight_x) * values[base + y * w + x]
    return total


def _keep_valid(runs: Runs, valid_HW: NDArray[np.bool_], window: Window) -> Runs:
    """Return the masks without their invalid pixels."""
    valid = np.ascontiguousarray(valid_HW)
    return Runs(
        *_keep_valid_kernel(runs.rows, runs.starts, runs.stops, runs.offsets, valid, window.row_off, window.col_off)
    )


@kernel
def _keep_valid_kernel(
    rows: I32, starts: I32, stops: I32, offsets: I64, valid: NDArray[np.bool_], row_off: int, col_off: int
) -> tuple[I32, I32, I32, I64]:
    total = 0
    for k in range(len(rows)):
        total += (stops[k] - starts[k] + 1) // 2
    out = np.empty((3, total), np.int32)
    out_offsets = np.zeros_like(offsets)
    n = 0
    for i in range(len(offsets) - 1):
        for k in range(offsets[i], offsets[i + 1]):
            x = starts[k]
            while x < stops[k]:
                while x < stops[k] and not valid[rows[k] - row_off, x - col_off]:
                    x += 1
                begin = x
                while x < stops[k] and valid[rows[k] - row_off, x - col_off]:
                    x += 1
                if x > begin:
                    out[0, n], out[1, n], out[2, n] = rows[k], begin, x
                    n += 1
        out_offsets[i + 1] = n
    return out[0, :n].copy(), out[1, :n].copy(), out[2, :n].copy(), out_offsets
