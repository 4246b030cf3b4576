"""The way from a report to its picture, where the library for pictures is installed.

Pictures stand beside the package (`notebook`), with an optional dependency. They are
looked up by name, and only when a report is to be shown.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

_LIBRARY = "matplotlib"


def possible() -> bool:
    """Return whether pictures can be drawn here."""
    return importlib.util.find_spec(_LIBRARY) is not None


def module() -> Any:
    """Return the module that draws.

    Raises:
        ImportError: If its library is not installed.
    """
    if not possible():
        msg = (
            f"pictures need {_LIBRARY}, which is not installed: "
            "pip install 'langgraph-deadline[notebook]'"
        )
        raise ImportError(msg)
    return importlib.import_module("langgraph_deadline.notebook")
