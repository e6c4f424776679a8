"""Whether bfloat16 pays on a device: on processors without instructions for it, it is several times slower."""

from __future__ import annotations

import torch


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return 'bf16' or 'fp32'; 'auto' is bf16 where the device computes in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # what torch knows of the processor
    fast = any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)
    return "bf16" if fast else "fp32"
