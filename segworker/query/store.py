"""A store, as Python code asks it: `segworker.open_store(uri).features(bbox=..., classes=...)`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyproj
import shapely

from segworker.errors import ConfigError
from segworker.geo import parse_crs
from segworker.io.aoi import Aoi, load_aoi
from segworker.io.commit import features_version
from segworker.io.scan import Bounds, ScanCounts, Where, feature_schema, scan_features
from segworker.io.storage import Storage, open_storage
from segworker.io.table import FEATURES_TABLE, StoreInfo, read_scenes, require_store
from segworker.query.area import area_in_table, table_bounds
from segworker.query.runs import read_runs
from segworker.schema import FEATURES

if TYPE_CHECKING:
    import geopandas

Names: TypeAlias = str | Sequence[str] | None
"One name, or several; None: all."
_NOWHERE = (0.0, 0.0, 0.0, 0.0)


class Asked(TypedDict, total=False):
    """Which features are asked for. What is left out or None does not restrict them."""

    bbox: Sequence[float] | None
    "xmin, ymin, xmax, ymax: features whose own bounds meet it; those whose shape meets it where bbox_crs is given."
    bbox_crs: str | None
    "CRS of `bbox` ('EPSG:4326', longitude first); None: the table's coordinates."
    classes: Names
    "Names of classes."
    scene_ids: Names
    min_score: float | None
    aoi: str | PathLike[str] | shapely.Geometry | None
    "A vector file in any CRS, or a geometry in table coordinates: features that meet it."


def open_store(uri: str | PathLike[str]) -> Store:
    """Return the store at a folder or s3://bucket/prefix.

    Raises:
        StoreError: where there is no store, or one of a newer format.
        StorageError: where it cannot be read.
    """
    storage = open_storage(fspath(uri))
    return Store(storage, require_store(storage))


class Store:
    """A store that can be asked. Each answer is of one version of the features table: the newest, or a stated one."""

    def __init__(self, storage: Storage, info: StoreInfo) -> None:
        self.storage = storage
        self.info = info

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def uri(self) -> str:
        """Absolute folder, or s3://bucket/prefix."""
        return self.storage.uri

    @property
    def crs(self) -> pyproj.CRS | None:
        """CRS of the geometries; None: they are in scene pixels."""
        return self.info.table_crs.crs

    def where(self, *, version: int | None = None, **asked: Unpack[Asked]) -> Where:
        """Return which features are asked for, in the table's own coordinates; ConfigError for what cannot be."""
        _check_version(self.storage, version)
        bbox, bbox_crs, aoi = asked.get("bbox"), asked.get("bbox_crs"), asked.get("aoi")
        areas: list[shapely.Geometry] = []
        if bbox is not None and bbox_crs is not None:
            drawn = Where(bbox=_four(bbox)).bbox or _NOWHERE
            corners = np.array([shapely.box(*drawn)], dtype=object)
            areas.append(self._in_table(Aoi(corners, parse_crs(bbox_crs).to_wkt()), version))
        if isinstance(aoi, shapely.Geometry):
            areas.append(aoi)
        elif aoi is not None:
            areas.append(self._in_table(load_aoi(str(aoi)), version))
        return Where(
            bbox=_four(bbox) if bbox is not None and bbox_crs is None else None,
            area=shapely.intersection_all(areas) if areas else None,
            classes=_names(asked.get("classes")),
            scene_ids=_names(asked.get("scene_ids")),
            min_score=asked.get("min_score"),
        )

    def features(
        self, *, columns: Sequence[str] | None = None, version: int | None = None, **asked: Unpack[Asked]
    ) -> geopandas.GeoDataFrame:
        """Return features as a GeoDataFrame in the table's CRS.

        Args:
            columns: names of columns besides the geometry; all by default.
            version: of the features table (`segworker diff` lists them); the newest by default.
            **asked: which features: bbox, bbox_crs, classes, scene_ids, min_score, aoi; see `Asked`.

        Raises:
            ConfigError: for arguments that cannot be used, and where GeoPandas is not installed.
            StoreError, StorageError: where the store cannot be read.
        """
        try:
            import geopandas  # noqa: PLC0415 - an extra, and seconds to import
        except ImportError:
            raise ConfigError(
                "a GeoDataFrame needs GeoPandas, which is not installed; pip install 'segworker[geo]', or take "
                "feature_stream()"
            ) from None
        names = None if columns is None else [*dict.fromkeys([*columns, "geometry"])]
        return geopandas.GeoDataFrame.from_arrow(self.feature_stream(columns=names, version=version, **asked))

    def feature_stream(
        self,
        *,
        columns: Sequence[str] | None = None,
        version: int | None = None,
        counts: ScanCounts | None = None,
        **asked: Unpack[Asked],
    ) -> pa.RecordBatchReader:
        """Return features as a stream of Arrow batches, read while it is consumed.

        The geometry column is WKB marked as `geoarrow.wkb` with its CRS, so that GeoPandas, DuckDB and GDAL know what
        it is. It comes only where `columns` names it, or names nothing. The other arguments are those of `features`;
        `counts` tells afterwards what had to be read.
        """
        names = list(columns) if columns is not None else FEATURES.names
        schema = arrow_schema(names, self.crs)
        where = self.where(version=version, **asked)
        found = scan_features(self.storage, where, columns=names, version=version, counts=counts)
        batches = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in found)
        return pa.RecordBatchReader.from_batches(schema, batches)

    def scenes(self) -> pa.Table:
        """Return the scenes table, a row for each scene, by scene number."""
        return read_scenes(self.storage)

    def runs(self) -> pa.Table:
        """Return a row for each run that left a record, by run id: see `query.runs.RUNS`."""
        return read_runs(self.storage)

    def class_names(self, *, version: int | None = None) -> list[str]:
        """Return the names of the classes that features have, sorted; a column of the table is read for it."""
        names: set[str] = set()
        for batch in scan_features(self.storage, columns=["class_name"], version=version):
            names.update(batch.column(0).unique().to_pylist())
        return sorted(names)

    def features_uri(self) -> str:
        """Return where the features table is, for Delta readers."""
        return self.storage.delta_uri(FEATURES_TABLE)

    def _in_table(self, aoi: Aoi, version: int | None) -> shapely.Geometry:
        return area_in_table(aoi, self.info.table_crs, table_bounds(self.storage, version=version))


def _check_version(storage: Storage, version: int | None) -> None:
    newest = features_version(storage) if version is not None else 0
    if version is not None and not 0 <= version <= newest:
        raise ConfigError(
            f"versions of this store are 0 to {newest}, got {version}; `segworker diff` lists the last ones"
        )


def arrow_schema(columns: Sequence[str], crs: pyproj.CRS | None) -> pa.Schema:
    """Return the schema of a stream of features: the geometry is told to be WKB in a CRS (https://geoarrow.org)."""
    schema = feature_schema(columns)
    if "geometry" not in columns:
        return schema
    place = schema.get_field_index("geometry")
    return schema.set(place, schema.field(place).with_metadata(wkb_metadata(crs)))


def wkb_metadata(crs: pyproj.CRS | None) -> dict[bytes, bytes]:
    """Return the metadata of an Arrow field that holds WKB."""
    told: dict[str, Any] = {} if crs is None else {"crs": crs.to_json_dict(), "crs_type": "projjson"}
    return {b"ARROW:extension:name": b"geoarrow.wkb", b"ARROW:extension:metadata": json.dumps(told).encode()}


def _four(bbox: Sequence[float]) -> Bounds:
    values = tuple(float(value) for value in bbox)
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ConfigError(f"a bbox is four numbers xmin, ymin, xmax, ymax, got {list(bbox)}; correct them")
    return values


def _names(value: Names) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)
