"""Six steps one after the other, and one ceiling of 45 s over all of them."""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainGraph
from langgraph.types import Command

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
understand and draft have nothing. *Fallback*: the run's own answer of what is there,
for which ours keep the last {RESERVE:g} s. Time-outs are LangGraph's `timeout=` on each
node. *Handled* has an `error_handler` on each as well: it puts in what does for the
step and goes on with the next, or ends the run with the fallback where nothing does.
The last two rows are ours, without and with budgets of single steps; these budgets are
chosen for this ceiling. Under every limit fallbacks and what is put in take no time,
and a step ends as soon as it is cancelled; under none but ours does a late run end with
a fallback."""


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


def handling(name: str) -> Callable[[State], Awaitable[Command[str]]]:
    """Return the error handler of a step: without a `goto` it would end the run."""
    following = dict(zip(STEPS, [*list(STEPS)[1:], END], strict=True))

    async def handler(state: State) -> Command[str]:
        if STEPS[name].instead is None:
            return Command(update=await degrade(state), goto=END)
        return Command(update=instead(name), goto=following[name])

    return handler


def instead(name: str) -> State:
    return {"done": [f"instead: {STEPS[name].instead}"]}


async def degrade(_: State) -> State:
    return {"done": ["fallback"]}


def graph_of(
    kind: Any,
    latencies: Latencies,
    limits: Mapping[str, float] | None = None,
    *,
    handled: bool = False,
) -> Any:
    """Return the six steps as a graph that is not compiled yet."""
    builder = kind(State)
    for name in STEPS:
        builder.add_node(
            name,
            taking(name, latencies),
            timeout=limits[name] if limits else None,
            error_handler=handling(name) if handled else None,
        )
    for before, after in zip([START, *STEPS], STEPS, strict=False):
        builder.add_edge(before, after)
    return builder


Run = Callable[[State], Awaitable[Any]]


def timed_out(limits: Mapping[str, float], *, handled: bool) -> Callable[..., Run]:
    def run(latencies: Latencies) -> Run:
        builder = graph_of(PlainGraph, latencies, limits, handled=handled)
        return builder.compile().ainvoke  # type: ignore[no-any-return]

    return run


def around(latencies: Latencies) -> Run:
    graph = graph_of(PlainGraph, latencies).compile()
    return lambda state: asyncio.wait_for(graph.ainvoke(state), CEILING)


def bounded(steps: Mapping[str, StepBudget]) -> Callable[..., Run]:
    policy = DeadlinePolicy(
        seconds=CEILING, reserve=timedelta(seconds=RESERVE), steps=steps
    )

    def run(latencies: Latencies) -> Run:
        builder = graph_of(BoundedGraph, latencies)
        graph = builder.compile(deadline=policy, fallback=degrade)
        return graph.ainvoke  # type: ignore[no-any-return]

    return run


def budgets() -> dict[str, StepBudget]:
    return {
        name: step.budget.model_copy(update={"otherwise": instead(name)})
        if step.instead
        else step.budget
        for name, step in STEPS.items()
    }


EACH = CEILING / len(STEPS)
EVEN = dict.fromkeys(STEPS, EACH)
OWN = {name: step.p95 for name, step in STEPS.items()}
WHOLE = dict.fromkeys(STEPS, CEILING)
LIMITS: dict[str, Callable[[Latencies], Run]] = {
    f"{EACH:g} s for each step": timed_out(EVEN, handled=False),
    f"{EACH:g} s for each step, handled": timed_out(EVEN, handled=True),
    "its p95 for each step": timed_out(OWN, handled=False),
    "its p95 for each step, handled": timed_out(OWN, handled=True),
    f"{CEILING:g} s for each step": timed_out(WHOLE, handled=False),
    f"`asyncio.wait_for`, {CEILING:g} s": around,
    f"one deadline of {CEILING:g} s": bounded({}),
    f"one deadline of {CEILING:g} s, budgets of steps": bounded(budgets()),
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
    for limit, limited in LIMITS.items():
        with collect_runs() as reports[limit]:
            ends = run_virtual(_runs(limited(latencies), runs))
        rows.append(_row(limit, ends))
    about = f"{ABOUT} {runs:,} runs a row."
    steps = [_step_row(name, reports[OURS]) for name in STEPS]
    return [
        Sheet("Six steps under one ceiling of 45 s", about, COLUMNS, rows),
        Sheet("The same, step by step", STEPS_ABOUT, STEP_COLUMNS, steps),
    ]


async def _runs(limited: Run, runs: int) -> list[Ended]:
    return [await ended(limited({"run": run})) for run in range(runs)]


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
