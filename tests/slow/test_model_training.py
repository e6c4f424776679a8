"""Every model learns: its small variant overfits two images; and its network can be compiled and exported."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segworker.models.protocol import Model, place, predict_arrays
from segworker.models.registry import ModelEntry, build_model, list_models
from segworker.train.loop import set_train_mode
from segworker.types import Prediction
from tests.model_scenes import scene
from tests.parity_kits import box_iou, mask_iou, painted

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SIZE, STEPS = 128, 200
SAME = {
    "maskrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn_v2",
    "yolact_r101",
    "blendmask_rt_r50",
    "centermask2_lite_v39",
}
ENTRIES = [pytest.param(entry, id=entry.name) for entry in list_models() if entry.name not in SAME]


@pytest.mark.parametrize("entry", ENTRIES)
def test_overfits_two_images(entry: ModelEntry) -> None:
    torch.manual_seed(0)
    model = build_model(entry.name, entry.narrow)
    pairs = [scene(entry, model.categories, seed=seed, size=SIZE) for seed in (1, 2)]
    images, targets = torch.stack([image for image, _ in pairs]), [target for _, target in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS, pct_start=0.1)
    totals = []
    for step in range(STEPS):
        set_train_mode(model, freeze_norm=step > 0.7 * STEPS)
        total = torch.stack(list(model.loss(images, targets).values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        totals.append(float(total.detach()))
    overlaps = measured(model, images, targets)
    print(f"\n{entry.name}: loss {np.mean(totals[:5]):.2f} -> {np.mean(totals[-5:]):.2f}, IoU {np.round(overlaps, 3)}")
    assert np.mean(totals[-10:]) < 0.5 * np.mean(totals[:10])
    assert min(overlaps) > 0.8


def measured(model: Model, images: torch.Tensor, targets: list[dict[str, torch.Tensor]]) -> list[float]:
    """The IoU of each object's mask (its box, without masks) with the surest detection of its class on it."""
    valid = np.ones((len(images), SIZE, SIZE), bool)
    overlaps = []
    for found, target in zip(
        predict_arrays(place(model, CPU), images.numpy(), valid, device=CPU), targets, strict=True
    ):
        if found.semantic_scores_CHW is not None and found.masks is None:
            overlaps += classes_overlap(found, target["semantic"].numpy())
            continue
        sure = np.flatnonzero(found.scores > 0.3)
        pictures = painted(replace(found, keypoints_NK3=None), (SIZE, SIZE))
        for box, label, mask in zip(target["boxes"].numpy(), target["labels"], target["masks"].numpy(), strict=True):
            near = [
                k for k in sure if found.class_ids[k] == label and box_iou(found.boxes_xyxy[k : k + 1], box[None]) > 0.3
            ]
            if not near:
                overlaps.append(0.0)
            elif found.masks is None:
                overlaps.append(float(box_iou(found.boxes_xyxy[near[0]][None], box[None])[0, 0]))
            else:
                overlaps.append(mask_iou(pictures[near[0]], mask.astype(bool)))
    return overlaps


def classes_overlap(found: Prediction, semantic: np.ndarray) -> list[float]:
    """The IoU of each class of pixels."""
    scores = torch.from_numpy(found.semantic_scores_CHW.astype(np.float32))[None]
    best = F.interpolate(scores, semantic.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    return [mask_iou(best == k, semantic == number) for k, number in enumerate(found.semantic_class_ids)]


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_network_can_be_compiled_and_exported(entry: ModelEntry) -> None:
    """The dense part, `forward`: suppression and pooling after it depend on what is seen."""
    torch.manual_seed(0)
    model = build_model(entry.name, entry.narrow).eval()
    image = model.normalise(scene(entry, model.categories, seed=1, size=SIZE)[0][None])
    with torch.no_grad():
        want = model(image)
        compiled = torch.compile(model, backend="aot_eager")(image)
        exported = torch.export.export(model, (image,)).module()(image)
    for name, values in want.items():
        torch.testing.assert_close(compiled[name], values, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(exported[name], values, rtol=1e-3, atol=1e-3)
