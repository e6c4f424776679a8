"""Reading windows of scenes: everything that rasterio opens, at any scale, never more than a window.

Values come as the file stores them; its scale and offset belong to the value range (`io.scaling`). Alpha bands, masks
(internal or beside the file), nodata values and NaN become `valid`: a pixel is invalid where it is transparent or
masked, where all the bands that are read say nodata, or where one of them is not a finite number (it is then 0).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as RasterioWindow

from segworker.errors import SceneError
from segworker.io.bands import BandPlan, Pixels, plan_bands
from segworker.io.gdal import SIDE_FILES, gdal_environment, open_dataset, reading, reread
from segworker.io.header import REGRIDDED, WARPED, FileStat, Limits, open_scene, regridded, warped
from segworker.io.mosaic import MOSAIC, MosaicLevel, coarser_sheet
from segworker.io.resample import Taps, Valid, resample
from segworker.types import InputSpec, Scene, Tile, TileImage, Window

__all__ = ["FileStat", "Level", "Limits", "SceneReader", "open_scene"]

_STRIP_PX = 2**24


class Level:
    """One resolution of an open scene: the image itself, or an overview of it. Made by `SceneReader`."""

    def __init__(self, scene: Scene, dataset: Any, plan: BandPlan) -> None:  # noqa: ANN401 - rasterio ships no types
        self.scene = scene
        self.dataset = dataset
        self.plan = plan
        self.width, self.height = int(dataset.width), int(dataset.height)
        self._indexes = (1,) if plan.palette else plan.indexes
        self._palette = _palette(dataset) if plan.palette else None
        self._alpha = [i for i, c in enumerate(dataset.colorinterp, start=1) if c == ColorInterp.alpha]
        flags = dataset.mask_flag_enums[self._indexes[0] - 1]
        self._nodata = [dataset.nodatavals[i - 1] for i in self._indexes]
        self._mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags

    def read(self, window: Window) -> tuple[Pixels, Valid]:
        """Return the planned bands (before repeating or mixing) and validity of a window in this level's pixels."""
        area = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        where = f"columns {window.col_off}-{window.col_end}, rows {window.row_off}-{window.row_end}"
        with reading(self.scene.uri, self.scene.scene_id, where):
            dtype = None if self._palette is not None else self.scene.dtype
            pixels, valid = reread(self.scene.uri, lambda: self._read(area, dtype))
        if self._palette is not None:
            return self._expand(pixels[0], valid)
        if np.issubdtype(pixels.dtype, np.floating):
            finite = np.isfinite(pixels)
            valid &= finite.all(axis=0)
            pixels = np.where(finite, pixels, pixels.dtype.type(0))
        return pixels, valid

    def _read(self, area: Any, dtype: Any) -> tuple[Pixels, Valid]:  # noqa: ANN401 - rasterio ships no types
        pixels = self.dataset.read(self._indexes, window=area, out_dtype=dtype)
        return pixels, self._valid(area, pixels)

    def _valid(self, area: Any, pixels: Pixels) -> Valid:  # noqa: ANN401 - rasterio ships no types
        valid = np.ones(pixels.shape[1:], np.bool_)
        if any(value is not None for value in self._nodata):
            valid &= ~np.logical_and.reduce([_equals(b, v) for b, v in zip(pixels, self._nodata, strict=True)])
        if self._mask:
            valid &= self.dataset.read_masks(self._indexes[0], window=area) > 0
        for band in self._alpha:
            valid &= self.dataset.read(band, window=area) > 0
        return valid

    def _expand(self, indices: Pixels, valid: Valid) -> tuple[Pixels, Valid]:
        assert self._palette is not None
        colours = self._palette[np.minimum(indices, len(self._palette) - 1)]
        bands = [i - 1 for i in self.plan.indexes]
        return np.ascontiguousarray(colours[..., bands].transpose(2, 0, 1)), valid & (colours[..., 3] > 0)


class SceneReader:
    """Reads tiles of one scene, on the grid of `Grid.of_scene(scene, scale=...)`.

    Use it as a context manager, in one thread. At scales below 1 it starts from the coarsest overview that is still as
    fine as the grid; the rest, and scales above 1, is `io.resample`: a grid pixel has one value in every tile.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        scale: float = 1.0,
        bands: tuple[int, ...] | None = None,
        spec: InputSpec | None = None,
    ) -> None:
        self.scene = scene
        self.scale = scale
        self.explicit_bands = bands
        self.spec = spec
        self._stack = ExitStack()
        self._level: Level | MosaicLevel | None = None

    def __enter__(self) -> Self:
        with self._gdal(), ExitStack() as stack:
            self._level = self._choose(stack, self._open(stack, None))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._level = None
        self._stack.close()

    @property
    def level(self) -> Level | MosaicLevel:
        """The resolution that is read from."""
        if self._level is None:
            raise RuntimeError("a SceneReader reads inside its `with` block")
        return self._level

    @property
    def plan(self) -> BandPlan:
        """The bands that are read."""
        return self.level.plan

    def read(self, tile: Tile) -> TileImage:
        """Read a tile's window. ReadError where the file is damaged there."""
        if tile.scale != self.scale:
            raise ValueError(f"tile and reader have one scale, got {tile.scale} and {self.scale}")
        pixels, valid = self.read_window(tile.window)
        return TileImage(tile, pixels, valid)

    def read_window(self, window: Window) -> tuple[Pixels, Valid]:
        """Read a window in grid pixels, which lies in the grid: (num_bands, h, w) and (h, w)."""
        with self._gdal():
            if self.scale == 1:
                pixels, valid = self.level.read(window)
            else:
                pixels, valid = self._read_scaled(window)
        return self.plan.apply(pixels), valid

    def read_level(self, window: Window) -> tuple[Pixels, Valid]:
        """Read a window in pixels of `level`, without resampling: (num_bands, h, w) and (h, w)."""
        with self._gdal():
            pixels, valid = self.level.read(window)
        return self.plan.apply(pixels), valid

    def overview_sizes_wh(self) -> list[tuple[int, int]]:
        """Return the sizes of the usable overviews, finest first."""
        with self._gdal(), ExitStack() as stack:
            levels = [self._open(stack, k) for k in range(len(self._factors(self.level)))]
            sizes = [(level.width, level.height) for level in levels if self._is_overview(level)]
        return sorted(sizes, reverse=True)

    def _gdal(self) -> AbstractContextManager[None]:
        """Return GDAL's environment for the scene's file; the sheets of a mosaic bring their own."""
        if self.scene.source == MOSAIC:
            return nullcontext()
        return gdal_environment(self.scene.uri, side_files=SIDE_FILES in self.scene.options)

    def _choose(self, stack: ExitStack, base: Level | MosaicLevel) -> Level | MosaicLevel:
        return self._overview(stack, base) if self.scale < 1 else base

    def _open(self, stack: ExitStack, overview_level: int | None) -> Level | MosaicLevel:
        if self.scene.source == MOSAIC:
            factor = 1 if overview_level is None else self.scene.overviews[overview_level]
            return stack.enter_context(closing(MosaicLevel(self.scene, factor, self._num_bands(), self._sheet)))
        dataset = stack.enter_context(open_dataset(self.scene.uri, overview_level=overview_level))
        if WARPED in self.scene.options:
            dataset = stack.enter_context(warped(dataset))
        if REGRIDDED in self.scene.options:
            dataset = stack.enter_context(regridded(dataset, self.scene))
        size = dataset.width, dataset.height
        if overview_level is None and size != (self.scene.width, self.scene.height):
            raise SceneError(
                f"a scene must stay as it was planned, got {size[0]} x {size[1]} pixels instead of "
                f"{self.scene.width} x {self.scene.height} in {self.scene.scene_id}; run again"
            )
        colours = tuple(colour.name for colour in dataset.colorinterp)
        return Level(self.scene, dataset, self._plan(colours))

    def _plan(self, colours: tuple[str, ...]) -> BandPlan:
        wanted = self.spec.num_bands if self.spec else None
        return plan_bands(colours, wanted, self.explicit_bands, self.scene.scene_id)

    def _num_bands(self) -> int:
        """Return how many bands every sheet of a mosaic gives."""
        own = len(self.explicit_bands) if self.explicit_bands else self.scene.num_bands
        return self.spec.num_bands if self.spec else own

    def _sheet(self, scene: Scene, factor: int) -> SceneReader:
        if REGRIDDED in scene.options:
            return SceneReader(coarser_sheet(scene, factor), bands=self.explicit_bands, spec=self.spec)
        return _SheetReader(scene, factor, bands=self.explicit_bands, spec=self.spec)

    def _factors(self, base: Level | MosaicLevel) -> list[int]:
        if isinstance(base, MosaicLevel):
            return list(self.scene.overviews)
        derived = WARPED in self.scene.options or REGRIDDED in self.scene.options
        return [] if derived else list(base.dataset.overviews(1))

    def _overview(self, stack: ExitStack, base: Level | MosaicLevel) -> Level | MosaicLevel:
        """Return the coarsest usable level that is as fine as the grid."""
        factors = self._factors(base)
        for k in sorted(range(len(factors)), key=lambda k: -factors[k]):
            if factors[k] > 1 / self.scale + 1:
                continue
            level = self._open(stack, k)
            fine_enough = level.width >= self.scene.width * self.scale - 1
            if fine_enough and self._is_overview(level):
                return level
        return base

    def _is_overview(self, level: Level | MosaicLevel) -> bool:
        """Tell an overview from the label and macro pictures that slide scanners put in their place."""
        return abs(level.height - self.scene.height * level.width / self.scene.width) <= 1.5

    def _read_scaled(self, window: Window) -> tuple[Pixels, Valid]:
        level = self.level
        ratio_x = level.width / (self.scene.width * self.scale)
        ratio_y = level.height / (self.scene.height * self.scale)
        x = Taps.of_range(window.col_off, window.col_end, ratio_x, level.width)
        y = Taps.of_range(window.row_off, window.row_end, ratio_y, level.height)
        left, right = x.span
        strip = max(1, int(_STRIP_PX / ((right - left) * max(1.0, ratio_y) * len(self.plan.indexes))))
        parts = []
        for start in range(0, window.height, strip):
            rows = y.rows(start, start + strip)
            top, bottom = rows.span
            pixels, valid = level.read(Window(left, top, right - left, bottom - top))
            parts.append(resample(pixels, valid, x, rows))
        return np.concatenate([p for p, _ in parts], axis=1), np.concatenate([v for _, v in parts])


class _SheetReader(SceneReader):
    """Reads a sheet at one of its overviews, in that overview's pixels."""

    def __init__(
        self, scene: Scene, factor: int, *, bands: tuple[int, ...] | None = None, spec: InputSpec | None = None
    ) -> None:
        super().__init__(scene, bands=bands, spec=spec)
        self._factor = factor

    def _choose(self, stack: ExitStack, base: Level | MosaicLevel) -> Level | MosaicLevel:
        return base if self._factor == 1 else self._open(stack, self._factors(base).index(self._factor))


def _equals(band: NDArray[Any], nodata: float | None) -> Valid:
    """Return where a band says nodata: floats within rounding, as GDAL compares them; NaN is not asked for here."""
    if nodata is None or np.isnan(nodata):
        return np.zeros(band.shape, np.bool_)
    if np.issubdtype(band.dtype, np.floating):
        return np.asarray(np.abs(band - nodata) <= 4 * np.finfo(band.dtype).eps * abs(nodata))
    info = np.iinfo(band.dtype)
    if nodata != int(nodata) or not info.min <= nodata <= info.max:
        return np.zeros(band.shape, np.bool_)
    return np.asarray(band == int(nodata))


def _palette(dataset: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - rasterio ships no types
    colours = dataset.colormap(1)
    table = np.zeros((max(colours) + 1, 4), np.uint8)
    for index, rgba in colours.items():
        table[index] = rgba
    return table
