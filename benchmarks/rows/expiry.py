"""What is paid when a deadline is reached, and by the runs that wait for theirs."""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from langgraph_deadline import DeadlineExceeded

from ..graphs import (
    ANSWER,
    INPUT,
    RESERVE,
    aanswer,
    answer,
    chain,
    cut_after,
    everything,
    hangs,
)
from ..measure import (
    OURS,
    PLAIN,
    Estimate,
    Sampler,
    difference,
    interleaved,
    ratio,
)
from ..table import Row

LIMIT = 0.05
RUNS = 1_000
SPREAD = 0.5
WAIT_FOR = "`asyncio.wait_for`"
WITH_FALLBACK = "`asyncio.wait_for` and a second graph"


# One run.


def late(quick: bool) -> list[Row]:
    """Measure how long after the end of its time for work a run is back."""
    node = hangs(lambda: None)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        def in_loop(call: Callable[[], Awaitable[Any]]) -> Sampler:
            return _lateness(lambda: loop.run_until_complete(call()))

        second = chain(aanswer, 1)
        plain = chain(node, 1)
        raising = chain(node, 1, **cut_after(LIMIT))
        answering = chain(node, 1, **cut_after(LIMIT, aanswer))
        samplers = {
            "async, with a fallback": in_loop(lambda: answering.ainvoke(INPUT)),
            "async, raising": in_loop(lambda: raising.ainvoke(INPUT)),
            **_blocked_samplers(),
            WAIT_FOR: in_loop(lambda: _waited(plain, LIMIT, None)),
            WITH_FALLBACK: in_loop(lambda: _waited(plain, LIMIT, second)),
        }
        samples = interleaved(samplers, 10 if quick else 100)
    return [
        Row(
            f"ms late, one run, {name}",
            Estimate.of(values).times(1e3),
            unit="ms",
            bar=None if "wait_for" in name else 2.0,
        )
        for name, values in samples.items()
    ]


def _blocked_samplers() -> dict[str, Sampler]:
    def blocks(state: Any) -> None:
        threading.Event().wait(4 * LIMIT)

    answering = chain(blocks, 1, **cut_after(LIMIT, answer))
    raising = chain(blocks, 1, **cut_after(LIMIT))
    return {
        "sync, with a fallback": _lateness(lambda: answering.invoke(INPUT)),
        "sync, raising": _lateness(lambda: raising.invoke(INPUT)),
    }


def _lateness(call: Callable[[], Any]) -> Sampler:
    def sample() -> float:
        began = time.perf_counter()
        try:
            result = call()
        except (DeadlineExceeded, TimeoutError):
            result = None
        elapsed = time.perf_counter() - began
        _check(result, (None, ANSWER))
        return elapsed - LIMIT

    return sample


async def _waited(graph: Any, seconds: float, fallback: Any) -> Any:
    try:
        return await asyncio.wait_for(graph.ainvoke(INPUT), seconds)
    except TimeoutError:
        if fallback is None:
            raise
        return await fallback.ainvoke(INPUT)


def _check(result: Any, expected: tuple[Any, ...]) -> None:
    if result not in expected:
        msg = f"a run that hangs returned {result!r}"
        raise RuntimeError(msg)


# Many runs.


@dataclass
class Crowd:
    """Many runs that hang until their deadlines, which lie a little apart.

    `start` gets the graph that hangs and the seconds it may.
    """

    start: Callable[[Any, float], Awaitable[Any]]
    compiled: dict[str, Any] = field(default_factory=dict)
    lead: float = 1.0
    begun: int = 0
    unanswered: int = 0

    def __post_init__(self) -> None:
        self.graph = chain(hangs(self._begin), 1, **self.compiled)

    def _begin(self) -> None:
        self.begun += 1

    async def expire(self) -> Expiry:
        """Let the runs expire; retry with more time where they were late to begin."""
        while (expiry := await self._expire()) is None:
            self.lead *= 2
        return expiry

    async def _expire(self) -> Expiry | None:
        self.begun = self.unanswered = 0
        first = time.monotonic() + self.lead
        tasks = [
            asyncio.create_task(self._late(first + SPREAD * number / RUNS))
            for number in range(RUNS)
        ]
        await asyncio.sleep(first - 0.05 - time.monotonic())
        ready = self.begun == RUNS and time.monotonic() < first
        used = time.process_time()
        lateness = await asyncio.gather(*tasks)
        used = time.process_time() - used
        if not ready:
            return None
        return Expiry(_p99(lateness), used / RUNS, self.unanswered)

    async def _late(self, at: float) -> float:
        try:
            _check(await self.start(self.graph, at - time.monotonic()), (ANSWER,))
        except TimeoutError:
            self.unanswered += 1
        return time.monotonic() - at


@dataclass(frozen=True, slots=True)
class Expiry:
    """How 1,000 runs ended.

    Attributes:
        p99: How late the last in a hundred was (in seconds).
        cpu: CPU time of each, from the first deadline on (in seconds).
        unanswered: How many raised instead of answering.
    """

    p99: float
    cpu: float
    unanswered: int


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[-1]


def crowd(quick: bool) -> list[Row]:
    """Measure 1,000 concurrent runs whose deadlines are spread over half a second."""
    second = chain(aanswer, 1)
    crowds = {
        WAIT_FOR: Crowd(lambda graph, left: _waited(graph, left, None)),
        WITH_FALLBACK: Crowd(lambda graph, left: _waited(graph, left, second)),
        OURS: Crowd(
            lambda graph, left: graph.ainvoke(INPUT, deadline=left + RESERVE),
            cut_after(60, aanswer),
        ),
    }
    seen: dict[str, list[Expiry]] = {name: [] for name in crowds}
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        def sampler(name: str) -> Sampler:
            def sample() -> float:
                seen[name].append(loop.run_until_complete(crowds[name].expire()))
                return 0.0

            return sample

        samplers = {name: sampler(name) for name in crowds}
        # With the garbage collector at work, as in a service: its pauses are a part of
        # how late the last ones are.
        interleaved(samplers, 1 if quick else 7, warm_up=1, collecting=True)
    return _crowd_rows({name: found[1:] for name, found in seen.items()})


def _crowd_rows(seen: dict[str, list[Expiry]]) -> list[Row]:
    late = {name: [e.p99 * 1e3 for e in found] for name, found in seen.items()}
    cpu = {name: [e.cpu * 1e6 for e in found] for name, found in seen.items()}
    lost = Estimate.of([float(expiry.unanswered) for expiry in seen[OURS]])
    what = f"{RUNS:,} runs"
    lateness, per_run = f"{what}, p99 lateness", f"{what}, CPU per expiry"
    return [
        Row(f"{lateness}, to {WAIT_FOR}", ratio(late, OURS, WAIT_FOR), bar=2.0),
        *(Row(f"{lateness}, {n}", Estimate.of(v), unit="ms") for n, v in late.items()),
        Row(
            f"{per_run}, to {WITH_FALLBACK}",
            ratio(cpu, OURS, WITH_FALLBACK),
            bar=0.7,
            aim=0.45,
        ),
        *(Row(f"{per_run}, {n}", Estimate.of(v), unit="us") for n, v in cpu.items()),
        Row(f"{what}, raised in place of their fallback", lost, unit="runs", bar=0),
    ]


# Memory.


def memory(quick: bool) -> list[Row]:
    """Measure what runs hold while they hang."""
    crowds = {
        PLAIN: Crowd(lambda graph, _: graph.ainvoke(INPUT)),
        WAIT_FOR: Crowd(lambda graph, _: _waited(graph, 60, None)),
        OURS: Crowd(lambda graph, _: graph.ainvoke(INPUT), everything(aanswer)),
    }
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        def sampler(name: str) -> Sampler:
            return lambda: loop.run_until_complete(_held(crowds[name])) / 1024

        samplers = {name: sampler(name) for name in crowds}
        samples = interleaved(samplers, 1 if quick else 3, warm_up=0)
    what = "memory per run in flight"
    return [
        Row(f"{what}, more than {PLAIN}", difference(samples), "KiB", bar=8, aim=3),
        Row(f"{what}, {PLAIN}", Estimate.of(samples[PLAIN]), "KiB"),
        Row(f"{what}, {WAIT_FOR}, more", difference(samples, WAIT_FOR), "KiB"),
    ]


async def _held(crowd: Crowd) -> float:
    """Return the bytes that each run of a crowd holds while it hangs."""
    crowd.begun = 0
    gc.collect()
    tracemalloc.start()
    tasks = [asyncio.ensure_future(crowd.start(crowd.graph, 60)) for _ in range(RUNS)]
    while crowd.begun < RUNS:
        await asyncio.sleep(0.01)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return held / RUNS
