"""Calling remote functions: a bounded number at a time, results in order, failures in a user's words."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from segworker.engine.cluster import cluster_resources
from segworker.errors import SegworkerError

MAX_IN_FLIGHT = 4
"Tasks submitted for each CPU."
_log = logging.getLogger(__name__)


def in_order(  # a remote function has no public type
    function: Any,  # noqa: ANN401
    arguments: Iterable[tuple[Any, ...]],
    *,
    what: str,
    num_returns: int = 1,
) -> Iterator[Any]:
    """Call a remote function with each of the arguments, a bounded number at a time; yield results in order.

    Args:
        function: a remote function.
        arguments: taken one by one, as calls finish: what they hold need not be there before, nor afterwards.
        what: names the step in errors.
        num_returns: of the function. Of several results the first is fetched, the others are references.

    Raises:
        SegworkerError: what a call raised, or that it could not be finished after its retries.
    """
    limit = max(2, MAX_IN_FLIGHT * int(cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    for argument in arguments:
        pending.append(function.remote(*argument))
        if len(pending) == limit:
            yield _result(pending.popleft(), num_returns, what)
    while pending:
        yield _result(pending.popleft(), num_returns, what)


def _result(reference: Any, num_returns: int, what: str) -> Any:  # noqa: ANN401 - whatever the task returns
    try:
        return ray.get(reference) if num_returns == 1 else (ray.get(reference[0]), *reference[1:])
    except RayError as error:
        raise _told(error, what) from None


def _told(error: RayError, what: str) -> SegworkerError:
    """Return what a failed call tells: the error that was raised in it, or why it could not be finished."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, SegworkerError):
        return cause
    _log.error("%s failed: %s", what, error)  # with the traceback from the worker
    return SegworkerError(
        f"{what} must finish, got {type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''} after all "
        "retries; the tiles are durable: run the same command again, with more memory for each CPU where a worker was "
        "killed for it"
    )
