"""What of a tool runs in another process: found out when the tool is wrapped."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool
from langchain_core.tools.base import get_all_basemodel_annotations
from langgraph.prebuilt import InjectedStore, ToolRuntime
from langgraph.store.base import BaseStore

from ._process_pickle import dumps

Kind = Literal["function", "coroutine", "tool"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where another process finds the body of a tool."""

    name: str
    kind: Kind
    body: bytes


def target_of(tool: BaseTool) -> Target:
    """Return what another process needs to find the body of `tool`.

    Raises:
        TypeError: If the body cannot be found or rebuilt there, or takes what cannot
            cross; the message names the tool and says what to do.
    """
    kind, body = _body_of(tool)
    _check_parameters(tool, hook(tool) if kind == "tool" else body)
    try:
        return Target(tool.name, kind, dumps(body))
    except Exception as error:
        advice = (
            "Define it at the top level of a module, and let it open what it needs "
            "(connections, locks, clients) when it is called"
        )
        raise _refused(tool.name, f"{error}. {advice}") from error


def hook(of: Any, name: str = "_run") -> Any:
    """Return what LangChain leaves to tools to define, and calls itself."""
    return getattr(of, name)


def _body_of(tool: BaseTool) -> tuple[Kind, Any]:
    """Return what is called in the other process: a function, or the tool itself."""
    if hook(type(tool)) in (hook(StructuredTool), hook(Tool)):
        if (function := getattr(tool, "func", None)) is not None:
            return "function", function
        if (coroutine := getattr(tool, "coroutine", None)) is not None:
            return "coroutine", coroutine
        raise _refused(tool.name, "it has no function")
    # What belongs to the call and not to the body stays here.
    here = {
        "callbacks": None,
        "handle_tool_error": False,
        "handle_validation_error": False,
    }
    return "tool", tool.model_copy(update=here)


def _refused(name: str, why: str) -> TypeError:
    return TypeError(f"tool {name!r} cannot run in a process of its own: {why}")


def _check_parameters(tool: BaseTool, body: Callable[..., Any]) -> None:
    """Refuse what is bound to this process."""
    parameters = inspect.signature(body).parameters
    for name, hint in _hints(tool, body, parameters).items():
        stays = _what_stays(name, hint)
        parameter = parameters.get(name)
        optional = parameter is not None and parameter.default is not parameter.empty
        # An optional callback manager is left out: nobody's result depends on it.
        if stays is None or (stays == "a callback manager" and optional):
            continue
        raise _refused(
            tool.name,
            f"its parameter {name!r} is {stays}, which belongs to this process. Take "
            "plain values instead (`InjectedState`, `InjectedToolCallId` and arguments "
            "cross), or leave the tool in this process",
        )


def _hints(
    tool: BaseTool, body: Callable[..., Any], parameters: Iterable[str]
) -> dict[str, Any]:
    """Return all parameters of a tool with their annotations."""
    annotated = body.func if isinstance(body, functools.partial) else body
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError, AttributeError):
        hints = {}  # LangChain injects nothing then, either
    known = {name: hints.get(name) for name in parameters}
    if isinstance(tool.args_schema, type):
        known |= get_all_basemodel_annotations(tool.args_schema)
    return known


def _what_stays(name: str, hint: Any) -> str | None:
    """Return what a parameter is, if that cannot be had in another process."""
    if hint is RunnableConfig:
        return "a RunnableConfig"
    if name == "runtime":
        return "a ToolRuntime"  # by its name, as in LangGraph's tool node
    if name in {"callbacks", "run_manager"}:
        return "a callback manager"  # likewise, in LangChain
    for part in _parts(hint):
        kind = part if isinstance(part, type) else type(part)
        if issubclass(kind, ToolRuntime):
            return "a ToolRuntime"
        if issubclass(kind, (InjectedStore, BaseStore)):
            return "a store"
        if issubclass(kind, (BaseCallbackManager, BaseRunManager)):
            return "a callback manager"
    return None


def _parts(hint: Any) -> Iterator[Any]:
    """Yield an annotation and all that it is made of."""
    yield hint
    origin = get_origin(hint)
    if origin is not None and origin is not Annotated:
        yield origin
    for part in get_args(hint):
        yield from _parts(part)
