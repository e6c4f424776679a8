"""A process of its own for tiles that may kill theirs: it reads, predicts and decodes what it is told to.

`Child` is the parent's side. Children are forked from a server that has the imports done and has never computed
anything, so that one costs little more than the loading of the model.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from segworker.engine.cluster import Workers
from segworker.engine.job import BlockTask, Common
from segworker.engine.tiles import MAX_TRACE, BlockWork, TileFailure, decode_batch, read_block, skipped_results
from segworker.io.failures import redact_text
from segworker.io.shards import TileId, TileResult

GRACE_S = 300.0
"For a child that should have ended itself, or has a model to load."
TIMED_OUT = "Timeout ("
"What faulthandler writes when a time limit ends a process."
Read: TypeAlias = tuple[list[list[TileId]], list[TileResult], list[TileFailure], int]
"Tile ids of the planned batches, results of tiles without data, failures, bytes read."


class ChildDied(Exception):
    """The process ended or gave no answer. `timed_out`: it, or its parent, ended it at the time limit."""

    def __init__(self, reason: str, trace: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.trace, self.timed_out = trace, timed_out


@dataclass(frozen=True, slots=True)
class _Raised:
    """An exception that the child's work raised, as text: what a model raises may not pickle."""

    reason: str
    trace: str


class Child:
    """A running child. A call that raises ChildDied is its last."""

    def __init__(self, common: Common, workers: Workers) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "segworker.engine.predictor"])
        handle, name = tempfile.mkstemp(prefix="segworker-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._limit_s = common.tile_timeout_s
        self._sizes: list[int] = []
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, name, common, workers), daemon=True)
        self._process.start()
        other.close()
        self._answer(GRACE_S + self._limit_s)  # the model is loaded

    def read(self, task: BlockTask, wanted: Sequence[TileId]) -> Read:
        """Read tiles and keep their pixels."""
        answer: Read = self._call("read", task, wanted, num_limits=len(wanted) + 1)
        self._sizes = [len(batch) for batch in answer[0]]
        return answer

    def predict(self, number: int) -> tuple[list[TileFailure], int]:
        """Predict a batch of those read; return the tiles of which the model raised, and how many calls were halved."""
        answer: tuple[list[TileFailure], int] = self._call("predict", number, num_limits=2 * self._sizes[number] + 1)
        return answer

    def decode(self, number: int) -> tuple[list[TileResult], list[TileFailure]]:
        """Return the results of a predicted batch, and failures."""
        answer: tuple[list[TileResult], list[TileFailure]] = self._call(
            "decode", number, num_limits=self._sizes[number]
        )
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._pipe.close()
        self._process.kill()
        self._process.join(GRACE_S)
        self._log.unlink(missing_ok=True)

    def _call(self, name: str, *arguments: object, num_limits: int) -> Any:  # noqa: ANN401 - see the callers
        try:
            self._pipe.send((name, *arguments))
        except OSError:
            raise self._died() from None
        return self._answer(GRACE_S + num_limits * self._limit_s)

    def _answer(self, seconds: float) -> Any:  # noqa: ANN401 - whatever the child sends
        """Return the child's answer. It keeps its own time; this limit is for one that cannot even end itself."""
        try:
            if not self._pipe.poll(seconds):
                raise self._died(timed_out=True)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(answer, _Raised):
            self.close()
            raise ChildDied(answer.reason, answer.trace)
        return answer

    def _died(self, *, timed_out: bool = False) -> ChildDied:
        if not timed_out:
            self._process.join(GRACE_S)
        said = _said(self._log)
        code = self._process.exitcode
        self.close()
        if timed_out or (code == 1 and TIMED_OUT in said):
            return ChildDied(
                f"no answer within {self._limit_s:g} s (--tile-timeout)", said[-MAX_TRACE:], timed_out=True
            )
        return ChildDied(_ending(code), said[-MAX_TRACE:])


def _said(log: Path) -> str:
    """Return what a process has said, without the list of its modules that faulthandler ends with."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return redact_text("\n".join(line for line in lines if not line.startswith("Extension modules:")))


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the process ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"the process was ended by {name}{' (out of memory, perhaps)' if name == 'SIGKILL' else ''}"


def _serve(pipe: Connection, log: str, common: Common, workers: Workers) -> None:
    """The child's side: load the model, then answer calls until the pipe is closed."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    faulthandler.enable(file=handle)
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes and no other
    try:
        worker = _Worker(common, workers)
        pipe.send(None)
        while True:
            name, *arguments = pipe.recv()
            pipe.send(getattr(worker, name)(*arguments))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        failure = TileFailure.of(("", 0, 0), "load", error)
        with suppress(OSError):  # the parent is gone
            pipe.send(_Raised(failure.error, failure.trace))


class _Worker:
    """What the child can do."""

    def __init__(self, common: Common, workers: Workers) -> None:
        from segworker.engine.predictor import Predictor

        self.common = common
        self.predictor = Predictor(
            common.model,
            precision=workers.precision,
            device=workers.device,
            threads=workers.threads,
            tile_timeout_s=common.tile_timeout_s,
        )
        self.work: BlockWork | None = None

    def read(self, task: BlockTask, wanted: Sequence[TileId]) -> Read:
        self.work = work = read_block(task, self.common, wanted)
        return [b.tile_ids for b in work.batches], skipped_results(work), work.failures, work.bytes_read

    def predict(self, number: int) -> tuple[list[TileFailure], int]:
        assert self.work is not None
        before = self.predictor.num_halved
        failures = self.predictor.predict_batch(self.work.batches[number])
        return failures, self.predictor.num_halved - before

    def decode(self, number: int) -> tuple[list[TileResult], list[TileFailure]]:
        assert self.work is not None
        return decode_batch(self.work.batches[number], self.work.task, self.common)
