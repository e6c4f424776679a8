"""Crops and their targets, the loop, and average precision."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segworker.errors import ConfigError
from segworker.models.registry import build_model, load_model
from segworker.train.augment import jitter_colours
from segworker.train.data import (
    BRIGHTFIELD,
    FLUORESCENCE,
    STAINED,
    CropConfig,
    CropSampler,
    Sample,
    choose_heldout,
    cut_crop,
    infer_modality,
    load_samples,
    read_heldout,
    to_target,
    turn,
    write_heldout,
)
from segworker.train.evaluate import as_table, evaluate, paste
from segworker.train.job import TrainJob, run_job
from segworker.train.loop import TrainConfig, Trainer, learning_rate
from segworker.types import BoxMasks, Category, InputSpec, Prediction


def discs(name: str = "a", *, size: int = 96, seed: int = 0) -> Sample:
    """Bright discs on a dark ground, four of them."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.int32)
    for number, (y, x) in enumerate(((24, 24), (24, 70), (70, 24), (70, 70)), start=1):
        labels[np.hypot(rows - y, cols - x) < rng.uniform(8, 14)] = number
    pixels = np.where(labels > 0, 180, 12)[..., None].repeat(3, axis=2).astype(np.uint8)
    return Sample(name, pixels, labels, (12, 12, 12), infer_modality(pixels))


def write_folder(folder: Path, samples: list[Sample]) -> None:
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for sample in samples:
        Image.fromarray(sample.pixels_HWC).save(folder / "images" / f"{sample.name}.png")
        Image.fromarray(sample.labels_HW.astype(np.uint16)).save(folder / "masks" / f"{sample.name}.png")


class TestData:
    def test_modalities(self) -> None:
        dark = np.full((8, 8, 3), 10, np.uint8)
        pink = np.full((8, 8, 3), (230, 160, 200), np.uint8)
        assert [infer_modality(x) for x in (dark, pink, 255 - dark)] == [FLUORESCENCE, STAINED, BRIGHTFIELD]

    def test_folder_round_trip(self, tmp_path: Path) -> None:
        samples = [discs("b", seed=1), discs("a")]
        write_folder(tmp_path, samples)
        loaded = load_samples(tmp_path)
        assert [s.name for s in loaded] == ["a", "b"]
        np.testing.assert_array_equal(loaded[1].labels_HW, samples[0].labels_HW)
        with pytest.raises(ConfigError, match="the first is 'c'"):
            load_samples(tmp_path, names=["a", "c"])
        with pytest.raises(ConfigError, match="found no images"):
            load_samples(tmp_path / "images")

    def test_sizes_must_agree(self) -> None:
        with pytest.raises(ConfigError, match="one size"):
            replace(discs(), labels_HW=np.zeros((4, 4), np.int32))

    def test_heldout_is_stratified_and_fixed(self, tmp_path: Path) -> None:
        samples = [replace(discs(f"f{i}"), modality=FLUORESCENCE) for i in range(20)]
        samples += [replace(discs(f"s{i}"), modality=STAINED) for i in range(10)]
        samples += [replace(discs("b0"), modality=BRIGHTFIELD)]
        chosen = choose_heldout(samples, share=0.15, seed=0)
        assert [s.modality for s in chosen].count(FLUORESCENCE) == 3
        assert [s.modality for s in chosen].count(STAINED) == 2
        assert not any(s.modality == BRIGHTFIELD for s in chosen)
        write_heldout(tmp_path / "held.txt", chosen)
        assert read_heldout(tmp_path / "held.txt") == [
            s.name for s in choose_heldout(samples[::-1], share=0.15, seed=0)
        ]

    def test_targets_are_tight_half_open_boxes(self) -> None:
        labels = torch.zeros((10, 12), dtype=torch.int32)
        labels[2:5, 3:9] = 7
        labels[9, 11] = 8
        target = to_target(labels, min_area_px=1)
        assert target["boxes"].tolist() == [[3, 2, 9, 5], [11, 9, 12, 10]]
        assert target["masks"].sum((1, 2)).tolist() == [18, 1]
        assert to_target(labels, min_area_px=2)["boxes"].tolist() == [[3, 2, 9, 5]]
        assert to_target(labels, min_area_px=99)["boxes"].shape == (0, 4)

    def test_turning_keeps_image_and_labels_together(self) -> None:
        labels = torch.arange(12).reshape(3, 4).int()
        seen = set()
        for which in range(8):
            image, turned = turn(labels[None].float(), labels, which)
            assert torch.equal(image[0].int(), turned)
            seen.add(str(turned.tolist()))
        assert len(seen) == 8

    @pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0])
    def test_crops_keep_pixels_on_their_labels(self, zoom: float) -> None:
        config = CropConfig(size_px=64, scale_mean=float(np.log(zoom)), scale_sigma=0.0)
        for seed in range(5):
            image, labels = cut_crop(discs(), config, np.random.default_rng(seed))
            assert image.shape == (3, 64, 64)
            assert ((image[0] > 0.4) == (labels > 0)).float().mean() > 0.96

    def test_a_step_decides_its_batch(self) -> None:
        config = CropConfig(size_px=64)
        one, two = (CropSampler([discs()], config, seed=3) for _ in range(2))
        for a, b in zip(one.batch(5, 2)[0], two.batch(5, 2)[0], strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(one.batch(5, 1)[0], one.batch(6, 1)[0])

    @pytest.mark.parametrize("dark", [True, False])
    def test_colours_stay_in_range(self, dark: bool) -> None:
        for seed in range(30):
            image = jitter_colours(torch.rand(3, 16, 16), np.random.default_rng(seed), dark=dark)
            assert image.shape == (3, 16, 16)
            assert 0 <= image.min() <= image.max() <= 1
            assert torch.isfinite(image).all()


class Tiny(nn.Module):
    """Learns the mean brightness of its crops."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))

    def loss(self, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        wanted = torch.stack([t["masks"].amax(0).float() if len(t["masks"]) else torch.zeros(32, 32) for t in targets])
        return {"loss_mask": nn.functional.binary_cross_entropy_with_logits(self.body(images)[:, 0].float(), wanted)}


def trainer(iterations: int) -> Trainer:
    torch.manual_seed(0)
    config = TrainConfig(iterations=iterations, batch_size=2, warmup=4, log_every=5, precision="fp32", ema_decay=0.9)
    source = CropSampler([discs()], CropConfig(size_px=32), seed=1)
    return Trainer(Tiny(), source, config)


class TestLoop:
    def test_learns_and_logs(self) -> None:
        lines: list[str] = []
        model = trainer(40).run(log=lines.append)
        assert len(lines) == 8
        losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
        assert losses[-1] < losses[0]
        assert not model.training

    def test_resumed_equals_uninterrupted(self, tmp_path: Path) -> None:
        whole = trainer(12).run(log=lambda _: None)
        first = trainer(12)
        for _ in range(7):
            first.train_step()
        first.save(tmp_path / "state.pt")
        second = trainer(12)
        second.resume(tmp_path / "state.pt")
        resumed = second.run(log=lambda _: None, checkpoint=tmp_path / "state.pt")
        for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(a, b), name

    def test_stopping_early_keeps_the_schedule(self) -> None:
        early = trainer(12)
        early.config = replace(early.config, stop_after=5)
        early.run(log=lambda _: None)
        assert early.step == 5
        assert early.optimizer.param_groups[0]["lr"] == learning_rate(4, early.config)

    def test_norms_freeze_at_the_end(self) -> None:
        run = trainer(10)
        for _ in range(7):
            run.train_step()
        before = run.model.body[1].running_mean.clone()
        run.train_step()
        assert torch.equal(before, run.model.body[1].running_mean)

    def test_learning_rate_warms_up_and_falls(self) -> None:
        config = TrainConfig(iterations=100, warmup=10, learning_rate=1.0, final_share=0.1)
        rates = [learning_rate(step, config) for step in range(101)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == pytest.approx(1.0)
        assert rates[100] == pytest.approx(0.1)
        assert all(a >= b for a, b in itertools.pairwise(rates[10:]))

    def test_nuclei_trains_and_the_job_writes_loadable_weights(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "data", [discs("a"), discs("b", seed=1)])
        (tmp_path / "held.txt").write_text("b\tfluorescence\n")
        job = TrainJob(
            data=tmp_path / "data",
            output=tmp_path / "out" / "w.safetensors",
            heldout=tmp_path / "held.txt",
            device="cpu",
        )
        lines: list[str] = []
        run_job(job, TrainConfig(iterations=1, batch_size=1, warmup=1, log_every=1), log=lines.append)
        assert lines[0].startswith("step 1/1  loss ")
        assert "| all | 1 | 4 |" in lines[-1]
        load_model("nuclei", weights=job.output)

    def test_an_empty_crop_has_a_loss(self) -> None:
        model = build_model("nuclei").train()
        empty = to_target(torch.zeros((64, 64), dtype=torch.int32), 1)
        losses = model.loss(torch.rand(1, 3, 64, 64), [empty])
        assert torch.isfinite(torch.stack(list(losses.values()))).all()

    def test_wrong_numbers_and_absent_checkpoints_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="at least 1"):
            TrainConfig(iterations=0)
        with pytest.raises(ConfigError, match="auto, bf16 or fp32"):
            TrainConfig(precision="int8")
        with pytest.raises(ConfigError, match=r"found none at .*absent\.pt"):
            trainer(1).resume(tmp_path / "absent.pt")

    def test_wrong_jobs_are_refused(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "data", [discs("a")])
        with pytest.raises(ConfigError, match=r"written as \.safetensors"):
            run_job(TrainJob(tmp_path / "data", tmp_path / "w.pth"), TrainConfig())
        (tmp_path / "held.txt").write_text("zzz\tstained\n")
        with pytest.raises(ConfigError, match="the first is 'zzz'"):
            run_job(
                TrainJob(tmp_path / "data", tmp_path / "w.safetensors", heldout=tmp_path / "held.txt"), TrainConfig()
            )
        (tmp_path / "held.txt").write_text("a\tfluorescence\n")
        with pytest.raises(ConfigError, match="no training image is left"):
            run_job(
                TrainJob(tmp_path / "data", tmp_path / "w.safetensors", heldout=tmp_path / "held.txt"), TrainConfig()
            )


class Oracle:
    """Knows the answer: full boxes as masks around square objects."""

    categories = (Category(1, "square"),)
    spec = InputSpec(stride=16)

    def __init__(self, boxes: list[list[float]], scores: list[float]) -> None:
        self.boxes, self.scores = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32)

    def predict(self, images_BCHW: torch.Tensor, valid_BHW: torch.Tensor) -> list[Prediction]:
        assert images_BCHW.shape == (1, 3, 32, 48)
        assert valid_BHW.sum() == 30 * 40
        n = len(self.scores)
        masks = BoxMasks(np.ones((n, 28, 28), np.float16))
        return [Prediction(self.boxes, np.ones(n, np.int32), self.scores, masks)]


def squares() -> Sample:
    labels = np.zeros((30, 40), np.int32)
    labels[2:10, 2:10], labels[12:22, 20:30] = 1, 2
    return Sample("s", np.zeros((30, 40, 3), np.uint8), labels, (0, 0, 0), FLUORESCENCE)


class TestEvaluate:
    def test_all_found(self) -> None:
        scores = evaluate(Oracle([[2, 2, 10, 10], [20, 12, 30, 22]], [0.9, 0.8]), [squares()])
        assert set(scores) == {"all", FLUORESCENCE}
        assert scores["all"].ap == pytest.approx(1.0)
        assert scores["all"].ap50 == pytest.approx(1.0)
        assert scores["all"].tp_share50 == 1.0
        assert "| all | 1 | 2 | 1.000 | 1.000 | 1.000 |" in as_table(scores)

    def test_one_missed_one_too_many(self) -> None:
        scores = evaluate(Oracle([[2, 2, 10, 10], [30, 2, 38, 10]], [0.9, 0.95]), [squares()])["all"]
        assert scores.tp_share50 == pytest.approx(1 / 3)
        assert 0.2 < scores.ap50 < 0.3

    def test_nothing_found(self) -> None:
        assert evaluate(Oracle([], []), [squares()])["all"].ap50 == 0.0

    def test_pasting_agrees_with_the_pipeline(self) -> None:
        rng = np.random.default_rng(0)
        corners = rng.uniform(-5, 40, (20, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(3, 25, (20, 2))], axis=1).astype(np.float32)
        probs = rng.uniform(0, 1, (20, 7, 7)).astype(np.float32)
        found = Prediction(boxes, np.ones(20, np.int32), np.linspace(0.1, 1, 20).astype(np.float32), BoxMasks(probs))
        ours = np.array([mask.sum() for mask in paste(found, (48, 48))])
        theirs = decoded_areas(found, (48, 48))
        np.testing.assert_allclose(np.sort(ours[ours > 0]), np.sort(theirs), atol=1)


def decoded_areas(found: Prediction, shape_yx: tuple[int, int]) -> np.ndarray:
    from segworker import decode, masks
    from segworker.types import Window

    runs = decode._mask_runs(found, Window(0, 0, shape_yx[1], shape_yx[0]))
    areas = masks.areas_px(runs)
    return areas[areas > 0]
