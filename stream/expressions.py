"""What a Polars expression in a declaration may be: over known fields, row by row, of a type that can be used."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import polars as pl

from ..errors import DeclarationError
from .leaves import leaves

SIGNED = (pl.Int8, pl.Int16, pl.Int32, pl.Int64)
UNSIGNED = (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
NUMBERS = (pl.Boolean, pl.Float32, pl.Float64, *SIGNED, *UNSIGNED)
CATEGORIES = (pl.String, pl.Categorical, pl.Enum, *NUMBERS)

NASTY, TAME = 36, 12  # rows of the hostile frame with values that break things, and with ordinary ones


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The text "; did you mean `dep_delay`?" when a known name is close, or the empty text."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


# --- schemas


def column_types(schema: type[msgspec.Struct]) -> dict[str, pl.DataType]:
    """The columns that the plain fields of a schema become, by name; None becomes null.

    Raises DeclarationError naming each field whose type has no column.
    """
    return {name: leaf.dtype for name, leaf in leaves(schema).items()}


def optional_fields(schema: type[msgspec.Struct]) -> set[str]:
    """The fields that may be None, or lie in what may be."""
    return {name for name, leaf in leaves(schema).items() if leaf.optional}


def literal_values(schema: type[msgspec.Struct], name: str) -> tuple[Any, ...]:
    """The values of a field declared as Literal[...], or the empty tuple."""
    leaf = leaves(schema).get(name)
    return () if leaf is None else leaf.values


# --- expressions


def plain_column(expr: pl.Expr) -> str | None:
    """The name of the column when the expression is nothing but a column."""
    return expr.meta.root_names()[0] if expr.meta.is_column() else None


def fields_of(expr: pl.Expr) -> tuple[str, ...]:
    """The fields an expression reads, without repeats, in order."""
    return tuple(dict.fromkeys(expr.meta.root_names()))


_OPERAND = r'col\("[^"]*"\)(?:\.[\w.]+\([^()]*\))*|-?[\d.]+|"[^"]*"|true|false'


def show(expr: pl.Expr) -> str:
    """An expression as a user would recognise it: a plain column as its quoted name; cut when it is long."""
    name = plain_column(expr)
    if name is not None:
        return f'"{name}"'
    text = re.sub(r"dyn (int|float): ", "", str(expr.meta.undo_aliases()))
    text = re.sub(rf"(?<=[\[( ])\(({_OPERAND})\)", r"\1", text)
    before = ""
    while before != text:  # polars writes a + b as [(a) + (b)]
        before, text = text, re.sub(r"\(?\[([^\[\]]+ [-+*/%<>=!&|^]+ [^\[\]]+)\]\)?(?!\))", r"(\1)", text)
    if text.startswith("(") and _closing(text) == len(text) - 1:
        text = text[1:-1]
    return text if len(text) <= 120 else text[:119] + "…"


def _closing(text: str) -> int:
    """Where the bracket that opens text is closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    return -1


def type_name(dtype: pl.DataType) -> str:
    """A column's type as a schema would declare it."""
    names = {pl.String: "str", pl.Int64: "int", pl.Float64: "float", pl.Boolean: "bool", pl.Datetime: "datetime"}
    return next((name for known, name in names.items() if dtype == known), str(dtype))


def check_expression(expr: pl.Expr, schema: type[msgspec.Struct]) -> pl.DataType:
    """The type an expression gives over a schema's columns.

    Raises DeclarationError when it reads a column that the schema lacks, does not fit the columns' types, or is not
    row by row. An expression that fails on some values only (a strict cast) passes: such a record is a dead letter.
    """
    types = column_types(schema)
    try:
        fields = fields_of(expr)
        if expr.meta.has_multiple_outputs() or not fields:
            many = "several columns" if expr.meta.has_multiple_outputs() else "no field"
            raise DeclarationError(f"{show(expr)} reads {many}; expected one expression over named fields")
    except pl.exceptions.PolarsError as error:
        raise DeclarationError(f"{show(expr)} cannot be read: {first_line(error)}") from error
    unknown = [name for name in fields if name not in types]
    if unknown:
        raise DeclarationError("; ".join(unknown_field(name, schema) for name in unknown))
    try:
        separable, why = expr.meta.is_row_separable(), ""
    except Exception as error:  # from polars, of any kind: what it cannot tell is refused
        separable, why = False, first_line(error)
    if not separable:
        if "python_udf" in str(expr):
            raise DeclarationError(f"{show(expr)} calls Python; expected an expression of Polars alone")
        because = f" ({why})" if why and "unable to find column" not in why else ""
        raise DeclarationError(_not_by_row(expr, f"it looks at other rows{because}"))
    dtype = _evaluated_dtype(expr, schema)
    _probe(expr, schema)
    return dtype


def unknown_field(name: str, schema: type[msgspec.Struct]) -> str:
    """The text "Departure has no field `dep_dealy`; did you mean `dep_delay`?", or else the fields it has."""
    known = column_types(schema)
    guess = did_you_mean(name, known) or f"; it has {', '.join(f'`{k}`' for k in known)}"
    return f"{schema.__name__} has no field `{name}`{guess}"


def first_line(error: BaseException | None) -> str:
    """What polars says, without the context it adds below."""
    return str(error or "").strip().split("\n")[0]


def _not_by_row(expr: pl.Expr, why: str) -> str:
    return (
        f"{show(expr)} is not row by row: {why}. Events come one after another, so an expression may use only "
        "the fields of its own row; for what has memory use mean(), count(), last(), ... with by="
    )


def _evaluated_dtype(expr: pl.Expr, schema: type[msgspec.Struct]) -> pl.DataType:
    empty = pl.DataFrame(schema=column_types(schema))
    try:
        dtype = empty.lazy().select(expr).collect_schema().dtypes()[0]
        _select(empty, expr)
    except Exception as error:  # whatever polars raises is about the expression
        used = ", ".join(f"`{name}` is {type_name(column_types(schema)[name])}" for name in fields_of(expr))
        raise DeclarationError(f"{show(expr)} does not work, polars says: {first_line(error)} ({used})") from error
    return dtype


class _Panic(Exception):
    """Polars panicked, which it does outside Exception."""


def _select(frame: pl.DataFrame, expr: pl.Expr) -> pl.Series:
    try:
        return frame.select(expr.alias("value")).to_series()
    except Exception:
        raise
    except BaseException as panic:
        if type(panic).__name__ == "PanicException":  # polars_core's, not an Exception; its module is private
            raise _Panic(first_line(panic)) from panic
        raise


def _probe(expr: pl.Expr, schema: type[msgspec.Struct]) -> None:
    """Compare what rows give alone and among others: polars takes `col - col.mean()` for separable."""
    frame = hostile_frame(schema)
    alone: dict[int, pl.Series] = {}
    failure: Exception | None = None
    for i in range(NASTY + TAME):
        try:
            alone[i] = _select(frame[i : i + 1], expr)
        except Exception as error:  # on this value, such as a strict cast: a dead letter in a stream
            failure = error
    if not alone:
        raise DeclarationError(f"{show(expr)} fails on every value tried: {first_line(failure)}") from failure
    for one in alone.values():
        if len(one) != 1:
            raise DeclarationError(_not_by_row(expr, f"it gives {len(one)} values for one row"))
    rows = list(alone)
    tame = [i for i in rows if i >= NASTY]  # among NaN and infinity, every mean is alike
    for among in (rows, rows[::-1], tame, rows[:-1], tame[:-1], []):
        want = pl.concat([alone[i] for i in among]) if among else alone[rows[0]][:0]
        try:
            got = _select(frame[np.array(among, np.int64)], expr)
        except Exception as error:
            raise DeclarationError(_not_by_row(expr, f"on many rows it fails: {first_line(error)}")) from error
        if len(got) != len(among):
            raise DeclarationError(_not_by_row(expr, f"it gives {len(got)} values for {len(among)} rows"))
        if not got.equals(want):
            raise DeclarationError(_not_by_row(expr, "a row among others gives another value than the same row alone"))


# --- the hostile frame

_TEXTS: list[Any] = ["JFK", "", "jfk", "JFK", "N123AB", "  ", "7", "-1.5", "ÅÄÖ 東京 🛫", "a" * 300, "null", "\x00\n"]
_TEXTS += ["2013-01-01T05:15:00Z", "2013-06-30", "zz-9"]
_FLOATS: list[Any] = [0.0, 1.5, -2.25, 1.5, math.nan, 1e-300, 1e300, -1e18, math.inf, -math.inf, -0.0, 1.3726368e9]
_FLOATS += [42.0, 1 / 3, 15.0]
_INTS: list[Any] = [0, 1, -1, 1, 7, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63), 42, 1372636800, 15, 60]
_BOOLS: list[Any] = [True, False, True, True, False]
_DAYS = ["1970-01-01T00:00", "2013-01-01T05:15", "2012-02-29T23:59", "1969-07-20T20:17", "2013-03-10T07:00"]
_MOMENTS: list[Any] = [datetime.fromisoformat(f"{day}+00:00") for day in [*_DAYS, _DAYS[1], "2100-12-31T23:00"]]


@lru_cache(maxsize=64)
def hostile_frame(schema: type[msgspec.Struct]) -> pl.DataFrame:
    """Rows that break what is not row by row; the same for equal schemas.

    NASTY rows with nulls, NaN, repeats, negative, huge, empty and unusual values, then TAME rows of ordinary ones.
    """
    rng = np.random.default_rng(2013)
    values: dict[pl.DataType, tuple[list[Any], list[Any]]] = {
        pl.String(): (_TEXTS, [f"{v:x}" for v in rng.integers(0, 10**6, TAME).tolist()]),
        pl.Float64(): (_FLOATS, (rng.standard_normal(TAME) * 100).round(2).tolist()),
        pl.Int64(): (_INTS, rng.integers(-1000, 1000, TAME).tolist()),
        pl.Boolean(): (_BOOLS, [True, False, False] * TAME),
        pl.Datetime("us", "UTC"): (_MOMENTS, [_at(s) for s in rng.integers(0, 2 * 10**9, TAME).tolist()]),
    }
    columns = {}
    for k, (name, dtype) in enumerate(column_types(schema).items()):
        nasty, tame = values[dtype]
        literals = list(literal_values(schema, name))
        if literals:
            nasty, tame = literals, literals * TAME
        stride = 1 + k % max(1, len(nasty) - 1)
        cells = [None if (i + k) % 9 == 4 else nasty[(i * stride + k) % len(nasty)] for i in range(NASTY)]
        turned = (tame * 2)[k % TAME :]  # or equal columns would hide what compares them
        columns[name] = pl.Series(name, cells + turned[:TAME], dtype)
    return pl.DataFrame(columns)


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
