"""Quote the newest measurement in the README: `python -m benchmarks.quote`.

The README keeps the rows it has, and gets every row that was missed.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BARS = ROOT / "benchmarks" / "results" / "bars.md"

_SECTION = re.compile(r"(## What it costs\n\n).*?(\n\nThe bars are)", re.DOTALL)
_WIDTH = 88


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all table rows in `text`, without the line under the head."""
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in rows if not set(row[0]) <= {"-", ":"}]


def quoted(readme: str, bars: str) -> str:
    """Return `readme` with the figures of `bars` in its section on costs.

    Raises:
        ValueError: If the README has no such section.
    """
    section = _SECTION.search(readme)
    if section is None:
        msg = f"{README.name} has no section '## What it costs'"
        raise ValueError(msg)
    kept = {row[0] for row in rows_of(section[0])}
    head, *rows = rows_of(bars)
    table = [head, ["---"] * len(head)]
    table += [row for row in rows if row[0] in kept or row[-1] == "FAIL"]
    parts = [
        textwrap.fill(bars.splitlines()[0], _WIDTH),
        "`x` is a ratio to plain LangGraph, or to what the row names.",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
    ]
    new = "\n\n".join(parts)
    return readme[: section.end(1)] + new + readme[section.start(2) :]


if __name__ == "__main__":
    README.write_text(quoted(README.read_text(), BARS.read_text()))
