"""Fixtures for servers that the tests start themselves; the loop they run on."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loops import use_chosen_loop


def pytest_configure() -> None:
    """Use the event loop that the environment asks for, and hear Ctrl-C."""
    use_chosen_loop()
    # A shell has what it starts in the background ignore it, and so would our children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests that need the server share one; each worker would start one."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "postgres" in item.nodeid or "postgres_uri" in fixtures:
            item.add_marker(pytest.mark.xdist_group("postgres"))


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """Start a PostgreSQL cluster of our own and return its address."""
    binaries = _postgres_binaries()
    if binaries is None:
        _unavailable("PostgreSQL's initdb and pg_ctl are not installed")
    home = Path(tempfile.mkdtemp(prefix="langgraph-deadline-pg-"))
    data, port = home / "data", _free_port()
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -k {home} -c fsync=off"
    try:
        account = _account(home)
        user = pwd.getpwuid(os.geteuid()).pw_name if not account else account["user"]
        _call(account, binaries / "initdb", "-D", data, "-A", "trust", "--no-sync",
              "-E", "UTF8")  # fmt: skip
        log = home / "log"
        try:
            _call(account, binaries / "pg_ctl", "-D", data, "-w", "-l", log,
                  "-o", settings, "start")  # fmt: skip
            yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
        finally:
            _call(account, binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _postgres_binaries() -> Path | None:
    """Return the folder of the newest server's programs."""
    candidates = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: float(path.parent.name),
    )
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).resolve().parent)
    usable = [path for path in candidates if (path / "pg_ctl").exists()]
    return usable[-1] if usable else None


def _unavailable(reason: str) -> None:
    """Skip, except where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI is set")
    pytest.skip(reason)


def _account(home: Path) -> dict[str, Any]:
    """Return the account that the server runs in: it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    account = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    os.chown(home, account.pw_uid, account.pw_gid)
    return {"user": account.pw_name, "group": account.pw_gid, "extra_groups": []}


def _call(account: dict[str, Any], *command: object) -> None:
    """Run a program of the server, within a minute."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if "initdb" in str(command[0]) else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
        timeout=60,
        check=False,
        **account,
    )
    if done.returncode != 0:
        said = (done.stdout or b"").decode(errors="replace")
        msg = f"{command[0]} failed ({done.returncode}) for {getpass.getuser()}: {said}"
        raise RuntimeError(msg)


def _free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
