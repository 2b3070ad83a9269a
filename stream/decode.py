"""From records to columns. msgspec, record by record, says what is valid and what the values are.

It is the reference: the fast decoder takes over only where it agrees to the bit, and flags what it is not sure of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..connectors.record_table import RecordTable
from ..connectors.spans import I64, Spans, join
from .columns import Columns
from .declaration import Events, Labels, Pipeline
from .fast_json import FlatJson, FlatRows
from .fields import Field, Fields, joined
from .hashing import U64
from .leaves import leaves
from .slices import END_OF_STREAM, DeadLetter, Role, Slice

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
KEY_BYTES = 100_000  # of an event's key, and of its record's
HEADERS_BYTES = 200_000  # of an event's record, where the predictions carry them on
EARLIEST_TIME = -62_135_596_800_000_000  # the beginning of the year 1
LATEST_TIME = 253_402_300_799_000_000  # the end of the year 9999
LEAST_INT, GREATEST_INT = -(2**63), 2**63 - 1

_json = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Batch:
    """One decoded slice: B valid rows in offset order, and the records that were not valid.

    offset  int64 (B,)   time  int64 (B,) microseconds since the epoch   clock  int64 (B,) the greatest time so far
    keys    the JSON text of each event's key, record_keys the keys of their records: for the prediction records
    key_hash uint64 (B, 2)
    numeric float32 (B, N) NaN: missing, and where an aggregate is to be filled in   categories uint64 (B, K) 0: missing
    groups  uint64 (B, G) hash of the `by` fields of each group of aggregates, 0: missing
    values  float64 (B, V) what aggregates fold in, NaN: missing     y  float32 (B,) label, NaN: none
    marks   offsets of end-of-stream marks
    headers of their records, as they lie on the wire, where the predictions carry them on
    """

    role: Role
    partition: int
    start: int
    next: int
    offset: NDArray[np.int64]
    time: NDArray[np.int64]
    clock: NDArray[np.int64]
    keys: Spans
    record_keys: Spans
    key_hash: U64
    numeric: NDArray[np.float32]
    categories: U64
    groups: U64
    values: NDArray[np.float64]
    y: NDArray[np.float32]
    dead: list[DeadLetter] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    headers: Spans | None = None

    def __len__(self) -> int:
        return len(self.offset)

    def nbytes(self) -> int:
        """Bytes held by the columns, about."""
        columns = (self.offset, self.time, self.clock, self.key_hash, self.numeric, self.categories, self.groups)
        texts = self.keys.data.nbytes + 48 * len(self)  # mostly the same buffer as that of record_keys and headers
        return sum(c.nbytes for c in columns) + self.values.nbytes + self.y.nbytes + texts


class Decoder:
    """Decodes the slices of one topic of a pipeline. Holds no state of the stream: equal slices give equal batches.

    With `fast` (the default) flat JSON goes through fast_json.py, where it is sure; batches are the same without.
    """

    def __init__(self, pipeline: Pipeline, role: Role, *, fast: bool = True) -> None:
        side: Events | Labels = pipeline.events
        if role == "labels":
            assert pipeline.labels is not None
            side = pipeline.labels
        assert side.schema is not None
        self.role, self.side = role, side
        self.schema: type[msgspec.Struct] = side.schema
        self._decode: Callable[[Any], Any] = msgspec.json.Decoder(self.schema).decode
        self._columns = Columns(pipeline, role, self.schema)
        self._types, self._leaves = self._columns.types, leaves(side.schema)
        self._ints = [leaf for leaf in self._leaves.values() if leaf.dtype == pl.Int64]
        self._key = side.key if role == "events" else None  # predictions carry it
        self._carries_headers = role == "events" and pipeline.predictions.headers
        spellable = self._key is None or self._types[self._key] in (pl.String, pl.Int64)
        self._flat: FlatJson | None = None
        if fast and spellable and FlatJson.possible(self.schema):
            self._flat = FlatJson(self.schema, [self._key] if self._key is not None else [])

    def decode(self, s: Slice) -> Batch:
        """Decode a whole slice. Never raises for what is in a record: a bad one is in `dead`, with its reason."""
        table = s.records if isinstance(s.records, RecordTable) else RecordTable.of(s.records)
        dead: list[DeadLetter] = []
        is_mark = np.zeros(len(table), np.bool_)
        for i in np.flatnonzero(table.headers.holding(END_OF_STREAM.encode())).tolist():
            is_mark[i] = any(name == END_OF_STREAM for name, _ in table.record(i).headers)
        marks = table.offset[is_mark].tolist()
        if marks:
            table = table.take(~is_mark)
        if self._flat is None:
            return self._batch(s, table, self._strictly(s, table, np.arange(len(table)), dead), dead, marks)
        flat = self._flat.decode(table.value)
        decoded = self._of_flat(self._flat, flat)
        doubtful = np.flatnonzero(flat.flagged)
        if len(doubtful):
            sure = np.flatnonzero(~flat.flagged)
            decoded = _merged(decoded.take(sure), self._strictly(s, table, doubtful, dead))
        return self._batch(s, table, decoded, dead, marks)

    def columns(self, s: Slice, rows: list[Any], dead: list[DeadLetter]) -> Batch:
        """Turn rows that are decoded already (Structs of the schema, one for each record) into a batch."""
        table = s.records if isinstance(s.records, RecordTable) else RecordTable.of(s.records)
        return self._batch(s, table, self._of_rows(s, table, np.arange(len(rows)), rows, dead), dead, [])

    def _of_flat(self, json: FlatJson, flat: FlatRows) -> _Decoded:
        fields = {}
        for name, dtype in self._types.items():
            j = json.place[name]
            if dtype == pl.String:
                texts = Spans(flat.data, flat.start[json.text[name]], flat.size[json.text[name]])
                fields[name] = Field.of_texts(texts)
            else:
                fields[name] = Field.of_cells(dtype, flat.known[j], flat.cells[j])
        keys = Spans.none(len(flat.flagged))
        if self._key is not None:
            t, quote = json.text[self._key], int(self._types[self._key] == pl.String)
            known = flat.size[t] >= 0
            keys = Spans(
                flat.data, flat.start[t] - quote * known, np.where(known, flat.size[t] + 2 * quote, np.int64(-1))
            )
        return _Decoded(np.arange(len(flat.flagged)), fields, keys)

    def _strictly(self, s: Slice, table: RecordTable, places: I64, dead: list[DeadLetter]) -> _Decoded:
        """The records at these places of the table, decoded by msgspec; those that are not valid are dead letters."""
        values = list(table.value.take(places))
        try:
            rows = list(map(self._decode, values))
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
            rows, good = [], []
            for i, value in zip(places.tolist(), values, strict=True):
                why = self._refusal(value, rows)
                if why is None:
                    good.append(i)
                else:
                    dead.append(DeadLetter(self.role, s.partition, table.record(i), *why))
            places = np.array(good, np.int64)
        return self._of_rows(s, table, places, rows, dead)

    def _refusal(self, value: bytes | None, rows: list[Any]) -> tuple[str, str] | None:
        """Append the decoded value to rows, or say why it cannot be, and where in it."""
        if value is None:
            return "the record has no value (a tombstone)", ""
        if not value:
            return "the record is empty", ""
        try:
            rows.append(self._decode(value))
        except msgspec.ValidationError as error:
            return reason_and_path(error)
        except (msgspec.DecodeError, ValueError) as error:
            return f"not valid JSON: {error}", ""
        except RecursionError:
            return "nested too deep", ""
        return None

    def _of_rows(self, s: Slice, table: RecordTable, places: I64, rows: list[Any], dead: list[DeadLetter]) -> _Decoded:
        """Decoded rows, from the records at these places."""
        try:
            fields = self._columns.fields(rows)
        except OverflowError:  # JSON integers have no bound, columns have 64 bits
            huge = {i: why for i, row in enumerate(rows) if (why := self._huge(row)) is not None}
            dead += [DeadLetter(self.role, s.partition, table.record(int(places[i])), *huge[i]) for i in huge]
            rows = [row for i, row in enumerate(rows) if i not in huge]
            places = np.delete(places, list(huge))
            fields = self._columns.fields(rows)
        keys = Spans.none(len(rows))
        if self._key is not None:
            key = self._leaves[self._key]
            keys = Spans.of([_json(key.of(row)) for row in rows])
        return _Decoded(places, fields, keys)

    def _huge(self, row: Any) -> tuple[str, str] | None:
        for leaf in self._ints:
            value = leaf.of(row)
            if value is not None and not LEAST_INT <= value <= GREATEST_INT:
                return f"expected `int` of 64 bits, got one of {value.bit_length()} bits", leaf.path
        return None

    def _batch(
        self, s: Slice, table: RecordTable, decoded: _Decoded, dead: list[DeadLetter], marks: list[int]
    ) -> Batch:
        if len(decoded.places) < len(table):
            table = table.take(decoded.places)
        fields, keys, rows = decoded.fields, decoded.keys, len(table)
        refused: dict[int, tuple[str, str]] = {}  # row -> reason, path
        timestamp = table.timestamp * 1000
        time = self._times(fields, timestamp, refused) if self.side.time is not None else timestamp
        computed, poison = self._columns.compute(fields, rows)
        refused |= {i: (reason, "") for i, reason in poison.items() if i not in refused}
        record_keys = table.key
        if self.role == "labels":
            for i in np.flatnonzero(np.isnan(computed["y"])).tolist():
                refused.setdefault(i, (self._columns.why_no_label(fields, i), ""))
            record_keys = Spans.none(rows)
        else:
            self._refuse_long_keys(record_keys, keys, refused)
        headers = table.headers if self._carries_headers else None
        if headers is not None:
            for i in np.flatnonzero(headers.size > HEADERS_BYTES).tolist():
                reason = f"the headers have {headers.size[i]:,} bytes, predictions carry at most {HEADERS_BYTES:,}"
                refused.setdefault(i, (reason, ""))
        offset = table.offset
        if refused:
            dead += [DeadLetter(self.role, s.partition, table.record(i), *why) for i, why in refused.items()]
            keep = np.ones(rows, np.bool_)
            keep[list(refused)] = False
            keys, record_keys, offset, time = keys.take(keep), record_keys.take(keep), offset[keep], time[keep]
            computed = {name: column[keep] for name, column in computed.items()}
            headers = None if headers is None else headers.take(keep)
        dead.sort(key=lambda letter: letter.record.offset)
        return Batch(
            role=self.role,
            partition=s.partition,
            start=s.start,
            next=s.next,
            offset=offset,
            time=time,
            clock=np.maximum.accumulate(time) if len(time) else time,
            keys=keys,
            record_keys=record_keys,
            dead=dead,
            marks=marks,
            headers=headers,
            **computed,
        )

    def _refuse_long_keys(self, record_keys: Spans, keys: Spans, refused: dict[int, tuple[str, str]]) -> None:
        """A prediction carries its event's key and record key, and has to fit into a record."""
        path_of_key = self._leaves[str(self.side.key)].path
        for spans, what, path in ((record_keys, "record key", ""), (keys, "JSON of the key", path_of_key)):
            for i in np.flatnonzero(spans.size > KEY_BYTES).tolist():
                reason = f"the {what} has {spans.size[i]:,} bytes, predictions carry at most {KEY_BYTES:,}"
                refused.setdefault(i, (reason, path))

    def _times(
        self, fields: Fields, timestamp: NDArray[np.int64], refused: dict[int, tuple[str, str]]
    ) -> NDArray[np.int64]:
        """The event time of each row in microseconds; rows whose time cannot be are refused."""
        name = str(self.side.time)
        given = fields[name].values
        scale = MICROSECONDS[self.side.unit or "us"]
        with np.errstate(invalid="ignore"):
            about = given.astype(np.float64)
            inside = (about >= EARLIEST_TIME / scale) & (about <= LATEST_TIME / scale)
            scaled = np.where(inside, given, 0) * scale
        time = (np.rint(scaled) if scaled.dtype.kind == "f" else scaled).astype(np.int64)
        ahead = time - timestamp
        for i in np.flatnonzero(~inside | (ahead > self.side.ahead_us)).tolist():
            if not inside[i]:
                reason = f"time {given[i]} is not in the years 1 to 9999; check `unit`"
            else:
                reason = f"time is {ahead[i] / 3.6e9:.1f} h ahead of the record's timestamp"
            refused[i] = reason, self._leaves[name].path
        return time


@dataclass(slots=True)
class _Decoded:
    """What was decoded of a table of records: their places in it, in order, their values, the JSON of their keys."""

    places: I64
    fields: Fields
    keys: Spans

    def take(self, rows: I64) -> _Decoded:
        fields = {name: field.take(rows) for name, field in self.fields.items()}
        return _Decoded(self.places[rows], fields, self.keys.take(rows))


def _merged(a: _Decoded, b: _Decoded) -> _Decoded:
    """Both, in the order of their places."""
    places = np.concatenate([a.places, b.places])
    fields = {name: joined([field, b.fields[name]]) for name, field in a.fields.items()}
    return _Decoded(places, fields, join([a.keys, b.keys])).take(np.argsort(places))


def reason_and_path(error: msgspec.ValidationError) -> tuple[str, str]:
    """What msgspec says is wrong, and where."""
    reason, _, path = str(error).partition(" - at `")
    return reason, path.rstrip("`")
