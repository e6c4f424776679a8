"""Fill the configuration tree: flags over environment over a YAML job file over defaults.

pydantic-settings reads the environment and the file, and merges; pydantic validates; what is wrong comes back as one
ConfigError that names the flag, variable or key at fault, the rule, the value, and what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from segworker.config import JobConfig, leaves, sections
from segworker.errors import ConfigError
from segworker.killpoints import KILL_VARIABLE, STOP_VARIABLE

ENV_PREFIX = "SEGWORKER_"
MAX_VALUES = 100_000
"Of a job file: a few lines of aliases can stand for more than any memory holds."
CONFIG_VARIABLE = "SEGWORKER_CONFIG"
"Names the job file where `--config` does not."


def from_dict(tree: Mapping[str, object]) -> JobConfig:
    """Return the configuration of a nested mapping, as `JobConfig.as_dict` or a job file has it.

    Raises:
        ConfigError: a key is unknown, a value is not usable, or several do not go together.
    """
    with _explained(_Origin()):
        return JobConfig.model_validate(tree)


def from_flat(**values: object) -> JobConfig:
    """Return the configuration of values by their flat names, e.g. `from_flat(scenes=["a.tif"], tile=256)`.

    Raises:
        ConfigError: as `from_dict`.
    """
    return from_dict(nest(values))


def nest(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Put values with flat names into their sections; ConfigError for a name that no section has."""
    known = leaves()
    tree: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(unknown("option", name, known))
        tree.setdefault(known[name][0], {})[name] = value
    return tree


def load(*, flags: Mapping[str, object] | None = None, file: Path | None = None) -> JobConfig:
    """Return the configuration that flags, environment and job file give together.

    Args:
        flags: values by flat name, as text or already parsed; each replaces the whole value of weaker sources.
        file: a YAML job file; default: the one that SEGWORKER_CONFIG names, or none.

    Raises:
        ConfigError: an unknown key, variable or flag, an unusable value, or a job file that cannot be read.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    path = file if file is not None else Path(named) if named else None
    _check_environment()
    tree = nest(flags or {})
    if path is not None:
        _check_file(path)
    with _explained(_Origin(flags=tree, file=path)):
        return _from_sources(tree, path)


def to_yaml(config: JobConfig) -> str:
    """Return the whole configuration as a job file: `load` of it is an equal configuration."""
    text: str = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True, width=120)
    return text


def unknown(kind: str, name: str, known: Iterable[str], *, place: str = "") -> str:
    """Return the message for a name that does not exist, with the nearest one that does."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"there is no {kind} {name}{place}; {remedy}"


def variable(section: str, name: str) -> str:
    """Return the environment variable of a field."""
    return f"{ENV_PREFIX}{section}__{name}".upper()


def flag(name: str) -> str:
    """Return the flag of a field; scenes have none, they stand on their own."""
    return "SCENE" if name == "scenes" else f"--{name.replace('_', '-')}"


def _check_environment() -> None:
    known = [variable(section, name) for name, (section, _) in leaves().items()]
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in {
            *known,
            CONFIG_VARIABLE,
            KILL_VARIABLE,
            STOP_VARIABLE,
        }:
            raise ConfigError(unknown("environment variable", name, known))


def _check_file(path: Path) -> None:
    """Refuse a job file that pydantic-settings would skip in silence or fail on without its name."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"a job file must be readable text, got {path}: {error}; check --config") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"a job file must be YAML, got {path}: {' '.join(str(error).split())}") from error
    if _num_values(content, {}) > MAX_VALUES:
        raise ConfigError(
            f"a job file has at most {MAX_VALUES:,} values, got more in {path} once its aliases are followed; "
            "list many scenes in a manifest"
        )
    if not isinstance(content, dict | None):
        raise ConfigError(
            f"a job file must be a mapping of sections ({', '.join(sections())}), got a {type(content).__name__} in "
            f"{path}; `segworker run --print-config` writes a whole one"
        )


def _num_values(content: object, known: dict[int, int]) -> int:
    """Return how many values a YAML document holds, those behind aliases as often as they are named."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = MAX_VALUES + 1  # of a list that holds itself
        inner = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_num_values(value, known) for value in inner)
    return known[id(content)]


def _from_sources(flags: dict[str, dict[str, object]], file: Path | None) -> JobConfig:
    """Let pydantic-settings read and merge its sources, the strongest first."""
    from pydantic_settings import (  # noqa: PLC0415 - takes as long as the whole rest of `segworker --help`
        BaseSettings,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
        YamlConfigSettingsSource,
    )

    class Sources(JobConfig, BaseSettings):
        # Decoding is off because the fields read their own text forms; pydantic-settings would expect JSON.
        model_config = SettingsConfigDict(
            env_prefix=ENV_PREFIX, env_nested_delimiter="__", enable_decoding=False, yaml_file=file
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - no .env files
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - no secrets in the tree
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    values: dict[str, Any] = dict(flags)
    found = Sources(**values)
    # A plain JobConfig again: a class made inside a function does not pickle.
    return JobConfig(**{name: getattr(found, name) for name in sections()})


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where values came from, to name it in an error."""

    flags: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    file: Path | None = None

    def of(self, section: str, name: str) -> str:
        """Return the flag, variable or key that set a field."""
        if name in self.flags.get(section, {}):
            return flag(name)
        if variable(section, name) in {key.upper() for key in os.environ}:
            return variable(section, name)
        return f"{section}.{name}" + (f" in {self.file}" if self.file else "")


@contextmanager
def _explained(origin: _Origin) -> Iterator[None]:
    """Turn pydantic's errors into one ConfigError, a line for each."""
    try:
        yield
    except ValidationError as error:
        lines = dict.fromkeys(_explain(detail, origin) for detail in error.errors())
        raise ConfigError("\n".join(lines)) from error


def _explain(detail: ErrorDetails, origin: _Origin) -> str:
    section, name = (*(str(part) for part in detail["loc"]), "", "")[:2]
    if detail["type"] == "extra_forbidden":
        return _explain_unknown(section, name, origin)
    if name not in leaves():
        keys = ", ".join(sections()[section].model_fields) if section in sections() else ", ".join(sections())
        return f"{section or 'a job'} must be a mapping with some of the keys {keys}, got {detail['input']!r}"
    where = origin.of(section, name)
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return f"{where}: {cause}"
    rule = re.sub(r"^\w+ should", "must", detail["msg"])
    return f"{where} {rule}, got {detail['input']!r}; expected: {leaves()[name][1].description}"


def _explain_unknown(section: str, name: str, origin: _Origin) -> str:
    place = f" in {origin.file}" if origin.file else ""
    home = leaves().get(name or section)
    path = f"{section}.{name}" if name else section
    if home is not None:
        return f"there is no key {path}{place}; {name or section} belongs under {home[0]}"
    known = [f"{part}.{key}" for key, (part, _) in leaves().items()] if name else list(sections())
    return unknown("key" if name else "section", path, known, place=place)
