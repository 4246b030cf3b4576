"""Faults to put in place of a node, to see what a graph does about them.

```python
from langgraph_deadline.faults import hangs, replaced
from langgraph_deadline.testing import run_virtual

def test_answers_without_the_search():
    result = run_virtual(replaced(graph, search=hangs()).ainvoke(inputs))
```

They are Runnables for `invoke` and `ainvoke`, so a graph also takes them as nodes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig

from . import _clock
from ._langgraph import as_runnable
from .testing import VirtualTimeLoop

GraphT = TypeVar("GraphT")

_LONGEST = 60.0
"""How long a thread hangs at most (in real seconds): nobody can cancel it."""


class Fault(Runnable[Any, Any]):
    """A body for a node, with a sync side and an async one."""

    def __init__(
        self,
        name: str,
        body: Callable[[Any], Any],
        abody: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self.name = name
        self._body = body
        self._abody = abody

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Do it in this thread."""
        return self._body(input)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Do it in this task."""
        return await self._abody(input)


def hangs() -> Fault:
    """Return a body that does not come back by itself; a cancellation ends it."""

    def hang(state: Any) -> None:
        threading.Event().wait(_LONGEST)

    async def ahang(state: Any) -> None:
        await asyncio.get_running_loop().create_future()

    return Fault("hangs", hang, ahang)


def swallows_cancellation(seconds: float, update: Any = None) -> Fault:
    """Return a body that goes on for `seconds` whoever cancels it.

    Args:
        seconds: How long it goes on.
        update: What it returns then, which is late and must have no effect.
    """

    def go_on(state: Any) -> Any:
        _clock.sleep(seconds)
        return update

    async def ago_on(state: Any) -> Any:
        until = _clock.now() + seconds
        while (left := until - _clock.now()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue
        return update

    return Fault("swallows_cancellation", go_on, ago_on)


def blocks(seconds: float, update: Any = None) -> Fault:
    """Return a body that keeps its thread, or the event loop, busy for `seconds`.

    Args:
        seconds: How long; in virtual time the clock moves on by that much.
        update: What it returns then.
    """

    def block(state: Any) -> Any:
        _clock.sleep(seconds)
        return update

    async def ablock(state: Any) -> Any:
        loop = asyncio.get_running_loop()
        sleep = loop.clock.sleep if isinstance(loop, VirtualTimeLoop) else _clock.sleep
        sleep(seconds)
        return update

    return Fault("blocks", block, ablock)


def replaced(graph: GraphT, **nodes: Any) -> GraphT:
    """Return a copy of a compiled graph with other bodies in some of its nodes.

    Edges, budgets, the deadline and the fallback stay; a retry policy of the node's own
    does not. The graph itself stays as it was.

    Args:
        graph: A compiled graph, with a deadline or without.
        nodes: For each node that is replaced its new body: a fault, or any Runnable or
            function.

    Raises:
        ValueError: If there is no such node.
    """
    compiled: Any = graph
    for name in nodes:
        if name not in compiled.nodes:
            there = [name for name in compiled.nodes if not name.startswith("__")]
            msg = f"there is no node {name!r} in this graph; it has {there}"
            raise ValueError(msg)
    bodies = {
        name: compiled.nodes[name].copy(
            {"bound": as_runnable(body, name), "subgraphs": ()}
        )
        for name, body in nodes.items()
    }
    return compiled.copy({"nodes": {**compiled.nodes, **bodies}})  # type: ignore[no-any-return]
