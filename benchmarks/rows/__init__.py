"""What is measured: each function returns the rows of one experiment."""

from collections.abc import Callable

from ..table import Row
from . import expiry, nodes, scale

ROWS: dict[str, Callable[[bool], list[Row]]] = {
    "async-node": nodes.async_node,
    "sync-node": nodes.sync_node,
    "sync-node-one-core": nodes.sync_node_on_one_core,
    "work": nodes.work,
    "late": expiry.late,
    "crowd": expiry.crowd,
    "memory": expiry.memory,
    "nodes": scale.nodes,
    "levels": scale.levels,
    "sends": scale.sends,
}
"""By name; the argument says whether to be quick."""
