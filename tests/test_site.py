"""The site is complete, builds without a warning, and needs no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import PATHS, imports

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"

ASSET = re.compile(r"<(?:script|img|source|iframe)[^>]*\ssrc=[\"']?(?:https?:)?//")
STYLE = re.compile(r"<link[^>]*\shref=[\"']?(?:https?:)?//")
# Their classes are what `with_deadline` returns; its options stand with it.
REACHED_BY_WITH_DEADLINE = {"models", "tools"}
IN_STYLES = re.compile(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built from the repository."""
    pytest.importorskip("mkdocs")
    to = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(to)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONUTF8": "1"},
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return to


@pytest.mark.realtime
def test_every_page_is_built(site: Path) -> None:
    """Strictly: a dead link, a page that the menu leaves out, are errors."""
    pages = (ROOT / "docs").rglob("*.md")
    built = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in pages}
    assert [page for page in sorted(built) if not (site / page).is_file()] == []


@pytest.mark.realtime
def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    """No fonts, scripts, pictures or styles: the site works offline."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not ASSET.search(text), page
        assert not STYLE.search(text.replace('rel="canonical"', "")), page
    for style in site.rglob("*.css"):
        assert not IN_STYLES.search(style.read_text(encoding="utf-8")), style


@pytest.mark.realtime
def test_the_reference_is_made_from_the_docstrings(site: Path) -> None:
    """With the attributes' own texts, and the tables of parameters."""
    text = (site / "reference" / "index.html").read_text(encoding="utf-8")
    for heading in ("StateGraph", "with_deadline", "DeadlinePolicy", "collect_runs"):
        assert f'id="langgraph_deadline.{heading}"' in text, heading
    assert "Budget of the run (in seconds)" in text


def test_every_module_that_users_import_has_a_page() -> None:
    """Those that only hold what the package exports are on the package's page."""
    holds = {base[1:] for base, _ in imports("__init__") if base.startswith(".")}
    public = {name for name in PATHS if not name.startswith("_")}
    pages = {path.stem for path in REFERENCE.glob("*.md")} - {"index"}
    assert public - holds - REACHED_BY_WITH_DEADLINE <= pages
    assert pages <= public


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda p: p.stem)
def test_a_page_of_the_reference_is_that_of_its_module(page: Path) -> None:
    """It is made from the docstrings, so that there is one place to keep."""
    module = "langgraph_deadline" + ("" if page.stem == "index" else f".{page.stem}")
    text = page.read_text(encoding="utf-8")
    assert page.stem == "cli" or re.search(rf"^::: {module}$", text, re.MULTILINE)
