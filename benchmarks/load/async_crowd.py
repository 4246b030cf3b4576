"""1,000 concurrent async runs, every tenth with a fault."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ..graphs import RESERVE, cut_after
from ..measure import OURS, Sampler, Samples, interleaved
from ..sheet import Sheet
from .faults import Ward, adegrade, graph_of, input_of, second_graph
from .figures import Ended, Seen, faulty, sheet

RUNS = 1_000
SPREAD = 0.5
HOLD = 2.0
LEAD = 1.5
"""What the runs are given to begin and, if healthy, to end (in seconds)."""
_AT_ONCE = 1e-3
WAIT = "`wait_for`"
SECOND = "`wait_for` and a second graph"

ABOUT = f"""Of {{runs:,}} runs in one event loop nine in ten work for up to 0.5 s and
complete; the others, in turn, *hang* in an await, *swallow* every cancellation, or
*block* a thread in a sync node. Their time ends one by one within {SPREAD:g} s; what
resists is released {HOLD:g} s later. LangGraph is timed out by `asyncio.wait_for`
around `ainvoke`, alone or with a second graph that answers then; ours has a fallback.
*Late*: how long after its time for work the caller has the result or the exception.
Medians of {{repetitions}} repetitions taken in turn, and of their ratios; memory is
what `tracemalloc` sees of runs that wait."""

Start = Callable[[Any, Any, float], Awaitable[Any]]


@dataclass
class Crowd:
    """Many runs at once; `start` gets the graph, an input and the seconds it has."""

    start: Start
    runs: int
    compiled: dict[str, Any] = field(default_factory=dict)
    lead: float = LEAD
    waiting_threads: int = 0

    def __post_init__(self) -> None:
        self.ward = Ward()
        ward = self.ward
        self.graph = graph_of(ward.work, ward.block, ward.after, **self.compiled)

    async def expire(self) -> Seen:
        """Let the runs expire; again with more time where they were late to begin."""
        while (seen := await self._expire()) is None:
            self.lead *= 2
        self.lead = max(self.lead / 2, LEAD)  # what disturbed it may have passed
        return seen

    async def _expire(self) -> Seen | None:
        self.ward.open()
        first = time.monotonic() + self.lead
        tasks = [
            asyncio.create_task(self._run(number, first + SPREAD * number / self.runs))
            for number in range(self.runs)
        ]
        await asyncio.sleep(first - 0.5 - time.monotonic())
        gc.collect()  # what the healthy ones leave is no part of an expiry
        await asyncio.sleep(first - 0.05 - time.monotonic())
        healthy = sum(task.done() for task in tasks)
        ready = healthy == self.runs - faulty(self.runs) and time.monotonic() < first
        used = time.process_time()
        release = asyncio.create_task(self._release(first + SPREAD + HOLD))
        ends = await asyncio.gather(*tasks)
        used = time.process_time() - used
        threads = await release
        await _settled(self.ward)
        if not ready:
            return None
        late_starts = self.ward.late_starts
        return Seen(ends, used / faulty(self.runs), threads, late_starts)

    async def _release(self, at: float) -> int:
        """Release what resists at the instant `at`; return how many threads it had."""
        threads = 0
        while time.monotonic() < at:
            threads = max(threads, threading.active_count() - 1)
            await asyncio.sleep(0.1)
        self.ward.release()
        return threads

    async def _run(self, number: int, at: float) -> Ended:
        given = input_of(number, at)
        try:
            left = max(at - time.monotonic(), _AT_ONCE)  # a machine may be too slow
            result = await self.start(self.graph, given, left)
        except TimeoutError:
            result = {}
        return Ended(given["kind"], time.monotonic() - at, result.get("answer"))

    async def held(self) -> float:
        """Return the bytes that each run holds while it waits."""
        self.ward.open()
        waiting = [{"kind": "hang", "at": 0.0}] * self.runs
        gc.collect()
        tracemalloc.start()
        tasks = [
            asyncio.ensure_future(self.start(self.graph, given, 60.0))
            for given in waiting
        ]
        while self.ward.begun < self.runs:
            await asyncio.sleep(0.01)
        gc.collect()
        self.waiting_threads = threading.active_count() - 1
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.ward.release()
        return size / self.runs


async def _settled(ward: Ward) -> None:
    """Wait until what was released has gone on to wherever it goes."""
    before = -1
    while ward.late_starts != before:
        before = ward.late_starts
        await asyncio.sleep(0.2)


def candidates(runs: int) -> dict[str, Crowd]:
    """Return LangGraph with `wait_for`, the same with a second graph, and ours."""
    second = second_graph(adegrade)

    async def alone(graph: Any, given: Any, left: float) -> Any:
        return await asyncio.wait_for(graph.ainvoke(given), left)

    async def answered(graph: Any, given: Any, left: float) -> Any:
        try:
            return await alone(graph, given, left)
        except TimeoutError:
            return await second.ainvoke(given)

    async def ours(graph: Any, given: Any, left: float) -> Any:
        return await graph.ainvoke(given, deadline=left + RESERVE)

    return {
        WAIT: Crowd(alone, runs),
        SECOND: Crowd(answered, runs),
        OURS: Crowd(ours, runs, cut_after(60, adegrade)),
    }


def measure(quick: bool) -> list[Sheet]:
    """Measure the crowds in turn."""
    runs, repetitions = (100, 1) if quick else (RUNS, 5)
    crowds = candidates(runs)
    seen: dict[str, list[Seen]] = {name: [] for name in crowds}

    def expires(name: str) -> Sampler:
        def sample() -> float:
            # A loop of its own: the threads of its executor end with it.
            seen[name].append(asyncio.run(crowds[name].expire()))
            return 0.0

        return sample

    # With the garbage collector at work, as in a service.
    samplers = {name: expires(name) for name in crowds}
    interleaved(samplers, repetitions, warm_up=1, collecting=True)
    memory = _memory(crowds)
    threads = {name: [float(crowd.waiting_threads)] for name, crowd in crowds.items()}
    waiting = {
        "memory per run that waits (KiB)": memory,
        "threads while all runs wait": threads,
    }
    about = ABOUT.format(runs=runs, repetitions=repetitions)
    found = {name: crowd[1:] for name, crowd in seen.items()}
    return [sheet(f"{runs:,} async runs, faults in every tenth", about, found, waiting)]


def _memory(crowds: dict[str, Crowd]) -> Samples:
    def holds(crowd: Crowd) -> Sampler:
        return lambda: asyncio.run(crowd.held()) / 1024

    samplers = {name: holds(crowd) for name, crowd in crowds.items()}
    return interleaved(samplers, 1, warm_up=0)  # it is the same every time
