"""Scenes of many blocks: what meets in the driver is bounded, and neither workers nor order change a result."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from segworker import blocks
from segworker.engine import calls, harvest, phase2
from segworker.errors import SegworkerError, StorageError
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.town import Town
from tests.painted import assert_is_truth, features, segment

pytestmark = pytest.mark.usefixtures("local_ray")
SIZE_PX = 8192


@pytest.fixture
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small scenes be of many blocks and parts."""
    monkeypatch.setattr(blocks, "BLOCK_SIDE_PX", 512)
    monkeypatch.setattr(phase2, "PART_FEATURES", 8)


def shuffled(function, arguments, *, what: str, num_returns: int = 1) -> Iterator:
    """Call as `in_order` does, all at once and in any order."""
    every = list(arguments)
    order = list(range(len(every)))
    random.Random(7).shuffle(order)
    references = {k: function.remote(*every[k]) for k in order}
    return (calls._result(references[k], num_returns, what) for k in range(len(every)))


@pytest.mark.slow
@pytest.mark.usefixtures("_many_blocks")
def test_results_do_not_depend_on_workers_or_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene("roads", (1303, 1477), 3)
    path = paint_scene(scene, tmp_path / "roads.tif")
    tables = []
    for workers in (1, 2, 4):
        if workers > 1:
            predict = harvest.predict_blocks
            monkeypatch.setattr(phase2, "in_order", shuffled)
            monkeypatch.setattr(
                harvest,
                "predict_blocks",
                lambda tasks, *rest, f=predict: f(random.Random(5).sample(tasks, len(tasks)), *rest),
            )
        summary = segment(tmp_path / f"store-{workers}", path, tile=128, overlap=32, workers=workers)
        assert summary.exit_code == 0, summary.text
        assert summary.record["counts"]["parts"] > 1
        tables.append(features(tmp_path / f"store-{workers}").drop_columns(["run_id"]))
    assert_is_truth(tables[0], scene)
    assert tables[1].equals(tables[0])
    assert tables[2].equals(tables[0])


def test_a_town_is_found_as_it_was_built(tmp_path: Path) -> None:
    """Blobs by the ten thousand, street grids and combs over hundreds of tiles: each once, and every pixel."""
    town = Town(SIZE_PX, cell_px=40, period_cells=48, district_periods=2)
    summary = segment(
        tmp_path / "store",
        town.paint(tmp_path / "town"),
        model="segworker.synthetic.models:perfect_single",
        model_options={"parts": "several"},
        tile=512,
        overlap=64,
    )
    assert summary.exit_code == 0, summary.text
    rows = features(tmp_path / "store", columns=["feature_id", "area_px", "num_tiles"])
    assert len(rows) == town.count_blobs() + town.num_networks
    assert np.sum(rows["area_px"].to_numpy()) == sum(int((labels > 0).sum()) * n for labels, n in town.pictures())
    assert town.num_networks == 11
    assert (rows["num_tiles"].to_numpy() > 50).sum() == 6, "the networks of whole districts"


@ray.remote(max_retries=0)
def _double(value: int) -> int:
    if value == 13:
        raise StorageError("a bucket must exist, got none; create it")
    if value == 14:
        raise ValueError("not foreseen\nin two lines")
    if value == 15:
        os._exit(1)
    return 2 * value


def test_calls_are_made_as_results_are_taken() -> None:
    made = []

    def arguments() -> Iterator[tuple[int]]:
        for value in range(100, 160):
            made.append(value)
            yield (value,)

    ahead = []
    for k, result in enumerate(calls.in_order(_double, arguments(), what="doubling")):
        assert result == 2 * (100 + k)
        ahead.append(len(made) - k)
    assert max(ahead) <= calls.MAX_IN_FLIGHT * 2  # CPUs of the local Ray
    assert len(made) == 60


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (13, StorageError, "a bucket must exist, got none; create it"),
        (14, SegworkerError, "doubling must finish, got ValueError: not foreseen after all retries"),
        (15, SegworkerError, "doubling must finish, got WorkerCrashedError"),
    ],
)
def test_what_a_call_cannot_do_is_told(value: int, kind: type[SegworkerError], words: str) -> None:
    with pytest.raises(kind) as caught:
        list(calls.in_order(_double, [(1,), (value,)], what="doubling"))
    assert str(caught.value).startswith(words)
