"""What a raster's header tells: a `Scene`, or a refusal before a single pixel is decoded."""

from __future__ import annotations

import logging
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT

from segworker.errors import SceneError
from segworker.geo import invert_affine
from segworker.io.bands import plan_bands
from segworker.io.failures import redact
from segworker.io.gdal import GDAL_ERRORS, SIDE_FILES, cause_of, gdal_environment, is_virtual, open_dataset
from segworker.io.virtual import check_virtual
from segworker.types import Affine6, InputSpec, Scene

MAX_SCENE_PX = 10**11
MAX_BLOCK_BYTES = 2**30
MAX_UNBLOCKED_BYTES = 2**33
WARPED = ("gcps", "warped")
"In `Scene.options` of a scene with ground control points only: its pixels are those of the north-up warp."
REGRIDDED = ("regrid", "yes")
"In `Scene.options` of a sheet whose pixels are those of a warp to the scene's own transform, size and CRS."
_ANY_PLANE = "EPSG:3857"
_WARP_ERROR_PX = 1 / 1024  # rasterio cannot make a warp to a stated transform with an error of 0
_UNBLOCKED = frozenset({"PNG", "JPEG", "GIF", "WEBP", "BMP"})
_MAX_WARP_GROWTH = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileStat:
    """What a listing tells about a file and those beside it that belong to it."""

    size_bytes: int | None = None
    etag: str | None = None
    mtime_s: float | None = None
    "Seconds since the epoch."
    side_files: tuple[str, ...] = ()
    "For each side file 'name size etag-or-mtime', sorted."


@dataclass(frozen=True, slots=True)
class Limits:
    """What a header may declare: a few bytes can claim an image that fills any memory."""

    scene_px: int = MAX_SCENE_PX
    block_bytes: int = MAX_BLOCK_BYTES
    "Of one decoded block, the least that can be read."
    unblocked_bytes: int = MAX_UNBLOCKED_BYTES
    "Of a whole PNG, JPEG, GIF, WebP or BMP, which are decoded from their beginning."


def open_scene(
    uri: str,
    scene_id: str,
    *,
    stat: FileStat | None = None,
    limits: Limits | None = None,
    bands: tuple[int, ...] | None = None,
    spec: InputSpec | None = None,
    is_sheet: bool = False,
) -> Scene:
    """Read a raster's header.

    Args:
        uri: absolute path, s3:// or http(s):// URI.
        scene_id: see `Scene`.
        stat: from a listing; None: nothing is known, and side files are looked for.
        limits: what is refused.
        bands: the user's choice of bands, checked here against what the file has.
        spec: the model's wishes, checked likewise.
        is_sheet: whether to tell what only mosaics want to know: the overviews, and how values are stored.

    Raises SceneError for what is no raster, has no bands, complex values or ground control points that cannot be used,
    or is larger than the limits. A scene with ground control points only is described as the north-up warp that is
    read; one with rational polynomials (RPC) only is a scene in pixels, and a warning is logged.
    """
    if is_virtual(uri):
        check_virtual(uri)
    with ExitStack() as stack:
        stack.enter_context(gdal_environment(uri, side_files=_may_have_side_files(stat)))
        dataset = stack.enter_context(open_dataset(uri))
        try:
            scene = _describe(dataset, uri, scene_id, stat=stat, limits=limits or Limits(), stack=stack)
            colours = tuple(colour.name for colour in dataset.colorinterp)
            plan_bands(colours, spec.num_bands if spec else None, bands, redact(uri))
            if is_sheet:
                overviews = () if WARPED in scene.options else tuple(dataset.overviews(1))
                scene = replace(scene, overviews=overviews, values=_stored_form(dataset, value_bands(dataset)))
        except GDAL_ERRORS as error:
            raise SceneError(
                f"a scene's header must be readable, got {redact(uri)} ({cause_of(error)}); replace the file"
            ) from None
    return scene


def warped(dataset: Any) -> Any:  # noqa: ANN401 - rasterio ships no types
    """Return a north-up view of a dataset with ground control points, in their CRS; the caller closes it."""
    _, crs = dataset.gcps
    has_mask = dataset.nodata is not None or ColorInterp.alpha in dataset.colorinterp
    return WarpedVRT(dataset, src_crs=crs, crs=crs, resampling=Resampling.bilinear, add_alpha=not has_mask, tolerance=0)


def regridded(dataset: Any, scene: Scene) -> Any:  # noqa: ANN401 - rasterio ships no types
    """Return a view of a dataset on the pixel grid that `scene` describes; the caller closes it.

    A scene without a CRS is in the plane that the dataset's own transform leads to.
    """
    has_mask = dataset.nodata is not None or ColorInterp.alpha in dataset.colorinterp
    palette = dataset.colorinterp[0] == ColorInterp.palette
    return WarpedVRT(
        dataset,
        src_crs=_ANY_PLANE if scene.crs is None else dataset.crs,
        crs=_ANY_PLANE if scene.crs is None else scene.crs,
        transform=Affine(*scene.transform),
        width=scene.width,
        height=scene.height,
        resampling=Resampling.nearest if palette else Resampling.bilinear,
        add_alpha=not has_mask,
        tolerance=_WARP_ERROR_PX,
    )


def value_bands(dataset: Any) -> tuple[int, ...]:  # noqa: ANN401 - rasterio ships no types
    """Return the bands, from 1, that are not alpha."""
    return tuple(i for i, colour in enumerate(dataset.colorinterp, start=1) if colour != ColorInterp.alpha)


def _describe(
    dataset: Any,  # noqa: ANN401 - rasterio ships no types
    uri: str,
    scene_id: str,
    *,
    stat: FileStat | None,
    limits: Limits,
    stack: ExitStack,
) -> Scene:
    name = redact(uri)
    _check_values(dataset, name)
    _check_size(dataset, name, limits)
    options = [SIDE_FILES] if _may_have_side_files(stat) else []
    stat = stat or FileStat()
    if _has_only_gcps(dataset, name):
        dataset = _checked_warp(dataset, name, stack)
        _check_size(dataset, name, limits)
        options.append(WARPED)
    transform: Affine6 = tuple(dataset.transform)[:6]
    invert_affine(transform)
    bands = value_bands(dataset)
    side_files = (*stat.side_files, *_sources(dataset))
    palette = dataset.colorinterp[0] == ColorInterp.palette
    crs = dataset.crs if dataset.crs and (dataset.crs.is_geographic or dataset.crs.is_projected) else None
    return Scene(
        scene_id,
        uri,
        dataset.width,
        dataset.height,
        3 if palette else len(bands),
        "uint8" if palette else str(np.result_type(*(dataset.dtypes[i - 1] for i in bands))),
        crs.to_wkt() if crs else None,
        transform,
        None if crs else _pixel_size_um(dataset.tags()),
        None if palette else dataset.nodatavals[bands[0] - 1],
        stat.etag,
        stat.size_bytes,
        stat.mtime_s,
        dataset.block_shapes[0],
        options=tuple(sorted([*options, *(("side_file", side) for side in side_files)])),
    )


def _stored_form(dataset: Any, bands: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ANN401 - rasterio ships no types
    """Return 'scale offset bits' of each band; empty where values are stored as they are, in all bits."""
    forms = [
        (dataset.scales[i - 1], dataset.offsets[i - 1], dataset.tags(i, ns="IMAGE_STRUCTURE").get("NBITS"))
        for i in bands
    ]
    plain = all(form == (1.0, 0.0, None) for form in forms)
    return () if plain else tuple(f"{scale:g} {offset:g} {bits or 'all'}" for scale, offset, bits in forms)


def _may_have_side_files(stat: FileStat | None) -> bool:
    return stat is None or bool(stat.side_files)


def _sources(dataset: Any) -> tuple[str, ...]:  # noqa: ANN401 - rasterio ships no types
    """Return the local files that a virtual raster (VRT) reads, with size and time: it changes when they do."""
    if dataset.driver != "VRT":
        return ()
    stats = ((name, os.stat(name)) for name in dataset.files[1:] if os.path.isfile(name))  # noqa: PTH113, PTH116
    return tuple(f"{name} {stat.st_size} {stat.st_mtime}" for name, stat in stats)


def _check_values(dataset: Any, name: str) -> None:  # noqa: ANN401 - rasterio ships no types
    if dataset.count == 0 or not value_bands(dataset):
        inside = f"; it is a container of {', '.join(dataset.subdatasets[:3])}" if dataset.subdatasets else ""
        raise SceneError(
            f"a scene has at least one band with values, got none in {name}{inside}; convert it to GeoTIFF"
        )
    for dtype in dataset.dtypes:
        if dtype.startswith("complex"):
            raise SceneError(f"values must be real numbers, got {dtype} in {name}; convert it to amplitude first")


def _check_size(dataset: Any, name: str, limits: Limits) -> None:  # noqa: ANN401 - rasterio ships no types
    pixels = dataset.width * dataset.height
    itemsize = max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    if pixels > limits.scene_px:
        raise SceneError(
            f"a scene has at most {limits.scene_px:,} pixels, got {dataset.width:,} x {dataset.height:,} in {name}; "
            "raise --max-scene-px if that is its true size"
        )
    rows, cols = dataset.block_shapes[0]
    interleaved = dataset.count if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    block_bytes = rows * cols * itemsize * interleaved
    if block_bytes > limits.block_bytes:
        raise SceneError(
            f"a block of a scene takes at most {limits.block_bytes:,} bytes, got {block_bytes:,} ({cols:,} x {rows:,} "
            f"pixels) in {name}; rewrite it in tiles (gdal_translate -co TILED=YES)"
        )
    if dataset.driver in _UNBLOCKED and pixels * itemsize * dataset.count > limits.unblocked_bytes:
        raise SceneError(
            f"a {dataset.driver} holds at most {limits.unblocked_bytes:,} bytes of pixels, because it is decoded from "
            f"its beginning, got {dataset.width:,} x {dataset.height:,} in {name}; rewrite it as a tiled GeoTIFF"
        )


def _has_only_gcps(dataset: Any, name: str) -> bool:  # noqa: ANN401 - rasterio ships no types
    points, crs = dataset.gcps
    if not dataset.transform.is_identity or dataset.crs is not None:
        return False
    if points and crs is not None:
        return True
    if points or dataset.rpcs is not None:
        kind = "ground control points without a CRS" if points else "rational polynomials (RPC)"
        _log.warning("%s is placed on the map by %s only: it is read, and its results are, in pixels", name, kind)
    return False


def _checked_warp(dataset: Any, name: str, stack: ExitStack) -> Any:  # noqa: ANN401 - rasterio ships no types
    try:
        view = stack.enter_context(warped(dataset))
    except GDAL_ERRORS as error:
        raise SceneError(
            f"ground control points must place a scene on the map, got {cause_of(error)} for {name}; warp it "
            "(gdalwarp) before the run"
        ) from None
    if view.width * view.height > _MAX_WARP_GROWTH * dataset.width * dataset.height:
        raise SceneError(
            f"ground control points must place a scene in one piece, got {view.width} x {view.height} pixels from "
            f"{dataset.width} x {dataset.height} for {name}; warp it (gdalwarp) to a CRS of its region first"
        )
    return view


_TO_UM = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


def _pixel_size_um(tags: dict[str, str]) -> float | None:
    """Return the pixel size where a microscope states it: Aperio, OME-XML, ImageJ. Bare dpi tags say nothing."""
    text = tags.get("TIFFTAG_IMAGEDESCRIPTION", "")
    if text.startswith("Aperio"):
        found = re.search(r"\|\s*MPP\s*=\s*([\d.]+)", text)
        return _positive(found[1]) if found else None
    if "<OME" in text:
        size = re.search(r"PhysicalSizeX=\"([^\"]+)\"", text)
        unit = re.search(r"PhysicalSizeXUnit=\"([^\"]+)\"", text)
        factor = _TO_UM.get(unit[1].replace("&#181;", "µ") if unit else "µm")
        return _positive(size[1], factor) if size and factor else None
    if text.startswith("ImageJ="):
        unit = re.search(r"^unit=(\S+)", text, re.MULTILINE)
        factor = _TO_UM.get(unit[1].replace("\\u00B5", "µ")) if unit else None
        per_unit = _positive(tags.get("TIFFTAG_XRESOLUTION", ""))
        return factor / per_unit if factor and per_unit else None
    return None


def _positive(text: str, factor: float = 1.0) -> float | None:
    try:
        value = float(text) * factor
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
