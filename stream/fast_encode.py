"""Prediction records as `encode_predictions` gives them, written for many rows at once in a Numba kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..connectors.memory import PADDING, address_of, load8, padded, put_bytes, store8, store32
from ..connectors.record_writer import Rows
from ..connectors.spans import Spans
from ..jit import njit
from .decode import Batch
from .encode import Served, check_outputs, say_classes, say_features, say_model, say_source
from .explain import NO_FEATURE, Explained
from .number_text import LONGEST, put_float32, put_float64, put_int64
from .processed import Predicted

I64 = NDArray[np.int64]

_PLAIN_MICROSECONDS = 2**33 * 1_000_000  # float64 seconds lie less than a microsecond apart up to it, year 2242
_NULL = int.from_bytes(b"null", "little")
_OPEN, _THEN, _CLOSE = b'{"key":', b',"prediction":', b'"}'
_OPEN_SIZE, _THEN_SIZE, _CLOSE_SIZE = len(_OPEN), len(_THEN), len(_CLOSE)
_EXPLAIN = b'","explain":['
_EXPLAIN_SIZE = len(_EXPLAIN)

# What the kernel is told of each row, a column after another; the last two only where a batch has headers.
_KEY_SIZE, _KEY, _RECORD_KEY_SIZE, _RECORD_KEY, _TIME, _OFFSET, _HEADERS_SIZE, _HEADERS = range(8)
# And of each part, some rows of one batch that one model has predicted: the row behind its last, where its buffers lie,
# and what is said of its model and its source.
_END, _KEY_DATA, _RECORD_KEY_DATA, _HEADERS_DATA, _MODEL, _MODEL_SIZE, _SOURCE, _SOURCE_SIZE = range(8)


def prediction_rows(
    predicted: Mapping[int, Sequence[Predicted]], topic: str, served: Served
) -> tuple[Rows, dict[int, int]]:
    """The prediction records of a cycle, of all partitions at one go: what `encode_predictions` gives of each piece.

    predicted  the pieces of each partition, in order

    Returns the records, one partition after another, and for each partition the row behind its last. They are copies:
    the batches may go. Numbers are the shortest that read back as the same float32 and float64. Raises ValueError when
    a piece has not as much of one thing as of another, or not one output for each class.
    """
    told = []  # the columns of each part
    parts, row, ends = [], 0, {}
    names = say_classes(served.classes) or [b""]  # what stands before each number of a prediction
    explained = [piece.explained for pieces in predicted.values() for piece in pieces]
    why = [one for one in explained if one is not None]
    features = [_EXPLAIN, *say_features(served.features)] if why else []  # and what stands before each contribution
    said = [_OPEN, _THEN, _CLOSE, *names, *features]
    begins = np.cumsum([len(text) for text in said])[2:]  # of names and features in it, and the end
    size = int(begins[-1])
    models: dict[int, tuple[int, int]] = {}  # where in it that stands which is said of a model, and its size
    longest = 0  # of what is said of a source
    with_headers = any(piece.batch.headers is not None for pieces in predicted.values() for piece in pieces)
    for partition, pieces in predicted.items():
        source = size, len(say_source(topic, partition))
        said.append(say_source(topic, partition))
        size, longest = sum(source), max(longest, source[1])
        for batch, lo, hi, by in _runs(pieces):
            if by not in models:
                of = (b"}" if served.classes else b"") + say_model(served if by < 0 else served.by(by))
                said.append(of)
                models[by] = size, len(of)
                size += len(of)
            row += hi - lo
            strings = [batch.keys, batch.record_keys]
            if with_headers:
                strings.append(Spans.none(len(batch)) if batch.headers is None else batch.headers)
            told.append(_columns(batch, strings, lo, hi))
            buffers = [address_of(of.data) for of in strings]
            parts += [row, *buffers, *[0] * (3 - len(buffers)), *models[by], *source]
        ends[partition] = row
    if not row:
        return Rows(Spans.none(0), Spans.none(0)), ends
    out = np.concatenate([piece.out for pieces in predicted.values() for piece in pieces], dtype=np.float32)
    check_outputs(out, served.classes)
    reasons = Explained(*map(np.concatenate, zip(*why, strict=True))) if why else Explained.blank(row, 0)
    bounds, of_features = begins[: len(names) + 1], begins[len(names) :]
    most = int(bounds[-1]) + longest + max(length for _, length in models.values()) + (2 + len(names)) * LONGEST
    if why:
        most += 2 + _EXPLAIN_SIZE + reasons.feature.shape[1] * (2 + max(map(len, features)) + LONGEST)
    return _written(told, parts, out, reasons, said, bounds, of_features, most, row), ends


def _runs(predicted: Sequence[Predicted]) -> Iterator[tuple[Batch, int, int, int]]:
    """Pieces that follow one another in a batch, joined: a part has its price, and a piece may be a few rows.

    batch, its rows lo to hi, and the place of the model that has predicted them; -1 where none is told of.
    """
    if not predicted:
        return
    batch, lo, hi, by = predicted[0].batch, predicted[0].lo, predicted[0].lo, -1
    for piece in predicted:
        for a, b, one in ((piece.lo, piece.hi, -1),) if piece.by is None else _by_model(piece):
            if piece.batch is not batch or a != hi or one != by:
                if hi > lo:
                    yield batch, lo, hi, by
                batch, lo, by = piece.batch, a, one
            hi = b
    yield batch, lo, hi, by


def _by_model(piece: Predicted) -> list[tuple[int, int, int]]:
    """The stretches [a, b) of a piece's batch that one model has predicted, and its place."""
    assert piece.by is not None
    cuts = [0, *(np.flatnonzero(np.diff(piece.by)) + 1).tolist(), len(piece.by)]
    return [(piece.lo + a, piece.lo + b, int(piece.by[a])) for a, b in pairwise(cuts) if b > a]


def _columns(batch: Batch, strings: Sequence[Spans], lo: int, hi: int) -> list[I64]:
    """The columns of some rows, in the order that the kernel knows."""
    keys, record_keys, *headers = strings
    columns = [keys.size, keys.start, record_keys.size, record_keys.start, batch.time, batch.offset]
    for of in headers:
        columns += [of.size, of.start]
    return columns if hi - lo == len(batch) else [column[lo:hi] for column in columns]


def _written(
    told: Sequence[Sequence[I64]],
    parts: list[int],
    out: NDArray[np.float32],
    explained: Explained,
    said: list[bytes],
    bounds: I64,
    of_features: I64,
    most: int,
    rows: int,
) -> Rows:
    """The rows of all parts, in a buffer of their own; most: bytes of a row beside its strings."""
    columns = np.concatenate([part for column in zip(*told, strict=True) for part in column], dtype=np.int64)
    if len(explained.feature) != rows:
        raise ValueError(f"{rows} rows with {len(explained.feature)} explanations")
    if len(out) != rows or len(columns) != rows * len(told[0]):
        raise ValueError(f"{rows} rows with {len(out)} predictions, and {len(columns)} of {len(told[0])} things each")
    columns = columns.reshape(len(told[0]), rows)
    texts = np.frombuffer(bytearray(b"".join([*said, bytes(PADDING)])), np.uint8)
    data, places = padded(_room(columns, most)), np.empty((4, rows), np.int64)
    _write(
        columns, out, *explained, np.array(parts, np.int64), address_of(texts), bounds, of_features, address_of(data),
        places,
    )  # fmt: skip
    return Rows(
        keys=Spans(data, places[2], columns[_RECORD_KEY_SIZE]),
        values=Spans(data, places[0], places[1]),
        headers=Spans(data, places[3], columns[_HEADERS_SIZE]) if len(columns) > _HEADERS else None,
    )


@njit(cache=True, nogil=True)
def _room(columns, most):
    """Bytes that suffice for all rows, each with so many beside its strings."""
    size = 0
    for i in range(columns.shape[1]):
        size += most + max(columns[_KEY_SIZE, i], 4) + max(columns[_RECORD_KEY_SIZE, i], 0)
        if columns.shape[0] > _HEADERS:
            size += max(columns[_HEADERS_SIZE, i], 0)
    return size


@njit(cache=True, nogil=True)
def _write(columns, out, feature, contribution, parts, said, bounds, of_features, data, places):
    """Of each row its value, its record key and its headers, one after another at the address `data`.

    feature, contribution  int32, float32 (B, T)  as `Explained` has them; T = 0: nothing is explained
    parts   int64 (8 * parts,)
    said    address of what rows say: _OPEN, _THEN, _CLOSE, before each number, _EXPLAIN, before each contribution by
            feature, of the models and the sources
    bounds  int64 (numbers + 1,)  where in it that stands which is said before each number, and the end of the last
    of_features  int64 (F + 2,)  where _EXPLAIN stands and what is said before contributions; the end of the last
    places  int64 (4, B)   changed in place: where in data value, its size, record key and headers are
    """
    then = said + _OPEN_SIZE
    close = then + _THEN_SIZE
    at, first = data, 0
    for part in range(0, parts.shape[0], 8):
        key_data, record_key_data = parts[part + _KEY_DATA], parts[part + _RECORD_KEY_DATA]
        headers_data = parts[part + _HEADERS_DATA]
        model, model_size = said + parts[part + _MODEL], parts[part + _MODEL_SIZE]
        source, source_size = said + parts[part + _SOURCE], parts[part + _SOURCE_SIZE]
        for i in range(first, parts[part + _END]):
            places[0, i] = at - data
            at = put_bytes(at, said, _OPEN_SIZE)
            if columns[_KEY_SIZE, i] >= 0:
                at = put_bytes(at, key_data + columns[_KEY, i], columns[_KEY_SIZE, i])
            else:
                store32(at, _NULL)
                at += 4
            at = put_bytes(at, then, _THEN_SIZE)
            for c in range(bounds.shape[0] - 1):
                at = put_bytes(at, said + bounds[c], bounds[c + 1] - bounds[c])
                at = put_float32(at, out[i, c])
            at = put_bytes(at, model, model_size)
            at = _put_seconds(at, columns[_TIME, i])
            at = put_bytes(at, source, source_size)
            at = put_int64(at, columns[_OFFSET, i])
            if feature.shape[1] == 0:
                at = put_bytes(at, close, _CLOSE_SIZE)
            else:
                at = put_bytes(at, said + of_features[0], _EXPLAIN_SIZE)
                for t in range(feature.shape[1]):
                    f = feature[i, t]
                    if f != NO_FEATURE:
                        if t > 0:
                            store8(at, ord(","))
                            at += 1
                        at = put_bytes(at, said + of_features[f + 1], of_features[f + 2] - of_features[f + 1])
                        at = put_float32(at, contribution[i, t])
                        store8(at, ord("}"))
                        at += 1
                store8(at, ord("]"))
                store8(at + 1, ord("}"))
                at += 2
            places[1, i] = at - data - places[0, i]
            places[2, i] = at - data
            at = put_bytes(at, record_key_data + columns[_RECORD_KEY, i], max(columns[_RECORD_KEY_SIZE, i], 0))
            places[3, i] = at - data
            if columns.shape[0] > _HEADERS:
                at = put_bytes(at, headers_data + columns[_HEADERS, i], max(columns[_HEADERS_SIZE, i], 0))
        first = parts[part + _END]


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
    columns, places = np.zeros((6, 1), np.int64), np.zeros((4, 1), np.int64)
    data, parts = padded(_room(columns, 200)), np.array([1, 0, 0, 0, 0, 0, 0, 0])
    out, bounds = np.zeros((1, 1), np.float32), np.zeros(2, np.int64)
    _write(columns, out, *Explained.blank(1, 0), parts, address_of(data), bounds, bounds, address_of(data), places)
