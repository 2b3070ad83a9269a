"""Asking and telling the broker about topics, offsets and groups, before a worker runs and beside it. Synchronous."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from kafka import IsolationLevel, TopicPartition
from kafka.admin import KafkaAdminClient, MemberToRemove, OffsetSpec
from kafka.errors import (
    BrokerResponseError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from ..errors import InputError, Refused, Unreachable
from .groups import Committed
from .records import Partition

Answer = TypeVar("Answer")

PATIENCE_SECONDS = 6.0  # for a broker that does not answer; the whole start says so within 10
LOOK_SECONDS = 0.1  # between two looks at what changes by itself
READY_SECONDS = 30.0  # for one that answers and is not ready: making a partition takes a slow disk long


def ask(address: str, question: Callable[[KafkaAdminClient], Answer]) -> Answer:
    """Put a question to the broker; raises Unreachable and Refused in the place of kafka-python's errors."""
    admin, deadline = None, time.monotonic() + READY_SECONDS
    patience = {name: int(PATIENCE_SECONDS * 1000) for name in ("bootstrap_timeout_ms", "request_timeout_ms")}
    try:
        admin = KafkaAdminClient(bootstrap_servers=address, **patience)
        while True:
            try:
                return question(admin)
            except BrokerResponseError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)  # for one, a young broker still makes the topics that groups are kept in
    except BrokerResponseError as error:
        raise Refused(f"broker {address} refused: {error.description or error!r} ({type(error).__name__})") from error
    except (KafkaError, OSError, ValueError) as error:
        raise Unreachable(
            f"broker {address} does not answer ({error}); is it running, and is the address right? "
            "Give another with --broker or HEADRACE_BROKER"
        ) from error
    finally:
        if admin is not None:
            admin.close()


def partitions_of(address: str, topics: Iterable[str]) -> dict[str, int]:
    """The number of partitions of each topic; topics that do not exist are left out, and not created."""
    names = set(topics)

    def question(admin: KafkaAdminClient) -> dict[str, int]:
        existing = sorted(names.intersection(admin.list_topics()))  # asking for a topic by its name may create it
        found = admin.describe_topics(existing) if existing else []
        return {topic["name"]: len(topic["partitions"]) for topic in found if not topic["error_code"]}

    return ask(address, question)


def create_topics(
    address: str, topics: Mapping[str, int], *, settings: Mapping[str, Mapping[str, str]] | None = None
) -> list[str]:
    """Create those that are missing, each with its number of partitions, and wait until they can be used.

    settings: topic -> configuration, such as {"cleanup.policy": "compact"}. Replication is the broker's default.
    Returns the names of those created. One that exists is left as it is, with however many partitions.
    Raises Refused when the broker does not allow it, naming topic and reason.
    """
    existing = partitions_of(address, topics)
    wanted = {
        name: {"num_partitions": count, "replication_factor": -1, "configs": dict((settings or {}).get(name, {}))}
        for name, count in topics.items()
        if name not in existing
    }

    created: list[str] = []  # out here: `ask` may put the question again

    def question(admin: KafkaAdminClient) -> list[str]:
        for answer in admin.create_topics(wanted, raise_errors=False)["topics"]:
            error = for_code(answer["error_code"])
            if not answer["error_code"]:
                created.append(answer["name"])
            elif error is not TopicAlreadyExistsError:  # then another worker was quicker
                reason = answer.get("error_message") or error.description or error.__name__
                raise Refused(f"broker {address} does not create topic {answer['name']!r}: {reason}")
        admin.wait_for_topics(list(wanted), timeout_ms=int(READY_SECONDS * 1000))
        made = {TopicPartition(name, p): OffsetSpec.EARLIEST for name in created for p in range(topics[name])}
        if made:  # a leader is named before it has made its files; this asks until it has
            admin.list_partition_offsets(made)
        return created

    return ask(address, question) if wanted else []


def first_offsets(address: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The first offset that each partition still holds. Raises InputError for one that does not exist."""
    return _offsets(address, partitions, OffsetSpec.EARLIEST)


def end_offsets(address: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The offset behind the last committed record, and behind the transaction markers that follow it.

    Raises InputError for a partition that does not exist.
    """
    return _offsets(address, partitions, OffsetSpec.LATEST)


def high_watermarks(address: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The offset behind the last record, also where it belongs to a transaction that is still open.

    Raises InputError for a partition that does not exist.
    """
    return _offsets(address, partitions, OffsetSpec.LATEST, IsolationLevel.READ_UNCOMMITTED)


def wait_stable(address: str, partition: Partition, until: int, patience_seconds: float) -> int:
    """Wait until no open transaction holds back the records before offset `until`; return how far they can be read.

    The last transaction of a worker that died stays open until its time-out and up to 10 s longer, unless a successor
    with its transactional id ends it. Raises Refused when it is open for patience_seconds from now, InputError for a
    partition that does not exist.
    """
    deadline = time.monotonic() + patience_seconds
    while (stable := end_offsets(address, [partition])[partition]) < until:
        if time.monotonic() > deadline:
            raise Refused(
                f"{partition[0]}[{partition[1]}] cannot be read beyond offset {stable:,}, expected {until:,}: a "
                f"transaction that began there has not ended within {patience_seconds:g} s; is its producer alive?"
            )
        time.sleep(LOOK_SECONDS)
    return stable


def _offsets(
    address: str,
    partitions: Iterable[Partition],
    which: OffsetSpec,
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
) -> dict[Partition, int]:
    wanted = {TopicPartition(*partition): which for partition in partitions}

    def question(admin: KafkaAdminClient) -> dict[Partition, int]:
        try:
            found = admin.list_partition_offsets(wanted, isolation_level=isolation)
        except UnknownTopicOrPartitionError as error:
            names = ", ".join(f"{topic}[{number}]" for topic, number in sorted(wanted))
            raise InputError(f"broker {address} has no such partition among {names}; create the topic first") from error
        return {(tp.topic, tp.partition): answer.offset for tp, answer in found.items()}

    return ask(address, question) if wanted else {}


def committed_offsets(address: str, group: str) -> dict[Partition, int]:
    """What a consumer group has committed; empty for a group that is unknown."""
    return {partition: committed.offset for partition, committed in committed_by(address, group).items()}


def committed_by(address: str, group: str) -> dict[Partition, Committed]:
    """What a consumer group has committed, and what was written beside it; what an open transaction holds is not yet.

    Empty for a group that is unknown.
    """
    rows = ask(address, lambda admin: admin.list_group_offsets(group)).get(group, {})
    return {
        (tp.topic, tp.partition): Committed(row.offset, row.metadata or "")
        for tp, row in rows.items()
        if row.offset >= 0
    }


def remove_member(address: str, group: str, instance_id: str) -> bool:
    """Take a static member out of its group, which it never leaves by itself; False when it was not in it."""
    member = MemberToRemove(group_instance_id=instance_id)
    answers = ask(address, lambda admin: admin.remove_group_members(group, [member]))
    return all(not error.errno for error in answers.values())
