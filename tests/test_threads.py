"""Threads for work that may never come back: used again, given up, never waited for."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from langgraph_deadline._threads import Bell, Job, Pool, busy

NAME = "test-pool"


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Return a pool whose threads are gone after the test."""
    pool = Pool(NAME)
    yield pool
    pool.close()
    wait_until(lambda: not threads())


def threads() -> list[threading.Thread]:
    """Return the live threads of the pool under test."""
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait for a condition that other threads bring about."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.002)


def run(pool: Pool, fn: Callable[[], Any]) -> Job:
    """Call `fn` in a thread of the pool and wait for its end."""
    bell = Bell()
    job = pool.start(contextvars.copy_context(), fn, bell.ring)
    while not job.done:
        assert bell.wait(5)
    return job


class OwnError(Exception):
    """An error of the user's."""


class Thing:
    """Something that can be referred to weakly."""


# Jobs.


def test_a_job_hands_over_what_its_function_returns(pool: Pool) -> None:
    """From another thread, a daemon."""

    def work() -> threading.Thread:
        return threading.current_thread()

    thread = run(pool, work).take()
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name == NAME


@pytest.mark.parametrize(
    "kind", [OwnError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
def test_a_job_hands_over_what_its_function_raises(
    pool: Pool, kind: type[BaseException]
) -> None:
    """Whatever it is, it ends no thread and is printed by nobody."""

    def work() -> None:
        raise kind

    job = run(pool, work)
    with pytest.raises(kind):
        job.take()
    assert run(pool, lambda: 5).take() == 5


def test_a_job_runs_in_the_context_it_was_given(pool: Pool) -> None:
    """What it sets there stays there."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    context.run(variable.set, "inside")
    bell = Bell()
    seen: list[str] = []

    def work() -> None:
        seen.append(variable.get())
        variable.set("changed")

    pool.start(context, work, bell.ring)
    assert bell.wait(5)
    assert seen == ["inside"]
    assert context.run(variable.get) == "changed"
    assert variable.get(None) is None
    assert run(pool, lambda: variable.get(None)).take() is None


def test_an_error_is_no_reference_cycle(pool: Pool) -> None:
    """It goes with its last reference, without the collector."""

    def work() -> None:
        raise OwnError

    def take() -> weakref.ref[BaseException]:
        try:
            run(pool, work).take()
        except OwnError as error:
            return weakref.ref(error)
        pytest.fail("not reached")

    gc.collect()
    gc.disable()
    try:
        kept = take()
        wait_until(lambda: not busy())
        assert kept() is None
    finally:
        gc.enable()


def test_an_idle_thread_keeps_no_result_alive(pool: Pool) -> None:
    """Once its job was taken, the result is the taker's alone."""

    def take() -> weakref.ref[Thing]:
        thing: Thing = run(pool, Thing).take()
        return weakref.ref(thing)

    kept = take()
    wait_until(lambda: not busy())
    wait_until(lambda: kept() is None)
    assert threads()


# Threads.


def test_a_thread_is_used_again(pool: Pool) -> None:
    """A hundred jobs one after the other need one thread."""
    idents = {run(pool, threading.get_ident).take() for _ in range(100)}
    assert len(idents) == 1


def test_jobs_at_the_same_time_have_a_thread_each(pool: Pool) -> None:
    """There is no limit that could make one wait for another."""
    together = threading.Barrier(20)
    bell = Bell()
    jobs = [
        pool.start(contextvars.copy_context(), lambda: together.wait(5), bell.ring)
        for _ in range(20)
    ]
    wait_until(lambda: all(job.done for job in jobs))
    assert sorted(job.take() for job in jobs) == list(range(20))


def test_closing_ends_the_idle_threads_before_it_returns() -> None:
    """None is left behind."""
    pool = Pool(NAME)
    together = threading.Barrier(5)
    jobs = [
        pool.start(contextvars.copy_context(), lambda: together.wait(5), lambda: None)
        for _ in range(5)
    ]
    wait_until(lambda: all(job.done for job in jobs) and not busy())
    assert len(threads()) == 5
    pool.close()
    assert threads() == []


def test_closing_does_not_wait_for_a_busy_thread_which_ends_with_its_job() -> None:
    """A thread that was given up is not used again either."""
    pool, leave = Pool(NAME), threading.Event()
    job = pool.start(contextvars.copy_context(), lambda: leave.wait(3), lambda: None)
    pool.close()
    assert not job.done
    assert len(threads()) == 1
    leave.set()
    wait_until(lambda: not threads())
    assert job.done


def test_a_pool_can_be_closed_by_one_of_its_own_threads() -> None:
    """A run that ends in a thread of the run around it does not wait for itself."""
    pool = Pool(NAME)
    assert run(pool, pool.close).done
    wait_until(lambda: not threads())


def test_closing_twice_and_while_jobs_end_leaves_no_thread() -> None:
    """However the two meet."""
    for _ in range(200):
        pool, bell = Pool(NAME), Bell()
        for _ in range(3):
            pool.start(contextvars.copy_context(), lambda: None, bell.ring)
        assert bell.wait(5)
        pool.close()
        pool.close()
    wait_until(lambda: not threads())


def test_a_job_started_after_closing_is_done_and_leaves_no_thread() -> None:
    """A straggler may ask for a thread when its run is over."""
    pool = Pool(NAME)
    run(pool, lambda: None)
    pool.close()
    assert run(pool, lambda: 5).take() == 5
    wait_until(lambda: not threads())


def test_busy_tells_whether_some_job_is_being_done(pool: Pool) -> None:
    """Virtual time gives threads a moment by it."""
    wait_until(lambda: not busy())
    leave, bell = threading.Event(), Bell()
    pool.start(contextvars.copy_context(), lambda: leave.wait(3), bell.ring)
    assert busy()
    leave.set()
    wait_until(lambda: not busy())


@pytest.mark.realtime
def test_c12_a_blocked_thread_does_not_hold_up_the_interpreters_exit() -> None:
    """Neither at the end of a script nor at that of `asyncio.run`."""
    script = """
import asyncio, contextvars, time
from langgraph_deadline._threads import Pool

async def main():
    pool = Pool("p")
    call = asyncio.ensure_future(
        pool.call(contextvars.copy_context(), lambda: time.sleep(60), lambda job: None)
    )
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait([call])
    pool.close()

asyncio.run(main())
Pool("q").start(contextvars.copy_context(), lambda: time.sleep(60), lambda: None)
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "end\n"
    assert done.stderr == ""


# Late jobs.


def test_when_late_is_told_the_time_of_the_end_once(pool: Pool) -> None:
    """Also where the job ended just before it was given up."""
    ends: list[float] = []
    leave, bell = threading.Event(), Bell()
    job = pool.start(contextvars.copy_context(), lambda: leave.wait(3), bell.ring)
    job.when_late(ends.append)
    assert ends == []
    leave.set()
    assert bell.wait(5)
    assert ends == [job.ended]
    early = run(pool, lambda: None)
    early.when_late(ends.append)
    assert ends == [job.ended, early.ended]


# Awaited calls.


def test_a_call_can_be_awaited(pool: Pool) -> None:
    """With the result or the error of the function."""

    def fails() -> None:
        raise OwnError

    async def main() -> None:
        context = contextvars.copy_context()
        unused: list[Job] = []
        assert await pool.call(context, lambda: 5, unused.append) == 5
        with pytest.raises(OwnError):
            await pool.call(contextvars.copy_context(), fails, unused.append)
        assert unused == []

    asyncio.run(main())


def test_a_cancelled_call_leaves_its_job_to_whoever_asked(pool: Pool) -> None:
    """The caller is free at once, the thread goes on."""
    leave = threading.Event()
    late: list[Job] = []

    async def main() -> None:
        call = asyncio.create_task(
            pool.call(contextvars.copy_context(), lambda: leave.wait(3), late.append)
        )
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [job.done for job in late] == [False]

    asyncio.run(main())
    leave.set()
    # The loop is closed by now: the job's end is nobody's business any more.
    wait_until(lambda: late[0].done and not busy())


@pytest.mark.parametrize("times", [300])
def test_a_loop_that_closes_while_a_call_ends_is_no_error(
    pool: Pool, times: int
) -> None:
    """`call_soon_threadsafe` on a closed loop raises: the thread must not see it."""
    problems: list[Any] = []
    before = threading.excepthook
    threading.excepthook = problems.append
    try:
        for _ in range(times):
            asyncio.run(_cancel_at_once(pool))
        wait_until(lambda: not busy())
    finally:
        threading.excepthook = before
    assert problems == []


async def _cancel_at_once(pool: Pool) -> None:
    call = asyncio.create_task(
        pool.call(contextvars.copy_context(), lambda: None, lambda job: None)
    )
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])


# Bells.


def test_a_bell_that_rang_before_is_not_waited_for() -> None:
    """Rings that come early are not lost."""
    bell = Bell()
    bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)


def test_a_bell_wakes_whoever_waits() -> None:
    """From another thread."""
    bell = Bell()
    threading.Timer(0.05, bell.ring).start()
    assert bell.wait(5)


@pytest.mark.parametrize("seconds", [0, -1, -1e9, 0.001])
def test_a_bell_that_does_not_ring_is_waited_for_no_longer(seconds: float) -> None:
    """Negative seconds are none."""
    assert not Bell().wait(seconds)


@pytest.mark.parametrize("seconds", [None, 1e12, 1e300, threading.TIMEOUT_MAX * 2])
def test_a_bell_can_be_waited_for_for_ever(seconds: float | None) -> None:
    """No lock is asked for more than it can wait."""
    bell = Bell()
    threading.Timer(0.02, bell.ring).start()
    assert bell.wait(seconds)
