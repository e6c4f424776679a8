"""Models that a user could bring as `tests.models_for_tests:NAME`: perfect in most ways, and not in one."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segworker.synthetic.models import PerfectModel, perfect
from segworker.synthetic.truth import label_components
from segworker.types import Category, InputSpec, LabelMasks, Prediction

RAISES, NANS, UNKNOWN = 7, 8, 9
"Classes of painted objects at whose sight `failing` fails."


@dataclass(frozen=True)
class Scored:
    """Reads the truth as `perfect` does, and is surer of higher classes: class 3 has a score of 0.3."""

    inner: PerfectModel

    @property
    def spec(self) -> InputSpec:
        return replace(self.inner.spec, min_score=0.0)

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.inner.categories

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        found = self.inner.predict(images_BCHW, valid_BHW)
        return [replace(p, scores=(p.class_ids / 10).astype(np.float32)) for p in found]


def scored() -> Scored:
    return Scored(perfect())


@dataclass(frozen=True)
class Failing:
    """Reads the truth as `perfect` does, and does a wrong thing where it sees an object of certain classes."""

    inner: PerfectModel

    @property
    def spec(self) -> InputSpec:
        return self.inner.spec

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.inner.categories

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        found = self.inner.predict(images_BCHW, valid_BHW)
        if any((p.class_ids == RAISES).any() for p in found):
            raise RuntimeError("a kernel of this model does not like what it sees")
        return [self._spoiled(p) for p in found]

    def _spoiled(self, prediction: Prediction) -> Prediction:
        classes = prediction.class_ids
        if (classes == NANS).any():
            return replace(prediction, scores=np.full(len(classes), np.nan, np.float32))
        if (classes == UNKNOWN).any():
            return replace(prediction, class_ids=classes + 100)
        return prediction


def failing() -> Failing:
    return Failing(perfect())


@dataclass(frozen=True)
class Bright:
    """Each group of touching pixels above 500 in the only band is an object: robust against resampling."""

    spec: InputSpec
    categories: tuple[Category, ...] = (Category(1, "bright"),)

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        bright = (images_BCHW[:, 0].numpy() > 500) & valid_BHW.numpy()
        return [_objects(mask) for mask in bright]


def _objects(mask_HW: np.ndarray) -> Prediction:
    labels = label_components(mask_HW)
    count = int(labels.max(initial=0))
    places = [np.argwhere(labels == k + 1) for k in range(count)]
    boxes = [(*p.min(0)[::-1], *(p.max(0)[::-1] + 1)) for p in places]
    return Prediction(
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.ones(count, np.int32),
        scores=np.full(count, 0.9, np.float32),
        masks=LabelMasks(labels),
    )


def bright() -> Bright:
    return Bright(InputSpec(num_bands=1, scaling="none", stride=1, cut_trust_px=0, tile_px=512, overlap_px=64))


@dataclass(frozen=True)
class Logged:
    """Reads the truth as `perfect` does, and adds a line to a file for each image that it is shown."""

    inner: PerfectModel
    log: str

    @property
    def spec(self) -> InputSpec:
        return self.inner.spec

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.inner.categories

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        seen = "".join(f"{zlib.crc32(image.tobytes()):08x}\n" for image in images_BCHW.numpy())
        with Path(self.log).open("a") as file:
            file.write(seen)
        return self.inner.predict(images_BCHW, valid_BHW)


def logged(*, log: str) -> Logged:
    return Logged(perfect(), log)


@dataclass(frozen=True)
class Slow:
    """Sees nothing, and takes its time for it without using a processor, as a GPU does."""

    spec: InputSpec
    seconds: float
    categories: tuple[Category, ...] = (Category(1, "object"),)

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        time.sleep(self.seconds)
        return [_objects(np.zeros(images_BCHW.shape[2:], bool)) for _ in valid_BHW]


def slow(seconds: float = 0.2) -> Slow:
    return Slow(InputSpec(num_bands=3, scaling="none", stride=1, cut_trust_px=0), seconds)
