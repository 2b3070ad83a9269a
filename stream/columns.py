"""From decoded rows to the columns the engine works on: one set of Polars expressions, run once for a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from .declaration import Pipeline
from .expressions import column_types
from .features import Aggregate, Category, Cross, Numeric
from .hashing import KEY_SEEDS, U64, combine, hash_texts, hash_words, name_seed
from .slices import Role

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


class Columns:
    """Computes the columns of one topic's batches. Holds no state of the stream."""

    def __init__(self, pipeline: Pipeline, role: Role, schema: type[msgspec.Struct]) -> None:
        events = role == "events"
        side = pipeline.events if events else pipeline.labels
        self.types = column_types(schema)
        self._empty = pl.DataFrame(schema=self.types)
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
            self._plan_label(labels.value_expr, pipeline.classes)

    def _plan_label(self, value: pl.Expr, classes: Sequence[str]) -> None:
        self._label = value
        self._label_fields = sorted(set(value.meta.root_names()))
        self._classes = {name: float(i) for i, name in enumerate(classes)}
        self._label_is_text = self._empty.select(value).dtypes[0] == pl.String
        self._label_at = self._add(value) if self._label_is_text else self._number(value)
        known = [
            pl.col(name).is_not_null() & (pl.col(name).is_not_nan() if self.types[name].is_float() else pl.lit(True))
            for name in self._label_fields
        ]
        self._label_known_at = self._add(pl.all_horizontal(known))

    # -- planning: each method adds to what is selected, and says where it will stand

    def _add(self, expr: pl.Expr) -> int:
        self._outputs.append(expr.alias(f"#{len(self._outputs)}"))
        return len(self._outputs) - 1

    def _number(self, expr: pl.Expr) -> int:
        return self._add(expr.cast(pl.Float64).fill_null(np.nan))

    def _hashed(self, expr: pl.Expr) -> tuple[bool, int, int]:
        """(is text, where the values stand, where it stands which of them are known)."""
        dtype = self._empty.select(expr).dtypes[0]
        if dtype in (pl.String, pl.Categorical, pl.Enum):
            at = self._add(expr.cast(pl.String))
            return True, at, at
        if dtype.is_float():
            value = expr.cast(pl.Float64)
            known = self._add(value.is_not_nan().fill_null(False))
            return False, self._add(value.fill_null(0.0) + 0.0), known  # -0.0 is 0.0
        known = self._add(expr.is_not_null())
        return False, self._add(expr.cast(pl.Int64, wrap_numerical=True).fill_null(0)), known

    # -- computing

    def frame(self, rows: Sequence[Any]) -> pl.DataFrame:
        """Decoded rows (Structs of the schema) as columns."""
        if not rows:
            return self._empty
        fields = zip(*map(msgspec.structs.astuple, rows), strict=True)
        series: list[pl.Series] = []
        for (name, dtype), values in zip(self.types.items(), fields, strict=True):
            if isinstance(dtype, pl.Datetime):
                micro = [None if v is None else _microseconds(v) for v in values]
                series.append(pl.Series(name, micro, pl.Int64).cast(dtype))
            else:
                series.append(pl.Series(name, values, dtype))
        return pl.DataFrame(series)

    def compute(self, frame: pl.DataFrame) -> tuple[dict[str, Any], dict[int, str]]:
        """The computed columns of Batch, by name; and the rows on which an expression raised, with what it said."""
        got, poison = self._select(frame)
        b = len(frame)
        numeric = np.full((b, self._width), np.nan, np.float32)
        with np.errstate(over="ignore"):
            for j, at in self._numeric:
                numeric[:, j] = got[at].to_numpy()
        numeric[np.isinf(numeric)] = np.nan  # log of zero, overflow: nothing that can be learned from
        values = np.empty((b, len(self._values)))
        for v, at in enumerate(self._values):
            values[:, v] = got[at].to_numpy()
        values[np.isinf(values)] = np.nan
        texts: dict[int, list[str | None]] = {}
        key_hash = np.zeros((b, 2), np.uint64)
        if self._key is not None:
            _hash(got, texts, self._key, KEY_SEEDS, key_hash, 0)
        return {
            "numeric": numeric,
            "categories": _hash_all(got, texts, self._categories, b),
            "groups": _hash_all(got, texts, self._groups, b),
            "values": values,
            "key_hash": key_hash,
            "y": self._labels(got) if self._label is not None else np.full(b, np.nan, np.float32),
        }, poison

    def _select(self, frame: pl.DataFrame) -> tuple[list[pl.Series], dict[int, str]]:
        if not self._outputs:
            return [], {}
        try:
            return frame.select(self._outputs).get_columns(), {}
        except pl.exceptions.PolarsError:
            if len(frame) == 0:
                raise
        # an expression raised: find the rows on which it does, and give those nulls
        nulls = self._empty.select(self._outputs).clear(1)
        done: list[pl.DataFrame] = []
        poison: dict[int, str] = {}
        for i in range(len(frame)):
            try:
                done.append(frame[i : i + 1].select(self._outputs))
            except pl.exceptions.PolarsError as error:
                poison[i] = f"an expression of the pipeline raised {type(error).__name__}: {error}"
                done.append(nulls)
        return pl.concat(done).get_columns(), poison

    def _labels(self, got: list[pl.Series]) -> NDArray[np.float32]:
        known = got[self._label_known_at].to_numpy()
        if self._label_is_text:
            y = np.array([self._classes.get(v, np.nan) for v in got[self._label_at].to_list()], np.float32)
        else:
            with np.errstate(over="ignore"):
                y = got[self._label_at].to_numpy().astype(np.float32)
        return np.where(known & np.isfinite(y), y, np.float32(np.nan))

    def why_no_label(self, frame: pl.DataFrame, i: int) -> str:
        """Why row i has no label."""
        row = frame.row(i, named=True)
        missing = [n for n in self._label_fields if row[n] is None or row[n] != row[n]]
        if missing:
            return f"no label: {', '.join(f'`{n}`' for n in missing)} is null or NaN"
        assert self._label is not None
        value = frame[i : i + 1].select(self._label).item()
        if isinstance(value, str):
            return f"no label: {value!r} is not one of classes={list(self._classes)}"
        return f"no label: the value is {value!r}"


def _hash_all(
    got: list[pl.Series],
    texts: dict[int, list[str | None]],
    columns: list[tuple[list[tuple[bool, int, int]], int]],
    rows: int,
) -> U64:
    """uint64 (B, len(columns)): one hash per row over the parts of each column."""
    out = np.empty((rows, len(columns)), np.uint64)
    for k, (parts, seed) in enumerate(columns):
        if len(parts) == 1:
            _hash(got, texts, parts[0], (seed,), out, k)
            continue
        hashes = np.empty((rows, len(parts)), np.uint64)
        for p, part in enumerate(parts):
            _hash(got, texts, part, (seed,), hashes, p)
        combine(hashes, seed, out, k)
    return out


def _hash(
    got: list[pl.Series],
    texts: dict[int, list[str | None]],
    part: tuple[bool, int, int],
    seeds: Sequence[int],
    out: U64,
    column: int,
) -> None:
    is_text, at, known = part
    if is_text:
        if at not in texts:
            texts[at] = got[at].to_list()
        hash_texts(texts[at], seeds, out, column)
    else:
        hash_words(got[at].to_numpy(), got[known].to_numpy(), seeds, out, column)


def _microseconds(moment: datetime) -> int:
    """A datetime without a zone is read as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = aware - EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
