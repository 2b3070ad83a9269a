"""The values of decoded records by field, in arrays: what a decoder gives, and what features are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..connectors.spans import Spans, join
from .arrow_text import series_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Fields = dict[str, "Field"]


@dataclass(frozen=True, slots=True)
class Field:
    """B values of one field.

    dtype   String, Float64, Int64, Boolean or Datetime
    known   bool (B,)   False where the value is null
    values  float64, int64 or bool (B,), anything where null; a Datetime is int64, microseconds since the epoch. Of a
            String none of it is used
    texts   the UTF-8 of a String; size -1 where null
    """

    dtype: pl.DataType
    known: NDArray[np.bool_]
    values: NDArray
    texts: Spans

    @classmethod
    def of(cls, dtype: pl.DataType, values: Sequence[Any]) -> Field:
        """Of Python values, None where null. Raises OverflowError where an int has more than 64 bits."""
        known = np.ones(len(values), np.bool_)
        if None in values:
            known = np.array([v is not None for v in values], np.bool_)
        if dtype == pl.String:
            return cls(dtype, known, _NOTHING, Spans.of_texts(values))
        if isinstance(dtype, pl.Datetime):
            values = [None if v is None else microseconds(v) for v in values]
        if not known.all():
            values = [0 if v is None else v for v in values]
        return cls(dtype, known, np.array(values, _number(dtype)), _NO_TEXTS)

    @classmethod
    def of_texts(cls, texts: Spans) -> Field:
        """Of texts in UTF-8."""
        return cls(_STRING, texts.size >= 0, _NOTHING, texts)

    @classmethod
    def of_cells(cls, dtype: pl.DataType, known: NDArray[np.bool_], cells: NDArray[np.uint64]) -> Field:
        """Of the bits of float64 and int64; of a bool 1 or 0."""
        number = _number(dtype)
        return cls(dtype, known, cells != 0 if number is np.bool_ else cells.view(number), _NO_TEXTS)

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, i: int) -> Any:
        """One value, as Python has it; None where null."""
        if not self.known[i]:
            return None
        if self.dtype == pl.String:
            return (self.texts[i] or b"").decode()
        return self.values[i].item()

    def take(self, rows: NDArray) -> Field:
        """Some of the values; rows: places, or a mask."""
        if self.dtype == pl.String:
            return Field(self.dtype, self.known[rows], self.values, self.texts.take(rows))
        return Field(self.dtype, self.known[rows], self.values[rows], self.texts)

    def floats(self) -> NDArray[np.float64]:
        """float64 (B,), NaN where null; not to be changed."""
        if self.known.all():
            return self.values.astype(np.float64, copy=False)
        return np.where(self.known, self.values, np.nan)

    def series(self, name: str) -> pl.Series:
        """The values for Polars."""
        if self.dtype == pl.String:
            return series_of(self.texts).alias(name)
        series = pl.Series(name, self.values)
        if not self.known.all():
            series = series.set(pl.Series(~self.known), None)
        return series.cast(self.dtype)


_STRING = pl.String()
_NOTHING = np.empty(0)
_NO_TEXTS = Spans.none(0)
_NUMBERS: dict[Any, Any] = {pl.Float64: np.float64, pl.Int64: np.int64, pl.Boolean: np.bool_, pl.Datetime: np.int64}


@lru_cache(maxsize=64)
def _number(dtype: pl.DataType) -> Any:
    """What values of a type are in an array."""
    return _NUMBERS[dtype.base_type()]


def joined(parts: Sequence[Field]) -> Field:
    """The values of all parts, in order."""
    first = parts[0]
    known = np.concatenate([part.known for part in parts])
    if first.dtype == pl.String:
        return Field(first.dtype, known, first.values, join([part.texts for part in parts]))
    return Field(first.dtype, known, np.concatenate([part.values for part in parts]), first.texts)


def microseconds(moment: datetime) -> int:
    """Since the epoch. A datetime without a zone is read as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = aware - EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
