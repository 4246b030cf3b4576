"""The agent: a model, its tools, and the answer it can always give."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool
from langgraph.graph import START, MessagesState
from langgraph.prebuilt import ToolNode, tools_condition

from langgraph_deadline import StateGraph

QUESTION = (
    "A call has failed and 4 s are left. Should I try again? For how long may I wait "
    "before that? What becomes of finished work? And how much quota is left?"
)

Messages = list[BaseMessage]
Turn = Callable[[Messages], AIMessage]


class ScriptedModel(BaseChatModel):
    """A chat model whose turns are functions, and which takes its time over each."""

    turns: list[Turn]
    seconds: float = 0.15

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: Messages,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        time.sleep(self.seconds)
        return self._turn(messages)

    async def _agenerate(
        self,
        messages: Messages,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        await asyncio.sleep(self.seconds)
        return self._turn(messages)

    def _turn(self, messages: Messages) -> ChatResult:
        turn = self.turns[sum(isinstance(m, AIMessage) for m in messages)]
        return ChatResult(generations=[ChatGeneration(message=turn(messages))])


def script(service_url: str) -> list[Turn]:
    """Return the turns: search twice, read the best hit, ask the service, answer."""

    def search(_: Messages) -> AIMessage:
        return _calls(
            ToolCall(
                name="search_documents",
                args={"query": "try again: does the remaining time cover a retry"},
                id="retry",
            ),
            ToolCall(
                name="search_documents",
                args={"query": "is the work of finished steps kept after a cut"},
                id="work",
            ),
        )

    def read(messages: Messages) -> AIMessage:
        name = results(messages)["retry"].partition(":")[0]
        return _calls(
            ToolCall(name="read_document", args={"name": name}, id="document"),
        )

    def ask(_: Messages) -> AIMessage:
        return _calls(ToolCall(name="fetch_url", args={"url": service_url}, id="quota"))

    def answer(messages: Messages) -> AIMessage:
        return AIMessage(compose(results(messages)))

    return [search, read, ask, answer]


def build_agent(model: BaseChatModel, tools: list[BaseTool]) -> StateGraph[Any]:
    """Return the graph of a tool-calling agent, not yet compiled."""
    ask_model = (
        RunnableLambda(lambda state: state["messages"])
        | model
        | RunnableLambda(lambda message: {"messages": [message]})
    )
    builder = StateGraph(MessagesState)
    builder.add_node("model", ask_model)
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder


def answer_from_what_is_there(state: MessagesState) -> dict[str, Messages]:
    """The fallback: answer from the calls that finished."""
    return {"messages": [AIMessage(compose(results(state["messages"])))]}


def compose(found: dict[str, str]) -> str:
    """Return the answer that the results of the tools allow for, a line a question."""
    parts = {
        "Try again?": _first_sentence(found.get("retry")),
        "Wait how long?": _advice_on_waiting(found.get("document")),
        "Finished work?": _first_sentence(found.get("work")),
        "Quota?": found.get("quota"),
    }
    return "\n".join(
        f"{question:<15} {answer or 'not known: there was no time to find out'}"
        for question, answer in parts.items()
    )


def results(messages: Sequence[BaseMessage]) -> dict[str, str]:
    """Return what the tools have answered, by the call's id."""
    return {
        m.tool_call_id: str(m.content)
        for m in messages
        if isinstance(m, ToolMessage) and m.status == "success"
    }


def _first_sentence(passage: str | None) -> str | None:
    if passage is None:
        return None
    document, _, text = passage.partition(": ")
    return f"{text.split('. ')[0].rstrip('.')}. [{document}]"


def _advice_on_waiting(document: str | None) -> str | None:
    if document is None:
        return None
    text = " ".join(document.split())
    return next(s for s in text.split(". ") if "stop at once" in s) + "."


def _calls(*calls: ToolCall) -> AIMessage:
    return AIMessage("", tool_calls=list(calls))
