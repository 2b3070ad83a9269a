"""Milliseconds from an event sent until its prediction is readable: `python -m benchmarks.latency`.

The broker alone, headrace in both deliveries and its peers, one after another, on a broker that has warmed up: for its
first minute it takes most of a core for compiling itself. Each first gets nothing, then single
events at 100 a second, then a steady load in batches of 2 ms. The load notes when it sent each batch, a read_committed
reader when each prediction came; both are processes of their own that touch no record while they measure. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ctypes import Array, c_double
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from benchmarks.load import Batch, Writer, cpu_seconds, make_batches
from benchmarks.throughput import (
    FAUST,
    HEADRACE,
    PARTITIONS,
    QUIX,
    TOPIC,
    Contestant,
    make_environment,
    peer_command,
    pinned,
    running,
    say,
)
from kafka import TopicPartition as PlainTopicPartition
from kafka.admin import KafkaAdminClient

from headrace.connectors import embedded
from headrace.connectors.fetching import keep_bytes, take
from headrace.connectors.record_batches import RecordBatches, unpack
from headrace.connectors.topics import create_topics, end_offsets

ROOT = Path(__file__).parent.parent
TICK_SECONDS = 0.002  # between two batches of the steady load
QUIET_RATE = 100  # events a second, each in a batch of its own
KNOCK_SECONDS = 0.5  # between two events for a worker that starts
START_SECONDS = 60.0  # until it predicts the first of them
LAST_SECONDS = 10.0  # until the last prediction has come
WARM_UP_SECONDS = 60.0  # of steady load before the first of them
WANTED = (50, 90, 99, 100)  # percentiles


@dataclass(frozen=True)
class Part:
    """One who takes part, and the steady load that it gets, in events a second."""

    contestant: Contestant
    delivery: str
    rate: int

    @property
    def output(self) -> str:
        return f"{self.delivery}.predictions" if self.contestant is HEADRACE else self.contestant.output

    def command(self, broker: str, redis: str) -> list[str]:
        if self.contestant is NOBODY:
            return ["sleep", "infinity"]
        if self.contestant is not HEADRACE:
            return peer_command(self.contestant.script)
        tool = Path(sys.executable).parent / "headrace"
        return [str(tool), "run", str(ROOT / "benchmarks" / "durable.py"), "--broker", broker, "--redis", redis]

    def environment(self, broker: str) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        ours = {"NAME": self.delivery, "DELIVERY": self.delivery, "PYTHONPATH": path}
        return {"BROKER": broker} | (ours if self.contestant is HEADRACE else {})


NOBODY = Contestant("the broker alone", "events are read as they were sent", TOPIC, None)
PARTS = {
    "broker": Part(NOBODY, "", 10_000),
    "at-least-once": Part(HEADRACE, "at_least_once", 10_000),
    "exactly-once": Part(HEADRACE, "exactly_once", 10_000),
    "quix": Part(QUIX, "at_least_once", 10_000),
    "faust": Part(FAUST, "at_least_once", 1_000),  # of the 2,200 that it reaches at its best
}


class Load(NamedTuple):
    """What a contestant made of a load. latency: float64 (events,) in seconds; cpu: of one core, 0.5 is a half."""

    latency: np.ndarray
    cpu: float


class Result(NamedTuple):
    part: Part
    idle: float  # CPU, of one core
    quiet: Load
    steady: Load


# ---- what measures


class Reader:
    """Notes when predictions became readable. Of what was fetched nothing is looked at before `collect`."""

    def __init__(self, broker: str, topic: str) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=broker,
            isolation_level="read_committed",
            enable_auto_commit=False,
            fetch_max_wait_ms=100,  # for a first record; none waits for a second
        )
        self._partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        self._seen: list[tuple[float, RecordBatches]] = []

    async def start(self) -> None:
        await self._consumer.start()
        keep_bytes(self._consumer._fetcher)
        self._consumer.assign(self._partitions)
        await self._consumer.seek_to_beginning(*self._partitions)
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        self._reading.cancel()
        await self._consumer.stop()

    async def _read(self) -> None:
        fetcher = self._consumer._fetcher
        while True:
            waiter = fetcher._create_fetch_waiter()
            now = time.monotonic()
            for partition in list(fetcher._records):
                run = take(fetcher, partition, 1 << 30)
                if run is not None and isinstance(run.records, RecordBatches) and len(run.records):
                    self._seen.append((now, run.records))
            await asyncio.wait([waiter], timeout=1.0)

    @property
    def seen(self) -> int:
        return sum(len(records) for _, records in self._seen)

    def collect(self, count: int) -> np.ndarray:
        """When each event's first prediction came, float64 (count,), by the monotonic clock; NaN: it did not come.

        What was read is forgotten.
        """
        seen, self._seen = self._seen, []
        came = np.full(count, np.nan)
        for now, records in reversed(seen):
            key = unpack([records]).key
            digits = key.data[key.start[:, None] + np.arange(1, 9)] - np.int64(48)  # v00000123
            came[digits @ 10 ** np.arange(7, -1, -1)] = now
        return came


def _pace(address: str, rate: int, records: int, count: int, sent: Array[c_double], begun: Any) -> None:
    """In a process of its own: write the first `count` events in batches of so many, and note when each was sent."""
    batches = make_batches(count, records)
    with Writer(address, TOPIC) as writer:
        begun.set()
        start = time.monotonic()
        for number, batch in enumerate(batches):
            time.sleep(max(0.0, start + number * records / rate - time.monotonic()))
            sent[number] = time.monotonic()
            writer.write(batch)
        writer.finish()
        if (behind := time.monotonic() - start - count / rate) > 1.0:
            raise RuntimeError(f"the load is {behind:.1f} s behind")


async def measure(broker: str, reader: Reader, pid: int, rate: int, records: int, warm: float, seconds: float) -> Load:
    """Load a worker for `warm` seconds, and then for those that count."""
    whole = PARTITIONS * records  # a batch for every partition
    count = -(-int(rate * (warm + seconds)) // whole) * whole
    spawn = multiprocessing.get_context("spawn")
    sent, begun = spawn.RawArray(c_double, count // records), spawn.Event()
    process = spawn.Process(target=_pace, args=(broker, rate, records, count, sent, begun), daemon=True)
    process.start()
    try:
        while not begun.is_set() and process.is_alive():
            await asyncio.sleep(0.01)
        await asyncio.sleep(warm)
        began, cpu = time.monotonic(), cpu_seconds(pid)
        await asyncio.sleep(seconds - 0.2)
        used = (cpu_seconds(pid) - cpu) / (time.monotonic() - began)
        until = time.monotonic() + LAST_SECONDS
        while (process.is_alive() or reader.seen < count) and time.monotonic() < until:
            await asyncio.sleep(0.05)
    finally:
        process.kill()
        process.join()
    if process.exitcode:
        raise RuntimeError(f"{rate:,} events a second could not be written; see above")
    await asyncio.sleep(0.5)  # for repeats
    # event i is in partition i % P, and every P * records events fill one batch of each
    event = np.arange(count)
    latency = reader.collect(count) - np.array(sent)[event // whole * PARTITIONS + event % PARTITIONS]
    latency = latency[event >= rate * warm]
    if lost := int(np.isnan(latency).sum()):
        raise RuntimeError(f"{lost:,} of {len(latency):,} events had no prediction {LAST_SECONDS:g} s after the last")
    return Load(latency, used)


async def run(part: Part, broker: str, redis: str, folder: Path, chosen: argparse.Namespace) -> Result:
    """Start one contestant, load it, stop it."""
    rate = chosen.rate or part.rate
    say(f"{part.contestant.name}, {part.delivery.replace('_', ' ')}: {rate:,} events/s")
    log = folder / f"{part.output}.log"
    reader = Reader(broker, part.output)
    with log.open("wb") as output, running(part.command(broker, redis), part.environment(broker), folder, output) as of:
        await reader.start()
        try:
            await knock(broker, reader, of, log)
            await asyncio.sleep(1.0)
            cpu, began = cpu_seconds(of.pid), time.monotonic()
            await asyncio.sleep(chosen.seconds)
            idle = (cpu_seconds(of.pid) - cpu) / (time.monotonic() - began)
            say(f"  idle: {idle:.1%} of a core")
            reader.collect(1_000)
            quiet = await measure(broker, reader, of.pid, QUIET_RATE, 1, 1.0, chosen.seconds / 2)
            say(f"  {QUIET_RATE} events/s: {told(quiet)}")
            records = max(1, round(rate * TICK_SECONDS))
            steady = await measure(broker, reader, of.pid, rate, records, chosen.warm, chosen.seconds)
            say(f"  {rate:,} events/s: {told(steady)}")
        finally:
            await reader.stop()
    return Result(part, idle, quiet, steady)


async def knock(broker: str, reader: Reader, of: subprocess.Popen[bytes], log: Path) -> None:
    """Send an event now and then until one is predicted."""
    batches: list[Batch] = make_batches(4 * PARTITIONS, 1)
    until = time.monotonic() + START_SECONDS
    with Writer(broker, TOPIC) as writer:
        number = 0
        while not reader.seen:
            if of.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no prediction within {START_SECONDS:g} s\n{log.read_text()[-3_000:]}")
            writer.write(batches[number % len(batches)])
            number += 1
            await asyncio.sleep(KNOCK_SECONDS)


def told(load: Load) -> str:
    figures = np.percentile(load.latency, WANTED) * 1e3
    shown = ", ".join(f"{name} {value:.1f}" for name, value in zip(("p50", "p90", "p99", "max"), figures, strict=True))
    return f"{shown} ms; {load.cpu:.1%} of a core"


@contextlib.contextmanager
def ground() -> Iterator[tuple[str, str, Path]]:
    """A broker with an empty topic of views, a Redis, and a folder for what workers print."""
    with (
        embedded.kafka() as broker,
        embedded.redis(properties={"appendonly": "no"}) as redis,
        tempfile.TemporaryDirectory() as folder,
    ):
        create_topics(broker.address, {TOPIC: PARTITIONS})
        yield broker.address, redis.url, Path(folder)


async def warm_up(broker: str) -> None:
    """Have the broker compile what it runs often."""
    say(f"the broker warms up: {WARM_UP_SECONDS:g} s")
    reader = Reader(broker, TOPIC)
    await reader.start()
    try:
        rate = 10_000
        await measure(broker, reader, os.getpid(), rate, round(rate * TICK_SECONDS), 0.0, WARM_UP_SECONDS)
    finally:
        await reader.stop()


def empty(broker: str) -> None:
    """Delete what others have left in the topic, for who comes next begins at its beginning."""
    ends = end_offsets(broker, [(TOPIC, number) for number in range(PARTITIONS)])
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        admin.delete_records({PlainTopicPartition(*place): end for place, end in ends.items() if end})
    finally:
        admin.close()


def compare(parts: list[Part], chosen: argparse.Namespace) -> list[Result]:
    """Let them run one after another. Raises RuntimeError when one fails, or leaves an event without a prediction."""
    for part in parts:
        if part.contestant.script:
            make_environment(part.contestant.script)
    results = []
    with ground() as (broker, redis, folder):
        asyncio.run(warm_up(broker))
        for part in parts:
            create_topics(broker, {part.output: PARTITIONS})
            empty(broker)
            results.append(asyncio.run(run(part, broker, redis, folder, chosen)))
    return results


# ---- the table


def table(results: list[Result], chosen: argparse.Namespace) -> str:
    from benchmarks.run import machine, today

    lines = [
        "| who | delivery | events/s | p50 | p90 | p99 | max | CPU | at 100/s: p50 | p99 | CPU | idle: CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for part, idle, quiet, steady in results:
        often = [f"{value * 1e3:.1f} ms" for value in np.percentile(steady.latency, WANTED)]
        seldom = [f"{value * 1e3:.1f} ms" for value in np.percentile(quiet.latency, (50, 99))]
        cells = [part.contestant.name, part.delivery.replace("_", " "), f"{chosen.rate or part.rate:,}", *often]
        cells += [f"{steady.cpu:.0%}", *seldom, f"{quiet.cpu:.1%}", f"{idle:.1%}"]
        if part.contestant is NOBODY:
            cells = ["" if cell.endswith("%") else cell for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    peers = "; ".join(f"{c.name}: {pinned(c.script)}" for c in (part.contestant for part, *_ in results) if c.script)
    lines += [
        "",
        f"{today()}, {machine()}. {chosen.seconds:g} s of each load, the steady one after {chosen.warm:g} s; "
        f"{PARTITIONS} partitions; Apache Kafka 4.1.1, warmed up for {WARM_UP_SECONDS:g} s, "
        f"Redis, load and reader on the same machine. CPU: of one core." + (f" {peers}." if peers else ""),
    ]
    return "\n".join(lines)


def main() -> int:
    from benchmarks.run import write_section

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=PARTS, help="one contestant; the table is then printed, not written")
    arguments.add_argument("--rate", type=int, help="events a second of the steady load, for all")
    arguments.add_argument("--seconds", type=float, default=20.0, help="of each measurement; the quiet load half")
    arguments.add_argument("--warm", type=float, default=5.0, help="seconds of the steady load that do not count")
    chosen = arguments.parse_args()
    results = compare([part for name, part in PARTS.items() if chosen.only in (None, name)], chosen)
    written = table(results, chosen)
    print("\n" + written)
    if not chosen.only:
        write_section("latency", written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
