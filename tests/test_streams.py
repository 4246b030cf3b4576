"""Streams: a cut is told in ordinary chunks, and the consumer sets the pace."""

from __future__ import annotations

import asyncio
import gc
import operator
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import anyio
import pytest
from harness import SYNC, How, drive, napper
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import START
from langgraph.types import StreamWriter

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    collect_runs,
)
from langgraph_deadline.testing import run_virtual

BACKLOG = 300
"""At most so many chunks may wait for a slow consumer."""

MODES = ("updates", "values", "messages", "custom", "debug", "tasks", "checkpoints")

pytestmark = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.LangChainBetaWarning"
)


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    messages: list[Any]


def late(state: State) -> dict[str, Any]:
    """Answer in the reserve."""
    return {"log": ["late"]}


async def alate(state: State) -> dict[str, Any]:
    """Answer in the reserve."""
    return {"log": ["late"]}


def words(text: str = "one two") -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(text, id="m1")]))


def full(how: How, *, hang: float = 60) -> Any:
    """Return a builder: `first` shows all kinds of chunks, `hang` is cut."""

    def first(
        state: State, writer: StreamWriter, config: RunnableConfig
    ) -> dict[str, Any]:
        writer("custom of first")
        words().invoke("?", config)
        return {"log": ["first"]}

    async def afirst(state: State, writer: StreamWriter) -> dict[str, Any]:
        writer("custom of first")
        await words().ainvoke("?")
        return {"log": ["first"]}

    builder = StateGraph(State)
    builder.add_node("first", first if how in SYNC else afirst)
    builder.add_node("hang", napper(how, hang, {"log": ["hang"]}))
    builder.add_node("after", lambda state: {"log": ["after"]})
    builder.add_edge(START, "first")
    builder.add_edge("first", "hang")
    builder.add_edge("hang", "after")
    return builder


def stream(graph: Any, how: How, inputs: Any, **options: Any) -> list[Any]:
    """Return all chunks of a stream: sync in real time, async in virtual time."""
    if how == "stream":
        return list(graph.stream(inputs, **options))

    async def main() -> list[Any]:
        return [chunk async for chunk in graph.astream(inputs, **options)]

    return run_virtual(main())


STREAMS: tuple[How, ...] = ("stream", "astream")


# The cut and the fallback are ordinary chunks.


def bounded(how: How, **options: Any) -> Any:
    """Return a graph that is cut in `hang` and goes on with `late`."""
    fallback = late if how in SYNC else alate
    policy = DeadlinePolicy(seconds=1, reserve=0.7, cancel_grace=0.05)
    hang = 1.2 if how in SYNC else 60
    return full(how, hang=hang).compile(deadline=policy, fallback=fallback, **options)


NAME = {"stream": "late", "astream": "alate"}


@pytest.mark.parametrize("how", STREAMS)
def test_streams_updates_tell_of_the_cut_and_the_fallback(how: How) -> None:
    """The cut node shows that it wrote nothing, the fallback what it wrote."""
    chunks = stream(bounded(how), how, {}, stream_mode="updates")
    assert chunks[0] == {"first": {"log": ["first"]}}
    assert chunks[1:] in (
        [{"hang": None}, {NAME[how]: {"log": ["late"]}}],
        [{NAME[how]: {"log": ["late"]}}],
    )


@pytest.mark.parametrize("how", STREAMS)
def test_streams_values_end_with_the_fallbacks(how: How) -> None:
    """Each chunk is the state, without anything of ours in it."""
    chunks = stream(bounded(how), how, {"log": ["in"]}, stream_mode="values")
    assert chunks[-1] == {"log": ["in", "first", "late"]}
    assert all(set(chunk) <= {"log", "messages"} for chunk in chunks)
    assert chunks[:2] == [{"log": ["in"]}, {"log": ["in", "first"]}]


@pytest.mark.parametrize("how", STREAMS)
def test_streams_messages_come_before_and_after_the_cut(how: How) -> None:
    """Tokens of a model in a node, and of a model in the fallback."""

    def answer(state: State, config: RunnableConfig) -> dict[str, Any]:
        words("from fallback").invoke("?", config)
        return {"log": ["late"]}

    async def aanswer(state: State) -> dict[str, Any]:
        await words("from fallback").ainvoke("?")
        return {"log": ["late"]}

    fallback = answer if how in SYNC else aanswer
    policy = DeadlinePolicy(seconds=1, reserve=0.7, cancel_grace=0.05)
    graph = full(how, hang=1.2).compile(deadline=policy, fallback=fallback)
    chunks = stream(graph, how, {}, stream_mode="messages")
    told = [(meta["langgraph_node"], chunk.content) for chunk, meta in chunks]
    name = fallback.__name__
    assert [t for t in told if t[1].strip()] == [
        ("first", "one"),
        ("first", "two"),
        (name, "from"),
        (name, "fallback"),
    ]


@pytest.mark.parametrize("how", STREAMS)
def test_streams_custom_chunks_end_with_the_cut(how: How) -> None:
    """A node's chunks come until its cut, none afterwards; then the fallback's."""
    seen = threading.Event()

    def chatty(state: State, writer: StreamWriter) -> None:
        for n in range(30):
            writer(n)
            time.sleep(0.05)
        seen.set()

    async def achatty(state: State, writer: StreamWriter) -> None:
        try:
            for n in range(30):
                writer(n)
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            writer("after the cut")
            raise

    def answer(state: State, writer: StreamWriter) -> None:
        writer("fallback")

    async def aanswer(state: State, writer: StreamWriter) -> None:
        writer("fallback")

    builder = StateGraph(State)
    builder.add_node("chatty", chatty if how in SYNC else achatty)
    builder.add_edge(START, "chatty")
    policy = DeadlinePolicy(seconds=1, reserve=0.6, cancel_grace=0.1)
    graph = builder.compile(
        deadline=policy, fallback=answer if how in SYNC else aanswer
    )
    chunks = stream(graph, how, {}, stream_mode="custom")
    numbers, rest = chunks[:-1], chunks[-1]
    assert rest == "fallback"
    assert numbers == list(range(len(numbers)))
    assert 1 <= len(numbers) <= 9
    if how == "astream":
        assert len(numbers) == 8
    else:
        assert seen.wait(5)


@pytest.mark.parametrize("how", STREAMS)
def test_streams_tasks_and_debug_show_the_fallback_as_a_task(how: How) -> None:
    """The fallback has a task like any node; the node after the cut has none."""
    for mode in ("tasks", "debug"):
        chunks = stream(bounded(how), how, {}, stream_mode=mode)
        payloads = [c.get("payload", c) for c in chunks]
        named = [p["name"] for p in payloads if "name" in p and "triggers" in p]
        assert named == ["first", "hang", NAME[how]]
        ended = [p["name"] for p in payloads if "name" in p and "result" in p]
        assert ended == ["first", "hang", NAME[how]]
        assert "__deadline__" not in repr(chunks)


@pytest.mark.parametrize("how", STREAMS)
def test_streams_checkpoints_hide_the_record(how: How) -> None:
    """Checkpoints are streamed with the state only, the last one of them final."""
    graph = bounded(how, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    chunks = stream(graph, how, {}, config=config, stream_mode="checkpoints")
    assert chunks[-1]["values"] == {"log": ["first", "late"]}
    assert chunks[-1]["next"] == []
    assert "__deadline__" not in repr([c["values"] for c in chunks])


@pytest.mark.parametrize("how", STREAMS)
def test_streams_all_modes_at_once(how: How) -> None:
    """Every mode shows the run to its end in one stream."""
    graph = bounded(how, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    chunks = stream(graph, how, {}, config=config, stream_mode=list(MODES))
    assert {mode for mode, _ in chunks} == set(MODES)
    assert [c for m, c in chunks if m == "updates"][-1] == {
        NAME[how]: {"log": ["late"]}
    }


@pytest.mark.parametrize("how", STREAMS)
def test_streams_version_2_parts_tell_the_same(how: How) -> None:
    """Typed parts carry the same updates."""
    graph = bounded(how)
    parts = stream(graph, how, {}, stream_mode=["updates", "values"], version="v2")
    assert parts[-1]["type"] == "values"
    assert parts[-1]["data"]["log"] == ["first", "late"]
    updates = [part["data"] for part in parts if part["type"] == "updates"]
    assert updates[-1] == {NAME[how]: {"log": ["late"]}}


@pytest.mark.parametrize("how", STREAMS)
def test_streams_subgraphs_show_what_was_done_inside(how: How) -> None:
    """The chunks of a subgraph come with its namespace until the cut."""
    hang = 1.2 if how in SYNC else 60
    builder = StateGraph(State)
    builder.add_node("inner", full(how, hang=hang).compile())
    builder.add_edge(START, "inner")
    fallback = late if how in SYNC else alate
    policy = DeadlinePolicy(seconds=1, reserve=0.7, cancel_grace=0.05)
    graph = builder.compile(deadline=policy, fallback=fallback)
    chunks = stream(graph, how, {}, stream_mode="updates", subgraphs=True)
    namespace, update = chunks[0]
    assert namespace[0].startswith("inner:")
    assert update == {"first": {"log": ["first"]}}
    assert chunks[-1] == ((), {NAME[how]: {"log": ["late"]}})
    assert "after" not in repr(chunks)


@pytest.mark.parametrize("how", STREAMS)
def test_streams_without_a_fallback_raise_behind_the_chunks(how: How) -> None:
    """What was done is streamed before the error comes."""
    hang = 1.2 if how in SYNC else 60
    graph = full(how, hang=hang).compile(deadline=0.3)
    driven = drive(graph, {}, how, virtual=True)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.updates == [{"first": {"log": ["first"]}}]
    assert driven.values == {"log": ["first"]}


@pytest.mark.parametrize("how", STREAMS)
def test_streams_with_return_end_quietly(how: How) -> None:
    """`on_exceeded="return"` ends the stream with the state so far."""
    hang = 1.2 if how in SYNC else 60
    policy = DeadlinePolicy(seconds=0.3, on_exceeded="return")
    driven = drive(full(how, hang=hang).compile(deadline=policy), {}, how, virtual=True)
    assert driven.error is None
    assert driven.values == {"log": ["first"]}
    assert driven.report.outcome == "deadline"


def test_streams_events_tell_of_the_fallback() -> None:
    """`astream_events` shows the fallback, and ends the run with its state."""

    async def main() -> list[Any]:
        graph = bounded("astream")
        return [e async for e in graph.astream_events({}, version="v2")]

    events = run_virtual(main())
    told = [(event["event"], event["name"]) for event in events]
    assert ("on_chain_start", "alate") in told
    assert ("on_chain_end", "alate") in told
    assert ("on_chain_start", "after") not in told
    assert told[-1] == ("on_chain_end", "LangGraph")
    assert events[-1]["data"]["output"]["log"] == ["first", "late"]


def test_streams_events_raise_without_a_fallback() -> None:
    """`astream_events` ends with the error where nothing takes its place."""
    seen: list[str] = []

    async def main() -> None:
        graph = full("astream").compile(deadline=2)
        async for event in graph.astream_events({}, version="v2"):
            seen.append(event["name"])

    with pytest.raises(DeadlineExceeded):
        run_virtual(main())
    assert "first" in seen


def test_streams_events_version_3_has_the_fallbacks_output() -> None:
    """The experimental protocol gives the final state."""

    async def main() -> Any:
        run = await bounded("astream").astream_events({}, version="v3")
        return await run.output()

    assert run_virtual(main())["log"] == ["first", "late"]


@pytest.mark.realtime
def test_streams_sync_events_version_3_has_the_fallbacks_output() -> None:
    """So does its sync form."""
    assert bounded("stream").stream_events({}, version="v3").output["log"] == [
        "first",
        "late",
    ]


# A consumer that leaves.


class Chatty:
    """A node that writes custom chunks until it is stopped, and says when it was."""

    def __init__(self, pause: float = 0.01) -> None:
        self.pause = pause
        self.written = 0
        self.ended = threading.Event()

    async def anode(self, state: State) -> None:
        writer = get_stream_writer()
        try:
            while True:
                self.written += 1
                writer(self.written)
                await asyncio.sleep(self.pause)
        finally:
            self.ended.set()

    def node(self, state: State) -> None:
        writer = get_stream_writer()
        try:
            for n in range(100_000):
                self.written = n
                writer(n)
                time.sleep(self.pause)
        finally:
            self.ended.set()

    def graph(self, *, sync: bool, **options: Any) -> Any:
        builder = StateGraph(State)
        builder.add_node("chatty", self.node if sync else self.anode)
        builder.add_edge(START, "chatty")
        return builder.compile(**{"deadline": 20, **options})


LEAVE: dict[str, Callable[[Any], Any]] = {
    "aclose": lambda stream: stream.aclose(),
    "athrow": lambda stream: stream.athrow(KeyError()),
}


@pytest.mark.parametrize("fallback", [None, alate], ids=["no fallback", "fallback"])
@pytest.mark.parametrize("way", LEAVE)
def test_streams_closing_an_async_stream_ends_its_nodes(
    way: str, fallback: Any
) -> None:
    """The node is cancelled and has cleaned up when `aclose` returns."""
    chatty = Chatty()

    async def main() -> None:
        with collect_runs() as runs:
            graph = chatty.graph(sync=False, fallback=fallback)
            stream = graph.astream({}, stream_mode="custom")
            assert await anext(stream) == 1
            assert await anext(stream) == 2
            try:
                await LEAVE[way](stream)
            except KeyError:
                assert way == "athrow"
            assert chatty.ended.is_set()
            written = chatty.written
            await asyncio.sleep(5)
            assert chatty.written == written
            assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [run.outcome for run in runs] == ["cancelled"]

    run_virtual(main())


def test_streams_an_error_in_the_consumers_loop_ends_the_nodes() -> None:
    """`async for` left by an exception, with `aclosing` as it should be, or without."""
    for managed in (True, False):
        chatty = Chatty()

        async def main(chatty: Chatty, managed: bool) -> None:
            from contextlib import aclosing

            stream = chatty.graph(sync=False).astream({}, stream_mode="custom")
            try:
                if managed:
                    async with aclosing(stream):
                        async for _ in stream:
                            raise KeyError
                else:
                    async for _ in stream:
                        raise KeyError
            except KeyError:
                pass
            del stream
            gc.collect()
            await asyncio.sleep(1)  # the loop closes what was dropped
            assert chatty.ended.is_set()
            written = chatty.written
            await asyncio.sleep(5)
            assert chatty.written == written

        run_virtual(main(chatty, managed))


def test_streams_a_consumer_that_stops_reading_holds_nothing_for_ever() -> None:
    """Nobody reads and nobody closes: the node ends at the deadline all the same."""
    chatty = Chatty()

    async def main() -> None:
        stream = chatty.graph(sync=False, deadline=3).astream({}, stream_mode="custom")
        assert await anext(stream) == 1
        await asyncio.sleep(4)
        assert chatty.ended.is_set()
        with pytest.raises(DeadlineExceeded):
            async for _ in stream:
                pass

    run_virtual(main())


@pytest.mark.realtime
def test_streams_a_sync_consumer_that_stops_reading_holds_nothing_for_ever() -> None:
    """The same for a sync stream: its node stops itself or is given up."""
    chatty = Chatty()
    stream = chatty.graph(sync=True, deadline=0.4).stream({}, stream_mode="custom")
    assert next(stream) == 0
    time.sleep(0.8)
    written = chatty.written
    assert written <= 60 + BACKLOG
    with pytest.raises(DeadlineExceeded):
        list(stream)


@pytest.mark.realtime
def test_streams_closing_a_sync_stream_ends_the_run() -> None:
    """`close` returns at once; nothing is started and nothing is written any more."""
    started: list[str] = []

    def node(state: State) -> dict[str, Any]:
        started.append("node")
        return {"log": ["x"]}

    builder = StateGraph(State)
    builder.add_sequence([("one", node), ("two", node), ("three", node)])
    builder.add_edge(START, "one")
    saver = InMemorySaver()
    graph = builder.compile(saver, deadline=20, fallback=late)
    config = {"configurable": {"thread_id": "1"}}
    with collect_runs() as runs:
        stream = graph.stream({}, config, stream_mode="updates")
        assert next(stream) == {"one": {"log": ["x"]}}
        stream.close()
    assert len(started) <= 2
    count = len(started)
    time.sleep(0.2)
    assert len(started) == count
    assert [run.outcome for run in runs] == ["cancelled"]
    # The thread is as any that was left in the middle: it can be resumed.
    assert graph.get_state(config).values["log"] == ["x"]
    assert graph.invoke(None, config)["log"] == ["x", "x", "x"]


@pytest.mark.realtime
def test_streams_closing_a_sync_stream_is_not_held_up_by_its_node() -> None:
    """A node that blocks on is given up, and its thread writes nothing."""
    release = threading.Event()

    def node(state: State, writer: StreamWriter) -> dict[str, Any]:
        writer("first")
        release.wait(5)
        writer("second")
        return {"log": ["written"]}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    saver = InMemorySaver()
    graph = builder.compile(saver, deadline=20)
    config = {"configurable": {"thread_id": "1"}}
    stream = graph.stream({}, config, stream_mode="custom")
    assert next(stream) == "first"
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 1.5
    release.set()
    time.sleep(0.3)
    assert graph.get_state(config).values == {"log": []}


@pytest.mark.realtime
@pytest.mark.parametrize("mode", ["custom", "values", "updates"])
def test_streams_an_anyio_scope_around_the_consumer_ends_the_nodes(mode: str) -> None:
    """What a web framework does when its client goes away."""

    async def main() -> None:
        chatty = Chatty()
        graph = chatty.graph(sync=False)

        async def respond() -> None:
            async for _ in graph.astream({}, stream_mode=mode):
                pass

        async with anyio.create_task_group() as group:
            group.start_soon(respond)
            await asyncio.sleep(0.3)
            group.cancel_scope.cancel()
        assert chatty.ended.is_set()
        written = chatty.written
        await asyncio.sleep(0.2)
        assert chatty.written == written

    asyncio.run(main())


def test_streams_a_stream_that_was_never_read_starts_nothing() -> None:
    """Calling `astream` and closing it at once runs no node."""
    chatty = Chatty()

    async def main() -> None:
        stream = chatty.graph(sync=False).astream({}, stream_mode="custom")
        await stream.aclose()
        await asyncio.sleep(1)

    run_virtual(main())
    assert chatty.written == 0
    stream = chatty.graph(sync=True).stream({}, stream_mode="custom")
    stream.close()
    assert chatty.written == 0


def test_streams_the_budget_counts_from_the_first_item() -> None:
    """A stream that is read a minute after it was made has its whole budget."""

    async def main() -> list[Any]:
        builder = StateGraph(State)
        builder.add_node("work", napper("astream", 4, {"log": ["done"]}))
        builder.add_edge(START, "work")
        stream = builder.compile(deadline=5).astream({})
        await asyncio.sleep(60)
        return [chunk async for chunk in stream]

    assert run_virtual(main()) == [{"work": {"log": ["done"]}}]


# A consumer that is slow.


def chain(how: How, started: list[str]) -> Any:
    """Return a graph of three nodes that note when they start."""
    builder = StateGraph(State)

    def make(name: str) -> Any:
        def node(state: State) -> dict[str, Any]:
            started.append(name)
            return {"log": [name]}

        async def anode(state: State) -> dict[str, Any]:
            return node(state)

        return node if how in SYNC else anode

    builder.add_sequence([(name, make(name)) for name in "abc"])
    builder.add_edge(START, "a")
    return builder.compile(deadline=100)


@pytest.mark.parametrize("mode", ["updates", "tasks"])
def test_streams_the_next_superstep_waits_for_an_async_consumer(mode: str) -> None:
    """Node n+1 does not start before the consumer has asked for more than node n's."""
    started: list[str] = []

    async def main() -> None:
        asked = 0
        async for chunk in chain("astream", started).astream({}, stream_mode=mode):
            if mode == "tasks" and "result" not in chunk:
                continue
            asked += 1
            await asyncio.sleep(10)
            assert len(started) == asked

    run_virtual(main())
    assert started == ["a", "b", "c"]


@pytest.mark.realtime
def test_streams_the_next_superstep_waits_for_a_sync_consumer() -> None:
    """So in a sync stream."""
    started: list[str] = []
    for asked, _ in enumerate(chain("stream", started).stream({}), start=1):
        time.sleep(0.1)
        assert len(started) == asked
    assert started == ["a", "b", "c"]


@pytest.mark.realtime
def test_streams_a_sync_node_waits_for_a_slow_consumer() -> None:
    """A node that writes chunks faster than they are read does not fill the memory."""
    count = 20_000
    written: list[int] = []

    def node(state: State, writer: StreamWriter) -> None:
        for n in range(count):
            writer(n)
            written.append(n)

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    graph = builder.compile(deadline=60)
    stream = graph.stream({}, stream_mode="custom")
    for read in range(1, 6):
        next(stream)
        time.sleep(0.05)
        assert len(written) <= read + BACKLOG
    # Read on, it goes on, and nothing is lost.
    assert list(stream) == list(range(5, count))


@pytest.mark.realtime
def test_streams_a_sync_node_of_an_async_graph_waits_for_a_slow_consumer() -> None:
    """Its thread waits; the loop does not."""
    count = 5_000
    written: list[int] = []

    def node(state: State, writer: StreamWriter) -> None:
        for n in range(count):
            writer(n)
            written.append(n)

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    graph = builder.compile(deadline=60)

    async def main() -> list[int]:
        stream = graph.astream({}, stream_mode="custom")
        read: list[int] = []
        for _ in range(5):
            read.append(await anext(stream))
            await asyncio.sleep(0.05)
            assert len(written) <= len(read) + BACKLOG
        read += [chunk async for chunk in stream]
        return read

    assert asyncio.run(main()) == list(range(count))


class Counting(GenericFakeChatModel):
    """A model that counts the tokens it was asked to generate."""

    made: Any  # a list that pydantic does not copy

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for chunk in super()._stream(*args, **kwargs):
            self.made.append(1)
            yield chunk

    async def _astream(self, *args: Any, **kwargs: Any) -> Any:
        run_manager = kwargs.pop("run_manager", None)
        for chunk in GenericFakeChatModel._stream(self, *args, **kwargs):
            self.made.append(1)
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.message.content, chunk=chunk)
            yield chunk
            await asyncio.sleep(0.001)


def talking(count: int, made: list[int], *, sync: bool) -> Any:
    """Return a graph whose only node is a model of `count` words."""
    text = " ".join(["word"] * count)

    def node(state: State, config: RunnableConfig) -> dict[str, Any]:
        model = Counting(messages=iter([AIMessage(text)]), made=made)
        return {"messages": [model.invoke("?", config)]}

    async def anode(state: State) -> dict[str, Any]:
        model = Counting(messages=iter([AIMessage(text)]), made=made)
        return {"messages": [await model.ainvoke("?")]}

    builder = StateGraph(State)
    builder.add_node("model", node if sync else anode)
    builder.add_edge(START, "model")
    return builder.compile(deadline=60)


@pytest.mark.realtime
def test_streams_an_async_models_tokens_wait_for_a_slow_consumer() -> None:
    """A model is read no faster than its tokens are."""
    made: list[int] = []
    graph = talking(2_000, made, sync=False)

    async def main() -> int:
        stream = graph.astream({}, stream_mode="messages")
        read = 0
        for _ in range(5):
            await anext(stream)
            read += 1
            await asyncio.sleep(0.3)
            assert len(made) <= read + BACKLOG
        async for _ in stream:
            read += 1
        return read

    assert asyncio.run(main()) >= 2_000
    assert len(made) >= 2_000


@pytest.mark.realtime
def test_streams_a_sync_models_tokens_wait_for_a_slow_consumer() -> None:
    """So in a sync stream."""
    made: list[int] = []
    stream = talking(2_000, made, sync=True).stream({}, stream_mode="messages")
    read = 0
    for _ in range(5):
        next(stream)
        read += 1
        time.sleep(0.1)
        assert len(made) <= read + BACKLOG
    read += len(list(stream))
    assert read >= 2_000
    assert len(made) >= 2_000


@pytest.mark.realtime
def test_streams_a_node_that_waits_for_its_consumer_is_cut_on_time() -> None:
    """A consumer that does not read cannot keep a node past its deadline."""
    state = {"ended": False}

    def node(_: State, writer: StreamWriter) -> None:
        try:
            for n in range(1_000_000):
                writer(n)
                if n > 1000:
                    time.sleep(0.001)
        finally:
            state["ended"] = True

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    stream = builder.compile(deadline=0.4).stream({}, stream_mode="custom")
    next(stream)
    time.sleep(0.7)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        list(stream)
    assert time.monotonic() - began < 2


def test_streams_a_slow_consumer_spends_the_runs_budget() -> None:
    """The deadline is an instant: time the consumer takes counts as well."""
    started: list[str] = []

    async def main() -> None:
        graph = chain("astream", started)
        async for _ in graph.astream({}, deadline=15):
            await asyncio.sleep(10)

    with pytest.raises(DeadlineExceeded):
        run_virtual(main())
    assert started == ["a", "b"]
