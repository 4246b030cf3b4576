"""1,000 concurrent async runs, every tenth with a fault."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..graphs import RESERVE, cut_after
from ..measure import OURS
from ..sheet import Sheet
from .crowd import HOLD, SPREAD, Crowd, compared, ended, left
from .faults import State, Ward, adegrade, graph_of, second_graph
from .figures import Ended, Seen, Waiting, faulty

RUNS = 1_000
WAIT = "`wait_for`"
SECOND = "`wait_for` and a second graph"

ABOUT = f"""Of {{runs:,}} runs in one event loop nine in ten work for up to 0.5 s and
complete; the others, in turn, *hang* in an await, *swallow* every cancellation, or
*block* a thread in a sync node. Their time ends one by one within {SPREAD:g} s; what
resists is released {HOLD:g} s later. LangGraph is timed out by `asyncio.wait_for`
around `ainvoke`, alone or with a second graph that answers then; ours has a fallback.
*Late*: how long after its time for work the caller has the result or the exception.
CPU is counted from just before the first time ends until what was released is over.
Medians of {{repetitions}} repetitions taken in turn, and of their ratios; memory is
what `tracemalloc` sees of as many runs that all wait."""

Start = Callable[[Any, State], Awaitable[Any]]


@dataclass
class AsyncCrowd(Crowd):
    """Many runs in one event loop; `start` gets the graph and an input."""

    start: Start
    compiled: dict[str, Any]

    def __post_init__(self) -> None:
        ward = self.ward
        self.graph = graph_of(ward.work, ward.block, ward.after, **self.compiled)

    def attempt(self) -> Seen | None:
        # A loop of its own: the threads of its executor end with it.
        return asyncio.run(self._attempt())

    def held(self) -> Waiting:
        return asyncio.run(self._held())

    async def _attempt(self) -> Seen | None:
        self.ward.open()
        first = time.monotonic() + self.lead
        tasks = [asyncio.create_task(self._run(given)) for given in self.inputs(first)]
        await asyncio.sleep(first - 0.5 - time.monotonic())
        gc.collect()  # what the healthy ones leave is no part of an expiry
        await asyncio.sleep(first - 0.05 - time.monotonic())
        ready = self.ready(first, sum(task.done() for task in tasks))
        used = time.process_time()
        threads = await _most_threads_until(first + SPREAD + HOLD)
        self.ward.release()
        ends = await asyncio.gather(*tasks)
        await _settled(self.ward)
        used = time.process_time() - used
        if not ready:
            return None
        return Seen(ends, used / faulty(self.runs), threads, self.ward.late_starts)

    async def _run(self, given: State) -> Ended:
        try:
            result = await self.start(self.graph, given)
        except TimeoutError:
            result = None
        return ended(given, result)

    async def _held(self) -> Waiting:
        self.ward.open()
        gc.collect()
        tracemalloc.start()
        tasks = [
            asyncio.ensure_future(self.start(self.graph, given))
            for given in self.waiting()
        ]
        while self.ward.begun < self.runs:
            await asyncio.sleep(0.01)
        gc.collect()
        threads = threading.active_count() - 1
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.ward.release()
        return Waiting(size / self.runs, threads)


async def _most_threads_until(at: float) -> int:
    most = 0
    while time.monotonic() < at:
        most = max(most, threading.active_count() - 1)
        await asyncio.sleep(0.1)
    return most


async def _settled(ward: Ward) -> None:
    """Wait until what was released has gone on to wherever it goes."""
    before = -1
    while ward.late_starts != before:
        before = ward.late_starts
        await asyncio.sleep(0.2)


def candidates(runs: int) -> dict[str, AsyncCrowd]:
    """Return LangGraph with `wait_for`, the same with a second graph, and ours."""
    second = second_graph(adegrade)

    async def alone(graph: Any, given: State) -> Any:
        return await asyncio.wait_for(graph.ainvoke(given), left(given))

    async def answered(graph: Any, given: State) -> Any:
        try:
            return await alone(graph, given)
        except TimeoutError:
            return await second.ainvoke(given)

    async def ours(graph: Any, given: State) -> Any:
        return await graph.ainvoke(given, deadline=left(given) + RESERVE)

    return {
        WAIT: AsyncCrowd(runs, alone, {}),
        SECOND: AsyncCrowd(runs, answered, {}),
        OURS: AsyncCrowd(runs, ours, cut_after(60, adegrade)),
    }


def measure(quick: bool) -> list[Sheet]:
    """Measure the crowds in turn."""
    runs, repetitions = (100, 1) if quick else (RUNS, 5)
    title = f"{runs:,} async runs, faults in every tenth"
    about = ABOUT.format(runs=runs, repetitions=repetitions)
    return [compared(title, about, candidates(runs), repetitions)]
