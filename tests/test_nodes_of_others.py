"""Nodes that are no plain functions: sequences, Runnables, and those of bare Pregel."""

from __future__ import annotations

from typing import Any

import pytest
from harness import ALL, How, State, Trial, drive
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.channels import LastValue
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.pregel import NodeBuilder, Pregel

from langgraph_deadline import DeadlineExceeded, StateGraph, with_deadline


class Shout(Runnable[Any, Any]):
    """A Runnable with sync code alone."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Call the body."""
        return self.body(input)


def ends(value: Any) -> Any:
    """Return the update of a node from what the parts before have made."""
    return {"log": [str(value)]}


def reads(state: Any) -> str:
    """Return what was logged so far."""
    return "+".join(state["log"]) or "nothing"


def graph_of(node: Any, factory: Any = StateGraph) -> Any:
    """Return a builder with the node `work`."""
    builder = factory(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    return builder


SEQUENCE = RunnableLambda(reads) | RunnableLambda(str.upper) | RunnableLambda(ends)
KINDS = {
    "sequence": SEQUENCE,
    "sequence of others": Shout(reads) | RunnableLambda(str.upper) | Shout(ends),
    "runnable": Shout(lambda state: ends(reads(state).upper())),
}


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_c11_a_node_of_any_kind_does_the_same(kind: str, how: How) -> None:
    """With a deadline, with the time for it, as in plain LangGraph."""
    plain = graph_of(KINDS[kind], PlainStateGraph).compile()
    ours = graph_of(KINDS[kind]).compile(deadline=60)
    expected = plain.invoke({"log": ["a"]})
    assert expected["log"] == ["a", "A"]
    assert drive(ours, {"log": ["a"]}, how).values == expected


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("sequence", [True, False])
def test_c2_sync_code_in_a_runnable_delays_no_fallback(
    sequence: bool, how: How
) -> None:
    """In async runs as well: it gets a thread, which is given up."""
    trial = Trial(how, realtime=True)

    def blocks(state: Any) -> Any:
        trial.started.append("blocks")
        trial.released.wait(3)
        return {"log": ["late"]}

    body: Any = Shout(blocks)
    node = RunnableLambda(lambda state: state) | body if sequence else body
    graph = trial.compile(graph_of(node), "fallback")
    driven = trial.drive(graph)
    trial.took(driven, trial.work)
    assert driven.error is None
    assert driven.values["log"] == ["degrade"]
    assert trial.started == ["blocks", "degrade"]


@pytest.mark.parametrize("how", ALL)
def test_c6_a_sequence_that_was_cut_between_two_parts_has_no_result(how: How) -> None:
    """What a part returned is no state update: that is for the last one to say."""
    trial = Trial(how)
    node = RunnableLambda(lambda state: {"log": ["half"]}) | RunnableLambda(
        trial.hang("second")
    )
    graph = trial.compile(graph_of(node), "fallback")
    driven = trial.drive(graph)
    assert driven.values["log"] == ["degrade"]
    assert driven.report.outcome == "deadline"


def pregel_of(body: Any) -> Any:
    """Return a graph of Pregel itself: one node that writes, one that only looks."""
    seen: list[str] = []
    work = NodeBuilder().subscribe_only("question").do(body).write_to("answer")
    look = NodeBuilder().subscribe_only("answer").do(seen.append)
    graph = Pregel(
        nodes={"work": work, "look": look},
        channels={"question": LastValue(str), "answer": LastValue(str)},
        input_channels=["question"],
        output_channels=["answer"],
    )
    return graph, seen


@pytest.mark.parametrize("how", ALL)
def test_c11_a_graph_of_pregel_itself_does_the_same(how: How) -> None:
    """Also a node that writes to no channel."""
    graph, seen = pregel_of(str.upper)
    plain = drive(graph, {"question": "why"}, how)
    driven = drive(with_deadline(graph, 60), {"question": "why"}, how)
    assert driven.values == plain.values
    assert driven.values["answer"] == "WHY"
    assert driven.updates == plain.updates
    assert seen == ["WHY", "WHY"]


@pytest.mark.parametrize("how", ALL)
def test_c2_a_graph_of_pregel_itself_ends_on_time(how: How) -> None:
    """What it has no time for is not begun."""
    trial = Trial(how, realtime=True)

    def blocks(question: Any) -> str:
        trial.released.wait(3)
        return "late"

    graph, seen = pregel_of(blocks)
    driven = trial.drive(with_deadline(graph, trial.budget), {"question": "why"})
    trial.took(driven, trial.budget)
    assert isinstance(driven.error, DeadlineExceeded)
    assert seen == []
