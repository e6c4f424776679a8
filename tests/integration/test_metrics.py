"""What Prometheus would read off a node while runs are at work."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from segworker.engine.metrics import METRICS, published
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.painted import segment


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_run_is_seen_on_its_node(tmp_path: Path) -> None:
    paint_scene(make_scene("nuclei", (300, 280), 1), tmp_path / "a.tif")
    summary = segment(tmp_path / "store", tmp_path / "a.tif", tile=128, overlap=32)
    found = scraped()
    tiles = {labels["state"]: value for labels, value in found["ray_segworker_tiles_total"]}
    assert tiles["done"] >= summary.record["counts"]["tiles_predicted"]
    assert {labels["stage"] for labels, _ in found["ray_segworker_stage_seconds_total"]} >= {"read", "predict"}
    assert found["ray_segworker_batch_fill"][0][1] > 0
    assert found["ray_segworker_seam_agreement"][0][1] == pytest.approx(summary.record["seams"]["agreement"], abs=1e-3)


def scraped(*, timeout_s: float = 60) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return segworker's metrics of this node by name, once all that a run without failures has are published."""
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {published(name) for name in METRICS} - {"ray_segworker_quarantined_tiles_total"}
    deadline = time.monotonic() + timeout_s
    while True:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for sample in (sample for family in families for sample in family.samples):
            if sample.name.startswith("ray_segworker_"):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        if wanted <= found.keys():
            return found
        assert time.monotonic() < deadline, f"missing: {sorted(wanted - found.keys())}"
        time.sleep(1)
