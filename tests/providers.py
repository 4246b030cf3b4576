"""A server on loopback that speaks the protocols of OpenAI and of Anthropic.

It counts the tokens it generates and sees at once when a client leaves. What it does
with each request is a script of behaviours.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import math
import operator
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Self

from harness import SYNC, How
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

PROMPT_TOKENS = 7


@dataclass
class Request:
    """What a server saw of one request; instants are of `time.monotonic`."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    arrived: float
    tokens: list[float] = field(default_factory=list)
    """When each token was generated."""
    left: float | None = None
    """When the client was found to have left before it had its answer."""
    completed: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def generated(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens)

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        return bool(self.body.get("stream"))

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that the client wants."""
        limit: int | None = self.body.get("max_completion_tokens")
        return self.body.get("max_tokens") if limit is None else limit

    @property
    def timeout(self) -> float | None:
        """The client's own limit (in seconds), as its SDK tells it."""
        said = self.headers.get("x-stainless-read-timeout")
        return None if said is None or said == "None" else float(said)

    @property
    def sdk_retries(self) -> int:
        """How many attempts of the SDK's own went before this one."""
        return int(self.headers.get("x-stainless-retry-count", "0"))

    def generated_after(self, instant: float) -> int:
        """Return how many tokens were generated later than `instant`."""
        return sum(token > instant for token in self.tokens)

    def settle(self, seconds: float = 3.0) -> Self:
        """Wait until the server is done with this request."""
        if not self.done.wait(seconds):
            msg = (
                f"after {seconds} s the server still works on {self.path}: "
                f"{self.generated} tokens were generated, and the client has not left"
            )
            raise AssertionError(msg)
        return self


# Behaviours


@dataclass(frozen=True)
class Tokens:
    """Generate `count` tokens of text, one every `gap` seconds.

    At most as many as the client wants; `first` is the time to the first one.
    """

    count: int = 5
    gap: float = 0.01
    first: float | None = None

    def text(self) -> list[str]:
        """Return the tokens of text."""
        return [f"t{index} " for index in range(self.count)]

    def tool(self) -> tuple[str, list[str]] | None:
        """Return the name of a tool and the pieces of its arguments."""
        return None

    def play(self, exchange: Exchange) -> None:
        """Answer, in a stream or at the end, as the client asked."""
        answer = _Answer(self.text(), self.tool(), exchange.request.max_tokens)
        exchange.begin()
        if exchange.request.stream:
            exchange.events(*exchange.protocol.opening())
        else:
            exchange.hold_back()
        for index, events in enumerate(answer.stream(exchange.protocol)):
            wait = self.gap if index or self.first is None else self.first
            exchange.pause(wait)
            exchange.request.tokens.append(time.monotonic())
            exchange.events(*events)
        if exchange.request.stream:
            exchange.events(*exchange.protocol.closing(answer, exchange.request.body))
        else:
            exchange.send(json.dumps(exchange.protocol.whole(answer)).encode())
        exchange.end()


@dataclass(frozen=True)
class Drip(Tokens):
    """A token every 100 ms, for far longer than anybody waits."""

    count: int = 300
    gap: float = 0.1


@dataclass(frozen=True)
class Says(Tokens):
    """Say `words`, one piece of a few characters per token."""

    words: str = "yes"

    def text(self) -> list[str]:
        """Return the words in pieces."""
        return _pieces(self.words)


@dataclass(frozen=True)
class ToolCall(Tokens):
    """Say `count` tokens, then call the tool `name`, its arguments in pieces."""

    count: int = 0
    name: str = "look_up"
    arguments: str = '{"city": "Paris"}'

    def tool(self) -> tuple[str, list[str]]:
        """Return the name and the arguments in pieces."""
        return self.name, _pieces(self.arguments)


@dataclass(frozen=True)
class Breaks(Tokens):
    """Close the connection after `count` tokens, in the middle of the answer."""

    def play(self, exchange: Exchange) -> None:
        """Begin an answer and never end it."""
        exchange.begin()
        answer = _Answer(self.text(), None, None)
        if exchange.request.stream:
            exchange.events(*exchange.protocol.opening())
            for events in answer.stream(exchange.protocol):
                exchange.pause(self.gap)
                exchange.request.tokens.append(time.monotonic())
                exchange.events(*events)
        exchange.hang_up()


@dataclass(frozen=True)
class Silent:
    """Take the request and say nothing, not even a status."""

    def play(self, exchange: Exchange) -> None:
        """Wait for the client to leave."""
        exchange.pause(math.inf)


@dataclass(frozen=True)
class SilentAfterHeaders:
    """Begin a response and say nothing more."""

    def play(self, exchange: Exchange) -> None:
        """Wait for the client to leave."""
        exchange.begin()
        exchange.pause(math.inf)


@dataclass(frozen=True)
class Pings:
    """Keep the connection alive every `gap` seconds, without ever a token.

    As `ping` events, comments in the stream, or blanks before the JSON to come.
    """

    gap: float = 0.1

    def play(self, exchange: Exchange) -> None:
        """Go on until the client leaves."""
        exchange.begin()
        alive = exchange.protocol.alive() if exchange.request.stream else b" "
        while True:
            exchange.send(alive)
            exchange.pause(self.gap)


@dataclass(frozen=True)
class Status:
    """Refuse with an HTTP status."""

    code: int
    retry_after: float | str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def play(self, exchange: Exchange) -> None:
        """Send the vendor's error."""
        after = [] if self.retry_after is None else [str(self.retry_after)]
        exchange.refuse(
            self.code, [*(("retry-after", text) for text in after), *self.headers]
        )


Behaviour = Tokens | Silent | SilentAfterHeaders | Pings | Status


def _pieces(text: str, length: int = 4) -> list[str]:
    return [text[at : at + length] for at in range(0, len(text), length)]


# Protocols


@dataclass
class _Answer:
    """One answer: text, then perhaps a tool call, cut off at the client's limit."""

    words: list[str]
    tool: tuple[str, list[str]] | None
    limit: int | None

    @property
    def text(self) -> str:
        return "".join(self.words[: self.limit])

    @property
    def complete(self) -> bool:
        return self.limit is None or self.total <= self.limit

    @property
    def total(self) -> int:
        return len(self.words) + (len(self.tool[1]) if self.tool else 0)

    @property
    def generated(self) -> int:
        return self.total if self.limit is None else min(self.total, self.limit)

    def stream(self, protocol: _Protocol) -> Iterator[list[bytes]]:
        """Yield the events of each token."""
        return itertools.islice(self._all(protocol), self.generated)

    def _all(self, protocol: _Protocol) -> Iterator[list[bytes]]:
        for index, word in enumerate(self.words):
            yield protocol.word(word, first=index == 0)
        if self.tool is not None:
            name, pieces = self.tool
            for index, piece in enumerate(pieces):
                start = protocol.tool(name, len(self.words)) if index == 0 else []
                yield [*start, *protocol.arguments(piece)]


class _OpenAI:
    """Chat completions."""

    suffix = "/chat/completions"

    def accepts(self, body: dict[str, Any]) -> bool:
        return not ("max_tokens" in body and "max_completion_tokens" in body)

    def opening(self) -> list[bytes]:
        return [self._delta({"role": "assistant", "content": ""})]

    def word(self, text: str, *, first: bool) -> list[bytes]:
        return [self._delta({"content": text})]

    def tool(self, name: str, after: int) -> list[bytes]:
        call = {"index": 0, "id": "call_1", "type": "function"}
        function = {"name": name, "arguments": ""}
        return [self._delta({"tool_calls": [{**call, "function": function}]})]

    def arguments(self, piece: str) -> list[bytes]:
        call = {"index": 0, "function": {"arguments": piece}}
        return [self._delta({"tool_calls": [call]})]

    def alive(self) -> bytes:
        return b": keep-alive\n\n"

    def closing(self, answer: _Answer, body: dict[str, Any]) -> list[bytes]:
        events = [self._delta({}, _openai_reason(answer))]
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append(self._chunk([], usage=_openai_usage(answer)))
        return [*events, b"data: [DONE]\n\n"]

    def whole(self, answer: _Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if answer.tool is not None:
            function = {"name": answer.tool[0], "arguments": "".join(answer.tool[1])}
            call = {"id": "call_1", "type": "function", "function": function}
            message["tool_calls"] = [call]
        reason = _openai_reason(answer)
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return {
            **_OPENAI_HEAD,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _openai_usage(answer),
        }

    def error(self, code: int) -> dict[str, Any]:
        error = {"message": f"status {code}", "type": "x", "code": None, "param": None}
        return {"error": error}

    def _delta(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return self._chunk([choice])

    def _chunk(self, choices: list[Any], usage: Any = None) -> bytes:
        chunk = {
            **_OPENAI_HEAD,
            "object": "chat.completion.chunk",
            "choices": choices,
            "usage": usage,
        }
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"


_OPENAI_HEAD = {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o-mini"}


def _openai_reason(answer: _Answer) -> str:
    if not answer.complete:
        return "length"
    return "stop" if answer.tool is None else "tool_calls"


def _openai_usage(answer: _Answer) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": answer.generated,
        "total_tokens": PROMPT_TOKENS + answer.generated,
    }


class _Anthropic:
    """Messages."""

    suffix = "/messages"

    def __init__(self) -> None:
        self._tool_index = 0

    def accepts(self, body: dict[str, Any]) -> bool:
        return "max_tokens" in body and "max_completion_tokens" not in body

    def opening(self) -> list[bytes]:
        message = {
            **_ANTHROPIC_HEAD,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": PROMPT_TOKENS, "output_tokens": 1},
        }
        return [self._event("message_start", message=message), self.alive()]

    def word(self, text: str, *, first: bool) -> list[bytes]:
        block = {"type": "text", "text": ""}
        start = self._event("content_block_start", index=0, content_block=block)
        return [*([start] if first else []), self._delta(0, "text_delta", text=text)]

    def tool(self, name: str, after: int) -> list[bytes]:
        # A block of text before it is the first block, and ends here.
        self._tool_index = 1 if after else 0
        stop = [self._event("content_block_stop", index=0)] if after else []
        block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
        index = self._tool_index
        start = self._event("content_block_start", index=index, content_block=block)
        return [*stop, start]

    def arguments(self, piece: str) -> list[bytes]:
        return [self._delta(self._tool_index, "input_json_delta", partial_json=piece)]

    def alive(self) -> bytes:
        return self._event("ping")

    def closing(self, answer: _Answer, body: dict[str, Any]) -> list[bytes]:
        delta = {"stop_reason": _anthropic_reason(answer), "stop_sequence": None}
        usage = _anthropic_usage(answer)
        return [
            self._event("content_block_stop", index=self._tool_index),
            self._event("message_delta", delta=delta, usage=usage),
            self._event("message_stop"),
        ]

    def whole(self, answer: _Answer) -> dict[str, Any]:
        content: list[Any] = []
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        if answer.tool is not None:
            name, arguments = answer.tool
            block = {"type": "tool_use", "id": "toolu_1", "name": name}
            content.append({**block, "input": json.loads("".join(arguments))})
        return {
            **_ANTHROPIC_HEAD,
            "content": content,
            "stop_reason": _anthropic_reason(answer),
            "stop_sequence": None,
            "usage": _anthropic_usage(answer),
        }

    def error(self, code: int) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "x", "message": f"status {code}"}}

    def _delta(self, index: int, kind: str, **fields: Any) -> bytes:
        delta = {"type": kind, **fields}
        return self._event("content_block_delta", index=index, delta=delta)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = json.dumps({"type": kind, **fields})
        return f"event: {kind}\ndata: {data}\n\n".encode()


_ANTHROPIC_HEAD = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
}


def _anthropic_reason(answer: _Answer) -> str:
    if not answer.complete:
        return "max_tokens"
    return "end_turn" if answer.tool is None else "tool_use"


def _anthropic_usage(answer: _Answer) -> dict[str, int]:
    return {"input_tokens": PROMPT_TOKENS, "output_tokens": answer.generated}


_Protocol = _OpenAI | _Anthropic


# The server

_numbers = itertools.count()


class _ClientLeft(Exception):  # noqa: N818 - an event, not an error
    """The client has closed the connection."""


class Exchange:
    """One request and the connection that its answer goes to."""

    def __init__(
        self, handler: BaseHTTPRequestHandler, request: Request, protocol: _Protocol
    ) -> None:
        self.request = request
        self.protocol = protocol
        self._handler = handler
        self._held_back = False

    def begin(self) -> None:
        """Send the status and the headers of an answer that comes in pieces."""
        kind = "text/event-stream" if self.request.stream else "application/json"
        self._handler.send_response(200)
        self._handler.send_header("content-type", kind)
        self._handler.send_header("transfer-encoding", "chunked")
        self._handler.end_headers()

    def hold_back(self) -> None:
        """Keep events to oneself: what is not streamed is sent at the end."""
        self._held_back = True

    def events(self, *events: bytes) -> None:
        """Send events of a stream."""
        if not self._held_back:
            for event in events:
                self.send(event)

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        """End the body: the client has all of it."""
        # Before the last bytes: with them the client may already look at the record.
        self.request.completed = True
        self._handler.wfile.write(b"0\r\n\r\n")

    def refuse(self, code: int, headers: list[tuple[str, str]]) -> None:
        """Answer with an error."""
        body = json.dumps(self.protocol.error(code)).encode()
        self._handler.send_response(code)
        for name, value in headers:
            self._handler.send_header(name, value)
        self._handler.send_header("content-type", "application/json")
        self._handler.send_header("content-length", str(len(body)))
        self._handler.end_headers()
        self.request.completed = True
        self._handler.wfile.write(body)

    def hang_up(self) -> None:
        """Close the connection without ending the body."""
        self._handler.close_connection = True

    def pause(self, seconds: float) -> None:
        """Wait, or find out at once that the client has left."""
        until = time.monotonic() + seconds
        connection = self._handler.connection
        limit = None if seconds == math.inf else max(until - time.monotonic(), 0.0)
        readable, _, _ = select.select([connection], [], [], limit)
        if readable and not connection.recv(1, socket.MSG_PEEK):
            raise _ClientLeft
        if readable:
            msg = "the client sent more before it had its answer"
            raise AssertionError(msg)


class _Handler(BaseHTTPRequestHandler):
    """A connection of a client, kept alive for further requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def do_POST(self) -> None:
        provider: Provider = self.server
        length = int(self.headers.get("content-length", "0"))
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True  # the client left while it was asking
            return
        protocol: _Protocol = (
            _Anthropic() if self.path.endswith(_Anthropic.suffix) else _OpenAI()
        )
        request, behaviour = provider.next_request(
            self.path,
            {name.lower(): value for name, value in self.headers.items()},
            json.loads(body),
        )
        if not protocol.accepts(request.body):
            behaviour = Status(400)
        try:
            behaviour.play(Exchange(self, request, protocol))
        except (_ClientLeft, ConnectionError):
            if not provider.closing:
                request.left = time.monotonic()
            self.close_connection = True
        finally:
            request.done.set()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Provider:
    """A server for both vendors, in daemon threads, closed by its `with` block.

    Each request gets the next behaviour of the script; the last one repeats.
    """

    def __init__(self, *script: Behaviour) -> None:
        self.script = script or (Tokens(),)
        self.requests: list[Request] = []
        self.closing = False
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The address of the server, without the path of a vendor's API."""
        # Clients are shared by address, and a port may come again: the number keeps
        # the clients of two servers apart.
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/{self._number}"

    @property
    def request(self) -> Request:
        """The only request."""
        (request,) = self.requests
        return request

    def settle(self, seconds: float = 3.0) -> list[Request]:
        """Wait until the server is done with every request, and return them."""
        return [request.settle(seconds) for request in self.requests]

    def next_request(
        self, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> tuple[Request, Behaviour]:
        """Record a request; return what to do with it."""
        request = Request(path, headers, body, time.monotonic())
        with self._lock:
            behaviour = self.script[min(len(self.requests), len(self.script) - 1)]
            self.requests.append(request)
        return request, behaviour

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing = True
        # A connection of our own ends the wait for the next one.
        socket.create_connection(self._listener.getsockname(), 2).close()
        self._acceptor.join(2)
        self._listener.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections:
            thread.join(2)
        left = [thread.name for thread in connections if thread.is_alive()]
        if left or self._acceptor.is_alive():
            msg = f"threads of the server are left: {left}"
            raise RuntimeError(msg)

    def _accept(self) -> None:
        while True:
            connection, address = self._listener.accept()
            if self.closing:
                connection.close()
                return
            thread = threading.Thread(
                target=self._serve, args=(connection, address), daemon=True
            )
            with self._lock:
                self._connections[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        with connection, contextlib.suppress(ConnectionError):
            _Handler(connection, address, self)  # type: ignore[arg-type]
        with self._lock:
            del self._connections[threading.current_thread()]


@contextmanager
def unopened() -> Iterator[str]:
    """Yield an address at which no connection ever opens."""
    with contextlib.ExitStack() as held, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(32):
            # The kernel opens a few for the listener; past those it does not answer.
            filler = held.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        else:
            msg = "this kernel opens connections that nobody accepts, without an end"
            raise RuntimeError(msg)
        yield f"http://127.0.0.1:{address[1]}/unopened"


# The vendors' models


def chat_openai(at: Provider | str, **fields: Any) -> ChatOpenAI:
    """Return LangChain's model of OpenAI, pointed at a server or an address."""
    url = at if isinstance(at, str) else at.url
    fields = {"model": "gpt-4o-mini", "api_key": "none", **fields}
    return ChatOpenAI(base_url=f"{url}/v1", **fields)


def chat_anthropic(at: Provider | str, **fields: Any) -> ChatAnthropic:
    """Return LangChain's model of Anthropic, pointed at a server or an address."""
    url = at if isinstance(at, str) else at.url
    fields = {"model": "claude-sonnet-5", "api_key": "none", **fields}
    return ChatAnthropic(base_url=url, **fields)


Chat = Callable[..., Any]
VENDORS: dict[str, Chat] = {"openai": chat_openai, "anthropic": chat_anthropic}


# Calls


@dataclass
class Called:
    """What came of one call; instants are of `time.monotonic`."""

    began: float
    chunks: list[Any] = field(default_factory=list)
    message: Any = None
    """The answer; of a stream, the sum of its chunks."""
    error: BaseException | None = None
    ended: float = 0.0

    @property
    def elapsed(self) -> float:
        """How long the caller waited (in seconds)."""
        return self.ended - self.began


def call(model: Any, how: How, message: Any = "hi", **kwargs: Any) -> Called:
    """Call `model` once, as `how` says; errors are returned."""
    (called,) = calls(how, model, message=message, **kwargs)
    return called


def calls(how: How, *models: Any, message: Any = "hi", **kwargs: Any) -> list[Called]:
    """Call models one after the other, async ones in one event loop."""
    if how in SYNC:
        return [_call(model, how, message, kwargs) for model in models]

    async def main() -> list[Called]:
        return [await acall(model, how, message, **kwargs) for model in models]

    return asyncio.run(main())


def _call(model: Any, how: How, message: Any, kwargs: dict[str, Any]) -> Called:
    called = Called(time.monotonic())
    try:
        if how == "invoke":
            called.message = model.invoke(message, **kwargs)
        else:
            for chunk in model.stream(message, **kwargs):
                called.chunks.append(chunk)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        called.error = error
    return _ended(called)


async def acall(model: Any, how: How, message: Any = "hi", **kwargs: Any) -> Called:
    """As `call`, inside a running event loop."""
    called = Called(time.monotonic())
    try:
        if how == "ainvoke":
            called.message = await model.ainvoke(message, **kwargs)
        else:
            async for chunk in model.astream(message, **kwargs):
                called.chunks.append(chunk)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        called.error = error
    return _ended(called)


def _ended(called: Called) -> Called:
    called.ended = time.monotonic()
    if called.chunks:
        called.message = functools.reduce(operator.add, called.chunks)
    return called


def warm_up() -> None:
    """Use each client once: its first use imports for most of a second."""
    words = {"title": "Word", "type": "object", "properties": {}}
    with Provider(Says(words="{}")) as server:
        for chat in VENDORS.values():
            model = chat(server, streaming=True)
            model.with_structured_output(words, method="json_schema").invoke("hi")
            asyncio.run(chat(server).ainvoke("hi"))
