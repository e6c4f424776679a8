"""A plan read back is the job that it was written of, without secrets."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import rasterio
import shapely

from segworker.config_load import from_flat
from segworker.engine.job import Job, ModelFacts, make_job
from segworker.engine.planned import configuration_of, job_of, plan_path, read_plan, write_plan
from segworker.errors import StoreError
from segworker.io.storage import open_storage
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from segworker.types import Category, InputSpec

FACTS = ModelFacts(
    "a.b:c",
    (("depth", 3), ("names", ["x", "y"])),
    None,
    InputSpec(num_bands=3, scaling="none", stride=1, tile_px=64, overlap_px=16, cut_trust_px=4, exclusive=False),
    (Category(1, "class 1"), Category(7, "water", isthing=False)),
    "digest",
)
SECRET = "https://host/a.tif?X-Amz-Signature=abc"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for k, size in enumerate((1500, 90)):
        place = rasterio.Affine(0.5, 0, 400_000 + 1000 * k, 0, -0.5, 30_000)
        paint_scene(make_scene("nuclei", (size, 80), k), tmp_path / f"{k}.tif", crs="EPSG:32636", transform=place)
    aoi = {"type": "Polygon", "coordinates": [[[32, 0.2], [32.3, 0.2], [32.3, 0.3], [32, 0.2]]]}
    (tmp_path / "aoi.geojson").write_text(json.dumps(aoi))
    config = from_flat(
        scenes=[str(tmp_path)], output=str(tmp_path / "store"), aoi=str(tmp_path / "aoi.geojson"), min_area="3px"
    )
    made = make_job(config, FACTS, "run-1")
    scenes = {i: replace(s, uri=SECRET) if i == "0" else s for i, s in made.scenes.items()}
    return replace(made, scenes=scenes)


def test_a_plan_read_back_is_the_job(job: Job) -> None:
    write_plan(job)
    storage = open_storage(job.common.store_uri)
    path = plan_path(job.common.tile_key, "run-1")
    plan = read_plan(storage, path)
    assert "Signature" not in gzip.decompress(storage.read(path)).decode()
    back = job_of(plan, configuration_of(plan), run_id="run-2")
    assert back.config == job.config
    assert len(back.blocks) > 2
    assert back.blocks == job.blocks
    assert back.grids == job.grids
    assert list(back.scenes) == list(job.scenes)
    assert back.scenes["1"] == job.scenes["1"]
    assert back.scenes["0"] == replace(job.scenes["0"], uri="https://host/a.tif")
    for field in fields(back.common):
        if field.name not in ("run_id", "aoi"):
            assert getattr(back.common, field.name) == getattr(job.common, field.name), field.name
    assert back.common.aoi is not None
    assert job.common.aoi is not None
    assert back.common.aoi.crs == job.common.aoi.crs
    assert shapely.equals_identical(back.common.aoi.polygons, job.common.aoi.polygons).all()


def test_plans_of_other_formats_and_damaged_ones_are_refused(job: Job) -> None:
    storage = open_storage(job.common.store_uri)
    storage.write("work/k/plan-a.json.gz", b"nothing")
    storage.write("work/k/plan-b.json.gz", gzip.compress(b'{"format": 99}'))
    with pytest.raises(StoreError, match="must be readable"):
        read_plan(storage, "work/k/plan-a.json.gz")
    with pytest.raises(StoreError, match="of format 1, got 99"):
        read_plan(storage, "work/k/plan-b.json.gz")
