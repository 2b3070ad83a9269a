"""The functions that declare features: names, windows, and what is said about wrong arguments."""

from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace import DeclarationError
from headrace.stream import features as f
from headrace.stream.durations import format_duration, parse_duration

HOUR = 3_600_000_000
col = pl.col


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        (f.numeric("dep_delay"), "dep_delay"),
        (f.numeric(col("dep_delay")), "dep_delay"),
        (f.numeric(col("distance").log1p(), name="log_distance"), "log_distance"),
        (f.numeric(col("distance").log1p().alias("log_distance")), "log_distance"),
        (f.category("tail"), "tail"),
        (f.cross("origin", "dest"), "origin_x_dest"),
        (f.cross("origin", "dest", "carrier", name="route"), "route"),
        (f.cross("origin", (col("dep_delay") // 5).alias("step")), "origin_x_step"),
        (f.mean("dep_delay", by="origin", over="1h"), "mean_dep_delay_by_origin_1h"),
        (f.mean("label", by="dest", over="6h"), "mean_label_by_dest_6h"),
        (f.mean("dep_delay", by="origin", half_life="1h"), "mean_dep_delay_by_origin_half_life_1h"),
        (
            f.sum((col("dep_delay") > 15).alias("late"), by=["origin", "dest"], over="24h"),
            "sum_late_by_origin_dest_24h",
        ),
        (f.count(by="origin", over="15m"), "count_by_origin_15m"),
        (f.std("x", by="k", over="7d"), "std_x_by_k_7d"),
        (f.min("x", by="k", over="7d"), "min_x_by_k_7d"),
        (f.max("x", by="k", over="7d"), "max_x_by_k_7d"),
        (f.last("x", by="k"), "last_x_by_k"),
        (f.last("x", by="k", over="1h"), "last_x_by_k_1h"),
        (f.seconds_since(by="tail"), "seconds_since_by_tail"),
        (f.ewm("x", by="k", half_life="30m"), "ewm_x_by_k_30m"),
    ],
    ids=lambda value: str(value),
)
def test_feature_is_named_after_what_it_is_made_of(feature: f.Feature, name: str) -> None:
    assert feature.problems == ()
    assert feature.name == name


def test_aggregate_holds_its_windows_in_microseconds() -> None:
    mean = f.mean("dep_delay", by="origin", over="1h", capacity=10)
    assert (mean.kind, mean.source, mean.by, mean.capacity) == ("mean", "event", ("origin",), 10)
    assert (mean.over, mean.half_life) == (HOUR, None)
    assert f.ewm("x", by=["a", "b"], half_life="90s").half_life == 90_000_000
    assert f.mean("label", by="dest", over="6h").source == "label"
    assert f.count(by="origin", over="1h").value is None


@pytest.mark.parametrize(
    "feature",
    [
        'numeric("dep_delay")',
        'numeric(col("distance").log1p(), name="log")',
        'category("tail", name="plane")',
        'cross("origin", "dest")',
        'mean("label", by="dest", over="6h")',
        'mean("dep_delay", by=["origin", "dest"], half_life="1d")',
        'count(by="origin", over="15m")',
        'last("x", by="k")',
    ],
)
def test_feature_is_shown_as_it_was_written(feature: str) -> None:
    assert repr(eval(feature, {**vars(f), "col": col})) == feature


MISTAKES: list[tuple[Any, str]] = [
    (lambda: f.numeric(5), "expected the name of a field or a Polars expression such as"),  # type: ignore[arg-type]
    (lambda: f.numeric(""), "got ''"),
    (lambda: f.numeric("*"), "got '*'"),
    (lambda: f.numeric("^dep.*$"), "got '^dep.*$'"),
    (lambda: f.numeric(None), "got None"),  # type: ignore[arg-type]
    (lambda: f.numeric(col("a") * 2), "an expression needs a name"),
    (lambda: f.numeric(pl.lit(1)), "an expression needs a name"),
    (lambda: f.numeric("a", name=""), "name: expected text"),
    (lambda: f.numeric("a", name=7), "name: expected text, got 7"),  # type: ignore[arg-type]
    (lambda: f.category(lambda row: row["a"]), "expected the name of a field"),  # type: ignore[arg-type]
    (lambda: f.cross("a"), "expected two or more fields or expressions, got 1"),
    (lambda: f.cross(), "got 0"),
    (lambda: f.cross("a", col("b") + 1), "an expression needs a name"),
    (lambda: f.cross("a", ["b"]), "got ['b']"),  # type: ignore[arg-type]
    (lambda: f.mean("a", by="k"), "mean() needs over or half_life"),
    (lambda: f.mean("a", by="k", over="1h", half_life="1h"), "over= or half_life=, not both"),
    (lambda: f.mean(None, by="k", over="1h"), "expected the name of a field"),  # type: ignore[arg-type]
    (lambda: f.mean(col("a") > 1, by="k", over="1h"), "an expression needs a name"),
    (lambda: f.std("a", by="k"), "std() needs over or half_life"),
    (lambda: f.count(by="k"), "count() needs over or half_life"),
    (lambda: f.min("a", by="k"), "min() needs over"),
    (lambda: f.ewm("a", by="k"), "ewm() needs half_life"),
    (lambda: f.mean("a", over="1h"), "by= is missing"),
    (lambda: f.mean("a", by=[], over="1h"), "by= is missing"),
    (lambda: f.mean("a", by=["k", "k"], over="1h"), "by: `k` is named twice"),
    (lambda: f.mean("a", by=col("k"), over="1h"), "by: expected names of fields"),  # type: ignore[arg-type]
    (lambda: f.mean("a", by=["k", 3], over="1h"), "by: expected names of fields, got 3"),  # type: ignore[list-item]
    (lambda: f.mean("a", by="k", over="1 hour"), "over: expected a duration"),
    (lambda: f.mean("a", by="k", over=3600), "got 3600"),  # type: ignore[arg-type]
    (lambda: f.mean("a", by="k", half_life="-1h"), "half_life: expected a duration"),
    (lambda: f.mean("a", by="k", over="1h", capacity=0), "capacity: expected a number of keys, 1 or more, got 0"),
    (lambda: f.mean("a", by="k", over="1h", capacity=True), "got True"),
    (lambda: f.mean("a", by="k", over="1h", capacity=1e5), "got 100000.0"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("declare", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_mistake_is_kept_for_the_pipeline_to_report(declare: Any, words: str) -> None:
    feature = declare()
    assert any(words in problem for problem in feature.problems), feature.problems
    assert repr(feature)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("90s", 90_000_000), ("15m", 900_000_000), ("1h", HOUR), ("7d", 168 * HOUR), ("100ms", 100_000), ("5us", 5),
        ("2w", 336 * HOUR), ("1.5h", HOUR * 3 // 2), (" 1h ", HOUR),
    ],
)  # fmt: skip
def test_duration_is_read_as_microseconds(text: str, microseconds: int) -> None:
    assert parse_duration(text) == microseconds


@pytest.mark.parametrize(
    "text", ["", "1", "h", "1 day", "-1h", "0s", "1h30m", "1e3s", "nan", "infs", 60, None, 1.5, b"1h"]
)
def test_text_that_is_no_duration_is_refused_with_examples(text: Any) -> None:
    with pytest.raises(DeclarationError, match="expected a duration above zero such as '90s', '15m', '1h'"):
        parse_duration(text)


@given(st.integers(1, 2**53))
@example(1)
@example(86_400_000_000)
def test_duration_survives_being_written_and_read(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds)) == microseconds


@given(st.integers(1, 10_000), st.sampled_from(["us", "ms", "s", "m", "h", "d"]))
def test_written_duration_is_never_longer_than_the_declared_one(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    assert len(format_duration(parse_duration(text))) <= len(text)


@given(st.text())
def test_any_text_is_a_duration_or_a_declaration_error(text: str) -> None:
    try:
        length = parse_duration(text)
    except DeclarationError:
        return
    assert length > 0
