"""The kits that the gate leaves out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segworker.models.registry import load_model
from segworker.types import BoxMasks, Prediction
from tests.parity_kits import check_solo, close, load_kit, painted, same_detections, share_matched, share_of_masks

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
    model = load_model("htc_r50_fpn", weights=kit.file, options={"score_threshold": 0.001})
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
    lattices = BoxMasks(found["masks"][:, 0].numpy())
    shown = painted(
        Prediction(boxes, found["labels"].numpy().astype(np.int32), found["scores"].numpy(), lattices), (300, 400)
    )
    want = kit.masks("out_masks_packed", (300, 400))
    assert share_of_masks(want, kit.numpy("out_mask_sel"), shown, same) >= 0.95
