"""What the headlines share: how a run ended, latencies, and percentiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from langgraph.errors import NodeTimeoutError

from langgraph_deadline import DeadlineExceeded, _clock

_Z95 = statistics.NormalDist().inv_cdf(0.95)


@dataclass(frozen=True, slots=True)
class Ended:
    """How one run ended for its caller.

    Attributes:
        values: What it returned, `None` if it raised.
        error: The name of what it raised.
        seconds: How long the caller waited, in virtual time.
    """

    values: Any
    error: str | None
    seconds: float


async def ended(run: Awaitable[Any]) -> Ended:
    """Await a run and say how it ended."""
    began = _clock.now()
    try:
        values, error = await run, None
    except (DeadlineExceeded, TimeoutError, NodeTimeoutError, ConnectionError) as late:
        values, error = None, type(late).__name__
    return Ended(values, error, _clock.now() - began)


def latency(normal: float, median: float, p95: float) -> float:
    """Return a log-normal latency (in seconds).

    Args:
        normal: A value of the standard normal distribution.
        median: Half of all latencies are below (in seconds).
        p95: 95 % of all latencies are below (in seconds).
    """
    return median * math.exp(math.log(p95 / median) * normal / _Z95)


def correlated(own: float, shared: float, correlation: float) -> float:
    """Return a standard normal value that has this correlation with its siblings'."""
    return math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of a hundred are below."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def share(hits: Sequence[bool]) -> float:
    """Return how many of all are true."""
    return sum(hits) / len(hits)
