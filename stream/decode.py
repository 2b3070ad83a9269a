"""From records to columns. msgspec, record by record, says what is valid and what the values are.

It is the reference: the fast decoder takes over only where it agrees to the bit, and flags what it is not sure of.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
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
from .explain import Explained
from .fast_json import FlatJson, FlatRows
from .fields import Field, Fields, joined
from .hashing import U64
from .leaves import leaves
from .slices import END_OF_STREAM, DeadLetter, Piece, Role, Slice, Slices

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
    numeric float32 (B, N) NaN or infinite: missing, or an aggregate is to be filled in
    categories uint64 (B, K) 0: missing
    groups  uint64 (B, G) hash of the `by` fields of each group of aggregates, 0: missing
    values  float64 (B, V) what aggregates fold in, NaN: missing
    y       float32 (B,) label, NaN: none, infinite: one that cannot be used
    marks   offsets of end-of-stream marks
    headers of their records, as they lie on the wire, where the predictions carry them on
    weight  float32 (B,) of the examples that its labels make, 0 or more; None: 1 each
    explained  of its predictions, where they are to be explained; the engine fills it in as it predicts
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
    weight: NDArray[np.float32] | None = None
    explained: Explained | None = None

    def __len__(self) -> int:
        return len(self.offset)

    def weights(self, rows: Any) -> NDArray[np.float32]:
        """The weights of some rows; 1 each where the batch does not tell them."""
        return np.ones(len(self), np.float32)[rows] if self.weight is None else self.weight[rows]


class Decoder:
    """Decodes the slices of one topic of a pipeline. Holds no state of the stream: equal slices give equal batches.

    With `fast` (the default) flat JSON goes through fast_json.py, where it is sure; batches are the same without.
    learned=False: nothing will be learned from the rows, so a label that they hold needs no weight.
    """

    def __init__(self, pipeline: Pipeline, role: Role, *, fast: bool = True, learned: bool = True) -> None:
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
        self._texts = {name for name, dtype in self._types.items() if dtype == pl.String}
        self._ints = [leaf for leaf in self._leaves.values() if leaf.dtype == pl.Int64]
        self._key = side.key if role == "events" else None  # predictions carry it
        self._learned = learned
        self._carries_headers = role == "events" and pipeline.predictions.headers
        spellable = self._key is None or self._types[self._key] in (pl.String, pl.Int64)
        self._flat: FlatJson | None = None
        if fast and spellable and FlatJson.possible(self.schema):
            self._flat = FlatJson(self.schema, [self._key] if self._key is not None else [])

    def decode(self, s: Slice) -> Batch:
        """Decode a whole slice. Never raises for what is in a record: a bad one is in `dead`, with its reason."""
        return self.decode_all(_alone(s))[0]

    def decode_all(self, s: Slices) -> list[Batch]:
        """Decode slices of several partitions at one go; gives of each, in order, the batch that `decode` would give.

        Columns and texts of the batches are parts of common arrays: one that is kept for long keeps those of all. So
        whoever calls bounds a go. `InHand.take` does, to less than two full slices; of a partition one batch at most
        waits.
        """
        go = _Go(s.pieces, s.records, s.begins)
        has_headers = go.table.headers.size.max(initial=-1) >= 0
        marks = self._take_out_marks(go) if has_headers else [[] for _ in s.pieces]
        if self._flat is None:
            return self._batches(go, self._strictly(go, np.arange(len(go.table))), marks)
        flat = self._flat.decode(go.table.value)
        decoded = self._of_flat(self._flat, flat)
        if flat.flagged.any():
            sure, doubtful = np.flatnonzero(~flat.flagged), np.flatnonzero(flat.flagged)
            decoded = _merged(decoded.take(sure), self._strictly(go, doubtful))
        return self._batches(go, decoded, marks)

    def columns(self, s: Slice, rows: list[Any], dead: list[DeadLetter]) -> Batch:
        """Turn rows that are decoded already (Structs of the schema, one for each record) into a batch."""
        alone = _alone(s)
        go = _Go(alone.pieces, alone.records, alone.begins)
        go.dead[0].extend(dead)
        return self._batches(go, self._of_rows(go, np.arange(len(rows)), rows), [[]])[0]

    def _take_out_marks(self, go: _Go) -> list[list[int]]:
        """Of each slice the offsets of its end-of-stream marks, which are no records any more."""
        marks: list[list[int]] = [[] for _ in go.pieces]
        keep = np.ones(len(go.table), np.bool_)
        for i in np.flatnonzero(go.table.headers.holding(END_OF_STREAM.encode())).tolist():
            if any(name == END_OF_STREAM for name, _ in go.table.record(i).headers):
                keep[i] = False
                marks[go.slice_of(i)].append(int(go.table.offset[i]))
        if not keep.all():
            go.keep(np.flatnonzero(keep))
        return marks

    def _of_flat(self, json: FlatJson, flat: FlatRows) -> _Decoded:
        fields = {}
        for name, dtype in self._types.items():
            if name in self._texts:
                t = json.text[name]
                fields[name] = Field.of_texts(Spans(flat.data, flat.start[t], flat.size[t]))
            else:
                j = json.place[name]
                fields[name] = Field.of_cells(dtype, flat.known[j], flat.cells[j])
        if self._key is None:
            keys = Spans.none(len(flat.flagged))
        elif self._key in self._texts:  # their quotes belong to them
            texts = fields[self._key].texts
            quote = fields[self._key].known.view(np.int8)
            keys = Spans(flat.data, texts.start - quote, texts.size + 2 * quote)
        else:
            t = json.text[self._key]
            keys = Spans(flat.data, flat.start[t], flat.size[t])
        return _Decoded(np.arange(len(flat.flagged)), fields, keys)

    def _strictly(self, go: _Go, places: I64) -> _Decoded:
        """The records at these places of the table, decoded by msgspec; those that are not valid are dead letters."""
        values = list(go.table.value.take(places))
        try:
            rows = list(map(self._decode, values))
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
            rows, good = [], []
            for i, value in zip(places.tolist(), values, strict=True):
                why = self._refusal(value, rows)
                if why is None:
                    good.append(i)
                else:
                    go.refuse(i, *why)
            places = np.array(good, np.int64)
        return self._of_rows(go, places, rows)

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

    def _of_rows(self, go: _Go, places: I64, rows: list[Any]) -> _Decoded:
        """Decoded rows, from the records at these places."""
        try:
            fields = self._columns.fields(rows)
        except OverflowError:  # JSON integers have no bound, columns have 64 bits
            huge = {i: why for i, row in enumerate(rows) if (why := self._huge(row)) is not None}
            for i, why in huge.items():
                go.refuse(int(places[i]), *why)
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

    def _batches(self, go: _Go, decoded: _Decoded, marks: list[list[int]]) -> list[Batch]:
        if len(decoded.places) < len(go.table):
            go.keep(decoded.places)
        table, fields, keys, rows = go.table, decoded.fields, decoded.keys, len(go.table)
        refused: dict[int, tuple[str, str]] = {}  # row -> reason, path
        timestamp = table.timestamp * 1000
        time = self._times(fields, timestamp, refused) if self.side.time is not None else timestamp
        computed, poison = self._columns.compute(fields, rows)
        refused |= {i: (reason, "") for i, reason in poison.items() if i not in refused}
        record_keys = table.key
        if self.role == "labels":
            for i in np.flatnonzero(~np.isfinite(computed["y"])).tolist():
                if i not in refused:  # on others the label's expression may raise
                    refused[i] = self._columns.why_no_label(fields, i), ""
            record_keys = Spans.none(rows)
        else:
            self._refuse_long_keys(record_keys, keys, refused)
        if "weight" in computed:
            self._check_weights(fields, computed, refused)
        headers = table.headers if self._carries_headers else None
        if headers is not None and headers.size.max(initial=-1) > HEADERS_BYTES:
            for i in np.flatnonzero(headers.size > HEADERS_BYTES).tolist():
                reason = f"the headers have {headers.size[i]:,} bytes, predictions carry at most {HEADERS_BYTES:,}"
                refused.setdefault(i, (reason, ""))
        offset, begins = table.offset, go.begins
        if refused:
            for i, why in refused.items():
                go.refuse(i, *why)
            keep = np.delete(np.arange(rows), list(refused))
            keys, record_keys, offset, time = keys.take(keep), record_keys.take(keep), offset[keep], time[keep]
            computed = {name: column[keep] for name, column in computed.items()}
            headers = None if headers is None else headers.take(keep)
            begins = np.searchsorted(keep, begins).tolist()
        batches = []
        for p, piece in enumerate(go.pieces):
            part = slice(begins[p], begins[p + 1])
            of = time[part]
            go.dead[p].sort(key=lambda letter: letter.record.offset)
            batch = Batch(
                role=self.role,
                partition=piece.partition,
                start=piece.start,
                next=piece.next,
                offset=offset[part],
                time=of,
                clock=np.maximum.accumulate(of),
                keys=keys.take(part),
                record_keys=record_keys.take(part),
                dead=go.dead[p],
                marks=marks[p],
                headers=None if headers is None else headers.take(part),
                **{name: column[part] for name, column in computed.items()},
            )
            batches.append(batch)
        return batches

    def _check_weights(self, fields: Fields, computed: dict[str, Any], refused: dict[int, tuple[str, str]]) -> None:
        """Refuse rows with a label and no weight that can be; what has no label needs none."""
        weight = computed["weight"]
        missing = np.isnan(weight)
        if self._learned:
            for i in np.flatnonzero(missing & np.isfinite(computed["y"])).tolist():
                if i not in refused:  # on others the expression may raise
                    refused[i] = self._columns.why_no_weight(fields, i)
        weight[missing] = 1.0

    def _refuse_long_keys(self, record_keys: Spans, keys: Spans, refused: dict[int, tuple[str, str]]) -> None:
        """A prediction carries its event's key and record key, and has to fit into a record."""
        path_of_key = self._leaves[str(self.side.key)].path
        for spans, what, path in ((record_keys, "record key", ""), (keys, "JSON of the key", path_of_key)):
            if spans.size.max(initial=-1) <= KEY_BYTES:
                continue
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


class _Go:
    """What is decoded at one go: the records of some slices in one table, and of each slice the dead letters so far."""

    def __init__(self, pieces: Sequence[Piece], table: RecordTable, begins: Sequence[int]) -> None:
        self.pieces, self.table, self.begins = pieces, table, begins
        self.dead: list[list[DeadLetter]] = [[] for _ in pieces]

    def slice_of(self, row: int) -> int:
        """Which slice a row of the table belongs to."""
        return bisect_right(self.begins, row) - 1

    def keep(self, rows: I64) -> None:
        """Keep these rows of the table, in ascending order, and no other."""
        self.table, self.begins = self.table.take(rows), np.searchsorted(rows, self.begins).tolist()

    def refuse(self, row: int, reason: str, path: str) -> None:
        """The record in this row of the table is a dead letter."""
        p = self.slice_of(row)
        piece = self.pieces[p]
        self.dead[p].append(DeadLetter(piece.role, piece.partition, self.table.record(row), reason, path))


def _alone(s: Slice) -> Slices:
    table = s.records if isinstance(s.records, RecordTable) else RecordTable.of(s.records)
    return Slices([Piece(s.role, s.partition, s.start, s.next)], table, [0, len(table)])


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
