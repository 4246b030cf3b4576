"""What is spent on runs that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import anyio
from langgraph.errors import GraphDrained
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.runtime import RunControl as LangGraphRunControl

from langgraph_deadline import DeadlineExceeded, RunControl, _clock, with_deadline
from langgraph_deadline import StateGraph as BoundedGraph
from langgraph_deadline.testing import run_virtual

from ..sheet import Sheet, Value
from .provider import Provider, ProviderModel

CALLS = {"plan": 60, "draft": 300, "review": 120}
"""The nodes in their order, and how many tokens the model says in each."""
GAP = 0.02
TOTAL = GAP * sum(CALLS.values())
DEADLINE = 60.0
PRICE = 10.0
"""Of a million tokens (in dollars)."""
SEED = 7

ABOUT = f"""Three nodes call a model for 60, 300 and 120 tokens, one every {GAP:g} s:
{TOTAL:g} s in all. Its provider behaves as providers do: a stream ends with its
connection, an answer that is not streamed is generated to the end whoever waits. The
caller leaves at a moment of the run drawn evenly, the same under every row; only tokens
generated later count. *Node boundaries* is LangGraph's own `RunControl.request_drain`.
A *scope* is an anyio cancel scope around `astream(stream_mode="messages")`, as web
frameworks close a stream. Ours is compiled with a deadline of {DEADLINE:g} s, which is
never reached, and its model is wrapped, which streams. LangGraph's streams where the
row says so and under the scope, otherwise not, which is the default. Where the run is
cancelled, what is saved is saved by streaming, wrapped or not. The provider notices at
once that a connection is closed, and stops at that token; one that notices later, or
never, spends more wherever a model streams. Dollars are at {PRICE:g} a million tokens
that are generated; prompts are not counted."""


class State(TypedDict, total=False):
    said: str


Leave = Callable[[], None]
Started = tuple[Awaitable[Any], Leave]
"""A run, and how its caller leaves it."""
Way = Callable[[Provider], Started]


def calling(model: Any, tokens: int) -> Callable[[State], Awaitable[State]]:
    """Return a node that has the model say so many tokens."""

    async def node(_: State) -> State:
        return {"said": (await model.ainvoke(str(tokens))).text}

    return node


def graph_of(kind: Any, model: Any) -> Any:
    builder = kind(State)
    for name, tokens in CALLS.items():
        builder.add_node(name, calling(model, tokens))
    for before, after in zip([START, *CALLS], CALLS, strict=False):
        builder.add_edge(before, after)
    return builder


def plain(provider: Provider, **fields: Any) -> Any:
    return graph_of(PlainGraph, ProviderModel(provider=provider, **fields)).compile()


def bounded(provider: Provider) -> Any:
    model = with_deadline(ProviderModel(provider=provider))
    return graph_of(BoundedGraph, model).compile(deadline=DEADLINE)


def _not_at_all(provider: Provider) -> Started:
    return plain(provider).ainvoke({}), lambda: None


def _node_boundaries(provider: Provider) -> Started:
    control = LangGraphRunControl()
    return plain(provider).ainvoke({}, control=control), control.request_drain


def _stop_button(provider: Provider) -> Started:
    control = RunControl()
    return bounded(provider).ainvoke({}, control=control), control.cancel


def _cancelled(run: Awaitable[Any]) -> Started:
    task = asyncio.ensure_future(run)
    return task, lambda: void(task.cancel())


def void(_: object) -> None:
    """Return nothing."""


def _scoped(graph: Any) -> Started:
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            async for _ in graph.astream({}, stream_mode="messages"):
                pass

    return run(), scope.cancel


WAYS: dict[str, Way] = {
    "LangGraph: no cancellation": _not_at_all,
    "LangGraph: at node boundaries": _node_boundaries,
    "LangGraph: task cancelled, answers whole": lambda p: _cancelled(
        plain(p).ainvoke({})
    ),
    "LangGraph: task cancelled, model streams": lambda p: _cancelled(
        plain(p, streaming=True).ainvoke({})
    ),
    "LangGraph: scope cancelled": lambda p: _scoped(plain(p)),
    "ours: `RunControl.cancel`": _stop_button,
    "ours: task cancelled": lambda p: _cancelled(bounded(p).ainvoke({})),
    "ours: scope cancelled": lambda p: _scoped(bounded(p)),
}

COLUMNS = {
    "the run is stopped by": "",
    "tokens": ",",
    "after the caller left": ",",
    "share": ".1%",
    "model calls begun after": ",",
    "$ for 1,000 such runs": ".2f",
}


@dataclass(frozen=True, slots=True)
class Spent:
    """What one abandoned run cost."""

    tokens: int
    late: int
    late_calls: int


def measure(quick: bool) -> list[Sheet]:
    """Leave many runs in each way."""
    return [table(20 if quick else 100)]


def table(runs: int) -> Sheet:
    """Leave so many runs in each way."""
    draw = random.Random(SEED)
    moments = [draw.uniform(0, TOTAL) for _ in range(runs)]
    rows = [
        _row(name, [_spent(way, at) for at in moments]) for name, way in WAYS.items()
    ]
    about = f"{ABOUT} {runs:,} runs a row."
    return Sheet("Spend on abandoned runs", about, COLUMNS, rows)


def _row(name: str, spent: list[Spent]) -> dict[str, Value]:
    tokens = sum(run.tokens for run in spent)
    late = sum(run.late for run in spent)
    return {
        "the run is stopped by": name,
        "tokens": tokens,
        "after the caller left": late,
        "share": late / tokens,
        "model calls begun after": sum(run.late_calls for run in spent),
        "$ for 1,000 such runs": late / len(spent) * 1_000 * PRICE / 1e6,
    }


def _spent(way: Way, after: float) -> Spent:
    provider = Provider(GAP)

    async def main() -> Spent:
        run, leave = way(provider)
        task = asyncio.ensure_future(run)
        await asyncio.sleep(after)
        left = _clock.now()
        leave()
        expected = (asyncio.CancelledError, DeadlineExceeded, GraphDrained)
        with contextlib.suppress(*expected):
            await task
        await asyncio.sleep(2 * TOTAL)  # whatever goes on behind the caller's back
        late = sum(at > left for at in provider.tokens)
        late_calls = sum(at > left for at in provider.calls)
        return Spent(len(provider.tokens), late, late_calls)

    return run_virtual(main())
