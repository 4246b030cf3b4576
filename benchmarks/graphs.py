"""The graphs that are measured: LangGraph's own, or ours where a deadline is given."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langchain_core.callbacks import BaseCallbackHandler
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.types import Send

from langgraph_deadline import DeadlinePolicy
from langgraph_deadline import StateGraph as BoundedGraph

INPUT = {"value": 0}
ANSWER = {"value": -1}
CONFIG: Any = {"recursion_limit": 10_000}
RESERVE = 5.0
"""Time for the fallback (in seconds): so much that it is never short of it."""

Node = Callable[..., Any]


class State(TypedDict):
    value: int


class Summed(TypedDict):
    value: Annotated[int, operator.add]


class InlineHandler(BaseCallbackHandler):
    """Does nothing, which is the least that a handler in the config can cost."""

    run_inline = True


# Nodes.


def noop(state: Any) -> dict[str, int]:
    return {"value": 1}


async def anoop(state: Any) -> dict[str, int]:
    return {"value": 1}


def answer(state: Any) -> dict[str, int]:
    return ANSWER


async def aanswer(state: Any) -> dict[str, int]:
    return ANSWER


def sleeps(seconds: float) -> Node:
    """Return a sync node that blocks, as a call to a database does."""

    def node(state: Any) -> dict[str, int]:
        time.sleep(seconds)
        return {"value": 1}

    return node


def computes(seconds: float) -> Node:
    """Return an async node that keeps a core busy."""

    async def node(state: Any) -> dict[str, int]:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return {"value": 1}

    return node


def hangs(begun: Callable[[], None]) -> Node:
    """Return an async node that never ends, and calls `begun` when it begins."""

    async def node(state: Any) -> None:
        begun()
        await asyncio.get_running_loop().create_future()

    return node


# What `compile` gets.


def everything(fallback: Node) -> dict[str, Any]:
    """Return the arguments for a deadline that is never reached, and a fallback."""
    return {"deadline": 60, "fallback": fallback}


def cut_after(seconds: float, fallback: Node | None = None) -> dict[str, Any]:
    """Return the arguments that have the work cut after so many seconds."""
    if fallback is None:
        return {"deadline": seconds}
    policy = DeadlinePolicy(seconds=seconds + RESERVE, reserve=RESERVE)
    return {"deadline": policy, "fallback": fallback}


# Graphs.


def chain(node: Node, length: int, *, timeout: Any = None, **compiled: Any) -> Any:
    """Return a graph that calls `node` so many times, one after the other."""
    builder = _builder(State, compiled)
    names = [f"node{number}" for number in range(length)]
    for name in names:
        builder.add_node(name, node, timeout=timeout)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder.compile(**compiled)


def nested(node: Node, levels: int, **compiled: Any) -> Any:
    """Return a graph with so many levels of subgraphs, and a chain of ten in the last.

    Every level has a node of its own beside the subgraph.
    """
    inner = chain(node, 10)
    for level in reversed(range(levels)):
        outermost = compiled if level == 0 else {}
        builder = _builder(State, outermost)
        builder.add_node("own", node)
        builder.add_node("inner", inner)
        builder.add_edge(START, "own")
        builder.add_edge("own", "inner")
        builder.add_edge("inner", END)
        inner = builder.compile(**outermost)
    return inner


def fan_out(node: Node, width: int, **compiled: Any) -> Any:
    """Return a graph that sends so many tasks to `node` in one superstep."""

    def send(state: Any) -> list[Send]:
        return [Send("worker", state)] * width

    builder = _builder(Summed, compiled)
    builder.add_node("worker", node)
    builder.add_conditional_edges(START, send, ["worker"])
    builder.add_edge("worker", END)
    return builder.compile(**compiled)


def _builder(schema: Any, compiled: dict[str, Any]) -> Any:
    kind: Any = BoundedGraph if "deadline" in compiled else PlainGraph
    return kind(schema)
