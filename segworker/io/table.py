"""A store: its tables, their files and rows, and what makes a folder a store.

`store.json` is written once, by a conditional put, before the first commit: it holds the store's format version and the
coordinates of its features. The tables are read here and changed in `commit`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segworker.errors import StoreError
from segworker.io.delta import LiveFile, live_files_of, open_table
from segworker.io.geoparquet import Part, write_features
from segworker.io.storage import Storage
from segworker.io.table_crs import TableCrs
from segworker.schema import FEATURES, FORMAT_VERSION, SCENES

FEATURES_TABLE = "features"
SCENES_TABLE = "scenes"
STORE_FILE = "store.json"


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store says of itself."""

    format_version: int
    table_crs: TableCrs


def read_store_info(storage: Storage) -> StoreInfo | None:
    """Return what the store says of itself, or None where nothing was ever committed.

    Raises:
        StoreError: for a store of a newer format, and for one whose store.json is damaged or gone.
    """
    if storage.head(STORE_FILE) is None:
        if open_table(storage, FEATURES_TABLE) is not None:
            raise StoreError(f"a store has the file {STORE_FILE}, got none in {storage.uri}; restore it")
        return None
    try:
        text = json.loads(storage.read(STORE_FILE))
        version, kind, wkt = int(text["format_version"]), text["kind"], text["crs"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{storage.location(STORE_FILE)} must be JSON of a store, got {error!r}; restore it") from None
    if version > FORMAT_VERSION:
        raise StoreError(
            f"this segworker reads stores up to format {FORMAT_VERSION}, got {version} in {storage.uri}; "
            "update segworker"
        )
    return StoreInfo(version, TableCrs(kind, wkt))


def require_store(storage: Storage) -> StoreInfo:
    """Return what the store says of itself; StoreError where there is no store."""
    info = read_store_info(storage)
    if info is None:
        raise StoreError(f"a store has had a commit, got none in {storage.uri}; check the path")
    return info


def ensure_store(storage: Storage, table_crs: TableCrs) -> StoreInfo:
    """Make the folder a store with these coordinates, or check that it is one.

    Raises:
        StoreError: where the store has other coordinates.
    """
    info = read_store_info(storage)
    if info is None:
        text = {"format_version": FORMAT_VERSION, "kind": table_crs.kind, "crs": table_crs.wkt}
        storage.write_new(STORE_FILE, json.dumps(text, indent=2).encode())
        info = require_store(storage)
    if not info.table_crs.same_as(table_crs):
        raise StoreError(
            f"a store's features share their coordinates, {info.table_crs.label} in {storage.uri}, got "
            f"{table_crs.label}; run again, or choose another --output"
        )
    return info


def part_name(run_id: str, key: int | str) -> str:
    """Return the file name of a run's data file: the same work gets the same name."""
    text = f"{key:05d}" if isinstance(key, int) else key
    if not re.fullmatch(r"[A-Za-z0-9._-]+", run_id) or not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise StoreError(f"run ids and part keys use letters, digits, '.', '_' and '-', got {run_id!r}, {text!r}")
    return f"part-{run_id}-{text}.parquet"


def write_part(storage: Storage, run_id: str, key: int | str, features: pa.Table, table_crs: TableCrs) -> Part:
    """Write one data file of a run that is not committed yet; no reader sees it before the commit.

    Args:
        storage: the store's root.
        run_id: the run.
        key: tells the run's parts apart; a retry with the same key overwrites.
        features: rows of FEATURES, at least one.
        table_crs: coordinates of the rows.
    """
    return write_features(features, storage.child(FEATURES_TABLE), part_name(run_id, key), crs=table_crs.crs)


def live_files(storage: Storage, table: str = FEATURES_TABLE, *, version: int | None = None) -> list[LiveFile]:
    """Return the files that make up a table's newest (or a stated) version: the only ones to read.

    Raises:
        StoreError: where there is no store.
    """
    require_store(storage)
    opened = open_table(storage, table, version=version)
    return [] if opened is None else live_files_of(opened)


def iter_features(
    storage: Storage,
    *,
    columns: Sequence[str] | None = None,
    scene_ids: Sequence[str] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    version: int | None = None,
) -> Iterator[pa.Table]:
    """Yield the live features, a table for each file that can hold some.

    Args:
        storage: the store's root.
        columns: names of FEATURES; all by default.
        scene_ids: only these scenes.
        bbox: (xmin, ymin, xmax, ymax) in table coordinates: only features whose bounds meet it.
        version: of the features table; the newest by default.
    """
    expression = _expression(scene_ids, bbox)
    names = list(columns) if columns is not None else None
    for file in live_files(storage, version=version):
        if _may_hold(file, scene_ids, bbox):
            rows = read_parquet(storage, f"{FEATURES_TABLE}/{file.path}", columns=names, where=expression)
            if len(rows):
                yield rows


def read_features(
    storage: Storage,
    *,
    columns: Sequence[str] | None = None,
    scene_ids: Sequence[str] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    version: int | None = None,
) -> pa.Table:
    """Return the live features as one Arrow table; arguments as in `iter_features`."""
    names = list(columns) if columns is not None else FEATURES.names
    empty = pa.schema([FEATURES.field(name) for name in names]).empty_table()
    parts = iter_features(storage, columns=names, scene_ids=scene_ids, bbox=bbox, version=version)
    return pa.concat_tables([empty, *(part.select(names).cast(empty.schema) for part in parts)])


def read_scenes(storage: Storage, *, version: int | None = None) -> pa.Table:
    """Return the rows of the scenes table, in the order of their numbers."""
    files = live_files(storage, SCENES_TABLE, version=version)
    rows = [read_parquet(storage, f"{SCENES_TABLE}/{file.path}").cast(SCENES) for file in files]
    return pa.concat_tables([SCENES.empty_table(), *rows]).sort_by("scene_no")


def read_parquet(
    storage: Storage, path: str, *, columns: list[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """Return the rows of one file without its footer's metadata, by ranged reads."""
    try:
        with storage.open_input(path) as source:
            table = pq.read_table(source, columns=columns, filters=where, partitioning=None)
    except pa.ArrowInvalid as error:
        raise StoreError(
            f"{storage.location(path)} must be a Parquet file, got {error}; restore it or run its scenes again"
        ) from None
    return table.replace_schema_metadata(None)


def _expression(
    scene_ids: Sequence[str] | None, bbox: tuple[float, float, float, float] | None
) -> pc.Expression | None:
    terms = []
    if scene_ids is not None:
        terms.append(pc.field("scene_id").isin(list(scene_ids)))
    if bbox is not None:
        xmin, ymin, xmax, ymax = bbox
        terms.append((pc.field("bbox", "xmin") <= xmax) & (pc.field("bbox", "xmax") >= xmin))
        terms.append((pc.field("bbox", "ymin") <= ymax) & (pc.field("bbox", "ymax") >= ymin))
    result = None
    for term in terms:
        result = term if result is None else result & term
    return result


def _may_hold(file: LiveFile, scene_ids: Sequence[str] | None, bbox: tuple[float, float, float, float] | None) -> bool:
    low, high = file.minima, file.maxima
    known = scene_ids is not None and low.get("scene_id") is not None
    if known and not any(low["scene_id"] <= scene_id <= high["scene_id"] for scene_id in scene_ids or ()):
        return False
    if bbox is not None and (low.get("bbox") or {}).get("xmin") is not None:
        xmin, ymin, xmax, ymax = bbox
        least, most = low["bbox"], high["bbox"]
        return bool(least["xmin"] <= xmax and most["xmax"] >= xmin and least["ymin"] <= ymax and most["ymax"] >= ymin)
    return True
