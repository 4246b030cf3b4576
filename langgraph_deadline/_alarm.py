"""The timers of an async run; the threads of sync ones wait with a time-out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from . import _clock

_LAST_PASSES = 1000


class Timed(Protocol):
    """What a run tells its alarm, and is told by it."""

    def next_deadline(self) -> float:
        """Return when the run has to be told next, `inf` for never."""
        ...

    def time_has_come(self) -> None:
        """Cut or end the run."""
        ...


class Alarm:
    """Watches the deadlines of one run, in its event loop.

    Args:
        run: The run.
        loop: Its event loop.
        on_last: Ends the waiting for the run's engine.
    """

    __slots__ = ("_last_at", "_last_call", "_on_last", "_run", "_timer", "loop")

    def __init__(
        self, run: Timed, loop: asyncio.AbstractEventLoop, on_last: Callable[[], None]
    ) -> None:
        self.loop = loop
        self._run = run
        self._on_last: Callable[[], None] | None = on_last
        self._timer: asyncio.TimerHandle | None = None
        self._last_call: asyncio.TimerHandle | None = None
        self._last_at = math.inf

    def set(self) -> None:
        """Wake the run at its next deadline, and not when it was to be woken before."""
        at = self._run.next_deadline()
        if at == math.inf:
            return
        if self._timer is not None:
            self._timer.cancel()
        left = max(at - _clock.now(), 0.0)
        self._timer = self.loop.call_later(left, self._run.time_has_come)

    def stop(self) -> None:
        """Watch no more."""
        for timer in (self._timer, self._last_call):
            if timer is not None:
                timer.cancel()
        self._on_last = None

    def wait_for_engine(self, seconds: float) -> None:
        """End the waiting for the engine in `seconds`, or as planned before."""
        at = _clock.now() + seconds
        if self._last_call is not None:
            if self._last_at <= at:
                return
            self._last_call.cancel()
        self._last_at = at
        self._last_call = self.loop.call_later(seconds, self._last, _LAST_PASSES)

    def _last(self, passes: int) -> None:
        # Steps that are given up at this very instant need some passes of the loop, but
        # no time, for the engine to end.
        if self._on_last is None:
            return
        if passes:
            self.loop.call_soon(self._last, passes - 1)
        else:
            self._on_last()
