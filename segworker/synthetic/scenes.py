"""Label scenes with exact truth: what every law about whole objects is judged by.

`make_scene(kind, size, seed)` paints a scene in memory. Every object is one 8-connected component, unless
`split_objects` is asked to break some. `virtual.VirtualScene` gives windows of scenes of any size instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segworker.synthetic.shapes import Canvas, comb, disc, ellipse, rectangle, ring, wave
from segworker.synthetic.truth import TruthScene, label_components
from segworker.types import Category

COMMON_GRIDS = ((512, 64), (1024, 128), (384, 48), (256, 32), (300, 36))
"(tile, overlap) of the grids on whose seams and corners `aerial` puts objects."


def make_scene(kind: str, size_px: int | tuple[int, int], seed: int) -> TruthScene:
    """Paint a scene of one of `KINDS`.

    Args:
        kind: nuclei, fields, roads, aerial or panoptic.
        size_px: side, or (height, width).
        seed: the same seed and size give the same scene.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}; choose from {', '.join(KINDS)}")
    shape_yx = (size_px, size_px) if isinstance(size_px, int) else size_px
    scene = KINDS[kind](shape_yx, np.random.default_rng([seed, *shape_yx]))
    return replace(scene, kind=kind, seed=seed)


def split_objects(scene: TruthScene, *, share: float, seed: int, gap_px: int = 3) -> TruthScene:
    """Return the scene with a share of the objects broken in parts by a gap through their middle, label kept."""
    rng = np.random.default_rng(seed)
    labels = scene.labels_HW.copy()
    boxes = _boxes(labels, scene.num_objects)
    for i in np.flatnonzero(rng.random(scene.num_objects) < share):
        left, top, right, bottom = boxes[i].tolist()
        part = labels[top:bottom, left:right]
        flat = rng.random() < 0.5
        middle = (part.shape[0] if flat else part.shape[1]) // 2
        strip = part[middle : middle + gap_px] if flat else part[:, middle : middle + gap_px]
        if (strip == i + 1).sum() < (part == i + 1).sum() / 2:
            strip[strip == i + 1] = 0
    return replace(scene, labels_HW=labels)


def as_partition(scene: TruthScene) -> TruthScene:
    """Return a panoptic scene with each connected part of the ground as an object: no pixel is without one."""
    if scene.stuff_HW is None:
        raise ValueError(f"only scenes with ground can be partitions, got kind {scene.kind!r}")
    ground = label_components(np.where(scene.labels_HW == 0, scene.stuff_HW, 0))
    labels = np.where(ground > 0, ground + scene.num_objects, scene.labels_HW).astype(np.int32)
    _, first = np.unique(ground, return_index=True)
    classes = scene.stuff_HW.ravel()[first[ground.ravel()[first] > 0]]
    return replace(scene, labels_HW=labels, class_ids=np.concatenate([scene.class_ids, classes]).astype(np.int32))


def nuclei(shape_yx: tuple[int, int], rng: np.random.Generator) -> TruthScene:
    """Dense nuclei of 10-40 px, most of them touching a neighbour."""
    canvas = Canvas(shape_yx)
    step = 24
    rows, cols = -(-shape_yx[0] // step), -(-shape_yx[1] // step)
    ys, xs = np.mgrid[0:rows, 0:cols] * step + step / 2 + rng.uniform(-9, 9, (2, rows, cols))
    crowded = rng.random((rows, cols)) < 0.93
    for y, x in rng.permutation(np.stack([ys[crowded], xs[crowded]], 1)):
        a, b = np.clip(rng.normal(12, 3.0, 2), 5, 20)
        canvas.add(ellipse(y, x, a, b, rng.uniform(0, np.pi)), class_id=1, keep=0.35, min_area_px=60)
    return canvas.scene((Category(1, "nucleus"),))


def fields(shape_yx: tuple[int, int], rng: np.random.Generator) -> TruthScene:
    """Partitions of 300-1500 px that share borders with neighbours of their own class; a few lie fallow."""
    step = 560
    rows, cols = -(-shape_yx[0] // step) + 2, -(-shape_yx[1] // step) + 2
    seeds_yx = (_lattice(rows, cols) - 0.5 + rng.uniform(-0.45, 0.45, (rows, cols, 2))) * step
    stretch = rng.uniform(0.6, 1.6)
    labels = _nearest(shape_yx, seeds_yx.reshape(-1, 2).astype(np.float32), stretch)
    fallow = rng.random(rows * cols + 1) < 0.12
    labels[fallow[labels]] = 0
    labels = _one_part_each(labels)
    classes = rng.integers(1, 3, int(labels.max(initial=0)) + 1).astype(np.int32)
    classes[0] = 0
    return TruthScene("", 0, labels, classes, (Category(1, "wheat"), Category(2, "maize")))


def roads(shape_yx: tuple[int, int], rng: np.random.Generator) -> TruthScene:
    """Long thin things: bundles of parallel lanes 3 px apart, rivers, nested rings, U and comb shapes."""
    canvas = Canvas(shape_yx)
    height, width = shape_yx
    extent = max(shape_yx)
    for _ in range(max(2, extent // 300)):
        _lanes(canvas, rng, extent)
    for _ in range(max(4, height * width // 150_000)):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        pick = rng.integers(0, 3)
        if pick == 0:
            outer, thick = rng.uniform(40, 420), int(rng.integers(5, 12))
            for k in range(int(rng.integers(1, 4))):
                canvas.add(ring(y, x, outer - k * (thick + 3), thick), class_id=3, keep=0.3)
        else:
            teeth = 2 if pick == 1 else int(rng.integers(3, 9))
            shape = comb(rng.uniform(150, 900), teeth, rng.uniform(20, 120), int(rng.integers(5, 13)))
            canvas.add(shape.turned(int(rng.integers(0, 4))).at(y, x), class_id=4, keep=0.3)
    for _ in range(height * width // 300_000):
        y, x, half = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(6, 24, 2)
        canvas.add(rectangle(y, x, half[0], half[1], 0.0), class_id=5, keep=0.9, gap_px=2)
    names = ("road", "river", "ring", "comb", "house")
    return canvas.scene(tuple(Category(k + 1, name) for k, name in enumerate(names)))


def aerial(shape_yx: tuple[int, int], rng: np.random.Generator) -> TruthScene:
    """Mixed sizes; some objects lie exactly on the seams and corners of `COMMON_GRIDS`."""
    canvas = Canvas(shape_yx)
    height, width = shape_yx
    for tile, overlap in COMMON_GRIDS:
        step = tile - overlap
        for k in range(1, max(2, max(shape_yx) // step)):
            corner = k * step + overlap // 2
            half = rng.uniform(6, 40, 2)
            canvas.add(rectangle(corner, corner, half[0], half[1], 0.0), class_id=1, keep=0.99, gap_px=1)
            along = rng.uniform(0, max(shape_yx))
            canvas.add(disc(along, k * step, rng.uniform(5, 22)), class_id=2, keep=0.99)
            canvas.add(rectangle(corner + half[0], along, half[0], 9.0, 0.0), class_id=1, keep=0.99)
    for size, count in (((120, 360), 2.0), ((30, 110), 14.0), ((10, 34), 60.0)):
        for _ in range(int(count * height * width / 2**20)):
            half = rng.uniform(size[0] / 2, size[1] / 2, 2)
            y, x = rng.uniform(0, height), rng.uniform(0, width)
            canvas.add(rectangle(y, x, half[0], half[1], rng.uniform(0, np.pi)), class_id=1, keep=0.99, gap_px=1)
    for _ in range(int(220 * height * width / 2**20)):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        canvas.add(disc(y, x, rng.uniform(6, 18)), class_id=2, keep=0.6)
        if rng.random() < 0.25:
            canvas.add(rectangle(y + 22, x, 4.0, 7.5, 0.0), class_id=3, keep=0.99, gap_px=1)
    return canvas.scene((Category(1, "building"), Category(2, "tree"), Category(3, "car")))


def panoptic(shape_yx: tuple[int, int], rng: np.random.Generator) -> TruthScene:
    """Things over stuff: an aerial scene on ground of three classes; no pixel is without a class."""
    things = aerial(shape_yx, rng)
    step = 180
    rows, cols = -(-shape_yx[0] // step) + 2, -(-shape_yx[1] // step) + 2
    seeds_yx = (_lattice(rows, cols) - 0.5 + rng.uniform(-0.4, 0.4, (rows, cols, 2))) * step
    cells = _nearest(shape_yx, seeds_yx.reshape(-1, 2).astype(np.float32), 1.0)
    ground = rng.integers(4, 7, rows * cols + 1).astype(np.int32)
    stuff = tuple(Category(4 + k, name, isthing=False) for k, name in enumerate(("grass", "water", "pavement")))
    return replace(things, categories=things.categories + stuff, stuff_HW=ground[cells])


KINDS: dict[str, Callable[[tuple[int, int], np.random.Generator], TruthScene]] = {
    "nuclei": nuclei,
    "fields": fields,
    "roads": roads,
    "aerial": aerial,
    "panoptic": panoptic,
}


def _lanes(canvas: Canvas, rng: np.random.Generator, extent: int) -> None:
    """Add a bundle of parallel lanes, 3 px apart, that crosses the whole scene."""
    across = bool(rng.random() < 0.5)
    start, drift = rng.uniform(0, extent), rng.uniform(-0.3, 0.3)
    period_px, phase = rng.uniform(300, 1200), rng.uniform(0, 2 * np.pi)
    sway_px = rng.uniform(0.01, 0.08) * period_px
    river = rng.random() < 0.25
    thick = int(rng.integers(15, 40)) if river else int(rng.integers(5, 11))
    for k in range(1 if river else int(rng.integers(1, 5))):
        offset = start + k * (thick + 3)
        bends = {"sway_px": sway_px, "period_px": period_px, "phase": phase}
        shape = wave(offset, drift, **bends, thick=thick, across=across)
        canvas.add(shape, class_id=2 if river else 1, keep=0.2, gap_px=1)


def _nearest(shape_yx: tuple[int, int], seeds_yx: NDArray[np.float32], stretch: float) -> NDArray[np.int32]:
    """Return 1 + the nearest seed of each pixel, distances along x weighted by `stretch`; block by block."""
    labels = np.empty(shape_yx, np.int32)
    weight = np.array([1.0, stretch], np.float32)
    side = 128
    for top in range(0, shape_yx[0], side):
        for left in range(0, shape_yx[1], side):
            block = labels[top : top + side, left : left + side]
            centre = np.array([top + side / 2, left + side / 2], np.float32)
            distance = np.hypot(*((seeds_yx - centre) * weight).T)
            # A seed can own a pixel of the block only if it is not further than the nearest one by the diagonal.
            near = np.flatnonzero(distance <= distance.min() + side * 1.5 * max(1.0, stretch))
            ys, xs = np.ogrid[top : top + block.shape[0], left : left + block.shape[1]]
            stack = [((ys - seeds_yx[s, 0]) ** 2 + ((xs - seeds_yx[s, 1]) * stretch) ** 2) for s in near]
            block[:] = near[np.argmin(np.stack(stack), axis=0)] + 1
    return labels


def _lattice(rows: int, cols: int) -> NDArray[np.float64]:
    """Return (rows, cols, 2) the row and column of each cell."""
    return np.stack(np.meshgrid(np.arange(float(rows)), np.arange(float(cols)), indexing="ij"), -1)


def _one_part_each(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Keep the largest 8-connected component of each label, at least 30 px, and number them from 1."""
    parts = label_components(labels)
    areas = np.bincount(parts.ravel())
    owner = np.zeros(len(areas), np.int64)
    owner[parts.ravel()] = labels.ravel()
    order = np.lexsort((np.arange(len(areas)), -areas, owner))
    largest = order[np.unique(owner[order], return_index=True)[1]]
    keep = np.zeros(len(areas), bool)
    keep[largest] = areas[largest] >= 30
    keep[0] = False
    new = np.cumsum(keep) * keep
    return new.astype(np.int32)[parts]


def _boxes(labels: NDArray[np.int32], num_labels: int) -> NDArray[np.int64]:
    """Return (N, 4) half-open boxes of labels 1..N."""
    height, width = labels.shape
    boxes = np.tile(np.array([width, height, 0, 0], np.int64), (num_labels + 1, 1))
    ys, xs = np.nonzero(labels)
    values = labels[ys, xs]
    np.minimum.at(boxes[:, 0], values, xs)
    np.minimum.at(boxes[:, 1], values, ys)
    np.maximum.at(boxes[:, 2], values, xs + 1)
    np.maximum.at(boxes[:, 3], values, ys + 1)
    return boxes[1:]
