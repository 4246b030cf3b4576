"""What must hold in every cell, checked by the same code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness import SYNC

from langgraph_deadline import DeadlineExceeded, _cut, _threads

from .bench import GRACE, Bench
from .catalogue import Cell
from .driving import Turn

MARGIN = 0.6
"""What a busy machine may add where time is real (in seconds)."""
UNCHANGED = ("started", "state", "checkpoints", "store", "chunks")


@dataclass(frozen=True)
class Facts:
    """All that a straggler could change."""

    started: tuple[str, ...]
    state: str
    checkpoints: int
    store: str
    chunks: tuple[Any, ...]


def facts(bench: Bench, graph: Any, config: Any) -> Facts:
    """Return what there is at present."""
    return Facts(
        started=tuple(bench.started),
        state=repr(graph.get_state(config)),
        checkpoints=sum(1 for _ in bench.saver.list(config)),
        store=repr(bench.store.search(())),
        chunks=tuple(bench.chunks),
    )


def first_turn(cell: Cell, bench: Bench, turn: Turn) -> None:
    """Check a turn with a fault in it, as its caller sees it."""
    assert bench.reached, "the fault was never reached"
    ended_as_it_must(cell, turn)
    on_time(cell, bench, turn)
    sticky(cell, turn)
    one_fallback(cell, bench, turn)
    finished_work_is_kept(cell, bench, turn)
    nothing_leads_on(cell, bench)


def ends(cell: Cell, turn: Turn) -> str:
    """Return how the cell's run ends, where the place has a say in it as well."""
    ending = cell.fault.ending
    if may_be_stuck(cell) and type(turn.error) is DeadlineExceeded:
        return "exceeded"
    if cell.place.name == "fallback" and ending in ("answered", "stored", "late"):
        return "exceeded"  # the fallback hangs
    if cell.place.name in ("fallback", "subgraph") and ending == "unsaved":
        return "stored"  # a node hangs before; the subgraph cannot save, and is cut
    return ending


def ended_as_it_must(cell: Cell, turn: Turn) -> None:
    """The caller gets what the table says."""
    error = turn.error
    match ends(cell, turn):
        case "fails":
            assert type(error) is ValueError, error
        case "raised":
            hung = DeadlineExceeded if cell.place.name == "fallback" else OSError
            assert type(error) in {OSError, hung}, error  # whichever comes first
        case "exceeded":
            assert type(error) is DeadlineExceeded, error
        case "left":
            kinds = (asyncio.CancelledError, KeyboardInterrupt)
            closed = cell.fault.leaving == "closed"
            assert error is None if closed else isinstance(error, kinds), error
        case "unsaved":
            assert error is None, error
            assert turn.values["log"][-1] == "after"
        case "stored" if may_be_stuck(cell):
            assert error is None, error
            assert turn.values["log"][-1] in ("degrade", "closing")
        case _:
            assert error is None, error
            assert turn.values["log"][-2:] == ["degrade", "closing"]


def may_be_stuck(cell: Cell) -> bool:
    """Return whether the engine itself may hang, so that nothing goes on.

    In sync runs LangGraph saves in the few threads that nodes need as well.
    """
    return cell.fault.ending in ("stored", "unsaved") and cell.how in SYNC


def on_time(cell: Cell, bench: Bench, turn: Turn) -> None:
    """By the deadline, at most the grace later, and not before time is up."""
    margin = 1e-6 if bench.virtual else MARGIN
    if cell.fault.ending == "left":
        assert turn.left_at is not None
        since = bench.began + turn.elapsed - turn.left_at
        assert since <= GRACE + 0.1 + margin, f"left {since} s ago"
        return
    earliest, latest = times(cell, bench, turn)
    assert earliest - 1e-3 <= turn.elapsed <= latest + margin, turn.elapsed


def times(cell: Cell, bench: Bench, turn: Turn) -> tuple[float, float]:
    """Return when the run must end: from, to (in seconds)."""
    in_fallback = cell.place.name == "fallback"
    resists = GRACE if cell.fault.resists and bench.is_async else 0.0
    match ends(cell, turn):
        case "stored" | "unsaved":
            return bench.end, bench.end + GRACE
        case "exceeded" if cell.fault.ending in ("stored", "unsaved"):
            return bench.end, bench.end + GRACE
        case "late":
            return bench.work, bench.work + 0.5
        case "exceeded" if cell.fault.ending == "late":
            return bench.end, bench.end + 1.0  # what it was blocked beyond the deadline
        case "fails":
            return bench.work, bench.work
    at = bench.end if in_fallback else bench.work
    return at, at + resists + bench.takes


def sticky(cell: Cell, turn: Turn) -> None:
    """A run with a fault is no plain success."""
    (report,) = turn.reports
    expected = {"deadline"}
    if cell.fault.ending == "left" and cell.place.name != "fallback":
        expected = {"cancelled"}  # in the fallback the deadline has come first
    assert report.outcome in expected, report
    if cell.fault.ending == "late":
        named = [entry.name for entry in report.stragglers if entry.blocked_loop]
        assert cell.place.blocker in named, report


def one_fallback(cell: Cell, bench: Bench, turn: Turn) -> None:
    """Exactly one fallback; none where nobody waits, or where all work was done."""
    times_called = bench.started.count("degrade")
    for_nobody = cell.fault.ending == "left" and cell.place.name != "fallback"
    if may_be_stuck(cell) and turn.error is not None:
        assert times_called <= 1
    else:
        assert times_called == (0 if for_nobody or ends(cell, turn) == "unsaved" else 1)


def finished_work_is_kept(cell: Cell, bench: Bench, turn: Turn) -> None:
    """What had finished is what the fallback sees, and what comes out in the end."""
    for state in bench.seen:
        logged, found, answers = finished(state)
        assert logged_by(cell) <= logged, state
        assert set(cell.place.found) <= found, state
        assert set(cell.place.answered) <= answers, state
        if cell.fault.returns and bench.is_async:
            assert set(cell.place.returned) <= logged | found | answers, state
        if turn.error is None and turn.values is not None:
            assert turn.values["log"][: len(state["log"])] == state["log"]


def finished(state: dict[str, Any]) -> tuple[set[str], set[str], set[str]]:
    """Return what has logged, was found, and has answered by this state."""
    answers = {
        message.name
        for message in state.get("messages", ())
        if message.type == "tool" and message.status == "success"
    }
    return set(state["log"]), set(state.get("found", ())), answers


def logged_by(cell: Cell) -> set[str]:
    """Return who must have logged by the time of the fallback."""
    if cell.place.name == "send" and cell.fault.ending == "late":
        return {"earlier", "worker 0"}  # the others had no chance to begin
    return {"earlier", "sibling", *cell.place.logged}


def nothing_leads_on(cell: Cell, bench: Bench) -> None:
    """The edges of what was cut do not fire."""
    if cell.fault.ending != "unsaved":
        assert "after" not in bench.started
    if cell.place.name == "retry":
        assert bench.started.count("suspect") == 2, "another attempt was made"


def fenced(cell: Cell, before: Facts, after: Facts, bench: Bench) -> None:
    """What runs on changes nothing: nothing starts, no state, stream or store."""
    assert "late tool" not in bench.started, "a straggler started a tool"
    assert "late" not in bench.chunks
    assert bench.store.search(("late",)) == []
    if cell.fault.goes_on:
        assert len(bench.refused) >= 2, "a straggler did not even try"
    # What could not be saved in time is saved once it can be.
    saves_late = cell.fault.ending in ("stored", "unsaved")
    for name in ("started", "store", "chunks") if saves_late else UNCHANGED:
        assert getattr(after, name) == getattr(before, name), name


def next_turn_is_clean(cut: Turn, fresh: Turn, ran: list[list[str]]) -> None:
    """The next turn does what it does on a fresh thread."""
    assert cut.error is None, cut.error
    assert fresh.error is None, fresh.error
    assert sorted(ran[0]) == sorted(ran[1])
    for turn in (cut, fresh):
        (report,) = turn.reports
        assert report.outcome == "completed"
    log = fresh.values["log"]
    assert sorted(cut.values["log"][-len(log) :]) == sorted(log)


def no_call_is_open(cell: Cell, turn: Turn) -> None:
    """A model could be asked again with the messages of the turn after the cut.

    Where nothing of the cut could be saved, the thread is as after a crash.
    """
    if cell.fault.ending != "raised":
        assert open_calls(turn.values.get("messages", ())) == set()


def open_calls(messages: Iterable[Any]) -> set[str]:
    """Return the ids of tool calls that have no answer before the model's next word."""
    waiting: set[str] = set()
    found: set[str] = set()
    for message in messages:
        if message.type == "tool":
            waiting.discard(message.tool_call_id)
            continue
        found |= waiting
        waiting = {call["id"] for call in getattr(message, "tool_calls", ())}
    return found | waiting


@dataclass(frozen=True)
class Before:
    """What others have left when a cell begins."""

    threads: frozenset[threading.Thread]
    tasks: frozenset[Any]
    jobs: frozenset[Any]

    @classmethod
    def now(cls) -> Before:
        """Return what there is."""
        return cls(
            frozenset(our_threads()),
            frozenset(_cut._given_up),
            frozenset(_threads._at_work),
        )


def our_threads() -> list[threading.Thread]:
    """Return the live threads that runs have started."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("langgraph-deadline")
    ]


def join_stragglers(before: Before, seconds: float = 5.0) -> None:
    """Wait for the threads of stragglers that were released."""
    for thread in our_threads():
        if thread not in before.threads:
            thread.join(seconds)


def nothing_is_left(before: Before) -> None:
    """No thread, given-up task or job of this cell is left."""
    assert set(our_threads()) <= before.threads
    assert set(_cut._given_up) <= before.tasks
    assert set(_threads._at_work) <= before.jobs


def loop_is_empty() -> None:
    """No task and no timer is left in the running loop."""
    loop: Any = asyncio.get_running_loop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
