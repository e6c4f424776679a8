"""Command-line flags made from the configuration tree: one flag a field, one group a section.

argparse finds the flags and writes the help; values stay text, which the fields read as they read environment
variables. (pydantic-settings' own command line gives `--grid.tile` as well as `--tile`, JSON in its help, and no
nearest name for a flag that does not exist.)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias, get_args, get_origin

from pydantic.fields import FieldInfo

from segworker.config import JobConfig, leaves, sections
from segworker.config_load import flag, load, unknown
from segworker.errors import ConfigError

_METAVARS = {
    "tile": "PX",
    "overlap": "PX",
    "resolution": "M",
    "resolution_um": "UM",
    "simplify": "PX",
    "bands": "B,B,B",
    "value_range": "RANGE",
    "min_area": "AREA",
    "max_area": "AREA",
    "model_options": "KEY=VALUE",
    "class_min_score": "NAME=SCORE",
    "classes": "NAME,NAME",
    "min_score": "SCORE",
    "keep_work": "TIME",
    "memory": "SIZE",
    "max_failed_tiles": "LIMIT",
    "tile_timeout": "TIME",
    "check_shift": "SHARE",
    "price": "PRICE",
    "output": "URI",
    "weights": "URI",
    "manifest": "URI",
    "aoi": "FILE",
    "table_crs": "CRS",
    "mosaic_crs": "CRS",
}


Flags: TypeAlias = dict[str, object]
"Values by the names of fields, as text."


@dataclass(frozen=True, slots=True)
class Command:
    """What a command line asks for."""

    config: JobConfig
    action: Literal["run", "plan", "print"]
    "'plan' for --dry-run, 'print' for --print-config."


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors."""

    def flags(self) -> list[str]:
        """Return all flags that it knows."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that every usage error looks the same."""
        raise ConfigError(f"{message}; `{self.prog} --help` lists the flags")


def command_parser(
    name: str, *, description: str | None, epilog: str, usage: str | None = None, sparse: bool = False
) -> Parser:
    """Return the parser of one command, to which its arguments are added; `sparse`: flags not given are left out."""
    return Parser(
        prog=f"segworker {name}",
        description=description,
        epilog=epilog,
        usage=None if usage is None else f"segworker {name} {usage}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110),
        argument_default=argparse.SUPPRESS if sparse else None,
        allow_abbrev=False,
    )


def parse(argv: Sequence[str], *, prog: str, description: str, epilog: str = "") -> Command:
    """Return what the arguments behind `segworker run` ask for, environment and job file included.

    Raises:
        ConfigError: an unknown flag (the nearest known one is named), or whatever `config_load.load` refuses.
        SystemExit: after --help.
    """
    return parse_with(make_parser(prog=prog, description=description, epilog=epilog), argv)[0]


def parse_with(parser: Parser, argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Return what a parser of `make_parser` makes of arguments, and what it was given beyond a run's flags.

    Raises ConfigError and SystemExit as `parse` does.
    """
    found, rest = parser.parse_known_intermixed_args(list(argv))
    for item in rest:
        if item.startswith("-"):
            name = item.partition("=")[0]
            raise ConfigError(unknown("flag", name, parser.flags()))
    flags = {name: value for name, value in vars(found).items() if name in leaves()}
    if not flags.get("scenes", True):
        del flags["scenes"]
    config = load(flags=flags, file=found.config)
    return Command(config, "print" if found.print_config else "plan" if found.dry_run else "run"), found


def make_parser(*, prog: str, description: str, epilog: str = "") -> Parser:
    """Return the parser of everything that a JobConfig holds, and of the three flags that it does not."""
    parser = Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        usage=f"{prog} [SCENE ...] [--output URI] [--model NAME] [--tile PX --overlap PX] [--config FILE] [flags]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    job = parser.add_argument_group("job")
    job.add_argument(
        "--config", metavar="FILE", type=Path, default=None, help="YAML job file; flags and environment win."
    )
    job.add_argument(
        "--print-config",
        action="store_true",
        default=False,
        help="Print the whole configuration as a job file, and stop.",
    )
    job.add_argument(
        "--dry-run", action="store_true", default=False, help="Plan, say what would be done and written, and stop."
    )
    for section in sections().values():
        group = parser.add_argument_group(section.title, section.__doc__)
        for name, field in section.model_fields.items():
            _add(group, name, field)
    return parser


def parse_changes(argv: Sequence[str], *, parser: Parser, names: Sequence[str]) -> tuple[argparse.Namespace, Flags]:
    """Return what a command's own arguments say, and the flags of single fields that stand among them.

    Args:
        argv: the command line behind the command's name.
        parser: has the command's own arguments; the fields' flags are added to it.
        names: the fields that its help lists. Flags of other fields are taken too: what may not change is for the
            caller to say.
    """
    for section in sections().values():
        group = parser.add_argument_group(section.title)
        for name, field in section.model_fields.items():
            if name != "scenes":
                _add(group, name, field, hidden=name not in names)
    own, rest = parser.parse_known_intermixed_args(list(argv))
    if rest:
        raise ConfigError(unknown("flag", rest[0].partition("=")[0], [flag(name) for name in names]))
    known = leaves()
    changes = {name: value for name, value in vars(own).items() if name in known}
    return own, changes


def default_text(name: str) -> str:
    """Return a field's default as a person would write it; empty where the description says what it is."""
    section, field = leaves()[name]
    value = JobConfig().as_dict()[section][name]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if field.default is None or value in ([], {}) else str(value)


def _add(group: argparse._ArgumentGroup, name: str, field: FieldInfo, *, hidden: bool = False) -> None:
    default = default_text(name)
    text = f"{field.description}{f' [{default}]' if default else ''}".replace("%", "%%")
    text = argparse.SUPPRESS if hidden else text
    if name == "scenes":
        group.add_argument("scenes", nargs="*", metavar="SCENE", help=text)
    elif field.annotation is bool:
        group.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, help=text)
    elif get_origin(field.annotation) is dict:
        group.add_argument(flag(name), dest=name, action="append", metavar=_metavar(name, field), help=text)
    else:
        group.add_argument(flag(name), dest=name, metavar=_metavar(name, field), help=text)


def _metavar(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(get_args(field.annotation)) + "}"
    return _METAVARS.get(name, "N" if int in (field.annotation, *get_args(field.annotation)) else name.upper())
