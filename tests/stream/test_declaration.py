"""What a declaration comes to, and what is said about each mistake in one."""

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import msgspec
import polars as pl
import pytest

from headrace import (
    DeclarationError,
    Events,
    Labels,
    Pipeline,
    Predictions,
    Snapshots,
    category,
    count,
    cross,
    ewm,
    last,
    mean,
    numeric,
    seconds_since,
)
from headrace import max as max_of
from headrace import min as min_of
from headrace import sum as sum_of
from headrace.models import FTRL, LinearRegression, LogisticRegression, SoftmaxRegression, Spec, StandardScaler
from headrace.models.base import Rows, Truth
from headrace.stream.check import report


class Departure(msgspec.Struct):
    flight: str  # unique: date, carrier, number, origin
    time: float  # seconds since the epoch
    carrier: str
    origin: str
    dest: str
    tail: str | None
    distance: float  # miles
    dep_delay: float  # minutes


class Arrival(msgspec.Struct):
    flight: str
    time: float
    origin: str
    dest: str
    arr_delay: float


class Click(msgspec.Struct, rename="camel"):
    user_id: int
    at: datetime
    page: Literal["home", "cart", "other"]
    price: float | None
    mobile: bool
    label: bool
    n: int = 0


class Landed(msgspec.Struct):
    flight: str
    time: float
    state: Literal["on"]


class ManyClasses:
    """A learner that fits every task."""

    updates = "sequential"
    batch_size = 1

    def layout(self, spec: Spec) -> dict[str, Any]:
        return {}

    def learn(self, x: Rows, truth: Truth) -> None: ...


def departures(**changes: Any) -> Events:
    return dataclasses.replace(Events("departures", Departure, key="flight", time="time", unit="s"), **changes)


def arrivals(**changes: Any) -> Labels:
    declared = Labels(
        "arrivals", Arrival, key="flight", time="time", unit="s", value=pl.col("arr_delay") > 15, within="24h"
    )
    return dataclasses.replace(declared, **changes)


def pipeline(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "flights",
        "events": departures(),
        "labels": arrivals(),
        "features": [numeric("dep_delay")],
        "model": ManyClasses(),
        "predictions": Predictions("late"),
    }
    return Pipeline(**declared | changes)


def clicks(**changes: Any) -> Pipeline:
    """A pipeline whose label is in the event."""
    declared: dict[str, Any] = {
        "events": Events("clicks", Click, key="user_id", time="at"),
        "labels": Labels(value=pl.col("price") > 10),
        "features": [category("page")],
    }
    return pipeline(**declared | changes)


def test_example_of_the_design_is_accepted() -> None:
    declared = Pipeline(
        name="flights",
        events=Events("flights.departures", Departure, key="flight", time="time", unit="s"),
        labels=Labels("flights.arrivals", Arrival, key="flight", time="time", unit="s",
                      value=pl.col("arr_delay") > 15, within="24h", otherwise=None),
        features=[
            numeric("dep_delay"), numeric(pl.col("distance").log1p(), name="log_distance"),
            category("carrier"), category("tail"), cross("origin", "dest"),
            mean("dep_delay", by="origin", over="1h"), count(by="origin", over="15m"),
            mean("label", by="dest", over="6h"),
        ],
        model=StandardScaler(half_life="30d") | LogisticRegression(FTRL(alpha=0.1, l1=1.0, half_life="30d")),
        predictions=Predictions("flights.late"),
        snapshots=Snapshots(every="5s", keep=10),
    )  # fmt: skip
    assert declared.numeric == (
        "dep_delay", "log_distance", "mean_dep_delay_by_origin_1h", "count_by_origin_15m", "mean_label_by_dest_6h",
    )  # fmt: skip
    assert declared.categories == ("carrier", "tail", "origin_x_dest")
    assert (declared.task, declared.classes) == ("binary", ())
    assert declared.spec == Spec(declared.numeric, declared.categories, "binary", 1)
    assert declared.predictions.dead_letters == "flights.late.dead-letters"
    assert (declared.journal_topic, declared.group) == ("flights.journal", "headrace.flights")
    assert declared.labels is not None
    assert (declared.labels.within_us, declared.labels.alignment_us) == (86_400_000_000, 900_000_000)
    assert (declared.events.ahead_us, declared.snapshots.every_us, declared.latency_us) == (
        3_600_000_000,
        5_000_000,
        10_000,
    )


def test_what_becomes_of_a_broken_model_is_declared_and_does_not_shape_its_state() -> None:
    model = LogisticRegression()
    stops, goes_back = pipeline(model=model), pipeline(model=model, snapshots=Snapshots(on_nan="rollback"))
    assert (stops.snapshots.on_nan, goes_back.snapshots.on_nan) == ("stop", "rollback")
    assert stops.fingerprint == goes_back.fingerprint
    told = [dict(report(declared)["writes"])["NaN"] for declared in (stops, goes_back)]
    assert "stops the worker" in told[0] and "rolled back to the newest snapshot" in told[1]


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (None, None, ()),
        (Labels(value="label"), "binary", ()),
        (Labels(value=pl.col("price") > 10), "binary", ()),
        (Labels(value="price"), "regression", ()),
        (Labels(value=pl.col("price").cast(pl.Float32)), "regression", ()),
        (Labels(value="n", task="regression"), "regression", ()),
        (Labels(value="n", task="binary"), "binary", ()),
        (Labels(value=pl.col("page").str.slice(0, 1), classes=["h", "c", "o"]), "multiclass", ("h", "c", "o")),
    ],
    ids=repr,
)
def test_task_follows_from_the_type_of_the_label(labels: Any, task: Any, classes: Any) -> None:
    declared = clicks(labels=labels, features=[category("user_id")])
    assert (declared.task, declared.classes) == (task, classes)
    assert declared.spec.outputs == max(1, len(classes))


def test_classes_of_a_literal_field_need_not_be_named() -> None:
    declared = clicks(labels=Labels(value="page"), features=[numeric("n")])
    assert declared.classes == ("home", "cart", "other")


def test_pipeline_without_labels_predicts_with_whatever_task_its_model_has() -> None:
    assert pipeline(labels=None, model=LogisticRegression()).spec.task == "binary"
    assert pipeline(labels=None, model=LinearRegression()).spec.task == "regression"
    assert pipeline(labels=None, model=LinearRegression()).task is None


def test_aggregate_moves_with_the_record_that_holds_its_fields() -> None:
    declared = pipeline(
        features=[
            mean("dep_delay", by="origin", over="1h"),
            mean("arr_delay", by="origin", over="1h"),
            mean("label", by=["origin", "dest"], half_life="1d"),
            last(pl.col("arr_delay") - pl.col("dest").str.len_chars(), by="tail", name="odd"),
            seconds_since(by="tail"),
        ]
    )
    sources = [f.source for f in declared.features]  # type: ignore[union-attr]
    assert sources == ["event", "label", "label", "label", "event"]


def test_field_called_label_is_a_field_like_others() -> None:
    assert clicks(features=[numeric("label"), mean(pl.col("label"), by="page", over="1h")]).numeric[0] == "label"


def test_label_that_is_the_field_called_label_is_not_ambiguous() -> None:
    assert clicks(labels=Labels(value="label"), features=[mean("label", by="page", over="1h")]).task == "binary"


def test_fields_are_called_by_their_attribute_not_by_their_name_in_json() -> None:
    assert clicks(features=[category("user_id")]).categories == ("user_id",)
    with pytest.raises(DeclarationError, match="did you mean `user_id`"):
        clicks(features=[category("userId")])


def test_description_is_json_and_its_fingerprint_tells_pipelines_apart() -> None:
    short = [category("page", name="p"), numeric(pl.col("n").is_in(list(range(100))), name="few")]
    other = [category("page", name="p"), numeric(pl.col("n").is_in([*range(50), 99, *range(51, 100)]), name="few")]
    assert json.loads(json.dumps(clicks(features=short).describe()))["features"][0]["kind"] == "category"
    assert clicks(features=short).fingerprint == clicks(features=list(short)).fingerprint
    assert clicks(features=short).fingerprint != clicks(features=other).fingerprint


def test_reprs_are_short() -> None:
    assert repr(departures()) == "Events('departures', Departure, key='flight')"
    assert repr(arrivals()) == "Labels('arrivals', Arrival, value=col(\"arr_delay\") > 15, within='24h')"
    assert repr(pipeline(model=LogisticRegression())).startswith(
        "Pipeline('flights', 1 features, task='binary', model="
    )
    assert repr(Labels(value=None)) == "Labels(value=None)"  # type: ignore[arg-type]


def test_declaration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        pipeline().name = "other"  # type: ignore[misc]


def test_all_problems_come_in_one_error() -> None:
    with pytest.raises(DeclarationError) as caught:
        pipeline(
            name="Flights",
            features=[numeric("dep_dealy"), numeric("carrier")],
            delivery="once",
            model=LinearRegression(),
            events=departures(ahead="1 day"),
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "pipeline 'Flights' has 6 problems:"
    places = [
        "name",
        "events.ahead",
        'features[0] numeric("dep_dealy")',
        'features[1] numeric("carrier")',
        "delivery",
        "model",
    ]
    for line, place in zip(lines[1:], places, strict=True):
        assert line.split(". ", 1)[1].startswith(f"{place}: ")


# --- mistakes: how it is declared, and the words that its error must hold

col = pl.col


class Nested(msgspec.Struct):
    flight: str
    legs: list[str]
    extra: dict[str, int] | None = None


class Odd(msgspec.Struct):
    flight: str
    size: int | float
    unset: str | msgspec.UnsetType = msgspec.UNSET


class Untimely(msgspec.Struct):
    key: str | None
    text: str
    when: datetime
    maybe: datetime | None
    ratio: float
    ready: bool


class Empty(msgspec.Struct):
    pass


class NumberedArrival(msgspec.Struct):
    flight: int
    arr_delay: float


class Labelled(msgspec.Struct):
    flight: str
    label: float


def untimely(**changes: Any) -> Pipeline:
    declared = {"key": "text"} | changes
    return pipeline(events=Events("e", Untimely, **declared), labels=None, features=[numeric("ratio")])


MISTAKES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    # names and topics
    "name": (lambda: pipeline(name="My Flights"), ["name: expected small letters", "'My Flights'"]),
    "name number": (lambda: pipeline(name=7), ["name:", "got 7"]),
    "topic": (lambda: pipeline(events=departures(topic="a b")), ["events.topic", "Kafka topic", "'a b'"]),
    "topic dot": (lambda: pipeline(predictions=Predictions("..")), ["predictions.topic", "'..'"]),
    "dead letters": (
        lambda: pipeline(predictions=Predictions("late", dead_letters="no/pe")),
        ["predictions.dead_letters", "'no/pe'"],
    ),
    "same topic": (lambda: pipeline(labels=arrivals(topic="departures")), ["labels.topic", "is events.topic as well"]),
    "output is input": (lambda: pipeline(predictions=Predictions("arrivals")), ["predictions.topic", "labels.topic"]),
    "journal is input": (
        lambda: pipeline(events=departures(topic="flights.journal")),
        ["the journal's topic 'flights.journal' is events.topic"],
    ),
    "headers list": (
        lambda: pipeline(predictions=Predictions("late", headers=["traceparent"])),  # type: ignore[arg-type]
        ["predictions.headers: expected True or False, got ['traceparent']"],
    ),
    "compression unknown": (
        lambda: pipeline(predictions=Predictions("late", compression="zst")),  # type: ignore[arg-type]
        ['predictions.compression: expected "lz4" or "zstd", got \'zst\'; did you mean `zstd`?'],
    ),
    "predictions text": (lambda: pipeline(predictions="late"), ["expected Predictions(topic)", "Predictions('late')"]),
    # events
    "events missing": (lambda: pipeline(events="departures"), ["events: expected Events(", "str 'departures'"]),
    "schema object": (
        lambda: pipeline(events=departures(schema=Labelled("a", 1.0))),
        ["events.schema: expected a subclass of msgspec.Struct", "give the class"],
    ),
    "schema dict": (lambda: pipeline(events=departures(schema=dict)), ["events.schema", "the class dict"]),
    "schema empty": (lambda: pipeline(events=departures(schema=Empty)), ["Empty has no fields"]),
    "schema nested": (
        lambda: pipeline(events=departures(schema=Nested)),
        [
            "events.schema: Nested: `legs` is list[str], `extra` is",
            "str, int, float, bool, datetime",
            "Leave such a field out",
        ],
    ),
    "schema odd": (lambda: pipeline(events=departures(schema=Odd)), ["`size` is int | float", "`unset` is"]),
    "key unknown": (lambda: pipeline(events=departures(key="fligth")), ["events.key", "did you mean `flight`?"]),
    "key far off": (
        lambda: pipeline(events=departures(key="zzz")),
        ["Departure has no field `zzz`; it has `flight`, `time`"],
    ),
    "key float": (
        lambda: pipeline(events=departures(key="distance")),
        ["events.key: `distance` is float", "str or int"],
    ),
    "key may be None": (lambda: untimely(key="key"), ["events.key: `key` may be None", "without `| None`"]),
    "key expression": (lambda: untimely(key=col("text")), ["events.key: expected the name of a field of Untimely"]),
    "time unknown": (lambda: pipeline(events=departures(time="tiem")), ["events.time", "did you mean `time`?"]),
    "time text": (lambda: untimely(time="text"), ["events.time: `text` is str", "declare the field as datetime"]),
    "time bool": (lambda: untimely(time="ready"), ["events.time: `ready` is bool; expected a datetime, or a number"]),
    "time without unit": (
        lambda: pipeline(events=departures(unit=None)),
        ["events.time: `time` is a number", 'unit="s"'],
    ),
    "datetime with unit": (lambda: untimely(time="when", unit="s"), ["events.unit", "is a datetime and has no unit"]),
    "unit unknown": (
        lambda: untimely(time="ratio", unit="sec"),
        ['events.unit: expected "s", "ms" or "us", got \'sec\''],
    ),
    "unit alone": (lambda: untimely(unit="s"), ["events.unit", "there is no time="]),
    "time may be None": (lambda: untimely(time="maybe"), ["events.time: `maybe` may be None"]),
    "start": (lambda: untimely(start="earlier"), ["events.start", "did you mean `earliest`?"]),
    "ahead": (lambda: untimely(ahead=3600), ["events.ahead: expected a duration", "got 3600"]),
    # labels
    "labels text": (lambda: pipeline(labels="arr_delay"), ["labels: expected Labels(...) or None"]),
    "labels bare topic": (
        lambda: pipeline(labels=Labels("arrivals", value="arr_delay")),
        ["labels.schema: is missing", "labels.key: is missing", "labels.within: is missing", 'within="24h"'],
    ),
    "labels in event with wait": (
        lambda: clicks(labels=Labels(value="price", within="1h", otherwise=0.0, key="user_id")),
        ["labels.within: goes with a topic of labels", "labels.otherwise", "labels.key"],
    ),
    "within": (lambda: pipeline(labels=arrivals(within="1 day")), ["labels.within: expected a duration", "'1 day'"]),
    "within zero": (lambda: pipeline(labels=arrivals(within="0s")), ["labels.within", "above zero"]),
    "early": (lambda: pipeline(labels=arrivals(early="soon")), ["labels.early", "'soon'"]),
    "early in the event": (lambda: clicks(labels=Labels(value="price", early="soon")), ["labels.early", "'soon'"]),
    "alignment": (
        lambda: pipeline(labels=arrivals(alignment="2d")),
        ["labels.alignment: expected no more than within='24h'", "'2d'"],
    ),
    "label key unknown": (lambda: pipeline(labels=arrivals(key="fligt")), ["labels.key: Arrival has no", "`flight`?"]),
    "label key type": (
        lambda: pipeline(labels=arrivals(schema=NumberedArrival, time=None, unit=None)),
        ["labels.key: `flight` is int, the events' `flight` is str", "both as str or both as int"],
    ),
    "value unknown": (
        lambda: pipeline(labels=arrivals(value=col("arr_dealy") > 15)),
        ["labels.value: Arrival has no field `arr_dealy`; did you mean `arr_delay`?"],
    ),
    "value of the event": (
        lambda: pipeline(labels=arrivals(value=col("dep_delay") > 15)),
        ["labels.value: `dep_delay` is of Departure; a label and its weight are made of the fields of Arrival"],
    ),
    "value not expression": (lambda: pipeline(labels=arrivals(value=15)), ["labels.value: expected a field", "int 15"]),
    "value not row by row": (
        lambda: pipeline(labels=arrivals(value=col("arr_delay") > col("arr_delay").mean())),
        ["labels.value:", "not row by row"],
    ),
    "value date": (lambda: clicks(labels=Labels(value="at")), ['labels.value: "at" gives datetime; expected bool']),
    "value integer": (
        lambda: clicks(labels=Labels(value="n")),
        ["labels.value", "gives int", 'task="binary" or task="regr', "several classes cast it to pl.String"],
    ),
    "value text": (lambda: pipeline(labels=arrivals(value="dest")), ["labels.classes: is missing", "classes=["]),
    "task unknown": (
        lambda: clicks(labels=Labels(value="n", task="binari")),
        ["labels.task", "did you mean `binary`?"],
    ),
    "task other": (
        lambda: clicks(labels=Labels(value="price", task="binary")),
        ["labels.task", "gives float, which makes the task regression, not binary; compare it"],
    ),
    "task integer classes": (
        lambda: clicks(labels=Labels(value="n", task="multiclass", classes=["0", "1"])),
        ["labels.task", "cast it to pl.String"],
    ),
    "class alone": (
        lambda: pipeline(labels=arrivals(schema=Landed, value="state")),
        ["labels.classes: `state` is always 'on'; expected two or more different texts"],
    ),
    "classes twice": (
        lambda: pipeline(labels=arrivals(value="dest", classes=["a", "a"])),
        ["labels.classes", "different"],
    ),
    "classes text": (
        lambda: pipeline(labels=arrivals(value="dest", classes="ab")),
        ["labels.classes: expected a list"],
    ),
    "classes unheard": (
        lambda: clicks(labels=Labels(value="page", classes=["home", "carts"]), features=[numeric("n")]),
        ["labels.classes: `page` is never 'carts'; did you mean `cart`?"],
    ),
    "classes of numbers": (
        lambda: pipeline(labels=arrivals(classes=["a", "b"])),
        ["labels.classes: go with labels of text", "binary"],
    ),
    "otherwise of binary": (
        lambda: pipeline(labels=arrivals(otherwise="no")),
        ["labels.otherwise: the task is binary: expected True or False, or None to drop, got 'no'"],
    ),
    "otherwise of regression": (
        lambda: pipeline(labels=arrivals(value="arr_delay", otherwise=True)),
        ["labels.otherwise: the task is regression: expected a number", "got True"],
    ),
    "otherwise of classes": (
        lambda: pipeline(labels=arrivals(value="dest", classes=["JFK", "LGA"], otherwise="JFKK")),
        ["labels.otherwise", "one of the classes", "did you mean `JFK`?"],
    ),
    # features
    "features empty": (lambda: pipeline(features=[]), ["features: is empty"]),
    "features none": (lambda: pipeline(features=None), ["features: expected a list of numeric(...)"]),
    "feature text": (
        lambda: pipeline(features=[numeric("dep_delay"), "carrier"]),
        ["features[1]: expected one of numeric(...)", "write numeric('carrier') or category('carrier')"],
    ),
    "field unknown": (
        lambda: pipeline(features=[numeric("dep_dealy")]),
        ['features[0] numeric("dep_dealy"): Departure has no field `dep_dealy`; did you mean `dep_delay`?'],
    ),
    "two of a name": (
        lambda: pipeline(features=[numeric("dep_delay"), numeric(col("dep_delay") * 2, name="dep_delay")]),
        ["features[1]", "is named `dep_delay`, as is features[0]", "name="],
    ),
    "numeric of text": (
        lambda: pipeline(features=[numeric("carrier")]),
        ['"carrier" is str, and numeric() takes numbers and bools; use category("carrier")'],
    ),
    "numeric of datetime": (lambda: clicks(features=[numeric("at")]), ['"at" is datetime', ".dt.hour()"]),
    "numeric of duration": (
        lambda: clicks(features=[numeric(col("at") - col("at").dt.truncate("1d"), name="x")]),
        [".dt.total_seconds()"],
    ),
    "numeric of list": (
        lambda: pipeline(features=[numeric(col("dest").str.split("-"), name="x")]),
        ["is List", "cast it"],
    ),
    "category of float": (
        lambda: pipeline(features=[category("dep_delay")]),
        ['"dep_delay" is float', 'numeric("dep_delay")', 'pl.col("dep_delay") // 5'],
    ),
    "category of datetime": (lambda: clicks(features=[category("at")]), ['"at" is datetime', ".dt.hour()"]),
    "cross of datetime": (lambda: clicks(features=[cross("at", "page")]), ['cross("at", "page"): "at" is datetime']),
    "field of the label": (
        lambda: pipeline(features=[numeric("arr_delay")]),
        [
            "`arr_delay` is a field of Arrival, the label: it is not known when the prediction is made",
            'mean("arr_delay"',
        ],
    ),
    "the label itself": (
        lambda: pipeline(features=[numeric("label")]),
        ["the label is not known", 'mean("label", by='],
    ),
    "the answer": (
        lambda: clicks(features=[numeric("price")]),
        ["reads `price`, of which the label is made: the model would be told the answer"],
    ),
    # aggregates
    "by unknown": (
        lambda: pipeline(features=[count(by="orgin", over="1h")]),
        ["by: Departure has no field `orgin`; did you mean `origin`?"],
    ),
    "by float": (
        lambda: pipeline(features=[count(by="distance", over="1h")]),
        ["by: `distance` is float; expected a field"],
    ),
    "by of the label": (
        lambda: pipeline(features=[count(by="arr_delay", over="1h")]),
        ["by: Departure has no field `arr_delay`", "looked up when the event comes"],
    ),
    "mean of text": (
        lambda: pipeline(features=[mean("carrier", by="origin", over="1h")]),
        ['"carrier" is str, and mean() takes numbers and bools; compare it'],
    ),
    "mixed records": (
        lambda: pipeline(features=[mean(col("arr_delay") - col("dep_delay"), by="dest", over="1h", name="lost")]),
        ["`dep_delay` is of Departure, `arr_delay` of Arrival: an expression reads one of the two"],
    ),
    "label of none": (
        lambda: pipeline(labels=None, features=[mean("label", by="dest", over="1h")]),
        ['"label" is the truth about events before, and there is none', "labels=Labels("],
    ),
    "label of text": (
        lambda: pipeline(
            labels=arrivals(value="dest", classes=["a", "b"]), features=[mean("label", by="origin", over="1h")]
        ),
        ["the label is str, and mean() takes numbers and bools", 'mean(pl.col("dest") == "..."'],
    ),
    "label as a column": (
        lambda: pipeline(features=[mean(col("label") * 2, by="dest", over="1h", name="x")]),
        ['the label itself is the text "label" alone'],
    ),
    "label or field": (
        lambda: clicks(features=[mean("label", by="page", over="1h")]),
        ['"label" is the label, and `label` a field of Click: which is meant?', 'pl.col("label")'],
    ),
    "label or field of the label": (
        lambda: pipeline(
            labels=arrivals(schema=Labelled, time=None, unit=None, value=col("label") > 0),
            features=[mean("label", by="dest", over="1h")],
        ),
        ["`label` a field of Labelled: which is meant?"],
    ),
    # model
    "model class": (lambda: pipeline(model=LogisticRegression), ["model:", "the class", "write LogisticRegression()"]),
    "model none": (
        lambda: pipeline(model=None),
        ["model: expected a model of headrace.models, such as Standard", "None"],
    ),
    "model scaler": (lambda: pipeline(model=StandardScaler()), ["model:", "learner", "LogisticRegression()"]),
    "model task": (
        lambda: pipeline(model=LinearRegression()),
        ["model: LinearRegression learns a regression task", "binary"],
    ),
    "model chain of scalers": (
        lambda: pipeline(model=StandardScaler() | StandardScaler()),
        ["model:", "without a learner"],
    ),
    # numbers
    "every": (
        lambda: pipeline(snapshots=Snapshots(every="50ms")),
        ["snapshots.every: expected 100ms or more, got '50ms'"],
    ),
    "keep": (
        lambda: pipeline(snapshots=Snapshots(keep=0)),
        ["snapshots.keep: expected a whole number, 1 or more, got 0"],
    ),
    "what NaN does": (
        lambda: pipeline(snapshots=Snapshots(on_nan="go on")),
        ["snapshots.on_nan: expected 'stop' or 'rollback', got 'go on'"],
    ),
    "snapshots": (lambda: pipeline(snapshots="5s"), ["snapshots: expected Snapshots(...), got str '5s'"]),
    "delivery": (lambda: pipeline(delivery="exactly-once"), ["delivery", "did you mean `exactly_once`?"]),
    "latency": (lambda: pipeline(latency="100us"), ["latency: expected 1ms or more, got '100us'"]),
    "max_cycle_rows": (lambda: pipeline(max_cycle_rows=True), ["max_cycle_rows", "got True"]),
    "max_bad_share": (lambda: pipeline(max_bad_share=50), ["max_bad_share: expected a share", "got 50"]),
    "pending_limit": (lambda: pipeline(pending_limit="2GB"), ["pending_limit", "'2GB'"]),
    # what the functions of features were given
    "window missing": (lambda: pipeline(features=[mean("dep_delay", by="origin")]), ["mean() needs over or half_life"]),
    "window of min": (lambda: pipeline(features=[min_of("dep_delay", by="origin")]), ["min() needs over"]),
    "window of max": (lambda: pipeline(features=[max_of("dep_delay", by="origin")]), ["max() needs over"]),
    "window of ewm": (lambda: pipeline(features=[ewm("dep_delay", by="origin")]), ["ewm() needs half_life"]),
    "two windows": (
        lambda: pipeline(features=[sum_of("dep_delay", by="origin", over="1h", half_life="1h")]),
        ["sum() takes over= or half_life=, not both"],
    ),
    "window text": (
        lambda: pipeline(features=[count(by="origin", over="an hour")]),
        ["over: expected a duration", "'an hour'"],
    ),
    "by missing": (lambda: pipeline(features=[count(over="1h")]), ["by= is missing", 'by="origin"']),
    "capacity": (
        lambda: pipeline(features=[count(by="origin", over="1h", capacity=0)]),
        ["capacity: expected a number of keys, 1 or more, got 0"],
    ),
    "value of a feature": (lambda: pipeline(features=[numeric(len)]), ["features[0]", "expected the name of a field"]),  # type: ignore[arg-type]
    "name missing": (lambda: pipeline(features=[numeric(col("dep_delay") * 2)]), ["an expression needs a name: name="]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named_with_its_place_and_the_remedy(mistake: str) -> None:
    declare, words = MISTAKES[mistake]
    with pytest.raises(DeclarationError) as caught:
        declare()
    text = str(caught.value)
    assert text.startswith("pipeline ")
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("classes", [None, 3, "ab", ["a", "a"], ["a"]])
def test_model_is_not_blamed_for_classes_that_are_declared_wrongly(classes: Any) -> None:
    with pytest.raises(DeclarationError) as raised:
        pipeline(labels=arrivals(value="dest", classes=classes), model=SoftmaxRegression())
    assert "labels.classes" in str(raised.value) and "SoftmaxRegression" not in str(raised.value)


def test_field_types_that_cannot_be_read_are_named() -> None:
    class Lost(msgspec.Struct):
        __annotations__ = {"flight": "Nowhere"}  # as `from __future__ import annotations` leaves it

    with pytest.raises(DeclarationError, match="types of Lost cannot be read"):
        pipeline(events=departures(schema=Lost))


GARBAGE: list[Any] = [
    None, True, 0, -1.5, float("nan"), 10**30, "", "zzz", "\x00", b"time", [], ["zzz"], {"a": 1}, object(), len,
    Departure, Nested, pl.col("dep_delay"), pl.all(), pl.len(), pl.Series([1]), pl.Float64, numeric("dep_delay"),
    LogisticRegression(), arrivals(), departures(), Predictions("p"), Snapshots(),
]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *[("events", f.name) for f in dataclasses.fields(Events)],
        *[("labels", f.name) for f in dataclasses.fields(Labels)],
        *[("predictions", f.name) for f in dataclasses.fields(Predictions)],
        *[("snapshots", f.name) for f in dataclasses.fields(Snapshots)],
        *[("pipeline", f.name) for f in dataclasses.fields(Pipeline) if f.init],
        *[("feature", name) for name in ("value", "by", "over", "half_life", "capacity", "name", "cross", "category")],
    ],
)
def test_garbage_anywhere_is_accepted_or_a_declaration_error(part: str, name: str) -> None:
    whole = {"events": departures, "labels": arrivals}
    for value in GARBAGE:
        try:
            if part in whole:
                declared = pipeline(**{part: whole[part](**{name: value})})
            elif part == "predictions":
                declared = pipeline(predictions=Predictions(**{"topic": "late", name: value}))
            elif part == "snapshots":
                declared = pipeline(snapshots=Snapshots(**{name: value}))
            elif part == "pipeline":
                declared = pipeline(**{name: value})
            elif name in ("cross", "category"):
                declared = pipeline(features=[cross("origin", value), category(value)])
            else:
                declared = pipeline(
                    features=[mean(**{"value": "dep_delay", "by": "origin", "over": "1h", name: value})]
                )
        except DeclarationError as error:
            assert str(error).startswith("pipeline ")  # noqa: PT017
        else:
            assert repr(declared)
            assert json.dumps(declared.describe())
