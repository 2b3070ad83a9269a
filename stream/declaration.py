"""What a user declares, checked whole: `Pipeline` and its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import polars as pl

from ..errors import DeclarationError
from ..models.base import Spec, Task, check_number
from ..models.drift import DriftDetector
from .durations import parse_duration
from .expressions import column_types, show
from .features import Aggregate, Cross, Feature

if TYPE_CHECKING:
    import faust

    from .slices import Role

Unit = Literal["s", "ms", "us"]


@dataclass(frozen=True, eq=False, repr=False)
class Events:
    """The topic a pipeline predicts for.

    key names the field that labels refer to. time names the field of the event time: a datetime, or a number with
    unit "s", "ms" or "us" since the epoch; without it the record's timestamp counts. A time more than `ahead` past
    the record's timestamp makes a dead letter. start says where a group without committed offsets begins. A field of a
    nested Struct or a place in a list of fixed length is named with dots, here and in features: `user.id`, `vector.0`.
    """

    topic: str
    schema: type[msgspec.Struct]
    key: str = field(kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    unit: Unit | None = field(default=None, kw_only=True)
    ahead: str = field(default="1h", kw_only=True)
    start: Literal["earliest", "latest"] = field(default="earliest", kw_only=True)

    @cached_property
    def ahead_us(self) -> int:
        """ahead in microseconds."""
        return parse_duration(self.ahead, "ahead")

    def __repr__(self) -> str:
        return f"Events({self.topic!r}, {getattr(self.schema, '__name__', '?')}, key={self.key!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Labels:
    """The truth about events: on a topic of its own, or (without a topic) in the event.

    value is a field or an expression over the label's record: Boolean makes the task binary, float regression, text
    multiclass with `classes`; integers need `task`. A label is waited for `within` of event time; after that the
    event is learned as `otherwise`, or dropped when that is None. A label before its event is kept for `early`.
    Events and labels advance together to within `alignment` (within/96 unless given).

    weight is a field or an expression over the same record: how much is learned from the example, as if it had come so
    many times; 1 where there is none, and for what is learned as `otherwise`. One of weight 0 is predicted and counted
    in the metrics, and not learned; a record whose weight is negative, null, NaN or infinite is a dead letter. The
    metrics take each label once, whatever its weight.
    """

    topic: str | None = None
    schema: type[msgspec.Struct] | None = None
    value: str | pl.Expr = field(kw_only=True)
    weight: str | pl.Expr | None = field(default=None, kw_only=True)
    key: str | None = field(default=None, kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    unit: Unit | None = field(default=None, kw_only=True)
    within: str | None = field(default=None, kw_only=True)
    otherwise: bool | int | float | str | None = field(default=None, kw_only=True)
    early: str = field(default="10m", kw_only=True)
    alignment: str | None = field(default=None, kw_only=True)
    ahead: str = field(default="1h", kw_only=True)
    classes: Sequence[str] | None = field(default=None, kw_only=True)
    task: Task | None = field(default=None, kw_only=True)

    @property
    def value_expr(self) -> pl.Expr:
        """value as an expression."""
        return pl.col(self.value) if isinstance(self.value, str) else self.value

    @property
    def weight_expr(self) -> pl.Expr | None:
        """weight as an expression."""
        return pl.col(self.weight) if isinstance(self.weight, str) else self.weight

    @cached_property
    def within_us(self) -> int:
        """within in microseconds; 0 when the label is in the event."""
        return 0 if self.within is None else parse_duration(self.within, "within")

    @cached_property
    def early_us(self) -> int:
        """early in microseconds."""
        return parse_duration(self.early, "early")

    @cached_property
    def alignment_us(self) -> int:
        """alignment in microseconds; 0 when the label is in the event."""
        if self.alignment is not None:
            return parse_duration(self.alignment, "alignment")
        return 0 if self.within is None else -(-self.within_us // 96)

    @cached_property
    def ahead_us(self) -> int:
        """ahead in microseconds."""
        return parse_duration(self.ahead, "ahead")

    def __repr__(self) -> str:
        where = [] if self.topic is None else [repr(self.topic), getattr(self.schema, "__name__", "?")]
        within = [] if self.within is None else [f"within={self.within!r}"]
        value = show(self.value_expr) if isinstance(self.value, str | pl.Expr) else repr(self.value)
        return f"Labels({', '.join([*where, f'value={value}', *within])})"


@dataclass(frozen=True)
class Predictions:
    """The topic of the predictions, and the topic of the records that could not be used ("{topic}.dead-letters").

    headers      carry the headers of an event's record on to its prediction: trace ids such as `traceparent`
    compression  of all that the worker writes, the journal too; a batch that it makes no smaller is left as it is.
                 Predictions shrink to a fifth (lz4) or a ninth (zstd), beside the computing of the next ones
    explain      with each prediction go so many features, those that weighed most in it; None: no explanations
    """

    topic: str
    dead_letters: str = field(default="", kw_only=True)
    headers: bool = field(default=False, kw_only=True)
    compression: Literal["lz4", "zstd"] | None = field(default=None, kw_only=True)
    explain: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.dead_letters, str) and not self.dead_letters:
            object.__setattr__(self, "dead_letters", f"{self.topic}.dead-letters")


@dataclass(frozen=True)
class Snapshots:
    """How often a snapshot is published, how many are kept, and what becomes of a model that has turned to NaN.

    on_nan  "stop": the worker stops, and says so; "rollback": it goes back to the newest snapshot and goes on from
            there behind the records of the cycle that broke the model; those since the snapshot are predicted and
            counted, and not learned
    """

    every: str = "5s"
    keep: int = 10
    on_nan: Literal["stop", "rollback"] = "stop"

    def __post_init__(self) -> None:
        if not isinstance(self.on_nan, str) or self.on_nan not in ("stop", "rollback"):
            raise DeclarationError(f"pipeline snapshots.on_nan: expected 'stop' or 'rollback', got {self.on_nan!r}")

    @cached_property
    def every_us(self) -> int:
        """every in microseconds."""
        return parse_duration(self.every, "every")


@dataclass(frozen=True)
class Best:
    """Serve whichever of `models` was best of late, beginning with the first.

    window  a duration of event time. Losses count half after a third of it, an eighth after all of it: they are then on
            average as old as those of a plain window of that length
    lead    another one takes over when the losses of the one that serves are worse by so many standard errors of their
            difference; 0: as soon as they are worse

    Who serves is decided anew after each example, from losses of predictions that were made before their labels came:
    the log loss of a binary or multiclass task, the absolute error of a regression.
    """

    window: str = "6h"
    lead: float = field(default=2.0, kw_only=True)

    def __post_init__(self) -> None:
        parse_duration(self.window, "Best(window=)")
        check_number("Best(lead=)", self.lead, 0.0)

    @cached_property
    def half_life_us(self) -> int:
        """After how many microseconds of event time a loss counts half."""
        return -(-parse_duration(self.window) // 3)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Pipeline:
    """One stream of events, its features, its labels, the model that learns from them, and where predictions go.

    Constructing it checks all of it: DeclarationError lists each problem with its place and the remedy.

    delivery "exactly_once" ties predictions and offsets into transactions; "at_least_once" spares the latency, and a
    prediction may come twice. latency is the aim for the time that an event waits in the worker until its cycle, what
    is processed between two commits, ends; a worker that is behind makes longer ones, of max_cycle_rows at most, and so
    catches up. max_bad_share of
    the last 1,000 records bad stops the worker. pending_limit bounds the predictions that wait for their label.
    drift hears the loss of each prediction, and says when the stream has changed; its `action` is then taken.
    models, in the place of model, are several by name: the first serves, or whichever `serve` says; the others learn
    and are scored in its shadow. A detector of drift then hears each of them by itself.
    """

    name: str
    events: Events
    labels: Labels | None = None
    features: Sequence[Feature]
    model: Any = None
    models: Mapping[str, Any] | None = None
    serve: Best | None = None
    predictions: Predictions
    snapshots: Snapshots = Snapshots()
    drift: DriftDetector | None = None
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    latency: str = "10ms"
    max_cycle_rows: int = 100_000
    max_bad_share: float = 0.5
    pending_limit: int | None = None

    numeric: tuple[str, ...] = field(init=False)  # names of the numeric columns, in order of declaration
    categories: tuple[str, ...] = field(init=False)  # names of the categorical columns, in order of declaration
    task: Task | None = field(init=False)  # None: no labels
    classes: tuple[str, ...] = field(init=False)  # of a multiclass task
    spec: Spec = field(init=False)

    def __post_init__(self) -> None:
        from .validation import check_pipeline  # which knows all of the classes above

        features, task, classes, spec = check_pipeline(self)
        values: dict[str, Any] = {"features": features, "task": task, "classes": classes, "spec": spec}
        if self.models is not None:
            values["models"] = dict(self.models)  # whoever made it may change it
        for name, value in {**values, "numeric": spec.numeric, "categories": spec.categories}.items():
            object.__setattr__(self, name, value)

    @property
    def journal_topic(self) -> str:
        """The topic that records which slices each cycle processed."""
        return f"{self.name}.journal"

    @property
    def group(self) -> str:
        """The Kafka consumer group of the workers."""
        return f"headrace.{self.name}"

    @cached_property
    def latency_us(self) -> int:
        """latency in microseconds."""
        return parse_duration(self.latency, "latency")

    @property
    def delayed(self) -> bool:
        """Whether labels come on a topic of their own, after their events."""
        return self.labels is not None and self.labels.topic is not None

    @cached_property
    def topics(self) -> Mapping[Role, str]:
        """The topics that are read."""
        topics: dict[Role, str] = {"events": self.events.topic}
        if self.labels is not None and self.labels.topic is not None:
            topics["labels"] = self.labels.topic
        return topics

    @cached_property
    def roles(self) -> Mapping[str, Role]:
        """What is read from each topic."""
        return {topic: role for role, topic in self.topics.items()}

    @property
    def alignment_us(self) -> int | None:
        """How far events may run ahead of their labels, in microseconds; None: no labels come after them."""
        return self.labels.alignment_us if self.labels is not None and self.delayed else None

    @cached_property
    def app(self) -> faust.App:
        """The Faust app of a worker, with the settings of the environment."""
        from .settings import Settings
        from .worker import build_app

        return build_app(self, Settings.from_environment())

    def evaluate(self, events: pl.DataFrame, labels: pl.DataFrame | None = None) -> dict[str, Any]:
        """Run over frames, without Kafka or Redis: the progressive metrics that `headrace evaluate --json` prints."""
        from .evaluate import evaluate_frames

        return evaluate_frames(self, events, labels)

    def describe(self) -> dict[str, Any]:
        """What shapes the state of this pipeline, JSON-able: a snapshot keeps it as its feature schema."""
        labels = self.labels
        return {
            "name": self.name,
            "events": _side(self.events.topic, self.events.schema, self.events.key, self.events.time, self.events.unit),
            "labels": None if labels is None else {
                **_side(labels.topic, labels.schema, labels.key, labels.time, labels.unit),
                "value": _expression(labels.value_expr),
                "within": labels.within_us,
                "early": labels.early_us,
                "alignment": labels.alignment_us,
                "otherwise": labels.otherwise,
                **({} if labels.weight_expr is None else {"weight": _expression(labels.weight_expr)}),
            },
            "task": self.task,
            "classes": list(self.classes),
            "features": [_feature(f) for f in self.features],
            **self._describe_models(),
        } | ({} if self.drift is None else {"drift": self.drift.config()})  # fmt: skip

    @property
    def models_by_name(self) -> Mapping[str, Any]:
        """All models, the first of `models` first; the name of an only one is empty."""
        return {"": self.model} if self.models is None else self.models

    def _describe_models(self) -> dict[str, Any]:
        if self.models is None:
            return {"model": _model(self.model)}
        first = next(iter(self.models))
        serve = first if self.serve is None else {"name": "Best", **asdict(self.serve), "first": first}
        return {"models": {name: _model(model) for name, model in self.models.items()}, "serve": serve}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of `describe()`: equal for pipelines that compute and learn the same."""
        return hashlib.sha256(msgspec.json.encode(self.describe(), order="deterministic")).hexdigest()

    def __repr__(self) -> str:
        model = f"model={self.model!r}" if self.models is None else f"models={dict(self.models)!r}"
        return f"Pipeline({self.name!r}, {len(self.features)} features, task={self.task!r}, {model})"


# --- description


def _model(model: Any) -> Any:
    return model.config() if hasattr(model, "config") else type(model).__name__


def _side(topic: str | None, schema: Any, key: str | None, time: str | None, unit: str | None) -> dict[str, Any]:
    fields = {} if schema is None else {name: str(dtype) for name, dtype in column_types(schema).items()}
    return {"topic": topic, "fields": fields, "key": key, "time": time, "unit": unit}


def _expression(expr: pl.Expr) -> dict[str, str]:
    """An expression to read, and a digest to compare: the text leaves out long lists."""
    exact = expr.meta.serialize(format="json").encode()
    return {"text": str(expr), "digest": hashlib.sha256(exact).hexdigest()[:16]}


def _feature(feature: Feature) -> dict[str, Any]:
    if isinstance(feature, Aggregate):
        value = feature.value
        return {
            "name": feature.name,
            "kind": feature.kind,
            "source": feature.source,
            "value": _expression(value) if isinstance(value, pl.Expr) else value,
            "by": list(feature.by),
            "over": feature.over,
            "half_life": feature.half_life,
            "capacity": feature.capacity,
        }
    parts = feature.parts if isinstance(feature, Cross) else (feature.value,)
    kind = type(feature).__name__.lower()
    return {"name": feature.name, "kind": kind, "value": [_expression(part) for part in parts]}
