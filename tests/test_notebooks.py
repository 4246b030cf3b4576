"""The notebooks run from top to bottom, each in a fresh kernel of this interpreter."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = "langgraph-deadline-tests"

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    """Return the outputs of all cells."""
    return [o for cell in notebook.cells for o in cell.get("outputs", ())]


def printed(notebook: Any) -> str:
    """Return everything a notebook shows as text."""
    texts: list[str] = []
    for output in outputs(notebook):
        texts.append(output.get("text", ""))
        texts.append(output.get("data", {}).get("text/plain", ""))
        texts.extend(output.get("traceback", ()))
    return "\n".join(texts)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a kernel of this interpreter, with no one's settings."""
    write_kernel_spec(tmp_path / "share" / "kernels" / KERNEL)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return KERNEL


@pytest.mark.realtime
@notebooks
def test_a_notebook_runs_without_an_error(
    path: Path, kernel: str, tmp_path: Path
) -> None:
    """Nothing but this repository is there for it: no key, no network, no files."""
    notebook = read(path)
    client = NotebookClient(
        notebook,
        kernel_name=kernel,
        timeout=60,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # an error in a cell is raised here
    assert outputs(notebook)


@notebooks
def test_a_notebook_is_kept_with_its_outputs(path: Path) -> None:
    """Readers see them without running anything; `make notebooks` renews them."""
    notebook = read(path)
    nbformat.validate(notebook)
    numbers = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert printed(notebook).strip()
    assert [o for o in outputs(notebook) if o.output_type == "error"] == []


@notebooks
def test_a_notebook_shows_nothing_of_the_machine_it_ran_on(path: Path) -> None:
    """No path of a home, of a temporary folder or of an installed package."""
    shown = printed(read(path))
    assert re.findall(r"/(?:home|root|Users|tmp|work|var)/|site-packages", shown) == []


def test_there_are_notebooks() -> None:
    """An empty folder would pass everything else."""
    assert NOTEBOOKS
