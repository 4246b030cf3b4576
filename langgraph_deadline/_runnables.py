"""Functions and Runnables with a deadline."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import BaseModel

from ._calls import CallLimit, call_async, call_sync, threaded
from ._streams import stream_async, stream_sync
from .errors import DeadlineExceeded


def bounded_function(function: Any, limit: CallLimit) -> Any:
    """Return `function` (sync or async) so that its calls end on time.

    Raises:
        TypeError: If it is a class or a generator function.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if isinstance(function, type):
        msg = (
            f"with_deadline() got {name}, a {type(function).__name__}: pass an "
            "instance or a method of it"
        )
        raise TypeError(msg)
    call = getattr(function, "__call__", None)  # noqa: B004 - of an instance
    if any(_generates(f) for f in (function, call)):
        msg = (
            f"with_deadline() takes no generator function such as {name!r}: bound what "
            "reads from it, or use `check` in it"
        )
        raise TypeError(msg)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):

        async def awithin(*args: Any, **kwargs: Any) -> Any:
            body = functools.partial(function, *args, **kwargs)
            return await call_async(name, "call", limit, body)

        return _like(function, awithin)

    def within(*args: Any, **kwargs: Any) -> Any:
        body = functools.partial(function, *args, **kwargs)
        return call_sync(name, "call", limit, body)

    return _like(function, within)


def _generates(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _like(function: Any, wrapper: Any) -> Any:
    if not hasattr(function, "__name__"):  # a partial, or an instance with `__call__`
        wrapper.__name__ = type(function).__name__
        wrapper.__wrapped__ = function
        return wrapper
    return functools.wraps(function)(wrapper)


class BoundedRunnable(Runnable[Any, Any]):
    """What a Runnable gains; mixed into its class, so that it stays what it was."""

    _deadline_limit: CallLimit

    def deadline_limit(self) -> CallLimit:
        """Return the limit of each call."""
        return self._deadline_limit

    def _call_name(self) -> str:
        return self.get_name()

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Call the Runnable, on time."""
        runnable: Any = super()
        body = functools.partial(runnable.invoke, input, config, **kwargs)
        return call_sync(self._call_name(), "call", self._deadline_limit, body)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Call the Runnable, on time."""
        runnable: Any = super()
        if _blocks(self):  # not in the loop's few threads
            body = functools.partial(threaded, runnable.invoke, input, config, **kwargs)
        else:
            body = functools.partial(runnable.ainvoke, input, config, **kwargs)
        return await call_async(self._call_name(), "call", self._deadline_limit, body)

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Stream from the Runnable, on time."""
        make = functools.partial(super().stream, input, config, **kwargs)
        return stream_sync(self._call_name(), "call", self._deadline_limit, make)

    def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Stream from the Runnable, on time."""
        make = functools.partial(super().astream, input, config, **kwargs)
        return stream_async(self._call_name(), "call", self._deadline_limit, make)

    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Stream from the Runnable, on time."""
        make = functools.partial(super().transform, input, config, **kwargs)
        return stream_sync(self._call_name(), "call", self._deadline_limit, make)

    def atransform(
        self,
        input: AsyncIterator[Any],
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Stream from the Runnable, on time."""
        make = functools.partial(super().atransform, input, config, **kwargs)
        return stream_async(self._call_name(), "call", self._deadline_limit, make)

    def astream_events(self, *args: Any, **kwargs: Any) -> Any:
        """Stream the Runnable's events, on time."""
        # Bindings ask what they bind, past the limit of their own.
        return Runnable.astream_events(self, *args, **kwargs)

    # Each item of a batch is a call of its own, whatever the Runnable would make of it.

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        """Call the Runnable for each input, each on time."""
        return Runnable.batch(self, inputs, config, **kwargs)

    async def abatch(
        self, inputs: list[Any], config: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call the Runnable for each input, each on time."""
        return await Runnable.abatch(self, inputs, config, **kwargs)

    def with_retry(
        self, *, retry_if_exception_type: Any = (Exception,), **kwargs: Any
    ) -> Runnable[Any, Any]:
        """Return the Runnable with retries, but none of what ran out of time."""
        kinds = retry_in_time(retry_if_exception_type)
        return super().with_retry(retry_if_exception_type=kinds, **kwargs)


def _blocks(runnable: Any) -> bool:
    """Return whether a Runnable has no async code of its own."""
    if isinstance(runnable, RunnableLambda):
        return not hasattr(runnable, "afunc")
    own: Any = type(runnable).__bases__[-1]
    return bool(own.ainvoke is Runnable.ainvoke)


def bounded_runnable(runnable: Runnable[Any, Any], limit: CallLimit) -> Any:
    """Return a copy whose calls end on time; the original stays as it was."""
    if isinstance(runnable, BoundedRunnable):
        limit = limit.within(runnable.deadline_limit())
    original: Any = runnable
    is_model = isinstance(runnable, BaseModel)
    copied = original.model_copy() if is_model else copy.copy(original)
    if not isinstance(runnable, BoundedRunnable):
        cls = class_of(BoundedRunnable, type(runnable))
        object.__setattr__(copied, "__class__", cls)
    vars(copied)["_deadline_limit"] = limit
    return copied


_classes: dict[tuple[Any, Any], type[Any]] = {}


def class_of(mixin: type[Any], cls: type[Any]) -> type[Any]:
    """Return the class of bounded objects of class `cls`: a subclass, named like it."""
    if (mixin, cls) not in _classes:
        metaclass: Any = type(cls)
        names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        made: type[Any] = metaclass(cls.__name__, (mixin, cls), names)
        made.__qualname__ = cls.__qualname__
        _classes[mixin, cls] = made
    return _classes[mixin, cls]


class _InTime(type):
    """The type of a type of errors that holds none of those that ran out of time."""

    kinds: tuple[type[BaseException], ...]

    def __instancecheck__(cls, error: object) -> bool:
        return isinstance(error, cls.kinds) and not isinstance(error, DeadlineExceeded)


def retry_in_time(kinds: Any) -> Any:
    """Return what `with_retry(retry_if_exception_type=)` needs to leave ours alone."""
    if callable(kinds) and not isinstance(kinds, type):
        return lambda error: kinds(error) and not isinstance(error, DeadlineExceeded)
    listed = kinds if isinstance(kinds, tuple) else (kinds,)
    return (_InTime("RetriedInTime", (Exception,), {"kinds": listed}),)
