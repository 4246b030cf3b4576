"""How a run is driven, and how its caller leaves it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from langgraph_deadline import RunReport, _clock, collect_runs

from .bench import Bench

Leaving = Literal["cancelled", "cancelled twice", "closed"]
STREAMED: dict[str, Any] = {
    "stream_mode": ["updates", "custom", "values"],
    "subgraphs": True,
}


@dataclass
class Turn:
    """What the caller of one turn has in the end."""

    values: Any = None
    error: BaseException | None = None
    elapsed: float = 0.0
    left_at: float | None = None
    """When the caller left, for one that did."""
    reports: list[RunReport] = field(default_factory=list)


@dataclass
class Call:
    """One turn to be driven."""

    bench: Bench
    graph: Any
    inputs: Any
    config: Any
    options: dict[str, Any] = field(default_factory=dict)
    leaving: Leaving | None = None

    def note(self, turn: Turn, item: Any) -> bool:
        """Keep a chunk; return whether the caller leaves now."""
        namespace, mode, chunk = item
        if mode == "values" and not namespace:
            turn.values = chunk
        elif mode == "custom":
            self.bench.chunks.append(chunk)
        leaves = self.leaving == "closed" and mode == "custom"
        if leaves:
            turn.left_at = _clock.now()
        return leaves


def drive(call: Call) -> Turn:
    """Drive a turn of a sync cell; what it raises is returned."""
    turn = Turn()
    began = _clock.now()
    with collect_runs() as turn.reports, _interrupted(call, turn):
        try:
            if call.bench.how == "invoke":
                turn.values = call.graph.invoke(
                    call.inputs, call.config, **call.options
                )
            else:
                stream = call.graph.stream(
                    call.inputs, call.config, **STREAMED, **call.options
                )
                with closing(stream):
                    for item in stream:
                        if call.note(turn, item):
                            break
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - looked at
            turn.error = error
    turn.elapsed = _clock.now() - began
    return turn


async def adrive(call: Call) -> Turn:
    """As `drive`, in a task of its own where the caller is to be cancelled."""
    turn = Turn()
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        turn.left_at = turn.left_at or _clock.now()
        caller.cancel()

    def leave() -> None:
        loop.call_later(0.5, cancel)
        if call.leaving == "cancelled twice":
            loop.call_later(0.55, cancel)

    if call.leaving in ("cancelled", "cancelled twice"):
        call.bench.on_reach.append(leave)
    began = _clock.now()
    caller = asyncio.ensure_future(_caller(call, turn))  # an eager one begins at once
    await asyncio.wait([caller])
    turn.elapsed = _clock.now() - began
    if caller.cancelled():
        turn.error = asyncio.CancelledError()
    else:
        turn.error = caller.exception()
    return turn


async def _caller(call: Call, turn: Turn) -> None:
    with collect_runs() as turn.reports:
        if call.bench.how == "ainvoke":
            turn.values = await call.graph.ainvoke(
                call.inputs, call.config, **call.options
            )
            return
        stream = call.graph.astream(
            call.inputs, call.config, **STREAMED, **call.options
        )
        async with aclosing(stream):
            async for item in stream:
                if call.note(turn, item):
                    break


@contextmanager
def _interrupted(call: Call, turn: Turn) -> Iterator[None]:
    """Have Ctrl-C pressed a moment after the fault has begun, once or twice."""
    if call.leaving not in ("cancelled", "cancelled twice"):
        yield
        return
    armed = True
    main = threading.main_thread().ident or 0

    def interrupt(signum: int, frame: Any) -> None:
        if armed:
            turn.left_at = turn.left_at or _clock.now()
            raise KeyboardInterrupt

    def press() -> None:
        signal.pthread_kill(main, signal.SIGINT)

    presses = [0.1, 0.15][: 2 if call.leaving == "cancelled twice" else 1]
    timers = [threading.Timer(seconds, press) for seconds in presses]
    call.bench.on_reach.extend(timer.start for timer in timers)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        armed = False
        for timer in timers:
            if timer.ident is not None:
                timer.join()
        signal.signal(signal.SIGINT, before)
