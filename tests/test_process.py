"""A tool's body in another process, which is killed when its time is over."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from processes import tools

from langgraph_deadline import DeadlineExceeded, process, with_deadline
from langgraph_deadline.process import ProcessCall, start, target_of

REPOSITORY = Path(__file__).parent.parent

# A process has to start, on a loaded machine, before something can happen in it.
LONG = 60.0
# What an end may take: a kill is at once, but somebody has to notice, under load, too.
SOON = 20.0


@pytest.fixture(scope="module", autouse=True)
def no_processes_left() -> Iterator[None]:
    """End the processes after these tests."""
    yield
    process.shut_down()


def begin(tool: BaseTool, key: str | None = None, **kwargs: Any) -> ProcessCall:
    """Begin a call without a deadline."""
    return start(target_of(tool), (), kwargs, seconds_left=None, key=key)


def call(tool: BaseTool, **kwargs: Any) -> Any:
    """Make a call without a deadline."""
    return result(begin(tool, **kwargs))


def result(running: ProcessCall) -> Any:
    """Wait for a call, not for ever."""
    until(running.future.done, LONG)
    return running.wait()


def until(what: Callable[[], Any], seconds: float) -> Any:
    """Wait for what is true in the end, and return it."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"{what} took more than {seconds} s"
        time.sleep(0.005)
    return found


def pid_in(path: Path) -> int:
    """Wait for a tool to tell its process."""
    until(path.exists, LONG)
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even a dead one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def run(path: Path, *, interpreter: tuple[str, ...] = ()) -> tuple[str, str, float]:
    """Run a script and return what it prints, and how long it took."""
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, *interpreter, str(path)],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{path.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout, done.stderr, time.monotonic() - before


def script(folder: Path, body: str, name: str = "script.py") -> Path:
    """Write a script."""
    path = folder / name
    path.write_text(textwrap.dedent(body))
    return path


# Whose body is found there.


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("tool", "kwargs", "expected"),
    [
        (tools.add, {"a": 1, "b": 2}, 3),
        (tools.add, {"a": 1}, 2),
        (tools.renamed, {"a": 1}, 2),
        (tools.slowly, {"a": 1}, 2),
        (tools.both, {"a": 1}, 2),
        (tools.partial, {"a": 1}, 2),
        (tools.method, {"b": 1}, 2),
        (tools.static, {"b": 1}, 2),
        (tools.Subclass(a=2), {"b": 1}, 3),
        (tools.Subclass(handle_tool_error=lambda _: "?"), {"b": 1}, 2),
        (tools.AsyncSubclass(), {"b": 1}, 2),
        (tools.injected, {"a": 1, "messages": ["m"], "id": "i"}, (1, 1, "i")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_tool_runs_in_another_process(
    tool: BaseTool, kwargs: dict[str, Any], expected: Any
) -> None:
    assert call(tool, **kwargs) == expected


@pytest.mark.realtime
def test_positional_arguments_cross() -> None:
    running = start(target_of(tools.single), (1,), {}, seconds_left=None, key=None)
    assert result(running) == 2


@pytest.mark.realtime
@pytest.mark.parametrize("tool", [tools.decorated, tools.rebound])
def test_a_tool_that_is_wrapped_where_it_is_defined_runs(tool: BaseTool) -> None:
    assert tool.invoke({"a": 1}) == 2


@pytest.mark.realtime
def test_what_a_tool_was_wrapped_with_before_need_not_cross() -> None:
    bounded = with_deadline(tools.Subclass(), seconds=60, on_cut=lambda _: None)
    assert with_deadline(bounded, isolation="process").invoke({"b": 1}) == 2


@pytest.mark.realtime
def test_it_is_another_process_and_the_same_one_for_the_next_call() -> None:
    processes = {call(tools.pid) for _ in range(20)}
    assert len(processes) == 1
    assert os.getpid() not in processes


@pytest.mark.realtime
def test_results_and_arguments_may_be_large() -> None:
    value = os.urandom(5_000_000)
    assert call(tools.echo, value=value) == value


# What is seen there.


@pytest.mark.realtime
def test_the_deadline_and_the_idempotency_key_are_seen_there() -> None:
    target = target_of(tools.left_and_key)
    left, key = result(start(target, (), {}, seconds_left=500, key="the key"))
    assert 400 < left < 500
    assert key == "the key"


@pytest.mark.realtime
def test_nothing_of_a_call_is_left_for_the_next() -> None:
    target = target_of(tools.left_and_key)
    result(start(target, (), {}, seconds_left=500, key="the key"))
    assert result(start(target, (), {}, seconds_left=None, key="another")) == (
        math.inf,
        "another",
    )


@pytest.mark.realtime
def test_a_tool_can_stop_itself_at_the_deadline() -> None:
    running = start(target_of(tools.checks), (), {}, seconds_left=0.2, key=None)
    with pytest.raises(DeadlineExceeded) as caught:
        result(running)
    assert caught.value.cause == "deadline"


# What it raises.


@pytest.mark.realtime
def test_an_error_comes_back_as_it_was() -> None:
    with pytest.raises(ToolException, match="not today") as caught:
        call(tools.fails, how="ToolException")
    (note,) = caught.value.__notes__
    assert "tool 'fails'" in note
    assert 'raise ToolException("not today")' in note, "the line where it happened"

    with pytest.raises(FileNotFoundError) as missing:
        call(tools.fails, how="OSError")
    assert (missing.value.errno, missing.value.filename) == (2, "name")

    with pytest.raises(SystemExit) as left:
        call(tools.fails, how="SystemExit")
    assert left.value.code == 3


@pytest.mark.realtime
def test_an_error_that_cannot_be_unpickled_comes_back_with_its_type() -> None:
    with pytest.raises(tools.ParticularError, match=r"disk \(7\)") as caught:
        call(tools.fails, how="Particular")
    assert caught.value.code == 7
    assert not hasattr(caught.value, "lock")


@pytest.mark.realtime
def test_an_error_that_only_the_process_knows_comes_back_as_its_base() -> None:
    with pytest.raises(LookupError, match="nobody else knows") as caught:
        call(tools.fails, how="local")
    assert type(caught.value) is LookupError
    assert "LocalError" in caught.value.__notes__[0]


@pytest.mark.realtime
def test_a_result_that_cannot_be_pickled_is_an_error_that_names_the_tool() -> None:
    before = call(tools.pid)
    with pytest.raises(TypeError, match=r"result of tool 'lock', a lock, cannot"):
        call(tools.lock)
    assert call(tools.pid) == before, "the process can still be used"


@pytest.mark.realtime
def test_an_argument_that_cannot_be_pickled_is_an_error_that_names_it() -> None:
    before = call(tools.pid)
    named = r"argument 'value' \(lock\) of tool 'echo' cannot cross"
    with pytest.raises(TypeError, match=named):
        begin(tools.echo, value=threading.Lock())
    with pytest.raises(TypeError, match=r"argument 'value' \(function\)"):
        begin(tools.echo, value=lambda: None)
    assert call(tools.pid) == before, "the process can still be used"


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("how", "said"),
    [("0", "exit code 0"), ("3", "exit code 3"), ("crash", r"signal 11 \(Segm")],
)
def test_a_process_that_ends_by_itself_is_an_error_that_says_how(
    how: str, said: str
) -> None:
    with pytest.raises(RuntimeError, match=f"tool 'dies' ended .*{said}"):
        call(tools.dies, how=how)
    assert call(tools.add, a=1) == 2, "there is another process"


# Killed.


@pytest.mark.realtime
@pytest.mark.parametrize(
    "tool",
    [
        tools.sleeps,
        tools.sleeps_async,
        tools.spins,
        tools.ignores_sigterm,
        tools.blocks_in_c,
        tools.swallows,
        tools.has_a_child,
    ],
    ids=lambda tool: tool.name,
)
def test_a_killed_call_is_over_at_once_and_its_process_soon(
    tool: BaseTool, tmp_path: Path
) -> None:
    running = begin(tool, path=str(tmp_path / "pid"))
    pid = pid_in(tmp_path / "pid")
    before = time.monotonic()
    running.kill()
    assert time.monotonic() - before < 0.5
    with pytest.raises(CancelledError):
        running.wait()
    assert time.monotonic() - before < 0.5
    until(lambda: is_gone(pid), SOON)
    assert call(tools.add, a=1) == 2, "there is another process"
    running.kill()  # once more does no harm
    assert call(tools.add, a=1) == 2


@pytest.mark.realtime
def test_whoever_waits_for_a_killed_call_goes_on_at_once(tmp_path: Path) -> None:
    running = begin(tools.sleeps, path=str(tmp_path / "pid"))
    ended: list[Any] = []

    def wait() -> None:
        try:
            running.wait()
        except CancelledError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    pid_in(tmp_path / "pid")
    running.kill()
    waiting.join(SOON)
    assert len(ended) == 1


@pytest.mark.realtime
def test_a_call_that_is_killed_before_its_process_has_started_never_starts(
    tmp_path: Path,
) -> None:
    process.shut_down()
    killed = [
        begin(tools.appends, path=str(tmp_path / "file"), text="x") for _ in range(3)
    ]
    for running in killed:
        running.kill()
        assert running.future.done()
    assert call(tools.add, a=1) == 2
    assert not (tmp_path / "file").exists()


@pytest.mark.realtime
def test_a_call_that_waits_for_a_process_can_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.shut_down()
    monkeypatch.setattr(process, "max_workers", 1)
    first = begin(tools.sleeps, path=str(tmp_path / "pid"))
    pid_in(tmp_path / "pid")
    file = str(tmp_path / "file")
    killed = begin(tools.appends, path=file, text="killed")
    follows = begin(tools.appends, path=file, text="follows")
    killed.kill()
    with pytest.raises(CancelledError):
        killed.wait()
    assert not follows.future.done()
    first.kill()
    result(follows)
    assert (tmp_path / "file").read_text() == "follows"
    process.shut_down()


@pytest.mark.realtime
def test_the_calls_around_a_killed_one_are_left_alone(tmp_path: Path) -> None:
    others = [
        begin(tools.sleeps, path=str(tmp_path / f"{i}"), seconds=2) for i in range(2)
    ]
    for i in range(2):
        pid_in(tmp_path / f"{i}")
    for i in range(5):
        running = begin(tools.sleeps, path=str(tmp_path / f"killed{i}"))
        pid_in(tmp_path / f"killed{i}")
        running.kill()
    assert [result(running) for running in others] == ["slept", "slept"]


@pytest.mark.realtime
def test_calls_that_end_just_when_they_are_killed_lose_no_other(tmp_path: Path) -> None:
    """The call that follows finds a process, whichever of the two came first."""
    for i in range(20):
        path = tmp_path / f"{i}"
        running = begin(tools.sleeps, path=str(path), seconds=0.02)
        pid_in(path)
        time.sleep(0.02 * (i % 5) / 4)
        running.kill()
        assert call(tools.add, a=i) == i + 1


def slowly(self: Connection, size: int) -> io.BytesIO:
    """Read a message so that there is time for something to happen in between."""
    data, handle = io.BytesIO(), self.fileno()
    while missing := size - len(data.getvalue()):
        if not (chunk := os.read(handle, missing)):
            raise EOFError
        data.write(chunk)
        time.sleep(0.3 if len(chunk) < missing else 0)
    return data


@pytest.mark.realtime
def test_a_result_that_was_cut_short_takes_nothing_from_other_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever still reads it is slow, and its pipe's number is used again."""
    monkeypatch.setattr(Connection, "_recv", slowly)
    for _ in range(5):
        running = begin(tools.echo, value=os.urandom(200_000))
        time.sleep(0.05)
        running.kill()
        for _ in range(8):
            time.sleep(0.05)
            assert call(tools.add, a=1) == 2


@pytest.mark.realtime
@pytest.mark.parametrize("then", ["dies", "sleeps", "returns"])
def test_a_process_that_a_tool_left_behind_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """It has a copy of the pipe's other end, so the pipe goes on without its worker."""
    process.shut_down()
    monkeypatch.setattr(process, "max_workers", 1)
    monkeypatch.setattr(Connection, "_recv", slowly)
    path = tmp_path / "pid"
    running = begin(tools.leaves_a_daemon, path=str(path), then=then)
    daemon = pid_in(path)
    try:
        if then == "dies":
            with pytest.raises(RuntimeError, match="exit code 3"):
                result(running)
        else:
            time.sleep(0.15)  # in the middle of the result, where there is one
            running.kill()
        assert call(tools.add, a=1) == 2
    finally:
        os.kill(daemon, 9)
        process.shut_down()


@pytest.mark.realtime
async def test_cancelling_what_awaits_a_call_kills_it(tmp_path: Path) -> None:
    running = begin(tools.sleeps, path=str(tmp_path / "pid"))
    waiting = asyncio.wrap_future(running.future)
    pid = await asyncio.to_thread(pid_in, tmp_path / "pid")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.to_thread(until, lambda: is_gone(pid), SOON)


@pytest.mark.realtime
async def test_a_call_can_be_awaited() -> None:
    running = begin(tools.add, a=1)
    await asyncio.wait_for(asyncio.wrap_future(running.future), LONG)
    assert running.wait() == 2


# Several at once.


@pytest.mark.realtime
def test_calls_run_at_once_up_to_the_limit_and_the_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.shut_down()
    assert process.max_workers >= 4
    monkeypatch.setattr(process, "max_workers", 4)
    paths = [tmp_path / f"{i}" for i in range(5)]
    running = [begin(tools.sleeps, path=str(path)) for path in paths]
    pids = [pid_in(path) for path in paths[:4]]
    assert len(set(pids)) == 4
    assert not paths[4].exists()
    running[2].kill()
    pid_in(paths[4])
    for other in running:
        other.kill()
    process.shut_down()


@pytest.mark.realtime
def test_shutting_down_kills_calls_and_ends_processes(tmp_path: Path) -> None:
    idle = call(tools.pid)
    running = [begin(tools.sleeps, path=str(tmp_path / f"{i}")) for i in range(2)]
    pids = [pid_in(tmp_path / f"{i}") for i in range(2)]
    process.shut_down()
    for one in running:
        with pytest.raises(CancelledError):
            one.wait()
    for pid in (idle, *pids):
        until(lambda pid=pid: is_gone(pid), SOON)
    until(lambda: process._NAME not in {t.name for t in threading.enumerate()}, SOON)
    assert call(tools.add, a=1) == 2, "the next call starts a new one"


@pytest.mark.realtime
def test_a_process_that_was_killed_by_somebody_else_is_replaced() -> None:
    pid = call(tools.pid)
    os.kill(pid, 9)
    until(lambda: is_gone(pid), SOON)
    assert call(tools.pid) != pid


@pytest.mark.realtime
def test_nobody_waits_for_an_idle_process_that_is_just_ending() -> None:
    """It is replaced, or an error where it was given the call."""
    for i in range(10):
        os.kill(call(tools.pid), 9)
        time.sleep(0.001 * i)
        running = begin(tools.add, a=1)
        until(running.future.done, LONG)
        if running.future.exception() is None:
            assert running.wait() == 2
            continue
        with pytest.raises(RuntimeError, match=r"signal 9 .* before it answered"):
            running.wait()


@pytest.mark.realtime
def test_whoever_waits_for_all_its_processes_does_not_wait_for_idle_ones() -> None:
    """They are not among those that `multiprocessing` knows of, and looks after."""
    call(tools.pid)
    assert multiprocessing.active_children() == []


@pytest.mark.realtime
def test_a_call_that_finds_no_thread_raises_and_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process.shut_down()
    monkeypatch.setattr(process, "max_workers", 1)

    def no_thread(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            begin(tools.add, a=1)
    assert call(tools.add, a=1) == 2
    process.shut_down()


@pytest.mark.realtime
def test_a_tool_that_writes_into_its_processs_pipe_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="tool 'scribbles' could not be used"):
        call(tools.scribbles)
    assert call(tools.add, a=1) == 2, "there is another process"


@pytest.mark.realtime
def test_a_forked_process_has_processes_of_its_own() -> None:
    mine = call(tools.pid)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: theirs.send((call(tools.pid), call(tools.pid)))
    )
    child.start()
    try:
        assert ours.poll(LONG), "the forked process did not answer"
        first, second = ours.recv()
        child.join(LONG)
        assert child.exitcode == 0, "it does not wait for processes of ours"
    finally:
        child.kill()
    assert first == second != mine
    until(lambda: is_gone(first), SOON)
    assert call(tools.pid) == mine


@pytest.mark.realtime
def test_a_process_that_may_have_no_children_is_told_so() -> None:
    """A daemonic one, as multiprocessing's pools have them."""

    def main() -> None:
        try:
            call(tools.add, a=1)
        except RuntimeError as error:
            theirs.send(str(error))

    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=main, daemon=True)
    child.start()
    try:
        assert ours.poll(LONG), "the daemonic process did not answer"
        assert "tool 'add' could not be used" in (said := ours.recv())
        assert "daemonic processes are not allowed to have children" in said
    finally:
        child.kill()


def test_a_limit_of_no_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    process.shut_down()
    monkeypatch.setattr(process, "max_workers", 0)
    with pytest.raises(ValueError, match=r"process\.max_workers must be 1 or more"):
        begin(tools.add, a=1)


# Refused, when the tool is wrapped.


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (tools.closure(), "defined inside a function"),
        (tools.anonymous, "a lambda"),
        (tools.hidden, "is not the function that was given"),
        (tools.HasLock(lock=threading.Lock()), "cannot pickle '_thread.lock' object"),
        (tools.takes_runtime, "'runtime' is a ToolRuntime"),
        (tools.takes_runtime_with_types, "'around' is a ToolRuntime"),
        (tools.takes_store, "'store' is a store"),
        (tools.takes_optional_store, "'store' is a store"),
        (tools.takes_config, "'config' is a RunnableConfig"),
        (tools.TakesManager(), "'run_manager' is a callback manager"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_cannot_cross_is_refused_when_a_tool_is_wrapped(
    tool: BaseTool, said: str
) -> None:
    with pytest.raises(TypeError, match=said) as caught:
        target_of(tool)
    text = str(caught.value)
    assert f"tool {tool.name!r} cannot run in a process of its own" in text
    assert "top level of a module" in text or "plain values" in text, "what to do"


def test_a_module_that_only_this_process_has_is_refused() -> None:
    module = types.ModuleType("made_up")
    exec("def f(a: int) -> int:\n    'Add one.'\n    return a + 1", vars(module))
    sys.modules["made_up"] = module
    try:
        tool = StructuredTool.from_function(module.f)
        with pytest.raises(TypeError, match="'made_up', which only this process has"):
            target_of(tool)
    finally:
        del sys.modules["made_up"]


def test_a_tool_without_a_function_is_refused() -> None:
    tool = tools.add.model_copy(update={"func": None})
    with pytest.raises(TypeError, match="it has no function"):
        target_of(tool)


# Scripts.

IN_MODULE = """
    import os, time
    from langchain_core.tools import tool
    from langgraph_deadline.process import start, target_of

    @tool
    def add(a: int) -> int:
        "Add one."
        return a + 1

    @tool
    def sleeps(path: str) -> None:
        "Sleep."
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
        time.sleep(60)

    def call(tool, **kwargs):
        return start(target_of(tool), (), kwargs, seconds_left=None, key=None)
"""

WAITS = """
    import os, sys, time
    from mine import add, call, sleeps

    path = os.path.join(os.path.dirname(__file__), "pid")
    assert call(add, a=1).wait() == 2
    running = call(sleeps, path=path)
    while not os.path.exists(path):
        time.sleep(0.01)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where a module with tools is, and where scripts may be."""
    script(tmp_path, IN_MODULE, "mine.py")
    return tmp_path


@pytest.mark.realtime
@pytest.mark.parametrize("ending", ["running.kill()", "pass", "sys.exit(0)"])
def test_a_script_ends_at_once_and_leaves_nothing(folder: Path, ending: str) -> None:
    """After a killed call, and with one that runs."""
    timed = f"""
    print(time.monotonic())
    {ending}
    """
    out, err, _ = run(script(folder, WAITS + timed))
    ended = time.monotonic() - float(out)
    assert err == ""
    assert ended < SOON
    pid = pid_in(folder / "pid")
    until(lambda: is_gone(pid), SOON)


@pytest.mark.realtime
def test_a_script_ends_while_its_first_process_starts(folder: Path) -> None:
    body = """
    from mine import add, call
    call(add, a=1).kill()
    call(add, a=1)
    """
    out, err, took = run(script(folder, body))
    assert (out, err) == ("", "")
    assert took < LONG / 2


@pytest.mark.realtime
def test_a_tool_does_not_outlive_a_caller_that_was_killed(folder: Path) -> None:
    path = script(folder, WAITS + "\n    time.sleep(60)\n")
    caller = subprocess.Popen(
        [sys.executable, str(path)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    try:
        pid = pid_in(folder / "pid")
    finally:
        caller.kill()
        caller.wait()
    until(lambda: is_gone(pid), SOON)


@pytest.mark.realtime
def test_a_script_without_a_guard_is_run_once(folder: Path) -> None:
    """Its tools are in modules, so nobody has to import the script again."""
    body = """
    from mine import add, call
    print("begin")
    print(call(add, a=1).wait())
    """
    assert run(script(folder, body))[:2] == ("begin\n2\n", "")


@pytest.mark.realtime
def test_a_tool_of_a_script_with_a_guard_works(folder: Path) -> None:
    """Also with arguments, results and errors whose classes are the script's."""
    body = """
    from dataclasses import dataclass
    from langchain_core.tools import tool
    from langgraph_deadline import with_deadline
    from mine import call

    @dataclass
    class Page:
        text: str

    class Missing(Exception):
        pass

    @tool
    def read(page: object) -> object:
        "Read."
        if page.text == "missing":
            raise Missing(page)
        return Page(page.text.upper())

    bounded = with_deadline(read, 60, isolation="process")

    if __name__ == "__main__":
        print(call(read, page=Page("text")).wait() == Page("TEXT"))
        print(bounded.invoke({"page": Page("text")}) == Page("TEXT"))
        try:
            call(read, page=Page("missing")).wait()
        except Missing as error:
            print(error.args == (Page("missing"),))
    """
    path = script(folder, body)
    assert run(path)[:2] == ("True\n" * 3, "")
    assert run(Path("script"), interpreter=("-m",))[1] != ""  # not on the path here
    out = subprocess.run(
        [sys.executable, "-m", "script"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (out.stdout, out.stderr) == ("True\n" * 3, "")


@pytest.mark.realtime
def test_a_tool_of_a_script_without_a_guard_is_a_clear_error(folder: Path) -> None:
    body = """
    from langchain_core.tools import tool
    from mine import call

    @tool
    def unguarded(a: int) -> int:
        "Add one."
        return a + 1

    try:
        print(call(unguarded, a=1).wait())
    except RuntimeError as error:
        print(error)
        raise
    """
    _, err, took = run(script(folder, body))
    assert "tool 'unguarded' is called while" in err
    assert "if __name__ == '__main__':" in err
    assert took < LONG


@pytest.mark.parametrize("how", ["-c", "-"])
def test_a_function_typed_into_a_prompt_or_a_notebook_is_refused(how: str) -> None:
    code = """
from langchain_core.tools import tool
from langgraph_deadline.process import target_of

@tool
def typed(a: int) -> int:
    "Add one."
    return a + 1

try:
    target_of(typed)
except TypeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, how, *([code] if how == "-c" else [])],
        input=code,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "tool 'typed' cannot run in a process of its own" in done.stdout
    assert "'__main__', which only this process has" in done.stdout


@pytest.mark.realtime
def test_a_forked_process_leaves_its_parents_processes_alone(folder: Path) -> None:
    """Also when it ends as any interpreter does."""
    body = """
    import os, sys
    from mine import add, call

    assert call(add, a=1).wait() == 2
    child = os.fork()
    if child == 0:
        assert call(add, a=2).wait() == 3
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print(call(add, a=3).wait())
    """
    assert run(script(folder, body))[:2] == ("4\n", "")


# As people use it.


@pytest.mark.realtime
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_wrapped_tool_is_killed_at_its_limit(
    tmp_path: Path, asynchronous: bool
) -> None:
    result(begin(tools.add, a=1))  # a process is there
    bounded = with_deadline(
        tools.sleeps, seconds=1.5, on_exceeded="raise", isolation="process"
    )
    arguments = {"path": str(tmp_path / "pid")}
    before = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await bounded.ainvoke(arguments) if asynchronous else bounded.invoke(arguments)
    assert time.monotonic() - before < 1.5 + 1.0
    assert caught.value.cause == "step"
    with contextlib.suppress(AssertionError):  # it may not have come to its first line
        until((tmp_path / "pid").exists, 1)
        pid = int((tmp_path / "pid").read_text())
        until(lambda: is_gone(pid), SOON)
