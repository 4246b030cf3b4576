"""The caller's side of a run: wait for the engine, but no longer than the run may take.

The engine runs in a thread (sync) or task (async) of its own: it may hang as well, in a
checkpointer for instance, and the caller's context must stay as it was. Nested runs
without a deadline of their own are driven inline, for the step they are in is watched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from . import _clock
from ._ending import finish
from ._journal import Journal
from ._notes import note, note_async
from ._run import ENGINE_PATIENCE, Run
from ._scope import current
from ._threads import Bell, Job
from .errors import RunCut, plain

Late = Callable[[Run], Any]
"""Returns what can be said of a run whose engine is not waited for any more."""

AsItem = Callable[[str, Any], Any]
"""Returns what a stream yields for a mode and its data."""

_END = object()
_LONGEST_JOIN = 60.0
"""What a cancelled engine may at most need for its checkpoints (in seconds)."""


class LateItems:
    """The last items of a stream whose engine is not waited for any more."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items


def engine_context(run: Run) -> Context:
    """Return a copy of the current context in which `run` owns the time."""
    context = copy_context()
    context.run(current.set, run.scope)
    return context


class _Ended:
    """Sees to the end of a run, once, however it comes."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        run = self._run
        if error is not None and run.implicit:
            _keep_what_was_reached(run)
        finish(run, error)


def _keep_what_was_reached(run: Run) -> None:
    """Leave the state of a run inside to its step, which was cut: it cannot end.

    Its engine failed, or was cancelled, in a checkpointer for instance.
    """
    step = run.scope.parent.step if run.scope.parent is not None else None
    if step is not None and step.cut is not None and run.mode == "return":
        step.reached = run.channels


def drive_sync(run: Run, call: Callable[[], Any], late: Late) -> Any:
    """Run the engine's `call` to its end, or to the run's.

    Raises:
        DeadlineExceeded: If the run was cut and nothing takes its place.
    """
    with _Ended(run):
        if run.implicit:
            return engine_context(run).run(call)
        return _take(run, engine_context(run), partial(_noted, run, call), late)


def _noted(run: Run, call: Callable[[], Any]) -> Any:
    try:
        return call()
    finally:
        note(run)


def drive_stream(
    run: Run, make: Callable[[], Iterator[Any]], late: Late, as_item: AsItem
) -> Iterator[Any]:
    """Yield what the engine's stream yields; it goes on only when asked for more."""
    journal = run.journal
    with _Ended(run):
        context = engine_context(run)
        stream = make()
        step = partial(next, stream, _END)
        try:
            while (item := _take(run, context, step, late)) is not _END:
                if isinstance(item, LateItems):
                    yield from item.items
                    break
                yield item
                if run.backlog is not None:
                    run.backlog.took()
        except (GeneratorExit, KeyboardInterrupt):
            run.close()
            raise
        finally:
            _finish_stream(run, context, stream)
    yield from _last_events(journal, as_item)


def _last_events(journal: Journal | None, as_item: AsItem) -> list[Any]:
    """Return the events that came after the engine had ended, as stream items."""
    rest = journal.stream.rest() if journal is not None and journal.stream else []
    return [as_item("custom", event) for event in rest]


def _finish_stream(run: Run, context: Context, stream: Any) -> None:
    """Close the engine's stream and keep the record; a stuck one is left behind."""

    def close() -> None:
        try:
            stream.close()
        except ValueError:
            pass  # "generator already executing": it was given up before
        finally:
            note(run)

    bell = Bell()
    job = run.pool().start(context, close, bell.ring)
    now = _clock.now()
    until = now + max(run.engine_patience, run.patience())
    if run.interrupted or run.phase == "working":
        until = max(until, min(run.deadline, now + _LONGEST_JOIN))
    while not job.done and (left := until - _clock.now()) > 0:
        bell.wait(left)


def _take(run: Run, context: Context, call: Callable[[], Any], late: Late) -> Any:
    """Return what `call` returns in the engine's thread, or how a late run ends."""
    bell = Bell()
    run.on_change = bell.ring
    job = run.pool().start(context, call, bell.ring)
    try:
        _wait(run, job, bell)
    except BaseException:  # a KeyboardInterrupt, most likely: the stop button
        run.close()
        until = _clock.now() + run.policy.cancel_grace + ENGINE_PATIENCE
        while not job.done and (left := until - _clock.now()) > 0:
            bell.wait(left)
        raise
    finally:
        run.on_change = None
    if not job.done:
        return late(run)
    try:
        return job.take()
    except RunCut as cut:
        raise plain(cut) from None


def _wait(run: Run, job: Job, bell: Bell) -> None:
    while not job.done:
        now = _clock.now()
        if not run.bounded or not run.policy.enforce:
            bell.wait(None)
        elif now < run.deadline:
            bell.wait(run.deadline - now)
        else:
            until = now + run.patience()
            run.end()
            _wait_on(run, job, bell, until)
            return


def _wait_on(run: Run, job: Job, bell: Bell, until: float) -> None:
    """Wait as long as steps resist, and then for the engine, which needs little."""
    while not job.done and run.active and (left := until - _clock.now()) > 0:
        bell.wait(left)
    until = _clock.now() + run.engine_patience
    while not job.done and (left := until - _clock.now()) > 0:
        bell.wait(left)


async def drive_async(
    run: Run, call: Callable[[], Coroutine[Any, Any, Any]], late: Late
) -> Any:
    """Await the engine's `call` to its end, or to the run's.

    Raises:
        DeadlineExceeded: If the run was cut and nothing takes its place.
    """
    with _Ended(run):
        if run.implicit:
            token = current.set(run.scope)
            try:
                return await call()
            finally:
                current.reset(token)
        engine = _Engine(run, engine_context(run))
        # A frame of its own for nothing is what a thousand waiting runs notice.
        noted = partial(_anoted, run, call) if run.saved.possible else call
        return await engine.take(noted, late)


async def _anoted(run: Run, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    try:
        return await call()
    finally:
        await note_async(run)


async def drive_astream(
    run: Run, make: Callable[[], Any], late: Late, as_item: AsItem
) -> AsyncIterator[Any]:
    """Yield what the engine's stream yields; it goes on only when asked for more."""
    journal = run.journal
    with _Ended(run):
        engine = _Engine(run, engine_context(run))
        stream = engine.context.run(make)
        step = partial(_next, stream)
        try:
            while (item := await engine.take(step, late)) is not _END:
                if isinstance(item, LateItems):
                    for last in item.items:
                        yield last
                    break
                yield item
                if run.backlog is not None:
                    run.backlog.took()
        except (GeneratorExit, asyncio.CancelledError):
            run.close()
            raise
        finally:
            await engine.finish(stream)
    for item in _last_events(journal, as_item):
        yield item


class _Engine:
    """The task in which the engine runs, as its caller sees it."""

    def __init__(self, run: Run, context: Context) -> None:
        self.context = context
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._settled: asyncio.Future[None] | None = None
        self._expired = False
        self._gave_up = False
        run.arm(self._loop, self._last)

    def _last(self) -> None:
        self._expired = True
        self._settle()

    def _settle(self, _: object = None) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    async def take(
        self, call: Callable[[], Coroutine[Any, Any, Any]], late: Late
    ) -> Any:
        """Return what the engine's `call` returns, or what is said of a late run."""
        run = self._run
        if self._expired:
            raise plain(run.error())
        task = self._loop.create_task(call(), context=self.context)
        self._settled = self._loop.create_future()
        task.add_done_callback(self._settle)
        try:
            await self._settled
        except asyncio.CancelledError as cancelled:
            run.close()
            run.disarm()  # from here on it is the engine that is waited for
            task.cancel(*cancelled.args)
            await self._join(task)
            raise
        if not task.done():
            self._gave_up = True
            return late(run)
        try:
            return task.result()
        except RunCut as cut:
            raise plain(cut) from None

    async def _join(self, task: asyncio.Task[Any]) -> None:
        """Wait for a cancelled engine; a second cancellation must not orphan it.

        Its steps are given up after the grace. The engine itself may have checkpoints
        to save, as in LangGraph, for as long as the run had time.
        """
        run = self._run
        patience = run.patience() + run.policy.cancel_grace + ENGINE_PATIENCE
        patience = max(patience, min(run.asked_until - _clock.now(), _LONGEST_JOIN))
        timer = self._loop.call_later(patience, self._settle)
        while not task.done():
            self._settled = self._loop.create_future()
            try:
                await self._settled
            except asyncio.CancelledError:
                continue
            break
        timer.cancel()
        if task.done() and not task.cancelled():
            task.exception()  # seen: the cancellation is what goes up

    async def finish(self, stream: Any) -> None:
        """Close the engine's stream and keep the record; a stuck one is left behind."""
        task = self._loop.create_task(self._close(stream), context=self.context)
        task.add_done_callback(self._settle)
        if not self._gave_up:
            await self._join(task)

    async def _close(self, stream: Any) -> None:
        try:
            await stream.aclose()
        except RuntimeError:
            if self._run.phase != "over":
                raise
            # "asynchronous generator is already running": it was given up before
        finally:
            await note_async(self._run)


async def _next(stream: Any) -> Any:
    return await anext(stream, _END)
