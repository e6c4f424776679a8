"""What changed between versions, of stores that were committed without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segworker import cli
from segworker.errors import ConfigError, StoreError
from segworker.io.compact import compact
from segworker.io.removal import delete_scenes
from segworker.io.storage import Storage, open_storage
from segworker.io.vacuum import list_old_files, remove_old_files
from segworker.query.diff import Change, diff
from tests.stores import commit_squares


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Version 1: a and b; 2: b other squares, c new; 3: a as it was; 4: joined files; 5: c deleted."""
    storage = open_storage(tmp_path / "store")
    commit_squares(storage, "r1", {"a": 30, "b": 20})
    commit_squares(storage, "r2", {"b": 25, "c": 4}, seed=1)
    commit_squares(storage, "r3", {"a": 30})
    compact(storage, "k1")
    delete_scenes(storage, "d1", ["c"])
    return storage


def test_each_step_is_told_by_scene_and_class(storage: Storage) -> None:
    step = diff(storage, 1, 2)
    assert step.changes == (
        Change("b", "house", 10, 13, 0),
        Change("b", "road", 10, 12, 0),
        Change("c", "house", 0, 2, 0),
        Change("c", "road", 0, 2, 0),
    )
    assert (step.new_scenes, step.gone_scenes) == (("c",), ())
    assert [(c.version, c.run_id) for c in step.commits] == [(2, "r2")]
    assert step.by_class() == [Change("", "house", 10, 15, 0), Change("", "road", 10, 14, 0)]


def test_a_scene_that_came_out_the_same_is_told_as_such(storage: Storage) -> None:
    step = diff(storage, 2, 3)
    assert step.changes == (Change("a", "house", 15, 15, 15), Change("a", "road", 15, 15, 15))
    assert [(c.new, c.gone) for c in step.changes] == [(0, 0), (0, 0)]


def test_files_that_are_only_written_anew_change_nothing(storage: Storage) -> None:
    step = diff(storage, 3, 4)
    assert step.changes == ()
    assert step.commits[0].run_id == "k1"


def test_from_before_the_first_to_the_newest(storage: Storage) -> None:
    whole = diff(storage, -1)
    assert (whole.start, whole.stop) == (-1, 5)
    assert {c.scene_id: c.after for c in whole.changes if c.class_name == "house"} == {"a": 15, "b": 13}
    assert diff(storage).start == 4, "the step before the newest, where nothing is said"
    assert diff(storage).gone_scenes == ("c",)


def test_a_time_stands_for_the_version_of_then(storage: Storage) -> None:
    assert diff(storage, "2020-01-01T00:00").start == -1
    assert diff(storage, -1, "2100-01-01").stop == 5


@pytest.mark.parametrize(
    ("start", "stop", "words"),
    [(9, None, "versions of this store are 0 to 5"), (3, 1, "swap them"), ("yesterday", None, "2026-11-24T18:00")],
)
def test_versions_that_make_no_sense_are_refused(storage: Storage, start, stop, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        diff(storage, start, stop)


def test_vacuumed_versions_and_no_store(storage: Storage, tmp_path: Path) -> None:
    remove_old_files(storage, list_old_files(storage, keep_s=0))
    with pytest.raises(StoreError, match="vacuumed"):
        diff(storage, 1)
    with pytest.raises(StoreError, match="has had a commit"):
        diff(open_storage(tmp_path / "nothing"))


def test_the_command(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diff", storage.uri, "--from", "1", "--to", "2", "--by-scene"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "version 1 to 2: 2 scenes committed"
    assert "b      house  10      13     13   10    0" in lines
    assert cli.main(["diff", storage.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gone_scenes"] == ["c"]
