"""Progress that a person can read: a line that renews itself on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Literal, Self, TextIO

EVERY_S = 0.5


class Progress:
    """Counts tiles and objects of one phase. Use it as a context manager."""

    def __init__(
        self, what: str, total: int, *, mode: Literal["auto", "on", "off"], stream: TextIO | None = None
    ) -> None:
        self.what, self.total = what, total
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.shown = mode == "on" or (mode == "auto" and self.live)
        self.done = self.num_objects = 0
        self.started = self.told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(end="\n")

    def add(self, tiles: int, num_objects: int = 0) -> None:
        """Count finished tiles, and show them now and then."""
        self.done += tiles
        self.num_objects += num_objects
        if time.monotonic() - self.told >= (EVERY_S if self.live else 30.0):
            self._show(end="" if self.live else "\n")

    def text(self) -> str:
        """Return the line: tiles, objects, rate, time left."""
        elapsed = max(1e-3, time.monotonic() - self.started)
        rate = self.done / elapsed
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        found = f", {self.num_objects:,} instances" if self.num_objects else ""
        return f"{self.what}: {self.done:,} of {self.total:,} tiles{found}, {rate:.1f} tiles/s{left}"

    def _show(self, *, end: str) -> None:
        self.told = time.monotonic()
        if self.shown:
            print(("\r\x1b[K" if self.live else "") + self.text(), end=end, file=self.stream, flush=True)
