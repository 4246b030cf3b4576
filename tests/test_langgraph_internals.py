"""LangGraph's private parts, one by one: a failure here says what has moved.

Everything that `_langgraph` and the modules around it rely on without a promise of
LangGraph's is looked at directly, on plain LangGraph graphs.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import operator
from collections import deque
from dataclasses import fields
from types import FunctionType
from typing import Annotated, Any, ClassVar, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.config import run_in_executor
from langgraph._internal import _constants as constants
from langgraph._internal._runnable import (
    RunnableCallable,
    RunnableSeq,
    _set_config_context,
    coerce_to_runnable,
    is_async_callable,
    set_config_context,
)
from langgraph.cache.memory import InMemoryCache
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.channels import (
    EphemeralValue,
    LastValueAfterFinish,
    NamedBarrierValue,
    NamedBarrierValueAfterFinish,
    Topic,
)
from langgraph.channels.base import BaseChannel
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph._branch import BranchSpec
from langgraph.graph.state import CompiledStateGraph
from langgraph.managed.base import ManagedValue
from langgraph.pregel import Pregel, _retry, _runner
from langgraph.pregel._draw import add_edge, draw_graph
from langgraph.pregel._io import read_channels
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._write import ChannelWrite, ChannelWriteEntry
from langgraph.pregel.protocol import StreamProtocol
from langgraph.runtime import RunControl, Runtime
from langgraph.types import (
    CachePolicy,
    PregelExecutableTask,
    RetryPolicy,
    Send,
    interrupt,
)


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function by name."""
    return dict(inspect.signature(function).parameters)


def names(function: Any) -> list[str]:
    """Return the names of a function's parameters, in order."""
    return list(parameters(function))


def inside(look: Any, *, stream: bool = False, is_async: bool = False) -> Any:
    """Return what `look` says of the config of a task, while it is being executed."""
    seen: list[Any] = []
    builder = StateGraph(State)

    def node(state: State, config: RunnableConfig) -> State:
        seen.append(look(config))
        return {"log": ["done"]}

    async def anode(state: State, config: RunnableConfig) -> State:
        return node(state, config)

    builder.add_node("work", anode if is_async else node)
    builder.add_edge(START, "work")
    graph = builder.compile()
    if is_async:
        asyncio.run(graph.ainvoke({}))
    elif stream:
        list(graph.stream({}, stream_mode="custom"))
    else:
        graph.invoke({})
    (found,) = seen
    return found


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def test_a_node_without_a_body_has_the_default_one() -> None:
    """It is left out of the sequence that is run: START has writers alone."""
    builder = StateGraph(State).add_node("work", lambda state: None)
    builder.add_conditional_edges(START, lambda state: "work", ["work"])
    start = builder.compile().nodes[START]
    assert start.bound is DEFAULT_BOUND
    assert start.node is not None
    assert start.node.steps == start.flat_writers  # type: ignore[attr-defined]


# The config of a task.


def test_the_config_keys_are_these() -> None:
    """Other processes and nested graphs read them by value, too."""
    expected = {
        "CONF": "configurable",
        "CONFIG_KEY_CALL": "__pregel_call",
        "CONFIG_KEY_CHECKPOINT_NS": "checkpoint_ns",
        "CONFIG_KEY_READ": "__pregel_read",
        "CONFIG_KEY_RUNTIME": "__pregel_runtime",
        "CONFIG_KEY_SCRATCHPAD": "__pregel_scratchpad",
        "CONFIG_KEY_SEND": "__pregel_send",
        "CONFIG_KEY_STREAM": "__pregel_stream",
        "CONFIG_KEY_TASK_ID": "__pregel_task_id",
        "TASKS": "__pregel_tasks",
    }
    moved = {
        name: getattr(constants, name, "is gone")
        for name, value in expected.items()
        if getattr(constants, name, None) != value
    }
    assert not moved, f"config keys moved: {moved}"


@both
def test_a_task_has_these_keys_in_its_config(is_async: bool) -> None:
    """The guard copies the config and replaces some of them."""
    found = inside(lambda config: set(config[constants.CONF]), is_async=is_async)
    wanted = {
        constants.CONFIG_KEY_CALL,
        constants.CONFIG_KEY_READ,
        constants.CONFIG_KEY_RUNTIME,
        constants.CONFIG_KEY_SCRATCHPAD,
        constants.CONFIG_KEY_SEND,
        constants.CONFIG_KEY_TASK_ID,
    }
    assert wanted <= found, f"gone from a task's config: {wanted - found}"


@both
def test_send_is_the_bound_extend_of_the_tasks_writes(is_async: bool) -> None:
    """`writes_of` takes the deque from its `__self__`."""
    send = inside(
        lambda config: config[constants.CONF][constants.CONFIG_KEY_SEND],
        is_async=is_async,
    )
    writes = getattr(send, "__self__", None)
    assert isinstance(writes, deque), (
        "SEND is no method of the deque of writes any more"
    )
    assert send.__name__ == "extend", f"SEND is {send.__name__}, not extend"
    assert ("log", ["done"]) in writes, "SEND's deque is not that of the task's writes"


@both
def test_read_is_a_partial_whose_second_argument_is_the_channels(
    is_async: bool,
) -> None:
    """`channels_of` takes the run's own channels from there."""
    read = inside(
        lambda config: config[constants.CONF][constants.CONFIG_KEY_READ],
        is_async=is_async,
    )
    assert isinstance(read, functools.partial), "READ is no partial any more"
    assert names(read.func)[:4] == ["scratchpad", "channels", "managed", "task"], (
        f"local_read takes {names(read.func)}"
    )
    channels = read.args[1]
    assert "log" in channels, "READ's second argument is not the mapping of channels"
    assert isinstance(channels["log"], BaseChannel)
    assert "branch:to:work" in channels, "the channels lack the control channels"


def test_the_channels_of_a_task_are_the_runs_own() -> None:
    """What is done to them at a cut is seen when writes are applied."""
    seen: list[Any] = []

    def node(state: State, config: RunnableConfig) -> State:
        channels = config[constants.CONF][constants.CONFIG_KEY_READ].args[1]
        seen.append(channels["log"])
        return {"log": ["x"]}

    builder = StateGraph(State)
    builder.add_node("a", node)
    builder.add_node("b", node)
    builder.add_edge(START, "a")
    builder.add_edge("a", "b")
    builder.compile().invoke({})
    assert seen[0] is seen[1], "tasks of one run get copies of its channels"
    assert seen[1].get() == ["x", "x"]


@both
def test_the_scratchpad_knows_the_superstep(is_async: bool) -> None:
    """The fallback is told from ordinary nodes by the superstep it runs in."""
    step = inside(
        lambda config: config[constants.CONF][constants.CONFIG_KEY_SCRATCHPAD].step,
        is_async=is_async,
    )
    assert step == 1, f"the first node's superstep is {step!r}"


@both
def test_the_runtime_can_be_copied_with_another_stream_writer(is_async: bool) -> None:
    """Stragglers must not write to the stream."""
    runtime = inside(
        lambda config: config[constants.CONF][constants.CONFIG_KEY_RUNTIME],
        is_async=is_async,
    )
    assert isinstance(runtime, Runtime)
    written: list[Any] = []
    copied = runtime.override(stream_writer=written.append)
    copied.stream_writer("x")
    assert written == ["x"], "Runtime.override(stream_writer=) has no effect"
    assert hasattr(runtime, "execution_info"), "Runtime.execution_info is gone"


def test_a_stream_protocol_is_made_of_a_function_and_its_modes() -> None:
    """Nested graphs write through the one in their config."""
    written: list[Any] = []
    protocol = StreamProtocol(written.append, {"updates"})
    protocol(((), "updates", {}))
    assert protocol.modes == {"updates"}
    assert written == [((), "updates", {})]


def test_a_nested_graph_gets_the_stream_in_its_config() -> None:
    """With `subgraphs=True` its config has CONFIG_KEY_STREAM."""
    seen: list[Any] = []

    def node(state: State, config: RunnableConfig) -> State:
        seen.append(config[constants.CONF].get(constants.CONFIG_KEY_STREAM))
        return {}

    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    list(builder.compile().stream({}, subgraphs=True))
    assert isinstance(seen[0], StreamProtocol), "CONFIG_KEY_STREAM is not set any more"


# Tasks of the functional API.


@pytest.mark.parametrize("name", ["_call", "_acall"])
def test_call_takes_a_function_its_input_and_these_options(name: str) -> None:
    """`call_guarded` stands between the caller and it."""
    call = getattr(_runner, name, None)
    assert call is not None, f"langgraph.pregel._runner.{name} is gone"
    assert names(call)[:3] == ["task", "func", "input"]
    options = {"retry_policy", "cache_policy", "callbacks", "timeout"}
    missing = options - set(names(call))
    assert not missing, f"{name} lost {missing}"
    for option in options:
        assert parameters(call)[option].kind is inspect.Parameter.KEYWORD_ONLY


def test_a_task_is_called_with_its_arguments_in_one_pair() -> None:
    """`impl(func, (args, kwargs), retry_policy=..., ...)`, from the caller's config."""
    calls: list[tuple[Any, Any, set[str]]] = []

    @task
    def double(value: int, *, times: int = 2) -> int:
        return value * times

    @entrypoint()
    def flow(value: int) -> int:
        from langgraph.config import get_config

        conf = get_config()[constants.CONF]
        original = conf[constants.CONFIG_KEY_CALL]

        def spy(func: Any, input: Any, **options: Any) -> Any:
            calls.append((func, input, set(options)))
            return original(func, input, **options)

        conf[constants.CONFIG_KEY_CALL] = spy
        result: int = double(value, times=3).result()
        return result

    assert flow.invoke(2) == 6
    ((func, given, options),) = calls
    assert callable(func)
    assert func.__name__ == "double"
    assert given == ((2,), {"times": 3}), f"a task's input is {given!r}"
    assert {"retry_policy", "cache_policy", "callbacks", "timeout"} >= options
    assert "retry_policy" in options


def test_a_task_to_be_executed_has_these_fields_in_this_order() -> None:
    """We make them by position, for the engine's own retry loop."""
    found = [field.name for field in fields(PregelExecutableTask)]
    assert found[:11] == [
        "name",
        "input",
        "proc",
        "writes",
        "config",
        "triggers",
        "retry_policy",
        "cache_key",
        "id",
        "path",
        "writers",
    ], f"PregelExecutableTask is {found}"
    assert "timeout" in found


@pytest.mark.parametrize("name", ["run_with_retry", "arun_with_retry"])
def test_the_retry_loop_takes_a_task_and_the_graphs_policies(name: str) -> None:
    """It is run inside the guard, so that its back-off ends with the deadline."""
    loop = getattr(_retry, name, None)
    assert loop is not None, f"langgraph.pregel._retry.{name} is gone"
    assert names(loop)[:2] == ["task", "retry_policy"]


def test_the_retry_loop_asks_should_retry_on() -> None:
    """Our own back-off asks the same question: policy first, then the error."""
    ask = _retry._should_retry_on
    assert ask(RetryPolicy(retry_on=KeyError), KeyError())
    assert not ask(RetryPolicy(retry_on=KeyError), ValueError())


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_retry_loop_invokes_the_proc_with_input_and_config(attempts: int) -> None:
    """`proc.invoke(input, config)`, until it succeeds; its result comes back."""
    seen: list[Any] = []

    class Proc:
        def invoke(self, value: Any, config: RunnableConfig) -> Any:
            seen.append((value, config[constants.CONF][constants.CONFIG_KEY_TASK_ID]))
            if len(seen) < attempts:
                raise ConnectionError
            return "out"

    proc: Any = Proc()
    policy = RetryPolicy(initial_interval=0, jitter=False, max_attempts=3)
    runtime = inside(
        lambda config: config[constants.CONF][constants.CONFIG_KEY_RUNTIME]
    )
    config: RunnableConfig = {
        constants.CONF: {  # type: ignore[misc]
            constants.CONFIG_KEY_TASK_ID: "id",
            constants.CONFIG_KEY_RUNTIME: runtime,
            constants.CONFIG_KEY_CHECKPOINT_NS: "",
        }
    }
    made = PregelExecutableTask(
        "work", "in", proc, deque(), config, (), (policy,), None, "id", ()
    )
    assert _retry.run_with_retry(made, None) == "out"  # type: ignore[func-returns-value]
    assert seen == [("in", "id")] * attempts


# Nodes.


def compiled(**options: Any) -> Any:
    """Return a plain graph with one node, an edge and a conditional edge."""

    def work(state: State) -> State:
        return {"log": ["work"]}

    def route(state: State) -> str:
        return END

    builder = StateGraph(State)
    builder.add_node("work", work, **options)
    builder.add_node("other", work)
    builder.add_edge(START, "work")
    builder.add_conditional_edges("work", route, ["other", END])
    return builder.compile()


def test_a_nodes_runnable_is_a_cached_property() -> None:
    """Set in the `__dict__`, it takes the place of the engine's own."""
    prop = inspect.getattr_static(PregelNode, "node", None)
    assert isinstance(prop, functools.cached_property), "PregelNode.node has changed"
    node = compiled().nodes["work"]
    marker = object()
    node.__dict__["node"] = marker
    assert node.node is marker, "a value in PregelNode.__dict__ is not taken any more"


def test_a_pregel_node_has_a_dict_of_these() -> None:
    """It is copied by its `__dict__`."""
    node = compiled().nodes["work"]
    wanted = {
        "bound",
        "cache_policy",
        "channels",
        "error_handler_node",
        "metadata",
        "retry_policy",
        "timeout",
        "triggers",
        "writers",
    }
    missing = wanted - set(vars(node))
    assert not missing, f"PregelNode lost {missing}"
    assert isinstance(
        inspect.getattr_static(PregelNode, "flat_writers"), functools.cached_property
    )


def test_a_node_runs_its_body_and_then_its_writers() -> None:
    """As a RunnableSeq whose first step is `bound`, then ChannelWrites and branches."""
    node = compiled().nodes["work"]
    assert isinstance(node.node, RunnableSeq)
    assert node.node.steps == [node.bound, *node.flat_writers]
    assert isinstance(node.flat_writers[0], ChannelWrite), (
        "a node's first writer is no ChannelWrite: kept state updates would be lost"
    )


def test_start_only_writes() -> None:
    """Its runnable is one ChannelWrite, which needs no guard."""
    assert isinstance(compiled().nodes[START].node, ChannelWrite)


def test_a_sequence_has_steps_and_hooks_for_its_tracing() -> None:
    """`_start` and its kin came during 1.2; all of them or none."""
    seq = RunnableSeq(lambda value: value + 1, lambda value: value * 2)
    assert len(seq.steps) == 2
    assert seq.invoke(1) == 4
    hooks = [
        hasattr(RunnableSeq, name) for name in ("_start", "_astart", "_end", "_aend")
    ]
    assert all(hooks) or not any(hooks), f"RunnableSeq has some hooks only: {hooks}"
    if all(hooks):
        assert names(RunnableSeq._start) == ["self", "input", "config"]
        assert names(RunnableSeq._end) == ["self", "run_manager", "output"]
    else:
        assert hasattr(seq, "trace_inputs")


def test_a_sequence_takes_langchains_sequences_apart() -> None:
    """So that the number of a node's own parts is known."""
    body = RunnableLambda(lambda value: value) | RunnableLambda(lambda value: value)
    assert len(RunnableSeq(body, lambda value: value).steps) == 3


def test_a_sync_function_is_awaited_in_the_loops_executor() -> None:
    """`afunc` is then a partial of `run_in_executor`: we recognise it by that."""
    sync: Any = coerce_to_runnable(lambda value: value, name="x", trace=False)
    assert isinstance(sync, RunnableCallable)
    assert isinstance(sync.afunc, functools.partial), "afunc of a sync function changed"
    assert sync.afunc.func is run_in_executor
    assert isinstance(sync.func, FunctionType)

    async def work(value: Any) -> Any:
        return value

    native: Any = coerce_to_runnable(work, name="x", trace=False)
    assert native.afunc is work
    assert is_async_callable(work)
    assert not is_async_callable(lambda: None)


def test_the_context_of_a_config_is_set_by_a_manager_or_for_good() -> None:
    """`set_config_context` gives a context to run in; the private one sets it here."""
    assert names(set_config_context)[:2] == ["config", "run"]
    assert names(_set_config_context)[:2] == ["config", "run"]
    with set_config_context({"tags": ["x"]}) as context:
        assert context.run(lambda: 5) == 5


def test_a_branch_has_these_fields_and_methods() -> None:
    """A sync path gets a thread of ours by `_replace(path=)`."""
    assert BranchSpec._fields[:2] == ("path", "ends"), (
        f"BranchSpec is {BranchSpec._fields}"
    )
    assert set(names(BranchSpec._aroute)) >= {"input", "config", "reader", "writer"}
    writer = compiled().nodes["work"].flat_writers[-1]
    branch = getattr(writer.afunc, "__self__", None)
    assert isinstance(branch, BranchSpec), (
        "a conditional edge's writer no longer has BranchSpec._aroute as its afunc"
    )
    assert branch._replace(path=branch.path) == branch


def test_channel_writes_are_made_of_entries() -> None:
    """A drawing needs one that writes to a channel, and `ChannelWrite` to run."""
    write = ChannelWrite([ChannelWriteEntry("branch:to:x", None)])
    writes: deque[Any] = deque()
    write.invoke(
        "value",
        {constants.CONF: {constants.CONFIG_KEY_SEND: writes.extend}},  # type: ignore[misc]
    )
    assert list(writes) == [("branch:to:x", None)]


# Channels.


def test_control_channels_have_these_names_and_kinds() -> None:
    """They are recognised by their names and replaced by their exact types."""
    builder = StateGraph(State)
    for name in ("a", "b"):
        builder.add_node(name, lambda state: {})
        builder.add_edge(START, name)
    builder.add_node("c", lambda state: {})
    builder.add_node("late", lambda state: {}, defer=True)
    builder.add_edge(["a", "b"], "c")
    builder.add_edge("c", "late")
    builder.add_edge(["a", "b"], "late")
    channels = builder.compile().channels
    kinds = {name: type(channel) for name, channel in channels.items()}
    assert kinds["branch:to:a"] is EphemeralValue
    assert kinds["branch:to:late"] is LastValueAfterFinish
    assert kinds["join:a+b:c"] is NamedBarrierValue
    assert kinds["join:a+b:late"] is NamedBarrierValueAfterFinish
    assert kinds[constants.TASKS] is Topic
    control = {n for n in kinds if n.startswith(("branch:to:", "join:"))}
    known = {START, "log", constants.TASKS, *control}
    assert set(kinds) == known, f"new channels: {set(kinds) - known}"


def test_control_channels_have_these_attributes() -> None:
    """Our subclasses empty them."""
    for kind, wanted in (
        (EphemeralValue, {"guard", "value"}),
        (LastValueAfterFinish, {"value", "finished"}),
        (NamedBarrierValue, {"names", "seen"}),
        (NamedBarrierValueAfterFinish, {"names", "seen", "finished"}),
        (Topic, {"values", "accumulate"}),
    ):
        missing = wanted - set(kind.__slots__)
        assert not missing, f"{kind.__name__} lost {missing}"
    assert names(EphemeralValue)[:2] == ["typ", "guard"]
    assert names(NamedBarrierValue)[:2] == ["typ", "names"]
    assert names(Topic)[:2] == ["typ", "accumulate"]
    assert {"key", "typ"} <= set(BaseChannel.__slots__)


def test_the_pending_sends_are_a_topic_of_sends() -> None:
    """Our own takes its place with the same arguments."""
    channel = compiled().channels[constants.TASKS]
    assert channel.accumulate is False
    assert channel.typ is Send


def test_an_empty_trigger_is_updated_with_nothing_after_every_superstep() -> None:
    """That is how a trigger ends: `update(())` empties it and says so."""
    channel: Any = EphemeralValue(Any)
    channel.key = "branch:to:x"
    assert channel.update([None])
    assert channel.is_available()
    assert channel.update(())
    assert not channel.is_available()


def test_finish_is_asked_of_every_channel_when_a_run_ends() -> None:
    """The record of a run that completes is forgotten there."""
    assert inspect.isfunction(BaseChannel.finish)
    asked: list[str] = []

    class Asked(EphemeralValue[Any]):
        def finish(self) -> bool:
            asked.append(self.key)
            return False

    graph = compiled()
    channel: Any = Asked(Any)
    channel.key = "asked"
    graph.channels["asked"] = channel
    graph.invoke({})
    assert "asked" in asked, "BaseChannel.finish is not called at the end of a run"


def test_channels_are_read_as_state() -> None:
    """Of a run whose engine cannot end in time."""
    assert names(read_channels)[:2] == ["channels", "select"]


# Graphs.


def test_defaults_are_eight_values_in_this_order() -> None:
    """The saver, the store and the cache among them are replaced by views."""
    saver, cache = InMemorySaver(), InMemoryCache()
    builder = StateGraph(State)
    builder.add_node("work", lambda state: {})
    builder.add_edge(START, "work")
    graph = builder.compile(checkpointer=saver, cache=cache)
    found = graph._defaults(
        {"recursion_limit": 5, "configurable": {"thread_id": "1"}},
        stream_mode="values",
        print_mode=(),
        output_keys=None,
        interrupt_before=None,
        interrupt_after=["work"],
        durability=None,
    )
    assert len(found) == 8, f"Pregel._defaults returns {len(found)} values"
    modes, keys, before, after, found_saver, store, found_cache, durability = found
    assert modes == {"values"}
    assert list(keys) == ["log"]
    assert list(before) == []
    assert list(after) == ["work"]
    assert found_saver is saver, "the fifth value is not the checkpointer"
    assert store is None, "the sixth value is not the store"
    assert found_cache is cache, "the seventh value is not the cache"
    assert durability == "async"


class _Spying(CompiledStateGraph[Any, Any, Any, Any]):
    """Notes what `invoke` and `ainvoke` hand to the streams."""

    given: ClassVar[dict[str, Any]] = {}

    def stream(self, *args: Any, mark: Any = None, **kwargs: Any) -> Any:
        self.given["sync"] = mark
        return super().stream(*args, **kwargs)

    async def astream(self, *args: Any, mark: Any = None, **kwargs: Any) -> Any:
        self.given["async"] = mark
        async for item in super().astream(*args, **kwargs):
            yield item


def test_invoke_passes_keywords_it_does_not_know_to_our_stream() -> None:
    """Our `invoke` tells our `stream` so that it is driven already."""
    graph = compiled()
    spying = object.__new__(_Spying)
    spying.__dict__.update(graph.__dict__)
    marker = object()
    spying.invoke({}, mark=marker)
    asyncio.run(spying.ainvoke({}, mark=marker))
    assert spying.given["sync"] is marker, "Pregel.invoke keeps **kwargs to itself"
    assert spying.given["async"] is marker, "Pregel.ainvoke keeps **kwargs to itself"


def test_copies_are_made_by_the_constructor_from_the_dict() -> None:
    """`with_config` and `copy` rebuild through `__class__(**attrs)`."""

    class Marked(CompiledStateGraph[Any, Any, Any, Any]):
        def __init__(self, *, mark: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.mark = mark

    marked: Any = object.__new__(Marked)
    marked.__dict__.update(compiled().__dict__, mark=5)
    for copied in (marked.copy(), marked.with_config(tags=["x"])):
        assert type(copied) is Marked
        assert copied.mark == 5


def test_a_compiled_graph_has_these_attributes() -> None:
    """A bounded copy takes them over, a drawing reads them."""
    wanted = {
        "builder",
        "channels",
        "checkpointer",
        "config",
        "input_channels",
        "interrupt_after_nodes",
        "interrupt_before_nodes",
        "nodes",
        "output_channels",
        "retry_policy",
        "stream_channels",
        "stream_mode",
        "trigger_to_nodes",
    }
    graph = compiled()
    missing = {name for name in wanted if not hasattr(graph, name)}
    assert not missing, f"a compiled graph lost {missing}"
    assert isinstance(graph.stream_channels_list, list)
    assert names(CompiledStateGraph.attach_node) == ["self", "key", "node"]


def test_a_builder_has_these_attributes() -> None:
    """A copy with one more node must not share them."""
    builder = StateGraph(State)
    for name in ("nodes", "channels", "managed", "schemas"):
        assert isinstance(getattr(builder, name, None), dict), f"StateGraph.{name}"
    assert builder.compiled is False


def test_an_entrypoint_has_one_node_triggered_by_start() -> None:
    """Its fallback gets the same input and writes to the same channels."""

    @entrypoint()
    def flow(value: int) -> int:
        return value

    triggered = [node for node in flow.nodes.values() if START in node.triggers]
    assert len(triggered) == 1
    assert type(flow) is Pregel
    assert triggered[0].writers
    assert constants.TASKS in flow.channels or "__pregel_tasks" in flow.channels


def test_a_drawing_takes_these_arguments() -> None:
    """The fallback is drawn as if START led to it."""
    wanted = {
        "nodes",
        "specs",
        "input_channels",
        "interrupt_after_nodes",
        "interrupt_before_nodes",
        "trigger_to_nodes",
        "checkpointer",
        "subgraphs",
    }
    assert wanted <= set(names(draw_graph)), "draw_graph takes other arguments"
    required = {
        name
        for name, parameter in parameters(draw_graph).items()
        if parameter.default is inspect.Parameter.empty
    }
    assert required <= wanted | {"config"}, f"draw_graph needs {required - wanted}"
    assert names(add_edge)[:3] == ["graph", "source", "target"]
    assert {"data", "conditional"} <= set(names(add_edge))


def test_a_managed_value_is_got_from_the_scratchpad() -> None:
    """In the context of the run's loop, which is how it finds the deadline."""
    assert names(ManagedValue.get) == ["scratchpad"]


# Errors, interrupts, callbacks.


def test_a_bubble_up_passes_retries_and_error_handlers() -> None:
    """A cut under `"raise"` leaves the task as if it had never run."""

    class CutError(TimeoutError, GraphBubbleUp):
        pass

    attempts: list[int] = []
    handled: list[int] = []

    def work(state: State) -> State:
        attempts.append(1)
        raise CutError

    def handler(state: State, error: Any = None) -> State:
        handled.append(1)
        return {}

    builder = StateGraph(State)
    builder.add_node(
        "work",
        work,
        retry_policy=RetryPolicy(retry_on=Exception, initial_interval=0),
        error_handler=handler,
    )
    builder.add_edge(START, "work")
    saver = InMemorySaver()
    graph = builder.compile(checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": "1"}}
    with pytest.raises(CutError):
        graph.invoke({}, config)
    assert attempts == [1], "a GraphBubbleUp is retried"
    assert handled == [], "a GraphBubbleUp reaches error handlers"
    latest = saver.get_tuple(config)
    assert latest is not None
    assert not latest.pending_writes, f"it was recorded: {latest.pending_writes}"
    assert issubclass(GraphInterrupt, GraphBubbleUp)


def test_the_callbacks_of_an_interrupt_come_with_its_namespace() -> None:
    """By it a run notes that it waits for a person."""
    events: list[GraphInterruptEvent] = []

    class Handler(GraphCallbackHandler):
        def on_interrupt(self, event: GraphInterruptEvent) -> None:
            events.append(event)

    def ask(state: State) -> State:
        interrupt("?")
        return {}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=InMemorySaver())
    graph.invoke({}, {"configurable": {"thread_id": "1"}, "callbacks": [Handler()]})
    assert len(events) == 1, "GraphCallbackHandler.on_interrupt is not called"
    assert events[0].checkpoint_ns == (), f"the root's is {events[0].checkpoint_ns!r}"


def test_a_run_control_has_slots_that_a_subclass_can_add_to() -> None:
    """And is a keyword of every entry point."""
    assert RunControl.__slots__ == ("_drain_reason",)
    for name in ("invoke", "ainvoke", "stream", "astream"):
        assert "control" in names(getattr(Pregel, name)), f"Pregel.{name}"


# Savers and caches.


def test_a_checkpoint_tuple_has_pending_writes_that_can_be_changed() -> None:
    """The run's record is taken from them before the engine sees them."""
    assert set(CheckpointTuple._fields) >= {
        "config",
        "checkpoint",
        "metadata",
        "pending_writes",
    }
    saver = InMemorySaver()
    builder = StateGraph(State)
    builder.add_node("work", lambda state: {})
    builder.add_edge(START, "work")
    config: RunnableConfig = {"configurable": {"thread_id": "1"}}
    builder.compile(checkpointer=saver).invoke({}, config)
    latest = saver.get_tuple(config)
    assert latest is not None
    saver.put_writes(latest.config, [("x", 1)], "task")
    latest = saver.get_tuple(config)
    assert latest is not None
    assert latest.pending_writes == [("task", "x", 1)]
    assert isinstance(latest.pending_writes, list)
    assert latest.checkpoint["ts"]
    assert latest.metadata.get("source") == "loop"
    first = list(saver.list(config, filter={"source": "input"}))
    assert len(first) == 1, "the checkpoint of the input is not marked as such"


def test_the_cache_is_given_the_writes_of_a_task_with_a_time_to_live() -> None:
    """`set({key: (writes, ttl)})`: what was cut is kept out of it by its writes."""
    given: list[Any] = []

    class Spy(InMemoryCache[Any]):
        def set(self, pairs: Any) -> None:
            given.extend(pairs.values())
            super().set(pairs)

    builder = StateGraph(State)
    builder.add_node(
        "work", lambda state: {"log": ["x"]}, cache_policy=CachePolicy(ttl=60)
    )
    builder.add_edge(START, "work")
    builder.compile(cache=Spy()).invoke({})
    ((writes, ttl),) = given
    assert ("log", ["x"]) in list(writes), f"cached writes are {writes!r}"
    assert ttl == 60


# CPython.


def test_asyncio_can_be_told_to_forget_a_task() -> None:
    """`asyncio.run` would wait for ever for one that swallows its cancellation."""

    async def main() -> None:
        waiting = asyncio.create_task(asyncio.sleep(0.2))
        asyncio.tasks._unregister_task(waiting)  # type: ignore[attr-defined]
        assert waiting not in asyncio.all_tasks(), (
            "asyncio.tasks._unregister_task no longer hides a task"
        )
        waiting.cancel()

    assert hasattr(asyncio.tasks, "_unregister_task"), "_unregister_task is gone"
    asyncio.run(main())
