"""What an agent that was cut hands up to the function that called it."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.pregel import Pregel

from ._scope import current


def handing_up(graph: Any) -> Any:
    """Return `graph`, a bounded copy, so that its results are closed when it is cut."""
    if not isinstance(graph, _HandingUp):
        graph.__class__ = _handing_up_class(type(graph))
    return graph


class _HandingUp(Pregel[Any, Any, Any, Any]):
    """What a graph called inside a function gains; mixed into its class."""

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        return _closed(super().invoke(*args, **kwargs))

    async def ainvoke(self, *args: Any, **kwargs: Any) -> Any:
        return _closed(await super().ainvoke(*args, **kwargs))


_classes: dict[type[Any], type[Any]] = {}


def _handing_up_class(cls: type[Any]) -> type[Any]:
    found = _classes.get(cls)
    if found is None:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        found = _classes[cls] = type(cls.__name__, (_HandingUp, cls), names)
    return found


def _closed(result: Any) -> Any:
    """Return an agent's result; if it was cut, with what it found as its last message.

    Whoever called it looks there.
    """
    scope = current.get()
    if scope is None or scope.cause_of_cut() is None or not isinstance(result, dict):
        return result
    messages = result.get("messages")
    if not isinstance(messages, list) or not messages or _ended(messages[-1]):
        return result
    said = [message for message in messages if isinstance(message, BaseMessage)]
    return {**result, "messages": [*messages, AIMessage(_found(said))]}


def _ended(message: Any) -> bool:
    """Return whether a message is the last word of an agent that finished."""
    if not isinstance(message, AIMessage):
        return False
    return bool(message.text.strip()) and not message.tool_calls


def _found(messages: list[BaseMessage]) -> str:
    """Return what was said and found since the question, as text."""
    questions = (i for i, m in enumerate(messages) if isinstance(m, HumanMessage))
    lines: list[str] = []
    for message in messages[max(questions, default=-1) + 1 :]:
        if text := message.text.strip():
            tool = isinstance(message, ToolMessage)
            lines.append(f"{message.name or 'tool'}: {text}" if tool else text)
    if not lines:
        return "Time ran out before anything was found."
    head = "Time ran out before the work was finished. What was found so far:"
    return "\n".join((head, *lines))
