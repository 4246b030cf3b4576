"""What fails around the work: checkpointers, stores, observers."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.base import PutOp
from langgraph.store.memory import InMemoryStore

from langgraph_deadline.events import observe

from .bench import PATIENCE, Bench

FAILURE = "the disk is full"


class FaultySaver(InMemorySaver):
    """A checkpointer that cannot save from the moment on when the fault begins."""

    bench: Bench

    def fails(self) -> bool:
        """Whether it fails at present."""
        return self.bench.faulty and self.bench.reached

    def put(self, *args: Any, **kwargs: Any) -> Any:
        self.fail()
        return super().put(*args, **kwargs)

    def put_writes(self, *args: Any, **kwargs: Any) -> None:
        self.fail()
        super().put_writes(*args, **kwargs)

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        await self.afail()
        return super().put(*args, **kwargs)

    async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
        await self.afail()
        super().put_writes(*args, **kwargs)

    def fail(self) -> None:
        """Fail, if it is time to."""
        raise NotImplementedError

    async def afail(self) -> None:
        """Fail, if it is time to."""
        self.fail()


class FailingSaver(FaultySaver):
    """A checkpointer whose writes raise."""

    def fail(self) -> None:
        if self.fails():
            raise OSError(FAILURE)


class SlowSaver(FaultySaver):
    """A checkpointer whose writes do not come back before they are released."""

    def fail(self) -> None:
        if self.fails():
            self.bench.released.wait(PATIENCE)

    async def afail(self) -> None:
        while self.fails() and not self.bench.released.is_set():
            await asyncio.sleep(20)


class FailingStore(InMemoryStore):
    """A store whose writes raise."""

    def batch(self, ops: Any) -> Any:
        self._fail(ops)
        return super().batch(ops)

    async def abatch(self, ops: Any) -> Any:
        self._fail(ops)
        return await super().abatch(ops)

    def _fail(self, ops: Any) -> None:
        bench: Bench = self.__dict__["bench"]
        if bench.faulty and bench.reached and any(type(op) is PutOp for op in ops):
            raise OSError(FAILURE)


def surround(bench: Bench, saver: type[Any], store: type[Any]) -> None:
    """Give the bench what its work is surrounded by."""
    bench.saver, bench.store = saver(), store()
    for thing in (bench.saver, bench.store):
        if isinstance(thing, (FaultySaver, FailingStore)):
            thing.bench = bench  # type: ignore[union-attr]


def observed(*, failing: bool) -> AbstractContextManager[Any]:
    """Return a block whose runs are observed by what raises at every event."""
    if not failing:
        return nullcontext()

    def observer(event: Any) -> None:
        msg = f"the observer fails at {event}"
        raise ValueError(msg)

    manager: AbstractContextManager[Any] = observe(observer)
    return manager
