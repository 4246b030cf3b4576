"""C9: one deadline over all attempts, and no attempt or back-off that does not fit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, How, drive, took
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    StepBudget,
    check,
    fail_after,
    remaining,
)


class State(TypedDict, total=False):
    log: str


class FlakyError(ConnectionError):
    """What LangGraph's default policy retries."""


def node_for(how: How, body: Callable[[int], float]) -> tuple[Any, list[float]]:
    """Return a node that fails after what `body(attempt)` says, and its attempts.

    A negative duration is a success after that long. Attempts are noted with the
    seconds left at their start.
    """
    attempts: list[float] = []

    def begin() -> float:
        attempts.append(remaining())
        return body(len(attempts))

    def end(seconds: float) -> dict[str, str]:
        if seconds >= 0:
            raise FlakyError
        return {"log": f"attempt {len(attempts)}"}

    if how in SYNC:

        def node(state: State) -> dict[str, str]:
            seconds = begin()
            time.sleep(abs(seconds))
            return end(seconds)

        return node, attempts

    async def anode(state: State) -> dict[str, str]:
        seconds = begin()
        await asyncio.sleep(abs(seconds))
        return end(seconds)

    return anode, attempts


def one(node: Any, retry: Any, **options: Any) -> Any:
    """Return a graph whose only node `work` is retried as `retry` says."""
    builder = StateGraph(State)
    builder.add_node("work", node, retry_policy=retry)
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    return builder.compile(**options)


def every(seconds: float, attempts: int = 10, **options: Any) -> RetryPolicy:
    """Return a policy with a constant back-off and no jitter."""
    return RetryPolicy(
        initial_interval=seconds,
        backoff_factor=1,
        max_attempts=attempts,
        jitter=False,
        **options,
    )


def fallback(state: State) -> dict[str, str]:
    return {"log": "fallback"}


@pytest.mark.parametrize("how", ALL)
def test_c9_a_retry_that_fits_is_made(how: How) -> None:
    """Two failures, two back-offs, and the third attempt's result."""
    node, attempts = node_for(how, lambda attempt: 0.05 if attempt < 3 else -0.05)
    driven = drive(one(node, every(0.05), deadline=3), {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": "attempt 3"}
    assert len(attempts) == 3
    assert took(driven, 0.25, how)
    assert driven.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
def test_c9_one_deadline_covers_all_attempts(how: How) -> None:
    """The budget is not started again by an attempt: each finds less than before."""
    node, attempts = node_for(how, lambda attempt: 0.08)
    driven = drive(one(node, every(0.02, 100), deadline=0.45), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed <= (0.45 + 1e-6 if how in ASYNC else 1.2)
    assert 1 < len(attempts) <= 5
    assert attempts == sorted(attempts, reverse=True)
    assert attempts[-1] < 0.45 - 0.1 * (len(attempts) - 1) + 0.01


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("with_fallback", [True, False])
def test_c9_a_back_off_that_does_not_fit_is_not_slept(
    how: How, with_fallback: bool
) -> None:
    """The run stops at the failure, not at a deadline it is sure to miss."""
    node, attempts = node_for(how, lambda attempt: 0.1)
    options = {"fallback": fallback} if with_fallback else {}
    driven = drive(one(node, every(60), deadline=2.5, **options), {}, how, virtual=True)
    assert len(attempts) == 1
    assert took(driven, 0.1, how)
    if with_fallback:
        assert driven.error is None
        assert driven.values == {"log": "fallback"}
    else:
        assert isinstance(driven.error, DeadlineExceeded)
        assert driven.error.step == "work"
        assert isinstance(driven.error.__cause__, FlakyError)
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_c9_a_back_off_into_the_reserve_is_not_slept(how: How) -> None:
    """What counts is the work deadline: the reserve is not for attempts."""
    node, attempts = node_for(how, lambda attempt: 0.1)
    policy = DeadlinePolicy(seconds=2, reserve=0.5)
    driven = drive(
        one(node, every(1), deadline=policy, fallback=fallback), {}, how, virtual=True
    )
    assert len(attempts) == 1
    assert driven.values == {"log": "fallback"}
    assert took(driven, 0.1, how)


@pytest.mark.parametrize("how", ALL)
def test_c9_a_growing_back_off_stops_where_it_no_longer_fits(how: How) -> None:
    """The back-offs that fit are slept, the first that does not is not."""
    node, attempts = node_for(how, lambda attempt: 0.0)
    retry = RetryPolicy(
        initial_interval=0.1, backoff_factor=10, max_attempts=9, jitter=False
    )
    driven = drive(one(node, retry, deadline=1), {}, how, virtual=True)
    assert len(attempts) == 2
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.1, how)


@pytest.mark.parametrize("how", ALL)
def test_c9_a_last_attempt_raises_its_own_error(how: How) -> None:
    """With no attempt left nothing had to be stopped: the node's error goes up."""
    node, attempts = node_for(how, lambda attempt: 0.0)
    driven = drive(one(node, every(0.05, 3), deadline=3), {}, how, virtual=True)
    assert isinstance(driven.error, FlakyError)
    assert len(attempts) == 3
    assert driven.report.outcome == "error"


@pytest.mark.parametrize("how", ALL)
def test_c9_an_error_that_is_not_retried_goes_up_at_once(how: How) -> None:
    """A policy that does not match is no reason to look at the deadline."""
    node, attempts = node_for(how, lambda attempt: 0.0)
    retry = every(60, retry_on=KeyError)
    driven = drive(one(node, retry, deadline=1), {}, how, virtual=True)
    assert isinstance(driven.error, FlakyError)
    assert len(attempts) == 1


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    "retry",
    [
        RetryPolicy(initial_interval=0.01, max_attempts=50, jitter=False),
        every(0.01, 50, retry_on=Exception),
        every(0.01, 50, retry_on=BaseException),
        every(0.01, 50, retry_on=lambda error: True),
        (every(0.01, retry_on=ValueError), every(0.01, 50, retry_on=TimeoutError)),
    ],
    ids=["default", "Exception", "BaseException", "callable", "TimeoutError"],
)
def test_c9_the_cut_of_a_run_is_not_retried(how: How, retry: Any) -> None:
    """A node that hangs is tried once, whatever its policy retries."""
    node, attempts = node_for(how, lambda attempt: 2)
    driven = drive(one(node, retry, deadline=0.3), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.3, how)
    assert len(attempts) == 1


@pytest.mark.parametrize("how", ALL)
def test_c9_deadline_exceeded_is_left_alone_by_the_default_policy(how: How) -> None:
    """A limit inside a node is an error like any other, but not one to try again."""
    attempts: list[int] = []

    def work(state: State) -> None:
        attempts.append(1)
        raise DeadlineExceeded(cause="step", step="lookup", budget=0.1)

    async def awork(state: State) -> None:
        work(state)

    graph = one(work if how in SYNC else awork, RetryPolicy(), deadline=30)
    driven = drive(graph, {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.step == "lookup"
    assert len(attempts) == 1


@pytest.mark.parametrize("how", ALL)
def test_c9_a_window_that_is_not_there_is_not_retried(how: How) -> None:
    """A node that finds by itself that it has too little time is not asked again."""
    attempts: list[int] = []

    def work(state: State) -> None:
        attempts.append(1)
        time.sleep(0.15)
        check(needs=0.2)

    async def awork(state: State) -> None:
        attempts.append(1)
        await asyncio.sleep(0.15)
        check(needs=0.2)

    graph = one(work if how in SYNC else awork, every(0.01, 20), deadline=0.3)
    driven = drive(graph, {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "window"
    assert len(attempts) == 1


def test_c9_a_block_of_the_nodes_own_may_be_retried_on_request() -> None:
    """An overrun of `fail_after` inside an attempt is the node's, with time left."""
    attempts: list[int] = []

    async def work(state: State) -> dict[str, str]:
        attempts.append(1)
        with fail_after(1):
            await asyncio.sleep(60 if len(attempts) < 3 else 0)
        return {"log": "third time"}

    graph = one(work, every(1, retry_on=TimeoutError), deadline=30)
    driven = drive(graph, {}, "ainvoke", virtual=True)
    assert driven.values == {"log": "third time"}
    assert driven.elapsed == pytest.approx(4)


@pytest.mark.parametrize("how", ALL)
def test_c9_attempts_stop_after_the_cut(how: How) -> None:
    """A node that turns its cut into an error of its own is not tried again."""
    attempts: list[int] = []

    def work(state: State) -> None:
        attempts.append(1)
        time.sleep(0.6)
        raise FlakyError

    async def awork(state: State) -> None:
        attempts.append(1)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise FlakyError from None

    node = work if how in SYNC else awork
    graph = one(node, every(0.01, 50), deadline=0.2)
    driven = drive(graph, {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.2, how)
    if how in SYNC:
        time.sleep(0.8)  # the straggler has raised by now
    assert len(attempts) == 1


@pytest.mark.parametrize("how", ALL)
def test_c9_attempts_are_counted_up(how: How) -> None:
    """`node_attempt` says which attempt it is, as without a deadline."""
    seen: list[int] = []

    def work(state: State, runtime: Runtime[None]) -> dict[str, str]:
        assert runtime.execution_info is not None
        seen.append(runtime.execution_info.node_attempt)
        if len(seen) < 4:
            raise FlakyError
        return {"log": "done"}

    async def awork(state: State, runtime: Runtime[None]) -> dict[str, str]:
        return work(state, runtime)

    node = work if how in SYNC else awork
    driven = drive(one(node, every(0.01), deadline=3), {}, how, virtual=True)
    assert driven.values == {"log": "done"}
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("how", ALL)
def test_c9_a_failed_attempts_writes_are_forgotten(how: How) -> None:
    """Only the attempt that succeeds writes to the state, once."""
    node, _ = node_for(how, lambda attempt: 0.0 if attempt < 3 else -0.01)
    graph = one(node, every(0.01), deadline=3, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    driven = drive(graph, {"log": "in"}, how, config, virtual=True)
    assert driven.values == {"log": "attempt 3"}
    if how in ("stream", "astream"):
        assert driven.updates == [{"work": {"log": "attempt 3"}}]
    values = [s.values for s in graph.get_state_history(config)]
    assert values == [{"log": "attempt 3"}, {"log": "in"}, {}]


@pytest.mark.parametrize("how", ALL)
def test_c9_a_steps_seconds_cover_all_its_attempts(how: How) -> None:
    """A step's own budget is not for each attempt: together they have it once."""
    node, attempts = node_for(how, lambda attempt: 0.1)
    policy = DeadlinePolicy(
        seconds=10,
        steps={"work": StepBudget(seconds=0.5, otherwise={"log": "otherwise"})},
    )
    driven = drive(one(node, every(0.1), deadline=policy), {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": "otherwise"}
    assert 1 < len(attempts) <= 3
    assert driven.elapsed <= (0.5 + 1e-6 if how in ASYNC else 1.3)
    assert driven.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
def test_c9_a_back_off_longer_than_the_steps_rest_goes_on_at_once(how: How) -> None:
    """The step's answer for the case of an overrun comes at the failure."""
    node, attempts = node_for(how, lambda attempt: 0.1)
    policy = DeadlinePolicy(
        seconds=100,
        steps={"work": StepBudget(seconds=2, otherwise={"log": "otherwise"})},
    )
    driven = drive(one(node, every(60), deadline=policy), {}, how, virtual=True)
    assert driven.values == {"log": "otherwise"}
    assert len(attempts) == 1
    assert took(driven, 0.1, how)


@pytest.mark.parametrize("how", ALL)
def test_c9_an_attempt_needs_the_steps_window(how: How) -> None:
    """No further attempt where less than the minimum window would be left."""
    node, attempts = node_for(how, lambda attempt: 0.1)
    policy = DeadlinePolicy(
        seconds=1, steps={"work": StepBudget(needs=0.85, otherwise={"log": "no"})}
    )
    driven = drive(one(node, every(0.1), deadline=policy), {}, how, virtual=True)
    assert driven.values == {"log": "no"}
    assert len(attempts) == 1
    assert took(driven, 0.1, how)


@pytest.mark.parametrize("how", ALL)
def test_c9_the_graphs_own_policy_is_bounded_too(how: How) -> None:
    """Policies set for all nodes at once are those of the nodes."""
    node, attempts = node_for(how, lambda attempt: 0.1)
    builder = StateGraph(State)
    builder.set_node_defaults(retry_policy=every(60))
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    driven = drive(builder.compile(deadline=2), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert len(attempts) == 1
    assert took(driven, 0.1, how)


@pytest.mark.parametrize("how", ALL)
def test_c9_an_error_handler_gets_what_no_attempt_has_time_for(how: How) -> None:
    """A retry that does not fit is the step's failure, which its handler may answer."""
    node, attempts = node_for(how, lambda attempt: 0.1)

    def handler(state: State) -> dict[str, str]:
        return {"log": "handled"}

    builder = StateGraph(State)
    builder.add_node("work", node, retry_policy=every(60), error_handler=handler)
    builder.add_edge(START, "work")
    driven = drive(builder.compile(deadline=2.5), {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": "handled"}
    assert len(attempts) == 1
    assert took(driven, 0.1, how)


@pytest.mark.parametrize("how", ASYNC)
def test_c9_parallel_retries_share_the_deadline(how: How) -> None:
    """Three nodes that fail for ever stop together; one that succeeds is kept."""
    builder = StateGraph(State)
    counts: list[list[float]] = []
    for name in "abc":
        node, attempts = node_for(how, lambda attempt: 0.2)
        counts.append(attempts)
        builder.add_node(name, node, retry_policy=every(0.3, 1000))
        builder.add_edge(START, name)

    async def good(state: State) -> dict[str, str]:
        return {"log": "kept"}

    def last(state: State) -> dict[str, str]:
        return {"log": state["log"] + " by fallback"}

    builder.add_node("good", good)
    builder.add_edge(START, "good")
    graph = builder.compile(
        deadline=DeadlinePolicy(seconds=5, reserve=1), fallback=last
    )
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values == {"log": "kept by fallback"}
    assert driven.elapsed <= 4 + 1e-6
    assert {len(attempts) for attempts in counts} == {8}


@pytest.mark.parametrize("how", ASYNC)
def test_c9_a_subgraphs_retries_have_the_outer_deadline(how: How) -> None:
    """A back-off in a subgraph that would pass the run's deadline is not slept."""
    node, attempts = node_for(how, lambda attempt: 1)
    inner = StateGraph(State)
    inner.add_node("work", node, retry_policy=every(60))
    inner.add_edge(START, "work")
    builder = StateGraph(State)
    builder.add_node("inner", inner.compile())
    builder.add_edge(START, "inner")
    graph = builder.compile(deadline=10, fallback=fallback)
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values == {"log": "fallback"}
    assert len(attempts) == 1
    assert driven.elapsed == pytest.approx(1)


@pytest.mark.parametrize("how", ASYNC)
def test_c9_jitter_does_not_carry_a_back_off_over_the_deadline(how: How) -> None:
    """A random part of the back-off counts as well."""
    for _ in range(20):
        node, _ = node_for(how, lambda attempt: 0.5)
        retry = RetryPolicy(initial_interval=0.25, max_attempts=20)
        driven = drive(one(node, retry, deadline=2), {}, how, virtual=True)
        assert isinstance(driven.error, DeadlineExceeded)
        assert driven.elapsed <= 2 + 1e-6


@pytest.mark.parametrize("how", ALL)
def test_c9_a_resume_after_stopped_retries_begins_at_the_first_attempt(
    how: How,
) -> None:
    """Under `"raise"` the node that ran out of attempts' time is run again."""
    node, attempts = node_for(how, lambda attempt: 0.1 if attempt < 2 else -0.1)
    saver = InMemorySaver()
    graph = one(node, every(60), deadline=2, checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    driven = drive(graph, {"log": "in"}, how, config, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    driven = drive(graph, None, how, config, virtual=True)
    assert driven.values == {"log": "attempt 2"}
    assert len(attempts) == 2


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("mode", ["raise", "return"])
def test_c8_a_retry_that_does_not_fit_leaves_no_tool_call_open(
    how: How, mode: Any
) -> None:
    """The run was cut by it: the thread's next input finds every call answered."""

    @tool
    def flaky(x: int) -> str:
        """Fail."""
        msg = "not now"
        raise ConnectionError(msg)

    def ask(state: MessagesState) -> Any:
        if isinstance(state["messages"][-1], HumanMessage) and not tried:
            tried.append(1)
            call = {"name": "flaky", "args": {"x": 1}, "id": "1"}
            return {"messages": [AIMessage("", tool_calls=[call])]}  # type: ignore[list-item]
        return {"messages": [AIMessage("done")]}

    tried: list[int] = []
    builder = StateGraph(MessagesState)
    builder.add_node("ask", ask)
    retry = RetryPolicy(max_attempts=5, initial_interval=50, jitter=False)
    tools = ToolNode([flaky], handle_tool_errors=False)
    builder.add_node("tools", tools, retry_policy=retry)
    builder.add_edge(START, "ask")
    builder.add_conditional_edges("ask", tools_condition)
    builder.add_edge("tools", "ask")
    policy = DeadlinePolicy(seconds=20, on_exceeded=mode)
    graph = builder.compile(deadline=policy, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    first = drive(graph, {"messages": [HumanMessage("a")]}, how, config)
    assert first.report.outcome == "deadline"
    if mode == "raise":
        assert isinstance(first.error, DeadlineExceeded)
        assert isinstance(first.error.__cause__, ConnectionError)
    second = drive(graph, {"messages": [HumanMessage("b")]}, how, config)
    assert second.error is None
    kinds = [type(message).__name__ for message in second.values["messages"]]
    assert kinds == [
        "HumanMessage",
        "AIMessage",
        "ToolMessage",
        "HumanMessage",
        "AIMessage",
    ]
