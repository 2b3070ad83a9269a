"""Taking records out of aiokafka's fetcher, a run per partition, without an object of aiokafka per record.

With `keep_bytes` what was fetched stays as it came, and is looked at batch by batch: 30 ns a record, most of it in
`record_batches.unpack` later. Without, and for the old formats, it is read into Records here: 0.7 us each.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

import numpy as np
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

from .record_batches import (
    ATTRIBUTES,
    BASE,
    CONTROL,
    END,
    HEAD,
    I64,
    LAST,
    PRODUCER,
    START,
    TRANSACTIONAL,
    RecordBatches,
    check,
    damaged,
    scan,
)
from .records import Fetched, Record

RECORD_OVERHEAD = 250  # bytes of Python objects per record, beside its value
ROW_BYTES = 64  # of a record's row in a table, beside what was fetched


class KeptBytes:
    """What was fetched of a partition, in the place of aiokafka's MemoryRecords, which does not give it back."""

    def __init__(self, raw: bytes | None) -> None:
        self.raw = raw or b""
        self.at = 0  # what lies before was taken

    def size_in_bytes(self) -> int:
        return len(self.raw)

    def has_next(self) -> bool:
        """Whether there is a whole batch."""
        left = len(self.raw) - self.at
        return left >= 12 and 12 + int.from_bytes(self.raw[self.at + 8 : self.at + 12], "big", signed=True) <= left

    def next_batch(self) -> Any:
        """aiokafka's object of the next batch; alone, for aiokafka takes the first one's format for that of all."""
        size = 12 + int.from_bytes(self.raw[self.at + 8 : self.at + 12], "big", signed=True)
        batch = MemoryRecords(self.raw[self.at : self.at + size]).next_batch()
        self.at += size
        return batch


def keep_bytes(fetcher: Fetcher) -> None:
    """From now on this fetcher keeps what it fetches as bytes; other fetchers go on as they are.

    It gets a method of its own: aiokafka's, in which the name of one class means another.
    """
    method = Fetcher._proc_fetch_request
    names = method.__globals__ | {"MemoryRecords": KeptBytes}
    ours = FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    fetcher._proc_fetch_request = MethodType(ours, fetcher)


def take(fetcher: Fetcher, partition: TopicPartition, max_records: int, generation: int = -1) -> Fetched | None:
    """Take what was fetched of a partition, and move aiokafka's position past it.

    At least one whole record batch is taken, and no further one once there are max_records. None where there is
    nothing to take: the position has moved, or was sought, since the fetch. Raises what the broker answered in the
    place of records, DamagedRecords and, for records read by aiokafka, CorruptRecordException; nothing is skipped then.
    """
    result = fetcher._records[partition]
    if not isinstance(result, FetchResult):
        _forget(fetcher, partition)
        result.check_raise()
    if not result.check_assignment(partition) or not result.has_more():
        _forget(fetcher, partition)
        return None
    source = result._partition_records
    source._records_iterator = None  # unused; it and its owner would hold each other, and what was fetched
    start = source.next_fetch_offset
    try:
        records, size = _take(source, max_records)
    except BaseException:
        _forget(fetcher, partition)  # the rest would be read from behind the batch that failed
        raise
    result._update_position()
    if not source._records.has_next():
        _forget(fetcher, partition)
    state = result._assignment.state_value(partition)
    topic, number = partition
    return Fetched(topic, number, start, source.next_fetch_offset, records, state.lso, generation, size)


def _take(source: PartitionRecords, max_records: int) -> tuple[RecordBatches | list[Record], int]:
    """The next records, and their bytes of memory."""
    kept = source._records
    if not isinstance(kept, KeptBytes):
        return _sized(read(source, max_records))
    before = kept.at
    batches = cut(source, max_records)
    if batches is not None:
        return batches, kept.at - before + ROW_BYTES * len(batches)
    try:
        return _sized(read(source, max_records))
    except Exception as error:  # SystemError and others: aiokafka trusts the sizes in batches of old formats
        topic, number = source._tp
        raise damaged(topic, number, _base(kept.raw, before), f"aiokafka cannot read it: {error!r}") from error


def _sized(records: list[Record]) -> tuple[list[Record], int]:
    return records, sum([len(record[3] or b"") for record in records]) + RECORD_OVERHEAD * len(records)


def _base(raw: bytes, at: int) -> int:
    """The offset that the batch at a place begins with."""
    return int.from_bytes(raw[at : at + 8], "big", signed=True)


def _forget(fetcher: Fetcher, partition: TopicPartition) -> None:
    del fetcher._records[partition]
    fetcher._notify(fetcher._wait_consume_future)  # there is room: fetch on


def leave(fetcher: Fetcher, partition: TopicPartition) -> None:
    """Leave what was fetched of a partition where it is, as its one read-ahead.

    aiokafka would hold back the other partitions of that broker for 100 ms, in the hope that it is taken.
    """
    result = fetcher._records[partition]
    if result._backoff:
        result._backoff = 0
        fetcher._notify(fetcher._wait_consume_future)


def cut(source: PartitionRecords, max_records: int) -> RecordBatches | None:
    """The next record batches as they are, those left out that `read` leaves out; None: they are of an old format."""
    kept, (topic, number) = source._records, source._tp
    batches, at, is_old, damage = scan(kept.raw, kept.at, source.next_fetch_offset, max_records)
    if not len(batches) and is_old:
        return None
    if not len(batches) and damage:
        raise damaged(topic, number, _base(kept.raw, at), damage)
    left_out = batches[:, ATTRIBUTES] & CONTROL != 0
    check(topic, number, kept.raw, batches[left_out])  # those of all others are checked by `unpack`
    if source._isolation_level == READ_COMMITTED and (source._aborted_transactions or source._aborted_producers):
        aborted = _aborted(source, batches)
        check(topic, number, kept.raw, batches[aborted])
        left_out |= aborted
    kept.at = at
    if len(batches):
        source.next_fetch_offset = max(source.next_fetch_offset, int(batches[-1, LAST]) + 1)
    return RecordBatches(topic, number, kept.raw, batches[~left_out] if left_out.any() else batches)


def _aborted(source: PartitionRecords, batches: I64) -> np.ndarray:
    """bool (J,), which batches belong to aborted transactions; keeps the book of these, as `_is_aborted`."""
    aborted = np.zeros(len(batches), np.bool_)
    for i in np.flatnonzero(batches[:, ATTRIBUTES] & (TRANSACTIONAL | CONTROL)):
        start, end, base, attributes, producer = batches[i, [START, END, BASE, ATTRIBUTES, PRODUCER]].tolist()
        source._consume_aborted_up_to(base)
        if producer not in source._aborted_producers:
            continue
        if attributes & CONTROL:
            marker = MemoryRecords(source._records.raw[start - HEAD : end]).next_batch()
            if source._contains_abort_marker(marker):
                source._aborted_producers.discard(producer)
        aborted[i] = attributes & TRANSACTIONAL and producer in source._aborted_producers
    return aborted


def read(source: PartitionRecords, max_records: int) -> list[Record]:
    """Read record batches as PartitionRecords._unpack_records does, a batch at a time: 0.7 us a record, not 1.7.

    Left out are, as there, transaction markers and, when reading committed records, those of aborted transactions.
    """
    batches, new = source._records, tuple.__new__
    records: list[Record] = []
    while len(records) < max_records and batches.has_next():
        batch = batches.next_batch()
        if source._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"{source._tp.topic}[{source._tp.partition}]: wrong CRC")
        aborted = _is_aborted(source, batch)
        if not (aborted or batch.is_control_batch):
            first = source.next_fetch_offset  # a fetch begins with the batch that holds the offset asked for
            records += [
                new(Record, (r.offset, r.timestamp, r.key, r.value, tuple(r.headers)))
                for r in batch
                if r.offset >= first
            ]
        source.next_fetch_offset = batch.next_offset
    return records


def _is_aborted(source: PartitionRecords, batch: Any) -> bool:
    """Whether a batch belongs to an aborted transaction; keeps the book of these. Ask for every batch, in order."""
    if source._isolation_level != READ_COMMITTED or batch.producer_id is None:
        return False
    source._consume_aborted_up_to(batch.base_offset)
    if batch.is_control_batch and source._contains_abort_marker(batch):
        source._aborted_producers.discard(batch.producer_id)
    return bool(batch.is_transactional and batch.producer_id in source._aborted_producers)
