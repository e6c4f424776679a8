"""Nights over a folder of painted scenes: what is new or changed runs, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from segworker import cli
from segworker.io.lock import locked
from segworker.io.storage import open_storage
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.painted import PERFECT, features, of_scene, scenes

pytestmark = pytest.mark.usefixtures("local_ray")

FLAGS = ["--model", PERFECT, "--tile", "128", "--overlap", "32", "--progress", "off", "--overview", "0", "--no-coco"]


def paint(folder: Path, name: str, seed: int, *, mtime_s: float) -> None:
    """Write a scene whose file is of a stated time."""
    folder.mkdir(exist_ok=True)
    paint_scene(make_scene("nuclei", (150, 160), seed), folder / f"{name}.tif")
    os.utime(folder / f"{name}.tif", (mtime_s, mtime_s))


class Nights:
    """Nights over `incoming` into one store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.incoming, self.store = folder, folder / "incoming", folder / "store"

    def night(self, *flags: str) -> tuple[int, dict]:
        summary = self.folder / "night.json"
        summary.unlink(missing_ok=True)
        argv = ["nightly", str(self.incoming), "--output", str(self.store), *FLAGS, "--summary", str(summary), *flags]
        code = cli.main(argv)
        return code, json.loads(summary.read_text()) if summary.exists() else {}


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    found = Nights(tmp_path)
    for k, name in enumerate("abc"):
        paint(found.incoming, name, k, mtime_s=1e9 + k)
    return found


def test_nights_run_what_is_new_or_changed_and_nothing_else(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    code, night = nights.night()
    assert (code, night["counts"]["new"], len(night["runs"])) == (0, 3, 1)
    assert night["runs"][0]["scenes"] == 3
    first = {row["scene_id"]: row["run_id"] for row in scenes(nights.store).values()}
    before = features(nights.store)

    code, night = nights.night()
    assert (code, night["counts"]["done"], night["runs"], night["changes"]) == (0, 3, [], None)

    paint(nights.incoming, "b", 7, mtime_s=2e9)
    paint(nights.incoming, "d", 8, mtime_s=2e9)
    code, night = nights.night()
    assert (code, night["counts"]["new"], night["counts"]["changed"], night["counts"]["done"]) == (0, 1, 1, 2)
    assert night["changes"]["new_scenes"] == ["d"]
    assert {row["scene_id"] for row in night["changes"]["by_scene"]} == {"b", "d"}
    now = {row["scene_id"]: row["run_id"] for row in scenes(nights.store).values()}
    assert [now[i] == first[i] for i in "abc"] == [True, False, True]
    after = features(nights.store)
    for scene_id in "ac":
        assert of_scene(after, scene_id).equals(of_scene(before, scene_id)), "the others keep their features and ids"

    records = sorted((nights.store / "nightly").glob("*.json"))
    assert len(records) == 3
    assert json.loads(records[-1].read_text()) == night
    assert "changed" in capsys.readouterr().out

    code, night = nights.night("--min-score", "0.1", "--dry-run")
    assert (code, night) == (0, {})
    assert "4 settings" in capsys.readouterr().out, "other thresholds are another result"


@pytest.mark.slow
def test_a_budget_a_limit_and_an_age_leave_the_rest_for_other_nights(nights: Nights) -> None:
    code, night = nights.night("--limit", "1")
    assert (code, night["counts"]["over_limit"], list(scenes(nights.store))) == (0, 2, ["a"]), "the oldest file first"
    code, night = nights.night("--since", "2001-09-09T01:46:41.5")
    assert (code, night["counts"]["before_since"], sorted(scenes(nights.store))) == (0, 1, ["a", "c"])
    code, night = nights.night("--max-cost-hours", "1e-9")
    assert (code, night["runs"], night["scenes_over_budget"]) == (0, [], ["b"])
    code, night = nights.night("--max-cost-hours", "100")
    assert (code, len(night["runs"]), sorted(scenes(nights.store))) == (0, 1, ["a", "b", "c"])
    assert night["cost_hours"] > 0


def test_a_night_that_finds_another_at_work_says_so(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(open_storage(nights.store), "nightly", "night 7"):
        code, night = nights.night()
    assert (code, night["exit_code"]) == (4, 4)
    assert "night 7 at work" in capsys.readouterr().err
    assert not (nights.store / "features").exists()


@pytest.mark.slow
def test_scenes_that_cannot_be_read_are_told_every_night(nights: Nights) -> None:
    (nights.incoming / "broken.tif").write_bytes(b"not a raster")
    for _ in range(2):
        code, night = nights.night()
    assert (code, night["counts"]["new"], night["counts"]["done"]) == (1, 1, 3)
    assert "broken" in night["errors"][0]
    assert len(scenes(nights.store)) == 3
