"""Cutting a raster into the sheets of a mosaic."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rasterio import Affine

from segworker.synthetic.paint import write_raster
from segworker.types import Window

PLACE = Affine(0.5, 0, 400_000, 0, -0.5, 30_200)
UTM = "EPSG:32636"


def lattice(width: int, height: int, side: int, *, overlap: int = 0) -> list[Window]:
    """Windows of a side that cover a scene, each reaching `overlap` into the next ones."""
    return [
        Window(x, y, min(width - x, side + overlap), min(height - y, side + overlap))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


def write_sheets(
    folder: Path,
    bands_CHW: np.ndarray,
    windows: Iterable[Window],
    *,
    crs: str | None = UTM,
    transform: Affine = PLACE,
    **profile: object,
) -> list[Path]:
    """Write each window of some bands as a file of its own, named by its place in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, window in enumerate(windows):
        rows, cols = window.slices_in(Window(0, 0, bands_CHW.shape[2], bands_CHW.shape[1]))
        placed = transform @ Affine.translation(window.col_off, window.row_off)
        path = folder / f"sheet_{k:03d}.tif"
        write_raster(path, bands_CHW[:, rows, cols], crs=crs, transform=placed, **profile)
        paths.append(path)
    return paths
