"""Run any callable under a step and be back on time, whatever it does.

The sync shell waits for a thread, the async one for a task. Both leave the decision
what a cut means to their caller: they return once the step has ended or was given up,
with the body's result or error if it was not cut.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from . import _clock
from ._cut import HANDING_OVER, AsyncStep, Step, SyncStep
from ._run import Run, RunScope
from ._scope import current
from ._stragglers import blocked_loop, give_up
from ._threads import Job

_LATE = 1e-3
"""Seconds past its limit at which a step counts as late though nobody cut it."""


def context_for(step: Step) -> Context:
    """Return a copy of the current context in which `step` owns the time."""
    context = copy_context()
    context.run(current.set, step)
    return context


def _expire(run: Run, step: Step) -> None:
    """Cut what ran out of time: the step by its own limit, or the whole run.

    What encloses the run comes first: it may be the reason, and knows the cause.
    """
    around = run.scope.parent.step if run.scope.parent is not None else None
    if around is not None and around.cut is None and around.at <= _clock.now():
        _expire(around.run, around)
    if step.cut is not None:
        return
    if isinstance(step.binding, Step):
        step.binding.stop("step")  # and this one, which is that or inside of it
        step.stop("step")
    elif not isinstance(step.binding, RunScope):
        step.stop("deadline")  # a block of the user's around this call, not the run
    elif run.phase == "working":
        run.cut("deadline", step.name)
    elif run.deadline <= _clock.now():
        run.end()
    if step.cut is None and step.at <= _clock.now():
        run.stop(step)  # another thread is just cutting the run


def run_sync(
    run: Run, step: SyncStep, body: Callable[[], Any], context: Context | None = None
) -> Any:
    """Call `body` in a thread of the run and wait for it as long as `step` may take.

    Args:
        run: The run.
        step: The step.
        body: What is called.
        context: Where it is called; a copy of the current one, unless given.

    Returns:
        What `body` returns; `None` if the step was cut.

    Raises:
        BaseException: What `body` raises, unless the step was cut.
    """
    job = run.pool().start(context or context_for(step), body, step.bell.ring)
    while not job.done and (left := _patience(step)) > 0:
        step.bell.wait(left)
        if not job.done and step.cut is None and step.at <= _clock.now():
            _expire(run, step)
    if step.cut is None:
        if job.done and job.ended <= step.at + _LATE and not step.told:
            return job.take()
        _expire(run, step)
    if not job.done:
        give_up(run, step, job)
    return None


def _patience(step: SyncStep) -> float:
    """Return how long the guard still waits (in seconds)."""
    if step.cut is None:
        return max(step.at - _clock.now(), _CLOCK_TICK)
    return step.cut_at + step.patience() - _clock.now()


_CLOCK_TICK = 1e-6


async def run_async(
    run: Run,
    step: AsyncStep,
    body: Coroutine[Any, Any, Any],
    context: Context | None = None,
) -> Any:
    """Await `body` in a task of its own, as long as `step` may take.

    A cancellation from outside is passed on once, and waited for: as long as the step
    has time where something beside it failed, and for the grace once it is cut.

    Args:
        run: The run.
        step: The step.
        body: What is awaited.
        context: Where it runs; a copy of the current one, unless given.

    Returns:
        What `body` returns; `None` if the step was cut.

    Raises:
        BaseException: What `body` raises, unless the step was cut.
    """
    task, settled = _begin(step, body, context or context_for(step))
    try:
        await settled
    except asyncio.CancelledError as cancelled:
        await _join(step, task, cancelled)
        if not task.done():
            give_up(run, step, task)
        elif not task.cancelled():
            task.exception()  # seen: the cancellation is what goes up
        raise
    finally:
        if task.cancelled():
            body.close()  # it may have been cancelled before it began
        # The task's context knows the step: without this the two are a cycle.
        step.task = step.settled = None
        if step.timer is not None:
            step.timer.cancel()
    if not task.done():
        give_up(run, step, task)
        return None
    # Here the task has ended: it settles the step in its very last act.
    _note_blocked_loop(run, step)
    if step.cut is None and step.told:
        _expire(run, step)
    if step.kind in _CALLS and step.in_time():
        step.cut = None
    if step.cut is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen: the cut is what counts
    return None


def _begin(
    step: AsyncStep, body: Coroutine[Any, Any, Any], context: Context
) -> tuple[asyncio.Task[Any], asyncio.Future[None]]:
    """Return the task of a step, and what is settled when it is waited for no more."""
    loop = asyncio.get_running_loop()
    settled = step.settled = loop.create_future()
    step.returned_at = math.inf  # a stream's step has a task for each item
    task = step.task = loop.create_task(_settling(step, body), context=context)
    if step.cut is not None:
        step.interrupt()  # before there was a task: an eager one begins at once
    elif step.limit is not None:
        step.later(step.at - _clock.now(), step.expire)
    return task, settled


_CALLS = ("tool", "model", "call")
"""What has its result kept if it ended in time, though it was cut before its guard
could know. A node's is kept as well, but its edges must not fire."""


def _note_blocked_loop(run: Run, step: AsyncStep) -> None:
    """Name a step that ended late though it was not given up: nobody could."""
    if step.in_time():
        return
    now = _clock.now()
    if step.cut is None and now - step.at > _LATE:
        _expire(run, step)
        blocked_loop(run, step)
    elif step.cut is not None and (
        step.late
        or now - step.cut_at > max(step.patience(), step.waits + step.grace) + _LATE
    ):
        blocked_loop(run, step)


async def _settling(step: AsyncStep, body: Coroutine[Any, Any, Any]) -> Any:
    """Wake the guard from inside the task: a done callback comes one pass later."""
    try:
        return await body
    finally:
        step.returns()


async def _join(
    step: AsyncStep, task: asyncio.Task[Any], cancelled: asyncio.CancelledError
) -> None:
    step.cancel_once(*cancelled.args)
    while not task.done():
        step.settled = task.get_loop().create_future()
        try:
            await step.settled
        except asyncio.CancelledError:
            # A scope that cancels again and again (anyio) must not orphan the task.
            continue
        return


async def in_thread(run: Run, fn: Callable[[], Any]) -> Any:
    """Await a blocking `fn` in a thread of the run, not in the loop's few own ones."""

    def left_behind(job: Job) -> None:
        scope = current.get()
        if scope is not None and scope.step is not None:
            give_up(run, scope.step, job)

    def patience() -> float:
        # What has itself asked for too much is about to end.
        scope = current.get()
        cut = scope.cause_of_cut() if scope is not None else None
        return 0.0 if cut in _CUT_FROM_OUTSIDE else HANDING_OVER

    return await run.pool().call(copy_context(), fn, left_behind, patience)


_CUT_FROM_OUTSIDE = (None, "deadline", "step", "window", "cancelled")
