"""What the engine's benchmark needs: models that cost nothing or only wait, scenes of any size, and a plain loop."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import rasterio
import torch
from rasterio.windows import Window

from segworker.decode import decode_instances
from segworker.engine.job import Job, ModelFacts
from segworker.grid import Grid
from segworker.models.nuclei import build_nuclei
from segworker.models.protocol import Model, choose_device, place, predict_arrays
from segworker.models.registry import load_model
from segworker.synthetic.paint import paint_scene, write_raster
from segworker.synthetic.render import render_nuclei
from segworker.synthetic.scenes import make_scene
from segworker.types import Category, CroppedMasks, InputSpec, Prediction, Tile

STAGES = ("read", "predict", "decode")
_NUM_PICTURES = 100
_M = TypeVar("_M")


@dataclass(frozen=True)
class Empty:
    """Sees nothing, and takes its time for it: the same for each tile."""

    spec: InputSpec
    seconds_per_tile: float = 0.0
    categories: tuple[Category, ...] = (Category(1, "object"),)

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        if self.seconds_per_tile:
            time.sleep(self.seconds_per_tile * len(valid_BHW))
        return [_nothing() for _ in images_BCHW]


def _nothing() -> Prediction:
    return Prediction(
        boxes_xyxy=np.zeros((0, 4), np.float32),
        class_ids=np.zeros(0, np.int32),
        scores=np.zeros(0, np.float32),
        masks=CroppedMasks((), np.zeros((0, 2), np.int64)),
    )


def free(ready: str) -> Empty:
    """Return a model that costs nothing."""
    return _told(Empty(InputSpec()), ready)


def waiting(ready: str, seconds_per_tile: float = 0.5) -> Empty:
    """Return a model that uses no processor, only time, as a GPU does."""
    return _told(Empty(InputSpec(), seconds_per_tile), ready)


def bundled(ready: str) -> Model:
    """Return the nuclei model that comes with segworker."""
    return _told(load_model("nuclei"), ready)


def untrained(ready: str) -> Model:
    """Return the same network with random weights: the cost without the file."""
    torch.manual_seed(0)
    return _told(build_nuclei(), ready)


def _told(model: _M, ready: str) -> _M:
    """Touch a file: its time tells when the last process had its model."""
    Path(ready).touch()
    return model


def write_micrograph(path: Path, *, width: int, height: int, period_px: int = 2048, **profile: object) -> Path:
    """Write a uint8 RGB scene that looks like stained tissue; the picture repeats."""
    picture = render_nuclei(make_scene("nuclei", (min(height, period_px), min(width, period_px)), 0))
    times_yx = -(-height // picture.shape[1]), -(-width // picture.shape[2])
    return write_raster(path, np.tile(picture, (1, *times_yx))[:, :height, :width], **profile)


def write_pictures(folder: Path, *, num: int, size_px: int) -> Path:
    """Write many small PNGs for `perfect_rgb`, all of them files of their own with a hundred different contents."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(num):
        path = folder / f"picture-{k:06d}.png"
        if k < _NUM_PICTURES:
            paint_scene(make_scene("nuclei", size_px, k), path, layout="rgb")
        else:
            shutil.copyfile(folder / f"picture-{k % _NUM_PICTURES:06d}.png", path)
    return folder


@dataclass(frozen=True, slots=True)
class Loop:
    """What a plain loop took."""

    num_tiles: int
    seconds: dict[str, float]
    cpu_s: float

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def plain_loop(path: Path, facts: ModelFacts, grid: Grid, tiles: Sequence[Tile], batch_size: int, threads: int) -> Loop:
    """Read, predict and decode batch after batch, as a script would; the first one twice, to warm up."""
    torch.set_num_threads(threads)
    device = choose_device("cpu")
    model = place(load_model(facts.ref, options=dict(facts.options)), device)
    seconds = dict.fromkeys(STAGES, 0.0)
    with rasterio.open(path) as scene:
        for k in range(-batch_size, len(tiles), batch_size):
            if k == 0:
                seconds, cpu = dict.fromkeys(STAGES, 0.0), time.process_time()
            batch = tiles[max(0, k) : max(0, k) + batch_size]
            clock = [time.perf_counter()]
            windows = [Window(t.window.col_off, t.window.row_off, t.window.width, t.window.height) for t in batch]
            pixels = [scene.read(window=window) for window in windows]
            clock.append(time.perf_counter())
            images = np.stack(pixels).astype(np.float32) / np.float32(255)
            valid = np.ones((len(images), *images.shape[2:]), np.bool_)
            found = predict_arrays(model, images, valid, device=device)
            clock.append(time.perf_counter())
            for tile, prediction in zip(batch, found, strict=True):
                margin = facts.spec.cut_trust_px
                decode_instances(prediction, tile, grid=grid, class_ids=facts.class_ids, cut_trust_px=margin)
            clock.append(time.perf_counter())
            for stage, taken in zip(STAGES, np.diff(clock).tolist(), strict=True):
                seconds[stage] += taken
    return Loop(len(tiles), seconds, time.process_time() - cpu)


def run_loop(path: Path, job: Job, tiles: Sequence[Tile], threads: int) -> Loop:
    """Run the plain loop in a process of its own."""
    grid = next(iter(job.grids.values()))
    size = min(job.common.tiles_per_batch(tiles[0].window.shape_yx), max(b.num_tiles for b in job.blocks))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(plain_loop, path, job.common.model, grid, tiles, size, threads).result()
