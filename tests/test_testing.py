"""Virtual time: a deadline of hours passes at once, and exactly."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import pytest
from harness import ASYNC, Driven, How, adrive, drive
from langchain_core.tools import tool
from langgraph.graph import START

from langgraph_deadline import (
    Deadline,
    DeadlineExceeded,
    StateGraph,
    _clock,
    collect_runs,
    fail_after,
    remaining,
    testing,
    with_deadline,
)
from langgraph_deadline.testing import (
    DeadlockError,
    VirtualClock,
    VirtualTimeLoop,
    run_virtual,
)


class State(TypedDict, total=False):
    log: str


def one(node: Any, **options: Any) -> Any:
    """Return a graph of one node called `work`."""
    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    return builder.compile(**options)


# The loop.


def test_time_jumps_to_the_next_timer_exactly() -> None:
    """Days pass at once, in the right order, and add up."""
    order: list[tuple[str, float]] = []

    async def nap(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((name, _clock.now() - 1000))

    async def main() -> float:
        await asyncio.gather(nap("c", 86_400), nap("a", 0.25), nap("b", 3600))
        await asyncio.sleep(0.5)
        return _clock.now() - 1000

    assert run_virtual(main()) == 86_400.5
    assert order == [("a", 0.25), ("b", 3600), ("c", 86_400)]


def test_time_stands_still_while_code_runs() -> None:
    """Real work takes no virtual time."""

    async def main() -> None:
        before = _clock.now()
        time.sleep(0.02)
        for _ in range(100):
            await asyncio.sleep(0)
        assert _clock.now() == before

    run_virtual(main())


def test_all_clocks_agree() -> None:
    """The loop's, ours, and the wall's, which moves along."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        wall = _clock.wall()
        assert loop.time() == _clock.now()
        await asyncio.sleep(90)
        assert loop.time() == _clock.now()
        assert _clock.wall() - wall == 90
        tomorrow = datetime.fromtimestamp(_clock.wall(), UTC) + timedelta(days=1)
        assert Deadline.at(tomorrow).remaining() == pytest.approx(86_400)

    run_virtual(main())


def test_asyncios_own_timeouts_are_virtual_too() -> None:
    """`timeout`, `wait_for` and `wait` all stand on the loop's clock."""

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(3600), 60)
        task = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.wait([task], timeout=60)
        task.cancel()
        assert _clock.now() - began == 180

    run_virtual(main())


def test_what_main_returns_and_raises_comes_back() -> None:
    """As from `asyncio.run`."""

    async def fine() -> int:
        return 5

    async def fails() -> None:
        raise KeyError

    assert run_virtual(fine()) == 5
    with pytest.raises(KeyError):
        run_virtual(fails())


def test_the_clock_is_put_back() -> None:
    """Also after an error; other threads and later tests have the real one."""
    before = _clock.now, _clock.wall

    async def fails() -> None:
        await asyncio.sleep(1)
        raise KeyError

    with pytest.raises(KeyError):
        run_virtual(fails())
    assert (_clock.now, _clock.wall) == before
    assert abs(_clock.wall() - time.time()) < 60


def test_tasks_that_are_left_are_cancelled() -> None:
    """As by `asyncio.run`, in virtual time."""
    ended: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(left())
        await asyncio.sleep(0)
        return task

    assert run_virtual(main()).cancelled()
    assert ended == ["cancelled"]


def test_a_clock_of_ones_own_goes_on_from_run_to_run() -> None:
    """So that one can look at it, and move it in between."""
    clock = VirtualClock(start=50)

    async def nap() -> None:
        await asyncio.sleep(10)

    run_virtual(nap(), clock=clock)
    assert clock.monotonic() == 60
    clock.advance(5)
    run_virtual(nap(), clock=clock)
    assert clock.monotonic() == 75


def test_a_new_clock_starts_at_the_same_instant_and_today() -> None:
    """Deadlines are the same on every day; checkpoints carry the real date."""
    first, second = VirtualClock(), VirtualClock()
    assert first.monotonic() == second.monotonic()
    assert abs(first.wall() - time.time()) < 60
    first.advance(5)
    assert second.monotonic() == first.monotonic() - 5


@pytest.mark.parametrize("nap", [0, 0.002])
def test_a_thread_is_given_a_moment_to_end(nap: float) -> None:
    """A quick sync node in an async graph is not overtaken by its deadline."""

    def work(state: State) -> State:
        time.sleep(nap)
        return {"log": "done"}

    graph = one(work, deadline=3600)

    async def main() -> Any:
        began = _clock.now()
        values = await graph.ainvoke({})
        return values, _clock.now() - began

    for _ in range(100):
        assert run_virtual(main()) == ({"log": "done"}, 0)


def test_other_threads_can_wake_the_loop() -> None:
    """`call_soon_threadsafe` works while it would jump or wait."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[str] = loop.create_future()
        timer = threading.Timer(
            0.02, loop.call_soon_threadsafe, (woken.set_result, "woken")
        )
        timer.start()
        return await woken

    assert run_virtual(main()) == "woken"


def test_a_replaced_clock_is_put_back_when_nested() -> None:
    """`use` inside `use`, in order."""
    first, second = VirtualClock(1), VirtualClock(2)
    with _clock.use(first):
        with _clock.use(second):
            assert _clock.now() == 2
        assert _clock.now() == 1
        second.advance(5)
        assert _clock.now() == 1
    assert _clock.now is not first.monotonic


def test_the_context_of_the_caller_is_that_of_main() -> None:
    """Collectors and scopes around `run_virtual` apply inside."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    async def main() -> int:
        return variable.get()

    def inside() -> None:
        variable.set(5)
        assert run_virtual(main()) == 5

    contextvars.copy_context().run(inside)


def test_our_clock_is_virtual_just_while_the_loop_runs() -> None:
    """Whoever runs it: other runners than ours, such as pytest's plugins, do."""
    before = _clock.now
    clock = VirtualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        assert runner.get_loop() is clock.loop
        assert _clock.now is before
        runner.run(asyncio.sleep(60))
        assert _clock.now is before
    assert clock.monotonic() == 1060


# Nothing to wait for.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take it for a deadlock sooner than for users."""
    monkeypatch.setattr(testing, "_PATIENCE", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_deadlock_says_who_waits_and_where() -> None:
    """It would hang for ever."""

    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError) as raised:
        run_virtual(waits_for_ever())
    told = str(raised.value)
    assert "no timer is set" in told
    assert "waits_for_ever" in told
    assert f"{__file__}:" in told


@pytest.mark.usefixtures("impatient")
def test_a_graph_without_a_deadline_that_hangs_is_a_deadlock() -> None:
    """With one, there is a timer."""

    async def work(state: State) -> State:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(DeadlockError, match="work"):
        run_virtual(one(work).ainvoke({}))
    with pytest.raises(DeadlineExceeded):
        run_virtual(one(work).ainvoke({}, deadline=30))


@pytest.mark.usefixtures("impatient")
def test_after_a_deadlock_tasks_are_cancelled_as_ever() -> None:
    """What they clean up takes virtual time."""
    clock = VirtualClock(start=0)

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(30)

    with pytest.raises(DeadlockError):
        run_virtual(main(), clock=clock)
    assert clock.monotonic() == 30


def test_a_thread_that_works_is_no_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, if there is nothing else to go on with."""
    monkeypatch.setattr(testing, "_PATIENCE", 0.05)
    monkeypatch.setattr(testing, "_MOMENT", 0.02)

    async def main() -> float:
        await asyncio.to_thread(time.sleep, 0.3)
        return _clock.now()

    assert run_virtual(main()) == 1000


# Threads that wait in virtual time.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """A clock from 0 on, on which `time.sleep` waits."""
    clock = VirtualClock(start=0)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(_clock, "sleep", clock.sleep)
    return clock


def sleepy(seconds: float, *, times: int = 1) -> Any:
    """Return a sync node that sleeps."""

    def work(state: State) -> State:
        for _ in range(times):
            time.sleep(seconds)
        return {"log": f"at {_clock.now():g}"}

    return work


def test_sync_nodes_sleep_exactly(clock: VirtualClock) -> None:
    """Three times 7 s are 21 s, and no moment of real time decides."""
    began = _clock.now()
    graph = one(sleepy(7, times=3), deadline=30)
    for _ in range(20):
        before = clock.monotonic()
        values = run_virtual(graph.ainvoke({}), clock=clock)
        assert values == {"log": f"at {before + 21:g}"}
        assert clock.monotonic() == before + 21
    assert _clock.now() - began < 4  # 60 naps; each with a moment would take 12


def test_a_sync_node_that_oversleeps_is_cut_exactly(clock: VirtualClock) -> None:
    """At the work deadline; it stands on the report until it wakes."""

    def degrade(state: State) -> State:
        return {"log": f"degraded at {_clock.now():g}"}

    graph = one(sleepy(60), deadline=30, fallback=degrade)

    async def main() -> Any:
        with collect_runs() as runs:
            values = await graph.ainvoke({})
        (straggler,) = runs[0].stragglers
        at_end = straggler.overrun, straggler.running
        await asyncio.sleep(100)
        return values, at_end, (straggler.overrun, straggler.running)

    values, at_end, later = run_virtual(main(), clock=clock)
    assert values == {"log": "degraded at 24"}
    assert at_end == (0, True)
    assert later == (36, False)


def test_at_one_instant_the_deadline_comes_before_the_thread(
    clock: VirtualClock,
) -> None:
    """Always, so that a test does not depend on which is scheduled first."""
    graph = one(sleepy(30), deadline=30)
    for _ in range(20):
        with pytest.raises(DeadlineExceeded):
            run_virtual(graph.ainvoke({}), clock=clock)


def test_threads_and_tasks_wake_in_the_order_of_their_time(clock: VirtualClock) -> None:
    """Nodes and calls of the executor, side by side."""
    order: list[tuple[str, float]] = []

    def nap(name: str, seconds: float) -> None:
        time.sleep(seconds)
        order.append((name, _clock.now()))

    async def anap(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((name, _clock.now()))

    def node(state: State) -> State:
        nap("node", 3)
        return {}

    async def main() -> None:
        await asyncio.gather(
            asyncio.to_thread(nap, "executor", 4),
            anap("task", 2),
            one(node, deadline=60).ainvoke({}),
            asyncio.to_thread(nap, "executor", 1),
        )

    run_virtual(main(), clock=clock)
    assert order == [("executor", 1), ("task", 2), ("node", 3), ("executor", 4)]


def test_tools_and_functions_in_threads_sleep_exactly(clock: VirtualClock) -> None:
    """What runs in a copy of the step's context belongs to the step."""

    @tool
    def crawl(site: str) -> str:
        """Read a whole site."""
        time.sleep(5)
        return site

    async def main() -> Any:
        return await with_deadline(crawl, 10).ainvoke({"site": "it"})

    assert run_virtual(main(), clock=clock) == "it"
    assert clock.monotonic() == 5


def test_a_sleep_in_the_event_loop_blocks_it(clock: VirtualClock) -> None:
    """The run is late by as much, and the report says who did it."""

    async def work(state: State) -> State:
        time.sleep(50)
        return {}

    driven = Driven()

    async def main() -> None:
        nonlocal driven
        driven = await adrive(one(work, deadline=30), {}, "ainvoke")

    run_virtual(main(), clock=clock)
    assert driven.elapsed == 50
    (straggler,) = driven.report.stragglers
    assert straggler.blocked_loop
    assert straggler.overrun == 20


def test_other_threads_sleep_in_real_time(clock: VirtualClock) -> None:
    """The clock is not theirs to wait for, nor is it theirs to hold up."""
    ended = threading.Event()

    def other() -> None:
        time.sleep(0.05)
        ended.set()

    async def main() -> None:
        threading.Thread(target=other).start()
        await asyncio.sleep(3600)

    run_virtual(main(), clock=clock)
    assert ended.wait(5)
    assert clock.monotonic() == 3600


def test_threads_that_sleep_end_with_the_loop(clock: VirtualClock) -> None:
    """No straggler is left behind to sleep for the rest of the session."""
    before = set(threading.enumerate())
    graph = one(sleepy(10, times=1000), deadline=30)
    with pytest.raises(DeadlineExceeded):
        run_virtual(graph.ainvoke({}), clock=clock)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


# As users use it.


@pytest.mark.parametrize("how", ASYNC)
def test_a_graph_under_a_deadline_of_hours_is_tested_at_once(how: How) -> None:
    """The example of the module's documentation."""

    async def work(state: State) -> State:
        await asyncio.sleep(86_400)
        return {}

    def degrade(state: State) -> State:
        return {"log": f"degraded with {remaining():.0f} s left"}

    graph = one(work, deadline=7200, fallback=degrade)
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values == {"log": "degraded with 1440 s left"}
    assert driven.elapsed == 5760


def test_two_runs_in_virtual_time_are_the_same() -> None:
    """To the last digit."""

    async def work(state: State) -> State:
        await asyncio.sleep(0.1)
        with fail_after(0.7):
            await asyncio.sleep(1)
        return {}

    def once() -> Any:
        driven = drive(one(work, deadline=5), {}, "ainvoke", virtual=True)
        assert isinstance(driven.error, DeadlineExceeded)
        told = driven.report.model_dump(exclude={"id", "started"})
        return driven.error.elapsed, driven.elapsed, told

    assert once() == once()
