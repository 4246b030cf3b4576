"""Agent runs that know when they have run out of time."""

from ._scope import (
    check,
    current_deadline,
    detach,
    fail_after,
    move_on_after,
    remaining,
    shield,
)
from ._tool_call import idempotency_key
from .agents import agent_fallback
from .callbacks import DeadlineHandler
from .control import RunControl
from .deadline import Deadline
from .errors import DeadlineExceeded
from .graph import StateGraph, with_deadline
from .limits import Limits
from .nodes import RemainingTime
from .policy import DeadlinePolicy, StepBudget
from .report import RunReport
from .runs import collect_runs

__all__ = (
    "Deadline",
    "DeadlineExceeded",
    "DeadlineHandler",
    "DeadlinePolicy",
    "Limits",
    "RemainingTime",
    "RunControl",
    "RunReport",
    "StateGraph",
    "StepBudget",
    "agent_fallback",
    "check",
    "collect_runs",
    "current_deadline",
    "detach",
    "fail_after",
    "idempotency_key",
    "move_on_after",
    "remaining",
    "shield",
    "with_deadline",
)
