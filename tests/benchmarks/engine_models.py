"""Models and scenes for the engine's benchmark: models that cost nothing or only wait, and scenes of any size."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segworker.models.nuclei import build_nuclei
from segworker.models.protocol import Model
from segworker.synthetic.paint import paint_scene, write_raster
from segworker.synthetic.render import render_nuclei
from segworker.synthetic.scenes import make_scene
from segworker.types import Category, CroppedMasks, InputSpec, Prediction

_NUM_PICTURES = 100


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


def free() -> Empty:
    """Return a model that costs nothing."""
    return Empty(InputSpec())


def waiting(seconds_per_tile: float = 0.5) -> Empty:
    """Return a model that uses no processor, only time, as a GPU does."""
    return Empty(InputSpec(), seconds_per_tile)


def untrained() -> Model:
    """Return the bundled model's network with random weights: the cost without the file."""
    torch.manual_seed(0)
    return build_nuclei()


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
