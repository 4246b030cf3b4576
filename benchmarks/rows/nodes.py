"""What is paid on every node, deadline reached or not."""

from __future__ import annotations

import asyncio
from typing import Any

from ..graphs import (
    InlineHandler,
    aanswer,
    anoop,
    answer,
    chain,
    computes,
    everything,
    noop,
    sleeps,
)
from ..measure import (
    OURS,
    PLAIN,
    async_runs,
    can_pin,
    interleaved,
    one_core,
    ratio,
    sync_runs,
)
from ..table import Row

LENGTH = 100
WORK = 0.005
TIMEOUT = "LangGraph's `timeout=`"
STEP_TIMEOUT = "LangGraph's `step_timeout`"
HANDLER = "a handler that does nothing"


def async_node(quick: bool) -> list[Row]:
    """Compare chains of async nodes that do nothing."""
    graphs = {
        PLAIN: chain(anoop, LENGTH),
        OURS: chain(anoop, LENGTH, **everything(aanswer)),
        TIMEOUT: chain(anoop, LENGTH, timeout=60),
        STEP_TIMEOUT: _with_step_timeout(chain(anoop, LENGTH)),
    }
    with asyncio.Runner() as runner:
        samplers = async_runs(runner, graphs)
        handled = {HANDLER: graphs[PLAIN]}
        samplers |= async_runs(runner, handled, callbacks=[InlineHandler()])
        samples = interleaved(samplers, 20 if quick else 150)
    what = "async node, everything on"
    others = (TIMEOUT, STEP_TIMEOUT, HANDLER)
    return [
        Row(what, ratio(samples), bar=1.20, aim=1.08),
        *(Row(f"async node, {name}", ratio(samples, name)) for name in others),
    ]


def sync_node(quick: bool) -> list[Row]:
    """Compare chains of sync nodes that do nothing, on all cores."""
    return _sync_rows("sync node", 1.75, None, quick)


def sync_node_on_one_core(quick: bool) -> list[Row]:
    """Compare the same with the process on one core."""
    if not can_pin():
        return []
    with one_core():
        return _sync_rows("sync node on one core", 1.4, 1.3, quick)


def _sync_rows(what: str, bar: float, aim: float | None, quick: bool) -> list[Row]:
    graphs = {
        PLAIN: chain(noop, LENGTH),
        OURS: chain(noop, LENGTH, **everything(answer)),
        STEP_TIMEOUT: _with_step_timeout(chain(noop, LENGTH)),
    }
    samplers = sync_runs(graphs)
    samplers |= sync_runs({HANDLER: graphs[PLAIN]}, callbacks=[InlineHandler()])
    samples = interleaved(samplers, 20 if quick else 150)
    return [
        Row(f"{what}, everything on", ratio(samples), bar=bar, aim=aim),
        *(
            Row(f"{what}, {name}", ratio(samples, name))
            for name in (STEP_TIMEOUT, HANDLER)
        ),
    ]


def work(quick: bool) -> list[Row]:
    """Compare nodes that work: async ones compute, sync ones wait in a call."""
    repetitions = 10 if quick else 60
    with asyncio.Runner() as runner:
        graphs = _pair(computes(WORK), aanswer)
        computing = interleaved(async_runs(runner, graphs), repetitions, warm_up=1)
    graphs = _pair(sleeps(WORK), answer)
    sleeping = interleaved(sync_runs(graphs), repetitions, warm_up=1)
    return [
        Row("async node that computes for 5 ms", ratio(computing), bar=1.02),
        Row("sync node that waits for 5 ms", ratio(sleeping), bar=1.03),
    ]


def _pair(node: Any, fallback: Any) -> dict[str, Any]:
    return {
        PLAIN: chain(node, 20),
        OURS: chain(node, 20, **everything(fallback)),
    }


def _with_step_timeout(graph: Any) -> Any:
    graph.step_timeout = 60
    return graph
