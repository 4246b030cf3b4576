"""Agents that a tool or a node calls: found where the code holds them.

An agent that is no node of the graph (`deepagents` keeps its sub-agents in a closure, a
user's tool or node its agent in a module's global) would run in threads that nobody can
give up, and lose what it found when it is cut. So the tools and nodes of a bounded
graph get copies of their functions, in which such a graph is replaced by one that can
be cut. What holds no graph is left as it is, and the originals always are.
"""

from __future__ import annotations

import copy
import dis
import functools
from collections import defaultdict
from collections.abc import (
    Iterator,
)
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, TypeVar, cast

from langchain_core.runnables import (
    RunnableAssign,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.tools import BaseTool
from langgraph.func import task
from langgraph.pregel import Pregel

from ._langgraph import RunnableCallable, RunnableSeq
from ._stand_ins import MANY, Adopt, DictView, ListView, attributes_of, seen_as

T = TypeVar("T", bound=BaseTool)

_DEPTH = 3
"""How deep in containers and Runnables a graph is looked for."""

_WRITES_GLOBALS = ("STORE_GLOBAL", "DELETE_GLOBAL")

_TASKS: type[Any] = type(task(lambda: None))
"""What `@task` makes of a function, `func`."""

_ATTRIBUTES: dict[type[Any], tuple[str, ...]] = {
    RunnableCallable: ("func", "afunc"),
    RunnableLambda: ("func", "afunc"),
    RunnableSeq: ("steps",),
    _TASKS: ("func",),
}
"""What calls the functions or Runnables that these attributes hold."""

_COMPOSED: dict[type[Any], tuple[str, ...]] = {
    RunnableBindingBase: ("bound",),
    RunnableSequence: ("first", "middle", "last"),
    RunnableParallel: ("steps__",),
    RunnableWithFallbacks: ("runnable", "fallbacks"),
    RunnableBranch: ("branches", "default"),
    RunnableAssign: ("mapper",),
}
"""Runnables that consist of others, and the fields in which those are."""

_PLACES = {**_ATTRIBUTES, **_COMPOSED}

_DICTS = (dict, defaultdict)
"""Others have methods of their own, which nothing that stands for them would have."""

_NAMED: tuple[type[Any], ...] = (
    Pregel,
    *_ATTRIBUTES,
    *_COMPOSED,
    MethodType,
    functools.partial,
    *_DICTS,
    list,
    tuple,
)
"""What a function may name as a global, beside functions of its own module."""


def adopted_tool(tool: T, adopt: Adopt) -> T:
    """Return a copy of `tool` that calls graphs which can be cut; or `tool` itself.

    Args:
        tool: The tool; one that holds no graph is returned as it is.
        adopt: Returns a graph so that it can be cut and hand over what it has.
    """
    found = _Adoption(adopt)
    fields = {name: getattr(tool, name, None) for name in type(tool).model_fields}
    private = dict(tool.__pydantic_private__ or {})
    changed = {k: found.instead(v) for k, v in fields.items() if found.reaches(v)}
    hidden = {k: found.instead(v) for k, v in private.items() if found.reaches(v)}
    if not changed and not hidden:
        return tool
    copied = tool.model_copy(update=changed)
    object.__setattr__(copied, "__pydantic_private__", {**private, **hidden} or None)
    return copied


def adopted_function(func: Any, adopt: Adopt) -> Any:
    """Return a copy of `func` that calls graphs which can be cut; or `func` itself."""
    found = _Adoption(adopt)
    return found.instead(func) if found.reaches(func) else func


class _Adoption:
    """Looks for graphs in what a function can reach, and replaces them in copies."""

    def __init__(self, adopt: Adopt) -> None:
        self._adopt = adopt
        # By the originals' ids, which the originals themselves keep from being reused.
        self._made: dict[int, tuple[Any, Any]] = {}
        self._without: dict[int, FunctionType] = {}

    # Looking.

    def reaches(self, value: Any) -> bool:
        """Return whether there is a graph in `value` that would be replaced."""
        seen: dict[int, FunctionType] = {}
        found = self._search(value, _DEPTH, seen)
        if not found:
            self._without.update(seen)
        return found

    def _search(self, value: Any, depth: int, seen: dict[int, FunctionType]) -> bool:
        if not isinstance(value, FunctionType):
            if isinstance(value, Pregel):
                return self._graph(value) is not value
            parts = _parts(value, depth)
            return any(self._search(part, depth - 1, seen) for part in parts)
        if id(value) in seen or id(value) in self._without:
            return False  # functions may hold each other
        seen[id(value)] = value
        held = (*_held(value), *(used for _, used in _globals_used(value)))
        return any(self._search(part, _DEPTH, seen) for part in held)

    # Replacing.

    def instead(self, value: Any) -> Any:
        """Return what to use in place of `value`, itself where it holds no graph."""
        if id(value) in self._made:
            return self._made[id(value)][1]
        if isinstance(value, Pregel):
            return self._graph(value)
        if not self.reaches(value):
            return value
        if isinstance(value, FunctionType):
            return self._function(value)
        self._made[id(value)] = (value, self._container(value))
        return self._made[id(value)][1]

    def _graph(self, graph: Any) -> Any:
        if id(graph) not in self._made:
            self._made[id(graph)] = (graph, self._adopt(graph))
        return self._made[id(graph)][1]

    def _container(self, value: Any) -> Any:
        if type(value) in _DICTS:
            return DictView(value, self.instead)
        if type(value) is list:
            return ListView(value, self.instead)
        if isinstance(value, tuple):
            parts = map(self.instead, value)
            named = getattr(type(value), "_make", None)
            return tuple(parts) if named is None else named(parts)
        if isinstance(value, functools.partial):
            return self._partial(value)
        if isinstance(value, MethodType):
            return self._method(value)
        called = {k: self.instead(v) for k, v in _called_by(value).items()}
        is_model = isinstance(value, tuple(_COMPOSED))
        if is_model:
            return value.model_copy(update=called)
        copied = copy.copy(value)
        for name, part in called.items():
            setattr(copied, name, part)
        return copied

    def _partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        args = map(self.instead, value.args)
        named = {k: self.instead(v) for k, v in value.keywords.items()}
        copied = functools.partial(self.instead(value.func), *args, **named)
        copied.__dict__.update(value.__dict__)  # its name, and what it wraps
        return copied

    def _method(self, method: MethodType) -> MethodType:
        owner = method.__self__
        held = {name for name, value in attributes_of(owner) if self.reaches(value)}
        if held:
            cls: Any = type(owner)
            owner = seen_as(cls)(owner, self.instead, held)
        return MethodType(self.instead(method.__func__), owner)

    def _function(self, func: FunctionType) -> FunctionType:
        cells = func.__closure__ or ()
        fresh = tuple(
            CellType() if self._replaced(func, name, cell) else cell
            for name, cell in zip(func.__code__.co_freevars, cells, strict=True)
        )
        copied = FunctionType(
            func.__code__, self._globals(func), func.__name__, None, fresh or None
        )
        # Known before its cells are filled: functions may hold each other.
        self._made[id(func)] = (func, copied)
        for cell, new in zip(cells, fresh, strict=True):
            if new is not cell:
                new.cell_contents = self.instead(cell.cell_contents)
        defaults, named = func.__defaults__, func.__kwdefaults__
        copied.__defaults__ = defaults and tuple(map(self.instead, defaults))
        copied.__kwdefaults__ = cast(
            "dict[str, Any]",
            named and {name: self.instead(value) for name, value in named.items()},
        )
        copied.__dict__ = func.__dict__  # shared: functions keep things there
        for name in ("__module__", "__qualname__", "__doc__", "__annotations__"):
            setattr(copied, name, getattr(func, name))
        return copied

    def _replaced(self, func: FunctionType, name: str, cell: CellType) -> bool:
        """Return whether a cell is replaced; others stay shared with the original."""
        if ("STORE_DEREF", name) in _operations(func.__code__):
            return False  # it is the function's own variable
        return any(self.reaches(value) for value in _content(cell))

    def _globals(self, func: FunctionType) -> Any:
        used = {name for name, value in _globals_used(func) if self.reaches(value)}
        if not used:
            return func.__globals__
        view = DictView(func.__globals__, self.instead, used)
        # What reads a function's globals from outside of its code looks here.
        dict.update(view, func.__globals__)
        return view


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """Yield what a container holds in which a graph is looked for."""
    if depth <= 0:
        return
    if type(value) in _DICTS:
        yield from list(value.values()) if len(value) <= MANY else ()
    elif isinstance(value, tuple) or type(value) is list:
        yield from list(value) if len(value) <= MANY else ()
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield value.__func__
        yield from (held for _, held in attributes_of(value.__self__))
    else:
        yield from _called_by(value).values()


def _called_by(value: Any) -> dict[str, Any]:
    """Return what a Runnable or task calls, by the names it has there."""
    for kind, names in _PLACES.items():
        if isinstance(value, kind):
            found = {name: getattr(value, name, None) for name in names}
            return {name: part for name, part in found.items() if part is not None}
    return {}


def _held(func: FunctionType) -> Iterator[Any]:
    """Yield what a function holds in its closure and as defaults."""
    for cell in func.__closure__ or ():
        yield from _content(cell)
    yield from func.__defaults__ or ()
    yield from (func.__kwdefaults__ or {}).values()


def _content(cell: CellType) -> Iterator[Any]:
    try:
        yield cell.cell_contents
    except ValueError:
        return  # empty as yet


def _globals_used(func: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what may hold a graph, and functions of the same module, that `func` names.

    Not for a function that writes globals: it would write to a copy.
    """
    for name in _globals_read(func.__code__):
        value = func.__globals__.get(name)
        mine = getattr(value, "__globals__", None) is func.__globals__
        if mine or isinstance(value, _NAMED):
            yield name, value


@functools.lru_cache(maxsize=1024)
def _globals_read(code: CodeType) -> tuple[str, ...]:
    """Return the globals that a function reads; none if it writes any."""
    operations = _operations(code)
    if any(operation in _WRITES_GLOBALS for operation, _ in operations):
        return ()
    return tuple(name for operation, name in operations if operation == "LOAD_GLOBAL")


@functools.lru_cache(maxsize=1024)
def _operations(code: CodeType) -> frozenset[tuple[str, Any]]:
    """Return the operations on names of a function and those defined in it."""
    found = {(op.opname, op.argval) for op in dis.get_instructions(code) if op.argval}
    names = {pair for pair in found if isinstance(pair[1], str)}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _operations(constant)
    return frozenset(names)
