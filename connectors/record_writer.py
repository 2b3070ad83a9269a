"""Record batches of Kafka (v2) written whole in Numba, from keys and values to the seal.

A batch is a head of 61 bytes, then its records, compressed or not. Who sends it writes into the head who is producing
and which batch this is, and seals what follows the CRC with it. All records of a batch have the same time here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka import codec
from numba import njit, uint64
from numpy.typing import NDArray

from ..errors import InputError
from .crc import crc32c
from .memory import leading_zeros, padded, put_bytes, store8, store16, store32, store64, swap16, swap32, swap64
from .records import Partition
from .spans import Spans

BATCH_BYTES = 900_000  # a broker takes 1,048,588 unless it is told otherwise
MAX_RECORD_BYTES = 1_000_000

HEAD = 61
TRANSACTIONAL = 0x10
MAGIC = 2

NO_HEADERS = Spans.none(0)

Bytes = NDArray[np.uint8]
_CODECS: dict[str | None, tuple[int, Callable[[Any], bytes]]] = {
    "gzip": (1, codec.gzip_encode),
    "snappy": (2, codec.snappy_encode),
    "lz4": (3, codec.lz4_encode),
    "zstd": (4, codec.zstd_encode),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """B records for one partition; one without key or value has none, which is not the same as an empty one.

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

    def __init__(self, raw: Bytes, count: int) -> None:
        self._raw = raw
        self._count = count
        self._sealed = False

    def append(self, **record: Any) -> None:
        """None: it is full."""

    def close(self) -> None:
        """It is, always."""

    def closed(self) -> bool:
        return True

    def size(self) -> int:
        return len(self._raw)

    def record_count(self) -> int:
        return self._count

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        _seal(self._raw.ctypes.data, len(self._raw), producer_id, producer_epoch, base_sequence)
        self._sealed = True

    def _build(self) -> memoryview:
        if not self._sealed:
            self._set_producer_state(-1, -1, -1)
        return self._raw.data


def write_batches(
    rows: Rows,
    timestamp_ms: int,
    *,
    to: Partition,
    transactional: bool,
    compression: str | None = None,  # gzip, snappy, lz4, zstd
    max_bytes: int = BATCH_BYTES,
) -> list[SealedBatch]:
    """B records as batches of at most max_bytes before compression; a larger record is alone in its batch.

    Raises InputError for a record above MAX_RECORD_BYTES; `to` is for its message alone.
    """
    keys, values = rows.keys, rows.values
    headers = NO_HEADERS if rows.headers is None else rows.headers
    if len(keys) != len(values):
        raise InputError(f"{len(keys)} keys for {len(values)} values; each record has one of both, which may be none")
    if len(headers) not in (0, len(values)):
        raise InputError(f"headers of {len(headers)} records for {len(values)}; each has some, which may be none")
    columns = (*_columns(keys), *_columns(values), *_columns(headers))
    sizes = columns[2], columns[5], columns[8]
    batches = []
    first = 0
    while first < len(values):
        after, size = _fit(*sizes, first, max_bytes - HEAD)
        if after == first + 1 and HEAD + size > MAX_RECORD_BYTES:
            raise InputError(
                f"a record of {HEAD + size:,} bytes for {to[0]}[{to[1]}] is above the limit of {MAX_RECORD_BYTES:,} "
                "bytes; cut it before it is sent"
            )
        raw = padded(HEAD + size)
        _write_records(*columns, first, after, raw.ctypes.data + HEAD)
        raw, attributes = _compressed(raw[: HEAD + size], compression)
        attributes |= TRANSACTIONAL if transactional else 0
        _write_head(raw.ctypes.data, len(raw), attributes, after - first, timestamp_ms)
        batches.append(SealedBatch(raw, after - first))
        first = after
    return batches


def _columns(strings: Spans) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Address, starts and sizes as the kernels take them: whatever else they are, it would be compiled anew for it."""
    start, size = (np.require(column, np.int64, ("C", "W")) for column in (strings.start, strings.size))
    return strings.data.ctypes.data, start, size


def _compressed(raw: Bytes, compression: str | None) -> tuple[Bytes, int]:
    """The batch with its records compressed, if that makes it smaller, and the attribute that says how."""
    if compression is None:
        return raw, 0
    attribute, compress = _CODECS[compression]
    packed = compress(raw[HEAD:].tobytes())  # cramjam takes bytes alone
    if HEAD + len(packed) >= len(raw):
        return raw, 0
    raw = raw[: HEAD + len(packed)]
    raw[HEAD:] = np.frombuffer(packed, np.uint8)
    return raw, attribute


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
def _fit(key_size, value_size, headers_size, first, room):
    """How far the records from `first` fit into so many bytes, at least one: -> the next row, bytes."""
    used = 0
    for i in range(first, key_size.shape[0]):
        body = _body_size(i - first, key_size[i], value_size[i], _size_of(headers_size, i))
        size = body + _varint_size(body)
        if i > first and used + size > room:
            return i, used
        used += size
    return key_size.shape[0], used


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
def _seal(address, size, producer_id, producer_epoch, base_sequence):
    """Write who sends a batch, and the CRC of all that follows it."""
    store64(address + 43, swap64(producer_id))
    store16(address + 51, swap16(producer_epoch))
    store32(address + 53, swap32(base_sequence))
    store32(address + 17, swap32(np.int64(crc32c(address + 21, size - 21))))


def warm_up() -> None:
    """Compile the kernels of this file."""
    for batch in write_batches(Rows(Spans.of([b"k"]), Spans.of([b"v"])), 0, to=("", 0), transactional=False):
        batch._build()
