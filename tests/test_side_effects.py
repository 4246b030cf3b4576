"""Idempotency keys, critical sections and compensations of tool calls."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, Trial, adrive, drive
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, Send, interrupt

from langgraph_deadline import (
    DeadlineExceeded,
    StateGraph,
    idempotency_key,
    shield,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

HANG = 3600.0
SORRY = "There was no time."

hows = pytest.mark.parametrize("how", ALL)
async_hows = pytest.mark.parametrize("how", ASYNC)

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(globals(), "released", threading.Event())
    yield
    released.set()


def made(name: str, work: Any = lambda: "a result") -> BaseTool:
    """Return a tool, sync and async, that does `work` and then takes some seconds."""

    def sync(seconds: float = 0.0) -> Any:
        """Do something."""
        out = work()
        if seconds:
            released.wait(min(seconds, 3.0))
        return out

    async def asynchronous(seconds: float = 0.0) -> Any:
        """Do something."""
        out = work()
        await asyncio.sleep(seconds)
        return out

    return StructuredTool.from_function(sync, asynchronous, name=name)


def asks(*called: tuple[str, str | None, float], id: str = "asks") -> AIMessage:
    """Return a message that calls tools: a name, an id and how long it takes."""
    tool_calls = [
        {"name": name, "args": {"seconds": seconds}, "id": call, "type": "tool_call"}
        for name, call, seconds in called
    ]
    return AIMessage("", tool_calls=cast("Any", tool_calls), id=id)


def degrade(state: MessagesState) -> Any:
    """Answer when time is up."""
    return {"messages": AIMessage(SORRY, id="sorry")}


def graph_of(trial: Trial, node: Any, mode: str, **kwargs: Any) -> Any:
    """Return a graph whose only node has tools."""
    builder = StateGraph(MessagesState)
    options = {"retry_policy": kwargs.pop("retry")} if "retry" in kwargs else {}
    builder.add_node("tools", node, **options).add_edge(START, "tools")
    if mode == "fallback":
        builder.add_node("degrade", degrade)
    return trial.compile(builder, mode, **kwargs)


def inputs(*called: tuple[str, str | None, float], id: str = "asks") -> Any:
    return {"messages": [asks(*called, id=id)]}


def thread(id: str = "1") -> Any:
    return {"configurable": {"thread_id": id}}


def answers(driven: Driven) -> dict[str, ToolMessage]:
    """Return the tool messages by the ids of their calls; each has one."""
    messages = [m for m in driven.values["messages"] if isinstance(m, ToolMessage)]
    return {m.tool_call_id: m for m in messages}


def resumed(how: How, graph: Any, value: Any = None) -> Driven:
    """Drive a thread's run on."""
    if how in SYNC:
        return drive(graph, value, how, thread())
    return run_virtual(adrive(graph, value, how, thread()))


# Idempotency keys.


class Keys:
    """A tool that notes its keys, and fails so and so many times."""

    def __init__(self, failures: int = 0) -> None:
        self.seen: list[str] = []
        self.failures = failures

    def __call__(self) -> str:
        self.seen.append(idempotency_key())
        if len(self.seen) <= self.failures:
            msg = "not now"
            raise ConnectionError(msg)
        return self.seen[-1]


@hows
def test_a_key_is_the_same_for_every_attempt_of_the_node(how: How) -> None:
    trial, keys = Trial(how, seconds=2.0), Keys(2)
    retry = RetryPolicy(initial_interval=0.01, jitter=False)
    node = ToolNode([made("pay", keys)], handle_tool_errors=False)
    graph = graph_of(trial, node, "raise", retry=retry)
    driven = trial.drive(graph, inputs(("pay", "1", 0)))
    assert driven.error is None
    assert len(keys.seen) == 3
    assert len(set(keys.seen)) == 1


@hows
def test_keys_of_calls_without_ids_are_the_same_for_every_attempt(how: How) -> None:
    """And different for two like calls in one message."""
    trial, keys = Trial(how, seconds=2.0), Keys()
    attempts: list[int] = []

    def fails() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            msg = "not now"
            raise ConnectionError(msg)
        return "a result"

    builder = StateGraph(MessagesState)
    retry = RetryPolicy(initial_interval=0.01, jitter=False)
    pay, last = with_deadline(made("pay", keys)), made("last", fails)

    def node(state: Any) -> Any:
        pay.invoke({"seconds": 0})
        pay.invoke({"seconds": 0})
        last.invoke({})

    async def anode(state: Any) -> Any:
        await pay.ainvoke({"seconds": 0})
        await pay.ainvoke({"seconds": 0})
        await last.ainvoke({})

    builder.add_node("node", node if how in SYNC else anode, retry_policy=retry)
    builder.add_edge(START, "node")
    driven = trial.drive(trial.compile(builder, "raise"), inputs())
    assert driven.error is None
    assert len(keys.seen) == 6
    assert keys.seen[0::2] == [keys.seen[0]] * 3
    assert keys.seen[1::2] == [keys.seen[1]] * 3
    assert len(set(keys.seen)) == 2


@hows
def test_a_key_is_the_same_after_an_interrupt_and_its_resume(how: How) -> None:
    trial, keys = Trial(how, seconds=2.0), Keys()

    def asking() -> str:
        keys()
        return f"answered {interrupt('Go on?')}"

    node = ToolNode([made("pay", asking)])
    graph = graph_of(trial, node, "raise", checkpointer=InMemorySaver())
    trial.drive(graph, inputs(("pay", "1", 0)), thread())
    driven = resumed(how, graph, Command(resume="yes"))
    assert answers(driven)["1"].content == "answered yes"
    assert len(keys.seen) == 2
    assert len(set(keys.seen)) == 1


@hows
def test_a_key_is_the_same_when_what_was_cut_runs_again(how: How) -> None:
    trial, keys = Trial(how), Keys()
    takes = [HANG, 0.0]

    def sync(seconds: float = 0.0) -> str:
        """Pay."""
        key, gate = keys(), released
        gate.wait(min(takes.pop(0), 3.0))
        return key

    async def asynchronous(seconds: float = 0.0) -> str:
        """Pay."""
        key = keys()
        await asyncio.sleep(takes.pop(0))
        return key

    pay = StructuredTool.from_function(sync, asynchronous, name="pay")
    graph = graph_of(trial, ToolNode([pay]), "raise", checkpointer=InMemorySaver())
    first = trial.drive(graph, inputs(("pay", "1", 0)), thread())
    assert isinstance(first.error, DeadlineExceeded)
    driven = resumed(how, graph)
    assert driven.error is None
    assert answers(driven)["1"].content == keys.seen[0] == keys.seen[1]
    assert first.report.unknown[0].key == keys.seen[0]


@hows
def test_keys_of_different_calls_differ(how: How) -> None:
    """Calls of one message, tools, runs, threads, and a later call with the same id."""
    trial, keys = Trial(how, seconds=2.0), Keys()
    node = ToolNode([made("pay", keys), made("book", keys)])
    graph = graph_of(trial, node, "raise", checkpointer=InMemorySaver())
    called = ("pay", "1", 0.0), ("pay", "2", 0.0), ("book", "1", 0.0)
    for id in ("a", "b"):
        for turn in ("x", "y"):
            driven = trial.drive(graph, inputs(*called, id=turn), thread(id))
            assert driven.error is None
    assert len(keys.seen) == 12
    assert len(set(keys.seen)) == 12


@hows
def test_keys_of_calls_that_are_alike_and_without_ids_differ(how: How) -> None:
    trial, keys = Trial(how, seconds=2.0), Keys()
    node = ToolNode([made("pay", keys)])
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node)
    builder.add_edge(START, "tools")
    graph = trial.compile(builder, "raise")
    asked = asks(("pay", "", 0.0), ("pay", "", 0.0))
    trial.drive(graph, {"messages": [asked]})
    assert len(set(keys.seen)) == 2


@hows
def test_keys_of_parallel_sends_differ(how: How) -> None:
    """Though their calls may have the same id, name and arguments."""
    trial, keys = Trial(how, seconds=2.0), Keys()
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode([made("pay", keys)]))
    call = asks(("pay", "1", 0)).tool_calls[0]
    sends = [Send("tools", [call]) for _ in range(3)]
    builder.add_conditional_edges(START, lambda _: sends, ["tools"])
    trial.drive(trial.compile(builder, "raise"), inputs())
    assert len(keys.seen) == 3
    assert len(set(keys.seen)) == 3


@hows
def test_keys_of_sub_agents_differ(how: How) -> None:
    """Two sub-agents make the same call, with the same id."""
    trial, keys = Trial(how, seconds=2.0), Keys()
    inner = PlainStateGraph(MessagesState)
    inner.add_node("tools", ToolNode([made("pay", keys)]))
    inner.add_edge(START, "tools")
    sub = inner.compile()

    def ask(name: str) -> str:
        """Ask another agent."""
        sub.invoke(inputs(("pay", "1", 0)))
        return name

    async def aask(name: str) -> str:
        """Ask another agent."""
        await sub.ainvoke(inputs(("pay", "1", 0)))
        return name

    asking = StructuredTool.from_function(ask, aask, name="ask")
    graph = graph_of(trial, ToolNode([asking]), "raise")
    called: Any = [
        {"name": "ask", "args": {"name": name}, "id": name, "type": "tool_call"}
        for name in "ab"
    ]
    driven = trial.drive(graph, {"messages": [AIMessage("", tool_calls=called)]})
    assert driven.error is None
    assert len(keys.seen) == len(set(keys.seen)) == 2


@hows
def test_keys_in_a_subgraph_are_the_same_for_every_attempt(how: How) -> None:
    trial, keys = Trial(how, seconds=2.0), Keys(2)
    inner = PlainStateGraph(MessagesState)
    inner.add_node("tools", ToolNode([made("pay", keys)], handle_tool_errors=False))
    inner.add_edge(START, "tools")
    retry = RetryPolicy(initial_interval=0.01, jitter=False)
    graph = graph_of(trial, inner.compile(), "raise", retry=retry)
    driven = trial.drive(graph, inputs(("pay", "1", 0)))
    assert driven.error is None
    assert len(keys.seen) == 3
    assert len(set(keys.seen)) == 1


def test_there_is_no_key_outside_of_a_tool_call() -> None:
    with pytest.raises(RuntimeError, match="with_deadline"):
        idempotency_key()


@hows
def test_there_is_no_key_in_a_node_that_is_no_tool(how: How) -> None:
    trial = Trial(how)
    builder = StateGraph(MessagesState)
    builder.add_node("node", trial.as_how(lambda _: {"messages": idempotency_key()}))
    builder.add_edge(START, "node")
    driven = trial.drive(trial.compile(builder, "raise"), inputs())
    assert isinstance(driven.error, RuntimeError)


def test_a_tool_outside_of_any_graph_has_a_key_for_each_call() -> None:
    keys = Keys()
    pay = with_deadline(made("pay", keys), 5)
    pay.invoke({})
    pay.invoke({})
    asyncio.run(pay.ainvoke({}))
    assert len(set(keys.seen)) == 3


@hows
def test_a_key_in_a_plain_graph_is_the_same_for_every_attempt(how: How) -> None:
    """Where only the tool is wrapped, with arguments that are injected anew."""
    keys = Keys(2)

    def pay(runtime: ToolRuntime, seconds: float = 0.0) -> str:
        """Pay."""
        return keys()

    async def apay(runtime: ToolRuntime, seconds: float = 0.0) -> str:
        """Pay."""
        return keys()

    paying = with_deadline(StructuredTool.from_function(pay, apay, name="pay"), 60)
    builder = PlainStateGraph(MessagesState)
    retry = RetryPolicy(initial_interval=0.01, jitter=False)
    node = ToolNode([paying], handle_tool_errors=False)
    builder.add_node("tools", node, retry_policy=retry).add_edge(START, "tools")
    driven = drive(builder.compile(), inputs(("pay", "1", 0)), how)
    assert driven.error is None
    assert len(keys.seen) == 3
    assert len(set(keys.seen)) == 1


# Critical sections.


@async_hows
@pytest.mark.parametrize("own", [True, False])
def test_a_cut_waits_for_a_critical_section_in_a_tool(how: How, own: bool) -> None:
    trial = Trial(how)
    done: list[str] = []

    async def pay(seconds: float = 0.0) -> str:
        """Pay."""
        with shield(1.0):
            await asyncio.sleep(3.5 if own else 8.5)
            done.append("paid")
        return "paid"

    tools = [StructuredTool.from_function(coroutine=pay, name="pay")]
    bounded = with_deadline(tools, 3 if own else None)
    graph = graph_of(trial, ToolNode(bounded), "fallback")
    driven = trial.drive(graph, inputs(("pay", "1", 0)))
    assert driven.error is None
    assert done == ["paid"]
    trial.took(driven, 3.5 if own else 8.5)
    assert set(answers(driven)) == {"1"}


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
@pytest.mark.parametrize("own", [True, False])
def test_a_cut_waits_for_a_critical_section_in_a_sync_tool(how: How, own: bool) -> None:
    trial = Trial(how, seconds=1.0 if own else 0.25, reserve=2.0)
    done: list[str] = []

    def pay(seconds: float = 0.0) -> str:
        """Pay."""
        with shield(1.0):
            time.sleep(0.5)
            done.append("paid")
        return "paid"

    tools = [StructuredTool.from_function(pay, name="pay")]
    bounded = with_deadline(tools, 0.25 if own else None)
    graph = graph_of(trial, ToolNode(bounded), "fallback")
    driven = trial.drive(graph, inputs(("pay", "1", 0)))
    assert driven.error is None
    assert done == ["paid"]
    assert 0.5 <= driven.elapsed < 1.0
    assert set(answers(driven)) == {"1"}
    assert driven.report.stragglers == []
