"""The agent as a LangGraph graph: a node for the model, one for the tools, a loop."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import RetryPolicy

from .. import work
from ..drive import Setup

RETRIES = RetryPolicy(
    initial_interval=work.BACKOFF,
    backoff_factor=2.0,
    max_attempts=work.ATTEMPTS,
    jitter=False,
    retry_on=ConnectionError,  # and not what a limit in time raises
)
CONFIG: dict[str, Any] = {"configurable": {"thread_id": "1"}}


def tools_of(setup: Setup) -> list[BaseTool]:
    return [tool(setup.look_up()), tool(setup.research())]


def model_of(setup: Setup, tools: list[BaseTool], wrap: Any = None) -> Any:
    # Left out otherwise: `streaming=False` would be a wish, and not the default.
    streaming: dict[str, Any] = {"streaming": True} if setup.streaming else {}
    model = ChatOpenAI(
        model=setup.model,
        base_url=setup.url,
        api_key=setup.key,  # type: ignore[arg-type]
        **streaming,
    )
    return (wrap(model) if wrap else model).bind_tools(tools)


def builder(setup: Setup, kind: Any = StateGraph, wrap: Any = None, **node: Any) -> Any:
    """Return the graph, not compiled; `kind` is its class, `node` goes to the nodes.

    `wrap` is called with the chat model, and returns what is used in its place.
    """
    tools = tools_of(setup)
    bound = model_of(setup, tools, wrap)
    tool_node = ToolNode(tools)

    async def model(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = kind(MessagesState)
    graph.add_node("model", model, **node)
    graph.add_node("tools", tool_node, retry_policy=RETRIES, **node)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph


def timed_out(call: str | None) -> ToolMessage:
    return ToolMessage("timed out", tool_call_id=call or "")


def closing(messages: list[AnyMessage]) -> list[AnyMessage]:
    """Return answers to the tool calls that are left open, and a closing message."""
    calls = [
        call["id"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    ]
    answered = {each.tool_call_id for each in messages if isinstance(each, ToolMessage)}
    left_open = [timed_out(call) for call in calls if call not in answered]
    return [*left_open, AIMessage(work.SORRY)]


def compiled(graph: Any, **arguments: Any) -> Any:
    return graph.compile(checkpointer=InMemorySaver(), **arguments)


class Conversation:
    """A thread of a compiled graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    async def turn(self, text: str, deadline: float) -> str:
        state = await self.graph.ainvoke({"messages": [("user", text)]}, CONFIG)
        return str(state["messages"][-1].text)

    async def kept(self) -> str | None:
        state = await self.graph.aget_state(CONFIG)
        return str(state.values)
