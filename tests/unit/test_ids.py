"""Feature ids and the ledger of scene numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segworker.errors import StorageError, StoreError
from segworker.io.ids import (
    MAX_FEATURES_PER_SCENE,
    MAX_SCENES,
    feature_ids,
    format_ranges,
    parse_ranges,
    read_scene_numbers,
    reserve_scene_numbers,
    scene_numbers_of,
)
from segworker.io.storage import open_storage


@given(st.integers(0, MAX_SCENES - 1), st.lists(st.integers(0, MAX_FEATURES_PER_SCENE - 1)))
def test_ids_tell_their_scene_and_fit_a_double(scene_no: int, indices: list[int]):
    ids = feature_ids(scene_no, np.array(indices, np.int64))
    assert scene_numbers_of(ids).tolist() == [scene_no] * len(ids)
    assert [int(float(i)) for i in ids] == ids.tolist()
    assert all(i < 2**53 for i in ids.tolist())


@pytest.mark.parametrize(("scene_no", "index"), [(MAX_SCENES, 0), (-1, 0), (0, MAX_FEATURES_PER_SCENE), (0, -1)])
def test_ids_out_of_range(scene_no: int, index: int):
    with pytest.raises(StoreError):
        feature_ids(scene_no, np.array([index]))


@given(st.sets(st.integers(0, 60)))
def test_ranges_come_back(numbers: set[int]):
    assert parse_ranges(format_ranges(np.array(sorted(numbers), np.int64))).tolist() == sorted(numbers)


def test_ranges_are_short():
    assert format_ranges(np.arange(5000)) == "0-4999"
    assert format_ranges(np.array([1, 3, 4])) == "1,3-4"


def test_a_damaged_ledger_is_named(tmp_path: Path):
    storage = open_storage(tmp_path)
    reserve_scene_numbers(storage, ["a"])
    reserve_scene_numbers(storage, ["b"])
    storage.write("ids/00000001.json.gz", b"no gzip")
    with pytest.raises(StoreError, match="restore the folder"):
        read_scene_numbers(storage)
    storage.delete(["ids/00000000.json.gz"])
    with pytest.raises(StorageError, match="it must exist"):
        read_scene_numbers(storage)
