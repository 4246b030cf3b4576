r"""One run: its deadline, its phases, and the steps it is executing.

A run works until its work deadline. Then it is cut: what it is doing is stopped, and,
where there is a fallback, that alone goes on until the deadline.

    working --cut--> falling back --deadline--> over
       \______________cut, no fallback_________/
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from threading import Lock
from typing import Any, Literal
from uuid import uuid4

from . import _clock
from ._alarm import Alarm
from ._backlog import Backlog
from ._cut import Step
from ._journal import Journal
from ._ledger import Ledger
from ._record import Record
from ._saved import Saved
from ._scope import Scope, current
from ._stragglers import name_blockers
from ._threads import Pool, running_loop
from .errors import Cause, DeadlineExceeded, RunCut
from .events import RunDetails
from .policy import DeadlinePolicy
from .report import Straggler

logger = logging.getLogger("langgraph_deadline")

Mode = Literal["fallback", "raise", "return"]
Phase = Literal["working", "falling back", "over"]

_deciding = Lock()
"""Held for an instant by who takes a step that only one of several threads may take."""


class RunScope(Scope):
    """The scope of a run: its deadline is the one that applies at present."""

    __slots__ = ()

    def leave_step(self) -> None:
        """Have the run's engine belong to no step, whatever the run is nested in."""
        self._step = None

    def exceeded(
        self, remaining: float, needed: float | None, cut: Cause | None
    ) -> DeadlineExceeded:
        """Return the error for the run's deadline."""
        run: Run = self.run
        inside = current.get()
        step = inside.step.name if inside is not None and inside.step else None
        if needed is not None and 0 < remaining < needed:
            return DeadlineExceeded(
                cause="window", step=step, remaining=remaining, needed=needed
            )
        return run.error(step=step, cause=cut)


class Run:
    """The state of one run in this process."""

    __slots__ = (
        "_details",
        "_pool",
        "_shares",
        "active",
        "alarm",
        "alone",
        "answered",
        "asked_budget",
        "asked_until",
        "backlog",
        "budget",
        "cause",
        "channels",
        "claimed",
        "controlled",
        "custom_stream",
        "cut_step",
        "cut_superstep",
        "deadline",
        "drains",
        "fallback",
        "grace",
        "implicit",
        "interrupted",
        "journal",
        "last",
        "ledger",
        "mode",
        "name",
        "nth",
        "on_change",
        "phase",
        "policy",
        "reserve",
        "saved",
        "scope",
        "spent",
        "started",
        "started_wall",
        "stragglers",
        "touched",
        "unknown",
        "work",
    )

    def __init__(
        self,
        policy: DeadlinePolicy,
        *,
        parent: Scope | None,
        budget: float | None,
        fallback: str | None = None,
        name: str = "LangGraph",
        implicit: bool = False,
        controlled: bool = False,
    ) -> None:
        self.policy = policy
        self.name = name
        self.fallback = fallback
        self.implicit = implicit
        self.alone = False  # of a call outside of any graph
        self.nth = 0  # in the step around it
        self.controlled = controlled
        self.mode: Mode = policy.on_exceeded or (
            "fallback" if fallback is not None else "raise"
        )
        self.started = _clock.now()
        self.started_wall = _clock.wall()
        self.scope = RunScope(
            parent, math.inf if budget is None else self.started + budget
        )
        self.scope.run = self
        self.scope.leave_step()
        self.phase: Phase = "working"
        self.asked_budget: float | None = None
        self.spent = 0.0
        self.set_deadline(self.scope.at)

        self.cause: Cause | None = None
        self.cut_step: str | None = None
        self.cut_superstep: int | None = None
        # It drains: it is cut, but for what was active when a limit was reached.
        self.claimed = self.touched = self.drains = self.answered = False
        self.active: dict[Step, None] = {}
        # A graph inside without a deadline of its own writes into the same journal.
        shared = implicit and parent is not None
        self.journal: Journal | None = parent.run.journal if shared and parent else None
        self.last: Any = None
        self._details: RunDetails | None = None
        self.ledger = _ledger_for(policy, parent)
        # Whatever runs on, it is the outermost run that reports it.
        self.stragglers: list[Straggler] = (
            parent.run.stragglers if implicit and parent is not None else []
        )
        # Tool calls that were cut after they had started, in whatever run inside.
        self.unknown: tuple[Any, ...] = ()
        self.channels: Any = None
        self.interrupted = False
        self.custom_stream = False
        self.backlog: Backlog | None = None

        self.saved = Saved()

        # A run inside a step uses the threads of the run around it.
        self._shares = implicit and parent is not None
        self._pool: Pool | None = parent.run.pool() if implicit and parent else None
        self.alarm: Alarm | None = None
        self.on_change: Callable[[], None] | None = None

    # Time.

    @property
    def bounded(self) -> bool:
        """Whether there is a deadline at all."""
        return self.deadline != math.inf

    @property
    def engine_patience(self) -> float:
        """What the engine may take to end after the last step (in seconds).

        It needs a millisecond or two, but a machine may be busy, and an engine that is
        left behind in a checkpointer uses it while its owner may be closing it.
        """
        return max(ENGINE_PATIENCE, self.policy.cancel_grace)

    @property
    def guarded(self) -> bool:
        """Whether a step may be cut, by the clock, by hand or by a limit."""
        policy = self.policy
        return policy.enforce and (
            self.bounded or self.controlled or policy.limits is not None
        )

    def set_deadline(self, at: float) -> None:
        """Place the deadline, and with it the reserve, which starts before it."""
        self.deadline = self.asked_until = at
        if at == math.inf:
            self.budget: float | None = None
            self.reserve = 0.0
        else:
            # As asked, where nothing tightened it: a difference would not be exact.
            asked = self.asked_budget or self.policy.seconds
            exact = asked is not None and at == self.started + asked - self.spent
            budget = at - self.started + self.spent
            self.budget = asked if exact else budget
            wanted = self.policy.reserve_of(budget, fallback=self.fallback is not None)
            self.reserve = wanted if self.mode == "fallback" else 0.0
        self.work = max(self.started, at - self.reserve)
        # What resists must leave the fallback some time.
        self.grace = self.policy.cancel_grace
        if self.reserve > 0:
            self.grace = min(self.grace, self.reserve / 2)
        self.scope.at = self.work if self.phase == "working" else at
        if not self.policy.enforce:
            self.scope.at = math.inf  # nothing is cut, and nothing says it would be

    def resume(self, record: Record | None, spent: float) -> None:
        """Go on with what was left of a run that began before."""
        self.saved.record = record
        self.spent = spent
        if record is not None and record.resumable:
            self.started_wall = record.started
            if self.asked_budget is None and record.budget is not None:
                self.asked_budget = record.budget
        if record is not None and record.outcome == "interrupted" and record.cause:
            # It was the fallback that asked: it goes on as the fallback.
            self.cause, self.phase = record.cause, "falling back"
            self.claimed = self.touched = True
            self.cut_superstep = -2
        budget = self.asked_budget or self.policy.seconds
        if budget is not None:
            parent = self.scope.parent
            at = self.started + budget - spent
            self.set_deadline(at if parent is None else min(at, parent.at))
            self._rearm()

    def error(
        self, step: str | None = None, cause: Cause | None = None
    ) -> DeadlineExceeded:
        """Return the error that ends this run."""
        now = _clock.now()
        cause, step = cause or self.cause or "deadline", step or self.cut_step
        limit = self.ledger.refusal(cause) if self.ledger is not None else None
        return RunCut(
            limit.message(step) if limit is not None else None,
            cause=cause,
            step=step,
            budget=self.budget,
            elapsed=now - self.started + self.spent,
            remaining=self.deadline - now if self.bounded else None,
        )

    def details(self) -> RunDetails:
        """Return what is known of the run from its beginning, for its events."""
        if self._details is None:
            step = self.scope.parent.step if self.scope.parent is not None else None
            around = self.journal.around if self.journal is not None else None
            self._details = RunDetails(
                id=uuid4().hex,
                parent=around.run.details().id if around is not None else None,
                inside=step.number if step is not None else None,
                name=self.name,
                started=_clock.wall() - (_clock.now() - self.started),
                budget=self.budget,
                reserve=self.reserve,
                enforced=self.policy.enforce,
            )
        return self._details

    # Steps.

    def leads_from_fallback(self, step: Step) -> bool:
        """Return whether `step` is what the fallback leads to."""
        # The superstep of the cut is the last one with ordinary steps; the one after it
        # holds only the fallback, for the edges of all others have been dropped.
        if self.cut_superstep is None:
            self.cut_superstep = step.superstep
        return step.superstep > self.cut_superstep

    def run_dry(self, cause: Cause, node: Step | None) -> None:
        """Cut the run because of what `node` asked for."""
        # What has called a task waits for it: it cannot end without it.
        alone = node if node is not None and node.kind != "task" else None
        self.cut(cause, node.name if node is not None else None, alone)

    def drained(self) -> None:
        """Note that nothing is active any more that was so when a limit was reached."""
        if self.drains:
            self.drains = False
            self._rearm()

    def leave(self, step: Step) -> None:
        """Take `step` out of the active ones."""
        step.ended = _clock.now()
        self.active.pop(step, None)
        if self.phase == "over" and not self.active:
            self._nothing_resists()
        if step.kind == "fallback" and step.cut is None:
            self.answered = True
        if self.journal is not None:
            self.journal.left(step)

    def outermost(self) -> Run:
        """Return the run that reports what happens in this one."""
        run = self
        while run.implicit and run.scope.parent is not None:
            run = run.scope.parent.run
        return run

    def note_unknown(self, call: Any) -> None:
        """Note a tool call whose outcome is unknown."""
        run = self.outermost()
        with _deciding:
            run.unknown = (*run.unknown, call)

    def cut_names(self) -> tuple[str, ...]:
        """Return the names of the steps of this run that were cut or refused."""
        steps = self.journal.steps if self.journal is not None else ()
        return tuple(
            dict.fromkeys(
                step.name
                for step in steps
                if isinstance(step, Step) and step.run is self and step.cut is not None
            )
        )

    def claim(self) -> bool:
        """Return whether the caller is the one to write the route to the fallback."""
        # Parallel sync nodes are cut in threads of their own.
        with _deciding:
            first, self.claimed = not self.claimed, True
        return first

    def pool(self) -> Pool:
        """Return the run's threads."""
        if self._pool is None:
            self._pool = Pool(f"langgraph-deadline {self.name}")
        return self._pool

    # The cut.

    def cut(
        self, cause: Cause, step: str | None = None, node: Step | None = None
    ) -> None:
        """End the work: stop what is active, and leave the rest to the fallback.

        May be called from any thread.

        Args:
            cause: Why.
            step: Where.
            node: What is stopped alone, for a limit. What is active beside it is within
                the limits, and may end by itself, up to the work deadline.
        """
        if not self.policy.enforce or (self.phase != "working" and not self.drains):
            return
        loop = self.alarm.loop if self.alarm is not None else None
        if loop is not None and running_loop() is not loop:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.cut, cause, step, node)
            return
        spare = self.fallback if self.mode == "fallback" else None
        if self.phase != "working":
            self.drains = node is not None
            self._stop_all(spare, node)
            self._rearm()
            return
        # Parallel sync nodes find in threads of their own that time is up.
        with _deciding:
            if self.phase != "working":
                return
            self.cause = cause
            self.cut_step = step
            self.drains = node is not None
            self.phase = "falling back" if self.mode == "fallback" else "over"
        self._note_cut()
        if self.phase == "over" and node is None:
            # Nothing is left to wait for, when the cut came by hand or from a step.
            self.deadline = min(self.deadline, _clock.now())
        self.scope.at = self.deadline
        self._stop_all(spare, node)
        self._rearm()

    def ends_with_error_of(self, step: Step, cause: Cause) -> None:
        """Note that the run ends because `step` has no time left, with its error."""
        with _deciding:
            self.cause = self.cause or cause
            self.cut_step = self.cut_step or step.name
        self.touched = True
        self._note_cut()

    def _note_cut(self) -> None:
        if self.journal is not None and not self.implicit:
            active = (step.name for step in list(self.active))
            where = self.cut_step or next(active, None)
            self.journal.cut(self.cause or "deadline", where)

    def end(self, cause: Cause = "deadline") -> None:
        """End everything, the fallback included."""
        self.phase = "over"
        self.cause = self.cause or cause
        self.touched = True
        self._note_cut()
        self._stop_all(spare=None)

    def close(self) -> None:
        """Let nothing start any more, for the caller has left."""
        touched = self.touched
        self.end(self.cause or "cancelled")
        if self.interrupted and not touched:
            # A run that waits for a person has nothing to be cancelled.
            self.touched, self.cause = False, None

    def _stop_all(self, spare: str | None, only: Step | None = None) -> None:
        for step in list(self.active):
            if step.name == spare and step.kind == "node":
                # The fallback, at work as an ordinary node: it goes on as the fallback.
                step.kind = "fallback"
                if self.journal is not None:
                    self.journal.fell_back(step)
                step.extend(self.scope, self.policy.cancel_grace)
                self.cut_superstep = step.superstep
            elif spare is not None and _inside(step, "fallback"):
                step.extend(step.parent or self.scope, step.grace)
            elif only is not None and step is not only:
                continue
            elif step.cut is None and step.kind != "compensation":
                self.stop(step)

    def stop(self, step: Step) -> None:
        """Stop one step of a run that was cut."""
        self.touched = True
        if self.cut_superstep is None and step.kind in ("node", "otherwise"):
            self.cut_superstep = step.superstep
        if self.cut_step is None:
            self.cut_step = step.name
        step.stop(self.cause or "deadline")

    def fallback_is_active(self) -> bool:
        """Whether the fallback is at work, as it was as an ordinary node at the cut."""
        return any(step.kind == "fallback" for step in list(self.active))

    def longest_hold(self) -> float:
        """Return how long critical sections may take that a cut waits for (seconds)."""
        return max((step.longest_hold() for step in list(self.active)), default=0.0)

    def patience(self) -> float:
        """Return how long cut steps may resist before they are given up (seconds)."""
        return max((step.patience() for step in list(self.active)), default=0.0)

    # The timers of async runs.

    def arm(self, loop: asyncio.AbstractEventLoop, on_last: Callable[[], None]) -> None:
        """Watch the deadlines; `on_last` ends the waiting for the engine."""
        self.alarm = Alarm(self, loop, on_last)
        self._rearm()

    def disarm(self) -> None:
        """Stop watching."""
        if self.alarm is not None:
            self.alarm.stop()
            self.alarm = None

    def _rearm(self) -> None:
        if self.on_change is not None:
            self.on_change()
        if self.alarm is not None:
            self.alarm.set()

    @property
    def _works(self) -> bool:
        return self.phase == "working" or self.drains

    def next_deadline(self) -> float:
        """Return when the run has to be cut or ended, `inf` for never."""
        return self.work if self._works else self.deadline

    def time_has_come(self) -> None:
        """Cut the run, or end it if it was cut before."""
        if not self._works:
            patience = self.patience()
            self.end()
            least = 0.0 if self.active else self.engine_patience
            if self.alarm is not None:
                self.alarm.wait_for_engine(max(patience, least))
        elif self.policy.enforce:
            late = _clock.now() - self.work
            if late > self.policy.cancel_grace:
                name_blockers(self, list(self.active), late)
            self.cut("deadline")

    def _nothing_resists(self) -> None:
        """All steps have ended; what the engine needs from here on is little."""
        if self.on_change is not None:
            self.on_change()
        if self.alarm is not None and running_loop() is self.alarm.loop:
            self.alarm.wait_for_engine(self.engine_patience)

    # The end.

    def finish(self) -> None:
        """End the run: no timer or thread of it stays."""
        self.phase = "over"
        self.disarm()
        if self._pool is not None and not self._shares:
            self._pool.close()

    def let_go(self) -> None:
        """Keep nothing alive: what is left of the run belongs to its stragglers."""
        self.channels = self.on_change = self.last = None
        self.saved.saver = self.saved.config = None
        self.details()  # for what is told of stragglers
        self.scope = _ENDED


def _inside(step: Step, kind: str) -> bool:
    """Return whether `step` is one of `kind`, or a part of one."""
    around: Any = step
    while around is not None:
        if isinstance(around, Step) and around.kind == kind:
            return True
        around = around.parent
    return False


def _ledger_for(policy: DeadlinePolicy, parent: Scope | None) -> Ledger | None:
    """Return what is used beside time, where that is limited."""
    around = parent.run.ledger if parent is not None and parent.run else None
    return around if policy.limits is None else Ledger(policy.limits, around)


_ENDED = RunScope(None)

ENGINE_PATIENCE = 0.05
"""What the engine may take to end after its last step (in seconds): it has to apply the
last writes and, without a slow checkpointer, needs a millisecond or two."""


def run_here() -> Run | None:
    """Return the run that the current context belongs to."""
    scope = current.get()
    return scope.run if scope is not None else None
