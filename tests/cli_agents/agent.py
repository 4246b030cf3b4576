"""Graphs for the command line, in every form in which a file may hold one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.types import interrupt

from langgraph_deadline import StateGraph


class State(TypedDict, total=False):
    """How long the work takes, how it is done, and what came of it."""

    seconds: float
    how: str
    answer: str


def prepare(state: State) -> State:
    """Do something that is finished soon."""
    return {"answer": "prepared"}


async def work(state: State) -> State:
    """Work for as long as the input says."""
    seconds, how = state.get("seconds", 0), state.get("how")
    if how == "fail":
        raise RuntimeError("the service said no")
    if how == "pool":  # a thread that Python waits for at its exit
        await asyncio.to_thread(time.sleep, seconds)
    if how == "deaf":
        until = asyncio.get_running_loop().time() + seconds
        while (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue
    print("at work", file=sys.stderr, flush=True)
    await asyncio.sleep(seconds)
    return {"answer": "worked"}


def block(state: State) -> State:
    """Block a thread for as long as the input says."""
    time.sleep(state.get("seconds", 0))
    return {"answer": "blocked"}


def degrade(state: State) -> State:
    """Answer when time is up."""
    return {"answer": f"only {state.get('answer')}"}


def built(second: Any, cls: Any = PlainStateGraph) -> Any:
    """Return a builder of two nodes in a row and one that nothing leads to."""
    builder = cls(State)
    builder.add_sequence([prepare, second])
    builder.add_edge(START, "prepare")
    builder.add_node(degrade)
    return builder


graph = built(work).compile()
blocking = built(block).compile()
builder = built(work)
bounded = built(work, StateGraph).compile(deadline=1.5, fallback="degrade")
not_a_graph = {"nodes": []}


def from_nothing() -> Any:
    return graph


async def from_config(config: RunnableConfig) -> Any:
    await asyncio.sleep(0)
    assert config["configurable"]["user"] == "me"
    return builder


@asynccontextmanager
async def opening() -> AsyncGenerator[Any]:
    print("opened", file=sys.stderr)
    yield graph
    print("closed", file=sys.stderr)


def broken() -> Any:
    raise LookupError("no key is set")


def greedy(config: RunnableConfig, runtime: Any) -> Any:
    return graph


@entrypoint()
async def workflow(word: str) -> str:
    """Return a word in capitals; a functional graph of async code only."""
    return word.upper()


def answer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"You said: {state['messages'][-1].text}")]}


talker = PlainStateGraph(MessagesState).add_node(answer).add_edge(START, "answer")


def loud(state: State) -> State:
    """Print in every way there is."""
    print("printed")
    os.write(1, b"written\n")
    subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
    return {"answer": "ü"}


noise = PlainStateGraph(State).add_node(loud).add_edge(START, "loud")


def ask(state: State) -> State:
    return {"answer": interrupt("Go on?")}


asking = PlainStateGraph(State).add_node(ask).add_edge(START, "ask")
asking_graph = asking.compile(checkpointer=InMemorySaver())
