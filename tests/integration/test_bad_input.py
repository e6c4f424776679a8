"""What cannot work ends in one clear line, the right exit code, nothing half-written, and no harm to other scenes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segworker import cli
from segworker.io.table import FEATURES_TABLE
from segworker.synthetic.paint import paint_scene, write_raster
from segworker.synthetic.scenes import make_scene
from segworker.synthetic.truth import TruthScene
from segworker.types import Category
from tests.models_for_tests import NANS, RAISES, UNKNOWN
from tests.painted import PERFECT, assert_is_truth, features, of_scene, scenes, segment
from tests.spoiled_models import COPIES, EMPTY, LOGITS, NEGATIVE, OUTSIDE, SIZE, TENSORS, TWICE

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """Check that the command ended with a code and one line of error that holds the words, then a remedy."""
        assert self.code == code, (self.out, self.err)
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        for word in words:
            assert word in errors[0]
        rule, _, remedy = errors[0].rpartition("; ")
        assert rule
        assert remedy, "a remedy follows the rule"
        assert "Traceback" not in self.err


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Call `segworker run ARGUMENTS` with a perfect model and a store in the test's folder, unless told otherwise."""

    def call(*arguments: str | Path) -> Outcome:
        texts = [str(a) for a in arguments]
        for name, value in (("--model", PERFECT), ("--output", str(tmp_path / "store")), ("--overview", "0")):
            if name not in texts:
                texts += [name, value]
        capsys.readouterr()
        code = cli.main(["run", *texts])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return paint_scene(make_scene("nuclei", 90, 1), tmp_path / "good.tif")


def bad_file(folder: Path, kind: str) -> Path:
    """Make one file of a kind that no run can use."""
    path = folder / f"{kind.replace(' ', '_')}.tif"
    if kind == "missing":
        return path
    if kind == "not a raster":
        path.write_text("once upon a time")
    elif kind == "empty file":
        path.touch()
    elif kind == "zero bands":
        path = path.with_suffix(".vrt")
        path.write_text('<VRTDataset rasterXSize="10" rasterYSize="10"></VRTDataset>')
    elif kind == "complex":
        write_raster(path, np.ones((3, 20, 20), np.complex64))
    elif kind == "truncated header":
        whole = paint_scene(make_scene("nuclei", 90, 2), path)
        path.write_bytes(whole.read_bytes()[:50])
    elif kind == "truncated":
        rng = np.random.default_rng(0)
        write_raster(path, rng.integers(0, 9, (3, 90, 90), np.uint16), driver="COG", compress="deflate", block_px=999)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif kind == "too few bands":
        write_raster(path, np.ones((2, 20, 20), np.uint16))
    return path


KINDS = {
    "missing": ("must exist", 2),
    "not a raster": ("must be a raster", 1),
    "empty file": ("must be a raster", 1),
    "zero bands": ("band", 1),
    "complex": ("complex64", 1),
    "truncated header": ("must be a raster", 1),
    "too few bands": ("--bands", 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_scene_alone(run, tmp_path: Path, kind: str) -> None:
    words, code = KINDS[kind]
    path = bad_file(tmp_path, kind)
    outcome = run(path)
    if kind == "missing":
        outcome.refused(code, "a run needs at least one scene", "missing.tif", "nothing was found there")
    else:
        outcome.refused(code, words, path.stem)
    assert not (tmp_path / "store").exists()


def test_a_truncated_scene_alone(run, tmp_path: Path) -> None:
    """Its header is sound: only the reading of its tiles tells."""
    outcome = run(bad_file(tmp_path, "truncated"))
    outcome.refused(1, "truncated", "every tile failed", "must be readable", "replace the file")
    assert not (tmp_path / "store" / FEATURES_TABLE).exists(), "nothing is committed"


def test_bad_scenes_among_good_ones(run, tmp_path: Path) -> None:
    """The good ones are committed; the bad ones are told, each with its reason, in the summary and in run.json."""
    truths = {f"good{k}": make_scene("nuclei", 90, k) for k in range(2)}
    paths = [paint_scene(scene, tmp_path / f"{name}.tif") for name, scene in truths.items()]
    kinds = [*KINDS, "truncated"]
    bad = {kind: bad_file(tmp_path, kind) for kind in kinds}
    outcome = run(*paths, *bad.values(), "--tile", "64", "--overlap", "16")
    assert outcome.code == 3, outcome
    assert not outcome.err.count("Traceback")
    store = tmp_path / "store"
    rows = features(store)
    for name, scene in truths.items():
        assert_is_truth(of_scene(rows, name), scene)
    found = scenes(store)
    assert set(found) == set(truths)
    (run_id,) = {row["run_id"] for row in found.values()}
    record = json.loads((store / "runs" / run_id / "run.json").read_text())
    assert record["exit_code"] == 3
    assert record["counts"]["failed_scenes"] == len(kinds)
    errors = {Path(f["uri"]).stem: f["error"] for f in record["failed_scenes"]}
    assert set(errors) == {path.stem for path in bad.values()}
    for kind, path in bad.items():
        assert KINDS.get(kind, ("every tile failed", 1))[0] in errors[path.stem]
    assert f"2, {len(kinds)} failed" in outcome.out
    assert run(*paths, *bad.values(), "--tile", "64", "--overlap", "16", "--partial-ok").code == 0


def test_a_damaged_version_does_not_replace_a_good_one(run, good: Path, tmp_path: Path) -> None:
    other = paint_scene(make_scene("nuclei", 80, 5), tmp_path / "other.tif")
    assert run(good, other).code == 0
    before = features(tmp_path / "store")
    shutil.copy(bad_file(tmp_path, "truncated"), good)
    assert run(good, other).code == 3
    assert of_scene(features(tmp_path / "store"), "good").equals(of_scene(before, "good"))


# -- usage ----------------------------------------------------------------------------------------------------------

USAGE = {
    "overlap": (["--tile", "256", "--overlap", "300"], ["overlap=300", "tile=256", "lower --overlap"]),
    "overlap of the model": (["--tile", "32", "--overlap", "32"], ["overlap=32", "tile=32"]),
    "unknown model": (["--model", "nuclai"], ["nuclai", "nuclei"]),
    "unknown module": (["--model", "no.such.module:build"], ["no.such.module"]),
    "unknown factory": (["--model", "tests.models_for_tests:absent"], ["absent"]),
    "no model": (["--model", "json:dumps"], ["json:dumps"]),
    "unknown flag": (["--overlp", "3"], ["--overlp", "--overlap"]),
    "unknown class": (["--classes", "class 1,ship"], ["ship", "class 1"]),
    "missing area": (["--aoi", "nowhere.gpkg"], ["nowhere.gpkg", "--aoi"]),
    "weights for no torch module": (["--weights", "gone.safetensors"], ["--weights", PERFECT]),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors(run, good: Path, tmp_path: Path, name: str) -> None:
    flags, words = USAGE[name]
    run(good, *flags).refused(2, *words)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("weights", ["gone.safetensors", "other.safetensors", "text.safetensors", "pickle.pth"])
def test_weights_that_do_not_fit(run, good: Path, tmp_path: Path, weights: str) -> None:
    path = tmp_path / weights
    if weights == "other.safetensors":
        save_file({"encoder.weight": torch.zeros(3, 3)}, path)
    elif weights == "text.safetensors":
        path.write_text("these are no weights")
    elif weights == "pickle.pth":
        torch.save({"model": Category(1, "an object of some class")}, path)
    run(good, "--model", "nuclei", "--weights", path).refused(2, weights)
    assert not (tmp_path / "store").exists()


def test_a_manifest_without_uris(run, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,scene_id\na.tif,a\n")
    run("--manifest", manifest).refused(2, "a manifest has a column `uri`, got path, scene_id", "rename the column")
    manifest.write_text("uri,scene_id\n")
    run("--manifest", manifest).refused(2, "a manifest lists at least one scene", "add one uri a line")
    run("--manifest", tmp_path / "none.csv").refused(2, "a manifest must be readable", "none.csv")
    run().refused(2, "a run needs at least one scene")
    assert not (tmp_path / "store").exists()


# -- places that cannot be written or read ---------------------------------------------------------------------------


def test_a_store_in_the_place_of_a_file(run, good: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    run(good, "--output", tmp_path / "taken").refused(1, "taken", "choose another location")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_store_without_permission(run, good: Path, s3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"s3://{s3.new_bucket()}/store"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.read_only_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.read_only_secret_key)
    run(good, "--output", store).refused(1, "it must be permitted", "grant the permission")


def test_wrong_credentials(run, good: Path, s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    s3.client().upload_file(str(good), bucket, "good.tif")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    run(good, "--output", f"s3://{bucket}/store").refused(1, f"s3://{bucket}/store", "check the credentials")
    run(f"s3://{bucket}/good.tif").refused(1, f"s3://{bucket}", "check the credentials")
    outcome = run(f"s3://{bucket}/in/")
    outcome.refused(1, "the credentials must be valid", "AWS_SECRET_ACCESS_KEY")
    assert "wrong" not in outcome.err.replace("wrong_credentials", "")
    assert not (tmp_path / "store").exists()


def test_buckets_that_do_not_exist(run, good: Path, s3, tmp_path: Path) -> None:
    del s3  # its variables are set
    run(good, "--output", "s3://no-such-bucket/store").refused(1, "the bucket must exist", "create it")
    run("s3://no-such-bucket/in/").refused(1, "the bucket must exist", "correct the name")
    assert not (tmp_path / "store").exists()


# -- models that fail -------------------------------------------------------------------------------------------------


def with_trouble(class_id: int) -> TruthScene:
    """A scene of which only the last corner shows an object of the class at which the model fails."""
    scene = make_scene("nuclei", 150, class_id)
    labels, classes = scene.labels_HW.copy(), scene.class_ids.copy()
    labels[140:, 140:] = len(classes)
    return TruthScene("", 0, labels, np.append(classes, class_id).astype(np.int32), scene.categories)


def test_a_model_that_fails_on_a_tile(tmp_path: Path) -> None:
    """It raises, gives NaN, or an unknown class: those tiles are counted and named, all others are committed."""
    troubles = {"raises": RAISES, "nans": NANS, "unknown": UNKNOWN}
    truths = {name: with_trouble(class_id) for name, class_id in troubles.items()}
    truths["sound"] = make_scene("nuclei", 150, 3)
    paths = [paint_scene(scene, tmp_path / f"{name}.tif") for name, scene in truths.items()]
    summary = segment(tmp_path / "store", *paths, model="tests.models_for_tests:failing", tile=80, overlap=20)
    assert summary.exit_code == 3
    record = summary.record
    assert record["counts"]["failed_scenes"] == 0
    assert record["counts"]["tiles_failed"] == 3
    failed = {f["scene_id"]: f for f in record["failed_tiles"]}
    assert {(f["row"], f["col"]) for f in failed.values()} == {(2, 2)}
    assert "does not like what it sees" in failed["raises"]["error"]
    assert "scores must be finite" in failed["nans"]["error"]
    assert "class ids must be those of the model" in failed["unknown"]["error"]
    assert {row["num_failed_tiles"] for row in scenes(tmp_path / "store").values()} == {0, 1}
    rows = features(tmp_path / "store")
    assert_is_truth(of_scene(rows, "sound"), truths["sound"])
    for name in troubles:
        labels = truths[name].labels_HW
        unseen = set(np.unique(labels[70:, 70:]).tolist())  # the failed tile's window is the last 80 pixels
        whole = set(range(1, truths[name].num_objects + 1)) - unseen
        assert len(whole) <= len(of_scene(rows, name)) < truths[name].num_objects
        areas = of_scene(rows, name)["area_px"].to_pylist()
        for label in whole:
            assert float((labels == label).sum()) in areas
    assert "failed    tile (2, 2) of nans in decode" in summary.text


BROKEN = {
    "size": (SIZE, "masks must fit (80, 80), got (79, 80)"),
    "copies": (COPIES, "at most 100 objects may lie over one pixel, got 5000"),
    "tensors": (TENSORS, "scores must be a numpy array of numbers, got Tensor"),
    "negative": (NEGATIVE, "labels must be at least 0"),
    "logits": (LOGITS, "mask probabilities must lie in 0..1, got 3"),
}


def test_a_model_that_breaks_its_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [paint_scene(with_trouble(c), tmp_path / f"{name}.tif") for name, (c, _) in BROKEN.items()]
    arguments = ["--model", "tests.spoiled_models:broken", "--tile", "80", "--overlap", "20", "--overview", "0"]
    store = tmp_path / "store"
    assert cli.main(["run", *map(str, paths), *arguments, "--output", str(store)]) == 3
    text = capsys.readouterr().out
    (run_id,) = {row["run_id"] for row in scenes(store).values()}
    record = json.loads((store / "runs" / run_id / "run.json").read_text())
    assert record["counts"]["tiles_failed"] == len(BROKEN) == len(record["failed_tiles"])
    for failed in record["failed_tiles"]:
        assert BROKEN[failed["scene_id"]][1] in failed["error"]
        assert (failed["row"], failed["col"]) == (2, 2)
        assert f"tile (2, 2) of {failed['scene_id']} in {failed['stage']}" in text
    assert {row["num_failed_tiles"] for row in scenes(store).values()} == {1}


def test_what_a_model_adds_without_a_pixel_or_twice_makes_no_difference(tmp_path: Path) -> None:
    """Empty masks, masks far outside of the window, and every object three times."""
    truths = {name: with_trouble(c) for name, c in {"empty": EMPTY, "outside": OUTSIDE, "twice": TWICE}.items()}
    paths = [paint_scene(scene, tmp_path / f"{name}.tif") for name, scene in truths.items()]
    summary = segment(tmp_path / "store", *paths, model="tests.spoiled_models:odd", tile=80, overlap=20)
    assert summary.exit_code == 0, summary.text
    rows = features(tmp_path / "store")
    for name, scene in truths.items():
        assert_is_truth(of_scene(rows, name), scene)


def test_too_many_failed_tiles_fail_the_run(run, tmp_path: Path) -> None:
    path = paint_scene(with_trouble(RAISES), tmp_path / "raises.tif")
    flags = ["--model", "tests.models_for_tests:failing", "--tile", "80", "--overlap", "20"]
    run(path, *flags, "--max-failed-tiles", "0").refused(1, "at most 0 failed tiles are allowed, got 1 of 9")
    assert not (tmp_path / "store" / FEATURES_TABLE).exists()
    assert run(path, *flags, "--max-failed-tiles", "50%").code == 3
    summary_of = scenes(tmp_path / "store")["raises"]
    assert summary_of["num_failed_tiles"] == 1


def test_failed_tiles_alone_are_tried_again(tmp_path: Path) -> None:
    """After an incomplete run the same command predicts what is missing, and nothing else."""
    path = paint_scene(with_trouble(RAISES), tmp_path / "raises.tif")
    options = {"model": "tests.models_for_tests:failing", "tile": 80, "overlap": 20}
    first = segment(tmp_path / "store", path, **options)
    again = segment(tmp_path / "store", path, **options)
    assert (first.exit_code, again.exit_code) == (3, 3)
    assert again.record["counts"]["tiles_failed"] == 1
    assert again.record["counts"]["tiles_reused"] == first.record["counts"]["tiles_predicted"] == 8
    assert again.record["counts"]["bytes_read"] < first.record["counts"]["bytes_read"]
    assert len(scenes(tmp_path / "store")) == 1
