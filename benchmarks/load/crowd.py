"""What is the same for a crowd of async runs and one of sync runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..measure import Sampler, interleaved
from ..sheet import Sheet
from .faults import State, Ward, input_of
from .figures import Ended, Seen, Waiting, faulty, sheet

SPREAD = 0.5
HOLD = 2.0
LEAD = 2.0
"""What the runs are given to begin and, if healthy, to end (in seconds)."""
_ATTEMPTS = 5
_AT_ONCE = 1e-3
_LONG = 60.0


@dataclass
class Crowd(ABC):
    """Many runs at once, of which every tenth holds a fault."""

    runs: int
    lead: float = field(default=LEAD, kw_only=True)
    ward: Ward = field(default_factory=Ward, kw_only=True)

    def expire(self) -> Seen:
        """Let the runs expire; again with more time where they were late to begin.

        Raises:
            RuntimeError: If they are late whatever time they are given.
        """
        for _ in range(_ATTEMPTS):
            if (seen := self.attempt()) is not None:
                self.lead = max(self.lead / 2, LEAD)  # what disturbed it may be over
                return seen
            self.lead *= 2
        msg = (
            f"of {self.runs} runs, {self.runs - faulty(self.runs)} healthy ones should "
            f"be done in {self.lead / 2:g} s and were not: nothing can be measured on "
            "a machine that is so busy, or a healthy run fails"
        )
        raise RuntimeError(msg)

    @abstractmethod
    def attempt(self) -> Seen | None:
        """Let the runs expire; return `None` if not all were ready for it."""

    @abstractmethod
    def held(self) -> Waiting:
        """Return what there is while all runs wait."""

    def inputs(self, first: float) -> list[State]:
        """Return the inputs of runs whose time ends from the instant `first` on."""
        return [
            input_of(number, first + SPREAD * number / self.runs)
            for number in range(self.runs)
        ]

    def waiting(self) -> list[State]:
        """Return the inputs of runs that all wait, and whose time is far away."""
        return [{"kind": "hang", "at": time.monotonic() + _LONG}] * self.runs

    def ready(self, first: float, done: int) -> bool:
        """Return whether just the healthy runs are done, before any time has ended."""
        return done == self.runs - faulty(self.runs) and time.monotonic() < first


def left(given: State) -> float:
    """Return the seconds until a run's work has to end.

    Each candidate asks in the very call that starts its clock: what comes before, such
    as starting threads, is not taken for lateness.
    """
    return max(given["at"] - time.monotonic(), _AT_ONCE)  # a machine may be too slow


def ended(given: State, result: Any) -> Ended:
    """Return how a run has ended just now; its result is `None` if it timed out."""
    late = time.monotonic() - given["at"]
    answer = None if result is None else result.get("answer")
    return Ended(given["kind"], late, answer)


def compared(
    title: str, about: str, crowds: Mapping[str, Crowd], repetitions: int
) -> Sheet:
    """Return what is seen of the crowds as they expire in turn, and as they wait."""
    seen: dict[str, list[Seen]] = {name: [] for name in crowds}

    def expires(name: str) -> Sampler:
        def sample() -> float:
            seen[name].append(crowds[name].expire())
            return 0.0

        return sample

    # With the garbage collector at work, as in a service.
    samplers = {name: expires(name) for name in crowds}
    interleaved(samplers, repetitions, warm_up=1, collecting=True)
    held = {name: crowd.held() for name, crowd in crowds.items()}  # always the same
    found = {name: expired[1:] for name, expired in seen.items()}
    waiting = {
        "memory per run that waits (KiB)": {
            name: [one.memory / 1024] for name, one in held.items()
        },
        "threads while all runs wait": {
            name: [float(one.threads)] for name, one in held.items()
        },
    }
    return sheet(title, about, found, waiting)
