"""Compiled graphs whose entry points all take, and keep, a deadline."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing as _closing
from datetime import timedelta
from functools import partial
from typing import Any, Generic

from langchain_core.runnables import RunnableConfig, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langgraph.constants import START
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from langgraph.typing import ContextT, InputT, OutputT, StateT

from ._begin import (
    attached,
    begin,
    checked,
    policy_for,
    prepare_stream,
    wire_of,
    with_graph_handler,
)
from ._channels import closable, leads_on
from ._drive import LateItems, drive_astream, drive_async, drive_stream, drive_sync
from ._ending import LastRun
from ._fallback import Fallback, attach_fallback, draw_fallback
from ._handing_up import handing_up
from ._langgraph import (
    read_channels,
)
from ._run import Run, run_here
from ._subagents import adopted_function, adopted_tool
from ._tool_node import bounded_tool_node
from ._views import cache_view, saver_view, store_view
from .deadline import Deadline
from .errors import plain
from .events import Observer
from .nodes import DeadlineNode
from .policy import DeadlinePolicy
from .report import RunReport

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
    deadline_observers: tuple[Observer, ...]
    deadline_last: LastRun

    def __init__(
        self,
        *,
        deadline_policy: DeadlinePolicy | None = None,
        deadline_fallback: str | None = None,
        deadline_observers: tuple[Observer, ...] = (),
        deadline_last: LastRun | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # `with_config` and `copy` come here with the attributes of the original.
        self.deadline_policy = deadline_policy
        self.deadline_fallback = deadline_fallback
        self.deadline_observers = deadline_observers
        self.deadline_last = deadline_last or LastRun()
        self.nodes = _guarded(self)
        self.channels = closable(self.channels)

    @property
    def last_report(self) -> RunReport | None:
        """The report of this graph's run that ended last, `None` before the first one.

        A convenience for one run at a time. Of runs at the same time it is any one's
        that ended: `collect_runs()` keeps them apart.
        """
        ending = self.deadline_last.ending
        return ending.report() if ending is not None else None

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
        run = begin(self, input, config, deadline, control)
        if run is None:
            return super().invoke(input, config, control=control, **kwargs)
        call = partial(
            super().invoke,
            input,
            with_graph_handler(self, config, run),
            control=control,
            deadline=_Driven(run),
            **kwargs,
        )
        with attached(run, control):
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
        run = begin(self, input, config, deadline, control)
        if run is None:
            return await super().ainvoke(input, config, control=control, **kwargs)
        call = partial(
            super().ainvoke,
            input,
            with_graph_handler(self, config, run),
            control=control,
            deadline=_Driven(run),
            **kwargs,
        )
        with attached(run, control):
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
        run = begin(self, input, config, deadline, control)
        if run is None:
            yield from super().stream(input, config, control=control, **kwargs)
            return
        run.implicit = False  # a stream needs a context of its own
        prepare_stream(run, kwargs, config)
        make = partial(
            super().stream,
            input,
            with_graph_handler(self, config, run),
            control=control,
            **kwargs,
        )
        with attached(run, control):
            late = partial(self._late_items, kwargs)
            yield from drive_stream(run, make, late, partial(self._item, kwargs))

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
        run = begin(self, input, config, deadline, control)
        if run is None:
            plain_stream: Any = super().astream(
                input, config, control=control, **kwargs
            )
            async with _closing(plain_stream):
                async for item in plain_stream:
                    yield item
            return
        run.implicit = False  # a stream needs a context of its own
        prepare_stream(run, kwargs, config)
        make = partial(
            super().astream,
            input,
            with_graph_handler(self, config, run),
            control=control,
            **kwargs,
        )
        with attached(run, control):
            late = partial(self._late_items, kwargs)
            as_item = partial(self._item, kwargs)
            stream: Any = drive_astream(run, make, late, as_item)
            async with _closing(stream):
                async for item in stream:
                    yield item

    # The run.

    def _check(self, config: RunnableConfig | None, deadline: Any) -> None:
        """Refuse bad input at the call, not at the first item."""
        policy_for(self, deadline)
        wire_of(self, config)

    def _late(self, kwargs: Mapping[str, Any], run: Run) -> Any:
        """Return the state that a run reached whose engine cannot end in time."""
        error = run.error()
        if run.channels is None or not self._has_answer(run):
            raise plain(error)
        keys = kwargs.get("output_keys") or self.output_channels
        return read_channels(run.channels, keys)

    def _has_answer(self, run: Run) -> bool:
        """Return whether the state is to be returned though it may not be saved."""
        if run.mode != "fallback" or run.answered:
            return run.mode != "raise"
        # Nothing was left to be done when its checkpointer did not come back.
        started = START in self.nodes and not (run.active or run.interrupted)
        return started and not leads_on(run.channels)

    def _late_items(self, kwargs: Mapping[str, Any], run: Run) -> LateItems:
        """Return how a stream ends whose engine cannot end in time."""
        state = self._late(kwargs, run)
        modes = kwargs.get("stream_mode") or self.stream_mode
        shown = modes == "values" or (not isinstance(modes, str) and "values" in modes)
        return LateItems([self._item(kwargs, "values", state)] if shown else ())

    def _item(self, kwargs: Mapping[str, Any], mode: str, data: Any) -> Any:
        """Return what the stream that was asked for yields for `data`."""
        if kwargs.get("version") == "v2":
            return {"type": mode, "ns": (), "data": data}
        modes = kwargs.get("stream_mode") or self.stream_mode
        part = (data,) if isinstance(modes, str) else (mode, data)
        if kwargs.get("subgraphs"):
            return ((), *part)
        return part[0] if len(part) == 1 else part

    def _defaults(self, config: RunnableConfig, **kwargs: Any) -> Any:
        """Have a bounded run's engine use views that stragglers cannot write to."""
        modes, keys, before, after, saver, store, cache, durability = super()._defaults(
            config, **kwargs
        )
        run = run_here()
        if run is not None and (
            run.guarded or not (run.implicit or run.saved.new_input)
        ):
            if run.saved.saver is None and not isinstance(saver, bool):
                run.saved.saver = saver
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


def bounded(
    graph: Any,
    policy: DeadlinePolicy | None = None,
    fallback: Fallback | None = None,
    observers: tuple[Observer, ...] = (),
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
    copied.deadline_observers = (*getattr(graph, "deadline_observers", ()), *observers)
    copied.deadline_last = LastRun()
    copied.nodes = _guarded(copied)
    copied.channels = closable(copied.channels)
    copied.deadline_policy = checked(policy, name, copied)
    return copied.validate()


def adopt(thing: Any) -> Any:
    """Return a node's body so that what it calls can be cut, and hand over what it has.

    A graph or tool node that is the body, or its end, gives the node its state as it
    is. What is called before, or by a function, is looked at by the user's own code.
    """
    if isinstance(thing, BoundedGraph):
        return thing
    if isinstance(thing, Pregel):
        return bounded(thing)
    if isinstance(thing, ToolNode):
        return bounded_tool_node(thing, _adopt_inside)
    if isinstance(thing, RunnableBindingBase):
        bound = adopt(thing.bound)
        return thing if bound is thing.bound else _like(thing, bound=bound)
    if isinstance(thing, RunnableSequence):
        *first, last = thing.steps
        steps = [*(adopted_function(step, _adopt_in_node) for step in first)]
        steps.append(adopt(last))
        if all(map(operator.is_, steps, thing.steps)):
            return thing
        return _like(thing, first=steps[0], middle=steps[1:-1], last=steps[-1])
    return adopted_function(thing, _adopt_in_node)


def _like(runnable: Any, **parts: Any) -> Any:
    """Return a copy of a composed Runnable with other parts."""
    return runnable.model_copy(update=parts)


def _adopt_inside(tool: Any) -> Any:
    """Return a tool so that the agents it calls can be cut."""
    return adopted_tool(tool, _adopt_called)


def _adopt_called(thing: Any) -> Any:
    """Return a graph that a tool calls."""
    return handing_up(bounded(thing)) if isinstance(thing, Pregel) else thing


def _adopt_in_node(thing: Any) -> Any:
    """Return a graph that a node's function calls.

    The function does with an agent's messages what a tool does, most often: it takes
    the last one for the answer. Without a word of its own, an agent that was cut would
    answer with the question, or with some of the answers to its own calls.
    """
    return thing if isinstance(thing, BoundedGraph) else _adopt_called(thing)


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
