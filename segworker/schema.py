"""The columns of the store's two tables. A change here raises FORMAT_VERSION where older readers would go wrong."""

from __future__ import annotations

from typing import Literal, TypeAlias

import pyarrow as pa

FORMAT_VERSION = 1
"The newest store format this code reads and writes; a store of a newer one is refused."

TableKind: TypeAlias = Literal["map", "pixel"]
"'map': geometries in the table's CRS; 'pixel': in scene pixels, for scenes without a CRS."

SEAM_KINDS = ("none", "merged", "cut", "missing")
"""Values of the seam column: seen by one tile alone; joined from several; cut, a good part of it lies where no other
tile saw it; beside a tile that failed, where it may go on unseen."""

BBOX = pa.struct([pa.field(side, pa.float64(), nullable=False) for side in ("xmin", "ymin", "xmax", "ymax")])
"Bounds of a geometry in table coordinates: the covering of GeoParquet 1.1."

KEYPOINTS = pa.list_(
    pa.struct(
        [
            pa.field("x", pa.float64()),
            pa.field("y", pa.float64()),
            pa.field("score", pa.float32()),
        ]
    )
)
"A feature's keypoints in the order of its class, in table coordinates; score 0: not seen."


def _field(name: str, dtype: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=nullable)


FEATURES = pa.schema(
    [
        _field("feature_id", pa.int64()),  # scene_no << 32 | index, below 2^53
        _field("run_id", pa.string()),
        _field("scene_id", pa.string()),
        _field("class_id", pa.int32()),
        _field("class_name", pa.string()),
        _field("is_thing", pa.bool_()),
        _field("segment_id", pa.int64()),  # pieces of one stuff region: a number from the top of the scene's ids, which
        # no feature has; else the feature_id
        _field("score", pa.float32()),
        _field("area_px", pa.float64()),  # scene pixels; whole numbers where the model saw the scene at its own scale
        _field("area_m2", pa.float64(), nullable=True),  # null without a CRS
        _field("area_um2", pa.float64(), nullable=True),  # null without a physical pixel size
        _field("centroid_x", pa.float64()),  # table coordinates
        _field("centroid_y", pa.float64()),
        _field("bbox", BBOX),
        _field("num_tiles", pa.int32()),  # tiles that saw it
        _field("seam", pa.string()),  # one of SEAM_KINDS
        _field("keypoints", KEYPOINTS, nullable=True),  # null for models without keypoints
        _field("geometry", pa.binary()),  # WKB, table coordinates
    ]
)
"One row for each feature."

SCENES = pa.schema(
    [
        _field("scene_no", pa.int32()),  # 21 bits, the upper part of the scene's feature ids
        _field("scene_id", pa.string()),
        _field("uri", pa.string()),  # without secrets
        _field("etag", pa.string(), nullable=True),
        _field("size_bytes", pa.int64(), nullable=True),
        _field("mtime_s", pa.float64(), nullable=True),  # seconds since the epoch
        _field("crs", pa.string(), nullable=True),  # WKT; null for pixel scenes
        _field("transform", pa.list_(pa.float64())),  # six numbers, scene pixels to CRS units, as in rasterio
        _field("pixel_size_um", pa.float64(), nullable=True),
        _field("width", pa.int64()),  # scene pixels
        _field("height", pa.int64()),
        _field("num_bands", pa.int32()),
        _field("tile_key", pa.string()),  # phase-1 key: what the tile shards depend on
        _field("stitch_key", pa.string()),  # phase-2 key: that and every threshold after it
        _field("run_id", pa.string()),
        _field("num_tiles", pa.int64()),
        _field("num_failed_tiles", pa.int64()),
        _field("num_features", pa.int64()),
        _field("commit_no", pa.int64()),  # the commit of features/ that brought this version of the scene
        _field("committed_at", pa.timestamp("us", tz="UTC")),
    ]
)
"One row for each scene that a commit has covered, with or without features."

COMMIT_COLUMNS = ("commit_no", "committed_at")
"Columns of SCENES that the commit fills in."
