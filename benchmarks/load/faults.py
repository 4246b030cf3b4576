"""A graph whose runs are healthy or hold a fault, and what was seen of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainGraph

from langgraph_deadline import DeadlineExceeded, check
from langgraph_deadline import StateGraph as BoundedGraph

Kind = Literal["healthy", "hang", "swallow", "block"]
FAULTS: tuple[Kind, ...] = ("hang", "swallow", "block")
EVERY = 10
"""One run in so many holds a fault."""


class State(TypedDict, total=False):
    kind: Kind
    seconds: float
    at: float
    answer: str


def kind_of(number: int) -> Kind:
    """Return what the run with this number is: every tenth has a fault, in turn."""
    if number % EVERY:
        return "healthy"
    return FAULTS[number // EVERY % len(FAULTS)]


def input_of(number: int, at: float, seconds: float = 0.5) -> State:
    """Return the input of a run whose work has to end at the instant `at`.

    A healthy one takes up to `seconds`, each another time.
    """
    share = (number % 97) / 97
    return {"kind": kind_of(number), "seconds": seconds * share, "at": at}


@dataclass
class Ward:
    """Where runs hang until they are released, and what they do meanwhile."""

    begun: int = 0
    late_starts: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    _future: asyncio.Future[None] | None = None
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        """Take the next runs in."""
        self.begun = self.late_starts = 0
        self.released.clear()
        with contextlib.suppress(RuntimeError):  # no loop: for sync runs
            self._future = asyncio.get_running_loop().create_future()

    def release(self) -> None:
        """Let everything go that still hangs."""
        self.released.set()
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    # Async nodes.

    async def work(self, state: State) -> State:
        """Work, hang for ever, or hang and swallow every cancellation."""
        self._begins()
        if state["kind"] == "healthy":
            await asyncio.sleep(state["seconds"])
        elif state["kind"] == "hang":
            await asyncio.shield(self._released())
        else:
            await _swallowing(self._released())
        return {}

    async def after(self, state: State) -> State:
        """Note a start that comes too late."""
        self._starts_after(state)
        return {"answer": "complete"}

    def _released(self) -> asyncio.Future[None]:
        if self._future is None:
            msg = "the ward is not open: call `open` in the loop of the runs first"
            raise RuntimeError(msg)
        return self._future

    def _begins(self) -> None:
        with self._counting:  # sync nodes are in many threads
            self.begun += 1

    def _starts_after(self, state: State) -> None:
        late = time.monotonic() > state["at"]
        with self._counting:
            self.late_starts += late

    # Sync nodes.

    def block(self, state: State) -> State:
        """Block in a call that nothing interrupts."""
        self._begins()
        self.released.wait()
        return {}

    def sync_work(self, state: State) -> State:
        """Work, wait for ever, or wait and swallow what is raised."""
        self._begins()
        if state["kind"] == "healthy":
            time.sleep(state["seconds"])
        elif state["kind"] == "hang":
            self.released.wait()
        else:
            while not self.released.wait(0.02):
                with contextlib.suppress(DeadlineExceeded):
                    check()
        return {}

    def sync_after(self, state: State) -> State:
        """Note a start that comes too late."""
        self._starts_after(state)
        return {"answer": "complete"}


async def _swallowing(future: asyncio.Future[None]) -> None:
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(future)


def graph_of(work: Any, block: Any, after: Any, **compiled: Any) -> Any:
    """Return the graph: the work or the blocking call, then one more node."""
    kind: Any = BoundedGraph if "deadline" in compiled else PlainGraph
    builder = kind(State)
    builder.add_node("work", work)
    builder.add_node("block", block)
    builder.add_node("after", after)
    builder.add_conditional_edges(START, _way, ["work", "block"])
    builder.add_edge("work", "after")
    builder.add_edge("block", "after")
    builder.add_edge("after", END)
    return builder.compile(**compiled)


def _way(state: State) -> str:
    return "block" if state["kind"] == "block" else "work"


def degrade(state: State) -> State:
    return {"answer": "fallback"}


async def adegrade(state: State) -> State:
    return {"answer": "fallback"}


def second_graph(node: Any) -> Any:
    """Return the graph that answers where LangGraph alone was timed out."""
    builder = PlainGraph(State).add_node("degrade", node)
    return builder.add_edge(START, "degrade").compile()
