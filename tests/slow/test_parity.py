"""The kits that the gate leaves out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import clip_boxes_to_image

from segworker.models.blendmask.decode import detect as detect_blendmask
from segworker.models.common import fcos
from segworker.models.registry import load_model
from segworker.types import BoxMasks, Prediction
from tests.parity_kits import (
    Kit,
    check_solo,
    close,
    load_kit,
    painted,
    same_detections,
    share_matched,
    share_of_masks,
)

pytestmark = pytest.mark.slow


def test_solo(shared_data: Path, tmp_path: Path) -> None:
    check_solo(load_kit(shared_data, "wx_solo_r50", tmp_path), "solo_r50")


def test_detectron2_mask_rcnn_is_panoptic_fpn_without_its_semantic_head(shared_data: Path, tmp_path: Path) -> None:
    kit = load_kit(shared_data, "d2_panoptic_fpn_r50", tmp_path)
    state = torch.load(kit.file)["model"]
    torch.save({"model": {k: v for k, v in state.items() if "sem_seg" not in k}}, tmp_path / "model_final.pth")
    model = load_model("maskrcnn_d2_r50_fpn", weights=tmp_path / "model_final.pth")
    with torch.inference_mode():
        image = torch.from_numpy(kit.image("image_bgr_u8"))[None]
        found = model.detect(image, torch.ones(1, 256, 352, dtype=torch.bool))[0]
    same = same_detections(
        (kit.numpy("det_boxes"), kit.numpy("det_classes"), kit.numpy("det_scores")),
        (found["boxes"].numpy(), found["labels"].numpy(), found["scores"].numpy()),
    )
    assert share_matched(same) >= 0.95


def test_htc(shared_data: Path, tmp_path: Path) -> None:
    kit = load_kit(shared_data, "mm_htc_r50", tmp_path)
    model = load_model("htc_r50_fpn", weights=kit.file, options={"score_threshold": 0.001, "average_masks": False})
    image = torch.from_numpy(kit.image("image_bgr_u8"))[None]
    with torch.inference_mode():
        normal = model.normalise(image)
        levels = model.backbone(normal)
        classes, embedding = model.roi_heads.semantic(list(levels.values()))
        found = model.detect(image, torch.ones(1, 256, 352, dtype=torch.bool))[0]
    close(normal, kit.tensors["input_norm"])
    close(levels["1"][0, ::4], kit.tensors["p3"])
    close(classes[0, ::3], kit.tensors["semantic_pred_every3"])
    close(embedding[0, ::8], kit.tensors["semantic_feat_every8"])
    boxes = found["boxes"].numpy() * np.array(
        [400 / 352, 300 / 256] * 2, np.float32
    )  # the reference's are of 300 x 400
    same = same_detections(
        (kit.numpy("out_boxes"), kit.numpy("out_labels"), kit.numpy("out_scores")),
        (boxes, found["labels"].numpy(), found["scores"].numpy()),
    )
    assert share_matched(same) >= 0.95
    labels = kit.tensors[
        "out_labels"
    ]  # masks of the reference's own boxes: thin ones swing with a hundredth of a pixel
    seen = kit.tensors["out_boxes"] * torch.tensor([352 / 400, 256 / 300] * 2)
    with torch.inference_mode():
        masks = model.roi_heads.masks(list(levels.values())[:4], embedding, [seen], labels)
    shown = painted(
        Prediction(
            kit.numpy("out_boxes"),
            labels.numpy().astype(np.int32),
            kit.numpy("out_scores"),
            BoxMasks(masks[:, 0].numpy()),
        ),
        (300, 400),
    )
    want = kit.masks("out_masks_packed", (300, 400))
    assert share_of_masks(want, kit.numpy("out_mask_sel"), shown, np.eye(len(labels), dtype=bool)) >= 0.95


def same_fcos_heads(raw: dict[str, torch.Tensor], kit: Kit) -> None:
    for level in (0, 1, 3):
        close(raw[f"classes_{level}"][0], kit.tensors[f"cls_logits_l{level}"])
        close(raw[f"boxes_{level}"][0], kit.tensors[f"bbox_reg_l{level}"])
        close(raw[f"centerness_{level}"][0], kit.tensors[f"ctrness_l{level}"])


def same_objects(found: dict[str, torch.Tensor], kit: Kit) -> None:
    """Detections, and masks on their own lattice; the reference ends boxes at its picture of 300 x 400."""
    boxes = clip_boxes_to_image(found["boxes"] * torch.tensor([400 / 352, 300 / 256] * 2), (300, 400)).numpy()
    same = same_detections(
        (kit.numpy("out_boxes"), kit.numpy("out_classes"), kit.numpy("out_scores")),
        (boxes, found["labels"].numpy(), found["scores"].numpy()),
    )
    assert share_matched(same) >= 0.95
    rows = kit.numpy("det_mask_sel")
    worst = [
        np.abs(found["masks"][np.flatnonzero(same[row])].numpy() - mask.numpy()).max(axis=(1, 2, 3)).min(initial=1)
        for mask, row in zip(kit.tensors["det_masks"].float(), rows, strict=True)
    ]
    assert np.mean(np.array(worst) < 5e-3) >= 0.95


def test_blendmask(shared_data: Path, tmp_path: Path) -> None:
    kit = load_kit(shared_data, "adet_blendmask_r50", tmp_path)
    model = load_model("blendmask_r50", weights=kit.file)
    image = torch.from_numpy(kit.image("image_bgr_u8"))[None]
    with torch.inference_mode():
        raw = model(model.normalise(image))
        found = detect_blendmask(raw, 0, (256, 352), model.config)
    same_fcos_heads(raw, kit)
    close(raw["attention_1"][0, ::7], kit.tensors["top_feat_l1_every7"])
    close(raw["bases"][0], kit.tensors["bases"])
    same_objects(found, kit)


def test_centermask(shared_data: Path, tmp_path: Path) -> None:
    kit = load_kit(shared_data, "centermask2_v39_ese", tmp_path)
    model = load_model("centermask2_v39", weights=kit.file)
    image = torch.from_numpy(kit.image("image_bgr_u8"))[None]
    with torch.inference_mode():
        raw = model(model.normalise(image))
        found = model.detect(raw, 0, (256, 352))
        boxes = fcos.detect(raw, 0, model.config.fcos)["boxes"]
    same_fcos_heads(raw, kit)
    assert len(boxes) == len(kit.numpy("det_boxes"))
    same_objects(found, kit)
    assert np.abs(np.sort(found["mask_scores"].numpy()) - np.sort(kit.numpy("mask_scores"))).max() < 2e-3
