"""The facts about a run that are kept in the graph's state, as wall-clock times.

Most runs write none: the checkpoints themselves say when a run began and when it was
last seen alive. A record is written where that is not enough: at an interrupt, at a
cut, and for a run whose budget is not the compiled one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, get_args

from .errors import Cause

RECORD_KEY = "__deadline__"
"""The state key of the record; hidden, unless a state schema names it."""

Outcome = Literal["running", "interrupted", "deadline", "cancelled", "limit", "error"]


@dataclass(frozen=True, slots=True)
class Record:
    """What a resume, in this process or in another one, has to know."""

    outcome: Outcome
    """How the run stands; all but `running` and `interrupted` are ends."""

    spent: float
    """Seconds charged up to `since`."""

    since: float
    """When the charged time began to run again (epoch seconds)."""

    started: float
    """When the run started (epoch seconds)."""

    budget: float | None = None
    """Budget of this run (in seconds), where it is not the compiled one."""

    cause: Cause | None = None
    """Why the run was cut."""

    cut: tuple[str, ...] = ()
    """Names of the steps that were cut."""

    unknown: tuple[Mapping[str, Any], ...] = ()
    """Tool calls that were cut after they had started: `name`, `id`, `key`, ..."""

    sequence: int = 0
    """Orders the records of one checkpoint."""

    @property
    def resumable(self) -> bool:
        """Whether a resume continues this run's budget."""
        return self.outcome in ("running", "interrupted")

    def dump(self) -> dict[str, Any]:
        """Return the record as plain values that every serializer takes."""
        return {
            "outcome": self.outcome,
            "spent": self.spent,
            "since": self.since,
            "started": self.started,
            "budget": self.budget,
            "cause": self.cause,
            "cut": list(self.cut),
            "unknown": [dict(call) for call in self.unknown],
            "sequence": self.sequence,
        }

    def numbered(self, sequence: int) -> Record:
        """Return the record as number `sequence` of its checkpoint."""
        return replace(self, sequence=sequence)


def load(value: Any) -> Record | None:
    """Return the record stored as `value`; `None` for anything that is none.

    A checkpoint may have been written by another version: what it cannot read must not
    keep a thread from going on.
    """
    if not isinstance(value, Mapping):
        return None
    known = {k: v for k, v in value.items() if k in Record.__dataclass_fields__}
    try:
        listed = {name: tuple(known.get(name, ())) for name in ("cut", "unknown")}
        fields: dict[str, Any] = {**known, **listed}
        record = Record(**fields)
    except TypeError:
        return None
    return record if _makes_sense(record) else None


def _makes_sense(record: Record) -> bool:
    times = (record.spent, record.since, record.started)
    return (
        record.outcome in get_args(Outcome)
        and all(_is_time(value) for value in times)
        and (record.budget is None or (_is_time(record.budget) and record.budget > 0))
        and isinstance(record.sequence, int)
    )


def _is_time(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def spent_before(
    record: Record | None,
    *,
    clock: Literal["active", "wall", "restart"],
    began: float | None,
    last_seen: float | None,
    now: float,
) -> float:
    """Return the seconds already charged to a run that is being resumed.

    Args:
        record: The newest record of the run, if one was written.
        clock: The policy's clock.
        began: When the run's input was checkpointed (epoch seconds).
        last_seen: When its newest checkpoint was written (epoch seconds).
        now: The present (epoch seconds).
    """
    if clock == "restart" or (record is not None and not record.resumable):
        return 0.0
    if clock == "wall":
        start = record.started if record is not None else began
        return max(0.0, now - start) if start is not None else 0.0
    if record is None:
        if began is None or last_seen is None:
            return 0.0
        return max(0.0, last_seen - began)
    if record.outcome == "interrupted" or last_seen is None:
        return record.spent
    return record.spent + max(0.0, last_seen - record.since)


def epoch(timestamp: str | None) -> float | None:
    """Return a checkpoint's `ts` as epoch seconds."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else None
