"""The fallback as a node of the graph: its name, how it gets there, how it is drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from langchain_core.runnables import Runnable
from langchain_core.runnables.config import ensure_config
from langgraph.constants import END, START
from langgraph.graph.state import CompiledStateGraph

from ._langgraph import (
    ChannelWrite,
    ChannelWriteEntry,
    PregelNode,
    add_edge,
    as_runnable,
    draw_graph,
    route_channel,
)
from .policy import check_names

Fallback = str | Callable[..., Any] | Runnable[Any, Any]


def fallback_name(fallback: Fallback, known: Any) -> str:
    """Return the name of the fallback's node.

    Raises:
        ValueError: If it is no node's name, or its node's name is taken.
    """
    if isinstance(fallback, str):
        check_names([fallback], (n for n in known if n != START), "fallback")
        return fallback
    if not callable(fallback) and not isinstance(fallback, Runnable):
        kind = type(fallback).__name__
        msg = f"fallback must be a node's name, a callable or a Runnable, got {kind}"
        raise ValueError(msg)
    name = getattr(fallback, "__name__", "fallback")
    if name == "<lambda>":
        name = "fallback"
    if name in known:
        msg = (
            f"fallback would become a node named {name!r}, which exists; pass "
            f"fallback={name!r} to use that node, or rename the function"
        )
        raise ValueError(msg)
    return name


def attach_fallback(graph: Any, fallback: Fallback) -> str:
    """Add `fallback` to a compiled graph as a node, if it is none yet."""
    name = fallback_name(fallback, graph.nodes)
    if isinstance(fallback, str):
        return name
    if isinstance(graph, CompiledStateGraph):
        builder = with_node(graph.builder, name, fallback)
        graph.builder = builder
        graph.attach_node(name, builder.nodes[name])
    else:
        graph.nodes[name] = _like_entrypoint(graph, fallback, name)
    return name


def with_node(builder: Any, name: str, action: Any) -> Any:
    """Return a copy of `builder` with one more node."""
    if name in builder.channels:
        msg = f"fallback would become a node named {name!r}, which is a state key"
        raise ValueError(msg)
    copied = copy.copy(builder)
    copied.nodes = dict(builder.nodes)
    copied.channels = dict(builder.channels)
    copied.managed = dict(builder.managed)
    copied.schemas = dict(builder.schemas)
    copied.compiled = False
    copied.add_node(name, action)
    return copied


def _like_entrypoint(graph: Any, fallback: Any, name: str) -> Any:
    """Return a node that gets an entrypoint's input and gives the graph's result."""
    (entrypoint,) = (n for n in graph.nodes.values() if START in n.triggers)
    return PregelNode(
        bound=as_runnable(fallback, name),
        triggers=[],
        channels=entrypoint.channels,
        writers=list(entrypoint.writers),
    )


def draw_fallback(graph: Any, bounded_graph: Any, name: str) -> None:
    """Add the fallback, the edge that leads to it, and what can be reached from it."""
    channel = route_channel(name)
    if START not in graph.nodes or channel not in bounded_graph.channels:
        return
    entry = bounded_graph.nodes[START].copy(
        {"writers": [ChannelWrite([ChannelWriteEntry(channel, None)])]}
    )
    reached = draw_graph(
        ensure_config(bounded_graph.config),
        nodes={**bounded_graph.nodes, START: entry},
        specs=bounded_graph.channels,
        input_channels=bounded_graph.input_channels,
        interrupt_after_nodes=bounded_graph.interrupt_after_nodes,
        interrupt_before_nodes=bounded_graph.interrupt_before_nodes,
        trigger_to_nodes=bounded_graph.trigger_to_nodes,
        checkpointer=None,
        subgraphs={},
    )
    for edge in reached.edges:
        from_start = edge.source == START
        if edge.target not in graph.nodes and edge.target == END:
            graph.add_node(None, END)
        if edge.source in graph.nodes and edge.target in graph.nodes:
            add_edge(
                graph,
                edge.source,
                edge.target,
                data="deadline" if from_start else edge.data,
                conditional=from_start or edge.conditional,
            )
