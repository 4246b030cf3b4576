"""Control channels that can be emptied, so that a cut leaves no edge half fired.

What carries control flow between supersteps (triggers, barriers, deferred nodes,
pending `Send`s) is replaced by a subclass with two additions:

* `closing`: what is written in this superstep is dropped, and so is what was there. Set
  on the run's own channels by the first step that was cut, for everything but the
  fallback's trigger.
* the `CLEAR` value: empties the channel before the other values of the same superstep
  are applied. Nothing else makes the engine touch a half-filled barrier.
"""

# Slots, which pyright takes for overrides of the property.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langgraph.channels import (
    BaseChannel,
    EphemeralValue,
    LastValueAfterFinish,
    NamedBarrierValue,
    NamedBarrierValueAfterFinish,
    Topic,
)
from langgraph.errors import EmptyChannelError
from langgraph.types import Send

from ._langgraph import MISSING, TASKS, is_branch_channel, is_control_channel
from ._record import RECORD_KEY, load
from ._run import run_here

CLEAR = "__deadline_clear__"
"""Empties the channel it is written to. A plain text, for it goes through savers."""

CUT = "__deadline_cut__"
"""Written to the record's channel by every task that was cut: never to be cached."""


UNKNOWN = "unknown"
"""In the record: the tool calls whose outcome is unknown. Parallel steps that were cut
tell theirs each by itself, under this key alone."""


class _Closing:
    """Drops or clears before the channel's own `update`."""

    __slots__ = ()

    if TYPE_CHECKING:  # a slot of each subclass: two bases with slots do not mix

        @property
        def closing(self) -> bool: ...
        @closing.setter
        def closing(self, value: bool) -> None: ...

    @abstractmethod
    def _empty(self) -> bool:
        """Empty the channel; return whether there was something in it."""

    def _updated(
        self, values: Sequence[Any], apply: Callable[[Sequence[Any]], bool]
    ) -> bool:
        if self.closing:
            self.closing = False
            return self._empty()
        if values and any(v is CLEAR or v == CLEAR for v in values):
            changed = self._empty()
            kept = [v for v in values if v != CLEAR]
            return (apply(kept) if kept else False) or changed
        return apply(values)


class Trigger(_Closing, EphemeralValue[Any]):
    """`branch:to:<node>` of an ordinary node."""

    __slots__ = ("closing",)

    def __init__(self, typ: Any, guard: bool = True) -> None:
        super().__init__(typ, guard)
        self.closing = False

    def _empty(self) -> bool:
        return EphemeralValue.update(self, ())

    def update(self, values: Sequence[Any]) -> bool:
        """Apply one superstep's values."""
        # A trigger is cleared by every superstep anyway: only closing matters.
        if self.closing:
            self.closing = False
            return self._empty()
        return super().update(values)


class DeferredTrigger(_Closing, LastValueAfterFinish[Any]):
    """`branch:to:<node>` of a deferred node."""

    __slots__ = ("closing",)

    def __init__(self, typ: Any, key: str = "") -> None:
        super().__init__(typ, key)
        self.closing = False

    def _empty(self) -> bool:
        had = self.value is not MISSING
        self.value, self.finished = MISSING, False
        return had

    def update(self, values: Sequence[Any]) -> bool:
        """Apply one superstep's values."""
        return self._updated(values, super().update)

    def finish(self) -> bool:
        """Let the deferred node run, at what would have been the end."""
        return _defers(super().finish())


class Barrier(_Closing, NamedBarrierValue[Any]):
    """`join:<nodes>:<node>`."""

    __slots__ = ("closing",)

    def __init__(self, typ: type[Any], names: set[Any]) -> None:
        super().__init__(typ, names)
        self.closing = False

    def _empty(self) -> bool:
        had = bool(self.seen)
        self.seen = set()
        return had

    def update(self, values: Sequence[Any]) -> bool:
        """Apply one superstep's values."""
        return self._updated(values, super().update)


class DeferredBarrier(_Closing, NamedBarrierValueAfterFinish[Any]):
    """`join:<nodes>:<node>` of a deferred node."""

    __slots__ = ("closing",)

    def __init__(self, typ: type[Any], names: set[Any]) -> None:
        super().__init__(typ, names)
        self.closing = False

    def _empty(self) -> bool:
        had = bool(self.seen)
        self.seen, self.finished = set(), False
        return had

    def update(self, values: Sequence[Any]) -> bool:
        """Apply one superstep's values."""
        return self._updated(values, super().update)

    def finish(self) -> bool:
        """Let the deferred node run, at what would have been the end."""
        return _defers(super().finish())


def _defers(finished: bool) -> bool:
    run = run_here()
    if finished and run is not None:
        run.saved.deferring = True
    return finished


class PendingSends(_Closing, Topic[Any]):
    """The `Send`s that become tasks of the next superstep."""

    __slots__ = ("closing",)

    def __init__(self, typ: Any = Send, accumulate: bool = False) -> None:
        super().__init__(typ, accumulate)
        self.closing = False

    def _empty(self) -> bool:
        return Topic.update(self, ())

    def update(self, values: Sequence[Any]) -> bool:
        """Apply one superstep's values."""
        if self.closing:
            self.closing = False
            return self._empty()
        return super().update(values)


class RecordChannel(BaseChannel[Any, Any, Any]):
    """Holds the run's record; gone once a run completes."""

    __slots__ = ("value",)

    def __init__(self, typ: Any = Any, key: str = RECORD_KEY) -> None:
        super().__init__(typ, key)
        self.value: Any = MISSING

    @property
    def ValueType(self) -> Any:  # noqa: N802 - LangGraph's name
        """The type of the value."""
        return self.typ

    @property
    def UpdateType(self) -> Any:  # noqa: N802 - LangGraph's name
        """The type of an update."""
        return self.typ

    def from_checkpoint(self, checkpoint: Any) -> RecordChannel:
        """Return a channel with the value of a checkpoint."""
        channel = self.__class__(self.typ, self.key)
        channel.value = checkpoint
        return channel

    def update(self, values: Sequence[Any]) -> bool:
        """Keep the last record written."""
        before = self.value
        unknown: dict[str, Any] = {}
        for value in values:
            if value == CLEAR:
                self.value = MISSING
            elif value == CUT:
                continue
            elif isinstance(value, Mapping) and set(value) == {UNKNOWN}:
                unknown.update((call["key"], call) for call in value[UNKNOWN])
            else:
                self.value = value
        if unknown and self.value is not MISSING:
            known = {call["key"]: call for call in self.value.get(UNKNOWN, ())}
            listed = list({**known, **unknown}.values())
            self.value = {**self.value, UNKNOWN: listed}
        return self.value is not before

    def get(self) -> Any:
        """Return the record."""
        if self.value is MISSING:
            raise EmptyChannelError
        return self.value

    def is_available(self) -> bool:
        """Whether there is a record."""
        return self.value is not MISSING

    def finish(self) -> bool:
        """Forget the record of a run that comes to its own end."""
        run = run_here()
        if run is not None and run.saved.deferring:
            run.saved.deferring = False  # not its end yet: a deferred node comes
            return False
        if self.value is MISSING:
            return False
        record = load(self.value)
        if record is None or not record.resumable:
            return False
        self.value = MISSING
        return True


def closable(channels: Mapping[str, Any]) -> dict[str, Any]:
    """Return `channels` with those for control flow replaced, and the record's."""
    replaced = {name: _closable(name, channel) for name, channel in channels.items()}
    replaced[RECORD_KEY] = RecordChannel()
    return replaced


def _closable(name: str, channel: Any) -> Any:
    kind = type(channel)
    if name == TASKS:
        return PendingSends()
    if kind is NamedBarrierValue:
        return _keyed(Barrier(channel.typ, channel.names), channel)
    if kind is NamedBarrierValueAfterFinish:
        return _keyed(DeferredBarrier(channel.typ, channel.names), channel)
    if is_branch_channel(name) and kind is EphemeralValue:
        return _keyed(Trigger(channel.typ, channel.guard), channel)
    if is_branch_channel(name) and kind is LastValueAfterFinish:
        return _keyed(DeferredTrigger(channel.typ), channel)
    return channel


def _keyed(channel: Any, like: Any) -> Any:
    channel.key = like.key
    return channel


def close(channels: Mapping[str, Any], keep: Collection[str]) -> None:
    """Drop every edge of the superstep that is being executed, but those in `keep`."""
    for name, channel in channels.items():
        if isinstance(channel, _Closing):
            channel.closing = name not in keep


def reopen(channels: Mapping[str, Any]) -> None:
    """Let edges fire again (channels that nothing was written to were never closed)."""
    for channel in channels.values():
        if isinstance(channel, _Closing):
            channel.closing = False


def leads_on(channels: Mapping[str, Any]) -> bool:
    """Return whether there is a node to be run, by the last superstep's edges."""
    return any(
        is_control_channel(name) and channel.is_available()
        for name, channel in channels.items()
    )


def leftovers(channels: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the writes that empty what earlier supersteps left half done."""
    writes: list[tuple[str, Any]] = []
    for name, channel in channels.items():
        if isinstance(channel, (Barrier, DeferredBarrier)):
            if channel.seen:
                writes.append((name, CLEAR))
        elif isinstance(channel, DeferredTrigger) and channel.value is not MISSING:
            writes.append((name, CLEAR))
    return writes


def state_writes(writes: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return those of `writes` that update state, without any control flow."""
    return [(name, value) for name, value in writes if not is_control_channel(name)]
