"""Tools with a deadline: what people have, with a limit, fenced, and safe to cut."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, get_args

from langchain_core.messages import ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from ._calls import CallLimit, threaded
from ._langchain import runs_async
from ._runnables import class_of, retry_in_time
from ._scope import remaining
from ._tool_call import NO_OPTIONS, OnCut, ToolOptions, ToolRun, tool_run
from ._tool_guard import arun_tool, run_tool
from .deadline import shown
from .errors import DeadlineExceeded

OnExceeded = Literal["message", "raise"]


def options_of(
    tool: BaseTool,
    seconds: Any = None,
    *,
    needs: Any = 0.0,
    on_exceeded: OnExceeded = "message",
    on_cut: OnCut | None = None,
    isolation: Literal["process"] | None = None,
) -> ToolOptions:
    """Return the options of a tool, checked.

    Raises:
        ValueError: If an option has no such value; the message names it.
        TypeError: If `on_cut` cannot be called, or the tool cannot be isolated.
    """
    if on_exceeded not in get_args(OnExceeded):
        msg = f"on_exceeded must be 'message' or 'raise', got {shown(on_exceeded)}"
        raise ValueError(msg)
    if on_cut is not None and not callable(on_cut):
        msg = f"on_cut must be a function of the tool call, got {shown(on_cut)}"
        raise TypeError(msg)
    limit = CallLimit.checked(seconds, needs)
    before = options_here(tool)
    return ToolOptions(
        limit=limit.within(before.limit),
        on_exceeded=on_exceeded,
        on_cut=on_cut or before.on_cut,
        target=_target(tool, isolation) or before.target,
    )


def _target(tool: BaseTool, isolation: str | None) -> Any:
    if isolation is None:
        return None
    if isolation != "process":
        msg = f"isolation must be 'process' or None, got {shown(isolation)}"
        raise ValueError(msg)
    from . import process  # noqa: PLC0415 - few need it

    original = tool.model_copy()
    object.__setattr__(original, "__class__", _own_class(type(tool)))
    private = dict(original.__pydantic_private__ or {})
    private.pop("_deadline_options", None)
    object.__setattr__(original, "__pydantic_private__", private or None)
    return process.target_of(original)


def options_here(tool: Any) -> ToolOptions:
    """Return what a tool was wrapped with, nothing for one that was not."""
    if isinstance(tool, BoundedTool):
        return tool.deadline_options()
    return NO_OPTIONS


class BoundedTool(BaseTool):
    """What a wrapped tool gains: its calls end on time.

    Mixed into the class of the tool, so that it stays what it was.
    """

    _deadline_options: ToolOptions = PrivateAttr(default=NO_OPTIONS)

    def deadline_options(self) -> ToolOptions:
        """Return what the tool was wrapped with."""
        return self._deadline_options

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the tool, on time."""
        call = self._call(tool_input, kwargs)
        body = functools.partial(self._run_here, tool_input, *args, **kwargs)
        if call is None:
            return body()
        try:
            return run_tool(call, body)
        except DeadlineExceeded as error:
            return self._answer(call, error)

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the tool, on time; one without async code of its own gets a thread."""
        call = self._call(tool_input, kwargs)
        if self._is_async():
            body = functools.partial(super().arun, tool_input, *args, **kwargs)
        else:
            body = functools.partial(
                threaded, self._run_here, tool_input, *args, **kwargs
            )
        if call is None:
            return await body()
        try:
            return await arun_tool(call, body)
        except DeadlineExceeded as error:
            return self._answer(call, error)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Run the tool, on time."""
        # Past the overrides that would run a sync tool in the loop's few threads.
        return await BaseTool.ainvoke(self, input, config, **kwargs)

    def with_retry(
        self, *, retry_if_exception_type: Any = (Exception,), **kwargs: Any
    ) -> Runnable[Any, Any]:
        """Return the tool with retries, but none of what ran out of time."""
        kinds = retry_in_time(retry_if_exception_type)
        return super().with_retry(retry_if_exception_type=kinds, **kwargs)

    def _call(self, tool_input: Any, kwargs: dict[str, Any]) -> ToolRun | None:
        """Return the call that begins here, `None` inside one that is guarded."""
        id = kwargs.get("tool_call_id")
        around = tool_run.get()
        # The tool node guards the whole call, with all that middleware makes of it.
        if around is not None and around.whole and around.is_of(self.name, id):
            return None
        args = tool_input
        if isinstance(args, dict):
            args = self._filter_injected_args(args)  # what the model asked for
        return ToolRun(self.name, args, id, self._deadline_options)

    def _answer(self, call: ToolRun, error: DeadlineExceeded) -> Any:
        """Return the error message for a call that overran, or raise."""
        if not call.own or call.options.on_exceeded == "raise":
            raise error
        return message_of(call) if call.id is not None else call.content()

    def _run_here(self, *args: Any, **kwargs: Any) -> Any:
        return super().run(*args, **kwargs)

    def _is_async(self) -> bool:
        if self._deadline_options.target is not None:
            return False
        return runs_async(self)


class IsolatedTool(BoundedTool):
    """A wrapped tool whose body runs in another process, which can be killed."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        from .process import start  # noqa: PLC0415 - few need it

        call = tool_run.get()
        left = remaining()
        running = start(
            self._deadline_options.target,
            args,
            kwargs,
            seconds_left=None if left == math.inf else left,
            key=None if call is None else call.key,
        )
        if call is not None:
            call.kill = running.kill
            if call.cut:
                running.kill()
        return running.wait()


def bounded_tool(tool: BaseTool, options: ToolOptions) -> Any:
    """Return a copy of `tool` whose calls end on time; the original stays as it was."""
    mixin = BoundedTool if options.target is None else IsolatedTool
    copied = tool.model_copy()
    own = _own_class(type(tool))
    # pydantic's own `__setattr__` knows fields only.
    object.__setattr__(copied, "__class__", class_of(mixin, own))
    private = dict(copied.__pydantic_private__ or {})
    private["_deadline_options"] = options
    object.__setattr__(copied, "__pydantic_private__", private)
    return copied


def _own_class(cls: type[Any]) -> type[Any]:
    """Return the class a tool had before it was wrapped."""
    return cls.__bases__[-1] if issubclass(cls, BoundedTool) else cls


def message_of(call: ToolRun) -> ToolMessage:
    """Return the error message that answers a call that was cut or refused."""
    return ToolMessage(
        content=call.content(),
        name=call.name,
        tool_call_id=call.id or "",
        status="error",
    )
