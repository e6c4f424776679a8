"""Stores that nobody had to segment: squares with classes, in a UTM zone or in pixels."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from segworker.io.commit import commit_run
from segworker.io.ids import feature_ids, reserve_scene_numbers
from segworker.io.storage import Storage
from segworker.io.table import write_part
from segworker.io.table_crs import TableCrs
from segworker.schema import FEATURES
from tests.feature_rows import UTM, feature_rows, scene_rows

MAP = TableCrs.of(UTM)
PIXELS = TableCrs("pixel", None)


def commit_squares(storage: Storage, run_id: str, counts: dict[str, int], *, seed: int = 0) -> pa.Table:
    """Commit scenes of so many squares, houses and roads in turn, and return their rows."""
    numbers = reserve_scene_numbers(storage, counts)
    rows = [classed(feature_rows(numbers[s], s, n, run_id=run_id, seed=seed)) for s, n in counts.items()]
    parts = [write_part(storage, run_id, k, part, MAP) for k, part in enumerate(rows) if len(part)]
    scenes = placed(scene_rows(numbers, run_id=run_id))
    commit_run(storage, run_id=run_id, parts=parts, scenes=scenes, table_crs=MAP)
    return pa.concat_tables(rows)


def classed(rows: pa.Table) -> pa.Table:
    """Return the rows with class 1, house, and 2, road, in turn."""
    class_ids = np.arange(len(rows), dtype=np.int32) % 2 + 1
    names = np.array(["house", "road"])[class_ids - 1]
    rows = rows.set_column(3, FEATURES.field("class_id"), pa.array(class_ids))
    return rows.set_column(4, FEATURES.field("class_name"), pa.array(names.tolist(), pa.string()))


def placed(scenes: pa.Table) -> pa.Table:
    """Return scene rows that lie where `feature_rows` puts their squares: 10 km of pixels of 1 m."""
    transforms = [[1.0, 0.0, 400_000.0 + 10_000 * n, 0.0, -1.0, 40_000.0] for n in scenes["scene_no"].to_pylist()]
    place = scenes.schema.get_field_index("transform")
    return scenes.set_column(place, scenes.schema.field(place), pa.array(transforms, pa.list_(pa.float64())))


def commit_pixels(storage: Storage, run_id: str, boxes: dict[str, list[tuple[int, int, int, int]]]) -> None:
    """Commit scenes of 200 x 100 px without a CRS that hold these boxes (left, top, right, bottom)."""
    numbers = reserve_scene_numbers(storage, boxes)
    rows = pa.concat_tables([_pixel_rows(numbers[s], s, found, run_id) for s, found in boxes.items()])
    scenes = scene_rows(numbers, run_id=run_id)
    for name, values in (("crs", None), ("transform", [1.0, 0, 0, 0, 1.0, 0]), ("width", 200), ("height", 100)):
        place = scenes.schema.get_field_index(name)
        scenes = scenes.set_column(
            place, scenes.schema.field(place), pa.array([values] * len(scenes), scenes.schema.field(place).type)
        )
    part = write_part(storage, run_id, 0, rows, PIXELS)
    commit_run(storage, run_id=run_id, parts=[part], scenes=scenes, table_crs=PIXELS)


def _pixel_rows(scene_no: int, scene_id: str, boxes: list[tuple[int, int, int, int]], run_id: str) -> pa.Table:
    shapes = np.array([shapely.box(*box) for box in boxes], dtype=object)
    rows = classed(feature_rows(scene_no, scene_id, len(boxes), run_id=run_id))
    bounds = shapely.bounds(shapes)
    bbox = pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], fields=list(FEATURES.field("bbox").type))
    centres = shapely.get_coordinates(shapely.centroid(shapes))
    values = {
        "geometry": pa.array(shapely.to_wkb(shapes), pa.binary()),
        "bbox": bbox,
        "area_px": pa.array(shapely.area(shapes)),
        "area_m2": pa.nulls(len(boxes), pa.float64()),
        "centroid_x": pa.array(centres[:, 0]),
        "centroid_y": pa.array(centres[:, 1]),
        "feature_id": pa.array(feature_ids(scene_no, np.arange(len(boxes)))),
    }
    for name, column in values.items():
        rows = rows.set_column(rows.schema.get_field_index(name), FEATURES.field(name), column)
    return rows


def ids(rows: pa.Table) -> list[int]:
    return sorted(rows["feature_id"].to_pylist())


def meeting(rows: pa.Table, area: shapely.Geometry) -> list[int]:
    """Return the ids of rows whose geometry meets an area, by shapely alone."""
    shapes = shapely.from_wkb(rows["geometry"].to_numpy())
    return ids(rows.filter(pa.array(shapely.intersects(shapes, area))))


def of_class(rows: pa.Table, name: str) -> pa.Table:
    return rows.filter(pc.equal(rows["class_name"], name))
