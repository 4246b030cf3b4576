"""The other process: take an order, make the call, answer; again and again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from langchain_core.tools import BaseTool

from . import _clock
from ._process_pickle import loads
from ._process_target import Kind, Target, hook
from ._scope import Scope, current
from ._tool_call import key_in_process


@dataclass(frozen=True, slots=True)
class Order:
    """One call: what it calls, and what it sees there."""

    target: Target
    arguments: bytes
    left: float | None
    key: str | None
    main: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call: its result, or its error and where that was raised."""

    worked: bool
    data: bytes
    text: str = ""


def serve(pipe: Connection) -> None:
    """Make the calls that are ordered through `pipe`, until it is closed."""
    if sys.platform == "win32":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller
    else:
        os.setsid()  # so that what a tool starts can be killed with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            order = pickle.loads(pipe.recv_bytes())
            answer = copy_context().run(_answer, order)
            pipe.send_bytes(pickle.dumps(answer))
        except (EOFError, ConnectionError):
            return  # there is nobody any more to work for, or to tell


def _end_with_parent() -> None:
    """End once the parent is gone, however that came about."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if sys.platform != "win32":
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def _answer(order: Order) -> Answer:
    if order.left is not None:
        current.set(Scope(None, _clock.now() + order.left))
    key_in_process.set(order.key)
    try:
        body = loads(order.target.body, order.main)
        args, kwargs = loads(order.arguments, order.main)
        result = _call(order.target.kind, body, args, kwargs)
    except BaseException as error:  # noqa: BLE001 - it is raised in the caller
        text = "".join(traceback.format_exception(error))
        return Answer(False, _dump_error(error), text)
    try:
        return Answer(True, pickle.dumps(result))
    except Exception as error:  # noqa: BLE001 - whatever pickling runs into
        msg = (
            f"the result of tool {order.target.name!r}, a {type(result).__name__}, "
            f"cannot come back from its process: {error}. Return plain values"
        )
        return Answer(False, _dump_error(TypeError(msg)))


def _call(kind: Kind, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kind == "function":
        return body(*args, **kwargs)
    if kind == "coroutine":
        return asyncio.run(body(*args, **kwargs))
    try:
        return hook(body)(*args, **kwargs)
    except NotImplementedError:
        # LangChain's way to say that a tool is async only, if it is: one without async
        # code of its own has raised it for a reason of its own.
        if hook(type(body), "_arun") is hook(BaseTool, "_arun"):
            raise
    return asyncio.run(hook(body, "_arun")(*args, **kwargs))


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
