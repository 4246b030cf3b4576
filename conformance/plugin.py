"""The pytest plugin: swaps `StateGraph` and records how each test ended.

It runs inside LangGraph's suite, in the environment that `environment` made.
"""

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

SECONDS = 3600
"""The budget of every graph (in seconds): generous, so nothing may change."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Swap the class before the first test module or conftest is imported."""
    if os.environ["CONFORMANCE"] == "deadline":
        replace_state_graph()


def replace_state_graph() -> None:
    """Put our `StateGraph` wherever LangGraph's own modules hold theirs."""
    state = importlib.import_module("langgraph.graph.state")
    importlib.import_module("langgraph.prebuilt")
    original = state.StateGraph
    ours = _bounded()
    for name, module in list(sys.modules.items()):
        theirs = name.split(".")[0] == "langgraph"
        if theirs and vars(module).get("StateGraph") is original:
            vars(module)["StateGraph"] = ours


def _bounded() -> Any:
    """Return our `StateGraph`, compiling with `SECONDS` where nothing is said.

    It is the class itself and no subclass, so that the suite sees what a user has.
    """
    ours: Any = importlib.import_module("langgraph_deadline").StateGraph
    original = ours.compile

    @functools.wraps(original)
    def bounded(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **{"deadline": SECONDS} | kwargs)

    ours.compile = bounded
    return ours


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the outcome of a test; a set-up or tear-down counts if it fails."""
    if report.when == "call" or not report.passed:
        _record(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a module that was skipped, or that could not be imported."""
    if not report.passed:
        _record(report)


def _record(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Append one line to the record; xdist's workers leave it to their parent."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    line = {"test": report.nodeid, "outcome": report.outcome}
    if report.failed:
        line |= {"reason": _reason(report), "traceback": report.longreprtext}
    with Path(os.environ["CONFORMANCE_RECORD"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the failure in one line: an exception's first, any other text's last."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
    return (lines or ["no message"])[0 if crash else -1][:200]
