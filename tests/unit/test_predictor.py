"""The predictor's own part: batches that do not fit are halved, and a tile that fails harms no other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from segworker.engine.job import ModelFacts
from segworker.engine.predictor import Predictor
from segworker.engine.tiles import Batch
from segworker.types import Category, InputSpec, LabelMasks, Prediction

SPEC = InputSpec(num_bands=1, scaling="none", stride=1)


@dataclass
class Counting:
    """Says of each tile how bright its first pixel is, as a class; refuses calls of too many tiles, and one class."""

    most: int = 2
    refused: int = -1
    error: Exception = field(default_factory=lambda: torch.OutOfMemoryError("CUDA out of memory"))
    sizes: list[int] = field(default_factory=list)
    spec: InputSpec = SPEC
    categories: tuple[Category, ...] = (Category(1, "one"),)

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        del valid_BHW
        self.sizes.append(len(images_BCHW))
        classes = images_BCHW[:, 0, 0, 0].numpy().astype(np.int32)
        if len(images_BCHW) > self.most or self.refused in classes:
            raise self.error
        labels = np.ones((4, 4), np.int32)
        return [Prediction(np.zeros((1, 4)), np.array([c]), np.ones(1), LabelMasks(labels)) for c in classes]


def predictor_of(model: Counting) -> Predictor:
    facts = ModelFacts("segworker.synthetic.models:perfect", (), None, SPEC, model.categories, "")
    found = Predictor(facts, precision="fp32", device="cpu", threads=1, tile_timeout_s=60)
    found.model = model
    return found


def batch_of(count: int) -> Batch:
    pixels = [np.full((1, 4, 4), k, np.uint8) for k in range(count)]
    return Batch([("s", 0, k) for k in range(count)], pixels, [None] * count, [None] * count)


def test_batches_that_do_not_fit_are_halved() -> None:
    model, batch = Counting(most=2), batch_of(7)
    predictor = predictor_of(model)
    assert predictor.predict_batch(batch) == []
    assert model.sizes == [7, 3, 1, 2, 4, 2, 2]
    assert predictor.num_halved == 3
    assert [p.class_ids[0] for p in batch.predictions] == list(range(7)), "in the order of the tiles"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")],
)
def test_a_tile_that_does_not_fit_alone_fails_alone(error: Exception) -> None:
    batch = batch_of(4)
    failures = predictor_of(Counting(most=4, refused=2, error=error)).predict_batch(batch)
    assert [(f.tile_id, f.stage, f.tries) for f in failures] == [(("s", 0, 2), "predict", 2)]
    assert type(error).__name__ in failures[0].error
    assert "in predict" in failures[0].trace
    assert [i[2] for i in batch.tile_ids] == [p.class_ids[0] for p in batch.predictions] == [0, 1, 3]


def test_a_single_tile_that_fails_is_tried_once() -> None:
    model = Counting(most=4, refused=0, error=ValueError("no"))
    failures = predictor_of(model).predict_batch(batch_of(1))
    assert [f.tries for f in failures] == [1]
    assert model.sizes == [1]


def test_failures_tell_no_secret() -> None:
    uri = "https://host/a.tif?X-Amz-Signature=abc"
    (failure,) = predictor_of(replace(Counting(), refused=0, error=ValueError(uri))).predict_batch(batch_of(1))
    assert "abc" not in failure.error + failure.trace
