"""Record batches as bytes, written by aiokafka, and damaged by hand."""

from collections.abc import Sequence

from aiokafka.record._crc32c import crc as crc32c
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from headrace.connectors.records import Record

FEW = [
    Record(7, 1_700_000_000_000, b"key", b'{"price": 1.5}'),
    Record(8, 1_700_000_000_001, None, b"x" * 300, (("a", b"1"), ("ü", None), ("", b""))),
    Record(11, 1_699_999_999_999, b"", None),
    Record(12, 0, b"k" * 70, b""),
    Record(90, 1_700_000_000_002, None, None, (("a", b"2"),)),
]


def seal(batch: bytes | bytearray) -> bytes:
    """With the right checksum."""
    return bytes(batch[:17]) + crc32c(bytes(batch[21:])).to_bytes(4, "big") + bytes(batch[21:])


def put(batch: bytes, at: int, value: int, size: int) -> bytes:
    """With another number in its head."""
    return seal(batch[:at] + value.to_bytes(size, "big", signed=True) + batch[at + size :])


def batch_of(records: Sequence[Record], codec: int = 0) -> bytes:
    base = records[0].offset
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    for record in records:
        offset, timestamp, key, value, headers = record
        assert builder.append(offset - base, timestamp, key, value, list(headers)) is not None
    return base.to_bytes(8, "big") + bytes(builder.build())[8:]
