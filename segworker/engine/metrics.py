"""What a run tells Prometheus while it works, through Ray's agents.

The driver alone counts, from the receipts of finished blocks. Ray publishes a metric as `ray_NAME`, and counters with
`_total` behind that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util import metrics as ray_metrics


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    kind: Literal["counter", "gauge"]
    text: str
    tags: tuple[str, ...] = ()


METRICS = {
    "segworker_tiles": Metric("counter", "Tiles, by what became of them.", ("state",)),
    "segworker_instances": Metric("counter", "Instances that tiles saw."),
    "segworker_objects": Metric("counter", "Finished objects, by class.", ("class_name",)),
    "segworker_bytes_read": Metric("counter", "Bytes of pixels that were read."),
    "segworker_stage_seconds": Metric("counter", "Seconds of work, by stage.", ("stage",)),
    "segworker_quarantined_tiles": Metric("counter", "Tiles that were given up."),
    "segworker_batch_fill": Metric("gauge", "Share of the model's batches that is filled with tiles, 0 to 1."),
    "segworker_predictor_busy_share": Metric(
        "gauge", "Share of the time that the processes that hold the model (a GPU each) spend predicting, 0 to 1."
    ),
    "segworker_seam_agreement": Metric("gauge", "Share of what two tiles saw on which they agree, of the last run."),
}
"Metrics by name."


def published(name: str) -> str:
    """Return a metric's name in Prometheus."""
    return f"ray_{name}_total" if METRICS[name].kind == "counter" else f"ray_{name}"


@dataclass(slots=True)
class Meter:
    """The metrics of a run. Without a Ray in this process it counts nothing."""

    tiles_per_batch: int = 1
    num_predictors: int = 1
    _started: float = field(default_factory=time.perf_counter)
    _predict_s: float = 0.0
    _filled: int = 0
    _places: int = 0
    _known: dict[str, Any] = field(default_factory=dict)

    def block(
        self, *, done: int, skipped: int, reused: int, instances: int, bytes_read: int, seconds: Mapping[str, float]
    ) -> None:
        """Count a finished block."""
        for state, count in (("done", done), ("skipped", skipped), ("reused", reused)):
            self._add("segworker_tiles", count, state=state)
        self._add("segworker_instances", instances)
        self._add("segworker_bytes_read", bytes_read)
        for stage, value in seconds.items():
            self._add("segworker_stage_seconds", value, stage=stage)
        if not done:
            return
        self._predict_s += seconds.get("predict", 0.0)
        self._filled += done
        self._places += math.ceil(done / self.tiles_per_batch) * self.tiles_per_batch
        available = max(1e-9, time.perf_counter() - self._started) * self.num_predictors
        self._set("segworker_batch_fill", self._filled / self._places)
        self._set("segworker_predictor_busy_share", min(1.0, self._predict_s / available))

    def begin(self, *, tiles_per_batch: int, num_predictors: int) -> None:
        """Say that prediction begins, and with what."""
        self.tiles_per_batch, self.num_predictors = max(1, tiles_per_batch), max(1, num_predictors)
        self._started = time.perf_counter()

    def given_up(self, count: int) -> None:
        """Count tiles that failed for good."""
        self._add("segworker_quarantined_tiles", count)
        self._add("segworker_tiles", count, state="failed")

    def stitched(self, objects: Mapping[str, int], agreement: float | None) -> None:
        """Count finished objects by class, and tell how far tiles agreed."""
        for class_name, count in objects.items():
            self._add("segworker_objects", count, class_name=class_name)
        if agreement is not None:
            self._set("segworker_seam_agreement", agreement)

    def _add(self, name: str, value: float, **tags: str) -> None:
        metric = self._metric(name)
        if metric is not None and value > 0:
            metric.inc(value, tags=tags or None)

    def _set(self, name: str, value: float) -> None:
        metric = self._metric(name)
        if metric is not None:
            metric.set(value)

    def _metric(self, name: str) -> Any:  # noqa: ANN401 - a Counter or a Gauge
        if not ray.is_initialized():
            return None
        if name not in self._known:
            told = METRICS[name]
            kind = ray_metrics.Counter if told.kind == "counter" else ray_metrics.Gauge
            self._known[name] = kind(name, description=told.text, tag_keys=told.tags)
        return self._known[name]
