"""Random graphs with random faults, several turns on one thread, the same invariants.

The runs are the same ones each time. `LANGGRAPH_DEADLINE_FAULTS=all`, as `make faults`
sets it, makes many more of them.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any, Literal

import pytest
from faults import invariants
from faults.bench import GRACE, Bench
from faults.driving import Call, Turn, adrive
from faults.shapes import build, shapes
from faults.work import FAULTS, State, Work
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph as PlainGraph

from langgraph_deadline import DeadlineExceeded, DeadlinePolicy, StateGraph
from langgraph_deadline.testing import VirtualClock, run_virtual

EVERYTHING = os.environ.get("LANGGRAPH_DEADLINE_FAULTS") == "all"
EXAMPLES = 10 if EVERYTHING else 6
PARTS = 10 if EVERYTHING else 1
"""Each part is a test, for they run side by side and a test has three minutes."""
BUDGET, RESERVE = 50.0, 10.0
HOWS = ("ainvoke", "astream")
Mode = Literal["fallback", "raise", "return"]


class Machine(RuleBasedStateMachine):
    """One thread of one random graph: turns that are cut, turns that are not."""

    mode: Mode = "fallback"
    runs = cuts = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.saver = InMemorySaver()
        self.work = Work()
        self.turns = 0
        self.cut = False
        self.before = invariants.Before.now()

    @initialize(shape=shapes)
    def make(self, shape: list[str]) -> None:
        """Make a graph, and its plain twin that is never cut."""
        builder = StateGraph(State)
        self.names = build(builder, self.work, shape)
        builder.add_node("degrade", self.work.node("degrade"))
        builder.add_node("closing", self.work.node("closing"))
        builder.add_edge("degrade", "closing")
        falls_back = self.mode == "fallback"
        policy = DeadlinePolicy(
            seconds=BUDGET,
            reserve=RESERVE if falls_back else 0.0,
            on_exceeded=self.mode,
            cancel_grace=GRACE,
        )
        self.graph = builder.compile(
            self.saver, deadline=policy, fallback="degrade" if falls_back else None
        )
        twin = PlainGraph(State)
        self.twins_work = Work()
        build(twin, self.twins_work, shape)
        self.twin = twin.compile(InMemorySaver())

    @property
    def at(self) -> float:
        """When ordinary work is cut (in seconds)."""
        return BUDGET - RESERVE if self.mode == "fallback" else BUDGET

    @rule(how=st.sampled_from(HOWS))
    def a_turn_without_a_fault(self, how: str) -> None:
        """It does what the twin does on a thread of its own."""
        turn = self._turn(how, {})
        assert turn.error is None, turn.error
        self._is_as_on_a_fresh_thread(turn)
        self.cut = False

    @rule(
        data=st.data(),
        how=st.sampled_from(HOWS),
        kinds=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=3),
    )
    def a_turn_with_faults(self, data: Any, how: str, kinds: list[str]) -> None:
        """It is cut on time, and what had finished is kept."""
        named = st.permutations(self.names).map(lambda all_: all_[: len(kinds)])
        names = data.draw(named)
        turn = self._turn(how, dict(zip(names, kinds, strict=False)))
        reached = [name for name in self.work.faults if self._started(name)]
        if turn.elapsed < self.at - 1e-6:
            assert all(self.work.faults[name] == "take long" for name in reached)
            assert turn.error is None
            self._is_as_on_a_fresh_thread(turn)
            self.cut = False
            return
        self.cut = True
        type(self).cuts += 1
        self._was_cut_on_time(turn)
        self._kept(turn)

    @precondition(lambda self: self.cut and self.mode == "raise")
    @rule(how=st.sampled_from(HOWS))
    def the_resume_of_a_run_that_was_cut(self, how: str) -> None:
        """It runs what was cut, and only that."""
        turn = self._drive(how, None, {})
        assert turn.error is None, turn.error
        self._is_as_on_a_fresh_thread(turn, whole=False)
        self.cut = False

    @precondition(lambda self: self.turns > 0)
    @rule(
        data=st.data(),
        how=st.sampled_from(HOWS),
        kind=st.sampled_from(sorted(set(FAULTS) - {"take long"})),
        after=st.floats(0.5, 20),
    )
    def a_turn_whose_caller_leaves(
        self, data: Any, how: str, kind: str, after: float
    ) -> None:
        """It ends at once, whatever its nodes were doing, with nobody's fallback."""
        self.turns += 1
        name = data.draw(st.sampled_from(self.names))
        turn = self._drive(how, self._input(), {name: kind}, after)
        if turn.error is None and turn.elapsed < after:
            self._is_as_on_a_fresh_thread(turn)  # it was not there, or done before
            self.cut = False
            return
        assert isinstance(turn.error, asyncio.CancelledError)
        assert turn.elapsed <= after + GRACE + 0.1
        assert turn.reports[0].outcome == "cancelled"
        assert "degrade" not in self.work.started
        self.cut = False

    def teardown(self) -> None:
        """Nothing is left of all the turns."""
        invariants.nothing_is_left(self.before)

    # How a turn is driven.

    def _input(self) -> dict[str, Any]:
        return {"log": [f"turn {self.turns}"], "turn": str(self.turns)}

    def _turn(self, how: str, faults: dict[str, str]) -> Turn:
        self.turns += 1
        return self._drive(how, self._input(), faults)

    def _drive(
        self, how: str, inputs: Any, faults: dict[str, str], leaves: float | None = None
    ) -> Turn:
        """Run a turn, and see that nothing of it goes on afterwards."""
        type(self).runs += 1
        work = self.work
        work.faults, work.released = faults, False
        work.started.clear()
        work.finished.clear()
        bench: Any = Bench(how)  # type: ignore[arg-type]
        call = Call(bench, self.graph, inputs, CONFIG)
        if leaves is not None:
            call.leaving = "cancelled"

        async def main() -> Turn:
            if leaves is not None:
                loop = asyncio.get_running_loop()
                loop.call_later(leaves - 0.5, bench.reach)
            self.began = self.clock.monotonic()
            turn = await adrive(call)
            self.ended = self.clock.monotonic()
            was = self._facts()
            work.released = True
            await asyncio.sleep(500)
            assert self._facts() == was
            invariants.loop_is_empty()
            return turn

        return run_virtual(main(), clock=self.clock)

    def _facts(self) -> tuple[Any, ...]:
        state = self.graph.get_state(CONFIG)
        saved = sum(1 for _ in self.saver.list(CONFIG))
        return tuple(self.work.started), repr(state), saved

    def _started(self, name: str) -> bool:
        return any(said.split(":")[0] == name for said in self.work.started)

    # What must hold.

    def _was_cut_on_time(self, turn: Turn) -> None:
        (report,) = turn.reports
        assert report.outcome == "deadline", report
        # The fallback and what it leads to take a second each.
        rest = 2.0 if self.mode == "fallback" else 0.0
        assert self.at + rest - 1e-6 <= turn.elapsed <= self.at + rest + GRACE + 1e-6
        if self.mode == "raise":
            assert type(turn.error) is DeadlineExceeded, turn.error
        else:
            assert turn.error is None, turn.error
        for name in ("degrade", "closing"):
            assert self.work.started.count(name) == (self.mode == "fallback")

    def _kept(self, turn: Turn) -> None:
        """What had returned by the cut, or in its grace, is in what the caller has."""
        values = self.graph.get_state(CONFIG).values
        log = _since(values.get("log", []), self.turns)
        if self.mode == "raise":
            return  # it waits for the resume, which is checked
        if self.mode == "fallback":
            assert log[-2:] == ["degrade", "closing"]
        if self.mode == "return":
            assert turn.values["log"] == values["log"]
        cut_at = self.began + self.at
        done = Counter(said for at, said in self.work.finished if at < cut_at - 1e-6)
        kept = Counter([*log, *(said.partition("@")[0] for said in self._found(turn))])
        assert not done - kept, done - kept
        in_grace = Counter(said for _, said in self.work.finished)
        assert not kept - in_grace, kept - in_grace

    def _found(self, turn: Turn) -> set[str]:
        """Return what subgraphs have found in the present turn."""
        found = turn.values.get("found", ())
        return {said for said in found if said.endswith(f"@{self.turns}")}

    def _is_as_on_a_fresh_thread(self, turn: Turn, *, whole: bool = True) -> None:
        fresh = {"configurable": {"thread_id": str(self.turns)}}
        clock = VirtualClock()
        self.twins_work.started.clear()
        expected = run_virtual(self.twin.ainvoke(self._input(), fresh), clock=clock)
        log = _since(turn.values["log"], self.turns)
        assert Counter(log) == Counter(_since(expected["log"], self.turns))
        found = self._found(turn)
        assert found == set(expected.get("found", ()))
        (report,) = turn.reports
        assert report.outcome == "completed"
        if whole:
            assert Counter(self.work.started) == Counter(self.twins_work.started)
        assert self.graph.get_state(CONFIG).next == ()


def _since(log: list[str], turn: int) -> list[str]:
    """Return what has logged since a turn began."""
    return log[len(log) - log[::-1].index(f"turn {turn}") :]


CONFIG: dict[str, Any] = {"configurable": {"thread_id": "1"}}


class Raising(Machine):
    """The same without a fallback: what was cut may be resumed."""

    mode = "raise"


class Returning(Machine):
    """The same without a fallback: the caller gets the state so far."""

    mode = "return"


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", [Machine, Raising, Returning])
def test_random_faults_in_random_graphs_break_no_promise(
    kind: type[Machine], part: int, record_property: Any
) -> None:
    """On time, sticky, fenced, kept, one fallback, next turn clean, nothing left."""
    # What is drawn depends on the name, and on nothing else.
    machine = type(f"{kind.__name__}{part}", (kind,), {"runs": 0, "cuts": 0})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=6,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("generated", machine.runs)
    assert machine.runs >= EXAMPLES
    assert machine.cuts > 0
