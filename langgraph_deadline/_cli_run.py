"""Run a graph for the command line: under a policy, to be stopped, out of the way."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from pydantic import ValidationError

from ._cli_load import BadInput, opened
from .control import RunControl
from .errors import DeadlineExceeded
from .graph import with_deadline
from .policy import DeadlinePolicy
from .report import RunReport
from .runs import collect_runs

COMPLETED, FAILED, BAD_INPUT, CUT, STOPPED = 0, 1, 2, 3, 130
"""The exit codes; 2 is what the CLI library uses as well, 130 what shells use."""

_OPTIONS: Mapping[int | str, str] = {"seconds": "--deadline", "reserve": "--reserve"}

PATIENCE = 3.0
"""How long what outlives a cut may hold up the end of the process (in seconds)."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run, and how."""

    target: str
    """What names the graph; for messages."""

    thing: Any
    """What stands there."""

    input: Any
    config: RunnableConfig = field(default_factory=RunnableConfig)
    policy: Mapping[str, Any] = field(default_factory=dict)
    """What is to be different from the graph's own policy, if it has one."""

    fallback: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What came of it."""

    report: RunReport | None
    """`None` if no run was begun."""

    thread: str | None = None
    """The run's thread, if the graph keeps threads."""

    result: Any = None
    error: BaseException | None = None

    def code(self, *, stopped: bool) -> int:
        """Return the exit code of a run; `stopped` tells whether somebody did it."""
        outcome = "error" if self.report is None else self.report.outcome
        if outcome == "completed" and self.error is None:
            return COMPLETED
        if outcome in {"completed", "error"}:
            return FAILED
        return STOPPED if stopped else CUT

    @property
    def way_on(self) -> str | None:
        """How to go on with the thread, if there is something to go on with."""
        if self.thread is None or self.report is None:
            return None
        again = f"The thread keeps it: go on with --thread {self.thread}"
        if self.report.interrupted:
            return f"{again} --resume JSON"
        cut = isinstance(self.error, DeadlineExceeded)
        return f"{again} --input null" if cut else None


async def ended(job: Job, control: RunControl) -> Ended:
    """Run a graph to its end.

    Raises:
        BadInput: If it is no graph, or cannot have this policy.
    """
    thread = None
    with collect_runs() as runs:
        try:
            async with opened(job.thing, job.target, job.config) as graph:
                bounded, thread = _bounded(job, graph), _thread_of(job, graph)
                runs.clear()  # what a factory may have run
                result = await _result(job, bounded, thread, control, runs)
        except BadInput:
            raise
        # All that a graph may raise is shown, and the process ends.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            return Ended(report=_outermost(runs), thread=thread, error=error)
    return Ended(report=_outermost(runs), thread=thread, result=result)


async def _result(
    job: Job, graph: Any, thread: str | None, control: RunControl, runs: list[RunReport]
) -> Any:
    config = job.config
    if thread is not None:
        configurable = {**config.get("configurable", {}), "thread_id": thread}
        config = {**config, "configurable": configurable}
    try:
        return await graph.ainvoke(job.input, config, control=control)
    except (TypeError, ValueError) as error:
        if runs:
            raise
        raise BadInput(str(error)) from error  # refused before anything was begun


def _outermost(runs: list[RunReport]) -> RunReport | None:
    whole = [report for report in runs if report.parent is None]
    return whole[-1] if whole else None


def _bounded(job: Job, graph: Any) -> Any:
    compiled = getattr(graph, "deadline_policy", None)
    if compiled is None and not job.policy:
        msg = (
            f"{job.target} has no deadline of its own: give it one with --deadline "
            "SECONDS, or only measure it with --measure"
        )
        raise BadInput(msg)
    settings: dict[str, Any] = {}
    if compiled is not None:
        settings = {name: getattr(compiled, name) for name in compiled.model_fields_set}
    if job.fallback is not None:
        settings.pop("on_exceeded", None)  # whoever names one wants to hear it
    try:
        policy = DeadlinePolicy(**{**settings, **job.policy})
        return with_deadline(graph, policy, fallback=job.fallback)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        for field in first["loc"]:  # as the option is called
            said = said.replace(f"{field} ", f"{_OPTIONS.get(field, field)} ", 1)
        raise BadInput(said) from error
    except ValueError as error:
        raise BadInput(str(error)) from error


def _thread_of(job: Job, graph: Any) -> str | None:
    """Return the run's thread, a new one if none is named; `None` without any."""
    if not isinstance(graph.checkpointer, BaseCheckpointSaver):
        return None
    return str(job.config.get("configurable", {}).get("thread_id") or uuid4())


@contextmanager
def stop_button(
    control: RunControl, loop: asyncio.AbstractEventLoop
) -> Generator[None]:
    """Have the first Ctrl-C cut the run, and the second one end the process at once."""
    pressed = 0

    def cut() -> None:
        # Not in the handler: what it interrupts may hold the locks of a run, or of a
        # stream that it writes to.
        sys.stderr.write("Cutting the run. Ctrl-C once more ends it at once.\n")
        control.cancel()

    def press(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            os.write(2, b"\nEnded at once: what was going on is lost.\n")
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # the cursor, which a live bar has hidden
            os._exit(STOPPED)
        loop.call_soon_threadsafe(cut)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive elsewhere
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave_soon(code: int) -> threading.Timer:
    """End the process with `code` after `PATIENCE`, whatever still goes on in it.

    Work that was cut may have left threads that Python waits for, in a library's pool.
    """
    sys.stdout.flush()
    timer = threading.Timer(PATIENCE, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def stdout_kept() -> Generator[TextIO]:
    """Yield the standard output, while what anybody else prints goes to stderr.

    That of child processes and of C code too. It stays so after the block, for
    stragglers may print at any time.
    """
    try:
        number = sys.stdout.fileno()
    except io.UnsupportedOperation:  # not the real one
        own = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield own
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(number), "w", encoding="utf-8") as own:
        os.dup2(sys.stderr.fileno(), number)
        yield own


def described(error: BaseException) -> str:
    """Return what an error says, on as few lines as it does."""
    if isinstance(error, DeadlineExceeded):
        return str(error)
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    notes = getattr(error, "__notes__", ())
    return "\n".join([said, *(f"({note})" for note in notes)])
