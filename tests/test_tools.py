"""Tools with a deadline: they stay what they were, and their calls end on time."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any

import pytest
from langchain.tools import ToolRuntime
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    BaseTool,
    InjectedToolCallId,
    StructuredTool,
    Tool,
    ToolException,
    create_retriever_tool,
    tool,
)
from langgraph.prebuilt import InjectedState, InjectedStore
from langgraph.store.base import BaseStore
from pydantic import BaseModel, PrivateAttr

from langgraph_deadline import (
    DeadlineExceeded,
    _clock,
    fail_after,
    move_on_after,
    remaining,
    with_deadline,
)
from langgraph_deadline.testing import run_virtual

LIMIT = 0.3
"""Seconds of real time, where a thread is the point."""

released = threading.Event()
"""Set at the end of each test: whatever hangs in a thread goes on."""


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    released.clear()
    yield
    released.set()


def nap(seconds: float) -> None:
    """Block for `seconds`, or until the test is over."""
    released.wait(min(seconds, 5.0))


def call(name: str, id: str | None = "1", **args: Any) -> dict[str, Any]:
    """Return a model's call of a tool."""
    return {"name": name, "args": args, "id": id, "type": "tool_call"}


# One tool of each kind, called `look`, which takes some seconds (a text: suits all).


@tool
def look(query: str) -> str:
    """Look something up."""
    nap(float(query))
    return f"after {query}"


async def alook(query: str) -> str:
    """Look something up."""
    await asyncio.sleep(float(query))
    return f"after {query}"


def slook(query: str) -> str:
    """Look something up."""
    nap(float(query))
    return f"after {query}"


class Args(BaseModel):
    """What the classes take."""

    query: str


class SyncClass(BaseTool):
    name: str = "look"
    description: str = "Look something up."
    args_schema: Any = Args

    def _run(self, query: str, config: RunnableConfig) -> str:
        assert "metadata" in config
        return slook(query)


class AsyncClass(BaseTool):
    name: str = "look"
    description: str = "Look something up."
    args_schema: Any = Args
    _asked: list[str] = PrivateAttr(default_factory=list)

    def _run(self, query: str) -> str:
        raise NotImplementedError

    async def _arun(self, query: str, run_manager: Any = None) -> str:
        self._asked.append(query)
        assert run_manager is not None
        return await alook(query)


class BothClass(SyncClass):
    async def _arun(self, query: str) -> str:
        return await alook(query)


class SlowRetriever(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
        slook(query)
        return [Document(f"after {query}")]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
        await alook(query)
        return [Document(f"after {query}")]


KINDS: dict[str, BaseTool] = {
    "sync function": look,
    "async function": tool("look")(alook),
    "both": StructuredTool.from_function(slook, alook, name="look"),
    "Tool": Tool("look", slook, "Look something up."),
    "Tool, both": Tool("look", slook, "Look something up.", coroutine=alook),
    "sync class": SyncClass(),
    "async class": AsyncClass(),
    "class": BothClass(),
    "retriever": create_retriever_tool(SlowRetriever(), "look", "Look something up."),
}
NO_SYNC = ("async function", "async class")
THREADED = ("sync function", "Tool", "sync class")

kinds = pytest.mark.parametrize("kind", KINDS)
sync_kinds = pytest.mark.parametrize("kind", [k for k in KINDS if k not in NO_SYNC])
async_kinds = pytest.mark.parametrize("kind", [k for k in KINDS if k not in THREADED])


# They stay what they were.


@kinds
def test_a_bounded_tool_looks_like_the_original(kind: str) -> None:
    original = KINDS[kind]
    before = original.model_dump(exclude={"args_schema", "callbacks"})
    bounded = with_deadline(original, 1, needs=0.5)
    assert isinstance(bounded, type(original))
    assert type(bounded).__name__ == type(original).__name__
    assert type(bounded).__qualname__ == type(original).__qualname__
    assert bounded is not original
    assert (bounded.name, bounded.description) == (original.name, original.description)
    assert bounded.args == original.args
    assert bounded.args_schema is original.args_schema
    schema, same = bounded.tool_call_schema, original.tool_call_schema
    assert schema.model_json_schema() == same.model_json_schema()
    assert bounded.get_input_jsonschema() == original.get_input_jsonschema()
    assert original.model_dump(exclude={"args_schema", "callbacks"}) == before
    assert not hasattr(original, "deadline_options")


@sync_kinds
@pytest.mark.parametrize("given", ["0", {"query": "0"}, call("look", query="0")])
def test_every_kind_answers_as_before(kind: str, given: Any) -> None:
    original = KINDS[kind]
    assert with_deadline(original, 60).invoke(given) == original.invoke(given)


@kinds
@pytest.mark.parametrize("given", ["0", {"query": "0"}, call("look", query="0")])
def test_every_kind_answers_as_before_in_async_code(kind: str, given: Any) -> None:
    original = KINDS[kind]

    async def both() -> tuple[Any, Any]:
        bounded = with_deadline(original, 60)
        return await bounded.ainvoke(given), await original.ainvoke(given)

    got, expected = asyncio.run(both())
    assert got == expected


@pytest.mark.parametrize("kind", NO_SYNC)
def test_a_tool_without_sync_code_says_so_as_before(kind: str) -> None:
    with pytest.raises(NotImplementedError):
        with_deadline(KINDS[kind], 60).invoke("0")


@pytest.mark.realtime
@sync_kinds
def test_every_kind_ends_at_its_limit(kind: str) -> None:
    bounded = with_deadline(KINDS[kind], LIMIT)
    began = _clock.now()
    message = bounded.invoke(call("look", query="5"))
    assert LIMIT <= _clock.now() - began < LIMIT + 0.6
    is_overrun(message)


@async_kinds
def test_every_async_kind_ends_at_its_limit(kind: str) -> None:
    async def main() -> tuple[Any, float]:
        began = _clock.now()
        message = await with_deadline(KINDS[kind], 2).ainvoke(call("look", query="9"))
        return message, _clock.now() - began

    message, elapsed = run_virtual(main())
    assert elapsed == pytest.approx(2)
    is_overrun(message, limit="2 s")


@pytest.mark.realtime
@pytest.mark.parametrize("kind", THREADED)
def test_a_sync_tool_does_not_hold_up_async_code(kind: str) -> None:
    """Not `asyncio.run` either, which waits for the loop's own threads."""
    began = _clock.now()
    bounded = with_deadline(KINDS[kind], LIMIT)
    message = asyncio.run(bounded.ainvoke(call("look", query="5")))
    assert LIMIT <= _clock.now() - began < LIMIT + 0.6
    is_overrun(message)


def is_overrun(message: Any, limit: str = f"{LIMIT} s") -> None:
    """Check what the model is told of a call that took longer than its limit."""
    assert isinstance(message, ToolMessage)
    assert message.status == "error"
    assert (message.name, message.tool_call_id) == ("look", "1")
    assert "'look'" in message.text
    assert limit in message.text
    assert "outcome is unknown" in message.text
    assert "left" in message.text or "no deadline" in message.text


def test_a_tool_with_everything_keeps_it() -> None:
    """What the model sees, what is injected, and how results and errors are treated."""
    seen: list[Any] = []

    class Heard(BaseCallbackHandler):
        def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append((kwargs["tags"], kwargs["metadata"]["owner"]))

    @tool(response_format="content_and_artifact", return_direct=True)
    def fetch(
        page: str,
        state: Annotated[dict[str, Any], InjectedState],
        store: Annotated[BaseStore | None, InjectedStore()],
        tool_call_id: Annotated[str, InjectedToolCallId],
        config: RunnableConfig,
    ) -> tuple[str, Any]:
        """Fetch a page."""
        if page == "none":
            msg = "no such page"
            raise ToolException(msg)
        return page, (state, store, tool_call_id, config["configurable"]["who"])

    fetch.handle_tool_error = True
    fetch.tags, fetch.metadata = ["web"], {"owner": "us"}
    fetch.callbacks = [Heard()]
    fetch.extras = {"cache": True}
    bounded = with_deadline(fetch, 5)
    schema = bounded.tool_call_schema
    assert schema.model_json_schema() == fetch.tool_call_schema.model_json_schema()
    assert list(schema.model_json_schema()["properties"]) == ["page"]
    assert bounded.return_direct
    assert bounded.extras == {"cache": True}
    injected = call("fetch", page="home", state={"a": 1}, store=None)
    config: Any = {"configurable": {"who": "me"}}
    message = bounded.invoke(injected, config)
    assert message.content == "home"
    assert message.artifact == ({"a": 1}, None, "1", "me")
    assert seen == [(["web"], "us")]
    none = bounded.invoke(call("fetch", page="none", state={}, store=None), config)
    assert none.status == "error"
    assert none.content == "no such page"


def test_a_runtime_argument_is_handed_through() -> None:
    @tool
    def ask(runtime: ToolRuntime) -> str:
        """Ask."""
        return f"{runtime.tool_call_id}, {runtime.state}"

    assert "runtime" not in with_deadline(ask, 5).tool_call_schema.model_fields
    runtime: Any = ToolRuntime(
        state={"a": 1}, tool_call_id="1", config={}, context=None, store=None,
        stream_writer=lambda _: None,
    )  # fmt: skip
    assert with_deadline(ask, 5).invoke(call("ask", runtime=runtime)).content == (
        "1, {'a': 1}"
    )


def test_an_error_of_the_tool_itself_passes_unchanged() -> None:
    @tool
    def broken() -> str:
        """Break."""
        msg = "broken"
        raise LookupError(msg)

    for bounded in (with_deadline(broken, 5), with_deadline(broken)):
        with pytest.raises(LookupError, match="broken"):
            bounded.invoke({})
        with pytest.raises(LookupError, match="broken"):
            asyncio.run(bounded.ainvoke({}))


def test_a_tool_that_raises_its_own_timeout_error_was_not_cut() -> None:
    """A `DeadlineExceeded` of a block in the tool is an error of the tool's own."""

    @tool
    async def impatient() -> str:
        """Wait a little."""
        with fail_after(1):
            await asyncio.sleep(9)
        return "late"

    with pytest.raises(DeadlineExceeded, match="the block exceeded"):
        run_virtual(with_deadline(impatient, 5).ainvoke(call("impatient")))


def test_lists_of_tools_become_lists_of_tools() -> None:
    bounded = with_deadline([look, KINDS["class"]], 1)
    assert [t.name for t in bounded] == ["look", "look"]
    assert with_deadline((), 1) == []
    assert with_deadline([look])[0].invoke("0") == "after 0"


def test_options_that_are_frozen_into_the_copy_stay_with_copies_of_it() -> None:
    bounded = with_deadline(KINDS["async function"], 2)
    again = bounded.model_copy(update={"name": "find"})
    message = run_virtual(again.ainvoke(call("find", query="9")))
    assert message.name == "find"
    assert "'find'" in message.text


# The limit.


def elapsed(bounded: Any, around: float | None = None, **more: Any) -> float:
    """Return how long a call of nine virtual seconds takes."""

    async def main() -> float:
        began = _clock.now()
        try:
            if around is None:
                await bounded.ainvoke(call("look", query="9"))
            else:
                with fail_after(around):
                    await bounded.ainvoke(call("look", query="9"))
        except DeadlineExceeded:
            assert around is not None
        return _clock.now() - began

    return run_virtual(main())


def test_the_tighter_of_two_limits_holds() -> None:
    alooks = KINDS["async function"]
    assert elapsed(with_deadline(with_deadline(alooks, 2), 5)) == pytest.approx(2)
    assert elapsed(with_deadline(with_deadline(alooks, 5), 2)) == pytest.approx(2)
    assert elapsed(with_deadline(with_deadline(alooks, 3))) == pytest.approx(3)
    assert elapsed(with_deadline(alooks, timedelta(seconds=4))) == pytest.approx(4)
    twice = with_deadline(with_deadline(alooks, 5, needs=3), 4)
    assert elapsed(twice) == pytest.approx(4)
    with fail_after(2):
        assert "needs 3 s" in twice.invoke(call("look", query="9")).text


def test_wrapping_again_keeps_what_is_not_given_anew() -> None:
    again = with_deadline(with_deadline(look, 1, on_cut=print), 2)
    assert again.deadline_options().on_cut is print


@pytest.mark.parametrize(("own", "around"), [(2, 5), (5, 2), (None, 2)])
def test_the_limit_of_a_call_is_the_smaller_of_its_own_and_what_is_left(
    own: float | None, around: float
) -> None:
    bounded = with_deadline(KINDS["async function"], own)
    assert elapsed(bounded, around) == pytest.approx(2)


def test_what_encloses_a_call_ends_the_block_not_the_call() -> None:
    """The model has nobody to tell: the block is over."""

    async def main() -> None:
        bounded = with_deadline(KINDS["async function"], 5)
        with pytest.raises(DeadlineExceeded) as caught, fail_after(2):
            await bounded.ainvoke(call("look", query="9"))
        assert caught.value.cause == "deadline"
        with move_on_after(2) as scope:
            await bounded.ainvoke(call("look", query="9"))
        assert scope.cancelled_caught
        message = await bounded.ainvoke(call("look", query="9"))
        is_overrun(message, "5 s")

    run_virtual(main())


@pytest.mark.realtime
def test_what_encloses_a_sync_call_ends_the_block() -> None:
    with move_on_after(LIMIT) as scope:
        with_deadline(look, 5).invoke(call("look", query="5"))
    assert scope.cancelled_caught
    with pytest.raises(DeadlineExceeded) as caught, fail_after(LIMIT):
        with_deadline(look, 5).invoke(call("look", query="5"))
    assert caught.value.cause == "deadline"


def test_a_tool_sees_what_is_left_of_its_limit() -> None:
    @tool
    def left() -> float:
        """Return the seconds left."""
        return remaining()

    assert 4 < with_deadline(left, 5).invoke({}) <= 5
    assert with_deadline(left).invoke({}) == math.inf
    with fail_after(3):
        assert 2 < with_deadline(left, 5).invoke({}) <= 3


def test_a_tool_that_calls_a_tool_cannot_lengthen_its_time() -> None:
    inner = with_deadline(KINDS["async function"], 5, on_exceeded="raise")

    @tool
    async def outer() -> str:
        """Ask another tool."""
        return str(await inner.ainvoke(call("look", query="9")))

    async def main() -> None:
        began = _clock.now()
        message = await with_deadline(outer, 2).ainvoke(call("outer"))
        assert _clock.now() - began == pytest.approx(2)
        assert message.name == "outer"
        assert "2 s" in message.text
        with pytest.raises(DeadlineExceeded) as caught:
            await with_deadline(outer, 7).ainvoke(call("outer"))
        assert caught.value.step == "look"
        assert _clock.now() - began == pytest.approx(7)

    run_virtual(main())


# The answers.


def test_a_call_without_an_id_is_answered_in_plain_text() -> None:
    bounded = with_deadline(KINDS["async function"], 2)
    answer = run_virtual(bounded.ainvoke("9"))
    assert isinstance(answer, str)
    assert "'look'" in answer
    assert "2 s" in answer


def test_the_message_names_what_is_left_around_the_call() -> None:
    async def main() -> Any:
        with fail_after(10):
            bounded = with_deadline(KINDS["async function"], 2)
            return await bounded.ainvoke(call("look", query="9"))

    assert "8 s left" in run_virtual(main()).text


@pytest.mark.realtime
def test_an_overrun_raises_where_that_was_asked_for() -> None:
    bounded = with_deadline(look, LIMIT, on_exceeded="raise")
    for made in (
        functools.partial(bounded.invoke, call("look", query="5")),
        lambda: asyncio.run(bounded.ainvoke(call("look", query="5"))),
    ):
        with pytest.raises(DeadlineExceeded) as caught:
            made()
        assert (caught.value.cause, caught.value.step) == ("step", "look")
        assert caught.value.budget == LIMIT


def test_an_overrun_of_the_async_kind_raises_where_that_was_asked_for() -> None:
    bounded = with_deadline(KINDS["async function"], 2, on_exceeded="raise")
    with pytest.raises(DeadlineExceeded) as caught:
        run_virtual(bounded.ainvoke(call("look", query="9")))
    error = caught.value
    assert type(error) is DeadlineExceeded
    assert (error.cause, error.step, error.budget) == ("step", "look", 2)


# Windows.


def test_a_call_is_refused_where_its_window_is_not_there() -> None:
    ran: list[str] = []

    @tool
    def slow() -> str:
        """Take long."""
        ran.append("slow")
        return "done"

    bounded = with_deadline(slow, 8, needs=5)
    assert bounded.invoke({}) == "done"
    with fail_after(3):
        message = bounded.invoke(call("slow"))
        assert "not started" in message.text
        assert "needs 5 s" in message.text
        assert message.status == "error"
        text = asyncio.run(bounded.ainvoke({}))
        assert "not started" in text
    strict = with_deadline(slow, needs=5, on_exceeded="raise")
    with pytest.raises(DeadlineExceeded) as caught, fail_after(3):
        strict.invoke(call("slow"))
    assert (caught.value.cause, caught.value.step) == ("window", "slow")
    assert caught.value.needed == 5
    assert ran == ["slow"]


def test_nothing_starts_once_what_encloses_it_is_over() -> None:
    ran: list[str] = []

    @tool
    async def quick() -> str:
        """Be quick."""
        ran.append("quick")
        return "done"

    async def main() -> None:
        with move_on_after(1) as scope:
            try:
                await asyncio.sleep(9)
            except asyncio.CancelledError:
                await with_deadline(quick, 5).ainvoke(call("quick"))
        assert scope.cancelled_caught

    run_virtual(main())
    assert ran == []


def test_a_deadline_is_seen_by_langchains_own_retries() -> None:
    """Our error says that it is not to be retried."""
    attempts: list[int] = []

    @tool
    async def hopeless() -> str:
        """Never end."""
        attempts.append(1)
        await asyncio.sleep(99)
        return ""

    bounded = with_deadline(hopeless, 2, on_exceeded="raise")
    with pytest.raises(DeadlineExceeded):
        run_virtual(bounded.with_retry().ainvoke(call("hopeless")))
    assert len(attempts) == 1
