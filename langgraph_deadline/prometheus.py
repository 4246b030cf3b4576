"""The signals of a deadline service as Prometheus metrics.

```python
from langgraph_deadline.events import observe
from langgraph_deadline.prometheus import PrometheusObserver
from prometheus_client import start_http_server

start_http_server(9464)
with observe(PrometheusObserver()):
    graph.invoke(inputs)
```

For instance, the share of runs that passed their deadline, the share of a step's
executions that were cut, and the tokens spent on abandoned work in a day:

```promql
sum(rate(langgraph_deadline_runs_ended_total{outcome="deadline"}[5m]))
  / sum(rate(langgraph_deadline_runs_ended_total[5m]))
sum by (step) (rate(langgraph_deadline_steps_exceeded_total[5m]))
  / sum by (step) (rate(langgraph_deadline_step_duration_seconds_count[5m]))
sum(increase(langgraph_deadline_tokens_abandoned_total[1d]))
```
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from ._signals import BUCKETS, METRICS, PREFIX, Metric, Signals, Sink
from .events import Event

__all__ = ("PrometheusObserver",)


class PrometheusObserver:
    """An observer that counts and times what happens in runs.

    Make one for a registry, for all runs of the process. A step counts when it ends; in
    runs that only measure, what would have been cut counts as exceeded.

    | metric, after `langgraph_deadline_` | labels | what it is |
    |---|---|---|
    | `runs_ended_total` | graph, outcome | runs that ended |
    | `runs_active` | graph | runs now |
    | `run_duration_seconds` | graph | how long callers waited |
    | `step_duration_seconds` | graph, step, kind | how long steps took |
    | `step_remaining_seconds` | graph, step, kind | what was left when they started |
    | `steps_exceeded_total` | graph, step, kind, cause | steps that were cut |
    | `steps_refused_total` | graph, step, kind, cause | steps that were not started |
    | `tokens_used_total` | graph, step, type | tokens of models, `input` or `output` |
    | `tokens_abandoned_total` | graph, step, type | those of calls that were cut |
    | `calls_uncounted_total` | graph, step | cut calls whose tokens nobody knows |
    | `cancellations_asked_total` | graph | steps at work when they were cut |
    | `cancellations_obeyed_total` | graph | those that ended within the grace |
    | `stragglers_found_total` | graph, step, kind | work that outlived a cut |
    | `stragglers_running` | graph, step, kind | such work, now |

    Args:
        registry: Where the metrics are registered; the library's own unless given.
        buckets: Where the histograms are divided (in seconds).
        max_steps: How many steps, by graph, name and kind, have time series of their
            own; all others share those of `(other)`.

    Raises:
        ValueError: If the registry has these metrics already, or an argument makes no
            sense.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry = REGISTRY,
        buckets: Sequence[float] = BUCKETS,
        max_steps: int = 200,
    ) -> None:
        sinks: dict[str, Sink] = {}
        self._signals = Signals(sinks, max_steps)
        for metric in METRICS:
            sinks[metric.name] = _sink(metric, registry, buckets)

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""
        self._signals.told(event)


def _sink(
    metric: Metric, registry: CollectorRegistry, buckets: Sequence[float]
) -> Sink:
    """Register a metric, and return what keeps its values."""
    name = metric.name.replace(".", "_") + "_seconds" * (metric.unit == "s")
    told = (name, metric.text, metric.labels, PREFIX)
    if metric.kind == "histogram":
        times = Histogram(*told, registry=registry, buckets=buckets)
        return lambda value, labels: times.labels(*labels).observe(value)
    if metric.kind == "counter":
        count = Counter(*told, registry=registry)
        return lambda value, labels: count.labels(*labels).inc(value)
    # Of several worker processes, the sum of those that are alive.
    gauge = Gauge(*told, registry=registry, multiprocess_mode="livesum")
    return lambda value, labels: gauge.labels(*labels).inc(value)
