"""Overview pictures: a scene, downsampled, with the outlines of its objects and its grid of cores.

Pixels are read through overviews at the picture's size, outlines come from the committed table batch by batch: nothing
of a scene's size is held. Nor is all of a huge scene read for a picture: without overviews inside it has outlines
alone, and only so many objects are looked at.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segworker.errors import SceneError, SegworkerError
from segworker.geo import reproject, to_scene_px
from segworker.grid import Grid
from segworker.io.shards import TileId
from segworker.io.storage import Storage
from segworker.io.table import iter_features
from segworker.io.table_crs import TableCrs
from segworker.report.pixels import grid_of_pictures, read_picture
from segworker.types import Scene, Window

MAX_SIDE_PX = 1600
MIN_SIDE_PX = 512
MAX_SHEETS = 2000
"Mosaics of more sheets get no picture: each sheet would be opened for a few pixels."
MAX_OUTLINES = 200_000
"Of objects that are larger than a pixel of the picture; further ones are left out."
MAX_LOOKED_AT = 2_000_000
"Objects that are read for one picture."
MAX_READ_PX = 2**29
"Pixels that are read for one picture."
COLOURS = ("#ffd400", "#00e5ff", "#ff4fd8", "#7cff4f", "#ff7a1a", "#b388ff", "#ffffff", "#ff3b30")
GRID_COLOUR = (255, 255, 255, 70)
FAILED_COLOUR = (255, 30, 30, 110)
SIMPLIFY_PX = 0.3
"Of a picture."
_log = logging.getLogger(__name__)


def draw_overviews(
    storage: Storage,
    run_id: str,
    scenes: Sequence[Scene],
    grids: Mapping[str, Grid],
    table_crs: TableCrs,
    *,
    failed: Collection[TileId] = (),
) -> list[str]:
    """Write a PNG for each scene; return their paths. A scene that cannot be drawn is logged, not raised.

    Args:
        storage: the store.
        run_id: the run.
        scenes: to be drawn.
        grids: of the scenes, by id.
        table_crs: of the features.
        failed: tiles that are marked.
    """
    paths = []
    for scene in scenes:
        try:
            lost = [tile_id[1:] for tile_id in failed if tile_id[0] == scene.scene_id]
            picture = draw_overview(storage, scene, grids[scene.scene_id], table_crs, failed=lost)
        except (SegworkerError, OSError, ValueError) as error:
            _log.warning("no overview of %s: %s", scene.scene_id, error)
            continue
        content = io.BytesIO()
        picture.save(content, format="PNG", optimize=True)
        path = overview_path(run_id, scene.scene_id)
        storage.write(path, content.getvalue())
        paths.append(path)
    return paths


def overview_path(run_id: str, scene_id: str) -> str:
    """Return where the picture of a scene lies in the store."""
    return f"runs/{run_id}/overview/{scene_id}.png"


def draw_overview(
    storage: Storage, scene: Scene, grid: Grid, table_crs: TableCrs, *, failed: Collection[tuple[int, int]] = ()
) -> Image.Image:
    """Return the picture of one scene with the live features of the table; the cores of failed tiles are red."""
    if len(scene.sheets) > MAX_SHEETS:
        raise SceneError(f"a picture is drawn of at most {MAX_SHEETS} sheets, got {len(scene.sheets)}; open the store")
    scale = _picture_scale(scene)
    picture = _picture(scene, scale)
    canvas = ImageDraw.Draw(picture, "RGBA")
    for position in [grid.x.core(k)[0] for k in range(1, grid.x.count)] if grid.x.count <= 64 else []:
        x = position / grid.scale * scale
        canvas.line([(x, 0), (x, picture.height)], fill=GRID_COLOUR, width=1)
    for position in [grid.y.core(k)[0] for k in range(1, grid.y.count)] if grid.y.count <= 64 else []:
        y = position / grid.scale * scale
        canvas.line([(0, y), (picture.width, y)], fill=GRID_COLOUR, width=1)
    for core in (grid.tile(*tile).core for tile in failed):
        corners = (core.col_off, core.row_off, core.col_end, core.row_end)
        canvas.rectangle([side / grid.scale * scale for side in corners], fill=FAILED_COLOUR)
    width = 2 if scale >= 1 else 1
    drawn = looked_at = 0
    for batch in iter_features(storage, columns=["class_id", "geometry"], scene_ids=[scene.scene_id]):
        shapes = shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False))
        shapes = shapely.transform(in_scene_px(shapes, scene, table_crs), lambda xy: xy * scale)
        drawn += _draw(canvas, shapes, batch["class_id"].to_numpy(), width, limit=MAX_OUTLINES - drawn)
        looked_at += len(batch)
        if drawn >= MAX_OUTLINES or looked_at >= MAX_LOOKED_AT:
            _log.warning("the overview of %s shows the first %d objects only", scene.scene_id, looked_at)
            break
    return picture


def _picture_scale(scene: Scene) -> float:
    longest = max(scene.width, scene.height)
    if longest > MAX_SIDE_PX:
        return MAX_SIDE_PX / longest
    return float(max(1, min(4, MIN_SIDE_PX * 2 // longest)))


def _picture(scene: Scene, scale: float) -> Image.Image:
    """Return the scene's pixels at the picture's scale."""
    grid = grid_of_pictures(scene, scale)
    whole = Window(0, 0, grid.width, grid.height)
    image = read_picture(scene, whole, scale=grid.scale, max_read_px=MAX_READ_PX)
    if image is None:
        return Image.new("RGB", (grid.width, grid.height))
    if scale > 1:
        image = image.resize((round(grid.width * scale), round(grid.height * scale)), Image.Resampling.NEAREST)
    return image


def in_scene_px(shapes: NDArray[np.object_], scene: Scene, table_crs: TableCrs) -> NDArray[np.object_]:
    """Return geometries of the table in scene pixels."""
    if scene.crs is not None and table_crs.wkt is not None:
        return to_scene_px(reproject(shapes, table_crs.wkt, scene.crs), scene.transform)
    return shapes


def _draw(
    canvas: ImageDraw.ImageDraw, shapes: NDArray[np.object_], class_ids: NDArray[np.integer], width: int, *, limit: int
) -> int:
    """Draw polygons' rings, and those that are smaller than a pixel as points; return the number of the others."""
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    small = (bounds[:, 2:] - bounds[:, :2] < 0.5).all(axis=1)
    for class_id in np.unique(class_ids[small]).tolist():
        points = bounds[small & (class_ids == class_id), :2]
        canvas.point(points.ravel().tolist(), fill=colour_of(class_id))
    large = np.flatnonzero(~small)[:limit]
    for k in large.tolist():
        draw_rings(canvas, shapes[k], colour=colour_of(class_ids[k]), width=width)
    return len(large)


def draw_rings(canvas: ImageDraw.ImageDraw, polygon: shapely.Geometry, *, colour: str, width: int) -> None:
    """Draw the outlines of a polygon in picture pixels, without bends that cannot be seen: networks have millions."""
    for ring in shapely.get_rings(polygon):
        line = shapely.linestrings(shapely.get_coordinates(ring))
        seen = shapely.simplify(line, SIMPLIFY_PX, preserve_topology=False)
        canvas.line(shapely.get_coordinates(seen).ravel().tolist(), fill=colour, width=width)


def colour_of(class_id: int) -> str:
    """Return the colour of a class on pictures."""
    return COLOURS[(class_id - 1) % len(COLOURS)]
