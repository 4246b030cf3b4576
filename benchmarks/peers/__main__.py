"""Put every peer to the same work: `python -m benchmarks.peers`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import table
from . import report, work
from .environments import Environment, ready, versions
from .peers import ALL, Candidate
from .run import Row, run

RESULTS = Path(__file__).parents[1] / "results"


def arguments() -> argparse.Namespace:
    names = [candidate.name for candidate in ALL]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__
    )
    parser.add_argument(
        "--only", action="append", choices=names, help="just this (may be repeated)"
    )
    parser.add_argument(
        "--case", action="append", choices=work.CASES, help="just this (likewise)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the tables; default: `benchmarks/results`, for complete runs",
    )
    return parser.parse_args()


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def rows_of(candidate: Candidate, cases: list[str]) -> list[Row]:
    """Return a row per case; one row that says why, if it cannot be installed."""
    if failure := ready(candidate.environment):
        say(f"{candidate.title}: {failure}")
        return [Row(candidate.title, "", got="not installed", detail=failure)]
    rows = []
    for case in cases:
        say(f"{candidate.title}: {case} ...", end=" ")
        rows.append(run(candidate, case))
        say(f"{rows[-1].got} {rows[-1].detail[:60]}")
    return rows


def installed(environments: set[Environment]) -> dict[str, dict[str, str]]:
    ordered = sorted(environments, key=lambda each: each.name)
    return {each.name: versions(each) for each in ordered if each.made.exists()}


def main() -> int:
    args = arguments()
    chosen = [each for each in ALL if not args.only or each.name in args.only]
    rows = {each: rows_of(each, args.case or list(work.CASES)) for each in chosen}
    about = table.facts(" ".join(["python -m benchmarks.peers", *sys.argv[1:]]))
    about.pop("versions")  # those of this environment, which runs none of the peers
    about["environments"] = installed({each.environment for each in chosen})
    print(f"{report.tables(rows)}\n\n{report.summary(about)}")
    complete = not args.only and not args.case
    if folder := args.output or (RESULTS if complete else None):
        report.write(rows, about, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
