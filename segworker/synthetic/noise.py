"""What tiles see of a painted scene: perfectly, or as a real model would, differently in each tile.

Noise of an instance: its outline moves by up to 2 px, otherwise every few pixels; in the last `margin_px` before a
cut side of the window (one that is not the scene's rim) the mask is moved as a whole, frays, and stops some pixels
short. Some instances are missed, some are invented, scores scatter. Each draw depends on the scene's seed and the
tile's place alone.

Tiles remember which object each instance is. Only the oracle may look: it links what both tiles saw of one object in
the strip they share, and so gives the ceiling for every rule that has to find this out from the masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker import masks
from segworker.decode import edge_bits
from segworker.grid import Grid
from segworker.synthetic.models import SCORE, renumber
from segworker.synthetic.truth import Parts, TruthScene, label_components
from segworker.types import Instances, Runs, Tile, Window

Mask: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
_PAD_PX = 6
_PATCH_PX = 8


@dataclass(frozen=True, slots=True)
class Noise:
    """How far a model is from perfect."""

    jitter_px: int = 2
    "Outlines move by at most this many pixels, half of it common to the whole instance."
    miss_share: float = 0.03
    "Of the instances."
    false_share: float = 0.02
    "Of the instances, added."
    margin_px: int = 16
    "Width of the bad strip along cut sides."
    shift_px: int = 3
    "The most that a mask is moved there, along each axis."
    stop_px: int = 10
    "Masks stop 1 to this many pixels short of a cut side."
    score_sigma: float = 0.07


@dataclass(frozen=True, slots=True, eq=False)
class SeenTile:
    """One tile's instances, and for the oracle alone which objects they are."""

    instances: Instances
    truth_ids: Ints
    "(N,) label of each instance's object in the truth; 0 for invented ones."


def perfect_tiles(scene: TruthScene, grid: Grid, *, parts: Parts = "one", cut_trust_px: int = 0) -> list[SeenTile]:
    """Return what a perfect model sees in every tile of a grid, in row order."""
    return [
        perfect_tile(window_labels(scene, tile), scene.class_ids, tile, grid, parts=parts, cut_trust_px=cut_trust_px)
        for tile in grid.tiles()
    ]


def noisy_tiles(
    scene: TruthScene, grid: Grid, *, noise: Noise | None = None, parts: Parts = "several", cut_trust_px: int = 16
) -> list[SeenTile]:
    """Return what a noisy model sees in every tile of a grid, in row order."""
    noise = Noise() if noise is None else noise
    return [
        noisy_tile(
            window_labels(scene, tile),
            scene.class_ids,
            tile,
            grid,
            noise=noise,
            seed=scene.seed,
            parts=parts,
            cut_trust_px=cut_trust_px,
        )
        for tile in grid.tiles()
    ]


def window_labels(scene: TruthScene, tile: Tile) -> NDArray[np.int32]:
    """Return the truth in a tile's window."""
    w = tile.window
    return scene.labels_HW[w.row_off : w.row_end, w.col_off : w.col_end]


def perfect_tile(
    labels_HW: NDArray[np.integer],
    class_ids: NDArray[np.integer],
    tile: Tile,
    grid: Grid,
    *,
    parts: Parts = "one",
    cut_trust_px: int = 0,
) -> SeenTile:
    """Return what a perfect model sees of the truth in a tile's window, instances in an order of the tile's own.

    Args:
        labels_HW: truth in the window; 0 is background.
        class_ids: class of each label.
        tile: the tile.
        grid: its grid.
        parts: whether an object's disconnected parts are one instance.
        cut_trust_px: margin of the `Edge` bits.
    """
    numbers, first, _ = renumber(labels_HW if parts == "one" else label_components(labels_HW))
    truth = labels_HW.ravel()[first].astype(np.int64)
    runs = masks.runs_from_labels(numbers, len(first), window=tile.window)
    scores = np.full(len(first), SCORE, np.float32)
    return _seen(runs, class_ids[truth], scores, truth, where=(tile, grid), cut_trust_px=cut_trust_px)


def noisy_tile(
    labels_HW: NDArray[np.integer],
    class_ids: NDArray[np.integer],
    tile: Tile,
    grid: Grid,
    *,
    noise: Noise,
    seed: int,
    parts: Parts = "several",
    cut_trust_px: int = 16,
) -> SeenTile:
    """Return what a noisy model sees; arguments as for `perfect_tile`, and the scene's seed."""
    rng = np.random.default_rng([seed, tile.row, tile.col, tile.window.width, 40_487])
    numbers, first, boxes = renumber(labels_HW if parts == "one" else label_components(labels_HW))
    distance = _cut_distances(tile.window, grid)
    drawn = [_draw(numbers, i, boxes[i], distance, noise=noise, rng=rng) for i in range(len(first))]
    found = [k for k, d in enumerate(drawn) if d.mask.any() and rng.random() >= noise.miss_share]
    truth = labels_HW.ravel()[first[found]].astype(np.int64)
    scores = np.array([rng.normal(0.85 - 0.15 * drawn[k].bad_share, noise.score_sigma) for k in found])
    invented = [_invent(boxes, tile.window, rng) for _ in range(rng.poisson(noise.false_share * len(first)))]
    runs = [_placed(d.mask, d.left, d.top, tile.window) for d in [drawn[k] for k in found] + invented]
    seen_classes = class_ids[truth]
    guesses = rng.choice(seen_classes, len(invented)) if found else np.ones(len(invented), np.int32)
    return _seen(
        Runs.concatenate(runs),
        np.concatenate([seen_classes, guesses]),
        np.clip(np.concatenate([scores, rng.uniform(0.4, 0.8, len(invented))]), 0.05, 1.0),
        np.concatenate([truth, np.zeros(len(invented), np.int64)]),
        where=(tile, grid),
        cut_trust_px=cut_trust_px,
    )


def oracle_pairs(a: SeenTile, b: SeenTile) -> Ints:
    """Return (L, 2) the pairs of instances of two tiles that show one object and both reach into the shared strip."""
    strip = a.instances.tile.window.intersect(b.instances.tile.window)
    in_a, in_b = _present_in(a, strip), _present_in(b, strip)
    ids = np.intersect1d(a.truth_ids[in_a], b.truth_ids[in_b])
    pairs = [
        np.stack(np.meshgrid(in_a[a.truth_ids[in_a] == i], in_b[b.truth_ids[in_b] == i]), -1).reshape(-1, 2)
        for i in ids[ids > 0]
    ]
    return np.concatenate([np.zeros((0, 2), np.int64), *pairs])


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A mask in a crop of the window."""

    mask: Mask
    left: int
    top: int
    bad_share: float = 0.0
    "Share of the true pixels that lie in a bad strip."


def _seen(
    runs: Runs,
    class_ids: NDArray[np.integer],
    scores: NDArray[np.floating],
    truth: Ints,
    *,
    where: tuple[Tile, Grid],
    cut_trust_px: int,
) -> SeenTile:
    tile, grid = where
    boxes = masks.boxes_xyxy(runs)
    edges = edge_bits(boxes, tile.window, grid=grid, margin_px=cut_trust_px)
    found = Instances(tile, class_ids.astype(np.int32), scores.astype(np.float32), boxes, edges, runs)
    return SeenTile(found, truth)


def _present_in(seen: SeenTile, window: Window) -> Ints:
    """Return the instances with pixels in a window."""
    return np.flatnonzero(np.diff(masks.clip_runs(seen.instances.runs, window).offsets))


def _cut_distances(window: Window, grid: Grid) -> list[tuple[Ints, int]]:
    """Return for each cut side the distance of the pixel rows (axis 0) or columns (axis 1) from it, with the axis."""
    down, right = np.arange(window.height), np.arange(window.width)
    sides = (
        (window.col_off > 0, right, 1),
        (window.row_off > 0, down, 0),
        (window.col_end < grid.width, right[::-1], 1),
        (window.row_end < grid.height, down[::-1], 0),
    )
    return [(distance, axis) for cut, distance, axis in sides if cut]


def _draw(
    numbers: NDArray[np.int32],
    i: int,
    box: Ints,
    distances: list[tuple[Ints, int]],
    *,
    noise: Noise,
    rng: np.random.Generator,
) -> _Drawn:
    """Return instance i as drawn by the noisy model."""
    height, width = numbers.shape
    left, top = max(0, int(box[0]) - _PAD_PX), max(0, int(box[1]) - _PAD_PX)
    right, bottom = min(width, int(box[2]) + _PAD_PX), min(height, int(box[3]) + _PAD_PX)
    true = numbers[top:bottom, left:right] == i + 1
    mask = _jittered(true, noise.jitter_px, rng)
    near = [np.expand_dims(d[left:right] if axis else d[top:bottom], 1 - axis) for d, axis in distances]
    bad = np.zeros(true.shape, bool)
    for side in near:
        bad |= side < noise.margin_px
    bad_share = 0.0
    if bad.any():
        bad_share = float((true & bad).sum() / true.sum())
        moved = _moved(mask, rng.integers(-noise.shift_px, noise.shift_px + 1, 2))
        mask = np.where(bad, _jittered(moved, noise.jitter_px, rng), mask)
        for side in near:
            mask &= side >= rng.integers(1, noise.stop_px + 1)
    return _Drawn(np.asarray(mask), left, top, bad_share)


def _jittered(mask: Mask, by_px: int, rng: np.random.Generator) -> Mask:
    """Move an outline by up to half of `by_px` as a whole, and by up to the other half from patch to patch."""
    half = by_px - by_px // 2
    shape = (mask.shape[0] // _PATCH_PX + 2, mask.shape[1] // _PATCH_PX + 2)
    steps = rng.integers(-half, half + 1, shape) + rng.integers(half - by_px, by_px - half + 1)
    levels = _levels(mask, by_px)
    rows, cols = ((np.arange(n) + rng.integers(0, _PATCH_PX)) // _PATCH_PX for n in mask.shape)
    return np.asarray(levels + steps[rows][:, cols] > 0)


def _levels(mask: Mask, by_px: int) -> NDArray[np.int8]:
    """Return how far inside each pixel is: 1 on the inner outline and rising, 0 just outside and falling."""
    levels = np.where(mask, by_px + 1, -by_px).astype(np.int8)
    inner, outer = mask, mask
    for k in range(by_px):
        inner = ~_grown(~inner, corners=k % 2 == 1)
        outer = _grown(outer, corners=k % 2 == 1)
        levels -= mask & ~inner
        levels += outer & ~mask
    return levels


def _grown(mask: Mask, *, corners: bool) -> Mask:
    """Return a mask grown by one pixel in the four or eight directions."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    source = grown.copy() if corners else mask
    grown[:, 1:] |= source[:, :-1]
    grown[:, :-1] |= source[:, 1:]
    return grown


def _moved(mask: Mask, shift_yx: Ints) -> Mask:
    """Return a mask moved inside its frame."""
    (dy, dx), (height, width) = shift_yx.tolist(), mask.shape
    moved = np.zeros_like(mask)
    source = mask[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
    moved[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = source
    return moved


def _invent(boxes: Ints, window: Window, rng: np.random.Generator) -> _Drawn:
    """Return an ellipse somewhere in the window, of the size of one of its objects but at most 60 px."""
    box = boxes[rng.integers(len(boxes))]
    b, a = (min(30.0, max(4.0, float(side) / 2)) for side in (box[3] - box[1], box[2] - box[0]))
    y, x = int(rng.integers(0, window.height)), int(rng.integers(0, window.width))
    top, left = max(0, y - int(b)), max(0, x - int(a))
    ys, xs = np.ogrid[top : min(window.height, y + int(b) + 1), left : min(window.width, x + int(a) + 1)]
    return _Drawn(((ys - y) / b) ** 2 + ((xs - x) / a) ** 2 <= 1, left, top)


def _placed(mask: Mask, left: int, top: int, window: Window) -> Runs:
    """Return a crop's mask as runs in grid pixels."""
    height, width = mask.shape
    return masks.runs_from_mask(mask, window=Window(window.col_off + left, window.row_off + top, width, height))
