"""Containers and objects as they are at any time, but for the graphs in them.

They stand in for what a function holds, in the copy of it that calls other graphs: what
is shared with the original stays shared, and what changes later is seen as well.
"""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    MutableMapping,
    MutableSequence,
)
from typing import TYPE_CHECKING, Any, Generic

from langgraph.pregel import Pregel

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

MANY = 100
"""How many things a container may hold that is looked through: data is not."""


class DictView(_Dict):
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


class ListView(_List):
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


def attributes_of(owner: Any) -> Iterable[tuple[str, Any]]:
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
    return list(attributes.items()) if len(attributes) <= MANY else ()


@functools.lru_cache(maxsize=256)
def seen_as(cls: Any) -> Callable[[Any, Adopt, set[str]], Any]:
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
