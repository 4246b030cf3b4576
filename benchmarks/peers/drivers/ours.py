"""langgraph-deadline, from this checkout.

Variants: `fallback`, with the ready one for agents and a wrapped model, and `alone`:
nothing but the deadline of the graph, which then raises.

Documentation: "An agent", "Models" and "One call" in the README.
"""

from __future__ import annotations

from langgraph_deadline import StateGraph, agent_fallback, with_deadline

from .. import work
from ..drive import Setup
from ._graph import CONFIG, Conversation, builder, compiled


class Bounded(Conversation):
    async def turn(self, text: str, deadline: float) -> str:
        state = await self.graph.ainvoke(
            {"messages": [("user", text)]}, CONFIG, deadline=deadline
        )
        return str(state["messages"][-1].text)


def build(setup: Setup) -> Bounded:
    if setup.variant == "alone":
        return Bounded(compiled(builder(setup, StateGraph)))
    graph = builder(setup, StateGraph, wrap=with_deadline)
    return Bounded(compiled(graph, fallback=agent_fallback(work.SORRY)))
