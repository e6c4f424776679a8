"""A whole run, judged: what a perfect model commits over seams is judged perfect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segworker import cli
from segworker.synthetic.paint import paint_scene, write_raster
from segworker.synthetic.scenes import make_scene
from tests.painted import segment

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]


def test_a_perfect_run_is_judged_perfect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = make_scene("nuclei", 400, 3)
    paint_scene(truth, tmp_path / "scene.tif")
    write_raster(tmp_path / "scene_labels.tif", truth.labels_HW[None].astype("uint16"))
    segment(tmp_path / "store", tmp_path / "scene.tif", tile=128, overlap=48)
    flags = ("--truth", str(tmp_path / "scene_labels.tif"), "--any-class")
    assert cli.main(["evaluate", "latest", str(tmp_path / "store"), *flags]) == 0
    path = next((tmp_path / "store" / "runs").glob("*/evaluation/scene_labels.json"))
    result = json.loads(path.read_text())
    assert result["quality"]["all_objects"]["f1"] > 0.99  # what no tile could see as one is in several parts
    assert result["seams"]["near_borders"]["duplicates"] == 0
    assert result["seams"]["near_borders"]["objects"] > result["seams"]["interior"]["objects"] > 0
    assert "near tile borders" in capsys.readouterr().out
