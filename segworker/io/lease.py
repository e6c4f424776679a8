"""Which runs are at work on a store: one small object for each, `running/<run_id>.json`, refreshed while it lives.

A run holds its lease before it writes anything else, so that what lies uncommitted in a store belongs either to a run
with a lease or to a dead one. On the machine (and in the container) where a run was started its process is looked up;
elsewhere it counts as dead when its lease was not refreshed for DEAD_AFTER_S. A run that ends without a commit leaves
its lease, marked as ended: the next one tidies up after it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segworker.errors import StorageError, StoreError
from segworker.io.storage import ObjectInfo, Storage

RUNNING = "running"
REFRESH_S = 60.0
DEAD_AFTER_S = 1200.0
"Above what clocks may differ by: S3 refuses requests of clocks that are 900 s off."


@dataclass(frozen=True, slots=True)
class Lease:
    """What a run that is at work (or died at it) says of itself."""

    run_id: str
    tile_key: str
    "Folder of the shards that it uses."
    place: str
    "The machine and process namespace that it was started in; '' where that is unknown."
    process: str
    "Process id and start time in that place."
    ended: bool
    "It ended, without a commit."
    refreshed_s: float
    "Seconds since the epoch, by the store's clock."

    def alive(self, now_s: float) -> bool:
        """Whether the run may still commit."""
        if self.ended:
            return False
        here = this_process()
        if self.place and here is not None and self.place == here[0]:
            return is_running(self.process)
        return now_s - self.refreshed_s < DEAD_AFTER_S


class Held:
    """A lease that this process holds."""

    def __init__(self, storage: Storage, run_id: str, tile_key: str) -> None:
        place, process = this_process() or ("", "")
        self._storage, self._path = storage, f"{RUNNING}/{run_id}.json"
        self._text: dict[str, Any] = {"tile_key": tile_key, "place": place, "process": process, "ended": False}

    def refresh(self, **changes: object) -> None:
        """Write the lease again."""
        self._storage.write(self._path, json.dumps(self._text | changes).encode())

    def confirm(self) -> None:
        """Refresh the lease right before a commit; StoreError where another run took this one for dead."""
        if self._storage.head(self._path) is None:
            raise StoreError(
                f"a run refreshes its lease every {REFRESH_S:.0f} s, got none in {self._storage.location(self._path)}: "
                "it stood still and was tidied up as dead; run the same command again, finished tiles are kept"
            )
        self.refresh()

    def release(self) -> None:
        """Remove the lease."""
        self._storage.delete([self._path])


@contextmanager
def held(storage: Storage, run_id: str, *, tile_key: str) -> Iterator[Held]:
    """Hold the lease of a run: removed at its end, marked as ended where it fails.

    Args:
        storage: the store's root.
        run_id: the run.
        tile_key: folder of its shards below work/.

    Raises:
        StorageError: where the store cannot be written to.
    """
    lease = Held(storage, run_id, tile_key)
    lease.refresh()
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=(lease, stop), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    except BaseException:
        _end(stop, thread)
        with suppress(StorageError):  # the store may be what failed
            lease.refresh(ended=True)
        raise
    _end(stop, thread)
    lease.release()


def list_leases(storage: Storage) -> list[Lease]:
    """Return the leases in a store, of living and of dead runs, by run id."""
    found = (_read(storage, info) for info in storage.list(RUNNING) if info.path.endswith(".json"))
    return sorted((lease for lease in found if lease is not None), key=lambda lease: lease.run_id)


def keys_in_use(storage: Storage, *, but: str = "") -> set[str]:
    """Return the tile keys of the runs at work, except those that only the run `but` uses."""
    now_s = time.time()
    return {lease.tile_key for lease in list_leases(storage) if lease.run_id != but and lease.alive(now_s)}


def _keep(lease: Held, stop: threading.Event) -> None:
    while not stop.wait(REFRESH_S):
        with suppress(StorageError):  # the next refresh may work; `confirm` is what decides
            lease.refresh()


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()


def _read(storage: Storage, info: ObjectInfo) -> Lease | None:
    """Return a lease; None where it went in the meantime. One that cannot be read counts by its age."""
    run_id = info.path.rpartition("/")[2].removesuffix(".json")
    try:
        text = json.loads(storage.read(info.path))
        told = {name: str(text[name]) for name in ("tile_key", "place", "process")}
        return Lease(run_id, **told, ended=bool(text["ended"]), refreshed_s=info.mtime_s)
    except StorageError:
        if storage.head(info.path) is None:
            return None
        raise
    except (ValueError, KeyError, TypeError):
        return Lease(run_id, "", "", "", ended=False, refreshed_s=info.mtime_s)


def this_process() -> tuple[str, str] | None:
    """Return (place, process) of this process, or None on systems without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    except OSError:
        return None
    pid = os.getpid()
    return f"{boot} {namespace}", f"{pid} {_started(pid)}"


def is_running(process: str) -> bool:
    """Whether a process of this machine, as `this_process` told of it, is still there."""
    pid, _, started = process.partition(" ")
    return pid.isdecimal() and _started(int(pid)) == started


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; '' where there is none, or only its unread exit code."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
