"""`DeadlineMiddleware`: a deadline for agents that are composed of middleware."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from inspect import signature
from typing import Any

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, Trial, adrive
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
    hook_config,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    ToolCall,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field

from langgraph_deadline import (
    Deadline,
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    _clock,
    fail_after,
    remaining,
    with_deadline,
)
from langgraph_deadline._cut import HANDING_OVER
from langgraph_deadline._middleware_time import TIME_KEY, RunTime
from langgraph_deadline.agents import agent_fallback
from langgraph_deadline.errors import ModelError
from langgraph_deadline.limits import Limits
from langgraph_deadline.middleware import DeadlineMiddleware
from langgraph_deadline.testing import VirtualClock, run_virtual

SORRY = "There was no time to find out."
HANG = 3600.0  # seconds
SHOWN = {"messages", TIME_KEY}
"""What a stream of whole states shows: private keys as well, as LangChain's own."""

RETRIES_ONLY_WHAT_MAY_BE = hasattr(ModelError, "is_retryable") and (
    "default_retry_on" in ModelRetryMiddleware.__init__.__globals__
)
"""Whether LangChain's retry middleware asks an error: before 1.4 it did not."""

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    released.clear()
    yield
    released.set()


# A chat model with a script, and tools.


class Model(BaseChatModel):
    """A chat model that takes its turns one by one, and stays at the last one.

    A turn is a message, a text or an error, alone or after the seconds that it takes.
    """

    turns: list[Any]
    prompts: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[getattr(t, "name", t) for t in tools], **kwargs)

    def _turn(self, messages: list[BaseMessage], options: Any) -> tuple[float, Any]:
        turn = self.turns[min(len(self.prompts), len(self.turns) - 1)]
        self.prompts.append(messages)
        self.options.append(options)
        return turn if isinstance(turn, tuple) else (0.0, turn)

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        seconds, turn = self._turn(messages, kwargs)
        if seconds == HANG:
            released.wait(3)
        else:
            time.sleep(seconds)
        return _result(turn)

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        seconds, turn = self._turn(messages, kwargs)
        await asyncio.sleep(seconds)
        return _result(turn)


def _result(turn: Any) -> ChatResult:
    if isinstance(turn, Exception):
        raise turn
    message = turn if isinstance(turn, AIMessage) else AIMessage(turn)
    return ChatResult(generations=[ChatGeneration(message=message.model_copy())])


def model_of(*turns: Any) -> Model:
    return Model(turns=list(turns))


def calls(*called: tuple[str, str]) -> AIMessage:
    """Return a message that calls tools: pairs of a tool's name and the call's id."""
    return AIMessage(
        "", tool_calls=[ToolCall(name=n, args={"q": i}, id=i) for n, i in called]
    )


def tools_for(how: How, **functions: Callable[[str], Any]) -> list[BaseTool]:
    """Return a tool that finds something, one that hangs, and those given."""

    def hang(q: str) -> str:
        released.wait(3)
        return "late"

    async def ahang(q: str) -> str:
        await asyncio.sleep(HANG)
        return "late"

    given: dict[str, Any] = {"find": lambda q: f"found {q}", **functions}
    given["hang"] = hang if how in SYNC else ahang
    return [_tool(how, name, function) for name, function in given.items()]


def _tool(how: How, name: str, function: Any) -> BaseTool:
    def call(q: str) -> Any:
        return function(q)

    async def acall(q: str) -> Any:
        found = function(q)
        return await found if asyncio.iscoroutine(found) else found

    described = call if how in SYNC else acall
    described.__doc__ = f"Use {name}."
    return tool(name)(described)


def ask(question: str = "What is known?") -> dict[str, Any]:
    return {"messages": [HumanMessage(question)]}


def on(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}}


class Bench(Trial):
    """An agent under test: as a `Trial`, with time enough to begin on a busy machine.

    Async ways have 10 s, of which 2 are the reserve where there is a fallback.
    """

    def __init__(self, how: How, **options: Any) -> None:
        super().__init__(how, **{"seconds": 0.6, **options})

    def middleware(self, fallback: Any = SORRY, **options: Any) -> DeadlineMiddleware:
        deadline = self.budget if fallback is None else self.reserved
        return DeadlineMiddleware(
            options.pop("deadline", deadline), fallback=fallback, **options
        )

    def agent(self, *turns: Any, tools: Any = None, **options: Any) -> Any:
        """Return an agent; `fallback` and the like are for the middleware."""
        mine = {k: options.pop(k) for k in _MINE & options.keys()}
        before, after = options.pop("before", ()), options.pop("after", ())
        model = turns[0] if isinstance(turns[0], BaseChatModel) else model_of(*turns)
        return create_agent(
            model,
            tools_for(self.how) if tools is None else tools,
            middleware=[*before, self.middleware(**mine), *after],
            **options,
        )


_MINE = {
    "deadline",
    "fallback",
    "finish_from",
    "finishing_tools",
    "note_from",
}


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


def closed(driven: Driven, answer: str = SORRY) -> list[AnyMessage]:
    """Check the end of a run that was cut; return its messages."""
    if driven.error is not None:
        raise driven.error
    messages: list[AnyMessage] = driven.values["messages"]
    check_history(messages)
    assert isinstance(messages[-1], AIMessage)
    assert messages[-1].content == answer
    assert messages[-1].tool_calls == []
    assert sum(m.content == answer for m in messages) == 1
    assert driven.values.keys() <= SHOWN
    return messages


def exceeded(driven: Driven) -> DeadlineExceeded:
    """Return the error of a run that was cut without a fallback."""
    assert isinstance(driven.error, DeadlineExceeded)
    return driven.error


def answers(messages: Sequence[BaseMessage]) -> dict[str, str]:
    """Return what the tools answered, by the calls' ids."""
    return {
        m.tool_call_id: str(m.content) for m in messages if isinstance(m, ToolMessage)
    }


def said(driven: Driven) -> str:
    """Return the last word of a run."""
    if driven.error is not None:
        raise driven.error
    return str(driven.values["messages"][-1].content)


# Runs that are cut.


@pytest.mark.parametrize("how", ALL)
def test_a_model_that_hangs_is_closed_with_the_text(how: How) -> None:
    """On time, with what was found before."""
    bench = Bench(how)
    driven = bench.drive(bench.agent(calls(("find", "1")), (HANG, "never")), ask())
    messages = closed(driven)
    bench.at_work(driven)
    assert [m.type for m in messages] == ["human", "ai", "tool", "ai"]
    assert answers(messages) == {"1": "found 1"}


@pytest.mark.parametrize("how", ALL)
def test_a_tool_that_hangs_is_answered_for(how: How) -> None:
    """Its outcome is unknown, and it says so; the model is not called again."""
    bench = Bench(how)
    model = model_of(calls(("hang", "1")))
    driven = bench.drive(bench.agent(model), ask())
    messages = closed(driven)
    bench.at_work(driven)
    (answer,) = (m for m in messages if isinstance(m, ToolMessage))
    assert (answer.tool_call_id, answer.name, answer.status) == ("1", "hang", "error")
    assert "outcome is unknown" in str(answer.content)
    assert len(model.prompts) == 1


@pytest.mark.parametrize("how", ALL)
def test_finished_tools_keep_their_results_beside_those_that_hang(how: How) -> None:
    """Each of four parallel calls is a step of its own."""
    bench = Bench(how)
    called = (("find", "1"), ("hang", "2"), ("find", "3"), ("hang", "4"))
    driven = bench.drive(bench.agent(calls(*called)), ask())
    found = answers(closed(driven))
    bench.at_work(driven)
    assert (found["1"], found["3"]) == ("found 1", "found 3")
    assert all("outcome is unknown" in found[i] for i in ("2", "4"))


@pytest.mark.parametrize("how", ALL)
def test_without_a_fallback_it_raises(how: How) -> None:
    """At the deadline, whatever was cut; the error says what, where and how long."""
    for turn, what in ((HANG, "never"), "Model"), (calls(("hang", "1")), "hang"):
        bench = Bench(how)
        driven = bench.drive(bench.agent(turn, fallback=None), ask())
        error = exceeded(driven)
        bench.at_budget(driven)
        assert type(error) is DeadlineExceeded
        assert (error.cause, error.step) == ("deadline", what)
        assert error.budget == bench.budget
        assert error.elapsed is not None
        assert error.elapsed == pytest.approx(bench.budget, abs=0.6)
        assert repr(what) in str(error)


@pytest.mark.parametrize("how", ALL)
def test_a_run_with_time_is_left_alone(how: How) -> None:
    """Nothing is added to its messages, its state or its prompts."""
    bench = Bench(how, seconds=30)
    turns = (calls(("find", "1"), ("find", "2")), "Known.")
    plain = model_of(*turns), model_of(*turns)
    agent = create_agent(plain[0], tools_for(how))
    expected = bench.drive(agent, ask()).values["messages"]
    driven = bench.drive(bench.agent(plain[1]), ask())
    assert driven.values.keys() <= (SHOWN if how.endswith("stream") else {"messages"})
    shown = [(m.type, m.content) for m in driven.values["messages"]]
    assert shown == [(m.type, m.content) for m in expected]
    assert [_contents(p) for p in plain[1].prompts] == [
        _contents(p) for p in plain[0].prompts
    ]


def _contents(prompt: Sequence[BaseMessage]) -> list[Any]:
    return [(m.type, m.content) for m in prompt]


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0, 1.5])
def test_an_agent_that_goes_round_and_round_is_cut_in_the_middle(
    how: How, offset: float
) -> None:
    """Whatever it is doing just then: a model and a tool that take a second each."""
    bench = Bench(how)

    async def wait(q: str) -> str:
        await asyncio.sleep(1)
        return f"waited {q}"

    rounds: list[Any] = [(1.0, calls(("wait", f"{i}"))) for i in range(20)]
    rounds[0] = (1.0 + offset, rounds[0][1])
    agent = bench.agent(*rounds, tools=tools_for(how, wait=wait))
    driven = bench.drive(agent, ask())
    messages = closed(driven)
    bench.at_work(driven)
    finished = [m for m in messages if str(m.content).startswith("waited")]
    assert len(finished) in {3, 4}


@pytest.mark.parametrize("how", ASYNC)
def test_all_model_and_tool_calls_share_one_budget(how: How) -> None:
    """What a call may still take is what is left of the run."""
    bench = Bench(how)
    left: list[float] = []

    async def look(q: str) -> str:
        left.append(remaining())
        await asyncio.sleep(2)
        return "looked"

    agent = bench.agent(
        (1.0, calls(("look", "1"))),
        (1.0, calls(("look", "2"))),
        "Known.",
        tools=tools_for(how, look=look),
    )
    driven = bench.drive(agent, ask())
    assert said(driven) == "Known."
    assert left == [pytest.approx(7.0), pytest.approx(4.0)]


@pytest.mark.parametrize("how", ASYNC)
def test_a_tool_that_resists_its_cut_leaves_the_fallback_time(how: How) -> None:
    """It is given up after the grace."""
    bench = Bench(how)

    async def resist(q: str) -> str:
        try:
            await asyncio.sleep(HANG)
        except asyncio.CancelledError:
            await asyncio.sleep(HANG)
        return "late"

    agent = bench.agent(calls(("resist", "1")), tools=tools_for(how, resist=resist))
    driven = bench.drive(agent, ask())
    closed(driven)
    bench.at_work(driven, late=0.25)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_sync_tools_of_an_async_agent_are_given_up(how: How) -> None:
    """More of them than the event loop has threads; its end waits for none of them."""
    bench = Bench(how, realtime=True)
    called = [("hang", str(i)) for i in range(12)]
    agent = bench.agent(calls(*called), tools=tools_for("invoke"))
    driven = bench.drive(agent, ask())
    assert len(answers(closed(driven))) == 12
    bench.at_work(driven)


class Blocking(Model):
    """A model without async code."""

    _agenerate = BaseChatModel._agenerate


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_a_model_without_async_code_is_given_up(how: How) -> None:
    """It blocks neither the event loop nor its end."""
    bench = Bench(how, realtime=True)
    driven = bench.drive(bench.agent(Blocking(turns=[(HANG, "never")])), ask())
    closed(driven)
    bench.at_work(driven)


@pytest.mark.realtime
def test_sync_runs_beside_each_other_have_a_deadline_each() -> None:
    """Threads of one process share the agent."""
    bench = Bench("invoke")
    agent = bench.agent(calls(("hang", "1"), ("find", "2")), (HANG, "never"))
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(bench.drive, agent, ask()) for _ in range(4)]
    for run in runs:
        closed(run.result())
        bench.at_work(run.result())


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_no_thread_of_ours_is_left(how: How) -> None:
    """Once what hung has come back."""
    before = {thread.ident for thread in threading.enumerate()}
    bench = Bench(how)
    closed(bench.drive(bench.agent(calls(("hang", "1"), ("find", "2"))), ask()))
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        left = [
            thread.name
            for thread in threading.enumerate()
            if thread.ident not in before and "langgraph-deadline" in thread.name
        ]
        if not left:
            break
        time.sleep(0.01)
    assert left == []


def test_a_cancelled_caller_stops_the_tool() -> None:
    """Once, and it is waited for."""
    ended: list[str] = []

    async def clean_up(q: str) -> str:
        try:
            await asyncio.sleep(HANG)
        finally:
            await asyncio.sleep(0.1)
            ended.append(q)
        return "late"

    bench = Bench("ainvoke")
    agent = bench.agent(calls(("clean_up", "1")), tools=tools_for("ainvoke", clean_up=clean_up))  # fmt: skip # noqa: E501

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.ainvoke(ask()), 1)
        assert ended == ["1"]

    run_virtual(main())


@pytest.mark.parametrize("how", ALL)
def test_what_a_cut_tool_writes_to_a_stream_is_dropped(how: How) -> None:
    """Also while the fallback is still at work."""
    wrote = threading.Event()

    def write(q: str) -> str:
        writer = get_stream_writer()
        writer("before")
        released.wait(3)
        writer("after")
        wrote.set()
        return "late"

    async def awrite(q: str) -> str:
        writer = get_stream_writer()
        writer("before")
        try:
            await asyncio.sleep(HANG)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            writer("after")
            wrote.set()
        return "late"

    def close(state: Any) -> Any:
        released.set()
        assert wrote.wait(3)
        return {"messages": [AIMessage(SORRY)]}

    async def aclose(state: Any) -> Any:
        await asyncio.sleep(1.5)
        return {"messages": [AIMessage(SORRY)]}

    bench = Bench(how)
    written = write if how in SYNC else awrite
    agent = bench.agent(
        calls(("write", "1")),
        tools=tools_for(how, write=written),
        fallback=RunnableLambda(close, aclose),
    )

    async def main() -> list[Any]:
        return [item async for item in agent.astream(ask(), stream_mode="custom")]

    if how in SYNC:
        assert list(agent.stream(ask(), stream_mode="custom")) == ["before"]
    else:
        assert run_virtual(main()) == ["before"]
    assert wrote.is_set()


def test_a_model_that_was_changed_is_called_as_it_is() -> None:
    """The bounded copy is made anew."""
    bench = Bench("ainvoke")
    model = model_of("One.")
    agent = bench.agent(model)
    assert said(bench.drive(agent, ask())) == "One."
    model.turns = ["Two."]
    assert said(bench.drive(agent, ask())) == "Two."


# The fallback.


@pytest.mark.parametrize("how", ALL)
def test_a_closing_model_answers_from_what_was_found(how: How) -> None:
    """Inside the reserve."""
    bench = Bench(how)
    closing = model_of("I know one thing.")
    agent = bench.agent(
        calls(("find", "1"), ("hang", "2")),
        fallback=agent_fallback(SORRY, model=closing),
    )
    driven = bench.drive(agent, ask())
    closed(driven, "I know one thing.")
    bench.at_work(driven)
    assert "found 1" in str(closing.prompts[0])


@pytest.mark.parametrize("how", ALL)
def test_a_closing_model_that_hangs_leaves_time_for_the_text(how: How) -> None:
    """The run ends before its deadline."""
    bench = Bench(how)
    fallback = agent_fallback(SORRY, model=model_of((HANG, "never")))
    driven = bench.drive(bench.agent((HANG, "never"), fallback=fallback), ask())
    closed(driven)
    assert bench.work < driven.elapsed <= bench.end


@pytest.mark.parametrize("how", ALL)
def test_a_fallback_that_hangs_is_cut_at_the_deadline(how: How) -> None:
    """There is nothing left to answer with."""

    def hang(state: Any) -> Any:
        released.wait(3)

    async def ahang(state: Any) -> Any:
        await asyncio.sleep(HANG)

    bench = Bench(how)
    agent = bench.agent((HANG, "never"), fallback=RunnableLambda(hang, ahang))
    driven = bench.drive(agent, ask())
    exceeded(driven)
    bench.at_end(driven)


@pytest.mark.parametrize(
    "update", [{}, {"messages": [HumanMessage("?")]}, "text", None]
)
def test_a_fallback_that_gives_no_answer_is_refused(update: Any) -> None:
    """By a message that says what it has to return."""
    bench = Bench("ainvoke")
    fallback = RunnableLambda(lambda state: update)
    driven = bench.drive(bench.agent((HANG, "never"), fallback=fallback), ask())
    assert isinstance(driven.error, TypeError)
    assert "must return messages that end with an AIMessage" in str(driven.error)


def test_an_agent_that_is_sent_back_after_its_last_word_ends_all_the_same() -> None:
    """Another middleware may want another answer; there is no time for one."""

    class Again(AgentMiddleware[Any, Any, Any]):
        @hook_config(can_jump_to=["model"])
        def after_model(self, state: Any, runtime: Any) -> Any:
            return {"jump_to": "model"}

    bench = Bench("ainvoke")
    agent = bench.agent((HANG, "never"), after=[Again()])
    error = exceeded(bench.drive(agent, ask()))
    assert "sent the agent back" in error.__notes__[0]


@pytest.mark.parametrize("how", ALL)
def test_a_cut_tool_whose_result_is_returned_directly_is_no_last_word(how: How) -> None:
    """The agent would end at it."""
    bench = Bench(how)
    tools = tools_for(how)
    for direct in tools:
        direct.return_direct = True
    driven = bench.drive(bench.agent(calls(("hang", "1")), tools=tools), ask())
    assert len(closed(driven)) == 4
    bench.at_work(driven)
    driven = Bench(how).drive(
        Bench(how).agent(calls(("find", "1")), tools=tools), ask()
    )
    assert said(driven) == "found 1"


# The next turn.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("fallback", [SORRY, None])
def test_the_next_turn_is_valid_and_has_a_fresh_budget(
    how: How, fallback: str | None
) -> None:
    """Whether the turn before was closed or raised, in a tool."""
    bench = Bench(how)
    model = model_of(calls(("find", "1"), ("hang", "2")), "Known.")
    agent = bench.agent(model, fallback=fallback, checkpointer=InMemorySaver())
    first = bench.drive(agent, ask(), on("1"))
    assert (first.error is None) == (fallback is not None)
    driven = bench.drive(agent, ask("And now?"), on("1"))
    assert said(driven) == "Known."
    check_history(driven.values["messages"])
    check_history(model.prompts[-1])
    found = answers(driven.values["messages"])
    assert found.keys() == {"1", "2"}
    assert "may or may not have taken effect" in found["2"]
    assert driven.values["messages"][-2].content == "And now?"


@pytest.mark.parametrize("how", ALL)
def test_a_resume_of_a_run_that_raised_has_a_fresh_budget(how: How) -> None:
    """It re-runs just what was cut."""
    bench = Bench(how)
    naps = [0.8, 0.0]

    def nap(q: str) -> str:
        time.sleep(naps.pop(0))
        return "rested"

    async def anap(q: str) -> str:
        await asyncio.sleep(20 * naps.pop(0))
        return "rested"

    model = model_of(((0.3 if how in SYNC else 6.0), calls(("nap", "1"))), "Known.")
    agent = bench.agent(
        model,
        tools=tools_for(how, nap=nap if how in SYNC else anap),
        fallback=None,
        checkpointer=InMemorySaver(),
    )
    saver_config = on("1")
    exceeded(bench.drive(agent, ask(), saver_config))
    model.turns[1:] = [((0.4 if how in SYNC else 7.0), "Known.")]
    resumed = _go_on(bench, agent, saver_config)
    assert said(resumed) == "Known."
    assert len(model.prompts) == 2


def _go_on(bench: Bench, agent: Any, config: Any) -> Driven:
    """Resume a run that ended with an error."""
    driven = Driven()
    if bench.how in SYNC:
        driven.values = agent.invoke(None, config)
    else:
        driven.values = run_virtual(agent.ainvoke(None, config))
    return driven


@pytest.mark.parametrize("how", ALL)
def test_malformed_calls_are_answered_once(how: How) -> None:
    """LangChain repairs them too, in the same update."""
    bench = Bench(how)
    broken = InvalidToolCall(name="find", args='{"q": ', id="7", error="no JSON")
    both = AIMessage(
        "Hm.", invalid_tool_calls=[broken], tool_calls=calls(("find", "8")).tool_calls
    )
    driven = bench.drive(bench.agent(both, (HANG, "never")), ask())
    messages = closed(driven)
    assert answers(messages).keys() == {"7", "8"}


# Retries, and middleware around and inside.


def retry(**options: Any) -> Any:
    return ModelRetryMiddleware(
        **{"max_retries": 5, "initial_delay": 4.0, "jitter": False, **options}
    )


def retry_tools(**options: Any) -> Any:
    return ToolRetryMiddleware(
        **{"max_retries": 5, "initial_delay": 4.0, "jitter": False, **options}
    )


@pytest.mark.parametrize("how", ASYNC)
def test_a_pause_between_retries_inside_is_cut(how: How) -> None:
    """Attempts at 0 s and 4 s; the next one would be at 12 s."""
    bench = Bench(how)
    model = model_of(OSError("busy"))
    driven = bench.drive(bench.agent(model, after=[retry()]), ask())
    closed(driven)
    bench.at_work(driven)
    assert len(model.prompts) == 2


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("between", [False, True])
def test_a_pause_between_retries_around_is_not_begun_if_it_does_not_fit(
    how: How, between: bool
) -> None:
    """Also with another middleware between the two."""
    bench = Bench(how)
    model, other = model_of(OSError("busy")), model_of(OSError("busy too"))
    before: list[Any] = [retry()]
    if between:
        before.append(ModelFallbackMiddleware(other))
    driven = bench.drive(bench.agent(model, before=before), ask())
    closed(driven)
    bench.took(driven, 4.0)
    assert len(model.prompts) == 2
    assert len(other.prompts) == (2 if between else 0)


@pytest.mark.parametrize("how", SYNC)
@pytest.mark.parametrize("inside", [False, True])
def test_long_pauses_of_sync_retries_are_not_waited_for(how: How, inside: bool) -> None:
    """A minute of `time.sleep`: cut inside, not begun around."""
    bench = Bench(how)
    side = "after" if inside else "before"
    retries = {side: [retry(initial_delay=60.0), retry_tools(initial_delay=60.0)]}
    driven = bench.drive(bench.agent(OSError("busy"), **retries), ask())
    closed(driven)
    bench.took(driven, bench.work if inside else 0.0)

    def fail(q: str) -> str:
        raise OSError("broken")

    tools = tools_for(how, fail=fail)
    agent = bench.agent(calls(("fail", "1")), "Known.", tools=tools, **retries)
    driven = bench.drive(agent, ask())
    if inside:
        closed(driven)
        return
    assert said(driven) == "Known."  # there is time, but not for another attempt
    assert "no time for another attempt" in answers(driven.values["messages"])["1"]


@pytest.mark.parametrize("how", ASYNC)
def test_tool_retries_around_are_not_begun_if_their_pause_does_not_fit(
    how: How,
) -> None:
    """The model is told, and has what is left."""
    bench = Bench(how)
    tried: list[float] = []

    async def fail(q: str) -> str:
        tried.append(_clock.now())
        raise OSError("broken")

    agent = bench.agent(
        calls(("fail", "1")),
        "Known.",
        tools=tools_for(how, fail=fail),
        before=[retry_tools()],
    )
    driven = bench.drive(agent, ask())
    assert said(driven) == "Known."
    bench.took(driven, 4.0)
    assert [at - tried[0] for at in tried] == [0.0, 4.0]
    answer = answers(driven.values["messages"])["1"]
    assert "OSError('broken')" in answer
    assert "no time for another attempt" in answer


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("side", ["before", "after"])
def test_retries_that_fit_are_made(how: How, side: str) -> None:
    """Errors that are not ours pass as they are."""
    bench = Bench(how)
    model = model_of(OSError("busy"), OSError("busy"), "Known.")
    retries = {side: [retry(initial_delay=0.5)]}
    driven = bench.drive(bench.agent(model, **retries), ask())
    assert said(driven) == "Known."
    bench.took(driven, 1.5)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("fallback", [SORRY, None])
def test_an_error_of_the_models_own_passes_unchanged(
    how: How, fallback: str | None
) -> None:
    """Nobody retries it, and there is time: it is none of ours."""
    bench = Bench(how)
    boom = ValueError("boom")
    driven = bench.drive(bench.agent(boom, fallback=fallback), ask())
    assert driven.error is boom


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("side", ["before", "after"])
def test_the_last_attempts_error_passes(how: How, side: str) -> None:
    """Where no retry is due any more."""
    bench = Bench(how)
    boom = OSError("boom")
    retries = {side: [retry(max_retries=1, initial_delay=5.0, on_failure="error")]}
    driven = bench.drive(bench.agent(boom, **retries), ask())
    assert driven.error is boom
    bench.took(driven, 5.0)


@pytest.mark.parametrize("how", ALL)
def test_a_model_that_has_no_time_for_its_own_retry_ends_the_run(how: How) -> None:
    """At once: a provider asked to wait for longer than there is."""
    bench = Bench(how)
    late = DeadlineExceeded(cause="window", step="model", remaining=1.0, needed=60.0)
    driven = bench.drive(bench.agent(late), ask())
    closed(driven)
    bench.took(driven, 0.0)
    driven = bench.drive(bench.agent(late, fallback=None), ask())
    assert exceeded(driven) is late


@pytest.mark.skipif(
    not RETRIES_ONLY_WHAT_MAY_BE, reason="this LangChain retries any error"
)
@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("everything", [False, True])
def test_our_error_is_not_retried(how: How, side: str, everything: bool) -> None:
    """Not even by who retries everything."""
    retry_on = {"retry_on": (Exception,)} if everything else {}
    for turn in (HANG, "never"), calls(("hang", "1")):
        bench = Bench(how)
        model = model_of(turn)
        around = {side: [retry(**retry_on), retry_tools(**retry_on)]}
        driven = bench.drive(bench.agent(model, fallback=None, **around), ask())
        exceeded(driven)
        if everything and side == "after":  # it would go on, and is cancelled soon
            assert 10 <= driven.elapsed <= 10.25
        else:
            bench.at_budget(driven)
        assert len(model.prompts) == 1


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("side", ["before", "after"])
def test_another_model_is_tried_in_what_is_left(how: How, side: str) -> None:
    """And is cut with the run."""
    for second, ends in (((2.0, "Known."), 5.0), ((HANG, "never"), 8.0)):
        bench = Bench(how)
        other = model_of(second)
        fallbacks = {side: [ModelFallbackMiddleware(other)]}
        driven = bench.drive(bench.agent((3.0, OSError("a")), **fallbacks), ask())
        bench.took(driven, ends)
        assert said(driven) == (SORRY if ends == 8.0 else "Known.")


def others(how: How) -> list[Any]:
    """Return LangChain's middleware, one of each kind."""
    return [
        ModelRetryMiddleware(max_retries=2, initial_delay=0.5, jitter=False),
        ToolRetryMiddleware(max_retries=2, initial_delay=0.5, jitter=False),
        ModelFallbackMiddleware(model_of("From another model.")),
        ModelCallLimitMiddleware(run_limit=10),
        ToolCallLimitMiddleware(run_limit=10),
        SummarizationMiddleware(
            model_of("In short."), trigger=("messages", 3), keep=("messages", 2)
        ),
        HumanInTheLoopMiddleware(interrupt_on={"risky": True}),
    ]


def orders() -> list[tuple[int, ...]]:
    """Return orders in which everything stands before and behind everything."""
    numbers = tuple(range(8))
    turned = [numbers[i:] + numbers[:i] for i in numbers]
    return [*turned, *(tuple(reversed(order)) for order in turned)]


@pytest.mark.parametrize("order", orders(), ids=lambda order: "".join(map(str, order)))
def test_it_works_beside_langchains_middleware_in_any_order(
    order: tuple[int, ...],
) -> None:
    """A run with time, a model that hangs, a tool that hangs; then another turn."""
    known, hangs = (calls(("find", "1")), "Known."), (HANG, "never")
    for turns, answer in (
        (known, "Known."),
        ((OSError("busy"), *known), None),
        ((calls(("find", "1")), hangs), SORRY),
        ((calls(("hang", "1"), ("find", "2")),), SORRY),
    ):
        bench = Bench("ainvoke")
        members = [*others("ainvoke"), bench.middleware()]
        model = model_of(*turns)
        agent = create_agent(
            model,
            tools_for("ainvoke", risky=lambda q: "done"),
            middleware=[members[i] for i in order],
            checkpointer=InMemorySaver(),
        )
        driven = bench.drive(agent, ask(), on("1"))
        check_history(driven.values["messages"])
        if answer is None:  # who comes first answers the error: a retry, or a model
            assert said(driven) in {"Known.", "From another model."}
        else:
            assert said(driven) == answer
        if answer == SORRY:  # before LangChain 1.4 some of them go on for a moment
            assert 8.0 - 1e-6 <= driven.elapsed <= 8.0 + HANDING_OVER + 1e-6
        else:
            assert driven.elapsed <= 8.0
        model.turns[:] = ["Again."]
        driven = bench.drive(agent, ask("And now?"), on("1"))
        assert said(driven) == "Again."
        check_history(driven.values["messages"])


@pytest.mark.parametrize("first", [True, False])
def test_another_middlewares_jump_is_followed(first: bool) -> None:
    """To the end, before any model was called."""

    class Ends(AgentMiddleware[Any, Any, Any]):
        @hook_config(can_jump_to=["end"])
        def before_model(self, state: Any, runtime: Any) -> Any:
            return {"jump_to": "end", "messages": [AIMessage("No.")]}

    bench = Bench("ainvoke")
    side = {"before" if first else "after": [Ends()]}
    driven = bench.drive(bench.agent((HANG, "never"), **side), ask())
    assert said(driven) == "No."
    bench.took(driven, 0.0)


# A person is asked.


def approve() -> Command[Any]:
    return Command(resume={"decisions": [{"type": "approve"}]})


@pytest.mark.parametrize(
    ("clock", "left"), [("active", 5.0), ("wall", None), ("restart", 8.0)]
)
@pytest.mark.parametrize("thinks", [100.0, 2.0])
def test_what_a_person_takes_is_charged_as_the_clock_says(
    clock: Any, left: float | None, thinks: float
) -> None:
    """The resume is another process: its agent and middleware are others."""
    saver = InMemorySaver()
    seen: list[float] = []

    async def risky(q: str) -> str:
        seen.append(remaining())
        await asyncio.sleep(HANG)
        return "late"

    def agent() -> Any:
        bench = Bench("ainvoke")
        policy = bench.reserved.model_copy(update={"clock": clock})
        return bench.agent(
            (3.0, calls(("risky", "1"))),
            tools=tools_for("ainvoke", risky=risky),
            deadline=policy,
            after=[HumanInTheLoopMiddleware(interrupt_on={"risky": True})],
            checkpointer=saver,
        )

    async def main() -> Driven:
        asked = await adrive(agent(), ask(), "ainvoke", on("1"))
        assert asked.values["__interrupt__"]
        await asyncio.sleep(thinks)
        return await adrive(agent(), approve(), "ainvoke", on("1"))

    driven = run_virtual(main())
    assert driven.values["messages"][-1].content == SORRY
    check_history(driven.values["messages"])
    if left is None:  # by the wall clock
        left = max(8.0 - 3.0 - thinks, 0.0)
    assert seen == ([pytest.approx(left)] if left else [])
    assert driven.elapsed == pytest.approx(left)


def test_a_resume_without_an_answer_goes_on_with_what_was_left() -> None:
    """After an interrupt that the agent was compiled with."""
    bench = Bench("ainvoke")
    agent = bench.agent(
        (3.0, calls(("hang", "1"))),
        checkpointer=InMemorySaver(),
        interrupt_before=["tools"],
    )

    async def main() -> Driven:
        await adrive(agent, ask(), "ainvoke", on("1"))
        await asyncio.sleep(100)
        return await adrive(agent, None, "ainvoke", on("1"))

    driven = run_virtual(main())
    closed(driven)
    assert driven.elapsed == pytest.approx(5.0)


@pytest.mark.parametrize("durability", ["exit", "async", "sync"])
def test_what_was_spent_is_saved_whenever_the_state_is(durability: Any) -> None:
    """Also where it is saved at the end only."""
    bench = Bench("ainvoke")
    agent = bench.agent(
        (3.0, calls(("risky", "1"))),
        (HANG, "never"),
        tools=tools_for("ainvoke", risky=lambda q: "done"),
        after=[HumanInTheLoopMiddleware(interrupt_on={"risky": True})],
        checkpointer=InMemorySaver(),
    )
    bench.drive(agent, ask(), on("1"), durability=durability)
    driven = bench.drive(agent, approve(), on("1"), durability=durability)
    closed(driven)
    bench.took(driven, 5.0)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_person_is_asked_about_each_call(side: str) -> None:
    """By middleware that interrupts around the tool itself."""
    if "interrupt_mode" not in signature(HumanInTheLoopMiddleware).parameters:
        pytest.skip("this LangChain asks about all calls at once")
    bench = Bench("ainvoke")
    asking = HumanInTheLoopMiddleware(
        interrupt_on={"find": True}, interrupt_mode="per_call"
    )
    agent = bench.agent(
        (3.0, calls(("find", "1"))),
        (HANG, "never"),
        checkpointer=InMemorySaver(),
        **{side: [asking]},
    )
    assert "__interrupt__" in bench.drive(agent, ask(), on("1")).values
    driven = bench.drive(agent, Command(resume={"type": "approve"}), on("1"))
    assert answers(closed(driven)) == {"1": "found 1"}
    bench.took(driven, 5.0)


def test_several_interrupts_are_charged_for_the_work_between_them() -> None:
    """Two seconds of work each; the people take an hour each."""
    saver = InMemorySaver()
    bench = Bench("ainvoke")
    agent = bench.agent(
        *((2.0, calls(("find", str(i)))) for i in range(9)),
        after=[HumanInTheLoopMiddleware(interrupt_on={"find": True})],
        checkpointer=saver,
    )

    async def main() -> tuple[int, Driven]:
        driven = await adrive(agent, ask(), "ainvoke", on("1"))
        rounds = 0
        while "__interrupt__" in driven.values:
            rounds += 1
            await asyncio.sleep(3600)
            driven = await adrive(agent, approve(), "ainvoke", on("1"))
        return rounds, driven

    rounds, driven = run_virtual(main())
    assert said(driven) == SORRY
    assert rounds in {3, 4}


@pytest.mark.parametrize("how", ALL)
def test_an_interrupt_in_a_tool_passes(how: How) -> None:
    """And its resume gets the answer."""
    bench = Bench(how, seconds=5)

    def confirm(q: str) -> str:
        return f"{interrupt('Sure?')}, {q}"

    agent = bench.agent(
        calls(("confirm", "1")),
        "Known.",
        tools=tools_for(how, confirm=confirm),
        checkpointer=InMemorySaver(),
    )
    bench.drive(agent, ask(), on("1"))
    driven = bench.drive(agent, Command(resume="yes"), on("1"))
    assert said(driven) == "Known."
    assert answers(driven.values["messages"]) == {"1": "yes, 1"}


def test_a_new_input_is_a_new_run() -> None:
    """Also on a thread whose last run still waits for a person."""
    bench = Bench("ainvoke")
    model = model_of((7.0, calls(("risky", "1"))), (7.0, "Known."))
    agent = bench.agent(
        model,
        tools=tools_for("ainvoke", risky=lambda q: "done"),
        after=[HumanInTheLoopMiddleware(interrupt_on={"risky": True})],
        checkpointer=InMemorySaver(),
    )
    bench.drive(agent, ask(), on("1"))
    driven = bench.drive(agent, ask("Never mind. And now?"), on("1"))
    assert said(driven) == "Known."
    check_history(model.prompts[-1])
    (answer,) = answers(driven.values["messages"]).values()
    assert "no result: the run that made it ended before" in answer


# Runs beside and inside of others.


def test_runs_on_one_middleware_have_a_deadline_each() -> None:
    """They begin a second apart, and end a second apart."""
    bench = Bench("ainvoke")
    agent = bench.agent((HANG, "never"))

    async def one(at: float) -> float:
        await asyncio.sleep(at)
        closed(await adrive(agent, ask(), "ainvoke"))
        return _clock.now()

    async def main() -> list[float]:
        began = _clock.now()
        ends = await asyncio.gather(*(one(float(i)) for i in range(3)))
        return [end - began for end in ends]

    assert run_virtual(main()) == [8.0, 9.0, 10.0]


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("outer", [3.0, 30.0])
def test_in_a_bounded_graph_the_earlier_deadline_holds(how: How, outer: float) -> None:
    """The inner fallback answers before the outer deadline, as that of a subgraph."""
    bench = Bench(how)
    builder = StateGraph(MessagesState)
    builder.add_node("agent", bench.agent((HANG, "never"), deadline=10))
    builder.add_edge(START, "agent")
    driven = bench.drive(builder.compile(deadline=outer), ask())
    assert said(driven) == SORRY
    bench.took(driven, min(outer * 0.8, 8.0))


@pytest.mark.parametrize("how", ALL)
def test_the_agent_may_be_bounded_itself(how: How) -> None:
    """Whichever of the two is earlier ends it, with its own fallback."""
    for longer in ("inner", "outer"):
        bench = Bench(how)
        much = DeadlinePolicy(seconds=bench.end * 10)
        deadline = {"deadline": much} if longer == "inner" else {}
        agent = bench.agent(calls(("hang", "1"), ("find", "2")), **deadline)
        policy = bench.reserved if longer == "inner" else much
        bounded = with_deadline(agent, policy, fallback=agent_fallback("Outer."))
        driven = bench.drive(bounded, ask())
        check_history(driven.values["messages"])
        assert driven.elapsed <= bench.end + (0.6 if how in SYNC else 0)
        assert said(driven) in ({SORRY, "Outer."} if longer == "inner" else {SORRY})
        assert answers(driven.values["messages"])["2"] == "found 2"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("outer", [1, 10])
def test_a_bounded_graph_around_reports_a_cut_call_once(how: How, outer: int) -> None:
    """Whichever of the two cuts it."""
    bench = Bench(how, reserve=0.2)
    agent = bench.agent(calls(("hang", "1")))
    policy = DeadlinePolicy(seconds=bench.work * outer / 2, on_exceeded="raise")
    driven = bench.drive(with_deadline(agent, policy), ask())
    unknown = driven.report.unknown
    assert [(call.name, call.id) for call in unknown] == [("hang", "1")]


@pytest.mark.parametrize("how", ALL)
def test_it_may_be_a_subgraph_of_a_plain_graph(how: How) -> None:
    """Once per run of that."""
    bench = Bench(how)
    builder = PlainStateGraph(MessagesState)
    builder.add_node("agent", bench.agent(calls(("hang", "1"))))
    builder.add_edge(START, "agent")
    driven = bench.drive(builder.compile(checkpointer=InMemorySaver()), ask(), on("1"))
    assert len(closed(driven)) == 4
    bench.at_work(driven)


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("inner", [3.0, 30.0])
def test_an_agent_in_a_tool_of_another_one_has_what_that_has_left(
    how: How, inner: float
) -> None:
    """Its own answer comes before the tool is cut."""
    bench = Bench(how)
    expert = bench.agent((HANG, "never"), deadline=inner, fallback="No idea.")

    async def consult(q: str) -> str:
        answer = await expert.ainvoke(ask(q))
        return str(answer["messages"][-1].content)

    agent = bench.agent(
        (1.0, calls(("consult", "1"))), "Known.", tools=tools_for(how, consult=consult)
    )
    driven = bench.drive(agent, ask())
    assert said(driven) == "Known."
    assert answers(driven.values["messages"]) == {"1": "No idea."}
    bench.took(driven, 1.0 + min(inner, 7.0) * 0.8)


def test_a_block_around_the_agent_ends_it() -> None:
    """What encloses it raises, the fallback is not asked."""
    bench = Bench("ainvoke")
    agent = bench.agent((HANG, "never"), deadline=DeadlinePolicy(seconds=10, reserve=0))

    async def main() -> float:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded), fail_after(2):
            await agent.ainvoke(ask())
        return _clock.now() - began

    assert run_virtual(main()) == pytest.approx(2.0)


@pytest.mark.parametrize("how", ASYNC)
def test_a_deep_agents_subagents_share_its_deadline(how: How) -> None:
    """What is cut is the call of the sub-agent."""
    deepagents = pytest.importorskip("deepagents")
    bench = Bench(how)
    given = [
        ToolCall(name="task", args={"description": i, "subagent_type": "worker"}, id=i)
        for i in ("1", "2")
    ]
    worker = {
        "name": "worker",
        "description": "Works.",
        "system_prompt": "Work.",
        "tools": tools_for(how),
        "model": model_of((3.0, calls(("find", "9"))), (HANG, "never")),
    }
    agent = deepagents.create_deep_agent(
        model_of((1.0, AIMessage("", tool_calls=given)), "Known."),
        middleware=[bench.middleware()],
        subagents=[worker],
    )
    driven = bench.drive(agent, ask())
    bench.at_work(driven)
    assert said(driven) == SORRY
    check_history(driven.values["messages"])
    assert all("unknown" in a for a in answers(driven.values["messages"]).values())


# Tools.


@pytest.mark.parametrize("how", ASYNC)
def test_a_tools_own_limit_is_answered_and_the_run_goes_on(how: How) -> None:
    """As in a bounded graph, also with a fallback."""
    bench = Bench(how)
    *_, hang = tools_for(how)
    agent = bench.agent(
        calls(("hang", "1")), "Known.", tools=[with_deadline(hang, seconds=2)]
    )
    driven = bench.drive(agent, ask())
    assert said(driven) == "Known."
    bench.took(driven, 2.0)
    assert "its own limit of 2 s" in answers(driven.values["messages"])["1"]


def test_a_tools_own_limit_raises_where_that_was_asked_for() -> None:
    """The run has a fallback, but time as well."""
    bench = Bench("ainvoke")
    *_, hang = tools_for("ainvoke")
    bounded = with_deadline(hang, seconds=2, on_exceeded="raise")
    driven = bench.drive(bench.agent(calls(("hang", "1")), tools=[bounded]), ask())
    assert exceeded(driven).cause == "step"


def test_an_error_of_ours_that_a_tool_raises_is_the_tools_own() -> None:
    """A block in it was too short; the run has time."""

    async def block(q: str) -> str:
        with fail_after(1):
            await asyncio.sleep(HANG)
        return "never"

    bench = Bench("ainvoke")
    tools = tools_for("ainvoke", block=block)
    driven = bench.drive(bench.agent(calls(("block", "1")), tools=tools), ask())
    assert "fail_after" in str(exceeded(driven))
    bench.took(driven, 1.0)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_tool_call_has_one_idempotency_key(how: How, side: str) -> None:
    """For all attempts, whoever makes them; other calls have others."""
    from langgraph_deadline import idempotency_key

    bench = Bench(how, seconds=5)
    keys: dict[str, list[str]] = {"1": [], "2": []}

    def pay(q: str) -> str:
        keys[q].append(idempotency_key())
        if len(keys[q]) < 3:
            raise OSError("broken")
        return "paid"

    agent = bench.agent(
        calls(("pay", "1"), ("pay", "2")),
        "Known.",
        tools=tools_for(how, pay=pay),
        **{side: [retry_tools(initial_delay=0.0)]},
    )
    assert said(bench.drive(agent, ask())) == "Known."
    assert [len(made) for made in keys.values()] == [3, 3]
    assert [len(set(made)) for made in keys.values()] == [1, 1]
    assert keys["1"][0] != keys["2"][0]


@pytest.mark.parametrize("how", ALL)
def test_a_cut_call_is_compensated_for_once(how: How) -> None:
    """In the reserve, and the model is told."""
    undone: list[Any] = []
    bench = Bench(how)
    *_, hang = tools_for(how)
    safe = with_deadline(hang, on_cut=undone.append)
    driven = bench.drive(bench.agent(calls(("hang", "1")), tools=[safe]), ask())
    messages = closed(driven)
    bench.at_work(driven)
    assert undone == [{"name": "hang", "args": {"q": "1"}, "id": "1"}]
    assert "has been compensated" in answers(messages)["1"]


@pytest.mark.parametrize("how", ASYNC)
def test_a_compensation_has_half_of_the_reserve(how: How) -> None:
    """The fallback has the other half."""
    bench = Bench(how)

    async def undo(call: Any) -> None:
        await asyncio.sleep(0.9)

    *_, hang = tools_for(how)
    safe = with_deadline(hang, on_cut=undo)
    driven = bench.drive(bench.agent(calls(("hang", "1")), tools=[safe]), ask())
    assert "has been compensated" in answers(closed(driven))["1"]
    bench.took(driven, 8.9)


# Pace.


def note(prompt: Sequence[BaseMessage]) -> str | None:
    """Return what a model was told of the time, if it was."""
    last = prompt[-1]
    is_note = isinstance(last, HumanMessage) and "left for this task" in str(
        last.content
    )
    return str(last.content) if is_note else None


@pytest.mark.parametrize("how", ASYNC)
def test_the_model_is_told_how_much_time_is_left(how: How) -> None:
    """From half of the time for work on; in the call only, after all that is cached."""
    bench = Bench(how)
    rounds = [(1.5, calls(("find", str(i)))) for i in range(4)]
    model = model_of(*rounds, "Known.")
    agent = bench.agent(model, note_from=0.5, system_prompt="Be brief.")
    driven = bench.drive(agent, ask())
    assert said(driven) == "Known."
    told = [note(prompt) for prompt in model.prompts]
    assert told[:3] == [None, None, None]
    assert told[3] is not None
    assert "About 3.5 s of 8 s are left" in told[3]
    assert told[4] is not None
    assert "About 2 s of 8 s are left" in told[4]
    check_history(driven.values["messages"])
    assert not any("left for this task" in str(m) for m in driven.values["messages"])
    assert all(prompt[0].content == "Be brief." for prompt in model.prompts)


def test_without_pacing_the_model_is_told_nothing() -> None:
    """It is optional."""
    bench = Bench("ainvoke")
    model = model_of((7.9, calls(("find", "1"))), "Known.")
    bench.drive(bench.agent(model), ask())
    assert [note(prompt) for prompt in model.prompts] == [None, None]


@pytest.mark.parametrize("how", ASYNC)
def test_near_the_end_only_finishing_tools_are_offered(how: How) -> None:
    """Calls of others are answered; what was called before runs on."""
    bench = Bench(how)
    ran: list[str] = []

    async def search(q: str) -> str:
        ran.append(q)
        await asyncio.sleep(5)
        return "found"

    model = model_of(
        calls(("search", "1")),
        calls(("search", "2"), ("find", "3")),
        calls(("search", "4")),
        "Known.",
    )
    agent = bench.agent(
        model,
        tools=tools_for(how, search=search),
        finishing_tools=["find"],
        finish_from=0.5,
        note_from=0.5,
    )
    driven = bench.drive(agent, ask())
    assert said(driven) == "Known."
    check_history(driven.values["messages"])
    offered = [options["tools"] for options in model.options]
    assert offered == [["find", "search", "hang"], ["find"], ["find"], ["find"]]
    assert ran == ["1"]
    found = answers(driven.values["messages"])
    assert (found["1"], found["3"]) == ("found", "found 3")
    assert "not offered any more" in found["2"]
    assert "not offered any more" in found["4"]
    told = note(model.prompts[1])
    assert told is not None
    assert "Only these tools can still be called: find" in told


@pytest.mark.parametrize("how", SYNC)
def test_finishing_tools_are_for_sync_runs_too(how: How) -> None:
    """A call of another one is answered."""
    bench = Bench(how, seconds=5)
    turns = (1.1, calls(("search", "1"))), calls(("search", "2")), "Known."
    model = model_of(*turns)
    agent = bench.agent(
        model,
        tools=tools_for(how, search=lambda q: "found"),
        finishing_tools=["find"],
        finish_from=0.2,
    )
    driven = bench.drive(agent, ask())
    assert said(driven) == "Known."
    found = answers(driven.values["messages"])
    assert found["1"] == "found"
    assert "not offered any more" in found["2"]


def test_an_id_that_is_used_again_is_another_call() -> None:
    """Some providers number the calls of each message from 0."""
    bench = Bench("ainvoke")
    model = model_of(
        (5.0, calls(("find", "0"))),
        calls(("search", "0")),
        calls(("find", "0")),
        (HANG, "never"),
        calls(("search", "0")),
        "Known.",
    )
    agent = bench.agent(
        model,
        tools=tools_for("ainvoke", search=lambda q: "searched"),
        finishing_tools=["find"],
        finish_from=0.5,
        checkpointer=InMemorySaver(),
    )
    driven = bench.drive(agent, ask(), on("1"))
    found = [m.content for m in driven.values["messages"] if m.type == "tool"]
    assert "not offered" in found[1]
    assert [found[0], *found[2:]] == ["found 0", "found 0"]
    driven = bench.drive(agent, ask("And now?"), on("1"))
    found = [m.content for m in driven.values["messages"] if m.type == "tool"]
    assert found[3:] == ["searched"]


def test_what_was_not_offered_in_an_earlier_run_is_forgotten() -> None:
    """The next one uses the id again."""
    bench = Bench("ainvoke")
    model = model_of((5.0, calls(("find", "9"))), calls(("search", "0")))
    agent = bench.agent(
        model,
        tools=tools_for("ainvoke", search=lambda q: "searched"),
        finishing_tools=["find"],
        finish_from=0.5,
        after=[ModelCallLimitMiddleware(run_limit=2)],
        checkpointer=InMemorySaver(),
    )
    for question in ("What is known?", "And now?"):
        driven = bench.drive(agent, ask(question), on("1"))
    found = [m.content for m in driven.values["messages"] if m.type == "tool"]
    assert "not offered" in found[1]
    assert found[2:] == ["searched", "searched"]


@pytest.mark.parametrize(
    "choice", ["search", {"type": "tool", "name": "search"}, "any"]
)
def test_a_tool_choice_of_what_is_not_offered_is_taken_back(choice: Any) -> None:
    """Providers refuse a choice of a tool that they are not told of."""

    class Chooses(AgentMiddleware[Any, Any, Any]):
        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool_choice=choice))

    bench = Bench("ainvoke")
    model = model_of((7.0, calls(("search", "1"))), "Known.")
    agent = bench.agent(
        model,
        tools=tools_for("ainvoke", search=lambda q: "found"),
        finishing_tools=["find"],
        before=[Chooses()],
    )
    assert said(bench.drive(agent, ask())) == "Known."
    kept = choice if choice == "any" else None
    assert [o["tool_choice"] for o in model.options] == [choice, kept]


@pytest.mark.parametrize("how", ALL)
def test_an_unknown_finishing_tool_is_named_at_the_first_model_call(how: How) -> None:
    """With the tools that there are."""
    bench = Bench(how)
    model = model_of("Known.")
    driven = bench.drive(bench.agent(model, finishing_tools=["fnid"]), ask())
    assert isinstance(driven.error, ValueError)
    assert "finishing_tools names 'fnid'" in str(driven.error)
    assert "Did you mean 'find'?" in str(driven.error)
    assert "['find', 'hang']" in str(driven.error)
    assert model.prompts == []


# Structured output, and streams.


class Answer(BaseModel):
    """The answer."""

    q: str


@pytest.mark.parametrize("form", [Answer, ToolStrategy(Answer)])
def test_a_structured_answer_arrives_in_time_or_there_is_none(form: Any) -> None:
    """The last word is a text all the same; a tool for the answer is always offered."""
    for turn in (7.0, calls(("find", "1"))), (HANG, "never"):
        bench = Bench("ainvoke")
        agent = bench.agent(
            turn,
            calls(("Answer", "2")),
            response_format=form,
            finishing_tools=["Answer"],
        )
        driven = bench.drive(agent, ask())
        check_history(driven.values["messages"])
        if turn[0] == HANG:
            assert said(driven) == SORRY
            assert driven.values.get("structured_response") is None
        else:
            assert driven.values["structured_response"] == Answer(q="2")


def test_a_fallback_may_give_a_structured_answer() -> None:
    """Under the same key as the agent."""
    bench = Bench("ainvoke")
    update = {"messages": [AIMessage(SORRY)], "structured_response": Answer(q="?")}
    fallback = RunnableLambda(lambda state: update)
    agent = bench.agent((HANG, "never"), response_format=Answer, fallback=fallback)
    driven = bench.drive(agent, ask())
    assert driven.values["structured_response"] == Answer(q="?")


class Talking(Model):
    """A model that streams its words, one a second."""

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        _, turn = self._turn(messages, kwargs)
        for index, word in enumerate(str(turn).split()):
            await asyncio.sleep(0.99 if index else 0)
            chunk = ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def test_tokens_are_streamed_until_the_cut_and_then_the_last_word() -> None:
    """With `stream_mode="messages"`."""
    bench = Bench("astream")
    agent = bench.agent(Talking(turns=["a b c d e f g h i j k l"]))

    async def main() -> list[str]:
        stream = agent.astream(ask(), stream_mode="messages")
        return [str(message.content) async for message, _ in stream]

    parts = run_virtual(main())
    assert parts == [f"{letter} " for letter in "abcdefghi"] + [SORRY]


def test_the_closing_models_tokens_are_streamed() -> None:
    """As the agent's own model's are."""
    bench = Bench("astream")
    closing = Talking(turns=["All right."])
    fallback = agent_fallback(SORRY, model=closing)
    agent = bench.agent((HANG, "never"), fallback=fallback)

    async def main() -> list[str]:
        stream = agent.astream(ask(), stream_mode="messages")
        return [str(message.content) async for message, _ in stream]

    parts = [part for part in run_virtual(main()) if part]
    assert parts[:2] == ["All ", "right. "]
    assert SORRY not in parts


@pytest.mark.filterwarnings(
    "ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"
)
def test_a_run_whose_events_are_streamed_is_cut() -> None:
    """They end with the last word."""
    bench = Bench("astream")
    agent = bench.agent(calls(("find", "1")), (HANG, "never"))

    async def main() -> Any:
        began = _clock.now()
        events = [event async for event in agent.astream_events(ask(), version="v2")]
        return events[-1]["data"]["output"]["messages"][
            -1
        ].content, _clock.now() - began

    assert run_virtual(main()) == (SORRY, 8.0)


# The state.


def test_what_it_keeps_in_the_state_is_plain_and_hidden() -> None:
    """Seconds, that any saver takes; in no output."""
    bench = Bench("ainvoke")
    agent = bench.agent((1.0, "Known."), checkpointer=InMemorySaver())
    driven = bench.drive(agent, ask(), on("1"))
    assert driven.values.keys() == {"messages"}
    kept = agent.get_state(on("1")).values[TIME_KEY]
    assert kept.keys() == {"started", "spent"}
    assert kept["spent"] == pytest.approx(1.0)
    assert TIME_KEY not in agent.get_input_jsonschema()["properties"]
    assert TIME_KEY not in agent.get_output_jsonschema()["properties"]


@pytest.mark.parametrize(
    "saved",
    [
        None,
        1,
        {},
        {"started": 1.0},
        {"started": "1", "spent": 1.0},
        {"started": True, "spent": 1.0},
        {"started": 1.0, "spent": -1.0},
        {"started": 1.0, "spent": float("nan")},
    ],
)
def test_a_record_that_makes_no_sense_is_none(saved: Any) -> None:
    """It may have been written by another version."""
    channel = RunTime().from_checkpoint(saved)
    assert not channel.resumed
    assert not channel.is_available()
    assert not channel.update([])


def test_the_channel_tells_the_time_it_was_resumed_at() -> None:
    """Copies are of the same run."""
    clock = VirtualClock()
    with _clock.use(clock):
        channel = RunTime().from_checkpoint(
            {"started": _clock.wall() - 9, "spent": 2.0}
        )
        clock.advance(1)
        assert channel.update([])
        assert channel.checkpoint()["spent"] == 3.0
        assert channel.copy().began == channel.began
        assert channel.spent_before("active", 10) == 2.0
        assert channel.spent_before("wall", 10) == pytest.approx(9.0)
        assert channel.spent_before("wall", 5) == pytest.approx(9.0)
        assert channel.spent_before("active", 2) == 0.0
        assert channel.spent_before("restart", 10) == 0.0
        assert channel.update([{}])
        assert channel.spent_before("active", 10) == 0.0
        assert channel.checkpoint()["spent"] == 1.0
    assert channel == RunTime()


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": 0}, "deadline must be more than 0"),
        ({"deadline": -1}, "deadline must be more than 0"),
        ({"deadline": float("nan")}, "deadline must be a finite number"),
        ({"deadline": True}, "deadline must be a number"),
        ({"deadline": "30"}, "deadline must be a number"),
        ({"deadline": None}, "deadline must be seconds"),
        ({"deadline": Deadline.after(30)}, "counted from the beginning of each run"),
        ({"deadline": DeadlinePolicy()}, "deadline must have seconds"),
        ({"deadline": DeadlinePolicy(seconds=9, steps={"a": 1})}, "cannot use steps"),
        ({"deadline": DeadlinePolicy(seconds=9, enforce=False)}, "cannot use enforce"),
        (
            {"deadline": DeadlinePolicy(seconds=9, limits=Limits(steps=1))},
            "cannot use limits",
        ),
        (
            {"deadline": DeadlinePolicy(seconds=9, on_exceeded="return")},
            "cannot use on_exceeded='return'",
        ),
        (
            {"deadline": DeadlinePolicy(seconds=9, on_exceeded="fallback")},
            "needs a fallback",
        ),
        ({"fallback": " "}, "fallback must say something"),
        ({"note_from": 0}, "note_from must be a share between 0 and 1"),
        ({"note_from": 1}, "note_from must be a share between 0 and 1"),
        ({"note_from": True}, "note_from must be a share between 0 and 1"),
        ({"finish_from": 1.5}, "finish_from must be a share between 0 and 1"),
        ({"finish_from": "late"}, "finish_from must be a share between 0 and 1"),
        ({"finishing_tools": "find"}, "finishing_tools must be a list of tools' names"),
        ({"finishing_tools": [1]}, "finishing_tools must be a list of tools' names"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options: Any, message: str) -> None:
    """When the middleware is made."""
    with pytest.raises(ValueError, match=message):
        DeadlineMiddleware(**{"deadline": 30, **options})


@pytest.mark.parametrize("fallback", [1, print, model_of("x"), ["text"]])
def test_a_fallback_of_the_wrong_kind_is_refused(fallback: Any) -> None:
    """A model has to be told what it is for."""
    with pytest.raises(TypeError, match="fallback must be a text or an agent_fallback"):
        DeadlineMiddleware(30, fallback=fallback)


def test_a_fallback_is_not_asked_where_the_policy_says_raise() -> None:
    """The policy is more specific; there is no reserve either."""
    bench = Bench("ainvoke")
    policy = DeadlinePolicy(seconds=10, on_exceeded="raise")
    driven = bench.drive(bench.agent((HANG, "never"), deadline=policy), ask())
    exceeded(driven)
    bench.took(driven, 10.0)


def test_a_timedelta_is_a_deadline() -> None:
    """As everywhere."""
    bench = Bench("ainvoke")
    agent = bench.agent((HANG, "never"), deadline=timedelta(seconds=20))
    driven = bench.drive(agent, ask())
    closed(driven)
    bench.took(driven, 16.0)
