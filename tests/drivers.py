"""Runs in processes of their own, to be killed: each is forked from one process that has imported all there is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.painted import segment  # before ray: segworker.engine says how Ray starts its workers

TOKEN = "TOKEN_OF_A_TEST"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.drivers"])


@dataclass
class Driver:
    """A run that is at work elsewhere."""

    process: BaseProcess
    token: str
    "In the environment of the process and of all that it starts."
    errors: Path | None

    def outcome(self, timeout_s: float = 600) -> int:
        """Wait for the run and return its exit code, that of the command line; minus the signal that killed it."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError("a run takes longer than the test allows")
        return self.process.exitcode

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def told(self) -> str:
        """Return what the run wrote to stderr."""
        return self.errors.read_text() if self.errors else ""

    def others(self) -> list[int]:
        """Return the processes that the run started and that are still there."""
        return [pid for pid in processes(self.token) if pid != self.process.pid]


def start(
    store: str | Path,
    *scenes: str | Path,
    env: Mapping[str, str] | None = None,
    address: str | None = None,
    errors: Path | None = None,
    **options: Any,
) -> Driver:
    """Start a run in a process of its own.

    Args:
        store: as `segment`.
        scenes: as `segment`.
        env: variables of the process; its workers have them too if it starts a Ray of its own.
        address: of a Ray cluster, or 'local' for one of its own; default: the one that this process is in.
        errors: the file that gets its stderr.
        options: as `segment`.
    """
    import ray

    if address is None:
        address = ray.get_runtime_context().gcs_address
    token = uuid.uuid4().hex
    arguments = (str(store), [str(s) for s in scenes], address, {TOKEN: token, **(env or {})}, errors, options)
    process = _context.Process(target=_drive, args=arguments, daemon=True)
    process.start()
    return Driver(process, token, errors)


def wait_for(condition: Callable[[], object], *, timeout_s: float = 600, every_s: float = 0.02) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what the test waits for does not happen")
        time.sleep(every_s)


def processes(token: str) -> list[int]:
    """Return the processes that have a token in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _drive(
    store: str, scenes: list[str], address: str, env: dict[str, str], errors: Path | None, options: dict[str, Any]
) -> None:
    from segworker.cli import guarded

    os.environ.update(env)
    if errors is not None:
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    sys.exit(guarded(lambda: int(segment(store, *scenes, address=address, **options).exit_code)))
