"""`report.html` of a run: what ran, what it found, where to look first, how long it took.

Its size is bounded whatever the run was: so many pictures, rows and lines, and a limit for the bytes of all pictures.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from PIL import Image

from segworker.errors import SegworkerError
from segworker.grid import Grid
from segworker.io.storage import Storage
from segworker.io.table import live_files
from segworker.io.table_crs import TableCrs
from segworker.report.crops import Cropper
from segworker.report.finds import Suspect, look
from segworker.report.page import Picture, picture, render
from segworker.report.run_page import Findings, run_page, short
from segworker.types import Scene

MAX_PICTURE_BYTES = 7 * 2**20
"Of all pictures together, as text in the page."
MAX_OVERVIEWS, OVERVIEW_PX, SHOWN_PX, CROP_SHOWN_PX = 12, 1100, 640, 240
NUM_SUSPECTS = 12
_log = logging.getLogger(__name__)


def report_path(run_id: str) -> str:
    """Return where a run's report lies in the store."""
    return f"runs/{run_id}/report.html"


def gather(
    storage: Storage,
    run_id: str,
    *,
    scenes: Mapping[str, Scene],
    grids: Mapping[str, Grid],
    table_crs: TableCrs,
    version: int,
    overviews: Sequence[str],
    max_picture_bytes: int = MAX_PICTURE_BYTES,
) -> Findings:
    """Look at a committed run's features and make the pictures of its report.

    Args:
        storage: the store.
        run_id: the run.
        scenes: of the run, by id; those that cannot be read any more are drawn without pixels.
        grids: of the scenes.
        table_crs: of the features.
        version: of the features table that the run made.
        overviews: paths of overview pictures in the store.
        max_picture_bytes: what all pictures may take in the page; half of it at most goes to overviews.
    """
    files = live_files(storage, version=version)
    mine = [file for file in files if file.path.startswith(f"part-{run_id}-")]
    finds = look(storage, mine, run_id, count=NUM_SUSPECTS)
    shown = _bounded(_overviews(storage, overviews), max_picture_bytes // 2)
    cropper = Cropper(storage, mine, table_crs)
    left = max_picture_bytes - sum(len(p.uri) for p in shown)
    seams = _bounded(_crops(cropper, finds.seams, scenes, grids), left)
    left -= sum(len(p.uri) for p in seams)
    suspects = _bounded(_crops(cropper, finds.suspects, scenes, grids), left)
    grid = next(iter(grids.values()))
    return Findings(finds, grid.tile_px, grid.overlap_px, shown, seams, suspects)


def write_report(storage: Storage, record: Mapping[str, Any], findings: Findings) -> str:
    """Write the report of a run and return its path."""
    path = report_path(record["run_id"])
    storage.write(path, render(run_page(record, findings)).encode(), content_type="text/html; charset=utf-8")
    return path


def _overviews(storage: Storage, paths: Sequence[str]) -> Iterator[Picture]:
    for path in paths[:MAX_OVERVIEWS]:
        with Image.open(io.BytesIO(storage.read(path))) as image:
            small = image.convert("RGB")
        small.thumbnail((OVERVIEW_PX, OVERVIEW_PX))
        file = path.rpartition("/")[2]
        yield picture(
            small,
            short(file.removesuffix(".png")),
            shown_px=min(SHOWN_PX, max(small.size)),
            link=f"overview/{quote(file)}",
        )


def _crops(
    cropper: Cropper, suspects: Sequence[Suspect], scenes: Mapping[str, Scene], grids: Mapping[str, Grid]
) -> Iterator[Picture]:
    for suspect in suspects:
        try:
            image = cropper.crop(suspect, scenes[suspect.scene_id], grids[suspect.scene_id])
        except (SegworkerError, OSError, ValueError) as error:
            _log.warning("no picture of feature %d: %s", suspect.feature_id, error)
            continue
        yield picture(image, _told(suspect), shown_px=CROP_SHOWN_PX)


def _bounded(pictures: Iterator[Picture], max_bytes: int) -> list[Picture]:
    """Return the pictures that fit; the first one that does not ends it."""
    kept: list[Picture] = []
    for shown in pictures:
        max_bytes -= len(shown.uri)
        if max_bytes < 0:
            break
        kept.append(shown)
    return kept


def _told(suspect: Suspect) -> str:
    tiles = f", {suspect.num_tiles} tiles" if suspect.num_tiles > 1 else ""
    return (
        f"{suspect.reason}: {short(suspect.class_name)}, score {suspect.score:.2f}, {suspect.area_px:,.0f} px{tiles}; "
        f"feature {suspect.feature_id} of {short(suspect.scene_id)}"
    )
