"""A scene's features as a label raster: each pixel holds the number of the feature that it is in."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from segworker.io.ids import MAX_FEATURES_PER_SCENE
from segworker.query.scenes import StoredScene

BLOCK_PX = 4096
TILE_PX = 512
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def label_values(feature_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the value that each feature's pixels have: its index in the scene plus 1; 0 is no feature."""
    return feature_ids % MAX_FEATURES_PER_SCENE + 1


def write_labels(
    path: Path,
    scene: StoredScene,
    polygons: NDArray[np.object_],
    values: NDArray[np.int64],
    scores: NDArray[np.floating],
) -> None:
    """Write a tiled uint32 GeoTIFF of the scene's size and georeference, block by block.

    A pixel belongs to the polygon that holds its centre; where several do, to the one with the highest score.

    Args:
        path: a local file.
        scene: whose size it has.
        polygons: (N,) in scene pixels.
        values: (N,) above 0.
        scores: (N,).
    """
    order = np.lexsort((values, scores))
    shapes, numbers = polygons[order], values[order]
    tree = shapely.STRtree(shapes)
    placed = {} if scene.transform == _IDENTITY and scene.crs is None else _placed(scene)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=scene.width,
            height=scene.height,
            count=1,
            dtype="uint32",
            nodata=0,
            tiled=True,
            blockxsize=TILE_PX,
            blockysize=TILE_PX,
            compress="deflate",
            BIGTIFF="IF_SAFER",
            SPARSE_OK="TRUE",
            **placed,
        ) as dataset:
            for row in range(0, scene.height, BLOCK_PX):
                for col in range(0, scene.width, BLOCK_PX):
                    side_x, side_y = min(BLOCK_PX, scene.width - col), min(BLOCK_PX, scene.height - row)
                    found = np.sort(tree.query(shapely.box(col, row, col + side_x, row + side_y)))
                    if len(found):
                        block = rasterio.features.rasterize(
                            zip(shapes[found], numbers[found].tolist(), strict=True),
                            out_shape=(side_y, side_x),
                            transform=rasterio.Affine.translation(col, row),
                            dtype="uint32",
                        )
                        dataset.write(block, 1, window=Window(col, row, side_x, side_y))


def _placed(scene: StoredScene) -> dict[str, object]:
    return {"crs": scene.crs, "transform": rasterio.Affine(*scene.transform)}
