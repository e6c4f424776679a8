"""Named moments at which a test lets the process die as `kill -9` does: no cleaning up, no last words.

`SEGWORKER_KILL_AT=NAME=MARKER` sends SIGKILL to the first process that reaches NAME, once it has written the file
MARKER, so that the test knows. Where MARKER is there already nothing happens: a task that is tried again goes on.
`SEGWORKER_STOP_AT` sends SIGSTOP instead, for tests of what happens at the same time. Several are separated by commas.
Without the variables a point costs two looks into the environment.
"""

from __future__ import annotations

import os
import signal

KILL_VARIABLE = "SEGWORKER_KILL_AT"
STOP_VARIABLE = "SEGWORKER_STOP_AT"
POINTS = (
    "planned",  # driver: the run is announced, nothing is done
    "predict",  # predictor: a block is about to be predicted
    "shard",  # task: a shard is durable, nobody knows yet
    "some-shards",  # driver: the first shard is known
    "link",  # task: in the first stitch pass
    "linked",  # driver: between the first and the second pass
    "cut",  # driver: between the pass over pixels and the polygons
    "part",  # task: a part is written, its COCO file is not
    "parts",  # driver: all parts are written, nothing is committed
    "rewritten",  # driver: files shared with other scenes are written anew, nothing is committed
    "features",  # driver: the features are committed, their scenes are not
    "scenes-file",  # driver: the scenes' rows are written, not committed
    "committed",  # driver: all is committed, run.json does not know
)


def reached(name: str) -> None:
    """Die or stop here, if this is a point that the test chose."""
    for variable, number in ((KILL_VARIABLE, signal.SIGKILL), (STOP_VARIABLE, signal.SIGSTOP)):
        chosen = os.environ.get(variable)
        if chosen:
            _signal_once(name, chosen, number)


def _signal_once(name: str, chosen: str, number: signal.Signals) -> None:
    assert name in POINTS, name
    marker = dict(pair.split("=", 1) for pair in chosen.split(",")).get(name)
    if marker is None:
        return
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    os.kill(os.getpid(), number)
