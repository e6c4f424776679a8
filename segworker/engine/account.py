"""What a run counts and times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from segworker.engine.cluster import Workers
from segworker.engine.metrics import Meter
from segworker.engine.tiles import BlockReceipt, TileFailure


@dataclass(slots=True)
class Account:
    """What a run counted and timed."""

    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    tiles: Counter[str] = field(default_factory=Counter)
    "done, skipped, failed, reused; and halved, calls of the model that did not fit into memory."
    instances: int = 0
    bytes_read: int = 0
    failures: list[TileFailure] = field(default_factory=list)
    workers: Workers | None = None
    "The predictors; None where there were none."
    stitched_from: str | None = None
    "The run whose tile results were stitched again."
    retry_of: str | None = None
    "The run of which what had failed was tried again."
    meter: Meter = field(default_factory=Meter)
    "Tells Prometheus of it meanwhile."

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note the seconds that a step takes."""
        begin = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - begin

    def add(self, receipt: BlockReceipt) -> None:
        """Add one block's receipt; its failures may still be mended."""
        self.tiles.update(done=receipt.num_done, skipped=receipt.num_skipped, reused=receipt.num_reused)
        self.tiles.update(halved=receipt.num_halved)
        self.stage_seconds.update(receipt.seconds)
        self.instances += receipt.num_instances
        self.bytes_read += receipt.bytes_read
        self.meter.block(
            done=receipt.num_done,
            skipped=receipt.num_skipped,
            reused=receipt.num_reused,
            instances=receipt.num_instances,
            bytes_read=receipt.bytes_read,
            seconds=receipt.seconds,
        )

    def fail(self, failures: Iterable[TileFailure]) -> None:
        """Add tiles that are given up."""
        failures = list(failures)
        self.failures += failures
        self.tiles["failed"] += len(failures)
        self.meter.given_up(len(failures))
