"""Training from annotated scenes: what is loaded, weighted, stopped, resumed and refused. In this process, no Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segworker.errors import ConfigError, TrainingError, WeightsError
from segworker.io.annotations import read_truth
from segworker.io.header import open_scene
from segworker.models.protocol import Model
from segworker.models.registry import build_model, load_model, model_entry
from segworker.models.weights import save_weights
from segworker.synthetic.paint import write_raster
from segworker.train import validate as validate_module
from segworker.train.balance import BalanceConfig, LossBalance
from segworker.train.classes import build_for
from segworker.train.fit import FitPlan, fit
from segworker.train.init import init_from
from segworker.train.loop import TrainConfig, learning_rate
from segworker.train.split import VALIDATE, split_by_block
from segworker.train.validate import validate
from segworker.train.windows import WindowConfig
from segworker.truth import TruthSet
from segworker.types import Category, CroppedMasks, InputSpec, Prediction, Scene

SIZE = 256
MODULE = "tests.unit.test_fit"


def scene_and_truth(folder: Path) -> tuple[Scene, TruthSet]:
    """Bright squares on a dark ground, two classes told apart by colour, annotated as labels."""
    labels = np.zeros((SIZE, SIZE), np.uint16)
    classes, count = {}, 0
    rng = np.random.default_rng(0)
    for y in range(6, SIZE - 24, 32):
        for x in range(6, SIZE - 24, 32):
            count += 1
            labels[y : y + rng.integers(10, 20), x : x + rng.integers(10, 20)] = count
            classes[str(count)] = "house" if count % 3 else "shed"
    sheds = np.isin(labels, [int(k) for k, name in classes.items() if name == "shed"])
    write_raster(folder / "a.tif", np.stack([(labels > 0) * 200, sheds * 200, np.zeros_like(labels)]).astype(np.uint8))
    (folder / "truth").mkdir()
    write_raster(folder / "truth" / "a.tif", labels[None])
    (folder / "truth" / "a.classes.json").write_text(json.dumps(classes))
    scene = open_scene(str(folder / "a.tif"), "a")
    return scene, read_truth([str(folder / "truth" / "a.tif")], [scene])


class Seeing(nn.Module):
    """Finds bright components perfectly; its loss learns the mean of the image, in two terms."""

    categories = (Category(3, "shed"), Category(5, "house"))
    spec = InputSpec(stride=32)

    def __init__(self, spoil: int = -1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.other = nn.Parameter(torch.zeros(2, 2))
        self.spoil, self.calls = spoil, 0

    def loss(self, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.calls += 1
        assert all(set(t["labels"].tolist()) <= {3, 5} for t in targets)
        bad = float("nan") if self.calls == self.spoil else 1.0
        return {
            "loss_mean": ((self.scale - images.mean()) ** 2) * bad,
            "loss_other": (self.other - 1).square().mean() * 100,
        }

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:  # noqa: ARG002
        from skimage.measure import label, regionprops

        found = []
        for image in images_BCHW.numpy():
            regions = regionprops(label(image[0] > 0.4))
            sheds = [bool(image[1][tuple(r.coords[0])] > 0.4) for r in regions]
            boxes = np.array([[r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]] for r in regions], np.float32).reshape(-1, 4)
            masks = CroppedMasks(tuple(r.image for r in regions), boxes[:, :2].astype(int))
            ids = np.where(np.array(sheds, bool), 3, 5).astype(np.int32)
            found.append(Prediction(boxes, ids, np.ones(len(regions), np.float32), masks))
        return found


def seeing() -> Seeing:
    return Seeing()


def spoiled() -> Seeing:
    return Seeing(spoil=5)


def plan(folder: Path, name: str = "seeing", **more: object) -> FitPlan:
    scene, truth = scene_and_truth(folder)
    values: dict[str, object] = {
        "model": f"{MODULE}:{name}",
        "options": (),
        "scenes": (scene,),
        "truth": truth,
        "split": split_by_block(truth, block_px=128, share=0.25),
        "output": str(folder / "out"),
        "train": TrainConfig(iterations=12, batch_size=2, warmup=2, log_every=4, checkpoint_every=4, precision="fp32"),
        "windows": WindowConfig(size_px=64),
        "device": "cpu",
    }
    return FitPlan(**(values | more))  # type: ignore[arg-type]


class TestFit:
    def test_weights_split_and_record_are_written(self, tmp_path: Path) -> None:
        lines: list[str] = []
        made = plan(tmp_path, validate_every=6)
        record = fit(made, log=lines.append)
        out = tmp_path / "out"
        assert record == json.loads((out / "train.json").read_text())
        assert [v["step"] for v in record["validation"]] == [6, 12]
        assert record["validation"][0]["ap"] == pytest.approx(1.0)
        assert record["objects"]["train"]["shed"] > record["objects"]["validate"]["shed"] > 0
        assert record["weights_of_step"] == 6
        assert len(list((out / "checkpoints").glob("*.pt"))) == 2
        assert sum(line.startswith("step") and "mean" in line for line in lines) == 3
        load_model(made.model, weights=out / "weights.safetensors")

    def test_a_killed_training_goes_on_as_if_it_had_not_been(self, tmp_path: Path) -> None:
        for name in ("whole", "killed"):
            (tmp_path / name).mkdir()
        whole = plan(tmp_path / "whole", validate_every=4)
        fit(whole, log=lambda _: None)
        killed = plan(tmp_path / "killed", "spoiled", validate_every=4)
        with pytest.raises(TrainingError):
            fit(killed, log=lambda _: None)
        lines: list[str] = []
        latest = json.loads((tmp_path / "killed" / "out" / "checkpoints" / "latest.json").read_text())
        assert latest["step"] == 4
        again = replace(killed, model=whole.model)
        with pytest.raises(ConfigError, match="other settings"):
            fit(again, log=lines.append)
        latest["key"] = again.key()
        (tmp_path / "killed" / "out" / "checkpoints" / "latest.json").write_text(json.dumps(latest))
        fit(again, log=lines.append)
        assert lines[0].startswith("resume    from step 4")
        states = [torch.load(max((tmp_path / n / "out" / "checkpoints").glob("*.pt"))) for n in ("whole", "killed")]
        for (key, a), b in zip(
            states[0]["trainer"]["model"].items(), states[1]["trainer"]["model"].values(), strict=True
        ):
            assert torch.equal(a, b), key
        assert states[0]["progress"]["history"] == states[1]["progress"]["history"]

    def test_a_loss_that_is_no_number_stops_it_and_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match=r"got nan for loss_mean at step 4 \(batch 4: a columns \d+-\d+, rows"):
            fit(plan(tmp_path, "spoiled"), log=lambda _: None)

    def test_patience_ends_it(self, tmp_path: Path) -> None:
        record = fit(plan(tmp_path, validate_every=2, patience=2), log=lambda _: None)
        assert (record["ended"], record["steps"], record["weights_of_step"]) == ("patience", 6, 2)

    def test_learnt_weights_are_logged(self, tmp_path: Path) -> None:
        lines: list[str] = []
        train = TrainConfig(iterations=60, batch_size=1, warmup=1, log_every=20, precision="fp32", learning_rate=0.05)
        made = plan(tmp_path, train=train, balance=BalanceConfig("uncertainty"))
        record = fit(made, log=lines.append)
        weights = record["balance"]["weights"]
        assert weights["other"] < weights["mean"]  # the larger loss is trusted less
        assert "weights mean x" in lines[-3]

    def test_what_cannot_be_trained(self, tmp_path: Path) -> None:
        made = plan(tmp_path)
        with pytest.raises(ConfigError, match="--window 96"):
            fit(replace(made, windows=WindowConfig(size_px=80)))
        with pytest.raises(ConfigError, match="'nothing'; it has mean, other"):
            fit(replace(made, balance=BalanceConfig("fixed", (("nothing", 2.0),))))
        with pytest.raises(ConfigError, match="torch module with loss"):
            fit(replace(made, model="tests.models_for_tests:scored"))
        wrong = tuple(replace(c, name=f"other {c.name}") for c in made.truth.categories)
        with pytest.raises(ConfigError, match="trained on its own classes"):
            fit(replace(made, truth=replace(made.truth, categories=wrong)))
        with pytest.raises(ConfigError, match="at least 0"):
            BalanceConfig("fixed", (("mean", -1.0),))


class TestPieces:
    def test_alphas_scale_terms(self) -> None:
        balance = LossBalance(BalanceConfig("fixed", (("loss_a", 2.0), ("b", 0.0))), ["loss_a", "loss_b", "loss_c"])
        found = balance({name: torch.tensor(3.0) for name in ("loss_a", "loss_b", "loss_c")})
        assert {k: float(v) for k, v in found.items()} == {"loss_a": 6.0, "loss_b": 0.0, "loss_c": 3.0}
        assert balance.weights() == {"a": 2.0, "b": 0.0}

    def test_uncertainty_is_that_of_the_paper(self) -> None:
        balance = LossBalance(BalanceConfig("uncertainty"), ["loss_a"])
        optimizer = torch.optim.SGD(balance.parameters(), lr=0.1)
        for _ in range(500):
            optimizer.zero_grad()
            balance({"loss_a": torch.tensor(4.0)})["loss_a"].backward()
            optimizer.step()
        assert balance.weights()["a"] == pytest.approx(1 / 8, rel=1e-3)  # exp(-s) = 1 / (2 L) at the minimum

    def test_schedules(self) -> None:
        config = TrainConfig(iterations=100, warmup=0, learning_rate=1.0, schedule="step", step_at=(0.5, 0.8))
        assert [learning_rate(k, config) for k in (0, 49, 50, 79, 80)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
        with pytest.raises(ConfigError, match="'cosine' or 'step'"):
            TrainConfig(schedule="linear")

    def test_init_from_a_bundled_model_replaces_the_head(self) -> None:
        torch.manual_seed(0)
        model = build_model("nuclei", {"class_names": "house,shed"})
        before = {k: v.clone() for k, v in model.state_dict().items()}
        account = init_from(model, "nuclei", None, model_name="nuclei")
        bundled = load_model("nuclei").state_dict()
        assert account.num_loaded > 0.99 * account.num_all
        assert {name.rpartition(".")[0] for name in account.replaced} == {
            "roi_heads.box_predictor.cls_score",
            "roi_heads.box_predictor.bbox_pred",
            "roi_heads.mask_predictor.mask_fcn_logits",
        }
        for name in account.loaded:
            assert torch.equal(model.state_dict()[name], bundled[name].to(before[name].dtype)), name
        for name in account.replaced:
            assert torch.equal(model.state_dict()[name], before[name]), name
        assert "replaced  6 tensors" in account.text
        backbone = init_from(build_model("nuclei"), "nuclei", None, model_name="nuclei", part="backbone")
        assert all(name.startswith("backbone.") for name in backbone.loaded)
        assert backbone.fresh

    def test_init_from_files(self, tmp_path: Path) -> None:
        other = nn.Linear(3, 3)
        save_weights(other, tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match="got none of 2 tensors"):
            init_from(build_model("nuclei"), "other", tmp_path / "other.safetensors", model_name="nuclei")
        with pytest.raises(ConfigError, match="bundles weights, or a file"):
            init_from(build_model("nuclei"), "yolact_r50", None, model_name="nuclei")

    @pytest.mark.parametrize(
        "name", ["nuclei", "maskrcnn_resnet50_fpn", "maskrcnn_d2_r50_fpn", "yolact_r50", "solo_r50"]
    )
    def test_models_get_the_classes_of_the_annotations(self, tmp_path: Path, name: str) -> None:
        _, truth = scene_and_truth(tmp_path)
        options = {k: v for k, v in model_entry(name).narrow.items() if k != "num_classes"}
        model, _, relabelled = build_for(name, options, truth)
        assert [c.name for c in model.categories] == ["house", "shed"]
        assert relabelled.objects_by_class() == truth.objects_by_class()

    @pytest.mark.parametrize("resolution", [None, 1.0])
    def test_validation_counts_what_is_annotated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolution: float | None
    ) -> None:
        """At another resolution too, with half a pixel of doubt along each outline."""
        scene, truth = scene_and_truth(tmp_path)
        model, _, truth = build_for(f"{MODULE}:seeing", {}, truth)
        split = split_by_block(truth, block_px=128, share=0.25)
        if resolution:
            monkeypatch.setattr(validate_module, "grid_scale", lambda *_: 2.0)
        assert isinstance(model, nn.Module)
        assert isinstance(model, Model)
        found = validate(model, [scene], truth, split, WindowConfig(size_px=64), device=torch.device("cpu"))
        assert found.num_objects >= sum(1 for p in split.parts if p.side == VALIDATE)
        assert found.ap50 == pytest.approx(1.0)
        assert (found.ap or 0) > 0.9
