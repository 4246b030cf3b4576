"""The command `langgraph-deadline`, also as `python -m langgraph_deadline`."""

from __future__ import annotations

import sys

_PARTS = {"typer", "click", "rich", "shellingham"}


def main() -> None:
    """Run the command line, or say what it lacks."""
    try:
        from . import cli  # noqa: PLC0415 - what it needs may not be installed
    except ModuleNotFoundError as error:
        if error.name not in _PARTS:
            raise
        sys.exit(
            f"langgraph-deadline: the command line needs {error.name}, which is not "
            "installed: pip install 'langgraph-deadline[cli]'"
        )
    cli.main()


if __name__ == "__main__":
    main()
