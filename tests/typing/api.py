"""What type checkers have to see: checked by mypy and pyright, never run.

A wrong type is an error here, and so is one that has become `Any`: every ignored line
has to be an error, or its ignore is reported as unused.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, assert_type

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.runnables import RunnableLambda, RunnableSequence
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import RunControl as PlainRunControl

from langgraph_deadline import (
    Deadline,
    DeadlineExceeded,
    DeadlineHandler,
    DeadlinePolicy,
    Limits,
    RemainingTime,
    RunControl,
    RunReport,
    StateGraph,
    StepBudget,
    agent_fallback,
    check,
    collect_runs,
    current_deadline,
    detach,
    fail_after,
    idempotency_key,
    move_on_after,
    remaining,
    shield,
    with_deadline,
)
from langgraph_deadline.runs import Runs


class State(TypedDict, total=False):
    text: str
    remaining_time: RemainingTime


class Context(TypedDict):
    user: str


def node(state: State) -> State:
    left = state.get("remaining_time", 0.0)
    assert_type(left, float)
    return {"text": "done"}


# The drop-in: what LangGraph's own has, ours has.

builder = StateGraph(State, context_schema=Context)
assert_type(builder, StateGraph[State, Context, State, State])
builder.add_node("node", node)
builder.add_edge(START, "node")
builder.add_edge("node", END)
plain_builder: PlainStateGraph[State, Context, State, State] = builder

graph = builder.compile(InMemorySaver(), deadline=30, fallback="node", name="graph")
compiled: CompiledStateGraph[State, Context, State, State] = graph
print(graph.no_such_attribute)  # type: ignore[attr-defined]
builder.compile(deadline=timedelta(seconds=30), fallback=node)
builder.compile(
    deadline=DeadlinePolicy(seconds=30), fallback=RunnableLambda[Any, Any](node)
)
builder.compile(deadline=Deadline.after(5))
builder.compile()
builder.compile(deadline="30")  # type: ignore[arg-type]
builder.compile(fallback=42)  # type: ignore[arg-type]

# Every entry point takes a deadline and a control.

control = RunControl()
plain_control: PlainRunControl = control
graph.invoke({"text": ""}, deadline=5, control=control)
graph.invoke({"text": ""}, {"tags": ["x"]}, deadline=timedelta(seconds=5))
for _ in graph.stream({"text": ""}, deadline=5, control=control):
    pass


async def drive() -> None:
    await graph.ainvoke({"text": ""}, deadline=5, control=control)
    async for _ in graph.astream({"text": ""}, deadline=5, control=control):
        pass


# `with_deadline` keeps the type.


def bound(
    plain: CompiledStateGraph[State, Context, State, State],
    entrypoint: Pregel[State, None, State, State],
) -> None:
    assert_type(
        with_deadline(plain, 30), CompiledStateGraph[State, Context, State, State]
    )
    assert_type(
        with_deadline(plain, DeadlinePolicy(seconds=3), fallback=node),
        CompiledStateGraph[State, Context, State, State],
    )
    assert_type(with_deadline(entrypoint, 30), Pregel[State, None, State, State])
    with_deadline(plain, "30")  # type: ignore[call-overload]
    with_deadline(plain, 30, fallback=42)  # type: ignore[call-overload]
    with_deadline(42, 30)  # type: ignore[call-overload]


def wrapped(
    a_tool: StructuredTool,
    model: GenericFakeChatModel,
    chain: RunnableSequence[str, int],
) -> None:
    assert_type(with_deadline(a_tool, 3, on_exceeded="raise"), StructuredTool)
    assert_type(with_deadline([a_tool], 3, needs=1), list[StructuredTool])
    assert_type(with_deadline(model, 3, on_exceeded="partial"), GenericFakeChatModel)
    assert_type(with_deadline(chain, 3), RunnableSequence[str, int])
    assert_type(with_deadline(node, 3)({"text": "a"}), State)
    with_deadline(a_tool, 3, on_exceeded="partial")  # type: ignore[call-overload]
    with_deadline(model, 3, fallback="a")  # type: ignore[call-overload]
    assert_type(idempotency_key(), str)
    limits = Limits(model_calls=3, cost=1.5, prices={"a": (1, 2)})
    DeadlinePolicy(limits=limits)
    builder.compile(deadline=3, fallback=agent_fallback("Sorry.", model=model))


# Values.

policy = DeadlinePolicy(
    seconds=30,
    reserve=timedelta(seconds=3),
    on_exceeded="return",
    steps={"node": StepBudget(seconds=8, needs=0.5, otherwise=None)},
    clock="wall",
    cancel_grace=1,
    enforce=False,
)
assert_type(policy.seconds, float | None)
assert_type(policy.steps["node"].needs, float)
DeadlinePolicy(on_exceeded="explode")  # type: ignore[arg-type]
DeadlinePolicy(clock="lunar")  # type: ignore[arg-type]
DeadlinePolicy(no_such_option=1)  # type: ignore[call-arg]

assert_type(Deadline.after(5), Deadline)
assert_type(Deadline.after(timedelta(seconds=5)), Deadline)
assert_type(Deadline.at(datetime.now(UTC)), Deadline)
assert_type(min(Deadline.after(1), Deadline.after(2)), Deadline)
assert_type(Deadline.after(5).remaining(), float)
assert_type(Deadline.after(5).expired, bool)
Deadline.after("5")  # type: ignore[arg-type]

# Verbs.

assert_type(current_deadline(), Deadline | None)
assert_type(remaining(), float)
check()
check(0.5)
check(timedelta(seconds=1))
check("1")  # type: ignore[arg-type]
fail_after("1")  # type: ignore[arg-type]


def returns_inside_fail_after() -> int:
    """`fail_after` swallows nothing, so that the function ends by its return."""
    with fail_after(1):
        return 1


def goes_on_after_move_on_after() -> int:
    with move_on_after(timedelta(seconds=1)) as block:
        check()
    assert_type(block.cancelled_caught, bool)
    assert_type(block.remaining(), float)
    return 1


with shield(1), detach():
    pass

# Reports and errors.

with collect_runs() as runs:
    assert_type(runs, Runs)
    assert_type(runs[0], RunReport)
for report in runs:
    assert_type(report.budget, float | None)
    assert_type(report.elapsed, float)
    assert_type([straggler.overrun for straggler in report.stragglers], list[float])
    if report.outcome == "done":  # type: ignore[comparison-overlap]
        pass
    if report.cause == "deadline":
        pass

try:
    pass
except DeadlineExceeded as error:
    timeout: TimeoutError = error
    assert_type(error.step, str | None)
    assert_type(error.remaining, float | None)
    if error.cause == "slow":  # type: ignore[comparison-overlap]
        pass

graph.invoke({}, {"callbacks": [DeadlineHandler(30), DeadlineHandler()]})
DeadlineHandler("30")  # type: ignore[arg-type]
