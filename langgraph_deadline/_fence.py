"""The config that a guarded step gets: every way to write ends with a cut.

It is changed in place. The engine makes a new one for every attempt, and shows it to
nobody else; a copy would be the largest thing that a waiting run holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import set_config_context

from ._backlog import Backlog
from ._cut import Step
from ._langgraph import (
    CONF,
    CONFIG_KEY_CALL,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SEND,
    CONFIG_KEY_STREAM,
    StreamProtocol,
    writes_of,
)
from ._run import Run
from ._scope import current
from ._tasks import call_guarded


def fenced(run: Run, step: Step, config: RunnableConfig) -> RunnableConfig:
    """Have the functions in `config` write nothing once `step` is cut; return it.

    The checkpointer, store and cache in it are views already, which ask the context.
    """
    conf = config[CONF]
    conf[CONFIG_KEY_SEND] = _fenced_send(step, writes_of(config).extend)
    if (call := conf.get(CONFIG_KEY_CALL)) is not None:
        conf[CONFIG_KEY_CALL] = functools.partial(call_guarded, call, run, step)
    if (stream := conf.get(CONFIG_KEY_STREAM)) is not None:
        emit = _fenced(step, stream)
        conf[CONFIG_KEY_STREAM] = StreamProtocol(emit, stream.modes)
    if run.custom_stream:
        runtime = conf[CONFIG_KEY_RUNTIME]
        if run.journal is not None and run.journal.stream is not None:
            run.journal.stream.opened(_writer_of(runtime.stream_writer, config))
        writer = _fenced(step, runtime.stream_writer, run.backlog)
        conf[CONFIG_KEY_RUNTIME] = runtime.override(stream_writer=writer)
    return config


def copied(config: RunnableConfig) -> RunnableConfig:
    """Return a copy of `config` that a later step can have fenced for itself."""
    return {**config, CONF: dict(config[CONF])}


def unfenced(config: RunnableConfig) -> RunnableConfig:
    """Return a copy of `config` by which the guard itself writes for a step."""
    conf = {**config[CONF], CONFIG_KEY_SEND: writes_of(config).extend}
    return {**config, CONF: conf}


def _writer_of(
    write: Callable[[Any], None], config: RunnableConfig
) -> Callable[[Any], None]:
    """Return a stream writer that can be used outside of the step it was made for."""

    def write_anywhere(item: Any) -> None:
        with set_config_context(config) as context:  # it asks whose stream it is
            context.run(write, item)

    return write_anywhere


def _fenced_send(step: Any, send: Callable[[Any], None]) -> Callable[[Any], None]:
    writing = step.writing

    def fenced_send(writes: Any) -> None:
        with writing:
            if step.cause_of_cut() is None:
                send(writes)

    return fenced_send


def _fenced(
    step: Step, write: Callable[[Any], None], backlog: Backlog | None = None
) -> Callable[[Any], None]:
    def fenced_write(what: Any) -> None:
        if backlog is not None:
            backlog.written += 1
            backlog.wait(step.cause_of_cut)
        here = current.get()  # a call inside the step may have been cut by itself
        cut = step.cause_of_cut() or (here.cause_of_cut() if here is not None else None)
        if cut is None:
            write(what)

    return fenced_write
