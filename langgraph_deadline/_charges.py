"""Limits beyond the clock: who pays for a call, and whom its refusal cuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langgraph.constants import START

from ._cut import Step
from ._ledger import Book
from ._run import Run
from ._scope import Scope
from ._usage import Call
from .errors import Cause

_STEP = Call("steps")


def charge(run: Run, call: Call, scope: Scope, key: Any = None) -> Cause | None:
    """Reserve what `call` may use; return the limit that does not allow it.

    The run whose limit that is has been cut then. What a fallback uses is counted, and
    so is what a run uses that only measures.
    """
    if run.ledger is None:
        return None
    spared = books_spared(run, scope)
    exceeded = run.ledger.reserve(call, key, spared)
    if exceeded is None:
        return None
    book, refusal = exceeded
    owner = dict(_limiting(run)).get(book, run)
    if book not in spared:
        owner.touched = True
        owner.run_dry(refusal.cause, _node_of(owner, scope))
        # The fallback, at work as an ordinary node, goes on as the fallback.
        again = _answers(owner, scope)
        return charge(run, call, scope, key) if again else refusal.cause
    if owner.ledger is not None and owner.ledger.overdrawn is None:
        so_far = len(owner.journal.steps) if owner.journal is not None else 0
        owner.ledger.overdrawn = (refusal.cause, so_far)
    return None


def charge_step(run: Run, step: Step) -> Cause | None:
    """As `charge`, for a step of the run itself."""
    counts = step.kind in ("node", "task") and step.name != START
    return charge(run, _STEP, step) if counts else None


def books_spared(run: Run, scope: Scope) -> list[Book]:
    """Return the books whose limits do not stop what is done in `scope`."""
    return [
        book
        for book, payer in _limiting(run)
        if not payer.policy.enforce or _answers(payer, scope)
    ]


def _limiting(run: Run) -> Iterator[tuple[Book, Run]]:
    """Yield a run and those around it that have limits, with their books."""
    payer: Run | None = run
    while payer is not None:
        if payer.ledger is not None and payer.policy.limits is not None:
            yield payer.ledger.own, payer
        parent = payer.scope.parent
        payer = parent.run if parent is not None else None


def _node_of(run: Run, scope: Scope | None) -> Step | None:
    """Return the outermost step of `run` that `scope` is in."""
    node: Step | None = None
    while scope is not None:
        if isinstance(scope, Step) and scope.run is run:
            node = scope
        scope = scope.parent
    return node


def _answers(run: Run, scope: Scope) -> bool:
    """Return whether `scope` is in the run's fallback, or in what that leads to."""
    if run.phase != "falling back":
        return False
    node = _node_of(run, scope)
    return node is not None and (
        node.kind == "fallback" or run.leads_from_fallback(node)
    )
