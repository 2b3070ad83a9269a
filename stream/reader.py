"""Predictions from the newest snapshot, in any process: it takes Redis and the pipeline's declaration, no Kafka."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..connectors.leases import Slot, Slots
from ..connectors.record_table import RecordTable
from ..connectors.spans import Spans
from ..connectors.store import Snapshot, SnapshotStore
from ..errors import DeclarationError, HeadraceError, InputError, Refused, SnapshotError, Unreachable
from ..models.base import Link
from .declaration import Pipeline
from .decode import LATEST_TIME, Batch, Decoder
from .durations import parse_duration
from .engine import Engine
from .explain import rows_at_one_go
from .expressions import column_types, fields_of
from .features import Aggregate, Cross
from .frames import rows_of
from .leaves import Leaf, leaves
from .signing import require_key
from .slices import Slice
from .snapshot import unpack

log = logging.getLogger(__name__)

ROWS = 8192  # decoded and predicted at one go
SHARED = "shared/"  # arrays that predict; those that wait for labels may be many times larger

Rows = Iterable[Mapping[str, Any] | msgspec.Struct] | pl.DataFrame
T = TypeVar("T")


class Explanation(NamedTuple):
    """What a prediction is made of; of several classes, the one with the greatest P.

    prediction     P(true), P of the class, or the value
    base           where the raw score starts before any feature is looked at
    contributions  what each feature adds to it, by name, the heaviest first: base and all of them add up to the raw
                   score
    link           what makes the prediction of the raw score, see `Explainer.link`
    label          the class, where there are several
    """

    prediction: float
    base: float
    contributions: dict[str, float]
    link: Link
    label: str | None = None


class SnapshotReader:
    """Serves the newest snapshot of a pipeline, and swaps to a newer one by itself.

    pipeline  the declaration the worker runs, its features and its model to the letter
    url       the Redis where its workers publish
    slot      the worker whose model is served. None: the lowest slot that a worker holds now and that has a snapshot.
              When that worker ends the next one's model is served, and its own again when it is back. While no worker
              runs the slot that is served stays; a reader that is made then serves the lowest there is
    poll      a duration: a newer version is looked for at least so often, and Redis tried again when it is away
    wait      seconds to wait for the first snapshot that can be served
    hmac_key  if given, only snapshots signed with it are served. A pipeline with a model of River needs it: its state
              is a pickle

    Raises InputError where the key is needed and not given; SnapshotError when there is no snapshot, or none that is
    whole and of this pipeline; Unreachable or Refused when Redis cannot be used: all of them at construction, which
    loads the first snapshot and compiles. From then on there is always a version to serve, and trouble with Redis or a
    snapshot is told by `problem` and logged once.

    `predict` may be called from several threads. Not promised: to survive a fork; make one in each process.
    `close` it, or use it in a `with` statement, to stop the thread that looks for newer versions.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        url: str,
        slot: int | None = None,
        *,
        poll: str = "1s",
        wait: float = 0.0,
        hmac_key: bytes | None = None,
    ) -> None:
        if not isinstance(pipeline, Pipeline):
            raise DeclarationError(f"SnapshotReader: expected a Pipeline, got {pipeline!r}")
        require_key(pipeline, hmac_key)
        self.pipeline = pipeline
        self._poll = parse_duration(poll, "poll") / 1e6
        self._slots = Slots(url, pipeline.name) if slot is None else None
        self._url, self._hmac_key = url, hmac_key
        self._store = self._store_of(slot or 0)  # what is followed
        self._rows = _RowDecoder(pipeline)
        self._lock = threading.Lock()  # models and decoders keep buffers
        self._away: str | None = None  # why Redis cannot be used
        self._bad: str | None = None  # why the current snapshot cannot be served
        self._seen, self._served = self._first(wait)
        self.predict([])  # compiles
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="headrace-reader", daemon=True)
        self._thread.start()

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """P(true) or the value for each row, float32 (B,), in the order of the rows.

        Where the label is one of several classes: the P of each, float32 (B, C), in the order of `pipeline.classes`.

        rows  dicts by field name, Structs of the events' schema, or a Polars frame with a column for each field
               (what is nested: a column of structs or lists, or one for each plain field in it, `user.age`)

        All rows are predicted by one version and none of them changes it: each one as if it were the next event. Event
        time is the row's time field; the time of the call where the pipeline takes that of the record. Fields that no
        feature reads from the row (the key, a label in the event, what only aggregates fold in) may be missing or None.

        For the state in the snapshot this equals the worker's next prediction to the bit, except where the event's
        time first makes the worker forget (a 64th of a half-life) or end waits.

        Raises InputError naming the first row that cannot be used and its field; then nothing is predicted.
        """
        served = self._served
        out = [np.empty((0, self.pipeline.spec.outputs), np.float32)]
        out += self._of_batches(rows, served.engine.look, ROWS)
        result = np.concatenate(out)
        return result[:, 0] if result.shape[1] == 1 else result

    def explain(self, rows: Rows) -> list[Explanation]:
        """What each feature adds to the prediction of each row, by the version that is served.

        rows  as `predict` takes them. Raises what it raises, and DeclarationError where the model cannot explain.
        """
        served, spec, classes = self._served, self.pipeline.spec, self.pipeline.classes
        names, link = spec.numeric + spec.categories, served.engine.learning.explainer.link(spec)
        most = min(ROWS, rows_at_one_go(spec.outputs, len(names)))
        told = []
        for out, contributions in self._of_batches(rows, served.engine.look_closely, most):
            chosen = out.argmax(axis=1).tolist()
            for row, of in enumerate(chosen):
                parts = contributions[row, of]
                order = np.argsort(-np.abs(parts[:-1]), kind="stable").tolist()
                by_feature = {names[f]: float(parts[f]) for f in order}
                label = classes[of] if classes else None
                told.append(Explanation(float(out[row, of]), float(parts[-1]), by_feature, link, label))
        return told

    def _of_batches(self, rows: Rows, work: Callable[[Batch], T], most: int) -> list[T]:
        """What `work` gives of the rows, so many at one go; one thread works at a time."""
        now = LATEST_TIME // 1000 if self.pipeline.events.time else time.time_ns() // 1_000_000
        numbered, done = enumerate(self._rows.each(rows)), []
        while part := list(islice(numbered, most)):
            structs = [self._rows.convert(number, row) for number, row in part]
            with self._lock:
                done.append(work(self._rows.batch(part[0][0], structs, now)))
        return done

    @property
    def version(self) -> int:
        """The version that is served; each slot counts its own."""
        return self._served.version

    @property
    def slot(self) -> int:
        """The slot whose version is served."""
        return self._served.store.slot

    @property
    def model(self) -> str:
        """The name of the model that predicts, where the pipeline has several; else the pipeline's."""
        contest = self._served.engine.contest
        return self.pipeline.name if contest is None else contest.names[contest.serves]

    @property
    def age_seconds(self) -> float:
        """Wall time since the version that is served was published, by the clocks of both machines."""
        return time.time() - self._served.created

    @property
    def problem(self) -> str | None:
        """Why no newer version can be had now, although predictions go on; None when all is well."""
        return self._away or self._bad

    def close(self) -> None:
        """Stop looking for newer versions. The one that is served stays and `predict` goes on working."""
        self._closing.set()
        self._thread.join(2 + self._poll)  # a Redis that hangs must not hold up an exit; the thread ends by itself

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SnapshotReader({self._served.store.name!r}, version {self.version}, {self.age_seconds:.1f} s old)"

    # -- versions

    def _first(self, wait: float) -> tuple[int, _Served]:
        """(the version that is current, one to serve): the same, unless the current one is torn."""
        deadline = time.monotonic() + wait
        while True:
            try:
                return self._newest_whole()
            except (SnapshotError, Unreachable):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
            time.sleep(min(self._poll, left))

    def _newest_whole(self) -> tuple[int, _Served]:
        self._bad = None
        if self._slots is not None:
            self._store = self._store_of(_lowest(self._slots.look()))
        try:
            snapshot = self._store.load(prefix=SHARED)
            current = snapshot.version
        except SnapshotError as error:
            pointer, older = self._store.current(), self._store.load_newest_whole(SHARED)
            if pointer is None or older is None:
                raise
            current, snapshot = pointer.version, older
            if older.version != current:
                self._bad = str(error)
        return current, self._prepare(snapshot)

    def _follow(self) -> None:
        """Serve every version that becomes current and can be; runs in a thread of its own.

        What is current decides, also where its number is lower: Redis may have begun anew, or a restore gone back.
        """
        while not self._closing.is_set():
            try:
                self._choose()
                version = self._store.wait_newer(self._seen, self._poll)
                if self._away is not None:
                    log.info("%s: Redis answers again", self._store.name)
                    self._away = None
                if version is not None:
                    self._take(version)
            except Exception as error:  # Unreachable, Refused; and a fault of ours must not end the swapping unseen
                self._away = self._keep(error, self._away)
                self._closing.wait(self._poll)

    def _choose(self) -> None:
        """Follow the slot that is to be served now; what is served stays until a version of that slot can be."""
        if self._slots is not None:
            slot = _lowest(self._slots.look(), self.slot)
            if slot != self._store.slot:
                self._store, self._seen = self._store_of(slot), 0

    def _take(self, version: int) -> None:
        """Serve a version from now on, or keep the one that is served and say why."""
        try:
            served = self._prepare(self._store.load(version, SHARED))
        except (Unreachable, Refused):
            raise
        except Exception as error:
            current = self._store.current()
            if current is None or current.version == version:  # else it was replaced while it was loaded
                self._seen, self._bad = version, self._keep(error, self._bad)
            return
        if served.store.slot != self.slot:
            log.info("%s: version %d is served from now on, no longer slot %d", self._store.name, version, self.slot)
        elif self._bad is not None:
            log.info("%s: version %d is whole and served", self._store.name, version)
        self._seen, self._bad, self._served = version, None, served

    def _keep(self, error: Exception, before: str | None) -> str:
        """Say why the version that is served stays, unless something was said before; returns the problem."""
        if before is None:
            foreseen = isinstance(error, HeadraceError)
            name, version = self._served.store.name, self.version
            log.warning("%s: version %d goes on being served: %s", name, version, error, exc_info=not foreseen)
        return str(error) or type(error).__name__

    def _prepare(self, snapshot: Snapshot) -> _Served:
        """An engine of its own for each version: nothing is ever loaded into one that may be predicting."""
        state, _ = unpack(snapshot.arrays, snapshot.meta, self.pipeline, signed=snapshot.signed)
        _require_same(self.pipeline, snapshot.meta)
        engine = Engine(self.pipeline)
        engine.load(state)
        return _Served(engine, self._store, snapshot.version, snapshot.created)

    def _store_of(self, slot: int) -> SnapshotStore:
        return SnapshotStore(self._url, self.pipeline.name, slot, hmac_key=self._hmac_key)


class _Served(NamedTuple):
    engine: Engine
    store: SnapshotStore
    version: int
    created: float


def _lowest(slots: Mapping[int, Slot], served: int | None = None) -> int:
    """The slot to serve: the lowest that is held and has a snapshot, or whose snapshot is served already.

    If there is none: the one that is served, or the lowest that has a snapshot, or 0.
    """
    for number, slot in slots.items():
        if slot.holder is not None and (slot.exists or number == served):
            return number
    if served is not None:
        return served
    return next((number for number, slot in slots.items() if slot.exists), 0)


class _RowDecoder:
    """Rows of a user as the batches that the engine looks at. `batch` is used from one thread at a time."""

    def __init__(self, pipeline: Pipeline) -> None:
        events = pipeline.events
        self.schema = events.schema
        self._decoder = Decoder(pipeline, "events", learned=False)
        required = {f.name for f in msgspec.structs.fields(self.schema) if f.required}
        plain, read = leaves(self.schema), _read_from_row(pipeline)
        if "." in events.key:
            read.add(events.key)  # what it lies in has to be there
        spare = required - {plain[name].steps[0] for name in read}
        self._spare_key = events.key if events.key in spare else None
        self._no_key: Any = "" if column_types(self.schema)[events.key] == pl.String else 0
        # two types: what a record would do to its values at decoding has been done to those of a Struct
        self._of_dicts = _with_optional(self.schema, spare, self.schema)
        self._of_structs = _with_optional(self.schema, spare)

    def each(self, rows: Any) -> Iterator[Any]:
        """The rows one by one; raises InputError for what holds none."""
        if isinstance(rows, pl.DataFrame):
            return rows_of(rows, self.schema)
        if isinstance(rows, Mapping | msgspec.Struct | str | bytes | pl.LazyFrame) or not isinstance(rows, Iterable):
            one = "; for one row predict([row])" if isinstance(rows, Mapping | msgspec.Struct) else ""
            raise InputError(
                f"rows: expected a list of dicts or Structs, or a Polars DataFrame, got `{type(rows).__name__}`{one}"
            )
        return iter(rows)

    def convert(self, number: int, row: Any) -> Any:
        """A row as a Struct with the fields of the schema; raises InputError."""
        try:
            if isinstance(row, self.schema):
                return self._of(row, self._of_structs, from_attributes=True)
            if isinstance(row, Mapping):
                return self._of(dict(row), self._of_dicts)
        except msgspec.ValidationError as error:
            reason, _, path = str(error).partition(" - at `$.")
            if reason.startswith("Object missing required field `"):
                path = ".".join([*filter(None, [path.rstrip("`")]), reason.split("`")[1]])
                reason = f"missing, and {self.schema.__name__} requires it"
            raise _invalid(number, reason, path.rstrip("`")) from None
        raise _invalid(number, f"expected a dict or {self.schema.__name__}, got `{type(row).__name__}`")

    def _of(self, row: Any, schema: type[msgspec.Struct], from_attributes: bool = False) -> Any:
        try:
            found = msgspec.convert(row, schema, from_attributes=from_attributes)
        except msgspec.ValidationError:
            if from_attributes:
                raise
            found = msgspec.convert(_without_numpy(row), schema)
        if self._spare_key is not None and getattr(found, self._spare_key) is None:
            msgspec.structs.force_setattr(found, self._spare_key, self._no_key)
        return found

    def batch(self, start: int, structs: list[Any], timestamp: int) -> Batch:
        """The batch of rows numbered from `start`, all with one record timestamp; raises InputError."""
        n, none = len(structs), Spans.none(len(structs))
        table = RecordTable(np.arange(start, start + n), np.full(n, timestamp), none, none, none)
        try:
            batch = self._decoder.columns(Slice("events", 0, start, start + n, table), structs, [])
        except UnicodeEncodeError:
            raise _not_text(start, structs, leaves(self.schema)) from None
        if batch.dead:
            first = batch.dead[0]
            raise _invalid(first.record.offset, first.reason, first.path.removeprefix("$."))
        return batch


def _without_numpy(value: Any) -> Any:
    """Values of numpy, in whatever they lie, as those of Python."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _without_numpy(one) for name, one in value.items()}
    return [_without_numpy(one) for one in value] if isinstance(value, list | tuple) else value


def _read_from_row(pipeline: Pipeline) -> set[str]:
    """The fields of an event that its own prediction depends on; what an aggregate folds in counts for later events."""
    fields = {pipeline.events.time} if pipeline.events.time else set()
    for feature in pipeline.features:
        if isinstance(feature, Aggregate):
            fields.update(feature.by)
        else:
            for part in feature.parts if isinstance(feature, Cross) else (feature.value,):
                fields.update(fields_of(part))
    return fields


def _with_optional(
    schema: type[msgspec.Struct], optional: set[str], base: type[msgspec.Struct] = msgspec.Struct
) -> type[msgspec.Struct]:
    """A schema with the same fields in the same order, of which some may be None or missing."""
    fields: list[Any] = []
    for f in msgspec.structs.fields(schema):
        given = (
            {"default": None} if f.name in optional else {"default": f.default, "default_factory": f.default_factory}
        )
        annotation = f.type | None if f.name in optional else f.type
        fields.append((f.name, annotation, msgspec.field(name=f.encode_name, **given)))
    return msgspec.defstruct(schema.__name__, fields, bases=(base,), kw_only=True)


def _invalid(number: int, reason: str, field: str = "") -> InputError:
    where = f"row {number}, field `{field}`" if field else f"row {number}"
    return InputError(f"{where}: {reason[:1].lower()}{reason[1:]}; nothing was predicted")


def _not_text(start: int, structs: list[Any], plain: Mapping[str, Leaf]) -> InputError:
    """The error that names the first field with half of a surrogate pair, which a str of Python may hold."""
    for number, row in enumerate(structs, start):
        for name, leaf in plain.items():
            value = leaf.of(row)
            if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
                return _invalid(number, f"expected text, got {value!r}, which is no Unicode", name)
    return InputError("rows: a text is no Unicode")


def _require_same(pipeline: Pipeline, meta: Mapping[str, Any]) -> None:
    """Raise SnapshotError unless the snapshot was made with these features, in this order, and this model.

    Arrays do not tell: a table of hashed categories fits any list of them. Expressions are compared where both sides
    run one version of Polars, which alone can say whether two are equal.
    """
    here = json.loads(json.dumps(pipeline.describe()))
    there = meta.get("declaration") or {}
    if meta.get("libraries", {}).get("polars") != pl.__version__:
        here, there = _without_expressions(here), _without_expressions(there)
    names, before = ([f["name"] for f in side.get("features", ())] for side in (here, there))
    changed = [
        f"`{a['name']}` is declared otherwise" for a in here["features"] for b in there.get("features", ())
        if a["name"] == b["name"] and a != b
    ]  # fmt: skip
    differences = [f"`{name}` is missing in it" for name in names if name not in before]
    differences += [f"it has `{name}` besides" for name in before if name not in names]
    differences += changed
    if not differences and names != before:
        differences = [f"its order is {', '.join(before)}"]
    if differences:
        raise SnapshotError(
            f"the snapshot of {pipeline.name!r} was made with another feature list: {'; '.join(differences)}. "
            "Read it with the pipeline file that the worker runs"
        )
    for what in ("task", "classes", "model", "models", "serve"):
        if here.get(what) != there.get(what):
            raise SnapshotError(
                f"the snapshot of {pipeline.name!r} was made with {what} {there.get(what)}, this pipeline declares "
                f"{here.get(what)}. Read it with the pipeline file that the worker runs"
            )


def _without_expressions(declaration: Mapping[str, Any]) -> dict[str, Any]:
    features = [{k: v for k, v in f.items() if k != "value"} for f in declaration.get("features", ())]
    return {**declaration, "features": features}
