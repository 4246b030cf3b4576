"""What is known of runs while they run, as lines of words; draws nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Literal

from . import _clock
from ._text import seconds, shortened
from .events import (
    Cut,
    Event,
    FallbackStarted,
    RunDetails,
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
)
from .report import RunReport

MOST_RUNS = 10
"""Runs that have a line of their own at a time."""

_STEPS = 3
"""Steps at work that are named."""

State = Literal["working", "measured", "cut", "fallback", "completed", "failed"]
"""What a line says, for its colour."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be shown of a run right now."""

    state: State
    name: str
    left: float | None
    """The part of the budget that is left, `None` without a budget or at the end."""

    words: str
    depth: int = 0
    """In how many other runs it is."""

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


@dataclass(slots=True)
class _Run:
    details: RunDetails
    began: float
    """When it was started (on the monotonic clock)."""

    spent: float = 0.0
    steps: dict[int, tuple[str, int | None]] = field(default_factory=dict)
    """The steps at work: their names, and the numbers of those they are inside of."""

    cut: str | None = None
    fallback: str | None = None
    report: RunReport | None = None


class Gauge:
    """Keeps what events tell of runs; may be told by several threads at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: dict[str, _Run] = {}
        self._earlier: Counter[str] = Counter()
        """Outcomes of runs that have lost their line."""

    def note(self, event: Event) -> Line | None:
        """Take notice of `event`; return its run's line if that says something new."""
        with self._lock:
            run = self._run(event)
            if run is None:
                return None
            news = _note(run, event)
            line = self._line(run)
            if isinstance(event, RunEnded):
                self._forget(run)
            return line if news else None

    def lines(self) -> list[Line]:
        """Return the lines to show, the oldest run first."""
        with self._lock:
            return [self._line(run) for run in self._shown()]

    def rest(self) -> str:
        """Return what is to be said of the runs without a line, an empty text for none.

        They are counted, not kept.
        """
        with self._lock:
            hidden = len(self._runs) - sum(1 for _ in self._shown())
            said = [f"{hidden:,} more running"] if hidden else []
            said += [f"{n:,} {outcome}" for outcome, n in self._earlier.items()]
            return ("and " if said else "") + ", ".join(said)

    def _run(self, event: Event) -> _Run | None:
        known = self._runs.get(event.run.id)
        if known is None and not isinstance(event, RunEnded):
            known = _Run(event.run, _clock.now() - event.at)
            self._runs[event.run.id] = known
        return known

    def _forget(self, run: _Run) -> None:
        """Let go of what has ended, where there is no line for it."""
        if run.details.parent in self._runs:
            del self._runs[run.details.id]
        ended = [run for run in self._runs.values() if run.report is not None]
        for old in ended[: max(len(self._runs) - MOST_RUNS, 0)]:
            if old.report is not None:
                self._earlier[old.report.outcome] += 1
            del self._runs[old.details.id]

    def _shown(self) -> Iterator[_Run]:
        """Yield those with a line: the oldest, as far as there is room for them."""
        yield from islice(self._runs.values(), MOST_RUNS)

    def _line(self, run: _Run) -> Line:
        depth, parent = 0, run.details.parent
        while parent is not None and parent in self._runs and depth < 5:
            depth, parent = depth + 1, self._runs[parent].details.parent
        left = None if run.report is not None else _left(run)
        budget = run.details.budget
        part = None if left is None or not budget else max(left / budget, 0.0)
        name = shortened(" ".join(run.details.name.split()), 28)
        return Line(_state(run), name, part, _words(run, left), depth)


def _note(run: _Run, event: Event) -> bool:
    """Change what is known of `run`; return whether that is worth a line of text."""
    match event:
        case RunStarted():
            run.spent = event.spent
            return True
        case StepStarted():
            run.steps[event.number] = (event.step, event.parent)
        case StepEnded():
            run.steps.pop(event.number, None)
        case Cut():
            run.cut = event.cause
            return True
        case FallbackStarted():
            run.fallback = event.step
            return True
        case RunEnded():
            run.report = event.report
            return True
        case _:
            pass
    return False


def _left(run: _Run) -> float | None:
    """Return what is left (in seconds), `None` without a deadline."""
    if run.details.budget is None:
        return None
    return run.details.budget - run.spent - (_clock.now() - run.began)


def _state(run: _Run) -> State:
    if run.report is not None:
        return "completed" if run.report.outcome == "completed" else "failed"
    if run.fallback is not None:
        return "fallback"
    if run.cut is not None:
        return "cut" if run.details.enforced else "measured"
    return "working"


def _words(run: _Run, left: float | None) -> str:
    if run.report is not None:
        return str(run.report).split("\n", 1)[0].removeprefix(f"{run.report.name}: ")
    parts = [_time(run, left)]
    if run.cut is not None:
        cut = "cut" if run.details.enforced else "would have been cut"
        parts.append(f"{cut} ({run.cut})")
    if run.fallback is not None:
        parts.append(f"the fallback {run.fallback!r} has the run")
    elif steps := _steps_at_work(run):
        parts.append(steps)
    return ", ".join(parts)


def _time(run: _Run, left: float | None) -> str:
    if left is None:
        return f"{_clock.now() - run.began:.1f} s"
    if left < 0:
        return f"{-left:.1f} s late"
    return f"{left:.1f} s left of {seconds(run.details.budget)}"


def _steps_at_work(run: _Run) -> str:
    """Return the innermost steps that are at work, those of the same name as one."""
    around = {parent for _, parent in run.steps.values()}
    names = Counter(
        name for number, (name, _) in run.steps.items() if number not in around
    )
    shown = [
        f"{shortened(' '.join(name.split()), 24)}" + (f" x{n}" if n > 1 else "")
        for name, n in list(names.items())[:_STEPS]
    ]
    if len(names) > _STEPS:
        shown.append(f"{len(names) - _STEPS} more")
    return ", ".join(shown)
