"""Undo what a tool call may have done that was cut: once, on time, in the reserve."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import Any

from . import _clock
from ._cut import AsyncStep, Step, SyncStep
from ._guard import in_thread, run_async, run_sync
from ._run import Run
from ._scope import Scope, current
from ._tool_call import ToolRun
from .errors import DeadlineExceeded

logger = logging.getLogger("langgraph_deadline")


def hold(call: ToolRun) -> list[tuple[Step, Any]]:
    """Have a cut of the steps around the call wait for its compensation."""
    if call.options.on_cut is None:
        return []
    held: list[tuple[Step, Any]] = []
    scope = current.get()
    while scope is not None:
        if isinstance(scope, Step):
            run = scope.run.outermost()
            held.append((scope, scope.hold(run.reserve / 2 + 2 * run.grace)))
        scope = scope.parent
    return held


def let_go(call: ToolRun, held: list[tuple[Step, Any]]) -> DeadlineExceeded | None:
    """End a hold; return the error to raise if a cut has been waiting for it."""
    if call.cut:
        return None  # they wait until what is known has been handed over
    late = [step.let_go(hold) for step, hold in held]
    return next((error for error in late if error is not None), None)


def begin(call: ToolRun, of: type[Any]) -> Any:
    """Return the step of a call's compensation, `None` if there is nothing to do."""
    if call.options.on_cut is None or not call.started:
        return None
    scope: Scope | None = call.step
    while scope is not None and scope.cause_of_cut() is not None:
        scope = scope.parent  # the first place around the call that was not cut
    run: Run = call.step.run.outermost()
    step = of(scope or run.scope, call.name, "compensation", call.step.superstep, 0.0)
    # Half of what is left, so that the fallback has the other; or the grace.
    own = call.options.limit.seconds or run.policy.cancel_grace
    left = run.deadline - _clock.now()
    step.limit_to(max(left / 2 if run.bounded else own, run.policy.cancel_grace))
    return step


def compensate(call: ToolRun, step: SyncStep) -> None:
    """Call the compensation; its failure is told, not raised."""
    run: Run = step.run
    run.active[step] = None
    try:
        run_sync(run, step, functools.partial(_call_on_cut, call))
    except Exception as error:  # noqa: BLE001 - told; the fallback still runs
        _compensated(call, step, error)
    else:
        _compensated(call, step, None)
    finally:
        run.leave(step)


def _call_on_cut(call: ToolRun) -> Any:
    on_cut = call.options.on_cut
    assert on_cut is not None  # noqa: S101 - asked before
    outcome = on_cut(call.as_dict)
    if inspect.iscoroutine(outcome):
        return asyncio.run(outcome)
    return outcome


async def acompensate(call: ToolRun, step: AsyncStep) -> None:
    """Await the compensation; a caller that cancels again cannot stop it."""
    task = asyncio.create_task(_arun_once(call, step))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as again:
            cancelled = again
    if cancelled is not None:
        raise cancelled


async def _arun_once(call: ToolRun, step: AsyncStep) -> None:
    run: Run = step.run
    run.active[step] = None
    try:
        await run_async(run, step, _await_on_cut(call, run))
    except Exception as error:  # noqa: BLE001 - told; the fallback still runs
        _compensated(call, step, error)
    else:
        _compensated(call, step, None)
    finally:
        run.leave(step)


async def _await_on_cut(call: ToolRun, run: Run) -> Any:
    on_cut = call.options.on_cut
    assert on_cut is not None  # noqa: S101 - asked before
    if inspect.iscoroutinefunction(on_cut):
        return await on_cut(call.as_dict)
    outcome = await in_thread(run, functools.partial(on_cut, call.as_dict))
    return await outcome if inspect.isawaitable(outcome) else outcome


def _compensated(call: ToolRun, step: Step, error: Exception | None) -> None:
    if error is None and step.cut is None:
        call.compensation = "done"
        return
    call.compensation = "failed"
    why = f"took longer than {step.limit:.3g} s" if error is None else repr(error)
    logger.error(
        "The compensation for the call of %r (id %r, key %s) failed: %s. The outcome "
        "of the call is unknown.",
        call.name,
        call.id,
        call.key,
        why,
        exc_info=error,
    )
