"""What many runs have in common: where their budgets go, and what it costs to cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, Field, computed_field

from . import _display
from ._text import percent, seconds, table
from .report import RunReport, StepReport


class StepSummary(BaseModel):
    """The executions of one step, in all the runs there are."""

    name: str
    kind: str = "node"
    count: int = 0
    """How often it was started."""

    refused: int = 0
    """How often it was not, for its window was not there."""

    cut: int = 0
    """How often it was cut."""

    p50: float | None = None
    """Latency (in seconds), of all that were started; cut ones count as long as they
    were waited for."""

    p95: float | None = None
    p99: float | None = None
    share: float | None = None
    """The part of the runs' budgets that it took, on average."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def refused_rate(self) -> float:
        """The share of executions that were refused."""
        return _rate(self.refused, self.count + self.refused)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cut_rate(self) -> float:
        """The share of executions that were cut: of those that were started."""
        return _rate(self.cut, self.count)


class Summary(BaseModel):
    """The signals of many runs; `str()` is a table."""

    runs: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict)
    """How many runs had which outcome."""

    steps: list[StepSummary] = Field(default_factory=list)
    elapsed_p50: float | None = None
    """How long callers waited (in seconds)."""

    elapsed_p95: float | None = None
    elapsed_p99: float | None = None
    unused: float | None = None
    """The part of the budgets that was left over, on average."""

    cancellations_asked: int = 0
    cancellations_obeyed: int = 0
    output_tokens: int = 0
    """Tokens of answers, as far as they are known or estimated."""

    tokens_after_cut: int = 0
    """Those of them that were generated after their call was cut."""

    abandoned_tokens: int = 0
    """Tokens of prompts and answers that were spent on calls that were cut."""

    uncounted: int = 0
    """Model calls that were cut and whose tokens nobody knows: they are in no sum."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exceeded_rate(self) -> float:
        """The share of runs that passed their deadline."""
        return _rate(self.outcomes.get("deadline", 0), self.runs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def obeyed_rate(self) -> float | None:
        """The share of cancellations that were obeyed, `None` if none was asked."""
        if not self.cancellations_asked:
            return None
        return self.cancellations_obeyed / self.cancellations_asked

    @computed_field  # type: ignore[prop-decorator]
    @property
    def after_cut_rate(self) -> float:
        """The share of generated tokens that came after the cut."""
        return _rate(self.tokens_after_cut, self.output_tokens)

    def __str__(self) -> str:
        if not self.runs:
            return "No runs: nothing to sum up."
        head = ("step", "runs", "p50", "p95", "p99", "refused", "cut", "of budget")
        rows = [
            (
                step.name if step.kind == "node" else f"{step.name} ({step.kind})",
                f"{step.count:,}",
                *map(seconds, (step.p50, step.p95, step.p99)),
                percent(step.refused_rate) if step.refused else "",
                percent(step.cut_rate) if step.cut else "",
                percent(step.share),
            )
            for step in self.steps
        ]
        steps = table(head, rows) if rows else "No step was started in any of them."
        return "\n".join([self._runs(), steps, *self._signals()])

    def _runs(self) -> str:
        outcomes = ", ".join(f"{n:,} {name}" for name, n in self.outcomes.items())
        waited = map(seconds, (self.elapsed_p50, self.elapsed_p95, self.elapsed_p99))
        one = "run" if self.runs == 1 else "runs"
        return f"{self.runs:,} {one}: {outcomes}; p50 {{}}, p95 {{}}, p99 {{}}".format(
            *waited
        )

    def _signals(self) -> list[str]:
        lines: list[str] = []
        if self.unused is not None:
            lines.append(f"Left of the budgets: {percent(self.unused)}")
        if self.obeyed_rate is not None:
            lines.append(
                f"Cancellations: {self.cancellations_asked:,} asked, "
                f"{percent(self.obeyed_rate)} obeyed"
            )
        if self.output_tokens or self.uncounted:
            lines.append(
                f"Tokens: {self.output_tokens:,} generated, "
                f"{percent(self.after_cut_rate)} of them after the cut; "
                f"{self.abandoned_tokens:,} in abandoned calls"
                + (f" ({self.uncounted:,} more uncounted)" * bool(self.uncounted))
            )
        return lines

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        shown = {"text/plain": str(self)}
        if self.steps and _display.possible():
            shown["text/html"] = _display.module().summary(self).fragment()
        return shown


def summarize(reports: Iterable[RunReport]) -> Summary:
    """Return what `reports` have in common, with exact quantiles.

    For more runs than one wants to keep, `langgraph_deadline.aggregate` does the same
    in bounded memory.
    """
    listed = list(reports)
    summary = Summary()
    for report in listed:
        count(summary, report)
    outermost = _outermost(listed)
    for report in outermost:
        count_cut(summary, report)
    waited = [report.elapsed for report in listed]
    summary.elapsed_p50, summary.elapsed_p95, summary.elapsed_p99 = _three(waited)
    groups: dict[tuple[str, str], list[StepReport]] = {}
    for report in outermost:
        for step in report.steps:
            groups.setdefault((step.name, step.kind), []).append(step)
    summary.steps = [_step(name, kind, of) for (name, kind), of in groups.items()]
    budgets = [report for report in outermost if report.budget]
    if budgets:
        whole = len(budgets)
        summary.unused = math.fsum(unused_share(r) or 0.0 for r in budgets) / whole
        for entry in summary.steps:
            shares = (s.share or 0.0 for s in groups[entry.name, entry.kind])
            entry.share = math.fsum(shares) / whole
    return summary


def _outermost(reports: Sequence[RunReport]) -> list[RunReport]:
    """Return the reports that are not part of another one: it has their steps, too."""
    ids = {report.id for report in reports}
    return [report for report in reports if report.parent not in ids]


def unused_share(report: RunReport) -> float | None:
    """Return the part of a run's budget that was left, `None` without a budget."""
    if not report.budget:
        return None
    return max(report.budget - report.elapsed, 0.0) / report.budget


def count(summary: Summary, report: RunReport) -> None:
    """Add to `summary` what is only counted of a run."""
    summary.runs += 1
    outcomes = summary.outcomes
    outcomes[report.outcome] = outcomes.get(report.outcome, 0) + 1


def count_cut(summary: Summary, report: RunReport) -> None:
    """Add to `summary` what a run, and all that was inside of it, had to give up."""
    summary.cancellations_asked += report.cancellations.asked
    summary.cancellations_obeyed += report.cancellations.obeyed
    for call in report.model_calls:
        count_tokens(summary, call, enforced=report.enforced)


def count_tokens(summary: Summary, call: StepReport, *, enforced: bool = True) -> None:
    """Add to `summary` the tokens of a model call, of a run that cuts or only would."""
    if call.tokens is None:
        return
    output = call.tokens.output.count
    summary.output_tokens += output or 0
    summary.tokens_after_cut += call.tokens.after_cut.count or 0
    if enforced and call.cause is not None and not call.refused:
        summary.abandoned_tokens += (call.tokens.input.count or 0) + (output or 0)
        summary.uncounted += output is None


def _step(name: str, kind: str, steps: Sequence[StepReport]) -> StepSummary:
    started = [step for step in steps if not step.refused]
    p50, p95, p99 = _three([step.seconds for step in started])
    return StepSummary(
        name=name,
        kind=kind,
        count=len(started),
        refused=len(steps) - len(started),
        cut=sum(step.cause is not None for step in started),
        p50=p50,
        p95=p95,
        p99=p99,
    )


def _three(values: Sequence[float]) -> list[float] | list[None]:
    """Return the median, p95 and p99 of `values`, by the nearest rank."""
    if not values:
        return [None, None, None]
    ordered = sorted(values)
    ranks = (math.ceil(q * len(ordered)) for q in (0.5, 0.95, 0.99))
    return [ordered[rank - 1] for rank in ranks]


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
