"""A scripted model on loopback: OpenAI's chat completions, whole or streamed.

It generates a token at a time and remembers when. A client that leaves a stream ends
the generation; one that leaves a call that is not streamed does not, for a provider
generates that one to the end, and bills it. Like OpenAI it refuses a history in which
a tool call has no answer.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from . import work

RATE = 50.0  # tokens per second
SHORT = 5  # tokens of a tool call, and of an answer
SLOW = 300  # tokens of the slow answer: 6 s
ENDLESS = 1500  # 30 s: nobody waits that long

Message = dict[str, Any]


@dataclass
class Request:
    """One call of the model."""

    case: str
    turn: int
    streamed: bool
    remembers: bool  # whether the first turn's question is in it
    began: float = field(default_factory=time.monotonic)
    tokens: list[float] = field(default_factory=list)
    ended: float | None = None
    left: bool = False  # the client, before the end

    def generate(self, gap: float) -> None:
        time.sleep(gap)
        self.tokens.append(time.monotonic())


@dataclass(frozen=True)
class Reply:
    """What the model says: a tool call, or an answer of so many tokens."""

    tool: str | None
    tokens: int
    gap: float  # seconds between two of them


class Model(ThreadingHTTPServer):
    """The server; as a context manager it serves in a thread until the block ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.refused: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def active(self) -> int:
        return sum(request.ended is None for request in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that leave are what this is about."""

    def __enter__(self) -> Model:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


def open_calls(messages: list[Message]) -> list[str]:
    """Return the ids of the tool calls that are not answered before what follows."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            waiting = [call for call in waiting if call != message["tool_call_id"]]
        elif waiting:
            break
        waiting += [call["id"] for call in message.get("tool_calls") or ()]
    return waiting


def reply(case: str, turn: int, messages: list[Message]) -> Reply:
    """Return what the model says next."""
    pause = work.pause(case) / SHORT
    done = sum(message["role"] == "tool" for message in messages)
    if turn == 1 and done < 2:
        return Reply(("look_up", "research")[done], SHORT, pause)
    if turn == 1 and case == "streams":
        return Reply(None, ENDLESS, 1 / RATE)
    if turn == 1 and case == "slow model":
        return Reply(None, SLOW, 1 / RATE)
    return Reply(None, SHORT, pause)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Model

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer a call of the model; the first part of the path is the case."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages: list[Message] = body["messages"]
        if unanswered := open_calls(messages):
            msg = "An assistant message with 'tool_calls' must be followed by tool "
            msg += f"messages responding to each 'tool_call_id': {unanswered}"
            self.server.refused.append(msg)
            self._send(400, {"error": {"message": msg, "type": "invalid_request"}})
            return
        asked = json.dumps([each for each in messages if each["role"] == "user"])
        request = Request(
            case=unquote(self.path.split("/")[1]),
            turn=2 if work.AGAIN in asked else 1,
            streamed=bool(body.get("stream")),
            remembers=work.ASK in asked,
        )
        self.server.requests.append(request)
        said = reply(request.case, request.turn, messages)
        try:
            if request.streamed:
                self._stream(request, said)
            else:
                for _ in range(said.tokens):
                    request.generate(said.gap)
                self._send(200, _whole(said))
        except OSError:
            request.left = True
            self.close_connection = True
        finally:
            request.ended = time.monotonic()

    def _send(self, status: int, content: Message) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, request: Request, said: Reply) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if said.tool:
            for _ in range(said.tokens):
                request.generate(said.gap)
            self._event(_delta({"role": "assistant", "tool_calls": _calls(said)}))
        else:
            self._event(_delta({"role": "assistant", "content": ""}))
            for number in range(said.tokens):
                request.generate(said.gap)
                self._event(_delta({"content": _word(number, said)}))
        self._event(_delta({}, "tool_calls" if said.tool else "stop"))
        self._event({**_delta({}), "choices": [], "usage": _usage(said)})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: Message) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())


def _head(kind: str) -> Message:
    created = int(time.time())
    return {"id": "scripted", "object": kind, "created": created, "model": "scripted"}


def _word(number: int, said: Reply) -> str:
    if number == said.tokens - 1:
        return f" {work.END}"
    return f" word{number}" if number else work.WORD


def _calls(said: Reply) -> list[Message]:
    argument = "topic" if said.tool == "research" else "word"
    function = {"name": said.tool, "arguments": json.dumps({argument: "deadline"})}
    identity = f"call_{said.tool}"
    return [{"index": 0, "id": identity, "type": "function", "function": function}]


def _usage(said: Reply) -> Message:
    count = said.tokens
    return {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": 1 + count}


def _whole(said: Reply) -> Message:
    message: Message = {"role": "assistant", "content": None}
    if said.tool:
        message["tool_calls"] = _calls(said)
    else:
        words = (_word(number, said) for number in range(said.tokens))
        message["content"] = "".join(words)
    reason = "tool_calls" if said.tool else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {**_head("chat.completion"), "choices": [choice], "usage": _usage(said)}


def _delta(delta: Message, reason: str | None = None) -> Message:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {**_head("chat.completion.chunk"), "choices": [choice]}
