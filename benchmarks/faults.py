"""Run the catalogue of faults and the generated runs: `python -m benchmarks.faults`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from . import table

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parent.parent / "tests"
MODULES = ("test_fault_catalogue.py", "test_fault_machine.py")
LIMIT = 1800.0
"""What all of it may take before it is given up (in seconds)."""


@dataclass
class Results:
    """What became of every cell."""

    passed: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    """Cells that fail as the catalogue says, with its diagnosis."""
    failed: dict[str, str] = field(default_factory=dict)
    impossible: dict[str, str] = field(default_factory=dict)
    """Combinations that there are not, with the reason."""
    generated: int = 0

    @property
    def ran(self) -> int:
        return len(self.passed) + len(self.broken())

    def broken(self) -> list[str]:
        """Return the cells that do not hold, as known or not."""
        return [name for name in (*self.known, *self.failed) if name.count("/") == 2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__
    )
    parser.add_argument("--slice", action="store_true", help="what `make test` runs")
    parser.add_argument("--workers", default="4", help="processes at the same time")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the tables; default: `results` here, for complete runs only",
    )
    return parser.parse_args()


def run_tests(*, everything: bool, workers: str) -> tuple[int, Results]:
    """Run the tests; return pytest's exit code and what it wrote down."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", workers]
        command += ["--dist", "loadgroup", f"--junit-xml={written}"]
        command += ["-o", "junit_family=xunit1", "-o", "addopts="]
        command += [str(TESTS / module) for module in MODULES]
        chosen = {"LANGGRAPH_DEADLINE_FAULTS": "all"} if everything else {}
        env = {**os.environ, **chosen}
        done = subprocess.run(command, env=env, timeout=LIMIT, check=False)
        if not written.exists():
            msg = f"pytest ended with {done.returncode} and wrote no results"
            raise RuntimeError(msg)
        return done.returncode, results_in(ET.parse(written).getroot())


def results_in(root: ET.Element) -> Results:
    """Return what pytest wrote about each test."""
    results = Results()
    for case in root.iter("testcase"):
        properties = {
            item.get("name"): item.get("value") or "" for item in case.iter("property")
        }
        results.generated += int(properties.get("generated", 0))
        results.impossible |= json.loads(properties.get("impossible", "{}"))
        _sort(case, results)
    return results


def _sort(case: ET.Element, results: Results) -> None:
    name = case.get("name") or ""
    cell = name.partition("[")[2].rstrip("]").replace("_", " ")
    failure = case.find("failure")
    failure = case.find("error") if failure is None else failure
    skipped = case.find("skipped")
    is_cell = cell.count("/") == 2
    if failure is not None:
        results.failed[cell if is_cell else name] = _first_line(failure)
    elif skipped is not None and skipped.get("type") == "pytest.xfail":
        results.known[cell if is_cell else name] = skipped.get("message") or ""
    elif is_cell:
        results.passed.append(cell)


def _first_line(failure: ET.Element) -> str:
    return (failure.get("message") or failure.text or "").partition("\n")[0]


def lines_of(results: Results) -> list[tuple[str, ...]]:
    """Return the table of faults and places: how many ways to drive hold."""
    held = _count(results.passed)
    broken = _count(results.broken())
    every = [*results.passed, *results.known, *results.failed, *results.impossible]
    names = [name.split("/") for name in every if name.count("/") == 2]
    faults = dict.fromkeys(name[0] for name in names)
    places = dict.fromkeys(name[1] for name in names)
    lines: list[tuple[str, ...]] = [("what fails", *places)]
    for fault in sorted(faults):
        cells = []
        for place in places:
            key = (fault, place)
            total = held[key] + broken[key]
            cells.append(f"{held[key]} of {total}" if total else "-")
        lines.append((fault, *cells))
    return lines


def _count(names: Iterable[str]) -> Counter[tuple[str, str]]:
    parts = (name.split("/") for name in names if name.count("/") == 2)
    return Counter((fault, place) for fault, place, _ in parts)


def text(lines: Sequence[tuple[str, ...]]) -> str:
    """Return a table in plain text, which is Markdown as well."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    rule = tuple("-" * width for width in widths)
    padded = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (lines[0], rule, *lines[1:])
    )
    return "\n".join(f"| {line} |" for line in padded)


def counts(results: Results, seconds: float) -> str:
    """Return the numbers, in words."""
    known = sum(name.count("/") == 2 for name in results.known)
    lines = [
        f"{results.ran + len(results.impossible)} combinations: {results.ran} cells "
        f"run, {len(results.impossible)} that make no sense.",
        f"{len(results.passed)} cells hold every promise, {known} fail as known, "
        f"{len(results.broken()) - known} fail.",
        f"{results.generated} generated runs of random graphs with random faults.",
        f"All of it took {seconds:.0f} s.",
    ]
    return "\n".join(lines)


def remarks(results: Results) -> str:
    """Return what is known to fail and what there is not, with the reasons."""
    parts = []
    for title, reasons in (
        ("Known to fail", results.known),
        ("Failed", results.failed),
        ("No such cells", results.impossible),
    ):
        if reasons:
            grouped = Counter(
                (_without_how(name), reason) for name, reason in reasons.items()
            )
            rows = [
                f"* {name} ({times} x): {reason}"
                for (name, reason), times in sorted(grouped.items())
            ]
            parts.append("\n".join([f"{title}:", "", *rows]))
    return "\n\n".join(parts)


def _without_how(name: str) -> str:
    return name.rpartition("/")[0] or name


NOTE = """Each number says in how many of the ways to drive a graph (invoke, ainvoke, \
stream, astream) all invariants held, of how many there are: on time, sticky, nothing \
starts after the cut, fenced, finished work kept, one fallback, next turn clean, \
nothing left behind. Async cells run in virtual time and are exact; sync ones may be \
0.6 s later than they should, on a machine that may be busy. A run that was killed \
is resumed in another process: it goes on where it was, the next turn is clean, and \
nothing is left behind."""


def write(results: Results, about: dict[str, Any], took: float, folder: Path) -> None:
    """Write `faults.json` and `faults.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **about,
        "seconds": round(took),
        "cells": results.ran,
        "passed": sorted(results.passed),
        "known": results.known,
        "failed": results.failed,
        "impossible": results.impossible,
        "generated": results.generated,
    }
    (folder / "faults.json").write_text(f"{json.dumps(content, indent=2)}\n")
    parts = [
        table.summary(about),
        NOTE,
        text(lines_of(results)),
        counts(results, took),
        remarks(results),
    ]
    (folder / "faults.md").write_text("\n\n".join(filter(None, parts)) + "\n")


def main() -> int:
    args = arguments()
    began = time.monotonic()
    code, results = run_tests(everything=not args.slice, workers=args.workers)
    took = time.monotonic() - began
    about = table.facts(" ".join(["python -m benchmarks.faults", *sys.argv[1:]]))
    print(f"\n{text(lines_of(results))}\n\n{NOTE}\n\n{counts(results, took)}\n")
    print(f"{remarks(results)}\n\n{table.summary(about)}")
    if folder := args.output or (None if args.slice else RESULTS):
        write(results, about, took, folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
