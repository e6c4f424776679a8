"""The commands that ask a store: query and export. They read it, and write nowhere but where `--out` says."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from segworker.config_flags import Parser, command_parser
from segworker.config_load import unknown
from segworker.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from segworker.query.results import Answer
    from segworker.query.store import Store

QUERY_EPILOG = """\
The views are features (a row for each object, geometry included), scenes and runs (record holds the whole run.json).
--bbox, --class, --aoi, --scene and --min-score narrow features before SQL sees them. Without SQL the answer is all
columns of features. DuckDB's spatial functions are at hand; nothing can be written but --out.

examples:
  segworker query out/store "SELECT class_name, count(*), avg(score) FROM features GROUP BY ALL"
  segworker query out/store --bbox 36.81,-1.30,36.82,-1.29 --bbox-crs EPSG:4326 --class building --out near.geojson
  segworker query s3://bucket/store "SELECT scene_id, num_features FROM scenes ORDER BY 2 DESC" --out scenes.csv
  segworker query out/store "SELECT run_id, record->'seams'->>'agreement' FROM runs"

exit codes: 0 done, 1 the store cannot be read, 2 usage, SQL that is wrong or that would write."""

EXPORT_EPILOG = """\
formats: {formats}

examples:
  segworker export out/store --out features.gpkg
  segworker export out/store --out slides/ --format qupath --scene slide-7
  segworker export s3://bucket/store --out s3://bucket/handed-out/roofs.fgb --class roof --min-score 0.7
  segworker export out/store --out labels/ --format labels

exit codes: 0 done, 1 the store cannot be read, 2 usage."""


def query_command(argv: Sequence[str]) -> int:
    """Ask a store in SQL, or for the features of a place and class."""
    parser = _parser("query", query_command, QUERY_EPILOG)
    parser.add_argument("sql", metavar="SQL", nargs="?", help="One SELECT. [SELECT * FROM features]")
    _add_narrowing(parser)
    parser.add_argument("--format", metavar="FORMAT", help="table, csv, geoparquet or geojson; default: as --out ends.")
    parser.add_argument("--out", metavar="FILE", help="A file, local or on s3://; default: standard output.")
    arguments = parser.parse_args(_joined(argv))
    from segworker.query.sql import ask
    from segworker.query.store import open_store

    store = open_store(arguments.store)
    narrowing = _narrowing(arguments)
    with ask(store, arguments.sql, version=arguments.version, **narrowing) as answer:
        count = _put(store, answer, arguments)
    if count == 0:
        _tell_nothing(store, narrowing, arguments.version)
    return ExitCode.DONE


def export_command(argv: Sequence[str]) -> int:
    """Write features as GeoPackage, FlatGeobuf, GeoParquet, GeoJSON, for QuPath, COCO or label rasters."""
    from segworker.query.export import FORMATS, export  # its formats are part of the help

    told = "\n".join(f"  {name:<11}{' '.join(entry.extensions):<10}{entry.what}" for name, entry in FORMATS.items())
    parser = _parser("export", export_command, EXPORT_EPILOG.format(formats=f"\n{told}"))
    parser.add_argument("--out", metavar="PATH", required=True, help="File or folder, local or on s3://.")
    parser.add_argument("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}; default: as --out ends.")
    _add_narrowing(parser)
    arguments = parser.parse_args(_joined(argv))
    from segworker.query.store import open_store

    store = open_store(arguments.store)
    narrowing = _narrowing(arguments)
    done = export(store, arguments.out, file_format=arguments.format, version=arguments.version, **narrowing)
    more = f" and {len(done.files) - 1:,} more" if len(done.files) > 1 else ""
    print(f"{done.num_features:,} features in {done.files[0]}{more}")
    if done.num_features == 0:
        _tell_nothing(store, narrowing, arguments.version)
    return ExitCode.DONE


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"query": query_command, "export": export_command}


def _parser(name: str, command: Callable[[Sequence[str]], int], epilog: str) -> Parser:
    parser = command_parser(name, description=command.__doc__, epilog=epilog)
    parser.add_argument("store", metavar="STORE", help="Folder or s3://bucket/prefix of a store.")
    return parser


def _add_narrowing(parser: Parser) -> None:
    group = parser.add_argument_group("which features")
    group.add_argument(
        "--bbox", metavar="XMIN,YMIN,XMAX,YMAX", type=_bbox,
        help="Those whose bounds meet this rectangle, in the table's coordinates.",
    )  # fmt: skip
    group.add_argument("--bbox-crs", metavar="CRS", help="CRS of --bbox (EPSG:4326: longitude first).")
    group.add_argument("--class", dest="classes", metavar="NAME,NAME", action="append", help="Only these classes.")
    group.add_argument("--aoi", metavar="FILE", help="Those that meet the polygons of a vector file in any CRS.")
    group.add_argument("--scene", dest="scene_ids", metavar="SCENE_ID", action="append", help="Only this scene.")
    group.add_argument("--min-score", metavar="SCORE", type=float, help="Only scores of at least this.")
    group.add_argument(
        "--version", metavar="V", type=int, help="An older version of the features table; default: the newest."
    )


def _narrowing(arguments: argparse.Namespace) -> dict[str, Any]:
    classes = [name for text in arguments.classes or () for name in text.split(",") if name]
    if arguments.bbox_crs and not arguments.bbox:
        raise ConfigError(f"--bbox-crs is the CRS of a --bbox, got {arguments.bbox_crs} alone; add --bbox")
    return {
        "bbox": arguments.bbox,
        "bbox_crs": arguments.bbox_crs,
        "classes": classes or None,
        "scene_ids": arguments.scene_ids,
        "min_score": arguments.min_score,
        "aoi": arguments.aoi,
    }


def _joined(argv: Sequence[str]) -> list[str]:
    """Let `--bbox -10,5,20,30` be one argument, which argparse takes for two flags."""
    result: list[str] = []
    for word in argv:
        if result and result[-1] == "--bbox" and re.match(r"-[\d.]", word):
            result[-1] = f"--bbox={word}"
        else:
            result.append(word)
    return result


def _bbox(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a bbox is four numbers XMIN,YMIN,XMAX,YMAX without spaces, got {text!r}"
        ) from None


def _put(store: Store, answer: Answer, arguments: argparse.Namespace) -> int:
    """Write an answer where it belongs and return its number of rows."""
    from segworker.io.target import refuse_inside, target_file
    from segworker.query.results import FILE_FORMATS, format_of, table_text, write_csv

    name = format_of(arguments.out, arguments.format)
    if arguments.out is None:
        if name == "table":
            print(table_text(answer))
        elif name == "csv":
            write_csv(answer, sys.stdout.buffer)
        else:
            raise ConfigError(f"{name} goes to a file, got no --out; name one")
        return answer.num_rows
    refuse_inside(arguments.out, store.storage)
    with target_file(arguments.out) as path:
        if name == "table":
            path.write_text(table_text(answer, max_rows=sys.maxsize) + "\n", "utf-8")
        else:
            FILE_FORMATS[name][1](answer, path)
    print(f"{answer.num_rows:,} rows in {arguments.out}")
    return answer.num_rows


def _tell_nothing(store: Store, narrowing: dict[str, Any], version: int | None) -> None:
    """Say why an answer may be empty: a class that no feature has is an error, a place without features a hint."""
    from segworker.query.area import table_bounds

    for name in narrowing["classes"] or ():
        known = store.class_names(version=version)
        if name not in known:
            raise ConfigError(unknown("class", name, known, place=f" in {store.uri}"))
    bounds = table_bounds(store.storage, version=version)
    if bounds is not None and (narrowing["bbox"] or narrowing["aoi"]):
        place = ", ".join(f"{value:.6g}" for value in bounds)
        print(f"nothing is there: all features lie in {place} ({store.info.table_crs.label})", file=sys.stderr)
