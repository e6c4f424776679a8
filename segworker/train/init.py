"""Starting a training from weights that exist: what fits is loaded, and what was and was not is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from segworker.errors import ConfigError, WeightsError
from segworker.models.registry import Weights, list_models, model_entry
from segworker.models.weights import read_state_dict

_NUM_SHOWN = 6


@dataclass(frozen=True, slots=True)
class InitAccount:
    """What became of a model's tensors, and of a file's."""

    source: str
    loaded: tuple[str, ...]
    replaced: tuple[str, ...]
    "Of another shape in the file: heads for other classes, which start from random numbers."
    fresh: tuple[str, ...]
    "Not in the file; they start from random numbers."
    unused: tuple[str, ...]
    "In the file alone."
    num_loaded: int
    "Numbers (weights)."
    num_all: int

    @property
    def text(self) -> str:
        """The account that is printed."""
        share = self.num_loaded / max(1, self.num_all)
        lines = [f"init      {self.source}: {len(self.loaded)} tensors, {share:.1%} of the model's numbers, are loaded"]
        lines += [_told("replaced", self.replaced, "have another shape there and start anew")]
        lines += [_told("fresh", self.fresh, "are not there and start anew")]
        lines += [_told("unused", self.unused, "of the file are not used")]
        return "\n".join(line for line in lines if line)


def init_from(
    model: nn.Module,
    source: str,
    content: Weights | None,
    *,
    model_name: str,
    part: Literal["whole", "backbone"] = "whole",
) -> InitAccount:
    """Load what fits from weights of this or of a similar model.

    Args:
        model: is changed.
        source: a registered model that bundles weights, or how the file is called.
        content: the file; None: the bundled weights of `source`.
        model_name: what `model` was built as; the official layouts of that name are understood.
        part: 'backbone' loads tensors below `backbone.` or `body.` alone.

    Raises:
        ConfigError: no bundled weights.
        WeightsError: unreadable, or nothing of it fits the model.
    """
    state = _converted(read_state_dict(_content(source, content), name=source), model_name)
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    chosen = {k for k in wanted if part == "whole" or k.startswith(("backbone.", "body."))}
    loaded = [k for k in wanted if k in chosen and k in state and state[k].shape == wanted[k].shape]
    if not loaded:
        raise WeightsError(
            f"--init gives weights of which some fit the model, got none of {len(state)} tensors of {source} for "
            f"{model_name!r}; give weights of the same architecture"
        )
    model.load_state_dict({k: state[k] for k in loaded}, strict=False)
    return InitAccount(
        source,
        tuple(loaded),
        tuple(k for k in wanted if k in chosen and k in state and k not in loaded),
        tuple(k for k in wanted if k not in state or k not in chosen),
        tuple(k for k in state if k not in wanted and not k.endswith("num_batches_tracked")),
        sum(wanted[k].numel() for k in loaded),
        sum(v.numel() for v in wanted.values()),
    )


def is_bundled(source: str) -> bool:
    """Say whether --init names a registered model that brings its weights."""
    return any(entry.name == source and entry.bundled is not None for entry in list_models())


def _content(source: str, content: Weights | None) -> Weights:
    if content is not None:
        return content
    bundled = model_entry(source).bundled
    if bundled is None:
        raise ConfigError(f"--init names a model that bundles weights, or a file, got {source!r}; give the file")
    return bundled


def _converted(state: Mapping[str, Tensor], model_name: str) -> Mapping[str, Tensor]:
    """Return official files that name their tensors otherwise under the model's own names."""
    for layout in () if ":" in model_name else model_entry(model_name).layouts:
        if layout.fits(state):
            return layout.convert(dict(state))
    return state


def _told(what: str, names: Sequence[str], meaning: str) -> str:
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return f"{what:<10}{len(names)} tensors {meaning}: {', '.join(names[:_NUM_SHOWN])}{more}" if names else ""
