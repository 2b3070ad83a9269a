"""The fast decoder: JSON objects of a known schema to columns, where it is sure; the rest it flags.

The strict decoder (decode.py) says what is valid and what the values are. A row that is not flagged here is valid
there, with the same values to the bit. A flagged row is no error: it is the strict decoder's.

A nested object or list is passed over at first, as if it were unknown, and then decoded like a record, by its own plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..connectors.memory import PADDING, padded
from ..connectors.spans import I64, Spans
from .flat_schema import INT, LIST, OBJECT, TEXT, FlatField, fallback, flat_fields
from .hashing import U64
from .json_columns import WIDTH, decode_lists, decode_objects, flag_others
from .leaves import dotted


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


@dataclass(slots=True)
class _Plan:
    """How one object or list is read: a record, or what is nested in one. See the kernels for the arrays.

    fields, texts  its rows of FlatRows.cells and .known, of .start and .size
    nested         the rows of .start and .size where an object or list within it lies, and the plan of that
    literals       the rows of cells and texts of fields that allow some values alone, and those values
    """

    is_list: bool
    fields: slice
    texts: slice
    plan: I64
    words: U64
    become: I64
    absent: I64
    follower: I64
    nested: list[tuple[int, _Plan]] = field(default_factory=list)
    literals: list[tuple[int, int, tuple[str | int, ...]]] = field(default_factory=list)


class FlatJson:
    """How the records of one schema are read. Holds no state of the stream.

    place  by the name of a field, the row of FlatRows.cells and .known
    text   by the name of a field, the row of FlatRows.start and .size: of fields of text, of what is nested, and of
           integers in `spelled`. In `data`, a text has its quotes around it: the JSON is data[start - 1 : start + size
           + 1]. That of all others is data[start : start + size], of an integer as msgspec would write it.
    """

    def __init__(self, schema: type[msgspec.Struct], spelled: Sequence[str] = ()) -> None:
        """Of a schema that is `possible`; spelled: the integer fields whose JSON is wanted. Raises ValueError."""
        fields = flat_fields(schema)
        if fields is None:
            raise ValueError(f"{schema.__name__} is not a flat schema that the fast decoder knows")
        self.place: dict[str, int] = {}
        self.text: dict[str, int] = {}
        self._tail = b'"'
        self._plans: list[_Plan] = []
        self._root = self._add(fields, (), spelled, is_list=False)

    def _add(
        self, fields: tuple[FlatField, ...], at: tuple[str | int, ...], spelled: Sequence[str], is_list: bool
    ) -> _Plan:
        """Plan an object or list with these fields, and all that is nested in it."""
        names = [dotted((*at, f.step)) for f in fields]
        if any(name in spelled and f.kind not in (INT, TEXT) for name, f in zip(names, fields, strict=True)):
            raise ValueError(f"{', '.join(spelled)}: only texts and integers are spelled as msgspec would")
        with_text = [
            name for name, f in zip(names, fields, strict=True) if f.kind in (TEXT, OBJECT, LIST) or name in spelled
        ]
        first, first_text = len(self.place), len(self.text)
        self.place |= {name: first + j for j, name in enumerate(names)}
        self.text |= {name: first_text + t for t, name in enumerate(with_text)}
        called = [(f.name + '"').encode() for f in fields]
        words = [np.frombuffer(name + bytes(-len(name) % 8), np.uint64) for name in called]
        made = _Plan(
            is_list,
            slice(first, len(self.place)),
            slice(first_text, len(self.text)),
            np.zeros((len(fields), WIDTH), np.int64),
            np.concatenate(words),
            np.zeros(len(fields), np.int64),
            np.zeros((len(fields), 3), np.int64),
            np.append(np.arange(1, len(fields)), (0, 0)),
        )
        self._plans.append(made)
        place = 0
        for j, (f, name) in enumerate(zip(fields, names, strict=True)):
            text = with_text.index(name) if name in with_text else -1
            size, mask = len(called[j]), -1 if len(called[j]) >= 8 else 2 ** (8 * len(called[j])) - 1
            made.plan[j] = f.kind, f.nullable, text, size, place, words[j][0].view(np.int64), mask, 0
            place += len(words[j])
            made.become[j], bits, default = fallback(f, spelled=text >= 0)
            made.absent[j] = bits, len(self._tail), len(default)
            self._tail += default + b'"'
            if f.allowed:
                made.literals.append((first + j, first_text + text, f.allowed))
            if f.parts:
                parts = self._add(f.parts, (*at, f.step), spelled, f.kind == LIST)
                made.nested.append((first_text + text, parts))
        return made

    @staticmethod
    def possible(schema: type[msgspec.Struct]) -> bool:
        """Whether the fast decoder can promise anything about records of this schema."""
        return flat_fields(schema) is not None

    def decode(self, values: Spans) -> FlatRows:
        """Decode B records. What is not there (size -1) or empty is flagged. Raises ValueError for bad padding."""
        rows, fields, texts = len(values), len(self.place), len(self.text)
        if len(values.data) < PADDING or values.data[-PADDING:].any():
            raise ValueError(f"the buffer of the values does not end with {PADDING} zero bytes")
        out = FlatRows(
            np.empty((fields, rows), np.uint64),
            np.empty((fields, rows), np.bool_),
            np.empty((texts, rows), np.int64),
            np.empty((texts, rows), np.int64),
            values.data,
            np.empty(rows, np.bool_),
        )
        if self._fill(self._root, values, out, out.flagged):
            data = padded(len(values.data) + len(self._tail))
            data[: len(values.data)] = values.data
            data[len(values.data) : -PADDING] = np.frombuffer(self._tail, np.uint8)
            out = FlatRows(out.cells, out.known, out.start, out.size, data, out.flagged)
        self._look_at_literals(out)
        if (len(self._plans) > 1 or self._root.literals) and out.flagged.any():  # some after the rest of them was read
            out.known[:, out.flagged] = False
            out.size[:, out.flagged] = -1
        return out

    def _fill(self, plan: _Plan, values: Spans, out: FlatRows, flagged: NDArray[np.bool_]) -> bool:
        """Decode what lies at values by a plan; returns whether a text is one of the tail, which is not there yet."""
        columns = out.cells[plan.fields], out.known[plan.fields], out.start[plan.texts], out.size[plan.texts]
        data, at = values.data, (np.ascontiguousarray(values.start), np.ascontiguousarray(values.size))
        if plan.is_list:
            decode_lists(data.ctypes.data, *at, plan.plan, *columns, flagged)
            from_tail = False
        else:
            marks = np.zeros(len(plan.become), np.int64)
            given = plan.plan, plan.words, plan.become, plan.absent, plan.follower.copy(), marks
            from_tail = decode_objects(data.ctypes.data, len(data), *at, *given, *columns, flagged)
        for text, nested in plan.nested:
            within = Spans(data, out.start[text], out.size[text])
            doubtful = np.empty(len(values), np.bool_)
            from_tail |= self._fill(nested, within, out, doubtful)
            flagged |= doubtful & (within.size >= 0)
        return bool(from_tail)

    def _look_at_literals(self, out: FlatRows) -> None:
        for cell, text, allowed in (literal for plan in self._plans for literal in plan.literals):
            if isinstance(allowed[0], int):
                np.logical_or(
                    out.flagged, out.known[cell] & ~np.isin(out.cells[cell].view(np.int64), allowed), out.flagged
                )
                continue
            words = Spans.of_texts([str(one) for one in allowed])
            known = words.data.ctypes.data, words.start, words.size
            flag_others(out.data.ctypes.data, out.start[text], out.size[text], *known, out.flagged)


def warm_up() -> None:
    """Compile the kernels."""
    FlatJson(_Nothing).decode(Spans.of([b"{}"]))


class _Nothing(msgspec.Struct):
    x: float | None = None
    y: tuple[float] | None = None
    z: Literal["z"] | None = None
