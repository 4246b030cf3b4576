"""A deadline as a value: an immutable instant on the monotonic clock."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from . import _clock

WIRE_KEY = "x-request-deadline"
"""The config key and HTTP header that carry a deadline between processes."""

_EPOCH_FROM = 1e8  # a smaller number on the wire is a duration, not an instant
_LONGEST_TEXT = 64
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, order=True, slots=True, repr=False)
class Deadline:
    """An instant by which work has to be done.

    Deadlines are ordered (`min()` gives the earlier one) and never move: a duration
    becomes a deadline once, with `after`.
    """

    _at: float

    @classmethod
    def after(cls, seconds: float | timedelta) -> Deadline:
        """Return the deadline that lies `seconds` (a number or `timedelta`) ahead.

        Raises:
            ValueError: If `seconds` is not a finite number.
        """
        return cls(_clock.now() + seconds_of(seconds, "seconds"))

    @classmethod
    def at(cls, instant: datetime | float) -> Deadline:
        """Return the deadline at a wall-clock `instant`.

        The wall clock is read once, here; later jumps of it change nothing.

        Args:
            instant: An aware `datetime`, or seconds since the epoch.

        Raises:
            ValueError: If `instant` is a naive `datetime` or not a finite number.
        """
        if isinstance(instant, datetime):
            if instant.tzinfo is None:
                msg = f"instant must carry a time zone, got the naive {instant!r}"
                raise ValueError(msg)
            epoch = instant.timestamp()
        else:
            epoch = seconds_of(instant, "instant")
        return cls(_clock.now() + epoch - _clock.wall())

    def remaining(self) -> float:
        """Return the seconds left, negative once the deadline has passed."""
        return self._at - _clock.now()

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.remaining() <= 0

    def __repr__(self) -> str:
        return f"<Deadline in {self.remaining():.3f} s>"


def instant_of(deadline: Deadline) -> float:
    """Return when `deadline` is, on the monotonic clock (in seconds)."""
    return deadline._at  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001


def seconds_of(value: Any, name: str) -> float:
    """Return `value` (a number or `timedelta`) as finite seconds.

    Raises:
        ValueError: If it is anything else; the message names `name`.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name} must be a number of seconds or a timedelta, got {shown(value)}"
        raise ValueError(msg)
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        msg = f"{name} must be a finite number of seconds, got {shown(value)}"
        raise ValueError(msg)
    return seconds


def shown(value: Any) -> str:
    """Return `value` for an error message, whatever was sent to us, in a line."""
    kind = type(value).__name__
    if isinstance(value, int) and abs(value) > _EPOCH_FROM**2:
        return f"{kind} of {value.bit_length()} bits"
    text = repr(value[:_LONGEST_TEXT] if isinstance(value, (str, bytes)) else value)
    if len(text) > 2 * _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}..."
    return f"{kind} {text}"


def positive_seconds_of(value: Any, name: str) -> float:
    """Return `value` as seconds greater than zero.

    Raises:
        ValueError: If it is not; the message names `name`.
    """
    seconds = seconds_of(value, name)
    if seconds <= 0:
        msg = f"{name} must be more than 0 seconds, got {shown(value)}"
        raise ValueError(msg)
    return seconds


def from_wire(value: Any, name: str = WIRE_KEY) -> Deadline:
    """Return the deadline that another process or a caller's config asked for.

    A number below 1e8 (or its text) is seconds left, a larger one an instant in epoch
    seconds, other text an RFC 3339 instant. A `Deadline` is taken as it is.

    Raises:
        ValueError: If `value` is none of these; the message names `name`.
    """
    if isinstance(value, Deadline):
        return value
    if isinstance(value, str):
        value = _number_or_instant(value.strip(), name)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            msg = f"{name} must carry a time zone, got {shown(value)}"
            raise ValueError(msg)
        return Deadline.at(value)
    seconds = seconds_of(value, name)
    if seconds >= _EPOCH_FROM:
        return Deadline.at(seconds)
    return Deadline.after(positive_seconds_of(seconds, name))


def _number_or_instant(text: str, name: str) -> float | datetime:
    if len(text) <= _LONGEST_TEXT:
        if _NUMBER.fullmatch(text):
            return float(text)
        try:
            instant = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            # "2026" or "20260101" parse as dates; without a zone they are guesses
            if instant.tzinfo is not None:
                return instant
    msg = (
        f"{name} must be seconds left, epoch seconds or an RFC 3339 instant with a "
        f"time zone, got {shown(text)}"
    )
    raise ValueError(msg)
