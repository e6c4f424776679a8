"""A lock with an expiry in a store: it spares double work, the commit keeps results right.

A lock is a chain of small objects `locks/<name>/<k>.json`. Who wants it creates the next k by a conditional put, which
one of many gets, and only where the newest holder has released it or is dead: its process is gone (on the machine where
it runs), or it has not refreshed its object for the time that the lock's taker allows. A holder that stood still, and
was taken over, notices at its next refresh.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from segworker.errors import LockedError, StorageError
from segworker.io.lease import DEAD_AFTER_S, REFRESH_S, is_running, this_process
from segworker.io.storage import Storage

LOCKS = "locks"


@dataclass(slots=True)
class Lock:
    """A lock that this process holds."""

    storage: Storage
    path: str
    name: str
    number: int
    text: dict[str, Any]

    def is_held(self) -> bool:
        """Whether nobody took it over."""
        return _newest(self.storage, self.name) == self.number

    def refresh(self, **changes: object) -> None:
        """Write the object again, so that it stays young."""
        self.storage.write(self.path, json.dumps(self.text | changes).encode())


@contextmanager
def locked(storage: Storage, name: str, holder: str, *, expiry_s: float = DEAD_AFTER_S) -> Iterator[Lock]:
    """Hold a lock.

    Args:
        storage: the store's root.
        name: of the lock.
        holder: who holds it, for the messages of others.
        expiry_s: a holder on another machine that has not refreshed its lock for this long counts as dead.

    Raises:
        LockedError: where somebody else holds it.
        StorageError: where the store cannot be written to.
    """
    lock = _taken(storage, name, holder, expiry_s)
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=(lock, stop, min(REFRESH_S, expiry_s / 4)), name="lock", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        stop.set()
        thread.join()
        with suppress(StorageError):  # it expires
            lock.refresh(released=True)


def _taken(storage: Storage, name: str, holder: str, expiry_s: float) -> Lock:
    """Take the lock over from a dead holder, or where it is free."""
    number = _newest(storage, name)
    if number >= 0:
        _refuse_held(storage, name, number, expiry_s)
    place, process = this_process() or ("", "")
    token = secrets.token_hex(8)  # tells two takers of one process and name apart
    text = {"holder": holder, "token": token, "place": place, "process": process, "released": False}
    path = _path(name, number + 1)
    if not storage.write_new(path, json.dumps(text).encode()) and not _is_mine(storage, path, text):
        raise LockedError(f"the lock {name!r} is held by one at a time, got another taker first; try again later")
    if _newest(storage, name) != number + 1:  # we looked long ago; the chain went on, and this link of it was removed
        storage.delete([path])
        raise LockedError(f"the lock {name!r} is held by one at a time, got another taker first; try again later")
    storage.delete(_path(name, old) for old in _numbers(storage, name) if old <= number)
    return Lock(storage, path, name, number + 1, text)


def _refuse_held(storage: Storage, name: str, number: int, expiry_s: float) -> None:
    path = _path(name, number)
    info = storage.head(path)
    if info is None:  # removed by a taker that is far ahead
        raise LockedError(f"the lock {name!r} is held by one at a time, got another taker first; try again later")
    try:
        text = json.loads(storage.read(path))
        released, holder = bool(text["released"]), str(text["holder"])
        place, process = str(text["place"]), str(text["process"])
    except (ValueError, KeyError, TypeError):
        released, holder, place, process = False, "an unreadable holder", "", ""
    age_s = time.time() - info.mtime_s
    here = this_process()
    local = here is not None and place == here[0]
    if released or (not is_running(process) if local else age_s > expiry_s):
        return
    raise LockedError(
        f"the lock {name!r} is held by one at a time, got {holder} at work in {storage.uri} (refreshed {age_s:.0f} s "
        f"ago); wait for it, or until its lock expires after {expiry_s:.0f} s without a refresh"
    )


def _is_mine(storage: Storage, path: str, text: dict[str, Any]) -> bool:
    """Whether the object is ours though the answer to the put that wrote it was lost."""
    return storage.head(path) is not None and bool(storage.read(path) == json.dumps(text).encode())


def _keep(lock: Lock, stop: threading.Event, every_s: float) -> None:
    while not stop.wait(every_s):
        with suppress(StorageError):  # the next refresh may work
            if not lock.is_held():
                return
            lock.refresh()


def _newest(storage: Storage, name: str) -> int:
    return max(_numbers(storage, name), default=-1)


def _numbers(storage: Storage, name: str) -> list[int]:
    names = (info.path.rpartition("/")[2].removesuffix(".json") for info in storage.list(f"{LOCKS}/{name}"))
    return [int(text) for text in names if text.isdecimal()]


def _path(name: str, number: int) -> str:
    return f"{LOCKS}/{name}/{number:08d}.json"
