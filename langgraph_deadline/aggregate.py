"""What many runs have in common, in bounded memory, while they happen.

```python
from langgraph_deadline.aggregate import Aggregate
from langgraph_deadline.events import observe

aggregate = Aggregate()
with observe(aggregate):
    graph.invoke(inputs)
print(aggregate)
```

Latencies go into sketches with a relative error (Masson, Rim, Lee: "DDSketch", VLDB
2019); everything else is counted exactly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from threading import RLock
from typing import Annotated, Any, Literal, Self

from ddsketch import DDSketch, LogarithmicMapping
from pydantic import BaseModel, Field, ValidationError, model_validator

from ._observing import OTHER, Cancelled, Names, RunSums, StepSums, add
from .events import Event, RunEnded, StepEnded, StepRefused, StepStarted
from .report import ModelTokens
from .summary import StepSummary, Summary, unused_share

__all__ = ("Aggregate",)

# What a sketch tells apart (in seconds): with an end to both sides, and a relative
# error, the number of its bins has one too. Less than the shortest counts as nothing.
_SHORTEST = 1e-6
_LONGEST = 1e9
_FINEST = 0.001


class _Bins(BaseModel):
    """A sketch as plain values."""

    shortest: float = Field(ge=0, le=_LONGEST)
    longest: float = Field(ge=0, le=_LONGEST)
    zeros: float = Field(ge=0)
    bins: list[tuple[int, Annotated[float, Field(gt=0)]]]


class _Saved(BaseModel):
    """An aggregate as plain values: what is written, and what is merged."""

    version: Literal[1] = 1
    relative_accuracy: float = Field(ge=_FINEST, lt=1)
    max_steps: int = Field(ge=1)
    sums: RunSums
    elapsed: _Bins
    steps: list[tuple[StepSums, _Bins]]

    @model_validator(mode="after")
    def _is_in_range(self) -> Self:
        mapping = LogarithmicMapping(self.relative_accuracy)
        keys = range(mapping.key(_SHORTEST), mapping.key(_LONGEST) + 1)
        for sketch in (self.elapsed, *(bins for _, bins in self.steps)):
            if any(key not in keys for key, _ in sketch.bins):
                msg = f"the bins of a sketch are not from {keys[0]} to {keys[-1]}"
                raise ValueError(msg)
        return self


class _Latencies(DDSketch):
    """Quantiles of durations, within a relative error."""

    def note(self, seconds: float) -> None:
        """Take a duration in."""
        self.add(min(seconds, _LONGEST) if seconds >= _SHORTEST else 0.0)

    def three(self) -> tuple[float, ...] | tuple[None, ...]:
        """Return the median, p95 and p99, by the nearest rank as `summarize` does."""
        if not self.count:
            return None, None, None
        return tuple(self._nth(math.ceil(q * self.count)) for q in (0.5, 0.95, 0.99))

    def _nth(self, rank: int) -> float:
        # The sketch takes the value whose rank, from 0, is the whole part of
        # `quantile * (count - 1)`: half a rank more keeps off the edge.
        quantile = min((rank - 0.5) / max(self.count - 1, 1), 1.0)
        value = float(self.get_quantile_value(quantile) or 0.0)
        return min(max(value, self._min), self._max)

    def saved(self) -> _Bins:
        """Return the sketch as plain values."""
        counts = enumerate(self._store.bins, self._store.offset)
        bins = [(key, count) for key, count in counts if count]
        shortest, longest = (self._min, self._max) if self.count else (0.0, 0.0)
        return _Bins(
            shortest=shortest, longest=longest, zeros=self._zero_count, bins=bins
        )

    def take(self, saved: _Bins) -> None:
        """Take in what another sketch of the same accuracy has."""
        if not saved.zeros and not saved.bins:
            return
        shortest = min(self._min, saved.shortest)
        longest = max(self._max, saved.longest)
        if saved.zeros:
            self.add(0.0, saved.zeros)
        for key, count in saved.bins:
            self.add(self._mapping.value(key), count)
        self._min, self._max = shortest, longest


class Aggregate:
    """An observer that sums up runs and forgets them; `str()` is a table.

    Each thing is counted once, where it is told: steps and tokens when the step ends,
    refused steps when they are refused, runs when they end. So a model call that a cut
    left behind counts when it ends after all, even if its run has long been over; what
    never ends is not counted. And nothing counts twice: a run's report tells of the
    same steps again, and of those of runs inside of it, and is not asked for them.

    It may be called, and asked, by any thread.

    Args:
        relative_accuracy: How far a quantile may be from the exact one, as a part of
            it: with 0.01, a p95 of 2 s is told as 1.98 to 2.02 s. Holds from a
            microsecond on; what is shorter counts as nothing.
        max_steps: How many steps are kept apart, some 10 KB each; the others are one,
            `(other)`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self, relative_accuracy: float = 0.01, *, max_steps: int = 1000
    ) -> None:
        if not _FINEST <= relative_accuracy < 1:
            msg = (
                f"relative_accuracy must be at least {_FINEST} and below 1, got "
                f"{relative_accuracy!r}: 0.01 stands for one per cent"
            )
            raise ValueError(msg)
        self._accuracy = relative_accuracy
        self._names = Names(max_steps, "max_steps")
        self._cancelled = Cancelled()
        self._sums = RunSums()
        self._elapsed = _Latencies(relative_accuracy)
        self._steps: dict[tuple[str, ...], tuple[StepSums, _Latencies]] = {}
        # Reentrant: a stream that is garbage ends its run wherever it is collected.
        self._lock = RLock()

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""
        if isinstance(event, StepStarted):
            return
        with self._lock:
            if isinstance(event, StepEnded):
                self._step_ended(event)
            elif isinstance(event, StepRefused):
                self._step(event.step, event.kind)[0].refused += 1
            else:
                if isinstance(event, RunEnded):
                    self._run_ended(event)
                asked, obeyed = self._cancelled.told(event)
                self._sums.cancellations_asked += asked
                self._sums.cancellations_obeyed += obeyed

    def summary(self) -> Summary:
        """Return what the runs had in common, as `summarize` does of their reports.

        Quantiles are within the relative accuracy, everything else is exact.
        """
        with self._lock:
            summary = Summary(**asdict(self._sums))
            whole = self._sums.budgeted
            summary.unused = self._sums.unused / whole if whole else None
            summary.elapsed_p50, summary.elapsed_p95, summary.elapsed_p99 = (
                self._elapsed.three()
            )
            for counts, latencies in self._steps.values():
                step = StepSummary(**asdict(counts))
                step.share = counts.share / whole if whole else None
                step.p50, step.p95, step.p99 = latencies.three()
                summary.steps.append(step)
            return summary

    def merge(self, other: Aggregate) -> None:
        """Add what `other` has counted, in another process for instance.

        Raises:
            ValueError: If its relative accuracy is another one.
        """
        if other._accuracy != self._accuracy:
            msg = (
                f"the other aggregate has a relative accuracy of {other._accuracy}, "
                f"this one of {self._accuracy}: only the same can be merged"
            )
            raise ValueError(msg)
        self._take(other._saved())

    def to_json(self) -> str:
        """Return the aggregate as JSON, for `from_json`.

        Which runs are in flight is not in it.
        """
        return self._saved().model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the aggregate that `to_json` wrote.

        Raises:
            ValueError: If `text` is something else; the message says what is wrong.
        """
        try:
            saved = _Saved.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            said = first["msg"].removeprefix("Value error, ")
            msg = "this is no aggregate: " + (f"{field}: {said}" if field else said)
            raise ValueError(msg) from error
        aggregate = cls(saved.relative_accuracy, max_steps=saved.max_steps)
        aggregate._take(saved)
        return aggregate

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        summary: Any = self.summary()
        return dict(summary._repr_mimebundle_(**kwargs))

    # What is told.

    def _step(self, name: str, kind: str) -> tuple[StepSums, _Latencies]:
        # Others that were merged are none that need room among the rest.
        others = name == kind == OTHER
        key = (OTHER, OTHER) if others else self._names.of(name, kind)
        kept = self._steps.get(key)
        if kept is None:
            kept = StepSums(name=key[0], kind=key[1]), _Latencies(self._accuracy)
            self._steps[key] = kept
        return kept

    def _step_ended(self, event: StepEnded) -> None:
        step, latencies = self._step(event.step, event.kind)
        latencies.note(event.took)
        step.count += 1
        step.cut += event.cause is not None
        if event.run.budget:
            step.share += event.took / event.run.budget
        if event.tokens is not None:
            # A run that only measures abandons nothing.
            abandoned = event.cause is not None and event.run.enforced
            self._tokens(event.tokens, abandoned=abandoned)

    def _tokens(self, tokens: ModelTokens, *, abandoned: bool) -> None:
        sums, output = self._sums, tokens.output.count
        sums.output_tokens += output or 0
        sums.tokens_after_cut += tokens.after_cut.count or 0
        if abandoned:
            sums.abandoned_tokens += (tokens.input.count or 0) + (output or 0)
            sums.uncounted += output is None

    def _run_ended(self, event: RunEnded) -> None:
        report, sums = event.report, self._sums
        sums.runs += 1
        sums.outcomes[report.outcome] = sums.outcomes.get(report.outcome, 0) + 1
        self._elapsed.note(report.elapsed)
        unused = unused_share(report)
        if unused is not None:
            sums.budgeted += 1
            sums.unused += unused

    # What is handed on.

    def _saved(self) -> _Saved:
        with self._lock:
            return _Saved(
                relative_accuracy=self._accuracy,
                max_steps=self._names.most,
                sums=replace(self._sums, outcomes=dict(self._sums.outcomes)),
                elapsed=self._elapsed.saved(),
                steps=[
                    (replace(step), latencies.saved())
                    for step, latencies in self._steps.values()
                ],
            )

    def _take(self, saved: _Saved) -> None:
        with self._lock:
            add(self._sums, saved.sums)
            self._elapsed.take(saved.elapsed)
            for more, bins in saved.steps:
                step, latencies = self._step(more.name, more.kind)
                add(step, more)
                latencies.take(bins)
