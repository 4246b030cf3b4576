"""`DeadlineHandler` by hand: it bounds graphs compiled without this package."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, Send, interrupt

import langgraph_deadline
from langgraph_deadline import DeadlineExceeded, DeadlineHandler, _clock
from langgraph_deadline.testing import run_virtual

# Plain graphs, whatever is patched elsewhere: this is what the handler is for.
assert StateGraph.__module__.startswith("langgraph.")

pytestmark = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.LangChainBetaWarning"
)


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    n: int


def sequence(*nodes: Any, **options: Any) -> Any:
    """Return a plain graph of `nodes`, one after the other."""
    builder = StateGraph(State)
    names = [f"n{index}" for index in range(len(nodes))]
    builder.add_sequence(list(zip(names, nodes, strict=True)))
    builder.add_edge(START, names[0])
    builder.add_edge(names[-1], END)
    return builder.compile(**options)


def sleeps(seconds: float, ran: list[str], name: str) -> Any:
    """Return a sync node that takes its time and says when it starts."""

    def node(state: State) -> None:
        ran.append(name)
        time.sleep(seconds)

    return node


def asleeps(seconds: float, ran: list[str], name: str) -> Any:
    """Return an async node that takes its time and says when it starts."""

    async def node(state: State) -> None:
        ran.append(name)
        await asyncio.sleep(seconds)

    return node


class Slow(GenericFakeChatModel):
    """A model that takes `pause` seconds for each token, and counts them."""

    made: Any
    pause: float

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for chunk in super()._stream(*args, **kwargs):
            time.sleep(self.pause)
            self.made.append(1)
            yield chunk

    async def _astream(self, *args: Any, **kwargs: Any) -> Any:
        run_manager = kwargs.pop("run_manager", None)
        for chunk in GenericFakeChatModel._stream(self, *args, **kwargs):
            await asyncio.sleep(self.pause)
            self.made.append(1)
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.message.content, chunk=chunk)
            yield chunk


def model(made: list[int], pause: float = 0.0) -> Slow:
    text = " ".join(["word"] * 100)
    return Slow(messages=iter([AIMessage(text)] * 20), made=made, pause=pause)


def config_of(handler: DeadlineHandler) -> RunnableConfig:
    return {"callbacks": [handler]}


def timed(call: Any) -> float:
    """Return after how many seconds `call` raised `DeadlineExceeded`."""
    began = _clock.now()
    with pytest.raises(DeadlineExceeded) as caught:
        call()
    assert caught.value.cause == "deadline"
    return _clock.now() - began


def virtually(call: Any) -> float:
    """As `timed`, for a coroutine function in virtual time."""

    async def main() -> float:
        began = _clock.now()
        with pytest.raises(DeadlineExceeded) as caught:
            await call()
        assert caught.value.cause == "deadline"
        return _clock.now() - began

    return run_virtual(main())


# What it stops.


@pytest.mark.realtime
def test_handler_no_further_node_starts() -> None:
    """The node that overruns ends by itself, the next one does not start."""
    ran: list[str] = []
    graph = sequence(sleeps(0.4, ran, "a"), sleeps(0, ran, "b"))
    elapsed = timed(lambda: graph.invoke({}, config_of(DeadlineHandler(0.3))))
    assert ran == ["a"]
    assert 0.39 <= elapsed < 1.2


def test_handler_no_further_async_node_starts() -> None:
    """The same in an async run."""
    ran: list[str] = []
    graph = sequence(asleeps(2, ran, "a"), asleeps(2, ran, "b"), asleeps(2, ran, "c"))
    config = config_of(DeadlineHandler(3))
    assert virtually(lambda: graph.ainvoke({}, config)) == pytest.approx(4)
    assert ran == ["a", "b"]


def test_handler_leaves_a_run_alone_that_is_in_time() -> None:
    """A generous handler changes neither the result nor the stream."""
    ran: list[str] = []
    graph = sequence(asleeps(2, ran, "a"), asleeps(2, ran, "b"))

    async def chunks(config: RunnableConfig) -> list[Any]:
        return [c async for c in graph.astream({"n": 1}, config, stream_mode="debug")]

    plain = run_virtual(chunks({}))
    ours = run_virtual(chunks(config_of(DeadlineHandler(4.5))))
    assert [c["type"] for c in plain] == [c["type"] for c in ours]
    assert ran == ["a", "b"] * 2


@pytest.mark.realtime
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("called", [True, False], ids=["called", "as a node"])
def test_handler_reaches_into_subgraphs(called: bool, depth: int) -> None:
    """Nodes of subgraphs are refused too, counted from the first event outside."""
    ran: list[str] = []
    graph = sequence(sleeps(0.2, ran, "x"), sleeps(0.2, ran, "y"), sleeps(0, ran, "z"))
    for _ in range(depth):
        inner = graph
        node = (lambda state, inner=inner: inner.invoke(state)) if called else inner
        graph = sequence(node)
    elapsed = timed(lambda: graph.invoke({}, config_of(DeadlineHandler(0.3))))
    assert ran == ["x", "y"]
    assert elapsed < 1.3


@pytest.mark.parametrize("called", [True, False], ids=["called", "as a node"])
def test_handler_reaches_into_async_subgraphs(called: bool) -> None:
    """The same in an async run, exactly."""
    ran: list[str] = []
    inner = sequence(asleeps(2, ran, "x"), asleeps(2, ran, "y"), asleeps(2, ran, "z"))

    async def call(state: State) -> Any:
        return await inner.ainvoke(state)

    graph = sequence(asleeps(1, ran, "w"), call if called else inner)
    config = config_of(DeadlineHandler(4))
    assert virtually(lambda: graph.ainvoke({}, config)) == pytest.approx(5)
    assert ran == ["w", "x", "y"]


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["stream", "mode", "events v3"])
def test_handler_stops_a_streaming_model_at_its_next_token(how: str) -> None:
    """Tokens come for 0.3 s, and not one more is generated afterwards."""
    made: list[int] = []

    def node(state: State) -> Any:
        chat = model(made, 0.05)
        if how == "stream":
            return {"messages": [list(chat.stream("?"))[-1]]}
        return {"messages": [chat.invoke("?")]}

    graph = sequence(node)
    config = config_of(DeadlineHandler(0.3))
    calls = {
        "stream": lambda: graph.invoke({}, config),
        "mode": lambda: list(graph.stream({}, config, stream_mode="messages")),
        "events v3": lambda: graph.stream_events({}, config, version="v3").output,
    }
    elapsed = timed(calls[how])
    assert 1 <= len(made) <= 8
    assert elapsed < 1.3
    count = len(made)
    time.sleep(0.2)
    assert len(made) == count


@pytest.mark.parametrize("how", ["astream", "mode", "events v2", "events v3"])
def test_handler_stops_an_async_streaming_model_at_its_next_token(how: str) -> None:
    """The same in an async run, to the token."""
    made: list[int] = []

    async def node(state: State) -> Any:
        chat = model(made, 1)
        if how == "astream":
            return {"messages": [[c async for c in chat.astream("?")][-1]]}
        return {"messages": [await chat.ainvoke("?")]}

    graph = sequence(node)
    config = config_of(DeadlineHandler(4.5))

    async def call() -> None:
        if how == "astream":
            await graph.ainvoke({}, config)
        elif how == "mode":
            async for _ in graph.astream({}, config, stream_mode="messages"):
                pass
        elif how == "events v2":
            async for _ in graph.astream_events({}, config, version="v2"):
                pass
        else:
            run = await graph.astream_events({}, config, version="v3")
            await run.output()

    assert virtually(call) == pytest.approx(5)
    assert len(made) == 5


def test_handler_refuses_a_model_that_was_not_started() -> None:
    """A node that is late already does not get its model any more."""
    made: list[int] = []

    async def node(state: State) -> Any:
        await asyncio.sleep(5)
        return {"messages": [await model(made).ainvoke("?")]}

    config = config_of(DeadlineHandler(3))
    graph = sequence(node)
    assert virtually(lambda: graph.ainvoke({}, config)) == pytest.approx(5)
    assert made == []


def test_handler_refuses_every_attempt_of_with_retry() -> None:
    """`.with_retry()` retries all errors; not one of its attempts is a request."""
    made: list[int] = []

    async def node(state: State) -> Any:
        await asyncio.sleep(5)
        chat = model(made).with_retry(
            wait_exponential_jitter=False, stop_after_attempt=3
        )
        return {"messages": [await chat.ainvoke("?")]}

    graph = sequence(node)
    config = config_of(DeadlineHandler(3))
    with pytest.raises(DeadlineExceeded):
        run_virtual(graph.ainvoke({}, config))
    assert made == []


@pytest.mark.parametrize("sync", [True, False])
def test_handler_refuses_tools(sync: bool) -> None:
    """Whoever calls it, a tool is not started when time is up."""
    ran: list[str] = []

    @tool
    def search(query: str) -> str:
        """Search."""
        ran.append(query)
        return "found"

    def node(state: State) -> None:
        search.invoke({"query": "in time"})
        time.sleep(0.25)
        search.invoke({"query": "late"})

    async def anode(state: State) -> None:
        await search.ainvoke({"query": "in time"})
        await asyncio.sleep(5)
        await search.ainvoke({"query": "late"})

    if sync:
        timed(lambda: sequence(node).invoke({}, config_of(DeadlineHandler(0.2))))
    else:
        config = config_of(DeadlineHandler(4))
        assert virtually(lambda: sequence(anode).ainvoke({}, config)) == 5
    assert ran == ["in time"]


@pytest.mark.parametrize("handles", [True, False])
def test_handler_an_agent_loop_ends_though_its_tools_answer_errors(
    handles: bool,
) -> None:
    """`handle_tool_errors=True` turns a refusal into a message, but not a way on."""
    asked: list[int] = []

    @tool
    async def slow(query: str) -> str:
        """Take long."""
        await asyncio.sleep(2)
        return "found"

    async def agent(state: State) -> Any:
        asked.append(1)
        words = iter([AIMessage("", tool_calls=[_call(len(asked))])])
        chat = GenericFakeChatModel(messages=words)
        return {"messages": [await chat.ainvoke(state["messages"])]}

    builder = StateGraph(State)
    builder.add_node("agent", agent)
    builder.add_node("tools", ToolNode([slow], handle_tool_errors=handles))
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "tools")
    builder.add_edge("tools", "agent")
    graph = builder.compile()
    inputs = {"messages": [HumanMessage("?")]}
    config = {**config_of(DeadlineHandler(5)), "recursion_limit": 200}
    assert virtually(lambda: graph.ainvoke(inputs, config)) == pytest.approx(6)
    assert len(asked) == 3


def _call(number: int) -> Any:
    return {"name": "slow", "args": {"query": "?"}, "id": str(number)}


class Library(BaseRetriever):
    """A retriever that counts what it was asked."""

    asked: Any

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        self.asked.append(query)
        return []


@pytest.mark.parametrize("sync", [True, False])
def test_handler_refuses_retrievers(sync: bool) -> None:
    """A retrieval is not started when time is up."""
    asked: list[str] = []
    library = Library(asked=asked)

    def node(state: State) -> None:
        library.invoke("in time")
        time.sleep(0.25)
        library.invoke("late")

    async def anode(state: State) -> None:
        await library.ainvoke("in time")
        await asyncio.sleep(0.4)
        await library.ainvoke("late")

    config = config_of(DeadlineHandler(0.2))
    if sync:
        timed(lambda: sequence(node).invoke({}, config))
    else:
        # In real time: the retriever's async form uses the loop's own threads.
        timed(lambda: asyncio.run(sequence(anode).ainvoke({}, config)))
    assert asked == ["in time"]


def test_handler_refuses_chains() -> None:
    """Any Runnable in a node is an event as well."""
    ran: list[str] = []

    async def node(state: State) -> None:
        chain = RunnableLambda(asleeps(2, ran, "a")) | RunnableLambda(
            asleeps(2, ran, "b")
        )
        await chain.ainvoke({})
        await chain.ainvoke({})

    config = config_of(DeadlineHandler(5))
    graph = sequence(node)
    assert virtually(lambda: graph.ainvoke({}, config)) == pytest.approx(6)
    assert ran == ["a", "b", "a"]


# LangGraph never awaits the coroutines of tasks that it cancels in its semaphore.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_handler_sends_that_wait_for_a_slot_do_not_start() -> None:
    """With two at a time, those that come late are refused."""
    ran: list[str] = []
    builder = StateGraph(State)
    builder.add_node("work", asleeps(2, ran, "work"))
    builder.add_conditional_edges(
        START, lambda state: [Send("work", {"n": n}) for n in range(10)], ["work"]
    )
    graph = builder.compile()
    config = {**config_of(DeadlineHandler(3)), "max_concurrency": 2}
    assert virtually(lambda: graph.ainvoke({}, config)) == pytest.approx(4)
    assert len(ran) == 4


def test_handler_is_not_retried_by_langgraphs_default_policy() -> None:
    """A refusal inside a node is no reason to try the node again."""
    ran: list[str] = []

    async def node(state: State) -> None:
        ran.append("node")
        await asyncio.sleep(5)
        await RunnableLambda(asleeps(0, ran, "late")).ainvoke({})

    builder = StateGraph(State)
    builder.add_node("node", node, retry_policy=RetryPolicy(max_attempts=5))
    builder.add_edge(START, "node")
    graph = builder.compile()
    config = config_of(DeadlineHandler(4))
    assert virtually(lambda: graph.ainvoke({}, config)) == pytest.approx(5)
    assert ran == ["node"]


def test_handler_says_what_was_refused() -> None:
    """The error names the limit, what did not start, and by how much it was late."""
    graph = sequence(asleeps(5, [], "a"), asleeps(0, [], "b"))
    with pytest.raises(DeadlineExceeded, match=r"4 s") as caught:
        run_virtual(graph.ainvoke({}, config_of(DeadlineHandler(4))))
    error = caught.value
    assert error.step == "n1"
    assert error.budget == 4
    assert error.elapsed == pytest.approx(5)
    assert error.remaining == pytest.approx(-1)


def test_handler_bounds_the_functional_api() -> None:
    """Entrypoints and their tasks are chains like any other."""
    ran: list[str] = []

    @task
    async def work(name: str) -> None:
        ran.append(name)
        await asyncio.sleep(2)

    @entrypoint()
    async def flow(value: str) -> None:
        for name in "abcd":
            await work(name)

    config = config_of(DeadlineHandler(3))
    assert virtually(lambda: flow.ainvoke("x", config)) == pytest.approx(4)
    assert ran == ["a", "b"]


def test_handler_may_be_bound_with_with_config() -> None:
    """A graph that carries its handler is bounded in every call."""
    ran: list[str] = []
    graph = sequence(asleeps(2, ran, "a"), asleeps(2, ran, "b"))
    bound = graph.with_config(callbacks=[DeadlineHandler(1)])
    for _ in range(2):
        assert virtually(lambda: bound.ainvoke({})) == pytest.approx(2)
    assert ran == ["a", "a"]
    run_virtual(graph.ainvoke({}))
    assert ran == ["a", "a", "a", "b"]


# One handler, many runs.


def test_handler_counts_each_run_from_its_own_first_event() -> None:
    """Runs one after the other each have the whole budget."""
    ran: list[str] = []
    graph = sequence(asleeps(2, ran, "a"), asleeps(0, ran, "b"))
    handler = DeadlineHandler(3)

    async def main() -> None:
        for _ in range(5):
            await graph.ainvoke({}, config_of(handler))
            await asyncio.sleep(10)

    run_virtual(main())
    assert len(ran) == 10


def test_handler_serves_many_runs_at_once() -> None:
    """Overlapping runs that began at different times end at different times."""
    graph = sequence(*[asleeps(1, [], "n")] * 10)
    handler = DeadlineHandler(3.5)

    async def one(delay: float) -> float:
        await asyncio.sleep(delay)
        began = _clock.now()
        with pytest.raises(DeadlineExceeded):
            await graph.ainvoke({}, config_of(handler))
        return _clock.now() - began

    async def main() -> list[float]:
        return await asyncio.gather(*[one(n * 0.7) for n in range(10)])

    assert run_virtual(main()) == [pytest.approx(4)] * 10
    assert handler._began == {}


@pytest.mark.realtime
def test_handler_serves_many_threads_at_once() -> None:
    """So do sync runs in threads."""
    graph = sequence(*[sleeps(0.1, [], "n")] * 20)
    handler = DeadlineHandler(0.35)
    results: list[float] = []

    def run(delay: float) -> None:
        time.sleep(delay)
        results.append(timed(lambda: graph.invoke({}, config_of(handler))))

    threads = [threading.Thread(target=run, args=[n * 0.1]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(results) == 6
    assert all(0.34 <= elapsed < 1.4 for elapsed in results)
    assert handler._began == {}


def test_handler_gives_each_run_of_a_batch_its_own_budget() -> None:
    """`abatch` with one handler: later runs are not charged for earlier ones."""
    ran: list[str] = []
    graph = sequence(asleeps(2, ran, "a"), asleeps(0, ran, "b"))
    config = {**config_of(DeadlineHandler(3)), "max_concurrency": 1}
    run_virtual(graph.abatch([{}, {}, {}], config))
    assert len(ran) == 6


def test_handler_a_resume_is_a_run_of_its_own() -> None:
    """Time between an interrupt and its resume is not counted."""

    async def ask(state: State) -> Any:
        return {"n": interrupt("?")}

    graph = sequence(ask, asleeps(1, [], "b"), checkpointer=InMemorySaver())
    handler = DeadlineHandler(3)
    config = {**config_of(handler), "configurable": {"thread_id": "1"}}

    async def main() -> Any:
        await graph.ainvoke({}, config)
        await asyncio.sleep(100)
        return await graph.ainvoke(Command(resume=7), config)

    assert run_virtual(main())["n"] == 7
    assert handler._began == {}


def test_handler_keeps_nothing_of_runs_that_ended() -> None:
    """Whether they completed, failed, were refused, interrupted or cancelled."""
    handler = DeadlineHandler(3)
    config = {**config_of(handler), "configurable": {"thread_id": "1"}}

    async def fails(state: State) -> None:
        raise KeyError

    async def asks(state: State) -> None:
        interrupt("?")

    async def talks(state: State) -> None:
        async for _ in model([], 1).astream("?"):
            pass

    async def main() -> None:
        for node in (asleeps(1, [], "ok"), fails, asks, talks, asleeps(9, [], "late")):
            saver = InMemorySaver()
            graph = sequence(sequence(node, node), node, checkpointer=saver)
            task = asyncio.create_task(graph.ainvoke({}, config))
            await asyncio.wait([task], timeout=20)
            assert handler._began == {}
        task = asyncio.create_task(sequence(asleeps(60, [], "c")).ainvoke({}, config))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert handler._began == {}

    run_virtual(main())


@pytest.mark.realtime
def test_handler_keeps_nothing_of_a_stream_that_was_left() -> None:
    """Thousands of clients that leave early do not fill the memory."""
    handler = DeadlineHandler(30)
    graph = sequence(*[sleeps(0, [], "n")] * 3)
    for _ in range(20):
        stream = graph.stream({}, config_of(handler))
        next(stream)
        stream.close()

    async def main() -> None:
        for _ in range(20):
            stream = graph.astream({}, config_of(handler))
            await anext(stream)
            await stream.aclose()

    asyncio.run(main())
    assert handler._began == {}


# Beside a compiled deadline.


def test_handler_and_a_compiled_deadline_the_earlier_one_counts() -> None:
    """On a bounded graph the handler can only shorten."""
    for seconds, expected in ((3, 4), (100, 7)):
        builder = langgraph_deadline.StateGraph(State)
        builder.add_sequence([(name, asleeps(2, [], name)) for name in "abcdefgh"])
        builder.add_edge(START, "a")
        graph = builder.compile(deadline=7)
        config = config_of(DeadlineHandler(seconds))
        elapsed = virtually(lambda g=graph, c=config: g.ainvoke({}, c))
        assert elapsed == pytest.approx(expected)


def test_handler_without_seconds_applies_the_deadline_of_the_place() -> None:
    """In a `fail_after` block a plain graph stops at its next event."""
    ran: list[str] = []
    graph = sequence(sleeps(0.2, ran, "a"), sleeps(0.2, ran, "b"), sleeps(0, ran, "c"))
    with (
        pytest.raises(DeadlineExceeded),
        langgraph_deadline.fail_after(0.3),
    ):
        graph.invoke({}, config_of(DeadlineHandler()))
    assert ran == ["a", "b"]


# The object.


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, True, "5", [], 0.0])
def test_handler_refuses_what_is_no_budget(bad: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match="deadline"):
        DeadlineHandler(bad)


def test_handler_takes_a_timedelta() -> None:
    """As everywhere."""
    assert DeadlineHandler(timedelta(minutes=1)).seconds == 60


def test_handler_can_be_copied_and_pickled() -> None:
    """Copies have the setting and no runs."""
    handler = DeadlineHandler(5)
    for again in (
        copy.copy(handler),
        copy.deepcopy(handler),
        pickle.loads(pickle.dumps(handler)),
    ):
        assert again.seconds == 5
        assert again._began == {}


def test_handler_a_refusal_is_not_logged_as_an_error_of_a_callback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """LangChain warns of errors of handlers; this one is how work is stopped."""

    class Broken(BaseCallbackHandler):
        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            msg = "broken"
            raise ValueError(msg)

    step = RunnableLambda(lambda value: value)
    with pytest.raises(DeadlineExceeded), langgraph_deadline.fail_after(1e-9):
        step.invoke(1, {"callbacks": [Broken(), DeadlineHandler()]})
    assert [record.getMessage() for record in caplog.records] == [
        "Error in Broken.on_chain_start callback: ValueError('broken')"
    ]
