"""Reading ranges without a group: what is committed, in order, and nothing else."""

import asyncio
import time
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.record.memory_records import MemoryRecords

from headrace.connectors import fetching
from headrace.connectors.reading import RangeReader, read_range
from headrace.connectors.records import Record
from headrace.connectors.topics import end_offsets
from headrace.errors import InputError, Unreachable

Topic = Callable[..., str]


def write(address: str, topic: str, values: list[bytes | None], **options: object) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=address, **options) as producer:
            for value in values:
                await producer.send(topic, value, key=b"k", partition=0)

    asyncio.run(send())


def transactions(address: str, topic: str, *ends: bool, count: int = 1) -> None:
    """One transaction per element, committed where it is true; values are the number of the transaction."""

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=address, transactional_id=topic) as producer:
            for number, commits in enumerate(ends):
                await producer.begin_transaction()
                for _ in range(count):
                    await producer.send_and_wait(topic, b"%d" % number, partition=0)
                await (producer.commit_transaction() if commits else producer.abort_transaction())
        async with AIOKafkaProducer(bootstrap_servers=address, transactional_id=topic):
            pass  # the broker lets a successor in when the markers of the last transaction are written

    asyncio.run(send())


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
def test_compressed_records_are_read(kafka: str, create_topic: Topic, compression: str | None) -> None:
    topic = create_topic()
    values: list[bytes | None] = [b"%d " % number * 20 for number in range(300)] + [None, b""]
    write(kafka, topic, values, compression_type=compression)
    records = list(read_range(kafka, topic, 0, 0, 302))
    assert [record.value for record in records] == values
    assert [record.offset for record in records] == list(range(302))
    assert {(record.key, record.headers) for record in records} == {(b"k", ())}


def test_a_range_may_begin_and_end_anywhere(kafka: str, create_topic: Topic) -> None:
    topic = create_topic()
    write(kafka, topic, [b"%d" % number for number in range(100)], linger_ms=50)  # few, large batches
    assert [record.offset for record in read_range(kafka, topic, 0, 17, 83)] == list(range(17, 83))
    assert [record.offset for record in read_range(kafka, topic, 0, 0, 100, step=7)] == list(range(100))
    assert list(read_range(kafka, topic, 0, 100, 100)) == []


def test_partitions_are_read_in_any_order(kafka: str, create_topic: Topic) -> None:
    topics = [create_topic("a"), create_topic("b")]
    for topic in topics:
        write(kafka, topic, [b"%d" % number for number in range(5000)], linger_ms=20)
    a, b = topics
    with RangeReader(kafka, {(a, 0): 0, (b, 0): 10}) as reader:
        offsets = [
            [record.offset for record in reader.read(topic, 0, until=until)]
            for topic, until in ((a, 3), (b, 12), (b, 4000), (a, 5000), (b, 5000))
        ]
    assert offsets == [[0, 1, 2], [10, 11], list(range(12, 4000)), list(range(3, 5000)), list(range(4000, 5000))]


def test_what_came_after_a_read_is_found_by_the_next(kafka: str, create_topic: Topic) -> None:
    topic = create_topic()
    write(kafka, topic, [b"a"])
    with RangeReader(kafka, {(topic, 0): 0}) as reader:
        for until in range(1, 4):
            assert [record.offset for record in reader.read(topic, 0, until)] == [until - 1]
            time.sleep(0.3)  # what is asked for ahead has met the end
            write(kafka, topic, [b"a"])
        with pytest.raises(InputError, match="ends at offset 4, expected records up to 9"):
            reader.read(topic, 0, 9)


def test_what_was_aborted_is_left_out(kafka: str, create_topic: Topic) -> None:
    topic = create_topic()
    transactions(kafka, topic, True, False, False, True, False, count=2)
    end = end_offsets(kafka, [(topic, 0)])[topic, 0]
    assert end == 15
    assert [record.value for record in read_range(kafka, topic, 0, 0, end)] == [b"0", b"0", b"3", b"3"]


def test_records_that_are_not_there_are_an_error(kafka: str, create_topic: Topic) -> None:
    from kafka.admin import KafkaAdminClient

    topic = create_topic()
    write(kafka, topic, [b"x"] * 10)
    with pytest.raises(InputError, match=rf"{topic}\[0\] ends at offset 10, expected records up to 12"):
        list(read_range(kafka, topic, 0, 5, 12))
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_records({TopicPartition(topic, 0): 4})
    admin.close()
    with pytest.raises(InputError, match=rf"{topic}\[0\] at offset 2: deleted"):
        list(read_range(kafka, topic, 0, 2, 8))


def test_a_broker_that_is_away_is_named() -> None:
    with pytest.raises(Unreachable, match=r"broker 127\.0\.0\.1:1 "):
        list(read_range("127.0.0.1:1", "t", 0, 0, 1))


@pytest.mark.parametrize("isolation", [READ_COMMITTED, READ_UNCOMMITTED])
@pytest.mark.parametrize("first", [0, 1, 4])
def test_records_are_those_that_aiokafka_reads(kafka: str, create_topic: Topic, isolation: int, first: int) -> None:
    """Our reader of record batches beside aiokafka's own, over the same bytes."""
    topic = create_topic()
    transactions(kafka, topic, True, False, True, False, False, True, count=3)
    write(kafka, topic, [b"plain", None], compression_type="lz4")
    raw, aborted = fetch(kafka, topic, first)

    def source() -> PartitionRecords:
        return PartitionRecords(
            TopicPartition(topic, 0), MemoryRecords(raw), aborted, first, None, None, True, isolation
        )

    theirs, ours = source(), source()
    expected = [Record(r.offset, r.timestamp, r.key, r.value, r.headers) for r in theirs]
    assert fetching.read(ours, 1 << 20) == expected
    assert ours.next_fetch_offset == theirs.next_fetch_offset == 26
    assert len(expected) > 4
    pieces = source()
    singly = []
    while pieces._records.has_next():
        singly += fetching.read(pieces, 1)
    assert singly == expected


def fetch(address: str, topic: str, offset: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes and the aborted transactions that the broker answers to a fetch."""
    from aiokafka.client import AIOKafkaClient
    from aiokafka.protocol.fetch import FetchRequest

    async def ask() -> tuple[bytes, list[tuple[int, int]]]:
        client = AIOKafkaClient(bootstrap_servers=address)
        await client.bootstrap()
        request = FetchRequest(100, 1, 1 << 20, READ_COMMITTED, [(topic, [(0, offset, 1 << 20)])], rack_id="")
        answer = await client.send(client.get_random_node(), request)
        await client.close()
        ((_, (partition,)),) = answer.topics
        return partition[-1], [tuple(row[:2]) for row in partition[-3 if answer.API_VERSION >= 11 else -2] or []]

    return asyncio.run(ask())
