"""What a finished group of features becomes: one GeoParquet part and one COCO file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from segworker.coverage import Fragments, join_fragments, simplify_alone, simplify_exclusive
from segworker.engine.job import Common
from segworker.engine.outlines import pixel_keys
from segworker.geo import aoi_to_scene
from segworker.grid import Grid
from segworker.io.coco import CocoWriter, coco_path, images_of_scene
from segworker.io.failures import redact
from segworker.io.geoparquet import Part
from segworker.io.ids import MAX_FEATURES_PER_SCENE, feature_ids
from segworker.io.rows import SceneFeatures, coco_of, outline, rows_of
from segworker.io.table import write_part
from segworker.killpoints import reached
from segworker.panoptic.pieces import Segments
from segworker.polygons import trace
from segworker.stitch import Features
from segworker.types import Scene


@dataclass(slots=True)
class GroupResult:
    """What writing a group gave."""

    part: Part | None
    coco: str | None
    "Path of the COCO file in the store."
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    "scene_id -> features by class name."
    seams: Counter[str] = field(default_factory=Counter)
    straight_px: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    "class id -> outline on (core borders, lines half a core behind)."
    rasters: list[str] = field(default_factory=list)
    "Paths in the store, of panoptic models."


def finish(
    features: Features,
    *,
    scene: Scene,
    scene_no: int,
    grid: Grid,
    common: Common,
    fragments: Fragments | None = None,
    segments: Segments | None = None,
) -> tuple[SceneFeatures, pa.Table]:
    """Return features as polygons and as rows, without those that area limits or the area of interest refuse.

    Args:
        features: of the scene, or of one of its blocks.
        scene: the scene.
        scene_no: its number in the store.
        grid: its grid.
        common: of the run.
        fragments: simplified outlines, where `features` are not all of the scene and outlines are to be simplified.
        segments: of stuff, which features are pieces of one region.
    """
    if common.simplify_px and common.model.spec.objects == "masks":
        tolerance = common.simplify_px * grid.scale
        simplified = _simplified(features, grid, tolerance, exclusive=common.options.exclusive, fragments=fragments)
    else:
        simplified = None
    boxes = common.model.spec.objects == "boxes"
    found = outline(features, scene=scene, scene_no=scene_no, grid=grid, simplified=simplified, boxes=boxes)
    rows = rows_of(
        found,
        run_id=common.run_id,
        table_crs=common.table_crs,
        categories=common.categories,
        segment_ids=None if segments is None else _segment_ids(found, scene_no, segments),
    )
    keep = np.ones(len(found), np.bool_)
    for area, low in ((common.min_area, True), (common.max_area, False)):
        if area is not None and area.unit != "px":
            values = rows["area_m2" if area.unit == "m2" else "area_um2"].to_numpy(zero_copy_only=False)
            values = np.asarray(values, np.float64)
            keep &= np.isnan(values) | (values >= area.value if low else values <= area.value)
    if common.aoi is not None:
        area_px = aoi_to_scene(common.aoi.polygons, common.aoi.crs, scene)
        shapely.prepare(area_px)
        keep &= shapely.intersects(area_px, found.polygons)
    return (found, rows) if keep.all() else (found.take(keep), rows.filter(pa.array(keep)))


def _segment_ids(found: SceneFeatures, scene_no: int, segments: Segments) -> NDArray[np.int64]:
    """Return the features' own ids; of pieces of one region a number from the top of the scene's range."""
    ranks = segments.of_places(pixel_keys(found.features.pieces.runs))
    shared = feature_ids(scene_no, np.int64(MAX_FEATURES_PER_SCENE - 1) - np.maximum(ranks, 0))
    return np.where(ranks < 0, found.ids, shared)


def _simplified(
    features: Features, grid: Grid, tolerance_px: float, *, exclusive: bool, fragments: Fragments | None
) -> NDArray[np.object_]:
    """Return simplified polygons in grid pixels: with shared borders where features exclude each other."""
    runs = features.pieces.runs
    if not exclusive:
        return simplify_alone(trace(runs).geometries(), tolerance_px)
    if fragments is None:
        return simplify_exclusive(runs, width=grid.width, height=grid.height, tolerance_px=tolerance_px)
    return join_fragments(fragments, pixel_keys(runs))


def write_group(
    number: int,
    found: Sequence[tuple[SceneFeatures, pa.Table]],
    *,
    scene_nos: Mapping[str, int],
    common: Common,
) -> GroupResult:
    """Write the part and the COCO file of a group; a scene without features still gets its `images` entry."""
    storage = common.storage
    result = GroupResult(None, None)
    for features, rows in found:
        counts = result.counts.setdefault(features.scene.scene_id, Counter())
        counts.update(rows["class_name"].to_pylist())
        result.seams.update(rows["seam"].to_pylist())
        class_ids = features.features.pieces.class_ids
        for class_id in np.unique(class_ids).tolist():
            lengths = features.straight_px[class_ids == class_id].sum(axis=0)
            result.straight_px[class_id] = result.straight_px.get(class_id, 0) + lengths
    tables = [rows for _, rows in found if len(rows)]
    if tables:
        result.part = write_part(storage, common.run_id, number, pa.concat_tables(tables), common.table_crs)
    reached("part")
    if common.coco:
        result.coco = coco_path(common.run_id, number)
        info = {"description": f"segworker run {common.run_id}", "version": "1.0"}
        with CocoWriter(storage, result.coco, common.model.categories, info=info) as writer:
            for features, _ in found:
                scene = features.scene
                scene_no = scene_nos[scene.scene_id]
                images = images_of_scene(scene_no, scene.scene_id, redact(scene.uri), scene.width, scene.height)
                writer.add(images, coco_of(features))
    return result
