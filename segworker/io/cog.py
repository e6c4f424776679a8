"""Cloud optimised GeoTIFFs, written window by window: memory never holds more than a window and GDAL's block cache.

Windows go to a tiled temporary file on local disk, which GDAL's COG driver turns into the finished one, overviews
included (https://docs.ogc.org/is/21-026/21-026.html).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window as RasterioWindow

from segworker.errors import StorageError
from segworker.io.storage import Storage
from segworker.types import Scene, Window

BLOCK_PX = 512
CACHE_MB = 256


@dataclass(frozen=True, slots=True)
class CogSpec:
    """What a raster of one band is like."""

    width: int
    height: int
    dtype: str
    nodata: float
    crs: str | None
    "WKT."
    transform: Affine
    colours: Mapping[int, tuple[int, int, int]] | None = None
    "Of a uint8 band."
    scale: float = 1.0
    "Value = stored * scale."
    unit: str = ""
    description: str = ""
    overviews: Literal["NEAREST", "MODE", "AVERAGE"] = "NEAREST"


def grid_transform(scene: Scene, scale: float) -> Affine:
    """Return the transform of a scene's grid pixels to CRS units."""
    return Affine(*scene.transform) @ Affine.scale(1 / scale)


class CogWriter:
    """One COG, put into the storage when it is closed. Use it as a context manager: after an exception nothing is put.

    Raises:
        StorageError: where local disk or storage refuse the file.
    """

    def __init__(self, storage: Storage, path: str, spec: CogSpec) -> None:
        self._storage, self._path, self._spec = storage, path, spec
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="segworker-")))
        self._dataset: Any = None

    def __enter__(self) -> Self:
        spec = self._spec
        profile = {"dtype": spec.dtype, "nodata": spec.nodata, "crs": spec.crs, "transform": spec.transform}
        self._stack.enter_context(_environment())
        with _told(self._path):
            self._dataset = rasterio.open(
                self._folder / "windows.tif",
                "w",
                driver="GTiff",
                width=spec.width,
                height=spec.height,
                count=1,
                tiled=True,
                blockxsize=BLOCK_PX,
                blockysize=BLOCK_PX,
                compress="zstd",
                zstd_level=1,
                sparse_ok=True,
                bigtiff="IF_SAFER",
                **profile,
            )
            self._describe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._dataset.close()
            self._stack.close()

    def write(self, window: Window, values_HW: NDArray[np.generic]) -> None:
        """Write a window. What is never written is nodata."""
        area = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        with _told(self._path):
            self._dataset.write(values_HW.astype(self._spec.dtype, copy=False), 1, window=area)

    def _describe(self) -> None:
        spec = self._spec
        if spec.colours is not None:
            self._dataset.write_colormap(1, {value: (*rgb, 255) for value, rgb in spec.colours.items()})
        if spec.description:
            self._dataset.set_band_description(1, spec.description)
        if spec.scale != 1:
            self._dataset.scales = (spec.scale,)
        if spec.unit:
            self._dataset.units = (spec.unit,)

    def _finish(self) -> None:
        finished = self._folder / "cog.tif"
        with _told(self._path):
            self._dataset.close()
            rasterio.shutil.copy(
                self._folder / "windows.tif",
                finished,
                driver="COG",
                compress="deflate",
                blocksize=BLOCK_PX,
                overview_resampling=self._spec.overviews,
                bigtiff="IF_SAFER",
                num_threads=1,
            )
        self._storage.write(self._path, finished)


def _environment() -> ExitStack:
    """Return GDAL's settings, and silence about rasters without a georeference."""
    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_MB))
    return stack


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Turn what GDAL raises into a StorageError that names the file."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise StorageError(
            f"a raster must be written to local disk first, got {error} for {path}; free space in "
            f"{tempfile.gettempdir()} or set TMPDIR"
        ) from None
