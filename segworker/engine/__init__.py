"""The engine: the only place that imports ray. `plan` says what a run would do, `run` does it."""

from segworker.engine.run import RunSummary, run
from segworker.engine.survey import PlanSummary, plan

__all__ = ["PlanSummary", "RunSummary", "plan", "run"]
