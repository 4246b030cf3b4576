"""Run a case of a candidate, and make a row of what was seen."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import work
from .environments import ROOT
from .peers import Candidate
from .server import Model, Request

# The longest that a driver can need: to start and warm up, both turns, to look.
PATIENCE = 60.0 + 3 * work.BOUND
ON_TIME = 0.25  # seconds after the deadline that still pass: the machine may be busy
TICK = 0.05

# How each SDK says that tracing and telemetry are switched off.
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
SEEN = ("message", "tasks", "threads", "looked", "next")  # what the row keeps as it is


@dataclass
class Row:
    """What one candidate did in one case; `None` is what could not be seen."""

    peer: str
    case: str
    elapsed: float | None = None  # seconds until the caller had something
    got: str = ""  # answer, partial, closing, empty, error, nothing, or failed
    detail: str = ""  # the text, or the name of the error
    running: list[str] = field(default_factory=list)  # a second later
    started_late: list[str] = field(default_factory=list)
    tokens_late: int | None = None  # generated after the deadline
    tokens_open: bool = False  # still being generated when nobody looked any more
    kept: str = ""  # yes, no, n/a, or "-" where nothing was finished
    next_turn: str = ""
    others: list[float | None] = field(default_factory=list)  # `elapsed`, repeated
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def arrived(self) -> float:
        """Seconds until the caller had something; infinite if that was never."""
        if self.elapsed is None or self.got == "nothing":
            return math.inf
        return self.elapsed

    @property
    def latest(self) -> float:
        """Seconds until the caller had something in the later of two runs."""
        times = [math.inf if each is None else each for each in self.others]
        late = max(times, default=0.0)
        return max(self.arrived, late if late < work.BOUND else math.inf)

    @property
    def on_time(self) -> bool:
        return self.arrived <= work.DEADLINE + ON_TIME

    @property
    def usable(self) -> bool:
        """Whether the caller can show something on time."""
        return self.on_time and self.got in {"answer", "partial", "closing"}

    def listed(self) -> dict[str, Any]:
        return {**asdict(self), "on_time": self.on_time}


def run(candidate: Candidate, case: str) -> Row:
    """Return the row of one run, or of the better of two if the first was late."""
    first = once(candidate, case)
    return first if first.on_time else better(first, once(candidate, case))


def better(first: Row, second: Row) -> Row:
    """Return the row whose caller had something earlier; it keeps the other's time."""
    late, early = sorted((first, second), key=lambda row: row.arrived, reverse=True)
    early.others = [late.elapsed]
    return early


def once(candidate: Candidate, case: str) -> Row:
    """Run `case` in a process of its own, bounded, and kill what is left of it."""
    with Model() as model, tempfile.TemporaryDirectory() as home:
        command = [str(candidate.environment.python), "-m", "benchmarks.peers.drive"]
        command += [candidate.driver, "--variant", candidate.variant]
        command += ["--case", case, "--url", model.url]
        return observed(candidate.title, case, command, model, Path(home))


def observed(
    title: str, case: str, command: list[str], model: Model, home: Path
) -> Row:
    """Return the row that `command` prints; it may talk to `model` until it ends."""
    with (home / "errors").open("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            line = first_line(process, PATIENCE)
            if line:
                seen = json.loads(line)
                watch(model, seen["began"] + work.BOUND)
                return row(title, case, seen, model)
        finally:
            process.kill()
            process.communicate()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["nothing said"])[-1]
        return Row(title, case, got="failed", detail=last[:200])


def environment(home: Path) -> dict[str, str]:
    """Return the environment variables of a driver: nothing of the user's own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    places = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    return {**kept, **QUIET, **places}


def first_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return what the process prints first; nothing if it is too late, or ends."""
    if process.stdout is None:
        msg = "the process has no pipe for its output"
        raise ValueError(msg)
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else b""


def watch(model: Model, until: float) -> None:
    """Wait for the model to end what it generates, at most `until` that instant."""
    while time.monotonic() < until and model.active:
        time.sleep(TICK)


def row(title: str, case: str, seen: dict[str, Any], model: Model) -> Row:
    """Return the row of what a driver has `seen`, and the model."""
    began = seen["began"]
    deadline, looked = began + work.DEADLINE, began + seen["looked"]
    asked = [each for each in model.requests if each.began >= began and each.turn == 1]
    # What a next turn makes up for is not the first turn's.
    asked = [each for each in asked if each.began <= looked]
    calls = [f"{name} (tool)" for name in seen["tools"]]
    calls += ["model call"] * sum(alive(each, looked) for each in asked)
    late = [f"{name} (tool)" for name in seen["started_late"]]
    late += ["model call"] * sum(each.began > deadline for each in asked)
    return Row(
        peer=title,
        case=case,
        elapsed=round(seen["elapsed"], 2),
        got=seen["got"],
        detail=seen.get("error") or seen.get("text", "").strip(),
        running=calls or [f"{name} (task)" for name in seen["tasks"]],
        started_late=late,
        tokens_late=sum(at > deadline for each in asked for at in each.tokens),
        tokens_open=any(each.ended is None for each in asked),
        kept=kept(seen),
        next_turn=next_turn(seen, model, looked),
        seen={name: seen.get(name) for name in SEEN},
    )


def alive(request: Request, at: float) -> bool:
    return request.began <= at and (request.ended is None or request.ended > at)


def kept(seen: dict[str, Any]) -> str:
    if seen["got"] == "nothing":
        return "no"
    if not seen["found"]:
        return "-"
    return {True: "yes", False: "no", None: "n/a"}[seen["kept"]]


def next_turn(seen: dict[str, Any], model: Model, looked: float) -> str:
    after = seen.get("next")
    if after is None:
        return "no: still waiting for the first"
    if after["got"] == "error":
        return f"no: {after['error']}"
    if after["got"] != "answer":
        return f"no: {after['got']}"
    if seen["again"] or any(r.turn == 1 and r.began > looked for r in model.requests):
        return "yes, but what was cut runs again"
    last = [each for each in model.requests if each.turn == 2]
    return "yes" if last and last[-1].remembers else "yes, without history"
