"""`on_cut`: what a tool call may have done that was cut is undone, once and in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any, cast

import anyio
import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, Trial, adrive
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt

from langgraph_deadline import (
    DeadlineExceeded,
    RunControl,
    StateGraph,
    _clock,
    collect_runs,
    fail_after,
    idempotency_key,
    remaining,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

HANG = 3600.0
SORRY = "There was no time."

hows = pytest.mark.parametrize("how", ALL)
async_hows = pytest.mark.parametrize("how", ASYNC)
kinds = pytest.mark.parametrize("kind", ["sync", "async"])

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


class Undo:
    """A compensation, sync or async, that notes its calls in the order of events."""

    def __init__(self, events: list[Any] | None = None, then: Any = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.left: list[float] = []
        self.events = [] if events is None else events
        self.then = then

    def sync(self, call: dict[str, Any]) -> None:
        """Undo it."""
        self.calls.append(call)
        self.keys.append(idempotency_key())
        self.left.append(remaining())
        self.events.append("undone")
        if self.then is not None:
            self.then()

    async def asynchronous(self, call: dict[str, Any]) -> None:
        """Undo it, over many passes of the loop."""
        for _ in range(200):
            await asyncio.sleep(0)
        self.sync(call)
        if self.then is hang:
            await asyncio.sleep(HANG)

    def of(self, kind: str) -> Any:
        return self.sync if kind == "sync" else self.asynchronous


def hang() -> None:
    """Take for ever, in a thread; an async compensation sleeps instead."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        released.wait(3)


def breaks() -> None:
    msg = "the compensation is broken"
    raise LookupError(msg)


def asks(*called: tuple[str, str | None, float]) -> Any:
    """Return the input of a graph that calls tools: name, id and how long it takes."""
    tool_calls = [
        {"name": name, "args": {"seconds": seconds}, "id": call, "type": "tool_call"}
        for name, call, seconds in called
    ]
    message = AIMessage("", tool_calls=cast("Any", tool_calls), id="asks")
    return {"messages": [message]}


def graph_of(
    trial: Trial,
    node: Any,
    mode: str,
    events: list[Any] | None = None,
    **kwargs: Any,
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


def thread(id: str = "1") -> Any:
    return {"configurable": {"thread_id": id}}


def answers(driven: Driven) -> dict[str, ToolMessage]:
    """Return the tool messages by the ids of their calls."""
    messages = [m for m in driven.values["messages"] if isinstance(m, ToolMessage)]
    return {m.tool_call_id: m for m in messages}


# Once, in time, before the fallback.


@hows
@kinds
def test_a_call_that_was_cut_is_compensated_before_the_fallback(
    how: How, kind: str
) -> None:
    trial, events = Trial(how), []
    keys: list[str] = []
    undo = Undo(events)
    pay = made("pay", lambda: keys.append(idempotency_key()))
    node = ToolNode([with_deadline(pay, on_cut=undo.of(kind)), made("good")])
    graph = graph_of(trial, node, "fallback", events)
    driven = trial.drive(graph, asks(("pay", "1", HANG), ("good", "2", 0)))
    assert driven.error is None
    trial.at_work(driven)
    assert undo.calls == [{"name": "pay", "args": {"seconds": HANG}, "id": "1"}]
    assert undo.keys == keys
    assert events[0] == "undone"
    assert "compensated" in events[1][0]
    assert events[1][1] == "a result"
    assert undo.left[0] > 0
    (unknown,) = driven.report.unknown
    assert (unknown.name, unknown.id, unknown.key) == ("pay", "1", keys[0])
    assert unknown.compensation == "done"
    assert driven.report.outcome == "deadline"
    kinds_of_steps = [s.kind for s in driven.report.steps]
    assert "compensation" in kinds_of_steps


@hows
@kinds
@pytest.mark.parametrize("mode", ["raise", "return"])
def test_a_cut_is_compensated_without_a_fallback(
    how: How, kind: str, mode: str
) -> None:
    """There is no reserve; a compensation has the grace."""
    trial, undo = Trial(how), Undo()
    node = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind)), made("good")])
    graph = graph_of(trial, node, mode, checkpointer=InMemorySaver())
    driven = trial.drive(graph, asks(("pay", "1", HANG), ("good", "2", 0)), thread())
    trial.at_budget(driven)
    assert len(undo.calls) == 1
    assert driven.report.unknown[0].compensation == "done"
    if mode == "return":
        assert driven.error is None
        assert "compensated" in answers(driven)["1"].text
        assert answers(driven)["2"].content == "a result"
    else:
        assert isinstance(driven.error, DeadlineExceeded)
        assert graph.get_state(thread()).next == ("tools",)


@hows
@kinds
@pytest.mark.parametrize("asked", ["message", "raise"])
def test_a_calls_own_overrun_is_compensated(how: How, kind: str, asked: Any) -> None:
    trial, undo = Trial(how, seconds=2.0), Undo()
    limit = 0.3 if how in SYNC else 3.0
    tools = [with_deadline(made("pay"), limit, on_cut=undo.of(kind), on_exceeded=asked)]
    graph = graph_of(trial, ToolNode(tools), "raise")
    driven = trial.drive(graph, asks(("pay", "1", HANG)))
    trial.took(driven, limit)
    assert len(undo.calls) == 1
    assert driven.report.unknown[0].compensation == "done"
    if asked == "message":
        assert driven.error is None
        assert "compensated" in answers(driven)["1"].text
    else:
        assert type(driven.error) is DeadlineExceeded
        assert driven.error.cause == "step"


@hows
@kinds
def test_a_stop_button_is_a_cut(how: How, kind: str) -> None:
    trial, undo, control = Trial(how, seconds=3.0), Undo(), RunControl()

    def stop() -> None:
        if how in SYNC:
            threading.Timer(0.2, control.cancel).start()
        else:
            asyncio.get_running_loop().call_later(1, control.cancel)

    node = ToolNode([with_deadline(made("pay", stop), on_cut=undo.of(kind))])
    graph = graph_of(trial, node, "fallback")
    driven = trial.drive(graph, asks(("pay", "1", HANG)), control=control)
    assert driven.error is None
    assert driven.report.outcome == "cancelled"
    assert len(undo.calls) == 1
    assert driven.report.unknown[0].compensation == "done"
    assert answers(driven)["1"].status == "error"


@hows
def test_what_was_not_cut_after_it_began_is_not_compensated(how: How) -> None:
    """Finished, failed by itself, refused, or waiting for its turn."""
    trial, undo = Trial(how), Undo()

    def fails() -> Any:
        msg = "broken"
        raise LookupError(msg)

    tools = [
        with_deadline(made("good"), on_cut=undo.sync),
        with_deadline(made("bad", fails), on_cut=undo.sync),
        with_deadline(made("refused"), needs=60, on_cut=undo.sync),
        made("hangs"),
    ]
    node = ToolNode(tools, handle_tool_errors=True)
    graph = graph_of(trial, node, "fallback")
    called = [("good", "1", 0), ("bad", "2", 0), ("refused", "3", 0), ("hangs", "4", 9)]
    driven = trial.drive(graph, asks(*called))
    assert driven.error is None
    assert list(answers(driven)) == ["1", "2", "3", "4"]
    assert undo.calls == []
    assert [call.name for call in driven.report.unknown] == ["hangs"]


@hows
def test_an_interrupt_is_not_compensated(how: How) -> None:
    trial, undo = Trial(how, seconds=2.0), Undo()
    asking = made("asking", lambda: interrupt("Go on?"))
    node = ToolNode([with_deadline(asking, 60, on_cut=undo.sync)])
    graph = graph_of(trial, node, "fallback", checkpointer=InMemorySaver())
    driven = trial.drive(graph, asks(("asking", "1", 0)), thread())
    assert driven.error is None
    assert graph.get_state(thread()).interrupts
    assert undo.calls == []
    assert driven.report.unknown == []


@hows
@kinds
def test_parallel_calls_are_each_compensated_once(how: How, kind: str) -> None:
    trial, undo = Trial(how), Undo()
    node = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind))])
    graph = graph_of(trial, node, "fallback")
    called = [("pay", str(i), HANG) for i in range(5)]
    driven = trial.drive(graph, asks(*called))
    assert driven.error is None
    trial.at_work(driven)
    assert sorted(call["id"] for call in undo.calls) == list("01234")
    assert len(set(undo.keys)) == 5
    assert len(driven.report.unknown) == 5
    assert all(call.compensation == "done" for call in driven.report.unknown)


@hows
@kinds
@pytest.mark.parametrize("levels", [1, 2])
def test_a_cut_in_a_subgraph_is_compensated_before_the_fallback(
    how: How, kind: str, levels: int
) -> None:
    trial, events = Trial(how, seconds=0.6), []
    undo = Undo(events)
    node: Any = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind))])
    for _ in range(levels):
        inner = PlainStateGraph(MessagesState)
        inner.add_node("tools", node).add_edge(START, "tools")
        node = inner.compile()
    graph = graph_of(trial, node, "fallback", events)
    driven = trial.drive(graph, asks(("pay", "1", HANG)))
    assert driven.error is None
    trial.at_work(driven)
    assert len(undo.calls) == 1
    assert events[0] == "undone"
    assert len(events) == 2
    assert "compensated" in events[1][0]
    assert [c.compensation for c in driven.report.unknown] == ["done"]


# Compensations that fail.


@hows
@kinds
def test_a_compensation_that_fails_is_told_and_the_fallback_still_runs(
    how: How, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    trial, undo = Trial(how), Undo(then=breaks)
    node = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind))])
    graph = graph_of(trial, node, "fallback")
    with caplog.at_level(logging.ERROR, "langgraph_deadline"):
        driven = trial.drive(graph, asks(("pay", "1", HANG)))
    assert driven.error is None
    trial.at_work(driven)
    assert len(undo.calls) == 1
    assert driven.report.unknown[0].compensation == "failed"
    assert "compensating for it failed" in answers(driven)["1"].text
    assert driven.values["messages"][-1].content == SORRY
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "'pay'" in record.getMessage()
    assert "the compensation is broken" in record.getMessage()


@hows
@kinds
def test_a_compensation_that_hangs_leaves_the_fallback_its_time(
    how: How, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    trial, undo = Trial(how, reserve=2.0), Undo(then=hang)
    node = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind)), made("good")])
    graph = graph_of(trial, node, "fallback")
    with caplog.at_level(logging.ERROR, "langgraph_deadline"):
        driven = trial.drive(graph, asks(("pay", "1", HANG), ("good", "2", 0)))
    assert driven.error is None
    assert driven.elapsed < trial.end
    assert driven.values["messages"][-1].content == SORRY
    assert driven.report.unknown[0].compensation == "failed"
    assert answers(driven)["2"].content == "a result"
    assert "compensating for it failed" in answers(driven)["1"].text
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "took longer" in record.getMessage()


@hows
@kinds
def test_a_compensation_that_hangs_does_not_hold_up_a_run_that_raises(
    how: How, kind: str
) -> None:
    trial, undo = Trial(how), Undo(then=hang)
    node = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind))])
    driven = trial.drive(graph_of(trial, node, "raise"), asks(("pay", "1", HANG)))
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed < trial.budget + 0.25 + (0.6 if trial.real else 0.25)
    assert driven.report.unknown[0].compensation == "failed"


@async_hows
def test_a_compensation_that_swallows_its_cancellation_is_given_up(how: How) -> None:
    trial = Trial(how)

    async def deaf(call: dict[str, Any]) -> None:
        for _ in range(50):  # for ever, as far as the run can tell
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(20)

    node = ToolNode([with_deadline(made("pay"), on_cut=deaf)])
    driven = trial.drive(graph_of(trial, node, "fallback"), asks(("pay", "1", HANG)))
    assert driven.error is None
    assert driven.elapsed < trial.end
    assert driven.values["messages"][-1].content == SORRY
    assert driven.report.unknown[0].compensation == "failed"
    assert "pay" in [s.name for s in driven.report.stragglers]


@async_hows
def test_a_tool_that_resists_is_compensated_all_the_same(how: How) -> None:
    trial, undo = Trial(how), Undo()

    async def deaf(seconds: float = 0.0) -> str:
        """Do not listen."""
        for _ in range(50):  # for ever, as far as the run can tell
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(20)

    pay = StructuredTool.from_function(coroutine=deaf, name="pay")
    node = ToolNode([with_deadline(pay, on_cut=undo.asynchronous)])
    driven = trial.drive(graph_of(trial, node, "fallback"), asks(("pay", "1", 0)))
    assert driven.error is None
    assert driven.elapsed < trial.end
    assert len(undo.calls) == 1
    assert driven.report.unknown[0].compensation == "done"
    assert "compensated" in answers(driven)["1"].text
    assert driven.values["messages"][-1].content == SORRY


# Callers that leave, and calls outside of graphs.


@async_hows
@kinds
def test_a_caller_that_leaves_is_a_cut(how: How, kind: str) -> None:
    """An anyio scope, which cancels again and again."""
    trial, undo = Trial(how), Undo()
    node = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind))])
    graph = graph_of(trial, node, "fallback")

    async def main() -> None:
        with anyio.move_on_after(1):
            await adrive(graph, asks(("pay", "1", HANG)), how)
        await asyncio.sleep(3)
        assert len(undo.calls) == 1
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


@async_hows
@kinds
def test_a_sibling_that_fails_cuts_and_compensates_the_others(
    how: How, kind: str
) -> None:
    trial, undo = Trial(how), Undo()

    async def bad(seconds: float = 0.0) -> str:
        """Fail."""
        await asyncio.sleep(1)
        msg = "broken"
        raise LookupError(msg)

    failing = StructuredTool.from_function(coroutine=bad, name="bad")
    tools = [with_deadline(made("pay"), on_cut=undo.of(kind)), failing]
    node = ToolNode(tools, handle_tool_errors=False)
    graph = graph_of(trial, node, "fallback")
    driven = trial.drive(graph, asks(("pay", "1", HANG), ("bad", "2", 0)))
    assert isinstance(driven.error, LookupError)
    assert len(undo.calls) == 1
    assert [c.compensation for c in driven.report.unknown] == ["done"]


@kinds
def test_a_call_outside_of_any_graph_is_compensated(kind: str) -> None:
    undo = Undo()
    pay = with_deadline(made("pay"), 2, on_cut=undo.of(kind))

    async def main() -> None:
        message = await pay.ainvoke(
            {"name": "pay", "args": {"seconds": 9}, "id": "1", "type": "tool_call"}
        )
        assert "compensated" in message.text
        with pytest.raises(DeadlineExceeded), fail_after(1):
            await pay.ainvoke({"seconds": 9})
        with anyio.move_on_after(1):
            await pay.ainvoke({"seconds": 8})

    run_virtual(main())
    assert [call["id"] for call in undo.calls] == ["1", None, None]
    assert undo.calls[2]["args"] == {"seconds": 8}


@pytest.mark.realtime
@kinds
def test_a_sync_call_outside_of_any_graph_is_compensated(kind: str) -> None:
    undo = Undo()
    pay = with_deadline(made("pay"), 0.3, on_cut=undo.of(kind))
    began = _clock.now()
    assert "compensated" in pay.invoke({"seconds": 5})
    assert _clock.now() - began < 0.9
    assert len(undo.calls) == 1


@hows
def test_a_compensation_in_a_plain_graph_gets_the_models_arguments(how: How) -> None:
    """Not what LangGraph injects."""
    from harness import drive

    undo = Undo()

    def pay(runtime: ToolRuntime, seconds: float = 0.0) -> None:
        """Pay."""
        released.wait(seconds)

    async def apay(runtime: ToolRuntime, seconds: float = 0.0) -> None:
        """Pay."""
        await asyncio.sleep(seconds)

    tool = StructuredTool.from_function(pay, apay, name="pay")
    node = ToolNode([with_deadline(tool, 0.3, on_cut=undo.sync)])
    builder = PlainStateGraph(MessagesState)
    builder.add_node("tools", node).add_edge(START, "tools")
    driven = drive(builder.compile(), asks(("pay", "1", 3.0)), how, virtual=True)
    assert "compensated" in answers(driven)["1"].text
    assert undo.calls == [{"name": "pay", "args": {"seconds": 3.0}, "id": "1"}]


@hows
@kinds
def test_nothing_is_left_behind(how: How, kind: str) -> None:
    """No thread, and no task, once the tool has come back."""
    trial, undo = Trial(how), Undo()
    before = set(threading.enumerate())
    node = ToolNode([with_deadline(made("pay"), on_cut=undo.of(kind))])
    graph = graph_of(trial, node, "fallback")
    driven = trial.drive(graph, asks(*[("pay", str(i), HANG) for i in range(3)]))
    assert driven.error is None
    released.set()
    deadline = _clock.now() + 5
    while left := set(threading.enumerate()) - before:
        assert _clock.now() < deadline, left
        released.wait(0)
        for one in left:
            one.join(0.1)


def test_reports_of_calls_come_with_the_outermost_run() -> None:
    """A sub-agent called in a tool: its calls stand on the run's own report."""
    trial, undo = Trial("ainvoke"), Undo()
    inner = PlainStateGraph(MessagesState)
    inner.add_node("tools", ToolNode([with_deadline(made("pay"), on_cut=undo.sync)]))
    inner.add_edge(START, "tools")
    sub = with_deadline(inner.compile())

    async def ask(seconds: float = 0.0) -> str:
        """Ask another agent."""
        out = await sub.ainvoke(asks(("pay", "7", HANG)))
        return str(out["messages"][-1].content)

    asking = StructuredTool.from_function(coroutine=ask, name="ask")
    graph = graph_of(trial, ToolNode([asking]), "fallback")
    with collect_runs() as reports:
        driven = trial.drive(graph, asks(("ask", "1", 0)))
    assert driven.error is None
    trial.at_work(driven)
    assert len(undo.calls) == 1
    assert len(reports) == 1
    names = sorted(call.name for call in reports[0].unknown)
    assert "pay" in names
