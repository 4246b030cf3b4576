"""Whether a step may start: there is time for it, and nothing forbids it."""

from __future__ import annotations

from . import _clock
from ._charges import charge_step
from ._cut import Step
from ._run import Run
from .errors import Cause

_CLOCK_SLACK = 1e-6
"""Timers may come this much early; a deadline that close has come (in seconds)."""


def admit(run: Run, step: Step, needs: float = 0.0) -> Cause | None:
    """Enter a step of `run` as active, or return why it must not start."""
    # First registered, then checked: a cut first notes its cause and then goes
    # through what is registered, so that one of the two sees the other.
    run.active[step] = None
    return _told(run, step, needs, _refusal(run, step, needs))


def admit_inside(run: Run, step: Step, needs: float = 0.0) -> Cause | None:
    """Enter a step inside another one, or return why it must not start."""
    run.active[step] = None
    return _told(run, step, needs, _refusal_inside(step, needs))


def _told(run: Run, step: Step, needs: float, cause: Cause | None) -> Cause | None:
    step.needs = needs
    if run.journal is not None:
        run.journal.entered(step, cause)
    return cause


def _refusal(run: Run, step: Step, needs: float) -> Cause | None:
    """Return why `step` must not start; its run is cut then, if it was not before."""
    now = _clock.now()
    cause: Cause = "deadline"
    if run.phase == "working":
        if not run.policy.enforce or now < run.work - _CLOCK_SLACK:
            left = run.work - now
            if left < needs and run.policy.enforce:
                return "window"
            over = None if run.ledger is None else charge_step(run, step)
            if over is None:
                return None
            cause = over
        if run.phase == "working":
            run.cut(cause, step.name)
    if run.phase == "falling back" and run.leads_from_fallback(step):
        if run.deadline - now < needs:
            run.end()
            return "window"
        if now < run.deadline - _CLOCK_SLACK:
            _begin_in_reserve(run, step)
            return None
        run.end()
    run.touched = True
    return run.cause or cause


def _begin_in_reserve(run: Run, step: Step) -> None:
    run.drained()
    step.extend(run.scope, run.policy.cancel_grace)
    if step.name == run.fallback:
        step.kind = "fallback"


def _refusal_inside(step: Step, needs: float) -> Cause | None:
    if (cause := step.cause_of_cut()) is not None:
        return cause
    left = step.at - _clock.now()
    if left > _CLOCK_SLACK and left >= needs:
        return None
    return "window" if left > _CLOCK_SLACK else "deadline"
