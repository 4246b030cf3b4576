"""An hour of runs in virtual time: does anything stay behind?"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import tracemalloc
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph

from langgraph_deadline import DeadlineExceeded, RunControl
from langgraph_deadline import StateGraph as BoundedGraph
from langgraph_deadline.testing import run_virtual

from ..measure import OURS, PLAIN
from ..sheet import Sheet, Value

HOUR = 3_600.0
WINDOW = 36.0
"""Runs start in the first two thirds; then none is left, and memory is looked at."""
BUDGET = 5.0
SEED = 3_600

KINDS = {"complete": 14, "hang": 2, "swallow": 1, "leave": 1, "stop": 1, "resume": 1}
"""What runs do, and how many of twenty do it."""

ABOUT = f"""{{runs:,}} runs in an hour of virtual time, {{per_window}} in every window
of {WINDOW:g} s, on threads of a checkpointer that are deleted when they are done. Of
twenty {KINDS["complete"]} complete, {KINDS["hang"]} hang until they are cut, one
swallows its cancellation for 2 s more, one is a stream whose reader leaves, one is
stopped by hand, one is cut, raises, and is resumed. LangGraph's own are timed out by
`asyncio.wait_for`. At the end of each window nothing is in flight and everything is
collected: the first tenth of these moments is compared with the last. The first window
is left out, in which caches fill. *Flat* means that what is there between runs grows,
over the hour and all its runs together, by less memory than a single run holds while it
waits (in the table of async runs), and by no task and no thread; what LangGraph grows
by of its own is beside it."""


class State(TypedDict, total=False):
    kind: str
    seconds: float
    done: list[str]


async def first(state: State) -> State:
    await asyncio.sleep(0.1)
    return {"done": ["first"]}


async def second(state: State) -> State:
    if state["kind"] == "swallow":
        return await _swallowing()
    if state["kind"] in {"hang", "stop", "resume"}:
        await for_ever()
    await asyncio.sleep(state["seconds"])
    return {"done": ["second"]}


async def for_ever() -> None:
    # Not a long sleep: a cancelled timer stays in the loop until its time.
    await asyncio.get_running_loop().create_future()


async def _swallowing() -> State:
    try:
        await for_ever()
    except asyncio.CancelledError:
        await asyncio.sleep(2)
    return {"done": ["late"]}


async def degrade(state: State) -> State:
    return {"done": ["fallback"]}


def builder(kind: Any) -> Any:
    graph = kind(State).add_node(first).add_node(second)
    return graph.add_edge(START, "first").add_edge("first", "second")


Sample = tuple[int, ...]
"""Bytes, objects, tasks and threads while no run is in flight."""
FIGURES = {"memory (KiB)": 1 / 1024, "objects": 1, "tasks": 1, "threads": 1}


@dataclass
class Plain:
    """LangGraph alone, timed out by `asyncio.wait_for`."""

    saver: InMemorySaver

    def __post_init__(self) -> None:
        self.graph = builder(PlainGraph).compile(checkpointer=self.saver)

    async def run(self, given: State, config: Any) -> None:
        if given["kind"] == "leave":
            await leave(self.graph.astream(given, config))
            return
        inputs: list[State | None] = [given]
        if given["kind"] == "resume":
            inputs.append(None)
        for one in inputs:
            run = asyncio.ensure_future(self.graph.ainvoke(one, config))
            if given["kind"] == "stop":
                asyncio.get_running_loop().call_later(1, run.cancel)
            await quietly(asyncio.wait_for(run, BUDGET))


@dataclass
class Bounded:
    """The same under a deadline."""

    saver: InMemorySaver

    def __post_init__(self) -> None:
        graph = builder(BoundedGraph)
        self.raising = graph.compile(checkpointer=self.saver, deadline=BUDGET)
        self.graph = graph.compile(
            checkpointer=self.saver, deadline=BUDGET, fallback=degrade
        )

    async def run(self, given: State, config: Any) -> None:
        if given["kind"] == "leave":
            await leave(self.graph.astream(given, config))
        elif given["kind"] == "resume":
            await quietly(self.raising.ainvoke(given, config))
            await quietly(self.raising.ainvoke(None, config))
        elif given["kind"] == "stop":
            control = RunControl()
            asyncio.get_running_loop().call_later(1, control.cancel)
            await self.graph.ainvoke(given, config, control=control)
        else:
            await self.graph.ainvoke(given, config)


async def leave(stream: Any) -> None:
    """Read one item of a stream and leave."""
    async for _ in stream:
        break
    await stream.aclose()


async def quietly(run: Awaitable[Any]) -> None:
    """Await a run that may end in a time-out or a cancellation."""
    try:
        await run
    except (DeadlineExceeded, TimeoutError, asyncio.CancelledError):
        return


Candidate = Callable[[InMemorySaver], Plain | Bounded]


async def soak(candidate: Candidate, windows: int, per_window: int) -> list[Sample]:
    """Have so many windows of so many runs; return a sample for each."""
    draw = random.Random(SEED)
    saver = InMemorySaver()
    service = candidate(saver)
    # All of it is there from the beginning: samples must not be what grows.
    samples = array("q", bytes(8 * len(FIGURES) * windows))
    for window in range(windows):
        runs = [
            asyncio.create_task(
                _one(
                    service, saver, draw, f"{window}-{number}", 24 * number / per_window
                )
            )
            for number in range(per_window)
        ]
        await asyncio.sleep(WINDOW)
        _nothing_in_flight(runs)
        runs.clear()
        at = window * len(FIGURES)
        samples[at : at + len(FIGURES)] = array("q", _sampled())
    return list(zip(*[iter(samples)] * len(FIGURES), strict=True))


async def _one(
    service: Plain | Bounded,
    saver: InMemorySaver,
    draw: random.Random,
    thread: str,
    after: float,
) -> None:
    await asyncio.sleep(after)
    (kind,) = draw.choices(list(KINDS), weights=list(KINDS.values()))
    given: State = {"kind": kind, "seconds": draw.uniform(0.1, 3.0)}
    await service.run(given, {"configurable": {"thread_id": thread}})
    saver.delete_thread(thread)


def _nothing_in_flight(runs: list[asyncio.Task[None]]) -> None:
    for run in runs:
        run.result()  # raises what went wrong, and if the run is not over


def _sampled() -> Sample:
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tasks = len(asyncio.all_tasks())
    return size, len(gc.get_objects()), tasks - 1, threading.active_count() - 1


def measure(quick: bool) -> list[Sheet]:
    """Soak LangGraph and ours for an hour each."""
    windows = 10 if quick else round(HOUR / WINDOW)
    per_window = 20 if quick else 36
    rows: list[dict[str, Value]] = []
    candidates: dict[str, Candidate] = {PLAIN: Plain, OURS: Bounded}
    for name, candidate in candidates.items():
        rows += _rows(name, _traced(candidate, windows + 1, per_window)[1:])
    about = ABOUT.format(runs=windows * per_window, per_window=per_window)
    columns = {
        "what is there between runs": "",
        "of": "",
        "first tenth": ",.1f",
        "last tenth": ",.1f",
        "growth": "+,.1f",
        "growth (%)": "+.2%",
    }
    return [Sheet("An hour of runs, in virtual time", about, columns, rows)]


def _traced(candidate: Candidate, windows: int, per_window: int) -> list[Sample]:
    gc.collect()
    gc.freeze()  # what was there before is not looked at again and again
    tracemalloc.start()
    try:
        return run_virtual(soak(candidate, windows, per_window))
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def _rows(name: str, samples: list[Sample]) -> list[dict[str, Value]]:
    tenth = max(len(samples) // 10, 1)
    rows: list[dict[str, Value]] = []
    for at, (figure, unit) in enumerate(FIGURES.items()):
        first_tenth = unit * mean(sample[at] for sample in samples[:tenth])
        last_tenth = unit * mean(sample[at] for sample in samples[-tenth:])
        growth = last_tenth - first_tenth
        rows.append(
            {
                "what is there between runs": figure,
                "of": name,
                "first tenth": round(first_tenth, 2),
                "last tenth": round(last_tenth, 2),
                "growth": round(growth, 2),
                "growth (%)": growth / first_tenth if first_tenth else None,
            }
        )
    return rows
