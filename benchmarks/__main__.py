"""Measure what a deadline costs: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from . import table
from .rows import ROWS

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument(
        "--only", action="append", choices=ROWS, help="just this (may be repeated)"
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if a bar is missed"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the tables; default: `results` here, for complete runs only",
    )
    return parser.parse_args()


def measured(names: list[str], *, quick: bool) -> list[table.Row]:
    rows: list[table.Row] = []
    for name in names:
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        rows += ROWS[name](quick)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return rows


def main() -> int:
    args = arguments()
    # The runs that are cut on purpose have nothing to tell.
    logging.getLogger("langgraph_deadline").setLevel(logging.ERROR)
    rows = measured(args.only or list(ROWS), quick=args.quick)
    about = table.facts(" ".join(["python -m benchmarks", *sys.argv[1:]]))
    print(f"{table.text(rows)}\n\n{table.summary(about)}")
    complete = not args.quick and not args.only
    if folder := args.output or (RESULTS if complete else None):
        table.write(rows, about, folder)
    missed = [row.what for row in rows if row.missed]
    if missed:
        print(f"\nBars missed: {'; '.join(missed)}")
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
