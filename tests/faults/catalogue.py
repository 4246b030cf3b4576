"""The table: what fails, what is to come of it, and which combinations there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from harness import ALL, ASYNC, SYNC, How
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from . import bodies
from .driving import Leaving
from .places import PLACES, Place
from .surroundings import FailingSaver, FailingStore, SlowSaver

Ending = Literal[
    "answered", "fails", "raised", "stored", "unsaved", "left", "late", "resumed"
]
"""How a run ends: with the fallback's answer; the fallback's own error; the error of
what failed; with the fallback's answer, which could not be stored; with all its work
done, which could not be stored; its caller has left; as late as it was blocked; in
another process."""


@dataclass(frozen=True)
class Fault:
    """What fails and what comes of it."""

    name: str
    sync: Any
    asynchronous: Any = None
    ending: Ending = "answered"
    saver: type[Any] = InMemorySaver
    store: type[Any] = InMemoryStore
    leaving: Leaving | None = None
    resists: bool = False
    """Whether an async body outlives its cancellation, for the whole grace."""
    returns: bool = False
    """Whether an async body returns in its grace: what it returns is kept."""
    goes_on: bool = False
    """Whether the body then tries what a straggler must not do."""
    observed: bool = False
    killed: Literal["inside", "between"] | None = None


JUMPS = {days: bodies.jump(days) for days in (1, -1)}

FAULTS = (
    Fault("hang", bodies.hang, bodies.ahang),
    Fault(
        "swallow once",
        bodies.swallow_once,
        bodies.aswallow_once,
        returns=True,
        goes_on=True,
    ),
    Fault(
        "swallow for ever",
        bodies.swallow_for_ever,
        bodies.aswallow_for_ever,
        resists=True,
        goes_on=True,
    ),
    Fault(
        "slow clean-up",
        bodies.clean_up_slowly,
        bodies.aclean_up_slowly,
        resists=True,
        goes_on=True,
    ),
    Fault("blocking sleep", bodies.blocking_sleep, goes_on=True),
    Fault("blocking C call", bodies.blocking_c_call, goes_on=True),
    Fault("busy Python loop", bodies.busy_loop, goes_on=True),
    Fault("exception while being cut", bodies.fail_while_cut, bodies.afail_while_cut),
    Fault("exception in the fallback", bodies.hang, bodies.ahang, ending="fails"),
    Fault("observer raising", bodies.hang, bodies.ahang, observed=True),
    Fault(
        "checkpointer slow",
        bodies.hang,
        bodies.ahang,
        ending="stored",
        saver=SlowSaver,
    ),
    Fault(
        "checkpointer slow at the end",
        bodies.touch,
        bodies.atouch,
        ending="unsaved",
        saver=SlowSaver,
    ),
    Fault(
        "checkpointer failing",
        bodies.hang,
        bodies.ahang,
        ending="raised",
        saver=FailingSaver,
    ),
    Fault(
        "store failing",
        bodies.use_store,
        bodies.ause_store,
        store=FailingStore,
    ),
    Fault(
        "SIGKILL inside a superstep",
        bodies.die,
        bodies.adie,
        ending="resumed",
        killed="inside",
    ),
    Fault(
        "SIGKILL between supersteps",
        bodies.touch,
        bodies.atouch,
        ending="resumed",
        killed="between",
    ),
    Fault("clock jumping forward", *JUMPS[1]),
    Fault("clock jumping back", *JUMPS[-1]),
    Fault(
        "cancelled caller",
        bodies.hang,
        bodies.ahang,
        ending="left",
        leaving="cancelled",
    ),
    Fault(
        "cancelled twice",
        bodies.clean_up,
        bodies.aclean_up,
        ending="left",
        leaving="cancelled twice",
    ),
    Fault(
        "closed generator",
        bodies.write_and_hang,
        bodies.awrite_and_hang,
        ending="left",
        leaving="closed",
    ),
    Fault("event loop blocked", None, bodies.block_the_loop, ending="late"),
)


@dataclass(frozen=True)
class Cell:
    """One combination."""

    fault: Fault
    place: Place
    how: How

    def __str__(self) -> str:
        return f"{self.fault.name}/{self.place.name}/{self.how}"

    @property
    def virtual(self) -> bool:
        """Whether it is run in virtual time."""
        return self.how in ASYNC and self.fault.killed is None

    @property
    def reason_against(self) -> str | None:
        """Why there is no such cell."""
        if self.fault.leaving == "closed" and self.how in ("invoke", "ainvoke"):
            return "there is no generator to close"
        if self.fault.ending == "late" and self.how in SYNC:
            return "there is no event loop to block"
        return None


def every_combination() -> Iterator[Cell]:
    """Yield the whole cross product."""
    for fault in FAULTS:
        for place in PLACES:
            for how in ALL:
                yield Cell(fault, place, how)


CELLS = [cell for cell in every_combination() if cell.reason_against is None]
IMPOSSIBLE = {
    str(cell): reason
    for cell in every_combination()
    if (reason := cell.reason_against) is not None
}
KNOWN: dict[tuple[str, str], str] = {}
"""Cells that fail, by fault and place, with the diagnosis."""


def in_slice(cell: Cell) -> bool:
    """Return whether an ordinary test run has `cell`.

    It has all that run in virtual time. Of those in real time it has every fault in two
    of the eight places, so that every place has several, each driven in another way.
    """
    if cell.virtual:
        return True
    row, column = FAULTS.index(cell.fault), PLACES.index(cell.place)
    if (row + column) % 4:
        return False
    hows = [
        other.how
        for other in CELLS
        if (other.fault, other.place) == (cell.fault, cell.place) and not other.virtual
    ]
    return hows[(row + column) // 4 % len(hows)] == cell.how
