"""One value range for a whole scene, and how much of it is valid, from a bounded sample of its pixels.

Ranges are in the units of `TileImage.pixels`, that is of the file. What a user states is in real units: a file's scale
and offset (real = stored * scale + offset) are taken out of it. A model's input is (pixel - low) / (high - low).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from segworker.config_values import ValueRange
from segworker.errors import SceneError
from segworker.io.bands import LUMINANCE, BandPlan, Pixels
from segworker.io.gdal import gdal_environment
from segworker.io.header import REGRIDDED, WARPED
from segworker.io.mosaic import MosaicLevel
from segworker.io.raster import Level, SceneReader
from segworker.io.resample import Valid
from segworker.types import InputSpec, Scene, Window

Range: TypeAlias = tuple[float, float]

SAMPLE_PX = 2_000_000
MAX_SHEETS = 64
"Sheets of a mosaic that are sampled, evenly chosen."
_PATCH_PX = 128
_MAX_BLOCKS = 65_536
_log = logging.getLogger(__name__)


def value_range(
    scene: Scene,
    mode: ValueRange,
    *,
    bands: tuple[int, ...] | None = None,
    spec: InputSpec | None = None,
) -> tuple[Range, ...]:
    """Return the (low, high) that become 0 and 1, for each band of `TileImage.pixels`.

    Args:
        scene: the scene; its header is read, and up to two million pixels for percentiles.
        mode: 'dtype': the integers' own range (a 12-bit file's is 0 to 4095); floats must declare statistics within 0
            to 1, and are refused otherwise. A stated range is in real units. Percentiles are those of valid pixels,
            each band by itself.
        bands: as in `SceneReader`.
        spec: as in `SceneReader`.

    Raises SceneError where a range cannot be known.
    """
    if mode.kind == "percentile":
        return _percentiles(_samples(scene, bands, spec), mode)
    if scene.sheets:  # all sheets store values alike; one that is not warped says how
        plain = next((s.scene for s in scene.sheets if REGRIDDED not in s.scene.options), scene.sheets[0].scene)
        return value_range(plain, mode, bands=bands, spec=spec)
    with SceneReader(scene, bands=bands, spec=spec) as reader:
        level, plan = reader.level, reader.plan
        assert isinstance(level, Level)
        stated = (mode.low, mode.high) if mode.kind == "range" else None
        if plan.palette:
            return (stated or (0.0, 255.0),) * plan.num_bands
        with gdal_environment(scene.uri, side_files=True):
            ranges = [_stored(level, i, stated) if stated else _own_range(level, i) for i in plan.indexes]
        return _of_output(ranges, plan)


def valid_share(
    scene: Scene, *, bands: tuple[int, ...] | None = None, spec: InputSpec | None = None, sample_px: int = SAMPLE_PX
) -> float:
    """Estimate which share of a scene's pixels is valid, 0 to 1, from an overview or patches spread over it.

    Blocks that a TIFF leaves out are known to hold no pixels, and count as nodata where a nodata value is declared.
    """
    with SceneReader(scene, bands=bands, spec=spec) as reader:
        present = _present_share(reader.level)
        seen = valid = 0
        for _, mask in _sample(reader, sample_px):
            seen, valid = seen + mask.size, valid + int(np.count_nonzero(mask))
    return min(valid / max(1, seen), present)


def _samples(scene: Scene, bands: tuple[int, ...] | None, spec: InputSpec | None) -> Iterator[tuple[Pixels, Valid]]:
    """Yield a bounded sample of a scene; of a mosaic, of some of its sheets."""
    if not scene.sheets:
        with SceneReader(scene, bands=bands, spec=spec) as reader:
            yield from _sample(reader, SAMPLE_PX)
        return
    chosen = scene.sheets[:: math.ceil(len(scene.sheets) / MAX_SHEETS)]
    for sheet in chosen:
        try:
            with SceneReader(sheet.scene, bands=bands, spec=spec) as reader:
                yield from _sample(reader, SAMPLE_PX // len(chosen))
        except SceneError as error:  # its tiles will fail, and be counted, when they are read
            _log.warning("no sample of values from a sheet of %s: %s", scene.scene_id, error)


def _percentiles(parts: Iterator[tuple[Pixels, Valid]], mode: ValueRange) -> tuple[Range, ...]:
    seen = [pixels[:, valid] for pixels, valid in parts]
    if not seen:
        raise SceneError("a value range in percentiles needs pixels that can be read, got none; state LOW,HIGH")
    values = np.concatenate(seen, axis=1).astype(np.float64)
    if values.shape[1] == 0:
        return ((0.0, 1.0),) * len(values)
    lows, highs = np.percentile(values, [mode.low, mode.high], axis=1)
    return tuple(
        (float(low), float(high) if high > low else float(low) + 1) for low, high in zip(lows, highs, strict=True)
    )


def _sample(reader: SceneReader, sample_px: int) -> Iterator[tuple[Pixels, Valid]]:
    """Yield pixels as a model would see them: a small scene or overview whole, else patches on a lattice."""
    scene = reader.scene
    many = len(scene.sheets) > MAX_SHEETS
    small = [size for size in ([] if many else reader.overview_sizes_wh()) if math.prod(size) <= sample_px]
    if scene.width * scene.height > sample_px and small:
        scale = max(small)[0] / scene.width
        with SceneReader(scene, scale=scale, bands=reader.explicit_bands, spec=reader.spec) as overview:
            level = overview.level
            pixels, valid = overview.read_level(Window(0, 0, level.width, level.height))
            yield pixels, valid
        return
    for window in _patches(scene.width, scene.height, sample_px):
        yield reader.read_window(window)


def _patches(width: int, height: int, sample_px: int) -> Iterator[Window]:
    """Yield windows that cover a small scene, and that lie evenly over a large one, at most `sample_px` together."""
    if width * height <= sample_px:
        yield Window(0, 0, width, height)
        return
    num = max(1, sample_px // _PATCH_PX**2)
    num_x = min(max(1, round(math.sqrt(num * width / height))), num, math.ceil(width / _PATCH_PX))
    num_y = min(max(1, num // num_x), math.ceil(height / _PATCH_PX))
    wide, high = min(width, _PATCH_PX), min(height, _PATCH_PX)
    for row in range(num_y):
        for col in range(num_x):
            left = int((col + 0.5) * width / num_x - wide / 2)
            top = int((row + 0.5) * height / num_y - high / 2)
            yield Window(min(max(0, left), width - wide), min(max(0, top), height - high), wide, high)


def _present_share(level: Level | MosaicLevel) -> float:
    """Return the share of a sparse TIFF's blocks that are in the file; 1 where that says nothing about validity."""
    if isinstance(level, MosaicLevel):
        return 1.0
    dataset, scene = level.dataset, level.scene
    rows, cols = scene.block_shape_yx
    num_y, num_x = math.ceil(scene.height / rows), math.ceil(scene.width / cols)
    derived = WARPED in scene.options or REGRIDDED in scene.options
    if derived or dataset.driver != "GTiff" or scene.nodata is None or num_y * num_x > _MAX_BLOCKS:
        return 1.0
    with gdal_environment(scene.uri, side_files=True):
        present = sum(
            dataset.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=1) is not None
            for y in range(num_y)
            for x in range(num_x)
        )
    return min(1.0, present * rows * cols / (scene.width * scene.height))


def _stored(level: Level, band: int, real: Range) -> Range:
    scale, offset = level.dataset.scales[band - 1], level.dataset.offsets[band - 1]
    if scale == 0:
        raise SceneError(f"a file's scale must not be 0, got 0 for band {band} of {level.scene.scene_id}; correct it")
    return (real[0] - offset) / scale, (real[1] - offset) / scale


def _own_range(level: Level, band: int) -> Range:
    dtype = np.dtype(level.dataset.dtypes[band - 1])
    if np.issubdtype(dtype, np.integer):
        bits = level.dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS")
        info = np.iinfo(dtype)
        return (0.0, float(2 ** int(bits) - 1)) if bits and info.min == 0 else (float(info.min), float(info.max))
    real = _declared_statistics(level.dataset, band)
    if real is not None and real[0] >= 0 and real[1] <= 1:
        return _stored(level, band, (0.0, 1.0))
    raise SceneError(
        f"floating-point scenes need a stated value range, got {dtype} in {level.scene.scene_id}; give --value-range "
        "LOW,HIGH or percentile:1,99"
    )


def _declared_statistics(dataset: Any, band: int) -> Range | None:  # noqa: ANN401 - rasterio ships no types
    """Return the real minimum and maximum that a file's own statistics state."""
    tags = dataset.tags(band)
    try:
        ends = float(tags["STATISTICS_MINIMUM"]), float(tags["STATISTICS_MAXIMUM"])
    except (KeyError, ValueError):
        return None
    scale, offset = dataset.scales[band - 1], dataset.offsets[band - 1]
    low, high = sorted(end * scale + offset for end in ends)
    return low, high


def _of_output(ranges: list[Range], plan: BandPlan) -> tuple[Range, ...]:
    if plan.form == "repeat":
        return (ranges[0],) * plan.count
    if plan.form == "luminance":
        low, high = (sum(float(w) * r[i] for w, r in zip(LUMINANCE, ranges, strict=True)) for i in (0, 1))
        return ((low, high),)
    return tuple(ranges)
