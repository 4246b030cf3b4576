"""What the command line reads and writes: JSON, results, reports, pictures."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command
from pydantic import BaseModel

from . import _display, runs
from ._cli_load import BadInput
from .report import RunReport
from .runs import Runs

STDIN = "-"


def input_of(text: str | None, message: str | None, resume: str | None) -> Any:
    """Return what a graph gets, from the options that say it.

    Raises:
        BadInput: If two of them are given, or one cannot be read.
    """
    options = {"--input": text, "--message": message, "--resume": resume}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        msg = f"{' and '.join(given)} exclude each other: give one of them"
        raise BadInput(msg)
    if message is not None:
        return {"messages": [{"role": "user", "content": message}]}
    if resume is not None:
        return Command(resume=json_of(resume, "--resume"))
    return {} if text is None else json_of(text, "--input")


def config_of(text: str | None, thread: str | None) -> RunnableConfig:
    """Return the config of a run, from the options that say it.

    Raises:
        BadInput: If it cannot be read, or is no config.
    """
    config = {} if text is None else json_of(text, "--config")
    if not isinstance(config, dict):
        msg = f'--config has to be an object, such as {{"tags": []}}, got {text}'
        raise BadInput(msg)
    configurable = config.get("configurable", {})
    if not isinstance(configurable, dict):
        msg = f"--config: configurable has to be an object, got {configurable!r}"
        raise BadInput(msg)
    if thread is not None:
        configurable = {**configurable, "thread_id": thread}
    given: Any = {**config, "configurable": configurable}
    return cast(RunnableConfig, given)


def json_of(text: str, option: str) -> Any:
    """Return the value of JSON, `@FILE` or `-` (stdin).

    Raises:
        BadInput: If it cannot be read; names `option`.
    """
    where = option
    if text == STDIN:
        where, text = f"{option} (from stdin)", _stdin(option)
    elif text.startswith("@"):
        where, text = f"{option} ({text[1:]})", _text_of(Path(text[1:]), option)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        msg = f"{where} is not JSON: {error.msg} ({at})"
        if text.strip() and text.lstrip()[0] not in '{["':
            msg += f". A text needs quotes of its own: {option} '{json.dumps(text)}'"
        raise BadInput(msg) from error


def _stdin(where: str) -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        msg = f"{where}: what comes from stdin is no text"
        raise BadInput(msg) from error


def _text_of(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"{option}: {_unread(path, error)}"
        raise BadInput(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{option}: {path} is no text"
        raise BadInput(msg) from error


def _unread(path: Any, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no file {path}"
    return f"{path} cannot be read: {error.strerror}"


def reports_in(file: str) -> Runs:
    """Return the reports of a file, or of stdin.

    Raises:
        BadInput: If there are none that can be read; says what is there instead.
    """
    try:
        if file == STDIN:
            parse = runs.parsed
            return Runs(parse("stdin", _stdin(file)))
        return runs.read_reports(file)
    except OSError as error:
        raise BadInput(_unread(file, error)) from error
    except ValueError as error:
        raise BadInput(str(error)) from error


def check_writable(file: Path | None, *, picture: bool = True) -> None:
    """See that something can be written there, before work is done for it.

    Raises:
        BadInput: If its folder is not there, or pictures cannot be drawn.
    """
    if file is None:
        return
    if file.is_dir() or not file.parent.is_dir():
        what = "it is a folder" if file.is_dir() else f"there is no {file.parent}"
        msg = f"{file} cannot be written: {what}"
        raise BadInput(msg)
    if picture:
        try:
            _display.module()
        except ImportError as error:
            raise BadInput(str(error)) from error


def written(file: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file.

    Raises:
        BadInput: If that fails, or there is nothing to draw.
    """
    try:
        write(file)
    except OSError as error:
        msg = f"{file} cannot be written: {error.strerror}"
        raise BadInput(msg) from error
    except ValueError as error:
        msg = f"{file} is not written: {error}"
        raise BadInput(msg) from error


def keep(report: RunReport, html: Path | None, lines: Path | None) -> None:
    """Write a report where it is wanted.

    Raises:
        BadInput: If that fails.
    """
    if lines is not None:
        written(lines, lambda file: _add_line(file, report.model_dump_json()))
    if html is not None:
        written(html, report.to_html)


def _add_line(file: Path, line: str) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.write(f"{line}\n")


def result_text(result: Any, *, answer: bool) -> str:
    """Return a run's result as JSON; the text of its last message if `answer`."""
    if answer and isinstance(result, dict) and "__interrupt__" not in result:
        messages: list[Any] = result.get("messages") or [None]
        if isinstance(messages[-1], BaseMessage):
            return str(messages[-1].text)
    try:
        return json.dumps(result, default=_plain, indent=2, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that are no text, a cycle
        return repr(result)


def _plain(value: Any) -> Any:
    """Return what JSON knows of a value that it does not know."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)
