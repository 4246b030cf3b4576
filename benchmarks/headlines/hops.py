"""Five hops of 1 s at the 95th percentile each, and 5 s for all of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypedDict

from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.types import RetryPolicy

from langgraph_deadline import DeadlinePolicy, _clock
from langgraph_deadline import StateGraph as BoundedGraph
from langgraph_deadline.testing import run_virtual

from ..sheet import Sheet, Value
from .virtual import Ended, correlated, ended, latency, percentile, share

HOPS = 5
P95 = 1.0
MEDIAN = 0.35
BUDGET = 5.0
RESERVE = 0.25
"""For the fallback (in seconds)."""
RETRY_AFTER = 0.1
SEED = 20_250_101

ABOUT = f"""Five nodes, one after the other. Each takes a log-normal time with {P95:g} s
at p95 (and {MEDIAN:g} s at p50), drawn once and the same under every limit; a retry
draws again. *Together*: the hops of a run are slow together (a correlation of 0.7 of
the underlying normal values), as when they share a backend. *Time to spare*: runs that
a time-out ended although the same hops, left alone, end inside {BUDGET:g} s. Hop three:
what runs that got there had spent when it ended, and what was left of {BUDGET:g} s;
five hops at p95 would have spent {3 * P95:g} s by then. One deadline keeps a reserve of
{RESERVE:g} s for its fallback, so its runs are cut that much earlier than under
`asyncio.wait_for`. That fallback takes no time here; one that needs more than the
reserve would be late. No other row has one, so none answers when it is cut. A hop ends
as soon as it is cancelled."""

CORRELATIONS = {"independent": 0.0, "together": 0.7}


class State(TypedDict, total=False):
    run: int
    answer: str


@dataclass
class Chain:
    """The five hops of many runs: how long each attempt takes, and when hop 3 ended."""

    runs: int
    correlation: float
    latencies: list[list[list[float]]] = field(default_factory=list)
    attempts: dict[tuple[int, int], int] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)
    hop_three: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = random.Random(SEED)
        for _ in range(self.runs):
            shared = draw.gauss()
            self.latencies.append(
                [[self._drawn(draw, shared) for _ in range(2)] for _ in range(HOPS)]
            )

    def _drawn(self, draw: random.Random, shared: float) -> float:
        normal = correlated(draw.gauss(), shared, self.correlation)
        return latency(normal, MEDIAN, P95)

    def hop(self, number: int) -> Callable[[State], Awaitable[State]]:
        """Return the node of one hop, counted from 0."""

        async def node(state: State) -> State:
            run = state["run"]
            attempt = self.attempts.get((run, number), 0)
            self.attempts[run, number] = attempt + 1
            await asyncio.sleep(self.latencies[run][number][attempt])
            if number == 2:
                self.hop_three[run] = _clock.now() - self.began[run]
            return {"answer": "complete"} if number == HOPS - 1 else {}

        return node

    def graph(self, kind: Any, **options: Any) -> Any:
        """Return the hops as a graph that is not compiled yet."""
        builder = kind(State)
        names = [f"hop{number + 1}" for number in range(HOPS)]
        for number, name in enumerate(names):
            builder.add_node(name, self.hop(number), **options)
        for before, after in zip([START, *names], names, strict=False):
            builder.add_edge(before, after)
        return builder

    def in_time(self, run: int) -> bool:
        """Return whether the first attempts of all hops, left alone, fit."""
        return sum(attempts[0] for attempts in self.latencies[run]) <= BUDGET


async def degrade(_: State) -> State:
    return {"answer": "in part"}


Runner = Callable[[Chain], Callable[[State], Awaitable[Any]]]


def _unlimited(chain: Chain) -> Callable[[State], Awaitable[Any]]:
    return chain.graph(PlainGraph).compile().ainvoke  # type: ignore[no-any-return]


def _each(chain: Chain) -> Callable[[State], Awaitable[Any]]:
    graph = chain.graph(PlainGraph, timeout=P95).compile()
    return graph.ainvoke  # type: ignore[no-any-return]


def _each_with_retry(chain: Chain) -> Callable[[State], Awaitable[Any]]:
    policy = RetryPolicy(max_attempts=2, initial_interval=RETRY_AFTER, jitter=False)
    graph = chain.graph(PlainGraph, timeout=P95, retry_policy=policy).compile()
    return graph.ainvoke  # type: ignore[no-any-return]


def _around(chain: Chain) -> Callable[[State], Awaitable[Any]]:
    graph = chain.graph(PlainGraph).compile()
    return lambda state: asyncio.wait_for(graph.ainvoke(state), BUDGET)


def _one_deadline(chain: Chain) -> Callable[[State], Awaitable[Any]]:
    policy = DeadlinePolicy(seconds=BUDGET, reserve=timedelta(seconds=RESERVE))
    graph = chain.graph(BoundedGraph).compile(deadline=policy, fallback=degrade)
    return graph.ainvoke  # type: ignore[no-any-return]


LIMITS: dict[str, Runner] = {
    "none": _unlimited,
    f"{P95:g} s for each hop": _each,
    f"{P95:g} s for each hop, one retry": _each_with_retry,
    f"`asyncio.wait_for`, {BUDGET:g} s": _around,
    f"one deadline, {BUDGET:g} s, and a fallback": _one_deadline,
}
COLUMNS = {
    "hops": "",
    "limit": "",
    "complete in 5 s": ".1%",
    "answered in 5 s": ".1%",
    "time to spare": ".1%",
    "p95, all": ".2f",
    "p95 spent after hop three": ".2f",
    "p5 left after hop three": ".2f",
}


def measure(quick: bool) -> list[Sheet]:
    """Run the hops under each limit, often."""
    return [table(200 if quick else 1_000)]


def table(runs: int) -> Sheet:
    """Run the hops so many times under each limit."""
    rows = [
        _row(hops, Chain(runs, correlation), limit)
        for hops, correlation in CORRELATIONS.items()
        for limit in LIMITS
    ]
    about = f"{ABOUT} {runs:,} runs a row."
    return Sheet("Five hops, 1 s each at p95, 5 s in all", about, COLUMNS, rows)


def _row(hops: str, chain: Chain, limit: str) -> dict[str, Value]:
    ends = run_virtual(_runs(chain, LIMITS[limit](chain)))
    spent = list(chain.hop_three.values())
    complete = [_answer(end) == "complete" for end in ends]
    in_time = [end.seconds <= BUDGET for end in ends]
    spared = [
        _answer(end) is None and chain.in_time(run) for run, end in enumerate(ends)
    ]
    both = zip(complete, in_time, strict=True)
    answered = zip(ends, in_time, strict=True)
    return {
        "hops": hops,
        "limit": limit,
        "complete in 5 s": share([done and fits for done, fits in both]),
        "answered in 5 s": share([_answer(e) is not None and f for e, f in answered]),
        "time to spare": share(spared),
        "p95, all": round(percentile([end.seconds for end in ends], 95), 3),
        "p95 spent after hop three": round(percentile(spent, 95), 3),
        "p5 left after hop three": round(BUDGET - percentile(spent, 95), 3),
    }


def _answer(end: Ended) -> str | None:
    return None if end.values is None else end.values.get("answer")


async def _runs(chain: Chain, run: Callable[[State], Awaitable[Any]]) -> list[Ended]:
    ends: list[Ended] = []
    for number in range(chain.runs):
        chain.began[number] = _clock.now()
        ends.append(await ended(run({"run": number})))
    return ends
