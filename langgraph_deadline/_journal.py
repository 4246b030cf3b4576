"""What happens in a run: kept for its report, and told to observers at once.

Every event is emitted here, and nowhere else. Graphs inside a run that have no deadline
of their own write into its journal; those that have one write into both.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from threading import Lock
from types import BuiltinMethodType, MethodType
from typing import Any, Protocol
from uuid import UUID

from . import _clock
from ._cut import Step
from ._event_stream import EventStream
from ._ledger import Ledger
from ._measured import cause_not_enforced
from ._scope import Scope
from ._seen import SeenCall
from .errors import Cause
from .events import (
    Cut,
    Event,
    FallbackStarted,
    Observer,
    RunDetails,
    RunEnded,
    RunStarted,
    StepEnded,
    StepRefused,
    StepStarted,
    StragglerEnded,
    StragglerFound,
    observers,
)
from .policy import DeadlinePolicy
from .report import Cancellations, RunReport, Straggler

logger = logging.getLogger("langgraph_deadline")

_LEVELS: dict[type[Event], int] = {
    StepRefused: logging.INFO,
    Cut: logging.INFO,
    FallbackStarted: logging.INFO,
    StragglerFound: logging.WARNING,
    StragglerEnded: logging.INFO,
}

_numbers = itertools.count(1)

_counting = Lock()
"""Held for an instant by who changes what several threads may change of a journal."""


class _Run(Protocol):
    """What a journal knows of its run."""

    started: float
    spent: float
    work: float
    policy: DeadlinePolicy
    ledger: Ledger | None

    def details(self) -> RunDetails:
        """Return what is known of the run from its beginning."""
        ...


class Journal:
    """The journal of one run.

    Args:
        run: The run, for as long as it lasts.
        around: The journal of what the run is inside of.
        more: Who observes the runs of its graph, beside those of the context.
    """

    __slots__ = (
        "_calls",
        "_observers",
        "_told_start",
        "around",
        "began",
        "cancellations",
        "cut_at",
        "heard",
        "run",
        "steps",
        "stream",
    )

    def __init__(
        self,
        run: _Run,
        around: Journal | None = None,
        more: tuple[Observer, ...] = (),
    ) -> None:
        self.run = run
        self.began = run.started
        self.around = around
        told = (*observers(), *more)
        if around is not None:
            told = (*around.observers(), *told)
        self._observers = _distinct(told)
        self._told_start = False
        # Lists once there is something: most runs in flight have little to tell.
        self.steps: list[Step | SeenCall] | tuple[()] = ()
        self._calls: dict[UUID, SeenCall] | None = None
        self.cancellations: Cancellations | None = None
        self.cut_at: float | None = None
        self.stream: EventStream | None = None
        # Whether anybody wants to know what happens; asked once, for every step pays.
        self.heard = bool(told) or logger.isEnabledFor(logging.DEBUG)

    def stream_to(self, stream: EventStream) -> None:
        """Have the events written to the run's custom stream, too."""
        self.stream = stream
        self._observers = (*self._observers, stream)
        self.heard = True

    def observers(self) -> tuple[Observer, ...]:
        """Return who is told."""
        return self._observers

    # The run.

    def started(self) -> None:
        """Tell of the run's start; later is better where a checkpoint is to be read."""
        with _counting:
            first, self._told_start = not self._told_start, True
        if first and self.heard:
            started = RunStarted(run=self._details(), at=0.0, spent=self.run.spent)
            self._tell(started)

    def cut(self, cause: Cause, step: str | None, at: float | None = None) -> None:
        """Note that the run's work was cut, the first time."""
        with _counting:
            if self.cut_at is not None:
                return
            self.cut_at = _clock.now() if at is None else at
        if self._wanted(Cut):
            at = self.cut_at - self.began
            self._tell(Cut(run=self._details(), at=at, cause=cause, step=step))

    def ended(self, report: RunReport) -> None:
        """Note the end of the run."""
        if self.heard:
            at = self._at()
            self._tell(RunEnded(run=self._details(), at=at, report=report))

    # Its steps.

    def entered(self, step: Step, cause: Cause | None) -> None:
        """Note that `step` was started, or refused for `cause`."""
        step.number = next(_numbers)
        step.refused = cause is not None
        if step.shadow:
            return
        if cause is None and self.heard:
            self._tell(
                StepStarted(**self._of(step), remaining=_left(step), limit=step.limit)
            )
        elif cause is not None and self._wanted(StepRefused):
            self._tell(
                StepRefused(
                    **self._of(step),
                    cause=cause,
                    remaining=_left(step),
                    needed=step.needs,
                )
            )
        if step.kind == "fallback":
            self.fell_back(step)

    def fell_back(self, step: Step) -> None:
        """Note that the fallback has the run from here on."""
        if self._wanted(FallbackStarted):
            self._tell(FallbackStarted(**self._of(step), remaining=_left(step)))

    def left(self, step: Step) -> None:
        """Note that `step` ended."""
        if step.cut_at:
            self._count(asked=1, obeyed=0 if step.given_up else 1)
        if self._calls and not step.given_up:
            self._end_calls_in(step)
        if step.shadow:
            return
        self._keep(step)
        if not step.refused and self.heard:
            cause = step.cut or self._cause_not_enforced(step)
            self._tell(
                StepEnded(
                    **self._of(step),
                    took=(step.ended or _clock.now()) - step.began,
                    cause=cause,
                    error=step.error if step.cut is None else None,
                    retries=max(step.attempts - 1, 0),
                    tokens=step.call.tokens() if step.call is not None else None,
                )
            )

    def straggles(self, step: Step, straggler: Straggler) -> None:
        """Note work that was cut and runs on, or has blocked the event loop."""
        if self._wanted(StragglerFound):
            self._tell(
                StragglerFound(
                    **self._of(step),
                    cause=step.cut,
                    overrun=straggler.overrun,
                    blocked_loop=straggler.blocked_loop,
                )
            )

    def straggler_ended(self, step: Step, straggler: Straggler) -> None:
        """Note that such work has ended."""
        self._end_calls_in(step)
        obeyed = straggler.overrun <= step.run.policy.cancel_grace
        if obeyed and step.cut_at:
            self._count(obeyed=1)
        if self._wanted(StragglerEnded):
            overrun = straggler.overrun
            self._tell(StragglerEnded(**self._of(step), overrun=overrun, obeyed=obeyed))

    # Calls that only callbacks tell of.

    def call_started(self, key: UUID, call: SeenCall) -> None:
        """Note the start of a call; once, though two handlers may hear of it."""
        calls = self._calls
        if calls is None:
            calls = self._calls = {}
        if calls.setdefault(key, call) is not call:
            return
        step = call.around.step if call.around is not None else None
        if step is not None and step.kind == call.kind and step.call is None:
            step.call = call  # the step was made for it
            return
        call.number = next(_numbers)
        self._keep(call)
        if self.heard:
            self._tell(
                StepStarted(
                    **self._of(call),
                    remaining=_left(call.around),
                    limit=None,
                    provider=call.provider,
                )
            )

    def call(self, key: UUID) -> SeenCall | None:
        """Return a call that is open."""
        return self._calls.get(key) if self._calls else None

    def guarded(self, key: UUID | None, step: Step) -> None:
        """Note that `step` guards a call that callbacks tell of: it is the same.

        A model that is streamed from is not told which call it is (`None`): it is the
        last one that was begun where the step is.
        """
        call = self.call(key) if key is not None else self._last_unguarded(step)
        if call is not None:
            step.shadow = True
            call.guard = step

    def _last_unguarded(self, step: Step) -> SeenCall | None:
        for call in reversed(list((self._calls or {}).values())):
            if call.guard is None and call.around is step.parent:
                return call
        return None

    def call_ended(self, key: UUID) -> None:
        """Note the end of a call."""
        call = self._calls.pop(key, None) if self._calls else None
        if call is None:
            return
        call.ended = _clock.now()
        call.update()
        if self.heard and call.number:
            cut = call.cut()
            self._tell(
                StepEnded(
                    **self._of(call),
                    took=call.ended - call.began,
                    cause=cut[0] if cut is not None else None,
                    error=call.error if cut is None else None,
                    tokens=call.tokens(),
                )
            )

    def _end_calls_in(self, step: Step) -> None:
        """End the calls in `step`, which has ended: nobody tells of cancelled ones."""
        for key, call in list((self._calls or {}).items()):
            if call.is_inside(step):
                self.call_ended(key)

    # How.

    def _cause_not_enforced(self, step: Step) -> Cause | None:
        if self.run.policy.enforce:
            return None
        return cause_not_enforced(self.run, step, len(self.steps) - 1)[0]

    def _count(self, asked: int = 0, obeyed: int = 0) -> None:
        with _counting:
            if self.cancellations is None:
                self.cancellations = Cancellations()
            self.cancellations.asked += asked
            self.cancellations.obeyed += obeyed
        if self.around is not None:
            self.around._count(asked, obeyed)  # noqa: SLF001 - one of its own kind

    def _keep(self, step: Step | SeenCall) -> None:
        steps = self.steps
        if isinstance(steps, tuple):
            with _counting:
                if isinstance(self.steps, tuple):
                    self.steps = []
                steps = self.steps
        steps.append(step)
        if self.around is not None:
            self.around._keep(step)  # noqa: SLF001 - one of its own kind

    def _at(self) -> float:
        return _clock.now() - self.began

    def _details(self) -> RunDetails:
        return self.run.details()

    def _of(self, step: Step | SeenCall) -> dict[str, Any]:
        """Return what every event of a step says."""
        around = next(steps_around(step), None)
        return {
            "run": self._details(),
            "at": self._at(),
            "number": step.number,
            "parent": around.number if around is not None else None,
            "step": step.name,
            "kind": step.kind,
        }

    def _wanted(self, kind: type[Event]) -> bool:
        return bool(self._observers) or logger.isEnabledFor(_LEVELS[kind])

    def _tell(self, event: Event) -> None:
        if not self._told_start:
            self.started()
        level = _LEVELS.get(type(event), logging.DEBUG)
        if logger.isEnabledFor(level):
            logger.log(level, "%s", event, extra={"deadline_event": event})
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception(
                    "Observer %r failed at %s; the run goes on without it knowing",
                    observer,
                    type(event).__name__,
                )


def _distinct(observers: tuple[Observer, ...]) -> tuple[Observer, ...]:
    """Return each observer once; two are the same if they are one object.

    A method is another object each time it is looked up, and equal all the same.
    """
    found: list[Observer] = []
    for observer in observers:
        if isinstance(observer, _METHODS):
            known = observer in found
        else:
            known = any(observer is other for other in found)
        if not known:
            found.append(observer)
    return tuple(found)


_METHODS = (MethodType, BuiltinMethodType)


def steps_around(step: Step | SeenCall) -> Iterator[Step]:
    """Yield the steps that `step` is inside of, from the innermost one."""
    scope: Scope | None = step.around if isinstance(step, SeenCall) else step.parent
    while scope is not None:
        if isinstance(scope, Step) and not scope.shadow:
            yield scope
        scope = scope.parent


def _left(scope: Scope | None) -> float | None:
    if scope is None or scope.at == math.inf:
        return None
    return scope.at - _clock.now()
