"""Many byte strings in one buffer: what records, their keys and the texts in them are, without an object for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..jit import njit
from .memory import PADDING, load8, padded, put_bytes

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spans:
    """B byte strings, each at its place in a buffer that they share.

    data   uint8, ends with PADDING bytes that may be read
    start  int64 (B,)   of row i in data
    size   int64 (B,)   in bytes; -1: there is none, which is not the same as an empty one
    """

    data: NDArray[np.uint8]
    start: I64
    size: I64

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Spans:
        """Of these byte strings, copied."""
        size = np.array([-1 if v is None else len(v) for v in values], np.int64)
        room = np.maximum(size, 0)
        joined = b"".join([v for v in values if v is not None])
        data = padded(len(joined))
        data[: len(joined)] = np.frombuffer(joined, np.uint8)
        return cls(data, np.cumsum(room) - room, size)

    @classmethod
    def of_texts(cls, texts: Sequence[str | None]) -> Spans:
        """Of these texts in UTF-8."""
        joined = "".join([t for t in texts if t is not None])
        if not joined.isascii():
            return cls.of([None if t is None else t.encode() for t in texts])
        size = np.array([-1 if t is None else len(t) for t in texts], np.int64)
        room = np.maximum(size, 0)
        data = padded(len(joined))
        data[: len(joined)] = np.frombuffer(joined.encode(), np.uint8)
        return cls(data, np.cumsum(room) - room, size)

    @classmethod
    def none(cls, rows: int) -> Spans:
        """So many that are not there."""
        return cls(padded(0), np.zeros(rows, np.int64), np.full(rows, -1, np.int64))

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, i: int) -> bytes | None:
        size = int(self.size[i])
        start = int(self.start[i])
        return None if size < 0 else self.data[start : start + size].tobytes()

    def __iter__(self) -> Iterator[bytes | None]:
        raw = self.data.data
        for start, size in zip(self.start.tolist(), self.size.tolist(), strict=True):
            yield None if size < 0 else bytes(raw[start : start + size])

    def take(self, rows: NDArray | slice) -> Spans:
        """Some of them, over the same buffer; rows: a slice, places or a mask."""
        return Spans(self.data, self.start[rows], self.size[rows])

    def holding(self, text: bytes) -> NDArray[np.bool_]:
        """bool (B,): the strings in which this text is somewhere."""
        sought, found = Spans.of([text]), np.zeros(len(self), np.bool_)
        at = np.ascontiguousarray(self.start), np.ascontiguousarray(self.size)
        _search(self.data.ctypes.data, *at, sought.data.ctypes.data, len(text), found)
        return found

    def packed(self) -> tuple[NDArray[np.uint8], I64]:
        """Their bytes one after another, with padding, and int64 (B + 1,) where each begins: Arrow's large strings.

        What is not there counts as empty.
        """
        ends = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.maximum(self.size, 0), out=ends[1:])
        out = padded(int(ends[-1]))
        self._copy_to(out, ends)
        out[-PADDING:] = 0
        return out, ends

    def _copy_to(self, out: NDArray[np.uint8], starts: I64) -> None:
        """Copy each string to its place in out, in order; what lies behind the last one is written to, too."""
        at = np.ascontiguousarray(self.start), np.ascontiguousarray(self.size)
        _gather(self.data.ctypes.data, *at, out.ctypes.data, starts)


def join(parts: Sequence[Spans]) -> Spans:
    """The strings of all parts, in order, in a buffer of their own."""
    if len(parts) == 1:
        return parts[0]
    size = np.concatenate([part.size for part in parts]) if parts else np.empty(0, np.int64)
    room = np.maximum(size, 0)
    start = np.cumsum(room) - room
    data, row = padded(int(room.sum())), 0
    for part in parts:
        part._copy_to(data, start[row : row + len(part)])
        row += len(part)
    data[-PADDING:] = 0
    return Spans(data, start, size)


@njit(cache=True, nogil=True)
def _gather(data, start, size, out, starts):
    """Copy B byte strings to their places, 32 bytes at a time: up to 31 more are written behind each."""
    for i in range(start.shape[0]):
        if size[i] > 0:
            put_bytes(out + starts[i], data + start[i], size[i])


@njit(cache=True, nogil=True)
def _search(data, start, size, text, text_size, found):
    """Mark the rows in which the bytes from the address `text` on are, at least one of them."""
    first = load8(text)
    for i in range(start.shape[0]):
        at, last = data + start[i], data + start[i] + size[i] - text_size
        while at <= last and not found[i]:
            if load8(at) == first:
                same = 1
                while same < text_size and load8(at + same) == load8(text + same):
                    same += 1
                found[i] = same == text_size
            at += 1


def warm_up() -> None:
    """Compile the kernels of this file."""
    Spans.of([b"x"]).packed()
    Spans.of([b"x"]).holding(b"x")
