"""The event loop that the tests use, by the environment: asyncio's, or another one.

`LANGGRAPH_DEADLINE_LOOP=uvloop` is for all loops that are not in virtual time, `eager`
for all: tasks begin where they are created (Python 3.12 or newer).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from langgraph_deadline.testing import VirtualTimeLoop


def use_chosen_loop() -> None:
    """Have every loop that is made from here on be the chosen one."""
    chosen = os.environ.get("LANGGRAPH_DEADLINE_LOOP", "")
    if chosen == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    elif chosen == "eager":
        asyncio.set_event_loop_policy(_EagerPolicy())
        _make_eager(VirtualTimeLoop)
    elif chosen:
        msg = f"LANGGRAPH_DEADLINE_LOOP must be 'uvloop' or 'eager', got {chosen!r}"
        raise ValueError(msg)


class _EagerPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()
        loop.set_task_factory(_eager())
        return loop


def _eager() -> Any:
    factory: Any = vars(asyncio).get("eager_task_factory")
    if factory is None:
        msg = "eager tasks need Python 3.12 or newer"
        raise RuntimeError(msg)
    return factory


def _make_eager(cls: Any) -> None:
    original = cls.__init__

    def eager_init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.set_task_factory(_eager())

    cls.__init__ = eager_init
