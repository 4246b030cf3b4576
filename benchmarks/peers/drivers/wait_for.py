"""`asyncio.wait_for` around a plain LangGraph graph.

Variants: nothing, and `fallback`: the run is cancelled after four fifths of the
deadline, as ours cuts it, then a second graph gets what the thread's checkpoint has,
and what it says is written to the thread, for the next turn.

Documentation: "Timeouts" in Python's asyncio reference ("Coroutines and Tasks");
"Update state" (`update_state`, `as_node`) in LangGraph's guide to persistence.
"""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.messages import AnyMessage
from langgraph.graph import START, MessagesState, StateGraph

from ..drive import Setup
from ._graph import CONFIG, Conversation, builder, closing, compiled

WORK = 0.8  # of the deadline; what is left is for the second graph


class Waited(Conversation):
    async def turn(self, text: str, deadline: float) -> str:
        return await asyncio.wait_for(super().turn(text, deadline), deadline)


class Closed(Conversation):
    """A thread that a second graph closes when the first one was cancelled."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.second = second()

    async def turn(self, text: str, deadline: float) -> str:
        try:
            run = super().turn(text, deadline)
            return await asyncio.wait_for(run, deadline * WORK)
        except TimeoutError:
            return await self._close()

    async def _close(self) -> str:
        before = await self.graph.aget_state(CONFIG)
        after = await self.second.ainvoke(before.values)
        # As the model, so that nothing of the cancelled run is left to be done.
        await self.graph.aupdate_state(CONFIG, after, as_node="model")
        return str(after["messages"][-1].text)


def second() -> Any:
    async def close(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": closing(state["messages"])}

    graph = StateGraph(MessagesState)
    graph.add_node("close", close)
    graph.add_edge(START, "close")
    return graph.compile()


def build(setup: Setup) -> Conversation:
    graph = compiled(builder(setup))
    return Closed(graph) if setup.variant == "fallback" else Waited(graph)
