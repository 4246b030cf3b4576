"""What an owner decides about time: frozen, checked once, loadable from JSON."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .deadline import Deadline, positive_seconds_of, seconds_of
from .limits import Limits

DEFAULT_RESERVE = 0.2
"""Share of the budget kept for the fallback, where there is one."""


class _Unset(enum.Enum):
    """Marks an option that was not given, where `None` is a value.

    An enumeration, for its members are the same ones after a copy.
    """

    UNSET = "not set"


UNSET = _Unset.UNSET


def _positive(value: Any, info: ValidationInfo) -> Any:
    return value if value is None else positive_seconds_of(value, info.field_name or "")


def _not_negative(value: Any, info: ValidationInfo) -> float:
    seconds = seconds_of(value, info.field_name or "")
    if seconds < 0:
        msg = f"{info.field_name} must not be negative, got {value!r}"
        raise ValueError(msg)
    return seconds


Positive = Annotated[float, BeforeValidator(_positive)]
NotNegative = Annotated[float, BeforeValidator(_not_negative)]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )


class StepBudget(_Frozen):
    """The budget of one step (a node), narrower than the run's."""

    seconds: Positive | None = None
    """How long the step may take over all its attempts (in seconds)."""

    needs: NotNegative = 0.0
    """Minimum viable window: the step is not started with less left (in seconds)."""

    otherwise: Any = Field(default=UNSET, exclude=True)
    """What to use when the step overruns or its window is not there.

    A value, or a callable that gets the node's input. It goes through the node's own
    writers, so its edges fire.
    """

    @property
    def has_otherwise(self) -> bool:
        """Whether there is something to use instead of the step."""
        return self.otherwise is not UNSET

    @model_validator(mode="after")
    def _window_fits(self) -> StepBudget:
        if self.seconds is not None and self.needs > self.seconds:
            msg = f"needs ({self.needs} s) must not exceed seconds ({self.seconds} s)"
            raise ValueError(msg)
        return self


class DeadlinePolicy(_Frozen):
    """What a run may spend and what happens when it is spent.

    A number or `timedelta` given as `deadline=` becomes a policy with those `seconds`.
    """

    seconds: Positive | None = None
    """Budget of the run (in seconds); `None` is no limit of its own."""

    reserve: float | timedelta | None = None
    """Last part of the budget, kept for the fallback.

    Below 1 a fraction of the budget, else seconds; a `timedelta` is always seconds.
    Default 0.2 where there is a fallback, else 0.
    """

    on_exceeded: Literal["fallback", "raise", "return"] | None = None
    """What happens when time is up; default `fallback` if there is one or `raise`."""

    steps: Mapping[str, StepBudget] = Field(default_factory=dict)
    """Budgets of single steps, by node name."""

    clock: Literal["active", "wall", "restart"] = "active"
    """What an interrupt costs: nothing (`active`), the time until its resume (`wall`),
    or every invocation has a fresh budget (`restart`)."""

    cancel_grace: NotNegative = 0.25
    """How long cut async work is waited for before it is given up (in seconds)."""

    limits: Limits | None = None
    """What the run may use beside time: steps, calls, tokens, cost."""

    enforce: bool = True
    """`False` only records what would have been cut."""

    stream_events: bool = False
    """Whether `stream_mode="custom"` also yields the run's events, as dictionaries with
    the key `event`."""

    @field_validator("reserve", mode="before")
    @classmethod
    def _check_reserve(cls, value: Any) -> Any:
        if value is None or isinstance(value, timedelta):
            seconds = 0.0 if value is None else value.total_seconds()
        elif isinstance(value, str) and value.startswith("P"):
            return value  # an ISO 8601 duration, as JSON carries a timedelta
        else:
            seconds = value = seconds_of(value, "reserve")
        if seconds < 0:
            msg = f"reserve must not be negative, got {value!r}"
            raise ValueError(msg)
        return value

    @field_validator("steps", mode="before")
    @classmethod
    def _coerce_steps(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"seconds": given}
            if isinstance(given, (int, float, timedelta))
            else given
            for name, given in value.items()
        }

    @model_validator(mode="after")
    def _reserve_fits(self) -> DeadlinePolicy:
        if self.seconds is not None and self.reserve_of(self.seconds) >= self.seconds:
            msg = (
                f"reserve ({self.reserve}) must be smaller than the budget of "
                f"{self.seconds} s"
            )
            raise ValueError(msg)
        return self

    def reserve_of(self, budget: float, *, fallback: bool = False) -> float:
        """Return the seconds of `budget` that are kept for the fallback."""
        if self.reserve is None:
            return budget * DEFAULT_RESERVE if fallback else 0.0
        if isinstance(self.reserve, timedelta):
            return self.reserve.total_seconds()
        return self.reserve * budget if self.reserve < 1 else self.reserve


def coerce(value: Any, name: str = "deadline") -> DeadlinePolicy | None:
    """Return the policy meant by a user's `deadline` argument, `None` for no limit.

    Raises:
        ValueError: If `value` is no number of seconds, `timedelta`, `Deadline` or
            `DeadlinePolicy`; the message names `name`.
    """
    if value is None or isinstance(value, DeadlinePolicy):
        return value
    if isinstance(value, Deadline):
        # An instant that has passed is no bad input: it leaves next to nothing.
        return DeadlinePolicy(seconds=max(value.remaining(), 1e-9))
    return DeadlinePolicy(seconds=positive_seconds_of(value, name))


def check_names(given: Iterable[str], known: Iterable[str], name: str) -> None:
    """Refuse step names that the graph does not have.

    Raises:
        ValueError: For the first unknown one, with the closest known names.
    """
    known = list(known)
    for step in given:
        if step not in known:
            close = difflib.get_close_matches(str(step), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {known}"
            msg = f"{name} names {step!r}, which is no node of the graph; {hint}"
            raise ValueError(msg)
