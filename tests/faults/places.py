"""Where it fails: one small graph, with the suspect in another place of it each time.

    START - earlier +- sibling -+- after          degrade - closing
                    +- suspect -+

`after` waits for both: a cut leaves it half ready, which the next turn must not see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy, Send

from langgraph_deadline import with_deadline

from .bench import Bench, union
from .bodies import ahang, hang
from .suspect import AsyncFaultyModel, FaultyModel, Suspect, tools

RETRIES = RetryPolicy(initial_interval=0.01, max_attempts=3, jitter=False)


def skeleton(bench: Bench, builder: Any) -> None:
    """Add all but the suspect."""
    builder.add_node("earlier", bench.quick("earlier"))
    builder.add_node("sibling", bench.quick("sibling"))
    builder.add_node("after", bench.quick("after"))
    builder.add_edge(START, "earlier")
    builder.add_edge("earlier", "sibling")


def in_line(builder: Any) -> None:
    """Connect the suspect."""
    builder.add_edge("earlier", "suspect")
    builder.add_edge(["sibling", "suspect"], "after")


def node(suspect: Suspect, builder: Any) -> None:
    """The body of a node."""
    skeleton(suspect.bench, builder)
    builder.add_node("suspect", suspect.node("suspect"))
    in_line(builder)


def retry(suspect: Suspect, builder: Any) -> None:
    """The second attempt of a node."""
    skeleton(suspect.bench, builder)
    bench = suspect.bench

    def first_fails(_: Any) -> None:
        bench.started.append("suspect")
        if bench.faulty and bench.started.count("suspect") == 1:
            msg = "the first attempt fails"
            raise ConnectionError(msg)

    fn = suspect.around(first_fails, {"log": ["suspect"]})
    builder.add_node("suspect", fn, retry_policy=RETRIES)
    in_line(builder)


def model(suspect: Suspect, builder: Any) -> None:
    """A chat model with a deadline, called in a node."""
    bench = suspect.bench
    skeleton(bench, builder)
    kind = AsyncFaultyModel if suspect.is_async else FaultyModel
    asked = with_deadline(kind(suspect=suspect), 100)

    def sync(state: Any) -> Any:
        bench.started.append("suspect")
        return {"log": [str(asked.invoke("?").content)]}

    async def coroutine(state: Any) -> Any:
        bench.started.append("suspect")
        return {"log": [str((await asked.ainvoke("?")).content)]}

    builder.add_node("suspect", coroutine if bench.is_async else sync)
    in_line(builder)


def tool(suspect: Suspect, builder: Any) -> None:
    """One of two tools of a tool node."""
    bench = suspect.bench
    calls = [
        {"name": name, "args": {}, "id": name, "type": "tool_call"}
        for name in ("quick", "faulty")
    ]

    def ask(_: Any) -> Any:
        bench.started.append("earlier")
        return {"log": ["earlier"], "messages": [AIMessage("", tool_calls=calls)]}

    skeleton(bench, builder)
    builder.nodes.pop("earlier")
    builder.add_node("earlier", bench.kind_of(ask))
    builder.add_node("suspect", ToolNode(tools(suspect)))
    in_line(builder)


class Inner(TypedDict, total=False):
    """What the subgraph shares with the graph around it."""

    found: Annotated[list[str], union]


def subgraph(suspect: Suspect, builder: Any) -> None:
    """A node of a subgraph, with a finished one before it and one beside it."""
    bench = suspect.bench
    skeleton(bench, builder)
    inside = PlainGraph(Inner)
    inside.add_node("first", _finds(bench, "first"))
    inside.add_node("beside", _finds(bench, "beside"))
    inside.add_node(
        "inner",
        suspect.around(lambda _: bench.started.append("inner"), {"found": ["inner"]}),
    )
    inside.add_edge(START, "first")
    inside.add_edge("first", "inner")
    inside.add_edge("first", "beside")
    builder.add_node("suspect", inside.compile())
    in_line(builder)


def _finds(bench: Bench, name: str) -> Any:
    def find(_: Any) -> Any:
        bench.started.append(name)
        return {"found": [name]}

    return bench.kind_of(find)


def send(suspect: Suspect, builder: Any) -> None:
    """One of three workers that were sent for."""
    bench = suspect.bench
    skeleton(bench, builder)

    def sync(given: Any) -> Any:
        worker = given["worker"]
        bench.started.append(f"worker {worker}")
        if worker == 1:
            suspect.call()
        return {"log": [f"worker {worker}"]}

    async def coroutine(given: Any) -> Any:
        worker = given["worker"]
        bench.started.append(f"worker {worker}")
        if worker == 1:
            await suspect.acall()
        return {"log": [f"worker {worker}"]}

    def workers(_: Any) -> list[Send]:
        return [Send("suspect", {"worker": number}) for number in range(3)]

    builder.add_node("suspect", coroutine if suspect.is_async else sync)
    builder.add_conditional_edges("earlier", bench.kind_of(workers), ["suspect"])
    builder.add_edge(["sibling", "suspect"], "after")


def edge(suspect: Suspect, builder: Any) -> None:
    """A conditional edge; the node before it has finished."""
    bench = suspect.bench
    skeleton(bench, builder)
    builder.add_node("suspect", bench.quick("suspect"))
    builder.add_edge("earlier", "suspect")
    route = suspect.around(lambda _: bench.started.append("edge"), "after")
    builder.add_conditional_edges("suspect", route, ["after"])
    builder.add_edge("sibling", "after")


def fallback(suspect: Suspect, builder: Any) -> None:
    """The fallback, after a node that hangs."""
    bench = suspect.bench
    skeleton(bench, builder)
    hangs = Suspect(bench, hang, ahang, announced=False)
    builder.add_node("suspect", hangs.node("suspect"))
    in_line(builder)

    degrade = suspect.around(bench.called_back, {"log": ["degrade"]})
    builder.add_node("degrade", degrade)


@dataclass(frozen=True)
class Place:
    """Where a fault may be, and what is finished by the time it begins."""

    name: str
    build: Callable[[Suspect, Any], None]
    logged: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    """Tools that have answered."""
    returned: tuple[str, ...] = ()
    """What is kept as well of an async body that returns within the grace."""
    blocker: str = "suspect"
    """The step that is named when the event loop is blocked there."""


PLACES = (
    Place("node", node, returned=("suspect",)),
    Place("tool", tool, answered=("quick",), returned=("faulty",), blocker="faulty"),
    Place("model", model, blocker="AsyncFaultyModel"),
    Place("retry", retry, returned=("suspect",)),
    Place(
        "subgraph",
        subgraph,
        found=("first", "beside"),
        returned=("inner",),
        blocker="inner",
    ),
    Place("send", send, logged=("worker 0", "worker 2"), returned=("worker 1",)),
    Place("fallback", fallback, blocker="degrade"),
    Place("edge", edge, logged=("suspect",)),
)
