"""One body for every way to drive a graph, in virtual or in real time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

from langgraph_deadline import RunReport, _clock, collect_runs
from langgraph_deadline.testing import run_virtual

How = Literal["invoke", "stream", "ainvoke", "astream"]
SYNC: tuple[How, ...] = ("invoke", "stream")
ASYNC: tuple[How, ...] = ("ainvoke", "astream")
ALL: tuple[How, ...] = (*SYNC, *ASYNC)


@dataclass
class Driven:
    """What the caller of a run has in the end."""

    values: Any = None
    error: BaseException | None = None
    elapsed: float = 0.0
    updates: list[Any] = field(default_factory=list)
    reports: list[RunReport] = field(default_factory=list)

    @property
    def report(self) -> RunReport:
        """The report of the (only) run."""
        (report,) = self.reports
        return report


def drive(
    graph: Any,
    inputs: Any,
    how: How,
    config: Any = None,
    *,
    virtual: bool = False,
    **kwargs: Any,
) -> Driven:
    """Run `graph` as `how` says and return what came of it; errors are returned too.

    Virtual time is for the async ways and async nodes.
    """
    if how in SYNC:
        return _sync(graph, inputs, how, config, kwargs)
    main = adrive(graph, inputs, how, config, **kwargs)
    return run_virtual(main) if virtual else asyncio.run(main)


def _sync(graph: Any, inputs: Any, how: How, config: Any, kwargs: Any) -> Driven:
    driven = Driven()
    began = _clock.now()
    with collect_runs() as driven.reports:
        try:
            if how == "invoke":
                driven.values = graph.invoke(inputs, config, **kwargs)
            else:
                modes = ["updates", "values"]
                for mode, chunk in graph.stream(
                    inputs, config, stream_mode=modes, **kwargs
                ):
                    _note(driven, mode, chunk)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            driven.error = error
    driven.elapsed = _clock.now() - began
    return driven


async def adrive(
    graph: Any, inputs: Any, how: How, config: Any = None, **kwargs: Any
) -> Driven:
    """As `drive`, inside a running event loop."""
    driven = Driven()
    began = _clock.now()
    with collect_runs() as driven.reports:
        try:
            if how == "ainvoke":
                driven.values = await graph.ainvoke(inputs, config, **kwargs)
            else:
                modes = ["updates", "values"]
                async for mode, chunk in graph.astream(
                    inputs, config, stream_mode=modes, **kwargs
                ):
                    _note(driven, mode, chunk)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            driven.error = error
    driven.elapsed = _clock.now() - began
    return driven


def _note(driven: Driven, mode: str, chunk: Any) -> None:
    if mode == "values":
        driven.values = chunk
    else:
        driven.updates.append(chunk)
