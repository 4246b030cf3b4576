"""What fails: bodies of nodes, tools, models and edges, for threads and for tasks.

A thread cannot be cancelled. What it can swallow, clean up after or fail on is what
`check` raises, so that is what the sync bodies do. Whoever outlives its cut then tries
whatever a straggler must not do (`Bench.go_on`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from langgraph.config import get_store, get_stream_writer

from langgraph_deadline import DeadlineExceeded, check

from .bench import PATIENCE, Bench, nap

HOUR = 3600.0
TICK = 0.02
DAY = 86_400.0

Body = Callable[[Bench], None]
AsyncBody = Callable[[Bench], Awaitable[None]]


def work_and_check(bench: Bench) -> None:
    """Work in small pieces, with a look at the deadline after each."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        check()
        if bench.released.wait(TICK):
            check()
            return


def hang(bench: Bench) -> None:
    bench.released.wait(PATIENCE)


async def ahang(bench: Bench) -> None:
    await asyncio.sleep(HOUR)


def swallow_once(bench: Bench) -> None:
    try:
        work_and_check(bench)
    except DeadlineExceeded:
        bench.go_on()


async def aswallow_once(bench: Bench) -> None:
    try:
        await asyncio.sleep(HOUR)
    except asyncio.CancelledError:
        bench.go_on()


def swallow_for_ever(bench: Bench) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not bench.released.is_set():
        with suppress(DeadlineExceeded):
            check()
        time.sleep(TICK)
    bench.go_on()


async def aswallow_for_ever(bench: Bench) -> None:
    while not bench.released.is_set():
        await nap(0.5)
    bench.go_on()


def clean_up_slowly(bench: Bench) -> None:
    try:
        work_and_check(bench)
    finally:
        bench.released.wait(PATIENCE)
        bench.go_on()


async def aclean_up_slowly(bench: Bench) -> None:
    try:
        await asyncio.sleep(HOUR)
    finally:
        await asyncio.sleep(0.75)  # it is given up by then, and the run still goes on
        bench.go_on()


def fail_while_cut(bench: Bench) -> None:
    try:
        work_and_check(bench)
    except DeadlineExceeded:
        msg = "while being cut"
        raise ConnectionError(msg) from None  # which retries are for


async def afail_while_cut(bench: Bench) -> None:
    try:
        await asyncio.sleep(HOUR)
    except asyncio.CancelledError:
        msg = "while being cut"
        raise ConnectionError(msg) from None  # which retries are for


def blocking_sleep(bench: Bench) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not bench.released.is_set():
        time.sleep(0.05)
    bench.go_on()


def blocking_c_call(bench: Bench) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(PATIENCE)
        bench.on_release.append(lambda: theirs.send(b"!"))
        ours.recv(1)
    bench.go_on()


def busy_loop(bench: Bench) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not bench.released.is_set():
        sum(range(100))
    bench.go_on()


async def block_the_loop(bench: Bench) -> None:
    """Compute past the work deadline, or past the deadline, without an await."""
    spent = bench.clock.monotonic() - bench.began
    bench.clock.advance(bench.work - spent + 0.5 if spent < bench.work else 3.0)


def touch(bench: Bench) -> None:
    """Do nothing: it is what comes after that fails."""


async def atouch(bench: Bench) -> None:
    """As `touch`."""


def use_store(bench: Bench) -> None:
    try:
        get_store().put(("kept",), "key", {"value": "kept"})
    except OSError:
        hang(bench)


async def ause_store(bench: Bench) -> None:
    try:
        await get_store().aput(("kept",), "key", {"value": "kept"})
    except OSError:
        await ahang(bench)


def write_and_hang(bench: Bench) -> None:
    get_stream_writer()("go")
    hang(bench)


async def awrite_and_hang(bench: Bench) -> None:
    get_stream_writer()("go")
    await ahang(bench)


def die(bench: Bench) -> None:
    """End the process as the kernel does when it runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


async def adie(bench: Bench) -> None:
    die(bench)


def clean_up(bench: Bench) -> None:
    try:
        work_and_check(bench)
    finally:
        time.sleep(0.1)


async def aclean_up(bench: Bench) -> None:
    try:
        await asyncio.sleep(HOUR)
    finally:
        await asyncio.sleep(0.1)


def jump(days: int) -> tuple[Body, AsyncBody]:
    """Return bodies that set the clock on the wall, and hang."""

    def body(bench: Bench) -> None:
        bench.clock.jumped = days * DAY
        hang(bench)

    async def abody(bench: Bench) -> None:
        bench.clock.jumped = days * DAY
        await ahang(bench)

    return body, abody
