"""Nodes of a bounded graph."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.constants import START
from langgraph.errors import GraphInterrupt
from langgraph.types import RetryPolicy, Send

from ._admission import admit
from ._channels import CLEAR, CUT, UNKNOWN, close, leftovers, reopen, state_writes
from ._cut import AsyncStep, Step, SyncStep
from ._fence import copied, fenced, unfenced
from ._guard import run_async, run_sync
from ._langgraph import (
    MISSING,
    TASKS,
    ChannelWrite,
    ManagedValue,
    PregelExecutableTask,
    PregelNode,
    arun_with_retry,
    as_runnable,
    attempt_of,
    channels_of,
    read_channels,
    route_channel,
    run_with_retry,
    superstep_of,
    task_id_of,
    writes_of,
)
from ._notes import cut_record, running_record, unknown_calls
from ._open_calls import answers
from ._record import RECORD_KEY
from ._run import Run, run_here
from ._scope import remaining
from ._sequence import Parts, Result, async_parts_of, instead_of, parts_of
from ._tasks import ONE_ATTEMPT
from ._verdict import (
    Verdict,
    caught,
    check_retry,
    decide,
    end_of,
    failed,
    failure_of,
)
from .errors import DeadlineExceeded, plain
from .policy import StepBudget

_NO_LIMIT = StepBudget()


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
        policies = tuple(node.retry_policy or retries)
        guarded.__dict__["node"] = GuardedNode(name, guarded, policies, adopt)
        if policies:
            guarded.retry_policy = ONE_ATTEMPT
            guarded.timeout = None
        return guarded

    def plain(self) -> PregelNode:
        """Return the node unguarded."""
        node = PregelNode.__new__(PregelNode)
        node.__dict__.update(self.__dict__)
        node.__dict__.pop("node", None)
        return node

    def copy(self, update: dict[str, Any]) -> PregelNode:
        """Return an unguarded copy (LangGraph draws graphs with them)."""
        return self.plain().copy(update)


class GuardedNode(Runnable[Any, Any]):
    """What the engine runs for a node: body and writers, under the run's deadline."""

    def __init__(
        self,
        name: str,
        node: DeadlineNode,
        retries: Sequence[RetryPolicy],
        adopt: Callable[[Any], Any],
    ) -> None:
        self.name: str = name  # pyright: ignore[reportIncompatibleVariableOverride]
        self._node = node
        self._retries = tuple(retries)
        self._timeout = node.timeout
        self._adopt = adopt

    # The parts are made when first needed: edges are attached after the nodes.

    @functools.cached_property
    def _plain(self) -> Runnable[Any, Any]:
        return self._node.plain().node or as_runnable(lambda value: value, self.name)

    @functools.cached_property
    def _parts(self) -> Parts:
        return parts_of(self._plain, self._node, self._adopt)

    @functools.cached_property
    def _async_parts(self) -> Parts:
        return async_parts_of(self._plain, self._node, self._adopt)

    @functools.cached_property
    def _only_writes(self) -> bool:
        """Whether nothing but the engine's own code is run (START with no branch)."""
        return isinstance(self._plain, ChannelWrite)

    def _otherwise(self, budget: StepBudget, *, unblocked: bool) -> Parts:
        value = budget.otherwise
        body = (
            value if isinstance(value, Runnable) or callable(value) else lambda _: value
        )
        runnable = as_runnable(body, self.name)
        return instead_of(self._plain, self._node, runnable, unblocked=unblocked)

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
    ) -> AsyncIterator[Any]:
        """Run the node as `ainvoke` does, with the events of its parts streamed."""
        run = run_here()
        if config is None or run is None:
            async for item in self._plain.astream(input, config):
                yield item
        elif self._only_writes:
            self._write_input(run, input, config)
        else:
            await self._run_async(run, input, config, stream=True)

    # Retries: the engine's own loop, but inside the guard.

    def _attempts(self, proc: Any, value: Any, config: RunnableConfig | None) -> Any:
        if not self._retries or config is None:
            return proc.invoke(value, config)
        return run_with_retry(self._task(proc, value, config, None), None)

    async def _aattempts(
        self, proc: Any, value: Any, config: RunnableConfig | None
    ) -> Any:
        if not self._retries or config is None:
            return await proc.ainvoke(value, config)
        task = self._task(proc, value, config, self._timeout)
        return await arun_with_retry(task, None)

    def _task(
        self, proc: Any, value: Any, config: RunnableConfig, timeout: Any
    ) -> PregelExecutableTask:
        """Return the task as the engine's retry loop wants it."""
        return PregelExecutableTask(
            self.name,
            value,
            proc,
            deque(),  # cleared before an attempt; `_Attempt` clears the real ones
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

    def _run_sync(self, run: Run, value: Any, config: RunnableConfig) -> Any:
        budget = run.policy.steps.get(self.name, _NO_LIMIT)
        step = self._open(run, budget, config, SyncStep)
        result = Result(step)
        spare = copied(config) if budget.has_otherwise else config
        safe = fenced(run, step, config)
        if self._retries:
            attempt = _Attempt(self._parts, result, config, self._retries)
            body = functools.partial(self._attempts, attempt, value, safe)
        else:
            body = functools.partial(self._parts.invoke, value, safe, result)
        verdict, out = self._once(run, step, budget, body)
        if verdict == "otherwise":
            step = self._open_instead(run, config, SyncStep)
            result = Result(step)
            body = functools.partial(
                self._otherwise(budget, unblocked=False).invoke,
                value,
                fenced(run, step, spare),
                result,
            )
            verdict, out = self._once(run, step, _NO_LIMIT, body)
        if verdict is None:
            self._done(run, step, config)
            return out
        return self._stopped(run, step, verdict, result, value, config, out)

    def _once(
        self, run: Run, step: SyncStep, budget: StepBudget, body: Callable[[], Any]
    ) -> tuple[Verdict | None, Any]:
        """Run `body` unless the step was refused; return what follows if it was cut.

        Returns:
            `None` and the body's result, or a verdict and the body's own error, if any.
        """
        error: DeadlineExceeded | None = None
        try:
            if step.cut is None:
                watched = run.guarded or step.binding is step
                out = run_sync(run, step, body) if watched else body()
                if step.cut is None:
                    return None, out
        except GraphInterrupt:
            run.interrupted = True
            raise
        except DeadlineExceeded as exceeded:
            error = caught(run, step, exceeded)
        except Exception as failure:
            failed(step, failure)
            raise
        finally:
            run.leave(step)
        handled = self._node.error_handler_node is not None
        return decide(run, step, budget, error, handled=handled), error

    async def _run_async(
        self, run: Run, value: Any, config: RunnableConfig, *, stream: bool
    ) -> Any:
        budget = run.policy.steps.get(self.name, _NO_LIMIT)
        step = self._open(run, budget, config, AsyncStep)
        result = Result(step)
        parts = self._async_parts
        spare = copied(config) if budget.has_otherwise else config
        safe = fenced(run, step, config)
        if self._retries or stream:
            attempt = _Attempt(parts, result, config, self._retries, stream=stream)
            body = functools.partial(self._aattempts, attempt, value, safe)
        else:
            body = functools.partial(parts.ainvoke, value, safe, result)
        verdict, out = await self._aonce(run, step, budget, body)
        if verdict == "otherwise":
            step = self._open_instead(run, config, AsyncStep)
            result = Result(step)
            body = functools.partial(
                self._otherwise(budget, unblocked=True).ainvoke,
                value,
                fenced(run, step, spare),
                result,
            )
            verdict, out = await self._aonce(run, step, _NO_LIMIT, body)
        if verdict is None:
            self._done(run, step, config)
            return out
        return self._stopped(run, step, verdict, result, value, config, out)

    async def _aonce(
        self, run: Run, step: AsyncStep, budget: StepBudget, body: Callable[[], Any]
    ) -> tuple[Verdict | None, Any]:
        """As `_once`."""
        error: DeadlineExceeded | None = None
        try:
            if step.cut is None:
                out = await run_async(run, step, body())
                if step.cut is None:
                    return None, out
        except GraphInterrupt:
            run.interrupted = True
            raise
        except DeadlineExceeded as exceeded:
            error = caught(run, step, exceeded)
        except Exception as failure:
            failed(step, failure)
            raise
        finally:
            run.leave(step)
        handled = self._node.error_handler_node is not None
        return decide(run, step, budget, error, handled=handled), error

    def _open(
        self, run: Run, budget: StepBudget, config: RunnableConfig, kind: type[Any]
    ) -> Any:
        """Return the step of this execution, admitted or refused."""
        step = kind(run.scope, self.name, "node", superstep_of(config), run.grace)
        if run.policy.enforce:
            step.tighten(budget.seconds)
        else:
            step.limit = budget.seconds
        if run.channels is None:
            run.channels = channels_of(config)
        step.cut = admit(run, step, budget.needs)
        if step.kind == "fallback":
            reopen(run.channels)
        return step

    def _open_instead(self, run: Run, config: RunnableConfig, kind: type[Any]) -> Any:
        """Return the step that uses `otherwise` in place of one that was cut."""
        writes_of(config).clear()
        superstep = superstep_of(config)
        step = kind(run.scope, self.name, "otherwise", superstep, run.grace)
        step.cut = admit(run, step)
        return step

    # The end of a step.

    def _done(self, run: Run, step: Step, config: RunnableConfig) -> None:
        """Finish a step that ended by itself."""
        if step.kind == "fallback" and step.superstep == run.cut_superstep:
            # It was at work when the cut came: only its own edges fire.
            close(channels_of(config), {name for name, _ in writes_of(config)})
        if step.kind == "otherwise":
            writes_of(config).extend(
                [(RECORD_KEY, CUT)]
            )  # no result of the node: not to be cached
        if run.saved.new_input and START in self._node.triggers:
            self._write_beginning(run, config)
        elif (
            run.saved.record is not None
            and run.saved.record.resumable
            and not run.implicit
        ):
            # The first step after a resume says so, for the case that we are killed.
            run.saved.record = None
            writes_of(config).extend([(RECORD_KEY, running_record(run).dump())])

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
        with step.writing:  # a straggler that is just writing finishes, then never more
            writes_of(config).clear()
        if verdict == "fail":
            error = error or failure_of(run, step)
            raise error if run.implicit else plain(error)
        if verdict == "raise":
            raise end_of(run, step)
        kept = value if self.name == START else result.kept()
        if kept is MISSING:
            kept = self._instead(step, value, result)
        if kept is not MISSING:
            self._keep(kept, config)
        writes: list[tuple[str, Any]] = [(RECORD_KEY, CUT)]
        if run.claim():
            writes.extend(self._way_on(run, verdict, value, config))
        elif run.unknown and not run.implicit:
            writes.append((RECORD_KEY, {UNKNOWN: unknown_calls(run)}))
        writes_of(config).extend(writes)
        return None if kept is MISSING else kept

    def _instead(self, step: Step, value: Any, result: Result) -> Any:
        """Return what is written for a body that a cut left without a result.

        Tool calls get an answer. A subgraph whose engine could not end, in a
        checkpointer for instance, has its state all the same.
        """
        parts: Parts = self.__dict__.get("_async_parts") or self._parts
        if parts.answers is not None:
            return parts.answers(value, started=result.began)
        channels, step.reached = step.reached or _stuck_inside(step), None
        if parts.output is None or channels is None:
            return MISSING
        return read_channels(channels, parts.output)

    def _keep(self, value: Any, config: RunnableConfig) -> None:
        """Write the state update of a body that finished, and none of its edges."""
        writers = self._node.flat_writers
        if writers and isinstance(writers[0], ChannelWrite):
            writes = writes_of(config)
            writers[0].invoke(value, unfenced(config))
            kept = state_writes(writes)
            writes.clear()
            writes.extend(kept)

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
            route: tuple[str, Any] = (route_channel(run.fallback), None)
            if route[0] not in channels:
                # A functional graph: its fallback gets what the entrypoint got.
                route = (TASKS, Send(run.fallback, value))
            keep.add(route[0])
            writes.append(route)
        close(channels, keep)
        return writes

    # START.

    def _write_input(self, run: Run, value: Any, config: RunnableConfig) -> Any:
        """Write a new run's input, and clear what a run that was cut left behind."""
        out = self._plain.invoke(value, config)
        if self.name == START:
            self._write_beginning(run, config)
        return out

    def _write_beginning(self, run: Run, config: RunnableConfig) -> None:
        """Write a new run's record, if it needs one, and clear what was left behind."""
        channels = run.channels = channels_of(config)
        writes = leftovers(channels) if run.saved.reset else []
        if run.saved.reset:
            writes_of(config).extendleft(reversed(answers(channels)))
        if run.implicit:
            pass  # the run around it has the record
        elif run.asked_budget is not None:
            writes.append((RECORD_KEY, running_record(run).dump()))
        elif channels[RECORD_KEY].is_available():
            writes.append((RECORD_KEY, CLEAR))
        if writes:
            writes_of(config).extend(writes)


def _stuck_inside(step: Step) -> Any:
    """Return the channels of the run that a step still waited for when given up."""
    runs = [run for run in step.nested if isinstance(run, Run)]
    return runs[0].channels if len(runs) == 1 and not runs[0].active else None


class _Attempt:
    """A node's parts as a Runnable for the engine's retry loop."""

    __slots__ = ("_parts", "_result", "_retries", "_stream", "_writes")

    def __init__(
        self,
        parts: Parts,
        result: Result,
        config: RunnableConfig,
        retries: Sequence[RetryPolicy],
        *,
        stream: bool = False,
    ) -> None:
        self._parts = parts
        self._result = result
        self._writes = writes_of(config)
        self._retries = retries
        self._stream = stream

    def invoke(self, value: Any, config: RunnableConfig) -> Any:
        self._begin()
        try:
            return self._parts.invoke(value, config, self._result)
        except Exception as error:
            self._failed(error, config)
            raise

    async def ainvoke(self, value: Any, config: RunnableConfig) -> Any:
        self._begin()
        try:
            if self._stream:
                return await self._parts.astream(value, config)
            return await self._parts.ainvoke(value, config, self._result)
        except Exception as error:
            self._failed(error, config)
            raise

    def _begin(self) -> None:
        self._result.start()
        self._result.step.counts = None
        self._result.step.attempts += 1
        self._writes.clear()

    def _failed(self, error: Exception, config: RunnableConfig) -> None:
        if self._retries:
            step = self._result.step
            check_retry(step.run, step, self._retries, error, attempt_of(config))
