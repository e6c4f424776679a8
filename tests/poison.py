"""A model that dies, hangs or goes wrong at the sight of certain objects: `--model tests.poison:poisoned`."""

from __future__ import annotations

import ctypes
import os
import signal
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segworker.synthetic.models import PerfectModel, perfect
from segworker.types import Category, InputSpec, Prediction

RAISES, NANS = 7, 8
EXITS, SEGFAULTS, KILLED, HANGS, TOO_BIG, TOO_BIG_ALONE, GARBAGE, NOTHING = range(11, 19)
"Classes of painted objects that are poison for `poisoned`, besides RAISES and NANS."


@dataclass(frozen=True)
class Poisoned:
    """Reads the truth as `perfect` does, and dies, hangs or goes wrong where it sees an object of certain classes.

    Each tile that it was given is a line of the file `calls` in its folder; a file `healed` there makes it sound.
    """

    folder: Path
    inner: PerfectModel

    @property
    def spec(self) -> InputSpec:
        return self.inner.spec

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.inner.categories

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        with (self.folder / "calls").open("a") as calls:
            calls.write(
                "".join(f"{zlib.crc32(image.numpy().tobytes())} of {len(images_BCHW)}\n" for image in images_BCHW)
            )
        found = self.inner.predict(images_BCHW, valid_BHW)
        if (self.folder / "healed").exists():
            return found
        seen = {int(c) for p in found for c in p.class_ids}
        if EXITS in seen:
            os._exit(7)
        if SEGFAULTS in seen:
            ctypes.string_at(0)
        if KILLED in seen:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in seen:
            ctypes.PyDLL(None).sleep(1000)  # in native code, and with the interpreter's lock
        if (TOO_BIG in seen and len(found) > 1) or TOO_BIG_ALONE in seen:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if RAISES in seen:
            raise RuntimeError("a kernel of this model does not like what it sees")
        return [self._spoiled(p) for p in found]

    def _spoiled(self, prediction: Prediction) -> Prediction:
        seen = set(prediction.class_ids.tolist())
        if NANS in seen:
            return replace(prediction, scores=np.full(len(prediction), np.nan, np.float32))
        if GARBAGE in seen:
            return replace(prediction, masks=replace(prediction.masks, labels_HW=np.array([["cat"]])))
        return None if NOTHING in seen else prediction


def poisoned(folder: str) -> Poisoned:
    categories = tuple(Category(k, f"class {k}") for k in range(1, 31))
    return Poisoned(Path(folder), replace(perfect(), categories=categories))
