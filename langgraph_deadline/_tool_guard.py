"""Make one call of a tool on time, and see to what follows if it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from . import _compensation
from ._calls import AsyncBody, Body, call_async, call_sync
from ._cut import AsyncStep, SyncStep
from ._tool_call import ToolRun, tool_run
from .errors import DeadlineExceeded, RunCut


def run_tool(call: ToolRun, body: Body) -> Any:
    """Make `call` on time; if it is cut after it started, compensate for it.

    Raises:
        DeadlineExceeded: If the call was cut or refused; `call.cut` tells.
    """

    def work() -> Any:
        call.started = True
        return call.ended(body())

    with _current(call):
        try:
            limit = call.options.limit
            return call_sync(call.name, "tool", limit, work, call.entered)
        except DeadlineExceeded as error:
            if call.handed_over:
                return call.result
            if _was_cut(call, error):
                step = _compensation.begin(call, SyncStep)
                if step is not None:
                    _compensation.compensate(call, step)
            raise


async def arun_tool(call: ToolRun, body: AsyncBody) -> Any:
    """As `run_tool`."""

    async def work() -> Any:
        call.started = True
        return call.ended(await body())

    with _current(call):
        try:
            limit = call.options.limit
            return await call_async(call.name, "tool", limit, work, call.entered)
        except (DeadlineExceeded, asyncio.CancelledError) as error:
            if call.handed_over and not isinstance(error, asyncio.CancelledError):
                return call.result
            if _was_cut(call, error):
                step = _compensation.begin(call, AsyncStep)
                if step is not None:
                    await _compensation.acompensate(call, step)
            raise


@contextmanager
def _current(call: ToolRun) -> Generator[None]:
    """Make `call` the one that is being made here."""
    token = tool_run.set(call)
    held = _compensation.hold(call)
    late = None
    try:
        yield
    finally:
        tool_run.reset(token)
        late = _compensation.let_go(call, held)
    if late is not None:
        raise late


def _was_cut(call: ToolRun, error: BaseException) -> bool:
    """Return whether the call was cut; note it if its outcome is unknown."""
    if call.step is None:
        return False
    if not call.cut:
        if not isinstance(error, (RunCut, asyncio.CancelledError)):
            return False  # an error of the tool's own
        # Told before anybody could cut it: by a callback, or by who cancelled it.
        call.step.cut = error.cause if isinstance(error, RunCut) else "cancelled"
    if call.kill is not None:
        call.kill()
    if call.started:
        call.step.run.note_unknown(call)
    return True
