"""What each process below this one holds for itself, sampled while something runs. Linux only.

USS is what would be free if a process ended: its private pages, from /proc/PID/smaps_rollup, as psutil counts it.
Ray's object store is a file in memory that every worker maps: pages that one process alone has touched count as
private, although they are the store's. So they are told apart: `own` is USS without what lies in shared memory, and the
object store is measured once, by what its file system holds.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

INTERVAL_S = 0.5
KINDS = {"raylet": "raylet", "gcs_server": "gcs"}


@dataclass(slots=True)
class Peak:
    """Of one kind of process: the most that one of them held, and the most of all of them together."""

    own_bytes: int = 0
    uss_bytes: int = 0
    together_bytes: int = 0


@dataclass(slots=True)
class MemoryWatch:
    """Sample in a thread while the `with` block runs."""

    interval_s: float = INTERVAL_S
    peaks: dict[str, Peak] = field(default_factory=dict)
    "By kind: 'driver', 'raylet', 'gcs', 'ray other', or a task's name."
    store_bytes: int = 0
    "The object store's most."
    num_samples: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _shared_before: int = 0

    def __enter__(self) -> Self:
        self._shared_before = shared_bytes()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    @property
    def worst(self) -> int:
        """The most that any process held for itself, whatever its kind."""
        return max(p.own_bytes for p in self.peaks.values())

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self.interval_s)

    def sample(self) -> None:
        """Look once at every process."""
        together: dict[str, int] = {}
        for pid in family(os.getpid()):
            found = memory_of(pid)
            if found is None:
                continue
            kind = "driver" if pid == os.getpid() else kind_of(pid)
            uss, own = found
            peak = self.peaks.setdefault(kind, Peak())
            peak.own_bytes, peak.uss_bytes = max(peak.own_bytes, own), max(peak.uss_bytes, uss)
            together[kind] = together.get(kind, 0) + own
        for kind, total in together.items():
            self.peaks[kind].together_bytes = max(self.peaks[kind].together_bytes, total)
        self.store_bytes = max(self.store_bytes, shared_bytes() - self._shared_before)
        self.num_samples += 1

    def table(self) -> str:
        """Return the peaks as rows of a table."""
        mb = 1e6
        rows = ["| process | own MB, the largest | USS MB | own MB, all of a kind |", "|---|---|---|---|"]
        for kind, peak in sorted(self.peaks.items(), key=lambda item: -item[1].own_bytes):
            rows.append(
                f"| {kind} | {peak.own_bytes / mb:.0f} | {peak.uss_bytes / mb:.0f} | {peak.together_bytes / mb:.0f} |"
            )
        return "\n".join([*rows, f"| object store | {self.store_bytes / mb:.0f} | | |"])


def family(root: int) -> set[int]:
    """Return a process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    own = {root}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return own


def memory_of(pid: int) -> tuple[int, int] | None:
    """Return (USS, USS without shared memory) in bytes; None where the process has ended."""
    try:
        rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
        status = _kilobytes(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    if "Private_Dirty" not in rollup:
        return None
    uss = rollup["Private_Clean"] + rollup["Private_Dirty"]
    shared_memory = min(status.get("RssShmem", 0), max(0, uss - status.get("RssAnon", 0)))
    return 1024 * uss, 1024 * (uss - shared_memory)


def _kilobytes(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in pairs if len(words) == 3 and words[2] == "kB"}


def kind_of(pid: int) -> str:
    """Return what a process does: Ray's workers are called after their task."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended"
    if command.startswith("ray::"):
        return command.removeprefix("ray::").split("(", 1)[0].split(".", 1)[0].strip() or "worker"
    name = Path(command.split(" ", 1)[0]).name
    return KINDS.get(name, "ray other" if "ray" in command else f"other: {command[:60]}")


def shared_bytes() -> int:
    """Return what lies in shared memory, where Ray keeps its object store."""
    return shutil.disk_usage("/dev/shm").used


def wait_until(condition, timeout_s: float = 60.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)
