"""Ours, the oracle, and other ways to stitch, written from their published ideas.

Each takes (instances of each tile, grid) and returns `Stitched`. What they do:

none            nothing: every instance is a feature
union           instances of two tiles that share a pixel are one (the simplest merge of GIS scripts)
nms             best score first; later instances with more than half of the smaller one in common are dropped
nmm             best score first; such instances are merged into it (greedy non-maximum merging by IoS, as in SAHI)
ownership       an instance belongs to the tile whose core holds the centre of its box; others are dropped (StarDist)
core-join       masks are cut to their tile's core; labels that face each other across a border by more than their
                outermost pixels are joined (Cellpose's distributed mode, its fault in two dimensions mended)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from seam_cases import SeenTile, Stitched, Tool, tile_pair_links

from segworker import masks, metrics, stitch
from segworker.grid import Grid
from segworker.seams import Links
from segworker.stitch import link as linking
from segworker.synthetic.truth import connected_components
from segworker.types import Instances, Runs, Window

Ints = NDArray[np.int64]


def ours(options: stitch.StitchOptions | None = None) -> Tool:
    """Return our four passes, as one block; groups are the components of pass A."""
    chosen = options or stitch.StitchOptions()

    def run(tiles: Sequence[Instances], grid: Grid) -> Stitched:
        components = []

        def link_block(*arguments: Any, **options: Any) -> stitch.BlockLinks:
            links = linking.link_block(*arguments, **options)
            components.append(links.component)
            return links

        with patch.object(stitch, "link_block", link_block):
            found = stitch.stitch_scene(tiles, grid=grid, options=chosen)
        return Stitched(found.pieces.runs, components[0])

    return run


def oracle(seen: Sequence[SeenTile], options: stitch.StitchOptions | None = None) -> Tool:
    """Return our passes with the links of one who knows which object each instance is."""
    pairs_of, run = tile_pair_links(seen), ours(options)

    def link(a: Instances, b: Instances, **_thresholds: object) -> Links:
        pairs = pairs_of(a, b)
        return Links(pairs, np.ones(len(pairs)), np.zeros((0, 2), np.int64))

    def run_linked(tiles: Sequence[Instances], grid: Grid) -> Stitched:
        with patch.object(linking, "link", link):
            return run(tiles, grid)

    return run_linked


def none(tiles: Sequence[Instances], _grid: Grid) -> Stitched:
    """Keep every instance."""
    runs = Runs.concatenate([t.runs for t in tiles])
    return Stitched(runs, np.arange(len(runs)))


def union(tiles: Sequence[Instances], _grid: Grid) -> Stitched:
    """Join whatever shares a pixel."""
    a, b, _ = _shared(tiles)
    runs = Runs.concatenate([t.runs for t in tiles])
    return _merged(runs, connected_components(len(runs), a, b))


def nms(tiles: Sequence[Instances], _grid: Grid) -> Stitched:
    """Keep the best of each crowd."""
    runs = Runs.concatenate([t.runs for t in tiles])
    leader = _greedy(tiles)
    kept = np.flatnonzero(leader == np.arange(len(runs)))
    groups = np.full(len(runs), -1, np.int64)
    groups[kept] = np.arange(len(kept))
    return Stitched(runs.take(kept), groups)


def nmm(tiles: Sequence[Instances], _grid: Grid) -> Stitched:
    """Merge each crowd into its best."""
    return _merged(Runs.concatenate([t.runs for t in tiles]), _greedy(tiles))


def ownership(tiles: Sequence[Instances], _grid: Grid) -> Stitched:
    """Keep what is centred in its tile's core."""
    runs, kept = Runs.concatenate([t.runs for t in tiles]), []
    for t in tiles:
        x, y = (t.boxes_xyxy[:, :2] + t.boxes_xyxy[:, 2:]).T // 2
        core = t.tile.core
        kept.append((x >= core.col_off) & (x < core.col_end) & (y >= core.row_off) & (y < core.row_end))
    keep = np.concatenate(kept)
    return Stitched(runs.take(keep), np.where(keep, np.cumsum(keep) - 1, -1))


def core_join(tiles: Sequence[Instances], _grid: Grid) -> Stitched:
    """Cut to cores, then join what faces each other across a border."""
    bases = np.cumsum([0, *(len(t) for t in tiles)])
    place = {(t.tile.row, t.tile.col): k for k, t in enumerate(tiles)}
    cut = [masks.clip_runs(t.runs, t.tile.core) for t in tiles]
    pairs = [np.zeros((0, 2), np.int64)]
    for (row, col), k in place.items():
        core = tiles[k].tile.core
        for other, window in (
            (place.get((row, col + 1)), Window(core.col_end - 1, core.row_off, 2, core.height)),
            (place.get((row + 1, col)), Window(core.col_off, core.row_end - 1, core.width, 2)),
        ):
            if other is not None:
                pairs.append(_facing(cut[k], cut[other], window) + np.array([bases[k], bases[other]]))
    joined = np.concatenate(pairs)
    runs = Runs.concatenate(cut)
    result = _merged(runs, connected_components(len(runs), joined[:, 0], joined[:, 1]))
    filled = np.diff(result.runs.offsets) > 0
    return Stitched(result.runs.take(filled), np.where(filled, np.cumsum(filled) - 1, -1)[result.groups])


TOOLS: dict[str, Tool] = {
    "none": none,
    "union": union,
    "nms": nms,
    "nmm": nmm,
    "ownership": ownership,
    "core-join": core_join,
}


def _shared(tiles: Sequence[Instances]) -> tuple[Ints, Ints, Ints]:
    """Return pairs a < b of instances of two tiles and the pixels they share."""
    runs = Runs.concatenate([t.runs for t in tiles])
    tile_of = np.repeat(np.arange(len(tiles)), [len(t) for t in tiles])
    found = metrics.overlap_runs(runs, runs)
    a, b = found.truth_index, found.pred_index
    keep = (a < b) & (tile_of[a] != tile_of[b])
    return a[keep], b[keep], found.pixels[keep]


def _merged(runs: Runs, roots: Ints) -> Stitched:
    """Unite the masks that have one root."""
    kept, groups = np.unique(roots, return_inverse=True)
    return Stitched(masks.merge_runs(runs, groups, len(kept)), groups)


def _greedy(tiles: Sequence[Instances], min_ios: float = 0.5) -> Ints:
    """Return for each instance the one that takes it, best score first; its own index where none does."""
    a, b, pixels = _shared(tiles)
    areas = masks.areas_px(Runs.concatenate([t.runs for t in tiles]))
    alike = pixels > min_ios * np.minimum(areas[a], areas[b])
    a, b = np.concatenate([a[alike], b[alike]]), np.concatenate([b[alike], a[alike]])
    order = np.argsort(a, kind="stable")
    partners = np.split(b[order], np.cumsum(np.bincount(a, minlength=len(areas)))[:-1])
    scores = np.concatenate([t.scores for t in tiles])
    leader = np.full(len(areas), -1, np.int64)
    for k in np.lexsort((np.arange(len(scores)), -scores)):
        if leader[k] < 0:
            leader[k] = k
            free = partners[k][leader[partners[k]] < 0]
            leader[free] = k
    return leader


def _facing(a: Runs, b: Runs, window: Window) -> Ints:
    """Return (L, 2) masks of two tiles that lie on both sides of a border, their end pixels on it left out."""
    both = masks.labels_from_runs(a, window=window) + np.where(
        (other := masks.labels_from_runs(b, window=window)) > 0, other, 0
    )
    lines = both.T if window.width == 2 else both
    shrunk = []
    for line in lines:
        inner = np.zeros_like(line)
        same = (line[1:-1] == line[:-2]) & (line[1:-1] == line[2:])
        inner[1:-1][same] = line[1:-1][same]
        shrunk.append(inner.astype(np.int64))
    meet = (shrunk[0] > 0) & (shrunk[1] > 0)
    keys = np.unique(shrunk[0][meet] << 32 | shrunk[1][meet])
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1) - 1
