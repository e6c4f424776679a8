"""Scene numbers and feature ids: 21 bits of scene and 32 bits of index, below 2^53 so that JSON tools keep them.

A scene's number is its place in the store's ledger: a chain of immutable segments `ids/<k>.json.gz`, each the list of
the scene ids that one reservation added. A segment is created by a conditional put under the next free k, so that of
two runs reserving at once one gets k and the other reads it and goes on to k + 1. 5,000 new scenes are one segment.
Every 64th segment repeats all scene ids before it: a reader fetches 64 objects at most.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segworker.errors import StoreError
from segworker.io.storage import Storage

LEDGER = "ids"
SCENE_BITS = 21
INDEX_BITS = 32
MAX_SCENES = 1 << SCENE_BITS
MAX_FEATURES_PER_SCENE = 1 << INDEX_BITS
SNAPSHOT_EVERY = 64


def feature_ids(scene_no: int, indices: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the ids of a scene's features.

    Args:
        scene_no: 0 to 2^21 - 1.
        indices: (N,) 0 to 2^32 - 1, in the scene.
    """
    if scene_no < 0 or scene_no >= MAX_SCENES:
        raise StoreError(f"a scene number is 0 to {MAX_SCENES - 1}, got {scene_no}; this is a bug, report it")
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= MAX_FEATURES_PER_SCENE):
        raise StoreError(
            f"a scene has at most {MAX_FEATURES_PER_SCENE} features, got index {int(indices.max())}; split the scene"
        )
    return np.int64(scene_no << INDEX_BITS) + indices.astype(np.int64)


def scene_numbers_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the scene number of each feature id."""
    return ids >> np.int64(INDEX_BITS)


def read_scene_numbers(storage: Storage) -> dict[str, int]:
    """Return every scene number that the store has given away, by scene_id."""
    return _read(storage).numbers


def reserve_scene_numbers(storage: Storage, scene_ids: Iterable[str]) -> dict[str, int]:
    """Return the number of each scene, reserving numbers for those that the store does not know yet.

    A scene keeps its number for the life of the store, whether or not a run that reserved it ever commits.

    Args:
        storage: the store's root.
        scene_ids: in any order; new ones are numbered in this order.

    Raises:
        StoreError: when the store would exceed 2^21 scenes.
        StorageError: when it cannot be read or written.
    """
    wanted = list(dict.fromkeys(scene_ids))
    ledger = _read(storage)
    while True:
        new = [scene_id for scene_id in wanted if scene_id not in ledger.numbers]
        if not new:
            return {scene_id: ledger.numbers[scene_id] for scene_id in wanted}
        total = len(ledger.numbers) + len(new)
        if total > MAX_SCENES:
            raise StoreError(
                f"a store holds at most {MAX_SCENES} scenes, got {len(ledger.numbers)} and {len(new)} new ones; "
                "write the new ones to another store"
            )
        snapshot = ledger.num_segments % SNAPSHOT_EVERY == 0
        listed = [*ledger.numbers, *new] if snapshot else new
        body = _encode(0 if snapshot else len(ledger.numbers), listed)
        storage.write_new(_segment_path(ledger.num_segments), body)
        ledger = _read(storage, ledger)


def format_ranges(numbers: NDArray[np.int64]) -> str:
    """Return sorted numbers as '0-4999,5003'."""
    if not len(numbers):
        return ""
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    firsts, lasts = numbers[np.r_[0, breaks + 1]], numbers[np.r_[breaks, len(numbers) - 1]]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def parse_ranges(text: str) -> NDArray[np.int64]:
    """Return the numbers that `format_ranges` wrote."""
    spans = [tuple(map(int, (span.split("-") * 2)[:2])) for span in text.split(",") if span]
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(first, last + 1) for first, last in spans)])


@dataclass(frozen=True, slots=True)
class _Ledger:
    """What a chain of segments says."""

    num_segments: int
    numbers: dict[str, int]
    "In the order of the numbers, which are 0 to N - 1."


def _read(storage: Storage, known: _Ledger | None = None) -> _Ledger:
    """Read the chain from its newest snapshot on, or from where `known` ends."""
    num_segments = max((_segment_number(info.path) for info in storage.list(LEDGER)), default=-1) + 1
    start = max(0, num_segments - 1) // SNAPSHOT_EVERY * SNAPSHOT_EVERY
    numbers: dict[str, int] = {}
    if known and known.num_segments >= start:
        start, numbers = known.num_segments, dict(known.numbers)
    for k in range(start, num_segments):
        segment = _decode(storage, _segment_path(k))
        first, scene_ids = segment["first"], segment["scene_ids"]
        if first > len(numbers):
            raise StoreError(
                f"{storage.location(_segment_path(k))} must go on at number {len(numbers)}, got {first}; "
                "the ledger of scene numbers is damaged, restore the folder ids/"
            )
        numbers |= {scene_id: first + i for i, scene_id in enumerate(scene_ids)}
    return _Ledger(num_segments, numbers)


def _segment_path(k: int) -> str:
    return f"{LEDGER}/{k:08d}.json.gz"


def _segment_number(path: str) -> int:
    name = path.rpartition("/")[2].removesuffix(".json.gz")
    return int(name) if name.isdecimal() else -1


def _encode(first: int, scene_ids: list[str]) -> bytes:
    return gzip.compress(json.dumps({"first": first, "scene_ids": scene_ids}).encode(), mtime=0)


def _decode(storage: Storage, path: str) -> dict[str, Any]:
    try:
        segment: dict[str, Any] = json.loads(gzip.decompress(storage.read(path)))
    except (OSError, EOFError, ValueError) as error:
        raise StoreError(
            f"{storage.location(path)} must be a segment of the ledger of scene numbers, got {error}; "
            "restore the folder ids/"
        ) from None
    return segment
