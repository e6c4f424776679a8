"""The live features as a stream: files and row groups that a question cannot need are not read.

A row group is read at a time, so memory does not grow with the answer's file. The statistics of the Delta log rule out
files, those of the Parquet footers rule out row groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import shapely

from segworker.errors import ConfigError, StoreError
from segworker.io.delta import LiveFile
from segworker.io.storage import Storage
from segworker.io.table import FEATURES_TABLE, live_files
from segworker.schema import FEATURES

Bounds = tuple[float, float, float, float]
"xmin, ymin, xmax, ymax."
BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Where:
    """Which features are asked for; what is None does not restrict them."""

    bbox: Bounds | None = None
    "Table coordinates: features whose own bounds meet it."
    area: shapely.Geometry | None = None
    "Table coordinates: features that meet it, its border included."
    classes: tuple[str, ...] | None = None
    scene_ids: tuple[str, ...] | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.bbox is not None:
            _check_bbox(self.bbox)

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__slots__)

    @property
    def bounds(self) -> tuple[Bounds, ...]:
        """Rectangles that the bounds of every feature asked for meet, all of them."""
        area = () if self.area is None else (tuple(shapely.bounds(self.area).tolist()),)
        return (*([self.bbox] if self.bbox is not None else []), *area)

    def expression(self) -> pc.Expression | None:
        """Return the filter on columns, which `area` narrows further; None where every row passes."""
        terms = []
        for xmin, ymin, xmax, ymax in self.bounds:
            terms.append((pc.field("bbox", "xmin") <= xmax) & (pc.field("bbox", "xmax") >= xmin))
            terms.append((pc.field("bbox", "ymin") <= ymax) & (pc.field("bbox", "ymax") >= ymin))
        for name, values in (("scene_id", self.scene_ids), ("class_name", self.classes)):
            if values is not None:
                terms.append(pc.field(name).isin(pa.array(values, pa.string())))
        if self.min_score is not None:
            terms.append(pc.field("score") >= pa.scalar(self.min_score, pa.float32()))
        result = None
        for term in terms:
            result = term if result is None else result & term
        return result

    def may_hold(self, file: LiveFile) -> bool:
        """Whether a file can hold a feature that is asked for, by what the log says of it."""
        if not all(_may_meet(file, bounds) for bounds in self.bounds):
            return False
        for name, values in (("scene_id", self.scene_ids), ("class_name", self.classes)):
            low, high = file.minima.get(name), file.maxima.get(name)
            if values is None or low is None or high is None:
                continue
            if not any(low <= value <= high for value in values):
                return False
        highest = file.maxima.get("score")
        return self.min_score is None or highest is None or bool(highest >= np.float32(self.min_score))


@dataclass(slots=True)
class ScanCounts:
    """What a scan had to look at."""

    files: int = 0
    "Live files of the table."
    files_opened: int = 0
    row_groups: int = 0
    "In the opened files."
    row_groups_read: int = 0
    rows: int = 0
    "Given out."


def scan_features(
    storage: Storage,
    where: Where | None = None,
    *,
    columns: Sequence[str] | None = None,
    version: int | None = None,
    counts: ScanCounts | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the live features that are asked for, in batches of at most 65,536 rows, in the table's order.

    Args:
        storage: the store's root.
        where: which features; None: all.
        columns: names of FEATURES; all by default.
        version: of the features table; the newest by default.
        counts: is added to while the scan goes on.

    Raises:
        ConfigError: for columns that features do not have.
        StoreError: where there is no store, or a file of it is damaged.
    """
    where, counts = where or Where(), counts or ScanCounts()
    names = list(columns) if columns is not None else FEATURES.names
    schema = feature_schema(names)
    read = names if where.area is None or "geometry" in names else [*names, "geometry"]
    files = live_files(storage, version=version)
    counts.files += len(files)
    for file in files:
        if not where.may_hold(file):
            continue
        for table in read_row_groups(storage, file, columns=read, expression=where.expression(), counts=counts):
            rows = table if where.area is None else _meeting(table, where.area)
            counts.rows += len(rows)
            yield from rows.select(names).cast(schema).to_batches(max_chunksize=BATCH_ROWS)


def feature_schema(columns: Sequence[str]) -> pa.Schema:
    """Return the schema of some columns of FEATURES; ConfigError for others."""
    unknown = [name for name in columns if name not in FEATURES.names]
    if unknown:
        raise ConfigError(
            f"features have the columns {', '.join(FEATURES.names)}, got {', '.join(map(repr, unknown))}; correct them"
        )
    return pa.schema([FEATURES.field(name) for name in columns])


def read_row_groups(
    storage: Storage,
    file: LiveFile,
    *,
    columns: list[str],
    expression: pc.Expression | None = None,
    counts: ScanCounts | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows of a features file that an expression lets pass, a row group at a time, none empty.

    Raises:
        StoreError: where the file is damaged.
        StorageError: where it cannot be read.
    """
    path, counts = f"{FEATURES_TABLE}/{file.path}", counts or ScanCounts()
    try:
        with storage.open_input(path, size_bytes=file.size_bytes) as source:
            whole = ds.ParquetFileFormat().make_fragment(source)
            counts.files_opened += 1
            counts.row_groups += whole.num_row_groups
            for group in whole.split_by_row_group(expression):
                counts.row_groups_read += 1
                rows = group.to_table(columns=columns, filter=expression)
                if len(rows):
                    yield rows.replace_schema_metadata(None)
    except pa.ArrowInvalid as error:
        raise StoreError(
            f"{storage.location(path)} must be a Parquet file, got {error}; restore it or run its scenes again"
        ) from None


def _meeting(rows: pa.Table, area: shapely.Geometry) -> pa.Table:
    shapely.prepare(area)
    shapes = shapely.from_wkb(rows["geometry"].to_numpy())
    return rows.filter(pa.array(shapely.intersects(area, shapes), pa.bool_()))


def _may_meet(file: LiveFile, bounds: Bounds) -> bool:
    least: dict[str, Any] = file.minima.get("bbox") or {}
    most: dict[str, Any] = file.maxima.get("bbox") or {}
    xmin, ymin, xmax, ymax = bounds
    pairs = ((least.get("xmin"), xmax), (least.get("ymin"), ymax), (xmin, most.get("xmax")), (ymin, most.get("ymax")))
    return all(low is None or high is None or low <= high for low, high in pairs)


def _check_bbox(bbox: Bounds) -> None:
    if not all(map(math.isfinite, bbox)):
        raise ConfigError(f"a bbox is four numbers xmin, ymin, xmax, ymax, got {bbox}; correct them")
    xmin, ymin, xmax, ymax = bbox
    if xmin > xmax or ymin > ymax:
        raise ConfigError(
            f"a bbox begins at its lower corner, got xmin={xmin:g}, ymin={ymin:g}, xmax={xmax:g}, ymax={ymax:g}; write "
            "xmin,ymin,xmax,ymax, and ask twice across the antimeridian"
        )
