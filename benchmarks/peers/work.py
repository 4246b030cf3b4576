"""The work that every peer does, and what goes wrong in it.

An agent with two tools: the scripted model asks for `look_up`, then for `research`,
then it answers. `look_up` always works; what fails is `research`, or the model's
answer. Only the standard library is needed here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DEADLINE = 2.0  # seconds, for every case
BOUND = 10.0  # seconds after which nobody waits for a result, or for work to end
LINGER = 1.0  # seconds after the result at which we look what still runs

ASK = "What is a deadline?"
AGAIN = "And again?"
FOUND = "FOUND-IN-THE-DICTIONARY"  # what `look_up` returns
WORD = "word0"  # how an answer begins
END = "THE-END"  # how a complete one ends
SORRY = "I ran out of time."  # for peers that can say something in its place

CASES = {
    "well": "all well",
    "fits": "work of 1.65 s, which fits unless something is kept in reserve",
    "adds up": "slow steps that add up",
    "hangs": "an async tool hangs",
    "swallows": "a tool swallows its cancellation",
    "blocks": "a sync tool blocks",
    "streams": "the model streams for ever",
    "slow model": "the model is slow, call as the SDK makes it by default",
    "retries": "a tool fails, is retried with back-off",
}

PAUSES = {"adds up": 0.6, "fits": 0.33}  # seconds a step; there are five
STUBBORN = 6.0  # seconds that a tool goes on for, which cannot be stopped
BACKOFF = 0.5  # seconds before the second attempt; doubled before each further one
ATTEMPTS = 5

AsyncTool = Callable[[str], Coroutine[Any, Any, str]]
SyncTool = Callable[[str], str]
Tool = AsyncTool | SyncTool


@dataclass
class Log:
    """Which tools have been started, and which of them have not ended."""

    running: list[str] = field(default_factory=list)
    started: list[tuple[str, float]] = field(default_factory=list)
    finished: list[tuple[str, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        with self.lock:
            self.running.append(name)
            self.started.append((name, time.monotonic()))
        try:
            yield
            with self.lock:
                self.finished.append((name, time.monotonic()))
        finally:
            with self.lock:
                self.running.remove(name)


def pause(case: str) -> float:
    """Return how long (in seconds) a step takes that does not fail."""
    return PAUSES.get(case, 0.1)


def look_up(case: str, log: Log) -> AsyncTool:
    async def look_up(word: str) -> str:
        """Look up a word."""
        with log.doing("look_up"):
            await asyncio.sleep(pause(case))
            return FOUND

    return look_up


def research(case: str, log: Log) -> Tool:
    """Return the tool that fails as `case` says: an async one, unless it blocks."""
    if case == "blocks":
        return _blocking(log)
    body = {"hangs": _hang, "swallows": _swallow, "retries": _fail}.get(case)

    async def research(topic: str) -> str:
        """Research a topic."""
        with log.doing("research"):
            await (asyncio.sleep(pause(case)) if body is None else body())
            return "All there is to know."

    return research


def _blocking(log: Log) -> SyncTool:
    def research(topic: str) -> str:
        """Research a topic."""
        with log.doing("research"):
            time.sleep(STUBBORN)
            return "All there is to know."

    return research


async def _hang() -> None:
    await asyncio.Event().wait()


async def _swallow() -> None:
    end = time.monotonic() + STUBBORN
    while (left := end - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue  # the fault of this case


async def _fail() -> None:
    await asyncio.sleep(0.05)
    msg = "the service is not there"
    raise ConnectionError(msg)


def retried(tool: Tool) -> Tool:
    """Return `tool` with a loop of retries inside, for peers that retry no tools."""

    async def research(topic: str) -> str:
        """Research a topic."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return await _called(tool, topic)
            except ConnectionError:
                await asyncio.sleep(BACKOFF * 2**attempt)
        return await _called(tool, topic)

    return research


async def _called(tool: Tool, topic: str) -> str:
    result = tool(topic)
    return result if isinstance(result, str) else await result
