"""Rows of the features and scenes tables for tests: squares of seeded places."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import shapely

from segworker.io.ids import feature_ids
from segworker.schema import COMMIT_COLUMNS, FEATURES, SCENES

UTM = "EPSG:32636"


def feature_rows(scene_no: int, scene_id: str, count: int, *, run_id: str = "run", seed: int = 0) -> pa.Table:
    """Return `count` features of one scene, squares in a 10 km block of their own."""
    rng = np.random.default_rng([seed, scene_no])
    x, y = 400_000 + 10_000 * scene_no + rng.uniform(0, 9_000, count), 30_000 + rng.uniform(0, 9_000, count)
    side = rng.uniform(1, 50, count)
    squares = shapely.box(x, y, x + side, y + side)
    ids = feature_ids(scene_no, np.arange(count))
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), shapely.bounds(squares).T, strict=True))
    columns = {
        "feature_id": ids,
        "run_id": [run_id] * count,
        "scene_id": [scene_id] * count,
        "class_id": rng.integers(1, 4, count).astype(np.int32),
        "class_name": ["house"] * count,
        "is_thing": [True] * count,
        "segment_id": ids,
        "score": rng.uniform(0, 1, count).astype(np.float32),
        "area_px": np.round(side**2),
        "area_m2": side**2,
        "area_um2": [None] * count,
        "centroid_x": x + side / 2,
        "centroid_y": y + side / 2,
        "bbox": pa.StructArray.from_arrays(
            [pa.array(v) for v in sides.values()], fields=list(FEATURES.field("bbox").type)
        ),
        "num_tiles": np.ones(count, np.int32),
        "seam": ["none"] * count,
        "keypoints": pa.nulls(count, FEATURES.field("keypoints").type),
        "geometry": shapely.to_wkb(squares),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in FEATURES]
    return pa.table(arrays, schema=FEATURES)


def scene_rows(numbers: dict[str, int], *, run_id: str = "run", num_features: int = 0) -> pa.Table:
    """Return a row of the scenes table for each scene, as a run hands them to the commit."""
    rows = [
        {
            "scene_no": number,
            "scene_id": scene_id,
            "uri": f"s3://in/{scene_id}.tif",
            "etag": "abc",
            "size_bytes": 1000,
            "mtime_s": 1.5e9,
            "crs": UTM,
            "transform": [1.0, 0.0, 0.0, 0.0, -1.0, 0.0],
            "pixel_size_um": None,
            "width": 10_000,
            "height": 10_000,
            "num_bands": 3,
            "tile_key": "tile",
            "stitch_key": "stitch",
            "run_id": run_id,
            "num_tiles": 4,
            "num_failed_tiles": 0,
            "num_features": num_features,
        }
        for scene_id, number in numbers.items()
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in SCENES if f.name not in COMMIT_COLUMNS]))
