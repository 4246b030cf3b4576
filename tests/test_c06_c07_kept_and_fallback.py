"""C6: finished work is kept. C7: one fallback, and the budgets of single steps."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Annotated, Any, Literal, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, State, Trial
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import NodeError
from langgraph.graph import END, START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.types import Command, RetryPolicy, Send

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    StepBudget,
    check,
    collect_runs,
    remaining,
    with_deadline,
)
from langgraph_deadline._run import Run

GRACE = 0.25
THREAD: Any = {"configurable": {"thread_id": "1"}}


class FaultyInside(InMemorySaver):
    """A checkpointer that cannot save what is inside a node that hangs."""

    def __init__(self, trial: Trial, fault: Literal["hang", "fail"]) -> None:
        super().__init__()
        self.trial = trial
        self.fault = fault

    def fails(self, config: Any) -> bool:
        """Return whether this is a subgraph's, and it is time to fail."""
        inside = bool(config["configurable"].get("checkpoint_ns"))
        if inside and "hang" in self.trial.started and self.fault == "fail":
            msg = "the disk is full"
            raise OSError(msg)
        return inside and "hang" in self.trial.started

    def put(self, config: Any, *args: Any) -> Any:
        if self.fails(config):
            self.trial.released.wait(10)
        return super().put(config, *args)

    async def aput(self, config: Any, *args: Any) -> Any:
        while self.fails(config) and not self.trial.released.is_set():
            await asyncio.sleep(20)
        return super().put(config, *args)


def chain(trial: Trial, *nodes: Any, schema: Any = State) -> Any:
    """Return a builder with `nodes`, (name, node) or a name, one after the other."""
    builder = StateGraph(schema)
    before = START
    for node in nodes:
        name, body = node if isinstance(node, tuple) else (node, trial.quick(node))
        builder.add_node(name, body)
        builder.add_edge(before, name)
        before = name
    builder.add_edge(before, END)
    return builder


# C6.


@pytest.mark.parametrize("how", ALL)
def test_c6_what_finished_earlier_and_beside_is_what_the_fallback_sees(
    how: How,
) -> None:
    """The fallback gets the state with all finished updates, in their usual order."""
    trial = Trial(how)
    seen: list[Any] = []

    def degrade(state: State) -> State:
        seen.append(list(state["log"]))
        return {"log": ["degrade"]}

    builder = chain(trial, "one", "two")
    for name in ("beside2", "beside1"):
        builder.add_node(name, trial.quick(name))
        builder.add_edge("two", name)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge("two", "bad")
    graph = builder.compile(deadline=trial.reserved, fallback=trial.as_how(degrade))
    driven = trial.drive(graph)
    trial.at_work(driven)
    assert seen == [["one", "two", "beside1", "beside2"]]
    assert driven.values["log"] == ["one", "two", "beside1", "beside2", "degrade"]


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("after", [0.0, 0.1, 0.24, 0.3])
def test_c6_what_a_cut_node_returns_within_the_grace_is_kept(
    how: How, after: float
) -> None:
    """An update that comes in the grace counts, one that comes later does not."""
    trial = Trial(how)

    async def bad(state: State) -> State:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(after)
        return {"log": ["bad"]}

    builder = chain(trial, ("bad", bad), "after")
    driven = trial.drive(trial.compile(builder, "fallback"))
    kept = ["bad"] if after <= GRACE else []
    assert driven.values["log"] == [*kept, "degrade"]
    assert "after" not in trial.started
    trial.at_work(driven, min(after, GRACE))
    assert driven.report.outcome == "deadline"


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_c6_what_a_sync_node_returns_late_is_not_kept(how: How) -> None:
    """A thread has no grace: it is given up at once, and what it returns is dropped."""
    trial = Trial(how, realtime=True)

    def bad(state: State) -> State:
        time.sleep(trial.work + 0.1)
        return {"log": ["bad"]}

    def degrade(state: State) -> State:
        time.sleep(0.3)
        return {"log": ["degrade"]}

    graph = chain(trial, ("bad", bad)).compile(
        deadline=trial.reserved, fallback=degrade
    )
    driven = trial.drive(graph)
    assert driven.values["log"] == ["degrade"]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("mode", ["fallback", "return"])
def test_c6_a_node_whose_edge_was_cut_has_finished(how: How, mode: str) -> None:
    """The update of a node counts even if the conditional edge after it hangs."""
    trial = Trial(how)

    def path(state: State) -> str:
        trial.released.wait(3)
        return "next"

    async def apath(state: State) -> str:
        await asyncio.sleep(3600)
        return "next"

    builder = StateGraph(State)
    builder.add_node("one", trial.quick("one"))
    builder.add_node("next", trial.quick("next"))
    builder.add_edge(START, "one")
    builder.add_conditional_edges("one", path if how in SYNC else apath, ["next"])
    driven = trial.drive(trial.compile(builder, mode))
    assert driven.values["log"] == ["one", *(["degrade"] if mode == "fallback" else [])]
    assert "next" not in trial.started


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_c6_what_was_kept_is_in_the_checkpoint(how: How, durability: str) -> None:
    """The thread's state after the run is what the caller got."""
    trial = Trial(how)
    saver = InMemorySaver()
    builder = chain(trial, "one", ("bad", trial.hang("bad")))
    builder.add_node("beside", trial.quick("beside"))
    builder.add_edge("one", "beside")
    graph = trial.compile(builder, "fallback", checkpointer=saver)
    driven = trial.drive(graph, config=THREAD, durability=durability)
    state = graph.get_state(THREAD)
    assert state.values == driven.values == {"log": ["one", "beside", "degrade"]}
    assert state.next == ()


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_c6_finished_work_and_the_fallback_arrive_as_updates(how: How) -> None:
    """A stream shows what finished before the cut, then the fallback, once each."""
    trial = Trial(how)
    builder = chain(trial, "one", ("bad", trial.hang("bad")))
    builder.add_node("beside", trial.quick("beside"))
    builder.add_edge("one", "beside")
    driven = trial.drive(trial.compile(builder, "fallback"))
    shown = [
        (name, update)
        for chunk in driven.updates
        for name, update in chunk.items()
        if update is not None
    ]
    assert shown == [(name, {"log": [name]}) for name in ("one", "beside", "degrade")]


@pytest.mark.parametrize("fault", ["hang", "fail"])
@pytest.mark.parametrize("how", ALL)
def test_c6_a_subgraph_that_cannot_save_hands_over_what_it_reached(
    how: How, fault: Literal["hang", "fail"]
) -> None:
    """Its engine cannot end, but its node has the state of the last superstep."""
    trial = Trial(how)
    inner = PlainStateGraph(State)
    inner.add_node("part", trial.quick("part"))
    inner.add_node("hang", trial.hang("hang"))
    inner.add_edge(START, "part")
    inner.add_edge("part", "hang")
    saver = FaultyInside(trial, fault)
    graph = trial.compile(
        chain(trial, "first", ("bad", inner.compile()), "last"),
        "fallback",
        checkpointer=saver,
    )
    driven = trial.drive(graph, config=THREAD)
    assert driven.error is None
    assert driven.report.outcome == "deadline"
    assert driven.values["log"] == ["first", "first", "part", "degrade"]
    assert graph.get_state(THREAD).values == driven.values


class StuckAtTheEnd(InMemorySaver):
    """A checkpointer that hangs once the last node has begun."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial

    def put(self, *args: Any) -> Any:
        if "last" in self.trial.started:
            self.trial.released.wait(10)
        return super().put(*args)

    async def aput(self, *args: Any) -> Any:
        while "last" in self.trial.started and not self.trial.released.is_set():
            await asyncio.sleep(20)
        return super().put(*args)


@pytest.mark.parametrize("how", ALL)
def test_c6_an_answer_that_cannot_be_saved_in_time_is_returned_all_the_same(
    how: How,
) -> None:
    """All work was done: there is nothing that a fallback could stand in for."""
    trial = Trial(how)
    builder = chain(trial, "first", "last")
    graph = trial.compile(builder, "fallback", checkpointer=StuckAtTheEnd(trial))
    driven = trial.drive(graph, config=THREAD)
    assert driven.error is None
    assert driven.values["log"] == ["first", "last"]
    assert driven.report.outcome == "deadline"
    assert trial.started == ["first", "last"]
    assert driven.elapsed <= trial.end + GRACE + (0.6 if trial.real else 1e-6)


# C7: one fallback.


def runnable(trial: Trial) -> Any:
    """Return a Runnable that answers in both worlds."""

    def answer(state: State) -> State:
        trial.started.append("answer")
        return {"log": ["answer"]}

    async def aanswer(state: State) -> State:
        return answer(state)

    return RunnableLambda(answer, aanswer, name="answer")


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    "kind", ["name", "function", "lambda", "Runnable", "graph", "object", "late"]
)
def test_c7_a_fallback_of_every_kind_runs_once(how: How, kind: str) -> None:
    """A node's name, a callable, a Runnable, a graph: one of them answers, once."""
    trial = Trial(how)

    def answer(state: State) -> State:
        trial.started.append("answer")
        return {"log": ["answer"]}

    class Answer:
        """A callable object."""

        def __call__(self, state: State) -> State:
            return answer(state)

    builder = chain(trial, ("bad", trial.hang("bad")))
    for n in range(5):
        builder.add_node(f"bad{n}", trial.hang(f"bad{n}"))
        builder.add_edge(START, f"bad{n}")
    fallback: Any = trial.as_how(answer)
    if kind == "name":
        builder.add_node("answer", fallback)
        fallback = "answer"
    elif kind == "lambda":
        fallback = lambda state: answer(state)  # noqa: E731, PLW0108
    elif kind == "Runnable":
        fallback = runnable(trial)
    elif kind == "graph":
        inner = PlainStateGraph(State)
        inner.add_node("answer", fallback)
        inner.add_edge(START, "answer")
        fallback = inner.compile()
    elif kind == "object":
        fallback = Answer()
    if kind == "late":
        plain = PlainStateGraph.compile(builder)
        graph = with_deadline(plain, trial.reserved, fallback=fallback)
    else:
        graph = builder.compile(deadline=trial.reserved, fallback=fallback)
    driven = trial.drive(graph)
    trial.at_work(driven)
    assert driven.error is None
    assert driven.values["log"] == ["answer"]
    assert trial.started.count("answer") == 1
    nodes = {
        "function": "answer",
        "late": "answer",
        "name": "answer",
        "lambda": "fallback",
        "Runnable": "fallback",
        "graph": "fallback",
        "object": "fallback",
    }
    fallbacks = [s.name for s in driven.report.steps if s.kind == "fallback"]
    assert fallbacks == [nodes[kind]]


@pytest.mark.parametrize("how", ALL)
def test_c7_a_fallback_at_work_as_an_ordinary_node_goes_on_with_all_that_is_inside(
    how: How,
) -> None:
    """It is spared by the cut, and so is the call that it waits for."""
    trial = Trial(how)

    def ask(question: str) -> str:
        time.sleep(trial.work + 0.3)
        return question

    async def aask(question: str) -> str:
        await asyncio.sleep(trial.work + 0.3)
        return question

    def degrade(state: State) -> State:
        return {"log": [with_deadline(ask, 100)("answer")]}

    async def adegrade(state: State) -> State:
        return {"log": [await with_deadline(aask, 100)("answer")]}

    builder = chain(trial, ("degrade", degrade if how in SYNC else adegrade))
    driven = trial.drive(trial.compile(builder, "fallback"))
    assert driven.error is None
    assert driven.values["log"] == ["answer"]
    assert trial.work + 0.3 - 1e-6 <= driven.elapsed < trial.end
    assert [step.cause for step in driven.report.steps] == [None, None]


@pytest.mark.parametrize("how", ALL)
def test_c7_only_the_fallback_and_what_it_leads_to_run_in_the_reserve(
    how: How,
) -> None:
    """Its successors run as ordinary nodes do, joins and `Send`s included."""
    trial = Trial(how)
    builder = chain(trial, ("bad", trial.hang("bad")), "after_bad")
    for name in ("left", "right", "join", "sent", "last"):
        builder.add_node(name, trial.quick(name))
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge("degrade", "left")
    builder.add_edge("degrade", "right")
    builder.add_edge(["left", "right"], "join")
    builder.add_conditional_edges(
        "join", trial.as_how(lambda _: [Send("sent", {"log": []})] * 2), ["sent"]
    )
    builder.add_edge("sent", "last")
    driven = trial.drive(trial.compile(builder, "fallback"))
    trial.at_work(driven)
    assert driven.error is None
    assert driven.values["log"] == [
        "degrade",
        "left",
        "right",
        "join",
        "sent",
        "sent",
        "last",
    ]
    assert trial.started.count("degrade") == 1
    assert "after_bad" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c7_the_fallback_has_the_reserve_and_no_more(how: How) -> None:
    """Inside the fallback what is left is the reserve."""
    trial = Trial(how)
    left: list[float] = []

    def degrade(state: State) -> State:
        left.append(remaining())
        check()
        return {"log": ["degrade"]}

    builder = chain(trial, ("bad", trial.hang("bad")))
    graph = builder.compile(deadline=trial.reserved, fallback=trial.as_how(degrade))
    trial.drive(graph)
    reserve = trial.end - trial.work
    if trial.real:
        assert reserve - 0.6 <= left[0] <= reserve + 0.001
    else:
        assert left[0] == pytest.approx(reserve)


@pytest.mark.parametrize("how", ALL)
def test_c7_the_fallback_may_lead_back_into_the_work(how: How) -> None:
    """What it leads to may be a node that was cut: it has the reserve, then it ends."""
    trial = Trial(how, reserve=0.3)
    builder = chain(trial, ("bad", trial.hang("bad")), "after_bad")
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge("degrade", "bad")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph)
    trial.at_end(driven)
    assert trial.started == ["bad", "degrade", "bad"]
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_c7_the_reserve_can_be_seconds_or_a_share(how: How) -> None:
    """Below 1 it is a fraction of the budget, else seconds."""
    trial = Trial(how)
    builder = chain(trial, ("bad", trial.hang("bad")))
    builder.add_node("degrade", trial.quick("degrade"))
    budget = 1.5 if trial.real else 8.0
    for reserve, at in ((0.75, budget * 0.25), (1.0, budget - 1.0)):
        policy = DeadlinePolicy(seconds=budget, reserve=reserve)
        driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
        trial.released.clear()
        trial.took(driven, at)
        assert driven.values["log"] == ["degrade"]


@pytest.mark.parametrize("how", ALL)
def test_c7_an_exception_in_the_fallback_reaches_the_caller(how: How) -> None:
    """A fallback that fails is not tried again, and its error is not hidden."""
    trial = Trial(how)

    def degrade(state: State) -> State:
        trial.started.append("degrade")
        msg = "no answer"
        raise ValueError(msg)

    builder = chain(trial, ("bad", trial.hang("bad")))
    graph = builder.compile(deadline=trial.reserved, fallback=trial.as_how(degrade))
    driven = trial.drive(graph)
    assert isinstance(driven.error, ValueError)
    assert trial.started == ["bad", "degrade"]
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_c7_a_node_that_fails_by_itself_does_not_go_to_the_fallback(how: How) -> None:
    """The fallback is for the lack of time, not for errors."""
    trial = Trial(how)

    def bad(state: State) -> State:
        msg = "no"
        raise ValueError(msg)

    driven = trial.drive(
        trial.compile(chain(trial, ("bad", trial.as_how(bad))), "fallback")
    )
    assert isinstance(driven.error, ValueError)
    assert "degrade" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c7_a_node_that_fails_while_siblings_hang_is_an_error(
    how: How,
) -> None:
    """An exception ends the superstep, as in LangGraph, and no fallback runs."""
    trial = Trial(how)

    def bad(state: State) -> State:
        msg = "no"
        raise ValueError(msg)

    builder = chain(trial, ("hang", trial.hang("hang")))
    builder.add_node("bad", trial.as_how(bad))
    builder.add_edge(START, "bad")
    driven = trial.drive(trial.compile(builder, "fallback"))
    assert isinstance(driven.error, ValueError)
    if not trial.real:
        assert driven.elapsed <= GRACE
    assert "degrade" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c7_a_calls_own_policy_decides_what_happens(how: How) -> None:
    """One call of a graph with a fallback may ask for the state so far instead."""
    trial = Trial(how)
    builder = chain(trial, ("bad", trial.hang("bad")))
    graph = trial.compile(builder, "fallback")
    once = DeadlinePolicy(seconds=trial.budget, on_exceeded="return")
    driven = trial.drive(graph, deadline=once)
    trial.at_budget(driven)
    assert driven.error is None
    assert driven.values["log"] == []
    assert "degrade" not in trial.started


# C7: no fallback.


@pytest.mark.parametrize("how", ALL)
def test_c7_the_error_says_what_where_and_by_how_much(how: How) -> None:
    """`DeadlineExceeded` has all its attributes, and a message to act on."""
    trial = Trial(how)
    builder = chain(trial, "one", ("bad", trial.hang("bad")))
    driven = trial.drive(builder.compile(deadline=trial.budget))
    error = driven.error
    assert type(error) is DeadlineExceeded
    assert isinstance(error, TimeoutError)
    assert error.cause == "deadline"
    assert error.step == "bad"
    assert error.budget == trial.budget
    assert error.elapsed is not None
    assert error.elapsed >= trial.budget - 0.001
    assert error.remaining is not None
    assert error.remaining <= 0.001
    assert error.needed is None
    said = str(error)
    assert "'bad'" in said
    assert f"{trial.budget:.3g} s" in said
    assert "`deadline`" in said
    assert "`fallback`" in said


@pytest.mark.parametrize("how", ALL)
def test_c7_raise_leaves_a_checkpoint_that_resumes_what_was_cut(how: How) -> None:
    """`invoke(None)` re-runs just the cut node, with what its siblings finished."""
    trial = Trial(how)
    slow = [True]

    def bad(state: State) -> State:
        trial.started.append("bad")
        if slow.pop() if slow else False:
            trial.released.wait(3)
        return {"log": ["bad"]}

    async def abad(state: State) -> State:
        trial.started.append("bad")
        if slow.pop() if slow else False:
            await asyncio.sleep(3600)
        return {"log": ["bad"]}

    builder = chain(trial, "one", ("bad", bad if how in SYNC else abad), "last")
    builder.add_node("beside", trial.quick("beside"))
    builder.add_edge("one", "beside")
    saver = InMemorySaver()
    graph = builder.compile(saver, deadline=trial.budget)
    first = trial.drive(graph, config=THREAD)
    assert type(first.error) is DeadlineExceeded
    assert graph.get_state(THREAD).next == ("bad",)
    again = trial.drive(_Resumed(graph), config=THREAD)
    assert again.error is None
    assert sorted(again.values["log"][1:3]) == ["bad", "beside"]
    assert again.values["log"][-1] == "last"
    assert trial.started.count("one") == 1
    assert trial.started.count("beside") == 1
    assert trial.started.count("bad") == 2
    assert again.report.outcome == "completed"


class _Resumed:
    """A graph that is driven with `None`, whatever its input."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def invoke(self, _: Any, *args: Any, **kwargs: Any) -> Any:
        return self.graph.invoke(None, *args, **kwargs)

    def stream(self, _: Any, *args: Any, **kwargs: Any) -> Any:
        return self.graph.stream(None, *args, **kwargs)

    def ainvoke(self, _: Any, *args: Any, **kwargs: Any) -> Any:
        return self.graph.ainvoke(None, *args, **kwargs)

    def astream(self, _: Any, *args: Any, **kwargs: Any) -> Any:
        return self.graph.astream(None, *args, **kwargs)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
def test_c7_raise_resumes_inside_a_subgraph(how: How, factory: Any) -> None:
    """What a subgraph finished before the cut is not run again by the resume."""
    trial = Trial(how)
    slow = [True]

    def bad(state: State) -> State:
        trial.started.append("bad")
        if slow.pop() if slow else False:
            trial.released.wait(3)
        return {"log": ["bad"]}

    async def abad(state: State) -> State:
        trial.started.append("bad")
        if slow.pop() if slow else False:
            await asyncio.sleep(3600)
        return {"log": ["bad"]}

    inner = factory(State)
    inner.add_node("part", trial.quick("part"))
    inner.add_node("bad", bad if how in SYNC else abad)
    inner.add_edge(START, "part")
    inner.add_edge("part", "bad")
    builder = chain(trial, ("inner", inner.compile()), "last")
    graph = builder.compile(InMemorySaver(), deadline=trial.budget)
    first = trial.drive(graph, config=THREAD)
    assert type(first.error) is DeadlineExceeded
    again = trial.drive(_Resumed(graph), config=THREAD)
    assert again.error is None
    assert again.values["log"] == ["part", "bad", "last"]
    assert trial.started == ["part", "bad", "bad", "last"]


@pytest.mark.parametrize("how", ALL)
def test_c7_return_gives_the_state_so_far(how: How) -> None:
    """With `return` there is no error and no fallback, just what there is."""
    trial = Trial(how)
    builder = chain(trial, "one", ("bad", trial.hang("bad")), "last")
    driven = trial.drive(trial.compile(builder, "return"))
    trial.at_budget(driven)
    assert driven.error is None
    assert driven.values == {"log": ["one"]}
    assert driven.report.outcome == "deadline"
    assert "last" not in trial.started


# C7: a step's own budget.


def stepped(
    trial: Trial, builder: Any, budget: StepBudget, name: str = "bad", **kwargs: Any
) -> Any:
    """Return the graph with all the time in the world, and a budget for one step."""
    seconds = 60.0 if trial.real else 1000.0
    policy = DeadlinePolicy(seconds=seconds, steps={name: budget})
    return builder.compile(deadline=policy, **kwargs)


def limit(trial: Trial) -> float:
    """Return the limit of a step: short, in real time."""
    return 0.2 if trial.real else 5.0


def on_input(state: State) -> State:
    return {"log": [f"otherwise after {state['log']}"]}


async def aon_input(state: State) -> State:
    await asyncio.sleep(0)
    return on_input(state)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("kind", ["value", "callable", "async", "Runnable", "None"])
def test_c7_an_overrun_uses_otherwise_and_the_run_goes_on(how: How, kind: str) -> None:
    """A value, or a callable that gets the node's input; its edges fire."""
    if kind == "async" and how in SYNC:
        kind = "callable"
    trial = Trial(how)
    otherwise: Any = {
        "value": {"log": ["otherwise after ['one']"]},
        "callable": on_input,
        "async": aon_input,
        "Runnable": RunnableLambda(on_input),
        "None": None,
    }[kind]
    builder = chain(trial, "one", ("bad", trial.hang("bad")), "last")
    budget = StepBudget(seconds=limit(trial), otherwise=otherwise)
    driven = trial.drive(stepped(trial, builder, budget))
    trial.took(driven, limit(trial))
    assert driven.error is None
    instead = [] if kind == "None" else ["otherwise after ['one']"]
    assert driven.values["log"] == ["one", *instead, "last"]
    assert driven.report.outcome == "completed"
    causes = {s.name: s.cause for s in driven.report.steps if s.kind == "node"}
    assert causes == {"one": None, "bad": "step", "last": None}
    assert [s.name for s in driven.report.steps if s.kind == "otherwise"] == ["bad"]


@pytest.mark.parametrize("how", ALL)
def test_c7_an_otherwise_goes_through_the_nodes_own_edges(how: How) -> None:
    """Conditional edges read the substitute, joins count it, waiting edges fire."""
    trial = Trial(how)
    builder = StateGraph(State)
    for name in ("good", "join", "left", "right"):
        builder.add_node(name, trial.quick(name))
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge(START, "good")
    builder.add_edge(START, "bad")
    builder.add_edge(["good", "bad"], "join")
    builder.add_conditional_edges(
        "bad",
        trial.as_how(lambda state: "left" if "otherwise" in state["log"] else "right"),
        ["left", "right"],
    )
    budget = StepBudget(seconds=limit(trial), otherwise={"log": ["otherwise"]})
    driven = trial.drive(stepped(trial, builder, budget))
    assert driven.error is None
    assert sorted(driven.values["log"]) == ["good", "join", "left", "otherwise"]


@pytest.mark.parametrize("how", ALL)
def test_c7_an_otherwise_may_be_a_command(how: How) -> None:
    """A substitute can lead elsewhere, as the node itself could."""
    trial = Trial(how)
    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"), destinations=("aside",))
    builder.add_node("aside", trial.quick("aside"))
    builder.add_edge(START, "bad")
    otherwise = Command(update={"log": ["otherwise"]}, goto="aside")
    budget = StepBudget(seconds=limit(trial), otherwise=otherwise)
    driven = trial.drive(stepped(trial, builder, budget))
    assert driven.error is None
    assert driven.values["log"] == ["otherwise", "aside"]


@pytest.mark.parametrize("how", ASYNC)
def test_c7_what_an_overrunning_step_returns_in_its_grace_is_not_used_twice(
    how: How,
) -> None:
    """Where a step has an `otherwise`, that is what is used, alone."""
    trial = Trial(how)

    async def bad(state: State) -> State:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return {"log": ["bad"]}

    builder = chain(trial, ("bad", bad), "last")
    budget = StepBudget(seconds=5, otherwise={"log": ["otherwise"]})
    driven = trial.drive(stepped(trial, builder, budget))
    assert driven.values["log"] == ["otherwise", "last"]
    assert driven.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
def test_c7_an_otherwise_that_hangs_is_cut_with_the_run(how: How) -> None:
    """The substitute has what is left of the run, then the fallback's turn comes."""
    trial = Trial(how)

    def otherwise(state: State) -> State:
        trial.started.append("otherwise")
        trial.released.wait(3)
        return {"log": ["otherwise"]}

    async def aotherwise(state: State) -> State:
        trial.started.append("otherwise")
        await asyncio.sleep(3600)
        return {"log": ["otherwise"]}

    substitute = otherwise if how in SYNC else aotherwise
    budget = StepBudget(seconds=trial.work / 4, otherwise=substitute)
    policy = trial.reserved.model_copy(update={"steps": {"bad": budget}})
    builder = chain(trial, ("bad", trial.hang("bad")), "last")
    builder.add_node("degrade", trial.quick("degrade"))
    driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
    trial.at_work(driven)
    assert driven.error is None
    assert driven.values["log"] == ["degrade"]
    assert trial.started == ["bad", "otherwise", "degrade"]
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("kind", ["deadline", "error"])
def test_c7_an_otherwise_that_raises_raises(how: How, kind: str) -> None:
    """An exception of the substitute is the node's."""
    trial = Trial(how)

    def otherwise(state: State) -> State:
        msg = "none left"
        if kind == "deadline":
            raise DeadlineExceeded(msg)
        raise ValueError(msg)

    builder = chain(trial, ("bad", trial.hang("bad")))
    budget = StepBudget(seconds=limit(trial), otherwise=trial.as_how(otherwise))
    driven = trial.drive(stepped(trial, builder, budget))
    kinds = {"deadline": DeadlineExceeded, "error": ValueError}
    assert isinstance(driven.error, kinds[kind])


@pytest.mark.parametrize("how", ALL)
def test_c7_a_step_in_time_does_not_use_its_otherwise(how: How) -> None:
    """A budget that is not exceeded changes nothing."""
    trial = Trial(how)
    builder = chain(trial, "bad", "last")
    budget = StepBudget(seconds=30, needs=1, otherwise={"log": ["otherwise"]})
    driven = trial.drive(stepped(trial, builder, budget))
    assert driven.values["log"] == ["bad", "last"]


@pytest.mark.parametrize("how", ALL)
def test_c7_an_overrun_goes_to_the_nodes_own_error_handler(how: How) -> None:
    """Without `otherwise`, who handles the node's errors handles this one."""
    trial = Trial(how)
    seen: list[Any] = []

    def handler(state: State, error: NodeError) -> State:
        seen.append(error.error)
        return {"log": ["handled"]}

    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"), error_handler=trial.as_how(handler))
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge(START, "bad")
    budget = StepBudget(seconds=limit(trial))
    driven = trial.drive(stepped(trial, builder, budget, fallback="degrade"))
    trial.took(driven, limit(trial))
    assert driven.error is None
    assert driven.values["log"] == ["handled"]
    (error,) = seen
    assert isinstance(error, DeadlineExceeded)
    assert error.cause == "step"
    assert error.step == "bad"
    assert error.budget == limit(trial)


@pytest.mark.parametrize("how", ALL)
def test_c7_a_window_that_is_not_there_goes_to_the_nodes_own_error_handler(
    how: How,
) -> None:
    """A refusal is an error of the node like an overrun."""
    trial = Trial(how)
    seen: list[Any] = []

    def handler(state: State, error: NodeError) -> State:
        seen.append(error.error)
        return {"log": ["handled"]}

    builder = StateGraph(State)
    builder.add_node("bad", trial.quick("bad"), error_handler=trial.as_how(handler))
    builder.add_edge(START, "bad")
    driven = trial.drive(stepped(trial, builder, StepBudget(needs=5000)))
    assert driven.error is None
    assert driven.values["log"] == ["handled"]
    assert isinstance(seen[0], DeadlineExceeded)
    assert seen[0].cause == "window"
    assert trial.started == []


@pytest.mark.parametrize("how", ALL)
def test_c7_the_runs_own_cut_is_not_the_error_handlers(how: How) -> None:
    """A node's error handler hears of its own limit, not of the run's end."""
    trial = Trial(how)

    def handler(state: State, error: NodeError) -> State:
        trial.started.append("handler")
        return {"log": ["handled"]}

    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"), error_handler=trial.as_how(handler))
    builder.add_edge(START, "bad")
    driven = trial.drive(trial.compile(builder, "fallback"))
    trial.at_work(driven)
    assert driven.values["log"] == ["degrade"]
    assert "handler" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c7_an_overrun_goes_to_the_runs_fallback(how: How) -> None:
    """Without `otherwise` and handler, the run falls back, at once."""
    trial = Trial(how)
    builder = chain(trial, "one", ("bad", trial.hang("bad")), "last")
    builder.add_node("beside", trial.quick("beside"))
    builder.add_edge("one", "beside")
    builder.add_node("degrade", trial.quick("degrade"))
    budget = StepBudget(seconds=limit(trial))
    driven = trial.drive(stepped(trial, builder, budget, fallback="degrade"))
    trial.took(driven, limit(trial))
    assert driven.error is None
    assert driven.values["log"] == ["one", "beside", "degrade"]
    assert driven.report.outcome == "deadline"
    assert driven.report.cause == "step"
    assert "last" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c7_an_overrun_that_falls_back_cuts_its_siblings(how: How) -> None:
    """The run's fallback takes over from all that is going on, once."""
    trial = Trial(how)
    builder = chain(trial, ("bad", trial.hang("bad")))
    for n in range(3):
        builder.add_node(f"bad{n}", trial.hang(f"bad{n}"))
        builder.add_edge(START, f"bad{n}")
    builder.add_node("degrade", trial.quick("degrade"))
    budget = StepBudget(seconds=limit(trial))
    driven = trial.drive(stepped(trial, builder, budget, fallback="degrade"))
    trial.took(driven, limit(trial))
    assert driven.values["log"] == ["degrade"]
    assert trial.started.count("degrade") == 1


@pytest.mark.parametrize("how", ALL)
def test_c7_an_overrun_raises_where_nobody_has_an_answer(how: How) -> None:
    """`DeadlineExceeded(cause="step")` names the step, its limit and its time."""
    trial = Trial(how)
    builder = chain(trial, "one", ("bad", trial.hang("bad")), "last")
    budget = StepBudget(seconds=limit(trial))
    driven = trial.drive(stepped(trial, builder, budget))
    trial.took(driven, limit(trial))
    error = driven.error
    assert type(error) is DeadlineExceeded
    assert error.cause == "step"
    assert error.step == "bad"
    assert error.budget == limit(trial)
    assert error.elapsed is not None
    assert error.elapsed >= limit(trial) - 0.001
    assert "'bad'" in str(error)
    assert "`seconds`" in str(error)
    assert driven.report.outcome == "deadline"
    assert driven.report.cause == "step"
    assert "last" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c7_an_overrun_under_return_gives_the_state_so_far(how: How) -> None:
    """A step's overrun ends a run with `return` as its deadline does."""
    trial = Trial(how)
    builder = chain(trial, "one", ("bad", trial.hang("bad")), "last")
    policy = DeadlinePolicy(
        seconds=60.0 if trial.real else 1000.0,
        on_exceeded="return",
        steps={"bad": StepBudget(seconds=limit(trial))},
    )
    driven = trial.drive(builder.compile(deadline=policy))
    trial.took(driven, limit(trial))
    assert driven.error is None
    assert driven.values["log"] == ["one"]
    assert driven.report.cause == "step"


@pytest.mark.parametrize("how", ALL)
def test_c7_a_resume_after_an_overrun_runs_the_step_again(how: How) -> None:
    """Under `raise`, a step's overrun leaves the checkpoint resumable as well."""
    trial = Trial(how)
    slow = [True]

    def bad(state: State) -> State:
        trial.started.append("bad")
        if slow.pop() if slow else False:
            trial.released.wait(3)
        return {"log": ["bad"]}

    async def abad(state: State) -> State:
        trial.started.append("bad")
        if slow.pop() if slow else False:
            await asyncio.sleep(3600)
        return {"log": ["bad"]}

    builder = chain(trial, "one", ("bad", bad if how in SYNC else abad), "last")
    budget = StepBudget(seconds=limit(trial))
    graph = stepped(trial, builder, budget, checkpointer=InMemorySaver())
    first = trial.drive(graph, config=THREAD)
    assert type(first.error) is DeadlineExceeded
    assert first.error.cause == "step"
    again = trial.drive(_Resumed(graph), config=THREAD)
    assert again.error is None
    assert again.values["log"] == ["one", "bad", "last"]
    assert trial.started == ["one", "bad", "bad", "last"]


# C7: the window.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("answer", ["otherwise", "fallback", "raise"])
def test_c7_a_step_is_not_started_without_its_window(how: How, answer: str) -> None:
    """`needs` is checked against what is left, before the node starts."""
    trial = Trial(how)
    otherwise = {"otherwise": {"log": ["otherwise"]}} if answer == "otherwise" else {}
    budget = StepBudget(needs=50, **otherwise)
    builder = chain(trial, "one", "bad", "last")
    builder.add_node("degrade", trial.quick("degrade"))
    policy = DeadlinePolicy(seconds=20, steps={"bad": budget})
    fallback = {"fallback": "degrade"} if answer == "fallback" else {}
    driven = trial.drive(builder.compile(deadline=policy, **fallback))
    assert driven.elapsed < 3
    assert "bad" not in trial.started
    if answer == "otherwise":
        assert driven.values["log"] == ["one", "otherwise", "last"]
        assert driven.report.outcome == "completed"
    elif answer == "fallback":
        assert driven.values["log"] == ["one", "degrade"]
        assert driven.report.outcome == "deadline"
        assert driven.report.cause == "window"
    else:
        error = driven.error
        assert type(error) is DeadlineExceeded
        assert error.cause == "window"
        assert error.step == "bad"
        assert error.needed == 50
        assert error.remaining is not None
        assert 15 < error.remaining <= 20
        assert "50 s" in str(error)
        assert "'bad'" in str(error)
        assert "`needs`" in str(error)
        assert driven.report.cause == "window"
    refused = [s for s in driven.report.steps if s.name == "bad" and s.kind == "node"]
    assert [s.cause for s in refused] == ["window"]


@pytest.mark.parametrize("how", ASYNC)
def test_c7_the_window_is_measured_up_to_the_work_deadline(how: How) -> None:
    """The reserve is not an ordinary node's time."""
    trial = Trial(how)
    builder = chain(trial, "bad")
    builder.add_node("degrade", trial.quick("degrade"))
    for needs, ran in ((8.0, True), (8.5, False)):
        policy = DeadlinePolicy(seconds=10, steps={"bad": StepBudget(needs=needs)})
        driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
        assert driven.values["log"] == (["bad"] if ran else ["degrade"])


@pytest.mark.parametrize("how", ALL)
def test_c7_the_window_of_the_fallback_is_the_reserve(how: How) -> None:
    """A fallback may have a window of its own; without it there is no fallback."""
    trial = Trial(how)
    builder = chain(trial, ("bad", trial.hang("bad")))
    builder.add_node("degrade", trial.quick("degrade"))
    budget = StepBudget(needs=50)
    policy = trial.reserved.model_copy(update={"steps": {"degrade": budget}})
    driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
    assert type(driven.error) is DeadlineExceeded
    assert driven.error.cause == "deadline"
    assert "fallback 'degrade' was not started: it needs 50 s" in str(driven.error)
    assert "Raise `reserve`" in str(driven.error)
    assert "degrade" not in trial.started


# C7: all attempts.


@pytest.mark.parametrize("how", ALL)
def test_c7_a_steps_seconds_cover_all_its_attempts(how: How) -> None:
    """Retries do not start a step's clock again."""
    trial = Trial(how)
    nap = limit(trial) * 0.3

    def bad(state: State) -> State:
        trial.started.append("bad")
        time.sleep(nap)
        msg = "again"
        raise ConnectionError(msg)

    async def abad(state: State) -> State:
        trial.started.append("bad")
        await asyncio.sleep(nap)
        msg = "again"
        raise ConnectionError(msg)

    builder = StateGraph(State)
    builder.add_node(
        "bad",
        bad if how in SYNC else abad,
        retry_policy=RetryPolicy(
            initial_interval=0.001, backoff_factor=1.0, jitter=False, max_attempts=99
        ),
    )
    builder.add_node("last", trial.quick("last"))
    builder.add_edge(START, "bad")
    builder.add_edge("bad", "last")
    budget = StepBudget(seconds=limit(trial), otherwise={"log": ["otherwise"]})
    driven = trial.drive(stepped(trial, builder, budget))
    assert driven.elapsed <= limit(trial) + (0.6 if trial.real else 1e-6)
    assert driven.error is None
    assert driven.values["log"] == ["otherwise", "last"]
    assert 1 <= trial.started.count("bad") <= 4


@pytest.mark.parametrize("how", ALL)
def test_c7_a_steps_back_off_is_within_its_seconds(how: How) -> None:
    """A back-off sleep that would pass the step's limit is not slept out."""
    trial = Trial(how)

    def bad(state: State) -> State:
        trial.started.append("bad")
        msg = "again"
        raise ConnectionError(msg)

    builder = StateGraph(State)
    builder.add_node(
        "bad",
        trial.as_how(bad),
        retry_policy=RetryPolicy(
            initial_interval=40.0, max_interval=40.0, jitter=False, max_attempts=9
        ),
    )
    builder.add_edge(START, "bad")
    budget = StepBudget(seconds=limit(trial), otherwise={"log": ["otherwise"]})
    driven = trial.drive(stepped(trial, builder, budget))
    assert driven.elapsed <= limit(trial) + (0.6 if trial.real else 1e-6)
    assert driven.error is None
    assert driven.values["log"] == ["otherwise"]
    assert trial.started == ["bad"]


@pytest.mark.parametrize("how", ALL)
def test_c7_each_execution_of_a_step_has_its_own_seconds(how: How) -> None:
    """A node in a loop, or sent to ten times, is limited each time anew."""
    trial = Trial(how)
    nap = limit(trial) * 0.4

    class Item(TypedDict):
        n: int

    def work(item: Item) -> State:
        time.sleep(nap)
        if item["n"] == 3:
            trial.released.wait(3)
        return {"log": [f"work{item['n']}"]}

    async def awork(item: Item) -> State:
        await asyncio.sleep(nap)
        if item["n"] == 3:
            await asyncio.sleep(3600)
        return {"log": [f"work{item['n']}"]}

    def otherwise(item: Item) -> State:
        return {"log": [f"otherwise{item['n']}"]}

    builder = StateGraph(State)
    builder.add_node("work", work if how in SYNC else awork)
    builder.add_conditional_edges(
        START,
        trial.as_how(lambda _: [Send("work", {"n": n}) for n in range(5)]),
        ["work"],
    )
    budget = StepBudget(seconds=limit(trial), otherwise=otherwise)
    driven = trial.drive(
        stepped(trial, builder, budget, "work"), config={"max_concurrency": 10}
    )
    trial.took(driven, limit(trial))
    assert driven.error is None
    assert driven.values["log"] == ["work0", "work1", "work2", "otherwise3", "work4"]


@pytest.mark.parametrize("how", ALL)
def test_c7_a_steps_budget_can_only_tighten(how: How) -> None:
    """A step's seconds beyond the run's are the run's."""
    trial = Trial(how)
    budget = StepBudget(seconds=5000.0)
    policy = trial.reserved.model_copy(update={"steps": {"bad": budget}})
    builder = chain(trial, ("bad", trial.hang("bad")))
    builder.add_node("degrade", trial.quick("degrade"))
    driven = trial.drive(builder.compile(deadline=policy, fallback="degrade"))
    trial.at_work(driven)
    assert driven.values["log"] == ["degrade"]
    assert driven.report.cause == "deadline"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
def test_c7_a_steps_budget_bounds_a_subgraph(how: How, factory: Any) -> None:
    """A node that is a subgraph is cut by its step's limit; `otherwise` answers."""
    trial = Trial(how)
    inner = factory(State)
    inner.add_node("part", trial.quick("part"))
    inner.add_node("hang", trial.hang("hang"))
    inner.add_node("inner_after", trial.quick("inner_after"))
    inner.add_edge(START, "part")
    inner.add_edge("part", "hang")
    inner.add_edge("hang", "inner_after")
    builder = chain(trial, ("bad", inner.compile()), "last")
    budget = StepBudget(seconds=limit(trial), otherwise={"log": ["otherwise"]})
    driven = trial.drive(stepped(trial, builder, budget))
    assert driven.elapsed <= limit(trial) + (0.6 if trial.real else GRACE)
    assert driven.error is None
    assert driven.values["log"] == ["otherwise", "last"]
    assert "inner_after" not in trial.started


@pytest.mark.parametrize("how", ALL)
def test_c7_a_straggler_of_a_step_cannot_write_into_the_run_that_goes_on(
    how: How,
) -> None:
    """After `otherwise` the run goes on, and the step's late work is fenced off."""
    trial = Trial(how)
    woke = threading.Event()

    def bad(state: State) -> State:
        trial.released.wait(3)
        woke.set()
        return {"log": ["bad"]}

    async def abad(state: State) -> State:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(10)
        woke.set()
        return {"log": ["bad"]}

    def last(state: State) -> State:
        trial.released.set()
        woke.wait(2)
        time.sleep(0.05)
        return {"log": ["last"]}

    async def alast(state: State) -> State:
        await asyncio.sleep(30)
        return {"log": ["last"]}

    nodes = (bad, last) if how in SYNC else (abad, alast)
    builder = chain(trial, ("bad", nodes[0]), ("last", nodes[1]))
    budget = StepBudget(seconds=limit(trial), otherwise={"log": ["otherwise"]})
    driven = trial.drive(stepped(trial, builder, budget))
    assert woke.is_set()
    assert driven.error is None
    assert driven.values["log"] == ["otherwise", "last"]
    assert [s.name for s in driven.report.stragglers] == ["bad"]
    assert driven.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
def test_c7_a_step_named_by_a_number_has_that_many_seconds(how: How) -> None:
    """`steps={"bad": 5}` is a budget of five seconds."""
    trial = Trial(how)
    builder = chain(trial, ("bad", trial.hang("bad")))
    policy = DeadlinePolicy(
        seconds=60.0 if trial.real else 1000.0,
        steps={"bad": limit(trial)},  # type: ignore[dict-item]
    )
    driven: Driven = trial.drive(builder.compile(deadline=policy))
    trial.took(driven, limit(trial))
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "step"


def larger(one: int, other: int) -> int:
    return max(one, other)


class Kept(TypedDict, total=False):
    """A state with a reducer of its own."""

    best: Annotated[int, larger]
    name: str


@pytest.mark.parametrize("how", ALL)
def test_c6_updates_go_through_the_states_own_reducers(how: How) -> None:
    """What is kept is reduced like any update; a plain key is simply there."""
    trial = Trial(how)

    def good(state: Kept) -> Kept:
        return {"best": 3, "name": "good"}

    builder = StateGraph(Kept)
    builder.add_node("good", trial.as_how(good))
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge(START, "good")
    builder.add_edge(START, "bad")
    policy = DeadlinePolicy(seconds=trial.budget, on_exceeded="return")
    graph = builder.compile(deadline=policy)
    driven = trial.drive(graph, {"best": 5, "name": ""})
    assert driven.values == {"best": 5, "name": "good"}


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("where", ["substitute", "edge"])
def test_c7_a_blocking_otherwise_of_an_async_graph_holds_up_nobody(
    how: How, where: str
) -> None:
    """Sync code that blocks in place of a node blocks neither the loop nor its end."""
    trial = Trial(how, realtime=True)

    def otherwise(state: State) -> State:
        if where == "substitute":
            trial.released.wait(2)
        return {"log": ["otherwise"]}

    def path(state: State) -> str:
        trial.released.wait(2)
        return END

    async def bad(state: State) -> State:
        await asyncio.sleep(30)
        return {"log": ["bad"]}

    builder = StateGraph(State)
    builder.add_node("bad", bad)
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge(START, "bad")
    if where == "edge":
        builder.add_conditional_edges("bad", path, [END])
    budget = StepBudget(seconds=0.05, otherwise=otherwise)
    policy = trial.reserved.model_copy(update={"steps": {"bad": budget}})
    graph = builder.compile(deadline=policy, fallback="degrade")
    began = time.monotonic()
    if how == "ainvoke":
        values = asyncio.run(graph.ainvoke({"log": []}))
    else:
        values = asyncio.run(_last(graph.astream({"log": []}, stream_mode="values")))
    took = time.monotonic() - began
    trial.released.set()
    assert values["log"][-1] == "degrade"
    assert took < 1.5


async def _last(stream: Any) -> Any:
    """Return the last item of an async stream."""
    last = None
    async for item in stream:
        last = item
    return last


@pytest.mark.realtime
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
def test_c3_a_subgraph_cut_at_the_instant_of_its_step_is_no_success(
    factory: Any,
) -> None:
    """Whoever notices first, the subgraph or its step: the step was cut."""
    inner = factory(State)
    inner.add_node("part", lambda _: {"log": ["part"]})
    inner.add_node("hang", lambda _: time.sleep(0.15))
    inner.add_edge(START, "part")
    inner.add_edge("part", "hang")
    builder = StateGraph(State)
    builder.add_node("bad", inner.compile())
    builder.add_edge(START, "bad")
    budget = StepBudget(seconds=0.05, otherwise={"log": ["otherwise"]})
    policy = DeadlinePolicy(seconds=60, steps={"bad": budget})
    graph = builder.compile(deadline=policy)
    outcomes = [graph.invoke({"log": []})["log"] for _ in range(40)]
    assert outcomes == [["otherwise"]] * 40


@pytest.mark.realtime
def test_c3_a_subgraph_cut_at_the_instant_of_its_run_is_no_success() -> None:
    """A run whose last node is a subgraph that was cut did not complete."""
    inner = StateGraph(State)
    inner.add_node("part", lambda _: {"log": ["part"]})
    inner.add_node("hang", lambda _: time.sleep(0.4))
    inner.add_edge(START, "part")
    inner.add_edge("part", "hang")
    builder = StateGraph(State)
    builder.add_node("bad", inner.compile())
    builder.add_node("degrade", lambda _: {"log": ["degrade"]})
    builder.add_edge(START, "bad")
    policy = DeadlinePolicy(seconds=1.3, reserve=1.0)
    graph = builder.compile(deadline=policy, fallback="degrade")
    with collect_runs() as runs:
        outcomes = [graph.invoke({"log": []})["log"] for _ in range(15)]
    assert outcomes == [["part", "degrade"]] * 15
    assert {run.outcome for run in runs} == {"deadline"}


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_c7_threads_that_find_at_once_that_time_is_up_have_one_fallback(
    how: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread cuts the run; another, which finds the cut half done, ends no run."""
    stop_all = Run._stop_all

    def slowly(self: Run, *args: Any) -> None:
        time.sleep(0.2)  # the other node's guard wakes up meanwhile
        stop_all(self, *args)

    monkeypatch.setattr(Run, "_stop_all", slowly)
    trial = Trial(how)
    builder = StateGraph(State)
    for name in ("a", "b"):
        builder.add_node(name, trial.hang(name))
        builder.add_edge(START, name)
    graph = trial.compile(builder, "fallback")
    driven = trial.drive(graph)
    assert driven.error is None
    assert driven.values == {"log": ["degrade"]}
    assert driven.report.outcome == "deadline"
    assert {step.name for step in driven.report.steps if step.cause} == {"a", "b"}
