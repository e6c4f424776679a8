"""What a run counts and times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from segworker.engine.tiles import BlockReceipt, TileFailure


@dataclass(slots=True)
class Account:
    """What a run counted and timed."""

    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    tiles: Counter[str] = field(default_factory=Counter)
    "done, skipped, failed, reused."
    instances: int = 0
    bytes_read: int = 0
    failures: list[TileFailure] = field(default_factory=list)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note the seconds that a step takes."""
        begin = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - begin

    def add(self, receipt: BlockReceipt) -> None:
        """Add one block's receipt."""
        self.tiles.update(done=receipt.num_done, skipped=receipt.num_skipped, failed=len(receipt.failures))
        self.stage_seconds.update(receipt.seconds)
        self.instances += receipt.num_instances
        self.bytes_read += receipt.bytes_read
        self.failures += receipt.failures
