"""What `headrace check FILE` prints: what a pipeline would do, in the words of its declaration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from ..models.chain import as_chain
from .aggregates import Fold, group_layout
from .columns import groups_of
from .declaration import Pipeline
from .durations import format_duration
from .engine import Engine
from .expressions import column_types, show
from .features import Aggregate, Feature
from .load import load_pipeline
from .ring import Ring
from .settings import KEY_VARIABLE

UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}


def check(path: str) -> int:
    """Print what the pipeline in FILE[:name] would do; returns the exit status.

    Raises InputError and DeclarationError as `load_pipeline` does. Connects to nothing.
    """
    pipeline = load_pipeline(path)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{pipeline.name}: declared well; nothing was connected to\n")
    sections = report(pipeline)
    width = max(len(subject) for lines in sections.values() for subject, _ in lines)
    for heading, lines in sections.items():
        for i, (subject, text) in enumerate(lines):
            console.print(f"{heading if i == 0 else '':<10}", style="bold", end="")
            console.print(f"{subject:<{width}}  {text}".rstrip(), markup=False)
    return 0


def report(pipeline: Pipeline) -> dict[str, list[tuple[str, str]]]:
    """What the pipeline would do: under each heading, lines of (subject, text)."""
    engine = Engine(pipeline)
    return {
        "reads": list(_reads(pipeline)),
        "label": list(_label(pipeline)),
        "features": list(_features(pipeline)),
        "model": list(_model(pipeline)),
        "writes": list(_writes(pipeline)),
        "memory": list(_memory(engine)),
    }


def _reads(p: Pipeline) -> Iterator[tuple[str, str]]:
    start = "the oldest record" if p.events.start == "earliest" else "the next record"
    yield (
        p.events.topic,
        f"{_side(p.events.schema, p.events.key, p.events.time, p.events.unit)}; a new group begins at {start}",
    )
    if p.labels is not None and p.delayed:
        yield p.topics["labels"], _side(p.labels.schema, p.labels.key, p.labels.time, p.labels.unit)


def _side(schema: type | None, key: str | None, time: str | None, unit: str | None) -> str:
    name = schema.__name__ if schema is not None else ""
    fields = len(column_types(schema)) if schema is not None else 0
    clock = "the record's timestamp" if time is None else f"`{time}`{f' in {UNITS[unit]}' if unit else ''}"
    return f"{name}, {fields} fields; key `{key}`; time {clock}"


def _label(p: Pipeline) -> Iterator[tuple[str, str]]:
    labels = p.labels
    if labels is None:
        learns = "the model learns from the features alone" if as_chain(p.model).unsupervised else "does not learn"
        yield "none", f"the pipeline predicts and {learns}"
        return
    classes = f" of {len(p.classes)} classes: {', '.join(p.classes)}" if p.classes else ""
    yield show(labels.value_expr), f"{p.task}{classes}"
    if labels.weight_expr is not None:
        yield "weight", f"{show(labels.weight_expr)}; of 0: scored and not learned"
    if labels.topic is None:
        yield "wait", "none: the label is in the event, which is predicted before it is learned"
        return
    after = "dropped" if labels.otherwise is None else f"learned as {labels.otherwise}"
    yield "wait", f"{labels.within} from the event's time; then the event is {after}"
    yield "order", f"labels and events advance together to within {format_duration(labels.alignment_us)}"
    yield "early", f"a label before its event waits {labels.early}"


def _features(p: Pipeline) -> Iterator[tuple[str, str]]:
    yield f"{len(p.numeric)} numeric, {len(p.categories)} categorical", ""
    for feature in p.features:
        yield f"  {feature.name}", _feature(feature)


def _feature(feature: Feature) -> str:
    if not isinstance(feature, Aggregate):
        return repr(feature)
    when = "moves with each label" if feature.source == "label" else "moves with each event"
    window = ""
    if feature.over:
        window = f", window of {format_duration(feature.over)}"
    elif feature.half_life:
        window = f", half-life of {format_duration(feature.half_life)}"
    value = f" of {show(feature.value)}" if feature.value is not None and not isinstance(feature.value, str) else ""
    value = " of the label" if isinstance(feature.value, str) else value
    size = _size(sum(_nbytes(array.shape, array.dtype) for array in Fold(feature).layout().values()))
    return f"{feature.kind}{value} by {', '.join(feature.by)}{window}; {when}; {feature.capacity:,} keys, {size}"


def _model(p: Pipeline) -> Iterator[tuple[str, str]]:
    for name, model in p.models_by_name.items():
        if p.models is not None:
            first = "serves" if name == next(iter(p.models)) else "in its shadow"
            yield f"{name}:", "" if p.serve is not None else first
        yield from _parts(model)
    if p.serve is not None:
        yield "serves", f"whichever was best of late: {p.serve!r}; {next(iter(p.models or ()))} at first"
    if p.drift is not None:
        does = {"report": "is counted", "reset": "resets the learner"}
        does["boost"] = f"makes the learner keep {p.drift.boost:g} of its evidence"
        what = "wrong classes" if p.drift.on == "error" else "the loss"
        yield "drift", f"{p.drift!r} hears {what}; a drift {does[p.drift.action]}"


def _parts(model: Any) -> Iterator[tuple[str, str]]:
    chain = as_chain(model)
    for part in chain.parts:
        text = repr(part)
        name, _, settings = text.partition("(")
        yield name, settings.removesuffix(")") or "as is"
    if chain.opaque():
        yield "keeps", f"its state as a pickle: a worker needs {KEY_VARIABLE}, `headrace evaluate` does not"
    if chain.updates == "sequential":
        yield "learns", "one example after another, the same whatever the slices"
    else:
        yield "learns", f"in micro-batches of {chain.batch_size}"


def _writes(p: Pipeline) -> Iterator[tuple[str, str]]:
    what = {None: "the score", "binary": "P(true)", "multiclass": "P of each class", "regression": "the value"}
    scores = any(as_chain(model).unsupervised for model in p.models_by_name.values())
    says = "the score" if scores else what[p.spec.task]
    why = f", with the {p.predictions.explain} features that weighed most" if p.predictions.explain else ""
    yield p.predictions.topic, f"a prediction for each event: {says}{why}"
    yield p.predictions.dead_letters, "records that could not be used, as they came"
    yield p.journal_topic, "which slices each cycle processed"
    tie = "one transaction for each cycle" if p.delivery == "exactly_once" else "a prediction may come twice"
    yield "delivery", f"{p.delivery.replace('_', ' ')}: {tie}"
    yield "latency", f"cycles of {p.latency}; of more where the worker is behind, {p.max_cycle_rows:,} rows at most"
    yield "snapshots", f"every {p.snapshots.every}, {p.snapshots.keep} kept"
    broken = "stops the worker" if p.snapshots.on_nan == "stop" else "is rolled back to the newest snapshot"
    yield "NaN", f"a model that has turned to NaN or infinity {broken}"


def _memory(engine: Engine) -> Iterator[tuple[str, str]]:
    """Bounds of what a worker holds."""
    p = engine.pipeline
    model = sum(_nbytes(a.shape, a.dtype) for a in engine.model.layout(engine.spec).values())
    yield "model", _size(model)
    for part in engine.model.opaque().values():
        yield "", f"and a pickle of {_size(len(part.dump()))}, which may grow as it learns"
    folds = [Fold(f) for f in p.features if isinstance(f, Aggregate)]
    if folds:
        keys = sum(_nbytes(a.shape, a.dtype) for g in groups_of(p) for a in group_layout(g.capacity).values())
        values = sum(_nbytes(a.shape, a.dtype) for fold in folds for a in fold.layout().values())
        yield "aggregates", f"{_size(keys + values)} when every key is taken"
    if p.labels is not None and engine.delayed:
        row = pending_row_bytes(engine)
        day = row * 1_000 * p.labels.within_us // 1_000_000
        yield "pending", f"rate x wait x {row} bytes: 1,000 events/s that wait {p.labels.within} take {_size(day)}"
    snapshot = sum(a.nbytes for a in engine.arrays.values())
    waiting = " and what is pending" if engine.delayed else ""
    yield "a snapshot", f"{_size(snapshot)}{waiting}; what did not change is not sent again"


def pending_row_bytes(engine: Engine) -> int:
    """Bytes that a prediction takes while it waits for its label."""
    engine.own(0)
    ring: Ring = engine.partitions[0].pending
    return ring.nbytes() // (ring.mask + 1)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _size(n: int) -> str:
    """Bytes to read: 512 bytes, 4.2 MB."""
    if n < 1_000:
        return f"{n} bytes"
    size = float(n)
    for unit in ("kB", "MB", "GB"):
        size /= 1_000
        if size < 1_000:
            return f"{size:.1f} {unit}"
    return f"{size / 1_000:.1f} TB"
