"""What a perfect model must give back, at grids that people use: shared by the quick and the slow tests of it."""

from __future__ import annotations

import numpy as np

from segworker import masks, metrics
from segworker.grid import Grid
from segworker.stitch import StitchOptions, stitch_scene
from segworker.synthetic.noise import perfect_tiles
from segworker.synthetic.scenes import as_partition, make_scene, split_objects
from segworker.synthetic.shapes import Canvas, Shape, comb, rectangle, ring
from segworker.synthetic.truth import Parts, TruthScene, visible_truth
from segworker.types import Category, Window

KINDS = ("nuclei", "fields", "roads", "aerial", "panoptic", "gallery")


def scene_of(kind: str, shape_yx: tuple[int, int], seed: int, *, grid: Grid, parts: Parts) -> TruthScene:
    """A scene of one kind, a fifth of its objects in disconnected parts where a model may return them as one."""
    scene = gallery(grid) if kind == "gallery" else make_scene(kind, shape_yx, seed)
    scene = as_partition(scene) if kind == "panoptic" else scene
    return split_objects(scene, share=0.2, seed=seed) if parts == "one" else scene


def gallery(grid: Grid) -> TruthScene:
    """What seams are hard on, put where this grid has them."""
    canvas = Canvas((grid.height, grid.width))
    step, halo = grid.x.step, grid.overlap_px // 2
    middle_y, middle_x = grid.height / 2 - 0.5, grid.width / 2 - 0.5
    for k in range(1, max(grid.shape_yx)):
        corner = k * step + halo
        _add(canvas, rectangle(corner - 0.5, corner - 0.5, 7.6, 7.6, 0.0))  # on the corner of four cores
        for line in (k * step, corner, k * step + grid.overlap_px):  # window's begin, core's border, window's end
            for m, half in enumerate((0.5, 1.5, 8.0, halo + 9.0)):
                along = 30 + 2.2 * (halo + 9) * m
                _add(canvas, rectangle(along, line - 0.5, 6.0, half, 0.0))  # astride
                _add(canvas, rectangle(line + half, 250 + along, half, 6.0, 0.0))  # begins on it
    for radius in (0.45, 0.4, 0.35):
        _add(canvas, ring(middle_y, middle_x, radius * min(grid.height, grid.width), 5))
    for turn, teeth in enumerate((2, 5, 2, 7)):
        shape = comb(step * 0.9, teeth, step * 0.13, 4).turned(turn)
        _add(canvas, shape.at(middle_y + (turn - 1.5) * step / 3, middle_x + (1.5 - turn) * step / 4))
    for k in range(6):  # lanes 3 px apart through all tiles, one bundle along and one across a core's border
        _add(canvas, rectangle(step + halo - 20 + 8 * k, middle_x, 2.4, grid.width, 0.0))
        _add(canvas, rectangle(middle_y, step + halo - 20 + 8 * k, grid.height, 2.4, 0.0))
    return canvas.scene((Category(1, "thing"),))


def _add(canvas: Canvas, shape: Shape) -> None:
    canvas.add(shape, class_id=1, keep=0.05, min_area_px=1)


def check_exact(scene: TruthScene, grid: Grid, *, parts: Parts) -> int:
    """Stitch what a perfect model sees; it must be the truth, pixel by pixel. Returns the number of objects."""
    tiles = [seen.instances for seen in perfect_tiles(scene, grid, parts=parts)]
    features = stitch_scene(tiles, grid=grid, options=StitchOptions())
    truth, old = visible_truth(scene.labels_HW, [t.window for t in grid.tiles()], parts=parts)
    overlaps = metrics.overlap_runs_with_raster(truth, features.pieces.runs)
    assert metrics.panoptic_quality(overlaps).pq == 1.0
    faults = metrics.seam_faults(overlaps)
    assert (faults.cut, faults.merged, faults.duplicates, faults.missed, faults.false) == (0, 0, 0, 0, 0)
    found = masks.labels_from_runs(features.pieces.runs, window=Window(0, 0, grid.width, grid.height))
    _, first, inverse = np.unique(truth, return_index=True, return_inverse=True)
    order = np.zeros(len(first), np.int64)
    filled = truth.ravel()[first] > 0
    order[np.flatnonzero(filled)[np.argsort(first[filled])]] = np.arange(1, filled.sum() + 1)
    assert np.array_equal(found, order[inverse].reshape(found.shape)), "features are numbered by first pixel"
    of_feature = old[truth.ravel()[np.sort(first[filled])]]
    assert np.array_equal(features.pieces.class_ids, scene.class_ids[of_feature])
    return int(filled.sum())
