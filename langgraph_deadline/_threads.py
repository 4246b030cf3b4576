"""Daemon threads for work that may never come back.

A pool belongs to one run: it starts threads as they are needed, uses them again, and
ends them with the run. A thread whose work was given up is left behind; being a daemon,
it holds up neither `asyncio.run` nor the exit of the interpreter.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import Any

from . import _clock

_IDLE = 0.1
"""How long a thread waits for another job of its run (in seconds)."""

_at_work: set[Job] = set()
"""The jobs that are being done, in all pools; for tests in virtual time."""


def busy() -> bool:
    """Return whether some pool's thread is at work."""
    return bool(_at_work)


def forget(job: Job) -> None:
    """Count a job that was given up as at work no more."""
    _at_work.discard(job)


class Job:
    """One call in a pool's thread."""

    __slots__ = (
        "_context",
        "_fn",
        "_notify",
        "_on_end",
        "done",
        "ended",
        "error",
        "result",
    )

    def __init__(
        self, context: Context, fn: Callable[[], Any], notify: Callable[[], None]
    ) -> None:
        self._context = context
        self._fn = fn
        self._notify = notify
        self._on_end: Callable[[float], None] | None = None
        self.done = False
        self.ended = 0.0
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call the function, keep what comes of it, and tell whoever waits."""
        try:
            self.result = self._context.run(self._fn)
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread
            self.error = error
        self.ended = _clock.now()
        self.done = True
        if self._on_end is not None:
            self._on_end(self.ended)

    def notify(self) -> None:
        """Wake whoever waits for the job."""
        self._notify()

    def when_late(self, on_end: Callable[[float], None]) -> None:
        """Call `on_end` with the time when a job that was given up ends after all."""
        self._on_end = on_end
        if self.done:
            on_end(self.ended)

    def take(self) -> Any:
        """Return the call's result or raise its error."""
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error  # a traceback that holds its own frame is a cycle
        return self.result


class Pool:
    """The threads of one run."""

    __slots__ = ("_closed", "_idle", "_leaving", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[_Worker] = []
        self._closed = False
        # Those that have let go of themselves, and may not have ended yet.
        self._leaving: tuple[threading.Thread, ...] = ()

    def start(
        self, context: Context, fn: Callable[[], Any], notify: Callable[[], None]
    ) -> Job:
        """Call `fn` in a thread, inside `context`; `notify` is called at its end."""
        job = Job(context, fn, notify)
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self, self._name)
        _at_work.add(job)
        worker.inbox.put(job)
        return job

    async def call(
        self,
        context: Context,
        fn: Callable[[], Any],
        on_late: Callable[[Job], None],
        patience: Callable[[], float] = lambda: 0.0,
    ) -> Any:
        """Await `fn`, called in a thread; if cancelled, leave it to `on_late`.

        That is, unless it ends within `patience()` seconds.
        """
        loop = asyncio.get_running_loop()
        arrivals = [loop.create_future()]  # a cancelled one cannot be waited for again

        def settle() -> None:
            if not arrivals[-1].done():
                arrivals[-1].set_result(None)

        def notify() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle)

        job = self.start(context, fn, notify)
        try:
            await arrivals[0]
        except asyncio.CancelledError:
            arrivals.append(loop.create_future())
            if not job.done and (moment := patience()) > 0:
                await asyncio.wait({arrivals[-1]}, timeout=moment)
            if not job.done:
                on_late(job)
            raise
        return job.take()

    def finished(self, worker: _Worker) -> None:
        """Take back a worker whose job is done."""
        self._idle.append(worker)
        if self._closed:
            worker.inbox.put(None)

    def retire(self, worker: _Worker) -> bool:
        """Let go of an idle worker; false if it has just been given another job."""
        try:
            self._idle.remove(worker)
        except ValueError:
            return False
        alive = (thread for thread in self._leaving if thread.is_alive())
        self._leaving = (*alive, worker.thread)
        return True

    def close(self) -> None:
        """End the idle threads and wait for their end; busy ones end with their job."""
        self._closed = True
        threads = list(self._leaving)
        while self._idle:
            worker = self._idle.pop()
            worker.inbox.put(None)
            threads.append(worker.thread)
        me = threading.current_thread()
        for thread in threads:
            if thread is not me:
                thread.join()


class _Worker:
    __slots__ = ("_pool", "inbox", "thread")

    def __init__(self, pool: Pool, name: str) -> None:
        self._pool = pool
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            # Idle before the waiting thread runs on, so that it finds this worker.
            self._pool.finished(self)
            job.notify()
            _at_work.discard(job)
            del job  # an idle thread must not keep the last result alive

    def _next(self) -> Job | None:
        try:
            return self.inbox.get(timeout=_IDLE)
        except Empty:
            # A run may wait for long, and with it a thousand others.
            return None if self._pool.retire(self) else self.inbox.get()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, `None` without one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Bell:
    """Wakes one waiting thread; rings that come early or twice do no harm."""

    __slots__ = ("_rings", "ring")

    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()
        # No Python code of ours runs at a ring: it may come from any thread.
        self.ring: Callable[[], None] = functools.partial(self._rings.put, None)

    def wait(self, seconds: float | None) -> bool:
        """Wait for a ring, at most `seconds`; return whether there was one."""
        if seconds is not None and seconds > threading.TIMEOUT_MAX:
            seconds = threading.TIMEOUT_MAX
        try:
            self._rings.get(timeout=None if seconds is None else max(seconds, 0.0))
        except Empty:
            return False
        return True
