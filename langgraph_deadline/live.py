"""A live bar of what is left of the budget, in terminals and notebooks (extra `live`).

```python
from langgraph_deadline.live import live_bar

with live_bar():
    for chunk in graph.stream(inputs):
        ...
```
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from html import escape
from threading import Event as Signal
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ._gauge import Gauge, Line, State
from ._scene import LIGHT
from .events import Event, observe

__all__ = ("LiveBar", "live_bar")

logger = logging.getLogger("langgraph_deadline")

_EVERY = 0.1
"""From one look at the clock to the next (in seconds)."""

_WIDTH = 20

_STYLES: dict[State, str] = {
    "working": "cyan",
    "measured": "yellow",
    "cut": "yellow",
    "fallback": "magenta",
    "completed": "green",
    "failed": "red",
}
_ROLES: dict[State, str] = {
    "working": "work",
    "measured": "fallback",
    "cut": "fallback",
    "fallback": "model",
    "completed": "tool",
    "failed": "deadline",
}


def live_bar(to: Console | TextIO | None = None) -> LiveBar:
    """Return a context manager that shows the runs started in it, a line each.

    It counts down by itself, says in words when the work is cut and when the fallback
    has the run, and leaves the outcome behind. Where there is no terminal it writes a
    plain line for each of these instead. It is an observer as well: for the runs of
    other threads, hand it to `compile(..., observers=[bar])`.

    Args:
        to: The console or the file to write to; nothing is written elsewhere. By
            default it is the notebook, or else the standard error.
    """
    if isinstance(to, Console):
        return LiveBar(to)
    if to is not None:
        return LiveBar(Console(file=to, force_jupyter=False))
    return LiveBar(Console(stderr=True))


class LiveBar:
    """Shows runs while they run; made by `live_bar`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._gauge = Gauge()
        self._screen: _Screen | None = None
        self._lock = Lock()
        self._end = Signal()
        self._block = ExitStack()

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""
        screen = self._screen
        if screen is not None and (line := self._gauge.note(event)) is not None:
            self._try(lambda: screen.tell(line))

    def __enter__(self) -> Self:
        """Show what happens from here on.

        Raises:
            RuntimeError: If it is shown already.
        """
        with self._lock:
            if self._screen is not None:
                msg = "this live bar is shown already: make another one with live_bar()"
                raise RuntimeError(msg)
            self._gauge = Gauge()
            self._screen = screen = _screen(self._console)
        self._end = Signal()
        thread = Thread(
            target=self._refresh, name="langgraph-deadline-live", daemon=True
        )
        with ExitStack() as entered:
            entered.callback(self._close)
            if not self._try(screen.open):
                self._screen = None
            thread.start()
            entered.callback(thread.join)
            entered.callback(self._end.set)
            entered.enter_context(observe(self))
            self._block = entered.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Show how the runs ended, and leave nothing else behind."""
        self._block.close()

    def _refresh(self) -> None:
        while not self._end.wait(_EVERY):
            if not self._shown():
                return

    def _close(self) -> None:
        screen, self._screen = self._screen, None
        if screen is not None:
            self._try(lambda: screen.close(*self._now()))

    def _shown(self) -> bool:
        screen = self._screen
        return screen is not None and self._try(lambda: screen.show(*self._now()))

    def _now(self) -> tuple[list[Line], str]:
        return self._gauge.lines(), self._gauge.rest()

    def _try(self, show: Callable[[], None]) -> bool:
        """Show something; a file that is closed or full must not stop a run."""
        try:
            show()
        # Rich makes the end of the process of a pipe that nobody reads any more.
        except (OSError, ValueError, SystemExit):
            logger.exception("The live bar cannot be shown any more")
            return False
        return True


# Where it is shown.


class _Screen(Protocol):
    """One of the three places."""

    def open(self) -> None:
        """Begin."""
        ...

    def tell(self, line: Line) -> None:
        """Take notice of news; called where they happen."""
        ...

    def show(self, lines: list[Line], rest: str) -> None:
        """Show how things stand."""
        ...

    def close(self, lines: list[Line], rest: str) -> None:
        """Show how things stand in the end."""
        ...


def _screen(console: Console) -> _Screen:
    if console.is_jupyter:
        return _Notebook()
    if console.is_terminal and not console.is_dumb_terminal:
        return _Terminal(console)
    return _File(console)


class _Terminal:
    def __init__(self, console: Console) -> None:
        # What is printed meanwhile stands above the bar, if both go to the terminal.
        same = console.file in (sys.stdout, sys.stderr)
        both = same and sys.stdout.isatty() and sys.stderr.isatty()
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=both,
            redirect_stderr=both,
        )
        self._ascii = console.options.ascii_only

    def open(self) -> None:
        try:
            self._live.start()
        except BaseException:
            self._live.console.clear_live()
            raise

    def tell(self, line: Line) -> None:
        """Nothing: the next look shows it."""

    def show(self, lines: list[Line], rest: str) -> None:
        self._live.update(_drawn(lines, rest, ascii_only=self._ascii), refresh=True)

    def close(self, lines: list[Line], rest: str) -> None:
        self._live.update(_drawn(lines, rest, ascii_only=self._ascii))
        self._live.stop()


class _Notebook:
    """An output of the cell that is replaced again and again; needs no widgets."""

    def __init__(self) -> None:
        self._tools: Any = None
        self._handle: Any = None
        self._last = ""

    def open(self) -> None:
        import IPython.display  # noqa: PLC0415 - is there where a notebook is

        self._tools = IPython.display
        self._handle = self._tools.display(self._tools.HTML(""), display_id=True)

    def tell(self, line: Line) -> None:
        """Nothing: the next look shows it."""

    def show(self, lines: list[Line], rest: str) -> None:
        html = "".join(map(_html, lines)) + (
            f"<div>{escape(rest)}</div>" if rest else ""
        )
        if html != self._last and self._handle is not None:
            self._last = html
            self._handle.update(self._tools.HTML(html))

    close = show


class _File:
    """Plain lines, for what is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._writing = Lock()

    def open(self) -> None:
        """Nothing."""

    def tell(self, line: Line) -> None:
        with self._writing:
            self._console.print(Text(str(line)), soft_wrap=True)

    def show(self, lines: list[Line], rest: str) -> None:
        """Nothing: what has not changed is not said again."""

    def close(self, lines: list[Line], rest: str) -> None:
        """Nothing."""


def _drawn(lines: list[Line], rest: str, *, ascii_only: bool) -> Group:
    names = max((2 * line.depth + len(line.name) for line in lines), default=0)
    drawn = [_text(line, names, ascii_only=ascii_only) for line in lines]
    if rest:
        drawn.append(Text(rest, "dim"))
    return Group(*drawn)


def _text(line: Line, names: int, *, ascii_only: bool) -> Text:
    style = _STYLES[line.state]
    text = Text("  " * line.depth, no_wrap=True, overflow="ellipsis")
    text.append(line.name.ljust(names - 2 * line.depth), "bold")
    text.append("  ")
    if line.left is not None:
        full, empty = "#." if ascii_only else "█░"
        length = min(round(line.left * _WIDTH), _WIDTH)
        text.append(full * length, style)
        text.append(empty * (_WIDTH - length), "dim")
        text.append("  ")
    text.append(line.words, style)
    return text


def _html(line: Line) -> str:
    colour = LIGHT[_ROLES[line.state]]
    bar = ""
    if line.left is not None:
        bar = (
            f'<progress max="1" value="{line.left:.3f}" style="width: 12em; '
            f'vertical-align: middle; accent-color: {colour}" '
            'aria-label="left of the budget"></progress> '
        )
    return (
        f'<div style="margin: 2px 0 2px {line.depth}em; padding-left: 8px; '
        f"border-left: 4px solid {colour}; font-variant-numeric: tabular-nums; "
        f'font-family: sans-serif"><strong>{escape(line.name)}</strong> '
        f"{bar}{escape(line.words)}</div>"
    )
