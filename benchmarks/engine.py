"""Aligner and engine alone, without Kafka, on delayed labels in 4 partitions: `python -m benchmarks.engine`.

Two streams: pairs (benchmarks/pairs.py), whose pieces hold a thousand rows, and the flights, whose pieces hold a few:
these cost what Python costs. Decoding is not counted. Prints CPU time, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable

from aiokafka.partitioner import DefaultPartitioner
from benchmarks import pairs
from benchmarks.throughput import LABELS, PARTITIONS, Message, Views
from examples import flights

from headrace import Pipeline
from headrace.connectors.record_table import RecordTable
from headrace.stream.align import Aligner, Partition
from headrace.stream.cycle import Cycle, end_cycle, run_cycle
from headrace.stream.decode import Batch, Decoder
from headrace.stream.demo_producer import messages
from headrace.stream.engine import Engine
from headrace.stream.slices import Record, Role, Slice

SLICE, CYCLE_ROWS = 8_192, 20_000  # records
NOW_MS = 2_000_000_000_000  # of all records


def departures(count: int) -> Iterable[Message]:
    """The first departures and their arrivals, in the partitions of their flights."""
    choose, partitions = DefaultPartitioner(), list(range(PARTITIONS))
    for topic, key, value in messages("departures", LABELS, count):
        yield Message(topic, choose(key, partitions, partitions), key, value)


def batches(pipeline: Pipeline, records: Iterable[Message]) -> dict[Partition, list[Batch]]:
    """All records, decoded in slices, the last one first."""
    values: defaultdict[Partition, list[bytes]] = defaultdict(list)
    for message in records:
        values["labels" if message.topic == LABELS else "events", message.partition].append(message.value)
    roles: tuple[Role, ...] = ("events", "labels")
    decoders = {role: Decoder(pipeline, role) for role in roles}
    decoded: dict[Partition, list[Batch]] = {}
    for (role, number), of in values.items():
        starts = reversed(range(0, len(of), SLICE))
        tables = [
            (a, [Record(a + i, NOW_MS, None, value) for i, value in enumerate(of[a : a + SLICE])]) for a in starts
        ]
        decoded[role, number] = [
            decoders[role].decode(Slice(role, number, a, a + len(table), RecordTable.of(table))) for a, table in tables
        ]
    return decoded


def drive(pipeline: Pipeline, waiting: dict[Partition, list[Batch]]) -> str:
    """Work them off in cycles, as a worker does; what that took."""
    engine = Engine(pipeline)
    engine.warm_up()
    assert pipeline.labels is not None
    aligner = Aligner(pipeline.labels.alignment_us)
    for partition in waiting:
        engine.own(partition[1])
        aligner.own(partition)
    pieces, began = 0, time.process_time()
    while True:
        cycle = Cycle()
        while True:
            hungry = [p for p, left in waiting.items() if left and aligner.is_empty(p)]
            for partition in hungry:
                aligner.add(waiting[partition].pop())
            at_end = {p for p, left in waiting.items() if not left}
            run_cycle(engine, aligner, at_end, lambda cycle: cycle.rows >= CYCLE_ROWS, cycle)
            if cycle.rows >= CYCLE_ROWS or not hungry:
                break
        if not cycle.pieces:
            break
        end_cycle(engine, cycle)
        pieces += len(cycle.pieces)
    seconds, counters = time.process_time() - began, engine.counters()
    return (
        f"{counters['joined']:,} pairs in {seconds:.2f} s of CPU: {counters['joined'] / seconds:,.0f} a second; "
        f"{pieces:,} pieces of {(counters['events'] + counters['labels']) / pieces:.1f} records, "
        f"{seconds / pieces * 1e6:.0f} us each; log loss {engine.results()['log_loss']:.4f}"
    )


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=500_000)
    arguments.add_argument("--flights", type=int, default=50_000)
    chosen = arguments.parse_args()
    print("pairs:  ", drive(pairs.pipeline, batches(pairs.pipeline, Views(chosen.pairs).pairs())), flush=True)
    print("flights:", drive(flights.pipeline, batches(flights.pipeline, departures(chosen.flights))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
