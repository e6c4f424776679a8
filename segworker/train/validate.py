"""Average precision of a model in training on the parts that are kept for it, window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from segworker.decode import decode_instances
from segworker.evaluate.average_precision import Precision, average_precision
from segworker.evaluate.figures import precision_figures
from segworker.evaluate.found import FoundObjects
from segworker.evaluate.judge import JudgedScene, judge_scene
from segworker.geo import grid_scale
from segworker.grid import Grid
from segworker.io.raster import SceneReader
from segworker.io.scaling import value_range
from segworker.masks import areas_px, boxes_xyxy, clip_runs
from segworker.models.protocol import Model, predict_arrays
from segworker.polygons import trace
from segworker.rasterise import runs_of_polygons
from segworker.train.split import VALIDATE, Split, clip_to_side
from segworker.train.windows import WindowConfig, to_unit
from segworker.truth import SceneTruth, TruthSet
from segworker.types import Runs, Scene, Tile, Window


@dataclass(frozen=True, slots=True)
class Validation:
    """What a model is worth at one step."""

    ap: float | None
    "Of masks; of boxes for models without masks. Mean over IoU 0.50:0.05:0.95."
    ap50: float | None
    ap50_by_class: dict[str, float | None]
    num_objects: int


def validate(
    model: nn.Module,
    scenes: Sequence[Scene],
    truth: TruthSet,
    split: Split,
    config: WindowConfig,
    *,
    device: torch.device,
    max_windows: int = 200,
) -> Validation:
    """Measure a model on the validation parts at the model's own resolution.

    Each part is cut into windows without overlap, and what a window shows is compared with what is annotated in it, so
    that stitching plays no role. Of very many windows an even selection is looked at.

    Args:
        model: a `Model`; it is put into inference mode and back.
        scenes: those of the truth.
        truth: with the model's class ids.
        split: its validation parts are looked at.
        config: bands, values, and the side of windows.
        device: where the model is.
        max_windows: at most.
    """
    training = model.training
    model.eval()
    kind = "segm" if _has_masks(model) else "bbox"
    judged = list(_judged(model, scenes, truth, split, config, device, max_windows))
    model.train(training)
    found: Precision = average_precision(judged, truth.categories, kind)  # type: ignore[arg-type]
    figures = precision_figures(found, truth.categories)
    by_class = {name: one["ap50"] for name, one in figures["by_class"].items()}
    return Validation(figures["ap"], figures["ap50"], by_class, sum(len(scene.truth) for scene in judged))


def _has_masks(model: nn.Module) -> bool:
    names = [name for name, _ in model.named_modules()]
    return any("mask" in name or "kernel" in name or "proto" in name for name in names)


def _judged(
    model: nn.Module,
    scenes: Sequence[Scene],
    truth: TruthSet,
    split: Split,
    config: WindowConfig,
    device: torch.device,
    max_windows: int,
) -> Iterator[JudgedScene]:
    by_id = {scene.scene_id: scene for scene in scenes}
    spec = model.spec
    windows = [
        (one, window)
        for one in truth.scenes
        for part in split.windows(one.scene_id, VALIDATE)
        for window in _cut(part, max(1, round(config.size_px / grid_scale(by_id[one.scene_id], spec))))  # type: ignore[arg-type]
    ]
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), max_windows)).round().astype(int))
    names = {c.id: c.name for c in model.categories}  # type: ignore[union-attr]
    found_class = {c.name: c.id for c in truth.categories}
    for k in chosen.tolist():
        one, window = windows[k]
        scene = by_id[one.scene_id]
        shown, found = _predicted(model, scene, window, config, device, names)  # type: ignore[arg-type]
        local = _local(one, split, window, shown, grid_scale(scene, spec))  # type: ignore[arg-type]
        yield judge_scene(
            shown, local, found, truth_class={c.id: c.id for c in truth.categories}, found_class=found_class
        )


def _cut(part: Window, side: int) -> Iterator[Window]:
    """Yield windows of about a side that cover a part."""
    cols, rows = max(1, round(part.width / side)), max(1, round(part.height / side))
    x, y = (np.linspace(0, n, k + 1).round().astype(int) for n, k in ((part.width, cols), (part.height, rows)))
    for j in range(rows):
        for i in range(cols):
            left, top = part.col_off + int(x[i]), part.row_off + int(y[j])
            yield Window(left, top, int(x[i + 1] - x[i]), int(y[j + 1] - y[j]))


def _predicted(
    model: Model, scene: Scene, window: Window, config: WindowConfig, device: torch.device, names: dict[int, str]
) -> tuple[Scene, FoundObjects]:
    """Return (a scene that is the window as the model sees it, what the model finds there)."""
    scale = grid_scale(scene, model.spec)
    with SceneReader(scene, scale=scale, bands=config.bands, spec=model.spec) as reader:
        grid = _grid_window(window, scale, scene)
        pixels, valid = reader.read_window(grid)
    scaled = model.spec.scaling == "unit"
    ranges = value_range(scene, config.value_range, bands=config.bands, spec=model.spec) if scaled else None
    images = to_unit(pixels, ranges)
    images[:, ~valid] = 0
    prediction = predict_arrays(model, images[None], valid[None], device=device)[0]
    whole = Window(0, 0, grid.width, grid.height)
    tile = Tile("window", 0, 0, whole, whole)
    frame = Grid("window", grid.width, grid.height, max(whole.shape_yx), 0)
    found = decode_instances(prediction, tile, grid=frame, class_ids=list(names), valid_HW=valid)
    kept = areas_px(found.runs) > 0
    runs = found.runs.take(kept)
    labels = np.array([names[c] for c in found.class_ids[kept].tolist()], object)
    shown = Scene(f"{scene.scene_id}@{window.col_off},{window.row_off}", scene.uri, grid.width, grid.height, 1, "uint8")
    return shown, FoundObjects(np.arange(len(runs)), labels, found.scores[kept], runs)


def _grid_window(window: Window, scale: float, scene: Scene) -> Window:
    grid = Grid.of_scene(scene, tile_px=2**20, overlap_px=0, scale=scale)
    left, top = int(window.col_off * scale), int(window.row_off * scale)
    right, bottom = min(grid.width, int(window.col_end * scale)), min(grid.height, int(window.row_end * scale))
    return Window(left, top, max(1, right - left), max(1, bottom - top))


def _local(one: SceneTruth, split: Split, window: Window, shown: Scene, scale: float) -> SceneTruth:
    """Return a scene's truth in a window's own pixels; what lies across to the other side of the split is a crowd."""
    boxes = boxes_xyxy(one.runs)
    near = (boxes[:, 0] < window.col_end) & (boxes[:, 2] > window.col_off)
    near &= (boxes[:, 1] < window.row_end) & (boxes[:, 3] > window.row_off)
    here = clip_to_side(one.take(near), split.windows(one.scene_id, VALIDATE))
    clipped = clip_runs(here.runs, window)
    left, top = int(window.col_off * scale), int(window.row_off * scale)
    runs = _scaled(clipped, scale, left, top, shown)
    kept = areas_px(runs) > 0
    local = here.take(kept)
    return SceneTruth(
        shown.scene_id,
        shown.width,
        shown.height,
        local.object_ids,
        local.class_ids,
        runs.take(kept),
        local.crowd,
        partial_class_ids=local.partial_class_ids,
    )


def _scaled(runs: Runs, scale: float, left: int, top: int, shown: Scene) -> Runs:
    """Return masks in pixels of a window that is read at another scale."""
    if scale == 1:
        moved = Runs(runs.rows - np.int32(top), runs.starts - np.int32(left), runs.stops - np.int32(left), runs.offsets)
        return clip_runs(moved, Window(0, 0, shown.width, shown.height))
    outlines = trace(runs)
    shapes = outlines.geometries(outlines.xy * np.float64(scale) - np.array([left, top], np.float64))
    return runs_of_polygons(shapes, width=shown.width, height=shown.height)
