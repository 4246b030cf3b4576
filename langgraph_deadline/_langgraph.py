"""LangGraph's private parts: every one of them that we use is imported and read here.

`tests/test_langgraph_internals.py` fails when one of them moves.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.langchain import LangChainTracer
from langgraph._internal._config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    patch_config,
)
from langgraph._internal._constants import (
    CONF,
    CONFIG_KEY_CALL,
    CONFIG_KEY_CHECKPOINT_NS,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_READ,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SCRATCHPAD,
    CONFIG_KEY_SEND,
    CONFIG_KEY_STREAM,
    CONFIG_KEY_TASK_ID,
    NS_END,
    NS_SEP,
    TASKS,
)
from langgraph._internal._runnable import (
    RunnableCallable,
    RunnableSeq,
    _set_config_context,
    coerce_to_runnable,
    is_async_callable,
    set_config_context,
)
from langgraph._internal._typing import MISSING
from langgraph.channels.last_value import LastValueAfterFinish
from langgraph.channels.named_barrier_value import NamedBarrierValueAfterFinish
from langgraph.graph._branch import BranchSpec
from langgraph.managed.base import ManagedValue
from langgraph.pregel._draw import add_edge, draw_graph
from langgraph.pregel._io import read_channels
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._retry import (
    _should_retry_on,
    arun_with_retry,
    run_with_retry,
)
from langgraph.pregel._write import (
    ChannelWrite,
    ChannelWriteEntry,
)
from langgraph.pregel.protocol import StreamProtocol
from langgraph.types import PregelExecutableTask, RetryPolicy

__all__ = (
    "CONF",
    "CONFIG_KEY_CALL",
    "CONFIG_KEY_CHECKPOINTER",
    "CONFIG_KEY_CHECKPOINT_NS",
    "CONFIG_KEY_READ",
    "CONFIG_KEY_RESUMING",
    "CONFIG_KEY_RUNTIME",
    "CONFIG_KEY_SCRATCHPAD",
    "CONFIG_KEY_SEND",
    "CONFIG_KEY_STREAM",
    "CONFIG_KEY_TASK_ID",
    "DEFAULT_BOUND",
    "MISSING",
    "TASKS",
    "BranchSpec",
    "ChannelWrite",
    "ChannelWriteEntry",
    "LastValueAfterFinish",
    "ManagedValue",
    "NamedBarrierValueAfterFinish",
    "PregelExecutableTask",
    "PregelNode",
    "RunnableCallable",
    "RunnableSeq",
    "StreamProtocol",
    "add_edge",
    "aend",
    "aerror",
    "arun_with_retry",
    "astart",
    "attempt_of",
    "back_off",
    "channels_of",
    "coerce_to_runnable",
    "draw_graph",
    "is_async_callable",
    "is_branch_channel",
    "is_control_channel",
    "is_task",
    "patch_config",
    "place_of_task",
    "read_channels",
    "route_async",
    "route_channel",
    "run_with_retry",
    "send_of",
    "set_config_context",
    "set_config_here",
    "start",
    "superstep_of",
    "task_id_of",
    "tool_node_like",
    "traced_run",
    "write_channels",
    "writes_of",
)

Send = Callable[[Sequence[tuple[str, Any]]], None]


# A task's config.


def is_task(config: RunnableConfig | None) -> bool:
    """Return whether `config` is that of a node or task inside a run."""
    return config is not None and CONFIG_KEY_TASK_ID in config.get(CONF, {})


def superstep_of(config: RunnableConfig) -> int:
    """Return the number of the superstep a task runs in."""
    step: int = config[CONF][CONFIG_KEY_SCRATCHPAD].step
    return step


def task_id_of(config: RunnableConfig) -> str:
    """Return a task's id, the same for all its attempts and after a resume."""
    task_id: str = config[CONF][CONFIG_KEY_TASK_ID]
    return task_id


def place_of_task() -> str | None:
    """Return where in which run the code is, `None` outside of a node.

    The same for every attempt and after a resume: the id of the outermost graph's task,
    and the way from there. (Inner graphs may begin anew, with other ids.)
    """
    config = var_child_runnable_config.get()
    if config is None or not is_task(config):
        return None
    namespace: str = config[CONF].get(CONFIG_KEY_CHECKPOINT_NS) or ""
    first, *inner = namespace.split(NS_SEP)
    levels = [level.split(NS_END)[0] for level in inner]
    # A number is how often a graph was called in a task, over all its attempts.
    names = [level for level in levels if not level.isdigit()]
    metadata = config.get("metadata") or {}
    place = (
        first,
        names,
        metadata.get("langgraph_step"),
        metadata.get("langgraph_path"),
    )
    return repr(place)


def send_of(config: RunnableConfig) -> Send:
    """Return the function by which a task writes to channels."""
    send: Send = config[CONF][CONFIG_KEY_SEND]
    return send


def writes_of(config: RunnableConfig) -> deque[tuple[str, Any]]:
    """Return what a task has written so far, itself, not a copy."""
    # functools.partial(local_read, scratchpad, channels, managed, task)
    writes: deque[tuple[str, Any]] = config[CONF][CONFIG_KEY_READ].args[3].writes
    return writes


def attempt_of(config: RunnableConfig) -> int:
    """Return which attempt of a task this is, from 1."""
    info = config[CONF][CONFIG_KEY_RUNTIME].execution_info
    return info.node_attempt if info is not None else 1


def back_off(
    policies: Sequence[RetryPolicy], error: Exception, attempt: int
) -> float | None:
    """Return what the engine will sleep before the next attempt, at the least.

    In seconds; `None` if it will not make one. As in `run_with_retry`.
    """
    for policy in policies:
        if _should_retry_on(policy, error):
            if attempt >= policy.max_attempts:
                return None
            growth = policy.backoff_factor ** (attempt - 1)
            return min(policy.max_interval, policy.initial_interval * growth)
    return None


def channels_of(config: RunnableConfig) -> Mapping[str, Any]:
    """Return the channels of the run that a task belongs to, themselves, not copies."""
    # functools.partial(local_read, scratchpad, channels, managed, task)
    channels: Mapping[str, Any] = config[CONF][CONFIG_KEY_READ].args[1]
    return channels


def tool_node_like(node: Any, cls: type[Any], tools: dict[str, Any]) -> Any:
    """Return a copy of a tool node, of class `cls` and with other tools.

    `cls` may override `_func`, `_afunc`, `_run_one` and `_arun_one`.
    """
    copied = copy.copy(node)
    copied.__class__ = cls
    copied._tools_by_name = tools  # noqa: SLF001
    copied.func, copied.afunc = copied._func, copied._afunc  # noqa: SLF001
    return copied


# Names of channels.


def route_channel(node: str) -> str:
    """Return the channel that triggers `node`."""
    return f"branch:to:{node}"


def is_branch_channel(name: str) -> bool:
    """Return whether a channel triggers one node."""
    return name.startswith("branch:to:")


def is_control_channel(name: str) -> bool:
    """Return whether a channel carries control flow, not state."""
    return name == TASKS or name.startswith(("branch:to:", "join:"))


# Tracing of a node: `RunnableSeq` got methods for it during 1.2.


def start(seq: RunnableSeq, value: Any, config: RunnableConfig) -> Any:
    """Report the start of a sequence to its callbacks and return its run manager."""
    begin = getattr(seq, "_start", None)
    if begin is not None:
        return begin(value, config)
    manager = get_callback_manager_for_config(config)
    shown = seq.trace_inputs(value) if seq.trace_inputs is not None else value
    return manager.on_chain_start(
        None,
        shown,
        name=config.get("run_name") or seq.get_name(),
        run_id=config.pop("run_id", None),
    )


async def astart(seq: RunnableSeq, value: Any, config: RunnableConfig) -> Any:
    """Report the start of a sequence to its callbacks and return its run manager."""
    begin = getattr(seq, "_astart", None)
    if begin is not None:
        return await begin(value, config)
    manager = get_async_callback_manager_for_config(config)
    shown = seq.trace_inputs(value) if seq.trace_inputs is not None else value
    return await manager.on_chain_start(
        None,
        shown,
        name=config.get("run_name") or seq.get_name(),
        run_id=config.pop("run_id", None),
    )


def end(seq: RunnableSeq, manager: Any, value: Any) -> None:
    """Report the end of a sequence to its callbacks."""
    finish = getattr(seq, "_end", None)
    if finish is not None:
        finish(manager, value)
    else:
        manager.on_chain_end(value)


async def aend(seq: RunnableSeq, manager: Any, value: Any) -> None:
    """Report the end of a sequence to its callbacks, if there are any.

    The manager makes a task to shield the report even where it goes to nobody.
    """
    policy = getattr(seq, "trace_policy", None)
    if not manager.handlers and getattr(policy, "process_outputs", None) is None:
        return
    finish = getattr(seq, "_aend", None)
    if finish is not None:
        await finish(manager, value)
    else:
        await manager.on_chain_end(value)


async def aerror(manager: Any, error: BaseException) -> None:
    """Report the failure of a sequence to its callbacks, if there are any."""
    if manager.handlers:
        await manager.on_chain_error(error)


def write_channels(writer: ChannelWrite, value: Any, config: RunnableConfig) -> None:
    """Do what a writer's `invoke` does, which has nothing to report or to inject."""
    writer._write(value, config)  # noqa: SLF001


def route_async(branch: BranchSpec) -> Callable[..., Any]:
    """Return the function by which a conditional edge routes in async runs."""
    route: Callable[..., Any] = branch._aroute  # noqa: SLF001
    return route


def traced_run(manager: Any) -> Any:
    """Return the tracer's run that nested runs belong to, `None` without a tracer."""
    for handler in manager.handlers:
        if isinstance(handler, LangChainTracer):
            return handler.run_map.get(str(manager.run_id))
    return None


def set_config_here(config: RunnableConfig, run: Any) -> None:
    """Make `config` the one that nested runnables inherit in the current context.

    For contexts that belong to one task and end with it: nothing is put back.
    """
    _set_config_context(config, run)


def as_runnable(thing: Any, name: str) -> Runnable[Any, Any]:
    """Return `thing` (a Runnable or callable) as a Runnable, as `add_node` does."""
    return coerce_to_runnable(thing, name=name, trace=False)
