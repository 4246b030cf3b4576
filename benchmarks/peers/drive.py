"""Run one case of one peer, inside that peer's environment, and tell what was seen.

`python -m benchmarks.peers.drive NAME --case CASE --url URL` prints one JSON object,
and stays until its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from . import work

GENEROUS = 30.0  # seconds: a deadline that is not meant to be met


class Peer(Protocol):
    """What a driver's `build(setup)` returns: one conversation with an agent."""

    async def turn(self, text: str, deadline: float) -> str:
        """Return the agent's answer to `text`; `deadline` is in seconds from now.

        Whatever the peer raises, it raises.
        """

    async def kept(self) -> str | None:
        """Return what the peer keeps of the conversation as text, `None` if it cannot.

        Called after the first turn has ended.
        """


@dataclass(frozen=True)
class Setup:
    """What a driver builds an agent from."""

    case: str
    url: str  # of the model, for `base_url`
    log: work.Log
    variant: str  # one of those that the driver's docstring tells
    key: str = "not-needed"
    model: str = "gpt-4o-mini"  # a name that every SDK knows

    @property
    def streaming(self) -> bool:
        """Whether to ask the SDK for a stream, with its own switch."""
        return self.case == "streams"

    def look_up(self) -> work.AsyncTool:
        return work.look_up(self.case, self.log)

    def research(self, *, retried: bool = False) -> work.Tool:
        """Return the faulty tool; `retried` for peers that retry no tools."""
        tool = work.research(self.case, self.log)
        return work.retried(tool) if retried and self.case == "retries" else tool


def result_of(task: asyncio.Task[str]) -> dict[str, Any]:
    if not task.done():
        return {"got": "nothing"}
    if task.cancelled():
        return {"got": "error", "error": "CancelledError", "message": ""}
    if error := task.exception():
        message = str(error).splitlines()[0][:200] if str(error) else ""
        return {"got": "error", "error": type(error).__name__, "message": message}
    text = str(task.result())
    kinds = {work.END: "answer", work.WORD: "partial", work.SORRY: "closing"}
    got = next((kind for mark, kind in kinds.items() if mark in text), "empty")
    return {"got": got, "text": text[-120:]}


async def observe(build: Any, variant: str, case: str, url: str) -> dict[str, Any]:
    """Return what was seen of one case, after a turn that warms the peer up."""
    warm = build(Setup("well", f"{url}/well/v1", work.Log(), variant))
    warmed = await warm.turn(work.ASK, GENEROUS)
    if work.END not in warmed:
        msg = f"without a deadline to meet the peer answers {warmed!r}"
        raise RuntimeError(msg)
    log = work.Log()
    peer: Peer = build(Setup(case, f"{url}/{quote(case)}/v1", log, variant))
    await asyncio.sleep(0.2)
    tasks_before, threads_before = asyncio.all_tasks(), set(threading.enumerate())

    began = time.monotonic()
    turn = asyncio.create_task(peer.turn(work.ASK, work.DEADLINE))
    await asyncio.wait({turn}, timeout=work.BOUND)
    ended = time.monotonic()
    seen: dict[str, Any] = {**result_of(turn), "began": began, "elapsed": ended - began}
    seen["found"] = any(name == "look_up" for name, _ in log.finished)
    kept = await peer.kept() if turn.done() else None
    seen["kept"] = None if kept is None else work.FOUND in kept

    look = max(ended, began + work.DEADLINE) + work.LINGER
    await asyncio.sleep(max(0.0, look - time.monotonic()))
    looked = time.monotonic()
    seen["looked"] = looked - began
    seen["tools"] = list(log.running)
    tasks = asyncio.all_tasks() - tasks_before - {turn}
    seen["tasks"] = sorted(map(_name, tasks))
    threads = set(threading.enumerate()) - threads_before
    seen["threads"] = sorted(thread.name for thread in threads)
    late = [name for name, at in log.started if at > began + work.DEADLINE]
    seen["started_late"] = late

    if turn.done():
        again = asyncio.create_task(peer.turn(work.AGAIN, GENEROUS))
        await asyncio.wait({again}, timeout=work.BOUND)
        seen["next"] = result_of(again)
        seen["again"] = [name for name, at in log.started if at > looked]
    return seen


def _name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", str(task.get_coro()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.drive")
    parser.add_argument("driver")
    parser.add_argument("--variant", default="")
    parser.add_argument("--case", choices=work.CASES, required=True)
    parser.add_argument("--url", required=True)
    args = parser.parse_args()
    # What the SDKs print is not for us.
    out, sys.stdout = sys.stdout, sys.stderr
    driver = importlib.import_module(f"benchmarks.peers.drivers.{args.driver}")

    async def all_of_it() -> None:
        seen = await observe(driver.build, args.variant, args.case, args.url)
        print(json.dumps(seen), file=out, flush=True)
        # What still runs may go on while somebody looks.
        await asyncio.to_thread(sys.stdin.read)
        # At once: closing the loop would wait for threads, and cancel what runs on.
        os._exit(0)

    asyncio.run(all_of_it())


if __name__ == "__main__":
    main()
