"""The kits that the gate leaves out."""

from pathlib import Path

import pytest
import torch

from segworker.models.registry import load_model
from tests.parity_kits import check_solo, load_kit, same_detections, share_matched

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
