"""What a run did with its time, for people and programs to read afterwards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, computed_field

from . import _clock
from .errors import Cause

Outcome = Literal["completed", "deadline", "cancelled", "limit", "error"]
"""How a run ended."""


class StepReport(BaseModel):
    """One step of a run; times are seconds since the run started."""

    name: str
    kind: Literal[
        "node",
        "task",
        "otherwise",
        "fallback",
        "tool",
        "model",
        "call",
        "compensation",
    ] = "node"
    start: float
    end: float
    cause: Cause | None = None
    """Why it was cut or refused; `None` for a step that finished by itself."""


class ToolCallReport(BaseModel):
    """A tool call that was cut after it had started: its outcome is unknown."""

    name: str
    id: str | None = None
    """The model's id of the call."""

    key: str
    """Its idempotency key."""

    compensation: Literal["done", "failed"] | None = None
    """What became of its compensation, if it has one."""


class Straggler(BaseModel):
    """Work that was cut and ran on.

    The entry is live: `overrun` grows until the work has ended.
    """

    name: str
    running: bool = True
    """Whether it still runs."""

    blocked_loop: bool = False
    """Whether it kept the event loop from running meanwhile."""

    _overrun: float = PrivateAttr(0.0)
    _since: float | None = PrivateAttr(None)

    def __init__(self, *, overrun: float = 0.0, **data: Any) -> None:
        super().__init__(**data)
        self._overrun = overrun

    @computed_field  # type: ignore[prop-decorator]
    @property
    def overrun(self) -> float:
        """How long it ran on after its cut (in seconds)."""
        if self.running and self._since is not None:
            return _clock.now() - self._since
        return self._overrun

    def runs_since(self, instant: float) -> None:
        """Count the overrun from `instant` (on the monotonic clock)."""
        self._since = instant

    def ended(self, instant: float) -> None:
        """Fix the overrun: the work has ended."""
        if self.running and self._since is not None:
            self._overrun = instant - self._since
        self.running = False


class Usage(BaseModel):
    """What a run used beside time, nested graphs included."""

    steps: int = 0
    """Nodes and tasks that ran; not the fallback, nor what it led to."""

    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int | None = None
    """Tokens of prompts, as far as models reported them; `None` if none did."""

    output_tokens: int | None = None
    """Tokens of answers, as far as models reported them; `None` if none did."""

    cost: float | None = None
    """What those tokens cost, by the prices in `Limits`; `None` without prices."""

    unreported: int = 0
    """Model calls whose tokens nobody knows; they are in no sum."""


class RunReport(BaseModel):
    """How one run ended and where its time went."""

    outcome: Outcome
    cause: Cause | None = None
    budget: float | None = None
    """What the run was allowed to take (in seconds)."""

    reserve: float = 0.0
    """The part of the budget kept for the fallback (in seconds)."""

    elapsed: float = 0.0
    """How long the caller waited (in seconds)."""

    interrupted: bool = False
    """Whether the run waits for a person; its resume makes a report of its own."""

    steps: list[StepReport] = Field(default_factory=list)
    stragglers: list[Straggler] = Field(default_factory=list)
    unknown: list[ToolCallReport] = Field(default_factory=list)
    """Tool calls whose outcome is unknown."""

    usage: Usage | None = None
    """What was used beside time."""


_collectors: ContextVar[tuple[list[RunReport], ...]] = ContextVar(
    "langgraph_deadline_collectors", default=()
)


@contextmanager
def collect_runs() -> Generator[list[RunReport]]:
    """Gather a `RunReport` for every run that ends inside the block.

    Runs are gathered by context: those of other threads and tasks are not mixed in,
    those that this block starts are, wherever they run. Blocks may be nested.
    """
    runs: list[RunReport] = []
    token = _collectors.set((*_collectors.get(), runs))
    try:
        yield runs
    finally:
        _collectors.reset(token)


def collectors() -> tuple[list[RunReport], ...]:
    """Return the lists that gather reports here."""
    return _collectors.get()
