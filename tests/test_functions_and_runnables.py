"""Functions and Runnables with a deadline."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from harness import ALL, SYNC, How, Trial
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.runnables.retry import RunnableRetry
from langgraph.graph import START, MessagesState
from langgraph.runtime import Runtime

from langgraph_deadline import (
    DeadlineExceeded,
    StateGraph,
    _clock,
    current_deadline,
    fail_after,
    remaining,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

LIMIT = 0.3
HANG = 3600.0

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(globals(), "released", threading.Event())
    yield
    released.set()


def slow(seconds: float, *, more: int = 1) -> str:
    """Take some seconds."""
    released.wait(min(seconds, 3.0))
    return f"{seconds} {more}"


async def aslow(seconds: float, *, more: int = 1) -> str:
    """Take some seconds."""
    await asyncio.sleep(seconds)
    return f"{seconds} {more}"


class Thing:
    """Something with methods, and callable."""

    async def aslow(self, seconds: float) -> str:
        return await aslow(seconds)

    def slow(self, seconds: float) -> str:
        return slow(seconds)

    def __call__(self, seconds: float) -> str:
        return slow(seconds)


class AsyncThing:
    async def __call__(self, seconds: float) -> str:
        return await aslow(seconds)


# Functions.

SYNC_FUNCTIONS: dict[str, Any] = {
    "function": slow,
    "method": Thing().slow,
    "instance": Thing(),
    "partial": functools.partial(slow, more=1),
}
ASYNC_FUNCTIONS: dict[str, Any] = {
    "function": aslow,
    "method": Thing().aslow,
    "instance": AsyncThing(),
    "partial": functools.partial(aslow, more=1),
}


@pytest.mark.parametrize("kind", SYNC_FUNCTIONS)
def test_a_function_with_time_enough_is_as_before(kind: str) -> None:
    function, bounded = SYNC_FUNCTIONS[kind], with_deadline(SYNC_FUNCTIONS[kind], 5)
    assert bounded(0) == "0 1"
    assert inspect.signature(bounded) == inspect.signature(function)
    assert not inspect.iscoroutinefunction(bounded)


@pytest.mark.parametrize("kind", ASYNC_FUNCTIONS)
def test_an_async_function_with_time_enough_is_as_before(kind: str) -> None:
    function, bounded = ASYNC_FUNCTIONS[kind], with_deadline(ASYNC_FUNCTIONS[kind], 5)
    assert asyncio.run(bounded(0)) == "0 1"
    assert inspect.signature(bounded) == inspect.signature(function)
    assert inspect.iscoroutinefunction(bounded)


def test_a_bounded_function_is_called_what_it_was() -> None:
    bounded = with_deadline(slow, 5)
    assert bounded.__name__ == "slow"
    assert bounded.__doc__ == slow.__doc__
    assert bounded.__wrapped__ is slow
    assert with_deadline(Thing(), 5).__name__ == "Thing"


@pytest.mark.realtime
@pytest.mark.parametrize("kind", SYNC_FUNCTIONS)
def test_a_function_ends_at_its_limit(kind: str) -> None:
    bounded = with_deadline(SYNC_FUNCTIONS[kind], LIMIT)
    began = _clock.now()
    with pytest.raises(DeadlineExceeded) as caught:
        bounded(3)
    assert LIMIT <= _clock.now() - began < LIMIT + 0.6
    assert caught.value.cause == "step"
    assert caught.value.step == bounded.__name__
    assert type(caught.value) is DeadlineExceeded


@pytest.mark.parametrize("kind", ASYNC_FUNCTIONS)
def test_an_async_function_ends_at_its_limit(kind: str) -> None:
    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded) as caught:
            await with_deadline(ASYNC_FUNCTIONS[kind], 2)(9)
        assert _clock.now() - began == pytest.approx(2)
        assert caught.value.cause == "step"
        with pytest.raises(DeadlineExceeded), fail_after(1):
            await with_deadline(ASYNC_FUNCTIONS[kind], 2)(9)
        assert _clock.now() - began == pytest.approx(3)

    run_virtual(main())


def test_a_function_is_not_started_without_its_window() -> None:
    ran: list[int] = []
    bounded = with_deadline(ran.append, needs=5)
    with pytest.raises(DeadlineExceeded) as caught, fail_after(1):
        bounded(1)
    assert (caught.value.cause, caught.value.needed) == ("window", 5)
    assert ran == []
    bounded(2)
    assert ran == [2]


def test_a_function_inside_a_function_cannot_lengthen_its_time() -> None:
    inner = with_deadline(aslow, 9)
    outer = with_deadline(lambda: inner(99), 5)  # it returns a coroutine

    async def twice() -> Any:
        return await inner(99)

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded) as caught:
            await with_deadline(twice, 2)()
        assert _clock.now() - began == pytest.approx(2)
        assert caught.value.step == "twice"

    run_virtual(main())
    outer().close()


def test_a_function_sees_its_deadline_and_errors_pass() -> None:
    assert 4 < with_deadline(remaining, 5)() <= 5
    assert with_deadline(current_deadline)() is None
    with pytest.raises(ZeroDivisionError):
        with_deadline(lambda: 1 // 0, 5)()
    assert current_deadline() is None


def test_a_cancelled_function_cleans_up() -> None:
    async def main() -> None:
        done: list[str] = []

        async def tidy() -> None:
            try:
                await asyncio.sleep(HANG)
            finally:
                await asyncio.sleep(0.01)
                done.append("tidied")

        task = asyncio.create_task(with_deadline(tidy, 5)())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["tidied"]
        with pytest.raises(DeadlineExceeded):
            await with_deadline(tidy, 5)()
        assert done == ["tidied"] * 2
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


@pytest.mark.parametrize("how", ALL)
def test_a_function_is_a_node_with_all_that_is_injected(how: How) -> None:
    trial = Trial(how, seconds=2.0)
    seen: list[Any] = []

    def node(
        state: MessagesState, config: RunnableConfig, runtime: Runtime[Any]
    ) -> Any:
        seen.append((config["configurable"]["who"], runtime.store))
        return {"messages": ["done"]}

    limit = LIMIT if how in SYNC else 3.0
    builder = StateGraph(MessagesState)
    builder.add_node("first", with_deadline(trial.as_how(node), limit))
    hang = with_deadline(trial.hang("slow"), limit)
    builder.add_node("second", hang)
    builder.add_edge(START, "first").add_edge("first", "second")
    graph = trial.compile(builder, "raise")
    config: Any = {"configurable": {"who": "me"}}
    driven = trial.drive(graph, {"messages": []}, config)
    assert seen == [("me", None)]
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "step"
    trial.took(driven, limit)


def generates() -> Iterator[int]:
    yield 1


async def agenerates() -> AsyncIterator[int]:
    yield 1


class Generates:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Thing, "Thing"),
        (generates, "'generates'"),
        (agenerates, "'agenerates'"),
        (Generates(), "'Generates'"),
        (functools.partial(generates), "partial"),
    ],
)
def test_classes_and_generators_are_refused(thing: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        with_deadline(thing, 5)


# Runnables.

lambdas: Any = RunnableLambda(slow, aslow, name="slow")
prompt = ChatPromptTemplate.from_template("{question}")

RUNNABLES: dict[str, Any] = {
    "lambda": lambdas,
    "sequence": RunnablePassthrough() | lambdas,
    "parallel": RunnableParallel(a=lambdas, b=lambdas),
    "retry": lambdas.with_retry(),
    "fallbacks": lambdas.with_fallbacks([RunnableLambda(lambda _: "instead")]),
    "with_config": lambdas.with_config(tags=["a"]),
    "bind": lambdas.bind(more=1),
    "assign": RunnablePassthrough.assign(a=lambda x: slow(x["seconds"])),
}
runnables = pytest.mark.parametrize("kind", RUNNABLES)


def given(kind: str, seconds: float) -> Any:
    return {"seconds": seconds} if kind == "assign" else seconds


@runnables
def test_a_runnable_with_time_enough_is_as_before(kind: str) -> None:
    original = RUNNABLES[kind]
    bounded = with_deadline(original, 5)
    assert bounded is not original
    assert isinstance(bounded, type(original))
    assert bounded.get_name() == original.get_name()
    value = given(kind, 0.0)
    assert bounded.invoke(value) == original.invoke(value)
    assert asyncio.run(bounded.ainvoke(value)) == original.invoke(value)
    assert list(bounded.stream(value)) == list(original.stream(value))
    assert bounded.batch([value] * 3) == original.batch([value] * 3)
    schema, same = bounded.get_input_jsonschema(), original.get_input_jsonschema()
    assert schema == same
    assert type(original).__mro__[0] is type(RUNNABLES[kind])


@pytest.mark.realtime
@runnables
def test_a_runnable_ends_at_its_limit(kind: str) -> None:
    bounded = with_deadline(RUNNABLES[kind], LIMIT)
    for made in (
        lambda: bounded.invoke(given(kind, 3.0)),
        lambda: list(bounded.stream(given(kind, 3.0))),
        lambda: bounded.batch([given(kind, 3.0)] * 2),
        lambda: list(bounded.transform(iter([given(kind, 3.0)]))),
    ):
        began = _clock.now()
        with pytest.raises(DeadlineExceeded) as caught:
            made()
        assert LIMIT <= _clock.now() - began < LIMIT + 0.8
        assert caught.value.cause == "step"


@pytest.mark.parametrize("kind", [k for k in RUNNABLES if k != "assign"])
def test_an_async_runnable_ends_at_its_limit(kind: str) -> None:
    bounded = with_deadline(RUNNABLES[kind], 2)

    async def source() -> AsyncIterator[float]:
        yield 9.0

    async def main() -> None:
        for made in (
            lambda: bounded.ainvoke(9.0),
            lambda: collected(bounded.astream(9.0)),
            lambda: bounded.abatch([9.0] * 2),
            lambda: collected(bounded.atransform(source())),
            lambda: collected(bounded.astream_events(9.0, version="v2")),
        ):
            began = _clock.now()
            with pytest.raises(DeadlineExceeded) as caught:
                await made()
            assert _clock.now() - began == pytest.approx(2)
            assert caught.value.cause == "step"

    run_virtual(main())


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_wrapping_twice_is_the_tighter_one() -> None:
    async def elapsed(bounded: Any) -> float:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            await bounded.ainvoke(9.0)
        return _clock.now() - began

    twice = with_deadline(with_deadline(lambdas, 2), 5)
    assert run_virtual(elapsed(twice)) == pytest.approx(2)
    twice = with_deadline(with_deadline(lambdas, 5), 2)
    assert run_virtual(elapsed(twice)) == pytest.approx(2)


def test_a_batch_returns_errors_where_that_is_asked_for() -> None:
    bounded = with_deadline(lambdas, 2)

    async def main() -> list[Any]:
        return await bounded.abatch([0.0, 9.0, 1.0], return_exceptions=True)

    first, second, third = run_virtual(main())
    assert (first, third) == ("0.0 1", "1.0 1")
    assert isinstance(second, DeadlineExceeded)


def test_each_item_of_a_batch_has_the_limit_by_itself() -> None:
    """Also those that wait for their turn."""
    bounded = with_deadline(lambdas, 2)

    async def main() -> None:
        began = _clock.now()
        out = await bounded.abatch([1.5] * 4, {"max_concurrency": 1})
        assert out == ["1.5 1"] * 4
        assert _clock.now() - began == pytest.approx(6)
        done = [i async for i in bounded.abatch_as_completed([1.5, 0.0])]
        assert done == [(1, "0.0 1"), (0, "1.5 1")]

    run_virtual(main())


# Retries and fallbacks.


class Hopeless:
    """A Runnable that never ends, and counts how often it was tried."""

    def __init__(self) -> None:
        self.tried = 0
        self.runnable: Any = RunnableLambda(self.slow, self.aslow)

    def slow(self, _: Any) -> str:
        self.tried += 1
        return slow(3.0)

    async def aslow(self, _: Any) -> str:
        self.tried += 1
        return await aslow(HANG)


def test_our_error_is_not_retried_around_a_bounded_runnable() -> None:
    hopeless = Hopeless()
    retried = with_deadline(hopeless.runnable, 2).with_retry(
        wait_exponential_jitter=False
    )
    with pytest.raises(DeadlineExceeded):
        run_virtual(retried.ainvoke(1))
    assert hopeless.tried == 1


@pytest.mark.realtime
def test_our_error_is_not_retried_around_a_sync_bounded_runnable() -> None:
    hopeless = Hopeless()
    retried = with_deadline(hopeless.runnable, LIMIT).with_retry()
    with pytest.raises(DeadlineExceeded):
        retried.invoke(1)
    assert hopeless.tried == 1


def test_other_errors_are_retried() -> None:
    tried: list[int] = []

    def flaky(x: int) -> int:
        tried.append(x)
        if len(tried) < 3:
            msg = "not now"
            raise ConnectionError(msg)
        return x

    bounded = with_deadline(RunnableLambda(flaky), 5)
    retried = bounded.with_retry(wait_exponential_jitter=False, stop_after_attempt=3)
    assert retried.invoke(1) == 1
    tried.clear()
    only = bounded.with_retry(retry_if_exception_type=(KeyError,))
    with pytest.raises(ConnectionError):
        only.invoke(1)
    assert tried == [1]


def test_a_limit_covers_all_attempts_of_a_retry_inside() -> None:
    """Back-off included: `with_deadline(x.with_retry(), 5)`."""
    tried: list[float] = []

    async def flaky(x: int) -> int:
        tried.append(_clock.now())
        await asyncio.sleep(1)
        msg = "not now"
        raise ConnectionError(msg)

    retried = RunnableLambda(flaky).with_retry(stop_after_attempt=99)

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded) as caught:
            await with_deadline(retried, 5).ainvoke(1)
        assert caught.value.cause == "step"
        assert _clock.now() - began == pytest.approx(5)

    run_virtual(main())
    assert 1 < len(tried) < 5


def test_retries_of_a_sequence_stop_once_what_encloses_it_is_over() -> None:
    """`.with_retry()` of a chain that holds one of ours: no attempt starts in vain."""
    hopeless = Hopeless()
    chain = RunnablePassthrough() | with_deadline(hopeless.runnable, 5)

    async def main() -> None:
        began = _clock.now()
        retried = chain.with_retry(wait_exponential_jitter=False)
        with pytest.raises(DeadlineExceeded), fail_after(2):
            await retried.ainvoke(1)
        assert _clock.now() - began < 2.01

    run_virtual(main())
    assert hopeless.tried == 1


def test_a_fallback_takes_over_from_what_ran_out_of_its_own_time() -> None:
    hopeless = Hopeless()
    instead = RunnableLambda(lambda _: "instead")
    bounded = with_deadline(hopeless.runnable, 2).with_fallbacks([instead])
    assert run_virtual(bounded.ainvoke(1)) == "instead"
    assert hopeless.tried == 1


def test_a_limit_covers_a_list_of_fallbacks() -> None:
    async def fails(_: Any) -> None:
        await asyncio.sleep(1.5)
        msg = "not now"
        raise ConnectionError(msg)

    listed = RunnableLambda(fails).with_fallbacks([RunnableLambda(fails)] * 3)

    async def main() -> None:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            await with_deadline(listed, 2).ainvoke(1)
        assert _clock.now() - began == pytest.approx(2)

    run_virtual(main())
    assert isinstance(with_deadline(listed, 2), RunnableWithFallbacks)
    assert isinstance(with_deadline(lambdas.with_retry(), 2), RunnableRetry)


def test_a_prompt_and_a_model_are_a_sequence() -> None:
    async def answer(value: Any) -> str:
        await asyncio.sleep(4)
        return f"an answer to {value.messages[0].content}"

    chain = prompt | RunnableLambda(answer)
    bounded = with_deadline(chain, 5)
    assert isinstance(bounded, RunnableSequence)
    asked = {"question": "it"}
    assert run_virtual(bounded.ainvoke(asked)) == "an answer to it"
    with pytest.raises(DeadlineExceeded):
        run_virtual(with_deadline(chain, 3).ainvoke(asked))
    longer = bounded | RunnableLambda(str.upper)
    assert run_virtual(longer.ainvoke(asked)) == "AN ANSWER TO IT"


@pytest.mark.realtime
def test_blocking_code_does_not_hold_up_asyncio_run() -> None:
    """Which waits for the loop's own threads, however long they take."""
    runnable = RunnableLambda(slow)
    began = _clock.now()
    with pytest.raises(DeadlineExceeded):
        asyncio.run(with_deadline(runnable, LIMIT).ainvoke(3.0))
    assert _clock.now() - began < LIMIT + 1.0
