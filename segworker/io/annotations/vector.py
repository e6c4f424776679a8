"""Polygons of vector files as truth: GeoJSON, GeoPackage, FlatGeobuf, shapefiles through GDAL; GeoParquet.

Polygons in another CRS than the scene's are reprojected near the scene alone, so that a file of a whole country serves
a scene of a hectare. Edges are straight in the scene's pixels.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from segworker.errors import ConfigError, StorageError
from segworker.geo import apply_affine, parse_crs, same_crs, to_scene_px
from segworker.geodesy import transformer
from segworker.io.annotations.draft import Classes, Draft, SceneNames
from segworker.io.annotations.options import CLASS_FIELDS, TruthOptions
from segworker.io.aoi import declares_no_crs, vector_source
from segworker.io.failures import redact
from segworker.truth import Fault, Issue
from segworker.types import Scene

_OUTLINE_POINTS = 33


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A vector file's content."""

    shapes: NDArray[np.object_]
    "(N,) geometries of any kind, None where a row has none."
    crs: str | None
    "WKT; None: scene pixels."
    columns: dict[str, NDArray[Any]]
    "(N,) each."
    object_ids: list[str]


def read_layer(uri: str) -> Layer:
    """Read the first layer of a vector file, or a GeoParquet file; ConfigError where it is neither."""
    try:
        source = vector_source(uri)
        if uri.lower().endswith((".parquet", ".geoparquet")):
            return _parquet_layer(source)
        import pyogrio  # noqa: PLC0415 - seconds of imports that few runs need

        meta, fids, wkb, fields = pyogrio.raw.read(source, layer=0, force_2d=True, return_fids=True)
    except (OSError, StorageError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"annotations are COCO JSON, label rasters or a vector file, got {redact(uri)} ({str(error)[:200]}); "
            "correct --truth"
        ) from None
    crs = parse_crs(meta["crs"]).to_wkt() if meta["crs"] and not declares_no_crs(source) else None
    columns = dict(zip(meta["fields"].tolist(), fields, strict=True))
    return Layer(shapely.from_wkb(wkb, on_invalid="ignore"), crs, columns, [str(fid) for fid in fids.tolist()])


def _parquet_layer(source: str | bytes) -> Layer:
    """Read GeoParquet 1.x with WKB; a file without the `geo` key is a ValueError."""
    table = pq.read_table(io.BytesIO(source) if isinstance(source, bytes) else source)
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"null"))
    if not geo:
        raise ValueError("a Parquet file without the `geo` key of GeoParquet")
    name = geo["primary_column"]
    if geo["columns"][name].get("encoding") != "WKB":
        raise ValueError("geometries that are not WKB")
    crs = geo["columns"][name].get("crs", "OGC:CRS84")
    columns = {key: _plain(table[key]) for key in table.column_names if key != name}
    ids = columns.get("feature_id", np.arange(len(table)))
    shapes = shapely.from_wkb(table[name].to_numpy(zero_copy_only=False), on_invalid="ignore")
    wkt = None if crs is None else parse_crs(json.dumps(crs) if isinstance(crs, dict) else crs).to_wkt()
    return Layer(shapes, wkt, columns, [str(number) for number in ids.tolist()])


def _plain(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(column.to_numpy())


def add_vector(
    uri: str, names: SceneNames, drafts: dict[str, Draft], classes: Classes, options: TruthOptions
) -> list[Issue]:
    """Append a vector file's polygons to the drafts of the scenes that they meet; return those that meet none.

    Raises:
        ConfigError: a column that is not there, or coordinates that scenes cannot have.
    """
    layer, source = read_layer(uri), redact(uri)
    class_ids, details = _classes(layer, classes, options, source)
    named = _named_scenes(layer, names, options, source)
    placed = np.zeros(len(layer.shapes), bool)
    for scene in names.scenes:
        near, moved = _in_scene(layer, scene, source)
        mine = named[near] == scene.scene_id if named is not None else np.ones(len(near), bool)
        if not mine.any():
            continue
        draft = drafts.setdefault(scene.scene_id, Draft(scene))
        for k, shape in zip(near[mine].tolist(), moved[mine], strict=True):
            draft.add(layer.object_ids[k], shape, class_ids[k], source=source, detail=details[k])
        placed[near[mine]] = True
    return _unplaced(layer, placed, source)


def _unplaced(layer: Layer, placed: NDArray[np.bool_], source: str) -> list[Issue]:
    nothing = shapely.is_missing(layer.shapes) | shapely.is_empty(layer.shapes)
    return [
        Issue(Fault.BROKEN if nothing[k] else Fault.OUTSIDE, "skipped", layer.object_ids[k], source)
        for k in np.flatnonzero(~placed).tolist()
    ]


def _classes(layer: Layer, classes: Classes, options: TruthOptions, source: str) -> tuple[list[int | None], list[str]]:
    """Return each object's class, None where its cell is empty, and what to say of it then."""
    field = options.class_field or next((name for name in CLASS_FIELDS if name in layer.columns), None)
    count = len(layer.shapes)
    if field is None:
        return [classes.add(options.default_class or "object")] * count, [""] * count
    if field not in layer.columns:
        raise ConfigError(
            f"--class-field is a column of the annotations, got {field!r} for {source} with "
            f"{', '.join(sorted(layer.columns)) or 'no columns'}; name one of them"
        )
    texts = [_text(value) for value in layer.columns[field].tolist()]
    ids = {text: classes.add(text) for text in sorted({text for text in texts if text})}
    return [ids.get(text) for text in texts], ["" if text else f"{field} is empty" for text in texts]


def _text(value: object) -> str:
    """Return a cell as a class name; whole numbers lose their '.0', missing cells are ''."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _named_scenes(layer: Layer, names: SceneNames, options: TruthOptions, source: str) -> NDArray[np.object_] | None:
    if options.scene_field is None:
        return None
    if options.scene_field not in layer.columns:
        raise ConfigError(
            f"--scene-field is a column of the annotations, got {options.scene_field!r} for {source} with "
            f"{', '.join(sorted(layer.columns)) or 'no columns'}; name one of them"
        )
    cells = layer.columns[options.scene_field].tolist()
    known = {cell: names.find(cell) for cell in set(cells)}
    return np.array([scene.scene_id if (scene := known[cell]) is not None else None for cell in cells], object)


def _in_scene(layer: Layer, scene: Scene, source: str) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Return (indices of the shapes whose bounds meet the scene's, the shapes in scene pixels)."""
    bounds = shapely.bounds(layer.shapes).reshape(-1, 4)
    if layer.crs is None:
        near = _meeting(bounds, np.array([[0.0, 0.0], [scene.width, scene.height]]))
        return near, layer.shapes[near]
    if scene.crs is None:
        raise ConfigError(
            f"annotations in map coordinates need scenes with a CRS, {scene.scene_id} has none; give the polygons of "
            f'{source} in scene pixels, without a CRS ("crs": null in GeoJSON)'
        )
    frame = shapely.segmentize(
        shapely.box(0, 0, scene.width, scene.height), max(scene.width, scene.height) / (_OUTLINE_POINTS - 1)
    )
    outline = apply_affine(shapely.get_coordinates(frame), scene.transform)
    if not same_crs(layer.crs, scene.crs):
        outline = np.column_stack(transformer(scene.crs, layer.crs).transform(outline[:, 0], outline[:, 1]))
    if not np.isfinite(outline).all():
        return np.zeros(0, np.int64), np.zeros(0, object)
    near = _meeting(bounds, outline)
    shapes = layer.shapes[near]
    if not same_crs(layer.crs, scene.crs):
        xy = shapely.get_coordinates(shapes)
        moved = np.column_stack(transformer(layer.crs, scene.crs).transform(xy[:, 0], xy[:, 1]))
        shapes = shapely.set_coordinates(shapes.copy(), moved)
    pixels = to_scene_px(shapes, scene.transform)
    touched = shapely.intersects(shapely.envelope(pixels), shapely.box(0, 0, scene.width, scene.height))
    return near[touched], pixels[touched]


def _meeting(bounds: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.int64]:
    low, high = points.min(axis=0), points.max(axis=0)
    meets = (bounds[:, :2] <= high).all(axis=1) & (bounds[:, 2:] >= low).all(axis=1)
    return np.flatnonzero(meets)
