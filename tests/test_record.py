"""The record: what a resume has to know, as plain values any saver takes."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypedDict, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START
from langgraph.types import Command, interrupt

from langgraph_deadline import StateGraph
from langgraph_deadline._record import (
    RECORD_KEY,
    Outcome,
    Record,
    epoch,
    load,
    spent_before,
)
from langgraph_deadline.errors import Cause

epochs = st.floats(min_value=1.6e9, max_value=2e9)
durations = st.floats(min_value=0, max_value=1e6)
clocks = st.sampled_from(["active", "wall", "restart"])
outcomes = st.sampled_from(get_args(Outcome))

records = st.builds(
    Record,
    outcome=outcomes,
    spent=durations,
    since=epochs,
    started=epochs,
    budget=st.none() | st.floats(min_value=1e-3, max_value=1e6),
    cause=st.none() | st.sampled_from(get_args(Cause)),
    cut=st.lists(st.text(max_size=10), max_size=4).map(tuple),
    sequence=st.integers(0, 1000),
)


# Stored and loaded.


@given(records)
def test_a_record_survives_json_and_langgraphs_serializer(record: Record) -> None:
    """What one process writes is what another one reads."""
    dumped = record.dump()
    assert load(dumped) == record
    assert load(json.loads(json.dumps(dumped))) == record
    serializer = JsonPlusSerializer()
    assert load(serializer.loads_typed(serializer.dumps_typed(dumped))) == record


@given(records)
def test_a_dump_holds_plain_values_only(record: Record) -> None:
    """No class of ours, so that a process without this package can load the state."""
    dumped = record.dump()
    assert set(dumped) == {field.name for field in fields(Record)}
    for value in dumped.values():
        assert type(value) in (str, float, int, list, type(None))


@given(records, st.dictionaries(st.text(min_size=20, max_size=25), st.integers()))
def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known(
    record: Record, more: dict[str, int]
) -> None:
    """Fields that are new to us are ignored."""
    assert load({**record.dump(), **more, 5: 6}) == record


@given(records, st.sampled_from(["outcome", "spent", "since", "started"]))
def test_a_record_without_its_facts_is_none(record: Record, missing: str) -> None:
    """It keeps no thread from going on."""
    dumped = record.dump()
    del dumped[missing]
    assert load(dumped) is None


@pytest.mark.parametrize(
    "value", [None, "", "running", 5, 5.0, True, [], ["running", 1, 2, 3], {}, object()]
)
def test_what_is_no_record_is_none(value: Any) -> None:
    """Whatever stands in the channel."""
    assert load(value) is None


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("spent", "5"),
        ("spent", None),
        ("spent", math.nan),
        ("spent", -5.0),
        ("since", "now"),
        ("since", None),
        ("started", [1]),
        ("started", math.inf),
        ("budget", "5"),
        ("budget", -1),
        ("cut", None),
        ("cut", 5),
        ("sequence", "first"),
        ("outcome", 5),
    ],
)
def test_a_record_that_makes_no_sense_is_none(field: str, bad: Any) -> None:
    """It must not fail later, when a resume computes with it."""
    dumped = Record("interrupted", 1.0, 1.7e9, 1.7e9).dump()
    assert load(dumped) is not None
    assert load({**dumped, field: bad}) is None


class State(TypedDict, total=False):
    log: str


@pytest.mark.parametrize(
    "junk",
    [
        "junk",
        {"outcome": "interrupted"},
        {**Record("interrupted", 0.1, 1.7e9, 1.7e9).dump(), "spent": "a lot"},
        {**Record("running", 0.1, 1.7e9, 1.7e9).dump(), "since": None},
        {**Record("interrupted", 0.1, 1.7e9, 1.7e9).dump(), "sequence": "first"},
        {**Record("interrupted", 0.1, 1.7e9, 1.7e9).dump(), "budget": "5"},
    ],
)
def test_c10_a_thread_with_an_unreadable_record_can_be_resumed(junk: Any) -> None:
    """It goes on with whatever else is known."""

    def ask(state: State) -> State:
        return {"log": interrupt("?")}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    saver = InMemorySaver()
    graph = builder.compile(checkpointer=saver, deadline=30)
    config: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke({}, config)
    latest = saver.get_tuple(config)
    assert latest is not None
    saver.put_writes(latest.config, [(RECORD_KEY, junk)], "another version's")
    assert graph.invoke(Command(resume="yes"), config) == {"log": "yes"}


def test_only_running_and_interrupted_runs_are_resumed() -> None:
    """All other outcomes are ends: what follows has a fresh budget."""
    resumable = {
        outcome for outcome in get_args(Outcome) if Record(outcome, 0, 0, 0).resumable
    }
    assert resumable == {"running", "interrupted"}


def test_numbered_changes_nothing_else() -> None:
    """Records are ordered by their number, and otherwise values."""
    record = Record("running", 1, 2, 3)
    assert record.numbered(5) == Record("running", 1, 2, 3, sequence=5)
    assert record.sequence == 0


# What was spent.


@given(st.none() | records, clocks, st.none() | epochs, st.none() | epochs, epochs)
def test_c10_what_was_spent_is_never_negative(
    record: Record | None,
    clock: Any,
    began: float | None,
    last_seen: float | None,
    now: float,
) -> None:
    """Whatever the clocks of the machines in question say."""
    spent = spent_before(record, clock=clock, began=began, last_seen=last_seen, now=now)
    assert spent >= 0
    assert math.isfinite(spent)


@given(st.none() | records, st.none() | epochs, st.none() | epochs, epochs)
def test_c10_restart_charges_nothing(
    record: Record | None, began: float | None, last_seen: float | None, now: float
) -> None:
    """Every invocation has a fresh budget."""
    assert (
        spent_before(record, clock="restart", began=began, last_seen=last_seen, now=now)
        == 0
    )


@given(records, clocks, epochs, epochs, epochs)
def test_c10_a_run_that_was_cut_leaves_nothing_to_pay(
    record: Record, clock: Any, began: float, last_seen: float, now: float
) -> None:
    """A resume of it starts afresh."""
    assume(not record.resumable)
    assert (
        spent_before(record, clock=clock, began=began, last_seen=last_seen, now=now)
        == 0
    )


@given(durations, epochs, durations, durations)
def test_c10_active_does_not_charge_the_wait_for_a_person(
    spent: float, since: float, waited: float, longer: float
) -> None:
    """However long it takes, what was spent up to the interrupt is all."""
    record = Record("interrupted", spent, since, since - spent)
    for wait in (waited, waited + longer):
        assert spent == spent_before(
            record,
            clock="active",
            began=since - spent,
            last_seen=since,
            now=since + wait,
        )


@given(durations, epochs, durations)
def test_c10_wall_charges_the_wait_for_a_person(
    spent: float, since: float, waited: float
) -> None:
    """From the run's start to now, whatever was done meanwhile."""
    started = since - spent
    record = Record("interrupted", spent, since, started)
    charged = spent_before(
        record, clock="wall", began=None, last_seen=None, now=since + waited
    )
    assert charged == pytest.approx(spent + waited, abs=1e-3)


@given(epochs, durations, durations)
def test_c10_a_killed_run_is_charged_up_to_its_last_checkpoint(
    began: float, worked: float, dead: float
) -> None:
    """Without a record the checkpoints tell, and the time it lay dead is free."""
    charged = spent_before(
        None,
        clock="active",
        began=began,
        last_seen=began + worked,
        now=began + worked + dead,
    )
    assert charged == pytest.approx(worked, abs=1e-3)


@given(durations, epochs, durations, durations)
def test_c10_a_run_killed_after_a_resume_is_charged_for_both_parts(
    spent: float, since: float, worked: float, dead: float
) -> None:
    """What its record says, and what came since up to its last checkpoint."""
    record = Record("running", spent, since, since - spent)
    charged = spent_before(
        record,
        clock="active",
        began=None,
        last_seen=since + worked,
        now=since + worked + dead,
    )
    assert charged == pytest.approx(spent + worked, abs=1e-3)


@given(durations, epochs, durations)
def test_c10_a_clock_that_went_back_charges_nothing_extra(
    spent: float, since: float, back: float
) -> None:
    """Another machine's clock may be behind: what is known for certain is charged."""
    record = Record("running", spent, since, since)
    charged = spent_before(
        record, clock="active", began=None, last_seen=since - back, now=since
    )
    assert charged == spent


def test_the_time_of_a_checkpoint_is_read_in_its_zone() -> None:
    """LangGraph writes ISO 8601 with a zone."""
    instant = datetime(2026, 1, 1, tzinfo=UTC)
    assert epoch(instant.isoformat()) == instant.timestamp()
    assert epoch("2026-01-01T01:00:00+01:00") == instant.timestamp()
    assert epoch(None) is None
    assert epoch("") is None
