"""How fast a run was and what it cost, as run.json has it."""

from __future__ import annotations

from typing import Any

from segworker.engine.account import Account
from segworker.engine.job import Job
from segworker.geo import pixel_size_m


def throughput(job: Job, account: Account) -> dict[str, Any]:
    """Return rates over the whole run (tiles: over prediction), predictor-hours, and with a price the cost.

    Areas are those of whole scenes, empty margins included; None where no scene states a size on the ground, or in
    micrometres. A predictor is a process that holds the model: of one GPU, unless `--gpus-per-worker` says otherwise.
    """
    total_s = max(1e-9, account.seconds.get("total", 0.0))
    predict_s = max(1e-9, account.seconds.get("predict", 0.0))
    pixels = sum(g.width * g.height for g in job.grids.values())
    km2, mm2 = areas(job)
    workers = account.workers
    hours = 0.0 if workers is None else total_s / 3600 * workers.count
    price = job.config.engine.price
    cost = None if price is None else hours * price.amount
    return {
        "tiles_per_s": round(account.tiles["done"] / predict_s, 3),
        "mpx_per_s": round(pixels / 1e6 / total_s, 3),
        "km2": km2,
        "km2_per_h": None if km2 is None else km2 / total_s * 3600,
        "mm2": mm2,
        "mm2_per_h": None if mm2 is None else mm2 / total_s * 3600,
        "predictor_hours": round(hours, 6),
        "gpu_hours": 0.0 if workers is None else round(hours * workers.gpus_each, 6),
        "currency": None if price is None else price.currency,
        "cost": cost,
        "cost_per_1000_km2": None if cost is None or not km2 else cost / km2 * 1000,
        "cost_per_1000_mm2": None if cost is None or not mm2 else cost / mm2 * 1000,
    }


def areas(job: Job) -> tuple[float | None, float | None]:
    """Return (km2 of the scenes with a CRS, mm2 of those with a physical pixel size); None where there are none."""
    km2, mm2 = 0.0, 0.0
    for scene in job.scenes.values():
        side_m = pixel_size_m(scene)
        if side_m is not None:
            km2 += scene.width * scene.height * side_m**2 / 1e6
        if scene.pixel_size_um is not None:
            mm2 += scene.width * scene.height * scene.pixel_size_um**2 / 1e6
    return km2 or None, mm2 or None
