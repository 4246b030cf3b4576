"""The command line: what it prints where, how it ends, and that it says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import langgraph_deadline
from langgraph_deadline import RunReport, __main__, _display
from langgraph_deadline.report import StepReport
from langgraph_deadline.runs import Runs, read_reports

typer = pytest.importorskip("typer")

from typer.testing import CliRunner  # noqa: E402

from langgraph_deadline import _cli_run, cli  # noqa: E402

AGENTS = Path(__file__).parent / "cli_agents"
AGENT = str(AGENTS / "agent.py")
WIDE = {"COLUMNS": "80"}
ENV = {**WIDE, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(autouse=True)
def _imports_are_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        if name.startswith(("agent", "cli_agents")):
            del sys.modules[name]


def call(*arguments: object, stdin: str | bytes | None = None) -> Any:
    """Call the command in this process."""
    done = CliRunner().invoke(cli.app, [*map(str, arguments)], input=stdin, env=WIDE)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def run(name: str, *options: object, stdin: str | bytes | None = None) -> Any:
    return call("run", f"{AGENT}:{name}", *options, stdin=stdin)


def sentence(done: Any, code: int = 2) -> str:
    """Return the one sentence that a command ended with."""
    assert done.exit_code == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    prefix = "langgraph-deadline: "
    assert line.startswith(prefix)
    return str(line.removeprefix(prefix))


def report(**fields: Any) -> RunReport:
    """Return the report of a run that was cut."""
    steps = [
        StepReport(name="search", start=0, end=2.5, share=0.5),
        StepReport(name="write", start=2.5, end=4, share=0.3, cause="deadline"),
    ]
    filled = {"outcome": "deadline", "cause": "deadline", "budget": 5, "elapsed": 4}
    return RunReport(**{**filled, "steps": steps, **fields})


@pytest.fixture
def one(tmp_path: Path) -> Path:
    path = tmp_path / "one.json"
    path.write_text(report().model_dump_json())
    return path


# What can be run.


@pytest.mark.parametrize("name", ["graph", "builder", "from_nothing", "opening"])
def test_run_takes_graphs_builders_and_what_makes_them(name: str) -> None:
    done = run(name, "--deadline", 30)
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"answer": "worked"}
    assert "completed after" in done.stderr
    if name == "opening":
        order = [done.stderr.index(word) for word in ("opened", "at work", "closed")]
        assert order == sorted(order)


def test_a_function_that_makes_a_graph_gets_the_config() -> None:
    config = '{"configurable": {"user": "me"}}'
    done = run("from_config", "--deadline", 30, "--config", config)
    assert done.exit_code == 0


def test_a_graph_can_be_named_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(AGENTS.parent)
    done = call("run", "cli_agents.agent:graph", "--deadline", 30)
    assert json.loads(done.stdout) == {"answer": "worked"}


def test_an_async_functional_graph_is_run() -> None:
    done = run("workflow", "--deadline", 30, "--input", '"tea"')
    assert json.loads(done.stdout) == "TEA"


@pytest.mark.parametrize("how", ["text", "stdin", "file"])
def test_the_input_is_json_from_anywhere(how: str, tmp_path: Path) -> None:
    text = '{"seconds": 0, "how": "ü"}'
    file = tmp_path / "in.json"
    file.write_text(text, encoding="utf-8")
    given = {"text": text, "stdin": "-", "file": f"@{file}"}[how]
    done = run("graph", "-d", 30, "--input", given, stdin=text)
    assert json.loads(done.stdout) == {"seconds": 0, "how": "ü", "answer": "worked"}


def test_a_message_is_answered_with_a_text() -> None:
    done = run("talker", "-d", 30, "--message", "hello")
    assert done.stdout == "You said: hello\n"


def test_a_file_called_like_a_module_in_use_takes_nobodys_place(
    tmp_path: Path,
) -> None:
    file = tmp_path / "json.py"
    file.write_text((AGENTS / "agent.py").read_text())
    assert call("run", f"{file}:graph", "-d", 30).exit_code == 0
    assert sys.modules["json"] is json


def test_an_interrupted_thread_goes_on_with_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(AGENTS.parent)  # imported once, so that its threads stay
    target = "cli_agents.agent:asking_graph"
    first = call("run", target, "-d", 30)
    assert first.exit_code == 0
    assert json.loads(first.stdout)["__interrupt__"][0]["value"] == "Go on?"
    assert "waits for a person" in first.stderr
    *_, last = first.stderr.splitlines()
    assert last.endswith(" --resume JSON")
    thread = last.split("--thread ")[1].split()[0]
    second = call("run", target, "-d", 30, "--thread", thread, "--resume", '"yes"')
    assert json.loads(second.stdout) == {"answer": "yes"}


# Under a deadline.


@pytest.mark.realtime
def test_a_cut_run_answers_with_its_fallback_and_exit_code_3() -> None:
    options = ("--deadline", 2, "--reserve", 1.5, "--fallback", "degrade")
    done = run("graph", *options, "--input", '{"seconds": 60}')
    assert done.exit_code == 3
    assert json.loads(done.stdout)["answer"] == "only prepared"
    assert "LangGraph: deadline after" in done.stderr
    assert "1.5 s of them for the fallback" in done.stderr


@pytest.mark.realtime
def test_the_deadline_of_the_graph_itself_can_be_used_shortened_and_measured() -> None:
    slow = ("--input", '{"seconds": 60}', "--quiet")
    as_compiled = run("bounded", *slow)
    assert as_compiled.exit_code == 3
    assert as_compiled.stderr == "at work\n"
    raised = run("bounded", *slow, "--on-exceeded", "raise", "-d", 0.5)
    assert raised.exit_code == 3
    assert raised.stdout == ""
    assert "exceeded its deadline of 0.5 s" in raised.stderr
    measured = run("bounded", "-i", '{"seconds": 1}', "-d", 0.5, "--measure", "--json")
    assert measured.exit_code == 0
    kept = RunReport.model_validate_json(measured.stdout)
    assert not kept.enforced
    assert kept.elapsed > 0.9


@pytest.mark.realtime
def test_return_prints_the_state_so_far() -> None:
    done = run("graph", "-d", 1, "--on-exceeded", "return", "-i", '{"seconds": 60}')
    assert done.exit_code == 3
    assert json.loads(done.stdout)["answer"] == "prepared"


def test_measuring_needs_no_deadline() -> None:
    done = run("graph", "--measure", "--json")
    assert done.exit_code == 0
    kept = RunReport.model_validate_json(done.stdout)
    assert [step.name for step in kept.steps] == ["prepare", "work"]
    assert kept.budget is None


# How a run ends.


def test_the_graphs_own_error_is_said_briefly_and_ends_with_1() -> None:
    done = run("graph", "-d", 30, "-i", '{"how": "fail"}', "-q")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "langgraph-deadline: RuntimeError: the service said no\n" in done.stderr
    assert "Traceback" not in done.stderr
    shown = run("graph", "-d", 30, "-i", '{"how": "fail"}', "-q", "--traceback")
    assert "Traceback" in shown.stderr
    assert "in work" in shown.stderr


def test_a_failed_run_has_a_report_too() -> None:
    done = run("graph", "-d", 30, "-i", '{"how": "fail"}', "--json", "-q")
    assert done.exit_code == 1
    assert RunReport.model_validate_json(done.stdout).outcome == "error"


def test_a_function_that_cannot_make_its_graph_ends_with_1() -> None:
    said = sentence(run("broken", "-d", 30, "--json"), 1)
    assert said == "LookupError: no key is set"


def test_a_module_that_cannot_be_imported_ends_with_1(tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text("import no_such_library\n")
    said = sentence(call("run", f"{file}:graph", "-d", 30), 1)
    assert said == "ModuleNotFoundError: No module named 'no_such_library'"
    file.write_text("graph = (\n")
    assert "SyntaxError" in call("run", f"{file}:graph", "-d", 30).stderr


def test_reports_are_kept_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    for _ in range(2):
        assert run("graph", "-d", 30, "--report", file, "-q").exit_code == 0
    assert [kept.outcome for kept in read_reports(file)] == ["completed"] * 2
    summed = call("report", file)
    assert "2 runs: 2 completed" in summed.stdout


# What cannot be run.


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("agent.py", "'agent.py' names no graph: write FILE:NAME or MODULE:NAME"),
        ("nosuch.py:graph", "there is no file nosuch.py: "),
        (f"{AGENTS}/:graph", "is a folder: name the Python file"),
        ("no_such_package.x:graph", "there is no module 'no_such_package'"),
        ("a b:graph", "'a b' is neither a Python file nor a module"),
        (f"{AGENT}:grap", "there is no 'grap' in "),
        (f"{AGENT}:grap", "; did you mean 'graph'?"),
        (f"{AGENT}:x", "; its graphs: graph, blocking, builder, bounded, "),
        (f"{AGENT}:not_a_graph", "is of type dict: it has to be a compiled graph"),
        (f"{AGENT}:State", "is the class State: it has to be a compiled graph"),
        (f"{AGENT}:greedy", "needs config, runtime: what makes a graph may take the"),
        (f"{AGENT}:graph", "has no deadline of its own: give it one with --deadline"),
    ],
)
def test_what_is_no_graph_is_named(target: str, said: str) -> None:
    options = () if target.endswith("agent.py:graph") else ("-d", 30)
    assert said in sentence(call("run", target, *options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-d", 0), "--deadline must be more than 0 seconds, got float 0.0"),
        (("-d", -1), "--deadline must be more than 0 seconds, got float -1.0"),
        (("-d", "nan"), "--deadline must"),
        (("-d", 1, "--reserve", -1), "--reserve must not be negative"),
        (("-d", 2, "--reserve", 3), "must be smaller than the budget of 2.0 s"),
        (("-d", 1, "--fallback", "degrad"), "did you mean 'degrade'?"),
        (("-d", 1, "--on-exceeded", "fallback"), "needs a fallback"),
        (("-d", 1, "-i", '{"a'), "--input is not JSON: Unterminated string"),
        (("-d", 1, "-i", "tea"), """A text needs quotes of its own: --input '"tea"'"""),
        (("-d", 1, "-i", "@no.json"), "--input: there is no file no.json"),
        (("-d", 1, "-i", "-"), "--input (from stdin) is not JSON: Expecting value"),
        (("-d", 1, "--config", "[]"), "--config has to be an object"),
        (("-d", 1, "--config", '{"configurable": 1}'), "configurable has to be"),
        (("-d", 1, "-i", "{}", "-m", "hi"), "--input and --message exclude each other"),
        (("-d", 1, "--report", "no/r.json"), "no/r.json cannot be written: there is"),
        (
            ("-d", 1, "--config", '{"configurable": {"x-request-deadline": "soon"}}'),
            "x-request-deadline must be seconds left",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(options: Any, said: str) -> None:
    assert said in sentence(run("graph", *options))


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    binary, other = tmp_path / "input.json", tmp_path / "agent.txt"
    binary.write_bytes(b"\xff")
    other.write_text("graph = 1\n")
    said = sentence(run("graph", "-d", 1, "-i", f"@{binary}"))
    assert said == f"--input: {binary} is no text"
    said = sentence(call("run", f"{other}:graph", "-d", 1))
    assert said == f"{other} is no Python file: its name has to end in .py"
    said = sentence(call("report", tmp_path, "--html", tmp_path))
    assert said == f"{tmp_path} cannot be written: it is a folder"


def test_the_page_of_a_run_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "run.html"
    done = run("graph", "-d", 30, "--html", page)
    assert done.exit_code == 0, done.stderr
    assert "<svg" in page.read_text(encoding="utf-8")


def test_stdin_that_is_no_text_is_named() -> None:
    for arguments in (("run", f"{AGENT}:graph", "-d", 1, "-i", "-"), ("report", "-")):
        done = call(*arguments, stdin=b"\xff")
        assert "what comes from stdin is no text" in sentence(done)


def test_a_file_of_a_package_has_to_be_named_as_a_module(tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text("from .parts import graph\n")
    said = sentence(call("run", f"{file}:graph", "-d", 30))
    assert "name it as a module, for example my_package.agent:graph" in said


def test_what_the_parser_refuses_ends_with_2() -> None:
    for arguments in (("run",), ("run", "x:y", "-d", "soon"), ("report",), ("paint",)):
        done = call(*arguments)
        assert done.exit_code == 2
        assert "Usage: " in done.stderr


# Help.


def test_help_teaches_by_examples_that_fit_a_terminal() -> None:
    for command in ("run", "report"):
        text = call(command, "--help").stdout
        assert "Examples" in text
        assert "Exit codes" in text
        assert f"langgraph-deadline {command} " in text
        assert max(map(len, text.splitlines())) <= 80
        # No example is broken in two.
        source = {"run": cli._RUN_EXAMPLES, "report": cli._REPORT_EXAMPLES}[command]
        shown = {line.strip() for line in text.splitlines()}
        for line in source.replace("[bold]", "").replace("[/bold]", "").splitlines():
            assert line.strip() in shown, line


def test_help_tells_every_exit_code() -> None:
    text = call("run", "-h").stdout
    for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert any(line.strip().startswith(code) for line in text.splitlines())


def test_the_version_is_told() -> None:
    done = call("--version")
    assert done.exit_code == 0
    assert done.stdout.startswith("langgraph-deadline ")
    assert "Python 3." in done.stdout


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "langgraph_deadline.cli")
    monkeypatch.delattr(langgraph_deadline, "cli")
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert "pip install 'langgraph-deadline[cli]'" in str(ended.value)


# Reports.


def test_one_report_is_drawn(one: Path) -> None:
    done = call("report", one)
    assert done.exit_code == 0
    assert done.stdout == f"{report()}\n"
    assert done.stderr == ""


def test_reports_are_summed_over_files_and_stdin(one: Path) -> None:
    text = report(outcome="completed", cause=None, elapsed=2).model_dump_json()
    done = call("report", one, "-", stdin=text)
    assert done.stdout.startswith("2 runs: 1 deadline, 1 completed; ")
    as_json = call("report", one, "-", "--json", stdin=text)
    assert json.loads(as_json.stdout)["outcomes"] == {"deadline": 1, "completed": 1}


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_are_written(one: Path, tmp_path: Path, count: int) -> None:
    pytest.importorskip("matplotlib")
    html, png = tmp_path / "out.html", tmp_path / "out.png"
    done = call("report", *[one] * count, "--html", html, "--png", png)
    assert done.exit_code == 0, done.stderr
    page = html.read_text(encoding="utf-8")
    assert "search" in page
    assert "<script src" not in page
    assert png.read_bytes().startswith(b"\x89PNG")


def text_of(**changes: Any) -> str:
    return json.dumps({**report().model_dump(mode="json"), **changes})


def in_flight() -> str:
    data = report().model_dump(mode="json")
    del data["outcome"]
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: it holds no reports"),
        ("[]", "is an empty list: it holds no reports"),
        (text_of()[:99], "It looks cut off at its end"),
        (text_of(version=99), "a report of version 99, and this release reads"),
        (text_of(steps=[]), "no step was started, so nothing can be shown"),
        (in_flight(), "the run was still in flight when this was written"),
        ("\xff", "is no text: it holds no reports"),
        ('{"name": "x"}', "holds no report"),
    ],
    # The same in every worker: reports have ids of their own.
    ids=["none", "empty", "cut", "version", "steps", "in flight", "binary", "other"],
)
def test_what_is_no_report_is_said_in_a_sentence(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(text.encode("latin-1"))
    for options in ((), ("--html", tmp_path / "out.html")):
        told = sentence(call("report", file, *options))
        assert said in told
        assert str(file) in told
        assert not (tmp_path / "out.html").exists()


def test_a_missing_file_is_said_in_a_sentence(tmp_path: Path, one: Path) -> None:
    missing = tmp_path / "no.json"
    assert sentence(call("report", missing)) == f"there is no file {missing}"
    assert f"{tmp_path} cannot be read" in sentence(call("report", tmp_path))
    said = sentence(call("report", one, "--html", tmp_path / "no" / "out.html"))
    assert "out.html cannot be written: there is no " in said


def test_missing_pictures_are_said_in_a_sentence(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_display, "possible", lambda: False)
    said = sentence(call("report", one, "--html", "out.html"))
    assert "pip install 'langgraph-deadline[notebook]'" in said
    assert "notebook" in sentence(run("graph", "-d", 30, "--html", "out.html"))


# Results as text.


def test_what_json_does_not_know_is_shown_all_the_same() -> None:
    shown = cli.result_text({"who": {1}, "what": print}, answer=False)
    assert json.loads(shown) == {"who": [1], "what": str(print)}
    assert cli.result_text({(1, 2): 3}, answer=False) == "{(1, 2): 3}"
    assert cli.result_text({"messages": []}, answer=True) == '{\n  "messages": []\n}'


# In a process of its own.


def started(
    name: str, *options: object, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "langgraph_deadline", "run", f"{AGENT}:{name}"]
    root = str(Path(langgraph_deadline.__file__).parents[1])
    return subprocess.Popen(
        [*command, *map(str, options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        env={**os.environ, **ENV, "PYTHONPATH": root},
    )


@pytest.mark.realtime
def test_a_terminal_sees_a_live_bar_and_stdout_does_not() -> None:
    pty = pytest.importorskip("pty")
    master, terminal = pty.openpty()
    given = json.dumps({"seconds": 1})
    process = started("graph", "-d", 60, "-i", given, stderr=terminal)
    os.close(terminal)
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as screen:
        try:
            while part := screen.read(4096):
                seen += part
        except OSError:
            pass  # how Linux tells that the other side is closed
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, seen
    assert json.loads(out) == {"seconds": 1, "answer": "worked"}
    assert "s left of 60 s, work" in seen.decode()
    assert seen.decode().endswith("\r\n")


def until_at_work(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert any(line == "at work\n" for line in process.stderr)


@pytest.mark.realtime
def test_json_has_stdout_for_itself_whoever_prints() -> None:
    process = started("noise", "--deadline", 60, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert RunReport.model_validate_json(out).outcome == "completed"
    assert len(out.splitlines()) == 1
    assert {"printed", "written", "by a child"} <= set(err.splitlines())


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("name", "how"), [("blocking", ""), ("graph", "pool"), ("graph", "deaf")]
)
def test_what_outlives_a_cut_does_not_hold_up_the_end(name: str, how: str) -> None:
    given = json.dumps({"seconds": 300, "how": how})
    process = started(name, "-d", 1, "-i", given, "--json", "-q")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert RunReport.model_validate_json(out).outcome == "deadline"


@pytest.mark.realtime
def test_ctrl_c_cuts_the_run_and_its_fallback_answers() -> None:
    process = started("bounded", "-d", 300, "-i", '{"seconds": 300}')
    until_at_work(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out)["answer"] == "only prepared"
    assert "LangGraph: cancelled after" in err
    assert "Traceback" not in err


@pytest.mark.realtime
def test_the_second_ctrl_c_ends_it_at_once() -> None:
    process = started("bounded", "-d", 300, "-i", '{"seconds": 300}', "--measure")
    until_at_work(process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any(line.startswith("Cutting the run") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    before = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert time.monotonic() - before < 60
    assert out == ""


def test_a_collected_run_that_is_inside_another_is_not_the_run() -> None:
    outer = report(name="outer")
    inner = report(name="inner", parent=outer.id)
    assert _cli_run._outermost(Runs([inner, outer])) is outer
    assert _cli_run._outermost(Runs()) is None
