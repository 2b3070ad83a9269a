"""The demo's producer, a process of its own: writes departures and arrivals in the order in which they happened.

    python -m headrace.stream.demo_producer BROKER PIPELINE.departures PIPELINE.arrivals EVENTS RECORDS PACE

It writes the first EVENTS departures and their arrivals: the first RECORDS of them all (0: all), as fast as it can and
with end-of-stream marks behind them (PACE 0), or PACE records a second. Keys are the flights, so that an arrival lies
in the partition of its departure. Its last line of output says how far it is.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
from typing import Any, NamedTuple

import polars as pl
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from .flights import arrivals, departures
from .slices import END_OF_STREAM

BATCH_BYTES = 256 << 10
TICK_SECONDS = 0.005  # how often a paced producer sends what is due
LINGER_MS = 5  # so small records are sent in batches; it counts as latency
SAY_SECONDS = 0.5


class Message(NamedTuple):
    """What is sent: topic, record key and value."""

    topic: str
    key: bytes
    value: bytes


def messages(events: str, labels: str, limit: int) -> list[Message]:
    """The first `limit` departures and their arrivals, by time; a departure before an arrival of the same second."""
    sides = ((0, events, departures(limit)), (1, labels, arrivals(limit)))
    order = pl.concat([frame.select("time", side=side, row=pl.int_range(pl.len())) for side, _, frame in sides])
    values = [
        [Message(topic, flight.encode(), value) for flight, value in zip(frame["flight"], ndjson(frame), strict=True)]
        for _, topic, frame in sides
    ]
    return [values[side][row] for side, row in order.sort("time", "side", "row").select("side", "row").iter_rows()]


def ndjson(frame: pl.DataFrame) -> list[bytes]:
    """Each row as one JSON object."""
    text = io.BytesIO()
    frame.write_ndjson(text)
    return text.getvalue().splitlines()


async def produce(broker: str, events: str, labels: str, limit: int, records: int, pace: int) -> None:
    """Write what the module says."""
    todo = messages(events, labels, limit)[: records or None]
    producer = AIOKafkaProducer(bootstrap_servers=broker, acks="all", max_batch_size=BATCH_BYTES, linger_ms=LINGER_MS)
    await producer.start()
    try:
        if pace:
            await write_paced(producer, todo, pace)
        else:
            await write_backlog(producer, todo)
            await write_marks(producer, (events, labels))
    finally:
        await producer.stop()


async def write_backlog(producer: AIOKafkaProducer, todo: list[Message]) -> None:
    """As fast as it goes: in batches of our own, each record in the partition that the default partitioner takes."""
    said = time.monotonic()
    partition_of: dict[bytes, int] = {}
    batches: dict[tuple[str, int], Any] = {}
    sent = []
    choose = DefaultPartitioner()
    partitions = {topic: sorted(await producer.partitions_for(topic)) for topic in {message.topic for message in todo}}
    for number, (topic, key, value) in enumerate(todo):
        partition = partition_of.get(key)
        if partition is None:
            partition = partition_of[key] = choose(key, partitions[topic], partitions[topic])
        at = topic, partition
        batch = batches.get(at)
        if batch is None or batch.append(key=key, value=value, timestamp=None) is None:
            if batch is not None:
                sent.append(await producer.send_batch(batch, topic, partition=partition))
            batch = batches[at] = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            say(number, len(todo))
    sent += [await producer.send_batch(batch, topic, partition=p) for (topic, p), batch in batches.items()]
    await asyncio.gather(*sent)
    say(len(todo), len(todo))


async def write_paced(producer: AIOKafkaProducer, todo: list[Message], pace: int) -> None:
    """So many a second, each stamped with the time at which it was due: what the producer is late counts as latency."""
    began, began_wall, said, number = time.monotonic(), time.time(), 0.0, 0
    sent = []
    while number < len(todo):
        elapsed = time.monotonic() - began
        due = min(len(todo), int(elapsed * pace))
        for topic, key, value in todo[number:due]:
            stamp = int((began_wall + number / pace) * 1000)
            sent.append(await producer.send(topic, value, key, timestamp_ms=stamp))
            number += 1
        if elapsed - said > SAY_SECONDS:
            said = elapsed
            say(number, len(todo))
        await asyncio.sleep(TICK_SECONDS)
    await asyncio.gather(*sent)
    say(len(todo), len(todo))


async def write_marks(producer: AIOKafkaProducer, topics: tuple[str, ...]) -> None:
    """Nothing more comes: a mark on each partition ends all waits."""
    for topic in topics:
        for partition in await producer.partitions_for(topic):
            await producer.send_and_wait(topic, None, b"", partition, headers=[(END_OF_STREAM, b"")])


def say(done: int, goal: int) -> None:
    print(f"{done:,} of {goal:,} records", flush=True)


def main(words: list[str]) -> None:
    broker, events, labels, *numbers = words
    limit, records, pace = map(int, numbers)
    asyncio.run(produce(broker, events, labels, limit, records, pace))


if __name__ == "__main__":
    main(sys.argv[1:])
