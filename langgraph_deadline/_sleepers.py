"""Threads that wait in virtual time, for `langgraph_deadline.testing`."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from . import _threads
from ._scope import current

T = TypeVar("T")

_executor = threading.local()


def in_executor(func: Callable[..., T], *args: Any) -> T:
    """Call `func` in a thread of an executor, and know the thread while it runs."""
    _executor.here = True
    try:
        return func(*args)
    finally:
        _executor.here = False


def can_sleep() -> bool:
    """Return whether this thread is one that the loop's runs have started."""
    return _in_executor() or _step() is not None


def _in_executor() -> bool:
    return getattr(_executor, "here", False)


def _step() -> Any:
    scope = current.get()
    return None if scope is None else scope.step


def _steps_at_work() -> list[Any]:
    """Return the steps whose threads are at work and were not given up."""
    jobs = tuple(_threads._at_work)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    contexts = [job._context for job in jobs]  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    scopes = [context.get(current) for context in contexts]
    return [None if scope is None else scope.step for scope in scopes]


class _Sleeper:
    """A thread that waits for an instant."""

    def __init__(self, at: float, order: int) -> None:
        self.at, self.order = at, order
        self.step = _step()
        self.in_executor = _in_executor()
        self.woken = threading.Event()

    def __lt__(self, other: _Sleeper) -> bool:
        return (self.at, self.order) < (other.at, other.order)


class Sleepers:
    """The threads of one loop that wait in virtual time.

    Args:
        poke: Wakes the loop.
    """

    def __init__(self, poke: Callable[[], object]) -> None:
        self._poke = poke
        self._order = itertools.count()
        self._changing = threading.Lock()
        self._heap: list[_Sleeper] = []
        self._over = False
        self.in_executor = 0
        """Calls that are in the threads of executors."""

    def wait(self, at: float) -> None:
        """Wait for the instant `at`, in the calling thread.

        Raises:
            SystemExit: If virtual time ends before: the thread is to end, too.
        """
        sleeper = _Sleeper(at, next(self._order))
        with self._changing:
            if not self._over:
                heapq.heappush(self._heap, sleeper)
                self._poke()  # the loop may have been waiting for just this thread
        if not self._over:
            sleeper.woken.wait()
        if self._over:
            raise SystemExit

    @property
    def first(self) -> float | None:
        """When the first one is to be woken."""
        with self._changing:
            return self._heap[0].at if self._heap else None

    def wake(self) -> bool:
        """Wake the first one; return whether its end will be seen."""
        with self._changing:
            sleeper = heapq.heappop(self._heap)
        seen = sleeper.in_executor or sleeper.step in _steps_at_work()
        sleeper.woken.set()
        return seen

    def others_at_work(self) -> bool:
        """Return whether a thread of the runs is at work that is not among these."""
        with self._changing:
            asleep = [sleeper.step for sleeper in self._heap if not sleeper.in_executor]
            in_executor = sum(sleeper.in_executor for sleeper in self._heap)
        awake = any(step not in asleep for step in _steps_at_work())
        return awake or self.in_executor > in_executor

    def end(self) -> None:
        """End all of them: virtual time is over."""
        with self._changing:
            self._over = True
            sleepers, self._heap = self._heap, []
        for sleeper in sleepers:
            sleeper.woken.set()
