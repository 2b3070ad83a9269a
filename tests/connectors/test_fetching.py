"""What a fetcher hands on, as bytes and as aiokafka reads it: the same records, positions and ends."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st
from record_bytes import FEW, batch_of, put

from headrace.connectors.fetching import KeptBytes, _take, cut, keep_bytes, take
from headrace.connectors.record_batches import (
    CONTROL,
    HEAD,
    TRANSACTIONAL,
    DamagedRecords,
    RecordBatches,
    records_of,
    unpack,
)
from headrace.connectors.records import Fetched, Record

Topic = Callable[..., str]

COMPRESSIONS = [None, "gzip", "snappy", "lz4", "zstd"]
HEADERS = [("a", b"1"), ("b", None), ("ü", b"")]


async def fetch_all(address: str, topic: str, raw: bool, start: int = 0, **options: object) -> list[Fetched]:
    """All runs of a topic's only partition, of at most 40 records where their batches allow it."""
    tp = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="none", **options)
    await consumer.start()
    try:
        fetcher = consumer._fetcher
        if raw:
            keep_bytes(fetcher)
        consumer.assign([tp])
        consumer.seek(tp, start)
        (end,) = (await consumer.end_offsets([tp])).values()
        state = consumer._subscription.subscription.assignment.state_value(tp)
        runs: list[Fetched] = []
        async with asyncio.timeout(20):
            while state.position < end:
                while tp not in fetcher._records:
                    await asyncio.sleep(0.005)
                if run := take(fetcher, tp, 40):
                    assert isinstance(run.records, RecordBatches) == raw
                    assert run.next == state.position
                    runs.append(run)
    finally:
        await consumer.stop()
    return runs


def records(runs: list[Fetched]) -> list[Record]:
    """The records, after a look at how the runs fit to each other."""
    assert [run.start for run in runs[1:]] == [run.next for run in runs[:-1]]
    for run in runs:
        found = records_of([run.records])
        assert len(found) <= len(run.records)
        assert all(run.start <= record.offset < run.next for record in found)
    together = unpack([run.records for run in runs]).records()
    assert together == records_of([run.records for run in runs])
    return together


def both(address: str, topic: str, start: int = 0, isolation: str = "read_committed") -> list[Record]:
    """The records of a topic, which are the same on both paths."""
    options = {"isolation_level": isolation, "max_partition_fetch_bytes": 6000}

    async def fetch() -> list[list[Fetched]]:
        paths = [fetch_all(address, topic, raw, start, **options) for raw in (True, False)]
        return await asyncio.gather(*paths)  # side by side: what one fetcher does is not the business of the other

    bytes_, objects = asyncio.run(fetch())
    assert bytes_[-1].next == objects[-1].next
    assert records(bytes_) == records(objects)
    return records(bytes_)


def write(address: str, topic: str, **options: object) -> list[bytes | None]:
    """Hundred records in batches of about ten; their values."""
    values: list[bytes | None] = [b'{"number": %d}' % number * (number % 7) for number in range(100)]
    values[4] = values[50] = None

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=address, max_batch_size=900, linger_ms=5, **options) as producer:
            for number, value in enumerate(values):
                key = (None, b"", b"key")[number % 3]
                headers = HEADERS[: number % 4] if number % 5 == 0 else []
                await producer.send(topic, value, key=key, headers=headers, timestamp_ms=1000 + number, partition=0)

    asyncio.run(send())
    return values


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_both_paths_give_the_same_records(kafka: str, create_topic: Topic, compression: str | None) -> None:
    topic = create_topic()
    values = write(kafka, topic, compression_type=compression)
    found = both(kafka, topic)
    assert [record.value for record in found] == values
    assert [record.timestamp for record in found] == list(range(1000, 1100))
    assert found[15].headers == tuple(HEADERS)
    for start in (1, 37, 99):
        assert both(kafka, topic, start) == found[start:], "from the middle of a batch"


def test_the_broker_may_set_the_time(kafka: str, create_topic: Topic) -> None:
    topic = create_topic(message_timestamp_type="LogAppendTime")
    write(kafka, topic, compression_type="lz4")
    assert min(record.timestamp for record in both(kafka, topic)) > 1_600_000_000_000


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_aborted_transactions_are_left_out_on_both_paths(
    kafka: str, create_topic: Topic, compression: str | None
) -> None:
    topic = create_topic()
    ends = (True, False, False, True, True, False, True, False, False)

    async def send() -> None:
        options = {"bootstrap_servers": kafka, "compression_type": compression, "max_batch_size": 300}
        async with (
            AIOKafkaProducer(transactional_id=topic, **options) as producer,
            AIOKafkaProducer(transactional_id=topic + "-other", **options) as other,
            AIOKafkaProducer(**options) as plain,
        ):
            for number, commits in enumerate(ends):
                await producer.begin_transaction()
                await other.begin_transaction()
                for row in range(15):
                    headers = HEADERS if row == 7 else []
                    await producer.send(topic, b"%d %s" % (number, b"yes" if commits else b"no"), headers=headers)
                    await plain.send(topic, b"plain")
                    await other.send(topic, b"other no" if commits else b"other yes")
                await producer.flush()
                await other.flush()
                await (producer.commit_transaction() if commits else producer.abort_transaction())
                await (other.abort_transaction() if commits else other.commit_transaction())
        for name in ("", "-other"):
            async with AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic + name):
                pass  # the broker lets a successor in when the markers of the last transaction are written

    asyncio.run(send())
    found = both(kafka, topic)
    assert len(found) == len(ends) * 30
    assert not any((record.value or b"").endswith(b"no") for record in found)
    assert len(both(kafka, topic, isolation="read_uncommitted")) == len(ends) * 45
    middle = found[100].offset
    assert both(kafka, topic, middle + 1) == [record for record in found if record.offset > middle]


def test_a_run_may_only_move_the_position(kafka: str, create_topic: Topic) -> None:
    topic = create_topic()

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"no")
            await producer.abort_transaction()
        async with AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=topic):
            pass

    asyncio.run(send())
    for raw in (True, False):
        runs = asyncio.run(fetch_all(kafka, topic, raw, isolation_level="read_committed"))
        assert [(run.start, run.next, run.at_end, records_of([run.records])) for run in runs] == [(0, 2, True, [])]


def test_what_is_in_hand_is_counted(kafka: str, create_topic: Topic) -> None:
    topic = create_topic()
    write(kafka, topic)
    runs = asyncio.run(fetch_all(kafka, topic, True))
    assert len(runs) > 2
    (raws, sizes) = {id(run.records.raw): len(run.records.raw) for run in runs}, [run.size for run in runs]
    assert sum(sizes) == sum(raws.values()) + 64 * 100, "each byte once, and a row for each record"


def test_one_who_keeps_no_bytes_is_left_alone(kafka: str, create_topic: Topic) -> None:
    topic = create_topic()
    values = write(kafka, topic)

    async def consume(raw: bool) -> list[bytes | None]:
        async with AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest") as consumer:
            if raw:
                keep_bytes(consumer._fetcher)
                keep_bytes(consumer._fetcher)
            return [(await consumer.getone()).value for _ in values]

    async def consume_side_by_side() -> list[list[bytes | None]]:
        return await asyncio.gather(consume(True), consume(False))

    assert asyncio.run(consume_side_by_side()) == [values, values], "and also aiokafka can read what was kept"


# without a broker


def source(raw: bytes, *, kept: bool = True, aborted: tuple = (), first: int = 0, isolation: int = READ_COMMITTED):
    tp, bytes_ = TopicPartition("t", 3), (KeptBytes if kept else MemoryRecords)(raw)
    return PartitionRecords(tp, bytes_, list(aborted), first, None, None, True, isolation)


def old(first: int, *values: bytes, magic: int) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, 0, 1 << 16)
    for offset, value in enumerate(values, first):
        builder.append(offset, timestamp=1000 + offset, key=None, value=value)
    return bytes(builder.build())


@pytest.mark.parametrize("magic", [0, 1])
def test_old_formats_are_read_by_aiokafka(magic: int) -> None:
    raw = batch_of(FEW[:2]) + old(9, b"x", b"y", magic=magic) + batch_of(FEW[2:])
    kept, runs = source(raw, first=8), []
    while kept._records.has_next():
        runs.append(_take(kept, 1)[0])
    assert [type(run) for run in runs] == [RecordBatches, list, list, RecordBatches]
    between = [
        Record(offset, (1000 + offset) * magic or None, None, value) for offset, value in ((9, b"x"), (10, b"y"))
    ]
    assert records_of(runs) == [FEW[1], *between, *FEW[2:]]
    assert kept.next_fetch_offset == 91


@pytest.mark.parametrize("magic", [0, 1, 3])
def test_a_batch_that_says_another_format_is_damaged(magic: int) -> None:
    damaged = bytearray(batch_of(FEW[2:]))
    damaged[16] = magic
    kept = source(batch_of(FEW[:2]) + bytes(damaged))
    assert len(_take(kept, 100)[0]) == 2
    with pytest.raises(DamagedRecords, match=r"t\[3\]: the record batch at offset 11 is damaged: "):
        _take(kept, 100)


def test_damage_is_told_when_what_comes_before_it_is_taken() -> None:
    raw = batch_of(FEW[:2]) + put(batch_of(FEW[2:]), 57, -5, 4)
    kept = source(raw, first=7)
    assert len(cut(kept, 100) or ()) == 2
    assert kept.next_fetch_offset == 9
    for _ in range(2):
        with pytest.raises(DamagedRecords, match=r"t\[3\]: the record batch at offset 11 is damaged: its number"):
            cut(kept, 100)
    assert kept.next_fetch_offset == 9


def producer_of(batch: bytes, producer: int, attributes: int) -> bytes:
    return put(put(batch, 43, producer, 8), 21, attributes, 2)


@pytest.mark.parametrize("isolation", [READ_COMMITTED, READ_UNCOMMITTED])
def test_what_is_left_out_is_checked_before(isolation: int) -> None:
    def broken(batch: bytes) -> bytes:
        return batch[:-1] + bytes([batch[-1] ^ 1])

    aborted = producer_of(batch_of(FEW[:2]), 5, TRANSACTIONAL)
    marker = producer_of(batch_of([Record(9, 0, b"\0\0\0\0", b"\0" * 6)]), 5, TRANSACTIONAL | CONTROL)
    after = producer_of(batch_of(FEW[2:]), 5, TRANSACTIONAL)
    fine = cut(source(aborted + marker + after, aborted=((5, 0),), isolation=isolation), 100)
    assert fine is not None
    expected = FEW[2:] if isolation == READ_COMMITTED else FEW
    assert unpack([fine]).records() == expected
    with pytest.raises(DamagedRecords, match=r"offset 9 .*checksum"):
        cut(source(aborted + broken(marker) + after, aborted=((5, 0),), isolation=isolation), 100)
    with pytest.raises(DamagedRecords, match=r"offset 7 .*checksum"):
        given = cut(source(broken(aborted) + marker, aborted=((5, 0),), isolation=isolation), 100)
        assert isolation == READ_UNCOMMITTED, "then it is one of those to be read"
        unpack([given])


BATCHES = st.lists(
    st.tuples(
        st.sampled_from(["plain", "transactional", "abort", "commit"]),
        st.integers(4, 6),  # producer
        st.integers(1, 5),  # records
        st.integers(0, 3),  # offsets to the batch before
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(
    BATCHES,
    st.lists(st.tuples(st.integers(4, 6), st.integers(0, 40)), max_size=4),
    st.integers(0, 30),
    st.integers(1, 20),
    st.sampled_from([READ_COMMITTED, READ_UNCOMMITTED]),
)
def test_the_book_of_aborted_transactions_is_that_of_aiokafka(
    batches: list[tuple], aborted: list[tuple[int, int]], first: int, most: int, isolation: int
) -> None:
    """Whatever comes, sensible or not, from an offset in the first batch on."""
    raw, offset = b"", 0
    for kind, producer, count, hole in batches:
        offset += hole
        if kind in ("abort", "commit"):
            records = [Record(offset, 0, b"\0\0\0" + bytes([kind == "commit"]), bytes(6))]
            attributes = TRANSACTIONAL | CONTROL
        else:
            records = [Record(offset + row, 0, None, b"%d" % producer) for row in range(count)]
            attributes = TRANSACTIONAL if kind == "transactional" else 0
        if not raw:
            first = min(first, records[-1].offset)
        raw += producer_of(batch_of(records), producer, attributes)
        offset += len(records)
    theirs = source(raw, kept=False, aborted=aborted, first=first, isolation=isolation)
    expected = [Record(r.offset, r.timestamp, r.key, r.value, r.headers) for r in theirs]
    ours, runs = source(raw, aborted=aborted, first=first, isolation=isolation), []
    while ours._records.has_next():
        start = ours.next_fetch_offset
        runs.append(cut(ours, most))
        assert all(start <= record.offset < ours.next_fetch_offset for record in records_of(runs[-1:]))
    assert unpack(runs).records() == expected
    assert ours.next_fetch_offset == max(first, theirs.next_fetch_offset)


def test_bytes_that_are_no_batch_are_not_taken() -> None:
    whole = batch_of(FEW)
    for raw in (b"", None, whole[:11], whole[:12], whole[:-1]):
        assert not KeptBytes(raw).has_next()
    kept = KeptBytes(whole + whole[: HEAD + 2])
    assert kept.size_in_bytes() == len(whole) + HEAD + 2
    assert kept.has_next()
    assert kept.next_batch().base_offset == 7
    assert not kept.has_next()
