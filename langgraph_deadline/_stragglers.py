"""Work that was cut and runs on, as its run notes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Protocol

from . import _clock
from ._cut import AsyncStep, Step, disown
from ._journal import Journal
from ._threads import Job, forget
from .report import Straggler

logger = logging.getLogger("langgraph_deadline")


class Noting(Protocol):
    """What has to be known of a run."""

    stragglers: list[Straggler]
    journal: Journal | None


def give_up(run: Noting, step: Step, work: Job | asyncio.Task[Any]) -> None:
    """Leave work behind that was cut and runs on."""
    step.given_up = True
    straggler = Straggler(name=step.name, number=step.number)
    straggler.runs_since(_clock.now() - step.overrun())
    run.stragglers.append(straggler)
    journal = run.journal
    if journal is not None:
        journal.straggles(step, straggler)

    def ended(instant: float) -> None:
        straggler.ended(instant)
        if journal is not None:
            journal.straggler_ended(step, straggler)

    if isinstance(work, Job):
        forget(work)
        work.when_late(ended)
    else:
        disown(work, ended)


def blocked_loop(run: Noting, step: Step) -> None:
    """Note a step that kept the event loop from running past its deadline."""
    if any(s.blocked_loop and s.number == step.number for s in run.stragglers):
        return
    straggler = Straggler(
        name=step.name,
        number=step.number,
        overrun=step.overrun(),
        running=False,
        blocked_loop=True,
    )
    run.stragglers.append(straggler)
    if run.journal is not None:
        run.journal.straggles(step, straggler)


def name_blockers(run: Noting, active: Iterable[Step], late: float) -> None:
    """Name what may have kept the event loop from running for `late` seconds."""
    waiting = [step for step in active if isinstance(step, AsyncStep)]
    innermost = [step for step in waiting if not step.nested]
    if len(innermost) == 1:
        blocked_loop(run, innermost[0])
        return
    logger.warning(
        "The event loop was blocked for %.3g s past the work deadline, while "
        "these steps were running: %s",
        late,
        [step.name for step in waiting],
    )
