"""What a run finds on its thread, and leaves there: the record of what it had.

Read from the checkpoints that its engine loads, and stored beside those that it saves,
as writes of a task of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.constants import START

from . import _clock
from ._langgraph import (
    CONF,
    CONFIG_KEY_CHECKPOINT_NS,
    is_branch_channel,
    is_control_channel,
)
from ._record import RECORD_KEY, Record, epoch, load, spent_before
from ._run import Run

PARENT = "parent"
_EDITS = ("update", "fork")


def _namespace(config: RunnableConfig) -> str:
    namespace: str = config[CONF].get(CONFIG_KEY_CHECKPOINT_NS) or ""
    return namespace


def begin_load(
    run: Run, config: RunnableConfig, found: CheckpointTuple | None
) -> list[str]:
    """Take the record from a loaded checkpoint; return what else has to be looked up.

    The answer names sources of checkpoints: the newest `input` one says when the run
    began, the newest `loop` one when it was last seen at work. The `parent` of a state
    that was edited says it better, where a run wrote that one.
    """
    saved = run.saved
    saved.loaded = True
    saved.namespace = _namespace(config)
    if found is None:
        return []
    saved.config = found.config
    pending = found.pending_writes or []
    written = [w for w in pending if w[1] == RECORD_KEY]
    # Those of tasks stay where they are: without them a task that wrote nothing else
    # would look unfinished.
    own = {_record_task(n) for n in range(len(written))}
    saved.sequence = sum(w[0] in own for w in written)
    if saved.sequence:
        pending[:] = [w for w in pending if w[0] not in own]
    saved.record = _record_in(found, [value for _, _, value in written])
    source = found.metadata.get("source")
    asked: list[str] = []
    if source in _EDITS:
        asked.append("loop")
        if found.parent_config is not None:
            asked.append(PARENT)
    if saved.new_input or run.policy.clock == "restart":
        return asked
    if saved.record is None and source != "input":
        asked.append("input")
    return asked


def _record_in(found: CheckpointTuple, written: Sequence[Any]) -> Record | None:
    """Return a checkpoint's newest record: one `written` to it, or in its state."""
    records = [r for r in (load(value) for value in written) if r is not None]
    if records:
        return max(records, key=lambda record: record.sequence)
    return load(found.checkpoint["channel_values"].get(RECORD_KEY))


def end_load(
    run: Run, found: CheckpointTuple | None, asked: Mapping[str, CheckpointTuple | None]
) -> CheckpointTuple | None:
    """Give the run what it has left, or, for a new input, what has to be cleared."""
    record = run.saved.record
    last = _last_at_work(found, asked) if found is not None else None
    edited = last if last is not found else None
    if found is not None and edited is not None and record == _record_in(found, ()):
        # What stands beside the checkpoint that was edited is newer than its state.
        pending = edited.pending_writes or []
        written = [w[2] for w in pending if w[1] == RECORD_KEY]
        record = _record_in(edited, written) or record
    if run.saved.new_input:
        run.saved.reset = record is not None and not record.resumable
        run.saved.record = None
    elif found is not None:
        began = asked.get("input", found)
        if record is None and last is not None and _has_ended(last):
            # A run that waits, was cut, or has a budget of its own has a record. This
            # one had none any more and nothing left to do, so it had completed: what
            # is done on its thread now is not charged for it, nor for its waits.
            began, last = None, None
        spent = spent_before(
            record,
            clock=run.policy.clock,
            began=_time_of(began),
            last_seen=_time_of(last),
            now=_clock.wall(),
        )
        run.resume(_begun_anew(run) if _is_anew(run, record, began) else record, spent)
    return found


def _is_anew(run: Run, record: Record | None, began: CheckpointTuple | None) -> bool:
    """Return whether its checkpoints would say that a run began before it did.

    They tell the newest input, which was another run's. Where the record of a cut is in
    the state it stays there instead, and says as much.
    """
    if run.policy.clock == "restart" or run.policy.seconds is None:
        return False
    if record is None:
        return began is None
    return not record.resumable and run.mode == "raise"


def _begun_anew(run: Run) -> Record:
    """Return what the first step of a run without an input of its own makes known."""
    return Record("running", 0.0, run.started_wall, run.started_wall)


def _last_at_work(
    found: CheckpointTuple, asked: Mapping[str, CheckpointTuple | None]
) -> CheckpointTuple | None:
    """Return the newest checkpoint that a run wrote, and nobody who edited it."""
    if found.metadata.get("source") not in _EDITS:
        return found
    parent = asked.get(PARENT)
    if parent is not None and parent.metadata.get("source") not in _EDITS:
        return parent  # the thread's newest may be of another branch
    return asked.get("loop")


def _has_ended(last: CheckpointTuple) -> bool:
    """Return whether the run that wrote a checkpoint had nothing left to do.

    A process that is killed leaves an edge that has fired and whose node has not run.
    Graphs without the usual input (not made by a `StateGraph` or an entrypoint) have no
    such edges: of those it cannot be said.
    """
    values = last.checkpoint["channel_values"]
    return (
        last.metadata.get("source") == "loop"
        and START in last.checkpoint["channel_versions"]
        and not any(
            is_control_channel(name) and _holds(name, values[name]) for name in values
        )
    )


def _holds(name: str, saved: Any) -> bool:
    """Return whether there was something in a control channel that saved this."""
    if is_branch_channel(name):
        return True  # else it saves nothing; what it holds may be `None`
    if isinstance(saved, Sequence) and len(saved) == 2 and isinstance(saved[1], bool):
        saved = saved[0]  # a deferred barrier: whom it has seen, and whether it is time
    return bool(saved)


def _time_of(checkpoint: CheckpointTuple | None) -> float | None:
    return epoch(checkpoint.checkpoint["ts"]) if checkpoint is not None else None


def note_saved(run: Run | None, config: RunnableConfig) -> RunnableConfig:
    """Take note of the run's newest checkpoint; return its config."""
    if run is not None and _namespace(config) == run.saved.namespace:
        run.saved.config = config
        run.saved.sequence = 0
    return config


def early_record(
    run: Run | None, put: tuple[Any, ...]
) -> tuple[Any, list[Any], str] | None:
    """Return what to store beside a run's input, if nothing else can keep its budget.

    A functional graph has one superstep: the record that its entrypoint writes comes
    at its end, too late for a run that is killed.
    """
    _, _, metadata, _ = put
    if run is None or not run.saved.one_superstep or run.asked_budget is None:
        return None
    if metadata.get("source") != "input":
        return None
    began = run.started_wall
    return record_writes(run, Record("running", 0.0, began, began, run.asked_budget))


def record_writes(run: Run, record: Record) -> tuple[Any, list[Any], str] | None:
    """Return the arguments of `put_writes` that store `record`, if it can be."""
    saved = run.saved
    if saved.config is None:
        return None
    # Above what a step that was cut has written itself, whatever the saver's order is.
    numbered = record.numbered(saved.sequence + 1)
    task_id = _record_task(saved.sequence)
    saved.sequence += 1
    return saved.config, [(RECORD_KEY, numbered.dump())], task_id


def _record_task(sequence: int) -> str:
    """Return the task id under which record `sequence` of a checkpoint is stored."""
    return str(uuid5(NAMESPACE_OID, f"{RECORD_KEY}:{sequence}"))
