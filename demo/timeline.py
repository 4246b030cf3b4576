"""A run report as text: one row a step, and what was cut."""

from collections.abc import Iterator

from langgraph_deadline import RunReport

WIDTH = 32


def timeline(report: RunReport) -> Iterator[str]:
    """Yield the lines of a chart of the run."""
    budget = report.budget or report.elapsed
    # A generous budget would squeeze the steps together: it is left off the chart.
    end = max([report.elapsed, *(step.end for step in report.steps)])
    end = budget if end < budget < 1.5 * end else end
    marks = {"|": budget - report.reserve, "#": budget}
    yield (
        f"outcome {report.outcome}, {report.elapsed:.2f} s of {budget:g} s"
        f" (reserve {report.reserve:g} s)"
    )
    for step in sorted(report.steps, key=lambda step: step.start):
        row = [" "] * (WIDTH + 1)
        for mark, at in marks.items():
            if at <= end:
                row[_column(at, end)] = mark
        first, last = _column(step.start, end), _column(step.end, end)
        row[first : last + 1] = "=" * (last + 1 - first)
        if step.cause:
            row[last] = "X"
        yield (
            f"  {step.name[:25]:<25} {step.start:5.2f} - {step.end:4.2f} s "
            f" {''.join(row)}  {step.cause or ''}".rstrip()
        )
    if any(at <= end for at in marks.values()):
        yield "  (X cut, | work deadline, # deadline)"


def leftovers(report: RunReport) -> Iterator[str]:
    """Yield a line for everything that was cut."""
    for step in report.steps:
        if step.cause:
            spent = f"{step.end - step.start:.2f} s"
            yield f"{step.kind} {step.name!r} was cut after {spent} ({step.cause})"
    for straggler in report.stragglers:
        overrun = f"{straggler.overrun:.2f} s"
        yield f"{straggler.name!r} could not be stopped: it ran on for {overrun}"


def _column(at: float, end: float) -> int:
    return min(WIDTH, round(at / end * WIDTH))
