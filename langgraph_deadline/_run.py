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
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, Literal

from langgraph.constants import START

from . import _clock
from ._backlog import Backlog
from ._cut import AsyncStep, Step, disown
from ._ledger import Book, Ledger
from ._record import Record
from ._scope import Scope, current
from ._threads import Job, Pool, forget, running_loop
from ._usage import Call
from .errors import Cause, DeadlineExceeded, RunCut
from .policy import DeadlinePolicy
from .report import Straggler, collectors

logger = logging.getLogger("langgraph_deadline")

Mode = Literal["fallback", "raise", "return"]
Phase = Literal["working", "falling back", "over"]

_deciding = Lock()
"""Held for an instant by who takes a step that only one of several threads may take."""

_STEP = Call("steps")

_CLOCK_SLACK = 1e-6
"""Timers may come this much early; a deadline that close has come."""


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
        "_last_at",
        "_last_call",
        "_loop",
        "_on_last",
        "_pool",
        "_shares",
        "_timer",
        "active",
        "alone",
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
        "deferring",
        "drains",
        "fallback",
        "grace",
        "implicit",
        "interrupted",
        "ledger",
        "loaded",
        "log",
        "logging",
        "may_be_noted",
        "mode",
        "name",
        "namespace",
        "new_input",
        "nth",
        "on_change",
        "one_superstep",
        "phase",
        "policy",
        "reserve",
        "reset",
        "resumed",
        "saved_at",
        "saver",
        "scope",
        "sequence",
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
        self.claimed = self.touched = self.drains = False
        self.active: dict[Step, None] = {}
        self.logging = bool(collectors())
        self.log: tuple[Step, ...] | list[Step] = ()  # a list once there is one
        self.ledger = _ledger_for(policy, parent, counts=self.logging)
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

        # What the checkpoint says, filled in when it is loaded.
        self.new_input = True
        self.loaded = False
        self.reset = False
        self.resumed: Record | None = None
        self.saved_at: Any = None
        self.saver: Any = None
        self.namespace = ""
        self.deferring = False
        self.one_superstep = False
        self.may_be_noted = True
        self.sequence = 0

        # A run inside a step uses the threads of the run around it.
        self._shares = implicit and parent is not None
        self._pool: Pool | None = parent.run.pool() if implicit and parent else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_call: asyncio.TimerHandle | None = None
        self._last_at = math.inf
        self._on_last: Callable[[], None] | None = None
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
        self.resumed = record
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

    # Steps.

    def admit(self, step: Step, needs: float = 0.0) -> Cause | None:
        """Enter `step` as active, or return why it must not start."""
        # First registered, then checked: a cut first notes its cause and then goes
        # through what is registered, so that one of the two sees the other.
        self.active[step] = None
        now = _clock.now()
        cause: Cause = "deadline"
        if self.phase == "working":
            if not self.policy.enforce or now < self.work - _CLOCK_SLACK:
                left = self.work - now
                if left < needs and self.policy.enforce:
                    return "window"
                over = None if self.ledger is None else self._charge_step(step)
                if over is None:
                    return None
                cause = over
            if self.phase == "working":
                self.cut(cause, step.name)
        if self.phase == "falling back" and self._leads_from_fallback(step):
            if self.deadline - now < needs:
                self.end()
                return "window"
            if now < self.deadline - _CLOCK_SLACK:
                self._drained()
                step.extend(self.scope, self.policy.cancel_grace)
                if step.name == self.fallback:
                    step.kind = "fallback"
                return None
            self.end()
        self.touched = True
        return self.cause or cause

    def enter(self, step: Step, needs: float = 0.0) -> Cause | None:
        """Enter a step inside another one, or return why it must not start."""
        self.active[step] = None  # before the check, as in `admit`
        if (cause := step.cause_of_cut()) is not None:
            return cause
        left = step.at - _clock.now()
        if left > _CLOCK_SLACK and left >= needs:
            return None
        return "window" if left > _CLOCK_SLACK else "deadline"

    def _leads_from_fallback(self, step: Step) -> bool:
        # The superstep of the cut is the last one with ordinary steps; the one after it
        # holds only the fallback, for the edges of all others have been dropped.
        if self.cut_superstep is None:
            self.cut_superstep = step.superstep
        return step.superstep > self.cut_superstep

    # Limits beyond the clock.

    def charge(self, call: Call, scope: Scope, key: Any = None) -> Cause | None:
        """Reserve what `call` may use; return the limit that does not allow it.

        The run whose limit that is has been cut then. What a fallback uses is counted,
        and so is what a run uses that only measures.
        """
        if self.ledger is None:
            return None
        spared = self.spared(scope)
        exceeded = self.ledger.reserve(call, key, spared)
        if exceeded is None:
            return None
        book, refusal = exceeded
        owner = dict(self._limiting()).get(book, self)
        if book not in spared:
            owner.touched = True
            owner.run_dry(refusal.cause, owner.node_of(scope))
            # The fallback, at work as an ordinary node, goes on as the fallback.
            again = owner.answers(scope)
            return self.charge(call, scope, key) if again else refusal.cause
        if owner.ledger is not None and owner.ledger.overdrawn is None:
            owner.ledger.overdrawn = (refusal.cause, len(owner.log))
        return None

    def run_dry(self, cause: Cause, node: Step | None) -> None:
        """Cut the run because of what `node` asked for."""
        # What has called a task waits for it: it cannot end without it.
        alone = node if node is not None and node.kind != "task" else None
        self.cut(cause, node.name if node is not None else None, alone)

    def _drained(self) -> None:
        """Note that nothing is active any more that was so when a limit was reached."""
        if self.drains:
            self.drains = False
            self._rearm()

    def _charge_step(self, step: Step) -> Cause | None:
        counts = step.kind in ("node", "task") and step.name != START
        return self.charge(_STEP, step) if counts else None

    def spared(self, scope: Scope) -> list[Book]:
        """Return the books whose limits do not stop what is done in `scope`."""
        return [
            book
            for book, run in self._limiting()
            if not run.policy.enforce or run.answers(scope)
        ]

    def _limiting(self) -> Iterator[tuple[Book, Run]]:
        """Yield this run and those around it that have limits, with their books."""
        run: Run | None = self
        while run is not None:
            if run.ledger is not None and run.policy.limits is not None:
                yield run.ledger.own, run
            parent = run.scope.parent
            run = parent.run if parent is not None else None

    def node_of(self, scope: Scope | None) -> Step | None:
        """Return the outermost step of this run that `scope` is in."""
        node: Step | None = None
        while scope is not None:
            if isinstance(scope, Step) and scope.run is self:
                node = scope
            scope = scope.parent
        return node

    def answers(self, scope: Scope) -> bool:
        """Return whether `scope` is in the fallback, or in what that leads to."""
        if self.phase != "falling back":
            return False
        node = self.node_of(scope)
        return node is not None and (
            node.kind == "fallback" or self._leads_from_fallback(node)
        )

    def leave(self, step: Step) -> None:
        """Take `step` out of the active ones."""
        step.ended = _clock.now()
        self.active.pop(step, None)
        if self.phase == "over" and not self.active:
            self._nothing_resists()
        if self.logging or step.cut is not None:
            self._note(step)

    def _note(self, step: Step) -> None:
        with _deciding:
            if isinstance(self.log, tuple):
                self.log = []
        self.log.append(step)

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

    def claim(self) -> bool:
        """Return whether the caller is the one to write the route to the fallback."""
        # Parallel sync nodes are cut in threads of their own.
        with _deciding:
            first, self.claimed = not self.claimed, True
        return first

    def given_up(self, step: Step, work: Job | asyncio.Task[Any]) -> None:
        """Note work that was cut and runs on."""
        straggler = Straggler(name=step.name)
        straggler.runs_since(_clock.now() - step.overrun())
        self.stragglers.append(straggler)
        if isinstance(work, Job):
            forget(work)
            work.when_late(straggler.ended)
        else:
            disown(work, straggler)
        logger.warning(
            "Step %r was cut (%s) and still runs; it was given up and can no longer "
            "write anything.",
            step.name,
            step.cut or "cancelled",
        )

    def blocked_loop(self, step: Step) -> None:
        """Note a step that kept the event loop from running past its deadline."""
        overrun = step.overrun()
        self.stragglers.append(
            Straggler(name=step.name, overrun=overrun, running=False, blocked_loop=True)
        )
        logger.warning(
            "Step %r blocked the event loop for %.3g s past its deadline. Nothing can "
            "interrupt it there: make it a sync node, or await in it.",
            step.name,
            overrun,
        )

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
        if self._loop is not None and running_loop() is not self._loop:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self.cut, cause, step, node)
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
        if self.phase == "over" and node is None:
            # Nothing is left to wait for, when the cut came by hand or from a step.
            self.deadline = min(self.deadline, _clock.now())
        self.scope.at = self.deadline
        self._stop_all(spare, node)
        self._rearm()

    def end(self, cause: Cause = "deadline") -> None:
        """End everything, the fallback included."""
        self.phase = "over"
        self.cause = self.cause or cause
        self.touched = True
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

    # The timer (async runs; the threads of sync ones wait with a time-out).

    def arm(self, loop: asyncio.AbstractEventLoop, on_last: Callable[[], None]) -> None:
        """Watch the deadlines; `on_last` ends the waiting for the engine."""
        self._loop = loop
        self._on_last = on_last
        self._rearm()

    def disarm(self) -> None:
        """Stop watching."""
        for timer in (self._timer, self._last_call):
            if timer is not None:
                timer.cancel()
        self._timer = self._last_call = self._loop = self._on_last = None

    def _rearm(self) -> None:
        if self.on_change is not None:
            self.on_change()
        if self._loop is None or not self.bounded:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.phase == "working" or self.drains:
            at, action = self.work, self._work_is_over
        else:
            at, action = self.deadline, self._time_is_up
        self._timer = self._loop.call_later(max(at - _clock.now(), 0.0), action)

    def _work_is_over(self) -> None:
        if self.policy.enforce:
            self._name_blockers()
            self.cut("deadline")

    def _time_is_up(self) -> None:
        patience = self.patience()
        self.end()
        self._wait_for_engine(
            max(patience, 0.0 if self.active else self.engine_patience)
        )

    def _nothing_resists(self) -> None:
        """All steps have ended; what the engine needs from here on is little."""
        if self.on_change is not None:
            self.on_change()
        if self._loop is not None and running_loop() is self._loop:
            self._wait_for_engine(self.engine_patience)

    def _wait_for_engine(self, seconds: float) -> None:
        if self._loop is None:
            return
        at = _clock.now() + seconds
        if self._last_call is not None:
            if self._last_at <= at:
                return
            self._last_call.cancel()
        self._last_at = at
        self._last_call = self._loop.call_later(seconds, self._last, _LAST_PASSES)

    def _last(self, passes: int) -> None:
        # Steps that are given up at this very instant need some passes of the loop, but
        # no time, for the engine to end.
        if self._loop is None or self._on_last is None:
            return
        if passes:
            self._loop.call_soon(self._last, passes - 1)
        else:
            self._on_last()

    def _name_blockers(self) -> None:
        late = _clock.now() - self.work
        if late > self.policy.cancel_grace:
            names = [s.name for s in self.active if isinstance(s, AsyncStep)]
            logger.warning(
                "The event loop was blocked for %.3g s past the work deadline, while "
                "these steps were running: %s",
                late,
                names,
            )

    # The end.

    def finish(self) -> None:
        """End the run: no timer or thread of it stays."""
        self.phase = "over"
        self.disarm()
        if self._pool is not None and not self._shares:
            self._pool.close()

    def let_go(self) -> None:
        """Keep nothing alive: what is left of the run belongs to its stragglers."""
        self.channels = self.saver = self.saved_at = self.on_change = None
        self.scope = _ENDED


def _inside(step: Step, kind: str) -> bool:
    """Return whether `step` is one of `kind`, or a part of one."""
    around: Any = step
    while around is not None:
        if isinstance(around, Step) and around.kind == kind:
            return True
        around = around.parent
    return False


def _ledger_for(
    policy: DeadlinePolicy, parent: Scope | None, *, counts: bool
) -> Ledger | None:
    """Return what is used beside time, where that is limited or reported."""
    around = parent.run.ledger if parent is not None and parent.run else None
    if policy.limits is None and not counts:
        return around
    return Ledger(policy.limits, around)


_ENDED = RunScope(None)

_LAST_PASSES = 1000

ENGINE_PATIENCE = 0.05
"""What the engine may take to end after its last step (in seconds): it has to apply the
last writes and, without a slow checkpointer, needs a millisecond or two."""


def run_here() -> Run | None:
    """Return the run that the current context belongs to."""
    scope = current.get()
    return scope.run if scope is not None else None
