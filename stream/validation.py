"""What is wrong with a declaration: every check of `Pipeline`, each problem with its place and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

import msgspec
import polars as pl

from ..errors import DeclarationError
from ..models.base import Spec, Task
from ..models.chain import as_chain
from ..models.drift import DriftDetector
from .declaration import Best, Events, Labels, Pipeline, Predictions, Snapshots
from .durations import parse_duration
from .expressions import (
    CATEGORIES,
    NUMBERS,
    check_expression,
    column_types,
    did_you_mean,
    fields_of,
    literal_values,
    optional_fields,
    plain_column,
    show,
    type_name,
    unknown_field,
)
from .features import Aggregate, Category, Cross, Feature, Numeric

TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
NAME = re.compile(r"[a-z0-9._-]{1,200}")
MODEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
MOST_MODELS = 100  # their places are told in a byte
TASKS: tuple[Task, ...] = ("binary", "regression", "multiclass")
EXAMPLE_MODEL = "StandardScaler() | LogisticRegression()"

Schema = type[msgspec.Struct]


class Checked(NamedTuple):
    """What a declaration comes to."""

    features: tuple[Feature, ...]
    task: Task | None
    classes: tuple[str, ...]
    spec: Spec


def check_pipeline(p: Pipeline) -> Checked:
    """Check the whole declaration; raises one DeclarationError that lists every problem."""
    found = Problems()
    _check_name(p.name, found)
    sides = _check_sides(p.events, p.labels, found)
    task, classes = _check_task(sides, found) if sides else (None, ())
    features = _check_features(p.features, sides, found) if sides else ()
    _check_output(p, found)
    numeric = tuple(f.name for f in features if isinstance(f, Numeric | Aggregate))
    categories = tuple(f.name for f in features if isinstance(f, Category | Cross))
    spec = Spec(numeric, categories, task, len(classes) or 1)
    told = task is not None and (task != "multiclass" or len(classes) > 1)
    task_known = sides is not None and sides.labels_known and (told or sides.labels is None)
    problems = len(found.texts)
    spec = _check_models(p, spec, task_known, found)
    model_known = task_known and len(found.texts) == problems
    _check_drift(p, spec, model_known, found)
    _check_explain(p, model_known, found)
    found.raise_for(p.name)
    return Checked(features, task, classes, spec)


class Problems:
    """What is wrong with a declaration so far, each with its place."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, place: str, text: str) -> None:
        self.texts.append(f"{place}: {text}")

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Keep a DeclarationError of the block as a problem of this place."""
        try:
            yield
        except DeclarationError as error:
            self.add(place, str(error))

    def duration(self, place: str, text: Any, least: str = "1us") -> int:
        """Microseconds of a duration, 0 when it is a problem."""
        try:
            length = parse_duration(text, place)
        except DeclarationError as error:
            self.texts.append(str(error))
            return 0
        if length < parse_duration(least):
            self.add(place, f"expected {least} or more, got {text!r}")
            return 0
        return length

    def count(self, place: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.add(place, f"expected a whole number, 1 or more, got {value!r}")

    def one_of(self, place: str, value: Any, known: Sequence[str]) -> bool:
        if isinstance(value, str) and value in known:
            return True
        close = did_you_mean(value, known) if isinstance(value, str) else ""
        self.add(place, f"expected {_or(known)}, got {value!r}{close}")
        return False

    def raise_for(self, name: Any) -> None:
        if len(self.texts) == 1:
            raise DeclarationError(f"pipeline {name!r}: {self.texts[0]}")
        if self.texts:
            lines = "".join(f"\n  {i}. {text}" for i, text in enumerate(self.texts, 1))
            raise DeclarationError(f"pipeline {name!r} has {len(self.texts)} problems:{lines}")


def _or(names: Iterable[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _came(value: Any) -> str:
    """What came, in an error."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r}"[:120]


def _ticked(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _has_field(schema: Schema | None, name: str) -> bool:
    return schema is not None and name in column_types(schema)


# --- the two sides


class Sides(NamedTuple):
    """Schemas that can be relied on in further checks."""

    event: Schema
    label: Schema | None  # of the record that holds the label; None: not known, or no labels
    labels: Labels | None
    delayed: bool  # the label has a topic of its own
    labels_known: bool  # False: what labels are is a problem already


def _check_sides(events: Any, labels: Any, found: Problems) -> Sides | None:
    """None where the events are so wrong that features cannot be checked."""
    if not isinstance(events, Events):
        found.add("events", f"expected Events(topic, schema, key=...), got {_came(events)}")
        return None
    _check_topic(events.topic, "events.topic", found)
    found.duration("events.ahead", events.ahead)
    found.one_of("events.start", events.start, ("earliest", "latest"))
    if not _check_schema(events.schema, "events.schema", found):
        return None
    _check_key(events.key, events.schema, "events.key", found)
    _check_time(events, events.schema, "events", found)
    if labels is None:
        return Sides(events.schema, None, None, False, True)
    if not isinstance(labels, Labels):
        found.add("labels", f"expected Labels(...) or None, got {_came(labels)}")
        return Sides(events.schema, None, None, False, False)
    found.duration("labels.early", labels.early)
    found.duration("labels.ahead", labels.ahead)
    if labels.topic is None:
        for name in ("schema", "key", "time", "unit", "within", "otherwise", "alignment"):
            if getattr(labels, name) is not None:
                found.add(f"labels.{name}", "goes with a topic of labels; without one the label is in the event itself")
        return Sides(events.schema, events.schema, labels, False, True)
    known = _check_delayed(labels, events, found)
    return Sides(events.schema, labels.schema if known else None, labels, True, known)


def _check_delayed(labels: Labels, events: Events, found: Problems) -> bool:
    """Check labels on a topic of their own; True when their schema can be used."""
    _check_topic(labels.topic, "labels.topic", found)
    missing = {
        "schema": "give a msgspec.Struct of the topic's records",
        "key": "name the field that holds the key of the event",
        "within": 'say how long a label is waited for, as in within="24h"',
    }
    for name, remedy in missing.items():
        if getattr(labels, name) is None:
            found.add(f"labels.{name}", f"is missing; {remedy}")
    if labels.within is not None:
        within = found.duration("labels.within", labels.within)
        if labels.alignment is not None and found.duration("labels.alignment", labels.alignment) > within > 0:
            found.add("labels.alignment", f"expected no more than within={labels.within!r}, got {labels.alignment!r}")
    schema = labels.schema
    if schema is None or not _check_schema(schema, "labels.schema", found):
        return False
    if labels.key is not None and _check_key(labels.key, schema, "labels.key", found):
        event_key = events.key if isinstance(events.key, str) else ""
        own, other = column_types(schema)[labels.key], column_types(events.schema).get(event_key)
        if other in (pl.String, pl.Int64) and own != other:
            found.add(
                "labels.key",
                f"`{labels.key}` is {type_name(own)}, the events' `{events.key}` is {type_name(other)}: they would "
                "never be equal; declare both as str or both as int",
            )
    _check_time(labels, schema, "labels", found)
    return True


def _check_topic(topic: Any, place: str, found: Problems) -> bool:
    if isinstance(topic, str) and TOPIC.fullmatch(topic) and topic not in (".", ".."):
        return True
    expected = "the name of a Kafka topic (at most 249 letters, digits, '.', '_' or '-')"
    found.add(place, f"expected {expected}, got {topic!r}")
    return False


def _check_schema(schema: Any, place: str, found: Problems) -> bool:
    if not isinstance(schema, type) or not issubclass(schema, msgspec.Struct):
        say = "; give the class, not an object" if isinstance(schema, msgspec.Struct) else ""
        found.add(place, f"expected a subclass of msgspec.Struct, got {_came(schema)}{say}")
        return False
    try:
        column_types(schema)
    except DeclarationError as error:
        found.add(place, str(error))
        return False
    return True


def _check_key(key: Any, schema: Schema, place: str, found: Problems) -> bool:
    types = column_types(schema)
    if not isinstance(key, str):
        found.add(place, f"expected the name of a field of {schema.__name__}, got {key!r}")
    elif key not in types:
        found.add(place, unknown_field(key, schema))
    elif types[key] not in (pl.String, pl.Int64):
        found.add(place, f"`{key}` is {type_name(types[key])}; expected a key of str or int, equal to the last bit")
    elif key in optional_fields(schema):
        found.add(place, f"`{key}` may be None; declare it without `| None`: a record without a key is a dead letter")
    else:
        return True
    return False


def _check_time(side: Events | Labels, schema: Schema, where: str, found: Problems) -> None:
    time: Any = side.time
    if side.unit is not None:
        found.one_of(f"{where}.unit", side.unit, ("s", "ms", "us"))
    if time is None:
        if side.unit is not None:
            found.add(f"{where}.unit", "there is no time= for it; name the field of the time, or leave unit out")
        return
    place = f"{where}.time"
    if not isinstance(time, str):
        found.add(place, f"expected the name of a field of {schema.__name__}, got {time!r}")
        return
    dtype = column_types(schema).get(time)
    if dtype is None:
        found.add(place, unknown_field(time, schema))
        return
    if isinstance(dtype, pl.Datetime):
        if side.unit is not None:
            found.add(f"{where}.unit", f"`{time}` is a datetime and has no unit; leave unit out")
    elif dtype not in (pl.Int64, pl.Float64):
        remedy = "; declare the field as datetime, which reads RFC 3339 text" if dtype == pl.String else ""
        found.add(place, f"`{time}` is {type_name(dtype)}; expected a datetime, or a number and its unit{remedy}")
    elif side.unit is None:
        found.add(place, f'`{time}` is a number; say what it counts since 1970: unit="s", unit="ms" or unit="us"')
    if time in optional_fields(schema):
        found.add(place, f"`{time}` may be None; declare it without `| None`: a record without a time is a dead letter")


# --- the task


def _check_task(sides: Sides, found: Problems) -> tuple[Task | None, tuple[str, ...]]:
    """The task and classes that the labels make; (None, ()) where there are none or where they are a problem."""
    labels, schema = sides.labels, sides.label
    if labels is None or schema is None:
        return None, ()
    value: Any = labels.value
    if not isinstance(value, str | pl.Expr):
        found.add("labels.value", f"expected a field or a Polars expression, got {_came(value)}")
        return None, ()
    if labels.task is not None and not found.one_of("labels.task", labels.task, TASKS):
        return None, ()
    try:
        _check_label_fields(labels.value_expr, sides)
        dtype = check_expression(labels.value_expr, schema)
    except DeclarationError as error:
        found.add("labels.value", str(error))
        return None, ()
    task = _task_of(labels, dtype, found)
    classes = _check_classes(labels, schema, found) if task == "multiclass" else ()
    if task not in (None, "multiclass") and labels.classes is not None:
        found.add("labels.classes", f"go with labels of text; here the task is {task}: leave them out")
    if task is not None:
        _check_otherwise(labels.otherwise, task, classes, found)
    _check_weight(labels, schema, sides, found)
    return task, classes


def _check_weight(labels: Labels, schema: Schema, sides: Sides, found: Problems) -> None:
    weight: Any = labels.weight
    if weight is None:
        return
    if not isinstance(weight, str | pl.Expr):
        found.add("labels.weight", f"expected a field or a Polars expression, got {_came(weight)}")
        return
    expr = cast(pl.Expr, labels.weight_expr)
    with found.at("labels.weight"):
        _check_label_fields(expr, sides)
        _check_number(expr, check_expression(expr, schema), "weight=")


def _check_label_fields(value: pl.Expr, sides: Sides) -> None:
    unknown = [n for n in _roots(value) if not _has_field(sides.label, n)]
    if sides.delayed and sides.label is not None and any(_has_field(sides.event, n) for n in unknown):
        raise DeclarationError(
            f"{_ticked(unknown)} is of {sides.event.__name__}; a label and its weight are made of the fields of "
            f"{sides.label.__name__}"
        )


def _task_of(labels: Labels, dtype: pl.DataType, found: Problems) -> Task | None:
    declared, gives = labels.task, f"{show(labels.value_expr)} gives {type_name(dtype)}"
    if dtype in NUMBERS and dtype != pl.Boolean and not dtype.is_float():
        if declared is None:
            found.add(
                "labels.value",
                f'{gives}: yes or no, or an amount? say task="binary" or task="regression"; for one of several classes '
                "cast it to pl.String, and name them as text: classes=[...]",
            )
        if declared == "multiclass":
            remedy = "cast it to pl.String, and name the classes as text"
            found.add("labels.task", f"{gives}, and classes are text; {remedy}")
        return None if declared == "multiclass" else declared
    natural: Task
    if dtype == pl.Boolean:
        natural = "binary"
    elif dtype in NUMBERS:
        natural = "regression"
    elif dtype == pl.String:
        natural = "multiclass"
    else:
        found.add("labels.value", f"{gives}; expected bool, float or str, or int with task=")
        return None
    if declared in (None, natural):
        return natural
    remedies = {
        "binary": "compare it, as in pl.col(...) > 0.5",
        "regression": "cast it to pl.Float64",
        "multiclass": "cast it to pl.String, and name classes=",
    }
    found.add(
        "labels.task", f"{gives}, which makes the task {natural}, not {declared}; {remedies[cast(str, declared)]}"
    )
    return None


def _check_classes(labels: Labels, schema: Schema, found: Problems) -> tuple[str, ...]:
    plain = plain_column(labels.value_expr)
    known = literal_values(schema, plain) if plain is not None else ()
    classes: Any = labels.classes
    if classes is None:
        if not known:
            found.add("labels.classes", 'is missing; name every text the label can be, as in classes=["a", "b", "c"]')
        if len(known) == 1:
            found.add("labels.classes", f"`{plain}` is always {known[0]!r}; expected two or more different texts")
        return known
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not all(isinstance(c, str) for c in classes):
        found.add("labels.classes", f"expected a list of texts, got {classes!r}")
        return ()
    if len(classes) < 2 or len(set(classes)) < len(classes):
        found.add("labels.classes", f"expected two or more different texts, got {classes!r}")
        return ()
    for one in classes:
        if known and one not in known:
            found.add("labels.classes", f"`{plain}` is never {one!r}{did_you_mean(one, known)}")
    return tuple(classes)


def _check_otherwise(value: Any, task: Task, classes: tuple[str, ...], found: Problems) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    expected = {
        "binary": (isinstance(value, bool) or (number and value in (0, 1)), "True or False"),
        "regression": (number, "a number"),
        "multiclass": (
            not classes or (isinstance(value, str) and value in classes),
            f"one of the classes {list(classes)}",
        ),
    }
    fits, what = expected[task]
    if value is not None and not fits:
        close = did_you_mean(value, classes) if isinstance(value, str) else ""
        found.add("labels.otherwise", f"the task is {task}: expected {what}, or None to drop, got {value!r}{close}")


# --- features


def _check_features(features: Any, sides: Sides, found: Problems) -> tuple[Feature, ...]:
    kinds = "numeric(...), category(...), cross(...) and aggregates such as mean(...)"
    if isinstance(features, str) or not isinstance(features, Sequence):
        found.add("features", f"expected a list of {kinds}, got {_came(features)}")
        return ()
    if not features:
        found.add("features", 'is empty; a model needs one at least, as in numeric("...") or category("...")')
    checked: list[Feature] = []
    places: dict[str, str] = {}
    for i, feature in enumerate(features):
        place = f"features[{i}]"
        if not isinstance(feature, Feature):
            write = f"; write numeric({feature!r}) or category({feature!r})" if isinstance(feature, str) else ""
            found.add(place, f"expected one of {kinds}, got {_came(feature)}{write}")
            continue
        shown = f"{place} {_shown(feature)}"
        for text in feature.problems:
            found.add(shown, text)
        if feature.problems:
            continue
        if feature.name in places:
            found.add(shown, f'is named `{feature.name}`, as is {places[feature.name]}; give one of them name="..."')
        places.setdefault(feature.name, place)
        with found.at(shown):
            checked.append(_checked(feature, sides))
    return tuple(checked)


def _shown(feature: Feature) -> str:
    """A feature as it is called in an error: as it was written, where that is short."""
    text = repr(feature)
    if len(text) <= 60:
        return text
    kind = feature.kind if isinstance(feature, Aggregate) else type(feature).__name__.lower()
    return f'{kind}(..., name="{feature.name}")' if feature.name else f"{text[:60]}..."


def _checked(feature: Feature, sides: Sides) -> Feature:
    if isinstance(feature, Aggregate):
        return _checked_aggregate(feature, sides)
    parts = feature.parts if isinstance(feature, Cross) else (feature.value,)
    for part in parts:
        _check_known_at_prediction(part, sides)
        dtype = check_expression(part, sides.event)
        if isinstance(feature, Numeric):
            _check_number(part, dtype, "numeric()")
        else:
            _check_category(part, dtype)
    _check_no_answer(parts, sides)
    return feature


def _check_known_at_prediction(expr: pl.Expr, sides: Sides) -> None:
    missing = [name for name in _roots(expr) if not _has_field(sides.event, name)]
    for name in missing:
        if sides.delayed and _has_field(sides.label, name):
            raise DeclarationError(
                f"`{name}` is a field of {cast(Schema, sides.label).__name__}, the label: it is not known when the "
                f'prediction is made. An aggregate can use it, as in mean("{name}", by=..., over=...)'
            )
    if "label" in missing and sides.labels is not None:
        raise DeclarationError(
            "the label is not known when the prediction is made. An aggregate can use the labels that came before, "
            'as in mean("label", by=..., over=...)'
        )


def _check_no_answer(parts: Sequence[pl.Expr], sides: Sides) -> None:
    """A label in the event, made of fields that a single feature reads: the model would be told the answer."""
    labels = sides.labels
    if labels is None or sides.delayed or not isinstance(labels.value, str | pl.Expr):
        return
    answer = _roots(labels.value_expr)
    if answer and set(answer) <= {name for part in parts for name in _roots(part)}:
        raise DeclarationError(
            f"reads {_ticked(answer)}, of which the label is made: the model would be told the answer. Leave it out; "
            'mean("label", by=...) can use the labels of the events before'
        )


def _roots(expr: pl.Expr) -> tuple[str, ...]:
    try:
        return fields_of(expr)
    except pl.exceptions.PolarsError:
        return ()  # check_expression says what is wrong with it


def _check_number(expr: pl.Expr, dtype: pl.DataType, what: str) -> None:
    if dtype in NUMBERS:
        return
    plain = plain_column(expr)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        as_category = f'use category("{plain}")' if plain else "use category(..., name=...)"
        remedy = as_category if what == "numeric()" else 'compare it, as in pl.col(...) == "..."'
        remedy += ", or cast it to pl.Float64"
    elif dtype == pl.Duration:
        remedy = "say in what, as in .dt.total_seconds()"
    elif dtype.is_temporal():
        remedy = "take a part of it, as in .dt.hour()"
    else:
        remedy = "cast it to pl.Float64"
    raise DeclarationError(f"{show(expr)} is {type_name(dtype)}, and {what} takes numbers and bools; {remedy}")


def _check_category(expr: pl.Expr, dtype: pl.DataType) -> None:
    plain = plain_column(expr)
    if dtype not in CATEGORIES:
        remedy = "take a part of it, as in .dt.hour()" if dtype.is_temporal() else "cast it to pl.String"
        expected = "str, int, bool, or float of few values"
        raise DeclarationError(f"{show(expr)} is {type_name(dtype)}; expected {expected}; {remedy}")
    if plain is not None and dtype.is_float():
        raise DeclarationError(
            f'"{plain}" is float, and each of its values would be a category of its own; use numeric("{plain}"), or '
            f'steps of it, as in category(pl.col("{plain}") // 5, name="{plain}_by_5")'
        )


def _checked_aggregate(feature: Aggregate, sides: Sides) -> Aggregate:
    """The aggregate with its source settled."""
    types = column_types(sides.event)
    for name in feature.by:
        if name not in types:
            also = "; an aggregate is looked up when the event comes" if _has_field(sides.label, name) else ""
            raise DeclarationError(f"by: {unknown_field(name, sides.event)}{also}")
        if types[name] not in (pl.String, pl.Int64, pl.Boolean):
            raise DeclarationError(f"by: `{name}` is {type_name(types[name])}; expected a field of str, int or bool")
    if feature.value is None or not sides.labels_known:
        return feature
    if isinstance(feature.value, str):
        _check_label_aggregate(feature, sides)
        return feature
    roots = _roots(feature.value)
    of_event = [name for name in roots if name in types]
    of_label = [name for name in roots if sides.delayed and name not in types and _has_field(sides.label, name)]
    source: Literal["event", "label"] = "event"
    schema = sides.event
    if of_label and sides.label is not None:
        only_event = [name for name in of_event if not _has_field(sides.label, name)]
        if only_event:
            raise DeclarationError(
                f"{_ticked(only_event)} is of {schema.__name__}, {_ticked(of_label)} of {sides.label.__name__}: an "
                "expression reads one of the two records"
            )
        source, schema = "label", sides.label
    elif "label" in roots and "label" not in types and sides.labels is not None:
        raise DeclarationError('the label itself is the text "label" alone, not pl.col("label")')
    _check_number(feature.value, check_expression(feature.value, schema), f"{feature.kind}()")
    return replace(feature, source=source)


def _check_label_aggregate(feature: Aggregate, sides: Sides) -> None:
    labels, schema = sides.labels, sides.label
    if labels is None or schema is None:
        raise DeclarationError('"label" is the truth about events before, and there is none; add labels=Labels(...)')
    value: Any = labels.value
    if not isinstance(value, str | pl.Expr):
        return  # reported as labels.value
    plain = plain_column(labels.value_expr)
    for one in (sides.event, schema):
        if _has_field(one, "label") and not (plain == "label" and not sides.delayed):
            raise DeclarationError(
                f'"label" is the label, and `label` a field of {one.__name__}: which is meant? For the field write '
                f'pl.col("label"); for the label call the field by another name, as in truth: ... = '
                'msgspec.field(name="label")'
            )
    try:
        dtype = check_expression(labels.value_expr, schema)
    except DeclarationError:
        return  # reported as labels.value
    if dtype == pl.String:
        about = f'pl.col("{plain}") == "..."' if plain else '(...) == "..."'
        example = f"{feature.kind}({about}, by=..., name=...)"
        raise DeclarationError(
            f"the label is str, and {feature.kind}() takes numbers and bools; compare it, as in {example}"
        )


# --- the rest


def _check_models(p: Pipeline, spec: Spec, task_known: bool, found: Problems) -> Spec:
    """The spec that the model, or the models, are to be bound to."""
    models: Any = p.models
    serve: Any = p.serve
    if serve is not None and not isinstance(serve, Best):
        found.add(
            "serve", f'expected Best(window="6h") or None, got {_came(serve)}; without it the first of models serves'
        )
    if models is None:
        if serve is not None:
            found.add("serve", 'chooses among models={"a": ..., "b": ...}, and there is only one model; leave it away')
        return _check_model(p.model, spec, task_known, found, "model")
    if p.model is not None:
        found.add("models", "there is model= as well; give one of the two: models= holds all, the first of them serves")
    if not isinstance(models, Mapping) or not models:
        found.add("models", f'expected {{"a": ..., "b": ...}}, one model or more by name, got {_came(models)}')
        return spec
    if len(models) > MOST_MODELS:
        found.add("models", f"expected {MOST_MODELS} models at most, got {len(models)}")
    if p.labels is None:
        found.add("models", "without labels none of them could be scored against the others; declare labels, or model=")
    for name, model in models.items():
        if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
            found.add("models", f"expected names of a letter, then letters, digits, '.', '_' or '-', got {name!r}")
        _check_model(model, spec, task_known and p.labels is not None, found, f"models[{name!r}]")
    return spec


def _check_model(model: Any, spec: Spec, task_known: bool, found: Problems, place: str) -> Spec:
    """The spec that the model is to be bound to: without labels, of the task that the model can predict."""
    if isinstance(model, type):
        found.add(place, f"expected a model, got the class {model.__name__}; write {model.__name__}()")
        return spec
    if not callable(getattr(model, "layout", None)):
        river = " of river" if type(model).__module__.startswith("river") else ""
        came = f"{type(model).__name__}{river}" if river else _came(model)
        write = "; write River(...) around it" if river else ""
        found.add(place, f"expected a model of headrace.models, such as {EXAMPLE_MODEL}, got {came}{write}")
        return spec
    if not callable(getattr(model, "learn", None)):
        found.add(place, f"{model!r} cannot learn a label; end with a learner, as in {EXAMPLE_MODEL}")
        return spec
    if not task_known:
        return spec  # the model would complain about what is listed already
    tasks: list[Task | None] = [spec.task] if spec.task is not None else [None, "binary", "regression"]
    refusal = ""
    for task in tasks:
        try:
            model.layout(spec._replace(task=task))
        except DeclarationError as error:
            refusal = str(error)
        else:
            return spec._replace(task=task)
    found.add(place, refusal)
    return spec


def _check_drift(p: Pipeline, spec: Spec, model_known: bool, found: Problems) -> None:
    drift: Any = p.drift
    if drift is None:
        return
    if isinstance(drift, type):
        found.add("drift", f"expected a detector, got the class {drift.__name__}; write {drift.__name__}()")
    elif not isinstance(drift, DriftDetector):
        found.add("drift", f"expected a detector of headrace.models, such as ADWIN(), got {_came(drift)}")
    elif p.labels is None:
        found.add("drift", f"{drift!r} hears the loss of predictions, and without labels there is none; leave it away")
    elif model_known:
        with found.at("drift"):
            drift.layout(spec)
        for model in p.models_by_name.values():
            learner = as_chain(model).learner
            if drift.action == "boost" and not learner.decays():
                found.add(
                    "drift",
                    f"boost scales down what {learner!r} could forget, which is nothing; give it or its optimizer a "
                    "half_life where it takes one, or use action='reset'",
                )


def _check_explain(p: Pipeline, model_known: bool, found: Problems) -> None:
    top = getattr(p.predictions, "explain", None)
    if top is None:
        return
    found.count("predictions.explain", top)
    if model_known:
        for model in p.models_by_name.values():
            with found.at("predictions.explain"):
                as_chain(model).explainer  # noqa: B018  refused here


def _check_name(name: Any, found: Problems) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        found.add("name", f"expected small letters, digits, '.', '_' or '-', got {name!r}")


def _check_output(p: Pipeline, found: Problems) -> None:
    predictions: Any = p.predictions
    if isinstance(predictions, Predictions):
        if _check_topic(predictions.topic, "predictions.topic", found):
            _check_topic(predictions.dead_letters, "predictions.dead_letters", found)
        if not isinstance(predictions.headers, bool):
            found.add("predictions.headers", f"expected True or False, got {predictions.headers!r}")
        if predictions.compression is not None:
            found.one_of("predictions.compression", predictions.compression, ("lz4", "zstd"))
    else:
        write = f"; write Predictions({predictions!r})" if isinstance(predictions, str) else ""
        found.add("predictions", f"expected Predictions(topic), got {_came(predictions)}{write}")
    _check_topics_differ(p, found)
    snapshots: Any = p.snapshots
    if isinstance(snapshots, Snapshots):
        found.duration("snapshots.every", snapshots.every, least="100ms")
        found.count("snapshots.keep", snapshots.keep)
    else:
        found.add("snapshots", f"expected Snapshots(...), got {_came(snapshots)}")
    found.one_of("delivery", p.delivery, ("exactly_once", "at_least_once"))
    found.duration("latency", p.latency, least="1ms")
    found.count("max_cycle_rows", p.max_cycle_rows)
    share: Any = p.max_bad_share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        found.add("max_bad_share", f"expected a share above 0 and at most 1, got {share!r}")
    if p.pending_limit is not None:
        found.count("pending_limit", p.pending_limit)


def _check_topics_differ(p: Pipeline, found: Problems) -> None:
    used: dict[str, str] = {}
    topics = {
        "events.topic": getattr(p.events, "topic", None),
        "labels.topic": getattr(p.labels, "topic", None),
        "predictions.topic": getattr(p.predictions, "topic", None),
        "predictions.dead_letters": getattr(p.predictions, "dead_letters", None),
        "name": f"{p.name}.journal",
    }
    for place, topic in topics.items():
        if isinstance(topic, str) and topic in used:
            journal = "the journal's topic " if place == "name" else ""
            found.add(place, f"{journal}{topic!r} is {used[topic]} as well; each needs a topic of its own")
        elif isinstance(topic, str):
            used[topic] = place
