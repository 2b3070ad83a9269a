"""The fast decoder: flat JSON objects of a known schema to columns, where it is sure; the rest it flags.

The strict decoder (decode.py) says what is valid and what the values are. A row that is not flagged here is valid
there, with the same values to the bit. A flagged row is no error: it is the strict decoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from msgspec import inspect
from numba import int64, njit, uint64
from numpy.typing import NDArray

from ..connectors.memory import PADDING, load8, load32, load64, padded
from ..connectors.spans import I64, Spans
from .columns import microseconds
from .decimals import read_float, read_int
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

FLOAT, INT, BOOL, TEXT, MOMENT = range(5)  # kinds of fields
_NOT_SURE, _VALUE, _NONE = range(3)  # what a field that is absent becomes
_MOST_FIELDS = 63  # the fields seen in a row are bits
_NO_TEXT = -1


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
        fields = _fields(schema)
        if fields is None:
            raise ValueError(f"{schema.__name__} is not a flat schema that the fast decoder knows")
        self.place = {field.attribute: j for j, field in enumerate(fields)}
        with_text = [field.attribute for field in fields if field.kind == TEXT or field.attribute in spelled]
        self.text = {name: t for t, name in enumerate(with_text)}
        names = [(field.name + '"').encode() for field in fields]
        words = [np.frombuffer(name + bytes(-len(name) % 8), np.uint64) for name in names]
        tail = b'"'
        fallbacks = np.zeros(len(fields), _FALLBACK)
        for j, field in enumerate(fields):
            become, bits, default = _fallback(field, spelled=field.attribute in self.text)
            fallbacks[j] = become, bits, len(tail), len(default)
            tail += default + b'"'
        self._tail = np.frombuffer(tail, np.uint8)
        plan = np.zeros(len(fields), _PLAN)
        plan["kind"] = [field.kind for field in fields]
        plan["nullable"] = [field.nullable for field in fields]
        plan["text"] = [self.text.get(field.attribute, _NO_TEXT) for field in fields]
        plan["name_size"] = [len(name) for name in names]
        plan["name_at"] = np.cumsum([len(w) for w in words]) - [len(w) for w in words]
        self._plan = tuple(np.ascontiguousarray(plan[column]) for column in _PLAN.names or ())
        self._fallbacks = tuple(np.ascontiguousarray(fallbacks[column]) for column in _FALLBACK.names or ())
        self._words = np.concatenate(words)

    @staticmethod
    def possible(schema: type[msgspec.Struct]) -> bool:
        """Whether the fast decoder can promise anything about records of this schema."""
        return _fields(schema) is not None

    def decode(self, values: Spans) -> FlatRows:
        """Decode B records. What is not there (size -1) or empty is flagged. Raises ValueError for bad padding."""
        rows, fields, texts = len(values), len(self.place), len(self.text)
        if len(values.data) < PADDING or values.data[-PADDING:].any():
            raise ValueError(f"the buffer of the values does not end with {PADDING} zero bytes")
        cells, known = np.empty((fields, rows), np.uint64), np.empty((fields, rows), np.bool_)
        start, size = np.empty((texts, rows), np.int64), np.empty((texts, rows), np.int64)
        flagged = np.empty(rows, np.bool_)
        data = values.data
        record = np.ascontiguousarray(values.start), np.ascontiguousarray(values.size)
        out = cells, known, start, size, flagged
        if _decode(data, *record, self._words, *self._plan, *self._fallbacks, *out):
            data = padded(len(values.data) + len(self._tail))
            data[: len(values.data)] = values.data
            data[len(values.data) : -PADDING] = self._tail
        return FlatRows(cells, known, start, size, data, flagged)


def warm_up() -> None:
    """Compile the kernels of this file."""
    FlatJson(_Nothing).decode(Spans.of([b"{}"]))


class _Nothing(msgspec.Struct):
    x: float | None = None


# --- what a schema says

_PLAN = np.dtype([(name, np.int64) for name in ("kind", "nullable", "text", "name_at", "name_size")])
_FALLBACK = np.dtype([("become", np.int64), ("bits", np.uint64), ("start", np.int64), ("size", np.int64)])


@dataclass(frozen=True, slots=True)
class _Field:
    attribute: str
    name: str  # in JSON
    kind: int
    nullable: bool
    default: Any  # msgspec.NODEFAULT: none, or one that is made anew for each row


def _fields(schema: type[msgspec.Struct]) -> list[_Field] | None:
    """The fields of a schema; None where the strict decoder does more with it than what is done here."""
    config = schema.__struct_config__
    if config.array_like or config.forbid_unknown_fields or config.tag is not None:
        return None
    if hasattr(schema, "__post_init__"):
        return None
    infos = msgspec.structs.fields(schema)
    if not 0 < len(infos) <= _MOST_FIELDS:
        return None
    fields = []
    for info in infos:
        kind, nullable = _kind(info.type)
        if kind is None or not _is_plain(info.encode_name):
            return None
        fields.append(_Field(info.name, info.encode_name, kind, nullable, info.default))
    return fields


_KINDS: tuple[tuple[inspect.Type, int], ...] = (
    (inspect.FloatType(), FLOAT),
    (inspect.IntType(), INT),
    (inspect.BoolType(), BOOL),
    (inspect.StrType(), TEXT),
    (inspect.DateTimeType(), MOMENT),
)


def _kind(annotation: Any) -> tuple[int | None, bool]:
    """What kind a field is, None for all that has no kind or has constraints; and whether it may be null."""
    info = inspect.type_info(annotation)
    nullable = False
    if isinstance(info, inspect.UnionType):
        rest = [t for t in info.types if not isinstance(t, inspect.NoneType)]
        nullable = len(rest) < len(info.types)
        if len(rest) != 1:
            return None, False
        info = rest[0]
    return next((kind for plain, kind in _KINDS if info == plain), None), nullable


def _is_plain(text: str) -> bool:
    """Whether a text stands for itself in JSON."""
    try:
        return msgspec.json.encode(text) == f'"{text}"'.encode()
    except UnicodeEncodeError:
        return False


def _fallback(field: _Field, spelled: bool) -> tuple[int, int, bytes]:
    """What an absent field becomes: a code, the bits of its cell, and its text."""
    default = field.default
    if default is None:
        return _NONE, 0, b""
    if field.kind == FLOAT and type(default) is float:
        return _VALUE, int(np.float64(default).view(np.uint64)), b""
    if field.kind == INT and type(default) is int and -(2**63) <= default < 2**63:
        return _VALUE, default % 2**64, b"%d" % default if spelled else b""
    if field.kind == BOOL and type(default) is bool:
        return _VALUE, int(default), b""
    if field.kind == TEXT and type(default) is str and _is_plain(default):
        return _VALUE, 0, default.encode()
    if field.kind == MOMENT and type(default) is datetime:
        return _VALUE, microseconds(default) % 2**64, b""
    return _NOT_SURE, 0, b""


# --- kernels


@njit(cache=True, nogil=True)
def _decode(
    data, starts, sizes,
    words, kind, nullable, text, name_at, name_size,
    become, fallback_bits, fallback_start, fallback_size,
    cells, known, text_start, text_size, flagged,
):  # fmt: skip
    """Decode B records into the arrays of FlatRows. Returns whether a text is one of the tail, which is not there yet.

    words      uint64 (W,)  each field's name with its closing quote, filled up with zeros to whole words
    kind ... name_size  int64 (F,)  of the fields; text: its row of text_start or -1; name_at: its first word
    become ...  int64, uint64, int64, int64 (F,)  what an absent field becomes; the start is in the tail behind data
    """
    base, behind = data.ctypes.data, data.shape[0]
    fields = kind.shape[0]
    every = (uint64(1) << uint64(fields)) - uint64(1)
    follower = np.arange(fields + 1)  # the field seen behind field j, or first in a record (at `fields`), the last time
    follower[:fields] += 1
    follower[fields - 1 :] = 0
    from_tail = False
    for i in range(starts.shape[0]):
        seen = _row(
            base, base + starts[i], base + starts[i] + sizes[i], i,
            words, kind, nullable, text, name_at, name_size, follower,
            cells, known, text_start, text_size,
        ) if sizes[i] > 1 else _FLAGGED  # fmt: skip
        if seen != every and seen != _FLAGGED:
            for j in range(fields):
                if (seen >> uint64(j)) & uint64(1):
                    continue
                if become[j] == _NOT_SURE:
                    seen = _FLAGGED
                    break
                known[j, i] = become[j] == _VALUE
                cells[j, i] = fallback_bits[j]
                if text[j] >= 0:
                    text_start[text[j], i] = behind + fallback_start[j]
                    text_size[text[j], i] = fallback_size[j] if become[j] == _VALUE else -1
                    from_tail = True
        flagged[i] = seen == _FLAGGED
        if seen == _FLAGGED:
            for j in range(fields):
                known[j, i] = False
                cells[j, i] = uint64(0)
            for t in range(text_size.shape[0]):
                text_start[t, i] = 0
                text_size[t, i] = -1
    return from_tail


_FLAGGED = np.uint64(1 << 63)


@njit(cache=True, nogil=True)
def _row(
    base, p, end, i,
    words, kind, nullable, text, name_at, name_size, follower,
    cells, known, text_start, text_size,
):  # fmt: skip
    """Decode the record from address p to end into row i. Returns the fields seen, as bits, or _FLAGGED.

    Nothing on the way looks for the end, since every byte up to the closing brace is accepted in turn: a record that
    is cut off is seen when that brace does not lie where the record ends.
    """
    fields = kind.shape[0]
    p = skip_space(p)
    if load8(p) != OPEN:
        return _FLAGGED
    p = skip_space(p + 1)
    seen = uint64(0)
    last = fields
    while load8(p) == QUOTE:
        p += 1
        j = follower[last]
        if not _is_name(p, words, name_at[j], name_size[j]):
            j = 0
            while j < fields and not _is_name(p, words, name_at[j], name_size[j]):
                j += 1
            if j < fields:
                follower[last] = j
        if j < fields:
            p += name_size[j]
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
        p = p + 1
        if load8(p) <= 32:
            p = skip_space(p)
        # the value
        if j == fields:
            p = skip_value(p, end)
            if p == 0:
                return _FLAGGED
        elif load32(p) == NULL:
            if not nullable[j]:
                return _FLAGGED
            p += 4
            known[j, i] = False
            cells[j, i] = uint64(0)
            if text[j] >= 0:
                text_start[text[j], i] = 0
                text_size[text[j], i] = -1
        else:
            known[j, i] = True
            if kind[j] == FLOAT:
                bits, p = read_float(p)
                if p == 0:
                    return _FLAGGED
                cells[j, i] = bits
            elif kind[j] == INT:
                first = p
                bits, p = read_int(p)
                if p == 0:
                    return _FLAGGED
                cells[j, i] = bits
                if text[j] >= 0:
                    text_start[text[j], i] = first - base
                    text_size[text[j], i] = p - first
            elif kind[j] == BOOL:
                if load32(p) == TRUE:
                    p += 4
                    cells[j, i] = uint64(1)
                elif load32(p) == FALS and load8(p + 4) == SMALL_E:
                    p += 5
                    cells[j, i] = uint64(0)
                else:
                    return _FLAGGED
            else:
                if load8(p) != QUOTE:
                    return _FLAGGED
                first = p + 1
                p, high = text_end(first)
                if load8(p) != QUOTE or (high and not is_utf8(first, p)):
                    return _FLAGGED
                if kind[j] == TEXT:
                    text_start[text[j], i] = first - base
                    text_size[text[j], i] = p - first
                else:
                    micros, certain = read_moment(first, p)
                    if not certain:
                        return _FLAGGED
                    cells[j, i] = uint64(micros)
                p += 1
        if load8(p) <= 32:
            p = skip_space(p)
        if load8(p) != COMMA:
            break
        p = p + 1
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


@njit(cache=True, nogil=True)
def _is_name(address, words, at, size):
    """Whether a name and its closing quote, so many bytes from words[at] on, lie at an address."""
    while size >= 8:
        if load64(address) != words[at]:
            return False
        address += 8
        at += 1
        size -= 8
    return size == 0 or (load64(address) ^ words[at]) << uint64(64 - 8 * size) == uint64(0)
