"""What every model offers, and what the engine does with it.

B tiles, C bands, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segworker.errors import ConfigError
from segworker.types import Category, InputSpec, Prediction

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class Model(Protocol):
    """A segmentation model, ready to predict."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes it can return."""
        ...

    @property
    def spec(self) -> InputSpec:
        """What it is to be fed."""
        ...

    def predict(self, images_BCHW: Tensor, valid_BHW: Tensor) -> list[Prediction]:
        """Return one prediction for each tile, in window pixels.

        Args:
            images_BCHW: float32 on the model's device, in 0..1 where `spec.scaling` is 'unit'; sides are multiples of
                `spec.stride`. The model subtracts its own mean.
            valid_BHW: bool; False where the source has no data and where the window was padded.

        A tile's prediction must not depend on its batch mates.
        """
        ...


_M = TypeVar("_M")


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device of a name: 'auto' is the GPU where there is one, else the CPU."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"a device is 'auto', 'cpu' or 'cuda[:N]', got {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {wanted!r} needs a CUDA GPU and none is visible here; use --device cpu")
    return device


def place(model: _M, device: torch.device) -> _M:
    """Move a model to a device and put it into inference mode; models that are not torch modules place themselves."""
    if isinstance(model, nn.Module):
        model.to(device).eval()
    return model


def predict_arrays(
    model: Model,
    images_BCHW: NDArray[np.float32],
    valid_BHW: NDArray[np.bool_],
    *,
    device: torch.device,
    precision: Precision = "fp32",
) -> list[Prediction]:
    """Predict from arrays: pad to the model's stride, move to the device, run, and return arrays.

    Args:
        model: in inference mode, see `place`.
        images_BCHW: as `Model.predict` wants them, of any height and width.
        valid_BHW: bool.
        device: where `place` put the model.
        precision: arithmetic of matrix products and convolutions; weights stay as they are.
    """
    images, valid = _padded(torch.from_numpy(images_BCHW), torch.from_numpy(valid_BHW), model.spec.stride)
    dtype = _AUTOCAST.get(precision, torch.bfloat16)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=precision in _AUTOCAST):
        found = model.predict(images.to(device), valid.to(device))
    if len(found) != len(images_BCHW):
        raise ConfigError(
            f"predict() returns one Prediction for each tile, got {len(found)} for {len(images_BCHW)}; fix the model"
        )
    return found


def _padded(images_BCHW: Tensor, valid_BHW: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Append invalid zeros on the right and below, up to the next multiples of the stride."""
    height, width = valid_BHW.shape[1:]
    amount = (0, -width % stride, 0, -height % stride)
    if not any(amount):
        return images_BCHW, valid_BHW
    return nn.functional.pad(images_BCHW, amount), nn.functional.pad(valid_BHW, amount)


def check_model(candidate: object, origin: str) -> Model:
    """Return `candidate` if it keeps the contract as far as attributes tell.

    Raises:
        ConfigError: it does not; the message names what is missing.
    """
    missing = [name for name in ("categories", "spec", "predict") if not hasattr(candidate, name)]
    if missing or not isinstance(candidate, Model):
        raise ConfigError(
            f"{origin} must give a Model (segworker.models.protocol), got {type(candidate).__name__} "
            f"without {', '.join(missing) or 'the right attributes'}"
        )
    _check_attributes(candidate, origin)
    return candidate


def _check_attributes(model: Model, origin: str) -> None:
    categories: Sequence[object] = model.categories
    if not categories or not all(isinstance(one, Category) for one in categories):
        raise ConfigError(f"{origin}: categories must be a tuple of at least one Category, got {categories!r}")
    ids = [category.id for category in model.categories]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"{origin}: category ids must be unique, got {ids[:20]}")
    if not isinstance(model.spec, InputSpec):
        raise ConfigError(f"{origin}: spec must be an InputSpec, got {type(model.spec).__name__}")
    if not callable(model.predict):
        raise ConfigError(f"{origin}: predict must be a method, got {type(model.predict).__name__}")
