"""A lock in a store: one of many gets it, the dead lose it, the overtaken notice."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from segworker.errors import LockedError
from segworker.io import lock as lock_module
from segworker.io.lock import locked
from segworker.io.storage import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store")


def hold_elsewhere(storage: Storage, *, released: bool = False) -> str:
    """Write the lock of a process of another machine."""
    path = "locks/nightly/00000000.json"
    told = {"holder": "night x", "place": "another machine", "process": "1 2", "released": released}
    storage.write(path, json.dumps(told).encode())
    return path


def test_one_at_a_time_then_the_next(storage: Storage) -> None:
    with locked(storage, "nightly", "night 1") as lock:
        assert lock.is_held()
        with pytest.raises(LockedError, match=r"night 1 at work.*wait for it"), locked(storage, "nightly", "night 2"):
            pass
        assert lock.is_held()
    with locked(storage, "nightly", "night 3") as third:
        assert third.number == lock.number + 1
    assert [info.path for info in storage.list("locks")] == ["locks/nightly/00000001.json"], "older ones are removed"


def test_a_failure_releases_it(storage: Storage) -> None:
    with pytest.raises(RuntimeError), locked(storage, "nightly", "night 1"):
        raise RuntimeError
    with locked(storage, "nightly", "night 2"):
        pass


def test_of_many_takers_one_gets_it(storage: Storage) -> None:
    outcomes, start, all_tried = [], threading.Barrier(8), threading.Barrier(8)

    def take() -> None:
        start.wait()
        try:
            with locked(storage, "nightly", "night"):
                outcomes.append("held")
                all_tried.wait(30)
        except LockedError:
            outcomes.append("refused")
            all_tried.wait(30)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 7]


def test_a_holder_elsewhere_expires(storage: Storage) -> None:
    hold_elsewhere(storage)
    with pytest.raises(LockedError, match="night x at work"), locked(storage, "nightly", "me", expiry_s=60):
        pass
    with locked(storage, "nightly", "me", expiry_s=0) as lock:
        assert lock.number == 1


def test_a_holder_here_that_died_loses_it_at_once(storage: Storage) -> None:
    path = hold_elsewhere(storage)
    place, _ = lock_module.this_process() or ("", "")
    told = json.loads(storage.read(path)) | {"place": place, "process": "999999999 1"}
    storage.write(path, json.dumps(told).encode())
    with locked(storage, "nightly", "me") as lock:
        assert lock.number == 1
        assert lock.is_held()


def test_who_stood_still_notices(storage: Storage) -> None:
    with locked(storage, "nightly", "slow") as lock:
        storage.write("locks/nightly/00000001.json", b"{}")
        assert not lock.is_held()


def test_released_elsewhere_is_free(storage: Storage) -> None:
    hold_elsewhere(storage, released=True)
    with locked(storage, "nightly", "me") as lock:
        assert lock.number == 1
        assert lock.is_held()
