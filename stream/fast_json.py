"""The fast decoder: flat JSON objects of a known schema to columns, where it is sure; the rest it flags.

The strict decoder (decode.py) says what is valid and what the values are. A row that is not flagged here is valid
there, with the same values to the bit. A flagged row is no error: it is the strict decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from ..connectors.memory import PADDING, load8, load32, load64, padded, store8, store64
from ..connectors.spans import I64, Spans
from .decimals import read_float, read_int
from .flat_schema import BOOL, FLOAT, INT, MOMENT, NOT_SURE, TEXT, VALUE, fallback, flat_fields
from .hashing import U64
from .json_text import (
    CLOSE,
    COLON,
    COMMA,
    FALS,
    NULL,
    OPEN,
    QUOTE,
    SMALL_E,
    TRUE,
    is_utf8,
    skip_space,
    skip_value,
    text_end,
)
from .moments import read_moment

_WIDTH = 8  # of the plan of a field: a cache line
_KIND, _NULLABLE, _TEXT, _NAME_SIZE, _NAME, _FIRST, _MASK = range(7)
# _TEXT: its row of text_start, or -1; _NAME: its place in words; _FIRST: the first of them, _MASK: what counts of it

_FLAGGED = np.uint64(1 << 63)  # in the place of the fields seen, which are the bits below


@dataclass(frozen=True, slots=True)
class FlatRows:
    """B decoded rows. What a flagged row holds is unknown: `known` is False, `size` -1.

    cells    uint64 (F, B)  the bits of float64, int64, bool, or int64 microseconds since the epoch; of texts: nothing
    known    bool (F, B)    False: None
    start, size  int64 (T, B)  the text in data, as UTF-8; size -1: None
    data     uint8          the buffer of the values, or a longer copy where a text is the schema's default
    flagged  bool (B,)      for the strict decoder to decide
    """

    cells: U64
    known: NDArray[np.bool_]
    start: I64
    size: I64
    data: NDArray[np.uint8]
    flagged: NDArray[np.bool_]


class FlatJson:
    """How the records of one schema are read. Holds no state of the stream.

    place  by attribute name, the row of FlatRows.cells and .known
    text   by attribute name, the row of FlatRows.start and .size: of fields of text, and of integers in `spelled`.
           In `data`, a text has its quotes around it: the JSON is data[start - 1 : start + size + 1]. That of an
           integer is data[start : start + size], as msgspec would write it.
    """

    def __init__(self, schema: type[msgspec.Struct], spelled: Sequence[str] = ()) -> None:
        """Of a schema that is `possible`; spelled: the integer fields whose JSON is wanted. Raises ValueError."""
        fields = flat_fields(schema)
        if fields is None:
            raise ValueError(f"{schema.__name__} is not a flat schema that the fast decoder knows")
        if any(field.attribute in spelled and field.kind not in (INT, TEXT) for field in fields):
            raise ValueError(f"{', '.join(spelled)}: only texts and integers are spelled as msgspec would")
        self.place = {field.attribute: j for j, field in enumerate(fields)}
        with_text = [field.attribute for field in fields if field.kind == TEXT or field.attribute in spelled]
        self.text = {name: t for t, name in enumerate(with_text)}
        names = [(field.name + '"').encode() for field in fields]
        words = [np.frombuffer(name + bytes(-len(name) % 8), np.uint64) for name in names]
        self._words = np.concatenate(words)
        self._plan = np.zeros((len(fields), _WIDTH), np.int64)
        self._become = np.zeros(len(fields), np.int64)
        self._absent = np.zeros((len(fields), 3), np.int64)
        self._tail, at = b'"', 0
        for j, (field, name) in enumerate(zip(fields, names, strict=True)):
            text = self.text.get(field.attribute, -1)
            mask = -1 if len(name) >= 8 else 2 ** (8 * len(name)) - 1
            self._plan[j] = field.kind, field.nullable, text, len(name), at, words[j][0].view(np.int64), mask, 0
            at += len(words[j])
            self._become[j], bits, default = fallback(field, spelled=field.attribute in self.text)
            self._absent[j] = bits, len(self._tail), len(default)
            self._tail += default + b'"'

    @staticmethod
    def possible(schema: type[msgspec.Struct]) -> bool:
        """Whether the fast decoder can promise anything about records of this schema."""
        return flat_fields(schema) is not None

    def decode(self, values: Spans) -> FlatRows:
        """Decode B records. What is not there (size -1) or empty is flagged. Raises ValueError for bad padding."""
        rows, fields, texts = len(values), len(self.place), len(self.text)
        if len(values.data) < PADDING or values.data[-PADDING:].any():
            raise ValueError(f"the buffer of the values does not end with {PADDING} zero bytes")
        cells, known = np.empty((fields, rows), np.uint64), np.empty((fields, rows), np.bool_)
        start, size = np.empty((texts, rows), np.int64), np.empty((texts, rows), np.int64)
        flagged = np.empty(rows, np.bool_)
        data = values.data
        at = np.ascontiguousarray(values.start), np.ascontiguousarray(values.size)
        follower = np.append(np.arange(1, fields), (0, 0))
        plan = self._plan, self._words, self._become, self._absent, follower
        if _decode(data.ctypes.data, len(data), *at, *plan, cells, known, start, size, flagged):
            data = padded(len(values.data) + len(self._tail))
            data[: len(values.data)] = values.data
            data[len(values.data) : -PADDING] = np.frombuffer(self._tail, np.uint8)
        return FlatRows(cells, known, start, size, data, flagged)


def warm_up() -> None:
    """Compile the kernels of this file."""
    FlatJson(_Nothing).decode(Spans.of([b"{}"]))


class _Nothing(msgspec.Struct):
    x: float | None = None


# --- kernels: arrays at the door, addresses within, since an array passed on for each row is counted for each row


@njit(cache=True, nogil=True)
def _decode(
    base, behind, starts, sizes, plan, words, become, absent, follower, cells, known, text_start, text_size, flagged
):
    """Decode B records into the arrays of FlatRows. Returns whether a text is one of the tail, which is not there yet.

    base      int64              the address of data
    behind    int64              the size of data, and so where the tail will begin
    plan      int64 (F, _WIDTH)  of each field, by the names above
    words     uint64 (W,)        each field's name with its closing quote, filled up with zeros to whole words
    become    int64 (F,)         what an absent field becomes
    absent    int64 (F, 3)       the bits of its cell, its text's place in the tail behind data, its size
    follower  int64 (F + 1,)     the field that was last seen behind field j, or first in a record (at F); changed in
                                 place. No array may be made in here: it would be freed once its address is taken
    """
    rows, fields = starts.shape[0], plan.shape[0]
    at_plan, at_words, at_follower = plan.ctypes.data, words.ctypes.data, follower.ctypes.data
    at_cells, at_known = cells.ctypes.data, known.ctypes.data
    at_start, at_size = text_start.ctypes.data, text_size.ctypes.data
    every = (uint64(1) << uint64(fields)) - uint64(1)
    from_tail = False
    for i in range(rows):
        seen = _FLAGGED
        if sizes[i] > 1:
            p = base + starts[i]
            seen = _row(
                p, p + sizes[i], base, i, rows, fields, at_plan, at_words, at_follower,
                at_cells, at_known, at_start, at_size,
            )  # fmt: skip
        if seen != every:
            for j in range(fields):
                if (seen >> uint64(j)) & uint64(1) == uint64(0) and become[j] == NOT_SURE:
                    seen = _FLAGGED
            for j in range(fields):
                if seen == _FLAGGED or (seen >> uint64(j)) & uint64(1) == uint64(0):
                    given = seen != _FLAGGED and become[j] == VALUE
                    known[j, i] = given
                    cells[j, i] = uint64(absent[j, 0])
                    if plan[j, _TEXT] >= 0:
                        text_start[plan[j, _TEXT], i] = behind + absent[j, 1] if given else 0
                        text_size[plan[j, _TEXT], i] = absent[j, 2] if given else -1
                        from_tail |= given
        flagged[i] = seen == _FLAGGED
    return from_tail


@njit(cache=True, nogil=True, forceinline=True)
def _row(p, end, base, i, rows, fields, plan, words, follower, cells, known, text_start, text_size):
    """Decode the record from address p to end into row i of so many. Returns the fields seen, as bits, or _FLAGGED.

    base is the address of data, plan ... text_size those of the arrays. Nothing on the way looks for the end: every
    byte up to the closing brace is accepted in turn, so a record that was cut off shows by where that brace lies.
    """
    p = skip_space(p)
    if load8(p) != OPEN:
        return _FLAGGED
    p = skip_space(p + 1)
    seen = uint64(0)
    last = fields
    while load8(p) == QUOTE:
        p += 1
        j = int64(load64(follower + 8 * last))
        if not _is_name(p, plan, words, j):
            j = 0
            while j < fields and not _is_name(p, plan, words, j):
                j += 1
            store64(follower + 8 * last, j if j < fields else 0)
        if j < fields:
            p += _of(plan, j, _NAME_SIZE)
            bit = uint64(1) << uint64(j)
            if seen & bit:
                return _FLAGGED
            seen |= bit
            last = j
        else:
            stop, high = text_end(p)
            if load8(stop) != QUOTE or (high and not is_utf8(p, stop)):
                return _FLAGGED
            p = stop + 1
        if load8(p) != COLON:
            p = skip_space(p)
            if load8(p) != COLON:
                return _FLAGGED
        p += 1
        if load8(p) <= 32:
            p = skip_space(p)
        if j == fields:
            p = skip_value(p, end)
            if p == 0:
                return _FLAGGED
        else:
            kind, text = _of(plan, j, _KIND), _of(plan, j, _TEXT)
            cell = j * rows + i
            place = 8 * (text * rows + i)
            if kind == FLOAT and load8(p) < 64:
                bits, p = read_float(p)
                if p == 0:
                    return _FLAGGED
                store64(cells + 8 * cell, bits)
                store8(known + cell, 1)
            elif kind == TEXT and load8(p) == QUOTE:
                first = p + 1
                p, high = text_end(first)
                if load8(p) != QUOTE or (high and not is_utf8(first, p)):
                    return _FLAGGED
                store64(text_start + place, first - base)
                store64(text_size + place, p - first)
                store8(known + cell, 1)
                p += 1
            elif load32(p) == NULL:
                if _of(plan, j, _NULLABLE) == 0:
                    return _FLAGGED
                p += 4
                store64(cells + 8 * cell, 0)
                store8(known + cell, 0)
                if text >= 0:
                    store64(text_start + place, 0)
                    store64(text_size + place, -1)
            elif kind == INT:
                first = p
                bits, p = read_int(p)
                if p == 0:
                    return _FLAGGED
                store64(cells + 8 * cell, bits)
                store8(known + cell, 1)
                if text >= 0:
                    store64(text_start + place, first - base)
                    store64(text_size + place, p - first)
            elif kind == BOOL:
                value = load32(p)
                if value == TRUE:
                    p += 4
                elif value == FALS and load8(p + 4) == SMALL_E:
                    p += 5
                else:
                    return _FLAGGED
                store64(cells + 8 * cell, int64(value == TRUE))
                store8(known + cell, 1)
            elif kind == MOMENT and load8(p) == QUOTE:
                first = p + 1
                p, high = text_end(first)
                micros, certain = read_moment(first, p)
                if load8(p) != QUOTE or not certain:
                    return _FLAGGED
                store64(cells + 8 * cell, micros)
                store8(known + cell, 1)
                p += 1
            else:
                return _FLAGGED
        if load8(p) <= 32:
            p = skip_space(p)
        if load8(p) != COMMA:
            break
        p += 1
        if load8(p) <= 32:
            p = skip_space(p)
        if load8(p) != QUOTE:
            return _FLAGGED
    if load8(p) != CLOSE:
        return _FLAGGED
    p += 1
    while p < end and load8(p) <= 32 and skip_space(p) > p:
        p += 1
    return seen if p == end else _FLAGGED


@njit(cache=True, nogil=True, forceinline=True)
def _of(plan, j, what):
    """What the plan at this address says of field j."""
    return int64(load64(plan + 8 * (_WIDTH * j + what)))


@njit(cache=True, nogil=True, forceinline=True)
def _is_name(address, plan, words, j):
    """Whether the name of field j and its closing quote lie at an address."""
    v = load64(address)
    if (v ^ load64(plan + 8 * (_WIDTH * j + _FIRST))) & load64(plan + 8 * (_WIDTH * j + _MASK)) != uint64(0):
        return False
    rest = _of(plan, j, _NAME_SIZE) - 8
    if rest <= 0:
        return True
    words += 8 * _of(plan, j, _NAME)
    while rest > 0:
        address += 8
        words += 8
        differ = load64(address) ^ load64(words)
        if rest < 8:
            differ <<= uint64(64 - 8 * rest)
        if differ != uint64(0):
            return False
        rest -= 8
    return True
