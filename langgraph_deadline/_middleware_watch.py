"""What runs inside of a guarded call: it stops, or is silent, once it was cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from ._langgraph import CONF, CONFIG_KEY_RUNTIME, CONFIG_KEY_STREAM, StreamProtocol
from ._middleware_run import AgentScope, as_kind
from ._scope import current
from ._sequence import with_handler
from .errors import DeadlineExceeded, RunCut


def config_here() -> RunnableConfig | None:
    """Return the config of the task that this is called in."""
    return var_child_runnable_config.get()


class _Fenced:
    """A writer to a stream that is silent for work that was cut."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[Any], None]) -> None:
        self._write = write

    def __call__(self, what: Any) -> None:
        scope = current.get()
        if scope is None or scope.cause_of_cut() is None:
            self._write(what)


def fenced(write: Any) -> Any:
    """Return `write`, a function, so that it drops what comes after a cut."""
    return write if isinstance(write, _Fenced) else _Fenced(write)


def watched(config: RunnableConfig) -> RunnableConfig:
    """Return `config` with what stops work that was cut, at its next event or write."""
    conf = dict(config.get(CONF) or {})
    if (runtime := conf.get(CONFIG_KEY_RUNTIME)) is not None:
        writer = fenced(runtime.stream_writer)
        conf[CONFIG_KEY_RUNTIME] = runtime.override(stream_writer=writer)
    if (stream := conf.get(CONFIG_KEY_STREAM)) is not None:
        conf[CONFIG_KEY_STREAM] = StreamProtocol(fenced(stream), stream.modes)
    return {**with_handler(config), CONF: conf}


def watch_here() -> None:
    """Watch what is done from here on in this context, which is a call's own."""
    config = var_child_runnable_config.get()
    if config is not None:
        var_child_runnable_config.set(watched(config))


def inside(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Return the body of a guarded call."""

    def body() -> Any:
        watch_here()
        try:
            return call(*args)
        except DeadlineExceeded as error:
            if _is_the_agents(error):
                raise as_kind(RunCut, error) from error.__cause__
            raise

    return body


def ainside(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """As `inside`, for what is awaited."""

    async def body() -> Any:
        watch_here()
        try:
            return await call(*args)
        except DeadlineExceeded as error:
            if _is_the_agents(error):
                raise as_kind(RunCut, error) from error.__cause__
            raise

    return body


def _is_the_agents(error: DeadlineExceeded) -> bool:
    """Return whether `error` says that the agent's time is over.

    Something inside may find that out an instant before the guard does.
    """
    return isinstance(error.scope, AgentScope) and error.cause != "window"
