"""Chat models as others write them: many have sync methods alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import ALL, How
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langgraph_deadline import DeadlineExceeded, with_deadline

pytestmark = pytest.mark.realtime
LONG = 20.0
"""How long a model is silent that nobody releases (in seconds)."""


class Whole(BaseChatModel):
    """Answers as a whole, in sync code alone."""

    released: Any = None
    silent: bool = False
    failure: Any = None

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        if self.failure is not None:
            raise self.failure
        if self.silent:
            self.released.wait(LONG)
        answer = ChatGeneration(message=AIMessage("a b c"))
        return ChatResult(generations=[answer])


class Streaming(Whole):
    """Streams, in sync code alone, and falls silent in the middle if asked to."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for part in ("a ", "b ", "c"):
            if part == "b " and self.silent:
                self.released.wait(LONG)
            yield ChatGenerationChunk(message=AIMessageChunk(part))


KINDS = (Whole, Streaming)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Return what lets a silent model go on, at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def asked(model: Any, how: How) -> str:
    """Return the text of a model's answer to a question, asked as `how` says."""

    async def streamed() -> list[str]:
        return [str(chunk.text) async for chunk in model.astream("?")]

    if how == "invoke":
        return str(model.invoke("?").text)
    if how == "ainvoke":
        return str(asyncio.run(model.ainvoke("?")).text)
    if how == "stream":
        return "".join(str(chunk.text) for chunk in model.stream("?"))
    return "".join(asyncio.run(streamed()))


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_sync_methods_alone_answers(kind: type[Whole], how: How) -> None:
    """Also where it is awaited, as without a limit."""
    assert asked(with_deadline(kind(), 10), how) == asked(kind(), how) == "a b c"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_sync_methods_alone_is_given_up_at_its_limit(
    kind: type[Whole], how: How, released: threading.Event
) -> None:
    """Its thread goes on, and nobody waits for it: not even the end of the loop."""
    model = with_deadline(kind(silent=True, released=released), 0.3)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        asked(model, how)
    assert 0.25 <= time.monotonic() - began < 5


@pytest.mark.parametrize("how", ALL)
def test_what_a_sync_stream_had_said_is_a_part_of_an_answer(
    how: How, released: threading.Event
) -> None:
    """`on_exceeded="partial"` is for models of all kinds."""
    silent = Streaming(silent=True, released=released)
    model = with_deadline(silent, 0.5, on_exceeded="partial")
    assert asked(model, how) == "a "


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_the_errors_of_a_model_are_its_own(how: How) -> None:
    """It has no retries that we know of, so that its first error is raised."""
    model = with_deadline(Whole(failure=ConnectionError("gone")), 10)
    with pytest.raises(ConnectionError, match="gone"):
        asked(model, how)


def test_a_pace_is_refused_where_no_answer_could_be_shortened() -> None:
    """A model without `max_tokens`."""
    with pytest.raises(ValueError, match="no use for Whole: it has no `max_tokens`"):
        with_deadline(Whole(), 10, tokens_per_second=50)
