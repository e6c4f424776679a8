"""The commands that look after a store: files, status, compact, vacuum, clean, delete.

What destroys only tells what it would do, unless `--yes` is given.
"""

from __future__ import annotations

import argparse
import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from segworker.config_flags import Parser
from segworker.config_values import format_duration, parse_bytes, parse_duration
from segworker.errors import ExitCode

if TYPE_CHECKING:
    from segworker.io.compact import Compaction
    from segworker.io.status import Status

STORE_HELP = "Folder or s3://bucket/prefix of a store."
YES_HELP = "Do it; without this flag it only tells what it would do."


def files_command(argv: Sequence[str]) -> int:
    """List the live GeoParquet files of a store (a bare glob would also find dead ones)."""
    arguments = _parser("files", files_command).parse_args(argv)
    from segworker.io.storage import open_storage
    from segworker.io.table import FEATURES_TABLE, live_files

    storage = open_storage(arguments.store)
    for file in live_files(storage):
        print(storage.child(FEATURES_TABLE).location(file.path))
    return ExitCode.DONE


def status_command(argv: Sequence[str]) -> int:
    """Say what a store holds, who is at work on it, and what in it could go."""
    parser = _parser("status", status_command)
    parser.add_argument("--json", action="store_true", help="Print it as JSON.")
    arguments = parser.parse_args(argv)
    from segworker.io.status import status_of
    from segworker.io.storage import open_storage

    status = status_of(open_storage(arguments.store))
    print(json.dumps(asdict(status), indent=2) if arguments.json else _status_text(status))
    return ExitCode.DONE


def compact_command(argv: Sequence[str]) -> int:
    """Join small parts of a store; the features stay the same, and so do older versions."""
    from segworker.io.compact import SCENE_BYTES, SHARED_BYTES, compact, plan_compaction

    parser = _parser("compact", compact_command)
    parser.add_argument("--dry-run", action="store_true", help="Only tell what it would do.")
    parser.add_argument(
        "--shared-part", metavar="SIZE", type=_value(parse_bytes), default=SHARED_BYTES,
        help=f"Most bytes of a part that several scenes share [{_size(SHARED_BYTES)}]. Larger ones are faster to scan; "
        "smaller ones cost less when a scene changes.",
    )  # fmt: skip
    parser.add_argument(
        "--scene-part", metavar="SIZE", type=_value(parse_bytes), default=SCENE_BYTES,
        help=f"Most bytes of a part of one scene [{_size(SCENE_BYTES)}].",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    from segworker.io.storage import open_storage

    storage = open_storage(arguments.store)
    limits = {"shared_bytes": arguments.shared_part, "scene_bytes": arguments.scene_part}
    if arguments.dry_run:
        print(_compaction_text(plan_compaction(storage, **limits), "would be "))
    else:
        print(_compaction_text(compact(storage, _upkeep_id("compact"), **limits), ""))
    return ExitCode.DONE


def vacuum_command(argv: Sequence[str]) -> int:
    """Remove files that only old versions of a store's tables refer to."""
    parser = _parser("vacuum", vacuum_command)
    parser.add_argument(
        "--keep", metavar="TIME", type=_value(parse_duration), default=parse_duration("7d"),
        help="Versions that were the newest one in this time stay readable (12h, 30d) [7d].",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help=YES_HELP)
    arguments = parser.parse_args(argv)
    from segworker.io.storage import open_storage
    from segworker.io.vacuum import check_retention, list_old_files, remove_old_files

    storage, keep_s = open_storage(arguments.store), arguments.keep.total_seconds()
    check_retention(storage, keep_s)
    files = list_old_files(storage, keep_s=keep_s)
    if arguments.yes:
        remove_old_files(storage, files)
    what = f"files of versions that {format_duration(arguments.keep)} ago were not the newest any more"
    print(_removal_text(len(files), sum(f.size_bytes for f in files), what, done=arguments.yes))
    return ExitCode.DONE


def clean_command(argv: Sequence[str]) -> int:
    """Remove what dead runs left, and tile results that nobody went on from for long."""
    parser = _parser("clean", clean_command)
    parser.add_argument(
        "--keep-work", metavar="TIME", type=_value(parse_duration), default=parse_duration("7d"),
        help="How long tile results are kept, to resume or stitch again (0s, 12h, 7d) [7d].",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help=YES_HELP)
    arguments = parser.parse_args(argv)
    from segworker.io.orphans import list_orphans, list_stale_shards, remove_orphans
    from segworker.io.storage import open_storage

    storage = open_storage(arguments.store)
    orphans = list_orphans(storage)
    stale = list_stale_shards(storage, keep_s=arguments.keep_work.total_seconds(), but=orphans)
    found = [*orphans, *stale]
    if arguments.yes:
        remove_orphans(storage, found)
    for orphan in found:
        print(f"  {storage.location(orphan.path)}")
    kinds = Counter(orphan.kind for orphan in found)
    what = "files" + (f" ({', '.join(f'{n:,} {kind}s' for kind, n in sorted(kinds.items()))})" if found else "")
    print(_removal_text(len(found), sum(o.size_bytes for o in found), what, done=arguments.yes))
    return ExitCode.DONE


def delete_command(argv: Sequence[str]) -> int:
    """Delete scenes and their features from a store; older versions keep them until a vacuum."""
    parser = _parser("delete", delete_command)
    parser.add_argument(
        "--scene", metavar="SCENE_ID", action="extend", nargs="+", required=True, dest="scenes",
        help="Ids of the scenes; may be repeated.",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help=YES_HELP)
    arguments = parser.parse_args(argv)
    from segworker.io.removal import delete_scenes, plan_deletion
    from segworker.io.storage import open_storage

    storage = open_storage(arguments.store)
    deletion = plan_deletion(storage, arguments.scenes)
    if arguments.yes:
        delete_scenes(storage, _upkeep_id("delete"), arguments.scenes)
    verb = "were" if arguments.yes else "would be"
    print(f"{deletion.num_listed:,} scenes and {deletion.num_features:,} features {verb} deleted{_hint(arguments.yes)}")
    return ExitCode.DONE


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "files": files_command,
    "status": status_command,
    "compact": compact_command,
    "vacuum": vacuum_command,
    "clean": clean_command,
    "delete": delete_command,
}


def _parser(name: str, command: Callable[[Sequence[str]], int]) -> Parser:
    parser = Parser(prog=f"segworker {name}", description=command.__doc__)
    parser.add_argument("store", metavar="STORE", help=STORE_HELP)
    return parser


def _value(parse: Callable[[object], object]) -> Callable[[str], object]:
    """Return a parser as argparse wants it: with its own words in the error."""

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _upkeep_id(what: str) -> str:
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{what}-{secrets.token_hex(3)}"


def _status_text(status: Status) -> str:
    last = status.last_commit or {}
    failed = f", {status.incomplete_scenes:,} of them incomplete" if status.incomplete_scenes else ""
    at_work = f", at work: {', '.join(status.at_work)}" if status.at_work else ""
    lines = [
        ("store", f"{status.uri} (format {status.format_version})"),
        ("version", f"{status.version} of {last.get('at', 'never')} by {last.get('run_id') or 'another program'}"),
        ("CRS", status.crs),
        ("scenes", f"{status.scenes:,}{failed}"),
        ("features", f"{status.features:,} in {status.parts.count:,} parts, {_size(status.parts.bytes)}"),
        ("runs", f"{status.runs:,}{at_work}"),
        ("old", f"{status.old_files.count:,} files, {_size(status.old_files.bytes)}, of older versions alone (vacuum)"),
        ("orphans", f"{status.orphans.count:,} files, {_size(status.orphans.bytes)}, of dead runs (clean)"),
        ("work", f"{status.work.count:,} files, {_size(status.work.bytes)}, to resume or stitch again"),
    ]
    return "\n".join(f"{name:<10}{text}" for name, text in lines)


def _compaction_text(done: Compaction, verb: str) -> str:
    if not done.num_joined:
        return f"nothing to join among {done.num_parts_before:,} parts"
    return (
        f"{done.num_joined:,} of {done.num_parts_before:,} parts, {_size(done.joined_bytes)}, {verb}joined: "
        f"{done.num_parts_after:,} parts"
    )


def _removal_text(count: int, num_bytes: int, what: str, *, done: bool) -> str:
    if not count:
        return f"no {what.partition(' (')[0]} to remove"
    return f"{count:,} {what}, {_size(num_bytes)}, {'were' if done else 'would be'} removed{_hint(done)}"


def _hint(done: bool) -> str:  # noqa: FBT001 - one word of a sentence
    return "" if done else "; --yes does it"


def _size(num_bytes: int) -> str:
    """Return a size as `--shared-part` reads it, in powers of 1000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g}{unit}"
    return f"{num_bytes}B"
