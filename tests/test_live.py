"""The live bar: what it says of runs, where it says it, what it leaves behind."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypedDict

import nbclient
import nbformat
import pytest
from langgraph.graph import START
from rich.console import Console

from langgraph_deadline import DeadlineExceeded, DeadlinePolicy, StateGraph, _clock
from langgraph_deadline._gauge import MOST_RUNS, Gauge
from langgraph_deadline.events import (
    Cut,
    FallbackStarted,
    RunDetails,
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
)
from langgraph_deadline.live import LiveBar, live_bar
from langgraph_deadline.report import RunReport
from langgraph_deadline.testing import VirtualClock, run_virtual

RUN = RunDetails(
    id="1",
    parent=None,
    inside=None,
    name="agent",
    started=0.0,
    budget=10.0,
    reserve=2.0,
    enforced=True,
)


def started(
    number: int, step: str, *, run: RunDetails = RUN, **more: Any
) -> StepStarted:
    details: dict[str, Any] = {"at": 0.0, "parent": None, "kind": "node"} | more
    return StepStarted(
        run=run, number=number, step=step, remaining=None, limit=None, **details
    )


def ended(run: RunDetails = RUN, outcome: Any = "completed") -> RunEnded:
    report = RunReport(name=run.name, outcome=outcome, budget=run.budget, elapsed=3.0)
    return RunEnded(run=run, at=3.0, report=report)


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    clock = VirtualClock()
    with _clock.use(clock):
        yield clock


class State(TypedDict, total=False):
    answer: str


async def research(state: State) -> State:
    await asyncio.sleep(60)
    return {"answer": "all"}


async def degrade(state: State) -> State:
    await asyncio.sleep(0.5)
    return {"answer": "some"}


def graph(name: str = "agent", **policy: Any) -> Any:
    builder = StateGraph(State).add_node(research).add_edge(START, "research")
    deadline = DeadlinePolicy(**({"seconds": 10} | policy))
    return builder.compile(deadline=deadline, fallback=degrade, name=name)


# What is said.


def test_time_runs_out_by_itself_between_events(clock: VirtualClock) -> None:
    gauge = Gauge()
    gauge.note(RunStarted(run=RUN, at=0.0))
    assert [str(line) for line in gauge.lines()] == ["agent: 10.0 s left of 10 s"]
    clock.advance(2.5)
    (line,) = gauge.lines()
    assert (line.left, line.words) == (0.75, "7.5 s left of 10 s")
    clock.advance(8.5)
    (line,) = gauge.lines()
    assert (line.left, line.words) == (0.0, "1.0 s late")


def test_a_resume_starts_with_what_was_left(clock: VirtualClock) -> None:
    gauge = Gauge()
    gauge.note(RunStarted(run=RUN, at=0.0, spent=6.0))
    (line,) = gauge.lines()
    assert (line.left, line.words) == (0.4, "4.0 s left of 10 s")


def test_a_run_without_a_deadline_counts_up(clock: VirtualClock) -> None:
    gauge = Gauge()
    gauge.note(RunStarted(run=replace(RUN, budget=None), at=0.0))
    clock.advance(3)
    (line,) = gauge.lines()
    assert (line.left, line.words) == (None, "3.0 s")


def test_the_innermost_steps_at_work_are_named(clock: VirtualClock) -> None:
    gauge = Gauge()
    gauge.note(started(1, "tools"))
    gauge.note(started(2, "search", parent=1))
    gauge.note(started(3, "search", parent=1))
    gauge.note(started(4, "crawl", parent=1))
    assert gauge.lines()[0].words == "10.0 s left of 10 s, search x2, crawl"
    end = {"at": 0.0, "parent": 1, "kind": "tool", "took": 1.0}
    gauge.note(StepEnded(run=RUN, number=2, step="search", **end))
    assert gauge.lines()[0].words == "10.0 s left of 10 s, search, crawl"
    for number, name in enumerate("abc", 5):
        gauge.note(started(number, name, parent=1))
    assert gauge.lines()[0].words.endswith("search, crawl, a, 2 more")


def test_cut_fallback_and_end_are_said_in_words(clock: VirtualClock) -> None:
    gauge = Gauge()
    gauge.note(started(1, "write"))
    assert gauge.lines()[0].state == "working"
    gauge.note(Cut(run=RUN, at=8.0, cause="deadline", step="write"))
    (line,) = gauge.lines()
    assert line.state == "cut"
    assert line.words.endswith("cut (deadline), write")
    gauge.note(
        FallbackStarted(
            run=RUN,
            at=8.0,
            number=2,
            parent=None,
            step="degrade",
            kind="fallback",
            remaining=2.0,
        )
    )
    (line,) = gauge.lines()
    assert line.state == "fallback"
    assert line.words.endswith("cut (deadline), the fallback 'degrade' has the run")
    gauge.note(ended(outcome="deadline"))
    (line,) = gauge.lines()
    assert (line.state, line.left) == ("failed", None)
    assert line.words == "deadline after 3 s of 10 s"


def test_a_run_that_is_only_measured_is_not_called_cut(clock: VirtualClock) -> None:
    gauge = Gauge()
    run = replace(RUN, enforced=False)
    gauge.note(Cut(run=run, at=8.0, cause="deadline", step="write"))
    (line,) = gauge.lines()
    assert line.state == "measured"
    assert line.words == "2.0 s left of 10 s, would have been cut (deadline)"


def test_a_nested_run_is_indented_while_it_lasts(clock: VirtualClock) -> None:
    gauge = Gauge()
    gauge.note(RunStarted(run=RUN, at=0.0))
    nested = replace(RUN, id="2", parent="1", name="nested", budget=3.0)
    gauge.note(RunStarted(run=nested, at=0.0))
    assert [(line.name, line.depth) for line in gauge.lines()] == [
        ("agent", 0),
        ("nested", 1),
    ]
    gauge.note(ended(nested))
    assert [line.name for line in gauge.lines()] == ["agent"]
    assert gauge.rest() == ""


def test_many_runs_are_counted_not_listed(clock: VirtualClock) -> None:
    """And not kept either: a thousand runs take no more than ten."""
    gauge = Gauge()
    runs = [replace(RUN, id=str(number)) for number in range(1000)]
    for run in runs:
        gauge.note(RunStarted(run=run, at=0.0))
    assert len(gauge.lines()) == MOST_RUNS
    assert gauge.rest() == "and 990 more running"
    for run in runs:
        gauge.note(ended(run, "deadline"))
    assert len(gauge.lines()) == len(gauge._runs) == MOST_RUNS
    assert gauge.rest() == "and 990 deadline"


# Where it is said.


def test_without_a_terminal_there_are_a_few_plain_lines() -> None:
    file = io.StringIO()

    async def main() -> None:
        with live_bar(file):
            await graph().ainvoke({})

    run_virtual(main())
    assert file.getvalue().splitlines() == [
        "agent: 10.0 s left of 10 s",
        "agent: 2.0 s left of 10 s, cut (deadline), research",
        "agent: 2.0 s left of 10 s, cut (deadline), the fallback 'degrade' has the run",
        "agent: deadline after 8.5 s of 10 s, 2 s of them for the fallback",
    ]


def test_nothing_goes_to_stdout_when_told_where_to_write(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for to in (io.StringIO(), Console(file=io.StringIO(), force_terminal=True)):
        with live_bar(to):
            run_virtual(graph().ainvoke({}))
            print("a result")
    assert capsys.readouterr() == ("a result\na result\n", "")


def test_by_default_it_is_the_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with live_bar():
        run_virtual(graph().ainvoke({}))
    out, err = capsys.readouterr()
    assert out == ""
    assert "deadline after 8.5 s" in err


def terminal(**options: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    settings = {"force_terminal": True, "force_jupyter": False, "width": 100} | options
    return Console(file=file, _environ={}, **settings), file


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen within 20 s"
        time.sleep(0.01)


@pytest.mark.realtime
def test_a_terminal_shows_a_bar_that_empties() -> None:
    """By itself, while nothing happens: nobody calls it between the two."""
    console, file = terminal()
    clock = VirtualClock()
    with _clock.use(clock), live_bar(console) as bar:
        bar(RunStarted(run=RUN, at=0.0))
        until(lambda: "█" * 20 in file.getvalue())
        clock.advance(5)
        until(lambda: "5.0 s left of 10 s" in file.getvalue())
        assert "█" * 10 in file.getvalue().rpartition("agent")[2]
        assert "█" * 11 not in file.getvalue().rpartition("agent")[2]


@pytest.mark.realtime
def test_colours_change_with_the_words() -> None:
    console, file = terminal(color_system="standard")
    with live_bar(console) as bar:
        bar(RunStarted(run=RUN, at=0.0))
        until(lambda: "\x1b[36m" in file.getvalue())  # cyan
        bar(Cut(run=RUN, at=8.0, cause="deadline", step=None))
        until(lambda: "\x1b[33m" in file.getvalue())  # yellow
        bar(ended(outcome="deadline"))
    assert "\x1b[31mdeadline after 3 s of 10 s" in file.getvalue()  # red


def test_several_runs_have_a_line_each_and_leave_their_outcome() -> None:
    console, file = terminal(color_system=None)

    async def main() -> None:
        with live_bar(console):
            await asyncio.gather(
                graph("quick", seconds=5).ainvoke({}),
                graph("slow", seconds=20).ainvoke({}),
            )

    run_virtual(main())
    # What was drawn before, if there was time for that, is wiped out.
    last = file.getvalue().rpartition("\x1b[2K")[2]
    assert re.sub(r"\x1b\[\?25[lh]", "", last).splitlines()[:2] == [
        "quick  deadline after 4.5 s of 5 s, 1 s of them for the fallback",
        "slow   deadline after 16.5 s of 20 s, 4 s of them for the fallback",
    ]
    assert file.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_a_terminal_that_knows_only_ascii_gets_no_blocks() -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"

    file = Ascii()
    console = Console(file=file, force_terminal=True, force_jupyter=False, _environ={})
    with live_bar(console) as bar:
        bar(RunStarted(run=RUN, at=0.0))
    file.getvalue().encode("ascii")
    assert "####" in file.getvalue()


def test_names_with_markup_and_line_breaks_stay_on_their_line() -> None:
    console, file = terminal(color_system=None)
    with live_bar(console) as bar:
        bar(RunStarted(run=replace(RUN, name="[red]a\nb[/red]"), at=0.0))
    assert "[red]a b[/red]  █" in file.getvalue()


NOTEBOOK = """
import asyncio
from typing import TypedDict
from langgraph.graph import START
from langgraph_deadline import StateGraph
from langgraph_deadline.live import live_bar

class State(TypedDict, total=False):
    answer: str

async def research(state):
    await asyncio.sleep(60)

def degrade(state):
    return {"answer": "some"}

builder = StateGraph(State).add_node(research).add_edge(START, "research")
graph = builder.compile(deadline=3, fallback=degrade, name="<agent>")
with live_bar():
    print((await graph.ainvoke({}))["answer"])
"""


@pytest.mark.realtime
def test_a_notebook_shows_it_as_one_output_that_is_replaced() -> None:
    """In a real kernel; it stays in the saved notebook as it was in the end."""
    cell = nbformat.v4.new_code_cell(NOTEBOOK)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown, printed = notebook.cells[0].outputs
    assert (printed.name, printed.text) == ("stdout", "some\n")
    html = shown.data["text/html"]
    assert "<strong>&lt;agent&gt;</strong> deadline after 2." in html
    assert "<progress" not in html  # it is over


def test_in_a_notebook_it_needs_no_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    updates: list[str] = []

    class Handle:
        def update(self, html: Any) -> None:
            updates.append(html.data)

    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: Handle())
    file = io.StringIO()
    with live_bar(Console(file=file, force_jupyter=True)) as bar:
        bar(RunStarted(run=RUN, at=0.0))
        until(lambda: any("<progress" in html for html in updates))
        bar(ended())
    assert "completed after 3 s of 10 s" in updates[-1]
    assert file.getvalue() == ""


# What is left behind.


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_no_thread_is_left_however_the_block_ends(error: Any) -> None:
    before = set(threading.enumerate())
    console, _ = terminal()
    try:
        with live_bar(console) as bar:
            bar(RunStarted(run=RUN, at=0.0))
            assert set(threading.enumerate()) != before
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert set(threading.enumerate()) == before
    with live_bar(console):  # nor is the console taken
        pass


def test_events_after_the_block_are_ignored() -> None:
    file = io.StringIO()
    with live_bar(file) as bar:
        pass
    bar(RunStarted(run=RUN, at=0.0))
    assert file.getvalue() == ""


def test_it_can_be_shown_again_but_not_twice_at_once() -> None:
    file = io.StringIO()
    bar = live_bar(file)
    with bar, pytest.raises(RuntimeError, match="shown already"), bar:
        pass
    with bar:
        bar(RunStarted(run=RUN, at=0.0))
    assert file.getvalue() == "agent: 10.0 s left of 10 s\n"


def test_two_bars_at_once_do_not_mix_their_runs() -> None:
    """It is no global: each shows what is started inside of it."""

    async def one(name: str, file: io.StringIO) -> None:
        with live_bar(file):
            await graph(name).ainvoke({})

    async def main(files: list[io.StringIO]) -> None:
        await asyncio.gather(*(one(f"run {n}", file) for n, file in enumerate(files)))

    files = [io.StringIO(), io.StringIO()]
    run_virtual(main(files))
    for number, file in enumerate(files):
        assert {line.split(":")[0] for line in file.getvalue().splitlines()} == {
            f"run {number}"
        }


def test_it_observes_the_runs_of_a_graph_when_handed_to_it() -> None:
    file = io.StringIO()
    bar = live_bar(file)
    builder = StateGraph(State).add_node(degrade).add_edge(START, "degrade")
    compiled = builder.compile(deadline=10, observers=[bar])
    with bar:
        thread = threading.Thread(target=lambda: asyncio.run(compiled.ainvoke({})))
        thread.start()
        thread.join()
    assert len(file.getvalue().splitlines()) == 2  # told once, not once for each way


class Broken(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_broken_pipe_does_not_stop_the_run(*, is_terminal: bool) -> None:
    bar = LiveBar(
        Console(file=Broken(), force_terminal=is_terminal, force_jupyter=False)
    )
    with bar:
        assert run_virtual(graph().ainvoke({})) == {"answer": "some"}


def test_it_says_how_a_run_ended_that_raised() -> None:
    builder = StateGraph(State).add_node(research).add_edge(START, "research")
    file = io.StringIO()
    with live_bar(file), pytest.raises(DeadlineExceeded):
        run_virtual(builder.compile(deadline=5).ainvoke({}))
    assert file.getvalue().splitlines()[-1].startswith("LangGraph: deadline after 5 s")
