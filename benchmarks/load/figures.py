"""What was seen of a crowd of runs, and the table that compares candidates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..measure import OURS, Samples, ratio
from ..sheet import Sheet, Value
from .faults import FAULTS, Kind, kind_of


@dataclass(frozen=True, slots=True)
class Ended:
    """How one run ended for its caller.

    Attributes:
        kind: What it held.
        late: How long after its time for work the caller was back (in seconds).
        answer: `complete`, `fallback` or `None`.
    """

    kind: Kind
    late: float
    answer: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one crowd.

    Attributes:
        ends: How the runs ended.
        cpu: CPU time from the first deadline until what was released is over, per run
            with a fault (in seconds).
        threads: The most threads there were, beside the one that asks.
        late_starts: Nodes that began after their run's time.
    """

    ends: Sequence[Ended]
    cpu: float
    threads: int
    late_starts: int

    def late(self, kinds: Sequence[Kind]) -> list[float]:
        return [end.late for end in self.ends if end.kind in kinds]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What there is while all runs of a crowd wait.

    Attributes:
        memory: What `tracemalloc` sees of each (in bytes).
        threads: How many threads there are, beside the one that asks.
    """

    memory: float
    threads: int


def faulty(runs: int) -> int:
    """Return how many of so many runs hold a fault."""
    return sum(kind_of(number) != "healthy" for number in range(runs))


def p50(values: Sequence[float]) -> float:
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[-1]


Figure = Callable[[Seen], float]


def figures() -> dict[str, Figure]:
    """Return what is read off a crowd, by name and unit."""
    groups: dict[str, tuple[Kind, ...]] = {"any fault": FAULTS}
    groups |= {kind: (kind,) for kind in FAULTS}
    found: dict[str, Figure] = {}
    for name, kinds in groups.items():
        found[f"{name}: late, p50 (ms)"] = _lateness(kinds, p50)
        found[f"{name}: late, p99 (ms)"] = _lateness(kinds, p99)
    return found | {
        "CPU per expiry (us)": lambda seen: seen.cpu * 1e6,
        "threads at the most": lambda seen: seen.threads,
        "healthy runs that completed": lambda seen: sum(
            end.answer == "complete" and end.kind == "healthy" for end in seen.ends
        ),
        "cut runs that were answered": lambda seen: sum(
            end.answer == "fallback" for end in seen.ends
        ),
        "late runs that claim success": lambda seen: sum(
            end.answer == "complete" and end.late > 0 for end in seen.ends
        ),
        "nodes begun after the deadline": lambda seen: seen.late_starts,
    }


def _lateness(
    kinds: tuple[Kind, ...], read: Callable[[Sequence[float]], float]
) -> Figure:
    return lambda seen: read(seen.late(kinds)) * 1e3


def sheet(
    title: str,
    about: str,
    seen: Mapping[str, Sequence[Seen]],
    more: Mapping[str, Samples] | None = None,
) -> Sheet:
    """Return the table of all figures: medians, and ours as ratios to the others."""
    rows = [
        row(name, {who: [read(s) for s in found] for who, found in seen.items()})
        for name, read in figures().items()
    ]
    rows += [row(name, samples) for name, samples in (more or {}).items()]
    return Sheet(title, about, columns(seen), rows)


def columns(candidates: Iterable[str]) -> dict[str, str]:
    """Return the columns of a figure, each candidate, and ours as ratios to others."""
    names = list(candidates)
    found = {"figure": "", **dict.fromkeys(names, ",.4g")}
    return found | {f"ours to {who}": ".3g" for who in names if who != OURS}


def row(name: str, samples: Samples) -> dict[str, Value]:
    """Return a figure's medians and ratios; a ratio to 0 is `None`."""
    found: dict[str, Value] = {"figure": name}
    found |= {who: statistics.median(values) for who, values in samples.items()}
    for who, values in samples.items():
        if who != OURS:
            known = all(value > 0 for value in values)
            ours = ratio(samples, OURS, who).median if known else None
            found[f"ours to {who}"] = ours
    return found
