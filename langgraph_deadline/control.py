"""Stopping a run by hand."""

from __future__ import annotations

import threading

from langgraph.runtime import RunControl as LangGraphRunControl

from ._run import Run


class RunControl(LangGraphRunControl):
    """LangGraph's `RunControl` with a stop button.

    Pass it as `control=` to any entry point of a bounded graph. Where `request_drain`
    waits for the superstep to end, `cancel` cuts the run now.
    """

    __slots__ = ("_cancelled", "_lock", "_runs")

    def __init__(self) -> None:
        super().__init__()
        self._cancelled: str | None = None
        self._lock = threading.Lock()
        self._runs: list[Run] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled is not None

    @property
    def cancel_reason(self) -> str | None:
        """What `cancel` was told, `None` before."""
        return self._cancelled

    def cancel(self, reason: str = "cancelled") -> None:
        """Cut the run now, from any thread, with the same fallback as at its deadline.

        A run that has not started yet is cut as soon as it does. A second call does
        nothing.
        """
        with self._lock:
            if self._cancelled is not None:
                return
            self._cancelled = reason
            runs = list(self._runs)
        for run in runs:
            run.cut("cancelled")

    def attach(self, run: Run) -> None:
        """Have `run` cut by `cancel`."""
        with self._lock:
            self._runs.append(run)
            cancelled = self._cancelled is not None
        if cancelled:
            run.cut("cancelled")

    def release(self, run: Run) -> None:
        """Forget a run that has ended."""
        with self._lock:
            self._runs.remove(run)
