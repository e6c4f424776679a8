"""What a plan needs to know of mosaics: one range of values for all sheets, and which sheets each block sees."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from segworker.config_values import ValueRange
from segworker.io.failures import redact
from segworker.io.header import REGRIDDED
from segworker.io.mosaic import MOSAIC
from segworker.io.scaling import value_range
from segworker.io.storage import Storage
from segworker.sheets import SheetIndex
from segworker.sources.find import SceneFailure
from segworker.sources.identity import scene_identity
from segworker.types import InputSpec, Scene

Ranges: TypeAlias = tuple[tuple[float, float], ...]
_COLUMNS = ("uri", "state", "col_off", "row_off", "width", "height", "size_bytes", "etag", "mtime_s", "error")


@dataclass(frozen=True, slots=True, eq=False)
class MosaicPlan:
    """What the blocks of one mosaic have in common."""

    index: SheetIndex
    ranges: Ranges | None
    "(low, high) that become 0 and 1 for each band, over all sheets; None: raw values."


def plan_mosaics(
    scene: Scene, mode: ValueRange, *, bands: tuple[int, ...] | None, spec: InputSpec
) -> dict[str, MosaicPlan]:
    """Return the plan of a mosaic by its scene_id; nothing for other scenes.

    Raises SceneError where no range of values can be known.
    """
    if scene.source != MOSAIC:
        return {}
    ranges = None if spec.scaling == "none" else value_range(scene, mode, bands=bands, spec=spec)
    common = [scene.scene_id, scene.dtype, scene.num_bands, scene.overviews, ranges]
    return {scene.scene_id: MosaicPlan(SheetIndex.of_scene(scene, _identity, common=json.dumps(common)), ranges)}


def write_sheet_lists(
    storage: Storage, run_id: str, scenes: Iterable[Scene], failures: Iterable[SceneFailure]
) -> dict[str, dict[str, Any]]:
    """Write runs/<run_id>/sheets/<scene_id>.csv for each mosaic; return what run.json says of them. No secrets."""
    told = {}
    failed = [failure for failure in failures if failure.is_sheet]
    for scene in scenes:
        if scene.source != MOSAIC:
            continue
        missing = [failure for failure in failed if failure.scene_id == scene.scene_id]
        path = f"runs/{run_id}/sheets/{scene.scene_id}.csv"
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(_rows(scene, missing))
        storage.write(path, text.getvalue().encode())
        told[scene.scene_id] = {**count_sheets(scene), "failed": len(missing), "list": path}
    return told


def count_sheets(scene: Scene) -> Mapping[str, int]:
    """Return how many sheets a mosaic has, and how many of them are warped to its grid."""
    return {"sheets": len(scene.sheets), "resampled": sum(REGRIDDED in s.scene.options for s in scene.sheets)}


def _rows(scene: Scene, missing: Iterable[SceneFailure]) -> Iterable[dict[str, Any]]:
    for sheet in scene.sheets:
        window, file = sheet.window, sheet.scene
        yield {
            "uri": redact(file.uri),
            "state": "resampled" if REGRIDDED in file.options else "read",
            "col_off": window.col_off,
            "row_off": window.row_off,
            "width": window.width,
            "height": window.height,
            "size_bytes": file.size_bytes,
            "etag": file.etag,
            "mtime_s": file.mtime_s,
        }
    for failure in missing:
        yield {"uri": redact(failure.uri), "state": "failed", "error": str(failure.error)}


def _identity(sheet: Scene) -> str:
    """Return the identity of a sheet; where it is warped, of its grid too (to nine digits: sums of places differ)."""
    if REGRIDDED not in sheet.options:
        return scene_identity(sheet)
    return f"{scene_identity(sheet)} {[f'{v:.9g}' for v in sheet.transform]} {sheet.crs}"
