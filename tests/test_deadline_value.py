"""The value: an immutable instant, and the forms in which it arrives."""

from __future__ import annotations

import copy
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langgraph_deadline import Deadline, _clock
from langgraph_deadline.deadline import WIRE_KEY, from_wire
from langgraph_deadline.testing import VirtualClock

seconds = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)
left = st.floats(min_value=1e-6, max_value=9e7, allow_nan=False)


class Jumping(VirtualClock):
    """A virtual clock whose wall clock can be set, as NTP does."""

    offset = 0.0

    def wall(self) -> float:
        """Return the virtual wall-clock time, wherever it was set to."""
        return super().wall() + self.offset


# The instant.


@given(seconds)
def test_a_duration_becomes_an_instant_once(given_seconds: float) -> None:
    """What is left shrinks with the clock, from the duration to below zero."""
    clock = VirtualClock()
    with _clock.use(clock):
        deadline = Deadline.after(given_seconds)
        assert deadline.remaining() == pytest.approx(given_seconds, abs=1e-6)
        clock.advance(10)
        assert deadline.remaining() == pytest.approx(given_seconds - 10, abs=1e-6)


def test_remaining_goes_negative_and_expires_exactly_at_the_instant() -> None:
    """At the instant itself the deadline has passed."""
    clock = VirtualClock()
    with _clock.use(clock):
        deadline = Deadline.after(timedelta(seconds=2))
        assert not deadline.expired
        clock.advance(2)
        assert deadline.remaining() == 0
        assert deadline.expired
        clock.advance(1)
        assert deadline.remaining() == -1


def test_a_jump_of_the_wall_clock_moves_no_deadline() -> None:
    """Only the monotonic clock counts once the deadline is made."""
    clock = Jumping()
    with _clock.use(clock):
        deadline = Deadline.at(datetime.fromtimestamp(clock.wall() + 30, UTC))
        clock.offset = 3600
        assert deadline.remaining() == pytest.approx(30)
        clock.offset = -3600
        assert deadline.remaining() == pytest.approx(30)


@given(seconds, st.integers(min_value=-14, max_value=14))
def test_an_instant_is_the_same_in_every_zone(ahead: float, hours: int) -> None:
    """Epoch seconds, UTC and any other zone mean the same instant."""
    clock = VirtualClock()
    with _clock.use(clock):
        instant = datetime.fromtimestamp(clock.wall(), UTC) + timedelta(seconds=ahead)
        zoned = instant.astimezone(timezone(timedelta(hours=hours)))
        for form in (zoned, instant.timestamp()):
            assert Deadline.at(form).remaining() == pytest.approx(ahead, abs=1e-3)


@given(st.lists(seconds, min_size=1, max_size=8))
def test_min_is_the_earliest_and_order_is_that_of_time(limits: list[float]) -> None:
    """`min`, `max` and `sorted` agree with what is left."""
    with _clock.use(VirtualClock()):
        deadlines = [Deadline.after(limit) for limit in limits]
        assert min(deadlines) == Deadline.after(min(limits))
        assert max(deadlines) == Deadline.after(max(limits))
        by_time = [deadline.remaining() for deadline in sorted(deadlines)]
        assert by_time == sorted(by_time)


@given(seconds, seconds)
def test_exactly_one_of_before_equal_after_holds(first: float, second: float) -> None:
    """Deadlines are totally ordered, and equal ones have equal hashes."""
    with _clock.use(VirtualClock()):
        one, other = Deadline.after(first), Deadline.after(second)
        assert (one < other) + (one == other) + (one > other) == 1
        assert (one <= other) == (not one > other)
        if one == other:
            assert hash(one) == hash(other)


def test_a_deadline_is_immutable() -> None:
    """No attribute can be set, changed or added."""
    deadline = Deadline.after(1)
    for name in ("_at", "seconds", "expired"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(deadline, name, 5.0)
    assert copy.deepcopy(deadline) == deadline


def test_a_deadline_is_not_compared_with_numbers() -> None:
    """A duration is no instant: mixing them up is an error, not an answer."""
    deadline: Any = Deadline.after(1)
    assert deadline != 1.0
    with pytest.raises(TypeError):
        _ = deadline < 1.0


def test_a_deadline_shows_what_is_left() -> None:
    """Its text is for people."""
    with _clock.use(VirtualClock()):
        assert repr(Deadline.after(1.5)) == "<Deadline in 1.500 s>"


# Bad input.

NO_SECONDS: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    "5",
    "",
    b"5",
    None,
    [5],
    {"seconds": 5},
    1j,
    object(),
    pytest.param(10**400, id="an integer beyond every float"),
    pytest.param(-(10**400), id="a negative one"),
]


@pytest.mark.parametrize("bad", NO_SECONDS)
def test_c13_after_refuses_what_is_no_finite_number(bad: Any) -> None:
    """A duration is a finite number or a timedelta; the error names the argument."""
    with pytest.raises(ValueError, match="seconds"):
        Deadline.after(bad)


@pytest.mark.parametrize("bad", NO_SECONDS)
def test_c13_at_refuses_what_is_no_instant(bad: Any) -> None:
    """An instant is an aware datetime or finite epoch seconds."""
    with pytest.raises(ValueError, match="instant"):
        Deadline.at(bad)


def test_c13_at_refuses_a_naive_datetime() -> None:
    """Without a zone an instant is a guess."""
    with pytest.raises(ValueError, match="instant must carry a time zone"):
        Deadline.at(datetime(2026, 1, 1))  # noqa: DTZ001, RUF100 - that is the point


# On the wire.


@given(left)
def test_a_small_number_on_the_wire_is_seconds_left(value: float) -> None:
    """The number and its text mean the same."""
    with _clock.use(VirtualClock()):
        assert from_wire(value) == Deadline.after(value)
        assert from_wire(repr(value)) == Deadline.after(value)
        assert from_wire(f"  {value!r} ") == Deadline.after(value)


@given(st.floats(min_value=-1e6, max_value=1e6))
def test_a_large_number_on_the_wire_is_an_instant(ahead: float) -> None:
    """Epoch seconds, as a number or text, past ones too; and so is RFC 3339."""
    clock = VirtualClock()
    with _clock.use(clock):
        instant = clock.wall() + ahead
        text = datetime.fromtimestamp(instant, UTC).isoformat()
        for form in (instant, repr(instant), text, text.replace("+00:00", "Z")):
            found = from_wire(form).remaining()
            assert found == pytest.approx(ahead, abs=1e-3)


def test_1e8_is_where_seconds_end_and_instants_begin() -> None:
    """The border is as documented."""
    with _clock.use(VirtualClock()):
        assert from_wire(99_999_999).remaining() == pytest.approx(99_999_999)
        assert from_wire(100_000_000).expired


def test_in_process_a_deadline_is_taken_as_it_is() -> None:
    """No conversion, hence no loss."""
    deadline = Deadline.after(3)
    assert from_wire(deadline) is deadline


MALFORMED: list[Any] = [
    "",
    " ",
    "nan",
    "NaN",
    "inf",
    "Infinity",
    "-inf",
    "1_000",
    "0x10",
    "1e999",
    "5s",
    "5 s",
    "5,0",
    "1.2.3",
    "--5",
    "+",
    ".",
    "5\x00",
    "5\r\nx-admin: 1",
    pytest.param("\N{ARABIC-INDIC DIGIT THREE}", id="Arabic-Indic digit"),
    pytest.param("\N{FULLWIDTH DIGIT FIVE}", id="full-width digit"),
    "-5",
    "0",
    "-0.0",
    0,
    0.0,
    -1,
    -1e12,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    b"5",
    [5],
    (5,),
    {"seconds": 5},
    {5},
    1j,
    object(),
    "true",
    "None",
    "now",
    "tomorrow",
    "2026-01-01",
    "2026-01-01T00:00:00",
    "2026-01-01 00:00:00",
    "2026-13-01T00:00:00Z",
    "2026-01-01T25:00:00Z",
    "2026-01-01T00:00:00+99:00",
    pytest.param(datetime(2026, 1, 1), id="a naive datetime"),
    pytest.param("9" * 100_000, id="100 kB of digits"),
    pytest.param("x" * 1_000_000, id="1 MB of text"),
    pytest.param(10**400, id="an integer beyond every float"),
    pytest.param(-(10**400), id="a negative one"),
    pytest.param(10**5000, id="an integer too long to be shown"),
]


@pytest.mark.parametrize("bad", MALFORMED)
def test_c13_a_malformed_value_on_the_wire_is_an_error_that_names_it(bad: Any) -> None:
    """Never a guess, never another kind of exception."""
    with pytest.raises(ValueError, match=WIRE_KEY):
        from_wire(bad)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("x" * 1_000_000, id="text"),
        pytest.param(b"x" * 1_000_000, id="bytes"),
        pytest.param([0] * 1_000_000, id="list"),
        pytest.param({"k": "x" * 1_000_000}, id="dict"),
        pytest.param(-(10**3000), id="int"),
    ],
)
def test_c13_a_hostile_value_does_not_fill_the_log(bad: Any) -> None:
    """What is quoted of it in the message is short."""
    with pytest.raises(ValueError, match=WIRE_KEY) as caught:
        from_wire(bad)
    assert len(str(caught.value)) < 400


@given(
    st.one_of(
        st.text(max_size=80),
        st.from_regex(r"[0-9TZ:+\-. eE]{0,40}", fullmatch=True),
        st.floats(),
        st.integers(),
        st.booleans(),
        st.binary(max_size=20),
        st.lists(st.integers(), max_size=3),
    )
)
def test_c13_anything_on_the_wire_is_a_deadline_or_a_value_error(value: Any) -> None:
    """Whatever a client sends: a finite deadline, or a ValueError with its name."""
    try:
        deadline = from_wire(value)
    except ValueError as error:
        named = WIRE_KEY in str(error)
        assert named, error  # noqa: PT017 - both ends are right
    else:
        assert math.isfinite(deadline.remaining())
