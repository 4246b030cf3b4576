"""Where everything in the summary of many runs stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ._rows import INKS
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
)
from ._shares import BEFORE, BETWEEN, UNUSED, shares_in, shares_of
from ._text import percent, seconds
from .report import RunReport
from .summary import StepSummary, Summary

MOST_ROWS = 30
MOST_PARTS = 8

_ROW = 22.0
_NAMES = 220.0
_NUMBERS = 142.0
"""What the latencies take as numbers."""

_RATE = 110.0
"""What a column of rates takes."""

_QUANTILES: tuple[tuple[str, Shape], ...] = (
    ("p50", "circle"),
    ("p95", "diamond"),
    ("p99", "bar"),
)

# Parts of a bar differ in shade, pattern or both from their neighbours.
_PARTS: tuple[tuple[str, str, str], ...] = (
    ("work", "work", ""),
    ("fallback-soft", "fallback", "/////"),
    ("tool", "tool", ""),
    ("model-soft", "model", "-----"),
    ("fallback", "fallback", ""),
    ("work-soft", "work", "\\\\\\\\\\"),
    ("model", "model", ""),
    ("tool-soft", "tool", "xxxx"),
)
# What is no step.
_OTHERS = ("rest-soft", "rest", "xxx")
_NO_STEP = {
    BEFORE: ("rest", "rest", ""),
    BETWEEN: ("rest-soft", "rest", ""),
    UNUSED: ("background", "rest", ""),
}


def summary_scene(summary: Summary, reports: Sequence[RunReport]) -> Scene:
    """Return the summary of runs of which at least one has steps.

    Args:
        summary: What is to be shown.
        reports: The runs themselves, as far as they are at hand.
    """
    scene = Scene()
    y = _head(scene, summary)
    y = _steps(scene, summary, y)
    shares = shares_of(reports) if reports else shares_in(summary)
    if shares:
        y = _budget(scene, shares, y + 30.0)
    if summary.output_tokens or summary.uncounted:
        y = _tokens(scene, summary, y + 30.0)
    scene.height = y + PAD
    return scene


def _head(scene: Scene, summary: Summary) -> float:
    said, _, rest = str(summary).split("\n", 1)[0].partition(": ")
    y = PAD + 12.0
    scene.add(Words(PAD, y, said, 14.0, bold=True))
    outcomes, _, waited = rest.partition("; ")
    line = f"{outcomes}; callers waited {waited}" if waited else outcomes
    scene.add(Words(PAD, y + 18.0, fitted(line, WIDTH - 2 * PAD), ink="muted"))
    return y + 42.0


# Steps: latencies and rates.


@dataclass(frozen=True, slots=True)
class _Axis:
    """Seconds as points from the left."""

    left: float
    right: float
    low: float
    high: float
    log: bool

    def __call__(self, second: float) -> float:
        if self.log:
            part = math.log(max(second, self.low) / self.low)
            part /= math.log(self.high / self.low)
        else:
            part = second / self.high
        return self.left + part * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Return the seconds that are marked."""
        if not self.log:
            return ticks(self.high, 6)
        decades = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
        return [10.0**power for power in decades]


def _steps(scene: Scene, summary: Summary, top: float) -> float:
    steps = _shown(summary.steps)
    names = min(max(130.0, *(_name_width(step) for step in steps)), _NAMES)
    rates: list[tuple[str, Callable[[StepSummary], float], bool]] = []
    if any(step.refused for step in steps):
        rates.append(("refused", lambda step: step.refused_rate, False))
    if any(step.cut for step in steps):
        rates.append(("cut", lambda step: step.cut_rate, True))
    runs_at = PAD + names + 52.0
    right = WIDTH - PAD - _RATE * len(rates) - _NUMBERS - 8.0
    axis = _axis(runs_at + 22.0, right, steps)
    body = top + 12.0
    bottom = body + _ROW * len(steps)
    if axis is not None:
        _latency_frame(scene, axis, top, body, bottom)
    scene.add(Words(PAD, top, "step", SMALL, "muted"))
    scene.add(Words(runs_at, top, "started", SMALL, "muted", "right"))
    for number, step in enumerate(steps):
        middle = body + _ROW * (number + 0.5)
        _name(scene, step, middle, names)
        count = f"{step.count:,}"
        scene.add(Words(runs_at, middle + 4, count, SMALL, "muted", "right"))
        if axis is not None:
            _dots(scene, axis, step, middle)
    for column, (head, rate, cut) in enumerate(rates):
        x = WIDTH - PAD - _RATE * (len(rates) - column) + 14.0
        scene.add(Words(x, top, f"{head} rate", SIZE, bold=True))
        for number, step in enumerate(steps):
            _rate(scene, x, body + _ROW * (number + 0.5), rate(step), cut=cut)
    y = bottom + (18.0 if axis is not None else 0.0)
    if len(steps) < len(summary.steps):
        y += 16.0
        left = len(summary.steps) - len(steps)
        said = f"{left:,} more steps are left out: shown are those that take longest."
        scene.add(Words(PAD, y, said, SMALL, "muted"))
    return y


def _shown(steps: Sequence[StepSummary]) -> list[StepSummary]:
    if len(steps) <= MOST_ROWS:
        return list(steps)
    slow = sorted(steps, key=lambda step: step.p95 or 0.0, reverse=True)[:MOST_ROWS]
    return [step for step in steps if any(step is each for each in slow)]


def _name_width(step: StepSummary) -> float:
    kind = "" if step.kind == "node" else step.kind
    return width_of(step.name) + (width_of(kind, SMALL) + 8 if kind else 0.0)


def _name(scene: Scene, step: StepSummary, middle: float, names: float) -> None:
    kind = "" if step.kind == "node" else step.kind
    room = names - (width_of(kind, SMALL) + 8 if kind else 0.0)
    scene.add(Words(PAD, middle + 4, fitted(step.name, room)))
    if kind:
        scene.add(Words(PAD + names, middle + 4, kind, SMALL, "muted", "right"))


def _axis(left: float, right: float, steps: Sequence[StepSummary]) -> _Axis | None:
    """Return the axis of latencies; over decades where they are far apart."""
    high = max((step.p99 or 0.0 for step in steps), default=0.0)
    if high <= 0:
        return None
    low = min(step.p50 for step in steps if step.p50)
    if high / low < 50:
        return _Axis(left, right, 0.0, high * 1.05, log=False)
    down = 10.0 ** math.floor(math.log10(low))
    up = 10.0 ** math.ceil(math.log10(high))
    return _Axis(left, right, down, up, log=True)


def _latency_frame(
    scene: Scene, axis: _Axis, top: float, body: float, bottom: float
) -> None:
    x = axis.left
    scene.add(Words(x, top, "latency", SIZE, bold=True))
    x += width_of("latency", SIZE) + 18.0
    for name, shape in _QUANTILES:
        scene.add(_quantile(x, top - 4, shape, "work"))
        scene.add(Words(x + 8, top, name, SMALL, "muted"))
        x += 46.0
    text = " / ".join(name for name, _ in _QUANTILES)
    scene.add(Words(axis.right + _NUMBERS, top, text, SMALL, "muted", "right"))
    for second in axis.ticks():
        at = axis(second)
        scene.add(Line(at, body, at, bottom, "faint", 0.8))
        text = seconds(second) or "0"
        scene.add(Words(at, bottom + 14, text, SMALL, "muted", "center"))


def _quantile(x: float, y: float, shape: Shape, ink: str) -> Mark:
    fill = ink if shape == "circle" else "background"
    return Mark(x, y, shape, ink, fill, 10.0 if shape == "bar" else 6.5)


def _dots(scene: Scene, axis: _Axis, step: StepSummary, middle: float) -> None:
    values = (step.p50, step.p95, step.p99)
    known = [value for value in values if value is not None]
    if not known:
        return
    ink = INKS.get(step.kind, "work")
    scene.add(Line(axis(known[0]), middle, axis(known[-1]), middle, ink, 2.0))
    marked = list(zip(values, _QUANTILES, strict=True))
    for value, (_, shape) in reversed(marked):
        if value is not None:
            scene.add(_quantile(axis(value), middle, shape, ink))
    text = " / ".join(map(seconds, known))
    scene.add(Words(axis.right + _NUMBERS, middle + 4, text, SMALL, "muted", "right"))


def _rate(scene: Scene, x: float, middle: float, rate: float, *, cut: bool) -> None:
    width = _RATE - 66.0
    top = middle - 5.0
    scene.add(Box(x, top, width, 10.0, "rest-soft"))
    if rate and cut:
        scene.add(Box(x, top, width * rate, 10.0, "background", "deadline", "/////"))
    elif rate:
        scene.add(Box(x, top, width * rate, 10.0, "background", "ink"))
    text = percent(rate) if rate else "0"
    ink = "ink" if rate else "muted"
    scene.add(Words(x + width + 6.0, middle + 4, text, SMALL, ink))


# Budgets and tokens: one bar each.


def _budget(scene: Scene, shares: dict[str, float], top: float) -> float:
    said = "where the budget goes (mean share of the outermost steps)"
    scene.add(Words(PAD, top, said, SIZE, bold=True))
    used = [name for name in shares if name not in _NO_STEP]
    largest = sorted(used, key=lambda name: shares[name], reverse=True)[:MOST_PARTS]
    others = [name for name in used if name not in largest]
    used = [name for name in used if name in largest]
    parts = [
        (name, shares[name], _PARTS[number % len(_PARTS)])
        for number, name in enumerate(used)
    ]
    if others:
        share = math.fsum(shares[name] for name in others)
        what = "step" if len(others) == 1 else "steps"
        parts.append((f"{len(others)} other {what}", share, _OTHERS))
    parts += [(n, shares[n], look) for n, look in _NO_STEP.items() if n in shares]
    return _stack(scene, parts, top + 10.0)


def _stack(
    scene: Scene, parts: Sequence[tuple[str, float, tuple[str, str, str]]], top: float
) -> float:
    """Draw shares as parts of one bar, and what they are below it."""
    whole = WIDTH - 2 * PAD
    x = PAD
    for _, share, (fill, edge, hatch) in parts:
        scene.add(Box(x, top, whole * share, 24.0, fill, edge, hatch))
        x += whole * share
    x, y = PAD, top + 42.0
    for name, share, (fill, edge, hatch) in parts:
        text = f"{fitted(name, 260.0)} {_part(share)}"
        length = 18.0 + width_of(text)
        if x > PAD and x + length > WIDTH - PAD:
            x, y = PAD, y + 18.0
        scene.add(Box(x, y - 9.0, 13.0, 10.0, fill, edge, hatch))
        scene.add(Words(x + 18.0, y, text))
        x += length + 18.0
    return y


def _part(share: float) -> str:
    return "over 99%" if 0.995 <= share < 1 else percent(share)


def _tokens(scene: Scene, summary: Summary, top: float) -> float:
    scene.add(Words(PAD, top, "tokens generated", SIZE, bold=True))
    y = top
    late = summary.after_cut_rate
    if summary.output_tokens:
        parts = [("before a cut", 1 - late, ("model", "model", ""))]
        if late:
            parts.append(("after the cut", late, ("model-soft", "model", "/////")))
        y = _stack(scene, parts, top + 10.0)
    said = str(summary).rsplit("\n", 1)[-1]
    scene.add(Words(PAD, y + 20.0, fitted(said, WIDTH - 2 * PAD), SMALL, "muted"))
    return y + 20.0
