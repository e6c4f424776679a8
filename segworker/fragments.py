"""Fragments: the connected parts of a tile's instances inside a strip that its neighbour sees, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segworker.jit import kernel
from segworker.masks import I32, I64, corners, find_root, unite
from segworker.types import Instances, Window

AREA, TRUSTED, TOTAL, PLACE, CLASS = 0, 1, 2, 3, 4
"Columns of `Fragments.facts`."

RunTable = tuple[I64, I32, I32, I32]
"First run of each strip row, then start, stop and fragment of each run, by row and start."


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """The connected parts of one tile's instances inside a strip."""

    instance: I64
    "(F,) index of the instance in its tile."
    facts: I64
    """(F, 5): pixels in the whole strip, in its trusted middle, and of the whole instance in its window; the place of
    the first pixel in the strip; the class."""
    runs: RunTable

    def __len__(self) -> int:
        return len(self.instance)


def fragments(instances: Instances, strip: Window, trusted: Window) -> Fragments:
    """Return the 8-connected parts of each instance inside a strip, ordered by instance and first pixel."""
    runs = instances.runs
    return Fragments(
        *find_fragments(
            runs.rows,
            runs.starts,
            runs.stops,
            runs.offsets,
            instances.boxes_xyxy,
            instances.class_ids,
            np.stack([corners(strip), corners(trusted)]),
        )
    )


@kernel
def find_fragments(
    rows: I32, starts: I32, stops: I32, offsets: I64, boxes: I32, class_ids: I32, zones: I64
) -> tuple[I64, I64, RunTable]:
    """Return the fields of `Fragments`; `zones` are the corners of the strip and of its trusted middle."""
    zone, trusted = zones[0], zones[1]
    near = _touching(boxes, zone)
    capacity = np.int64(0)
    for i in near:
        capacity += offsets[i + 1] - offsets[i]
    parent = np.arange(capacity)
    owner = np.empty(capacity, np.int64)
    data = np.empty((3, capacity), np.int32)
    key = np.empty(capacity, np.int64)
    total = np.zeros(len(near), np.int64)
    n = 0
    for at in range(len(near)):
        upper = n
        for k in range(offsets[near[at]], offsets[near[at] + 1]):
            total[at] += stops[k] - starts[k]
            if not (zone[1] <= rows[k] < zone[3] and starts[k] < zone[2] and stops[k] > zone[0]):
                continue
            y, begin, end = rows[k], max(np.int64(starts[k]), zone[0]), min(np.int64(stops[k]), zone[2])
            data[0, n], data[1, n], data[2, n] = y, begin, end
            key[n] = (np.int64(y) << 32) + begin
            owner[n] = at
            while upper < n and (data[0, upper] < y - 1 or (data[0, upper] == y - 1 and data[2, upper] < begin)):
                upper += 1
            j = upper
            while j < n and data[0, j] == y - 1 and data[1, j] <= end:
                unite(parent, j, n)
                j += 1
            n += 1
    fragment = np.empty(n, np.int32)
    instance = np.empty(n, np.int64)
    facts = np.zeros((n, 5), np.int64)
    num = 0
    for k in range(n):
        root = find_root(parent, k)
        if root == k:
            fragment[k] = num
            instance[num] = near[owner[k]]
            facts[num, TOTAL], facts[num, PLACE] = total[owner[k]], key[k]
            facts[num, CLASS] = class_ids[near[owner[k]]]
            num += 1
        else:
            fragment[k] = fragment[root]
        f = fragment[k]
        facts[f, AREA] += data[2, k] - data[1, k]
        if trusted[1] <= data[0, k] < trusted[3]:
            facts[f, TRUSTED] += max(0, min(np.int64(data[2, k]), trusted[2]) - max(np.int64(data[1, k]), trusted[0]))
    return instance[:num].copy(), facts[:num].copy(), _by_row(data[:, :n], fragment, zone)


@kernel
def _by_row(data: I32, fragment: I32, zone: I64) -> RunTable:
    """Return (first run of each row, starts, stops, fragments) by row and start."""
    first = np.zeros(zone[3] - zone[1] + 1, np.int64)
    for k in range(len(fragment)):
        first[data[0, k] - zone[1] + 1] += 1
    for y in range(len(first) - 1):
        first[y + 1] += first[y]
    cursor = first[:-1].copy()
    starts = np.empty(len(fragment), np.int32)
    stops = np.empty(len(fragment), np.int32)
    who = np.empty(len(fragment), np.int32)
    for k in range(len(fragment)):
        y = data[0, k] - zone[1]
        starts[cursor[y]], stops[cursor[y]], who[cursor[y]] = data[1, k], data[2, k], fragment[k]
        cursor[y] += 1
    for y in range(len(first) - 1):
        begin, end = first[y], first[y + 1]
        ordered = True
        for k in range(begin + 1, end):
            if starts[k] < starts[k - 1]:
                ordered = False
        if not ordered:
            order = begin + np.argsort(starts[begin:end], kind="mergesort")
            starts[begin:end], stops[begin:end], who[begin:end] = starts[order], stops[order], who[order]
    return first, starts, stops, who


@kernel
def _touching(boxes: I32, zone: I64) -> I64:
    """Return the instances whose boxes meet a zone."""
    found = np.empty(len(boxes), np.int64)
    n = 0
    if zone[0] < zone[2] and zone[1] < zone[3]:
        for i in range(len(boxes)):
            if boxes[i, 0] < zone[2] and boxes[i, 2] > zone[0] and boxes[i, 1] < zone[3] and boxes[i, 3] > zone[1]:
                found[n] = i
                n += 1
    return found[:n]


@kernel
def runs_by_fragment(first: I64, who: I32, num: int) -> tuple[I64, I64, I64]:
    """Return (begin of each fragment's stretch in the order, strip row of each run, order of runs by fragment)."""
    begins = np.zeros(num + 1, np.int64)
    for k in range(len(who)):
        begins[who[k] + 1] += 1
    for f in range(num):
        begins[f + 1] += begins[f]
    cursor = begins[:-1].copy()
    rows, order = np.empty(len(who), np.int64), np.empty(len(who), np.int64)
    for y in range(len(first) - 1):
        for k in range(first[y], first[y + 1]):
            rows[k] = y
            order[cursor[who[k]]] = k
            cursor[who[k]] += 1
    return begins, rows, order
