"""Compiled graphs whose entry points all take, and keep, a deadline."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing as _closing
from datetime import timedelta
from functools import partial
from typing import Any, Generic

from langchain_core.callbacks import BaseCallbackManager, CallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.constants import START
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command
from langgraph.typing import ContextT, InputT, OutputT, StateT

from ._backlog import Backlog
from ._channels import closable
from ._drive import LateItems, drive_astream, drive_async, drive_stream, drive_sync
from ._fallback import Fallback, attach_fallback, draw_fallback
from ._langgraph import (
    CONF,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_STREAM,
    is_task,
    read_channels,
)
from ._run import Run, run_here
from ._scope import Scope, current
from ._views import cache_view, saver_view, store_view
from .callbacks import ATTACHED
from .control import RunControl
from .deadline import WIRE_KEY, Deadline, from_wire, instant_of
from .errors import plain
from .nodes import DeadlineNode
from .policy import DeadlinePolicy, check_names, coerce
from .report import collectors

Budget = float | timedelta | Deadline | DeadlinePolicy


class _Driven:
    """Passed by our `invoke` through the engine's own to our `stream`: go on."""

    def __init__(self, run: Run) -> None:
        self.run = run


class BoundedGraph(Pregel[Any, Any, Any, Any]):
    """What a compiled graph gains: every entry point takes a `deadline`.

    Mixed into the class of the graph, so that it stays what it was.
    """

    deadline_policy: DeadlinePolicy | None
    deadline_fallback: str | None

    def __init__(
        self,
        *,
        deadline_policy: DeadlinePolicy | None = None,
        deadline_fallback: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # `with_config` and `copy` come here with the attributes of the original.
        self.deadline_policy = deadline_policy
        self.deadline_fallback = deadline_fallback
        self.nodes = _guarded(self)
        self.channels = closable(self.channels)

    # Entry points. Those that are not here (batch, abatch, stream_events,
    # astream_events) are LangGraph's and LangChain's and come through these.

    def invoke(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        deadline: Any = None,
        control: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the graph; `deadline` replaces the compiled budget for this run."""
        run = self._begin(input, config, deadline, control)
        if run is None:
            return super().invoke(input, config, control=control, **kwargs)
        call = partial(
            super().invoke,
            input,
            self._with_handler(config, run),
            control=control,
            deadline=_Driven(run),
            **kwargs,
        )
        with _attached(run, control):
            return drive_sync(run, call, partial(self._late, kwargs))

    async def ainvoke(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        deadline: Any = None,
        control: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the graph; `deadline` replaces the compiled budget for this run."""
        run = self._begin(input, config, deadline, control)
        if run is None:
            return await super().ainvoke(input, config, control=control, **kwargs)
        call = partial(
            super().ainvoke,
            input,
            self._with_handler(config, run),
            control=control,
            deadline=_Driven(run),
            **kwargs,
        )
        with _attached(run, control):
            return await drive_async(run, call, partial(self._late, kwargs))

    def stream(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        deadline: Any = None,
        control: Any = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Stream a run; `deadline` replaces the compiled budget for this run.

        The budget counts from the first item that is asked for.
        """
        if isinstance(deadline, _Driven):
            return super().stream(input, config, control=control, **kwargs)
        self._check(config, deadline)
        return self._stream(input, config, deadline, control, kwargs)

    def _stream(
        self,
        input: Any,
        config: RunnableConfig | None,
        deadline: Any,
        control: Any,
        kwargs: dict[str, Any],
    ) -> Iterator[Any]:
        run = self._begin(input, config, deadline, control)
        if run is None:
            yield from super().stream(input, config, control=control, **kwargs)
            return
        run.implicit = False  # a stream needs a context of its own
        _prepare_stream(run, kwargs, config)
        make = partial(
            super().stream,
            input,
            self._with_handler(config, run),
            control=control,
            **kwargs,
        )
        with _attached(run, control):
            yield from drive_stream(run, make, partial(self._late_items, kwargs))

    def astream(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        deadline: Any = None,
        control: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Stream a run; `deadline` replaces the compiled budget for this run.

        The budget counts from the first item that is asked for.
        """
        if isinstance(deadline, _Driven):
            return super().astream(input, config, control=control, **kwargs)
        self._check(config, deadline)
        return self._astream(input, config, deadline, control, kwargs)

    async def _astream(
        self,
        input: Any,
        config: RunnableConfig | None,
        deadline: Any,
        control: Any,
        kwargs: dict[str, Any],
    ) -> AsyncIterator[Any]:
        run = self._begin(input, config, deadline, control)
        if run is None:
            plain_stream: Any = super().astream(
                input, config, control=control, **kwargs
            )
            async with _closing(plain_stream):
                async for item in plain_stream:
                    yield item
            return
        run.implicit = False  # a stream needs a context of its own
        _prepare_stream(run, kwargs, config)
        make = partial(
            super().astream,
            input,
            self._with_handler(config, run),
            control=control,
            **kwargs,
        )
        with _attached(run, control):
            stream: Any = drive_astream(run, make, partial(self._late_items, kwargs))
            async with _closing(stream):
                async for item in stream:
                    yield item

    # The run.

    def _check(self, config: RunnableConfig | None, deadline: Any) -> None:
        """Refuse bad input at the call, not at the first item."""
        self._policy_for(deadline)
        self._wire(config)

    def _policy_for(self, deadline: Any) -> tuple[DeadlinePolicy | None, bool]:
        """Return the policy of one run, and whether its budget is its own."""
        compiled = self.deadline_policy
        if deadline is None:
            return compiled, False
        if isinstance(deadline, Deadline):
            # An instant that has passed is no bad input: it leaves next to nothing.
            left = {"seconds": max(deadline.remaining(), _NOTHING)}
            return (compiled or DeadlinePolicy()).model_copy(update=left), True
        asked = coerce(deadline)
        if asked is None or isinstance(deadline, DeadlinePolicy) or compiled is None:
            if asked is not None:
                _checked(asked, self.deadline_fallback, self, "deadline: ")
            return asked, True
        given = compiled.model_fields_set
        settings: dict[str, Any] = {name: getattr(compiled, name) for name in given}
        settings["seconds"] = asked.seconds
        return DeadlinePolicy(**settings), True

    def _wire(self, config: RunnableConfig | None) -> Deadline | None:
        """Return the deadline that came with the config of a graph that is no node."""
        if is_task(config):
            return None
        confs = [(c or {}).get(CONF) or {} for c in (config, self.config)]
        values = [conf.get(WIRE_KEY) for conf in confs]
        return min((from_wire(v) for v in values if v is not None), default=None)

    def _begin(
        self, input: Any, config: RunnableConfig | None, deadline: Any, control: Any
    ) -> Run | None:
        """Return the new run, `None` where nothing bounds it."""
        policy, own = self._policy_for(deadline)
        wire = self._wire(config)
        parent = current.get()
        stoppable = isinstance(control, RunControl)
        if policy is None and wire is None and not stoppable:
            unbounded = parent is None or (parent.run is None and parent.at == math.inf)
            unseen = not self._may_be_resumed(input) and not collectors()
            if unbounded and unseen:
                return None
            if parent is not None and parent.run is not None:
                return self._begin_nested(parent) if parent.run.guarded else None
        if wire is not None:
            parent = Scope(parent, instant_of(wire))
        policy = policy or DeadlinePolicy()
        run = Run(
            policy,
            parent=parent,
            budget=policy.seconds,
            fallback=self.deadline_fallback
            if policy.on_exceeded in _MAY_FALL_BACK
            else None,
            name=self.get_name(),
            controlled=stoppable,
        )
        run.asked_budget = policy.seconds if own else None
        run.new_input = not _resumes(input, config)
        run.one_superstep = START not in self.nodes
        if parent is not None and parent.run is not None:
            run.custom_stream = parent.run.custom_stream
            run.backlog = parent.run.backlog
        _enter(run, parent)
        return run

    def _may_be_resumed(self, input: Any) -> bool:
        """Return whether a run may go on that had a deadline when it began."""
        return _resumes(input, None) and isinstance(
            self.checkpointer, BaseCheckpointSaver
        )

    def _begin_nested(self, parent: Scope) -> Run:
        """Return the run of a subgraph without a deadline of its own.

        When the step it is in is cut, it ends by itself and hands over what it has.
        """
        run = Run(
            DeadlinePolicy(
                # What has to be resumable must not look finished.
                on_exceeded="raise" if parent.run.mode == "raise" else "return",
                # Inner steps are given up before the step around them is.
                cancel_grace=parent.run.policy.cancel_grace * _INNER_GRACE,
            ),
            parent=parent,
            budget=None,
            name=self.get_name(),
            implicit=True,
            controlled=True,
        )
        run.reset = parent.run.reset
        run.custom_stream = parent.run.custom_stream
        run.backlog = parent.run.backlog
        _enter(run, parent)
        return run

    def _with_handler(
        self, config: RunnableConfig | None, run: Run
    ) -> RunnableConfig | None:
        """Return `config` with our callback handler, first of all handlers."""
        parent = run.scope.parent
        if parent is not None and parent.step is not None:
            return config  # inherited from the graph this one is in
        callbacks: Any = None
        for given in (config, self.config, var_child_runnable_config.get()):
            if given and (callbacks := given.get("callbacks")) is not None:
                break
        # For the graph's own events only; `_sequence` hands it on to what nodes do.
        if isinstance(callbacks, BaseCallbackManager):
            callbacks = callbacks.copy()
            if ATTACHED not in callbacks.handlers:
                callbacks.handlers.insert(0, ATTACHED)
        else:
            listed: list[Any] = list(callbacks or ())
            callbacks = CallbackManager([ATTACHED, *listed], listed)
        return {**(config or {}), "callbacks": callbacks}

    def _late(self, kwargs: Mapping[str, Any], run: Run) -> Any:
        """Return the state that a run reached whose engine cannot end in time."""
        error = run.error()
        answered = run.mode == "return" or (
            run.mode == "fallback"
            and any(s.kind == "fallback" and s.cut is None for s in run.log)
        )
        if not answered or run.channels is None:
            raise plain(error)
        keys = kwargs.get("output_keys") or self.output_channels
        return read_channels(run.channels, keys)

    def _late_items(self, kwargs: Mapping[str, Any], run: Run) -> LateItems:
        """Return how a stream ends whose engine cannot end in time."""
        state = self._late(kwargs, run)
        modes = kwargs.get("stream_mode") or self.stream_mode
        if modes == "values":
            part: Any = state
        elif not isinstance(modes, str) and "values" in modes:
            part = ("values", state)
        else:
            return LateItems(())
        if kwargs.get("version") == "v2":
            return LateItems([{"type": "values", "ns": (), "data": state}])
        if kwargs.get("subgraphs"):
            part = ((), *part) if isinstance(part, tuple) else ((), part)
        return LateItems([part])

    def _defaults(self, config: RunnableConfig, **kwargs: Any) -> Any:
        """Have a bounded run's engine use views that stragglers cannot write to."""
        modes, keys, before, after, saver, store, cache, durability = super()._defaults(
            config, **kwargs
        )
        run = run_here()
        if run is not None and (run.guarded or not (run.implicit or run.new_input)):
            if run.saver is None and not isinstance(saver, bool):
                run.saver = saver
            saver, store, cache = (
                saver_view(saver),
                store_view(store),
                cache_view(cache),
            )
        return modes, keys, before, after, saver, store, cache, durability

    # Drawing.

    def get_graph(
        self, config: RunnableConfig | None = None, *, xray: int | bool = False
    ) -> Any:
        """Return the drawable graph, with the fallback and where it leads."""
        graph = super().get_graph(config, xray=xray)
        if self.deadline_fallback is not None:
            draw_fallback(graph, self, self.deadline_fallback)
        return graph

    async def aget_graph(
        self, config: RunnableConfig | None = None, *, xray: int | bool = False
    ) -> Any:
        """Return the drawable graph, with the fallback and where it leads."""
        graph = await super().aget_graph(config, xray=xray)
        if self.deadline_fallback is not None:
            draw_fallback(graph, self, self.deadline_fallback)
        return graph


_NOTHING = 1e-9  # seconds
_INNER_GRACE = 0.8
_MAY_FALL_BACK = (None, "fallback")


# Helpers of the entry points.


def _resumes(input: Any, config: RunnableConfig | None) -> bool:
    if input is None or isinstance(input, Command):
        return True
    # A subgraph that is resumed gets its ordinary input once more.
    return is_task(config) and bool((config or {})[CONF].get(CONFIG_KEY_RESUMING))


def _prepare_stream(
    run: Run, kwargs: Mapping[str, Any], config: RunnableConfig | None
) -> None:
    """Have a stream's chunks fenced where nodes write them, and bound their number."""
    modes = kwargs.get("stream_mode") or ()
    listed = (modes,) if isinstance(modes, str) else tuple(modes)
    nested = CONFIG_KEY_STREAM in ((config or {}).get(CONF) or {})
    run.custom_stream = run.custom_stream or nested or "custom" in listed
    if "custom" in listed or "messages" in listed:
        run.backlog = Backlog(tokens="messages" in listed)


def _enter(run: Run, parent: Scope | None) -> None:
    """Make `run` known to the step it is in, and cut with it."""
    step = parent.step if parent is not None else None
    if step is not None:
        step.entered(run)
    if parent is not None and (cause := parent.cause_of_cut()) is not None:
        run.cut(cause)


class _attached:  # noqa: N801 - a context manager, used as one
    """Have a run stopped by its control and by the step it is in, until it ends."""

    def __init__(self, run: Run, control: Any) -> None:
        self._run = run
        self._control = control if isinstance(control, RunControl) else None
        parent = run.scope.parent
        self._step = parent.step if parent is not None else None

    def __enter__(self) -> None:
        if self._control is not None:
            self._control.attach(self._run)

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._control.release(self._run)
        if self._step is not None:
            self._step.left(self._run)


def bounded(
    graph: Any, policy: DeadlinePolicy | None = None, fallback: Fallback | None = None
) -> Any:
    """Return a bounded copy of a compiled graph; the original stays as it was."""
    cls = _bounded_class(type(graph))
    copied = object.__new__(cls)
    copied.__dict__.update(graph.__dict__)
    copied.nodes = dict(graph.nodes)
    copied.channels = dict(graph.channels)
    if graph.stream_channels is None:
        copied.stream_channels = graph.stream_channels_list
    name = None
    if isinstance(graph, BoundedGraph):  # what is not given anew stays
        policy, name = policy or graph.deadline_policy, graph.deadline_fallback
    if fallback is not None:
        name = attach_fallback(copied, fallback)
    copied.deadline_fallback = name
    copied.deadline_policy = None
    copied.nodes = _guarded(copied)
    copied.channels = closable(copied.channels)
    copied.deadline_policy = _checked(policy, name, copied)
    return copied.validate()


def adopt(thing: Any) -> Any:
    """Return a node's subgraph so that it can be cut and hand over what it has."""
    if isinstance(thing, Pregel) and not isinstance(thing, BoundedGraph):
        return bounded(thing)
    return thing


def _checked(
    policy: DeadlinePolicy | None, fallback: str | None, graph: Any, argument: str = ""
) -> DeadlinePolicy | None:
    if policy is None:
        return None
    if policy.on_exceeded == "fallback" and fallback is None:
        msg = f"{argument}on_exceeded='fallback' needs a fallback: compile with one"
        raise ValueError(msg)
    known = (name for name in graph.nodes if name != START)
    check_names(policy.steps, known, f"{argument}steps")
    return policy


def _guarded(graph: Any) -> dict[str, Any]:
    retries = tuple(graph.retry_policy or ())
    return {
        name: DeadlineNode.guard(name, node, retries, adopt)
        for name, node in graph.nodes.items()
    }


class BoundedStateGraph(
    BoundedGraph,
    CompiledStateGraph[StateT, ContextT, InputT, OutputT],
    Generic[StateT, ContextT, InputT, OutputT],
):
    """A compiled `StateGraph` whose entry points take a `deadline`."""


def _named_like(cls: type[Any], original: type[Any]) -> type[Any]:
    """Give `cls` the name that people, drawings and serializers know."""
    cls.__name__, cls.__qualname__ = original.__name__, original.__qualname__
    cls.__module__ = original.__module__
    return cls


_classes: dict[type[Any], type[Any]] = {
    Pregel: _named_like(BoundedGraph, Pregel),
    CompiledStateGraph: _named_like(BoundedStateGraph, CompiledStateGraph),
}


def _bounded_class(cls: type[Any]) -> type[Any]:
    """Return the class of bounded graphs of class `cls`, a subclass of it."""
    if issubclass(cls, BoundedGraph):
        return cls
    found = _classes.get(cls)
    if found is None:
        found = type(cls.__name__, (BoundedGraph, cls), {})
        _classes[cls] = _named_like(found, cls)
    return found
