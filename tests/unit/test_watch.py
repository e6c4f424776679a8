"""The time limit ends a process that hangs, whatever it hangs in, and no other."""

import subprocess
import sys

import pytest

BODY = """
import ctypes, time
from segworker.engine.watch import time_limit
with time_limit(60):
    pass
with time_limit({limit}):
    {body}
print("done")
"""


@pytest.mark.parametrize("body", ["time.sleep(100)", "ctypes.PyDLL(None).sleep(100)"])
def test_a_process_that_hangs_ends(body: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BODY.format(limit=0.5, body=body)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 1
    assert "Timeout (0:00:00.500000)!" in done.stderr
    assert "line 7 in <module>" in done.stderr, "where it was"


def test_a_process_that_is_in_time_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BODY.format(limit=50, body="time.sleep(0.01)")],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n")
