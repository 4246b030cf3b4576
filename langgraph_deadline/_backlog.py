"""Make whoever fills a stream wait for whoever reads it.

LangGraph's own queue has no bound. It goes on between supersteps only when it is asked
for more, but within one a node may write a million chunks for a reader that takes one.
"""

# LangChain declares properties where plain attributes do.
# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler

from ._scope import current
from ._threads import running_loop

BOUND = 64
"""How many chunks may wait for the reader before their writer does."""

_LOOK_AGAIN = 0.05  # seconds after which a waiting writer sees that it was cut


class Backlog:
    """Counts the chunks that were written and those that were read.

    Chunks of other kinds (updates, values) are read as well, so the count may be short
    by a few; it bounds, it does not balance.
    """

    __slots__ = ("_room", "_waiters", "read", "tokens", "written")

    def __init__(self, *, tokens: bool) -> None:
        self.tokens = tokens
        self.written = 0
        self.read = 0
        self._room = threading.Condition()
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def full(self) -> bool:
        """Whether a writer has to wait."""
        return self.written - self.read > BOUND

    def took(self) -> None:
        """Note that the reader took a chunk, and let writers go on."""
        self.read += 1
        if self.full:
            return
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()
        with self._room:
            self._room.notify_all()

    def wait(self, stopped: Callable[[], Any]) -> None:
        """Wait, in a thread, until there is room or `stopped()` is true."""
        if not self.full or running_loop() is not None:
            return  # an async writer cannot wait: the reader may need its loop
        with self._room:
            while self.full and not stopped():
                self._room.wait(_LOOK_AGAIN)

    async def wait_async(self) -> None:
        """Wait, in the run's event loop, until there is room; a cut cancels this."""
        while self.full:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


class TokenBacklog(AsyncCallbackHandler):
    """Has a model wait at its next token while the reader is behind."""

    run_inline = True  # in the order of the handlers: after the stream's own
    ignore_chain = True
    ignore_agent = True
    ignore_retriever = True
    ignore_custom_event = True
    ignore_retry = True

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        """Wait for room."""
        scope = current.get()
        backlog = getattr(scope.run, "backlog", None) if scope is not None else None
        if backlog is not None:
            await backlog.wait_async()


TOKENS = TokenBacklog()
"""The handler of every run whose tokens are streamed: it holds nothing itself."""
