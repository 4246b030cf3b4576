"""Limits beyond the clock: reserved before a call, booked after it, on the same route.

Most policies here have limits only: there is no time in them, and nothing waits.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import operator
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Any, TypedDict

import pytest
from harness import ALL, ASYNC, SYNC, How, adrive, drive
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START
from langgraph.graph import StateGraph as LangGraphStateGraph
from langgraph.types import Command, RetryPolicy, Send, interrupt
from pydantic import Field, ValidationError

from langgraph_deadline import (
    DeadlineExceeded,
    DeadlineHandler,
    DeadlinePolicy,
    RunControl,
    StateGraph,
    StepBudget,
    detach,
    with_deadline,
)
from langgraph_deadline._ledger import Ledger
from langgraph_deadline._run import run_here
from langgraph_deadline._usage import Call, model_call, was_refused
from langgraph_deadline.limits import Limits
from langgraph_deadline.testing import run_virtual

PRICES = {"scripted": (1.0, 3.0)}
STEP = Call("steps")
TOOL = Call("tool_calls")


# The parts of the graphs.


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


class Scripted(BaseChatModel):
    """A model that says what it used, and counts the requests that it gets."""

    model: str | None = "scripted"
    max_tokens: int | None = None
    used: tuple[int, int] | None = (10, 5)
    text: str = "word"
    fails: Any = None
    made: list[int] = Field(default_factory=list)
    calls_tools: bool = False

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _message(self, kind: type[Any]) -> Any:
        self.made.append(1)
        if self.fails is not None:
            raise self.fails
        calls = []
        if self.calls_tools:
            name = f"call-{len(self.made)}"
            calls = [{"name": "look", "args": {"at": "it"}, "id": name}]
        usage = None
        if self.used is not None:
            prompt, answer = self.used
            usage = {"input_tokens": prompt, "output_tokens": answer}
            usage["total_tokens"] = prompt + answer
        return kind(self.text, usage_metadata=usage, tool_calls=calls)

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        message = self._message(AIMessage)
        return ChatResult(generations=[ChatGeneration(message=message)])


class Streaming(Scripted):
    """The same, in pieces."""

    breaks: bool = False

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        message = self._message(AIMessageChunk)
        yield ChatGenerationChunk(message=message)
        if self.breaks:
            raise ConnectionResetError("in the middle")


@tool
def look(at: str) -> str:
    """Look at something."""
    return f"seen {at}"


def asks(how: How, model: Any, name: str = "work") -> Any:
    """Return a node that asks `model` once."""

    def node(state: State) -> State:
        return {"log": [f"{name}: {model.invoke('a question').text}"]}

    async def anode(state: State) -> State:
        answer = await model.ainvoke("a question")
        return {"log": [f"{name}: {answer.text}"]}

    return node if how in SYNC else anode


def uses(how: How) -> Any:
    """Return a node that uses a tool once."""

    def node(state: State) -> State:
        return {"log": [look.invoke({"at": "work"})]}

    async def anode(state: State) -> State:
        return {"log": [await look.ainvoke({"at": "work"})]}

    return node if how in SYNC else anode


def says(name: str, log: list[str] | None = None) -> Any:
    """Return a node that logs its name, and what there is in `log`."""

    def say(state: State) -> State:
        if log is not None:
            log.extend(state["log"])
        return {"log": [name]}

    return say


def limited(limits: Limits | None, **options: Any) -> DeadlinePolicy:
    """Return a policy without any time in it."""
    return DeadlinePolicy(limits=limits, **options)


def endless(node: Any, policy: DeadlinePolicy, fallback: Any = None) -> Any:
    """Return a graph that does nothing but `node`, again and again."""
    builder = StateGraph(State).add_node("work", node)
    builder.add_edge(START, "work").add_edge("work", "work")
    return builder.compile(deadline=policy, fallback=fallback)


def sequence(*nodes: tuple[str, Any], graph: type[Any] = StateGraph) -> Any:
    """Return a builder of `nodes`, one after the other."""
    builder = graph(State).add_sequence(list(nodes))
    return builder.add_edge(START, nodes[0][0])


# What an owner writes.


def test_limits_survive_json() -> None:
    """What is written is what is read, inside a policy too."""
    limits = Limits(
        steps=5, model_calls=4, tool_calls=3, tokens=1000, cost=0.5, prices=PRICES
    )
    policy = limited(limits)
    text = policy.model_dump_json()
    assert DeadlinePolicy.model_validate_json(text) == policy
    assert DeadlinePolicy.model_validate(json.loads(text)).limits == limits
    written = '{"limits": {"cost": 1, "prices": {"m": [0.25, 1]}}}'
    assert DeadlinePolicy.model_validate_json(written).limits == Limits(
        cost=1.0, prices={"m": (0.25, 1.0)}
    )


def test_limits_have_equal_copies_and_are_frozen() -> None:
    """Neither an assignment nor the dictionary they were made from changes them."""
    prices = dict(PRICES)
    limits = Limits(cost=1, prices=prices)
    assert copy.deepcopy(limits) == limits
    assert pickle.loads(pickle.dumps(limits)) == limits  # noqa: S301, RUF100
    prices["other"] = (1.0, 1.0)
    assert set(limits.prices) == {"scripted"}
    with pytest.raises(ValidationError):
        limits.tokens = 5  # type: ignore[misc]


NO_COUNT: list[Any] = [0, -1, 1.5, 2.0, math.nan, math.inf, True, False, "5", b"5", [5]]
NO_COST: list[Any] = [0, -0.1, math.nan, math.inf, True, "1", [1], 10**400]


@pytest.mark.parametrize("name", ["steps", "model_calls", "tool_calls", "tokens"])
@pytest.mark.parametrize("bad", NO_COUNT)
def test_c13_a_limit_is_a_whole_number_above_0(name: str, bad: Any) -> None:
    """Anything else is refused, with the argument's name and the value."""
    with pytest.raises(ValueError, match=f"{name} must be a whole number above 0"):
        Limits(**{name: bad})
    with pytest.raises(ValueError, match=rf"limits\.{name}"):
        DeadlinePolicy.model_validate({"limits": {name: bad}})
    assert getattr(Limits(**{name: 1}), name) == 1


@pytest.mark.parametrize("bad", NO_COST, ids=lambda bad: repr(bad)[:9])
def test_c13_a_cost_is_a_number_above_0(bad: Any) -> None:
    """Anything else is refused, with the argument's name."""
    with pytest.raises(ValueError, match="cost must be a number above 0"):
        Limits(cost=bad, prices=PRICES)


def test_c13_a_cost_needs_prices() -> None:
    """The prices are the user's: there is no list of them here."""
    with pytest.raises(ValueError, match=r"cost \(2\.0\) needs prices"):
        Limits(cost=2)


@pytest.mark.parametrize(
    "bad", [1, (1,), (1, 2, 3), (1, -1), (1, True), (1, "2"), (1, math.nan), None, "ab"]
)
def test_c13_a_price_is_two_numbers(bad: Any) -> None:
    """Of the prompt and of the answer; zero is a price."""
    with pytest.raises(ValueError, match="prices must map a model's name to two"):
        Limits(prices={"scripted": bad})
    assert Limits(prices={"local": (0, 0)}).price_of("local") == (0, 0)


def test_c13_an_unknown_limit_is_named() -> None:
    """A misspelt field is not silently ignored."""
    with pytest.raises(ValueError, match="token\n"):
        Limits(token=5)  # type: ignore[call-arg]


# The books.


def asked(prompt: int, answer: int | None, model: str = "scripted") -> Call:
    """Return a model's call."""
    return Call("model_calls", model, prompt, answer)


amounts = st.integers(0, 60)
calls = st.tuples(amounts, amounts, st.none() | st.tuples(amounts, amounts))
endings = st.sampled_from(["book", "release", "keep", "leave open", "say nothing"])


@given(st.lists(st.tuples(calls, endings), max_size=40), st.integers(1, 300))
def test_reservations_never_exceed_a_limit_between_them(
    made: list[tuple[Any, str]], most: int
) -> None:
    """Whatever ends when and how, as long as no call uses more than it reserved."""
    ledger = Ledger(Limits(tokens=most, cost=most / 1e6, prices=PRICES, model_calls=20))
    truly = cost = 0
    for key, ((prompt, answer, used), ending) in enumerate(made):
        if ledger.reserve(asked(prompt, answer), key) is not None:
            continue
        # A call that nobody books may have used all of what it reserved.
        spent = (prompt, answer)
        if ending == "book" and used is not None:
            spent = (min(used[0], prompt), min(used[1], answer))
            ledger.book(key, spent)
        elif ending == "release":
            spent = (0, 0)
            ledger.release(key)
        elif ending == "keep":
            ledger.keep(key)
        elif ending == "say nothing":
            ledger.book(key, None, estimate=answer + 1000)
        truly += sum(spent)
        cost += spent[0] + 3 * spent[1]
        assert truly <= most
        assert cost <= most
        left = ledger.tokens_left()
        assert left is not None
        assert left == most - truly
    assert ledger.own.counts["model_calls"] <= 20


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_the_order_of_starts_and_ends_does_not_matter(
    starts: list[int], ends: list[int]
) -> None:
    """What is left is exactly the same, costs included."""
    limits = Limits(tokens=10_000, cost=1, prices={"scripted": (0.1, 0.7)})
    ledger = Ledger(limits)
    for key in starts:
        assert ledger.reserve(asked(100 + key, 50), key) is None
    for key in ends:
        ledger.book(key, (3 * key, key))
    assert ledger.tokens_left() == 10_000 - 60
    assert ledger.usage()["cost"] == pytest.approx((45 * 0.1 + 15 * 0.7) / 1e6)
    assert ledger.own.cost == round(45 * 0.1e6 + 15 * 0.7e6)


def test_costs_are_added_without_rounding() -> None:
    """Three times a third of the limit is the limit, and not a little more."""
    limits = Limits(cost=0.3, prices={"scripted": (100_000, 0)})
    ledger = Ledger(limits)
    assert [ledger.reserve(asked(1, 0)) for _ in range(3)] == [None] * 3
    assert ledger.reserve(asked(1, 0)) is not None


@pytest.mark.parametrize("kind", ["steps", "model_calls", "tool_calls"])
def test_threads_that_race_for_the_last_call_do_not_share_it(kind: Any) -> None:
    """However many ask at the same time, as many are let through as there are."""
    ledger = Ledger(Limits(**{kind: 100}), Ledger(Limits(tokens=5_000)))
    call = Call(kind, "scripted", 3, 4)
    ready = threading.Barrier(8)

    def race() -> int:
        ready.wait(10)
        return sum(ledger.reserve(call) is None for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        let_through = [pool.submit(race) for _ in range(8)]
        assert sum(future.result(30) for future in let_through) == 100
    tokens = 700 if kind == "model_calls" else 0
    assert ledger.tokens_left() == 5_000 - tokens


def test_what_was_not_used_can_be_used_by_others() -> None:
    """The worst case is given back as soon as the real usage is known."""
    ledger = Ledger(Limits(tokens=100))
    assert ledger.reserve(asked(10, 80), "first") is None
    refused = ledger.reserve(asked(10, 10), "second")
    assert refused is not None
    assert (refused[1].cause, refused[1].used, refused[1].asked) == ("tokens", 90, 20)
    ledger.book("first", (12, 8))
    assert ledger.tokens_left() == 80
    assert ledger.reserve(asked(10, 10), "second") is None


def test_a_call_is_counted_once() -> None:
    """Its start and its end may be told more than once, as in nested graphs."""
    ledger = Ledger(Limits(tokens=100))
    for _ in range(2):
        assert ledger.reserve(asked(10, 10), "a") is None
    assert ledger.granted("a") == 10
    for _ in range(2):
        ledger.book("a", (10, 10))
        ledger.release("a")
    assert ledger.tokens_left() == 80
    assert ledger.granted("a") is None
    assert ledger.usage()["model_calls"] == 1


def test_nested_books_let_a_call_through_together_or_not_at_all() -> None:
    """What the outer one refuses is not counted by the inner one, and vice versa."""
    outer = Ledger(Limits(tokens=100))
    inner = Ledger(Limits(model_calls=2), outer)
    assert outer.reserve(asked(20, 20), "a") is None
    assert inner.reserve(asked(20, 20), "b") is None
    refused = inner.reserve(asked(20, 20), "c")
    assert refused is not None
    assert refused[0] is outer.own
    assert inner.usage()["model_calls"] == 1
    inner.book("b", (5, 5))
    assert inner.tokens_left() == outer.tokens_left() == 50
    assert inner.reserve(asked(1, 1), "d") is None
    refused = inner.reserve(asked(1, 1), "e")
    assert refused is not None
    assert refused[0] is inner.own
    assert outer.usage()["model_calls"] == 3
    assert inner.refusal("tokens") == outer.refusal("tokens")
    assert outer.refusal("model_calls") is None


def test_a_spared_book_counts_and_does_not_refuse() -> None:
    """As for the fallback; the others still do refuse."""
    outer = Ledger(Limits(tokens=30))
    inner = Ledger(Limits(model_calls=1), outer)
    assert inner.reserve(asked(10, 0)) is None
    exceeded = inner.reserve(asked(10, 0), spared=[inner.own])
    assert exceeded is not None
    assert exceeded[0] is inner.own
    assert inner.usage()["model_calls"] == 2
    refused = inner.reserve(asked(20, 0), spared=[inner.own])
    assert refused is not None
    assert refused[0] is outer.own
    assert inner.usage()["model_calls"] == 2


@given(st.integers(0, 400), st.integers(1, 300), st.integers(1, 300))
def test_what_is_affordable_is_let_through_and_one_token_more_is_not(
    prompt: int, tokens: int, millionths: int
) -> None:
    """By tokens and by cost, here and around."""
    outer = Ledger(Limits(cost=millionths / 1e6, prices=PRICES))
    ledger = Ledger(Limits(tokens=tokens), outer)
    most = ledger.output_tokens_affordable("scripted", prompt)
    assert most is not None
    if prompt <= tokens and prompt <= millionths:
        assert ledger.reserve(asked(prompt, most + 1)) is not None
        assert ledger.reserve(asked(prompt, most)) is None
    else:
        assert most == 0


def test_what_is_affordable_without_limits_is_not_limited() -> None:
    """`None` stands for that, and so do free answers."""
    assert Ledger(None).tokens_left() is None
    assert Ledger(Limits(steps=1)).output_tokens_affordable("any", 10) is None
    free = Ledger(Limits(cost=1, prices={"local": (0, 0)}))
    assert free.output_tokens_affordable("local", 10**9) is None
    paid = Ledger(Limits(tokens=5))
    assert paid.output_tokens_affordable("any", 9, spared=[paid.own]) is None


def test_usage_that_is_not_known_is_absent_not_zero() -> None:
    """And what is known of the other calls is there."""
    ledger = Ledger(Limits(prices=PRICES))
    assert ledger.usage()["input_tokens"] == 0
    assert ledger.usage()["cost"] == 0
    ledger.reserve(asked(0, None), "a")
    ledger.book("a", None, estimate=7)
    usage = ledger.usage()
    assert (usage["input_tokens"], usage["cost"]) == (None, None)
    assert usage["unreported"] == 1
    ledger.reserve(asked(0, None), "b")
    ledger.book("b", (1000, 2000))
    usage = ledger.usage()
    assert (usage["input_tokens"], usage["output_tokens"]) == (1000, 2000)
    assert usage["cost"] == pytest.approx(0.007)
    assert usage["unreported"] == 1


# What is read from LangChain's events.


@pytest.mark.parametrize(
    ("params", "metadata", "model", "answer"),
    [
        ({"model": "a", "model_name": "b", "max_tokens": 5}, {}, "a", 5),
        ({"model_name": "b", "max_completion_tokens": 6}, {}, "b", 6),
        ({"model_id": "c", "max_output_tokens": 7}, {}, "c", 7),
        ({"max_tokens": 3, "max_completion_tokens": 9}, {}, "Fake", 3),
        ({"model": "a", "max_tokens": 5, "n": 4}, {}, "a", 20),
        ({}, {"ls_model_name": "d", "ls_max_tokens": 8}, "d", 8),
        ({"model": None, "max_tokens": None}, {"ls_max_tokens": 8}, "Fake", 8),
        ({"num_predict": -1}, {}, "Fake", None),
        ({"max_tokens": True, "model": object()}, {}, "Fake", None),
    ],
)
def test_the_most_that_a_call_may_use_is_read_from_its_parameters(
    params: Any, metadata: Any, model: str, answer: int | None
) -> None:
    """Under the names that providers give it, the call's own first."""
    event = {"invocation_params": params, "metadata": metadata}
    call = model_call(["12345678"], {"name": "Fake"}, event, weighs=True)
    assert (call.model, call.prompt, call.answer) == (model, 2, answer)


def test_tools_are_a_part_of_the_prompt() -> None:
    """They are sent along, and can be most of it."""
    event = {"invocation_params": {"tools": [{"name": "x" * 4000}]}}
    call = model_call([[HumanMessage("hello")]], None, event, weighs=True)
    assert call.model is None
    assert call.prompt > 1000


class Answered(Exception):  # noqa: N818 - it stands for a vendor's error
    """An error that a provider answered with."""

    def __init__(self, status: int) -> None:
        self.status_code = status


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (Answered(429), True),
        (Answered(503), True),
        (Answered(200), False),
        (ConnectionRefusedError(), True),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
        (asyncio.CancelledError(), False),
        (ValueError(), False),
        (DeadlineExceeded(cause="window"), True),
        (DeadlineExceeded(), False),
        (None, False),
    ],
)
def test_only_a_refused_request_is_known_to_use_nothing(
    error: Any, refused: bool
) -> None:
    """Directly, or as the cause of what the vendor's client makes of it."""
    assert was_refused(error) is refused
    if error is not None and not isinstance(error, DeadlineExceeded):
        wrapped = RuntimeError("the client's")
        wrapped.__cause__ = error
        assert was_refused(wrapped) is refused


# Each limit, each way to drive a graph.

# By name: the limits, how often the node ends, how often its model is asked.
EACH: dict[str, tuple[Limits, int, int]] = {
    "steps": (Limits(steps=3), 3, 3),
    "model_calls": (Limits(model_calls=3), 3, 3),
    # The prompt is 7 tokens by estimate, the longest answer 20; 10 and 5 are used.
    "tokens": (Limits(tokens=15 * 2 + 27), 3, 3),
    "cost": (Limits(cost=(25 * 2 + 67) / 1e6, prices=PRICES), 3, 3),
}


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("cause", EACH)
@pytest.mark.parametrize("kind", [Scripted, Streaming])
def test_a_limit_leads_to_the_fallback_like_a_deadline(
    kind: type[Scripted], cause: str, how: How
) -> None:
    """Nothing that does not fit is started; what finished is there."""
    limits, ended, made = EACH[cause]
    model = kind(max_tokens=20)
    seen: list[str] = []
    graph = endless(asks(how, model), limited(limits), says("degraded", seen))
    driven = drive(graph, {}, how)
    assert driven.error is None
    assert seen == ["work: word"] * ended
    assert driven.values["log"] == [*seen, "degraded"]
    assert len(model.made) == made
    report = driven.report
    assert (report.outcome, report.cause) == ("limit", cause)
    nodes = [step for step in report.steps if step.kind != "model"]
    assert [step.cause for step in nodes] == [None] * ended + [cause, None]
    assert nodes[-1].kind == "fallback"
    assert len(report.model_calls) == made
    assert report.usage is not None
    assert report.usage.model_calls == made
    assert report.usage.input_tokens == 10 * made
    assert report.usage.output_tokens == 5 * made
    assert report.usage.unreported == 0
    assert report.stragglers == []


@pytest.mark.parametrize("how", ALL)
def test_a_limit_of_tool_calls_leads_to_the_fallback(how: How) -> None:
    """Tools that are called by hand count as well."""
    policy = limited(Limits(tool_calls=2))
    driven = drive(endless(uses(how), policy, says("degraded")), {}, how)
    assert driven.values["log"] == ["seen work", "seen work", "degraded"]
    assert (driven.report.outcome, driven.report.cause) == ("limit", "tool_calls")
    assert driven.report.usage is not None
    assert driven.report.usage.tool_calls == 2


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    ("cause", "says_what"),
    [
        ("steps", r"'work' asked for one more step, and 3 of 3 were used. .*steps="),
        ("model_calls", r"'work' asked for one more model call, and 3 of 3 were used"),
        ("tokens", r"asked for 27 tokens \(7 of prompt, 20 of answer\), and 45 of 57 "),
        ("cost", r"asked for 6.7e-05 of cost .*, and 7.5e-05 of 0.000117 were used"),
    ],
)
def test_without_a_fallback_the_error_says_which_limit_and_by_how_much(
    cause: str, says_what: str, how: How
) -> None:
    """What was asked for, how much was used, what the limit is, and what to do."""
    limits, _, made = EACH[cause]
    model = Scripted(max_tokens=20)
    driven = drive(endless(asks(how, model), limited(limits)), {}, how)
    assert type(driven.error) is DeadlineExceeded
    assert (driven.error.cause, driven.error.step) == (cause, "work")
    with pytest.raises(DeadlineExceeded, match=says_what):
        raise driven.error
    assert "fallback" in str(driven.error)
    assert len(model.made) == made
    assert (driven.report.outcome, driven.report.cause) == ("limit", cause)


@pytest.mark.parametrize("how", ALL)
def test_a_limit_can_end_the_run_with_the_state_so_far(how: How) -> None:
    """`on_exceeded="return"` does for a limit what it does for a deadline."""
    policy = limited(Limits(model_calls=2), on_exceeded="return")
    driven = drive(endless(asks(how, Scripted()), policy), {}, how)
    assert driven.values["log"] == ["work: word"] * 2
    assert (driven.report.outcome, driven.report.cause) == ("limit", "model_calls")


@pytest.mark.parametrize("how", ALL)
def test_a_run_within_its_limits_is_left_alone(how: How) -> None:
    """To the last step, call and token."""
    model = Scripted(max_tokens=5, used=(7, 5))
    limits = Limits(steps=3, model_calls=2, tool_calls=1, tokens=24)
    builder = sequence(
        ("a", asks(how, model)), ("b", uses(how)), ("c", asks(how, model))
    )
    driven = drive(builder.compile(deadline=limited(limits)), {}, how)
    assert driven.values["log"] == ["work: word", "seen work", "work: word"]
    assert (driven.report.outcome, driven.report.cause) == ("completed", None)
    assert driven.report.usage is not None
    assert driven.report.usage.model_dump() == {
        "steps": 3,
        "model_calls": 2,
        "tool_calls": 1,
        "input_tokens": 14,
        "output_tokens": 10,
        "cost": None,
        "unreported": 0,
    }


@pytest.mark.parametrize("how", ALL)
def test_limits_and_a_deadline_may_stand_side_by_side(how: How) -> None:
    """Whichever comes first ends the work, and is the cause."""
    limits = Limits(model_calls=2)
    node = asks(how, Scripted())
    graph = endless(node, DeadlinePolicy(seconds=60, limits=limits), says("degraded"))
    driven = drive(graph, {}, how)
    assert driven.report.cause == "model_calls"
    assert driven.report.budget == 60
    short = drive(graph, {}, how, deadline=DeadlinePolicy(seconds=0.0001, reserve=0))
    assert short.report.cause == "deadline"
    # A number given with a call replaces the seconds, and nothing else.
    assert drive(graph, {}, how, deadline=30).report.cause == "model_calls"


@pytest.mark.parametrize("how", ALL)
def test_limits_can_be_given_with_a_call(how: How) -> None:
    """In a policy for this run, in place of the compiled one."""
    graph = endless(asks(how, Scripted()), limited(Limits(model_calls=5)), says("end"))
    given = limited(Limits(model_calls=1))
    assert drive(graph, {}, how, deadline=given).values["log"] == ["work: word", "end"]
    assert len(drive(graph, {}, how).values["log"]) == 6


# The fallback.


@pytest.mark.parametrize("how", ALL)
def test_what_the_fallback_uses_is_counted_and_not_refused(how: How) -> None:
    """Nor is what it leads to, or a graph that is called in it."""
    model = Scripted()
    inner = sequence(("inner", asks(how, model, "inner")), graph=LangGraphStateGraph)
    builder = StateGraph(State).add_node("work", asks(how, model))
    builder.add_node("degrade", asks(how, model, "degrade"))
    builder.add_node("after", inner.compile())
    builder.add_edge(START, "work").add_edge("work", "work")
    builder.add_edge("degrade", "after")
    graph = builder.compile(deadline=limited(Limits(model_calls=1)), fallback="degrade")
    driven = drive(graph, {}, how)
    assert driven.error is None
    assert driven.values["log"][:2] == ["work: word", "degrade: word"]
    assert driven.values["log"][-1] == "inner: word"
    assert driven.report.usage is not None
    assert driven.report.usage.model_calls == 3


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("limits", [Limits(steps=2), Limits(model_calls=2)])
def test_a_fallback_at_work_as_an_ordinary_node_answers_all_the_same(
    limits: Limits, how: How
) -> None:
    """It may be a part of the graph, and be what exceeds the limit."""
    model = Scripted()
    builder = sequence(
        ("a", asks(how, model, "a")),
        ("b", asks(how, model, "b")),
        ("answer", asks(how, model, "answer")),
    )
    graph = builder.compile(deadline=limited(limits), fallback="answer")
    driven = drive(graph, {}, how)
    assert driven.error is None
    assert driven.values["log"] == ["a: word", "b: word", "answer: word"]
    assert driven.report.outcome == "limit"


@pytest.mark.parametrize("how", ALL)
def test_what_is_used_instead_of_a_step_is_no_step(how: How) -> None:
    """Its node has been counted."""

    def slow(state: State) -> State:
        msg = "not enough time"
        raise DeadlineExceeded(msg, cause="window")

    budget = StepBudget(otherwise={"log": ["otherwise"]})
    policy = limited(Limits(steps=2), steps={"slow": budget})
    builder = sequence(("slow", slow), ("next", says("next")))
    driven = drive(builder.compile(deadline=policy), {}, how)
    assert driven.values["log"] == ["otherwise", "next"]


# What counts as a step.


@pytest.mark.parametrize("how", ALL)
def test_the_start_is_no_step_and_a_retry_is_none_either(how: How) -> None:
    """Also where START has a conditional edge of its own."""
    attempts: list[int] = []

    def flaky(state: State) -> State:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError
        return {"log": ["flaky"]}

    policy = RetryPolicy(initial_interval=0.001, jitter=False)
    builder = StateGraph(State).add_node("flaky", flaky, retry_policy=policy)
    builder.add_node("last", says("last")).add_edge("flaky", "last")
    builder.add_conditional_edges(START, lambda state: "flaky")
    graph = builder.compile(deadline=limited(Limits(steps=2)))
    driven = drive(graph, {}, how)
    assert driven.values["log"] == ["flaky", "last"]
    assert len(attempts) == 3


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_tasks_of_a_functional_graph_are_steps(how: How) -> None:
    """Beside the entrypoint itself."""
    done: list[int] = []

    @task
    def double(number: int) -> int:
        done.append(number)
        return 2 * number

    @task
    async def adouble(number: int) -> int:
        done.append(number)
        return 2 * number

    def body(number: int) -> int:
        for _ in range(10):
            number = double(number).result()
        return number

    async def abody(number: int) -> int:
        for _ in range(10):
            number = await adouble(number)
        return number

    policy = limited(Limits(steps=4))
    graph = with_deadline(entrypoint()(body if how in SYNC else abody), policy)
    driven = drive(graph, 1, how)
    assert isinstance(driven.error, DeadlineExceeded)
    assert driven.error.cause == "steps"
    assert done == [1, 2, 4]


# Agents.


def agent(model: Any, limits: Limits, **options: Any) -> Any:
    """Return an agent that looks again and again, and gives up at a limit."""

    def give_up(state: Any) -> Any:
        return {"messages": [AIMessage("no more")]}

    return with_deadline(
        create_agent(model, [look]), limited(limits, **options), fallback=give_up
    )


QUESTION = {"messages": [HumanMessage("what is it?")]}


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    ("limits", "cause", "asked_for", "looked"),
    [
        (Limits(model_calls=3), "model_calls", 3, 3),
        (Limits(tool_calls=2), "tool_calls", 3, 2),
        (Limits(steps=4), "steps", 2, 2),
        # The prompts are about 7, 42 and 77 tokens long.
        (Limits(tokens=75), "tokens", 2, 2),
        (Limits(cost=90 / 1e6, prices=PRICES), "cost", 2, 2),
    ],
)
def test_an_agent_is_limited(
    limits: Limits, cause: str, asked_for: int, looked: int, how: How
) -> None:
    """Its models and tools count, and the fallback sees what it has found."""
    model = Scripted(calls_tools=True)
    driven = drive(agent(model, limits), QUESTION, how)
    assert driven.error is None
    messages = driven.values["messages"]
    assert messages[-1].text == "no more"
    assert len(model.made) == asked_for
    found = [m for m in messages if m.type == "tool" and m.status == "success"]
    assert len(found) == looked
    assert (driven.report.outcome, driven.report.cause) == ("limit", cause)
    assert driven.report.usage is not None
    assert driven.report.usage.tool_calls == looked
    assert driven.report.usage.model_calls == asked_for


# LangChain makes a coroutine for each handler, and leaves the others' behind when one
# of them raises; here that is the handler of LangGraph's own stream.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("how", ASYNC)
def test_an_agents_tokens_are_streamed_within_its_limits(how: How) -> None:
    """In `messages` mode the model streams; it is counted once, with its usage."""
    model = Streaming(calls_tools=True)
    graph = agent(model, Limits(model_calls=2))

    async def main() -> list[Any]:
        return [
            chunk.text
            async for chunk, _ in graph.astream(QUESTION, stream_mode="messages")
        ]

    assert asyncio.run(main()).count("word") == 2
    assert len(model.made) == 2


# Nested graphs.


def nested(how: How, inner: Any, as_node: bool) -> Any:
    """Return a node that is `inner`, or that calls it."""

    def call(state: State) -> State:
        return {"log": inner.invoke({})["log"]}

    async def acall(state: State) -> State:
        return {"log": (await inner.ainvoke({}))["log"]}

    return inner if as_node else (call if how in SYNC else acall)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("as_node", [True, False], ids=["as a node", "called"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "ours"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_nested_graph_counts_towards_the_limits_around_it(
    depth: int, plain: bool, as_node: bool, how: How
) -> None:
    """Whatever it was compiled with, and each of its calls once."""
    model = Scripted()
    kind = LangGraphStateGraph if plain else StateGraph
    nodes = [(name, asks(how, model, name)) for name in ("a", "b")]
    inner = sequence(*nodes, graph=kind).compile()
    for level in range(1, depth):
        inner = sequence((f"in{level}", nested(how, inner, as_node)), graph=kind)
        inner = inner.compile()
    policy = limited(Limits(model_calls=3))
    graph = endless(nested(how, inner, as_node), policy, says("degraded"))
    driven = drive(graph, {}, how)
    assert driven.error is None
    assert len(model.made) == 3
    assert driven.values["log"][:2] == ["a: word", "b: word"]
    assert driven.values["log"][-1] == "degraded"
    (report,) = driven.reports
    assert (report.outcome, report.cause) == ("limit", "model_calls")
    assert report.usage is not None
    assert report.usage.model_calls == 3


@pytest.mark.parametrize("how", ALL)
def test_steps_of_a_nested_graph_are_steps(how: How) -> None:
    """Beside the step that the nested graph is."""
    inner = sequence(("a", says("a")), ("b", says("b")), graph=LangGraphStateGraph)
    policy = limited(Limits(steps=5))
    driven = drive(endless(inner.compile(), policy, says("degraded")), {}, how)
    assert driven.report.cause == "steps"
    assert driven.report.usage is not None
    assert driven.report.usage.steps == 5


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_nested_graph_keeps_to_its_own_limits_and_goes_on_outside(how: How) -> None:
    """Its own fallback answers; what it used counts outside, its fallback included."""
    model = Scripted()
    policy = limited(Limits(model_calls=2))
    inner = endless(asks(how, model), policy, asks(how, model, "answer"))
    builder = sequence(("inner", inner), ("after", asks(how, model, "after")))
    outer = builder.compile(deadline=limited(Limits(model_calls=10)))
    driven = drive(outer, {}, how)
    assert driven.values["log"] == [*["work: word"] * 2, "answer: word", "after: word"]
    own, around = driven.reports
    assert (own.outcome, own.cause) == ("limit", "model_calls")
    assert (around.outcome, around.cause) == ("completed", None)
    assert own.usage is not None
    assert around.usage is not None
    assert (own.usage.model_calls, around.usage.model_calls) == (3, 4)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_the_limits_around_bind_a_nested_graph_and_its_fallback(how: How) -> None:
    """A fallback is let through by the limits of its own run only."""
    model = Scripted()
    policy = limited(Limits(model_calls=2))
    inner = endless(asks(how, model), policy, asks(how, model, "answer"))
    outer = sequence(("inner", inner)).compile(
        deadline=limited(Limits(model_calls=2)), fallback=says("degraded")
    )
    driven = drive(outer, {}, how)
    assert len(model.made) == 2
    assert driven.values["log"][-1] == "degraded"
    assert driven.reports[-1].cause == "model_calls"


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_each_run_has_prices_of_its_own(how: How) -> None:
    """The same tokens cost what the limits that count them say."""
    model = Scripted()
    inner = sequence(("a", asks(how, model))).compile(
        deadline=limited(Limits(prices={"scripted": (2.0, 2.0)}))
    )
    outer = sequence(("inner", inner)).compile(
        deadline=limited(Limits(prices={"scripted": (4.0, 4.0)}))
    )
    own, around = drive(outer, {}, how).reports
    assert own.usage is not None
    assert around.usage is not None
    assert own.usage.cost == pytest.approx(30 / 1e6)
    assert around.usage.cost == pytest.approx(60 / 1e6)


@pytest.mark.parametrize("how", ["ainvoke", "astream"])
def test_sync_nodes_of_an_async_graph_are_limited(how: How) -> None:
    """They run in threads, from where the loop has to be told of the cut."""
    model = Scripted()
    policy = limited(Limits(model_calls=3))
    graph = endless(asks("invoke", model), policy, asks("invoke", model, "degraded"))
    driven = drive(graph, {}, how)  # type: ignore[arg-type]
    assert driven.values["log"] == [*["work: word"] * 3, "degraded: word"]
    assert driven.report.stragglers == []


def test_what_is_detached_is_not_counted() -> None:
    """It has left the run, on purpose."""
    model = Scripted()

    def node(state: State) -> State:
        with detach():
            model.invoke("outside")
        return {"log": [model.invoke("inside").text]}

    policy = limited(Limits(model_calls=1))
    driven = drive(sequence(("node", node)).compile(deadline=policy), {}, "invoke")
    assert driven.error is None
    assert len(model.made) == 2
    assert driven.report.usage is not None
    assert driven.report.usage.model_calls == 1


# At the same time.


@pytest.mark.parametrize("how", ALL)
def test_parallel_branches_that_race_for_the_last_calls_do_not_share_them(
    how: How,
) -> None:
    """As many models are asked as the limit allows, and one fallback answers."""
    model = Scripted()
    builder = StateGraph(State).add_node("ask", asks(how, model))
    builder.add_node("degrade", says("degraded"))
    builder.add_conditional_edges(START, lambda state: [Send("ask", {})] * 8)
    policy = limited(Limits(model_calls=5))
    driven = drive(builder.compile(deadline=policy, fallback="degrade"), {}, how)
    assert driven.error is None
    assert len(model.made) == 5
    assert driven.values["log"] == [*["work: word"] * 5, "degraded"]
    assert (driven.report.outcome, driven.report.cause) == ("limit", "model_calls")


@pytest.mark.realtime
@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("limits", [Limits(steps=3), Limits(model_calls=3)])
def test_what_is_under_way_beside_the_last_call_may_end(
    limits: Limits, how: How
) -> None:
    """Its call has been paid for; what it returns is kept, its edges do not fire."""
    all_asked = threading.Barrier(3)

    class Slow(Scripted):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            all_asked.wait(30)
            time.sleep(0.5)  # longer than any grace
            return super()._generate(*args, **kwargs)

        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            await asyncio.sleep(60)
            return Scripted._generate(self, *args, **kwargs)

    model = Slow()
    builder = StateGraph(State).add_node("ask", asks(how, model))
    builder.add_node("next", says("next")).add_edge("ask", "next")
    builder.add_node("degrade", says("degraded"))
    builder.add_conditional_edges(START, lambda state: [Send("ask", {})] * 5)
    graph = builder.compile(deadline=limited(limits), fallback="degrade")
    driven = drive(graph, {}, how, virtual=True)
    assert len(model.made) == 3
    assert driven.values["log"] == [*["work: word"] * 3, "degraded"]
    assert driven.report.stragglers == []
    causes = [step.cause for step in driven.report.steps if step.name == "ask"]
    assert causes.count(None) == 3


def beside(slow: Any, policy: DeadlinePolicy, **options: Any) -> Any:
    """Return a graph with `slow` beside a node that exceeds the limit after 1 s."""
    model = Scripted()

    async def exceed(state: State) -> State:
        await asyncio.sleep(1)
        return {"log": [(await model.ainvoke("?")).text for _ in range(2)]}

    builder = StateGraph(State).add_node("slow", slow).add_node("exceed", exceed)
    builder.add_edge(START, "slow").add_edge(START, "exceed")
    return builder.compile(deadline=policy, **options)


ONE_CALL = Limits(model_calls=1)


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("swallows", [True, False])
def test_what_is_under_way_keeps_to_the_limits(swallows: bool, how: How) -> None:
    """It may do what fits, and is cut itself when it asks for more."""
    model = Scripted()
    used: list[str] = []

    async def slow(state: State) -> State:
        await asyncio.sleep(2)
        used.append(await look.ainvoke({"at": "it"}))
        with suppress(*[DeadlineExceeded] * swallows):
            await model.ainvoke("one more")
        return {"log": ["slow"]}

    graph = beside(slow, limited(ONE_CALL), fallback=says("degraded"))
    driven = drive(graph, {}, how, virtual=True)
    assert driven.values["log"][-1] == "degraded"
    assert used == ["seen it"]
    assert model.made == []
    assert driven.elapsed == pytest.approx(2)
    causes = {step.name: step.cause for step in driven.report.steps}
    assert (causes["slow"], causes["exceed"]) == ("model_calls", "model_calls")


@pytest.mark.parametrize("how", ASYNC)
@pytest.mark.parametrize("mode", ["fallback", "raise", "return"])
def test_what_is_under_way_ends_at_the_work_deadline(mode: Any, how: How) -> None:
    """The reserve is the fallback's; the cause stays what came first."""

    async def slow(state: State) -> State:
        await asyncio.sleep(3600)
        return {"log": ["slow"]}

    policy = DeadlinePolicy(seconds=10, limits=ONE_CALL, on_exceeded=mode)
    fallback = says("degraded") if mode == "fallback" else None
    graph = beside(slow, policy, fallback=fallback)
    driven = drive(graph, {"log": []}, how, virtual=True)
    assert driven.elapsed == pytest.approx(8 if mode == "fallback" else 10)
    assert (driven.report.outcome, driven.report.cause) == ("limit", "model_calls")
    if mode == "raise":
        assert isinstance(driven.error, DeadlineExceeded)
        assert driven.error.cause == "model_calls"
    else:
        assert driven.values["log"] == (["degraded"] if fallback else [])


@pytest.mark.realtime
@pytest.mark.parametrize("how", SYNC)
@pytest.mark.parametrize("mode", ["fallback", "raise", "return"])
def test_sync_work_under_way_ends_at_the_work_deadline(mode: Any, how: How) -> None:
    """The same in threads, which are given up."""
    started, released = threading.Event(), threading.Event()

    def slow(state: State) -> State:
        started.set()
        released.wait(10)
        return {"log": ["slow"]}

    def exceed(state: State) -> State:
        started.wait(10)
        return {"log": [Scripted().invoke("?").text for _ in range(2)]}

    builder = StateGraph(State).add_node("slow", slow).add_node("exceed", exceed)
    builder.add_edge(START, "slow").add_edge(START, "exceed")
    budget = {"seconds": 1.8, "reserve": 1.0} if mode == "fallback" else {"seconds": 1}
    policy = DeadlinePolicy(limits=ONE_CALL, on_exceeded=mode, **budget)
    fallback = says("degraded") if mode == "fallback" else None
    graph = builder.compile(deadline=policy, fallback=fallback)
    driven = drive(graph, {"log": []}, how)
    released.set()
    assert (0.7 if fallback else 0.9) < driven.elapsed < 5
    assert (driven.report.outcome, driven.report.cause) == ("limit", "model_calls")
    assert [straggler.name for straggler in driven.report.stragglers] == ["slow"]
    if mode == "raise":
        assert isinstance(driven.error, DeadlineExceeded)
        assert driven.error.cause == "model_calls"
    else:
        assert driven.values["log"] == (["degraded"] if fallback else [])


@pytest.mark.parametrize("how", ASYNC)
def test_a_slow_fallback_has_its_reserve_after_a_limit(how: How) -> None:
    """It is not taken for what was under way, and ends at the deadline."""

    async def slow(state: State) -> State:
        await asyncio.sleep(3)
        return {"log": ["slow"]}

    async def degrade(state: State) -> State:
        await asyncio.sleep(6)
        return {"log": ["degraded"]}

    policy = DeadlinePolicy(seconds=10, limits=ONE_CALL)
    driven = drive(beside(slow, policy, fallback=degrade), {}, how, virtual=True)
    assert driven.values["log"] == ["slow", "degraded"]
    assert driven.elapsed == pytest.approx(9)


@pytest.mark.parametrize("how", ASYNC)
def test_what_is_under_way_can_be_cancelled(how: How) -> None:
    """The stop button works while the last steps end."""

    async def slow(state: State) -> State:
        await asyncio.sleep(3600)
        return {"log": ["slow"]}

    control = RunControl()

    async def main() -> Any:
        graph = beside(slow, limited(ONE_CALL), fallback=says("degraded"))
        asyncio.get_running_loop().call_later(5, control.cancel)
        return await adrive(graph, {}, how, control=control)

    driven = run_virtual(main())
    assert driven.values["log"] == ["degraded"]
    assert driven.elapsed == pytest.approx(5)
    assert driven.report.cause == "model_calls"


@pytest.mark.parametrize("how", ASYNC)
def test_without_a_fallback_finished_siblings_wait_for_the_resume(how: How) -> None:
    """Just what the limit refused is run again."""
    ran: list[str] = []

    async def slow(state: State) -> State:
        ran.append("slow")
        await asyncio.sleep(3)
        return {"log": ["slow"]}

    graph = beside(slow, limited(ONE_CALL), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    first = drive(graph, {}, how, config, virtual=True)
    assert isinstance(first.error, DeadlineExceeded)
    policy = limited(Limits(model_calls=2))
    again = drive(graph, None, how, config, virtual=True, deadline=policy)
    assert sorted(again.values["log"]) == ["slow", "word", "word"]
    assert ran == ["slow"]


def test_the_worst_case_of_calls_under_way_is_reserved() -> None:
    """Two of three fit in beside each other; one after the other all three do."""
    arrived: list[str] = []

    class Waiting(Scripted):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            arrived.append("asked")
            await asyncio.sleep(1)
            return self._generate(*args, **kwargs)

    model = Waiting(max_tokens=40)  # 7 + 40 are reserved, 15 are used
    policy = limited(Limits(tokens=100))

    def graph(parallel: bool) -> Any:
        node = asks("ainvoke", model)
        if not parallel:
            builder = sequence(("a", node), ("b", node), ("c", node))
        else:
            builder = StateGraph(State).add_node("ask", node)
            builder.add_conditional_edges(START, lambda state: [Send("ask", {})] * 3)
        return builder.compile(deadline=policy)

    one_by_one = drive(graph(parallel=False), {}, "ainvoke", virtual=True)
    assert len(one_by_one.values["log"]) == 3
    arrived.clear()
    at_once = drive(graph(parallel=True), {}, "ainvoke", virtual=True)
    assert isinstance(at_once.error, DeadlineExceeded)
    assert len(arrived) == 2


@pytest.mark.parametrize("how", ALL)
def test_runs_at_the_same_time_have_limits_of_their_own(how: How) -> None:
    """One graph, ten runs: each gets what one alone would get."""
    model = Scripted()
    graph = endless(asks(how, model), limited(Limits(model_calls=3)), says("end"))
    if how in SYNC:
        with ThreadPoolExecutor(5) as pool:
            logs = list(pool.map(lambda _: graph.invoke({})["log"], range(10)))
    else:

        async def main() -> Any:
            runs = [graph.ainvoke({}) for _ in range(10)]
            return [values["log"] for values in await asyncio.gather(*runs)]

        logs = asyncio.run(main())
    assert logs == [[*["work: word"] * 3, "end"]] * 10
    assert len(model.made) == 30


# What is booked.


@pytest.mark.parametrize("kind", [Scripted, Streaming])
@pytest.mark.parametrize("how", ALL)
def test_a_model_without_a_maximum_overshoots_by_one_answer_at_most(
    how: How, kind: type[Scripted]
) -> None:
    """Only the prompt is reserved; what was used counts before the next call."""
    model = kind(used=(6, 100))
    graph = endless(asks(how, model), limited(Limits(tokens=150)), says("end"))
    driven = drive(graph, {}, how)
    assert len(model.made) == 2
    assert driven.report.usage is not None
    assert driven.report.usage.output_tokens == 200


@pytest.mark.parametrize("how", ALL)
def test_a_model_that_reports_nothing_is_charged_by_an_estimate(how: How) -> None:
    """The answer is there, only nobody counted it; the report does not claim to."""
    model = Scripted(used=None, text="x" * 400, max_tokens=500)
    # 7 of prompt; about 105 of answer, where 500 were reserved
    graph = endless(asks(how, model), limited(Limits(tokens=800)), says("end"))
    driven = drive(graph, {}, how)
    assert len(model.made) == 3
    usage = driven.report.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (None, None)
    assert usage.unreported == 3


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize(
    ("error", "tried"),
    [(Answered(429), 5), (ConnectionResetError(), 2)],
    ids=["refused", "abandoned"],
)
def test_a_call_that_failed_keeps_its_reservation_unless_it_was_refused(
    error: Exception, tried: int, how: How
) -> None:
    """A provider does not bill what it refuses; it may bill what was cut off."""
    model = Scripted(max_tokens=40, fails=error)

    def node(state: State) -> State:
        for _ in range(5):
            with pytest.raises(type(error)):
                model.invoke("a question")
        return {"log": ["went on"]}

    policy = limited(Limits(tokens=100))
    graph = sequence(("node", node)).compile(deadline=policy, fallback=says("end"))
    driven = drive(graph, {}, how)
    assert len(model.made) == tried
    usage = driven.report.usage
    assert usage is not None
    assert usage.model_calls == tried
    assert usage.unreported == (0 if tried == 5 else tried)


@pytest.mark.parametrize("how", SYNC)
def test_a_stream_that_broke_keeps_its_reservation(how: How) -> None:
    """Tokens have come, so that it was not refused, whatever the error says."""
    model = Streaming(max_tokens=40, breaks=True)

    def node(state: State) -> State:
        with pytest.raises(ConnectionResetError):
            list(model.stream("a question"))
        run = run_here()
        assert run is not None
        assert run.ledger is not None
        return {"log": [str(run.ledger.tokens_left())]}

    policy = limited(Limits(tokens=100))
    driven = drive(sequence(("node", node)).compile(deadline=policy), {}, how)
    assert driven.values["log"] == ["53"]


@pytest.mark.parametrize(("longest", "left"), [(40, 53), (None, 87)])
def test_an_answer_that_was_cut_short_keeps_its_reservation(
    longest: int | None, left: int
) -> None:
    """The provider may go on; without a maximum what has come counts."""
    seen: list[int | None] = []

    class Half(Scripted):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            message = AIMessage("half", response_metadata={"deadline": "exceeded"})
            return ChatResult(generations=[ChatGeneration(message=message)])

    model = Half(max_tokens=longest)

    def node(state: State) -> State:
        model.invoke("a question")
        run = run_here()
        assert run is not None
        assert run.ledger is not None
        seen.append(run.ledger.tokens_left())
        return {"log": []}

    policy = limited(Limits(tokens=100))
    driven = drive(sequence(("node", node)).compile(deadline=policy), {}, "invoke")
    assert seen == [pytest.approx(left, abs=5)]
    assert driven.report.usage is not None
    assert driven.report.usage.unreported == 1


@pytest.mark.parametrize("how", SYNC)
def test_a_text_model_is_limited_too(how: How) -> None:
    """It reports no usage, so that its tokens are estimated."""
    model = FakeListLLM(responses=["x" * 40])

    def node(state: State) -> State:
        return {"log": [model.invoke("12345678")]}

    policy = limited(Limits(tokens=30))
    driven = drive(endless(node, policy, says("end")), {}, how)
    assert len(driven.values["log"]) == 4  # 12 each, and the answer of one too much


# With the clients of real vendors, against a server that counts.


@pytest.fixture
def providers() -> Any:
    """Return the servers; the vendors' clients are not installed everywhere."""
    return pytest.importorskip("providers")


PRICED = {"gpt-4o-mini": (1.0, 3.0), "claude-sonnet-5": (1.0, 3.0)}


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "limits",
    [Limits(tokens=55, prices=PRICED), Limits(cost=120 / 1e6, prices=PRICED)],
    ids=["tokens", "cost"],
)
def test_a_vendors_client_is_limited_by_what_it_says_it_used(
    limits: Limits, vendor: str, streaming: bool, how: How, providers: Any
) -> None:
    """7 tokens in and 5 out each time, of 20 that were reserved."""
    with providers.Provider(providers.Tokens(5)) as server:
        model = providers.VENDORS[vendor](
            server, max_tokens=20, streaming=streaming, stream_usage=True
        )
        graph = endless(asks(how, model), limited(limits), says("degraded"))
        driven = drive(graph, {}, how)
    assert driven.error is None
    assert driven.values["log"][-1] == "degraded"
    assert len(server.requests) == 3
    assert {request.max_tokens for request in server.requests} == {20}
    usage = driven.report.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (21, 15)
    assert usage.cost == pytest.approx(66 / 1e6)
    assert usage.unreported == 0


@pytest.mark.realtime
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
@pytest.mark.parametrize("broken", [False, True], ids=["refused", "broken off"])
def test_what_a_vendor_refused_is_given_back_and_what_broke_off_is_not(
    broken: bool, vendor: str, how: How, providers: Any
) -> None:
    """Two reservations fit in; refused requests need none in the end."""
    failed: list[Exception] = []
    behaviour = providers.Breaks(2) if broken else providers.Status(429)
    with providers.Provider(behaviour) as server:
        model = providers.VENDORS[vendor](
            server, max_tokens=20, streaming=True, max_retries=0
        )

        def node(state: State) -> State:
            for _ in range(4):
                try:
                    model.invoke("a question")
                except Exception as error:
                    failed.append(error)
                    if isinstance(error, DeadlineExceeded):
                        raise
            return {"log": ["went on"]}

        async def anode(state: State) -> State:
            for _ in range(4):
                try:
                    await model.ainvoke("a question")
                except Exception as error:
                    failed.append(error)
                    if isinstance(error, DeadlineExceeded):
                        raise
            return {"log": ["went on"]}

        builder = sequence(("work", node if how in SYNC else anode))
        policy = limited(Limits(tokens=75))
        graph = builder.compile(deadline=policy, fallback=says("degraded"))
        driven = drive(graph, {}, how)
    assert driven.error is None
    assert len(server.requests) == (2 if broken else 4)
    assert isinstance(failed[-1], DeadlineExceeded) is broken
    assert driven.values["log"] == ["degraded" if broken else "went on"]
    assert driven.report.usage is not None
    assert driven.report.usage.unreported == (2 if broken else 0)


# Prices.


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("cost", [1.0, None], ids=["limited", "only measured"])
def test_a_missing_price_is_an_error_before_the_request(
    cost: float | None, how: How
) -> None:
    """It names the model and the argument, and reaches the caller."""
    model = Scripted()
    limits = Limits(cost=cost, prices={"scripted-2": (1, 2)})
    driven = drive(endless(asks(how, model), limited(limits), says("end")), {}, how)
    assert type(driven.error) is ValueError
    assert "prices has none for the model 'scripted'" in str(driven.error)
    assert "scripted-2" in str(driven.error)
    assert model.made == []
    assert driven.report.outcome == "error"


@pytest.mark.parametrize("how", ALL)
def test_a_model_without_a_name_is_priced_by_its_class(how: How) -> None:
    """As models of one's own may have none."""
    model = Scripted(model=None)
    limits = Limits(prices={"Scripted": (1, 3)})
    graph = sequence(("a", asks(how, model))).compile(deadline=limited(limits))
    usage = drive(graph, {}, how).report.usage
    assert usage is not None
    assert usage.cost == pytest.approx(25 / 1e6)


# Measure only, and not at all.


@pytest.mark.parametrize("how", ALL)
def test_a_run_that_only_measures_says_what_would_have_been_cut(how: How) -> None:
    """All of it runs, and the steps from there on carry the limit's name."""
    model = Scripted()
    nodes = [(name, asks(how, model, name)) for name in "abcd"]
    policy = limited(Limits(model_calls=2), enforce=False)
    driven = drive(sequence(*nodes).compile(deadline=policy), {}, how)
    assert driven.error is None
    assert len(model.made) == 4
    assert driven.report.outcome == "completed"
    nodes = [step for step in driven.report.steps if step.kind == "node"]
    assert [s.cause for s in nodes] == [None, None, "model_calls", "model_calls"]
    assert driven.report.usage is not None
    assert driven.report.usage.model_calls == 4


@pytest.mark.parametrize("how", ALL)
def test_a_run_without_limits_is_counted_for_its_report(how: How) -> None:
    """There are no prices then, so that there is no cost."""
    graph = sequence(("a", asks(how, Scripted())), ("b", uses(how))).compile(
        deadline=60
    )
    usage = drive(graph, {}, how).report.usage
    assert usage is not None
    assert usage.model_dump(exclude_none=True) == {
        "steps": 2,
        "model_calls": 1,
        "tool_calls": 1,
        "input_tokens": 10,
        "output_tokens": 5,
        "unreported": 0,
    }


def test_a_run_without_limits_or_report_keeps_no_books() -> None:
    """Nothing is counted that nobody asked for."""
    seen: list[Any] = []

    def node(state: State) -> State:
        run = run_here()
        assert run is not None
        seen.append(run.ledger)
        return {}

    sequence(("node", node)).compile(deadline=60).invoke({})
    assert seen == [None]


def test_a_handler_passed_by_hand_does_not_count_again() -> None:
    """It hears of the same calls as the attached one."""
    model = Scripted()
    policy = limited(Limits(model_calls=2))
    graph = endless(asks("invoke", model), policy, says("end"))
    config = {"callbacks": [DeadlineHandler(60), DeadlineHandler()]}
    driven = drive(graph, {}, "invoke", config)
    assert driven.values["log"] == [*["work: word"] * 2, "end"]


def test_a_limit_that_user_code_swallows_is_reached_all_the_same() -> None:
    """Nothing else starts, and the run does not report success."""
    model = Scripted()
    swallowed: list[BaseException] = []

    def node(state: State) -> State:
        for _ in range(5):
            try:
                model.invoke("a question")
            except Exception as error:  # noqa: BLE001 - that is what it is about
                swallowed.append(error)
        return {"log": ["pretends"]}

    policy = limited(Limits(model_calls=2))
    graph = sequence(("work", node), ("next", says("next"))).compile(
        deadline=policy, fallback=says("end")
    )
    driven = drive(graph, {}, "invoke")
    assert len(model.made) == 2
    assert len(swallowed) == 3
    assert "next" not in driven.values["log"]
    assert driven.values["log"][-1] == "end"
    assert driven.report.outcome == "limit"


def test_other_handlers_see_the_call_that_was_refused_not_begin() -> None:
    """Ours is first: nobody is told of what does not start."""
    started: list[str] = []

    class Listens(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            started.append("model")

    policy = limited(Limits(model_calls=2))
    graph = endless(asks("invoke", Scripted()), policy, says("end"))
    drive(graph, {}, "invoke", {"callbacks": [Listens()]})
    assert started == ["model"] * 2


# Threads and resumes.


@pytest.mark.parametrize("how", ALL)
def test_a_run_that_a_limit_cut_can_be_resumed_with_the_limits_anew(how: How) -> None:
    """`raise` leaves the checkpoint resumable: just what was cut is run again."""
    model = Scripted()
    nodes = [(name, asks(how, model, name)) for name in "abc"]
    graph = sequence(*nodes).compile(
        InMemorySaver(), deadline=limited(Limits(model_calls=2))
    )
    config = {"configurable": {"thread_id": "1"}}
    first = drive(graph, {}, how, config)
    assert isinstance(first.error, DeadlineExceeded)
    assert first.error.step == "c"
    again = drive(graph, None, how, config)
    assert again.values["log"] == ["a: word", "b: word", "c: word"]
    assert len(model.made) == 3
    assert again.report.outcome == "completed"


@pytest.mark.parametrize("how", ALL)
def test_a_resume_after_an_interrupt_counts_from_zero(how: How) -> None:
    """Each invocation has the limits for itself; a person stands between them."""
    model = Scripted()

    def ask(state: State) -> State:
        return {"log": [interrupt("go on?")]}

    nodes = [("a", asks(how, model)), ("ask", ask), ("b", asks(how, model))]
    graph = sequence(*nodes).compile(
        InMemorySaver(), deadline=limited(Limits(model_calls=1, steps=2))
    )
    config = {"configurable": {"thread_id": "1"}}
    assert drive(graph, {}, how, config).report.interrupted
    resumed = drive(graph, Command(resume="yes"), how, config)
    assert resumed.error is None
    assert resumed.values["log"] == ["work: word", "yes", "work: word"]
    assert resumed.report.usage is not None
    assert resumed.report.usage.steps == 2


@pytest.mark.parametrize("how", ALL)
def test_the_next_input_on_a_thread_has_the_limits_anew(how: How) -> None:
    """And behaves as if the run before had completed."""
    model = Scripted()
    builder = StateGraph(State).add_node("work", asks(how, model))
    builder.add_edge(START, "work").add_edge("work", "work")
    policy = limited(Limits(model_calls=2))
    graph = builder.compile(InMemorySaver(), deadline=policy, fallback=says("end"))
    config = {"configurable": {"thread_id": "1"}}
    for turn in (1, 2):
        driven = drive(graph, {}, how, config)
        assert driven.values["log"] == ["work: word", "work: word", "end"] * turn


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("cut", [False, True])
def test_what_is_used_is_the_same_with_limits_and_without(how: How, cut: bool) -> None:
    """Limits count it in their books, reports without them by what was noted."""
    used: list[Any] = []
    for limits in (None, Limits(steps=99, model_calls=99, tool_calls=99, tokens=10**9)):
        model = Scripted(max_tokens=20)
        nodes = [(name, asks(how, model, name)) for name in "ab"]
        policy = DeadlinePolicy(seconds=30, limits=limits)
        control = RunControl()
        if cut:
            control.cancel()
        graph = sequence(*nodes).compile(deadline=policy, fallback=says("degraded"))
        driven = drive(graph, {}, how, control=control)
        assert driven.error is None
        used.append(driven.report.usage.model_dump())  # type: ignore[union-attr]
    assert used[0] == used[1]
