"""What the seam benchmark measures on: painted scenes, what tiles saw of them, and how a result is scored."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segworker import metrics, synthetic
from segworker.grid import Grid
from segworker.synthetic.noise import SeenTile, noisy_tiles, oracle_pairs, perfect_tiles
from segworker.synthetic.scenes import as_partition, make_scene
from segworker.synthetic.truth import TruthScene
from segworker.types import Instances, Runs

KINDS = ("nuclei", "aerial", "fields", "roads", "panoptic")


@dataclass(frozen=True, slots=True, eq=False)
class Stitched:
    """What any tool makes of tiles."""

    runs: Runs
    "Masks of the features; they may overlap."
    groups: NDArray[np.int64] | None = None
    "Feature of each instance, all tiles one after the other; -1 where dropped. None: the tool does not tell."


Tool = Callable[[Sequence[Instances], Grid], Stitched]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One scene on one grid, seen twice."""

    scene: TruthScene
    grid: Grid
    perfect: list[SeenTile]
    noisy: list[SeenTile]


@dataclass(frozen=True, slots=True)
class Score:
    """How one result compares with the truth."""

    pq: float
    cut: int
    merged: int
    duplicates: int
    missed: int
    false: int
    welds: int
    "True objects too many in features: by the tool's own groups of instances where it tells them, else by pixels."
    num_objects: int


@lru_cache(maxsize=24)
def make_case(kind: str, seed: int, *, tile: int = 512, overlap: int = 64, size: int = 2048) -> Case:
    """Return a case; drawn once, then kept in the temporary folder until the generators' source changes."""
    digest = hashlib.sha256()
    for path in sorted(Path(synthetic.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    name = f"{kind}-{seed}-{tile}-{overlap}-{size}-{digest.hexdigest()[:12]}.pickle"
    path = Path(tempfile.gettempdir()) / "segworker-seam-cases" / name
    if path.exists():
        return pickle.loads(path.read_bytes())
    scene = make_scene(kind, size, seed)
    scene = as_partition(scene) if kind == "panoptic" else scene
    grid = Grid("scene", size, size, tile, overlap)
    case = Case(scene, grid, perfect_tiles(scene, grid), noisy_tiles(scene, grid))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(case))
    return case


def score(case: Case, seen: Sequence[SeenTile], result: Stitched) -> Score:
    """Compare a result with the truth, classes aside."""
    overlaps = metrics.overlap_runs_with_raster(case.scene.labels_HW, result.runs)
    faults = metrics.seam_faults(overlaps)
    welds = faults.welds if result.groups is None else count_welds(seen, result.groups)
    return Score(
        pq=metrics.panoptic_quality(overlaps).pq,
        cut=faults.cut,
        merged=faults.merged,
        duplicates=faults.duplicates,
        missed=faults.missed,
        false=faults.false,
        welds=welds,
        num_objects=len(overlaps.truth_ids),
    )


def count_welds(seen: Sequence[SeenTile], groups: NDArray[np.int64]) -> int:
    """Return the sum over features of (true objects among their instances - 1)."""
    truth = np.concatenate([s.truth_ids for s in seen])
    known = (truth > 0) & (groups >= 0)
    pairs = np.unique(np.stack([groups[known], truth[known]], axis=1), axis=0)
    return len(pairs) - len(np.unique(pairs[:, 0]))


def tile_pair_links(seen: Sequence[SeenTile]) -> Callable[[Instances, Instances], NDArray[np.int64]]:
    """Return the oracle: a function of two tiles that gives all true links (L, 2) between their instances."""
    by_place = {(s.instances.tile.row, s.instances.tile.col): s for s in seen}

    def pairs(a: Instances, b: Instances) -> NDArray[np.int64]:
        return oracle_pairs(by_place[a.tile.row, a.tile.col], by_place[b.tile.row, b.tile.col])

    return pairs
