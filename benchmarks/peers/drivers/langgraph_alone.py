"""LangGraph without anything else.

Variants: `step_timeout` and `timeout`, each with the whole deadline or, as `/5`, with a
fifth of it, for both limit a step, and the work has five: the model, the tools, the
model, the tools, the model. `timeout/5/handled` has an `error_handler` at both nodes as
well, which answers what is open, says a closing message, and ends the run.

Documentation: `Pregel.step_timeout` in the reference ("Maximum time to wait for a step
to complete, in seconds"); `StateGraph.add_node(timeout=)` in the reference and
"Fault tolerance" in the guides (`timeout=`, and `error_handler=` with a `Command`).
"""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, MessagesState
from langgraph.types import Command

from ..drive import Setup
from ._graph import Conversation, builder, closing, compiled


async def out_of_time(state: MessagesState) -> Command[str]:
    return Command(update={"messages": closing(state["messages"])}, goto=END)


class PerStep(Conversation):
    """A thread whose limits are those of the turn, divided by the steps."""

    def __init__(self, setup: Setup) -> None:
        self.way, *more = setup.variant.split("/")
        self.share = 1 / int(more[0]) if more else 1.0
        self.handled = "handled" in more
        self.setup = setup
        super().__init__(self._with(None))
        self.saver = self.graph.checkpointer

    def _with(self, limit: float | None) -> Any:
        node: dict[str, Any] = {}
        if limit and self.way == "timeout":
            node["timeout"] = limit
        if self.handled:
            node["error_handler"] = out_of_time
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
