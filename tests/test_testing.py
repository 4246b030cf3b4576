"""Virtual time: a deadline of hours passes at once, and exactly."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import pytest
from harness import ASYNC, How, drive
from langgraph.graph import START

from langgraph_deadline import (
    Deadline,
    DeadlineExceeded,
    StateGraph,
    _clock,
    fail_after,
    remaining,
)
from langgraph_deadline.testing import VirtualClock, VirtualTimeLoop, run_virtual


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
        return driven.error.elapsed, driven.elapsed, driven.report.model_dump()

    assert once() == once()
