"""Which Polars expressions may stand in a declaration."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import polars as pl
import pytest

from headrace import DeclarationError
from headrace.stream.expressions import (
    check_expression,
    column_types,
    did_you_mean,
    hostile_frame,
    literal_values,
    optional_fields,
    plain_column,
    show,
)

col = pl.col


class Everything(msgspec.Struct):
    text: str
    maybe: str | None
    whole: int
    number: float
    other: float | None
    flag: bool
    at: datetime
    kind: Literal["a", "b"] | None = None
    level: Literal[1, 2] = 1
    positive: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    renamed: int = msgspec.field(default=0, name="longName")


def test_columns_of_a_schema_have_the_types_of_its_fields() -> None:
    moment = pl.Datetime("us", "UTC")
    assert column_types(Everything) == {
        "text": pl.String, "maybe": pl.String, "whole": pl.Int64, "number": pl.Float64, "other": pl.Float64,
        "flag": pl.Boolean, "at": moment, "kind": pl.String, "level": pl.Int64, "positive": pl.Float64,
        "renamed": pl.Int64,
    }  # fmt: skip
    assert optional_fields(Everything) == {"maybe", "other", "kind"}
    assert literal_values(Everything, "kind") == ("a", "b")
    assert literal_values(Everything, "text") == ()


def test_hostile_frame_has_every_column_and_nulls_repeats_and_values_of_literals() -> None:
    frame = hostile_frame(Everything)
    assert dict(frame.schema) == column_types(Everything)
    assert all(count > 0 for count in frame.null_count().row(0))
    assert frame["number"].is_nan().any()
    assert frame["number"].is_infinite().any()
    assert set(frame["kind"]) == {"a", "b", None}
    assert frame["text"].n_unique() < len(frame)


ACCEPTED: list[tuple[pl.Expr, Any]] = [
    (col("number"), pl.Float64),
    (col("number") > 15, pl.Boolean),
    (col("number").log1p().clip(-1, 1), pl.Float64),
    (col("number") // 5, pl.Float64),
    (col("other").fill_null(0).fill_nan(1.0), pl.Float64),
    (col("number").cast(pl.Int64), pl.Int64),  # fails on NaN: a dead letter in a stream
    (col("whole") * col("level") % 7, pl.Int64),
    (col("text").str.to_lowercase().str.slice(0, 2), pl.String),
    (col("text").str.to_integer(), pl.Int64),
    (col("text").str.to_integer(strict=False), pl.Int64),
    (col("text").str.strptime(pl.Date, "%Y/%m/%d"), pl.Date),  # fails on all but null
    (col("text").cast(pl.Categorical), pl.Categorical),
    (col("kind").replace_strict({"a": 1, "b": 2}), pl.Int64),
    (col("kind").is_in(["a"]), pl.Boolean),
    (pl.when(col("flag")).then(col("number")).otherwise(-1), pl.Float64),
    (pl.concat_str("text", "maybe", separator="/"), pl.String),
    (pl.max_horizontal("number", "other"), pl.Float64),
    (pl.coalesce("other", "number"), pl.Float64),
    (pl.from_epoch("number", "s").dt.hour(), pl.Int8),
    (col("at").dt.convert_time_zone("America/New_York").dt.weekday(), pl.Int8),
    (col("text").hash(7), pl.UInt64),
    (col("number").sin().alias("sine"), pl.Float64),
]


@pytest.mark.parametrize(("expr", "dtype"), ACCEPTED, ids=lambda value: str(value))
def test_expression_row_by_row_is_accepted_with_its_type(expr: pl.Expr, dtype: Any) -> None:
    assert check_expression(expr, Everything) == dtype


def python(value: Any) -> Any:
    return value


NOT_BY_ROW = [
    col("number") - col("number").mean(),
    col("number") > col("number").mean(),
    col("number") * pl.len(),
    col("number") / col("other").max(),
    col("number").clip(0, col("other").median()),
    col("number").shift(),
    col("number").diff(),
    col("number").cum_sum(),
    col("number").rank(),
    col("number").sort(),
    col("number").reverse(),
    col("number").over("text"),
    col("number").rolling_mean(3),
    col("number").fill_null(strategy="forward"),
    col("other").interpolate(),
    col("number").max(),
    col("number").ewm_mean(com=1),
    col("number").sample(1),
    col("number").shuffle(),
    col("text").is_first_distinct(),
    col("text").n_unique() + col("whole"),
    col("text").str.split("-").explode(),
    col("number").filter(col("flag")),
    col("number").drop_nulls(),
    pl.when(col("flag").any()).then(col("number")),
]


@pytest.mark.parametrize("expr", NOT_BY_ROW, ids=str)
def test_expression_that_looks_at_other_rows_is_refused(expr: pl.Expr) -> None:
    with pytest.raises(DeclarationError, match="is not row by row"):
        check_expression(expr, Everything)


REFUSED = [
    (col("nubmer") + 1, "Everything has no field `nubmer`; did you mean `number`?"),
    (col("nubmer") + col("tetx"), "`tetx`; did you mean `text`?"),
    (col("zzzzzz"), "has no field `zzzzzz`; it has `text`, `maybe`"),
    (col("number").str.len_chars(), "polars says: "),
    (col("text") > 15, "polars says: cannot compare string with numeric type"),
    (col("text").log1p(), "`text` is str"),
    (col("number").map_elements(python, return_dtype=pl.Float64), "calls Python"),
    (col("number").map_batches(python), "calls Python"),
    (pl.all(), "reads several columns"),
    (col("number", "other"), "reads several columns"),
    (col("^n.*$"), "reads several columns"),
    (pl.lit(1), "reads no field"),
    (pl.len(), "reads no field"),
]


@pytest.mark.parametrize(("expr", "words"), REFUSED, ids=lambda value: str(value)[:40])
@pytest.mark.filterwarnings("ignore::polars.exceptions.PolarsInefficientMapWarning")
def test_expression_that_cannot_work_is_refused_with_the_reason(expr: pl.Expr, words: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        check_expression(expr, Everything)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (col("number"), '"number"'),
        (col("number") > 15, 'col("number") > 15'),
        ((col("number") // 5).clip(0, 9).alias("steps"), '(col("number") // 5).clip([0, 9])'),
        ((col("number") - col("other")) * (col("whole") + 1), '(col("number") - col("other")) * (col("whole") + 1)'),
        (col("text").str.to_lowercase() == "x", 'col("text").str.to_lowercase() == "x"'),
        (col("number") + -1.5, 'col("number") + -1.5'),
    ],
    ids=str,
)
def test_expression_is_shown_as_it_might_be_written(expr: pl.Expr, text: str) -> None:
    assert show(expr) == text


def test_long_expression_is_cut() -> None:
    assert len(show(pl.sum_horizontal(*[col("number")] * 100))) == 120


def test_plain_column_is_nothing_but_a_column() -> None:
    assert plain_column(col("number")) == "number"
    assert plain_column(col("number") + 1) is None
    assert plain_column(col("number").alias("x")) is None


def test_did_you_mean_keeps_silent_when_nothing_is_close() -> None:
    assert did_you_mean("dep_dealy", ["dep_delay", "carrier"]) == "; did you mean `dep_delay`?"
    assert did_you_mean("zzz", ["dep_delay"]) == ""
