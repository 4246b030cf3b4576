"""Agents called inside a tool: deepagents' sub-agents, and agents in users' tools."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from copy import copy as copy_of
from pathlib import Path
from typing import Any, cast

import pytest
from deepagents import create_deep_agent
from harness import ALL, ASYNC, SYNC, How, Trial, adrive, drive
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.pregel import Pregel
from test_agents import (
    HANG,
    SORRY,
    Scripted,
    answers,
    ask,
    calls,
    check_closed,
    check_history,
    released,
    scripted,
    trial_of,
)
from typing_extensions import TypedDict

from langgraph_deadline import remaining, with_deadline
from langgraph_deadline._bounded import BoundedGraph, adopt
from langgraph_deadline._handing_up import handing_up
from langgraph_deadline._subagents import adopted_function, adopted_tool
from langgraph_deadline.agents import agent_fallback


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    released.clear()
    yield
    released.set()


def delegate(*tasks: tuple[str, str]) -> AIMessage:
    """Return a message that gives tasks to sub-agents: pairs of an id and a name."""
    return AIMessage(
        "",
        tool_calls=[
            {
                "name": "task",
                "args": {"description": f"do {id}", "subagent_type": name},
                "id": id,
            }
            for id, name in tasks
        ],
    )


class Subs:
    """Sub-agents of one kind of graph, and what they were seen doing."""

    def __init__(self, how: How) -> None:
        self.trial = Trial(how, seconds=1.2)
        self.left: dict[str, float] = {}
        self.models: dict[str, Scripted] = {}
        self.specs: list[Any] = []

    @property
    def tools(self) -> list[BaseTool]:
        """A tool that finds something, and one that hangs."""

        def look(q: str) -> str:
            """Look."""
            self.left[q] = remaining()
            return f"saw {q}"

        def hang(q: str) -> str:
            """Hang."""
            released.wait(6)
            return "late"

        async def alook(q: str) -> str:
            """Look."""
            return look(q)

        async def ahang(q: str) -> str:
            """Hang."""
            await asyncio.sleep(HANG)
            return "late"

        if self.trial.how in SYNC or self.trial.realtime:
            return [tool(look), tool(hang)]
        return [tool("look")(alook), tool("hang")(ahang)]

    def add(self, name: str, *turns: Any) -> Subs:
        """Add a sub-agent whose model says `turns`."""
        model = self.models[name] = scripted(*turns)
        self.specs.append(
            {
                "name": name,
                "description": name,
                "system_prompt": "Look.",
                "model": model,
                "tools": self.tools,
            }
        )
        return self

    def agent(self, *turns: Any, **options: Any) -> Any:
        """Return a bounded agent with these sub-agents, whose model says `turns`."""
        parent = create_deep_agent(
            cast("Any", scripted(*turns)), subagents=self.specs, **options
        )
        fallback = agent_fallback(SORRY)
        return with_deadline(parent, self.trial.reserved, fallback=fallback)


HEAD = "Time ran out before the work was finished. What was found so far:"


# deepagents.


@pytest.mark.parametrize("how", ALL)
def test_sub_agents_share_the_deadline(how: How) -> None:
    """What their tools see is what is left of the run, minus nothing."""
    subs = Subs(how)
    subs.add("one", calls(("look", "1")), "one is done")
    subs.add("two", calls(("look", "2")), (1.0, calls(("look", "3"))), "two is done")
    agent = subs.agent(delegate(("a", "one"), ("b", "two")), "All is done.")
    driven = subs.trial.drive(agent, ask())
    assert driven.error is None
    assert driven.values["messages"][-1].content == "All is done."
    assert answers(driven.values["messages"]) == {
        "a": "one is done",
        "b": "two is done",
    }
    if how in ASYNC:
        assert subs.left == {"1": 8.0, "2": 8.0, "3": 7.0}
    else:
        assert all(0 < left <= subs.trial.work for left in subs.left.values())


@pytest.mark.parametrize("how", ALL)
def test_one_cut_sub_agent_hands_up_what_it_has_beside_finished_ones(how: How) -> None:
    """Its answer says that it is not finished; the others' are whole."""
    subs = Subs(how)
    subs.add("good", calls(("look", "1")), "good is done")
    subs.add("bad", calls(("look", "2")), (HANG, "never"))
    agent = subs.agent(delegate(("a", "good"), ("b", "bad"), ("c", "good")), "never")
    driven = subs.trial.drive(agent, ask())
    messages = check_closed(driven)
    subs.trial.at_work(driven)
    assert answers(messages) == {
        "a": "good is done",
        "b": f"{HEAD}\nlook: saw 2",
        "c": "good is done",
    }


@pytest.mark.parametrize("how", ALL)
def test_a_sub_agent_cut_in_a_tool_hands_up_the_others_results(how: How) -> None:
    """And says which call has none."""
    subs = Subs(how)
    subs.add("bad", calls(("look", "1"), ("hang", "2"), ("look", "3")), "never")
    driven = subs.trial.drive(subs.agent(delegate(("a", "bad"))), ask())
    messages = check_closed(driven)
    subs.trial.at_work(driven)
    found = answers(messages)["a"]
    assert found.startswith(f"{HEAD}\nlook: saw 1\n")
    assert "look: saw 3" in found
    assert "'hang'" in found


@pytest.mark.parametrize("how", ALL)
def test_a_sub_agent_that_found_nothing_says_so(how: How) -> None:
    """Never an empty answer."""
    subs = Subs(how).add("bad", (HANG, "never"))
    driven = subs.trial.drive(subs.agent(delegate(("a", "bad"))), ask())
    messages = check_closed(driven)
    assert answers(messages)["a"] == "Time ran out before anything was found."


@pytest.mark.parametrize("how", ALL)
def test_a_sub_agent_of_a_sub_agent_hands_up_through_both(how: How) -> None:
    """Each adds where it stood."""
    inner = Subs(how).add("inner", calls(("look", "1")), (HANG, "never"))
    middle = create_deep_agent(
        cast("Any", scripted(delegate(("b", "inner")), "never")),
        subagents=inner.specs,
    )
    outer = Subs(how)
    outer.specs.append({"name": "mid", "description": "mid", "runnable": middle})
    driven = outer.trial.drive(outer.agent(delegate(("a", "mid"))), ask())
    messages = check_closed(driven)
    outer.trial.at_work(driven)
    assert "saw 1" in answers(messages)["a"]


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
@pytest.mark.parametrize("cut_in", ["model", "tool"])
def test_a_cut_sync_sub_agent_stops_at_its_next_start(how: How, cut_in: str) -> None:
    """Its model is not asked again, and no tool of it starts."""
    subs = Subs(how)
    first = (HANG, calls(("look", "1"))) if cut_in == "model" else calls(("hang", "1"))
    subs.add("bad", first, calls(("look", "2")), "never")
    driven = subs.trial.drive(subs.agent(delegate(("a", "bad"))), ask())
    check_closed(driven)
    released.set()
    time.sleep(0.2)
    assert len(subs.models["bad"].prompts) == 1
    assert subs.left == {}


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_a_blocked_tool_of_a_sub_agent_does_not_hold_up_the_loop(how: How) -> None:
    """Not the run, and not `asyncio.run` after it; and it is reported by its name."""
    subs = Subs(how)
    subs.trial.realtime = True
    subs.add("bad", calls(("look", "1"), ("hang", "2")), "never")
    agent = subs.agent(delegate(("a", "bad")))
    began = time.monotonic()
    driven = asyncio.run(adrive(agent, ask(), how))
    assert time.monotonic() - began < 4
    check_closed(driven)
    subs.trial.at_work(driven)
    assert "hang" in [s.name for s in driven.report.stragglers]


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_blocked_sub_agent_does_not_hold_up_the_interpreter(how: str) -> None:
    """It ends while the tool of a sub-agent is still blocked."""
    run = "agent.invoke(x)" if how == "invoke" else "asyncio.run(agent.ainvoke(x))"
    code = f"""
        import asyncio, sys, time
        sys.path.insert(0, {json.dumps(sys.path[0])})
        sys.path.insert(0, {json.dumps(str(Path(__file__).parent))})
        from test_subagents import *

        @tool
        def block(q: str) -> str:
            "Block."
            print("blocked", flush=True)
            time.sleep(60)

        subs = Subs("invoke")
        subs.trial.seconds = 3
        subs.add("bad", calls(("block", "1")), "never")
        subs.specs[0]["tools"] = [block]
        agent, x = subs.agent(delegate(("a", "bad"))), ask()
        print({run}["messages"][-1].content, flush=True)
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["blocked", SORRY], done.stderr
    assert time.monotonic() - began < 45


@pytest.mark.parametrize("how", ALL)
def test_the_next_turn_after_a_cut_sub_agent_is_clean(how: How) -> None:
    """Also in the channel that keeps deltas, and with the sub-agent asked again."""
    subs = Subs(how)
    subs.add("one", calls(("look", "1")), "one is done")
    model = subs.models["one"]
    model.script = {"do a": [calls(("look", "1")), (HANG, "never")], "do b": ["done b"]}
    parent = Scripted(
        script={
            "known": [delegate(("a", "one")), "never"],
            "now": [delegate(("b", "one")), "All is done."],
        }
    )
    agent = create_deep_agent(
        cast("Any", parent), subagents=subs.specs, checkpointer=InMemorySaver()
    )
    bounded = with_deadline(agent, subs.trial.reserved, fallback=agent_fallback(SORRY))
    config = {"configurable": {"thread_id": "1"}}
    check_closed(subs.trial.drive(bounded, ask(), config))
    second = subs.trial.drive(bounded, ask("And now?"), config)
    assert second.error is None
    check_history(second.values["messages"])
    assert second.report.outcome == "completed"
    assert second.values["messages"][-1].content == "All is done."
    assert answers(second.values["messages"])["b"] == "done b"


@pytest.mark.parametrize("how", ALL)
def test_without_a_cut_sub_agents_are_as_they_were(how: How) -> None:
    """Their results, and what is streamed of them."""
    subs = Subs(how)
    subs.add("one", calls(("look", "1")), "one is done")
    script = (delegate(("a", "one")), "All is done.")
    plain = create_deep_agent(cast("Any", scripted(*script)), subagents=subs.specs)
    bounded = subs.agent(*script)
    expected, got = (subs.trial.drive(graph, ask()) for graph in (plain, bounded))
    assert expected.error is None
    assert got.error is None
    assert _shapes(got.values) == _shapes(expected.values)
    assert [list(u) for u in got.updates] == [list(u) for u in expected.updates]


def _shapes(values: Any) -> list[Any]:
    return [(m.type, m.content, m.name) for m in values["messages"]]


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_parts_of_sub_agents_are_streamed_under_their_names(how: How) -> None:
    """As without a deadline: the same namespaces' depth, the same agent names."""
    subs = Subs(how)
    subs.add("one", calls(("look", "1")), "one is done")
    script = (delegate(("a", "one")), "All is done.")
    plain = create_deep_agent(cast("Any", scripted(*script)), subagents=subs.specs)

    def parts(graph: Any) -> list[Any]:
        options = {"stream_mode": "messages", "subgraphs": True}
        if how == "stream":
            found = list(graph.stream(ask(), **options))
        else:

            async def main() -> list[Any]:
                return [part async for part in graph.astream(ask(), **options)]

            found = asyncio.run(main())
        return sorted(
            (len(ns), m.type, str(m.content), about.get("lc_agent_name"))
            for ns, (m, about) in found
        )

    assert parts(subs.agent(*script)) == parts(plain)


@pytest.mark.parametrize("how", ALL)
def test_under_raise_a_cut_sub_agent_leaves_its_call_to_be_resumed(how: How) -> None:
    """Nothing is handed up that would look finished."""
    subs = Subs(how)
    model = subs.add("one", calls(("look", "1")), (HANG, "never")).models["one"]
    parent = scripted(delegate(("a", "one")), "All is done.")
    agent = create_deep_agent(
        cast("Any", parent), subagents=subs.specs, checkpointer=InMemorySaver()
    )
    bounded = with_deadline(agent, subs.trial.budget)
    config = {"configurable": {"thread_id": "1"}}
    cut = subs.trial.drive(bounded, ask(), config)
    assert isinstance(cut.error, TimeoutError)
    model.script = {"": [calls(("look", "1")), "one is done"]}
    released.set()
    driven = drive(bounded, None, how, config, virtual=how in ASYNC)
    if driven.error is not None:
        raise driven.error
    assert answers(driven.values["messages"]) == {"a": "one is done"}
    assert driven.values["messages"][-1].content == "All is done."


# Agents in tools of one's own.


MODULE_AGENT: Any = None


def ask_module_agent(question: str) -> str:
    """Ask the agent that this module holds."""
    result = MODULE_AGENT.invoke({"messages": [HumanMessage(question)]})
    return str(result["messages"][-1].content)


async def aask_module_agent(question: str) -> str:
    """Ask the agent that this module holds."""
    result = await MODULE_AGENT.ainvoke({"messages": [HumanMessage(question)]})
    return str(result["messages"][-1].content)


class Researcher(BaseTool):
    """A tool of a class of its own, with an agent as its field."""

    name: str = "research"
    description: str = "Research."
    agent: Any

    def _run(self, q: str) -> str:
        result = self.agent.invoke({"messages": [HumanMessage(q)]})
        return str(result["messages"][-1].content)

    async def _arun(self, q: str) -> str:
        result = await self.agent.ainvoke({"messages": [HumanMessage(q)]})
        return str(result["messages"][-1].content)


def in_a_closure(agent: Any) -> BaseTool:
    def research(q: str) -> str:
        """Research."""
        result = agent.invoke({"messages": [HumanMessage(q)]})
        return str(result["messages"][-1].content)

    async def aresearch(q: str) -> str:
        """Research."""
        result = await agent.ainvoke({"messages": [HumanMessage(q)]})
        return str(result["messages"][-1].content)

    return StructuredTool.from_function(research, aresearch, name="research")


def in_a_module(agent: Any) -> BaseTool:
    global MODULE_AGENT  # noqa: PLW0603
    MODULE_AGENT = agent

    def research(q: str) -> str:
        """Research."""
        return ask_module_agent(q)

    async def aresearch(q: str) -> str:
        """Research."""
        return await aask_module_agent(q)

    return StructuredTool.from_function(research, aresearch, name="research")


def in_a_field(agent: Any) -> BaseTool:
    return Researcher(agent=agent)


def bound_to_options(agent: Any) -> BaseTool:
    return in_a_closure(agent.with_retry(stop_after_attempt=1))


def bounded_already(agent: Any) -> BaseTool:
    return in_a_closure(with_deadline(agent))


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    "make",
    [in_a_closure, in_a_module, in_a_field, bound_to_options, bounded_already],
)
def test_an_agent_in_a_users_tool_hands_up_what_it_has(
    how: How, make: Callable[[Any], BaseTool]
) -> None:
    """Wherever the tool keeps it."""
    subs = Subs(how)
    inner = create_agent(scripted(calls(("look", "1")), (HANG, "never")), subs.tools)
    outer = create_agent(scripted(calls(("research", "a")), "never"), [make(inner)])
    bounded = with_deadline(outer, subs.trial.reserved, fallback=agent_fallback(SORRY))
    driven = subs.trial.drive(bounded, ask())
    messages = check_closed(driven)
    subs.trial.at_work(driven)
    assert answers(messages)["a"] == f"{HEAD}\nlook: saw 1"


# Finding graphs, and replacing them in copies.


class _State(TypedDict):
    x: int


def graph_of(name: str = "inner") -> Any:
    builder = PlainStateGraph(_State)
    builder.add_node("one", lambda state: {"x": state["x"] + 1})
    builder.add_edge(START, "one")
    return builder.compile(name=name)


def adopted(func: Any) -> Any:
    return adopted_function(func, adopt)


def is_bounded(graph: Any) -> bool:
    assert isinstance(graph, Pregel)
    return isinstance(graph, BoundedGraph)


def test_a_graph_in_a_closure_is_replaced_in_a_copy() -> None:
    """The original keeps its own; the copy is the same in all else."""
    graph = graph_of()

    def call(x: int, *, y: int = 2) -> Any:
        """Say what is held."""
        return graph

    copy = adopted(call)
    assert copy is not call
    assert is_bounded(copy(1))
    assert call(1) is graph
    assert not is_bounded(graph)
    assert copy(1) is copy(2)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(copy, name) == getattr(call, name)
    assert inspect.signature(copy) == inspect.signature(call)


def test_what_holds_no_graph_is_left_as_it_is() -> None:
    """Also what holds one that is bounded already."""
    bounded = with_deadline(graph_of(), 5)
    settings = {"a": (1, [2])}

    def plain() -> Any:
        return settings, json

    def has_one() -> Any:
        return bounded

    assert adopted(plain) is plain
    assert adopted(has_one) is has_one
    assert adopted(len) is len
    find = in_a_closure(bounded)
    assert adopted_tool(find, adopt) is find


def test_functions_that_call_each_other_are_copied_together() -> None:
    """However far down the graph is."""
    graph = graph_of()

    def first(n: int) -> Any:
        return second(n - 1) if n else graph

    def second(n: int) -> Any:
        return first(n - 1) if n else graph

    def outer(n: int) -> Any:
        return first(n)

    for func in (outer, first, second):
        copy = adopted(func)
        assert all(is_bounded(copy(n)) for n in range(4))
        assert not is_bounded(func(3))


def test_functions_that_call_each_other_are_found_in_any_order() -> None:
    """One that is looked at while another one's search is under way is not missed."""
    z_graph = graph_of()

    def a_first(n: int) -> Any:
        return b_second(n - 1) if n else z_graph

    def b_second(n: int) -> Any:
        return a_first(n - 1) if n else a_first

    copy = adopted(a_first)
    assert is_bounded(copy(2))
    assert is_bounded(adopted(b_second)(1))


def test_a_dict_is_seen_as_it_is_at_any_time() -> None:
    """With entries that are added later, and writes that reach the original."""
    graphs: dict[str, Any] = {"one": graph_of()}

    def get(name: str) -> Any:
        return graphs[name]

    def put(name: str, graph: Any) -> None:
        graphs[name] = graph

    def everything() -> Any:
        return graphs

    copy, keep, shown = adopted(get), adopted(put), adopted(everything)()
    graphs["two"] = graph_of()
    keep("three", graph_of())
    assert list(graphs) == ["one", "two", "three"]
    assert all(is_bounded(copy(name)) for name in graphs)
    assert not any(is_bounded(graph) for graph in graphs.values())
    assert isinstance(shown, dict)
    assert (len(shown), list(shown), "two" in shown) == (3, list(graphs), True)
    assert all(is_bounded(graph) for graph in shown.values())
    assert all(is_bounded(graph) for _, graph in shown.items())
    assert all(is_bounded(graph) for graph in {**shown}.values())
    assert all(is_bounded(graph) for graph in dict(shown).values())
    assert all(is_bounded(graph) for graph in shown.copy().values())
    assert shown.get("four") is None
    assert shown.pop("three") is not None
    del shown["two"]
    assert list(graphs) == ["one"]
    assert repr(shown) == repr(graphs)


@pytest.mark.parametrize("kind", ["tuple", "partial", "default", "keyword", "nested"])
def test_graphs_are_found_where_functions_keep_things(kind: str) -> None:
    """Tuples, partial functions, defaults, dicts in dicts."""
    graph = graph_of()

    def given(x: Any) -> Any:
        return x

    pair, call = (1, graph), functools.partial(given, graph)
    spec = {"one": {"runnable": graph}}

    def in_tuple() -> Any:
        return pair[1]

    def in_partial() -> Any:
        return call()

    def in_default(x: Any = graph) -> Any:
        return x

    def in_keyword(*, x: Any = graph) -> Any:
        return x

    def in_dict() -> Any:
        return spec["one"]["runnable"]

    func = {
        "tuple": in_tuple,
        "partial": in_partial,
        "default": in_default,
        "keyword": in_keyword,
        "nested": in_dict,
    }[kind]
    assert is_bounded(adopted(func)())
    assert not is_bounded(func())


def test_a_list_is_seen_as_it_is_at_any_time() -> None:
    """As a dict is: with what is added later, and writes that reach the original."""
    graphs: list[Any] = [1, graph_of()]

    def everything() -> Any:
        return graphs

    shown = adopted(everything)()
    graphs.append(graph_of())
    shown.append(2)
    shown[0] = 3
    assert graphs[0] == 3
    assert isinstance(shown, list)
    for seen in (
        shown,
        [*shown],
        shown[:],
        shown.copy(),
        [] + shown,  # noqa: RUF005 - it is what a list does
        shown + [],  # noqa: RUF005
        shown * 1,
        copy_of(shown),
        list(reversed(shown))[::-1],
    ):
        assert [type(v).__name__ for v in seen] == [type(v).__name__ for v in graphs]
        assert all(is_bounded(seen[i]) for i in (1, 2))
        assert (seen[0], seen[3]) == (3, 2)
    assert shown == graphs
    assert shown == shown.copy()
    assert repr(shown) == repr(graphs)
    del shown[1:3]
    shown.sort()
    assert graphs == shown == [2, 3]
    assert not isinstance(graph_of(), BoundedGraph)


def test_a_copy_of_a_dict_is_a_dict() -> None:
    """`copy` and `deepcopy` write nothing to the original."""
    graphs = {"one": graph_of()}

    def everything() -> Any:
        return graphs

    copied = copy_of(adopted(everything)())
    copied["two"] = 2
    assert type(copied) is dict
    assert list(graphs) == ["one"]


def test_data_is_not_looked_through() -> None:
    """A registry of graphs is small."""
    data: list[Any] = [*range(1000), graph_of()]
    table = dict(enumerate(data))

    def read() -> Any:
        return data, table

    assert adopted(read) is read


REGISTRY: dict[str, Any] = {}
LISTED: list[Any] = []
PAIR: tuple[Any, ...] = ()


def read_globals() -> Any:
    return REGISTRY["one"], LISTED[0], PAIR[1]


def test_graphs_are_found_in_containers_that_a_module_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dicts, lists and tuples, with what is put there later."""
    monkeypatch.setitem(REGISTRY, "one", graph_of())
    monkeypatch.setitem(globals(), "LISTED", [graph_of()])
    monkeypatch.setitem(globals(), "PAIR", (1, graph_of()))
    call = adopted(read_globals)
    assert all(map(is_bounded, call()))
    LISTED[0] = graph_of("other")
    assert call()[1].name == "other"
    assert all(map(is_bounded, call()))
    assert not any(is_bounded(graph) for graph in read_globals())


class _Keeper:
    """Something with methods that call a graph which it keeps."""

    kept: Any = None

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._by_name = {"one": graph}
        self.count = 0

    @property
    def same(self) -> Any:
        return self.graph

    def all_of_it(self) -> Any:
        return self.graph, self._by_name["one"], self.same

    def call(self) -> Any:
        self.count += 1
        return self, self.all_of_it()


def test_a_methods_object_is_seen_with_other_graphs() -> None:
    """It is the same object in all else, and its attributes are the same ones."""
    keeper = _Keeper(graph_of())
    copy = adopted(keeper.call)
    seen, graphs = copy()
    assert all(map(is_bounded, graphs))
    assert not any(is_bounded(graph) for graph in keeper.call()[1])
    assert (keeper.count, seen.count) == (2, 2)
    assert isinstance(seen, _Keeper)
    assert type(seen).__name__ == "_Keeper"
    assert seen == keeper
    assert keeper == seen
    assert hash(seen) == hash(keeper)
    assert seen != _Keeper(None)
    assert copy.__name__ == "call"
    keeper.graph = graph_of("other")
    assert copy()[1][0].name == "other"
    assert is_bounded(copy()[1][0])
    seen.graph = None
    assert keeper.graph is None


class _Slotted(_Keeper):
    __slots__ = ("more",)


class _Registering(_Keeper):
    def __init_subclass__(cls) -> None:
        raise AssertionError


class _Guarding(_Keeper):
    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class _Table(dict[str, Any]):
    def call(self) -> Any:
        return self


@pytest.mark.parametrize("kind", [_Slotted, _Registering, _Guarding])
def test_an_object_that_is_more_than_its_attributes_is_left_alone(kind: Any) -> None:
    """It cannot be seen as another one."""
    keeper = kind(graph_of())
    assert adopted(keeper.call) == keeper.call
    table = _Table(one=graph_of())
    assert adopted(table.call) == table.call


class _Holder:
    """Something with a method; what it keeps stays its own."""

    def __init__(self) -> None:
        self.count = 0

    def method(self) -> Any:
        self.count += 1
        return MODULE_AGENT


def test_a_method_is_copied_and_its_object_is_not() -> None:
    """Objects have state."""
    _set_module_agent(graph_of())
    holder = _Holder()
    copy = adopted(holder.method)
    assert is_bounded(copy())
    assert not is_bounded(holder.method())
    assert holder.count == 2


def _set_module_agent(graph: Any) -> None:
    globals()["MODULE_AGENT"] = graph


def read_module_agent() -> Any:
    return MODULE_AGENT, len(__name__), json


def write_module_agent(graph: Any) -> Any:
    global MODULE_AGENT  # noqa: PLW0603
    MODULE_AGENT = graph
    return MODULE_AGENT


def read_by_a_helper() -> Any:
    return next(read_module_agent() for _ in range(1))


def test_a_modules_globals_are_seen_as_they_are_at_any_time() -> None:
    """But for the graphs."""
    _set_module_agent(graph_of("first"))
    for func in (read_module_agent, read_by_a_helper):
        _set_module_agent(graph_of("first"))
        copy = adopted(func)
        graph, length, module = copy()
        assert is_bounded(graph)
        assert (length, module) == (len(__name__), json)
        _set_module_agent(graph_of("second"))
        assert copy()[0].name == "second"
        assert is_bounded(copy()[0])
        assert not is_bounded(func()[0])


def test_a_function_that_writes_globals_is_left_as_it_is() -> None:
    """It would write to a copy."""
    _set_module_agent(graph_of())
    assert adopted(write_module_agent) is write_module_agent


def test_variables_that_functions_share_stay_shared() -> None:
    """A count in a closure is one count; attributes of a function are one set."""
    graph, count = graph_of(), 0

    def step() -> Any:
        nonlocal count
        count += 1
        step.seen = count  # type: ignore[attr-defined]
        return graph

    def read() -> int:
        return count

    copy = adopted(step)
    assert is_bounded(copy())
    assert not is_bounded(step())
    assert read() == 2
    assert step.seen == copy.seen == 2  # type: ignore[attr-defined]


def test_a_variable_that_is_made_on_first_use_is_left_alone() -> None:
    """A function's own variable cannot be two."""
    graph: Any = graph_of("old")

    def get() -> Any:
        nonlocal graph
        graph = graph or graph_of("new")
        return graph

    copy = adopted(get)
    graph = None
    assert copy().name == "new"
    assert get() is copy()


def test_a_decorated_function_is_copied_with_what_decorates_it() -> None:
    """Sync and async."""
    graph = graph_of()

    def decorate(func: Any) -> Any:
        @functools.wraps(func)
        def wrapper(*args: Any) -> Any:
            return func(*args)

        return wrapper

    @decorate
    def call(x: int) -> Any:
        return graph

    @decorate
    async def acall(x: int) -> Any:
        return graph

    assert is_bounded(adopted(call)(1))
    assert inspect.signature(adopted(call)) == inspect.signature(call)
    assert is_bounded(asyncio.run(adopted(acall)(1)))


def test_a_graph_in_a_chain_or_with_options_is_replaced() -> None:
    """`with_config`, `with_retry`, and a sequence that it is a part of."""
    graph = graph_of()
    chain = RunnableLambda(lambda x: {"x": x}) | graph
    retried = graph.with_retry()

    def call() -> Any:
        return chain.steps[-1], retried.bound, chain, retried

    last, bound, new_chain, new_retried = adopted(call)()
    assert is_bounded(last)
    assert is_bounded(bound)
    assert new_chain.invoke(1) == new_retried.invoke({"x": 1}) == {"x": 2}
    assert chain.steps[-1] is graph


def test_a_function_may_hold_what_is_not_there_yet() -> None:
    """An empty cell stays one."""

    def make() -> Any:
        def call() -> Any:
            return later, graph

        copy = adopted(call)
        later = 1
        return copy

    graph = graph_of()
    assert make()()[0] == 1


def test_names_and_schema_of_a_tool_stay_as_they_were() -> None:
    """Its copy differs in its functions only."""
    original = in_a_closure(graph_of())
    copy = adopted_tool(original, adopt)
    assert copy is not original
    assert type(copy) is type(original)
    assert (copy.name, copy.description) == (original.name, original.description)
    assert copy.args == original.args
    assert copy.tool_call_schema.model_json_schema() == (
        original.tool_call_schema.model_json_schema()
    )


@pytest.mark.filterwarnings("ignore:This API is in beta")
def test_a_runnable_made_a_tool_is_found() -> None:
    """`as_tool` keeps it in a closure."""
    made = graph_of().as_tool(name="inner", description="Inner.", arg_types={"x": int})
    assert adopted_tool(made, adopt) is not made
    assert adopted_tool(made, adopt).invoke({"x": 1}) == {"x": 2}


def test_the_task_tool_of_deepagents_is_found() -> None:
    """Whatever its closure looks like."""
    subs = Subs("invoke").add("one", "done")
    agent = create_deep_agent(cast("Any", scripted("x")), subagents=subs.specs)
    tools = dict(agent.nodes["tools"].bound.tools_by_name)
    task = tools.pop("task")
    assert adopted_tool(task, adopt) is not task
    assert all(adopted_tool(other, adopt) is other for other in tools.values())


# What is handed up.


def test_a_result_that_was_not_cut_is_not_touched() -> None:
    """Outside of a run, too."""
    graph = handing_up(adopt(graph_of()))
    assert type(graph).__name__ == "CompiledStateGraph"
    assert graph.invoke({"x": 1}) == {"x": 2}
    assert asyncio.run(graph.ainvoke({"x": 1})) == {"x": 2}
    assert graph.with_config(tags=["a"]).invoke({"x": 1}) == {"x": 2}


@pytest.mark.parametrize("how", ALL)
def test_an_agent_that_had_its_last_word_is_handed_up_unchanged(how: How) -> None:
    """It was cut while it did something else."""
    trial = trial_of(how)
    builder = PlainStateGraph(MessagesState)

    def say(state: Any) -> Any:
        return {"messages": [AIMessage("All is said.")]}

    builder.add_node("say", trial.as_how(say))
    builder.add_node("hang", trial.hang("hang"))
    builder.add_edge(START, "say").add_edge("say", "hang")
    outer = create_agent(
        scripted(calls(("research", "a")), "never"), [in_a_closure(builder.compile())]
    )
    bounded = with_deadline(outer, trial.reserved, fallback=agent_fallback(SORRY))
    messages = check_closed(trial.drive(bounded, ask()))
    assert answers(messages) == {"a": "All is said."}


@pytest.mark.parametrize("how", ALL)
def test_a_graph_without_messages_hands_up_its_state(how: How) -> None:
    """As it is."""
    trial = trial_of(how)
    builder = PlainStateGraph(_State)
    builder.add_node("one", trial.as_how(lambda state: {"x": state["x"] + 1}))
    builder.add_node("hang", trial.hang("hang"))
    builder.add_edge(START, "one").add_edge("one", "hang")
    graph = builder.compile()

    def count(q: str) -> str:
        """Count."""
        return str(graph.invoke({"x": 1}))

    async def acount(q: str) -> str:
        """Count."""
        return str(await graph.ainvoke({"x": 1}))

    counting = StructuredTool.from_function(count, acount, name="count")
    outer = create_agent(scripted(calls(("count", "a")), "never"), [counting])
    bounded = with_deadline(outer, trial.reserved, fallback=agent_fallback(SORRY))
    messages = check_closed(trial.drive(bounded, ask()))
    assert answers(messages) == {"a": "{'x': 2}"}
