"""What is seen of each run of a web service: nodes, tools, tokens, the client."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Part = Literal["node", "tool", "model stream"]
PARTS: tuple[Part, ...] = ("node", "tool", "model stream")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that began and ended, on the monotonic clock."""

    part: Part
    began: float
    ended: float


@dataclass
class RunSeen:
    """What was seen of one run; instants are of the monotonic clock.

    Attributes:
        spans: What has ended.
        open: How many parts are at work.
        tokens: When each token was generated.
        left: When its client closed the connection early, `None` if it stayed.
        told: When the web server told the application so.
        answered: Whether the client had the whole answer.
    """

    spans: list[Span] = field(default_factory=list)
    open: int = 0
    tokens: list[float] = field(default_factory=list)
    left: float | None = None
    told: float | None = None
    answered: bool = False

    def outlived(self, part: Part) -> float:
        """Return how long a part went on after the client had left (in seconds)."""
        left = self._left()
        return max([0.0, *(s.ended - left for s in self.spans if s.part == part)])

    def told_after(self) -> float:
        """Return how long the application did not know of it (in seconds)."""
        return 0.0 if self.told is None else max(self.told - self._left(), 0.0)

    def tokens_after(self) -> int:
        """Return how many tokens were generated after the client had left."""
        left = self._left()
        return sum(token > left for token in self.tokens)

    def begun_after(self) -> int:
        """Return how many nodes began after the client had left."""
        left = self._left()
        return sum(span.began > left for span in self.spans if span.part == "node")

    def _left(self) -> float:
        if self.left is None:
            msg = "the client of this run has not left early"
            raise ValueError(msg)
        return self.left


class Witness:
    """All runs of one service, by number."""

    def __init__(self) -> None:
        self.runs: defaultdict[int, RunSeen] = defaultdict(RunSeen)

    @contextmanager
    def watch(self, run: int, part: Part) -> Generator[None]:
        """Note when what happens inside the block begins and ends."""
        seen = self.runs[run]
        began = time.monotonic()
        seen.open += 1
        try:
            yield
        finally:
            seen.open -= 1
            seen.spans.append(Span(part, began, time.monotonic()))

    def still_open(self) -> int:
        """Return how many parts are at work."""
        return sum(seen.open for seen in self.runs.values())
