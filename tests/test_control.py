"""Stopping by hand: `RunControl.cancel`, and Ctrl-C."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Annotated, Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, Driven, How, adrive, drive
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START
from langgraph.runtime import RunControl as LangGraphRunControl
from langgraph.types import RetryPolicy

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlinePolicy,
    RunControl,
    StateGraph,
    collect_runs,
)
from langgraph_deadline.testing import run_virtual


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


BOUNDS: dict[str, dict[str, Any]] = {
    "no deadline": {},
    "deadline": {"deadline": 30},
}


def late(state: State) -> dict[str, Any]:
    """Answer what is answered after a cancellation."""
    return {"log": ["late"]}


def sleeper(how: How, seconds: float, name: str, started: Any) -> Any:
    """Return a node that tells that it has started, and takes its time."""

    def node(state: State) -> dict[str, Any]:
        started.set()
        time.sleep(seconds)
        return {"log": [name]}

    async def anode(state: State) -> dict[str, Any]:
        started.set()
        await asyncio.sleep(seconds)
        return {"log": [name]}

    return node if how in SYNC else anode


def graph_of(*nodes: Any, parallel: bool = False, **options: Any) -> Any:
    """Return a graph of `nodes`, one after the other or side by side."""
    builder = StateGraph(State)
    names = [f"n{index}" for index in range(len(nodes))]
    for name, node in zip(names, nodes, strict=True):
        builder.add_node(name, node)
    previous = START
    for name in names:
        builder.add_edge(START if parallel else previous, name)
        previous = name
    return builder.compile(**options)


def cancel_when(started: threading.Event, control: RunControl, **options: Any) -> None:
    """Cancel from another thread as soon as a node has started."""

    def wait() -> None:
        if started.wait(10):
            time.sleep(0.1)
            control.cancel(**options)

    threading.Thread(target=wait, daemon=True).start()


def check_cancelled(driven: Driven, *, answered: bool, finished: Any = ()) -> None:
    """Assert what a run that was cancelled at once looks like."""
    assert driven.elapsed < 2
    if answered:
        assert driven.error is None
        assert driven.values["log"] == [*finished, "late"]
        kinds = [step.kind for step in driven.report.steps]
        assert kinds.count("fallback") == 1
    else:
        assert isinstance(driven.error, DeadlineExceeded)
        assert driven.error.cause == "cancelled"
    assert driven.report.outcome == "cancelled"
    assert driven.report.cause == "cancelled"


# From another thread.


@pytest.mark.realtime
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("answered", [True, False], ids=["fallback", "raise"])
@pytest.mark.parametrize("how", ALL)
def test_control_cancel_ends_a_node_at_once(
    how: How, answered: bool, bound: str
) -> None:
    """Whether it blocks a thread or awaits, with a deadline or without."""
    started, control = threading.Event(), RunControl()
    options = {**BOUNDS[bound], **({"fallback": late} if answered else {})}
    graph = graph_of(
        lambda state: {"log": ["first"]}, sleeper(how, 3, "slow", started), **options
    )
    cancel_when(started, control)
    driven = drive(graph, {}, how, control=control)
    check_cancelled(driven, answered=answered, finished=["first"])


@pytest.mark.realtime
@pytest.mark.parametrize("answered", [True, False], ids=["fallback", "raise"])
@pytest.mark.parametrize("how", ALL)
def test_control_cancel_ends_parallel_nodes_at_once(how: How, answered: bool) -> None:
    """All of them; what one of them finished is kept."""
    started, control = threading.Event(), RunControl()
    graph = graph_of(
        sleeper(how, 0, "quick", threading.Event()),
        *[sleeper(how, 3, "slow", started) for _ in range(5)],
        parallel=True,
        **({"fallback": late} if answered else {}),
    )
    cancel_when(started, control)
    driven = drive(graph, {}, how, control=control)
    check_cancelled(driven, answered=answered, finished=["quick"])


@pytest.mark.realtime
@pytest.mark.parametrize("answered", [True, False], ids=["fallback", "raise"])
@pytest.mark.parametrize("how", ALL)
def test_control_cancel_ends_a_back_off_at_once(how: How, answered: bool) -> None:
    """A node that waits for its next attempt does not get it."""
    started, control = threading.Event(), RunControl()
    attempts: list[int] = []

    def fail(state: State) -> None:
        attempts.append(1)
        started.set()
        raise ConnectionError

    async def afail(state: State) -> None:
        fail(state)

    builder = StateGraph(State)
    retry = RetryPolicy(initial_interval=2.5, jitter=False)
    builder.add_node("work", fail if how in SYNC else afail, retry_policy=retry)
    builder.add_edge(START, "work")
    graph = builder.compile(deadline=30, **({"fallback": late} if answered else {}))
    cancel_when(started, control)
    driven = drive(graph, {}, how, control=control)
    check_cancelled(driven, answered=answered)
    assert len(attempts) == 1


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_control_cancel_ends_a_subgraph_at_once(how: How) -> None:
    """Three levels down, and with a deadline of its own there."""
    started, control = threading.Event(), RunControl()
    inner = graph_of(sleeper(how, 3, "slow", started), deadline=20)
    graph = graph_of(graph_of(inner), fallback=late)
    cancel_when(started, control)
    driven = drive(graph, {}, how, control=control)
    assert driven.elapsed < 2
    assert driven.values["log"] == ["late"]
    assert driven.reports[-1].outcome == "cancelled"


@pytest.mark.realtime
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("answered", [True, False], ids=["fallback", "raise"])
@pytest.mark.parametrize("how", ALL)
def test_control_cancel_before_the_start_runs_nothing(
    how: How, answered: bool, bound: str
) -> None:
    """A control that was used cuts the run as soon as it begins."""
    ran: list[str] = []
    control = RunControl()
    control.cancel()
    options = {**BOUNDS[bound], **({"fallback": late} if answered else {})}
    graph = graph_of(lambda state: ran.append("node"), **options)
    driven = drive(graph, {"log": ["in"]}, how, control=control)
    assert ran == []
    check_cancelled(driven, answered=answered, finished=["in"])


@pytest.mark.parametrize("answered", [True, False], ids=["fallback", "raise"])
@pytest.mark.parametrize("how", ALL)
def test_control_cancel_from_inside_a_node(how: How, answered: bool) -> None:
    """A node may press the button itself: it is cut like any other."""
    ran: list[str] = []
    control = RunControl()

    def node(state: State) -> dict[str, Any]:
        control.cancel()
        return {"log": ["pressed"]}

    async def anode(state: State) -> dict[str, Any]:
        return node(state)

    graph = graph_of(
        node if how in SYNC else anode,
        lambda state: ran.append("second"),
        deadline=30,
        **({"fallback": late} if answered else {}),
    )
    driven = drive(graph, {}, how, control=control)
    assert ran == []
    assert driven.report.outcome == "cancelled"
    if answered:
        assert driven.values["log"] in (["pressed", "late"], ["late"])
    else:
        assert isinstance(driven.error, DeadlineExceeded)


@pytest.mark.parametrize("answered", [True, False], ids=["fallback", "raise"])
@pytest.mark.parametrize("how", ["stream", "astream"])
def test_control_cancel_between_two_supersteps(how: How, answered: bool) -> None:
    """Pressed while the consumer looks at a chunk: nothing starts any more."""
    ran: list[str] = []

    def node(state: State) -> dict[str, Any]:
        ran.append("node")
        return {"log": ["node"]}

    graph = graph_of(
        *[node] * 3, deadline=30, **({"fallback": late} if answered else {})
    )
    control = RunControl()
    updates: list[Any] = []

    def look(update: Any) -> None:
        updates.append(update)
        control.cancel()

    async def astream() -> None:
        async for update in graph.astream({}, stream_mode="updates", control=control):
            look(update)

    def run() -> None:
        if how == "astream":
            asyncio.run(astream())
            return
        for update in graph.stream({}, stream_mode="updates", control=control):
            look(update)

    with collect_runs() as runs:
        if answered:
            run()
        else:
            with pytest.raises(DeadlineExceeded) as caught:
                run()
            assert caught.value.cause == "cancelled"
    assert ran == ["node"]
    assert updates[0] == {"n0": {"log": ["node"]}}
    if answered:
        assert updates[-1] == {"late": {"log": ["late"]}}
    assert [run.outcome for run in runs] == ["cancelled"]


@pytest.mark.parametrize("how", ASYNC)
def test_control_cancel_in_virtual_time_is_exact(how: How) -> None:
    """From the loop itself the cut comes in the very moment."""

    async def main() -> Driven:
        control = RunControl()
        asyncio.get_running_loop().call_later(7, control.cancel)
        slow = sleeper(how, 60, "slow", threading.Event())
        return await adrive(graph_of(slow, deadline=30), {}, how, control=control)

    driven = run_virtual(main())
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed == pytest.approx(7)


@pytest.mark.parametrize("how", ASYNC)
def test_control_cancel_starts_the_reserve_and_the_deadline_stays(how: How) -> None:
    """A fallback after a cancellation has until the deadline, not longer."""

    async def hang(state: State) -> None:
        await asyncio.sleep(60)

    async def main() -> Driven:
        control = RunControl()
        asyncio.get_running_loop().call_later(2, control.cancel)
        policy = DeadlinePolicy(seconds=10, cancel_grace=0)
        graph = graph_of(
            sleeper(how, 60, "slow", threading.Event()), deadline=policy, fallback=hang
        )
        return await adrive(graph, {}, how, control=control)

    driven = run_virtual(main())
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.elapsed <= 10.2


def test_control_knows_its_reason() -> None:
    """The reason that was given can be read, and the first one counts."""
    control = RunControl()
    assert not control.cancelled
    assert control.cancel_reason is None
    control.cancel("the user left")
    control.cancel("something else")
    assert control.cancelled
    assert control.cancel_reason == "the user left"
    assert isinstance(control, LangGraphRunControl)
    assert not control.drain_requested


@pytest.mark.parametrize("how", ALL)
def test_control_cancel_after_the_end_does_nothing(how: How) -> None:
    """A button that is pressed too late changes nothing."""
    control = RunControl()
    graph = graph_of(lambda state: {"log": ["done"]}, deadline=30, fallback=late)
    driven = drive(graph, {}, how, control=control)
    control.cancel()
    assert driven.values["log"] == ["done"]
    assert driven.report.outcome == "completed"


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_control_one_button_stops_several_runs(how: How) -> None:
    """Every run that was given the control ends, those still to come as well."""
    started, control = threading.Event(), RunControl()
    graph = graph_of(sleeper(how, 3, "slow", started), deadline=30)
    results: list[Driven] = []

    def run() -> None:
        results.append(drive(graph, {}, how, control=control))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    cancel_when(started, control)
    for thread in threads:
        thread.join(10)
    run()
    assert [type(r.error) for r in results] == [DeadlineExceeded] * 4
    assert all(r.elapsed < 2.5 for r in results)


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
def test_control_a_cancelled_run_can_be_resumed(how: How) -> None:
    """Under `"raise"` `invoke(None)` re-runs just what was cut."""
    ran: list[str] = []
    started, control = threading.Event(), RunControl()

    def first(state: State) -> dict[str, Any]:
        ran.append("first")
        return {"log": ["first"]}

    def slow(state: State) -> dict[str, Any]:
        ran.append("slow")
        started.set()
        time.sleep(1.5 if len(ran) < 3 else 0)
        return {"log": ["slow"]}

    async def aslow(state: State) -> dict[str, Any]:
        ran.append("slow")
        started.set()
        await asyncio.sleep(1.5 if len(ran) < 3 else 0)
        return {"log": ["slow"]}

    saver = InMemorySaver()
    graph = graph_of(first, slow if how in SYNC else aslow, checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    cancel_when(started, control)
    driven = drive(graph, {}, how, config, control=control)
    assert isinstance(driven.error, DeadlineExceeded)
    driven = drive(graph, None, how, config)
    assert driven.values["log"] == ["first", "slow"]
    assert ran == ["first", "slow", "slow"]


@pytest.mark.parametrize("how", ALL)
def test_control_drains_as_langgraph_does(how: How) -> None:
    """`request_drain` still lets the superstep end and stops behind it."""
    ran: list[str] = []
    control = RunControl()

    def node(state: State) -> dict[str, Any]:
        ran.append("node")
        control.request_drain()
        return {"log": ["node"]}

    saver = InMemorySaver()
    graph = graph_of(node, node, deadline=30, checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    driven = drive(graph, {}, how, config, control=control)
    assert type(driven.error).__name__ == "GraphDrained"
    assert ran == ["node"]
    assert graph.get_state(config).next == ("n1",)


@pytest.mark.parametrize("how", ALL)
def test_control_of_langgraph_is_taken_too(how: How) -> None:
    """A plain `RunControl` works on a bounded graph as on any other."""
    control = LangGraphRunControl()
    graph = graph_of(lambda state: {"log": ["done"]}, deadline=30)
    driven = drive(graph, {}, how, control=control)
    assert driven.values["log"] == ["done"]


# Ctrl-C.


SCRIPT = """
import asyncio, time, sys
from typing_extensions import TypedDict
from langgraph.graph import START
from langgraph_deadline import StateGraph

class State(TypedDict, total=False):
    log: str

def block(state):
    print("started", flush=True)
    time.sleep(60)
    print("woke up", flush=True)

def steps(state):
    print("started", flush=True)
    for _ in range(6000):
        time.sleep(0.01)

async def wait(state):
    print("started", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)

def after(state):
    print("after", flush=True)

def fallback(state):
    print("fallback", flush=True)

def graph(node, **options):
    builder = StateGraph(State)
    builder.add_sequence([("node", node), ("after", after)])
    builder.add_edge(START, "node")
    return builder.compile(deadline=50, **options)

async def astream(graph):
    async for _ in graph.astream({}):
        pass

def main():
BODY

try:
    main()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if len(sys.argv) > 1:
        time.sleep(1)  # a notebook goes on
print("end", flush=True)
"""

INTERRUPTED = {
    "invoke": "graph(block).invoke({})",
    "invoke, fallback": "graph(block, fallback=fallback).invoke({})",
    "stream": "list(graph(block).stream({}))",
    "subgraph": "graph(graph(block)).invoke({})",
    "ainvoke": "asyncio.run(graph(wait).ainvoke({}))",
    "astream": "asyncio.run(astream(graph(wait)))",
    "ainvoke, sync node": "asyncio.run(graph(block).ainvoke({}))",
}


def interrupt(body: str, *arguments: str) -> tuple[float, str, str]:
    """Send SIGINT to a script that is in a node; return its seconds from there on."""
    code = SCRIPT.replace("BODY", textwrap.indent(body, "    "))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "started\n", line
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
        return time.monotonic() - began, output, errors
    finally:
        process.kill()
        process.wait()


@pytest.mark.realtime
@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("name", INTERRUPTED)
def test_control_ctrl_c_ends_a_run_at_once(name: str) -> None:
    """`KeyboardInterrupt` goes up to the caller and nothing starts afterwards."""
    elapsed, output, errors = interrupt(INTERRUPTED[name], "notebook")
    lines = output.split("\n")
    assert "interrupted" in lines
    assert "end" in lines
    assert "after" not in lines
    assert "woke up" not in lines
    assert elapsed < 8
    assert "was destroyed but it is pending" not in errors
    if name in ("ainvoke", "astream"):
        assert "cleaned up" in lines


@pytest.mark.realtime
@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_control_ctrl_c_lets_nothing_that_cooperates_go_on() -> None:
    """In a notebook, which lives on: an async node run in a thread's own loop ends."""
    body = """
import threading
async def count(state):
    print("started", flush=True)
    while True:
        await asyncio.sleep(0.05)
        ticks.append(1)
ticks = []
try:
    asyncio.run(graph(count).ainvoke({}))
finally:
    n = len(ticks)
    time.sleep(0.5)
    print("went on" if len(ticks) > n else "stood still", flush=True)
"""
    _, output, _ = interrupt(body)
    assert "stood still" in output


@pytest.mark.realtime
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_control_an_interrupt_in_this_process_leaves_nothing(way: str) -> None:
    """After Ctrl-C no engine thread of ours goes on beside the given-up node."""
    before = set(threading.enumerate())
    started = threading.Event()
    ran: list[str] = []
    graph = graph_of(
        sleeper("invoke", 1, "slow", started),
        lambda state: ran.append("second"),
        deadline=30,
        fallback=late,
    )

    def press() -> None:
        started.wait(10)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), collect_runs() as runs:
        graph.invoke({}) if way == "invoke" else list(graph.stream({}))
    assert time.monotonic() - began < 0.9
    thread.join()
    assert [run.outcome for run in runs] == ["cancelled"]
    time.sleep(1.2)
    assert ran == []
    assert set(threading.enumerate()) <= before
