"""A provider of tokens in virtual time, and LangChain's model of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langgraph_deadline import _clock


@dataclass
class Provider:
    """Generates tokens, and notes when; behaves as providers do when a client leaves.

    A stream ends with its connection. An answer that is not streamed is generated (and
    billed) to its end, for nothing is written that would find the connection closed.
    """

    gap: float
    """Time from token to token (in seconds)."""
    tokens: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    _unseen: set[asyncio.Task[None]] = field(default_factory=set)

    async def stream(self, count: int) -> AsyncIterator[str]:
        """Yield tokens while somebody reads."""
        self.calls.append(_clock.now())
        for number in range(count):
            await self._token()
            yield f"t{number} "

    async def whole(self, count: int) -> str:
        """Return all tokens at once, and generate them if nobody waits any more."""
        self.calls.append(_clock.now())
        task = asyncio.create_task(self._all(count))
        self._unseen.add(task)
        task.add_done_callback(self._unseen.discard)
        await asyncio.shield(task)
        return "".join(f"t{number} " for number in range(count))

    async def _all(self, count: int) -> None:
        for _ in range(count):
            await self._token()

    async def _token(self) -> None:
        await asyncio.sleep(self.gap)
        self.tokens.append(_clock.now())


class ProviderModel(BaseChatModel):
    """A chat model that asks a `Provider`; the prompt is how many tokens to say."""

    provider: Any
    streaming: bool = False

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        text = await self.provider.whole(int(messages[-1].text))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for token in self.provider.stream(int(messages[-1].text)):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=token))
            if run_manager is not None:
                await run_manager.on_llm_new_token(token, chunk=chunk)
            yield chunk
