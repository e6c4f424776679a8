"""Features scene by scene, in the pixels of their scene: what image programs want."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from segworker.errors import ConfigError
from segworker.geo import reproject, to_scene_px
from segworker.io.scan import Where, feature_schema, scan_features
from segworker.query.store import Store
from segworker.types import Affine6

PIXEL_DECIMALS = 4
"Outlines follow pixel edges; what map coordinates add to them is rounded off."


@dataclass(frozen=True, slots=True)
class StoredScene:
    """A scene as the scenes table knows it."""

    scene_no: int
    scene_id: str
    uri: str
    width: int
    "Scene pixels."
    height: int
    "Scene pixels."
    crs: str | None
    "WKT."
    transform: Affine6
    "Scene pixels to CRS units."


def stored_scenes(store: Store, scene_ids: tuple[str, ...] | None = None) -> list[StoredScene]:
    """Return scenes of the store by number; ConfigError for ids that it does not list."""
    names = ["scene_no", "scene_id", "uri", "width", "height", "crs", "transform"]
    rows = store.scenes().select(names).to_pylist()
    scenes = [StoredScene(**{**row, "transform": tuple(row["transform"])}) for row in rows]
    if scene_ids is None:
        return scenes
    unknown = sorted(set(scene_ids) - {scene.scene_id for scene in scenes})
    if unknown:
        raise ConfigError(
            f"scenes are those of the store, got {', '.join(map(repr, unknown[:5]))}; the scenes table of {store.uri} "
            "lists them"
        )
    return [scene for scene in scenes if scene.scene_id in set(scene_ids)]


def features_by_scene(
    store: Store, where: Where, *, columns: list[str], version: int | None = None
) -> Iterator[tuple[StoredScene, pa.Table, NDArray[np.object_]]]:
    """Yield (scene, its rows, their polygons in scene pixels) for every scene, also for those without features.

    Args:
        store: the store.
        where: which features.
        columns: names of FEATURES, besides the geometry.
        version: of the features table; scenes are as they are now.
    """
    names = [*dict.fromkeys([*columns, "geometry"])]
    schema = feature_schema(names)
    for scene in stored_scenes(store, where.scene_ids):
        own = replace(where, scene_ids=(scene.scene_id,))
        batches = scan_features(store.storage, own, columns=names, version=version)
        rows = pa.Table.from_batches(list(batches), schema=schema)
        yield scene, rows, in_scene_px(store, scene, rows["geometry"])


def in_scene_px(store: Store, scene: StoredScene, wkb: pa.ChunkedArray) -> NDArray[np.object_]:
    """Return geometries of the table in pixels of their scene."""
    shapes = np.asarray(shapely.from_wkb(wkb.to_numpy()), dtype=object)
    table_wkt = store.info.table_crs.wkt
    if table_wkt is None or scene.crs is None or not len(shapes):
        return shapes
    pixels = to_scene_px(reproject(shapes, table_wkt, scene.crs), scene.transform)
    result: NDArray[np.object_] = shapely.transform(pixels, lambda xy: np.round(xy, PIXEL_DECIMALS))
    return result
