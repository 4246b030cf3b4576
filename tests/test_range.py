"""What the range says of a place: that all tests passed, or else not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import range as places


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("7800 passed", True),
        ("7800 passed, 3 skipped, 2 warnings", True),
        ("2 failed, 7 passed; those by themselves: 2 passed, 1 deselected", True),
        ("2 failed, 7 passed; those by themselves: 1 failed, 1 passed", False),
        ("7 passed, 1 error", False),
        ("failed: 7 passed", False),
        ("failed: not done in 3600 s", False),
        ("not run: no such Python here", False),
        ("nothing", False),
    ],
)
def test_nothing_is_taken_for_passed_that_is_not(said: str, expected: bool) -> None:
    """Only pytest's own word, and only where nothing contradicts it."""
    assert places.passed(said) is expected


@pytest.mark.parametrize(
    ("out", "code", "said"),
    [
        ("..\n7 passed in 3.2s\nmake: Leaving directory\n", 0, "7 passed"),
        ("= 1 failed, 6 passed in 62.02s (0:01:02) =\n", 2, "1 failed, 6 passed"),
        ("7 passed in 3.2s\n", 1, "failed: 7 passed"),
        ("", 2, "nothing"),
    ],
)
def test_what_pytest_said_is_found(out: str, code: int, said: str) -> None:
    """Whatever stands after it, and not if the command failed all the same."""
    done: Any = subprocess.CompletedProcess([], code, out, "")
    assert places._last_line(done) == said


def test_a_python_that_does_not_run_is_none() -> None:
    """Such as pyenv's shim for one that is not in use."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert places.interpreter(version) == sys.executable
    assert places.interpreter("3.99") is None


def test_one_place_alone_replaces_its_row(tmp_path: Path) -> None:
    """The others stay, in the order of the places; nothing is kept of unknown ones."""
    first, second = (place.name for place in places.PLACES[:2])
    file = tmp_path / "range.json"
    fresh: Any = [{"where": second, "tests": "2 passed"}]
    assert places._with_others(fresh, file) == fresh
    known = [{"where": second, "tests": "1 failed"}, {"where": "no such place"}]
    kept: Any = {"where": first, "tests": "3 passed"}
    file.write_text(json.dumps({"sheets": [{"rows": [kept, *known]}]}))
    assert places._with_others(fresh, file) == [kept, *fresh]
