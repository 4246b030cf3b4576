"""A web service whose clients leave early: what outlives them?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import httpx
from langchain_core.tools import tool
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainGraph
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from langgraph_deadline import DeadlinePolicy, with_deadline
from langgraph_deadline import StateGraph as BoundedGraph

from ..measure import OURS, PLAIN
from ..sheet import Sheet
from .figures import columns, row
from .model_server import GAP, HttpModel, Served, model_app
from .witness import PARTS, RunSeen, Witness

GRACE = DeadlinePolicy().cancel_grace
DEADLINE = 30.0
PLAN, WRITE = 12, 32
LOOK_UP = 0.4
"""How long the tool takes (in seconds)."""
LASTS = GAP * (PLAN + WRITE) + LOOK_UP
SEED = 3
WARM_UP = -1

ABOUT = f"""{{clients}} clients of a Starlette application behind uvicorn, on real
sockets, begin within {{seconds:g}} s. Each run streams {PLAN} tokens of a model, calls
a tool of {LOOK_UP:g} s, and streams {WRITE} more tokens, about {LASTS:g} s in all; the
model is a server of its own, which generates a token every {GAP * 1e3:g} ms until it
finds its connection closed. A third of the clients close theirs at a moment drawn
evenly. The application streams `graph.astream(stream_mode="messages")` and does nothing
else about clients that leave. *Outlived*: how long a part went on after its client had
left; the grace is {GRACE:g} s."""


class State(TypedDict, total=False):
    run: int
    said: str


@dataclass
class Parts:
    """What both graphs are made of."""

    witness: Witness
    model: Any

    def asking(self, tokens: int) -> Any:
        """Return a node that has the model say so many tokens."""

        async def ask(state: State) -> State:
            with self.witness.watch(state["run"], "node"):
                prompt = json.dumps({"run": state["run"], "tokens": tokens})
                return {"said": (await self.model.ainvoke(prompt)).text}

        return ask

    def looking_up(self) -> Any:
        """Return a node that calls a tool."""

        @tool
        async def look_up(run: int) -> str:
            """Look something up."""
            with self.witness.watch(run, "tool"):
                await asyncio.sleep(LOOK_UP)
                return "found"

        async def call(state: State) -> State:
            with self.witness.watch(state["run"], "node"):
                return {"said": await look_up.ainvoke({"run": state["run"]})}

        return call

    def build(self, kind: Any) -> Any:
        builder = kind(State)
        builder.add_node("plan", self.asking(PLAN))
        builder.add_node("look_up", self.looking_up())
        builder.add_node("write", self.asking(WRITE))
        builder.add_edge(START, "plan")
        builder.add_edge("plan", "look_up")
        return builder.add_edge("look_up", "write")


def plain(witness: Witness, model: Any) -> Any:
    return Parts(witness, model).build(PlainGraph).compile()


def bounded(witness: Witness, model: Any) -> Any:
    builder = Parts(witness, with_deadline(model)).build(BoundedGraph)
    return builder.compile(deadline=DEADLINE)


Compiled = Callable[[Witness, Any], Any]
CANDIDATES: dict[str, Compiled] = {PLAIN: plain, OURS: bounded}


def web_app(witness: Witness, compiled: Compiled, model_url: str) -> Starlette:
    """Return the application: `/?run=1` streams the tokens of a run."""
    graph: Any = None

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        nonlocal graph
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=DEADLINE, limits=limits) as client:
            graph = compiled(witness, HttpModel(url=model_url, client=client))
            yield

    async def tokens(run: int) -> AsyncIterator[str]:
        async for message, _ in graph.astream({"run": run}, stream_mode="messages"):
            yield message.text

    async def answer(request: Request) -> StreamingResponse:
        return StreamingResponse(tokens(int(request.query_params["run"])))

    return Starlette(
        routes=[Route("/", answer)],
        middleware=[Middleware(Told, witness)],
        lifespan=lifespan,
    )


class Told:
    """Notes when the web server tells the application that a client has left."""

    def __init__(self, app: Any, witness: Witness) -> None:
        self._app = app
        self._witness = witness

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def noted() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect":
                run = int(Request(scope).query_params["run"])
                self._witness.runs[run].told = time.monotonic()
            return message

        await self._app(scope, noted if scope["type"] == "http" else receive, send)


# Clients.


async def visit(port: int, run: int, stay: float | None, witness: Witness) -> None:
    """Ask for a run; leave after `stay` seconds, `None` for never."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /?run={run} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
    )
    seen = witness.runs[run]
    try:
        async with asyncio.timeout(stay):
            body = await reader.read(-1)
            seen.answered = body.endswith(b"0\r\n\r\n")
    except TimeoutError:
        seen.left = time.monotonic()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def visits(port: int, clients: int, seconds: float, witness: Witness) -> None:
    """Have so many clients begin within `seconds`; a third of them leave early."""
    draw = random.Random(SEED)

    async def one(run: int) -> None:
        stay = draw.uniform(0.02, LASTS) if run % 3 == 0 else None
        await asyncio.sleep(seconds * run / clients)
        await visit(port, run, stay, witness)

    async with asyncio.TaskGroup() as group:
        for run in range(clients):
            group.create_task(one(run))
    await _settled(witness)


async def _settled(witness: Witness, at_most: float = 10.0) -> None:
    """Wait until nothing is at work any more."""
    until = time.monotonic() + at_most
    quiet = 0
    while quiet < 3 and time.monotonic() < until:
        quiet = 0 if witness.still_open() else quiet + 1
        await asyncio.sleep(0.1)


def served(compiled: Compiled, clients: int, seconds: float) -> Witness:
    """Serve both applications, let clients come and go; return what was seen."""
    witness = Witness()
    with Served(model_app(witness)) as model:
        app = web_app(witness, compiled, f"http://127.0.0.1:{model.port}")
        with Served(app) as service:
            # Not one of those seen: the first use of a client imports for a while.
            asyncio.run(visit(service.port, WARM_UP, None, witness))
            del witness.runs[WARM_UP]
            asyncio.run(visits(service.port, clients, seconds, witness))
    return witness


# Figures.


def measure(quick: bool) -> list[Sheet]:
    """Serve with LangGraph alone, then with ours."""
    clients, seconds = (24, 2.0) if quick else (300, 30.0)
    seen = {
        name: list(served(compiled, clients, seconds).runs.values())
        for name, compiled in CANDIDATES.items()
    }
    tables = {name: figures(runs) for name, runs in seen.items()}
    rows = [
        row(figure, {name: [table[figure]] for name, table in tables.items()})
        for figure in tables[OURS]
    ]
    about = ABOUT.format(clients=clients, seconds=seconds)
    title = "A web service, a third of its clients leave early"
    return [Sheet(title, about, columns(CANDIDATES), rows)]


def figures(runs: list[RunSeen]) -> dict[str, float]:
    """Return what was seen of the runs of a service."""
    left = [run for run in runs if run.left is not None]
    stayed = [run for run in runs if run.left is None]
    found: dict[str, float] = {
        "clients that left": len(left),
        "clients that stayed and were answered": sum(run.answered for run in stayed),
        "clients that stayed and were not": sum(not run.answered for run in stayed),
        "tokens generated, of clients that left": sum(len(run.tokens) for run in left),
        "tokens generated after they had left": sum(run.tokens_after() for run in left),
        "nodes begun after they had left": sum(run.begun_after() for run in left),
    }
    for part in PARTS:
        outlived = [run.outlived(part) for run in left]
        late = sum(seconds > GRACE for seconds in outlived)
        found[f"{part}: outlived its client, longest (ms)"] = max(outlived) * 1e3
        found[f"{part}: by more than the grace, runs"] = late
    found["the application was told of it, latest (ms)"] = 1e3 * max(
        run.told_after() for run in left
    )
    found["node: outlived that, longest (ms)"] = 1e3 * max(
        run.outlived("node") - run.told_after() for run in left
    )
    found["at work when nobody was left"] = sum(run.open for run in runs)
    return found
