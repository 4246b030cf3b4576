"""The vendors' models under a deadline that passes, whatever their servers do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from email.utils import formatdate
from typing import Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, How, drive
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.tools import tool
from langgraph.graph import START
from providers import (
    VENDORS,
    Called,
    Chat,
    Drip,
    Pings,
    Provider,
    Request,
    Says,
    Silent,
    SilentAfterHeaders,
    Status,
    Tokens,
    ToolCall,
    acall,
    call,
    calls,
    unopened,
    warm_up,
)
from pydantic import BaseModel

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    fail_after,
    with_deadline,
)

pytestmark = pytest.mark.realtime

# The limit in these tests, and how long a call may take with it: a token gap of 0.1 s,
# and time for a machine that is busy.
SECONDS = 0.5
LIMIT = 1.2

HANGING = {
    "silent": Silent(),
    "silent-after-headers": SilentAfterHeaders(),
    "pings": Pings(),
    "drip": Drip(),
}

# The same in JSON, as the arguments of a tool or as an answer with a structure.
ENDLESS = '{"city": "Par' + "is" * 450
SLOW_CALL = ToolCall(gap=0.1, count=2, arguments=ENDLESS)
SLOW_JSON = Says(gap=0.1, words=ENDLESS)


@tool
def look_up(city: str) -> str:
    """Look a city up."""
    return city


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


@pytest.fixture(params=VENDORS)
def chat(request: pytest.FixtureRequest) -> Chat:
    return VENDORS[request.param]


@pytest.fixture(params=ALL)
def how(request: pytest.FixtureRequest) -> How:
    way: How = request.param
    return way


def exceeded(called: Called, cause: str = "step") -> DeadlineExceeded:
    """Check that a call was cut on time; return its error."""
    error = called.error
    assert isinstance(error, DeadlineExceeded), repr(error)
    assert error.cause == cause
    assert SECONDS - 0.05 <= called.elapsed < LIMIT
    return error


def stopped(request: Request, called: Called) -> None:
    """Check that the connection was closed and nothing much was generated after."""
    request.settle()
    assert request.left is not None
    assert not request.completed
    assert request.left - called.ended < 0.5
    assert request.generated_after(called.ended) <= 2


# One limit for a call


@pytest.mark.parametrize("hang", HANGING)
def test_no_call_takes_longer_than_its_seconds(chat: Chat, how: How, hang: str) -> None:
    with Provider(HANGING[hang]) as server:
        called = call(with_deadline(chat(server), SECONDS), how)
        error = exceeded(called)
        stopped(server.request, called)
    assert error.budget == pytest.approx(SECONDS)
    assert error.elapsed is not None
    assert error.elapsed >= SECONDS
    assert "0.5 s" in str(error)
    assert server.request.stream
    assert 0 < (server.request.timeout or 0) <= SECONDS
    assert server.request.sdk_retries == 0


def test_a_connection_that_never_opens_is_given_up_on_time(
    chat: Chat, how: How
) -> None:
    with unopened() as url:
        exceeded(call(with_deadline(chat(url), SECONDS), how))


@pytest.mark.parametrize(
    ("hang", "own"), [("silent", 30), ("pings", 30), ("drip", 30), ("drip", None)]
)
def test_the_deadline_around_a_call_cuts_it(
    chat: Chat, how: How, hang: str, own: float | None
) -> None:
    with Provider(HANGING[hang]) as server:
        with pytest.raises(DeadlineExceeded) as raised:
            call_within(SECONDS, with_deadline(chat(server), own), how)
        # The block may end before the call does: the server says when that was.
        request = server.request.settle()
    assert raised.value.cause == "deadline"
    assert request.left is not None
    assert request.left - request.arrived < LIMIT
    assert 0 < (request.timeout or 0) <= SECONDS
    assert request.generated <= 12


def call_within(seconds: float, model: Any, how: How) -> None:
    """Call `model` inside `fail_after`."""

    async def main() -> None:
        with fail_after(seconds):
            called = await acall(model, how)
            if called.error is not None:
                raise called.error

    if how in ASYNC:
        asyncio.run(main())
        return
    with fail_after(seconds):
        called = call(model, how)
        if called.error is not None:
            raise called.error


@pytest.mark.parametrize(
    ("option", "hang"),
    [
        ({"streaming": False}, "silent"),
        ({"streaming": False}, "pings"),
        ({"streaming": False}, "drip"),
        ({"disable_streaming": True}, "pings"),
        ({"disable_streaming": True}, "drip"),
    ],
)
def test_what_is_not_streamed_is_bounded_all_the_same(
    chat: Chat, how: How, option: dict[str, Any], hang: str
) -> None:
    with Provider(HANGING[hang]) as server:
        called = call(with_deadline(chat(server, **option), SECONDS), how)
        exceeded(called)
        stopped(server.request, called)
    assert not server.request.stream
    assert 0 < (server.request.timeout or 0) <= SECONDS


def test_tokens_are_handed_on_before_a_stream_is_cut(chat: Chat) -> None:
    with Provider(Tokens(300, gap=0.05)) as server:
        for how in ("stream", "astream"):
            called = call(with_deadline(chat(server), SECONDS), how)
            exceeded(called)
            assert called.message.text.startswith("t0 t1 t2 ")
            assert called.message.usage_metadata is None


def test_much_less_is_generated_than_without_a_stream(chat: Chat) -> None:
    with Provider(Tokens(100, gap=0.05)) as server:
        called = call(with_deadline(chat(server), SECONDS), "ainvoke")
        exceeded(called)
        assert server.request.settle().generated <= 24


def test_waiting_for_a_rate_limiter_counts(chat: Chat, how: How) -> None:
    limiter = InMemoryRateLimiter(requests_per_second=0.01, check_every_n_seconds=0.05)
    with Provider() as server:
        model = with_deadline(chat(server, rate_limiter=limiter), SECONDS)
        exceeded(call(model, how))
    assert server.requests == []


def test_a_batch_is_bounded_call_by_call(chat: Chat) -> None:
    with Provider(Drip()) as server:
        model = with_deadline(chat(server), SECONDS)
        inputs = ["a", "b", "c"]
        began = time.monotonic()
        answers = model.batch(inputs, return_exceptions=True)
        between = time.monotonic()
        answers += asyncio.run(model.abatch(inputs, return_exceptions=True))
        ended = time.monotonic()
        requests = server.settle()
    assert between - began < LIMIT
    assert ended - between < LIMIT
    assert [type(answer) for answer in answers] == [DeadlineExceeded] * 6
    assert all(request.left is not None for request in requests)


def test_bound_tools_are_cut(chat: Chat, how: How) -> None:
    with Provider(SLOW_CALL) as server:
        called = call(with_deadline(chat(server), SECONDS).bind_tools([look_up]), how)
        exceeded(called)
        stopped(server.request, called)


class City(BaseModel):
    """A city."""

    city: str


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_cut(chat: Chat, way: How, method: str) -> None:
    with Provider(SLOW_JSON) as server:
        model = with_deadline(chat(server), SECONDS)
        called = call(model.with_structured_output(City, method=method), way)
        exceeded(called)
        stopped(server.request, called)


# Retries


@pytest.mark.parametrize("seconds", [SECONDS, 3.0])
def test_a_wait_that_does_not_fit_is_not_begun(
    chat: Chat, how: How, seconds: float
) -> None:
    with Provider(Status(429, retry_after=5)) as server:
        called = call(with_deadline(chat(server), seconds), how)
    error = called.error
    assert isinstance(error, DeadlineExceeded), repr(error)
    assert error.cause == "window"
    assert type(error.__cause__).__name__.endswith("RateLimitError")
    assert getattr(error.__cause__, "status_code", None) == 429
    assert called.elapsed < 0.5 + min(seconds, 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        Status(429, headers=(("retry-after-ms", "5000"),)),
        Status(503, retry_after=5),
        "date",
    ],
)
def test_a_vendor_may_name_its_wait_in_other_ways(chat: Chat, refusal: Any) -> None:
    if refusal == "date":
        soon = formatdate(time.time() + 30, usegmt=True)
        refusal = Status(429, retry_after=soon)
    with Provider(refusal) as server:
        called = call(with_deadline(chat(server), 3), "invoke")
    assert isinstance(called.error, DeadlineExceeded), repr(called.error)
    assert called.error.cause == "window"
    assert called.elapsed < 1.5
    assert len(server.requests) == 1


def test_a_server_that_is_down_takes_no_longer_either(chat: Chat, how: How) -> None:
    with Provider(Status(503)) as server:
        called = call(with_deadline(chat(server), SECONDS), how)
    assert called.elapsed < LIMIT
    assert all(request.sdk_retries == 0 for request in server.requests)
    assert 1 <= len(server.requests) <= 3
    if isinstance(called.error, DeadlineExceeded):
        assert called.error.cause in {"window", "step"}
        assert getattr(called.error.__cause__, "status_code", 503) == 503
    else:
        assert getattr(called.error, "status_code", None) == 503


@pytest.mark.parametrize("hang", ["silent", "drip"])
def test_a_second_attempt_has_what_the_first_left(
    chat: Chat, how: How, hang: str
) -> None:
    with Provider(Status(429, retry_after=0.1), HANGING[hang]) as server:
        called = call(with_deadline(chat(server), SECONDS), how)
        exceeded(called)
        stopped(server.requests[1], called)
    assert len(server.requests) == 2
    assert 0 < (server.requests[1].timeout or 0) <= SECONDS - 0.1


def bound(model: Any) -> Any:
    """Return `model` with a tool."""
    return model.bind_tools([look_up])


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("around", [lambda model: model, bound])
def test_with_retry_does_not_retry_what_was_cut(
    chat: Chat, way: How, around: Callable[[Any], Any]
) -> None:
    with Provider(Drip()) as server:
        model = around(with_deadline(chat(server), SECONDS))
        exceeded(call(model.with_retry(stop_after_attempt=3), way))
    assert len(server.requests) == 1


@pytest.mark.parametrize("needs", [0.0, 2.0])
def test_the_next_model_of_a_list_is_not_tried_where_it_does_not_fit(
    chat: Chat, how: How, needs: float
) -> None:
    around = SECONDS if not needs else 2.0
    with Provider(Drip()) as first, Provider(Tokens(2)) as second:
        model = with_deadline(chat(first), SECONDS).with_fallbacks(
            [with_deadline(chat(second), needs=needs)]
        )
        with pytest.raises(DeadlineExceeded):
            call_within(around, model, how)
        first.settle()
    assert len(first.requests) == 1
    assert second.requests == []


def test_the_next_model_of_a_list_is_tried_where_it_fits(chat: Chat, how: How) -> None:
    with Provider(Silent()) as first, Provider(Tokens(2)) as second:
        model = with_deadline(chat(first), SECONDS).with_fallbacks(
            [with_deadline(chat(second), 5, needs=1)]
        )
        called = call(model, how)
        first.settle()
    assert called.error is None
    assert called.message.text == "t0 t1 "
    assert called.elapsed >= SECONDS - 0.05


# A part of an answer


def partial(model: Any, seconds: float = SECONDS) -> Any:
    """Return `model` with a limit at which it answers with what it has."""
    return with_deadline(model, seconds, on_exceeded="partial")


def test_a_partial_answer_has_the_tokens_so_far(chat: Chat, how: How) -> None:
    with Provider(Drip()) as server:
        called = call(partial(chat(server)), how)
        stopped(server.request, called)
    assert called.error is None
    assert isinstance(called.message, AIMessage)
    assert called.message.text.startswith("t0 t1 ")
    assert len(called.message.text.split()) <= server.request.generated
    assert called.message.response_metadata["deadline"] == "exceeded"
    assert called.message.usage_metadata is None
    assert called.elapsed < LIMIT


@pytest.mark.parametrize("option", [{}, {"streaming": False}])
def test_a_partial_answer_may_be_empty(
    chat: Chat, how: How, option: dict[str, Any]
) -> None:
    with Provider(Silent()) as server:
        called = call(partial(chat(server, **option)), how)
    assert called.error is None
    assert isinstance(called.message, AIMessage)
    assert called.message.text == ""
    assert called.message.response_metadata["deadline"] == "exceeded"
    assert called.message.usage_metadata is None
    assert called.elapsed < LIMIT


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_partial_answer_calls_no_tools(chat: Chat, way: How) -> None:
    with Provider(SLOW_CALL) as server:
        called = call(partial(chat(server)).bind_tools([look_up]), way)
        stopped(server.request, called)
    message = called.message
    assert server.request.generated > 2, "the cut came before the tool call"
    assert message.text == "t0 t1 "
    assert message.tool_calls == []
    assert message.invalid_tool_calls == []
    assert "tool_calls" not in message.additional_kwargs
    assert all(block["type"] == "text" for block in message.content_blocks)
    assert message.response_metadata["deadline"] == "exceeded"


def test_a_conversation_goes_on_after_a_partial_answer(chat: Chat, how: How) -> None:
    with Provider(SLOW_CALL, Tokens(2)) as server:
        model = partial(chat(server), 1.0)
        cut, answered = two_turns(bound(model), how)
    assert cut.message.response_metadata["deadline"] == "exceeded"
    assert answered.error is None
    assert answered.message.text == "t0 t1 "
    # What was sent back in the second turn has no call that nobody answered.
    assert "look_up" not in str(server.requests[1].body["messages"])


def two_turns(model: Any, how: How) -> tuple[Called, Called]:
    """Call `model`, then again with its own answer in the history."""

    def history(first: Called) -> list[Any]:
        return [("user", "hi"), first.message, ("user", "and now?")]

    async def main() -> tuple[Called, Called]:
        first = await acall(model, how)
        return first, await acall(model, how, history(first))

    if how in ASYNC:
        return asyncio.run(main())
    first = call(model, how)
    return first, call(model, how, history(first))


def test_an_answer_in_time_is_not_partial(chat: Chat, how: How) -> None:
    with Provider(Tokens(3)) as server:
        called = call(partial(chat(server), 10), how)
    assert called.message.text == "t0 t1 t2 "
    assert "deadline" not in called.message.response_metadata
    assert called.message.usage_metadata["output_tokens"] == 3


def test_a_part_of_an_answer_does_not_hide_the_end_of_the_run(
    chat: Chat, how: How
) -> None:
    with Provider(Drip()) as server:
        with pytest.raises(DeadlineExceeded) as raised:
            call_within(SECONDS, partial(chat(server), 30), how)
        server.settle()
    assert raised.value.cause == "deadline"


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_partial_answer_is_not_cached_and_a_whole_one_is(
    chat: Chat, way: How
) -> None:
    with Provider(Drip(), Tokens(2)) as server:
        model = partial(chat(server, cache=InMemoryCache()), 1.0)
        cut, whole, cached = calls(way, model, model, model)
        server.settle()
    assert cut.message.response_metadata["deadline"] == "exceeded"
    assert [whole.message.text, cached.message.text] == ["t0 t1 ", "t0 t1 "]
    assert len(server.requests) == 2


# Afterwards


def test_a_model_that_was_cut_can_be_used_again(chat: Chat, how: How) -> None:
    with Provider(Drip(), Silent(), Tokens(2)) as server:
        model = with_deadline(chat(server), 1.0)
        first, second, third = calls(how, model, model, model)
    assert isinstance(first.error, DeadlineExceeded)
    assert isinstance(second.error, DeadlineExceeded)
    assert third.error is None
    assert third.message.text == "t0 t1 "


@pytest.mark.parametrize("way", ["invoke", "astream"])
@pytest.mark.parametrize(
    ("option", "hang"),
    [({}, "silent"), ({}, "pings"), ({}, "drip"), ({"streaming": False}, "pings")],
)
def test_a_cut_leaves_no_thread(
    chat: Chat, way: How, option: dict[str, Any], hang: str
) -> None:
    before = set(threading.enumerate())
    with Provider(HANGING[hang]) as server:
        exceeded(call(with_deadline(chat(server, **option), SECONDS), way))
        server.settle()
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("how", ASYNC)
def test_a_caller_that_goes_away_takes_the_connection_along(
    chat: Chat, how: How
) -> None:
    with Provider(Drip()) as server:

        async def main() -> None:
            await asyncio.wait_for(acall(with_deadline(chat(server), 20), how), 0.5)

        with pytest.raises(TimeoutError) as raised:
            asyncio.run(main())
        request = server.request.settle()
    assert not isinstance(raised.value, DeadlineExceeded)
    assert request.generated <= 12


def test_a_stream_that_is_closed_early_takes_the_connection_along(chat: Chat) -> None:
    with Provider(Drip()) as server:
        with closing(with_deadline(chat(server), 20).stream("hi")) as stream:
            while not next(stream).text:
                pass
        request = server.request.settle(1.5)
    assert request.left is not None
    assert request.generated <= 12


def test_time_that_the_reader_of_a_stream_takes_counts(chat: Chat) -> None:
    with Provider(Tokens(300, gap=0.05)) as server:
        stream = with_deadline(chat(server), SECONDS).stream("hi")
        while not next(stream).text:
            pass
        time.sleep(SECONDS + 0.1)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as raised:
            for _ in stream:
                pass
        assert time.monotonic() - began < 0.7
        assert raised.value.cause == "step"
        assert server.request.settle().left is not None


# Inside a graph


class Answered(TypedDict, total=False):
    """What a graph says."""

    answer: str


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize(
    ("hang", "own"), [("silent", 30), ("pings", 30), ("drip", 30), ("drip", None)]
)
def test_a_graph_cuts_its_model_at_the_work_deadline(
    chat: Chat, way: How, hang: str, own: float | None
) -> None:
    def degrade(state: Answered) -> Answered:
        return {"answer": "in short"}

    with Provider(HANGING[hang]) as server:
        model = with_deadline(chat(server), own)

        def ask(state: Answered) -> Answered:
            return {"answer": model.invoke("hi").text}

        async def aask(state: Answered) -> Answered:
            return {"answer": (await model.ainvoke("hi")).text}

        builder = StateGraph(Answered).add_node("ask", ask if way in SYNC else aask)
        policy = DeadlinePolicy(seconds=1.5, reserve=timedelta(seconds=1))
        graph = builder.add_edge(START, "ask").compile(
            deadline=policy, fallback=degrade
        )
        driven = drive(graph, {}, way)
        request = server.request.settle()
    assert driven.error is None
    assert driven.values["answer"] == "in short"
    assert driven.report.cause == "deadline"
    assert 0.45 <= driven.elapsed < 1.4
    assert request.left is not None
    assert request.left - request.arrived < LIMIT
    assert 0 < (request.timeout or 0) <= 0.5
    assert request.generated <= 12


def test_a_models_own_limit_is_an_error_of_its_node(chat: Chat, how: How) -> None:
    with Provider(Drip()) as server:
        model = with_deadline(chat(server), SECONDS)

        def ask(state: Answered) -> Answered:
            try:
                return {"answer": model.invoke("hi").text}
            except DeadlineExceeded as error:
                return {"answer": error.cause}

        async def aask(state: Answered) -> Answered:
            try:
                return {"answer": (await model.ainvoke("hi")).text}
            except DeadlineExceeded as error:
                return {"answer": error.cause}

        builder = StateGraph(Answered).add_node("ask", ask if how in SYNC else aask)
        driven = drive(builder.add_edge(START, "ask").compile(deadline=10), {}, how)
        server.settle()
    assert driven.error is None
    assert driven.values["answer"] == "step"
    assert driven.report.outcome == "completed"
