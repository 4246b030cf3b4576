"""Tool calls in agents, subgraphs and middleware, and tools that behave badly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import anyio
import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, Trial, adrive, drive
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.errors import NodeError
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send
from pydantic import Field

from langgraph_deadline import (
    DeadlineExceeded,
    RunControl,
    StateGraph,
    with_deadline,
)
from langgraph_deadline.agents import agent_fallback
from langgraph_deadline.testing import run_virtual

HANG = 3600.0
SORRY = "There was no time."
QUESTION = HumanMessage("What is known?", id="question")

hows = pytest.mark.parametrize("how", ALL)
async_hows = pytest.mark.parametrize("how", ASYNC)

ran: list[str] = []
"""What the tools have done, in order; a list of its own for each test."""

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(globals(), "ran", [])
    monkeypatch.setitem(globals(), "released", threading.Event())
    yield
    released.set()


def made(name: str, work: Any = lambda: "a result") -> BaseTool:
    """Return a tool, sync and async, that takes some seconds and does `work`."""

    def sync(seconds: float = 0.0) -> Any:
        """Do something."""
        log = ran
        log.append(f"{name} began")
        if seconds:
            released.wait(min(seconds, 3.0))
        log.append(f"{name} ended")
        return work()

    async def asynchronous(seconds: float = 0.0) -> Any:
        """Do something."""
        ran.append(f"{name} began")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            ran.append(f"{name} cancelled")
            raise
        ran.append(f"{name} ended")
        return work()

    return StructuredTool.from_function(sync, asynchronous, name=name)


good = made("good")


def asks(*called: tuple[str, str, float], id: str = "asks") -> AIMessage:
    """Return a message that calls tools: a name, an id and how long it takes."""
    tool_calls = [
        {"name": name, "args": {"seconds": seconds}, "id": call, "type": "tool_call"}
        for name, call, seconds in called
    ]
    return AIMessage("", tool_calls=cast("Any", tool_calls), id=id)


class Scripted(BaseChatModel):
    """A chat model that has an answer for each of its turns."""

    turns: list[AIMessage]
    prompts: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.prompts.append(messages)
        turn = self.turns[min(len(self.prompts), len(self.turns)) - 1]
        return ChatResult(generations=[ChatGeneration(message=turn.model_copy())])

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(*args, **kwargs)


def agent(trial: Trial, turns: list[AIMessage], tools: list[Any], **more: Any) -> Any:
    """Return an agent with a deadline and a fallback that answers all calls."""
    built = create_agent(Scripted(turns=turns), tools, **more)
    return with_deadline(built, trial.reserved, fallback=agent_fallback(SORRY))


def answers(driven: Driven) -> dict[str, ToolMessage]:
    """Return the tool messages by the ids of their calls; each has one."""
    messages = [m for m in driven.values["messages"] if isinstance(m, ToolMessage)]
    found = {m.tool_call_id: m for m in messages}
    assert len(found) == len(messages), "a call was answered twice"
    return found


def is_valid(messages: list[BaseMessage]) -> None:
    """Check that each call is answered once, right behind it, as providers want it."""
    open_calls: list[str | None] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            open_calls.remove(message.tool_call_id)
        else:
            assert not open_calls
            if isinstance(message, AIMessage):
                open_calls = [call["id"] for call in message.tool_calls]
    assert not open_calls


def degrade(state: MessagesState) -> Any:
    """Answer when time is up."""
    return {"messages": AIMessage(SORRY, id="sorry")}


def graph_of(trial: Trial, node: Any, mode: str, **kwargs: Any) -> Any:
    """Return a graph whose only node has tools."""
    builder = StateGraph(MessagesState)
    builder.add_node("tools", node).add_edge(START, "tools")
    if mode == "fallback":
        builder.add_node("degrade", degrade)
    return trial.compile(builder, mode, **kwargs)


def thread(id: str = "1") -> Any:
    return {"configurable": {"thread_id": id}}


# Agents.


@hows
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_agent_keeps_what_was_found_and_goes_on_next_turn(
    how: How, wrapped: bool
) -> None:
    trial = Trial(how)
    turns = [
        asks(("good", "1", 0), ("good", "2", HANG), ("good", "3", 0)),
        AIMessage("All is known.", id="done"),
    ]
    tools = with_deadline([good], 60) if wrapped else [good]
    bounded = agent(trial, turns, tools, checkpointer=InMemorySaver())
    driven = trial.drive(bounded, {"messages": [QUESTION]}, thread())
    assert driven.error is None
    trial.at_work(driven)
    found = answers(driven)
    assert found["1"].content == found["3"].content == "a result"
    assert "outcome is unknown" in found["2"].text
    assert driven.values["messages"][-1].content == SORRY
    is_valid(driven.values["messages"])
    again = {"messages": [HumanMessage("And now?", id="again")]}
    driven = trial.drive(bounded, again, thread())
    assert driven.report.outcome == "completed"
    assert driven.values["messages"][-1].content == "All is known."
    is_valid(driven.values["messages"])


@hows
def test_an_agent_is_told_of_a_tools_own_limit_and_goes_on(how: How) -> None:
    trial = Trial(how, seconds=3.0)
    turns = [asks(("good", "1", HANG)), AIMessage("Without it.", id="done")]
    limit = 0.3 if how in SYNC else 3.0
    bounded = agent(trial, turns, with_deadline([good], limit))
    driven = trial.drive(bounded, {"messages": [QUESTION]})
    assert driven.report.outcome == "completed"
    assert f"its own limit of {limit:.3g} s" in answers(driven)["1"].text
    assert driven.values["messages"][-1].content == "Without it."


# One limit over all attempts of a call.


@async_hows
def test_a_limit_covers_all_attempts_that_middleware_makes(how: How) -> None:
    trial = Trial(how)

    def fails() -> Any:
        msg = "not now"
        raise ConnectionError(msg)

    flaky = made("flaky", fails)
    retries = ToolRetryMiddleware(
        max_retries=9, initial_delay=1.0, backoff_factor=1.0, jitter=False
    )
    turns = [asks(("flaky", "1", 1)), AIMessage("Without it.", id="done")]
    tools = [with_deadline(flaky, 5)]
    bounded = agent(trial, turns, tools, middleware=[retries])
    driven = trial.drive(bounded, {"messages": [QUESTION]})
    assert driven.report.outcome == "completed"
    trial.took(driven, 5)
    assert ran.count("flaky began") == 3
    assert "its own limit of 5 s" in answers(driven)["1"].text


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_a_sync_limit_covers_all_attempts_that_middleware_makes(how: How) -> None:
    trial = Trial(how, seconds=3.0)

    def fails() -> Any:
        msg = "not now"
        raise ConnectionError(msg)

    retries = ToolRetryMiddleware(max_retries=9, initial_delay=5.0, jitter=False)
    turns = [asks(("flaky", "1", 0)), AIMessage("Without it.", id="done")]
    tools = [with_deadline(made("flaky", fails), 0.3)]
    bounded = agent(trial, turns, tools, middleware=[retries])
    driven = trial.drive(bounded, {"messages": [QUESTION]})
    assert driven.report.outcome == "completed"
    trial.took(driven, 0.3)
    assert "its own limit of 0.3 s" in answers(driven)["1"].text


@hows
@pytest.mark.parametrize("asked", ["error", "message"])
def test_middleware_does_not_retry_a_call_that_was_cut(how: How, asked: str) -> None:
    trial = Trial(how, seconds=1.0)
    retries = ToolRetryMiddleware(max_retries=9, initial_delay=0.0, jitter=False)
    turns = [asks(("good", "1", HANG)), AIMessage("Without it.", id="done")]
    limit = 0.3 if how in SYNC else 3.0
    raises: Any = "raise" if asked == "error" else "message"
    tools = [with_deadline(good, limit, on_exceeded=raises)]
    bounded = agent(trial, turns, tools, middleware=[retries])
    driven = trial.drive(bounded, {"messages": [QUESTION]})
    assert driven.error is None
    trial.took(driven, limit)
    assert ran.count("good began") == 1
    last = SORRY if asked == "error" else "Without it."
    assert driven.values["messages"][-1].content == last
    is_valid(driven.values["messages"])


# An error, where the owner asked for one.


@hows
@pytest.mark.parametrize("handle", [True, False])
def test_an_error_that_was_asked_for_passes_the_tool_nodes_handling(
    how: How, handle: bool
) -> None:
    trial = Trial(how, seconds=2.0)
    limit = 0.3 if how in SYNC else 3.0
    tools = [with_deadline(good, limit, on_exceeded="raise")]
    node = ToolNode(tools, handle_tool_errors=handle)
    asked = asks(("good", "1", HANG), ("good", "2", 0))
    driven = trial.drive(graph_of(trial, node, "raise"), {"messages": [asked]})
    assert type(driven.error) is DeadlineExceeded
    assert (driven.error.cause, driven.error.step) == ("step", "good")
    trial.took(driven, limit)
    driven = trial.drive(graph_of(trial, node, "fallback"), {"messages": [asked]})
    assert driven.error is None
    trial.took(driven, limit)
    assert driven.values["messages"][-1].content == SORRY
    found = answers(driven)
    assert set(found) == {"1", "2"}
    assert driven.report.cause == "step"


@hows
def test_an_error_that_was_asked_for_reaches_the_nodes_error_handler(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    limit = 0.3 if how in SYNC else 3.0
    tools = [with_deadline(good, limit, on_exceeded="raise")]
    seen: list[Any] = []

    def handler(state: MessagesState, error: NodeError) -> Any:
        seen.append(error)
        return {"messages": AIMessage("Handled.", id="handled")}

    builder = StateGraph(MessagesState)
    node = ToolNode(tools, handle_tool_errors=True)
    builder.add_node("tools", node, error_handler=handler).add_edge(START, "tools")
    graph = trial.compile(builder, "raise")
    driven = trial.drive(graph, {"messages": [asks(("good", "1", HANG))]})
    assert driven.error is None
    assert driven.values["messages"][-1].content == "Handled."
    (error,) = seen
    assert error.error.cause == "step"


@hows
def test_a_window_that_is_not_there_raises_where_that_was_asked_for(how: How) -> None:
    trial = Trial(how)
    tools = [with_deadline(good, needs=60, on_exceeded="raise")]
    node = ToolNode(tools, handle_tool_errors=True)
    graph = graph_of(trial, node, "raise")
    driven = trial.drive(graph, {"messages": [asks(("good", "1", 0))]})
    assert isinstance(driven.error, DeadlineExceeded)
    assert (driven.error.cause, driven.error.step) == ("window", "good")
    assert ran == []


@hows
def test_a_window_that_is_not_there_is_answered_not_started(how: How) -> None:
    trial = Trial(how)
    node = ToolNode([with_deadline(good, needs=60), made("other")])
    graph = graph_of(trial, node, "raise")
    asked = asks(("good", "1", 0), ("other", "2", 0))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    found = answers(driven)
    assert "not started" in found["1"].text
    assert "needs 60 s" in found["1"].text
    assert found["2"].content == "a result"
    assert driven.report.unknown == []


@hows
def test_a_resume_after_raise_makes_the_calls_of_the_cut_node_again(how: How) -> None:
    """Of the whole node: LangGraph knows results of tasks, not of calls in one."""
    trial = Trial(how)
    takes = [HANG, 0.0]

    def sync(seconds: float = 0.0) -> str:
        """Do something."""
        released.wait(min(takes.pop(0), 3.0))
        return "a result"

    async def asynchronous(seconds: float = 0.0) -> str:
        """Do something."""
        await asyncio.sleep(takes.pop(0))
        return "a result"

    slow = StructuredTool.from_function(sync, asynchronous, name="slow")
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode([slow, good]))

    def each(state: Any) -> Any:
        return [Send("tools", [call]) for call in state["messages"][-1].tool_calls]

    builder.add_conditional_edges(START, each, ["tools"])
    graph = trial.compile(builder, "raise", checkpointer=InMemorySaver())
    asked = asks(("good", "1", 0), ("slow", "2", 0))
    driven = trial.drive(graph, {"messages": [asked]}, thread())
    assert isinstance(driven.error, DeadlineExceeded)
    again = _resumed(how, graph)
    assert again.error is None
    assert set(answers(again)) == {"1", "2"}
    assert all(m.content == "a result" for m in answers(again).values())
    assert ran.count("good began") == 1


def _resumed(how: How, graph: Any) -> Driven:
    """Drive the thread's run on: `invoke(None, config)`."""
    if how in SYNC:
        return drive(graph, None, how, thread())
    return run_virtual(adrive(graph, None, how, thread()))


# Subgraphs.


def nested(node: Any, levels: int) -> Any:
    """Return the node in `levels` graphs that know nothing of deadlines."""
    for _ in range(levels):
        inner = PlainStateGraph(MessagesState)
        inner.add_node("tools", node).add_edge(START, "tools")
        node = inner.compile()
    return node


@hows
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("mode", ["fallback", "return"])
def test_calls_in_a_subgraph_are_answered(how: How, levels: int, mode: str) -> None:
    trial = Trial(how, seconds=0.6)
    node = nested(ToolNode([good]), levels)
    asked = asks(("good", "1", 0), ("good", "2", HANG))
    driven = trial.drive(graph_of(trial, node, mode), {"messages": [asked]})
    assert driven.error is None
    trial.at_cut(driven, mode)
    found = answers(driven)
    assert found["1"].content == "a result"
    assert "outcome is unknown" in found["2"].text
    assert len(driven.report.unknown) == 1


@hows
def test_an_agent_as_a_tool_hands_up_what_it_has_or_is_answered(how: How) -> None:
    """A sub-agent, called in a tool with the tools of its own."""
    trial = Trial(how, seconds=0.6)
    model = Scripted(turns=[asks(("good", "7", 0), ("good", "8", HANG))])
    sub = create_agent(model, [good])

    def ask(seconds: float = 0.0) -> str:
        """Ask another agent."""
        return str(sub.invoke({"messages": [QUESTION]})["messages"][-1].content)

    async def aask(seconds: float = 0.0) -> str:
        """Ask another agent."""
        out = await sub.ainvoke({"messages": [QUESTION]})
        return str(out["messages"][-1].content)

    asking = StructuredTool.from_function(ask, aask, name="ask")
    graph = graph_of(trial, ToolNode([asking, good]), "fallback")
    asked = asks(("ask", "1", 0), ("good", "2", 0))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    trial.at_work(driven)
    found = answers(driven)
    assert set(found) == {"1", "2"}
    assert found["2"].content == "a result"
    assert driven.values["messages"][-1].content == SORRY


# Stop buttons and callers that leave.


@hows
def test_a_stop_button_answers_the_calls(how: How) -> None:
    trial = Trial(how, seconds=4.0)
    control = RunControl()

    def stop() -> str:
        if how in SYNC:
            threading.Timer(0.2, control.cancel).start()
        else:
            control.cancel()
        return "a result"

    node = ToolNode([made("stop", stop), good])
    graph = graph_of(trial, node, "fallback")
    asked = asks(("stop", "1", 0), ("good", "2", HANG))
    driven = trial.drive(graph, {"messages": [asked]}, control=control)
    assert driven.error is None
    assert driven.report.outcome == "cancelled"
    found = answers(driven)
    assert set(found) == {"1", "2"}
    assert "cancelled" in found["2"].text
    assert driven.values["messages"][-1].content == SORRY


@async_hows
def test_a_caller_that_cancels_again_and_again_leaves_no_call_behind(how: How) -> None:
    trial = Trial(how)
    graph = graph_of(trial, ToolNode([good]), "fallback")
    asked = asks(("good", "1", HANG), ("good", "2", HANG))

    async def main() -> None:
        with anyio.move_on_after(1):
            await adrive(graph, {"messages": [asked]}, how)
        await asyncio.sleep(1)
        assert ran.count("good cancelled") == 2
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


# Tools that behave badly.


@async_hows
@pytest.mark.parametrize("for_ever", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_a_tool_that_swallows_its_cancellation_is_not_waited_for(
    how: How, for_ever: bool, own: bool
) -> None:
    trial = Trial(how)

    async def deaf(seconds: float = 0.0) -> str:
        """Do not listen."""
        while True:
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                ran.append("deaf")
                if not for_ever:
                    return "late"
            else:
                return "late"

    stubborn = StructuredTool.from_function(coroutine=deaf, name="deaf")
    tools = [with_deadline(stubborn, 3 if own else None), good]
    graph = graph_of(trial, ToolNode(tools), "fallback")
    asked = asks(("deaf", "1", 0), ("good", "2", 0))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    found = answers(driven)
    assert found["2"].content == "a result"
    if own or for_ever:
        assert found["1"].status == "error"
        assert "outcome is unknown" in found["1"].text
    else:  # as with nodes: what is returned in the grace of the run's cut is kept
        assert found["1"].content == "late"
    assert driven.elapsed < (3.3 if own else 8.3)
    assert ran.count("deaf") == 1
    assert len(driven.report.stragglers) == (1 if for_ever else 0)


@async_hows
def test_clean_up_that_takes_longer_than_the_grace_is_given_up(how: How) -> None:
    trial = Trial(how)

    async def tidy(seconds: float = 0.0) -> str:
        """Clean up slowly."""
        try:
            await asyncio.sleep(HANG)
        finally:
            await asyncio.sleep(1)
            ran.append("tidied")
        return "never"

    slow = StructuredTool.from_function(coroutine=tidy, name="tidy")
    graph = graph_of(trial, ToolNode([slow, good]), "fallback")
    asked = asks(("tidy", "1", 0), ("good", "2", 0))
    driven = trial.drive(graph, {"messages": [asked]})
    assert driven.error is None
    assert driven.elapsed < 8.3
    assert "outcome is unknown" in answers(driven)["1"].text
    assert answers(driven)["2"].content == "a result"
    assert "tidied" in ran
    assert "tidy" in [s.name for s in driven.report.stragglers]


@hows
def test_a_call_that_comes_back_within_the_grace_is_still_unknown_to_the_model(
    how: How,
) -> None:
    """Or known: but never both, and never open."""
    trial = Trial(how)

    async def late(seconds: float = 0.0) -> str:
        """Come back late."""
        try:
            await asyncio.sleep(HANG)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
        return "after all"

    def slate(seconds: float = 0.0) -> str:
        """Come back late."""
        released.wait(0.3)
        return "after all"

    slow = StructuredTool.from_function(slate, late, name="late")
    graph = graph_of(trial, ToolNode([slow]), "return")
    driven = trial.drive(graph, {"messages": [asks(("late", "1", 0))]})
    assert driven.error is None
    assert set(answers(driven)) == {"1"}


# Streams.


@hows
@pytest.mark.parametrize("mode", ["custom", "messages", "updates", "values"])
def test_no_chunk_of_a_cut_call_comes_late(how: How, mode: str) -> None:
    trial = Trial(how)

    def sync(seconds: float = 0.0) -> str:
        """Write."""
        write, gate = get_stream_writer(), released
        write("early")
        gate.wait(3)
        write("late")
        return "late"

    async def asynchronous(seconds: float = 0.0) -> str:
        """Write."""
        write = get_stream_writer()
        write("early")
        try:
            await asyncio.sleep(HANG)
        finally:
            write("late")
        return "late"

    writes = StructuredTool.from_function(sync, asynchronous, name="writes")
    limit = 0.15 if how in SYNC else 3.0
    for tools in ([writes], [with_deadline(writes, limit)]):
        graph = graph_of(trial, ToolNode(tools), "fallback")
        inputs = {"messages": [asks(("writes", "1", 0))]}
        chunks: list[Any] = []
        if how in SYNC:
            for chunk in graph.stream(inputs, stream_mode=mode):
                chunks.append(chunk)
            released.set()
        else:

            async def main(graph: Any, inputs: Any, chunks: list[Any]) -> None:
                async for chunk in graph.astream(inputs, stream_mode=mode):
                    chunks.append(chunk)
                await asyncio.sleep(5)

            run_virtual(main(graph, inputs, chunks))
        if mode == "custom":
            assert chunks == ["early"]
        else:
            assert "late" not in str(chunks)
            assert mode == "messages" or "outcome is unknown" in str(chunks)
        released.clear()


def test_a_hand_built_agent_ends_in_one_turn_of_its_loop() -> None:
    """Model, tools, model, tools: the fallback comes from the middle of the loop."""
    trial = Trial("ainvoke")
    model = Scripted(turns=[asks(("good", str(i), 3), id=f"a{i}") for i in range(9)])
    builder = StateGraph(MessagesState)

    async def think(state: MessagesState) -> Any:
        return {"messages": await model.ainvoke(state["messages"])}

    builder.add_node("think", think).add_node("tools", ToolNode([good]))
    builder.add_edge(START, "think").add_edge("tools", "think")
    builder.add_conditional_edges("think", tools_condition)
    builder.add_node("degrade", degrade)
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, {"messages": [QUESTION]})
    assert driven.error is None
    trial.at_work(driven)
    statuses = [m.status for m in answers(driven).values()]
    assert statuses == ["success", "success", "error"]
    is_valid(driven.values["messages"])
