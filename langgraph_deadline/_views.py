"""Views of a graph's checkpointer, store and cache that a straggler cannot write to.

A view is an instance of a subclass of the object's own class that shares its state, so
that it is what the original is in every respect, but asks the context first: work that
was cut may not write. The view of a checkpointer also reads and writes the run's
record, which is stored as writes of a task of its own, beside the checkpoint.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.runnables import RunnableConfig

from ._channels import CUT
from ._record import RECORD_KEY
from ._resume import PARENT, begin_load, early_record, end_load, note_saved
from ._run import Run
from ._scope import Scope, current
from .errors import Cause, RunCut


def _check_may_write(what: str) -> None:
    """Refuse a write by work that was cut."""
    scope = current.get()
    cause = _cause_of_fence(scope)
    if cause is not None:
        step = scope.step.name if scope is not None and scope.step else None
        msg = f"step {step!r} was cut ({cause}) and can no longer write to the {what}"
        raise RunCut(msg, cause=cause, step=step)


def _cause_of_fence(scope: Scope | None) -> Cause | None:
    """Return why the context may not write, `None` if it may.

    The engine of a run inside a step that is being cut may still save what the run
    hands over, until the step has ended; the step's own code may not.
    """
    if scope is None or scope.run is None or scope.run.scope is not scope:
        return scope.cause_of_cut() if scope is not None else None
    around = scope.parent
    while around is not None:
        if around.cut is not None and getattr(around, "ended", 0.0) is not None:
            return around.cut
        around = around.parent
    return None


def _engine_run() -> Run | None:
    """Return the run whose own engine is calling, `None` inside a step."""
    scope = current.get()
    if scope is None or scope.run is None or scope.run.scope is not scope:
        return None
    run: Run = scope.run
    return None if run.implicit else run


# The views' classes. The original's methods are looked up when they are called, as they
# are on the original.


def _fenced(what: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return method `name` of a view, which refuses work that was cut."""
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def awrite(self: Any, *args: Any, **kwargs: Any) -> Any:
            _check_may_write(what)
            return await getattr(_original(self), name)(self, *args, **kwargs)

        return awrite

    @functools.wraps(method)
    def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check_may_write(what)
        return getattr(_original(self), name)(self, *args, **kwargs)

    return write


def _original(view: Any) -> Any:
    """Return the class that a view's class was made for."""
    return type(view).__bases__[0]


def _saver_class(cls: type[Any]) -> type[Any]:
    """Return the class of a view of a checkpointer of class `cls`."""

    @functools.wraps(cls.get_tuple)
    def get_tuple(self: Any, config: RunnableConfig) -> Any:
        found = cls.get_tuple(self, config)
        run = _engine_run()
        if run is None or run.saved.loaded:
            return found
        asked: dict[str, Any] = {}
        for source in begin_load(run, config, found):
            if source == PARENT:
                asked[source] = cls.get_tuple(self, found.parent_config)
            else:
                listed = cls.list(self, config, filter={"source": source}, limit=1)
                asked[source] = _first(iter(listed))
        return end_load(run, found, asked)

    @functools.wraps(cls.aget_tuple)
    async def aget_tuple(self: Any, config: RunnableConfig) -> Any:
        found = await cls.aget_tuple(self, config)
        run = _engine_run()
        if run is None or run.saved.loaded:
            return found
        asked: dict[str, Any] = {}
        for source in begin_load(run, config, found):
            if source == PARENT:
                asked[source] = await cls.aget_tuple(self, found.parent_config)
            else:
                listed = cls.alist(self, config, filter={"source": source}, limit=1)
                asked[source] = await _afirst(listed)
        return end_load(run, found, asked)

    @functools.wraps(cls.put)
    def put(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check_may_write("checkpointer")
        run = _engine_run()
        saved = note_saved(run, cls.put(self, *args, **kwargs))
        if (due := early_record(run, args)) is not None:
            cls.put_writes(self, *due)
        return saved

    @functools.wraps(cls.aput)
    async def aput(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check_may_write("checkpointer")
        run = _engine_run()
        saved = note_saved(run, await cls.aput(self, *args, **kwargs))
        if (due := early_record(run, args)) is not None:
            await cls.aput_writes(self, *due)
        return saved

    return _view_class(
        cls,
        {
            "get_tuple": get_tuple,
            "aget_tuple": aget_tuple,
            "put": put,
            "aput": aput,
            "put_writes": _fenced("checkpointer", "put_writes", cls.put_writes),
            "aput_writes": _fenced("checkpointer", "aput_writes", cls.aput_writes),
        },
    )


# Savers hold a lock while they list, until that is closed. It must not be left to the
# garbage collector, for the next thing we ask for needs the lock.


def _first(listed: Any) -> Any:
    """Return the first of what a checkpointer lists, `None` if there is none."""
    try:
        return next(listed, None)
    finally:
        if (close := getattr(listed, "close", None)) is not None:
            close()


async def _afirst(listed: Any) -> Any:
    """As `_first`."""
    try:
        return await anext(listed, None)
    finally:
        if (close := getattr(listed, "aclose", None)) is not None:
            await close()


def _store_class(cls: type[Any]) -> type[Any]:
    """Return the class of a view of a store of class `cls`.

    Reads in bulk are refused to work that was cut as well: nothing can use them.
    """
    names = ("put", "aput", "delete", "adelete", "batch", "abatch")
    members = {name: _fenced("store", name, getattr(cls, name)) for name in names}
    return _view_class(cls, {**members, "__slots__": ()})


def _cache_class(cls: type[Any]) -> type[Any]:
    """Return the class of a view of a cache of class `cls`."""

    def set_(self: Any, pairs: Mapping[Any, Any]) -> None:
        if kept := _cacheable(pairs):
            cls.set(self, kept)

    async def aset(self: Any, pairs: Mapping[Any, Any]) -> None:
        if kept := _cacheable(pairs):
            await cls.aset(self, kept)

    return _view_class(cls, {"set": set_, "aset": aset})


def _view_class(cls: type[Any], members: dict[str, Any]) -> type[Any]:
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {**members, **names})


def _cacheable(pairs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return what may be cached: nothing that was cut, and no run's record."""
    _check_may_write("cache")
    kept: dict[Any, Any] = {}
    for key, (writes, ttl) in pairs.items():
        if (RECORD_KEY, CUT) not in writes:
            kept[key] = ([w for w in writes if w[0] != RECORD_KEY], ttl)
    return kept


# The views. They live as long as their originals, whose `__del__` they share.

_views: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_classes: dict[tuple[type[Any], Any], type[Any]] = {}


def _view(original: Any, make: Callable[[type[Any]], type[Any]]) -> Any:
    if original is None or isinstance(original, bool) or _is_view(original):
        return original
    found = _views.get(original)
    if found is None:
        key = (type(original), make)
        cls = _classes.get(key)
        if cls is None:
            cls = _classes[key] = make(type(original))
        found = object.__new__(cls)
        if hasattr(original, "__dict__"):
            object.__setattr__(found, "__dict__", original.__dict__)
        for slot in _slots_of(type(original)):
            if hasattr(original, slot):
                object.__setattr__(found, slot, getattr(original, slot))
        _views[original] = found
    return found


def _is_view(thing: Any) -> bool:
    return type(thing) in _classes.values()


def _slots_of(cls: type[Any]) -> list[str]:
    slots: list[str] = []
    for base in cls.__mro__:
        own = base.__dict__.get("__slots__", ())
        slots.extend((own,) if isinstance(own, str) else own)
    return [slot for slot in slots if slot not in ("__dict__", "__weakref__")]


def saver_view(saver: Any) -> Any:
    """Return the view of a checkpointer."""
    return _view(saver, _saver_class)


def store_view(store: Any) -> Any:
    """Return the view of a store."""
    return _view(store, _store_class)


def cache_view(cache: Any) -> Any:
    """Return the view of a cache."""
    return _view(cache, _cache_class)
