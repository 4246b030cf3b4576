"""C12: a run leaves nothing behind, and a cancelled caller stops it for certain."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import anyio
import pytest
from harness import ALL, ASYNC, SYNC, How, adrive, drive, napper
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGenerationChunk
from langgraph.config import get_stream_writer
from langgraph.func import entrypoint, task
from langgraph.graph import END, START
from langgraph.types import Send

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    StateGraph,
    _clock,
    _run,
    current_deadline,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual


class State(TypedDict, total=False):
    log: str


def one(node: Any, **options: Any) -> Any:
    """Return a graph of one node called `work`."""
    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    return builder.compile(**options)


async def noop(state: State) -> dict[str, str]:
    return {"log": "done"}


def late(state: State) -> dict[str, str]:
    return {"log": "late"}


class Before:
    """What stragglers of other tests still hold when a test begins."""

    threads: frozenset[threading.Thread] = frozenset()
    runs = 0


@pytest.fixture(autouse=True)
def _before() -> None:
    Before.threads, Before.runs = frozenset(), 0
    Before.threads, Before.runs = frozenset(our_threads()), runs_alive()


def our_threads() -> list[threading.Thread]:
    """Return the live threads that this test's runs have started."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("langgraph-deadline") and thread not in Before.threads
    ]


def memory() -> float:
    """Return what the process holds in memory (in MiB)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _scheduled(loop: Any) -> list[Any]:
    """Return a loop's timers, none where it does not show them (uvloop)."""
    return list(getattr(loop, "_scheduled", ()))


def live_timers(loop: Any) -> list[Any]:
    """Return the timers that a loop still has to fire."""
    return [timer for timer in _scheduled(loop) if not timer.cancelled()]


def runs_alive() -> int:
    """Return how many runs of this test are still in memory."""
    gc.collect()
    alive = sum(type(thing) is _run.Run for thing in gc.get_objects())
    return max(alive - Before.runs, 0)


# Nothing is left.


@pytest.mark.realtime
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_c12_ten_thousand_runs_leave_nothing() -> None:
    """Memory, tasks, timers and threads stay as they were."""
    graph = one(noop, deadline=30, fallback=late)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(1_000):  # what is allocated once
            await graph.ainvoke({})
        gc.collect()
        before = memory()
        objects = len(gc.get_objects())
        for _ in range(10_000):
            await graph.ainvoke({})
        gc.collect()
        assert len(gc.get_objects()) - objects < 1_000
        assert memory() - before < 4
        assert our_threads() == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(live_timers(loop)) == 0
        # Cancelled timers of long deadlines must not pile up in the loop either.
        assert len(_scheduled(loop)) < 1_000

    asyncio.run(main())


@pytest.mark.realtime
def test_c12_many_sync_runs_leave_no_thread() -> None:
    """Threads are the run's and end with it."""
    graph = one(lambda state: {"log": "done"}, deadline=30, fallback=late)
    for _ in range(300):
        graph.invoke({})
        list(graph.stream({}))
    assert our_threads() == []
    assert runs_alive() <= 1  # the last one, of which a report may be asked for


@pytest.mark.parametrize("how", ASYNC)
def test_c12_many_cut_runs_leave_nothing(how: How) -> None:
    """A cut and a fallback leave no more behind than a run that completes."""
    graph = one(napper(how, 60), deadline=5, fallback=late)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(200):
            driven = await adrive(graph, {}, how)
            assert driven.values == {"log": "late"}
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert live_timers(loop) == []

    run_virtual(main())
    assert our_threads() == []
    assert runs_alive() == 0


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    "kind", ["completes", "fails", "cut", "fallback", "step", "sends"]
)
def test_c12_no_task_timer_or_thread_is_left(how: How, kind: str) -> None:
    """However a run ends, all that it started has ended with it."""

    def fail(state: State) -> None:
        raise KeyError

    async def afail(state: State) -> None:
        raise KeyError

    nodes: dict[str, Callable[[], Any]] = {
        "completes": lambda: one(napper(how, 0.01, {"log": "x"}), deadline=30),
        "fails": lambda: one(fail if how in SYNC else afail, deadline=30),
        "cut": lambda: one(napper(how, 0.4), deadline=0.1),
        "fallback": lambda: one(napper(how, 0.4), deadline=0.2, fallback=late),
        "step": lambda: one(
            napper(how, 0.4),
            deadline=DeadlinePolicy(seconds=30, steps={"work": {"seconds": 0.1}}),
            fallback=late,
        ),
        "sends": lambda: spread(how),
    }
    graph = nodes[kind]()
    left: list[Any] = []

    async def main() -> None:
        await adrive(graph, {}, how)
        left.extend(asyncio.all_tasks() - {asyncio.current_task()})
        left.extend(live_timers(asyncio.get_running_loop()))

    if how in SYNC:
        drive(graph, {}, how)
        if kind not in ("completes", "fails"):
            time.sleep(0.8)  # for the straggler
    else:
        run_virtual(main())
    assert left == []
    assert our_threads() == []
    assert runs_alive() == 0


def spread(how: How) -> Any:
    """Return a graph that is cut in twenty `Send`s at once."""
    builder = StateGraph(State)
    builder.add_node("work", napper(how, 0.4))
    builder.add_conditional_edges(
        START, lambda state: [Send("work", {}) for _ in range(20)], ["work"]
    )
    return builder.compile(deadline=0.1, fallback=late)


@pytest.mark.realtime
def test_c12_a_sync_stragglers_thread_ends_with_its_node() -> None:
    """A thread that was given up is a daemon, and goes when its work does."""
    graph = one(napper("invoke", 0.6), deadline=0.1)
    with pytest.raises(DeadlineExceeded):
        graph.invoke({})
    left = our_threads()
    assert left
    assert all(thread.daemon for thread in left)
    for thread in left:
        thread.join(3)
    assert our_threads() == []


@pytest.mark.realtime
def test_c12_sync_nodes_of_async_graphs_leave_no_thread() -> None:
    """They run in threads of the run, which end with it, not in the loop's executor."""

    def work(state: State) -> dict[str, str]:
        return {"log": threading.current_thread().name}

    async def main() -> set[threading.Thread]:
        before = set(threading.enumerate())
        for _ in range(50):
            out = await graph.ainvoke({})
            assert not out["log"].startswith("asyncio")
        return set(threading.enumerate()) - before

    graph = one(work, deadline=30)
    assert asyncio.run(main()) == set()
    assert our_threads() == []


# Processes end.


PRELUDE = """
import asyncio, threading, time
from typing import Any
from typing_extensions import TypedDict
from langgraph.graph import START
from langgraph_deadline import DeadlinePolicy, StateGraph

class State(TypedDict, total=False):
    log: str

def one(node: Any, **options: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    return builder.compile(**options)

def block(state):
    time.sleep(60)

async def stubborn(state):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

late = lambda state: {"log": "late"}
# A grace that leaves a good part of the reserve to the fallback.
soon = DeadlinePolicy(seconds=1, reserve=0.7, cancel_grace=0.1)
print("start", time.monotonic(), flush=True)
"""


def script(body: str) -> tuple[float, str, str]:
    """Run a script; return its seconds from first run to exit, and its output."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    ended = time.monotonic()
    assert done.returncode == 0, done.stderr
    start, _, rest = done.stdout.partition("\n")
    return ended - float(start.split()[1]), rest, done.stderr


SCRIPTS = {
    "sync node, ainvoke": """
        graph = one(block, deadline=1.5, fallback=late)
        print(asyncio.run(graph.ainvoke({})))
    """,
    "sync node, invoke": """
        graph = one(block, deadline=1.5, fallback=late)
        print(graph.invoke({}))
    """,
    "sync node, stream": """
        graph = one(block, deadline=1.5, fallback=late)
        print(*graph.stream({}, stream_mode="values"))
    """,
    "sync node, astream": """
        graph = one(block, deadline=1.5, fallback=late)
        async def main():
            print([c async for c in graph.astream({}, stream_mode="values")])
        asyncio.run(main())
    """,
    "sync node in a subgraph": """
        graph = one(one(block), deadline=1.5, fallback=late)
        print(asyncio.run(graph.ainvoke({})))
        print(graph.invoke({}))
    """,
    "ten sync nodes": """
        builder = StateGraph(State)
        for name in "abcdefghij":
            builder.add_node(name, block)
            builder.add_edge(START, name)
        graph = builder.compile(deadline=1.5, fallback=late)
        print(asyncio.run(graph.ainvoke({})))
    """,
    "swallows for ever, ainvoke": """
        graph = one(stubborn, deadline=soon, fallback=late)
        print(asyncio.run(graph.ainvoke({})))
    """,
    "swallows for ever, astream": """
        graph = one(stubborn, deadline=soon, fallback=late)
        async def main():
            print([c async for c in graph.astream({}, stream_mode="values")])
        asyncio.run(main())
    """,
    "swallows for ever in a subgraph": """
        graph = one(one(stubborn), deadline=soon, fallback=late)
        print(asyncio.run(graph.ainvoke({})))
    """,
    "a stream that is left": """
        async def slow(state):
            await asyncio.sleep(60)
        graph = one(slow, deadline=50)
        async def main():
            async for chunk in graph.astream({"log": "late"}, stream_mode="values"):
                print(chunk)
                break
        asyncio.run(main())
    """,
    "a sync stream that is left": """
        graph = one(block, deadline=50)
        for chunk in graph.stream({"log": "late"}, stream_mode="values"):
            print(chunk)
            break
    """,
}


@pytest.mark.realtime
@pytest.mark.parametrize("name", SCRIPTS)
def test_c12_a_process_ends_though_cut_work_goes_on(name: str) -> None:
    """Neither `asyncio.run` nor the interpreter's exit waits for a straggler."""
    elapsed, output, errors = script(SCRIPTS[name])
    assert "late" in output
    assert elapsed < 10
    assert "Traceback" not in errors
    assert "was never awaited" not in errors
    assert "was destroyed but it is pending" not in errors


@pytest.mark.realtime
def test_c12_an_uncaught_deadline_ends_a_script_at_once() -> None:
    """A script that dies of `DeadlineExceeded` does die."""
    elapsed, output, _ = script(
        """
        import os, sys, traceback
        try:
            asyncio.run(one(block, deadline=0.3).ainvoke({}))
        except TimeoutError as error:
            print("cut", type(error).__name__)
        """
    )
    assert output == "cut DeadlineExceeded\n"
    assert elapsed < 10


# The caller's context.


VAR: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")


def context() -> dict[str, Any]:
    """Return what the present context holds, by name."""
    return {var.name: value for var, value in contextvars.copy_context().items()}


def two_steps(how: How) -> Any:
    """Return a graph whose nodes set a context variable and write custom chunks."""

    def node(state: State) -> dict[str, str]:
        assert current_deadline() is not None
        VAR.set("set in a node")
        get_stream_writer()("custom")
        return {"log": VAR.get()}

    async def anode(state: State) -> dict[str, str]:
        return node(state)

    builder = StateGraph(State)
    for name in ("one", "two"):
        builder.add_node(name, node if how in SYNC else anode)
    builder.add_edge(START, "one")
    builder.add_edge("one", "two")
    return builder.compile(deadline=30, fallback=late)


@pytest.mark.parametrize("mode", ["updates", "values", "custom", "messages", "debug"])
def test_c12_nothing_leaks_between_two_items_of_a_stream(mode: str) -> None:
    """What the caller sees between two items is what it saw before."""
    graph = two_steps("stream")
    before = context()
    for _ in graph.stream({}, stream_mode=mode):
        assert context() == before
        assert current_deadline() is None
    assert context() == before


@pytest.mark.parametrize("mode", ["updates", "values", "custom", "messages", "debug"])
def test_c12_nothing_leaks_between_two_items_of_an_async_stream(mode: str) -> None:
    """What the caller sees between two items is what it saw before."""
    graph = two_steps("astream")

    async def main() -> None:
        before = context()
        async for _ in graph.astream({}, stream_mode=mode):
            assert context() == before
            assert current_deadline() is None
        assert context() == before

    run_virtual(main())


@pytest.mark.parametrize("deadline", [None, 30])
@pytest.mark.parametrize("how", ALL)
def test_c12_nothing_leaks_out_of_a_run(how: How, deadline: float | None) -> None:
    """Neither a run that completes nor one that is cut changes the caller's context."""

    async def main() -> None:
        before = context()
        await adrive(two_steps(how), {}, how)
        await adrive(one(napper(how, 60), deadline=deadline or 5), {}, how)
        assert context() == before

    if how in ASYNC:
        run_virtual(main())
        return
    before = context()
    drive(two_steps(how), {}, how)
    drive(one(napper(how, 0.4), deadline=0.1), {}, how)
    assert context() == before


@pytest.mark.parametrize("how", ALL)
def test_c12_the_callers_context_reaches_the_nodes(how: How) -> None:
    """What the caller has set is seen in nodes, also where it changes between items."""
    seen: list[str] = []

    def node(state: State) -> None:
        seen.append(VAR.get())

    async def anode(state: State) -> None:
        seen.append(VAR.get())

    token = VAR.set("of the caller")
    try:
        drive(one(node if how in SYNC else anode, deadline=30), {}, how)
    finally:
        VAR.reset(token)
    assert seen == ["of the caller"]


@pytest.mark.realtime
def test_c12_a_stream_may_be_continued_in_another_context() -> None:
    """A web framework may step one generator from several contexts and threads."""
    stream = two_steps("stream").stream({})
    contexts = [contextvars.copy_context() for _ in range(2)]
    items = [ctx.run(next, stream) for ctx in contexts]
    assert [list(item) for item in items] == [["one"], ["two"]]
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(next(stream, "end")))
    thread.start()
    thread.join(5)
    assert ended == ["end"]


# A caller that is cancelled.


class Witness:
    """Nodes that note what becomes of them."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended: list[str] = []
        self.ticks = 0

    async def cooperative(self, state: State) -> None:
        """Work in small steps and clean up, awaiting, when cancelled."""
        try:
            while True:
                self.ticks += 1
                if self.ticks == 3:
                    self.started.set()
                await asyncio.sleep(0.01)
        finally:
            await asyncio.sleep(0.05)
            self.ended.append("cleaned up")

    async def chatty(self, state: State) -> None:
        """Write custom chunks until cancelled."""
        writer = get_stream_writer()
        try:
            while True:
                self.ticks += 1
                writer(self.ticks)
                if self.ticks == 3:
                    self.started.set()
                await asyncio.sleep(0.01)
        finally:
            self.ended.append("cleaned up")

    async def model(self, state: State) -> Any:
        """Stream a model's tokens until cancelled."""
        try:
            words = " ".join(str(n) for n in range(500))
            chat = SlowModel(messages=iter([AIMessage(words)]), witness=self)
            await chat.ainvoke("?")
        finally:
            self.ended.append("cleaned up")


class SlowModel(GenericFakeChatModel):
    """A model that takes 10 ms for each token."""

    witness: Any

    async def _astream(self, *args: Any, **kwargs: Any) -> Any:
        for chunk in self._stream(*args):
            self.witness.ticks += 1
            if self.witness.ticks == 3:
                self.witness.started.set()
            if kwargs.get("run_manager"):
                await kwargs["run_manager"].on_llm_new_token(
                    str(chunk.message.content), chunk=chunk
                )
            yield ChatGenerationChunk(message=chunk.message)
            await asyncio.sleep(0.01)


async def consume(graph: Any, entry: str) -> None:
    """Run `graph` by the entry point `entry`, to its end."""
    if entry == "ainvoke":
        await graph.ainvoke({})
    elif entry == "astream_events":
        async for _ in graph.astream_events({}, version="v2"):
            pass
    else:
        async for _ in graph.astream({}, stream_mode=entry):
            pass


async def nothing_goes_on(witness: Witness) -> None:
    """Assert that the nodes have ended and do nothing more."""
    ticks = witness.ticks
    assert witness.ended
    await asyncio.sleep(0.1)
    assert witness.ticks == ticks
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert live_timers(asyncio.get_running_loop()) == []


CASES = [
    ("ainvoke", "cooperative"),
    ("values", "cooperative"),
    ("updates", "cooperative"),
    ("custom", "chatty"),
    ("custom", "cooperative"),
    ("messages", "model"),
    ("astream_events", "model"),
]
BOUNDS = {"deadline": {"deadline": 20}, "fallback": {"deadline": 20, "fallback": late}}


@pytest.mark.realtime
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("entry", "node"), CASES)
def test_c12_a_cancelled_task_ends_its_nodes(entry: str, node: str, bound: str) -> None:
    """`task.cancel()` raises where it should, once the node has cleaned up."""

    async def main() -> None:
        witness = Witness()
        graph = one(getattr(witness, node), **BOUNDS[bound])
        task = asyncio.create_task(consume(graph, entry))
        await asyncio.wait_for(witness.started.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_goes_on(witness)

    asyncio.run(main())


@pytest.mark.realtime
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("entry", "node"), CASES)
def test_c12_an_anyio_scope_ends_its_nodes(entry: str, node: str, nested: bool) -> None:
    """A scope that cancels again and again, as a web framework has, orphans nothing."""

    async def main() -> None:
        witness = Witness()
        work = getattr(witness, node)
        graph = one(one(work) if nested else work, deadline=20)
        async with anyio.create_task_group() as group:
            group.start_soon(consume, graph, entry)
            await asyncio.wait_for(witness.started.wait(), 10)
            group.cancel_scope.cancel()
        await nothing_goes_on(witness)

    asyncio.run(main())


@pytest.mark.realtime
@pytest.mark.parametrize(("entry", "node"), CASES)
def test_c12_a_scope_around_the_call_itself_ends_its_nodes(
    entry: str, node: str
) -> None:
    """So does a scope in the caller's own task, which then goes on."""

    async def main() -> None:
        witness = Witness()
        graph = one(getattr(witness, node), deadline=20)
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.3, scope.cancel)
            await consume(graph, entry)
        assert scope.cancelled_caught
        await nothing_goes_on(witness)

    asyncio.run(main())


@pytest.mark.realtime
@pytest.mark.parametrize(("entry", "node"), CASES)
def test_c12_a_second_cancellation_orphans_nothing(entry: str, node: str) -> None:
    """Cancelled once more while the nodes clean up, the caller still waits for them."""

    async def main() -> None:
        witness = Witness()
        graph = one(getattr(witness, node), deadline=20)
        task = asyncio.create_task(consume(graph, entry))
        await asyncio.wait_for(witness.started.wait(), 10)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_goes_on(witness)

    asyncio.run(main())


@pytest.mark.parametrize("entry", ["ainvoke", "values"])
def test_c12_a_cancelled_caller_waits_for_the_grace_at_most(entry: str) -> None:
    """A node that swallows its cancellation does not hold a cancelled caller up."""

    async def stubborn(state: State) -> None:
        until = _clock.now() + 30
        while _clock.now() < until:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                continue

    graph = one(stubborn, deadline=DeadlinePolicy(seconds=100, cancel_grace=0.5))

    async def main() -> float:
        task = asyncio.create_task(consume(graph, entry))
        await asyncio.sleep(2)
        began = _clock.now()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return _clock.now() - began

    # The engine gets a moment on top of what its last step may take.
    assert run_virtual(main()) <= 0.5 + 2 * _run.ENGINE_PATIENCE + 0.5


def test_c12_nothing_starts_after_the_caller_was_cancelled() -> None:
    """A node that returns in spite of its cancellation has no successor."""
    seen: list[str] = []

    async def first(state: State) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("swallowed")

    async def second(state: State) -> None:
        seen.append("second")

    async def fallback(state: State) -> None:
        seen.append("fallback")

    builder = StateGraph(State)
    builder.add_sequence([("first", first), ("second", second)])
    builder.add_edge(START, "first")
    graph = builder.compile(deadline=100, fallback=fallback)

    async def main() -> None:
        task = asyncio.create_task(graph.ainvoke({}))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(200)

    run_virtual(main())
    assert seen == ["swallowed"]


def test_c12_the_callers_own_timeout_is_its_own() -> None:
    """`asyncio.timeout` around a run raises `TimeoutError`, not our error."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(1):
                await one(napper("ainvoke", 60), deadline=20).ainvoke({})
        assert not isinstance(caught.value, DeadlineExceeded)
        assert task.cancelling() == 0

    run_virtual(main())


@pytest.mark.realtime
def test_c12_a_task_group_with_a_failing_sibling_ends_the_run() -> None:
    """A run in a `TaskGroup` ends with it."""

    async def main() -> None:
        witness = Witness()
        graph = one(witness.cooperative, deadline=20)

        async def fail() -> None:
            await witness.started.wait()
            raise KeyError

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(graph.ainvoke({}))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup):
            await both()
        await nothing_goes_on(witness)

    asyncio.run(main())


def test_c12_a_cancelled_run_is_reported_as_cancelled() -> None:
    """The report says what happened."""
    from langgraph_deadline import collect_runs

    async def main() -> Any:
        with collect_runs() as runs:
            task = asyncio.create_task(
                one(napper("ainvoke", 60), deadline=20).ainvoke({})
            )
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return runs

    (report,) = run_virtual(main())
    assert report.outcome == "cancelled"
    assert report.cause == "cancelled"


@pytest.mark.parametrize("mode", ["fallback", "raise"])
def test_c12_tasks_that_were_cut_do_not_complain_of_being_forgotten(mode: str) -> None:
    """Of several in flight the first ends the entrypoint; nobody awaits the others."""

    @task
    async def slow(number: int) -> int:
        await asyncio.sleep(3600)
        return number

    @entrypoint()
    async def work(count: int) -> list[int]:
        return [await one for one in [slow(number) for number in range(count)]]

    options: Any = {"fallback": lambda count: "degraded"} if mode == "fallback" else {}
    told: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        with contextlib.suppress(DeadlineExceeded):
            await with_deadline(work, 10, **options).ainvoke(3)
        gc.collect()

    run_virtual(main())
    gc.collect()
    assert told == []
