"""The only reader of time; everything else asks here, so tests can replace it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic seconds and of wall-clock (epoch) seconds."""

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences have a meaning."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch, as other processes see them."""
        ...


# Plain module attributes, so that the usual case is one C call. Always use them
# as `_clock.now()`: a name imported from here would miss a replaced clock.
now: Callable[[], float] = time.monotonic
wall: Callable[[], float] = time.time
sleep: Callable[[float], None] = time.sleep


@contextmanager
def use(clock: Clock) -> Generator[None]:
    """Read `clock` instead of the system's clocks inside the block."""
    global now, wall
    before = now, wall
    now, wall = clock.monotonic, clock.wall
    try:
        yield
    finally:
        now, wall = before
