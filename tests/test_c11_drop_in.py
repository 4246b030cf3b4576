"""C11: with a generous deadline, or none, a graph behaves as LangGraph's own."""

from __future__ import annotations

import asyncio
import copy
import operator
import pickle
import re
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from harness import drive, napper
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, add_messages
from langgraph.graph import StateGraph as LangGraphStateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import (
    CachePolicy,
    Command,
    RetryPolicy,
    Send,
    StreamWriter,
    interrupt,
)
from typing_extensions import TypedDict  # pydantic asks for this one before 3.12

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    with_deadline,
)

HOUR = 3600
MODES = ("updates", "values", "messages", "custom", "debug", "tasks", "checkpoints")


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    messages: Annotated[list[AnyMessage], add_messages]
    n: int


Builder = Any
Make = Callable[[Any], Builder]


# The graphs that are compared. Each is built by the class it is given.


def sequence(cls: Any) -> Builder:
    """A custom chunk, a streaming model, a tool of one's own, a runnable as a node."""

    def first(state: State, writer: StreamWriter) -> dict[str, Any]:
        writer({"progress": 1})
        writer("half way")
        return {"log": ["first"], "n": 1}

    def model(state: State, config: RunnableConfig) -> dict[str, Any]:
        words = iter([AIMessage("three short words", id="m1")])
        reply = GenericFakeChatModel(messages=words).invoke("?", config)
        return {"messages": [reply], "log": ["model"]}

    def nothing(state: State) -> None:
        return None

    builder = cls(State)
    builder.add_node("first", first)
    builder.add_node("model", model, metadata={"kind": "llm"})
    builder.add_node("nothing", nothing)
    builder.add_node("lambda", RunnableLambda(lambda state: {"n": state["n"] + 1}))
    builder.add_edge(START, "first")
    builder.add_edge("first", "model")
    builder.add_edge("model", "nothing")
    builder.add_edge("nothing", "lambda")
    builder.add_edge("lambda", END)
    return builder


def asynchronous(cls: Any) -> Builder:
    """Async nodes and an async conditional edge."""

    async def first(state: State, writer: StreamWriter) -> dict[str, Any]:
        writer("from an async node")
        await asyncio.sleep(0)
        return {"log": ["first"], "n": 1}

    async def model(state: State) -> dict[str, Any]:
        words = iter([AIMessage("three short words", id="m1")])
        chat = GenericFakeChatModel(messages=words)
        chunks = [chunk async for chunk in chat.astream("?")]
        return {"log": ["".join(str(chunk.content) for chunk in chunks)]}

    async def way(state: State) -> str:
        return "model" if state["n"] == 1 else END

    builder = cls(State)
    builder.add_node("first", first)
    builder.add_node("model", model)
    builder.add_edge(START, "first")
    builder.add_conditional_edges("first", way, ["model", END])
    return builder


def commands(cls: Any) -> Builder:
    """`Command(goto=, update=)`, once around a loop."""

    def choose(state: State) -> Command[Any]:
        n = state.get("n", 0)
        goto = "choose" if n < 2 else "end"
        return Command(goto=goto, update={"n": n + 1, "log": [f"choose {n}"]})

    def end(state: State) -> dict[str, Any]:
        return {"log": ["end"]}

    builder = cls(State)
    builder.add_node("choose", choose, destinations=("choose", "end"))
    builder.add_node("end", end)
    builder.add_edge(START, "choose")
    return builder


def sends(cls: Any) -> Builder:
    """A map-reduce with `Send`, from a conditional edge and from a command."""

    def plan(state: State) -> dict[str, Any]:
        return {"log": ["plan"]}

    def work(state: State) -> dict[str, Any]:
        return {"log": [f"work {state['n']}"]}

    def reduce(state: State) -> dict[str, Any]:
        return {"n": len(state["log"])}

    builder = cls(State)
    builder.add_node("plan", plan)
    builder.add_node("work", work)
    builder.add_node("reduce", reduce, defer=True)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges(
        "plan", lambda state: [Send("work", {"n": n}) for n in range(4)], ["work"]
    )
    builder.add_edge("work", "reduce")
    return builder


def joined(cls: Any) -> Builder:
    """Parallel branches of different length, a waiting edge and a deferred node."""
    builder = cls(State)
    for name in ("a", "b", "b2", "join", "late"):
        builder.add_node(
            name, lambda state, name=name: {"log": [name]}, defer=name == "late"
        )
    builder.add_edge(START, "a")
    builder.add_edge(START, "b")
    builder.add_edge("b", "b2")
    builder.add_edge(["a", "b2"], "join")
    builder.add_edge("a", "late")
    return builder


def nested(cls: Any) -> Builder:
    """Two levels of subgraphs, one as a node and one called by a function."""
    innermost = commands(cls).compile()

    def call(state: State) -> dict[str, Any]:
        out = innermost.invoke({"n": 1})
        return {"log": out["log"]}

    middle = cls(State)
    middle.add_node("call", call)
    middle.add_node("deep", commands(cls).compile())
    middle.add_edge(START, "call")
    middle.add_edge("call", "deep")
    builder = cls(State)
    builder.add_node("middle", middle.compile())
    builder.add_edge(START, "middle")
    return builder


def to_parent(cls: Any) -> Builder:
    """A subgraph's command that goes on in the graph around it."""

    def leave(state: State) -> Command[Any]:
        return Command(graph=Command.PARENT, goto="after", update={"log": ["left"]})

    inner = cls(State)
    inner.add_node("leave", leave)
    inner.add_edge(START, "leave")
    builder = cls(State)
    builder.add_node("inner", inner.compile())
    builder.add_node("after", lambda state: {"log": ["after"]})
    builder.add_edge(START, "inner")
    return builder


GRAPHS: tuple[Make, ...] = (sequence, commands, sends, joined, nested, to_parent)

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HASH = re.compile(r"\b[0-9a-f]{32}\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?")
_VERSION = re.compile(r"\b0{20,}\d+\.0\.\d+\b")


def normal(thing: Any) -> str:
    """Return `thing` as text, without what differs from run to run."""
    text = _HASH.sub("<id>", _UUID.sub("<id>", repr(thing)))
    return _VERSION.sub("<version>", _TIME.sub("<time>", text))


def chunks(graph: Any, how: str, inputs: Any, **options: Any) -> list[str]:
    """Return what a stream yields, and the error that it ends with."""
    seen: list[Any] = []

    async def astream() -> None:
        async for chunk in graph.astream(inputs, **options):
            seen.append(chunk)

    try:
        if how == "stream":
            seen.extend(graph.stream(inputs, **options))
        else:
            asyncio.run(astream())
    except Exception as error:  # noqa: BLE001 - compared by the test
        seen.append(error)
    return [normal(chunk) for chunk in seen]


def same(
    make: Make, how: str, inputs: Any = None, saver: bool = True, **options: Any
) -> list[str]:
    """Assert that a stream is the same with and without a deadline, and return it.

    The order of the chunks of a superstep is left open where several nodes run in it.
    """
    results: list[list[str]] = []
    config = {"configurable": {"thread_id": "1"}} if saver else {}
    for cls, deadline in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        compiled = make(cls).compile(
            checkpointer=InMemorySaver() if saver else None, **deadline
        )
        results.append(
            chunks(compiled, how, inputs or {"log": ["in"]}, config=config, **options)
        )
    plain, ours = results
    if make in (sends, joined):
        plain, ours = sorted(plain), sorted(ours)
    assert ours == plain
    assert plain
    return plain


# Streams.


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize(
    ("make", "mode"),
    # Only one of the graphs has something to show of these two.
    [(sequence, "messages"), (sequence, "custom")]
    + [
        (m, mode)
        for m in GRAPHS
        for mode in MODES
        if mode not in ("messages", "custom")
    ],
)
def test_c11_every_stream_mode_is_the_same(make: Make, mode: str, how: str) -> None:
    """Chunk by chunk, but for ids and times."""
    same(make, how, stream_mode=mode)


@pytest.mark.parametrize("mode", [*MODES, list(MODES)], ids=[*MODES, "all"])
def test_c11_async_nodes_stream_the_same(mode: Any) -> None:
    """Tokens and custom chunks of async nodes come as they did."""
    same(asynchronous, "astream", stream_mode=mode)


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("make", GRAPHS)
def test_c11_all_modes_together_with_subgraphs_are_the_same(
    make: Make, how: str
) -> None:
    """`subgraphs=True` adds the same namespaces."""
    same(make, how, stream_mode=list(MODES), subgraphs=True)


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("make", GRAPHS)
def test_c11_version_2_is_the_same(make: Make, how: str) -> None:
    """Typed stream parts come as they did."""
    same(make, how, stream_mode=["updates", "values", "custom"], version="v2")


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("make", GRAPHS)
def test_c11_a_graph_without_a_checkpointer_is_the_same(make: Make, how: str) -> None:
    """Nothing depends on there being one."""
    same(make, how, saver=False, stream_mode=["updates", "values", "debug"])


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("how", ["stream", "astream"])
def test_c11_every_durability_is_the_same(durability: str, how: str) -> None:
    """Whenever checkpoints are written, they say the same."""
    modes = ["checkpoints", "values"]
    same(sequence, how, stream_mode=modes, durability=durability)


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_c11_a_nodes_error_is_the_same(how: str) -> None:
    """An error of the node's own goes up as it is, behind the same chunks."""

    def failing(cls: Any) -> Builder:
        def boom(state: State) -> None:
            msg = "boom"
            raise KeyError(msg)

        builder = cls(State)
        builder.add_node("ok", lambda state: {"log": ["ok"]})
        builder.add_node("boom", boom)
        builder.add_edge(START, "ok")
        builder.add_edge("ok", "boom")
        return builder

    plain = same(failing, how, stream_mode=["updates", "values", "tasks"])
    assert plain[-1] == "KeyError('boom')"


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_c11_the_recursion_limit_is_the_same(how: str) -> None:
    """LangGraph's own limits still end a run, with their own error."""

    def endless(cls: Any) -> Builder:
        builder = cls(State)
        builder.add_node("on", lambda state: Command(goto="on", update={"log": ["x"]}))
        builder.add_edge(START, "on")
        return builder

    results = []
    for cls, options in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        compiled = endless(cls).compile(**options)
        results.append(
            chunks(
                compiled,
                how,
                {"log": []},
                config={"recursion_limit": 5},
                stream_mode="values",
            )
        )
    assert results[0] == results[1]
    assert "GraphRecursionError" in results[0][-1]


def test_c11_event_streams_are_the_same() -> None:
    """`astream_events` tells of the same events with the same names, in order."""
    results: list[list[tuple[str, str, list[str]]]] = []

    async def events(graph: Any) -> list[tuple[str, str, list[str]]]:
        config = {"configurable": {"thread_id": "1"}}
        return [
            (event["event"], event["name"], event["tags"])
            async for event in graph.astream_events({}, config, version="v2")
        ]

    for cls, options in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        graph = asynchronous(cls).compile(checkpointer=InMemorySaver(), **options)
        results.append(asyncio.run(events(graph)))
    assert results[0] == results[1]
    assert ("on_chat_model_stream", "GenericFakeChatModel") in [
        event[:2] for event in results[1]
    ]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_c11_callbacks_see_the_same_where_the_start_branches(how: str) -> None:
    """START has no body: nothing is told of one, and its edge bears the same tag."""

    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            self.told.append((kwargs.get("name"), kwargs.get("tags")))

    def work(state: Any) -> Any:
        return {"log": ["work"]}

    def route(state: Any) -> str:
        return "work"

    seen: list[Any] = []
    for factory in (LangGraphStateGraph, StateGraph):
        builder: Any = factory(State).add_node(work)
        graph = builder.add_conditional_edges(START, route, ["work"]).compile()
        for options in ({}, {"deadline": 60}) if factory is StateGraph else ({},):
            handler = Seen()
            config: Any = {"callbacks": [handler]}
            if how == "invoke":
                graph.invoke({"log": []}, config, **options)
            else:
                asyncio.run(graph.ainvoke({"log": []}, config, **options))
            seen.append(handler.told)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 4


def test_c11_a_task_with_retries_is_one_run_to_callbacks() -> None:
    """A limit: LangGraph tells of each attempt."""

    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.told: list[str] = []

        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            self.told.append(str(kwargs.get("name")))

    def graph() -> Any:
        failures = [ConnectionError("gone")]

        @task(retry_policy=RetryPolicy(initial_interval=0.01))
        def fetch(page: int) -> int:
            if failures:
                raise failures.pop()
            return page

        @entrypoint()
        def work(page: int) -> int:
            return fetch(page).result()

        return work

    plain, ours = Seen(), Seen()
    assert graph().invoke(1, {"callbacks": [plain]}) == 1
    assert with_deadline(graph(), 60).invoke(1, {"callbacks": [ours]}) == 1
    assert plain.told.count("fetch") == 2
    assert ours.told.count("fetch") == 1


def test_c11_callbacks_see_the_same_tree() -> None:
    """A tracer's runs have the same names and parents, in the same order."""

    class Tree(BaseCallbackHandler):
        def __init__(self) -> None:
            self.names: dict[Any, str] = {}
            self.seen: list[tuple[str, str | None, str]] = []

        def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
            name = kwargs.get("name") or "?"
            self.names[kwargs["run_id"]] = name
            parent = self.names.get(kwargs.get("parent_run_id"))
            self.seen.append((name, parent, "chain"))

        def on_chat_model_start(
            self, serialized: Any, msgs: Any, **kwargs: Any
        ) -> None:
            parent = self.names.get(kwargs.get("parent_run_id"))
            self.seen.append((kwargs.get("name") or "model", parent, "model"))

    results = []
    for cls, options in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        for make in (sequence, nested):
            tree = Tree()
            graph = make(cls).compile(**options)
            graph.invoke({"n": 0}, {"callbacks": [tree], "run_name": "root"})
            results.append(tree.seen)
    assert results[:2] == results[2:]


# Interrupts.


def asking(cls: Any) -> Builder:
    """Two questions in one node, after a node that must not run again."""

    def before(state: State) -> dict[str, Any]:
        return {"log": ["before"]}

    def ask(state: State) -> dict[str, Any]:
        one = interrupt("first?")
        two = interrupt({"second": one})
        return {"log": [f"{one} {two}"]}

    builder = cls(State)
    builder.add_node("before", before)
    builder.add_node("ask", ask)
    builder.add_edge(START, "before")
    builder.add_edge("before", "ask")
    return builder


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("deadline", [None, HOUR])
def test_c11_interrupts_and_resumes_are_the_same(
    how: str, deadline: float | None
) -> None:
    """Questions, answers and what is streamed in between."""
    results = []
    for cls, options in (
        (LangGraphStateGraph, {}),
        (StateGraph, {"deadline": deadline}),
    ):
        graph = asking(cls).compile(checkpointer=InMemorySaver(), **options)
        config = {"configurable": {"thread_id": "1"}}
        seen: list[str] = []
        for inputs in ({"log": []}, Command(resume="A"), Command(resume="B")):
            modes = ["updates", "values", "tasks", "checkpoints"]
            seen += chunks(graph, how, inputs, config=config, stream_mode=modes)
            state = graph.get_state(config)
            seen.append(normal((state.values, state.next, state.interrupts)))
        results.append(seen)
    assert results[0] == results[1]
    assert "A B" in results[1][-1]


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_c11_static_interrupts_are_the_same(how: str) -> None:
    """`interrupt_before` and `interrupt_after`, when compiled and per call."""
    results = []
    for cls, options in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        saver = InMemorySaver()
        graph = sequence(cls).compile(saver, interrupt_before=["model"], **options)
        config = {"configurable": {"thread_id": "1"}}
        seen = chunks(graph, how, {"log": []}, config=config)
        seen += chunks(graph, how, None, config=config, interrupt_after=["nothing"])
        seen.append(normal(graph.get_state(config).next))
        seen += chunks(graph, how, None, config=config)
        results.append(seen)
    assert results[0] == results[1]


# State.


def test_c11_state_and_history_are_the_same() -> None:
    """`get_state`, `update_state` and `get_state_history`, record and all hidden."""
    results = []
    for cls, options in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        graph = sequence(cls).compile(InMemorySaver(), **options)
        config = {"configurable": {"thread_id": "1"}}
        graph.invoke({"log": ["in"]}, config)
        graph.update_state(config, {"log": ["edited"]}, as_node="first")
        seen = [normal(graph.get_state(config))]
        seen += chunks(graph, "stream", None, config=config)
        seen += [normal(state) for state in graph.get_state_history(config)]
        # A fork from the middle.
        middle = list(graph.get_state_history(config))[3].config
        seen += chunks(graph, "stream", None, config=middle)
        results.append(seen)
    assert results[0] == results[1]
    assert "deadline" not in "".join(results[1])


def test_c11_state_of_subgraphs_is_the_same() -> None:
    """`get_state(subgraphs=True)` sees the state of an interrupted subgraph."""
    results = []
    for cls, options in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        builder = cls(State)
        builder.add_node("inner", asking(cls).compile())
        builder.add_edge(START, "inner")
        graph = builder.compile(InMemorySaver(), **options)
        config = {"configurable": {"thread_id": "1"}}
        seen = chunks(graph, "stream", {"log": []}, config=config, subgraphs=True)
        seen.append(normal(graph.get_state(config, subgraphs=True)))
        seen += chunks(graph, "stream", Command(resume="A"), config=config)
        seen += chunks(graph, "stream", Command(resume="B"), config=config)
        results.append(seen)
    assert results[0] == results[1]


def test_c11_schemas_are_the_same() -> None:
    """The record's channel is in no schema, no output and no list of channels."""
    plain = sequence(LangGraphStateGraph).compile()
    ours = sequence(StateGraph).compile(deadline=HOUR)
    assert ours.get_input_jsonschema() == plain.get_input_jsonschema()
    assert ours.get_output_jsonschema() == plain.get_output_jsonschema()
    assert ours.stream_channels_list == plain.stream_channels_list
    assert ours.get_name() == plain.get_name()
    assert list(ours.nodes) == list(plain.nodes)


def test_c11_context_and_store_are_passed_on() -> None:
    """`context_schema`, `context=` and a store work as before, also in subgraphs."""

    class Context(TypedDict):
        user: str

    def work(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        assert runtime.store is not None
        runtime.store.put(("users",), runtime.context["user"], {"seen": True})
        return {"log": [runtime.context["user"]]}

    async def awork(state: State, runtime: Runtime[Context]) -> dict[str, Any]:
        assert runtime.store is not None
        await runtime.store.aput(("users",), "async", {"seen": True})
        found = await runtime.store.aget(("users",), "async")
        return {"log": [found.key if found else "?"]}

    for node, how in ((work, "invoke"), (awork, "ainvoke")):
        inner = StateGraph(State, context_schema=Context)
        inner.add_node("work", node)
        inner.add_edge(START, "work")
        builder = StateGraph(State, context_schema=Context)
        builder.add_node("work", node)
        builder.add_node("inner", inner.compile())
        builder.add_edge(START, "work")
        builder.add_edge("work", "inner")
        store = InMemoryStore()
        graph = builder.compile(store=store, deadline=HOUR)
        driven = drive(graph, {}, how, context={"user": "ann"})
        assert driven.error is None
        keys = [item.key for item in store.search(("users",))]
        assert keys == (["ann"] if how == "invoke" else ["async"])
        assert len(driven.values["log"]) == 2 + 1


# Caching.


def test_c11_a_cache_is_used() -> None:
    """A cached node is computed once, with the chunks that say so."""
    results = []
    for cls, options in ((LangGraphStateGraph, {}), (StateGraph, {"deadline": HOUR})):
        runs: list[int] = []

        def work(state: State, runs: list[int] = runs) -> dict[str, Any]:
            runs.append(1)
            return {"log": ["computed"]}

        builder = cls(State)
        builder.add_node("work", work, cache_policy=CachePolicy())
        builder.add_edge(START, "work")
        graph = builder.compile(cache=InMemoryCache(), **options)
        seen = [chunks(graph, "stream", {"n": 1}), chunks(graph, "astream", {"n": 1})]
        seen.append(chunks(graph, "stream", {"n": 2}))
        results.append((seen, len(runs)))
    assert results[0] == results[1]
    assert results[1][1] == 2


def test_c11_two_graphs_that_share_a_cache_keep_apart() -> None:
    """The key of a cached node comes from the user's function, not from our wrapper."""

    def spell(state: State) -> dict[str, Any]:
        return {"log": ["spelled"]}

    def count(state: State) -> dict[str, Any]:
        return {"log": ["counted"]}

    cache = InMemoryCache()
    graphs = []
    for node in (spell, count):
        builder = StateGraph(State)
        builder.add_node("work", node, cache_policy=CachePolicy())
        builder.add_edge(START, "work")
        graphs.append(builder.compile(cache=cache, deadline=HOUR))
    assert graphs[0].invoke({"n": 1})["log"] == ["spelled"]
    assert graphs[1].invoke({"n": 1})["log"] == ["counted"]
    assert graphs[0].invoke({"n": 1})["log"] == ["spelled"]


def test_c11_a_cache_is_shared_with_plain_graphs() -> None:
    """What a plain graph computed is found by ours, and the other way round."""

    def graph(cls: Any, cache: Any, runs: list[str], **options: Any) -> Any:
        def work(state: State) -> dict[str, Any]:
            runs.append(cls.__module__)
            return {"log": ["computed"]}

        builder = cls(State)
        builder.add_node("work", work, cache_policy=CachePolicy())
        builder.add_edge(START, "work")
        return builder.compile(cache=cache, **options)

    cache, runs = InMemoryCache(), []
    plain = graph(LangGraphStateGraph, cache, runs)
    ours = graph(StateGraph, cache, runs, deadline=HOUR)
    out = plain.invoke({"n": 1})
    assert ours.invoke({"n": 1}) == out
    out = ours.invoke({"n": 2})
    assert plain.invoke({"n": 2}) == out
    assert len(runs) == 2


# Objects.


def test_c11_the_type_stays() -> None:
    """`isinstance` holds for what is compiled and for what is wrapped."""
    ours = sequence(StateGraph).compile(deadline=HOUR)
    assert isinstance(ours, CompiledStateGraph)
    assert isinstance(StateGraph(State), LangGraphStateGraph)

    class Special(Pregel):  # type: ignore[type-arg]
        pass

    plain = sequence(LangGraphStateGraph).compile()
    assert isinstance(with_deadline(plain, 1), CompiledStateGraph)
    special = Special(**_attributes(plain))
    wrapped = with_deadline(special, 1)
    assert isinstance(wrapped, Special)
    assert not isinstance(wrapped, CompiledStateGraph)


def _attributes(graph: Any) -> dict[str, Any]:
    names = ("nodes", "channels", "stream_mode", "output_channels", "input_channels")
    return {name: getattr(graph, name) for name in names}


def test_c11_wrapping_leaves_the_original_alone() -> None:
    """`with_deadline` returns a copy: the original still runs as long as it likes."""
    builder = LangGraphStateGraph(State)
    builder.add_node("work", napper("ainvoke", 60, {"log": ["done"]}))
    builder.add_edge(START, "work")
    plain = builder.compile()
    before = dict(plain.__dict__), dict(plain.nodes), dict(plain.channels)
    drawn = plain.get_graph().draw_mermaid()
    bounded = with_deadline(plain, 5, fallback=lambda state: {"log": ["late"]})
    assert (dict(plain.__dict__), dict(plain.nodes), dict(plain.channels)) == before
    assert plain.get_graph().draw_mermaid() == drawn
    late = drive(bounded, {}, "ainvoke", virtual=True)
    assert late.values == {"log": ["late"], "messages": []}
    done = drive(plain, {}, "ainvoke", virtual=True)
    assert done.values == {"log": ["done"], "messages": []}
    assert done.elapsed == pytest.approx(60)


def test_c11_compiling_leaves_the_builder_alone() -> None:
    """One builder may be compiled twice, with different deadlines and fallbacks."""
    builder = StateGraph(State)
    builder.add_node("work", napper("ainvoke", 60, {"log": ["done"]}))
    builder.add_edge(START, "work")
    two = builder.compile(deadline=2, fallback=lambda state: {"log": ["two"]})
    four = builder.compile(deadline=4)
    free = builder.compile()
    assert list(builder.nodes) == ["work"]
    assert drive(two, {}, "ainvoke", virtual=True).values["log"] == ["two"]
    error = drive(four, {}, "ainvoke", virtual=True).error
    assert isinstance(error, DeadlineExceeded)
    assert error.budget == pytest.approx(4)
    assert drive(free, {}, "ainvoke", virtual=True).values["log"] == ["done"]


@pytest.mark.parametrize(
    "make",
    [
        lambda graph: graph.with_config(tags=["a"]),
        lambda graph: graph.with_config({"recursion_limit": 9}),
        lambda graph: graph.copy(),
        lambda graph: graph.copy({"name": "other"}),
        copy.copy,
        lambda graph: graph.with_config(tags=["a"]).copy().with_config(tags=["b"]),
    ],
    ids=[
        "tags",
        "config",
        "copy",
        "copy update",
        "copy.copy",
        "chain",
    ],
)
def test_c11_copies_keep_the_deadline_and_the_fallback(make: Any) -> None:
    """`with_config`, `copy` and the like lose nothing."""
    builder = StateGraph(State)
    builder.add_node("work", napper("ainvoke", 60))
    builder.add_edge(START, "work")
    policy = DeadlinePolicy(seconds=10, reserve=3)
    graph = builder.compile(deadline=policy, fallback=lambda state: {"log": ["late"]})
    copied = make(graph)
    assert type(copied) is type(graph)
    driven = drive(copied, {}, "ainvoke", virtual=True)
    assert driven.values["log"] == ["late"]
    assert driven.elapsed == pytest.approx(7)


def test_c11_a_graph_is_a_runnable_like_any_other() -> None:
    """Pipes, `bind`, `with_retry` and `with_fallbacks` still take a bounded graph."""
    graph = commands(StateGraph).compile(deadline=HOUR)
    piped = RunnableLambda(lambda n: {"n": n}) | graph | (lambda state: state["log"])
    assert piped.invoke(2) == ["choose 2", "end"]
    assert graph.bind(deadline=5).invoke({"n": 2})["log"] == ["choose 2", "end"]
    assert graph.with_retry().invoke({"n": 2})["log"] == ["choose 2", "end"]
    safe = graph.with_fallbacks([RunnableLambda(lambda state: "fell back")])
    assert safe.invoke({"n": 2})["log"] == ["choose 2", "end"]


def test_c11_a_nodes_parts_stay_visible() -> None:
    """Tools that inspect a compiled graph find the user's own objects."""

    def work(state: State) -> dict[str, Any]:
        return {}

    builder = StateGraph(State)
    builder.add_node("work", work, metadata={"owner": "me"})
    builder.add_edge(START, "work")
    graph = builder.compile(deadline=1)
    assert graph.nodes["work"].bound.func is work
    assert graph.nodes["work"].metadata == {"owner": "me"}
    assert graph.builder.nodes["work"].runnable.func is work


def test_c11_errors_can_be_pickled() -> None:
    """A worker process can hand our error over, with all its attributes."""
    error = DeadlineExceeded(cause="window", step="s", budget=1.0, needed=2.0)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.cause, again.step, again.needed) == ("window", "s", 2.0)


# Drawings.


@pytest.mark.parametrize("xray", [False, True])
@pytest.mark.parametrize("make", [*GRAPHS, asynchronous, asking])
def test_c11_drawings_are_the_same(make: Make, xray: bool) -> None:
    """A deadline alone changes nothing in a drawing."""
    plain = make(LangGraphStateGraph).compile().get_graph(xray=xray)
    ours = make(StateGraph).compile(deadline=HOUR).get_graph(xray=xray)
    wrapped = with_deadline(make(LangGraphStateGraph).compile(), HOUR)
    assert ours.draw_mermaid() == plain.draw_mermaid()
    assert wrapped.get_graph(xray=xray).draw_mermaid() == plain.draw_mermaid()
    drawn = asyncio.run(make(StateGraph).compile(deadline=1).aget_graph(xray=xray))
    assert drawn.draw_mermaid() == plain.draw_mermaid()


def edges(graph: Any) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.get_graph().edges}


def degrading(cls: Any) -> Builder:
    """A node `degrade` and its successor that nothing leads to but a cut."""
    builder = cls(State)
    for name in ("work", "degrade", "polish"):
        builder.add_node(name, lambda state, name=name: {"log": [name]})
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    builder.add_edge("degrade", "polish")
    builder.add_edge("polish", END)
    return builder


def test_c11_a_fallback_node_is_drawn_with_its_edges() -> None:
    """What only a cut can reach is in the drawing, with where it leads."""
    graph = degrading(StateGraph).compile(deadline=1, fallback="degrade")
    assert set(graph.get_graph().nodes) == {
        "__start__",
        "work",
        "degrade",
        "polish",
        "__end__",
    }
    assert edges(graph) >= {
        ("work", "__end__"),
        ("degrade", "polish"),
        ("polish", "__end__"),
    }
    assert any(target == "degrade" for _, target in edges(graph))
    drawn = graph.get_graph().draw_mermaid()
    assert "degrade --> polish" in drawn
    assert asyncio.run(graph.aget_graph()).draw_mermaid() == drawn


@pytest.mark.parametrize("wrap", [True, False], ids=["with_deadline", "compile"])
def test_c11_a_fallback_callable_is_drawn_under_its_name(wrap: bool) -> None:
    """A function becomes a node called by its `__name__`, which ends the graph."""

    def apologise(state: State) -> dict[str, Any]:
        return {"log": ["sorry"]}

    if wrap:
        plain = commands(LangGraphStateGraph).compile()
        graph = with_deadline(plain, 1, fallback=apologise)
    else:
        graph = commands(StateGraph).compile(deadline=1, fallback=apologise)
    assert "apologise" in graph.get_graph().nodes
    assert ("apologise", "__end__") in edges(graph)
    assert any(target == "apologise" for _, target in edges(graph))
    assert "apologise" in graph.get_graph().draw_mermaid()


@pytest.mark.parametrize(
    "fallback",
    [lambda state: {}, RunnableLambda(lambda state: {})],
    ids=["lambda", "Runnable"],
)
def test_c11_a_fallback_without_a_name_is_drawn_as_fallback(fallback: Any) -> None:
    """A lambda or a Runnable becomes a node called `fallback`."""
    graph = commands(StateGraph).compile(deadline=1, fallback=fallback)
    assert "fallback" in graph.get_graph().nodes
    assert ("fallback", "__end__") in edges(graph)


def test_c11_a_fallback_that_is_an_ordinary_node_is_drawn_once() -> None:
    """A node that the graph also reaches by itself keeps its edges as they are."""
    graph = commands(StateGraph).compile(deadline=1, fallback="end")
    plain = commands(LangGraphStateGraph).compile()
    assert edges(graph) >= edges(plain)
    nodes = graph.get_graph().nodes
    assert set(nodes) == set(plain.get_graph().nodes)
    listed = [(e.source, e.target) for e in graph.get_graph().edges]
    assert len(listed) == len(set(listed))


def test_c11_a_fallback_command_and_conditional_edge_are_drawn() -> None:
    """The fallback's own conditional edges appear as such."""
    builder = degrading(StateGraph)
    builder.add_node("apologise", lambda state: {})
    builder.add_conditional_edges(
        "degrade", lambda state: "apologise", ["apologise", END]
    )
    graph = builder.compile(deadline=1, fallback="degrade")
    assert edges(graph) >= {("degrade", "apologise"), ("degrade", "__end__")}
    conditional = {
        (e.source, e.target) for e in graph.get_graph().edges if e.conditional
    }
    assert {("degrade", "apologise"), ("degrade", "__end__")} <= conditional
