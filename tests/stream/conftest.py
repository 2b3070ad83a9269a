"""Real workers as processes, each on a pipeline of visits and sales with topics of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from headrace.connectors.embedded import free_port
from headrace.connectors.store import Snapshot, SnapshotStore
from headrace.connectors.topics import create_topics
from headrace.stream.decode import Decoder
from headrace.stream.encode import JournalRecord
from headrace.stream.engine import Engine
from headrace.stream.load import load_pipeline
from headrace.stream.slices import Record, Slice

T0 = 1_700_000_000  # seconds
PATIENCE_SECONDS = 120.0  # for anything: the machine may be busy

PIPELINE = """
import math

import msgspec
import polars as pl
from headrace import Events, Labels, Pipeline, Predictions, Snapshots, category, count, mean, numeric
from headrace.models import FTRL, LogisticRegression, Prior, StandardScaler


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool | None


parts = dict(
    name="{name}",
    events=Events("{name}.visits", Visit, key="id", time="time", unit="s"),
    labels=Labels("{name}.sales", Sale, key="id", time="time", unit="s", value="sold", within="1h"),
    features=[
        numeric("price"), category("site"), count(by="site", over="1h", capacity=50),
        mean("label", by="site", over="6h", capacity=50),
    ],
    model=StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.1, half_life="2h"), bits=10),
    predictions=Predictions("{name}.scores"),
)
pipeline = Pipeline(**(parts | dict({changes})))
app = pipeline.app
"""


def eventually(condition: Callable[[], object], state: Callable[[], object]) -> object:
    """Wait until condition() is true; returns what it gave. state() says how things stand when it never is."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {PATIENCE_SECONDS:g} s; now: {state()}"
        time.sleep(0.05)
    return found


class Worker:
    """A worker as a process of its own; what it prints goes to a file."""

    eventually = staticmethod(eventually)

    def __init__(self, command: Sequence[str], log: Path, folder: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment
            )
        self.port = int(environment["HEADRACE_WEB_PORT"])

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its web server; raises OSError while there is none."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as page:
            return page.status, page.read().decode()

    def page_or_error(self, path: str) -> tuple[int, str]:
        """The same, also for a status that says no."""
        try:
            return self.page(path)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> dict[str, float]:
        """The figures at /metrics, without "headrace_" and "_total"; empty before the page is there."""
        try:
            lines = self.page("/metrics")[1].splitlines()
        except OSError:
            return {}
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("headrace_").removesuffix("_total"): float(value) for name, value in pairs}

    def alive(self) -> bool:
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.printed}"
        return True

    def until(self, **least: float) -> dict[str, float]:
        """Wait until these figures of /metrics are at least so great; returns all figures."""

        def reached() -> dict[str, float] | None:
            figures = self.metrics() if self.alive() else {}
            return figures if figures and all(figures.get(name, 0) >= n for name, n in least.items()) else None

        return eventually(reached, lambda: f"{self.metrics()}\n{self.printed}")  # type: ignore[return-value]

    def says(self, words: str) -> str:
        """Wait until it has printed these words; returns all that it has printed."""
        eventually(lambda: words in self.printed or not self.alive(), lambda: self.printed)
        return self.printed

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def ends(self) -> int:
        """Wait until it ends by itself; returns the exit status."""
        return self.process.wait(PATIENCE_SECONDS)


class Shop:
    """A pipeline file, its topics on the real broker, and what its workers make of them."""

    scripts = Path(sys.executable).parent

    def __init__(
        self,
        kafka: str,
        redis_url: str,
        folder: Path,
        name: str,
        partitions: int = 2,
        changes: str = "",
        **config: object,
    ) -> None:
        self.kafka, self.redis_url, self.folder, self.name, self.partitions = kafka, redis_url, folder, name, partitions
        self.visits, self.sales, self.scores = f"{name}.visits", f"{name}.sales", f"{name}.scores"
        self.file = folder / "shop.py"
        self.file.write_text(PIPELINE.format(name=name, changes=changes))
        self.pipeline = load_pipeline(str(self.file))
        self._started = 0
        self._open = ExitStack()
        self.producer = KafkaProducer(bootstrap_servers=kafka, max_request_size=4 << 20, linger_ms=5)
        self._open.callback(self.producer.close)
        self.create({self.visits: partitions, self.sales: partitions}, **config)

    def create(self, topics: dict[str, int], **config: object) -> None:
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        create_topics(self.kafka, topics, settings=dict.fromkeys(topics, settings))

    def close(self) -> None:
        self._open.close()

    # what goes in

    def produce(self, rows: Sequence[tuple[str, dict]]) -> None:
        """Send ("events" or "labels", row) in this order, each to the partition that its id gives."""
        for role, row in rows:
            key = row["id"].encode()
            topic = self.visits if role == "events" else self.sales
            value = json.dumps(row).encode()
            self.producer.send(topic, value, key=key, partition=self.partition(row["id"]))
        self.producer.flush()

    def partition(self, key: str) -> int:
        """Where `produce` sends a row with this id."""
        return crc32(key.encode()) % self.partitions

    def send(self, topic: str, value: bytes | None, partition: int = 0, key: bytes | None = None, headers=()) -> int:
        """Send one record as it is; returns its offset."""
        sent = self.producer.send(topic, value, key=key, partition=partition, headers=list(headers))
        return int(sent.get(PATIENCE_SECONDS).offset)

    # who works on it

    def start(self, *options: str, slot: int = 0, command: Sequence[str] = (), **environment: str) -> Worker:
        """A worker of this pipeline; it is killed when the shop closes."""
        self._started += 1
        port = free_port()
        settings = {
            "HEADRACE_BROKER": self.kafka, "HEADRACE_REDIS": self.redis_url, "HEADRACE_SLOT": str(slot),
            "HEADRACE_WEB_PORT": str(port), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        command = command or [str(self.scripts / "headrace"), "run", str(self.file), *options]
        worker = Worker(command, self.folder / f"worker-{self._started}.log", self.folder, settings | environment)
        self._open.callback(worker.process.wait)
        self._open.callback(worker.process.kill)
        return worker

    # what comes out

    def read(self, topic: str) -> dict[int, list]:
        """All committed records of a topic, per partition, in order; transactions under way are waited for."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.kafka, group_id=None, enable_auto_commit=False, isolation_level="read_committed"
        )
        try:
            numbers = sorted(consumer.partitions_for_topic(topic) or ())
            found: dict[int, list] = {number: [] for number in numbers}
            partitions = [TopicPartition(topic, number) for number in numbers]
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            written = self._ends(topic)
            until = time.monotonic() + PATIENCE_SECONDS
            while (ends := consumer.end_offsets(partitions)) and any(ends[tp] < end for tp, end in written.items()):
                assert time.monotonic() < until, f"a transaction on {topic} does not end"
                time.sleep(0.02)  # its markers come after the answer to its commit
            while any(consumer.position(tp) < end for tp, end in ends.items()):
                for tp, records in consumer.poll(50).items():
                    found[tp.partition] += records
            return found
        finally:
            consumer.close()

    def end(self, topic: str) -> int:
        """How far a topic is written, over all partitions; transaction markers count too."""
        return sum(self._ends(topic).values())

    def _ends(self, topic: str) -> dict[TopicPartition, int]:
        consumer = KafkaConsumer(bootstrap_servers=self.kafka, group_id=None, enable_auto_commit=False)
        try:
            return consumer.end_offsets([TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()])
        finally:
            consumer.close()

    def predictions(self) -> dict[int, list[dict]]:
        return {p: [json.loads(record.value) for record in records] for p, records in self.read(self.scores).items()}

    def sources(self) -> list[str]:
        """What every prediction was made for."""
        return sorted(prediction["source"] for rows in self.predictions().values() for prediction in rows)

    def events(self) -> list[str]:
        """What there should be a prediction for, as `sources` tells it: the visits that name their site."""
        visits = ((p, record) for p, records in self.read(self.visits).items() for record in records)
        return sorted(f"{self.visits}-{p}-{record.offset}" for p, record in visits if b'"site"' in record.value)

    def committed(self) -> dict[tuple[str, int], int]:
        """The group's offsets, by role and partition."""
        admin = KafkaAdminClient(bootstrap_servers=self.kafka)
        try:
            rows = admin.list_group_offsets(self.pipeline.group)[self.pipeline.group]
        finally:
            admin.close()
        role = {self.visits: "events", self.sales: "labels"}
        return {(role[tp.topic], tp.partition): row.offset for tp, row in rows.items()}

    def until_committed(self) -> None:
        """Wait until the group has committed all that is in its topics: what workers count may be on its way yet."""
        ends = {
            (role, tp.partition): end
            for role, topic in (("events", self.visits), ("labels", self.sales))
            for tp, end in self._ends(topic).items()
        }

        def done() -> bool:
            committed = self.committed()
            return all(committed.get(of, 0) >= end for of, end in ends.items())

        eventually(done, lambda: f"committed: {self.committed()}, of {ends}")

    def pieces(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """What the journal tells of each role and partition, over all slots: (start, next), in order of offsets."""
        found: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for told in self.read(self.pipeline.journal_topic)[0]:
            for role, partition, start, next in JournalRecord.decode(told.value).pieces:
                found.setdefault((role, partition), []).append((start, next))
        return {of: sorted(pieces) for of, pieces in found.items()}

    def snapshot(self, slot: int = 0) -> Snapshot | None:
        return SnapshotStore(self.redis_url, self.name, slot).load_newest_whole()

    def cycles(self, slot: int = 0) -> Iterator[list[Slice]]:
        """The pieces of each cycle that the journal of a slot tells of, with their records."""
        inputs = {"events": self.read(self.visits), "labels": self.read(self.sales)}
        for told in self.read(self.pipeline.journal_topic)[0]:
            cycle = JournalRecord.decode(told.value)
            if cycle.slot != slot:
                continue
            pieces = []
            for role, partition, start, next in cycle.pieces:
                records = [
                    Record(r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
                    for r in inputs[role][partition]
                    if start <= r.offset < next
                ]
                pieces.append(Slice(role, partition, start, next, records))
            yield pieces

    def by_hand(self, slot: int = 0) -> tuple[Engine, dict]:
        """An engine driven over the journal's pieces, each decoded alone, and its predictions by source."""
        engine, out = Engine(self.pipeline), {}
        decoders = {role: Decoder(self.pipeline, role) for role in ("events", "labels")}
        for number in range(self.partitions):
            engine.own(number)
        for cycle in self.cycles(slot):
            for piece in cycle:
                batch = decoders[piece.role].decode(piece)
                done = engine.process(batch, piece.start, piece.next)
                if done.predicted is not None:
                    p = done.predicted
                    for offset, row in zip(batch.offset[p.lo : p.hi], p.out, strict=True):
                        said = [float(str(value)) for value in row]
                        classes = self.pipeline.classes
                        out[f"{self.visits}-{piece.partition}-{offset}"] = (
                            dict(zip(classes, said)) if classes else said[0]
                        )
            engine.end_cycle()
        return engine, out


def stream(seed: int, events: int, first: int = 0) -> list[tuple[str, dict]]:
    """(role, row) in order of time: visits, one a second, and their sales after up to half an hour; 1 in 20 has none."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(first, first + events):
        site = "abcde"[rng.integers(5)]
        price = None if rng.random() < 0.1 else float(rng.normal(5, 3))
        at = T0 + i + float(rng.random())
        rows.append((at, "events", {"id": f"v{i}", "time": at, "site": site, "price": price}))
        if rng.random() < 0.95:
            later = at + float(rng.uniform(1, 1800))
            sold = bool(rng.random() < (0.2 if site < "c" else 0.8))
            rows.append((later, "labels", {"id": f"v{i}", "time": later, "sold": sold}))
    return [(role, row) for _, role, row in sorted(rows, key=lambda row: row[0])]


@pytest.fixture(scope="module")
def open_shop(kafka: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Shop]]:
    """open_shop("name", partitions=2, changes="delivery=...", **topic settings) -> Shop, for the tests of one file."""
    with ExitStack() as shops:

        def open_one(name: str, partitions: int = 2, changes: str = "", on: str = kafka, **config: object) -> Shop:
            name = f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{os.urandom(3).hex()}"
            shop = Shop(on, redis_url, tmp_path_factory.mktemp(name), name, partitions, changes, **config)
            shops.callback(shop.close)
            return shop

        yield open_one


@pytest.fixture(scope="session")
def visits_and_sales() -> Callable[..., list[tuple[str, dict]]]:
    """visits_and_sales(seed, events, first=0): see `stream`."""
    return stream
