"""Keys, critical sections and compensations where several things go wrong at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, Trial, adrive, drive
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.store.memory import InMemoryStore
from langgraph.types import RetryPolicy, interrupt

from langgraph_deadline import (
    DeadlineExceeded,
    RunControl,
    StateGraph,
    _clock,
    idempotency_key,
    shield,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

HANG = 3600.0
SORRY = "There was no time."

hows = pytest.mark.parametrize("how", ALL)
async_hows = pytest.mark.parametrize("how", ASYNC)
sync_hows = pytest.mark.parametrize("how", SYNC)

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
        gate, out = released, work()
        if seconds:
            gate.wait(min(seconds, 3.0))
        return out

    async def asynchronous(seconds: float = 0.0) -> Any:
        """Do something."""
        out = work()
        await asyncio.sleep(seconds)
        return out

    return StructuredTool.from_function(sync, asynchronous, name=name)


def asks(*called: tuple[str, str, float]) -> Any:
    """Return the input of a graph that calls tools: name, id and how long it takes."""
    tool_calls = [
        {"name": name, "args": {"seconds": seconds}, "id": call, "type": "tool_call"}
        for name, call, seconds in called
    ]
    message = AIMessage("", tool_calls=cast("Any", tool_calls), id="asks")
    return {"messages": [message]}


def graph_of(
    trial: Trial, node: Any, mode: str, events: list[Any] | None = None, **kwargs: Any
) -> Any:
    """Return a graph whose only node has tools; its fallback notes what it sees."""
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node).add_edge(START, "tools")

    def degrade(state: MessagesState) -> Any:
        if events is not None:
            events.append([m.text for m in state["messages"] if m.type == "tool"])
        return {"messages": AIMessage(SORRY, id="sorry")}

    if mode == "fallback":
        builder.add_node("degrade", degrade)
    return trial.compile(builder, mode, **kwargs)


def inner_of(*tools: Any) -> Any:
    """Return a graph of somebody else's with tools."""
    inner = PlainStateGraph(MessagesState)
    inner.add_node("tools", ToolNode(tools)).add_edge(START, "tools")
    return inner.compile()


def asking(name: str, sub: Any, called: Any, before: Any = None) -> BaseTool:
    """Return a tool that asks a sub-agent."""

    def sync(seconds: float = 0.0) -> str:
        """Ask another agent."""
        return str(sub.invoke(called)["messages"][-1].content)

    async def asynchronous(seconds: float = 0.0) -> str:
        """Ask another agent."""
        if before is not None:
            await before()
        return str((await sub.ainvoke(called))["messages"][-1].content)

    return StructuredTool.from_function(sync, asynchronous, name=name)


def thread(id: str = "1") -> Any:
    return {"configurable": {"thread_id": id}}


def answers(driven: Driven) -> dict[str, ToolMessage]:
    """Return the tool messages by the ids of their calls."""
    messages = [m for m in driven.values["messages"] if isinstance(m, ToolMessage)]
    return {m.tool_call_id: m for m in messages}


# Keys.


@async_hows
def test_keys_of_sub_agents_do_not_depend_on_which_begins_first(how: How) -> None:
    """In the second attempt they begin in the other order."""
    trial = Trial(how)
    keys: dict[str, list[str]] = {"a": [], "b": []}
    attempts: list[int] = []

    def pays(name: str) -> Any:
        called = asks((f"pay {name}", "1", 0))
        key = lambda: keys[name].append(idempotency_key())  # noqa: E731

        async def wait() -> None:
            first = "a" if len(attempts) < 2 else "b"
            await asyncio.sleep(0 if name == first else 1)

        return asking(name, inner_of(made(f"pay {name}", key)), called, wait)

    def fails() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            msg = "not now"
            raise ConnectionError(msg)

    async def later(seconds: float = 0.0) -> str:
        """Fail, once the others have ended."""
        await asyncio.sleep(2)
        fails()
        return "at last"

    last = StructuredTool.from_function(coroutine=later, name="last")
    node = ToolNode([pays("a"), pays("b"), last], handle_tool_errors=False)
    builder = StateGraph(MessagesState)
    retry = RetryPolicy(initial_interval=0.01, jitter=False)
    builder.add_node("tools", node, retry_policy=retry).add_edge(START, "tools")
    called = asks(("a", "1", 0), ("b", "2", 0), ("last", "3", 0))
    driven = trial.drive(trial.compile(builder, "raise"), called)
    assert driven.error is None
    assert len(keys["a"]) == len(keys["b"]) == 2
    assert len(set(keys["a"])) == len(set(keys["b"])) == 1
    assert keys["a"] != keys["b"]


@hows
def test_a_key_is_the_same_for_attempts_of_middleware_and_the_compensation(
    how: How,
) -> None:
    trial, keys = Trial(how), []
    takes = [0.0, 0.0, HANG]

    def pays() -> str:
        keys.append(idempotency_key())
        if takes.pop(0) == 0.0:
            msg = "not now"
            raise ConnectionError(msg)
        return "paid"

    def compensate(call: Any) -> None:
        keys.append(idempotency_key())

    retries = ToolRetryMiddleware(max_retries=9, initial_delay=0.0, jitter=False)
    tools = [with_deadline(made("pay", pays), on_cut=compensate)]
    node = ToolNode(
        tools,
        wrap_tool_call=retries.wrap_tool_call,
        awrap_tool_call=retries.awrap_tool_call,
    )
    graph = graph_of(trial, node, "fallback")
    driven = trial.drive(graph, asks(("pay", "1", HANG)))
    assert driven.error is None
    trial.at_work(driven)
    assert len(keys) == 4
    assert set(keys) == {driven.report.unknown[0].key}


TURN = '''
import json, sqlite3, sys, time
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState
from langgraph.prebuilt import ToolNode
from langgraph_deadline import DeadlineExceeded, StateGraph, idempotency_key

where, turn = sys.argv[1:]

@tool
def pay(amount: int) -> str:
    """Pay."""
    print(json.dumps(idempotency_key()), flush=True)
    time.sleep(30 if turn == "first" else 0)
    return "paid"

builder = StateGraph(MessagesState).add_node("tools", ToolNode([pay]))
builder.add_edge(START, "tools")
saver = SqliteSaver(sqlite3.connect(where, check_same_thread=False))
graph = builder.compile(saver, deadline=1)
call = {"name": "pay", "args": {"amount": 3}, "id": "1", "type": "tool_call"}
inputs = {"messages": [AIMessage("", tool_calls=[call])]} if turn == "first" else None
try:
    graph.invoke(inputs, {"configurable": {"thread_id": "1"}}, deadline=1)
except DeadlineExceeded:
    print(json.dumps("cut"), flush=True)
'''


@pytest.mark.realtime
def test_a_key_is_the_same_in_the_process_that_resumes(tmp_path: Path) -> None:
    said: list[list[str]] = []
    for turn in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", TURN, str(tmp_path / "checkpoints"), turn],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        said.append([json.loads(line) for line in done.stdout.splitlines()])
    (key, cut), (again,) = said
    assert cut == "cut"
    assert key == again


@hows
def test_keys_in_tasks_of_an_entrypoint_hold_over_their_attempts(how: How) -> None:
    keys: list[str] = []

    def pays() -> str:
        keys.append(idempotency_key())
        if len(keys) < 3:
            msg = "not now"
            raise ConnectionError(msg)
        return "paid"

    pay = with_deadline(made("pay", pays), 60)
    retry = RetryPolicy(initial_interval=0.01, jitter=False)

    if how in SYNC:

        @task(retry_policy=retry)
        def paying(amount: int) -> Any:
            return pay.invoke({})

        @entrypoint()
        def workflow(amount: int) -> Any:
            return [paying(amount).result(), paying(amount).result()]

        graph: Any = workflow
    else:

        @task(retry_policy=retry)
        async def apaying(amount: int) -> Any:
            return await pay.ainvoke({})

        @entrypoint()
        async def aworkflow(amount: int) -> Any:
            return [await apaying(amount), await apaying(amount)]

        graph = aworkflow
    driven = drive(with_deadline(graph, 60), 1, how, virtual=True)
    assert driven.error is None
    assert len(keys) == 4
    assert len(set(keys[:3])) == 1
    assert len(set(keys)) == 2


# Critical sections.


@hows
@pytest.mark.parametrize("levels", [1, 2])
def test_a_cut_waits_for_a_critical_section_of_a_tool_in_a_subgraph(
    how: How, levels: int
) -> None:
    trial = Trial(how, seconds=0.6, reserve=2.0)
    done: list[str] = []

    def sync(seconds: float = 0.0) -> str:
        """Pay."""
        with shield(1.5):
            time.sleep(1.0)
            done.append("paid")
        return "paid"

    async def asynchronous(seconds: float = 0.0) -> str:
        """Pay."""
        with shield(1.5):
            await asyncio.sleep(8.5)
            done.append("paid")
        return "paid"

    pay = StructuredTool.from_function(sync, asynchronous, name="pay")
    node: Any = ToolNode([pay])
    for _ in range(levels):
        inner = PlainStateGraph(MessagesState)
        inner.add_node("tools", node).add_edge(START, "tools")
        node = inner.compile()
    driven = trial.drive(graph_of(trial, node, "fallback"), asks(("pay", "1", 0)))
    assert driven.error is None
    assert done == ["paid"]
    assert set(answers(driven)) == {"1"}
    assert driven.values["messages"][-1].content == SORRY
    if how in ASYNC:
        trial.took(driven, 8.5)


@hows
def test_a_critical_section_that_takes_too_long_is_cut_after_all(how: How) -> None:
    trial = Trial(how, seconds=0.6, reserve=2.0)

    def sync(seconds: float = 0.0) -> str:
        """Pay."""
        gate = released
        with shield(0.3):
            gate.wait(3.0)
        return "paid"

    async def asynchronous(seconds: float = 0.0) -> str:
        """Pay."""
        with shield(0.3):
            await asyncio.sleep(HANG)
        return "paid"

    pay = StructuredTool.from_function(sync, asynchronous, name="pay")
    graph = graph_of(trial, ToolNode([pay, made("good")]), "fallback")
    driven = trial.drive(graph, asks(("pay", "1", 0), ("good", "2", 0)))
    assert driven.error is None
    assert "outcome is unknown" in answers(driven)["1"].text
    assert answers(driven)["2"].content == "a result"
    if how in ASYNC:
        assert driven.elapsed == pytest.approx(8.3, abs=0.01)
    else:
        assert 0.85 <= driven.elapsed < 1.6


# Compensations.


@async_hows
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_fallback_waits_for_a_slow_compensation(how: How, levels: int) -> None:
    trial, events = Trial(how), []

    async def undo(call: Any) -> None:
        await asyncio.sleep(0.7)
        events.append("undone")

    tools = [with_deadline(made("pay"), on_cut=undo), made("good")]
    node: Any = ToolNode(tools)
    for _ in range(levels):
        inner = PlainStateGraph(MessagesState)
        inner.add_node("tools", node).add_edge(START, "tools")
        node = inner.compile()
    graph = graph_of(trial, node, "fallback", events)
    driven = trial.drive(graph, asks(("pay", "1", HANG), ("good", "2", 0)))
    assert driven.error is None
    trial.took(driven, 8.7)
    assert events[0] == "undone"
    assert "compensated" in events[1][0]
    assert events[1][1] == "a result"


@pytest.mark.realtime
@sync_hows
@pytest.mark.parametrize("levels", [0, 1])
def test_the_fallback_waits_for_a_slow_compensation_in_a_thread(
    how: How, levels: int
) -> None:
    trial, events = Trial(how, seconds=0.6, reserve=3.0), []

    def undo(call: Any) -> None:
        time.sleep(0.5)
        events.append("undone")

    node: Any = ToolNode([with_deadline(made("pay"), on_cut=undo), made("good")])
    for _ in range(levels):
        inner = PlainStateGraph(MessagesState)
        inner.add_node("tools", node).add_edge(START, "tools")
        node = inner.compile()
    graph = graph_of(trial, node, "fallback", events)
    driven = trial.drive(graph, asks(("pay", "1", HANG), ("good", "2", 0)))
    assert driven.error is None
    assert events[0] == "undone"
    assert "compensated" in events[1][0]
    assert events[1][1] == "a result"


@hows
def test_a_tool_that_asks_a_sub_agent_is_not_undone_for_what_that_did(how: How) -> None:
    """The sub-agent hands up what it has, so the tool around it has a result."""
    trial, events = Trial(how, seconds=0.6, reserve=2.0), []
    pay = with_deadline(made("pay"), on_cut=lambda _: events.append("pay"))
    sub = inner_of(pay)
    ask = with_deadline(
        asking("ask", sub, asks(("pay", "7", HANG))),
        on_cut=lambda _: events.append("ask"),
    )
    graph = graph_of(trial, ToolNode([ask]), "fallback", events)
    driven = trial.drive(graph, asks(("ask", "1", 0)))
    assert driven.error is None
    assert events[0] == "pay"
    assert len(events) == 2
    assert "compensated" in events[1][0]
    (unknown,) = driven.report.unknown
    assert (unknown.name, unknown.id, unknown.compensation) == ("pay", "7", "done")


@async_hows
def test_the_runs_cut_waits_for_the_compensation_of_a_calls_own_limit(
    how: How,
) -> None:
    trial, events = Trial(how), []

    async def undo(call: Any) -> None:
        await asyncio.sleep(0.5)
        events.append("undone")

    tools = [with_deadline(made("pay"), 7.8, on_cut=undo), made("good")]
    graph = graph_of(trial, ToolNode(tools), "fallback", events)
    driven = trial.drive(graph, asks(("pay", "1", HANG), ("good", "2", HANG)))
    assert driven.error is None
    assert events[0] == "undone"
    assert "own limit of 7.8 s" in events[1][0]
    assert "compensated" in events[1][0]
    assert "outcome is unknown" in events[1][1]
    assert driven.elapsed < 9


@async_hows
def test_a_stop_button_pressed_during_a_compensation_does_not_stop_it(
    how: How,
) -> None:
    trial, events, control = Trial(how), [], RunControl()

    async def undo(call: Any) -> None:
        control.cancel()
        await asyncio.sleep(0.5)
        events.append("undone")

    node = ToolNode([with_deadline(made("pay"), 3, on_cut=undo)])
    graph = graph_of(trial, node, "fallback", events)
    driven = trial.drive(graph, asks(("pay", "1", HANG)), control=control)
    assert driven.error is None
    assert events[0] == "undone"
    assert "compensated" in events[1][0]
    assert driven.report.outcome == "cancelled"


@async_hows
def test_what_a_tool_returns_in_the_grace_needs_no_compensation(how: How) -> None:
    trial, events = Trial(how), []

    async def late(seconds: float = 0.0) -> str:
        """Come back late."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(HANG)
        return "after all"

    slow = StructuredTool.from_function(coroutine=late, name="late")
    tools = [with_deadline(slow, on_cut=events.append)]
    graph = graph_of(trial, ToolNode(tools), "fallback")
    driven = trial.drive(graph, asks(("late", "1", 0)))
    assert driven.error is None
    assert answers(driven)["1"].content == "after all"
    assert events == []
    assert driven.report.unknown == []


@async_hows
def test_a_tool_that_fails_when_it_is_cut_is_compensated_once(how: How) -> None:
    trial, events = Trial(how), []

    async def fragile(seconds: float = 0.0) -> str:
        """Fail when interrupted."""
        try:
            await asyncio.sleep(HANG)
        except asyncio.CancelledError:
            msg = "interrupted"
            raise LookupError(msg) from None
        return "never"

    pay = StructuredTool.from_function(coroutine=fragile, name="pay")
    node = ToolNode(
        [with_deadline(pay, on_cut=events.append)], handle_tool_errors=False
    )
    driven = trial.drive(graph_of(trial, node, "fallback"), asks(("pay", "1", 0)))
    assert driven.error is None
    trial.at_work(driven)
    assert len(events) == 1
    assert "compensated" in answers(driven)["1"].text
    assert driven.values["messages"][-1].content == SORRY


@pytest.mark.realtime
@sync_hows
def test_a_sync_sibling_that_fails_compensates_the_others(how: How) -> None:
    trial, events = Trial(how, seconds=4.0), []

    def fails() -> Any:
        time.sleep(0.2)
        msg = "broken"
        raise LookupError(msg)

    tools = [with_deadline(made("pay"), on_cut=events.append), made("bad", fails)]
    node = ToolNode(tools, handle_tool_errors=False)
    graph = graph_of(trial, node, "fallback")
    driven = trial.drive(graph, asks(("pay", "1", HANG), ("bad", "2", 0)))
    assert isinstance(driven.error, LookupError)
    assert [call["id"] for call in events] == ["1"]
    assert [c.compensation for c in driven.report.unknown] == ["done"]
    assert driven.elapsed < 1.5


@async_hows
def test_an_interrupt_beside_a_call_that_hangs_ends_by_the_deadline(how: How) -> None:
    """Either the person is asked, or the fallback answers: the run ends in time."""
    trial, events = Trial(how), []
    ask = made("ask", lambda: f"answered {interrupt('Go on?')}")
    node = ToolNode([ask, with_deadline(made("pay"), on_cut=events.append)])
    graph = graph_of(trial, node, "fallback", checkpointer=InMemorySaver())
    called = asks(("ask", "1", 0), ("pay", "2", HANG))
    driven = trial.drive(graph, called, thread())
    assert driven.error is None
    assert driven.elapsed < 10
    asked = bool(graph.get_state(thread()).interrupts)
    assert asked or driven.values["messages"][-1].content == SORRY
    assert len(events) == 1


@hows
def test_a_compensation_can_call_bounded_tools_and_write_to_the_store(
    how: How,
) -> None:
    trial, store = Trial(how, reserve=2.0), InMemoryStore()
    refund = with_deadline(made("refund", lambda: "refunded"), 60)
    plain = made("note")
    said: list[Any] = []

    def undo(call: Any) -> None:
        said.append(refund.invoke({}))
        said.append(plain.invoke({}))
        get_store().put(("undone",), call["id"], {"yes": True})

    async def aundo(call: Any) -> None:
        said.append(await refund.ainvoke({}))
        said.append(await plain.ainvoke({}))
        await get_store().aput(("undone",), call["id"], {"yes": True})

    tools = [with_deadline(made("pay"), on_cut=undo if how in SYNC else aundo)]
    graph = graph_of(trial, ToolNode(tools), "fallback", store=store)
    driven = trial.drive(graph, asks(("pay", "1", HANG)))
    assert driven.error is None
    assert said == ["refunded", "a result"]
    assert [item.key for item in store.search(("undone",))] == ["1"]
    assert driven.report.unknown[0].compensation == "done"


@pytest.mark.realtime
@async_hows
def test_a_caller_that_leaves_is_not_held_up_by_a_compensation_that_hangs(
    how: How,
) -> None:
    """It waits for the grace, not for half of what was left; anyio spins meanwhile."""
    trial = Trial(how, realtime=True, seconds=20.0)
    began: list[float] = []

    async def undo(call: Any) -> None:
        began.append(_clock.now())
        await asyncio.sleep(HANG)

    node = ToolNode([with_deadline(made("pay"), on_cut=undo)])
    graph = graph_of(trial, node, "raise")

    async def main() -> None:
        start = _clock.now()
        with anyio.move_on_after(0.3):
            await adrive(graph, asks(("pay", "1", HANG)), how)
        assert len(began) == 1
        assert _clock.now() - start < 2.5

    asyncio.run(main())


@async_hows
def test_a_hundred_compensations_end_in_the_reserve(how: How) -> None:
    trial, events = Trial(how), []

    async def undo(call: Any) -> None:
        await asyncio.sleep(0.5)
        events.append(call["id"])

    node = ToolNode([with_deadline(made("pay"), on_cut=undo)])
    graph = graph_of(trial, node, "fallback")
    driven = trial.drive(graph, asks(*[("pay", str(i), HANG) for i in range(100)]))
    assert driven.error is None
    trial.took(driven, 8.5)
    assert len(events) == len(set(events)) == 100
    assert all("compensated" in m.text for m in answers(driven).values())


@hows
def test_a_run_that_is_resumed_compensates_its_own_cut_only(how: How) -> None:
    trial, events = Trial(how), []
    takes = [HANG, 0.0]

    def sync(seconds: float = 0.0) -> str:
        """Pay."""
        released.wait(min(takes.pop(0), 3.0))
        return "paid"

    async def asynchronous(seconds: float = 0.0) -> str:
        """Pay."""
        await asyncio.sleep(takes.pop(0))
        return "paid"

    pay = StructuredTool.from_function(sync, asynchronous, name="pay")
    node = ToolNode([with_deadline(pay, on_cut=events.append)])
    graph = graph_of(trial, node, "raise", checkpointer=InMemorySaver())
    driven = trial.drive(graph, asks(("pay", "1", 0)), thread())
    assert isinstance(driven.error, DeadlineExceeded)
    assert len(events) == 1
    if how in SYNC:
        driven = drive(graph, None, how, thread())
    else:
        driven = run_virtual(adrive(graph, None, how, thread()))
    assert driven.error is None
    assert answers(driven)["1"].content == "paid"
    assert len(events) == 1
    assert driven.report.unknown == []
