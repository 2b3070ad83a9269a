"""The two runs of the demo: a backlog, for the figures and the throughput; a paced producer, for the latency."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..connectors.embedded import free_port
from ..connectors.store import SnapshotStore
from ..connectors.topics import create_topics, end_offsets
from .declaration import Pipeline
from .demo_processes import PRODUCER, Process, Worker
from .demo_result import Outcome, Watcher, join_with_arrivals, latency, problems, read_committed
from .demo_say import Say
from .flights import arrivals, departures
from .load import load_pipeline

PARTITIONS = 4
PACE = 10_000  # records a second, departures and arrivals together
PACED_RECORDS = (30_000, 100_000)  # at least, at most; between them twice the departures of the backlog
RUNNING_IN_SECONDS = 1.0  # of the paced run, left out of the latency

LOOK_SECONDS = 0.5
BEGIN_SECONDS = 240.0  # for a worker to own its partitions; the first one on a machine compiles its kernels
STALL_SECONDS = 60.0  # without anything new

PACED = """
from dataclasses import replace

from headrace import Predictions
from headrace.examples import flights

pipeline = replace(
    flights.pipeline,
    name="flights-paced",
    events=replace(flights.pipeline.events, topic="flights-paced.departures"),
    labels=replace(flights.pipeline.labels, topic="flights-paced.arrivals"),
    predictions=Predictions("flights-paced.late"),
)
"""


@dataclass(frozen=True)
class Stage:
    """Where the demo plays: the servers, a folder for what its processes print, and where to say what happens."""

    broker: str
    redis: str
    folder: Path
    say: Say


class Look(NamedTuple):
    """How far something is: whether it is done, a value that changes while it moves, and what to show."""

    done: bool
    at: object
    shown: str


def run(stage: Stage, file: Path, count: int) -> tuple[dict[str, Any], Outcome]:
    """Both runs of the pipeline in `file`, the flights': the results, and the predictions of the first run."""
    pipeline = load_pipeline(str(file))
    told = run_backlog(stage, pipeline, file, count)
    paced_file = stage.folder / "flights_paced.py"
    paced_file.write_text(PACED)
    paced = load_pipeline(str(paced_file))
    _create_topics(stage, paced)
    with _worker(stage, "second worker", paced_file) as worker:  # starts while we read what the first one predicted
        stage.say("Reading the predictions back and joining them with the true arrivals ...")
        results, found = compare(stage, pipeline, told, count)
        least, most = PACED_RECORDS
        results["latency_ms"], wrong = run_paced(stage, paced, worker, min(max(2 * count, least), most))
    results["problems"] += wrong
    return results, found


def run_backlog(stage: Stage, pipeline: Pipeline, file: Path, count: int) -> dict[str, float]:
    """All departures and arrivals lie in Kafka before the worker begins. Returns what it counted."""
    _create_topics(stage, pipeline)
    stage.say("Writing departures and arrivals to Kafka, in the order in which they happened ...")
    with _producer(stage, pipeline, count) as producer:
        _follow(stage, producer, lambda: _produced(producer))
        producer.expect_done()
    stage.say("The worker predicts at each departure and learns at each arrival, exactly once ...")
    with _worker(stage, "worker", file) as worker:
        _follow(stage, worker, lambda: _begun(worker), BEGIN_SECONDS)
        told = _work_off(stage, worker, count)
        if status := worker.stop():
            raise worker.failed(f"did not stop in good order (status {status})")
    return told


def run_paced(stage: Stage, pipeline: Pipeline, worker: Worker, records: int) -> tuple[dict[str, float], list[str]]:
    """A worker at leisure, and a producer of PACE records a second: the latency, and what does not add up."""
    assert pipeline.labels is not None
    _follow(stage, worker, lambda: _begun(worker), BEGIN_SECONDS)
    stage.say(f"Measuring the latency: another {records:,} records at {PACE:,} per second ...")
    watcher = Watcher(stage.broker, pipeline.predictions.topic, PARTITIONS)
    watcher.start()
    with closing(watcher):
        with _producer(stage, pipeline, records, records, PACE) as producer:
            _follow(stage, producer, lambda: _produced(producer))
            producer.expect_done()
        partitions = [(pipeline.events.topic, number) for number in range(PARTITIONS)]
        events = sum(end_offsets(stage.broker, partitions).values())

        def arrived() -> Look:
            worker.expect_running()
            seen = watcher.count()
            return Look(seen >= events, seen, f"{seen:,} of {events:,} predictions can be read")

        _follow(stage, worker, arrived)
    wrong = []
    if watcher.count() != events:
        wrong.append(f"departures of the paced run: {events:,}, but predictions for them: {watcher.count():,}")
    produced = read_committed(stage.broker, pipeline.events.topic, PARTITIONS)
    return latency(produced, watcher.seen, RUNNING_IN_SECONDS) | {"records_per_second": PACE}, wrong


def compare(stage: Stage, pipeline: Pipeline, told: dict[str, float], count: int) -> tuple[dict[str, Any], Outcome]:
    """What lies in Kafka and Redis after the backlog, beside what was sent and what the worker counted."""
    sent, landed = departures(count), arrivals(count)
    topic = pipeline.predictions
    found = join_with_arrivals(read_committed(stage.broker, topic.topic, PARTITIONS), sent, landed)
    dead = len(read_committed(stage.broker, topic.dead_letters, PARTITIONS).values)
    kept = SnapshotStore(stage.redis, pipeline.name).kept()
    rate = found.events_per_second
    results: dict[str, Any] = {
        "events": len(sent),
        "predictions": found.predictions,
        "labels": len(landed),
        "joined": len(found.joined),
        **{name: int(told[name]) for name in ("expired", "pending", "orphans", "late", "duplicates")},
        "dead_letters": dead,
        **found.figures(),
        "events_per_second": rate and round(rate),
        "records_per_second": rate and round(rate * (len(sent) + len(landed)) / len(sent)),
        "snapshots": len(kept),
        "snapshot_version": kept[-1].version if kept else 0,
        "problems": problems(found, dead, told, kept[-1].meta["metrics"] if kept else {}, len(sent), len(landed)),
    }
    return results, found


def _work_off(stage: Stage, worker: Worker, count: int) -> dict[str, float]:
    """Follow a worker until nothing is left to do; returns its metrics then."""
    total = len(departures(count)) + len(arrivals(count))
    past: deque[tuple[float, float]] = deque(maxlen=6)
    told: dict[str, float] = {}

    def look() -> Look:
        nonlocal told
        told = worker.metrics() or told
        events, lag = told["events"], told["lag_records"]
        used = sum(told[name] for name in ("events", "labels", "dead_letters"))
        past.append((time.monotonic(), events))
        (t0, n0), (t1, n1) = past[0], past[-1]
        rate = f"{(n1 - n0) / (t1 - t0):9,.0f}/s" if t1 > t0 else ""
        loss = ""
        if "log_loss" in told:
            loss = f"   log loss {told['log_loss']:.4f} (constant {told['log_loss_constant']:.4f})"
        shown = f"{events:9,.0f} of {count:,} departures  {rate}   lag {lag:9,.0f}{loss}"
        return Look(used >= total and not lag, (used, lag), shown)

    _follow(stage, worker, look)
    return told


def _follow(stage: Stage, process: Process, look: Callable[[], Look], patience: float = STALL_SECONDS) -> None:
    """Show how far it is until it is done; raises StreamStopped when the process fails or nothing moves for long."""
    at, moved = None, time.monotonic()
    while not (now := look()).done:
        stage.say.progress(now.shown)
        if now.at != at:
            at, moved = now.at, time.monotonic()
        elif time.monotonic() - moved > patience:
            raise process.failed(f"did not get on for {patience:.0f} s ({now.shown.strip()})")
        time.sleep(LOOK_SECONDS)


def _begun(worker: Worker) -> Look:
    running = worker.metrics().get("running")
    return Look(bool(running), None, f"the {worker.name} starts (the first time on a machine it compiles its kernels)")


def _produced(producer: Process) -> Look:
    line = (producer.lines() or ["preparing the records"])[-1]
    return Look(producer.status is not None, line, line)


def _create_topics(stage: Stage, pipeline: Pipeline) -> None:
    """Predictions are stamped by the broker as they are appended: the throughput is taken from these stamps."""
    assert pipeline.labels is not None
    assert pipeline.labels.topic is not None
    topics = (pipeline.events.topic, pipeline.labels.topic, pipeline.predictions.topic)
    stamped = {pipeline.predictions.topic: {"message.timestamp.type": "LogAppendTime"}}
    create_topics(stage.broker, dict.fromkeys(topics, PARTITIONS), settings=stamped)


def _worker(stage: Stage, name: str, file: Path) -> Worker:
    folder = stage.folder / name.replace(" ", "-")
    return Worker(name, file, stage.broker, stage.redis, free_port(), folder)


def _producer(stage: Stage, pipeline: Pipeline, count: int, records: int = 0, pace: int = 0) -> Process:
    assert pipeline.labels is not None
    assert pipeline.labels.topic is not None
    where = (stage.broker, pipeline.events.topic, pipeline.labels.topic)
    command = (*PRODUCER, *where, *map(str, (count, records, pace)))
    return Process("producer", command, stage.folder / f"producer-of-{pipeline.name}")
