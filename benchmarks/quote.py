"""Quote the newest measurements: `python -m benchmarks.quote`.

The README's table of costs keeps the rows it has, and gets every row that was missed;
below it stands what the other commands found, in short. `docs/proof.md` has their
results as they stand in their files.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from .range import passed as all_passed

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BARS = ROOT / "benchmarks" / "results" / "bars.md"

RESULTS = ROOT / "benchmarks" / "results"
_SECTION = re.compile(r"(## What it costs\n\n).*?(\n\nThe bars are)", re.DOTALL)
_HOLDS = re.compile(
    r"(## What holds when things go wrong\n\n).*?(\n\n## Compatibility)", re.DOTALL
)
_WIDTH = 88


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all table rows in `text`, without the line under the head."""
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in rows if not set(row[0]) <= {"-", ":"}]


def quoted(readme: str, bars: str) -> str:
    """Return `readme` with the figures of `bars` in its section on costs.

    Raises:
        ValueError: If the README has no such section.
    """
    section = _SECTION.search(readme)
    if section is None:
        msg = f"{README.name} has no section '## What it costs'"
        raise ValueError(msg)
    kept = {row[0] for row in rows_of(section[0])}
    head, *rows = rows_of(bars)
    table = [head, ["---"] * len(head)]
    table += [row for row in rows if row[0] in kept or row[-1] == "FAIL"]
    parts = [
        textwrap.fill(bars.splitlines()[0], _WIDTH),
        "`x` is a ratio to plain LangGraph, or to what the row names.",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
    ]
    new = "\n\n".join(parts)
    return readme[: section.end(1)] + new + readme[section.start(2) :]


def with_findings(readme: str) -> str:
    """Return `readme` with what the other commands found, in short.

    Raises:
        ValueError: If the README has no such section.
    """
    section = _HOLDS.search(readme)
    if section is None:
        msg = f"{README.name} has no section '## What holds when things go wrong'"
        raise ValueError(msg)
    return readme[: section.end(1)] + findings() + readme[section.start(2) :]


def findings() -> str:
    """Return what the commands found, a sentence for each, and the table of peers."""
    sentences = (*_faults(), *_load(), *_headlines(), *_range(), *_cases())
    filled = (textwrap.fill(s, 86, break_on_hyphens=False) for s in sentences)
    listed = "\n".join(f"* {textwrap.indent(s, '  ')[2:]}" for s in filled)
    return f"{_FINDINGS}\n\n{listed}\n\n{_peers()}"


def _faults() -> list[str]:
    faults = _results("faults")
    return [
        f"`make faults`: {len(faults['passed'])} of {faults['cells']} combinations of "
        "a fault, a place in the graph and a way to drive it keep every promise, and "
        f"so do {faults['generated']:,} runs of generated graphs."
    ]


def _load() -> list[str]:
    late = {row["figure"]: row for row in _rows("load", "1,000 async")}
    hung, swallowed = (late[f"{kind}: late, p99 (ms)"] for kind in ("hang", "swallow"))
    web = {row["figure"]: row for row in _rows("load", "A web service")}
    wasted = web["tokens generated after they had left"]
    return [
        "`make load`: of 1,000 runs at once every tenth meets a fault. Those that hang "
        f"are {hung['ours']:.1f} ms late at p99, their fallback included "
        f"(`asyncio.wait_for`, which has none: {hung['`wait_for`']:.1f} ms). Those "
        "that swallow their cancellation are late by the grace, "
        f"{swallowed['ours']:.0f} ms; `wait_for` waits until they end by themselves.",
        "`make load`: when a third of the clients of a web service leave early, the "
        f"model generates {wasted['LangGraph']:,.0f} more tokens for them under "
        f"LangGraph, and {wasted['ours']:,.0f} here.",
    ]


def _headlines() -> list[str]:
    retries = _rows("headlines", "Four layers")
    attempts = {row["limit"]: row["attempts"] for row in reversed(retries)}
    cut, waited = (
        next(limit for limit in attempts if limit.startswith(kind))
        for kind in ("one deadline", "`asyncio.wait_for`")
    )
    return [
        f"`make headlines`: retries in three layers make {attempts['none']} attempts "
        f"where nothing limits them, {attempts[waited]} in 10 s under "
        f"`asyncio.wait_for`, and {attempts[cut]} under a deadline of 10 s that keeps "
        "2 s for its fallback."
    ]


def _cases() -> list[str]:
    cases = {row["case"] for row in _results("peers")["rows"]}
    return [
        "`make peers`: the same agent and model under what others offer, with a "
        f"deadline of two seconds, in {len(cases)} cases. Only where it says so is "
        "there a fallback; ours with one wraps the model, which streams it, so that a "
        "cut ends its tokens as well."
    ]


_FINDINGS = """Each line is found by one command, which writes the tables that
[docs/proof.md](docs/proof.md) shows whole, unfavourable rows included."""
_SHOWN = (
    "peer",
    "on time",
    "something to show, on time",
    "nothing running 1 s later",
    "tokens after the deadline",
    "next turn usable",
)


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _rows(name: str, title: str) -> list[dict[str, Any]]:
    """Return the rows of the sheet of a file whose title begins like this."""
    sheets = _results(name)["sheets"]
    return next(sheet["rows"] for sheet in sheets if sheet["title"].startswith(title))


def _range() -> list[str]:
    if not (RESULTS / "range.json").exists():
        return []
    rows = _rows("range", "Where the tests run")
    passed = [row for row in rows if all_passed(str(row["tests"]))]
    return [
        f"`make range`: all tests pass in {len(passed)} of {len(rows)} environments: "
        "Python 3.11 to 3.13, the oldest and the newest LangGraph, uvloop, eager tasks."
    ]


def _peers() -> str:
    head, *rows = rows_of(_first_tables((RESULTS / "peers.md").read_text()))
    places = [head.index(name) for name in _SHOWN]
    table = [list(_SHOWN), ["---"] * len(_SHOWN)]
    table += [[row[at] for at in places] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


PROOF = ROOT / "docs" / "proof.md"

_ABOUT = """# Proof

What is measured against faults, under load and beside other libraries. Each section is
what its command has written to `benchmarks/results`; run it yourself. Unfavourable rows
stay in. What a deadline costs where nothing goes wrong is in the
README, from `make bench`."""

_PARTS = {
    "faults": "## Faults (`make faults`)",
    "load": "## Load (`make load`)",
    "peers": "## Peers (`make peers`)",
    "headlines": "## Headlines of the field (`make headlines`)",
    "range": "## Range (`make range`)",
}
"""The files that are quoted, and what stands above each of them."""


def proof() -> str:
    """Return the page with the results there are."""
    parts = [_ABOUT]
    for name, title in _PARTS.items():
        file = RESULTS / f"{name}.md"
        if file.exists():
            text = (
                _first_tables(file.read_text()) if name == "peers" else file.read_text()
            )
            parts += [title, _below(text)]
    return "\n\n".join(parts) + "\n"


def _below(text: str) -> str:
    """Return a file's text without its title, its headings a level down."""
    text = re.sub(r"\A# .*\n+", "", text)
    return re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE).strip()


def _first_tables(text: str) -> str:
    """Return the text up to the end of its first table."""
    before, _, rest = text.partition("\n|")
    table = "|" + rest.split("\n\n", 1)[0]
    return f"{before}\n{table}\n\nAll cases are in `benchmarks/results/peers.md`."


if __name__ == "__main__":
    PROOF.write_text(proof())
    README.write_text(with_findings(quoted(README.read_text(), BARS.read_text())))
