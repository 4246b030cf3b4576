"""Where everything in the timeline of a run stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._rows import Row, notes_of, rows_of
from ._scene import (
    PAD,
    SIZE,
    SMALL,
    WIDTH,
    Box,
    Line,
    Mark,
    Scene,
    Shape,
    Words,
    fitted,
    ticks,
    width_of,
    wrapped,
)
from ._text import percent, seconds
from .report import RunReport

_NAMES = 230.0
"""The most that names may take."""

_AXIS_NAME = 132.0
"""What the name of the axis takes, below them."""

_REMARKS = 270.0
_NUMBERS = 98.0
_GAP = 12.0
_ROW = 22.0
_LINE = 14.0
"""From a line of remarks to the next."""

_INDENT = 12.0
_DEEPEST = 6
"""Steps that are deeper than this are not indented further."""

_BARS = (12.0, 9.0, 7.0)
"""How thick bars are, by the depth of their steps."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Seconds as points from the left."""

    left: float
    right: float
    until: float
    """The last second shown."""

    def __call__(self, second: float) -> float:
        part = min(max(second / self.until, 0.0), 1.0)
        return self.left + part * (self.right - self.left)


def timeline_scene(report: RunReport) -> Scene:
    """Return the timeline of a run that has steps."""
    rows = rows_of(report)
    names = min(max(*map(_name_width, rows), _AXIS_NAME), _NAMES)
    lines = [wrapped(row.remarks, _REMARKS, SMALL) for row in rows]
    said = max((width_of(line, SMALL) for each in lines for line in each), default=0.0)
    left = PAD + names + _GAP
    right = WIDTH - PAD - _NUMBERS - (said + _GAP if said else 0.0)
    axis = _Axis(left, right, _until(report, rows))
    scene = Scene()
    top = _head(scene, report)
    first = top + _times_height(report, axis) + 6.0
    bottom = first + sum(_height(each) for each in lines) + 4.0
    _times(scene, report, axis, top, bottom)
    y = first
    for row, each in zip(rows, lines, strict=True):
        _name(scene, row, y, _height(each), names)
        _work(scene, axis, row, y + _ROW / 2)
        _remarks(scene, row, each, right + _NUMBERS, y)
        y += _height(each)
    y = _scale(scene, report, axis, bottom)
    for note in notes_of(report, rows):
        y += 16.0
        scene.add(
            Words(PAD, y, fitted(note, WIDTH - 2 * PAD, SMALL), SMALL, ink="muted")
        )
    scene.height = y + PAD
    return scene


def _until(report: RunReport, rows: Sequence[Row]) -> float:
    """Return the last second to show.

    What lies far beyond the rest would press it together: an arrow points there.
    """
    ended = report.elapsed - report.spent_before
    ended = max([ended, 1e-3, *(row.step.end for row in rows)])
    deadline = _deadline(report)
    if deadline is not None and deadline <= 4 * ended:
        ended = max(ended, deadline)
    ran_on = max(row.ran_until for row in rows)
    return min(max(ended, ran_on), 1.5 * ended) * 1.02


def _deadline(report: RunReport) -> float | None:
    """Return when the deadline is, in seconds since this start or resume."""
    if report.budget is None:
        return None
    return max(report.budget - report.spent_before, 0.0)


def _height(remarks: Sequence[str]) -> float:
    return _ROW + _LINE * max(len(remarks) - 1, 0)


def _head(scene: Scene, report: RunReport) -> float:
    """Say what the run was; return where the chart may begin."""
    first = str(report).split("\n", 1)[0].removeprefix(f"{report.name}: ")
    room = WIDTH - 2 * PAD
    y = PAD + 12.0
    name = fitted(report.name, room, 14.0)
    scene.add(Words(PAD, y, name, 14.0, bold=True))
    scene.add(Words(PAD, y + 18.0, fitted(first, room), ink="muted"))
    return y + 30.0


def _times(
    scene: Scene, report: RunReport, axis: _Axis, top: float, bottom: float
) -> None:
    """Draw the lines across all rows: seconds, work deadline, deadline, cut."""
    body = top + _times_height(report, axis)
    labels = top + 5.0
    deadline, works = _deadline(report), _work_deadline(report, axis)
    if deadline is not None and works is not None:
        x, to = axis(works), axis(deadline)
        scene.add(Box(x, body, to - x, bottom - body, "reserve"))
        if to - x > width_of("reserve", SMALL) + 6:
            y = body - 5.0
            scene.add(Words((x + to) / 2, y, "reserve", SMALL, "muted", "center"))
    for second in ticks(axis.until):
        x = axis(second)
        scene.add(Line(x, body, x, bottom, "faint", 0.8))
    if works is not None:
        text = f"work deadline {seconds(works)}"
        _instant(scene, axis, works, text, labels + 15.0, bottom, dashed=True)
    if deadline is not None:
        _instant(scene, axis, deadline, f"deadline {seconds(deadline)}", labels, bottom)
    if (cut := _cut_elsewhere(report, axis)) is not None:
        _cut(scene, report, axis, cut, body, bottom)


def _times_height(report: RunReport, axis: _Axis) -> float:
    """Return what the labels of the lines take."""
    if report.budget is None and _cut_elsewhere(report, axis) is None:
        return 0.0
    works = _work_deadline(report, axis) is not None
    third = works or _cut_elsewhere(report, axis) is not None
    return 14.0 + 15.0 * works + 13.0 * third


def _work_deadline(report: RunReport, axis: _Axis) -> float | None:
    """Return when the work deadline is, if it is another one and in sight."""
    deadline = _deadline(report)
    if deadline is None or not report.reserve:
        return None
    works = max(deadline - report.reserve, 0.0)
    return works if works <= axis.until else None


def _cut_elsewhere(report: RunReport, axis: _Axis) -> float | None:
    """Return when the run was cut, unless a line stands there already."""
    cut = report.cut_at
    for second in (_deadline(report), _work_deadline(report, axis)):
        if cut is not None and second is not None:
            cut = None if abs(cut - second) < 0.02 * axis.until else cut
    return cut


def _instant(
    scene: Scene,
    axis: _Axis,
    second: float,
    text: str,
    y: float,
    bottom: float,
    *,
    dashed: bool = False,
) -> None:
    """Draw a labelled line down from `y`, or an arrow to where it would stand."""
    if second > axis.until:
        x = axis.right
        scene.add(Words(x - 12, y + 4, text, SIZE, "deadline", "right", bold=True))
        scene.add(Mark(x - 4, y, "arrow", "deadline", "deadline"))
        return
    x = axis(second)
    is_left = x - axis.left < width_of(text) + 8
    scene.add(
        Line(x, y - 5, x, bottom, "deadline", 1.5, "dashed" if dashed else "solid"),
        Words(
            x + 5 if is_left else x - 5,
            y + 4,
            text,
            SIZE,
            "deadline",
            "left" if is_left else "right",
            bold=True,
        ),
    )


def _cut(
    scene: Scene, report: RunReport, axis: _Axis, at: float, body: float, bottom: float
) -> None:
    verb = "cut" if report.enforced else "would have been cut"
    text = f"{verb} {seconds(at)}" + (f": {report.cause}" if report.cause else "")
    x = axis(at)
    is_left = x - axis.left < width_of(text, SMALL) + 8
    scene.add(
        Line(x, body - 12, x, bottom, "deadline", 1.0, "dotted"),
        Words(
            x + 4 if is_left else x - 4,
            body - 4,
            text,
            SMALL,
            "deadline",
            "left" if is_left else "right",
        ),
    )


def _name_width(row: Row) -> float:
    kind = 0.0 if row.step.kind == "node" else width_of(f" {row.step.kind}", SMALL) + 4
    return width_of(row.step.name) + kind + _INDENT * min(row.depth, _DEEPEST)


def _name(scene: Scene, row: Row, y: float, height: float, names: float) -> None:
    """Write what a step is called, indented below those that it is inside of."""
    deep = min(row.depth, _DEEPEST)
    for level in range(deep):
        x = PAD + _INDENT * level + 4
        scene.add(Line(x, y, x, y + height, "rest", 0.6))
    base = y + _ROW / 2 + 4
    kind = "" if row.step.kind == "node" else row.step.kind
    room = names - _INDENT * deep - (width_of(kind, SMALL) + 6 if kind else 0)
    scene.add(Words(PAD + _INDENT * deep, base, fitted(row.step.name, room)))
    if kind:
        scene.add(Words(PAD + names, base, kind, SMALL, "muted", "right"))


def _work(scene: Scene, axis: _Axis, row: Row, middle: float) -> None:
    """Draw what a step did, and when."""
    if not row.step.refused or row.measured:
        _bar(scene, axis, row, middle)
    if row.step.refused:
        x = axis(row.step.start)
        scene.add(Mark(x, middle, "diamond", "ink", "background", 8.0))
    if row.straggler is not None:
        _straggler(scene, axis, row, middle)


def _bar(scene: Scene, axis: _Axis, row: Row, middle: float) -> None:
    step, cut = row.step, row.cut_at
    thick = _BARS[min(row.depth, len(_BARS) - 1)]
    x = axis(step.start)
    width = max(axis(step.end) - x, 1.5)
    top = middle - thick / 2
    soft = f"{row.ink}-soft"
    if cut is None:
        scene.add(Box(x, top, width, thick, row.ink))
        return
    at = min(max(axis(cut), x), x + width)
    if not row.measured:
        scene.add(Box(x, top, width, thick, soft, row.ink, "/////"))
        for ink, size in (("background", 11.0), ("deadline", 8.0)):
            scene.add(Mark(at, middle, "cross", ink, size=size))
        return
    scene.add(Box(x, top, at - x, thick, row.ink))
    scene.add(Box(at, top, x + width - at, thick, soft, row.ink, "-----"))
    scene.add(Mark(at, middle, "triangle", "deadline", "background", 8.0))


def _straggler(scene: Scene, axis: _Axis, row: Row, middle: float) -> None:
    """Draw the work on beyond its cut."""
    x, to = axis(row.step.end), axis(row.ran_until)
    scene.add(Line(x, middle, to, middle, row.ink, 3.0, "dotted"))
    goes_on = row.straggler is not None and row.straggler.running
    shape: Shape = "arrow" if goes_on or row.ran_until > axis.until else "bar"
    scene.add(Mark(to, middle, shape, row.ink, row.ink, 8.0))


def _remarks(
    scene: Scene, row: Row, lines: Sequence[str], right: float, y: float
) -> None:
    """Write how long a step took, and what else there is to say of it."""
    base = y + _ROW / 2 + 4
    step = row.step
    if not step.refused or row.measured:
        took = seconds(step.seconds)
        scene.add(Words(right - 40, base, took, SMALL, align="right"))
        share = percent(step.share) if step.parent is None else ""
        scene.add(Words(right - 2, base, share, SMALL, "muted", "right"))
    for number, line in enumerate(lines):
        scene.add(Words(right + _GAP, base + _LINE * number, line, SMALL))


def _scale(scene: Scene, report: RunReport, axis: _Axis, bottom: float) -> float:
    """Draw the axis of time; return where it ends."""
    scene.add(Line(axis.left, bottom, axis.right, bottom, "rest", 1.0))
    marked = ticks(axis.until)
    for second in marked:
        x = axis(second)
        scene.add(Line(x, bottom, x, bottom + 4, "rest", 1.0))
        scene.add(Words(x, bottom + 15, f"{second:.6g}", SMALL, "muted", "center"))
    since = "resume" if report.spent_before else "start"
    text = f"seconds since the {since}"
    scene.add(Words(axis.left - _GAP, bottom + 15, text, SMALL, "muted", "right"))
    return bottom + 18
