"""What the log of a table says of files: which are live, which were, and since when they are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from segworker.errors import StoreError
from segworker.io.delta import live_files_of, open_table
from segworker.io.storage import Storage

LOG_FOLDER = "_delta_log"
MAX_THREADS = 16


@dataclass(frozen=True, slots=True)
class History:
    """The files of a table's readable versions."""

    version: int
    "The newest one."
    live: frozenset[str]
    "Files of the newest version, relative to the table's folder."
    named: frozenset[str]
    "Files that some entry of the log adds or removes; those of versions older than the log (30 days) are not known."
    removed_ms: dict[str, int]
    "Files of older versions alone: when they were removed, milliseconds since the epoch."


def read_history(storage: Storage, table: str) -> History | None:
    """Return the history of a table's files, or None where there is no table.

    A file that a commit adds after this call began may be missing.
    """
    named: set[str] = set()
    removed: dict[str, int] = {}
    for action, path, time_ms in _actions(storage, f"{table}/{LOG_FOLDER}"):
        named.add(path)
        if action == "remove":
            removed[path] = max(time_ms, removed.get(path, 0))
    opened = open_table(storage, table)
    if opened is None:
        return None
    live = frozenset(file.path for file in live_files_of(opened))
    gone = {path: time_ms for path, time_ms in removed.items() if path not in live}
    return History(int(opened.version()), live, frozenset(named) | live, gone)


def _actions(storage: Storage, folder: str) -> Iterator[tuple[str, str, int]]:
    """Yield ('add' or 'remove', path, time of the removal) for every file that the log's entries name."""
    names = (info.path for info in storage.list(folder))
    entries = [name for name in names if name.endswith(".json") and name.rpartition("/")[2][:-5].isdecimal()]
    with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="log") as pool:
        for name, content in zip(entries, pool.map(storage.read, entries), strict=True):
            for line in content.splitlines():
                yield from _of_line(line, storage.location(name))


def _of_line(line: bytes, location: str) -> Iterator[tuple[str, str, int]]:
    try:
        entry: dict[str, Any] = json.loads(line) if line.strip() else {}
        for action in ("add", "remove"):
            if action in entry:
                yield action, unquote(entry[action]["path"]), int(entry[action].get("deletionTimestamp") or 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"an entry of a Delta log is lines of JSON, got {error!r} in {location}; restore it") from None
