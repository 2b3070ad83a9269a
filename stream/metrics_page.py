"""What a worker tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from .engine import COUNTERS

if TYPE_CHECKING:
    from .runner import Runner

WAITING = {
    "pending": "predictions that wait for their label",
    "early": "labels that wait for their event",
    "evicted": "keys of aggregates that had to make room",
}


def render(runner: Runner) -> str:
    """The metrics of a worker in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Worker(runner))
    return generate_latest(registry).decode()


class _Worker:
    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def collect(self) -> Iterator[Metric]:
        """Prometheus' interface of a collector."""
        runner, figures = self.runner, self.runner.figures
        up = GaugeMetricFamily("headrace_running", "1 while partitions are owned and replay is done")
        up.add_metric([], float(runner.state == "running"))
        yield up
        version = GaugeMetricFamily("headrace_snapshot_version", "version of the last published snapshot")
        version.add_metric([], runner.version)
        yield version
        stall = GaugeMetricFamily("headrace_snapshot_stall_seconds", "how long the last snapshot held up the stream")
        stall.add_metric([], runner.stall_seconds)
        yield stall
        lag = GaugeMetricFamily(
            "headrace_lag_records", "records in Kafka not committed yet", labels=["topic", "partition"]
        )
        for (role, partition), records in runner.lag().items():
            lag.add_metric([runner.topic_of[role], str(partition)], records)
        yield lag
        for name, value in figures.items():
            if value is None:
                continue
            if name in COUNTERS:
                yield _counter(f"headrace_{name}", name.replace("_", " "), int(value))
                continue
            words = WAITING.get(name) or f"progressive {name.replace('_', ' ')}"
            gauge = GaugeMetricFamily(f"headrace_{name}", words)
            gauge.add_metric([], value)
            yield gauge


def _counter(name: str, text: str, value: int) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family
