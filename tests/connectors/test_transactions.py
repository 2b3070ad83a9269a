"""A cycle's outputs and offsets are committed together, or not at all, and only by the member that holds them."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any

import kafka as kafka_python
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import IllegalOperation
from aiokafka.structs import OffsetAndMetadata

from headrace.connectors import embedded
from headrace.connectors.groups import CommitRefused, Committed, Member, Rebalanced, stable_offsets
from headrace.connectors.reading import read_range
from headrace.connectors.record_writer import MAX_RECORD_BYTES, Rows, write_batches
from headrace.connectors.records import Record
from headrace.connectors.spans import Spans
from headrace.connectors.topics import committed_by, committed_offsets, create_topics, end_offsets
from headrace.connectors.transactions import (
    CycleProducer,
    Output,
    Records,
    _GroupOffsets,
    encode,
    send_all,
    send_offsets,
)
from headrace.errors import InputError, Refused, Unreachable

Topic = Callable[..., str]


@asynccontextmanager
async def producing(
    address: str, transactional_id: str | None, compression: str | None = None
) -> AsyncIterator[CycleProducer]:
    producer = CycleProducer(address, transactional_id=transactional_id, compression=compression)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.close()
        if transactional_id is not None:
            await settle(address, transactional_id)


async def settle(address: str, transactional_id: str) -> None:
    """The broker writes the markers of a transaction after its answer; it lets a successor in when all are written."""
    successor = CycleProducer(address, transactional_id=transactional_id)
    await successor.start()
    await successor.close()


@asynccontextmanager
async def member_of(address: str, group: str, topic: str) -> AsyncIterator[tuple[AIOKafkaConsumer, Member]]:
    """A live member of the group, which the topic's partitions were given to."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    await consumer.start()
    while not consumer.assignment():
        await asyncio.sleep(0.05)
    try:
        yield consumer, Member(consumer._coordinator.generation, consumer._coordinator.member_id)
    finally:
        await consumer.stop()


def line(value: bytes) -> Output:
    return (None, value, (), None)


def committed(address: str, topic: str, partition: int = 0) -> list[Record]:
    end = end_offsets(address, [(topic, partition)])[topic, partition]
    return list(read_range(address, topic, partition, 0, end))


def values(address: str, topic: str, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in committed(address, topic, partition)]


@pytest.mark.parametrize("transactional", [True, False])
def test_outputs_and_offsets_of_a_cycle_are_committed(
    kafka: str, unique: str, create_topic: Topic, transactional: bool
) -> None:
    source, output, journal = create_topic("in", 2), create_topic("out", 2), create_topic("journal")

    async def cycles() -> list[dict[tuple[str, int], int]]:
        async with (
            member_of(kafka, unique, source) as (_, member),
            producing(kafka, unique if transactional else None) as p,
        ):
            full: Output = (b"k", b"v", (("origin", b"x"), ("empty", None)), 1_700_000_000_123)
            first = await p.commit_cycle(
                {(output, 0): [full, line(b"w")], (output, 1): [line(b"x")], (journal, 0): [line(b"1")]},
                {(source, 0): 5, (source, 1): 7},
                unique,
                member,
                "slot 0",
            )
            second = await p.commit_cycle({(journal, 0): [line(b"2")]}, {(source, 0): 6}, unique, member, "slot 1")
            nothing = await p.commit_cycle({}, {}, unique, member)
            return [first, second, nothing]

    first, second, nothing = asyncio.run(cycles())
    marker = 1 if transactional else 0
    assert first == {(output, 0): 0, (output, 1): 0, (journal, 0): 0}
    assert second == {(journal, 0): 1 + marker}, "the offset of the journal's record"
    assert nothing == {}
    assert committed(kafka, output)[0] == Record(0, 1_700_000_000_123, b"k", b"v", (("origin", b"x"), ("empty", None)))
    assert values(kafka, output) == [b"v", b"w"]
    assert values(kafka, output, 1) == [b"x"]
    assert values(kafka, journal) == [b"1", b"2"]
    assert committed_by(kafka, unique) == {(source, 0): Committed(6, "slot 1"), (source, 1): Committed(7, "slot 0")}


def test_outputs_go_on_while_the_offsets_before_them_are_committed(
    kafka: str, unique: str, create_topic: Topic
) -> None:
    source, output = create_topic("in"), create_topic("out")

    async def cycles() -> list[int]:
        async with member_of(kafka, unique, source) as (_, member), producing(kafka, None) as p:
            first = [(await p.send_outputs({(output, 0): [line(b"%d" % n)]}))[output, 0] for n in range(2)]
            assert values(kafka, output) == [b"0", b"1"], "before any offsets"
            offsets = asyncio.create_task(p.commit_offsets({(source, 0): 2}, unique, member, "slot 0"))
            first.append((await p.send_outputs({(output, 0): [line(b"2")]}))[output, 0])
            await offsets
            return first

    assert asyncio.run(cycles()) == [0, 1, 2]
    assert committed_by(kafka, unique) == {(source, 0): Committed(2, "slot 0")}


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_large_cycle_keeps_its_order(kafka: str, unique: str, create_topic: Topic, compression: str | None) -> None:
    output = create_topic("out", 2)
    rows = [b"%06d " % number * 60 for number in range(6000)]  # 2.5 MB: several batches a partition

    async def cycle() -> None:
        async with producing(kafka, unique, compression) as p:
            outputs = {(output, partition): [line(row) for row in rows] for partition in range(2)}
            await p.commit_cycle(outputs, {}, unique, Member(-1, ""))

    asyncio.run(cycle())
    assert values(kafka, output, 0) == rows
    assert values(kafka, output, 1) == rows


def some_rows(B: int, seed: int = 1) -> tuple[list[bytes | None], list[bytes | None]]:
    """Keys and values of every kind: none, empty, of any bytes, large."""
    rng = np.random.default_rng(seed)
    keys: list[bytes | None] = [rng.bytes(size) if size >= 0 else None for size in rng.integers(-1, 40, B).tolist()]
    values: list[bytes | None] = [b'{"n":%d}' % n * (n % 40) for n in range(B)]
    values[1:6] = [None, b"", b"x" * 50_000, b"y" * 999_000, b"z"]
    return keys, values


def read_by_kafka_python(address: str, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    at = kafka_python.TopicPartition(topic, 0)
    with closing(
        kafka_python.KafkaConsumer(
            bootstrap_servers=address, isolation_level=kafka_python.IsolationLevel.READ_COMMITTED, check_crcs=True
        )
    ) as consumer:
        consumer.assign([at])
        consumer.seek_to_beginning(at)
        read = []
        end = consumer.end_offsets([at])[at]
        while consumer.position(at) < end:
            for records in consumer.poll(timeout_ms=500).values():
                read += [(record.key, record.value) for record in records]
        return read


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
def test_rows_are_read_back_as_they_were_written(
    kafka: str, unique: str, create_topic: Topic, compression: str | None, transactional: bool
) -> None:
    output, journal = create_topic("out", 2), create_topic("journal")
    keys, rows = some_rows(12_000)  # 2 MB: several batches
    wanted = list(zip(keys, rows))
    before = int(time.time() * 1000)

    async def cycles() -> list[dict[tuple[str, int], int]]:
        async with producing(kafka, unique if transactional else None, compression) as p:
            B, given = len(rows), Rows(Spans.of(keys), Spans.of(rows))
            few = Rows(given.keys.take(slice(0, 3)), given.values.take(slice(0, 3)))
            both = Rows(*(Spans.of([*column, *column[:3]]) for column in (keys, rows)))
            return [
                await p.commit_cycle(outputs, {}, unique, Member(-1, ""))
                for outputs in (
                    p.write(both, {(output, 0): B, (output, 1): B + 3}) | {(journal, 0): [line(b"1")]},
                    p.write(few, {(output, 0): 3}) | {(output, 1): [line(b"in between")], (journal, 0): [line(b"2")]},
                    p.write(few, {(output, 0): 0, (output, 1): 3}) | {(output, 0): []},
                )
            ]

    marker = 1 if transactional else 0
    B = len(wanted)
    assert asyncio.run(cycles()) == [
        {(output, 0): 0, (output, 1): 0, (journal, 0): 0},
        {(output, 0): B + marker, (output, 1): 3 + marker, (journal, 0): 1 + marker},
        {(output, 1): 4 + 2 * marker},
    ]
    records = committed(kafka, output)
    assert [(record.key, record.value) for record in records] == wanted + wanted[:3]
    assert [record.offset for record in records[:B]] == list(range(B))
    assert before <= min(record.timestamp for record in records) <= max(r.timestamp for r in records) <= time.time() * 1000  # fmt: skip
    assert {record.headers for record in records} == {()}
    between = [(None, b"in between")]
    assert [(r.key, r.value) for r in committed(kafka, output, 1)] == wanted[:3] + between + wanted[:3]
    if compression in (None, "gzip"):  # it would need packages of its own for the others
        assert read_by_kafka_python(kafka, output) == wanted + wanted[:3]


@pytest.mark.parametrize("rows", [20, 5_000])
def test_rows_are_compressed_be_they_few_or_many(kafka: str, unique: str, create_topic: Topic, rows: int) -> None:
    output = create_topic("out")
    column = Spans.of([b"the same again and again"] * rows)

    async def cycle() -> tuple[int, int]:
        async with producing(kafka, unique, "lz4") as p:
            outputs = p.write(Rows(column, column), {(output, 0): rows})
            (batch,) = outputs[output, 0]
            size = batch.size()
            await p.commit_cycle(outputs, {}, unique, Member(-1, ""))
            return size, batch.size()

    before, after = asyncio.run(cycle())
    assert after < before / 2
    assert len(committed(kafka, output)) == rows


def test_rows_of_a_refused_cycle_are_never_seen(kafka: str, unique: str, create_topic: Topic) -> None:
    source, output = create_topic("in"), create_topic("out")

    async def cycles() -> None:
        async with member_of(kafka, unique, source) as (_, member):
            async with producing(kafka, unique) as p:
                await p.commit_cycle(written(p, b"good"), {(source, 0): 1}, unique, member)
                with pytest.raises(CommitRefused):
                    old = member._replace(generation=member.generation - 1)
                    await p.commit_cycle(written(p, b"bad"), {(source, 0): 2}, unique, old)
            async with producing(kafka, unique) as p:
                await p.commit_cycle(written(p, b"better"), {(source, 0): 2}, unique, member)

    def written(p: CycleProducer, value: bytes) -> Mapping[tuple[str, int], Records]:
        return p.write(Rows(Spans.none(1000), Spans.of([value] * 1000)), {(output, 0): 1000})

    asyncio.run(cycles())
    assert values(kafka, output) == [b"good"] * 1000 + [b"better"] * 1000
    assert {value for _, value in read_by_kafka_python(kafka, output)} == {b"good", b"better"}
    assert committed_offsets(kafka, unique) == {(source, 0): 2}


def test_a_row_above_the_limit_is_refused_before_anything_is_sent(kafka: str, unique: str, create_topic: Topic) -> None:
    output, nobody = create_topic("out", 2), Member(-1, "")

    async def cycles() -> None:
        async with producing(kafka, unique) as p:
            large = Rows(Spans.none(4), Spans.of([b"a", b"x" * MAX_RECORD_BYTES, b"b", b"c"]))
            with pytest.raises(InputError, match=rf"for {output}\[1\] is above the limit of 1,000,000 bytes"):
                p.write(large, {(output, 0): 1, (output, 1): 3, (output, 2): 4})
            with pytest.raises(InputError, match=rf"for {output}\[1\] is above the limit of 1,000,000 bytes"):
                outputs = {(output, 0): [line(b"x")], (output, 1): [line(b"x" * MAX_RECORD_BYTES)]}
                await p.commit_cycle(outputs, {}, unique, nobody)
            await p.commit_cycle({(output, 0): [line(b"a")]}, {}, unique, nobody)

    asyncio.run(cycles())
    assert values(kafka, output) == [b"a"]
    assert values(kafka, output, 1) == []


@pytest.mark.parametrize("settings", [{}, {"enable_idempotence": True}], ids=["plain", "idempotent"])
def test_sealed_batches_are_taken_from_any_producer(
    kafka: str, unique: str, create_topic: Topic, settings: dict[str, Any]
) -> None:
    output = create_topic("out")
    keys, rows = some_rows(5000)

    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka, max_request_size=4 << 20, **settings)
        await producer.start()
        try:
            for _ in range(2):
                to = {(output, 0): len(rows)}
                batches = write_batches(Rows(Spans.of(keys), Spans.of(rows)), 5, to=to, transactional=False)
                assert len(batches[output, 0]) > 1
                await send_all(producer, batches)
        finally:
            await producer.stop()

    asyncio.run(send())
    assert [(record.key, record.value) for record in committed(kafka, output)] == list(zip(keys, rows)) * 2


@pytest.mark.parametrize("transactional", [True, False])
def test_a_member_of_another_generation_is_refused(
    kafka: str, unique: str, create_topic: Topic, transactional: bool
) -> None:
    source, output = create_topic("in"), create_topic("out")

    async def cycle() -> None:
        async with (
            member_of(kafka, unique, source) as (_, member),
            producing(kafka, unique if transactional else None) as p,
        ):
            await p.commit_cycle({(output, 0): [line(b"good")]}, {(source, 0): 1}, unique, member)
            old = member._replace(generation=member.generation - 1)
            with pytest.raises(CommitRefused, match=f"group {unique} refused .* ILLEGAL_GENERATION"):
                await p.commit_cycle({(output, 0): [line(b"bad")]}, {(source, 0): 2}, unique, old)
            with pytest.raises(Refused, match="did not end; restart"):  # what the engine knows is ahead of the group
                await p.commit_cycle({(output, 0): [line(b"worse")]}, {(source, 0): 2}, unique, member)

    asyncio.run(cycle())
    assert values(kafka, output) == ([b"good"] if transactional else [b"good", b"bad"])
    assert committed_offsets(kafka, unique) == {(source, 0): 1}


def test_an_unknown_member_is_refused(kafka: str, unique: str, create_topic: Topic) -> None:
    source, output = create_topic("in"), create_topic("out")

    async def cycle() -> None:
        async with member_of(kafka, unique, source) as (_, member), producing(kafka, unique) as p:
            with pytest.raises(CommitRefused, match="UNKNOWN_MEMBER_ID"):
                await p.commit_cycle(
                    {(output, 0): [line(b"bad")]}, {(source, 0): 1}, unique, member._replace(member_id="me")
                )

    asyncio.run(cycle())
    assert values(kafka, output) == []


def test_a_successor_with_the_same_id_fences_a_producer(kafka: str, unique: str, create_topic: Topic) -> None:
    output, nobody = create_topic("out"), Member(-1, "")

    async def cycles() -> None:
        async with producing(kafka, unique) as old, producing(kafka, unique) as new:
            with pytest.raises(CommitRefused, match=f"transactional id {unique} was fenced"):
                await old.commit_cycle({(output, 0): [line(b"old")]}, {}, unique, nobody)
            await new.commit_cycle({(output, 0): [line(b"new")]}, {}, unique, nobody)

    asyncio.run(cycles())
    assert values(kafka, output) == [b"new"]


@pytest.mark.parametrize("leaves", [0, 1, 2, 4, 8, 16, 1000], ids="after {} turns of the loop".format)
def test_what_a_fenced_producer_had_under_way_is_not_reported_once_more_by_asyncio(
    kafka: str, unique: str, create_topic: Topic, caplog: pytest.LogCaptureFixture, leaves: int
) -> None:
    source, output = create_topic("in"), create_topic("out", 4)
    outputs = {(output, number): [line(b"x")] for number in range(4)}

    async def fence() -> None:
        async with member_of(kafka, unique, source) as (_, member), producing(kafka, unique) as old:
            await old.commit_cycle(outputs, {(source, 0): 1}, unique, member)
            async with producing(kafka, unique):
                cycle = asyncio.ensure_future(old.commit_cycle(outputs, {(source, 0): 2}, unique, member))
                for _ in range(leaves):
                    await asyncio.sleep(0)
                if leaves < 1000:
                    cycle.cancel()
                with pytest.raises((CommitRefused, asyncio.CancelledError)):
                    await cycle

    asyncio.run(fence())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_refusals_of_several_partitions_are_told_once(
    kafka: str, unique: str, create_topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    narrow = create_topic("narrow", 3, max_message_bytes=1000)
    large = line(b"y" * 700)

    async def refuse() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka, max_batch_size=1_000_000, enable_idempotence=True)
        await producer.start()
        try:
            await producer.partitions_for(narrow)
            outputs = {(narrow, number): [large] * 2 for number in range(3)}
            with pytest.raises(Refused, match=rf"{narrow}\[\d\] did not take 2 records: MessageSizeTooLarge"):
                await send_all(producer, {to: encode(producer, to, records) for to, records in outputs.items()})
        finally:
            await producer.stop()

    asyncio.run(refuse())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_what_is_sent_to_one_partition_stays_in_order(kafka: str, unique: str, create_topic: Topic) -> None:
    output = create_topic("out", 2)
    wanted = [b"%d" % number for number in range(20)]

    async def send() -> list[dict[tuple[str, int], int]]:
        async with producing(kafka, None) as p:
            assert p._producer is not None
            await p._producer.partitions_for(output)
            batches = [
                {to: encode(p._producer, to, [line(value)]) for to in ((output, 0), (output, 1))} for value in wanted
            ]
            return await asyncio.gather(*(send_all(p._producer, some) for some in batches))

    offsets = asyncio.run(send())
    assert sorted(some[output, 0] for some in offsets) == sorted(some[output, 1] for some in offsets) == [*range(20)]
    for partition in range(2):
        assert values(kafka, output, partition) == [
            value for _, value in sorted((some[output, partition], value) for some, value in zip(offsets, wanted))
        ]


def test_what_aiokafka_does_not_take_is_refused_as_it_says(kafka: str, unique: str, create_topic: Topic) -> None:
    output = create_topic("out")

    async def send() -> None:
        async with producing(kafka, unique) as p:
            assert p._producer is not None
            batches = encode(p._producer, (output, 0), [line(b"x")])
            with pytest.raises(IllegalOperation, match="not in transaction"):
                await send_all(p._producer, {(output, 0): batches})
            with pytest.raises(Refused, match="Unrecognized partition"):
                await p.commit_cycle({(output, 7): [line(b"x")], (output, 0): [line(b"y")]}, {}, unique, Member(-1, ""))
        async with producing(kafka, None) as p:
            assert p._producer is not None
            await p.send_outputs({(output, 0): [line(b"z")]})
            batches = encode(p._producer, (output, 0), [line(b"x")])
            await p._producer.stop()
            with pytest.raises(Refused, match=rf"{output}\[0\] did not take 1 records: ProducerClosed"):
                await send_all(p._producer, {(output, 0): batches})

    asyncio.run(send())
    assert values(kafka, output) == [b"z"]


def test_a_batch_under_way_is_not_cancelled_with_who_waits_for_it(kafka: str, unique: str, create_topic: Topic) -> None:
    output = create_topic("out", 3)

    async def send() -> None:
        async with producing(kafka, None) as p:
            assert p._producer is not None
            to = [(output, number) for number in range(3)]
            await send_all(p._producer, {to: encode(p._producer, to, [line(b"w")]) for to in to})
            some = {to: encode(p._producer, to, [line(b"x")]) for to in to}
            sending = asyncio.create_task(send_all(p._producer, some))
            await asyncio.sleep(0)
            accumulator = p._producer._message_accumulator
            batches = [batch for queue in accumulator._batches.values() for batch in queue]
            assert len(batches) == 3
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await p._producer.flush()
            assert all(batch.future.done() and not batch.future.cancelled() for batch in batches), (
                "an abort waits for them"
            )

    asyncio.run(send())
    assert [values(kafka, output, number) for number in range(3)] == [[b"w", b"x"]] * 3


def test_offsets_are_not_committed_when_an_output_is_refused(kafka: str, unique: str, create_topic: Topic) -> None:
    source, good = create_topic("in"), create_topic("out")
    narrow = create_topic("narrow", max_message_bytes=1000)

    async def cycle() -> None:
        async with member_of(kafka, unique, source) as (_, member), producing(kafka, unique) as p:
            with pytest.raises(Refused, match=rf"{narrow}\[0\] did not take 1 records: MessageSizeTooLarge"):
                outputs = {(good, 0): [line(b"x")], (narrow, 0): [line(b"y" * 2000)]}
                await p.commit_cycle(outputs, {(source, 0): 1}, unique, member)

    asyncio.run(cycle())
    assert values(kafka, good) == []
    assert committed_offsets(kafka, unique) == {}


def test_a_record_above_the_limit_is_refused_before_anything_is_sent(
    kafka: str, unique: str, create_topic: Topic
) -> None:
    output, nobody = create_topic("out"), Member(-1, "")

    async def cycles() -> None:
        async with producing(kafka, unique) as p:
            for rows in ([line(b"x" * MAX_RECORD_BYTES)], [line(b"a"), line(b"x" * MAX_RECORD_BYTES), line(b"b")]):
                with pytest.raises(InputError, match=rf"for {output}\[0\] is above the limit of 1,000,000 bytes"):
                    await p.commit_cycle({(output, 0): rows}, {}, unique, nobody)
            largest = line(b"x" * (MAX_RECORD_BYTES - 200))
            await p.commit_cycle({(output, 0): [line(b"a"), largest, line(b"b")]}, {}, unique, nobody)

    asyncio.run(cycles())
    assert [len(value or b"") for value in values(kafka, output)] == [1, MAX_RECORD_BYTES - 200, 1]


def test_closing_ends_an_open_transaction(kafka: str, unique: str, create_topic: Topic) -> None:
    output = create_topic("out")

    async def leave_open() -> None:
        p = CycleProducer(kafka, transactional_id=unique, transaction_timeout_seconds=60)
        await p.start()
        assert p._producer is not None
        await p._producer.begin_transaction()
        await send_all(p._producer, {(output, 0): encode(p._producer, (output, 0), [line(b"half")])})
        assert end_offsets(kafka, [(output, 0)]) == {(output, 0): 0}, "it holds back the readers"
        await p.close()
        await settle(kafka, unique)

    asyncio.run(leave_open())
    assert end_offsets(kafka, [(output, 0)]) == {(output, 0): 2}, "the record and the marker of its end"
    assert values(kafka, output) == []


def test_a_cancelled_commit_leaves_nothing(kafka: str, unique: str, create_topic: Topic) -> None:
    source, output = create_topic("in"), create_topic("out")

    async def cancel() -> None:
        async with member_of(kafka, unique, source) as (_, member), producing(kafka, unique) as p:
            commit = p.commit_cycle({(output, 0): [line(b"x")]}, {(source, 0): 1}, unique, member)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(commit, 0.001)

    asyncio.run(cancel())
    assert values(kafka, output) == []
    assert committed_offsets(kafka, unique) == {}


def test_stable_offsets_wait_for_an_open_transaction(kafka: str, unique: str, create_topic: Topic) -> None:
    source, output = create_topic("in", 2), create_topic("out")

    async def ask() -> dict[tuple[str, int], Committed | None]:
        async with member_of(kafka, unique, source) as (consumer, member), producing(kafka, unique) as p:
            assert p._producer is not None
            await p._producer.begin_transaction()
            await send_all(p._producer, {(output, 0): encode(p._producer, (output, 0), [line(b"x")])})
            await send_offsets(p._producer, {(source, 0): 3}, unique, member, "slot")
            asked = asyncio.create_task(stable_offsets(consumer._coordinator, [(source, 0), (source, 1)]))
            await asyncio.sleep(0.5)
            assert not asked.done(), "plain ones would be answered, and be too old"
            await p._producer.commit_transaction()
            return await asyncio.wait_for(asked, 5)

    assert asyncio.run(ask()) == {(source, 0): Committed(3, "slot"), (source, 1): None}


def test_stable_offsets_are_given_up_when_the_group_moves_on(kafka: str, unique: str, create_topic: Topic) -> None:
    source = create_topic("in", 2)

    async def ask() -> None:
        async with member_of(kafka, unique, source) as (consumer, member), producing(kafka, unique) as p:
            assert p._producer is not None
            await p._producer.begin_transaction()
            await send_offsets(p._producer, {(source, 0): 3}, unique, member)
            asked = asyncio.create_task(stable_offsets(consumer._coordinator, [(source, 0)]))
            async with member_of(kafka, unique, source):
                with pytest.raises(Rebalanced, match=unique):
                    await asyncio.wait_for(asked, 10)

    asyncio.run(ask())


def test_a_broker_that_is_away_is_named() -> None:
    async def start() -> None:
        await CycleProducer("127.0.0.1:1", transactional_id="x").start(patience_seconds=0.5)

    with pytest.raises(Unreachable, match=r"broker 127.0.0.1:1 did not answer within 0.5 s"):
        asyncio.run(start())


def test_a_producer_that_was_not_started_says_so() -> None:
    with pytest.raises(Refused, match="not started"):
        asyncio.run(CycleProducer("127.0.0.1:1").commit_cycle({}, {("t", 0): 1}, "g", Member(-1, "")))


def test_assigned_partitions_are_plain_pairs() -> None:
    assert TopicPartition("t", 1) == ("t", 1)
    assert {("t", 1): "x"}[TopicPartition("t", 1)] == "x"


def test_offsets_whose_transaction_ended_unheard_are_let_go_by_the_next_holder_of_the_id(unique: str) -> None:
    """As after a coordinator has loaded half of its log: the group waits for the end of a transaction, for ever."""

    async def leave_and_clear(address: str) -> None:
        async with (
            member_of(address, f"{unique}-g", unique) as (consumer, member),
            producing(address, unique) as first,
        ):
            assert first._producer is not None
            sender = first._producer._sender
            node = await sender._find_coordinator(CoordinationType.GROUP, f"{unique}-g")
            offsets = {TopicPartition(unique, 0): OffsetAndMetadata(7, "")}
            handler = _GroupOffsets(sender, offsets, f"{unique}-g", member, "")
            request = handler.create_request()  # of a transaction that the coordinator of transactions knows nothing of
            await first._producer.client.send(node, request, group=ConnectionGroup.COORDINATION)
            coordinator = consumer._coordinator
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await stable_offsets(coordinator, [TopicPartition(unique, 0)])
            async with producing(address, unique) as second:
                await second.forget_pending(f"{unique}-g", (unique, 0))
                async with asyncio.timeout(5.0):
                    assert await stable_offsets(coordinator, [TopicPartition(unique, 0)]) == {(unique, 0): None}
                await second.commit_cycle({(unique, 0): [line(b"x")]}, {(unique, 0): 1}, f"{unique}-g", member)
                found = await stable_offsets(coordinator, [TopicPartition(unique, 0)])
                assert found == {(unique, 0): Committed(1, "")}

    unverified = {"transaction.partition.verification.enable": "false"}
    with embedded.kafka(properties=unverified) as broker:
        create_topics(broker.address, {unique: 1})
        asyncio.run(leave_and_clear(broker.address))
