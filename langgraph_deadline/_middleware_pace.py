"""Have a model finish in time: tell it what is left, and offer it less."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import HumanMessage

from ._middleware_run import AgentRun, share_of
from .deadline import shown


@dataclass(frozen=True)
class Pacing:
    """From which shares of the time for work on a model is told to finish."""

    note_from: float | None
    finish_from: float | None
    finishing: tuple[str, ...]

    @classmethod
    def checked(cls, note_from: Any, finish_from: Any, finishing: Any) -> Pacing:
        """Return the pacing that a user asked for.

        Raises:
            ValueError: If there is no such share or no such list of names.
        """
        return cls(
            _share(note_from, "note_from"),
            _share(finish_from, "finish_from"),
            _names(finishing),
        )

    def finishes(self, run: AgentRun) -> bool:
        """Return whether only the finishing tools are offered now."""
        if self.finish_from is None or not self.finishing:
            return False
        return share_of(run) >= self.finish_from

    def note(self, run: AgentRun) -> HumanMessage | None:
        """Return what the model is told now, if anything.

        As a message of its own at the end: all before it stays as a provider has it
        cached.
        """
        if self.note_from is None or share_of(run) < self.note_from:
            return None
        text = f"[About {run.left:.2g} s of {run.total:.3g} s are left for this task."
        if self.finishes(run):
            text += f" Only these tools can still be called: {self._listed}."
        return HumanMessage(f"{text} Come to an end in time.]")

    @property
    def _listed(self) -> str:
        return ", ".join(self.finishing)

    def check_known(self, known: Iterable[str]) -> None:
        """Refuse finishing tools that the agent does not have.

        Raises:
            ValueError: For the first unknown one, with the known names.
        """
        names = sorted(known)
        for name in self.finishing:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"Did you mean {close[0]!r}? " if close else ""
                msg = (
                    f"finishing_tools names {name!r}, which is no tool of this agent. "
                    f"{hint}Known here: {names}. Where another middleware takes tools "
                    "away, place DeadlineMiddleware before it"
                )
                raise ValueError(msg)


def _share(value: Any, name: str) -> float | None:
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < 1:
        msg = f"{name} must be a share between 0 and 1, or None, got {shown(value)}"
        raise ValueError(msg)
    return float(value)


def _names(value: Any) -> tuple[str, ...]:
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not listed or not all(isinstance(name, str) and name for name in value):
        msg = f"finishing_tools must be a list of tools' names, got {shown(value)}"
        raise ValueError(msg)
    return tuple(dict.fromkeys(value))


def name_of(tool: Any) -> str:
    """Return the name of a tool, also of one that is a provider's description."""
    if isinstance(tool, dict):
        function = tool.get("function")
        inner = function if isinstance(function, dict) else tool
        return str(inner.get("name") or tool.get("type") or "")
    return str(getattr(tool, "name", ""))


def chosen_name(choice: Any) -> str | None:
    """Return the name of the tool that a `tool_choice` asks for, if it does."""
    if isinstance(choice, dict):
        return name_of(choice)
    return choice if isinstance(choice, str) else None
