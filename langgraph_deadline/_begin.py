"""The run of one call: its policy, its deadline, and what it is part of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import BaseCallbackManager, CallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.constants import START
from langgraph.types import Command

from ._backlog import Backlog
from ._event_stream import EventStream
from ._journal import Journal
from ._langgraph import (
    CONF,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_STREAM,
    is_task,
)
from ._run import Run
from ._scope import Scope, current
from .callbacks import ATTACHED
from .control import RunControl
from .deadline import WIRE_KEY, Deadline, from_wire, instant_of
from .events import observers
from .policy import DeadlinePolicy, check_names, coerce
from .runs import collectors

_NOTHING = 1e-9  # seconds
_INNER_GRACE = 0.8


def checked(
    policy: DeadlinePolicy | None, fallback: str | None, graph: Any, argument: str = ""
) -> DeadlinePolicy | None:
    """Return a policy that fits `graph`.

    Raises:
        ValueError: If it names unknown steps, or a fallback that there is not.
    """
    if policy is None:
        return None
    if policy.on_exceeded == "fallback" and fallback is None:
        msg = f"{argument}on_exceeded='fallback' needs a fallback: compile with one"
        raise ValueError(msg)
    known = (name for name in graph.nodes if name != START)
    check_names(policy.steps, known, f"{argument}steps")
    return policy


def begin(
    graph: Any, input: Any, config: RunnableConfig | None, deadline: Any, control: Any
) -> Run | None:
    """Return the new run, `None` where nothing bounds it."""
    policy, own = policy_for(graph, deadline)
    wire = wire_of(graph, config)
    parent = current.get()
    stoppable = isinstance(control, RunControl)
    if policy is None and wire is None and not stoppable:
        outer: Run | None = parent.run if parent is not None else None
        if parent and outer and (outer.guarded or outer.journal is not None):
            return _begin_nested(graph, parent)
        if parent is None or parent.at == math.inf:
            matters = _may_be_resumed(graph, input) or _is_seen(graph)
            if not matters:
                return None
    if wire is not None:
        parent = Scope(parent, instant_of(wire))
    policy = policy or DeadlinePolicy()
    may_fall_back = policy.on_exceeded in (None, "fallback")
    run = Run(
        policy,
        parent=parent,
        budget=policy.seconds,
        fallback=graph.deadline_fallback if may_fall_back else None,
        name=graph.get_name(),
        controlled=stoppable,
    )
    run.asked_budget = policy.seconds if own else None
    run.saved.new_input = not _resumes(input, config)
    run.saved.one_superstep = START not in graph.nodes
    lent = CONFIG_KEY_CHECKPOINTER in ((config or {}).get(CONF) or {})
    run.saved.possible = lent or graph.checkpointer is not None
    around: Run | None = parent.run if parent is not None else None
    if around is not None:
        run.custom_stream = around.custom_stream
        run.backlog = around.backlog
    above = around.journal if around is not None else None
    run.journal = Journal(run, above, graph.deadline_observers)
    run.last = graph.deadline_last
    _enter(run, parent)
    return run


def _begin_nested(graph: Any, parent: Scope) -> Run:
    """Return the run of a subgraph without a deadline of its own.

    When the step it is in is cut, it ends by itself and hands over what it has.
    """
    run = Run(
        DeadlinePolicy(
            # What has to be resumable must not look finished.
            on_exceeded="raise" if parent.run.mode == "raise" else "return",
            # Inner steps are given up before the step around them is.
            cancel_grace=parent.run.policy.cancel_grace * _INNER_GRACE,
            enforce=parent.run.policy.enforce,
        ),
        parent=parent,
        budget=None,
        name=graph.get_name(),
        implicit=True,
        controlled=parent.run.guarded,
    )
    run.saved.reset = parent.run.saved.reset
    run.custom_stream = parent.run.custom_stream
    run.backlog = parent.run.backlog
    _enter(run, parent)
    return run


def _is_seen(graph: Any) -> bool:
    """Return whether somebody wants to know of a run that has no deadline."""
    return bool(collectors() or observers() or graph.deadline_observers)


def _may_be_resumed(graph: Any, input: Any) -> bool:
    """Return whether a run may go on that had a deadline when it began."""
    return _resumes(input, None) and isinstance(graph.checkpointer, BaseCheckpointSaver)


def policy_for(graph: Any, deadline: Any) -> tuple[DeadlinePolicy | None, bool]:
    """Return the policy of one run, and whether its budget is its own."""
    compiled = graph.deadline_policy
    if deadline is None:
        return compiled, False
    if isinstance(deadline, Deadline):
        # An instant that has passed is no bad input: it leaves next to nothing.
        left = {"seconds": max(deadline.remaining(), _NOTHING)}
        return (compiled or DeadlinePolicy()).model_copy(update=left), True
    asked = coerce(deadline)
    if asked is None or isinstance(deadline, DeadlinePolicy) or compiled is None:
        if asked is not None:
            checked(asked, graph.deadline_fallback, graph, "deadline: ")
        return asked, True
    given = compiled.model_fields_set
    settings: dict[str, Any] = {name: getattr(compiled, name) for name in given}
    settings["seconds"] = asked.seconds
    return DeadlinePolicy(**settings), True


def wire_of(graph: Any, config: RunnableConfig | None) -> Deadline | None:
    """Return the deadline that came with the config of a graph that is no node."""
    if is_task(config):
        return None
    confs = [(c or {}).get(CONF) or {} for c in (config, graph.config)]
    values = [conf.get(WIRE_KEY) for conf in confs]
    return min((from_wire(v) for v in values if v is not None), default=None)


def with_graph_handler(
    graph: Any, config: RunnableConfig | None, run: Run
) -> RunnableConfig | None:
    """Return `config` with our callback handler, first of all handlers."""
    parent = run.scope.parent
    if parent is not None and parent.step is not None:
        return config  # inherited from the graph this one is in
    callbacks: Any = None
    for given in (config, graph.config, var_child_runnable_config.get()):
        if given and (callbacks := given.get("callbacks")) is not None:
            break
    # For the graph's own events only; `_sequence` hands it on to what nodes do.
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        if ATTACHED not in callbacks.handlers:
            callbacks.handlers.insert(0, ATTACHED)
    elif not callbacks:
        callbacks = _NO_OTHERS
    else:
        listed: list[Any] = list(callbacks)
        callbacks = CallbackManager([ATTACHED, *listed], listed)
    return {**(config or {}), "callbacks": callbacks}


_NO_OTHERS = CallbackManager([ATTACHED], [])
"""Shared by all runs without callbacks: LangChain copies what it finds in a config."""


def _resumes(input: Any, config: RunnableConfig | None) -> bool:
    if input is None or isinstance(input, Command):
        return True
    # A subgraph that is resumed gets its ordinary input once more.
    return is_task(config) and bool((config or {})[CONF].get(CONFIG_KEY_RESUMING))


def prepare_stream(
    run: Run, kwargs: Mapping[str, Any], config: RunnableConfig | None
) -> None:
    """Have a stream's chunks fenced where nodes write them, and bound their number."""
    modes = kwargs.get("stream_mode") or ()
    listed = (modes,) if isinstance(modes, str) else tuple(modes)
    nested = CONFIG_KEY_STREAM in ((config or {}).get(CONF) or {})
    run.custom_stream = run.custom_stream or nested or "custom" in listed
    if "custom" in listed and run.policy.stream_events and run.journal is not None:
        run.journal.stream_to(EventStream())
    if "custom" in listed or "messages" in listed:
        run.backlog = Backlog(tokens="messages" in listed)


def _enter(run: Run, parent: Scope | None) -> None:
    """Make `run` known to the step it is in, and cut with it."""
    step = parent.step if parent is not None else None
    if step is not None:
        step.entered(run)
        run.nth = step.nth("graph")
    if parent is not None and (cause := parent.cause_of_cut()) is not None:
        run.cut(cause)


class attached:  # noqa: N801 - a context manager, used as one
    """Have a run stopped by its control and by the step it is in, until it ends."""

    def __init__(self, run: Run, control: Any) -> None:
        self._run = run
        self._control = control if isinstance(control, RunControl) else None
        parent = run.scope.parent
        self._step = parent.step if parent is not None else None

    def __enter__(self) -> None:
        run = self._run
        if run.saved.new_input and not run.implicit and run.journal is not None:
            run.journal.started()  # else once its checkpoint has been read
        if self._control is not None:
            self._control.attach(self._run)

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._control.release(self._run)
        if self._step is not None:
            self._step.left(self._run)
