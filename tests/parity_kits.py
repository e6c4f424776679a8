"""Parity kits: a reference's checkpoint with seeded weights, its input, its raw heads and its detections."""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from segworker import masks
from segworker.decode import decode_instances
from segworker.grid import Grid
from segworker.models.common.crops import crop_masks
from segworker.models.registry import load_model
from segworker.models.solo.decode import detect as detect_solo
from segworker.types import Prediction, Window


@dataclass(frozen=True)
class Kit:
    name: str
    tensors: dict[str, torch.Tensor]
    file: Path
    "The checkpoint, as its makers publish it."

    def numpy(self, name: str) -> np.ndarray:
        return self.tensors[name].numpy()

    def image(self, name: str = "image_rgb_u8") -> np.ndarray:
        """(3, H, W) float32 RGB in 0..1."""
        pixels = self.numpy(name).astype(np.float32) / 255
        if "bgr" in name:
            pixels = pixels[..., ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def masks(self, name: str, shape_yx: tuple[int, int]) -> np.ndarray:
        """(n, H, W) bool of masks that are stored as packed bits."""
        packed = self.numpy(name)
        area = shape_yx[0] * shape_yx[1]
        return np.unpackbits(packed, axis=1)[:, :area].reshape(-1, *shape_yx).astype(bool)


def load_kit(shared_data: Path, name: str, folder: Path, *, pickled: bool = False) -> Kit:
    """Rebuild a kit's checkpoint in a folder: as .pth, or as detectron2's .pkl of arrays."""
    kits = shared_data / "parity"
    if not (kits / name).is_dir():
        pytest.skip(f"the parity kit {name} is not on this machine")
    spec = importlib.util.spec_from_file_location("pkit", kits / "pkit.py")
    pkit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pkit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the kit leaves files to be closed by the collector
        state, keys = pkit.load_state(str(kits / name))
    wrapper = keys["wrapper"]
    if pickled:
        arrays = {key: value.numpy() for key, value in state.items()}
        (folder / f"{name}.pkl").write_bytes(pickle.dumps({wrapper: arrays, "__author__": "somebody"}))
    else:
        torch.save({wrapper: state, "meta": {"epoch": 36}} if wrapper else state, folder / f"{name}.pth")
    tensors = safetensors.torch.load_file(kits / name / "io.safetensors")
    return Kit(name, tensors, folder / f"{name}.{'pkl' if pickled else 'pth'}")


def close(found: torch.Tensor | np.ndarray, want: torch.Tensor, *, limit: float = 1e-3) -> None:
    """Within `limit` of the reference's maximum; 2e-3 where it is stored in half precision."""
    limit = (2e-3 if want.dtype == torch.float16 else limit) * want.float().abs().max().item()
    assert tuple(found.shape) == tuple(want.shape)
    worst = (torch.as_tensor(found).float() - want.float()).abs().max().item()
    assert worst <= limit, f"{worst:.3g} away, {limit:.3g} allowed"


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)


def same_detections(want: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]) -> np.ndarray:
    """(W, F) bool: equal class, box IoU above 0.99, score within 1e-3. Each is (boxes or None, classes, scores)."""
    same = (want[1][:, None] == found[1][None]) & (np.abs(want[2][:, None] - found[2][None]) < 1e-3)
    return same if want[0] is None else same & (box_iou(want[0], found[0]) > 0.99)


def share_matched(same: np.ndarray) -> float:
    return float(same.any(axis=1).mean())


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def painted(prediction: Prediction, shape_yx: tuple[int, int]) -> np.ndarray:
    """(N, H, W) bool of all objects of a window, by the decoder of the pipeline."""
    window = Window(0, 0, shape_yx[1], shape_yx[0])
    grid = Grid("kit", window.width, window.height, max(shape_yx), 0)
    result = np.zeros((len(prediction), *shape_yx), bool)
    numbered = replace(prediction, class_ids=np.arange(len(prediction), dtype=np.int32))
    found = decode_instances(numbered, grid.tile(0, 0), grid=grid, class_ids=range(len(prediction)))
    for k, number in enumerate(found.class_ids):
        result[number] = masks.labels_from_runs(found.runs.take(np.array([k])), window=window) > 0
    return result


def share_of_masks(want: np.ndarray, rows: np.ndarray, found: np.ndarray, same: np.ndarray) -> float:
    """Share of the stored masks, those of detections `rows`, that a detection equal to theirs has at IoU above 0.98."""
    agree = [
        any(mask_iou(mask, found[k]) > 0.98 for k in np.flatnonzero(same[row]))
        for mask, row in zip(want, rows, strict=True)
    ]
    return float(np.mean(agree))


def check_solo(kit: Kit, name: str) -> None:
    """Raw heads, classes, scores and masks of one of the SOLO kits."""
    model = load_model(name, weights=kit.file)
    image = torch.from_numpy(kit.image())[None]
    with torch.inference_mode():
        normal = model.normalise(image)
        raw = model(normal)
        found = detect_solo(raw, 0, model.config)
    close(normal, kit.tensors["input_norm"])
    for ours, theirs, step in (
        ("classes_0", "cate_logits_l0_every3", 3),
        ("classes_2", "cate_logits_l2", 1),
        ("classes_3", "cate_logits_l3", 1),
        ("classes_4", "cate_logits_l4", 1),
        ("kernels_3", "kernel_l3", 1),
        ("kernels_4", "kernel_l4", 1),
        ("features", "mask_feat_every4", 4),
        ("masks_2", "ins_l2_every16", 16),
        ("masks_4", "ins_l4_every3", 3),
    ):
        if theirs in kit.tensors:
            close(raw[ours][0, ::step], kit.tensors[theirs])
    same = same_detections(
        (None, kit.numpy("out_labels"), kit.numpy("out_scores")),
        (None, found["labels"].numpy(), found["scores"].numpy()),
    )
    assert share_matched(same) >= 0.95
    whole = F.interpolate(found["probs"][None], scale_factor=4, mode="bilinear", align_corners=False)[..., :256, :352]
    shown = F.interpolate(whole, (300, 400), mode="bilinear", align_corners=False)[0] > 0.5
    want = kit.masks("out_masks_packed", (300, 400))
    assert share_of_masks(want, kit.numpy("out_mask_sel"), shown.numpy(), same) >= 0.95
    crops = crop_masks(found["probs"], (256, 352))  # what the pipeline gets is the same picture
    for mask, corner, picture in zip(crops.masks, crops.corners_xy, (whole[0] > 0.5).numpy(), strict=True):
        rows, cols = (slice(low, low + side) for low, side in zip(corner[::-1], mask.shape, strict=True))
        assert picture.sum() == mask.sum()
        assert (picture[rows, cols] == mask).all()
