"""Virtual time for tests: a 30-second deadline passes in a millisecond, and exactly.

```python
from langgraph_deadline.testing import run_virtual

def test_degrades():
    result = run_virtual(graph.ainvoke({"question": "?"}))
```

Time stands still while code runs and jumps when everything waits. It is made for async
nodes: a sync node runs in a thread, which is given a moment of real time to end before
the clock jumps; one that takes longer hangs, as far as virtual time can tell.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from . import _clock, _threads

T = TypeVar("T")


_MOMENT = 0.2
"""What a thread is given to end before the clock jumps (in real seconds)."""


class VirtualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: float = 1000.0) -> None:
        self._start = start
        # Checkpointers write real times beside ours: the two must not be years apart.
        self._epoch = _clock.wall()
        self._now = start

    def monotonic(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def wall(self) -> float:
        """Return the virtual wall-clock time in epoch seconds."""
        return self._epoch + self._now - self._start

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`."""
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for no timer: where the loop would sleep, the clock jumps."""

    clock: VirtualClock
    in_executor = 0
    closing = False

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready, after moving the clock on instead of waiting."""
        if timeout is None or self.closing:
            return super().select(timeout)
        busy = (
            _threads.busy() or self.in_executor > 0
        )  # asked first: one that ends now has something to say
        ready = super().select(0)
        if not ready and timeout > 0 and busy:
            ready = super().select(_MOMENT)
        if not ready and timeout > 0:
            self.clock.advance(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a `VirtualClock`'s."""

    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        selector = _JumpingSelector()
        selector.clock = clock
        self._jumping = selector
        super().__init__(selector)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._virtual.monotonic()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        """Run `func` in a thread, for which the clock stands still a moment."""
        future = super().run_in_executor(executor, func, *args)
        self._jumping.in_executor += 1
        future.add_done_callback(self._left_executor)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the executor's threads, in real time."""
        self._jumping.closing = True
        await super().shutdown_default_executor(*args, **kwargs)

    def _left_executor(self, _: object) -> None:
        self._jumping.in_executor -= 1


def run_virtual(
    main: Coroutine[Any, Any, T], *, clock: VirtualClock | None = None
) -> T:
    """Run `main` to its end in virtual time and return what it returns.

    Args:
        main: The coroutine, as for `asyncio.run`.
        clock: Where the time is kept; a new one unless given.
    """
    clock = clock if clock is not None else VirtualClock()
    with (
        _clock.use(clock),
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner,
    ):
        return runner.run(main)
