"""Trying again what the object store's client does not: requests that may have been done although nobody answered.

The clients (obstore, deltalake) retry refusals (503, 500, 429) by themselves, and lost connections where a repetition
is harmless in general: reads and plain puts. They do not repeat a conditional put, a bulk delete, the end of a
multipart upload, or a listing that ends in the middle, because only the caller can know what a repetition means.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from deltalake.exceptions import DeltaError
from obstore.exceptions import BaseError

TRIES = 6
FAILURES = (BaseError, DeltaError, OSError)
"What obstore and deltalake raise."
_T = TypeVar("_T")
_LOST = re.compile(r"HTTP error")
_RETRIED = re.compile(r"after [1-9]\d* retries")


def is_lost(error: BaseException) -> bool:
    """Whether a request had no whole answer: it may have been done or not. Not what its client tried often already."""
    text = str(error)
    return bool(_LOST.search(text)) and not _RETRIED.search(text)


def pause(tries: int) -> None:
    """Wait before another try; longer after more of them."""
    time.sleep(random.uniform(0, min(5.0, 0.2 * 2**tries)))  # noqa: S311 - spreads requests, no secret


def retried(request: Callable[[], _T]) -> _T:
    """Return what a request returns that may be repeated, trying again where its answer was lost."""
    for tries in range(TRIES - 1):
        try:
            return request()
        except FAILURES as error:
            if not is_lost(error):
                raise
        pause(tries)
    return request()
