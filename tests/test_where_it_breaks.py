"""Limits that `docs/limits.md` names and no other test shows.

If a test fails here because something works after all: move the sentence.
"""

from __future__ import annotations

import asyncio
import operator
import sqlite3
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as LangGraphStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.store.memory import InMemoryStore

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    _clock,
    collect_runs,
    with_deadline,
)
from langgraph_deadline.testing import VirtualClock, run_virtual


def test_a_reducer_of_an_async_run_blocks_the_loop() -> None:
    """The engine calls it in the event loop, where no node is being run."""
    clock = VirtualClock()

    def blocks(left: int, right: int) -> int:
        if right:
            clock.advance(100)
        return left + right

    async def work(state: Any) -> Any:
        return {"count": 1}

    schema: Any = TypedDict("State", {"count": Annotated[int, blocks]})
    builder = StateGraph(schema).add_node(work).add_edge(START, "work")
    graph = builder.compile(deadline=30)
    with collect_runs() as runs, suppress(DeadlineExceeded):
        run_virtual(graph.ainvoke({"count": 0}), clock=clock)
    assert clock.monotonic() - 1000 == 100
    assert runs[0].elapsed == pytest.approx(100)


def test_a_graph_called_in_a_function_that_cannot_save_hands_nothing_over() -> None:
    """What the function would have made of it is not known; a node's own graph is."""

    class State(TypedDict, total=False):
        log: Annotated[list[str], operator.add]

    def adding(name: str) -> Any:
        async def node(state: State) -> State:
            if name == "hang":
                await asyncio.sleep(3600)
            return {"log": [name]}

        return node

    class Stuck(InMemorySaver):
        async def aput(self, config: Any, *args: Any) -> Any:
            inside = config["configurable"]["checkpoint_ns"]
            if inside and _clock.now() - began >= 30:
                await asyncio.sleep(3600)
            return super().put(config, *args)

    inner = StateGraph(State)
    inner.add_sequence([("part", adding("part")), ("hang", adding("hang"))])
    inner.add_edge(START, "part")
    inside: Any = inner.compile()
    config: Any = {"configurable": {"thread_id": "1"}}

    async def called(state: State) -> Any:
        return await inside.ainvoke({"log": []})

    async def main(outer: Any) -> Any:
        nonlocal began
        began = _clock.now()
        builder = StateGraph(State).add_node("outer", outer)
        builder.add_node("degrade", adding("degrade")).add_edge(START, "outer")
        policy = DeadlinePolicy(seconds=40, reserve=timedelta(seconds=10))
        saver = Stuck()
        graph = builder.compile(saver, deadline=policy, fallback="degrade")
        return await graph.ainvoke({"log": []}, config)

    began = 0.0
    assert run_virtual(main(called))["log"] == ["degrade"]
    assert run_virtual(main(inside))["log"] == ["part", "degrade"]


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_an_engine_that_waits_for_its_checkpointer_runs_no_fallback(
    durability: Any,
) -> None:
    """With `durability="sync"` it waits before it goes on, to whatever node."""

    class State(TypedDict, total=False):
        log: Annotated[list[str], operator.add]

    class Stuck(InMemorySaver):
        async def aput(self, config: Any, *args: Any) -> Any:
            if "one" in ran:
                await asyncio.sleep(3600)
            return super().put(config, *args)

    ran: list[str] = []

    def adding(name: str) -> Any:
        async def node(state: State) -> State:
            ran.append(name)
            if name == "two":
                await asyncio.sleep(3600)
            return {"log": [name]}

        return node

    async def main() -> Any:
        builder = StateGraph(State).add_node("one", adding("one"))
        builder.add_node("two", adding("two")).add_edge("one", "two")
        builder.add_node("degrade", adding("degrade")).add_edge(START, "one")
        policy = DeadlinePolicy(seconds=40, reserve=timedelta(seconds=10))
        graph = builder.compile(Stuck(), deadline=policy, fallback="degrade")
        config: Any = {"configurable": {"thread_id": "1"}}
        began = _clock.now()
        try:
            return await graph.ainvoke({"log": []}, config, durability=durability)
        finally:
            assert _clock.now() - began == pytest.approx(40 + policy.cancel_grace)

    if durability == "async":
        assert run_virtual(main())["log"] == ["one", "degrade"]
    else:
        with pytest.raises(DeadlineExceeded):
            run_virtual(main())
        assert ran == ["one"]


@pytest.mark.realtime
def test_what_belongs_to_the_callers_thread_is_not_for_nodes() -> None:
    """Such as a connection of `sqlite3` with its default settings."""

    class State(TypedDict, total=False):
        answer: int

    connection = sqlite3.connect(":memory:")
    shared = sqlite3.connect(":memory:", check_same_thread=False)

    def ask(which: sqlite3.Connection) -> Any:
        def node(state: State) -> State:
            return {"answer": which.execute("select 1").fetchone()[0]}

        builder = StateGraph(State).add_node("ask", node).add_edge(START, "ask")
        return builder.compile(deadline=60).invoke({})

    with pytest.raises(sqlite3.ProgrammingError, match="same thread"):
        ask(connection)
    assert ask(shared) == {"answer": 1}
    connection.close()
    shared.close()


@pytest.mark.realtime
def test_a_tool_given_up_in_a_plain_graph_can_still_write_to_the_store() -> None:
    """The store is the plain graph's, and nothing of ours stands in front of it."""
    released, wrote = threading.Event(), threading.Event()

    @tool
    def slow() -> str:
        """Take long, and write then."""
        store = get_store()
        released.wait(30)
        store.put(("late",), "key", {"value": "late"})
        wrote.set()
        return "done"

    store = InMemoryStore()
    builder = LangGraphStateGraph(MessagesState)
    builder.add_node("tools", ToolNode([with_deadline(slow, 0.2)]))
    builder.add_edge(START, "tools")
    graph = builder.compile(store=store)
    call = AIMessage("", tool_calls=[{"name": "slow", "args": {}, "id": "1"}])
    result = graph.invoke({"messages": [call]})
    assert "exceeded its own limit" in result["messages"][-1].text
    assert store.get(("late",), "key") is None
    released.set()
    assert wrote.wait(30)
    assert store.get(("late",), "key") is not None


@pytest.mark.realtime
def test_a_sync_run_takes_real_time() -> None:
    """A clock in virtual time is not even looked at."""

    class State(TypedDict, total=False):
        answer: int

    def nap(state: State) -> State:
        time.sleep(5)
        return {}

    builder = StateGraph(State).add_node(nap).add_edge(START, "nap")
    graph = builder.compile()
    clock = VirtualClock()
    run_virtual(asyncio.sleep(3600), clock=clock)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        graph.invoke({}, deadline=0.3)
    assert time.monotonic() - began >= 0.3
    assert clock.monotonic() == 4600


@pytest.mark.realtime
def test_an_answer_from_a_socket_comes_too_late() -> None:
    """However quick it is: while nothing else happens, the clock jumps."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readline()
        await asyncio.to_thread(time.sleep, 0.6)  # a thread is given a moment at most
        writer.write(b"here\n")
        writer.close()

    async def main() -> float:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"?\n")
        began = _clock.now()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 3600)
        writer.close()
        server.close()
        return _clock.now() - began

    assert run_virtual(main()) == 3600
