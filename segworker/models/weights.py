"""Weights files: read without executing anything, matched against a model, and named by their content."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segworker.errors import WeightsError
from segworker.models.common.layouts import Layout
from segworker.models.pickled import is_plain_pickle, read_arrays

WRAPPERS = ("ema", "ema_state_dict", "state_dict", "model", "model_state_dict")
"Keys under which training tools keep a state dict; averaged weights come first."
_NUM_SHOWN = 4


def read_state_dict(weights: Path | str | bytes, *, name: str | None = None) -> dict[str, Tensor]:
    """Read tensors by name from safetensors, a .pth of plain tensors or a .pkl of arrays, by what the file holds.

    Args:
        weights: a local path, or a file's content.
        name: how to call the content in messages; default: the path.

    Raises:
        WeightsError: unreadable, of another format, or a pickle of anything but tensors, which is not executed.
    """
    label = name or (str(weights) if not isinstance(weights, bytes) else "the given weights")
    content = read_bytes(weights)
    if _is_safetensors(content):
        try:
            return safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{label} is a damaged safetensors file ({error}); download it again") from error
    return _unwrapped(_load_pth(content, label), label)


def read_bytes(weights: Path | str | bytes) -> bytes:
    """Return the content of a local weights file."""
    if isinstance(weights, bytes):
        return weights
    try:
        return Path(weights).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"weights must be a readable file, got {str(weights)!r} ({error.strerror}); check --weights"
        ) from error


def _is_safetensors(content: bytes) -> bool:
    length = int.from_bytes(content[:8], "little")
    return len(content) > 9 and content[8:9] == b"{" and length <= len(content) - 8


def _load_pth(content: bytes, label: str) -> object:
    try:
        if is_plain_pickle(content):
            return read_arrays(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError,
            TypeError, ImportError, zipfile.BadZipFile) as error:  # fmt: skip  # what broken and hostile pickles raise
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{label} must be safetensors, a .pth of plain tensors or a .pkl of arrays, and nothing in it is executed: "
            f"{first}; "
            "save the model's state_dict() with safetensors.torch.save_file or torch.save"
        ) from error


def _unwrapped(loaded: object, label: str) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(loaded.get(wrapper), Mapping):
                return _unwrapped(loaded[wrapper], label)
        if loaded and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()):
            return dict(loaded)
    raise WeightsError(
        f"{label} must hold a state dict (name -> tensor), got {type(loaded).__name__}; save model.state_dict()"
    )


def load_weights(
    model: nn.Module,
    weights: Path | str | bytes,
    *,
    model_name: str,
    name: str | None = None,
    layouts: Sequence[Layout] = (),
) -> None:
    """Read weights and put them into `model`, in the model's dtypes; every name and shape must match.

    Args:
        model: is changed.
        weights: a local path, or a file's content.
        model_name: for messages.
        name: how to call the content in messages; default: the path.
        layouts: official files of this model that name their tensors in another way.

    Raises:
        WeightsError: as `read_state_dict`, or the weights are of another architecture. The model is then unchanged.
    """
    label = name or (str(weights) if not isinstance(weights, bytes) else "the given weights")
    state = read_state_dict(weights, name=label)
    for layout in layouts:
        if layout.fits(state):
            state = layout.convert(state)
            break
    wanted = model.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or not key.endswith("num_batches_tracked")}
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    _check_match(wanted, {**counters, **state}, label=label, model_name=model_name)
    model.load_state_dict({**counters, **state})


def _check_match(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], *, label: str, model_name: str) -> None:
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", shapes)]
        raise WeightsError(
            f"{label} is not of model {model_name!r}: {'; '.join(part for part in parts if part)}; "
            "give the weights of this model, its num_classes as a model option, or another --model"
        )


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_NUM_SHOWN])}{more})" if names else ""


def save_weights(model: nn.Module, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's weights as safetensors: fp16, but fp32 for biases and norms (all that has one dimension)."""
    state = {
        key: value.detach().cpu().to(torch.float16 if value.ndim >= 2 else torch.float32).contiguous()
        for key, value in model.state_dict().items()
        if value.is_floating_point()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(safetensors.torch.save(state, metadata=dict(metadata or {})))
    partial.replace(path)


def digest_of_content(*parts: bytes) -> str:
    """Return the sha256 of some byte strings, each framed by its length, as 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, dtypes, shapes and values, whatever the order and the device."""
    return digest_of_content(*(part for key in sorted(state) for part in _state_parts(key, state[key])))


def _state_parts(key: str, value: Tensor) -> tuple[bytes, bytes]:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return f"{key} {value.dtype} {tuple(value.shape)}".encode(), flat.view(torch.uint8).numpy().tobytes()


def digest_of_options(options: Mapping[str, Any]) -> bytes:
    """Return a model's options as canonical JSON; values JSON does not know count by their repr."""
    return json.dumps(options, sort_keys=True, default=repr).encode()
