"""Which part of the annotated scenes teaches and which part judges, drawn once and written down.

By scene, or by square blocks of scenes where there are few. Pixels never leak: a training window lies in training
blocks alone, and an object across a border between the two parts is not judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from segworker.errors import ConfigError
from segworker.masks import areas_px, boxes_xyxy, clip_runs, merge_runs
from segworker.truth import SceneTruth, TruthSet
from segworker.types import Runs, Window

TRAIN, VALIDATE = "train", "validate"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a scene that belongs to one side."""

    scene_id: str
    window: Window
    "Scene pixels."
    side: str
    "'train' or 'validate'."


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of all scenes; those of a scene cover it without overlap."""

    kind: str
    "'scene' or 'block'."
    seed: int
    share: float
    "Of the objects that was aimed at for validation."
    parts: tuple[Part, ...]

    def windows(self, scene_id: str, side: str) -> tuple[Window, ...]:
        """Return the rectangles of a scene on one side."""
        return tuple(p.window for p in self.parts if p.scene_id == scene_id and p.side == side)


def split_by_scene(truth: TruthSet, *, share: float = 0.2, seed: int = 0) -> Split:
    """Draw whole scenes for validation until they hold `share` of the objects.

    Raises:
        ConfigError: fewer than two scenes, or a class that one side lacks.
    """
    if len(truth.scenes) < 2:
        raise ConfigError(
            f"a split by scene needs at least two annotated scenes, got {len(truth.scenes)}; split by block"
        )
    units = [[Part(s.scene_id, Window(0, 0, s.width, s.height), TRAIN)] for s in truth.scenes]
    return _checked(_drawn("scene", truth, [unit[0] for unit in units], share=share, seed=seed), truth)


def split_by_block(truth: TruthSet, *, block_px: int, share: float = 0.2, seed: int = 0) -> Split:
    """Draw square blocks of scenes for validation until they hold `share` of the objects.

    Args:
        truth: the annotations.
        block_px: side in scene pixels, at least twice that of a training window so that windows find room; the last
            block of a row or column takes what is left over.
        share: of the objects.
        seed: of the draw.

    Raises:
        ConfigError: fewer than two blocks, or a class that one side lacks.
    """
    units = [Part(s.scene_id, window, TRAIN) for s in truth.scenes for window in _blocks(s.width, s.height, block_px)]
    if len(units) < 2:
        raise ConfigError(
            f"a split by block needs at least two blocks, got {len(units)} of {block_px} px; lower the block's side"
        )
    return _checked(_drawn("block", truth, units, share=share, seed=seed), truth)


def _blocks(width: int, height: int, side: int) -> list[Window]:
    cols, rows = max(1, round(width / side)), max(1, round(height / side))
    x, y = (np.linspace(0, size, count + 1).round().astype(int) for size, count in ((width, cols), (height, rows)))
    return [
        Window(int(x[i]), int(y[j]), int(x[i + 1] - x[i]), int(y[j + 1] - y[j]))
        for j in range(rows)
        for i in range(cols)
    ]


def _drawn(kind: str, truth: TruthSet, units: Sequence[Part], *, share: float, seed: int) -> Split:
    """Move units to validation, in a random order, as long as its share of objects comes nearer to the wanted one.

    A unit with a class that validation lacks goes there too, so that rare classes are judged; none goes that holds the
    last objects of a class.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the validation share is between 0 and 1, got {share:g}; 0.2 is usual")
    scenes = {scene.scene_id: scene for scene in truth.scenes}
    counts = np.stack([_class_counts(scenes[unit.scene_id], unit.window, truth) for unit in units])
    chosen = np.zeros(len(units), bool)
    wanted = share * counts.sum()
    for k in np.random.default_rng(seed).permutation(len(units)).tolist():
        now, new = counts[chosen].sum(), counts[k].sum()
        lacking = (counts[chosen].sum(axis=0) == 0) & (counts[k] > 0)
        left = counts[~chosen].sum(axis=0) - counts[k]
        keeps = bool((left[counts.sum(axis=0) > 0] > 0).all()) and int((~chosen).sum()) > 1
        if keeps and (abs(now + new - wanted) < abs(now - wanted) or (lacking.any() and now + new < 2 * wanted)):
            chosen[k] = True
    parts = tuple(replace(u, side=VALIDATE if c else TRAIN) for u, c in zip(units, chosen.tolist(), strict=True))
    return Split(kind, seed, share, parts)


def _class_counts(scene: SceneTruth, window: Window, truth: TruthSet) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many objects of each class have their box's centre in a window."""
    boxes = boxes_xyxy(scene.runs)
    x, y = (boxes[:, 0] + boxes[:, 2]) // 2, (boxes[:, 1] + boxes[:, 3]) // 2
    inside = (x >= window.col_off) & (x < window.col_end) & (y >= window.row_off) & (y < window.row_end) & ~scene.crowd
    return np.array([(scene.class_ids[inside] == c.id).sum() for c in truth.categories], np.int64)


def _checked(split: Split, truth: TruthSet) -> Split:
    """Refuse a split in which a class that is annotated has nothing to learn from, or nothing to be judged by."""
    present = {name for name, count in truth.objects_by_class().items() if count}
    if not present:
        raise ConfigError("training needs at least one annotated object, got none; check the annotations and classes")
    for side in (TRAIN, VALIDATE):
        seen = {name for name, count in side_counts(split, truth, side).items() if count}
        if present - seen:
            raise ConfigError(
                f"every class has objects on both sides of a split, got none of {', '.join(sorted(present - seen))} to "
                f"{side}; choose another split seed, smaller blocks or a larger share, or leave the class out"
            )
    return split


def side_counts(split: Split, truth: TruthSet, side: str) -> dict[str, int]:
    """Return the objects of each class whose centre is on a side."""
    total = np.zeros(len(truth.categories), np.int64)
    for scene in truth.scenes:
        for window in split.windows(scene.scene_id, side):
            total += _class_counts(scene, window, truth)
    return {category.name: int(n) for category, n in zip(truth.categories, total, strict=True)}


def clip_to_side(scene: SceneTruth, windows: Sequence[Window]) -> SceneTruth:
    """Return a scene's objects inside some rectangles; those that also lie outside of them become crowds."""
    if not windows:
        return scene.take(np.zeros(len(scene), bool))
    pieces = [clip_runs(scene.runs, window) for window in windows]
    groups = np.tile(np.arange(len(scene)), len(windows))
    runs = merge_runs(Runs.concatenate(pieces), groups, len(scene))
    inside, whole = areas_px(runs), areas_px(scene.runs)
    kept = inside > 0
    return replace(scene, runs=runs, crowd=scene.crowd | (inside < whole)).take(kept)


def to_json(split: Split) -> str:
    """Return a split as text that `from_json` reads."""
    parts: dict[str, list[list[Any]]] = {}
    for part in split.parts:
        w = part.window
        parts.setdefault(part.scene_id, []).append([w.col_off, w.row_off, w.width, w.height, part.side])
    head = {key: value for key, value in asdict(split).items() if key != "parts"}
    return json.dumps({"format": FORMAT, **head, "scenes": parts}, indent=1)


def from_json(text: str | bytes, truth: TruthSet) -> Split:
    """Read a split and check that it covers the scenes.

    Raises:
        ConfigError: not a split, of other scenes or sizes, or a class that one side lacks.
    """
    try:
        found: Mapping[str, Any] = json.loads(text)
        parts = tuple(
            Part(scene_id, Window(*map(int, row[:4])), str(row[4]))
            for scene_id, rows in found["scenes"].items()
            for row in rows
        )
        split = Split(str(found["kind"]), int(found["seed"]), float(found["share"]), parts)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(f"a split is a file that training wrote, got {error!r}; draw a new one") from None
    for scene in truth.scenes:
        _check_cover(scene, [part.window for part in split.parts if part.scene_id == scene.scene_id])
    return _checked(split, truth)


def _check_cover(scene: SceneTruth, windows: Iterable[Window]) -> None:
    area = sum(window.area_px for window in windows)
    if area != scene.width * scene.height:
        raise ConfigError(
            f"a split covers every annotated scene, got {area:,} of {scene.width * scene.height:,} px of "
            f"{scene.scene_id}; it was drawn for other scenes: draw a new one"
        )
