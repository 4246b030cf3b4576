"""Runs as OpenTelemetry spans, and their signals as metrics.

```python
from langgraph_deadline.events import observe
from langgraph_deadline.otel import OpenTelemetryObserver

with observe(OpenTelemetryObserver()):
    graph.invoke(inputs)
```

A run is a span inside the caller's current one, a step a span inside its run or the
step around it; what a cut did is on the run's span as events. Model and tool calls
follow the semantic conventions for generative AI, as far as LangChain's events tell
what these ask for; their text is never recorded. Times are those of the events. No
context is attached: a span that a node makes by itself is inside the caller's, beside
that of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import RLock

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter, MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from ._signals import BUCKETS, METRICS, Metric, Signals, Sink
from ._signals import PREFIX as _OURS
from ._span_attributes import (
    NOTED,
    name,
    nanoseconds,
    of_event,
    of_run,
    of_step,
    of_tokens,
    own,
)
from .events import (
    Event,
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
    StragglerEnded,
    StragglerFound,
)

__all__ = ("OpenTelemetryObserver",)

_MOST_RUNS = 10_000
"""Runs in flight with open spans; one whose end never comes must not stay."""


class OpenTelemetryObserver:
    """An observer that makes spans and metrics of runs.

    Attributes of its own begin with `langgraph_deadline.`: on runs `graph`, `run`,
    `budget`, `reserve`, `deadline` (RFC 3339), `outcome`, `cause`; on steps `step`,
    `kind`, `remaining_at_start`, `limit`, `cause`, `retries`, `straggler`, and
    `unfinished` where no end was told. A run that did not complete and a step that was
    cut have the status `ERROR`.

    Work that is given up has a span `straggler ...` of its own, from its cut to its
    end, as soon as it has ended.

    Metrics are those of `langgraph_deadline.prometheus`, in the way of this world:
    `langgraph_deadline.step.duration` in seconds, and so on.

    Args:
        tracer_provider: Who makes the spans; the global one unless given.
        meter_provider: Who makes the instruments; the global one unless given.
        max_steps: How many steps (by graph, name and kind) metrics tell apart; all
            others are `(other)`.

    Raises:
        ValueError: If `max_steps` makes no sense.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        max_steps: int = 200,
    ) -> None:
        self._spans = _Spans(tracer_provider)
        meter = metrics.get_meter(_OURS, meter_provider=meter_provider)
        sinks = {metric.name: _sink(metric, meter) for metric in METRICS}
        self._signals = Signals(sinks, max_steps)

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""
        self._spans.told(event)
        self._signals.told(event)


# Spans.


@dataclass(slots=True)
class _Run:
    """A run in flight."""

    span: Span
    context: Context
    """What its spans are inside of, apart from the span: baggage, for instance."""

    steps: dict[int, Span] = field(default_factory=dict)
    """The steps that are open, by their number."""


class _Spans:
    def __init__(self, provider: TracerProvider | None) -> None:
        self._tracer = trace.get_tracer(_OURS, tracer_provider=provider)
        self._runs: dict[str, _Run] = {}
        # Where the spans of stragglers belong, and why they were cut: their runs may be
        # over before they are.
        self._stragglers: dict[int, tuple[Context, str | None]] = {}
        # Held for looking up only, never while a span is exported. Reentrant: a stream
        # that is garbage ends its run wherever it is collected.
        self._lock = RLock()

    def told(self, event: Event) -> None:
        match event:
            case StepStarted():
                self._step_started(event)
            case StepEnded():
                self._step_ended(event)
            case RunStarted():
                self._run_started(event)
            case RunEnded():
                self._run_ended(event)
            case StragglerEnded():
                self._straggler_ended(event)
            case _:
                self._happened(event)

    def _run_started(self, event: RunStarted) -> None:
        run = event.run
        with self._lock:
            outer = self._runs.get(run.parent) if run.parent is not None else None
            around = outer.steps.get(run.inside or 0, outer.span) if outer else None
        context = outer.context if outer else otel_context.get_current()
        inside = trace.set_span_in_context(around, context) if around else context
        span = self._tracer.start_span(
            f"run {run.name}",
            inside,
            SpanKind.INTERNAL,
            of_run(event),
            (),
            nanoseconds(event),
        )
        with self._lock:
            self._runs[run.id] = _Run(span, context)
            first = next(iter(self._runs)) if len(self._runs) > _MOST_RUNS else None
            lost = self._runs.pop(first) if first is not None else None
        if lost is not None:
            _end_all(lost, nanoseconds(event))

    def _run_ended(self, event: RunEnded) -> None:
        with self._lock:
            run = self._runs.pop(event.run.id, None)
        if run is None:
            return
        report = event.report
        run.span.set_attributes(
            own(
                outcome=report.outcome,
                cause=report.cause,
                interrupted=report.interrupted,
                **{"cancellations.asked": report.cancellations.asked},
                **{"cancellations.obeyed": report.cancellations.obeyed},
            )
        )
        if report.outcome != "completed":
            _failed(run.span, report.cause or report.outcome, f"run: {report.outcome}")
        _end_all(run, nanoseconds(event))

    def _step_started(self, event: StepStarted) -> None:
        with self._lock:
            run = self._runs.get(event.run.id)
            if run is None:
                return
            around = run.steps.get(event.parent or 0, run.span)
        span = self._tracer.start_span(
            name(event),
            trace.set_span_in_context(around, run.context),
            SpanKind.CLIENT if event.kind == "model" else SpanKind.INTERNAL,
            of_step(event),
            (),
            nanoseconds(event),
        )
        with self._lock:
            late = event.run.id not in self._runs
            if not late:
                run.steps[event.number] = span
        if late:
            _left_open(span, nanoseconds(event))

    def _step_ended(self, event: StepEnded) -> None:
        with self._lock:
            run = self._runs.get(event.run.id)
            span = run.steps.pop(event.number, None) if run is not None else None
        if span is None:
            return
        said = own(cause=event.cause, retries=event.retries or None)
        if event.tokens is not None:
            said |= of_tokens(event.tokens)
        if said:
            span.set_attributes(said)
        if event.cause is not None and event.run.enforced:
            _failed(span, event.cause, f"cut: {event.cause}")
        elif event.error is not None:
            _failed(span, event.error, event.error)
        span.end(nanoseconds(event))

    def _happened(self, event: Event) -> None:
        """Note something on the run's span."""
        with self._lock:
            run = self._runs.get(event.run.id)
            if run is None:
                return
            step = None
            if isinstance(event, StragglerFound):
                step = run.steps.get(event.number)
                around = step if step is not None else run.span
                if not event.blocked_loop and len(self._stragglers) < _MOST_RUNS:
                    context = trace.set_span_in_context(around, run.context)
                    self._stragglers[event.number] = context, event.cause
        if step is not None:
            step.set_attribute(f"{_OURS}.straggler", True)
        name = NOTED.get(type(event))
        if name is not None:
            run.span.add_event(f"{_OURS}.{name}", of_event(event), nanoseconds(event))

    def _straggler_ended(self, event: StragglerEnded) -> None:
        with self._lock:
            found = self._stragglers.pop(event.number, None)
        if found is None:
            return
        context, cause = found
        name = f"straggler {event.step}"
        attributes = own(step=event.step, kind=event.kind, cause=cause, straggler=True)
        began = nanoseconds(event) - round(event.overrun * 1e9)
        span = self._tracer.start_span(
            name, context, SpanKind.INTERNAL, attributes, (), began
        )
        if not event.obeyed:
            _failed(span, cause or "cancelled", "ran on after its cut")
        span.end(nanoseconds(event))


def _end_all(run: _Run, at: int) -> None:
    """End the span of a run, and before it those of the steps that it leaves behind."""
    for span in run.steps.values():
        _left_open(span, at)
    run.span.end(at)


def _left_open(span: Span, at: int) -> None:
    """End the span of a step whose end was not told before that of its run."""
    span.set_attribute(f"{_OURS}.unfinished", True)
    span.set_status(Status(StatusCode.ERROR, "not known to have ended"))
    span.end(at)


def _failed(span: Span, kind: str, why: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, why))


# Metrics.


def _sink(metric: Metric, meter: Meter) -> Sink:
    """Return what keeps the values of a metric."""
    name, keys = f"{_OURS}.{metric.name}", [_key(label) for label in metric.labels]
    if metric.kind == "histogram":
        times = meter.create_histogram(
            name, metric.unit, metric.text, explicit_bucket_boundaries_advisory=BUCKETS
        )
        return lambda value, labels: times.record(value, _labelled(keys, labels))
    if metric.kind == "counter":
        count = meter.create_counter(name, metric.unit, metric.text)
        return lambda value, labels: count.add(value, _labelled(keys, labels))
    gauge = meter.create_up_down_counter(name, metric.unit, metric.text)
    return lambda value, labels: gauge.add(value, _labelled(keys, labels))


def _key(label: str) -> str:
    return "gen_ai.token.type" if label == "type" else f"{_OURS}.{label}"


def _labelled(keys: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(keys, labels, strict=True))
