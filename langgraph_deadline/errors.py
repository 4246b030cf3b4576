"""What is raised when time runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from langchain_core import exceptions
from langgraph.errors import GraphBubbleUp

if TYPE_CHECKING:
    from langchain_core.exceptions import ModelError
else:  # before langchain-core 1.6 there is none, and nothing that asks for it
    ModelError = getattr(exceptions, "ModelError", exceptions.LangChainException)

Cause = Literal[
    "deadline",
    "step",
    "cancelled",
    "window",
    "steps",
    "model_calls",
    "tool_calls",
    "tokens",
    "cost",
]
"""Why a run or a step was cut or refused."""


class DeadlineExceeded(TimeoutError, ModelError):  # noqa: N818 - the field's name
    """A run, a step or a scope ran out of time, or was not started for lack of it.

    A `TimeoutError`, and therefore left alone by LangGraph's default retry policy; a
    `ModelError` that is not retryable, and therefore by LangChain's middleware.

    Attributes:
        cause: Why: `deadline`, `step`, `cancelled`, `window`, ...
        step: Name of the step where it happened, if it was in one.
        budget: The limit that was exceeded (in seconds), if there was one.
        elapsed: How long the work had been running (in seconds).
        remaining: What was left of the limit (in seconds), negative once it passed.
        needed: The minimum window that was asked for (in seconds).
    """

    is_retryable = False

    def __init__(
        self,
        message: str | None = None,
        *,
        cause: Cause = "deadline",
        step: str | None = None,
        budget: float | None = None,
        elapsed: float | None = None,
        remaining: float | None = None,
        needed: float | None = None,
    ) -> None:
        self.cause: Cause = cause
        self.step = step
        self.budget = budget
        self.elapsed = elapsed
        self.remaining = remaining
        self.needed = needed
        # The scope whose limit this is, so that `move_on_after` knows its own.
        self.scope: object | None = None
        super().__init__(message if message is not None else self._describe())

    def _describe(self) -> str:
        return ". ".join((self._what_happened(), _ADVICE.get(self.cause, _LIMIT)))

    def _what_happened(self) -> str:
        where = f"step {self.step!r}" if self.step else "the run"
        if self.cause == "cancelled":
            return f"{where} was cancelled{self._timing()}"
        if self.cause == "window" and not self.step:
            left = _s(max(self.remaining or 0.0, 0.0))
            return f"{_s(self.needed)} are needed here, and {left} are left"
        if self.cause == "window":
            return (
                f"{where} was not started: it needs {_s(self.needed)} and "
                f"{_s(max(self.remaining or 0.0, 0.0))} are left"
            )
        if self.cause == "step":
            return (
                f"{where} exceeded its own limit of {_s(self.budget)}{self._timing()}"
            )
        if self.cause == "deadline":
            inside = f" in step {self.step!r}" if self.step else ""
            limit = f" of {_s(self.budget)}" if self.budget is not None else ""
            return f"the run exceeded its deadline{limit}{inside}{self._timing()}"
        return f"{where} reached its limit of {self.cause}{self._timing()}"

    def _timing(self) -> str:
        if self.elapsed is None:
            return ""
        late = ""
        if self.budget is not None and self.elapsed > self.budget:
            late = f", {_s(self.elapsed - self.budget)} late"
        return f" ({_s(self.elapsed)} after it started{late})"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {k: v for k, v in self.__dict__.items() if k != "scope"}
        return type(self), self.args, state


class RunCut(DeadlineExceeded, GraphBubbleUp):
    """The run as a whole is over; passes retry policies and error handlers untouched.

    LangGraph lets a `GraphBubbleUp` through every retry loop, error handler and tool
    node, and records no error for the task: a resume runs just what was cut.
    """


class NoTimeToRetry(DeadlineExceeded, GraphBubbleUp):
    """A step has no time for another attempt, or a tool call is over for good.

    Passes retry loops and the error handling of tool nodes. Only ever seen inside the
    guard, which makes a plain `DeadlineExceeded` of it.
    """


def plain(error: DeadlineExceeded) -> DeadlineExceeded:
    """Return `error` as the `DeadlineExceeded` that leaves a run for its caller."""
    if type(error) is DeadlineExceeded:
        return error
    copy = DeadlineExceeded(
        *error.args,
        cause=error.cause,
        step=error.step,
        budget=error.budget,
        elapsed=error.elapsed,
        remaining=error.remaining,
        needed=error.needed,
    )
    copy.scope = error.scope
    copy.__cause__ = error.__cause__
    return copy


def _s(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.3f}".rstrip("0").rstrip(".") + " s"


_LIMIT = "Raise the limit in `Limits`, or give the graph a `fallback`"
_ADVICE = {
    "deadline": (
        "Raise `deadline`, give the graph a `fallback`, or limit the step with "
        "`DeadlinePolicy(steps=...)`"
    ),
    "step": (
        "Raise the step's `seconds`, or give it `StepBudget(otherwise=...)`, an error "
        "handler, or the graph a `fallback`"
    ),
    "window": (
        "Lower `needs`, start earlier, or give the step `StepBudget(otherwise=...)` or "
        "the graph a `fallback`"
    ),
    "cancelled": "Give the graph a `fallback` to have an answer all the same",
}
