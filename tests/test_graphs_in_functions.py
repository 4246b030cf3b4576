"""Graphs that a node's function calls, or a composed node has; and their handovers."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import ALL, ASYNC, SYNC, How, Trial, adrive, drive
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
)
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime
from langgraph.types import Command, StreamWriter
from test_agents import (
    HANG,
    SORRY,
    answers,
    ask,
    calls,
    check_closed,
    check_history,
    released,
    scripted,
)
from test_subagents import HEAD, Subs

from langgraph_deadline import DeadlinePolicy, with_deadline
from langgraph_deadline._bounded import BoundedGraph, adopt
from langgraph_deadline.agents import agent_fallback


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    released.clear()
    yield
    released.set()


AGENTS: list[Any] = []
BY_NAME: dict[str, Any] = {}


def last_of(result: Any) -> Any:
    """Return the update of a node that takes an agent's last message for its answer."""
    return {"messages": [AIMessage(result["messages"][-1].text, name="worker")]}


class Workflow:
    """Nodes as methods, with the agent that they call as an attribute."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.seen: list[str] = []

    def node(self, state: Any) -> Any:
        """Call the agent."""
        self.seen.append("node")
        return last_of(self.agent.invoke({"messages": state["messages"]}))

    async def anode(self, state: Any) -> Any:
        """Call the agent."""
        self.seen.append("node")
        return last_of(await self.agent.ainvoke({"messages": state["messages"]}))


def as_function(agent: Any, how: How) -> Any:
    def node(state: Any) -> Any:
        return last_of(agent.invoke({"messages": state["messages"]}))

    async def anode(state: Any) -> Any:
        return last_of(await agent.ainvoke({"messages": state["messages"]}))

    return node if how in SYNC else anode


def as_method(agent: Any, how: How) -> Any:
    workflow = Workflow(agent)
    return workflow.node if how in SYNC else workflow.anode


def as_partial(agent: Any, how: How) -> Any:
    def node(agent: Any, state: Any) -> Any:
        return last_of(agent.invoke({"messages": state["messages"]}))

    async def anode(agent: Any, state: Any) -> Any:
        return last_of(await agent.ainvoke({"messages": state["messages"]}))

    return functools.partial(node if how in SYNC else anode, agent)


def in_a_list(agent: Any, how: How) -> Any:
    AGENTS[:] = [agent]

    def node(state: Any) -> Any:
        return last_of(AGENTS[0].invoke({"messages": state["messages"]}))

    async def anode(state: Any) -> Any:
        return last_of(await AGENTS[0].ainvoke({"messages": state["messages"]}))

    return node if how in SYNC else anode


def in_a_dict(agent: Any, how: How) -> Any:
    BY_NAME["worker"] = {"graph": agent}

    def node(state: Any) -> Any:
        return last_of(BY_NAME["worker"]["graph"].invoke(state))

    async def anode(state: Any) -> Any:
        return last_of(await BY_NAME["worker"]["graph"].ainvoke(state))

    return node if how in SYNC else anode


def first_of_a_sequence(agent: Any, how: How) -> Any:
    return agent | RunnableLambda(last_of)


def in_parallel(agent: Any, how: How) -> Any:
    both: Runnable[Any, Any] = RunnableParallel(found=agent)
    return both | RunnableLambda(lambda parts: last_of(parts["found"]))


LOOKING_AT_IT = [
    as_function,
    as_method,
    as_partial,
    in_a_list,
    in_a_dict,
]

BEFORE_THE_END = [first_of_a_sequence, in_parallel]  # a cut ends the parts after it


def end_of_a_sequence(agent: Any, how: How) -> Any:
    return RunnableLambda(lambda state: {"messages": state["messages"]}) | agent


def with_retries(agent: Any, how: How) -> Any:
    return agent.with_retry(stop_after_attempt=2)


def bound_to_options(agent: Any, how: How) -> Any:
    return agent.bind()


HANDED_ON = [end_of_a_sequence, with_retries, bound_to_options]

Make = Callable[[Any, How], Any]


def graph_of(node: Any, **options: Any) -> Any:
    """Return a plain graph with one node."""
    builder = PlainStateGraph(MessagesState)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    return builder.compile(**options)


def worker(subs: Subs, *turns: Any, **options: Any) -> Any:
    """Return a plain agent whose model says `turns`."""
    return create_agent(scripted(*turns), subs.tools, **options)


def bounded(graph: Any, trial: Trial) -> Any:
    return with_deadline(graph, trial.reserved, fallback=agent_fallback(SORRY))


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("make", LOOKING_AT_IT)
def test_c6_an_agent_called_in_a_node_hands_up_what_it_has(
    make: Make, how: How
) -> None:
    """Its last message, which the node takes for the answer, says what was found."""
    subs = Subs(how)
    agent = worker(subs, calls(("look", "1")), (HANG, "never"))
    graph = bounded(graph_of(make(agent, how)), subs.trial)
    driven = subs.trial.drive(graph, ask())
    subs.trial.at_work(driven)
    said = [m.text for m in check_closed(driven)[1:]]
    assert said == [f"{HEAD}\nlook: saw 1", SORRY]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("make", HANDED_ON)
def test_c6_an_agent_at_the_end_of_a_node_hands_on_its_state(
    make: Make, how: How
) -> None:
    """As one that is itself the node: its messages, and none that it did not say."""
    subs = Subs(how)
    agent = worker(subs, calls(("look", "1"), ("hang", "2")), "never")
    expected = subs.trial.drive(bounded(graph_of(agent), subs.trial), ask())
    released.clear()
    graph = bounded(graph_of(make(agent, how)), subs.trial)
    driven = subs.trial.drive(graph, ask())
    subs.trial.at_work(driven)
    messages = check_closed(driven)
    assert [m.type for m in messages] == [m.type for m in expected.values["messages"]]
    assert answers(messages)["1"] == "saw 1"


@pytest.mark.parametrize("how", ALL)
def test_c8_the_memory_of_an_agent_called_in_a_node_is_closed(how: How) -> None:
    """Its model is not shown a call without an answer on the next turn."""
    subs = Subs(how)
    model = scripted()
    model.script = {"first": [calls(("hang", "1"))], "second": ["All is done."]}
    agent = create_agent(model, subs.tools, checkpointer=True)

    def node(state: Any) -> Any:
        return last_of(agent.invoke({"messages": [state["messages"][-1]]}))

    async def anode(state: Any) -> Any:
        return last_of(await agent.ainvoke({"messages": [state["messages"][-1]]}))

    plain = graph_of(node if how in SYNC else anode, checkpointer=InMemorySaver())
    graph = bounded(plain, subs.trial)
    config = {"configurable": {"thread_id": "1"}}
    check_closed(subs.trial.drive(graph, ask("first"), config))
    second = subs.trial.drive(graph, ask("second"), config)
    assert second.values["messages"][-1].text == "All is done."
    check_history(model.prompts[-1])
    assert len(model.prompts[-1]) > 1


# A graph that hands over to the one around it.


@pytest.mark.parametrize("how", ALL)
def test_c6_a_handover_beside_a_cut_tool_keeps_its_update(how: How) -> None:
    """It is a result, though where it leads is not followed."""
    subs = Subs(how)

    @tool
    def hand_over(q: str, runtime: ToolRuntime) -> Any:
        """Hand over to the other agent."""
        done = ToolMessage("handed over", tool_call_id=runtime.tool_call_id)
        messages = [*runtime.state["messages"], done]
        update = {"messages": messages}
        return Command(goto="other", graph=Command.PARENT, update=update)

    one = calls(("hand_over", "1"), ("hang", "2"))
    agent = create_agent(scripted(one, "never"), [hand_over, *subs.tools], name="work")
    begun: list[str] = []
    builder = PlainStateGraph(MessagesState)
    builder.add_node("work", agent, destinations=("other",))
    builder.add_node("other", lambda state: begun.append("other"))
    builder.add_edge(START, "work")
    driven = subs.trial.drive(bounded(builder.compile(), subs.trial), ask())
    subs.trial.at_work(driven)
    messages = driven.values["messages"]
    check_history(messages)
    assert begun == []
    assert answers(messages)["1"] == "handed over"
    assert "unknown" in answers(messages)["2"]


# In real time: threads that nobody waits for.


def as_task(agent: Any, how: How) -> Any:
    node = task(as_function(agent, how))

    def calls_task(state: Any) -> Any:
        return node(state).result()

    async def acalls_task(state: Any) -> Any:
        return await node(state)

    return calls_task if how in SYNC else acalls_task


def functional(make: Make, agent: Any, how: How) -> Any:
    """Return a functional graph that does what the node does."""
    node = make(agent, how)

    def main(state: Any) -> Any:
        return node(state)

    async def amain(state: Any) -> Any:
        return await node(state)

    return entrypoint()(main if how in SYNC else amain)


def as_entrypoint(agent: Any, how: How) -> Any:
    return functional(as_function, agent, how)


def as_task_of_an_entrypoint(agent: Any, how: How) -> Any:
    return functional(as_task, agent, how)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize(
    "make",
    [
        *LOOKING_AT_IT,
        *BEFORE_THE_END,
        *HANDED_ON,
        as_task,
        as_entrypoint,
        as_task_of_an_entrypoint,
    ],
)
def test_c12_a_blocked_tool_of_an_agent_in_a_node_holds_nobody_up(
    make: Make, how: How
) -> None:
    """Not the run, and not `asyncio.run` after it; and it is reported by its name."""
    subs = Subs(how)
    subs.trial.realtime = True
    agent = worker(subs, calls(("look", "1"), ("hang", "2")), "never")
    made = make(agent, how)
    graph = made if isinstance(made, Pregel) else graph_of(made)
    policy = DeadlinePolicy(seconds=subs.trial.budget, on_exceeded="return")
    began = time.monotonic()
    driven = asyncio.run(adrive(with_deadline(graph, policy), ask(), how))
    assert time.monotonic() - began < 4
    subs.trial.at_budget(driven)
    assert driven.error is None
    assert "hang" in [s.name for s in driven.report.stragglers]


# With time enough.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("make", [*LOOKING_AT_IT, *BEFORE_THE_END, *HANDED_ON, as_task])
def test_c11_a_node_that_calls_an_agent_does_the_same(make: Make, how: How) -> None:
    """Its result, its updates, and what is seen of the graph."""
    subs = Subs(how)
    agent = worker(subs, calls(("look", "1")), "All is done.")
    plain = graph_of(make(agent, how))
    graph = with_deadline(plain, 60)
    assert graph.nodes["work"].bound is plain.nodes["work"].bound
    assert graph.get_graph().to_json() == plain.get_graph().to_json()
    expected, got = (drive(g, ask(), how) for g in (plain, graph))
    assert got.error is expected.error is None
    shown = [[(m.type, m.text) for m in d.values["messages"]] for d in (expected, got)]
    assert shown[0] == shown[1]
    assert [list(u) for u in got.updates] == [list(u) for u in expected.updates]


@pytest.mark.parametrize("how", ALL)
def test_c11_a_node_that_calls_a_graph_gets_all_it_asks_for(how: How) -> None:
    """What LangGraph injects by the parameters' names, and its own defaults."""
    inner = graph_of(lambda state: {"messages": [AIMessage("inner")]})

    def node(
        state: Any,
        config: RunnableConfig,
        *,
        runtime: Runtime[Any],
        writer: StreamWriter,
        more: str = "more",
    ) -> Any:
        writer("written")
        found = inner.invoke({"messages": []})["messages"][-1].text
        user = config["configurable"]["user"]
        return {"messages": [AIMessage(f"{found} {user} {runtime.context} {more}")]}

    @functools.wraps(node)
    async def anode(*args: Any, **kwargs: Any) -> Any:
        return node(*args, **kwargs)

    graph = with_deadline(graph_of(node if how in SYNC else anode), 60)
    config = {"configurable": {"user": "me"}}
    driven = drive(graph, ask(), how, config, context="here")
    assert driven.error is None
    assert driven.values["messages"][-1].text == "inner me here more"


def test_c11_a_node_without_a_graph_in_it_is_left_as_it_is() -> None:
    """Functions, methods, partial functions, Runnables, classes."""

    def node(state: Any) -> Any:
        return ask(state)

    class Caller:
        def __call__(self, state: Any) -> Any:
            return node(state)

    kinds = (node, functools.partial(node), Workflow(None).node, Caller())
    for kind in kinds:
        bound = graph_of(kind).nodes["work"].bound
        assert adopt(bound) is bound
    chain = RunnableLambda(node) | RunnableLambda(node)
    assert adopt(chain) is chain
    ours = with_deadline(graph_of(lambda state: {}), 5)
    for part in (as_function(ours, "invoke"), ours, ours.with_retry(), chain | ours):
        bound = graph_of(part).nodes["work"].bound
        assert adopt(bound) is bound


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_c11_a_nodes_graphs_are_adopted_once(how: How) -> None:
    """For all runs; and the graph with a deadline of its own stays the caller's."""
    seen: list[Any] = []
    inner = graph_of(lambda state: {"messages": [AIMessage("inner")]})
    own = with_deadline(inner, 60)

    def node(state: Any) -> Any:
        seen.append((inner, own))
        return own.invoke(state)

    async def anode(state: Any) -> Any:
        seen.append((inner, own))
        return await own.ainvoke(state)

    graph = with_deadline(graph_of(node if how in SYNC else anode), 60)
    for _ in range(3):
        assert drive(graph, ask(), how).error is None
    assert {id(found) for found, _ in seen} == {id(seen[0][0])}
    assert isinstance(seen[0][0], BoundedGraph)
    assert not isinstance(inner, BoundedGraph)
    assert all(mine is own for _, mine in seen)
    assert own.last_report is not None


def test_c11_a_graph_that_calls_itself_does_the_same() -> None:
    """Its function names the plain graph, which is not the bounded one."""

    def node(state: Any) -> Any:
        count = len(state["messages"])
        if count > 3:
            return {"messages": []}
        return loop.invoke({"messages": [*state["messages"], HumanMessage(str(count))]})

    loop = graph_of(node)
    expected = loop.invoke(ask())["messages"]
    got = with_deadline(loop, 60).invoke(ask())["messages"]
    assert [m.text for m in got] == [m.text for m in expected]
    assert len(got) == 4


# Where a graph is not looked for. One with a deadline of its own can be cut anywhere.


class Registry:
    """Something that keeps an agent, and whose methods are no nodes."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent


def made_inside(agent: Any) -> Any:
    registry = Registry(lambda: agent)
    return lambda state: last_of(registry.agent().invoke(state))


def kept_by_an_object(agent: Any) -> Any:
    registry = Registry(agent)
    return lambda state: last_of(registry.agent.invoke(state))


@pytest.mark.parametrize("make", [made_inside, kept_by_an_object])
def test_a_graph_that_code_does_not_hold_is_not_found(make: Any) -> None:
    """Made by the function, or held by some object: it is called as it is."""
    agent = graph_of(lambda state: {"messages": [AIMessage("inner")]})
    bound = graph_of(make(agent)).nodes["work"].bound
    assert adopt(bound) is bound


def test_a_tool_node_that_a_function_calls_is_left_as_it_is() -> None:
    """LangChain's own agents hold theirs in their model's node, and do not call it."""
    tools = ToolNode(Subs("invoke").tools)
    bound = graph_of(lambda state: tools.invoke(dict(state))).nodes["work"].bound
    assert adopt(bound) is bound
    agent = worker(Subs("invoke"), "All is done.")
    assert adopt(agent.nodes["model"].bound) is agent.nodes["model"].bound


@pytest.mark.realtime
@pytest.mark.parametrize("make", [made_inside, kept_by_an_object])
def test_a_graph_that_is_not_found_may_be_bounded_itself(make: Any) -> None:
    """Then nobody waits for its threads, wherever it is kept."""
    subs = Subs("ainvoke")
    subs.trial.realtime = True
    agent = worker(subs, calls(("hang", "1")), "never")
    policy = DeadlinePolicy(seconds=subs.trial.budget, on_exceeded="return")
    graph = with_deadline(graph_of(make(with_deadline(agent))), policy)
    began = time.monotonic()
    driven = asyncio.run(adrive(graph, ask(), "ainvoke"))
    assert time.monotonic() - began < 4
    subs.trial.at_budget(driven)
