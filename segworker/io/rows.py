"""From finished features of a scene to rows of the features table and to COCO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from segworker import masks
from segworker.geo import apply_affine, area_m2, reproject, to_map
from segworker.grid import Grid
from segworker.io.coco import CocoFeatures
from segworker.io.ids import feature_ids
from segworker.io.table_crs import TableCrs
from segworker.polygons import trace
from segworker.schema import BBOX, FEATURES, KEYPOINTS
from segworker.stitch import SEAM_NAMES, Features
from segworker.straight import straight_edges_px
from segworker.types import Category, Scene


@dataclass(frozen=True, slots=True, eq=False)
class SceneFeatures:
    """Finished features of one scene with their polygons in scene pixels."""

    scene: Scene
    ids: NDArray[np.int64]
    "(N,) feature ids."
    features: Features
    polygons: NDArray[np.object_]
    "(N,) shapely polygons, scene pixels."
    areas_px: NDArray[np.float64]
    "(N,) scene pixels."
    centroids_xy: NDArray[np.float64]
    "(N, 2) scene pixels."
    straight_px: NDArray[np.int64]
    "(N, 2) outline on (core borders, lines half a core behind), see `straight`."
    keypoints_NK3: NDArray[np.float64] | None = None
    "(N, K, 3) x, y in scene pixels, and a score; 0: not seen. None: the model gives none."

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: NDArray[np.integer] | NDArray[np.bool_]) -> SceneFeatures:
        """Return the features at `indices`."""
        chosen = Features(self.features.index[indices], self.features.pieces.take(indices))
        return SceneFeatures(
            self.scene,
            self.ids[indices],
            chosen,
            self.polygons[indices],
            self.areas_px[indices],
            self.centroids_xy[indices],
            self.straight_px[indices],
            None if self.keypoints_NK3 is None else self.keypoints_NK3[indices],
        )


def outline(
    features: Features,
    *,
    scene: Scene,
    scene_no: int,
    grid: Grid,
    simplified: NDArray[np.object_] | None = None,
    boxes: bool = False,
) -> SceneFeatures:
    """Trace features and bring them into scene pixels.

    Args:
        features: of the scene, in grid pixels.
        scene: the scene.
        scene_no: its number in the store.
        grid: its grid; a grid pixel is 1 / scale scene pixels.
        simplified: (N,) polygons to take in place of the exact ones, in grid pixels; areas and centroids stay those
            of the pixels.
        boxes: the model knows boxes alone: a feature is the box around all that its tiles saw of it.
    """
    if boxes:
        corners = masks.boxes_xyxy(features.pieces.runs) / grid.scale
        polygons = np.asarray(shapely.box(*corners.T), object)
    elif simplified is None:
        outlines = trace(features.pieces.runs)
        polygons = outlines.geometries(outlines.xy / grid.scale)
    else:
        polygons = simplified if grid.scale == 1 else to_map(simplified, (1 / grid.scale, 0, 0, 0, 1 / grid.scale, 0))
    areas = masks.areas_px(features.pieces.runs)
    centroids = masks.coordinate_sums_xy2(features.pieces.runs) / (2.0 * np.maximum(areas, 1))[:, None] / grid.scale
    areas_px = areas / grid.scale**2
    if boxes:
        areas_px, centroids = shapely.area(polygons), (corners[:, :2] + corners[:, 2:]) / 2
    ids = feature_ids(scene_no, features.index)
    straight = straight_edges_px(features.pieces.runs, grid)
    points = _points_in_scene(features, grid)
    return SceneFeatures(scene, ids, features, polygons, areas_px, centroids, straight, points)


def _points_in_scene(features: Features, grid: Grid) -> NDArray[np.float64] | None:
    points = features.pieces.keypoints_NK4
    return None if points is None else points[..., :3].astype(np.float64) / (grid.scale, grid.scale, 1)


def rows_of(
    found: SceneFeatures,
    *,
    run_id: str,
    table_crs: TableCrs,
    categories: Mapping[int, Category],
    segment_ids: NDArray[np.int64] | None = None,
) -> pa.Table:
    """Return rows of the FEATURES schema, geometries in the table's CRS.

    Args:
        found: the features.
        run_id: of the run.
        table_crs: the table's CRS.
        categories: by class id.
        segment_ids: (N,); None: each feature is a segment.

    Raises:
        SceneError: for vertices outside the area of use of the table's CRS.
    """
    scene, pieces = found.scene, found.features.pieces
    geometries, centroids = _in_table(found, table_crs)
    bounds = shapely.bounds(geometries).reshape(-1, 4)
    m2 = _areas_m2(found)
    um2 = found.areas_px * scene.pixel_size_um**2 if scene.pixel_size_um else np.full(len(found), np.nan)
    names = [categories[c].name for c in pieces.class_ids.tolist()]
    columns = {
        "feature_id": found.ids,
        "run_id": [run_id] * len(found),
        "scene_id": [scene.scene_id] * len(found),
        "class_id": pieces.class_ids.astype(np.int32),
        "class_name": names,
        "is_thing": [categories[c].isthing for c in pieces.class_ids.tolist()],
        "segment_id": found.ids if segment_ids is None else segment_ids,
        "score": pieces.scores,
        "area_px": found.areas_px,
        "area_m2": pa.array(m2, pa.float64(), mask=~np.isfinite(m2)),
        "area_um2": pa.array(um2, pa.float64(), mask=~np.isfinite(um2)),
        "centroid_x": centroids[:, 0],
        "centroid_y": centroids[:, 1],
        "bbox": pa.StructArray.from_arrays([pa.array(bounds[:, k]) for k in range(4)], fields=list(BBOX)),
        "num_tiles": pieces.num_tiles.astype(np.int32),
        "seam": [SEAM_NAMES[s] for s in pieces.seam.tolist()],
        "keypoints": _keypoints(found, table_crs),
        "geometry": pa.array(shapely.to_wkb(geometries), pa.binary()),
    }
    return pa.table(columns, schema=FEATURES)


def _keypoints(found: SceneFeatures, table_crs: TableCrs) -> pa.Array:
    """Return the keypoints in the table's coordinates; null for models without them."""
    points = found.keypoints_NK3
    if points is None:
        return pa.nulls(len(found), KEYPOINTS)
    num, places = points.shape[1], points[..., :2].reshape(-1, 2)
    scene = found.scene
    if scene.crs is not None and table_crs.wkt is not None:
        mapped = shapely.points(apply_affine(places, scene.transform))
        places = shapely.get_coordinates(reproject(mapped, scene.crs, table_crs.wkt))
    values = (places[:, 0], places[:, 1], points[..., 2].ravel())
    fields = list(KEYPOINTS.value_type)
    columns = [pa.array(v, f.type) for v, f in zip(values, fields, strict=True)]
    entries = pa.StructArray.from_arrays(columns, fields=fields)
    return pa.ListArray.from_arrays(pa.array(np.arange(len(found) + 1) * num, pa.int32()), entries)


def _areas_m2(found: SceneFeatures) -> NDArray[np.float64]:
    """Return areas on the ground; NaN without a CRS. Of simplified outlines it is the area that their pixels have."""
    scene = found.scene
    if scene.crs is None:
        return np.full(len(found), np.nan)
    drawn = shapely.area(found.polygons)
    exact = np.where(np.isclose(drawn, found.areas_px, rtol=1e-9), 1.0, found.areas_px / np.maximum(drawn, 1e-12))
    return area_m2(to_map(found.polygons, scene.transform), scene.crs) * exact


def coco_of(found: SceneFeatures) -> CocoFeatures:
    """Return the features as COCO wants them, in scene pixels."""
    pieces = found.features.pieces
    return CocoFeatures(found.ids, pieces.class_ids, pieces.scores, found.areas_px, found.polygons, found.keypoints_NK3)


def _in_table(found: SceneFeatures, table_crs: TableCrs) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Return (geometries, centroids) in the table's coordinates: map coordinates, or scene pixels."""
    scene = found.scene
    if scene.crs is None or table_crs.wkt is None:
        return found.polygons, found.centroids_xy
    points = shapely.points(apply_affine(found.centroids_xy, scene.transform))
    geometries = reproject(to_map(found.polygons, scene.transform), scene.crs, table_crs.wkt)
    moved = reproject(points, scene.crs, table_crs.wkt)
    return geometries, shapely.get_coordinates(moved).reshape(-1, 2)
