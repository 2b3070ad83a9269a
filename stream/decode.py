"""The strict decoder: says record by record what is valid, and turns what is valid into columns.

It is the reference: a faster decoder may only take over where it agrees with this one to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from .declaration import Events, Labels, Pipeline
from .expressions import column_types
from .features import Aggregate, Category, Cross, Numeric
from .hashing import U64, hash_columns, hash_keys, name_seed
from .slices import END_OF_STREAM, DeadLetter, Record, Role, Slice

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
LATEST_TIME = 253_402_300_799_000_000  # the end of the year 9999
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INT64 = range(-(2**63), 2**63)


@dataclass(slots=True)
class Batch:
    """One decoded slice: B valid rows in offset order, and the records that were not valid.

    offset  int64 (B,)   time  int64 (B,) microseconds since the epoch   clock  int64 (B,) the greatest time so far
    keys    the key fields' values, for the prediction records; key_hash uint64 (B, 2)
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
    keys: Sequence[Any]
    record_keys: Sequence[bytes | None]
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
        return sum(c.nbytes for c in columns) + self.values.nbytes + self.y.nbytes + 120 * len(self)


@dataclass(frozen=True, slots=True)
class Group:
    """Aggregates that share their keys: the fields they are grouped by, and how many keys are kept."""

    by: tuple[str, ...]
    capacity: int

    @property
    def name(self) -> str:
        return f"{'+'.join(self.by)}/{self.capacity}"


def groups_of(pipeline: Pipeline) -> list[Group]:
    """The groups of a pipeline's aggregates, in order of first use; their order is that of Batch.groups."""
    groups = dict.fromkeys(Group(f.by, f.capacity) for f in pipeline.features if isinstance(f, Aggregate))
    return list(groups)


def value_columns(pipeline: Pipeline, source: str) -> list[pl.Expr]:
    """The expressions that aggregates of one source fold in, without repeats; their order is that of Batch.values."""
    seen: dict[str, pl.Expr] = {}
    for f in pipeline.features:
        if isinstance(f, Aggregate) and f.source == source and isinstance(f.value, pl.Expr):
            seen.setdefault(str(f.value.meta.serialize(format="json")), f.value)
    return list(seen.values())


def value_index(columns: list[pl.Expr], value: pl.Expr) -> int:
    """Which column of Batch.values an aggregate folds in."""
    wanted = str(value.meta.serialize(format="json"))
    return [str(c.meta.serialize(format="json")) for c in columns].index(wanted)


class Decoder:
    """Decodes the slices of one topic of a pipeline. Holds no state of the stream: equal slices give equal batches."""

    def __init__(self, pipeline: Pipeline, role: Role) -> None:
        side: Events | Labels = pipeline.events
        if role == "labels":
            assert pipeline.labels is not None
            side = pipeline.labels
        assert side.schema is not None
        self.pipeline, self.role, self.side = pipeline, role, side
        self.schema: type[msgspec.Struct] = side.schema
        self.types = column_types(self.schema)
        self._decode: Callable[[Any], Any] = msgspec.json.Decoder(self.schema).decode
        self._ints = [name for name, dtype in self.types.items() if dtype == pl.Int64]
        self._columns = _Columns(pipeline, role)
        self._ahead = side.ahead_us

    def decode(self, s: Slice) -> Batch:
        """Decode a whole slice. Never raises for what is in a record: a bad one is in `dead`, with its reason."""
        dead: list[DeadLetter] = []
        marks = [r.offset for r in s.records if r.headers and any(name == END_OF_STREAM for name, _ in r.headers)]
        records = [r for r in s.records if r.offset not in set(marks)] if marks else s.records
        try:
            rows: list[Any] = list(map(self._decode, [r.value for r in records]))
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, ValueError, RecursionError):
            records, rows = self._one_by_one(s, records, dead)
        return self.columns(s, records, rows, dead, marks)

    def _one_by_one(self, s: Slice, records: list[Record], dead: list[DeadLetter]) -> tuple[list[Record], list[Any]]:
        good, rows = [], []
        for record in records:
            reason, path = "", ""
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
                    reason, _, path = str(error).partition(" - at `")
                    path = path.rstrip("`")
                except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
                    reason = f"not valid JSON: {error}"
                except RecursionError:
                    reason = "nested too deep"
            dead.append(DeadLetter(self.role, s.partition, record, reason, path))
        return good, rows

    def columns(
        self, s: Slice, records: list[Record], rows: list[Any], dead: list[DeadLetter], marks: list[int]
    ) -> Batch:
        """Turn decoded rows (Structs of the schema, one for each record) into a batch."""

        def refuse(bad: NDArray[np.bool_], reason: Callable[[int], str], path: str) -> None:
            nonlocal frame, records
            for i in np.flatnonzero(bad).tolist():
                dead.append(DeadLetter(self.role, s.partition, records[i], reason(i), path))
            keep = ~bad
            frame = frame.filter(pl.Series(keep))
            records = [r for r, k in zip(records, keep.tolist(), strict=True) if k]

        records, rows = self._fit_integers(s, records, rows, dead)
        frame = _frame(rows, self.types)
        key = self.side.key
        if key is not None and frame[key].null_count():
            refuse(frame[key].is_null().to_numpy(), lambda i: "the key is null", f"$.{key}")
        timestamp = np.fromiter((r.timestamp for r in records), np.int64, len(records)) * 1000
        time, outside = self._times(frame, timestamp)
        if outside.any():
            shown = frame[self.side.time].to_list() if self.side.time else []
            refuse(
                outside, lambda i: f"time {shown[i]!r} is not in the years 1 to 9999; check `unit`", self._time_path()
            )
            time, timestamp = time[~outside], timestamp[~outside]
        far = time > timestamp + self._ahead
        if self.side.time and far.any():
            by = (time - timestamp) / 3.6e9
            refuse(far, lambda i: f"time is {by[i]:.1f} h ahead of the record's timestamp", self._time_path())
            time = time[~far]
        computed = self._columns.compute(frame)
        if self.role == "labels" or self._columns.poison is not None:
            bad = np.zeros(len(frame), bool)
            why = dict[int, tuple[str, str]]()
            if self._columns.poison is not None:
                for i, reason in self._columns.poison.items():
                    bad[i], why[i] = True, (reason, "")
                self._columns.poison = None
            if self.role == "labels":
                for i in np.flatnonzero(np.isnan(computed["y"])).tolist():
                    bad[i], why[i] = True, (self._columns.label_reason(frame, i), "labels.value")
            if bad.any():
                for i in np.flatnonzero(bad).tolist():
                    dead.append(DeadLetter(self.role, s.partition, records[i], *why[i]))
                keep = ~bad
                records = [r for r, k in zip(records, keep.tolist(), strict=True) if k]
                frame, time = frame.filter(pl.Series(keep)), time[keep]
                computed = {name: column[keep] for name, column in computed.items()}
        dead.sort(key=lambda letter: letter.record.offset)
        return Batch(
            role=self.role,
            partition=s.partition,
            start=s.start,
            next=s.next,
            offset=np.fromiter((r.offset for r in records), np.int64, len(records)),
            time=time,
            clock=np.maximum.accumulate(time) if len(time) else time,
            keys=frame[key].to_list() if key is not None else [None] * len(frame),
            record_keys=[r.key for r in records],
            dead=dead,
            marks=marks,
            **computed,
        )

    def _fit_integers(
        self, s: Slice, records: list[Record], rows: list[Any], dead: list[DeadLetter]
    ) -> tuple[list[Record], list[Any]]:
        """JSON integers have no bound, columns have 64 bits."""
        for name in self._ints:
            if all(v is None or v in INT64 for v in (getattr(row, name) for row in rows)):
                continue
            kept = []
            for record, row in zip(records, rows, strict=True):
                value = getattr(row, name)
                if value is None or value in INT64:
                    kept.append((record, row))
                else:
                    reason = f"expected `int` of 64 bits, got one of {value.bit_length()} bits"
                    dead.append(DeadLetter(self.role, s.partition, record, reason, f"$.{name}"))
            records, rows = [r for r, _ in kept], [row for _, row in kept]
        return records, rows

    def _time_path(self) -> str:
        return f"$.{self.side.time}"

    def _times(self, frame: pl.DataFrame, timestamp: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if self.side.time is None:
            return timestamp, np.zeros(len(timestamp), bool)
        series = frame[self.side.time]
        if series.dtype == pl.Datetime:
            micro = series.dt.timestamp("us").cast(pl.Float64)
            exact = series.dt.timestamp("us").fill_null(0).to_numpy()
        else:
            scale = MICROSECONDS[self.side.unit or "us"]
            micro = series.cast(pl.Float64) * scale
            inside = micro.abs() <= LATEST_TIME
            if series.dtype == pl.Int64:
                exact = (
                    (pl.select(pl.when(inside).then(series).otherwise(0)).to_series() * scale).fill_null(0).to_numpy()
                )
            else:
                exact = np.rint(np.where(inside.fill_null(False).to_numpy(), micro.fill_null(0.0).to_numpy(), 0.0))
        outside = ~(micro.abs() <= LATEST_TIME).fill_null(False).to_numpy()
        return np.ascontiguousarray(exact, dtype=np.int64), outside


def _frame(rows: list[Any], types: dict[str, pl.DataType]) -> pl.DataFrame:
    """Structs to columns."""
    if not rows:
        return pl.DataFrame(schema=types)
    columns = zip(*map(msgspec.structs.astuple, rows), strict=True)
    fields: list[pl.Series] = []
    for (name, dtype), values in zip(types.items(), columns, strict=True):
        if isinstance(dtype, pl.Datetime):
            micro = [None if v is None else _microseconds(v) for v in values]
            fields.append(pl.Series(name, micro, pl.Int64).cast(dtype))
        else:
            fields.append(pl.Series(name, values, dtype))
    return pl.DataFrame(fields)


def _microseconds(moment: datetime) -> int:
    """A datetime without a zone is read as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = aware - EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


class _Columns:
    """Computes what the engine needs from a frame of decoded fields: one set of Polars expressions, run once a slice."""

    def __init__(self, pipeline: Pipeline, role: Role) -> None:
        self.poison: dict[int, str] | None = None  # rows on which an expression raised, of the last frame
        events = role == "events"
        self.n = len(pipeline.numeric) if events else 0
        self.numeric: list[tuple[int, pl.Expr]] = []
        self.category: list[tuple[int, list[pl.Expr], int]] = []
        if events:
            at = {name: j for j, name in enumerate(pipeline.numeric)}
            k = 0
            for f in pipeline.features:
                if isinstance(f, Numeric):
                    self.numeric.append((at[f.name], f.value))
                elif isinstance(f, Category | Cross):
                    parts = [f.value] if isinstance(f, Category) else list(f.parts)
                    self.category.append((k, parts, name_seed(f.name)))
                    k += 1
        self.groups = [(g, name_seed("+".join(g.by))) for g in groups_of(pipeline)] if events else []
        self.values = value_columns(pipeline, "event" if events else "label")
        labels = pipeline.labels
        self.label: pl.Expr | None = None
        if labels is not None and (labels.topic is None) == events:
            self.label = labels.value_expr
            self.label_fields = sorted(set(self.label.meta.root_names()))
            self.classes = {name: i for i, name in enumerate(pipeline.classes)}
        self.side = pipeline.events if events else labels
        self.outputs: list[pl.Expr] = []
        self._slots: dict[str, list[int]] = {"numeric": [], "values": []}
        for _, expr in self.numeric:
            self._slots["numeric"].append(self._add(expr.cast(pl.Float64)))
        for expr in self.values:
            self._slots["values"].append(self._add(expr.cast(pl.Float64)))
        self._parts = [[self._add(part) for part in parts] for _, parts, _ in self.category]
        self._label_at = self._add(self.label) if self.label is not None else -1

    def _add(self, expr: pl.Expr) -> int:
        self.outputs.append(expr.alias(f"#{len(self.outputs)}"))
        return len(self.outputs) - 1

    def compute(self, frame: pl.DataFrame) -> dict[str, Any]:
        """The computed columns of Batch, by name."""
        got = self._evaluate(frame)
        b = len(frame)
        numeric = np.full((b, self.n), np.nan, np.float32)
        with np.errstate(over="ignore"):
            for (j, _), at in zip(self.numeric, self._slots["numeric"], strict=True):
                numeric[:, j] = got[at].fill_null(np.nan).to_numpy()
        numeric[np.isinf(numeric)] = np.nan  # log of zero, overflow: nothing that can be learned from
        values = np.full((b, len(self.values)), np.nan)
        for v, at in enumerate(self._slots["values"]):
            values[:, v] = got[at].fill_null(np.nan).to_numpy()
        values[np.isinf(values)] = np.nan
        categories = np.zeros((b, len(self.category)), np.uint64)
        for (k, _, seed), parts in zip(self.category, self._parts, strict=True):
            categories[:, k] = hash_columns([got[p] for p in parts], seed)
        groups = np.zeros((b, len(self.groups)), np.uint64)
        for g, (group, seed) in enumerate(self.groups):
            groups[:, g] = hash_columns([frame[name] for name in group.by], seed)
        key = self.side.key if self.side is not None else None
        return {
            "numeric": numeric,
            "categories": categories,
            "groups": groups,
            "values": values,
            "key_hash": hash_keys(frame[key]) if key is not None else np.zeros((b, 2), np.uint64),
            "y": self._labels(frame, got) if self.label is not None else np.full(b, np.nan, np.float32),
        }

    def _evaluate(self, frame: pl.DataFrame) -> list[pl.Series]:
        if not self.outputs:
            return []
        try:
            return _full(frame.select(self.outputs), len(frame)).get_columns()
        except pl.exceptions.PolarsError:
            if len(frame) == 0:
                raise
        return self._row_by_row(frame)

    def _row_by_row(self, frame: pl.DataFrame) -> list[pl.Series]:
        """An expression raised: find the rows on which it does, and give those nulls."""
        done: list[pl.DataFrame] = []
        self.poison = {}
        typed = frame.clear().select(self.outputs).schema
        for i in range(len(frame)):
            try:
                done.append(_full(frame[i : i + 1].select(self.outputs), 1))
            except pl.exceptions.PolarsError as error:
                self.poison[i] = f"an expression of the pipeline raised {type(error).__name__}: {error}"
                done.append(pl.DataFrame({name: [None] for name in typed}, schema=typed))
        return pl.concat(done).get_columns()

    def _labels(self, frame: pl.DataFrame, got: list[pl.Series]) -> NDArray[np.float32]:
        series = got[self._label_at]
        known = series.is_not_null()
        for name in self.label_fields:
            known = known & frame[name].is_not_null()
            if frame[name].dtype.is_float():
                known = known & frame[name].is_not_nan().fill_null(False)
        if series.dtype == pl.String:
            y = np.array([self.classes.get(v, np.nan) for v in series.to_list()], np.float32)
        else:
            with np.errstate(over="ignore"):
                y = series.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float32)
        y[~known.to_numpy() | ~np.isfinite(y)] = np.nan
        return y

    def label_reason(self, frame: pl.DataFrame, i: int) -> str:
        """Why row i has no label."""
        missing = [n for n in self.label_fields if frame[n][i] is None or frame[n][i] != frame[n][i]]
        if missing:
            return f"no label: {', '.join(f'`{n}`' for n in missing)} is null or NaN"
        assert self.label is not None
        value = frame[i : i + 1].select(self.label).to_series()[0]
        if isinstance(value, str):
            return f"no label: {value!r} is not one of classes={list(self.classes)}"
        return f"no label: the value is {value!r}"


def _full(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """A frame of literals alone has one row; give it as many as its input."""
    if len(frame) == rows:
        return frame
    return frame.select(pl.all().repeat_by(rows).explode()) if len(frame) == 1 and rows else frame.clear()
