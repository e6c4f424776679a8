"""VoVNetV2 (Lee and Park, 2020, arXiv:1911.06667, section 3.4): one-shot aggregation with effective squeeze-excitation.

K channels, h and w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from segworker.errors import ConfigError


@dataclass(frozen=True, slots=True)
class VoVNetSizes:
    """Sizes of stages 2 to 5, whose strides are 4 to 32."""

    stem: tuple[int, int, int] = (64, 64, 128)
    inner: tuple[int, ...] = (128, 160, 192, 224)
    "Channels of each block's 3x3 convolutions."
    out: tuple[int, ...] = (256, 512, 768, 1024)
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    convs: int = 5
    "Of each block."


SIZES = {
    "vovnet39": VoVNetSizes(),
    "vovnet_tiny": VoVNetSizes((16, 16, 32), (16, 16, 24, 32), (32, 64, 96, 128), (1, 1, 1, 1), 3),
}
"'vovnet_tiny' is for tests."


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "group": _group}


class Aggregation(nn.Module):
    """Convolutions in a row, all of whose results a 1x1 convolution joins; channels are then weighed."""

    def __init__(
        self, channels: int, inner: int, out: int, *, convs: int, norm: Callable[[int], nn.Module], adds: bool
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(inner if k else channels, inner, 3, norm) for k in range(convs))
        self.concat = _conv(channels + convs * inner, out, 1, norm)
        self.weigh = nn.Conv2d(out, out, 1)
        self.adds = adds

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out, h, w)."""
        parts = [features]
        for conv in self.convs:
            parts.append(conv(parts[-1]))
        joined = self.concat(torch.cat(parts, dim=1))
        weighed: Tensor = joined * F.hardsigmoid(self.weigh(joined.mean((2, 3), keepdim=True)))
        return weighed + features if self.adds else weighed


def _conv(channels: int, out: int, size: int, norm: Callable[[int], nn.Module], stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(conv, norm(out), nn.ReLU())


def build_vovnet(name: str, *, norm: str = "frozen") -> tuple[nn.Sequential, Sequence[int]]:
    """Return a network of the children stem and stage2 to stage5, with random weights, and the stages' channels.

    Args:
        name: one of `SIZES`.
        norm: 'frozen' (published statistics, never changed), 'batch', or 'group' (for small batches).

    Raises:
        ConfigError: a name that is not known.
    """
    if name not in SIZES or norm not in _NORMS:
        raise ConfigError(
            f"backbone is one of {', '.join(SIZES)} and norm one of {', '.join(_NORMS)}, got {name!r} and {norm!r}"
        )
    sizes, layer = SIZES[name], _NORMS[norm]
    first, second, third = sizes.stem
    body = nn.Sequential()
    body.add_module(
        "stem",
        nn.Sequential(_conv(3, first, 3, layer, 2), _conv(first, second, 3, layer), _conv(second, third, 3, layer, 2)),
    )
    channels = third
    for k, (inner, out, count) in enumerate(zip(sizes.inner, sizes.out, sizes.blocks, strict=True)):
        blocks = [
            Aggregation(out if n else channels, inner, out, convs=sizes.convs, norm=layer, adds=n > 0)
            for n in range(count)
        ]
        pool = nn.MaxPool2d(3, 2, ceil_mode=True) if k else nn.Identity()
        body.add_module(f"stage{k + 2}", nn.Sequential(pool, *blocks))
        channels = out
    return body, sizes.out
