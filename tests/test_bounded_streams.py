"""Streams of Runnables with a deadline."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from harness import ASYNC, SYNC, How, Trial
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
)
from langgraph.graph import START, MessagesState

from langgraph_deadline import (
    DeadlineExceeded,
    StateGraph,
    _clock,
    current_deadline,
    fail_after,
    move_on_after,
    remaining,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

LIMIT = 0.3

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""

closed: list[str] = []
"""What the sources told at their end."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(globals(), "released", threading.Event())
    monkeypatch.setitem(globals(), "closed", [])
    yield
    released.set()


class Counts(Runnable[Any, int]):
    """Counts up to its input, with a pause of a second (virtual) before each number."""

    pause = 1.0

    def invoke(self, input: int, config: Any = None, **kwargs: Any) -> int:
        return input

    def stream(self, input: int, config: Any = None, **kwargs: Any) -> Iterator[int]:
        log, gate = closed, released
        try:
            for number in range(input):
                gate.wait(self.pause)
                yield number
        finally:
            log.append("closed")

    async def astream(
        self, input: int, config: Any = None, **kwargs: Any
    ) -> AsyncIterator[int]:
        try:
            for number in range(input):
                await asyncio.sleep(self.pause)
                yield number
        finally:
            closed.append("closed")


class Quickly(Counts):
    pause = 0.0


class Often(Counts):
    pause = 0.1


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_a_stream_with_time_enough_is_as_before() -> None:
    assert list(with_deadline(Quickly(), 5).stream(5)) == list(range(5))
    assert run_virtual(collected(with_deadline(Counts(), 9).astream(5))) == [*range(5)]
    assert list(with_deadline(Quickly()).stream(5)) == list(range(5))
    assert closed == ["closed"] * 3


def test_a_limit_is_for_the_whole_stream_not_for_an_item() -> None:
    got: list[int] = []

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded) as caught:
            async for item in with_deadline(Counts(), 3.5).astream(99):
                got.append(item)
        assert caught.value.cause == "step"
        assert _clock.now() - began == pytest.approx(3.5)
        assert closed == ["closed"]
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())
    assert got == [0, 1, 2]


@pytest.mark.realtime
def test_a_limit_is_for_the_whole_sync_stream() -> None:
    got: list[int] = []
    began = _clock.now()
    with pytest.raises(DeadlineExceeded):
        for item in with_deadline(Often(), 0.35).stream(99):
            got.append(item)
    assert 0.35 <= _clock.now() - began < 0.95
    assert 1 <= len(got) <= 3
    until(lambda: closed == ["closed"])


def until(done: Any) -> None:
    """Wait until a thread that was given up has done something."""
    deadline = _clock.now() + 3
    while not done():
        assert _clock.now() < deadline
        time.sleep(0.01)


def test_a_reader_that_leaves_closes_the_source() -> None:
    for _ in with_deadline(Quickly(), 5).stream(99):
        break
    gc.collect()
    assert closed == ["closed"]
    with closing(with_deadline(Quickly(), 5).stream(99)) as items:  # type: ignore[type-var]
        next(items)
    assert closed == ["closed"] * 2

    async def main() -> None:
        async with aclosing(with_deadline(Counts(), 9).astream(99)) as items:
            async for _ in items:
                break
        assert closed == ["closed"] * 3
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())
    assert current_deadline() is None


def test_a_reader_that_is_cancelled_closes_the_source() -> None:
    async def read() -> None:
        async with aclosing(with_deadline(Counts(), 9).astream(99)) as items:
            async for _ in items:
                pass

    async def main() -> None:
        with anyio.move_on_after(2.5):
            await read()
        assert closed == ["closed"]
        with move_on_after(2.5):
            await read()
        assert closed == ["closed"] * 2
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_a_source_that_was_never_read_is_not_opened() -> None:
    items = with_deadline(Quickly(), 5).stream(99)
    items.close()  # type: ignore[attr-defined]
    asyncio.run(with_deadline(Counts(), 5).astream(99).aclose())  # type: ignore[attr-defined]
    assert closed == []


def test_a_slow_reader_uses_up_the_limit() -> None:
    """The deadline goes on while nobody reads; the next item is refused."""
    got: list[int] = []

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            async for item in with_deadline(Counts(), 5.5).astream(99):
                got.append(item)
                await asyncio.sleep(3)
        assert _clock.now() - began == pytest.approx(8)

    run_virtual(main())
    assert got == [0, 1]
    assert closed == ["closed"]


def test_a_slow_reader_of_what_is_there_already_is_refused_the_rest() -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            async for _ in with_deadline(Quickly(), 5).astream(99):
                await asyncio.sleep(6)

    run_virtual(main())
    assert closed == ["closed"]


def test_nothing_of_ours_is_in_the_readers_context_between_two_items() -> None:
    mine: ContextVar[str] = ContextVar("mine", default="reader")
    inside: list[Any] = []

    def generate(items: Iterator[Any]) -> Iterator[int]:
        for number in range(3):
            inside.append((mine.get(), remaining() < 6))
            mine.set("source")
            yield number

    async def agenerate(items: AsyncIterator[Any]) -> AsyncIterator[int]:
        for number in range(3):
            inside.append((mine.get(), remaining() < 6))
            mine.set("source")
            yield number

    bounded = with_deadline(RunnableGenerator(generate, agenerate), 5)
    for _ in bounded.stream(1):
        assert current_deadline() is None
        assert mine.get() == "reader"
    assert inside == [("reader", True), ("source", True), ("source", True)]
    inside.clear()

    async def main() -> None:
        async for _ in bounded.astream(1):
            assert current_deadline() is None
            assert mine.get() == "reader"

    run_virtual(main())
    assert inside == [("reader", True), ("source", True), ("source", True)]


def test_two_streams_read_in_turn_have_a_limit_each() -> None:
    async def main() -> None:
        first = with_deadline(Counts(), 9).astream(3)
        second = with_deadline(Counts(), 2.5).astream(3)
        got: list[Any] = []
        with pytest.raises(DeadlineExceeded):
            for _ in range(3):
                got.append(await anext(first))
                got.append(await anext(second))
        assert got == [0, 0, 1]
        assert await anext(first) == 2
        assert await collected(first) == []
        assert closed == ["closed"] * 2

    run_virtual(main())


def test_a_stream_in_a_sequence_flows_through() -> None:
    async def double(items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item * 2

    async def triple(items: AsyncIterator[int]) -> AsyncIterator[int]:
        try:
            async for item in items:
                yield item * 3
        finally:
            closed.append("triple")

    chain = with_deadline(Counts(), 3.5) | with_deadline(RunnableGenerator(triple), 60)
    got: list[tuple[float, int]] = []

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded) as caught:
            async for item in chain.astream(9):
                got.append((round(_clock.now() - began), item))
        assert caught.value.step == "Counts"
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())
    assert got == [(1, 0), (2, 3), (3, 6)]
    assert closed == ["closed", "triple"]
    closed.clear()

    whole = with_deadline(Counts() | RunnableGenerator(double), 3.5)

    async def again() -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            await collected(whole.astream(9))
        assert caught.value.step == "RunnableSequence"
        for _ in range(3):  # LangChain leaves its generators to the loop to close
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    run_virtual(again())
    assert closed == ["closed"]


@pytest.mark.realtime
def test_a_sync_stream_in_a_sequence_flows_through() -> None:
    def double(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            yield item * 2

    chain = with_deadline(Quickly() | RunnableGenerator(double), 5)
    assert list(chain.stream(3)) == [0, 2, 4]
    chain = with_deadline(Often() | RunnableGenerator(double), 0.35)
    with pytest.raises(DeadlineExceeded):
        list(chain.stream(8))  # to its end: LangChain reads what it closes
    until(lambda: closed == ["closed"] * 2)


def test_parallel_streams_end_together() -> None:
    both = with_deadline(RunnableParallel(a=Counts(), b=Counts()), 3.5)

    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await collected(both.astream(9))
        await asyncio.sleep(2)  # LangChain's tasks for the branches: one more item
        assert closed == ["closed"] * 2
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_what_encloses_a_stream_ends_it() -> None:
    async def main() -> None:
        got = []
        began = _clock.now()
        with move_on_after(2.5) as scope:
            async for item in with_deadline(Counts(), 60).astream(9):
                got.append(item)
        assert scope.cancelled_caught
        assert got == [0, 1]
        assert _clock.now() - began == pytest.approx(2.5)
        with pytest.raises(DeadlineExceeded), fail_after(2.5):
            await collected(with_deadline(Counts(), 60).astream(9))
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_an_error_of_the_source_passes_after_what_came_before_it() -> None:
    def breaks(items: Any) -> Iterator[int]:
        yield 1
        msg = "broken"
        raise LookupError(msg)

    got = []
    with pytest.raises(LookupError, match="broken"):
        for item in with_deadline(RunnableGenerator(breaks), 5).stream(1):
            got.append(item)
    assert got == [1]


def test_a_source_that_swallows_its_cancellation_is_given_up() -> None:
    class Deaf(Counts):
        async def astream(
            self, input: int, config: Any = None, **kwargs: Any
        ) -> AsyncIterator[int]:
            yield 0
            for _ in range(9):
                try:
                    await asyncio.sleep(5)
                except asyncio.CancelledError:
                    closed.append("heard")
            yield 1

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            await collected(with_deadline(Deaf(), 2).astream(1))
        assert _clock.now() - began <= 2.3
        await asyncio.sleep(99)
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())
    assert closed == ["heard"]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_stream_in_a_node_ends_with_the_run(how: How) -> None:
    trial = Trial(how)
    got: list[int] = []
    bounded = with_deadline(Often() if how in SYNC else Counts(), 60)

    def read(state: Any) -> Any:
        for item in bounded.stream(99):
            got.append(item)

    async def aread(state: Any) -> Any:
        async for item in bounded.astream(99):
            got.append(item)

    builder = StateGraph(MessagesState)
    builder.add_node("read", read if how in SYNC else aread)
    builder.add_node("degrade", lambda _: {"messages": ["Sorry."]})
    builder.add_edge(START, "read")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, {"messages": []})
    assert driven.error is None
    trial.at_work(driven)
    assert driven.values["messages"][-1].content == "Sorry."
    assert got == ([0, 1] if how in SYNC else [*range(7)])
    until(lambda: closed == ["closed"])


@pytest.mark.parametrize("how", ASYNC)
def test_a_runnable_is_a_node_whose_limit_is_a_case_for_the_fallback(how: How) -> None:
    trial = Trial(how)

    async def slow(_: Any) -> Any:
        await asyncio.sleep(99)

    builder = StateGraph(MessagesState)
    builder.add_node("slow", with_deadline(RunnableLambda(slow), 3))
    builder.add_node("degrade", lambda _: {"messages": ["Sorry."]})
    builder.add_edge(START, "slow")
    graph = builder.compile(deadline=trial.reserved, fallback="degrade")
    driven = trial.drive(graph, {"messages": []})
    assert driven.error is None
    trial.took(driven, 3)
    assert driven.values["messages"][-1].content == "Sorry."
    assert driven.report.cause == "step"
