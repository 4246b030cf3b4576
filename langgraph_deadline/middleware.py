"""A deadline for agents that are composed of LangChain's middleware.

```python
agent = create_agent(model, tools, middleware=[DeadlineMiddleware(30, fallback="...")])
```
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ContextT,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    PrivateStateAttr,
    ResponseT,
    ToolCallRequest,
)
from langchain.agents.structured_output import AutoStrategy, ToolStrategy
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import Runnable
from langgraph.runtime import Runtime
from langgraph.types import Command

from ._calls import NO_LIMIT, call_async, call_sync
from ._middleware_models import (
    BoundedModels,
    asked,
    calls_of_withheld,
    closing_of,
    fallback_of,
    refuse_to_close_twice,
    repair,
)
from ._middleware_pace import Pacing, name_of
from ._middleware_run import (
    AgentRun,
    run_here,
    settings_of,
)
from ._middleware_time import TIME_KEY, RunTime
from ._middleware_tools import (
    AgentToolRun,
    amake,
    answer_to,
    ends_the_agent,
    make,
    not_offered,
    prepared,
)
from ._middleware_watch import ainside, config_here, inside
from .errors import DeadlineExceeded
from .policy import DeadlinePolicy

_NOT_OFFERED = "deadline_not_offered"


class DeadlineState(AgentState[ResponseT]):
    """What the middleware keeps in the agent's state; in no input and no output."""

    deadline_time: NotRequired[Annotated[dict[str, float], RunTime, PrivateStateAttr]]
    deadline_not_offered: NotRequired[Annotated[list[str], PrivateStateAttr]]


class DeadlineMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """One deadline for each run of an agent: its model calls, tool calls and retries.

    What is cut is answered, so that the history stays valid, and the run ends on time:
    with the fallback's answer or, without one, with `DeadlineExceeded`. Time that an
    interrupt waits for a person is not charged, unless the policy's `clock` says so. In
    a bounded run the earlier deadline holds.

    Place it first among an agent's middleware: it bounds what stands behind it, with
    all retries and their pauses. Behind LangChain's retry middleware it refuses a retry
    whose pause does not fit; older releases of that retry its own error, too. What
    other middleware does in nodes of its own, such as `SummarizationMiddleware`'s
    model, it cannot cut: bound that by itself, or the whole agent by
    `with_deadline(create_agent(...), 30)`.

    Args:
        deadline: Budget of each run: seconds, a `timedelta` or a `DeadlinePolicy`, of
            which `seconds`, `reserve`, `on_exceeded` (`"fallback"` or `"raise"`),
            `clock` and `cancel_grace` are used.
        fallback: The last answer: a text, or what `agent_fallback` returns.
        note_from: Share of the time for work (the budget without the reserve) from
            which on the model is told how much is left, by a message that is in the
            call only; `None` for never.
        finishing_tools: Names of the tools that are still offered near the end.
        finish_from: Share of the time for work from which on only those are offered;
            `None` for never.

    Raises:
        ValueError: If an argument has no such value, or the policy has what a
            middleware cannot use; the message names it.
        TypeError: If `fallback` is neither a text nor a Runnable.
    """

    state_schema = DeadlineState  # type: ignore[assignment]

    def __init__(
        self,
        deadline: float | timedelta | DeadlinePolicy,
        *,
        fallback: str | Runnable[Any, Any] | None = None,
        note_from: float | None = None,
        finishing_tools: Sequence[str] = (),
        finish_from: float | None = 0.8,
    ) -> None:
        super().__init__()
        self.tools = []
        self._fallback = fallback_of(fallback)
        self._settings = settings_of(deadline, has_fallback=fallback is not None)
        self._pacing = Pacing.checked(note_from, finish_from, finishing_tools)
        self._models = BoundedModels()

    # The beginning of a run.

    def before_agent(
        self, state: AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """Note that a run begins, and answer what an earlier one left open."""
        update = {TIME_KEY: {}, **repair(state, config_here())}
        if _NOT_OFFERED in state:
            update[_NOT_OFFERED] = []  # ids may be used again
        return update

    async def abefore_agent(
        self, state: AgentState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """As `before_agent`."""
        return self.before_agent(state, runtime)

    # Model calls.

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT] | AIMessage | ExtendedModelResponse[ResponseT]:
        """Call the model, on time, or close the run."""
        run = run_here(self._settings, config_here())
        what = request.model.get_name()
        self._check_finishing(request)
        made, withheld = asked(request, run, self._pacing, self._models)
        try:
            with run.working(what):
                body = inside(handler, made)
                response = call_sync(what, "model", NO_LIMIT, body, run.entered)
            return self._answered(response, withheld)
        except Exception as error:  # noqa: BLE001 - raised, unless it ends the run
            fallback = self._at_end(run, request, run.ended_by(what, error))
        with run.closing():
            body = inside(fallback.invoke, request.state, config_here())
            update = call_sync("fallback", "call", NO_LIMIT, body, run.entered)
        return self._closed(update, request, run)

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[
            [ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]
        ],
    ) -> ModelResponse[ResponseT] | AIMessage | ExtendedModelResponse[ResponseT]:
        """As `wrap_model_call`."""
        run = run_here(self._settings, config_here())
        what = request.model.get_name()
        self._check_finishing(request)
        made, withheld = asked(request, run, self._pacing, self._models)
        try:
            with run.working(what):
                body = ainside(handler, made)
                response = await call_async(what, "model", NO_LIMIT, body, run.entered)
            return self._answered(response, withheld)
        except Exception as error:  # noqa: BLE001 - raised, unless it ends the run
            fallback = self._at_end(run, request, run.ended_by(what, error))
        with run.closing():
            body = ainside(fallback.ainvoke, request.state, config_here())
            update = await call_async("fallback", "call", NO_LIMIT, body, run.entered)
        return self._closed(update, request, run)

    def _check_finishing(self, request: ModelRequest[ContextT]) -> None:
        if self._pacing.finishing:
            known = {name_of(tool) for tool in request.tools}
            self._pacing.check_known(known | _structured(request.response_format))

    def _at_end(
        self, run: AgentRun, request: ModelRequest[ContextT], error: DeadlineExceeded
    ) -> Runnable[Any, Any]:
        """Return what closes the run, or raise."""
        if self._fallback is None or not self._settings.falls_back:
            raise run.failed(error)
        refuse_to_close_twice(request.state["messages"], run, error)
        return self._fallback

    def _answered(
        self, response: ModelResponse[ResponseT], withheld: frozenset[str]
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Return a response; note the calls of tools that the model was not offered."""
        if not withheld:
            return response
        refused = calls_of_withheld(response.result, withheld)
        return ExtendedModelResponse(response, Command(update={_NOT_OFFERED: refused}))

    def _closed(
        self, update: Any, request: ModelRequest[ContextT], run: AgentRun
    ) -> ModelResponse[ResponseT]:
        """Return the response that ends the agent."""
        messages, structured = closing_of(update, request.state, run)
        return ModelResponse(result=messages, structured_response=structured)

    # Tool calls.

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Call the tool, on time, or answer its call."""
        run = run_here(self._settings, config_here())
        if (refusal := self._refusal(run, request)) is not None:
            return refusal
        made = AgentToolRun(run, request.tool_call, request.tool)
        try:
            with run.working(made.name):
                body = inside(handler, prepared(request))
                answer: ToolMessage | Command[Any] = make(made, body)
            return answer
        except Exception as error:  # noqa: BLE001 - raised, unless it ends the run
            return self._answer(run, request, made, error)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """As `wrap_tool_call`."""
        run = run_here(self._settings, config_here())
        if (refusal := self._refusal(run, request)) is not None:
            return refusal
        made = AgentToolRun(run, request.tool_call, request.tool)
        try:
            with run.working(made.name):
                body = ainside(handler, prepared(request))
                answer: ToolMessage | Command[Any] = await amake(made, body)
            return answer
        except Exception as error:  # noqa: BLE001 - raised, unless it ends the run
            return self._answer(run, request, made, error)

    def _refusal(self, run: AgentRun, request: ToolCallRequest) -> ToolMessage | None:
        """Return the answer to a call of a tool that was not offered."""
        if request.tool_call["id"] in (request.state.get(_NOT_OFFERED) or ()):
            return not_offered(request.tool_call, run.left, self._pacing.finishing)
        return None

    def _answer(
        self,
        run: AgentRun,
        request: ToolCallRequest,
        made: AgentToolRun,
        error: Exception,
    ) -> ToolMessage | Command[Any]:
        """Return what answers a call that failed with `error`, or raise."""
        end = run.ended_by(made.name, error)
        own = made.answer(end) if end is error else None
        if own is not None:
            return own
        if not self._settings.falls_back:
            raise run.failed(end)
        answer = answer_to(made, request.tool_call, end)
        if ends_the_agent(request):
            return Command(update={"messages": [answer]}, goto="model")
        return answer


def _structured(response_format: Any) -> set[str]:
    """Return the names of the tools by which a model gives its structured response."""
    if isinstance(response_format, AutoStrategy):
        response_format = ToolStrategy(response_format.schema)
    return {spec.name for spec in getattr(response_format, "schema_specs", ())}
