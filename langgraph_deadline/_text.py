"""Numbers and tables as text that fits a terminal."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 79
"""Columns that a table may take."""


def seconds(value: float | None) -> str:
    """Return a duration with three figures, an empty text for none."""
    if value is None:
        return ""
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms" if value else "0 s"
    return f"{value:.3g} s" if abs(value) < 1000 else f"{value:,.0f} s"


def percent(share: float | None) -> str:
    """Return a share as per cent, an empty text for none."""
    if share is None:
        return ""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def shortened(text: str, length: int) -> str:
    """Return `text`, its middle left out where it is longer than `length`."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def bar(start: float, end: float, length: float, width: int) -> str:
    """Return where from `start` to `end` lies in `length`, as a bar of characters."""
    if length <= 0:
        return " " * width
    first = min(max(int(start / length * width), 0), width - 1)
    last = min(max(round(end / length * width), first + 1), width)
    return " " * first + "█" * (last - first) + " " * (width - last)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a head; columns of numbers stand to the right.

    Where the table is too wide, the first column gives way, and then the last one;
    columns without a single entry are left out.
    """
    used = [at for at in range(len(head)) if any(row[at] for row in rows)]
    lines = [[row[at] for at in used] for row in (head, *rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(used))]
    for at, least in ((0, 14), (-1, 12), (0, 8)):
        over = sum(widths) + 2 * (len(widths) - 1) - WIDTH
        if over > 0:
            widths[at] = min(max(widths[at] - over, least), widths[at])
    texts = [_is_text(lines[1:], at) for at in range(len(used))]
    return "\n".join(_line(line, widths, texts).rstrip() for line in lines)


def _is_text(lines: Sequence[Sequence[str]], at: int) -> bool:
    return at == 0 or not all(line[at][:1].isdigit() for line in lines if line[at])


def _line(line: Sequence[str], widths: Sequence[int], texts: Sequence[bool]) -> str:
    return "  ".join(
        shortened(cell, width).ljust(width) if is_text else cell.rjust(width)
        for cell, width, is_text in zip(line, widths, texts, strict=True)
    )
