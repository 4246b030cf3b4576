"""Reports of many runs: gathered from here on, or read from files."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import _display
from .report import RunReport
from .summary import Summary, summarize


class Runs(list[RunReport]):
    """Reports of runs, in the order in which they ended.

    `str()` is a summary; in a notebook they show themselves as one.
    """

    def summary(self) -> Summary:
        """Return what the runs have in common."""
        return summarize(self)

    def to_json(self, path: Any = None) -> str:
        """Return the reports as JSON, one a line; write them to `path`."""
        text = "".join(f"{report.model_dump_json()}\n" for report in self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_html(self, path: Any = None, *, theme: str = "auto") -> str:
        """Return the summary and every timeline as a page that works offline.

        Args:
            path: Where to write it as well.
            theme: `auto` (what the reader's system prefers), `light` or `dark`.

        Raises:
            ImportError: If the extra `notebook` is not installed.
            ValueError: If there are no runs.
        """
        self._need_some()
        return str(_display.module().page(self, theme=theme).to_html(path))

    def to_png(self, path: Any = None, *, theme: str = "light") -> bytes:
        """Return the summary as a PNG; write it to `path`.

        Args:
            path: Where to write it as well.
            theme: `light` or `dark`.

        Raises:
            ImportError: If the extra `notebook` is not installed.
            ValueError: If there are no runs.
        """
        self._need_some()
        drawn = _display.module().summary(self, theme=theme)
        return bytes(drawn.to_png(path))

    def __str__(self) -> str:
        if not self:
            return (
                "No runs: none has ended here yet. Runs in flight are added when they "
                "end"
            )
        return str(self.summary())

    def _need_some(self) -> None:
        if not self:
            raise ValueError(str(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # IPython has its own way with lists

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        shown = {"text/plain": str(self)}
        if self and _display.possible():
            shown["text/html"] = _display.module().summary(self).fragment()
        return shown


_collectors: ContextVar[tuple[Runs, ...]] = ContextVar(
    "langgraph_deadline_collectors", default=()
)


@contextmanager
def collect_runs() -> Generator[Runs]:
    """Gather a `RunReport` for every run that ends inside the block.

    Runs are gathered by context: those of other threads and tasks are not mixed in,
    those that this block starts are, wherever they run. Blocks may be nested.
    """
    runs = Runs()
    token = _collectors.set((*_collectors.get(), runs))
    try:
        yield runs
    finally:
        _collectors.reset(token)


def collectors() -> tuple[Runs, ...]:
    """Return the lists that gather reports here."""
    return _collectors.get()


def read_reports(*paths: Any) -> Runs:
    """Read reports from files: one report as JSON, a list of them, or one a line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file holds something else; the message says where and what.
    """
    runs = Runs()
    for path in map(Path, paths):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            msg = f"{path} is no text: it holds no reports"
            raise ValueError(msg) from error
        runs.extend(parsed(str(path), text))
    return runs


def parsed(where: str, text: str) -> Iterable[RunReport]:
    """Return the reports that `text` holds; `where` names it in errors.

    Raises:
        ValueError: If it holds something else; the message says where and what.
    """
    if not text.strip():
        msg = f"{where} is empty: it holds no reports"
        raise ValueError(msg)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        return _lines(where, text, error)
    if not isinstance(whole, list):
        return [_report(where, whole)]
    if not whole:
        msg = f"{where} is an empty list: it holds no reports"
        raise ValueError(msg)
    return [_report(f"{where}, entry {n}", data) for n, data in enumerate(whole, 1)]


def _lines(where: str, text: str, whole: json.JSONDecodeError) -> list[RunReport]:
    """Return the reports that stand there one a line."""
    found: list[RunReport] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            told = error if found else whole
            at = number if found else whole.lineno
            whole_end = told.doc.rstrip().endswith(("}", "]"))
            hint = "" if whole_end else ". It looks cut off at its end"
            msg = f"{where}, line {at}, column {told.colno} is not JSON: {told.msg}"
            msg = f"{msg.removesuffix(' starting at')}{hint}"
            raise ValueError(msg) from error
        found.append(_report(f"{where}, line {number}", data))
    return found


def _report(where: str, data: Any) -> RunReport:
    try:
        return RunReport.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        msg = f"{where} holds no report: " + (f"{field}: {said}" if field else said)
        raise ValueError(msg) from error
