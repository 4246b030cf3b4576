"""The graph-level callback handler: the deadline wherever callbacks reach."""

# LangChain declares properties where plain attributes do.
# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent

from . import _clock
from ._charges import charge
from ._ledger import Ledger
from ._partial import is_partial
from ._run import run_here
from ._scope import current
from ._seen import SeenCall
from ._usage import (
    Call,
    length_of,
    model_call,
    usage_of,
    was_cut_short,
    was_refused,
)
from .deadline import positive_seconds_of
from .errors import DeadlineExceeded


class DeadlineHandler(GraphCallbackHandler):
    """Stops what has no time left at its next LangChain event.

    Events are the start of a model, tool, retriever or chain (and so of every node and
    subgraph), and every token of a streaming model. `compile(deadline=)` attaches one
    that knows the run it is in, and keeps to its `Limits` too. Made by hand, with a
    number of seconds, and passed in `config["callbacks"]` it bounds any graph: every
    run is counted from its own first event, so one handler may serve many runs, also at
    the same time.

    Args:
        deadline: Budget of each run, a number of seconds or a `timedelta`; `None` to
            apply only the deadline of the place where the event occurs.

    Raises:
        ValueError: If `deadline` is not more than zero.
    """

    # Raised errors must reach the work; and a handler that is not inline is run in
    # another thread, at twice the cost and without effect on async work.
    raise_error = True
    run_inline = True
    # Nothing else is of interest, and every event that is delivered costs.
    # (`ignore_agent` must stay as it is: it is what switches tools off.)
    ignore_custom_event = True
    ignore_retry = True

    def __init__(self, deadline: float | timedelta | None = None) -> None:
        self.seconds = (
            None if deadline is None else positive_seconds_of(deadline, "deadline")
        )
        # Of each live runnable, by its run id: when its root run began.
        self._began: dict[UUID, float] = {}

    def _starting(
        self, what: str, run_id: UUID | None, parent_run_id: UUID | None
    ) -> None:
        self._check_scope(what)
        if self.seconds is None or run_id is None:
            return
        now = _clock.now()
        began = now
        if parent_run_id is not None:
            began = self._began.get(parent_run_id, now)
        self._check_own(what, began, now)
        self._began[run_id] = began

    def _check_scope(self, what: str) -> None:
        scope = current.get()
        if scope is None or (scope.run is not None and scope.run.scope is scope):
            return  # a run's own engine is no piece of work
        cut = scope.cause_of_cut()
        if cut is None and scope.at > _clock.now():
            return
        if cut is None and scope.run is not None and not scope.run.policy.enforce:
            return
        error = scope.binding.exceeded(scope.at - _clock.now(), None, cut)
        error.scope = scope.binding
        scope.tell()
        error.add_note(f"Refused: {what}")
        raise error

    def _check_own(self, what: str, began: float, now: float) -> None:
        if self.seconds is not None and now - began >= self.seconds:
            raise DeadlineExceeded(
                step=what,
                budget=self.seconds,
                elapsed=now - began,
                remaining=self.seconds - (now - began),
            )

    def _ended(self, run_id: UUID | None) -> None:
        if self.seconds is not None and run_id is not None:
            self._began.pop(run_id, None)

    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a chain, node or graph that has no time."""
        self._starting(str(kwargs.get("name") or "chain"), run_id, parent_run_id)

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a model call that has no time."""
        self._starting(str(kwargs.get("name") or "model"), run_id, parent_run_id)
        _model_started(messages, serialized, kwargs, run_id)

    def on_llm_start(
        self,
        serialized: Any,
        prompts: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a model call that has no time."""
        self._starting(str(kwargs.get("name") or "model"), run_id, parent_run_id)
        _model_started(prompts, serialized, kwargs, run_id)

    def on_tool_start(
        self,
        serialized: Any,
        input_str: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a tool call that has no time."""
        name = (serialized or {}).get("name") or kwargs.get("name") or "tool"
        self._starting(str(name), run_id, parent_run_id)
        if _ledger_here() is not None:
            _charge(Call("tool_calls"), run_id)
        _tool_started(str(name), run_id)

    def on_retriever_start(
        self,
        serialized: Any,
        query: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a retrieval that has no time."""
        self._starting(str(kwargs.get("name") or "retriever"), run_id, parent_run_id)

    def on_llm_new_token(
        self,
        token: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Stop a model at its next token; the vendor's connection closes with it."""
        if is_partial(getattr(kwargs.get("chunk"), "message", None)):
            return  # the last word of a model that was cut
        run = run_here()
        if run is not None and run.journal is not None:
            call = run.journal.call(run_id)
            if call is not None:
                call.took(token)
        self._check_scope("model token")
        if self.seconds is not None:
            now = _clock.now()
            self._check_own("model token", self._began.get(run_id, now), now)
        if run is not None and run.backlog is not None and run.backlog.tokens:
            run.backlog.written += 1
            run.backlog.wait(lambda: run.phase != "working")

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._ended(run_id)

    def on_chain_error(self, error: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._ended(run_id)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Book what the model used, and forget the run."""
        self._ended(run_id)
        if (ledger := _ledger_here()) is not None:
            used = usage_of(response)
            length = length_of(response) if used is None and ledger.weighs else 0
            if used is None and was_cut_short(response):
                ledger.keep(run_id, length)
            else:
                ledger.book(run_id, used, length)
        _call_ended(run_id, lambda call: call.answered(response))

    def on_llm_error(self, error: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Give back what the model did not use for certain, and forget the run."""
        self._ended(run_id)
        if (ledger := _ledger_here()) is not None:
            length = length_of(kwargs.get("response"))
            # What was abandoned may be generated, and billed, to its end.
            if was_refused(error) and length == 0:
                ledger.release(run_id)
            else:
                ledger.keep(run_id, length)
        _call_ended(run_id, lambda call: call.failed(error, kwargs.get("response")))

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._ended(run_id)
        if (ledger := _ledger_here()) is not None:
            ledger.keep(run_id)
        _call_ended(run_id)

    def on_tool_error(self, error: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._ended(run_id)
        if (ledger := _ledger_here()) is not None:
            ledger.keep(run_id)
        _call_ended(run_id, lambda call: call.failed(error, None))

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._ended(run_id)

    def on_retriever_error(self, error: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._ended(run_id)

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        """Note that the run waits for a person, whose time is not charged."""
        run = run_here()
        if run is not None and "|".join(event.checkpoint_ns) == run.saved.namespace:
            run.interrupted = True

    # A run's state holds locks and loops; what is copied or pickled is the setting.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.seconds,)


ATTACHED = DeadlineHandler()
"""The handler of every bounded graph: it holds nothing, the context knows the run."""


def _ledger_here() -> Ledger | None:
    run = run_here()
    return run.ledger if run is not None else None


def _charge(call: Call, run_id: UUID) -> None:
    """Reserve what `call` may use; once, though two of our handlers may hear of it.

    Raises:
        DeadlineExceeded: If that exceeds a limit.
        ValueError: If its model has no price.
    """
    run, scope = run_here(), current.get()
    if run is None or scope is None:
        return
    cause = charge(run, call, scope, run_id)
    if cause is not None:
        step = scope.step
        raise run.error(step=step.name if step is not None else None, cause=cause)


def _model_started(
    given: Any, serialized: Any, event: dict[str, Any], run_id: UUID
) -> None:
    """Charge a model call, and note that it was started."""
    run = run_here()
    if run is None:
        return
    weighs = run.ledger is not None and run.ledger.weighs
    call = model_call(given, serialized, event, weighs=weighs)
    if run.ledger is not None:
        _charge(call, run_id)
    if run.journal is not None:
        name = call.model or str(event.get("name") or "model")
        provider = (event.get("metadata") or {}).get("ls_provider")
        seen = SeenCall(name, "model", current.get(), given, provider)
        run.journal.call_started(run_id, seen)


def _tool_started(name: str, run_id: UUID) -> None:
    """Note that a tool call was started, unless it is a step already."""
    run, scope = run_here(), current.get()
    if run is None or run.journal is None or scope is None:
        return
    if scope.step is not None and scope.step.kind == "tool":
        scope.step.attempts += 1  # one that is called again is retried
    else:
        run.journal.call_started(run_id, SeenCall(name, "tool", scope))


def _call_ended(run_id: UUID, tell: Callable[[SeenCall], None] | None = None) -> None:
    """Note the end of a call, after `tell` has told it how it ended."""
    run = run_here()
    if run is None or run.journal is None:
        return
    call = run.journal.call(run_id)
    if call is not None and tell is not None:
        tell(call)
    run.journal.call_ended(run_id)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Return whether LangChain tells of more than that we refused something.

    It warns of every error of a handler. A refusal is how a straggler is stopped, and
    is on the report: it would read like a fault of ours.
    """
    told = record.args
    if not isinstance(told, tuple) or len(told) != len(_TOLD):
        return True
    handler, _, error = map(str, told)
    refused = error.startswith(("RunCut(", "DeadlineExceeded("))
    return handler != DeadlineHandler.__name__ or not refused


_TOLD = ("handler", "event", "error")
logging.getLogger("langchain_core.callbacks.manager").addFilter(_is_no_refusal)
