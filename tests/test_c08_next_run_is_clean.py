"""C8: after a cut, the thread's next input behaves as on a thread never cut."""

from __future__ import annotations

import asyncio
import functools
import operator
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, adrive, drive
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphRecursionError
from langgraph.func import entrypoint, task
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.types import CachePolicy, Command, RetryPolicy, Send

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    RunControl,
    StateGraph,
    StepBudget,
    remaining,
    with_deadline,
)
from langgraph_deadline.testing import VirtualClock, run_virtual

CUTS = ("deadline", "cancel", "step")
MODES = ("fallback", "raise", "return")
EVERY_CUT = list(product(CUTS, MODES))

CUT_TURN = {"go": ["early", "first"], "hang": True}
NEXT_TURN = {"go": ["late", "cached"], "hang": False}
LAST_TURN = {"go": ["early"], "hang": False}


class State(TypedDict, total=False):
    """What the graphs of this file keep."""

    log: Annotated[list[str], operator.add]
    go: list[str]
    hang: bool


@dataclass
class Bench:
    """Makes one graph with a fault in it, again and again as a new process would.

    Async ways hang until they are cancelled, sync ones until `released` is set.
    """

    how: How
    cut: str
    mode: str
    saver: Any
    budget: float
    entry: str = "node"
    virtual: bool = True
    ran: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    control: RunControl = field(default_factory=RunControl)

    def policy(self) -> DeadlinePolicy:
        """Return the policy under which the cut comes as asked for."""
        by_clock = self.cut == "deadline"
        steps = {"hang": StepBudget(seconds=self.budget / 2)}
        return DeadlinePolicy(
            seconds=self.budget if by_clock else 60,
            on_exceeded=self.mode,
            steps=steps if self.cut == "step" else {},
        )

    def node(self, name: str, *, hangs: bool = False) -> Any:
        """Return a node that logs its name, and hangs if the turn says so."""

        def body(state: State) -> Any:
            self.ran.append(name)
            return bool(hangs and state.get("hang"))

        def sync(state: State) -> Any:
            if body(state):
                if name == "hang" and self.cut == "cancel":
                    self.released.wait(0.1)
                    self.control.cancel()
                self.released.wait(3)
            return {"log": [name]}

        async def coroutine(state: State) -> Any:
            if body(state):
                if name == "hang" and self.cut == "cancel":
                    await asyncio.sleep(0.1)
                    self.control.cancel()
                await asyncio.sleep(3600)
            return {"log": [name]}

        return sync if self.how in SYNC else coroutine

    def edge(self, path: Any) -> Any:
        """Return a conditional edge that needs no thread in virtual time."""

        async def coroutine(state: State) -> Any:
            return path(state)

        return path if self.how in SYNC else coroutine

    def graph(self, cache: Any) -> Any:
        """Return a graph in which a cut leaves every kind of edge half fired."""
        builder = StateGraph(State)
        for name in ("early", "late", "first", "second", "join", "side", "fallback"):
            builder.add_node(name, self.node(name))
        for name in ("hang", "worker"):
            builder.add_node(name, self.node(name, hangs=True))
        builder.add_node("deferred", self.node("deferred"), defer=True)
        builder.add_node("deferred_join", self.node("deferred_join"), defer=True)
        policy = CachePolicy(key_func=lambda _: "always the same")
        node = self.node("cached", hangs=True)
        builder.add_node("cached", node, cache_policy=policy)
        if self.entry == "branch":
            builder.add_conditional_edges(START, self.edge(_go))
        else:
            builder.add_node("entry", self.node("entry"))
            builder.add_edge(START, "entry")
            builder.add_conditional_edges("entry", self.edge(_go))
        builder.add_edge(["early", "late"], "join")
        builder.add_edge(["early", "late"], "deferred_join")
        builder.add_edge("early", "deferred")
        # `second` ends in the superstep of the cut, `early` in the one before it.
        builder.add_edge(["second", "late"], "side")
        builder.add_conditional_edges("second", self.edge(_to_workers), ["worker"])
        hangs = ["second", "hang", "cached", "worker"]
        builder.add_conditional_edges("first", self.edge(_to_hang), hangs)
        return builder.compile(
            checkpointer=self.saver,
            cache=cache,
            deadline=self.policy(),
            fallback="fallback" if self.mode == "fallback" else None,
        )

    def turn(self, graph: Any, inputs: Any, config: Any, **kwargs: Any) -> Driven:
        """Run one turn in the way of this bench."""
        return drive(graph, inputs, self.how, config, virtual=self.virtual, **kwargs)


def _go(state: State) -> list[str]:
    return state["go"]


def _to_hang(state: State) -> list[Any]:
    workers = [Send("worker", state) for _ in range(2)]
    return ["second", "hang", "cached", *workers] if state.get("hang") else []


def _to_workers(state: State) -> list[Send]:
    return [Send("worker", state) for _ in range(2)]


def thread() -> dict[str, Any]:
    """Return the config of a thread that nobody used before."""
    return {"configurable": {"thread_id": str(uuid4())}}


def suffix(driven: Driven, other: Driven) -> tuple[Any, Any]:
    """Return the logs of two threads, the first without what earlier turns left."""
    fresh = other.values["log"]
    return driven.values["log"][-len(fresh) :], fresh


def check_cut(bench: Bench, driven: Driven) -> None:
    """Check that the first turn was cut where it was to be cut."""
    assert {"early", "first", "second", "hang", "worker", "cached"} <= set(bench.ran)
    assert not {"join", "deferred_join", "deferred", "side"} & set(bench.ran)
    assert bench.ran.count("fallback") == (bench.mode == "fallback")
    raised = isinstance(driven.error, DeadlineExceeded)
    assert raised == (bench.mode == "raise"), driven.error
    cause = {"deadline": "deadline", "cancel": "cancelled", "step": "step"}
    assert driven.report.cause == cause[bench.cut]


def check_same(turns: list[tuple[Driven, Driven]]) -> None:
    """Check that each pair of turns did the same, in the same order."""
    for cut, fresh in turns:
        assert cut.error is None
        assert fresh.error is None
        # Nodes side by side end in any order where they have threads.
        assert sorted(map(str, cut.updates)) == sorted(map(str, fresh.updates))
        assert cut.report.outcome == "completed"
        log, fresh_log = suffix(cut, fresh)
        assert log == fresh_log
        cut_steps, fresh_steps = (
            sorted(step.name for step in driven.report.steps) for driven in (cut, fresh)
        )
        assert cut_steps == fresh_steps


def edges_of(saved: Any) -> dict[str, Any]:
    """Return what a checkpoint holds beside the user's state, but for what is empty."""
    empty: tuple[Any, ...] = ([], set(), [set(), False])
    return {
        name: value
        for name, value in saved.checkpoint["channel_values"].items()
        if name not in State.__annotations__ and value not in empty
    }


def cut_then_compare(bench: Bench) -> None:
    """Cut a thread's run, then compare its next two turns with a fresh thread's."""
    cut_thread, fresh_thread = thread(), thread()
    cache = InMemoryCache()
    driven = bench.turn(bench.graph(cache), CUT_TURN, cut_thread, control=bench.control)
    bench.released.set()
    check_cut(bench, driven)
    turns = []
    other_cache = InMemoryCache()
    for inputs in (NEXT_TURN, LAST_TURN):
        after = bench.turn(bench.graph(cache), inputs, cut_thread)
        fresh = bench.turn(bench.graph(other_cache), inputs, fresh_thread)
        turns.append((after, fresh))
    check_same(turns)
    newest = [bench.saver.get_tuple(config) for config in (cut_thread, fresh_thread)]
    assert edges_of(newest[0]) == edges_of(newest[1])
    state = bench.graph(cache).get_state(cut_thread)
    assert state.next == ()
    assert state.tasks == ()


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("entry", ["node", "branch"])
@pytest.mark.parametrize(("cut", "mode"), EVERY_CUT)
def test_c8_the_turn_after_a_cut_is_as_on_a_fresh_thread(
    cut: str, mode: str, entry: str, how: How
) -> None:
    """Joins, deferred joins, deferred nodes, `Send`s and the cache are as never cut."""
    cut_then_compare(Bench(how, cut, mode, InMemorySaver(), 10, entry))


@pytest.mark.realtime
@pytest.mark.parametrize(("how", "entry"), [("invoke", "branch"), ("stream", "node")])
@pytest.mark.parametrize(("cut", "mode"), EVERY_CUT)
def test_c8_the_turn_after_a_cut_is_as_on_a_fresh_thread_sync(
    cut: str, mode: str, how: How, entry: str
) -> None:
    """The same with nodes that block in threads, which go on after the cut."""
    cut_then_compare(Bench(how, cut, mode, InMemorySaver(), 0.4, entry))


@contextmanager
def sync_saver(kind: str, where: str) -> Iterator[Any]:
    """Open a sync checkpointer of a kind, as a new process does."""
    if kind == "sqlite":
        with SqliteSaver.from_conn_string(where) as saver:
            yield saver
    else:
        with PostgresSaver.from_conn_string(where) as saver:
            saver.setup()
            yield saver


@asynccontextmanager
async def async_saver(kind: str, where: str) -> AsyncIterator[Any]:
    """Open an async checkpointer of a kind, as a new process does."""
    if kind == "sqlite":
        async with AsyncSqliteSaver.from_conn_string(where) as saver:
            yield saver
    else:
        async with AsyncPostgresSaver.from_conn_string(where) as saver:
            await saver.setup()
            yield saver


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Return a kind of database and where one is."""
    if request.param == "sqlite":
        return "sqlite", str(tmp_path / "threads.sqlite")
    uri: str = request.getfixturevalue("postgres_uri")
    return "postgres", uri


# Each cause and each mode; all nine pairs are tried in memory above.
SOME_CUTS = [("deadline", "raise"), ("cancel", "return"), ("step", "fallback")]


@pytest.mark.realtime
@pytest.mark.parametrize(("cut", "mode"), SOME_CUTS)
def test_c8_the_turn_after_a_cut_is_clean_in_a_database(
    cut: str, mode: str, database: tuple[str, str]
) -> None:
    """What is left half done is not in the database either, when it is opened again."""
    bench = Bench("stream", cut, mode, None, budget=0.6, virtual=False)
    threads = thread(), thread()
    caches = InMemoryCache(), InMemoryCache()
    with sync_saver(*database) as bench.saver:
        graph = bench.graph(caches[0])
        driven = bench.turn(graph, CUT_TURN, threads[0], control=bench.control)
    bench.released.set()
    check_cut(bench, driven)
    turns = []
    for inputs in (NEXT_TURN, LAST_TURN):
        with sync_saver(*database) as bench.saver:
            after, fresh = (
                bench.turn(bench.graph(cache), inputs, config)
                for cache, config in zip(caches, threads, strict=True)
            )
            turns.append((after, fresh))
            newest = [bench.saver.get_tuple(config) for config in threads]
    check_same(turns)
    assert edges_of(newest[0]) == edges_of(newest[1])


@pytest.mark.realtime
@pytest.mark.parametrize(("cut", "mode"), SOME_CUTS)
async def test_c8_the_turn_after_a_cut_is_clean_in_a_database_async(
    cut: str, mode: str, database: tuple[str, str]
) -> None:
    """The same with the async checkpointers."""
    bench = Bench("astream", cut, mode, None, budget=0.6)
    threads = thread(), thread()
    caches = InMemoryCache(), InMemoryCache()
    async with async_saver(*database) as bench.saver:
        driven = await adrive(
            bench.graph(caches[0]),
            CUT_TURN,
            "astream",
            threads[0],
            control=bench.control,
        )
    check_cut(bench, driven)
    turns = []
    for inputs in (NEXT_TURN, LAST_TURN):
        async with async_saver(*database) as bench.saver:
            after, fresh = [
                await adrive(bench.graph(cache), inputs, "astream", config)
                for cache, config in zip(caches, threads, strict=True)
            ]
            turns.append((after, fresh))
            newest = [await bench.saver.aget_tuple(config) for config in threads]
    check_same(turns)
    assert edges_of(newest[0]) == edges_of(newest[1])


@pytest.mark.parametrize("mode", MODES)
def test_c8_state_edited_between_a_cut_and_the_next_turn_changes_nothing(
    mode: str,
) -> None:
    """`update_state` after a cut makes a checkpoint of its own, which is clean too."""
    bench = Bench("astream", "deadline", mode, InMemorySaver(), budget=10)
    cut_thread, fresh_thread = thread(), thread()
    driven = bench.turn(bench.graph(InMemoryCache()), CUT_TURN, cut_thread)
    check_cut(bench, driven)
    edit = {"log": ["edited"]}
    bench.graph(None).update_state(cut_thread, edit, as_node="fallback")
    bench.graph(None).update_state(fresh_thread, edit, as_node="fallback")
    after = bench.turn(bench.graph(InMemoryCache()), NEXT_TURN, cut_thread)
    fresh = bench.turn(bench.graph(InMemoryCache()), NEXT_TURN, fresh_thread)
    check_same([(after, fresh)])


@pytest.mark.parametrize("mode", MODES)
def test_c8_two_cuts_in_a_row_leave_nothing_either(mode: str) -> None:
    """A turn that is cut like the one before it leaves no more than that one."""
    bench = Bench("astream", "deadline", mode, InMemorySaver(), budget=10)
    cut_thread, fresh_thread = thread(), thread()
    cache = InMemoryCache()
    for _ in range(2):
        bench.ran.clear()
        driven = bench.turn(bench.graph(cache), CUT_TURN, cut_thread)
        check_cut(bench, driven)
    after = bench.turn(bench.graph(cache), NEXT_TURN, cut_thread)
    fresh = bench.turn(bench.graph(InMemoryCache()), NEXT_TURN, fresh_thread)
    check_same([(after, fresh)])


@pytest.mark.parametrize("how", ASYNC)
def test_c8_a_value_used_instead_of_a_cut_node_is_not_cached(how: How) -> None:
    """A cached node that overran is computed next time, though `otherwise` stood in."""
    calls: list[str] = []

    async def slow(state: State) -> Any:
        calls.append("slow")
        await asyncio.sleep(3600 if len(calls) == 1 else 0)
        return {"log": ["computed"]}

    builder = StateGraph(State)
    policy = CachePolicy(key_func=lambda _: "always the same")
    builder.add_node("slow", slow, cache_policy=policy)
    builder.add_edge(START, "slow")
    steps = {"slow": StepBudget(seconds=1, otherwise={"log": ["instead"]})}
    graph = builder.compile(
        checkpointer=InMemorySaver(),
        cache=InMemoryCache(),
        deadline=DeadlinePolicy(seconds=10, steps=steps),
    )
    config = thread()
    first = drive(graph, {"log": ["1"]}, how, config, virtual=True)
    assert first.values["log"] == ["1", "instead"]
    second = drive(graph, {"log": ["2"]}, how, config, virtual=True)
    assert second.values["log"] == ["1", "instead", "2", "computed"]


def stateful_subgraph(mode: str, hangs: list[bool], ran: list[str]) -> Any:
    """Return a graph whose subgraph keeps its own state from turn to turn."""

    def node(name: str) -> Any:
        async def run(state: State) -> Any:
            ran.append(name)
            if name == "hang" and hangs[-1]:
                await asyncio.sleep(3600)
            return {"log": [name]}

        return run

    async def ago(state: State) -> list[str]:
        return _go(state)

    inner = StateGraph(State)
    for name in ("early", "late", "join", "hang"):
        inner.add_node(name, node(name))
    inner.add_node("step", node("step"))
    inner.add_conditional_edges(START, ago)
    inner.add_edge("step", "hang")
    inner.add_edge(["early", "late"], "join")
    builder = StateGraph(State)
    builder.add_node("inner", inner.compile(checkpointer=True))
    builder.add_node("fallback", node("fallback"))
    builder.add_edge(START, "inner")
    return builder.compile(
        checkpointer=InMemorySaver(),
        deadline=DeadlinePolicy(seconds=10, on_exceeded=mode),
        fallback="fallback" if mode == "fallback" else None,
    )


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("mode", MODES)
def test_c8_a_subgraph_with_a_memory_of_its_own_is_clean_too(
    mode: str, how: How
) -> None:
    """A half-filled join of a subgraph that persists does not fire in the next turn."""
    hangs, ran = [True], []
    graph, config = stateful_subgraph(mode, hangs, ran), thread()
    cut = drive(graph, {"go": ["early", "step"]}, how, config, virtual=True)
    assert (cut.error is not None) == (mode == "raise")
    assert ran[:3] == ["early", "step", "hang"]
    hangs.append(False)
    ran.clear()
    after = drive(graph, {"go": ["late"]}, how, config, virtual=True)
    assert after.error is None
    assert ran == ["late"]


# "raise" leaves a checkpoint from which `invoke(None, config)` goes on.


@dataclass
class Resumable:
    """A graph with a fast and a hanging node side by side, and a join behind them."""

    how: How
    cut: str = "deadline"
    saver: Any = field(default_factory=InMemorySaver)
    hangs: bool = True
    left: dict[str, float] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    control: RunControl = field(default_factory=RunControl)

    @property
    def budget(self) -> float:
        """The seconds a run may take: real ones for the sync ways."""
        return 10.0 if self.how in ASYNC else 0.4

    def node(self, name: str, *, hangs: bool = False) -> Any:
        """Return a node that notes that it runs, and hangs while the bench says so."""

        def enter() -> bool:
            self.ran.append(name)
            self.left[name] = remaining()
            return hangs and self.hangs

        def sync(state: State) -> Any:
            if enter():
                if self.cut == "cancel":
                    self.released.wait(0.1)
                    self.control.cancel()
                self.released.wait(3)
            return {"log": [name]}

        async def coroutine(state: State) -> Any:
            if enter():
                if self.cut == "cancel":
                    await asyncio.sleep(0.1)
                    self.control.cancel()
                await asyncio.sleep(3600)
            return {"log": [name]}

        return sync if self.how in SYNC else coroutine

    def policy(self) -> DeadlinePolicy:
        """Return a policy that raises."""
        steps = {"hang": StepBudget(seconds=self.budget / 2)}
        return DeadlinePolicy(
            seconds=self.budget if self.cut == "deadline" else 60,
            on_exceeded="raise",
            steps=steps if self.cut == "step" else {},
        )

    def graph(self, **options: Any) -> Any:
        """Return the graph; `options` are those of the hanging node."""
        builder = StateGraph(State)
        builder.add_node("before", self.node("before"))
        builder.add_node("fast", self.node("fast"))
        builder.add_node("hang", self.node("hang", hangs=True), **options)
        builder.add_node("join", self.node("join"))
        builder.add_edge(START, "before")
        builder.add_edge("before", "fast")
        builder.add_edge("before", "hang")
        builder.add_edge(["fast", "hang"], "join")
        return builder.compile(checkpointer=self.saver, deadline=self.policy())

    def turn(self, graph: Any, inputs: Any, config: Any, **kwargs: Any) -> Driven:
        """Run one turn."""
        return drive(graph, inputs, self.how, config, virtual=True, **kwargs)

    def let_go(self) -> None:
        """End what hangs, and let nothing hang from now on."""
        self.hangs = False
        self.released.set()
        self.ran.clear()
        self.left.clear()


def check_resumed(bench: Resumable, driven: Driven) -> None:
    """Check that the resume ran what was cut and what follows, with a new budget."""
    assert driven.error is None
    assert driven.report.outcome == "completed"
    assert bench.ran == ["hang", "join"]
    assert driven.values["log"] == ["in", "before", "fast", "hang", "join"]
    own = bench.policy()
    limit = own.steps["hang"].seconds if own.steps else own.seconds
    assert limit is not None
    if bench.how in ASYNC:
        assert bench.left["hang"] == limit
        assert bench.left["join"] == own.seconds
    else:
        assert limit - 0.3 < bench.left["hang"] <= limit


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("cut", CUTS)
def test_c8_raise_can_be_resumed_and_runs_only_what_was_cut(cut: str, how: How) -> None:
    """`invoke(None, config)` runs the cut node again, not its finished sibling."""
    bench, config = Resumable(how, cut), thread()
    first = bench.turn(bench.graph(), {"log": ["in"]}, config, control=bench.control)
    assert isinstance(first.error, DeadlineExceeded)
    assert bench.ran[0] == "before"
    assert set(bench.ran[1:]) == {"fast", "hang"}
    bench.let_go()
    graph = bench.graph()
    assert graph.get_state(config).next == ("hang",)
    check_resumed(bench, bench.turn(graph, None, config))
    saved = bench.saver.get_tuple(config)
    assert "__deadline__" not in saved.checkpoint["channel_values"]


@functools.cache
def handlers_work_beside_other_nodes() -> bool:
    """Whether plain LangGraph runs a node's error handler if others run beside it."""

    def bad(state: State) -> Any:
        raise KeyError

    builder = PlainStateGraph(State)
    builder.add_node("bad", bad, error_handler=lambda state: {"log": ["handled"]})
    builder.add_node("good", lambda state: {"log": ["good"]})
    builder.add_edge(START, "bad")
    builder.add_edge(START, "good")
    try:
        return "handled" in builder.compile().invoke({"log": []})["log"]
    except KeyError:
        return False


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("cut", CUTS)
def test_c8_raise_leaves_a_node_with_an_error_handler_resumable(
    cut: str, how: How
) -> None:
    """A cut run is no error of the node: its handler stays out, and a resume reruns it.

    A step's own overrun is the one cut that is the handler's (C7).
    """
    if cut == "step" and not handlers_work_beside_other_nodes():
        pytest.skip("this LangGraph raises past the error handler of a parallel node")
    bench, config = Resumable(how, cut), thread()

    def handler(state: State) -> Any:
        bench.ran.append("handler")
        return {"log": ["handled"]}

    options = {"error_handler": handler}
    first = bench.turn(
        bench.graph(**options), {"log": ["in"]}, config, control=bench.control
    )
    if cut == "step":
        bench.released.set()
        assert first.error is None
        assert "handler" in bench.ran
        return
    assert isinstance(first.error, DeadlineExceeded)
    assert "handler" not in bench.ran
    bench.let_go()
    check_resumed(bench, bench.turn(bench.graph(**options), None, config))


@pytest.mark.parametrize("how", ALL)
def test_c8_raise_leaves_a_node_with_retries_resumable(how: How) -> None:
    """A cut node with a retry policy is not tried again, and a resume reruns it."""
    bench, config = Resumable(how), thread()
    options = {"retry_policy": RetryPolicy(max_attempts=3, retry_on=Exception)}
    first = bench.turn(bench.graph(**options), {"log": ["in"]}, config)
    assert isinstance(first.error, DeadlineExceeded)
    assert bench.ran.count("hang") == 1
    bench.let_go()
    check_resumed(bench, bench.turn(bench.graph(**options), None, config))


def test_c8_a_run_cut_twice_can_still_be_resumed() -> None:
    """Each resume of a cut run has a budget, a cut, and a checkpoint again."""
    bench, config = Resumable("ainvoke"), thread()
    graph = bench.graph()
    bench.turn(graph, {"log": ["in"]}, config)
    for _ in range(2):
        bench.ran.clear()
        again = bench.turn(graph, None, config)
        assert isinstance(again.error, DeadlineExceeded)
        assert again.elapsed == bench.budget
        assert bench.ran == ["hang"]
        assert bench.left["hang"] == bench.budget
    bench.let_go()
    check_resumed(bench, bench.turn(graph, None, config))


@pytest.mark.parametrize("how", ALL)
def test_c8_raise_reruns_only_the_sends_that_were_cut(how: How) -> None:
    """Of five `Send`s to one node a resume runs the one that was cut."""
    bench, config, ran = Resumable(how), thread(), []

    def sync(state: Any) -> Any:
        ran.append(state["number"])
        if state["number"] == 2 and bench.hangs:
            bench.released.wait(3)
        return {"log": [str(state["number"])]}

    async def coroutine(state: Any) -> Any:
        ran.append(state["number"])
        if state["number"] == 2 and bench.hangs:
            await asyncio.sleep(3600)
        return {"log": [str(state["number"])]}

    async def afan(state: State) -> list[Send]:
        return fan(state)

    def fan(state: State) -> list[Send]:
        return [Send("worker", {"number": number}) for number in range(5)]

    builder = StateGraph(State)
    builder.add_node("worker", sync if how in SYNC else coroutine)
    edge = fan if how in SYNC else afan
    builder.add_conditional_edges(START, edge, ["worker"])
    graph = builder.compile(checkpointer=bench.saver, deadline=bench.policy())
    first = bench.turn(graph, {"log": ["in"]}, config)
    assert isinstance(first.error, DeadlineExceeded)
    assert sorted(ran) == [0, 1, 2, 3, 4]
    bench.let_go()
    ran.clear()
    again = bench.turn(graph, None, config)
    assert ran == [2]
    assert again.values["log"] == ["in", "0", "1", "2", "3", "4"]


@pytest.mark.parametrize("how", ALL)
def test_c8_raise_resumes_a_subgraph_where_it_was_cut(how: How) -> None:
    """A resume goes on inside the subgraph: not behind it, not at its start."""
    bench, config = Resumable(how), thread()
    inner = StateGraph(State)
    inner.add_node("before", bench.node("before"))
    inner.add_node("hang", bench.node("hang", hangs=True))
    inner.add_node("join", bench.node("join"))
    inner.add_edge(START, "before")
    inner.add_edge("before", "hang")
    inner.add_edge("hang", "join")
    builder = StateGraph(State)
    builder.add_node("inner", inner.compile())
    builder.add_node("after", bench.node("after"))
    builder.add_edge(START, "inner")
    builder.add_edge("inner", "after")
    graph = builder.compile(checkpointer=bench.saver, deadline=bench.policy())
    first = bench.turn(graph, {"go": []}, config)
    assert isinstance(first.error, DeadlineExceeded)
    assert bench.ran == ["before", "hang"]
    bench.let_go()
    again = bench.turn(graph, None, config)
    assert again.error is None
    assert bench.ran == ["hang", "join", "after"]
    assert again.values["log"] == ["before", "hang", "join", "after"]


@pytest.mark.parametrize("how", ALL)
def test_c8_raise_resumes_a_functional_graph_without_its_finished_tasks(
    how: How,
) -> None:
    """A `@task` that finished before the cut is not run again."""
    bench, config = Resumable(how), thread()

    if how in SYNC:
        quick = task(bench.node("fast"), name="fast")
        slow = task(bench.node("hang", hangs=True), name="hang")

        @entrypoint(checkpointer=bench.saver)
        def work(inputs: Any) -> Any:
            done = quick({}).result()["log"]
            return done + slow({}).result()["log"]

    else:
        quick = task(bench.node("fast"), name="fast")
        slow = task(bench.node("hang", hangs=True), name="hang")

        @entrypoint(checkpointer=bench.saver)
        async def work(inputs: Any) -> Any:
            done = (await quick({}))["log"]
            return done + (await slow({}))["log"]

    graph = with_deadline(work, bench.policy())
    first = bench.turn(graph, {"log": ["in"]}, config)
    assert isinstance(first.error, DeadlineExceeded)
    assert bench.ran == ["fast", "hang"]
    bench.let_go()
    again = bench.turn(graph, None, config)
    assert again.error is None
    assert bench.ran == ["hang"]
    assert again.values == ["fast", "hang"]


@pytest.mark.realtime
def test_c8_raise_can_be_resumed_from_a_database(database: tuple[str, str]) -> None:
    """The finished sibling's writes wait in the database for the resume."""
    bench, config = Resumable("invoke"), thread()
    with sync_saver(*database) as bench.saver:
        first = bench.turn(bench.graph(), {"log": ["in"]}, config)
    assert isinstance(first.error, DeadlineExceeded)
    bench.let_go()
    with sync_saver(*database) as bench.saver:
        check_resumed(bench, bench.turn(bench.graph(), None, config))


@pytest.mark.realtime
async def test_c8_raise_can_be_resumed_from_a_database_async(
    database: tuple[str, str],
) -> None:
    """The same with the async checkpointers."""
    bench, config = Resumable("ainvoke", "cancel"), thread()
    async with async_saver(*database) as bench.saver:
        first = await adrive(
            bench.graph(), {"log": ["in"]}, "ainvoke", config, control=bench.control
        )
    assert isinstance(first.error, DeadlineExceeded)
    bench.let_go()
    async with async_saver(*database) as bench.saver:
        again = await adrive(bench.graph(), None, "ainvoke", config)
    assert again.error is None
    assert bench.ran == ["hang", "join"]
    assert again.values["log"] == ["in", "before", "fast", "hang", "join"]
    assert 50 < bench.left["hang"] <= 60


@pytest.mark.parametrize("mode", ["fallback", "return"])
def test_c8_nothing_is_left_to_resume_where_the_cut_was_answered(mode: str) -> None:
    """After a fallback or a `"return"` the thread waits for an input, not a resume."""
    bench = Bench("ainvoke", "deadline", mode, InMemorySaver(), budget=10)
    graph, config = bench.graph(None), thread()
    bench.turn(graph, CUT_TURN, config)
    bench.ran.clear()
    again = bench.turn(graph, None, config)
    assert again.error is None
    assert bench.ran == []
    assert graph.get_state(config).next == ()


def test_c8_a_cut_run_is_resumed_by_a_command_as_well() -> None:
    """`Command(goto=)` on a thread that was cut starts with a budget of its own."""
    bench, config = Resumable("ainvoke"), thread()
    graph = bench.graph()
    bench.turn(graph, {"log": ["in"]}, config)
    bench.let_go()
    again = bench.turn(graph, Command(goto="join"), config)
    assert again.error is None
    assert bench.left["join"] == bench.budget


def test_c8_an_error_of_the_users_own_leaves_the_thread_as_langgraph_does() -> None:
    """A run that failed without a cut is resumed by the engine's own rules."""
    bench, config, clock = Resumable("ainvoke"), thread(), VirtualClock()
    fail = [True]

    async def failing(state: State) -> Any:
        bench.ran.append("failing")
        if fail[-1]:
            msg = "the user's own"
            raise GraphRecursionError(msg)
        return {"log": ["failing"]}

    builder = StateGraph(State)
    builder.add_node("fast", bench.node("fast"))
    builder.add_node("failing", failing)
    builder.add_edge(START, "fast")
    builder.add_edge(START, "failing")
    builder.add_edge("failing", END)
    graph = builder.compile(checkpointer=bench.saver, deadline=10)

    async def call(inputs: Any) -> Any:
        with suppress(GraphRecursionError):
            return await graph.ainvoke(inputs, config)

    run_virtual(call({"log": ["in"]}), clock=clock)
    fail.append(False)
    bench.ran.clear()
    values = run_virtual(call(None), clock=clock)
    assert bench.ran == ["failing"]
    assert sorted(values["log"]) == ["failing", "fast", "in"]
