"""Who owns the time right here: a chain of scopes in a context variable.

A scope is a deadline plus the place it belongs to. Runs and steps are scopes, and so
are the user's own blocks (`fail_after`, `move_on_after`). An inner scope can only
tighten: its deadline is the earlier of its own and the enclosing one.

After trio's `_timeouts.py`; the cancelling follows CPython's `asyncio.timeouts`.
"""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar, Token
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from . import _clock
from .deadline import Deadline, seconds_of
from .errors import Cause, DeadlineExceeded


class Shieldable(Protocol):
    """What a cut can be made to wait for."""

    def hold(self, seconds: float) -> Any:
        """Keep a cut from stopping the work, for at most `seconds` after it."""
        ...

    def let_go(self, held: Any) -> DeadlineExceeded | None:
        """End what `hold` began; return the error if a cut has been waiting for it."""
        ...


class Scope:
    """A deadline that applies to everything done inside it."""

    # `None` stands for the scope itself: a reference to it would be a cycle, and there
    # is a scope for every step of every run.
    __slots__ = ("_binding", "_step", "at", "cut", "parent", "run")

    def __init__(self, parent: Scope | None, at: float = math.inf) -> None:
        self.parent = parent
        self.cut: Cause | None = None
        self.run: Any = None
        self._step: Any = None
        self.at = at
        self._binding: Scope | None = None
        if parent is not None:
            self.run = parent.run
            self._step = parent.step
            if parent.at <= at:
                self.at = parent.at
                self._binding = parent.binding

    @property
    def step(self) -> Any:
        """The step this scope is in, `None` outside of one."""
        return self._step

    @property
    def binding(self) -> Scope:
        """The scope whose own limit is the one that applies here."""
        return self if self._binding is None else self._binding

    def cause_of_cut(self) -> Cause | None:
        """Return why this scope or one around it was cut, `None` if none was."""
        scope: Scope | None = self
        while scope is not None:
            if scope.cut is not None:
                return scope.cut
            scope = scope.parent
        return None

    def tell(self) -> None:
        """Note that code in here was told that its time is up.

        Whatever it makes of that: what it returns from now on is too late.
        """
        binding = self.binding
        step = self.step
        if step is not None and type(binding) is not Scope:  # a user's block is its own
            step.told = True

    def exceeded(
        self, remaining: float, needed: float | None, cut: Cause | None
    ) -> DeadlineExceeded:
        """Return the error for this scope's deadline."""
        if needed is not None and 0 < remaining < needed:
            return DeadlineExceeded(
                f"{needed:.3g} s are needed here, and {remaining:.3g} s are left. "
                "Lower `needs`, or start earlier",
                cause="window",
                remaining=remaining,
                needed=needed,
            )
        return DeadlineExceeded(
            "the time for this block is over. Give the block more seconds, or do less "
            "in it",
            cause=cut or "deadline",
            remaining=remaining,
        )


current: ContextVar[Scope | None] = ContextVar("langgraph_deadline_scope", default=None)


def current_deadline() -> Deadline | None:
    """Return the nearest deadline that applies right here, `None` without one."""
    scope = current.get()
    if scope is None or scope.at == math.inf:
        return None
    return Deadline(scope.at)


def remaining() -> float:
    """Return the seconds left right here.

    `inf` without a deadline, negative once it has passed, `-inf` in work that was cut.
    """
    scope = current.get()
    if scope is None:
        return math.inf
    if scope.cause_of_cut() is not None:
        return -math.inf
    return scope.at - _clock.now()


def check(needs: float | timedelta = 0.0) -> None:
    """Raise if less than `needs` seconds are left right here.

    Inside `move_on_after` that ends the block.

    Raises:
        DeadlineExceeded: With cause `window` if there is time, but not enough.
    """
    needed = seconds_of(needs, "needs")
    scope = current.get()
    if scope is None:
        return
    cut = scope.cause_of_cut()
    left = -math.inf if cut is not None else scope.at - _clock.now()
    if left <= 0 or left < needed:
        error = scope.binding.exceeded(left, needed, cut)
        error.scope = scope.binding
        if left <= 0:
            scope.tell()
        try:
            raise error
        finally:
            del error  # its traceback has this frame: without this they are a cycle


class TimeScope:
    """A block with a limit of its own; see `fail_after` and `move_on_after`.

    Attributes:
        cancelled_caught: Whether `move_on_after` ended the block early.
    """

    def __init__(self, seconds: float | timedelta, *, fails: bool) -> None:
        self.seconds = seconds_of(seconds, "seconds")
        self.cancelled_caught = False
        self._fails = fails
        self._scope: Scope | None = None
        self._token: Token[Scope | None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fired = False
        self._started = 0.0

    def remaining(self) -> float:
        """Return the seconds left in the block, all of them before it is entered."""
        if self._scope is None:
            return self.seconds
        return self._scope.at - _clock.now()

    def __enter__(self) -> Self:
        if self._scope is not None:
            msg = "this scope has been entered before; make a new one for each block"
            raise RuntimeError(msg)
        self._started = _clock.now()
        self._scope = Scope(current.get(), self._started + self.seconds)
        self._token = current.set(self._scope)
        # Only a limit of its own needs a timer: the enclosing one has its own.
        if self._scope.binding is self._scope:
            self._arm()
        return self

    def _arm(self) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return  # sync code cannot be interrupted; it is checked on exit
        if task is None:
            return
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = task.get_loop().call_later(max(self.seconds, 0.0), self._fire)

    def _fire(self) -> None:
        self._fired = True
        if self._task is not None:
            self._task.cancel()

    def _end(
        self, kind: type[BaseException] | None, error: BaseException | None
    ) -> bool:
        """Leave the block; return whether it ends here, without an error."""
        scope = self._scope
        if scope is None or self._token is None:
            msg = "this scope was left without having been entered"
            raise RuntimeError(msg)
        if self._timer is not None:
            self._timer.cancel()
        self._leave(scope, self._token)
        mine = scope.binding is scope
        if self._fired and self._task is not None:
            # Whoever else cancelled the task meanwhile is still owed it.
            others = self._task.uncancel() > self._cancelling
            self._task = None
            if others:
                return False
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                return self._over(scope, error)
        self._task = None
        if error is not None and _is_of(error, scope):
            return self._over(scope, error)
        # Sticky: a block that swallowed its cut, or could not be cut, is late too.
        if kind is None and mine and scope.at <= _clock.now():
            return self._over(scope, None)
        return False

    def _leave(self, scope: Scope, token: Token[Scope | None]) -> None:
        self._token = None
        here = current.get() is scope
        try:
            current.reset(token)
        except ValueError:
            here = False
        if not here:
            self._task = None
            current.set(None)
            msg = (
                "this block was left in another task, or before one that was entered "
                "after it; enter and leave a block in one place, with `with`"
            )
            raise RuntimeError(msg)

    def _over(self, scope: Scope, error: BaseException | None) -> bool:
        self.cancelled_caught = not self._fails
        if not self._fails:
            return True
        if isinstance(error, DeadlineExceeded):
            return False
        now = _clock.now()
        late = DeadlineExceeded(
            f"the block exceeded its limit of {self.seconds:.3g} s "
            f"({now - self._started:.3g} s after it was entered). Raise `fail_after`'s "
            "seconds, or use `move_on_after` to go on without the rest",
            budget=self.seconds,
            elapsed=now - self._started,
            remaining=scope.at - now,
        )
        try:
            raise late from error
        finally:
            del late, error  # the traceback has this frame: a cycle without this


def _is_of(error: BaseException, scope: Scope) -> bool:
    """Return whether `error`, or all that a group holds, says that `scope` is over."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_of(inner, scope) for inner in error.exceptions)
    return isinstance(error, DeadlineExceeded) and error.scope is scope


class MovingOnScope(TimeScope):
    """A block that may swallow an error, which type checkers can tell by this."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self._end(kind, error)


class FailingScope(TimeScope):
    """A block that never swallows an error, which type checkers can tell by this."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(kind, error)


def fail_after(seconds: float | timedelta) -> FailingScope:
    """Return a block that raises `DeadlineExceeded` once `seconds` have passed in it.

    A plain `with`, in sync and async code. The seconds count from its entry, and can
    only tighten what encloses it. Async code is interrupted; sync code is when it calls
    `check`, or at the end of the block. `move_on_after` goes on instead of raising.
    """
    return FailingScope(seconds, fails=True)


def move_on_after(seconds: float | timedelta) -> MovingOnScope:
    """Return a block that is left, without an error, once `seconds` have passed in it.

    See `fail_after`, which raises. `cancelled_caught` tells whether it was left early.
    """
    return MovingOnScope(seconds, fails=False)


class shield:  # noqa: N801 - used as a verb, like contextlib.suppress
    """A critical section that a cut waits for, at most `grace` seconds.

    Outside a run it does nothing.
    """

    def __init__(self, grace: float | timedelta) -> None:
        self._grace = seconds_of(grace, "grace")
        if self._grace < 0:
            msg = f"grace must not be negative, got {grace!r}"
            raise ValueError(msg)
        self._held: list[tuple[Shieldable, Any] | None] = []

    def __enter__(self) -> shield:
        scope = current.get()
        step = scope.step if scope is not None else None
        self._held.append(None if step is None else (step, step.hold(self._grace)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held = self._held.pop()
        if held is not None:
            late = held[0].let_go(held[1])
            if late is not None and kind is None:
                raise late


class detach:  # noqa: N801 - used as a verb, like contextlib.suppress
    """A block that leaves the run's deadline, for work that must outlive it.

    What is started inside (tasks, threads with a copied context, graphs) is bounded by
    nothing that encloses the block. The block itself still belongs to its step.
    """

    def __init__(self) -> None:
        self._tokens: list[Token[Scope | None]] = []

    def __enter__(self) -> detach:
        self._tokens.append(current.set(None))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        current.reset(self._tokens.pop())
