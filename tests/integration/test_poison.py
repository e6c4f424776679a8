"""Tiles that raise, kill, hang or confuse: each is tried a limited number of times and told, and harms no other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segworker import engine
from segworker.config_load import from_flat
from segworker.engine.alone import mend_block
from segworker.engine.cluster import Workers
from segworker.engine.job import make_job
from segworker.engine.predictor import Predictor, describe_model
from segworker.engine.tiles import decode_block, read_block
from segworker.errors import ConfigError
from segworker.io.quarantine import read_quarantine
from segworker.io.shards import durable_blocks, read_shard, shard_path
from segworker.io.storage import open_storage
from segworker.synthetic.paint import paint_bands, paint_scene, write_raster
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.truth import TruthScene
from tests.painted import assert_is_truth, features, of_scene, scenes, segment
from tests.poison import (
    EXITS,
    GARBAGE,
    HANGS,
    KILLED,
    NANS,
    NOTHING,
    RAISES,
    SEGFAULTS,
    TOO_BIG,
    TOO_BIG_ALONE,
)

MODEL = "tests.poison:poisoned"
GRID = {"tile": 80, "overlap": 20, "batch_size": 4, "model": MODEL}
WORKERS = Workers(count=1, cpus_each=1, gpus_each=0, threads=1, device="cpu", precision="fp32")


def with_poison(class_id: int, side: int = 150) -> TruthScene:
    """A scene of which only the last corner shows an object of the class."""
    scene = make_scene("nuclei", side, class_id)
    labels, classes = scene.labels_HW.copy(), scene.class_ids.copy()
    labels[-10:, -10:] = len(classes)
    return TruthScene("", 0, labels, np.append(classes, class_id).astype(np.int32), scene.categories)


def calls(folder: Path) -> list[str]:
    """Return what the model was given, a tile each, and empty the list."""
    path = folder / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def painted(folder: Path, classes: list[int]) -> tuple[dict[str, TruthScene], list[Path]]:
    truths = {f"scene{c:02d}": with_poison(c) for c in classes}
    return truths, [paint_scene(scene, folder / f"{name}.tif") for name, scene in truths.items()]


def planned(folder: Path, paths: list[Path], **options):
    config = from_flat(
        scenes=[str(p) for p in paths],
        output=str(folder / "store"),
        model_options={"folder": str(folder)},
        **(GRID | options),
    )
    facts = describe_model(config.model.model, dict(config.model.model_options), None)
    return make_job(config, facts, "a run")


@pytest.fixture(scope="module")
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernels are on disk before a test counts seconds."""
    folder = tmp_path_factory.mktemp("warm")
    job = planned(folder, [paint_scene(make_scene("nuclei", 90, 1), folder / "a.tif")])
    work = read_block(job.task(job.blocks[0]), job.common)
    Predictor(job.common.model, precision="fp32", device="cpu", threads=1, tile_timeout_s=60).predict(work)
    assert not decode_block(work, job.common).failures


@pytest.mark.usefixtures("_compiled")
def test_a_block_is_mended_in_processes_of_their_own(tmp_path: Path) -> None:
    """What kills a process takes nothing down with it but its own tile; all others are durable, batches as planned."""
    classes = [EXITS, NANS, TOO_BIG]
    _, paths = painted(tmp_path, classes)
    job = planned(tmp_path, paths)
    (block,) = job.blocks
    receipt = mend_block(job.task(block), job.common, WORKERS, {("scene11", 2, 2): 2})
    assert [(f.tile_id, f.stage, f.tries) for f in receipt.failures] == [
        ((f"scene{NANS:02d}", 2, 2), "decode", 2),
        ((f"scene{EXITS}", 2, 2), "predict", 4),
    ]
    assert receipt.num_done == len(classes) * 9 - 2
    path = shard_path(job.common.tile_key, block.key, partial=True)
    held = {r.tile_id for r in read_shard(job.common.storage, path, job.grids)}
    assert len(held) == receipt.num_done
    assert not {f.tile_id for f in receipt.failures} & held
    sizes = Counter(line.split(" of ")[1] for line in calls(tmp_path))
    assert sizes["4"] > len(held) / 2, "most were predicted in the batches of the plan"

    (tmp_path / "healed").touch()
    again = mend_block(job.task(block), job.common, WORKERS, {})
    assert (again.num_done, again.failures) == (2, ())
    assert len(calls(tmp_path)) == 2, "what was durable is not predicted again"
    whole, partial = durable_blocks(job.common.storage, job.common.tile_key, [block.key])
    assert list(whole) == [block.key]
    assert not partial


@pytest.mark.usefixtures("_compiled")
def test_a_tile_that_hangs_is_ended_at_the_time_limit(tmp_path: Path) -> None:
    """Although it hangs in native code and holds the interpreter's lock."""
    _, paths = painted(tmp_path, [HANGS])
    job = planned(tmp_path, paths, batch_size=1, tile_timeout="12s")
    (block,) = job.blocks
    receipt = mend_block(job.task(block), job.common, WORKERS, {})
    (failure,) = receipt.failures
    assert (failure.tile_id[1:], failure.stage, failure.tries) == ((2, 2), "predict", 1), "once is enough"
    assert "no answer within 12 s (--tile-timeout)" in failure.error
    assert "in predict" in failure.trace
    assert receipt.num_done == 8


def test_a_model_that_cannot_be_loaded_ends_soon(tmp_path: Path) -> None:
    _, paths = painted(tmp_path, [RAISES])
    job = planned(tmp_path, paths)
    (block,) = job.blocks
    broken = replace(job.common, model=replace(job.common.model, ref="tests.poison:gone"))
    receipt = mend_block(job.task(block), broken, WORKERS, {})
    assert {f.stage for f in receipt.failures} == {"load"}
    assert len(receipt.failures) == 9
    assert "gone" in receipt.failures[0].error


# -- whole runs -------------------------------------------------------------------------------------------------------


def write_whole(path: Path, scene: TruthScene) -> None:
    """Paint a scene in blocks, one after the other."""
    bands = paint_bands(scene.labels_HW, scene.class_ids[scene.labels_HW])
    write_raster(path, bands, driver="COG", block_px=999, compress="NONE", blocksize=64)


def partly_damaged(path: Path, scene: TruthScene) -> Path:
    """Paint a scene, and lose the end of its file: its last blocks cannot be read."""
    write_whole(path, scene)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    return path


FAULTS = {
    EXITS: ("predict", "exit code 7", 4),
    SEGFAULTS: ("predict", "SIGSEGV", 4),
    KILLED: ("predict", "SIGKILL (out of memory, perhaps)", 4),
    TOO_BIG_ALONE: ("predict", "OutOfMemoryError", 4),
    RAISES: ("predict", "does not like what it sees", 4),
    NANS: ("decode", "scores must be finite", 4),
    GARBAGE: ("decode", "", 4),
    NOTHING: ("predict", "predict() returns Predictions, got NoneType", 4),
}
"Class -> stage, words of the error, tries: two in the pool, two in processes of their own."


@pytest.fixture(scope="module")
def poisoned_run(tmp_path_factory: pytest.TempPathFactory, local_ray: None, _compiled: None):
    """One run over a scene for each fault, some sound ones, and a large one of several blocks."""
    del local_ray, _compiled
    folder = tmp_path_factory.mktemp("poison")
    truths, paths = painted(folder, [*FAULTS, TOO_BIG])
    truths |= {"sound": make_scene("nuclei", 150, 3), "large": poison_in_the_middle()}
    paths += [paint_scene(truths[name], folder / f"{name}.tif") for name in ("sound", "large")]
    truths["damaged"] = make_scene("nuclei", 150, 5)
    paths.append(partly_damaged(folder / "damaged.tif", truths["damaged"]))
    options = {**GRID, "model_options": {"folder": str(folder)}}
    summary = segment(folder / "store", *paths, **options)
    return folder, truths, paths, options, summary, calls(folder)


def poison_in_the_middle() -> TruthScene:
    """A scene of four blocks whose poison lies in the core of one tile, beside the border of its block."""
    scene = make_scene("nuclei", 1000, 4)
    labels, classes = scene.labels_HW.copy(), scene.class_ids.copy()
    labels[985:990, 985:990] = len(classes)
    return TruthScene("", 0, labels, np.append(classes, EXITS).astype(np.int32), scene.categories)


@pytest.mark.timeout(600)
def test_every_fault_is_told_and_takes_its_own_tile_alone(poisoned_run) -> None:
    folder, truths, _, _, summary, _ = poisoned_run
    record = summary.record
    assert summary.exit_code == 3, summary.text
    table = read_quarantine(open_storage(str(folder / "store")), record["run_id"])
    assert "quarantine.parquet" in summary.text
    rows = {row["scene_id"]: row for row in table.to_pylist() if row["scene_id"] != "damaged"}
    assert len(rows) == len(FAULTS) + 1
    for class_id, (stage, words, tries) in FAULTS.items():
        row = rows[f"scene{class_id:02d}"]
        assert (row["row"], row["col"], row["stage"]) == (2, 2, stage)
        assert words in row["error"]
        assert row["traceback"] or class_id in (EXITS, KILLED)
        if class_id == SEGFAULTS:
            assert "poison.py" in row["traceback"], "where it happened"
        assert 2 <= row["tries"] <= tries
        assert row["window"] == {"col_off": 70, "row_off": 70, "width": 80, "height": 80}
    damaged = [row for row in table.to_pylist() if row["scene_id"] == "damaged"]
    assert 0 < len(damaged) < 9
    assert {row["stage"] for row in damaged} == {"read"}
    assert record["counts"]["tiles_failed"] == len(table)
    assert record["counts"]["batches_halved"] > 0
    assert record["counts"]["failed_scenes"] == 0
    committed = features(folder / "store")
    beside = of_scene(committed, "large")["seam"].to_pylist()
    assert 0 < beside.count("missing") < len(beside) / 10
    for name in ("sound", f"scene{TOO_BIG}"):
        assert_is_truth(of_scene(committed, name), truths[name])
    for class_id in FAULTS:
        whole = seen_elsewhere(truths[f"scene{class_id:02d}"])
        assert len(whole) > 3
        areas = of_scene(committed, f"scene{class_id:02d}")["area_px"].to_pylist()
        assert set(whole) <= set(areas), "all other objects are there, whole"


def seen_elsewhere(scene: TruthScene) -> list[float]:
    """Return the areas of the objects that the last tile of nine does not show."""
    unseen = set(np.unique(scene.labels_HW[70:, 70:]).tolist())
    sizes = np.bincount(scene.labels_HW.ravel())
    return [float(sizes[label]) for label in range(1, len(sizes)) if label not in unseen]


@pytest.mark.timeout(600)
def test_what_was_given_up_is_tried_again_and_nothing_else(poisoned_run) -> None:
    """The model is mended, a file is replaced: the missing tiles alone are predicted, the seams around them mended."""
    folder, truths, _, _, summary, _ = poisoned_run
    store, first = folder / "store", summary.record["run_id"]
    before = {name: row["run_id"] for name, row in scenes(store).items()}
    assert set(before.values()) == {first}
    (folder / "healed").touch()
    write_whole(folder / "damaged.tif", truths["damaged"])
    calls(folder)
    again = engine.retry(first, str(store), {"progress": "off"})
    assert again.exit_code == 0, again.text
    assert f"what had failed in {first}" in again.text
    assert len(calls(folder)) == len(FAULTS) + 1 + 9, "a tile for each fault, and the whole scene whose file changed"
    committed = features(store)
    for name, truth in truths.items():
        assert_is_truth(of_scene(committed, name), truth)
    assert set(committed["seam"].to_pylist()) == {"none", "merged"}
    after = {name: row["run_id"] for name, row in scenes(store).items()}
    untouched = {"sound", f"scene{TOO_BIG}"}
    assert {name for name in after if after[name] == first} == untouched
    assert {row["num_failed_tiles"] for row in scenes(store).values()} == {0}
    assert len(read_quarantine(open_storage(str(store)), again.record["run_id"])) == 0
    for run in (first, "latest"):
        nothing = engine.retry(run, str(store), {"progress": "off"})
        assert nothing.exit_code == 0
        assert "is left to be tried again" in nothing.text
    assert not calls(folder)
    with pytest.raises(ConfigError, match=r"--tile is part of the tile results"):
        engine.retry(first, str(store), {"tile": 96})
