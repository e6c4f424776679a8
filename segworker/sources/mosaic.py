"""From sheets to one scene: where each lies on a common pixel grid, and what cannot be put together. Reads nothing.

The grid is the one that most sheets share. Sheets on it (within a twentieth of a pixel) are read as they are; others in
its CRS (another origin, resolution, or direction of rows) are warped to it. Sheets lie over each other in the order of
their names, so that the same files make the same scene whatever order they are listed in.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.errors import ConfigError, SceneError
from segworker.geo import apply_affine, invert_affine, parse_crs, same_crs
from segworker.geodesy import Floats, transformer
from segworker.io.failures import redact
from segworker.io.header import MAX_SCENE_PX, REGRIDDED
from segworker.io.mosaic import MOSAIC, usable_factors
from segworker.sources.identity import check_scene_id, safe_id, scene_identity
from segworker.types import Affine6, Scene, Sheet, Window

SAME_PLACE_PX = 0.05
MAX_ZOOM = 4.0
"Sheets whose pixels differ more than this in size do not belong into one mosaic."
_SNAP_PX = 64
_MAX_LATTICES = 16
_OUTLINE_POINTS = 33
_IDENTITY: Affine6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_log = logging.getLogger(__name__)
_A = TypeVar("_A")


@dataclass(frozen=True, slots=True)
class MosaicOptions:
    """What a user says of mosaics."""

    all_inputs: bool = False
    "Whether every input is a sheet of one mosaic."
    scene_id: str | None = None
    "Of that mosaic; None: the name of the folder that holds the sheets."
    crs: str | None = None
    "CRS of mosaics whose sheets differ in it; None: they must not."


def mosaic_id(folders: Sequence[str], options: MosaicOptions) -> str:
    """Return the scene_id of the mosaic that all inputs make.

    Args:
        folders: where the inputs were found: folders or prefixes, without a slash at the end.
        options: may state it.
    """
    if options.scene_id:
        return check_scene_id(options.scene_id, "--mosaic-id")
    name = common_folder(folders).rstrip("/").rpartition("/")[2]
    if not name:
        raise ConfigError("a mosaic is named after the folder that holds its sheets, got none; give it a --mosaic-id")
    return safe_id(name)


def common_folder(folders: Sequence[str]) -> str:
    """Return the deepest folder or prefix above all of them; empty where there is none."""
    parts = [folder.split("/") for folder in folders]
    depth = next((k for k, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)))
    return "/".join(parts[0][:depth])


def join_sheets(scene_id: str, scenes: Sequence[Scene], *, crs: str | None = None, max_px: int = MAX_SCENE_PX) -> Scene:
    """Return the mosaic of some files as one scene, whose upper left corner is that of the sheets' extent.

    Args:
        scene_id: of the mosaic.
        scenes: at least one, as their headers tell.
        crs: the one to use where the sheets' differ; some sheet must have it.
        max_px: largest extent.

    Raises SceneError where the sheets' values, bands, places or CRSs do not go together, and ConfigError for a CRS that
    is none.
    """
    scenes = sorted(scenes, key=lambda s: (redact(s.uri), s.uri))
    _check_alike(scenes)
    _check_placed(scenes)
    grid = _choose_grid(scenes, None if crs is None else parse_crs(crs).to_wkt())
    places = [_place_on(grid, scene) for scene in scenes]
    bounds = np.array([bounds for bounds, _ in places])
    left, top = np.floor(bounds[:, :2].min(axis=0)).astype(int).tolist()
    width, height = (np.ceil(bounds[:, 2:].max(axis=0)).astype(int) - (left, top)).tolist()
    if width * height > max_px:
        raise SceneError(
            f"a mosaic spans at most {max_px:,} pixels, got {width:,} x {height:,} in {scene_id}; check the sheets' "
            "places, make several mosaics of sheets that lie apart, or raise --max-scene-px"
        )
    corner = (
        s.transform for s, (box, on_it) in zip(scenes, places, strict=True) if on_it and (box[:2] == (left, top)).all()
    )
    transform = next(corner, _moved(grid.transform, left, top))
    sheets = tuple(
        _sheet(scene, box - (left, top, left, top), transform, (width, height), grid=grid, on_it=on_it)
        for scene, (box, on_it) in zip(scenes, places, strict=True)
    )
    _tell_warped(scene_id, sheets)
    first = next(s for s in scenes if s.transform == grid.transform)
    factors = usable_factors(sheets, lambda s: REGRIDDED in s.scene.options, width=width, height=height)
    return Scene(
        scene_id,
        _uri(scene_id, scenes),
        width,
        height,
        first.num_bands,
        first.dtype,
        grid.crs,
        transform,
        None if grid.crs else first.pixel_size_um,
        etag=_digest([transform, *((scene_identity(s.scene), repr(s.window)) for s in sheets)]),
        size_bytes=sum(s.size_bytes or 0 for s in scenes),
        mtime_s=max((s.mtime_s for s in scenes if s.mtime_s is not None), default=None),
        block_shape_yx=first.block_shape_yx,
        source=MOSAIC,
        overviews=tuple(factors),
        values=first.values,
        sheets=sheets,
    )


@dataclass(frozen=True, slots=True)
class _PixelGrid:
    """An endless lattice of pixels."""

    crs: str | None
    transform: Affine6


def _check_alike(scenes: Sequence[Scene]) -> None:
    """Refuse sheets that do not hold the same kind of values."""
    rules: list[tuple[str, Callable[[Scene], object], str]] = [
        ("one dtype", lambda s: s.dtype, "convert them to one (gdal_translate -ot)"),
        ("one number of bands", lambda s: f"{s.num_bands} bands", "select the same bands (gdal_translate -b)"),
        ("one scale, offset and bit depth", lambda s: ", ".join(s.values) or "none", "rescale them to one"),
    ]
    for rule, told, remedy in rules:
        groups = _grouped(scenes, told)
        if len(groups) > 1:
            raise SceneError(f"the sheets of a mosaic have {rule}, got {_listed(groups)}; {remedy}, or leave them out")


def _check_placed(scenes: Sequence[Scene]) -> None:
    lost = [scene for scene in scenes if scene.crs is None and scene.transform == _IDENTITY]
    if lost:
        raise SceneError(
            f"the sheets of a mosaic say where they lie, got {len(lost)} without a georeference (first: "
            f"{redact(lost[0].uri)}); write their transforms (gdal_edit -a_ullr) or world files"
        )


def _choose_grid(scenes: Sequence[Scene], wanted: str | None) -> _PixelGrid:
    """Return the grid that most sheets in the mosaic's CRS share; of several, that of the first sheet by name."""
    groups = _by_crs(scenes)
    if len(groups) == 1 and (wanted is None or _is(groups[0][0].crs, wanted)):
        members = groups[0]
    else:
        named = {_crs_name(group[0].crs): group for group in groups}
        members = next((group for group in groups if wanted is not None and _is(group[0].crs, wanted)), [])
        if not members or any(group[0].crs is None for group in groups):
            remedy = "warp them to one (gdalwarp -t_srs), or name the one to use with --mosaic-crs"
            given = f" and --mosaic-crs={_crs_name(wanted)}" if wanted else ""
            raise SceneError(f"the sheets of a mosaic have one CRS, got {_listed(named)}{given}; {remedy}")
    return _PixelGrid(members[0].crs, _common_lattice(members))


def _by_crs(scenes: Sequence[Scene]) -> list[list[Scene]]:
    groups: list[list[Scene]] = []
    for same_text in _grouped(scenes, lambda s: s.crs).values():
        known = next(
            (g for g in groups if g[0].crs and same_text[0].crs and same_crs(g[0].crs, same_text[0].crs)), None
        )
        if known is None:
            groups.append(list(same_text))
        else:
            known += same_text
    return groups


def _is(crs: str | None, wanted: str) -> bool:
    return crs is not None and same_crs(crs, wanted)


def _common_lattice(scenes: Sequence[Scene]) -> Affine6:
    corners = np.array([_corners_on(_IDENTITY, scene) for scene in scenes])
    sizes = np.array([(scene.width, scene.height) for scene in scenes])
    free = np.ones(len(scenes), np.bool_)
    best, most = scenes[0].transform, 0
    for _ in range(_MAX_LATTICES):
        if int(free.sum()) <= most:
            break
        transform = scenes[int(np.flatnonzero(free)[0])].transform
        on_it = _lies_on(transform, corners, sizes)
        free[int(np.flatnonzero(free)[0])] = False
        free &= ~on_it
        if int(on_it.sum()) > most:
            best, most = transform, int(on_it.sum())
    return best


def _lies_on(transform: Affine6, corners: Floats, sizes: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell which sheets' pixels are those of a lattice, from their corners (N, 3, 2): the origin, and along x and y."""
    moved = apply_affine(corners.reshape(-1, 2), invert_affine(transform)).reshape(-1, 3, 2)
    origin = np.rint(moved[:, :1])
    wanted = np.zeros_like(moved)
    wanted[:, 1, 0], wanted[:, 2, 1] = sizes[:, 0], sizes[:, 1]
    return np.asarray((np.abs(moved - origin - wanted) <= SAME_PLACE_PX).all(axis=(1, 2)))


def _corners_on(inverse: Affine6, scene: Scene) -> Floats:
    points = np.array([(0, 0), (scene.width, 0), (0, scene.height)], np.float64)
    return apply_affine(apply_affine(points, scene.transform), inverse)


def _place_on(grid: _PixelGrid, scene: Scene) -> tuple[Floats, bool]:
    """Return (left, top, right, bottom) of a sheet in the grid's pixels, and whether its pixels are the grid's."""
    inverse = invert_affine(grid.transform)
    if scene.crs is None or grid.crs is None or same_crs(scene.crs, grid.crs):
        corners = _corners_on(_IDENTITY, scene)[None]
        if _lies_on(grid.transform, corners, np.array([(scene.width, scene.height)]))[0]:
            left, top = np.rint(apply_affine(corners[0, :1], inverse)[0])
            return np.array([left, top, left + scene.width, top + scene.height]), True
    frame = shapely.box(0, 0, scene.width, scene.height)
    step = max(scene.width, scene.height) / (_OUTLINE_POINTS - 1)
    points = apply_affine(shapely.get_coordinates(shapely.segmentize(frame, step)), scene.transform)
    if scene.crs is not None and grid.crs is not None and not same_crs(scene.crs, grid.crs):
        points = np.column_stack(transformer(scene.crs, grid.crs).transform(points[:, 0], points[:, 1]))
    points = apply_affine(points, inverse)
    if not np.isfinite(points).all():
        raise SceneError(
            f"every sheet must lie where the mosaic's CRS reaches, got {redact(scene.uri)} outside; leave it out"
        )
    _check_zoom(scene, points)
    return np.concatenate([points.min(axis=0), points.max(axis=0)]), False


def _check_zoom(scene: Scene, outline: Floats) -> None:
    area = float(shapely.Polygon(outline).area)
    zoom = (area / (scene.width * scene.height)) ** 0.5
    if not 1 / MAX_ZOOM <= zoom <= MAX_ZOOM:
        raise SceneError(
            f"the pixels of a mosaic's sheets differ by a factor of {MAX_ZOOM:g} at most, got {zoom:.3g} pixels of the "
            f"mosaic for one of {redact(scene.uri)}; leave it out, or resample it (gdalwarp -tr)"
        )


def _moved(transform: Affine6, left: int, top: int) -> Affine6:
    a, b, c, d, e, f = transform
    return a, b, c + a * left + b * top, d, e, f + d * left + e * top


def _sheet(
    scene: Scene, box: Floats, transform: Affine6, size_wh: tuple[int, int], *, grid: _PixelGrid, on_it: bool
) -> Sheet:
    """Return a sheet in its place on the mosaic; one that is off the grid becomes its warp, with room around it."""
    if on_it:
        left, top = (int(v) for v in box[:2])
        return Sheet(replace(scene, crs=grid.crs), Window(left, top, scene.width, scene.height))
    left, top = (int(v // _SNAP_PX * _SNAP_PX) for v in box[:2])
    right, bottom = (min(side, int(-(-v // _SNAP_PX) * _SNAP_PX)) for v, side in zip(box[2:], size_wh, strict=True))
    view = replace(
        scene,
        width=right - left,
        height=bottom - top,
        crs=grid.crs,
        transform=_moved(transform, left, top),
        options=tuple(sorted([*scene.options, REGRIDDED])),
        overviews=(),
    )
    return Sheet(view, Window(left, top, right - left, bottom - top))


def _tell_warped(scene_id: str, sheets: Sequence[Sheet]) -> None:
    warped = [sheet for sheet in sheets if REGRIDDED in sheet.scene.options]
    if warped:
        _log.warning(
            "%d of the %d sheets of %s are not on its pixel grid and are resampled to it (first: %s)",
            len(warped),
            len(sheets),
            scene_id,
            redact(warped[0].scene.uri),
        )


def _uri(scene_id: str, scenes: Sequence[Scene]) -> str:
    """Return the folder that holds all sheets, or the mosaic's name where there is none."""
    folder = common_folder([redact(scene.uri).rpartition("/")[0] for scene in scenes])
    return f"{folder}/" if folder.rpartition(":/")[2].strip("/") else f"mosaic:{scene_id}"


def _grouped(scenes: Sequence[Scene], key: Callable[[Scene], _A]) -> dict[_A, list[Scene]]:
    groups: dict[_A, list[Scene]] = {}
    for scene in scenes:
        groups.setdefault(key(scene), []).append(scene)
    return groups


def _listed(groups: Mapping[Any, list[Scene]]) -> str:
    counts = Counter({key: len(group) for key, group in groups.items()})
    told = (f"{key} in {n} (as {redact(groups[key][0].uri)})" for key, n in counts.most_common(3))
    return " and ".join(told) + (" ..." if len(counts) > 3 else "")


def _crs_name(crs: str | None) -> str:
    if crs is None:
        return "no CRS"
    authority = parse_crs(crs).to_authority(min_confidence=90)
    return ":".join(authority) if authority else parse_crs(crs).name


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
