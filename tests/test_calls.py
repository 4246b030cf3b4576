"""Calls and the step they are made in: what is kept, and what is told of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from harness import ASYNC, How, State, Trial, drive
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langgraph.graph import START, MessagesState

from langgraph_deadline import (
    DeadlinePolicy,
    StateGraph,
    collect_runs,
    shield,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual


class Talker(BaseChatModel):
    """Says a word a second."""

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for _ in range(100):
            time.sleep(0.1)
            yield ChatGenerationChunk(message=AIMessageChunk("word "))

    async def _astream(
        self, *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for _ in range(100):
            await asyncio.sleep(1)
            yield ChatGenerationChunk(message=AIMessageChunk("word "))

    @property
    def _llm_type(self) -> str:
        return "talker"


@pytest.mark.parametrize("how", ASYNC)
def test_c6_what_a_model_had_said_at_the_cut_is_kept(how: How) -> None:
    """The node that asked it returns that, within the grace."""
    model = with_deadline(Talker(), on_exceeded="partial")

    async def node(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke("?")]}

    def sorry(state: MessagesState) -> Any:
        return {"messages": [AIMessage("Sorry.")]}

    builder = StateGraph(MessagesState).add_node(node).add_edge(START, "node")
    policy = DeadlinePolicy(seconds=10.5, reserve=5)
    graph = builder.compile(deadline=policy, fallback=sorry)
    driven = drive(graph, {"messages": []}, how, virtual=True)
    said, last = driven.values["messages"]
    assert said.content == "word " * 5
    assert said.response_metadata["deadline"] == "exceeded"
    assert last.content == "Sorry."
    assert driven.report.outcome == "deadline"


@pytest.mark.parametrize("how", ASYNC)
def test_c5_a_critical_section_past_the_cut_did_not_block_the_loop(how: How) -> None:
    trial = Trial(how)

    async def node(state: State) -> None:
        with shield(1):
            await asyncio.sleep(8.9)

    builder = StateGraph(State).add_node(node).add_edge(START, "node")
    driven = trial.drive(trial.compile(builder, "fallback"))
    trial.at_work(driven, 0.9)
    assert driven.report.stragglers == []


@pytest.mark.realtime
def test_c5_a_sibling_of_a_node_that_failed_is_a_straggler_from_then_on() -> None:
    async def fails(state: State) -> None:
        await asyncio.sleep(0.1)
        raise LookupError

    def blocks(state: State) -> None:
        time.sleep(0.6)

    builder = StateGraph(State).add_node(fails).add_node(blocks)
    builder.add_edge(START, "fails").add_edge(START, "blocks")
    graph = builder.compile(deadline=30)
    with collect_runs() as runs, pytest.raises(LookupError):
        asyncio.run(graph.ainvoke({"log": []}))
    (straggler,) = runs[0].stragglers
    assert straggler.name == "blocks"
    time.sleep(0.8)
    assert 0 <= straggler.overrun < 0.7


def test_a_bounded_call_outside_of_any_graph_leaves_nothing() -> None:
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"

    async def main() -> None:
        assert await with_deadline(nap, 5)(1) == "rested"
        with pytest.raises(TimeoutError, match="its own limit of 5 s"):
            await with_deadline(nap, 5)(60)
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())
