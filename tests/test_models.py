"""The vendors' models under a deadline, where all goes well or soon does."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import closing
from datetime import timedelta
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from harness import ALL, How
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from providers import (
    PROMPT_TOKENS,
    VENDORS,
    Breaks,
    Chat,
    Drip,
    Pings,
    Provider,
    Says,
    Silent,
    SilentAfterHeaders,
    Status,
    Tokens,
    ToolCall,
    call,
    calls,
    unopened,
    warm_up,
)
from pydantic import BaseModel

from langgraph_deadline import DeadlineExceeded, fail_after, with_deadline

pytestmark = pytest.mark.realtime

# In the middle of a stream, Anthropic's SDK lets the errors of its transport through.
SDK: dict[str, Any] = {"openai": openai, "anthropic": anthropic}


class City(BaseModel):
    """A city."""

    city: str


@tool
def look_up(city: str) -> str:
    """Look a city up."""
    return city


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def chat(vendor: str) -> Chat:
    return VENDORS[vendor]


@pytest.fixture(params=ALL)
def how(request: pytest.FixtureRequest) -> How:
    way: How = request.param
    return way


# The servers themselves, with the vendors' models as they are.


def test_a_server_answers_and_counts_its_tokens(chat: Chat, how: How) -> None:
    with Provider(Tokens(5)) as server:
        called = call(chat(server, stream_usage=True), how)
        request = server.request.settle()
    assert called.error is None
    assert called.message.text == "t0 t1 t2 t3 t4 "
    assert called.message.usage_metadata["input_tokens"] == PROMPT_TOKENS
    assert called.message.usage_metadata["output_tokens"] == 5
    assert request.stream == (how in {"stream", "astream"})
    assert (request.generated, request.completed, request.left) == (5, True, None)


def test_a_server_calls_a_tool_in_pieces(chat: Chat, how: How) -> None:
    with Provider(ToolCall(count=2)) as server:
        called = call(chat(server).bind_tools([look_up]), how)
    (made,) = called.message.tool_calls
    assert (made["name"], made["args"]) == ("look_up", {"city": "Paris"})
    assert called.message.text == "t0 t1 "
    assert len(server.request.body["tools"]) == 1
    if server.request.stream:
        assert sum(bool(chunk.tool_call_chunks) for chunk in called.chunks) >= 4


def test_a_server_stops_at_the_limit_of_the_client(chat: Chat, how: How) -> None:
    with Provider(Tokens(50)) as server:
        called = call(chat(server, max_tokens=3), how)
    assert called.message.text == "t0 t1 t2 "
    assert (server.request.max_tokens, server.request.generated) == (3, 3)


def test_a_server_notices_between_tokens_that_the_client_left(chat: Chat) -> None:
    with Provider(Tokens(count=3, gap=30.0, first=0.0)) as server:
        with closing(chat(server).stream("hi")) as stream:
            while not next(stream).text:
                pass
        left = time.monotonic()
        request = server.request.settle()
    assert (request.generated, request.completed) == (1, False)
    assert request.left is not None
    assert request.left - left < 0.5


def test_a_call_that_is_not_streamed_generates_until_the_client_leaves(
    chat: Chat,
) -> None:
    with Provider(Drip()) as server:

        async def main() -> None:
            await asyncio.wait_for(chat(server).ainvoke("hi"), 0.5)

        with pytest.raises(TimeoutError):
            asyncio.run(main())
        request = server.request.settle()
    assert not request.stream
    assert 2 <= request.generated <= 10


@pytest.mark.parametrize("behaviour", [Silent(), SilentAfterHeaders()])
def test_a_silent_server_sends_nothing(vendor: str, chat: Chat, behaviour: Any) -> None:
    with Provider(behaviour) as server:
        called = call(chat(server, timeout=0.2, max_retries=0), "stream")
        request = server.request.settle()
    assert isinstance(called.error, (SDK[vendor].APIError, httpx2.HTTPError))
    assert request.timeout == 0.2
    assert (request.generated, request.completed) == (0, False)


@pytest.mark.parametrize("streaming", [True, False])
def test_pings_escape_the_time_out_of_the_sdk(chat: Chat, streaming: bool) -> None:
    with Provider(Pings(gap=0.05)) as server:

        async def main() -> None:
            model = chat(server, timeout=0.2, max_retries=0, streaming=streaming)
            await asyncio.wait_for(model.ainvoke("hi"), 0.6)

        with pytest.raises(TimeoutError):
            asyncio.run(main())
        request = server.request.settle()
    assert request.stream == streaming
    assert (request.generated, request.completed) == (0, False)


def test_a_connection_that_never_opens(vendor: str, chat: Chat, how: How) -> None:
    with unopened() as url:
        called = call(chat(url, timeout=0.2, max_retries=0), how)
    assert isinstance(called.error, SDK[vendor].APITimeoutError)
    assert 0.15 < called.elapsed < 1.2


def test_a_script_goes_on_with_each_request(vendor: str, chat: Chat) -> None:
    with Provider(Status(503), Status(429, retry_after=0.1), Tokens(2)) as server:
        called = call(chat(server), "invoke")
    assert called.message.text == "t0 t1 "
    assert [request.sdk_retries for request in server.requests] == [0, 1, 2]


def test_a_broken_connection_is_an_error_of_the_vendor(vendor: str, chat: Chat) -> None:
    with Provider(Breaks(count=3)) as server:
        called = call(chat(server, max_retries=0), "stream")
    assert isinstance(called.error, (SDK[vendor].APIError, httpx2.HTTPError))
    assert called.message.text == "t0 t1 t2 "


# Under a deadline that is not reached.


def test_a_complete_answer_is_streamed_and_has_its_usage(chat: Chat, how: How) -> None:
    with Provider(Tokens(5)) as server:
        called = call(with_deadline(chat(server), 10), how)
    assert called.error is None
    assert called.message.text == "t0 t1 t2 t3 t4 "
    assert called.message.usage_metadata["input_tokens"] == PROMPT_TOKENS
    assert called.message.usage_metadata["output_tokens"] == 5
    assert "deadline" not in called.message.response_metadata
    assert server.request.stream
    assert server.request.completed
    assert server.request.timeout is not None
    assert 0 < server.request.timeout <= 10
    if how in {"stream", "astream"}:
        assert sum(bool(chunk.text) for chunk in called.chunks) == 5


def test_an_answer_is_the_same_message_as_without_a_deadline(
    chat: Chat, how: How
) -> None:
    with Provider(ToolCall(count=2)) as server:
        plain = chat(server, stream_usage=True)
        bounded = with_deadline(plain, 10)
        as_it_was, now = calls(
            how, plain.bind_tools([look_up]), bounded.bind_tools([look_up])
        )
    assert now.message.text == as_it_was.message.text
    assert now.message.tool_calls == as_it_was.message.tool_calls
    assert now.message.usage_metadata == as_it_was.message.usage_metadata
    if how in {"invoke", "ainvoke"}:
        assert type(now.message) is AIMessage


@pytest.mark.parametrize("option", [{"streaming": False}, {"disable_streaming": True}])
def test_what_its_owner_does_not_stream_stays_that_way(
    chat: Chat, how: How, option: dict[str, Any]
) -> None:
    with Provider(Tokens(5)) as server:
        called = call(with_deadline(chat(server, **option), 10), how)
    assert called.message.text == "t0 t1 t2 t3 t4 "
    assert called.message.usage_metadata["output_tokens"] == 5
    assert not server.request.stream


def test_tool_calls_need_no_stream_where_the_owner_says_so(
    chat: Chat, how: How
) -> None:
    with Provider(Tokens(1), ToolCall()) as server:
        model = with_deadline(chat(server, disable_streaming="tool_calling"), 10)
        calls(how, model, model.bind_tools([look_up]))
    assert [request.stream for request in server.requests] == [True, False]


def test_without_seconds_and_without_a_deadline_around_it_nothing_is_limited(
    chat: Chat, how: How
) -> None:
    with Provider(Tokens(5)) as server:
        called = call(with_deadline(chat(server)), how)
    assert called.message.text == "t0 t1 t2 t3 t4 "
    assert server.request.completed


def test_a_copy_is_of_the_same_class_and_the_original_is_as_it_was(
    vendor: str, chat: Chat, how: How
) -> None:
    with Provider(Status(503), Tokens(2), Tokens(2)) as server:
        model = chat(server, max_retries=1)
        before = model.model_dump()
        bounded = with_deadline(model, 10)
        assert isinstance(bounded, ChatOpenAI if vendor == "openai" else ChatAnthropic)
        assert bounded is not model
        assert bounded.get_name() == model.get_name()
        assert (bounded._llm_type, bounded.max_retries) == (model._llm_type, 1)
        plain, ours = calls(how, model, bounded)
    assert (plain.error, ours.error) == (None, None)
    assert model.model_dump() == before
    # The SDK retries for the original as before, and has no limit of ours.
    assert [request.sdk_retries for request in server.requests] == [0, 1, 0]
    assert server.requests[0].timeout == server.requests[1].timeout != 10


def test_a_copy_of_a_copy_keeps_both_limits(chat: Chat) -> None:
    with Provider(Tokens(2)) as server:
        for first, second in [(1, 10), (10, 1), (timedelta(seconds=1), 10)]:
            model = with_deadline(with_deadline(chat(server), first), second)
            assert call(model, "invoke").message.text == "t0 t1 "
    assert all(0 < (request.timeout or 0) <= 1 for request in server.requests)


def test_the_limit_is_the_smaller_of_its_own_and_what_is_left(
    chat: Chat, how: How
) -> None:
    with Provider(Tokens(2)) as server, fail_after(3):
        called = call(with_deadline(chat(server), 20), how)
    assert called.message.text == "t0 t1 "
    assert 0 < (server.request.timeout or 0) <= 3


def test_a_shorter_time_out_of_the_owner_stays(chat: Chat, how: How) -> None:
    with Provider(Silent()) as server:
        model = with_deadline(chat(server, timeout=0.2, max_retries=0), 10)
        called = call(model, how)
    assert called.error is not None
    assert not isinstance(called.error, DeadlineExceeded)
    assert called.elapsed < 5


# Retries


def test_a_refused_request_is_tried_again_by_us(chat: Chat, how: How) -> None:
    with Provider(Status(503), Tokens(2)) as server:
        called = call(with_deadline(chat(server), 10), how)
    assert called.error is None
    assert called.message.text == "t0 t1 "
    assert [request.sdk_retries for request in server.requests] == [0, 0]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_what_its_owner_does_not_stream_is_tried_again_as_well(
    chat: Chat, how: How
) -> None:
    with Provider(Status(503), Tokens(2)) as server:
        called = call(with_deadline(chat(server, streaming=False), 10), how)
    assert called.message.text == "t0 t1 "
    assert [request.sdk_retries for request in server.requests] == [0, 0]
    assert [request.stream for request in server.requests] == [False, False]


def test_no_more_attempts_than_the_model_has_retries(
    vendor: str, chat: Chat, how: How
) -> None:
    with Provider(Status(503)) as plain_server, Provider(Status(503)) as server:
        plain = call(chat(plain_server, max_retries=0), how)
        called = call(with_deadline(chat(server, max_retries=1), 20), how)
    assert len(server.requests) == 2
    assert all(request.sdk_retries == 0 for request in server.requests)
    assert type(called.error) is type(plain.error)
    assert isinstance(called.error, SDK[vendor].APIStatusError)
    assert called.error.status_code == 503


def test_a_model_without_retries_is_asked_once(
    vendor: str, chat: Chat, how: How
) -> None:
    with Provider(Status(503), Tokens(2)) as server:
        called = call(with_deadline(chat(server, max_retries=0), 10), how)
    assert isinstance(called.error, SDK[vendor].APIStatusError)
    assert len(server.requests) == 1


def test_the_wait_that_a_vendor_asks_for_is_kept(chat: Chat, how: How) -> None:
    with Provider(Status(429, retry_after=0.2), Tokens(2)) as server:
        called = call(with_deadline(chat(server), 10), how)
    assert called.message.text == "t0 t1 "
    first, second = server.requests
    assert second.arrived - first.arrived >= 0.2


def test_the_limit_of_a_second_attempt_is_what_is_left(chat: Chat, how: How) -> None:
    with Provider(Status(429, retry_after=1), Tokens(2)) as server:
        called = call(with_deadline(chat(server), 10), how)
    assert called.message.text == "t0 t1 "
    first, second = server.requests
    assert first.timeout is not None
    assert second.timeout is not None
    assert second.timeout <= 9.0 < first.timeout


def test_other_errors_of_the_vendor_pass_unchanged(
    vendor: str, chat: Chat, how: How
) -> None:
    with Provider(Status(400)) as plain_server, Provider(Status(400)) as server:
        plain = call(chat(plain_server), how)
        called = call(with_deadline(chat(server), 10), how)
    assert type(called.error) is type(plain.error)
    assert isinstance(called.error, SDK[vendor].BadRequestError)
    assert called.error.status_code == 400
    assert str(called.error) == str(plain.error)
    assert len(server.requests) == 1


def test_a_stream_that_breaks_is_not_begun_again(chat: Chat) -> None:
    with Provider(Breaks(count=3)) as server:
        streamed = call(with_deadline(chat(server), 10), "stream")
        (astreamed,) = calls("astream", with_deadline(chat(server), 10))
    for called in (streamed, astreamed):
        assert called.message.text == "t0 t1 t2 "
        assert called.error is not None
        assert not isinstance(called.error, DeadlineExceeded)
    assert len(server.requests) == 2


def test_a_retry_leaves_the_minimum_window(vendor: str, chat: Chat, how: How) -> None:
    with Provider(Status(429, retry_after=1.5), Tokens(2)) as server:
        called = call(with_deadline(chat(server), 3, needs=2.5), how)
    assert isinstance(called.error, DeadlineExceeded)
    assert called.error.cause == "window"
    assert isinstance(called.error.__cause__, SDK[vendor].RateLimitError)
    assert called.elapsed < 1.4
    assert len(server.requests) == 1


# The window


def test_a_window_that_is_not_there_is_no_request(chat: Chat, how: How) -> None:
    with Provider(Tokens(2)) as server, fail_after(5):
        called = call(with_deadline(chat(server), needs=10), how)
    assert isinstance(called.error, DeadlineExceeded)
    assert called.error.cause == "window"
    assert called.error.needed == 10
    assert called.elapsed < 1
    assert server.requests == []


def test_time_for_no_token_is_no_window(chat: Chat, how: How) -> None:
    with Provider(Tokens(2)) as server, fail_after(5):
        model = with_deadline(chat(server), tokens_per_second=1, time_to_first_token=10)
        called = call(model, how)
    assert isinstance(called.error, DeadlineExceeded)
    assert called.error.cause == "window"
    assert called.error.needed == 10
    assert server.requests == []


def test_a_window_that_is_there_is_used(chat: Chat, how: How) -> None:
    with Provider(Tokens(2)) as server, fail_after(10):
        called = call(with_deadline(chat(server), 8, needs=2), how)
    assert called.message.text == "t0 t1 "


# Clamped answers


def test_an_answer_is_clamped_to_what_the_time_allows(chat: Chat, how: How) -> None:
    with Provider(Tokens(600, gap=0.001)) as server:
        model = with_deadline(
            chat(server), 5, tokens_per_second=100, time_to_first_token=0.1
        )
        called = call(model, how)
    assert called.error is None
    assert 100 <= (server.request.max_tokens or 0) <= 490
    assert called.message.usage_metadata["output_tokens"] == server.request.max_tokens


@pytest.mark.parametrize(
    ("own", "given", "most"),
    [(10, None, 10), (5000, None, 90), (10, 30, 30), (None, 30, 30), (None, 500, 90)],
)
def test_a_clamp_never_raises_the_limit(
    chat: Chat, own: int | None, given: int | None, most: int
) -> None:
    with Provider(Tokens(1)) as server:
        model = with_deadline(
            chat(server, max_tokens=own),
            1,
            tokens_per_second=100,
            time_to_first_token=0.1,
        )
        per_call = {} if given is None else {"max_tokens": given}
        for how in ALL:
            call(model, how, **per_call)
        call(model.bind(**per_call), "invoke")
    for request in server.requests:
        assert min(most, 20) <= (request.max_tokens or 0) <= most
        assert most in {90, request.max_tokens}


def test_a_clamp_knows_the_vendors_other_name_for_the_limit() -> None:
    with Provider(Tokens(1)) as server:
        model = with_deadline(VENDORS["openai"](server), 1, tokens_per_second=100)
        call(model, "invoke", max_completion_tokens=7)
        call(model, "invoke", max_completion_tokens=700)
    assert [request.generated for request in server.requests] == [1, 1]
    assert server.requests[0].max_tokens == 7
    assert (server.requests[1].max_tokens or 0) <= 100


def test_a_call_without_a_deadline_is_not_clamped(chat: Chat) -> None:
    with Provider(Tokens(1)) as server:
        model = with_deadline(chat(server, max_tokens=5000), tokens_per_second=100)
        call(model, "invoke")
    assert server.request.max_tokens == 5000


def test_the_pace_is_measured_where_it_is_not_given(chat: Chat, how: How) -> None:
    with Provider(Tokens(30, gap=0.02)) as server:
        model = with_deadline(chat(server, max_tokens=5000), 5)
        calls(how, *[model] * 5)
    limits = [request.max_tokens for request in server.requests]
    assert limits[0] == 5000
    assert limits[-1] is not None
    # It is 50 tokens a second, or less on a machine that is busy; an answer that would
    # have been in time must not be cut short for an average.
    assert 20 <= limits[-1] <= 2 * 5 * 50


# In the company of LangChain's other parts


def test_bound_tools_are_bounded(chat: Chat, how: How) -> None:
    with Provider(ToolCall(count=1)) as server:
        called = call(with_deadline(chat(server), 10).bind_tools([look_up]), how)
    (made,) = called.message.tool_calls
    assert (made["name"], made["args"]) == ("look_up", {"city": "Paris"})
    assert server.request.stream
    assert 0 < (server.request.timeout or 0) <= 10


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("option", [{}, {"streaming": False}])
def test_structured_output_is_bounded(
    chat: Chat, way: How, method: str, option: dict[str, Any]
) -> None:
    words = '{"city": "Paris"}'
    saying: Any = Says(words=words)
    if method == "function_calling":
        saying = ToolCall(name="City", arguments=words)
    with Provider(saying) as server:
        model = with_deadline(chat(server, **option), 10)
        called = call(model.with_structured_output(City, method=method), way)
    assert called.error is None
    assert called.message == City(city="Paris")
    assert 0 < (server.request.timeout or 0) <= 10


def test_the_next_model_of_a_list_is_used_where_it_fits(chat: Chat, how: How) -> None:
    with Provider(Status(400)) as first, Provider(Tokens(2)) as second:
        model = with_deadline(chat(first), 5, needs=1).with_fallbacks(
            [with_deadline(chat(second), 5, needs=1)]
        )
        with fail_after(8):
            called = call(model, how)
    assert called.message.text == "t0 t1 "
    assert (len(first.requests), len(second.requests)) == (1, 1)


def test_with_retry_still_retries_the_errors_of_the_vendor(chat: Chat) -> None:
    with Provider(Status(503), Tokens(2)) as server:
        model = with_deadline(chat(server, max_retries=0), 20).with_retry(
            stop_after_attempt=2
        )
        called = call(model, "invoke")
    assert called.message.text == "t0 t1 "
    assert len(server.requests) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_answers_in_order(chat: Chat, asynchronous: bool) -> None:
    with Provider(Tokens(2)) as server:
        model = with_deadline(chat(server), 10)
        inputs = ["a", "b", "c"]
        answers = (
            asyncio.run(model.abatch(inputs)) if asynchronous else model.batch(inputs)
        )
    assert [answer.text for answer in answers] == ["t0 t1 "] * 3
    assert len(server.requests) == 3
    assert all(request.stream for request in server.requests)


def test_events_of_a_model_are_streamed(chat: Chat) -> None:
    async def main(model: Any) -> list[Any]:
        return [event async for event in model.astream_events("hi", version="v2")]

    with Provider(Tokens(3)) as server:
        events = asyncio.run(main(with_deadline(chat(server), 10)))
    kinds = [event["event"] for event in events]
    assert kinds[0] == "on_chat_model_start"
    assert kinds.count("on_chat_model_stream") >= 3
    assert kinds[-1] == "on_chat_model_end"


# Bad input


@pytest.mark.parametrize("value", [-1, math.nan, True, "soon"])
@pytest.mark.parametrize(
    "argument", ["seconds", "needs", "tokens_per_second", "time_to_first_token"]
)
def test_a_limit_that_is_none_is_refused_by_name(
    chat: Chat, argument: str, value: Any
) -> None:
    with Provider() as server, pytest.raises(ValueError, match=argument):
        with_deadline(chat(server), **{"seconds": 5, argument: value})


@pytest.mark.parametrize("argument", ["seconds", "tokens_per_second"])
def test_nothing_is_no_limit_and_no_pace(chat: Chat, argument: str) -> None:
    with Provider() as server, pytest.raises(ValueError, match=argument):
        with_deadline(chat(server), **{"seconds": 5, argument: 0})


def test_a_window_larger_than_the_limit_is_refused(chat: Chat) -> None:
    with Provider() as server, pytest.raises(ValueError, match="needs"):
        with_deadline(chat(server), 1, needs=2)


def test_an_unknown_reaction_is_refused(chat: Chat) -> None:
    with Provider() as server, pytest.raises(ValueError, match="on_exceeded"):
        with_deadline(chat(server), 1, on_exceeded="message")


def test_an_unknown_option_is_refused(chat: Chat) -> None:
    with Provider() as server, pytest.raises((TypeError, ValueError), match="fallback"):
        with_deadline(chat(server), 1, fallback="degrade")


def test_what_is_no_model_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match="int"):
        with_deadline(7, 1, tokens_per_second=5)
