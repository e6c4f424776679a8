"""What a run says of its seams: perfect with a perfect model, and each figure reacts to the fault that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rasterio

from segworker import blocks
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.painted import features, segment

pytestmark = pytest.mark.usefixtures("local_ray")

MODELS = "tests.spoiled_models:"
GRID = {"tile": 100, "overlap": 28}
RUNS = {
    "perfect": {"check_shift": 1},
    "never linked": {"overlap": 0, "tile": 72, "check_shift": 1},
    "jittery": {"model": MODELS + "jittery", "check_shift": 1},
    "jittery and too strict": {"model": MODELS + "jittery", "min_iou": 1.0, "check_shift": 1},
    "stops short": {"model": MODELS + "stopping_short"},
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_scene(make_scene("nuclei", (432, 360), 3), tmp_path_factory.mktemp("scene") / "nuclei.tif")


@pytest.fixture(scope="module")
def figures(scene: Path, tmp_path_factory: pytest.TempPathFactory):
    """The seam figures and the summary of each run, made when they are first asked for."""
    known: dict[str, tuple[dict[str, Any], str]] = {}

    def of(name: str) -> tuple[dict[str, Any], str]:
        if name not in known:
            store = tmp_path_factory.mktemp("stores") / "store"
            summary = segment(store, scene, **(GRID | RUNS[name]))
            assert summary.exit_code == 0, summary.text
            told = json.loads((store / "runs" / summary.record["run_id"] / "run.json").read_text())["seams"]
            assert told == json.loads(json.dumps(summary.record["seams"]))
            assert not list((store / "work").glob("*-shifted/*")), "the sample's tiles are of no more use"
            known[name] = told, summary.text
        return known[name]

    return of


def test_a_perfect_model_has_perfect_figures(figures) -> None:
    told, text = figures("perfect")
    assert (told["agreement"], told["mean_iou"]) == (1.0, 1.0)
    assert abs(told["straight_edges"]["excess"]) < 0.08, "as far as chance goes on so few borders"
    assert told["straight_edges"]["on_borders"] > 0.02, "outlines lie on borders by chance"
    shifted = told["shifted_grid"]
    assert (shifted["f1"], shifted["mean_iou"], shifted["left_out"], shifted["blocks_failed"]) == (1.0, 1.0, 0, 0)
    assert shifted["matched"] == shifted["objects"] == shifted["objects_shifted"] > 100
    for by_class in (told["by_class"], told["straight_edges"]["by_class"], shifted["by_class"]):
        assert by_class
    assert sum(c["matched"] for c in shifted["by_class"].values()) == shifted["matched"]
    assert "100.0% of what two tiles saw agreed, mean IoU 1.00" in text
    assert "object F1 1.000" in text
    assert "straight edges on" in text


def test_objects_that_are_cut_leave_straight_edges(figures) -> None:
    told, _ = figures("never linked")
    assert told["agreement"] is None, "without an overlap there is nothing that two tiles saw"
    assert told["straight_edges"]["excess"] > 0.8
    assert sum(c["excess"] for c in told["straight_edges"]["by_class"].values()) == pytest.approx(
        told["straight_edges"]["excess"], abs=1e-3
    )
    assert told["shifted_grid"]["f1"] < 0.8


@pytest.mark.slow
def test_masks_that_drift_agree_less(figures) -> None:
    perfect, jittery, strict = (figures(n)[0] for n in ("perfect", "jittery", "jittery and too strict"))
    assert jittery["mean_iou"] < 0.85
    assert jittery["agreement"] > 0.6, "they are linked nevertheless"
    assert jittery["shifted_grid"]["mean_iou"] < 0.9
    assert jittery["shifted_grid"]["f1"] < 0.9
    assert strict["agreement"] < jittery["agreement"] - 0.1
    assert strict["shifted_grid"]["f1"] < 0.9
    excess = [f["straight_edges"]["excess"] for f in (perfect, jittery, strict)]
    assert excess[0] < excess[1] < excess[2]


def test_masks_that_stop_short_of_the_window_agree_less(figures) -> None:
    told, text = figures("stops short")
    assert told["mean_iou"] < 0.95
    assert told["shifted_grid"] is None, "nobody asked for it"
    assert "shifted" not in text


def test_a_sample_is_drawn_by_seed_and_its_rim_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the ground, in small blocks: objects that reach out of the sample cannot be judged."""
    monkeypatch.setattr(blocks, "MAX_TILES", 16)
    place = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 30_000)
    scenes = [
        paint_scene(make_scene("aerial", (500, 480), 7), tmp_path / "large.tif", crs="EPSG:32636", transform=place),
        paint_scene(make_scene("aerial", (60, 50), 8), tmp_path / "small.tif", crs="EPSG:32636", transform=place),
    ]
    options = {"tile": 64, "overlap": 24, "table_crs": "OGC:CRS84", "check_shift": 0.3, "simplify": 1}
    found = [segment(tmp_path / str(seed), *scenes, seed=seed, **options).record for seed in (0, 1)]
    for record in found:
        shifted = record["seams"]["shifted_grid"]
        assert shifted["f1"] == 1.0
        assert shifted["blocks"] > 2
        assert 0.3 * record["counts"]["tiles"] <= shifted["tiles"] < 0.6 * record["counts"]["tiles"]
        assert shifted["left_out"] > 0
        assert 0 < shifted["objects"] < len(features(tmp_path / "0"))
        assert record["seconds"]["check_shift"] > 0
    assert found[0]["counts"]["features"] == found[1]["counts"]["features"]
    one, other = ({k: v for k, v in r["seams"]["shifted_grid"].items() if k != "by_class"} for r in found)
    assert one != other, "another seed, another sample"
