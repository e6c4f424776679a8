"""Large runs, each with a Ray of its own: memory does not grow with the scene, and slow stages hold back fast ones."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from segworker import blocks
from segworker.synthetic.paint import write_raster
from segworker.synthetic.town import Town
from tests.benchmarks.memory_watch import MemoryWatch
from tests.painted import features, segment

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 100_000_000


@pytest.fixture
def own_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local Ray with a small object store."""
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=4, object_store_memory=STORE_BYTES, **quiet)
    yield
    ray.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray drops its daemons without waiting for them
        gc.collect()


class StoreWatch(threading.Thread):
    """Notes the most that Ray's object store held, and what it had to spill."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.state = get_state_from_address(ray.get_runtime_context().gcs_address)
        self.peak_bytes = self.spilled_bytes = self.num_samples = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            stats = get_memory_info_reply(self.state).store_stats
            self.peak_bytes = max(self.peak_bytes, stats.object_store_bytes_used)
            self.spilled_bytes = stats.spilled_bytes_total
            self.num_samples += 1


@pytest.mark.usefixtures("own_ray")
def test_a_slow_model_holds_back_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many pixels as the object store holds wait for a model; none of them is spilled to disk."""
    monkeypatch.setattr(blocks, "BLOCK_SIDE_PX", 1024)
    path = write_raster(tmp_path / "wide.tif", np.full((3, 8192, 16_384), 7, np.uint8), block_px=512)
    watch = StoreWatch()
    watch.start()
    model = {"model": "tests.models_for_tests:slow", "model_options": {"seconds": 0.1}}
    summary = segment(tmp_path / "store", path, tile=512, overlap=0, workers=1, **model)
    watch.over.set()
    watch.join()
    assert summary.exit_code == 0, summary.text
    assert summary.record["counts"]["bytes_read"] > 4 * STORE_BYTES
    assert summary.record["counts"]["tiles_predicted"] == 16 * 32
    assert watch.num_samples > 50
    assert 0 < watch.peak_bytes < 0.9 * STORE_BYTES
    assert watch.spilled_bytes == 0


def test_a_town_of_32k_in_bounded_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of a thousand tiles among half a million objects: all found, each process below 3 GB."""
    town = Town(32_768, cell_px=42, period_cells=96)
    scene = town.paint(tmp_path / "town")
    model = {"model": "segworker.synthetic.models:perfect_single", "model_options": {"parts": "several"}}
    with MemoryWatch() as watch:
        summary = segment(tmp_path / "store", scene, tile=1024, overlap=128, address="local", **model)
    with capsys.disabled():
        print("\n" + watch.table())
    assert summary.exit_code == 0, summary.text
    rows = features(tmp_path / "store", columns=["feature_id", "area_px", "num_tiles"])
    assert len(rows) == town.count_blobs() + town.num_networks
    assert np.sum(rows["area_px"].to_numpy()) == sum(int((labels > 0).sum()) * n for labels, n in town.pictures())
    assert rows["num_tiles"].to_numpy().max() > 900
    assert watch.worst < 3e9
