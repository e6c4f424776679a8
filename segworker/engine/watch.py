"""The time limit of a tile: a process that hangs, in native code too, ends itself."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End this process with exit code 1 if the body takes longer; every thread's traceback goes to stderr.

    The watch is a thread of faulthandler's, in C: it also ends a process whose native code holds the interpreter lock,
    which no thread of Python could. Not to be nested.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
