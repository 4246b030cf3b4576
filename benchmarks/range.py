"""The tests on every Python, event loop and LangGraph that is supported.

`make range`: each in an environment of its own, two at a time. Needs the Pythons
(as `pythonX.Y`, or from pyenv); one that is not there is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import sheet, table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
LONGEST = 3600
"""What one environment may take (in seconds)."""

QUICK = "tests/test_c*.py tests/test_langgraph_internals.py tests/test_streams.py"
"""What depends most on Python, on the event loop and on LangGraph."""


@dataclass(frozen=True, slots=True)
class Place:
    """One environment, and the event loop that the tests use in it."""

    name: str
    python: str
    pin: str = ""
    loop: str = ""


PLACES = (
    Place("Python 3.11, newest LangGraph", "3.11"),
    Place("Python 3.12, newest LangGraph", "3.12"),
    Place("Python 3.13, newest LangGraph", "3.13"),
    Place("Python 3.11, oldest LangGraph", "3.11", pin="langgraph==1.2.0"),
    Place("Python 3.13, uvloop", "3.13", pin="uvloop", loop="uvloop"),
    Place("Python 3.12, eager tasks", "3.12", loop="eager"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.range")
    names = [place.name for place in PLACES]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME")
    parser.add_argument("--at-once", type=int, default=2, help="places at a time")
    parser.add_argument("--quick", action="store_true", help="the contract's tests")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the table; default: `results` here, unless it is quick",
    )
    return parser.parse_args()


def interpreter(version: str) -> str | None:
    """Return the path of a Python, `None` where it is not installed."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return sys.executable
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}")]
    found += map(str, sorted(home.glob(f"{version}.*/bin/python"), reverse=True))
    return next((path for path in found if path and _runs(path)), None)


def _runs(path: str) -> bool:
    """Return whether this is a Python: pyenv has shims for versions not in use."""
    tried = subprocess.run([path, "--version"], capture_output=True, check=False)
    return tried.returncode == 0


def tested(place: Place, *, quick: bool) -> dict[str, sheet.Value]:
    """Run the tests in `place` and return its row."""
    python = interpreter(place.python)
    if python is None:
        return _row(place, "not run: no such Python here", None)
    began = time.monotonic()
    try:
        said = _said(place, python, QUICK if quick else "")
    except subprocess.TimeoutExpired:
        said = f"failed: not done in {LONGEST} s"
    print(f"{place.name}: {said}", file=sys.stderr, flush=True)
    return _row(place, said, time.monotonic() - began)


def _said(place: Place, python: str, arguments: str) -> str:
    done = _tests(place, python, arguments)
    failures = list(_failures(done.stdout))
    if not failures:
        return _last_line(done)
    # Real clocks, on a machine with other work on it: what failed beside all the rest
    # is run once more by itself, and both are told.
    print("\n".join(f"  {line}" for line in failures), file=sys.stderr)
    alone = _tests(place, python, "--last-failed -n 2")
    return f"{_last_line(done)}; those by themselves: {_last_line(alone)}"


def _tests(
    place: Place, python: str, arguments: str
) -> subprocess.CompletedProcess[str]:
    environment = "-".join(filter(None, [place.python, place.pin, place.loop]))
    venv = f".venv-range-{environment}"
    command = [
        "make",
        "--no-print-directory",
        "test",
        f"PYTHON={python}",
        f"PIN={place.pin}",
        f"VENV={venv}",
        f"ARGS=-q -o cache_dir={venv}/tests {arguments}",
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "LANGGRAPH_DEADLINE_LOOP": place.loop},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what pytest said in the end, without how long it took."""
    lines = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()
    told = [line for line in lines if re.search(r" in [\d.]+s", line)] or lines
    said = re.sub(r"^=+ | in [\d.]+s.*$| =+$", "", told[-1])
    return f"failed: {said}" if done.returncode and passed(said) else said


def _failures(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.startswith(("FAILED", "ERROR")))


def _row(place: Place, said: str, took: float | None) -> dict[str, sheet.Value]:
    return {"where": place.name, "tests": said, "seconds": took, "commit": _commit()}


def _commit() -> str:
    """Return what is tested; with a plus if it was changed since."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip()


ABOUT = """The whole suite, unless the command says `--quick`: then the tests of the
contract, of streams and of LangGraph's internals. *uvloop*: every loop that is not in
virtual time. *Eager tasks*: `asyncio.eager_task_factory` on every loop. Tests that fail
beside all others, four at a time on a machine that may be busy, are run once more by
themselves, and both results stand here. One place alone (`--only`) replaces its row."""


def main(
    chosen: Sequence[Place], *, quick: bool, at_once: int, folder: Path | None
) -> int:
    with ThreadPoolExecutor(at_once) as pool:
        rows = list(pool.map(lambda place: tested(place, quick=quick), chosen))
    columns = {"where": "", "tests": "", "seconds": ".0f", "commit": ""}
    if folder is not None:
        rows = _with_others(rows, folder / "range.json")
    sheets = [sheet.Sheet("Where the tests run", ABOUT, columns, rows)]
    facts = table.facts(" ".join(["python -m benchmarks.range", *sys.argv[1:]]))
    print(sheet.text(sheets, facts))
    if folder is not None:
        sheet.write("range", "The range", sheets, facts, folder)
    return 0 if all(passed(str(row["tests"])) for row in rows) else 1


def _with_others(
    rows: list[dict[str, sheet.Value]], file: Path
) -> list[dict[str, sheet.Value]]:
    """Return `rows` among those of other places that were found before."""
    known: dict[Any, dict[str, sheet.Value]] = {}
    if file.exists():
        (before,) = json.loads(file.read_text())["sheets"]
        known = {row["where"]: row for row in before["rows"]}
    known |= {row["where"]: row for row in rows}
    return [known[place.name] for place in PLACES if place.name in known]


_ALL = r"\d+ passed(, \d+ (skipped|deselected|warnings?|xfailed))*"


def passed(said: str) -> bool:
    """Return whether all tests passed, with others or by themselves."""
    last = said.rpartition(": ")[2]
    return not said.startswith("failed") and re.fullmatch(_ALL, last) is not None


if __name__ == "__main__":
    args = arguments()
    places = [p for p in PLACES if args.only is None or p.name in args.only]
    output = args.output or (None if args.quick else RESULTS)
    sys.exit(main(places, quick=args.quick, at_once=args.at_once, folder=output))
