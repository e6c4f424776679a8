"""Cascade Mask R-CNN (Cai and Vasconcelos, 2018, arXiv:1712.00726) in detectron2's layout."""

from __future__ import annotations

from segworker.models.cascade.config import IOUS
from segworker.models.common.detectron2 import Detectron2Config, build_two_stage
from segworker.models.common.options import parse_options
from segworker.models.common.two_stage import TwoStage


def build_cascade(**options: object) -> TwoStage:
    """Return the network with random weights; options are fields of `Detectron2Config`."""
    return build_two_stage(parse_options(Detectron2Config, options), ious=IOUS, one_box=True)
