"""langgraph-node-deadline around and inside the nodes of a LangGraph graph.

One scope for the whole run, opened a hair (a tenth) before the deadline; every node
clamps what it awaits to it and salvages what it has, as the README shows. The watchdog
of the README is LangGraph's `timeout=` of a node, with the whole deadline.

Documentation: "The fix" and "Wiring it into a real LangGraph node" in its README.
"""

# Only in an environment of its own.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph_node_deadline import cooperative_wait_for, node_deadline_in

from .. import work
from ..drive import Setup
from ._graph import RETRIES, Conversation, compiled, model_of, timed_out, tools_of

WANTED = 60.0  # seconds that a node would like to have


def graph_of(setup: Setup, watchdog: float) -> Any:
    tools = tools_of(setup)
    bound = model_of(setup, tools)
    tool_node = ToolNode(tools)

    async def model(state: MessagesState) -> dict[str, Any]:
        try:
            said = await cooperative_wait_for(bound.ainvoke(state["messages"]), WANTED)
        except TimeoutError:
            said = AIMessage(work.SORRY)
        return {"messages": [said]}

    async def use_tools(state: MessagesState) -> dict[str, Any]:
        try:
            used = await cooperative_wait_for(tool_node.ainvoke(state), WANTED)
        except TimeoutError:
            calls = state["messages"][-1].tool_calls  # type: ignore[union-attr]
            used = {"messages": [timed_out(call["id"]) for call in calls]}
        return dict(used)

    graph = StateGraph(MessagesState)
    graph.add_node("model", model, timeout=watchdog)
    graph.add_node("tools", use_tools, timeout=watchdog, retry_policy=RETRIES)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return compiled(graph)


class Clamped(Conversation):
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        super().__init__(graph_of(setup, WANTED))
        self.saver = self.graph.checkpointer

    async def turn(self, text: str, deadline: float) -> str:
        self.graph = graph_of(self.setup, deadline)
        self.graph.checkpointer = self.saver
        with node_deadline_in(deadline * 0.9):
            return await super().turn(text, deadline)


def build(setup: Setup) -> Clamped:
    return Clamped(setup)
