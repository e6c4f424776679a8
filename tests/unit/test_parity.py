"""Official checkpoints through the ordinary loader: raw heads and detections against the references' own."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d

from segworker.models.common.crops import crop_masks
from segworker.models.panopticfpn.decode import combine
from segworker.models.registry import load_model
from segworker.models.yolact.decode import assemble
from segworker.models.yolact.decode import detect as yolact_detect
from segworker.types import BoxMasks, Prediction
from tests.parity_kits import (
    box_iou,
    check_solo,
    close,
    load_kit,
    mask_iou,
    painted,
    same_detections,
    share_matched,
    share_of_masks,
)

VALID = torch.ones(1, 256, 352, dtype=torch.bool)
OUTPUT_YX = (300, 400)
"Size of the pictures to which the references' results were resized."


class TestPanopticFPN:
    """detectron2's file and answers; its Mask R-CNN is the same network without the semantic head."""

    def test_raw_heads_detections_masks_and_panoptic_image(self, shared_data: Path, tmp_path: Path) -> None:
        kit = load_kit(shared_data, "d2_panoptic_fpn_r50", tmp_path, pickled=True)
        model = load_model("panoptic_fpn_r50", weights=kit.file)
        image = torch.from_numpy(kit.image("image_bgr_u8"))[None]
        with torch.inference_mode():
            normal = model.normalise(image)
            raw = model(normal)
            found = {name: value.numpy() for name, value in model.detect(image, VALID)[0].items()}
        close(normal, kit.tensors["input_norm"])
        close(raw["features_1"][0], kit.tensors["p3"])
        close(raw["features_pool"][0], kit.tensors["p6"])
        close(raw["objectness_1"][0], kit.tensors["rpn_obj_p3"])
        close(raw["offsets_1"][0], kit.tensors["rpn_delta_p3"])
        logits = F.interpolate(raw["semantic"], scale_factor=4, mode="bilinear", align_corners=False)
        close(logits[0, :, ::8, ::8], kit.tensors["sem_logits_x4"])

        same = same_detections(
            (kit.numpy("det_boxes"), kit.numpy("det_classes"), kit.numpy("det_scores")),
            (found["boxes"], found["labels"], found["scores"]),
        )
        assert share_matched(same) >= 0.95
        prediction = Prediction(
            found["boxes"] * np.array([400 / 352, 300 / 256] * 2, np.float32),
            found["labels"].astype(np.int32),
            found["scores"],
            BoxMasks(found["masks"][:, 0]),
        )
        pictures = painted(prediction, OUTPUT_YX)
        want = kit.masks("out_masks_packed", OUTPUT_YX)
        assert share_of_masks(want, kit.numpy("out_mask_sel"), pictures, same) >= 0.95

        classes = F.interpolate(logits, OUTPUT_YX, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        assert (classes == kit.numpy("sem_argmax")).mean() > 0.999
        panoptic, segments = combine(pictures, prediction.scores, prediction.class_ids, classes)
        assert (panoptic == kit.numpy("panoptic_seg")).mean() > 0.999
        assert [(s.class_id, s.isthing) for s in segments] == [(39, True), (47, False), (52, False)]


class TestTorchvision:
    def test_mask_rcnn(self, shared_data: Path, tmp_path: Path) -> None:
        kit = load_kit(shared_data, "tv_maskrcnn_r50", tmp_path)
        model = load_model("maskrcnn_resnet50_fpn", weights=kit.file)
        image = torch.from_numpy(kit.image())[None]  # of a size that torchvision's transform leaves alone
        with torch.inference_mode():
            normal = model.normalise(image)
            features = model.backbone(normal)
            proposals, _ = model.rpn(ImageList(normal, [(256, 352)]), features)
            found = {
                name: value.numpy() for name, value in model.roi_heads(features, proposals, [(256, 352)])[0][0].items()
            }
        close(normal, kit.tensors["transformed"])
        close(features["1"][0, ::4], kit.tensors["p3"])
        best = box_iou(kit.numpy("prop_boxes"), proposals[0].numpy()).max(axis=1)
        assert (best > 0.99).mean() >= 0.95
        same = same_detections(
            (kit.numpy("boxes"), kit.numpy("labels"), kit.numpy("scores")),
            (found["boxes"], found["labels"], found["scores"]),
        )
        assert share_matched(same) >= 0.95
        pasted = paste_masks_in_image(  # torchvision rounds boxes to pixels
            torch.from_numpy(found["masks"]), torch.from_numpy(found["boxes"]), (256, 352)
        )[:, 0].numpy()
        want = kit.masks("masks_packed", (256, 352))
        pairs = [
            (mask, pasted[np.argmax(same[row])] >= 0.5) for mask, row in zip(want, kit.numpy("mask_sel"), strict=True)
        ]
        assert sum((a & b).sum() for a, b in pairs) / sum((a | b).sum() for a, b in pairs) > 0.98

    def test_faster_rcnn_says_what_torchvisions_own_network_says(self, tmp_path: Path) -> None:
        torch.manual_seed(3)
        theirs = fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, min_size=128, max_size=128, rpn_post_nms_top_n_test=20
        )
        for module in theirs.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = 0.0  # as with the official weights
                module.weight.fill_(0.4)  # untrained norms let values, and rounding, grow through fifty layers
        theirs.eval()
        torch.save(theirs.state_dict(), tmp_path / "official.pth")
        ours = load_model("fasterrcnn_resnet50_fpn", weights=tmp_path / "official.pth", options={"proposals": 20})
        theirs.rpn._pre_nms_top_n["testing"] = 20
        image = torch.rand(3, 128, 128)
        with torch.inference_mode():
            want = theirs([image])[0]
            found = ours.detect(image[None], torch.ones(1, 128, 128, dtype=torch.bool))[0]
        assert len(want["scores"]) == len(found["scores"]) > 0
        theirs_found, ours_found = (tuple(r[k].numpy() for k in ("boxes", "labels", "scores")) for r in (want, found))
        assert share_matched(same_detections(theirs_found, ours_found)) >= 0.95


class TestSoloV2:
    def test_raw_heads_and_objects(self, shared_data: Path, tmp_path: Path) -> None:
        check_solo(load_kit(shared_data, "wx_solov2_r50", tmp_path), "solov2_r50")


class TestYolact:
    """The kit's scores saturate at 1: of two equal ones that overlap, rounding decides which survives."""

    def test_raw_heads_and_detections(self, shared_data: Path, tmp_path: Path) -> None:
        kit = load_kit(shared_data, "yolact_r50", tmp_path)
        model = load_model("yolact_r50", weights=kit.file, options={"detections": 100_000})
        image = torch.from_numpy(kit.image("image_bgr_u8"))[None]
        size = model.rule.paper_size_yx(*image.shape[2:])
        with torch.inference_mode():
            pixels = F.interpolate(255 * image, size, mode="bilinear", align_corners=False)  # as the reference does it
            normal = model.normalise(pixels / 255)
            raw = model(normal)
            found = yolact_detect(raw, 0, model.config)
        index = kit.tensors["prior_index"]
        priors = raw["priors_xyxy"][index] / 550
        close(normal, kit.tensors["input"])
        close(
            torch.cat([(priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]], 1),
            kit.tensors["priors_cxcywh"],
        )
        close(raw["offsets"][0, index], kit.tensors["loc"])
        close(raw["logits"][0, index].softmax(1), kit.tensors["conf_softmax"])
        close(raw["coefficients"][0, index], kit.tensors["mask_coeff"], limit=2e-3)  # behind tanh: saturated at 1
        close(raw["prototypes"][0].permute(1, 2, 0), kit.tensors["proto"])

        boxes, labels, scores = (
            (found[k] / (550 if k == "boxes" else 1)).numpy() for k in ("boxes", "labels", "scores")
        )
        labels = labels.astype(np.int64)
        want = (kit.numpy("det_box_rel"), kit.numpy("det_class"), kit.numpy("det_score"))
        same = same_detections(want, (boxes, labels, scores))
        ties = (want[1][:, None] == labels[None]) & (np.abs(want[2][:, None] - scores[None]) < 1e-6)
        twins = ties & (box_iou(want[0], boxes) > 0.8)
        assert share_matched(same) >= 0.9
        assert share_matched(same | twins) >= 0.95

        pairs = [(k, int(np.argmax(same[k]))) for k in range(40) if same[k].any()]
        chosen = [ours for _, ours in pairs]
        shown = boxes[chosen] * np.array([640, 480, 640, 480], np.float32)
        coefficients = found["coefficients"][chosen]
        probs = assemble(raw["prototypes"][0], coefficients, torch.from_numpy(shown), (480, 640))
        classes, crops = np.zeros(len(pairs), np.int32), crop_masks(probs, (480, 640))
        pictures = painted(Prediction(shown, classes, scores[chosen], crops), (480, 640))
        stored = kit.masks("post_masks_packed", (480, 640))
        agree = [mask_iou(stored[k], picture) > 0.98 for (k, _), picture in zip(pairs, pictures, strict=True)]
        assert np.mean(agree) >= 0.95


class TestHydraNet:
    def test_raw_heads_and_maps(self, shared_data: Path, tmp_path: Path) -> None:
        kit = load_kit(shared_data, "hydranet_mnv2_lwrf_6c_2t", tmp_path)
        model = load_model("hydranet_mnv2", weights=kit.file)
        image = torch.from_numpy(kit.image())[None]
        with torch.inference_mode():
            normal = model.normalise(image)
            raw = model(normal)
            found = model.predict(image, VALID)[0]
        close(normal, kit.tensors["input"])
        close(raw["semantic"][0], kit.tensors["segm"])
        close(raw["depth"][0], kit.tensors["depth"])
        close(found.dense["depth"], kit.tensors["depth_abs_full"])
        classes = F.interpolate(raw["semantic"], (256, 352), mode="bicubic", align_corners=False)[0].argmax(0)
        assert (classes.numpy() == kit.numpy("segm_argmax_full")).mean() > 0.999
