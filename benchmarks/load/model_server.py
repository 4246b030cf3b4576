"""A model behind HTTP: its server, which sees clients leave, and LangChain's side."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from .witness import Witness

GAP = 0.025
"""Time from token to token (in seconds)."""


class Served:
    """An application on a free port of the loopback interface, in a daemon thread."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="critical", backlog=1024
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        until = time.monotonic() + 10
        while not self._server.started:
            if time.monotonic() > until or not self._thread.is_alive():
                msg = "uvicorn has not started within 10 s"
                raise RuntimeError(msg)
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(5)


def model_app(witness: Witness) -> Starlette:
    """Return the model's server: it generates tokens and notes when.

    A stream ends when its client leaves; a whole answer is generated to its end.
    """
    unseen: set[asyncio.Task[None]] = set()

    async def tokens(run: int, count: int) -> AsyncIterator[bytes]:
        with witness.watch(run, "model stream"):
            for number in range(count):
                await asyncio.sleep(GAP)
                witness.runs[run].tokens.append(time.monotonic())
                yield f"t{number} \n".encode()

    async def stream(request: Request) -> StreamingResponse:
        asked = await request.json()
        return StreamingResponse(tokens(asked["run"], asked["tokens"]))

    async def consume(run: int, count: int) -> None:
        async for _ in tokens(run, count):
            pass

    async def whole(request: Request) -> JSONResponse:
        asked = await request.json()
        task = asyncio.create_task(consume(asked["run"], asked["tokens"]))
        unseen.add(task)
        task.add_done_callback(unseen.discard)
        await asyncio.shield(task)
        return JSONResponse("".join(f"t{n} " for n in range(asked["tokens"])))

    return Starlette(
        routes=[
            Route("/stream", stream, methods=["POST"]),
            Route("/whole", whole, methods=["POST"]),
        ]
    )


class HttpModel(BaseChatModel):
    """A chat model that asks the server; its prompt says run and tokens, as JSON."""

    url: str
    client: Any

    @property
    def _llm_type(self) -> str:
        return "scripted-http"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        asked = json.loads(messages[-1].text)
        client: httpx.AsyncClient = self.client
        response = await client.post(f"{self.url}/whole", json=asked)
        return ChatResult(
            generations=[ChatGeneration(message=AIMessage(response.json()))]
        )

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = json.loads(messages[-1].text)
        client: httpx.AsyncClient = self.client
        async with client.stream("POST", f"{self.url}/stream", json=asked) as response:
            async for token in response.aiter_lines():
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=token))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(token, chunk=chunk)
                yield chunk
