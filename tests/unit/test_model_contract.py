"""What every registered model keeps to, tried on its small variant."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segworker.decode import decode_instances
from segworker.grid import Grid
from segworker.models.protocol import Model, place, predict_arrays
from segworker.models.registry import ModelEntry, build_model, list_models
from segworker.models.weights import load_weights, save_weights
from segworker.types import Prediction
from tests.model_scenes import scene

CPU = torch.device("cpu")
SIZE = 96
ENTRIES = {entry.name: entry for entry in list_models()}
SAME = {
    "maskrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn_v2",
    "yolact_r101",
    "blendmask_rt_r50",
    "centermask2_lite_v39",
}
"Of the same code as their neighbours: only in the slow tier."


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_has_the_parameters_of_its_reference(entry: ModelEntry) -> None:
    with torch.device("meta"):
        model = build_model(entry.name)
    assert sum(p.numel() for p in model.parameters()) == entry.num_parameters


@pytest.fixture(scope="module", params=[pytest.param(k, marks=[pytest.mark.slow] * (k in SAME)) for k in ENTRIES])
def entry(request: pytest.FixtureRequest) -> ModelEntry:
    return ENTRIES[request.param]


@pytest.fixture(scope="module")
def model(entry: ModelEntry) -> Model:
    """The small variant; tests leave its weights as they are."""
    torch.manual_seed(1)
    return build_model(entry.name, entry.narrow)


def images(entry: ModelEntry, model: Model, seeds: tuple[int, ...]) -> np.ndarray:
    return np.stack([scene(entry, model.categories, seed=seed, size=SIZE)[0].numpy() for seed in seeds])


def predict(model: Model, pictures: np.ndarray, **options: str) -> list[Prediction]:
    valid = np.ones((len(pictures), *pictures.shape[2:]), bool)
    return predict_arrays(place(model, CPU), pictures, valid, device=CPU, **options)


def decoded(model: Model, prediction: Prediction) -> None:
    """The pipeline's decoder takes what the model gives."""
    grid = Grid("scene", SIZE, SIZE, SIZE, 0)
    decode_instances(prediction, grid.tile(0, 0), grid=grid, class_ids=[c.id for c in model.categories])


class TestEveryModel:
    def test_predicts_what_the_pipeline_can_decode(self, entry: ModelEntry, model: Model) -> None:
        pictures = images(entry, model, (1, 2))
        together = predict(model, pictures)
        assert len(together) == 2
        for picture, found in zip(pictures, together, strict=True):
            decoded(model, found)
            assert found.class_ids.dtype == np.int32
            alone = predict(model, picture[None])[0]  # the same without its batch mate
            assert len(alone) == len(found)
            np.testing.assert_allclose(np.sort(alone.scores), np.sort(found.scores), atol=1e-4)
            np.testing.assert_allclose(alone.boxes_xyxy.sum(0), found.boxes_xyxy.sum(0), rtol=1e-3, atol=0.1)
        if "semantic" in entry.tasks:
            scores = together[0].semantic_scores_CHW
            assert len(scores) == len(together[0].semantic_class_ids)
            np.testing.assert_allclose(scores.astype(np.float32).sum(0), 1, atol=0.01)
        if "keypoints" in entry.tasks:
            assert together[0].keypoints_NK3.shape[1:] == (entry.narrow["num_keypoints"], 3)

    def test_runs_on_empty_images_in_bfloat16_and_channels_last(self, entry: ModelEntry, model: Model) -> None:
        empty = predict(model, np.zeros((1, 3, SIZE, SIZE), np.float32))[0]
        pictures = images(entry, model, (3,))
        want, half = predict(model, pictures)[0], predict(model, pictures, precision="bf16")[0]
        model.to(memory_format=torch.channels_last)
        last = predict(model, pictures)[0]
        for found in (empty, want, half, last):
            decoded(model, found)
            assert np.isfinite(found.boxes_xyxy).all()
            assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert len(last) == len(want)  # the same numbers, laid out in another way
        np.testing.assert_allclose(np.sort(last.scores), np.sort(want.scores), atol=1e-3)

    def test_nothing_is_found_where_nothing_is_valid(self, entry: ModelEntry, model: Model) -> None:
        pictures = images(entry, model, (1,))
        found = predict_arrays(place(model, CPU), pictures, np.zeros((1, SIZE, SIZE), bool), device=CPU)[0]
        assert len(found) == 0

    def test_every_parameter_gets_a_gradient(self, entry: ModelEntry, model: Model) -> None:
        model.train()
        pairs = [scene(entry, model.categories, seed=k, size=SIZE, objects=n) for k, n in ((1, 2), (2, 1), (3, 0))]
        losses = model.loss(torch.stack([image for image, _ in pairs]), [target for _, target in pairs])
        total = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(total)
        total.backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        model.zero_grad(set_to_none=True)

    def test_state_round_trip(self, entry: ModelEntry, model: Model, tmp_path: Path) -> None:
        save_weights(model, tmp_path / "w.safetensors")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            other = build_model(entry.name, entry.narrow)
        load_weights(other, tmp_path / "w.safetensors", model_name=entry.name, layouts=entry.layouts)
        for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            if a.is_floating_point():  # weights files hold no counters
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
