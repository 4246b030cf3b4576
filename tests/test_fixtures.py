"""The fixtures, as users' test-suites see them."""

from __future__ import annotations

from typing import Any

import pytest

# Imported here, or each suite of a test would import all there is below it anew.
from langgraph_deadline import fixtures

pytest_plugins = ["pytester"]

GRAPH = """
import asyncio
import time
from typing import TypedDict

import pytest
from langgraph.graph import START

from langgraph_deadline import StateGraph, remaining
from langgraph_deadline.testing import VirtualTimeLoop, run_virtual as plain_run


class State(TypedDict, total=False):
    answer: str


async def hang(state):
    await asyncio.sleep(3600)


def nap(state):
    time.sleep(20)
    return {"answer": f"{remaining():g} s left"}


def degrade(state):
    return {"answer": "degraded"}


def graph_of(node):
    builder = StateGraph(State).add_node("work", node).add_edge(START, "work")
    return builder.compile(deadline=30, fallback=degrade)

"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what runs tests with our fixtures and returns their results."""
    # Other plugins import for seconds, in every such run anew.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.syspath_prepend(pytester.path)
    pytester.makeconftest('pytest_plugins = ["langgraph_deadline.fixtures"]')

    def run(tests: str, *options: str, ini: str = "asyncio_mode = auto") -> Any:
        pytester.makeini(
            f"[pytest]\nasyncio_default_fixture_loop_scope = function\n{ini}\n"
        )
        pytester.makepyfile(GRAPH + tests)
        # These modules have been imported by the tests around this one.
        quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
        plugins = ("-p", "pytest_asyncio.plugin", "-p", "anyio.pytest_plugin")
        return pytester.runpytest_inprocess(*plugins, *quiet, *options)

    return run


def test_an_async_test_that_asks_for_the_clock_runs_on_it(suite: Any) -> None:
    """From its first line to its last, in either mode of pytest-asyncio."""
    tests = """
@pytest.mark.asyncio
async def test_degrades(virtual_clock, runs):
    began = virtual_clock.monotonic()
    assert await graph_of(hang).ainvoke({}) == {"answer": "degraded"}
    assert virtual_clock.monotonic() - began == 24
    assert [report.elapsed for report in runs] == [24]
    assert asyncio.get_running_loop().clock is virtual_clock
"""
    suite(tests).assert_outcomes(passed=1)
    suite(tests, ini="asyncio_mode = strict").assert_outcomes(passed=1)


def test_other_tests_keep_their_loop_and_their_name(suite: Any) -> None:
    """Real time for who does not ask; the clock of each test is its own."""
    done = suite(
        """
async def test_real():
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    await asyncio.sleep(0)

@pytest.mark.parametrize("n", [1, 2])
async def test_virtual(virtual_clock, n):
    assert virtual_clock.monotonic() == 1000
    await asyncio.sleep(60)
    assert virtual_clock.monotonic() == 1060

@pytest.mark.usefixtures("virtual_clock")
async def test_by_mark():
    await asyncio.sleep(86400)

def test_sync():
    pass
""",
        "-v",
    )
    done.assert_outcomes(passed=5)
    names = [
        line.split(" ")[0].split("::")[1] for line in done.outlines if "::" in line
    ]
    expected = ["test_real", "test_virtual[1]", "test_virtual[2]", "test_by_mark"]
    assert names == [*expected, "test_sync"]


def test_async_fixtures_are_on_the_same_loop(suite: Any) -> None:
    """Asked for before the clock or after it."""
    suite(
        """
@pytest.fixture
async def slow():
    await asyncio.sleep(30)
    yield asyncio.get_running_loop()
    await asyncio.sleep(30)

async def test_before(slow, virtual_clock):
    assert slow is asyncio.get_running_loop()
    assert slow.clock is virtual_clock
    assert virtual_clock.monotonic() == 1030

async def test_after(virtual_clock, slow):
    assert slow is asyncio.get_running_loop()
    assert virtual_clock.monotonic() == 1030
"""
    ).assert_outcomes(passed=2)


def test_a_sync_test_runs_coroutines_on_its_clock(suite: Any) -> None:
    """All calls share it."""
    suite(
        """
def test_degrades(run_virtual, virtual_clock, runs):
    assert run_virtual(graph_of(hang).ainvoke({})) == {"answer": "degraded"}
    assert run_virtual(graph_of(hang).ainvoke({})) == {"answer": "degraded"}
    assert virtual_clock.monotonic() == 1048
    assert len(runs) == 2
    runs.clear()

def test_gathers_its_own(runs):
    assert runs == []
"""
    ).assert_outcomes(passed=2)


def test_sync_nodes_sleep_on_the_clock(suite: Any) -> None:
    """In `ainvoke`; afterwards `time.sleep` is what it was."""
    suite(
        """
REAL = time.sleep

@pytest.mark.usefixtures("virtual_sleep")
async def test_naps(virtual_clock):
    assert time.sleep is not REAL
    assert await graph_of(nap).ainvoke({}) == {"answer": "4 s left"}
    assert virtual_clock.monotonic() == 1020

def test_afterwards():
    assert time.sleep is REAL
"""
    ).assert_outcomes(passed=2)


def test_anyios_plugin_can_have_the_loop(suite: Any) -> None:
    """By a fixture of three lines, as the documentation has it."""
    suite(
        """
import anyio

@pytest.fixture
def anyio_backend(virtual_clock):
    return "asyncio", {"loop_factory": lambda: VirtualTimeLoop(virtual_clock)}

@pytest.mark.anyio
async def test_degrades(virtual_clock):
    with anyio.move_on_after(10) as scope:
        await graph_of(hang).ainvoke({})
    assert scope.cancelled_caught
    assert virtual_clock.monotonic() == 1010
    assert await graph_of(hang).ainvoke({}) == {"answer": "degraded"}
""",
        ini="asyncio_mode = strict",
    ).assert_outcomes(passed=1)


def test_a_test_that_ran_in_real_time_all_the_same_is_told(suite: Any) -> None:
    """Here anyio's plugin ran it, on a loop of its own choice."""
    done = suite(
        """
@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_real(virtual_clock):
    await asyncio.sleep(0)
""",
        ini="asyncio_mode = strict",
    )
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*event loop was one in real time*"])


@pytest.mark.parametrize("ini", ["", "asyncio_default_test_loop_scope = session"])
def test_a_loop_that_tests_share_is_refused(suite: Any, ini: str) -> None:
    """Its time would go on from test to test."""
    mark = "" if ini else '@pytest.mark.asyncio(loop_scope="session")'
    done = suite(
        f"""
{mark}
async def test_shared(virtual_clock):
    pass
""",
        ini=f"asyncio_mode = auto\n{ini}",
    )
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*needs a loop for each test*'session'*"])


def test_loops_of_the_users_own_choice_stay(
    suite: Any, pytester: pytest.Pytester
) -> None:
    """Their hook answers for the tests that are not virtual."""
    pytester.makepyfile(
        my_loops="""
import asyncio

class MyLoop(asyncio.SelectorEventLoop):
    pass

def pytest_asyncio_loop_factories(config, item):
    return {"mine": MyLoop}
"""
    )
    suite(
        """
async def test_mine():
    assert type(asyncio.get_running_loop()).__name__ == "MyLoop"

async def test_virtual(virtual_clock):
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
""",
        "-p",
        "my_loops",
    ).assert_outcomes(passed=2)


def test_the_documented_names_are_the_fixtures() -> None:
    """The table in the module's docstring is complete."""
    for name in ("virtual_clock", "run_virtual", "virtual_sleep", "runs"):
        assert f"| `{name}` |" in (fixtures.__doc__ or "")
        assert type(getattr(fixtures, name)).__name__ == "FixtureFunctionDefinition"
