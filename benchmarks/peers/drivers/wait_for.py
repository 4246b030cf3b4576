"""`asyncio.wait_for` around a plain LangGraph graph.

Documentation: "Timeouts" in Python's asyncio reference ("Coroutines and Tasks").
"""

from __future__ import annotations

import asyncio

from ..drive import Setup
from ._graph import Conversation, builder, compiled


class Waited(Conversation):
    async def turn(self, text: str, deadline: float) -> str:
        return await asyncio.wait_for(super().turn(text, deadline), deadline)


def build(setup: Setup) -> Waited:
    return Waited(compiled(builder(setup)))
