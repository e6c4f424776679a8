"""The `segworker` command. `run` is what `pipelines/segment_tiles.py` calls.

Nothing heavy is imported before it is needed, so that help and errors come at once.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from segworker import cli_evaluate, cli_nightly, cli_query, cli_train, cli_upkeep
from segworker.cli_common import refuse_lost_output, run_and_store, start_logging, table
from segworker.config import AFTER_TILES, RETRIED, JobConfig
from segworker.config_flags import Parser, command_parser, parse, parse_changes
from segworker.config_load import CONFIG_VARIABLE, load, to_yaml, unknown
from segworker.errors import ConfigError, ExitCode, SegworkerError
from segworker.io.failures import redact_text

if TYPE_CHECKING:
    from segworker.engine import RunSummary

INTERRUPTED = 130
"Exit code after Ctrl-C, as shells have it."

RUN_HELP = """\
Segment large scenes and write every object, whole and once, as GeoParquet polygons and COCO JSON.

Without any argument it runs a demo: a real micrograph, the bundled nuclei model, results in out/demo."""

RUN_EXAMPLES = """\
Every flag is also a key of the job file and an environment variable: --tile is tile under grid, and
SEGWORKER_GRID__TILE. Flags win over the environment, the environment over the job file. 'none' or 'auto' takes a value
back to its default where that depends on the model or the machine.

examples:
  {prog} scene.tif --output out/store
  {prog} 's3://bucket/2026/*.tif' --output s3://bucket/store --model nuclei --tile 1024 --overlap 128
  {prog} slides/ --output out/slides --resolution-um 0.5 --min-score 0.6 --min-area 20um2 --dry-run
  {prog} scene.tif --model mypackage.models:build --model-options depth=50 --print-config > job.yaml
  {prog} --config job.yaml --aoi farm.gpkg

exit codes: 0 done, 1 failed, 2 usage or configuration, 3 committed but scenes or tiles are missing, 4 nothing done
because another run holds the scenes."""

STITCH_HELP = """\
Stitch the tile results of a run again and commit the objects in place of the scenes' older ones.

Neither scenes nor model are needed. What is not given stays as RUN had it; job files and SEGWORKER_ variables are not
read. Tile results are kept for --keep-work after a complete run, and always after an incomplete one."""

STITCH_EXAMPLES = """\
examples:
  segworker stitch latest out/store --min-score 0.7
  segworker stitch s3://bucket/store/runs/20261120T201500Z-3fa4b2 --min-iou 0.3 --min-area 20um2
  segworker stitch latest out/store --simplify 1.5 --no-coco"""

RETRY_HELP = """\
Predict again the tiles that failed in a run, read its failed scenes again, and commit these scenes anew.

Nothing else is predicted; the seams around the tiles are mended. What is not given stays as RUN had it; job files and
SEGWORKER_ variables are not read. `runs/ID/quarantine.parquet` in the store lists what failed."""

RETRY_EXAMPLES = """\
examples:
  segworker retry latest out/store
  segworker retry s3://bucket/store/runs/20261120T201500Z-3fa4b2 --tile-timeout 1h --workers 1

exit codes: as of `segworker run`; 0 also where nothing is left to be tried again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(arguments), debug="debug" in arguments)


def run(argv: Sequence[str], *, prog: str = "segworker run") -> int:
    """Do what `segworker run ARGV` does and return the exit code; a line on stderr for each error."""
    return guarded(lambda: _run(argv, prog=prog), debug="debug" in argv)


def guarded(command: Callable[[], int], *, debug: bool = False) -> int:
    """Call a command; turn errors that a user can act upon into a message and an exit code.

    Args:
        command: returns an exit code.
        debug: print the traceback too.
    """
    try:
        return command()
    except SegworkerError as error:
        if debug:
            traceback.print_exception(error)
        for line in redact_text(str(error)).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the finished tiles", file=sys.stderr)
        return INTERRUPTED


def demo_scene() -> Path:
    """Return the demo's micrograph: stained tissue, a file that scikit-image ships inside its package."""
    found = importlib.util.find_spec("skimage")
    path = Path(found.origin or "").parent / "data" / "ihc.png" if found else Path("ihc.png")
    if not path.is_file():
        raise ConfigError(
            f"the demo needs scikit-image's ihc.png, got nothing at {path}; install scikit-image, or name a scene"
        )
    return path


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "help"
    if name in ("help", "-h", "--help"):
        print(_overview())
        return ExitCode.DONE
    if name == "--version":
        name = "version"
    if name not in COMMANDS:
        raise ConfigError(unknown("command", name, COMMANDS))
    return COMMANDS[name](argv[1:])


def _overview() -> str:
    lines = [f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: segworker COMMAND ...", "", *lines, "", "`segworker COMMAND --help` says more."])


def _run_command(argv: Sequence[str]) -> int:
    """Segment scenes and commit the objects to a store."""
    return _run(argv, prog="segworker run")


def _plan_command(argv: Sequence[str]) -> int:
    """Say what a run would read, predict and write; write nothing (run --dry-run)."""
    return _run(argv, prog="segworker plan", dry_run=True)


def _run(argv: Sequence[str], *, prog: str, dry_run: bool = False) -> int:
    command = parse(argv, prog=prog, description=RUN_HELP, epilog=RUN_EXAMPLES.format(prog=prog))
    if command.action == "print":
        print(to_yaml(command.config), end="")
        return ExitCode.DONE
    config = _with_scenes(command.config, bare=not argv)
    start_logging(config.engine.log_level)
    return _execute(config, dry_run=dry_run or command.action == "plan")


def _execute(config: JobConfig, *, dry_run: bool) -> int:
    from segworker import engine

    if dry_run:
        print(engine.plan(config).text)
        return ExitCode.DONE
    summary = engine.run(config)
    print(summary.text)
    return int(summary.exit_code)


def _stitch_command(argv: Sequence[str]) -> int:
    """Stitch a run's kept tile results again with other thresholds, without scenes and model."""
    parser = _parser_of_run("stitch", STITCH_HELP, STITCH_EXAMPLES, "[--min-iou IOU] [--min-score SCORE] [flags]")
    run, store, changes = _run_and_changes(argv, parser, AFTER_TILES)
    from segworker import engine

    return _told(engine.stitch(run, store, changes))


def _retry_command(argv: Sequence[str]) -> int:
    """Try again the tiles and scenes that failed in a run, and nothing else."""
    parser = _parser_of_run("retry", RETRY_HELP, RETRY_EXAMPLES, "[--tile-timeout TIME] [--workers N] [flags]")
    run, store, changes = _run_and_changes(argv, parser, RETRIED)
    from segworker import engine

    return _told(engine.retry(run, store, changes))


def _parser_of_run(name: str, description: str, epilog: str, flags: str) -> Parser:
    """Return the parser of a command that goes on from a run."""
    parser = command_parser(name, description=description, epilog=epilog, usage=f"RUN [STORE] {flags}", sparse=True)
    parser.add_argument("run", metavar="RUN", help="A run id, STORE/runs/ID, or latest.")
    parser.add_argument("store", metavar="STORE", nargs="?", help=f"The store. [{JobConfig().output.output}]")
    return parser


def _run_and_changes(argv: Sequence[str], parser: Parser, names: Sequence[str]) -> tuple[str, str, dict[str, object]]:
    """Return (run id, store, options that differ from the run's)."""
    found, changes = parse_changes(argv, parser=parser, names=names)
    start_logging(str(changes.get("log_level", "info")))
    return *run_and_store(found.run, getattr(found, "store", None)), changes


def _told(summary: RunSummary) -> int:
    print(summary.text)
    return int(summary.exit_code)


def _with_scenes(config: JobConfig, *, bare: bool) -> JobConfig:
    """Return a configuration that can run: the demo's where nothing at all was asked for."""
    if config.inputs.scenes or config.inputs.manifest:
        refuse_lost_output(config.output.output)
        return config
    if bare and not os.environ.get(CONFIG_VARIABLE):
        return load(flags={"scenes": [str(demo_scene())], "tile": 256, "output": "out/demo", "name": "demo"})
    raise ConfigError("a run needs at least one scene, got none; name files, folders, s3:// uris, or --manifest")


def _models_command(argv: Sequence[str]) -> int:
    """List the registered models."""
    Parser(prog="segworker models", description=_models_command.__doc__).parse_args(argv)
    from segworker.models.registry import list_models

    rows = [("name", "tasks", "parameters", "weights", "what it is")]
    for entry in list_models():
        weights = "bundled" if entry.bundled else "--weights"
        size = f"{entry.num_parameters / 1e6:.1f} M"
        rows.append((entry.name, ", ".join(entry.tasks), size, weights, entry.summary))
    print(table(rows))
    return ExitCode.DONE


def _sample_command(argv: Sequence[str]) -> int:
    """Render seeded synthetic scenes with their truth into a folder."""
    parser = Parser(prog="segworker sample", description=_sample_command.__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="Folder to write to; made where it does not exist.")
    parser.add_argument("--size", metavar="PX", type=int, default=2048, help="Side of a scene. [2048]")
    parser.add_argument("--count", metavar="N", type=int, default=1, help="Scenes of each kind, numbered. [1]")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="Of the first one. [0]")
    given = parser.parse_args(argv)
    if given.size < 64 or given.count < 1:
        raise ConfigError(f"samples have at least 64 px and there is at least one, got {given.size} px, {given.count}")
    from segworker.synthetic.render import sample

    for k in range(given.count):
        suffix = f"-{k + 1:02d}" if given.count > 1 else ""
        for path in sample(given.directory, given.seed + k, size_px=given.size, suffix=suffix):
            print(path)
    return ExitCode.DONE


def _version_command(argv: Sequence[str]) -> int:
    """Print the version."""
    Parser(prog="segworker version", description=_version_command.__doc__).parse_args(argv)
    print(f"segworker {package_version()}")
    return ExitCode.DONE


def package_version() -> str:
    """Return the installed version; 'unknown' where the source runs without an installation, as in a Ray job."""
    try:
        return version("segworker")
    except PackageNotFoundError:
        return "unknown"


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run_command,
    "plan": _plan_command,
    "stitch": _stitch_command,
    "retry": _retry_command,
    "train": cli_train.train_command,
    "evaluate": cli_evaluate.evaluate_command,
    "models": _models_command,
    "sample": _sample_command,
    "nightly": cli_nightly.nightly_command,
    **cli_query.COMMANDS,
    "diff": cli_nightly.diff_command,
    **cli_upkeep.COMMANDS,
    "version": _version_command,
}


if __name__ == "__main__":
    sys.exit(main())
