"""The catalogue of faults: what fails, where, and how the run is driven.

An ordinary run has every cell in virtual time and a slice of those in real time; with
`LANGGRAPH_DEADLINE_FAULTS=all`, as `make faults` sets it, all of them are run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import cell as cells
from faults.bench import Bench
from faults.catalogue import CELLS, FAULTS, IMPOSSIBLE, KNOWN, Cell, in_slice
from faults.killed import Nursery, resume
from faults.places import PLACES

EVERYTHING = os.environ.get("LANGGRAPH_DEADLINE_FAULTS") == "all"


def params(*, virtual: bool = False, killed: bool = False) -> list[Any]:
    """Return the cells of this run, with their marks."""
    return [
        pytest.param(cell, id=str(cell).replace(" ", "_"), marks=marks_of(cell))
        for cell in CELLS
        if (cell.virtual, cell.fault.killed is not None) == (virtual, killed)
        if EVERYTHING or in_slice(cell)
    ]


def marks_of(cell: Cell) -> list[Any]:
    """Return the marks of a cell: time is real, or it is known to fail."""
    marks = [] if cell.virtual else [pytest.mark.realtime]
    if diagnosis := KNOWN.get((cell.fault.name, cell.place.name)):
        marks.append(
            pytest.mark.xfail(strict=True, reason=diagnosis, raises=AssertionError)
        )
    return marks


@pytest.mark.parametrize("cell", params(virtual=True))
def test_a_fault_breaks_no_promise(cell: Cell) -> None:
    """On time, sticky, fenced, kept, one fallback, clean, nothing left."""
    cells.run(cell)


@pytest.mark.parametrize("cell", params())
def test_a_fault_breaks_no_promise_in_real_time(cell: Cell) -> None:
    """The same where threads block."""
    cells.run(cell)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Return where processes come from that are to be killed."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.mark.parametrize("cell", params(killed=True))
def test_a_killed_run_goes_on_elsewhere(
    cell: Cell, nursery: Nursery, tmp_path: Path
) -> None:
    """Another process resumes it, with what was saved; the next turn is clean."""
    path = str(tmp_path / "threads.sqlite")
    nursery.run_and_die(cell, path)
    resume(cell, path)


def test_nobody_is_named_who_did_not_block_the_loop() -> None:
    """What had ended before, or had not begun, does not stand on the report."""
    (cell,) = (cell for cell in CELLS if str(cell) == "event loop blocked/node/ainvoke")
    bench = Bench(cell.how)
    turn = cells.first_turn(cell, bench)
    named = [entry.name for entry in turn.reports[0].stragglers if entry.blocked_loop]
    assert named == ["suspect"]


def test_the_slice_has_every_fault_and_every_place() -> None:
    """What an ordinary run leaves out is only another combination."""
    chosen = [cell for cell in CELLS if in_slice(cell)]
    assert {cell.place.name for cell in chosen} == {place.name for place in PLACES}
    names = {cell.fault.name for cell in chosen}
    assert len(names) == len(FAULTS)
    in_real_time = {cell.fault.name for cell in chosen if not cell.virtual}
    assert in_real_time == names - {"event loop blocked"}


def test_what_makes_no_sense_is_listed(record_property: Any) -> None:
    """No combination is left out without a reason."""
    total = len(FAULTS) * len(PLACES) * 4
    assert len(CELLS) + len(IMPOSSIBLE) == total
    assert all(IMPOSSIBLE.values())
    assert set(KNOWN) <= {(cell.fault.name, cell.place.name) for cell in CELLS}
    record_property("impossible", json.dumps(IMPOSSIBLE))
