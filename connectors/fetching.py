"""Taking records out of aiokafka's fetcher, a run per partition, without an object of aiokafka per record."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException

from .records import Fetched, Record

RECORD_OVERHEAD = 250  # bytes of Python objects per record, beside its value


def take(fetcher: Fetcher, partition: TopicPartition, max_records: int, generation: int = -1) -> Fetched | None:
    """Take what was fetched of a partition, and move aiokafka's position past it.

    At least one whole record batch is taken, and no further one once there are max_records. None where there is
    nothing to take: the position has moved, or was sought, since the fetch. Raises what the broker answered in the
    place of records, and CorruptRecordException; nothing is skipped then.
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
        records = read(source, max_records)
    except BaseException:
        _forget(fetcher, partition)  # the rest would be read from behind the batch that failed
        raise
    result._update_position()
    if not source._records.has_next():
        _forget(fetcher, partition)
    state = result._assignment.state_value(partition)
    size = sum([len(record[3] or b"") for record in records]) + RECORD_OVERHEAD * len(records)
    topic, number = partition
    return Fetched(topic, number, start, source.next_fetch_offset, records, state.lso, generation, size)


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
