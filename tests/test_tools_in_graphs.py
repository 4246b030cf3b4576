"""Bounded tools in nodes and plain graphs, MCP's tools, and options nobody can use."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any, cast

import pytest
from harness import ALL, SYNC, How, Trial, drive
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_mcp_adapters.tools import load_mcp_tools
from langgraph.config import get_store, get_stream_writer
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.prebuilt import InjectedState, InjectedStore, ToolNode, ToolRuntime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlineHandler,
    StateGraph,
    _clock,
    with_deadline,
)

HANG = 3600.0

hows = pytest.mark.parametrize("how", ALL)

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(globals(), "released", threading.Event())
    yield
    released.set()


def asks(name: str, id: str = "1", **args: Any) -> Any:
    """Return the input of a graph that calls a tool."""
    call = {"name": name, "args": args, "id": id, "type": "tool_call"}
    return {"messages": [AIMessage("", tool_calls=[cast("Any", call)], id="asks")]}


def slow(seconds: float = 0.0) -> str:
    """Do something."""
    released.wait(min(seconds, 3.0))
    return "a result"


async def aslow(seconds: float = 0.0) -> str:
    """Do something."""
    await asyncio.sleep(seconds)
    return "a result"


good = StructuredTool.from_function(slow, aslow, name="good")


# In a node of one's own, and in graphs that know nothing of deadlines.


@hows
def test_a_tool_called_in_a_function_has_what_is_left_of_the_run(how: How) -> None:
    trial = Trial(how)
    bounded = with_deadline(good, 60, on_exceeded="raise")

    def node(state: Any) -> Any:
        return {"messages": [bounded.invoke({"seconds": HANG})]}

    async def anode(state: Any) -> Any:
        return {"messages": [await bounded.ainvoke({"seconds": HANG})]}

    builder = StateGraph(MessagesState)
    builder.add_node("node", node if how in SYNC else anode)
    builder.add_node("degrade", lambda _: {"messages": ["Sorry."]})
    builder.add_edge(START, "node")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, {"messages": []})
    assert driven.error is None
    trial.at_work(driven)
    assert driven.values["messages"][-1].content == "Sorry."
    assert [call.name for call in driven.report.unknown] == ["good"]


@hows
@pytest.mark.parametrize("asked", ["message", "raise"])
def test_a_tool_called_in_a_function_has_its_own_limit(how: How, asked: Any) -> None:
    trial = Trial(how, seconds=2.0)
    limit = 0.3 if how in SYNC else 3.0
    bounded = with_deadline(good, limit, on_exceeded=asked)

    def node(state: Any) -> Any:
        return {"messages": [bounded.invoke({"seconds": HANG})]}

    async def anode(state: Any) -> Any:
        return {"messages": [await bounded.ainvoke({"seconds": HANG})]}

    builder = StateGraph(MessagesState)
    builder.add_node("node", node if how in SYNC else anode)
    builder.add_node("degrade", lambda _: {"messages": ["Sorry."]})
    builder.add_edge(START, "node")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, {"messages": []})
    assert driven.error is None
    trial.took(driven, limit)
    last = driven.values["messages"][-1].content
    if asked == "message":
        assert f"its own limit of {limit:.3g} s" in last
        assert driven.report.outcome == "completed"
    else:
        assert last == "Sorry."
        assert driven.report.cause == "step"


@hows
def test_a_bounded_tool_in_a_plain_graph_answers_in_time(how: How) -> None:
    limit = 0.3 if how in SYNC else 3.0
    node = ToolNode([with_deadline(good, limit)])
    builder = PlainStateGraph(MessagesState).add_node("tools", node)
    graph = builder.add_edge(START, "tools").compile()
    driven = drive(graph, asks("good", seconds=HANG), how, virtual=True)
    assert driven.error is None
    message = driven.values["messages"][-1]
    assert isinstance(message, ToolMessage)
    assert message.status == "error"
    assert f"its own limit of {limit:.3g} s; there is no deadline" in message.text
    assert driven.elapsed < limit + 0.8


@hows
def test_an_error_that_was_asked_for_leaves_a_plain_graph(how: How) -> None:
    limit = 0.3 if how in SYNC else 3.0
    node = ToolNode([with_deadline(good, limit, on_exceeded="raise")])
    builder = PlainStateGraph(MessagesState).add_node("tools", node)
    graph = builder.add_edge(START, "tools").compile()
    driven = drive(graph, asks("good", seconds=HANG), how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert (driven.error.cause, driven.error.step) == ("step", "good")


@pytest.mark.realtime
def test_a_handler_by_hand_refuses_a_bounded_tool() -> None:
    node = ToolNode([with_deadline(good, 60)], handle_tool_errors=True)
    builder = PlainStateGraph(MessagesState)
    builder.add_node("first", lambda _: time.sleep(0.3))
    builder.add_node("tools", node)
    builder.add_edge(START, "first").add_edge("first", "tools")
    graph = builder.compile()
    config: Any = {"callbacks": [DeadlineHandler(0.1)]}
    with pytest.raises(DeadlineExceeded):
        graph.invoke(asks("good", seconds=0), config)


@hows
def test_all_that_is_injected_arrives_in_a_bounded_graph(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    seen: list[Any] = []

    def look(
        page: str,
        state: Annotated[dict[str, Any], InjectedState],
        store: Annotated[BaseStore, InjectedStore()],
        runtime: ToolRuntime,
    ) -> str:
        """Look."""
        store.put(("a",), page, {"seen": True})
        seen.append((len(state["messages"]), runtime.tool_call_id))
        return page

    async def alook(
        page: str,
        state: Annotated[dict[str, Any], InjectedState],
        store: Annotated[BaseStore, InjectedStore()],
        runtime: ToolRuntime,
    ) -> str:
        """Look."""
        await store.aput(("a",), page, {"seen": True})
        seen.append((len(state["messages"]), runtime.tool_call_id))
        return page

    looks = StructuredTool.from_function(look, alook, name="look")
    store = InMemoryStore()
    for tools in ([looks], [with_deadline(looks, 60)]):
        builder = StateGraph(MessagesState).add_node("tools", ToolNode(tools))
        builder.add_edge(START, "tools")
        graph = trial.compile(builder, "raise", store=store)
        driven = trial.drive(graph, asks("look", page="home"))
        assert driven.error is None
        assert driven.values["messages"][-1].content == "home"
    assert seen == [(1, "1")] * 2
    assert len(store.search(("a",))) == 1


# What a straggler can no longer do.


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("by", ["function", "runtime"])
def test_a_straggler_writes_to_no_stream_and_no_store(how: How, by: str) -> None:
    """In a bounded graph; a plain one has nothing that could be closed."""
    came_back = threading.Event()

    def write(runtime: ToolRuntime) -> str:
        """Write late."""
        gate = released
        by_runtime = by == "runtime"
        writer = runtime.stream_writer if by_runtime else get_stream_writer()
        store: Any = runtime.store if by_runtime else get_store()
        writer("early")
        gate.wait(3.0)
        try:
            writer("late")
            store.put(("a",), "late", {"a": 1})
        finally:
            came_back.set()
        return "late"

    writes = with_deadline(StructuredTool.from_function(write, name="write"), 0.3)
    store = InMemoryStore()
    # The run goes on beside the straggler, which is let go while it does.
    builder = StateGraph(MessagesState).add_node("tools", ToolNode([writes]))

    def after(state: Any) -> Any:
        released.set()
        assert came_back.wait(3.0)
        get_stream_writer()("after")

    builder.add_node("after", after)
    builder.add_edge(START, "tools").add_edge("tools", "after")
    graph = builder.compile(store=store, deadline=30)
    chunks: list[Any] = []
    if how == "stream":
        chunks.extend(graph.stream(asks("write"), stream_mode="custom"))
    else:

        async def main() -> None:
            async for chunk in graph.astream(asks("write"), stream_mode="custom"):
                chunks.append(chunk)

        asyncio.run(main())
    assert chunks == ["early", "after"]
    assert store.search(("a",)) == []


# MCP.


def server() -> FastMCP:
    """Return an MCP server with a tool that can take long."""
    served = FastMCP("library")

    @served.tool()
    async def search(query: str, seconds: float = 0.0) -> str:
        """Search the library."""
        await asyncio.sleep(seconds)
        return f"found {query}"

    return served


@pytest.mark.realtime
def test_tools_of_an_mcp_server_end_at_their_limit_and_stay_usable() -> None:
    async def main() -> None:
        async with create_connected_server_and_client_session(server()) as session:
            (original,) = await load_mcp_tools(session)
            (bounded,) = with_deadline([original], 0.5)
            assert isinstance(bounded, StructuredTool)
            assert bounded.args == original.args
            assert bounded.response_format == "content_and_artifact"
            call = {"name": "search", "id": "1", "type": "tool_call"}
            found = await bounded.ainvoke({**call, "args": {"query": "a"}})
            expected = await original.ainvoke({**call, "args": {"query": "a"}})
            assert "found a" in str(found.content)
            assert found.artifact == expected.artifact
            began = _clock.now()
            late = await bounded.ainvoke({**call, "args": {"query": "b", "seconds": 9}})
            assert 0.5 <= _clock.now() - began < 1.1
            assert late.status == "error"
            assert "its own limit of 0.5 s" in late.text
            again = await bounded.ainvoke({**call, "args": {"query": "c"}})
            assert "found c" in str(again.content)

    began = _clock.now()
    asyncio.run(asyncio.wait_for(main(), 20))
    assert _clock.now() - began < 8


@pytest.mark.realtime
def test_tools_of_an_mcp_server_are_cut_with_the_run() -> None:
    async def main() -> None:
        async with create_connected_server_and_client_session(server()) as session:
            tools = await load_mcp_tools(session)
            builder = StateGraph(MessagesState).add_node("tools", ToolNode(tools))
            builder.add_node("degrade", lambda _: {"messages": ["Sorry."]})
            builder.add_edge(START, "tools")
            graph = builder.compile(deadline=2, fallback="degrade")
            began = _clock.now()
            asked = asks("search", query="a", seconds=9)
            out = await graph.ainvoke(asked, deadline=1.5)
            assert _clock.now() - began < 1.5
            assert "outcome is unknown" in out["messages"][1].text
            assert out["messages"][-1].content == "Sorry."

    asyncio.run(asyncio.wait_for(main(), 20))


# Options that nobody can use.


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "1", []])
def test_a_limit_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="seconds"):
        with_deadline(good, seconds)
    with pytest.raises((ValueError, TypeError), match="seconds"):
        with_deadline([good], seconds)
    with pytest.raises((ValueError, TypeError), match="seconds"):
        with_deadline(slow, seconds)


@pytest.mark.parametrize("needs", [-1, float("nan"), True, "1", None, float("inf")])
def test_a_window_that_is_none_is_refused(needs: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="needs"):
        with_deadline(good, 5, needs=needs)


def test_a_window_larger_than_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs \(3.* must not exceed seconds \(2"):
        with_deadline(good, 2, needs=3)
    with pytest.raises(ValueError, match="needs"):
        with_deadline(slow, 2, needs=3)


def test_a_window_larger_than_the_limit_of_an_earlier_wrapping_is_refused() -> None:
    """Such a tool could never start."""
    with pytest.raises(ValueError, match="needs"):
        with_deadline(with_deadline(good, 2), needs=3)
    with pytest.raises(ValueError, match="needs"):
        with_deadline(with_deadline(good, needs=3), 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"on_exceeded": "ignore"}, "on_exceeded must be 'message' or 'raise'"),
        ({"on_exceeded": None}, "on_exceeded"),
        ({"on_exceeded": []}, "on_exceeded"),
        ({"on_cut": 3}, "on_cut"),
        ({"isolation": "thread"}, "isolation"),
        ({"retries": 3}, "retries"),
        ({"fallback": "x"}, "fallback"),
        ({"tokens_per_second": 1}, "tokens_per_second"),
    ],
)
def test_an_option_that_a_tool_does_not_have_is_refused(
    options: Any, named: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        with_deadline(good, 5, **options)
    with pytest.raises((ValueError, TypeError), match=named):
        with_deadline([good], 5, **options)


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (None, "None"),
        (3, "3"),
        ("tool", "'tool'"),
        ({"a": good}, "dict"),
        (BaseTool, "BaseTool"),
    ],
)
def test_what_cannot_be_bounded_is_refused(thing: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        with_deadline(thing, 5)


def test_a_list_that_holds_something_else_says_where() -> None:
    with pytest.raises(TypeError, match=r"\[1\]"):
        with_deadline([good, slow], 5)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"\[0\]"):
        with_deadline([None], 5)  # type: ignore[list-item]


def test_a_function_takes_no_options_of_tools() -> None:
    with pytest.raises(TypeError, match="on_cut"):
        with_deadline(slow, 5, on_cut=print)  # type: ignore[call-overload]


# One that calls itself.


@pytest.mark.parametrize("id", ["1", None])
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_tool_that_calls_itself_has_its_limit_each_time(how: How, id: Any) -> None:
    """The inner call, without an id, is one of its own."""
    trial = Trial(how, seconds=2.0)
    limit = 0.4 if how in SYNC else 3.0
    told: list[Any] = []

    def itself(depth: int) -> str:
        """Call itself."""
        if depth == 0:
            released.wait(3.0)
        told.append(bounded.invoke({"depth": depth - 1}))
        return "done"

    async def aitself(depth: int) -> str:
        """Call itself."""
        if depth == 0:
            await asyncio.sleep(HANG)
        told.append(await bounded.ainvoke({"depth": depth - 1}))
        return "done"

    tool = StructuredTool.from_function(itself, aitself, name="itself")
    bounded = with_deadline(tool, limit)
    builder = StateGraph(MessagesState).add_node("tools", ToolNode([bounded]))
    builder.add_edge(START, "tools")
    graph = trial.compile(builder, "raise")
    driven = trial.drive(graph, asks("itself", cast("str", id or ""), depth=1))
    assert driven.error is None
    trial.took(driven, limit)
    assert len(driven.values["messages"]) == 2
