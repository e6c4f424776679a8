"""Rasters of a panoptic scene: the index of every pixel's feature, and its class, window by window into COGs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import ray

from segworker import masks
from segworker.blocks import Block
from segworker.engine.calls import in_order
from segworker.engine.job import Common, Job
from segworker.engine.outlines import pixel_keys
from segworker.engine.stuff import Ground
from segworker.grid import Grid
from segworker.io.cog import CogWriter
from segworker.io.panoptic import CLASS, INDEX, PLACE, class_spec, index_spec, panoptic_path, write_segments
from segworker.io.rows import SceneFeatures
from segworker.masks import I64
from segworker.stitch import Homes, Pieces
from segworker.types import Runs, Scene, Window

STRIP_PX = 2**22
"Pixels that are painted at once, about."


def segment_table(found: SceneFeatures) -> I64:
    """Return the (N, 8) segment table of finished features, see `io.panoptic`, by first pixel."""
    pieces = found.features.pieces
    table = np.column_stack(
        [
            pixel_keys(pieces.runs),
            found.features.index,
            pieces.class_ids,
            masks.areas_px(pieces.runs),
            masks.boxes_xyxy(pieces.runs),
        ]
    )
    return np.asarray(table[np.argsort(table[:, PLACE])], np.int64)


def write_scene_rasters(found: SceneFeatures, *, scene_no: int, grid: Grid, common: Common) -> list[str]:
    """Write the rasters of a scene whose features are all at hand; return their paths."""
    table = segment_table(found)
    pieces = found.features.pieces
    values = np.column_stack([found.features.index + 1, pieces.class_ids])
    region = Window(0, 0, grid.width, grid.height)
    return _write(common, found.scene, scene_no, grid, [(region, pieces.runs, values)], [table])


def write_large_rasters(
    job: Job,
    shared: ray.ObjectRef[Common],
    blocks: Sequence[Block],
    ground: Ground,
    homes: Homes,
    tables: Mapping[int, tuple[Any, int]],
    scene_nos: Mapping[str, int],
) -> list[str]:
    """Write the rasters of a scene of several blocks in one task, block by block; return their paths.

    Args:
        job: the job.
        shared: what all tasks share.
        blocks: of the scene.
        ground: its pieces.
        homes: of its border features.
        tables: block -> (reference to the segment tables of some blocks, position among them).
        scene_nos: the store's number of each scene.
    """
    scene_id = blocks[0].ranges[0].scene_id
    grid = job.grids[scene_id]
    home_of = np.full(len(ground.numbers), -1, np.int64)
    owner = np.repeat(np.arange(len(blocks)), np.diff(homes.starts))
    home_of[np.searchsorted(ground.numbers, homes.features)] = owner
    regions = [b.ranges[0].region(grid) for b in blocks]
    borders = ground.numbers, ground.places, home_of
    pieces = list(zip(ground.cut.whole, ground.cut.parts, strict=True))
    arguments = (shared, job.task(blocks[0]).scenes[scene_id], scene_nos[scene_id], grid, regions, pieces)
    calls = [(*arguments, [tables[b] for b in range(len(blocks))], borders)]
    (paths,) = in_order(_write_blocks, calls, what=f"writing rasters of {scene_id}")
    return list(paths)


@ray.remote(max_retries=3)
def _write_blocks(
    common: Common,
    scene: Scene,
    scene_no: int,
    grid: Grid,
    regions: Sequence[Window],
    pieces: Sequence[tuple[Any, Any]],
    tables: Sequence[tuple[Any, int]],
    borders: tuple[I64, I64, I64],
) -> list[str]:
    numbers, places, home_of = borders

    def table(block: int) -> I64:
        reference, position = tables[block]
        found: I64 = ray.get(reference)[position]
        return found

    def painted() -> Iterator[tuple[Window, Runs, I64]]:
        for block, (whole_ref, parts_ref) in enumerate(pieces):
            whole: Pieces = ray.get(whole_ref)
            parts: Pieces = ray.get(parts_ref)
            at = np.searchsorted(numbers, parts.features)
            values = np.zeros((len(whole) + len(parts), 2), np.int64)
            values[: len(whole)] = _values(table(block), pixel_keys(whole.runs))
            own = values[len(whole) :]
            for home in np.unique(home_of[at]).tolist():
                if home >= 0:
                    mine = np.flatnonzero(home_of[at] == home)
                    own[mine] = _values(table(home), places[at[mine]])
            yield regions[block], Runs.concatenate([whole.runs, parts.runs]), values

    return _write(common, scene, scene_no, grid, painted(), (table(b) for b in range(len(tables))))


def _values(table: I64, places: I64) -> I64:
    """Return (N, 2) index + 1 and class of the features with these first pixels; zeros for those that are no more."""
    result = np.zeros((len(places), 2), np.int64)
    if len(table):
        at = np.minimum(np.searchsorted(table[:, PLACE], places), len(table) - 1)
        here = table[at, PLACE] == places
        result[here] = table[at[here]][:, [INDEX, CLASS]] + (1, 0)
    return result


def _write(
    common: Common,
    scene: Scene,
    scene_no: int,
    grid: Grid,
    painted: Any,  # noqa: ANN401 - an iterable of (region, its masks, (N, 2) values), where no index is 0
    tables: Any,  # noqa: ANN401 - an iterable of segment tables
) -> list[str]:
    categories = common.model.categories
    specs = index_spec(scene, grid), class_spec(scene, grid, categories)
    paths = [panoptic_path(common.run_id, scene.scene_id, kind) for kind in ("", "classes")]
    with ExitStack() as stack:
        writers = [stack.enter_context(CogWriter(common.storage, p, s)) for p, s in zip(paths, specs, strict=True)]
        for region, runs, values in painted:
            kept = np.flatnonzero(values[:, 0])
            segments, own = runs.take(kept), values[kept]
            for window in _strips(region):
                number = masks.labels_from_runs(masks.clip_runs(segments, window), window=window)
                lookup = np.concatenate([[[0, specs[1].nodata]], own])
                for k, writer in enumerate(writers):
                    writer.write(window, lookup[:, k][number])
    write_segments(common.storage, paths[0], tables, scene=scene, scene_no=scene_no, grid=grid, categories=categories)
    return paths


def _strips(region: Window) -> Iterator[Window]:
    rows = max(1, STRIP_PX // max(1, region.width))
    for top in range(0, region.height, rows):
        yield Window(region.col_off, region.row_off + top, region.width, min(rows, region.height - top))
