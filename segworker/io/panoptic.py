"""Panoptic rasters of a scene and the JSON that tells what their values mean (https://cocodataset.org/#format-data).

A pixel's value is the index of its feature in the scene, plus one; 0 is no segment. In place of COCO's coloured PNG the
values lie in a GeoTIFF of unsigned 32-bit integers. Segments carry their `feature_id`.
"""

from __future__ import annotations

import colorsys
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segworker.grid import Grid
from segworker.io.cog import CogSpec, grid_transform
from segworker.io.failures import redact
from segworker.io.ids import feature_ids
from segworker.io.storage import Storage
from segworker.masks import I64
from segworker.types import Category, Scene

PLACE, INDEX, CLASS, AREA, BOX = 0, 1, 2, 3, 4
"Columns of a segment table (N, 8): first pixel (row << 32 | column), index, class id, pixels, box x0 y0 x1 y1."
NUM_COLUMNS = 8
BATCH = 10_000


def panoptic_path(run_id: str, scene_id: str, kind: str = "") -> str:
    """Return where a scene's raster is in the store: the panoptic one, or with a kind that of classes, heights ..."""
    return f"runs/{run_id}/panoptic/{scene_id}{'.' + kind if kind else ''}.tif"


def index_spec(scene: Scene, grid: Grid) -> CogSpec:
    """Return what the raster of indices is like. It has the pixels that the model saw."""
    return CogSpec(
        grid.width,
        grid.height,
        "uint32",
        0,
        scene.crs,
        grid_transform(scene, grid.scale),
        description="index in the scene + 1",
    )


def class_spec(scene: Scene, grid: Grid, categories: Sequence[Category]) -> CogSpec:
    """Return what the raster of class ids is like: a byte with colours where the ids allow it."""
    ids = [c.id for c in categories]
    small = max(ids) < 255
    dtype, most = ("uint8", 255) if small else ("uint16" if max(ids) < 65_535 else "int32", 65_535)
    nodata = 0 if 0 not in ids else most if dtype != "int32" else -1
    return CogSpec(
        grid.width,
        grid.height,
        dtype,
        nodata,
        scene.crs,
        grid_transform(scene, grid.scale),
        colours=class_colours(categories) if small else None,
        description="class id",
        overviews="MODE",
    )


def class_colours(categories: Sequence[Category]) -> dict[int, tuple[int, int, int]]:
    """Return a colour for each class id: hues a golden angle apart, things brighter than stuff."""
    colours = {}
    for k, category in enumerate(categories):
        value = 0.95 if category.isthing else 0.65
        rgb = colorsys.hsv_to_rgb(k * 0.618034 % 1.0, 0.65, value)
        colours[category.id] = (round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255))
    return colours


def write_segments(
    storage: Storage,
    path: str,
    tables: Iterable[I64],
    *,
    scene: Scene,
    scene_no: int,
    grid: Grid,
    categories: Sequence[Category],
) -> None:
    """Write the JSON beside a panoptic raster, segment by segment.

    Args:
        storage: the store's root.
        path: of the raster; the JSON has its name.
        tables: (N, 8) of all blocks.
        scene: the scene.
        scene_no: its number in the store.
        grid: its grid; areas and boxes are in the raster's pixels.
        categories: of the model.
    """
    name = path.rsplit("/", 1)[-1]
    things = {c.id: int(c.isthing) for c in categories}
    head: dict[str, Any] = {
        "categories": [{"id": c.id, "name": c.name, "supercategory": "", "isthing": things[c.id]} for c in categories],
        "images": [
            {
                "id": scene_no,
                "file_name": redact(scene.uri),
                "width": grid.width,
                "height": grid.height,
                "scene_id": scene.scene_id,
            }
        ],
    }
    with tempfile.TemporaryDirectory(prefix="segworker-") as folder:
        local = Path(folder, "segments.json")
        with local.open("w", encoding="utf-8") as target:
            target.write(json.dumps(head)[:-1])
            annotation = {"image_id": scene_no, "file_name": name}
            target.write(', "annotations": [' + json.dumps(annotation)[:-1] + ', "segments_info": [')
            comma = "\n"
            for table in tables:
                for start in range(0, len(table), BATCH):
                    rows = table[start : start + BATCH]
                    told = [_segment(row, scene_no, things) for row in rows.tolist()]
                    target.write(comma + ",\n".join(json.dumps(t) for t in told))
                    comma = ",\n"
            target.write("\n]}]}\n")
        storage.write(path.removesuffix(".tif") + ".json", local)


def _segment(row: Sequence[int], scene_no: int, things: dict[int, int]) -> dict[str, Any]:
    left, top, right, bottom = row[BOX:]
    return {
        "id": row[INDEX] + 1,
        "feature_id": int(feature_ids(scene_no, np.array([row[INDEX]]))[0]),
        "category_id": row[CLASS],
        "isthing": things[row[CLASS]],
        "area": row[AREA],
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }
