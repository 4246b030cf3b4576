"""The one exception: what, where, by how much, and what to do."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import time
from typing import Any, TypedDict, get_args

import pytest
from harness import ALL, How, drive, napper
from hypothesis import given
from hypothesis import strategies as st
from langgraph.errors import GraphBubbleUp
from langgraph.graph import START
from langgraph.types import RetryPolicy, default_retry_on

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    StepBudget,
    fail_after,
)
from langgraph_deadline.errors import Cause, RunCut, plain

CAUSES: tuple[Cause, ...] = get_args(Cause)
ATTRIBUTES = ("cause", "step", "budget", "elapsed", "remaining", "needed")

seconds = st.none() | st.floats(-1e6, 1e6)
errors = st.builds(
    DeadlineExceeded,
    cause=st.sampled_from(CAUSES),
    step=st.none() | st.sampled_from(["retrieve", "plan"]),
    budget=seconds,
    elapsed=seconds,
    remaining=seconds | st.just(float("-inf")),
    needed=seconds,
)


class State(TypedDict, total=False):
    log: str


def one(node: Any, **options: Any) -> Any:
    """Return a graph of one node called `work`."""
    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    return builder.compile(**options)


# What it says.


@given(errors)
def test_a_message_is_for_people_whatever_is_known(error: DeadlineExceeded) -> None:
    """Never empty, never a raw `None`, `inf`, `1.8e+03` or seventeen digits."""
    text = str(error)
    assert text
    for raw in ("None", "inf", "nan"):
        assert not re.search(rf"\b{raw}\b", text), text
    assert not re.search(r"\d\.0*[1-9]\d{3,}", text), text
    assert "e+" not in text, text
    if error.step is not None:
        assert repr(error.step) in text


@given(errors)
def test_a_message_says_what_to_do(error: DeadlineExceeded) -> None:
    """Its last sentence is advice."""
    assert re.search(r"\. (Raise|Lower|Give) ", str(error))


@pytest.mark.parametrize(
    ("known", "parts"),
    [
        (
            {"step": "plan", "budget": 2, "elapsed": 2.5},
            ["the run", "2 s", "'plan'", "2.5 s", "0.5 s late"],
        ),
        (
            {"cause": "step", "step": "plan", "budget": 2, "elapsed": 2.5},
            ["step 'plan'", "its own limit", "2 s", "0.5 s late", "otherwise"],
        ),
        (
            {"cause": "window", "step": "plan", "needed": 3, "remaining": 1.5},
            ["step 'plan'", "not started", "3 s", "1.5 s", "needs"],
        ),
        ({"cause": "cancelled", "elapsed": 2}, ["the run", "cancelled", "2 s"]),
        ({"cause": "tokens"}, ["the run", "limit of tokens", "Limits"]),
    ],
)
def test_a_message_says_what_where_and_by_how_much(
    known: dict[str, Any], parts: list[str]
) -> None:
    """For every cause in its own words."""
    text = str(DeadlineExceeded(**known))
    for part in parts:
        assert part in text


def test_a_message_of_ones_own_is_kept() -> None:
    """And the attributes are there all the same."""
    error = DeadlineExceeded("too late", cause="step", step="plan", budget=2)
    assert str(error) == "too late"
    assert (error.cause, error.step, error.budget) == ("step", "plan", 2)


# What it is.


@given(errors)
def test_an_error_survives_pickling_and_copying(error: DeadlineExceeded) -> None:
    """With every attribute, so that it can cross processes."""
    for copied in (
        pickle.loads(pickle.dumps(error)),  # noqa: S301, RUF100
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(copied) is DeadlineExceeded
        assert str(copied) == str(error)
        for name in ATTRIBUTES:
            assert getattr(copied, name) == getattr(error, name)


def test_an_error_of_a_block_can_be_pickled() -> None:
    """Though it knows the block, which cannot."""

    async def main() -> DeadlineExceeded:
        with pytest.raises(DeadlineExceeded) as caught, fail_after(0.01):
            await asyncio.sleep(1)
        return caught.value

    error = asyncio.run(main())
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301, RUF100


def test_c9_langgraphs_default_policy_does_not_retry_it() -> None:
    """It is a `TimeoutError`, an `OSError`; the policy says no to both forms."""
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert not default_retry_on(DeadlineExceeded())
    assert not default_retry_on(RunCut())
    assert isinstance(RunCut(), GraphBubbleUp)


@given(errors)
def test_plain_keeps_everything_but_the_kind(error: DeadlineExceeded) -> None:
    """What leaves a run is no `GraphBubbleUp`, which the caller's graph would obey."""
    cut = RunCut(str(error), **{name: getattr(error, name) for name in ATTRIBUTES})
    cut.scope = scope = object()
    left = plain(cut)
    assert type(left) is DeadlineExceeded
    assert not isinstance(left, GraphBubbleUp)
    assert str(left) == str(error)
    assert left.scope is scope
    for name in ATTRIBUTES:
        assert getattr(left, name) == getattr(error, name)
    assert plain(error) is error


# As a caller of a run gets it.


@pytest.mark.parametrize("how", ALL)
def test_the_error_of_a_run_says_where_and_by_how_much(how: How) -> None:
    """The step that was at work, the budget, the time that it took."""
    driven = drive(one(napper(how, 2), deadline=0.3), {}, how, virtual=True)
    error = driven.error
    assert type(error) is DeadlineExceeded
    assert (error.cause, error.step) == ("deadline", "work")
    assert error.budget == pytest.approx(0.3)
    assert error.elapsed is not None
    assert 0.3 - 1e-3 <= error.elapsed < 1.2
    assert "limit" in str(error) or "deadline of 0.3 s" in str(error)
    assert "'work'" in str(error)


@pytest.mark.parametrize("how", ALL)
def test_the_error_of_a_steps_own_limit_names_the_step(how: How) -> None:
    """With the step's budget, not the run's."""
    policy = DeadlinePolicy(seconds=5, steps={"work": StepBudget(seconds=0.3)})
    driven = drive(one(napper(how, 2), deadline=policy), {}, how, virtual=True)
    error = driven.error
    assert type(error) is DeadlineExceeded
    assert (error.cause, error.step) == ("step", "work")
    assert error.budget == pytest.approx(0.3)
    assert "its own limit of 0.3 s" in str(error)


@pytest.mark.parametrize("how", ALL)
def test_the_error_of_a_window_says_what_was_needed(how: How) -> None:
    """And what there was; the node never ran."""
    ran: list[int] = []
    policy = DeadlinePolicy(seconds=0.5, steps={"work": StepBudget(needs=20)})
    graph = one(lambda state: ran.append(1), deadline=policy)
    driven = drive(graph, {}, how)
    error = driven.error
    assert type(error) is DeadlineExceeded
    assert (error.cause, error.step, error.needed) == ("window", "work", 20)
    assert error.remaining is not None
    assert 0 < error.remaining <= 0.5
    assert "it needs 20 s" in str(error)
    assert ran == []


@pytest.mark.parametrize("how", ALL)
def test_c9_the_error_of_a_run_is_not_retried_by_the_caller_of_it(how: How) -> None:
    """A graph called in a node with retries: one attempt, and the error is plain."""
    attempts: list[int] = []
    inner = one(napper(how, 2), deadline=0.2)

    if how in ("invoke", "stream"):

        def call(state: State) -> Any:
            attempts.append(1)
            return inner.invoke({})

        node: Any = call
    else:

        async def acall(state: State) -> Any:
            attempts.append(1)
            return await inner.ainvoke({})

        node = acall
    builder = StateGraph(State)
    builder.add_node("call", node, retry_policy=RetryPolicy(max_attempts=3))
    builder.add_edge(START, "call")
    driven = drive(builder.compile(deadline=5), {}, how, virtual=True)
    assert type(driven.error) is DeadlineExceeded
    assert attempts == [1]


@pytest.mark.parametrize("how", ALL)
def test_the_error_of_a_run_leads_to_no_foreign_traceback(how: How) -> None:
    """It has no cause or context that only the machinery can explain."""
    driven = drive(one(napper(how, 2), deadline=0.2), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    shown: BaseException | None = driven.error
    while shown is not None:
        assert not isinstance(shown, RunCut)
        shown = shown.__cause__ or (
            None if shown.__suppress_context__ else shown.__context__
        )


@pytest.mark.realtime
def test_an_error_is_raised_afresh_for_every_caller() -> None:
    """Two runs, two errors: nothing of one is on the other."""
    graph = one(lambda state: time.sleep(0.5), deadline=0.1)
    first, second = (drive(graph, {}, "invoke").error for _ in range(2))
    assert first is not second
    assert isinstance(first, DeadlineExceeded)
