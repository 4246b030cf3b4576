"""`StateGraph`, and `with_deadline` for graphs that exist already."""

from __future__ import annotations

from typing import Any, TypeVar

from langgraph.graph import StateGraph as LangGraphStateGraph
from langgraph.pregel import Pregel
from langgraph.typing import ContextT, InputT, OutputT, StateT

from ._bounded import BoundedStateGraph, Budget, bounded
from ._fallback import Fallback, fallback_name, with_node
from .policy import coerce

G = TypeVar("G", bound=Pregel[Any, Any, Any, Any])


class StateGraph(LangGraphStateGraph[StateT, ContextT, InputT, OutputT]):
    """LangGraph's `StateGraph`, whose compiled graphs can have a deadline."""

    def compile(
        self,
        checkpointer: Any = None,
        *,
        deadline: Budget | None = None,
        fallback: Fallback | None = None,
        **kwargs: Any,
    ) -> BoundedStateGraph[StateT, ContextT, InputT, OutputT]:
        """Compile the graph, with a budget for each of its runs.

        Args:
            checkpointer: As in LangGraph, and so are all arguments that are not here.
            deadline: Seconds (a number or `timedelta`) or a `DeadlinePolicy`; `None`
                for none, then each call may have its own.
            fallback: What answers when time is up: a node's name, or a callable or
                Runnable, which becomes a node.
            **kwargs: LangGraph's other arguments.

        Raises:
            ValueError: If `deadline` or `fallback` cannot be used; names the argument.
        """
        policy = coerce(deadline)
        builder: Any = self
        if fallback is not None:
            name = fallback_name(fallback, self.nodes)
            if not isinstance(fallback, str):
                builder = with_node(self, name, fallback)
            fallback = name
        compiled = LangGraphStateGraph.compile(builder, checkpointer, **kwargs)
        graph: BoundedStateGraph[StateT, ContextT, InputT, OutputT]
        graph = bounded(compiled, policy, fallback)
        return graph


def with_deadline(
    x: G, deadline: Budget | None = None, *, fallback: Fallback | None = None
) -> G:
    """Return a copy of a compiled graph that has a deadline.

    Args:
        x: A compiled graph: a `StateGraph`'s, an agent, or a functional entrypoint.
        deadline: As in `StateGraph.compile`.
        fallback: As in `StateGraph.compile`; of an entrypoint it gets the input.

    Raises:
        TypeError: If `x` is nothing that can be bounded; names its type.
        ValueError: If `deadline` or `fallback` cannot be used; names the argument.
    """
    if not isinstance(x, Pregel):
        msg = f"with_deadline() takes a compiled graph, got {type(x).__name__}"
        raise TypeError(msg)
    result: G = bounded(x, coerce(deadline), fallback)
    return result
