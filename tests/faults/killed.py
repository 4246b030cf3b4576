"""Processes that are killed in the middle of a run, and the runs that go on elsewhere.

Run as a script it is where such processes come from: it has imported everything once,
and forks for each cell that it is told of.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from faults import invariants
from faults.bench import Bench
from faults.bodies import die
from faults.catalogue import Cell, every_combination
from faults.cell import HEALTHY, graph_of, thread
from faults.driving import Call, Turn, adrive, drive


class KillingSaver(SqliteSaver):
    """A checkpointer after whose first write in the fault nothing comes any more."""

    bench: Bench

    def put(self, *args: Any, **kwargs: Any) -> Any:
        saved = super().put(*args, **kwargs)
        if self.bench.reached:
            die(self.bench)
        return saved


class AsyncKillingSaver(AsyncSqliteSaver):
    """The same for event loops."""

    bench: Bench

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        saved = await super().aput(*args, **kwargs)
        if self.bench.reached:
            die(self.bench)
        return saved


@contextmanager
def sync_saver(bench: Bench, path: str, *, kills: bool) -> Iterator[None]:
    """Give the bench a checkpointer on the file `path`."""
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        bench.saver = (KillingSaver if kills else SqliteSaver)(connection)
        bench.saver.bench = bench
        yield
    finally:
        connection.close()


@asynccontextmanager
async def async_saver(bench: Bench, path: str, *, kills: bool) -> AsyncIterator[None]:
    """As `sync_saver`."""
    kind = AsyncKillingSaver if kills else AsyncSqliteSaver
    async with kind.from_conn_string(path) as bench.saver:
        bench.saver.bench = bench
        yield


# In the process that is killed.


def begin(cell: Cell, path: str) -> None:
    """Run the turn in which this process dies."""
    # The fallback waits for the deadline; any other fault must come before it.
    seconds = 1.5 if cell.place.name == "fallback" else 30.0
    bench = Bench(cell.how, real=True, seconds=seconds)
    kills = cell.fault.killed == "between"

    def call() -> Call:
        # What was finished is in the file before anything else begins.
        graph = graph_of(cell, bench)
        return Call(bench, graph, {"log": []}, thread("1"), {"durability": "sync"})

    async def main() -> None:
        async with async_saver(bench, path, kills=kills):
            await adrive(call())

    if bench.is_async:
        asyncio.run(main())
    else:
        with sync_saver(bench, path, kills=kills):
            drive(call())


def serve() -> None:
    """Fork for each cell that a line of the input names, and tell how it ended."""
    cells = {str(cell): cell for cell in every_combination()}
    for line in sys.stdin:
        name, path = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                begin(cells[name], path)
            finally:
                os._exit(1)
        print(os.waitpid(child, 0)[1], flush=True)


class Nursery:
    """The process that the processes to be killed come from."""

    def __init__(self) -> None:
        tests = Path(__file__).parent.parent
        paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def run_and_die(self, cell: Cell, path: str) -> None:
        """Run the first turn of `cell` until it is killed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([str(cell), path]) + "\n")
        stdin.flush()
        status = int(stdout.readline())
        assert os.WIFSIGNALED(status), f"it was not killed, but ended with {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


# In this process, afterwards.


def resume(cell: Cell, path: str) -> None:
    """Resume the run that died, and check it and the thread's next turn."""
    before = invariants.Before.now()
    bench = Bench(cell.how, real=True, faulty=False)
    turns: list[Turn] = []
    ran: list[list[str]] = []
    asked = ((None, "1"), ({"log": ["again"]}, "1"), ({"log": ["again"]}, "2"))

    def calls() -> Iterator[Call]:
        for inputs, name in asked:
            bench.started.clear()
            yield Call(bench, graph_of(cell, bench), inputs, thread(name), HEALTHY)
            ran.append(list(bench.started))

    async def main() -> None:
        async with async_saver(bench, path, kills=False):
            for call in calls():
                turns.append(await adrive(call))

    if bench.is_async:
        asyncio.run(main())
    else:
        with sync_saver(bench, path, kills=False):
            for call in calls():
                turns.append(drive(call))
    resumed_where_it_was(cell, turns[0], turns[2], ran[0])
    invariants.next_turn_is_clean(turns[1], turns[2], ran[1:])
    invariants.no_call_is_open(cell, turns[1])
    invariants.nothing_is_left(before)


def resumed_where_it_was(cell: Cell, turn: Turn, fresh: Turn, ran: list[str]) -> None:
    """Nothing that was saved is run again, and nothing is missing in the end."""
    assert turn.error is None, turn.error
    assert "earlier" not in ran
    log = turn.values["log"]
    if cell.place.name == "fallback":
        assert log == ["earlier", "sibling", "degrade", "closing"]
        assert ran.count("degrade") == (cell.fault.killed == "inside")
    else:
        assert sorted(["again", *log]) == sorted(fresh.values["log"])
        assert turn.values.get("found") == fresh.values.get("found")


if __name__ == "__main__":
    serve()
