"""The command line: run a graph under a deadline, look at reports.

`langgraph-deadline --help` says how. Its extra is `cli`.
"""

from __future__ import annotations

import asyncio
import io
import platform
import sys
import traceback
from collections.abc import Generator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from contextvars import copy_context
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ._cli_files import (
    check_writable,
    config_of,
    input_of,
    keep,
    reports_in,
    result_text,
    written,
)
from ._cli_load import BadInput, load
from ._cli_run import (
    BAD_INPUT,
    COMPLETED,
    CUT,
    FAILED,
    STOPPED,
    Job,
    described,
    ended,
    leave_soon,
    stdout_kept,
    stop_button,
)
from .control import RunControl
from .live import live_bar
from .runs import Runs

_ABOUT = """\
Run LangGraph graphs under a deadline, and see where their time went.

A run has one deadline, shared by everything it does. When it comes, the run
is cut, and its fallback answers with what is there.
"""

_RUN_EXAMPLES = """\
[bold]Examples[/bold]

Thirty seconds for what is called `graph` in a file:

  langgraph-deadline run agent.py:graph -d 30 --input '{"topic": "tea"}'

Ask an agent; its node `answer` answers when time is up:

  langgraph-deadline run agent.py:graph -d 30 -m "Why?" --fallback answer

Only measure, to choose a deadline; each run adds its report to a file:

  langgraph-deadline run agent.py:graph --measure --report all.jsonl

In a script:

  langgraph-deadline run agent.py:graph -d 30 -i @in.json --json > out.json
  case $? in 0) echo completed;; 3) echo cut;; esac

[bold]Exit codes[/bold]

  0    the run completed
  1    the graph, or the module it is in, failed
  2    the command cannot be carried out as it stands
  3    the run was cut: by its deadline, or by another limit
  130  Ctrl-C: the first one cuts the run, the second one ends it at once
"""

_REPORT_EXAMPLES = """\
[bold]Examples[/bold]

Where the time of one run went:

  langgraph-deadline report out.json

What many runs have in common, also as a page that needs no network:

  langgraph-deadline report all.jsonl more/*.json --html runs.html

Of a run just made:

  langgraph-deadline run agent.py:graph -d 30 --json |
    langgraph-deadline report -

[bold]Exit codes[/bold]

  0  done
  2  a file cannot be read or written, or holds nothing to show
"""

app = typer.Typer(
    help=_ABOUT,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would show local variables, and keys in them
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a bar where only ASCII is taken
    try:
        app(prog_name="langgraph-deadline")
    except SystemExit as exit_:
        if exit_.code in {FAILED, CUT, STOPPED}:
            leave_soon(exit_.code)
        raise


def _version(asked: bool) -> None:
    if asked:
        names = ("langgraph-deadline", "langgraph")
        said = [f"{name} {_version_of(name)}" for name in names]
        typer.echo(", ".join([*said, f"Python {platform.python_version()}"]))
        raise typer.Exit


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the versions."
        ),
    ] = False,
) -> None:
    """Take what stands before the command."""


@app.command(epilog=_RUN_EXAMPLES)
def run(
    graph: Annotated[
        str,
        typer.Argument(
            metavar="GRAPH",
            help="FILE:NAME or MODULE:NAME. What stands there may be a compiled graph, "
            "an agent, a StateGraph, or a function that makes one.",
        ),
    ],
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            "-d",
            metavar="SECONDS",
            help="How long the run may take. Needed, unless the graph was compiled "
            "with a deadline, or with --measure.",
            rich_help_panel="Deadline",
        ),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(
            metavar="NODE",
            help="The node that answers when time is up.",
            rich_help_panel="Deadline",
        ),
    ] = None,
    reserve: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="The part of the time kept for the fallback; below 1 a fraction. "
            "If nothing is said, a fifth.",
            rich_help_panel="Deadline",
        ),
    ] = None,
    on_exceeded: Annotated[
        Literal["fallback", "raise", "return"] | None,
        typer.Option(
            metavar="WHAT",
            help="When time is up: fallback (it answers), raise (nothing does) or "
            "return (the state so far is the answer).",
            rich_help_panel="Deadline",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Cut nothing: only tell where the time went, and what would have "
            "been cut.",
            rich_help_panel="Deadline",
        ),
    ] = False,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="JSON",
            help="What the graph gets: JSON, @FILE, or - for stdin. {} if nothing is "
            "said; null goes on with a thread that was cut.",
            rich_help_panel="Input",
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option(
            "--message",
            "-m",
            metavar="TEXT",
            help="In place of --input, for agents: what the user says. The text of "
            "the answer is printed, in place of the state.",
            rich_help_panel="Input",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="In place of --input: the answer to an interrupt of the thread.",
            rich_help_panel="Input",
        ),
    ] = None,
    thread: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The thread, for graphs with a checkpointer; a new one if nothing is "
            "said.",
            rich_help_panel="Input",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="The run's config: JSON, @FILE, or - for stdin.",
            rich_help_panel="Input",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the report as JSON, and nothing else to stdout: what the graph "
            "prints goes to stderr.",
            rich_help_panel="Output",
        ),
    ] = False,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Add the report to a file, as a line of JSON.",
            rich_help_panel="Output",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the report as a page that needs no network.",
            rich_help_panel="Output",
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="No live bar, and no report at the end.",
            rich_help_panel="Output",
        ),
    ] = False,
    with_traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            help="If the graph fails, show where.",
            rich_help_panel="Output",
        ),
    ] = False,
) -> None:
    """Run a graph under a deadline.

    The result goes to stdout; a live bar of the time left, and at the end the
    report, go to stderr.
    """
    policy = {
        "seconds": deadline,
        "reserve": reserve,
        "on_exceeded": on_exceeded,
        "enforce": False if measure else None,
    }
    with _sentences(), ExitStack() as stack:
        out = stack.enter_context(stdout_kept()) if as_json else sys.stdout
        check_writable(html)
        check_writable(report_file, picture=False)
        job = Job(
            target=graph,
            input=input_of(input_, message, resume),
            config=config_of(config, thread),
            policy={name: v for name, v in policy.items() if v is not None},
            fallback=fallback,
            thing=_loaded(graph, with_traceback),
        )
        control = RunControl()
        with asyncio.Runner() as runner:
            with stop_button(control, runner.get_loop()), _bar(not quiet):
                # In the context as it is now: the bar observes it.
                end = runner.run(ended(job, control), context=copy_context())
            code = end.code(stopped=control.cancelled)
            if end.report is not None:
                keep(end.report, html, report_file)
            if as_json and end.report is not None:
                typer.echo(end.report.model_dump_json(), file=out)
            elif not as_json and end.error is None:
                typer.echo(result_text(end.result, answer=message is not None))
            if end.report is not None and not quiet:
                typer.echo(end.report, err=True)
            if end.error is not None:
                _tell(end.error, with_traceback)
            if end.way_on is not None and not quiet:
                typer.echo(end.way_on, err=True)
            if code != COMPLETED:
                stack.callback(leave_soon(code).cancel)
    raise typer.Exit(code)


@app.command(epilog=_REPORT_EXAMPLES)
def report(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files with reports: one, a JSON list of them, or one a line; - is "
            "stdin.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page that needs no network."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture.")
    ] = None,
) -> None:
    """Show where the time of a run went, or of many.

    One report is shown as a timeline, several are summed up.
    """
    with _sentences():
        check_writable(html)
        check_writable(png)
        found = Runs(report for file in files for report in reports_in(file))
        if not any(report.steps for report in found) and not as_json:
            msg = f"{', '.join(files)}: no step was started, so nothing can be shown"
            raise BadInput(msg)
        shown = found[0] if len(found) == 1 else found
        if html is not None:
            written(html, shown.to_html)
        if png is not None:
            written(png, shown.to_png)
        if as_json:
            typer.echo(found.summary().model_dump_json(indent=2))
        else:
            typer.echo(shown)


@contextmanager
def _sentences() -> Generator[None]:
    """Say what cannot be done in a sentence, and end with its exit code."""
    try:
        yield
    except BadInput as error:
        _say(str(error))
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None


def _loaded(target: str, with_traceback: bool) -> Any:
    try:
        return load(target)
    except BadInput:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a module may raise
        _tell(error, with_traceback)
        raise typer.Exit(FAILED) from None


def _tell(error: BaseException, with_traceback: bool) -> None:
    if with_traceback:
        traceback.print_exception(error)
    else:
        _say(described(error))


def _say(text: str) -> None:
    typer.echo(f"langgraph-deadline: {text}", err=True)


def _bar(shown: bool) -> AbstractContextManager[object]:
    """Return what shows the time left on stderr, while somebody looks."""
    return live_bar() if shown and sys.stderr.isatty() else nullcontext()
