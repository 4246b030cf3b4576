"""Functions decorated with `@task`, called from an entrypoint or a node, guarded."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.types import RetryPolicy

from ._admission import admit
from ._cut import AsyncStep, Step, SyncStep
from ._guard import in_thread, run_async, run_sync
from ._langgraph import (
    PregelExecutableTask,
    arun_with_retry,
    attempt_of,
    is_async_callable,
    run_with_retry,
    set_config_context,
    task_id_of,
)
from ._run import Run, run_here
from ._scope import current
from ._verdict import check_retry, failed
from .errors import NoTimeToRetry, plain

ONE_ATTEMPT = (RetryPolicy(max_attempts=1),)
"""Shown to the engine in place of retry policies, which are applied inside the guard:
the engine's back-off would run past every deadline."""


def call_guarded(
    call: Callable[..., Any],
    run: Run,
    caller: Step,
    func: Callable[..., Any],
    input: Any,
    **options: Any,
) -> Any:
    """Schedule the task `func` by the engine's `call`, to be run under a guard."""
    name: str = getattr(func, "__name__", type(func).__name__)
    if (cause := caller.cause_of_cut()) is not None:
        raise run.error(step=name, cause=cause)
    policies = tuple(options.pop("retry_policy", None) or ())
    body = _Body(name, func, policies, options.pop("timeout", None))
    options["retry_policy"] = ONE_ATTEMPT if policies else None
    made = call(_guarded(run, caller, body), input, **options)
    if isinstance(made, asyncio.Future):
        made.add_done_callback(functools.partial(_seen, caller))
    return made


def _seen(caller: Step, made: asyncio.Future[Any]) -> None:
    """Have a task that ended with its caller's cut not complain of being forgotten."""
    if not made.cancelled() and caller.cause_of_cut() is not None:
        made.exception()


def _guarded(run: Run, caller: Step, body: _Body) -> Callable[..., Any]:
    """Return a function with the signature of `body`'s that runs it under a guard."""
    grace = run.grace
    around = caller.parent or run.scope
    if isinstance(caller, AsyncStep):

        @functools.wraps(body.func)
        async def atask(*args: Any, **kwargs: Any) -> Any:
            step = AsyncStep(around, body.name, "task", caller.superstep, grace)
            return await _run_async(run, step, body, args, kwargs)

        return atask

    @functools.wraps(body.func)
    def task(*args: Any, **kwargs: Any) -> Any:
        step = SyncStep(around, body.name, "task", caller.superstep, grace)
        return _run_sync(run, step, body, args, kwargs)

    return task


def _run_sync(run: Run, step: SyncStep, body: _Body, args: Any, kwargs: Any) -> Any:
    try:
        step.cut = admit(run, step)
        if step.cut is None:
            call = functools.partial(body.call, args, kwargs)
            out = run_sync(run, step, call) if run.guarded else call()
            if step.cut is None:
                return out
    except NoTimeToRetry as error:
        step.error = type(error.__cause__).__name__
        raise plain(error) from error.__cause__
    except Exception as error:
        failed(step, error)
        raise
    finally:
        run.leave(step)
    raise run.error(step=step.name, cause=step.cut)


async def _run_async(
    run: Run, step: AsyncStep, body: _Body, args: Any, kwargs: Any
) -> Any:
    try:
        step.cut = admit(run, step)
        if step.cut is None:
            out = await run_async(run, step, body.acall(args, kwargs))
            if step.cut is None:
                return out
    except NoTimeToRetry as error:
        step.error = type(error.__cause__).__name__
        raise plain(error) from error.__cause__
    except Exception as error:
        failed(step, error)
        raise
    finally:
        run.leave(step)
    raise run.error(step=step.name, cause=step.cut)


class _Body:
    """A task's function and its retries; a Runnable for the engine's retry loop."""

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        policies: Sequence[RetryPolicy],
        timeout: Any,
    ) -> None:
        self.name = name
        self.func = func
        self._policies = tuple(policies)
        self._timeout = timeout

    def call(self, args: Any, kwargs: Any) -> Any:
        if not self._policies:
            return self.func(*args, **kwargs)
        return run_with_retry(self._task(args, kwargs, None), None)

    async def acall(self, args: Any, kwargs: Any) -> Any:
        if not self._policies and self._timeout is None:
            return await self._await(args, kwargs)
        return await arun_with_retry(self._task(args, kwargs, self._timeout), None)

    def _task(self, args: Any, kwargs: Any, timeout: Any) -> PregelExecutableTask:
        config = get_config()
        proc: Any = self
        return PregelExecutableTask(
            self.name,
            (args, kwargs),
            proc,
            deque(),
            config,
            (),
            self._policies,
            None,
            task_id_of(config),
            (),
            timeout=timeout,
        )

    def invoke(self, value: Any, config: RunnableConfig) -> Any:
        args, kwargs = value
        _begin_attempt()
        try:
            with set_config_context(config) as context:
                return context.run(self.func, *args, **kwargs)
        except Exception as error:
            self._failed(error, config)
            raise

    async def ainvoke(self, value: Any, config: RunnableConfig) -> Any:
        args, kwargs = value
        _begin_attempt()
        try:
            return await self._await(args, kwargs)
        except Exception as error:
            self._failed(error, config)
            raise

    def _failed(self, error: Exception, config: RunnableConfig) -> None:
        scope = current.get()
        if scope is not None and scope.step is not None:
            attempt = attempt_of(config)
            check_retry(scope.run, scope.step, self._policies, error, attempt)

    async def _await(self, args: Any, kwargs: Any) -> Any:
        if is_async_callable(self.func):
            return await self.func(*args, **kwargs)
        run = run_here()
        call = functools.partial(self.func, *args, **kwargs)
        return call() if run is None else await in_thread(run, call)


def _begin_attempt() -> None:
    """Count the task's calls from the first again."""
    scope = current.get()
    if scope is not None and scope.step is not None:
        scope.step.counts = None
        scope.step.attempts += 1
