"""Run one cell: a turn with the fault, its stragglers, a turn without it."""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph_deadline import StateGraph, _clock
from langgraph_deadline.testing import run_virtual

from . import invariants
from .bench import Bench, State
from .catalogue import Cell
from .driving import Call, Turn, adrive, drive
from .surroundings import observed, surround
from .suspect import Suspect

LINGER = 500.0
"""What stragglers have to show themselves (in virtual seconds)."""
HEALTHY: dict[str, Any] = {"deadline": 60}
"""For turns in real time that are to complete, on whatever machine."""


def thread(name: str) -> dict[str, Any]:
    """Return the config of a thread."""
    return {"configurable": {"thread_id": name}}


def graph_of(cell: Cell, bench: Bench) -> Any:
    """Return the cell's graph."""
    builder = StateGraph(State)
    fault = cell.fault
    sync = fault.sync or fault.asynchronous
    cell.place.build(Suspect(bench, sync, fault.asynchronous), builder)
    if "degrade" not in builder.nodes:
        builder.add_node("degrade", bench.fallback())
    builder.add_node("closing", bench.quick("closing"))
    builder.add_edge("degrade", "closing")
    return builder.compile(
        bench.saver, store=bench.store, deadline=bench.policy, fallback="degrade"
    )


def bench_for(cell: Cell) -> Bench:
    """Return what the cell is made on."""
    return Bench(
        cell.how,
        fallback_fails=cell.fault.ending == "fails",
        lets_go=cell.fault.goes_on
        and not cell.fault.returns
        and cell.place.name != "fallback",
    )


def run(cell: Cell) -> None:
    """Run `cell` and check it."""
    before = invariants.Before.now()
    bench = bench_for(cell)
    surround(bench, cell.fault.saver, cell.fault.store)
    graph = graph_of(cell, bench)
    try:
        if cell.virtual:
            run_virtual(_arun(cell, bench, graph, before), clock=bench.clock)
        else:
            with _clock.use(bench.clock):
                _run(cell, bench, graph, before)
    finally:
        bench.release()
        invariants.join_stragglers(before)
    invariants.nothing_is_left(before)


def first_turn(cell: Cell, bench: Bench) -> Turn:
    """Run the first turn of a cell in virtual time, and nothing else of it."""
    surround(bench, cell.fault.saver, cell.fault.store)
    call = _first(cell, bench, graph_of(cell, bench))
    return run_virtual(adrive(call), clock=bench.clock)


def _first(cell: Cell, bench: Bench, graph: Any) -> Call:
    bench.began = bench.clock.monotonic()
    return Call(bench, graph, {"log": []}, thread("1"), leaving=cell.fault.leaving)


def _next(bench: Bench, graph: Any, name: str) -> Call:
    bench.faulty = False
    bench.started.clear()
    options = {} if bench.virtual else HEALTHY
    return Call(bench, graph, {"log": ["again"]}, thread(name), options)


def _run(cell: Cell, bench: Bench, graph: Any, before: invariants.Before) -> None:
    with observed(failing=cell.fault.observed):
        turn = drive(_first(cell, bench, graph))
    invariants.first_turn(cell, bench, turn)
    was = invariants.facts(bench, graph, thread("1"))
    bench.release()
    invariants.join_stragglers(before)
    is_now = invariants.facts(bench, graph, thread("1"))
    invariants.fenced(cell, was, is_now, bench)
    turns: list[Turn] = []
    ran: list[list[str]] = []
    for name in ("1", "2"):
        turns.append(drive(_next(bench, graph, name)))
        ran.append(list(bench.started))
    invariants.next_turn_is_clean(*turns, ran)
    invariants.no_call_is_open(cell, turns[0])


async def _arun(
    cell: Cell, bench: Bench, graph: Any, before: invariants.Before
) -> None:
    with observed(failing=cell.fault.observed):
        turn = await adrive(_first(cell, bench, graph))
    invariants.first_turn(cell, bench, turn)
    was = invariants.facts(bench, graph, thread("1"))
    bench.release()
    invariants.join_stragglers(before)
    await asyncio.sleep(LINGER)
    is_now = invariants.facts(bench, graph, thread("1"))
    invariants.fenced(cell, was, is_now, bench)
    turns: list[Turn] = []
    ran: list[list[str]] = []
    for name in ("1", "2"):
        turns.append(await adrive(_next(bench, graph, name)))
        ran.append(list(bench.started))
    invariants.next_turn_is_clean(*turns, ran)
    invariants.no_call_is_open(cell, turns[0])
    invariants.loop_is_empty()
