"""Prediction records as `encode_predictions` gives them, written for many rows at once in a Numba kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..connectors.memory import load8, padded, put_bytes, store8, store32
from ..connectors.record_writer import Rows
from ..connectors.spans import Spans, join
from .decode import Batch
from .encode import Served, sayings
from .engine import Predicted
from .number_text import LONGEST, put_float32, put_float64, put_int64

I64 = NDArray[np.int64]

_PLAIN_MICROSECONDS = 2**33 * 1_000_000  # float64 seconds lie less than a microsecond apart up to it, year 2242
_NULL = int.from_bytes(b"null", "little")


def prediction_rows(predicted: Sequence[Predicted], topic: str, served: Served) -> Rows:
    """The prediction records of some pieces of one partition, in order: what `encode_predictions` gives of each."""
    keys, values, headers = [], [], []
    for batch, lo, hi, out in _runs(predicted):
        rows = slice(lo, hi)
        keys.append(batch.record_keys.take(rows))
        if batch.headers is not None:
            headers.append(batch.headers.take(rows))
        values.append(
            encode_rows(
                batch.keys.take(rows), out, batch.time[rows], batch.offset[rows], topic, batch.partition, served
            )
        )
    return Rows(join(keys), join(values), join(headers) if headers else None)


def _runs(predicted: Sequence[Predicted]) -> Iterator[tuple[Batch, int, int, NDArray[np.float32]]]:
    """Pieces that follow one another in a batch, joined: a call has its price, and a piece may be a few rows."""
    for _, pieces in groupby(predicted, key=lambda piece: id(piece.batch)):
        run = list(pieces)
        if all(a.hi == b.lo for a, b in pairwise(run)):
            yield run[0].batch, run[0].lo, run[-1].hi, np.concatenate([piece.out[:, 0] for piece in run])
        else:
            yield from ((piece.batch, piece.lo, piece.hi, piece.out[:, 0]) for piece in run)


def encode_rows(
    keys: Spans, prediction: NDArray[np.float32], time: I64, offset: I64, topic: str, partition: int, served: Served
) -> Spans:
    """The values of B prediction records of one partition, in the order of the rows.

    keys        the JSON text of each event's key; null where there is none
    prediction  (B,)
    time        (B,)  of the events, microseconds since the epoch
    offset      (B,)  of the events in their topic

    {"key": K, "prediction": P, "model", "version", "age_seconds", "time": seconds, "source": "topic-partition-offset"}
    Numbers are the shortest that read back as the same float32 and float64. ValueError when lengths differ.
    """
    rows = len(keys)
    if not rows == len(prediction) == len(time) == len(offset):
        raise ValueError(f"{rows} keys, {len(prediction)} predictions, {len(time)} times, {len(offset)} offsets")
    middle, source = sayings(served, topic, partition)
    said = Spans.of([b'{"key":', b',"prediction":', middle, source, b'"}'])
    most = int(np.maximum(keys.size, 4).sum()) + rows * (int(said.size.sum()) + 3 * LONGEST)
    data, start, size = padded(most), np.empty(rows, np.int64), np.empty(rows, np.int64)
    _write(
        keys.data.ctypes.data,
        np.require(keys.start, np.int64, ("C", "W")),
        np.require(keys.size, np.int64, ("C", "W")),
        np.require(prediction, np.float32, ("C", "W")),
        np.require(time, np.int64, ("C", "W")),
        np.require(offset, np.int64, ("C", "W")),
        said.data.ctypes.data + said.start,
        said.size,
        data.ctypes.data,
        start,
        size,
    )
    return Spans(data, start, size)


@njit(cache=True, nogil=True)
def _write(key_data, key_start, key_size, prediction, time, offset, said, said_size, data, start, size):
    """Values one after another at the address `data`; said, said_size: addresses and sizes of what all rows say."""
    at = data
    for i in range(prediction.shape[0]):
        start[i] = at - data
        at = put_bytes(at, said[0], said_size[0])
        if key_size[i] >= 0:
            at = put_bytes(at, key_data + key_start[i], key_size[i])
        else:
            store32(at, _NULL)
            at += 4
        at = put_bytes(at, said[1], said_size[1])
        at = put_float32(at, prediction[i])
        at = put_bytes(at, said[2], said_size[2])
        at = _put_seconds(at, time[i])
        at = put_bytes(at, said[3], said_size[3])
        at = put_int64(at, offset[i])
        at = put_bytes(at, said[4], said_size[4])
        size[i] = at - data - start[i]


@njit(cache=True, nogil=True)
def _put_seconds(address, microseconds):
    """Write microseconds / 1e6 as put_float64 would.

    Up to _PLAIN_MICROSECONDS each microsecond has float64s of its own, so the shortest text that reads back as one of
    them is its six decimals, or fewer if they end in zeros.
    """
    if not 1_000_000 <= microseconds < _PLAIN_MICROSECONDS:
        return put_float64(address, microseconds / 1e6)
    whole = microseconds // 1_000_000
    point = put_int64(address, whole)
    end = put_int64(point, microseconds - whole * 1_000_000 + 1_000_000)  # the 1 in front keeps the zeros
    store8(point, ord("."))
    while end > point + 2 and load8(end - 1) == ord("0"):
        end -= 1
    return end


def warm_up() -> None:
    """Compile the kernels of this file."""
    zero = np.zeros(1, np.int64)
    encode_rows(Spans.of([b"0"]), np.zeros(1, np.float32), zero, zero, "", 0, Served("", 0, None))
