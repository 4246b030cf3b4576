"""What follows when a step was cut, was refused, or ran out of a limit of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langgraph.errors import GraphBubbleUp
from langgraph.types import RetryPolicy

from . import _clock
from ._cut import Step
from ._langgraph import back_off
from ._run import Run
from .errors import DeadlineExceeded, NoTimeToRetry, RunCut
from .policy import StepBudget

Verdict = Literal["otherwise", "fail", "route", "return", "raise"]
"""Use the step's `otherwise`; raise for the node's own error handler; go to the
fallback; end with the state so far; or end the run with an error."""


def caught(run: Run, step: Step, error: DeadlineExceeded) -> DeadlineExceeded | None:
    """Sort an error that a step's body raised; return it if it is the body's own.

    A body that finds by itself that the run's time is up (`check`, a callback) is cut
    like any other.
    """
    if isinstance(error, NoTimeToRetry):
        step.error = type(error.__cause__).__name__
        return error
    if isinstance(error, RunCut) and step.binding is step and step.at <= _clock.now():
        step.cut = (
            step.cut or "step"
        )  # told by a run inside, but it is the step's limit
    if isinstance(error, RunCut) and run.phase == "working" and step.cut != "step":
        run.cut(error.cause, step.name)
    if step.cut is None and not isinstance(error, RunCut):
        failed(step, error)
        return error
    step.cut = step.cut or error.cause
    return None


def failed(step: Step, error: Exception) -> None:
    """Note a step's own error, for the report."""
    if not isinstance(error, GraphBubbleUp):
        step.error = type(error).__name__


def check_retry(
    run: Run,
    step: Step,
    policies: Sequence[RetryPolicy],
    error: Exception,
    attempt: int,
) -> None:
    """Stop a failed step whose next attempt would not begin in time.

    Raises:
        RunCut: If the step was cut meanwhile.
        NoTimeToRetry: If the rest of its time does not cover the back-off.
    """
    if (cause := step.cause_of_cut()) is not None:
        raise run.error(step=step.name, cause=cause) from error
    if isinstance(error, GraphBubbleUp) or not policies:
        return
    sleep = back_off(policies, error, attempt)
    if sleep is None:
        return
    budget = run.policy.steps.get(step.name)
    needed = budget.needs if budget is not None else 0.0
    left = step.at - _clock.now() - sleep
    if left <= 0 or left < needed:
        own = step.binding is step
        raise NoTimeToRetry(
            cause="step" if own else "deadline" if left <= 0 else "window",
            step=step.name,
            budget=step.limit if own else run.budget,
            elapsed=_clock.now() - (step.began if own else run.started),
            remaining=left + sleep,
            needed=sleep + needed,
        ) from error


def decide(
    run: Run,
    step: Step,
    budget: StepBudget,
    error: DeadlineExceeded | None,
    *,
    handled: bool,
) -> Verdict:
    """Decide what follows, and cut the run if nobody nearer to the step has an answer.

    Args:
        run: The run.
        step: The step, cut or refused, or whose body raised `error`.
        budget: The step's budget, which may say what to use `otherwise`.
        error: What the body raised by itself, if it did.
        handled: Whether the node has an error handler.
    """
    cause = error.cause if error is not None else step.cut
    if run.phase == "working" and cause is not None:
        if budget.has_otherwise:
            return "otherwise"
        # Of a graph inside it is for the run around it to say so.
        out_of_time = isinstance(error, NoTimeToRetry) and not run.implicit
        if handled or (error and run.mode != "fallback" and not out_of_time):
            return "fail"
        if error and run.mode == "raise":
            run.ends_with_error_of(step, cause)
            return "fail"
        run.cut(cause, step.name)
    run.touched = True
    if run.cut_superstep is None:
        run.cut_superstep = step.superstep
    if run.phase == "falling back":
        return "route"
    return "return" if run.mode == "return" else "raise"


def failure_of(run: Run, step: Step) -> DeadlineExceeded:
    """Return the error of a step that ran out of its own limit, or was refused."""
    if step.cut == "window":
        return DeadlineExceeded(cause="window", **_window_of(run, step))
    return step.exceeded(step.at - _clock.now(), None, step.cut)


def _window_of(run: Run, step: Step) -> dict[str, Any]:
    budget = run.policy.steps.get(step.name)
    return {
        "step": step.name,
        "remaining": max(run.work - step.began, 0.0),
        "needed": budget.needs if budget is not None else None,
    }


def _without_fallback(run: Run, step: Step, error: DeadlineExceeded) -> RunCut:
    """Return the error of a run whose fallback needs more than there is."""
    left = max(run.deadline - step.began, 0.0)
    happened = str(run.error()).partition(". ")[0]
    return RunCut(
        f"{happened}, and its fallback {step.name!r} was not started: it needs "
        f"{step.needs:g} s and {left:.3g} s are left. Raise `reserve`, or lower the "
        "fallback's `needs`",
        cause=error.cause,
        step=step.name,
        budget=error.budget,
        elapsed=error.elapsed,
        remaining=left,
        needed=step.needs,
    )


def end_of(run: Run, step: Step) -> DeadlineExceeded:
    """Return the error that ends `run` because of `step`."""
    error = run.error(step=step.name)
    if step.cut == "window" and step.name == run.fallback:
        return _without_fallback(run, step, error)
    if error.cause == "step" and step.limit is not None:
        return RunCut(
            cause="step",
            step=step.name,
            budget=step.limit,
            elapsed=(step.ended or _clock.now()) - step.began,
            remaining=error.remaining,
        )
    if error.cause == "window":
        return RunCut(cause="window", **_window_of(run, step))
    return error
