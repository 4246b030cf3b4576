"""Random graphs: stages in a row, each with a join that the next one follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.types import Command, RetryPolicy, Send

from .work import Inner, State, Work

LAPS = 2

Builder = Any
Stage = Callable[[Work, Builder, str, str], list[str]]
"""Adds a stage called by its second name after a node; returns its nodes, join last."""


def _single(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    builder.add_node(name, work.node(name))
    builder.add_edge(before, name)
    return [name]


def _branch(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    arms = [f"{name}_left", f"{name}_right"]

    async def route(state: State) -> str:
        return arms[int(state["turn"]) % 2]

    for arm in arms:
        builder.add_node(arm, work.node(arm))
        builder.add_edge(arm, name)
    builder.add_node(name, work.node(name))
    builder.add_conditional_edges(before, route, arms)
    return [*arms, name]


def _fan(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    arms = [f"{name}_{n}" for n in range(3)]
    for arm in arms:
        builder.add_node(arm, work.node(arm))
        builder.add_edge(before, arm)
    builder.add_node(name, work.node(name))
    builder.add_edge(arms, name)
    return [*arms, name]


def _deferred(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    short, long, longer = arms = [f"{name}_{n}" for n in ("short", "long", "longer")]
    for arm in arms:
        builder.add_node(arm, work.node(arm))
    builder.add_edge(before, short)
    builder.add_edge(before, long)
    builder.add_edge(long, longer)
    builder.add_node(name, work.node(name), defer=True)
    builder.add_edge(short, name)
    builder.add_edge(longer, name)
    return [*arms, name]


def _deferred_barrier(
    work: Work, builder: Builder, before: str, name: str
) -> list[str]:
    short, long, longer = arms = [f"{name}_{n}" for n in ("short", "long", "longer")]
    for arm in arms:
        builder.add_node(arm, work.node(arm))
    builder.add_edge(before, short)
    builder.add_edge(before, long)
    builder.add_edge(long, longer)
    builder.add_node(name, work.node(name), defer=True)
    builder.add_edge([short, longer], name)
    return [*arms, name]


def _sends(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    worker = f"{name}_worker"

    async def route(state: State) -> list[Send]:
        return [Send(worker, {"worker": n, "turn": state["turn"]}) for n in range(3)]

    builder.add_node(worker, work.node(worker))
    builder.add_node(name, work.node(name))
    builder.add_conditional_edges(before, route, [worker])
    builder.add_edge(worker, name)
    return [worker, name]


def _found(state: Any, said: str) -> Any:
    return {"found": [f"{said}@{state['turn']}"]}


def _inside(work: Work, nodes: list[str]) -> Any:
    """Return a graph of four nodes, two of them side by side."""
    inside = PlainGraph(Inner)
    for node in nodes:
        inside.add_node(node, work.node(node, _found))
    first, left, right, last = nodes
    inside.add_edge(START, first)
    inside.add_edge(first, left)
    inside.add_edge(first, right)
    inside.add_edge([left, right], last)
    return inside


def _four(name: str) -> list[str]:
    return [f"{name}_{n}" for n in ("first", "left", "right", "last")]


def _subgraph(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    nodes = _four(name)
    builder.add_node(f"{name}_graph", _inside(work, nodes).compile())
    builder.add_node(name, work.node(name))
    builder.add_edge(before, f"{name}_graph")
    builder.add_edge(f"{name}_graph", name)
    return [*nodes, name]


def _deep(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    nodes = _four(name)
    outer = PlainGraph(Inner)
    outer.add_node(f"{name}_inner", _inside(work, nodes).compile())
    outer.add_node(f"{name}_beside", work.node(f"{name}_beside", _found))
    outer.add_edge(START, f"{name}_inner")
    outer.add_edge(START, f"{name}_beside")
    builder.add_node(f"{name}_graph", outer.compile())
    builder.add_node(name, work.node(name))
    builder.add_edge(before, f"{name}_graph")
    builder.add_edge(f"{name}_graph", name)
    return [*nodes, f"{name}_beside", name]


def _sent_graphs(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    nodes = _four(name)

    async def route(state: State) -> list[Send]:
        turn = state["turn"]
        return [Send(f"{name}_graph", {"worker": n, "turn": turn}) for n in range(2)]

    builder.add_node(f"{name}_graph", _inside(work, nodes).compile())
    builder.add_node(name, work.node(name))
    builder.add_conditional_edges(before, route, [f"{name}_graph"])
    builder.add_edge(f"{name}_graph", name)
    return [*nodes, name]


def _commands(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    arms = [f"{name}_goto_{n}" for n in range(2)]

    def goto(_: Any, said: str) -> Any:
        return Command(goto=arms, update={"log": [said]})

    builder.add_node(f"{name}_command", work.node(f"{name}_command", goto))
    builder.add_edge(before, f"{name}_command")
    for arm in arms:
        builder.add_node(arm, work.node(arm))
    builder.add_node(name, work.node(name))
    builder.add_edge(arms, name)
    return [f"{name}_command", *arms, name]


def _retried(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    node = work.node(name)

    async def flaky(state: State) -> Any:
        if work.attempts.setdefault(f"{name}@{state['turn']}", 0) == 0:
            work.attempts[f"{name}@{state['turn']}"] = 1
            msg = "the first attempt fails"
            raise ConnectionError(msg)
        return await node(state)

    builder.add_node(name, flaky, retry_policy=RetryPolicy(jitter=False))
    builder.add_edge(before, name)
    return [name]


def _loop(work: Work, builder: Builder, before: str, name: str) -> list[str]:
    lap = f"{name}_lap"

    async def route(state: State) -> str:
        begin = len(state["log"]) - state["log"][::-1].index(f"turn {state['turn']}")
        return lap if state["log"][begin:].count(lap) < LAPS else name

    builder.add_node(lap, work.node(lap))
    builder.add_node(name, work.node(name))
    builder.add_edge(before, lap)
    builder.add_conditional_edges(lap, route, [lap, name])
    return [lap, name]


STAGES: dict[str, Stage] = {
    "single": _single,
    "branch": _branch,
    "fan": _fan,
    "deferred": _deferred,
    "deferred barrier": _deferred_barrier,
    "sends": _sends,
    "subgraph": _subgraph,
    "deep subgraph": _deep,
    "sent subgraphs": _sent_graphs,
    "commands": _commands,
    "retried": _retried,
    "loop": _loop,
}

shapes = st.lists(st.sampled_from(sorted(STAGES)), min_size=1, max_size=4)


def build(builder: Builder, work: Work, shape: list[str]) -> list[str]:
    """Add the stages of `shape`; return the names of the nodes that may fail."""
    before, names = START, []
    for n, stage in enumerate(["single", *shape]):
        added = STAGES[stage](work, builder, before, f"s{n}")
        before = added[-1]
        names += added
    return names
