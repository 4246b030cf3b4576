"""What a picture consists of, in points from its upper left corner; draws nothing.

Layouts (`_timeline`, `_charts`) make scenes, `notebook` draws them. Colours stand under
their roles, so that one layout serves light and dark.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

WIDTH = 960.0
"""How wide pictures are."""

PAD = 16.0
"""What is left free around them."""

SIZE = 11.0
"""The size of most words."""

SMALL = 9.5

Align = Literal["left", "center", "right"]
Dash = Literal["solid", "dashed", "dotted"]
Shape = Literal["cross", "diamond", "triangle", "circle", "bar", "arrow"]

# Hues after Okabe and Ito, which the colour-blind tell apart; all stand out from their
# background. Within a palette no two roles have the same colour: `_page` tells them
# apart by it.
LIGHT: Mapping[str, str] = {
    "background": "#ffffff",
    "ink": "#1f2328",
    "muted": "#57606a",
    "faint": "#e1e4e8",
    "reserve": "#fbefd8",
    "deadline": "#b3261e",
    "work": "#0072b2",
    "work-soft": "#d3e5f1",
    "tool": "#00835f",
    "tool-soft": "#cfebe0",
    "model": "#9c4a82",
    "model-soft": "#efdbe8",
    "fallback": "#c06a00",
    "fallback-soft": "#fae0bd",
    "rest": "#8a929b",
    "rest-soft": "#edeff2",
}
DARK: Mapping[str, str] = {
    "background": "#16191d",
    "ink": "#e7e9ec",
    "muted": "#a0a9b3",
    "faint": "#30363d",
    "reserve": "#382d19",
    "deadline": "#ff8a7d",
    "work": "#56b4e9",
    "work-soft": "#1b3a4e",
    "tool": "#2fc096",
    "tool-soft": "#143f33",
    "model": "#dc9bc6",
    "model-soft": "#472b3e",
    "fallback": "#f0ab3c",
    "fallback-soft": "#4d3512",
    "rest": "#7d8690",
    "rest-soft": "#262b31",
}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    fill: str | None
    edge: str | None = None
    hatch: str = ""
    """A pattern over it in the colour of its edge, as matplotlib writes it."""


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line."""

    x: float
    y: float
    to_x: float
    to_y: float
    ink: str
    width: float = 1.0
    dash: Dash = "solid"


@dataclass(frozen=True, slots=True)
class Mark:
    """A symbol around a point."""

    x: float
    y: float
    shape: Shape
    ink: str
    fill: str | None = None
    size: float = 7.0


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text; `y` is its baseline."""

    x: float
    y: float
    text: str
    size: float = SIZE
    ink: str = "ink"
    align: Align = "left"
    bold: bool = False


Item = Box | Line | Mark | Words


@dataclass
class Scene:
    """The items of a picture; later ones are drawn over earlier ones."""

    height: float = 0.0
    width: float = WIDTH
    items: list[Item] = field(default_factory=list)

    def add(self, *items: Item) -> None:
        """Draw `items` over what is there."""
        self.items.extend(items)


def width_of(text: str, size: float = SIZE) -> float:
    """Return about how wide `text` is; rather too much than too little."""
    return size * sum(map(_em, text))


def _em(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 1.02
    if character in "iljtfrI.,:;'|!() []":
        return 0.38
    return 0.92 if character in "mwMW@%—" else 0.68 if character.isupper() else 0.61


def fitted(text: str, width: float, size: float = SIZE) -> str:
    """Return `text` in one line, its middle left out where it is wider than `width`."""
    text = " ".join(text.split())
    if width_of(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 1 and width_of(_shortened(text, keep), size) > width:
        keep -= 1
    return _shortened(text, keep)


def _shortened(text: str, keep: int) -> str:
    tail = keep // 3
    return f"{text[: keep - tail]}…{text[len(text) - tail :]}"


def wrapped(parts: Sequence[str], width: float, size: float = SIZE) -> list[str]:
    """Return `parts`, with commas between them, in lines no wider than `width`."""
    lines: list[str] = []
    for part in parts:
        joined = f"{lines[-1]}, {part}" if lines else part
        if lines and width_of(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(fitted(part, width, size))
    return lines


def ticks(length: float, most: int = 8) -> list[float]:
    """Return round numbers from 0 to `length`, at most about `most` of them."""
    if length <= 0:
        return [0.0]
    rough = length / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10, 20) if n * power >= rough)
    return [step * n for n in range(int(length / step + 1e-9) + 1)]
