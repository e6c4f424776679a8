"""A model's options: what a job file or a command line may say, read as the type of a dataclass field's default."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TypeVar

from segworker.errors import ConfigError

_Options = TypeVar("_Options")
_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def parse_options(kind: type[_Options], options: Mapping[str, object]) -> _Options:
    """Return a dataclass of options.

    Args:
        kind: a dataclass, all of whose fields have defaults.
        options: by field name; text is read as the type of the field's default.

    Raises:
        ConfigError: an option it does not have, or a value that does not read as its type.
    """
    return change_options(kind(), options)


def change_options(base: _Options, options: Mapping[str, object], *, fixed: Collection[str] = ()) -> _Options:
    """Return `base` with some fields changed.

    Args:
        base: a dataclass instance.
        options: by field name; text is read as the type of the field's value in `base`.
        fixed: fields that are no options.

    Raises:
        ConfigError: as `parse_options`.
    """
    known = {
        field.name: getattr(base, field.name)
        for field in dataclasses.fields(base)  # type: ignore[arg-type]
        if field.name not in fixed
    }
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"unknown model option {unknown[0]!r}; known are {', '.join(known)}")
    changes = {name: _like(name, value, known[name]) for name, value in options.items()}
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _like(name: str, value: object, default: object) -> object:
    kind = type(default)
    try:
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
            each = type(default[0]) if default else str
            return tuple(each(part.strip() if isinstance(part, str) else part) for part in parts)
        if kind is bool:
            return _FLAGS[str(value).strip().lower()]
        return kind(value)  # type: ignore[call-arg]  # int, float or str
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"model option {name} must be of type {kind.__name__}, got {value!r}") from error
