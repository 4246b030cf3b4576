"""Events: what happens in a run is told while it happens, once, and harms nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import operator
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, How, adrive, drive, napper
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.types import Command, RetryPolicy, interrupt

from langgraph_deadline import (
    DeadlinePolicy,
    RunControl,
    StateGraph,
    StepBudget,
    collect_runs,
    with_deadline,
)
from langgraph_deadline.events import (
    Cut,
    Event,
    FallbackStarted,
    RunEnded,
    RunStarted,
    StepEnded,
    StepEvent,
    StepRefused,
    StepStarted,
    StragglerEnded,
    StragglerFound,
    observe,
)
from langgraph_deadline.testing import run_virtual


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def quick(state: State) -> State:
    """Return at once."""
    return {"log": ["quick"]}


def degrade(state: State) -> State:
    """Be the fallback."""
    return {"log": ["degraded"]}


def chain(*nodes: Any, plain: bool = False, **options: Any) -> Any:
    """Return a graph of nodes called `a`, `b`, ..., one after the other."""
    builder: Any = (PlainStateGraph if plain else StateGraph)(State)
    before = START
    for name, node in zip("abcdef", nodes, strict=False):
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    return builder.compile(**options)


def kinds(seen: Sequence[Event]) -> list[str]:
    """Return the kinds of events, with the steps' names."""
    return [
        f"{type(event).__name__} {event.step}"
        if isinstance(event, StepEvent)
        else type(event).__name__
        for event in seen
    ]


# What is told.


@pytest.mark.parametrize("how", ALL)
def test_a_run_that_completes_tells_of_its_steps_in_order(how: How) -> None:
    """Each start and each end once."""
    seen: list[Event] = []
    graph = chain(quick, quick, deadline=30, observers=[seen.append])
    drive(graph, {}, how)
    assert kinds(seen) == [
        "RunStarted",
        "StepStarted a",
        "StepEnded a",
        "StepStarted b",
        "StepEnded b",
        "RunEnded",
    ]
    assert {event.run for event in seen} == {seen[0].run}
    assert (seen[0].run.name, seen[0].run.budget) == ("LangGraph", 30)
    first, second = [event for event in seen if isinstance(event, StepStarted)]
    assert first.number != second.number
    assert [event.at for event in seen] == sorted(event.at for event in seen)


@pytest.mark.parametrize("how", ALL)
def test_a_cut_tells_of_the_cut_and_of_the_fallback(how: How) -> None:
    """With its cause, and once each."""
    seen: list[Event] = []
    policy = DeadlinePolicy(seconds=1.5, reserve=0.8)
    graph = chain(
        quick,
        napper(how, 3),
        deadline=policy,
        fallback=degrade,
        observers=[seen.append],
    )
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values["log"][-1] == "degraded"
    told = [k for k in kinds(seen) if not k.startswith("Straggler")]
    assert told == [
        "RunStarted",
        "StepStarted a",
        "StepEnded a",
        "StepStarted b",
        "Cut",
        "StepEnded b",
        "StepStarted degrade",
        "FallbackStarted degrade",
        "StepEnded degrade",
        "RunEnded",
    ]
    (cut,) = [event for event in seen if isinstance(event, Cut)]
    assert (cut.cause, cut.step) == ("deadline", "b")
    assert "was cut (deadline) at step 'b'" in str(cut)
    ended = [event for event in seen if isinstance(event, StepEnded)]
    assert [event.cause for event in ended] == [None, "deadline", None]
    last = seen[-1]
    assert isinstance(last, RunEnded)
    assert last.report.outcome == "deadline"
    assert last.report.id == last.run.id


@pytest.mark.parametrize("how", ASYNC)
def test_the_times_of_events_are_exact(how: How) -> None:
    """Seconds since the run started, in virtual time to the tick."""
    seen: list[Event] = []
    graph = chain(
        napper(how, 1),
        napper(how, 9),
        deadline=5,
        fallback=degrade,
        observers=[seen.append],
    )
    drive(graph, {}, how, virtual=True)
    at = {kind: event.at for kind, event in zip(kinds(seen), seen, strict=True)}
    assert at["StepEnded a"] == pytest.approx(1)
    assert at["Cut"] == pytest.approx(4)
    assert at["StepEnded b"] == pytest.approx(4)
    (started,) = [e for e in seen if isinstance(e, StepStarted) and e.step == "b"]
    assert started.remaining == pytest.approx(3)
    (fallback,) = [e for e in seen if isinstance(e, FallbackStarted)]
    assert fallback.remaining == pytest.approx(1)


@pytest.mark.parametrize("how", ALL)
def test_a_step_without_its_window_is_told_as_refused(how: How) -> None:
    """And it is never told as started."""
    seen: list[Event] = []
    steps = {"b": StepBudget(needs=60, otherwise={"log": ["cached"]})}
    policy = DeadlinePolicy(seconds=30, steps=steps)
    drive(chain(quick, quick, deadline=policy, observers=[seen.append]), {}, how)
    (refused,) = [event for event in seen if isinstance(event, StepRefused)]
    assert (refused.step, refused.cause, refused.needed) == ("b", "window", 60)
    assert refused.remaining is not None
    assert 0 < refused.remaining <= 30
    of_b = [k for k in kinds(seen) if k.endswith(" b")]
    assert of_b == ["StepRefused b", "StepStarted b", "StepEnded b"]
    started = [e for e in seen if isinstance(e, StepStarted) and e.step == "b"]
    assert [event.kind for event in started] == ["otherwise"]


@pytest.mark.parametrize("how", ASYNC)
def test_a_straggler_is_told_when_it_is_found_and_when_it_ends(how: How) -> None:
    """The second after the run has ended."""
    seen: list[Event] = []

    async def swallows(state: State) -> State:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(2)
        return {}

    graph = chain(swallows, deadline=1, observers=[seen.append])

    async def main() -> None:
        await adrive(graph, {}, how)
        assert isinstance(seen[-1], RunEnded)
        await asyncio.sleep(20)

    run_virtual(main())
    (found,) = [event for event in seen if isinstance(event, StragglerFound)]
    ended = seen[-1]
    assert isinstance(ended, StragglerEnded)
    assert found.number == ended.number
    assert found.overrun == pytest.approx(0.25)
    assert ended.overrun == pytest.approx(4)
    assert not ended.obeyed


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_a_thread_that_ends_within_the_grace_has_obeyed(how: How) -> None:
    """Although it was given up at once, as all threads are."""
    seen: list[Event] = []
    graph = chain(
        napper(how, 0.5),
        deadline=DeadlinePolicy(seconds=0.3, cancel_grace=30),
        observers=[seen.append],
    )
    report = drive(graph, {}, how).report
    assert report.cancellations.asked == 1
    for _ in range(200):
        if isinstance(seen[-1], StragglerEnded):
            break
        threading.Event().wait(0.02)
    ended = seen[-1]
    assert isinstance(ended, StragglerEnded)
    assert ended.obeyed
    assert report.cancellations.obeyed == 1


@pytest.mark.parametrize("how", ALL)
def test_a_subgraphs_steps_name_the_step_they_are_in(how: How) -> None:
    """One without a deadline of its own is a part of the run."""
    seen: list[Event] = []
    inner = chain(quick, plain=True)
    graph = chain(quick, inner, deadline=30, observers=[seen.append])
    drive(graph, {}, how)
    started = [event for event in seen if isinstance(event, StepStarted)]
    assert [event.step for event in started] == ["a", "b", "a"]
    assert [event.parent for event in started] == [None, None, started[1].number]
    assert len({event.run.id for event in seen}) == 1


@pytest.mark.parametrize("how", ALL)
def test_a_subgraph_with_a_deadline_is_a_run_of_its_own_inside(how: How) -> None:
    """Its details say inside of what; whoever observes the outer run is told."""
    seen: list[Event] = []
    inner = chain(quick, deadline=5)
    graph = chain(inner, deadline=30, observers=[seen.append])
    drive(graph, {}, how)
    outer, nested = [event.run for event in seen if isinstance(event, RunStarted)]
    assert (nested.parent, nested.budget) == (outer.id, 5)
    (around,) = [e for e in seen if isinstance(e, StepStarted) and e.run is outer]
    assert nested.inside == around.number


@pytest.mark.parametrize("how", ALL)
def test_a_model_call_is_a_step_with_its_tokens(how: How) -> None:
    """Also of a model that is not wrapped."""
    usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
    answers = iter([AIMessage("a word", usage_metadata=usage)])  # type: ignore[arg-type]
    model = GenericFakeChatModel(messages=answers)
    seen: list[Event] = []

    def ask(state: State) -> State:
        return {"log": [str(model.invoke("What?").content)]}

    drive(chain(ask, deadline=30, observers=[seen.append]), {}, how)
    (ended,) = [e for e in seen if isinstance(e, StepEnded) and e.kind == "model"]
    assert ended.tokens is not None
    assert (ended.tokens.input.count, ended.tokens.output.count) == (5, 7)
    assert ended.tokens.after_cut.count == 0
    node, call = [event for event in seen if isinstance(event, StepStarted)]
    assert call.parent == node.number
    assert call.number == ended.number


@pytest.mark.parametrize("how", ALL)
def test_a_run_stopped_by_hand_tells_so(how: How) -> None:
    """Of steps that are refused from then on, too."""
    seen: list[Event] = []
    control = RunControl()
    control.cancel()
    graph = chain(quick, deadline=30, fallback=degrade, observers=[seen.append])
    drive(graph, {}, how, control=control)
    (cut,) = [event for event in seen if isinstance(event, Cut)]
    assert cut.cause == "cancelled"
    assert [k for k in kinds(seen) if k.endswith(" a")] == ["StepRefused a"]


@pytest.mark.parametrize("how", ALL)
def test_retries_are_counted_at_the_end_of_a_step(how: How) -> None:
    """One step, however many attempts."""
    seen: list[Event] = []
    tries: list[int] = []

    def flaky(state: State) -> State:
        tries.append(1)
        if len(tries) < 3:
            msg = "not yet"
            raise ConnectionError(msg)
        return {"log": ["done"]}

    builder = StateGraph(State)
    retry = RetryPolicy(max_attempts=3, initial_interval=0.01, jitter=False)
    builder.add_node("a", flaky, retry_policy=retry)
    builder.add_edge(START, "a")
    graph = builder.compile(deadline=30, observers=[seen.append])
    report = drive(graph, {}, how).report
    (ended,) = [event for event in seen if isinstance(event, StepEnded)]
    assert (ended.retries, ended.error) == (2, None)
    assert report.steps[0].retries == 2


@pytest.mark.parametrize("how", ALL)
def test_a_failing_step_names_its_error(how: How) -> None:
    """And the run ends with it."""
    seen: list[Event] = []

    def fails(state: State) -> State:
        msg = "own"
        raise KeyError(msg)

    driven = drive(chain(fails, deadline=30, observers=[seen.append]), {}, how)
    (ended,) = [event for event in seen if isinstance(event, StepEnded)]
    assert (ended.error, ended.cause) == ("KeyError", None)
    assert driven.report.steps[0].error == "KeyError"
    assert isinstance(seen[-1], RunEnded)
    assert seen[-1].report.outcome == "error"


@pytest.mark.parametrize("how", ALL)
def test_a_resume_tells_what_was_spent_before(how: How) -> None:
    """And its budget is the one that was begun with."""
    seen: list[Event] = []

    def ask(state: State) -> State:
        return {"log": [interrupt("?")]}

    graph = chain(
        napper(how, 0.1),
        ask,
        deadline=30,
        checkpointer=InMemorySaver(),
        observers=[seen.append],
    )
    config = {"configurable": {"thread_id": "1"}}
    drive(graph, {}, how, config, virtual=True)
    drive(graph, Command(resume="yes"), how, config, virtual=True)
    first, second = [event for event in seen if isinstance(event, RunStarted)]
    assert first.spent == 0
    assert second.spent >= 0.09
    assert second.run.budget == 30


@pytest.mark.parametrize("how", ALL)
def test_measuring_only_tells_what_would_have_been_cut(how: How) -> None:
    """Once the run has ended, with the instant at which it would have been."""
    seen: list[Event] = []
    policy = DeadlinePolicy(seconds=0.2, enforce=False)
    graph = chain(napper(how, 0.5), deadline=policy, observers=[seen.append])
    driven = drive(graph, {}, how, virtual=True)
    assert driven.report.outcome == "completed"
    (cut,) = [event for event in seen if isinstance(event, Cut)]
    assert cut.at == pytest.approx(0.2)
    assert "would have been cut" in str(cut)
    (ended,) = [event for event in seen if isinstance(event, StepEnded)]
    assert ended.cause == "deadline"
    assert (driven.report.cause, driven.report.enforced) == ("deadline", False)
    assert driven.report.cut_at == pytest.approx(0.2)


# Who is told.


@pytest.mark.parametrize("how", ALL)
def test_observers_of_a_context_are_told_of_the_runs_started_in_it(how: How) -> None:
    """And not of those after it; of runs without a deadline, too."""
    inside: list[Event] = []
    graph, unbounded = chain(quick, deadline=30), chain(quick)
    with observe(inside.append):
        drive(graph, {}, how)
        drive(unbounded, {}, how)
    drive(graph, {}, how)
    assert kinds(inside).count("RunEnded") == 2
    assert [e.run.budget for e in inside if isinstance(e, RunStarted)] == [30, None]


def test_one_observer_given_twice_is_told_once() -> None:
    """By the graph and by the context."""
    seen: list[Event] = []
    with observe(seen.append):
        chain(quick, deadline=30, observers=[seen.append]).invoke({})
    assert kinds(seen).count("RunStarted") == 1


def test_observers_that_are_equal_are_not_the_same() -> None:
    """Nor have they to be hashable."""

    @dataclasses.dataclass
    class Counting:
        seen: int = 0

        def __call__(self, event: Event) -> None:
            self.seen += 1

    first, second = Counting(), Counting()
    chain(quick, deadline=30, observers=[first, second, first]).invoke({})
    assert first.seen == second.seen == 4


def test_observers_come_with_with_deadline_and_stay_with_copies() -> None:
    """Those given before stay."""
    first: list[Event] = []
    second: list[Event] = []
    graph = with_deadline(chain(quick, plain=True), 30, observers=[first.append])
    again = with_deadline(graph, 20, observers=[second.append])
    again.with_config({"tags": ["x"]}).invoke({})
    assert kinds(first) == kinds(second)
    assert kinds(first)[0] == "RunStarted"


@pytest.mark.parametrize("how", ALL)
def test_an_observer_that_raises_is_logged_and_ignored(
    how: How, caplog: pytest.LogCaptureFixture
) -> None:
    """The run, its report and the other observers do not notice."""
    seen: list[Event] = []

    def broken(event: Event) -> None:
        msg = "observer"
        raise RuntimeError(msg)

    policy = DeadlinePolicy(seconds=1.2, reserve=0.8)
    graph = chain(
        napper(how, 3),
        deadline=policy,
        fallback=degrade,
        observers=[broken, seen.append],
    )
    driven = drive(graph, {}, how, virtual=True)
    assert driven.error is None
    assert driven.values["log"] == ["degraded"]
    assert kinds(seen)[-1] == "RunEnded"
    failures = [r for r in caplog.records if r.exc_info and "Observer" in r.message]
    assert len(failures) == len(seen)
    assert "the run goes on" in failures[0].message


@pytest.mark.parametrize("given", [print, 5, [5], [None], "text"])
def test_what_is_no_list_of_observers_is_refused_at_once(given: Any) -> None:
    """The error names the argument."""
    with pytest.raises(TypeError, match="observers must be"):
        chain(quick, deadline=30, observers=given)
    with pytest.raises(TypeError, match="observers must be"):
        with_deadline(chain(quick, plain=True), 30, observers=given)


def test_observe_refuses_what_cannot_be_called() -> None:
    """Before the block is entered."""
    nothing: Any = 5
    with pytest.raises(TypeError, match="observers must be"), observe(nothing):
        pytest.fail("entered")


def test_nobody_is_told_of_runs_in_other_contexts() -> None:
    """Two threads, each with an observer of its own."""
    graph = chain(quick, deadline=30)
    seen: dict[str, list[Event]] = {"one": [], "two": []}

    def work(name: str) -> None:
        with observe(seen[name].append):
            graph.invoke({})

    threads = [threading.Thread(target=work, args=(name,)) for name in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds(seen["one"]) == kinds(seen["two"])
    assert seen["one"][0].run.id != seen["two"][0].run.id


# How it is told: values, logging, streams.


def test_events_are_frozen_and_plain() -> None:
    """As dictionaries they are JSON."""
    seen: list[Event] = []
    chain(quick, deadline=30, observers=[seen.append]).invoke({})
    for event in seen:
        name: Any = "at"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, 0)
        told = json.loads(json.dumps(event.as_dict()))
        assert told["event"] == type(event).__name__
        assert told["run"] == event.run.id
        assert str(event)


def test_events_are_standard_log_records(caplog: pytest.LogCaptureFixture) -> None:
    """A cut is information, a straggler a warning, the rest is for debugging."""
    caplog.set_level(logging.DEBUG, "langgraph_deadline")

    async def swallows(state: State) -> State:
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(2)
        return {}

    run_virtual(adrive(chain(swallows, deadline=1, fallback=degrade), {}, "ainvoke"))
    levels: dict[str, int] = {
        type(event).__name__: record.levelno
        for record in caplog.records
        if (event := getattr(record, "deadline_event", None)) is not None
    }
    assert levels["RunStarted"] == levels["StepEnded"] == logging.DEBUG
    assert levels["Cut"] == levels["FallbackStarted"] == logging.INFO
    assert levels["StragglerFound"] == logging.WARNING


STREAMS: dict[str, Callable[..., Any]] = {
    "stream": lambda graph, **kw: list(graph.stream({}, **kw)),
    "astream": lambda graph, **kw: run_virtual(_listed(graph, kw)),
}


async def _listed(graph: Any, kwargs: Any) -> list[Any]:
    return [item async for item in graph.astream({}, **kwargs)]


@pytest.mark.parametrize("how", STREAMS)
def test_events_are_in_the_custom_stream_when_asked_for(how: How) -> None:
    """From the start of the run to its end, beside what nodes write there."""
    policy = DeadlinePolicy(seconds=30, stream_events=True)
    graph = chain(quick, quick, deadline=policy)
    items = STREAMS[how](graph, stream_mode="custom")
    assert [item["event"] for item in items] == [
        "RunStarted",
        "StepStarted",
        "StepEnded",
        "StepStarted",
        "StepEnded",
        "RunEnded",
    ]
    assert items[-1]["report"]["outcome"] == "completed"
    assert json.loads(json.dumps(items))


@pytest.mark.parametrize("how", STREAMS)
def test_the_stream_tells_of_a_cut_while_it_happens(how: How) -> None:
    """Between the values, in several modes at once."""
    policy = DeadlinePolicy(seconds=1.5, reserve=0.8, stream_events=True)
    node = napper(how, 3)
    graph = chain(quick, node, deadline=policy, fallback=degrade)
    items = STREAMS[how](graph, stream_mode=["updates", "custom"], subgraphs=True)
    assert all(len(item) == 3 for item in items)
    told = [
        data["event"] if mode == "custom" else next(iter(data))
        for _, mode, data in items
        if mode == "updates" or not data["event"].startswith(("Step", "Straggler"))
    ]
    assert told[0] == "RunStarted"
    assert told[-1] == "RunEnded"
    assert told.index("a") < told.index("Cut") < told.index("FallbackStarted")
    assert told.index("FallbackStarted") < told.index("degrade")


@pytest.mark.parametrize("how", STREAMS)
def test_nothing_is_in_the_custom_stream_that_was_not_asked_for(how: How) -> None:
    """Neither by default, nor in other modes."""
    assert STREAMS[how](chain(quick, deadline=30), stream_mode="custom") == []
    policy = DeadlinePolicy(seconds=30, stream_events=True)
    items = STREAMS[how](chain(quick, deadline=policy), stream_mode="updates")
    assert [list(item) for item in items] == [["a"]]


# What it leaves behind.


@pytest.mark.parametrize("how", ALL)
def test_the_last_report_is_the_one_that_is_collected(how: How) -> None:
    """It is there without being asked for, and stays the same."""
    graph = chain(quick, deadline=30)
    assert graph.last_report is None
    drive(graph, {}, how)
    first = graph.last_report
    assert first is not None
    assert first is graph.last_report
    with collect_runs() as runs:
        run_virtual(graph.ainvoke({}))
    assert graph.last_report is runs[0]
    assert runs[0].id != first.id


def test_the_last_report_of_a_copy_is_the_graphs() -> None:
    """`with_config` is the same graph; a graph bounded anew is another one."""
    graph = chain(quick, deadline=30)
    graph.with_config({"tags": ["x"]}).invoke({})
    assert graph.last_report is not None
    assert with_deadline(graph, 5).last_report is None
