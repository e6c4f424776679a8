"""What is known of components: integer sums and extremes that add up in any order, and the total order they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segworker.grid import Grid
from segworker.jit import kernel
from segworker.masks import I32, I64, Int, corners, run_fingerprint
from segworker.types import Instances

SCORE_ONE = 1 << 20
"Scores are summed as integers of this many parts."
MAX_INSTANCES = 1 << 20
"Instances a tile can hold: a node is tile number times this plus the instance's index."
NOWHERE = 2**62
"First pixel of a component without core pixels."

NUM_COLUMNS = 14
AREA, WEIGHT, SCORE, PRINT, MEMBERS = 0, 1, 2, 3, 13
"Sums: core pixels before exclusivity; all members' pixels; those times score in 1 / SCORE_ONE; fingerprint; members."
FIRST, NODE, LEFT, TOP, RIGHT, BOTTOM = 4, 5, 6, 7, 8, 9
"Extremes: first core pixel (row << 32 | column), least node, box of all members (half-open)."
VIEW_TILE, VIEW_CORE, VIEW_PX = 10, 11, 12
"The member with most pixels in its tile's core: that tile's number, those pixels, and all pixels of the member."

TileKey = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What is known of N components."""

    table: I64
    "(N, NUM_COLUMNS)."
    classes: I64
    "(K, 3) component, class id, pixels of the members that voted for it; sorted, one row for each pair."

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def of_instances(cls, tiles: Mapping[TileKey, Instances], component: I64, *, grid: Grid) -> Sums:
        """Return the sums of local components; `component` names that of each instance, tiles in row order."""
        num = int(component.max()) + 1 if len(component) else 0
        table = _blank(num)
        base = 0
        for key in sorted(tiles):
            tile, number = tiles[key], tile_number(grid, key)
            local = component[base : base + len(tile)]
            base += len(tile)
            scores = np.rint(tile.scores * float(SCORE_ONE)).astype(np.int64)
            runs = tile.runs
            place = np.array([number, number * MAX_INSTANCES], np.int64)
            _add_tile(
                table,
                local,
                runs.rows,
                runs.starts,
                runs.stops,
                runs.offsets,
                tile.boxes_xyxy,
                scores,
                corners(tile.tile.core),
                place,
            )
        class_ids = np.concatenate([np.zeros(0, np.int32), *(tiles[k].class_ids for k in sorted(tiles))])
        pixels = np.concatenate([np.zeros(0, np.int64), *(_areas(tiles[k]) for k in sorted(tiles))])
        return cls(table, _add_classes(component, class_ids.astype(np.int64), pixels))

    @classmethod
    def merge(cls, parts: Sums, groups: I64, num_groups: int) -> Sums:
        """Return the sums of groups of components; those of one group come from different tiles."""
        table = _blank(num_groups)
        _add_rows(table, parts.table, groups)
        rows = parts.classes
        return cls(table, _add_classes(groups[rows[:, 0]], rows[:, 1], rows[:, 2]))

    def take(self, components: I64) -> Sums:
        """Return the sums of some components; `components` is sorted."""
        begins = np.searchsorted(self.classes[:, 0], components)
        counts = np.searchsorted(self.classes[:, 0], components, "right") - begins
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self.classes[np.repeat(begins, counts) + within]
        rows[:, 0] = np.repeat(np.arange(len(components)), counts)
        return Sums(self.table[components], rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Sums]) -> Sums:
        """Return all sums, one after the other."""
        bases = np.cumsum([0, *(len(p) for p in parts)])
        rows = [p.classes + np.array([base, 0, 0]) for base, p in zip(bases, parts, strict=False)]
        return cls(
            np.concatenate([_blank(0), *(p.table for p in parts)]),
            np.concatenate([np.zeros((0, 3), np.int64), *rows]),
        )

    def settle(self) -> Settled:
        """Return class and score of each component: the class with most pixels, ties to the lowest id."""
        component, class_ids = self.classes[:, 0], self.classes[:, 1].copy()
        if len(component) != len(self):  # some components have members of several classes
            order = np.lexsort((class_ids, -self.classes[:, 2], component))
            lead = np.ones(len(order), np.bool_)
            lead[1:] = component[order][1:] != component[order][:-1]
            class_ids = class_ids[order[lead]]
        return Settled(class_ids, self.table[:, SCORE] // np.maximum(self.table[:, WEIGHT], 1), self.table)


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """N features' class, score, and what else decides which pixels they get."""

    class_ids: I64
    score: I64
    "(N,) in 1 / SCORE_ONE."
    table: I64
    "(N, NUM_COLUMNS) as in `Sums`."

    def __len__(self) -> int:
        return len(self.score)

    def keys(self) -> I64:
        """Return the total order as rows to compare, (N, 6): higher score, larger, earlier first pixel, class.

        Two features that are alike in all of that are told apart by their fingerprint, and where they hold the very
        same pixels by a member's number: then it does not matter which one wins, as long as it does everywhere.
        """
        t = self.table
        return np.stack([-self.score, -t[:, AREA], t[:, FIRST], self.class_ids, t[:, PRINT], t[:, NODE]], axis=1)

    def take(self, indices: I64) -> Settled:
        """Return the features at `indices`."""
        return Settled(self.class_ids[indices], self.score[indices], self.table[indices])

    @classmethod
    def concatenate(cls, parts: Sequence[Settled]) -> Settled:
        """Return all features, one after the other."""
        return cls(
            np.concatenate([p.class_ids for p in parts]),
            np.concatenate([p.score for p in parts]),
            np.concatenate([p.table for p in parts]),
        )


def tile_number(grid: Grid, key: TileKey) -> int:
    """Return a tile's number in row order."""
    return key[0] * grid.shape_yx[1] + key[1]


def _blank(num: int) -> I64:
    table = np.zeros((num, NUM_COLUMNS), np.int64)
    table[:, [FIRST, NODE, LEFT, TOP]] = NOWHERE
    table[:, VIEW_TILE] = -1
    return table


def _areas(tile: Instances) -> I64:
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(tile.runs.stops - tile.runs.starts, dtype=np.int64)])
    return np.diff(sums[tile.runs.offsets])


def _add_classes(component: I64, class_ids: I64, pixels: I64) -> I64:
    """Sum the pixels of equal (component, class) rows."""
    mixed = len(class_ids) > 0 and bool((class_ids != class_ids[0]).any())
    order = np.lexsort((class_ids, component)) if mixed else np.argsort(component, kind="stable")
    component, class_ids = component[order], class_ids[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (component[1:] != component[:-1]) | (class_ids[1:] != class_ids[:-1])
    begins = np.flatnonzero(new)
    sums = np.add.reduceat(pixels[order], begins) if len(order) else pixels
    return np.stack([component[begins], class_ids[begins], sums], axis=1).astype(np.int64)


@kernel
def _add_tile(
    table: I64,
    local: I64,
    rows: I32,
    starts: I32,
    stops: I32,
    offsets: I64,
    boxes: I32,
    scores: I64,
    core: I64,
    place: I64,
) -> None:
    """Add one tile's instances to the sums of their components."""
    for i in range(len(local)):
        c = local[i]
        total, inside, mark = np.int64(0), np.int64(0), np.int64(0)
        first = np.int64(NOWHERE)
        for k in range(offsets[i], offsets[i + 1]):
            y, begin, end = np.int64(rows[k]), np.int64(starts[k]), np.int64(stops[k])
            total += end - begin
            begin, end = max(begin, core[0]), min(end, core[2])
            if core[1] <= y < core[3] and begin < end:
                if inside == 0:
                    first = (y << 32) + begin
                inside += end - begin
                mark += run_fingerprint(y, begin, end)
        row = table[c]
        row[AREA] += inside
        row[WEIGHT] += total
        row[SCORE] += total * scores[i]
        row[PRINT] += mark
        row[FIRST] = min(row[FIRST], first)
        row[NODE] = min(row[NODE], place[1] + i)
        row[LEFT], row[TOP] = min(row[LEFT], np.int64(boxes[i, 0])), min(row[TOP], np.int64(boxes[i, 1]))
        row[RIGHT], row[BOTTOM] = max(row[RIGHT], np.int64(boxes[i, 2])), max(row[BOTTOM], np.int64(boxes[i, 3]))
        row[MEMBERS] += 1
        _keep_view(row, place[0], inside, total)


@kernel
def _add_rows(table: I64, parts: I64, groups: I64) -> None:
    for k in range(len(parts)):
        part, row = parts[k], table[groups[k]]
        for c in (AREA, WEIGHT, SCORE, PRINT, MEMBERS):
            row[c] += part[c]
        for c in (FIRST, NODE, LEFT, TOP):
            row[c] = min(row[c], part[c])
        for c in (RIGHT, BOTTOM):
            row[c] = max(row[c], part[c])
        _keep_view(row, part[VIEW_TILE], part[VIEW_CORE], part[VIEW_PX])


@kernel
def _keep_view(row: I64, tile: Int, core_px: Int, px: Int) -> None:
    """Keep the better of two members: more core pixels, then more pixels, then the earlier tile."""
    if row[VIEW_TILE] >= 0:
        if core_px != row[VIEW_CORE]:
            if core_px < row[VIEW_CORE]:
                return
        elif px != row[VIEW_PX]:
            if px < row[VIEW_PX]:
                return
        elif tile > row[VIEW_TILE]:
            return
    row[VIEW_TILE], row[VIEW_CORE], row[VIEW_PX] = tile, core_px, px
