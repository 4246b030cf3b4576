"""Spans and metrics as an OpenTelemetry SDK exports them."""

from __future__ import annotations

import asyncio
import operator
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import pytest
from harness import ALL, SYNC, How, drive, napper
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START
from langgraph.types import interrupt
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from langgraph_deadline import DeadlinePolicy, StateGraph, StepBudget
from langgraph_deadline import otel as under_test
from langgraph_deadline.events import (
    RunDetails,
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
    StragglerEnded,
    StragglerFound,
    observe,
)
from langgraph_deadline.otel import OpenTelemetryObserver
from langgraph_deadline.report import ModelTokens, RunReport, TokenCount
from langgraph_deadline.testing import run_virtual

SECOND = 1_000_000_000


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


async def resists(state: State) -> State:
    """Take two seconds to obey."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(2)
    return {}


class Exported:
    """An SDK with an observer, and what they have exported."""

    def __init__(self, **options: Any) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._reader])
        self.tracer = self.tracers.get_tracer("test")
        self.observer = OpenTelemetryObserver(
            tracer_provider=self.tracers, meter_provider=self.meters, **options
        )

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The spans by their name, each of which there is once."""
        finished = self._spans.get_finished_spans()
        by_name = {span.name: span for span in finished}
        assert len(by_name) == len(finished)
        return by_name

    def all(self, name: str) -> list[ReadableSpan]:
        """Return the spans of that name."""
        return [s for s in self._spans.get_finished_spans() if s.name == name]

    def parents(self) -> dict[str, str | None]:
        """Return the name of the span that each is inside of."""
        names = {its_id(span): span.name for span in self.spans.values()}
        return {
            name: names[span.parent.span_id] if span.parent else None
            for name, span in self.spans.items()
        }

    def nothing_kept(self) -> bool:
        """Whether the observer has let go of all that is over."""
        spans = self.observer._spans
        return not spans._runs and not spans._stragglers

    def points(self, metric: str) -> list[Any]:
        """Return the data points of a metric."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == f"langgraph_deadline.{metric}"
            for point in found.data.data_points
        ]

    def value(self, metric: str, **labels: str) -> float:
        """Return the sum of a metric, where it has these attributes of ours."""
        wanted = {f"langgraph_deadline.{k}": v for k, v in labels.items()}.items()
        found = [p for p in self.points(metric) if wanted <= p.attributes.items()]
        return sum(getattr(point, "value", getattr(point, "sum", 0)) for point in found)


def its_id(span: Any) -> int:
    """Return the id of a span."""
    return span.get_span_context().span_id


def seconds(span: ReadableSpan) -> float:
    """Return how long a span took."""
    assert span.end_time is not None
    assert span.start_time is not None
    return (span.end_time - span.start_time) / SECOND


def attribute(span: ReadableSpan, name: str) -> Any:
    """Return an attribute of ours."""
    return (span.attributes or {}).get(f"langgraph_deadline.{name}")


@pytest.fixture
def exported() -> Exported:
    """Return an SDK with an observer."""
    return Exported()


# Spans and their parents.


@pytest.mark.parametrize("how", ALL)
def test_a_run_is_inside_the_callers_span_and_its_steps_inside_of_it(
    exported: Exported, how: How
) -> None:
    """Whatever threads the run has; and the caller's span stays the current one."""
    graph = chain(napper(how, 0.01), napper(how, 0.01), deadline=30, name="agent")
    with exported.tracer.start_as_current_span("caller") as caller:
        with observe(exported.observer):
            drive(graph, {}, how)
        assert trace.get_current_span() is caller
    assert exported.parents() == {
        "caller": None,
        "run agent": "caller",
        "a": "run agent",
        "b": "run agent",
    }
    assert len({span.context.trace_id for span in exported.spans.values()}) == 1
    assert exported.nothing_kept()


def test_a_run_without_a_span_around_it_is_a_trace_of_its_own(
    exported: Exported,
) -> None:
    """And so is the next one."""
    graph = chain(napper("ainvoke", 1), deadline=5)
    with observe(exported.observer):
        for _ in range(2):
            run_virtual(graph.ainvoke({}))
    one, two = exported.all("run LangGraph")
    assert one.parent is two.parent is None
    assert one.context.trace_id != two.context.trace_id


def test_spans_take_exactly_what_steps_took(exported: Exported) -> None:
    """Their times are those of the events, also under virtual time."""
    graph = chain(napper("ainvoke", 1), napper("ainvoke", 60), deadline=5)
    with observe(exported.observer):
        drive(graph, {}, "ainvoke", virtual=True)
    spans = exported.spans
    run, a, b = spans["run LangGraph"], spans["a"], spans["b"]
    assert [seconds(span) for span in (a, b, run)] == [1.0, 4.0, 5.0]
    assert a.start_time == run.start_time
    assert a.end_time == b.start_time
    assert b.end_time == run.end_time


def test_nested_graphs_are_inside_the_step_that_calls_them(
    exported: Exported,
) -> None:
    """With a deadline of their own a run, without one just its steps."""
    implicit = chain(napper("ainvoke", 1), name="implicit")
    bounded = StateGraph(State).add_node("x", napper("ainvoke", 1))
    bounded.add_edge(START, "x")
    inner = bounded.compile(deadline=5, name="inner")
    builder = StateGraph(State).add_node("one", implicit).add_node("two", inner)
    builder.add_edge(START, "one").add_edge("one", "two")
    with observe(exported.observer):
        run_virtual(builder.compile(deadline=9, name="outer").ainvoke({}))
    assert exported.parents() == {
        "run outer": None,
        "one": "run outer",
        "a": "one",
        "two": "run outer",
        "run inner": "two",
        "x": "run inner",
    }


def test_runs_at_the_same_time_do_not_mix(exported: Exported) -> None:
    """Each is in the trace of its own caller."""
    graph = chain(napper("ainvoke", 1), napper("ainvoke", 1), deadline=5)

    async def call(name: str) -> None:
        with exported.tracer.start_as_current_span(name):
            await graph.ainvoke({})

    async def main() -> None:
        await asyncio.gather(*(call(f"caller {n}") for n in range(10)))

    with observe(exported.observer):
        run_virtual(main())
    callers = {its_id(exported.all(f"caller {n}")[0]) for n in range(10)}
    runs = exported.all("run LangGraph")
    assert {run.parent.span_id for run in runs if run.parent} == callers
    for run in runs:
        inside = [
            span.name
            for name in "ab"
            for span in exported.all(name)
            if span.parent and span.parent.span_id == its_id(run)
        ]
        assert inside == ["a", "b"]
    assert exported.nothing_kept()


def test_baggage_of_the_caller_is_seen_by_span_processors() -> None:
    """In whatever thread a step is started."""
    seen: list[Any] = []

    class Reader(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.append((span.name, baggage.get_baggage("tenant", parent_context)))

    exported = Exported()
    exported.tracers.add_span_processor(Reader())
    token = otel_context.attach(baggage.set_baggage("tenant", "x"))
    try:
        with observe(exported.observer):
            drive(chain(napper("invoke", 0), deadline=30), {}, "invoke")
    finally:
        otel_context.detach(token)
    assert seen == [("run LangGraph", "x"), ("a", "x")]


# What they say.


def test_the_span_of_a_run_tells_of_its_deadline_and_its_end(
    exported: Exported,
) -> None:
    """With what happened in between as events, at the time when it did."""
    steps = {"a": StepBudget(needs=30, otherwise={"log": ["cached"]})}
    policy = DeadlinePolicy(seconds=10, steps=steps)
    graph = chain(
        napper("ainvoke", 1), napper("ainvoke", 60), deadline=policy, fallback=degrade
    )
    with observe(exported.observer):
        drive(graph, {}, "ainvoke", virtual=True)
    run = exported.spans["run LangGraph"]
    assert attribute(run, "budget") == 10
    assert attribute(run, "reserve") == 2
    assert attribute(run, "deadline").endswith("+00:00")
    assert attribute(run, "outcome") == attribute(run, "cause") == "deadline"
    assert run.status.status_code is StatusCode.ERROR
    assert (run.attributes or {})["error.type"] == "deadline"
    assert run.start_time is not None
    told = [
        (e.name.removeprefix("langgraph_deadline."), (e.timestamp - run.start_time))
        for e in run.events
    ]
    assert told == [("refused", 0), ("cut", 8 * SECOND), ("fallback", 8 * SECOND)]
    refused = run.events[0].attributes or {}
    assert refused["langgraph_deadline.cause"] == "window"
    assert refused["langgraph_deadline.needed"] == 30


def test_the_span_of_a_step_tells_what_was_left_and_why_it_was_cut(
    exported: Exported,
) -> None:
    """One that ends by itself has no status."""
    policy = DeadlinePolicy(seconds=10, steps={"b": StepBudget(seconds=3)})
    graph = chain(
        napper("ainvoke", 1), napper("ainvoke", 60), deadline=policy, fallback=degrade
    )
    with observe(exported.observer):
        drive(graph, {}, "ainvoke", virtual=True)
    a, b = exported.spans["a"], exported.spans["b"]
    assert attribute(a, "remaining_at_start") == 8
    assert a.status.status_code is StatusCode.UNSET
    assert attribute(a, "cause") is None
    assert attribute(b, "limit") == 3
    assert attribute(b, "cause") == "step"
    assert b.status.status_code is StatusCode.ERROR
    assert (b.attributes or {})["error.type"] == "step"
    assert exported.spans["degrade"].status.status_code is StatusCode.UNSET
    assert attribute(exported.spans["degrade"], "kind") == "fallback"


def test_an_own_error_is_told_by_its_kind(exported: Exported) -> None:
    """On the step and on the run, neither of which was cut."""

    def fails(state: State) -> State:
        msg = "own"
        raise KeyError(msg)

    with observe(exported.observer):
        drive(chain(fails, deadline=30), {}, "invoke")
    spans = exported.spans
    assert (spans["a"].attributes or {})["error.type"] == "KeyError"
    assert spans["a"].status.status_code is StatusCode.ERROR
    assert spans["run LangGraph"].status.status_code is StatusCode.ERROR
    assert attribute(spans["run LangGraph"], "outcome") == "error"


def test_a_run_that_waits_for_a_person_has_not_failed(exported: Exported) -> None:
    """Neither has the step that asks."""

    def ask(state: State) -> State:
        return {"log": [interrupt("?")]}

    graph = chain(ask, deadline=30, checkpointer=InMemorySaver())
    with observe(exported.observer):
        graph.invoke({}, {"configurable": {"thread_id": "1"}})
    spans = exported.spans
    assert attribute(spans["run LangGraph"], "interrupted") is True
    assert spans["run LangGraph"].status.status_code is StatusCode.UNSET
    assert spans["a"].status.status_code is StatusCode.UNSET


def test_a_run_that_only_measures_has_not_failed(exported: Exported) -> None:
    """What would have been cut says why, and no more."""
    policy = DeadlinePolicy(seconds=2, enforce=False)
    with observe(exported.observer):
        run_virtual(chain(napper("ainvoke", 5), deadline=policy).ainvoke({}))
    for span in exported.spans.values():
        assert span.status.status_code is StatusCode.UNSET
    assert attribute(exported.spans["run LangGraph"], "enforced") is False


# Calls of models and tools.


class Model(BaseChatModel):
    """A model that tells what it used."""

    model_name: str = "gpt-x"

    @property
    def _llm_type(self) -> str:
        return "test"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name}

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        used = {"input_tokens": 7, "output_tokens": 11, "total_tokens": 18}
        message = AIMessage("hello", usage_metadata=used)
        return ChatResult(generations=[ChatGeneration(message=message)])


def test_calls_follow_the_conventions_for_generative_ai(exported: Exported) -> None:
    """A model call is the client's span `chat <model>`, inside of its node."""

    @tool
    def look_up(word: str) -> str:
        """Look up a word."""
        return word

    async def both(state: State) -> State:
        await look_up.ainvoke({"word": "deadline"})
        await Model(metadata={"ls_model_name": "gpt-x"}).ainvoke("a secret question")
        return {}

    with observe(exported.observer):
        drive(chain(both, deadline=30), {}, "ainvoke")
    spans = exported.spans
    called = spans["chat gpt-x"]
    assert called.kind is SpanKind.CLIENT
    told = dict(called.attributes or {})
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "gpt-x"
    assert told["gen_ai.usage.input_tokens"] == 7
    assert told["gen_ai.usage.output_tokens"] == 11
    used = spans["execute_tool look_up"]
    assert used.kind is SpanKind.INTERNAL
    assert (used.attributes or {})["gen_ai.operation.name"] == "execute_tool"
    assert (used.attributes or {})["gen_ai.tool.name"] == "look_up"
    assert exported.parents()["chat gpt-x"] == "a"
    assert exported.parents()["execute_tool look_up"] == "a"
    for span in spans.values():
        assert "secret" not in str(span.to_json())


# Runs that nobody ran.

RUN = RunDetails(
    id="run",
    parent=None,
    inside=None,
    name="graph",
    started=1_700_000_000.123456,
    budget=10.0,
    reserve=0.0,
    enforced=True,
)
STEP: dict[str, Any] = {"run": RUN, "number": 1, "parent": None, "step": "a"}
STEP |= {"kind": "node"}


def started(**values: Any) -> StepStarted:
    """Return the start of a step."""
    return StepStarted(**{**STEP, "at": 0.5, "remaining": 9.5, "limit": None, **values})


def run_ended(run: RunDetails = RUN, at: float = 2.0, **report: Any) -> RunEnded:
    """Return the end of a run."""
    values = {"outcome": "completed", "elapsed": at, **report}
    return RunEnded(run=run, at=at, report=RunReport(**values))


def test_estimated_tokens_are_told_as_such_and_unknown_ones_are_absent(
    exported: Exported,
) -> None:
    """And those that came after the cut."""
    tokens = ModelTokens(
        input=TokenCount(count=5, basis="estimated"),
        output=TokenCount(),
        after_cut=TokenCount(count=3, basis="estimated"),
    )
    model = {**STEP, "kind": "model", "step": "gpt"}
    exported.observer(RunStarted(run=RUN, at=0.0))
    exported.observer(started(kind="model", step="gpt"))
    exported.observer(
        StepEnded(**model, at=1, took=0.5, cause="deadline", tokens=tokens)
    )
    exported.observer(run_ended())
    told = dict(exported.spans["chat gpt"].attributes or {})
    assert told["gen_ai.usage.input_tokens"] == 5
    assert told["langgraph_deadline.tokens.input_estimated"] is True
    assert told["langgraph_deadline.tokens.after_cut"] == 3
    assert "gen_ai.usage.output_tokens" not in told


def test_what_is_open_when_its_run_ends_is_ended_with_it(exported: Exported) -> None:
    """What comes later of it is no error and opens nothing."""
    exported.observer(RunStarted(run=RUN, at=0.0))
    exported.observer(started())
    exported.observer(run_ended())
    span = exported.spans["a"]
    assert (seconds(span), span.status.status_code) == (1.5, StatusCode.ERROR)
    assert attribute(span, "unfinished") is True
    exported.observer(StepEnded(**STEP, at=5.0, took=4.5))
    exported.observer(started(number=2))
    assert set(exported.spans) == {"a", "run graph"}
    assert exported.nothing_kept()
    # The metrics count what ended, whenever that was.
    assert exported.value("step.duration", step="a") == 4.5


def test_events_of_a_run_that_was_not_seen_to_start_are_no_error(
    exported: Exported,
) -> None:
    """There is no span to put them on."""
    found: dict[str, Any] = {"cause": "deadline", "overrun": 0.1}
    exported.observer(started())
    exported.observer(StragglerFound(**STEP, at=1.0, **found))
    exported.observer(StragglerEnded(**STEP, at=2.0, overrun=1.0, obeyed=False))
    exported.observer(StepEnded(**STEP, at=2.0, took=1.0))
    exported.observer(run_ended())
    assert exported.spans == {}
    assert exported.nothing_kept()


def test_runs_whose_end_never_comes_are_ended_when_there_are_too_many(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest ones, with their steps."""
    monkeypatch.setattr(under_test, "_MOST_RUNS", 3)
    for number in range(10):
        run = replace(RUN, id=str(number))
        exported.observer(RunStarted(run=run, at=0.0))
        exported.observer(started(run=run, number=number))
    assert len(exported.all("run graph")) == len(exported.all("a")) == 7
    assert len(exported.observer._spans._runs) == 3


# Stragglers.


def test_a_straggler_has_a_span_from_its_cut_to_its_end(exported: Exported) -> None:
    """Inside of its step's, and marked on that and on the run's."""

    async def main() -> None:
        with observe(exported.observer):
            await chain(resists, deadline=5, fallback=degrade).ainvoke({})
        assert "straggler a" not in exported.spans
        await asyncio.sleep(10)

    run_virtual(main())
    spans = exported.spans
    run, straggler = spans["run LangGraph"], spans["straggler a"]
    assert exported.parents()["straggler a"] == "a"
    assert attribute(spans["a"], "straggler") is True
    assert seconds(straggler) == pytest.approx(2)
    assert run.start_time is not None
    assert straggler.start_time is not None
    assert straggler.start_time - run.start_time == pytest.approx(4 * SECOND, abs=1000)
    assert straggler.status.status_code is StatusCode.ERROR
    assert "langgraph_deadline.straggler" in [event.name for event in run.events]
    assert exported.nothing_kept()


# Metrics.


def test_metrics_tell_the_signals_of_a_run(exported: Exported) -> None:
    """The same as those for Prometheus, with units."""
    policy = DeadlinePolicy(
        seconds=10, steps={"a": StepBudget(needs=30, otherwise={"log": ["cached"]})}
    )
    graph = chain(
        napper("ainvoke", 1), napper("ainvoke", 1), resists,
        deadline=policy, fallback=degrade, name="agent",
    )  # fmt: skip
    seen: list[float] = []

    async def main() -> None:
        with observe(exported.observer):
            await graph.ainvoke({})
        seen.append(exported.value("stragglers.running", step="c"))
        await asyncio.sleep(10)
        seen.append(exported.value("stragglers.running", step="c"))

    run_virtual(main())
    value: Callable[..., float] = exported.value
    assert value("runs.ended", graph="agent", outcome="deadline") == 1
    assert value("runs.active", graph="agent") == 0
    assert value("run.duration", graph="agent") == pytest.approx(8.25)
    assert value("step.duration", step="b", kind="node") == pytest.approx(1)
    assert value("step.remaining", step="b") == pytest.approx(8)
    assert value("steps.refused", step="a", cause="window") == 1
    assert value("steps.exceeded", step="c", cause="deadline") == 1
    assert value("cancellations.asked") == 1
    assert value("cancellations.obeyed") == 0
    assert value("stragglers.found", step="c") == 1
    assert seen == [1, 0]


def test_tokens_are_told_by_the_type_of_the_conventions(exported: Exported) -> None:
    """And those of abandoned calls apart."""
    tokens = ModelTokens(input=TokenCount(count=5), output=TokenCount(count=6))
    model = {**STEP, "kind": "model", "step": "gpt"}
    exported.observer(
        StepEnded(**model, at=1.0, took=1.0, cause="deadline", tokens=tokens)
    )
    points = exported.points("tokens.abandoned")
    by_type = {p.attributes["gen_ai.token.type"]: p.value for p in points}
    assert by_type == {"input": 5, "output": 6}


def test_steps_beyond_the_most_share_their_metrics() -> None:
    """However many there are."""
    exported = Exported(max_steps=3)
    for number in range(100):
        its = {**STEP, "step": f"step {number}"}
        exported.observer(StepEnded(**its, at=1.0, took=1.0))
    assert len(exported.points("step.duration")) == 4
    assert exported.value("step.duration", step="(other)") == 97


@pytest.mark.parametrize("most", [0, -1, True, 2.5])
def test_a_number_of_steps_that_makes_no_sense_is_refused(most: Any) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        OpenTelemetryObserver(max_steps=most)


# Without anybody who listens, and with many at once.


def test_without_an_sdk_nothing_happens() -> None:
    """Neither does anything fail."""
    with observe(OpenTelemetryObserver()):
        drive(chain(napper("invoke", 0), deadline=30), {}, "invoke")


def test_runs_of_many_threads_are_all_told(exported: Exported) -> None:
    """Each in its own trace, and nothing is left."""
    graph = chain(napper("invoke", 0), deadline=60)

    def call() -> None:
        with observe(exported.observer):
            for _ in range(5):
                drive(graph, {}, SYNC[0])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(exported.all("run LangGraph")) == len(exported.all("a")) == 20
    runs = {its_id(span) for span in exported.all("run LangGraph")}
    inside = {span.parent.span_id for span in exported.all("a") if span.parent}
    assert inside == runs
    assert exported.nothing_kept()
