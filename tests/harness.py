"""One body for every way to drive a graph, in virtual or in real time."""

from __future__ import annotations

import asyncio
import functools
import operator
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal, TypedDict

import pytest

from langgraph_deadline import DeadlinePolicy, RunReport, _clock, collect_runs
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


def napper(how: How, seconds: float, update: Any = None) -> Any:
    """Return a node that takes `seconds` and returns `update`, as `how` needs it."""
    if how in SYNC:

        def nap(state: Any) -> Any:
            time.sleep(seconds)
            return update

        return nap

    async def anap(state: Any) -> Any:
        await asyncio.sleep(seconds)
        return update

    return anap


def took(driven: Driven, seconds: float, how: How, margin: float = 0.8) -> bool:
    """Whether a run took `seconds`: exactly in virtual time, else up to `margin` more.

    The async ways are taken to be driven in virtual time, the sync ones never are.
    """
    if how in ASYNC:
        return abs(driven.elapsed - seconds) < 1e-6
    return seconds - 0.01 <= driven.elapsed <= seconds + margin


# A small graph with a fault in it, and what must hold of every run that was cut.


class State(TypedDict, total=False):
    """The log of what finished, in order."""

    log: Annotated[list[str], operator.add]


@dataclass
class Trial:
    """One way to drive a graph: what its budget is, what started, how to let go.

    Async ways run in virtual time, with 10 s, of which 2 are the reserve where there is
    one; sync ones in real time, with `seconds`, to which the reserve is added.
    """

    how: How
    started: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    realtime: bool = False
    seconds: float = 0.25
    reserve: float = 1.0

    @property
    def real(self) -> bool:
        """Whether a real clock is looked at."""
        return self.realtime or self.how in SYNC

    @property
    def budget(self) -> float:
        """The budget of a run without a fallback (in seconds)."""
        return self.seconds if self.real else 10.0

    @property
    def work(self) -> float:
        """The work deadline of a run with a fallback (in seconds)."""
        return self.seconds if self.real else 8.0

    @property
    def reserved(self) -> DeadlinePolicy:
        """The policy of a run with a fallback."""
        reserve = timedelta(seconds=self.reserve if self.real else 2.0)
        return DeadlinePolicy(
            seconds=self.work + reserve.total_seconds(), reserve=reserve
        )

    @property
    def end(self) -> float:
        """The deadline of a run with a fallback (in seconds)."""
        return self.work + (self.reserve if self.real else 2.0)

    def compile(self, builder: Any, mode: str, **kwargs: Any) -> Any:
        """Return the graph with its budget; for `fallback`, with a node `degrade`."""
        if mode == "fallback":
            if "degrade" not in builder.nodes:
                builder.add_node("degrade", self.quick("degrade"))
            return builder.compile(deadline=self.reserved, fallback="degrade", **kwargs)
        policy = DeadlinePolicy(seconds=self.budget, on_exceeded=mode)
        return builder.compile(deadline=policy, **kwargs)

    def quick(self, name: str, **update: Any) -> Any:
        """Return a node that logs its name."""

        def node(state: Any) -> Any:
            self.started.append(name)
            return {"log": [name], **update}

        return self.as_how(node)

    def hang(self, name: str) -> Any:
        """Return a node that never comes back by itself."""

        def node(state: Any) -> Any:
            self.started.append(name)
            self.released.wait(3)
            return {"log": [name]}

        async def anode(state: Any) -> Any:
            self.started.append(name)
            await asyncio.sleep(3600)
            return {"log": [name]}

        return node if self.how in SYNC else anode

    def as_how(self, node: Any) -> Any:
        """Return a quick sync function as the kind of function the graph is for."""
        if self.how in SYNC:
            return node

        @functools.wraps(node)
        async def anode(*args: Any, **kwargs: Any) -> Any:
            return node(*args, **kwargs)

        return anode

    def drive(
        self,
        graph: Any,
        inputs: Any = None,
        config: Any = None,
        *,
        linger: float = 100.0,
        **kwargs: Any,
    ) -> Driven:
        """Run `graph`, then let time pass so that whatever was left behind goes on."""
        inputs = {"log": []} if inputs is None else inputs
        if self.how in SYNC:
            driven = drive(graph, inputs, self.how, config, **kwargs)
            self.released.set()
            time.sleep(0.05)
            return driven

        async def main() -> Driven:
            driven = await adrive(graph, inputs, self.how, config, **kwargs)
            self.released.set()
            await asyncio.sleep(0.05 if self.real else linger)
            return driven

        return asyncio.run(main()) if self.real else run_virtual(main())

    def took(self, driven: Driven, seconds: float) -> None:
        """Check how long the caller waited."""
        if self.real:
            assert seconds - 0.05 <= driven.elapsed < seconds + 0.6
        else:
            assert driven.elapsed == pytest.approx(seconds, abs=1e-6)

    def at_budget(self, driven: Driven, late: float = 0.0) -> None:
        """Check that a run without a fallback ended on time, or `late` s later."""
        self.took(driven, self.budget + late)

    def at_work(self, driven: Driven, late: float = 0.0) -> None:
        """Check that a run with a quick fallback ended at its work deadline."""
        self.took(driven, self.work + late)

    def at_cut(self, driven: Driven, mode: str, late: float = 0.0) -> None:
        """Check that a run of `compile` ended when its work was cut."""
        at = self.work if mode == "fallback" else self.budget
        self.took(driven, at + late)

    def at_end(self, driven: Driven, late: float = 0.0) -> None:
        """Check that a run with a slow fallback ended at its deadline."""
        self.took(driven, self.end + late)
