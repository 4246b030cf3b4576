"""Rows of results, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .measure import Estimate

COLUMNS = ("what", "bar", "aim", "measured", "quartiles", "verdict")
PACKAGES = ("langgraph-deadline", "langgraph", "langchain-core", "pydantic")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure; without a bar it is there for comparison."""

    what: str
    measured: Estimate
    unit: str = "x"
    bar: float | None = None
    aim: float | None = None

    @property
    def missed(self) -> bool:
        return self.bar is not None and self.measured.median > self.bar

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if self.missed:
            return "FAIL"
        if self.aim is not None and self.measured.median <= self.aim:
            return "pass, aim met"
        return "pass"

    def cells(self) -> tuple[str, ...]:
        spread = f"{self._text(self.measured.low)} to {self._text(self.measured.high)}"
        return (
            self.what,
            f"<= {self._text(self.bar)}" if self.bar is not None else "",
            self._text(self.aim) if self.aim is not None else "",
            f"{self._text(self.measured.median)} {self.unit}",
            spread,
            self.verdict,
        )

    def _text(self, value: float) -> str:
        places = 3 if self.unit == "x" else 2
        return f"{value:.{places}f}" if abs(value) < 100 else f"{value:.0f}"


def text(rows: Sequence[Row]) -> str:
    """Return the rows as a table in plain text, which is Markdown as well."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_line(line, widths) for line in (lines[0], rule, *lines[1:]))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def facts(command: str) -> dict[str, Any]:
    """Return what has to be known about where and when the rows were measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from its source"


def summary(about: dict[str, Any]) -> str:
    """Return the facts as one sentence."""
    versions = ", ".join(
        f"{name} {number}" for name, number in about["versions"].items()
    )
    return (
        f"Measured on {about['date']} by `{about['command']}` with Python "
        f"{about['python']}, {versions}, on {about['system']}."
    )


def write(rows: Sequence[Row], about: dict[str, Any], folder: Path) -> None:
    """Write the rows as `bars.json` and `bars.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{**asdict(row), "verdict": row.verdict} for row in rows]
    content = json.dumps({**about, "rows": listed}, indent=2)
    (folder / "bars.json").write_text(f"{content}\n")
    (folder / "bars.md").write_text(f"{summary(about)}\n\n{NOTE}\n\n{text(rows)}\n")


NOTE = """Figures with the unit `x` are ratios to plain LangGraph, or to what the row \
names, taken in one process and in turn; each is the median over the repetitions, with \
the quartiles around it. Rows without a bar are there for comparison."""
