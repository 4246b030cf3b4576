"""How fast a model writes: given by its owner, or measured from call to call."""

from __future__ import annotations

import math
from dataclasses import dataclass

_CALLS = 3
"""How many calls have to be measured before anything is concluded from them."""

_WEIGHT = 0.3
_GENEROUS = 1.5
"""A measured pace is taken to be this much better: an answer that would have been in
time must not be cut short for an average."""


@dataclass
class Pace:
    """Tokens per second and seconds to the first token of one model."""

    tokens_per_second: float | None = None
    time_to_first_token: float | None = None
    measured: int = 0
    _rate: float = 0.0
    _first: float = 0.0

    def note(self, first: float, rest: float, tokens: int) -> None:
        """Learn from a finished answer.

        Args:
            first: Seconds to its first token.
            rest: Seconds from there to its last one.
            tokens: How many there were.
        """
        if tokens < 2 or rest <= 0:
            return
        rate = (tokens - 1) / rest
        weight = _WEIGHT if self.measured else 1.0
        self._rate += weight * (rate - self._rate)
        self._first += weight * (first - self._first)
        self.measured += 1

    def first_token(self) -> float:
        """Return the seconds an answer needs at the least before it begins."""
        if self.time_to_first_token is not None:
            return self.time_to_first_token
        return self._first / _GENEROUS if self.measured >= _CALLS else 0.0

    def affordable(self, left: float) -> float:
        """Return how many tokens can be generated in `left` seconds."""
        rate = self.tokens_per_second
        if rate is None:
            rate = self._rate * _GENEROUS if self.measured >= _CALLS else math.inf
        if math.inf in (rate, left):
            return math.inf
        return max(math.floor((left - self.first_token()) * rate + 1e-9), 0)
