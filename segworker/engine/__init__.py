"""The engine: the only place that imports ray. It can `plan` a run, `run` it, and `stitch` its tile results again."""

from segworker.engine.restitch import stitch
from segworker.engine.retry import retry
from segworker.engine.run import RunSummary, run
from segworker.engine.survey import PlanSummary, plan

__all__ = ["PlanSummary", "RunSummary", "plan", "retry", "run", "stitch"]
