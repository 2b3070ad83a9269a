"""From decoded rows to the columns the engine works on: one set of Polars expressions, run once for all at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from ..connectors.spans import Spans
from .arrow_text import spans_of
from .declaration import Pipeline
from .expressions import column_types, fields_of, plain_column
from .features import Aggregate, Category, Cross, Numeric
from .fields import Field, Fields
from .hashing import KEY_SEEDS, U64, combine, hash_spans, hash_words, name_seed
from .leaves import columns_of, leaves
from .slices import Role

LARGEST_WEIGHT = float(np.finfo(np.float32).max)
LARGEST = 1e100  # of what aggregates fold in: sums of squares of such values are finite still


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
    return list(dict.fromkeys(Group(f.by, f.capacity) for f in pipeline.features if isinstance(f, Aggregate)))


def value_columns(pipeline: Pipeline, source: str) -> dict[str, pl.Expr]:
    """What aggregates of one source fold in, by text, without repeats; in the order of Batch.values."""
    return {
        value_name(f.value): f.value
        for f in pipeline.features
        if isinstance(f, Aggregate) and f.source == source and isinstance(f.value, pl.Expr)
    }


def value_name(value: pl.Expr) -> str:
    """Equal for equal expressions."""
    return value.meta.serialize(format="json")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where values come from: a field as it was decoded, or an expression's place among the outputs."""

    dtype: pl.DataType
    field: str = ""
    output: int = -1
    known: int = -1  # of a hashed expression that is not text: the place of "is not missing"
    is_text: bool = False  # for to compare types of Polars takes a microsecond


class Columns:
    """Computes the columns of one topic's batches. Holds no state of the stream.

    What is a plain field goes straight into arrays; only expressions see Polars, all in one `select`, since a select
    costs a tenth of a millisecond however few its rows are.
    """

    def __init__(self, pipeline: Pipeline, role: Role, schema: type[msgspec.Struct]) -> None:
        events = role == "events"
        side = pipeline.events if events else pipeline.labels
        self.types, self._leaves = column_types(schema), leaves(schema)
        self._outputs: list[pl.Expr] = []
        self._width = len(pipeline.numeric) if events else 0
        features = pipeline.features if events else ()
        column = {name: j for j, name in enumerate(pipeline.numeric)}
        self._numeric = [(column[f.name], self._number(f.value)) for f in features if isinstance(f, Numeric)]
        self._categories = [
            ([self._hashed(part) for part in (f.parts if isinstance(f, Cross) else (f.value,))], name_seed(f.name))
            for f in features
            if isinstance(f, Category | Cross)
        ]
        self._groups = [
            ([self._hashed(pl.col(name)) for name in group.by], name_seed("+".join(group.by)))
            for group in (groups_of(pipeline) if events else ())
        ]
        values = value_columns(pipeline, "event" if events else "label")
        self._values = [self._number(value) for value in values.values()]
        self._key = self._hashed(pl.col(side.key)) if side is not None and side.key is not None else None
        self._label: pl.Expr | None = None
        labels = pipeline.labels
        if labels is not None and (labels.topic is None) == events:
            self._label = labels.value_expr
            self._label_fields = sorted(fields_of(self._label))
            self._label_floats = {name for name in self._label_fields if self.types[name] == pl.Float64}
            self._classes = pipeline.classes
            hashes = np.empty((len(self._classes), 1), np.uint64)
            hash_spans(Spans.of_texts(self._classes), (0,), hashes, 0)
            self._class_of = np.argsort(hashes[:, 0])
            self._class_hashes = hashes[self._class_of, 0]
            self._binary = pipeline.task == "binary"
            is_text = self._dtype(self._label) == pl.String
            self._label_source = self._hashed(self._label) if is_text else self._number(self._label)
            self._weight = labels.weight_expr
            self._weight_source = None if self._weight is None else self._number(self._weight)
        read = dict.fromkeys(name for expr in self._outputs for name in fields_of(expr))
        self._read = {name: self.types[name] for name in read}

    # -- planning: where each value will come from

    def _dtype(self, expr: pl.Expr) -> pl.DataType:
        return pl.DataFrame(schema=self.types).select(expr).dtypes[0]

    def _add(self, expr: pl.Expr) -> int:
        self._outputs.append(expr.alias(f"#{len(self._outputs)}"))
        return len(self._outputs) - 1

    def _number(self, expr: pl.Expr) -> _Source:
        name = plain_column(expr)
        if name is not None:
            return _Source(self.types[name], field=name)
        return _Source(pl.Float64(), output=self._add(expr.cast(pl.Float64).fill_null(np.nan)))

    def _hashed(self, expr: pl.Expr) -> _Source:
        name = plain_column(expr)
        if name is not None:
            return _Source(self.types[name], field=name, is_text=self.types[name] == pl.String)
        dtype = self._dtype(expr)
        if dtype in (pl.String, pl.Categorical, pl.Enum):
            return _Source(pl.String(), output=self._add(expr.cast(pl.String)), is_text=True)
        if dtype.is_float():
            value = expr.cast(pl.Float64)
            known = self._add(value.is_not_nan().fill_null(False))
            return _Source(dtype, output=self._add(value.fill_null(0.0) + 0.0), known=known)  # -0.0 is 0.0
        known = self._add(expr.is_not_null())
        return _Source(dtype, output=self._add(expr.cast(pl.Int64, wrap_numerical=True).fill_null(0)), known=known)

    # -- computing

    def fields(self, rows: Sequence[Any]) -> Fields:
        """Decoded rows (Structs of the schema) by field. Raises OverflowError for an int of more than 64 bits."""
        columns = columns_of(rows, list(self._leaves.values()))
        return {
            name: Field.of(dtype, values) for (name, dtype), values in zip(self.types.items(), columns, strict=True)
        }

    def compute(self, fields: Fields, rows: int) -> tuple[dict[str, Any], dict[int, str]]:
        """The computed columns of Batch, by name; and the rows on which an expression raised, with what it said."""
        outputs, poison = self._select(fields, rows)
        got = _Values(fields, outputs)
        numeric = np.full((rows, self._width), np.nan, np.float32)
        with np.errstate(over="ignore"):
            for j, source in self._numeric:
                numeric[:, j] = got.floats(source)
        values = np.empty((rows, len(self._values)))
        for v, source in enumerate(self._values):
            values[:, v] = got.floats(source)
        values[np.abs(values) > LARGEST] = np.nan
        key_hash = np.zeros((rows, 2), np.uint64)
        if self._key is not None:
            got.hash(self._key, KEY_SEEDS, key_hash, 0)
        columns = {
            "numeric": numeric,
            "categories": self._hash_all(got, self._categories, rows),
            "groups": self._hash_all(got, self._groups, rows),
            "values": values,
            "key_hash": key_hash,
            "y": self._labels(got, rows) if self._label is not None else np.full(rows, np.nan, np.float32),
        }
        if self._label is not None and self._weight_source is not None:
            weight = got.floats(self._weight_source)
            with np.errstate(over="ignore", invalid="ignore"):
                columns["weight"] = np.where((weight >= 0) & (weight <= LARGEST_WEIGHT), weight, np.nan).astype(
                    np.float32
                )
        return columns, poison

    def _select(self, fields: Fields, rows: int) -> tuple[list[pl.Series], dict[int, str]]:
        if not self._outputs:
            return [], {}
        frame = pl.DataFrame([fields[name].series(name) for name in self._read])
        try:  # one after another: on a busy machine waiting for the threads of Polars costs more than they save
            return frame.select_seq(self._outputs).get_columns(), {}
        except pl.exceptions.PolarsError:
            if not rows:
                raise
        nulls = frame.clear().select_seq(self._outputs).clear(1)
        done, poison = self._one_by_one(frame, nulls)
        filled = (cs.boolean().fill_null(False), cs.integer().fill_null(0), cs.float().fill_null(np.nan))
        return pl.concat(done).with_columns(filled).get_columns(), poison

    def _one_by_one(self, frame: pl.DataFrame, nulls: pl.DataFrame) -> tuple[list[pl.DataFrame], dict[int, str]]:
        """The outputs of a frame with nulls in the rows on which an expression raises, and what it said of these.

        Halves are tried, for a row alone costs as much as thousands: what is good in them needs no other look.
        """
        done: list[pl.DataFrame] = []
        poison: dict[int, str] = {}
        todo = [(0, len(frame))]
        while todo:
            a, b = todo.pop()
            try:
                done.append(frame[a:b].select_seq(self._outputs))
            except pl.exceptions.PolarsError as error:
                if b - a > 1:
                    todo += [((a + b) // 2, b), (a, (a + b) // 2)]
                    continue
                poison[a] = f"an expression of the pipeline raised {type(error).__name__}: {error}"
                done.append(nulls)
        return done, poison

    def _labels(self, got: _Values, rows: int) -> NDArray[np.float32]:
        """The label of each row: NaN where there is none, infinite where there is one that cannot be used."""
        if self._label_source.is_text:
            hashes = np.empty((rows, 1), np.uint64)
            got.hash(self._label_source, (0,), hashes, 0)
            at = self._class_hashes.searchsorted(hashes[:, 0]) % len(self._class_hashes)
            y = np.where(self._class_hashes[at] == hashes[:, 0], self._class_of[at], np.inf).astype(np.float32)
            y[hashes[:, 0] == 0] = np.nan
        else:
            with np.errstate(over="ignore"):
                y = got.floats(self._label_source).astype(np.float32)
            if self._binary:
                y[(y < 0.0) | (y > 1.0)] = np.inf
        known = np.ones(len(y), np.bool_)
        for name in self._label_fields:
            known &= got.fields[name].known
            if name in self._label_floats:
                known &= ~np.isnan(got.fields[name].values)
        return np.where(known, y, np.float32(np.nan))

    def why_no_label(self, fields: Fields, i: int) -> str:
        """Why row i has no label."""
        row = {name: fields[name][i] for name in self._label_fields}
        missing = [n for n, value in row.items() if value is None or value != value]
        if missing:
            return f"no label: {', '.join(f'`{n}`' for n in missing)} is null or NaN"
        assert self._label is not None
        one = np.array([i])
        frame = pl.DataFrame([fields[name].take(one).series(name) for name in self._label_fields])
        value = frame.select(self._label).item()
        if isinstance(value, str):
            return f"no label: {value!r} is not one of classes={list(self._classes)}"
        if self._binary and value is not None and value == value:
            return f"no label: the task is binary, expected 0 or 1, got {value!r}"
        return f"no label: the value is {value!r}"

    def why_no_weight(self, fields: Fields, i: int) -> tuple[str, str]:
        """Why row i has no weight, and the path of the field that says it, if it is one."""
        assert self._weight is not None
        plain, one = plain_column(self._weight), np.array([i])
        frame = pl.DataFrame([fields[name].take(one).series(name) for name in sorted(fields_of(self._weight))])
        value = frame.select(self._weight.cast(pl.Float64)).item()
        path = self._leaves[plain].path if plain is not None else ""
        if value is None or value != value:
            return f"no weight: {f'`{plain}`' if plain is not None else 'the value'} is null or NaN", path
        return f"the weight is {value:g}; expected a number from 0 to {LARGEST_WEIGHT:.2g}", path

    @staticmethod
    def _hash_all(got: _Values, columns: list[tuple[list[_Source], int]], rows: int) -> U64:
        """uint64 (B, len(columns)): one hash per row over the parts of each column."""
        out = np.empty((rows, len(columns)), np.uint64)
        for k, (parts, seed) in enumerate(columns):
            if len(parts) == 1:
                got.hash(parts[0], (seed,), out, k)
                continue
            hashes = np.empty((rows, len(parts)), np.uint64)
            for p, part in enumerate(parts):
                got.hash(part, (seed,), hashes, p)
            combine(hashes, seed, out, k)
        return out


class _Values:
    """The values of some rows: fields as they were decoded, and what the expressions gave."""

    def __init__(self, fields: Fields, outputs: list[pl.Series]) -> None:
        self.fields, self.outputs = fields, outputs
        self._texts: dict[int, Spans] = {}

    def floats(self, source: _Source) -> NDArray[np.float64]:
        """float64 (B,), NaN where missing."""
        if source.field:
            return self.fields[source.field].floats()
        return self.outputs[source.output].to_numpy()

    def _spans(self, source: _Source) -> Spans:
        if source.field:
            return self.fields[source.field].texts
        if source.output not in self._texts:
            self._texts[source.output] = spans_of(self.outputs[source.output])
        return self._texts[source.output]

    def hash(self, source: _Source, seeds: Sequence[int], out: U64, column: int) -> None:
        """Hash the values under each seed into the columns of out from `column` on; 0 where missing."""
        if source.is_text:
            hash_spans(self._spans(source), seeds, out, column)
        elif source.field:
            of = self.fields[source.field]
            hash_words(np.where(of.known, of.values, 0).astype(np.int64), of.known, seeds, out, column)
        else:
            words, known = self.outputs[source.output].to_numpy(), self.outputs[source.known].to_numpy()
            hash_words(words, known, seeds, out, column)
