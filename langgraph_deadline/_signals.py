"""The signals of a deadline service, made of events for whatever keeps them.

The four that matter: latency per step, exceeded deadlines per step, tokens spent on
abandoned runs, and the share of cancellations that were obeyed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ._observing import Cancelled, Names
from .events import (
    Event,
    RunEnded,
    RunStarted,
    StepEnded,
    StepEvent,
    StepRefused,
    StepStarted,
    StragglerEnded,
    StragglerFound,
)

PREFIX = "langgraph_deadline"

BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Where histograms are divided (in seconds): from a lookup to a long agent run."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Something that is counted or measured.

    Attributes:
        name: Its name after `PREFIX`, in parts.
        kind: `gauge` stands for what goes up and down.
        unit: `s`, or what is counted in braces.
        text: What it is.
        labels: What it is told apart by.
    """

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    unit: str
    text: str
    labels: tuple[str, ...]


_GRAPH = ("graph",)
_STEP = ("graph", "step", "kind")
_CALL = ("graph", "step")

METRICS = (
    Metric("runs.ended", "counter", "{run}", "Runs that ended.", ("graph", "outcome")),
    Metric("runs.active", "gauge", "{run}", "Runs now.", _GRAPH),
    Metric("run.duration", "histogram", "s", "How long callers waited.", _GRAPH),
    Metric("step.duration", "histogram", "s", "How long steps took.", _STEP),
    Metric("step.remaining", "histogram", "s", "Left when a step started.", _STEP),
    Metric(
        "steps.exceeded", "counter", "{step}", "Steps that were cut.", (*_STEP, "cause")
    ),
    Metric(
        "steps.refused",
        "counter",
        "{step}",
        "Steps that were not started.",
        (*_STEP, "cause"),
    ),
    Metric("tokens.used", "counter", "{token}", "Of model calls.", (*_CALL, "type")),
    Metric(
        "tokens.abandoned",
        "counter",
        "{token}",
        "Those of model calls that were cut.",
        (*_CALL, "type"),
    ),
    Metric(
        "calls.uncounted",
        "counter",
        "{call}",
        "Model calls that were cut and whose tokens nobody knows.",
        _CALL,
    ),
    Metric(
        "cancellations.asked",
        "counter",
        "{step}",
        "Steps that were at work when they were cut.",
        _GRAPH,
    ),
    Metric(
        "cancellations.obeyed",
        "counter",
        "{step}",
        "Those that ended within the grace.",
        _GRAPH,
    ),
    Metric("stragglers.found", "counter", "{step}", "Work that outlived a cut.", _STEP),
    Metric("stragglers.running", "gauge", "{step}", "Such work, now.", _STEP),
)

Sink = Callable[[float, tuple[str, ...]], None]
"""Takes a value, or what is to be added, and the labels' values."""


class Signals:
    """Tells sinks, by the name of their metric, what events say.

    A step counts when it ends, whenever that is; in runs that only measure, what would
    have been cut counts as exceeded.
    """

    def __init__(self, sinks: Mapping[str, Sink], max_steps: int) -> None:
        self._to = sinks
        self._steps = Names(max_steps, "max_steps")
        self._graphs = Names(max_steps, "max_steps")
        self._cancelled = Cancelled()
        self._running: dict[int, tuple[str, ...]] = {}
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            RunStarted: self._run_started,
            RunEnded: self._run_ended,
            StepStarted: self._step_started,
            StepEnded: self._step_ended,
            StepRefused: self._step_refused,
            StragglerFound: self._straggler_found,
            StragglerEnded: self._straggler_ended,
        }

    def told(self, event: Event) -> None:
        """Take notice of `event`."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _step(self, event: StepEvent) -> tuple[str, ...]:
        return self._steps.of(event.run.name, event.step, event.kind)

    def _graph(self, event: Event) -> tuple[str, ...]:
        return self._graphs.of(event.run.name)

    def _run_started(self, event: RunStarted) -> None:
        self._cancelled.told(event)
        self._to["runs.active"](1, self._graph(event))

    def _run_ended(self, event: RunEnded) -> None:
        graph, report = self._graph(event), event.report
        self._to["runs.active"](-1, graph)
        self._to["runs.ended"](1, (*graph, report.outcome))
        self._to["run.duration"](report.elapsed, graph)
        self._cancellations(event)

    def _cancellations(self, event: Event) -> None:
        asked, obeyed = self._cancelled.told(event)
        if asked or obeyed:
            self._to["cancellations.asked"](asked, self._graph(event))
            self._to["cancellations.obeyed"](obeyed, self._graph(event))

    def _step_started(self, event: StepStarted) -> None:
        if event.remaining is not None:
            self._to["step.remaining"](event.remaining, self._step(event))

    def _step_ended(self, event: StepEnded) -> None:
        step = self._step(event)
        self._to["step.duration"](event.took, step)
        if event.cause is not None:
            self._to["steps.exceeded"](1, (*step, event.cause))
        if event.tokens is not None:
            self._model_ended(event, step[:2])

    def _model_ended(self, event: StepEnded, call: tuple[str, ...]) -> None:
        # A run that only measures abandons nothing.
        abandoned = event.cause is not None and event.run.enforced
        for kind in ("input", "output"):
            count = getattr(event.tokens, kind).count
            if count is not None:
                self._to["tokens.used"](count, (*call, kind))
                if abandoned:
                    self._to["tokens.abandoned"](count, (*call, kind))
            elif abandoned and kind == "output":
                self._to["calls.uncounted"](1, call)

    def _step_refused(self, event: StepRefused) -> None:
        self._to["steps.refused"](1, (*self._step(event), event.cause))

    def _straggler_found(self, event: StragglerFound) -> None:
        step = self._step(event)
        self._to["stragglers.found"](1, step)
        # What blocked the event loop is found only when it has ended.
        if not event.blocked_loop:
            self._running[event.number] = step
            self._to["stragglers.running"](1, step)

    def _straggler_ended(self, event: StragglerEnded) -> None:
        self._cancellations(event)
        step = self._running.pop(event.number, None)
        if step is not None:
            self._to["stragglers.running"](-1, step)
