"""One model call of an agent under its middleware, and the answer that closes a run."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.pregel import Pregel

from ._middleware_pace import Pacing, chosen_name, name_of
from ._middleware_run import AgentRun
from .agents import agent_fallback
from .deadline import shown
from .errors import DeadlineExceeded
from .models import BoundedModel, bounded_model

_MOST_MODELS = 8


class BoundedModels:
    """Bounded copies of the models that an agent uses.

    They are kept, for they learn how fast a model is.
    """

    def __init__(self) -> None:
        # The model, its attributes as they were, and the copy.
        self._known: list[tuple[Any, dict[str, Any], Any]] = []

    def of(self, model: Any) -> Any:
        """Return `model` so that its calls end on time."""
        if not isinstance(model, BaseChatModel) or isinstance(model, BoundedModel):
            return model
        fields = vars(model)
        for original, as_it_was, bounded in self._known:
            if original is model and _same(fields, as_it_was):
                return bounded
        bounded = bounded_model(model)
        others = [known for known in self._known if known[0] is not model]
        self._known = [(model, dict(fields), bounded), *others[: _MOST_MODELS - 1]]
        return bounded


def _same(fields: dict[str, Any], as_they_were: dict[str, Any]) -> bool:
    """Return whether nobody has changed a model since."""
    return fields.keys() == as_they_were.keys() and all(
        fields[name] is value for name, value in as_they_were.items()
    )


def asked(
    request: Any, run: AgentRun, pacing: Pacing, models: BoundedModels
) -> tuple[Any, frozenset[str]]:
    """Return the request that is made of `request`, and which tools are not offered."""
    changes: dict[str, Any] = {"model": models.of(request.model)}
    withheld: frozenset[str] = frozenset()
    if pacing.finishes(run):
        names = [name_of(tool) for tool in request.tools]
        withheld = frozenset(names) - frozenset(pacing.finishing)
        changes["tools"] = [t for t in request.tools if name_of(t) not in withheld]
        if chosen_name(request.tool_choice) in withheld:
            changes["tool_choice"] = None
    if (note := pacing.note(run)) is not None:
        changes["messages"] = [*request.messages, note]
    return request.override(**changes), withheld


def calls_of_withheld(messages: Sequence[Any], withheld: frozenset[str]) -> list[str]:
    """Return the ids of the calls of tools that the model was not offered."""
    return [
        call["id"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
        if call["name"] in withheld and call["id"]
    ]


# The end of a run.


def fallback_of(fallback: Any) -> Runnable[Any, Any] | None:
    """Return what gives the last answer, `None` if there is nothing.

    Raises:
        ValueError: If it is a text with nothing in it.
        TypeError: If it is neither a text nor a Runnable.
    """
    if fallback is None:
        return None
    if isinstance(fallback, str):
        if not fallback.strip():
            msg = f"fallback must say something, got {fallback!r}"
            raise ValueError(msg)
        return agent_fallback(fallback)
    if isinstance(fallback, Runnable) and not isinstance(
        fallback, (BaseChatModel, Pregel)
    ):
        return fallback
    msg = (
        f"fallback must be a text or an agent_fallback(), got {shown(fallback)}. To "
        "have a model write the last answer: agent_fallback(text, model=...)"
    )
    raise TypeError(msg)


def closing_of(update: Any, state: Any, run: AgentRun) -> tuple[list[Any], Any]:
    """Return a fallback's messages, of which the last one closes the run.

    Also its structured response, if it gave one.

    Raises:
        TypeError: If its last message is not an answer of the agent's.
    """
    found = update.get("messages") if isinstance(update, Mapping) else update
    messages = list(found) if isinstance(found, Sequence) else []
    last = messages[-1] if messages else None
    if not isinstance(last, AIMessage) or last.tool_calls:
        msg = (
            "the fallback of a DeadlineMiddleware must return messages that end with "
            f"an AIMessage without tool calls, got {shown(update)}"
        )
        raise TypeError(msg)
    last = last.model_copy(update={"id": last.id or str(uuid.uuid4())})
    run.time.closing_id = last.id
    messages = [*_whole(messages[:-1], state), last]
    structured = None
    if isinstance(update, Mapping):
        structured = update.get("structured_response")
    return messages, structured


def _whole(answers: list[Any], state: Any) -> list[Any]:
    """Return what stands before the last answer, as a history that replaces the old.

    LangChain repairs malformed calls by itself, in the same update: a whole history
    that comes later in it wins, where single answers would come twice.
    """
    malformed = any(getattr(m, "invalid_tool_calls", None) for m in state["messages"])
    if not malformed or not any(isinstance(m, ToolMessage) for m in answers):
        return answers
    if isinstance(answers[0], RemoveMessage):
        return answers
    return [RemoveMessage(REMOVE_ALL_MESSAGES), *state["messages"], *answers]


def refuse_to_close_twice(
    messages: Sequence[BaseMessage], run: AgentRun, error: DeadlineExceeded
) -> None:
    """Raise if the run was closed already: something sent it back to the model."""
    closed = run.time.closing_id
    if closed is not None and any(message.id == closed for message in messages):
        error.add_note(
            "The fallback had answered, and another middleware sent the agent back to "
            "its model"
        )
        raise error


_ANSWERING = agent_fallback("-")
_UNKNOWN = (
    "Error: the call of {!r} has no result: the run that made it ended before. It may "
    "or may not have taken effect."
)


def repair(state: Any, config: RunnableConfig | None) -> dict[str, Any]:
    """Return the update that answers the calls that earlier runs left open."""
    if not _open_calls(state["messages"]):
        return {}
    known = {id(message) for message in state["messages"]}
    update = _ANSWERING.invoke(state, config)["messages"][:-1]  # not the last word
    for message in update:
        if isinstance(message, ToolMessage) and id(message) not in known:
            message.content = _UNKNOWN.format(message.name)
    return {"messages": update}


def _open_calls(messages: Sequence[Any]) -> set[str | None]:
    made: set[str | None] = set()
    for message in messages:
        if isinstance(message, AIMessage):
            made |= {
                c["id"] for c in (*message.tool_calls, *message.invalid_tool_calls)
            }
    return made - {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
