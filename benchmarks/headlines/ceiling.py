"""Six steps one after the other, and one ceiling of 45 s over all of them."""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypedDict

from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph

from langgraph_deadline import (
    DeadlinePolicy,
    RunReport,
    StepBudget,
    collect_runs,
)
from langgraph_deadline import StateGraph as BoundedGraph
from langgraph_deadline.testing import run_virtual

from ..sheet import Sheet, Value
from .virtual import Ended, ended, latency, percentile, share

CEILING = 45.0
RESERVE = 1.0
SEED = 45


@dataclass(frozen=True, slots=True)
class Step:
    """How long a step takes, what it may take, and what does for it.

    Attributes:
        median: Half of its runs are quicker (in seconds).
        p95: 95 % of its runs are quicker (in seconds).
        budget: Its own limit and window under the one deadline.
        instead: What to use instead of it, `None` if nothing does.
    """

    median: float
    p95: float
    budget: StepBudget
    instead: str | None = None


STEPS = {
    "understand": Step(2, 4, StepBudget()),
    "search": Step(5, 12, StepBudget(seconds=15), "yesterday's hits"),
    "read": Step(6, 16, StepBudget(seconds=18, needs=4), "the abstracts"),
    "draft": Step(8, 18, StepBudget(needs=4)),
    "check": Step(5, 14, StepBudget(needs=12), "unchecked"),
    "polish": Step(4, 10, StepBudget(needs=9), "unpolished"),
}

ABOUT = f"""Six steps in sequence with log-normal times, drawn once and the same under
every limit; the second table has the figures of each. *Complete*: all six as they are.
*Degraded*: at least one replaced by what does for it, such as a cached answer;
understand and draft have nothing. *Fallback*: the run's own answer of what is there, in
the last {RESERVE:g} s. Time-outs are LangGraph's `timeout=` on each node; *handled* has
an `error_handler` that does what the step's `otherwise` does. The last two rows are
ours, without and with budgets of single steps."""


class State(TypedDict, total=False):
    run: int
    done: Annotated[list[str], operator.add]


Latencies = list[dict[str, float]]


def drawn(runs: int) -> Latencies:
    """Return how long each step of each run takes."""
    draw = random.Random(SEED)
    return [
        {name: latency(draw.gauss(), s.median, s.p95) for name, s in STEPS.items()}
        for _ in range(runs)
    ]


def taking(name: str, latencies: Latencies) -> Callable[[State], Awaitable[State]]:
    async def node(state: State) -> State:
        await asyncio.sleep(latencies[state["run"]][name])
        return {"done": [name]}

    return node


def handling(name: str) -> Callable[[State], Awaitable[State]]:
    async def handler(_: State) -> State:
        return instead(name)

    return handler


def instead(name: str) -> State:
    return {"done": [f"instead: {STEPS[name].instead}"]}


async def degrade(_: State) -> State:
    return {"done": ["fallback"]}


def graph_of(
    kind: Any, latencies: Latencies, *, handled: bool = False, **options: Any
) -> Any:
    """Return the six steps as a graph that is not compiled yet."""
    builder = kind(State)
    for name, step in STEPS.items():
        handler = handling(name) if handled and step.instead else None
        node = taking(name, latencies)
        builder.add_node(name, node, error_handler=handler, **options)
    for before, after in zip([START, *STEPS], STEPS, strict=False):
        builder.add_edge(before, after)
    return builder


def timed_out(latencies: Latencies, seconds: float, *, handled: bool) -> Any:
    builder = graph_of(PlainGraph, latencies, handled=handled, timeout=seconds)
    return builder.compile()


def bounded(latencies: Latencies, steps: Mapping[str, StepBudget]) -> Any:
    policy = DeadlinePolicy(
        seconds=CEILING, reserve=timedelta(seconds=RESERVE), steps=steps
    )
    return graph_of(BoundedGraph, latencies).compile(deadline=policy, fallback=degrade)


def budgets() -> dict[str, StepBudget]:
    return {
        name: step.budget.model_copy(update={"otherwise": instead(name)})
        if step.instead
        else step.budget
        for name, step in STEPS.items()
    }


EACH = CEILING / len(STEPS)
LIMITS: dict[str, Callable[[Latencies], Any]] = {
    f"{EACH:g} s for each step": lambda n: timed_out(n, EACH, handled=False),
    f"{EACH:g} s for each step, handled": lambda n: timed_out(n, EACH, handled=True),
    f"{CEILING:g} s for each step": lambda n: timed_out(n, CEILING, handled=False),
    f"one deadline of {CEILING:g} s": lambda n: bounded(n, {}),
    f"one deadline of {CEILING:g} s, budgets of steps": lambda n: bounded(n, budgets()),
}
OURS = list(LIMITS)[-1]
COLUMNS = {
    "limit": "",
    "complete": ".1%",
    "degraded": ".1%",
    "fallback": ".1%",
    "no answer": ".1%",
    "later than 45 s": ".1%",
    "p50": ".1f",
    "p95": ".1f",
    "longest": ".1f",
}
STEPS_ABOUT = f"""The row *{OURS}* above. A step is replaced when it overruns its own
limit (`seconds`), or is not started because its window (`needs`) is not there any more;
the run goes on."""
STEP_COLUMNS = {
    "step": "",
    "p50": "g",
    "p95": "g",
    "limit": "g",
    "window": "g",
    "as it is": ".1%",
    "replaced: overran": ".1%",
    "replaced: no window": ".1%",
    "not done, fallback": ".1%",
}


def measure(quick: bool) -> list[Sheet]:
    """Run the six steps under each limit, often."""
    return tables(200 if quick else 1_000)


def tables(runs: int) -> list[Sheet]:
    """Run the six steps so many times under each limit."""
    latencies = drawn(runs)
    rows: list[dict[str, Value]] = []
    reports: dict[str, list[RunReport]] = {}
    for limit, compiled in LIMITS.items():
        with collect_runs() as reports[limit]:
            ends = run_virtual(_runs(compiled(latencies), runs))
        rows.append(_row(limit, ends))
    about = f"{ABOUT} {runs:,} runs a row."
    steps = [_step_row(name, reports[OURS]) for name in STEPS]
    return [
        Sheet("Six steps under one ceiling of 45 s", about, COLUMNS, rows),
        Sheet("The same, step by step", STEPS_ABOUT, STEP_COLUMNS, steps),
    ]


async def _runs(graph: Any, runs: int) -> list[Ended]:
    return [await ended(graph.ainvoke({"run": run})) for run in range(runs)]


def _row(limit: str, ends: list[Ended]) -> dict[str, Value]:
    kinds = [_kind(end) for end in ends]
    seconds = [end.seconds for end in ends]
    named = ("complete", "degraded", "fallback", "no answer")
    return {
        "limit": limit,
        **{kind: share([found == kind for found in kinds]) for kind in named},
        "later than 45 s": share([took > CEILING for took in seconds]),
        "p50": round(percentile(seconds, 50), 3),
        "p95": round(percentile(seconds, 95), 3),
        "longest": round(max(seconds), 3),
    }


def _kind(end: Ended) -> str:
    if end.values is None:
        return "no answer"
    done = end.values["done"]
    if "fallback" in done:
        return "fallback"
    return "complete" if done == list(STEPS) else "degraded"


def _step_row(name: str, reports: list[RunReport]) -> dict[str, Value]:
    causes = [_cause(name, report) for report in reports]
    return {
        "step": name,
        "p50": STEPS[name].median,
        "p95": STEPS[name].p95,
        "limit": STEPS[name].budget.seconds,
        "window": STEPS[name].budget.needs or None,
        "as it is": share([cause == "done" for cause in causes]),
        "replaced: overran": share([cause == "step" for cause in causes]),
        "replaced: no window": share([cause == "window" for cause in causes]),
        "not done, fallback": share([cause == "not done" for cause in causes]),
    }


def _cause(name: str, report: RunReport) -> str:
    """Return what became of a step: `done`, why it was replaced, or `not done`."""
    steps = [step for step in report.steps if step.name == name]
    causes = {step.kind: step.cause for step in steps}
    if "otherwise" in causes:
        return str(causes["node"])
    return "done" if steps and causes["node"] is None else "not done"
