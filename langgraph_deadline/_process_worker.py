"""A worker: a process that runs tools, and can be killed at any moment.

Each has a pipe of its own, and no lock is shared. Where several read from one pipe, a
worker that is killed can take a message of another's, half of one, or the lock with it;
here there is nothing for it to take but its own call.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from multiprocessing import process as multiprocessing_process
from multiprocessing import spawn, util
from multiprocessing.connection import Connection, wait
from typing import Any

from ._process_serve import Answer, Order, serve

if sys.platform != "win32":
    from multiprocessing import forkserver

_SOON = 10.0  # seconds for a process to end that was killed, or has closed its pipe

_starting = threading.Lock()
_exiting = threading.Event()
_forked = threading.Event()
_alive: set[Worker] = set()


class WorkerDiedError(Exception):
    """A worker ended before it answered; the argument says how."""


class Worker:
    """A process that makes one call after the other.

    Only one thread makes calls with it; `kill` is for any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._pipe, theirs = _context().Pipe()
        try:
            with theirs:  # our copy: the pipe is to end with the process
                self._process: Any = _started(theirs)
        except BaseException:
            self._pipe.close()
            raise
        _alive.add(self)
        if _exiting.is_set():
            self.kill()

    def usable(self) -> bool:
        """Return whether it waits for a call: an idle one has nothing to say."""
        return not wait([self._pipe, self._process.sentinel], 0)

    def make(self, order: Order) -> Answer:
        """Make a call and return its answer.

        Raises:
            WorkerDiedError: If the process ended, or was killed, before it answered.
        """
        try:
            self._pipe.send_bytes(pickle.dumps(order))
            # Not for the pipe alone: what the tool has started may hold its other end.
            wait([self._pipe, self._process.sentinel])
            if self._pipe.poll():
                answer: Answer = pickle.loads(self._pipe.recv_bytes())
                return answer
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._how_it_ended()) from error
        raise WorkerDiedError(self._how_it_ended())

    def kill(self) -> None:
        """Kill the process, and with it what it has started; nobody waits for that."""
        # The lock is for the numbers of the process and of the pipe: once they are
        # given back, they may be somebody else's.
        with self._lock:
            if self._ended:
                return
            _kill(self._process)
            _shut(self._pipe)

    def end(self) -> None:
        """Kill the process, and give back what it held."""
        self.kill()
        wait([self._process.sentinel], _SOON)
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._pipe.close()
            if not self._process.is_alive():
                self._process.close()  # else when nobody refers to it any more
        _alive.discard(self)

    def _how_it_ended(self) -> str:
        wait([self._process.sentinel], _SOON)
        with self._lock:
            code = self._process.exitcode
        if code is None:
            return "by closing its pipe"
        if code < 0:
            return f"by signal {-code} ({signal.strsignal(-code)})"
        return f"with exit code {code}"


def _kill(process: Any) -> None:
    """Kill a process and its group.

    At once, without a SIGTERM before, which a tool in a C call would not notice. What
    has a session of its own (`start_new_session=True`) is left alone.
    """
    if not process.is_alive():
        return
    if sys.platform != "win32":
        # Without a group it has just been started, or has just ended.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _shut(pipe: Connection) -> None:
    """Let whoever is inside of a pipe's `send` or `recv` out.

    Where a process was forked while a worker started, or by a tool, it may hold a copy
    of the worker's end: the pipe does not end with the worker then.
    """
    if sys.platform != "win32":
        with socket.socket(fileno=os.dup(pipe.fileno())) as end, suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


# Starting one.


def prepare() -> None:
    """Prepare for workers: how they are started, and that they end with us."""
    # Not `atexit`, which processes of multiprocessing leave out.
    util.Finalize(None, _at_exit, exitpriority=10)
    if sys.platform != "win32":
        # The fork server imports this package once for all workers, beside what it has
        # been told to. Nothing of the user's: what a module opens when it is imported
        # (sockets, threads) must not be shared by workers.
        told: list[str] = vars(forkserver)["_forkserver"]._preload_modules  # noqa: SLF001
        if __name__ not in told:
            _context().set_forkserver_preload([*told, __name__])


def _context() -> Any:
    """Return how processes are started.

    Never by a plain fork: this process has threads, and a copy of it would have their
    locks without them. The fork server is a process of its own without threads. Where
    there is none, and in a forked process, which cannot use its parent's, workers are
    started from scratch.
    """
    method = "spawn" if sys.platform == "win32" or _forked.is_set() else "forkserver"
    return multiprocessing.get_context(method)


def _started(pipe: Connection) -> Any:
    """Start a process that serves `pipe`."""
    with _starting, _without_main():
        if _exiting.is_set():
            msg = "the interpreter ends"
            raise OSError(msg)
        started = _context().Process(target=serve, args=(pipe,))
        started.start()
        # It is looked after here alone. multiprocessing would wait for it at our end,
        # also in a forked process; and it looks at all its children whenever it starts
        # one, in any thread, while this one may just be closing it.
        vars(multiprocessing_process)["_children"].discard(started)
    return started


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

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = whole


# The end of this process, and processes that are forked from it.


def _at_exit() -> None:
    """End all processes, and start none any more."""
    _exiting.set()
    for worker in tuple(_alive):
        worker.kill()


def _after_fork() -> None:
    """Leave the parent's workers to the parent."""
    global _starting  # noqa: PLW0603 - its holder is a thread that is not here
    _starting = threading.Lock()
    _alive.clear()
    _forked.set()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
