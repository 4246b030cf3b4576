"""The verbs: trio's meaning of a deadline, CPython's way to cancel, as faults."""

# ruff: noqa: SIM117 - what happens inside the blocks is what is looked at

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any, TypedDict

import pytest
from harness import ALL, ASYNC, Driven, How, adrive, drive
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.graph import START

from langgraph_deadline import (
    Deadline,
    DeadlineExceeded,
    RunControl,
    StateGraph,
    _clock,
    check,
    current_deadline,
    detach,
    fail_after,
    move_on_after,
    remaining,
    shield,
)
from langgraph_deadline.testing import VirtualClock, run_virtual

VERBS = (fail_after, move_on_after)
verbs = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    """Give sync code a clock that moves only when told to."""
    virtual = VirtualClock()
    with _clock.use(virtual):
        yield virtual


def task() -> asyncio.Task[Any]:
    """Return the current task."""
    current = asyncio.current_task()
    assert current is not None
    return current


def _scheduled(loop: Any) -> list[Any]:
    """Return a loop's timers, none where it does not show them (uvloop)."""
    return list(getattr(loop, "_scheduled", ()))


def timers() -> list[asyncio.TimerHandle]:
    """Return the timers of the running loop that are still to come."""
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in _scheduled(loop) if not handle.cancelled()]


def clean() -> None:
    """Check that no scope, cancellation or timer is left behind."""
    assert current_deadline() is None
    assert remaining() == math.inf
    assert task().cancelling() == 0
    assert timers() == []


# A block and its limit.


def test_fail_after_raises_at_its_limit() -> None:
    """Exactly then, with all that is known about it."""

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded, match="limit of 2 s") as caught:
            with fail_after(2):
                await asyncio.sleep(10)
        assert _clock.now() - began == 2
        error = caught.value
        assert (error.cause, error.budget, error.elapsed) == ("deadline", 2, 2)
        assert error.remaining == 0
        assert isinstance(error.__cause__, asyncio.CancelledError)
        assert isinstance(error, TimeoutError)
        clean()

    run_virtual(main())


def test_move_on_after_goes_on_after_its_limit() -> None:
    """Without an error; `cancelled_caught` tells."""

    async def main() -> None:
        began = _clock.now()
        with move_on_after(timedelta(seconds=2)) as block:
            await asyncio.sleep(10)
            pytest.fail("not reached")
        assert _clock.now() - began == 2
        assert block.cancelled_caught
        clean()

    run_virtual(main())


@verbs
def test_a_block_that_ends_in_time_leaves_nothing(verb: Any) -> None:
    """No timer fires later, and nothing was caught."""

    async def main() -> None:
        with verb(2) as block:
            await asyncio.sleep(1)
            assert block.remaining() == 1
        assert not block.cancelled_caught
        clean()
        await asyncio.sleep(10)
        clean()

    run_virtual(main())


@verbs
def test_a_block_is_relative_until_it_is_entered(verb: Any) -> None:
    """As in trio: time before the entry is not counted."""

    async def main() -> None:
        block = verb(2)
        await asyncio.sleep(5)
        assert block.remaining() == 2
        with block:
            await asyncio.sleep(1.5)
            assert block.remaining() == 0.5
        assert not block.cancelled_caught

    run_virtual(main())


@verbs
@pytest.mark.parametrize("seconds", [0, 0.0, -1, -1e9])
@pytest.mark.parametrize("nap", [0, 10])
def test_a_limit_that_has_passed_ends_the_block_at_its_first_await(
    verb: Any, seconds: float, nap: float
) -> None:
    """Zero and negative seconds, also where the await needs no time."""

    async def main() -> None:
        began = _clock.now()
        with ExitStack() as outside:
            if verb is fail_after:
                outside.enter_context(pytest.raises(DeadlineExceeded))
            with verb(seconds) as block:
                assert remaining() == seconds
                assert current_deadline() == Deadline.after(seconds)
                await asyncio.sleep(nap)
        assert block.cancelled_caught is (verb is move_on_after)
        assert _clock.now() == began
        clean()

    run_virtual(main())


def test_a_block_knows_its_own_deadline_and_its_verbs_agree() -> None:
    """`current_deadline`, `remaining` and `check` speak of the same instant."""

    async def main() -> None:
        check()
        check(1e9)
        with fail_after(2):
            assert current_deadline() == Deadline.after(2)
            assert remaining() == 2
            check(2)
            with pytest.raises(DeadlineExceeded, match="needs") as caught:
                check(2.5)
            assert caught.value.cause == "window"
            assert (caught.value.needed, caught.value.remaining) == (2.5, 2)
            await asyncio.sleep(1)
            assert remaining() == 1
        clean()

    run_virtual(main())


# Sync code.


@verbs
def test_sync_code_is_late_at_the_end_of_the_block(
    verb: Any, clock: VirtualClock
) -> None:
    """It cannot be interrupted, but it does not pass for punctual either."""
    done = False
    with ExitStack() as outside:
        if verb is fail_after:
            outside.enter_context(pytest.raises(DeadlineExceeded, match="limit of 1 s"))
        with verb(1) as block:
            clock.advance(3)
            done = True
    assert done
    assert block.cancelled_caught is (verb is move_on_after)
    assert current_deadline() is None


def test_sync_code_ends_at_check(clock: VirtualClock) -> None:
    """In a `move_on_after` block silently, in `fail_after` with the error."""
    with move_on_after(1) as block:
        check()
        clock.advance(1)
        check()
        pytest.fail("not reached")
    assert block.cancelled_caught
    with pytest.raises(DeadlineExceeded) as caught, fail_after(1):
        clock.advance(2)
        check()
    assert caught.value.remaining == -1
    assert caught.value.cause == "deadline"


def test_sync_code_that_ends_in_time_is_left_alone(clock: VirtualClock) -> None:
    """One tick before the limit is in time, the limit itself is not."""
    with fail_after(1):
        clock.advance(0.999)
    with pytest.raises(DeadlineExceeded), fail_after(1):
        clock.advance(1)


@pytest.mark.realtime
def test_a_block_in_a_thread_is_that_threads_own() -> None:
    """Threads beside it, with and without a loop of their own, see nothing of it."""
    inside, leave = threading.Event(), threading.Event()
    errors: list[BaseException | None] = []

    def bounded() -> None:
        with move_on_after(0.2):
            inside.set()
            leave.wait(3)
            try:
                check()
            except DeadlineExceeded as error:
                errors.append(error)
                raise

    thread = threading.Thread(target=bounded)
    thread.start()
    assert inside.wait(3)
    assert current_deadline() is None
    check()
    time.sleep(0.25)
    leave.set()
    thread.join(3)
    assert len(errors) == 1


@pytest.mark.realtime
def test_a_thread_that_got_the_context_has_the_deadline() -> None:
    """`asyncio.to_thread` copies it: `check` there ends the block here."""

    def work() -> None:
        assert remaining() < 0.3
        until = time.monotonic() + 3
        while time.monotonic() < until:
            time.sleep(0.01)
            check()

    async def main() -> None:
        began = time.monotonic()
        with move_on_after(0.2) as block:
            await asyncio.to_thread(work)
        assert block.cancelled_caught
        assert 0.2 <= time.monotonic() - began < 1
        with pytest.raises(DeadlineExceeded), fail_after(0.2):
            await asyncio.to_thread(work)

    asyncio.run(main())


@pytest.mark.realtime
def test_a_loop_in_a_thread_inside_a_block_is_bounded_by_it() -> None:
    """Its blocks only tighten, and have timers in their own loop."""

    def work() -> None:
        async def main() -> None:
            with pytest.raises(DeadlineExceeded), fail_after(0.1):
                await asyncio.sleep(3)
            with fail_after(60):
                assert remaining() < 2
            assert timers() == []

        asyncio.run(main())

    with fail_after(2):
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,))
        thread.start()
        thread.join(3)


# One block in another.

nestings = st.lists(
    st.tuples(
        st.sampled_from(["fail_after", "move_on_after"]),
        st.floats(-2, 100, allow_nan=False),
        st.floats(0, 3),
    ),
    min_size=1,
    max_size=6,
)


@given(nestings)
def test_c1_random_nestings_only_tighten(
    blocks: list[tuple[str, float, float]],
) -> None:
    """At every depth the earliest instant of all enclosing blocks applies."""
    clock = VirtualClock()
    ends: list[float] = []
    with _clock.use(clock), suppress(DeadlineExceeded), ExitStack() as stack:
        for name, seconds, pause in blocks:
            verb = fail_after if name == "fail_after" else move_on_after
            block = stack.enter_context(verb(seconds))
            ends.append(clock.monotonic() + seconds)
            assert remaining() == pytest.approx(min(ends) - clock.monotonic())
            assert block.remaining() == remaining()
            clock.advance(pause)
    assert current_deadline() is None


@settings(deadline=None, max_examples=60)
@given(nestings, st.floats(0, 20))
def test_c1_of_random_nestings_the_earliest_interrupts(
    blocks: list[tuple[str, float, float]], work: float
) -> None:
    """The work ends at the earliest limit, at its own end if that comes first."""

    async def main() -> None:
        began = _clock.now()
        stopped: list[float] = []
        with suppress(DeadlineExceeded), ExitStack() as stack:
            for name, seconds, _ in blocks:
                verb = fail_after if name == "fail_after" else move_on_after
                stack.enter_context(verb(seconds))
            try:
                await asyncio.sleep(work)
            finally:
                stopped.append(_clock.now() - began)
        limit = max(0.0, min(seconds for _, seconds, _ in blocks))
        assert stopped == [pytest.approx(min(limit, work), abs=1e-6)]
        clean()

    run_virtual(main())


@pytest.mark.parametrize("outer", VERBS)
@pytest.mark.parametrize("inner", VERBS)
def test_the_outer_limit_passes_through_the_inner_block(outer: Any, inner: Any) -> None:
    """Whoever's limit it is handles it; the inner block has caught nothing."""

    async def main() -> None:
        after_inner = False
        with ExitStack() as outside:
            if outer is fail_after:
                outside.enter_context(pytest.raises(DeadlineExceeded, match="1 s"))
            with outer(1) as out:
                with inner(5) as within:
                    await asyncio.sleep(10)
                after_inner = True
        assert not after_inner
        assert not within.cancelled_caught
        assert out.cancelled_caught is (outer is move_on_after)
        clean()

    run_virtual(main())


@pytest.mark.parametrize("outer", VERBS)
def test_the_inner_limit_does_not_touch_the_outer_block(outer: Any) -> None:
    """After `move_on_after` the work goes on with what the outer one has left."""

    async def main() -> None:
        with outer(5) as out:
            with move_on_after(1) as within:
                await asyncio.sleep(10)
            assert within.cancelled_caught
            assert remaining() == 4
            await asyncio.sleep(1)
            with pytest.raises(DeadlineExceeded), fail_after(1):
                await asyncio.sleep(10)
            assert remaining() == 2
        assert not out.cancelled_caught
        clean()

    run_virtual(main())


@pytest.mark.parametrize("order", [(1, 1), (1.0, timedelta(seconds=1))])
def test_of_two_equal_limits_the_outer_one_is_the_one(order: Any) -> None:
    """As in trio: nothing between the two is run."""

    async def main() -> None:
        with move_on_after(order[0]) as out:
            with move_on_after(order[1]) as within:
                await asyncio.sleep(10)
            pytest.fail("not reached")
        assert out.cancelled_caught
        assert not within.cancelled_caught
        clean()

    run_virtual(main())


@verbs
def test_both_limits_pass_while_the_inner_block_cleans_up(verb: Any) -> None:
    """The outer block still gets its cancellation, and the count is right."""

    async def main() -> None:
        with move_on_after(2) as out:
            with verb(1):
                try:
                    await asyncio.sleep(10)
                finally:
                    await asyncio.sleep(10)
            pytest.fail("not reached")
        assert out.cancelled_caught
        clean()

    run_virtual(main())


def test_both_limits_pass_while_the_loop_is_blocked() -> None:
    """The timers fire in one pass; every block still sees to its own."""
    clock = VirtualClock()

    async def main() -> None:
        with move_on_after(2) as out:
            with suppress(DeadlineExceeded), fail_after(1):
                clock.advance(5)
                await asyncio.sleep(10)
            await asyncio.sleep(0)
            pytest.fail("not reached")
        assert out.cancelled_caught
        clean()

    run_virtual(main(), clock=clock)


# `check` and whose limit it is.


@pytest.mark.parametrize("inner", VERBS)
def test_check_in_an_outer_move_on_after_passes_the_inner_block(inner: Any) -> None:
    """It ends the block whose limit it is, and only that."""

    async def main() -> None:
        with move_on_after(1) as out:
            with inner(5) as within:
                check(3)
            pytest.fail("not reached")
        assert out.cancelled_caught
        assert not within.cancelled_caught
        clean()

    run_virtual(main())


def test_check_ends_the_inner_block_whose_limit_it_is() -> None:
    """The outer one goes on."""

    async def main() -> None:
        with fail_after(5), move_on_after(1) as within:
            check(3)
            pytest.fail("not reached")
        assert within.cancelled_caught
        clean()

    run_virtual(main())


def test_check_of_an_outer_fail_after_is_an_error_in_an_inner_move_on_after() -> None:
    """The inner block may not swallow what is not its own."""

    async def main() -> None:
        with pytest.raises(DeadlineExceeded), fail_after(1):
            with move_on_after(5) as within:
                check(3)
            pytest.fail("not reached")
        assert not within.cancelled_caught
        clean()

    run_virtual(main())


def test_check_in_a_block_speaks_of_the_block() -> None:
    """Outside of a run there is no run to name, and no fallback to give it."""

    async def main() -> None:
        with pytest.raises(DeadlineExceeded) as window, fail_after(1):
            check(3)
        with pytest.raises(DeadlineExceeded) as late, fail_after(-1):
            check()
        for caught in (window, late):
            text = str(caught.value)
            assert "the run" not in text, text
            assert "fallback" not in text, text
        assert "3 s" in str(window.value)

    run_virtual(main())


def test_an_error_of_another_block_is_not_ones_own() -> None:
    """What an inner `fail_after` raises is an error like any other further out."""

    async def main() -> None:
        with pytest.raises(DeadlineExceeded, match="limit of 1 s"):
            with move_on_after(5) as out, fail_after(1):
                await asyncio.sleep(10)
        assert not out.cancelled_caught
        with pytest.raises(DeadlineExceeded, match="mine"), move_on_after(5):
            msg = "mine"
            raise DeadlineExceeded(msg)
        clean()

    run_virtual(main())


# Native cancellation.


async def cancelled_at(seconds: float, main: Any) -> asyncio.Task[Any]:
    """Run `main` in a task that is cancelled after `seconds`; return it, ended."""
    other = asyncio.create_task(main)
    asyncio.get_running_loop().call_later(seconds, other.cancel)
    await asyncio.wait([other])
    return other


@verbs
def test_a_native_cancellation_passes(verb: Any) -> None:
    """It is not the block's, and the task ends as cancelled."""
    seen: list[int] = []

    async def body() -> None:
        try:
            with verb(5):
                await asyncio.sleep(10)
        finally:
            seen.append(task().cancelling())

    async def main() -> None:
        assert (await cancelled_at(1, body())).cancelled()
        assert seen == [1]
        clean()

    run_virtual(main())


@verbs
@pytest.mark.parametrize("seconds", [0, 5])
def test_a_cancellation_before_the_block_is_entered_is_not_the_blocks(
    verb: Any, seconds: float
) -> None:
    """Also where the block's own limit has passed at once."""

    async def body() -> None:
        task().cancel()
        with verb(seconds):
            await asyncio.sleep(10)
        pytest.fail("not reached")

    async def main() -> None:
        other = asyncio.create_task(body())
        await asyncio.wait([other])
        assert other.cancelled()

    run_virtual(main())


@verbs
def test_a_count_that_was_there_before_stays(verb: Any) -> None:
    """A cancellation swallowed earlier does not keep the block from its own."""

    async def body() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        assert task().cancelling() == 1
        with suppress(DeadlineExceeded), verb(1):
            await asyncio.sleep(10)
        assert task().cancelling() == 1
        with verb(1):
            await asyncio.sleep(0.5)
        assert task().cancelling() == 1

    async def main() -> None:
        other = await cancelled_at(1, body())
        other.result()

    run_virtual(main())


@verbs
@pytest.mark.parametrize("native_first", [True, False])
def test_cancelled_by_both_at_once_the_native_one_goes_on(
    verb: Any, native_first: bool
) -> None:
    """Whoever cancelled the task is still owed it; the count is theirs alone."""
    seen: list[int] = []

    async def body() -> None:
        loop = asyncio.get_running_loop()
        me = task()
        if native_first:
            loop.call_later(1, me.cancel)
        try:
            with verb(1):
                if not native_first:
                    loop.call_later(1, me.cancel)
                await asyncio.sleep(10)
        finally:
            seen.append(me.cancelling())
        pytest.fail("not reached")

    async def main() -> None:
        other = asyncio.create_task(body())
        await asyncio.wait([other])
        assert other.cancelled()
        assert seen == [1]

    run_virtual(main())


@verbs
def test_a_native_cancellation_during_the_clean_up_of_a_cut_goes_on(verb: Any) -> None:
    """The block was cut at 1, the task cancelled at 2, while cleaning up."""

    async def body() -> None:
        with verb(1):
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(10)
        pytest.fail("not reached")

    async def main() -> None:
        began = _clock.now()
        assert (await cancelled_at(2, body())).cancelled()
        assert _clock.now() - began == 2

    run_virtual(main())


@verbs
def test_the_limit_passes_during_the_clean_up_of_a_native_cancellation(
    verb: Any,
) -> None:
    """The task was cancelled at 1, the block's limit is at 2: still a cancellation."""

    async def body() -> None:
        with verb(2):
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(10)
        pytest.fail("not reached")

    async def main() -> None:
        assert (await cancelled_at(1, body())).cancelled()

    run_virtual(main())


def test_asyncio_timeout_and_a_block_leave_each_other_alone() -> None:
    """Each handles its own limit, whichever is inside."""

    async def main() -> None:
        with pytest.raises(DeadlineExceeded), fail_after(1):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        with fail_after(5):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(1):
                    await asyncio.sleep(10)
            assert not isinstance(caught.value, DeadlineExceeded)
        async with asyncio.timeout(5):
            with move_on_after(1) as block:
                await asyncio.sleep(10)
        assert block.cancelled_caught
        clean()

    run_virtual(main())


# Swallowed.


@verbs
def test_c3_a_block_that_swallows_its_cancellation_is_late_all_the_same(
    verb: Any,
) -> None:
    """It is cancelled once, and at its end it does not pass for punctual."""
    swallowed = 0

    async def main() -> None:
        nonlocal swallowed
        began = _clock.now()
        with ExitStack() as outside:
            if verb is fail_after:
                outside.enter_context(pytest.raises(DeadlineExceeded))
            with verb(1) as block:
                for _ in range(3):
                    try:
                        await asyncio.sleep(1)
                    except asyncio.CancelledError:
                        swallowed += 1
        assert block.cancelled_caught is (verb is move_on_after)
        assert swallowed == 1
        assert 2.5 < _clock.now() - began <= 3
        clean()

    run_virtual(main())


def test_c3_a_block_that_never_awaits_is_late_all_the_same() -> None:
    """Blocking code in a coroutine: the timer had no chance to fire."""
    clock = VirtualClock()

    async def main() -> None:
        with pytest.raises(DeadlineExceeded), fail_after(1):
            clock.advance(2)
        clean()
        await asyncio.sleep(0)
        clean()

    run_virtual(main(), clock=clock)


# Errors.


class OwnError(Exception):
    """An error of the user's."""


@verbs
def test_an_error_passes_unchanged(verb: Any) -> None:
    """The same object, without a cause or a context added."""

    async def main() -> None:
        error = OwnError()
        with pytest.raises(OwnError) as caught, verb(1):
            raise error
        assert caught.value is error
        assert error.__cause__ is None
        assert error.__context__ is None
        clean()

    run_virtual(main())


@verbs
def test_an_error_after_the_limit_passes_too(verb: Any, clock: VirtualClock) -> None:
    """It says more than that the block was late."""
    with pytest.raises(OwnError), verb(1):
        clock.advance(2)
        raise OwnError


@verbs
def test_an_error_in_the_clean_up_of_a_cut_passes(verb: Any) -> None:
    """And the cancellation that was asked for is taken back."""

    async def main() -> None:
        with pytest.raises(OwnError), verb(1):
            try:
                await asyncio.sleep(10)
            finally:
                raise OwnError
        clean()
        await asyncio.sleep(1)

    run_virtual(main())


@verbs
def test_an_error_is_not_kept_alive(verb: Any) -> None:
    """What a block raised is gone with its last reference, without the collector."""

    async def main() -> None:
        with suppress(OwnError), verb(1):
            error = OwnError()
            kept = weakref.ref(error)
            try:
                raise error
            finally:
                del error
        assert kept() is None

    without_collector(lambda: run_virtual(main()))


def without_collector(call: Callable[[], Any]) -> None:
    """Call something while the cyclic garbage collector is off."""
    gc.collect()
    gc.disable()
    try:
        call()
    finally:
        gc.enable()


def test_the_error_of_a_block_is_no_reference_cycle() -> None:
    """Else it would keep every frame it came through until the next collection."""

    async def late() -> weakref.ref[BaseException]:
        try:
            with fail_after(1):
                await asyncio.sleep(10)
        except DeadlineExceeded as error:
            return weakref.ref(error)
        pytest.fail("not reached")

    async def main() -> None:
        kept = await late()
        assert kept() is None

    without_collector(lambda: run_virtual(main()))


def test_the_error_of_check_is_no_reference_cycle(clock: VirtualClock) -> None:
    """Neither that which leaves a block, nor that which ends one."""

    def late() -> weakref.ref[BaseException]:
        try:
            with fail_after(1):
                check(2)
        except DeadlineExceeded as error:
            return weakref.ref(error)
        pytest.fail("not reached")

    def ended() -> weakref.ref[Any]:
        with move_on_after(1) as block:
            check(2)
        return weakref.ref(block)

    without_collector(lambda: late_is_gone(late()))
    without_collector(lambda: late_is_gone(ended()))


def late_is_gone(kept: weakref.ref[Any]) -> None:
    """Check that what was referred to is no more."""
    assert kept() is None


@verbs
def test_a_block_is_no_reference_cycle(verb: Any) -> None:
    """Neither one that ended in time nor one that was cut."""

    async def once(seconds: float) -> weakref.ref[Any]:
        block = verb(seconds)
        with suppress(DeadlineExceeded), block:
            await asyncio.sleep(1)
        return weakref.ref(block)

    async def main() -> None:
        in_time = await once(2)
        cut = await once(0.5)
        await asyncio.sleep(2)
        assert in_time() is None
        assert cut() is None

    without_collector(lambda: run_virtual(main()))


# Misuse.


@verbs
def test_a_block_is_used_once(verb: Any) -> None:
    """Entering it again, inside or afterwards, is an error that says what to do."""

    async def main() -> None:
        block = verb(1)
        with block:
            with pytest.raises(RuntimeError, match="make a new one"):
                block.__enter__()
            assert remaining() == 1
        with pytest.raises(RuntimeError, match="make a new one"), block:
            pytest.fail("not reached")
        clean()

    run_virtual(main())


@verbs
def test_a_block_that_was_not_entered_cannot_be_left(verb: Any) -> None:
    """Rather than leaving somebody else's."""
    with pytest.raises(RuntimeError, match="without having been entered"):
        verb(1).__exit__(None, None, None)


@verbs
def test_a_block_cannot_be_left_twice(verb: Any) -> None:
    """A second exit is an error of its own and changes nothing."""
    block = verb(1)
    with fail_after(5):
        with block:
            pass
        with pytest.raises(RuntimeError):
            block.__exit__(None, None, None)
        assert remaining() > 4
    assert current_deadline() is None


def test_blocks_left_in_the_wrong_order_leave_nothing_behind() -> None:
    """An error, or right: never a scope that stays for whatever comes next."""
    outer, inner = fail_after(5), fail_after(3)

    def wrong() -> None:
        outer.__enter__()
        inner.__enter__()
        try:
            outer.__exit__(None, None, None)
        finally:
            inner.__exit__(None, None, None)

    context = contextvars.copy_context()
    with suppress(RuntimeError):
        context.run(wrong)
    assert context.run(current_deadline) is None


@verbs
def test_a_block_left_in_another_task_says_so(verb: Any) -> None:
    """What goes wrong is told in words of ours, and no cancellation comes later."""

    async def main() -> None:
        block = verb(1)

        async def enter() -> None:
            block.__enter__()

        await asyncio.create_task(enter())
        with pytest.raises(RuntimeError):
            block.__exit__(None, None, None)
        await asyncio.sleep(2)
        clean()

    run_virtual(main())


# Generators.


@verbs
def test_a_block_inside_an_async_generator_ends_it(verb: Any) -> None:
    """As long as its consumer goes on to ask, the limit is kept."""

    async def numbers() -> AsyncIterator[int]:
        with verb(2.5):
            for number in range(10):
                yield number
                await asyncio.sleep(1)

    async def main() -> None:
        got: list[int] = []
        began = _clock.now()
        with ExitStack() as outside:
            if verb is fail_after:
                outside.enter_context(pytest.raises(DeadlineExceeded))
            async for number in numbers():
                got.append(number)
        assert got == [0, 1, 2]
        assert _clock.now() - began == 2.5
        clean()

    run_virtual(main())


@verbs
def test_an_async_generator_with_a_block_can_be_closed_by_its_consumer(
    verb: Any,
) -> None:
    """Nothing is left of it afterwards."""

    async def numbers() -> AsyncIterator[int]:
        with verb(5):
            while True:
                yield 1

    async def main() -> None:
        stream = numbers()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        clean()

    run_virtual(main())


def test_an_abandoned_async_generator_with_a_block_cancels_nobody() -> None:
    """Its clean-up is run by the loop, in another task and context."""
    problems: list[dict[str, Any]] = []

    async def numbers() -> AsyncIterator[int]:
        with move_on_after(1):
            while True:
                yield 1

    async def consumer() -> None:
        async for _ in numbers():
            break

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        await asyncio.create_task(consumer())
        gc.collect()
        await asyncio.sleep(2)
        clean()

    run_virtual(main())
    for problem in problems:
        assert "different Context" not in str(problem.get("exception")), problem


# Task groups.


@verbs
def test_a_block_around_a_task_group_ends_its_tasks(verb: Any) -> None:
    """All are cancelled, and joined before the block is left."""
    ended: list[float] = []

    async def child() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append(_clock.now())

    async def main() -> None:
        began = _clock.now()
        with ExitStack() as outside:
            if verb is fail_after:
                outside.enter_context(pytest.raises(DeadlineExceeded))
            with verb(1):
                async with asyncio.TaskGroup() as group:
                    for _ in range(3):
                        group.create_task(child())
        assert ended == [began + 1] * 3
        clean()

    run_virtual(main())


def test_a_block_inside_a_task_group_ends_only_itself() -> None:
    """`move_on_after` in the group's body or in a child leaves the others alone."""
    finished: list[str] = []

    async def child(name: str, limit: float) -> None:
        with move_on_after(limit) as block:
            await asyncio.sleep(2)
        finished.append(f"{name}: {block.cancelled_caught}")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child("short", 1))
            group.create_task(child("long", 5))
            with move_on_after(1.5) as block:
                await asyncio.sleep(10)
        assert block.cancelled_caught
        assert finished == ["short: True", "long: False"]
        clean()

    run_virtual(main())


def test_a_fail_after_in_a_child_fails_its_group() -> None:
    """Like any error of a child; siblings are cancelled."""

    async def child() -> None:
        with fail_after(1):
            await asyncio.sleep(10)

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(asyncio.sleep(10))
        (error,) = caught.value.exceptions
        assert isinstance(error, DeadlineExceeded)
        assert timers() == []

    run_virtual(main())


@verbs
def test_the_group_of_a_failed_child_cancels_through_a_block(verb: Any) -> None:
    """That cancellation is the group's, which takes it back itself."""

    async def child() -> None:
        await asyncio.sleep(1)
        raise OwnError

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                with verb(5):
                    await asyncio.sleep(10)
                pytest.fail("not reached")
        clean()

    run_virtual(main())


def test_children_have_the_deadline_of_their_group() -> None:
    """Tasks inherit the context, hence the limit, also further down."""
    seen: list[float] = []

    async def child(depth: int) -> None:
        seen.append(remaining())
        if depth:
            await asyncio.create_task(child(depth - 1))

    async def main() -> None:
        with fail_after(7):
            async with asyncio.TaskGroup() as group:
                group.create_task(child(2))
        assert seen == [7, 7, 7]

    run_virtual(main())


def test_check_in_a_child_ends_the_block_around_the_group() -> None:
    """As in trio, where a nursery hands a cancellation on to the scope around it."""

    async def child() -> None:
        check(3)

    async def main() -> None:
        with move_on_after(1) as block:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                await asyncio.sleep(10)
        assert block.cancelled_caught
        clean()

    run_virtual(main())


def test_gathered_tasks_have_blocks_of_their_own() -> None:
    """A hundred of them at once, each ended at its own limit."""

    async def one(number: int) -> float:
        began = _clock.now()
        with move_on_after(number / 10):
            await asyncio.sleep(100)
        return _clock.now() - began

    async def main() -> None:
        limits = await asyncio.gather(*[one(number) for number in range(100)])
        assert limits == pytest.approx([number / 10 for number in range(100)])
        clean()

    run_virtual(main())


@pytest.mark.realtime
def test_ten_thousand_blocks_leave_no_timer() -> None:
    """Cancelled timers do not pile up in the loop."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        for _ in range(10_000):
            with fail_after(3600):
                pass
        await asyncio.sleep(0.01)
        assert len(_scheduled(loop)) < 1000

    asyncio.run(main())


# `detach`.


def test_detach_leaves_every_deadline_and_comes_back() -> None:
    """Inside there is none; afterwards it is as before, also after an error."""

    async def main() -> None:
        with fail_after(5), fail_after(3):
            with suppress(OwnError), detach():
                assert current_deadline() is None
                assert remaining() == math.inf
                check(1e9)
                raise OwnError
            assert remaining() == 3
        clean()

    run_virtual(main())


def test_a_block_inside_detach_counts_for_itself() -> None:
    """It is not tightened by what was left."""

    async def main() -> None:
        with move_on_after(1) as outer:
            with detach(), fail_after(3):
                assert remaining() == 3
                await asyncio.sleep(10)
            pytest.fail("not reached")
        assert outer.cancelled_caught
        clean()

    run_virtual(main())


def test_what_is_started_in_detach_outlives_the_block() -> None:
    """The task goes on; the block itself is still cut."""
    done: list[float] = []

    async def outlives() -> None:
        await asyncio.sleep(5)
        done.append(remaining())

    async def main() -> None:
        with move_on_after(1):
            with detach():
                background = asyncio.create_task(outlives())
                await asyncio.sleep(10)
            pytest.fail("not reached")
        await background
        assert done == [math.inf]

    run_virtual(main())


def test_c1_one_detach_used_inside_itself_does_not_lose_the_deadline() -> None:
    """An error, or right: never a deadline that is gone after the block."""
    away = detach()
    with fail_after(5):
        with suppress(RuntimeError), away, away:
            pass
        assert current_deadline() is not None


# `shield`, inside real nodes.


class State(TypedDict, total=False):
    log: str


def one(node: Any, **options: Any) -> Any:
    """Return a graph of one node called `work`."""
    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    return builder.compile(**options)


@pytest.mark.parametrize("how", ASYNC)
def test_a_cut_waits_for_a_critical_section(how: How) -> None:
    """It ends in its own time, and the cut comes right after it."""
    log: list[str] = []

    async def node(state: State) -> State:
        with shield(2):
            await asyncio.sleep(1.5)
            log.append("committed")
        log.append("after")
        await asyncio.sleep(10)
        return {}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(1.5)
    assert log == ["committed"]


@pytest.mark.parametrize("how", ASYNC)
def test_a_cut_waits_at_most_the_grace_of_a_critical_section(how: How) -> None:
    """Then it is cancelled like anything else."""
    log: list[str] = []

    async def node(state: State) -> State:
        try:
            with shield(0.5):
                await asyncio.sleep(10)
                log.append("committed")
        finally:
            log.append("cleaned up")
        return {}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(1.5)
    assert log == ["cleaned up"]


@pytest.mark.parametrize("how", ASYNC)
def test_a_critical_section_that_swallows_is_given_up_after_both_graces(
    how: How,
) -> None:
    """Its own grace before the cancellation, the policy's after it."""

    async def node(state: State) -> State:
        with shield(0.5):
            for _ in range(10):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(10)
        return {}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(1.75)
    assert [straggler.name for straggler in driven.report.stragglers] == ["work"]


@pytest.mark.parametrize("how", ASYNC)
def test_of_two_critical_sections_the_cut_waits_for_both(how: How) -> None:
    """Nested ones: the cut comes at the end of the outer one."""
    log: list[str] = []

    async def node(state: State) -> State:
        with shield(3):
            with shield(1):
                await asyncio.sleep(1.5)
                log.append("inner")
            await asyncio.sleep(0.5)
            log.append("outer")
        log.append("after")
        return {}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert driven.elapsed == pytest.approx(2)
    assert log == ["inner", "outer"]


@pytest.mark.parametrize("how", ASYNC)
def test_a_critical_section_that_ended_holds_up_no_cut(how: How) -> None:
    """Only what is in one at the cut is waited for."""

    async def node(state: State) -> State:
        with shield(5):
            await asyncio.sleep(0.5)
        await asyncio.sleep(10)
        return {}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert driven.elapsed == pytest.approx(1)


@pytest.mark.parametrize("how", ASYNC)
def test_one_shield_used_inside_itself_holds_up_no_later_cut(how: How) -> None:
    """An error, or right: never a hold that is not let go."""

    async def node(state: State) -> State:
        section = shield(5)
        with suppress(RuntimeError), section, section:
            pass
        await asyncio.sleep(10)
        return {}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert driven.elapsed == pytest.approx(1)


@pytest.mark.parametrize("how", ASYNC)
def test_a_critical_section_holds_only_its_own_branch(how: How) -> None:
    """Its sibling is cut at once, and the fallback comes when both have ended."""
    ended: dict[str, float] = {}
    clock = VirtualClock()

    def branch(name: str, grace: float) -> Any:
        async def node(state: State) -> State:
            try:
                with shield(grace):
                    await asyncio.sleep(1.2)
            finally:
                ended[name] = clock.monotonic() - began
            return {}

        return node

    def degrade(state: State) -> State:
        return {"log": "degraded"}

    builder = StateGraph(State)
    builder.add_node("held", branch("held", 1))
    builder.add_node("free", branch("free", 0))
    builder.add_edge(START, "held")
    builder.add_edge(START, "free")
    graph = builder.compile(deadline=1.25, fallback=degrade)
    began = clock.monotonic()
    driven = run_virtual(adrive(graph, {}, how), clock=clock)
    assert driven.values == {"log": "degraded"}
    assert ended["free"] == pytest.approx(1)
    assert ended["held"] == pytest.approx(1.2)
    assert driven.elapsed == pytest.approx(1.2)


def in_real_time(graph: Any, how: How, **options: Any) -> Driven:
    """Drive a graph; async ways in a loop that refuses what is not thread-safe."""
    if how in ASYNC:
        return asyncio.run(adrive(graph, {}, how, **options), debug=True)
    return drive(graph, {}, how, **options)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_a_cut_waits_for_a_critical_section_of_a_sync_node(how: How) -> None:
    """A thread cannot be stopped, but it can be waited for."""
    log: list[str] = []
    raised: list[type[BaseException]] = []

    def node(state: State) -> State:
        try:
            with shield(2):
                time.sleep(0.6)
                log.append("committed")
            log.append("after")
        except BaseException as error:
            raised.append(type(error))
            raise
        return {}

    driven = in_real_time(one(node, deadline=0.3), how)
    assert isinstance(driven.error, DeadlineExceeded)
    assert 0.55 <= driven.elapsed < 1.4
    assert log == ["committed"]
    assert len(raised) == 1
    assert issubclass(raised[0], DeadlineExceeded)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_a_cut_waits_for_a_critical_section_in_a_thread_of_an_async_node(
    how: How,
) -> None:
    """`asyncio.to_thread` keeps the context, so that the node's step is held."""
    log: list[str] = []
    raised: list[type[BaseException]] = []

    def commit() -> None:
        try:
            with shield(2):
                time.sleep(0.6)
                log.append("committed")
        except BaseException as error:
            raised.append(type(error))
            raise

    async def node(state: State) -> State:
        await asyncio.to_thread(commit)
        await asyncio.sleep(3)
        return {}

    driven = in_real_time(one(node, deadline=0.3), how)
    assert isinstance(driven.error, DeadlineExceeded)
    assert 0.55 <= driven.elapsed < 1.4
    assert log == ["committed"]
    assert [kind for kind in raised if not issubclass(kind, DeadlineExceeded)] == []


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_a_graph_called_in_a_sync_node_that_is_cut_ends_in_our_words(how: How) -> None:
    """It hands over its state or says that it was cut, in whatever thread it is."""
    ended = threading.Event()
    returned: list[Any] = []

    inner = StateGraph(State)
    inner.add_node("first", lambda state: {"log": "first"})
    inner.add_node("second", lambda state: time.sleep(1.5))
    inner.add_edge(START, "first")
    inner.add_edge("first", "second")
    graph = inner.compile()

    def node(state: State) -> State:
        try:
            returned.append(graph.invoke({}))
        except BaseException as error:
            returned.append(error)
            raise
        finally:
            ended.set()
        return {}

    control = RunControl()
    threading.Timer(0.3, control.cancel).start()
    driven = in_real_time(one(node, deadline=30), how, control=control)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed < 1.2
    assert ended.wait(3)
    (outcome,) = returned
    assert outcome == {"log": "first"} or isinstance(outcome, DeadlineExceeded)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_a_cut_waits_at_most_the_grace_of_a_sync_critical_section(how: How) -> None:
    """Then the thread is given up, and is on the report."""

    def node(state: State) -> State:
        with shield(0.3):
            time.sleep(2)
        return {}

    driven = drive(one(node, deadline=0.3), {}, how)
    assert isinstance(driven.error, DeadlineExceeded)
    assert 0.55 <= driven.elapsed < 1.4
    assert [straggler.name for straggler in driven.report.stragglers] == ["work"]


@verbs
def test_shield_outside_a_run_does_nothing(verb: Any) -> None:
    """It is the run's cut that waits; a block of the node's own does not."""

    async def main() -> None:
        with shield(5):
            await asyncio.sleep(0)
        began = _clock.now()
        with suppress(DeadlineExceeded), verb(1), shield(5):
            await asyncio.sleep(3)
        assert _clock.now() - began == 1

    run_virtual(main())


def test_an_error_leaves_a_critical_section_unchanged() -> None:
    """Also after the cut, which it does not replace."""
    caught: list[BaseException] = []

    async def node(state: State) -> State:
        try:
            with shield(2):
                await asyncio.sleep(1.5)
                raise OwnError
        except OwnError as error:
            caught.append(error)
            raise
        return {}

    driven = drive(one(node, deadline=1), {}, "ainvoke", virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert [type(error) for error in caught] == [OwnError]
    assert caught[0].__cause__ is None


# Inside nodes that were cut.


@pytest.mark.parametrize("how", ASYNC)
def test_a_node_that_swallows_its_cut_sees_that_it_was_cut(how: How) -> None:
    """`remaining` is minus infinity, and `check` raises whatever is asked for."""
    seen: list[Any] = []

    async def node(state: State) -> State:
        seen.append(remaining())
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append(remaining())
            with pytest.raises(DeadlineExceeded):
                check()
            with move_on_after(5) as block:
                seen.append(remaining())
                await asyncio.sleep(0.1)
            seen.append(block.cancelled_caught)
        return {}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert seen[:3] == [1, -math.inf, -math.inf]


@pytest.mark.parametrize("how", ASYNC)
def test_check_in_a_node_cuts_the_run_as_its_timer_would(how: How) -> None:
    """With the fallback; the window that is not there is the cause."""

    async def node(state: State) -> State:
        check(5)
        return {"log": "not reached"}

    def degrade(state: State) -> State:
        return {"log": "degraded"}

    graph = one(node, deadline=5, fallback=degrade)
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values == {"log": "degraded"}
    assert driven.report.outcome == "deadline"
    assert driven.report.cause == "window"
    assert driven.elapsed == 0


@pytest.mark.parametrize("how", ASYNC)
def test_move_on_after_inside_a_node_belongs_to_the_node(how: How) -> None:
    """The run completes; the block's limit is nobody else's business."""

    async def node(state: State) -> State:
        with move_on_after(1) as block:
            await asyncio.sleep(10)
        return {"log": f"{block.cancelled_caught}"}

    driven = drive(one(node, deadline=5), {}, how, virtual=True)
    assert driven.values == {"log": "True"}
    assert driven.report.outcome == "completed"
    assert driven.elapsed == pytest.approx(1)


@pytest.mark.parametrize("how", ASYNC)
def test_a_block_in_a_node_does_not_swallow_the_runs_cut(how: How) -> None:
    """`move_on_after` with more time than the run has lets the cut through."""
    log: list[str] = []

    async def node(state: State) -> State:
        with move_on_after(5):
            await asyncio.sleep(10)
        log.append("after")
        return {"log": "not reached"}

    driven = drive(one(node, deadline=1), {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(1)
    assert log == []
