"""The registry, users' own models, predictions of the bundled one, and weights files."""

import pickle
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from segworker.errors import ConfigError, WeightsError
from segworker.models import registry
from segworker.models.common.options import parse_options
from segworker.models.common.torchvision_nets import TorchvisionOptions
from segworker.models.nuclei.config import CATEGORIES, SPEC
from segworker.models.protocol import Model, check_model, choose_device, predict_arrays
from segworker.models.registry import (
    ModelEntry,
    build_model,
    list_models,
    load_model,
    model_digest,
    model_entry,
    register,
)
from segworker.models.weights import load_weights, read_state_dict, save_weights
from segworker.types import Prediction

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def nuclei() -> Model:
    return load_model("nuclei")


def blobs(shape_yx: tuple[int, int] = (128, 128), *, seed: int = 0, stained: bool = False) -> np.ndarray:
    """Discs of radius 8 on a lattice with jitter, bright on dark; (3, H, W) in 0..1."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape_yx[0], : shape_yx[1]]
    image = np.full(shape_yx, 0.03, np.float32)
    for y in range(20, shape_yx[0] - 12, 32):
        for x in range(20, shape_yx[1] - 12, 32):
            dy, dx = rng.uniform(-4, 4, 2)
            image = np.maximum(image, 0.5 * (np.hypot(rows - y - dy, cols - x - dx) < 8))
    image = image + rng.normal(0, 0.01, shape_yx)
    if stained:
        dye = np.array([0.6, 0.9, 0.4])[:, None, None]
        return np.clip(0.9 - image[None] * dye, 0, 1).astype(np.float32)
    return np.repeat(np.clip(image, 0, 1)[None], 3, axis=0).astype(np.float32)


def run(model: Model, images: np.ndarray) -> list[Prediction]:
    return predict_arrays(model, images, np.ones((len(images), *images.shape[2:]), bool), device=CPU)


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str = "mymodels") -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


class TestRegistry:
    def test_lists_what_is_registered(self) -> None:
        entries = {entry.name: entry for entry in list_models()}
        assert {"nuclei", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"} <= set(entries)
        assert entries["nuclei"].bundled is not None
        assert entries["nuclei"].bundled.stat().st_size <= 16 * 2**20

    def test_duplicate_names_raise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
        entry = model_entry("nuclei")
        with pytest.raises(ValueError, match="unique, got 'nuclei'"):
            register(entry)
        with pytest.raises(ValueError, match="identifier"):
            register(ModelEntry("a:b", entry.build, "", (), 0, ""))

    def test_unknown_name_tells_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'nuclei'"):
            load_model("nucleus")

    def test_model_without_bundled_weights_asks_for_them(self) -> None:
        with pytest.raises(ConfigError, match=r"--weights FILE .*coco-bf2d0c1e\.pth"):
            load_model("maskrcnn_resnet50_fpn")

    def test_options_reach_the_builder_and_wrong_ones_are_named(self) -> None:
        model = build_model("maskrcnn_resnet50_fpn", {"num_classes": "3", "class_names": "car, tree"})
        assert [(c.id, c.name) for c in model.categories] == [(1, "car"), (2, "tree")]
        for options, message in (
            ({"detection": 5}, "unknown model option 'detection'"),
            ({"detections": "many"}, "detections must be of type int, got 'many'"),
            ({"num_classes": 1}, "num_classes is at least 2"),
            ({"num_classes": 3, "class_names": "car"}, "got 1 names for 2 classes"),
        ):
            with pytest.raises(ConfigError, match=message):
                build_model("maskrcnn_resnet50_fpn", options)
        assert parse_options(TorchvisionOptions, {"frozen_norm": "no"}).frozen_norm is False

    def test_coco_categories_keep_their_raw_ids(self) -> None:
        names = {c.id: c.name for c in build_model("maskrcnn_resnet50_fpn").categories}
        assert (len(names), names[1], names[90]) == (80, "person", "toothbrush")
        assert 12 not in names


class TestFactories:
    GOOD = """
        import torch
        from segworker.types import Category, InputSpec, Prediction
        import numpy as np

        class Empty:
            categories = (Category(1, "thing"),)
            spec = InputSpec(stride=8)
            def __init__(self, size=3): self.size = size
            def predict(self, images_BCHW, valid_BHW):
                assert images_BCHW.shape[2] % 8 == 0 and images_BCHW.shape[3] % 8 == 0
                none = Prediction(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32))
                return [none] * len(images_BCHW)

        def not_a_model(): return 7
        def no_categories():
            model = Empty()
            model.categories = ()
            return model
        answer = 42
    """

    def test_a_users_model_is_found_and_fed_whole_strides(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_module(tmp_path, monkeypatch, self.GOOD)
        model = load_model("mymodels:Empty", options={"size": 4})
        assert model.size == 4
        assert len(run(model, np.zeros((2, 3, 13, 21), np.float32))) == 2

    @pytest.mark.parametrize(
        ("ref", "message"),
        [
            ("nosuchpackage.models:make", "cannot import 'nosuchpackage.models'"),
            ("mymodels:nothing", "has no 'nothing'"),
            ("mymodels:answer", "must be callable and return a Model, got int"),
            ("mymodels:not_a_model", "must give a Model .* got int"),
            ("mymodels:no_categories", "categories must be a tuple"),
            (":make", "must be package.module:factory"),
            ("mymodels:", "has no ''"),
        ],
    )
    def test_faults_are_named(self, ref: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_module(tmp_path, monkeypatch, self.GOOD)
        with pytest.raises(ConfigError, match=message):
            load_model(ref)

    def test_options_a_factory_does_not_take(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_module(tmp_path, monkeypatch, self.GOOD)
        with pytest.raises(ConfigError, match="does not take these options"):
            load_model("mymodels:Empty", options={"colour": 1})
        with pytest.raises(ConfigError, match="--weights is for torch modules"):
            load_model("mymodels:Empty", weights=b"x")

    def test_digest_follows_the_source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_module(tmp_path, monkeypatch, self.GOOD)
        first = model_digest("mymodels:Empty")
        assert model_digest("mymodels:Empty") == first
        assert model_digest("mymodels:Empty", options={"size": 2}) != first
        (tmp_path / "mymodels.py").write_text((tmp_path / "mymodels.py").read_text() + "\n# changed\n")
        assert model_digest("mymodels:Empty") != first


class TestPredict:
    @pytest.mark.parametrize("stained", [False, True])
    def test_nuclei_finds_discs(self, nuclei: Model, stained: bool) -> None:
        found = run(nuclei, blobs(stained=stained)[None])[0]
        sure = found.boxes_xyxy[found.scores > 0.5]
        assert len(sure) == 9
        sides = (sure[:, 2:] - sure[:, :2]).mean()
        assert 13 < sides < 19

    @pytest.mark.parametrize("value", [0.0, 0.03, 0.9])
    @pytest.mark.parametrize("size", [64, 256])
    def test_an_empty_tile_has_no_nuclei(self, nuclei: Model, value: float, size: int) -> None:
        images = np.full((1, 3, size, size), value, np.float32)
        assert not (run(nuclei, images)[0].scores > 0.5).any()

    def test_a_tile_does_not_depend_on_its_batch_mates(self, nuclei: Model) -> None:
        images = np.stack([blobs(seed=1), blobs(seed=2, stained=True), blobs(seed=3)])
        together = run(nuclei, images)
        for image, one in zip(images, together, strict=True):
            alone = run(nuclei, image[None])[0]
            assert len(alone) == len(one)
            np.testing.assert_allclose(alone.scores, one.scores, atol=1e-4)
            np.testing.assert_allclose(alone.boxes_xyxy, one.boxes_xyxy, atol=1e-2)

    def test_nothing_is_found_on_invalid_pixels(self, nuclei: Model) -> None:
        images = blobs()[None]
        valid = np.zeros((1, 128, 128), bool)
        valid[:, :, :64] = True
        found = predict_arrays(nuclei, images, valid, device=CPU)[0]
        assert (found.scores > 0.5).sum() in (3, 6)  # the middle column of discs is cut in two
        assert (found.boxes_xyxy[:, 2] <= 64).all()
        nothing = predict_arrays(nuclei, images, np.zeros_like(valid), device=CPU)[0]
        assert len(nothing) == 0

    def test_padding_does_not_change_what_is_seen(self, nuclei: Model) -> None:
        image = blobs((120, 100))[None]
        padded = np.zeros((1, 3, 160, 160), np.float32)
        padded[:, :, :120, :100] = image
        valid = np.zeros((1, 160, 160), bool)
        valid[:, :120, :100] = True
        few, many = run(nuclei, image)[0], predict_arrays(nuclei, padded, valid, device=CPU)[0]
        sure = few.scores > 0.5
        assert sure.sum() == (many.scores > 0.5).sum()

    def test_bfloat16_backbone_finds_the_same(self, nuclei: Model) -> None:
        images, valid = blobs()[None], np.ones((1, 128, 128), bool)
        half = predict_arrays(nuclei, images, valid, device=CPU, precision="bf16")[0]
        assert (half.scores > 0.5).sum() == (run(nuclei, images)[0].scores > 0.5).sum()
        assert half.scores.dtype == half.boxes_xyxy.dtype == np.float32

    def test_devices(self) -> None:
        assert choose_device("cpu") == CPU
        with pytest.raises(ConfigError, match="a device is"):
            choose_device("toaster")
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match="needs a CUDA GPU"):
                choose_device("cuda")


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch segworker-was-here",)


class TestWeights:
    def test_round_trip(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        first, second = build_model("nuclei"), build_model("nuclei")
        save_weights(first, tmp_path / "w.safetensors", metadata={"model": "nuclei"})
        load_weights(second, tmp_path / "w.safetensors", model_name="nuclei")
        for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
            assert a.dtype == b.dtype, name
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
    def test_pth_of_tensors(self, tmp_path: Path, wrapper: str | None) -> None:
        state = build_model("nuclei").state_dict()
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
        assert set(read_state_dict((tmp_path / "w.pth").read_bytes())) == set(state)
        load_model("nuclei", weights=tmp_path / "w.pth")

    def test_averaged_weights_come_first(self, tmp_path: Path) -> None:
        torch.save({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}, tmp_path / "w.pth")
        assert read_state_dict(tmp_path / "w.pth")["a"].item() == 1

    def test_other_architecture_is_refused_and_leaves_the_model_alone(self, tmp_path: Path) -> None:
        model = build_model("nuclei")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = dict(before)
        del state["rpn.head.cls_logits.bias"]
        state["extra.weight"] = torch.zeros(3)
        state["rpn.head.bbox_pred.bias"] = torch.zeros(5)
        safetensors.torch.save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "other.safetensors", model_name="nuclei")
        for part in ("other.safetensors", "'nuclei'", "rpn.head.cls_logits.bias", "extra.weight", "(5,) for (24,)"):
            assert part in str(caught.value)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_a_hostile_pickle_only_raises(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        torch.save({"a": Evil()}, tmp_path / "evil.pth")
        (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
        for name in ("evil.pth", "raw.pth"):
            with pytest.raises(WeightsError, match=f"{name} must be safetensors"):
                load_model("nuclei", weights=tmp_path / name)
        assert not (tmp_path / "segworker-was-here").exists()

    @pytest.mark.parametrize(
        "content",
        [b"", b"hello", b"\x80\x02", b"PK\x03\x04broken", b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all}"],
    )
    def test_broken_files(self, content: bytes) -> None:
        with pytest.raises(WeightsError):
            read_state_dict(content)

    def test_not_a_state_dict(self, tmp_path: Path) -> None:
        torch.save([torch.zeros(1)], tmp_path / "list.pth")
        with pytest.raises(WeightsError, match="must hold a state dict"):
            read_state_dict(tmp_path / "list.pth")
        with pytest.raises(WeightsError, match="readable file"):
            read_state_dict(tmp_path / "absent.pth")

    def test_digest_tells_weights_apart(self) -> None:
        bundled = model_digest("nuclei")
        assert len(bundled) == 64
        assert model_digest("nuclei", weights=model_entry("nuclei").bundled) == bundled
        assert model_digest("nuclei", weights=b"other") != bundled
        assert model_digest("nuclei", options={"detections": 7}) != bundled


def test_check_model_names_what_is_missing() -> None:
    class Half:
        categories, spec = CATEGORIES, SPEC

    with pytest.raises(ConfigError, match="without predict"):
        check_model(Half(), "half")
