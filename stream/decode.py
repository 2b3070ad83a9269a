"""The strict decoder: says record by record what is valid, and turns what is valid into columns.

It is the reference: a faster decoder may only take over where it agrees with this one to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..connectors.spans import Spans
from .columns import Columns
from .declaration import Events, Labels, Pipeline
from .fields import Fields
from .hashing import U64
from .slices import END_OF_STREAM, DeadLetter, Record, Role, Slice

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
KEY_BYTES = 100_000  # of an event's key, and of its record's
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

    def __len__(self) -> int:
        return len(self.offset)

    def nbytes(self) -> int:
        """Bytes held by the columns, about."""
        columns = (self.offset, self.time, self.clock, self.key_hash, self.numeric, self.categories, self.groups)
        texts = self.keys.data.nbytes + self.record_keys.data.nbytes + 32 * len(self)
        return sum(c.nbytes for c in columns) + self.values.nbytes + self.y.nbytes + texts


class Decoder:
    """Decodes the slices of one topic of a pipeline. Holds no state of the stream: equal slices give equal batches."""

    def __init__(self, pipeline: Pipeline, role: Role) -> None:
        side: Events | Labels = pipeline.events
        if role == "labels":
            assert pipeline.labels is not None
            side = pipeline.labels
        assert side.schema is not None
        self.role, self.side = role, side
        self.schema: type[msgspec.Struct] = side.schema
        self._decode: Callable[[Any], Any] = msgspec.json.Decoder(self.schema).decode
        self._columns = Columns(pipeline, role, self.schema)
        self._ints = [name for name, dtype in self._columns.types.items() if dtype == pl.Int64]

    def decode(self, s: Slice) -> Batch:
        """Decode a whole slice. Never raises for what is in a record: a bad one is in `dead`, with its reason."""
        dead: list[DeadLetter] = []
        marks = [r.offset for r in s.records if r.headers and any(name == END_OF_STREAM for name, _ in r.headers)]
        records = [r for r in s.records if r.offset not in set(marks)] if marks else s.records
        try:
            rows: list[Any] = list(map(self._decode, [r.value for r in records]))
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
            records, rows = self._one_by_one(s, records, dead)
        return self.columns(s, records, rows, dead, marks)

    def _one_by_one(self, s: Slice, records: list[Record], dead: list[DeadLetter]) -> tuple[list[Record], list[Any]]:
        good, rows = [], []
        for record in records:
            path = ""
            if record.value is None:
                reason = "the record has no value (a tombstone)"
            elif not record.value:
                reason = "the record is empty"
            else:
                try:
                    rows.append(self._decode(record.value))
                    good.append(record)
                    continue
                except msgspec.ValidationError as error:
                    reason, path = reason_and_path(error)
                except (msgspec.DecodeError, ValueError) as error:
                    reason = f"not valid JSON: {error}"
                except RecursionError:
                    reason = "nested too deep"
            dead.append(DeadLetter(self.role, s.partition, record, reason, path))
        return good, rows

    def columns(
        self, s: Slice, records: list[Record], rows: list[Any], dead: list[DeadLetter], marks: list[int]
    ) -> Batch:
        """Turn decoded rows (Structs of the schema, one for each record) into a batch."""
        try:
            fields = self._columns.fields(rows)
        except OverflowError:
            records, rows = self._without_huge_integers(s, records, rows, dead)
            fields = self._columns.fields(rows)
        refused: dict[int, tuple[str, str]] = {}  # row -> reason, path
        timestamp = np.fromiter((r.timestamp for r in records), np.int64, len(records)) * 1000
        time = self._times(fields, timestamp, refused) if self.side.time is not None else timestamp
        computed, poison = self._columns.compute(fields, len(rows))
        refused |= {i: (reason, "") for i, reason in poison.items() if i not in refused}
        if self.role == "labels":
            for i in np.flatnonzero(np.isnan(computed["y"])).tolist():
                refused.setdefault(i, (self._columns.why_no_label(fields, i), ""))
        keys, record_keys = Spans.none(len(rows)), Spans.none(len(rows))
        if self.role == "events":
            record_keys = Spans.of([record.key for record in records])
            if self.side.key is not None:
                keys = Spans.of([_json(getattr(row, self.side.key)) for row in rows])
            else:
                keys = Spans.of([b"null"] * len(rows))
            self._refuse_long_keys(record_keys, keys, refused)
        offset = np.fromiter((r.offset for r in records), np.int64, len(records))
        if refused:
            dead += [DeadLetter(self.role, s.partition, records[i], *why) for i, why in refused.items()]
            keep = np.ones(len(rows), np.bool_)
            keep[list(refused)] = False
            keys, record_keys, offset, time = keys.take(keep), record_keys.take(keep), offset[keep], time[keep]
            computed = {name: column[keep] for name, column in computed.items()}
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
            **computed,
        )

    def _without_huge_integers(
        self, s: Slice, records: list[Record], rows: list[Any], dead: list[DeadLetter]
    ) -> tuple[list[Record], list[Any]]:
        """JSON integers have no bound, columns have 64 bits: rows beyond are dead letters."""
        good: list[int] = []
        for i, row in enumerate(rows):
            values = ((name, getattr(row, name)) for name in self._ints)
            huge = next(((n, v) for n, v in values if v is not None and not LEAST_INT <= v <= GREATEST_INT), None)
            if huge is None:
                good.append(i)
                continue
            reason = f"expected `int` of 64 bits, got one of {huge[1].bit_length()} bits"
            dead.append(DeadLetter(self.role, s.partition, records[i], reason, f"$.{huge[0]}"))
        return [records[i] for i in good], [rows[i] for i in good]

    def _refuse_long_keys(self, record_keys: Spans, keys: Spans, refused: dict[int, tuple[str, str]]) -> None:
        """A prediction carries its event's key and record key, and has to fit into a record."""
        for spans, what, path in ((record_keys, "record key", ""), (keys, "key", f"$.{self.side.key}")):
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
            refused[i] = reason, f"$.{name}"
        return time


def reason_and_path(error: msgspec.ValidationError) -> tuple[str, str]:
    """What msgspec says is wrong, and where."""
    reason, _, path = str(error).partition(" - at `")
    return reason, path.rstrip("`")
