"""The commands of the schedule: nightly runs what is new, diff says what changed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from segworker.cli_common import refuse_lost_output, start_logging, table
from segworker.config_flags import Parser, command_parser, make_parser, parse_with
from segworker.config_values import format_duration, parse_duration
from segworker.errors import ConfigError, ExitCode, LockedError

if TYPE_CHECKING:
    from segworker.query.diff import Diff

NIGHTLY_HELP = """\
Segment what is new or changed since the last commit, and nothing else.

Scenes whose etag (or size and time), model and settings are those of the store are left alone, and so are their ids.
All flags of `segworker run` apply. A lock in the store spares double work: a night that finds another one at work
ends with exit code 4."""

NIGHTLY_EXAMPLES = """\
examples:
  segworker nightly s3://bucket/incoming/ --output s3://bucket/store --config job.yaml
  segworker nightly --manifest new.csv --output out/store --limit 500 --max-cost-hours 12 --summary night.json

exit codes: 0 done, or nothing to do; 1 a run failed; 2 usage or configuration; 3 committed, but scenes or tiles
are missing; 4 another night is at work."""

DIFF_EPILOG = """\
A version is a number, or a time: the version that was the newest one then.

examples:
  segworker diff out/store
  segworker diff s3://bucket/store --from 2026-11-23T18:00 --by-scene
  segworker diff out/store --from 12 --to 15 --json"""


def nightly_command(argv: Sequence[str]) -> int:
    """Run what is new or changed since the last commit."""
    parser = make_parser(prog="segworker nightly", description=NIGHTLY_HELP, epilog=NIGHTLY_EXAMPLES)
    _add_night(parser)
    command, own = parse_with(parser, argv)
    config = command.config
    if not config.inputs.scenes and not config.inputs.manifest:
        raise ConfigError("a night needs inputs to look at, got none; name folders, prefixes, globs or --manifest")
    if command.action == "print":
        raise ConfigError("--print-config is for segworker run, got it here; its output serves a night too")
    from segworker.engine.backlog import look
    from segworker.engine.nightly import NightOptions, nightly

    refuse_lost_output(config.output.output)
    start_logging(config.engine.log_level)
    since_s = None if own.since is None else own.since.timestamp()
    if command.action == "plan":
        backlog = look(config, since_s=since_s, limit=own.limit)
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in backlog.counts.items())
        print("\n".join([counts, *(f"  {files.scene_id}" for files in backlog.todo)]))
        return ExitCode.DONE
    options = NightOptions(since_s, own.limit, own.max_cost_hours, own.lock_expiry.total_seconds())
    try:
        night = nightly(config, options)
    except LockedError as error:
        _tell(own, {"exit_code": int(error.exit_code), "errors": [str(error)], "runs": []})
        raise
    print(night.text)
    _tell(own, night.record)
    return night.exit_code


def _tell(own: argparse.Namespace, record: dict[str, object]) -> None:
    """Hand a night's record to whoever asked for it; what cannot be handed over is told, and no reason to fail."""
    _write_summary(own.summary, record)
    if own.webhook:
        from segworker.io.web import post_json

        problem = post_json(own.webhook, record)
        if problem:
            print(f"the summary could not be posted: {problem}", file=sys.stderr)


def _add_night(parser: Parser) -> None:
    group = parser.add_argument_group("night")
    group.add_argument(
        "--since", metavar="TIME", type=_since, default=None,
        help="Leave older files alone: a time (2026-11-24T18:00, UTC unless it says otherwise) or an age (2d).",
    )  # fmt: skip
    group.add_argument("--limit", metavar="N", type=_positive(int), default=None, help="Scenes at most, oldest first.")
    group.add_argument(
        "--max-cost-hours", metavar="HOURS", type=_positive(float), default=None,
        help="Stop before the processes that hold the model have cost more hours (GPU-hours, where there are GPUs); "
        "scenes run in batches, by what earlier ones cost.",
    )  # fmt: skip
    group.add_argument(
        "--lock-expiry", metavar="TIME", type=_parsed(parse_duration), default=timedelta(minutes=20),
        help=f"A night elsewhere that has not refreshed its lock for this long is dead "
        f"[{format_duration(timedelta(minutes=20))}].",
    )  # fmt: skip
    group.add_argument(
        "--summary", metavar="FILE", default=None, help="Write the night's JSON there too; - is standard output."
    )
    group.add_argument(
        "--webhook", metavar="URL", type=_web_address, default=None,
        help="Post the night's JSON to this http(s):// address when it ends, also where another night holds the lock.",
    )  # fmt: skip


def diff_command(argv: Sequence[str]) -> int:
    """Say what changed between two versions of a store, by class and scene."""
    parser = command_parser("diff", description=diff_command.__doc__, epilog=DIFF_EPILOG)
    parser.add_argument("store", metavar="STORE", help="Folder or s3://bucket/prefix of a store.")
    parser.add_argument("--from", dest="start", metavar="V", help="Older version; default: the one before --to.")
    parser.add_argument("--to", dest="stop", metavar="V", help="Newer version; default: the newest.")
    parser.add_argument("--by-scene", action="store_true", help="Tell each scene, not only the sums.")
    parser.add_argument("--json", action="store_true", help="Print it as JSON.")
    arguments = parser.parse_args(argv)
    from segworker.io.storage import open_storage
    from segworker.query.diff import diff

    found = diff(open_storage(arguments.store), arguments.start, arguments.stop)
    print(json.dumps(found.record(), indent=2) if arguments.json else _diff_text(found, by_scene=arguments.by_scene))
    return ExitCode.DONE


def _diff_text(found: Diff, *, by_scene: bool) -> str:
    lines = [f"version {found.start} to {found.stop}: {len({c.scene_id for c in found.changes}):,} scenes committed"]
    lines += [f"  {c.version} of {c.at:%Y-%m-%d %H:%M} by {c.run_id or 'another program'}" for c in found.commits]
    named = (("new scenes", found.new_scenes), ("gone scenes", found.gone_scenes))
    lines += [f"{what}: {', '.join(ids[:10])}{' ...' if len(ids) > 10 else ''}" for what, ids in named if ids]
    rows = list(found.changes) if by_scene else found.by_class()
    if not rows:
        return "\n".join([*lines, "no feature changed"])
    head = ("scene", "class", "before", "after", "new", "gone", "same")
    body = [(c.scene_id, c.class_name, *(f"{n:,}" for n in (c.before, c.after, c.new, c.gone, c.same))) for c in rows]
    return "\n".join([*lines, table([row if by_scene else row[1:] for row in (head, *body)])])


def _write_summary(place: str | None, record: dict[str, object]) -> None:
    text = json.dumps(record, indent=2)
    if place == "-":
        print(text)
    elif place is not None:
        try:
            Path(place).write_text(text + "\n", "utf-8")
        except OSError as error:
            print(f"the summary could not be written to {place}: {error}", file=sys.stderr)


def _since(text: str) -> datetime:
    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a time is like 2026-11-24T18:00, an age like 2d or 12h, got {text!r}"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _web_address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("an address begins with http:// or https://")
    return text


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
        return value

    return convert


def _parsed(parse: Callable[[object], timedelta]) -> Callable[[str], timedelta]:
    def convert(text: str) -> timedelta:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
