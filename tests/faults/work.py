"""Nodes of random graphs: each takes a second, notes that, and fails if it is told."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from .bench import nap, union

HOUR = 3600.0


def newest(old: str, new: str) -> str:
    """Return the newer one: subgraphs side by side hand back what they got."""
    return new


class State(TypedDict, total=False):
    """What the graphs keep: who has finished, turn by turn."""

    log: Annotated[list[str], operator.add]
    found: Annotated[list[str], union]
    turn: Annotated[str, newest]


class Inner(TypedDict, total=False):
    """What a subgraph shares with the graph around it, or is sent."""

    found: Annotated[list[str], union]
    worker: int
    turn: Annotated[str, newest]


@dataclass
class Work:
    """What the nodes of a graph do in the present turn, and what they did."""

    faults: dict[str, str] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    finished: list[tuple[float, str]] = field(default_factory=list)
    """What returned, and when (in the loop's time)."""
    attempts: dict[str, int] = field(default_factory=dict)
    """Of nodes that are retried, by turn."""
    released: bool = False

    def node(self, name: str, output: Callable[[Any, str], Any] | None = None) -> Any:
        """Return the node `name`."""
        output = output or (lambda _, said: {"log": [said]})

        async def work(state: Any) -> Any:
            said = f"{name}:{state['worker']}" if "worker" in state else name
            self.started.append(said)
            await asyncio.sleep(1)
            # Of workers that were sent for, one fails.
            if state.get("worker", 0) == 0 and (fault := self.faults.get(name)):
                await FAULTS[fault](self)
            self.finished.append((asyncio.get_running_loop().time(), said))
            return output(state, said)

        work.__name__ = name
        return work


async def _hang(work: Work) -> None:
    await asyncio.sleep(HOUR)


async def _swallow_once(work: Work) -> None:
    await nap(HOUR)


async def _swallow_for_ever(work: Work) -> None:
    while not work.released:
        await nap(7)


async def _clean_up(seconds: float) -> None:
    try:
        await asyncio.sleep(HOUR)
    finally:
        await asyncio.sleep(seconds)


async def _clean_up_slowly(work: Work) -> None:
    await _clean_up(30)


async def _clean_up_in_time(work: Work) -> None:
    await _clean_up(0.1)


async def _return_after_clean_up(work: Work) -> None:
    await nap(HOUR)
    await asyncio.sleep(0.1)


async def _fail_while_cut(work: Work) -> None:
    try:
        await asyncio.sleep(HOUR)
    except asyncio.CancelledError:
        msg = "while being cut"
        raise ValueError(msg) from None


async def _take_long(work: Work) -> None:
    await asyncio.sleep(13.5)


FAULTS: dict[str, Callable[[Work], Any]] = {
    "hang": _hang,
    "swallow once": _swallow_once,
    "swallow for ever": _swallow_for_ever,
    "slow clean-up": _clean_up_slowly,
    "clean-up in time": _clean_up_in_time,
    "return after clean-up": _return_after_clean_up,
    "exception while being cut": _fail_while_cut,
    "take long": _take_long,
}
