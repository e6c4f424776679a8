"""The numbers that make one Mask R-CNN differ from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from segworker.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MaskRCNNConfig:
    """Sizes of a compact Mask R-CNN built from torchvision's parts (He et al., 2017, arXiv:1703.06870)."""

    num_classes: int = 2
    "Classes including the background, which is class 0."
    fpn_channels: int = 96
    "Channels of every pyramid level."
    body_stages: tuple[int, ...] = (1, 2, 3)
    "ResNet-18 stages used, 1-based: stage 1 has stride 4, each further one twice that."
    anchor_sizes_px: tuple[tuple[float, ...], ...] = ((7.0, 13.0), (24.0, 40.0), (64.0, 110.0))
    "Anchor sides of each level."
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    "Height over width."
    roi_canonical_px: int = 112
    "Boxes of this side are pooled from the level of stride 16."
    box_head_units: int = 256
    mask_head_layers: tuple[int, ...] = (96, 96, 96)
    "Output channels of the 3x3 convolutions of the mask head."
    rpn_samples: int = 192
    "Anchors of an image that the proposal loss looks at."
    rpn_fg_iou: float = 0.6
    box_samples: int = 112
    "Proposals of an image that the box loss looks at; a quarter of them, at most, reach the mask loss."
    rpn_top_n_train: int = 600
    rpn_top_n_test: int = 3000
    detections: int = 1000
    "Objects of a tile, at most."
    score_threshold: float = 0.05
    nms_iou: float = 0.4
    image_mean: tuple[float, float, float] = (0.25, 0.25, 0.25)
    "Subtracted from images in 0..1."
    image_std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if len(self.anchor_sizes_px) != len(self.body_stages):
            raise ValueError(
                f"each level has its own anchors, got {len(self.anchor_sizes_px)} for {len(self.body_stages)} levels"
            )

    @property
    def stride(self) -> int:
        """Pixels that the deepest level sums up in one cell."""
        return 1 << (self.body_stages[-1] + 1)


@dataclass(frozen=True, slots=True)
class ResNet50Options:
    """Options of torchvision's networks; the defaults are those of the official checkpoints."""

    num_classes: int = 91
    "Classes including the background."
    class_names: tuple[str, ...] = ()
    "Names of the classes from label 1 on; in options, a comma-separated text will do."
    detections: int = 100
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.05
    frozen_norm: bool = True
    "v1 only: batch norms as the official checkpoint wants them; False to train from random weights."

    def __post_init__(self) -> None:
        if self.num_classes < 2 or self.detections < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                f"num_classes is at least 2, detections at least 1 and score_threshold in 0..1, got {self}; "
                "check the model options"
            )


_Options = TypeVar("_Options")
_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def parse_options(kind: type[_Options], options: Mapping[str, object]) -> _Options:
    """Return a dataclass of options from a job file's or a command line's values.

    Args:
        kind: a dataclass, all of whose fields have defaults.
        options: by field name; text is read as the type of the field's default.

    Raises:
        ConfigError: an option it does not have, or a value that does not read as its type.
    """
    known = {name: field.default for name, field in kind.__dataclass_fields__.items()}  # type: ignore[attr-defined]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"unknown model option {unknown[0]!r}; known are {', '.join(known)}")
    return kind(**{name: _as_type(name, value, type(known[name])) for name, value in options.items()})


def _as_type(name: str, value: object, kind: type) -> object:
    try:
        if kind is tuple:
            return tuple(part.strip() for part in str(value).split(",")) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]
        if kind is bool:
            return _FLAGS[str(value).strip().lower()]
        return kind(value)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"model option {name} must be of type {kind.__name__}, got {value!r}") from error
