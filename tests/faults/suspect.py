"""The suspect of a cell: the body that fails, as a node, a model or a tool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool

from .bench import Bench


@dataclass(frozen=True)
class Suspect:
    """The body that fails in this cell, as a function of the bench or a coroutine."""

    bench: Bench
    sync: Any
    asynchronous: Any = None
    announced: bool = True
    """Whether its begin is the begin of the fault."""

    @property
    def is_async(self) -> bool:
        """Whether the cell's faulty code is async."""
        return self.bench.is_async and self.asynchronous is not None

    def call(self) -> None:
        """Fail, if this is the turn for it."""
        if self._begins():
            self.sync(self.bench)

    async def acall(self) -> None:
        """Fail, if this is the turn for it."""
        if self._begins():
            await self.asynchronous(self.bench)

    def _begins(self) -> bool:
        if self.bench.faulty and self.announced:
            self.bench.reach()
        return self.bench.faulty

    def around(self, before: Callable[[Any], None], value: Any) -> Any:
        """Return a function that notes its start, fails, and returns `value`."""

        def sync(given: Any) -> Any:
            before(given)
            self.call()
            return value

        async def coroutine(given: Any) -> Any:
            before(given)
            await self.acall()
            return value

        return coroutine if self.is_async else sync

    def node(self, name: str) -> Any:
        """Return the node `name`, which fails."""
        return self.around(lambda _: self.bench.started.append(name), {"log": [name]})


class FaultyModel(BaseChatModel):
    """A model that fails in what it is asked to do."""

    suspect: Any

    @property
    def _llm_type(self) -> str:
        return "faulty"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.suspect.bench.started.append("model")
        self.suspect.call()
        return self._answer()

    def _answer(self) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("fine"))])


class AsyncFaultyModel(FaultyModel):
    """The same for tasks."""

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.suspect.bench.started.append("model")
        await self.suspect.acall()
        return self._answer()


def tools(suspect: Suspect) -> list[BaseTool]:
    """Return a quick tool and one that fails."""
    bench = suspect.bench

    def quick() -> str:
        bench.started.append("quick tool")
        return "quick"

    def faulty() -> str:
        bench.started.append("tool")
        suspect.call()
        return "fine"

    async def afaulty() -> str:
        bench.started.append("tool")
        await suspect.acall()
        return "fine"

    async def aquick() -> str:
        return quick()

    both = (("quick", quick, aquick), ("faulty", faulty, afaulty))
    return [
        StructuredTool.from_function(
            func=None if name == "faulty" and suspect.is_async else sync,
            coroutine=None if name == "faulty" and not suspect.is_async else coroutine,
            name=name,
            description=name,
        )
        for name, sync, coroutine in both
    ]
