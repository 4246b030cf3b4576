"""Find the graph that a command names: in a file or a module, ready or to be made."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

_EXAMPLE = "for example ./agent.py:graph or my_package.agent:graph"


class BadInput(Exception):  # noqa: N818 - said to a user, who typed it
    """What was asked for cannot be done; the message says why, and what to do."""


def load(target: str) -> Any:
    """Return what `target` names: `FILE:NAME` or `MODULE:NAME`.

    Raises:
        BadInput: If there is no such thing. What the module itself raises goes up.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        msg = f"{target!r} names no graph: write FILE:NAME or MODULE:NAME, {_EXAMPLE}"
        raise BadInput(msg)
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    module = _from_file(Path(place)) if is_file else _from_module(place)
    try:
        return getattr(module, name)
    except AttributeError:
        msg = f"there is no {name!r} in {place}{_instead(module, name)}"
        raise BadInput(msg) from None


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        msg = f"{what}: name the Python file that the graph is in, {_EXAMPLE}"
        raise BadInput(msg)
    # Under a name of its own if it is called like a module that is in use.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_at_hand"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{path} is no Python file: its name has to end in .py"
        raise BadInput(msg)
    # As for a script; and other processes can import it again.
    sys.path.insert(0, str(path.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if "relative import" not in str(error):
            raise
        msg = (
            f"{path} is part of a package ({error}): name it as a module, "
            "for example my_package.agent:graph"
        )
        raise BadInput(msg) from error
    return module


def _from_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        msg = f"{name!r} is neither a Python file nor a module, {_EXAMPLE}"
        raise BadInput(msg)
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks another one
        msg = (
            f"there is no module {error.name!r}, neither in this folder nor among what "
            "is installed"
        )
        raise BadInput(msg) from None


def _instead(module: ModuleType, name: str) -> str:
    """Return which graphs a module has, for a name that it has not."""
    graphs = [n for n, thing in vars(module).items() if _is_graph(thing)]
    close = difflib.get_close_matches(name, graphs or vars(module), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; its graphs: {', '.join(graphs)}" if graphs else ", nor any graph"


def _is_graph(thing: Any) -> bool:
    return isinstance(thing, (Pregel, StateGraph))


@asynccontextmanager
async def opened(
    thing: Any, target: str, config: RunnableConfig
) -> AsyncGenerator[Pregel[Any, Any, Any, Any]]:
    """Yield the graph that `thing` is or makes, as a LangGraph server would.

    It may be a compiled graph, a `StateGraph`, or a sync or async function (or context
    manager) that makes one of them, from nothing or from the config.

    Raises:
        BadInput: If it is nothing of that kind.
    """
    async with AsyncExitStack() as stack:
        made = thing
        if not _is_graph(thing) and callable(thing) and not inspect.isclass(thing):
            made = _made(thing, target, config)
            if inspect.isawaitable(made):
                made = await made
            if hasattr(made, "__aenter__"):
                made = await stack.enter_async_context(made)
            elif hasattr(made, "__enter__"):
                made = stack.enter_context(made)
        if isinstance(made, StateGraph):
            made = made.compile()
        if not isinstance(made, Pregel):
            does = "is" if made is thing else "returned"
            msg = (
                f"{target} {does} {_a(made)}: it has to be a compiled graph, a "
                "StateGraph, or a function that makes one from nothing or from a config"
            )
            raise BadInput(msg)
        yield made


def _made(factory: Any, target: str, config: RunnableConfig) -> Any:
    parameters = inspect.signature(factory).parameters.values()
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        names = ", ".join(p.name for p in needed)
        msg = f"{target} needs {names}: what makes a graph may take the config alone"
        raise BadInput(msg)
    if needed:
        return factory(config)
    named = any(p.name == "config" for p in parameters)
    return factory(config=config) if named else factory()


def _a(thing: Any) -> str:
    if inspect.isclass(thing):
        return f"the class {thing.__name__}"
    return f"of type {type(thing).__name__}"
