"""The command `segworker evaluate`, which `pipelines/evaluate.py` is as well."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segworker.cli_common import run_and_store
from segworker.config_flags import Parser, command_parser
from segworker.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from segworker.io.annotations import TruthOptions

HELP = """\
Judge what a run committed, seams included, against annotations: average precision of masks and boxes, panoptic quality,
object F1, counts, faults near tile borders, calibration. Writes JSON and a page of HTML."""

EXAMPLES = """\
examples:
  segworker evaluate latest out/store --truth truth.json
  segworker evaluate latest out/store --truth buildings.gpkg --class-map building=house --aoi judged.geojson
  segworker evaluate s3://bucket/store/runs/20261120T201500Z-3fa4b2 --truth s3://bucket/labels/ --any-class

exit codes: 0 done, 1 failed, 2 usage, or truth that does not fit the run."""


def evaluate_command(argv: Sequence[str]) -> int:
    """Judge a committed run against the truth."""
    arguments = parser().parse_args(argv)
    from segworker.evaluate.run import EvaluateJob, evaluate_run

    run, store = run_and_store(arguments.run, arguments.store)
    job = EvaluateJob(
        store=store,
        run=run,
        truth=tuple(arguments.truth),
        options=truth_options(arguments),
        class_map=tuple(_pair(text) for text in names_in(arguments.class_map)),
        any_class=arguments.any_class,
        aoi=arguments.aoi,
        min_score=arguments.min_score,
        tile=arguments.tile,
        overlap=arguments.overlap,
        name=arguments.name,
        output=arguments.output,
        worst=arguments.worst,
    )
    print(evaluate_run(job).text)
    return ExitCode.DONE


def parser() -> Parser:
    """Return the command's parser."""
    usage = "RUN [STORE] --truth FILE [flags]"
    made = command_parser("evaluate", description=HELP, epilog=EXAMPLES, usage=usage)
    made.add_argument("run", metavar="RUN", help="A run id, STORE/runs/ID, or latest.")
    made.add_argument("store", metavar="STORE", nargs="?", help="Folder or s3:// prefix of the store.")
    made.add_argument("--truth", metavar="FILE", nargs="+", required=True, help=_TRUTH)
    add_truth_flags(made)
    made.add_argument("--class-map", metavar="RUN=TRUTH,...", help="Classes that the two call differently.")
    made.add_argument("--any-class", action="store_true", help="Compare shapes alone.")
    made.add_argument("--aoi", metavar="FILE", help="Polygons: only what lies in them is judged.")
    made.add_argument("--min-score", metavar="SCORE", type=float, default=0.0, help="Leave out what scores less.")
    made.add_argument("--tile", metavar="PX", type=int, help="Tile side, where the run's grid is not known any more.")
    made.add_argument("--overlap", metavar="PX", type=int, help="Overlap, likewise.")
    made.add_argument("--worst", metavar="N", type=int, default=20, help="Mistakes on the page. [20]")
    made.add_argument("--name", metavar="NAME", help="Of the files. [that of the first truth]")
    made.add_argument("--output", metavar="URI", help="Folder or s3:// prefix. [runs/ID/evaluation in the store]")
    return made


_TRUTH = "COCO JSON, vector files, label rasters or folders of them."


def add_truth_flags(made: argparse.ArgumentParser) -> None:
    """Add the flags that say how annotations are to be understood."""
    made.add_argument("--class-field", metavar="NAME", help="Column of vector files with the class.")
    made.add_argument("--default-class", metavar="NAME", help="Class of objects in files that state none. [object]")
    made.add_argument("--scene-field", metavar="NAME", help="Column of vector files with the scene.")
    made.add_argument("--ignore-classes", metavar="NAME,...", help="Their objects are places that nobody can judge.")
    made.add_argument("--ignore-label", metavar="N", type=int, help="Label of rasters that marks such places.")
    made.add_argument("--panoptic-folder", metavar="URI", help="Pictures of a COCO panoptic file.")
    made.add_argument("--empty-scenes", action="store_true", help="Scenes without annotations have no objects.")


def truth_options(arguments: argparse.Namespace) -> TruthOptions:
    """Return what the flags of `add_truth_flags` say."""
    from segworker.io.annotations import TruthOptions

    return TruthOptions(
        class_field=arguments.class_field,
        default_class=arguments.default_class,
        scene_field=arguments.scene_field,
        ignore_classes=frozenset(names_in(arguments.ignore_classes)),
        ignore_label=arguments.ignore_label,
        panoptic_folder=arguments.panoptic_folder,
        empty_scenes=arguments.empty_scenes,
    )


def names_in(text: str | None) -> list[str]:
    """Return the names in a comma-separated text."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _pair(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.partition("=")
    if not equals or not theirs or not ours:
        raise ConfigError(f"--class-map pairs classes, got {text!r}; write building=house,tree=oak")
    return theirs.strip(), ours.strip()
