"""What a run may use beside time: frozen, checked once, loadable from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from .deadline import shown

Price = tuple[float, float]
"""What a million tokens cost: of the prompt, of the answer."""


def _count(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{info.field_name} must be a whole number above 0, got {shown(value)}"
        raise ValueError(msg)
    return value


def _amount(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    if not _is_number(value) or value <= 0:
        msg = f"{info.field_name} must be a number above 0, got {shown(value)}"
        raise ValueError(msg)
    return float(value)


def _price(value: Any, info: ValidationInfo) -> Any:
    pair = value if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(_is_number(part) and part >= 0 for part in pair):
        msg = (
            f"{info.field_name} must map a model's name to two numbers of at least 0, "
            "the price of a million tokens of the prompt and of the answer, got "
            f"{shown(value)}"
        )
        raise ValueError(msg)
    return tuple(float(part) for part in pair)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


Count = Annotated[int, BeforeValidator(_count)]
Amount = Annotated[float, BeforeValidator(_amount)]


class Limits(BaseModel):
    """What a run may use beside time, nested graphs included.

    The most that a call may use is reserved before it starts, and what it did use is
    booked when it has ended. What does not fit is not started: the run is cut, on the
    same route to the same fallback as at its deadline, with the limit's name as the
    cause. Steps that are at work beside it may end, within the limits, up to the work
    deadline. What the fallback uses is counted and never refused.

    Tokens of a prompt are estimated (a token for four characters), those of an answer
    are the call's own maximum (`max_tokens` and its siblings). Where a model has no
    maximum, only the prompt is reserved: the limit may then be exceeded by the answers
    of the calls that are under way, by one where calls come one after the other. A
    model that reports no usage is charged by an estimate of what it answered. A call
    that was abandoned keeps its reservation, for providers bill such calls; one that
    the provider refused is given back, and still counts as a call.

    Counted from zero in each invocation: a resume, after an interrupt or a cut, has the
    limits anew, in the same process and in any other. A nested graph with limits of its
    own keeps to them and to those around it. What is done inside `detach()` does not
    count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    steps: Count | None = None
    """How many nodes and tasks may run; a node's retries are one step, and the fallback
    and what it leads to are none."""

    model_calls: Count | None = None
    """How many model calls may be started, those that fail included."""

    tool_calls: Count | None = None
    """How many tool calls may be started, those that fail included."""

    tokens: Count | None = None
    """How many tokens models may use, prompts and answers together."""

    cost: Amount | None = None
    """What the models' tokens may cost, in the currency of `prices`."""

    prices: Mapping[str, Annotated[Price, BeforeValidator(_price)]] = Field(
        default_factory=dict
    )
    """Prices of a million tokens, of the prompt and of the answer, by model name.

    Where there are prices, every model that is called has to have one. Discounts, as
    for cached prompts, are not known, so that a cost is rather too high.
    """

    @model_validator(mode="after")
    def _cost_has_prices(self) -> Limits:
        if self.cost is not None and not self.prices:
            msg = (
                f"cost ({self.cost}) needs prices: prices={{model: (input, output)}}, "
                "per million tokens"
            )
            raise ValueError(msg)
        return self

    def price_of(self, model: str | None) -> Price | None:
        """Return a model's prices of a million tokens, `None` if none are given at all.

        Raises:
            ValueError: If there are prices, but none for `model`.
        """
        if not self.prices:
            return None
        price = None if model is None else self.prices.get(model)
        if price is None:
            msg = (
                f"prices has none for the model {model!r}, only for "
                f"{sorted(self.prices)}: add it to Limits(prices={{{model!r}: (input, "
                "output)}), per million tokens"
            )
            raise ValueError(msg)
        return price
