"""What a run did with its time, for people and programs to read afterwards."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import (
    AwareDatetime,
    BaseModel,
    Field,
    PrivateAttr,
    computed_field,
    model_validator,
)

from . import _clock, _display
from ._text import WIDTH, bar, percent, seconds, table
from .errors import Cause

VERSION = 1
"""The version of the reports that this release writes, and reads."""

Outcome = Literal["completed", "deadline", "cancelled", "limit", "error"]
"""How a run ended."""

StepKind = Literal[
    "node", "task", "otherwise", "fallback", "tool", "model", "call", "compensation"
]
"""What a step is."""


class TokenCount(BaseModel):
    """A number of tokens, and how it is known."""

    count: int | None = None
    """The number; `None` if it is absent."""

    basis: Literal["known", "estimated", "absent"] = "absent"
    """Told by the model, estimated from what was seen of it, or not to be had."""


class ModelTokens(BaseModel):
    """The tokens of a model call.

    The entry is live: what a straggler's model used is filled in when it is told.
    """

    input: TokenCount = Field(default_factory=TokenCount)
    output: TokenCount = Field(default_factory=TokenCount)
    after_cut: TokenCount = Field(default_factory=TokenCount)
    """Those of the answer that were generated after the call was cut."""


class StepReport(BaseModel):
    """One step of a run; times are seconds since the run started."""

    name: str
    kind: StepKind = "node"
    start: float
    end: float
    """When it ended, was given up, or (if it still runs) when the run ended."""

    parent: int | None = None
    """Where the step that this one is inside of stands in `RunReport.steps`."""

    cause: Cause | None = None
    """Why it was cut or refused; `None` for a step that finished by itself."""

    refused: bool = False
    """Whether it was not started at all."""

    cut_at: float | None = None
    """When it was cut; in a run that only measures, when it would have been."""

    limit: float | None = None
    """Its own limit (in seconds)."""

    window: float | None = None
    """The least it needs to be started (in seconds)."""

    share: float | None = None
    """Its part of the run's budget."""

    retries: int = 0
    """Attempts after the first one."""

    error: str | None = None
    """The kind of its own error, if it failed."""

    tokens: ModelTokens | None = None
    """What it used, if it is a model call."""

    @property
    def seconds(self) -> float:
        """How long it took (in seconds)."""
        return self.end - self.start


class ToolCallReport(BaseModel):
    """A tool call that was cut after it had started: its outcome is unknown."""

    name: str
    id: str | None = None
    """The model's id of the call."""

    key: str
    """Its idempotency key."""

    compensation: Literal["done", "failed"] | None = None
    """What became of its compensation, if it has one."""


class Straggler(BaseModel):
    """Work that was cut and ran on.

    The entry is live: `overrun` grows until the work has ended.
    """

    name: str
    step: int | None = None
    """Where it stands in `RunReport.steps`."""

    running: bool = True
    """Whether it still runs."""

    blocked_loop: bool = False
    """Whether it kept the event loop from running meanwhile."""

    _overrun: float = PrivateAttr(0.0)
    _since: float | None = PrivateAttr(None)
    _number: int = PrivateAttr(0)

    def __init__(self, *, overrun: float = 0.0, number: int = 0, **data: Any) -> None:
        super().__init__(**data)
        self._overrun = overrun
        self._number = number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Straggler):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @property
    def number(self) -> int:
        """The number of its step in events; 0 in a report that was read."""
        return self._number

    @computed_field  # type: ignore[prop-decorator]
    @property
    def overrun(self) -> float:
        """How long it ran on after its cut (in seconds)."""
        if self.running and self._since is not None:
            return _clock.now() - self._since
        return self._overrun

    def runs_since(self, instant: float) -> None:
        """Count the overrun from `instant` (on the monotonic clock)."""
        self._since = instant

    def ended(self, instant: float) -> None:
        """Fix the overrun: the work has ended."""
        if self.running and self._since is not None:
            self._overrun = instant - self._since
        self.running = False


class Usage(BaseModel):
    """What a run used beside time, nested graphs included."""

    steps: int = 0
    """Nodes and tasks that ran; not the fallback, nor what it led to."""

    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int | None = None
    """Tokens of prompts, as far as models reported them; `None` if none did."""

    output_tokens: int | None = None
    """Tokens of answers, as far as models reported them; `None` if none did."""

    cost: float | None = None
    """What those tokens cost, by the prices in `Limits`; `None` without prices."""

    unreported: int = 0
    """Model calls whose tokens nobody knows; they are in no sum."""


class Cancellations(BaseModel):
    """How work that was cut took it."""

    asked: int = 0
    """Steps that were at work when they were cut."""

    obeyed: int = 0
    """Those of them that ended within the grace."""


class RunReport(BaseModel):
    """How one run ended and where its time went.

    `str()` is a table; in a notebook it shows itself as a timeline.
    """

    version: int = VERSION
    id: str = Field(default_factory=lambda: uuid4().hex)
    parent: str | None = None
    """The `id` of the run that this one was inside of."""

    name: str = "LangGraph"
    """The graph's name."""

    started: AwareDatetime = Field(
        default_factory=lambda: datetime.fromtimestamp(_clock.wall(), UTC)
    )
    """When it was started, or resumed."""

    outcome: Outcome
    cause: Cause | None = None
    """Why it was cut; in a run that only measures, why it would have been."""

    cut_step: str | None = None
    """Where it was cut."""

    cut_at: float | None = None
    """When (or when it would have been), in seconds since it started."""

    budget: float | None = None
    """What the run was allowed to take (in seconds)."""

    reserve: float = 0.0
    """The part of the budget kept for the fallback (in seconds)."""

    spent_before: float = 0.0
    """What was charged before this resume (in seconds); `elapsed` contains it."""

    elapsed: float = 0.0
    """How long the caller waited (in seconds)."""

    interrupted: bool = False
    """Whether the run waits for a person; its resume makes a report of its own."""

    enforced: bool = True
    """`False` if the run only measured: nothing was cut."""

    steps: list[StepReport] = Field(default_factory=list)
    """By their start; those inside of others, and of nested graphs, included."""

    stragglers: list[Straggler] = Field(default_factory=list)
    unknown: list[ToolCallReport] = Field(default_factory=list)
    """Tool calls whose outcome is unknown."""

    cancellations: Cancellations = Field(default_factory=Cancellations)
    usage: Usage | None = None
    """What was used beside time."""

    @model_validator(mode="before")
    @classmethod
    def _is_readable(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        version = data.get("version", VERSION)
        if version != VERSION:
            msg = (
                f"this is a report of version {version!r}, and this release reads "
                f"version {VERSION}: read it with the release that wrote it"
            )
            raise ValueError(msg)
        if "outcome" not in data and "budget" in data:
            msg = (
                "it has no outcome: the run was still in flight when this was written. "
                "A report is complete once its run has ended"
            )
            raise ValueError(msg)
        return data

    @property
    def model_calls(self) -> list[StepReport]:
        """The steps that are model calls."""
        return [step for step in self.steps if step.kind == "model"]

    @property
    def left(self) -> float | None:
        """What is left of the budget (in seconds), `None` without one."""
        return None if self.budget is None else self.budget - self.elapsed

    @property
    def headline(self) -> str:
        """How the run ended, in a line."""
        return _headline(self)

    def depth(self, step: StepReport) -> int:
        """Return in how many other steps `step` is."""
        deep = 0
        while step.parent is not None:
            step = self.steps[step.parent]
            deep += 1
        return deep

    def __str__(self) -> str:
        return "\n".join(part for part in _parts_of(self) if part)

    # Pictures, made by `langgraph_deadline.notebook`.

    def to_html(self, path: Any = None, *, theme: str = "auto") -> str:
        """Return the timeline as a page that works offline; write it to `path`.

        Args:
            path: Where to write it as well.
            theme: `auto` (what the reader's system prefers), `light` or `dark`.

        Raises:
            ImportError: If the extra `notebook` is not installed.
        """
        return str(_display.module().timeline(self, theme=theme).to_html(path))

    def to_png(self, path: Any = None, *, theme: str = "light") -> bytes:
        """Return the timeline as a PNG; write it to `path`.

        Args:
            path: Where to write it as well.
            theme: `light` or `dark`.

        Raises:
            ImportError: If the extra `notebook` is not installed.
        """
        return bytes(_display.module().timeline(self, theme=theme).to_png(path))

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        shown = {"text/plain": str(self)}
        if self.steps and _display.possible():
            shown["text/html"] = _display.module().timeline(self).fragment()
        return shown


_SHORTEST, _LONGEST = 6, 24
"""Characters of a bar."""

_NUMBERS = 28
"""Characters of the columns beside names, bars and remarks."""


def _parts_of(report: RunReport) -> list[str]:
    """Return what `str()` says of a run, part by part."""
    length = max([report.elapsed - report.spent_before, *(s.end for s in report.steps)])
    steps = _nested(report)
    rows = [_row(report, step) for step in steps]
    # Names and remarks come first: the bars have what is left.
    texts = [max((len(row[at]) for row in rows), default=0) for at in (0, -1)]
    bars = min(max(WIDTH - sum(texts) - _NUMBERS, _SHORTEST), _LONGEST)
    for row, step in zip(rows, steps, strict=True):
        row[4] = bar(step.start, step.end, length, bars)
    head = ("step", "start", "took", "share", "", "what")
    shown = table(head, rows) if rows else "No step was started."
    return [textwrap.fill(report.headline, WIDTH), shown, *_notes(report)]


def _nested(report: RunReport) -> list[StepReport]:
    """Return the steps by their start, each with what is inside of it below it."""
    inside: dict[int | None, list[int]] = {}
    for at, step in enumerate(report.steps):
        inside.setdefault(step.parent, []).append(at)
    found: list[StepReport] = []
    waiting = inside.get(None, [])[::-1]
    while waiting:
        at = waiting.pop()
        found.append(report.steps[at])
        waiting += inside.get(at, [])[::-1]
    return found


def _headline(report: RunReport) -> str:
    said = f"{report.name}: {report.outcome}"
    if report.cause is not None and not report.enforced:
        said += f", would have been cut ({report.cause})"
    elif report.cause is not None and report.cause != report.outcome:
        said += f" ({report.cause})"
    if report.interrupted:
        said += ", waits for a person"
    said += f" after {seconds(report.elapsed)}"
    if report.budget is None:
        return said + ", without a deadline"
    said += f" of {seconds(report.budget)}"
    if report.reserve:
        said += f", {seconds(report.reserve)} of them for the fallback"
    if not report.enforced:
        said += "; measured only"
    return said


def _row(report: RunReport, step: StepReport) -> list[str]:
    return [
        "  " * report.depth(step) + step.name,
        seconds(step.start),
        "" if step.refused else seconds(step.seconds),
        percent(step.share) if step.parent is None and not step.refused else "",
        "",  # the bar
        ", ".join(_remarks(report, step)),
    ]


def _remarks(report: RunReport, step: StepReport) -> list[str]:
    said: list[str] = [] if step.kind == "node" else [step.kind]
    if step.cause is not None:
        done = "refused" if step.refused else "cut"
        said.append(f"{done}: {step.cause}" if report.enforced else f"({step.cause})")
    if step.error is not None:
        said.append(step.error)
    if step.retries:
        said.append(f"{step.retries} retries" if step.retries > 1 else "1 retry")
    if step.tokens is not None:
        counts = (step.tokens.input, step.tokens.output)
        said.append("+".join(_tokens(count) for count in counts) + " tokens")
    return said


def _tokens(tokens: TokenCount) -> str:
    if tokens.count is None:
        return "?"
    return f"{'~' if tokens.basis == 'estimated' else ''}{tokens.count:,}"


def _notes(report: RunReport) -> list[str]:
    """Return what has to be said beside the steps."""
    notes = [
        f"Straggler: {s.name!r} ran on for {seconds(s.overrun)} after its cut"
        + (", and still runs" if s.running else "")
        + (" (it blocked the event loop)" if s.blocked_loop else "")
        for s in report.stragglers
    ]
    notes += [
        f"Unknown outcome: tool {call.name!r}, idempotency key {call.key}"
        for call in report.unknown
    ]
    asked, obeyed = report.cancellations.asked, report.cancellations.obeyed
    if asked:
        notes.append(f"Cancellations: {asked} asked, {obeyed} obeyed")
    return notes
