"""Parts that models share: suppression, crops, input rules, layouts of official files, pickles of arrays."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from segworker.errors import WeightsError
from segworker.models.common.coco import COCO_STUFF, COCO_THINGS
from segworker.models.common.crops import boxes_of_crops, crop_masks
from segworker.models.common.input import CAFFE_BYTES, IMAGENET_BYTES, InputRule
from segworker.models.common.layouts import Layout, shift
from segworker.models.common.nms import fast_nms, matrix_nms
from segworker.models.panopticfpn.decode import CombineRule, combine
from segworker.models.registry import build_model, load_model, model_entry
from segworker.models.weights import load_weights, read_state_dict


class TestSuppression:
    def test_fast_nms_drops_what_any_better_box_of_its_class_overlaps(self) -> None:
        torch.manual_seed(0)
        corners = torch.rand(40, 2) * 20
        boxes = torch.cat([corners, corners + 5 + 5 * torch.rand(40, 2)], 1)
        scores = torch.rand(3, 40)
        index, labels, kept = fast_nms(boxes, scores, iou=0.4, per_class=40, detections=1000)
        want = {
            (label, i)
            for label in range(3)
            for i in range(40)
            if not any(
                scores[label, j] > scores[label, i] and box_iou(boxes[i : i + 1], boxes[j : j + 1]) > 0.4
                for j in range(40)
            )
        }
        assert set(zip(labels.tolist(), index.tolist(), strict=True)) == want
        assert (kept.diff() <= 0).all()
        assert len(fast_nms(boxes, scores, iou=0.4, per_class=40, detections=5)[0]) == 5

    def test_fast_nms_of_nothing(self) -> None:
        index, labels, scores = fast_nms(torch.zeros(0, 4), torch.zeros(3, 0), iou=0.5, per_class=5, detections=5)
        assert len(index) == len(labels) == len(scores) == 0

    def test_matrix_nms_follows_its_formula(self) -> None:
        masks = torch.zeros(4, 10, 10, dtype=torch.bool)
        masks[0, :6], masks[1, 1:7], masks[2, :6], masks[3, 2:8] = True, True, True, True
        labels, scores = torch.tensor([0, 0, 1, 0]), torch.tensor([0.9, 0.8, 0.7, 0.6])
        decayed = matrix_nms(masks, labels, scores, sigma=2.0)
        iou = {(0, 1): 50 / 70, (0, 3): 40 / 80, (1, 3): 50 / 70}
        second = min(np.exp(-2 * iou[0, 3] ** 2), np.exp(-2 * iou[1, 3] ** 2) / np.exp(-2 * iou[0, 1] ** 2))
        want = [0.9, 0.8 * np.exp(-2 * iou[0, 1] ** 2), 0.7, 0.6 * min(1, second)]
        np.testing.assert_allclose(decayed.numpy(), want, rtol=1e-5)
        assert len(matrix_nms(masks[:0], labels[:0], scores[:0], sigma=2.0)) == 0


class TestCrops:
    @given(seed=st.integers(0, 10_000), size=st.tuples(st.integers(5, 60), st.integers(5, 60)))
    def test_a_crop_is_the_interpolated_mask(self, seed: int, size: tuple[int, int]) -> None:
        probs = torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(seed))
        probs[1] *= 0.4
        want = F.interpolate(probs[None], size, mode="bilinear", align_corners=False)[0] > 0.5
        found = crop_masks(probs, size)
        boxes = boxes_of_crops(found).astype(int)
        for mask, (x, y), whole, box in zip(found.masks, found.corners_xy, want.numpy(), boxes, strict=True):
            shown = np.zeros(size, bool)
            shown[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
            differ = shown != whole  # only where the value is the threshold, but for rounding
            assert differ.sum() <= 1
            if whole.any() and not differ.any():
                rows, cols = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
                assert box.tolist() == [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]
        assert not found.masks[1].any()


class TestInputRule:
    def test_normalises_in_the_networks_order(self) -> None:
        image = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
        blue, green, red = CAFFE_BYTES.normalise(image).flatten().tolist()
        assert (blue, green, red) == pytest.approx((-103.53, 127.5 - 116.28, 255 - 123.675))
        assert IMAGENET_BYTES.normalise(image)[0, 0].item() == pytest.approx((255 - 123.675) / 58.395)

    @pytest.mark.parametrize(
        ("size", "want"), [((480, 640), (800, 1067)), ((400, 1000), (533, 1333)), ((1600, 800), (1333, 666))]
    )
    def test_the_papers_size(self, size: tuple[int, int], want: tuple[int, int]) -> None:
        assert CAFFE_BYTES.paper_size_yx(*size) == want
        assert InputRule((0,), (1,)).paper_size_yx(*size) == size
        with pytest.raises(ValueError, match="std is above 0"):
            InputRule((0,), (0,))


class TestCombine:
    """Kirillov et al., section 4.1."""

    def test_each_pixel_belongs_to_one_segment(self) -> None:
        masks = np.zeros((4, 20, 20), bool)
        masks[0, :10], masks[1, 6:16], masks[2, 8:11], masks[3, 16:] = True, True, True, True
        scores, classes = np.array([0.9, 0.8, 0.7, 0.4]), np.array([1, 2, 3, 4])
        semantic = np.full((20, 20), 7)
        semantic[:, :2] = 8
        semantic[19] = 0
        panoptic, segments = combine(masks, scores, classes, semantic, CombineRule(min_stuff_px=10))
        assert [(s.class_id, s.isthing, s.instance) for s in segments] == [(1, True, 0), (2, True, 1), (7, False, None)]
        assert np.bincount(panoptic.ravel()).tolist() == [26, 200, 120, 54]  # nothing: things unseen, and little stuff
        assert (panoptic[:10] == 1).all()  # the better one keeps what both want


class TestClasses:
    def test_coco(self) -> None:
        assert (len(COCO_THINGS), len(COCO_STUFF)) == (80, 53)
        assert len({c.id for c in (*COCO_THINGS, *COCO_STUFF)}) == 133
        assert (COCO_THINGS[79].id, COCO_STUFF[0].id, COCO_STUFF[-1].id) == (90, 92, 200)
        assert not any(c.isthing for c in COCO_STUFF)


class TestLayouts:
    def test_renames_ignores_and_keeps_what_it_does_not_know(self) -> None:
        layout = Layout("somebody", "b.1", ((r"^b\.(\d)", shift(-1, "body.", ".0")),), ignored=("alias",))
        state = {name: torch.zeros(1) for name in ("b.1.weight", "alias.x", "other")}
        assert layout.fits({"b.1": torch.zeros(1)})
        assert not layout.fits(state)
        assert list(layout.convert(state)) == ["body.0.0.weight", "other"]
        with pytest.raises(WeightsError, match=r"two tensors of a file in somebody's layout are 'body\.0\.0'"):
            layout.convert({"b.1": torch.zeros(1), "body.0.0": torch.zeros(1)})

    def test_what_is_missing_and_left_over_in_an_official_file_is_named(self, tmp_path: Path) -> None:
        entry = model_entry("yolact_r50")
        model = build_model("yolact_r50", entry.narrow)
        torch.save(
            {
                "backbone.layers.0.0.conv1.weight": torch.zeros(3),
                "backbone.layer1.0.conv1.weight": torch.zeros(3),
                "backbone.conv1.weight": torch.zeros(64, 3, 7, 7),
                "mask_refine.weight": torch.zeros(1),
            },
            tmp_path / "plus.pth",
        )
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "plus.pth", model_name="yolact_r50", layouts=entry.layouts)
        for part in (
            "plus.pth",
            "'yolact_r50'",
            "missing",
            "1 unexpected (mask_refine.weight)",
            "body.layer1.0.conv1.weight (3,)",
        ):
            assert part in str(caught.value)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch segworker-was-here",)


class EvilEncode:
    def __reduce__(self):
        import codecs

        return codecs.encode, ("x", "rot13")


class TestPickles:
    def test_arrays_become_tensors(self) -> None:
        arrays = {
            "model": OrderedDict(
                a=np.arange(6, dtype=np.float32).reshape(2, 3),
                b=np.asfortranarray(np.arange(6).reshape(2, 3)),
                c=np.float64(2.5),
                d=np.array(7, np.int64),
                e=np.arange(3, dtype=">f4").astype("<f4"),
                f=np.zeros((0, 4), np.float16),
            ),
            "__author__": "somebody",
        }
        for protocol in (2, 3, 4):
            found = read_state_dict(pickle.dumps(arrays, protocol=protocol))
            for name, value in arrays["model"].items():
                np.testing.assert_array_equal(found[name].numpy(), value)
                assert found[name].shape == np.shape(value)

    @pytest.mark.parametrize(
        "content",
        [
            pickle.dumps({"model": Evil()}),
            pickle.dumps({"model": EvilEncode()}),
            pickle.dumps({"model": {"a": np.array([Evil()], dtype=object)}}),
            pickle.dumps({"model": {"a": np.zeros(1, dtype=[("x", "f4")])}}),
            pickle.dumps({"model": {"a": torch.zeros}}),
            pickle.dumps({"model": {"a": np.ndarray}}),
            pickle.dumps({"model": {"a": np.zeros(3)}})[:-20],
            b"\x80\x04cnumpy\nndarray\n(K\x01tR.",
        ],
        ids=["call", "codec", "objects", "fields", "function", "type", "cut", "alloc"],
    )
    def test_all_else_is_refused_and_nothing_is_executed(
        self, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model.pkl").write_bytes(content)
        with pytest.raises(WeightsError):
            load_model("maskrcnn_d2_r50_fpn", weights=tmp_path / "model.pkl")
        assert not (tmp_path / "segworker-was-here").exists()
