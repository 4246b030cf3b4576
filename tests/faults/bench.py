"""What one cell of the catalogue is made on: its clock, its notes, what it lets go."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, TypedDict

from harness import ASYNC, How
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store, get_stream_writer
from langgraph.graph.message import add_messages
from langgraph.store.memory import InMemoryStore

from langgraph_deadline import DeadlinePolicy, _clock
from langgraph_deadline.testing import VirtualClock

GRACE = 0.25
PATIENCE = 20.0
"""What a blocking fault waits at most for its release (in real seconds)."""


def union(old: list[str], new: list[str]) -> list[str]:
    """Return both without repetitions: a subgraph hands its input back as well."""
    return [*old, *(item for item in new if item not in old)]


class State(TypedDict, total=False):
    """What the catalogue's graphs keep."""

    log: Annotated[list[str], operator.add]
    found: Annotated[list[str], union]
    messages: Annotated[list[AnyMessage], add_messages]
    worker: int


class JumpingClock(VirtualClock):
    """A clock whose wall can be set while time goes on."""

    jumped = 0.0

    def wall(self) -> float:
        """Return the time on the wall (in epoch seconds)."""
        return super().wall() + self.jumped


class RealJumpingClock:
    """The same over the system's monotonic clock."""

    def __init__(self) -> None:
        self.monotonic, self._wall = _clock.now, _clock.wall
        self.jumped = 0.0

    def wall(self) -> float:
        """Return the time on the wall (in epoch seconds)."""
        return self._wall() + self.jumped


@dataclass
class Bench:
    """One thread with a fault in its first turn, and what was seen of it.

    Async ways run in virtual time, with 10 s, of which 2 are the reserve; sync ones in
    real time, with as little as a busy machine allows.
    """

    how: How
    real: bool = False
    """Whether time is real in async cells, too."""
    seconds: float = 0.6
    """When ordinary nodes are cut, where time is real."""
    saver: Any = field(default_factory=InMemorySaver)
    store: Any = field(default_factory=InMemoryStore)
    faulty: bool = True
    reached: bool = False
    """Whether the fault has begun."""
    started: list[str] = field(default_factory=list)
    """All that started: nodes, tools, models, attempts."""
    refused: list[str] = field(default_factory=list)
    """What a straggler was told when it went on."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    """The states that the fallback was called with."""
    chunks: list[Any] = field(default_factory=list)
    fallback_fails: bool = False
    lets_go: bool = False
    """Whether the fallback lets stragglers go on, and waits for what they do."""
    on_reach: list[Callable[[], None]] = field(default_factory=list)
    on_release: list[Callable[[], None]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    went_on: threading.Event = field(default_factory=threading.Event)
    clock: Any = None
    began: float = 0.0
    """When the first turn began, on that clock."""

    def __post_init__(self) -> None:
        self.clock = JumpingClock() if self.virtual else RealJumpingClock()

    @property
    def virtual(self) -> bool:
        """Whether the clock is a virtual one."""
        return self.how in ASYNC and not self.real

    @property
    def is_async(self) -> bool:
        """Whether the graph is driven by an event loop."""
        return self.how in ASYNC

    @property
    def work(self) -> float:
        """When ordinary nodes are cut (in seconds)."""
        return 8.0 if self.virtual else self.seconds

    @property
    def end(self) -> float:
        """When the run is over (in seconds)."""
        return self.work + (2.0 if self.virtual else 1.0)

    @property
    def policy(self) -> DeadlinePolicy:
        """The policy of the runs."""
        return DeadlinePolicy(
            seconds=self.end,
            reserve=timedelta(seconds=self.end - self.work),
            cancel_grace=GRACE,
        )

    def reach(self) -> None:
        """Note that the fault begins."""
        self.reached = True
        for action in self.on_reach:
            action()

    def release(self) -> None:
        """Let stragglers go on."""
        self.released.set()
        while self.on_release:
            self.on_release.pop()()

    def quick(self, name: str, **update: Any) -> Any:
        """Return a node that logs its name."""

        def node(state: Any) -> Any:
            self.started.append(name)
            return {"log": [name], **update}

        return self.kind_of(node)

    def fallback(self) -> Any:
        """Return a fallback that notes what it was called with."""

        def degrade(state: Any) -> Any:
            self.called_back(state)
            if self.lets_go:
                self.release()
                self.went_on.wait(self.takes)
            return {"log": ["degrade"]}

        async def adegrade(state: Any) -> Any:
            self.called_back(state)
            if self.lets_go:
                self.release()
                await asyncio.sleep(self.takes)
            return {"log": ["degrade"]}

        return adegrade if self.is_async else degrade

    @property
    def takes(self) -> float:
        """What the fallback takes at most (in seconds)."""
        return (1.0 if self.virtual else 0.4) if self.lets_go else 0.0

    def called_back(self, state: Any) -> None:
        """Note what the fallback was called with, and fail there if that is asked."""
        self.started.append("degrade")
        self.seen.append(dict(state))
        if self.faulty and self.fallback_fails:
            self.reach()
            msg = "the fallback fails"
            raise ValueError(msg)

    def kind_of(self, fn: Any) -> Any:
        """Return a quick sync function as the kind of function the cell is for."""
        if not self.is_async:
            return fn

        async def afn(value: Any) -> Any:
            return fn(value)

        afn.__name__ = fn.__name__
        return afn

    def go_on(self) -> None:
        """Try everything that work must not do any more once it was cut."""

        @tool
        def late() -> str:
            """Start late."""
            self.started.append("late tool")
            return "late"

        for effect in (
            lambda: get_stream_writer()("late"),
            lambda: get_store().put(("late",), "key", {"value": "late"}),
            lambda: late.invoke({}),
        ):
            try:
                effect()
            except Exception as error:  # noqa: BLE001 - what the invariants look at
                self.refused.append(type(error).__name__)
        self.went_on.set()


async def nap(seconds: float) -> None:
    """Sleep, whatever is cancelled meanwhile."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(seconds)
