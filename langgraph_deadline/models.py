"""Chat models with a deadline: streamed, so that a cut stops what is generated."""

# What is overridden here is what LangChain's models are made of, protected or not.
# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args
from uuid import UUID

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from . import _clock
from ._calls import NO_LIMIT, CallLimit, call_async, call_sync, threaded
from ._cut import Step
from ._langchain import (
    answers_async,
    streams,
    streams_all_it_says,
    streams_async,
)
from ._pace import Pace
from ._partial import CompleteOnly, Partial, empty_answer
from ._runnables import class_of, retry_in_time
from ._scope import check, current, remaining
from ._streams import stream_async, stream_sync
from ._vendors import (
    asks_for_usage,
    clamped,
    may_be_retried,
    pause_before,
    takes_max_tokens,
    takes_timeout,
    timeout_of,
    without_retries,
)
from .deadline import positive_seconds_of, seconds_of, shown
from .errors import DeadlineExceeded

OnExceeded = Literal["raise", "partial"]

_AT_ONCE = 0.01  # seconds


@dataclass(frozen=True)
class ModelOptions:
    """What `with_deadline(model, ...)` was told, and what the model had before."""

    limit: CallLimit = NO_LIMIT
    on_exceeded: OnExceeded = "raise"
    pace: Pace = field(default_factory=Pace)
    retries: int = 0
    rate_limiter: Any = None


class BoundedModel(BaseChatModel):
    """What a chat model gains: its calls end on time.

    Mixed into the class of the model, so that it stays what it was.
    """

    _deadline_options: ModelOptions = PrivateAttr(default_factory=ModelOptions)

    def deadline_options(self) -> ModelOptions:
        """Return what the model was wrapped with."""
        return self._deadline_options

    # A stream inside is not told which call it is a part of.

    def _generate_with_cache(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        """Answer as a whole, streamed or not."""
        token = _calling.set(getattr(run_manager, "run_id", None))
        whole: Any = super()
        try:
            answer: ChatResult = whole._generate_with_cache(
                messages, stop, run_manager, **kwargs
            )
        finally:
            _calling.reset(token)
        return answer

    async def _agenerate_with_cache(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        """Answer as a whole, streamed or not."""
        token = _calling.set(getattr(run_manager, "run_id", None))
        whole: Any = super()
        try:
            answer: ChatResult = await whole._agenerate_with_cache(
                messages, stop, run_manager, **kwargs
            )
        finally:
            _calling.reset(token)
        return answer

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        """Answer as a whole, on time."""
        options = self._deadline_options
        whole: Any = super()
        answer = functools.partial(whole._generate, messages, stop, run_manager)
        body = functools.partial(self._attempts, answer, kwargs)
        try:
            result: ChatResult = call_sync(
                self.get_name(), "model", options.limit, body, _known
            )
        except DeadlineExceeded as error:
            return self._without_answer(error)
        return result

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        """Answer as a whole, on time."""
        options = self._deadline_options
        whole: Any = super()
        if not answers_async(_own_class(type(self))):
            # Not in the loop's few threads.
            sync = run_manager.get_sync() if run_manager is not None else None
            answer = functools.partial(whole._generate, messages, stop, sync)
            body = functools.partial(threaded, self._attempts, answer, kwargs)
        else:
            aanswer = functools.partial(whole._agenerate, messages, stop, run_manager)
            body = functools.partial(self._aattempts, aanswer, kwargs)
        try:
            result: ChatResult = await call_async(
                self.get_name(), "model", options.limit, body, _known
            )
        except DeadlineExceeded as error:
            return self._without_answer(error)
        return result

    def _without_answer(self, error: DeadlineExceeded) -> ChatResult:
        if self._deadline_options.on_exceeded == "raise" or error.cause == "window":
            raise error
        return empty_answer()

    # Attempts: the SDK makes one, we make the others, if they are in time.

    def _attempts(self, answer: Any, kwargs: dict[str, Any]) -> Any:
        attempt = 0
        while True:
            self._wait_for_rate()
            try:
                return answer(**self._within(kwargs))
            except Exception as error:  # noqa: BLE001 - raised, unless retried in time
                _clock.sleep(self._pause(error, attempt))
            attempt = self._next(attempt)

    async def _aattempts(self, answer: Any, kwargs: dict[str, Any]) -> Any:
        attempt = 0
        while True:
            await self._await_rate()
            try:
                return await answer(**self._within(kwargs))
            except Exception as error:  # noqa: BLE001 - raised, unless retried in time
                pause = self._pause(error, attempt)
            await asyncio.sleep(pause)
            attempt = self._next(attempt)

    def _next(self, attempt: int) -> int:
        """Return the number of the next attempt, after noting that there is one."""
        scope = current.get()
        if scope is not None and scope.step is not None:
            scope.step.attempts = attempt + 2
        return attempt + 1

    def _wait_for_rate(self) -> None:
        if self._deadline_options.rate_limiter is not None:
            self._deadline_options.rate_limiter.acquire(blocking=True)

    async def _await_rate(self) -> None:
        if self._deadline_options.rate_limiter is not None:
            await self._deadline_options.rate_limiter.aacquire(blocking=True)

    def _within(
        self, kwargs: dict[str, Any], *, stream: bool = False
    ) -> dict[str, Any]:
        """Return the options of a call, with what is left as the provider's limits."""
        options = self._deadline_options
        within = dict(kwargs)
        if stream:
            within.update(asks_for_usage(self, kwargs))
        left = remaining()
        if left == math.inf:
            return within
        affordable = options.pace.affordable(left)
        check(max(options.limit.needs, _AT_ONCE))
        if affordable < 1:
            raise DeadlineExceeded(
                cause="window",
                step=self.get_name(),
                remaining=left,
                needed=options.pace.first_token(),
            )
        if takes_timeout(self):
            within["timeout"] = timeout_of(self, kwargs, left)
        if takes_max_tokens(self):
            within.update(clamped(self, kwargs, affordable))
        return within

    def _pause(self, error: Exception, attempt: int) -> float:
        """Return how long to wait before the next attempt (in seconds).

        Raises:
            DeadlineExceeded: If there is no time for it.
            Exception: The error itself, if there is no next attempt.
        """
        options = self._deadline_options
        left = remaining()
        if left <= _AT_ONCE:  # the provider's limit, which was ours
            check()
        if attempt >= options.retries or not may_be_retried(error):
            raise error
        pause = pause_before(error, attempt)
        needed = max(options.limit.needs, options.pace.first_token(), _AT_ONCE)
        if left - pause < needed:
            raise DeadlineExceeded(
                cause="window",
                step=self.get_name(),
                budget=options.limit.seconds,
                remaining=left,
                needed=pause + needed,
            ) from error
        return pause

    def with_retry(
        self, *, retry_if_exception_type: Any = (Exception,), **kwargs: Any
    ) -> Runnable[Any, Any]:
        """Return the model with retries, but none of what ran out of time."""
        kinds = retry_in_time(retry_if_exception_type)
        return super().with_retry(retry_if_exception_type=kinds, **kwargs)


class StreamingModel(BoundedModel):
    """What a chat model gains that can stream: it always does."""

    def _should_stream(
        self, *, async_api: bool, run_manager: Any = None, **kwargs: Any
    ) -> bool:
        """Stream, unless the owner of the model switched it off."""
        asked = {**kwargs, "stream": True}
        refused = kwargs.get("stream") is False or (
            "streaming" in self.model_fields_set
            and getattr(self, "streaming", None) is False
        )
        refused = refused or not streams_all_it_says(_own_class(type(self)))
        if refused or (kwargs.get("n") or getattr(self, "n", None) or 1) != 1:
            asked = kwargs
        return super()._should_stream(
            async_api=async_api, run_manager=run_manager, **asked
        )

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        """Yield the answer, on time."""
        options = self._deadline_options
        open_stream = functools.partial(super()._stream, messages, stop, run_manager)
        make = functools.partial(self._chunks, open_stream, kwargs)
        chunks = stream_sync(self.get_name(), "model", options.limit, make, _known)
        if options.on_exceeded == "raise":
            yield from chunks
            return
        partial = Partial()
        try:
            for chunk in chunks:
                yield from partial.take(chunk)
        except DeadlineExceeded as error:
            yield from partial.cut(error)
        else:
            yield from partial.end()

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        """Yield the answer, on time."""
        options = self._deadline_options
        if not streams_async(_own_class(type(self))):
            sync = run_manager.get_sync() if run_manager is not None else None
            open_stream = functools.partial(super()._stream, messages, stop, sync)
            sync_chunks = functools.partial(self._chunks, open_stream, kwargs)
            make: Any = functools.partial(_from_thread, sync_chunks)
        else:
            opened = functools.partial(super()._astream, messages, stop, run_manager)
            make = functools.partial(self._achunks, opened, kwargs)
        chunks = stream_async(self.get_name(), "model", options.limit, make, _known)
        if options.on_exceeded == "raise":
            async for chunk in chunks:
                yield chunk
            return
        partial = Partial()
        try:
            async for chunk in chunks:
                for ready in partial.take(chunk):
                    yield ready
        except DeadlineExceeded as error:
            for last in partial.cut(error):
                yield last
        else:
            for last in partial.end():
                yield last

    def _chunks(
        self, open_stream: Any, kwargs: dict[str, Any]
    ) -> Iterator[ChatGenerationChunk]:
        attempt = 0
        while True:
            self._wait_for_rate()
            timing = _Timing(self._deadline_options.pace)
            try:
                for chunk in open_stream(**self._within(kwargs, stream=True)):
                    timing.took(chunk)
                    yield chunk
            except Exception as error:
                if timing.began:
                    check()
                    raise
                _clock.sleep(self._pause(error, attempt))
            else:
                timing.ended()
                return
            attempt = self._next(attempt)

    async def _achunks(
        self, open_stream: Any, kwargs: dict[str, Any]
    ) -> AsyncIterator[ChatGenerationChunk]:
        attempt = 0
        while True:
            await self._await_rate()
            timing = _Timing(self._deadline_options.pace)
            try:
                async for chunk in open_stream(**self._within(kwargs, stream=True)):
                    timing.took(chunk)
                    yield chunk
            except Exception as error:
                if timing.began:
                    check()
                    raise
                pause = self._pause(error, attempt)
            else:
                timing.ended()
                return
            await asyncio.sleep(pause)
            attempt = self._next(attempt)


_calling: ContextVar[UUID | None] = ContextVar("langgraph_deadline_call", default=None)
"""The call that is being made, by the id that callbacks know it by."""


def _known(step: Step) -> None:
    """Tell the journal that `step` is the call that callbacks told it of."""
    if step.run.journal is not None:
        step.run.journal.guarded(_calling.get(), step)


class _Timing:
    """Measures one answer."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._start = _clock.now()
        self._first = 0.0
        self._last = 0.0
        self._chunks = 0
        self._tokens = 0
        self.began = False

    def took(self, chunk: ChatGenerationChunk) -> None:
        """Note a chunk."""
        message: Any = chunk.message
        if usage := getattr(message, "usage_metadata", None):
            self._tokens += usage.get("output_tokens", 0)
        if message.content or getattr(message, "tool_call_chunks", None):
            now = _clock.now()
            self._first = self._first or now
            self._last = now
            self._chunks += 1
        self.began = True

    def ended(self) -> None:
        """Learn from an answer that is complete."""
        tokens = self._tokens or self._chunks
        self._pace.note(self._first - self._start, self._last - self._first, tokens)


async def _from_thread(make: Any) -> AsyncIterator[Any]:
    """Yield what the iterator of `make()` yields, each item taken in a thread."""
    items = make()
    end = object()
    while (item := await threaded(next, items, end)) is not end:
        yield item


def bounded_model(
    model: Any,
    seconds: Any = None,
    *,
    needs: Any = 0.0,
    on_exceeded: OnExceeded = "raise",
    tokens_per_second: float | None = None,
    time_to_first_token: float | None = None,
) -> Any:
    """Return a copy of `model` whose calls end on time; the original stays as it was.

    Raises:
        ValueError: If an option has no such value; the message names it.
    """
    if on_exceeded not in get_args(OnExceeded):
        msg = f"on_exceeded must be 'raise' or 'partial', got {shown(on_exceeded)}"
        raise ValueError(msg)
    limit = CallLimit.checked(seconds, needs)
    pace = Pace(
        _positive(tokens_per_second, "tokens_per_second"),
        None
        if time_to_first_token is None
        else _not_negative(time_to_first_token, "time_to_first_token"),
    )
    if tokens_per_second is not None and not takes_max_tokens(model):
        msg = (
            f"tokens_per_second is of no use for {type(model).__name__}: it has no "
            "`max_tokens` that could be clamped"
        )
        raise ValueError(msg)
    if isinstance(model, BoundedModel):
        before = model.deadline_options()
        copied: Any = model.model_copy()
        options = replace(before, limit=limit.within(before.limit))
    else:
        copied = model.model_copy()
        retries = without_retries(copied)
        options = ModelOptions(limit, retries=retries, rate_limiter=model.rate_limiter)
        copied.__dict__["rate_limiter"] = None  # waited for within the limit
    if on_exceeded == "partial" and copied.cache is not False:
        copied.__dict__["cache"] = CompleteOnly.around(copied.cache)
    object.__setattr__(copied, "__class__", _class_for(type(model)))
    private = dict(copied.__pydantic_private__ or {})
    private["_deadline_options"] = replace(options, on_exceeded=on_exceeded, pace=pace)
    object.__setattr__(copied, "__pydantic_private__", private)
    return copied


def _positive(value: Any, name: str) -> float | None:
    return None if value is None else positive_seconds_of(value, name)


def _not_negative(value: Any, name: str) -> float:
    seconds = seconds_of(value, name)
    if seconds < 0:
        msg = f"{name} must not be negative, got {shown(value)}"
        raise ValueError(msg)
    return seconds


def _own_class(cls: type[Any]) -> type[Any]:
    """Return the class a model had before it was wrapped."""
    return cls.__bases__[-1] if issubclass(cls, BoundedModel) else cls


def _class_for(cls: type[Any]) -> type[Any]:
    own = _own_class(cls)
    return class_of(StreamingModel if streams(own) else BoundedModel, own)
