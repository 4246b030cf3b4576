"""What spans say of runs and steps.

Calls of models and tools follow the semantic conventions for generative AI, as far as
events tell what these ask for. What was asked and answered is never told.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ._signals import PREFIX
from .events import (
    Cut,
    Event,
    FallbackStarted,
    RunStarted,
    StepEvent,
    StepRefused,
    StepStarted,
    StragglerFound,
)
from .report import ModelTokens

# What is noted on the span of a run, and as what.
NOTED: Mapping[type[Event], str] = {
    Cut: "cut",
    FallbackStarted: "fallback",
    StepRefused: "refused",
    StragglerFound: "straggler",
}


def own(**values: Any) -> dict[str, Any]:
    """Return attributes of our own; those that are `None` are left out."""
    return {f"{PREFIX}.{key}": v for key, v in values.items() if v is not None}


def of_run(event: RunStarted) -> dict[str, Any]:
    """Return what the span of a run says from its start."""
    run, deadline = event.run, None
    if run.budget is not None:
        instant = run.started + run.budget - event.spent
        deadline = datetime.fromtimestamp(instant, UTC).isoformat()
    return own(
        graph=run.name,
        run=run.id,
        budget=run.budget,
        reserve=run.reserve or None,
        deadline=deadline,
        spent_before=event.spent or None,
        enforced=run.enforced,
    )


def name(event: StepEvent) -> str:
    """Return the name of a step's span."""
    if event.kind == "model":
        return f"chat {event.step}"
    return f"execute_tool {event.step}" if event.kind == "tool" else event.step


def of_step(event: StepStarted) -> dict[str, Any]:
    """Return what the span of a step says from its start."""
    attributes = own(
        graph=event.run.name,
        step=event.step,
        kind=event.kind,
        remaining_at_start=event.remaining,
        limit=event.limit,
    )
    # Whose the model is, the events do not tell: `gen_ai.provider.name` is missing.
    if event.kind == "model":
        attributes["gen_ai.operation.name"] = "chat"
        attributes["gen_ai.request.model"] = event.step
    elif event.kind == "tool":
        attributes["gen_ai.operation.name"] = "execute_tool"
        attributes["gen_ai.tool.name"] = event.step
    return attributes


def of_tokens(tokens: ModelTokens) -> dict[str, Any]:
    """Return what the span of a model call says of its tokens."""
    attributes = own(**{"tokens.after_cut": tokens.after_cut.count or None})
    for kind, counted in (("input", tokens.input), ("output", tokens.output)):
        if counted.count is not None:
            attributes[f"gen_ai.usage.{kind}_tokens"] = counted.count
            if counted.basis == "estimated":
                attributes[f"{PREFIX}.tokens.{kind}_estimated"] = True
    return attributes


def of_event(event: Event) -> dict[str, Any]:
    """Return what an event on the span of a run says."""
    keys = ("step", "cause", "remaining", "needed", "overrun", "blocked_loop")
    return own(**{key: getattr(event, key, None) for key in keys})


def nanoseconds(event: Event) -> int:
    """Return when `event` was (in epoch nanoseconds)."""
    # Converted one by one: their sum would have no room for nanoseconds.
    return round(event.run.started * 1e9) + round(event.at * 1e9)
