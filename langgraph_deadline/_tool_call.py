"""One call of a tool: its limit, its idempotency key, and what is known of it."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from . import _clock
from ._calls import NO_LIMIT, CallLimit, is_own
from ._cut import Step
from ._langgraph import place_of_task
from ._run import Run
from ._scope import current
from .report import ToolCallReport

OnCut = Callable[[dict[str, Any]], Any]
"""A compensation: gets the tool call (`name`, `args`, `id`); sync or async."""


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What `with_deadline(tool, ...)` was told."""

    limit: CallLimit = NO_LIMIT
    on_exceeded: Literal["message", "raise"] = "message"
    on_cut: OnCut | None = None
    target: Any = None
    """Where another process finds the tool's body; `None` runs it in this one."""


NO_OPTIONS = ToolOptions()


class ToolRun:
    """One call of a tool while it is being made."""

    __slots__ = (
        "args",
        "compensation",
        "id",
        "key",
        "kill",
        "name",
        "options",
        "result",
        "result_at",
        "started",
        "step",
        "whole",
    )

    def __init__(
        self,
        name: str,
        args: Any,
        id: str | None,
        options: ToolOptions,
        *,
        whole: bool = False,
    ) -> None:
        self.name = name
        self.args = args
        self.id = id
        self.options = options
        self.key = _key_of(self)
        self.step: Any = None
        self.whole = whole
        """Whether a tool node guards it, with all the attempts that are made."""
        self.started = False
        self.result: Any = None
        self.result_at: float | None = None
        self.kill: Callable[[], None] | None = None
        self.compensation: Literal["done", "failed"] | None = None

    @property
    def as_dict(self) -> dict[str, Any]:
        """The call as a compensation gets it."""
        return {"name": self.name, "args": self.args, "id": self.id}

    def entered(self, step: Step) -> None:
        """Note the step of the call."""
        self.step = step

    def is_of(self, name: str, id: str | None) -> bool:
        """Return whether this is the call with that `id` of the tool called `name`."""
        return self.name == name and self.id == id

    @property
    def cut(self) -> bool:
        """Whether the call was cut or refused."""
        return self.step is not None and self.step.cut is not None

    def ended(self, result: Any) -> Any:
        """Note what the tool returned, and when."""
        self.result, self.result_at = result, _clock.now()
        return result

    @property
    def handed_over(self) -> bool:
        """Whether the tool returned all the same, in its grace.

        At a limit of its own that counts for what a sub-agent hands up, and for nothing
        else: a tool that is late is late.
        """
        step: Step | None = self.step
        if step is None or step.cut is None or self.result_at is None:
            return False
        if self.own and not step.had_nested:
            return False
        return self.result_at <= step.cut_at + step.waits + step.grace

    @property
    def own(self) -> bool:
        """Whether it was cut or refused for a limit of its own."""
        return self.step is not None and is_own(self.step)

    def content(self) -> str:
        """Return what the model is told of a call that was cut or refused."""
        step: Step | None = self.step
        called = f"the call of {self.name!r}"
        if step is None:
            return f"Error: {called} was not started: another one failed."
        left = _left(step)
        if not self.started:
            why = _window(self) if step.cut == "window" else f"there is {left}"
            return f"Error: {called} was not started: {why}."
        after = f"{_clock.now() - step.began:.3g} s"
        if is_own(step):
            what = f"exceeded its own limit of {step.limit:.3g} s; there is {left}"
        else:
            what = f"was cut after {after} ({step.cut})"
        undone = {
            None: "it may or may not have taken effect",
            "done": "what it may have done has been compensated",
            "failed": "it may have taken effect, and compensating for it failed",
        }[self.compensation]
        return f"Error: {called} {what}. Its outcome is unknown: {undone}."

    def report(self) -> ToolCallReport:
        """Return the call for the run's report."""
        return ToolCallReport(
            name=self.name, id=self.id, key=self.key, compensation=self.compensation
        )


def _left(step: Step) -> str:
    run: Run = step.run
    around: Any = step.parent
    left = around.at - _clock.now()
    if run.phase != "working" and not run.alone:
        left = 0.0
    return "no deadline" if left == math.inf else f"{max(left, 0.0):.3g} s left"


def _window(call: ToolRun) -> str:
    left = max(call.step.at - call.step.began, 0.0)
    return f"it needs {call.options.limit.needs:.3g} s and there is {left:.3g} s left"


tool_run: ContextVar[ToolRun | None] = ContextVar(
    "langgraph_deadline_tool_call", default=None
)


key_in_process: ContextVar[str | None] = ContextVar(
    "langgraph_deadline_key_in_process", default=None
)
"""The key of the call that a process of its own is making."""


def idempotency_key() -> str:
    """Return a key for the tool call that is being made right here.

    It is the same for every attempt of the same call of the same run, also after a
    resume, and for its compensation; and different for any other call. To be passed to
    services that do a thing once per key.

    Raises:
        RuntimeError: Outside of a tool that runs in a bounded graph's `ToolNode` or was
            wrapped by `with_deadline`.
    """
    call = tool_run.get()
    if call is None and (key := key_in_process.get()) is not None:
        return key
    if call is None:
        msg = (
            "idempotency_key() was called outside of a tool call. Call it in a tool "
            "that runs in the ToolNode of a bounded graph, or wrap the tool: "
            "with_deadline(tool)"
        )
        raise RuntimeError(msg)
    return call.key


def _key_of(call: ToolRun) -> str:
    """Return the key: where in which run, and which call."""
    place = place_of_task()
    if place is None:
        return str(uuid.uuid4())
    around = tool_run.get()
    inside = around.key if around is not None else ""
    which = call.id or f"{_nth(call)}"
    args = json.dumps(call.args, sort_keys=True, default=repr)
    # Task ids are unique, and the same ones for every attempt.
    seed = f"{place}|{_way()}|{inside}|{which}|{call.name}|{args}"
    return str(uuid.uuid5(uuid.NAMESPACE_OID, seed))


def _nth(call: ToolRun) -> int:
    """Return the how manieth such call without an id this is in its step's attempt."""
    scope = current.get()
    if scope is None or scope.step is None:
        return 0
    step: Step = scope.step
    return step.nth((call.name, json.dumps(call.args, sort_keys=True, default=repr)))


def _way() -> list[int]:
    """Return the how manieth in its step's attempt each graph around the code is."""
    scope = current.get()
    way: list[int] = []
    while scope is not None and scope.run is not None:
        way.append(scope.run.nth)
        scope = scope.run.scope.parent
    return way
