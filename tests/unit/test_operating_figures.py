"""Rates, hours and costs of a run, and what it tells Prometheus."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import ray.util.metrics

from segworker.config_load import from_flat
from segworker.config_values import Price
from segworker.engine import metrics
from segworker.engine.account import Account
from segworker.engine.cluster import Workers
from segworker.engine.metrics import METRICS, Meter, published
from segworker.engine.throughput import throughput
from segworker.errors import ConfigError
from segworker.types import Scene

UTM_WKT = "EPSG:32636"


def job_of(**options) -> SimpleNamespace:
    """Return what throughput looks at of a job: a square kilometre and a square millimetre."""
    scenes = {
        "map": Scene("map", "", 2000, 2000, 1, "uint8", UTM_WKT, (0.5, 0, 500_000, 0, -0.5, 100_000)),
        "slide": Scene("slide", "", 2000, 2000, 1, "uint8", pixel_size_um=0.5),
    }
    grids = {name: SimpleNamespace(width=2000, height=2000) for name in scenes}
    return SimpleNamespace(scenes=scenes, grids=grids, config=from_flat(**options))


def account_of(*, seconds: float, workers: int, gpus_each: float) -> Account:
    account = Account(seconds={"total": seconds, "predict": seconds / 2})
    account.tiles["done"] = 900
    account.workers = Workers(workers, 1.0, gpus_each, 1, "cuda" if gpus_each else "cpu", "fp32")
    return account


def test_rates_hours_and_cost() -> None:
    figures = throughput(job_of(price="2.50EUR"), account_of(seconds=1800, workers=4, gpus_each=0.5))
    assert figures["tiles_per_s"] == 1.0
    assert figures["mpx_per_s"] == pytest.approx(8 / 1800, abs=1e-3)
    assert figures["km2"] == pytest.approx(1, rel=2e-3)
    assert figures["km2_per_h"] == pytest.approx(2, rel=2e-3)
    assert figures["mm2_per_h"] == pytest.approx(2)
    assert (figures["predictor_hours"], figures["gpu_hours"]) == (2.0, 1.0)
    assert (figures["cost"], figures["currency"]) == (5.0, "EUR")
    assert figures["cost_per_1000_km2"] == pytest.approx(5000, rel=2e-3)


def test_without_a_price_there_is_no_cost() -> None:
    figures = throughput(job_of(), account_of(seconds=3600, workers=1, gpus_each=0))
    assert (figures["cost"], figures["currency"], figures["cost_per_1000_km2"]) == (None, None, None)
    assert figures["gpu_hours"] == 0


def test_a_price_has_a_currency() -> None:
    assert str(Price.parse("1.20 eur")) == "1.2EUR"
    for text, words in (
        ("1.20", "has a currency"),
        ("cheap", "an amount"),
        ("-1EUR", "an amount"),
        (True, "an amount"),
    ):
        with pytest.raises(ConfigError, match=f"price.*{words}"):
            from_flat(price=text)


class Recorded:
    """A metric that keeps what it was told."""

    told: dict[tuple[str, str], float] = {}  # noqa: RUF012 - of one test

    def __init__(self, name: str, *, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self.name, self.tag_keys = name, tag_keys

    def inc(self, value: float, tags: dict[str, str] | None) -> None:
        assert set(tags or {}) == set(self.tag_keys)
        key = (self.name, *(tags or {}).values())
        self.told[key] = self.told.get(key, 0) + value

    def set(self, value: float) -> None:
        self.told[self.name,] = value


def test_a_run_counts_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    Meter().block(done=1, skipped=0, reused=0, instances=0, bytes_read=0, seconds={})  # without a Ray: nothing
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(metrics, "ray_metrics", SimpleNamespace(Counter=Recorded, Gauge=Recorded))
    monkeypatch.setattr(Recorded, "told", {})
    meter = Meter()
    meter.begin(tiles_per_batch=4, num_predictors=2)
    time.sleep(0.01)
    seconds = {"read": 1.0, "predict": 0.001}
    meter.block(done=6, skipped=2, reused=0, instances=50, bytes_read=1000, seconds=seconds)
    meter.block(done=4, skipped=0, reused=3, instances=10, bytes_read=500, seconds=seconds)
    meter.given_up(1)
    meter.stitched({"house": 40}, 0.9)
    told = Recorded.told
    assert told["segworker_tiles", "done"] == 10
    assert told["segworker_tiles", "failed"] == told["segworker_quarantined_tiles",] == 1
    assert told["segworker_stage_seconds", "read"] == 2
    assert told["segworker_batch_fill",] == pytest.approx(10 / 12)
    assert 0 < told["segworker_predictor_busy_share",] < 0.2
    assert {key[0] for key in told} == set(METRICS), "every metric is told"


def test_names_are_those_that_ray_allows() -> None:
    for name, metric in METRICS.items():
        kind = ray.util.metrics.Counter if metric.kind == "counter" else ray.util.metrics.Gauge
        kind(name, description=metric.text, tag_keys=metric.tags)
        assert published(name).startswith("ray_segworker_")
