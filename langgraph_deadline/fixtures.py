"""Fixtures for pytest: tests that run wholly in virtual time.

In `conftest.py`, or in a module of tests:

```python
pytest_plugins = ["langgraph_deadline.fixtures"]
```

| fixture | what it is |
|---|---|
| `virtual_clock` | the test's clock; an `async def` test that asks for it runs on it |
| `run_virtual` | runs a coroutine on that clock, for `def` tests |
| `virtual_sleep` | has `time.sleep` wait on that clock, too |
| `runs` | the reports of the runs that end in the test |

`async def` tests need pytest-asyncio 1.4 or newer, with a loop for each test (its
default). For anyio's plugin the loop is asked for by a fixture of its own:

```python
@pytest.fixture
def anyio_backend(virtual_clock):
    return "asyncio", {"loop_factory": lambda: VirtualTimeLoop(virtual_clock)}
```
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, TypeAlias

import pytest

from . import testing
from .runs import Runs, collect_runs
from .testing import VirtualClock, VirtualTimeLoop

__all__ = (
    "VirtualClock",
    "VirtualTimeLoop",
    "run_virtual",
    "runs",
    "virtual_clock",
    "virtual_sleep",
)

RunVirtual: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]
"""What the fixture `run_virtual` is: a function that runs a coroutine."""

_Factories: TypeAlias = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]

_CLOCK = pytest.StashKey[VirtualClock]()
_NAME = "virtual_clock"


@pytest.fixture
def virtual_clock(request: pytest.FixtureRequest) -> Generator[VirtualClock]:
    """The clock of this test; an `async def` test that asks for it runs on it."""
    clock = request.config.stash[_CLOCK]
    yield clock
    if inspect.iscoroutinefunction(request.function) and clock.loop is None:
        msg = (
            "this test asked for virtual_clock, but its event loop was one in real "
            "time. It needs pytest-asyncio 1.4 or newer, or with anyio's plugin a "
            "fixture anyio_backend, see langgraph_deadline.fixtures"
        )
        pytest.fail(msg, pytrace=False)


@pytest.fixture
def run_virtual(virtual_clock: VirtualClock) -> RunVirtual:
    """Run a coroutine in virtual time, as `langgraph_deadline.testing.run_virtual`.

    All calls in a test share its `virtual_clock`.
    """
    return lambda main: testing.run_virtual(main, clock=virtual_clock)


@pytest.fixture
def virtual_sleep(virtual_clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `time.sleep` wait on `virtual_clock` in sync nodes and tools of `ainvoke`.

    Threads that belong to no run sleep in real time, and so does what holds the
    function itself, after `from time import sleep`.
    """
    monkeypatch.setattr("time.sleep", virtual_clock.sleep)
    monkeypatch.setattr("langgraph_deadline._clock.sleep", virtual_clock.sleep)


@pytest.fixture
def runs() -> Generator[Runs]:
    """The reports of the runs that end in this test, as by `collect_runs`."""
    with collect_runs() as gathered:
        yield gathered


# How an async test gets its loop. The loop may be made before or after the fixture is
# asked for, so the clock is there before either.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each test a clock of its own."""
    item.config.stash[_CLOCK] = VirtualClock()


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Generator[None, _Factories | None, _Factories]:
    """Give an async test that asks for `virtual_clock` a loop on it.

    Raises:
        UsageError: If the loop is not the test's own.
    """
    others = yield
    if _NAME not in getattr(item, "fixturenames", ()):
        return others if others is not None else {"asyncio": asyncio.new_event_loop}
    marker = item.get_closest_marker("asyncio")
    scope = marker.kwargs.get("loop_scope") if marker is not None else None
    scope = scope or config.getini("asyncio_default_test_loop_scope")
    if scope != "function":
        msg = (
            f"{item.nodeid}: virtual_clock needs a loop for each test, and this one's "
            f"has the scope {scope!r}: use loop_scope='function' for it"
        )
        raise pytest.UsageError(msg)
    return {"virtual time": lambda: VirtualTimeLoop(config.stash[_CLOCK])}
