"""`python -m conformance`: exit 0 only if every difference is in `allowed.toml`."""

import argparse
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conformance import environment, suite
from conformance.suite import Result, Run

ALLOWED = Path(__file__).with_name("allowed.toml")
MOST_ALLOWED = 20
MISSING = Result("missing", "the test was not run")


@dataclass(frozen=True)
class Difference:
    """One test that ended otherwise under a deadline."""

    test: str
    plain: Result
    deadline: Result

    @property
    def cause(self) -> Result:
        """The side that says what went wrong."""
        return self.plain if self.deadline.outcome == "passed" else self.deadline


def main() -> int:
    """Run what is asked for, print the table and return the exit code."""
    options = _arguments()
    allowed = _allowed()
    version = environment.prepare(options.version)
    selection = [*options.paths, *(["-k", options.k] if options.k else [])]
    print(f"langgraph {version}")
    plain = suite.plain(version)
    deadline = suite.run("deadline", version, selection)
    differences = compare(plain, deadline, partial=bool(selection))
    for run in (plain, deadline):
        _print_run(run)
    _print_differences(differences, allowed, full=options.full_traceback)
    return 0 if all(d.test in allowed for d in differences) else 1


def compare(plain: Run, deadline: Run, *, partial: bool) -> list[Difference]:
    """Return the tests with two outcomes; a partial run answers for its own only."""
    tests = deadline.tests if partial else plain.tests | deadline.tests
    pairs = [
        Difference(t, plain.tests.get(t, MISSING), deadline.tests.get(t, MISSING))
        for t in sorted(tests)
    ]
    return [d for d in pairs if d.plain.outcome != d.deadline.outcome]


def _arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    add = parser.add_argument
    add("paths", nargs="*", help="tests for the deadline side, as tests/test_x.py::y")
    add("-k", metavar="EXPR", help="tests for the deadline side, as pytest's -k")
    add("--version", help="langgraph version (default: the one installed, or newest)")
    add("--full-traceback", action="store_true", help="print each failure in full")
    return parser.parse_args()


def _allowed() -> dict[str, str]:
    """Return the reasons of `allowed.toml` by test."""
    entries = tomllib.loads(ALLOWED.read_text(encoding="utf-8")).get("allow", [])
    if len(entries) > MOST_ALLOWED:
        sys.exit(f"{ALLOWED.name} has {len(entries)} entries, at most {MOST_ALLOWED}")
    return {entry["test"]: entry["reason"] for entry in entries}


def _print_run(run: Run) -> None:
    """Print one side in a line."""
    counts = ", ".join(f"{run.count(o)} {o}" for o in ("passed", "failed", "skipped"))
    print(f"{run.side:8}  {counts} in {run.seconds:.0f} s")
    for test, result in run.tests.items():
        if result.again and result.outcome == "passed":
            print(f"          passed only when run again: {test}")


def _print_differences(
    differences: list[Difference], allowed: Mapping[str, str], *, full: bool
) -> None:
    """Print what differs, each with its reason or the failure."""
    known = sum(d.test in allowed for d in differences)
    print(f"\n{len(differences)} differences, {known} of them allowed")
    for d in differences:
        print(f"\n{d.plain.outcome} -> {d.deadline.outcome}  {d.test}")
        if d.test in allowed:
            print(f"    allowed: {allowed[d.test]}")
        print(f"    {d.cause.reason}")
        if d.cause.again:
            print("    passes when run again: a race, or it depends on tests before it")
        if full and d.cause.traceback:
            print(d.cause.traceback)


if __name__ == "__main__":
    sys.exit(main())
