"""One step of a run, and how it is cut: cancel, join with a bound, give up.

A cut only ever does three things to a step: it writes down the cause, which fences the
step's effects off from then on; it asks the work to stop; and it sees to it that the
guard waiting for the work waits no longer than the grace. The rest is the guard's.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from asyncio import tasks as asyncio_tasks
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, Protocol, TypeVar

from . import _clock
from ._scope import Scope
from ._threads import Bell, running_loop
from .errors import Cause, DeadlineExceeded, RunCut
from .report import StepKind

_NOTHING_TO_WAIT_FOR = nullcontext()
"""Async steps write in their run's loop, where nothing comes in between."""


class Cuttable(Protocol):
    """A run inside a step, which is asked to end before the step is interrupted."""

    def cut(self, cause: Cause, step: str | None = None) -> None:
        """Cut what the run is doing."""
        ...

    def longest_hold(self) -> float:
        """Return how long critical sections in the run may take (in seconds)."""
        ...


_changing = Lock()
"""Held for an instant by who changes what several threads may change of a step."""

T = TypeVar("T")


def _without(things: tuple[T, ...], thing: T) -> tuple[T, ...]:
    """Return `things` less one `thing`."""
    at = things.index(thing)
    return things[:at] + things[at + 1 :]


class Step(Scope, ABC):
    """A node, task or retry loop that a run is executing."""

    __slots__ = (
        "attempts",
        "began",
        "call",
        "counts",
        "cut_at",
        "ended",
        "error",
        "given_up",
        "grace",
        "had_nested",
        "holds",
        "kind",
        "late",
        "limit",
        "name",
        "needs",
        "nested",
        "number",
        "reached",
        "refused",
        "shadow",
        "superstep",
        "told",
        "waits",
        "writing",
    )

    def __init__(
        self, parent: Scope, name: str, kind: StepKind, superstep: int, grace: float
    ) -> None:
        self.parent = parent
        self.cut: Cause | None = None
        self.run: Any = parent.run
        self.at = parent.at
        self._binding = parent.binding
        self.name = name
        self.kind: StepKind = kind
        self.superstep = superstep
        self.grace = grace
        self.limit: float | None = None
        self.began = _clock.now()
        self.ended: float | None = None
        self.cut_at = 0.0
        self.waits = 0.0
        self.had_nested = False
        self.late = self.told = False
        self.counts: dict[Any, int] | None = None
        # For the report.
        self.number = self.attempts = 0
        self.needs = 0.0
        self.refused = self.given_up = self.shadow = False
        self.error: str | None = None
        self.call: Any = None  # the model's, as callbacks tell of it
        # Most steps never need them; a tuple is swapped, as threads may look at it.
        self.holds: tuple[float, ...] = ()
        self.writing: AbstractContextManager[Any] = _NOTHING_TO_WAIT_FOR
        self.nested: tuple[Cuttable, ...] = ()
        self.reached: Any = None  # the channels of a run inside that could not end

    @property
    def step(self) -> Any:
        """The step itself."""
        return self

    def tighten(self, seconds: float | None) -> None:
        """Give the step a limit of its own, counted from its start."""
        if seconds is not None and self.began + seconds < self.at:
            self.limit = seconds
            self.at = self.began + seconds
            self._binding = None

    def limit_to(self, seconds: float) -> None:
        """Give the step `seconds` from now on, whatever encloses it."""
        self.limit = seconds
        self.at = _clock.now() + seconds
        self._binding = None

    def extend(self, parent: Scope, grace: float) -> None:
        """Follow `parent` to its later deadline (a step that runs in the reserve)."""
        own = math.inf if self.limit is None else self.began + self.limit
        self.at = min(parent.at, own)
        self._binding = None if own < parent.at else parent.binding
        self.grace = grace

    def exceeded(
        self, remaining: float, needed: float | None, cut: Cause | None
    ) -> DeadlineExceeded:
        """Return the error for this step's own limit."""
        window = needed is not None and 0 < remaining < needed
        return DeadlineExceeded(
            cause="window" if window else "step",
            step=self.name,
            budget=self.limit,
            elapsed=_clock.now() - self.began,
            remaining=remaining,
            needed=needed or None,
        )

    def nth(self, what: Any) -> int:
        """Return how many like `what` there were before in this attempt; count it."""
        counts = self.counts = self.counts or {}
        counts[what] = counts.get(what, -1) + 1
        return counts[what]

    # What `shield` does to a step.

    def hold(self, seconds: float) -> float:
        """Make a cut wait until `let_go`, at most `seconds`."""
        with _changing:
            self.holds = (*self.holds, seconds)
        return seconds

    def let_go(self, held: float) -> DeadlineExceeded | None:
        """End a `hold`; return the error to raise if a cut was waiting for it."""
        with _changing:
            self.holds = _without(self.holds, held)
        if self.cut is None or self.holds:
            return None
        self._released()
        return RunCut(cause=self.cut, step=self.name, elapsed=_clock.now() - self.began)

    def _released(self) -> None:
        """React to the end of the last hold of a step that was cut meanwhile."""

    def longest_hold(self) -> float:
        """Return how long a cut has to wait for critical sections (in seconds)."""
        if not self.holds and not self.nested:
            return 0.0
        inside = (run.longest_hold() for run in self.nested)
        return max((*self.holds, *inside), default=0.0)

    def patience(self) -> float:
        """Return how long the step may resist a cut before it is given up."""
        return self.longest_hold() + self.grace

    def nested_ended(self) -> None:
        """React to the end of the last run inside the step."""

    # What a run does to a step.

    def entered(self, run: Cuttable) -> None:
        """Have `run`, which begins inside the step, cut with it."""
        with _changing:
            self.nested = (*self.nested, run)

    def left(self, run: Cuttable) -> None:
        """Forget a run that has ended."""
        with _changing:
            self.nested = _without(self.nested, run)
        if not self.nested:
            self.nested_ended()

    def stop(self, cause: Cause) -> None:
        """Cut the step: note why, and ask its work to stop."""
        if self.cut is None and self.ended is None:
            self.cut_at = _clock.now()
            self.waits = self.longest_hold()
            self.had_nested = bool(self.nested)
            self.cut = cause
            for run in self.nested:
                run.cut(cause)
            self.interrupt()

    @abstractmethod
    def interrupt(self) -> None:
        """Ask the work to stop, and see to it that its guard does not wait long."""

    def overrun(self) -> float:
        """Return how far the step is past its deadline or its cut (in seconds)."""
        since = self.cut_at if self.cut is not None else self.at
        return max(_clock.now() - min(since, self.at), 0.0)


class SyncStep(Step):
    """A step whose body runs in a thread, with a guard waiting for it in another."""

    __slots__ = ("bell", "handing_over_from")

    def __init__(
        self, parent: Scope, name: str, kind: StepKind, superstep: int, grace: float
    ) -> None:
        super().__init__(parent, name, kind, superstep, grace)
        self.bell = Bell()
        self.handing_over_from: float | None = None
        self.writing = Lock()

    def patience(self) -> float:
        """Return how long the step may resist: a thread is given up at once.

        Except for critical sections, for runs inside it, which have been told to end
        and hand over what they have, and where it was cut before its time.
        """
        # A step that still had time is cut for the sake of another one: it may end.
        early = self.cut not in (None, "cancelled") and self.cut_at < self.at
        grace = self.grace if self.nested or early else 0.0
        if self.handing_over_from is not None:
            since = self.handing_over_from - self.cut_at
            grace = max(grace, since + HANDING_OVER)
        if self.nested:  # which may be held: they give up before this one does
            return self.longest_hold() + grace
        return max(self.longest_hold(), grace)

    def interrupt(self) -> None:
        """Wake the guard."""
        self.bell.ring()  # a thread cannot be interrupted, only be waited for less

    def _released(self) -> None:
        self.handing_over_from = _clock.now()
        self.bell.ring()

    def nested_ended(self) -> None:
        """Have the guard wait no longer than it takes to pass on what they returned."""
        self.handing_over_from = _clock.now()
        if self.cut is not None:
            self.bell.ring()


class Inside:
    """A step inside another one, for that one to cut it first."""

    __slots__ = ("_step",)

    def __init__(self, step: Step) -> None:
        self._step = step

    def cut(self, cause: Cause, step: str | None = None) -> None:
        """Stop the step."""
        self._step.stop(cause)

    def longest_hold(self) -> float:
        """Return how long critical sections in the step may take (in seconds)."""
        return self._step.longest_hold()


HANDING_OVER = 0.1
"""What a body may take to return what it was waited for (in seconds): it needs no
time of its own, but may have to go through threads and engines."""

_FOR_NESTED = 0.9
"""Share of the grace that runs inside a step have to end by themselves."""

_PASSES = 20


class AsyncStep(Step):
    """A step whose body is a task, with a guard waiting for it in another."""

    __slots__ = ("asked", "returned_at", "settled", "task", "timer")

    def __init__(
        self, parent: Scope, name: str, kind: StepKind, superstep: int, grace: float
    ) -> None:
        super().__init__(parent, name, kind, superstep, grace)
        self.asked = False
        self.returned_at = math.inf
        self.task: asyncio.Task[Any] | None = None
        self.settled: asyncio.Future[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def in_time(self) -> bool:
        """Return whether the body ended before its time was up and before any cut.

        Its guard may come late to that, where something else blocks the event loop.
        """
        return self.returned_at <= self.at

    def returns(self) -> None:
        """Note that the body has ended, and when, unless it was cut before."""
        if self.cut is None:
            self.returned_at = _clock.now()
        self.settle()

    def settle(self, _: object = None) -> None:
        """Let the guard go on: the task has ended, or it is given up."""
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(None)

    def later(self, seconds: float, action: Any) -> None:
        """Run `action` in `seconds`, in place of whatever was planned."""
        if self.timer is not None:
            self.timer.cancel()
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(max(seconds, 0.0), action)

    def interrupt(self) -> None:
        """Ask the work to stop, of a step that was cut already."""
        self._in_loop(self._interrupt_here)

    def _in_loop(self, action: Callable[[], None]) -> None:
        """Call `action` in the step's loop: a cut may come from any thread."""
        if self.task is None:
            return
        loop = self.task.get_loop()
        if running_loop() is loop:
            action()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(action)

    def _interrupt_here(self) -> None:
        if self.task is not None and self.task.done():
            # It had ended before anybody could cut it.
            self.late = not self.in_time()
        elif self.nested:
            # The runs inside have been told; what they return in time is kept.
            self.later(self.waits + self.grace * _FOR_NESTED, self._cancel_late)
        elif self.holds:
            self.later(self.waits, self._cancel)
        else:
            self._cancel()

    def _released(self) -> None:
        self._in_loop(self._cancel)

    def _cancel(self) -> None:
        self._ask(self.grace)

    def _cancel_late(self) -> None:
        self._ask(self.grace * (1 - _FOR_NESTED))

    def nested_ended(self) -> None:
        """Cancel the task if it has more to wait for than what was inside the step."""
        if self.cut is not None and not self.holds:
            self._in_loop(self._cancel_soon)

    def _cancel_soon(self) -> None:
        if self.task is not None and not self.task.done() and not self.asked:
            until = self.cut_at + self.waits + self.grace * _FOR_NESTED
            self.later(min(HANDING_OVER, until - _clock.now()), self._cancel)

    def _ask(self, patience: float) -> None:
        if self.task is not None and not self.task.done():
            self.cancel_once()
            self.later(patience, self._give_up)

    def _give_up(self, passes: int = _PASSES) -> None:
        """Wait no longer; work that is about to end gets some passes of the loop.

        A loop that was blocked has everything to do at once, this timer included.
        """
        if passes and self.task is not None and not self.task.done():
            asyncio.get_running_loop().call_soon(self._give_up, passes - 1)
        else:
            self.settle()

    def cancel_once(self, *reason: Any) -> None:
        """Cancel the task, unless that has been done: twice breaks its clean-up."""
        if not self.asked and self.task is not None:
            self.asked = True
            # A task that has not begun yet will not settle the step by itself.
            self.task.add_done_callback(self.settle)
            self.task.cancel(*reason)

    def expire(self) -> None:
        """Cut the step for having used up its own limit."""
        self.stop("step")


# Given-up tasks are kept here: one that is collected while pending is closed by the
# collector, which runs its clean-up at a time when its loop may be gone.
_given_up: set[asyncio.Task[Any]] = set()


def disown(task: asyncio.Task[Any], on_end: Callable[[float], None]) -> None:
    """Leave a task behind that was given up; `on_end` is called with when it ends.

    `asyncio.run` waits for every task it knows of; one that swallows its cancellation
    for ever would hold it up for ever.
    """

    def ended(done: asyncio.Task[Any]) -> None:
        _given_up.discard(done)
        on_end(_clock.now())
        if not done.cancelled():
            done.exception()  # seen: nobody else will ask for it

    _given_up.add(task)
    task.add_done_callback(ended)
    asyncio_tasks._unregister_task(task)  # noqa: SLF001
