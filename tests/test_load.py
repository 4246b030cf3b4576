"""What `make load` measures, with few runs: the promises, not the times."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from typing import Any

import anyio
import pytest
from langgraph.graph import START

from benchmarks.headlines.provider import Provider, ProviderModel
from benchmarks.load import async_crowd, service, soak, sync_crowd
from benchmarks.load.crowd import LEAD, Crowd
from benchmarks.load.faults import State
from benchmarks.load.figures import Ended, Seen, faulty, row, sheet
from benchmarks.measure import OURS
from langgraph_deadline import (
    DeadlineExceeded,
    RunControl,
    RunReport,
    StateGraph,
    _clock,
    collect_runs,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

RUNS = 60
MARGIN = 1.5
"""How late a loaded machine may be (in seconds)."""


def check(seen: Seen, grace: float) -> None:
    """Check what must hold of a crowd with faults in it."""
    answers = [end.answer for end in seen.ends]
    assert answers.count("complete") == RUNS - faulty(RUNS)
    assert answers.count("fallback") == faulty(RUNS)
    assert seen.late_starts == 0
    cut = [end for end in seen.ends if end.answer == "fallback"]
    assert all(0 <= end.late < grace + MARGIN for end in cut)


@pytest.mark.realtime
def test_every_run_of_an_async_crowd_is_answered_on_time() -> None:
    """Healthy ones complete; those that hang, swallow or block have the fallback."""
    before = set(threading.enumerate())
    seen = async_crowd.candidates(RUNS)[OURS].expire()
    check(seen, service.GRACE)
    assert set(threading.enumerate()) <= before


@pytest.mark.realtime
def test_every_run_of_a_sync_crowd_is_answered_on_time() -> None:
    """The same from the threads of a web server."""
    before = set(threading.enumerate())
    seen = sync_crowd.candidates(RUNS)[OURS].expire()
    check(seen, 0.0)
    assert set(threading.enumerate()) <= before


@pytest.mark.realtime
@pytest.mark.parametrize("crowds", [async_crowd.candidates, sync_crowd.candidates])
def test_what_a_crowd_holds_is_seen_while_all_of_it_waits(
    crowds: Callable[[int], dict[str, Crowd]],
) -> None:
    """With every candidate; afterwards nothing of it is left."""
    before = set(threading.enumerate())
    for name, crowd in crowds(RUNS).items():
        held = crowd.held()
        assert crowd.ward.begun == RUNS, name
        assert held.memory > 0
        assert held.threads >= (2 * RUNS if crowds is sync_crowd.candidates else 0)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("name", [sync_crowd.WAIT, sync_crowd.SECOND])
def test_starting_a_thread_of_the_pool_is_not_taken_for_lateness(name: str) -> None:
    """The caller waits for what is left once its run has been submitted."""
    waits: list[float | None] = []

    class Running(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waits.append(timeout)
            raise TimeoutError

    class Slow(Executor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            time.sleep(0.1)
            return Running()

    crowd = sync_crowd.candidates(RUNS)[name]
    given: State = {"kind": "hang", "at": time.monotonic() + 30}
    with contextlib.suppress(TimeoutError):
        crowd.start(Slow(), crowd.graph, given)
    (wait,) = waits
    assert wait is not None
    assert wait <= 29.9


def test_a_crowd_that_is_never_ready_is_not_measured() -> None:
    """It has more time at each attempt, and not for ever."""
    leads: list[float] = []

    class Busy(async_crowd.AsyncCrowd):
        def attempt(self) -> None:
            leads.append(self.lead)

    ours = async_crowd.candidates(RUNS)[OURS]
    with pytest.raises(RuntimeError, match="of 60 runs, 54 healthy ones"):
        Busy(RUNS, ours.start, {}).expire()
    assert leads == [LEAD * 2**attempt for attempt in range(5)]


def test_the_table_of_a_crowd_has_ratios_where_there_is_something_to_compare() -> None:
    """Nothing is divided by zero."""
    late = [Ended(kind, 0.2, None) for kind in ("hang", "swallow", "block")]
    seen = Seen(late * 2, cpu=1e-3, threads=4, late_starts=0)
    rows = {
        row["figure"]: row
        for row in sheet("", "", {"LangGraph": [seen], OURS: [seen]}).rows
    }
    assert rows["any fault: late, p99 (ms)"]["ours to LangGraph"] == 1.0
    assert rows["nodes begun after the deadline"]["ours to LangGraph"] is None
    assert row("tokens", {"LangGraph": [0], OURS: [6]})["ours to LangGraph"] is None


@pytest.mark.parametrize("candidate", [soak.Plain, soak.Bounded])
def test_nothing_stays_behind_between_the_runs_of_a_soak(
    candidate: soak.Candidate,
) -> None:
    """Objects are the same, there is no task and no thread, and memory is flat."""
    threads = threading.active_count() - 1
    gc.collect()
    gc.freeze()
    tracemalloc.start()
    try:
        samples = run_virtual(soak.soak(candidate, 4, 20))
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    first, last = samples[1], samples[-1]
    assert [sample[2] for sample in samples] == [0] * 4
    assert last[3] <= threads
    assert last[1] - first[1] < 20  # less than one object a run
    assert last[0] - first[0] < 20 * 1024  # less than 1 KiB a run


@pytest.mark.parametrize("passes", range(5))
@pytest.mark.parametrize("way", ["control", "task", "scope"])
@pytest.mark.filterwarnings("error:coroutine .* was never awaited")
def test_a_cut_between_two_tokens_takes_no_time(way: str, passes: int) -> None:
    """In whichever pass of the loop it comes: between an item and its guard, too."""
    provider = Provider(0.01)
    leave: list[Callable[[], Any]] = []
    left: list[float] = []
    ended: list[float] = []

    def leave_after(more: int) -> None:
        if more:
            asyncio.get_running_loop().call_soon(leave_after, more - 1)
        else:
            left.append(_clock.now())
            leave[0]()

    class Model(ProviderModel):
        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async for chunk in super()._astream(*args, **kwargs):
                if len(provider.tokens) == 5:
                    leave_after(passes)
                yield chunk

    model = with_deadline(Model(provider=provider))

    async def node(state: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"said": (await model.ainvoke("50")).text}
        finally:
            ended.append(_clock.now())

    graph = StateGraph(dict).add_node(node).add_edge(START, "node").compile(deadline=30)

    async def run(**kwargs: Any) -> None:
        async for _ in graph.astream({}, stream_mode="messages", **kwargs):
            pass

    async def main() -> list[RunReport]:
        with (
            collect_runs() as runs,
            contextlib.suppress(DeadlineExceeded, asyncio.CancelledError),
        ):
            if way == "control":
                control = RunControl()
                leave.append(control.cancel)
                await run(control=control)
            elif way == "task":
                task = asyncio.create_task(run())
                leave.append(task.cancel)
                await task
            else:
                with anyio.CancelScope() as scope:
                    leave.append(scope.cancel)
                    await run()
        return runs

    (report,) = run_virtual(main())
    gc.collect()
    assert ended == left
    assert len(provider.tokens) <= 6
    assert report.stragglers == []


@pytest.mark.realtime
def test_nothing_outlives_a_client_that_leaves() -> None:
    """No node, tool or model stream goes on, and those who stay are answered."""
    runs = service.served(service.bounded, 12, 1.0).runs.values()
    left = [run for run in runs if run.left is not None]
    stayed = [run for run in runs if run.left is None]
    assert len(left) == 4
    assert all(run.answered for run in stayed)
    assert sum(run.open for run in runs) == 0
    for run in left:
        # From when the application can know: until then a loaded machine may take long.
        assert run.outlived("node") - run.told_after() < service.GRACE + MARGIN
        assert run.outlived("tool") - run.told_after() < service.GRACE + MARGIN
        assert run.outlived("model stream") - run.told_after() < service.GRACE + MARGIN
