"""Reading a mosaic: its sheets put together window by window.

Each sheet is read as a scene of its own, so that nodata, masks, alpha and palettes mean what they mean elsewhere. Where
sheets overlap, the later one lies on top, and a pixel is that of the highest sheet which is valid there: all bands of a
pixel come from one sheet. Where there is no sheet, nothing is valid.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, Self

import numpy as np

from segworker.errors import ReadError, SceneError
from segworker.io.bands import BandPlan, Pixels
from segworker.io.resample import Valid
from segworker.types import Affine6, Scene, Sheet, Window

MOSAIC = "mosaic"
"`Scene.source` of a mosaic."
MAX_OPEN = 48
"Sheets that a reader holds open; the one not read for longest is closed first."


class SheetReader(Protocol):
    """What reads one sheet: a `SceneReader`."""

    def __enter__(self) -> Self:
        """Open it."""

    def __exit__(self, *_: object) -> None:
        """Close it."""

    def read_level(self, window: Window) -> tuple[Pixels, Valid]:
        """Read a window of the sheet's pixels at the level it was opened for."""


class MosaicLevel:
    """One resolution of a mosaic, with the face of `raster.Level`; bands are as the model sees them. Close it."""

    def __init__(
        self, scene: Scene, factor: int, num_bands: int, open_sheet: Callable[[Scene, int], SheetReader]
    ) -> None:
        """Describe a level; nothing is opened yet.

        Args:
            scene: the mosaic.
            factor: scene pixels per level pixel: 1, or one of the scene's overviews.
            num_bands: of what the sheets' readers return.
            open_sheet: makes the reader of (a sheet's scene, the factor of its overview).
        """
        self.scene = scene
        self.width, self.height = math.ceil(scene.width / factor), math.ceil(scene.height / factor)
        self.plan = BandPlan(tuple(range(1, num_bands + 1)))
        self._factor = factor
        self._open_sheet = open_sheet
        self._windows = [_coarser(sheet.window, factor) for sheet in scene.sheets]
        self._bounds = np.array([(w.col_off, w.row_off, w.col_end, w.row_end) for w in self._windows]).reshape(-1, 4)
        self._readers: OrderedDict[int, SheetReader] = OrderedDict()

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Return (bands, h, w) and (h, w) validity of a window in this level's pixels; 0 where nothing is valid.

        ReadError where a sheet is damaged there, or cannot be opened any more.
        """
        pixels = np.zeros((self.plan.num_bands, *window.shape_yx), self.scene.dtype)
        valid = np.zeros(window.shape_yx, np.bool_)
        for k in self._under(window)[::-1]:
            common = window.intersect(self._windows[k])
            rows, cols = common.slices_in(window)
            free = ~valid[rows, cols]
            if not free.any():
                continue
            own = self._windows[k]
            local = Window(common.col_off - own.col_off, common.row_off - own.row_off, common.width, common.height)
            found, seen = self._reader(int(k)).read_level(local)
            free &= seen
            np.copyto(pixels[:, rows, cols], found, where=free)
            valid[rows, cols] |= free
        return pixels, valid

    def close(self) -> None:
        """Close every sheet."""
        while self._readers:
            self._readers.popitem()[1].__exit__(None, None, None)

    def _under(self, window: Window) -> list[int]:
        left, top, right, bottom = self._bounds.T
        apart = (
            (left >= window.col_end) | (right <= window.col_off) | (top >= window.row_end) | (bottom <= window.row_off)
        )
        return [int(k) for k in np.flatnonzero(~apart)]

    def _reader(self, k: int) -> SheetReader:
        if k not in self._readers:
            if len(self._readers) >= MAX_OPEN:
                self._readers.popitem(last=False)[1].__exit__(None, None, None)
            try:
                self._readers[k] = self._open_sheet(self.scene.sheets[k].scene, self._factor).__enter__()
            except SceneError as error:  # gone since it was planned: what does not need it can still be read
                raise ReadError(str(error)) from None
        self._readers.move_to_end(k)
        return self._readers[k]


def coarser_sheet(scene: Scene, factor: int) -> Scene:
    """Return the scene of a warped sheet on a grid of pixels that are `factor` times as large."""
    a, b, c, d, e, f = scene.transform
    transform: Affine6 = (a * factor, b * factor, c, d * factor, e * factor, f)
    return replace(
        scene, transform=transform, width=math.ceil(scene.width / factor), height=math.ceil(scene.height / factor)
    )


def usable_factors(
    sheets: tuple[Sheet, ...], regridded: Callable[[Sheet], bool], *, width: int, height: int
) -> list[int]:
    """Return which overviews every sheet has, on one common grid of larger pixels. Warped sheets have any.

    Args:
        sheets: all sheets of the mosaic.
        regridded: tells warped sheets.
        width: of the mosaic; a sheet that reaches its right side may end in part of a larger pixel.
        height: likewise.
    """
    own = [sheet for sheet in sheets if not regridded(sheet)]
    factors = set.intersection(*(set(sheet.scene.overviews) for sheet in own)) if own else set()

    def fits(window: Window, factor: int) -> bool:
        ends = (window.col_end % factor == 0 or window.col_end == width) and (
            window.row_end % factor == 0 or window.row_end == height
        )
        return ends and window.col_off % factor == 0 and window.row_off % factor == 0

    return sorted(f for f in factors if f > 1 and all(fits(sheet.window, f) for sheet in sheets))


def _coarser(window: Window, factor: int) -> Window:
    left, top = window.col_off // factor, window.row_off // factor
    return Window(left, top, math.ceil(window.width / factor), math.ceil(window.height / factor))
