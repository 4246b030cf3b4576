"""What would have been cut, in a run that only measures."""

from __future__ import annotations

from typing import Protocol

from . import _clock
from ._cut import Step
from ._ledger import Ledger
from .errors import Cause


class Measured(Protocol):
    """What has to be known of a run."""

    started: float
    work: float
    ledger: Ledger | None


def cause_not_enforced(
    run: Measured, step: Step, at: int
) -> tuple[Cause | None, float | None]:
    """Return why and when `step` would have been cut (in seconds since the start).

    Args:
        run: The run that measures.
        step: One of its steps.
        at: How many of its steps ended before.
    """
    began = step.began - run.started
    ended = step.ended if step.ended is not None else _clock.now()
    if step.limit is not None and ended - step.began > step.limit:
        return "step", began + step.limit
    over = run.ledger.overdrawn if run.ledger is not None else None
    if over is not None and over[1] <= at:
        return over[0], began
    if ended > run.work:
        return "deadline", max(run.work - run.started, began)
    return None, None
