"""The official file of detectron2: the layout of its Mask R-CNN, with a number for each stage."""

from segworker.models.maskrcnn.weights import DETECTRON2

__all__ = ["DETECTRON2"]
