"""How a run ended, and its report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from langgraph.constants import START

from . import _clock
from ._cut import Step
from ._journal import steps_around
from ._measured import cause_not_enforced
from ._run import Run
from ._seen import SeenCall
from .errors import Cause, DeadlineExceeded
from .report import Cancellations, Outcome, RunReport, StepReport, Usage
from .runs import collectors


def finish(run: Run, error: BaseException | None = None) -> None:
    """End `run`, and give its report to whoever collects or observes it."""
    run.finish()
    if not run.implicit and run.journal is not None:
        ending = Ending(run, error)
        if run.last is not None:
            run.last.ending = ending
        lists = collectors()
        if lists or run.journal.heard:
            report = ending.report()
            for runs in lists:
                runs.append(report)
            if run.journal.stream is not None:
                run.journal.stream.closed()
            _tell(run, report)
    run.let_go()


def _tell(run: Run, report: RunReport) -> None:
    assert run.journal is not None  # noqa: S101 - its caller looked
    if not report.enforced and report.cut_at is not None and report.cause is not None:
        at = run.started + report.cut_at
        run.journal.cut(report.cause, report.cut_step, at)
    run.journal.ended(report)


class LastRun:
    """Where a graph keeps how its last run ended; copies of the graph share it."""

    __slots__ = ("ending",)

    def __init__(self) -> None:
        self.ending: Ending | None = None

    # A graph that is copied for good, or pickled, has had no run.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class Ending:
    """The end of a run, of which a report is made when it is asked for."""

    __slots__ = ("_at", "_error", "_outcome", "_report", "_run", "_wall")

    def __init__(self, run: Run, error: BaseException | None) -> None:
        self._run: Run | None = run
        self._at = _clock.now()
        self._wall = _clock.wall()
        self._outcome: Outcome = outcome_of(run, error)
        # Not the error itself: its traceback would keep the caller's frames.
        self._error: Cause | None = (
            error.cause if isinstance(error, DeadlineExceeded) else None
        )
        self._report: RunReport | None = None

    def report(self) -> RunReport:
        """Return the run's report, the same one every time."""
        run = self._run
        if run is not None:
            self._report = self._made(run)
            self._run = None
        assert self._report is not None  # noqa: S101 - made above, once
        return self._report

    def _made(self, run: Run) -> RunReport:
        journal = run.journal
        assert journal is not None  # noqa: S101 - runs without one have no ending
        steps = _steps_of(run, self._at)
        cut_at = None if journal.cut_at is None else journal.cut_at - run.started
        cause = run.cause if run.touched else None
        if self._outcome == "deadline" and cause is None:
            cause = self._error or "deadline"
        if not run.policy.enforce:
            cause, cut_at = _not_enforced(run, steps, self._at)
        return RunReport(
            id=run.details().id,
            parent=run.details().parent,
            name=run.name,
            started=datetime.fromtimestamp(self._wall - self._at + run.started, UTC),
            outcome=self._outcome,
            cause=cause,
            cut_step=run.cut_step if run.touched else None,
            cut_at=cut_at if cause is not None else None,
            budget=run.budget,
            reserve=run.reserve,
            spent_before=run.spent,
            elapsed=self._at - run.started + run.spent,
            interrupted=run.interrupted,
            enforced=run.policy.enforce,
            steps=steps,
            stragglers=run.stragglers,
            unknown=[call.report() for call in run.unknown],
            cancellations=journal.cancellations or Cancellations(),
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


def _usage_of(run: Run) -> Usage:
    """Return what `run` used: as its limits counted it, or else as it was noted."""
    if run.ledger is not None and run.policy.limits is not None:
        return Usage(**run.ledger.usage())
    assert run.journal is not None  # noqa: S101 - its caller looked
    usage, known = Usage(), [0, 0]
    for step in run.journal.steps:
        if step.refused:
            continue
        if step.kind == "tool":
            usage.tool_calls += max(getattr(step, "attempts", 1), 1)
        elif step.kind == "model":
            usage.model_calls += 1
            call = step.call if isinstance(step, Step) else step
            prompt, answer = call.used if call is not None else (None, None)
            if prompt is None or answer is None:
                usage.unreported += 1
            known[0] += prompt or 0
            known[1] += answer or 0
        elif isinstance(step, Step) and _counts(run, step):
            usage.steps += 1
    if usage.unreported == 0 or any(known):
        usage.input_tokens, usage.output_tokens = known
    return usage


def _counts(run: Run, step: Step) -> bool:
    """Return whether `step` is one of the run's work, not of its fallback."""
    if step.kind not in ("node", "task") or step.name == START:
        return False
    last = run.cut_superstep
    for around in (step, *steps_around(step)):
        led = around.run is run and last is not None and around.superstep > last
        if led or around.kind == "fallback":
            return False
    return True


# Steps.


def _steps_of(run: Run, end: float) -> list[StepReport]:
    """Return the entries of what was done in `run`, by their start."""
    assert run.journal is not None  # noqa: S101 - its caller looked
    logged = list(enumerate(run.journal.steps))
    logged.sort(key=lambda entry: (entry[1].began, entry[1].number))
    places = {step.number: place for place, (_, step) in enumerate(logged)}
    entries: list[StepReport] = []
    for at, step in logged:
        around = next(
            (s for s in steps_around(step) if s.number in places),
            None,
        )
        entry = _entry(run, step, at, end)
        entry.parent = places[around.number] if around is not None else None
        entries.append(entry)
    for straggler in run.stragglers:
        straggler.step = places.get(straggler.number)
    return entries


def _entry(run: Run, step: Step | SeenCall, at: int, end: float) -> StepReport:
    ended = step.ended if step.ended is not None else end
    entry = StepReport(
        name=step.name,
        kind=step.kind,
        start=step.began - run.started,
        end=ended - run.started,
        share=(ended - step.began) / run.budget if run.budget else None,
        refused=step.refused,
        error=step.error,
    )
    if isinstance(step, SeenCall):
        _fill_call(run, step, entry)
    else:
        _fill_step(run, step, entry, at)
    if entry.cause is not None and run.policy.enforce:
        entry.error = None  # how the cut came to it
    return entry


def _fill_call(run: Run, call: SeenCall, entry: StepReport) -> None:
    cut = call.cut()
    if cut is not None:
        entry.cause, entry.cut_at = cut[0], cut[1] - run.started
    if call.guard is not None:
        entry.retries = max(call.guard.attempts - 1, 0)
        entry.limit = call.guard.limit
        entry.window = call.guard.needs or None
    entry.tokens = call.tokens()
    call.reported(entry)


def _fill_step(run: Run, step: Step, entry: StepReport, at: int) -> None:
    entry.limit = step.limit
    entry.window = step.needs or None
    entry.retries = max(step.attempts - 1, 0)
    entry.cause = step.cut
    if step.call is not None:
        entry.tokens = step.call.tokens()
        step.call.reported(entry)
    if step.cut is not None:
        entry.cut_at = (step.cut_at or step.began) - run.started
    elif not run.policy.enforce:
        entry.cause, entry.cut_at = cause_not_enforced(run, step, at)


# Runs that only measure.


def _not_enforced(
    run: Run, steps: list[StepReport], end: float
) -> tuple[Cause | None, float | None]:
    """Return why and when the run would have been cut (in seconds since the start)."""
    # What a step's `otherwise` stands in for does not end the run.
    spared = {n for n, budget in run.policy.steps.items() if budget.has_otherwise}
    found: list[tuple[float, Cause]] = [
        (step.cut_at, step.cause)
        for step in steps
        if step.cut_at is not None
        and step.cause is not None
        and not (step.cause == "step" and step.name in spared)
    ]
    if run.bounded and end > run.work:
        found.append((run.work - run.started, "deadline"))
    if not found:
        return None, None
    at, cause = min(found)
    return cause, at
