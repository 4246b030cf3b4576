"""Where the budgets of many runs went, in parts that add up to the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from .report import RunReport, StepKind, StepReport
from .summary import Summary

BEFORE, BETWEEN, UNUSED = "before a resume", "between steps", "unused"
"""What went to no step."""

_OUTER: frozenset[StepKind] = frozenset(("node", "task", "otherwise", "fallback"))


def shares_of(reports: Iterable[RunReport]) -> dict[str, float]:
    """Return the mean share of the budget for each outermost step, and the rest.

    What runs inside of a step is within its share; steps that run at the same time
    share the time evenly, so that the parts add up to 1. Of a run that took longer than
    its budget the parts are of what it took.
    """
    whole = [report for report in reports if report.budget]
    if not whole:
        return {}
    parts: dict[str, list[float]] = {}
    for report in whole:
        length = max(report.budget or 0.0, report.elapsed)
        taken = _taken(report, report.elapsed - report.spent_before)
        between = report.elapsed - report.spent_before - math.fsum(taken.values())
        taken[BEFORE] = report.spent_before
        taken[BETWEEN] = between
        taken[UNUSED] = length - report.elapsed
        for name, seconds in taken.items():
            parts.setdefault(name, []).append(max(seconds, 0.0) / length)
    last = (BEFORE, BETWEEN, UNUSED)
    ordered = [*(name for name in parts if name not in last), *last]
    means = {name: math.fsum(parts.get(name, ())) / len(whole) for name in ordered}
    return {name: mean for name, mean in means.items() if mean > 1e-4}


def shares_in(summary: Summary) -> dict[str, float]:
    """Return about the same from a summary, which knows no times.

    Where steps run at the same time, their shares are more than there is: they are
    scaled down to that.
    """
    if summary.unused is None:
        return {}
    parts: dict[str, float] = {}
    for step in summary.steps:
        if step.kind in _OUTER and step.share:
            parts[step.name] = parts.get(step.name, 0.0) + step.share
    used, there = math.fsum(parts.values()), 1.0 - summary.unused
    if used > there:
        parts = {name: share * there / used for name, share in parts.items()}
    parts[BETWEEN] = there - min(used, there)
    parts[UNUSED] = summary.unused
    return {name: share for name, share in parts.items() if share > 1e-4}


def _taken(report: RunReport, length: float) -> dict[str, float]:
    """Return the seconds of each outermost step, out of `length`."""
    outer = [s for s in report.steps if s.parent is None and not s.refused]
    taken = dict.fromkeys((step.name for step in outer), 0.0)
    edges = sorted({min(max(t, 0.0), length) for s in outer for t in (s.start, s.end)})
    running: list[StepReport] = []
    waiting = sorted(outer, key=lambda step: step.start, reverse=True)
    for at, then in pairwise(edges):
        while waiting and waiting[-1].start <= at:
            running.append(waiting.pop())
        running = [step for step in running if step.end > at]
        for step in running:
            taken[step.name] += (then - at) / len(running)
    return taken
