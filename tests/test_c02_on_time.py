"""C2: the caller has a result or `DeadlineExceeded` on time, whatever the nodes do."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, State, Trial
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.types import CachePolicy, Command, RetryPolicy, Send

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    _clock,
    collect_runs,
    with_deadline,
)

GRACE = 0.25


def merge(old: list[str], new: list[str]) -> list[str]:
    """Append what is new: a subgraph hands back what it was given, too."""
    return [*old, *(name for name in new if name not in old)]


class Merged(TypedDict, total=False):
    """As `State`, for graphs in graphs."""

    log: Annotated[list[str], merge]


def both_arms(trial: Trial, bad: Any, *, schema: Any = State, **options: Any) -> Any:
    """Return a builder: `good` and `bad` side by side, each with a successor."""
    builder = StateGraph(schema)
    builder.add_node("good", trial.quick("good"))
    builder.add_node("bad", bad, **options)
    for name in ("after_good", "after_bad", "degrade", "closing"):
        builder.add_node(name, trial.quick(name))
    builder.add_edge(START, "good")
    builder.add_edge(START, "bad")
    builder.add_edge("good", "after_good")
    builder.add_edge("bad", "after_bad")
    builder.add_edge("degrade", "closing")
    builder.add_edge("closing", END)
    return builder


def fell_back(trial: Trial, driven: Driven, *kept: str) -> None:
    """Check what the caller of a run with a fallback has: `kept` and its answer."""
    assert driven.error is None
    assert driven.values["log"] == [*kept, "degrade", "closing"]
    assert trial.started.count("degrade") == 1
    assert trial.started.count("closing") == 1
    assert driven.report.outcome == "deadline"
    no_cut_edges(trial)


def no_cut_edges(trial: Trial) -> None:
    """Check that nothing beyond the superstep of the cut started."""
    assert not {"after_good", "after_bad"} & set(trial.started)


def raised(driven: Driven, step: str) -> None:
    """Check that the caller was told which step had no more time."""
    assert type(driven.error) is DeadlineExceeded
    assert driven.error.cause == "deadline"
    assert driven.error.step == step
    assert driven.report.outcome == "deadline"


# Nodes that take too long, one way or the other. Each entry: what a node does once it
# has been started, whether its late update is kept, and how late the cut is over.


async def hangs(trial: Trial) -> None:
    await asyncio.sleep(3600)


async def swallows_once(trial: Trial) -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(3600)


async def swallows_and_returns(trial: Trial) -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        return


async def swallows_for_ever(trial: Trial) -> None:
    until = asyncio.get_running_loop().time() + 50
    while (left := until - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


async def cleans_up_slowly(trial: Trial) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(5)


async def swallows_every_error(trial: Trial) -> None:
    for _ in range(3):
        try:
            await asyncio.sleep(3600)
        except BaseException as error:  # noqa: BLE001 - that is the fault
            last = error
    raise ValueError from last


async def fails_while_cut(trial: Trial) -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        msg = "while being cut"
        raise ValueError(msg) from None


Fault = Callable[[Trial], Any]
FAULTS = [
    (hangs, False, 0.0),
    (swallows_once, False, GRACE),
    (swallows_and_returns, True, 0.0),
    (swallows_for_ever, False, GRACE),
    (cleans_up_slowly, False, GRACE),
    (swallows_every_error, False, GRACE),
    (fails_while_cut, False, 0.0),
]
faults = pytest.mark.parametrize(
    ("fault", "kept", "late"), FAULTS, ids=[fault.__name__ for fault, _, _ in FAULTS]
)


def faulty(trial: Trial, fault: Fault) -> Any:
    async def bad(state: Any) -> Any:
        trial.started.append("bad")
        await fault(trial)
        return {"log": ["bad"]}

    return bad


@pytest.mark.parametrize("how", ASYNC)
@faults
def test_c2_a_faulty_async_node_delays_no_fallback(
    how: How, fault: Fault, kept: bool, late: float
) -> None:
    """The fallback starts at the work deadline, at most the grace later."""
    trial = Trial(how)
    graph = both_arms(trial, faulty(trial, fault)).compile(
        deadline=trial.reserved, fallback="degrade"
    )
    driven = trial.drive(graph)
    trial.at_work(driven, late)
    arms = ["bad", "good"] if kept else ["good"]
    fell_back(trial, driven, *arms)
    assert sorted(trial.started) == ["bad", "closing", "degrade", "good"]


@pytest.mark.parametrize("how", ASYNC)
@faults
def test_c2_a_faulty_async_node_delays_no_error(
    how: How, fault: Fault, kept: bool, late: float
) -> None:
    """Without a fallback the caller has the error at the deadline."""
    trial = Trial(how)
    graph = both_arms(trial, faulty(trial, fault)).compile(deadline=trial.budget)
    driven = trial.drive(graph)
    trial.at_budget(driven, late=late)
    raised(driven, "bad")
    assert sorted(trial.started) == ["bad", "good"]


@pytest.mark.parametrize("how", ASYNC)
@faults
def test_c2_a_faulty_async_node_delays_no_partial_state(
    how: How, fault: Fault, kept: bool, late: float
) -> None:
    """With `return` the caller has the state so far at the deadline."""
    trial = Trial(how)
    policy = DeadlinePolicy(seconds=trial.budget, on_exceeded="return")
    graph = both_arms(trial, faulty(trial, fault)).compile(deadline=policy)
    driven = trial.drive(graph)
    trial.at_budget(driven, late=late)
    assert driven.error is None
    assert driven.values["log"] == (["bad", "good"] if kept else ["good"])
    assert driven.report.outcome == "deadline"
    assert sorted(trial.started) == ["bad", "good"]


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_c2_a_blocking_sync_node_delays_no_fallback(how: How) -> None:
    """A `time.sleep` in a sync node is given up, in sync and async graphs alike."""
    trial = Trial(how, realtime=True)

    def bad(state: State) -> State:
        trial.started.append("bad")
        time.sleep(1.5)
        return {"log": ["bad"]}

    graph = both_arms(trial, bad).compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "good")


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_c2_a_blocking_sync_node_delays_no_error(how: How) -> None:
    """A `time.sleep` in a sync node keeps nobody from raising at the deadline."""
    trial = Trial(how, realtime=True)

    def bad(state: State) -> State:
        trial.started.append("bad")
        time.sleep(1.5)
        return {"log": ["bad"]}

    graph = both_arms(trial, bad).compile(deadline=trial.budget)
    began = _clock.now()
    driven = trial.drive(graph)
    trial.at_budget(driven)
    raised(driven, "bad")
    # Neither does the loop wait for the thread when it is closed.
    assert _clock.now() - began < 1.4


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_c2_a_blocking_sync_node_delays_no_partial_state(how: How) -> None:
    """With `return`, what finished beside a `time.sleep` is there at the deadline."""
    trial = Trial(how, realtime=True)

    def bad(state: State) -> State:
        trial.started.append("bad")
        time.sleep(1.5)
        return {"log": ["bad"]}

    policy = DeadlinePolicy(seconds=trial.budget, on_exceeded="return")
    graph = both_arms(trial, bad).compile(deadline=policy)
    driven = trial.drive(graph)
    trial.at_budget(driven)
    assert driven.error is None
    assert driven.values["log"] == ["good"]
    no_cut_edges(trial)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_c2_many_blocking_sync_nodes_starve_nothing(how: How) -> None:
    """Forty sync nodes that sleep in an async graph leave threads for the fallback."""
    trial = Trial(how, realtime=True)
    builder = StateGraph(State)

    def bad(state: State) -> State:
        trial.released.wait(3)
        return {}

    for n in range(40):
        builder.add_node(f"bad{n}", bad)
        builder.add_edge(START, f"bad{n}")

    def degrade(state: State) -> State:
        trial.started.append("degrade")
        return {"log": ["degrade"]}

    graph = builder.compile(deadline=trial.reserved, fallback=degrade)
    driven = trial.drive(graph)
    trial.at_work(driven)
    assert driven.values["log"] == ["degrade"]
    assert trial.started == ["degrade"]


# Waiting of other kinds.


def flaky(trial: Trial) -> Any:
    def bad(state: State) -> State:
        trial.started.append("bad")
        msg = "try again"
        raise ConnectionError(msg)

    return trial.as_how(bad)


LONG_BACK_OFF = RetryPolicy(
    initial_interval=30.0, max_interval=30.0, max_attempts=5, jitter=False
)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("where", ["node", "graph"])
def test_c2_a_retry_back_off_delays_no_fallback(how: How, where: str) -> None:
    """A back-off that would pass the deadline is not slept to its end."""
    trial = Trial(how)
    options = {"retry_policy": LONG_BACK_OFF} if where == "node" else {}
    builder = both_arms(trial, flaky(trial), **options)
    plain = PlainStateGraph.compile(builder)
    if where == "graph":
        plain.retry_policy = (LONG_BACK_OFF,)
    graph = with_deadline(plain, trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    assert driven.elapsed <= trial.work + (0.6 if trial.real else 0.0)
    # Its sibling may be cut before it has finished: there is nothing to wait for.
    kept = [name for name in ("good",) if name in driven.values["log"]]
    fell_back(trial, driven, *kept)
    assert trial.started.count("bad") == 1


@pytest.mark.parametrize("how", ALL)
def test_c2_a_retry_back_off_delays_no_error(how: How) -> None:
    """A back-off that would pass the deadline ends in `DeadlineExceeded` instead."""
    trial = Trial(how)
    builder = both_arms(trial, flaky(trial), retry_policy=LONG_BACK_OFF)
    graph = builder.compile(deadline=trial.budget)
    driven = trial.drive(graph)
    assert driven.elapsed <= trial.budget + (0.6 if trial.real else 0.0)
    assert type(driven.error) is DeadlineExceeded
    assert driven.error.step == "bad"
    assert driven.report.outcome == "deadline"
    assert trial.started.count("bad") == 1
    no_cut_edges(trial)


@pytest.mark.parametrize("how", ALL)
def test_c2_a_full_semaphore_delays_no_fallback(how: How) -> None:
    """Nodes that wait for `max_concurrency` behind one that hangs never start."""
    trial = Trial(how)
    builder = StateGraph(State)
    builder.add_node("a_hang", trial.hang("a_hang"))
    builder.add_edge(START, "a_hang")
    for n in range(5):
        builder.add_node(f"z{n}", trial.quick(f"z{n}"))
        builder.add_edge(START, f"z{n}")
    builder.add_node("degrade", trial.quick("degrade"))
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, config={"max_concurrency": 1})
    trial.at_work(driven)
    assert driven.error is None
    assert driven.values["log"] == ["degrade"]
    assert trial.started == ["a_hang", "degrade"]


@pytest.mark.parametrize("how", ASYNC)
def test_c2_a_semaphore_held_for_ever_delays_no_error(how: How) -> None:
    """A node that keeps its slot, cancelled or not, keeps nobody waiting for it."""
    trial = Trial(how)
    builder = StateGraph(State)
    builder.add_node("bad", faulty(trial, swallows_for_ever))
    builder.add_edge(START, "bad")
    for n in range(5):
        builder.add_node(f"z{n}", trial.quick(f"z{n}"))
        builder.add_edge(START, f"z{n}")
    graph = builder.compile(deadline=trial.budget)
    driven = trial.drive(graph, config={"max_concurrency": 1})
    trial.at_budget(driven, late=GRACE)
    assert type(driven.error) is DeadlineExceeded
    assert trial.started == ["bad"]


class SlowSaver(InMemorySaver):
    """A checkpointer whose writes take their time, but for the `first` ones."""

    def __init__(self, trial: Trial, first: int = 0) -> None:
        super().__init__()
        self.trial = trial
        self.first = first
        self.calls = 0

    def _is_slow(self) -> bool:
        self.calls += 1
        return self.calls > self.first

    def _wait(self) -> None:
        if self._is_slow():
            self.trial.released.wait(3)

    async def _await(self) -> None:
        if self._is_slow():
            await asyncio.sleep(60)

    def put(self, *args: Any, **kwargs: Any) -> Any:
        self._wait()
        return super().put(*args, **kwargs)

    def put_writes(self, *args: Any, **kwargs: Any) -> None:
        self._wait()
        super().put_writes(*args, **kwargs)

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        await self._await()
        return super().put(*args, **kwargs)

    async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
        await self._await()
        super().put_writes(*args, **kwargs)


THREAD = {"configurable": {"thread_id": "1"}}


def chain(trial: Trial) -> Any:
    builder = StateGraph(State)
    for name in ("one", "two", "three"):
        builder.add_node(name, trial.quick(name))
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    builder.add_edge("two", "three")
    builder.add_edge("three", END)
    return builder


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    ("durability", "first"),
    [("sync", 0), ("sync", 3), ("async", 0), ("async", 3)],
)
def test_c2_a_slow_checkpointer_delays_no_caller(
    how: How, durability: str, first: int
) -> None:
    """Writes of a checkpointer that take longer than the run end with it."""
    trial = Trial(how)
    builder = chain(trial)
    saver = SlowSaver(trial, first)
    graph = builder.compile(saver, deadline=trial.budget)
    driven = trial.drive(graph, config=THREAD, durability=durability)
    assert driven.elapsed <= trial.budget + GRACE + (0.6 if trial.real else 0.0)
    assert driven.error is None or type(driven.error) is DeadlineExceeded
    if driven.elapsed >= trial.budget:
        assert driven.report.outcome == "deadline"
    else:
        assert driven.values["log"] == ["one", "two", "three"]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    ("durability", "first"),
    [("sync", 3), ("async", 0), ("exit", 0)],
)
def test_c2_a_slow_checkpointer_and_a_fallback_delay_no_caller(
    how: How, durability: str, first: int
) -> None:
    """With a fallback, too, the caller is not kept beyond the deadline."""
    trial = Trial(how, reserve=0.4)
    builder = chain(trial)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge("one", "bad")
    builder.add_edge("bad", "three")
    saver = SlowSaver(trial, first)
    graph = builder.compile(saver, deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, config=THREAD, durability=durability)
    assert driven.elapsed <= trial.end + GRACE + (0.6 if trial.real else 0.0)
    assert driven.error is None or type(driven.error) is DeadlineExceeded
    assert driven.report.outcome == "deadline"
    assert trial.started.count("degrade") <= 1
    if driven.error is None:
        assert driven.values["log"][-1] == "degrade"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("durability", ["async", "exit"])
def test_c7_a_slow_checkpointer_keeps_no_fallback_from_running(
    how: How, durability: str
) -> None:
    """Where the engine does not wait for its saver, the fallback has its turn."""
    trial = Trial(how, reserve=0.4)
    saver = SlowSaver(trial)
    graph = both_arms(trial, trial.hang("bad")).compile(
        saver, deadline=trial.reserved, fallback="degrade"
    )
    driven = trial.drive(graph, config=THREAD, durability=durability)
    assert driven.elapsed <= trial.end + GRACE + (0.6 if trial.real else 0.0)
    assert trial.started.count("degrade") == 1
    assert driven.error is None
    assert driven.values["log"][:2] == ["good", "degrade"]


class SlowLoader(InMemorySaver):
    """A checkpointer that takes its time to read."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial

    def get_tuple(self, config: Any) -> Any:
        self.trial.released.wait(3)
        return super().get_tuple(config)

    async def aget_tuple(self, config: Any) -> Any:
        await asyncio.sleep(60)
        return super().get_tuple(config)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("mode", ["fallback", "raise", "return"])
def test_c2_a_checkpointer_that_is_slow_to_load_delays_no_caller(
    how: How, mode: str
) -> None:
    """A run that never got to its first node has no answer, but it ends."""
    trial = Trial(how, reserve=0.2)
    graph = trial.compile(chain(trial), mode, checkpointer=SlowLoader(trial))
    driven = trial.drive(graph, config=THREAD)
    end = trial.end if mode == "fallback" else trial.budget
    assert driven.elapsed <= end + GRACE + (0.6 if trial.real else 0.0)
    assert type(driven.error) is DeadlineExceeded
    assert driven.report.outcome == "deadline"
    assert trial.started == []


class SlowCache(InMemoryCache[Any]):
    """A cache that takes its time."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial

    def get(self, keys: Any) -> Any:
        self.trial.released.wait(3)
        return super().get(keys)

    async def aget(self, keys: Any) -> Any:
        await asyncio.sleep(60)
        return super().get(keys)


@pytest.mark.parametrize("how", ALL)
def test_c2_a_slow_cache_delays_no_caller(how: How) -> None:
    """What the engine does for a node counts like the node."""
    trial = Trial(how)
    builder = StateGraph(State)
    builder.add_node("one", trial.quick("one"), cache_policy=CachePolicy())
    builder.add_edge(START, "one")
    graph = builder.compile(cache=SlowCache(trial), deadline=trial.budget)
    driven = trial.drive(graph)
    assert driven.elapsed <= trial.budget + GRACE + (0.6 if trial.real else 0.0)
    assert type(driven.error) is DeadlineExceeded
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("origin", [START, "good"])
@pytest.mark.parametrize("mode", ["fallback", "raise", "return"])
def test_c2_a_hanging_conditional_edge_delays_no_caller(
    how: How, origin: str, mode: Any
) -> None:
    """A conditional edge is cut like a node; the node it follows has finished."""
    trial = Trial(how)
    builder = StateGraph(State)
    for name in ("good", "never", "degrade"):
        builder.add_node(name, trial.quick(name))

    def path(state: State) -> str:
        trial.started.append("path")
        trial.released.wait(3)
        return "never"

    async def apath(state: State) -> str:
        trial.started.append("path")
        await asyncio.sleep(3600)
        return "never"

    if origin == "good":
        builder.add_edge(START, "good")
    targets = ["never", "good"] if origin == START else ["never", END]
    builder.add_conditional_edges(origin, path if how in SYNC else apath, targets)
    graph = trial.compile(builder, mode)
    driven = trial.drive(graph)
    trial.at_cut(driven, mode)
    finished = ["good"] if origin == "good" else []
    assert trial.started == [
        *finished,
        "path",
        *(["degrade"] if mode == "fallback" else []),
    ]
    assert driven.report.outcome == "deadline"
    if mode == "fallback":
        assert driven.values["log"] == [*finished, "degrade"]
    elif mode == "return":
        assert driven.error is None
        assert driven.values["log"] == finished
    else:
        raised(driven, origin)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("origin", [START, "good"])
def test_c2_a_blocking_conditional_edge_of_an_async_graph_delays_no_caller(
    how: How, origin: str
) -> None:
    """A sync path function that blocks blocks a thread, not the loop."""
    trial = Trial(how, realtime=True)
    builder = StateGraph(State)
    for name in ("good", "never", "degrade"):
        builder.add_node(name, trial.quick(name))

    def path(state: State) -> str:
        trial.started.append("path")
        time.sleep(1.5)
        return "never"

    if origin == "good":
        builder.add_edge(START, "good")
    builder.add_conditional_edges(origin, path, ["never"])
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    finished = ["good"] if origin == "good" else []
    assert driven.error is None
    assert driven.values["log"] == [*finished, "degrade"]
    assert trial.started == [*finished, "path", "degrade"]


# A fallback at fault.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("first", ["degrade", "closing"])
def test_c2_a_hanging_fallback_delays_no_caller(how: How, first: str) -> None:
    """The deadline holds for the fallback, too, and for what it leads to."""
    trial = Trial(how, reserve=0.4)
    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge(START, "bad")
    for name in ("degrade", "closing"):
        builder.add_node(name, trial.hang(name) if name == first else trial.quick(name))
    builder.add_node("after", trial.quick("after"))
    builder.add_edge("degrade", "closing")
    builder.add_edge("closing", "after")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_end(driven)
    assert driven.report.outcome == "deadline"
    assert trial.started == (
        ["bad", "degrade"] if first == "degrade" else ["bad", "degrade", "closing"]
    )
    if first == "degrade":
        raised(driven, "degrade")


@pytest.mark.parametrize("how", ASYNC)
@faults
def test_c2_a_faulty_async_fallback_delays_no_caller(
    how: How, fault: Fault, kept: bool, late: float
) -> None:
    """A fallback may resist for no longer than any other node."""
    trial = Trial(how)

    async def degrade(state: State) -> State:
        trial.started.append("degrade")
        await fault(trial)
        return {"log": ["degrade"]}

    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge(START, "bad")
    graph = builder.compile(deadline=trial.reserved, fallback=degrade)
    driven = trial.drive(graph)
    trial.at_end(driven, late)
    assert driven.error is None or type(driven.error) is DeadlineExceeded
    assert driven.report.outcome == "deadline"
    assert trial.started == ["bad", "degrade"]


@pytest.mark.parametrize("how", ALL)
def test_c2_a_fallback_at_work_when_the_cut_comes_goes_on(how: How) -> None:
    """A fallback that the graph itself has started is neither cut nor run again."""
    trial = Trial(how)
    nap = trial.work + 0.3

    def degrade(state: State) -> State:
        trial.started.append("degrade")
        time.sleep(nap)
        return {"log": ["degrade"]}

    async def adegrade(state: State) -> State:
        trial.started.append("degrade")
        await asyncio.sleep(nap)
        return {"log": ["degrade"]}

    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_node("degrade", degrade if how in SYNC else adegrade)
    builder.add_edge(START, "bad")
    builder.add_edge(START, "degrade")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.took(driven, nap)
    assert driven.error is None
    assert driven.values["log"] == ["degrade"]
    assert trial.started.count("degrade") == 1


# Shapes of graphs.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("share", [1, 7])
def test_c2_a_hundred_sends_are_cut_at_once(how: How, share: int) -> None:
    """Every n-th of a hundred `Send`s hangs: one fallback, all others' work is kept."""
    trial = Trial(how, seconds=0.7)

    class Item(TypedDict):
        n: int

    def work(item: Item) -> State:
        trial.started.append("work")
        if item["n"] % share == 0:
            trial.released.wait(3)
        return {"log": [f"work{item['n']}"]}

    async def awork(item: Item) -> State:
        trial.started.append("work")
        if item["n"] % share == 0:
            await asyncio.sleep(3600)
        return {"log": [f"work{item['n']}"]}

    builder = StateGraph(State)
    builder.add_node("split", trial.quick("split"))
    builder.add_node("work", work if how in SYNC else awork)
    builder.add_node("gather", trial.quick("gather"))
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_node("closing", trial.quick("closing"))
    builder.add_edge(START, "split")
    builder.add_conditional_edges(
        "split",
        trial.as_how(lambda _: [Send("work", {"n": n}) for n in range(100)]),
        ["work"],
    )
    builder.add_edge("work", "gather")
    builder.add_edge("degrade", "closing")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, config={"max_concurrency": 100})  # threads for all
    trial.at_work(driven)
    done = [f"work{n}" for n in range(100) if n % share]
    assert driven.error is None
    assert driven.values["log"] == ["split", *done, "degrade", "closing"]
    assert trial.started.count("degrade") == 1
    assert trial.started.count("closing") == 1
    assert "gather" not in trial.started
    assert driven.report.outcome == "deadline"


def nested(trial: Trial, factory: Any, depth: int) -> Any:
    """Return a compiled subgraph, `depth` levels deep, that hangs at the bottom."""
    builder = factory(Merged)
    builder.add_node(f"done{depth}", trial.quick(f"done{depth}"))
    inner = trial.hang("hang") if depth == 1 else nested(trial, factory, depth - 1)
    builder.add_node(f"inner{depth}", inner)
    builder.add_node(f"after{depth}", trial.quick(f"after{depth}"))
    builder.add_edge(START, f"done{depth}")
    builder.add_edge(f"done{depth}", f"inner{depth}")
    builder.add_edge(f"inner{depth}", f"after{depth}")
    return builder.compile()


DONE_INSIDE = ["done3", "done2", "done1"]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
@pytest.mark.parametrize("saved", [False, True])
def test_c2_a_subgraph_three_levels_deep_is_cut_and_hands_over_its_work(
    how: How, factory: Any, saved: bool
) -> None:
    """What finished inside a subgraph is in the state that the fallback sees."""
    trial = Trial(how)
    builder = both_arms(trial, nested(trial, factory, 3), schema=Merged)
    saver = InMemorySaver() if saved else None
    graph = builder.compile(saver, deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, config=THREAD)
    trial.at_work(driven)
    fell_back(trial, driven, *DONE_INSIDE, "good")
    assert sorted(trial.started) == [
        "closing",
        "degrade",
        *sorted(DONE_INSIDE),
        "good",
        "hang",
    ]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
def test_c2_a_deep_subgraph_without_a_fallback_raises_on_time(
    how: How, factory: Any
) -> None:
    """Without a fallback a cut deep inside is the run's `DeadlineExceeded`."""
    trial = Trial(how)
    builder = both_arms(trial, nested(trial, factory, 3), schema=Merged)
    driven = trial.drive(builder.compile(deadline=trial.budget))
    trial.at_budget(driven)
    assert type(driven.error) is DeadlineExceeded
    assert driven.report.outcome == "deadline"
    assert sorted(trial.started) == [*sorted(DONE_INSIDE), "good", "hang"]


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_c2_a_resisting_node_deep_in_subgraphs_delays_by_one_grace_only(
    how: How, factory: Any, depth: int
) -> None:
    """Levels of subgraphs share one grace, and hand over what had finished."""
    trial = Trial(how)
    inner = factory(Merged)
    inner.add_node("done1", trial.quick("done1"))
    inner.add_node("bad", faulty(trial, swallows_for_ever))
    inner.add_edge(START, "done1")
    inner.add_edge("done1", "bad")
    subgraph = inner.compile()
    for _ in range(depth - 1):
        outer = factory(Merged)
        outer.add_node("inner", subgraph)
        outer.add_edge(START, "inner")
        subgraph = outer.compile()
    builder = both_arms(trial, subgraph, schema=Merged)
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    assert trial.work <= driven.elapsed <= trial.work + GRACE + 1e-6
    fell_back(trial, driven, "done1", "good")


@pytest.mark.parametrize("how", ALL)
def test_c2_a_subgraph_called_in_a_node_is_cut_and_hands_over_its_work(
    how: How,
) -> None:
    """A graph of ours that a function calls returns what it has when it is cut."""
    trial = Trial(how)
    inner = nested(trial, StateGraph, 2)

    def call(state: Any) -> Any:
        return inner.invoke({"log": []})

    async def acall(state: Any) -> Any:
        return await inner.ainvoke({"log": []})

    builder = both_arms(trial, call if how in SYNC else acall, schema=Merged)
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "done2", "done1", "good")


@pytest.mark.parametrize("how", ALL)
def test_c2_deferred_nodes_do_not_run_after_a_cut(how: How) -> None:
    """What waits for all others to finish does not take a cut for that."""
    trial = Trial(how)
    builder = both_arms(trial, trial.hang("bad"))
    builder.add_node("last", trial.quick("last"), defer=True)
    builder.add_node("join", trial.quick("join"), defer=True)
    builder.add_edge("good", "last")
    builder.add_edge(["good", "bad"], "join")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "good")
    assert not {"last", "join"} & set(trial.started)


@pytest.mark.parametrize("how", ALL)
def test_c2_a_deferred_node_waiting_from_earlier_does_not_run_after_a_cut(
    how: How,
) -> None:
    """A deferred node that was due before the superstep of the cut is dropped."""
    trial = Trial(how)
    builder = StateGraph(State)
    builder.add_node("first", trial.quick("first"))
    builder.add_node("bad", trial.hang("bad"))
    builder.add_node("last", trial.quick("last"), defer=True)
    for name in ("degrade", "closing"):
        builder.add_node(name, trial.quick(name))
    builder.add_edge(START, "first")
    builder.add_edge("first", "last")
    builder.add_edge("first", "bad")
    builder.add_edge("bad", "last")
    builder.add_edge("degrade", "closing")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "first")
    assert "last" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c2_a_deferred_fallback_runs_once(how: How) -> None:
    """A fallback that is a deferred node has its turn as well."""
    trial = Trial(how)
    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_node("degrade", trial.quick("degrade"), defer=True)
    builder.add_node("closing", trial.quick("closing"))
    builder.add_edge(START, "bad")
    builder.add_edge("degrade", "closing")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven)


@pytest.mark.parametrize("how", ALL)
def test_c2_a_waiting_edge_does_not_fire_for_a_cut_node(how: How) -> None:
    """`add_edge(["good", "bad"], "join")` waits for nodes that finished."""
    trial = Trial(how)
    builder = both_arms(trial, trial.hang("bad"))
    builder.add_node("join", trial.quick("join"))
    builder.add_edge(["good", "bad"], "join")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "good")
    assert "join" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c2_a_barrier_in_front_of_what_the_fallback_leads_to_fires_afresh(
    how: How,
) -> None:
    """A join the fallback's successors share with the work waits for both of them."""
    trial = Trial(how)
    builder = StateGraph(State)
    for name in ("first", "left", "right", "join", "degrade"):
        builder.add_node(name, trial.quick(name))
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge(START, "left")
    builder.add_edge("left", "bad")
    builder.add_edge("bad", "right")
    builder.add_edge(["left", "right"], "join")
    builder.add_edge("degrade", "right")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    assert driven.error is None
    assert driven.values["log"] == ["left", "degrade", "right"]
    assert "join" not in trial.started


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("goto", ["aside", "sends"])
def test_c2_a_commands_goto_does_not_fire_beside_a_cut_node(
    how: How, goto: str
) -> None:
    """The update of a finished node's `Command` is kept, its `goto` is not followed."""
    trial = Trial(how)
    aim: Any = {
        "aside": "aside",
        "sends": [Send("aside", {"log": []})],
    }[goto]

    def jump(state: State) -> Command[Any]:
        trial.started.append("jump")
        return Command(update={"log": ["jump"]}, goto=aim)

    builder = both_arms(trial, trial.hang("bad"))
    builder.add_node("jump", trial.as_how(jump), destinations=("aside",))
    builder.add_node("aside", trial.quick("aside"))
    builder.add_edge(START, "jump")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "good", "jump")
    assert "aside" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c2_a_hanging_node_reached_by_a_command_is_cut(how: How) -> None:
    """Where a run was led by `Command(goto=)` makes no difference to a cut."""
    trial = Trial(how)

    def jump(state: State) -> Command[Any]:
        trial.started.append("jump")
        return Command(update={"log": ["jump"]}, goto="bad")

    builder = StateGraph(State)
    builder.add_node("jump", trial.as_how(jump), destinations=("bad",))
    builder.add_node("bad", trial.hang("bad"))
    for name in ("degrade", "closing"):
        builder.add_node(name, trial.quick(name))
    builder.add_edge(START, "jump")
    builder.add_edge("degrade", "closing")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "jump")


@pytest.mark.parametrize("how", ASYNC)
def test_c2_a_late_command_updates_but_leads_nowhere(how: How) -> None:
    """A cut node that returns a `Command` in its grace has its update kept alone."""
    trial = Trial(how)

    async def bad(state: State) -> Command[Any]:
        trial.started.append("bad")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return Command(update={"log": ["bad"]}, goto="aside")
        raise AssertionError

    builder = both_arms(trial, bad, destinations=("aside",))
    builder.add_node("aside", trial.quick("aside"))
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    fell_back(trial, driven, "bad", "good")
    assert "aside" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c2_a_fallback_may_lead_on_by_command(how: How) -> None:
    """A fallback that returns `Command(goto=)` is followed, in the reserve."""
    trial = Trial(how)

    def degrade(state: State) -> Command[Any]:
        trial.started.append("degrade")
        return Command(update={"log": ["degrade"]}, goto="aside")

    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_node("degrade", trial.as_how(degrade), destinations=("aside",))
    builder.add_node("aside", trial.quick("aside"))
    builder.add_edge(START, "bad")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    assert driven.error is None
    assert driven.values["log"] == ["degrade", "aside"]


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_c2_nodes_that_stream_are_cut_like_others(how: How) -> None:
    """A node that streams custom data for ever is heard until the cut, no longer."""
    trial = Trial(how)
    tick = trial.work / 10

    def drip(state: State) -> State:
        writer = get_stream_writer()
        for n in range(60):
            writer(n)
            time.sleep(tick)
        return {"log": ["drip"]}

    async def adrip(state: State) -> State:
        writer = get_stream_writer()
        n = 0
        while n < 60:
            writer(n)
            n += 1
            try:
                await asyncio.sleep(tick)
            except asyncio.CancelledError:
                continue
        return {"log": ["drip"]}

    def degrade(state: State) -> State:
        get_stream_writer()("degrade")
        return {"log": ["degrade"]}

    builder = StateGraph(State)
    builder.add_node("drip", drip if how in SYNC else adrip)
    builder.add_edge(START, "drip")
    graph = builder.compile(deadline=trial.reserved, fallback=trial.as_how(degrade))
    items: list[tuple[str, Any]] = []

    class Listening:
        """Notes what is streamed, with the modes it wants."""

        def stream(self, inputs: Any, config: Any, stream_mode: Any) -> Any:
            modes = [*stream_mode, "custom"]
            for mode, chunk in graph.stream(inputs, config, stream_mode=modes):
                items.append((mode, chunk))
                yield mode, chunk

        async def astream(self, inputs: Any, config: Any, stream_mode: Any) -> Any:
            modes = [*stream_mode, "custom"]
            async for mode, chunk in graph.astream(inputs, config, stream_mode=modes):
                items.append((mode, chunk))
                yield mode, chunk

    driven = trial.drive(Listening())
    trial.at_work(driven, 0.0 if trial.real else GRACE)
    custom = [chunk for mode, chunk in items if mode == "custom"]
    assert custom[0] == 0
    assert custom[-1] == "degrade"
    assert custom[:-1] == list(range(len(custom) - 1))
    assert len(custom) - 1 <= 11
    assert items[-1] == ("values", {"log": ["degrade"]})
    assert driven.error is None


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("with_fallback", [True, False])
def test_c2_an_async_node_that_blocks_the_loop_is_named(
    how: How, with_fallback: bool
) -> None:
    """What cannot be pre-empted is detected, and reported by name."""
    trial = Trial(how, realtime=True)

    async def blocks(state: State) -> State:
        time.sleep(0.8)
        return {"log": ["blocks"]}

    async def waits(state: State) -> State:
        await asyncio.sleep(30)
        return {"log": ["waits"]}

    builder = StateGraph(State)
    builder.add_node("blocks", blocks)
    builder.add_node("waits", waits)
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge(START, "blocks")
    builder.add_edge(START, "waits")
    graph = trial.compile(builder, "fallback" if with_fallback else "raise")
    driven = trial.drive(graph)
    blockers = [s for s in driven.report.stragglers if s.blocked_loop]
    assert [s.name for s in blockers] == ["blocks"]
    assert 0.3 < blockers[0].overrun < 1.5
    assert not blockers[0].running
    assert driven.report.outcome == "deadline"
    assert driven.elapsed < 1.6


@pytest.mark.realtime
def test_c2_an_async_node_that_blocks_the_loop_after_its_cut_is_named() -> None:
    """Clean-up that blocks the loop past the grace is named, too."""

    async def blocks(state: State) -> State:
        try:
            await asyncio.sleep(30)
        finally:
            time.sleep(0.8)
        return {}

    builder = StateGraph(State)
    builder.add_node("blocks", blocks)
    builder.add_edge(START, "blocks")
    driven = Trial("ainvoke", realtime=True).drive(builder.compile(deadline=0.2))
    assert type(driven.error) is DeadlineExceeded
    assert [(s.name, s.blocked_loop) for s in driven.report.stragglers] == [
        ("blocks", True)
    ]


# Other ways in.


@pytest.mark.parametrize("how", ["batch", "abatch"])
def test_c2_a_batch_is_on_time(how: str) -> None:
    """Every run of a batch has a budget of its own, and its own result."""
    trial = Trial("invoke" if how == "batch" else "ainvoke")
    builder = both_arms(trial, trial.hang("bad"))
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    inputs: list[Any] = [{"log": [str(n)]} for n in range(3)]

    class Batch:
        """All results of a batch, as if of one run."""

        def invoke(self, _: Any, config: Any) -> Any:
            return graph.batch(inputs)

        async def ainvoke(self, _: Any, config: Any) -> Any:
            return await graph.abatch(inputs)

    driven = trial.drive(Batch())
    trial.at_work(driven)
    assert [v["log"] for v in driven.values] == [
        [str(n), "good", "degrade", "closing"] for n in range(3)
    ]
    assert len(driven.reports) == 3


@pytest.mark.parametrize("how", ALL)
def test_c2_a_chain_whose_steps_add_up_is_cut_where_time_ends(how: How) -> None:
    """No step is slow, but the run is: what finished is kept, the rest not started."""
    trial = Trial(how, seconds=1.0)
    builder = StateGraph(State)
    nap = 0.4 * trial.work

    def step(name: str) -> Any:
        def node(state: State) -> State:
            trial.started.append(name)
            time.sleep(nap)
            return {"log": [name]}

        async def anode(state: State) -> State:
            trial.started.append(name)
            await asyncio.sleep(nap)
            return {"log": [name]}

        return node if how in SYNC else anode

    names = [f"step{n}" for n in range(6)]
    for name in names:
        builder.add_node(name, step(name))
    builder.add_edge(START, names[0])
    for one, two in itertools.pairwise(names):
        builder.add_edge(one, two)
    builder.add_node("degrade", trial.quick("degrade"))
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_work(driven)
    assert driven.values["log"] == ["step0", "step1", "degrade"]
    assert trial.started == ["step0", "step1", "step2", "degrade"]


@pytest.mark.parametrize("how", ALL)
def test_c2_a_run_with_time_enough_is_left_alone(how: How) -> None:
    """A deadline that is not reached changes nothing and starts no fallback."""
    trial = Trial(how)
    builder = both_arms(trial, trial.quick("bad"))
    with collect_runs() as runs:
        driven = trial.drive(builder.compile(deadline=60, fallback="degrade"))
    assert driven.error is None
    log = ["bad", "good", "after_bad", "after_good"]
    assert driven.values["log"] == log
    assert "degrade" not in trial.started
    assert [run.outcome for run in runs] == ["completed"]
