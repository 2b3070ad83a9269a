"""Administration: topics are made once, offsets told, and refusals say what to do."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.structs import OffsetAndMetadata

from headrace.connectors import topics
from headrace.connectors.groups import Committed
from headrace.connectors.topics import (
    committed_by,
    committed_offsets,
    create_topics,
    end_offsets,
    first_offsets,
    high_watermarks,
    partitions_of,
    remove_member,
    wait_stable,
)
from headrace.errors import InputError, Refused, Unreachable


def test_missing_topics_are_made_and_others_left_alone(kafka: str, unique: str) -> None:
    a, b = f"{unique}.a", f"{unique}.b"
    assert partitions_of(kafka, [a, b]) == {}
    assert partitions_of(kafka, [a, b]) == {}, "asking made none"
    assert create_topics(kafka, {a: 3}) == [a]
    assert create_topics(kafka, {a: 5, b: 1}) == [b]
    assert partitions_of(kafka, [a, b]) == {a: 3, b: 1}
    assert create_topics(kafka, {a: 3, b: 1}) == []


def test_a_topic_is_made_with_its_settings(kafka: str, unique: str) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    create_topics(kafka, {unique: 1}, settings={unique: {"cleanup.policy": "compact"}})
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    assert "compact" in str(admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, unique)]))
    admin.close()


@pytest.mark.parametrize(
    ("name", "partitions", "reason"),
    [("not a name", 1, "contains one or more characters"), ("none", 0, "non-positive")],
)
def test_a_topic_that_cannot_be_made_is_named(kafka: str, name: str, partitions: int, reason: str) -> None:
    with pytest.raises(Refused, match=f"does not create topic '{name}': .*{reason}"):
        create_topics(kafka, {name: partitions})


def test_an_empty_partition_begins_and_ends_at_zero(kafka: str, unique: str) -> None:
    create_topics(kafka, {unique: 2})
    both = [(unique, 0), (unique, 1)]
    assert first_offsets(kafka, both) == end_offsets(kafka, both) == {(unique, 0): 0, (unique, 1): 0}
    assert end_offsets(kafka, []) == {}


def test_offsets_of_a_partition_that_is_not_there_are_an_error(kafka: str, unique: str) -> None:
    with pytest.raises(InputError, match=rf"no such partition among {unique}\[0\]"):
        end_offsets(kafka, [(unique, 0)])


def test_an_open_transaction_holds_back_the_end_until_it_ends(kafka: str, unique: str) -> None:
    create_topics(kafka, {unique: 1})
    at = (unique, 0)

    async def hold() -> int:
        async with AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=unique) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(unique, b"x", partition=0)
            both = await asyncio.to_thread(lambda: (end_offsets(kafka, [at]), high_watermarks(kafka, [at])))
            assert both == ({at: 0}, {at: 1})
            with pytest.raises(Refused, match=rf"{unique}\[0\] cannot be read beyond offset 0, expected 1: .* 0.3 s"):
                await asyncio.to_thread(wait_stable, kafka, at, 1, 0.3)
            waiting = asyncio.create_task(asyncio.to_thread(wait_stable, kafka, at, 1, 30.0))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await producer.abort_transaction()
            return await waiting

    assert asyncio.run(hold()) == 2, "the record and the marker of its end"
    assert wait_stable(kafka, at, 0, 0.0) == 2


def test_what_is_written_beside_committed_offsets_is_told(kafka: str, unique: str) -> None:
    create_topics(kafka, {unique: 3})
    given = {0: OffsetAndMetadata(5, "slot 1", None), 2: OffsetAndMetadata(0, "", None)}
    rows = {TopicPartition(unique, number): row for number, row in given.items()}

    def write(admin: KafkaAdminClient) -> None:
        for error in admin.alter_group_offsets(unique, rows).values():
            if error.errno:
                raise error  # a young broker is not ready for groups: ask again

    topics.ask(kafka, write)
    assert committed_by(kafka, unique) == {(unique, 0): Committed(5, "slot 1"), (unique, 2): Committed(0, "")}
    assert committed_offsets(kafka, unique) == {(unique, 0): 5, (unique, 2): 0}


def test_a_group_that_is_unknown_has_committed_nothing_and_no_members(kafka: str, unique: str) -> None:
    assert committed_offsets(kafka, unique) == {}
    assert not remove_member(kafka, unique, "slot")


def test_a_broker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert topics.PATIENCE_SECONDS < 10, "what a start promises"
    monkeypatch.setattr(topics, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(Unreachable, match=r"broker 127.0.0.1:1 does not answer .*--broker or HEADRACE_BROKER"):
        partitions_of("127.0.0.1:1", ["t"])
