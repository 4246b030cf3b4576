"""What providers' models have in common, and what only some of them know.

Vendors' packages are not imported: a model is recognised by the client that it holds.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from langchain_core.language_models import BaseChatModel

from . import _clock
from ._connections import checked

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 8.0
"""The vendors' own back-off between two attempts (in seconds)."""


def without_retries(model: Any) -> int:
    """Switch the SDK's own retries off in a copy; return how many there were.

    Models of other vendors keep theirs, whatever they are, and 0 is returned.
    """
    own = vars(model)
    retries = 0
    if "root_client" in own or "root_async_client" in own:  # langchain-openai
        for root, client in (
            ("root_client", "client"),
            ("root_async_client", "async_client"),
        ):
            sdk = own.get(root)
            if not hasattr(sdk, "with_options"):
                continue
            retries = sdk.max_retries
            own[root] = _without_retries(sdk)
            if own.get(client) is not None:
                own[client] = own[root].chat.completions
    elif _is_anthropic(model):
        retries = model.max_retries
        for client in ("_client", "_async_client"):
            own[client] = _without_retries(getattr(model, client))
    return retries


def _without_retries(sdk: Any) -> Any:
    """Return a vendor's client that makes one attempt, and sees its deadline."""
    http: Any = sdk._client  # noqa: SLF001 - both vendors' clients hold it there
    if inspect.iscoroutinefunction(http.send):
        return sdk.with_options(max_retries=0)  # async code is cancelled
    return sdk.with_options(max_retries=0, http_client=checked(http))


def _is_anthropic(model: Any) -> bool:
    cls = type(model)
    return hasattr(cls, "_client") and hasattr(cls, "_async_client")


def takes_timeout(model: Any) -> bool:
    """Return whether a call takes a `timeout=` of its own."""
    return "root_client" in vars(model) or _is_anthropic(model)


def takes_max_tokens(model: BaseChatModel) -> bool:
    """Return whether a call takes `max_tokens=`."""
    return "max_tokens" in type(model).model_fields


def timeout_of(model: Any, kwargs: Mapping[str, Any], left: float) -> float:
    """Return what the client may wait at most (in seconds): its own limit or `left`."""
    fields = ("request_timeout", "default_request_timeout")
    given = [kwargs.get("timeout"), *(getattr(model, field, None) for field in fields)]
    own = [float(t) for t in given if isinstance(t, (int, float)) and t > 0]
    return min([*own, left])


def clamped(model: Any, kwargs: Mapping[str, Any], affordable: float) -> dict[str, Any]:
    """Return the option that keeps an answer within `affordable` tokens, if it must.

    A limit is never raised; one that cannot be honoured is left alone.
    """
    name = "max_tokens"
    if kwargs.get("max_completion_tokens") is not None:
        name = "max_completion_tokens"
    own = kwargs.get(name) or getattr(model, "max_tokens", None)
    if affordable == math.inf or (own is not None and own <= affordable):
        return {}
    thinking = kwargs.get("thinking") or getattr(model, "thinking", None) or {}
    least = thinking.get("budget_tokens", 0) if isinstance(thinking, Mapping) else 0
    # An answer must be longer than the thinking before it, or is refused.
    tokens = max(int(affordable), least + 1)
    return {} if own is not None and own <= tokens else {name: tokens}


def asks_for_usage(model: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option that has a stream tell its usage, where it would not."""
    fields = type(model).model_fields
    decided = "stream_usage" in kwargs or "stream_options" in kwargs
    if "stream_usage" not in fields or decided or _is_anthropic(model):
        return {}
    if model.stream_usage is not None or "stream_usage" in model.model_fields_set:
        return {}
    return {"stream_usage": True}


# Errors.


def may_be_retried(error: Exception) -> bool:
    """Return whether another attempt may succeed, as the vendors' SDKs see it."""
    if isinstance(error, TimeoutError):
        return False
    headers = _headers(error)
    if (asked := headers.get("x-should-retry")) is not None:
        return asked == "true"
    status = getattr(error, "status_code", None)
    if status is not None:
        return status in (408, 409, 429) or status >= 500
    return getattr(error, "request", None) is not None  # it never got an answer


def pause_before(error: Exception, attempt: int) -> float:
    """Return the seconds before the next attempt: what the server asks for, or ours."""
    headers = _headers(error)
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        asked = _seconds(headers.get(name, ""), unit)
        if math.isfinite(asked) and asked >= 0:
            return asked
    pause = min(_FIRST_PAUSE * 2.0**attempt, _LONGEST_PAUSE)
    return pause * (1 - 0.25 * random.random())


def _seconds(text: str, unit: float) -> float:
    """Return what a header asks for, a number or an HTTP date; NaN if it is neither."""
    try:
        return float(text) * unit
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).timestamp() - _clock.wall()
    except ValueError:
        return math.nan


def _headers(error: Exception) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    headers: Mapping[str, str] | None = getattr(response, "headers", None)
    return headers if headers is not None else {}
