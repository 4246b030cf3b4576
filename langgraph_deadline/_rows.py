"""What a timeline says of each step, and which steps it shows; no geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ._text import seconds
from .report import RunReport, StepReport, Straggler, TokenCount

MOST_ROWS = 60
"""A timeline of more steps would not be read."""

INKS: Mapping[str, str] = {
    "tool": "tool",
    "model": "model",
    "otherwise": "fallback",
    "fallback": "fallback",
    "compensation": "fallback",
}
"""The colour of a kind of step, where it is not that of ordinary work."""


@dataclass(frozen=True, slots=True)
class Row:
    """A step of a timeline."""

    step: StepReport
    depth: int
    remarks: tuple[str, ...]
    straggler: Straggler | None = None
    measured: bool = False
    """Whether its run only measured, so that it was not really cut or refused."""

    @property
    def ink(self) -> str:
        """The colour of its bar."""
        return INKS.get(self.step.kind, "work")

    @property
    def cut_at(self) -> float | None:
        """When it was cut, or would have been; `None` if it was not, or not started."""
        if self.step.refused:
            return None
        if self.step.cut_at is None and self.step.cause is not None:
            return self.step.end
        return self.step.cut_at

    @property
    def ran_until(self) -> float:
        """When its work really ended, as far as that is known."""
        if self.straggler is None:
            return self.step.end
        cut = self.step.end if self.cut_at is None else self.cut_at
        return max(self.step.end, cut + self.straggler.overrun)


def rows_of(report: RunReport, most: int = MOST_ROWS) -> list[Row]:
    """Return the rows of a timeline: by start, each step below the one it is inside of.

    Of more than `most`, the longest and those that did not simply end are shown, with
    the steps that they are inside of.
    """
    stragglers = _stragglers(report)
    shown = _chosen(report, set(stragglers), most)
    return [
        Row(
            report.steps[at],
            depth,
            tuple(_remarks(report, report.steps[at], stragglers.get(at))),
            stragglers.get(at),
            measured=not report.enforced,
        )
        for at, depth in _tree(report)
        if at in shown
    ]


def notes_of(report: RunReport, rows: Sequence[Row]) -> list[str]:
    """Return what has to be said below the rows."""
    notes: list[str] = []
    left_out = len(report.steps) - len(rows)
    if left_out:
        one = "1 more step is" if left_out == 1 else f"{left_out:,} more steps are"
        notes.append(
            f"{one} left out: shown are those that were cut, refused or failed, "
            "then the longest."
        )
    if report.spent_before:
        before = seconds(report.spent_before)
        notes.append(f"Time starts at this resume; {before} were charged before it.")
    if not report.enforced:
        notes.append("Measured only: nothing was cut or refused.")
    placed = {id(row.straggler) for row in rows if row.straggler is not None}
    notes += [
        f"Straggler: {s.name!r} {_ran_on(s)}."
        for s in report.stragglers
        if id(s) not in placed
    ]
    notes += [
        f"Unknown outcome: tool {call.name!r}, idempotency key {call.key}."
        for call in report.unknown
    ]
    return notes


def _stragglers(report: RunReport) -> dict[int, Straggler]:
    """Return the stragglers by the place of the step whose work they are."""
    places: dict[str, list[int]] = {}
    for at, step in enumerate(report.steps):
        if not step.refused and (step.cause is not None or step.cut_at is not None):
            places.setdefault(step.name, []).append(at)
    for at, step in enumerate(report.steps):  # one that blocked the loop was not cut
        if step.name not in places and not step.refused:
            places[step.name] = [at]
    found: dict[int, Straggler] = {}
    for straggler in report.stragglers:
        if left := places.get(straggler.name):
            found[left.pop(0)] = straggler
    return found


def _chosen(report: RunReport, stragglers: set[int], most: int) -> set[int]:
    steps = report.steps
    if len(steps) <= most:
        return set(range(len(steps)))

    def plain(at: int) -> tuple[bool, float]:
        step = steps[at]
        told = step.cause or step.error or at in stragglers or step.kind == "fallback"
        return not told, -step.seconds

    chosen: set[int] = set()
    for at in sorted(range(len(steps)), key=plain):
        missing = [place for place in _inside(steps, at) if place not in chosen]
        if len(chosen) + len(missing) <= most:
            chosen.update(missing)
    return chosen


def _inside(steps: Sequence[StepReport], at: int) -> list[int]:
    """Return the place of a step, and those of the steps that it is inside of."""
    places: list[int] = []
    place: int | None = at
    while place is not None and place not in places:
        places.append(place)
        place = steps[place].parent
    return places


def _tree(report: RunReport) -> list[tuple[int, int]]:
    """Return the places of all steps with their depths, each below its parent."""
    children: dict[int | None, list[int]] = {}
    for at in sorted(range(len(report.steps)), key=lambda at: report.steps[at].start):
        children.setdefault(report.steps[at].parent, []).append(at)
    ordered: list[tuple[int, int]] = []
    waiting = [(at, 0) for at in reversed(children.get(None, []))]
    while waiting:
        at, depth = waiting.pop()
        ordered.append((at, depth))
        waiting += [(child, depth + 1) for child in reversed(children.get(at, []))]
    return ordered


def _remarks(
    report: RunReport, step: StepReport, straggler: Straggler | None
) -> list[str]:
    said: list[str] = []
    if step.cause is not None:
        said.append(_stopped(report, step))
    if straggler is not None:
        said.append(_ran_on(straggler))
    if step.error is not None:
        said.append(f"failed: {step.error}")
    if step.retries:
        said.append("1 retry" if step.retries == 1 else f"{step.retries} retries")
    if step.tokens is not None:
        counts = (step.tokens.input, step.tokens.output)
        said.append(" + ".join(map(_count, counts)) + " tokens")
        if step.tokens.after_cut.count:
            said.append(f"{_count(step.tokens.after_cut)} of them after the cut")
    return said


def _stopped(report: RunReport, step: StepReport) -> str:
    verb = "refused" if step.refused else "cut"
    said = f"{verb if report.enforced else f'would have been {verb}'}: {step.cause}"
    if step.cause == "step" and step.limit is not None:
        return f"{said}, its limit is {seconds(step.limit)}"
    if step.cause == "window" and step.window is not None:
        return f"{said}, needs {seconds(step.window)}"
    return said


def _ran_on(straggler: Straggler) -> str:
    said = f"ran on for {seconds(straggler.overrun) or '0 s'}"
    if straggler.running:
        said += " and still runs"
    return said + (", blocked the event loop" if straggler.blocked_loop else "")


def _count(tokens: TokenCount) -> str:
    if tokens.count is None:
        return "?"
    return f"{'~' if tokens.basis == 'estimated' else ''}{tokens.count:,}"
