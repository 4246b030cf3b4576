"""Run the body of a blocking tool in another process, which is killed at its deadline.

For `with_deadline(tool, isolation="process")`. What crosses is plain: the arguments,
the deadline, the idempotency key, and the result or the error. Callbacks, configs and
stores stay here; so does what a tool has in memory.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from . import _clock
from ._process_pickle import dumps, importing_main, main_here
from ._process_serve import Answer, Order
from ._process_target import Target, target_of
from ._process_worker import Worker, WorkerDiedError, prepare

__all__ = ("ProcessCall", "Target", "max_workers", "shut_down", "start", "target_of")

max_workers: int = max(os.cpu_count() or 1, 4)
"""How many calls run at once; more wait. Read when the first call is made."""


class ProcessCall:
    """One call of a tool in another process.

    Attributes:
        name: The tool's name.
        future: Done once the call is, whatever became of it; to be waited for or to be
            called back by. What it holds is for `wait` to read. To cancel it is to kill
            the call.
    """

    def __init__(self, order: Order) -> None:
        self.name = order.target.name
        self.future: Future[Answer] = Future()
        self._order = order
        self._sent = _clock.now()
        self._worker: Worker | None = None
        self.future.add_done_callback(self._stop)

    def wait(self) -> Any:
        """Return the result of the call, or raise its error, once it is there.

        Raises:
            concurrent.futures.CancelledError: If the call was killed.
            RuntimeError: If its process ended by itself, or could not be started.
        """
        answer = self.future.result()
        try:
            value = pickle.loads(answer.data)
        except Exception as error:
            msg = (
                f"what tool {self.name!r} returned or raised in its process cannot be "
                f"read here: {error!r}. Return plain values"
            )
            raise TypeError(msg) from error
        if answer.worked:
            return value
        if answer.text:
            value.add_note(f"In the process of tool {self.name!r}:\n{answer.text}")
        try:
            raise value
        finally:
            del value  # its traceback has this frame: a cycle without this

    def kill(self) -> None:
        """Stop the call: its process is killed at once, and nobody waits for that."""
        self.future.cancel()

    def make(self, worker: Worker, workers: _Workers) -> None:
        """Make the call with a worker, which goes back to `workers` or ends then."""
        try:
            answer = self._answer_of(worker)
        except Exception as error:  # noqa: BLE001 - it is told who waits
            worker.end()
            self.fail(error)
        else:
            # From here on it cannot be killed any more, or it has been.
            if self.future.set_running_or_notify_cancel():
                workers.back(worker)  # before who waits runs on, so that it finds it
                self.future.set_result(answer)
            else:
                worker.end()
        finally:
            self._worker = None

    def fail(self, cause: Exception) -> None:
        """End the call, unless it was killed, with what went wrong with its process."""
        what = f"could not be used: {cause!r}"
        if isinstance(cause, WorkerDiedError):
            what = f"ended {cause} before it answered; the outcome is unknown"
        error = RuntimeError(f"the process of tool {self.name!r} {what}")
        error.__cause__ = cause
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _answer_of(self, worker: Worker) -> Answer:
        # Either who kills the call sees the worker, or the call that it was killed.
        self._worker = worker
        self._stop(self.future)
        order, left = self._order, self._order.left
        if left is not None:
            order = replace(order, left=left - (_clock.now() - self._sent))
        return worker.make(order)

    def _stop(self, future: Future[Answer]) -> None:
        worker = self._worker
        if worker is not None and future.cancelled():
            worker.kill()


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
    if importing_main.is_set():
        msg = (
            f"tool {target.name!r} is called while a process that runs a tool imports "
            "this script. Put what the script does under `if __name__ == '__main__':`, "
            "or move the tool to a module of its own"
        )
        raise RuntimeError(msg)
    arguments = _dump_arguments(target.name, args, kwargs)
    call = ProcessCall(Order(target, arguments, seconds_left, key, main_here()))
    _the_workers().submit(call)
    return call


def _dump_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return dumps((args, kwargs))
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
        dumps(value)
    except Exception:  # noqa: BLE001 - whatever pickling runs into
        return False
    return True


def shut_down() -> None:
    """Kill all calls and end all processes; the next call starts new ones."""
    global _workers
    with _lock:
        workers, _workers = _workers, None
    if workers is not None:
        workers.close()


class _Workers:
    """The workers of this process: started as they are needed, and used again.

    Each call that is made has a thread, which ends when no other call waits.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: deque[ProcessCall] = deque()
        self._making: set[ProcessCall] = set()
        self._threads = 0
        self._idle: list[Worker] = []
        self._closed = False

    def submit(self, call: ProcessCall) -> None:
        """Make a call as soon as a worker is free."""
        # Not the caller's thread: it should not have to wait while a process starts.
        thread = threading.Thread(target=self._work, name=_NAME, daemon=True)
        with self._lock:  # which the thread needs first, so it finds the call
            if self._threads < self._most:
                thread.start()
                self._threads += 1
            self._waiting.append(call)

    def back(self, worker: Worker) -> None:
        """Take back a worker that has answered."""
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.end()

    def close(self) -> None:
        """Kill what is being done, and end the idle workers."""
        with self._lock:
            self._closed = True
            calls = (*self._waiting, *self._making)
            idle, self._idle = self._idle, []
        for call in calls:
            call.kill()
        for worker in idle:
            worker.end()

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                worker = self._worker()
            except Exception as error:  # noqa: BLE001 - it is told who waits
                call.fail(error)
            else:
                self._make(call, worker)
            with self._lock:
                self._making.discard(call)

    def _make(self, call: ProcessCall, worker: Worker) -> None:
        if call.future.cancelled():  # while the worker started
            self.back(worker)
        else:
            call.make(worker, self)

    def _next(self) -> ProcessCall | None:
        """Return the next call that was not killed while it waited."""
        with self._lock:
            while self._waiting:
                call = self._waiting.popleft()
                if not call.future.cancelled():
                    self._making.add(call)
                    return call
            self._threads -= 1
            return None

    def _worker(self) -> Worker:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return Worker()
            if worker.usable():
                return worker
            worker.end()


_NAME = "langgraph-deadline-processes"
_lock = threading.Lock()
_workers: _Workers | None = None


def _the_workers() -> _Workers:
    global _workers  # noqa: PLW0603 - one for all
    with _lock:
        if _workers is None:
            if max_workers < 1:
                msg = f"process.max_workers must be 1 or more, got {max_workers!r}"
                raise ValueError(msg)
            prepare()
            _workers = _Workers(max_workers)
        return _workers


def _after_fork() -> None:
    """Leave the parent's workers to the parent."""
    global _workers, _lock
    _workers, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
