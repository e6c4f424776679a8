"""Training windows from scenes on the fly, and splits that do not leak."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segworker.errors import ConfigError
from segworker.io.header import open_scene
from segworker.masks import areas_px, labels_from_runs, runs_from_labels
from segworker.synthetic.paint import write_raster
from segworker.train.photometric import Photometric, PhotometricConfig
from segworker.train.split import (
    TRAIN,
    VALIDATE,
    clip_to_side,
    from_json,
    side_counts,
    split_by_block,
    split_by_scene,
    to_json,
)
from segworker.train.targets import boxes_of, turned
from segworker.train.windows import WindowConfig, WindowSampler
from segworker.truth import SceneTruth, TruthSet
from segworker.types import Category, InputSpec, Scene, Window

SIZE = 400
SPEC = InputSpec(stride=32)
PLAIN = WindowConfig(size_px=96, scale_sigma=0.0, photometric=None, turn=False)


def truth_of(scene_id: str, *, seed: int = 0) -> tuple[SceneTruth, np.ndarray]:
    """Squares of two classes on a lattice, one of them a crowd; class 2 is rare."""
    labels = np.zeros((SIZE, SIZE), np.int32)
    rng = np.random.default_rng(seed)
    count = 0
    for y in range(10, SIZE - 30, 40):
        for x in range(10, SIZE - 30, 40):
            side = int(rng.integers(8, 22))
            count += 1
            labels[y : y + side, x : x + side] = count
    classes = np.where(np.arange(count) % 12 == 5, 2, 1).astype(np.int32)
    crowd = np.arange(count) == 0
    ids = tuple(map(str, range(count)))
    runs = runs_from_labels(labels, count, window=Window(0, 0, SIZE, SIZE))
    return SceneTruth(scene_id, SIZE, SIZE, ids, classes, runs, crowd), labels


CATEGORIES = (Category(1, "house"), Category(2, "shed"))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Scene], TruthSet]:
    """Two scenes whose red is 200 in class 1, whose green is 200 in class 2, and whose blue tells the column."""
    folder = tmp_path_factory.mktemp("painted")
    scenes, truths = [], []
    for k, name in enumerate("ab"):
        truth, labels = truth_of(name, seed=k)
        classes = np.concatenate([[0], truth.class_ids])[labels]
        blue = np.broadcast_to(np.arange(SIZE) // 2, labels.shape)
        write_raster(
            folder / f"{name}.tif", np.stack([(classes == 1) * 200, (classes == 2) * 200, blue]).astype(np.uint8)
        )
        scenes.append(open_scene(str(folder / f"{name}.tif"), name))
        truths.append(truth)
    return scenes, TruthSet(CATEGORIES, tuple(truths))


class TestSplit:
    def test_by_scene_and_written_down(self, painted: tuple[list[Scene], TruthSet]) -> None:
        truth = painted[1]
        split = split_by_scene(truth, share=0.5)
        assert {part.side for part in split.parts} == {TRAIN, VALIDATE}
        assert from_json(to_json(split), truth) == split
        assert split == split_by_scene(truth, share=0.5)

    @pytest.mark.parametrize("seed", range(3))
    def test_blocks_cover_scenes_and_hold_the_share(self, painted: tuple[list[Scene], TruthSet], seed: int) -> None:
        truth = painted[1]
        split = split_by_block(truth, block_px=130, share=0.25, seed=seed)
        seen = np.zeros((SIZE, SIZE), int)
        for part in split.parts:
            if part.scene_id == "a":
                seen[part.window.slices_in(Window(0, 0, SIZE, SIZE))] += 1
        assert (seen == 1).all()
        judged, taught = side_counts(split, truth, VALIDATE), side_counts(split, truth, TRAIN)
        assert all(judged.values())
        assert all(taught.values())
        assert 0.15 < sum(judged.values()) / (sum(judged.values()) + sum(taught.values())) < 0.35

    def test_an_object_on_both_sides_is_not_judged(self, painted: tuple[list[Scene], TruthSet]) -> None:
        scene = painted[1].scenes[0]
        left, right = Window(0, 0, 215, SIZE), Window(215, 0, SIZE - 215, SIZE)
        parts = [clip_to_side(scene, [w]) for w in (left, right)]
        both = set(parts[0].object_ids) & set(parts[1].object_ids)
        assert both
        for part in parts:
            assert all(part.crowd[i] for i, name in enumerate(part.object_ids) if name in both)
        assert sum(areas_px(p.runs).sum() for p in parts) == areas_px(scene.runs).sum()
        assert not clip_to_side(scene, [left, right]).crowd[1:].any()

    def test_what_cannot_be_split(self, painted: tuple[list[Scene], TruthSet]) -> None:
        truth = painted[1]
        alone = replace(truth, scenes=truth.scenes[:1])
        with pytest.raises(ConfigError, match="split by block"):
            split_by_scene(alone)
        with pytest.raises(ConfigError, match="at least two blocks"):
            split_by_block(alone, block_px=SIZE)
        one = replace(truth, scenes=(truth.scenes[0].take(np.arange(4)), truth.scenes[1].take(np.arange(8))))
        with pytest.raises(ConfigError, match="none of shed to"):
            split_by_scene(one, share=0.5)
        none = replace(truth, scenes=tuple(s.take(np.zeros(len(s), bool)) for s in truth.scenes))
        with pytest.raises(ConfigError, match="got none; check the annotations"):
            split_by_scene(none, share=0.5)
        with pytest.raises(ConfigError, match="covers every annotated scene"):
            from_json(to_json(split_by_block(alone, block_px=130)), truth)
        with pytest.raises(ConfigError, match="a file that training wrote"):
            from_json(json.dumps([1]), truth)


class TestWindows:
    def sampler(self, painted: tuple[list[Scene], TruthSet], config: WindowConfig = PLAIN) -> WindowSampler:
        scenes, truth = painted
        split = split_by_block(truth, block_px=130, share=0.25)
        return WindowSampler(scenes, truth, split, config, spec=SPEC, seed=3)

    @pytest.mark.parametrize("turn", [False, True])
    def test_targets_lie_on_their_pixels(self, painted: tuple[list[Scene], TruthSet], turn: bool) -> None:
        sampler = self.sampler(painted, replace(PLAIN, turn=turn, scale_sigma=0.3, min_area_px=0))
        images, targets = sampler.batch(0, 24)
        assert images.shape == (24, 3, 96, 96)
        drawn = set()
        for image, target in zip(images, targets, strict=True):
            drawn |= set(target["labels"].tolist())
            torch.testing.assert_close(target["boxes"], boxes_of(target["masks"]))
            for class_id, band in ((1, image[0]), (2, image[1])):
                masks = target["masks"][target["labels"] == class_id]
                union = masks.amax(0).bool() if len(masks) else torch.zeros(96, 96, dtype=torch.bool)
                wrong = union != (band > 0.4)
                assert wrong.float().mean() < 0.04  # outlines, resampled; and the crowd, which is not taught
        assert drawn == {1, 2}
        sampler.close()

    def test_windows_stay_in_training_parts(self, painted: tuple[list[Scene], TruthSet]) -> None:
        sampler = self.sampler(painted, replace(PLAIN, scale_sigma=0.4, between=0.5))
        split = split_by_block(painted[1], block_px=130, share=0.25)
        for k in range(300):
            drawn = sampler.choose(np.random.default_rng(k))
            homes = split.windows(drawn.place.scene.scene_id, TRAIN)
            assert any(drawn.window.intersect(home) == drawn.window for home in homes)

    def test_a_step_decides_its_batch(self, painted: tuple[list[Scene], TruthSet]) -> None:
        config = replace(PLAIN, photometric=PhotometricConfig(), turn=True)
        one, two = self.sampler(painted, config), self.sampler(painted, config)
        two.batch(1, 2)
        assert torch.equal(one.batch(5, 2)[0], two.batch(5, 2)[0])
        assert not torch.equal(one.batch(6, 2)[0], two.batch(5, 2)[0])

    def test_rare_classes_are_drawn_as_often(self, painted: tuple[list[Scene], TruthSet]) -> None:
        sampler = self.sampler(painted, replace(PLAIN, between=0.0))
        rare = 0
        for k in range(60):
            drawn = sampler.choose(np.random.default_rng(k))
            middle = drawn.window.col_off + drawn.window.width // 2, drawn.window.row_off + drawn.window.height // 2
            assert all(0 <= m < SIZE for m in middle)
            target = sampler._target(drawn)
            rare += bool((target["labels"] == 2).any())
        assert rare > 30

    def test_stuff_is_semantic(self, painted: tuple[list[Scene], TruthSet]) -> None:
        scenes, truth = painted
        stuff = replace(truth, categories=(CATEGORIES[0], replace(CATEGORIES[1], isthing=False)))
        split = split_by_block(stuff, block_px=130, share=0.25)
        sampler = WindowSampler(scenes, stuff, split, PLAIN, spec=SPEC, seed=0)
        image, target = sampler.draw(np.random.default_rng(7))
        assert set(target["labels"].tolist()) <= {1}
        assert set(target["semantic"].unique().tolist()) <= {1, 2, 255}
        assert ((target["semantic"] == 2) == (image[1] > 0.4)).float().mean() > 0.99

    def test_keypoints_turn_with_their_objects(self) -> None:
        masks = torch.zeros((1, 32, 32), dtype=torch.uint8)
        masks[0, 4, 20] = 1
        target = {"masks": masks, "boxes": boxes_of(masks), "keypoints": torch.tensor([[[20.5, 4.5, 2.0], [0, 0, 0]]])}
        for which in range(8):
            _, result = turned(torch.zeros(3, 32, 32), target, which)
            y, x = (int(v) for v in result["masks"][0].nonzero()[0])
            assert result["keypoints"][0].tolist() == [[x + 0.5, y + 0.5, 2.0], [0, 0, 0]]
            assert result["boxes"].tolist() == [[x, y, x + 1, y + 1]]

    def test_boxes_of_nothing(self) -> None:
        assert boxes_of(torch.zeros((0, 8, 8))).shape == (0, 4)
        assert boxes_of(torch.zeros((1, 8, 8), dtype=torch.uint8)).tolist() == [[0, 0, 0, 0]]

    @pytest.mark.parametrize("bands", [1, 3, 5])
    def test_colours_stay_in_range(self, bands: int) -> None:
        change = Photometric(PhotometricConfig(blur=1.0, noise=1.0))
        image = torch.rand(bands, 40, 40)
        state = torch.random.get_rng_state()
        first = change(image, 1)
        assert first.shape == image.shape
        assert 0 <= first.min() <= first.max() <= 1
        assert torch.equal(first, change(image, 1))
        assert not torch.equal(first, change(image, 2))
        assert torch.equal(state, torch.random.get_rng_state())

    def test_map_scenes_are_read_at_the_models_resolution(self, tmp_path: Path) -> None:
        from rasterio.transform import Affine

        truth, labels = truth_of("m")
        write_raster(
            tmp_path / "m.tif",
            np.stack([(labels > 0) * 200] * 3).astype(np.uint8),
            crs="EPSG:32636",
            transform=Affine(0.5, 0, 453_600, 0, -0.5, 36_900),
        )
        scene = open_scene(str(tmp_path / "m.tif"), "m")
        known = TruthSet(CATEGORIES, (truth,))
        split = split_by_block(known, block_px=200, share=0.25)
        sampler = WindowSampler([scene], known, split, PLAIN, spec=replace(SPEC, resolution_m=1.0), seed=0)
        drawn = sampler.choose(np.random.default_rng(0))
        assert drawn.window.width == pytest.approx(192, abs=2)
        image, target = sampler.draw(np.random.default_rng(0))
        assert ((image[0] > 0.4) == target["masks"].amax(0).bool()).float().mean() > 0.93
        assert labels_from_runs(truth.runs, window=scene.window).max() == len(truth)
