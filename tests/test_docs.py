"""Everything the documentation shows runs, and what it quotes is what stands there.

Blocks marked `python` run in the order of their file, in one namespace and in a process
of their own. A block that is not to be run has `<!-- not run: reason -->` on the line
above it. A `text` block with `<!-- printed -->` there is what the file's blocks print.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_layers import BESIDE, LAYERS

import langgraph_deadline
from benchmarks import quote

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DESIGN = ROOT / "docs" / "design.md"
LIMITS = ROOT / "docs" / "limits.md"
BARS = ROOT / "benchmarks" / "results" / "bars.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]

FENCE = re.compile(r"^```(\w*)\s*$")
NOT_RUN = re.compile(r"^<!-- not run: \S.* -->$")
PRINTED = "<!-- printed -->"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def named(path: Path) -> str:
    """Return a page's name for a test's id."""
    return path.relative_to(ROOT).as_posix()


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    language: str
    first: int
    """Number of its first line in the page, from 0."""

    lines: tuple[str, ...]
    mark: str
    """The line above it."""


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        first = number + 1
        end = lines.index("```", first)
        above = lines[number - 1] if number else ""
        yield Block(fence[1], first, tuple(lines[first:end]), above)
        number = end + 1


def source_of(text: str) -> str:
    """Return the blocks that are to be run, each on the lines where the page has it."""
    lines = [""] * len(text.splitlines())
    for block in blocks_of(text):
        if block.language == "python" and not NOT_RUN.match(block.mark):
            lines[block.first : block.first + len(block.lines)] = block.lines
    return "\n".join(lines) + "\n"


def printed_by(text: str) -> list[str]:
    """Return what the page says its blocks print."""
    blocks = [b for b in blocks_of(text) if b.language == "text"]
    return ["\n".join(b.lines) for b in blocks if b.mark == PRINTED]


@pytest.mark.realtime
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_python_block_runs(page: Path, tmp_path: Path) -> None:
    """In order, as a script whose line numbers are the page's."""
    text = page.read_text(encoding="utf-8")
    script = tmp_path / f"{page.stem}.py"
    script.write_text(source_of(text), encoding="utf-8")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(script)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{named(page)}\n{done.stdout}{done.stderr}"
    for printed in printed_by(text):
        assert printed in done.stdout


def test_a_block_that_is_not_run_says_why() -> None:
    """The mark counts only with a reason, and only on the line above its block."""
    page = """
<!-- not run: it needs a server -->
```python
raise SystemExit("server")
```
<!-- not run: -->
```python
first = 1
```

```sh
make test
```
```python
second = 2
```
"""
    source = source_of(page)
    assert "server" not in source
    assert "make" not in source
    assert [line for line in source.splitlines() if line] == ["first = 1", "second = 2"]
    assert page.splitlines().index("second = 2") == source.splitlines().index(
        "second = 2"
    )


@pytest.mark.parametrize("page", LINKED, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    """As far as it stays in the repository."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_limit_names_a_test_that_is_there() -> None:
    """What breaks is shown, not only said: each entry has a test."""
    text = LIMITS.read_text(encoding="utf-8")
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py")
    )
    there = set(re.findall(r"^(?:async )?def (test_\w+)", tests, re.MULTILINE))
    named_there = set(re.findall(r"`(test_\w+)`", text))
    assert named_there - there == set()
    entries = re.split(r"^\* ", text, flags=re.MULTILINE)[1:]
    silent = [entry for entry in entries if not re.search(r"`(?:tests/)?test_", entry)]
    assert silent == []


def test_the_readme_shows_every_public_name() -> None:
    """What is exported is documented where people look first."""
    text = README.read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    assert set(langgraph_deadline.__all__) - words == set()


def cells(line: str) -> list[str]:
    """Return the cells of a table's row, without their padding."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows_below(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without the table's head."""
    text = page.read_text(encoding="utf-8")
    _, found, below = text.partition(f"\n{heading}\n")
    assert found, f"{named(page)} has no {heading!r}"
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None
    return [cells(line) for line in table[0].splitlines()[2:]]


def test_the_costs_in_the_readme_are_the_measured_ones() -> None:
    """Word for word, missed bars included; `make bench` measures them anew."""
    lines = BARS.read_text(encoding="utf-8").splitlines()
    measured = [cells(line) for line in lines if line.startswith("|")]
    quoted = rows_below(README, "## What it costs")
    assert [row for row in quoted if row not in measured] == [], "quote them anew"
    missed = [row for row in measured if row[-1] == "FAIL"]
    assert [row for row in missed if row not in quoted] == [], "quote these as well"
    assert lines[0].split(" by ")[0] in README.read_text(encoding="utf-8")


def test_the_findings_in_the_readme_are_the_measured_ones() -> None:
    """Word for word; `python -m benchmarks.quote` quotes them anew."""
    text = README.read_text(encoding="utf-8")
    assert text == quote.with_findings(text)


def test_the_page_of_proof_quotes_the_results() -> None:
    """Word for word; `python -m benchmarks.quote` quotes them anew."""
    assert quote.PROOF.read_text(encoding="utf-8") == quote.proof()


def test_the_layers_in_the_design_are_the_ones_that_are_held() -> None:
    """The table of `docs/design.md` names every module, in its row."""
    rows = rows_below(DESIGN, "## Layers")
    table = [set(re.findall(r"`(\w+)`", row[1])) for row in rows]
    assert table == [*map(set, LAYERS), set(BESIDE)]
