"""Events per second from topic to topic: one headrace worker and its peers, over the same events on the same broker.

Each contestant is one process that reads the topic `clicks` from its beginning and writes one prediction per event to a
topic of its own. The broker stamps predictions as they are appended (LogAppendTime), and the rate is taken from these
stamps alone, for all alike: predictions appended after a contestant's first tenth, by the time that took. Start-up,
compiling and the first fetches are so left out.

All take part in several rounds, one after the other; figures are medians of the rounds, also of the ratios. Before each
the free memory of the machine is touched and the topics' files are read, for all alike.

One of them has its labels on a topic of their own: it reads the topics `views` and `seen`, and its rate is of pairs.
Events run at most `alignment` ahead of labels: a pair has met and been learned soon after its event was predicted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from kafka import KafkaConsumer
from kafka import TopicPartition as PlainTopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from headrace.connectors import embedded

HERE = Path(__file__).parent
PEERS = HERE.parent / "build" / "peers"  # their virtual environments
TOPIC, PARTITIONS = "clicks", 4
EVENTS, LABELS = "views", "seen"  # of those with delayed labels
START = 1_700_000_000  # seconds: the time of the first event; 1,000 a second follow
LIMIT_SECONDS = 300.0  # for one contestant
QUIET_SECONDS = 4.0  # without a new prediction, after the last that is due
FRESH_BYTES = 2 << 30  # that a contestant, its broker and its Redis may come to need


@dataclass(frozen=True)
class Contestant:
    """One who takes part. events: how many it is given, None for all; slow peers get fewer, and the table says so.

    output  its topic; that of a round has the number of the round behind it
    """

    name: str
    does: str
    output: str
    events: int | None
    script: str = ""  # of a peer, in benchmarks/peers
    pipeline: str = ""  # of ours, in benchmarks


HEADRACE = Contestant(
    "headrace", "exactly once; 4 numbers, 2 categories, 2 aggregates; FTRL", "clicks.headrace", None,
    pipeline="clicks.py",
)  # fmt: skip
EXPRESSION = Contestant(
    "headrace, Polars", "the same, and a Polars expression of two fields", "expression.headrace", None,
    pipeline="expression.py",
)  # fmt: skip
DELAYED = Contestant(
    "headrace, delayed labels", "the same, each label 1 to 10 s later on a topic of its own", "views.headrace", None,
    pipeline="pairs.py",
)  # fmt: skip
QUIX = Contestant("Quix Streams + River", "at least once; 4 numbers; SGD", "clicks.quix-river", 300_000, "quix_river")
FAUST = Contestant("Faust + River", "at least once; 4 numbers; SGD", "clicks.faust-river", 60_000, "faust_river")
CONTESTANTS = (HEADRACE, EXPRESSION, DELAYED, QUIX, FAUST)


class Message(NamedTuple):
    """What is written to a topic."""

    topic: str
    partition: int
    key: bytes
    value: bytes


class Prediction(msgspec.Struct):
    key: str
    prediction: float


@dataclass(frozen=True)
class Result:
    """What a contestant did. predictions: read committed; repeats: of keys that were predicted before.

    rates  events/s of each round; the rest is of the last one, but for repeats, which are of all
    """

    contestant: Contestant
    versions: str
    predictions: int
    repeats: int
    rates: tuple[float, ...]
    log_loss: float

    @property
    def events_per_second(self) -> float:
        return statistics.median(self.rates)

    def times_as_fast_as(self, other: Result) -> float:
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


@dataclass
class Views:
    """The events: clicks of a logistic model over 4 numbers and 2 categories; the same ones for the same count."""

    count: int
    clicked: np.ndarray = field(init=False)  # bool (count,)
    value_bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        random = np.random.default_rng(7)
        self.numbers = random.normal(size=(self.count, 4))
        self.site = random.zipf(1.5, self.count) % 200
        self.ad = random.zipf(1.3, self.count) % 2_000
        taste = np.concatenate([random.normal(0, 0.5, 200), random.normal(0, 0.7, 2_000)])
        score = self.numbers @ (0.8, -0.6, 0.4, 0.0) + taste[self.site] + taste[200 + self.ad] - 1.0
        self.clicked = random.random(self.count) < 1 / (1 + np.exp(-score))

    def records(self) -> Iterator[Message]:
        """Each event with its label; about 120 bytes."""
        clicked = self.clicked.tolist()
        for i, value in self._values():
            whole = f'{value},"clicked":{"true" if clicked[i] else "false"}}}'.encode()
            self.value_bytes += len(whole)
            yield Message(TOPIC, i % PARTITIONS, f"v{i:08d}".encode(), whole)

    def pairs(self) -> Iterator[Message]:
        """Each event without its label, and then the labels, in order of time: 1 to 10 seconds later."""
        for i, value in self._values():
            yield Message(EVENTS, i % PARTITIONS, f"v{i:08d}".encode(), f"{value}}}".encode())
        time = START + np.arange(self.count) / 1_000 + np.random.default_rng(8).uniform(1, 10, self.count)
        for i in np.argsort(time).tolist():
            clicked = "true" if self.clicked[i] else "false"
            label = f'{{"id":"v{i:08d}","time":{time[i]:.3f},"clicked":{clicked}}}'.encode()
            yield Message(LABELS, i % PARTITIONS, f"v{i:08d}".encode(), label)

    def _values(self) -> Iterator[tuple[int, str]]:
        age, price, depth, speed = (column.tolist() for column in self.numbers.T)
        site, ad = self.site.tolist(), self.ad.tolist()
        for i in range(self.count):
            yield (
                i,
                (
                    f'{{"id":"v{i:08d}","time":{START + i / 1_000:.3f},"age":{40 + 10 * age[i]:.0f},'
                    f'"price":{9 + 2 * price[i]:.2f},"depth":{depth[i]:.2f},"speed":{speed[i]:.2f},'
                    f'"site":"s{site[i]}","ad":"ad{ad[i]}"'
                ),
            )

    def log_loss(self, rows: np.ndarray, prediction: np.ndarray) -> float:
        p = np.clip(prediction, 1e-9, 1 - 1e-9)
        return float(-np.mean(np.where(self.clicked[rows], np.log(p), np.log(1 - p))))

    def log_loss_constant(self) -> float:
        share = float(self.clicked.mean())
        return -(share * math.log(share) + (1 - share) * math.log(1 - share))


def compare(
    events: int, contestants: tuple[Contestant, ...] = CONTESTANTS, rounds: int = 1
) -> tuple[Views, list[Result]]:
    """Fill the topic and let the contestants run one after another, in each round.

    Raises SetupError when a server does not start, RuntimeError when a contestant ends early or takes too long.
    """
    for contestant in contestants:
        if contestant.script:
            make_environment(contestant.script)
    views = Views(events)
    properties = {"log.message.timestamp.type": "CreateTime"}
    with (
        embedded.kafka(properties=properties) as broker,
        embedded.redis() as redis,
        tempfile.TemporaryDirectory() as folder,
    ):
        say(f"writing {events:,} events")
        outputs = [f"{c.output}.{number}" for c in contestants for number in range(rounds)]
        create_topics(broker.address, outputs)
        asyncio.run(fill(broker.address, views.records()))
        say(f"  {views.value_bytes / events:.0f} bytes each, {PARTITIONS} partitions")
        if DELAYED in contestants:
            say("writing them without their labels, and the labels")
            asyncio.run(fill(broker.address, views.pairs()))
        results: dict[str, Result] = {}
        for number in range(rounds):
            for c in contestants:
                touch_memory()
                read_again(broker.folder)
                result = run(c, number, broker.address, redis.url, views, Path(folder))
                before = results.get(c.name)
                if before is not None:
                    rates, repeats = before.rates + result.rates, before.repeats + result.repeats
                    result = replace(result, rates=rates, repeats=repeats)
                results[c.name] = result
        return views, list(results.values())


def touch_memory() -> None:
    """Have the system's free memory at hand: on a virtual machine what was free for a while belongs to its host.

    To get it back costs some microseconds a page, which a contestant that writes 500 MB of predictions would pay.
    """
    size = min(FRESH_BYTES, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({size // 8})"], check=True)


def read_again(folder: Path) -> None:
    """Have what was written to the topics in the page cache: while a slow contestant runs, part of it may leave it."""
    for log in folder.rglob("*.log"):
        with log.open("rb") as file:
            while file.read(1 << 20):
                pass


def run(contestant: Contestant, number: int, broker: str, redis: str, views: Views, folder: Path) -> Result:
    """Let one contestant work until what is due has been predicted, stop it, and read what it wrote."""
    due, topic = min(contestant.events or views.count, views.count), f"{contestant.output}.{number}"
    say(f"{contestant.name}: {due:,} events, round {number + 1}")
    versions = pinned(contestant.script) if contestant.script else "this commit"
    if contestant.script:
        command = peer_command(contestant.script)
    else:
        tool = Path(sys.executable).parent / "headrace"
        command = [str(tool), "run", str(HERE / contestant.pipeline), "--broker", broker, "--redis", redis]
    log, path = folder / f"{topic}.log", os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    told = {"BROKER": broker, "RUN": f".{number}", "PYTHONPATH": path}
    with log.open("wb") as output, running(command, told, folder, output) as process:
        wait_until_predicted(process, broker, topic, due, log)
    times, rows, predictions = asyncio.run(read(broker, topic))
    began = times[len(times) // 10]
    steady = times > began
    result = Result(
        contestant,
        versions,
        predictions=len(rows),
        repeats=len(rows) - len(np.unique(rows)),
        rates=(float(steady.sum() / ((times[-1] - began) / 1_000)),),
        log_loss=views.log_loss(rows, predictions),
    )
    say(f"  {result.events_per_second:,.0f} events/s; {len(rows):,} predictions, {result.repeats:,} repeated")
    return result


def peer_command(script: str) -> list[str]:
    """What runs a peer; the address of the broker comes to it in the environment, as BROKER."""
    worker = ["worker", "-l", "warn", "--without-web"] if script == FAUST.script else []
    return [str(PEERS / script / "bin" / "python"), str(HERE / "peers" / f"{script}.py"), *worker]


@contextlib.contextmanager
def running(
    command: list[str], environment: dict[str, str], folder: Path, output: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, and end it with the `with` block: SIGTERM, after 30 s SIGKILL."""
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_predicted(process: subprocess.Popen[bytes], broker: str, topic: str, due: int, log: Path) -> None:
    """Return when `due` records lie in the topic and, where none are left to come, it has been quiet for a while."""
    partitions = [PlainTopicPartition(topic, p) for p in range(PARTITIONS)]
    consumer = KafkaConsumer(bootstrap_servers=broker)
    until, seen, moved = time.monotonic() + LIMIT_SECONDS, 0, time.monotonic()
    try:
        while True:
            time.sleep(1.0)
            now = time.monotonic()
            written = sum(consumer.end_offsets(partitions).values())  # with transactions, their markers too
            if written > seen:
                seen, moved = written, now
            if written >= due and (now - moved > QUIET_SECONDS or written >= 1.1 * due):
                return
            if process.poll() is not None or now > until:
                why = f"ended with status {process.returncode}" if process.poll() is not None else "took too long"
                raise RuntimeError(
                    f"{topic}: {why} after {written:,} of {due:,} predictions\n{log.read_text()[-3_000:]}"
                )
    finally:
        consumer.close()


def create_topics(broker: str, outputs: Sequence[str]) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        topics = [NewTopic(name, PARTITIONS, 1) for name in (TOPIC, EVENTS, LABELS)]
        stamped = {"message.timestamp.type": "LogAppendTime"}
        topics += [NewTopic(name, PARTITIONS, 1, topic_configs=stamped) for name in outputs]
        admin.create_topics(topics)
    finally:
        admin.close()


async def fill(broker: str, messages: Iterator[Message]) -> None:
    """Write all messages, in whole batches."""
    producer = AIOKafkaProducer(bootstrap_servers=broker, max_batch_size=512 << 10, acks="all")
    await producer.start()
    try:
        batches: dict[tuple[str, int], BatchBuilder] = {}
        now = int(time.time() * 1_000)
        for topic, partition, key, value in messages:
            to = topic, partition
            batch = batches.get(to)
            if batch is None or batch.append(key=key, value=value, timestamp=now) is None:
                if batch is not None:
                    await producer.send_batch(batch, topic, partition=partition)
                batches[to] = producer.create_batch()
                batches[to].append(key=key, value=value, timestamp=now)
        last = [await producer.send_batch(batch, topic, partition=p) for (topic, p), batch in batches.items()]
        await asyncio.gather(*last)
    finally:
        await producer.stop()


async def read(broker: str, topic: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All predictions of a topic, in order of time: append time in ms, number of the event, P(clicked)."""
    decoder = msgspec.json.Decoder(Prediction)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        times, rows, predictions = [], [], []
        until = time.monotonic() + LIMIT_SECONDS
        while any([await consumer.position(p) < ends[p] for p in partitions]) and time.monotonic() < until:
            for records in (await consumer.getmany(timeout_ms=1_000, max_records=50_000)).values():
                for record in records:
                    made = decoder.decode(record.value)
                    times.append(record.timestamp)
                    rows.append(int(made.key[1:]))
                    predictions.append(made.prediction)
    finally:
        await consumer.stop()
    order = np.argsort(np.array(times), kind="stable")
    return np.array(times)[order], np.array(rows)[order], np.array(predictions)[order]


def make_environment(script: str) -> None:
    """A virtual environment of the peer's own, with the pinned versions; made anew when they change."""
    folder, wanted = PEERS / script, (HERE / "peers" / f"{script}.txt").read_text()
    mark = folder / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    if mark.exists():
        return
    say(f"installing {pinned(script)} into {folder.relative_to(HERE.parent)}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "-r", str(HERE / "peers" / f"{script}.txt")], check=True, env=alone)
    mark.touch()


def pinned(script: str) -> str:
    """Name and version of what a peer runs, as its requirements say."""
    return ", ".join((HERE / "peers" / f"{script}.txt").read_text().replace("==", " ").split("\n")).strip(", ")


def say(text: str) -> None:
    print(text, flush=True)
