"""A committed run to report on: a painted scene, squares of two classes, one cut, one huge, names that are markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from segworker.grid import Grid
from segworker.io.commit import features_version
from segworker.io.storage import Storage, open_storage
from segworker.io.table_crs import TableCrs
from segworker.masks import runs_from_labels
from segworker.report.overview import draw_overviews
from segworker.report.run_page import Findings
from segworker.report.run_report import gather
from segworker.synthetic.paint import write_raster
from segworker.types import Scene, Window
from tests.committed import commit_objects

RUN = "20261125T100000Z-abc123"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}'
CUT, HUGE, NUM = 5, 29, 30
TRANSFORM = (0.5, 0.0, 400_000.0, 0.0, -0.5, 30_000.0)


def make_store(folder: Path, *, on_map: bool = True) -> tuple[Storage, Scene, Grid]:
    """Commit 30 objects: number 5 is cut at a seam, number 29 is 60 px wide where the others are 12."""
    labels = np.zeros((240, 320), np.int32)
    for k in range(NUM):
        row, col = divmod(k, 10)
        labels[10 + 30 * row : 22 + 30 * row, 10 + 30 * col : 22 + 30 * col] = k + 1
    labels[labels == NUM] = 0
    labels[150:210, 150:210] = NUM
    pixels = np.stack([np.where(labels > 0, 200, 60 + 10 * band) for band in range(3)]).astype(np.uint8)
    placed = {"crs": "EPSG:32636", "transform": rasterio.Affine(*TRANSFORM)} if on_map else {}
    write_raster(folder / "s.tif", pixels, **placed)
    crs = rasterio.crs.CRS.from_epsg(32636).to_wkt() if on_map else None
    transform = TRANSFORM if on_map else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    scene = Scene("s", str(folder / "s.tif"), 320, 240, 3, "uint8", crs, transform)
    runs = runs_from_labels(labels, NUM, window=Window(0, 0, 320, 240))
    names = [HOSTILE if k % 2 else "house" for k in range(NUM)]
    seams = ["cut" if k == CUT else "none" for k in range(NUM)]
    scores = np.linspace(0.95, 0.4, NUM)
    commit_objects(folder / "store", scene, runs, names, scores, run_id=RUN, seams=seams)
    return open_storage(folder / "store"), scene, Grid.of_scene(scene, tile_px=128, overlap_px=32)


def found(storage: Storage, scene: Scene, grid: Grid, **options: Any) -> Findings:
    """Return what the report of the run shows."""
    table_crs = TableCrs.of(scene.crs)
    pictures = draw_overviews(storage, RUN, [scene], {"s": grid}, table_crs, failed=[("s", 0, 1)])
    return gather(
        storage,
        RUN,
        scenes={"s": scene},
        grids={"s": grid},
        table_crs=table_crs,
        version=features_version(storage),
        overviews=pictures,
        **options,
    )


def record_of(**changes: Any) -> dict[str, Any]:
    """Return a run.json as a run with a failed tile writes it."""
    half = NUM // 2
    error = {"scene_id": HOSTILE, "row": 0, "col": 1, "stage": "predict", "error": f"ValueError: {HOSTILE}", "tries": 3}
    return {
        "run_id": RUN,
        "name": HOSTILE,
        "notes": HOSTILE,
        "stitched_from": None,
        "retry_of": None,
        "exit_code": 3,
        "started_at": "2026-11-25T10:00:00+00:00",
        "store": "store",
        "table_version": 1,
        "table_crs": "EPSG:32636",
        "keys": {"tile_key": "t"},
        "counts": {
            "scenes": 1,
            "failed_scenes": 0,
            "failed_sheets": 0,
            "tiles": 12,
            "tiles_failed": 1,
            "features": NUM,
            "features_by_class": {"house": half, HOSTILE: half},
        },
        "seconds": {"predict": 61.0, "stitch": 0.5, "total": 3700.0},
        "stage_cpu_seconds": {"read": 1.0},
        "throughput": {"tiles_per_s": 3.0, "mpx_per_s": 0.001, "km2": 0.02, "cost": 1.5, "currency": "EUR"},
        "seams": {
            "seen_by_both_sides": 9,
            "agreement": 0.9,
            "mean_iou": 0.8,
            "features": {"cut": 1, "none": NUM - 1},
            "by_class": {n: {"seen_by_both_sides": 9, "agreement": 0.9, "mean_iou": None} for n in ("house", HOSTILE)},
            "straight_edges": {"on_borders": 0.1, "elsewhere": 0.01, "excess": 0.09},
            "shifted_grid": None,
        },
        "failed_scenes": [],
        "failed_sheets": [],
        "failed_tiles": [error],
        "outputs": {"features": "features/", "coco": [], "overviews": [], "quarantine": "runs/x/quarantine.parquet"},
        "workers": {"count": 1, "device": "cpu", "precision": "fp32"},
        "configuration": {"model": {"model": HOSTILE}, "output": {"output": "store"}},
        "versions": {"python": "3.11"},
    } | changes
