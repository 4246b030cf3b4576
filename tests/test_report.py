"""The report: one for every run, to whoever asked for it, and nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import json
import operator
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, How, adrive, drive, napper
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.graph import START
from langgraph.types import Send, interrupt

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    RunControl,
    RunReport,
    StateGraph,
    StepBudget,
    collect_runs,
    with_deadline,
)
from langgraph_deadline.report import StepReport, Straggler
from langgraph_deadline.runs import collectors
from langgraph_deadline.testing import VirtualClock, run_virtual


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    number: int


def chain(*nodes: Any, **options: Any) -> Any:
    """Return a graph of nodes called `a`, `b`, ..., one after the other."""
    builder = StateGraph(State)
    before = START
    for name, node in zip("abcdef", nodes, strict=False):
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    return builder.compile(**options)


def quick(state: State) -> State:
    """Return at once."""
    return {"log": ["quick"]}


def degrade(state: State) -> State:
    """Be the fallback."""
    return {"log": ["degraded"]}


# What it says.


@pytest.mark.parametrize("how", ALL)
def test_a_run_that_completes_is_reported_as_completed(how: How) -> None:
    """With its budget, its reserve, and what it took."""
    graph = chain(quick, quick, deadline=10, fallback=degrade)
    report = drive(graph, {}, how).report
    assert (report.outcome, report.cause) == ("completed", None)
    assert report.budget == pytest.approx(10)
    assert report.reserve == pytest.approx(2)
    assert 0 < report.elapsed < 5
    assert [(step.name, step.kind, step.cause) for step in report.steps] == [
        ("a", "node", None),
        ("b", "node", None),
    ]
    assert report.stragglers == []
    assert not report.interrupted


@pytest.mark.parametrize("how", ASYNC)
def test_the_times_of_a_report_are_seconds_since_the_start(how: How) -> None:
    """To the tick, in virtual time."""
    graph = chain(
        napper(how, 1), napper(how, 2), napper(how, 9), deadline=5, fallback=degrade
    )
    report = drive(graph, {}, how, virtual=True).report
    assert report.elapsed == pytest.approx(4)
    assert [
        (step.name, step.kind, pytest.approx(step.start), pytest.approx(step.end))
        for step in report.steps
    ] == [
        ("a", "node", 0, 1),
        ("b", "node", 1, 3),
        ("c", "node", 3, 4),
        ("degrade", "fallback", 4, 4),
    ]
    assert [step.cause for step in report.steps] == [None, None, "deadline", None]


@pytest.mark.parametrize("how", ALL)
def test_c3_a_run_that_was_cut_is_never_reported_as_completed(how: How) -> None:
    """Whatever it returned: with a fallback, with the state so far, with an error."""
    for policy, fallback in (
        (DeadlinePolicy(seconds=0.3), degrade),
        (DeadlinePolicy(seconds=0.3, on_exceeded="return"), None),
        (DeadlinePolicy(seconds=0.3), None),
    ):
        graph = chain(quick, napper(how, 2), deadline=policy, fallback=fallback)
        driven = drive(graph, {}, how, virtual=True)
        assert (driven.report.outcome, driven.report.cause) == ("deadline", "deadline")
        by_name = {step.name: step.cause for step in driven.report.steps}
        assert by_name["a"] is None
        assert by_name["b"] == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_an_own_error_is_reported_as_error(how: How) -> None:
    """The run was not cut: there is no cause."""

    def fails(state: State) -> State:
        msg = "own"
        raise KeyError(msg)

    driven = drive(chain(fails, deadline=5), {}, how)
    assert isinstance(driven.error, KeyError)
    assert (driven.report.outcome, driven.report.cause) == ("error", None)
    assert [step.name for step in driven.report.steps] == ["a"]


@pytest.mark.parametrize("how", ALL)
def test_a_run_stopped_by_hand_is_reported_as_cancelled(how: How) -> None:
    """With or without a deadline."""
    for deadline in (None, 30):
        control = RunControl()
        control.cancel()
        graph = chain(quick, deadline=deadline, fallback=degrade)
        report = drive(graph, {}, how, control=control).report
        assert (report.outcome, report.cause) == ("cancelled", "cancelled")


@pytest.mark.parametrize("how", ALL)
def test_a_steps_own_limit_and_its_window_are_causes_of_their_own(how: How) -> None:
    """The run that goes on with `otherwise` is still complete."""
    steps = {
        "a": StepBudget(seconds=0.2, otherwise={"log": ["cached"]}),
        "b": StepBudget(needs=20, otherwise={"log": ["short"]}),
    }
    policy = DeadlinePolicy(seconds=5, steps=steps)
    graph = chain(napper(how, 2), quick, deadline=policy)
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values["log"] == ["cached", "short"]
    assert [(step.name, step.kind, step.cause) for step in driven.report.steps] == [
        ("a", "node", "step"),
        ("a", "otherwise", None),
        ("b", "node", "window"),
        ("b", "otherwise", None),
    ]
    assert driven.report.outcome == "completed"


def test_a_run_that_waits_for_a_person_says_so() -> None:
    """Its resume makes a report of its own."""
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.types import Command

    def ask(state: State) -> State:
        return {"log": [interrupt("?")]}

    graph = chain(ask, deadline=30, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    first = drive(graph, {}, "invoke", config).report
    second = drive(graph, Command(resume="yes"), "invoke", config).report
    assert (first.outcome, first.interrupted) == ("completed", True)
    assert (second.outcome, second.interrupted) == ("completed", False)
    assert second.elapsed >= first.elapsed


@pytest.mark.parametrize("how", ALL)
def test_every_send_is_a_step(how: How) -> None:
    """Fifty of them are fifty entries, each with times of its own."""

    def fan(state: State) -> list[Send]:
        return [Send("a", {"number": number}) for number in range(50)]

    builder = StateGraph(State)
    builder.add_node("a", quick)
    builder.add_conditional_edges(START, fan, ["a"])
    report = drive(builder.compile(deadline=30), {}, how).report
    assert [step.name for step in report.steps].count("a") == 50
    for step in report.steps:
        assert 0 <= step.start <= step.end <= report.elapsed + 1e-6


@pytest.mark.parametrize("how", ASYNC)
def test_the_overrun_of_a_straggler_grows_until_it_ends(how: How) -> None:
    """The entry on the report is live."""

    async def swallows(state: State) -> State:
        for _ in range(4):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(2)
        return {}

    graph = chain(swallows, deadline=1)

    async def main() -> None:
        driven = await adrive(graph, {}, how)
        (straggler,) = driven.report.stragglers
        assert straggler.name == "a"
        assert straggler.running
        assert straggler.overrun == pytest.approx(0.25)
        await asyncio.sleep(1)
        assert straggler.overrun == pytest.approx(1.25)
        await asyncio.sleep(20)
        assert not straggler.running
        # Cut at 1, it swallowed that and slept three times for two seconds.
        assert straggler.overrun == pytest.approx(6)

    run_virtual(main())


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_the_overrun_of_a_thread_grows_until_it_ends(how: How) -> None:
    """The same for work that blocks."""
    released, ended = threading.Event(), threading.Event()

    def blocks(state: State) -> State:
        released.wait(3)
        ended.set()
        return {}

    driven = drive(chain(blocks, deadline=0.2), {}, how)
    (straggler,) = driven.report.stragglers
    assert straggler.running
    before = straggler.overrun
    time.sleep(0.1)
    assert straggler.overrun >= before + 0.1
    released.set()
    assert ended.wait(3)
    until = time.monotonic() + 3
    while straggler.running and time.monotonic() < until:
        time.sleep(0.01)
    assert not straggler.running
    final = straggler.overrun
    time.sleep(0.05)
    assert straggler.overrun == final


# Who gets it.


@pytest.mark.parametrize("how", ALL)
def test_a_run_has_one_report(how: How) -> None:
    """Also with subgraphs, which have none without a deadline of their own."""
    inner = chain(quick)
    driven = drive(chain(inner, quick, deadline=5), {}, how)
    assert len(driven.reports) == 1
    assert driven.error is None


@pytest.mark.parametrize("how", ALL)
def test_a_subgraph_with_a_deadline_of_its_own_has_a_report_of_its_own(
    how: How,
) -> None:
    """It is a run; it ends before the one around it does."""
    inner = chain(quick, deadline=3)
    driven = drive(chain(inner, quick, deadline=5), {}, how)
    assert [report.budget for report in driven.reports] == [
        pytest.approx(3),
        pytest.approx(5),
    ]


def test_nobody_asked_nothing_is_kept() -> None:
    """Outside of a block there are no collectors."""
    assert collectors() == ()
    chain(quick, deadline=5).invoke({})
    with collect_runs() as runs:
        assert collectors() == (runs,)
    assert collectors() == ()
    chain(quick, deadline=5).invoke({})
    assert runs == []


def test_nested_blocks_gather_each_for_itself() -> None:
    """The outer one has all, the inner one what ended inside it."""
    graph = chain(quick, deadline=5)
    with collect_runs() as outer:
        graph.invoke({})
        with collect_runs() as inner:
            graph.invoke({})
            graph.invoke({})
        graph.invoke({})
    assert len(outer) == 4
    assert inner == outer[1:3]


def test_a_block_that_ends_with_an_error_keeps_what_it_has() -> None:
    """And it is over: later runs are not in it."""
    graph = chain(quick, deadline=5)
    with suppress(KeyError), collect_runs() as runs:
        graph.invoke({})
        raise KeyError
    graph.invoke({})
    assert len(runs) == 1
    assert collectors() == ()


def test_gathered_runs_are_all_collected_once() -> None:
    """A hundred at the same time in one block."""

    async def nap(state: State) -> State:
        await asyncio.sleep(state["number"] / 10)
        return {}

    graph = chain(nap, deadline=5)

    async def main() -> list[RunReport]:
        with collect_runs() as runs:
            calls = [graph.ainvoke({"number": number}) for number in range(100)]
            await asyncio.gather(*calls, return_exceptions=True)
        return runs

    runs = run_virtual(main())
    assert len({id(report) for report in runs}) == len(runs) == 100
    expected = sorted(min(number / 10, 5) for number in range(100))
    assert sorted(report.elapsed for report in runs) == pytest.approx(expected)
    cut = [report for report in runs if report.outcome == "deadline"]
    # From 5.0 s on: fifty of them, the one at the deadline itself included.
    assert len(cut) == 50


def test_tasks_with_blocks_of_their_own_have_their_own_reports() -> None:
    """Concurrency mixes nothing."""

    async def nap(state: State) -> State:
        await asyncio.sleep(1)
        return {}

    graph = chain(nap, deadline=5)

    async def one(count: int) -> list[RunReport]:
        with collect_runs() as runs:
            for _ in range(count):
                await graph.ainvoke({})
        return runs

    async def main() -> list[list[RunReport]]:
        return await asyncio.gather(*[one(count) for count in range(5)])

    assert [len(runs) for runs in run_virtual(main())] == [0, 1, 2, 3, 4]


def test_threads_with_blocks_of_their_own_have_their_own_reports() -> None:
    """A thread starts without a collector, and its runs are its own."""
    graph = chain(quick, deadline=30)

    def one(count: int) -> list[RunReport]:
        with collect_runs() as runs:
            for _ in range(count):
                graph.invoke({})
        return runs

    with collect_runs() as around, ThreadPoolExecutor(4) as pool:
        gathered = list(pool.map(one, range(8)))
    assert [len(runs) for runs in gathered] == list(range(8))
    assert around == []


def test_threads_that_got_the_context_report_into_its_block() -> None:
    """What this block starts is in it, wherever it runs: `batch` does that, too."""
    graph = chain(quick, deadline=30)
    with collect_runs() as runs:
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(graph.invoke, {})
            )
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        graph.batch([{}] * 10)
    assert len(runs) == 20


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_a_stream_that_is_closed_half_way_has_a_report(how: How) -> None:
    """Its run was cancelled, by whoever stopped reading."""
    graph = chain(quick, quick, quick, deadline=30)

    def read() -> None:
        stream: Iterator[Any] = graph.stream({}, stream_mode="updates")
        next(stream)
        stream.close()  # type: ignore[attr-defined]

    async def aread() -> None:
        stream = graph.astream({}, stream_mode="updates")
        await anext(stream)
        await stream.aclose()

    with collect_runs() as runs:
        if how == "stream":
            read()
        else:
            asyncio.run(aread())
    (report,) = runs
    assert report.outcome == "cancelled"
    assert "a" in [step.name for step in report.steps]


def test_a_cancelled_caller_has_a_report() -> None:
    """It was cancelled from outside."""

    async def main() -> list[RunReport]:
        with collect_runs() as runs:
            call = asyncio.create_task(
                chain(napper("ainvoke", 9), deadline=30).ainvoke({})
            )
            await asyncio.sleep(1)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
        return runs

    (report,) = run_virtual(main())
    assert report.outcome == "cancelled"
    assert report.elapsed == pytest.approx(1)


# Stored and loaded.


def full() -> RunReport:
    """Return a report with everything on it."""
    return RunReport(
        outcome="deadline",
        cause="step",
        budget=30.0,
        reserve=6.0,
        elapsed=24.5,
        interrupted=True,
        steps=[
            StepReport(name="a", start=0, end=1.5),
            StepReport(name="b", kind="otherwise", start=1.5, end=2, cause="window"),
        ],
        stragglers=[Straggler(name="b", overrun=2.5, running=False, blocked_loop=True)],
    )


def test_a_report_survives_json() -> None:
    """Written and read, by pydantic and by plain `json`, it says the same."""
    report = full()
    text = report.model_dump_json()
    for loaded in (
        RunReport.model_validate_json(text),
        RunReport.model_validate(json.loads(text)),
        RunReport.model_validate(report.model_dump()),
    ):
        assert loaded.model_dump() == report.model_dump()
        assert loaded == report
        assert loaded.stragglers[0].overrun == 2.5


@pytest.mark.parametrize("how", ALL)
def test_a_real_report_survives_json(how: How) -> None:
    """Also that of a run that was cut, with a straggler that has ended."""
    graph = chain(quick, napper(how, 0.5), deadline=0.2, fallback=degrade)
    report = drive(graph, {}, how, virtual=True).report
    until = time.monotonic() + 3
    while any(s.running for s in report.stragglers) and time.monotonic() < until:
        time.sleep(0.02)
    loaded = RunReport.model_validate_json(report.model_dump_json())
    assert loaded.model_dump() == report.model_dump()


def test_a_loaded_straggler_grows_no_more() -> None:
    """What was read from a file is what was known when it was written."""
    from langgraph_deadline import _clock

    clock = VirtualClock()
    with _clock.use(clock):
        straggler = Straggler(name="a")
        straggler.runs_since(clock.monotonic() - 2)
        report = RunReport(outcome="deadline", stragglers=[straggler])
        loaded = RunReport.model_validate_json(report.model_dump_json())
        clock.advance(5)
        assert straggler.overrun == 7
        assert loaded.stragglers[0].overrun == 2
        straggler.ended(clock.monotonic())
        clock.advance(5)
        assert straggler.overrun == 7


def test_the_fields_of_a_report_are_these() -> None:
    """They are an interface: more may come, none may go."""
    assert set(RunReport.model_fields) >= {
        "outcome",
        "cause",
        "budget",
        "reserve",
        "elapsed",
        "interrupted",
        "steps",
        "stragglers",
    }
    assert set(StepReport.model_fields) >= {"name", "kind", "start", "end", "cause"}
    dumped = full().model_dump()["stragglers"][0]
    assert set(dumped) >= {"name", "overrun"}


@pytest.mark.parametrize("bad", ["done", "", None, 5])
def test_an_outcome_is_one_of_five(bad: Any) -> None:
    """What is read from elsewhere is checked."""
    with pytest.raises(ValueError, match="outcome"):
        RunReport(outcome=bad)


def test_a_run_without_a_time_limit_is_reported_when_it_is_bounded_by_hand() -> None:
    """Its budget is none."""
    control = RunControl()
    report = drive(chain(quick), {}, "invoke", control=control).report
    assert (report.outcome, report.budget) == ("completed", None)


def test_the_error_of_a_run_agrees_with_its_report() -> None:
    """Both name the same cause, budget and time."""
    graph = chain(napper("ainvoke", 9), deadline=2)
    driven = drive(graph, {}, "ainvoke", virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == driven.report.cause
    assert driven.error.budget == driven.report.budget == 2
    assert driven.report.elapsed == driven.elapsed == 2


# What models used.


def asking(model: Any, how: How) -> Any:
    """Return a node that asks `model`, as `how` needs it."""

    def ask(state: State) -> State:
        return {"log": [str(model.invoke("What is tea?").content)]}

    async def aask(state: State) -> State:
        return {"log": [str((await model.ainvoke("What is tea?")).content)]}

    return ask if how in SYNC else aask


class Slow(BaseChatModel):
    """Answers as a whole, after `seconds`, and says what it used."""

    seconds: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "slow"

    def _result(self) -> ChatResult:
        usage: Any = {"input_tokens": 9, "output_tokens": 40, "total_tokens": 49}
        message = AIMessage("x" * 160, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        time.sleep(self.seconds)
        return self._result()

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(self.seconds)
        return self._result()


class Streaming(Slow):
    """Streams a character each tenth of its time, and tells its usage at the end."""

    async def _astream(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(10):
            await asyncio.sleep(self.seconds / 10)
            yield ChatGenerationChunk(message=AIMessageChunk("abcd"))


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("wrapped", [False, True])
def test_tokens_that_a_model_tells_are_known(how: How, wrapped: bool) -> None:
    """None of them came after a cut; a wrapped model is one step, not two."""
    model: Any = with_deadline(Slow(), 20) if wrapped else Slow()
    report = drive(chain(asking(model, how), deadline=30), {}, how).report
    (call,) = report.model_calls
    assert call.tokens is not None
    assert (call.tokens.input.count, call.tokens.input.basis) == (9, "known")
    assert (call.tokens.output.count, call.tokens.output.basis) == (40, "known")
    assert (call.tokens.after_cut.count, call.tokens.after_cut.basis) == (0, "known")
    assert call.parent == 0
    assert call.limit == (20 if wrapped else None)
    assert report.usage is not None
    assert report.usage.model_calls == 1
    assert (report.usage.input_tokens, report.usage.output_tokens) == (9, 40)


@pytest.mark.parametrize("how", ASYNC)
def test_tokens_of_a_call_that_was_cancelled_are_absent(how: How) -> None:
    """Nobody knows what its provider went on to generate; the prompt is estimated."""
    graph = chain(asking(Slow(seconds=20), how), deadline=5, fallback=degrade)
    report = drive(graph, {}, how, virtual=True).report
    (call,) = report.model_calls
    assert (call.cause, call.cut_at) == ("deadline", pytest.approx(4))
    assert call.tokens is not None
    assert call.tokens.input.basis == "estimated"
    assert (call.tokens.output.count, call.tokens.output.basis) == (None, "absent")
    assert (call.tokens.after_cut.count, call.tokens.after_cut.basis) == (
        None,
        "absent",
    )
    assert report.usage is not None
    assert report.usage.unreported == 1


@pytest.mark.parametrize("how", ASYNC)
def test_tokens_of_a_stream_that_was_cut_are_estimated(how: How) -> None:
    """By what had come; nothing came after the cut."""
    model = with_deadline(Streaming(seconds=10))  # or else it is not asked to stream
    graph = chain(asking(model, how), deadline=5, fallback=degrade)
    report = drive(graph, {}, how, virtual=True).report
    (call,) = report.model_calls
    assert call.tokens is not None
    assert call.tokens.output.basis == "estimated"
    assert call.tokens.output.count in (3, 4)  # four seconds of one token each
    assert (call.tokens.after_cut.count, call.tokens.after_cut.basis) == (
        0,
        "estimated",
    )


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
def test_what_a_straggler_used_is_filled_in_when_it_is_told(how: How) -> None:
    """A part of it was generated after the cut."""
    graph = chain(asking(Slow(seconds=1), how), deadline=0.4)
    report = drive(graph, {}, how).report
    (call,) = report.model_calls
    assert call.tokens is not None
    assert call.tokens.output.basis == "absent"
    until = time.monotonic() + 5
    while call.tokens.output.basis == "absent" and time.monotonic() < until:
        time.sleep(0.02)
    assert (call.tokens.output.count, call.tokens.output.basis) == (40, "known")
    assert call.tokens.after_cut.basis == "estimated"
    assert call.tokens.after_cut.count is not None
    assert 0 < call.tokens.after_cut.count < 40


# What each step had.


@pytest.mark.parametrize("how", ASYNC)
def test_a_step_has_its_limit_its_window_and_its_share(how: How) -> None:
    """And says in which step it was."""
    steps = {"a": StepBudget(seconds=4, needs=1), "b": StepBudget(needs=2)}
    inner = chain(napper(how, 1))
    graph = chain(
        napper(how, 2), inner, deadline=DeadlinePolicy(seconds=10, steps=steps)
    )
    report = drive(graph, {}, how, virtual=True).report
    a, b, nested = report.steps
    assert (a.limit, a.window, a.share) == (4, 1, pytest.approx(0.2))
    assert (b.limit, b.window, b.parent) == (None, 2, None)
    assert (nested.name, nested.parent) == ("a", 1)
    assert report.depth(nested) == 1
    assert (nested.start, nested.end) == (pytest.approx(2), pytest.approx(3))


@pytest.mark.parametrize("how", ASYNC)
def test_cancellations_are_counted_as_asked_and_as_obeyed(how: How) -> None:
    """One that swallows its own has not obeyed."""

    async def swallows(state: State) -> State:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)
        return {}

    builder = StateGraph(State)
    for name, node in (("good", napper(how, 60)), ("bad", swallows)):
        builder.add_node(name, node)
        builder.add_edge(START, name)
    report = drive(builder.compile(deadline=5), {}, how, virtual=True).report
    assert report.cancellations.asked == 2
    assert report.cancellations.obeyed == 1
    (straggler,) = report.stragglers
    assert straggler.step is not None
    assert report.steps[straggler.step].name == "bad"


@pytest.mark.parametrize("how", ASYNC)
def test_a_run_inside_a_run_says_so_and_is_in_both_reports(how: How) -> None:
    """With a deadline of its own it has a report of its own."""
    inner = chain(napper(how, 1), deadline=5)
    driven = drive(chain(inner, deadline=30), {}, how, virtual=True)
    nested, outer = driven.reports
    assert nested.parent == outer.id
    assert [step.name for step in nested.steps] == ["a"]
    assert [(step.name, step.parent) for step in outer.steps] == [("a", None), ("a", 0)]


@pytest.mark.parametrize("how", ASYNC)
def test_a_wrapped_model_that_is_streamed_from_is_one_step(how: How) -> None:
    """Two at the same time are two."""
    model = with_deadline(Streaming(seconds=2))

    async def ask(state: State) -> State:
        async def read() -> int:
            return len([chunk async for chunk in model.astream("What is tea?")])

        return {"log": [str(n) for n in await asyncio.gather(read(), read())]}

    report = drive(chain(ask, deadline=30), {}, how, virtual=True).report
    assert [(s.name, s.kind, s.parent) for s in report.steps] == [
        ("a", "node", None),
        ("Streaming", "model", 0),
        ("Streaming", "model", 0),
    ]
