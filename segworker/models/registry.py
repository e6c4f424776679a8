"""Models by name, and users' own by `package.module:factory`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segworker.errors import ConfigError
from segworker.models.common.layouts import Layout
from segworker.models.protocol import Model, check_model
from segworker.models.weights import digest_of_content, digest_of_options, digest_of_state, load_weights, read_bytes

Weights = Path | str | bytes
"A local path, or a file's content."


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """What is known of a registered model without building it."""

    name: str
    build: Callable[..., Model]
    "Returns the model with random weights; keyword options only."
    summary: str
    "One line for `segworker models`."
    tasks: tuple[str, ...]
    "Of 'boxes', 'instances', 'keypoints', 'panoptic', 'semantic', 'dense'."
    num_parameters: int
    "With default options."
    licence: str
    "Of the bundled weights and, where it differs, of the official ones."
    bundled: Path | None = None
    "Weights that are part of the package."
    official: str | None = None
    "File name of the official checkpoint that it loads."
    published: str | None = None
    "What its makers measured, on what, and where they say so."
    layouts: tuple[Layout, ...] = ()
    "Official files that do not use our names for tensors."
    narrow: Mapping[str, Any] = field(default_factory=dict)
    "Options of a small variant, for tests and first tries."


_PACKAGES = (
    "blendmask",
    "cascade",
    "centermask",
    "fasterrcnn",
    "htc",
    "hydranet",
    "keypointrcnn",
    "maskrcnn",
    "nuclei",
    "panopticfpn",
    "solo",
    "yolact",
)
"Folders of `segworker.models` that register something."
_ENTRIES: dict[str, ModelEntry] = {}


def register(entry: ModelEntry) -> None:
    """Add a model.

    Raises:
        ValueError: the name is taken, or would read as `package.module:factory`.
    """
    if entry.name in _ENTRIES:
        raise ValueError(f"model names are unique, got {entry.name!r} twice; choose another")
    if not entry.name.isidentifier():
        raise ValueError(f"a model's name is an identifier, got {entry.name!r}")
    _ENTRIES[entry.name] = entry


def list_models() -> tuple[ModelEntry, ...]:
    """Return all registered models, by name."""
    _register_builtin()
    return tuple(_ENTRIES[name] for name in sorted(_ENTRIES))


def model_entry(name: str) -> ModelEntry:
    """Return a registered model's entry.

    Raises:
        ConfigError: no such model; the message names the nearest one.
    """
    _register_builtin()
    if name in _ENTRIES:
        return _ENTRIES[name]
    near = difflib.get_close_matches(name, _ENTRIES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"unknown model {name!r}; {hint}Known are {', '.join(sorted(_ENTRIES))}, or package.module:factory for your own"
    )


def build_model(ref: str, options: Mapping[str, Any] | None = None) -> Model:
    """Return a model as its builder makes it: registered ones with random weights, to be trained or loaded into."""
    if ":" in ref:
        return check_model(_call(_import_factory(ref), ref, options or {}), ref)
    return check_model(_call(model_entry(ref).build, ref, options or {}), ref)


def load_model(ref: str, *, weights: Weights | None = None, options: Mapping[str, Any] | None = None) -> Model:
    """Return a model that is ready to predict, on the CPU and in inference mode.

    Args:
        ref: a registered name, or `package.module:factory` of a callable that returns a Model.
        weights: a local file or its content; default: the bundled ones. A factory of yours loads its own by default.
        options: keyword arguments of the builder or the factory.

    Raises:
        ConfigError: no such model, not a Model, options it does not take, or no weights for a model that bundles none.
        WeightsError: see `load_weights`.
    """
    chosen = weights if weights is not None else _default_weights(ref)
    model = build_model(ref, options)
    if chosen is not None:
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"--weights is for torch modules, and {ref} gives a {type(model).__name__}; load them in it"
            )
        load_weights(model, chosen, model_name=ref, layouts=() if ":" in ref else model_entry(ref).layouts)
    if isinstance(model, nn.Module):
        model.eval()
    return model


def model_digest(
    ref: str, *, weights: Weights | None = None, options: Mapping[str, Any] | None = None, model: object = None
) -> str:
    """Return 64 hex digits that change whenever predictions may: for the keys of durable work.

    They cover the name, the options and the weights file's content. For a factory of yours they cover the source file
    of its module as well, and the state dict of `model` where no weights are given: what it imports is not seen.
    """
    parts = [ref.encode(), digest_of_options(options or {})]
    chosen = weights if weights is not None else _default_weights(ref)
    if chosen is not None:
        parts.append(read_bytes(chosen))
    elif isinstance(model, nn.Module):
        parts.append(digest_of_state(model.state_dict()).encode())
    if ":" in ref:
        parts.append(_source_of(_import_factory(ref)))
    return digest_of_content(*parts)


def _default_weights(ref: str) -> Path | None:
    if ":" in ref:
        return None
    entry = model_entry(ref)
    if entry.bundled is None:
        known = f" (it loads the official {entry.official})" if entry.official else ""
        raise ConfigError(f"model {ref!r} bundles no weights; give --weights FILE{known}")
    return entry.bundled


def _import_factory(ref: str) -> Callable[..., object]:
    module_name, _, attribute = ref.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"--model {ref}: cannot import {module_name!r} ({error}); check PYTHONPATH and the name"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--model {ref} must be package.module:factory") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"--model {ref}: {module_name} has no {attribute!r}; name a callable that returns a Model"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"--model {ref}: {attribute!r} must be callable and return a Model, got {type(found).__name__}"
        )
    return found


def _call(factory: Callable[..., object], ref: str, options: Mapping[str, Any]) -> object:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(f"model {ref!r} does not take these options: {error}; got {dict(options)!r}") from error
    except ValueError:  # a builtin without a signature: let the call itself tell
        pass
    with torch.random.fork_rng(devices=[]):
        return factory(**options)


def _source_of(factory: Callable[..., object]) -> bytes:
    source = (
        inspect.getsourcefile(inspect.unwrap(factory))
        if inspect.isroutine(factory) or inspect.isclass(factory)
        else None
    )
    return Path(source).read_bytes() if source and Path(source).is_file() else repr(factory).encode()


def _register_builtin() -> None:
    """Import the packages whose import registers the models that come with segworker."""
    for package in _PACKAGES:
        importlib.import_module(f"segworker.models.{package}")
