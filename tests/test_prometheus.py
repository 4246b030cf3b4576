"""What a Prometheus server finds when it scrapes a service with deadlines."""

from __future__ import annotations

import asyncio
import operator
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import pytest
from harness import napper
from langgraph.graph import START
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from langgraph_deadline import DeadlinePolicy, StateGraph, StepBudget
from langgraph_deadline.events import (
    Event,
    RunDetails,
    RunEnded,
    RunStarted,
    StepEnded,
    StepRefused,
    StragglerFound,
    observe,
)
from langgraph_deadline.prometheus import PrometheusObserver
from langgraph_deadline.report import ModelTokens, RunReport, TokenCount
from langgraph_deadline.testing import run_virtual


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def degrade(state: State) -> State:
    """Be the fallback."""
    return {"log": ["degraded"]}


async def resists(state: State) -> State:
    """Take two seconds to obey."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(2)
    return {}


def graph_of(**nodes: Any) -> Any:
    """Return a graph whose nodes run side by side."""
    builder = StateGraph(State)
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(START, name)
    return builder


class Service:
    """A service that is scraped over HTTP."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._server, self._thread = start_http_server(
            0, "127.0.0.1", registry=self.registry
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def scrape(self) -> dict[str, Any]:
        """Return the families of metrics, by their name."""
        url = f"http://127.0.0.1:{self._server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        return {found.name: found for found in text_string_to_metric_families(text)}

    def value(self, sample: str, **labels: str) -> float:
        """Return the sum of all samples of that name that have these labels."""
        return sum(
            found.value
            for family in self.scrape().values()
            for found in family.samples
            if found.name == f"langgraph_deadline_{sample}"
            and labels.items() <= found.labels.items()
        )


@pytest.fixture
def service() -> Iterator[Service]:
    """Start a service, and stop it."""
    service = Service()
    yield service
    service.close()


RUN = RunDetails(
    id="run",
    parent=None,
    inside=None,
    name="graph",
    started=1.7e9,
    budget=10.0,
    reserve=0.0,
    enforced=True,
)


def ended(run: RunDetails = RUN, step: str = "a", **values: Any) -> StepEnded:
    """Return the end of a step."""
    its: dict[str, Any] = {"number": 1, "parent": None, "kind": "node", "at": 1.0}
    return StepEnded(**{**its, "run": run, "step": step, "took": 1.0, **values})


def used(given: int | None, generated: int | None) -> ModelTokens:
    """Return the tokens of a model call."""
    return ModelTokens(
        input=TokenCount(count=given), output=TokenCount(count=generated)
    )


# A scrape.


def test_a_scrape_tells_of_runs_that_really_happened(service: Service) -> None:
    """Latency, exceeded and refused steps, cancellations, and what was left."""
    policy = DeadlinePolicy(
        seconds=10,
        steps={"c": StepBudget(needs=30, otherwise={"log": ["cached"]})},
    )
    builder = graph_of(a=napper("ainvoke", 1), b=napper("ainvoke", 60), c=resists)
    graph = builder.compile(deadline=policy, fallback=degrade, name="agent")
    with observe(PrometheusObserver(registry=service.registry)):
        run_virtual(graph.ainvoke({}))
    value = service.value
    assert value("runs_ended_total", graph="agent", outcome="deadline") == 1
    assert value("runs_active", graph="agent") == 0
    assert value("run_duration_seconds_sum", graph="agent") == pytest.approx(8)
    labels = {"graph": "agent", "step": "a", "kind": "node"}
    assert value("step_duration_seconds_count", **labels) == 1
    assert value("step_duration_seconds_sum", **labels) == pytest.approx(1)
    assert value("step_duration_seconds_bucket", le="0.5", **labels) == 0
    assert value("step_duration_seconds_bucket", le="1.0", **labels) == 1
    assert value("step_remaining_seconds_sum", **labels) == pytest.approx(8)
    assert value("steps_exceeded_total", **labels) == 0
    assert value("steps_exceeded_total", step="b", cause="deadline") == 1
    assert value("steps_refused_total", step="c", cause="window") == 1
    assert value("cancellations_asked_total", graph="agent") == 1
    assert value("cancellations_obeyed_total", graph="agent") == 1
    assert value("step_duration_seconds_count", step="degrade", kind="fallback") == 1


def test_names_units_and_types_are_those_of_the_conventions(service: Service) -> None:
    """Base units as suffixes, `_total` on counters, a help text on all."""
    observer = PrometheusObserver(registry=service.registry)
    observer(ended())
    families = service.scrape()
    ours = {k: v for k, v in families.items() if k.startswith("langgraph_deadline_")}
    assert len(ours) >= 14
    for name, family in ours.items():
        assert family.documentation
        assert name.endswith("_seconds") == (family.type == "histogram")
        assert family.type in ("histogram", "counter", "gauge")
        if family.type == "counter":
            samples = {sample.name for sample in family.samples}
            assert samples <= {f"{name}_total", f"{name}_created"}


def test_work_that_outlives_its_cut_is_seen_while_it_runs(service: Service) -> None:
    """And no more when it has ended."""
    graph = graph_of(stubborn=resists).compile(deadline=5, fallback=degrade)
    seen: list[float] = []

    def look() -> None:
        seen.append(service.value("stragglers_running", step="stubborn", kind="node"))

    async def main() -> None:
        with observe(PrometheusObserver(registry=service.registry)):
            await graph.ainvoke({})
        look()
        await asyncio.sleep(10)
        look()

    run_virtual(main())
    assert seen == [1, 0]
    assert service.value("stragglers_found_total", step="stubborn") == 1
    assert service.value("cancellations_asked_total") == 1
    assert service.value("cancellations_obeyed_total") == 0


def test_what_blocked_the_loop_is_found_and_never_runs(service: Service) -> None:
    """It has ended when it is found."""
    its: dict[str, Any] = {"run": RUN, "number": 1, "parent": None, "kind": "node"}
    observer = PrometheusObserver(registry=service.registry)
    observer(
        StragglerFound(
            **its, at=1, step="a", cause="deadline", overrun=1.0, blocked_loop=True
        )
    )
    assert service.value("stragglers_found_total") == 1
    assert service.value("stragglers_running") == 0


def test_runs_in_flight_are_counted(service: Service) -> None:
    """Up at their start and down at their end."""
    observer = PrometheusObserver(registry=service.registry)
    for number in range(3):
        observer(RunStarted(run=replace(RUN, id=str(number)), at=0.0))
    report = RunReport(outcome="completed", elapsed=1)
    observer(RunEnded(run=replace(RUN, id="0"), at=1.0, report=report))
    assert service.value("runs_active", graph="graph") == 2


# Tokens.


def test_tokens_of_abandoned_calls_are_told_apart(service: Service) -> None:
    """Also of a call that ends after its run; what nobody knows is absent, not zero."""
    observer = PrometheusObserver(registry=service.registry)
    model: dict[str, Any] = {"step": "gpt", "kind": "model"}
    observer(ended(**model, tokens=used(100, 50)))
    observer(RunEnded(run=RUN, at=2.0, report=RunReport(outcome="deadline")))
    observer(ended(**model, tokens=used(20, 10), cause="deadline"))
    observer(ended(**model, tokens=used(5, None), cause="deadline"))
    value = service.value
    assert value("tokens_used_total", graph="graph", step="gpt", type="input") == 125
    assert value("tokens_used_total", type="output") == 60
    assert value("tokens_abandoned_total", step="gpt", type="input") == 25
    assert value("tokens_abandoned_total", step="gpt", type="output") == 10
    assert value("calls_uncounted_total", step="gpt") == 1


def test_a_run_that_only_measures_abandons_nothing(service: Service) -> None:
    """What would have been cut counts as exceeded all the same."""
    run = replace(RUN, enforced=False)
    observer = PrometheusObserver(registry=service.registry)
    observer(ended(run, kind="model", tokens=used(20, 10), cause="deadline"))
    assert service.value("tokens_abandoned_total") == 0
    assert service.value("steps_exceeded_total", cause="deadline") == 1


# Few time series.


def test_steps_beyond_the_most_share_their_time_series(service: Service) -> None:
    """However many there are."""
    observer = PrometheusObserver(registry=service.registry, max_steps=5)
    for number in range(500):
        observer(ended(step=f"step {number}"))
    family = service.scrape()["langgraph_deadline_step_duration_seconds"]
    steps = {sample.labels["step"] for sample in family.samples}
    assert steps == {f"step {number}" for number in range(5)} | {"(other)"}
    assert service.value("step_duration_seconds_count", step="(other)") == 495


def test_names_that_have_to_be_escaped_come_out_as_they_were(service: Service) -> None:
    """Quotes, line ends, backslashes."""
    name = 'a "b"\n\\c'
    PrometheusObserver(registry=service.registry)(ended(step=name))
    assert service.value("step_duration_seconds_count", step=name) == 1


# Registries.


def test_importing_registers_nothing() -> None:
    """Neither does making an observer for a registry of one's own."""
    code = (
        "from prometheus_client import REGISTRY, CollectorRegistry\n"
        "from langgraph_deadline.prometheus import PrometheusObserver\n"
        "PrometheusObserver(registry=CollectorRegistry())\n"
        "names = [metric.name for metric in REGISTRY.collect()]\n"
        "assert not [name for name in names if 'deadline' in name], names\n"
        "PrometheusObserver()\n"
        "names = [metric.name for metric in REGISTRY.collect()]\n"
        "assert [name for name in names if 'deadline' in name], names\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_registry_takes_one_observer() -> None:
    """The second one would count everything twice."""
    registry = CollectorRegistry()
    PrometheusObserver(registry=registry)
    with pytest.raises(ValueError, match="langgraph_deadline_runs_ended"):
        PrometheusObserver(registry=registry)


@pytest.mark.parametrize("most", [0, -1, True, 2.5])
def test_a_number_of_steps_that_makes_no_sense_is_refused(most: Any) -> None:
    """And nothing is registered."""
    registry = CollectorRegistry()
    with pytest.raises(ValueError, match="max_steps"):
        PrometheusObserver(registry=registry, max_steps=most)
    assert list(registry.collect()) == []


def test_buckets_can_be_chosen(service: Service) -> None:
    """For both kinds of histogram."""
    observer = PrometheusObserver(registry=service.registry, buckets=(1, 7))
    observer(ended(took=5.0))
    family = service.scrape()["langgraph_deadline_step_duration_seconds"]
    limits = [sample.labels.get("le") for sample in family.samples]
    assert [limit for limit in limits if limit] == ["1.0", "7.0", "+Inf"]


def test_events_of_many_threads_are_all_counted(service: Service) -> None:
    """While somebody scrapes."""
    observer = PrometheusObserver(registry=service.registry)
    refused = StepRefused(
        run=RUN,
        at=0.0,
        number=1,
        parent=None,
        step="a",
        kind="node",
        cause="window",
        remaining=1.0,
        needed=2.0,
    )
    events: list[Event] = [ended(), refused]

    def tell() -> None:
        for _ in range(500):
            for event in events:
                observer(event)

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    service.scrape()
    for thread in threads:
        thread.join(60)
    assert service.value("step_duration_seconds_count") == 2000
    assert service.value("steps_refused_total") == 2000
