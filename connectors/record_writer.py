"""Record batches of Kafka (v2) written whole in Numba, from keys and values to the seal.

A batch is a head of 61 bytes, then its records, compressed or not. Who sends it writes into the head who is producing
and which batch this is, and seals what follows the CRC with it. All records of a batch have the same time here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from ..errors import InputError
from ..jit import njit
from .compression import compress
from .crc import crc32c
from .memory import (
    address_of,
    leading_zeros,
    padded,
    put_bytes,
    store8,
    store16,
    store32,
    store64,
    swap16,
    swap32,
    swap64,
)
from .records import Partition
from .spans import Spans

BATCH_BYTES = 900_000  # a broker takes 1,048,588 unless it is told otherwise
MAX_RECORD_BYTES = 1_000_000

HEAD = 61
TRANSACTIONAL = 0x10
MAGIC = 2

NO_HEADERS = Spans.none(0)
_INT64 = np.dtype(np.int64)

Bytes = NDArray[np.uint8]
I64 = NDArray[np.int64]
Columns: TypeAlias = tuple[int, I64, I64, int, I64, I64, int, I64, I64]  # of keys, values and headers


@dataclass(frozen=True, slots=True)
class Rows:
    """B records; one without key or value has none, which is not the same as an empty one.

    headers  of each as they lie on the wire, their number first; without, or where there are none, it has none
    """

    keys: Spans
    values: Spans
    headers: Spans | None = None

    def __len__(self) -> int:
        return len(self.values)


class SealedBatch:
    """A whole record batch that stands in for the BatchBuilder that AIOKafkaProducer.send_batch expects.

    The producer says who it is when it takes the batch off its queue: idempotent and transactional ones do, and it is
    sealed then; a plain producer does not, and it is sealed when it goes out. Sent again, it is the same bytes.
    """

    __slots__ = ("_address", "_count", "_raw", "_sealed")

    def __init__(self, raw: Bytes, address: int, count: int) -> None:
        self._raw = raw
        self._address = address  # of raw
        self._count = count
        self._sealed = False

    def append(self, **record: Any) -> None:
        """None: it is full."""

    def close(self) -> None:
        """It is, always."""

    def closed(self) -> bool:
        return True

    def compress(self, compression: str) -> None:
        """Compress the records, if that makes the batch smaller: gzip, snappy, lz4, zstd.

        In any thread, once, before the batch is given to a producer. Leaves the GIL to others while it works.
        """
        attribute, packed = compress(compression, self._raw[HEAD:])
        if HEAD + len(packed) < len(self._raw):
            self._raw = self._raw[: HEAD + len(packed)]
            self._raw[HEAD:] = packed
            self._raw[8:12] = np.frombuffer((len(self._raw) - 12).to_bytes(4, "big"), np.uint8)
            self._raw[22] |= attribute

    def size(self) -> int:
        return len(self._raw)

    def record_count(self) -> int:
        return self._count

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        _seal(self._address, len(self._raw), producer_id, producer_epoch, base_sequence)
        self._sealed = True

    def _build(self) -> memoryview:
        if not self._sealed:
            self._set_producer_state(-1, -1, -1)
        return self._raw.data


def write_batches(
    rows: Rows,
    timestamp_ms: int,
    *,
    to: Mapping[Partition, int],
    transactional: bool,
    max_bytes: int = BATCH_BYTES,
) -> dict[Partition, list[SealedBatch]]:
    """The records of some partitions, one partition after another, as batches of at most max_bytes.

    to  of each partition, in the order of the rows, the row behind its last

    A larger record is alone in its batch. A partition without records is left away. Raises InputError for a record
    above MAX_RECORD_BYTES.
    """
    keys, values = rows.keys, rows.values
    headers = NO_HEADERS if rows.headers is None else rows.headers
    if len(keys) != len(values):
        raise InputError(f"{len(keys)} keys for {len(values)} values; each record has one of both, which may be none")
    if len(headers) not in (0, len(values)):
        raise InputError(f"headers of {len(headers)} records for {len(values)}; each has some, which may be none")
    ends = list(to.values())
    if [0, *ends, len(values)] != sorted([0, *ends, len(values)]) or max(ends, default=0) < len(values):
        raise InputError(f"partitions that end at rows {ends}, of {len(values)}; they follow one another to the last")
    columns = (*_columns(keys), *_columns(values), *_columns(headers))
    attributes = TRANSACTIONAL if transactional else 0
    written = _one_each(columns, to, attributes, timestamp_ms, max_bytes)
    if written is not None:
        return written
    written, first = {}, 0
    for partition, end in to.items():
        if first < end:
            written[partition] = _some(columns, partition, first, end, attributes, timestamp_ms, max_bytes)
        first = end
    return written


def _one_each(
    columns: Columns, to: Mapping[Partition, int], attributes: int, timestamp_ms: int, max_bytes: int
) -> dict[Partition, list[SealedBatch]] | None:
    """One batch for each partition, all in one buffer, as it is while records are few; None where one is too large."""
    bounds = np.array([0, *to.values()], np.int64)
    starts = np.zeros(len(bounds), np.int64)
    if not _place(columns[2], columns[5], columns[8], bounds, min(max_bytes, MAX_RECORD_BYTES) - HEAD, starts):
        return None
    places = starts.tolist()
    raw = padded(places[-1])
    address = address_of(raw)
    _write_each(*columns, bounds, starts, address, attributes, timestamp_ms)
    batches, first = {}, 0
    for (partition, end), at, after in zip(to.items(), places, places[1:], strict=False):
        if first < end:
            batches[partition] = [SealedBatch(raw[at:after], address + at, end - first)]
        first = end
    return batches


def _some(
    columns: Columns,
    to: Partition,
    first: int,
    end: int,
    attributes: int,
    timestamp_ms: int,
    max_bytes: int,
) -> list[SealedBatch]:
    """The rows from first to end as batches for one partition."""
    batches = []
    while first < end:
        after, size = _fit(columns[2], columns[5], columns[8], first, end, max_bytes - HEAD)
        if after == first + 1 and HEAD + size > MAX_RECORD_BYTES:
            raise InputError(
                f"a record of {HEAD + size:,} bytes for {to[0]}[{to[1]}] is above the limit of {MAX_RECORD_BYTES:,} "
                "bytes; cut it before it is sent"
            )
        raw = padded(HEAD + size)
        address = address_of(raw)
        _write_records(*columns, first, after, address + HEAD)
        _write_head(address, HEAD + size, attributes, after - first, timestamp_ms)
        batches.append(SealedBatch(raw[: HEAD + size], address, after - first))
        first = after
    return batches


def _columns(strings: Spans) -> tuple[int, I64, I64]:
    """Address, starts and sizes as the kernels take them: whatever else they are, it would be compiled anew for it."""
    return address_of(strings.data), _plain(strings.start), _plain(strings.size)


def _plain(column: I64) -> I64:
    if column.flags.carray and column.dtype == _INT64:
        return column  # np.require would take six times as long to see it
    return np.require(column, np.int64, ("C", "W"))


@njit(cache=True, nogil=True)
def _varint_size(value):
    """Bytes of an int64 as Kafka's signed varint."""
    zigzag = uint64(value << 1 ^ value >> 63)
    return (70 - leading_zeros(zigzag | uint64(1))) // 7


@njit(cache=True, nogil=True)
def _put_varint(address, value):
    rest = value << 1 ^ value >> 63
    while rest > 127:
        store8(address, rest & 127 | 128)
        address += 1
        rest >>= 7
    store8(address, rest)
    return address + 1


@njit(cache=True, nogil=True)
def _body_size(place, key_size, value_size, headers_size):
    """Bytes of a record behind its own length: attributes, time, place in the batch, key, value, headers."""
    sizes = _varint_size(place) + _varint_size(key_size) + _varint_size(value_size)
    return 2 + sizes + max(key_size, 0) + max(value_size, 0) + max(headers_size, 1)


@njit(cache=True, nogil=True)
def _size_of(headers_size, i):
    """Of the headers of row i, -1 where it has none."""
    return headers_size[i] if i < headers_size.shape[0] else np.int64(-1)


@njit(cache=True, nogil=True)
def _fit(key_size, value_size, headers_size, first, end, room):
    """How far the records from `first` to `end` fit into so many bytes, at least one: -> the next row, bytes."""
    used = 0
    for i in range(first, end):
        body = _body_size(i - first, key_size[i], value_size[i], _size_of(headers_size, i))
        size = body + _varint_size(body)
        if i > first and used + size > room:
            return i, used
        used += size
    return end, used


@njit(cache=True, nogil=True)
def _place(key_size, value_size, headers_size, bounds, room, starts):
    """Whether the records of each partition fit into a batch with room for so many bytes of them.

    bounds  int64 (P + 1,)  the rows of each partition
    starts  int64 (P + 1,)  changed in place: where the batches begin, one after another; one without records is empty
    """
    for p in range(bounds.shape[0] - 1):
        starts[p + 1] = starts[p]
        if bounds[p] < bounds[p + 1]:
            after, used = _fit(key_size, value_size, headers_size, bounds[p], bounds[p + 1], room)
            if after < bounds[p + 1] or used > room:
                return False
            starts[p + 1] += HEAD + used
    return True


@njit(cache=True, nogil=True)
def _put_sized(address, source, size):
    """Its size, and a byte string; -1: there is none."""
    return put_bytes(_put_varint(address, size), source, max(size, 0))


@njit(cache=True, nogil=True)
def _write_records(
    key_data, key_start, key_size, value_data, value_start, value_size, headers_data, headers_start, headers_size,
    first, after, address,
):  # fmt: skip
    """Records first to after, at an address; may write PADDING bytes behind the last."""
    for i in range(first, after):
        wire = _size_of(headers_size, i)
        address = _put_varint(address, _body_size(i - first, key_size[i], value_size[i], wire))
        store16(address, 0)  # no attributes; no later than the batch
        address = _put_varint(address + 2, i - first)
        address = _put_sized(address, key_data + key_start[i], key_size[i])
        address = _put_sized(address, value_data + value_start[i], value_size[i])
        if wire > 0:
            address = put_bytes(address, headers_data + headers_start[i], wire)
        else:
            store8(address, 0)  # no headers
            address += 1


@njit(cache=True, nogil=True)
def _write_head(address, size, attributes, count, timestamp_ms):
    """The head of a batch but for what _seal writes."""
    store64(address, 0)  # offset of the first record: the broker's to set
    store32(address + 8, swap32(size - 12))
    store32(address + 12, -1)  # epoch of the partition's leader
    store8(address + 16, MAGIC)
    store16(address + 21, swap16(attributes))
    store32(address + 23, swap32(count - 1))
    store64(address + 27, swap64(timestamp_ms))  # the first
    store64(address + 35, swap64(timestamp_ms))  # the latest
    store32(address + 57, swap32(count))


@njit(cache=True, nogil=True)
def _write_each(
    key_data, key_start, key_size, value_data, value_start, value_size, headers_data, headers_start, headers_size,
    bounds, starts, address, attributes, timestamp_ms,
):  # fmt: skip
    """The batches that _place has found places for; in order, for each may write PADDING bytes into the next."""
    for p in range(bounds.shape[0] - 1):
        if bounds[p] < bounds[p + 1]:
            at = address + starts[p]
            _write_records(
                key_data, key_start, key_size, value_data, value_start, value_size,
                headers_data, headers_start, headers_size, bounds[p], bounds[p + 1], at + HEAD,
            )  # fmt: skip
            _write_head(at, starts[p + 1] - starts[p], attributes, bounds[p + 1] - bounds[p], timestamp_ms)


@njit(cache=True, nogil=True)
def _seal(address, size, producer_id, producer_epoch, base_sequence):
    """Write who sends a batch, and the CRC of all that follows it."""
    store64(address + 43, swap64(producer_id))
    store16(address + 51, swap16(producer_epoch))
    store32(address + 53, swap32(base_sequence))
    store32(address + 17, swap32(np.int64(crc32c(address + 21, size - 21))))


def warm_up() -> None:
    """Compile the kernels of this file."""
    address_of(np.frombuffer(bytes(1), np.uint8))  # of what must not be written to
    rows, to = Rows(Spans.of([b"k"]), Spans.of([b"v"])), ("", 0)
    for max_bytes in (BATCH_BYTES, 0):
        for batch in write_batches(rows, 0, to={to: 1}, transactional=False, max_bytes=max_bytes)[to]:
            batch._build()
