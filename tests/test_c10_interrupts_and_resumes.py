"""C10: waiting for a person is not work, and a run goes on wherever it is resumed."""

from __future__ import annotations

import asyncio
import copy
import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, adrive, drive
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from langgraph.graph import START
from langgraph.types import Command, Send, interrupt

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    RemainingTime,
    StateGraph,
    _clock,
    collect_runs,
    current_deadline,
    remaining,
    with_deadline,
)
from langgraph_deadline._resume import _has_ended as has_ended
from langgraph_deadline.testing import VirtualClock, run_virtual

KEY = "__deadline__"
HOUR = 3600.0
RESUME = Command(resume="yes")


class State(TypedDict, total=False):
    """What the graphs of this file keep."""

    log: Annotated[list[str], operator.add]


@dataclass
class Bench:
    """Nodes that take virtual time, in every kind of graph, on one clock for all calls.

    A sync node moves the clock on by itself, which is exact; what it cannot show is a
    cut that comes while it works.
    """

    how: How
    clock: VirtualClock = field(default_factory=VirtualClock)
    saver: Any = field(default_factory=InMemorySaver)
    ran: list[str] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    config: dict[str, Any] = field(
        default_factory=lambda: {"configurable": {"thread_id": str(uuid4())}}
    )

    def node(self, name: str, *parts: float | str) -> Any:
        """Return a node that works for each number and asks for each text given."""

        def enter() -> None:
            self.ran.append(name)
            self.left.append(remaining())
            nearest = current_deadline()
            assert (nearest is None) == (remaining() == float("inf"))
            if nearest is not None:
                assert nearest.remaining() == pytest.approx(remaining(), abs=0.1)

        def sync(state: Any) -> Any:
            enter()
            answers = []
            for part in parts:
                if isinstance(part, str):
                    answers.append(f"{name}:{interrupt(part)}")
                else:
                    self.clock.advance(part)
            return {"log": answers or [name]}

        async def coroutine(state: Any) -> Any:
            enter()
            answers = []
            for part in parts:
                if isinstance(part, str):
                    answers.append(f"{name}:{interrupt(part)}")
                else:
                    await asyncio.sleep(part)
            return {"log": answers or [name]}

        return sync if self.how in SYNC else coroutine

    def graph(
        self, policy: Any, nodes: dict[str, Any], schema: Any = State, **options: Any
    ) -> Any:
        """Return a graph of the nodes, one after the other."""
        builder = StateGraph(schema)
        before = START
        for name, node in nodes.items():
            builder.add_node(name, node)
            if name != options.get("fallback"):
                builder.add_edge(before, name)
                before = name
        return builder.compile(checkpointer=self.saver, deadline=policy, **options)

    def asks(self, policy: Any, *, after: float = 1.0, **options: Any) -> Any:
        """Return a graph that works 3 s, then 1 s and asks, then works `after`."""
        nodes = {
            "work": self.node("work", 3.0),
            "ask": self.node("ask", 1.0, "?"),
            "after": self.node("after", after),
        }
        return self.graph(policy, nodes, **options)

    def time(self) -> AbstractContextManager[None]:
        """Return a block in which sync code reads the virtual clock."""
        return _clock.use(self.clock) if self.how in SYNC else nullcontext()

    def turn(self, graph: Any, inputs: Any, **kwargs: Any) -> Driven:
        """Run one turn on the bench's thread, and note only what it does."""
        self.ran.clear()
        self.left.clear()
        config = kwargs.pop("config", self.config)
        if self.how in SYNC:
            with self.time():
                return drive(graph, inputs, self.how, config, **kwargs)
        return run_virtual(
            adrive(graph, inputs, self.how, config, **kwargs), clock=self.clock
        )

    def newest(self) -> Any:
        """Return the thread's newest checkpoint, with what is stored beside it."""
        return self.saver.get_tuple(self.config)

    def records(self) -> list[Any]:
        """Return every record of the thread that the saver holds."""
        found = []
        for saved in self.saver.list(self.config):
            if KEY in saved.checkpoint["channel_values"]:
                found.append(saved.checkpoint["channel_values"][KEY])
            found.extend(w[2] for w in saved.pending_writes or () if w[1] == KEY)
        return found


def interrupted(driven: Driven) -> bool:
    """Whether a turn ended by waiting for a person."""
    assert driven.error is None
    return driven.reports[-1].interrupted


# The three clocks.


@pytest.mark.parametrize("how", ALL)
def test_c10_active_does_not_charge_the_time_a_person_takes(how: How) -> None:
    """After an hour the resume has what was left: 10 s less the 4 s of work."""
    bench = Bench(how)
    graph = bench.asks(10)
    first = bench.turn(graph, {"log": []})
    assert interrupted(first)
    assert bench.left == [10, 7]
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert bench.ran == ["ask", "after"]
    assert bench.left == [6, 5]
    assert second.error is None
    assert second.values["log"] == ["work", "ask:yes", "after"]
    assert second.report.outcome == "completed"
    assert second.report.budget == 10
    assert second.report.elapsed == 6


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(("after", "fits"), [(4.9, True), (5.1, False)])
def test_c10_active_cuts_when_what_was_left_is_used_up(
    after: float, fits: bool, how: How
) -> None:
    """The time before and behind an interrupt adds up to the one budget."""
    bench = Bench(how)
    graph = bench.asks(10, after=after)
    bench.turn(graph, {"log": []})
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert (second.error is None) == fits
    if not fits:
        assert isinstance(second.error, DeadlineExceeded)
        assert second.error.budget == 10
        if how in ASYNC:
            assert second.elapsed == 6
            assert second.error.elapsed == 10


@pytest.mark.parametrize("how", ASYNC)
def test_c10_the_fallback_of_a_resumed_run_has_the_reserve(how: How) -> None:
    """A resume is cut at the work deadline of the run, and its fallback runs once."""
    bench = Bench(how)
    policy = DeadlinePolicy(seconds=10, reserve=2.0)
    nodes = {
        "ask": bench.node("ask", 4.0, "?"),
        "hang": bench.node("hang", HOUR),
        "fallback": bench.node("fallback", 0.5),
    }
    graph = bench.graph(policy, nodes, fallback="fallback")
    bench.turn(graph, {"log": []})
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    # 8 s of work: 4 before the interrupt, 4 for the node that asks again, 0 left.
    assert bench.ran == ["ask", "fallback"]
    assert second.elapsed == 4.5
    assert second.error is None
    assert second.report.outcome == "deadline"
    assert second.report.reserve == 2


@pytest.mark.parametrize("how", ALL)
def test_c10_wall_charges_the_time_a_person_takes(how: How) -> None:
    """Under `"wall"` the deadline stays where it was while the run waits."""
    bench = Bench(how)
    graph = bench.asks(DeadlinePolicy(seconds=10, clock="wall"))
    bench.turn(graph, {"log": []})
    bench.clock.advance(2.5)
    second = bench.turn(graph, RESUME)
    assert bench.left == [3.5, 2.5]
    assert second.error is None
    assert second.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("mode", ["raise", "return", "fallback"])
def test_c10_wall_starts_nothing_when_the_person_took_too_long(
    mode: str, how: How
) -> None:
    """Where the deadline passed meanwhile, no node is started, not even a fallback."""
    bench = Bench(how)
    policy = DeadlinePolicy(seconds=10, clock="wall", on_exceeded=mode)
    nodes = {"ask": bench.node("ask", 1.0, "?")}
    fallback = "fallback" if mode == "fallback" else None
    if fallback:
        nodes["fallback"] = bench.node("fallback")
    graph = bench.graph(policy, nodes, fallback=fallback)
    bench.turn(graph, {"log": ["in"]})
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert bench.ran == []
    assert second.report.outcome == "deadline"
    if mode == "return":
        assert second.values["log"] == ["in"]
    else:
        assert isinstance(second.error, DeadlineExceeded)


@pytest.mark.parametrize("how", ALL)
def test_c10_wall_leaves_the_fallback_what_the_person_left_of_the_reserve(
    how: How,
) -> None:
    """An answer that comes inside the reserve finds the fallback, not the work."""
    bench = Bench(how)
    policy = DeadlinePolicy(seconds=10, reserve=2.0, clock="wall")
    nodes = {
        "ask": bench.node("ask", 1.0, "?"),
        "fallback": bench.node("fallback", 0.5),
    }
    graph = bench.graph(policy, nodes, fallback="fallback")
    bench.turn(graph, {"log": []})
    bench.clock.advance(8)
    second = bench.turn(graph, RESUME)
    assert bench.ran == ["fallback"]
    assert bench.left == [1]
    assert second.error is None
    assert second.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_c10_restart_gives_each_invocation_a_fresh_budget(how: How) -> None:
    """Under `"restart"` nothing is carried over an interrupt."""
    bench = Bench(how)
    graph = bench.asks(DeadlinePolicy(seconds=10, clock="restart"))
    bench.turn(graph, {"log": []})
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert bench.left == [10, 9]
    assert second.error is None
    assert second.report.elapsed == 2


# What waits for a person, and how.


@pytest.mark.parametrize("how", ALL)
def test_c10_two_questions_in_one_node_add_up(how: How) -> None:
    """Each resume goes on with what all the ones before it have left."""
    bench = Bench(how)
    graph = bench.graph(10, {"ask": bench.node("ask", 1.0, "1?", 2.0, "2?", 0.5)})
    assert interrupted(bench.turn(graph, {"log": []}))
    bench.clock.advance(HOUR)
    assert interrupted(bench.turn(graph, Command(resume="a")))
    assert bench.left == [9]
    bench.clock.advance(HOUR)
    third = bench.turn(graph, Command(resume="b"))
    assert bench.left == [6]
    assert third.error is None
    assert third.values["log"] == ["ask:a", "ask:b"]
    assert third.report.elapsed == 7.5


@pytest.mark.parametrize("how", ALL)
def test_c10_two_nodes_that_ask_side_by_side_add_up(how: How) -> None:
    """Two open interrupts are answered one after the other, on one budget."""
    bench = Bench(how)
    builder = StateGraph(State)
    for name in ("one", "two"):
        seconds = (1.0,) if how in ASYNC or name == "one" else ()
        builder.add_node(name, bench.node(name, *seconds, "?"))
        builder.add_edge(START, name)
    graph = builder.compile(checkpointer=bench.saver, deadline=10)
    assert interrupted(bench.turn(graph, {"log": []}))
    asked = {i.value: i.id for i in graph.get_state(bench.config).interrupts}
    assert len(graph.get_state(bench.config).interrupts) == 2
    ids = [i.id for i in graph.get_state(bench.config).interrupts]
    assert asked
    bench.clock.advance(HOUR)
    second = bench.turn(graph, Command(resume={ids[0]: "a"}))
    assert interrupted(second)
    assert bench.left[0] == 9
    spent = second.report.elapsed
    bench.clock.advance(HOUR)
    third = bench.turn(graph, Command(resume={ids[1]: "b"}))
    assert third.error is None
    assert bench.left == [10 - spent]
    assert sorted(third.values["log"]) == ["one:a", "two:b"]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("clock", ["active", "wall", "restart"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_c10_static_interrupts_count_like_questions(
    where: str, clock: str, how: How
) -> None:
    """`interrupt_before` and `interrupt_after` stop the charge as `interrupt` does."""
    bench = Bench(how)
    nodes = {"work": bench.node("work", 3.0), "more": bench.node("more", 1.0)}
    stop = {"before": "more", "after": "work"}
    graph = bench.graph(
        DeadlinePolicy(seconds=10, clock=clock),
        nodes,
        **{f"interrupt_{where}": [stop[where]]},
    )
    first = bench.turn(graph, {"log": []})
    assert bench.ran == ["work"]
    assert interrupted(first)
    bench.clock.advance(2)
    second = bench.turn(graph, None)
    assert bench.ran == ["more"]
    assert bench.left == [{"active": 7, "wall": 5, "restart": 10}[clock]]
    assert second.error is None


@pytest.mark.parametrize("how", ALL)
def test_c10_a_question_in_a_subgraph_stops_the_charge_of_the_whole_run(
    how: How,
) -> None:
    """The run that waits is the outermost one."""
    bench = Bench(how)
    inner = StateGraph(State)
    inner.add_node("before", bench.node("before", 3.0))
    inner.add_node("ask", bench.node("ask", 1.0, "?"))
    inner.add_edge(START, "before")
    inner.add_edge("before", "ask")
    nodes = {"inner": inner.compile(), "after": bench.node("after", 1.0)}
    graph = bench.graph(10, nodes)
    assert interrupted(bench.turn(graph, {"log": []}))
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.error is None
    assert bench.ran == ["ask", "after"]
    assert bench.left == [6, 5]


@pytest.mark.parametrize("how", ALL)
def test_c10_a_subgraph_with_a_deadline_of_its_own_keeps_what_it_has_left(
    how: How,
) -> None:
    """A nested budget is not given anew because its run waited for a person."""
    bench = Bench(how)
    inner = StateGraph(State)
    inner.add_node("ask", bench.node("ask", 6.0, "?", 3.0))
    inner.add_edge(START, "ask")
    graph = bench.graph(100, {"inner": inner.compile(deadline=10)})
    assert interrupted(bench.turn(graph, {"log": []}))
    assert bench.left == [10]
    bench.clock.advance(HOUR)
    bench.turn(graph, RESUME)
    assert bench.left == [4]


@pytest.mark.realtime
@pytest.mark.parametrize("parent", [None, 30])
def test_c10_a_subgraph_cut_by_its_own_deadline_is_resumed_with_a_fresh_one(
    parent: float | None,
) -> None:
    """Where a nested run was cut, what it had spent is not charged to its resume."""
    bench = Bench("invoke")
    hangs, left = [True], []

    def before(state: State) -> None:
        time.sleep(0.4)

    def hang(state: State) -> None:
        left.append(remaining())
        time.sleep(1.5 if hangs[-1] else 0)

    inner = StateGraph(State)
    inner.add_node("before", before)
    inner.add_node("hang", hang)
    inner.add_edge(START, "before")
    inner.add_edge("before", "hang")
    graph = bench.graph(parent, {"inner": inner.compile(deadline=1.0)})
    with pytest.raises(DeadlineExceeded):
        graph.invoke({"log": []}, bench.config)
    hangs.append(False)
    graph.invoke(None, bench.config)
    assert left[0] <= 0.6
    assert 0.8 <= left[1] <= 1


@pytest.mark.parametrize("how", ALL)
def test_c10_a_functional_graph_that_asks_keeps_what_it_has_left(how: How) -> None:
    """An entrypoint goes on with what was left; its finished task does not rerun."""
    bench = Bench(how)
    slow = task(bench.node("slow", 3.0), name="slow")

    if how in SYNC:

        @entrypoint(checkpointer=bench.saver)
        def work(inputs: Any) -> Any:
            slow({}).result()
            answer = interrupt("?")
            bench.left.append(remaining())
            return answer

    else:

        @entrypoint(checkpointer=bench.saver)
        async def work(inputs: Any) -> Any:
            await slow({})
            answer = interrupt("?")
            bench.left.append(remaining())
            return answer

    graph = with_deadline(work, 10)
    assert interrupted(bench.turn(graph, {"log": []}))
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.error is None
    assert bench.ran == []
    assert bench.left == [7]
    assert second.report.outcome == "completed"


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("closes", [False, True])
def test_c10_a_consumer_that_leaves_at_the_question_is_no_cut(
    closes: bool, how: How
) -> None:
    """Who stops reading at `__interrupt__` has the run's rest at the resume."""
    bench = Bench(how)
    graph = bench.asks(10)

    async def read() -> None:
        stream = graph.astream({"log": []}, bench.config, stream_mode="updates")
        async for chunk in stream:
            if closes and "__interrupt__" in chunk:
                break
        await stream.aclose()

    if how == "stream":
        with bench.time():
            stream = graph.stream({"log": []}, bench.config, stream_mode="updates")
            for chunk in stream:
                if closes and "__interrupt__" in chunk:
                    break
            stream.close()
    else:
        run_virtual(read(), clock=bench.clock)
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.error is None
    assert bench.left == [6, 5]


@pytest.mark.parametrize("how", ALL)
def test_c10_remaining_time_in_the_state_goes_on_as_well(how: How) -> None:
    """The managed value shows a resumed node what is left of the run."""

    class Timed(State):
        remaining_time: RemainingTime

    bench = Bench(how)
    seen: list[float] = []

    def ask(state: Any) -> Any:
        seen.append(state["remaining_time"])
        interrupt("?")

    async def aask(state: Any) -> Any:
        ask(state)

    nodes = {
        "work": bench.node("work", 3.0),
        "ask": ask if how in SYNC else aask,
    }
    graph = bench.graph(10, nodes, schema=Timed)
    bench.turn(graph, {"log": []})
    bench.clock.advance(HOUR)
    bench.turn(graph, RESUME)
    assert seen == [7, 7]


@pytest.mark.parametrize("how", ALL)
def test_c10_a_resume_that_names_its_checkpoint_goes_on_as_well(how: How) -> None:
    """A `checkpoint_id` in the config, as servers send it, changes nothing."""
    bench = Bench(how)
    graph = bench.asks(10)
    bench.turn(graph, {"log": []})
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME, config=graph.get_state(bench.config).config)
    assert second.error is None
    assert bench.left == [6, 5]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_c10_the_budget_is_kept_at_every_durability(durability: str, how: How) -> None:
    """Also where checkpoints are written at the end of a call only."""
    bench = Bench(how)
    graph = bench.asks(30)
    bench.turn(graph, {"log": []}, durability=durability, deadline=10)
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME, durability=durability)
    assert second.error is None
    assert bench.left == [6, 5]
    newest = bench.newest()
    assert KEY not in newest.checkpoint["channel_values"]


@pytest.mark.parametrize(
    ("first", "then"), [("invoke", "astream"), ("ainvoke", "stream")]
)
def test_c10_sync_and_async_calls_may_take_turns(first: How, then: How) -> None:
    """A run that began in one way is resumed in the other, in what was left."""
    bench = Bench(first)
    assert interrupted(bench.turn(bench.asks(10), {"log": []}))
    bench.clock.advance(HOUR)
    bench.how = then
    second = bench.turn(bench.asks(10), RESUME)
    assert second.error is None
    assert bench.left == [6, 5]


@pytest.mark.parametrize("how", ALL)
def test_c10_a_resume_needs_nothing_of_the_monotonic_clock_it_began_with(
    how: How,
) -> None:
    """After a reboot the monotonic clock is another; the wall clock may be back."""
    bench = Bench(how)
    bench.turn(bench.asks(10), {"log": []})
    bench.clock = VirtualClock(start=3.0)
    second = bench.turn(bench.asks(10), RESUME)
    assert second.error is None
    assert bench.left == [6, 5]


@pytest.mark.parametrize("how", ASYNC)
def test_c10_a_fallback_that_asks_is_answered(how: How) -> None:
    """A question asked in the reserve can be answered; the fallback then ends."""
    bench = Bench(how)
    nodes = {
        "hang": bench.node("hang", HOUR),
        "fallback": bench.node("fallback", 0.5, "?"),
    }
    graph = bench.graph(10, nodes, fallback="fallback")
    assert interrupted(bench.turn(graph, {"log": []}))
    assert bench.ran == ["hang", "fallback"]
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert bench.ran == ["fallback"]
    assert second.error is None
    assert second.values["log"] == ["fallback:yes"]
    assert second.elapsed == 0.5


# Whose budget it is.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    ("compiled", "clock"), [(30, "active"), (30, "wall"), (None, "active")]
)
def test_c10_a_resume_keeps_the_budget_that_the_call_had_asked_for(
    compiled: float | None, clock: str, how: How
) -> None:
    """`deadline=` is the run's budget, so a resume without one goes on with it."""
    bench = Bench(how)
    policy = None if compiled is None else DeadlinePolicy(seconds=compiled, clock=clock)
    graph = bench.asks(policy)
    assert interrupted(bench.turn(graph, {"log": []}, deadline=10))
    assert bench.left == [10, 7]
    bench.clock.advance(2)
    second = bench.turn(graph, RESUME)
    assert bench.left == ([6, 5] if clock == "active" else [4, 3])
    assert second.error is None


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("deadline", [None, 10])
def test_c10_restart_renews_the_budget_of_the_run(
    deadline: float | None, how: How
) -> None:
    """The fresh budget of an invocation is the run's, also one a call had chosen."""
    bench = Bench(how)
    graph = bench.asks(DeadlinePolicy(seconds=30, clock="restart"))
    bench.turn(graph, {"log": []}, deadline=deadline)
    bench.clock.advance(HOUR)
    bench.turn(graph, RESUME)
    assert bench.left == ([10, 9] if deadline else [30, 29])


@pytest.mark.parametrize("how", ALL)
def test_c10_a_resume_may_ask_for_another_budget_for_its_run(how: How) -> None:
    """`deadline=` on a resume replaces the run's budget; what was spent stays spent."""
    bench = Bench(how)
    graph = bench.asks(10)
    bench.turn(graph, {"log": []})
    bench.clock.advance(HOUR)
    bench.turn(graph, RESUME, deadline=60)
    assert bench.left == [56, 55]


@pytest.mark.parametrize("how", ALL)
def test_c10_what_a_run_was_given_at_a_resume_holds_for_the_next_resume(
    how: How,
) -> None:
    """A budget asked for at one resume is the run's from then on."""
    bench = Bench(how)
    graph = bench.graph(10, {"ask": bench.node("ask", 1.0, "1?", "2?", "3?")})
    bench.turn(graph, {"log": []})
    bench.turn(graph, Command(resume="a"), deadline=60)
    assert bench.left == [59]
    bench.turn(graph, Command(resume="b"))
    assert bench.left == [58]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("clock", ["active", "wall", "restart"])
def test_c10_a_new_input_starts_a_new_run(clock: str, how: How) -> None:
    """An input given instead of the answer gets a full budget; the question is gone."""
    bench = Bench(how)
    graph = bench.asks(DeadlinePolicy(seconds=10, clock=clock))
    for _ in range(3):
        bench.clock.advance(HOUR)
        assert interrupted(bench.turn(graph, {"log": []}))
        assert bench.left == [10, 7]
    bench.clock.advance(1)
    bench.turn(graph, RESUME)
    assert bench.left[0] == {"active": 6, "wall": 5, "restart": 10}[clock]


@pytest.mark.parametrize("how", ALL)
def test_c10_a_new_input_does_not_inherit_a_budget_that_a_call_asked_for(
    how: How,
) -> None:
    """The budget of one call is not that of the thread."""
    bench = Bench(how)
    graph = bench.asks(30)
    bench.turn(graph, {"log": []}, deadline=10)
    bench.turn(graph, {"log": []})
    assert bench.left == [30, 27]
    bench.turn(graph, RESUME)
    assert bench.left == [26, 25]


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("clock", ["active", "wall", "restart"])
def test_c10_a_resume_of_a_run_that_was_cut_gets_a_fresh_budget(
    clock: str, how: How
) -> None:
    """`invoke(None)` after `"raise"` starts a run: it is not cut again at once."""
    bench = Bench(how)
    policy = DeadlinePolicy(seconds=10, clock=clock)
    nodes = {"ask": bench.node("ask", 4.0, "?"), "slow": bench.node("slow", 9.0)}
    graph = bench.graph(policy, nodes)
    bench.turn(graph, {"log": []})
    cut = bench.turn(graph, RESUME)
    assert isinstance(cut.error, DeadlineExceeded)
    bench.clock.advance(HOUR)
    again = bench.turn(graph, None)
    assert bench.ran == ["slow"]
    assert bench.left == [10]
    assert again.error is None
    assert again.report.elapsed == 9


@pytest.mark.parametrize("how", ASYNC)
def test_c10_a_run_that_asks_after_it_was_cut_and_resumed_is_charged_from_there(
    how: How,
) -> None:
    """What the run had spent before it was cut does not come back at an interrupt."""
    bench = Bench(how)
    takes = [HOUR]

    async def ask(state: State) -> Any:
        bench.left.append(remaining())
        await asyncio.sleep(takes[-1])
        return {"log": [interrupt("?")]}

    graph = bench.graph(10, {"ask": ask})
    assert isinstance(bench.turn(graph, {"log": []}).error, DeadlineExceeded)
    takes.append(3.0)
    assert interrupted(bench.turn(graph, None))
    assert bench.left == [10]
    bench.clock.advance(HOUR)
    assert bench.turn(graph, RESUME).error is None
    assert bench.left == [7]


@pytest.mark.parametrize("how", ALL)
def test_c10_state_edited_while_the_run_waits_does_not_lose_its_budget(
    how: How,
) -> None:
    """`update_state` before the resume, as reviewers do, keeps budget and time spent.

    The checkpoint that it makes knows neither, so both come from the ones before it;
    what was spent is then known to one superstep.
    """
    bench = Bench(how)
    nodes = {"work": bench.node("work", 3.0), "more": bench.node("more", 1.0)}
    graph = bench.graph(30, nodes, interrupt_before=["more"])
    bench.turn(graph, {"log": []}, deadline=10)
    with bench.time():
        graph.update_state(bench.config, {"log": ["edited"]}, as_node="work")
    bench.clock.advance(HOUR)
    second = bench.turn(graph, None)
    assert second.error is None
    (left,) = bench.left
    assert 7 <= left <= 10


@pytest.mark.realtime
def test_c10_state_edited_while_the_run_waits_keeps_what_is_left() -> None:
    """The same on the real clock: edit and wait are not charged, the work is."""
    bench = Bench("invoke")
    left: list[float] = []

    def work(state: State) -> Any:
        time.sleep(0.5)

    def more(state: State) -> Any:
        left.append(remaining())

    graph = bench.graph(30, {"work": work, "more": more}, interrupt_before=["more"])
    began = time.monotonic()
    graph.invoke({"log": []}, bench.config, deadline=20)
    worked = time.monotonic() - began
    time.sleep(1.0)
    graph.update_state(bench.config, {"log": ["edited"]}, as_node="work")
    graph.invoke(None, bench.config)
    assert 20 - worked - 0.5 <= left[0] <= 20 - 0.5


@pytest.mark.parametrize("how", ASYNC)
def test_c10_a_question_beside_a_cut_node_is_still_answered_by_the_fallback(
    how: How,
) -> None:
    """Where one branch asks and another is cut, the caller is back on time, with one
    fallback in all, whether it runs now or after the answer."""
    bench = Bench(how)
    builder = StateGraph(State)
    builder.add_node("ask", bench.node("ask", "?"))
    builder.add_node("hang", bench.node("hang", HOUR))
    builder.add_node("fallback", bench.node("fallback"))
    builder.add_edge(START, "ask")
    builder.add_edge(START, "hang")
    graph = builder.compile(checkpointer=bench.saver, deadline=10, fallback="fallback")
    first = bench.turn(graph, {"log": []})
    assert first.elapsed <= 10
    ran = [*bench.ran]
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.elapsed <= 10
    assert second.error is None
    ran += bench.ran
    assert ran.count("fallback") == 1
    assert bench.turn(graph, None).error is None
    assert bench.ran == []


class Reversed(InMemorySaver):
    """Lists what is stored beside a checkpoint in the other order."""

    def get_tuple(self, config: Any) -> Any:
        """Return a checkpoint."""
        found = super().get_tuple(config)
        if found is not None and found.pending_writes:
            found.pending_writes.reverse()
        return found


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("saver", [InMemorySaver, Reversed])
def test_c10_the_answer_beside_a_cut_goes_on_in_the_reserve_in_any_order(
    saver: type[Any], how: How
) -> None:
    """The record of the question is newer than that of the cut, for every saver."""
    bench = Bench(how, saver=saver())
    builder = StateGraph(State)
    builder.add_node("ask", bench.node("ask", "?"))
    builder.add_node("hang", bench.node("hang", HOUR))
    builder.add_node("fallback", bench.node("fallback"))
    builder.add_edge(START, "ask")
    builder.add_edge(START, "hang")
    graph = builder.compile(checkpointer=bench.saver, deadline=10, fallback="fallback")
    bench.turn(graph, {"log": []})
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.report.outcome == "deadline"
    assert bench.ran == ["ask", "fallback"]
    assert bench.left == [2, 2]


def ask_beside_a_cut(bench: Bench, policy: Any, hangs: list[bool]) -> Any:
    """Return a graph in which one branch asks while another hangs, as long as told."""

    async def hang(state: State) -> Any:
        bench.ran.append("hang")
        await asyncio.sleep(HOUR if hangs[-1] else 0)
        return {"log": ["hang"]}

    builder = StateGraph(State)
    builder.add_node("ask", bench.node("ask", 1.0, "?"))
    builder.add_node("hang", hang)
    builder.add_node("after", bench.node("after", 1.0))
    builder.add_edge(START, "ask")
    builder.add_edge(START, "hang")
    builder.add_edge("ask", "after")
    return builder.compile(checkpointer=bench.saver, deadline=policy)


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("clock", ["active", "wall", "restart"])
@pytest.mark.parametrize("mode", ["raise", "return"])
def test_c10_an_answer_to_a_question_beside_a_cut_has_a_fresh_budget(
    mode: str, clock: str, how: How
) -> None:
    """Without a fallback the run was cut: who asked goes on with the answer."""
    bench = Bench(how)
    hangs = [True]
    policy = DeadlinePolicy(seconds=10, on_exceeded=mode, clock=clock)
    graph = ask_beside_a_cut(bench, policy, hangs)
    first = bench.turn(graph, {"log": []})
    assert first.elapsed == 10
    assert first.reports[-1].outcome == "deadline"
    hangs.append(False)
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.error is None
    assert bench.left == [10, 9]
    assert bench.ran == ["ask", *(["hang"] if mode == "raise" else []), "after"]
    done = ["ask:yes", *(["hang"] if mode == "raise" else []), "after"]
    assert second.values["log"] == done
    assert second.report.outcome == "completed"
    assert graph.get_state(bench.config).next == ()


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("mode", ["raise", "return"])
def test_c10_a_question_asked_again_after_a_cut_waits_uncharged(
    mode: str, how: How
) -> None:
    """A resume without the answer asks once more; only what it worked is spent."""
    bench = Bench(how)
    hangs = [True]
    policy = DeadlinePolicy(seconds=10, on_exceeded=mode)
    graph = ask_beside_a_cut(bench, policy, hangs)
    bench.turn(graph, {"log": []})
    hangs.append(False)
    bench.clock.advance(HOUR)
    assert interrupted(bench.turn(graph, None))
    assert bench.left == [10]
    bench.clock.advance(HOUR)
    third = bench.turn(graph, RESUME)
    assert third.error is None
    assert bench.left == [9, 8]


@pytest.mark.realtime
@pytest.mark.parametrize("mode", ["raise", "return"])
@pytest.mark.parametrize("how", SYNC)
def test_c10_an_answer_beside_a_cut_thread_has_a_fresh_budget(
    mode: str, how: How
) -> None:
    """The same where the branch that was cut is a thread."""
    bench = Bench(how)
    takes = [1.6]

    def ask(state: State) -> Any:
        bench.left.append(remaining())
        return {"log": [interrupt("?")]}

    def hang(state: State) -> None:
        time.sleep(takes[-1])

    builder = StateGraph(State).add_node(ask).add_node(hang)
    builder.add_edge(START, "ask").add_edge(START, "hang")
    policy = DeadlinePolicy(seconds=1, on_exceeded=mode)
    graph = builder.compile(checkpointer=bench.saver, deadline=policy)
    assert drive(graph, {"log": []}, how, bench.config).elapsed < 1.5
    takes.append(0)
    second = drive(graph, RESUME, how, bench.config)
    assert second.error is None
    assert second.values["log"] == ["yes"]
    assert bench.left[-1] > 0.5


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("parent", [None, 100])
@pytest.mark.parametrize("mode", ["raise", "return"])
def test_c10_a_subgraph_that_asks_beside_its_cut_has_a_fresh_budget(
    mode: str, parent: float | None, how: How
) -> None:
    """A nested run keeps its own record: it was cut, whatever its parent has left."""
    bench = Bench(how)
    hangs = [True]
    policy = DeadlinePolicy(seconds=10, on_exceeded=mode)
    inner = ask_beside_a_cut(bench, policy, hangs)
    inner.checkpointer = None
    graph = bench.graph(parent, {"inner": inner})
    bench.turn(graph, {"log": []})
    assert bench.ran == ["ask", "hang"]
    hangs.append(False)
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.error is None
    assert bench.left == [10, 9]
    assert second.values["log"][0] == "ask:yes"


@pytest.mark.parametrize("how", ASYNC)
def test_c10_a_question_that_the_deadline_left_open_can_be_answered(
    how: How,
) -> None:
    """What the fallback leads to asks while more of it hangs: nothing is left then."""
    bench = Bench(how)
    hangs = [True]

    async def more(state: State) -> Any:
        await asyncio.sleep(HOUR if hangs[-1] else 0)

    builder = StateGraph(State)
    builder.add_node("hang", bench.node("hang", HOUR))
    builder.add_node("fallback", bench.node("fallback"))
    builder.add_node("ask", bench.node("ask", "?"))
    builder.add_node("more", more)
    builder.add_edge(START, "hang")
    builder.add_edge("fallback", "ask")
    builder.add_edge("fallback", "more")
    graph = builder.compile(checkpointer=bench.saver, deadline=10, fallback="fallback")
    first = bench.turn(graph, {"log": []})
    assert first.elapsed == 10
    hangs.append(False)
    bench.clock.advance(HOUR)
    second = bench.turn(graph, RESUME)
    assert second.error is None
    assert bench.ran == ["ask"]
    assert second.values["log"] == ["fallback", "ask:yes"]


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("mode", ["raise", "return"])
def test_c8_a_new_input_after_a_question_beside_a_cut_is_clean(
    mode: str, how: How
) -> None:
    """A barrier that the run before left half full does not fire in the next one."""
    bench = Bench(how)
    asks = [True]

    async def ask(state: State) -> Any:
        return {"log": [interrupt("?") if asks[-1] else "asked"]}

    builder = StateGraph(State)
    builder.add_node("quick", bench.node("quick"))
    builder.add_node("ask", ask)
    builder.add_node("hang", bench.node("hang", HOUR))
    builder.add_node("both", bench.node("both"))
    builder.add_node("begin", lambda state: None)
    builder.add_edge(START, "begin")
    builder.add_conditional_edges("begin", lambda _: "quick" if asks[-1] else "ask")
    builder.add_edge("quick", "ask")
    builder.add_edge("quick", "hang")
    builder.add_edge(["quick", "ask"], "both")
    policy = DeadlinePolicy(seconds=10, on_exceeded=mode)
    graph = builder.compile(checkpointer=bench.saver, deadline=policy)
    bench.turn(graph, {"log": []})
    assert bench.ran == ["quick", "hang"]
    asks.append(False)
    second = bench.turn(graph, {"log": ["next"]})
    assert second.error is None
    assert second.values["log"][-1] == "asked"
    assert bench.ran == []


# A thread whose run has completed.


class Dated(InMemorySaver):
    """Dates checkpoints by the clock of the test: what was spent is told by them."""

    def put(self, config: Any, checkpoint: Any, *rest: Any) -> Any:
        """Save a checkpoint as of now."""
        now = datetime.fromtimestamp(_clock.wall(), UTC).isoformat()
        return super().put(config, {**checkpoint, "ts": now}, *rest)


def edit(bench: Bench, graph: Any, as_node: str, config: Any = None) -> None:
    """Edit the state of the bench's thread at the time its clock shows."""
    config = config or bench.config
    if bench.how in SYNC:
        with bench.time():
            graph.update_state(config, {"log": ["edited"]}, as_node=as_node)
    else:
        change = graph.aupdate_state(config, {"log": ["edited"]}, as_node=as_node)
        run_virtual(change, clock=bench.clock)


def completed(bench: Bench, policy: Any) -> Any:
    """Return the graph of a run that waited an hour for a person and has completed."""
    bench.saver = Dated()
    graph = bench.asks(policy)
    assert interrupted(bench.turn(graph, {"log": []}))
    bench.clock.advance(HOUR)
    assert bench.turn(graph, RESUME).report.outcome == "completed"
    return graph


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("clock", ["active", "wall"])
@pytest.mark.parametrize("edits", [1, 2])
def test_c10_what_follows_on_a_completed_run_is_not_charged_for_it(
    edits: int, clock: str, how: How
) -> None:
    """State edited after the end is gone on with, in a budget of its own."""
    bench = Bench(how)
    # Under "wall" it had to be answered in time.
    seconds = 10 if clock == "active" else 2 * HOUR
    graph = completed(bench, DeadlinePolicy(seconds=seconds, clock=clock))
    bench.clock.advance(2 * HOUR)
    for _ in range(edits):
        edit(bench, graph, "ask")
    again = bench.turn(graph, None)
    assert again.error is None
    assert bench.ran == ["after"]
    assert bench.left == [seconds]
    assert again.report.outcome == "completed"
    assert again.report.elapsed == 1
    assert KEY not in bench.newest().checkpoint["channel_values"]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("inputs", [None, RESUME])
def test_c10_a_resume_of_a_completed_run_is_no_late_one(inputs: Any, how: How) -> None:
    """Where nothing is left to do, nothing is charged, and nothing is reported cut."""
    bench = Bench(how)
    graph = completed(bench, 10)
    again = bench.turn(graph, inputs)
    assert again.error is None
    assert bench.ran == []
    assert again.report.outcome == "completed"
    assert again.report.elapsed == 0


@pytest.mark.parametrize("how", ALL)
def test_c10_a_kill_after_a_completed_run_was_edited_charges_what_was_worked(
    how: How,
) -> None:
    """What goes on without an input of its own says itself when it began."""
    bench = Bench(how)
    bench.saver = Dated()
    savers: list[Any] = []

    def last(state: State) -> None:
        bench.left.append(remaining())
        savers.append(left_by_a_kill(bench.saver))

    async def alast(state: State) -> None:
        last(state)

    def graph() -> Any:
        nodes = {
            "ask": bench.node("ask", "?"),
            "work": bench.node("work", 3.0),
            "last": last if how in SYNC else alast,
        }
        return bench.graph(10, nodes)

    bench.turn(graph(), {"log": []}, durability="sync")
    bench.clock.advance(HOUR)
    bench.turn(graph(), RESUME, durability="sync")
    bench.clock.advance(HOUR)
    edit(bench, graph(), "ask")
    bench.clock.advance(HOUR)
    bench.turn(graph(), None, durability="sync")
    assert bench.left == pytest.approx([10, 7], abs=1e-3)
    bench.saver = savers[-1]
    bench.clock.advance(HOUR)
    assert bench.turn(graph(), None).error is None
    assert bench.left == pytest.approx([7], abs=1e-3)


@pytest.mark.parametrize("how", ASYNC)
def test_c10_a_kill_after_a_cut_run_was_resumed_charges_the_resume_alone(
    how: How,
) -> None:
    """What the run had used before it was cut does not come back by a kill."""
    bench = Bench(how)
    bench.saver = Dated()
    savers: list[Any] = []
    takes = [HOUR]

    async def work(state: State) -> None:
        await asyncio.sleep(takes[-1])

    async def last(state: State) -> None:
        bench.left.append(remaining())
        savers.append(left_by_a_kill(bench.saver))

    def graph() -> Any:
        return bench.graph(10, {"work": work, "last": last})

    cut = bench.turn(graph(), {"log": []}, durability="sync")
    assert isinstance(cut.error, DeadlineExceeded)
    bench.clock.advance(HOUR)
    takes.append(3.0)
    assert bench.turn(graph(), None, durability="sync").error is None
    assert bench.left == pytest.approx([7], abs=1e-3)
    assert KEY not in bench.newest().checkpoint["channel_values"]
    bench.saver = savers[-1]
    bench.clock.advance(HOUR)
    assert bench.turn(graph(), None).error is None
    assert bench.left == pytest.approx([7], abs=1e-3)


@pytest.mark.parametrize("how", ALL)
def test_c10_a_killed_run_that_is_edited_is_still_charged(how: How) -> None:
    """A run that was killed with work left has no end: what it used stays spent."""
    bench = Bench(how)
    bench.saver = Dated()
    savers: list[Any] = []

    def last(state: State) -> None:
        bench.left.append(remaining())
        savers.append(left_by_a_kill(bench.saver))

    async def alast(state: State) -> None:
        last(state)

    nodes = {"work": bench.node("work", 3.0), "last": last if how in SYNC else alast}
    bench.turn(bench.graph(10, nodes), {"log": []}, durability="sync")
    bench.saver = savers[0]
    graph = bench.graph(10, nodes)
    bench.clock.advance(HOUR)
    edit(bench, graph, "work")
    bench.clock.advance(HOUR)
    bench.turn(graph, None)
    assert bench.left == pytest.approx([7], abs=1e-3)


@pytest.mark.parametrize("how", ALL)
def test_c10_a_branch_off_an_earlier_state_is_charged_up_to_there(how: How) -> None:
    """Time travel: what came after the state that was edited is not of this branch."""
    bench = Bench(how)
    graph = completed(bench, 10)
    earlier = next(
        s for s in graph.get_state_history(bench.config) if s.next == ("after",)
    )
    edit(bench, graph, "ask", earlier.config)
    assert bench.turn(graph, None).error is None
    assert bench.left == pytest.approx([5], abs=1e-3)


@pytest.mark.parametrize("how", ASYNC)
def test_c10_a_cut_is_known_after_the_state_was_edited(how: How) -> None:
    """The record of a cut, beside a checkpoint, is newer than the one in its state."""
    bench = Bench(how)
    bench.saver = Dated()
    nodes = {
        "ask": bench.node("ask", 4.0, "?"),
        "work": bench.node("work", 1.0),
        "slow": bench.node("slow", 9.0),
    }
    graph = bench.graph(10, nodes)
    bench.turn(graph, {"log": []})
    cut = bench.turn(graph, RESUME)
    assert isinstance(cut.error, DeadlineExceeded)
    edit(bench, graph, "work")
    bench.clock.advance(HOUR)
    again = bench.turn(graph, None)
    assert again.error is None
    assert bench.left == [10]


@pytest.mark.parametrize("kind", ["graph", "entrypoint"])
def test_c10_what_a_completed_run_left_is_told_from_what_a_killed_one_did(
    kind: str,
) -> None:
    """Barriers, deferred nodes, `Send`s: each checkpoint says if there is work left."""
    bench = Bench("invoke")
    if kind == "entrypoint":
        graph = with_deadline(entrypoint(checkpointer=bench.saver)(lambda x: x), 10)
    else:
        builder = StateGraph(State)
        for name in "abcef":
            builder.add_node(name, bench.node(name))
        builder.add_node("d", bench.node("d"), defer=True)
        builder.add_node("g", bench.node("g"), defer=True)
        builder.add_edge(START, "a")
        builder.add_edge(START, "b")
        builder.add_edge(["a", "b"], "c")
        builder.add_edge("c", "d")
        builder.add_conditional_edges("d", lambda s: [Send("e", s), Send("e", s)])
        builder.add_edge(["c", "d"], "f")
        builder.add_edge(["e", "f"], "g")
        graph = builder.compile(checkpointer=bench.saver, deadline=10)
    for _ in range(2):
        bench.turn(graph, {"log": []})
    seen = set()
    for snapshot in graph.get_state_history(bench.config):
        saved = bench.saver.get_tuple(snapshot.config)
        assert has_ended(saved) == (not snapshot.next)
        seen.update(snapshot.next or ["end"])
    assert seen == ({"__start__", "end", *"abcdefg"} if kind == "graph" else seen)


# The record.


@pytest.mark.parametrize("how", ALL)
def test_c10_a_plain_run_that_completes_writes_no_record(how: How) -> None:
    """A run that needs no record leaves none in any checkpoint or pending write."""
    bench = Bench(how)
    nodes = {"one": bench.node("one", 1.0), "two": bench.node("two", 1.0)}
    graph = bench.graph(10, nodes)
    for _ in range(2):
        assert bench.turn(graph, {"log": []}).report.outcome == "completed"
    assert len(list(bench.saver.list(bench.config))) >= 6
    assert bench.records() == []
    names = {
        name
        for saved in bench.saver.list(bench.config)
        for name in saved.checkpoint["channel_versions"]
    }
    assert KEY not in names


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("deadline", [None, 20])
def test_c10_the_record_is_gone_once_a_run_completes(
    deadline: float | None, how: How
) -> None:
    """After an interrupt, and after a budget of its own, nothing is left at the end."""
    bench = Bench(how)
    graph = bench.asks(10)
    bench.turn(graph, {"log": []}, deadline=deadline)
    assert bench.records()
    bench.turn(graph, RESUME)
    newest = bench.newest()
    assert KEY not in newest.checkpoint["channel_values"]
    assert [w for w in newest.pending_writes if w[1] == KEY] == []


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("kind", ["graph", "entrypoint"])
@pytest.mark.parametrize("mode", ["fallback", "raise", "return"])
def test_c10_the_record_of_a_cut_is_gone_once_the_next_run_completes(
    mode: str, kind: str, how: How
) -> None:
    """The outcome of a cut stays until then, and no longer."""
    bench = Bench(how)
    hangs = [True]

    async def work(state: Any) -> Any:
        await asyncio.sleep(HOUR if hangs[-1] else 0)
        return {"log": ["work"]}

    policy = DeadlinePolicy(seconds=10, on_exceeded=mode)
    fallback = bench.node("fallback") if mode == "fallback" else None
    if kind == "graph":
        nodes = {"work": work}
        graph = with_deadline(bench.graph(None, nodes), policy, fallback=fallback)
    else:
        plain = entrypoint(checkpointer=bench.saver)(work)
        graph = with_deadline(plain, policy, fallback=fallback)
    bench.turn(graph, {"log": ["in"]})
    records = bench.records()
    assert {r["outcome"] for r in records if isinstance(r, dict)} == {"deadline"}
    hangs.append(False)
    assert bench.turn(graph, {"log": ["in"]}).report.outcome == "completed"
    newest = bench.newest()
    assert KEY not in newest.checkpoint["channel_values"]
    assert [w for w in newest.pending_writes if w[1] == KEY] == []


STREAM_MODES = [
    "values",
    "updates",
    "custom",
    "messages",
    "tasks",
    "checkpoints",
    "debug",
]


@pytest.mark.parametrize("how", ["ainvoke", "astream", "astream_events"])
@pytest.mark.parametrize("mode", ["fallback", "raise", "return", "interrupt"])
def test_c10_the_record_is_hidden_from_everything_a_caller_sees(
    mode: str, how: str
) -> None:
    """Neither outputs, nor any stream mode, nor the state snapshots show the record."""
    bench = Bench("ainvoke")
    nodes = {
        "ask": bench.node("ask", *(["?"] if mode == "interrupt" else [])),
        "hang": bench.node("hang", 1.0 if mode == "interrupt" else HOUR),
    }
    on_exceeded = None if mode == "interrupt" else mode
    fallback = bench.node("fallback") if mode == "fallback" else None
    policy = DeadlinePolicy(seconds=10, on_exceeded=on_exceeded)
    graph = with_deadline(bench.graph(None, nodes), policy, fallback=fallback)
    seen: list[Any] = []

    async def read(inputs: Any) -> None:
        try:
            if how == "ainvoke":
                seen.append(await graph.ainvoke(inputs, bench.config, deadline=9))
                return
            if how == "astream":
                stream = graph.astream(
                    inputs, bench.config, stream_mode=STREAM_MODES, deadline=9
                )
            else:
                stream = graph.astream_events(
                    inputs, bench.config, version="v2", deadline=9
                )
            seen.extend([chunk async for chunk in stream])
        except DeadlineExceeded:
            assert mode == "raise"

    inputs = [{"log": []}, RESUME] if mode == "interrupt" else [{"log": []}]
    for given in inputs:
        run_virtual(read(given), clock=bench.clock)
        snapshot = graph.get_state(bench.config)
        seen.extend([snapshot.values, snapshot.tasks, snapshot.interrupts])
        seen.extend(s.values for s in graph.get_state_history(bench.config))
    assert bench.records()
    assert KEY not in repr(seen)
    assert "__deadline_c" not in repr(seen)


@pytest.mark.parametrize("how", ALL)
def test_c10_the_record_is_shown_where_the_state_schema_asks_for_it(how: How) -> None:
    """A schema with the key gets the record of a cut in the output and the state."""
    schema = TypedDict(
        "Shown", {"log": Annotated[list, operator.add], KEY: dict}, total=False
    )
    bench = Bench(how)
    nodes = {"work": bench.node("work", 11.0)}
    policy = DeadlinePolicy(seconds=10, on_exceeded="return")
    graph = bench.graph(policy, nodes, schema=schema)
    driven = bench.turn(graph, {"log": ["in"]})
    assert driven.error is None
    assert driven.values["log"] == ["in"]
    assert driven.values[KEY]["outcome"] == "deadline"
    assert driven.values[KEY]["cause"] == "deadline"
    assert driven.values[KEY]["cut"] == ["work"]
    assert graph.get_state(bench.config).values[KEY]["outcome"] == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_c10_a_thread_can_go_on_under_plain_langgraph(how: How) -> None:
    """What is stored for a resume does not disturb a graph without this package."""
    bench = Bench(how)
    nodes = {"work": bench.node("work", 3.0), "ask": bench.node("ask", "?")}
    graph = bench.graph(10, nodes)
    bench.turn(graph, {"log": []})
    from langgraph.graph import StateGraph as PlainStateGraph

    builder = PlainStateGraph(State)
    before = START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    plain = builder.compile(checkpointer=bench.saver)
    if how in SYNC:
        values = plain.invoke(RESUME, bench.config)
    else:
        values = asyncio.run(plain.ainvoke(RESUME, bench.config))
    assert values["log"] == ["work", "ask:yes"]
    assert KEY not in values


# What a process leaves behind that is killed: the saver as it is at that moment.


def left_by_a_kill(saver: InMemorySaver) -> InMemorySaver:
    """Return a checkpointer that holds what `saver` does now."""
    left = InMemorySaver()
    for name in ("storage", "writes", "blobs"):
        getattr(left, name).update(copy.deepcopy(getattr(saver, name)))
    return left


@pytest.mark.parametrize("entry", ["edge", "branch", "entrypoint"])
def test_c10_a_budget_a_call_asked_for_outlives_a_kill(entry: str) -> None:
    """A run with a budget of its own says so in its checkpoints from its start on."""
    bench = Bench("invoke")
    left: list[float] = []
    savers: list[InMemorySaver] = []

    def work(state: Any) -> Any:
        left.append(remaining())
        savers.append(left_by_a_kill(bench.saver))
        return {"log": ["work"]}

    def graph() -> Any:
        if entry == "entrypoint":
            return with_deadline(entrypoint(checkpointer=bench.saver)(work), 30)
        builder = StateGraph(State)
        builder.add_node("work", work)
        if entry == "edge":
            builder.add_edge(START, "work")
        else:
            builder.add_conditional_edges(START, lambda _: "work")
        return builder.compile(checkpointer=bench.saver, deadline=30)

    graph().invoke({"log": []}, bench.config, deadline=10, durability="sync")
    bench.saver = savers[0]
    graph().invoke(None, bench.config)
    assert 9 <= left[0] <= 10
    assert 9 <= left[1] <= 10


@pytest.mark.realtime
def test_c10_a_kill_before_a_deferred_node_does_not_charge_the_wait() -> None:
    """The record of a resumed run is kept until it ends, deferred nodes included."""
    bench = Bench("invoke")
    left: list[float] = []
    savers: list[InMemorySaver] = []

    def last(state: State) -> Any:
        left.append(remaining())
        savers.append(left_by_a_kill(bench.saver))

    def graph() -> Any:
        builder = StateGraph(State)
        builder.add_node("ask", bench.node("ask", "?"))
        builder.add_node("last", last, defer=True)
        builder.add_edge(START, "ask")
        builder.add_edge("ask", "last")
        return builder.compile(checkpointer=bench.saver, deadline=30)

    began = time.monotonic()
    graph().invoke({"log": []}, bench.config, durability="sync")
    time.sleep(1.0)
    graph().invoke(RESUME, bench.config, durability="sync")
    worked = time.monotonic() - began - 1.0
    bench.saver = savers[0]
    graph().invoke(None, bench.config)
    assert left[1] >= 30 - worked - 0.1


def test_c10_a_kill_while_the_fallback_runs_is_resumed_with_the_fallback() -> None:
    """The run was cut: its resume has a fresh budget, and only the fallback is due."""
    bench = Bench("ainvoke")
    savers: list[InMemorySaver] = []

    async def fallback(state: State) -> Any:
        bench.ran.append("fallback")
        bench.left.append(remaining())
        savers.append(left_by_a_kill(bench.saver))
        return {"log": ["fallback"]}

    def graph() -> Any:
        nodes = {"hang": bench.node("hang", HOUR), "fallback": fallback}
        return bench.graph(10, nodes, fallback="fallback")

    bench.turn(graph(), {"log": []}, durability="sync")
    assert bench.ran == ["hang", "fallback"]
    bench.saver = savers[0]
    again = bench.turn(graph(), None)
    assert again.error is None
    assert bench.ran == ["fallback"]
    assert again.values["log"] == ["fallback"]


# Other processes.


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Return a kind of database and where one is."""
    if request.param == "sqlite":
        return "sqlite", str(tmp_path / "threads.sqlite")
    uri: str = request.getfixturevalue("postgres_uri")
    return "postgres", uri


@contextmanager
def open_saver(kind: str, where: str) -> Iterator[Any]:
    """Open a checkpointer as a new process does."""
    if kind == "sqlite":
        with SqliteSaver.from_conn_string(where) as saver:
            yield saver
    else:
        with PostgresSaver.from_conn_string(where) as saver:
            saver.setup()
            yield saver


@pytest.mark.parametrize("clock", ["active", "wall", "restart"])
def test_c10_a_run_is_resumed_from_a_database(
    clock: str, database: tuple[str, str]
) -> None:
    """A graph and a checkpointer made anew go on with what the record says, exactly."""
    bench = Bench("invoke")
    policy = DeadlinePolicy(seconds=30, clock=clock)
    for inputs in ({"log": []}, RESUME):
        with open_saver(*database) as bench.saver:
            driven = bench.turn(bench.asks(policy), inputs)
        assert driven.error is None
        bench.clock.advance(5)
    assert bench.left[0] == {"active": 26, "wall": 21, "restart": 30}[clock]
    assert driven.report.outcome == "completed"


@pytest.mark.parametrize("edits", [1, 2])
def test_c10_a_database_tells_of_a_run_whose_state_was_edited(
    edits: int, database: tuple[str, str]
) -> None:
    """A saver that holds a lock while it lists is asked for one thing at a time."""
    bench = Bench("invoke")
    with open_saver(*database) as bench.saver:
        graph = bench.asks(30)
        bench.turn(graph, {"log": []}, deadline=10)
        for _ in range(edits):
            edit(bench, graph, "work")
        assert bench.turn(graph, RESUME).error is None
    assert bench.left == [6, 5]


@pytest.mark.realtime
@pytest.mark.parametrize("entry", ["graph", "entrypoint"])
def test_c10_an_async_database_tells_what_a_call_had_asked_for(
    entry: str, tmp_path: Path
) -> None:
    """Also after the state was edited: then the record is in the checkpoint before."""
    left: list[float] = []

    async def ask(state: Any) -> Any:
        left.append(remaining())
        return {"log": [interrupt("?")]}

    async def main() -> Any:
        path = str(tmp_path / "threads.sqlite")
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            config: Any = {"configurable": {"thread_id": "1"}}
            if entry == "entrypoint":
                graph = with_deadline(entrypoint(checkpointer=saver)(ask), 3000)
            else:
                builder = StateGraph(State).add_node(ask).add_edge(START, "ask")
                graph = builder.compile(saver, deadline=3000)
            await graph.ainvoke({"log": []}, config, deadline=60)
            if entry == "graph":
                await graph.aupdate_state(config, {"log": ["edited"]}, as_node=START)
            return await graph.ainvoke(RESUME, config)

    assert asyncio.run(main())["log"][-1] == "yes"
    assert [0 < seconds <= 60 for seconds in left] == [True, True]


@dataclass
class Worker:
    """A process that runs one turn of a thread."""

    database: tuple[str, str]
    asynchronous: bool
    policy: dict[str, Any]
    thread: str = field(default_factory=lambda: str(uuid4()))

    @contextmanager
    def start(self, inputs: Any, **options: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """Start a turn and return its events; the process ends with the block."""
        kind, where = self.database
        told = {
            "saver": kind,
            "where": where,
            "asynchronous": self.asynchronous,
            "thread": self.thread,
            "input": inputs,
            "policy": self.policy,
            **options,
        }
        here = Path(__file__).parent
        paths = [str(here.parent), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, here / "processes" / "thread_worker.py", json.dumps(told)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        assert process.stdout is not None
        try:
            yield map(json.loads, process.stdout)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            process.stdout.close()

    def run(self, inputs: Any, **options: Any) -> list[dict[str, Any]]:
        """Run a turn to its end and return its events."""
        with self.start(inputs, **options) as events:
            return list(events)

    def run_until(self, name: str, inputs: Any, **options: Any) -> float:
        """Run a turn until `name` has started, kill it, and return how long it ran."""
        with self.start(inputs, **options) as events:
            began = next(e["began"] for e in events if "began" in e)
            next(e for e in events if e.get("node") == name)
            # What was saved in the background has a moment to arrive.
            time.sleep(0.3)
        return time.time() - began


def left_in(events: list[dict[str, Any]], node: str) -> float:
    """Return what a node had left when it started."""
    left: float = next(e["remaining"] for e in events if e.get("node") == node)
    return left


@pytest.mark.realtime
def test_c10_another_process_resumes_with_what_was_left(
    database: tuple[str, str],
) -> None:
    """The time between the processes is not charged, the work of the first is."""
    worker = Worker(database, database[0] == "postgres", {"seconds": 30})
    first = worker.run({"log": [], "work": 0.5, "ask": True}, deadline=20)
    assert first[-1]["asked"]
    worked = first[-1]["ended"] - first[0]["began"]
    time.sleep(1.0)
    second = worker.run({"resume": "yes"})
    assert second[-1]["log"] == ["work", "ask", "more", "linger"]
    assert 20 - worked - 0.5 <= left_in(second, "ask") <= 20 - 0.5


@pytest.mark.realtime
def test_c10_another_process_is_cut_when_what_was_left_is_used_up(
    database: tuple[str, str],
) -> None:
    """The budget of a run is one, however many processes work on it."""
    worker = Worker(database, False, {"seconds": 1.5})
    first = worker.run({"log": [], "work": 0.7, "ask": True, "linger": 3})
    assert first[-1]["asked"]
    second = worker.run({"resume": "yes"})
    assert second[-1]["error"] == "deadline"
    began = next(e["began"] for e in second if "began" in e)
    assert second[-1]["ended"] - began < 0.8 + 0.7


@pytest.mark.realtime
@pytest.mark.parametrize(("asynchronous", "deadline"), [(False, 20), (True, None)])
def test_c10_a_killed_process_does_not_lose_what_was_spent(
    deadline: float | None, asynchronous: bool, database: tuple[str, str]
) -> None:
    """After SIGKILL a resume elsewhere is charged all but the superstep that died."""
    budget = deadline or 30
    worker = Worker(database, asynchronous, {"seconds": 30})
    inputs = {"log": [], "work": 0.6, "linger": 3}
    ran_for = worker.run_until("linger", inputs, deadline=deadline)
    time.sleep(1.0)  # while nobody works: not charged
    with worker.start(None) as events:
        second = [next(e for e in events if "node" in e)]
    # Finished supersteps are not run again.
    assert second[0]["node"] == "linger"
    assert budget - ran_for - 0.5 <= second[0]["remaining"] <= budget - 0.6


@pytest.mark.realtime
def test_c10_a_killed_process_is_charged_to_the_clock_on_the_wall(
    tmp_path: Path,
) -> None:
    """Under `"wall"` the time between the processes counts as well."""
    database = ("sqlite", str(tmp_path / "threads.sqlite"))
    worker = Worker(database, False, {"seconds": 30, "clock": "wall"})
    began = time.time()
    worker.run_until("linger", {"log": [], "work": 0.6, "linger": 3})
    time.sleep(1.0)
    with worker.start(None) as events:
        second = [next(e for e in events if "node" in e)]
    assert 30 - (time.time() - began) - 0.5 <= second[0]["remaining"] <= 30 - 1.9


@pytest.mark.realtime
def test_c10_a_process_killed_after_a_resume_is_not_charged_the_wait(
    database: tuple[str, str],
) -> None:
    """Interrupted, resumed, killed, resumed: only what was worked is spent."""
    worker = Worker(database, database[0] == "sqlite", {"seconds": 30})
    first = worker.run({"log": [], "work": 0.5, "ask": True, "more": 0.5, "linger": 3})
    worked = first[-1]["ended"] - first[0]["began"]
    time.sleep(1.0)
    worked += worker.run_until("linger", {"resume": "yes"})
    with worker.start(None) as events:
        third = [next(e for e in events if "node" in e)]
    assert third[0]["node"] == "linger"
    assert 30 - worked - 0.5 <= third[0]["remaining"] <= 30 - 1.0


@pytest.mark.realtime
def test_c10_a_new_input_after_a_killed_process_gets_a_full_budget(
    tmp_path: Path,
) -> None:
    """What a dead run had spent is no concern of the next one."""
    database = ("sqlite", str(tmp_path / "threads.sqlite"))
    worker = Worker(database, False, {"seconds": 30})
    worker.run_until("linger", {"log": [], "work": 0.6, "linger": 3}, deadline=20)
    bench = Bench("invoke", config={"configurable": {"thread_id": worker.thread}})
    nodes = {name: bench.node(name) for name in ("work", "ask", "more", "linger")}
    with open_saver(*database) as bench.saver, collect_runs():
        driven = bench.turn(bench.graph(30, nodes), {"log": ["new"]})
    assert driven.error is None
    assert bench.ran == ["work", "ask", "more", "linger"]
    assert bench.left == [30, 30, 30, 30]
