"""Many byte strings in one buffer: what records, their keys and the texts in them are, without an object for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .memory import padded

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
        end = np.cumsum(np.maximum(size, 0))
        data = padded(int(end[-1]) if len(end) else 0)
        joined = b"".join([v for v in values if v is not None])
        data[: len(joined)] = np.frombuffer(joined, np.uint8)
        return cls(data, end - np.maximum(size, 0), size)

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

    def packed(self) -> tuple[NDArray[np.uint8], I64]:
        """Their bytes one after another, with padding, and int64 (B + 1,) where each begins: Arrow's large strings.

        What is not there counts as empty.
        """
        ends = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.maximum(self.size, 0), out=ends[1:])
        out = padded(int(ends[-1]))
        _gather(self.data, self.start, ends, out)
        return out, ends


def join(parts: Sequence[Spans]) -> Spans:
    """The strings of all parts, in order, in a buffer of their own."""
    if len(parts) == 1:
        return parts[0]
    packs = [part.packed() for part in parts]
    data = padded(sum(int(ends[-1]) for _, ends in packs))
    starts, at = [], 0
    for bytes_, ends in packs:
        size = int(ends[-1])
        data[at : at + size] = bytes_[:size]
        starts.append(ends[:-1] + at)
        at += size
    return Spans(data, np.concatenate(starts or [np.empty(0, np.int64)]), np.concatenate([part.size for part in parts]))


@njit(cache=True, nogil=True)
def _gather(data, start, ends, out):
    """Copy B byte strings to where they begin in out."""
    for i in range(start.shape[0]):
        a, b = start[i], ends[i]
        for k in range(ends[i + 1] - b):
            out[b + k] = data[a + k]
