"""Calls of tools, models and functions: steps inside a node, or outside of any graph.

A call is guarded as a node is: it ends on time, whatever it does. Its limit is the
smaller of its own and what is left where it is made.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import _clock
from ._admission import admit_inside
from ._cut import AsyncStep, Inside, Step, SyncStep
from ._guard import in_thread, run_async, run_sync
from ._run import Run, RunScope, run_here
from ._scope import current
from .deadline import positive_seconds_of, seconds_of
from .errors import DeadlineExceeded, plain
from .policy import DeadlinePolicy
from .report import StepKind

Body = Callable[[], Any]
AsyncBody = Callable[[], Coroutine[Any, Any, Any]]

INNER_GRACE = 0.8
"""Share of the grace of the step around them that calls have to end by themselves."""


@dataclass(frozen=True, slots=True)
class CallLimit:
    """How long a call may take, and with how little it is not started (in seconds)."""

    seconds: float | None = None
    needs: float = 0.0

    @classmethod
    def checked(cls, seconds: Any, needs: Any) -> CallLimit:
        """Return the limit that a user asked for.

        Raises:
            ValueError: If there is no such limit; the message names the argument.
        """
        own = None if seconds is None else positive_seconds_of(seconds, "seconds")
        least = seconds_of(needs, "needs")
        if least < 0:
            msg = f"needs must not be negative, got {needs!r}"
            raise ValueError(msg)
        if own is not None and least > own:
            msg = f"needs ({least} s) must not exceed seconds ({own} s)"
            raise ValueError(msg)
        return cls(own, least)

    def within(self, around: CallLimit) -> CallLimit:
        """Return the tighter of two limits.

        Raises:
            ValueError: If together they let nothing start.
        """
        both = [s for s in (self.seconds, around.seconds) if s is not None]
        needs = max(self.needs, around.needs)
        return type(self).checked(min(both, default=None), needs)


NO_LIMIT = CallLimit()


def call_sync(
    name: str,
    kind: StepKind,
    limit: CallLimit,
    body: Body,
    on_step: Callable[[Step], None] | None = None,
) -> Any:
    """Return what `body` returns, in time; it runs in a thread that can be given up.

    Args:
        name: What the call is known by in errors and reports.
        kind: What is called.
        limit: The call's own limit.
        body: The call.
        on_step: Gets the call's step before it starts.

    Raises:
        DeadlineExceeded: If the call was cut or refused.
    """
    with entered(SyncStep, name, kind, limit, on_step) as (run, step):
        if step.cut is None:
            watched = is_watched(run, step)
            out = run_sync(run, step, body) if watched else _inline(step, body)
            if step.cut is None:
                return out
    raise error_of(run, step, limit)


async def call_async(
    name: str,
    kind: StepKind,
    limit: CallLimit,
    body: AsyncBody,
    on_step: Callable[[Step], None] | None = None,
) -> Any:
    """As `call_sync`, in a task that is cancelled."""
    with entered(AsyncStep, name, kind, limit, on_step) as (run, step):
        if step.cut is None:
            out = await run_async(run, step, body())
            if step.cut is None:
                return out
    raise error_of(run, step, limit)


def is_watched(run: Run, step: Step) -> bool:
    """Return whether somebody may cut `step`: else it needs no thread of its own."""
    return run.policy.enforce and (step.at < math.inf or run.guarded)


def _inline(step: Step, body: Body) -> Any:
    token = current.set(step)
    try:
        return body()
    finally:
        current.reset(token)


@contextmanager
def entered(
    of: type[Any],
    name: str,
    kind: StepKind,
    limit: CallLimit,
    on_step: Callable[[Step], None] | None = None,
) -> Generator[tuple[Run, Any]]:
    """Make the step of a call, known to the run and to the step it is made in."""
    with _run_of_call(name) as run:
        around = current.get()
        parent = around if around is not None and around.run is run else run.scope
        outer: Step | None = parent.step
        grace = outer.grace * INNER_GRACE if outer is not None else run.grace
        superstep = outer.superstep if outer is not None else 0
        step: Step = of(parent, name, kind, superstep, grace)
        if run.policy.enforce:
            step.tighten(limit.seconds)
        else:
            step.limit = limit.seconds
        inside = Inside(step)
        if on_step is not None:
            on_step(step)
        if outer is not None:
            outer.entered(inside)
        try:
            step.cut = step.cut or admit_inside(run, step, limit.needs)
            yield run, step
        except Exception as error:
            step.error = type(error).__name__
            raise
        finally:
            run.leave(step)
            if outer is not None:
                outer.left(inside)


@contextmanager
def _run_of_call(name: str) -> Generator[Run]:
    """Return the run that a call belongs to: outside of any, one for it alone."""
    around = current.get()
    if around is not None and around.run is not None:
        yield around.run
        return
    run = Run(DeadlinePolicy(), parent=around, budget=None, name=name)
    run.alone = True
    try:
        yield run
    finally:
        run.finish()
        run.let_go()


def error_of(run: Run, step: Step, limit: CallLimit) -> DeadlineExceeded:
    """Return the error of a call that was cut or refused."""
    left = step.at - _clock.now()
    if step.cut == "window":
        left = step.at - step.began
        return DeadlineExceeded(
            cause="window", step=step.name, remaining=left, needed=limit.needs
        )
    binding = step.binding
    if step.cut == "step" and binding is step:
        return step.exceeded(left, None, step.cut)
    if isinstance(binding, (RunScope, Step)) and not run.alone:
        return run.error(step=step.name, cause=step.cut)
    error = plain(binding.exceeded(left, None, step.cut))
    error.scope = binding
    return error


def is_own(step: Step) -> bool:
    """Return whether a call was cut or refused for a limit of its own."""
    return step.cut == "window" or (step.cut == "step" and step.binding is step)


async def threaded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Await a blocking function, inside a call, in a thread that can be given up."""
    run = run_here()
    assert run is not None  # noqa: S101 - every call is part of one
    return await in_thread(run, functools.partial(function, *args, **kwargs))
