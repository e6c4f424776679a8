"""Runs over painted scenes, and what their results must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio.features
import shapely

from segworker import engine
from segworker.config_load import from_flat
from segworker.engine import RunSummary, phase2
from segworker.io.ids import INDEX_BITS
from segworker.io.storage import open_storage
from segworker.io.table import read_features, read_scenes
from segworker.synthetic.truth import TruthScene

PERFECT = "segworker.synthetic.models:perfect"
SCORED = "tests.models_for_tests:scored"


def segment(store: str | Path, *scenes: str | Path, in_one_task: bool = False, **options: Any) -> RunSummary:
    """Run a job over scenes into a store; the model is perfect where no other is named.

    Scenes of tests are small: those of several blocks go through the four passes of large ones, unless `in_one_task`.
    """
    values = {"model": PERFECT, "progress": "off", "overview": 0, "log_level": "warning"} | options
    with pytest.MonkeyPatch.context() as patch:
        if not in_one_task:
            patch.setattr(phase2, "WHOLE_BYTES", 0)
        return engine.run(from_flat(scenes=[str(s) for s in scenes], output=str(store), **values))


def features(store: str | Path, **options: Any) -> pa.Table:
    """Return the live features in the order of their ids."""
    return read_features(open_storage(str(store)), **options).sort_by("feature_id")


def scenes(store: str | Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the scenes table by scene id; there is one of each."""
    rows = read_scenes(open_storage(str(store))).to_pylist()
    found = {row["scene_id"]: row for row in rows}
    assert len(found) == len(rows), "one version of each scene"
    return found


def shapes(rows: pa.Table) -> np.ndarray:
    return shapely.from_wkb(rows["geometry"].to_numpy(zero_copy_only=False))


def of_scene(rows: pa.Table, scene_id: str) -> pa.Table:
    return rows.filter(pa.compute.equal(rows["scene_id"], scene_id))


def order_of(scene: TruthScene) -> np.ndarray:
    """Return the labels of a scene in the order that features are numbered in: first pixel, class, area."""
    labels, first = np.unique(scene.labels_HW, return_index=True)
    kept = labels > 0
    return labels[kept][np.argsort(first[kept])]


def assert_is_truth(rows: pa.Table, scene: TruthScene) -> None:
    """Check that the features of a scene without a CRS are its objects: each whole, once, numbered by first pixel."""
    labels = order_of(scene)
    assert len(rows) == len(labels)
    assert (rows["feature_id"].to_numpy() & (2**INDEX_BITS - 1)).tolist() == list(range(len(labels)))
    assert rows["class_id"].to_pylist() == scene.class_ids[labels].tolist()
    areas = np.bincount(scene.labels_HW.ravel(), minlength=len(scene.class_ids))[labels]
    assert rows["area_px"].to_pylist() == areas.tolist()
    found = shapes(rows)
    assert shapely.is_valid(found).all()
    assert shapely.area(found).tolist() == areas.tolist()
    assert np.array_equal(burnt(found, scene.labels_HW.shape), _renumbered(scene.labels_HW, labels))


def burnt(polygons: np.ndarray, shape_yx: tuple[int, int]) -> np.ndarray:
    """Return polygons in pixels as a raster of their positions, from 1, by another tool than ours."""
    pairs = [(polygon, k + 1) for k, polygon in enumerate(polygons)]
    if not pairs:
        return np.zeros(shape_yx, np.int32)
    return rasterio.features.rasterize(pairs, out_shape=shape_yx, dtype="int32")


def _renumbered(labels_HW: np.ndarray, order: np.ndarray) -> np.ndarray:
    new = np.zeros(int(labels_HW.max(initial=0)) + 1, np.int32)
    new[order] = np.arange(1, len(order) + 1)
    return new[labels_HW]
