"""`enforce=False`: what would have been cut is told, and nothing is changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import ALL, ASYNC, How, drive
from langgraph.graph import START
from typing_extensions import TypedDict

from langgraph_deadline import DeadlinePolicy, StateGraph, StepBudget, remaining


class State(TypedDict, total=False):
    log: str


def measuring(how: How, seen: list[float]) -> Any:
    """Return a graph whose policy would cut its second node, and does not."""

    async def first(state: State) -> State:
        seen.append(remaining())
        await asyncio.sleep(6)
        return {"log": "first"}

    async def second(state: State) -> State:
        await asyncio.sleep(6)
        return {"log": "second"}

    builder = StateGraph(State)
    builder.add_sequence([first, second])
    builder.add_node("degrade", lambda state: {"log": "degraded"})
    builder.add_edge(START, "first")
    policy = DeadlinePolicy(
        seconds=10, enforce=False, steps={"first": StepBudget(seconds=5)}
    )
    return builder.compile(deadline=policy, fallback="degrade")


@pytest.mark.parametrize("how", ASYNC)
def test_measuring_changes_nothing_and_tells_what_would_have_been_cut(how: How) -> None:
    """The run takes its time; its report names the causes of the steps."""
    seen: list[float] = []
    driven = drive(measuring(how, seen), {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": "second"}
    assert driven.elapsed == pytest.approx(12)
    assert seen == [float("inf")]
    assert driven.report.outcome == "completed"
    causes = {step.name: step.cause for step in driven.report.steps}
    assert causes == {"first": "step", "second": "deadline"}


@pytest.mark.parametrize("how", ALL)
def test_measuring_a_run_that_is_in_time_has_nothing_to_tell(how: How) -> None:
    """A step that would not have been cut has no cause."""

    def node(state: State) -> State:
        return {"log": "done"}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    policy = DeadlinePolicy(seconds=60, enforce=False)
    driven = drive(builder.compile(deadline=policy), {}, how)
    assert driven.values == {"log": "done"}
    assert [(step.name, step.cause) for step in driven.report.steps] == [("node", None)]
