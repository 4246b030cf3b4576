"""Pickling between a process and those that run its tools.

Functions and classes cross by reference: by where the other process can import them.
What it could not import is refused here already, with the reason.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import pkgutil
import sys
import threading
from collections.abc import Mapping
from multiprocessing import spawn
from types import FunctionType
from typing import Any

from langchain_core.tools import BaseTool

_MAIN = ("__main__", "__mp_main__")  # the second one is its name in other processes

importing_main = threading.Event()
"""Set while this process imports the script of the one that it works for."""

_callers_main: dict[str, str] = {}
"""In a tool's process: how it imports the caller's script, once it has had to."""


def dumps(value: Any) -> bytes:
    """Pickle `value` for another process.

    Raises:
        pickle.PicklingError: If something in it cannot be imported there; the message
            says what. Other types of errors come from what does not pickle at all.
    """
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def loads(data: bytes, main: Mapping[str, str]) -> Any:
    """Unpickle what `dumps` made in the process whose `main_here()` was `main`."""
    return _Unpickler(data, main).load()


def main_here() -> dict[str, str]:
    """Return how another process imports our `__main__`; nothing in a notebook."""
    if _callers_main:
        return _callers_main
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        # multiprocessing leaves a package's `__main__.py` alone.
        own = spec.name.rpartition(".")[2] != "__main__"
        return {"init_main_from_name": spec.name} if own else {}
    path = getattr(main, "__file__", None)
    if path is None or not os.path.isfile(path):
        return {}
    return {"init_main_from_path": os.path.abspath(path)}


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Refuse what another process could not import."""
        if not isinstance(obj, (type, FunctionType)) or obj is _find:
            return NotImplemented
        _check_importable(obj.__module__, obj.__qualname__)
        if isinstance(obj, type):
            return NotImplemented
        # Not by pickle's own reference: after `@tool` the name belongs to the tool.
        _check_found(obj)
        return _find, (obj.__module__, obj.__qualname__)


def _check_importable(module: str, name: str) -> None:
    if not _importable(module):
        msg = f"{name} is defined in {module!r}, which only this process has"
        raise pickle.PicklingError(msg)
    if "<" in name:
        msg = f"{name} is defined inside a function, or a lambda"
        raise pickle.PicklingError(msg)


def _check_found(function: FunctionType) -> None:
    """Refuse a function whose name has come to stand for another one."""
    module, name = function.__module__, function.__qualname__
    found = _attribute(module, name)
    # A name that is not there yet is about to be bound by a decorator.
    if found is not None and all(function is not body for body in _bodies(found)):
        msg = f"{module}.{name} is not the function that was given, but {found!r}"
        raise pickle.PicklingError(msg)


def _importable(module: str) -> bool:
    """Return whether another process could import `module`."""
    if module in _MAIN:
        return bool(main_here())
    return _can_be_found(module.partition(".")[0])


@functools.cache
def _can_be_found(package: str) -> bool:
    return any(finder.find_spec(package, None) is not None for finder in sys.meta_path)


def _attribute(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _bodies(found: Any) -> tuple[Any, ...]:
    """Return the functions that the value of a function's name may stand for."""
    if isinstance(found, BaseTool):
        return getattr(found, "func", None), getattr(found, "coroutine", None)
    return (found,)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, main: Mapping[str, str]) -> None:
        super().__init__(io.BytesIO(data))
        self._main = main

    def find_class(self, module: str, name: str) -> Any:
        """Import, `__main__` too."""
        if module in _MAIN and self._main:
            _import_main(self._main)
        if (module, name) == (_find.__module__, _find.__qualname__):
            return functools.partial(_find, main=self._main)
        return super().find_class(module, name)


def _find(module: str, name: str, main: Mapping[str, str]) -> Any:
    """Return the function that was defined as `name`."""
    if module in _MAIN:
        _import_main(main)
        module = "__main__"
    found = pkgutil.resolve_name(f"{module}:{name}")
    for body in _bodies(found):
        if getattr(body, "__qualname__", None) == name:
            return body
    return found


def _import_main(main: Mapping[str, str]) -> None:
    """Import the caller's script as multiprocessing does, as `__mp_main__`; once."""
    _callers_main.update(main)
    importing_main.set()
    try:
        spawn.prepare(dict(main))
    except BaseException as error:  # `sys.exit()` at the end of a script, too
        (script,) = main.values()
        msg = (
            f"the tool's process imports the script {script!r} to find the tool, and "
            f"that failed: {error!r}. Move the tool to a module, or put what the "
            "script does under `if __name__ == '__main__':`"
        )
        raise ImportError(msg) from error
    finally:
        importing_main.clear()
