"""What LangChain's models and tools implement by themselves, and what they inherit.

Its extension points are protected methods: they are compared here and nowhere else.
"""

# pyright: reportPrivateUsage=false
# ruff: noqa: SLF001

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool, StructuredTool, Tool


def runs_async(tool: Any) -> bool:
    """Return whether a tool has async code of its own."""
    arun = type(tool)._arun
    if arun in (StructuredTool._arun, Tool._arun):
        return getattr(tool, "coroutine", None) is not None
    return arun is not BaseTool._arun


def answers_async(cls: type[Any]) -> bool:
    """Return whether models of class `cls` have async code for a whole answer."""
    return cls._agenerate is not BaseChatModel._agenerate


def streams_async(cls: type[Any]) -> bool:
    """Return whether models of class `cls` have async code for a streamed answer."""
    return cls._astream is not BaseChatModel._astream


def streams(cls: type[Any]) -> bool:
    """Return whether models of class `cls` can stream at all."""
    return cls._stream is not BaseChatModel._stream or streams_async(cls)


def streams_all_it_says(cls: type[Any]) -> bool:
    """Return whether a streamed answer is the same as a whole one.

    LangChain's own fake models, which people test with, drop tool calls in streams.
    """
    return "fake_chat_models" not in getattr(cls._stream, "__module__", "")
