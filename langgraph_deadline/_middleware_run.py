"""One agent's run as its middleware sees it: what is left here, and how to use it up.

LangGraph knows nothing of it. Every hook finds its run anew, in the agent's state, and
guards one call; what is the same for all hooks is decided here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp

from . import _clock
from ._cut import AsyncStep, Step
from ._langgraph import (
    CONF,
    CONFIG_KEY_RUNTIME,
    channels_of,
    is_task,
)
from ._middleware_retries import pause_ahead
from ._middleware_time import TIME_KEY, RunTime
from ._scope import Scope, current
from .deadline import Deadline, shown
from .errors import Cause, DeadlineExceeded, RunCut
from .policy import DeadlinePolicy, coerce

LAST_WORDS = 0.1
"""What a fallback has at least, where something that is not ours overran (seconds)."""

_MOST_PLACES = 1000


@dataclass(frozen=True)
class Settings:
    """What a middleware was told, for all the runs of its agents."""

    policy: DeadlinePolicy
    budget: float
    falls_back: bool
    cut_places: OrderedDict[str, bool] = field(default_factory=OrderedDict)
    """Where runs were cut without a fallback: their resumes start afresh."""


def settings_of(deadline: Any, *, has_fallback: bool) -> Settings:
    """Return the settings for a user's `deadline`.

    Raises:
        ValueError: If it is no budget, or asks for what a middleware cannot do.
    """
    if deadline is None or isinstance(deadline, Deadline):
        msg = (
            "deadline must be seconds, a timedelta or a DeadlinePolicy, for it is "
            f"counted from the beginning of each run, got {shown(deadline)}"
        )
        raise ValueError(msg)
    policy = coerce(deadline)
    if policy is None or policy.seconds is None:
        msg = "deadline must have seconds: DeadlinePolicy(seconds=...)"
        raise ValueError(msg)
    _refuse_unusable(policy)
    if policy.on_exceeded == "fallback" and not has_fallback:
        msg = "deadline: on_exceeded='fallback' needs a fallback: give one"
        raise ValueError(msg)
    falls_back = has_fallback and policy.on_exceeded in (None, "fallback")
    return Settings(policy, policy.seconds, falls_back)


def _refuse_unusable(policy: DeadlinePolicy) -> None:
    unusable = {
        "steps": bool(policy.steps),
        "limits": policy.limits is not None,
        "enforce": not policy.enforce,
        "on_exceeded='return'": policy.on_exceeded == "return",
    }
    if given := [name for name, is_given in unusable.items() if is_given]:
        msg = (
            f"deadline: a middleware cannot use {', '.join(given)}; bound the whole "
            "agent instead: with_deadline(create_agent(...), policy)"
        )
        raise ValueError(msg)


class AgentScope(Scope):
    """What one call of an agent may take."""

    __slots__ = ("_agent", "_what")

    def __init__(
        self, parent: Scope | None, at: float, agent: AgentRun, what: str
    ) -> None:
        super().__init__(parent, at)
        self._agent = agent
        self._what = what

    def exceeded(
        self, remaining: float, needed: float | None, cut: Cause | None
    ) -> DeadlineExceeded:
        """Return the error for the agent's deadline."""
        if needed is not None and 0 < remaining < needed:
            return DeadlineExceeded(
                cause="window", step=self._what, remaining=remaining, needed=needed
            )
        # Inside of the guard it passes retry loops and error handling untouched.
        return RunCut(**self._agent.exceeded(self._what, cut or "deadline"))


class AgentRun:
    """The run that a hook was called in, at the moment of the call.

    Attributes:
        time: When it began.
        budget: How long it may take (in seconds).
        deadline: When it has to be over, on the monotonic clock.
        work: When its work has to be over, on the same clock.
    """

    def __init__(
        self, settings: Settings, time: RunTime, config: RunnableConfig | None
    ) -> None:
        self._settings = settings
        self._place = _place_of(config)
        self.outer = current.get()
        self.time = time
        if time.resumed and settings.cut_places.pop(self._place or "", False):
            time.start_afresh()
        policy, asked = settings.policy, settings.budget
        self._before = time.spent_before(policy.clock, asked)
        own = time.began + asked - self._before
        self.deadline = min(own, time.around)
        # As asked, where nothing tightened it: a difference would not be exact.
        around = time.around - time.began + self._before
        self.budget = asked if own <= time.around else around
        reserve = 0.0
        if settings.falls_back:
            reserve = policy.reserve_of(self.budget, fallback=True)
        self.work = max(time.began, self.deadline - reserve)
        # What resists must leave the fallback some time.
        self.grace = policy.cancel_grace
        if reserve:
            self.grace = min(self.grace, reserve / 2)

    @property
    def left(self) -> float:
        """The seconds left for work."""
        return self.work - _clock.now()

    @property
    def total(self) -> float:
        """The seconds that there were for work."""
        return self.work - (self.time.began - self._before)

    @contextmanager
    def working(self, what: str) -> Generator[None]:
        """Have what is done inside belong to the run's work."""
        with self._until(self.work, what):
            yield

    @contextmanager
    def closing(self) -> Generator[None]:
        """Have what is done inside belong to the run's reserve."""
        with self._until(max(self.deadline, _clock.now() + LAST_WORDS), "fallback"):
            yield

    @contextmanager
    def _until(self, at: float, what: str) -> Generator[None]:
        token = current.set(AgentScope(self.outer, at, self, what))
        try:
            yield
        finally:
            current.reset(token)

    def entered(self, step: Step) -> None:
        """Watch a call's step; give it the run's grace, and its reserve to clean up."""
        if isinstance(step, AsyncStep) and isinstance(step.binding, AgentScope):
            # No run of ours does: the engine is LangGraph's own.
            step.later(step.at - _clock.now(), partial(step.stop, "deadline"))
        if not step.run.alone:  # of a bounded graph around the agent, which has its own
            step.grace = min(step.grace, self.grace)
            return
        step.grace = self.grace
        step.run.deadline = self.deadline

    # Ends.

    def ended_by(self, what: str, error: Exception) -> DeadlineExceeded:
        """Return what ends the work here; raise `error` if it does not.

        An error ends it that would be retried, but not in time, or came too late.
        """
        outer = self.outer
        if isinstance(error, DeadlineExceeded):
            over = outer is not None and (
                outer.cause_of_cut() is not None or outer.at <= _clock.now()
            )
            if over:
                raise error  # what encloses the agent is over: not ours to answer
            return error
        if isinstance(error, GraphBubbleUp):
            raise error
        pause, left = pause_ahead(error), self.left
        if left > 0 and (pause is None or pause < left):
            raise error
        return self._no_retry(what, error, pause or 0.0)

    def failed(self, error: DeadlineExceeded) -> DeadlineExceeded:
        """Return the error that ends a run without a fallback; its resume is fresh."""
        places = self._settings.cut_places
        if self._place is not None:
            places[self._place] = True
            if len(places) > _MOST_PLACES:
                places.popitem(last=False)
        # Whoever retries any error at all lets only what bubbles up pass.
        kind = DeadlineExceeded if pause_ahead(error) is None else RunCut
        return error if type(error) is kind else as_kind(kind, error)

    def exceeded(self, what: str, cause: Cause) -> dict[str, Any]:
        """Return what the error says of a run that has no time left."""
        now = _clock.now()
        elapsed = now - self.time.began + self._before
        return {
            "message": (
                f"the agent exceeded its deadline of {self.budget:.6g} s at {what!r} "
                f"({elapsed:.6g} s after its run began). Raise the `deadline` of its "
                "DeadlineMiddleware, or give that a `fallback`"
            ),
            "cause": cause,
            "step": what,
            "budget": self.budget,
            "elapsed": elapsed,
            "remaining": self.deadline - now,
        }

    def _no_retry(self, what: str, error: Exception, pause: float) -> DeadlineExceeded:
        late = DeadlineExceeded(
            f"{what!r} failed, and its next attempt would come after a pause of up to "
            f"{pause:.6g} s: {max(self.left, 0.0):.6g} s are left. Raise the "
            "`deadline`, or place DeadlineMiddleware before the middleware that "
            "retries",
            cause="window",
            step=what,
            budget=self.budget,
            remaining=self.left,
            needed=pause,
        )
        late.__cause__ = error
        return late


def as_kind(kind: type[DeadlineExceeded], error: DeadlineExceeded) -> DeadlineExceeded:
    """Return a copy of `error` as an error of another class."""
    copied = kind(
        *error.args,
        cause=error.cause,
        step=error.step,
        budget=error.budget,
        elapsed=error.elapsed,
        remaining=error.remaining,
        needed=error.needed,
    )
    copied.__cause__ = error.__cause__
    return copied


def run_here(settings: Settings, config: RunnableConfig | None) -> AgentRun:
    """Return the run that a hook is called in; one that begins now outside of any."""
    channel = channels_of(config).get(TIME_KEY) if config and is_task(config) else None
    time = channel if isinstance(channel, RunTime) else RunTime()
    return AgentRun(settings, time, config)


def _place_of(config: RunnableConfig | None) -> str | None:
    """Return which checkpoint a run is at: the same one when it is resumed."""
    if config is None or not is_task(config):
        return None
    info = config[CONF][CONFIG_KEY_RUNTIME].execution_info
    if info is None or info.thread_id is None:
        return None
    return f"{info.thread_id}|{info.checkpoint_id}"


def share_of(run: AgentRun) -> float:
    """Return which share of its time for work a run has used."""
    total = run.total
    return math.inf if total <= 0 else 1.0 - run.left / total
