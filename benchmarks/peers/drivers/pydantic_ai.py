"""PydanticAI: `agent.run(timeout=)`.

The history of a run that timed out goes into the next turn, as documented. In the case
of the stream an `event_stream_handler` makes `run` stream. Tools have no back-off of
their own: the retries are a loop inside the tool.

Documentation: `AbstractAgent.run` and `RunTimedOut` in the API reference ("keeping what
it completed", "ready to resume from").
"""

# Only in an environment of its own.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import RunTimedOut
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from ..drive import Setup


async def ignored(context: RunContext[None], events: AsyncIterable[Any]) -> None:
    async for _ in events:
        pass


class Conversation:
    def __init__(self, setup: Setup) -> None:
        provider = OpenAIProvider(base_url=setup.url, api_key=setup.key)
        self.agent: Any = Agent(
            OpenAIChatModel(setup.model, provider=provider),
            tools=[setup.look_up(), setup.research(retried=True)],
        )
        self.handler = ignored if setup.streaming else None
        self.history: list[Any] = []

    async def turn(self, text: str, deadline: float) -> str:
        try:
            result = await self.agent.run(
                text,
                message_history=self.history,
                timeout=deadline,
                event_stream_handler=self.handler,
            )
        except RunTimedOut as error:
            self.history = error.all_messages()
            raise
        self.history = result.all_messages()
        return str(result.output)

    async def kept(self) -> str | None:
        return str(self.history)


def build(setup: Setup) -> Conversation:
    return Conversation(setup)
