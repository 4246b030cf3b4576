"""One tool call of an agent under its middleware: guarded with all it is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool

from ._calls import NO_LIMIT, AsyncBody, Body, call_async, call_sync
from ._cut import Step
from ._middleware_run import AgentRun
from ._middleware_watch import fenced, watched
from ._tool_call import NO_OPTIONS, ToolRun, tool_run
from ._tool_guard import arun_tool, run_tool
from .errors import DeadlineExceeded, RunCut
from .tools import bounded_tool, message_of, options_here


class AgentToolRun(ToolRun):
    """One call of a tool, as the middleware of its agent makes it."""

    __slots__ = ("_agent", "nested")

    def __init__(self, agent: AgentRun, call: Any, tool: BaseTool | None) -> None:
        name, id = call["name"], call.get("id")
        around = tool_run.get()
        # In a bounded graph the tool node guards the call, and answers for its options.
        if around is not None and not (around.whole and around.is_of(name, id)):
            around = None
        self.nested = around is not None
        options = NO_OPTIONS if self.nested else options_here(tool)
        super().__init__(name, call.get("args"), id, options, whole=True)
        if around is not None:
            self.key = around.key
        self._agent = agent

    def entered(self, step: Step) -> None:
        """Note the step of the call."""
        super().entered(step)
        self._agent.entered(step)

    def answer(self, error: DeadlineExceeded) -> ToolMessage | None:
        """Return the answer to a call that overran by itself, `None` for the agent.

        Raises:
            DeadlineExceeded: The tool's own error, or that of its limit, if asked for.
        """
        if not self.cut and not isinstance(error, RunCut):
            raise error
        if not self.own:
            return None
        if self.options.on_exceeded == "raise":
            raise error
        return message_of(self)


def make(made: AgentToolRun, body: Body) -> Any:
    """Make the call on time.

    Raises:
        DeadlineExceeded: If the call was cut or refused.
    """
    if not made.nested:
        return run_tool(made, body)

    def work() -> Any:
        made.started = True
        return body()

    return call_sync(made.name, "tool", NO_LIMIT, work, made.entered)


async def amake(made: AgentToolRun, body: AsyncBody) -> Any:
    """As `make`."""
    if not made.nested:
        return await arun_tool(made, body)

    async def work() -> Any:
        made.started = True
        return await body()

    return await call_async(made.name, "tool", NO_LIMIT, work, made.entered)


def prepared(request: Any) -> Any:
    """Return a tool request whose tool stops with its call, and blocks no event loop.

    The config is changed in place: the tool node has it at hand already, and shows it
    to nobody else.
    """
    runtime, tool = request.runtime, request.tool
    changes: dict[str, Any] = {}
    if runtime is not None:
        runtime.config.update(watched(runtime.config))
        changes["runtime"] = replace(
            runtime, stream_writer=fenced(runtime.stream_writer)
        )
    if tool is not None:
        changes["tool"] = bounded_tool(tool, options_here(tool))
    return request.override(**changes)


def answer_to(made: AgentToolRun, call: Any, error: DeadlineExceeded) -> ToolMessage:
    """Return the answer to a call that the end of the agent's work left without one."""
    if made.cut:
        if made.nested and made.started:
            made.step.run.note_unknown(made)
        return message_of(made)
    return _error_message(
        call,
        f"Error: the call of {call['name']!r} failed: {error.__cause__!r}. There is no "
        "time for another attempt.",
    )


def not_offered(call: Any, left: float, finishing: tuple[str, ...]) -> ToolMessage:
    """Return the answer to a call of a tool that the model was not offered."""
    return _error_message(
        call,
        f"Error: {call['name']!r} is not offered any more, it was not started: there "
        f"is {max(left, 0.0):.3g} s left. Finish; only these tools can still be "
        f"called: {', '.join(finishing)}.",
    )


def _error_message(call: Any, content: str) -> ToolMessage:
    return ToolMessage(
        content, name=call["name"], tool_call_id=call.get("id") or "", status="error"
    )


def ends_the_agent(request: Any) -> bool:
    """Return whether the agent would end, without a last word, at this call's answer.

    It does after tools whose results are returned directly, if there were no others.
    """
    if request.tool is None or not request.tool.return_direct:
        return False
    messages = request.state.get("messages") or ()
    asking = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    calls = asking.tool_calls if asking is not None else []
    return {call["name"] for call in calls} == {request.tool_call["name"]}
