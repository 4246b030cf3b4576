"""Run the body of a blocking tool in another process, which is killed at its deadline.

For `with_deadline(tool, isolation="process")`. Needs the extra `process` (Pebble). What
crosses is plain: the arguments, the deadline, the idempotency key, and the result or the
error. Callbacks, configs and stores stay here; so does what a tool keeps in memory.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import io
import itertools
import multiprocessing
import os
import pickle
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from multiprocessing import spawn
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import FunctionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool
from langchain_core.tools.base import get_all_basemodel_annotations
from langgraph.prebuilt import InjectedStore, ToolRuntime
from langgraph.store.base import BaseStore
from pebble import ProcessExpired, ProcessPool

from . import _clock
from ._scope import Scope, current

if sys.platform != "win32":
    from multiprocessing.context import ForkServerProcess

max_workers: int = max(os.cpu_count() or 1, 4)
"""How many calls run at once; more wait. Read when the first call is made."""

key_in_process: ContextVar[str | None] = ContextVar(
    "langgraph_deadline_key_in_process", default=None
)
"""The idempotency key of the call that this process is making."""


# What crosses: found out when a tool is wrapped.


@dataclass(frozen=True, slots=True)
class Target:
    """Where another process finds the body of a tool."""

    name: str
    kind: Literal["function", "coroutine", "tool"]
    body: bytes


def target_of(tool: BaseTool) -> Target:
    """Return what another process needs to find the body of `tool`.

    Raises:
        TypeError: If the body cannot be found or rebuilt there, or takes what cannot
            cross; the message names the tool and says what to do.
    """
    kind: Literal["function", "coroutine", "tool"] = "tool"
    body: Any = tool
    if type(tool)._run in (StructuredTool._run, Tool._run):  # noqa: SLF001 - is it theirs?
        body = getattr(tool, "func", None)
        kind = "function"
        if body is None:
            body = getattr(tool, "coroutine", None)
            kind = "coroutine"
        if body is None:
            raise _refused(tool.name, "it has no function")
        _check_parameters(tool, body)
    else:
        _check_parameters(tool, tool._run)  # noqa: SLF001 - LangChain's hook
        # What belongs to the call and not to the body stays here.
        body = tool.model_copy(
            update={
                "callbacks": None,
                "handle_tool_error": False,
                "handle_validation_error": False,
            }
        )
    try:
        return Target(tool.name, kind, _dumps(body))
    except Exception as error:
        advice = (
            "Define it at the top level of a module, and let it open what it needs "
            "(connections, locks, clients) when it is called"
        )
        raise _refused(tool.name, f"{error}. {advice}") from error


def _refused(name: str, why: str) -> TypeError:
    return TypeError(f"tool {name!r} cannot run in a process of its own: {why}")


def _check_parameters(tool: BaseTool, body: Callable[..., Any]) -> None:
    """Refuse what is bound to this process."""
    try:
        hints = get_type_hints(body, include_extras=True)
    except (NameError, TypeError, AttributeError):
        hints = {}  # LangChain injects nothing then, either
    parameters = inspect.signature(body).parameters
    known = {name: hints.get(name) for name in parameters}
    known |= get_all_basemodel_annotations(tool.get_input_schema())
    for name, hint in known.items():
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


# Pickling, by reference, and with errors that say what is wrong.

_MAIN = ("__main__", "__mp_main__")  # the second one is its name in other processes


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:  # type: ignore[override]
        """Refuse what another process could not import."""
        if not isinstance(obj, (type, FunctionType)) or obj is _find:
            return NotImplemented
        module, name = obj.__module__, obj.__qualname__
        if not _importable(module):
            msg = f"{name} is defined in {module!r}, which only this process has"
            raise pickle.PicklingError(msg)
        if "<" in name:
            msg = f"{name} is defined inside a function, or a lambda"
            raise pickle.PicklingError(msg)
        if isinstance(obj, type):
            return NotImplemented
        # Not by pickle's own reference: after `@tool` the name belongs to the tool. A
        # name that is not there yet is about to be bound by a decorator.
        found = _attribute(module, name)
        if found is not None and all(obj is not body for body in _bodies(found)):
            msg = f"{module}.{name} is not the function that was given, but {found!r}"
            raise pickle.PicklingError(msg)
        return _find, (module, name)


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


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


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


def _bodies(found: Any) -> tuple[Any, ...]:
    """Return the functions that the value of a function's name may stand for."""
    if isinstance(found, BaseTool):
        return getattr(found, "func", None), getattr(found, "coroutine", None)
    return (found,)


def _attribute(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@functools.cache
def _importable(module: str) -> bool:
    """Return whether another process could import `module`."""
    if module in _MAIN:
        return bool(_main_here())
    top = module.partition(".")[0]
    return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)


def _main_here() -> dict[str, str]:
    """Return how another process imports our `__main__`; nothing in a notebook."""
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


# In the other process.

_importing = threading.Event()
"""Set while the caller's script is imported."""


def _import_main(main: Mapping[str, str]) -> None:
    """Import the caller's script as multiprocessing does, as `__mp_main__`; once."""
    _importing.set()
    try:
        spawn.prepare(dict(main))
    except BaseException as error:  # `sys.exit()` at the end of a script, too
        (script,) = main.values()
        msg = (
            f"the process that runs the tool imports the script {script!r} to find it "
            f"there, and that failed: {error!r}. Move the tool to a module, or put what "
            "the script does under `if __name__ == '__main__':`"
        )
        raise ImportError(msg) from error
    finally:
        _importing.clear()


@dataclass(frozen=True, slots=True)
class _Order:
    target: Target
    arguments: bytes
    left: float | None
    key: str | None
    main: Mapping[str, str]


_Answer = tuple[bool, bytes, str]
"""Whether it worked, the result or the error, and the error's traceback."""


def _begin() -> None:
    """Begin a worker process."""
    if sys.platform != "win32":
        os.setsid()  # so that what a tool starts can be killed with it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End once the parent is gone, however that came about."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if sys.platform != "win32":
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def _serve(order: _Order) -> _Answer:
    return copy_context().run(_answer, order)


def _answer(order: _Order) -> _Answer:
    if order.left is not None:
        current.set(Scope(None, _clock.now() + order.left))
    key_in_process.set(order.key)
    try:
        body = _Unpickler(order.target.body, order.main).load()
        args, kwargs = _Unpickler(order.arguments, order.main).load()
        result = _call(order.target.kind, body, args, kwargs)
    except BaseException as error:  # noqa: BLE001 - it is raised in the caller
        return False, _dump_error(error), "".join(traceback.format_exception(error))
    try:
        return True, pickle.dumps(result), ""
    except Exception as error:  # noqa: BLE001 - whatever pickling runs into
        msg = (
            f"the result of tool {order.target.name!r}, a {type(result).__name__}, "
            f"cannot come back from its process: {error}. Return plain values"
        )
        return False, _dump_error(TypeError(msg)), ""


def _call(kind: str, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kind == "function":
        return body(*args, **kwargs)
    if kind == "coroutine":
        return asyncio.run(body(*args, **kwargs))
    try:
        return body._run(*args, **kwargs)  # noqa: SLF001 - LangChain's hook
    except NotImplementedError:  # how tools say that they are async only
        if type(body)._arun is BaseTool._arun:  # noqa: SLF001 - likewise
            raise
    return asyncio.run(body._arun(*args, **kwargs))  # noqa: SLF001 - likewise


def _dump_error(error: BaseException) -> bytes:
    """Pickle an error, as nearly as it can be."""
    if _crosses(error):
        return pickle.dumps(error)
    # Many cannot, for their `__init__` takes more than `args`. What comes back is of
    # the same type, or of the nearest base that the caller has as well.
    args = error.args if _crosses(error.args) else (str(error),)
    state = {name: value for name, value in vars(error).items() if _crosses(value)}
    copies = (_Copy(kind, args, state) for kind in type(error).__mro__)
    return next(pickle.dumps(copy) for copy in copies if _crosses(copy))


def _crosses(value: Any) -> bool:
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # noqa: BLE001 - whatever it is, it does not
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Copy:
    """Unpickles as an error of that kind."""

    kind: type[Any]
    args: tuple[Any, ...]
    state: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.kind, self.args, self.state)


def _rebuilt(kind: Any, args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error: BaseException = kind.__new__(kind, *args)  # past its `__init__`
    vars(error).update(state)
    return error


# Calls.


class ProcessCall:
    """One call of a tool in another process.

    Attributes:
        name: The tool's name.
        future: Done once the call is, whatever became of it; to be waited for or called
            back by. What it holds is for `wait` to read. To cancel it is to kill.
    """

    def __init__(self, order: _Order) -> None:
        self.name = order.target.name
        self.future: Future[_Answer] = Future()
        self._order = order
        self._sent = _clock.now()
        self._worker: _Worker | None = None
        self.future.add_done_callback(self._done)

    def wait(self) -> Any:
        """Return the result of the call, or raise its error, once it is there.

        Raises:
            concurrent.futures.CancelledError: If the call was killed.
            RuntimeError: If its process ended by itself, or could not be started.
        """
        try:
            worked, data, text = self.future.result()
        except ProcessExpired as error:
            raise RuntimeError(f"tool {self.name!r}: {_ending(error)}") from error
        except (BrokenProcessPool, OSError) as error:
            msg = f"tool {self.name!r}: its process could not be used: {error!r}"
            raise RuntimeError(msg) from error
        try:
            value = pickle.loads(data)
        except Exception as error:
            msg = (
                f"what tool {self.name!r} returned or raised in its process cannot be "
                f"read here: {error!r}. Return plain values"
            )
            raise TypeError(msg) from error
        if worked:
            return value
        if text:
            value.add_note(f"In the process of tool {self.name!r}:\n{text}")
        try:
            raise value
        finally:
            del value  # its traceback has this frame: a cycle without this

    def kill(self) -> None:
        """Stop the call: its process is killed, at once and without a wait for it."""
        self.future.cancel()

    def begin(self, worker: _Worker) -> None:
        """Make the call in that worker's process."""
        order, left = self._order, self._order.left
        if left is not None:
            order = replace(order, left=left - (_clock.now() - self._sent))
        self._worker = worker
        worker.serve(order, self._ended)
        if self.future.cancelled():
            worker.kill()  # killed meanwhile

    def fail(self, error: BaseException) -> None:
        """End the call with an error of ours."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _ended(self, answer: Future[_Answer]) -> None:
        """Pass the answer on, unless the call was killed before it came."""
        if not self.future.set_running_or_notify_cancel():
            return
        error = answer.exception()
        workers, worker = 
