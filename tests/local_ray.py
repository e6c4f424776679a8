"""A Ray for tests, on machines that may be busy."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any


def start_ray(**options: Any) -> None:
    """Start a Ray on this machine, again where it does not come up within the 30 seconds that it gives itself."""
    import ray

    for last in (False, False, True):
        before = _children()
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
        except Exception as error:
            for pid in _children() - before:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if last or "timed out during startup" not in str(error):
                raise
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # Ray drops its daemons without waiting for them
                del error
                gc.collect()
        else:
            return


def _children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
