"""What calls may use, and what they did use, as LangChain's events tell it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.messages.utils import count_tokens_approximately

from ._partial import is_partial
from .errors import DeadlineExceeded

Kind = Literal["steps", "model_calls", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Call:
    """Something that is about to start, and what it may use."""

    kind: Kind
    model: str | None = None
    prompt: int = 0
    """Tokens of the prompt."""

    answer: int | None = 0
    """Tokens that the answer may have, `None` if there is no maximum."""


# What providers call the same things.
_NAMES = ("model", "model_name", "model_id")
_LONGEST = (
    "max_tokens",  # first: given for one call, it is what counts
    "max_completion_tokens",
    "max_output_tokens",
    "max_new_tokens",
    "max_tokens_to_sample",
    "num_predict",
)
_SENT_ALONG = ("tools", "functions", "response_format")

_CHARACTERS = 4  # of a token, roughly


def model_call(
    given: Any, serialized: Any, event: Mapping[str, Any], *, weighs: bool
) -> Call:
    """Return a model's call, from what is known when it starts.

    Args:
        given: Prompts, or lists of messages.
        serialized: What LangChain says of the model.
        event: The rest of what it says.
        weighs: Whether tokens matter, and have to be estimated.
    """
    params: Mapping[str, Any] = event.get("invocation_params") or {}
    metadata: Mapping[str, Any] = event.get("metadata") or {}
    names = [params.get(name) for name in _NAMES]
    names += [metadata.get("ls_model_name"), (serialized or {}).get("name")]
    name = next((name for name in names if name and isinstance(name, str)), None)
    if not weighs:
        return Call("model_calls", name)
    sent = [repr(params[key]) for key in _SENT_ALONG if params.get(key)]
    prompt = tokens_of_prompt((*given, *sent)) or 0
    lengths = [params.get(key) for key in _LONGEST] + [metadata.get("ls_max_tokens")]
    longest = next((length for length in lengths if _is_count(length)), None)
    answers = params.get("n")
    if longest is not None and _is_count(answers):
        longest *= answers
    return Call("model_calls", name, prompt, longest)


def tokens_of_prompt(given: Any) -> int | None:
    """Return roughly how long prompts, or lists of messages, are; `None` for none."""
    return sum(_tokens_of(thing) for thing in given) if given else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _tokens_of(thing: Any) -> int:
    """Return roughly how long a text, or a list of messages, is."""
    if isinstance(thing, str):
        return math.ceil(len(thing) / _CHARACTERS)
    return int(count_tokens_approximately(thing))


def usage_of(response: Any) -> tuple[int, int] | None:
    """Return the tokens of prompt and answer that a model says it used, if it does."""
    for generation in _generations(response)[:1]:  # of several, each has the sum
        usage = getattr(getattr(generation, "message", None), "usage_metadata", None)
        if usage and usage.get("total_cost") == 0:
            return 0, 0  # from LangChain's cache
        if usage and "input_tokens" in usage:
            return usage["input_tokens"], usage["output_tokens"]
    output: Mapping[str, Any] = getattr(response, "llm_output", None) or {}
    usage = output.get("token_usage")
    if usage and "prompt_tokens" in usage:
        return usage["prompt_tokens"], usage.get("completion_tokens") or 0
    return None


def length_of(response: Any) -> int:
    """Return roughly how many tokens have come, 0 for none."""
    tokens = 0
    for generation in _generations(response):
        message = getattr(generation, "message", None)
        if message is None:
            tokens += _tokens_of(generation.text)
        elif message.content or getattr(message, "tool_calls", None):
            tokens += _tokens_of([message])
    return tokens


def was_cut_short(response: Any) -> bool:
    """Return whether an answer is only what had come when its model was cut."""
    answers = _generations(response)
    return any(is_partial(getattr(answer, "message", None)) for answer in answers)


def _generations(response: Any) -> list[Any]:
    lists = getattr(response, "generations", None) or []
    return [generation for some in lists for generation in some]


def was_refused(error: BaseException | None) -> bool:
    """Return whether a request was certainly not served: nothing of it is billed."""
    if isinstance(error, DeadlineExceeded):
        return error.cause == "window"  # it was not sent: there was no time for it
    while error is not None:
        status = getattr(error, "status_code", None)
        if isinstance(error, ConnectionRefusedError) or (
            isinstance(status, int) and status >= 400
        ):
            return True
        error = error.__cause__
    return False
