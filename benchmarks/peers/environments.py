"""An environment for each peer, made once and kept: `.venv-peers/NAME`."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-peers"
PATIENCE = 900.0  # seconds for one installation
_ADDRESS = re.compile(r"(https?|file)://\S+|/\S*/\S*")


@dataclass(frozen=True)
class Environment:
    """What is installed together; `checkout` is the name of this one, if it is too."""

    name: str
    packages: tuple[str, ...]
    checkout: str | None = None

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        return self.folder / scripts / "python"

    @property
    def wanted(self) -> list[str]:
        """The arguments for `pip install`."""
        return [*(["--editable", "."] if self.checkout else []), *self.packages]

    @property
    def made(self) -> Path:
        return self.folder / ".made"


def ready(environment: Environment) -> str | None:
    """Make the environment unless it is there; return why that failed, or `None`."""
    wanted = "\n".join(environment.wanted)
    if environment.made.exists() and environment.made.read_text() == wanted:
        return None
    environment.made.unlink(missing_ok=True)
    venv.create(environment.folder, clear=True, with_pip=True)
    install = [str(environment.python), "-m", "pip", "install", "--quiet"]
    for what in (["--upgrade", "pip"], environment.wanted):
        try:
            done = subprocess.run(
                [*install, *what],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not installed within {PATIENCE:.0f} s"
        if done.returncode:
            return reason(done.stderr)
    environment.made.write_text(wanted)
    return None


def reason(output: str) -> str:
    """Return the last error that pip told, without addresses and paths."""
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    said = errors[-1].removeprefix("ERROR:").strip() if errors else "pip failed"
    return _ADDRESS.sub("...", said)


def versions(environment: Environment) -> dict[str, str]:
    """Return the versions of what was asked for, as installed."""
    names = [re.split(r"[\[<>=]", package)[0] for package in environment.packages]
    names += [environment.checkout] if environment.checkout else []
    code = "import sys, importlib.metadata as m\n"
    code += "for name in sys.argv[1:]: print(m.version(name))"
    done = subprocess.run(
        [environment.python, "-c", code, *names],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(names, done.stdout.split(), strict=True))
