"""Faults that users put in place of their nodes."""

from __future__ import annotations

import asyncio
import operator
import time
from typing import Annotated, Any, TypedDict

import pytest
from harness import ALL, How, drive, took
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.graph import START
from langgraph.graph import StateGraph as LangGraphStateGraph

from langgraph_deadline import (
    DeadlinePolicy,
    StateGraph,
    StepBudget,
    agent_fallback,
    collect_runs,
    with_deadline,
)
from langgraph_deadline.faults import blocks, hangs, replaced, swallows_cancellation
from langgraph_deadline.testing import run_virtual


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def logs(name: str) -> Any:
    """Return a node that logs its name."""
    return lambda state: {"log": [name]}


def graph_of(graph_class: Any = StateGraph, **options: Any) -> Any:
    """Return a graph of `first` and `second`."""
    builder = graph_class(State)
    builder.add_sequence([("first", logs("first")), ("second", logs("second"))])
    builder.add_edge(START, "first")
    return builder.compile(**options)


@pytest.mark.parametrize("how", ALL)
def test_a_node_that_hangs_is_cut(how: How) -> None:
    """And the graph does what it does then."""
    sync = how in ("invoke", "stream")
    budget = DeadlinePolicy(seconds=1.5 if sync else 30, reserve=1.2 if sync else 6)
    graph = graph_of(deadline=budget, fallback=logs("degraded"))
    driven = drive(replaced(graph, second=hangs()), {}, how, virtual=True)
    assert driven.values == {"log": ["first", "degraded"]}
    assert took(driven, 0.3 if sync else 24, how)


def test_the_graph_itself_stays_as_it_was() -> None:
    """The copy has the same edges, and another body in one node."""
    graph = graph_of(deadline=30)
    replaced(graph, second=hangs())
    assert run_virtual(graph.ainvoke({})) == {"log": ["first", "second"]}


def test_a_graph_without_a_deadline_takes_faults_too() -> None:
    """LangGraph's own, with the deadline put around it afterwards or in the call."""
    plain = graph_of(LangGraphStateGraph)
    faulty = replaced(plain, second=hangs())
    assert type(faulty) is type(plain)
    bounded = with_deadline(faulty, 10, fallback=logs("degraded"))
    assert run_virtual(bounded.ainvoke({})) == {"log": ["first", "degraded"]}


def test_a_step_keeps_its_budget() -> None:
    """It is the node's name that has one."""
    budget = StepBudget(seconds=3, otherwise={"log": ["instead"]})
    graph = graph_of(deadline=DeadlinePolicy(seconds=30, steps={"first": budget}))
    with collect_runs() as runs:
        result = run_virtual(replaced(graph, first=hangs()).ainvoke({}))
    assert result == {"log": ["instead", "second"]}
    assert runs[0].elapsed == pytest.approx(3)


def test_an_agents_model_can_hang() -> None:
    """Its nodes are called `model` and `tools`."""
    model = GenericFakeChatModel(messages=iter([AIMessage("quick")]))
    agent = with_deadline(
        create_agent(model, []), 30, fallback=agent_fallback("There was no time.")
    )
    faulty = replaced(agent, model=hangs())
    result = run_virtual(faulty.ainvoke({"messages": ["A question"]}))
    assert result["messages"][-1].text == "There was no time."


def test_what_swallows_its_cancellation_is_a_straggler_without_effect() -> None:
    """Its late update is not in the state."""
    late = swallows_cancellation(100, {"log": ["late"]})
    graph = replaced(graph_of(deadline=30, fallback=logs("degraded")), first=late)

    async def main() -> Any:
        with collect_runs() as runs:
            result = await graph.ainvoke({})
        (straggler,) = runs[0].stragglers
        assert straggler.running
        await asyncio.sleep(100)
        return result, straggler

    result, straggler = run_virtual(main())
    assert result == {"log": ["degraded"]}
    assert (straggler.running, straggler.overrun) == (False, pytest.approx(76))


def test_what_blocks_the_event_loop_is_named() -> None:
    """The run is as late as the node made it."""
    graph = replaced(graph_of(deadline=30, fallback=logs("degraded")), first=blocks(26))
    with collect_runs() as runs:
        run_virtual(graph.ainvoke({}))
    (straggler,) = runs[0].stragglers
    assert straggler.name == "first"
    assert straggler.blocked_loop
    assert runs[0].elapsed == pytest.approx(26)


@pytest.mark.realtime
@pytest.mark.parametrize("fault", [blocks(0.1, {"log": ["first"]})])
def test_faults_take_real_time_where_it_is_real(fault: Any) -> None:
    """In a thread as in an event loop."""
    graph = replaced(graph_of(deadline=60), first=fault)
    began = time.monotonic()
    assert graph.invoke({}) == {"log": ["first", "second"]}
    assert asyncio.run(graph.ainvoke({})) == {"log": ["first", "second"]}
    assert time.monotonic() - began >= 0.2


@pytest.mark.realtime
def test_a_thread_can_swallow_what_it_likes() -> None:
    """There is no cancellation to swallow: it just takes as long."""
    fault = swallows_cancellation(0.1, {"log": ["first"]})
    graph = replaced(graph_of(deadline=60), first=fault)
    assert graph.invoke({}) == {"log": ["first", "second"]}


def test_a_name_that_is_no_nodes_is_refused() -> None:
    """The error says which there are."""
    with pytest.raises(ValueError, match=r"no node 'frist' .* \['first', 'second'\]"):
        replaced(graph_of(deadline=5), frist=hangs())


def test_any_body_can_stand_in_place_of_a_node() -> None:
    """A plain function, for instance, which may ask for its config."""

    async def instead(state: State) -> State:
        return {"log": ["instead"]}

    graph = replaced(graph_of(deadline=5), second=instead)
    assert run_virtual(graph.ainvoke({})) == {"log": ["first", "instead"]}


def test_a_fault_is_a_node_as_well() -> None:
    """For a graph that is built in the test."""
    builder = StateGraph(State).add_node("work", hangs()).add_edge(START, "work")
    graph = builder.compile(deadline=30, fallback=logs("degraded"))
    assert run_virtual(graph.ainvoke({})) == {"log": ["degraded"]}
