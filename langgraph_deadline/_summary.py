"""How a run ended, for its report."""

from __future__ import annotations

from . import _clock
from ._cut import Step
from ._run import Run
from .errors import Cause, DeadlineExceeded
from .report import Outcome, RunReport, StepReport, Usage, collectors


def finish(run: Run, error: BaseException | None = None) -> None:
    """End `run`, and give its report to whoever collects them here."""
    run.finish()
    if (lists := collectors()) and not run.implicit:
        report = report_of(run, error)
        for runs in lists:
            runs.append(report)
    run.let_go()


def report_of(run: Run, error: BaseException | None = None) -> RunReport:
    """Return the report of `run`, which ended with `error` or with a result."""
    outcome = outcome_of(run, error)
    cause = run.cause if run.touched else None
    if outcome == "deadline" and cause is None:
        cause = error.cause if isinstance(error, DeadlineExceeded) else "deadline"
    return RunReport(
        outcome=outcome,
        cause=cause,
        budget=run.budget,
        reserve=run.reserve,
        elapsed=_clock.now() - run.started + run.spent,
        interrupted=run.interrupted,
        steps=[_step_report(run, step, at) for at, step in enumerate(run.log)],
        stragglers=run.stragglers,
        unknown=[call.report() for call in run.unknown],
        usage=_usage_of(run),
    )


def outcome_of(run: Run, error: BaseException | None) -> Outcome:
    """Return how `run` ended; what passed its deadline is never a plain success."""
    if run.cause is not None and run.touched:
        if run.cause == "cancelled":
            return "cancelled"
        if run.cause in ("deadline", "step", "window"):
            return "deadline"
        return "limit"
    if error is not None and not isinstance(error, DeadlineExceeded):
        return "error"
    late = run.bounded and run.policy.enforce and _clock.now() >= run.deadline
    return "deadline" if late or error is not None else "completed"


def _usage_of(run: Run) -> Usage | None:
    """Return what `run` used, if it has a book of its own."""
    if run.ledger is None or (run.policy.limits is None and not run.logging):
        return None
    return Usage(**run.ledger.usage())


def _step_report(run: Run, step: Step, at: int) -> StepReport:
    ended = step.ended if step.ended is not None else _clock.now()
    return StepReport(
        name=step.name,
        kind=step.kind,
        start=step.began - run.started,
        end=ended - run.started,
        cause=step.cut or _cause_not_enforced(run, step, ended, at),
    )


def _cause_not_enforced(run: Run, step: Step, ended: float, at: int) -> Cause | None:
    """Return why `step` would have been cut, in a run that only measures."""
    if run.policy.enforce:
        return None
    if step.limit is not None and ended - step.began > step.limit:
        return "step"
    over = run.ledger.overdrawn if run.ledger is not None else None
    if over is not None and over[1] <= at:
        return over[0]
    return "deadline" if ended > run.work else None
