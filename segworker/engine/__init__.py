"""The engine: the only place that imports ray. `plan` says what a run would do, `run` does it."""

import os

if not os.environ.get("RAY_ADDRESS"):
    # Ray reads this when it is imported. It would run every worker through `uv run` where the driver was, in a copy of
    # the working directory: slow, and it may ask the network. Within a cluster's job that is what the user asked for.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from segworker.engine.run import RunSummary, run
from segworker.engine.survey import PlanSummary, plan

__all__ = ["PlanSummary", "RunSummary", "plan", "run"]
