"""Tables of figures: printed, and written as Markdown for people and JSON for programs.

The tables of `benchmarks.table` have one figure a row and a bar for it; these have
columns of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .table import summary

Value = str | float | None


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table.

    Attributes:
        title: What it is about.
        about: What was done, and what the columns mean, in a paragraph.
        columns: The columns in order, and how to format their values.
        rows: What was found; a value that is not there is `None`.
    """

    title: str
    about: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Value]]

    def markdown(self) -> str:
        return f"## {self.title}\n\n{self.about}\n\n{self.table()}"

    def table(self) -> str:
        """Return the table as aligned text, which is Markdown as well."""
        body = [
            tuple(self._cell(row, name) for name in self.columns) for row in self.rows
        ]
        lines = [tuple(self.columns), *body]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = tuple("-" * width for width in widths)
        return "\n".join(_line(line, widths) for line in (lines[0], rule, *body))

    def _cell(self, row: Mapping[str, Value], name: str) -> str:
        value = row[name]
        if value is None:
            return ""
        return value if isinstance(value, str) else format(value, self.columns[name])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def text(sheets: Sequence[Sheet], about: dict[str, Any]) -> str:
    """Return all tables, and after them where and when they were made."""
    return "\n\n".join([*(sheet.markdown() for sheet in sheets), summary(about)])


def write(
    name: str, title: str, sheets: Sequence[Sheet], about: dict[str, Any], folder: Path
) -> None:
    """Write the tables as `name`.json and `name`.md."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [
        {"title": sheet.title, "about": sheet.about, "rows": list(sheet.rows)}
        for sheet in sheets
    ]
    content = json.dumps({**about, "sheets": listed}, indent=2)
    (folder / f"{name}.json").write_text(f"{content}\n")
    pages = [f"# {title}", summary(about), *(sheet.markdown() for sheet in sheets)]
    (folder / f"{name}.md").write_text("\n\n".join(pages) + "\n")
