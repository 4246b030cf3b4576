"""Streams under a deadline: every wait for the next item is guarded.

Between two items nothing of ours is in the consumer's context; the deadline goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ._calls import CallLimit, entered, error_of, is_watched
from ._cut import AsyncStep, Step, SyncStep
from ._guard import context_for, run_async, run_sync
from .report import StepKind

_END = object()


class _Source:
    """The iterator that items come from, which a cut closes at its next item."""

    def __init__(self, step: Step, make: Callable[[], Any]) -> None:
        self._step = step
        self._make = make
        self._items: Any = None

    def next(self) -> Any:
        """Return the next item, or the end."""
        if self._items is None:
            self._items = iter(self._make())
        item = next(self._items, _END)
        if self._step.cause_of_cut() is not None:
            self.close()
            return _END
        return item

    def close(self) -> None:
        """Close the iterator, and with it the connection it reads from."""
        close = getattr(self._items, "close", None)
        if close is not None:
            close()

    async def anext(self) -> Any:
        """As `next`."""
        if self._items is None:
            self._items = aiter(self._make())
        return await anext(self._items, _END)

    async def aclose(self) -> None:
        """As `close`."""
        aclose = getattr(self._items, "aclose", None)
        if aclose is not None:
            await aclose()


def stream_sync(
    name: str,
    kind: StepKind,
    limit: CallLimit,
    make: Callable[[], Iterator[Any]],
    on_step: Callable[[Step], None] | None = None,
) -> Iterator[Any]:
    """Yield what `make()` yields, in time; it runs in a thread that can be given up.

    Raises:
        DeadlineExceeded: If the stream was cut or refused.
    """
    with entered(SyncStep, name, kind, limit, on_step) as (run, step):
        source = _Source(step, make)
        context = context_for(step)
        watched = is_watched(run, step)
        try:
            while step.cut is None:
                if watched:
                    item = run_sync(run, step, source.next, context)
                else:
                    item = context.run(source.next)
                if item is _END and step.cut is None:
                    return
                if step.cut is None:
                    yield item
        finally:
            try:
                source.close()
            except ValueError:
                if step.cut is None:
                    raise
                # "generator already executing": its thread closes it with its next item
    raise error_of(run, step, limit)


async def stream_async(
    name: str,
    kind: StepKind,
    limit: CallLimit,
    make: Callable[[], AsyncIterator[Any]],
    on_step: Callable[[Step], None] | None = None,
) -> AsyncIterator[Any]:
    """As `stream_sync`, in tasks that are cancelled.

    Raises:
        DeadlineExceeded: If the stream was cut or refused.
    """
    with entered(AsyncStep, name, kind, limit, on_step) as (run, step):
        source = _Source(step, make)
        context = context_for(step)
        try:
            while step.cut is None:
                item = await run_async(run, step, source.anext(), context)
                if item is _END and step.cut is None:
                    return
                if step.cut is None:
                    yield item
        finally:
            try:
                await source.aclose()
            except RuntimeError:
                if step.cut is None:
                    raise
                # "asynchronous generator is already running": it was given up
    raise error_of(run, step, limit)
