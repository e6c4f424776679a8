"""Models as in `models_for_tests`: perfect in most ways, whose masks drift, stop short, or break the contract."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from segworker.synthetic.models import PerfectModel, perfect, perfect_cropped
from segworker.types import BoxMasks, Category, CroppedMasks, InputSpec, LabelMasks, Prediction

SIZE, COPIES, TENSORS, NEGATIVE, LOGITS = 5, 6, 7, 8, 9
"Classes of painted objects at whose sight `broken` returns something that its contract forbids."
EMPTY, OUTSIDE, TWICE = 7, 8, 9
"Classes at whose sight `odd` returns something that has a defined result."


@dataclass(frozen=True)
class Spoiled:
    """Reads the truth as `perfect` does and spoils each label image before anybody sees it."""

    inner: PerfectModel
    jitter_px: int = 0
    "Each tile's objects are moved by up to this far in each direction, as the tile's pixels say."
    short_px: int = 0
    "Masks stop this far from the window's sides."
    random_scores: bool = False

    @property
    def spec(self) -> InputSpec:
        return replace(self.inner.spec, min_score=0.0)

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.inner.categories

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        return [self._spoiled(p) for p in self.inner.predict(images_BCHW, valid_BHW)]

    def _spoiled(self, prediction: Prediction) -> Prediction:
        assert isinstance(prediction.masks, LabelMasks)
        labels = prediction.masks.labels_HW.copy()
        rng = np.random.default_rng(zlib.crc32(labels.tobytes()))
        labels = np.roll(labels, rng.integers(-self.jitter_px, self.jitter_px + 1, 2), (0, 1))
        if self.short_px:
            inside = np.zeros_like(labels)
            side = slice(self.short_px, -self.short_px)
            inside[side, side] = labels[side, side]
            labels = inside
        scores = rng.uniform(0.1, 0.9, len(prediction)) if self.random_scores else prediction.scores
        return replace(prediction, masks=LabelMasks(labels), scores=scores.astype(np.float32))


def noisy() -> Spoiled:
    return Spoiled(perfect(), jitter_px=2, random_scores=True)


def jittery() -> Spoiled:
    return Spoiled(perfect(), jitter_px=3)


def stopping_short() -> Spoiled:
    return Spoiled(perfect(), short_px=10)


def blind_at_the_sides() -> Spoiled:
    return Spoiled(perfect(), short_px=30)


@dataclass(frozen=True)
class Broken:
    """Reads the truth as `perfect` does, and breaks its contract where it sees an object of certain classes."""

    inner: PerfectModel

    @property
    def spec(self) -> InputSpec:
        return self.inner.spec

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.inner.categories

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        return [self._broken(p) for p in self.inner.predict(images_BCHW, valid_BHW)]

    def _broken(self, found: Prediction) -> Prediction:
        assert isinstance(found.masks, LabelMasks)
        labels, seen = found.masks.labels_HW, set(found.class_ids.tolist())
        if SIZE in seen:
            return replace(found, masks=LabelMasks(labels[:-1]))
        if COPIES in seen:
            n = 5000
            return Prediction(np.tile(found.boxes_xyxy[:1], (n, 1)), np.ones(n, np.int32), np.full(n, 0.9, np.float32))
        if TENSORS in seen:
            return replace(found, scores=torch.from_numpy(found.scores))  # type: ignore[arg-type] - that is the point
        if NEGATIVE in seen:
            return replace(found, masks=LabelMasks(-labels))
        if LOGITS in seen:
            return replace(found, masks=BoxMasks(np.full((len(found), 4, 4), 3.0, np.float32)))
        return found


def broken() -> Broken:
    return Broken(perfect())


@dataclass(frozen=True)
class Odd:
    """Reads the truth as `perfect_cropped` does, and adds objects that must make no difference."""

    inner: PerfectModel

    @property
    def spec(self) -> InputSpec:
        return self.inner.spec

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.inner.categories

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        return [self._odd(p) for p in self.inner.predict(images_BCHW, valid_BHW)]

    def _odd(self, found: Prediction) -> Prediction:
        assert isinstance(found.masks, CroppedMasks)
        own, seen = found.masks, set(found.class_ids.tolist())
        if EMPTY in seen:
            return _with(found, np.zeros((3, 3), bool), (0, 0))
        if OUTSIDE in seen:
            return _with(found, np.ones((50, 50), bool), (100_000, -60))
        if TWICE in seen:
            masks = CroppedMasks(own.masks * 3, np.concatenate([own.corners_xy] * 3))
            arrays = (np.concatenate([a] * 3) for a in (found.boxes_xyxy, found.class_ids, found.scores))
            return Prediction(*arrays, masks)
        return found


def _with(found: Prediction, mask: np.ndarray, corner_xy: tuple[int, int]) -> Prediction:
    """Add one object to a prediction."""
    assert isinstance(found.masks, CroppedMasks)
    height, width = mask.shape
    box = np.array([[*corner_xy, corner_xy[0] + width, corner_xy[1] + height]], np.float32)
    return Prediction(
        np.concatenate([found.boxes_xyxy, box]),
        np.append(found.class_ids, 1).astype(np.int32),
        np.append(found.scores, 0.99).astype(np.float32),
        CroppedMasks((*found.masks.masks, mask), np.concatenate([found.masks.corners_xy, [corner_xy]])),
    )


def odd() -> Odd:
    return Odd(perfect_cropped())
