"""LlamaIndex Workflows: `Workflow(timeout=)`.

The model is called with OpenAI's own client in one step, the tools in another, as in
the documented function-calling agent. The messages are in the context's store, and the
context goes into the next turn; what is retried is the step of the tools, by its
`retry_policy`.

Documentation: "Workflows" (`timeout`, `Context`), "Retrying steps", "Function-calling
agent from scratch" in the examples. A sync tool is called in a thread
(`asyncio.to_thread`), as the runtime does with sync steps.
"""

# Only in an environment of its own.
# mypy: disable-error-code="import-not-found, misc, untyped-decorator"

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

from openai import AsyncOpenAI
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from workflows.retry_policy import ExponentialBackoffRetryPolicy

from .. import work
from ..drive import Setup

RETRIES = ExponentialBackoffRetryPolicy(
    initial_delay=work.BACKOFF,
    multiplier=2,
    maximum_attempts=work.ATTEMPTS,
    jitter=False,
)


class Ask(Event):
    """The model is to be asked."""


class Call(Event):
    """A tool is to be called."""

    call: dict[str, Any]


class AgentWorkflow(Workflow):
    def __init__(self, setup: Setup, timeout: float) -> None:
        super().__init__(timeout=timeout)
        self.setup = setup
        self.client = AsyncOpenAI(base_url=setup.url, api_key=setup.key)
        self.tools = {"look_up": setup.look_up(), "research": setup.research()}

    @step
    async def start(self, ctx: Context, ev: StartEvent) -> Ask:
        await remember(ctx, {"role": "user", "content": ev.text})
        return Ask()

    @step
    async def ask(self, ctx: Context, ev: Ask) -> Call | StopEvent:
        messages = await ctx.store.get("messages")
        said = await self._said(messages)
        await remember(ctx, said)
        if said.get("tool_calls"):
            return Call(call=said["tool_calls"][0])
        return StopEvent(result=said["content"])

    @step(retry_policy=RETRIES)
    async def use(self, ctx: Context, ev: Call) -> Ask:
        function = ev.call["function"]
        tool: Any = self.tools[function["name"]]
        arguments = json.loads(function["arguments"])
        if inspect.iscoroutinefunction(tool):
            result = await tool(**arguments)
        else:
            result = await asyncio.to_thread(tool, **arguments)
        answer = {"role": "tool", "tool_call_id": ev.call["id"], "content": result}
        await remember(ctx, answer)
        return Ask()

    async def _said(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the model's message; streamed in the case of the stream."""
        request: dict[str, Any] = {"model": self.setup.model, "messages": messages}
        if not self.setup.streaming:
            whole = await self.client.chat.completions.create(**request)
            message: dict[str, Any] = whole.choices[0].message.model_dump(
                exclude_none=True
            )
            return {"content": None, **message}
        said: dict[str, Any] = {"role": "assistant", "content": ""}
        stream = await self.client.chat.completions.create(**request, stream=True)
        async for chunk in stream:
            for choice in chunk.choices:
                said["content"] += choice.delta.content or ""
                for call in choice.delta.tool_calls or ():
                    said.setdefault("tool_calls", []).append(
                        call.model_dump(exclude={"index"})
                    )
        return said


async def remember(ctx: Context, message: dict[str, Any]) -> None:
    messages = await ctx.store.get("messages", default=[])
    await ctx.store.set("messages", [*messages, message])


class Conversation:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.ctx: Context | None = None

    async def turn(self, text: str, deadline: float) -> str:
        workflow = AgentWorkflow(self.setup, deadline)
        handler = workflow.run(ctx=self.ctx, text=text)
        self.ctx = handler.ctx
        return str(await handler)

    async def kept(self) -> str | None:
        if self.ctx is None:
            return None
        return str(await self.ctx.store.get("messages", default=[]))


def build(setup: Setup) -> Conversation:
    return Conversation(setup)
