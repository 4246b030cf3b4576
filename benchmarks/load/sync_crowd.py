"""200 concurrent sync runs, every tenth with a fault."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..graphs import RESERVE, cut_after
from ..measure import OURS, Sampler, interleaved
from ..sheet import Sheet
from .faults import Ward, degrade, graph_of, input_of, second_graph
from .figures import Ended, Seen, faulty, sheet

RUNS = 200
SPREAD = 0.5
HOLD = 2.0
LEAD = 2.0
"""What the runs are given to begin and, if healthy, to end (in seconds)."""
_AT_ONCE = 1e-3
WAIT = "`result(timeout)`"
SECOND = "`result(timeout)` and a second graph"

ABOUT = f"""{{runs:,}} threads call a graph at the same time, as a web server's workers
do; the faults are as above, in sync nodes: *hang* waits for an event, *swallow* calls
on and suppresses what is raised, *block* is a call that nothing interrupts. Their time
ends within {SPREAD:g} s; what resists is released {HOLD:g} s later. LangGraph runs in a
pool of as many threads, each caller waits in `future.result(timeout)`; ours is called
with its deadline by the caller itself. Medians of {{repetitions}} repetitions taken in
turn, and of their ratios."""

Start = Callable[[Any, Any, float], Any]


@dataclass
class SyncCrowd:
    """Many callers at once; `start` gets the graph, an input and the seconds it has."""

    start: Start
    runs: int
    compiled: dict[str, Any] = field(default_factory=dict)
    lead: float = LEAD

    def __post_init__(self) -> None:
        self.ward = Ward()
        ward = self.ward
        self.graph = graph_of(
            ward.sync_work, ward.block, ward.sync_after, **self.compiled
        )

    def expire(self) -> Seen:
        """Let the runs expire; again with more time where they were late to begin."""
        while (seen := self._expire()) is None:
            self.lead *= 2
        self.lead = max(self.lead / 2, LEAD)  # what disturbed it may have passed
        return seen

    def _expire(self) -> Seen | None:
        self.ward.open()
        ends: list[Ended] = []
        first = time.monotonic() + self.lead
        callers = [
            threading.Thread(
                target=self._call,
                args=(number, first + SPREAD * number / self.runs, ends),
            )
            for number in range(self.runs)
        ]
        for caller in callers:
            caller.start()
        threads = self._most_threads_until(first - 0.5)
        gc.collect()  # what the healthy ones leave is no part of an expiry
        threads = max(threads, self._most_threads_until(first - 0.05))
        healthy = len(ends)
        ready = healthy == self.runs - faulty(self.runs) and time.monotonic() < first
        used = time.process_time()
        threads = max(threads, self._most_threads_until(first + SPREAD + HOLD))
        self.ward.release()
        for caller in callers:
            caller.join()
        used = time.process_time() - used
        time.sleep(0.5)  # what was released goes on to wherever it goes
        if not ready:
            return None
        return Seen(ends, used / faulty(self.runs), threads, self.ward.late_starts)

    def _most_threads_until(self, at: float) -> int:
        most = 0
        while time.monotonic() < at:
            most = max(most, threading.active_count() - 1)
            time.sleep(0.05)
        return most

    def _call(self, number: int, at: float, ends: list[Ended]) -> None:
        given = input_of(number, at)
        try:
            left = max(at - time.monotonic(), _AT_ONCE)  # a machine may be too slow
            result = self.start(self.graph, given, left)
        except TimeoutError:
            result = {}
        late = time.monotonic() - at
        ends.append(Ended(given["kind"], late, result.get("answer")))


def candidates(runs: int, pool: ThreadPoolExecutor) -> dict[str, SyncCrowd]:
    """Return LangGraph in a pool, the same with a second graph, and ours."""
    second = second_graph(degrade)

    def alone(graph: Any, given: Any, left: float) -> Any:
        return pool.submit(graph.invoke, given).result(left)

    def answered(graph: Any, given: Any, left: float) -> Any:
        try:
            return alone(graph, given, left)
        except TimeoutError:
            return second.invoke(given)

    def ours(graph: Any, given: Any, left: float) -> Any:
        return graph.invoke(given, deadline=left + RESERVE)

    return {
        WAIT: SyncCrowd(alone, runs),
        SECOND: SyncCrowd(answered, runs),
        OURS: SyncCrowd(ours, runs, cut_after(60, degrade)),
    }


def measure(quick: bool) -> list[Sheet]:
    """Measure the crowds in turn."""
    runs, repetitions = (60, 1) if quick else (RUNS, 5)
    seen: dict[str, list[Seen]] = {WAIT: [], SECOND: [], OURS: []}

    def expires(name: str) -> Sampler:
        def sample() -> float:
            # A pool of its own: its threads are counted, and end with it.
            with ThreadPoolExecutor(runs) as pool:
                seen[name].append(candidates(runs, pool)[name].expire())
            return 0.0

        return sample

    # With the garbage collector at work, as in a service.
    samplers = {name: expires(name) for name in seen}
    interleaved(samplers, repetitions, warm_up=1, collecting=True)
    about = ABOUT.format(runs=runs, repetitions=repetitions)
    found = {name: crowd[1:] for name, crowd in seen.items()}
    return [sheet(f"{runs:,} sync runs, faults in every tenth", about, found)]
