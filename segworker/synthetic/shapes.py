"""Shapes as masks on a canvas: what the scenes are painted with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker.synthetic.truth import TruthScene, label_components
from segworker.types import Category

Grid: TypeAlias = NDArray[np.floating]
Inside: TypeAlias = Callable[[Grid, Grid], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A region of the plane around a centre."""

    inside: Inside
    "Tells of offsets (y, x) from the centre whether they are inside; broadcasts."
    half_yx: tuple[float, float]
    "Nothing is further from the centre than this."
    centre_yx: tuple[float, float] = (0.0, 0.0)

    def at(self, y: float, x: float) -> Shape:
        """Return the shape moved to a centre."""
        return replace(self, centre_yx=(y, x))

    def turned(self, quarters: int) -> Shape:
        """Return the shape turned by quarters of a circle."""
        if quarters % 4 == 0:
            return self
        inside = self.inside
        turned = replace(self, inside=lambda y, x: inside(x, -y), half_yx=self.half_yx[::-1])
        return turned.turned(quarters - 1)


def ellipse(y: float, x: float, a: float, b: float, angle: float) -> Shape:
    """Return an ellipse with half axes a, b (px) turned by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)

    def inside(dy: Grid, dx: Grid) -> NDArray[np.bool_]:
        return np.asarray(((dx * cos + dy * sin) / a) ** 2 + ((dy * cos - dx * sin) / b) ** 2 <= 1)

    reach = max(a, b)
    return Shape(inside, (reach, reach), (y, x))


def disc(y: float, x: float, radius: float) -> Shape:
    """Return a disc."""
    return Shape(lambda dy, dx: np.asarray(dy**2 + dx**2 <= radius**2), (radius, radius), (y, x))


def ring(y: float, x: float, radius: float, thick: float) -> Shape:
    """Return a ring with an outer radius and a thickness; a disc where it would have no hole."""
    inner = max(0.0, radius - thick)

    def inside(dy: Grid, dx: Grid) -> NDArray[np.bool_]:
        square = dy**2 + dx**2
        return np.asarray((square <= radius**2) & (square >= inner**2))

    return Shape(inside, (max(radius, 1.0), max(radius, 1.0)), (y, x))


def rectangle(y: float, x: float, half_height: float, half_width: float, angle: float) -> Shape:
    """Return a rectangle turned by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)

    def inside(dy: Grid, dx: Grid) -> NDArray[np.bool_]:
        return np.asarray((abs(dx * cos + dy * sin) <= half_width) & (abs(dy * cos - dx * sin) <= half_height))

    reach = float(np.hypot(half_height, half_width))
    return Shape(inside, (reach, reach), (y, x))


def comb(length: float, teeth: int, pitch: float, thick: float) -> Shape:
    """Return a comb: teeth of a length, `pitch` apart, hanging from a spine. Two teeth are a U."""
    half_y, half_x = length / 2, (teeth - 1) * pitch / 2 + thick / 2
    pitch = max(pitch, thick + 3)

    def inside(dy: Grid, dx: Grid) -> NDArray[np.bool_]:
        along = dx + half_x
        tooth = along - np.floor(along / pitch) * pitch < thick
        box = (abs(dy) <= half_y) & (abs(dx) <= half_x)
        return np.asarray(box & ((dy + half_y < thick) | tooth))

    return Shape(inside, (half_y, half_x))


def wave(
    start: float, drift: float, *, sway_px: float, period_px: float, phase: float, thick: float, across: bool
) -> Shape:
    """Return a winding band without end: y = start + drift * x + sway * sin; from top to bottom where not `across`."""

    def inside(y: Grid, x: Grid) -> NDArray[np.bool_]:
        along, side = (x, y) if across else (y, x)
        middle = start + drift * along + sway_px * np.sin(2 * np.pi * along / period_px + phase)
        return np.asarray((side >= middle) & (side < middle + thick))

    return Shape(inside, (np.inf, np.inf))


class Canvas:
    """A label image that grows object by object; what is there already is never painted over."""

    def __init__(self, shape_yx: tuple[int, int]) -> None:
        self.labels = np.zeros(shape_yx, np.int32)
        self.classes = [0]

    def add(self, shape: Shape, *, class_id: int, keep: float, gap_px: int = 0, min_area_px: int = 20) -> bool:
        """Paint the largest free component of a shape as the next object.

        Args:
            shape: in pixels of the canvas.
            class_id: of the object.
            keep: the least share of the shape (inside the canvas) that must remain, else nothing is painted.
            gap_px: distance kept to other objects; 0 lets them touch.
            min_area_px: the least pixels that must remain.
        """
        (top, bottom), (left, right) = (self._range(shape, axis) for axis in (0, 1))
        if top >= bottom or left >= right:
            return False
        part = self.labels[top:bottom, left:right]
        ys, xs = np.ogrid[top:bottom, left:right]
        wanted = shape.inside(ys - shape.centre_yx[0], xs - shape.centre_yx[1])
        free = wanted & ~_grown(part > 0, gap_px)
        total, remaining = int(wanted.sum()), int(free.sum())
        if remaining < max(min_area_px, keep * total):
            return False
        components = label_components(free)
        areas = np.bincount(components.ravel())[1:]
        if areas.max() < max(min_area_px, keep * total):
            return False
        part[components == areas.argmax() + 1] = len(self.classes)
        self.classes.append(class_id)
        return True

    def scene(self, categories: tuple[Category, ...]) -> TruthScene:
        """Return what was painted."""
        return TruthScene("", 0, self.labels, np.array(self.classes, np.int32), categories)

    def _range(self, shape: Shape, axis: int) -> tuple[int, int]:
        """Return the rows (axis 0) or columns (axis 1) of the canvas that a shape can reach."""
        size, centre, half = self.labels.shape[axis], shape.centre_yx[axis], shape.half_yx[axis]
        if np.isinf(half):
            return 0, size
        return max(0, int(np.floor(centre - half))), min(size, int(np.ceil(centre + half)) + 1)


def _grown(mask: NDArray[np.bool_], by_px: int) -> NDArray[np.bool_]:
    """Return a mask grown by whole pixels in the eight directions, inside its own frame."""
    for _ in range(by_px):
        tall = mask.copy()
        tall[1:] |= mask[:-1]
        tall[:-1] |= mask[1:]
        mask = tall.copy()
        mask[:, 1:] |= tall[:, :-1]
        mask[:, :-1] |= tall[:, 1:]
    return mask
