"""`StateGraph`, and `with_deadline` for what exists already."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableWithFallbacks,
)
from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph as LangGraphStateGraph
from langgraph.pregel import Pregel
from langgraph.typing import ContextT, InputT, OutputT, StateT

from ._bounded import BoundedStateGraph, Budget, bounded
from ._calls import CallLimit
from ._fallback import Fallback, fallback_name, with_node
from ._runnables import bounded_function, bounded_runnable
from ._tool_call import OnCut
from .deadline import shown
from .events import Observer, checked
from .models import bounded_model
from .policy import coerce
from .tools import bounded_tool, options_of

G = TypeVar("G", bound=Pregel[Any, Any, Any, Any])
T = TypeVar("T", bound=BaseTool)
M = TypeVar("M", bound=BaseChatModel)
R = TypeVar("R", bound=Runnable[Any, Any])
F = TypeVar("F", bound=Callable[..., Any])
Seconds = float | timedelta


class StateGraph(LangGraphStateGraph[StateT, ContextT, InputT, OutputT]):
    """LangGraph's `StateGraph`, whose compiled graphs can have a deadline."""

    def compile(
        self,
        checkpointer: Any = None,
        *,
        deadline: Budget | None = None,
        fallback: Fallback | None = None,
        observers: Sequence[Observer] = (),
        **kwargs: Any,
    ) -> BoundedStateGraph[StateT, ContextT, InputT, OutputT]:
        """Compile the graph, with a budget for each of its runs.

        Args:
            checkpointer: As in LangGraph, and so are all arguments that are not here.
            deadline: Seconds (a number or `timedelta`) or a `DeadlinePolicy`; `None`
                for none, then each call may have its own.
            fallback: What answers when time is up: a node's name, or a callable or
                Runnable, which becomes a node.
            observers: Who is told what happens in its runs: callables that get an
                event (see `langgraph_deadline.events`).
            **kwargs: LangGraph's other arguments.

        Raises:
            ValueError: If `deadline` or `fallback` cannot be used; names the argument.
            TypeError: If an observer cannot be called.
        """
        policy = coerce(deadline)
        told = checked(observers)
        builder: Any = self
        if fallback is not None:
            name = fallback_name(fallback, self.nodes)
            if not isinstance(fallback, str):
                builder = with_node(self, name, fallback)
            fallback = name
        compiled = LangGraphStateGraph.compile(builder, checkpointer, **kwargs)
        graph: BoundedStateGraph[StateT, ContextT, InputT, OutputT]
        graph = bounded(compiled, policy, fallback, told)
        return graph


# One verb for everything. Special kinds come first: graphs and tools are Runnables.


@overload
def with_deadline(
    x: G,
    deadline: Budget | None = None,
    *,
    fallback: Fallback | None = None,
    observers: Sequence[Observer] = (),
) -> G: ...


@overload
def with_deadline(
    x: T,
    seconds: Seconds | None = None,
    *,
    needs: Seconds = 0.0,
    on_exceeded: Literal["message", "raise"] = "message",
    on_cut: OnCut | None = None,
    isolation: Literal["process"] | None = None,
) -> T: ...


@overload
def with_deadline(
    x: Sequence[T],
    seconds: Seconds | None = None,
    *,
    needs: Seconds = 0.0,
    on_exceeded: Literal["message", "raise"] = "message",
    on_cut: OnCut | None = None,
    isolation: Literal["process"] | None = None,
) -> list[T]: ...


@overload
def with_deadline(
    x: M,
    seconds: Seconds | None = None,
    *,
    needs: Seconds = 0.0,
    on_exceeded: Literal["raise", "partial"] = "raise",
    tokens_per_second: float | None = None,
    time_to_first_token: float | None = None,
) -> M: ...


@overload
def with_deadline(
    x: R, seconds: Seconds | None = None, *, needs: Seconds = 0.0
) -> R: ...


@overload
def with_deadline(
    x: F, seconds: Seconds | None = None, *, needs: Seconds = 0.0
) -> F: ...


def with_deadline(x: Any, *args: Any, **options: Any) -> Any:
    """Return a copy of what exists already, with a deadline.

    Args:
        x: A compiled graph (a `StateGraph`'s, an agent, a functional entrypoint), a
            tool or a list of tools, a chat model, any other Runnable, or a function.
        *args: `deadline` of a graph, as in `StateGraph.compile`; `seconds` of anything
            else: the most that one call may take, if less is not left anyway.
        **options: Of a graph `fallback` and `observers`, as in `StateGraph.compile`. Of
            anything else
            `needs`: the seconds without which a call is not started. Of a tool
            `on_exceeded` (answer with a `"message"` to the model, or `"raise"`),
            `on_cut` (a compensation, called with the tool call) and
            `isolation="process"`. Of a model `on_exceeded` (`"raise"`, or return what
            was received: `"partial"`), `tokens_per_second` and `time_to_first_token`.

    Raises:
        TypeError: If `x` is nothing that can be bounded (names its type), or takes no
            such option.
        ValueError: If an option cannot be used; names it.
    """
    kind, bound = _kind_of(x)
    try:
        inspect.signature(bound).bind(x, *args, **options)
    except TypeError as error:
        msg = f"with_deadline() of {kind} ({type(x).__name__}): {error}"
        raise TypeError(msg) from None
    return bound(x, *args, **options)


def _kind_of(x: Any) -> tuple[str, Callable[..., Any]]:
    if isinstance(x, Pregel):
        return "a graph", _graph
    if isinstance(x, BaseTool):
        return "a tool", _tool
    if isinstance(x, BaseChatModel):
        return "a chat model", bounded_model
    if isinstance(x, RunnableBinding) and isinstance(x.bound, BaseChatModel):
        return "a chat model", _bound_model
    if isinstance(x, Runnable):
        return "a Runnable", _runnable
    if isinstance(x, (list, tuple)):
        return "a list of tools", _tools
    if callable(x):
        return "a function", _function
    msg = (
        "with_deadline() takes a compiled graph, a tool or a list of tools, a chat "
        f"model, a Runnable or a function, got {shown(x)}"
    )
    raise TypeError(msg)


def _graph(
    x: Any,
    deadline: Budget | None = None,
    *,
    fallback: Fallback | None = None,
    observers: Sequence[Observer] = (),
) -> Any:
    return bounded(x, coerce(deadline), fallback, checked(observers))


def _tool(
    x: Any,
    seconds: Any = None,
    *,
    needs: Any = 0.0,
    on_exceeded: Any = "message",
    on_cut: Any = None,
    isolation: Any = None,
) -> Any:
    options = options_of(
        x,
        seconds,
        needs=needs,
        on_exceeded=on_exceeded,
        on_cut=on_cut,
        isolation=isolation,
    )
    return bounded_tool(x, options)


@functools.wraps(_tool)
def _tools(x: Any, seconds: Any = None, **options: Any) -> list[Any]:
    for at, tool in enumerate(x):
        if not isinstance(tool, BaseTool):
            msg = f"with_deadline() takes a list of tools; [{at}] is {shown(tool)}"
            raise TypeError(msg)
    return [_tool(tool, seconds, **options) for tool in x]


@functools.wraps(bounded_model)
def _bound_model(x: Any, *args: Any, **options: Any) -> Any:
    return x.model_copy(update={"bound": bounded_model(x.bound, *args, **options)})


def _runnable(x: Any, seconds: Any = None, *, needs: Any = 0.0) -> Any:
    if isinstance(x, RunnableWithFallbacks):
        # Each model of the list is streamed, and the next one is tried if it fits.
        models = {
            "runnable": _as_model(x.runnable),
            "fallbacks": [_as_model(each) for each in x.fallbacks],
        }
        x = x.model_copy(update=models)
    return bounded_runnable(x, CallLimit.checked(seconds, needs))


def _as_model(x: Any) -> Any:
    kind, bound = _kind_of(x)
    return bound(x) if kind == "a chat model" else x


def _function(x: Any, seconds: Any = None, *, needs: Any = 0.0) -> Any:
    return bounded_function(x, CallLimit.checked(seconds, needs))
