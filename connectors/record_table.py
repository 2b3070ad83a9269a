"""Records as a table: a column per field over one buffer, without an object per record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .records import Headers, Record
from .spans import I64, Spans


@dataclass(frozen=True, slots=True)
class RecordTable:
    """N records of one partition, in the order of their offsets.

    offset      int64 (N,)
    timestamp   int64 (N,)  milliseconds since the epoch
    key, value  N byte strings each, over the same buffer
    headers     of each record as they lie on the wire, over the same buffer; -1: it has none
    """

    offset: I64
    timestamp: I64
    key: Spans
    value: Spans
    headers: Spans

    @classmethod
    def of(cls, records: Sequence[Record]) -> RecordTable:
        """Of these records, copied."""
        n = len(records)
        wires = [_wire(record.headers) if record.headers else None for record in records]
        parts: list[bytes | None] = [record.key for record in records]
        parts += [record.value for record in records]
        parts += wires
        spans = Spans.of(parts)
        return cls(
            np.array([record.offset for record in records], np.int64),
            np.array([record.timestamp for record in records], np.int64),
            spans.take(slice(0, n)),
            spans.take(slice(n, 2 * n)),
            spans.take(slice(2 * n, 3 * n)),
        )

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def has_headers(self) -> NDArray[np.bool_]:
        """bool (N,)"""
        return self.headers.size >= 0

    def record(self, i: int) -> Record:
        """One of them, whole."""
        return Record(
            int(self.offset[i]), int(self.timestamp[i]), self.key[i], self.value[i], headers_of(self.headers[i])
        )

    def records(self) -> list[Record]:
        """All of them; 1.3 us each."""
        found: list[Headers] = [()] * len(self)
        for i in np.flatnonzero(self.has_headers):
            found[i] = headers_of(self.headers[int(i)])
        return list(map(Record, self.offset.tolist(), self.timestamp.tolist(), self.key, self.value, found))

    def take(self, rows: NDArray | slice) -> RecordTable:
        """Some of them, over the same buffer; rows: a slice, places or a mask."""
        return RecordTable(
            self.offset[rows],
            self.timestamp[rows],
            self.key.take(rows),
            self.value.take(rows),
            self.headers.take(rows),
        )


def headers_of(wire: bytes | None) -> Headers:
    """Headers as they lie in a record batch; None: there are none."""
    if wire is None:
        return ()

    def text(at: int) -> tuple[bytes | None, int]:
        size, at = _varint(wire, at)
        return (None, at) if size < 0 else (wire[at : at + size], at + size)

    headers = []
    count, at = _varint(wire, 0)
    for _ in range(count):
        name, at = text(at)
        value, at = text(at)
        headers.append(((name or b"").decode(errors="replace"), value))
    return tuple(headers)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at


def _wire(headers: Headers) -> bytes:
    """Headers as they lie in a record batch."""
    out = bytearray()

    def number(value: int) -> None:
        value = value << 1 if value >= 0 else ~(value << 1)
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)

    def text(value: bytes | None) -> None:
        number(-1 if value is None else len(value))
        out.extend(value or b"")

    number(len(headers))
    for name, value in headers:
        text(name.encode())
        text(value)
    return bytes(out)
