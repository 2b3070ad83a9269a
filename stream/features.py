"""The features a pipeline computes from an event, as a user declares them.

What a public function here is given wrongly it keeps as a problem; `Pipeline` reports it with the place.
`sum`, `min` and `max` are features in this file: Python's own are `builtins.sum`, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from ..errors import DeclarationError
from .durations import format_duration, parse_duration
from .expressions import fields_of, plain_column, show

Kind = Literal["count", "sum", "mean", "std", "min", "max", "last", "seconds_since", "ewm"]
Value = str | pl.Expr

CAPACITY = 100_000  # keys an aggregate remembers unless told otherwise
NOTHING = pl.lit(None)  # stands where an expression was expected and something else came


@dataclass(frozen=True, eq=False, repr=False)
class Numeric:
    """One numeric column."""

    name: str
    value: pl.Expr
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"numeric({_arguments(self.name, [self.value])})"


@dataclass(frozen=True, eq=False, repr=False)
class Category:
    """One categorical column."""

    name: str
    value: pl.Expr
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"category({_arguments(self.name, [self.value])})"


@dataclass(frozen=True, eq=False, repr=False)
class Cross:
    """One categorical column made of several: each combination is a category of its own."""

    name: str
    parts: tuple[pl.Expr, ...]
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"cross({_arguments(self.name, self.parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class Aggregate:
    """One numeric column with memory: what the rows before, of the same key, leave behind.

    source "event": it moves with each event, after the event's features are taken; value is an expression over the
    event, None for count and seconds_since. source "label": it moves when a label arrives, and value is "label" or an
    expression over the label's record. over, half_life: microseconds. by: fields of the event. capacity: keys.
    """

    name: str
    kind: Kind
    source: Literal["event", "label"]
    value: pl.Expr | Literal["label"] | None
    by: tuple[str, ...]
    over: int | None
    half_life: int | None
    capacity: int
    problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        value = [] if self.value is None else ['"label"' if isinstance(self.value, str) else show(self.value)]
        names = [f'"{name}"' for name in self.by]
        by = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
        window = [
            f'{word}="{format_duration(length)}"'
            for word, length in (("over", self.over), ("half_life", self.half_life))
            if length
        ]
        return f"{self.kind}({', '.join([*value, f'by={by}', *window])})"


Feature = Numeric | Category | Cross | Aggregate


def numeric(value: Value, *, name: str | None = None) -> Numeric:
    """A number: a field, or an expression that gives a number or a Boolean (0 or 1) for each row.

    Null, NaN and infinite values are missing. name is the field's unless given; an expression needs one.
    """
    problems: list[str] = []
    expr = _expression(value, problems)
    return Numeric(_name(name, expr, problems), expr, tuple(problems))


def category(value: Value, *, name: str | None = None) -> Category:
    """A category: a field, or an expression that gives text, an integer, a Boolean or a float of few values.

    Null is missing. name is the field's unless given; an expression needs one.
    """
    problems: list[str] = []
    expr = _expression(value, problems)
    return Category(_name(name, expr, problems), expr, tuple(problems))


def cross(*values: Value, name: str | None = None) -> Cross:
    """A category for each combination of two or more categories; missing where any of them is.

    name is theirs joined by "_x_" unless given.
    """
    problems: list[str] = []
    parts = tuple(_expression(v, problems) for v in values)
    if len(parts) < 2:
        problems.append(f"expected two or more fields or expressions, got {len(parts)}")
    if name is None and len(parts) > 1 and not problems:
        names = [_own_name(part) for part in parts]
        name = None if None in names else "_x_".join(n for n in names if n)
    return Cross(_name(name, parts[0] if len(parts) == 1 else NOTHING, problems), parts, tuple(problems))


def count(
    *, by: str | Sequence[str] = (), over: str | None = None, half_life: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """How many events of the same key came before, over a window or weighted by a half-life."""
    return _aggregate("count", None, by, over, half_life, capacity, name)


def sum(
    value: Value, *, by: str | Sequence[str] = (), over: str | None = None, half_life: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """The sum of a value over the rows before of the same key; 0 where there is none."""
    return _aggregate("sum", value, by, over, half_life, capacity, name)


def mean(
    value: Value, *, by: str | Sequence[str] = (), over: str | None = None, half_life: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """The mean of a value over the rows before of the same key; missing where there is none."""
    return _aggregate("mean", value, by, over, half_life, capacity, name)


def std(
    value: Value, *, by: str | Sequence[str] = (), over: str | None = None, half_life: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """The standard deviation (of the population) over the rows before of the same key; missing below two."""
    return _aggregate("std", value, by, over, half_life, capacity, name)


def min(
    value: Value, *, by: str | Sequence[str] = (), over: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """The least value over a window of the rows before of the same key; missing where there is none."""
    return _aggregate("min", value, by, over, None, capacity, name)


def max(
    value: Value, *, by: str | Sequence[str] = (), over: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """The greatest value over a window of the rows before of the same key; missing where there is none."""
    return _aggregate("max", value, by, over, None, capacity, name)


def last(
    value: Value, *, by: str | Sequence[str] = (), over: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """The last value of the same key; missing where there is none, or when it is older than `over`."""
    return _aggregate("last", value, by, over, None, capacity, name)


def seconds_since(
    *, by: str | Sequence[str] = (), over: str | None = None, capacity: int = CAPACITY, name: str | None = None
) -> Aggregate:
    """Seconds since the last event of the same key; missing where there is none, or when it is longer than `over`."""
    return _aggregate("seconds_since", None, by, over, None, capacity, name)


def ewm(
    value: Value, *, by: str | Sequence[str] = (), half_life: str | None = None,
    capacity: int = CAPACITY, name: str | None = None,
) -> Aggregate:  # fmt: skip
    """The exponentially weighted mean of a value by key: a row's weight halves every half_life of event time."""
    return _aggregate("ewm", value, by, None, half_life, capacity, name)


def _aggregate(kind: Kind, value: Any, by: Any, over: Any, half_life: Any, capacity: Any, name: Any) -> Aggregate:
    problems: list[str] = []
    taken: pl.Expr | Literal["label"] | None = None
    if isinstance(value, str) and value == "label":
        taken = "label"
    elif value is not None or kind not in ("count", "seconds_since"):
        taken = _expression(value, problems)
    fields = _by(by, problems)
    windows = [(word, text) for word, text in (("over", over), ("half_life", half_life)) if text is not None]
    needs = {"min": "over", "max": "over", "ewm": "half_life", "last": "", "seconds_since": ""}.get(
        kind, "over or half_life"
    )
    if needs and not windows:
        problems.append(f'{kind}() needs {needs}, as in {needs.split()[0]}="1h"')
    if len(windows) > 1:
        problems.append(f"{kind}() takes over= or half_life=, not both")
    lengths = {word: _duration(word, text, problems) for word, text in windows}
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 0 < capacity < 2**30:
        problems.append(f"capacity: expected a number of keys, 1 or more, got {capacity!r}")
    if name is None and not problems:
        own = [] if taken is None else [taken if isinstance(taken, str) else _own_name(taken)]
        window = [
            ("half_life_" if word == "half_life" and kind != "ewm" else "") + text.strip() for word, text in windows
        ]
        if None not in own:
            name = "_".join([kind, *(n for n in own if n), "by", *fields, *window])
    return Aggregate(
        _name(name, NOTHING, problems), kind, "label" if isinstance(taken, str) else "event", taken, fields,
        lengths.get("over"), lengths.get("half_life"), capacity, tuple(problems),
    )  # fmt: skip


def _expression(value: Any, problems: list[str]) -> pl.Expr:
    if isinstance(value, pl.Expr):
        return value
    if isinstance(value, str) and value:
        return pl.col(value) if not value.startswith("^") and value != "*" else _not_a_field(value, problems)
    return _not_a_field(value, problems)


def _not_a_field(value: Any, problems: list[str]) -> pl.Expr:
    problems.append(f'expected the name of a field or a Polars expression such as pl.col("x") > 1, got {value!r}')
    return NOTHING


def _arguments(name: str, values: Sequence[pl.Expr]) -> str:
    """The arguments that a feature was declared with, in short."""
    shown = ", ".join(show(value) for value in values)
    own = "_x_".join(_own_name(value) or "" for value in values)
    return shown if name in ("", own) else f'{shown}, name="{name}"'


def _own_name(expr: pl.Expr) -> str | None:
    """The name an expression has by itself: of its column, or its alias."""
    plain = plain_column(expr)
    try:
        output = expr.meta.output_name()
    except pl.exceptions.PolarsError:
        return None
    return plain or (output if output not in fields_of(expr) and output != "literal" else None)


def _name(name: Any, expr: pl.Expr, problems: list[str]) -> str:
    if name is None and not problems:
        name = _own_name(expr)
        if name is None:
            problems.append('an expression needs a name: name="..."')
    if name is not None and (not isinstance(name, str) or not name.strip()):
        problems.append(f"name: expected text, got {name!r}")
    return name if isinstance(name, str) else ""


def _by(by: Any, problems: list[str]) -> tuple[str, ...]:
    fields = (by,) if isinstance(by, str) else tuple(by) if isinstance(by, list | tuple) else (by,)
    if not fields:
        problems.append('by= is missing: name one or several fields of the event, as in by="origin"')
    wrong = [f for f in fields if not isinstance(f, str)]
    if wrong:
        problems.append(f"by: expected names of fields, got {wrong[0]!r}")
        return ()
    for field in {f for f in fields if fields.count(f) > 1}:
        problems.append(f"by: `{field}` is named twice")
    return fields


def _duration(word: str, text: Any, problems: list[str]) -> int | None:
    try:
        return parse_duration(text, word)
    except DeclarationError as error:
        problems.append(str(error))
        return None
