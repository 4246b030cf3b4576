"""What observers that keep sums have in common: each thing once, and few names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from threading import Lock, RLock
from typing import Any

from .events import Event, RunEnded, RunStarted, StragglerEnded

OTHER = "(other)"
"""What stands for all names there was no room for."""

_MOST_RUNS = 10_000
"""Runs in flight that are told apart; one whose end never comes must not stay."""


class Names:
    """The names that are kept apart, the first `most` that come.

    A name that somebody else chooses, such as a tool's, must not fill the memory, nor
    a monitoring system with time series.

    Raises:
        ValueError: If `most` is not a whole number above 0; the message names
            `argument`.
    """

    def __init__(self, most: int, argument: str) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            msg = f"{argument} must be a whole number above 0, got {most!r}"
            raise ValueError(msg)
        self.most = most
        self._known: set[tuple[str, ...]] = set()
        self._lock = Lock()

    def of(self, *names: str) -> tuple[str, ...]:
        """Return `names`, or as many times `OTHER` if there is no room for them."""
        if names not in self._known:
            with self._lock:
                if names not in self._known and len(self._known) >= self.most:
                    return (OTHER,) * len(names)
                self._known.add(names)
        return names


class Cancelled:
    """Counts the cancellations that events tell of, each of them once.

    A run's report counts those of the runs inside of it too; and work that was given up
    may end within its grace when the report has been made already.
    """

    def __init__(self) -> None:
        # The outermost run that is observed, of each run; and the other way round.
        self._outermost: dict[str, str] = {}
        self._inside: dict[str, list[str]] = {}
        # Reentrant: a stream that is garbage ends its run wherever it is collected.
        self._lock = RLock()

    def told(self, event: Event) -> tuple[int, int]:
        """Return how many more cancellations were asked, and how many obeyed."""
        with self._lock:
            if isinstance(event, RunStarted):
                self._started(event.run.id, event.run.parent)
            elif isinstance(event, RunEnded):
                if self._ended(event.run.id):
                    counts = event.report.cancellations
                    return counts.asked, counts.obeyed
            elif isinstance(event, StragglerEnded):
                late = event.run.id not in self._outermost
                return 0, int(late and event.obeyed)
        return 0, 0

    def _started(self, run: str, parent: str | None) -> None:
        outermost = self._outermost.get(parent, run) if parent is not None else run
        self._outermost[run] = outermost
        self._inside.setdefault(outermost, []).append(run)
        if len(self._inside) > _MOST_RUNS:
            self._ended(next(iter(self._inside)))

    def _ended(self, run: str) -> bool:
        """Forget a run, and return whether its report is the one that counts."""
        if self._outermost.get(run) != run:
            return False
        for inner in self._inside.pop(run):
            del self._outermost[inner]
        return True


@dataclass(slots=True)
class RunSums:
    """What is counted of runs; where a `Summary` has a mean, it is the sum."""

    runs: int = 0
    budgeted: int = 0
    """Runs that had a budget."""

    unused: float = 0.0
    cancellations_asked: int = 0
    cancellations_obeyed: int = 0
    output_tokens: int = 0
    tokens_after_cut: int = 0
    abandoned_tokens: int = 0
    uncounted: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class StepSums:
    """What is counted of a step."""

    name: str
    kind: str
    count: int = 0
    refused: int = 0
    cut: int = 0
    share: float = 0.0
    """The sum of its parts of the runs' budgets."""


def add(sums: Any, more: Any) -> None:
    """Add numbers to numbers, and what is counted by name to its like."""
    for name, value in asdict(more).items():
        if isinstance(value, dict):
            mine = getattr(sums, name)
            for key, number in value.items():
                mine[key] = mine.get(key, 0) + number
        elif not isinstance(value, str):
            setattr(sums, name, getattr(sums, name) + value)
