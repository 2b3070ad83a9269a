"""Kafka's record batches (format 2, since 0.11) taken apart without an object per record.

`scan` finds the batches in what was fetched, cheaply, in the thread that fetches; `unpack` makes a table of their
records, in the thread that computes. A batch, all numbers big-endian:

    int64 base offset, int32 size of the rest, int32 leader epoch, int8 format, uint32 CRC-32C of all that follows,
    int16 attributes, int32 last offset - base offset, int64 first timestamp, int64 last timestamp, int64 producer,
    int16 epoch, int32 sequence, int32 number of records; then the records, which may be compressed, as one

A record, all numbers as varints:

    size of the rest, attributes (a byte), timestamp - first timestamp, offset - base offset, size of key (-1: none),
    key, size of value, value, number of headers, and of each header: size of name, name, size of value, value
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from ..errors import Refused
from ..jit import njit
from .compression import decompress
from .crc import crc32c
from .memory import copy, load8, load16, load32, load64, padded, swap16, swap32, swap64
from .record_table import RecordTable
from .records import Record
from .spans import Spans

I64 = NDArray[np.int64]

MOST_BATCHES = 4096  # of one scan
HEAD = 61  # bytes of a batch before its records
_LARGEST_OFFSET = 1 << 62  # so that no sum runs over
_SMALLEST = 7  # bytes of a record: without key, value and headers

# attributes of a batch
CODEC, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 7, 8, 16, 32

# columns of a table of batches
START, END = 0, 1  # of its records, in what was fetched
BASE, LAST = 2, 3  # its first and its last offset
ATTRIBUTES, COUNT, PRODUCER = 4, 5, 6
FIRST_TIME, LAST_TIME = 7, 8
WANTED = 9  # records below this offset are passed over
_WIDTH = 10

# columns of a table of records
_OFFSET, _TIME, _KEY, _KEY_SIZE, _VALUE, _VALUE_SIZE, _HEADERS, _HEADERS_SIZE = range(8)


class DamagedRecords(Refused):
    """What the broker sent cannot be what was written; a restart fetches it anew."""


@dataclass(frozen=True, slots=True)
class RecordBatches:
    """Fetched records of one partition that nobody has taken apart yet; its length is a bound of their number.

    raw      what was fetched; there may be more in it than the batches that are read
    batches  int64 (J, 10)  those to be read, a row each: not those of markers and of aborted transactions
    """

    topic: str
    partition: int
    raw: bytes
    batches: I64

    def __len__(self) -> int:
        return int(self.batches[:, COUNT].sum())


class Scan(NamedTuple):
    """What `scan` found."""

    batches: I64  # (J, 10), in order
    at: int  # the place behind the last of them
    is_old: bool  # there begins a batch of a format before 2
    damage: str | None  # or one that is damaged, in this way


def scan(raw: bytes, at: int, wanted: int, max_records: int) -> Scan:
    """Find the whole batches in what was fetched, from a place on.

    At most MOST_BATCHES, and no further one once there are max_records. `wanted` is the first offset asked for: a fetch
    begins with the batch that holds it. Nothing is said of the checksums.
    """
    room = min((len(raw) - at) // HEAD + 1, MOST_BATCHES)  # one more: what is too small for a batch is looked at, too
    batches = np.empty((room, _WIDTH), np.int64)
    data = np.frombuffer(raw, np.uint8)
    found, end, status = _scan(data.ctypes.data + at, len(raw) - at, wanted, max_records, batches)
    batches = batches[:found].copy()
    batches[:, START:BASE] += at
    return Scan(batches, at + end, status == _OLD, None if status in (_FINE, _OLD) else _DAMAGES[status])


def check(topic: str, partition: int, raw: bytes, batches: I64) -> None:
    """Raise DamagedRecords for the first of the batches whose checksum is wrong."""
    wrong = _first_wrong(np.frombuffer(raw, np.uint8).ctypes.data, batches)
    if wrong >= 0:
        raise damaged(topic, partition, int(batches[wrong, BASE]), "its checksum is wrong")


def damaged(topic: str, partition: int, base: int, why: str) -> DamagedRecords:
    """The error for the batch that begins at offset `base`."""
    return DamagedRecords(
        f"{topic}[{partition}]: the record batch at offset {base:,} is damaged: {why}. If it is again after a restart, "
        "it lies so on the broker: set the offset of the group past it"
    )


def records_of(runs: Sequence[RecordBatches | list[Record]]) -> list[Record]:
    """The records of several runs of one partition as objects; raises as `unpack` does."""
    return [record for run in runs for record in (unpack([run]).records() if isinstance(run, RecordBatches) else run)]


def unpack(runs: Sequence[RecordBatches | list[Record]]) -> RecordTable:
    """The records of several runs of one partition, in order, as one table.

    Thread-safe, and does almost all without the GIL. Raises DamagedRecords, and then nothing was read.
    """
    return unpack_all([runs])[0]


def unpack_all(parts: Sequence[Sequence[RecordBatches | list[Record]]]) -> tuple[RecordTable, list[int]]:
    """As `unpack`, of the runs of several partitions: one table, and the rows at which each begins and the last ends.

    Offsets ascend within a partition alone.
    """
    runs = [run for part in parts for run in part]
    raw = [run for run in runs if isinstance(run, RecordBatches)]
    if len(raw) == len(runs):
        table, run_ends = _unpack(raw)
    else:
        found = [records_of([run]) for run in runs]
        table = RecordTable.of([record for records in found for record in records])
        run_ends = list(accumulate(map(len, found)))
    ends = [0, *run_ends]  # of so many runs
    return table, [ends[of] for of in accumulate(map(len, parts), initial=0)]


def _unpack(runs: Sequence[RecordBatches]) -> tuple[RecordTable, list[int]]:
    """The records of all runs, and the row behind those of each."""
    batches = np.concatenate([run.batches for run in runs]) if runs else np.empty((0, _WIDTH), np.int64)
    ends = list(accumulate([len(run.batches) for run in runs]))
    raws = np.array([np.frombuffer(run.raw, np.uint8).ctypes.data for run in runs], np.int64)
    behind = np.array(ends, np.int64)
    sizes, starts, rows = np.empty((3, len(batches)), np.int64)
    wrong, packed = _check(raws, behind, batches, sizes)
    if wrong >= 0:
        raise _damaged(runs, ends, batches, wrong, "its checksum is wrong")
    plain: dict[int, NDArray[np.uint8]] = {}  # what was compressed
    if packed:
        for j in np.flatnonzero(batches[:, ATTRIBUTES] & CODEC).tolist():
            r = bisect_right(ends, j)
            plain[j] = _decompress(runs[r], j - (ends[r - 1] if r else 0))
            sizes[j] = len(plain[j])
    wrong, size, count = _lay_out(batches, sizes, starts)
    if wrong >= 0:
        said = f"{batches[wrong, COUNT]:,} records cannot lie in {sizes[wrong]:,} bytes"
        raise _damaged(runs, ends, batches, wrong, said)
    data = padded(size)
    for j, records in plain.items():
        data[starts[j] : starts[j] + len(records)] = records
    columns = np.empty((8, count), np.int64)
    found, wrong = _walk(raws, behind, data.ctypes.data, starts, sizes, batches, columns, rows)
    if wrong >= 0:
        raise _damaged(runs, ends, batches, wrong, "its records do not lie in it as its sizes and counts say")
    offset, timestamp, key, key_size, value, value_size, headers, headers_size = columns[:, :found]
    strings = (Spans(data, *of) for of in ((key, key_size), (value, value_size), (headers, headers_size)))
    upto = [0, *rows.tolist()]
    return RecordTable(offset, timestamp, *strings), [upto[end] for end in ends]


def _decompress(run: RecordBatches, i: int) -> NDArray[np.uint8]:
    start, end, base, attributes = run.batches[i, [START, END, BASE, ATTRIBUTES]].tolist()
    try:
        return decompress(attributes & CODEC, memoryview(run.raw)[start:end])
    except ValueError as error:
        raise damaged(run.topic, run.partition, base, f"it cannot be decompressed: {error}") from None


def _damaged(runs: Sequence[RecordBatches], ends: Sequence[int], batches: I64, j: int, why: str) -> DamagedRecords:
    """The error for a batch of all runs; ends: how many batches there are up to the end of each run."""
    run = runs[bisect_right(ends, j)]
    return damaged(run.topic, run.partition, int(batches[j, BASE]), why)


_FINE, _OLD, _NEW, _SIZE, _COUNT, _ORDER = range(6)
_DAMAGES = {
    _NEW: "its format is none that is known",
    _SIZE: "its size is impossible",
    _COUNT: "its number of records is impossible",
    _ORDER: "its offset is impossible, or lies before the end of the batch before it",
}


@njit(cache=True, nogil=True)
def _scan(address, size, wanted, max_records, batches):
    """Fill in a row for each whole batch; (rows, bytes passed, why it ended)."""
    at, end, rows, records, following = address, address + size, 0, 0, np.int64(0)
    while rows < batches.shape[0] and records < max_records and at + 12 <= end:
        rest = swap32(load32(at + 8))
        if at + 12 + rest > end:
            break  # cut off: a fetch ends anywhere
        if rest < 5:
            return rows, at - address, _SIZE
        form = load8(at + 16)
        if form != 2:
            return rows, at - address, _OLD if form < 2 else _NEW
        if rest < HEAD - 12:
            return rows, at - address, _SIZE
        base, last, count = swap64(np.int64(load64(at))), swap32(load32(at + 23)), swap32(load32(at + 57))
        if last < 0 or count < 0 or count > last + 1:
            return rows, at - address, _COUNT
        if base < following or base > _LARGEST_OFFSET:
            return rows, at - address, _ORDER
        row = batches[rows]
        row[START], row[END] = at + HEAD - address, at + 12 + rest - address
        row[BASE], row[LAST] = base, base + last
        row[ATTRIBUTES], row[COUNT] = swap16(load16(at + 21)), count
        row[PRODUCER] = swap64(np.int64(load64(at + 43)))
        row[FIRST_TIME], row[LAST_TIME] = swap64(np.int64(load64(at + 27))), swap64(np.int64(load64(at + 35)))
        row[WANTED] = wanted
        following = base + last + 1
        records += count
        rows += 1
        at += 12 + rest
    return rows, at - address, _FINE


@njit(cache=True, nogil=True)
def _first_wrong(address, batches):
    """The first batch whose checksum is wrong; -1: none."""
    for j in range(batches.shape[0]):
        sealed = address + batches[j, START] - HEAD + 21
        said = swap32(load32(sealed - 4)) & 0xFFFFFFFF
        if crc32c(sealed, address + batches[j, END] - sealed) != said:
            return j
    return -1


@njit(cache=True, nogil=True)
def _check(raws, behind, batches, sizes):
    """Fill in the sizes of the batches as they lie; (the first whose checksum is wrong or -1, is any compressed).

    raws    int64 (R,)  the address of what was fetched of each run
    behind  int64 (R,)  the batch behind the last of each run
    """
    packed, j = False, 0
    for r in range(raws.shape[0]):
        wrong = _first_wrong(raws[r], batches[j : behind[r]])
        if wrong >= 0:
            return j + wrong, packed
        while j < behind[r]:
            sizes[j] = batches[j, END] - batches[j, START]
            packed |= batches[j, ATTRIBUTES] & CODEC != 0
            j += 1
    return -1, packed


@njit(cache=True, nogil=True)
def _lay_out(batches, sizes, starts):
    """Fill in where the records of each batch begin in a buffer; (the first with too many or -1, bytes, records)."""
    at = count = np.int64(0)
    for j in range(batches.shape[0]):
        if batches[j, COUNT] > sizes[j] // _SMALLEST:
            return j, at, count
        starts[j] = at
        at += sizes[j]
        count += batches[j, COUNT]
    return -1, at, count


@njit(cache=True, nogil=True)
def _varint(at):
    """The number at an address, and the address behind it: 10 bytes further at most."""
    byte = load8(at)
    at += 1
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at
    value, shift = uint64(byte & 127), 7
    while byte > 127 and shift < 70:
        byte = load8(at)
        at += 1
        value |= uint64(byte & 127) << uint64(shift)
        shift += 7
    return np.int64(value >> uint64(1)) ^ -np.int64(value & uint64(1)), at


@njit(cache=True, nogil=True)
def _are_headers(at, stop, count):
    """Whether so many headers fill the bytes from an address up to another."""
    for _ in range(count):
        size, at = _varint(at)
        if size < 0 or size > stop - at:
            return False
        size, at = _varint(at + size)
        if size > stop - at:
            return False
        at += max(size, 0)
        if at > stop:
            return False
    return count >= 0 and at == stop


@njit(cache=True, nogil=True)
def _walk(raws, behind, address, starts, sizes, batches, columns, rows):
    """Fill in a column for each record that is wanted; (records, the first damaged batch or -1).

    Batches that are not compressed are copied first to where they begin from `address` on; those that are must lie
    there. `rows` gets the row behind the last of each batch. Of raws and behind see `_check`.

    Sizes are compared with the bytes that are left before they are used; varints alone are read before that, five of
    them and a byte: they may reach 51 bytes behind the buffer, into its padding.
    """
    i = r = 0
    for j in range(batches.shape[0]):
        while behind[r] <= j:
            r += 1
        if not batches[j, ATTRIBUTES] & CODEC:
            copy(address + starts[j], raws[r] + batches[j, START], sizes[j])
        at, base, first_time = address + starts[j], batches[j, BASE], batches[j, FIRST_TIME]
        end, span, before = at + sizes[j], batches[j, LAST] - base, np.int64(-1)
        skip = batches[j, WANTED] - base  # records before this one
        if batches[j, ATTRIBUTES] & LOG_APPEND_TIME:
            scale, first_time = 0, batches[j, LAST_TIME]
        else:
            scale = 1
        for _ in range(batches[j, COUNT]):
            size, at = _varint(at)
            if size < _SMALLEST - 1 or size > end - at:
                return i, j
            stop = at + size
            time, place = _varint(at + 1)
            number, place = _varint(place)
            key_size, place = _varint(place)
            key = place
            if key_size > 0:
                if key_size > stop - place:
                    return i, j
                place += key_size
            value_size, place = _varint(place)
            value = place
            if value_size > 0:
                if value_size > stop - place:
                    return i, j
                place += value_size
            headers = place
            count, place = _varint(place)
            headers_size = stop - headers
            if count == 0:
                headers_size = -1
                if place != stop:
                    return i, j
            elif not _are_headers(place, stop, count):
                return i, j
            if number <= before or number > span:
                return i, j
            before = number
            if number >= skip:
                columns[_OFFSET, i], columns[_TIME, i] = base + number, first_time + scale * time
                columns[_KEY, i], columns[_KEY_SIZE, i] = key - address, max(key_size, -1)
                columns[_VALUE, i], columns[_VALUE_SIZE, i] = value - address, max(value_size, -1)
                columns[_HEADERS, i], columns[_HEADERS_SIZE, i] = headers - address, headers_size
                i += 1
            at = stop
        if at != end:
            return i, j
        rows[j] = i
    return i, -1


def warm_up() -> None:
    """Compile the kernels."""
    batches = np.empty((0, _WIDTH), np.int64)
    check("", 0, b"", batches)
    _unpack([RecordBatches("", 0, b"", batches)])
    scan(b"", 0, 0, 0)
