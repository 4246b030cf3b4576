"""Samples taken in turn, and what they say.

Whatever the machine does besides, it does to all candidates alike: in every repetition
each is sampled once, in another order, and compared within that repetition only.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .graphs import CONFIG, INPUT

Sampler = Callable[[], float]
Samples = dict[str, list[float]]

PLAIN = "LangGraph"
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median of some samples, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Estimate:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def times(self, factor: float) -> Estimate:
        return Estimate(self.median * factor, self.low * factor, self.high * factor)


def ratio(samples: Samples, name: str = OURS, base: str = PLAIN) -> Estimate:
    """Return how `name` compares to `base`, repetition by repetition."""
    pairs = zip(samples[name], samples[base], strict=True)
    return Estimate.of([value / other for value, other in pairs])


def difference(samples: Samples, name: str = OURS, base: str = PLAIN) -> Estimate:
    """Return what `name` takes more than `base`, repetition by repetition."""
    pairs = zip(samples[name], samples[base], strict=True)
    return Estimate.of([value - other for value, other in pairs])


def interleaved(
    samplers: Mapping[str, Sampler],
    repetitions: int,
    warm_up: int = 2,
    *,
    collecting: bool = False,
) -> Samples:
    """Return samples of all candidates, one of each per repetition.

    The garbage collector rests meanwhile, unless `collecting`.
    """
    samples: Samples = {name: [] for name in samplers}
    for sampler in samplers.values():
        for _ in range(warm_up):
            sampler()
    gc.collect()
    gc.freeze()  # so that collecting between the repetitions is quick
    for repetition in range(repetitions):
        for name in _rotated(list(samplers), repetition):
            with _collected(during=collecting):
                samples[name].append(samplers[name]())
    gc.unfreeze()
    return samples


def _rotated(names: list[str], by: int) -> list[str]:
    start = by % len(names)
    return names[start:] + names[:start]


@contextmanager
def _collected(*, during: bool) -> Iterator[None]:
    gc.collect()
    if not during:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and those it starts, on one core inside the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def can_pin() -> bool:
    """Return whether the system lets a process choose its cores."""
    return hasattr(os, "sched_setaffinity")


# Samplers.


def timed(call: Callable[[], object]) -> Sampler:
    """Return a sampler of the seconds that `call` takes."""

    def sample() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return sample


def sync_runs(graphs: Mapping[str, Any], **config: Any) -> dict[str, Sampler]:
    """Return samplers of `invoke`."""
    return {name: _invoked(graph, CONFIG | config) for name, graph in graphs.items()}


def _invoked(graph: Any, config: Any) -> Sampler:
    return timed(lambda: graph.invoke(INPUT, config))


def async_runs(
    runner: asyncio.Runner, graphs: Mapping[str, Any], **config: Any
) -> dict[str, Sampler]:
    """Return samplers of `ainvoke`, all in the runner's loop."""
    loop = runner.get_loop()
    return {
        name: _ainvoked(loop, graph, CONFIG | config) for name, graph in graphs.items()
    }


def _ainvoked(loop: asyncio.AbstractEventLoop, graph: Any, config: Any) -> Sampler:
    return timed(lambda: loop.run_until_complete(graph.ainvoke(INPUT, config)))
