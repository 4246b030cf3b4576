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
from abc import ABCMeta
from collections import defaultdict
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    MutableMapping,
    MutableSequence,
)
from types import CellType, CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
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
from ._scope import current

if TYPE_CHECKING:
    _Dict = dict[Any, Any]
    _List = list[Any]
else:

    class _Dict(MutableMapping, dict):
        """A dict whose every method goes by the few that its subclass has."""

    class _List(MutableSequence, list):
        """A list whose every method goes by the few that its subclass has."""


Adopt = Callable[[Any], Any]
"""Returns a graph so that it can be cut, and anything else as it is."""

T = TypeVar("T", bound=BaseTool)

_DEPTH = 3
"""How deep in containers and Runnables a graph is looked for."""

_MANY = 100
"""How many things a container may hold that is looked through: data is not."""

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
            return _View(value, self.instead)
        if type(value) is list:
            return _Items(value, self.instead)
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
        held = {name for name, value in _attributes(owner) if self.reaches(value)}
        if held:
            cls: Any = type(owner)
            owner = _seen_as(cls)(owner, self.instead, held)
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
        view = _View(func.__globals__, self.instead, used)
        # What reads a function's globals from outside of its code looks here.
        dict.update(view, func.__globals__)
        return view


class _View(_Dict):
    """A dict as it is at any time, but for the graphs in it."""

    # It is a dict for those who ask, and for functions whose globals it is.

    def __init__(
        self, real: dict[Any, Any], instead: Adopt, only: set[str] | None = None
    ) -> None:
        self._real = real
        self._instead = instead
        self._only = only

    def __getitem__(self, key: Any) -> Any:
        value = self._real[key]
        if self._only is not None and key not in self._only:
            return value
        return self._instead(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._real[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._real[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real)

    def __len__(self) -> int:
        return len(self._real)

    def __repr__(self) -> str:
        return repr(self._real)

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)


class _Items(_List):
    """A list as it is at any time, but for the graphs in it."""

    def __init__(self, real: list[Any], instead: Adopt) -> None:
        self._real = real
        self._instead = instead

    def __getitem__(self, index: Any) -> Any:
        found = self._real[index]
        if isinstance(index, slice):
            return [self._instead(value) for value in found]
        return self._instead(found)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._real[index] = value

    def __delitem__(self, index: Any) -> None:
        del self._real[index]

    def __len__(self) -> int:
        return len(self._real)

    def __iter__(self) -> Iterator[Any]:
        return map(self._instead, self._real)

    def insert(self, index: Any, value: Any) -> None:
        self._real.insert(index, value)

    # What a sequence need not have, and a list has.

    def copy(self) -> list[Any]:
        return list(self)

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        self._real.sort(key=key, reverse=reverse)

    def __add__(self, other: Any) -> Any:
        return list(self) + other

    def __radd__(self, other: Any) -> Any:
        return other + list(self)

    def __mul__(self, times: Any) -> Any:
        return list(self) * times

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return list(self) == other or self._real == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(self._real)

    def __reduce__(self) -> Any:
        return list, (list(self),)


def _attributes(owner: Any) -> Iterable[tuple[str, Any]]:
    """Return the attributes of a method's object, if it can be seen as another one.

    Only a plain object can: one of which all that it is stands in its `__dict__`.
    """
    cls: Any = type(owner)
    if type(cls) not in (type, ABCMeta) or cls.__new__ is not object.__new__:
        return ()
    for base in cls.__mro__:
        own = vars(base)
        if base in (object, Generic):
            continue
        if own.get("__slots__") or "__init_subclass__" in own:
            return ()
        if "__getattribute__" in own or "__setattr__" in own:
            return ()
    attributes = getattr(owner, "__dict__", {})
    return list(attributes.items()) if len(attributes) <= _MANY else ()


@functools.lru_cache(maxsize=256)
def _seen_as(cls: Any) -> Callable[[Any, Adopt, set[str]], Any]:
    """Return what makes, of an object of class `cls`, one that shares its attributes.

    It is the same object for all that can be asked but `is`; only the graphs that it
    holds are others.
    """

    def read(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        _, instead, held = of(self)
        changed = name in held or isinstance(value, Pregel)
        return instead(value) if changed else value

    def same(self: Any, other: Any) -> bool:
        return of(self)[0] is (of(other)[0] if type(other) is seen else other)

    def number(self: Any) -> int:
        return hash(of(self)[0])

    members: dict[str, Any] = {"__slots__": ("_deadline",), "__getattribute__": read}
    if cls.__eq__ is object.__eq__ and cls.__hash__ is object.__hash__:
        members |= {"__eq__": same, "__hash__": number}
    names = ("__module__", "__qualname__", "__doc__")
    members |= {name: getattr(cls, name) for name in names}
    seen: Any = type(cls)(cls.__name__, (cls,), members)
    slot = vars(seen)["_deadline"]
    of: Callable[[Any], tuple[Any, Adopt, set[str]]] = slot.__get__

    def make(owner: Any, instead: Adopt, held: set[str]) -> Any:
        made = object.__new__(seen)
        slot.__set__(made, (owner, instead, held))
        object.__setattr__(made, "__dict__", owner.__dict__)
        return made

    return make


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """Yield what a container holds in which a graph is looked for."""
    if depth <= 0:
        return
    if type(value) in _DICTS:
        yield from list(value.values()) if len(value) <= _MANY else ()
    elif isinstance(value, tuple) or type(value) is list:
        yield from list(value) if len(value) <= _MANY else ()
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield value.__func__
        yield from (held for _, held in _attributes(value.__self__))
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


# What a sub-agent that was cut hands up.


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
