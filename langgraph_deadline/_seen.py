"""Calls of models and tools as LangChain's callbacks tell of them."""

from __future__ import annotations

import math
from typing import Any, Literal

from . import _clock
from ._cut import Step
from ._scope import Scope
from ._usage import length_of, tokens_of_prompt, usage_of, was_refused
from .errors import Cause
from .report import ModelTokens, StepReport, TokenCount

_CHARACTERS = 4
"""Of a token, roughly."""


class SeenCall:
    """One call, from its start on."""

    __slots__ = (
        "_given",
        "_late",
        "_report",
        "_seen",
        "_streamed",
        "around",
        "began",
        "ended",
        "error",
        "guard",
        "kind",
        "name",
        "number",
        "provider",
        "refused",
        "used",
    )

    def __init__(
        self,
        name: str,
        kind: Literal["model", "tool"],
        around: Scope | None,
        given: Any = None,
        provider: str | None = None,
    ) -> None:
        self.name = name
        self.kind: Literal["model", "tool"] = kind
        self.around = around
        self.provider = provider
        self.began = _clock.now()
        self.ended: float | None = None
        self.error: str | None = None
        self.guard: Step | None = None
        self.number = 0
        self.refused = False
        # Tokens of prompt and answer, as far as the model has told.
        self.used: tuple[int | None, int | None] = (None, None)
        self._given = given
        # Characters of the answer that have been seen, and those after the cut.
        self._seen = self._late = 0
        self._streamed = False
        self._report: StepReport | None = None

    # What callbacks tell.

    def took(self, token: Any) -> None:
        """Note a piece of the answer."""
        self._streamed = True
        length = len(token) if isinstance(token, str) else len(str(token))
        self._seen += length
        if self.cut() is not None:
            self._late += length

    def answered(self, response: Any) -> None:
        """Note the answer."""
        used = usage_of(response)
        if used is not None:
            self.used = used
        self._seen = max(self._seen, length_of(response) * _CHARACTERS)

    def failed(self, error: BaseException, response: Any) -> None:
        """Note an error, and what had come before it."""
        self.error = type(error).__name__
        used = usage_of(response)
        if used is not None:  # the prompt's are told at the start, the answer's not yet
            self.used = (used[0], None)
        self._seen = max(self._seen, length_of(response) * _CHARACTERS)
        if self._seen == 0 and was_refused(error):
            self.used = (0, 0)

    # What is known.

    def is_inside(self, step: Step) -> bool:
        """Return whether the call was made in `step`, which is not its own guard."""
        scope = self.around
        while scope is not None:
            if scope is step:
                return True
            scope = scope.parent
        return False

    def cut(self) -> tuple[Cause, float] | None:
        """Return why and when the call was cut, `None` if it ended before that."""
        scope: Scope | None = self.guard if self.guard is not None else self.around
        while scope is not None:
            if isinstance(scope, Step) and scope.cut is not None and scope.cut_at:
                if self.ended is not None and self.ended < scope.cut_at:
                    return None
                return scope.cut, scope.cut_at
            scope = scope.parent
        return None

    def tokens(self) -> ModelTokens | None:
        """Return what the call used, as far as that is known by now."""
        if self.kind != "model":
            return None
        prompt, answer = self.used
        estimate = math.ceil(self._seen / _CHARACTERS)
        guess = None if prompt is not None else tokens_of_prompt(self._given)
        return ModelTokens(
            input=_count(prompt, guess),
            output=_count(answer, estimate or None),
            after_cut=self._after_cut(answer, estimate),
        )

    def _after_cut(self, answer: int | None, estimate: int) -> TokenCount:
        cut = self.cut()
        if cut is None or answer == 0:
            return _count(0)
        if self._streamed:  # what came late was generated late
            whole = answer if answer is not None else estimate
            return _count(None, math.ceil(whole * self._late / max(self._seen, 1)))
        if answer is not None and self.ended is not None:
            # An answer as a whole: as if it had been generated evenly.
            late = (self.ended - cut[1]) / max(self.ended - self.began, 1e-9)
            return _count(None, round(answer * min(max(late, 0.0), 1.0)))
        return TokenCount()

    # Its entry on the report.

    def reported(self, entry: StepReport) -> None:
        """Keep the call's entry, for what it used may be told later."""
        self._report = entry
        if self.ended is not None:
            self._given = None

    def update(self) -> None:
        """Fill in what has become known after the report was made."""
        if self._report is not None:
            self._report.tokens = self.tokens()
            self._given = None


def _count(known: int | None, estimated: int | None = None) -> TokenCount:
    if known is not None:
        return TokenCount(count=known, basis="known")
    if estimated is not None:
        return TokenCount(count=estimated, basis="estimated")
    return TokenCount()
