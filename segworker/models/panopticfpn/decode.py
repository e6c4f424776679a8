"""From Panoptic FPN's two heads to a prediction, and the paper's rule that joins them.

N objects, C semantic classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segworker.types import Prediction


@dataclass(frozen=True, slots=True)
class CombineRule:
    """Thresholds of Kirillov et al., 2019, section 4.1, with the values of detectron2."""

    min_score: float = 0.5
    "Instances below this are left out."
    max_covered: float = 0.5
    "Instances are left out of which better ones cover more than this share."
    min_stuff_px: int = 4096
    "Stuff classes with fewer pixels are left out."


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a panoptic image."""

    id: int
    "From 1."
    class_id: int
    isthing: bool
    instance: int | None = None
    "Index of the detection that it comes from; None for stuff."


def with_semantic(prediction: Prediction, logits_Chw: Tensor, class_ids: Sequence[int]) -> Prediction:
    """Return a prediction with the probabilities of the semantic classes, on the head's lattice."""
    scores = torch.softmax(logits_Chw.float(), dim=0).to(torch.float16).cpu().numpy()
    return replace(prediction, semantic_scores_CHW=scores, semantic_class_ids=np.array(class_ids, np.int32))


def combine(
    masks_NHW: NDArray[np.bool_],
    scores: NDArray[np.floating],
    class_ids: NDArray[np.integer],
    semantic_HW: NDArray[np.integer],
    rule: CombineRule | None = None,
) -> tuple[NDArray[np.int32], list[Segment]]:
    """Join instances and semantic classes so that each pixel belongs to one segment at most.

    Instances go first, by score: each takes what is left of its pixels, unless too much of it is taken. Stuff
    takes what no instance took; what the semantic head calls a thing and no instance took stays 0.

    Args:
        masks_NHW: of one image, whole.
        scores: (N,).
        class_ids: (N,).
        semantic_HW: class id of each pixel; 0 for things.
        rule: thresholds; default: the paper's.

    Returns:
        (H, W) segment ids, 0 for none, and the segments.
    """
    rule = rule or CombineRule()
    panoptic = np.zeros(semantic_HW.shape, np.int32)
    segments: list[Segment] = []
    for k in np.argsort(-scores, kind="stable").tolist():
        area = int(masks_NHW[k].sum())
        free = masks_NHW[k] & (panoptic == 0)
        if scores[k] < rule.min_score or not area or area - int(free.sum()) > rule.max_covered * area:
            continue
        segments.append(Segment(len(segments) + 1, int(class_ids[k]), isthing=True, instance=k))
        panoptic[free] = segments[-1].id
    for number in np.unique(semantic_HW).tolist():
        free = (semantic_HW == number) & (panoptic == 0)
        if number and int(free.sum()) >= rule.min_stuff_px:
            segments.append(Segment(len(segments) + 1, int(number), isthing=False))
            panoptic[free] = segments[-1].id
    return panoptic, segments
