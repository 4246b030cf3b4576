"""What happens in a run, told while it happens.

```python
from langgraph_deadline.events import Cut, observe

def alert(event):
    if isinstance(event, Cut):
        print(event)

with observe(alert):
    graph.invoke(inputs)
```

Observers are called where things happen: in the event loop, or in a thread of the run.
They must be quick, must not block, and may be called by several threads at once.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Protocol

from ._text import seconds
from .errors import Cause
from .report import ModelTokens, RunReport, StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetails:
    """What is known of a run from its beginning."""

    id: str
    parent: str | None
    """The `id` of the run that this one is inside of."""

    inside: int | None
    """The number of the step that it is inside of, in that run."""

    name: str
    """The graph's name."""

    started: float
    """When it was started, or resumed (epoch seconds)."""

    budget: float | None
    """What it may take (in seconds), `None` without a deadline."""

    reserve: float
    """The part of that kept for the fallback (in seconds)."""

    enforced: bool
    """`False` if it only measures: nothing is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    run: RunDetails
    at: float
    """When (in seconds since the run started)."""

    def as_dict(self) -> dict[str, Any]:
        """Return the event as plain values, its kind under `event`."""
        values: dict[str, Any] = {"event": type(self).__name__, "run": self.run.id}
        for field in fields(self):
            if field.name != "run":
                value = getattr(self, field.name)
                dumps = hasattr(value, "model_dump")
                values[field.name] = value.model_dump(mode="json") if dumps else value
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run was started, or resumed."""

    spent: float = 0.0
    """What was charged before this resume (in seconds)."""

    def __str__(self) -> str:
        budget = self.run.budget
        given = "without a deadline" if budget is None else f"with {seconds(budget)}"
        return f"Run of {self.run.name!r} started, {given}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent(Event):
    """Something that happened to a step."""

    number: int
    """Tells the steps of a process apart."""

    parent: int | None
    """The number of the step that it is inside of."""

    step: str
    """The step's name."""

    kind: StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(StepEvent):
    """A step was started."""

    remaining: float | None
    """What was left for it (in seconds), `None` without a deadline."""

    limit: float | None
    """Its own limit (in seconds)."""

    provider: str | None = None
    """Whose model it is, as LangChain names it, if it is a model call."""

    def __str__(self) -> str:
        left = "" if self.remaining is None else f" with {seconds(self.remaining)} left"
        return f"Step {self.step!r} started{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRefused(StepEvent):
    """A step was not started: its window was not there, or the run was cut."""

    cause: Cause
    remaining: float | None
    """What was left (in seconds), `None` without a deadline."""

    needed: float
    """The least it needs (in seconds)."""

    def __str__(self) -> str:
        needed = f", {seconds(self.needed)} needed" if self.needed else ""
        left = "" if self.remaining is None else f", {seconds(self.remaining)} left"
        return f"Step {self.step!r} was refused ({self.cause}){left}{needed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded(StepEvent):
    """A step ended, by itself or because it was cut."""

    took: float
    """How long it took (in seconds)."""

    cause: Cause | None = None
    """Why it was cut, or would have been; `None` if it ended by itself."""

    error: str | None = None
    """The kind of its own error, if it failed."""

    retries: int = 0
    """Attempts after the first one."""

    tokens: ModelTokens | None = None
    """What it used, if it is a model call."""

    def __str__(self) -> str:
        how = "ended" if self.cause is None else f"was cut ({self.cause})"
        failed = f" with {self.error}" if self.error is not None else ""
        return f"Step {self.step!r} {how}{failed} after {seconds(self.took)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(Event):
    """The run's work was cut; in a run that only measures, it would have been."""

    cause: Cause
    step: str | None
    """Where."""

    def __str__(self) -> str:
        where = f" at step {self.step!r}" if self.step is not None else ""
        done = "was cut" if self.run.enforced else "would have been cut"
        return (
            f"Run of {self.run.name!r} {done} ({self.cause}){where} after "
            f"{seconds(self.at)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackStarted(StepEvent):
    """The fallback has the run from here on."""

    remaining: float | None
    """What is left for it (in seconds), `None` without a deadline."""

    def __str__(self) -> str:
        left = "" if self.remaining is None else f" with {seconds(self.remaining)} left"
        return f"Fallback {self.step!r} started{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerFound(StepEvent):
    """Work that was cut and runs on was given up, or blocked the event loop."""

    cause: Cause | None
    """Why it was cut."""

    overrun: float
    """How long it has run on (in seconds)."""

    blocked_loop: bool = False

    def __str__(self) -> str:
        if self.blocked_loop:
            return (
                f"Step {self.step!r} blocked the event loop for {self.overrun:.3g} s "
                "past its deadline. Nothing can interrupt it there: make it a sync "
                "node, or await in it."
            )
        return (
            f"Step {self.step!r} was cut ({self.cause or 'cancelled'}) and still runs; "
            "it was given up and can no longer write anything."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerEnded(StepEvent):
    """Work that was given up has ended after all."""

    overrun: float
    """How long it ran on after its cut (in seconds)."""

    obeyed: bool
    """Whether that was within the grace, so that it counts as obeyed."""

    def __str__(self) -> str:
        return f"Straggler {self.step!r} ended {seconds(self.overrun)} after its cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """A run ended, and its caller has what came of it."""

    report: RunReport

    def __str__(self) -> str:
        return self.report.headline


class Observer(Protocol):
    """Gets the events of runs; what it raises is logged and ignored."""

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`, quickly."""
        ...


_observers: ContextVar[tuple[Observer, ...]] = ContextVar(
    "langgraph_deadline_observers", default=()
)


@contextmanager
def observe(*observers: Observer) -> Generator[None]:
    """Have `observers` told of all runs that are started inside the block.

    As with `collect_runs`, it is the context that counts: runs of other threads and
    tasks are not told of, those that this block starts are. For all runs of one graph:
    `compile(..., observers=[...])`.

    Raises:
        TypeError: If an observer cannot be called.
    """
    token = _observers.set((*_observers.get(), *checked(observers)))
    try:
        yield
    finally:
        _observers.reset(token)


def checked(observers: Any, argument: str = "observers") -> tuple[Observer, ...]:
    """Return `observers` as a tuple.

    Raises:
        TypeError: If one of them cannot be called; the message names `argument`.
    """
    if callable(observers) or not hasattr(observers, "__iter__"):
        msg = f"{argument} must be a list of observers, got {observers!r}"
        raise TypeError(msg)
    listed = tuple(observers)
    for observer in listed:
        if not callable(observer):
            msg = f"{argument} must be callables that take an event, got {observer!r}"
            raise TypeError(msg)
    return listed


def observers() -> tuple[Observer, ...]:
    """Return who observes the runs that are started here."""
    return _observers.get()
