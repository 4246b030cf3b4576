"""Any `ToolNode` of a bounded graph: no call is lost, left open, or runs on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import ALL, ASYNC, SYNC, How, Trial
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send, interrupt

from langgraph_deadline import (
    DeadlineExceeded,
    StateGraph,
    StepBudget,
    with_deadline,
)
from langgraph_deadline._calls import NO_LIMIT, CallLimit, call_sync, entered
from langgraph_deadline._cut import SyncStep
from langgraph_deadline._scope import current

HANG = 3600.0

ran: list[str] = []
"""What the tools have done, in order; a list of its own for each test."""

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What an earlier test left in a thread must not write into this one's list.
    monkeypatch.setitem(globals(), "ran", [])
    monkeypatch.setitem(globals(), "released", threading.Event())
    yield
    released.set()


hows = pytest.mark.parametrize("how", ALL)


def made(name: str, work: Any) -> BaseTool:
    """Return a tool, sync and async, that does `work(kind, seconds)`."""

    def sync(seconds: float = 0.0) -> Any:
        """Do something."""
        log = ran
        log.append(f"{name} began")
        try:
            if seconds:
                released.wait(min(seconds, 3.0))
            out = work()
        finally:
            log.append(f"{name} left")
        log.append(f"{name} ended")
        return out

    async def asynchronous(seconds: float = 0.0) -> Any:
        """Do something."""
        ran.append(f"{name} began")
        try:
            if seconds:
                await asyncio.sleep(seconds)
            out = work()
        finally:
            ran.append(f"{name} left")
        ran.append(f"{name} ended")
        return out

    return StructuredTool.from_function(sync, asynchronous, name=name)


def fails() -> Any:
    msg = "the tool is broken"
    raise LookupError(msg)


good = made("good", lambda: "a result")
bad = made("bad", fails)
TOOLS = [good, bad]


def asks(*called: tuple[str, str, float]) -> AIMessage:
    """Return a message that calls tools: a name, an id and how long it takes."""
    tool_calls = [
        {"name": name, "args": {"seconds": seconds}, "id": id}
        for name, id, seconds in called
    ]
    return AIMessage("", tool_calls=tool_calls, id="asks")


def builder_of(node: Any) -> Any:
    """Return a graph whose only node has tools."""
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node)
    return builder.add_edge(START, "tools")


def degrade(state: MessagesState) -> Any:
    """Answer when time is up."""
    return {"messages": AIMessage("Sorry.", id="sorry")}


async def adegrade(state: MessagesState) -> Any:
    return degrade(state)


def compiled(trial: Trial, builder: Any, mode: str, **kwargs: Any) -> Any:
    """Return the graph with its budget, and `degrade` for a fallback."""
    if mode == "fallback":
        builder.add_node("degrade", degrade if trial.how in SYNC else adegrade)
    return trial.compile(builder, mode, **kwargs)


def answers(driven: Any) -> dict[str, ToolMessage]:
    """Return the tool messages by the ids of their calls; each has one."""
    messages = [m for m in driven.values["messages"] if isinstance(m, ToolMessage)]
    found = {m.tool_call_id: m for m in messages}
    assert len(found) == len(messages), "a call was answered twice"
    return found


# What is cut is answered.


@hows
@pytest.mark.parametrize("handle", [True, False, "default"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_finished_siblings_keep_their_results_and_cut_calls_are_answered(
    how: How, handle: Any, wrapped: bool
) -> None:
    trial = Trial(how)
    options = {} if handle == "default" else {"handle_tool_errors": handle}
    tools = with_deadline(TOOLS) if wrapped else TOOLS
    graph = compiled(trial, builder_of(ToolNode(tools, **options)), "fallback")
    asked = asks(("good", "1", 0), ("good", "2", HANG), ("good", "3", 0))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    trial.at_work(driven)
    found = answers(driven)
    assert list(found) == ["1", "2", "3"]
    assert [m.status for m in found.values()] == ["success", "error", "success"]
    assert found["1"].content == found["3"].content == "a result"
    assert found["2"].name == "good"
    assert "outcome is unknown" in found["2"].text
    assert driven.values["messages"][-1].content == "Sorry."
    assert driven.report.outcome == "deadline"
    if how in ASYNC:
        assert ran.count("good left") == 3


@hows
@pytest.mark.parametrize("mode", ["return", "raise"])
def test_without_a_fallback_cut_calls_are_answered_or_run_again(
    how: How, mode: str
) -> None:
    trial = Trial(how)
    graph = compiled(
        trial, builder_of(ToolNode(TOOLS)), mode, checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    asked = asks(("good", "1", 0), ("good", "2", HANG))
    driven = trial.drive(graph, {"messages": [asked]}, config)
    trial.at_budget(driven)
    if mode == "return":
        assert driven.error is None
        assert list(answers(driven)) == ["1", "2"]
        return
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "deadline"
    assert graph.get_state(config).next == ("tools",)
    assert len(graph.get_state(config).values["messages"]) == 1


@hows
def test_a_tool_node_refused_at_admission_answers_that_nothing_was_started(
    how: How,
) -> None:
    """The model's turn ends past the deadline: its calls are not left open."""
    trial = Trial(how)
    builder = StateGraph(MessagesState)
    policy_steps = {"tools": StepBudget(needs=0.2 if how in SYNC else 5)}

    def model(state: Any) -> Any:
        time.sleep(0.15)
        return {"messages": asks(("good", "1", 0), ("bad", "2", 0))}

    async def amodel(state: Any) -> Any:
        await asyncio.sleep(5)
        return {"messages": asks(("good", "1", 0), ("bad", "2", 0))}

    builder.add_node("model", model if how in SYNC else amodel)
    builder.add_node("tools", ToolNode(TOOLS))
    builder.add_edge(START, "model").add_edge("model", "tools")
    builder.add_node("degrade", degrade)
    policy = trial.reserved.model_copy(update={"steps": policy_steps})
    graph = builder.compile(deadline=policy, fallback="degrade")
    driven = trial.drive(graph, {"messages": [HumanMessage("?", id="q")]})
    assert driven.error is None
    found = answers(driven)
    assert list(found) == ["1", "2"]
    assert all("not started" in m.text for m in found.values())
    assert ran == []
    assert driven.values["messages"][-1].content == "Sorry."


@hows
def test_a_step_budget_of_the_node_cuts_its_calls(how: How) -> None:
    trial = Trial(how, seconds=1.0)
    builder = builder_of(ToolNode(TOOLS))
    builder.add_node("degrade", degrade)
    seconds = 0.3 if how in SYNC else 3.0
    policy = trial.reserved.model_copy(
        update={"steps": {"tools": StepBudget(seconds=seconds)}}
    )
    graph = builder.compile(deadline=policy, fallback="degrade")
    asked = asks(("good", "1", 0), ("good", "2", HANG))
    for _ in range(5 if how in SYNC else 1):  # guards in two threads find it at once
        driven = trial.drive(graph, {"messages": [asked]})
        trial.took(driven, seconds)
        found = answers(driven)
        assert found["1"].content == "a result"
        assert "outcome is unknown" in found["2"].text
        assert driven.values["messages"][-1].content == "Sorry."
        trial.released.clear()


@pytest.mark.realtime
def test_a_call_that_finds_that_its_nodes_limit_is_over_cuts_the_node() -> None:
    """Else the node would end in time, with its calls cut, as if nothing had been."""
    limit = CallLimit.checked(0.2, 0.0)
    with entered(SyncStep, "node", "call", limit) as (_, node):
        token = current.set(node)
        try:
            with pytest.raises(DeadlineExceeded):
                call_sync("call", "tool", NO_LIMIT, lambda: released.wait(3.0))
        finally:
            current.reset(token)
        assert node.cut == "step"


@hows
def test_a_calls_own_limit_is_a_message_and_the_run_goes_on(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    limit = 0.3 if how in SYNC else 3.0
    node = ToolNode([with_deadline(good, limit)])
    graph = compiled(trial, builder_of(node), "fallback")
    asked = asks(("good", "1", 0), ("good", "2", HANG))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    trial.took(driven, limit)
    found = answers(driven)
    assert found["1"].content == "a result"
    assert f"its own limit of {limit:.3g} s" in found["2"].text
    assert "s left" in found["2"].text
    assert driven.values["messages"][-1].type == "tool"
    assert driven.report.outcome == "completed"


# A sibling fails.


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("mode", ["fallback", "return", "raise"])
def test_a_sibling_that_fails_cancels_the_others(how: How, mode: str) -> None:
    trial = Trial(how)
    node = ToolNode(TOOLS, handle_tool_errors=False)
    graph = compiled(trial, builder_of(node), mode)
    asked = asks(("good", "1", HANG), ("bad", "2", 1), ("good", "3", HANG))
    driven = trial.drive(graph, {"messages": [asked]})
    assert isinstance(driven.error, LookupError)
    trial.took(driven, 1)
    assert ran.count("good left") == 2
    assert "good ended" not in ran


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_a_sibling_that_fails_gives_up_the_others(how: How) -> None:
    """The run does not wait for threads that nobody can stop."""
    trial = Trial(how, seconds=4.0)
    node = ToolNode(TOOLS, handle_tool_errors=False)
    graph = compiled(trial, builder_of(node), "raise")
    asked = asks(("good", "1", HANG), ("bad", "2", 0.2), ("good", "3", HANG))
    driven = trial.drive(graph, {"messages": [asked]})
    assert isinstance(driven.error, LookupError)
    assert driven.elapsed < 1.2
    assert [s.name for s in driven.report.stragglers] == ["good", "good"]


@hows
def test_errors_that_are_handled_leave_the_siblings_alone(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    node = ToolNode(TOOLS, handle_tool_errors=True)
    graph = compiled(trial, builder_of(node), "fallback")
    asked = asks(("good", "1", 0.3), ("bad", "2", 0), ("good", "3", 0.3))
    driven = trial.drive(graph, {"messages": [asked]})
    found = answers(driven)
    assert list(found) == ["1", "2", "3"]
    assert [m.status for m in found.values()] == ["success", "error", "success"]
    assert "broken" in found["2"].text
    assert driven.report.outcome == "completed"


@hows
def test_several_errors_at_once_are_one_error(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    node = ToolNode(TOOLS, handle_tool_errors=False)
    graph = compiled(trial, builder_of(node), "raise")
    asked = asks(*[("bad", str(i), 0.1) for i in range(5)], ("good", "6", 0.5))
    driven = trial.drive(graph, {"messages": [asked]})
    assert isinstance(driven.error, LookupError)
    assert driven.report.outcome == "error"


# Many calls.


@hows
def test_calls_that_wait_for_their_turn_are_not_started(how: How) -> None:
    """`max_concurrency`: one runs, the others wait for it, and the time is over."""
    trial = Trial(how)
    graph = compiled(trial, builder_of(ToolNode(TOOLS)), "fallback")
    asked = asks(*[("good", str(i), HANG) for i in range(5)])
    driven = trial.drive(graph, {"messages": [asked]}, {"max_concurrency": 2})
    trial.at_work(driven)
    found = answers(driven)
    assert list(found) == [str(i) for i in range(5)]
    if how in SYNC:  # LangGraph bounds the calls of one message in sync graphs only
        started = ["unknown" in m.text for m in found.values()]
        assert started == [True, True, False, False, False]
        assert all("not started" in found[i].text for i in "234")


@pytest.mark.parametrize("how", ASYNC)
def test_a_hundred_calls_are_cut_at_once(how: How) -> None:
    trial = Trial(how)
    graph = compiled(trial, builder_of(ToolNode(TOOLS)), "fallback")
    times = [HANG if i % 3 else 1.0 for i in range(100)]
    asked = asks(*[("good", str(i), times[i]) for i in range(100)])
    driven = trial.drive(graph, {"messages": [asked]})
    trial.at_work(driven)
    found = answers(driven)
    assert list(found) == [str(i) for i in range(100)]
    statuses = [m.status == "success" for m in found.values()]
    assert statuses == [seconds == 1.0 for seconds in times]
    assert len(driven.report.unknown) == 66
    assert ran.count("good left") == 100


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_hundred_blocking_calls_are_given_up_at_once(how: How) -> None:
    def sync(seconds: float = 0.0) -> str:
        """Do something."""
        released.wait(3.0)
        return "late"

    trial = Trial(how, realtime=True, seconds=0.6, reserve=2.0)
    node = ToolNode([StructuredTool.from_function(sync, name="good")])
    graph = compiled(trial, builder_of(node), "fallback")
    asked = asks(*[("good", str(i), HANG) for i in range(100)])
    driven = trial.drive(graph, {"messages": [asked]})
    released.set()
    assert driven.error is None
    assert driven.elapsed < 0.6 + 1.5
    assert list(answers(driven)) == [str(i) for i in range(100)]


@hows
def test_a_message_without_calls_and_an_unknown_tool_are_as_before(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    graph = compiled(trial, builder_of(ToolNode(TOOLS)), "fallback")
    driven = trial.drive(graph, {"messages": [AIMessage("Nothing to do.")]})
    assert driven.error is None
    assert len(driven.values["messages"]) == 1
    asked = asks(("unheard", "1", 0), ("good", "2", 0))
    found = answers(trial.drive(graph, {"messages": [asked]}))
    assert "unheard is not a valid tool" in found["1"].text
    assert found["2"].content == "a result"


@hows
def test_the_same_tool_twice_with_one_id_is_answered_twice(how: How) -> None:
    """Ids that a model gives twice, or not at all, are its own mistake."""
    trial = Trial(how)
    graph = compiled(trial, builder_of(ToolNode(TOOLS)), "return")
    asked = asks(("good", "1", 0), ("good", "1", HANG))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    messages = [m for m in driven.values["messages"] if isinstance(m, ToolMessage)]
    assert [m.status for m in messages] == ["success", "error"]


@hows
def test_a_call_sent_by_itself_is_answered(how: How) -> None:
    """As `create_agent` does: `Send("tools", call)`."""
    trial = Trial(how)
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode(TOOLS))

    def each(state: Any) -> Any:
        calls = state["messages"][-1].tool_calls
        return [Send("tools", [{**made, "type": "tool_call"}]) for made in calls]

    builder.add_conditional_edges(START, each, ["tools"])
    graph = compiled(trial, builder, "fallback")
    asked = asks(("good", "1", 0), ("good", "2", HANG), ("good", "3", HANG))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    trial.at_work(driven)
    found = answers(driven)
    assert sorted(found) == ["1", "2", "3"]
    assert found["1"].content == "a result"
    assert "outcome is unknown" in found["2"].text
    assert [m.content for m in driven.values["messages"]].count("Sorry.") == 1


# Commands, interrupts.


@hows
def test_a_command_of_a_finished_call_updates_the_state(how: How) -> None:
    """Its goto belongs to the node's edges, which a cut drops."""
    trial = Trial(how)

    def command() -> Any:
        message = ToolMessage("by command", tool_call_id="1")
        return Command(update={"messages": [message]})

    node = ToolNode([made("commands", command), good])
    graph = compiled(trial, builder_of(node), "fallback")
    asked = asks(("commands", "1", 0), ("good", "2", HANG))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    trial.at_work(driven)
    found = answers(driven)
    assert found["1"].content == "by command"
    assert "outcome is unknown" in found["2"].text


@hows
def test_an_interrupt_in_a_call_passes_and_resumes(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    asking = made("asking", lambda: f"answered {interrupt('Go on?')}")
    node = ToolNode([with_deadline(asking, 60), good])
    graph = compiled(trial, builder_of(node), "fallback", checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    asked = asks(("good", "1", 0), ("asking", "2", 0))
    first = trial.drive(graph, {"messages": [asked]}, config)
    assert first.error is None
    assert graph.get_state(config).interrupts[0].value == "Go on?"
    driven = trial.drive(graph, Command(resume="yes"), config)
    found = answers(driven)
    assert found["2"].content == "answered yes"
    assert found["1"].content == "a result"
    assert driven.report.outcome == "completed"


@pytest.mark.parametrize("how", ASYNC)
def test_an_interrupt_beside_calls_that_run_leaves_no_orphan(how: How) -> None:
    """LangGraph raises the interrupt at once; what runs beside it is stopped."""
    trial = Trial(how)
    asking = made("asking", lambda: f"answered {interrupt('Go on?')}")
    node = ToolNode([asking, good])
    graph = compiled(trial, builder_of(node), "fallback", checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    asked = asks(("good", "1", 3), ("asking", "2", 0))
    first = trial.drive(graph, {"messages": [asked]}, config)
    assert first.error is None
    assert graph.get_state(config).interrupts
    assert first.elapsed < 8
    before = list(ran)
    assert ran.count("good began") == ran.count("good left")
    driven = trial.drive(graph, Command(resume="yes"), config)
    assert answers(driven)["1"].content == "a result", before
    assert answers(driven)["2"].content == "answered yes"
    assert driven.report.outcome == "completed"
