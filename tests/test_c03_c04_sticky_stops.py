"""C3: a run that passed its deadline says so. C4: what was cut stops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import ALL, ASYNC, SYNC, How, State, Trial
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.types import RetryPolicy

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    RunControl,
    StateGraph,
    StepBudget,
    check,
    remaining,
)
from langgraph_deadline._record import RECORD_KEY, load

GRACE = 0.25
THREAD = {"configurable": {"thread_id": "1"}}
Mode = str


def one_node(node: Any, **options: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("bad", node, **options)
    builder.add_edge(START, "bad")
    builder.add_edge("bad", END)
    return builder


modes = pytest.mark.parametrize("mode", ["fallback", "raise", "return"])


# C3.


@pytest.mark.parametrize("how", ASYNC)
@modes
def test_c3_a_swallowed_cut_is_no_success(how: How, mode: Mode) -> None:
    """A last node that swallows its cut and returns does not make a run complete."""
    trial = Trial(how)

    async def bad(state: State) -> State:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return {"log": ["bad"]}

    driven = trial.drive(trial.compile(one_node(bad), mode))
    assert driven.report.outcome == "deadline"
    assert driven.report.cause == "deadline"
    if mode == "raise":
        assert type(driven.error) is DeadlineExceeded
    else:
        answered = ["degrade"] if mode == "fallback" else []
        assert driven.values["log"] == ["bad", *answered]


@pytest.mark.parametrize("how", ALL)
@modes
def test_c3_a_swallowed_deadline_exceeded_is_no_success(how: How, mode: Mode) -> None:
    """A node's own `except TimeoutError` around `check` hides nothing."""
    trial = Trial(how)

    def bad(state: State) -> State:
        try:
            while True:
                check()
                time.sleep(0.01)
        except TimeoutError:
            return {"log": ["bad"]}

    async def abad(state: State) -> State:
        for _ in range(5):
            try:
                while True:
                    await asyncio.sleep(0.5)
                    check()
            except (TimeoutError, asyncio.CancelledError):
                continue
        return {"log": ["bad"]}

    node = bad if how in SYNC else abad
    driven = trial.drive(trial.compile(one_node(node), mode))
    assert driven.report.outcome == "deadline"
    if mode == "raise":
        assert type(driven.error) is DeadlineExceeded


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
@modes
def test_c3_a_blocked_loop_is_no_success(how: How, mode: Mode) -> None:
    """A last node that blocks the event loop past the deadline and returns is late."""
    trial = Trial(how, realtime=True, reserve=0.1)

    async def bad(state: State) -> State:
        time.sleep(0.45)
        return {"log": ["bad"]}

    driven = trial.drive(trial.compile(one_node(bad), mode))
    assert driven.report.outcome == "deadline"
    if mode != "return":
        assert type(driven.error) is DeadlineExceeded


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_c3_a_loop_blocked_into_the_reserve_goes_to_the_fallback(how: How) -> None:
    """A node that blocks past the work deadline alone is cut all the same."""
    trial = Trial(how, realtime=True, seconds=2.0)

    async def bad(state: State) -> State:
        time.sleep(0.5)
        return {"log": ["bad"]}

    policy = DeadlinePolicy(seconds=2.0, reserve=1.8)
    builder = one_node(bad)
    builder.add_node("degrade", trial.quick("degrade"))
    driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
    assert driven.error is None
    assert driven.values["log"][-1] == "degrade"
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_c3_a_run_in_time_is_completed(how: How) -> None:
    """Without a cut the outcome is `completed`, and there is no cause."""
    trial = Trial(how)
    driven = trial.drive(one_node(trial.quick("bad")).compile(deadline=30))
    assert driven.report.outcome == "completed"
    assert driven.report.cause is None
    assert driven.report.budget == 30
    assert [step.name for step in driven.report.steps] == ["bad"]


@pytest.mark.parametrize("how", ALL)
def test_c3_a_node_that_fails_by_itself_is_an_error(how: How) -> None:
    """An exception that has nothing to do with time is not told as a deadline."""
    trial = Trial(how)

    def bad(state: State) -> State:
        msg = "no"
        raise ValueError(msg)

    driven = trial.drive(one_node(trial.as_how(bad)).compile(deadline=30))
    assert isinstance(driven.error, ValueError)
    assert driven.report.outcome == "error"


@pytest.mark.parametrize("how", ALL)
@modes
def test_c3_the_outcome_of_a_cancelled_run_is_cancelled(how: How, mode: Mode) -> None:
    """A run that was stopped by hand says so, and by whom it was not: the clock."""
    trial = Trial(how, seconds=30.0)
    control = RunControl()

    def bad(state: State) -> State:
        control.cancel()
        trial.released.wait(3)
        return {"log": ["bad"]}

    async def abad(state: State) -> State:
        control.cancel()
        await asyncio.sleep(3600)
        return {"log": ["bad"]}

    node = bad if how in SYNC else abad
    driven = trial.drive(trial.compile(one_node(node), mode), control=control)
    assert driven.elapsed < 2.5
    assert driven.report.outcome == "cancelled"
    assert driven.report.cause == "cancelled"
    if mode == "raise":
        assert type(driven.error) is DeadlineExceeded
        assert driven.error.cause == "cancelled"
    else:
        assert driven.values["log"] == (["degrade"] if mode == "fallback" else [])


@pytest.mark.parametrize("how", ALL)
@modes
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_c3_the_outcome_is_in_the_state_record(
    how: How, mode: Mode, durability: str
) -> None:
    """The checkpoint of a run that was cut says so, and what was cut."""
    trial = Trial(how)
    saver = InMemorySaver()
    builder = StateGraph(State)
    builder.add_node("good", trial.quick("good"))
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge(START, "good")
    builder.add_edge("good", "bad")
    graph = trial.compile(builder, mode, checkpointer=saver)
    driven = trial.drive(graph, config=THREAD, durability=durability)
    assert driven.report.outcome == "deadline"
    record = kept_record(saver)
    assert record.outcome == "deadline"
    assert record.cause == "deadline"
    assert record.cut == ("bad",)
    assert record.spent >= (trial.work if mode == "fallback" else trial.budget) - 0.05
    # It is hidden from outputs and from the state.
    assert RECORD_KEY not in (driven.values or {})
    assert RECORD_KEY not in graph.get_state(THREAD).values


def kept_record(saver: InMemorySaver) -> Any:
    """Return the newest record of the thread's last checkpoint."""
    found = saver.get_tuple(THREAD)  # type: ignore[arg-type]
    assert found is not None
    pending = [load(v) for _, key, v in found.pending_writes or () if key == RECORD_KEY]
    records = [record for record in pending if record is not None]
    if records:
        return max(records, key=lambda record: record.sequence)
    return load(found.checkpoint["channel_values"].get(RECORD_KEY))


@pytest.mark.parametrize("how", ALL)
def test_c3_a_completed_run_leaves_no_record(how: How) -> None:
    """What is kept of a run for its resume is gone once the run completes."""
    trial = Trial(how)
    saver = InMemorySaver()
    graph = one_node(trial.quick("bad")).compile(saver, deadline=30)
    trial.drive(graph, config=THREAD, deadline=60)
    assert kept_record(saver) is None


# C4: async work.


@pytest.mark.parametrize("how", ASYNC)
@modes
def test_c4_cut_async_work_is_cancelled_once(how: How, mode: Mode) -> None:
    """One `CancelledError` and no second, however long the clean-up takes."""
    trial = Trial(how)
    cancelled: list[str] = []

    async def bad(state: State) -> State:
        while True:
            try:
                await asyncio.sleep(50)
                return {"log": ["bad"]}
            except asyncio.CancelledError:
                cancelled.append("bad")

    builder = one_node(bad)
    for n in range(3):
        builder.add_node(f"bad{n}", bad)
        builder.add_edge(START, f"bad{n}")
    driven = trial.drive(trial.compile(builder, mode), linger=200)
    assert driven.report.outcome == "deadline"
    assert len(cancelled) == 4
    assert len(driven.report.stragglers) == 4


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
def test_c4_async_work_in_a_subgraph_is_cancelled_once(how: How, factory: Any) -> None:
    """Every level of nesting may cut, the node inside is told once."""
    trial = Trial(how)
    cancelled: list[float] = []

    async def bad(state: State) -> State:
        while True:
            try:
                await asyncio.sleep(50)
                return {"log": ["bad"]}
            except asyncio.CancelledError:
                cancelled.append(remaining())

    graph: Any = None
    for _ in range(3):
        level = factory(State)
        level.add_node("inner", graph if graph is not None else bad)
        level.add_edge(START, "inner")
        graph = level.compile()
    builder = one_node(graph)
    driven = trial.drive(trial.compile(builder, "fallback"), linger=200)
    assert driven.values["log"] == ["degrade"]
    assert len(cancelled) == 1
    assert cancelled[0] < 0


@pytest.mark.parametrize("how", ASYNC)
@modes
def test_c4_cut_async_work_is_joined(how: How, mode: Mode) -> None:
    """Clean-up that fits the grace is over before anything else goes on."""
    trial = Trial(how)
    seen: list[str] = []

    async def bad(state: State) -> State:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
            seen.append("cleaned up")
        return {}

    graph = trial.compile(one_node(bad), mode)
    driven = trial.drive(graph, linger=0.0)
    trial.at_cut(driven, mode, 0.2)
    assert seen == ["cleaned up"]
    assert driven.report.stragglers == []


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("grace", [0.0, 0.5, 2.0])
def test_c4_cut_async_work_is_given_up_after_the_grace(how: How, grace: float) -> None:
    """`cancel_grace` is what resisting work is waited for, no more and no less."""
    trial = Trial(how)

    async def bad(state: State) -> State:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(5)
        return {}

    policy = DeadlinePolicy(seconds=trial.budget, cancel_grace=grace)
    driven = trial.drive(one_node(bad).compile(deadline=policy))
    trial.at_budget(driven, late=grace)
    assert type(driven.error) is DeadlineExceeded
    (straggler,) = driven.report.stragglers
    assert straggler.name == "bad"
    assert straggler.overrun == pytest.approx(5.0)
    assert not straggler.running


@pytest.mark.parametrize("how", ASYNC)
def test_c4_all_that_resist_are_waited_for_together(how: How) -> None:
    """Fifty nodes with slow clean-up cost one grace, not fifty."""
    trial = Trial(how)

    async def bad(state: State) -> State:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(5)
        return {}

    builder = one_node(bad)
    for n in range(49):
        builder.add_node(f"bad{n}", bad)
        builder.add_edge(START, f"bad{n}")
    driven = trial.drive(trial.compile(builder, "fallback"))
    trial.at_work(driven, GRACE)
    assert driven.values["log"] == ["degrade"]
    assert len(driven.report.stragglers) == 50


# C4: nothing starts.


@pytest.mark.parametrize("how", ALL)
@modes
def test_c4_no_retry_starts_after_the_cut(how: How, mode: Mode) -> None:
    """Work that fails for being cut, or while it is, is not tried again."""
    trial = Trial(how)

    def bad(state: State) -> State:
        trial.started.append("bad")
        trial.released.wait(3)
        msg = "again"
        raise ConnectionError(msg)

    async def abad(state: State) -> State:
        trial.started.append("bad")
        try:
            await asyncio.sleep(3600)
        finally:
            msg = "again"
            raise ConnectionError(msg)

    policy = RetryPolicy(
        initial_interval=0.001, jitter=False, max_attempts=9, retry_on=Exception
    )
    node = bad if how in SYNC else abad
    builder = one_node(node, retry_policy=policy)
    driven = trial.drive(trial.compile(builder, mode))
    if how in SYNC:
        time.sleep(0.1)
    assert driven.report.outcome == "deadline"
    assert trial.started.count("bad") == 1


@pytest.mark.parametrize("how", ALL)
def test_c4_retries_share_one_deadline(how: How) -> None:
    """Attempts that time out one after the other are stopped by the run's deadline."""
    trial = Trial(how, seconds=0.5)
    nap = trial.work * 0.2

    def bad(state: State) -> State:
        trial.started.append("bad")
        time.sleep(nap)
        msg = "again"
        raise ConnectionError(msg)

    async def abad(state: State) -> State:
        trial.started.append("bad")
        await asyncio.sleep(nap)
        msg = "again"
        raise ConnectionError(msg)

    policy = RetryPolicy(initial_interval=0.001, jitter=False, max_attempts=99)
    node = bad if how in SYNC else abad
    builder = one_node(node, retry_policy=policy)
    driven = trial.drive(trial.compile(builder, "fallback"))
    assert driven.error is None
    assert driven.values["log"] == ["degrade"]
    assert 2 <= trial.started.count("bad") <= 6
    assert driven.elapsed <= trial.work + (0.6 if trial.real else 0.0)


class Typist(BaseChatModel):
    """A model that types a letter every `gap` seconds, until somebody stops it."""

    gap: float = 0.05
    letters: int = 40
    typed: list[str] = []  # noqa: RUF012 - shared with the test on purpose
    calls: list[str] = []  # noqa: RUF012

    @property
    def _llm_type(self) -> str:
        return "typist"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.calls.append("generate")
        return ChatResult(generations=[ChatGeneration(message=AIMessage("done"))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        self.calls.append("stream")
        for _ in range(self.letters):
            time.sleep(self.gap)
            self.typed.append("x")
            chunk = ChatGenerationChunk(message=AIMessageChunk("x"))
            if run_manager is not None:
                run_manager.on_llm_new_token("x", chunk=chunk)
            yield chunk


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_c4_a_model_stops_at_its_next_token(how: How) -> None:
    """A sync node that was cut in a streaming model types one more letter at most."""
    trial = Trial(how, realtime=True)
    model = Typist(typed=[], calls=[])
    ended = threading.Event()

    def bad(state: State) -> State:
        try:
            for _ in model.stream("type"):
                pass
        finally:
            ended.set()
        return {"log": ["bad"]}

    builder = one_node(bad)
    counted: list[int] = []

    def degrade(state: State) -> State:
        counted.append(len(model.typed))
        return {"log": ["degrade"]}

    graph = builder.compile(deadline=trial.reserved, fallback=degrade)
    driven = trial.drive(graph)
    assert driven.values["log"] == ["degrade"]
    assert ended.wait(1)
    assert counted[0] <= len(model.typed) <= counted[0] + 1
    assert counted[0] < model.letters


def chain(seen: list[str]) -> Any:
    return RunnableLambda(lambda value: seen.append("chain")).invoke("x")


def model_call(seen: list[str]) -> Any:
    model = Typist(typed=[], calls=seen)
    return model.invoke("x")


def model_stream(seen: list[str]) -> Any:
    model = Typist(typed=[], calls=seen)
    return next(model.stream("x"))


def tool_call(seen: list[str]) -> Any:
    @tool
    def act(x: str) -> str:
        """Act."""
        seen.append("tool")
        return x

    return act.invoke({"x": "x"})


class Library(BaseRetriever):
    seen: list[str]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
        self.seen.append("retriever")
        return []


def retrieval(seen: list[str]) -> Any:
    return Library(seen=seen).invoke("x")


def subgraph(seen: list[str]) -> Any:
    builder = PlainStateGraph(State)
    builder.add_node("inner", lambda state: seen.append("graph"))
    builder.add_edge(START, "inner")
    return builder.compile().invoke({"log": []})


def own_subgraph(seen: list[str]) -> Any:
    builder = StateGraph(State)
    builder.add_node("inner", lambda state: seen.append("graph"))
    builder.add_edge(START, "inner")
    return builder.compile().invoke({"log": []})


def own_subgraph_with_time(seen: list[str]) -> Any:
    builder = StateGraph(State)
    builder.add_node("inner", lambda state: seen.append("graph"))
    builder.add_edge(START, "inner")
    return builder.compile(deadline=60).invoke({"log": []})


EVENTS: list[Callable[[list[str]], Any]] = [
    chain,
    model_call,
    model_stream,
    tool_call,
    retrieval,
    subgraph,
    own_subgraph,
    own_subgraph_with_time,
]


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
@pytest.mark.parametrize("event", EVENTS)
def test_c4_a_sync_straggler_starts_nothing(
    how: How, event: Callable[[list[str]], Any]
) -> None:
    """A thread that was given up stops itself at its next LangChain event."""
    trial = Trial(how, realtime=True, seconds=0.2)
    seen: list[str] = []
    ended: list[Any] = []
    finished = threading.Event()

    def bad(state: State) -> State:
        trial.released.wait(3)
        try:
            event(seen)
            ended.append("went on")
        except DeadlineExceeded as error:
            ended.append(error)
        finally:
            finished.set()
        return {"log": ["bad"]}

    driven = trial.drive(trial.compile(one_node(bad), "fallback"))
    assert driven.values["log"] == ["degrade"]
    assert finished.wait(2)
    assert seen == []
    if event not in (own_subgraph, own_subgraph_with_time):
        # A graph of ours may end with the state it has, here: none.
        assert isinstance(ended[0], DeadlineExceeded)


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("event", ["chain", "model", "tool", "graph", "own graph"])
def test_c4_an_async_straggler_starts_nothing(how: How, event: str) -> None:
    """A coroutine that swallows its cut cannot start model, tool, chain or graph."""
    trial = Trial(how)
    seen: list[str] = []
    errors: list[BaseException] = []

    @tool
    async def act(x: str) -> str:
        """Act."""
        seen.append("tool")
        return x

    inner = (StateGraph if event == "own graph" else PlainStateGraph)(State)

    async def node(state: State) -> State:
        seen.append("graph")
        return {}

    inner.add_node("inner", node)
    inner.add_edge(START, "inner")
    graph = inner.compile()

    async def start() -> Any:
        if event == "chain":
            return await RunnableLambda(lambda _: seen.append("chain")).ainvoke("x")
        if event == "model":
            return await Typist(typed=[], calls=seen).ainvoke("x")
        if event == "tool":
            return await act.ainvoke({"x": "x"})
        return await graph.ainvoke({"log": []})

    async def bad(state: State) -> State:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(20)
        try:
            await start()
        except DeadlineExceeded as error:
            errors.append(error)
        return {"log": ["bad"]}

    driven = trial.drive(trial.compile(one_node(bad), "fallback"))
    assert driven.values["log"] == ["degrade"]
    assert seen == []
    if "graph" not in event:  # a graph may end with the state it has, here: none
        assert len(errors) == 1


@pytest.mark.parametrize("how", ALL)
def test_c4_a_straggler_knows_that_it_was_cut(how: How) -> None:
    """In work that was cut there is no time left, and `check` says so."""
    trial = Trial(how)
    seen: list[Any] = []
    finished = threading.Event()

    def look() -> None:
        seen.append(remaining())
        try:
            check()
        except DeadlineExceeded as error:
            seen.append(error.step)
        finished.set()

    def bad(state: State) -> State:
        trial.released.wait(3)
        look()
        return {}

    async def abad(state: State) -> State:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(20)
        look()
        return {}

    node = bad if how in SYNC else abad
    trial.drive(trial.compile(one_node(node), "fallback"))
    assert finished.wait(2)
    assert seen == [float("-inf"), "bad"]


@pytest.mark.parametrize("how", ALL)
def test_c4_an_expired_budget_starts_nothing_but_the_fallback(how: How) -> None:
    """A run whose time is up before its first node goes straight to the fallback."""
    trial = Trial(how)
    builder = StateGraph(State)
    for name in ("one", "two", "degrade"):
        builder.add_node(name, trial.quick(name))
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    policy = DeadlinePolicy(seconds=5.0, reserve=5.0 - 1e-9)
    driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
    assert driven.error is None
    assert driven.values["log"] == ["degrade"]
    assert trial.started == ["degrade"]
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_c4_an_otherwise_does_not_start_after_the_runs_own_cut(how: How) -> None:
    """A step's substitute is for the step's limit, not for the end of the run."""
    trial = Trial(how)

    def otherwise(state: State) -> State:
        trial.started.append("otherwise")
        return {"log": ["otherwise"]}

    budget = StepBudget(seconds=trial.budget * 50, otherwise=otherwise)
    policy = trial.reserved.model_copy(update={"steps": {"bad": budget}})
    builder = one_node(trial.hang("bad"))
    builder.add_node("degrade", trial.quick("degrade"))
    driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
    trial.at_work(driven)
    assert driven.values["log"] == ["degrade"]
    assert "otherwise" not in trial.started
