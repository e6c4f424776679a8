"""The current version of a store, or a part of it, in the formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Unpack

import pyarrow as pa
import shapely

from segworker.errors import ConfigError
from segworker.io.coco import ANNOTATIONS_PER_FILE, CocoFeatures, CocoWriter, images_of_scene
from segworker.io.scan import Where, scan_features
from segworker.io.target import refuse_inside, split_target, target_file
from segworker.query.geojson import GeoJsonFile, properties_of, qupath_id, qupath_properties
from segworker.query.labels import label_values, write_labels
from segworker.query.results import write_geoparquet
from segworker.query.scenes import features_by_scene, stored_scenes
from segworker.query.store import Asked, Store
from segworker.query.vector import write_layer
from segworker.schema import FEATURES
from segworker.types import Category

FLAT = [name for name in FEATURES.names if name not in ("bbox", "keypoints")]
"Columns of the formats that are one table; the bounding box is in the geometry."


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    files: tuple[str, ...]
    num_features: int


@dataclass(frozen=True, slots=True)
class _Job:
    store: Store
    where: Where
    version: int | None
    out: str


@dataclass(frozen=True, slots=True)
class Format:
    """A format that can be asked for."""

    extensions: tuple[str, ...]
    "That stand for it; the others need --format."
    what: str
    write: Callable[[_Job], Exported]


def export(
    store: Store, out: str, *, file_format: str | None = None, version: int | None = None, **asked: Unpack[Asked]
) -> Exported:
    """Write features to one file, or to a file for each scene.

    Args:
        store: the store.
        out: file, or folder for the formats that have a file for each scene; local or on s3://. Older files of these
            names are replaced, each in one step.
        file_format: a key of FORMATS; None: what the extension of `out` says.
        version: of the features table; the newest by default.
        **asked: which features, as in `Store.features`.

    Raises:
        ConfigError: for a format or an output that cannot be used.
        StorageError, StoreError: where something cannot be read or written.
    """
    chosen = FORMATS[_format_of(out, file_format)]
    refuse_inside(out, store.storage)
    return chosen.write(_Job(store, store.where(version=version, **asked), version, out))


def _format_of(out: str, named: str | None) -> str:
    if named is not None:
        if named not in FORMATS:
            raise ConfigError(f"an export is in one of {', '.join(FORMATS)}, got {named!r}; correct --format")
        return named
    extension = PurePosixPath(out).suffix.lower()
    found = [name for name, entry in FORMATS.items() if extension in entry.extensions]
    if not found:
        known = ", ".join(extension for entry in FORMATS.values() for extension in entry.extensions)
        raise ConfigError(f"an export's extension says its format ({known}), got {out!r}; name one with --format")
    return found[0]


# -- one table in one file --------------------------------------------------------------------------------------------


def _stream(job: _Job, columns: list[str]) -> tuple[pa.RecordBatchReader, list[int]]:
    """Return the features, and a list to which the length of each batch is added while they are read."""
    counted: list[int] = []
    found = scan_features(job.store.storage, job.where, columns=columns, version=job.version)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in found:
            counted.append(len(batch))
            yield batch

    schema = pa.schema([FEATURES.field(name) for name in columns])
    return pa.RecordBatchReader.from_batches(schema, batches()), counted


def _layer(driver: str) -> Callable[[_Job], Exported]:
    def write(job: _Job) -> Exported:
        stream, counted = _stream(job, [*FLAT[:-1], "keypoints", "geometry"])
        with target_file(job.out) as path:
            write_layer(stream, path, driver=driver, layer="features", crs=job.store.crs)
        return Exported((job.out,), sum(counted))

    return write


def _geoparquet(job: _Job) -> Exported:
    stream, counted = _stream(job, FEATURES.names)
    with target_file(job.out) as path:
        write_geoparquet(stream, stream.schema, path, geometry={"geometry": job.store.crs})
    return Exported((job.out,), sum(counted))


def _geojson(job: _Job) -> Exported:
    stream, counted = _stream(job, FLAT)
    with target_file(job.out) as path, GeoJsonFile(path, crs=job.store.crs) as file:
        for batch in stream:
            shapes = shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False))
            file.add(shapes, properties_of(batch, but=["geometry"]), batch["feature_id"].to_pylist())
    return Exported((job.out,), sum(counted))


# -- a file for each scene --------------------------------------------------------------------------------------------


def _per_scene(job: _Job, extension: str) -> Callable[[str], str]:
    """Return what names a scene's file: `out` itself, where it has the extension and there is one scene."""
    scenes = stored_scenes(job.store, job.where.scene_ids)
    if PurePosixPath(job.out).suffix.lower() == extension:
        if len(scenes) == 1:
            return lambda _: job.out
        raise ConfigError(
            f"this format has a file for each scene, got {job.out!r} for {len(scenes)} scenes; name a folder, or one "
            "scene with --scene"
        )
    return lambda scene_id: f"{job.out.rstrip('/')}/{scene_id}{extension}"


def _qupath(job: _Job) -> Exported:
    name_of, files, total = _per_scene(job, ".geojson"), [], 0
    for scene, rows, polygons in features_by_scene(job.store, job.where, columns=FLAT, version=job.version):
        told = [qupath_properties(row) for row in rows.drop_columns(["geometry"]).to_pylist()]
        ids = [qupath_id(job.store.uri, i) for i in rows["feature_id"].to_pylist()]
        with target_file(name_of(scene.scene_id)) as path, GeoJsonFile(path, crs=None, declare=False) as file:
            file.add(polygons, told, ids)
        files.append(name_of(scene.scene_id))
        total += len(rows)
    return Exported(tuple(files), total)


def _labels(job: _Job) -> Exported:
    name_of, files, total = _per_scene(job, ".tif"), [], 0
    columns = ["feature_id", "score"]
    for scene, rows, polygons in features_by_scene(job.store, job.where, columns=columns, version=job.version):
        values = label_values(rows["feature_id"].to_numpy())
        with target_file(name_of(scene.scene_id)) as path:
            write_labels(path, scene, polygons, values, rows["score"].to_numpy())
        files.append(name_of(scene.scene_id))
        total += len(rows)
    return Exported(tuple(files), total)


# -- COCO -------------------------------------------------------------------------------------------------------------


def _coco(job: _Job) -> Exported:
    """Write one file where `out` names one, else a folder of files with about 250,000 annotations at most."""
    single = PurePosixPath(job.out).suffix.lower() == ".json"
    folder, name = split_target(job.out if single else f"{job.out.rstrip('/')}/instances-0.json")
    categories = _categories(job)
    columns = ["feature_id", "class_id", "score", "area_px"]
    writer, names, total = CocoWriter(folder, name, categories, info=_info(job)), [name], 0
    try:
        for scene, rows, polygons in features_by_scene(job.store, job.where, columns=columns, version=job.version):
            if not single and writer.num_annotations and writer.num_annotations + len(rows) > ANNOTATIONS_PER_FILE:
                writer.close()
                writer.discard()
                names.append(f"instances-{len(names)}.json")
                writer = CocoWriter(folder, names[-1], categories, info=_info(job))
            ids, class_ids, scores, areas = (rows[column].to_numpy() for column in columns)
            images = images_of_scene(scene.scene_no, scene.scene_id, scene.uri, scene.width, scene.height)
            writer.add(images, CocoFeatures(ids, class_ids, scores, areas, polygons))
            total += len(rows)
        writer.close()
    finally:
        writer.discard()
    return Exported(tuple(folder.location(each) for each in names), total)


def _categories(job: _Job) -> list[Category]:
    """Return the classes that the features have, by id; ConfigError where an id has two names."""
    found: dict[int, Category] = {}
    columns = ["class_id", "class_name", "is_thing"]
    for batch in scan_features(job.store.storage, job.where, columns=columns, version=job.version):
        for row in pa.Table.from_batches([batch]).group_by(columns).aggregate([]).to_pylist():
            category = Category(row["class_id"], row["class_name"], row["is_thing"])
            known = found.setdefault(category.id, category)
            if known.name != category.name:
                raise ConfigError(
                    f"a COCO category has one name, got {known.name!r} and {category.name!r} for class_id "
                    f"{category.id}, as models of two kinds wrote them; narrow the export with --class or --scene"
                )
    return [found[class_id] for class_id in sorted(found)]


def _info(job: _Job) -> dict[str, str]:
    return {"description": f"segworker export of {job.store.uri}", "version": "1.0"}


FORMATS: dict[str, Format] = {
    "gpkg": Format((".gpkg",), "GeoPackage", _layer("GPKG")),
    "flatgeobuf": Format((".fgb",), "FlatGeobuf", _layer("FlatGeobuf")),
    "geoparquet": Format((".parquet",), "one GeoParquet file", _geoparquet),
    "geojson": Format((".geojson",), "GeoJSON in longitudes and latitudes, or in pixels", _geojson),
    "qupath": Format((), "GeoJSON that QuPath imports as objects, a file for each scene", _qupath),
    "coco": Format((".json",), "COCO instances, one .json file or a folder of several", _coco),
    "labels": Format((".tif",), "label rasters (uint32), a file for each scene", _labels),
}
"Formats by the name that --format takes."
