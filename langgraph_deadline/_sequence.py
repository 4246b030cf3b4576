"""Run a node's body and its writers, so that a cut can come between any two of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableLambda,
    RunnableSequence,
)
from langchain_core.runnables.config import run_in_executor
from langgraph.errors import ParentCommand
from langgraph.types import Command

from . import _clock
from ._backlog import TOKENS
from ._cut import Step
from ._guard import in_thread
from ._langgraph import (
    CONF,
    CONFIG_KEY_CHECKPOINT_NS,
    DEFAULT_BOUND,
    MISSING,
    BranchSpec,
    ChannelWrite,
    PregelNode,
    RunnableCallable,
    RunnableSeq,
    aend,
    aerror,
    astart,
    end,
    patch_config,
    route_async,
    set_config_context,
    set_config_here,
    start,
    traced_run,
    write_channels,
)
from ._run import Run, run_here
from .callbacks import ATTACHED

_LATE = 1e-3  # seconds; timers are not more exact than that


class Result:
    """What a node's body returned, and when: kept even if a writer after it is cut."""

    __slots__ = ("at", "began", "step", "value")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.value: Any = MISSING
        self.began = False
        self.at = 0.0

    def start(self) -> None:
        """Refuse to begin what has been cut meanwhile."""
        if (cause := self.step.cause_of_cut()) is not None:
            run: Run = self.step.run
            raise run.error(step=self.step.name, cause=cause)

    def passed(self, index: int, last: int, value: Any) -> None:
        """Note the end of part `index`; stop if the step has been cut meanwhile."""
        if index == last:
            self.value = value
            self.at = _clock.now()
        if self.step.cut is None and _clock.now() > self.step.at + _LATE:
            # Past its time, and nobody could cut it: it kept the event loop busy.
            self.step.late = True
        self.start()

    def raised(self, error: BaseException, config: RunnableConfig) -> None:
        """Note the update of a graph inside that was cut while it handed over.

        A tool had told where to go on in this graph, beside one that was cut: its
        update is a result as any other, but where it leads is not followed.
        """
        if self.step.cut is None or not isinstance(error, ParentCommand):
            return
        command: Command[Any] = error.args[0]
        here = (config[CONF].get(CONFIG_KEY_CHECKPOINT_NS), self.step.name)
        if command.graph in here:
            self.value = Command(update=command.update)
            self.at = _clock.now()

    def kept(self) -> Any:
        """Return the value, if it came before the cut or within its grace."""
        step = self.step
        cut_at = min(step.at, step.cut_at) if step.cut is not None else step.at
        if step.had_nested:
            cut_at = step.cut_at  # from then on what was inside had time to hand over
        if self.at > cut_at + step.grace + max(step.waits, step.longest_hold()):
            return MISSING
        return self.value


class Parts:
    """A node's runnables: those of its body, then its writers."""

    __slots__ = ("answers", "last", "output", "proc")

    def __init__(self, like: Any, body: Any, writers: Sequence[Any]) -> None:
        """Make a sequence `like` the node's own, with its name and trace policy.

        Without a `body` (START is such a node) its input is what goes to its writers.
        """
        self.answers: Callable[..., Any] | None = getattr(body, "answers", None)
        # What a subgraph returns.
        self.output: Any = getattr(body, "output_channels", None)
        steps = [*(_flat(body) if body is not None else ()), *writers]
        if isinstance(like, RunnableSeq) and len(steps) > 1:
            self.proc: Any = copy.copy(like)
            self.proc.steps = steps
        else:
            self.proc = steps[0] if len(steps) == 1 else RunnableSeq(*steps)
        self.last = len(steps) - len(writers) - 1

    def invoke(self, value: Any, config: RunnableConfig, result: Result) -> Any:
        """Run all parts; as `RunnableSeq.invoke`, but for the check after each."""
        seq = self.proc
        result.began = True
        if self.last < 0:
            result.passed(self.last, self.last, value)
        if not isinstance(seq, RunnableSeq):
            value = seq.invoke(value, with_handler(config))
            result.passed(0, 0, value)
            return value
        manager = start(seq, value, config)
        try:
            for index, part in enumerate(seq.steps):
                if type(part) is ChannelWrite:
                    write_channels(part, value, config)
                    result.passed(index, self.last, value)
                    continue
                config = patch_config(config, callbacks=_child(manager, index))
                if index == 0:
                    with set_config_context(config, traced_run(manager)) as context:
                        value = context.run(part.invoke, value, config)
                else:
                    value = part.invoke(value, config)
                result.passed(index, self.last, value)
        except BaseException as error:
            result.raised(error, config)
            manager.on_chain_error(error)
            raise
        end(seq, manager, value)
        return value

    async def ainvoke(self, value: Any, config: RunnableConfig, result: Result) -> Any:
        """Run all parts; as `RunnableSeq.ainvoke`, in the caller's task and context."""
        seq = self.proc
        result.began = True
        if self.last < 0:
            result.passed(self.last, self.last, value)
        if not isinstance(seq, RunnableSeq):
            value = await seq.ainvoke(value, with_handler(config))
            result.passed(0, 0, value)
            return value
        manager = await astart(seq, value, config)
        try:
            for index, part in enumerate(seq.steps):
                if type(part) is ChannelWrite:
                    write_channels(part, value, config)
                    result.passed(index, self.last, value)
                    continue
                config = patch_config(config, callbacks=_child(manager, index))
                if index == 0:
                    set_config_here(config, traced_run(manager))
                value = await part.ainvoke(value, config)
                result.passed(index, self.last, value)
        except BaseException as error:
            result.raised(error, config)
            await aerror(manager, error)
            raise
        await aend(seq, manager, value)
        return value

    async def astream(self, value: Any, config: RunnableConfig) -> None:
        """Run all parts as LangGraph does where the caller streams nodes' events."""
        async for _ in self.proc.astream(value, with_handler(config)):
            pass


def _child(manager: Any, index: int) -> Any:
    """Return the callbacks of part `index`, with our handler among those it passes on.

    The node's own start and end are not reported to it: two events a node would cost
    more than all the rest, and the guard sees both anyway.
    """
    child = manager.get_child(f"seq:step:{index + 1}")
    if ATTACHED not in child.handlers:  # else inherited, from the graph around this one
        child.handlers.insert(0, ATTACHED)
        child.inheritable_handlers.insert(0, ATTACHED)
    run = run_here()
    if run is not None and run.backlog is not None and run.backlog.tokens:
        child.handlers.append(TOKENS)
        child.inheritable_handlers.append(TOKENS)
    return child


def with_handler(config: RunnableConfig) -> RunnableConfig:
    """Return `config` with our handler among the callbacks."""
    callbacks = config.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        if ATTACHED not in callbacks.handlers:
            callbacks.handlers.insert(0, ATTACHED)
            callbacks.inheritable_handlers.insert(0, ATTACHED)
        return {**config, "callbacks": callbacks}
    return {**config, "callbacks": [ATTACHED, *(callbacks or ())]}


def instead_of(like: Any, node: PregelNode, body: Any, *, unblocked: bool) -> Parts:
    """Return the parts of `node` with another `body`; `unblocked` for async runs."""
    if not unblocked:
        return Parts(like, body, node.flat_writers)
    writers = [_unblocked_writer(writer) for writer in node.flat_writers]
    return Parts(like, _unblocked(body), writers)


def _flat(body: Any) -> list[Any]:
    """Return the steps of a sequence, which LangGraph takes apart; else the body."""
    return body.steps if isinstance(body, (RunnableSequence, RunnableSeq)) else [body]


def parts_of(like: Any, node: PregelNode, adopt: Callable[[Any], Any]) -> Parts:
    """Return the parts of `node` for sync runs."""
    return instead_of(like, node, _body_of(node, adopt), unblocked=False)


def async_parts_of(like: Any, node: PregelNode, adopt: Callable[[Any], Any]) -> Parts:
    """Return the parts of `node` for async runs: blocking code gets a thread."""
    return instead_of(like, node, _body_of(node, adopt), unblocked=True)


def _body_of(node: PregelNode, adopt: Callable[[Any], Any]) -> Any:
    """Return what a node runs before its writers, `None` where that is nothing."""
    if node.bound is DEFAULT_BOUND and node.flat_writers:
        return None
    return adopt(node.bound)


def _unblocked(part: Any) -> Any:
    """Return `part` so that, awaited, it blocks neither the loop nor its executor.

    The loop's executor has a handful of threads and is waited for by `asyncio.run`: a
    few cut nodes in it would starve everything else.
    """
    if part is None:
        return None
    if isinstance(part, RunnableSequence):
        # LangGraph takes sequences apart; so do we.
        return RunnableSeq(*[_unblocked(step) for step in part.steps])
    if isinstance(part, RunnableCallable):
        return _unblocked_callable(part)
    if isinstance(part, RunnableLambda):
        return part if hasattr(part, "afunc") else _InThread(part)
    if type(part).ainvoke is Runnable.ainvoke:
        return _InThread(part)
    return part


def _unblocked_callable(part: RunnableCallable) -> RunnableCallable:
    afunc = part.afunc
    if not (isinstance(afunc, functools.partial) and afunc.func is run_in_executor):
        return part
    func = part.func
    assert func is not None  # noqa: S101 - it is what the executor was given

    async def in_own_thread(*args: Any, **kwargs: Any) -> Any:
        call = functools.partial(func, *args, **kwargs)
        run = run_here()
        if run is None:
            return await run_in_executor(None, call)
        return await in_thread(run, call)

    unblocked = copy.copy(part)
    unblocked.afunc = in_own_thread
    return unblocked


def _unblocked_writer(writer: Any) -> Any:
    """Return a writer whose conditional edge, if it is sync, gets a thread of ours."""
    branch = getattr(getattr(writer, "afunc", None), "__self__", None)
    if not isinstance(branch, BranchSpec):
        return writer
    path = _unblocked(branch.path)
    if path is branch.path:
        return writer
    unblocked = copy.copy(writer)
    unblocked.afunc = route_async(branch._replace(path=path))
    return unblocked


class _InThread(Runnable[Any, Any]):
    """A Runnable without async code of its own."""

    def __init__(self, bound: Runnable[Any, Any]) -> None:
        self.bound = bound
        self.name = bound.get_name()

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Call the Runnable here."""
        return self.bound.invoke(input, config, **kwargs)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Call the Runnable in a thread of the run."""
        run = run_here()
        if run is None:
            return await self.bound.ainvoke(input, config, **kwargs)
        call = functools.partial(self.bound.invoke, input, config, **kwargs)
        return await in_thread(run, call)
