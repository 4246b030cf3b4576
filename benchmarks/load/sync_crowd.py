"""200 concurrent sync runs, every tenth with a fault."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..graphs import RESERVE, cut_after
from ..measure import OURS
from ..sheet import Sheet
from .crowd import HOLD, SPREAD, Crowd, compared, ended, left
from .faults import State, degrade, graph_of, second_graph
from .figures import Ended, Seen, Waiting, faulty

RUNS = 200
WAIT = "`result(timeout)`"
SECOND = "`result(timeout)` and a second graph"

ABOUT = f"""{{runs:,}} threads call a graph at the same time, as a web server's workers
do; the faults are as above, in sync nodes: *hang* waits for an event, *swallow* calls
on and suppresses what is raised, *block* is a call that nothing interrupts. Their time
ends within {SPREAD:g} s; what resists is released {HOLD:g} s later. LangGraph runs in a
pool of as many threads, and each caller, once its run is submitted, waits in
`future.result(timeout)` for the time that is left then; ours is called with its
deadline by the caller itself. CPU, the medians of {{repetitions}} repetitions and their
ratios are as above. Threads include the callers, and at the most those of the healthy
runs; memory is without the stacks of threads, which `tracemalloc` does not see."""

Start = Callable[[Executor, Any, State], Any]


@dataclass
class SyncCrowd(Crowd):
    """Many callers at once; `start` gets a pool, the graph and an input."""

    start: Start
    compiled: dict[str, Any]

    def __post_init__(self) -> None:
        ward = self.ward
        self.graph = graph_of(
            ward.sync_work, ward.block, ward.sync_after, **self.compiled
        )

    def attempt(self) -> Seen | None:
        self.ward.open()
        ends: list[Ended] = []
        first = time.monotonic() + self.lead
        # A pool of its own: its threads, started as it is used, end with it.
        with ThreadPoolExecutor(self.runs) as pool:
            callers = [
                threading.Thread(target=self._call, args=(pool, given, ends))
                for given in self.inputs(first)
            ]
            for caller in callers:
                caller.start()
            threads = _most_threads_until(first - 0.5)
            gc.collect()  # what the healthy ones leave is no part of an expiry
            threads = max(threads, _most_threads_until(first - 0.05))
            ready = self.ready(first, len(ends))
            used = time.process_time()
            threads = max(threads, _most_threads_until(first + SPREAD + HOLD))
            self.ward.release()
            for caller in callers:
                caller.join()
        time.sleep(0.5)  # what was released goes on to wherever it goes
        used = time.process_time() - used
        if not ready:
            return None
        return Seen(ends, used / faulty(self.runs), threads, self.ward.late_starts)

    def _call(self, pool: Executor, given: State, ends: list[Ended]) -> None:
        try:
            result = self.start(pool, self.graph, given)
        except TimeoutError:
            result = None
        ends.append(ended(given, result))

    def held(self) -> Waiting:
        self.ward.open()
        begin = threading.Event()
        with ThreadPoolExecutor(self.runs) as pool:

            def call(given: State) -> None:
                begin.wait()
                self.start(pool, self.graph, given)

            callers = [
                threading.Thread(target=call, args=(given,)) for given in self.waiting()
            ]
            for caller in callers:
                caller.start()
            gc.collect()
            tracemalloc.start()  # not before: the callers are nobody's cost
            begin.set()
            while self.ward.begun < self.runs:
                time.sleep(0.01)
            gc.collect()
            threads = threading.active_count() - 1
            size, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.ward.release()
            for caller in callers:
                caller.join()
        return Waiting(size / self.runs, threads)


def _most_threads_until(at: float) -> int:
    most = 0
    while time.monotonic() < at:
        most = max(most, threading.active_count() - 1)
        time.sleep(0.05)
    return most


def candidates(runs: int) -> dict[str, SyncCrowd]:
    """Return LangGraph in a pool, the same with a second graph, and ours."""
    second = second_graph(degrade)

    def alone(pool: Executor, graph: Any, given: State) -> Any:
        running = pool.submit(graph.invoke, given)  # which may have to start a thread
        return running.result(left(given))

    def answered(pool: Executor, graph: Any, given: State) -> Any:
        try:
            return alone(pool, graph, given)
        except TimeoutError:
            return second.invoke(given)

    def ours(_: Executor, graph: Any, given: State) -> Any:
        return graph.invoke(given, deadline=left(given) + RESERVE)

    return {
        WAIT: SyncCrowd(runs, alone, {}),
        SECOND: SyncCrowd(runs, answered, {}),
        OURS: SyncCrowd(runs, ours, cut_after(60, degrade)),
    }


def measure(quick: bool) -> list[Sheet]:
    """Measure the crowds in turn."""
    runs, repetitions = (60, 1) if quick else (RUNS, 5)
    title = f"{runs:,} sync runs, faults in every tenth"
    about = ABOUT.format(runs=runs, repetitions=repetitions)
    return [compared(title, about, candidates(runs), repetitions)]
