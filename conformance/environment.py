"""The environment of the suite: its own venv, and LangGraph's tests from the sdist."""

import json
import subprocess
import sys
import tarfile
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".conformance"
PYTHON = CACHE / "venv" / "bin" / "python"

NEWEST = "1.2.*"
"""The version under test where this interpreter has no LangGraph."""

REQUIREMENTS = (
    "httpx",
    "langgraph-checkpoint-postgres",  # imported by the conftest, never connected
    "langgraph-checkpoint-sqlite",
    "psycopg[binary]",
    "pycryptodome",
    "pytest>=9",
    "pytest-mock",
    "pytest-timeout",
    "pytest-xdist",
    "redis",  # as postgres
    "syrupy",
)
"""What LangGraph's tests import; never langchain, beside which nine of them fail."""


def prepare(version: str | None) -> str:
    """Make venv and tests ready and return the version of LangGraph in use."""
    CACHE.mkdir(exist_ok=True)
    _install(version or _installed() or NEWEST)
    script = "from importlib.metadata import version; print(version('langgraph'))"
    found = _output("-c", script).strip()
    _fetch(found)
    return found


def tests(version: str) -> Path:
    """Return the folder that holds LangGraph's `tests` of a version."""
    return CACHE / "upstream" / version


def fingerprint() -> list[str]:
    """Return what a plain result depends on: Python and every package but ours."""
    packages = _output("-m", "pip", "list", "--format=freeze", "--exclude-editable")
    return [sys.version, *packages.split()]


def _installed() -> str | None:
    """Return the LangGraph version beside the running interpreter, if any."""
    try:
        return metadata.version("langgraph")
    except metadata.PackageNotFoundError:
        return None


def _install(version: str) -> None:
    """Fill the venv, unless it was filled for the same wants before."""
    project = ROOT / "pyproject.toml"
    wants = [f"langgraph=={version}", *REQUIREMENTS]
    stamp = json.dumps([sys.version, wants, _text(project)])
    done = CACHE / "venv" / "stamp.json"
    if _text(done) == stamp:
        return
    print(f"preparing the environment for langgraph {version}", flush=True)
    venv.create(CACHE / "venv", clear=True, with_pip=True)
    _output("-m", "pip", "install", "--upgrade", "pip")
    # One command: the project's own requirements must not move the version.
    editable = ["--editable", str(ROOT)] if project.exists() else []
    _output("-m", "pip", "install", *wants, *editable)
    done.write_text(stamp, encoding="utf-8")


def _fetch(version: str) -> None:
    """Unpack the sdist's tests, and not its package: the installed one is tested."""
    target = tests(version)
    if target.exists():
        return
    sdist = CACHE / "sdist"
    source = ["--no-binary", "langgraph", f"langgraph=={version}"]
    _output("-m", "pip", "download", "--no-deps", "--dest", str(sdist), *source)
    name = f"langgraph-{version}"
    with tarfile.open(sdist / f"{name}.tar.gz") as archive:
        wanted = (f"{name}/tests/", f"{name}/pyproject.toml")
        members = [m for m in archive if m.name.startswith(wanted)]
        archive.extractall(sdist, members, filter="data")
    target.parent.mkdir(exist_ok=True)
    (sdist / name).rename(target)


def _output(*args: str) -> str:
    """Run the venv's Python and return what it prints, or stop with its error."""
    command = [str(PYTHON), *args]
    done = subprocess.run(
        command, capture_output=True, check=False, cwd=CACHE, text=True
    )
    if done.returncode:
        sys.exit(f"python {' '.join(args)} failed:\n{done.stderr.strip()}")
    return done.stdout


def _text(path: Path) -> str:
    """Return a file's text, empty where there is no file."""
    return path.read_text(encoding="utf-8") if path.exists() else ""
