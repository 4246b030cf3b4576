"""Virtual time for tests: a 30-second deadline passes in a millisecond, and exactly.

```python
from langgraph_deadline.testing import run_virtual

def test_degrades():
    result = run_virtual(graph.ainvoke({"question": "?"}))
```

Time stands still while code runs and jumps when everything waits. It is made for async
nodes: a sync node runs in a thread, which is given a moment of real time to end before
the clock jumps; one that takes longer hangs, as far as virtual time can tell. A thread
that waits in `VirtualClock.sleep` waits exactly, too. What comes from outside of the
process, such as an answer from a socket, is not waited for.

For pytest there are fixtures in `langgraph_deadline.fixtures`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from . import _clock, _threads
from ._sleepers import Sleepers, can_sleep, in_executor

T = TypeVar("T")


_MOMENT = 0.2
"""What a thread is given to end before the clock jumps (in real seconds)."""

_PATIENCE = 5.0
"""How long nothing at all may happen before it is an error (in real seconds)."""

_real_sleep = _clock.sleep


class DeadlockError(RuntimeError):
    """Everything waits, and nothing in virtual time can end that.

    It is raised out of the event loop, and so out of `run_virtual`.
    """


class VirtualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: float = 1000.0) -> None:
        self._start = start
        # Checkpointers write real times beside ours: the two must not be years apart.
        self._epoch = _clock.wall()
        self._now = start
        self.loop: VirtualTimeLoop | None = None
        """The event loop on this clock, the last one if there were several."""

    def monotonic(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def wall(self) -> float:
        """Return the virtual wall-clock time in epoch seconds."""
        return self._epoch + self._now - self._start

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`."""
        self._now += seconds

    def move_to(self, instant: float) -> None:
        """Move on to `instant`; a clock does not go back."""
        self._now = max(self._now, instant)

    def sleep(self, seconds: float) -> None:
        """Wait `seconds`; in place of `time.sleep`.

        In the event loop's thread the clock moves on and the loop is late, as it is
        when it is blocked. In a thread that the loop's runs have started, the thread
        waits until the clock is there; at one instant timers come before threads. All
        others wait in real time.

        Raises:
            SystemExit: If the loop is closed meanwhile: the thread's test is over.
        """
        loop = self.loop
        if loop is not None and _threads.running_loop() is loop:
            self.advance(seconds)
        elif loop is not None and can_sleep():
            loop.sleepers.wait(self._now + seconds)
        else:
            _real_sleep(seconds)


# The loop.


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for no timer: where the loop would sleep, the clock jumps."""

    clock: VirtualClock
    sleepers: Sleepers
    loop: VirtualTimeLoop
    closing = False

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready, after moving the clock on instead of waiting."""
        if self.closing:
            return super().select(timeout)
        # Asked first: a thread that ends just now has something to say.
        busy = self.sleepers.others_at_work()
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        first = self.sleepers.first
        if busy:
            ready = super().select(
                _MOMENT if (timeout, first) != (None, None) else None
            )
            if ready:
                return ready
        if first is not None and (
            timeout is None or first < self.clock.monotonic() + timeout
        ):
            self.clock.move_to(first)
            return [] if self.sleepers.wake() else super().select(_MOMENT)
        if timeout is None:
            return self._last_hope()
        self.clock.advance(timeout)
        return ready

    def _last_hope(self) -> Any:
        """Wait in real time for what comes from other threads, or from outside."""
        if len(self.get_map()) > 1:  # more than the loop's own way to wake it
            return super().select(None)
        ready = super().select(_PATIENCE)
        if not ready:
            raise DeadlockError(_deadlock(self.loop))
        return ready


def _deadlock(loop: asyncio.AbstractEventLoop) -> str:
    """Return what to say of a loop in which everything waits for ever."""
    return "\n".join(
        [
            "virtual time stands still: every task waits, no timer is set, no thread "
            f"is at work, and for {_PATIENCE:g} s of real time nothing has come from "
            "other threads. Without a deadline this would hang for ever. Who waits:",
            *sorted(f"  {_where(task)}" for task in asyncio.all_tasks(loop)),
        ]
    )


def _where(task: asyncio.Task[Any]) -> str:
    """Return which coroutines of a task wait, and in which lines; innermost last."""
    calls: list[str] = []
    waits: Any = task.get_coro()
    while (frame := getattr(waits, "cr_frame", None)) is not None:
        at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        calls.append(f"{waits.__qualname__} ({at})")
        waits = waits.cr_await
    return f"{task.get_name()}: {' > '.join(calls[-3:])}"


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a `VirtualClock`'s.

    While it runs, this package reads that clock, too.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        self._jumping = _JumpingSelector()
        self.sleepers = Sleepers(partial(self.call_soon_threadsafe, _nothing))
        self._jumping.clock, self._jumping.loop = clock, self
        self._jumping.sleepers = self.sleepers
        clock.loop = self
        super().__init__(self._jumping)

    @property
    def clock(self) -> VirtualClock:
        """Where the time is kept."""
        return self._virtual

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._virtual.monotonic()

    def run_forever(self) -> None:
        """Run in virtual time."""
        with _clock.use(self._virtual):
            super().run_forever()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        """Run `func` in a thread, for which the clock stands still a moment."""
        future = super().run_in_executor(executor, in_executor, func, *args)
        self.sleepers.in_executor += 1
        future.add_done_callback(self._left_executor)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the executor's threads, in real time."""
        self._end()
        await super().shutdown_default_executor(*args, **kwargs)

    def close(self) -> None:
        """End virtual time, and what still waits in it."""
        self._end()
        super().close()

    def _end(self) -> None:
        self._jumping.closing = True
        self.sleepers.end()

    def _left_executor(self, _: object) -> None:
        self.sleepers.in_executor -= 1


def _nothing() -> None:
    """Wake the loop, that is all."""


def run_virtual(
    main: Coroutine[Any, Any, T], *, clock: VirtualClock | None = None
) -> T:
    """Run `main` to its end in virtual time and return what it returns.

    Args:
        main: The coroutine, as for `asyncio.run`.
        clock: Where the time is kept; a new one unless given.

    Raises:
        DeadlockError: If everything waits, and nothing in virtual time can end that.
    """
    clock = clock if clock is not None else VirtualClock()
    with (
        _clock.use(clock),
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner,
    ):
        return runner.run(main)
