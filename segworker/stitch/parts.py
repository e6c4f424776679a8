"""What the passes hand to each other, and the options that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segworker.grid import Grid
from segworker.masks import I64
from segworker.seams import SeamRule
from segworker.stitch.points import F32, unseen
from segworker.stitch.sums import MAX_INSTANCES, SCORE_ONE, Settled, Sums, TileKey
from segworker.types import Instances, Runs, Window

SEAM_NONE, SEAM_MERGED, SEAM_CUT, SEAM_MISSING = 0, 1, 2, 3
SEAM_NAMES = ("none", "merged", "cut", "missing")


@dataclass(frozen=True, slots=True)
class StitchOptions:
    """What decides which features a run keeps, and how instances become features."""

    rule: SeamRule = field(default_factory=SeamRule)
    exclusive: bool = True
    "A pixel belongs to one feature at most."
    min_score: float = 0.0
    "Of instances, and of features."
    class_min_score: tuple[tuple[int, float], ...] = ()
    "Pairs (class id, least score), over `min_score`."
    class_ids: tuple[int, ...] | None = None
    "Classes to keep; None keeps all."
    min_area_px: float = 0.0
    "Grid pixels."
    max_area_px: float = float("inf")
    "Grid pixels."
    min_kept_share: float = 0.5
    "A feature that loses more of its pixels to others, where each has one owner, is dropped."


@dataclass(frozen=True, slots=True, eq=False)
class BorderLinks:
    """The part of pass A's result that leaves the block: its components that may reach over the block's border."""

    components: I64
    "(B,) local components, sorted."
    sums: Sums
    "(B,) of them."
    nodes: I64
    "(L, 2) linked nodes: own, foreign."
    place: I64
    "(L,) the own node's component, as a position in `components`."
    guests: I64
    "(G, 2) own nodes whose boxes reach into tiles around the block, sorted; their component, as a position."
    ring: I64
    "Numbers of the tiles around the block that were read."


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
class Guests:
    """Instances of the tiles around a block whose boxes reach over its border."""

    nodes: I64
    "(G,) sorted."
    features: I64
    "(G,) as in `BorderFeatures`."
    settled: Settled
    "(G,) of the whole features."

    def tile_keys(self, grid: Grid) -> list[TileKey]:
        """Return the tiles that the instances are of."""
        rows, cols = np.divmod(np.unique(self.nodes // MAX_INSTANCES), grid.shape_yx[1])
        return list(zip(rows.tolist(), cols.tolist(), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class BorderFeatures:
    """Pass B's result for one block: what became of its components that reach over its border."""

    components: I64
    "(B,) local components, sorted."
    features: I64
    "(B,) their feature, numbered over the whole scene."
    settled: Settled
    "(B,) of the whole features."
    guests: Guests


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Pixels of N features, or of their parts in one block."""

    class_ids: I64
    scores: NDArray[np.float32]
    runs: Runs
    claimed_px: I64
    "(N,) pixels that it would have without the others; -1 of stuff."
    num_tiles: I64
    "(N,) tiles whose cores gave pixels."
    seam: NDArray[np.uint8]
    "(N,) SEAM_NONE, SEAM_MERGED, SEAM_CUT or SEAM_MISSING."
    features: I64
    "(N,) number over the whole scene for parts of border features, -1 for whole ones."
    keypoints_NK4: F32 | None = None
    "(N, K, 4) as in `points`, grid pixels; None: there are none."

    def __len__(self) -> int:
        return len(self.class_ids)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> Pieces:
        """Return the pieces at `indices`."""
        return Pieces(
            self.class_ids[indices],
            self.scores[indices],
            self.runs.take(indices),
            self.claimed_px[indices],
            self.num_tiles[indices],
            self.seam[indices],
            self.features[indices],
            None if self.keypoints_NK4 is None else self.keypoints_NK4[indices],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Pieces]) -> Pieces:
        """Return all pieces, one after the other."""
        return cls(
            np.concatenate([p.class_ids for p in parts]),
            np.concatenate([p.scores for p in parts]),
            Runs.concatenate([p.runs for p in parts]),
            np.concatenate([p.claimed_px for p in parts]),
            np.concatenate([p.num_tiles for p in parts]),
            np.concatenate([p.seam for p in parts]),
            np.concatenate([p.features for p in parts]),
            _all_points(parts),
        )


def _all_points(parts: Sequence[Pieces]) -> F32 | None:
    """Return the keypoints of all parts; those without any (stuff, tiles without objects) have unseen ones."""
    known = [p.keypoints_NK4 for p in parts if p.keypoints_NK4 is not None]
    if not known:
        return None
    num = known[0].shape[1]
    return np.concatenate([unseen(len(p), num) if p.keypoints_NK4 is None else p.keypoints_NK4 for p in parts])


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Finished objects of a scene, in the order of their index."""

    index: I64
    "(N,) dense rank in the scene by first pixel, class and area."
    pieces: Pieces

    def __len__(self) -> int:
        return len(self.index)


def sure_tiles(tiles: Mapping[TileKey, Instances], options: StitchOptions) -> dict[TileKey, Instances]:
    """Return the tiles without the instances that score too little: those neither vote nor give pixels.

    Every pass must see the same tiles. Where faint instances took part, they pulled features below the threshold.
    """
    kept = {}
    for key, tile in tiles.items():
        scores = np.rint(tile.scores * float(SCORE_ONE)).astype(np.int64)
        sure = _score_passes(tile.class_ids, scores, options)
        kept[key] = tile if sure.all() else tile.take(np.flatnonzero(sure))
    return kept


def passes(settled: Settled, options: StitchOptions) -> NDArray[np.bool_]:
    """Return which features pass the score and class filters."""
    keep = _score_passes(settled.class_ids, settled.score, options)
    if options.class_ids is not None:
        keep &= np.isin(settled.class_ids, options.class_ids)
    return keep


def _score_passes(class_ids: NDArray[np.integer], scores: I64, options: StitchOptions) -> NDArray[np.bool_]:
    least = np.full(len(scores), options.min_score)
    for class_id, score in options.class_min_score:
        least[class_ids == class_id] = score
    return np.asarray(scores >= np.floor(least * SCORE_ONE))


def area_kept(area: I64, claimed: I64, options: StitchOptions) -> NDArray[np.bool_]:
    """Return which features have pixels, as many as the area limits ask, and enough of those that they claimed.

    Of stuff, which claims -1, all that have pixels.
    """
    kept = (area >= options.min_kept_share * claimed) & (area >= options.min_area_px) & (area <= options.max_area_px)
    return np.asarray((area > 0) & (kept | (claimed < 0)))
