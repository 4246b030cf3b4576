"""Whether a node costs the same in graphs of any size, depth and width."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from ..graphs import (
    Node,
    aanswer,
    anoop,
    answer,
    chain,
    everything,
    fan_out,
    nested,
    noop,
)
from ..measure import (
    OURS,
    PLAIN,
    Estimate,
    Samples,
    async_runs,
    can_pin,
    interleaved,
    one_core,
    ratio,
    sync_runs,
)
from ..table import Row

FLAT = 1.1
"""How much more the largest may cost than the smallest, as a ratio of ratios."""

Shape = Callable[..., Any]


def nodes(quick: bool) -> list[Row]:
    """Compare chains of 10 to 1,000 nodes."""
    return _rows("chain of {:,} nodes", chain, (10, 100, 1_000), quick)


def levels(quick: bool) -> list[Row]:
    """Compare graphs with 1 to 5 levels of subgraphs."""
    return _rows("subgraphs {} deep", nested, (1, 2, 3, 4, 5), quick)


def sends(quick: bool) -> list[Row]:
    """Compare supersteps of 10 to 1,000 tasks."""
    return _rows("{:,} Sends at once", fan_out, (10, 100, 1_000), quick)


def _rows(what: str, shape: Shape, sizes: Sequence[int], quick: bool) -> list[Row]:
    rows: list[Row] = []
    for kind in ("async", "sync"):
        ratios: dict[int, Estimate] = {}
        for size in sizes:
            samples = _samples(kind, shape, size, _repetitions(size, quick))
            ratios[size] = ratio(samples)
            rows.append(Row(f"{kind}, {what.format(size)}", ratios[size]))
        smallest = what.format(sizes[0])
        rows.append(_growth(f"{kind}, any other to {smallest}", ratios))
    return rows


def _repetitions(size: int, quick: bool) -> int:
    if size >= 1_000:
        return 3 if quick else 9
    return 7 if quick else 40


def _samples(kind: str, shape: Shape, size: int, repetitions: int) -> Samples:
    if kind == "async":
        with asyncio.Runner() as runner:
            graphs = _pair(shape, anoop, aanswer, size)
            return interleaved(async_runs(runner, graphs), repetitions, warm_up=1)
    # Waking another core is noise here: the bars for it are elsewhere.
    with one_core() if can_pin() else nullcontext():
        graphs = _pair(shape, noop, answer, size)
        return interleaved(sync_runs(graphs), repetitions, warm_up=1)


def _pair(shape: Shape, node: Node, fallback: Node, size: int) -> dict[str, Any]:
    return {PLAIN: shape(node, size), OURS: shape(node, size, **everything(fallback))}


def _growth(what: str, ratios: dict[int, Estimate]) -> Row:
    """Return how much dearer a node is at the worst of the larger sizes."""
    base, *others = ratios.values()
    worst = max(others, key=lambda estimate: estimate.median)
    return Row(what, worst.times(1 / base.median), bar=FLAT)
