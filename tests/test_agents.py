"""Agents under a deadline: `with_deadline(create_agent(...), fallback=...)`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import operator
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypedDict, cast

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, Trial, adrive
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command
from pydantic import BaseModel, Field, SecretStr

from langgraph_deadline import (
    DeadlineExceeded,
    RunControl,
    StateGraph,
    with_deadline,
)
from langgraph_deadline.agents import agent_fallback
from langgraph_deadline.testing import VirtualClock, run_virtual

SORRY = "There was no time to find out."
QUESTION = HumanMessage("What is known?")
HANG = 3600.0  # seconds

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    released.clear()
    yield
    released.set()


def trial_of(how: How, **options: Any) -> Trial:
    """Return a trial with time enough for an agent to begin on a busy machine."""
    return Trial(how, seconds=0.6, **options)


# A chat model with a script, and tools.


class Scripted(BaseChatModel):
    """A chat model that says, to a question, what its script has for it.

    A turn is a message or an error, alone or after the seconds that it takes.
    """

    script: dict[str, list[Any]]
    prompts: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)
    resists: bool = False

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[t.name for t in tools], **kwargs)

    def _turn(
        self, messages: list[BaseMessage], options: dict[str, Any]
    ) -> tuple[float, Any]:
        self.prompts.append(messages)
        self.options.append(options)
        asked = max(i for i, m in enumerate(messages) if isinstance(m, HumanMessage))
        question = str(messages[asked].content)
        known = [turns for about, turns in self.script.items() if about in question]
        said = sum(isinstance(m, AIMessage) for m in messages[asked:])
        turns = known[0]
        turn = turns[min(said, len(turns) - 1)]
        return turn if isinstance(turn, tuple) else (0.0, turn)

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        seconds, turn = self._turn(messages, kwargs)
        if seconds == HANG:
            released.wait(3)
        return _result(turn)

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        seconds, turn = self._turn(messages, kwargs)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if not self.resists:
                raise
            await asyncio.sleep(HANG)
        return _result(turn)


def _result(turn: Any) -> ChatResult:
    if isinstance(turn, Exception):
        raise turn
    message = turn if isinstance(turn, AIMessage) else AIMessage(turn)
    return ChatResult(generations=[ChatGeneration(message=message.model_copy())])


def scripted(*turns: Any, **more: Any) -> Scripted:
    """Return a model with these turns, whatever the question."""
    return Scripted(script={"": list(turns)}, **more)


def calls(*called: tuple[str, str]) -> AIMessage:
    """Return a message that calls tools: pairs of a tool's name and the call's id."""
    return AIMessage(
        "", tool_calls=[ToolCall(name=n, args={"q": i}, id=i) for n, i in called]
    )


def tools_for(how: How, begun: list[str] | None = None) -> list[BaseTool]:
    """Return a tool that finds something, and one that hangs."""
    log = begun if begun is not None else []

    def find(q: str) -> str:
        """Find."""
        log.append(q)
        return f"found {q}"

    def hang(q: str) -> str:
        """Hang."""
        log.append(q)
        released.wait(3)
        return "late"

    async def afind(q: str) -> str:
        """Find."""
        return find(q)

    async def ahang(q: str) -> str:
        """Hang."""
        log.append(q)
        await asyncio.sleep(HANG)
        return "late"

    if how in SYNC:
        return [tool(find), tool(hang)]
    return [tool("find")(afind), tool("hang")(ahang)]


def ask(question: str = "What is known?") -> dict[str, Any]:
    return {"messages": [HumanMessage(question)]}


# What holds of every history.


def check_history(messages: Sequence[BaseMessage]) -> None:
    """Check what the strictest providers ask of a history."""
    waiting: list[str | None] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in waiting, f"not asked for: {message}"
            waiting.remove(message.tool_call_id)
            assert message.content, f"an empty answer: {message}"
            continue
        assert not waiting, f"no answer to {waiting} before {message}"
        if isinstance(message, AIMessage):
            made = [*message.tool_calls, *message.invalid_tool_calls]
            waiting = [call["id"] for call in made]
            assert message.content or made, f"says nothing: {message}"
        else:
            assert message.content, f"says nothing: {message}"
    assert not waiting, f"no answer to {waiting}"


def check_closed(driven: Driven, answer: str = SORRY) -> list[AnyMessage]:
    """Check the end of a run that was cut; return its messages."""
    if driven.error is not None:
        raise driven.error
    messages: list[AnyMessage] = driven.values["messages"]
    check_history(messages)
    assert isinstance(messages[-1], AIMessage)
    assert messages[-1].content == answer
    assert messages[-1].tool_calls == []
    assert driven.report.outcome == "deadline"
    kinds = [step.kind for step in driven.report.steps]
    assert kinds.count("fallback") == 1
    if driven.updates:
        assert sum("fallback" in update for update in driven.updates) == 1
    return messages


def answers(messages: Sequence[BaseMessage]) -> dict[str, str]:
    """Return what the tools answered, by the calls' ids."""
    return {
        m.tool_call_id: str(m.content) for m in messages if isinstance(m, ToolMessage)
    }


def no_result(message: BaseMessage) -> bool:
    """Whether a message says that a call has no result."""
    return (
        isinstance(message, ToolMessage)
        and message.status == "error"
        and ("unknown" in str(message.content) or "not" in str(message.content))
    )


# Agents that are cut.


@pytest.mark.parametrize("how", ALL)
def test_an_agent_whose_model_hangs_answers_with_the_text(how: How) -> None:
    """The whole agent is bounded by one call."""
    trial = trial_of(how)
    model = scripted(calls(("find", "1")), (HANG, "never"))
    agent = create_agent(model, tools_for(how))
    bounded = with_deadline(agent, trial.reserved, fallback=agent_fallback(SORRY))
    driven = trial.drive(bounded, ask())
    messages = check_closed(driven)
    trial.at_work(driven)
    assert answers(messages) == {"1": "found 1"}
    assert len(messages) == 4


@pytest.mark.parametrize("how", ALL)
def test_a_tool_that_hangs_is_answered_for(how: How) -> None:
    """The open call gets an error message with its id and name."""
    trial = trial_of(how)
    begun: list[str] = []
    agent = create_agent(scripted(calls(("hang", "1"))), tools_for(how, begun))
    bounded = with_deadline(agent, trial.reserved, fallback=agent_fallback(SORRY))
    driven = trial.drive(bounded, ask())
    messages = check_closed(driven)
    trial.at_work(driven)
    (answer,) = (m for m in messages if isinstance(m, ToolMessage))
    assert (answer.tool_call_id, answer.name) == ("1", "hang")
    assert no_result(answer)
    assert begun == ["1"]


@pytest.mark.parametrize("how", ALL)
def test_finished_tools_keep_their_results_beside_one_that_hangs(how: How) -> None:
    """One of three parallel calls has no result, the others do."""
    trial = trial_of(how)
    called = (("find", "1"), ("hang", "2"), ("find", "3"))
    agent = create_agent(scripted(calls(*called)), tools_for(how))
    bounded = with_deadline(agent, trial.reserved, fallback=agent_fallback(SORRY))
    driven = trial.drive(bounded, ask())
    messages = check_closed(driven)
    found = answers(messages)
    assert (found["1"], found["3"]) == ("found 1", "found 3")
    assert [m for m in messages if no_result(m)] == [
        m for m in messages if getattr(m, "tool_call_id", None) == "2"
    ]


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_sync_tools_of_an_async_agent_are_given_up(how: How) -> None:
    """The run is on time, and so is the end of its event loop."""
    trial = trial_of(how, realtime=True)
    called = (("find", "1"), ("hang", "2"))
    agent = create_agent(scripted(calls(*called)), tools_for("invoke"))
    bounded = with_deadline(agent, trial.reserved, fallback=agent_fallback(SORRY))
    driven = trial.drive(bounded, ask())
    messages = check_closed(driven)
    assert answers(messages)["1"] == "found 1"
    trial.at_work(driven)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("handle_tool_errors", [True, False])
def test_a_tool_node_of_ones_own_is_closed_too(
    how: How, handle_tool_errors: bool
) -> None:
    """Also one that would make a message of any error."""
    trial = trial_of(how)
    called = (("find", "1"), ("hang", "2"))
    model = scripted(calls(*called))

    def ask_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", trial.as_how(ask_model))
    node = ToolNode(tools_for(how), handle_tool_errors=handle_tool_errors)
    builder.add_node("tools", node)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    graph = builder.compile(deadline=trial.reserved, fallback=agent_fallback(SORRY))
    messages = check_closed(trial.drive(graph, ask()))
    assert answers(messages)["1"] == "found 1"
    assert "Please fix" not in answers(messages)["2"]


@pytest.mark.parametrize("how", ALL)
def test_calls_that_a_node_of_ones_own_makes_are_answered(how: How) -> None:
    """Nobody but the fallback can know of them."""
    trial = trial_of(how)
    model = scripted(AIMessage("Let me see.", tool_calls=_call("hang", "1")))

    def ask_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", trial.as_how(ask_model))
    builder.add_node("by_hand", trial.hang("by_hand"))
    builder.add_edge(START, "model").add_edge("model", "by_hand")
    graph = builder.compile(deadline=trial.reserved, fallback=agent_fallback(SORRY))
    messages = check_closed(trial.drive(graph, ask()))
    answer = messages[-2]
    assert isinstance(answer, ToolMessage)
    assert (answer.tool_call_id, answer.name) == ("1", "hang")
    assert answer.status == "error"
    assert "Outcome unknown, no result: time ran out" in str(answer.content)
    assert "it may or may not have taken effect" in str(answer.content)


def _call(name: str, call_id: str) -> list[ToolCall]:
    return calls((name, call_id)).tool_calls


@pytest.mark.parametrize("how", ASYNC)
def test_an_agent_that_goes_round_and_round_is_cut_in_the_middle(how: How) -> None:
    """Whatever it is doing just then: a model and a tool that take a second each."""
    for offset in (0.0, 0.5, 1.0, 1.5):
        trial = trial_of(how)
        rounds = [(1.0, calls(("wait", f"{i}"))) for i in range(20)]
        rounds[0] = (1.0 + offset, rounds[0][1])

        @tool
        async def wait(q: str) -> str:
            """Wait."""
            await asyncio.sleep(1)
            return f"waited {q}"

        agent = create_agent(scripted(*rounds), [wait])
        bounded = with_deadline(agent, trial.reserved, fallback=agent_fallback(SORRY))
        driven = trial.drive(bounded, ask())
        messages = check_closed(driven)
        trial.at_work(driven)
        finished = [m for m in messages if str(m.content).startswith("waited")]
        assert len(finished) in {3, 4}


@pytest.mark.parametrize("how", ALL)
def test_what_hangs_after_a_person_approved_it_is_closed(how: How) -> None:
    """The time between the interrupt and its resume is not charged."""
    trial = trial_of(how)
    saver = InMemorySaver()
    called = (("find", "1"), ("hang", "2"))
    agent = create_agent(
        scripted(calls(*called)),
        tools_for(how),
        middleware=[HumanInTheLoopMiddleware(interrupt_on={"hang": True})],
        checkpointer=saver,
    )
    bounded = with_deadline(agent, trial.reserved, fallback=agent_fallback(SORRY))
    config = {"configurable": {"thread_id": "1"}}
    asked = trial.drive(bounded, ask(), config)
    assert asked.error is None
    assert asked.report.interrupted
    approve = Command(resume={"decisions": [{"type": "approve"}]})
    driven = trial.drive(bounded, approve, config)
    messages = check_closed(driven)
    assert answers(messages)["1"] == "found 1"


@pytest.mark.parametrize("how", ALL)
def test_a_stop_button_gets_the_closing_answer(how: How) -> None:
    """Cause `cancelled`, same fallback."""
    trial = trial_of(how)
    closing = scripted("What I found so far.")
    control = RunControl()
    agent = create_agent(scripted(calls(("hang", "1"))), tools_for(how))
    bounded = with_deadline(
        agent, trial.reserved, fallback=agent_fallback(SORRY, model=closing)
    )
    timer = threading.Timer(0.1, control.cancel)
    if how in SYNC:
        timer.start()
        driven = trial.drive(bounded, ask(), control=control)
        timer.join()
    else:

        async def main() -> Driven:
            asyncio.get_running_loop().call_later(0.1, control.cancel)
            return await adrive(bounded, ask(), how, control=control)

        driven = run_virtual(main())
    assert driven.report.outcome == "cancelled"
    check_history(driven.values["messages"])
    assert driven.values["messages"][-1].content == "What I found so far."


def test_without_a_deadline_the_fallback_is_never_asked() -> None:
    """It is a node that nothing leads to."""
    agent = create_agent(scripted("All of it."), tools_for("invoke"))
    plain = with_deadline(agent, fallback=agent_fallback(SORRY))
    assert plain.invoke(ask())["messages"][-1].content == "All of it."
    drawn = plain.get_graph()
    assert "fallback" in drawn.nodes


# The closing model.


def closing_agent(how: How, model: Any, *turns: Any) -> tuple[Trial, Any]:
    """Return an agent that is cut in a tool, and that `model` closes."""
    trial = trial_of(how)
    script = turns or (calls(("find", "1")), calls(("find", "2"), ("hang", "3")))
    agent = create_agent(scripted(*script), tools_for(how))
    fallback = agent_fallback(SORRY, model=model)
    return trial, with_deadline(agent, trial.reserved, fallback=fallback)


@pytest.mark.parametrize("how", ALL)
def test_the_closing_model_answers_from_what_was_found(how: How) -> None:
    """Its prompt is text, in order, with all results and nothing that calls tools."""
    closing = scripted("In short: 1 and 2.")
    trial, bounded = closing_agent(how, closing)
    driven = trial.drive(bounded, ask())
    check_closed(driven, "In short: 1 and 2.")
    trial.at_work(driven)
    (prompt,) = closing.prompts
    assert all(isinstance(m, (HumanMessage, AIMessage, SystemMessage)) for m in prompt)
    assert not any(getattr(m, "tool_calls", ()) for m in prompt)
    text = "\n".join(str(m.content) for m in prompt)
    places = [text.index(part) for part in _in_order()]
    assert places == sorted(places)


def _in_order() -> tuple[str, ...]:
    return ("What is known?", "found 1", "found 2", "unknown", "Time is up", "missing")


@pytest.mark.parametrize("how", ALL)
def test_the_closing_model_has_no_tools(how: How) -> None:
    """Whatever is bound to it, and to those it falls back to; the rest is kept."""
    options = {"tool_choice": "any", "parallel_tool_calls": True, "stop": ["."]}
    closing = scripted("In short.")
    failing = scripted(ConnectionError("down"))
    tools = tools_for(how)
    model = failing.bind_tools(tools, **options).with_fallbacks(
        [closing.bind_tools(tools, **options).with_retry()]
    )
    trial, bounded = closing_agent(how, model)
    check_closed(trial.drive(bounded, ask()), "In short.")
    for seen in (failing, closing):
        assert [o.keys() & {*options, "tools"} for o in seen.options] == [set()]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (ConnectionError("no route"), "ConnectionError('no route')"),
        ("", "without any text"),
        (calls(("find", "9")), "without any text"),
    ],
    ids=["fails", "says nothing", "only calls"],
)
def test_the_text_stands_in_for_a_closing_model_that_has_no_answer(
    how: How, turn: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And a warning says why."""
    trial, bounded = closing_agent(how, scripted(turn))
    with caplog.at_level(logging.WARNING, "langgraph_deadline"):
        driven = trial.drive(bounded, ask())
    check_closed(driven)
    trial.at_work(driven)
    (warning,) = _warnings(caplog)
    assert reason in warning


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = (r.getMessage() for r in caplog.records if r.name == "langgraph_deadline")
    return [message for message in found if "closing model" in message]


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("resists", [False, True])
def test_a_late_closing_model_leaves_time_for_the_text(
    how: How, resists: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It gets nine tenths of the reserve, and little more if it resists its cut."""
    trial, bounded = closing_agent(how, scripted((HANG, "never"), resists=resists))
    with caplog.at_level(logging.WARNING, "langgraph_deadline"):
        driven = trial.drive(bounded, ask(), linger=2 * HANG)
    check_closed(driven)
    if resists:
        assert 9.8 <= driven.elapsed < 10
    else:
        assert driven.elapsed == pytest.approx(9.8)
    (warning,) = _warnings(caplog)
    assert "was late" in warning
    assert "1.8" in warning


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_a_closing_model_that_blocks_is_given_up(how: How) -> None:
    """In its thread; the text gets out before the deadline."""
    trial, bounded = closing_agent(how, scripted((HANG, "never")))
    driven = trial.drive(bounded, ask())
    check_closed(driven)
    assert trial.work + 0.8 < driven.elapsed < trial.end + 0.5
    assert "Scripted" in {s.name for s in driven.report.stragglers} or any(
        "closing" in s.name for s in driven.report.stragglers
    )


@pytest.mark.parametrize("how", ALL)
def test_what_the_closing_model_would_call_is_left_out(how: How) -> None:
    """Nobody would answer it."""
    message = AIMessage(
        "What I know.",
        tool_calls=_call("find", "9"),
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
    )
    trial, bounded = closing_agent(how, scripted(message))
    messages = check_closed(trial.drive(bounded, ask()), "What I know.")
    last = messages[-1]
    assert isinstance(last, AIMessage)
    assert last.usage_metadata == message.usage_metadata


@pytest.mark.parametrize("how", ALL)
def test_the_closing_model_is_part_of_the_report(how: How) -> None:
    """Between the cut and the fallback's end."""
    trial, bounded = closing_agent(how, scripted("In short."))
    driven = trial.drive(bounded, ask())
    steps = {step.name: step for step in driven.report.steps}
    assert steps["closing model"].kind == "model"
    assert steps["closing model"].start >= trial.work - 0.05
    assert steps["fallback"].cause is None


@pytest.mark.parametrize("how", ASYNC)
def test_a_closing_model_that_blocks_the_loop_takes_the_run_with_it(how: How) -> None:
    """Nothing gets out after the deadline, the text neither."""
    clock = VirtualClock()

    def block(_: Any) -> str:
        clock.advance(5)
        return "late"

    async def ablock(_: Any) -> str:
        return block(_)

    _, bounded = closing_agent(how, RunnableLambda(block, ablock))
    driven = run_virtual(adrive(bounded, ask(), how), clock=clock)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.report.outcome == "deadline"


def test_a_model_that_is_no_chat_model_may_close_too() -> None:
    """What it returns is text."""
    fallback = agent_fallback(SORRY, model=RunnableLambda(lambda _: "Just text."))
    update = fallback.invoke({"messages": [QUESTION]})
    assert update["messages"][-1].content == "Just text."
    chunk = AIMessageChunk("In a chunk.")
    fallback = agent_fallback(SORRY, model=RunnableLambda(lambda _: chunk))
    assert type(fallback.invoke({"messages": [QUESTION]})["messages"][-1]) is AIMessage


def test_what_is_no_answer_is_not_taken_for_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The warning names what came."""
    fallback = agent_fallback(SORRY, model=RunnableLambda(lambda _: {"a": 1}))
    with caplog.at_level(logging.WARNING, "langgraph_deadline"):
        update = fallback.invoke({"messages": [QUESTION]})
    assert update["messages"][-1].content == SORRY
    assert "no AIMessage but a dict" in _warnings(caplog)[0]


def test_a_closing_model_without_a_deadline_has_all_the_time() -> None:
    """As when the run was cancelled by hand, and had none."""
    closing = scripted((60.0, "In the end."))

    async def main() -> Any:
        return await agent_fallback(SORRY, model=closing).ainvoke([QUESTION])

    assert run_virtual(main())[-1].content == "In the end."


def test_the_closing_prompt_drops_nothing_that_was_found() -> None:
    """Images, results of a provider's own tools, errors; thoughts are no findings."""
    image = {"type": "image", "source_type": "url", "url": "http://127.0.0.1/a.png"}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    searched = {"type": "web_search_tool_result", "content": [{"url": "a page"}]}
    said: list[Any] = [thought, {"type": "text", "text": "I see."}, searched, "Well."]
    history = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "What is this?"}, image]),
        AIMessage(said, tool_calls=_call("look", "1")),
        ToolMessage([{"type": "text", "text": "a cat"}, image], tool_call_id="1"),
        AIMessage("", tool_calls=_call("look", "2")),
        ToolMessage("broken", tool_call_id="2", status="error"),
    ]
    closing = scripted("A cat.")
    agent_fallback(SORRY, model=closing).invoke({"messages": history})
    (prompt,) = closing.prompts
    assert prompt[0] == history[0]
    text = json.dumps([m.content for m in prompt])
    assert text.count("a.png") == 2
    for part in ("I see.", "Well.", "a page", "a cat", "broken", "look("):
        assert part in text
    assert "Hm." not in text
    assert [m.type for m in prompt] == ["system", "human", "ai", "human"]


# The history.


def test_open_calls_in_the_middle_of_a_history_are_answered_there() -> None:
    """Left by a run that nobody closed; the history is rewritten in place."""
    history = [
        QUESTION,
        calls(("find", "1"), ("hang", "2")),
        ToolMessage("found 1", tool_call_id="1"),
        HumanMessage("Well?"),
        AIMessage("", tool_calls=_call("hang", "3")),
    ]
    for schema in (MessagesState, _Typed, _Model, _Data, _Delta, _Plain):
        values = _cut_with(schema, history)
        messages = values["messages"]
        check_history(messages)
        assert [_short(m) for m in messages] == [
            "human",
            "ai",
            "tool 1",
            "tool 2",
            "human",
            "ai",
            "tool 3",
            "ai",
        ], schema
        assert messages[-1].content == SORRY
        assert messages[2].content == "found 1"


def test_open_calls_at_the_end_are_appended_to() -> None:
    """Nothing else is written, so any reducer will do."""
    history = [QUESTION, calls(("find", "1"))]
    for schema in (MessagesState, _Typed, _Model, _Data, _Delta, _Plain, _Added):
        messages = _cut_with(schema, history)["messages"]
        check_history(messages)
        assert [_short(m) for m in messages] == ["human", "ai", "tool 1", "ai"]


def test_a_reducer_that_only_appends_gets_answers_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in their place: there is no way to put them there."""
    history = [QUESTION, calls(("find", "1")), HumanMessage("Well?")]
    messages = _cut_with(_Added, history)["messages"]
    assert [_short(m) for m in messages[:3]] == ["human", "ai", "human"]
    assert all(isinstance(m, (ToolMessage, AIMessage)) for m in messages[3:])
    assert messages[-1].content == SORRY
    assert "add_messages" in caplog.text


def test_a_state_that_is_a_list_of_messages_is_closed() -> None:
    """The update is a list as well."""
    builder = PlainStateGraph(cast("Any", Annotated[list[Any], add_messages]))
    builder.add_node("hang", _hang_forever)
    builder.add_edge(START, "hang")
    bounded = with_deadline(builder.compile(), 10, fallback=agent_fallback(SORRY))
    open_call = calls(("find", "1"))
    for history in ([QUESTION, open_call], [QUESTION, open_call, HumanMessage("?")]):
        messages = run_virtual(bounded.ainvoke(cast("Any", history)))
        check_history(cast("Any", messages))
        assert messages[-1].content == SORRY


def test_answers_that_came_too_late_are_moved_to_their_calls() -> None:
    """They are findings."""
    history = [
        calls(("find", "1"), ("find", "2")),
        ToolMessage("found 2", tool_call_id="2"),
        HumanMessage("Well?"),
        ToolMessage("found 1", tool_call_id="1"),
    ]
    messages = _cut_with(MessagesState, history)["messages"]
    check_history(messages)
    assert answers(messages) == {"1": "found 1", "2": "found 2"}


def test_an_id_that_is_used_again_is_another_call() -> None:
    """Scripts and small models count from one in every turn."""
    history = [
        QUESTION,
        calls(("find", "1")),
        HumanMessage("Again?"),
        calls(("find", "1")),
        ToolMessage("found again", tool_call_id="1"),
    ]
    messages = _cut_with(MessagesState, history)["messages"]
    check_history(messages)
    tools = [m for m in messages if isinstance(m, ToolMessage)]
    assert no_result(tools[0])
    assert tools[1].content == "found again"


def test_a_malformed_call_is_answered_as_not_started() -> None:
    """Providers are sent it as a call like any other."""
    broken = InvalidToolCall(name="find", args='{"q": ', id="1", error="no JSON")
    nameless = InvalidToolCall(name=None, args="{", id="2", error=None)
    history = [QUESTION, AIMessage("", invalid_tool_calls=[broken, nameless])]
    messages = _cut_with(MessagesState, history)["messages"]
    check_history(messages)
    first, second = (m for m in messages if isinstance(m, ToolMessage))
    assert "Not started" in str(first.content)
    assert (first.name, second.name) == ("find", "unknown")


class _Typed(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


class _Model(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages]


@dataclasses.dataclass
class _Data:
    messages: Annotated[list[AnyMessage], add_messages]


def _fold(state: Any, writes: Sequence[Any]) -> Any:
    for write in writes:
        state = add_messages(state or [], write)
    return state


class _Delta(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(_fold)]


class _Plain(TypedDict):
    messages: list[AnyMessage]


class _Added(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


async def _hang_forever(state: Any) -> None:
    await asyncio.sleep(HANG)


def _cut_with(schema: Any, history: Sequence[BaseMessage]) -> Any:
    """Return the state of a graph that was cut with this history."""
    builder = StateGraph(schema)
    builder.add_node("hang", _hang_forever)
    builder.add_edge(START, "hang")
    graph = builder.compile(deadline=10, fallback=agent_fallback(SORRY))
    copies = [m.model_copy(deep=True) for m in history]
    return run_virtual(graph.ainvoke({"messages": copies}))


def _short(message: BaseMessage) -> str:
    if isinstance(message, ToolMessage):
        return f"tool {message.tool_call_id}"
    return message.type


_ids = st.sampled_from("abcde")
_messages = st.one_of(
    st.builds(HumanMessage, st.just("Well?")),
    st.builds(AIMessage, st.just("Hm.")),
    st.lists(_ids, min_size=1, max_size=3, unique=True).map(
        lambda ids: calls(*(("find", i) for i in ids))
    ),
    _ids.map(lambda i: ToolMessage(f"found {i}", tool_call_id=i)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_messages, max_size=8))
def test_any_history_is_closed_and_nothing_of_it_is_lost(
    history: list[AnyMessage],
) -> None:
    """Closed twice it is as if closed once."""
    for number, message in enumerate(history):
        message.id = str(number)
    update = agent_fallback(SORRY).invoke({"messages": history})["messages"]
    after = update[1:] if update[0].type == "remove" else [*history, *update]
    kept = [m.id for m in after if m.id is not None]
    assert sorted(kept) == sorted(str(m.id) for m in history)
    assert [i for i in kept if i] == [m.id for m in after if m.id]
    others = [m.id for m in after if m.id and not isinstance(m, ToolMessage)]
    assert others == [m.id for m in history if not isinstance(m, ToolMessage)]
    check_history([m for m in after if not _stray(m, after)])
    again = agent_fallback(SORRY).invoke({"messages": after})["messages"]
    assert [m.content for m in again] == [SORRY]


def _stray(message: BaseMessage, messages: Sequence[BaseMessage]) -> bool:
    """Whether a result was there from the start without a call before it, or twice."""
    if not isinstance(message, ToolMessage):
        return False
    at = next(i for i, m in enumerate(messages) if m is message)
    before = at - 1
    seen = set()
    while before >= 0 and isinstance(messages[before], ToolMessage):
        seen.add(cast("ToolMessage", messages[before]).tool_call_id)
        before -= 1
    caller = messages[before] if before >= 0 else None
    asked = {c["id"] for c in getattr(caller, "tool_calls", ())}
    return message.tool_call_id not in asked or message.tool_call_id in seen


# Providers.


def check_openai(messages: Sequence[BaseMessage]) -> None:
    """Check what OpenAI would be sent."""
    model = ChatOpenAI(model="gpt-4o", api_key=SecretStr("none"))
    payload = model._get_request_payload(list(messages))
    waiting: list[str] = []
    for message in payload["messages"]:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting
        waiting = [call["id"] for call in message.get("tool_calls") or ()]
        assert message["content"] or waiting
    assert not waiting


def check_anthropic(messages: Sequence[BaseMessage]) -> None:
    """Check what Anthropic would be sent."""
    model = ChatAnthropic(model_name="claude-sonnet-4-5", api_key=SecretStr("none"))
    payload = model._get_request_payload(list(messages))
    roles = [message["role"] for message in payload["messages"]]
    assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
    waiting: set[str] = set()
    for message in payload["messages"]:
        blocks = message["content"]
        assert blocks
        if isinstance(blocks, str):
            blocks = [{"type": "text", "text": blocks}]
        assert all(b["text"].strip() for b in blocks if b["type"] == "text")
        given_to = {b["tool_use_id"] for b in blocks if b["type"] == "tool_result"}
        assert given_to == waiting
        waiting = {b["id"] for b in blocks if b["type"] == "tool_use"}
    assert not waiting


PROVIDERS = pytest.mark.parametrize("check", [check_openai, check_anthropic])


@PROVIDERS
@pytest.mark.parametrize("how", ALL)
def test_providers_take_the_history_on_the_next_turn(how: How, check: Any) -> None:
    """The real clients' conversion, with a call that was cut among others."""
    trial, bounded = closing_agent(how, None)
    messages = check_closed(trial.drive(bounded, ask()))
    check([*messages, HumanMessage("And now?")])


@PROVIDERS
def test_providers_take_a_history_that_was_repaired(check: Any) -> None:
    """With open and malformed calls in its middle."""
    broken = InvalidToolCall(name="find", args='{"q": ', id="7", error="no JSON")
    history = [
        QUESTION,
        calls(("find", "1"), ("hang", "2")),
        HumanMessage("Well?"),
        AIMessage("Hm.", invalid_tool_calls=[broken], tool_calls=_call("find", "8")),
        HumanMessage("Yes?"),
    ]
    messages = _cut_with(MessagesState, history)["messages"]
    check_history(messages)
    check([*messages, HumanMessage("And now?")])


@PROVIDERS
def test_providers_take_the_closing_prompt_without_tools(check: Any) -> None:
    """Anthropic rejects tool calls where no tools are given."""
    closing = scripted("In short.")
    _, bounded = closing_agent("ainvoke", closing)
    run_virtual(bounded.ainvoke(ask()))
    check(closing.prompts[0])
    sent = json.dumps(
        ChatAnthropic(
            model_name="claude-sonnet-4-5", api_key=SecretStr("none")
        )._get_request_payload(closing.prompts[0])
    )
    assert "tool_use" not in sent


# The next turn.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("cut_in", ["model", "tools"])
def test_the_next_turn_is_that_of_a_fresh_thread(how: How, cut_in: str) -> None:
    """Same nodes, same calls, same answer; and what a model is shown is valid."""
    trial = trial_of(how)
    hanging = calls(("find", "1"), ("hang", "2"), ("find", "3"))
    cut_turn = hanging if cut_in == "tools" else (HANG, "never")
    model = Scripted(
        script={
            "known": [calls(("find", "0")), cut_turn],
            "now": [calls(("find", "4")), "All of it."],
        },
    )
    agent = create_agent(model, tools_for(how), checkpointer=InMemorySaver())
    bounded = with_deadline(agent, trial.reserved, fallback=agent_fallback(SORRY))

    def turn(thread: str, question: str) -> Driven:
        config = {"configurable": {"thread_id": thread}}
        return trial.drive(bounded, ask(question), config)

    check_closed(turn("cut", "What is known?"))
    second = turn("cut", "And now?")
    fresh = turn("fresh", "And now?")
    for driven in (second, fresh):
        assert driven.error is None
        assert driven.report.outcome == "completed"
        check_history(driven.values["messages"])
    assert _new(second) == _new(fresh)
    assert [list(u) for u in second.updates] == [list(u) for u in fresh.updates]
    for prompt in model.prompts:
        check_history(prompt)


def _new(driven: Driven) -> list[Any]:
    messages = driven.values["messages"]
    asked = max(i for i, m in enumerate(messages) if isinstance(m, HumanMessage))
    return [(m.type, m.content) for m in messages[asked:]]


# Streams.


class Talking(Scripted):
    """A model that streams its words."""

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        seconds, turn = self._turn(messages, kwargs)
        await asyncio.sleep(seconds)
        for word in str(turn).split():
            chunk = ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


async def _streamed(bounded: Any, mode: Any) -> list[Any]:
    return [part async for part in bounded.astream(ask(), stream_mode=mode)]


def test_the_closing_answer_is_streamed_token_by_token() -> None:
    """As what the agent's own model says is."""
    closing = Talking(script={"": ["What I know."]})
    _, bounded = closing_agent("astream", closing)
    parts = run_virtual(_streamed(bounded, "messages"))
    said = [m.content for m, about in parts if about["langgraph_node"] == "fallback"]
    words = [word for word in said if word in {"What ", "I ", "know. "}]
    assert words == ["What ", "I ", "know. "]


def test_the_text_is_in_the_stream_of_messages() -> None:
    """As a message of the fallback's node."""
    _, bounded = closing_agent("astream", None)
    parts = run_virtual(_streamed(bounded, "messages"))
    last, about = parts[-1]
    assert last.content == SORRY
    assert about["langgraph_node"] == "fallback"


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_the_streamed_state_ends_with_the_closed_history(how: How) -> None:
    """Of values and of updates."""
    trial, bounded = closing_agent(how, None)
    driven = trial.drive(bounded, ask())
    messages = check_closed(driven)
    last = driven.updates[-1]["fallback"]["messages"]
    assert last[-1].content == messages[-1].content == SORRY


# Elsewhere.


@pytest.mark.parametrize("state", [{"messages": [QUESTION]}, [QUESTION]])
def test_it_can_be_called_by_hand(state: Any) -> None:
    """Outside of any graph it returns the update."""
    update = agent_fallback(SORRY).invoke(state)
    messages = update["messages"] if isinstance(state, dict) else update
    assert [m.content for m in messages] == [SORRY]


def test_messages_may_be_written_as_dicts_and_pairs() -> None:
    """Whatever LangChain takes for messages."""
    state = {"messages": [("user", "Well?"), {"role": "assistant", "content": "Hm."}]}
    closing = scripted("In short.")
    update = agent_fallback(SORRY, model=closing).invoke(state)
    assert [m.content for m in update["messages"]] == ["In short."]


def test_an_empty_history_gets_the_text() -> None:
    """There is nothing a model could answer from."""
    closing = scripted("In short.")
    update = agent_fallback(SORRY, model=closing).invoke({"messages": []})
    assert [m.content for m in update["messages"]] == [SORRY]
    assert closing.prompts == []


def test_an_entrypoint_gets_what_is_added_to_its_input() -> None:
    """The fallback of a functional graph gets the entrypoint's input."""

    @entrypoint()
    async def agent(messages: list[AnyMessage]) -> Any:
        await asyncio.sleep(HANG)

    bounded = with_deadline(agent, 10, fallback=agent_fallback(SORRY))
    result: Any = run_virtual(bounded.ainvoke([QUESTION, calls(("find", "1"))]))
    assert [_short(m) for m in result] == ["tool 1", "ai"]


def test_its_node_is_called_fallback() -> None:
    """A graph that has such a node is told so."""
    builder = StateGraph(MessagesState)
    builder.add_node("fallback", _hang_forever)
    builder.add_edge(START, "fallback")
    with pytest.raises(ValueError, match="'fallback', which exists"):
        builder.compile(deadline=10, fallback=agent_fallback(SORRY))


# Bad input.


@pytest.mark.parametrize("text", ["", "  \n", None, 3, ["a"]])
def test_a_text_that_says_nothing_is_refused(text: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match="text must"):
        agent_fallback(text)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai:gpt-4o", "str; make a model"),
        (lambda _: "x", "function"),
        (Scripted, "class 'test_agents.Scripted'"),
        (3, "int"),
    ],
)
def test_a_model_of_the_wrong_kind_is_refused(model: Any, name: str) -> None:
    """The message names the type given."""
    with pytest.raises(TypeError, match=f"model must be a chat model.*{name}"):
        agent_fallback(SORRY, model=model)


def test_tools_and_graphs_are_no_models() -> None:
    """They are Runnables, and would fail only when it matters."""
    find, _ = tools_for("invoke")
    agent = create_agent(scripted("a"), [find])
    for wrong, name in ((find, "StructuredTool"), (agent, "CompiledStateGraph")):
        with pytest.raises(TypeError, match=name):
            agent_fallback(SORRY, model=wrong)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"log": [], "a": 1}, r"dict with the keys \['a', 'log'\]"),
        ({"messages": "hello"}, "dict whose 'messages' are of type str"),
        (3, "found int"),
    ],
)
def test_a_state_without_messages_is_named(state: Any, found: str) -> None:
    """What was found is said, where the fallback runs."""
    with pytest.raises(TypeError, match=f"list of 'messages'.*{found}"):
        agent_fallback(SORRY).invoke(state)


class _Log(TypedDict):
    log: list[str]


@pytest.mark.parametrize("how", ALL)
def test_a_graph_without_messages_says_so_when_it_is_cut(how: How) -> None:
    """The error is the fallback's own."""
    trial = trial_of(how)
    builder = StateGraph(_Log)
    builder.add_node("hang", trial.hang("hang"))
    builder.add_edge(START, "hang")
    graph = builder.compile(deadline=trial.reserved, fallback=agent_fallback(SORRY))
    driven = trial.drive(graph, {"log": []})
    assert isinstance(driven.error, TypeError)
    assert "keys ['log']" in str(driven.error)
