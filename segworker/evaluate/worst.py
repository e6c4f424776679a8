"""The worst mistakes of a run, and pictures of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segworker.errors import SegworkerError
from segworker.evaluate.judge import JudgedScene
from segworker.io.header import open_scene
from segworker.io.raster import SceneReader
from segworker.masks import areas_px, boxes_xyxy, labels_from_runs
from segworker.report.pixels import stretched
from segworker.types import InputSpec, Runs, Scene, Window

TRUE_COLOUR, FOUND_COLOUR, BOX_COLOUR = (60, 220, 80), (255, 60, 200), (255, 235, 0)
SIDE_PX = 240
"Of a picture."
MAX_WINDOW_PX = 2048
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One object that was missed, invented or badly drawn."""

    kind: str
    "'missed', 'false' or 'poor'."
    scene_id: str
    iou: float
    area_px: int
    "Of the true object, or of the found one where there is none."
    box_xyxy: tuple[int, int, int, int]
    "Scene pixels; of both objects."
    annotation: str | None
    "As the annotations call the true object."
    feature_id: int | None
    score: float | None

    @property
    def badness(self) -> float:
        """Grows with what is lost of the IoU and with the object's diameter."""
        return (1 - self.iou) * math.sqrt(self.area_px)


def worst_mistakes(scenes: Sequence[JudgedScene], count: int = 20) -> list[Mistake]:
    """Return the worst mistakes of all scenes, the worst first."""
    found = [mistake for scene in scenes for mistake in _of_scene(scene, count)]
    return sorted(found, key=lambda m: (-m.badness, m.scene_id, m.box_xyxy))[:count]


def _of_scene(scene: JudgedScene, count: int) -> list[Mistake]:
    true_areas, found_areas = areas_px(scene.truth), areas_px(scene.pred)
    missed = np.setdiff1d(np.arange(len(scene.truth)), scene.matches[0])
    false = np.flatnonzero(~scene.matched & ~scene.excused)
    missed = missed[np.argsort(-true_areas[missed], kind="stable")[:count]]
    false = false[np.argsort(-found_areas[false], kind="stable")[:count]]
    poor = np.argsort(-(1 - scene.matches[2]) * np.sqrt(true_areas[scene.matches[0]]), kind="stable")[:count]
    mistakes = [_mistake(scene, "missed", t, None, 0.0) for t in missed.tolist()]
    mistakes += [_mistake(scene, "false", None, p, 0.0) for p in false.tolist()]
    t, p, iou = scene.matches
    mistakes += [_mistake(scene, "poor", int(t[k]), int(p[k]), float(iou[k])) for k in poor.tolist() if iou[k] < 1]
    return mistakes


def _mistake(scene: JudgedScene, kind: str, t: int | None, p: int | None, iou: float) -> Mistake:
    masks = [scene.truth.take(np.array([t]))] if t is not None else []
    masks += [scene.pred.take(np.array([p]))] if p is not None else []
    boxes = boxes_xyxy(Runs.concatenate(masks))
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    return Mistake(
        kind,
        scene.scene.scene_id,
        iou,
        int(areas_px(masks[0])[0]),
        (left, top, right, bottom),
        scene.truth_names[t] if t is not None else None,
        int(scene.pred_ids[p]) if p is not None else None,
        float(scene.pred_scores[p]) if p is not None else None,
    )


def picture_of(mistake: Mistake, judged: JudgedScene) -> Image.Image:
    """Return a mistake's surroundings; true outlines are green, found ones magenta."""
    window = _window(mistake, judged.scene)
    pixels = _pixels(judged.scene, window)
    step = max(1, -(-max(window.width, window.height) // SIDE_PX))
    zoom = max(1, SIDE_PX // max(window.width, window.height))
    image = pixels[::step, ::step].repeat(zoom, axis=0).repeat(zoom, axis=1)
    for runs, colour in ((judged.truth, TRUE_COLOUR), (judged.pred, FOUND_COLOUR)):
        labels = _labels(runs, window)[::step, ::step].repeat(zoom, axis=0).repeat(zoom, axis=1)
        image[_outlines(labels)] = colour
    _frame(image, mistake, window, zoom / step)
    return Image.fromarray(image)


def _frame(image: NDArray[np.uint8], mistake: Mistake, window: Window, scale: float) -> None:
    """Draw the mistake's box, a little wider, into a picture."""
    left, top, right, bottom = mistake.box_xyxy
    x = np.clip([(left - window.col_off) * scale - 3, (right - window.col_off) * scale + 2], 0, image.shape[1] - 1)
    y = np.clip([(top - window.row_off) * scale - 3, (bottom - window.row_off) * scale + 2], 0, image.shape[0] - 1)
    (x0, x1), (y0, y1) = x.astype(int).tolist(), y.astype(int).tolist()
    image[[y0, y1], x0 : x1 + 1] = BOX_COLOUR
    image[y0 : y1 + 1, [x0, x1]] = BOX_COLOUR


def _window(mistake: Mistake, scene: Scene) -> Window:
    """Return a square around a mistake with some of its surroundings, inside the scene."""
    left, top, right, bottom = mistake.box_xyxy
    side = min(MAX_WINDOW_PX, max(64, round(1.6 * max(right - left, bottom - top))))
    width, height = min(side, scene.width), min(side, scene.height)
    x = min(max(0, (left + right - width) // 2), scene.width - width)
    y = min(max(0, (top + bottom - height) // 2), scene.height - height)
    return Window(x, y, width, height)


def _pixels(scene: Scene, window: Window) -> NDArray[np.uint8]:
    """Return (H, W, 3) of a window, stretched between its 1st and 99th percentiles; grey where it cannot be read."""
    try:
        opened = open_scene(scene.uri, scene.scene_id)
        bands = (1,) if opened.num_bands == 2 else None
        with SceneReader(opened, bands=bands, spec=InputSpec(num_bands=3)) as reader:
            pixels, valid = reader.read_window(window)
    except (SegworkerError, OSError, ValueError) as error:
        _log.warning("no picture of %s: %s", scene.scene_id, error)
        return np.full((*window.shape_yx, 3), 90, np.uint8)
    return stretched(pixels, valid, always=True)


def _labels(runs: Runs, window: Window) -> NDArray[np.int32]:
    boxes = boxes_xyxy(runs)
    meets = (boxes[:, 0] < window.col_end) & (boxes[:, 2] > window.col_off)
    meets &= (boxes[:, 1] < window.row_end) & (boxes[:, 3] > window.row_off)
    return labels_from_runs(runs.take(meets), window=window)


def _outlines(labels_HW: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the pixels of objects that have a neighbour of another label; edges of the picture are no outline."""
    padded = np.pad(labels_HW, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray((middle > 0) & np.logical_or.reduce([other != middle for other in neighbours]))
