"""C5: what was cut and runs on can no longer write anything, and is on the report."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, State, Trial
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph._internal._constants import CONFIG_KEY_SEND
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config, get_store, get_stream_writer
from langgraph.graph import START
from langgraph.graph import StateGraph as PlainStateGraph
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy

from langgraph_deadline import DeadlinePolicy, StateGraph, StepBudget

GRACE = 0.25
THREAD: Any = {"configurable": {"thread_id": "1"}}


class Late:
    """A node that swallows its cut and acts afterwards, in every way to drive it."""

    def __init__(self, trial: Trial, act: Any, before: Any = None) -> None:
        self.trial = trial
        self.act = act
        self.before = before
        self.errors: list[BaseException] = []
        self.finished = threading.Event()

    def node(self) -> Any:
        """Return the node; sync ones wake when the trial releases them."""

        def late(state: State, runtime: Runtime) -> State:
            self.trial.started.append("late")
            self._try(self.before, runtime)
            self.trial.released.wait(3)
            time.sleep(0.02)
            self._try(self.act, runtime)
            self.finished.set()
            return {"log": ["came late"]}

        async def alate(state: State, runtime: Runtime) -> State:
            self.trial.started.append("late")
            self._try(self.before, runtime)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(20)
            self._try(self.act, runtime)
            self.finished.set()
            return {"log": ["came late"]}

        return late if self.trial.how in SYNC else alate

    def _try(self, act: Any, runtime: Any) -> None:
        if act is not None:
            try:
                act(runtime)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)


def graph_with(trial: Trial, node: Any, mode: str = "fallback", **kwargs: Any) -> Any:
    """Return a graph with a good node and `node` beside it, and a fallback."""
    builder = StateGraph(State)
    builder.add_node("good", trial.quick("good"))
    builder.add_node("late", node, cache_policy=kwargs.pop("cache_policy", None))
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge(START, "good")
    builder.add_edge(START, "late")
    return trial.compile(builder, mode, **kwargs)


def run(trial: Trial, graph: Any, late: Late, **kwargs: Any) -> Driven:
    """Drive the graph and wait for the straggler's end."""
    driven = trial.drive(graph, **kwargs)
    assert late.finished.wait(2)
    time.sleep(0.05 if trial.real else 0.0)
    return driven


modes = pytest.mark.parametrize("mode", ["fallback", "raise", "return"])


@pytest.mark.parametrize("how", ALL)
@modes
@pytest.mark.parametrize("durability", ["sync", "exit"])
def test_c5_a_straggler_cannot_write_state(
    how: How, mode: str, durability: str
) -> None:
    """What a straggler returns or sends later is in no state and no checkpoint."""
    trial = Trial(how)
    saver = InMemorySaver()

    def act(_: Any) -> None:
        send = get_config()["configurable"][CONFIG_KEY_SEND]
        send([("log", ["sent late"])])

    late = Late(trial, act)
    graph = graph_with(trial, late.node(), mode, checkpointer=saver)
    driven = run(trial, graph, late, config=THREAD, durability=durability)
    answers = {"fallback": ["good", "degrade"], "return": ["good"]}
    if mode in answers:
        assert driven.values["log"] == answers[mode]
        assert graph.get_state(THREAD).values["log"] == answers[mode]
    stored = str([list(saver.list(THREAD)), saver.writes])
    assert "sent late" not in stored
    assert "came late" not in stored


@pytest.mark.parametrize("how", ALL)
def test_c5_a_straggler_of_the_first_run_does_not_disturb_the_second(how: How) -> None:
    """A straggler that wakes during the thread's next run changes nothing in it."""
    trial = Trial(how)
    late = Late(trial, lambda _: None)
    saver = InMemorySaver()
    naps = iter([True, False])

    def choose(state: State) -> str:
        return "late" if next(naps) else "slow"

    def slow(state: State) -> State:
        trial.released.set()
        assert late.finished.wait(2)
        time.sleep(0.05)
        return {"log": ["slow"]}

    async def aslow(state: State) -> State:
        await asyncio.sleep(30)
        assert late.finished.is_set()
        return {"log": ["slow"]}

    builder = StateGraph(State)
    builder.add_node("late", late.node())
    builder.add_node("slow", slow if how in SYNC else aslow)
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_conditional_edges(START, trial.as_how(choose), ["late", "slow"])
    graph = builder.compile(saver, deadline=trial.reserved, fallback="degrade")

    class Twice:
        """Two runs of one thread, the second with more time."""

        def invoke(self, inputs: Any, config: Any) -> Any:
            graph.invoke(inputs, config)
            return graph.invoke(inputs, config, deadline=100)

        def stream(self, inputs: Any, config: Any, stream_mode: Any) -> Any:
            yield from graph.stream(inputs, config, stream_mode=stream_mode)
            yield from graph.stream(
                inputs, config, stream_mode=stream_mode, deadline=100
            )

        async def ainvoke(self, inputs: Any, config: Any) -> Any:
            await graph.ainvoke(inputs, config)
            return await graph.ainvoke(inputs, config, deadline=100)

        async def astream(self, inputs: Any, config: Any, stream_mode: Any) -> Any:
            async for item in graph.astream(inputs, config, stream_mode=stream_mode):
                yield item
            async for item in graph.astream(
                inputs, config, stream_mode=stream_mode, deadline=100
            ):
                yield item

    driven = trial.drive(Twice(), config=THREAD)
    assert driven.error is None
    assert driven.values["log"] == ["degrade", "slow"]
    assert graph.get_state(THREAD).values["log"] == ["degrade", "slow"]


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
def test_c5_a_straggler_in_a_subgraph_cannot_write_checkpoints(
    how: How, factory: Any
) -> None:
    """A subgraph whose straggler wakes later adds nothing to the saver."""
    trial = Trial(how)
    saver = InMemorySaver()
    late = Late(trial, None)
    inner = factory(State)
    inner.add_node("late", late.node())
    inner.add_node("inner_after", trial.quick("inner_after"))
    inner.add_edge(START, "late")
    inner.add_edge("late", "inner_after")
    graph = graph_with(trial, inner.compile(), checkpointer=saver)
    driven = run(trial, graph, late, config=THREAD)
    assert driven.error is None
    assert driven.values["log"] == ["good", "degrade"]
    assert "inner_after" not in trial.started
    stored = str([list(saver.list(None)), saver.writes])
    assert "came late" not in stored


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("factory", [StateGraph, PlainStateGraph])
@pytest.mark.parametrize("bounded", [True, False])
def test_c5_a_graph_called_by_a_straggler_cannot_write_checkpoints(
    how: How, factory: Any, bounded: bool
) -> None:
    """A subgraph that a node calls by itself is fenced with the node."""
    trial = Trial(how)
    saver = InMemorySaver()
    late = Late(trial, None)
    inner = factory(State)
    inner.add_node("late", late.node())
    inner.add_node("inner_after", trial.quick("inner_after"))
    inner.add_edge(START, "late")
    inner.add_edge("late", "inner_after")
    kwargs = {"deadline": 3600} if bounded and factory is StateGraph else {}
    subgraph = inner.compile(**kwargs)

    def call(state: State) -> State:
        return subgraph.invoke({"log": []})  # type: ignore[no-any-return]

    async def acall(state: State) -> State:
        return await subgraph.ainvoke({"log": []})  # type: ignore[no-any-return]

    node = call if how in SYNC else acall
    graph = graph_with(trial, node, checkpointer=saver)
    driven = run(trial, graph, late, config=THREAD)
    assert driven.error is None
    assert driven.values["log"] == ["good", "degrade"]
    assert "inner_after" not in trial.started
    stored = str([list(saver.list(None)), saver.writes])
    assert "came late" not in stored


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("writer", ["get_stream_writer", "runtime", "kept"])
def test_c5_a_straggler_cannot_write_to_custom_streams(how: How, writer: str) -> None:
    """A stream writer that a straggler got or keeps is deaf after the cut."""
    trial = Trial(how)
    kept: list[Any] = []

    def before(runtime: Any) -> None:
        kept.append(get_stream_writer())
        kept[0]("in time")

    def act(runtime: Any) -> None:
        if writer == "runtime":
            runtime.stream_writer("late")
        elif writer == "kept":
            kept[0]("late")
        else:
            get_stream_writer()("late")

    late = Late(trial, act, before)
    answer = trial.quick("degrade")

    def degrade(state: State) -> Any:
        trial.released.set()
        assert late.finished.wait(2)
        time.sleep(0.02)
        get_stream_writer()("degrade")
        return {"log": ["degrade"]}

    async def adegrade(state: State) -> Any:
        await asyncio.sleep(30)
        assert late.finished.is_set()
        get_stream_writer()("degrade")
        return await answer(state)

    builder = StateGraph(State)
    builder.add_node("late", late.node())
    builder.add_edge(START, "late")
    budget = 3.0 if how in SYNC else 100.0
    policy = DeadlinePolicy(seconds=budget, reserve=0.9)
    fallback = degrade if how in SYNC else adegrade
    graph = builder.compile(deadline=policy, fallback=fallback)
    items = listen(graph, how, "custom")
    assert items == ["in time", "degrade"]


def listen(graph: Any, how: How, mode: Any) -> list[Any]:
    """Return what a stream of one mode yields."""
    from langgraph_deadline.testing import run_virtual

    if how in SYNC:
        return list(graph.stream({"log": []}, stream_mode=mode))

    async def main() -> list[Any]:
        return [i async for i in graph.astream({"log": []}, stream_mode=mode)]

    return run_virtual(main())


class Typist(BaseChatModel):
    """A model that types on without a callback to stop it."""

    gap: float = 0.05
    letters: int = 20
    typed: list[str] = []  # noqa: RUF012 - shared with the test on purpose

    @property
    def _llm_type(self) -> str:
        return "typist"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("done"))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for _ in range(self.letters):
            time.sleep(self.gap)
            self.typed.append("x")
            yield ChatGenerationChunk(message=AIMessageChunk("x"))


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["stream", "astream"])
def test_c5_a_straggler_cannot_write_to_message_streams(how: How) -> None:
    """Tokens of a model in a node that was cut do not reach the caller any more."""
    model = Typist(typed=[])
    typed_at_cut: list[int] = []
    started: list[str] = []

    def late(state: State) -> State:
        started.append("late")
        for _ in model.stream("type"):
            pass
        return {"log": ["late"]}

    def degrade(state: State) -> State:
        typed_at_cut.append(len(model.typed))
        time.sleep(0.3)
        return {"log": ["degrade"]}

    builder = StateGraph(State)
    builder.add_node("late", late)
    builder.add_edge(START, "late")
    policy = DeadlinePolicy(seconds=3.0, reserve=2.7)
    graph = builder.compile(deadline=policy, fallback=degrade)
    if how in SYNC:
        items = list(graph.stream({"log": []}, stream_mode="messages"))
    else:

        async def main() -> list[Any]:
            stream = graph.astream({"log": []}, stream_mode="messages")
            return [item async for item in stream]

        items = asyncio.run(main())
    texts = [m.content for m, _ in items if m.content]
    assert texts
    assert len(texts) <= typed_at_cut[0] + 1


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("mode", ["updates", "values", "debug", "tasks"])
def test_c5_a_straggler_is_not_seen_in_other_streams(how: How, mode: Any) -> None:
    """What a straggler returns later is in no stream either."""
    trial = Trial(how)
    late = Late(trial, None)

    def degrade(state: State) -> State:
        trial.released.set()
        assert late.finished.wait(2)
        time.sleep(0.05)
        return {"log": ["degrade"]}

    async def adegrade(state: State) -> State:
        await asyncio.sleep(30)
        assert late.finished.is_set()
        return {"log": ["degrade"]}

    builder = StateGraph(State)
    builder.add_node("late", late.node())
    builder.add_edge(START, "late")
    policy = DeadlinePolicy(seconds=3.0 if how in SYNC else 100.0, reserve=0.9)
    fallback = degrade if how in SYNC else adegrade
    graph = builder.compile(deadline=policy, fallback=fallback)
    items = listen(graph, how, mode)
    assert "came late" not in str(items)
    assert "['degrade']" in str(items)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("op", ["put", "delete", "batch", "get_store", "kept"])
def test_c5_a_straggler_cannot_write_to_the_store(how: How, op: str) -> None:
    """A store is the straggler's to keep, but not to write to."""
    from langgraph.store.base import PutOp

    trial = Trial(how)
    store = InMemoryStore()
    store.put(("a",), "there", {"x": 1})
    kept: list[Any] = []

    def before(runtime: Any) -> None:
        kept.append(runtime.store)
        runtime.store.put(("a",), "in time", {"x": 1})

    def act(runtime: Any) -> None:
        if op == "put":
            runtime.store.put(("a",), "late", {"x": 1})
        elif op == "delete":
            runtime.store.delete(("a",), "there")
        elif op == "batch":
            runtime.store.batch([PutOp(("a",), "late", {"x": 1})])
        elif op == "get_store":
            get_store().put(("a",), "late", {"x": 1})
        else:
            kept[0].put(("a",), "late", {"x": 1})

    late = Late(trial, act, before)
    run(trial, graph_with(trial, late.node(), store=store), late)
    assert {i.key for i in store.search(("a",))} == {"there", "in time"}
    assert len(late.errors) == 1


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("op", ["aput", "adelete", "abatch"])
def test_c5_an_async_straggler_cannot_write_to_the_store(how: How, op: str) -> None:
    """The store's async methods are fenced like its sync ones."""
    from langgraph.store.base import PutOp

    trial = Trial(how)
    store = InMemoryStore()
    store.put(("a",), "there", {"x": 1})
    errors: list[Exception] = []
    ended: list[str] = []

    async def late(state: State, runtime: Runtime) -> State:
        assert runtime.store is not None
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(20)
        try:
            if op == "aput":
                await runtime.store.aput(("a",), "late", {"x": 1})
            elif op == "adelete":
                await runtime.store.adelete(("a",), "there")
            else:
                await runtime.store.abatch([PutOp(("a",), "late", {"x": 1})])
        except Exception as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)
        ended.append("late")
        return {"log": ["late"]}

    trial.drive(graph_with(trial, late, store=store))
    assert ended == ["late"]
    assert len(errors) == 1
    assert {i.key for i in store.search(("a",))} == {"there"}


@pytest.mark.parametrize("how", ALL)
def test_c5_the_fallback_may_still_write_to_the_store(how: How) -> None:
    """The fence is around what was cut, not around the run."""
    trial = Trial(how)
    store = InMemoryStore()

    def degrade(state: State, runtime: Runtime) -> State:
        assert runtime.store is not None
        runtime.store.put(("a",), "fallback", {"x": 1})
        return {"log": ["degrade"]}

    builder = StateGraph(State)
    builder.add_node("bad", trial.hang("bad"))
    builder.add_edge(START, "bad")
    graph = builder.compile(
        store=store, deadline=trial.reserved, fallback=trial.as_how(degrade)
    )
    driven = trial.drive(graph)
    assert driven.error is None
    assert [i.key for i in store.search(("a",))] == ["fallback"]


# The cache.


@pytest.mark.parametrize("how", ALL)
@modes
def test_c5_a_cached_node_that_was_cut_is_computed_again(how: How, mode: str) -> None:
    """Neither the cut nor the late result of a node is ever served from the cache."""
    trial = Trial(how)
    cache = InMemoryCache()
    late = Late(trial, None)
    graph = graph_with(
        trial, late.node(), mode, cache=cache, cache_policy=CachePolicy()
    )
    run(trial, graph, late)
    assert trial.started.count("late") == 1
    # The straggler has ended long ago; next time, the node is quick (released).
    second = Trial(how, started=trial.started, released=trial.released)
    quick = Late(second, None)
    again = graph_with(
        second, quick.node(), mode, cache=cache, cache_policy=CachePolicy()
    )
    driven = second.drive(again, deadline=60 if second.real else 5000)
    assert trial.started.count("late") == 2
    assert driven.error is None
    assert driven.values["log"] == ["good", "came late"]


@pytest.mark.parametrize("how", ALL)
def test_c5_a_cached_node_that_was_kept_within_the_grace_is_computed_again(
    how: How,
) -> None:
    """What a cut node hands over in its grace is in the state, not in the cache."""
    trial = Trial(how)
    cache = InMemoryCache()

    inner = StateGraph(State)
    inner.add_node("part", trial.quick("part"))
    inner.add_node("bad", trial.hang("bad"))
    inner.add_edge(START, "part")
    inner.add_edge("part", "bad")
    graph = graph_with(trial, inner.compile(), cache=cache, cache_policy=CachePolicy())
    for turn in (1, 2):
        driven = trial.drive(graph)
        trial.released.clear()
        assert "degrade" in driven.values["log"]
        assert trial.started.count("part") == turn


@pytest.mark.parametrize("how", ALL)
def test_c5_a_nodes_otherwise_is_not_cached_as_its_result(how: How) -> None:
    """A substitute is for this run: the next one computes the node again."""
    trial = Trial(how)
    cache = InMemoryCache()
    late = Late(trial, None)
    builder = StateGraph(State)
    builder.add_node("late", late.node(), cache_policy=CachePolicy())
    builder.add_edge(START, "late")
    policy = DeadlinePolicy(
        seconds=60 if trial.real else 5000,
        steps={
            "late": StepBudget(seconds=0.2, otherwise={"log": ["substitute"]}),
        },
    )
    graph = builder.compile(cache=cache, deadline=policy)
    driven = run(trial, graph, late)
    assert driven.values["log"] == ["substitute"]
    trial.drive(graph)
    assert trial.started.count("late") == 2


@pytest.mark.parametrize("how", ALL)
def test_c5_a_finished_sibling_of_a_cut_node_is_cached(how: How) -> None:
    """The fence is around what was cut; what finished beside it may be cached."""
    trial = Trial(how)
    cache = InMemoryCache()
    builder = StateGraph(State)
    builder.add_node("good", trial.quick("good"), cache_policy=CachePolicy())
    builder.add_node("bad", trial.hang("bad"))
    builder.add_node("degrade", trial.quick("degrade"))
    builder.add_edge(START, "good")
    builder.add_edge(START, "bad")
    graph = builder.compile(cache=cache, deadline=trial.reserved, fallback="degrade")
    for _ in range(2):
        driven = trial.drive(graph)
        trial.released.clear()
        assert driven.values["log"] == ["good", "degrade"]
    assert trial.started.count("good") == 1
    assert trial.started.count("bad") == 2


# The report.


@pytest.mark.parametrize("how", ALL)
@modes
def test_c5_a_straggler_is_on_the_report_until_it_ends(how: How, mode: str) -> None:
    """Its name is there at once; its overrun is final when it has ended."""
    trial = Trial(how)
    late = Late(trial, None)
    graph = graph_with(trial, late.node(), mode)
    seen: list[Any] = []

    class Looking:
        """Looks at the straggler before it is released."""

        def invoke(self, *args: Any, **kwargs: Any) -> Any:
            with collect() as runs:
                try:
                    return graph.invoke(*args, **kwargs)
                finally:
                    seen.append(runs[0].stragglers[0].model_dump())

        def stream(self, *args: Any, **kwargs: Any) -> Any:
            with collect() as runs:
                yield from graph.stream(*args, **kwargs)
                seen.append(runs[0].stragglers[0].model_dump())

        async def ainvoke(self, *args: Any, **kwargs: Any) -> Any:
            with collect() as runs:
                try:
                    return await graph.ainvoke(*args, **kwargs)
                finally:
                    seen.append(runs[0].stragglers[0].model_dump())

        async def astream(self, *args: Any, **kwargs: Any) -> Any:
            with collect() as runs:
                async for item in graph.astream(*args, **kwargs):
                    yield item
                seen.append(runs[0].stragglers[0].model_dump())

    from langgraph_deadline import collect_runs as collect

    looking = Looking() if mode != "raise" else graph
    driven = run(trial, looking, late)
    (straggler,) = driven.report.stragglers
    assert straggler.name == "late"
    assert not straggler.running
    assert not straggler.blocked_loop
    if trial.real:
        assert 0.0 < straggler.overrun < 2.0
    else:
        assert straggler.overrun == pytest.approx(20.0)
    for early in seen:
        assert early["name"] == "late"
        assert early["running"]
        assert early["overrun"] < straggler.overrun
    final = straggler.overrun
    time.sleep(0.05)
    assert straggler.overrun == final


@pytest.mark.realtime
@pytest.mark.parametrize("how", ASYNC)
def test_c5_a_sync_straggler_of_an_async_graph_is_on_the_report(how: How) -> None:
    """A thread that was given up by an async run is a straggler, once."""
    trial = Trial(how, realtime=True)
    woke = threading.Event()

    def late(state: State) -> State:
        trial.released.wait(3)
        woke.set()
        return {"log": ["late"]}

    builder = StateGraph(State)
    builder.add_node("late", late)
    builder.add_edge(START, "late")
    graph = builder.compile(deadline=trial.budget)
    driven = trial.drive(graph)
    assert woke.wait(2)
    time.sleep(0.05)
    assert [s.name for s in driven.report.stragglers] == ["late"]
    assert not driven.report.stragglers[0].running
    assert 0.0 < driven.report.stragglers[0].overrun < 2.0


@pytest.mark.parametrize("how", ALL)
def test_c5_a_straggler_in_a_subgraph_is_on_the_runs_report(how: How) -> None:
    """Where it stood in a nested graph makes no difference to the report."""
    trial = Trial(how)
    late = Late(trial, None)
    inner = PlainStateGraph(State)
    inner.add_node("deep", late.node())
    inner.add_edge(START, "deep")
    graph = graph_with(trial, inner.compile())
    driven = run(trial, graph, late)
    assert driven.values["log"] == ["good", "degrade"]
    names = [s.name for s in driven.report.stragglers]
    assert "deep" in names
    assert not any(s.running for s in driven.report.stragglers)


@pytest.mark.parametrize("how", ALL)
def test_c5_steps_are_on_the_report_with_times_and_causes(how: How) -> None:
    """What was cut says why; what finished has no cause; times are in order."""
    trial = Trial(how)
    driven = trial.drive(graph_with(trial, trial.hang("late")))
    by_name = {step.name: step for step in driven.report.steps}
    assert set(by_name) == {"good", "late", "degrade"}
    assert by_name["late"].cause == "deadline"
    assert by_name["good"].cause is None
    assert by_name["degrade"].cause is None
    assert by_name["degrade"].kind == "fallback"
    for step in driven.report.steps:
        assert 0 <= step.start <= step.end <= driven.report.elapsed
    assert by_name["degrade"].start >= by_name["late"].end
    assert driven.report.budget == pytest.approx(trial.end)
    assert driven.report.reserve == pytest.approx(trial.end - trial.work)
