"""Measure what holds under load: `python -m benchmarks.load`."""

from __future__ import annotations

from .. import command
from . import async_crowd, service, soak, sync_crowd

LOADS = {
    "async": async_crowd.measure,
    "sync": sync_crowd.measure,
    "soak": soak.measure,
    "service": service.measure,
}

if __name__ == "__main__":
    command.run("load", "Under load", LOADS, __doc__)
