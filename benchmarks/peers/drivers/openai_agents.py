"""OpenAI Agents SDK.

A run has no limit in time. Around `Runner.run` there is `asyncio.wait_for`; in the case
of the stream, `Runner.run_streamed` and its `cancel()`. Tools have no back-off of their
own: the retries are a loop inside the tool. The conversation is a `SQLiteSession` in
memory.

Documentation: "Running agents", "Streaming" (`cancel()`), "Sessions", "Tracing" (how to
switch it off).
"""

# Only in an environment of its own.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    RawResponsesStreamEvent,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from ..drive import Setup

set_tracing_disabled(True)


def text_of(event: Any) -> str:
    """Return what a raw event of the stream adds to the answer."""
    return str(event.delta) if event.type == "response.output_text.delta" else ""


class Conversation:
    def __init__(self, setup: Setup) -> None:
        client = AsyncOpenAI(base_url=setup.url, api_key=setup.key)
        tools = [setup.look_up(), setup.research(retried=True)]
        self.agent: Any = Agent(
            name="agent",
            model=OpenAIChatCompletionsModel(setup.model, openai_client=client),
            tools=[function_tool(each) for each in tools],
        )
        self.session = SQLiteSession("1")
        self.streaming = setup.streaming

    async def turn(self, text: str, deadline: float) -> str:
        if self.streaming:
            return await self._streamed(text, deadline)
        run = Runner.run(self.agent, text, session=self.session)
        return str((await asyncio.wait_for(run, deadline)).final_output)

    async def _streamed(self, text: str, deadline: float) -> str:
        result = Runner.run_streamed(self.agent, text, session=self.session)
        timer = asyncio.get_running_loop().call_later(deadline, result.cancel)
        said = ""
        try:
            async for event in result.stream_events():
                if isinstance(event, RawResponsesStreamEvent):
                    said += text_of(event.data)
        finally:
            timer.cancel()
        return said if result.final_output is None else str(result.final_output)

    async def kept(self) -> str | None:
        return str(await self.session.get_items())


def build(setup: Setup) -> Conversation:
    return Conversation(setup)
