"""Tool calls that a run left open: providers refuse a history that has any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage


def answers(channels: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the writes that answer the calls left open at the end of a history.

    Args:
        channels: The channels of a run that begins on a thread whose last one was cut.
    """
    writes: list[tuple[str, Any]] = []
    for name, channel in channels.items():
        messages: Any = channel.get() if channel.is_available() else None
        missing = _missing(messages) if isinstance(messages, list) else []
        if missing and _appends(channel, messages, missing):
            writes.append((name, missing))
    return writes


def _missing(messages: Sequence[Any]) -> list[ToolMessage]:
    """Return answers to the calls of the last AI message that have none."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            calls = (*message.tool_calls, *message.invalid_tool_calls)
            return [_unknown(call) for call in calls if call["id"] not in answered]
        else:
            return []
    return []


def _unknown(call: Any) -> ToolMessage:
    return ToolMessage(
        f"Error: the call of {call['name']!r} has no result: time ran out. It may or "
        "may not have taken effect.",
        name=call["name"],
        tool_call_id=call["id"] or "",
        status="error",
    )


def _appends(channel: Any, before: list[Any], more: list[ToolMessage]) -> bool:
    """Return whether the channel keeps its messages and adds `more` at their end."""
    if not all(isinstance(message, BaseMessage) for message in before):
        return False
    tried = channel.copy()
    tried.update([more])
    after = tried.get()
    return len(after) == len(before) + len(more) and after[: len(before)] == before
