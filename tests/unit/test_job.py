"""Planning grows with what is planned, and a block's task with nothing but the block."""

from __future__ import annotations

import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import rasterio
from rasterio.transform import Affine

from segworker.config_load import from_flat
from segworker.engine.job import Job, ModelFacts, make_job
from segworker.engine.memory import fit_memory, worker_bytes
from segworker.errors import ConfigError
from segworker.types import Category, InputSpec

FACTS = ModelFacts("none", (), None, InputSpec(num_bands=1), (Category(1, "object"),), "digest")


def write_scenes(folder: Path, num: int, side: int = 600) -> Path:
    """Write scenes without pixels."""
    folder.mkdir()
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8", "tiled": True}
    for k in range(num):
        place = Affine(0.3, 0, 4e5 + 300 * k, 0, -0.3, 3e4)
        with rasterio.open(folder / f"{k}.tif", "w", crs="EPSG:32636", transform=place, SPARSE_OK=True, **profile):
            pass
    return folder


def planned(scenes: Path, **options: Any) -> Job:
    config = from_flat(scenes=[str(scenes)], output=str(scenes.parent / "store"), overlap=16, **options)
    return make_job(config, FACTS, "run")


def num_calls(scenes: Path) -> int:
    """Return how many functions a plan calls, in all threads: a clock that no other program disturbs."""
    count = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        planned(scenes, tile=64)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count


def test_a_plan_grows_with_its_scenes(tmp_path: Path) -> None:
    planned(write_scenes(tmp_path / "warm", 2), tile=64)
    calls = [num_calls(write_scenes(tmp_path / f"scenes-{num}", num)) for num in (40, 80, 160)]
    assert calls[2] - calls[1] < 2.2 * (calls[1] - calls[0])


def test_a_plan_grows_with_its_blocks_and_not_with_tiles(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 1, side=100_000)
    few, many = planned(scenes, tile=1024), planned(scenes, tile=128)
    assert many.num_tiles > 70 * few.num_tiles
    assert len(many.blocks) < 6 * len(few.blocks)
    sizes = {len(pickle.dumps(job.task(block))) for job in (few, many) for block in job.blocks}
    assert max(sizes) < min(sizes) + 64


def test_what_a_block_is_sent_does_not_grow_with_the_plan(tmp_path: Path) -> None:
    few, many = (planned(write_scenes(tmp_path / f"s{num}", num), tile=1024) for num in (70, 280))
    assert len(many.blocks) > 2 * len(few.blocks) > 2
    largest = [max(len(pickle.dumps(job.task(b))) for b in job.blocks) for job in (few, many)]
    assert largest[1] < 1.1 * largest[0]


def with_memory(scenes: Path, memory: str, **options: Any) -> Job:
    return fit_memory(planned(scenes, memory=memory, **options))


def test_what_fits_is_left_alone(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 3)
    free = planned(scenes, tile=256)
    assert fit_memory(free) is free
    assert worker_bytes(free) == 3 * 27 * 256 * 256 + 27 * 256 * 256 * 5  # 3 scenes of 3 x 3 tiles, in one batch
    roomy = with_memory(scenes, f"{worker_bytes(free)}", tile=256)
    assert roomy.common.tile_key == free.common.tile_key
    assert roomy.common.tiles_per_batch((256, 256)) == free.common.tiles_per_batch((256, 256)) == 32


@pytest.mark.parametrize("batch_size", [None, 20])
def test_batches_shrink_to_fit_and_get_keys_of_their_own(tmp_path: Path, batch_size: int | None) -> None:
    scenes = write_scenes(tmp_path / "scenes", 3)
    free = planned(scenes, tile=256, batch_size=batch_size)
    blocks = 3 * 27 * 256 * 256
    job = with_memory(scenes, str(blocks + 6 * 256 * 256 * 5 + 1000), tile=256, batch_size=batch_size)
    assert job.common.tiles_per_batch((256, 256)) == 6
    assert job.common.tiles_per_batch((128, 64)) == (batch_size or 48)
    assert job.common.tiles_per_batch((512, 512)) == 1
    assert worker_bytes(job) <= blocks + 6 * 256 * 256 * 5
    assert {job.common.tile_key, job.common.stitch_key}.isdisjoint({free.common.tile_key, free.common.stitch_key})
    again = with_memory(scenes, str(blocks + 6 * 256 * 256 * 5 + 2000), tile=256, batch_size=batch_size)
    assert again.common.tile_key == job.common.tile_key


def test_what_cannot_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 3)
    words = (
        r"must fit --memory, got 3 x 1.8 MB for a block \(27 tiles, 1 bands of uint8\) \+ 0.3 MB for a batch "
        r"\(1 x 65,536 px x \(1 bands x 4 bytes \+ 1\)\) = 5.6 MB, for 2.0 MB; raise --memory$"
    )
    with pytest.raises(ConfigError, match=words):
        with_memory(scenes, "2MB", tile=256)
    with pytest.raises(ConfigError, match=r"or lower --tile$"):
        with_memory(write_scenes(tmp_path / "large", 1, side=10_000), "50MB", tile=8192)
