"""C13: bad input is a clear error that names the argument, and nothing is touched."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pytest
from harness import ALL, How, drive
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.func import entrypoint
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainStateGraph

from langgraph_deadline import (
    Deadline,
    DeadlineExceeded,
    DeadlineHandler,
    DeadlinePolicy,
    StateGraph,
    StepBudget,
    check,
    collect_runs,
    fail_after,
    move_on_after,
    remaining,
    shield,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

KEY = "x-request-deadline"

# `version="v3"` of the event streams is LangGraph's beta.
pytestmark = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.LangChainBetaWarning"
)


class State(TypedDict, total=False):
    text: str


@dataclass
class Site:
    """A graph with a saver, and whether something of it was ever run."""

    saver: Any = field(default_factory=InMemorySaver)
    ran: list[str] = field(default_factory=list)

    def builder(self, kind: type[Any] = StateGraph) -> Any:
        """Return a builder with the nodes `work` and `degrade`."""

        def work(state: State) -> State:
            self.ran.append("work")
            return {"text": "worked"}

        def degrade(state: State) -> State:
            self.ran.append("degrade")
            return {"text": "degraded"}

        builder = kind(State)
        builder.add_node("work", work)
        builder.add_node("degrade", degrade)
        builder.add_edge(START, "work")
        builder.add_edge("work", END)
        return builder

    def compile(self, **options: Any) -> Any:
        """Return the compiled graph."""
        return self.builder().compile(checkpointer=self.saver, **options)

    def checkpoints(self) -> list[Any]:
        """Return everything the saver holds."""
        return list(self.saver.list(None))


# Ways to start a run, each with a `deadline=` or a config.


def _stream_events(graph: Any, config: Any, **kwargs: Any) -> None:
    stream = graph.stream_events({}, config, version="v3", **kwargs)
    for _ in stream:
        pass


async def _astream(graph: Any, config: Any, **kwargs: Any) -> None:
    async for _ in graph.astream({}, config, **kwargs):
        pass


async def _astream_events(graph: Any, config: Any, **kwargs: Any) -> None:
    async for _ in graph.astream_events({}, config, version="v2", **kwargs):
        pass


async def _astream_events_v3(graph: Any, config: Any, **kwargs: Any) -> None:
    async for _ in await graph.astream_events({}, config, version="v3", **kwargs):
        pass


ENTRIES: dict[str, Callable[..., Any]] = {
    "invoke": lambda g, c, **k: g.invoke({}, c, **k),
    "stream": lambda g, c, **k: list(g.stream({}, c, **k)),
    "batch": lambda g, c, **k: g.batch([{}], c, **k),
    "stream_events": _stream_events,
    "ainvoke": lambda g, c, **k: asyncio.run(g.ainvoke({}, c, **k)),
    "astream": lambda g, c, **k: asyncio.run(_astream(g, c, **k)),
    "abatch": lambda g, c, **k: asyncio.run(g.abatch([{}], c, **k)),
    "astream_events": lambda g, c, **k: asyncio.run(_astream_events(g, c, **k)),
    "astream_events v3": lambda g, c, **k: asyncio.run(_astream_events_v3(g, c, **k)),
}
entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())


def thread(**configurable: Any) -> dict[str, Any]:
    """Return the config of a thread."""
    return {"configurable": {"thread_id": "1", **configurable}}


NO_BUDGET: list[Any] = [
    0,
    0.0,
    -1,
    -1e-9,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    "30",
    "30s",
    "",
    "PT30S",
    b"30",
    [30],
    {"seconds": 30},
    datetime(2030, 1, 1),
    timedelta(0),
    timedelta(seconds=-1),
    pytest.param(object(), id="object"),
    pytest.param(StepBudget(seconds=3), id="StepBudget"),
    pytest.param(DeadlinePolicy, id="the class"),
    pytest.param(10**400, id="an integer beyond every float"),
]
no_budget = pytest.mark.parametrize("bad", NO_BUDGET)


# At compile time.


@no_budget
def test_c13_compile_refuses_what_is_no_budget(bad: Any) -> None:
    """Zero, negative, NaN, infinite, bool, text, ...: the error names `deadline`."""
    site = Site()
    with pytest.raises(ValueError, match=r"^deadline "):
        site.compile(deadline=bad)


@no_budget
def test_c13_with_deadline_refuses_what_is_no_budget(bad: Any) -> None:
    """Also for a graph that was compiled by LangGraph."""
    plain = Site().builder(PlainStateGraph).compile()
    with pytest.raises(ValueError, match=r"^deadline "):
        with_deadline(plain, bad)


@no_budget
def test_c13_the_handler_refuses_what_is_no_budget(bad: Any) -> None:
    """`DeadlineHandler(0)` would refuse everything: an error is clearer."""
    with pytest.raises(ValueError, match=r"^deadline "):
        DeadlineHandler(bad)


def bound(site: Site, **options: Any) -> Any:
    """Return the same graph, made by LangGraph and bounded afterwards."""
    return with_deadline(site.builder(PlainStateGraph).compile(), **options)


makers = pytest.mark.parametrize("make", [Site.compile, bound], ids=["ours", "theirs"])


@makers
def test_c13_an_unknown_step_is_refused_when_compiling(make: Any) -> None:
    """With the name that was probably meant."""
    policy = DeadlinePolicy(seconds=30, steps={"wrok": 5})
    with pytest.raises(ValueError, match=r"steps names 'wrok'.*did you mean 'work'"):
        make(Site(), deadline=policy)


@makers
@pytest.mark.parametrize("name", [START, END, "", "Work", "work "])
def test_c13_what_is_no_node_cannot_have_a_budget(make: Any, name: str) -> None:
    """START and END are no nodes that do work."""
    with pytest.raises(ValueError, match="steps names"):
        make(Site(), deadline=DeadlinePolicy(seconds=30, steps={name: 5}))


@makers
@pytest.mark.parametrize("name", ["degarde", "", START, END, "Degrade"])
def test_c13_an_unknown_fallback_is_refused(make: Any, name: str) -> None:
    """The error names the argument and the closest node."""
    with pytest.raises(ValueError, match="fallback names") as caught:
        make(Site(), deadline=30, fallback=name)
    if name == "degarde":
        assert "did you mean 'degrade'" in str(caught.value)


@makers
@pytest.mark.parametrize(
    "bad", [42, 1.5, True, b"degrade", ["degrade"], {"text": "sorry"}, ("degrade",)]
)
def test_c13_a_fallback_of_the_wrong_type_is_refused(make: Any, bad: Any) -> None:
    """The error names the argument and the type that was given."""
    with pytest.raises(ValueError, match="fallback must be") as caught:
        make(Site(), deadline=30, fallback=bad)
    assert type(bad).__name__ in str(caught.value)


@makers
def test_c13_a_fallback_that_would_hide_a_node_is_refused(make: Any) -> None:
    """Two nodes of one name: the error says how to mean the one or the other."""

    def work(state: Any) -> Any:
        return {}

    with pytest.raises(ValueError, match=r"fallback .*'work'.*rename"):
        make(Site(), deadline=30, fallback=work)


@makers
def test_c13_a_fallback_named_as_a_state_key_is_refused_by_that_name(make: Any) -> None:
    """LangGraph forbids such nodes; the error has to say that it is the fallback's."""

    def text(state: Any) -> Any:
        return {}

    with pytest.raises(ValueError, match="fallback"):
        make(Site(), deadline=30, fallback=text)


@makers
def test_c13_on_exceeded_fallback_needs_one(make: Any) -> None:
    """A route that leads nowhere is found when compiling."""
    policy = DeadlinePolicy(seconds=30, on_exceeded="fallback")
    with pytest.raises(ValueError, match="on_exceeded") as caught:
        make(Site(), deadline=policy)
    assert "fallback" in str(caught.value)


@makers
def test_c13_a_reserve_larger_than_the_budget_is_refused(make: Any) -> None:
    """The policy itself cannot be made, nor a graph with it."""
    with pytest.raises(ValueError, match="reserve"):
        make(Site(), deadline=DeadlinePolicy(seconds=2, reserve=3))


def test_c13_a_failed_compile_leaves_the_builder_as_it_was() -> None:
    """The same builder compiles afterwards, without a trace of the attempt."""
    site = Site()
    builder = site.builder()
    before = dict(builder.nodes), set(builder.edges), dict(builder.channels)

    def late(state: Any) -> Any:
        return {"text": "late"}

    with pytest.raises(ValueError, match="steps"):
        builder.compile(deadline=DeadlinePolicy(steps={"x": 1}), fallback=late)
    with pytest.raises(ValueError, match="deadline"):
        builder.compile(deadline=-1, fallback=late)
    assert (dict(builder.nodes), set(builder.edges), dict(builder.channels)) == before
    assert builder.compile(deadline=5).invoke({}) == {"text": "worked"}


def test_c13_with_deadline_refuses_what_it_cannot_bound_and_names_its_type() -> None:
    """A TypeError, for no value of `deadline` would make it work."""
    for thing in (5, "graph", None, Site().builder(), Site):
        with pytest.raises(TypeError, match=type(thing).__name__):
            with_deadline(thing, 30)  # type: ignore[type-var]


def test_c13_a_refused_copy_leaves_the_original_alone() -> None:
    """`with_deadline` never mutates, also when it fails half-way."""
    plain = Site().builder(PlainStateGraph).compile()
    before = dict(plain.nodes), dict(plain.channels), dict(plain.builder.nodes)

    def late(state: Any) -> Any:
        return {}

    with pytest.raises(ValueError, match="steps"):
        with_deadline(plain, DeadlinePolicy(steps={"x": 1}), fallback=late)
    assert (dict(plain.nodes), dict(plain.channels), dict(plain.builder.nodes)) == (
        before
    )
    assert plain.invoke({}) == {"text": "worked"}


def test_c13_an_entrypoint_is_checked_like_a_graph() -> None:
    """The functional API gets the same errors."""

    @entrypoint()
    def flow(value: int) -> int:
        return value + 1

    with pytest.raises(ValueError, match=r"^deadline "):
        with_deadline(flow, "soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fallback names 'flwo'.*'flow'"):
        with_deadline(flow, 30, fallback="flwo")
    with pytest.raises(ValueError, match=r"steps names 'flwo'.*'flow'"):
        with_deadline(flow, DeadlinePolicy(steps={"flwo": 3}))
    assert with_deadline(flow, 30).invoke(1) == 2


# Per call.


def refused(site: Site, match: str, call: Callable[[], Any]) -> ValueError:
    """Check that `call` is refused and neither the state nor a node was touched."""
    before = site.checkpoints()
    with collect_runs() as runs, pytest.raises(ValueError, match=match) as caught:
        call()
    assert site.checkpoints() == before
    assert site.ran == []
    assert runs == []
    assert not isinstance(caught.value, DeadlineExceeded)
    return caught.value


@entries
@no_budget
@pytest.mark.parametrize("own", [None, 30], ids=["without", "with a budget"])
def test_c13_every_entry_point_refuses_what_is_no_budget(
    entry: Any, bad: Any, own: float | None
) -> None:
    """Whatever the graph was compiled with; nothing is run and nothing is stored."""
    site = Site()
    graph = site.compile(deadline=own)
    refused(site, "^deadline ", lambda: entry(graph, thread(), deadline=bad))


@entries
def test_c13_a_refused_call_leaves_a_thread_with_history_alone(entry: Any) -> None:
    """Neither its checkpoints nor its pending writes change; the next call works."""
    site = Site()
    graph = site.compile(deadline=30)
    graph.invoke({"text": "hello"}, thread())
    site.ran.clear()
    refused(site, "^deadline ", lambda: entry(graph, thread(), deadline=-1))
    refused(site, KEY, lambda: entry(graph, thread(**{KEY: "soon"})))
    assert graph.invoke({"text": "again"}, thread()) == {"text": "worked"}


def test_c13_a_refused_call_leaves_a_real_database_alone(tmp_path: Path) -> None:
    """Not one row of it changes."""
    with SqliteSaver.from_conn_string(str(tmp_path / "state.db")) as saver:
        site = Site(saver)
        graph = site.compile(deadline=30)
        graph.invoke({"text": "hello"}, thread())
        site.ran.clear()
        before = list(saver.conn.iterdump())
        for entry in (ENTRIES["invoke"], ENTRIES["stream"]):
            refused(site, "^deadline ", lambda e=entry: e(graph, thread(), deadline=0))
            refused(site, KEY, lambda e=entry: e(graph, thread(**{KEY: "0"})))
        assert list(saver.conn.iterdump()) == before


@entries
def test_c13_a_reserve_larger_than_the_budget_of_a_call_is_refused(entry: Any) -> None:
    """The reserve is the compiled one, the budget the call's."""
    site = Site()
    policy = DeadlinePolicy(seconds=30, reserve=3)
    graph = site.compile(deadline=policy, fallback="degrade")
    refused(site, "reserve", lambda: entry(graph, thread(), deadline=2))
    refused(site, "reserve", lambda: entry(graph, thread(), deadline=3))
    refused(
        site, "reserve", lambda: entry(graph, thread(), deadline=timedelta(seconds=2))
    )
    entry(graph, thread(), deadline=3.5)
    assert site.ran == ["work"]


@entries
def test_c13_a_reserve_without_a_budget_meets_that_of_the_call(entry: Any) -> None:
    """Compiled with a reserve alone, the first budget there is has to be larger."""
    site = Site()
    graph = site.compile(deadline=DeadlinePolicy(reserve=3), fallback="degrade")
    refused(site, "reserve", lambda: entry(graph, thread(), deadline=2))


@entries
def test_c13_an_unknown_step_in_the_policy_of_a_call_is_refused(entry: Any) -> None:
    """A policy given for one run is checked as a compiled one is."""
    site = Site()
    graph = site.compile(deadline=30)
    policy = DeadlinePolicy(seconds=5, steps={"wrok": 1})
    error = refused(
        site, "steps names 'wrok'", lambda: entry(graph, thread(), deadline=policy)
    )
    assert "did you mean 'work'" in str(error)
    start = DeadlinePolicy(seconds=5, steps={START: 1})
    refused(site, "steps", lambda: entry(graph, thread(), deadline=start))


@entries
def test_c13_a_policy_of_a_call_cannot_ask_for_a_fallback_there_is_not(
    entry: Any,
) -> None:
    """`on_exceeded="fallback"` for a graph without one, as at compile time."""
    site = Site()
    graph = site.compile(deadline=30)
    policy = DeadlinePolicy(seconds=5, on_exceeded="fallback")
    refused(site, "on_exceeded", lambda: entry(graph, thread(), deadline=policy))


@pytest.mark.parametrize("how", ALL)
def test_c13_an_instant_that_is_nearly_over_is_no_bad_input(how: How) -> None:
    """A shared `Deadline` runs out while it is passed on: that is no user's error."""
    site = Site()
    policy = DeadlinePolicy(seconds=30, reserve=3)
    graph = site.compile(deadline=policy, fallback="degrade")
    driven = drive(graph, {}, how, thread(), deadline=Deadline.after(-1))
    assert not isinstance(driven.error, ValueError), driven.error
    assert site.ran in ([], ["degrade"])
    again = drive(graph, {}, how, thread(), deadline=Deadline.after(2))
    assert again.error is None or isinstance(again.error, DeadlineExceeded)


def test_c13_a_stream_refuses_at_the_call_or_at_its_first_item() -> None:
    """A generator that was asked for nothing has not started either."""
    site = Site()
    graph = site.compile(deadline=30)

    def call() -> None:
        next(graph.stream({}, thread(), deadline="soon"))

    refused(site, "^deadline ", call)


def test_c13_one_bad_budget_of_a_batch_is_the_error_of_the_batch() -> None:
    """With `return_exceptions` it is handed back like any other."""
    site = Site()
    graph = site.compile(deadline=30)
    results = graph.batch([{}, {}], thread(), deadline=-1, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert site.ran == []


# The config key.

HOSTILE: list[Any] = [
    "",
    " ",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "1_000",
    "1e999",
    "0x1F",
    "-5",
    "0",
    "-0.0",
    "5s",
    "soon",
    "5\r\nx-admin: 1",
    "2030-01-01T00:00:00",
    "2030-01-01",
    "2030-13-01T00:00:00Z",
    0,
    0.0,
    -1,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    b"5",
    [5],
    {"seconds": 5},
    datetime(2030, 1, 1),
    pytest.param("9" * 100_000, id="100 kB of digits"),
    pytest.param("x" * 1_000_000, id="1 MB of text"),
    pytest.param(b"9" * 1_000_000, id="1 MB of bytes"),
    pytest.param(10**400, id="an integer beyond every float"),
    pytest.param(object(), id="object"),
]


@entries
@pytest.mark.parametrize("bad", HOSTILE)
def test_c13_every_entry_point_refuses_a_malformed_header(entry: Any, bad: Any) -> None:
    """The error names the key; nothing is run, nothing is stored."""
    site = Site()
    graph = site.compile(deadline=30)
    error = refused(site, KEY, lambda: entry(graph, thread(**{KEY: bad})))
    assert len(str(error)) < 400


@pytest.mark.parametrize("bad", ["", "nan", -1, True, [5]])
def test_c13_a_malformed_header_is_refused_where_no_deadline_is(bad: Any) -> None:
    """Also without a compiled budget, and when it was bound with `with_config`."""
    site = Site()
    refused(site, KEY, lambda: site.compile().invoke({}, thread(**{KEY: bad})))
    bound_graph = site.compile(deadline=5).with_config(configurable={KEY: bad})
    refused(site, KEY, lambda: bound_graph.invoke({}, thread()))


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    "past", ["1e8", 1e8, "1999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"]
)
def test_c13_an_instant_in_the_past_is_a_deadline_and_has_passed(
    how: How, past: Any
) -> None:
    """That is not malformed: the run is over before anything starts."""
    site = Site()
    driven = drive(site.compile(deadline=30), {}, how, thread(**{KEY: past}))
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "deadline"
    assert site.ran == []
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    "far", ["99999999", "9999-12-31T23:59:59Z", 1e300, "9" * 64, 253402300799]
)
def test_c13_a_header_in_the_far_future_lengthens_nothing(how: How, far: Any) -> None:
    """The compiled budget is what the run has."""
    site = Site()
    driven = drive(site.compile(deadline=30), {}, how, thread(**{KEY: far}))
    assert driven.values == {"text": "worked"}
    assert driven.report.budget == 30


limits = st.floats(min_value=0.001, max_value=1e6)


@settings(max_examples=60, deadline=None)
@given(
    compiled=limits, header=limits, call=st.none() | limits, block=st.none() | limits
)
def test_c13_a_header_can_only_shorten(
    compiled: float, header: float, call: float | None, block: float | None
) -> None:
    """Inside the node the least of the budget, the header and the blocks applies."""
    seen: list[float] = []

    async def work(state: State) -> State:
        seen.append(remaining())
        return {}

    builder = StateGraph(State)
    builder.add_node("work", work)
    builder.add_edge(START, "work")
    graph = builder.compile(deadline=compiled)
    config = {"configurable": {KEY: header}}

    async def main() -> None:
        with fail_after(1e7 if block is None else block):
            await graph.ainvoke({}, config, deadline=call)

    run_virtual(main())
    own = compiled if call is None else call
    expected = min(own, header, 1e7 if block is None else block)
    assert seen == [pytest.approx(expected, abs=1e-6)]


# The verbs.

NO_SECONDS: list[Any] = [math.nan, math.inf, True, "5", b"5", None, [5], 10**400]


@pytest.mark.parametrize("bad", NO_SECONDS, ids=lambda bad: repr(bad)[:10])
def test_c13_a_verb_refuses_what_is_no_number_of_seconds(bad: Any) -> None:
    """When it is made, by the name of its own parameter."""
    for verb in (fail_after, move_on_after):
        with pytest.raises(ValueError, match=r"^seconds "):
            verb(bad)
    with pytest.raises(ValueError, match=r"^grace "):
        shield(bad)
    with fail_after(5), pytest.raises(ValueError, match=r"^needs "):
        check(bad)


@pytest.mark.parametrize("bad", NO_SECONDS, ids=lambda bad: repr(bad)[:10])
def test_c13_check_refuses_bad_input_also_without_a_deadline(bad: Any) -> None:
    """A mistake should not wait for the day on which there is one."""
    with pytest.raises(ValueError, match=r"^needs "):
        check(bad)


def test_c13_a_critical_section_cannot_be_negative() -> None:
    """Zero is: then the cut does not wait."""
    with pytest.raises(ValueError, match="grace must not be negative"):
        shield(-0.1)
    shield(0)


# What is not bad input.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    "budget",
    [1e300, 10**12, timedelta.max, 1e9, DeadlinePolicy(), DeadlinePolicy(seconds=1e15)],
    ids=repr,
)
def test_c13_a_budget_beyond_every_timer_is_a_budget(how: How, budget: Any) -> None:
    """No timer, lock or selector is asked for more than it can wait."""
    site = Site()
    driven = drive(site.compile(deadline=budget), {}, how, thread())
    assert driven.error is None
    assert driven.values == {"text": "worked"}


@pytest.mark.parametrize(
    "fallback",
    [
        "degrade",
        lambda state: {"text": "sorry"},
        RunnableLambda(lambda state: {"text": "sorry"}),
    ],
    ids=["name", "callable", "Runnable"],
)
def test_c13_every_documented_form_of_a_fallback_is_taken(fallback: Any) -> None:
    """And the graph still does its own work."""
    site = Site()
    graph = site.compile(deadline=30, fallback=fallback)
    assert graph.invoke({}, thread()) == {"text": "worked"}
