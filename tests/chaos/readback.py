"""What a run has left, read back: topics, read_committed, and the last snapshots in Redis. Plain clients, no headrace."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import msgspec
import numpy as np
import redis
from chaos.account import Input, Raw
from kafka import IsolationLevel, KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from numpy.typing import NDArray

SETTLE_SECONDS = 60.0  # the last transaction of a worker that was killed is aborted after 10 to 25 s
MANY = 200_000  # records that are worth processes of their own to read them


class Topics(NamedTuple):
    """The names of a run's topics, and of its consumer group."""

    events: str
    labels: str
    predictions: str
    dead_letters: str
    journal: str
    group: str

    def of(self, role: str) -> str:
        """The topic of "events" or "labels"."""
        return self.events if role == "events" else self.labels


class Made:
    """The predictions of one output partition, by column; offset and time are of the event."""

    def __init__(self) -> None:
        self.offset, self.value, self.time = array("q"), array("d"), array("d")
        self.key: list[str] = []
        self.record_key: list[bytes | None] = []
        self.strange: list[str] = []  # records that are no predictions for events of this partition


class Prediction(msgspec.Struct):
    """A prediction record."""

    key: str
    prediction: float
    model: str
    version: int
    age_seconds: float | None
    time: float
    source: str


class Read(NamedTuple):
    """All topics of a run: inputs by role and partition, what was made of them by partition, the journal in order."""

    inputs: dict[tuple[str, int], Input]
    made: dict[int, Made]
    letters: dict[int, list[Raw]]
    journal: list[tuple[int, dict[str, Any]]]  # offset, body


Ends = dict[tuple[str, int], int]  # (topic, partition) -> the offset behind its last record
Job = tuple[str, str, int, int]  # role, topic, partition, end


def settled_ends(broker: str, topics: Topics, partitions: int) -> Ends:
    """How far every partition of the run is written, once no transaction is open any more.

    Raises TimeoutError when one does not end, ValueError when the beginning of a topic is gone.
    """
    names = [topics.events, topics.labels, topics.predictions, topics.dead_letters]
    wanted = [TopicPartition(name, p) for name in names for p in range(partitions)]
    wanted.append(TopicPartition(topics.journal, 0))
    with closing(KafkaAdminClient(bootstrap_servers=broker)) as admin:

        def offsets(spec: OffsetSpec, level: IsolationLevel) -> dict[TopicPartition, int]:
            found = admin.list_partition_offsets(dict.fromkeys(wanted, spec), isolation_level=level)
            return {at: answer.offset for at, answer in found.items()}

        for at, first in offsets(OffsetSpec.EARLIEST, IsolationLevel.READ_UNCOMMITTED).items():
            if first:
                raise ValueError(f"{at.topic}-{at.partition} begins at offset {first}: an account needs all of it")
        written = offsets(OffsetSpec.LATEST, IsolationLevel.READ_UNCOMMITTED)
        until = time.monotonic() + SETTLE_SECONDS
        while open := written.items() - offsets(OffsetSpec.LATEST, IsolationLevel.READ_COMMITTED).items():
            if time.monotonic() > until:
                raise TimeoutError(f"transactions do not end within {SETTLE_SECONDS:g} s: {sorted(open)}")
            time.sleep(0.05)
        return {(at.topic, at.partition): end for at, end in written.items()}


def read_topics(broker: str, topics: Topics, ends: Ends) -> Read:
    """Everything, in two processes where there is much of it."""
    roles = {name: role for role, name in topics._asdict().items()}
    jobs: list[Job] = [(roles[topic], topic, partition, end) for (topic, partition), end in ends.items()]
    if sum(ends.values()) < MANY:
        found = read_share(broker, topics.events, jobs)
    else:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            shares = [pool.submit(read_share, broker, topics.events, jobs[half::2]) for half in (0, 1)]
            found = shares[0].result() | shares[1].result()
    by_role: dict[str, dict[int, Any]] = {}
    for (role, partition), got in found.items():
        by_role.setdefault(role, {})[partition] = got
    inputs = {(role, p): rows for role in ("events", "labels") for p, rows in by_role[role].items()}
    return Read(inputs, by_role["predictions"], by_role["dead_letters"], by_role["journal"][0])


def read_share(broker: str, events: str, jobs: list[Job]) -> dict[tuple[str, int], Any]:
    """What some partitions hold, by role and partition. events: the name of their topic."""
    found: dict[tuple[str, int], Any] = {}
    with consumer(broker) as reader:
        for role, topic, partition, end in jobs:
            batches = records(reader, topic, partition, end)
            if role in ("events", "labels"):
                found[role, partition] = read_input(batches, role, end)
            elif role == "predictions":
                found[role, partition] = read_predictions(batches, f"{events}-{partition}-")
            elif role == "dead_letters":
                found[role, partition] = [raw(record) for batch in batches for record in batch]
            else:
                found[role, partition] = [(r.offset, json.loads(r.value)) for batch in batches for r in batch]
    return found


def consumer(broker: str) -> closing[KafkaConsumer]:
    """For `records`; to be closed."""
    return closing(
        KafkaConsumer(
            bootstrap_servers=broker, group_id=None, enable_auto_commit=False, isolation_level="read_committed",
            max_poll_records=5_000, max_partition_fetch_bytes=8 << 20, fetch_max_bytes=8 << 20,
            check_crcs=False,  # in plain Python they cost more than all else
        )
    )  # fmt: skip


def records(reader: KafkaConsumer, topic: str, partition: int, end: int) -> Iterator[list[Any]]:
    """The committed records of a partition from its beginning to `end`, in batches; one partition at a time."""
    at = TopicPartition(topic, partition)
    reader.assign([at])
    reader.seek(at, 0)
    while reader.position(at) < end:
        yield from reader.poll(1000).values()


def raw(record: Any) -> Raw:
    return Raw(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))


def read_input(batches: Iterator[list[Any]], role: str, end: int) -> Input:
    rows = Input(role, end)
    for batch in batches:
        rows.add(map(raw, batch))
    return rows


def read_predictions(batches: Iterator[list[Any]], source: str) -> Made:
    """source: what the source of each begins with, "topic-partition-"."""
    made, decode = Made(), msgspec.json.Decoder(Prediction).decode
    for batch in batches:
        for record in batch:
            try:
                row = decode(record.value or b"")
                if not row.source.startswith(source):
                    raise ValueError(f"made for {row.source}")
                offset = int(row.source.removeprefix(source))
            except ValueError as error:  # of msgspec too
                made.strange.append(f"{record.topic}-{record.partition}@{record.offset}: {error}")
                continue
            made.offset.append(offset)
            made.value.append(row.prediction)
            made.time.append(row.time)
            made.key.append(row.key)
            made.record_key.append(record.key)
    return made


def committed_offsets(broker: str, topics: Topics) -> dict[tuple[str, int], tuple[int, str]]:
    """The offsets of the group and their metadata, by role and partition."""
    role = {topics.events: "events", topics.labels: "labels"}
    with closing(KafkaAdminClient(bootstrap_servers=broker)) as admin:
        rows = admin.list_group_offsets(topics.group)[topics.group]
    return {
        (role[at.topic], at.partition): (row.offset, row.metadata)
        for at, row in rows.items()
        if at.topic in role and row.offset >= 0
    }


class Snapshot(NamedTuple):
    """The last snapshot of a slot; token is the journal offset of the last cycle it holds."""

    version: int
    token: int
    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def partitions(self) -> list[int]:
        """Those whose state it holds as its own."""
        return sorted({int(name.split("/")[1]) for name in self.arrays if name.startswith("partition/")})


def read_snapshot(url: str, topics: Topics, slot: int) -> Snapshot | None:
    """The last snapshot of a slot; None where there is none. Raises ValueError when a part is missing or altered."""
    name = f"headrace:{{{topics.group.removeprefix('headrace.')}}}:{slot}"
    with redis.Redis.from_url(url) as store:
        pointer = store.hgetall(f"{name}:recovery")
        if not pointer:
            return None
        version = int(pointer[b"version"])
        body = store.hget(f"{name}:manifest:{version}", "body") or b""
        if hashlib.sha256(body).hexdigest() != pointer[b"manifest"].decode():
            raise ValueError(f"slot {slot}, version {version}: the manifest is missing or altered")
        manifest = json.loads(body)
        arrays = {}
        for entry in manifest["arrays"]:
            chunks = []
            for digest, _ in entry["chunks"]:
                chunk = store.get(f"{name}:chunk:{digest}") or b""
                if hashlib.sha256(chunk).hexdigest() != digest:
                    raise ValueError(f"slot {slot}, version {version}: {entry['name']} is missing or altered")
                chunks.append(chunk)
            arrays[entry["name"]] = np.frombuffer(b"".join(chunks), entry["dtype"]).reshape(entry["shape"])
    return Snapshot(version, manifest["token"], manifest["meta"], arrays)
