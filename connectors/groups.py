"""What the broker knows of a consumer group: its committed offsets, read and written under a member's generation.

aiokafka 0.14 speaks neither OffsetFetch v7, which waits out open transactions (KIP-447), nor TxnOffsetCommit v3, which
refuses a member that the group has moved on without.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError, for_code
from aiokafka.producer.sender import Sender
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from ..errors import Refused
from .records import Partition

BACKOFF_SECONDS = 0.05

LOADING, NOT_AVAILABLE, NOT_COORDINATOR, TIMED_OUT, UNSTABLE = 14, 15, 16, 7, 88
TRANSIENT = {LOADING, NOT_AVAILABLE, NOT_COORDINATOR, TIMED_OUT}
FENCED = {47: "INVALID_PRODUCER_EPOCH", 90: "PRODUCER_FENCED"}
MOVED_ON = {22: "ILLEGAL_GENERATION", 25: "UNKNOWN_MEMBER_ID", 27: "REBALANCE_IN_PROGRESS", 82: "FENCED_INSTANCE_ID"}


class CommitRefused(Refused):
    """The group, or the transactional id, has gone on without this worker: it must not commit, and must stop."""


class Rebalanced(Refused):
    """The group moved on to another generation meanwhile; what was asked for this one is void."""


class Member(NamedTuple):
    """Who may commit: a member of the group in one generation, as it was when the partitions were given to it."""

    generation: int
    member_id: str
    instance_id: str | None = None


class Committed(NamedTuple):
    """What a group has committed of a partition."""

    offset: int  # the next to read
    metadata: str  # what its committer wrote beside it


_STR, _TAGS = CompactString("utf-8"), ("tags", TaggedFields)


class _TxnOffsetCommitResponse3(Response):
    API_KEY, API_VERSION = 28, 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", _STR), ("partitions", CompactArray(("partition", Int32), ("error", Int16), _TAGS)), _TAGS
            ),
        ),
        _TAGS,
    )


class _TxnOffsetCommitRequest3(RequestStruct):
    API_KEY, API_VERSION, RESPONSE_TYPE, FLEXIBLE_VERSION = 28, 3, _TxnOffsetCommitResponse3, True
    SCHEMA = Schema(
        ("transactional_id", _STR),
        ("group_id", _STR),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", _STR),
        ("group_instance_id", _STR),
        (
            "topics",
            CompactArray(
                ("name", _STR),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _STR), _TAGS
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class TxnOffsetCommit(Request[_TxnOffsetCommitRequest3]):
    """Offsets for an open transaction, under the generation of a member."""

    API_KEY = 28

    def __init__(
        self,
        transactional_id: str,
        producer: tuple[int, int],  # id, epoch
        group: str,
        member: Member,
        offsets: Mapping[Partition, int],
        metadata: str = "",  # kept beside every one of them
    ) -> None:
        ordered = sorted(offsets.items())
        rows: list[tuple[str, Any]] = [
            (topic, (number, offset, -1, metadata, {})) for (topic, number), offset in ordered
        ]
        topics: list[Any] = [(topic, partitions, {}) for topic, partitions in _by_topic(rows)]
        self._fields: tuple[Any, ...] = (transactional_id, group, *producer, *member, topics, {})

    def build(self, request_struct_class: type[_TxnOffsetCommitRequest3]) -> _TxnOffsetCommitRequest3:
        return request_struct_class(*self._fields)


class _OffsetFetchResponse7(Response):
    API_KEY, API_VERSION = 9, 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", _STR),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", _STR),
                        ("error", Int16),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        ("error", Int16),
        _TAGS,
    )


class _OffsetFetchRequest7(RequestStruct):
    API_KEY, API_VERSION, RESPONSE_TYPE, FLEXIBLE_VERSION = 9, 7, _OffsetFetchResponse7, True
    SCHEMA = Schema(
        ("group_id", _STR),
        ("topics", CompactArray(("name", _STR), ("partitions", CompactArray(Int32)), _TAGS)),
        ("require_stable", Boolean),
        _TAGS,
    )


class OffsetFetch(Request[_OffsetFetchRequest7]):
    """The committed offsets of a group; the broker refuses while a transaction that holds some is still open."""

    API_KEY = 9

    def __init__(self, group: str, partitions: Iterable[Partition]) -> None:
        topics: list[Any] = [(topic, numbers, {}) for topic, numbers in _by_topic(partitions)]
        self._fields: tuple[Any, ...] = (group, topics, True, {})

    def build(self, request_struct_class: type[_OffsetFetchRequest7]) -> _OffsetFetchRequest7:
        return request_struct_class(*self._fields)


async def stable_offsets(
    coordinator: GroupCoordinator, partitions: Collection[Partition]
) -> dict[Partition, Committed | None]:
    """What is committed (None: never) once no open transaction holds other offsets for these partitions.

    Plain ones would be those before a transaction that ends late, whose records would then be processed twice.
    Raises Rebalanced when the coordinator's generation moves on meanwhile. Waits as long as the broker is away.
    """
    generation, request = coordinator.generation, OffsetFetch(coordinator.group_id, partitions)
    while partitions and coordinator.generation == generation:
        await coordinator.ensure_coordinator_known()
        try:
            response = await coordinator._send_req(request)
        except KafkaError as error:
            if not error.retriable:
                raise
        else:
            rows = [(topic, *row) for topic, rows, _ in response.topics for row in rows]
            codes = {response.error, *(error for *_, error, _ in rows)}
            if codes == {0}:
                return {
                    (topic, number): Committed(offset, metadata or "") if offset >= 0 else None
                    for topic, number, offset, _, metadata, _, _ in rows
                }
            if NOT_COORDINATOR in codes:
                coordinator.coordinator_dead()
            for code in codes - TRANSIENT - {0, UNSTABLE}:
                raise for_code(code)(coordinator.group_id)
        await asyncio.sleep(BACKOFF_SECONDS)
    if partitions:
        raise Rebalanced(f"group {coordinator.group_id} rebalanced while its stable offsets were asked for")
    return {}


async def commit_offsets(
    sender: Sender, group: str, member: Member, offsets: Mapping[Partition, int], metadata: str = ""
) -> None:
    """Commit offsets outside a transaction, under the generation of a member. Waits as long as the broker is away.

    The sender of a producer knows which broker coordinates the group. Raises CommitRefused when the group has moved on.
    """
    rows = _by_topic((topic, (number, offset, metadata)) for (topic, number), offset in sorted(offsets.items()))
    request = OffsetCommitRequest(group, member.generation, member.member_id, -1, rows)
    while rows:
        try:
            node = await sender._find_coordinator(CoordinationType.GROUP, group)
            response = await sender.client.send(node, request, group=ConnectionGroup.COORDINATION)
        except KafkaError as error:
            if not error.retriable:
                raise
            sender._coordinator_dead(CoordinationType.GROUP)
            await sender.client.force_metadata_update()
        else:
            codes = {code for _, rows in response.topics for _, code in rows} - {0}
            if not codes:
                return
            if not codes <= TRANSIENT:
                raise CommitRefused(refusal(group, member, codes))
            sender._coordinator_dead(CoordinationType.GROUP)
        await asyncio.sleep(BACKOFF_SECONDS)


def refusal(group: str, member: Member, codes: Iterable[int]) -> str:
    """The broker's answer to a commit that it refused, in words."""
    names = ", ".join(MOVED_ON.get(code) or for_code(code).__name__ for code in sorted(codes))
    who = member.instance_id or member.member_id
    return (
        f"group {group} refused the commit of member {who} in generation {member.generation}: {names}; the group has "
        "gone on without it. A restart goes on from the committed offsets"
    )


def _by_topic(rows: Iterable[tuple[str, Any]]) -> list[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = collections.defaultdict(list)
    for topic, row in rows:
        topics[topic].append(row)
    return list(topics.items())
