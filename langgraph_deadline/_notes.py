"""Keep a run's record where a resume finds it."""

from __future__ import annotations

from typing import Any

from . import _clock
from ._record import Record
from ._resume import record_writes
from ._run import Run


def _due(run: Run) -> tuple[Any, list[Any], str] | None:
    """Return what has to be written at the end of `run`, `None` for most runs."""
    if run.saved.saver is None or run.implicit:
        return None
    # A cut comes first: a question that was asked beside it, or before it, is answered
    # by a resume that needs time, and none of this run's is left.
    if run.touched and (run.mode == "raise" or run.phase == "over"):
        record = cut_record(run)
    elif run.interrupted:
        record = Record(
            "interrupted",
            _clock.now() - run.started + run.spent,
            _clock.wall(),
            run.started_wall,
            run.asked_budget,
            run.cause if run.phase == "falling back" else None,
        )
    else:
        return None
    return record_writes(run, record)


def note(run: Run) -> None:
    """Store the record of a run that was interrupted or cut."""
    due = _due(run)
    if due is not None:
        run.saved.saver.put_writes(*due)


async def note_async(run: Run) -> None:
    """Store the record of a run that was interrupted or cut."""
    due = _due(run)
    if due is not None:
        await run.saved.saver.aput_writes(*due)


def running_record(run: Run) -> Record:
    """Return the record of a run that is at work in this process."""
    began = _clock.wall() - (_clock.now() - run.started)
    return Record("running", run.spent, began, run.started_wall, run.asked_budget)


def cut_record(run: Run) -> Record:
    """Return the record of a run that was cut."""
    cause = run.cause or "deadline"
    outcome: Any = "deadline"
    if cause == "cancelled":
        outcome = "cancelled"
    elif cause not in ("deadline", "step", "window"):
        outcome = "limit"
    return Record(
        outcome,
        _clock.now() - run.started + run.spent,
        _clock.wall(),
        run.started_wall,
        run.asked_budget,
        cause,
        run.cut_names(),
        tuple(unknown_calls(run)),
    )


def unknown_calls(run: Run) -> list[dict[str, Any]]:
    """Return the run's tool calls whose outcome is unknown, as plain values."""
    return [call.report().model_dump() for call in run.unknown]
