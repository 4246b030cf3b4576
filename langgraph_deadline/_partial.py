"""What was received of a model's answer when it was cut, as an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from .errors import DeadlineExceeded

MARK = {"deadline": "exceeded"}
"""In the `response_metadata` of an answer that is not complete."""


def is_partial(message: Any) -> bool:
    """Return whether an answer, or the last chunk of one, says that it was cut."""
    metadata: Any = getattr(message, "response_metadata", None) or {}
    return bool(metadata.get("deadline") == "exceeded")


def empty_answer() -> ChatResult:
    """Return the answer of a model that was cut before its first token."""
    message = AIMessage(content="", response_metadata=dict(MARK))
    return ChatResult(generations=[ChatGeneration(message=message)])


class Partial:
    """Passes chunks on, but for what may only be told of a complete answer.

    That are tool calls, whose arguments might lack their end, and usage, of which the
    first half looks like the whole.
    """

    def __init__(self) -> None:
        self._held: list[ChatGenerationChunk] = []
        self._usage: UsageMetadata | None = None

    def take(self, chunk: ChatGenerationChunk) -> Iterator[ChatGenerationChunk]:
        """Yield what may be passed on of `chunk`."""
        message: Any = chunk.message
        if (usage := getattr(message, "usage_metadata", None)) is not None:
            self._usage = add_usage(self._usage, usage)
            message = message.model_copy(update={"usage_metadata": None})
            chunk = ChatGenerationChunk(
                message=message, generation_info=chunk.generation_info
            )
        if self._held or getattr(message, "tool_call_chunks", None):
            self._held.append(chunk)
        else:
            yield chunk

    def end(self) -> Iterator[ChatGenerationChunk]:
        """Yield the rest of an answer that is complete."""
        yield from self._held
        if self._usage is not None:
            message = AIMessageChunk(content="", usage_metadata=self._usage)
            yield ChatGenerationChunk(message=message)

    def cut(self, error: DeadlineExceeded) -> Iterator[ChatGenerationChunk]:
        """Yield the end of an answer that was cut; raise if it was never begun."""
        if error.cause == "window":
            raise error
        message = AIMessageChunk(
            content="", response_metadata=dict(MARK), chunk_position="last"
        )
        yield ChatGenerationChunk(message=message)


class CompleteOnly(BaseCache):
    """A model's cache that does not keep answers that were cut."""

    def __init__(self, inner: BaseCache | None) -> None:
        self._inner = inner

    @classmethod
    def around(cls, cache: Any) -> CompleteOnly:
        """Return the cache of a model whose `cache` is this; `None` is LangChain's."""
        if isinstance(cache, CompleteOnly):
            return cache
        return cls(cache if isinstance(cache, BaseCache) else None)

    def _cache(self) -> BaseCache | None:
        return self._inner if self._inner is not None else get_llm_cache()

    def lookup(self, prompt: str, llm_string: str) -> Any:
        """Return what the cache has."""
        cache = self._cache()
        return cache.lookup(prompt, llm_string) if cache is not None else None

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        """Keep an answer, if it is complete."""
        cache = self._cache()
        if cache is not None and not _any_partial(return_val):
            cache.update(prompt, llm_string, return_val)

    async def alookup(self, prompt: str, llm_string: str) -> Any:
        """Return what the cache has."""
        cache = self._cache()
        return await cache.alookup(prompt, llm_string) if cache is not None else None

    async def aupdate(self, prompt: str, llm_string: str, return_val: Any) -> None:
        """Keep an answer, if it is complete."""
        cache = self._cache()
        if cache is not None and not _any_partial(return_val):
            await cache.aupdate(prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        """Empty the cache."""
        cache = self._cache()
        if cache is not None:
            cache.clear(**kwargs)


def _any_partial(generations: Any) -> bool:
    return any(is_partial(getattr(g, "message", None)) for g in generations)
