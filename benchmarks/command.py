"""A command that makes sheets, prints them, and keeps those of complete runs."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from . import sheet, table

RESULTS = Path(__file__).parent / "results"

Measure = Callable[[bool], list[sheet.Sheet]]
"""Returns the tables of one experiment; the argument says whether to be quick."""


def run(
    name: str, title: str, measures: Mapping[str, Measure], about: str | None
) -> None:
    """Be the command `python -m benchmarks.<name>`."""
    prog = f"python -m benchmarks.{name}"
    args = _arguments(prog, about, measures)
    # The runs that are cut on purpose have nothing to tell.
    for logger in ("langgraph_deadline", "langchain_core.callbacks.manager"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    sheets: list[sheet.Sheet] = []
    for chosen in args.only or measures:
        began = time.monotonic()
        print(f"{chosen} ...", end=" ", file=sys.stderr, flush=True)
        sheets += measures[chosen](args.quick)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    facts = table.facts(" ".join([prog, *sys.argv[1:]]))
    print(sheet.text(sheets, facts))
    complete = not args.quick and not args.only
    if folder := args.output or (RESULTS if complete else None):
        sheet.write(name, title, sheets, facts, folder)


def _arguments(
    prog: str, about: str | None, names: Iterable[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--quick", action="store_true", help="few and small runs")
    parser.add_argument(
        "--only", action="append", choices=list(names), help="just this (repeatable)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the tables; default: `results`, for complete runs only",
    )
    return parser.parse_args()
