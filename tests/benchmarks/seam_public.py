"""Adapters to public packages, called on the same tile results where they are installed.

    uv run --extra bench python tests/benchmarks/stitch.py

sahi-nmm, sahi-nms   greedy merging and suppression of SAHI's sliced inference with its defaults (IoS 0.5)
supervision          `Detections.with_nmm` by IoS 0.5 on compact masks, as `InferenceSlicer` calls it
cellpose             the block functions of Cellpose's distributed mode, as shipped: cut to cores, faces, relabelling
cellpose-mended      the same with `shrink_labels` working in two dimensions (`np.gradient` of a line is not a stack)
stardist             the blocks of StarDist's `predict_instances_big`, each keeping the objects that it is responsible
                     for; an object that spans the overlap is an error there

`prepare` turns instances into what a package starts from; it is not on the clock of the speed table.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rasterio import features
from rasterio.transform import Affine
from seam_cases import Stitched, Tool

from segworker import masks
from segworker.grid import Axis, Grid
from segworker.types import Instances, Runs, Window

THRESHOLD = 0.5
LARGEST_NUCLEUS_PX = 42
"StarDist's `min_overlap`; the rest of the overlap is its `context`, which is thrown away."


@dataclass(frozen=True, slots=True)
class PublicTool:
    """A package's stitching in three steps, of which the middle one is timed."""

    package: str
    prepare: Callable[[Sequence[Instances], Grid], Any]
    run: Callable[[Any], Any]
    finish: Callable[[Any, Grid], Stitched]

    def __call__(self, tiles: Sequence[Instances], grid: Grid) -> Stitched:
        """Stitch instances, as any `Tool`."""
        return self.finish(self.run(self.prepare(tiles, grid)), grid)

    @property
    def is_installed(self) -> bool:
        """Whether the package is here."""
        return importlib.util.find_spec(self.package) is not None


def crops(tiles: Sequence[Instances]) -> Iterator[tuple[np.ndarray, list[int], int, float]]:
    """Yield (mask in its box, box xyxy, class, score) of every instance."""
    for t in tiles:
        for i, box in enumerate(t.boxes_xyxy.tolist()):
            window = Window(box[0], box[1], box[2] - box[0], box[3] - box[1])
            mask = masks.labels_from_runs(t.runs.take(np.array([i])), window=window) > 0
            yield mask, box, int(t.class_ids[i]), float(t.scores[i])


def placed(parts: Sequence[tuple[np.ndarray, int, int]]) -> Runs:
    """Return crops (mask, left, top) as runs; empty ones are left out."""
    found = [
        masks.runs_from_mask(mask, window=Window(int(left), int(top), mask.shape[1], mask.shape[0]))
        for mask, left, top in parts
        if mask.any()
    ]
    return Runs.concatenate(found)


def sahi_predictions(tiles: Sequence[Instances], grid: Grid) -> list[Any]:
    """Return every instance as a prediction with exact polygons (without holes: SAHI's polygons have none)."""
    from sahi.prediction import ObjectPrediction

    found = []
    for mask, box, class_id, score in crops(tiles):
        shapes = features.shapes(mask.astype(np.uint8), mask=mask, transform=Affine.translation(box[0], box[1]))
        rings = [np.array(shape["coordinates"][0])[:-1].ravel().tolist() for shape, _ in shapes]
        full = [grid.height, grid.width]
        found.append(ObjectPrediction(box, class_id, str(class_id), rings, score, [0, 0], full))
    return found


def run_sahi(name: str) -> Callable[[Any], Any]:
    """Return the call of one of SAHI's postprocessing classes."""

    def run(predictions: Any) -> Any:
        from sahi.postprocess import combine

        return getattr(combine, name)(match_threshold=THRESHOLD, match_metric="IOS")(list(predictions))

    return run


def finish_sahi(predictions: Any, _grid: Grid) -> Stitched:
    """Return the polygons as runs."""
    parts = []
    for p in predictions:
        rings = [np.array(ring).reshape(-1, 2) for ring in p.mask.segmentation]
        points = np.concatenate(rings)
        (left, top), (right, bottom) = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
        shapes = [{"type": "Polygon", "coordinates": [np.vstack([r, r[:1]]).tolist()]} for r in rings]
        shape_yx = (max(1, bottom - top), max(1, right - left))
        mask = features.rasterize(shapes, shape_yx, transform=Affine.translation(left, top)) > 0
        parts.append((mask, left, top))
    return Stitched(placed(parts))


def supervision_detections(tiles: Sequence[Instances], grid: Grid) -> Any:
    """Return all instances as one set of detections with compact masks."""
    import supervision
    from supervision.detection.compact_mask import CompactMask

    found = list(crops(tiles))
    shapes = np.array([m.shape for m, *_ in found], np.int32)
    boxes = np.array([b for _, b, *_ in found], np.int32)
    compact = CompactMask([_column_counts(m) for m, *_ in found], shapes, boxes[:, :2], (grid.height, grid.width))
    return supervision.Detections(
        xyxy=boxes.astype(np.float32) - np.array([0, 0, 1, 1], np.float32),
        mask=compact,
        confidence=np.array([s for *_, s in found], np.float32),
        class_id=np.array([c for *_, c, _ in found], int),
    )


def run_supervision(detections: Any) -> Any:
    """Merge as `InferenceSlicer` does with overlap_filter=NON_MAX_MERGE and IoS."""
    from supervision.detection.utils.iou_and_nms import OverlapMetric

    return detections.with_nmm(threshold=THRESHOLD, overlap_metric=OverlapMetric.IOS)


def finish_supervision(detections: Any, _grid: Grid) -> Stitched:
    """Return compact (or dense) masks as runs."""
    compact = detections.mask
    if isinstance(compact, np.ndarray):
        return Stitched(placed([(m, 0, 0) for m in compact]))
    return Stitched(placed([(compact.crop(i), *compact.offsets[i].tolist()) for i in range(len(compact))]))


def _column_counts(mask: np.ndarray) -> np.ndarray:
    """Return run lengths down the columns, the first one of False."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes]))
    rest = mask.size - int(changes[-1]) if len(changes) else mask.size
    return np.append(counts, rest).astype(np.int32) if rest else counts.astype(np.int32)


def core_rasters(tiles: Sequence[Instances], _grid: Grid) -> list[tuple[tuple[int, int], Window, np.ndarray]]:
    """Return (place, core, labels in the core) of each tile."""
    return [
        ((t.tile.row, t.tile.col), t.tile.core, masks.labels_from_runs(t.runs, window=t.tile.core).astype(np.uint32))
        for t in tiles
    ]


def run_cellpose(*, mended: bool) -> Callable[[Any], Any]:
    """Return what `distributed_eval` does after segmentation, in one process and in memory."""

    def run(blocks: Any) -> Any:
        with Path(os.devnull).open("w") as silent, contextlib.redirect_stdout(silent):
            import cellpose.contrib.distributed_segmentation as package

        context = patch.object(package, "shrink_labels", _shrink_line) if mended else contextlib.nullcontext()
        with context:
            return _cellpose_passes(package, blocks)

    return run


def _cellpose_passes(package: Any, blocks: Any) -> list[tuple[Window, np.ndarray]]:
    shape = np.max([place for place, *_ in blocks], axis=0) + 1
    rasters, faces, boxes, box_ids = [], [], [], []
    for place, core, labels in blocks:
        crop = (slice(core.row_off, core.row_end), slice(core.col_off, core.col_end))
        found = package.bounding_boxes_in_global_coordinates(labels.astype(np.int32), crop)
        ids, remap = package.global_segment_ids(labels, place, shape)
        rasters.append(ids)
        faces.append(package.block_faces(ids))
        boxes.extend(found)
        box_ids.append(np.array(remap[1:] if remap[0] == 0 else remap))
    every = np.concatenate(box_ids).astype(int)
    new = package.determine_merge_relabeling([place for place, *_ in blocks], faces, every)
    package.merge_all_boxes(boxes, new[every])
    return [(core, new[ids]) for (_, core, _), ids in zip(blocks, rasters, strict=True)]


def _shrink_line(plane: np.ndarray, threshold: float) -> np.ndarray:
    """Take the pixels next to a change of label off a line of labels, and what is left within the threshold."""
    from scipy import ndimage

    line = np.copy(plane.squeeze())
    line[np.gradient(line.astype(np.int64)) != 0] = 0
    line[ndimage.distance_transform_edt(line) <= threshold] = 0
    return line.reshape(plane.shape)


def finish_cellpose(rasters: Any, _grid: Grid) -> Stitched:
    """Return the relabelled cores as runs."""
    runs, groups = [], []
    for core, labels in rasters:
        ids, local = np.unique(labels, return_inverse=True)
        local = local.reshape(labels.shape) + (ids[0] != 0)
        ids = ids[ids != 0]
        runs.append(masks.runs_from_labels(local, len(ids), window=core))
        groups.append(ids.astype(np.int64))
    kept, group = np.unique(np.concatenate(groups), return_inverse=True)
    return Stitched(masks.merge_runs(Runs.concatenate(runs), group, len(kept)))


def stardist_blocks(tiles: Sequence[Instances], grid: Grid) -> list[tuple[Any, np.ndarray]]:
    """Return (block, labels in its window) of each tile; StarDist's blocks on our windows."""
    from stardist.big import BlockND

    rows, cols = _stardist_chain(grid.y), _stardist_chain(grid.x)
    found = []
    for k, t in enumerate(tiles):
        labels = masks.labels_from_runs(t.runs, window=t.tile.window).astype(np.int32)
        found.append((BlockND(k, (rows[t.tile.row], cols[t.tile.col]), "YX"), labels))
    return found


def _stardist_chain(axis: Axis) -> list[Any]:
    from stardist.big import Block

    context = max(0, (axis.overlap - LARGEST_NUCLEUS_PX) // 2)
    chain: list[Any] = []
    for k in range(axis.count):
        start, end = axis.window(k)
        block = Block(end - start, axis.overlap - 2 * context, context, chain[-1] if chain else None)
        if chain:
            chain[-1].succ = block
            chain[-1].stride = start - axis.window(k - 1)[0]
        chain.append(block)
    chain[0].freeze()
    return chain


def run_stardist(blocks: Any) -> Any:
    """Keep in each block what it is responsible for, and write the labels one block after the other."""
    last, _ = blocks[-1]
    together, offset = np.zeros([place.stop for place in last.slice_write()], np.int32), 0
    for block, labels in blocks:
        kept = block.filter_objects(block.crop_context(labels), None)
        block.write(together, np.where(kept > 0, kept + offset, 0))
        offset += int(labels.max(initial=0))
    return together


def finish_stardist(labels: Any, grid: Grid) -> Stitched:
    """Return the labels as runs."""
    return finish_cellpose([(Window(0, 0, grid.width, grid.height), labels)], grid)


PUBLIC_TOOLS: dict[str, PublicTool] = {
    "sahi-nmm": PublicTool("sahi", sahi_predictions, run_sahi("GreedyNMMPostprocess"), finish_sahi),
    "sahi-nms": PublicTool("sahi", sahi_predictions, run_sahi("NMSPostprocess"), finish_sahi),
    "supervision": PublicTool("supervision", supervision_detections, run_supervision, finish_supervision),
    "cellpose": PublicTool("cellpose", core_rasters, run_cellpose(mended=False), finish_cellpose),
    "cellpose-mended": PublicTool("cellpose", core_rasters, run_cellpose(mended=True), finish_cellpose),
    "stardist": PublicTool("stardist", stardist_blocks, run_stardist, finish_stardist),
}
_: dict[str, Tool] = {**PUBLIC_TOOLS}
