"""C1: an inner deadline is the minimum of itself and what encloses it."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, How, drive, napper, took
from hypothesis import given
from hypothesis import strategies as st
from langgraph.graph import END, START

from langgraph_deadline import (
    Deadline,
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    StepBudget,
    _clock,
    current_deadline,
    detach,
    fail_after,
    move_on_after,
    remaining,
)
from langgraph_deadline.testing import run_virtual

KEY = "x-request-deadline"

# `version="v3"` of the event streams is LangGraph's beta.
pytestmark = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.LangChainBetaWarning"
)


class State(TypedDict, total=False):
    log: str


def one(node: Any, **options: Any) -> Any:
    """Return a graph of one node called `work`."""
    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    return builder.compile(**options)


def answer(text: str) -> Callable[[Any], dict[str, str]]:
    """Return a fallback that says `text`."""

    def fallback(state: Any) -> dict[str, str]:
        return {"log": state.get("log", "") + text}

    return fallback


def calls(graph: Any, how: How, **options: Any) -> Any:
    """Return a node that runs `graph` inside its function."""
    if how in SYNC:
        return lambda state: graph.invoke(state, **options)

    async def node(state: State) -> Any:
        return await graph.ainvoke(state, **options)

    return node


# Nested graphs.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("called", [True, False], ids=["called", "as a node"])
def test_c1_a_later_inner_deadline_is_the_outer_one(how: How, called: bool) -> None:
    """A subgraph with ten seconds in a run of 0.3 ends with the run."""
    inner = one(napper(how, 2), deadline=10)
    outer = one(calls(inner, how) if called else inner, deadline=0.3)
    driven = drive(outer, {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "deadline"
    assert took(driven, 0.3, how)
    assert driven.reports[-1].outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("called", [True, False], ids=["called", "as a node"])
def test_c1_an_earlier_inner_deadline_is_its_own(how: How, called: bool) -> None:
    """A subgraph falls back at its own deadline and the run around it goes on."""
    inner = one(
        napper(how, 2),
        deadline=DeadlinePolicy(seconds=0.4, reserve=0.1),
        fallback=answer("inner fallback"),
    )
    outer = one(
        calls(inner, how) if called else inner, deadline=10, fallback=answer(" outer")
    )
    driven = drive(outer, {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": "inner fallback"}
    assert took(driven, 0.36, how)
    assert driven.reports[-1].outcome == "completed"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("called", [True, False], ids=["called", "as a node"])
def test_c1_an_inner_reserve_lies_inside_the_outer_work(how: How, called: bool) -> None:
    """With a later deadline of its own a subgraph falls back before the run does."""
    inner = one(napper(how, 2), deadline=60, fallback=answer("inner"))
    outer = one(
        calls(inner, how) if called else inner, deadline=1, fallback=answer("O")
    )
    driven = drive(outer, {}, how, virtual=True)
    # The run's work ends at 0.8, the subgraph's at four fifths of that.
    assert driven.error is None
    assert driven.values == {"log": "inner"}
    assert took(driven, 0.64, how)
    assert driven.reports[-1].outcome == "completed"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("called", [True, False], ids=["called", "as a node"])
def test_c1_an_inner_fallback_that_hangs_ends_with_the_outer_work(
    how: How, called: bool
) -> None:
    """A subgraph's own fallback cannot use up the time of the run's fallback."""
    inner = one(napper(how, 2), deadline=60, fallback=napper(how, 2.5))
    outer = one(
        calls(inner, how) if called else inner,
        deadline=DeadlinePolicy(seconds=1, cancel_grace=0),
        fallback=answer("outer"),
    )
    driven = drive(outer, {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": "outer"}
    assert took(driven, 0.8, how)
    assert driven.reports[-1].outcome == "deadline"


@pytest.mark.parametrize("how", ASYNC)
def test_c1_the_middle_one_of_three_levels_is_the_earliest(how: How) -> None:
    """Each level sees the earliest deadline of those around it."""
    seen: list[float] = []

    async def innermost(state: State) -> dict[str, str]:
        seen.append(remaining())
        await asyncio.sleep(100)
        return {"log": "never"}

    bottom = one(innermost, deadline=50)
    middle = one(bottom, deadline=3)
    top = one(middle, deadline=30)
    driven = drive(top, {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(3)
    assert seen == [pytest.approx(3)]


@pytest.mark.parametrize("how", ALL)
def test_c1_an_inner_deadline_without_fallback_leaves_the_outer_fallback(
    how: How,
) -> None:
    """A subgraph's overrun is an error inside the run, which has an answer to it."""
    inner = one(napper(how, 2), deadline=0.3)
    outer = one(calls(inner, how), deadline=10, fallback=answer("outer"))
    driven = drive(outer, {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": "outer"}
    assert took(driven, 0.3, how)


# A block around a call.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("own", [10, None], ids=["own deadline", "no deadline"])
def test_c1_fail_after_around_a_call_bounds_the_run(
    how: How, own: float | None
) -> None:
    """A block around a call is a deadline like any other."""
    graph = one(napper(how, 2), deadline=own)
    outcome: list[Any] = []

    def record(error: BaseException, began: float) -> None:
        outcome.extend([error, _clock.now() - began])

    if how in SYNC:
        began = _clock.now()
        try:
            with fail_after(0.3):
                list(graph.stream({})) if how == "stream" else graph.invoke({})
        except DeadlineExceeded as error:
            record(error, began)
        assert outcome, "no error"
        assert 0.29 <= outcome[1] < 1.1
        return

    async def main() -> None:
        began = _clock.now()
        try:
            with fail_after(0.3):
                if how == "ainvoke":
                    await graph.ainvoke({})
                else:
                    async for _ in graph.astream({}):
                        pass
        except DeadlineExceeded as error:
            record(error, began)

    run_virtual(main())
    assert outcome, "no error"
    assert outcome[1] == pytest.approx(0.3)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_c1_a_fallback_answers_inside_a_block_around_the_call(how: How) -> None:
    """The reserve is taken from the time of the block, so the answer still fits."""
    graph = one(napper(how, 2), deadline=60, fallback=answer("in time"))
    if how == "invoke":
        with fail_after(0.5):
            assert graph.invoke({}) == {"log": "in time"}
        return

    async def main() -> tuple[Any, float]:
        began = _clock.now()
        with fail_after(0.5):
            out = await graph.ainvoke({})
        return out, _clock.now() - began

    out, elapsed = run_virtual(main())
    assert out == {"log": "in time"}
    assert elapsed == pytest.approx(0.4)


def test_c1_move_on_after_around_a_call_goes_on() -> None:
    """A block that is left early leaves the run, and its node is ended."""
    ended: list[str] = []

    async def work(state: State) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    graph = one(work, deadline=30)

    async def main() -> tuple[bool, float]:
        began = _clock.now()
        with move_on_after(2) as scope:
            await graph.ainvoke({})
        return scope.cancelled_caught, _clock.now() - began

    caught, elapsed = run_virtual(main())
    assert caught
    assert elapsed == pytest.approx(2)
    assert ended == ["cancelled"]


def test_c1_a_block_inside_a_node_cannot_lengthen() -> None:
    """`fail_after` in a node is bounded by the run, however long it asks for."""
    seen: list[float] = []

    async def work(state: State) -> None:
        with fail_after(100):
            seen.append(remaining())
            with fail_after(2):
                seen.append(remaining())
                with fail_after(50):
                    seen.append(remaining())
            await asyncio.sleep(60)

    driven = drive(one(work, deadline=5), {}, "ainvoke", virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(5)
    assert seen == [pytest.approx(5), pytest.approx(2), pytest.approx(2)]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_c1_a_block_around_a_graph_inside_a_node_bounds_it(how: How) -> None:
    """A graph without a deadline has that of the block it is called in."""
    inner = one(napper(how, 2))

    def work(state: State) -> dict[str, str]:
        try:
            with fail_after(0.3):
                inner.invoke({})
        except DeadlineExceeded:
            return {"log": "went on"}
        return {"log": "no error"}

    async def awork(state: State) -> dict[str, str]:
        try:
            with fail_after(0.3):
                await inner.ainvoke({})
        except DeadlineExceeded:
            return {"log": "went on"}
        return {"log": "no error"}

    graph = one(work if how == "invoke" else awork, deadline=10)
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values == {"log": "went on"}
    assert took(driven, 0.3, how)


@given(st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=8))
def test_c1_of_any_nested_blocks_the_earliest_applies(limits: list[float]) -> None:
    """At every depth the deadline is the minimum of all limits so far."""

    async def main() -> None:
        blocks = [fail_after(limit) for limit in limits]
        for depth, block in enumerate(blocks):
            block.__enter__()
            assert remaining() == pytest.approx(min(limits[: depth + 1]))
        for block in reversed(blocks):
            block.__exit__(None, None, None)
        assert remaining() == math.inf

    run_virtual(main())


@pytest.mark.parametrize("how", ALL)
def test_c1_a_step_budget_cannot_lengthen(how: How) -> None:
    """A step that may take a minute is cut with its run all the same."""
    policy = DeadlinePolicy(seconds=0.3, steps={"work": StepBudget(seconds=60)})
    driven = drive(one(napper(how, 2), deadline=policy), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "deadline"
    assert took(driven, 0.3, how)


# The config key.


def in_seconds(seconds: float) -> dict[str, Callable[[], Any]]:
    """Return every form of an instant `seconds` ahead, each made when it is called."""

    def instant() -> float:
        return _clock.wall() + seconds

    return {
        "number": lambda: seconds,
        "text": lambda: f" {seconds} ",
        "exponent": lambda: f"{seconds * 10:.6g}e-1",
        "epoch": instant,
        "epoch text": lambda: f"{instant():.6f}",
        "RFC 3339": lambda: datetime.fromtimestamp(instant(), UTC).isoformat(),
        "RFC 3339 Z": lambda: datetime.fromtimestamp(instant(), UTC).strftime(
            "%Y-%m-%dT%H:%M:%S.%fZ"
        ),
        "Deadline": lambda: Deadline.after(seconds),
    }


FORMS = tuple(in_seconds(1))


async def run_with_key(graph: Any, value: Callable[[], Any]) -> tuple[Any, float]:
    """Return what comes of a run whose config carries a deadline, and its duration."""
    began = _clock.now()
    try:
        out = await graph.ainvoke({}, {"configurable": {KEY: value()}})
    except DeadlineExceeded as error:
        out = error
    return out, _clock.now() - began


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", [20, None], ids=["own deadline", "no deadline"])
def test_c1_the_config_key_shortens(form: str, own: float | None) -> None:
    """A deadline in the config applies in every form that the wire knows."""
    graph = one(napper("ainvoke", 60), deadline=own)
    error, elapsed = run_virtual(run_with_key(graph, in_seconds(2)[form]))
    assert isinstance(error, DeadlineExceeded)
    assert elapsed == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_c1_the_config_key_cannot_lengthen(form: str) -> None:
    """A deadline in the config that is later than the graph's own changes nothing."""
    graph = one(napper("ainvoke", 600), deadline=2)
    error, elapsed = run_virtual(run_with_key(graph, in_seconds(500)[form]))
    assert isinstance(error, DeadlineExceeded)
    assert elapsed == pytest.approx(2)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("bound", [True, False], ids=["with_config", "per call"])
def test_c1_the_config_key_applies_however_it_is_given(how: How, bound: bool) -> None:
    """The key counts from every entry point, and from a config bound to the graph."""
    graph = one(napper(how, 2), deadline=20)
    config = {"configurable": {KEY: 0.3}}
    if bound:
        driven = drive(graph.with_config(config), {}, how, virtual=True)
    else:
        driven = drive(graph, {}, how, config, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.3, how)


@pytest.mark.parametrize("how", ALL)
def test_c1_the_config_key_also_bounds_a_longer_deadline_of_the_call(how: How) -> None:
    """What comes from outside can shorten what the caller asks for, too."""
    graph = one(napper(how, 2), deadline=1)
    driven = drive(
        graph, {}, how, {"configurable": {KEY: "0.3"}}, virtual=True, deadline=30
    )
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.3, how)


def test_c1_the_shorter_of_two_config_keys_applies() -> None:
    """A key in the call's config cannot lengthen the one bound with `with_config`."""
    graph = one(napper("ainvoke", 60)).with_config({"configurable": {KEY: 1}})
    error, elapsed = run_virtual(run_with_key(graph, lambda: 5))
    assert isinstance(error, DeadlineExceeded)
    assert elapsed == pytest.approx(1)


def test_c1_a_relative_config_key_counts_once_not_again_in_subgraphs() -> None:
    """Two seconds left for the run are not two more seconds for each subgraph."""
    seen: list[float] = []

    async def first(state: State) -> None:
        await asyncio.sleep(1.5)

    async def second(state: State) -> None:
        seen.append(remaining())
        await asyncio.sleep(60)

    inner = one(second)
    builder = StateGraph(State)
    builder.add_sequence([("first", first), ("inner", inner)])
    builder.add_edge(START, "first")
    graph = builder.compile()
    error, elapsed = run_virtual(run_with_key(graph, lambda: 2))
    assert isinstance(error, DeadlineExceeded)
    assert elapsed == pytest.approx(2)
    assert seen == [pytest.approx(0.5)]


def test_c1_the_config_key_of_a_call_inside_a_node_shortens_that_call() -> None:
    """A node that gives an inner call less time than it has itself is obeyed."""
    inner = one(napper("ainvoke", 60))

    async def work(state: State) -> dict[str, str]:
        try:
            await inner.ainvoke({}, {"configurable": {KEY: 1}})
        except DeadlineExceeded:
            return {"log": f"{remaining():.1f} left"}
        return {"log": "no error"}

    driven = drive(one(work, deadline=5), {}, "ainvoke", virtual=True)
    assert driven.values == {"log": "4.0 left"}
    assert driven.elapsed == pytest.approx(1)


# `deadline=` of a call.


def invoke(graph: Any, **options: Any) -> Any:
    return graph.invoke({}, **options)


def stream(graph: Any, **options: Any) -> Any:
    return list(graph.stream({}, stream_mode="values", **options))[-1]


def batch(graph: Any, **options: Any) -> Any:
    return graph.batch([{}, {}], **options)[-1]


def stream_events(graph: Any, **options: Any) -> Any:
    return graph.stream_events({}, version="v3", **options).output


async def ainvoke(graph: Any, **options: Any) -> Any:
    return await graph.ainvoke({}, **options)


async def astream(graph: Any, **options: Any) -> Any:
    return [v async for v in graph.astream({}, stream_mode="values", **options)][-1]


async def abatch(graph: Any, **options: Any) -> Any:
    return (await graph.abatch([{}, {}], **options))[-1]


async def astream_events_v2(graph: Any, **options: Any) -> Any:
    events = [e async for e in graph.astream_events({}, version="v2", **options)]
    return events[-1]["data"]["output"]


async def astream_events_v3(graph: Any, **options: Any) -> Any:
    run = await graph.astream_events({}, version="v3", **options)
    return await run.output()


ENTRIES_SYNC = (invoke, stream, batch, stream_events)
ENTRIES_ASYNC = (ainvoke, astream, abatch, astream_events_v2, astream_events_v3)


def timed(entry: Any, graph: Any, **options: Any) -> tuple[Any, float]:
    """Return what a sync entry point gives or raises, and how long it takes."""
    began = _clock.now()
    try:
        out = entry(graph, **options)
    except DeadlineExceeded as error:
        out = error
    return out, _clock.now() - began


def virtually(entry: Any, graph: Any, **options: Any) -> tuple[Any, float]:
    """Return what an async entry point gives or raises, and how long it takes."""

    async def main() -> tuple[Any, float]:
        began = _clock.now()
        try:
            out = await entry(graph, **options)
        except DeadlineExceeded as error:
            out = error
        return out, _clock.now() - began

    return run_virtual(main())


@pytest.mark.parametrize("entry", ENTRIES_ASYNC)
@pytest.mark.parametrize("own", [60, None], ids=["compiled", "no deadline"])
def test_c1_a_shorter_deadline_of_a_call_applies(entry: Any, own: float | None) -> None:
    """Every async entry point takes `deadline=`, shorter than the compiled one."""
    graph = one(napper("ainvoke", 100), deadline=own)
    out, elapsed = virtually(entry, graph, deadline=2)
    assert isinstance(out, DeadlineExceeded)
    assert out.budget == pytest.approx(2)
    assert elapsed == pytest.approx(2)


@pytest.mark.realtime
@pytest.mark.parametrize("entry", ENTRIES_SYNC)
@pytest.mark.parametrize("own", [60, None], ids=["compiled", "no deadline"])
def test_c1_a_shorter_deadline_of_a_sync_call_applies(
    entry: Any, own: float | None
) -> None:
    """Every sync entry point takes `deadline=`, shorter than the compiled one."""
    graph = one(napper("invoke", 2), deadline=own)
    out, elapsed = timed(entry, graph, deadline=0.3)
    assert isinstance(out, DeadlineExceeded)
    assert 0.29 <= elapsed < 1.2


@pytest.mark.parametrize("entry", ENTRIES_ASYNC)
def test_c1_a_longer_deadline_of_a_call_replaces_the_compiled_one(entry: Any) -> None:
    """Every async entry point takes `deadline=`, longer than the compiled one."""
    graph = one(napper("ainvoke", 5, {"log": "done"}), deadline=2)
    out, elapsed = virtually(entry, graph, deadline=10)
    assert out == {"log": "done"}
    assert elapsed == pytest.approx(5)


@pytest.mark.realtime
@pytest.mark.parametrize("entry", ENTRIES_SYNC)
def test_c1_a_longer_deadline_of_a_sync_call_replaces_the_compiled_one(
    entry: Any,
) -> None:
    """Every sync entry point takes `deadline=`, longer than the compiled one."""
    graph = one(napper("invoke", 0.5, {"log": "done"}), deadline=0.1)
    out, _ = timed(entry, graph, deadline=10)
    assert out == {"log": "done"}


@pytest.mark.parametrize(
    "form",
    [
        lambda: 2,
        lambda: timedelta(seconds=2),
        lambda: Deadline.after(2),
        lambda: DeadlinePolicy(seconds=2),
    ],
    ids=["number", "timedelta", "Deadline", "DeadlinePolicy"],
)
def test_c1_the_deadline_of_a_call_takes_every_form(form: Callable[[], Any]) -> None:
    """A call's `deadline=` is what `compile` takes, or an instant."""

    async def main() -> float:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            await one(napper("ainvoke", 60), deadline=20).ainvoke({}, deadline=form())
        return _clock.now() - began

    assert run_virtual(main()) == pytest.approx(2)


def test_c1_the_deadline_of_a_call_keeps_the_compiled_settings() -> None:
    """Only the budget is replaced: reserve and fallback stay as they were compiled."""
    policy = DeadlinePolicy(seconds=100, reserve=timedelta(seconds=1))
    graph = one(napper("ainvoke", 60), deadline=policy, fallback=answer("short"))
    driven = drive(graph, {}, "ainvoke", virtual=True, deadline=10)
    assert driven.values == {"log": "short"}
    assert driven.elapsed == pytest.approx(9)
    assert driven.report.budget == pytest.approx(10)
    assert driven.report.reserve == pytest.approx(1)


def test_c1_each_run_of_a_batch_has_the_deadline_from_its_own_start() -> None:
    """Three runs one after the other each have the whole budget."""
    graph = one(napper("ainvoke", 4, {"log": "done"}))

    async def main() -> Any:
        config = {"max_concurrency": 1}
        return await graph.abatch([{}, {}, {}], config, deadline=5)

    assert run_virtual(main()) == [{"log": "done"}] * 3


def test_c1_a_batch_can_return_what_its_runs_raise() -> None:
    """`return_exceptions` gives each run's own error."""
    graph = one(napper("ainvoke", 60))

    async def main() -> Any:
        return await graph.abatch([{}, {}], deadline=5, return_exceptions=True)

    assert [type(error) for error in run_virtual(main())] == [DeadlineExceeded] * 2


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_c1_the_deadline_of_a_call_stays_inside_what_encloses_it(how: How) -> None:
    """A node cannot get more time by asking for it."""
    inner = one(napper(how, 2), deadline=1)
    outer = one(calls(inner, how, deadline=100), deadline=0.3)
    driven = drive(outer, {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.3, how)


def test_c1_a_policy_without_seconds_is_still_inside_what_encloses_it() -> None:
    """A call that lifts the graph's own limit has what the block around it has."""
    graph = one(napper("ainvoke", 60), deadline=1)

    async def main() -> float:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded), fail_after(5):
            await graph.ainvoke({}, deadline=DeadlinePolicy())
        return _clock.now() - began

    assert run_virtual(main()) == pytest.approx(5)


# Leaving on purpose.


def test_c1_detach_leaves_the_deadline_and_nothing_else_does() -> None:
    """Inside `detach` there is no deadline; behind it the run's applies again."""
    seen: list[Any] = []

    async def work(state: State) -> None:
        seen.append(remaining())
        with detach():
            seen.extend([remaining(), current_deadline()])
            with fail_after(100):
                seen.append(remaining())
        seen.append(remaining())

    drive(one(work, deadline=5), {}, "ainvoke", virtual=True)
    assert seen == [
        pytest.approx(5),
        math.inf,
        None,
        pytest.approx(100),
        pytest.approx(5),
    ]


def test_c1_a_task_started_in_detach_outlives_the_run() -> None:
    """Work that must outlive the run does, nested graph and all."""
    audit = one(napper("ainvoke", 20, {"log": "audited"}), deadline=30)
    tasks: list[asyncio.Task[Any]] = []

    async def work(state: State) -> None:
        with detach():
            tasks.append(asyncio.create_task(audit.ainvoke({})))
        await asyncio.sleep(60)

    graph = one(work, deadline=5)

    async def main() -> tuple[Any, float]:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            await graph.ainvoke({})
        assert _clock.now() - began == pytest.approx(5)
        return await tasks[0], _clock.now() - began

    out, elapsed = run_virtual(main())
    assert out == {"log": "audited"}
    assert elapsed == pytest.approx(20)


@pytest.mark.realtime
def test_c1_a_thread_started_in_detach_outlives_the_run() -> None:
    """A thread that copies the context inside `detach` is not cut either."""
    audit = one(napper("invoke", 0.6, {"log": "audited"}))
    results: list[Any] = []
    threads: list[threading.Thread] = []

    def work(state: State) -> None:
        with detach():
            context = contextvars.copy_context()
        thread = threading.Thread(
            target=lambda: results.append(context.run(audit.invoke, {}))
        )
        threads.append(thread)
        thread.start()
        time.sleep(1)

    with pytest.raises(DeadlineExceeded):
        one(work, deadline=0.2).invoke({})
    assert results == []
    threads[0].join(3)
    assert results == [{"log": "audited"}]


def test_c1_a_task_started_without_detach_is_bounded() -> None:
    """A graph in a task of its own still has the deadline of where it was started."""
    inner = one(napper("ainvoke", 60), deadline=30)
    tasks: list[asyncio.Task[Any]] = []

    async def work(state: State) -> None:
        tasks.append(asyncio.create_task(inner.ainvoke({})))
        await asyncio.sleep(60)

    async def main() -> float:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            await one(work, deadline=5).ainvoke({})
        with pytest.raises(DeadlineExceeded):
            await tasks[0]
        return _clock.now() - began

    # The grace is for graphs inside a cut node: they may hand over what they have.
    assert 5 <= run_virtual(main()) <= 5.25


def test_c1_a_node_that_waits_for_more_than_a_graph_is_cut_on_time() -> None:
    """Once the graph inside it has ended, a cut node that obeys is not waited for."""
    inner = one(napper("ainvoke", 60))

    async def work(state: State) -> None:
        await asyncio.gather(inner.ainvoke({}), asyncio.sleep(60))

    driven = drive(one(work, deadline=5), {}, "ainvoke", virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(5)


def test_c1_a_detached_block_still_belongs_to_its_step() -> None:
    """Waiting inside `detach` does not hold up the run: the caller has its answer."""

    async def work(state: State) -> None:
        with detach():
            await asyncio.sleep(60)

    driven = drive(one(work, deadline=5), {}, "ainvoke", virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(5)
