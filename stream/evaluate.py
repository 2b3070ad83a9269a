"""Progressive validation over files or frames: the same engine as the worker's, without Kafka and Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import HeadraceError, InputError
from .align import Aligner, Partition
from .declaration import Pipeline
from .decode import Batch, Decoder
from .engine import Engine
from .files import batches, frame_batches
from .poison import process_carefully
from .processed import Processed
from .slices import DeadLetter

SHOWN_DEAD_LETTERS = 3


@dataclass
class Evaluation:
    """What an evaluation found: counts and metrics, and the first records that could not be used."""

    results: dict[str, Any]
    dead: list[DeadLetter]
    engine: Engine


def evaluate_files(
    pipeline: Pipeline, events: Path, labels: Path | None, progress: Callable[[Engine], None] | None = None
) -> Evaluation:
    """Run a pipeline over a file of events, and one of labels where the pipeline has a labels topic."""
    sources = {"events": lambda decoder: batches(events, decoder)}
    if labels is not None:
        sources["labels"] = lambda decoder: batches(labels, decoder)
    return _evaluate(pipeline, sources, progress)


def evaluate_frames(pipeline: Pipeline, events: pl.DataFrame, labels: pl.DataFrame | None = None) -> dict[str, Any]:
    """Run a pipeline over frames; the results as `headrace evaluate --json` prints them."""
    sources = {"events": lambda decoder: frame_batches(events, decoder)}
    if labels is not None:
        sources["labels"] = lambda decoder: frame_batches(labels, decoder)
    return _evaluate(pipeline, sources, None).results


def _evaluate(
    pipeline: Pipeline,
    sources: dict[str, Callable[[Decoder], Iterator[Batch]]],
    progress: Callable[[Engine], None] | None,
) -> Evaluation:
    _check_sources(pipeline, sources)
    engine = Engine(pipeline)
    engine.warm_up()
    engine.own(0)
    aligner = Aligner(pipeline.alignment_us)
    waiting: dict[Partition, Iterator[Batch]] = {}
    for role, source in sources.items():
        partition: Partition = (role, 0)  # type: ignore[assignment]
        aligner.own(partition)
        waiting[partition] = source(Decoder(pipeline, partition[0]))
    at_end: set[Partition] = set()
    dead: list[DeadLetter] = []
    began = time.perf_counter()
    while True:
        following = aligner.next(at_end)
        if following is None:
            hungry = [p for p in waiting if p not in at_end and aligner.is_empty(p)]
            if not hungry:
                break
            for partition in hungry:
                batch = next(waiting[partition], None)
                if batch is None:
                    at_end.add(partition)
                else:
                    aligner.add(batch)
            continue
        for done in _process(engine, *following):
            dead += done.dead[: SHOWN_DEAD_LETTERS - len(dead)]
        if engine.stop_reason:
            raise InputError(engine.stop_reason)
        if following.next == following.batch.next:
            engine.end_cycle()
            if progress is not None:
                progress(engine)
    engine.finish()
    seconds = time.perf_counter() - began
    counters = engine.counters()
    results: dict[str, Any] = {
        **counters,
        **engine.results(),
        "labels": counters["labels"],
        "seconds": round(seconds, 3),
        "events_per_second": round(counters["events"] / seconds, 1) if seconds else None,
    }
    if engine.contest is not None:
        results["models"] = engine.results_of_models()
    return Evaluation(results, dead, engine)


def _process(engine: Engine, batch: Batch, start: int, next: int) -> list[Processed]:
    """Process a piece. Where a model of others raises, its records become dead letters, as in a worker."""
    if not engine.model.opaque():
        return [engine.process(batch, start, next, later=True)]
    undo = engine.undo_point()
    try:
        done = engine.process(batch, start, next)
        engine.end_cycle()
    except (HeadraceError, MemoryError):
        raise
    except Exception:
        undo()
        return process_carefully(engine, batch, start, next)[0]
    return [done]


def _check_sources(pipeline: Pipeline, sources: dict[str, Any]) -> None:
    labels = pipeline.labels
    if pipeline.delayed and "labels" not in sources:
        raise InputError(
            f"pipeline {pipeline.name!r} reads its labels from a topic of their own: give --labels FILE too"
        )
    if not pipeline.delayed and "labels" in sources:
        raise InputError(f"pipeline {pipeline.name!r} has no labels topic: leave --labels away")
    if labels is not None and pipeline.delayed:
        for side, name in ((pipeline.events, "events"), (labels, "labels")):
            if side.time is None:
                raise InputError(
                    f"pipeline {pipeline.name!r}: {name}.time is not declared, and files have no record timestamps; "
                    "without times events and labels cannot be put in order"
                )
