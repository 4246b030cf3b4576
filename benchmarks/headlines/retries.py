"""Four layers of three retries against one deadline.

Both counts of the field are here. 64 is 4 x 4 x 4: three layers that retry three times,
so make four attempts, above a fourth that only fails. 81 is 3 x 3 x 3 x 3: all four
layers at their defaults, which are three attempts in LangGraph's `RetryPolicy`, in
LangChain's `.with_retry()` and in the vendors' SDKs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, TypedDict

from langchain_core.runnables import RunnableLambda
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.types import RetryPolicy

from langgraph_deadline import StateGraph as BoundedGraph
from langgraph_deadline import _clock
from langgraph_deadline.testing import run_virtual

from ..sheet import Sheet, Value
from .virtual import Ended, ended

BUDGET = 10.0
"""How long the caller has (in seconds)."""
FAILS_AFTER = 1.0
"""How long the service takes to say that it is overloaded (in seconds)."""
BACK_OFF = 0.5
"""The first pause of every layer, doubled from attempt to attempt (in seconds)."""

ABOUT = f"""A service fails with a connection error after {FAILS_AFTER:g} s, always.
Above it stand, from the inside, its client's own loop, a Runnable with `.with_retry()`,
a subgraph's node and the node around the subgraph, both with a `RetryPolicy`; every
layer pauses {BACK_OFF:g} s, then twice as long each time. *64*: three layers retry
three times each (four attempts), and the client does not. *81*: all four layers make
three attempts, as their defaults are. The caller has {BUDGET:g} s: as a time-out of
every attempt of either node (LangGraph's `timeout=`, started anew by each retry), as
`asyncio.wait_for` around the run, or as the run's deadline with a fallback. The last
keeps a fifth of its time for the fallback, which takes none here, and starts no attempt
that would begin in it. That costs nothing here, as the service never recovers; if it
did in those seconds, only `wait_for` would reach it. No other row has a fallback.
Whatever waits ends as soon as it is cancelled."""

STACKS = {"64": (1, 4), "81": (3, 3)}
"""Attempts of the client and of each of the three layers above it."""


class State(TypedDict, total=False):
    answer: str


@dataclass
class Service:
    """Is overloaded, and counts when it was asked."""

    asked: list[float] = field(default_factory=list)

    async def ask(self, _: State) -> State:
        self.asked.append(_clock.now())
        await asyncio.sleep(FAILS_AFTER)
        msg = "the service is overloaded"
        raise ConnectionError(msg)


def client(service: Service, attempts: int) -> Any:
    """Return a function that asks the service as an SDK does: again, after a pause."""

    async def ask(state: State) -> State:
        for attempt in range(1, attempts):
            try:
                return await service.ask(state)
            except ConnectionError:
                await asyncio.sleep(BACK_OFF * 2 ** (attempt - 1))
        return await service.ask(state)

    return ask


def layered(kind: Any, service: Service, stack: str, timeout: float | None) -> Any:
    """Return the four layers as a graph that is not compiled yet."""
    own, attempts = STACKS[stack]
    policy = RetryPolicy(max_attempts=attempts, initial_interval=BACK_OFF, jitter=False)
    again = RunnableLambda(client(service, own)).with_retry(
        stop_after_attempt=attempts,
        exponential_jitter_params={"initial": BACK_OFF, "jitter": 0.0},
    )
    inner = PlainGraph(State)
    inner.add_node("look_up", again, retry_policy=policy, timeout=timeout)
    inner.add_edge(START, "look_up")
    outer = kind(State)
    outer.add_node("research", inner.compile(), retry_policy=policy, timeout=timeout)
    outer.add_edge(START, "research")
    return outer


async def degrade(_: State) -> State:
    return {"answer": "the service is overloaded, here is what is known"}


async def _unlimited(service: Service, stack: str) -> Ended:
    return await ended(layered(PlainGraph, service, stack, None).compile().ainvoke({}))


async def _layer_by_layer(service: Service, stack: str) -> Ended:
    graph = layered(PlainGraph, service, stack, BUDGET).compile()
    return await ended(graph.ainvoke({}))


async def _around(service: Service, stack: str) -> Ended:
    graph = layered(PlainGraph, service, stack, None).compile()
    return await ended(asyncio.wait_for(graph.ainvoke({}), BUDGET))


async def _one_deadline(service: Service, stack: str) -> Ended:
    builder = layered(BoundedGraph, service, stack, None)
    graph = builder.compile(deadline=BUDGET, fallback=degrade)
    return await ended(graph.ainvoke({}))


LIMITS = {
    "none": _unlimited,
    f"{BUDGET:g} s for each attempt of each node": _layer_by_layer,
    f"`asyncio.wait_for`, {BUDGET:g} s": _around,
    f"one deadline, {BUDGET:g} s, and a fallback": _one_deadline,
}


def measure(quick: bool) -> list[Sheet]:
    """Count the attempts under each limit; being quick makes no difference."""
    rows = [_row(stack, limit) for stack in STACKS for limit in LIMITS]
    columns = {
        "attempts by design": "",
        "limit": "",
        "attempts": ",",
        f"attempts after {BUDGET:g} s": ",",
        "seconds": ",.1f",
        "the caller gets": "",
    }
    return [Sheet("Four layers of retries, one deadline", ABOUT, columns, rows)]


def _row(stack: str, limit: str) -> dict[str, Value]:
    service = Service()
    began = 0.0

    async def main() -> Ended:
        nonlocal began
        began = _clock.now()
        result = await LIMITS[limit](service, stack)
        await asyncio.sleep(1_000)  # whatever goes on behind the caller's back
        return result

    end = run_virtual(main())
    late = [at for at in service.asked if at - began > BUDGET]
    return {
        "attempts by design": stack,
        "limit": limit,
        "attempts": len(service.asked),
        f"attempts after {BUDGET:g} s": len(late),
        "seconds": round(end.seconds, 3),
        "the caller gets": end.error or f"{end.values['answer']!r}",
    }
