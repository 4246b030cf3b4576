"""LangGraph's `ToolNode` in a bounded graph: every tool call under a guard of its own.

Finished calls keep their results, cut ones are answered, and none runs on as an orphan.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from langchain_core.messages import ToolMessage
from langgraph.errors import GraphInterrupt
from langgraph.prebuilt import ToolNode

from ._cut import Step
from ._langgraph import MISSING, tool_node_like
from ._runnables import class_of
from ._scope import current
from ._tool_call import ToolRun
from ._tool_guard import arun_tool, run_tool
from .errors import DeadlineExceeded, NoTimeToRetry, RunCut
from .tools import bounded_tool, message_of, options_here


class _Together:
    """The calls that one execution of a tool node makes side by side."""

    def __init__(self) -> None:
        self.calls: list[ToolRun] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.failed = False
        # Whatever a call is held for is handed over by the node: it waits as well.
        scope = current.get()
        self._step: Step | None = scope.step if scope is not None else None

    def add(self, call: ToolRun) -> bool:
        """Note a call; return whether it may begin."""
        if call.options.on_cut is not None and self._step is not None:
            self._step.hold(0.0)  # held for it, the node hands over what is known
        self.calls.append(call)
        return not self.failed

    def fail(self) -> None:
        """Stop the calls beside one that raised its own error."""
        self.failed = True
        for call in self.calls:
            if call.step is not None:
                call.step.stop("cancelled")


_together: ContextVar[_Together] = ContextVar("langgraph_deadline_tool_calls")


class BoundedToolNode(ToolNode):
    """What a tool node gains; mixed into its class, so that it stays what it was."""

    # LangGraph's own methods that run all calls and one call: every part of a tool node
    # that this module overrides. A test fails when they move.

    def _func(self, input: Any, config: Any, runtime: Any) -> Any:
        token = _together.set(_Together())
        try:
            return super()._func(input, config, runtime)
        finally:
            _together.reset(token)

    async def _afunc(self, input: Any, config: Any, runtime: Any) -> Any:
        together = _Together()
        token = _together.set(together)
        try:
            return await super()._afunc(input, config, runtime)
        finally:
            _together.reset(token)
            if running := {task for task in together.tasks if not task.done()}:
                # A sibling raised, and they were told to stop: nothing is left behind.
                await asyncio.wait(running)

    def _run_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        made = self._made(call)
        body = functools.partial(super()._run_one, call, input_type, tool_runtime)
        together = _together.get()
        if not together.add(made):
            return message_of(made)
        try:
            return run_tool(made, body)
        except DeadlineExceeded as error:
            return _answer(made, error)
        except GraphInterrupt:
            raise
        except BaseException:
            together.fail()
            raise

    async def _arun_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        made = self._made(call)
        body = functools.partial(super()._arun_one, call, input_type, tool_runtime)
        together = _together.get()
        if (task := asyncio.current_task()) is not None:
            together.tasks.add(task)
        if not together.add(made):
            return message_of(made)
        try:
            return await arun_tool(made, body)
        except DeadlineExceeded as error:
            return _answer(made, error)
        except (GraphInterrupt, asyncio.CancelledError):
            raise
        except BaseException:
            together.fail()
            raise

    def _made(self, call: Any) -> ToolRun:
        options = options_here(self.tools_by_name.get(call["name"]))
        return ToolRun(
            call["name"], call.get("args"), call.get("id"), options, whole=True
        )

    def answers(self, input: Any, *, started: bool) -> Any:
        """Return what is written for calls that a cut left without any answer."""
        try:
            calls, input_type = self._parse_input(input)
        except ValueError:
            return MISSING
        what = (
            "has no result: it was cut, and may or may not have taken effect"
            if started
            else "was not started: there is no time left"
        )
        messages = [
            ToolMessage(
                content=f"Error: the call of {call['name']!r} {what}.",
                name=call["name"],
                tool_call_id=call["id"] or "",
                status="error",
            )
            for call in calls
        ]
        return self._combine_tool_outputs(list(messages), input_type)


def _answer(call: ToolRun, error: DeadlineExceeded) -> ToolMessage:
    """Return the message that answers a call that was cut or refused, or raise."""
    if not call.cut and not isinstance(error, RunCut):
        raise error
    if call.own and call.options.on_exceeded == "raise":
        # Past `handle_tool_errors`: the owner asked for an error, not for a message.
        raise NoTimeToRetry(
            *error.args,
            cause=error.cause,
            step=error.step,
            budget=error.budget,
            elapsed=error.elapsed,
            remaining=error.remaining,
            needed=error.needed,
        ) from error.__cause__
    return message_of(call)


def bounded_tool_node(node: ToolNode, adopt: Callable[[Any], Any]) -> ToolNode:
    """Return a copy of `node` that guards each call; the original stays as it was.

    Args:
        node: The tool node.
        adopt: Returns a tool so that the graphs it calls can be cut.
    """
    if isinstance(node, BoundedToolNode):
        return node
    tools = {
        name: bounded_tool(adopt(tool), options_here(tool))
        for name, tool in node.tools_by_name.items()
    }
    cls = class_of(BoundedToolNode, type(node))
    copied: ToolNode = tool_node_like(node, cls, tools)
    return copied
