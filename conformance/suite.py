"""One run of LangGraph's suite, and the record it leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from conformance import environment

Side = Literal["plain", "deadline"]

RESULTS = environment.CACHE / "results"
TEST_LIMIT = 60
"""How long a test may take (in seconds) until it fails, by a signal."""
HARD_LIMIT = 90
"""How long (in seconds) until the worker of a test that ignored that is ended."""
RUN_LIMIT = 1200
"""How long one run of pytest may take (in seconds) until all of it is killed."""
FEW = 40
"""Up to so many failures are run again: more of them are no accident."""

OPTIONS = (
    *("-q", "-n", "2", "--max-worker-restart", "100"),
    *("-p", "conformance.plugin", "-p", "no:cacheprovider"),
    *("-o", "addopts=", "--continue-on-collection-errors"),
    *("--timeout", str(TEST_LIMIT), "--timeout-method", "signal"),
    *("-o", f"faulthandler_timeout={HARD_LIMIT}"),
    *("-o", "faulthandler_exit_on_timeout=true"),
)


@dataclass(frozen=True)
class Result:
    """How one test ended."""

    outcome: str
    """`passed`, `failed` or `skipped`."""
    reason: str = ""
    """The failure in one line."""
    traceback: str = ""
    again: bool = False
    """Whether it failed, and passed when the failures alone were run again."""


@dataclass(frozen=True)
class Run:
    """How all tests of one side ended."""

    side: Side
    version: str
    fingerprint: list[str]
    seconds: float
    tests: dict[str, Result]

    def count(self, outcome: str) -> int:
        """Return how many tests ended so."""
        return sum(result.outcome == outcome for result in self.tests.values())


def plain(version: str) -> Run:
    """Return LangGraph's own results, from the cache where nothing has changed."""
    path = _path("plain", version)
    if path.exists():
        data = json.loads(path.read_text(encoding="utf-8"))
        tests = {test: Result(**fields) for test, fields in data.pop("tests").items()}
        if data["fingerprint"] == environment.fingerprint():
            return Run(tests=tests, **data)
    return run("plain", version)


def run(side: Side, version: str, selection: Sequence[str] = ()) -> Run:
    """Run one side and keep its results; a selection is not kept."""
    start = time.monotonic()
    tests = _attempt(side, version, selection)
    failed = [test for test, result in tests.items() if result.outcome == "failed"]
    if 0 < len(failed) <= FEW:
        _run_again(side, version, failed, tests)
    seconds = round(time.monotonic() - start, 1)
    done = Run(side, version, environment.fingerprint(), seconds, tests)
    if not selection:
        text = json.dumps(asdict(done), indent=1)
        _path(side, version).write_text(text, encoding="utf-8")
    return done


def _run_again(
    side: Side, version: str, failed: Sequence[str], tests: dict[str, Result]
) -> None:
    """Mark the failures that come from a race, or from the tests before them.

    LangGraph's suite has races and rare hangs of its own: on the plain side such a test
    counts as passed. On ours it stays a failure, for it may well be our fault.
    """
    for test, result in _attempt(side, version, failed, "-again").items():
        if result.outcome == "passed" and test in tests:
            outcome = "passed" if side == "plain" else "failed"
            tests[test] = replace(tests[test], outcome=outcome, again=True)


def _path(side: Side, version: str) -> Path:
    """Return where a side's results are kept."""
    return RESULTS / f"{side}-{version}.json"


def _attempt(
    side: Side, version: str, selection: Sequence[str], suffix: str = ""
) -> dict[str, Result]:
    """Run pytest once and return what it recorded, or stop if that is no result."""
    RESULTS.mkdir(exist_ok=True)
    record = RESULTS / f"{side}-{version}{suffix}.jsonl"
    record.write_text("", encoding="utf-8")
    log = record.with_suffix(".log")
    print(f"running {side}{suffix}", flush=True)
    code = _pytest(side, version, selection or ["tests"], record, log)
    tests = _collapse(record)
    ended = code in (0, 1)
    if not ended or not tests:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-30:])
        print(f"{tail}\npytest ended with {code} on the {side} side", file=sys.stderr)
    if not tests or (side == "plain" and not ended):
        sys.exit(f"the {side} side has no result")
    return tests


def _pytest(
    side: Side, version: str, selection: Sequence[str], record: Path, log: Path
) -> int:
    """Run pytest in a process group of its own, killed when it takes too long."""
    command = [str(environment.PYTHON), "-m", "pytest", *OPTIONS, *selection]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=environment.tests(version),
            env=_variables(side, record),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(RUN_LIMIT)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _variables(side: Side, record: Path) -> dict[str, str]:
    """Return the environment variables of a run: nobody's tracing, no servers."""
    foreign = ("LANGCHAIN_", "LANGGRAPH_", "LANGSMITH_", "PYTEST_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return kept | {
        "CONFORMANCE": side,
        "CONFORMANCE_RECORD": str(record),
        "NO_DOCKER": "true",
        "PYTHONPATH": str(environment.ROOT),
    }


def _collapse(record: Path) -> dict[str, Result]:
    """Return one result per test: a failure outweighs a skip, and that a pass."""
    weight = {"passed": 0, "skipped": 1, "failed": 2}
    tests: dict[str, Result] = {}
    for line in record.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        test, result = fields.pop("test"), Result(**fields)
        known = tests.setdefault(test, result)
        if weight[result.outcome] > weight[known.outcome]:
            tests[test] = result
    return dict(sorted(tests.items()))
