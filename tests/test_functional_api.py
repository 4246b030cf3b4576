"""The functional API: entrypoints and their tasks under one deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from harness import ALL, ASYNC, SYNC, How, drive, took
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.pregel import Pregel
from langgraph.types import CachePolicy, Command, RetryPolicy, interrupt

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    check,
    current_deadline,
    remaining,
    with_deadline,
)

THREAD = {"configurable": {"thread_id": "1"}}
Times = dict[str, float]


class Bench:
    """Tasks `a`, `b`, ... that each take some seconds, and what became of them."""

    def __init__(self, how: How, times: Times, **options: Any) -> None:
        self.how = how
        self.times = times
        self.started: list[str] = []
        self.finished: list[str] = []
        self.tasks = {name: self._task(name, **options) for name in times}

    def _task(self, name: str, **options: Any) -> Any:
        def work(value: str) -> str:
            self.started.append(name)
            time.sleep(self.times[name])
            self.finished.append(name)
            return f"{value}{name}"

        async def awork(value: str) -> str:
            self.started.append(name)
            await asyncio.sleep(self.times[name])
            self.finished.append(name)
            return f"{value}{name}"

        body = work if self.how in SYNC else awork
        body.__name__ = name
        return task(**options)(body) if options else task(body)

    def one_after_the_other(self, **options: Any) -> Any:
        """Return an entrypoint that runs the tasks in order."""
        if self.how in SYNC:

            @entrypoint(**options)
            def flow(value: str) -> str:
                for each in self.tasks.values():
                    value = each(value).result()
                return value

            return flow

        @entrypoint(**options)
        async def aflow(value: str) -> str:
            for each in self.tasks.values():
                value = await each(value)
            return value

        return aflow

    def side_by_side(self, **options: Any) -> Any:
        """Return an entrypoint that starts all tasks and then waits for them."""
        if self.how in SYNC:

            @entrypoint(**options)
            def flow(value: str) -> str:
                futures = [each(value) for each in self.tasks.values()]
                return " ".join(future.result() for future in futures)

            return flow

        @entrypoint(**options)
        async def aflow(value: str) -> str:
            futures = [each(value) for each in self.tasks.values()]
            return " ".join(await asyncio.gather(*futures))

        return aflow


def late(value: str) -> str:
    """Answer from the entrypoint's input."""
    return f"late {value}"


async def alate(value: str) -> str:
    """Answer from the entrypoint's input."""
    return f"late {value}"


# With time enough.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("shape", ["one_after_the_other", "side_by_side"])
def test_functional_with_time_enough_nothing_changes(how: How, shape: str) -> None:
    """Result, updates and state are those of the plain entrypoint."""
    results = []
    for bound in (False, True):
        bench = Bench(how, {"a": 0.01, "b": 0.01, "c": 0})
        flow = getattr(bench, shape)(checkpointer=InMemorySaver())
        graph = with_deadline(flow, 30, fallback=late) if bound else flow
        driven = drive(graph, "x", how, THREAD, virtual=True)
        state = graph.get_state(THREAD).values
        key = driven.updates if shape == "one_after_the_other" else None
        results.append((driven.values, driven.error, key, state, bench.finished))
    assert results[0][:4] == results[1][:4]
    assert results[1][0] in ("xabc", "xa xb xc")


@pytest.mark.parametrize("how", ALL)
def test_functional_the_copy_is_an_entrypoint_too(how: How) -> None:
    """`with_deadline` returns a copy of the same type; the original stays as it was."""
    bench = Bench(how, {"a": 0.4})
    flow = bench.one_after_the_other()
    graph = with_deadline(flow, 0.1)
    assert isinstance(graph, Pregel)
    assert isinstance(graph, type(flow))
    assert isinstance(drive(graph, "x", how, virtual=True).error, DeadlineExceeded)
    assert drive(flow, "x", how, virtual=True).values == "xa"


@pytest.mark.parametrize("how", ALL)
def test_functional_tasks_see_the_deadline(how: How) -> None:
    """`remaining()` is the run's everywhere, and there is none without one."""
    seen: list[Any] = []

    def look() -> None:
        deadline = current_deadline()
        seen.append(None if deadline is None else deadline.remaining())

    @task
    def looks() -> None:
        look()

    @task
    async def alooks() -> None:
        look()

    @entrypoint()
    def flow(value: str) -> None:
        look()
        looks().result()

    @entrypoint()
    async def aflow(value: str) -> None:
        look()
        await alooks()

    graph = with_deadline(flow if how in SYNC else aflow, 30)
    drive(graph, "x", how, virtual=True)
    assert seen == [pytest.approx(30, abs=2)] * 2
    seen.clear()
    drive(flow if how in SYNC else aflow, "x", how, virtual=True)
    assert seen == [None, None]


# A task that hangs.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("shape", ["one_after_the_other", "side_by_side"])
def test_functional_a_hanging_task_is_cut_on_time(how: How, shape: str) -> None:
    """The error comes at the deadline; tasks behind the cut one never start."""
    bench = Bench(how, {"a": 0.02, "hangs": 1.5, "c": 0.02})
    graph = with_deadline(getattr(bench, shape)(), 0.4)
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "deadline"
    assert took(driven, 0.4, how)
    assert driven.report.outcome == "deadline"
    if shape == "one_after_the_other":
        assert bench.started == ["a", "hangs"]
    if how in SYNC:
        time.sleep(1.4)
    assert "c" not in bench.started or shape == "side_by_side"


@pytest.mark.parametrize("how", ALL)
def test_functional_a_hanging_entrypoint_is_cut_on_time(how: How) -> None:
    """The body of the entrypoint is work like any other."""

    @entrypoint()
    def flow(value: str) -> None:
        time.sleep(1.5)

    @entrypoint()
    async def aflow(value: str) -> None:
        await asyncio.sleep(60)

    graph = with_deadline(flow if how in SYNC else aflow, 0.3)
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.3, how)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_functional_a_sync_task_of_an_async_entrypoint_is_cut_on_time(
    how: How,
) -> None:
    """A blocking task is given up, and does not keep `asyncio.run`."""
    ended = threading.Event()

    @task
    def blocks() -> str:
        time.sleep(1.5)
        ended.set()
        return "woke up"

    @entrypoint()
    async def flow(value: str) -> str:
        return await blocks()

    driven = drive(with_deadline(flow, 0.3), "x", how)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed < 1.2
    assert not ended.is_set()
    assert driven.report.stragglers
    ended.wait(3)


@pytest.mark.parametrize("how", ALL)
def test_functional_the_fallback_gets_the_input(how: How) -> None:
    """A callable answers in the reserve; its result is the run's."""
    bench = Bench(how, {"a": 0.02, "hangs": 1.5})
    policy = DeadlinePolicy(seconds=1, reserve=0.7, cancel_grace=0.1)
    flow = bench.one_after_the_other()
    fallback = late if how in SYNC else alate
    graph = with_deadline(flow, policy, fallback=fallback)
    driven = drive(graph, "x", how, virtual=True)
    assert driven.error is None
    assert driven.values == "late x"
    assert took(driven, 0.3, how, margin=0.65)
    assert driven.report.outcome == "deadline"
    assert [s.name for s in driven.report.steps if s.kind == "fallback"] == [
        fallback.__name__
    ]


@pytest.mark.parametrize("how", ALL)
def test_functional_many_cut_tasks_have_one_fallback(how: How) -> None:
    """Thirty tasks that hang together are one reason to fall back."""
    ran: list[str] = []

    def once(value: str) -> str:
        ran.append(value)
        return "once"

    bench = Bench(how, {f"t{n}": 1.2 for n in range(30)})
    policy = DeadlinePolicy(seconds=1.5, reserve=1.2, cancel_grace=0.1)
    graph = with_deadline(bench.side_by_side(), policy, fallback=once)
    config = {"max_concurrency": 100}
    driven = drive(graph, "x", how, config)
    assert driven.values == "once"
    assert ran == ["x"]
    assert driven.elapsed < 1.5 + 0.6


@pytest.mark.parametrize("how", ALL)
def test_functional_a_fallback_that_hangs_is_cut_too(how: How) -> None:
    """The last word is the deadline's."""

    def hangs(value: str) -> None:
        time.sleep(1.5)

    async def ahangs(value: str) -> None:
        await asyncio.sleep(60)

    bench = Bench(how, {"a": 1.5})
    policy = DeadlinePolicy(seconds=0.5, reserve=0.2, cancel_grace=0)
    fallback = hangs if how in SYNC else ahangs
    graph = with_deadline(bench.one_after_the_other(), policy, fallback=fallback)
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert 0.49 <= driven.elapsed <= (0.56 if how in ASYNC else 1.4)


@pytest.mark.parametrize("how", ALL)
def test_functional_return_gives_no_result(how: How) -> None:
    """Under `"return"` there is no error, and no result that was never made."""
    bench = Bench(how, {"a": 0.02, "hangs": 1.5})
    policy = DeadlinePolicy(seconds=0.3, on_exceeded="return")
    graph = with_deadline(bench.one_after_the_other(), policy)
    driven = drive(graph, "x", how, virtual=True)
    assert driven.error is None
    assert driven.values is None
    assert took(driven, 0.3, how)
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_functional_nothing_starts_after_the_cut(how: How) -> None:
    """An entrypoint that swallows the cut and goes on cannot start a task any more."""
    started: list[str] = []
    refused: list[type[BaseException]] = []
    done = threading.Event()

    @task
    def more() -> None:
        started.append("more")

    @entrypoint()
    def flow(value: str) -> str:
        time.sleep(0.6)
        try:
            more().result()
        except BaseException as error:  # noqa: BLE001 - what a careless user writes
            refused.append(type(error))
        done.set()
        return "plain success"

    @entrypoint()
    async def aflow(value: str) -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        try:
            await more()
        except BaseException as error:  # noqa: BLE001 - what a careless user writes
            refused.append(type(error))
        done.set()
        return "plain success"

    graph = with_deadline(flow if how in SYNC else aflow, 0.2)
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert done.wait(3)
    assert started == []
    assert len(refused) == 1
    assert issubclass(refused[0], DeadlineExceeded | asyncio.CancelledError)


@pytest.mark.parametrize("how", ALL)
def test_functional_a_caught_cut_is_no_success(how: How) -> None:
    """An entrypoint may catch a task's cut, but not make the run a success with it."""
    bench = Bench(how, {"hangs": 1.5})

    @entrypoint()
    def flow(value: str) -> str:
        try:
            return str(bench.tasks["hangs"](value).result())
        except BaseException:  # noqa: BLE001 - what a careless user writes
            return "plain success"

    @entrypoint()
    async def aflow(value: str) -> str:
        try:
            return str(await bench.tasks["hangs"](value))
        except BaseException:  # noqa: BLE001 - what a careless user writes
            return "plain success"

    graph = with_deadline(flow if how in SYNC else aflow, 0.3)
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_functional_check_in_a_task_raises(how: How) -> None:
    """A task may ask whether its time will do; the entrypoint may take the error."""

    @task
    def picky() -> str:
        check(needs=20)
        return "picky"

    @task
    async def apicky() -> str:
        check(needs=20)
        return "picky"

    @entrypoint()
    def flow(value: str) -> str:
        try:
            return str(picky().result())
        except DeadlineExceeded as error:
            return f"{error.cause} {error.step}"

    @entrypoint()
    async def aflow(value: str) -> str:
        try:
            return str(await apicky())
        except DeadlineExceeded as error:
            return f"{error.cause} {error.step}"

    graph = with_deadline(flow if how in SYNC else aflow, 10)
    driven = drive(graph, "x", how, virtual=True)
    assert driven.values in ("window picky", "window apicky")
    assert driven.report.outcome == "completed"


# Retries on tasks.


def flaky(how: How, fails: int, policy: RetryPolicy, seconds: float = 0.0) -> Any:
    """Return an entrypoint whose task fails `fails` times, and its attempts."""
    attempts: list[float] = []

    def begin() -> None:
        attempts.append(remaining())

    def end() -> str:
        if len(attempts) <= fails:
            raise ConnectionError
        return f"attempt {len(attempts)}"

    @task(retry_policy=policy)
    def work() -> str:
        begin()
        time.sleep(seconds)
        return end()

    @task(retry_policy=policy)
    async def awork() -> str:
        begin()
        await asyncio.sleep(seconds)
        return end()

    @entrypoint(checkpointer=InMemorySaver())
    def flow(value: str) -> str:
        return str(work().result())

    @entrypoint(checkpointer=InMemorySaver())
    async def aflow(value: str) -> str:
        return str(await awork())

    return (flow if how in SYNC else aflow), attempts


def every(seconds: float, attempts: int = 5) -> RetryPolicy:
    return RetryPolicy(
        initial_interval=seconds,
        backoff_factor=1,
        max_attempts=attempts,
        jitter=False,
    )


@pytest.mark.parametrize("how", ALL)
def test_functional_a_task_is_retried_where_it_fits(how: How) -> None:
    """Attempts and back-offs of a task share the deadline."""
    flow, attempts = flaky(how, 2, every(0.05))
    driven = drive(with_deadline(flow, 3), "x", how, THREAD, virtual=True)
    assert driven.values == "attempt 3"
    assert took(driven, 0.1, how)
    assert attempts == sorted(attempts, reverse=True)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("answered", [True, False], ids=["fallback", "raise"])
def test_functional_a_tasks_back_off_that_does_not_fit_is_not_slept(
    how: How, answered: bool
) -> None:
    """The run stops at the failure, not at its deadline."""
    flow, attempts = flaky(how, 5, every(60), 0.05)
    graph = with_deadline(flow, 2.5, fallback=late if answered else None)
    driven = drive(graph, "x", how, THREAD)
    assert len(attempts) == 1
    assert driven.elapsed < 1
    if answered:
        assert driven.values == "late x"
    else:
        assert isinstance(driven.error, DeadlineExceeded)
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ALL)
def test_functional_a_cut_task_is_not_retried(how: How) -> None:
    """Whatever its policy would retry."""
    policy = every(0.01, 50)._replace(retry_on=Exception)
    flow, attempts = flaky(how, 50, policy, 1.2)
    driven = drive(with_deadline(flow, 0.3), "x", how, THREAD, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.3, how)
    if how in SYNC:
        time.sleep(1.2)
    assert len(attempts) == 1


@pytest.mark.parametrize("how", ALL)
def test_functional_a_tasks_own_error_goes_up(how: How) -> None:
    """An error without anything to do with time is the entrypoint's."""
    flow, attempts = flaky(how, 5, every(0.01, 2))
    driven = drive(with_deadline(flow, 3), "x", how, THREAD, virtual=True)
    assert isinstance(driven.error, ConnectionError)
    assert len(attempts) == 2
    assert driven.report.outcome == "error"


# Resumes.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("shape", ["one_after_the_other", "side_by_side"])
def test_functional_a_resume_runs_only_what_did_not_finish(
    how: How, shape: str
) -> None:
    """`invoke(None)` after `"raise"` takes finished tasks from the checkpoint."""
    bench = Bench(how, {"a": 0.02, "b": 0.02, "hangs": 1.2})
    flow = getattr(bench, shape)(checkpointer=InMemorySaver())
    graph = with_deadline(flow, 0.4)
    driven = drive(graph, "x", how, THREAD, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert sorted(bench.started) == ["a", "b", "hangs"]
    if how in SYNC:
        time.sleep(1.2)  # what was cut ends, and must not count
    bench.started.clear()
    bench.times["hangs"] = 0.02
    driven = drive(graph, None, how, THREAD, virtual=True)
    assert driven.error is None
    assert driven.values in ("xabhangs", "xa xb xhangs")
    assert bench.started == ["hangs"]
    assert driven.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
def test_functional_a_new_input_after_a_cut_starts_anew(how: How) -> None:
    """The thread's next input is as on a fresh thread."""
    bench = Bench(how, {"a": 0.02, "hangs": 0.9})
    flow = bench.one_after_the_other(checkpointer=InMemorySaver())
    graph = with_deadline(flow, 0.4)
    driven = drive(graph, "x", how, THREAD, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    bench.started.clear()
    bench.times["hangs"] = 0.02
    driven = drive(graph, "y", how, THREAD, virtual=True)
    assert driven.values == "yahangs"
    assert bench.started == ["a", "hangs"]
    assert graph.get_state(THREAD).next == ()


@pytest.mark.parametrize("how", ALL)
def test_functional_the_previous_result_is_kept_over_a_cut(how: How) -> None:
    """`previous` is the last run's that had a result, with its fallback or without."""

    @entrypoint(checkpointer=InMemorySaver())
    def flow(seconds: float, *, previous: Any = None) -> str:
        time.sleep(seconds)
        return f"{previous} then {seconds}"

    @entrypoint(checkpointer=InMemorySaver())
    async def aflow(seconds: float, *, previous: Any = None) -> str:
        await asyncio.sleep(seconds)
        return f"{previous} then {seconds}"

    graph = with_deadline(flow if how in SYNC else aflow, 0.4)
    assert drive(graph, 0, how, THREAD, virtual=True).values == "None then 0"
    cut = drive(graph, 0.8, how, THREAD, virtual=True)
    assert isinstance(cut.error, DeadlineExceeded)
    again = drive(graph, 0, how, THREAD, virtual=True)
    assert again.values == "None then 0 then 0"


@pytest.mark.parametrize("how", ALL)
def test_functional_an_interrupt_is_not_work(how: How) -> None:
    """A question in a task waits as long as it likes; what was left is kept."""
    seen: list[float] = []

    @task
    def ask() -> str:
        return str(interrupt("?"))

    @task
    async def aask() -> str:
        return str(interrupt("?"))

    @entrypoint(checkpointer=InMemorySaver())
    def flow(value: str) -> str:
        answer = ask().result()
        seen.append(remaining())
        return f"{value} {answer}"

    @entrypoint(checkpointer=InMemorySaver())
    async def aflow(value: str) -> str:
        answer = await aask()
        seen.append(remaining())
        return f"{value} {answer}"

    graph = with_deadline(flow if how in SYNC else aflow, 3, fallback=late)
    driven = drive(graph, "x", how, THREAD)
    assert driven.error is None
    assert driven.report.interrupted
    time.sleep(0.5)
    driven = drive(graph, Command(resume="yes"), how, THREAD)
    assert driven.values == "x yes"
    assert seen[-1] > 3 * 0.8 - 0.45


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("mode", ["raise", "return"])
def test_functional_an_answer_to_a_question_beside_a_cut_has_a_fresh_budget(
    mode: str, how: How
) -> None:
    """A task asks while another one is cut: the entrypoint goes on with the answer."""
    bench = Bench(how, {"hangs": 60.0})
    seen: list[float] = []

    @task
    async def ask() -> str:
        seen.append(remaining())
        return str(interrupt("?"))

    @entrypoint(checkpointer=InMemorySaver())
    async def flow(value: str) -> str:
        return " ".join(await asyncio.gather(ask(), bench.tasks["hangs"](value)))

    policy = DeadlinePolicy(seconds=10, on_exceeded=mode)
    graph = with_deadline(flow, policy)
    cut = drive(graph, "x", how, THREAD, virtual=True)
    assert cut.elapsed == 10
    assert cut.report.outcome == "deadline"
    bench.times["hangs"] = 1.0
    again = drive(graph, Command(resume="yes"), how, THREAD, virtual=True)
    assert again.error is None
    assert again.values == "yes xhangs"
    assert seen == [10, 10]
    assert again.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
def test_functional_a_cut_task_is_not_cached(how: How) -> None:
    """A task that was cut is computed the next time; one that finished is not."""
    times = {"a": 0.02, "hangs": 0.9}
    bench = Bench(how, times, cache_policy=CachePolicy())
    flow = bench.one_after_the_other(cache=InMemoryCache())
    graph = with_deadline(flow, 0.4)
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    if how in SYNC:
        time.sleep(0.9)
    bench.started.clear()
    bench.times["hangs"] = 0.02
    driven = drive(graph, "x", how, virtual=True)
    assert driven.values == "xahangs"
    assert bench.started == ["hangs"]


# Per call, and nested.


@pytest.mark.parametrize("how", ALL)
def test_functional_a_call_may_have_its_own_deadline(how: How) -> None:
    """`deadline=` replaces the budget for one run."""
    bench = Bench(how, {"a": 0.5})
    graph = with_deadline(bench.one_after_the_other(), 0.2)
    assert drive(graph, "x", how, virtual=True, deadline=5).values == "xa"
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)


@pytest.mark.parametrize("how", ALL)
def test_functional_an_entrypoint_inside_a_task_shares_the_deadline(how: How) -> None:
    """A plain entrypoint called by a bounded one ends with it."""
    bench = Bench(how, {"a": 0.02, "hangs": 1.2})
    inner = bench.one_after_the_other()

    @task
    def call() -> str:
        return str(inner.invoke("x"))

    @task
    async def acall() -> str:
        return str(await inner.ainvoke("x"))

    @entrypoint()
    def flow(value: str) -> str:
        return str(call().result())

    @entrypoint()
    async def aflow(value: str) -> str:
        return str(await acall())

    graph = with_deadline(flow if how in SYNC else aflow, 0.3)
    driven = drive(graph, "x", how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert 0.29 <= driven.elapsed <= (0.56 if how in ASYNC else 1.1)


@pytest.mark.parametrize("how", ALL)
def test_functional_a_task_called_by_a_graphs_node_is_bounded(how: How) -> None:
    """Tasks may be used in nodes as well."""
    from langgraph.graph import START

    from langgraph_deadline import StateGraph

    bench = Bench(how, {"hangs": 1.2})

    def node(state: dict[str, Any]) -> dict[str, Any]:
        return {"x": bench.tasks["hangs"]("x").result()}

    async def anode(state: dict[str, Any]) -> dict[str, Any]:
        return {"x": await bench.tasks["hangs"]("x")}

    builder = StateGraph(dict)
    builder.add_node("node", node if how in SYNC else anode)
    builder.add_edge(START, "node")
    driven = drive(builder.compile(deadline=0.3), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert took(driven, 0.3, how)


@pytest.mark.parametrize(
    ("fallback", "name"),
    [(late, "late"), (lambda value: "lambda", "fallback")],
    ids=["function", "lambda"],
)
def test_functional_the_fallback_is_a_node_of_the_copy(
    fallback: Callable[[str], str], name: str
) -> None:
    """It is named like the fallback of a graph."""
    flow = Bench("invoke", {"a": 0}).one_after_the_other()
    graph = with_deadline(flow, 1, fallback=fallback)
    assert name in graph.nodes
    assert name not in flow.nodes
    assert graph.invoke("x") == "xa"
