"""Truth as rasters: the bands that perfect models read, of scenes in memory, virtual scenes and endless repetitions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from segworker.synthetic.truth import TruthScene
from segworker.types import Window


def paint_bands(
    labels_HW: NDArray[np.integer], classes_HW: NDArray[np.integer] | None = None, *, layout: str = "classes"
) -> NDArray[np.generic]:
    """Return the bands that a perfect model reads a truth from.

    Args:
        labels_HW: labels below 2^32 ('classes') or 2^24 ('rgb', 'single').
        classes_HW: class id of every pixel, for 'classes'; stuff included where there is any.
        layout: 'classes' for `perfect` and its variants: (3, H, W) uint16 of the label's low and high 16 bits and the
            class; 'rgb' for `perfect_rgb`: (3, H, W) uint8 digits; 'single' for `perfect_single`: (1, H, W) uint32.
    """
    labels = labels_HW.astype(np.int64)
    if layout == "classes":
        classes = np.ones_like(labels) if classes_HW is None else classes_HW
        return np.stack([labels & 0xFFFF, labels >> 16, classes]).astype(np.uint16)
    if labels.max(initial=0) >= 2**24:
        raise ValueError(f"layout {layout!r} holds labels below 2^24, got {labels.max()}; use 'classes'")
    if layout == "rgb":
        return np.stack([labels & 0xFF, labels >> 8 & 0xFF, labels >> 16]).astype(np.uint8)
    return labels[None].astype(np.uint32)


def paint_scene(
    scene: TruthScene, path: Path, *, layout: str = "classes", crs: str | None = None, transform: Affine | None = None
) -> Path:
    """Write a scene as the raster that a perfect model reads (`paint_bands`)."""
    classes = scene.class_ids[scene.labels_HW]
    if scene.stuff_HW is not None:
        classes = np.where(scene.labels_HW > 0, classes, scene.stuff_HW)
    bands = paint_bands(scene.labels_HW, classes, layout=layout)
    write_raster(path, bands, crs=crs, transform=transform)
    return path


def paint_windows(
    path: Path,
    labels_of: Callable[[Window], NDArray[np.integer]],
    class_ids_of: Callable[[NDArray[np.integer]], NDArray[np.integer]],
    *,
    width: int,
    height: int,
    block_px: int = 512,
) -> Path:
    """Write a virtual scene as a tiled, compressed raster for `perfect`, a row of blocks at a time."""
    profile = _profile(3, height, width, "uint16", block_px)
    with unreferenced_allowed(), rasterio.open(path, "w", BIGTIFF="IF_SAFER", **profile) as target:
        for top in range(0, height, block_px):
            window = Window(0, top, width, min(block_px, height - top))
            labels = labels_of(window)
            bands = paint_bands(labels, class_ids_of(labels))
            target.write(bands, window=RasterWindow(0, top, width, window.height))
    return path


def repeat_raster(path: Path, source: Path, *, width: int, height: int) -> Path:
    """Write a VRT in which a square raster repeats over a scene of any size; bands and type are the source's.

    Labels repeat too. That is harmless for perfect models as long as no window is larger than the source.
    """
    with unreferenced_allowed(), rasterio.open(source) as raster:
        side_x, side_y = raster.width, raster.height
    places = [(source, x, y) for y in range(0, height, side_y) for x in range(0, width, side_x)]
    return place_rasters(path, places, width=width, height=height)


def place_rasters(path: Path, places: Sequence[tuple[Path, int, int]], *, width: int, height: int) -> Path:
    """Write a VRT of rasters of one size at (source, column, row); bands and type are the first one's."""
    with unreferenced_allowed(), rasterio.open(places[0][0]) as raster:
        side_x, side_y, count, dtype = raster.width, raster.height, raster.count, raster.dtypes[0]
    bands = []
    for band in range(1, count + 1):
        parts = [
            _vrt_part(source, band, (x, y), (min(side_x, width - x), min(side_y, height - y)))
            for source, x, y in places
        ]
        bands.append(f'<VRTRasterBand dataType="{_GDAL_TYPES[dtype]}" band="{band}">{"".join(parts)}</VRTRasterBand>')
    path.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{"".join(bands)}</VRTDataset>')
    return path


def write_raster(
    path: Path,
    bands_CHW: NDArray[np.generic],
    *,
    crs: str | None = None,
    transform: Affine | None = None,
    tags: Mapping[str, object] | None = None,
    block_px: int = 256,
    **profile: object,
) -> Path:
    """Write bands as a tiled GeoTIFF, or as PNG where the name says so."""
    count, height, width = bands_CHW.shape
    settings: dict[str, Any] = {"driver": "PNG", "count": count, "height": height, "width": width}
    if path.suffix.lower() != ".png":
        settings = _profile(count, height, width, str(bands_CHW.dtype), block_px)
    settings |= {"dtype": str(bands_CHW.dtype), "crs": crs, "transform": transform or Affine.identity(), **profile}
    with unreferenced_allowed(), rasterio.open(path, "w", **settings) as target:
        target.write(bands_CHW)
        target.update_tags(**(tags or {}))
    return path


_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "uint32": "UInt32", "float32": "Float32"}


def _profile(count: int, height: int, width: int, dtype: str, block_px: int) -> dict[str, Any]:
    profile = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": dtype,
        "compress": "deflate",
    }
    if min(height, width) >= block_px:
        profile |= {"tiled": True, "blockxsize": block_px, "blockysize": block_px}
    if count == 3 and dtype == "uint8":
        profile |= {"photometric": "RGB"}
    return profile


def _vrt_part(source: Path, band: int, place_xy: tuple[int, int], size_wh: tuple[int, int]) -> str:
    size = f'xSize="{size_wh[0]}" ySize="{size_wh[1]}"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0" shared="1">{source.resolve()}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" {size}/>'
        f'<DstRect xOff="{place_xy[0]}" yOff="{place_xy[1]}" {size}/></SimpleSource>'
    )


@contextmanager
def unreferenced_allowed() -> Iterator[None]:
    """Keep rasterio from warning of rasters without a georeference: these have none on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
