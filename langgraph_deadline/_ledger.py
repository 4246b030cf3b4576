"""What a run has used beside time, and what it may still use.

The most that a call may use is reserved before it starts, so that calls at the same
time cannot exceed a limit between them; what it did use takes the place of that when it
has ended. Ledgers are nested like runs: what is used inside counts outside as well, and
a call is let through by all of them or by none.

Costs are whole trillionths: sums of them are exact, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any

from ._usage import Call, Kind
from .errors import Cause
from .limits import Limits

_TRILLION = 10**12
_PER_TOKEN = 10**6
"""A price of a million tokens, times this, is that of one token in trillionths."""

_NO_LIMITS = Limits()

_ONE = {"steps": "step", "model_calls": "model call", "tool_calls": "tool call"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit does not allow a call."""

    cause: Cause
    limit: float
    used: float
    """What was used or reserved before."""

    asked: float
    """What the call would have needed on top of it."""

    call: Call

    def message(self, step: str | None) -> str:
        """Return what happened in `step`, and what can be done."""
        where = f"step {step!r}" if step else "the run"
        used, limit, asked = map(_shown, (self.used, self.limit, self.asked))
        given = f"{used} of {limit} were used"
        advice = f"Raise `Limits({self.cause}=...)`"
        if self.cause in _ONE:
            return (
                f"{where} asked for one more {_ONE[self.cause]}, and {given}. {advice}"
                ", or give the graph a `fallback`"
            )
        if self.call.answer is None:
            answer, length = "an answer without a maximum", "give the model a"
        else:
            answer, length = f"{self.call.answer:,} of answer", "lower the model's"
        what = "tokens" if self.cause == "tokens" else "of cost for tokens"
        return (
            f"{where} asked for {asked} {what} ({self.call.prompt:,} of prompt, "
            f"{answer}), and {given} or reserved. {advice}, {length} `max_tokens`, or "
            "give the graph a `fallback`"
        )


@dataclass(frozen=True, slots=True)
class _Reservation:
    """The most that an open call may use, by one book's prices."""

    call: Call
    tokens: int
    cost: int


class Book:
    """The book of one run; only ever touched by its ledgers, which hold a lock."""

    __slots__ = (
        "cost",
        "counts",
        "input",
        "known",
        "limits",
        "open",
        "output",
        "refusals",
        "reported",
        "reported_cost",
        "tokens",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counts: dict[Kind, int] = {"steps": 0, "model_calls": 0, "tool_calls": 0}
        # What counts: booked, or reserved by the calls that are open.
        self.tokens = self.cost = 0
        self.open: dict[Hashable, _Reservation] = {}
        self.refusals: dict[Cause, Refusal] = {}
        # What models said that they used, and of how many calls that is known.
        self.input = self.output = self.reported_cost = self.reported = self.known = 0

    def most(self, call: Call) -> _Reservation:
        """Return the most that `call` may use."""
        if call.kind != "model_calls":
            return _Reservation(call, 0, 0)
        answer = call.answer or 0
        cost = self.cost_of(call.model, call.prompt, answer)
        return _Reservation(call, call.prompt + answer, cost)

    def cost_of(self, model: str | None, prompt: int, answer: int) -> int:
        """Return what these tokens cost, 0 where there are no prices."""
        price = self.limits.price_of(model)
        if price is None:
            return 0
        return prompt * _in_trillionths(price[0]) + answer * _in_trillionths(price[1])

    def refusal(self, most: _Reservation) -> Refusal | None:
        """Return the limit that does not allow a call."""
        call, limits = most.call, self.limits
        limit: int | None = getattr(limits, call.kind)
        count = self.counts[call.kind]
        if limit is not None and count >= limit:
            return Refusal(call.kind, limit, count, 1, call)
        if call.kind != "model_calls":
            return None
        if limits.tokens is not None and self.tokens + most.tokens > limits.tokens:
            return Refusal("tokens", limits.tokens, self.tokens, most.tokens, call)
        if limits.cost is not None and self.cost + most.cost > _cost_limit(limits):
            used, asked = self.cost / _TRILLION, most.cost / _TRILLION
            return Refusal("cost", limits.cost, used, asked, call)
        return None

    def take(self, most: _Reservation, key: Hashable) -> None:
        """Note a call that starts."""
        self.counts[most.call.kind] += 1
        self.tokens += most.tokens
        self.cost += most.cost
        if key is not None:
            self.open[key] = most

    def settle(
        self, most: _Reservation, used: tuple[int, int] | None, estimate: int
    ) -> None:
        """Put what a call used in the place of what it had reserved."""
        call = most.call
        longest = call.answer if call.answer is not None else estimate
        prompt, answer = used or (call.prompt, min(estimate, longest))
        cost = self.cost_of(call.model, prompt, answer)
        self.tokens += prompt + answer - most.tokens
        self.cost += cost - most.cost
        if used is not None:
            self.input += prompt
            self.output += answer
            self.reported_cost += cost
            self.reported += 1
            self.known += 1

    def give_back(self, most: _Reservation) -> None:
        """Note that a call used nothing."""
        self.tokens -= most.tokens
        self.cost -= most.cost
        self.known += most.call.kind == "model_calls"

    def affordable(self, model: str | None, prompt: int) -> Iterator[int]:
        """Yield how long an answer may be, by each of the limits."""
        if self.limits.tokens is not None:
            yield self.limits.tokens - self.tokens - prompt
        if self.limits.cost is None:
            return
        left = _cost_limit(self.limits) - self.cost - self.cost_of(model, prompt, 0)
        one = self.cost_of(model, 0, 1)
        if one > 0:
            yield left // one
        elif left < 0:
            yield 0

    def usage(self) -> dict[str, Any]:
        """Return what was used; what is not known is `None`."""
        calls = self.counts["model_calls"]
        unknown = self.reported == 0 and self.known < calls
        priced = bool(self.limits.prices) and not unknown
        return {
            **{str(kind): count for kind, count in self.counts.items()},
            "input_tokens": None if unknown else self.input,
            "output_tokens": None if unknown else self.output,
            "cost": self.reported_cost / _TRILLION if priced else None,
            "unreported": calls - self.known,
        }


class Ledger:
    """The book of one run and those of the runs around it.

    Args:
        limits: What the run may use; `None` to count only.
        parent: The ledger of what is around the run.
    """

    __slots__ = ("books", "lock", "overdrawn", "own", "weighs")

    def __init__(self, limits: Limits | None, parent: Ledger | None = None) -> None:
        self.own = Book(_NO_LIMITS if limits is None else limits)
        self.books: tuple[Book, ...] = (self.own,)
        # One lock for all that are nested: a call is let through by all or by none.
        self.lock: Lock = Lock() if parent is None else parent.lock
        if parent is not None:
            self.books += parent.books
        self.weighs: bool = any(
            book.limits.tokens is not None or book.limits.cost is not None
            for book in self.books
        )
        """Whether tokens are limited, here or around, and have to be estimated."""

        self.overdrawn: tuple[Cause, int] | None = None
        """What would have cut a run that only measures, after how many of its steps."""

    # A call.

    def reserve(
        self, call: Call, key: Hashable = None, spared: Collection[Book] = ()
    ) -> tuple[Book, Refusal] | None:
        """Reserve the most that `call` may use, unless that is more than is left.

        Args:
            call: What is about to start.
            key: What it is ended by; one that is open already is the same call.
            spared: The books that let it through all the same.

        Returns:
            The book whose limit is exceeded, and by what; nothing is reserved then,
            unless that book is a spared one. `None` if all have enough left.

        Raises:
            ValueError: If prices are given, but none for the call's model.
        """
        exceeded: tuple[Book, Refusal] | None = None
        with self.lock:
            if key is not None and key in self.own.open:
                return None
            asked = [(book, book.most(call)) for book in self.books]
            for book, most in asked:
                if (refusal := book.refusal(most)) is not None:
                    book.refusals.setdefault(refusal.cause, refusal)
                    exceeded = exceeded or (book, refusal)
                    if book not in spared:
                        return book, refusal
            for book, most in asked:
                book.take(most, key)
        return exceeded

    def book(
        self, key: Hashable, used: tuple[int, int] | None, estimate: int = 0
    ) -> None:
        """Put what a call used in the place of what it had reserved.

        Args:
            key: The call; one that is not open is left alone.
            used: Tokens of the prompt and of the answer; `None` if it did not say.
            estimate: What counts for the answer then, up to the call's maximum.
        """
        with self.lock:
            for book, most in self._close(key):
                book.settle(most, used, estimate)

    def release(self, key: Hashable) -> None:
        """Give back what a call had reserved, for it used nothing; it still counts."""
        with self.lock:
            for book, most in self._close(key):
                book.give_back(most)

    def keep(self, key: Hashable, estimate: int = 0) -> None:
        """End a call that may have used all it had reserved: nobody will know.

        Args:
            key: The call; one that is not open is left alone.
            estimate: What counts for an answer that had no maximum.
        """
        with self.lock:
            for book, most in self._close(key):
                if most.call.answer is None:
                    book.settle(most, None, estimate)

    def _close(self, key: Hashable) -> list[tuple[Book, _Reservation]]:
        return [(book, book.open.pop(key)) for book in self.books if key in book.open]

    def granted(self, key: Hashable) -> int | None:
        """Return how many tokens the answer of an open call may have.

        `None` where the call has no maximum, or has ended.
        """
        with self.lock:
            most = self.own.open.get(key)
        return None if most is None else most.call.answer

    # What is left.

    def tokens_left(self, spared: Collection[Book] = ()) -> int | None:
        """Return the tokens that are left, here and around; `None` without a limit."""
        with self.lock:
            left = [
                book.limits.tokens - book.tokens
                for book in self.books
                if book.limits.tokens is not None and book not in spared
            ]
        return max(min(left), 0) if left else None

    def output_tokens_affordable(
        self, model: str | None, prompt_tokens: int, spared: Collection[Book] = ()
    ) -> int | None:
        """Return how long an answer of `model` may be, by tokens and by cost.

        Args:
            model: The model's name in the prices.
            prompt_tokens: Tokens of the prompt, which come first.
            spared: The books whose limits do not matter.

        Returns:
            The tokens of the answer, 0 if not even the prompt can be paid; `None` if
            nothing limits them.

        Raises:
            ValueError: If prices are given, but none for `model`.
        """
        with self.lock:
            left = [
                tokens
                for book in self.books
                if book not in spared
                for tokens in book.affordable(model, prompt_tokens)
            ]
        return max(min(left), 0) if left else None

    # What was used.

    def refusal(self, cause: Cause) -> Refusal | None:
        """Return what first exceeded the limit called `cause`, here or around."""
        with self.lock:
            found = (book.refusals.get(cause) for book in self.books)
            return next((refusal for refusal in found if refusal is not None), None)

    def usage(self) -> dict[str, Any]:
        """Return what the run used, for its report; what is not known is `None`."""
        with self.lock:
            return self.own.usage()


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def _in_trillionths(price: float) -> int:
    return round(price * _PER_TOKEN)


def _cost_limit(limits: Limits) -> int:
    return round((limits.cost or 0.0) * _TRILLION)
