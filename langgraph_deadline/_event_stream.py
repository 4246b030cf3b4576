"""A run's events as items of its custom stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .events import Event


class EventStream:
    """An observer that writes to the stream while the engine reads it.

    The writer is known with the first step; what comes before that, and after the
    engine has ended, waits for whoever yields the stream's items.
    """

    __slots__ = ("_waiting", "_write")

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []
        self._write: Callable[[Any], None] | None = None

    def __call__(self, event: Event) -> None:
        item = event.as_dict()
        if self._write is None:
            self._waiting.append(item)
        else:
            self._write(item)

    def opened(self, write: Callable[[Any], None]) -> None:
        """Write with `write` from here on, and first what has been waiting."""
        if self._write is None:
            for item in self.rest():
                write(item)
            self._write = write

    def closed(self) -> None:
        """Have what comes from here on wait: nobody reads what the engine gets."""
        self._write = None

    def rest(self) -> list[dict[str, Any]]:
        """Return what has been waiting, once."""
        rest, self._waiting = self._waiting, []
        return rest
