"""Dense nuclei in blocks, as the engine stitches a large scene: what a block keeps for later lies on disk."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from seam_dense import DenseScene

from segworker.blocks import TileRange
from segworker.stitch import (
    Pieces,
    StitchOptions,
    assemble_block,
    cut_block,
    join_blocks,
    link_block,
    rank_blocks,
    summarise,
)
from segworker.stitch.sums import TileKey
from segworker.types import Instances

SIDE = 8
"Tiles along a block's side."


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """CPU seconds of the passes, all blocks together; making the tiles and the disk are not in it."""

    instances: int
    features: int
    link_s: float
    join_s: float
    cut_s: float
    assemble_s: float

    @property
    def total_s(self) -> float:
        """All passes."""
        return self.link_s + self.join_s + self.cut_s + self.assemble_s


def stitch_dense(num: int) -> BlockTimes:
    """Stitch about `num` nuclei block by block in this process."""
    scene, options = DenseScene(num), StitchOptions()
    ranges = list(_ranges(scene))
    seconds = dict.fromkeys(("link", "join", "cut", "assemble"), 0.0)

    def timed(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        begin = time.process_time()
        result = function(*arguments, **keywords)
        seconds[name] += time.process_time() - begin
        return result

    with tempfile.TemporaryDirectory() as folder:
        spill = _Spill(Path(folder))
        borders, instances = [], 0
        for k, part in enumerate(ranges):
            own = _tiles(scene, part.tile_keys())
            instances += sum(len(t) for t in own.values())
            ring = _tiles(scene, part.ring(scene.grid))
            links = timed("link", link_block, own, ring, grid=scene.grid, rule=options.rule)
            borders.append(links.border)
            spill.put("links", k, links)
        joined = timed("join", join_blocks, borders)
        summaries = []
        for k, part in enumerate(ranges):
            border = joined[k]
            own, ring = _tiles(scene, part.tile_keys()), _tiles(scene, border.guests.tile_keys(scene.grid))
            links = spill.take("links", k)
            pieces = timed("cut", cut_block, own, ring, links, border, grid=scene.grid, options=options)
            summaries.append(timed("assemble", summarise, pieces, part.region(scene.grid)))
            whole = pieces.features < 0
            spill.put("whole", k, pieces.take(np.flatnonzero(whole)))
            spill.put("parts", k, pieces.take(np.flatnonzero(~whole)))
        ranks = timed("assemble", rank_blocks, summaries, options=options)
        features = 0
        for k, (part, rank) in enumerate(zip(ranges, ranks, strict=True)):
            whole = spill.take("whole", k)
            sources = rank.sources
            parts = Pieces.concatenate([whole.take(np.zeros(0, np.int64)), *(spill.get("parts", s) for s in sources)])
            features += len(timed("assemble", assemble_block, whole, parts, rank, part.region(scene.grid)))
    return BlockTimes(instances, features, *seconds.values())


class _Spill:
    """Objects on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, k: int, value: object) -> None:
        (self._folder / f"{name}-{k}").write_bytes(pickle.dumps(value, protocol=5))

    def get(self, name: str, k: int) -> Any:
        return pickle.loads((self._folder / f"{name}-{k}").read_bytes())

    def take(self, name: str, k: int) -> Any:
        value = self.get(name, k)
        (self._folder / f"{name}-{k}").unlink()
        return value


def _ranges(scene: DenseScene) -> Iterator[TileRange]:
    rows, cols = scene.grid.shape_yx
    for row in range(0, rows, SIDE):
        for col in range(0, cols, SIDE):
            yield TileRange("dense", row, min(rows, row + SIDE), col, min(cols, col + SIDE), whole=False)


def _tiles(scene: DenseScene, keys: Any) -> dict[TileKey, Instances]:
    return {key: scene.tile(*key) for key in keys}
