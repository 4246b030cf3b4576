"""When an agent's run began: a channel of its state that keeps the time.

The engine makes a new channel for every invocation, tells it of every superstep, and
saves what it returns. So each run knows its own beginning, also beside others and in
the graph that another process resumes, and no node is needed to write anything down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from langgraph.channels import BaseChannel
from langgraph.errors import EmptyChannelError

from . import _clock
from ._scope import current

TIME_KEY = "deadline_time"
"""The channel's key in the agent's state; private, so in no input and no output."""

Clock = Literal["active", "wall", "restart"]


class RunTime(BaseChannel[dict[str, float], Any, dict[str, float]]):
    """The time of an agent's run: wall-clock facts to save, instants to measure by.

    Attributes:
        began: When this invocation began, on the monotonic clock.
        began_wall: When that was, in seconds since the epoch.
        around: The deadline of what encloses the invocation, on the monotonic clock.
        started: When the run began, in seconds since the epoch.
        charged: The seconds it had used at its last superstep; `None` without a run.
        charged_before: Those that it had used before this invocation.
        resumed: Whether the invocation goes on with a run that an earlier one began.
        closing_id: The id of the message that the run was closed with.
    """

    __slots__ = (
        "around",
        "began",
        "began_wall",
        "charged",
        "charged_before",
        "closing_id",
        "resumed",
        "started",
    )

    def __init__(self, typ: Any = dict, key: str = "") -> None:
        super().__init__(typ, key)
        enclosing = current.get()
        self.began = _clock.now()
        self.around = math.inf if enclosing is None else enclosing.at
        self.resumed = False
        self.closing_id: str | None = None
        self.began_wall = _clock.wall()
        self.started = self.began_wall
        self.charged_before = 0.0
        self.charged: float | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same kind of channel, as the engine asks."""
        return isinstance(other, RunTime)

    __hash__ = None  # type: ignore[assignment]

    # What a run asks.

    def spent_before(self, clock: Clock, budget: float) -> float:
        """Return the seconds charged before this invocation.

        Where the run's own work had used up the `budget` it was cut, and starts afresh.
        """
        if clock == "restart" or not self.resumed:
            return 0.0
        if clock == "wall":
            return max(0.0, self.began_wall - self.started)
        return self.charged_before if self.charged_before < budget else 0.0

    def start_afresh(self) -> None:
        """Charge nothing of what was spent before: the run was cut."""
        self.resumed = False
        self.started, self.charged_before = self.began_wall, 0.0

    # What the engine asks.

    @property
    def ValueType(self) -> Any:  # noqa: N802 - the engine's name
        """The type of what is saved."""
        return self.typ

    @property
    def UpdateType(self) -> Any:  # noqa: N802 - the engine's name
        """The type of what begins a run."""
        return self.typ

    def from_checkpoint(self, checkpoint: Any) -> Self:
        """Return the channel of an invocation that begins now."""
        channel = type(self)(self.typ, self.key)
        started, spent = _seconds(checkpoint, "started"), _seconds(checkpoint, "spent")
        # Another version may have written it: what makes no sense is no record.
        if started is not None and spent is not None:
            channel.resumed = True
            channel.started = started
            channel.charged = channel.charged_before = spent
        return channel

    def copy(self) -> Self:
        """Return the same channel once more, at the same time of the same run."""
        channel = type(self)(self.typ, self.key)
        for name in self.__slots__:
            setattr(channel, name, getattr(self, name))
        return channel

    def get(self) -> dict[str, float]:
        """Return what is saved: seconds since the epoch, and seconds charged so far."""
        if self.charged is None:
            raise EmptyChannelError
        return {"started": self.started, "spent": self.charged}

    def is_available(self) -> bool:
        """Return whether there has been a run on this thread."""
        return self.charged is not None

    def update(self, values: Sequence[Any]) -> bool:
        """Note the end of a superstep; with a value, that a new run began in it."""
        if values:
            self.start_afresh()
        elif self.charged is None:
            return False
        self.charged = self.charged_before + _clock.now() - self.began
        return True


def _seconds(record: Any, name: str) -> float | None:
    value = record.get(name) if isinstance(record, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < math.inf else None
