"""Reproduce the headlines of the field: `python -m benchmarks.headlines`."""

from __future__ import annotations

from .. import command
from . import abandoned, ceiling, hops, retries

HEADLINES = {
    "retries": retries.measure,
    "hops": hops.measure,
    "abandoned": abandoned.measure,
    "ceiling": ceiling.measure,
}

if __name__ == "__main__":
    command.run("headlines", "The headlines of the field", HEADLINES, __doc__)
