"""Nodes of a bounded graph, and the tasks that they call."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.constants import START
from langgraph.types import RetryPolicy
from langgraph.types import Send as SendTo

from . import _clock
from ._channels import CLEAR, CUT, close, leftovers, reopen, state_writes
from ._cut import AsyncStep, Step, SyncStep
from ._guard import in_thread, run_async, run_sync
from ._langgraph import (
    CONF,
    CONFIG_KEY_CALL,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SEND,
    CONFIG_KEY_STREAM,
    MISSING,
    ChannelWrite,
    ManagedValue,
    PregelExecutableTask,
    PregelNode,
    StreamProtocol,
    arun_with_retry,
    as_runnable,
    channels_of,
    is_async_callable,
    route_channel,
    run_with_retry,
    send_of,
    set_config_context,
    superstep_of,
    task_id_of,
    writes_of,
)
from ._notes import cut_record
from ._record import RECORD_KEY, Record
from ._run import Run, run_here
from ._scope import remaining
from ._sequence import Parts, Result, async_parts_of, parts_of
from .errors import DeadlineExceeded, RunCut
from .policy import StepBudget

_NO_LIMIT = StepBudget()
_ONE_ATTEMPT = (RetryPolicy(max_attempts=1),)
"""Shown to the engine in place of a node's retry policies, which are applied inside the
guard: the engine's back-off would run past every deadline."""

Verdict = Literal["otherwise", "route", "return", "raise", "fail"]


class RemainingTimeManager(ManagedValue[float]):
    """Reads the seconds left in the run that prepares a node's input."""

    @staticmethod
    def get(scratchpad: Any) -> float:
        """Return the seconds left, `inf` without a deadline."""
        return remaining()


RemainingTime = Annotated[float, RemainingTimeManager]
"""Managed value for state schemas: the seconds left when the node starts.

Sibling of LangGraph's `RemainingSteps`: `remaining_time: RemainingTime`.
"""


class DeadlineNode(PregelNode):
    """A `PregelNode` whose work is guarded.

    What people look at (`bound`, `writers`, `metadata`, ...) is the original node's.
    """

    @classmethod
    def guard(
        cls,
        name: str,
        node: PregelNode,
        retries: Sequence[RetryPolicy],
        adopt: Callable[[Any], Any],
    ) -> DeadlineNode:
        """Return a guarded copy of `node`.

        Args:
            name: Its name in the graph.
            node: The node.
            retries: The graph's own retry policies, for nodes that have none.
            adopt: Returns a subgraph so that it can be cut and hand over what it has.
        """
        if isinstance(node, DeadlineNode):
            return node
        guarded = cls.__new__(cls)
        guarded.__dict__.update(node.__dict__)
        guarded.__dict__.pop("node", None)
        policies = tuple(node.retry_policy or retries)
        guarded.__dict__["node"] = GuardedNode(name, guarded, policies, adopt)
        if policies:
            guarded.retry_policy = _ONE_ATTEMPT
            guarded.timeout = None
        return guarded

    def copy(self, update: dict[str, Any]) -> PregelNode:
        """Return an unguarded copy (LangGraph draws graphs with them)."""
        attrs = {k: v for k, v in self.__dict__.items() if k != "node"}
        original = PregelNode.__new__(PregelNode)
        original.__dict__.update(attrs)
        return original.copy(update)


class GuardedNode(Runnable[Any, Any]):
    """What the engine runs for a node: its body and writers, under the run's deadline."""

    def __init__(
        self,
        name: str,
        node: DeadlineNode,
        retries: Sequence[RetryPolicy],
        adopt: Callable[[Any], Any],
    ) -> None:
        self.name = name
        self._node = node
        self._retries = tuple(retries)
        self._timeout = node.timeout
        self._adopt = adopt

    # The parts are made when first needed: edges are attached after the nodes.

    @functools.cached_property
    def _plain(self) -> Runnable[Any, Any]:
        node = PregelNode.__new__(PregelNode)
        node.__dict__.update(self._node.__dict__)
        node.__dict__.pop("node", None)
        return node.node or as_runnable(lambda value: value, self.name)

    @functools.cached_property
    def _parts(self) -> Parts:
        return parts_of(self._node, self._adopt)

    @functools.cached_property
    def _async_parts(self) -> Parts:
        return async_parts_of(self._node, self._adopt)

    @functools.cached_property
    def _only_writes(self) -> bool:
        """Whether nothing but the engine's own code is run (START, without a branch)."""
        return isinstance(self._plain, ChannelWrite)

    def _otherwise(self, budget: StepBudget) -> Parts:
        value = budget.otherwise
        if isinstance(value, Runnable) or callable(value):
            body = as_runnable(value, self.name)
        else:
            body = as_runnable(lambda _: value, self.name)
        return Parts(body, self._node.flat_writers)

    # Entry points, called by the engine.

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Run the node; on time, whatever it does."""
        run = run_here()
        if config is None or run is None:
            return self._attempts(self._plain, input, config)
        if self._only_writes:
            return self._write_input(run, input, config)
        return self._run_sync(run, input, config)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Run the node; on time, whatever it does."""
        run = run_here()
        if config is None or run is None:
            return await self._aattempts(self._plain, input, config)
        if self._only_writes:
            return self._write_input(run, input, config)
        return await self._run_async(run, input, config, stream=False)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Run the node as `ainvoke` does, with the events of its parts streamed."""
        run = run_here()
        if config is None or run is None:
            async for _ in self._plain.astream(input, config):
                yield
        elif self._only_writes:
            self._write_input(run, input, config)
        else:
            await self._run_async(run, input, config, stream=True)
        yield

    # A run without a deadline: as if we were not there.

    def _attempts(self, proc: Any, value: Any, config: RunnableConfig | None) -> Any:
        if not self._retries or config is None:
            return proc.invoke(value, config)
        return run_with_retry(self._task(proc, value, config, None), None)

    async def _aattempts(
        self, proc: Any, value: Any, config: RunnableConfig | None, stream: bool = False
    ) -> Any:
        if not self._retries or config is None:
            return await proc.ainvoke(value, config)
        task = self._task(proc, value, config, self._timeout)
        return await arun_with_retry(task, None)

    def _task(
        self, proc: Any, value: Any, config: RunnableConfig, timeout: Any
    ) -> PregelExecutableTask:
        """Return the task as the engine's own retry loop wants it."""
        return PregelExecutableTask(
            self.name or "",
            value,
            proc,
            writes_of(config) if hasattr(send_of(config), "__self__") else deque(),
            config,
            (),
            self._retries,
            None,
            task_id_of(config),
            (),
            writers=self._node.flat_writers,
            timeout=timeout,
        )

    # A run with a deadline.

    def _open(
        self, run: Run, config: RunnableConfig, kind: type[Any]
    ) -> tuple[Any, StepBudget]:
        """Return the step of this execution, admitted or refused, and its budget."""
        budget = run.policy.steps.get(self.name or "", _NO_LIMIT)
        superstep = superstep_of(config)
        grace = run.policy.cancel_grace
        step = kind(run.scope, self.name, "node", superstep, grace)
        if budget.seconds is not None and run.policy.enforce:
            step.tighten(budget.seconds)
        if run.channels is None:
            run.channels = channels_of(config)
        step.cut = run.admit(step, budget.needs)
        if step.kind == "fallback" and run.cut_superstep is not None:
            reopen(run.channels)
        return step, budget

    def _run_sync(self, run: Run, value: Any, config: RunnableConfig) -> Any:
        step, budget = self._open(run, config, SyncStep)
        result = Result(step)
        fenced = _fenced(run, step, config)
        error: DeadlineExceeded | None = None
        try:
            if step.cut is None:
                attempt = _Attempt(self._parts, result)
                body = functools.partial(self._attempts, attempt, value, fenced)
                if run.guarded or step.limit is not None:
                    out = run_sync(run, step, body)
                else:
                    out = body()
                if step.cut is None:
                    self._done(run, step, config)
                    return out
        except DeadlineExceeded as exceeded:
            error = self._caught(run, step, exceeded)
        finally:
            run.leave(step)
        verdict = self._verdict(run, step, budget, error)
        if verdict == "otherwise":
            self._clear_writes(config)
            return self._sync_instead(run, budget, value, config)
        return self._stopped(run, step, verdict, result, value, config, error)

    def _sync_instead(
        self, run: Run, budget: StepBudget, value: Any, config: RunnableConfig
    ) -> Any:
        step = SyncStep(
            run.scope,
            self.name or "",
            "otherwise",
            superstep_of(config),
            run.policy.cancel_grace,
        )
        result = Result(step)
        error: DeadlineExceeded | None = None
        try:
            step.cut = run.admit(step)
            if step.cut is None:
                fenced = _fenced(run, step, config)
                parts = self._otherwise(budget)
                body = functools.partial(parts.invoke, value, fenced, result)
                out = run_sync(run, step, body)
                if step.cut is None:
                    return out
        except DeadlineExceeded as exceeded:
            error = self._caught(run, step, exceeded)
        finally:
            run.leave(step)
        verdict = self._verdict(run, step, _NO_LIMIT, error)
        return self._stopped(run, step, verdict, result, value, config, error)

    async def _run_async(
        self, run: Run, value: Any, config: RunnableConfig, *, stream: bool
    ) -> Any:
        step, budget = self._open(run, config, AsyncStep)
        result = Result(step)
        error: DeadlineExceeded | None = None
        try:
            if step.cut is None:
                fenced = _fenced(run, step, config)
                attempt = _Attempt(self._async_parts, result, stream=stream)
                body = (
                    self._aattempts(attempt, value, fenced)
                    if self._retries
                    else attempt.ainvoke(value, fenced)
                )
                out = await run_async(run, step, body)
                if step.cut is None:
                    self._done(run, step, config)
                    return out
        except DeadlineExceeded as exceeded:
            error = self._caught(run, step, exceeded)
        finally:
            run.leave(step)
        verdict = self._verdict(run, step, budget, error)
        if verdict == "otherwise":
            self._clear_writes(config)
            return await self._async_instead(run, budget, value, config)
        return self._stopped(run, step, verdict, result, value, config, error)

    async def _async_instead(
        self, run: Run, budget: StepBudget, value: Any, config: RunnableConfig
    ) -> Any:
        step = AsyncStep(
            run.scope,
            self.name or "",
            "otherwise",
            superstep_of(config),
            run.policy.cancel_grace,
        )
        result = Result(step)
        error: DeadlineExceeded | None = None
        try:
            step.cut = run.admit(step)
            if step.cut is None:
                fenced = _fenced(run, step, config)
                parts = self._otherwise(budget)
                out = await run_async(run, step, parts.ainvoke(value, fenced, result))
                if step.cut is None:
                    return out
        except DeadlineExceeded as exceeded:
            error = self._caught(run, step, exceeded)
        finally:
            run.leave(step)
        verdict = self._verdict(run, step, _NO_LIMIT, error)
        return self._stopped(run, step, verdict, result, value, config, error)

    # What a cut means.

    def _caught(
        self, run: Run, step: Step, error: DeadlineExceeded
    ) -> DeadlineExceeded | None:
        """Sort an error that the body raised: by then the run's time may be up."""
        if isinstance(error, RunCut) and run.phase == "working":
            run.cut(error.cause, step.name)
        if step.cut is None and not isinstance(error, RunCut):
            return error
        step.cut = step.cut or error.cause
        return None

    def _verdict(
        self, run: Run, step: Step, budget: StepBudget, error: DeadlineExceeded | None
    ) -> Verdict:
        """Decide what follows, and cut the run if nobody nearer has an answer."""
        cause = error.cause if error is not None else step.cut
        if run.phase == "working" and cause is not None:
            if budget.has_otherwise:
                return "otherwise"
            if self._node.error_handler_node is not None:
                return "fail"
            if error is not None and run.mode != "fallback":
                return "fail"
            run.touched = True
            run.cut(cause, step.name)
            if run.cut_superstep is None:
                run.cut_superstep = step.superstep
        if run.phase == "falling back":
            return "route"
        return "return" if run.mode == "return" else "raise"

    def _stopped(
        self,
        run: Run,
        step: Step,
        verdict: Verdict,
        result: Result,
        value: Any,
        config: RunnableConfig,
        error: DeadlineExceeded | None,
    ) -> Any:
        """Write, instead of what was cut, what is kept of it and the way to go on."""
        self._clear_writes(config)
        if verdict == "fail":
            raise error or step.exceeded(step.at - _clock.now(), None, step.cut)
        if verdict == "raise":
            failure = run.error(step=step.name)
            if step.limit is not None and failure.cause == "step":
                failure = run_cut_by_step(failure, step)
            raise failure
        kept = value if self.name == START else result.kept()
        self._keep(kept, config)
        send = send_of(config)
        writes: list[tuple[str, Any]] = [(RECORD_KEY, CUT)]
        if run.claim():
            writes.extend(self._way_on(run, verdict, value, config))
        send(writes)
        return kept if kept is not MISSING else None

    def _way_on(
        self, run: Run, verdict: Verdict, value: Any, config: RunnableConfig
    ) -> list[tuple[str, Any]]:
        """Return the writes that end the work and lead to the fallback."""
        channels = channels_of(config)
        writes = leftovers(channels)
        if not run.implicit:
            writes.append((RECORD_KEY, cut_record(run).dump()))
        if verdict == "route" and run.fallback_is_active():
            return writes  # it closes the others' edges when it ends
        keep: set[str] = set()
        if verdict == "route" and run.fallback is not None:
            route = route_channel(run.fallback)
            if route in channels:
                keep.add(route)
                writes.append((route, None))
            else:  # a functional graph: its fallback gets the entrypoint's input
                keep.add("__pregel_tasks")
                writes.append(("__pregel_tasks", SendTo(run.fallback, value)))
        close(channels, keep)
        return writes

    def _keep(self, value: Any, config: RunnableConfig) -> None:
        """Write the state update of a body that finished, and none of its edges."""
        if value is MISSING:
            return
        writers = self._node.flat_writers
        if writers and isinstance(writers[0], ChannelWrite):
            writes = writes_of(config)
            writers[0].invoke(value, config)
            kept = state_writes(writes)
            writes.clear()
            writes.extend(kept)

    def _clear_writes(self, config: RunnableConfig) -> None:
        writes_of(config).clear()

    def _done(self, run: Run, step: Step, config: RunnableConfig) -> None:
        """Finish a step that ended by itself."""
        if step.kind == "fallback" and step.superstep == run.cut_superstep:
            # It was at work when the cut came: only its own edges fire.
            close(channels_of(config), {name for name, _ in writes_of(config)})
        elif run.resumed is not None and run.resumed.resumable and not run.implicit:
            # The first step after a resume says so, for the case that we are killed.
            run.resumed = None
            record = Record(
                "running", run.spent, _now_wall(run), run.started_wall, run.asked_budget
            )
            send_of(config)([(RECORD_KEY, record.dump())])

    # START.

    def _write_input(self, run: Run, value: Any, config: RunnableConfig) -> Any:
        """Write a new run's input, and clear what a run that was cut left behind."""
        out = self._plain.invoke(value, config)
        if run.implicit or self.name != START:
            return out
        channels = channels_of(config)
        run.channels = channels
        writes: list[tuple[str, Any]] = leftovers(channels) if run.reset else []
        if run.asked_budget is not None:
            record = Record(
                "running", 0.0, run.started_wall, run.started_wall, run.asked_budget
            )
            writes.append((RECORD_KEY, record.dump()))
        elif channels[RECORD_KEY].is_available():
            writes.append((RECORD_KEY, CLEAR))
        if writes:
            send_of(config)(writes)
        return out


class _Attempt:
    """One attempt after the other, as a Runnable for the engine's retry loop."""

    __slots__ = ("_parts", "_result", "_stream")

    def __init__(self, parts: Parts, result: Result, *, stream: bool = False) -> None:
        self._parts = parts
        self._result = result
        self._stream = stream

    def invoke(self, value: Any, config: RunnableConfig) -> Any:
        return self._parts.invoke(value, config, self._result)

    async def ainvoke(self, value: Any, config: RunnableConfig) -> Any:
        if self._stream:
            return await self._parts.astream(value, config)
        return await self._parts.ainvoke(value, config, self._result)


def run_cut_by_step(failure: DeadlineExceeded, step: Step) -> RunCut:
    """Return the run's error, told as the overrun of the step that caused it."""
    return RunCut(
        cause="step",
        step=step.name,
        budget=step.limit,
        elapsed=(step.ended or _clock.now()) - step.began,
        remaining=failure.remaining,
    )


def _now_wall(run: Run) -> float:
    """Return when this process began to charge the run (epoch seconds)."""
    return _clock.wall() - (_clock.now() - run.started)


# What a step gets instead of the engine's own functions.


def _fenced(run: Run, step: Step, config: RunnableConfig) -> RunnableConfig:
    """Return `config` with every way to write closed from the moment of a cut on."""
    conf = config[CONF]
    send = conf[CONFIG_KEY_SEND]

    def fenced_send(writes: Sequence[tuple[str, Any]]) -> None:
        if step.cause_of_cut() is None:
            send(writes)

    fenced: dict[str, Any] = {**conf, CONFIG_KEY_SEND: fenced_send}
    if (call := conf.get(CONFIG_KEY_CALL)) is not None:
        fenced[CONFIG_KEY_CALL] = functools.partial(_call, call, run, step)
    if (stream := conf.get(CONFIG_KEY_STREAM)) is not None:
        fenced[CONFIG_KEY_STREAM] = _fenced_stream(step, stream)
    if run.custom_stream:
        runtime = conf[CONFIG_KEY_RUNTIME]
        writer = _fenced_writer(step, runtime.stream_writer)
        fenced[CONFIG_KEY_RUNTIME] = runtime.override(stream_writer=writer)
    return {**config, CONF: fenced}  # type: ignore[misc]


def _fenced_stream(step: Step, stream: StreamProtocol) -> StreamProtocol:
    def emit(chunk: Any) -> None:
        if step.cause_of_cut() is None:
            stream(chunk)

    return StreamProtocol(emit, stream.modes)


def _fenced_writer(
    step: Step, writer: Callable[[Any], None]
) -> Callable[[Any], None]:
    def write(chunk: Any) -> None:
        if step.cause_of_cut() is None:
            writer(chunk)

    return write


# Tasks: functions decorated with `@task`, called from an entrypoint or a node.


def _call(
    call: Callable[..., Any],
    run: Run,
    caller: Step,
    func: Callable[..., Any],
    input: Any,
    **options: Any,
) -> Any:
    """Schedule a `@task` function, guarded."""
    if (cause := caller.cause_of_cut()) is not None:
        raise run.error(step=getattr(func, "__name__", None), cause=cause)
    policies = tuple(options.pop("retry_policy", None) or ())
    guarded = _guarded_task(run, caller, func, policies, options.pop("timeout", None))
    options["retry_policy"] = _ONE_ATTEMPT if policies else None
    return call(guarded, input, **options)


def _guarded_task(
    run: Run,
    caller: Step,
    func: Callable[..., Any],
    policies: Sequence[RetryPolicy],
    timeout: Any,
) -> Callable[..., Any]:
    name: str = getattr(func, "__name__", type(func).__name__)
    if isinstance(caller, AsyncStep):

        @functools.wraps(func)
        async def atask(*args: Any, **kwargs: Any) -> Any:
            step = AsyncStep(
                run.scope, name, "task", caller.superstep, run.policy.cancel_grace
            )
            return await _run_task_async(
                run, step, _TaskBody(func, policies, timeout), args, kwargs
            )

        return atask

    @functools.wraps(func)
    def task(*args: Any, **kwargs: Any) -> Any:
        step = SyncStep(
            run.scope, name, "task", caller.superstep, run.policy.cancel_grace
        )
        body = _TaskBody(func, policies, timeout)
        return _run_task_sync(run, step, body, args, kwargs)

    return task


class _TaskBody:
    """A task's function with its retries, as the engine's retry loop calls it."""

    def __init__(
        self, func: Callable[..., Any], policies: Sequence[RetryPolicy], timeout: Any
    ) -> None:
        self._func = func
        self._policies = tuple(policies)
        self._timeout = timeout

    def call(self, args: Any, kwargs: Any) -> Any:
        config = _current_config()
        if not self._policies:
            return self._func(*args, **kwargs)
        return run_with_retry(self._task((args, kwargs), config, None), None)

    async def acall(self, args: Any, kwargs: Any) -> Any:
        config = _current_config()
        if not self._policies and self._timeout is None:
            return await self.ainvoke((args, kwargs), config)
        task = self._task((args, kwargs), config, self._timeout)
        return await arun_with_retry(task, None)

    def _task(self, value: Any, config: RunnableConfig, timeout: Any) -> Any:
        name = getattr(self._func, "__name__", "task")
        return PregelExecutableTask(
            name, value, self, deque(), config, (), self._policies, None,  # type: ignore[arg-type]
            task_id_of(config), (), timeout=timeout,
        )

    def invoke(self, value: Any, config: RunnableConfig) -> Any:
        args, kwargs = value
        with set_config_context(config) as context:
            return context.run(self._func, *args, **kwargs)

    async def ainvoke(self, value: Any, config: RunnableConfig) -> Any:
        args, kwargs = value
        if is_async_callable(self._func):
            return await self._func(*args, **kwargs)
        run = run_here()
        call = functools.partial(self._func, *args, **kwargs)
        return call() if run is None else await in_thread(run, call)


def _current_config() -> RunnableConfig:
    from langgraph.config import get_config  # noqa: PLC0415 - only tasks need it

    return get_config()


def _run_task_sync(
    run: Run, step: SyncStep, body: _TaskBody, args: Any, kwargs: Any
) -> Any:
    try:
        step.cut = run.admit(step)
        if step.cut is None:
            call = functools.partial(body.call, args, kwargs)
            out = run_sync(run, step, call) if run.guarded else call()
            if step.cut is None:
                return out
    finally:
        run.leave(step)
    raise run.error(step=step.name, cause=step.cut)


async def _run_task_async(
    run: Run, step: AsyncStep, body: _TaskBody, args: Any, kwargs: Any
) -> Any:
    try:
        step.cut = run.admit(step)
        if step.cut is None:
            out = await run_async(run, step, body.acall(args, kwargs))
            if step.cut is None:
                return out
    finally:
        run.leave(step)
    raise run.error(step=step.name, cause=step.cut)


__all__ = ("DeadlineNode", "GuardedNode", "RemainingTime", "RemainingTimeManager")
