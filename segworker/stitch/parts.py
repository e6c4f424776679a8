"""What the passes hand to each other: sums of components, pieces of features, features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from segworker.masks import I64
from segworker.seams import SeamRule
from segworker.types import Runs, Window

SCORE_ONE = 1 << 20
"Scores are summed as integers of this many parts."
MAX_INSTANCES = 1 << 20
"Instances a tile can hold: a node is tile index times this plus the instance's index."

TileKey: TypeAlias = tuple[int, int]
NOWHERE = 2**31 - 1
"Row and column of the first pixel of a component without pixels."
SEAM_NONE, SEAM_MERGED, SEAM_CUT, SEAM_MISSING = 0, 1, 2, 3
SEAM_NAMES = ("none", "merged", "cut", "missing")


@dataclass(frozen=True, slots=True)
class StitchOptions:
    """What decides which features a run keeps, and how instances become features."""

    rule: SeamRule = field(default_factory=SeamRule)
    exclusive: bool = True
    "A pixel belongs to one feature at most."
    min_score: float = 0.0
    class_min_score: tuple[tuple[int, float], ...] = ()
    "Pairs (class id, least score), over `min_score`."
    class_ids: tuple[int, ...] | None = None
    "Classes to keep; None keeps all."
    min_area_px: float = 0.0
    "Grid pixels."
    max_area_px: float = float("inf")
    "Grid pixels."


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What is known of N components, as sums and extremes that add up in any order."""

    area: I64
    "(N,) core pixels before exclusivity."
    score: I64
    "(N,) area times score in 1 / SCORE_ONE."
    first_yx: I64
    "(N, 2) first pixel in row order; the largest int32 where there is none."
    classes: I64
    "(K, 3) component, class id, area of the members that voted for it."

    @classmethod
    def merge(cls, parts: Sums, groups: I64, num_groups: int) -> Sums:
        """Return the sums of groups of components."""
        area, score = np.zeros(num_groups, np.int64), np.zeros(num_groups, np.int64)
        np.add.at(area, groups, parts.area)
        np.add.at(score, groups, parts.score)
        key = np.full(num_groups, _key(np.array([[NOWHERE, NOWHERE]]))[0])
        np.minimum.at(key, groups, _key(parts.first_yx))
        classes = parts.classes.copy()
        classes[:, 0] = groups[classes[:, 0]]
        return cls(area, score, _unkey(key), _add_classes(classes))

    def take(self, components: I64) -> Sums:
        """Return the sums of some components; `components` is sorted."""
        rows = self.classes[np.isin(self.classes[:, 0], components)].copy()
        rows[:, 0] = np.searchsorted(components, rows[:, 0])
        return Sums(self.area[components], self.score[components], self.first_yx[components], rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Sums]) -> Sums:
        """Return all sums, one after the other."""
        bases = np.cumsum([0, *(len(p.area) for p in parts)])
        rows = [p.classes + np.array([base, 0, 0]) for base, p in zip(bases, parts, strict=False)]
        return cls(
            np.concatenate([p.area for p in parts]),
            np.concatenate([p.score for p in parts]),
            np.concatenate([p.first_yx for p in parts]),
            np.concatenate([np.zeros((0, 3), np.int64), *rows]),
        )

    def settle(self) -> Settled:
        """Return class and score of each component: the class with most area, ties to the lowest id."""
        order = np.lexsort((self.classes[:, 1], -self.classes[:, 2], self.classes[:, 0]))
        lead = self.classes[order]
        keep = np.ones(len(lead), np.bool_)
        keep[1:] = lead[1:, 0] != lead[:-1, 0]
        class_ids = np.zeros(len(self.area), np.int64)
        class_ids[lead[keep, 0]] = lead[keep, 1]
        return Settled(class_ids, self.score // np.maximum(self.area, 1), self.area, self.first_yx)


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What decides the total order of N features."""

    class_ids: I64
    score: I64
    "(N,) in 1 / SCORE_ONE."
    area: I64
    first_yx: I64

    def priority(self) -> I64:
        """Return each feature's rank: higher score, then larger, then earlier first pixel, then class. 0 wins."""
        y, x = self.first_yx[:, 0], self.first_yx[:, 1]
        order = np.lexsort((self.class_ids, x, y, -self.area, -self.score))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank

    def take(self, indices: I64) -> Settled:
        """Return the features at `indices`."""
        return Settled(self.class_ids[indices], self.score[indices], self.area[indices], self.first_yx[indices])

    def kept(self, options: StitchOptions) -> NDArray[np.bool_]:
        """Return which features pass the score and class filters."""
        least = np.full(len(self.score), options.min_score)
        for class_id, score in options.class_min_score:
            least[self.class_ids == class_id] = score
        keep = (self.score >= np.floor(least * SCORE_ONE)) & (self.area > 0)
        if options.class_ids is not None:
            keep &= np.isin(self.class_ids, options.class_ids)
        return np.asarray(keep)


@dataclass(frozen=True, slots=True, eq=False)
class BorderLinks:
    """The part of pass A's result that leaves the block: its components that reach over the block's border."""

    components: I64
    "(B,) local components, sorted."
    sums: Sums
    "(B,) of them."
    nodes: I64
    "(L, 2) linked nodes: own, foreign."
    place: I64
    "(L,) the own node's component, as a position in `components`."


@dataclass(frozen=True, slots=True, eq=False)
class BlockLinks:
    """Pass A's result for one block."""

    component: I64
    "(nodes of the block's tiles in row order,) local component of each instance."
    sums: Sums
    "of the local components."
    border: BorderLinks
    seen: I64
    "(C, 3) class id, fragments that a neighbour should have seen, of them linked."
    iou_sums: I64
    "(C, 3) class id, links, sum of their IoU in 1 / SCORE_ONE."
    missing: tuple[Window, ...] = ()
    "Cores of the tiles in and around the block that have no result, grid pixels."


@dataclass(frozen=True, slots=True, eq=False)
class BorderFeatures:
    """Pass B's result for one block: what became of its components that reach over its border."""

    components: I64
    "(B,) local components, sorted."
    features: I64
    "(B,) their feature, numbered over the whole scene."
    settled: Settled
    "(B,) of the whole features."


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Pixels of N features, or of their parts in one block."""

    class_ids: I64
    scores: NDArray[np.float32]
    runs: Runs
    num_tiles: I64
    "(N,) tiles whose cores gave pixels."
    seam: NDArray[np.uint8]
    "(N,) SEAM_NONE, SEAM_MERGED, SEAM_CUT or SEAM_MISSING."
    features: I64
    "(N,) number over the whole scene for parts of border features, -1 for whole ones."

    def __len__(self) -> int:
        return len(self.class_ids)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Pieces:
        """Return the pieces at `indices`."""
        return Pieces(
            self.class_ids[indices],
            self.scores[indices],
            self.runs.take(indices),
            self.num_tiles[indices],
            self.seam[indices],
            self.features[indices],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Pieces]) -> Pieces:
        """Return all pieces, one after the other."""
        return cls(
            np.concatenate([p.class_ids for p in parts]),
            np.concatenate([p.scores for p in parts]),
            Runs.concatenate([p.runs for p in parts]),
            np.concatenate([p.num_tiles for p in parts]),
            np.concatenate([p.seam for p in parts]),
            np.concatenate([p.features for p in parts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Finished objects of a scene, in the order of their index."""

    index: I64
    "(N,) dense rank in the scene by first pixel, class and area."
    pieces: Pieces

    def __len__(self) -> int:
        return len(self.index)


def _key(first_yx: I64) -> I64:
    return (first_yx[:, 0].astype(np.int64) << 32) + first_yx[:, 1]


def _unkey(key: I64) -> I64:
    return np.column_stack([key >> 32, key & 0xFFFFFFFF]).astype(np.int64)


def _add_classes(rows: I64) -> I64:
    """Sum the areas of equal (component, class) rows."""
    classes, index = np.unique(rows[:, 1], return_inverse=True)
    keys, inverse = np.unique(rows[:, 0] * max(1, len(classes)) + index.ravel(), return_inverse=True)
    areas = np.zeros(len(keys), np.int64)
    np.add.at(areas, inverse.ravel(), rows[:, 2])
    component, class_index = np.divmod(keys, max(1, len(classes)))
    return np.column_stack([component, classes[class_index] if len(keys) else component, areas]).astype(np.int64)


def area_kept(area: I64, options: StitchOptions) -> NDArray[np.bool_]:
    """Return which features have pixels, and as many as the area limits ask."""
    return np.asarray((area > 0) & (area >= options.min_area_px) & (area <= options.max_area_px))
