"""Tools whose bodies run in another process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from langchain_core.callbacks import CallbackManagerForToolRun
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    BaseTool,
    InjectedToolCallId,
    StructuredTool,
    Tool,
    ToolException,
    tool,
)
from langgraph.prebuilt import InjectedState, InjectedStore, ToolRuntime
from langgraph.store.base import BaseStore

from langgraph_deadline import check, idempotency_key, remaining, with_deadline


def say_pid(path: str) -> None:
    """Tell the test which process this is."""
    partial = Path(f"{path}.new")
    partial.write_text(str(os.getpid()))
    partial.rename(path)


# What works.


@tool
def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


@tool("by_another_name")
def renamed(a: int) -> int:
    """Add one, under a name that is not the function's."""
    return a + 1


@tool
async def slowly(a: int) -> int:
    """Add one, only asynchronously."""
    await asyncio.sleep(0.01)
    return a + 1


def plain(a: int) -> int:
    """Add one."""
    return a + 1


async def aplain(a: int) -> int:
    """Say that the wrong one was called."""
    raise AssertionError(a)


both = StructuredTool.from_function(plain, aplain)
single = Tool("single", plain, "Add one.")
partial = StructuredTool(
    name="partial",
    description="Add one.",
    func=functools.partial(plain),
    args_schema=both.args_schema,
)


class Adder:
    """Has a method that is a tool."""

    def __init__(self, a: int) -> None:
        self.a = a

    def add(self, b: int) -> int:
        """Add."""
        return self.a + b

    @staticmethod
    def one(b: int) -> int:
        """Add one."""
        return b + 1


method = StructuredTool.from_function(Adder(1).add)
static = StructuredTool.from_function(Adder.one)


class Subclass(BaseTool):
    """A tool with a field, and a callback manager that it can do without."""

    name: str = "subclass"
    description: str = "Add."
    a: int = 1

    def _run(self, b: int, run_manager: CallbackManagerForToolRun | None = None) -> int:
        assert run_manager is None
        return self.a + b


class AsyncSubclass(BaseTool):
    """A tool that is async only, said as LangChain's own do."""

    name: str = "async_subclass"
    description: str = "Add one."

    def _run(self, b: int) -> int:
        raise NotImplementedError

    async def _arun(self, b: int) -> int:
        await asyncio.sleep(0.01)
        return b + 1


@functools.partial(with_deadline, seconds=30, isolation="process")
@tool
def decorated(a: int) -> int:
    """Add one; wrapped where it is defined."""
    return a + 1


@tool
def rebound(a: int) -> int:
    """Add one; wrapped under its own name."""
    return a + 1


rebound = with_deadline(rebound, seconds=30, isolation="process")


@tool
def injected(
    a: int,
    messages: Annotated[list[Any], InjectedState("messages")],
    id: Annotated[str, InjectedToolCallId],
) -> tuple[int, int, str]:
    """Return what was injected."""
    return a, len(messages), id


# What is seen from inside.


@tool
def pid() -> int:
    """Return which process this is."""
    return os.getpid()


@tool
def left_and_key() -> tuple[float, str | None]:
    """Return the seconds left and the idempotency key."""
    return remaining(), idempotency_key()


@tool
def checks() -> None:
    """Raise at the deadline, as soon as it has passed."""
    while True:
        check()
        time.sleep(0.01)


@tool
def echo(value: Any) -> Any:
    """Return the argument."""
    return value


@tool
def lock() -> Any:
    """Return what cannot be pickled."""
    return threading.Lock()


# What raises.


class ParticularError(Exception):
    """Pickles, but cannot be unpickled: it takes other arguments than it keeps."""

    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code
        self.lock = threading.Lock()


@tool
def fails(how: str) -> None:
    """Raise an error of that kind."""
    if how == "ToolException":
        raise ToolException("not today")
    if how == "Particular":
        raise ParticularError("disk", code=7)
    if how == "local":

        class LocalError(LookupError):
            pass

        raise LocalError("nobody else knows this class")
    if how == "OSError":
        raise FileNotFoundError(2, "no such file", "name")
    if how == "SystemExit":
        sys.exit(3)
    raise AssertionError(how)


@tool
def dies(how: str) -> None:
    """End the process."""
    if how == "0":
        os._exit(0)
    if how == "3":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSEGV)


@tool
def scribbles() -> None:
    """Write into the process's own sockets, whatever they are for."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, b"\0\0\0\4oops")


# What blocks.


@tool
def sleeps(path: str, seconds: float = 60) -> str:
    """Sleep."""
    say_pid(path)
    time.sleep(seconds)
    return "slept"


@tool
async def sleeps_async(path: str) -> None:
    """Sleep, swallowing every cancellation."""
    say_pid(path)
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


@tool
def spins(path: str) -> None:
    """Keep a core busy."""
    say_pid(path)
    while True:
        pass


@tool
def ignores_sigterm(path: str) -> None:
    """Sleep, and take no hints."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_pid(path)
    time.sleep(60)


@tool
def blocks_in_c(path: str) -> None:
    """Sleep in C, with the interpreter's lock, so that no other thread runs."""
    say_pid(path)
    ctypes.PyDLL(None).sleep(60)


@tool
def swallows(path: str) -> None:
    """Sleep, whatever is raised."""
    say_pid(path)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


@tool
def has_a_child(path: str) -> None:
    """Wait for a program; `path` is that program's process."""
    program = f"import os, time; open({path!r} + '.new', 'w').write(str(os.getpid())); "
    program += f"os.rename({path!r} + '.new', {path!r}); time.sleep(60)"
    subprocess.run([sys.executable, "-c", program], check=True)


@tool
def appends(path: str, text: str) -> None:
    """Have a lasting effect."""
    with Path(path).open("a") as file:
        file.write(text)


@tool
def leaves_a_daemon(path: str, then: str) -> bytes:
    """Fork a process in a session of its own, which has all that this one has open."""
    if os.fork() == 0:
        os.setsid()
        say_pid(path)
        time.sleep(60)
        os._exit(0)
    while not Path(path).exists():
        time.sleep(0.01)
    if then == "dies":
        os._exit(3)
    if then == "sleeps":
        time.sleep(60)
    return bytes(2_000_000)


# What cannot run elsewhere.


@tool
def takes_runtime(a: int, runtime: ToolRuntime) -> int:
    """Take what belongs to the process."""
    return a


@tool
def takes_runtime_with_types(a: int, around: ToolRuntime[None, dict[str, Any]]) -> int:
    """Take what belongs to the process."""
    return a


@tool
def takes_store(a: int, store: Annotated[BaseStore, InjectedStore()]) -> int:
    """Take what belongs to the process."""
    return a


@tool
def takes_optional_store(
    a: int, store: Annotated[BaseStore | None, InjectedStore()] = None
) -> int:
    """Take what belongs to the process."""
    return a


@tool
def takes_config(a: int, config: RunnableConfig) -> int:
    """Take what belongs to the process."""
    return a


class TakesManager(BaseTool):
    """A tool that cannot do without its callback manager."""

    name: str = "takes_manager"
    description: str = "Add."

    def _run(self, b: int, run_manager: CallbackManagerForToolRun) -> int:
        return b


class HasLock(BaseTool):
    """A tool that holds what cannot be pickled."""

    name: str = "has_lock"
    description: str = "Add."
    lock: Any = None

    def _run(self, b: int) -> int:
        return b


def closure() -> BaseTool:
    """Return a tool that is defined inside a function."""

    @tool
    def inner(a: int) -> int:
        """Add one."""
        return a + 1

    return inner


anonymous = StructuredTool.from_function(lambda a: a, name="anonymous", description="?")


def shadowed(a: int) -> int:
    """Add one."""
    return a + 1


hidden = StructuredTool.from_function(shadowed)


def shadowed(a: int) -> int:  # type: ignore[no-redef]
    """Subtract one."""
    return a - 1
