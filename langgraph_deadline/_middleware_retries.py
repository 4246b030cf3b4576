"""Whether the middleware around a call would sleep past the deadline to retry it.

LangChain's retry middleware sleeps between two attempts. Where it stands inside of us
the guard cuts the sleep; where it stands around us nobody can, once it has begun. Then
an error is passed on to it only if the sleep that follows fits. Nothing tells us of our
surroundings but the frames of the functions that are waiting for us.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

_HOOKS = frozenset(
    ("wrap_model_call", "awrap_model_call", "wrap_tool_call", "awrap_tool_call")
)
_NODES = frozenset(("model_node", "amodel_node", "_run_one", "_arun_one"))
"""The functions that call the outermost hook: what is around them is none of this."""

_JITTER = 1.25
"""Most that jitter makes of a pause."""


def pause_ahead(error: Exception) -> float | None:
    """Return how long the next attempt would be waited for, at the most (in seconds).

    `None` if nobody around this call would retry after `error`, or would not wait.
    """
    for frame in _frames_around():
        if frame.f_code.co_name in _HOOKS:
            names = frame.f_locals
            if _tries_another_model(names):
                return None
            pause = _pause(names, error)
            if pause is not None:
                return pause
    return None


def _tries_another_model(names: Any) -> bool:
    """Return whether these are the local variables of `ModelFallbackMiddleware`."""
    models = getattr(names.get("self"), "models", None)
    if not isinstance(models, list) or not models:
        return False
    return names.get("fallback_model") is not models[-1]


def _pause(names: Any, error: Exception) -> float | None:
    """Return the pause of a retry loop with these local variables, if it is one."""
    attempt, retry = names.get("attempt"), names.get("self")
    try:
        if attempt >= retry.max_retries or not _retries(retry.retry_on, error):
            return None
        growth = retry.backoff_factor**attempt if retry.backoff_factor else 1.0
        pause = min(retry.initial_delay * growth, retry.max_delay)
        return float(pause * _JITTER if retry.jitter else pause)
    except (AttributeError, TypeError):
        return None  # another kind of middleware


def _retries(retry_on: Any, error: Exception) -> bool:
    return bool(retry_on(error) if callable(retry_on) else isinstance(error, retry_on))


def _frames_around() -> Iterator[FrameType]:
    """Yield the frames of who waits for this call, from the inside, within its node."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != "asyncio.events":
        if frame.f_code.co_name in _NODES:
            return
        yield frame
        frame = frame.f_back
    for coroutine in _waiting_coroutines():
        if coroutine.cr_code.co_name in _NODES:
            return
        if coroutine.cr_frame is not None:
            yield coroutine.cr_frame


def _waiting_coroutines() -> Iterator[Any]:
    """Yield what waits for the current task: tracing gives each hook a task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return  # a thread
    waiting = {
        getattr(other, "_fut_waiter", None): other for other in asyncio.all_tasks()
    }
    while task is not None and (task := waiting.get(task)) is not None:
        chain = [task.get_coro()]
        while inspect.iscoroutine(inner := getattr(chain[-1], "cr_await", None)):
            chain.append(inner)
        yield from reversed(chain)
