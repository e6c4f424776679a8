"""Starting values."""

from __future__ import annotations

from torch import Tensor, nn


def set_bias(layer: nn.Module, value: float = 0.0) -> None:
    """Fill a layer's bias, where it has one."""
    if isinstance(layer.bias, Tensor):
        nn.init.constant_(layer.bias, value)
