"""Many runs at once: the same summary as of all their reports, in bounded memory."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import operator
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any, TypedDict

import pytest
from harness import ASYNC, SYNC, How, drive, napper
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START

from langgraph_deadline import DeadlinePolicy, StateGraph, StepBudget, collect_runs
from langgraph_deadline import _observing as observing
from langgraph_deadline.aggregate import Aggregate
from langgraph_deadline.events import (
    Event,
    RunDetails,
    RunEnded,
    RunStarted,
    StepEnded,
    StepRefused,
    StepStarted,
    StragglerEnded,
    observe,
)
from langgraph_deadline.report import (
    Cancellations,
    ModelTokens,
    RunReport,
    StepReport,
    TokenCount,
)
from langgraph_deadline.summary import Summary, summarize
from langgraph_deadline.testing import run_virtual


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def chain(*nodes: Any, **options: Any) -> Any:
    """Return a graph of nodes called `a`, `b`, ..., one after the other."""
    builder = StateGraph(State)
    before = START
    for name, node in zip("abcdef", nodes, strict=False):
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    return builder.compile(**options)


def degrade(state: State) -> State:
    """Be the fallback."""
    return {"log": ["degraded"]}


# Runs that nobody ran.

numbers = itertools.count(1)


def tokens(
    given: int | None, generated: int | None, after_cut: int | None = 0
) -> ModelTokens:
    """Return the tokens of a model call; `None` for those that nobody knows."""

    def counted(n: int | None) -> TokenCount:
        return TokenCount() if n is None else TokenCount(count=n, basis="known")

    return ModelTokens(
        input=counted(given), output=counted(generated), after_cut=counted(after_cut)
    )


@dataclass
class Told:
    """A run as events tell of it, and as its report does."""

    events: list[Event]
    report: RunReport


def a_run(
    *steps: StepReport,
    parent: str | None = None,
    enforced: bool = True,
    **report: Any,
) -> Told:
    """Return a run of `steps` as the package would tell of it."""
    values = {"outcome": "completed", "budget": 10.0, "elapsed": 1.0, **report}
    whole = RunReport(steps=list(steps), parent=parent, enforced=enforced, **values)
    for step in steps:
        step.share = step.seconds / whole.budget if whole.budget else None
    run = RunDetails(
        id=whole.id,
        parent=parent,
        inside=None,
        name="graph",
        started=1.7e9,
        budget=whole.budget,
        reserve=0.0,
        enforced=enforced,
    )
    events: list[Event] = [RunStarted(run=run, at=0.0)]
    for step in steps:
        events.extend(of_step(run, step))
    events.append(RunEnded(run=run, at=whole.elapsed, report=whole))
    return Told(events, whole)


def of_step(run: RunDetails, step: StepReport) -> Iterator[Event]:
    """Yield what events tell of a step."""
    its: dict[str, Any] = {"run": run, "number": next(numbers), "parent": None}
    its |= {"step": step.name, "kind": step.kind}
    if step.refused:
        assert step.cause is not None
        yield StepRefused(
            **its, at=step.start, cause=step.cause, remaining=0.0, needed=1.0
        )
        return
    yield StepStarted(**its, at=step.start, remaining=None, limit=None)
    yield StepEnded(
        **its, at=step.end, took=step.seconds, cause=step.cause, tokens=step.tokens
    )


def tell(aggregate: Aggregate, *runs: Told) -> Aggregate:
    """Have the runs observed, one after the other."""
    for run in runs:
        for event in run.events:
            aggregate(event)
    return aggregate


def same(ours: Summary, exact: Summary, accuracy: float, exactly: float = 1e-6) -> None:
    """Check that all is equal, and quantiles are within the relative accuracy."""

    def near(value: float | None, within: float = exactly) -> Any:
        # A unit in the last place is lost on the edge of a bin. What is shorter than a
        # microsecond counts as nothing.
        if value is None:
            return None
        return pytest.approx(value, rel=within * (1 + 1e-9), abs=1e-6)

    assert (ours.runs, ours.outcomes) == (exact.runs, exact.outcomes)
    for name in ("elapsed_p50", "elapsed_p95", "elapsed_p99"):
        assert getattr(ours, name) == near(getattr(exact, name), accuracy)
    assert ours.unused == near(exact.unused)
    assert ours.cancellations_asked == exact.cancellations_asked
    assert ours.cancellations_obeyed == exact.cancellations_obeyed
    assert ours.output_tokens == exact.output_tokens
    assert ours.tokens_after_cut == exact.tokens_after_cut
    assert ours.abandoned_tokens == exact.abandoned_tokens
    assert ours.uncounted == exact.uncounted
    mine, theirs = ({(s.name, s.kind): s for s in x.steps} for x in (ours, exact))
    assert mine.keys() == theirs.keys()
    for key, step in mine.items():
        other = theirs[key]
        counts = (step.count, step.refused, step.cut)
        assert counts == (other.count, other.refused, other.cut)
        assert step.share == near(other.share)
        for name in ("p50", "p95", "p99"):
            assert getattr(step, name) == near(getattr(other, name), accuracy)


# The same as of all reports.


@pytest.mark.parametrize("how", [*ASYNC, *SYNC])
def test_the_summary_is_that_of_all_reports(how: How) -> None:
    """Of runs that completed, were cut, refused a step, or raised."""
    aggregate = Aggregate()
    steps = {"b": StepBudget(needs=1.5, otherwise={"log": ["cached"]})}
    long, short = (9, 0.3) if how in ASYNC else (0.6, 0.1)
    budget = 10 if how in ASYNC else 2.0
    policy = DeadlinePolicy(seconds=budget, steps=steps)
    graph = chain(
        napper(how, short), napper(how, short), deadline=policy, fallback=degrade
    )
    slow = chain(napper(how, short), napper(how, long), deadline=0.5, fallback=degrade)
    reports: list[RunReport] = []
    with observe(aggregate):
        for each in (graph, slow, graph):
            reports += drive(each, {}, how, virtual=how in ASYNC).reports
        late = DeadlinePolicy(seconds=1.2, steps=steps)
        reports += drive(graph, {}, how, virtual=how in ASYNC, deadline=late).reports
    assert len(reports) == 4
    # In real time an event and a report are not made at the same moment.
    exactly = 1e-6 if how in ASYNC else 0.05
    same(aggregate.summary(), summarize(reports), 0.01 + exactly, exactly)


causes = st.sampled_from([None, None, None, "deadline", "step", "cancelled"])
durations = st.floats(1e-5, 1e5) | st.floats(0.1, 2.0) | st.just(0.0)
counts = st.none() | st.integers(0, 10_000)


@st.composite
def some_step(draw: Any) -> StepReport:
    """Make a step up."""
    name = draw(st.sampled_from("abc"))
    if draw(st.integers(0, 9)) == 0:
        return StepReport(name=name, start=1, end=1, cause="window", refused=True)
    kind = draw(st.sampled_from(["node", "model", "tool"]))
    used = None
    if kind == "model":
        used = tokens(draw(counts), draw(counts), draw(counts))
    end, cause = draw(durations), draw(causes)
    return StepReport(name=name, kind=kind, start=0, end=end, cause=cause, tokens=used)


@st.composite
def some_run(draw: Any) -> Told:
    """Make a run up."""
    asked = draw(st.integers(0, 5))
    return a_run(
        *draw(st.lists(some_step(), max_size=8)),
        outcome=draw(st.sampled_from(["completed", "deadline", "error"])),
        budget=draw(st.none() | st.floats(0.1, 1000)),
        elapsed=draw(durations),
        cancellations=Cancellations(asked=asked, obeyed=draw(st.integers(0, asked))),
    )


accuracies = st.sampled_from([0.001, 0.01, 0.05, 0.3])


@settings(max_examples=80, deadline=None)
@given(st.lists(some_run(), max_size=30), accuracies)
def test_whatever_the_runs_quantiles_are_within_the_relative_accuracy(
    runs: list[Told], accuracy: float
) -> None:
    """And everything else is exact."""
    ours = tell(Aggregate(accuracy), *runs).summary()
    same(ours, summarize(run.report for run in runs), accuracy)


@settings(max_examples=30, deadline=None)
@given(st.lists(some_run(), max_size=20), st.lists(some_run(), max_size=20))
def test_aggregates_of_parts_make_the_aggregate_of_the_whole(
    some: list[Told], others: list[Told]
) -> None:
    """Merged directly, or after a way through JSON."""
    whole = tell(Aggregate(), *some, *others).summary()
    one, two = tell(Aggregate(), *some), tell(Aggregate(), *others)
    read = Aggregate.from_json(one.to_json())
    assert read.summary() == one.summary()
    read.merge(two)
    one.merge(two)
    assert one.summary() == read.summary()
    same(one.summary(), whole, 1e-6)


# Each thing once.


def test_runs_inside_of_a_run_count_once() -> None:
    """Although the outer report tells of their steps and cancellations too."""

    async def resists(state: State) -> State:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
        return {}

    aggregate = Aggregate()
    inner = chain(napper("ainvoke", 1), resists, deadline=5, name="inner")
    outer = chain(napper("ainvoke", 1), inner, deadline=4, fallback=degrade)
    with observe(aggregate):
        driven = drive(outer, {}, "ainvoke", virtual=True)
    assert len(driven.reports) == 2
    summary = aggregate.summary()
    by_name = {(step.name, step.kind): step.count for step in summary.steps}
    assert by_name == {("a", "node"): 2, ("b", "node"): 2, ("degrade", "fallback"): 1}
    (report,) = [report for report in driven.reports if report.parent is None]
    assert summary.cancellations_asked == report.cancellations.asked > 0
    assert summary.cancellations_obeyed == report.cancellations.obeyed


def test_a_run_inside_counts_by_itself_where_only_it_is_observed() -> None:
    """Nobody else will tell of its cancellations."""
    told = a_run(parent="unseen", cancellations=Cancellations(asked=3, obeyed=2))
    summary = tell(Aggregate(), told).summary()
    assert (summary.cancellations_asked, summary.cancellations_obeyed) == (3, 2)


def test_what_obeys_after_the_report_was_made_still_counts() -> None:
    """Once: what obeyed before is on the report."""
    told = a_run(cancellations=Cancellations(asked=3, obeyed=1))
    begins, ends = told.events
    its: dict[str, Any] = {"run": begins.run, "at": 1.1, "parent": None, "number": 1}
    its |= {"step": "a", "kind": "node", "overrun": 0.1}
    aggregate = Aggregate()
    aggregate(begins)
    aggregate(StragglerEnded(**its, obeyed=True))
    assert aggregate.summary().cancellations_obeyed == 0
    aggregate(ends)
    assert aggregate.summary().cancellations_obeyed == 1
    aggregate(StragglerEnded(**its, obeyed=True))
    aggregate(StragglerEnded(**its, obeyed=False))
    assert aggregate.summary().cancellations_obeyed == 2


class Slow(BaseChatModel):
    """A model that answers as a whole, when it is let go."""

    released: threading.Event

    @property
    def _llm_type(self) -> str:
        return "slow"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.released.wait(10)
        used = {"input_tokens": 7, "output_tokens": 11, "total_tokens": 18}
        message = AIMessage("at last", usage_metadata=used)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(60)
        return self._generate()


@pytest.mark.realtime
def test_tokens_of_a_model_that_ends_after_its_run_count_once() -> None:
    """When they are told; the run's report knew of the call, and not what it used."""
    aggregate = Aggregate()
    model = Slow(released=threading.Event())
    told = threading.Event()

    def watch(event: Event) -> None:
        if isinstance(event, StepEnded) and event.kind == "model":
            told.set()

    def ask(state: State) -> State:
        model.invoke("?")
        return {}

    policy = DeadlinePolicy(seconds=1.3, reserve=timedelta(seconds=1))
    with observe(aggregate, watch):
        chain(ask, deadline=policy, fallback=degrade).invoke({})
    at_once = aggregate.summary()
    assert at_once.outcomes == {"deadline": 1}
    assert at_once.abandoned_tokens == at_once.output_tokens == 0
    model.released.set()
    assert told.wait(10)
    later = aggregate.summary()
    assert later.outcomes == {"deadline": 1}
    assert (later.abandoned_tokens, later.output_tokens) == (18, 11)
    assert later.uncounted == 0
    (call,) = [step for step in later.steps if step.kind == "model"]
    assert (call.count, call.cut) == (1, 1)


def test_an_async_model_that_obeyed_its_cut_is_counted() -> None:
    """Of its tokens the prompt's are estimated, and those of the answer unknown."""
    aggregate = Aggregate()
    model = Slow(released=threading.Event())

    async def ask(state: State) -> State:
        await model.ainvoke("?")
        return {}

    with observe(aggregate):
        run_virtual(chain(ask, deadline=2, fallback=degrade).ainvoke({}))
    summary = aggregate.summary()
    assert summary.uncounted == 1
    assert summary.abandoned_tokens > 0


def test_a_cut_call_whose_tokens_nobody_knows_is_said_to_be_uncounted() -> None:
    """It is absent, not zero."""
    call = StepReport(
        name="m", kind="model", start=0, end=1, cause="deadline", tokens=tokens(5, None)
    )
    summary = tell(Aggregate(), a_run(call, outcome="deadline")).summary()
    assert (summary.uncounted, summary.abandoned_tokens) == (1, 5)


def test_a_run_that_only_measures_abandons_nothing() -> None:
    """What would have been cut counts as cut; its tokens were put to use."""
    call = StepReport(
        name="m", kind="model", start=0, end=1, cause="deadline", tokens=tokens(5, 6)
    )
    summary = tell(Aggregate(), a_run(call, enforced=False)).summary()
    assert (summary.abandoned_tokens, summary.output_tokens) == (0, 6)
    assert summary.steps[0].cut == 1


def test_what_would_have_been_cut_counts_as_cut_in_a_real_run() -> None:
    """As on the report, where the run only measures."""
    aggregate = Aggregate()
    policy = DeadlinePolicy(seconds=2, enforce=False)
    with observe(aggregate), collect_runs() as runs:
        run_virtual(chain(napper("ainvoke", 5), deadline=policy).ainvoke({}))
    assert runs.summary().steps[0].cut == 1
    assert aggregate.summary().steps[0].cut == 1


# In bounded memory.


@functools.cache
def common(size: int) -> Told:
    """Return a run whose steps take some milliseconds to some minutes."""
    seconds = 0.001 * 1.7**size
    steps = (StepReport(name=name, start=0, end=seconds) for name in ("common", "own"))
    return a_run(*steps, elapsed=seconds)


def varied(number: int) -> Told:
    """Return one of many runs: other latencies, and a step of a name of its own."""
    told = common(number % 25)
    run = replace(told.events[0].run, id=str(number))
    events = [replace(event, run=run) for event in told.events]
    for at, event in enumerate(events):
        if isinstance(event, StepEnded) and event.step == "own":
            events[at] = replace(event, step=f"own {number}")
    return Told(events, told.report)


def test_ten_thousand_runs_take_no_more_memory_than_a_few_hundred() -> None:
    """Although each has a step name that no other has."""
    aggregate = Aggregate(max_steps=50)
    tracemalloc.start()
    try:
        for number in range(500):
            tell(aggregate, varied(number))
        before, _ = tracemalloc.get_traced_memory()
        for number in range(500, 10_000):
            tell(aggregate, varied(number))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 * 1024
    assert len(aggregate.to_json()) < 64 * 1024
    assert aggregate.summary().runs == 10_000


def test_steps_beyond_the_most_share_one_entry() -> None:
    """None is lost."""
    aggregate = tell(Aggregate(max_steps=3), *(varied(n) for n in range(10)))
    counted = {step.name: step.count for step in aggregate.summary().steps}
    assert counted == {"common": 10, "own 0": 1, "own 1": 1, "(other)": 8}
    assert "(other)" in str(aggregate)


def test_others_stay_others_when_aggregates_are_merged() -> None:
    """They are not taken for a step of that name."""
    one = tell(Aggregate(max_steps=2), *(varied(n) for n in range(5)))
    two = tell(Aggregate(max_steps=2), *(varied(n) for n in range(5, 10)))
    one.merge(two)
    counted = {step.name: step.count for step in one.summary().steps}
    assert counted == {"common": 10, "own 0": 1, "(other)": 9}
    merged = Aggregate(max_steps=2)
    merged.merge(one)
    assert merged.summary() == one.summary()


def test_runs_whose_end_never_comes_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest ones, when there are too many."""
    monkeypatch.setattr(observing, "_MOST_RUNS", 10)
    cancelled = observing.Cancelled()
    for _ in range(1000):
        cancelled.told(a_run().events[0])
    assert len(cancelled._inside) == len(cancelled._outermost) == 10


# From many threads.


def test_events_of_many_threads_are_all_counted() -> None:
    """While others ask for the summary."""
    aggregate = Aggregate()
    told = a_run(StepReport(name="a", start=0, end=1))
    start = threading.Barrier(6)

    def observe_many() -> None:
        start.wait()
        for number in range(300):
            run = replace(told.events[0].run, id=f"{threading.get_ident()} {number}")
            for event in told.events:
                aggregate(replace(event, run=run))

    def ask() -> None:
        start.wait()
        for _ in range(50):
            aggregate.summary()
            aggregate.to_json()

    threads = [threading.Thread(target=observe_many) for _ in range(5)]
    threads.append(threading.Thread(target=ask))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    summary = aggregate.summary()
    assert summary.runs == summary.steps[0].count == 5 * 300


def test_two_aggregates_can_be_merged_into_each_other_at_once() -> None:
    """Neither waits for the other."""
    one, two = Aggregate(), Aggregate()

    def merge(mine: Aggregate, other: Aggregate) -> None:
        for _ in range(100):
            mine.merge(other)

    threads = [
        threading.Thread(target=merge, args=pair, daemon=True)
        for pair in ((one, two), (two, one))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


# As text, and as JSON.


def test_an_aggregate_shows_itself_as_its_summary() -> None:
    """As text and in a notebook."""
    aggregate = tell(Aggregate(), a_run(StepReport(name="a", start=0, end=1)))
    assert str(aggregate) == str(aggregate.summary())
    assert aggregate._repr_mimebundle_()["text/plain"] == str(aggregate)
    assert "No runs" in str(Aggregate())


def test_what_a_reader_needs_is_in_the_json() -> None:
    """The accuracy and the most steps go with it."""
    aggregate = tell(
        Aggregate(0.05, max_steps=7), a_run(StepReport(name="a", start=0, end=0))
    )
    read = Aggregate.from_json(aggregate.to_json().encode())
    assert read.summary() == aggregate.summary()
    assert json.loads(read.to_json()) == json.loads(aggregate.to_json())


def changed(**values: Any) -> str:
    """Return an aggregate as JSON in which something is different."""
    aggregate = tell(Aggregate(), a_run(StepReport(name="a", start=0, end=1)))
    return json.dumps(json.loads(aggregate.to_json()) | values)


BINS = {"shortest": 0, "longest": 1, "zeros": 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Invalid JSON"),
        (changed()[:-20], "Invalid JSON"),
        ("[]", "object"),
        ("{}", "relative_accuracy"),
        (changed(version=2), "version"),
        (changed(relative_accuracy=0), "relative_accuracy"),
        (changed(elapsed=BINS | {"bins": [[10**9, 1]]}), "bins of a sketch"),
        (changed(elapsed=BINS | {"bins": [[0, -1]]}), "elapsed.bins"),
    ],
)
def test_text_that_is_no_aggregate_is_refused_in_clear_words(
    text: str, says: str
) -> None:
    """Before anything is made of it."""
    with pytest.raises(ValueError, match="this is no aggregate") as error:
        Aggregate.from_json(text)
    assert says in str(error.value)


# Bad arguments.


@pytest.mark.parametrize("accuracy", [0, 1, -0.1, 1e-9, float("nan"), 5])
def test_an_accuracy_that_makes_no_sense_is_refused(accuracy: float) -> None:
    with pytest.raises(ValueError, match="relative_accuracy"):
        Aggregate(accuracy)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "many"])
def test_a_number_of_steps_that_makes_no_sense_is_refused(most: Any) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        Aggregate(max_steps=most)


def test_aggregates_of_different_accuracy_are_not_merged() -> None:
    """And the one that was asked stays as it was."""
    one = tell(Aggregate(0.01), a_run())
    with pytest.raises(ValueError, match=r"0\.05"):
        one.merge(Aggregate(0.05))
    assert one.summary().runs == 1


def test_collecting_and_aggregating_go_together() -> None:
    """Neither keeps the other from hearing of a run."""
    aggregate = Aggregate()
    graph = chain(napper("ainvoke", 1), deadline=5)
    with collect_runs() as runs, observe(aggregate):
        run_virtual(graph.ainvoke({}))
    assert len(runs) == aggregate.summary().runs == 1
