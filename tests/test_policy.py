"""What an owner decides about time: frozen, coerced and checked once."""

from __future__ import annotations

import copy
import json
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from langgraph_deadline import Deadline, DeadlinePolicy, StepBudget, _clock
from langgraph_deadline.policy import DEFAULT_RESERVE, check_names, coerce
from langgraph_deadline.testing import VirtualClock

budgets = st.floats(min_value=1e-3, max_value=1e6, allow_nan=False)
fractions = st.floats(min_value=0, max_value=0.99, allow_nan=False)


@st.composite
def step_budgets(draw: st.DrawFn) -> StepBudget:
    """Return any valid `StepBudget` without an `otherwise`."""
    seconds = draw(st.none() | budgets)
    most = 1e6 if seconds is None else seconds
    return StepBudget(seconds=seconds, needs=draw(st.floats(0, most)))


@st.composite
def policies(draw: st.DrawFn) -> DeadlinePolicy:
    """Return any valid `DeadlinePolicy`."""
    seconds = draw(st.none() | budgets)
    reserve: Any = draw(st.none() | fractions)
    if seconds is not None and draw(st.booleans()):
        part = timedelta(seconds=seconds * draw(fractions))
        reserve = part if part.total_seconds() < seconds else None
    elif seconds is None and draw(st.booleans()):
        reserve = draw(budgets)
    names = st.text(min_size=1, max_size=8)
    return DeadlinePolicy(
        seconds=seconds,
        reserve=reserve,
        on_exceeded=draw(st.sampled_from([None, "fallback", "raise", "return"])),
        steps=draw(st.dictionaries(names, step_budgets(), max_size=3)),
        clock=draw(st.sampled_from(["active", "wall", "restart"])),
        cancel_grace=draw(st.floats(0, 10)),
        enforce=draw(st.booleans()),
    )


# Loading and storing.


@given(policies())
def test_a_policy_survives_json(policy: DeadlinePolicy) -> None:
    """What is written is what is read, by pydantic and by plain `json`."""
    text = policy.model_dump_json()
    assert DeadlinePolicy.model_validate_json(text) == policy
    assert DeadlinePolicy.model_validate(json.loads(text)) == policy


def test_a_policy_loads_from_what_people_write() -> None:
    """A configuration file holds numbers, and steps may be numbers too."""
    text = """{"seconds": 30, "reserve": 0.1, "on_exceeded": "return",
               "steps": {"retrieve": 8, "plan": {"seconds": 5, "needs": 0.5}},
               "clock": "wall", "cancel_grace": 0.5, "enforce": false}"""
    assert DeadlinePolicy.model_validate_json(text) == DeadlinePolicy(
        seconds=30,
        reserve=0.1,
        on_exceeded="return",
        steps={
            "retrieve": StepBudget(seconds=8),
            "plan": StepBudget(seconds=5, needs=0.5),
        },
        clock="wall",
        cancel_grace=0.5,
        enforce=False,
    )


@given(policies())
def test_a_policy_has_equal_copies(policy: DeadlinePolicy) -> None:
    """`model_copy`, `deepcopy` and `pickle` give an equal policy."""
    assert policy.model_copy() == policy
    assert copy.deepcopy(policy) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301, RUF100


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda budget: budget.model_copy(deep=True),
        lambda budget: pickle.loads(pickle.dumps(budget)),  # noqa: S301, RUF100
        lambda budget: StepBudget.model_validate_json(budget.model_dump_json()),
    ],
    ids=["copy", "deepcopy", "model_copy", "pickle", "json"],
)
def test_a_step_without_otherwise_has_none_after_a_copy(copied: Any) -> None:
    """The mark for "not given" is still recognised: nothing is used by mistake."""
    assert not copied(StepBudget(seconds=1)).has_otherwise


@pytest.mark.parametrize("value", [None, False, 0, "", [], lambda state: state])
def test_any_value_can_be_the_otherwise(value: Any) -> None:
    """`None` and other false values are values, not the lack of one."""
    budget = StepBudget(seconds=1, otherwise=value)
    assert budget.has_otherwise
    assert budget.otherwise is value
    assert not StepBudget(seconds=1).has_otherwise


def test_otherwise_is_code_and_stays_out_of_json() -> None:
    """A callable cannot be stored, and does not keep the rest from being."""
    policy = DeadlinePolicy(steps={"a": StepBudget(seconds=1, otherwise=print)})
    assert json.loads(policy.model_dump_json())["steps"] == {
        "a": {"seconds": 1.0, "needs": 0.0}
    }


def test_a_policy_is_frozen_and_does_not_follow_what_it_was_made_from() -> None:
    """Neither by assignment nor through the dictionary that was given."""
    steps = {"a": StepBudget(seconds=1)}
    policy = DeadlinePolicy(seconds=1, steps=steps)
    steps["b"] = StepBudget(seconds=2)
    assert set(policy.steps) == {"a"}
    for model, field in ((policy, "seconds"), (policy.steps["a"], "needs")):
        with pytest.raises(ValidationError):
            setattr(model, field, 5)


# The reserve.


@given(budgets, fractions)
def test_a_reserve_below_1_is_a_fraction(budget: float, reserve: float) -> None:
    """It grows with the budget of the run."""
    policy = DeadlinePolicy(reserve=reserve)
    assert policy.reserve_of(budget) == pytest.approx(budget * reserve)


@given(st.floats(min_value=1, max_value=1e6))
def test_a_reserve_from_1_on_is_seconds(reserve: float) -> None:
    """Whatever the budget is."""
    assert DeadlinePolicy(reserve=reserve).reserve_of(1e9) == reserve


@given(st.floats(min_value=0, max_value=1e6))
def test_a_timedelta_is_always_seconds(reserve: float) -> None:
    """Also below one second."""
    given_reserve = timedelta(seconds=reserve)
    policy = DeadlinePolicy(reserve=given_reserve)
    assert policy.reserve_of(1e9) == given_reserve.total_seconds()


def test_the_default_reserve_is_a_fifth_where_there_is_a_fallback() -> None:
    """Without one nothing is kept back."""
    assert DEFAULT_RESERVE == 0.2
    assert DeadlinePolicy().reserve_of(10, fallback=True) == 2
    assert DeadlinePolicy().reserve_of(10) == 0
    assert DeadlinePolicy(reserve=0).reserve_of(10, fallback=True) == 0


@given(policies(), st.booleans())
def test_some_work_is_left_beside_every_valid_reserve(
    policy: DeadlinePolicy, fallback: bool
) -> None:
    """The reserve of a checked policy is at least zero and less than its budget."""
    if policy.seconds is not None:
        kept = policy.reserve_of(policy.seconds, fallback=fallback)
        assert 0 <= kept < policy.seconds


# Coercion.


@given(budgets)
def test_a_number_and_a_timedelta_become_a_policy(seconds: float) -> None:
    """With those seconds and the defaults for the rest."""
    assert coerce(seconds) == DeadlinePolicy(seconds=seconds)
    span = timedelta(seconds=seconds)
    assert coerce(span) == DeadlinePolicy(seconds=span)
    assert coerce(span) == DeadlinePolicy(seconds=span.total_seconds())


def test_none_and_a_policy_are_taken_as_they_are() -> None:
    """No copy, no limit."""
    policy = DeadlinePolicy(seconds=5)
    assert coerce(policy) is policy
    assert coerce(None) is None


@given(st.floats(min_value=-100, max_value=100, allow_nan=False))
def test_a_deadline_becomes_what_is_left_until_it(ahead: float) -> None:
    """An instant that has passed is no bad input: next to nothing is left."""
    with _clock.use(VirtualClock()):
        policy = coerce(Deadline.after(ahead))
    assert policy is not None
    assert policy.seconds is not None
    assert 0 < policy.seconds <= max(ahead, 1e-6) + 1e-6


# Bad input (C13).

NO_BUDGET: list[Any] = [
    0,
    0.0,
    -1,
    -1e-9,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    "30",
    "30s",
    "",
    "PT30S",
    b"30",
    [30],
    {"second": 30},
    object(),
    timedelta(0),
    timedelta(seconds=-1),
    pytest.param(10**400, id="an integer beyond every float"),
]


@pytest.mark.parametrize("bad", NO_BUDGET)
def test_c13_coerce_names_the_argument(bad: Any) -> None:
    """Under the name that the caller's own function gives it."""
    with pytest.raises(ValueError, match=r"^deadline "):
        coerce(bad)
    with pytest.raises(ValueError, match=r"^budget "):
        coerce(bad, "budget")


@pytest.mark.parametrize("bad", NO_BUDGET)
def test_c13_seconds_are_positive_and_finite(bad: Any) -> None:
    """In a policy, in a step's budget, and in the short form of one."""
    for make in (
        lambda: DeadlinePolicy(seconds=bad),
        lambda: StepBudget(seconds=bad),
        lambda: DeadlinePolicy(steps={"retrieve": {"seconds": bad}}),
    ):
        with pytest.raises(ValueError, match="seconds"):
            make()


@pytest.mark.parametrize("bad", [b for b in NO_BUDGET if not isinstance(b, dict)])
def test_c13_a_bad_short_form_names_the_step(bad: Any) -> None:
    """`steps={"retrieve": -1}` says which step it is."""
    with pytest.raises(ValueError, match=r"steps\.retrieve"):
        DeadlinePolicy(steps={"retrieve": bad})


@pytest.mark.parametrize("field", ["needs", "cancel_grace", "reserve"])
@pytest.mark.parametrize(
    "bad",
    [
        -1,
        -1e-9,
        math.nan,
        math.inf,
        True,
        "5",
        "P-1D",
        "-PT5S",
        "soon",
        b"5",
        [5],
        timedelta(seconds=-1),
        pytest.param(10**400, id="an integer beyond every float"),
    ],
)
def test_c13_a_negative_or_malformed_duration_names_its_field(
    field: str, bad: Any
) -> None:
    """Zero is allowed there, less is not."""
    model = StepBudget if field == "needs" else DeadlinePolicy
    with pytest.raises(ValueError, match=field):
        model(**{field: bad})
    model(**{field: 0})


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("on_exceeded", "explode"),
        ("on_exceeded", True),
        ("clock", "lunar"),
        ("clock", None),
        ("steps", ["retrieve"]),
        ("steps", 5),
        ("steps", {"retrieve": None}),
        ("steps", {"retrieve": "5"}),
        ("enforce", "sometimes"),
        ("second", 5),
        ("timeout", 5),
    ],
)
def test_c13_an_unknown_option_or_choice_is_named(field: str, bad: Any) -> None:
    """A misspelt field is not silently ignored."""
    with pytest.raises(ValueError, match=field):
        DeadlinePolicy(**{field: bad})


@pytest.mark.parametrize("reserve", [10, 10.0, 11, timedelta(seconds=10), "PT11S"])
def test_c13_a_reserve_must_leave_time_for_work(reserve: Any) -> None:
    """Equal to the budget is too large as well; the message has both."""
    with pytest.raises(ValueError, match=r"reserve .*10") as caught:
        DeadlinePolicy(seconds=10, reserve=reserve)
    assert "budget" in str(caught.value)


def test_c13_needs_may_not_exceed_seconds() -> None:
    """Such a step could never start; equal ones can."""
    with pytest.raises(ValueError, match=r"needs \(2\.0 s\).*seconds \(1\.0 s\)"):
        StepBudget(seconds=1, needs=2)
    StepBudget(seconds=1, needs=1)
    StepBudget(needs=100)


def test_c13_an_unknown_step_is_an_error_with_a_suggestion() -> None:
    """The closest name where there is one, else all of them."""
    with pytest.raises(ValueError, match=r"steps names 'retreive'.*'retrieve'"):
        check_names(["retreive"], ["plan", "retrieve"], "steps")
    with pytest.raises(ValueError, match=r"steps names 'zzz'.*\['plan', 'retrieve'\]"):
        check_names(["zzz"], ["plan", "retrieve"], "steps")
    check_names([], [], "steps")
    check_names(["plan"], iter(["plan"]), "steps")
