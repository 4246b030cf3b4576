"""Quote the newest measurements: `python -m benchmarks.quote`.

The README's table of costs keeps the rows it has, and gets every row that was missed.
`docs/proof.md` has the results of the other commands, as they stand in their files.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BARS = ROOT / "benchmarks" / "results" / "bars.md"

_SECTION = re.compile(r"(## What it costs\n\n).*?(\n\nThe bars are)", re.DOTALL)
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


PROOF = ROOT / "docs" / "proof.md"
RESULTS = ROOT / "benchmarks" / "results"

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
    README.write_text(quoted(README.read_text(), BARS.read_text()))
