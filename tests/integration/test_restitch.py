"""Stitching the kept tile results of a run again is the run with the other thresholds, without scenes and model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import rasterio

from segworker import blocks, cli, engine
from segworker.errors import ConfigError, StoreError
from segworker.synthetic.paint import paint_scene
from segworker.synthetic.scenes import make_scene
from tests.models_for_tests import RAISES
from tests.painted import SCORED, features, scenes, segment

pytestmark = pytest.mark.usefixtures("local_ray")

GRID = {"tile": 64, "overlap": 24, "model": "tests.spoiled_models:noisy"}
FIRST = {"min_score": 0.35, "min_iou": 0.5, "simplify": 1.0}
CHANGES = {
    "scores": {"min_score": 0.55, "class_min_score": "class 3=0.4"},
    "classes": {"classes": "class 1,class 2", "min_area": "40px"},
    "areas": {"min_area": "12.5m2", "max_area": "400m2"},
    "rule": {"min_iou": 0.1, "simplify": 0, "min_score": 0.2},
    "outlines": {"simplify": 2.5, "coco": "no"},
}


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    """Plan blocks of 16 tiles, so that a small scene has many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MAX_TILES", 16)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of many blocks, two that share one, and a lake of nothing; on the ground."""
    folder = tmp_path_factory.mktemp("scenes")
    shapes = {"large": (420, 400), "a": (120, 130), "b": (110, 150)}
    for k, (name, shape) in enumerate(shapes.items()):
        place = rasterio.Affine(0.5, 0, 400_000 + 2000 * k, 0, -0.5, 30_000)
        paint_scene(make_scene("aerial", shape, k), folder / f"{name}.tif", crs="EPSG:32636", transform=place)
    return folder


@pytest.fixture(scope="module")
def kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run, of which the scenes are gone."""
    store = tmp_path_factory.mktemp("kept") / "store"
    moved = store.parent / "scenes"
    shutil.copytree(folder, moved)
    assert segment(store, moved, **GRID, **FIRST).exit_code == 0
    shutil.rmtree(moved)
    return store


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for runs with the other thresholds; the tiles are predicted once."""
    return tmp_path_factory.mktemp("expected") / "store"


def values(store: Path) -> pa.Table:
    return features(store).drop_columns("run_id")


def first_run(store: Path) -> str:
    return min(path.name for path in (store / "runs").iterdir())


@pytest.mark.parametrize("name", CHANGES)
def test_stitching_again_is_the_run_with_other_thresholds(kept: Path, expected: Path, folder: Path, name: str) -> None:
    changes = CHANGES[name]
    wanted = segment(expected, folder, **(GRID | FIRST | changes))
    before = scenes(kept)
    found = engine.stitch(first_run(kept), str(kept), changes | {"progress": "off", "overview": 0})
    assert found.exit_code == wanted.exit_code == 0
    assert values(kept).equals(values(expected))
    assert len(features(kept)) > 20
    record, other = found.record, wanted.record
    assert record["keys"] == other["keys"] | {"model": record["keys"]["model"]}
    assert record["counts"]["features"] == other["counts"]["features"] == len(features(kept))
    assert record["seams"] == other["seams"]
    assert record["counts"]["tiles_predicted"] == record["counts"]["bytes_read"] == 0
    assert record["workers"] is None
    after = scenes(kept)
    assert {row["run_id"] for row in after.values()} == {record["run_id"]}
    same = ("scene_no", "uri", "etag", "crs", "transform", "width", "height", "num_tiles")
    assert [[row[key] for key in same] for row in after.values()] == [
        [row[key] for key in same] for row in before.values()
    ]


def test_the_record_says_where_the_tiles_came_from(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = first_run(kept)
    assert cli.main(["stitch", first, str(kept), "--min-score", "0.6", "--name", "strict", "--overview", "0"]) == 0
    told = capsys.readouterr().out
    (newest,) = set(features(kept)["run_id"].to_pylist())
    assert newest != first
    record = json.loads((kept / "runs" / newest / "run.json").read_text())
    assert record["stitched_from"] == first
    assert record["name"] == "strict"
    assert record["configuration"]["stitch"]["min_score"] == 0.6
    assert record["configuration"]["stitch"]["min_iou"] == FIRST["min_iou"], "as the run had it"
    assert f"run       {newest}, from the tiles of {first}" in told
    assert cli.main(["stitch", f"{kept}/runs/{newest}", "--overview", "0"]) == 0, "a path names store and run"
    (last,) = set(features(kept)["run_id"].to_pylist())
    assert last not in (first, newest)


def test_neither_torch_nor_the_model_is_needed(kept: Path, tmp_path: Path) -> None:
    """In processes of their own: importing torch raises, and the model's module is not to be found."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch on this machine')\n")
    code = "import sys; sys.path.remove(''); from segworker import cli; sys.exit(cli.main(sys.argv[1:]))"
    script = tmp_path / "stitch.py"
    script.write_text(code.replace("sys.path.remove(''); ", ""))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(tmp_path), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_AUTH_MODE": "disabled"}
    before = values(kept)
    done = subprocess.run(
        [sys.executable, str(script), "stitch", "latest", str(kept), "--cpus", "1", "--overview", "0"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert values(kept).equals(before)


# -- what does not work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"), [("tile", "512"), ("overlap", "8"), ("model", "nuclei"), ("bands", "1"), ("table_crs", "x")]
)
def test_what_the_tiles_depend_on_cannot_change(kept: Path, option: str, value: str) -> None:
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(
        ConfigError, match=rf"{flag} is part of the tile results.*got {value}; give it to `segworker run`"
    ):
        engine.stitch("latest", str(kept), {option: value})


def test_flags_that_are_not_there(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stitch", "latest", str(kept), "--tile", "512"]) == 2
    assert "--tile is part of the tile results" in capsys.readouterr().err
    assert cli.main(["stitch", "latest", str(kept), "--min-iuo", "0.3"]) == 2
    assert "--min-iou" in capsys.readouterr().err
    assert cli.main(["stitch", "latest", str(kept), "--min-iou", "2"]) == 2
    assert cli.main(["stitch"]) == 2
    assert cli.main(["stitch", "20200101T000000Z-abcdef", str(kept)]) == 1
    assert "a run is named by its id" in capsys.readouterr().err
    assert cli.main(["stitch", "latest", str(kept / "nowhere")]) == 1
    assert "there is no run: check the path" in capsys.readouterr().err


def test_tiles_that_are_not_kept_any_more(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    options = GRID | {"model": SCORED}
    segment(store, folder / "a.tif", keep_work="0s", **options)
    (run_id,) = {row["run_id"] for row in scenes(store).values()}
    for name in ("latest", run_id):
        with pytest.raises(StoreError, match="--keep-work"):
            engine.stitch(name, str(store), {})
    segment(store, folder / "large.tif", **options)
    before = features(store)
    shards = sorted((store / "work").rglob("*[0-9a-f].parquet"))
    assert len(shards) > 3
    shards[1].unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"tiles are missing.*--keep-work"):
            engine.stitch("latest", str(store), {"progress": "off"})
    assert features(store).equals(before)


def test_an_incomplete_run_is_as_incomplete_when_stitched_again(tmp_path: Path) -> None:
    scene = make_scene("nuclei", 150, 1)
    classes = scene.class_ids.copy()
    classes[scene.labels_HW[-1, -1] or scene.labels_HW.max()] = RAISES
    path = paint_scene(
        type(scene)(scene.kind, scene.seed, scene.labels_HW, classes, scene.categories), tmp_path / "raises.tif"
    )
    store = tmp_path / "store"
    first = segment(store, path, model="tests.models_for_tests:failing", tile=80, overlap=20)
    assert first.exit_code == 3
    before = values(store)
    again = engine.stitch("latest", str(store), {"progress": "off"})
    assert again.exit_code == 3
    assert values(store).equals(before)
    assert again.record["counts"]["tiles_failed"] == first.record["counts"]["tiles_failed"] > 0
    assert {(f["row"], f["col"]) for f in again.record["failed_tiles"]} == {
        (f["row"], f["col"]) for f in first.record["failed_tiles"]
    }


def test_a_failed_run_can_be_stitched(tmp_path: Path) -> None:
    """A run that was refused for its failed tiles has committed nothing; its good tiles are there."""
    scene = make_scene("nuclei", 150, 1)
    classes = scene.class_ids.copy()
    classes[scene.labels_HW.max()] = RAISES
    path = paint_scene(
        type(scene)(scene.kind, scene.seed, scene.labels_HW, classes, scene.categories), tmp_path / "raises.tif"
    )
    store = tmp_path / "store"
    arguments = ["--model", "tests.models_for_tests:failing", "--tile", "80", "--overlap", "20", "--output", str(store)]
    assert cli.main(["run", str(path), *arguments, "--max-failed-tiles", "0", "--progress", "off"]) == 1
    assert cli.main(["stitch", "latest", str(store), "--max-failed-tiles", "0"]) == 1
    assert not (store / "scenes").exists()
    assert cli.main(["stitch", "latest", str(store), "--partial-ok"]) == 0
    assert len(features(store)) > 20
