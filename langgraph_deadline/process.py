"""Run the body of a blocking tool in another process, which is killed at its deadline.

For `with_deadline(tool, isolation="process")`. Needs the extra `process` (Pebble). What
crosses is plain: the arguments, the deadline, the idempotency key, and the result or
the error. Callbacks, configs and stores stay here; so does what a tool has in memory.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
import multiprocessing
import os
import pickle
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from multiprocessing import spawn, util
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
from ._tool_call import key_in_process

if sys.platform != "win32":
    from multiprocessing import forkserver
    from multiprocessing.context import ForkServerProcess

max_workers: int = max(os.cpu_count() or 1, 4)
"""How many calls run at once; more wait. Read when the first call is made."""


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
    if _hook(type(tool)) in (_hook(StructuredTool), _hook(Tool)):
        body = getattr(tool, "func", None)
        kind = "function"
        if body is None:
            body = getattr(tool, "coroutine", None)
            kind = "coroutine"
        if body is None:
            raise _refused(tool.name, "it has no function")
        _check_parameters(tool, body)
    else:
        _check_parameters(tool, _hook(tool))
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


def _hook(of: Any, name: str = "_run") -> Any:
    """Return what LangChain leaves to tools to define, and calls itself."""
    return getattr(of, name)


def _refused(name: str, why: str) -> TypeError:
    return TypeError(f"tool {name!r} cannot run in a process of its own: {why}")


def _check_parameters(tool: BaseTool, body: Callable[..., Any]) -> None:
    """Refuse what is bound to this process."""
    annotated = body.func if isinstance(body, functools.partial) else body
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError, AttributeError):
        hints = {}  # LangChain injects nothing then, either
    parameters = inspect.signature(body).parameters
    known = {name: hints.get(name) for name in parameters}
    if isinstance(tool.args_schema, type):
        known |= get_all_basemodel_annotations(tool.args_schema)
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
    def reducer_override(self, obj: Any) -> Any:
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


def _importable(module: str) -> bool:
    """Return whether another process could import `module`."""
    if module in _MAIN:
        return bool(_main_here())
    return _can_be_found(module.partition(".")[0])


@functools.cache
def _can_be_found(package: str) -> bool:
    return any(finder.find_spec(package, None) is not None for finder in sys.meta_path)


_caller_main: dict[str, str] = {}
"""In a tool's process: how it imports the caller's script, once it has had to."""


def _main_here() -> dict[str, str]:
    """Return how another process imports our `__main__`; nothing in a notebook."""
    if _caller_main:
        return _caller_main
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
    _caller_main.update(main)
    _importing.set()
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
        return _hook(body)(*args, **kwargs)
    except NotImplementedError:  # how tools say that they are async only
        if _hook(type(body), "_arun") is _hook(BaseTool, "_arun"):
            raise
    return asyncio.run(_hook(body, "_arun")(*args, **kwargs))


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
        future: Done once the call is, whatever became of it; to be waited for or to be
            called back by. What it holds is for `wait` to read. To cancel it is to kill
            the call.
    """

    def __init__(self, order: _Order) -> None:
        self.name = order.target.name
        self.future: Future[_Answer] = Future()
        self._order = order
        self._sent = _clock.now()
        # Empty before and after its time with a worker. Who takes the worker out is the
        # one to say what becomes of it; lists are atomic.
        self._worker: list[_Worker] = []
        self.future.add_done_callback(self._stop)

    def wait(self) -> Any:
        """Return the result of the call, or raise its error, once it is there.

        Raises:
            concurrent.futures.CancelledError: If the call was killed.
            RuntimeError: If its process ended by itself, or could not be started.
        """
        broken = self.future.exception()
        if broken is not None:
            raise RuntimeError(self._ending(broken)) from broken
        worked, data, text = self.future.result()
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
        """Stop the call: its process is killed at once, and nobody waits for that."""
        self.future.cancel()

    def begin(self, worker: _Worker) -> None:
        """Make the call in that worker's process."""
        order, left = self._order, self._order.left
        if left is not None:
            order = replace(order, left=left - (_clock.now() - self._sent))
        self._worker.append(worker)
        worker.serve(order, self._ended)
        self._stop(self.future)  # if it was killed meanwhile

    def fail(self, error: Exception) -> None:
        """End the call with an error of its process."""
        self._kill_worker()
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _stop(self, future: Future[_Answer]) -> None:
        if future.cancelled():
            self._kill_worker()

    def _kill_worker(self) -> None:
        for worker in self._take_worker():
            worker.kill()

    def _take_worker(self) -> list[_Worker]:
        try:
            return [self._worker.pop()]
        except IndexError:
            return []

    def _ended(self, answer: Future[_Answer]) -> None:
        # From here on it cannot be killed any more, or it has been.
        if not self.future.set_running_or_notify_cancel():
            return
        error = answer.exception()
        if error is not None:
            self._kill_worker()
            self.future.set_exception(error)
            return
        for worker in self._take_worker():
            worker.free()  # before who waits runs on, so that it finds this worker
        self.future.set_result(answer.result())

    def _ending(self, error: BaseException) -> str:
        whose = f"the process of tool {self.name!r}"
        if not isinstance(error, ProcessExpired):
            return f"{whose} could not be used: {error.__cause__ or error!r}"
        code = error.exitcode or 0
        how = f"with exit code {code}"
        if code < 0:
            how = f"by signal {-code} ({signal.strsignal(-code)})"
        return f"{whose} ended {how} before it answered; the outcome is unknown"


def start(
    target: Target,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    seconds_left: float | None,
    key: str | None,
) -> ProcessCall:
    """Begin a call in another process; it has to wait while `max_workers` are busy.

    Args:
        target: What `target_of` found out about the tool.
        args: The call's arguments.
        kwargs: The call's keyword arguments.
        seconds_left: What `remaining()` begins with in the process. Who calls has to
            `kill` in time.
        key: The call's idempotency key.

    Raises:
        TypeError: If an argument cannot cross; the message names it.
        RuntimeError: If a process that runs a tool imports the caller's script, and
            the script calls the tool again.
    """
    if _importing.is_set():
        msg = (
            f"tool {target.name!r} is called while a process that runs a tool imports "
            "this script. Put what the script does under `if __name__ == '__main__':`, "
            "or move the tool to a module of its own"
        )
        raise RuntimeError(msg)
    arguments = _dump_arguments(target.name, args, kwargs)
    call = ProcessCall(_Order(target, arguments, seconds_left, key, _main_here()))
    _the_workers().submit(call)
    return call


def _dump_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return _dumps((args, kwargs))
    except Exception as error:
        which = [
            f"{which!r} ({type(value).__name__})"
            for which, value in (*enumerate(args), *kwargs.items())
            if not _dumpable(value)
        ]
        msg = (
            f"argument {', '.join(which)} of tool {name!r} cannot cross to the tool's "
            f"process: {error}. Pass plain values"
        )
        raise TypeError(msg) from error


def _dumpable(value: Any) -> bool:
    try:
        _dumps(value)
    except Exception:  # noqa: BLE001 - whatever pickling runs into
        return False
    return True


def warm_up() -> None:
    """Start a process now, in the background: the first call then finds one waiting."""
    nothing = Target("warm_up", "function", _dumps(os.getpid))
    start(nothing, (), {}, seconds_left=None, key=None)


def shut_down() -> None:
    """Kill all calls and end all processes; the next call starts new ones."""
    global _workers
    with _lock:
        workers, _workers = _workers, None
    if workers is not None:
        workers.close()


# The processes.


class _Workers:
    """The processes of this one: started as they are needed, and used again."""

    def __init__(self, most: int) -> None:
        self._room = threading.Semaphore(most)
        self._idle: list[_Worker] = []
        self._waiting: SimpleQueue[ProcessCall | None] = SimpleQueue()
        self._calls: set[ProcessCall] = set()
        self._closed = False
        _preload()
        # Pebble would queue calls as well, but one that is killed there begins first.
        # And starting a process takes its time, which no caller should have to wait.
        threading.Thread(target=self._feed, name=_NAME, daemon=True).start()

    def submit(self, call: ProcessCall) -> None:
        """Make a call as soon as a worker is free."""
        self._calls.add(call)
        call.future.add_done_callback(lambda _: self._calls.discard(call))
        self._waiting.put(call)

    def _feed(self) -> None:
        while (call := self._waiting.get()) is not None:
            self._room.acquire()
            if call.future.cancelled():
                self._room.release()
                continue
            try:
                worker = self._worker()
            except Exception as error:  # noqa: BLE001 - it is told who waits
                self._room.release()
                call.fail(error)
                continue
            try:
                call.begin(worker)
            except Exception as error:  # noqa: BLE001 - likewise
                call.fail(error)
            del call, worker  # a thread that waits keeps nothing alive

    def _worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.usable():
                return worker
            worker.end()
        return _Worker(self)

    def back(self, worker: _Worker) -> None:
        """Take back a worker that has answered."""
        self._idle.append(worker)
        self._room.release()

    def gone(self) -> None:
        """Note that a worker is no more."""
        self._room.release()

    def close(self) -> None:
        """Kill what is being done, and end the idle processes."""
        for call in tuple(self._calls):
            call.kill()
        self._waiting.put(None)
        ends = []
        while self._idle:
            ends.append(self._idle.pop().end())
        for end in ends:
            end.join()


class _Worker:
    """A process that makes one call after the other.

    A pool of its own for each: the workers of one pool read from one pipe, under one
    lock. There a call can get lost when the worker that just took it is killed for the
    call before, and one worker's death can leave the lock to nobody.
    """

    def __init__(self, workers: _Workers) -> None:
        self._workers = workers
        self._process: _Mortal | None = None
        self._ends: list[Any] = []
        self._pool = ProcessPool(max_workers=1, initializer=_begin, context=self)
        if not self._pool.active:  # asking starts it
            msg = "the process pool did not start"
            raise BrokenProcessPool(msg)

    # What Pebble asks of a multiprocessing context.

    def Pipe(self, duplex: bool = True) -> Any:  # noqa: N802 - multiprocessing's name
        ends = _context().Pipe(duplex)
        for end in ends:
            _close_between_uses(end)
        self._ends += ends
        return ends

    def RLock(self) -> Any:  # noqa: N802 - multiprocessing's name
        return _context().RLock()

    def get_start_method(self) -> str:
        method: str = _context().get_start_method()
        return method

    def Process(self, **kwargs: Any) -> _Mortal:  # noqa: N802 - multiprocessing's name
        if self._process is not None:
            msg = "a worker that ended is not replaced in its own pool"
            raise OSError(msg)
        self._process = _process_class()(**kwargs)
        return self._process

    def usable(self) -> bool:
        """Return whether it can make another call."""
        process = self._process
        return process is not None and process.is_alive() and self._pool.active

    def serve(self, order: _Order, ended: Callable[[Future[_Answer]], None]) -> None:
        """Make a call, and call `ended` with what came of it."""
        self._pool.schedule(_serve, args=(order,)).add_done_callback(ended)

    def free(self) -> None:
        """Be there for the next call."""
        self._workers.back(self)

    def kill(self) -> None:
        """Kill the process, at once."""
        if self._process is not None:
            self._process.terminate()  # at once; the rest can wait for a thread
        self.end()
        self._workers.gone()

    def end(self) -> threading.Thread:
        """End process and pool, in a thread: it takes up to a quarter of a second."""
        thread = threading.Thread(target=self._end, name=_NAME, daemon=True)
        thread.start()
        return thread

    def _end(self) -> None:
        pool: Any = self._pool  # in part without types
        pool.stop()
        if self._process is not None:
            self._process.terminate()
            self._process.join()
        # Its own ends, of which we have copies: what Pebble's threads were writing to
        # it or reading from it, if that was cut short, is over with these.
        to_worker, _, _, from_worker = self._ends
        to_worker.close()
        from_worker.close()
        pool.join()
        if self._process is not None:
            with _starting:  # when a process starts, all others are looked at
                self._process.close()


def _close_between_uses(connection: Any) -> None:
    """Let a connection be closed only when nobody is inside of it.

    Pebble closes the pipes of a pool that ends while its threads may be at work with
    them. The next pipe gets the same number, and they would go on there: with the
    messages of somebody else.
    """
    lock = threading.Lock()

    def alone(use: Callable[..., Any]) -> Callable[..., Any]:
        def used(*args: Any) -> Any:
            with lock:
                return use(*args)

        return used

    for name in ("recv", "send", "close"):
        setattr(connection, name, alone(getattr(connection, name)))


class _Mortal(BaseProcess):
    """A worker process; with it ends what it has started.

    Killed at once, without a SIGTERM before: Pebble answers that one by leaving without
    any `finally`, so there is nothing in it for a tool; and it would wait 3 s for a
    process that is in a C call or ignores it. What has a session of its own
    (`start_new_session=True`) is left alone.
    """

    def start(self) -> None:
        if _exiting.is_set():
            msg = "the interpreter ends"
            raise OSError(msg)
        self._owner = os.getpid()
        with _without_main():
            super().start()
        if _exiting.is_set():
            self.terminate()

    def terminate(self) -> None:
        if not self.is_alive():
            return
        if sys.platform != "win32" and self.pid is not None:
            # Without a group it has just been started, or has just ended.
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.kill()

    # A forked process (`os.fork`) has inherited the object, but not the child.

    def is_alive(self) -> bool:
        return self._owner == os.getpid() and super().is_alive()

    def join(self, timeout: float | None = None) -> None:
        if self._owner == os.getpid():
            super().join(timeout)

    @property
    def exitcode(self) -> int | None:
        # Pebble takes an exit with 0 for the end of the pool, and would wait for ever
        # for what the worker was doing. A tool that calls `os._exit(0)` is no reason.
        return super().exitcode or None


class _SpawnProcess(_Mortal, SpawnProcess):
    pass


if sys.platform != "win32":

    class _ForkServerProcess(_Mortal, ForkServerProcess):
        pass


def _context() -> Any:
    """Return how processes are started.

    Never by a plain fork: this process has threads, and a copy of it would have their
    locks without them. The fork server is a process of its own without threads, that
    has imported this package once for all workers. Where there is none, and in a forked
    process, which cannot use its parent's, workers are started from scratch.
    """
    method = "spawn" if sys.platform == "win32" or _forked.is_set() else "forkserver"
    return multiprocessing.get_context(method)


def _preload() -> None:
    """Let the fork server import this package, beside what it has been told to.

    Nothing of the user's: what a module opens when it is imported (sockets, threads)
    must not be shared by workers.
    """
    if sys.platform != "win32":
        told: list[str] = vars(forkserver)["_forkserver"]._preload_modules  # noqa: SLF001
        if __name__ not in told:
            _context().set_forkserver_preload([*told, __name__])


def _process_class() -> type[_Mortal]:
    if sys.platform == "win32" or _forked.is_set():
        return _SpawnProcess
    return _ForkServerProcess


@contextmanager
def _without_main() -> Generator[None]:
    """Start a process that does not import our `__main__` at once.

    Tools in modules need none of it, so their scripts work without `if __name__ ==
    "__main__"`, and are not run once per worker. Where it is needed it is imported
    later. multiprocessing has no option for this.
    """
    whole, here = spawn.get_preparation_data, threading.get_ident()

    def without_main(name: str) -> dict[str, Any]:
        data = whole(name)
        if threading.get_ident() != here:
            return data  # somebody else's process
        return {k: v for k, v in data.items() if not k.startswith("init_main")}

    with _starting:
        spawn.get_preparation_data = without_main
        try:
            yield
        finally:
            spawn.get_preparation_data = whole


_NAME = "langgraph-deadline-processes"
_starting = threading.Lock()
_exiting = threading.Event()
_forked = threading.Event()
_lock = threading.Lock()
_workers: _Workers | None = None


def _the_workers() -> _Workers:
    global _workers  # noqa: PLW0603 - one for all
    with _lock:
        if _workers is None:
            # Not `atexit`, which processes of multiprocessing leave out: they would
            # wait for the end of ours.
            util.Finalize(None, _at_exit, exitpriority=10)
            if max_workers < 1:
                msg = f"process.max_workers must be 1 or more, got {max_workers!r}"
                raise ValueError(msg)
            _workers = _Workers(max_workers)
        return _workers


def _after_fork() -> None:
    """Leave the parent's workers to the parent."""
    global _workers, _lock, _starting
    _workers, _lock, _starting = None, threading.Lock(), threading.Lock()
    _forked.set()


def _at_exit() -> None:
    """End all processes, and start none any more."""
    _exiting.set()
    for child in multiprocessing.active_children():
        if isinstance(child, _Mortal):
            child.terminate()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
