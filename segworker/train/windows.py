"""Training windows cut from large annotated scenes on the fly: around objects and between them.

C bands, S the side of a window as the network sees it, N its objects. No folder of chips is made: a window is read
from the scene when its step comes, and the seed and the step decide which, so that a resumed run goes on as planned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segworker.config_values import ValueRange
from segworker.errors import ConfigError
from segworker.geo import grid_scale
from segworker.io.raster import SceneReader
from segworker.io.scaling import Range, value_range
from segworker.masks import areas_px, boxes_xyxy, clip_runs, labels_from_runs
from segworker.train.photometric import Photometric, PhotometricConfig
from segworker.train.split import TRAIN, Split
from segworker.train.targets import Target, boxes_of, placed_points, resized, turned
from segworker.truth import SceneTruth, TruthSet
from segworker.types import InputSpec, Runs, Scene, Window

MAX_OPEN = 16
UNKNOWN = 255
"Semantic class of pixels that nobody annotated."


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """How windows are drawn."""

    size_px: int = 512
    "Side as the network sees it; a multiple of the model's stride."
    between: float = 0.25
    "Share of windows anywhere, the others are around an object."
    scale_sigma: float = 0.2
    "Deviation of the logarithm of the zoom."
    scale_range: tuple[float, float] = (0.5, 2.0)
    min_area_px: int = 12
    "Pieces of objects below this, as the network sees them, are not taught."
    turn: bool = True
    "All eight symmetries of the square, as fits imagery seen from above; False for what has an up and a down."
    photometric: PhotometricConfig | None = field(default_factory=PhotometricConfig)
    value_range: ValueRange = field(default_factory=ValueRange)
    bands: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.size_px < 32 or not 0 <= self.between <= 1:
            raise ConfigError(f"windows are at least 32 px and `between` is a share, got {self}")


class _Annotated:
    """A scene with its objects, and where windows may lie."""

    def __init__(self, scene: Scene, truth: SceneTruth, windows: Sequence[Window], scale: float) -> None:
        self.scene, self.truth, self.windows, self.scale = scene, truth, windows, scale
        self.boxes = boxes_xyxy(truth.runs)
        x, y = (self.boxes[:, 0] + self.boxes[:, 2]) // 2, (self.boxes[:, 1] + self.boxes[:, 3]) // 2
        self.part = np.full(len(truth), -1)
        for k, w in enumerate(windows):
            inside = (x >= w.col_off) & (x < w.col_end) & (y >= w.row_off) & (y < w.row_end)
            self.part[inside] = k


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A window that was chosen."""

    place: _Annotated
    window: Window
    "Scene pixels, inside one training part."
    zoom: float
    "Pixels that the network sees for one of the scene."

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height as the network sees it."""
        return max(1, round(self.window.width * self.zoom)), max(1, round(self.window.height * self.zoom))


class WindowSampler:
    """Draws windows with their targets; see `loop.BatchSource`."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        truth: TruthSet,
        split: Split,
        config: WindowConfig,
        *,
        spec: InputSpec,
        seed: int,
    ) -> None:
        """Prepare; scenes are opened when they are first drawn.

        Args:
            scenes: those of the truth, in any order.
            truth: the annotations.
            split: windows lie in its training parts.
            config: how windows are drawn.
            spec: bands, scaling and ground resolution that the model wants.
            seed: of all chance.

        Raises:
            ConfigError: no object to train on.
            SceneError: a scene whose resolution cannot be brought to the model's.
        """
        by_id = {scene.scene_id: scene for scene in scenes}
        self.config, self.spec, self.seed = config, spec, seed
        self.truth = truth
        self._places = [
            _Annotated(by_id[t.scene_id], t, windows, grid_scale(by_id[t.scene_id], spec))
            for t in truth.scenes
            if (windows := split.windows(t.scene_id, TRAIN))
        ]
        self._objects = self._index_objects()
        if not self._objects:
            raise ConfigError("training needs at least one annotated object in its part, got none; check the split")
        self._areas = np.array([sum(w.area_px for w in place.windows) for place in self._places], np.float64)
        self._open: OrderedDict[str, tuple[SceneReader, tuple[Range, ...] | None]] = OrderedDict()
        self._change = Photometric(config.photometric) if config.photometric else None

    def _index_objects(self) -> dict[int, NDArray[np.int64]]:
        """Return (place, object) pairs of each class, so that rare classes are drawn as often as others."""
        found: dict[int, list[tuple[int, int]]] = {}
        for k, place in enumerate(self._places):
            for i in np.flatnonzero((place.part >= 0) & ~place.truth.crowd).tolist():
                found.setdefault(int(place.truth.class_ids[i]), []).append((k, i))
        return {class_id: np.array(pairs, np.int64) for class_id, pairs in sorted(found.items())}

    def batch(self, step: int, size: int) -> tuple[Tensor, list[Target]]:
        """Return `size` windows as float32 (B, C, S, S) in 0..1 and their targets."""
        drawn = [self.draw(np.random.default_rng((self.seed, step, slot))) for slot in range(size)]
        return torch.stack([image for image, _ in drawn]), [target for _, target in drawn]

    def describe(self, step: int, size: int) -> str:
        """Return where a step's windows lie, for messages."""
        drawn = [self.choose(np.random.default_rng((self.seed, step, slot))) for slot in range(size)]
        return "; ".join(
            f"{d.place.scene.scene_id} columns {d.window.col_off}-{d.window.col_end}, rows {d.window.row_off}-"
            f"{d.window.row_end}"
            for d in drawn
        )

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Target]:
        """Draw one window (C, S, S) and its target."""
        drawn = self.choose(rng)
        image, target = self._read(drawn), self._target(drawn)
        if self.config.turn:
            image, target = turned(image, target, int(rng.integers(8)))
        if self._change is not None:
            image = self._change(image, int(rng.integers(2**31)))
        return image, target

    def choose(self, rng: np.random.Generator) -> _Drawn:
        """Choose a scene and a window in one of its training parts; windows in smaller parts are smaller."""
        config = self.config
        zoom = float(np.clip(np.exp(rng.normal(0, config.scale_sigma)), *config.scale_range))
        if rng.random() < config.between:
            place = self._places[rng.choice(len(self._places), p=self._areas / self._areas.sum())]
            areas = np.array([w.area_px for w in place.windows], np.float64)
            part = place.windows[rng.choice(len(areas), p=areas / areas.sum())]
            centre = rng.integers(part.col_off, part.col_end), rng.integers(part.row_off, part.row_end)
            reach = 0.0
        else:
            pairs = self._objects[int(rng.choice(list(self._objects)))]
            k, i = pairs[rng.integers(len(pairs))].tolist()
            place = self._places[k]
            part = place.windows[place.part[i]]
            box = place.boxes[i]
            centre = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
            reach = 0.4
        side = max(1, round(config.size_px / zoom / place.scale))
        left, top = (
            _placed(int(c) + round(rng.uniform(-reach, reach) * side) - side // 2, side, low, high)
            for c, low, high in zip(centre, (part.col_off, part.row_off), (part.col_end, part.row_end), strict=True)
        )
        window = Window(left, top, min(side, part.width), min(side, part.height))
        return _Drawn(place, window, config.size_px / side)

    def _read(self, drawn: _Drawn) -> Tensor:
        """Return a window in 0..1 (or raw values), zoomed to the network's size and padded on the right and below."""
        reader, ranges = self._reader(drawn.place.scene)
        pixels, valid = reader.read_window(drawn.window)
        image = torch.from_numpy(to_unit(pixels, ranges))
        image = image * torch.from_numpy(valid)
        width, height = drawn.size_wh
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
        return F.pad(image, (0, self.config.size_px - width, 0, self.config.size_px - height))

    def _reader(self, scene: Scene) -> tuple[SceneReader, tuple[Range, ...] | None]:
        """Return an open reader and the values that become 0 and 1; the least recently used scene is closed."""
        if scene.scene_id in self._open:
            self._open.move_to_end(scene.scene_id)
            return self._open[scene.scene_id]
        config = self.config
        reader = SceneReader(scene, bands=config.bands, spec=self.spec).__enter__()
        scaled = self.spec.scaling == "unit"
        ranges = value_range(scene, config.value_range, bands=config.bands, spec=self.spec) if scaled else None
        self._open[scene.scene_id] = reader, ranges
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1][0].__exit__(None, None, None)
        return reader, ranges

    def close(self) -> None:
        """Close all scenes."""
        while self._open:
            self._open.popitem()[1][0].__exit__(None, None, None)

    def _target(self, drawn: _Drawn) -> Target:
        """Return what there is to learn in a window: see `models.common.two_stage.TwoStage.loss`."""
        truth, boxes, window, size_wh = drawn.place.truth, drawn.place.boxes, drawn.window, drawn.size_wh
        near = np.flatnonzero(
            (boxes[:, 0] < window.col_end)
            & (boxes[:, 2] > window.col_off)
            & (boxes[:, 1] < window.row_end)
            & (boxes[:, 3] > window.row_off)
        )
        stuff = np.array([c.id for c in self.truth.categories if not c.isthing], np.int64)
        here = truth.take(near)
        is_stuff = np.isin(here.class_ids, stuff)
        clipped = clip_runs(here.runs, window)
        large = areas_px(clipped) * drawn.zoom**2 >= max(1, self.config.min_area_px)
        things = np.flatnonzero(~here.crowd & ~is_stuff & large)
        masks = self._masks(clipped.take(things), window, size_wh)
        found = boxes_of(masks)
        kept = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        target = {
            "boxes": found[kept],
            "labels": torch.from_numpy(here.class_ids[things].astype(np.int64))[kept],
            "masks": masks[kept],
        }
        if here.keypoints_NK3 is not None:
            points = placed_points(here.keypoints_NK3[things], window, size_wh)
            target["keypoints"] = torch.from_numpy(points)[kept]
        if len(stuff):
            target["semantic"] = self._semantic(here, window, size_wh)
        return target

    def _masks(self, runs: Runs, window: Window, size_wh: tuple[int, int]) -> Tensor:
        """Return (N, S, S) uint8 masks of what lies in a window."""
        size = self.config.size_px
        out = torch.zeros((len(runs), size, size), dtype=torch.uint8)
        for i in range(len(runs)):
            mask = torch.from_numpy(labels_from_runs(runs.take(np.array([i])), window=window).astype(np.uint8))
            out[i, : size_wh[1], : size_wh[0]] = resized(mask, size_wh)
        return out

    def _semantic(self, here: SceneTruth, window: Window, size_wh: tuple[int, int]) -> Tensor:
        """Return (S, S) class ids of the topmost annotation of each pixel, `UNKNOWN` where there is none."""
        order = np.argsort(
            ~np.isin(here.class_ids, [c.id for c in self.truth.categories if not c.isthing]), kind="stable"
        )
        ids = np.where(here.crowd[order], UNKNOWN, here.class_ids[order])
        painted = labels_from_runs(clip_runs(here.runs.take(order), window), window=window, labels=ids)
        painted = np.where(painted == 0, UNKNOWN, painted)
        out = torch.full((self.config.size_px, self.config.size_px), UNKNOWN, dtype=torch.int64)
        out[: size_wh[1], : size_wh[0]] = resized(torch.from_numpy(painted), size_wh)
        return out


def _placed(first: int, side: int, low: int, high: int) -> int:
    """Return where a side begins so that it lies in [low, high); at `low` where it does not fit."""
    return max(low, min(first, high - side))


def to_unit(pixels: NDArray[np.generic], ranges: tuple[Range, ...] | None) -> NDArray[np.float32]:
    """Return (C, H, W) pixels with each band's range mapped to 0..1 and cut there; raw values without ranges."""
    values = pixels.astype(np.float32)
    if ranges is None:
        return values
    low = np.array([r[0] for r in ranges], np.float32)[:, None, None]
    high = np.array([r[1] for r in ranges], np.float32)[:, None, None]
    return np.clip((values - low) / (high - low), 0, 1)
