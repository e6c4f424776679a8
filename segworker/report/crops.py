"""Pictures of single objects with what is around them, read in windows of the scene and of the table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segworker.errors import SegworkerError
from segworker.geo import reproject, to_map
from segworker.grid import Axis, Grid
from segworker.io.delta import LiveFile
from segworker.io.scan import Where, read_row_groups
from segworker.io.storage import Storage
from segworker.io.table_crs import TableCrs
from segworker.report.finds import Suspect
from segworker.report.overview import GRID_COLOUR, colour_of, draw_rings, in_scene_px
from segworker.report.pixels import GREY, grid_of_pictures, read_picture
from segworker.types import Scene, Window

SIDE_PX = 360
"Of a picture, the longer side."
MIN_WINDOW_PX = 48
MAX_READ_PX = 2**24
MAX_NEIGHBOURS = 3000
AROUND = 1.7
"Side of the window over that of the object."
OBJECT_COLOUR = "#ff2bd6"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cropper:
    """Draws objects of a run."""

    storage: Storage
    files: Sequence[LiveFile]
    "Of the features table, at the run's version."
    table_crs: TableCrs

    def crop(self, suspect: Suspect, scene: Scene, grid: Grid) -> Image.Image:
        """Return an object's surroundings: its outline in magenta, others in their class's colour, the tile grid.

        Where the scene cannot be read (any more) the outlines are on grey.
        """
        box = np.array([shapely.box(*suspect.bounds)], dtype=object)
        bounds = shapely.bounds(in_scene_px(box, scene, self.table_crs)[0]).tolist()
        window, scale = _window(bounds, scene)
        image = _pixels(scene, window, scale)
        zoom = max(1, SIDE_PX // max(image.size))
        image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
        canvas = ImageDraw.Draw(image, "RGBA")
        _draw_grid(canvas, grid, window, scale, zoom, image.size)
        ids, class_ids, shapes = self._around(suspect, scene, window, scale)
        corner = np.array([window.col_off, window.row_off])
        shapes = shapely.transform(shapes, lambda xy: (xy * scale - corner) * zoom)
        for k in np.argsort(ids == suspect.feature_id, kind="stable").tolist():  # the object itself on top
            own = ids[k] == suspect.feature_id
            colour, width = (OBJECT_COLOUR, 3) if own else (colour_of(int(class_ids[k])), 1)
            draw_rings(canvas, shapes[k], colour=colour, width=width)
        return image

    def _around(
        self, suspect: Suspect, scene: Scene, window: Window, scale: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.object_]]:
        """Return (ids, classes, polygons in scene pixels) of the features that meet a window, so many at most."""
        frame = np.array([_box_of(window, scale)], dtype=object)
        where = Where(bbox=self._bounds_in_table(frame, scene) or suspect.bounds, scene_ids=(scene.scene_id,))
        columns, parts, num_rows = ["feature_id", "class_id", "geometry"], [], 0
        for file in self.files:
            if where.may_hold(file):
                for rows in read_row_groups(self.storage, file, columns=columns, expression=where.expression()):
                    own = rows.filter(pa.compute.equal(rows["feature_id"], suspect.feature_id))
                    parts += [own, rows.slice(0, max(0, MAX_NEIGHBOURS - num_rows))]
                    num_rows += len(rows)
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, object)
        found = pa.concat_tables(parts)
        shapes = shapely.from_wkb(found["geometry"].to_numpy(zero_copy_only=False))
        shapes = in_scene_px(shapes, scene, self.table_crs)
        return found["feature_id"].to_numpy(), found["class_id"].to_numpy().astype(np.int64), shapes

    def _bounds_in_table(self, frame: NDArray[np.object_], scene: Scene) -> tuple[float, float, float, float] | None:
        if scene.crs is not None and self.table_crs.wkt is not None:
            try:
                frame = reproject(to_map(frame, scene.transform), scene.crs, self.table_crs.wkt)
            except SegworkerError:  # the window, unlike the object, reaches out of the CRS's area
                return None
        left, top, right, bottom = shapely.bounds(frame[0]).tolist()
        return left, top, right, bottom


def _window(bounds: Sequence[float], scene: Scene) -> tuple[Window, float]:
    """Return a square around an object, inside the scene, and the scale it is in."""
    left, top, right, bottom = bounds
    side = max(MIN_WINDOW_PX, AROUND * max(right - left, bottom - top))
    scale = min(1.0, SIDE_PX / side)
    grid = grid_of_pictures(scene, scale)
    side_px = round(min(side * scale, SIDE_PX))
    width, height = min(side_px, grid.width), min(side_px, grid.height)
    x = min(max(0, round((left + right) / 2 * scale - width / 2)), grid.width - width)
    y = min(max(0, round((top + bottom) / 2 * scale - height / 2)), grid.height - height)
    return Window(x, y, width, height), scale


def _pixels(scene: Scene, window: Window, scale: float) -> Image.Image:
    try:
        image = read_picture(scene, window, scale=scale, max_read_px=MAX_READ_PX)
    except (SegworkerError, OSError, ValueError) as error:
        _log.warning("a picture of an object has no pixels of %s: %s", scene.scene_id, error)
        image = None
    return image or Image.new("RGB", (window.width, window.height), GREY)


def _draw_grid(
    canvas: ImageDraw.ImageDraw, grid: Grid, window: Window, scale: float, zoom: int, size_wh: tuple[int, int]
) -> None:
    """Draw the borders between cores."""
    ratio = scale / grid.scale  # pixels of the picture's grid per pixel of the run's
    colour = (*GRID_COLOUR[:3], 150)
    for x in _borders(grid.x, window.col_off / ratio, window.col_end / ratio):
        place = (x * ratio - window.col_off) * zoom
        canvas.line([(place, 0), (place, size_wh[1])], fill=colour, width=1)
    for y in _borders(grid.y, window.row_off / ratio, window.row_end / ratio):
        place = (y * ratio - window.row_off) * zoom
        canvas.line([(0, place), (size_wh[0], place)], fill=colour, width=1)


def _borders(axis: Axis, start: float, stop: float) -> list[int]:
    first, last = axis.owner(int(start)), axis.owner(int(stop))
    return [axis.core(k)[0] for k in range(max(1, first), last + 1)] if last - first <= 64 else []


def _box_of(window: Window, scale: float) -> shapely.Geometry:
    sides = (window.col_off, window.row_off, window.col_end, window.row_end)
    return shapely.box(*(side / scale for side in sides))
