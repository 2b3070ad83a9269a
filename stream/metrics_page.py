"""What a worker tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from .counters import COUNTERS
from .health import View
from .stages import cpu_seconds
from .start_over import Starts

if TYPE_CHECKING:
    from .runner import Runner

WAITING = {
    "pending": "predictions that wait for their label",
    "early": "labels that wait for their event",
    "evicted": "keys of aggregates that had to make room",
    "unanswered": "predictions for which a model of River had no answer",
    "undeclared": "predictions of a model of River that told of a class not declared",
}
LEARNED = {  # counters of learners
    "skipped_steps": "steps of a torch module that were not made, for scores, loss or slopes were not finite",
    "evicted_embeddings": "embeddings that had to leave their row to others",
    "refused_embeddings": "times that an embedding was not learned, for one micro-batch used all rows of its slot",
}
LEFT_OUT = {"labels_below_zero": "labels below 0, of which a Poisson regression learned nothing"}  # the same, of rows
DRIFT = {
    "drift_actions": "times that the learner was boosted or reset",
    "last_drift_example": "example at which it was heard, counted from 0",
    "last_drift_time": "its event time, in seconds since the epoch",
}
MODELS = {
    "switches": "times that another model began to serve",
    "serves": "1: it serves now",
    "served": "predictions that it served",
    "drifts": "times that its detector of drift fired",
    "labels": "labels that met what it had said",
    "lead": "standard errors by which its losses of late were less than those of the model that serves",
}


def render(runner: Runner, view: View) -> str:
    """The metrics of a worker in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Worker(runner, view))
    return generate_latest(registry).decode()


class _Worker:
    def __init__(self, runner: Runner, view: View) -> None:
        self.runner, self.view = runner, view

    def collect(self) -> Iterator[Metric]:
        """Prometheus' interface of a collector."""
        runner, view = self.runner, self.view
        yield _gauge("headrace_running", "1 while partitions are owned and replay is done", view.state == "running")
        yield _gauge("headrace_ready", "the same, and no partition waits for its state", view.ready)
        if view.slot is not None:
            yield _gauge("headrace_slot", "which worker of the pipeline this is", view.slot)
        waits = GaugeMetricFamily("headrace_waiting", "1 while this is away", labels=["for"])
        for name in ("broker", "Redis"):
            waits.add_metric([name.lower()], float(name in view.waits))
        yield waits
        yield _gauge("headrace_adopting_partitions", "partitions that wait for their state", len(view.adopting))
        yield _gauge(
            "headrace_replay_records", "records that the replay still has before it", runner.status.replay_left
        )
        if (committed_at := runner.commits.committed_at) is not None:
            age = time.monotonic() - committed_at
            yield _gauge("headrace_last_commit_age_seconds", "time since a cycle was committed", age)
        yield _counter("headrace_starts_over", "starts over of this process", Starts.so_far().total)
        yield _gauge("headrace_snapshot_version", "version of the last published snapshot", runner.version)
        stall = "how long the last snapshot held up the stream"
        yield _gauge("headrace_snapshot_stall_seconds", stall, runner.snapshots.stall_seconds)
        lag = GaugeMetricFamily(
            "headrace_lag_records", "records in Kafka not committed yet", labels=["topic", "partition"]
        )
        for (role, partition), records in runner.lag().items():
            lag.add_metric([runner.pipeline.topics[role], str(partition)], records)
        yield lag
        stages = CounterMetricFamily(
            "headrace_stage_seconds", "time of the worker, by what it computed", labels=["stage"]
        )
        for stage, seconds in runner.stages.seconds().items():
            stages.add_metric([stage], seconds)
        yield stages
        cpu = CounterMetricFamily("headrace_cpu_seconds", "processor time of the worker, by thread", labels=["thread"])
        for thread, seconds in cpu_seconds().items():
            cpu.add_metric([thread], seconds)
        yield cpu
        for name, value in runner.figures.of_pipeline.items():
            if value is None:
                continue
            if name in COUNTERS or name in LEARNED or name in LEFT_OUT:
                words = (LEARNED | LEFT_OUT).get(name, name.replace("_", " "))
                yield _counter(f"headrace_{name}", words, int(value))
                continue
            words = WAITING.get(name) or DRIFT.get(name) or MODELS.get(name) or f"progressive {name.replace('_', ' ')}"
            yield _gauge(f"headrace_{name}", words, value)
        yield from _of_models(runner.figures.of_models)


def _of_models(models: Mapping[str, Mapping[str, float | int | None]]) -> Iterator[Metric]:
    """Each figure that is told of the models, with a label for each of them."""
    for name in dict.fromkeys(name for told in models.values() for name in told):
        words = MODELS.get(name) or DRIFT.get(name) or f"progressive {name.replace('_', ' ')} of what it said"
        family: CounterMetricFamily | GaugeMetricFamily
        if name in ("served", "drifts"):
            family = CounterMetricFamily(f"headrace_model_{name}", words, labels=["model"])
        else:
            family = GaugeMetricFamily(f"headrace_model_{name}", words, labels=["model"])
        for model, told in models.items():
            value = told.get(name)
            if value is not None:
                family.add_metric([model], float(value))
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], float(value))
    return family


def _counter(name: str, text: str, value: int) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family
