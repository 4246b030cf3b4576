"""Run one turn of a thread in a process of its own, telling what happens line by line.

Called with one JSON argument: `saver` (`sqlite` or `postgres`), `where`,
`asynchronous`, `thread`, `policy`, `deadline`, and `input`, where `None` and
`{"resume": ...}` resume.
"""

from __future__ import annotations

import asyncio
import json
import operator
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, TypedDict

from langgraph.graph import START
from langgraph.types import Command, interrupt

from langgraph_deadline import DeadlineExceeded, DeadlinePolicy, StateGraph, remaining


class State(TypedDict, total=False):
    """How long the nodes take, and which have."""

    log: Annotated[list[str], operator.add]
    work: float
    ask: bool
    more: float
    linger: float


def say(**event: Any) -> None:
    """Tell the test something, at once."""
    print(json.dumps(event), flush=True)


def node(name: str, asynchronous: bool) -> Any:
    """Return a node that takes as long as the state has for its name."""

    def enter(state: State) -> float:
        say(node=name, remaining=remaining())
        if name == "ask":
            answer = interrupt("?") if state.get("ask") else "none"
            say(answer=answer)
            return 0.0
        seconds: float = state.get(name, 0.0)
        return seconds

    def sync(state: State) -> Any:
        time.sleep(enter(state))
        return {"log": [name]}

    async def coroutine(state: State) -> Any:
        await asyncio.sleep(enter(state))
        return {"log": [name]}

    return coroutine if asynchronous else sync


def graph(saver: Any, policy: dict[str, Any], asynchronous: bool) -> Any:
    """Return the graph: work, ask a person, work more, linger."""
    builder = StateGraph(State)
    before = START
    for name in ("work", "ask", "more", "linger"):
        builder.add_node(name, node(name, asynchronous))
        builder.add_edge(before, name)
        before = name
    limit = DeadlinePolicy.model_validate(policy) if policy else None
    return builder.compile(checkpointer=saver, deadline=limit)


@contextmanager
def sync_saver(kind: str, where: str) -> Any:
    """Open a checkpointer."""
    if kind == "sqlite":
        from langgraph.checkpoint.sqlite import SqliteSaver

        with SqliteSaver.from_conn_string(where) as saver:
            yield saver
    else:
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(where) as saver:
            saver.setup()
            yield saver


@asynccontextmanager
async def async_saver(kind: str, where: str) -> Any:
    """Open an async checkpointer."""
    if kind == "sqlite":
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        async with AsyncSqliteSaver.from_conn_string(where) as saver:
            yield saver
    else:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        async with AsyncPostgresSaver.from_conn_string(where) as saver:
            await saver.setup()
            yield saver


def input_of(task: dict[str, Any]) -> Any:
    """Return the turn's input."""
    given = task["input"]
    if isinstance(given, dict) and "resume" in given:
        return Command(resume=given["resume"])
    return given


def call(task: dict[str, Any]) -> Any:
    """Run the turn with a sync checkpointer."""
    config = {"configurable": {"thread_id": task["thread"]}}
    with sync_saver(task["saver"], task["where"]) as saver:
        bounded = graph(saver, task["policy"], asynchronous=False)
        say(began=time.time())
        return bounded.invoke(input_of(task), config, deadline=task.get("deadline"))


async def acall(task: dict[str, Any]) -> Any:
    """Run the turn with an async checkpointer."""
    config = {"configurable": {"thread_id": task["thread"]}}
    async with async_saver(task["saver"], task["where"]) as saver:
        bounded = graph(saver, task["policy"], asynchronous=True)
        say(began=time.time())
        return await bounded.ainvoke(
            input_of(task), config, deadline=task.get("deadline")
        )


def main() -> None:
    """Run the turn that the argument describes."""
    task = json.loads(sys.argv[1])
    try:
        values = asyncio.run(acall(task)) if task["asynchronous"] else call(task)
    except DeadlineExceeded as error:
        say(ended=time.time(), error=error.cause)
    else:
        asked = "__interrupt__" in values
        say(ended=time.time(), log=values["log"], asked=asked)


if __name__ == "__main__":
    main()
