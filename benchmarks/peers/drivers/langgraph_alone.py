"""LangGraph without anything else.

Variants: `step_timeout` and `timeout`, each with the whole deadline or, as `/5`, with a
fifth of it, for both limit a step, and the work has five: the model, the tools, the
model, the tools, the model.

Documentation: `Pregel.step_timeout` in the reference ("Maximum time to wait for a step
to complete, in seconds"); `StateGraph.add_node(timeout=)` in the reference and
"Fault tolerance" in the guides.
"""

from __future__ import annotations

from typing import Any

from ..drive import Setup
from ._graph import Conversation, builder, compiled


class PerStep(Conversation):
    """A thread whose limits are those of the turn, divided by the steps."""

    def __init__(self, setup: Setup) -> None:
        self.way, _, steps = setup.variant.partition("/")
        self.share = 1 / int(steps or 1)
        self.setup = setup
        super().__init__(self._with(None))
        self.saver = self.graph.checkpointer

    def _with(self, limit: float | None) -> Any:
        node = {"timeout": limit} if limit and self.way == "timeout" else {}
        graph = compiled(builder(self.setup, **node))
        if self.way == "step_timeout":
            graph.step_timeout = limit
        return graph

    async def turn(self, text: str, deadline: float) -> str:
        self.graph = self._with(deadline * self.share)
        self.graph.checkpointer = self.saver
        return await super().turn(text, deadline)


def build(setup: Setup) -> PerStep:
    return PerStep(setup)
