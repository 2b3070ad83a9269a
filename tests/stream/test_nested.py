"""Nested Structs and lists of fixed length are columns: `user.age`, `vector.0`, wherever a field is named."""

import re
from datetime import datetime
from typing import Annotated, Literal

import msgspec
import numpy as np
import polars as pl
import pytest

from headrace import (
    DeclarationError,
    Events,
    InputError,
    Labels,
    Pipeline,
    Predictions,
    category,
    count,
    cross,
    mean,
    numeric,
)
from headrace.models import FTRL, LogisticRegression
from headrace.stream.decode import Decoder
from headrace.stream.evaluate import evaluate_files
from headrace.stream.expressions import column_types, optional_fields
from headrace.stream.frames import rows_of
from headrace.stream.leaves import DEEPEST, dotted, leaves
from headrace.stream.reader import _RowDecoder
from headrace.stream.slices import Record, Slice

T0 = 1_700_000_000
Three = Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]


class Home(msgspec.Struct, rename="camel"):
    country_code: str
    floor: int | None = None


class User(msgspec.Struct):
    id: int
    age: float | None
    home: Home | None = None
    kind: Literal["old", "new"] = "new"


class Visit(msgspec.Struct):
    id: str
    when: tuple[float, int]
    user: User | None
    vector: Three
    pair: tuple[Home, bool] | None = None
    bought: bool = False


class Flat(msgspec.Struct):
    """The same, without nesting."""

    id: str
    when: float
    user: int | None
    age: float | None
    country: str | None
    floor: int | None
    x: float
    y: float
    paired: bool | None
    bought: bool


VISITS = [
    Visit("a", (T0, 1), User(7, 30.5, Home("SE", 2)), [0.5, 1, 2], (Home("NO"), True), True),
    Visit("b", (T0 + 1, 1), User(7, None), [0.5, -1, 2]),
    Visit("c", (T0 + 2, 1), None, [1.5, 1, 2], (Home("DK", 1), False)),
    Visit("d", (T0 + 3, 1), User(-(2**63), 3.0, Home("", None), "old"), [0, 0, 0], None, True),
]


def flat(v: Visit) -> Flat:
    home = v.user.home if v.user else None
    return Flat(
        v.id, v.when[0], v.user.id if v.user else None, v.user.age if v.user else None,
        home.country_code if home else None, home.floor if home else None, v.vector[0], v.vector[1],
        v.pair[1] if v.pair else None, v.bought,
    )  # fmt: skip


def pipeline(**changes) -> Pipeline:
    declared = dict(
        name="nested",
        events=Events("visits", Visit, key="id", time="when.0", unit="s"),
        labels=Labels(value="bought"),
        features=[
            numeric("user.age", name="age"), numeric(pl.col("vector.0") + pl.col("vector.1"), name="sum"),
            category("user.home.country_code", name="country"), category("pair.1", name="paired"),
            cross("user.id", pl.col("user.home.country_code").str.to_lowercase(), name="both"),
            count(by="user.id", over="1h", name="visits"), mean("user.home.floor", by="user.home.country_code", over="1h", name="floors"),
        ],
        model=LogisticRegression(FTRL()),
        predictions=Predictions("scores"),
    )  # fmt: skip
    return Pipeline(**(declared | changes))


FLAT = Pipeline(
    name="flat",
    events=Events("visits", Flat, key="id", time="when", unit="s"),
    labels=Labels(value="bought"),
    features=[
        numeric("age"), numeric(pl.col("x") + pl.col("y"), name="sum"),
        category("country"), category("paired"), cross("user", pl.col("country").str.to_lowercase(), name="both"),
        count(by="user", over="1h", name="visits"), mean("floor", by="country", over="1h", name="floors"),
    ],
    model=LogisticRegression(FTRL()),
    predictions=Predictions("scores"),
)  # fmt: skip


def batch(declared: Pipeline, values: list[bytes], fast: bool = True):
    records = [Record(i, T0 * 1000, None, value) for i, value in enumerate(values)]
    return Decoder(declared, "events", fast=fast).decode(Slice("events", 0, 0, len(values), records))


# --- columns


def test_columns_are_named_with_dots_and_have_the_types_of_the_plain_fields():
    moment = pl.Datetime("us", "UTC")

    class Deep(msgspec.Struct):
        at: tuple[datetime, tuple[Home, int]]

    assert column_types(Deep) == {
        "at.0": moment, "at.1.0.country_code": pl.String, "at.1.0.floor": pl.Int64, "at.1.1": pl.Int64
    }  # fmt: skip
    assert list(column_types(Visit))[:6] == ["id", "when.0", "when.1", "user.id", "user.age", "user.home.country_code"]
    assert leaves(Deep)["at.1.0.country_code"].path == "$.at[1][0].countryCode"


def test_what_lies_in_something_that_may_be_none_may_be_none():
    optional = optional_fields(Visit)
    assert {"user.id", "user.home.country_code", "pair.1", "pair.0.floor"} <= optional
    assert not {"id", "when.0", "vector.2"} & optional


@pytest.mark.parametrize("fast", [True, False])
def test_batches_are_those_of_the_same_events_without_nesting(fast):
    nested = batch(pipeline(), [msgspec.json.encode(v) for v in VISITS], fast)
    plain = batch(FLAT, [msgspec.json.encode(flat(v)) for v in VISITS], fast)
    assert len(nested) == 4 and not nested.dead
    for name in ("time", "key_hash", "numeric", "values", "y"):
        np.testing.assert_array_equal(getattr(nested, name), getattr(plain, name), name)
    for name in ("categories", "groups"):  # hashes hold the names, which differ
        assert ((getattr(nested, name) == 0) == (getattr(plain, name) == 0)).all(), name
    assert np.isnan(nested.numeric[1:3, 0]).all(), "null, and in what is null"


@pytest.mark.parametrize("fast", [True, False])
def test_keys_may_be_nested(fast):
    class Order(msgspec.Struct):
        meta: tuple[Home, int]

    for key, want in (("meta.0.country_code", ['"SE"', '"N\\"O"']), ("meta.1", ["7", "8"])):
        declared = pipeline(
            events=Events("orders", Order, key=key), labels=None, features=[numeric("meta.1", name="n")]
        )
        got = batch(declared, [b'{"meta":[{"countryCode":"SE"},7]}', b'{"meta":[{"countryCode":"N\\"O"},8]}'], fast)
        assert [k.decode() for k in got.keys] == want
        assert got.key_hash.all()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("value", "reason", "path"),
    [
        (b'{"id":"a","when":[1,1],"user":{"id":1,"age":"x"},"vector":[1,2,3]}', "Expected `float | null`, got `str`", "$.user.age"),
        (b'{"id":"a","when":[1,1],"user":{"age":null},"vector":[1,2,3]}', "Object missing required field `id`", "$.user"),
        (b'{"id":"a","when":[1,1],"user":null,"vector":[1,2,3,4]}', "Expected `array` of length <= 3", "$.vector"),
        (b'{"id":"a","when":[1,1],"user":null,"vector":[1,2]}', "Expected `array` of length >= 3", "$.vector"),
        (b'{"id":"a","when":[1,"1"],"user":null,"vector":[1,2,3]}', "Expected `int`, got `str`", "$.when[1]"),
        (b'{"id":"a","when":[1,1],"user":{"id":9223372036854775808,"age":null},"vector":[1,2,3]}', "expected `int` of 64 bits, got one of 64 bits", "$.user.id"),
        (b'{"id":"a","when":[1e30,1],"user":null,"vector":[1,2,3]}', "time 1e+30 is not in the years 1 to 9999; check `unit`", "$.when[0]"),
        (b'{"id":"a","when":[1,1],"user":{"id":1,"age":1,"kind":"odd"},"vector":[1,2,3]}', "Invalid enum value 'odd'", "$.user.kind"),
        (b'{"id":"a","when":[1,1],"user":{"id":1,"age":1,"home":{"countryCode":1}},"vector":[1,2,3]}', "Expected `str`, got `int`", "$.user.home.countryCode"),
    ],
)  # fmt: skip
def test_dead_letters_name_the_place(value, reason, path, fast):
    (letter,) = batch(pipeline(), [value], fast).dead
    assert (letter.reason, letter.path) == (reason, path)


# --- files and frames


def apart_of(values: list[Visit]) -> pl.DataFrame:
    """A frame with a column for each plain field."""
    return pl.DataFrame(
        {dotted(leaf.encoded): [leaf.of(v) for v in values] for leaf in leaves(Visit).values()}, strict=False
    )


def test_frames_may_be_nested_or_have_a_column_for_each_plain_field():
    rows = [msgspec.to_builtins(v) for v in VISITS]
    mixed = ("when", "pair")  # of several types, which no list of Polars holds
    series = [pl.Series(n, [row[n] for row in rows], pl.Object if n in mixed else None) for n in rows[0]]
    frame = pl.DataFrame([*series, pl.Series("x", [1] * 4)])
    assert [msgspec.convert(row, Visit) for row in rows_of(frame, Visit)] == VISITS
    apart = apart_of(VISITS)
    assert "user.home.countryCode" in apart.columns
    got = [msgspec.convert(row, Visit) for row in rows_of(apart, Visit)]
    assert got[:3] == VISITS[:3]
    assert got[3].user == VISITS[3].user


def test_evaluation_reads_nested_files_of_every_kind(tmp_path):
    declared = pipeline(events=Events("visits", Visit, key="id", time="when.0", unit="s"))
    values = [msgspec.structs.replace(VISITS[i % 4], id=f"v{i}", when=(T0 + i, i)) for i in range(40)]
    (tmp_path / "v.ndjson").write_bytes(b"\n".join(map(msgspec.json.encode, values)))
    whole = pl.read_ndjson(tmp_path / "v.ndjson").drop("pair")
    whole.write_parquet(tmp_path / "v.parquet")
    apart_of(values).select(pl.exclude("^pair.*$")).write_csv(tmp_path / "v.csv")
    without_pair = pipeline(features=[f for f in declared.features if f.name != "paired"])
    losses = {
        suffix: evaluate_files(without_pair, tmp_path / f"v.{suffix}", None).results
        for suffix in ("ndjson", "parquet", "csv")
    }
    assert losses["ndjson"]["events"] == 40 and losses["ndjson"]["dead_letters"] == 0
    assert losses["parquet"]["log_loss"] == losses["ndjson"]["log_loss"]
    assert losses["csv"]["events"] == 40 and losses["csv"]["dead_letters"] == 0


def test_a_frame_without_a_nested_field_is_refused_by_its_name():
    frame = pl.DataFrame({"id": ["a"], "when.0": [1.0], "when.1": [1], "user.id": [1]})
    with pytest.raises(InputError, match="no column `vector`, which Visit requires"):
        pipeline().evaluate(frame)


# --- declarations


def bad(schema, **changes) -> str:
    with pytest.raises(DeclarationError) as error:
        pipeline(events=Events("visits", schema, key="id"), labels=None, features=[numeric("user.age")], **changes)
    return str(error.value)


def test_a_typo_in_a_nested_name_is_told_with_the_nearest_name():
    for feature in (numeric("user.aeg"), category(pl.col("user.aeg") > 1, name="x"), count(by="user.aeg", over="1h")):
        with pytest.raises(DeclarationError, match=r"Visit has no field `user.aeg`; did you mean `user.age`\?"):
            pipeline(features=[feature])
    with pytest.raises(DeclarationError, match=r"events.time: Visit has no field `when`"):
        pipeline(events=Events("visits", Visit, key="id", time="when", unit="s"))
    with pytest.raises(DeclarationError, match=r"events.key: `user.id` may be None"):
        pipeline(events=Events("visits", Visit, key="user.id", time="when.0", unit="s"))


def test_what_cannot_become_columns_is_named_with_its_place():
    class Tags(msgspec.Struct):
        tags: list[str]
        other: tuple[int, bytes]

    class Tagged(msgspec.Struct):
        id: str
        user: Tags

    told = bad(Tagged)
    assert "Tagged: `user.tags` is list[str], `user.other.1` is one of tuple[int, bytes]" in told
    assert "lists of fixed length, as in tuple[float, float]" in told


def test_a_struct_that_holds_its_own_kind_is_refused():
    assert f"lies more than {DEEPEST} deep" in bad(Chain)


def test_a_column_for_every_value_has_a_bound():
    class Wide(msgspec.Struct):
        id: str
        vector: Annotated[list[float], msgspec.Meta(min_length=10**9, max_length=10**9)]

    assert "Wide has 1,002 plain fields, at most 1,000 can be columns" in bad(Wide)


class Chain(msgspec.Struct):
    id: str
    more: "Chain | None" = None


def test_an_empty_struct_and_two_fields_of_one_column_are_refused():
    class Nothing(msgspec.Struct):
        pass

    class Holds(msgspec.Struct):
        id: str
        none: Nothing

    assert "`none` has no fields" in bad(Holds)
    twice = msgspec.defstruct("Twice", [("id", str), ("a", tuple[int]), ("b", int)])
    assert list(column_types(twice)) == ["id", "a.0", "b"]


# --- rows of a reader


def test_rows_to_predict_may_be_dicts_structs_and_frames_however_their_values_are_held():
    rows = _RowDecoder(pipeline())
    dicts = [msgspec.to_builtins(v) for v in VISITS]
    by_numpy = [row | {"vector": np.array(row["vector"]), "when": (np.float64(row["when"][0]), 1)} for row in dicts]
    want = rows.batch(0, [rows.convert(i, row) for i, row in enumerate(VISITS)], T0 * 1000)
    assert len(want) == 4
    for given in (dicts, by_numpy, apart_of(VISITS[:3])):
        got = rows.batch(0, [rows.convert(i, row) for i, row in enumerate(rows.each(given))], T0 * 1000)
        for name in ("numeric", "categories", "groups", "time"):
            expected = getattr(want, name)[: len(got)]
            np.testing.assert_array_equal(getattr(got, name), expected, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": {"id": 1}}, "row 3, field `user.age`: missing, and Visit requires it"),
        ({"user": {"id": "x", "age": None}}, "row 3, field `user.id`: expected `int`, got `str`"),
        ({"vector": [1.0]}, "row 3, field `vector`: expected `array` of length >= 3"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_place(change, message):
    rows = _RowDecoder(pipeline())
    with pytest.raises(InputError, match=re.escape(message)):
        rows.convert(3, msgspec.to_builtins(VISITS[1]) | change)


def test_what_no_feature_reads_may_be_left_out_of_a_row_and_half_a_surrogate_is_named():
    rows = _RowDecoder(pipeline(features=[category("user.home.country_code", name="c")], labels=None))
    row = {"user": {"id": 1, "age": None, "home": {"countryCode": "SE"}}, "when": [T0, 1]}
    assert len(rows.batch(0, [rows.convert(0, row)], T0 * 1000)) == 1
    row["user"]["home"]["countryCode"] = "\ud800"
    with pytest.raises(InputError, match=r"field `user.home.country_code`: expected text"):
        rows.batch(0, [rows.convert(0, row)], T0 * 1000)
