"""The core: pieces of decoded slices go in, predictions and dead letters come out. Pure: no IO, no clock, no threads.

The Faust worker, `headrace evaluate`, replay after a crash and the tests drive this same engine. The same pieces in the
same order give the same state, bit for bit, wherever they are cut; with a learner that learns in micro-batches also
wherever `end_cycle` falls the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..connectors.spans import Spans
from ..errors import SnapshotError, StreamStopped
from ..models.base import Array, Rows, Truth, allocate, allocate_touched, find_not_finite
from ..models.metrics import Metrics
from . import hashing
from .aggregate_kernels import NO_VALUE, THE_LABEL
from .aggregates import SLOTTED, Fold, FoldPlan, GroupTable, group_layout
from .align import BEFORE_ALL
from .columns import Group, groups_of, value_columns, value_name
from .contest import Contest
from .declaration import Pipeline
from .decode import Batch
from .explain import Explained, heaviest, rows_at_one_go
from .features import Aggregate
from .learning import Learning, Said, joined
from .ring import ABSENT, FLAG, SETTLED, Columns, Ring, row_of
from .slices import DeadLetter, Piece, Role

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# examples + unlearned = joined + those expired that `otherwise` gives a label. A new counter goes to the end: a state
# of before has none of it.
COUNTERS = (
    "events",  # records of the events topic that were predicted
    "predictions",
    "labels",  # records of the labels topic that held a label, and labels in events
    "examples",  # rows learned from
    "joined",  # labels that met their prediction
    "expired",  # predictions whose wait ran out
    "orphans",  # labels whose event never came
    "late",  # labels after their event's wait ran out
    "duplicates",  # labels for an event that has its label
    "misplaced",  # labels whose event waits in another partition
    "repeated",  # events whose key waits already: predicted, not learned from
    "dead_letters",
    "bad_events",
    "bad_labels",
    "unlearned",  # rows that would be examples, but their weight is 0, or label or end of wait came while muted
    "drifts",  # times that the detector of drift fired
    "infinite",  # numeric features of events that were infinite, and taken as missing
    "unusable",  # labels in events that name no class or are not finite: the event is predicted, not learned from
)

COUNTER_AT = {name: at for at, name in enumerate(COUNTERS)}

TICKS = 96  # waits end at multiples of within / TICKS of the watermark
FORGETTING_STEPS = 64  # what forgets does so at multiples of half_life / FORGETTING_STEPS
BAD_WINDOW = 1_000  # records over which the share of bad ones is taken
MISPLACED_WINDOW = 1_000
MISPLACED_SHARE = 0.2
REMEDY = "start from an earlier snapshot, with a smaller learning rate"
CHECKED_BYTES = (
    20 << 20
)  # of the model, looked at after each cycle: a table of 2**20 weights takes 1 ms, touched all over
TOGETHER = 512  # rows, or pieces: with fewer, events wait for those of other partitions to be predicted at one go
GONE = 1 << 16  # keys remembered after their row has left, to tell late and repeated labels from unknown ones


OPAQUE = "opaque/"  # begins the names of what is a pickle

_NOTHING_READ = np.empty((0, 0), np.float32)


class NotFinite(StreamStopped):
    """The model has turned to NaN or infinity. Nothing of the cycle in hand may be published."""


@dataclass(slots=True)
class Predicted:
    """Predictions for rows [lo, hi) of a batch of events; out float32 (hi - lo, O).

    by  uint8 (hi - lo,)  the place of the model that made each; None: the first made all
    """

    batch: Batch
    lo: int
    hi: int
    out: F32
    by: U8 | None = None

    @property
    def explained(self) -> Explained | None:
        """What weighed most in them, where the pipeline declares it."""
        return None if self.batch.explained is None else self.batch.explained.part(self.lo, self.hi)


@dataclass(slots=True)
class Processed:
    """What a piece gave: its place in the journal, its predictions, its dead letters.

    piece.next lies before the offset that was asked for where the stream has to stop in between.
    """

    piece: Piece
    predicted: Predicted | None
    dead: list[DeadLetter]


@dataclass
class EngineState:
    """All that an engine has learned: shared arrays, arrays of each partition, and a JSON-able description.

    What a model keeps beside its arrays is in `shared` too, uint8 under OPAQUE: it must never come from a stranger.
    """

    shared: dict[str, NDArray]
    partitions: dict[int, dict[str, NDArray]]
    meta: dict[str, Any]


class _Partition:
    """What belongs to one partition: clocks, predictions that wait, early labels, keys that are gone."""

    def __init__(self, engine: Engine) -> None:
        e = engine
        self.tick = e.tick
        self.pending = Ring(e.waiting)
        self.early = Ring(
            {
                "clock": ("int64", ()),
                "time": ("int64", ()),
                "y": ("float32", ()),
                "values": ("float64", (e.label_values,)),
                **({"weight": ("float32", ())} if e.weighted else {}),
            }
        )
        self.gone = Ring({})
        # clock of events, clock of labels, tick up to which waits have ended, end mark of events, end mark of labels
        self.clocks: I64 = np.array([BEFORE_ALL, BEFORE_ALL, BEFORE_ALL, 0, 0], np.int64)

    def state(self) -> dict[str, NDArray]:
        arrays = {"clocks": self.clocks.copy()}
        for name in ("pending", "early", "gone"):
            ring: Ring = getattr(self, name)
            arrays |= {f"{name}/{column}": array for column, array in ring.state().items()}
        return arrays

    def load(self, arrays: Mapping[str, NDArray]) -> None:
        self.clocks[:] = arrays["clocks"]
        self.clocks[2] = min(self.clocks[2], min(self.clocks[:2]) // self.tick)  # the wait may have been declared anew
        for name in ("pending", "early", "gone"):
            ring: Ring = getattr(self, name)
            prefix = f"{name}/"
            ring.load({key[len(prefix) :]: a for key, a in arrays.items() if key.startswith(prefix)})


class _Taken(NamedTuple):
    """Rows [lo, hi) of a batch of events that are still to be predicted to out, by whom to by; their clock."""

    part: _Partition
    batch: Batch
    lo: int
    hi: int
    clock: I64
    out: F32
    by: U8 | None


class Engine:
    """A pipeline at work on the pieces it is given."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.spec = pipeline.spec
        self.contest = Contest(pipeline, self._count) if pipeline.models is not None else None
        self.learning: Learning | Contest = self.contest or Learning(
            pipeline.model, pipeline.spec, pipeline.drift, self._count
        )
        self.model = self.learning.model
        self.n, self.k, self.outputs = len(pipeline.numeric), len(pipeline.categories), self.spec.outputs
        labels = pipeline.labels
        self.delayed = labels is not None and labels.topic is not None
        self.immediate = labels is not None and labels.topic is None
        self.within = labels.within_us if labels is not None and self.delayed else 0
        self.weighted = labels is not None and labels.weight is not None
        self.early_us = labels.early_us if labels is not None else 0
        self.tick = max(1, (self.within or 1) // TICKS)
        self.otherwise = math.nan
        if labels is not None and self.delayed and labels.otherwise is not None:
            value = labels.otherwise
            self.otherwise = float(pipeline.classes.index(value) if isinstance(value, str) else value)

        self._plan_aggregates()
        self.waiting: Columns = {  # of a prediction that waits for its label
            "clock": ("int64", ()),
            "time": ("int64", ()),
            "prediction": ("float32", (self.outputs,)),
            "numeric": ("float32", (self.n,)),
            "categories": ("uint64", (self.k,)),
            "groups": ("uint64", (len(self.label_groups),)),
            **self.learning.waiting(),
        }
        self._waiting_row = row_of(self.waiting)
        self.metrics: Metrics | None = None
        if labels is not None and self.spec.task is not None:
            self.metrics = Metrics(self.spec.task, self.outputs)
        self.explain = pipeline.predictions.explain or 0  # features named with each prediction
        self.drift = self.learning.drift
        self._bind()
        self.partitions: dict[int, _Partition] = {}
        # What came in order but is done later, many pieces at one go; the examples are older than the events.
        self._met: list[tuple[NDArray, ...]] = []  # examples taken and not learned yet
        self._taken: list[_Taken] = []  # events not predicted yet
        self.enter: Callable[[str], None] = lambda stage: None  # told which stage of the work begins; see stages.py
        self._muted: dict[tuple[Role, int], int] = {}  # rows before these offsets leave the shared state as it is
        self._mute = False  # whether the row in hand is one of them
        self.stop_reason: str | None = None  # set when the share of bad records or misplaced labels says: stop here

    # -- construction

    def _plan_aggregates(self) -> None:
        p = self.pipeline
        self.groups = groups_of(p)
        column = {name: j for j, name in enumerate(p.numeric)}
        values = {source: list(value_columns(p, source)) for source in ("event", "label")}
        self.label_values = len(values["label"])
        self._value_columns = {"events": len(values["event"]), "labels": self.label_values}
        # per group: (fold, column of numeric, source, column of Batch.values)
        self.folds: list[list[tuple[Fold, int, str, int]]] = [[] for _ in self.groups]
        for f in p.features:
            if not isinstance(f, Aggregate):
                continue
            g = self.groups.index(Group(f.by, f.capacity))
            if f.value is None:
                at = NO_VALUE
            elif isinstance(f.value, str):
                at = THE_LABEL
            else:
                at = values[f.source].index(value_name(f.value))
            self.folds[g].append((Fold(f), column[f.name], f.source, at))
        # a label in the event is there with it: what follows labels then moves with the event
        self.moves_with_event = {"event", "label"} if self.immediate else {"event"}
        moved = [{s for _, _, s, _ in folds} for folds in self.folds]
        self.event_groups = [g for g, sources in enumerate(moved) if sources & self.moves_with_event]
        self.label_groups = [g for g, sources in enumerate(moved) if sources - self.moves_with_event]

    def _bind(self) -> None:
        layout = self.learning.arrays()
        for group, folds in zip(self.groups, self.folds, strict=True):
            layout |= {f"group/{group.name}/{k}": a for k, a in group_layout(group.capacity).items()}
            for fold, *_ in folds:
                layout |= {f"aggregate/{fold.feature.name}/{k}": a for k, a in fold.layout().items()}
        if self.metrics is not None:
            layout |= {f"metrics/{k}": a for k, a in self.metrics.layout().items()}
        layout["counters"] = Array((len(COUNTERS),), "int64")
        layout["clock"] = Array((1,), "int64", BEFORE_ALL)  # the greatest event time, over all partitions
        layout["bad"] = Array((BAD_WINDOW,), "uint8")  # the last records: 1 is bad
        layout["bad_at"] = Array((1,), "int64")  # records so far: the next one goes there, modulo BAD_WINDOW
        layout["forgiven"] = Array((1,), "uint8")  # 1: told to go on although labels are misplaced
        self.layout = layout
        self.arrays = allocate(layout)
        model = {k: self.arrays[f"model/{k}"] for k in self.model.layout(self.spec)}
        self._touched = allocate_touched(self.model.layout(self.spec))  # since the last look at what is finite
        # blocks of tables that were written to up to the last end of a cycle; who copies them sets them back
        self.changed = {group: np.ones_like(marks) for group, marks in self._touched.items()}
        self.learning.bind(self.arrays, self._touched)
        self._opaque = self.model.opaque()
        self._plan_looks(model)
        self.tables: list[GroupTable] = []
        self._slotted: dict[str, int] = {}  # arrays with a row for each slot of a group, and which group
        for group in self.groups:
            table = GroupTable(**{k: self.arrays[f"group/{group.name}/{k}"] for k in group_layout(group.capacity)})
            self._slotted |= {f"group/{group.name}/{k}": len(self.tables) for k in SLOTTED}
            self.tables.append(table)
        self._plan_folds()
        if self.metrics is not None:
            self.metrics.bind({k: self.arrays[f"metrics/{k}"] for k in self.metrics.layout()})
        self._slotted |= {
            f"aggregate/{fold.feature.name}/{k}": g
            for g, folds in enumerate(self.folds)
            for fold, *_ in folds
            for k in fold.layout()
        }
        # a state may hold fewer rows: keys in use, counters and sums of before
        self._growing = {*self._slotted, *self.learning.growing, "counters", "metrics/sums"} & layout.keys()
        self._derived = {f"group/{group.name}/index" for group in self.groups}  # not saved: made from the keys
        self._counters: I64 = self.arrays["counters"]
        self._clock: I64 = self.arrays["clock"]
        self._decays = [
            (max(1, half_life // FORGETTING_STEPS), half_life, decay) for half_life, decay in self.model.decays()
        ]

    def _plan_folds(self) -> None:
        """What the aggregates do at an event, at a row that only looks at them, and at a label."""
        arrays = [
            [{k: self.arrays[f"aggregate/{fold.feature.name}/{k}"] for k in fold.layout()} for fold, *_ in folds]
            for folds in self.folds
        ]
        at_event, looking, at_label = list[list[int]](), list[list[int]](), list[list[int]]()
        for g, folds in enumerate(self.folds):
            for (fold, column, source, at), a in zip(folds, arrays[g], strict=True):
                moves = source in self.moves_with_event
                at_event.append(fold.row(a, g, moves, at if moves else NO_VALUE, column))
                looking.append(fold.row(a, g, False, NO_VALUE, column))
        for row, g in enumerate(self.label_groups):
            for (fold, _, source, at), a in zip(self.folds[g], arrays[g], strict=True):
                moves = source == "label"
                at_label.append(fold.row(a, row, moves, at if moves and at >= 0 else THE_LABEL, -1))
        tables = list(enumerate(self.tables))
        self._fold_events = FoldPlan([t.row(g, g in self.event_groups) for g, t in tables], at_event)
        self._look_at_folds = FoldPlan([t.row(g, False) for g, t in tables], looking)
        label_tables = [self.tables[g].row(row, True) for row, g in enumerate(self.label_groups)]
        self._fold_labels = FoldPlan(label_tables, at_label)

    def _plan_looks(self, model: Mapping[str, NDArray]) -> None:
        """Which arrays of the model `check_finite` looks at: the smaller ones, up to CHECKED_BYTES."""
        layout = self.model.layout(self.spec)
        self._looks: list[tuple[str, NDArray, NDArray[np.uint8]]] = []  # name, array, its blocks that were touched
        nbytes = 0
        for name, array in sorted(model.items(), key=lambda item: item[1].nbytes):
            nbytes += array.nbytes
            if array.dtype.kind == "f" and nbytes <= CHECKED_BYTES:
                rows = layout[name].rows
                self._looks.append(
                    (name, array, self._touched[rows] if rows else np.ones(-(-len(array) // 64), np.uint8))
                )

    # -- what is known

    def counters(self) -> dict[str, int]:
        """Counts since the beginning of the stream, with what waits now: `pending` predictions, `early` labels."""
        self._catch_up()
        counts = dict(zip(COUNTERS, self._counters.tolist(), strict=True)) | self.model.counters()
        counts["evicted"] = sum(table.evicted for table in self.tables)
        counts["pending"] = sum(p.pending.unsettled() for p in self.partitions.values())
        counts["early"] = sum(p.early.unsettled() for p in self.partitions.values())
        return counts

    def counters_now(self, name: str) -> int:
        """One of the counters; cheap."""
        return int(self._counters[COUNTER_AT[name]])

    def results(self) -> dict[str, float | int | None]:
        """Progressive metrics: each loss is of the prediction that was made before its label was known."""
        self._catch_up()
        learning = self.learning.results()
        return self.metrics.results() | learning if self.metrics is not None else learning

    def results_of_models(self) -> dict[str, dict[str, float | int | None]]:
        """The same of each model, where there are several: of what it said, whether or not that was served."""
        self._catch_up()
        return self.contest.results_of_models() if self.contest is not None else {}

    def clock(self, role: Role, partition: int) -> int:
        """The event time that a topic partition has reached, in microseconds; far below zero: none yet."""
        part = self.partitions.get(partition)
        return int(part.clocks[0 if role == "events" else 1]) if part is not None else BEFORE_ALL

    def own(self, partition: int) -> None:
        """Begin with a partition that has no state yet."""
        if partition not in self.partitions:
            self.partitions[partition] = _Partition(self)

    def disown(self, partition: int) -> dict[str, NDArray] | None:
        """Let go of a partition: its state, from which `load_partition` goes on; None where it is not owned."""
        self.predict_taken()
        part = self.partitions.pop(partition, None)
        self._muted = {of_this: offset for of_this, offset in self._muted.items() if of_this[1] != partition}
        return part.state() if part is not None else None

    def mute(self, until: Mapping[tuple[Role, int], int]) -> None:
        """From now on rows of these partitions before these offsets leave the shared state standing still.

        They are predicted with the model and the aggregates as they are; clocks, waits, joins, counters and progressive
        metrics go on; nothing is learned, observed, folded in or forgotten. What falls due to be forgotten is forgotten
        at the next row that is not muted. Whether an example is learned is decided by the row at which it would be: its
        label's, the event's where the label came before it, and where a wait ends the row that ended it. Examples taken
        before are learned as ever, also those that wait for a micro-batch to fill.

        The offsets are part of the state, and vanish once they are passed.
        """
        for at, offset in until.items():
            self._muted[at] = max(offset, self._muted.get(at, offset))

    @property
    def muted(self) -> bool:
        """Whether there are rows to come that leave the shared state as it is."""
        return bool(self._muted)

    # -- processing

    def process(self, batch: Batch, start: int, next: int, *, later: bool = False) -> Processed:
        """Process the records [start, next) of a batch, or fewer: see `Processed`.

        later  the predictions may be written to `out` up to when `predict_taken` is called: small pieces of several
               partitions are then predicted at one go, with the same result

        Sets `stop_reason` when the share of bad records, or of labels in the wrong partition, says that something is
        wrong with the whole topic. The share is taken after each record, and the piece ends at the first one at which
        it is too great. Raises NotFinite when a prediction is not finite: the model is broken then, and nothing of this
        cycle may be published.
        """
        part, place = self.partitions[batch.partition], (batch.role, batch.partition)
        lo, hi = int(batch.offset.searchsorted(start)), int(batch.offset.searchsorted(next))
        dead = _dead(batch, start, next)
        end = self._watch_bad_share(batch, lo, hi, dead)
        if end is not None:
            next, hi, dead = end, int(batch.offset.searchsorted(end)), _dead(batch, start, end)
        if dead:
            self._count("dead_letters", len(dead))
            self._count(f"bad_{batch.role}", len(dead))
        rows = hi - lo if batch.role == "events" else 0
        by = np.empty(rows, np.uint8) if self.contest is not None and self.contest.best is not None else None
        predicted = Predicted(batch, lo, hi, np.empty((rows, self.outputs), np.float32), by)
        if self.explain and rows and batch.explained is None:
            batch.explained = Explained.blank(len(batch), self.explain)
        heard, at = start, lo  # the first record that is not muted, and its row
        if place in self._muted:
            heard = min(self._muted[place], next)
        if heard > start:
            self._catch_up()  # what was taken before is not muted
            self._mute = True
            at = int(batch.offset.searchsorted(heard))
            self._stretch(part, start, heard, lo, at, predicted)
            self.predict_taken()
            self._mute = False
        if self._muted.get(place, next + 1) <= next:
            del self._muted[place]
        self._stretch(part, max(start, heard), next, at, hi, predicted)
        if not later:
            self.predict_taken()
        return Processed(Piece(batch.role, batch.partition, start, next), predicted if rows else None, dead)

    def _stretch(self, part: _Partition, start: int, next: int, lo: int, hi: int, to: Predicted) -> None:
        """Process the records [start, next), rows [lo, hi): all are muted, or none is. Predictions go to `to`."""
        batch, at = to.batch, lo
        for mark in [mark for mark in batch.marks if start <= mark < next] if batch.marks else ():
            cut = int(batch.offset.searchsorted(mark))
            self._rows(part, at, cut, to)
            self._end_of_stream(part, batch.role)
            at = cut
        self._rows(part, at, hi, to)

    def look(self, batch: Batch) -> F32:
        """Predict for rows of events that are not part of the stream: float32 (B, O); nothing changes."""
        x = self._rows_to_look_at(batch)
        out = np.empty((len(batch), self.outputs), np.float32)
        self.learning.look(x, out)
        return out

    def look_closely(self, batch: Batch) -> tuple[F32, F32]:
        """As `look`, and what each feature adds: float32 (B, O), (B, O, N + K + 1) as `Explainer` has it.

        Raises DeclarationError where the learner cannot explain.
        """
        x = self._rows_to_look_at(batch)
        out = np.empty((len(batch), self.outputs), np.float32)
        contributions = np.empty((*out.shape, self.n + self.k + 1), np.float32)
        self.learning.look(x, out, contributions)
        return out, contributions

    def _rows_to_look_at(self, batch: Batch) -> Rows:
        """What the model sees of events that are not part of the stream."""
        self._catch_up()
        numeric = batch.numeric.copy()
        self._look_at_folds.run(batch.time, batch.groups, batch.values, batch.y, numeric)
        numeric[np.isinf(numeric)] = np.nan
        return Rows(numeric, batch.categories)

    def end_cycle(self) -> None:
        """A cycle ends: a learner that learns in micro-batches learns its last, short one."""
        self._catch_up()
        self.learning.end_cycle()
        for group, marks in self._touched.items():
            np.maximum(self.changed[group], marks, out=self.changed[group])

    def check_finite(self) -> None:
        """Raise NotFinite when a number of the model is NaN or infinite; for a worker, before each cycle goes out.

        Looks at all that was written since the last look, but for arrays beyond CHECKED_BYTES: those (a table of more
        than 2**20 weights) are looked at when a snapshot is published.
        """
        for name, array, touched in self._looks:
            at = find_not_finite(array, touched)
            if at is not None:
                place = ", ".join(map(str, at))
                raise NotFinite(
                    f"the model of {self.pipeline.name!r} is broken: {name}[{place}] is {array[at]}, not finite; "
                    f"nothing of this cycle is published; {REMEDY}"
                )
        for marks in self._touched.values():
            marks[:] = 0

    def model_tables(self) -> dict[str, tuple[NDArray, NDArray[np.uint8]]]:
        """The tables of the model, by their names in `state()`, each with its marks in `changed`."""
        layout = self.model.layout(self.spec)
        names = {f"model/{name}": array.rows for name, array in layout.items() if array.rows}
        return {name: (self.arrays[name], self.changed[rows]) for name, rows in names.items()}

    def undo_point(self) -> Callable[[], None]:
        """A function that puts the engine back to where it stands now, all of it, as often as it is called.

        Copies all arrays, and dumps what is opaque. What a model keeps elsewhere is not put back.
        """
        self.predict_taken()
        self.model.pull()
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        dumps = {name: part.dump() for name, part in self._opaque.items()}
        partitions = {p: part.state() for p, part in self.partitions.items()}
        touched = {group: marks.copy() for group, marks in self._touched.items()}
        met, unlearned = list(self._met), self.learning.unlearned()
        muted, stop_reason = dict(self._muted), self.stop_reason

        def undo() -> None:
            for name, array in arrays.items():
                self.arrays[name][...] = array
            for name, dump in dumps.items():
                self._opaque[name].load(dump)
            for group, marks in touched.items():
                self._touched[group][:] = marks
                self.changed[group][:] = 1
            self.model.push()
            self.partitions = {}
            for p, state in partitions.items():
                self.load_partition(p, state)
            self._met, self._taken = list(met), []
            self.learning.put_back(unlearned)
            self._muted, self._mute, self.stop_reason = dict(muted), False, stop_reason

        return undo

    def forgive(self) -> None:
        """Go on after a stop: the share of bad records is taken anew, misplaced labels are only counted."""
        self.stop_reason = None
        self.arrays["bad"][:] = 0
        self.arrays["forgiven"][:] = 1

    def finish(self) -> None:
        """The streams have ended: every wait ends now."""
        self.predict_taken()
        for partition in sorted(self.partitions):
            part = self.partitions[partition]
            self._expire(part, part.pending.end)
            self._forget_early(part, part.early.end)
        self.end_cycle()

    def _count(self, name: str, n: int) -> None:
        self._counters[COUNTER_AT[name]] += n

    def _rows(self, part: _Partition, lo: int, hi: int, to: Predicted) -> None:
        """Process rows [lo, hi) of the batch of `to`, which predictions of events go to."""
        if hi > lo and to.batch.role == "events":
            self._events(part, lo, hi, to)
        elif hi > lo:
            self._labels(part, to.batch, lo, hi)

    # -- events

    def _events(self, part: _Partition, lo: int, hi: int, to: Predicted) -> None:
        batch, out, by = to.batch, to.out, to.by
        early = self._early_matches(part, batch, lo, hi)
        for a, b, clock in self._uncut(part, batch, lo, hi, early):
            rows = slice(a - to.lo, b - to.lo)
            self._taken.append(_Taken(part, batch, a, b, clock, out[rows], None if by is None else by[rows]))
            self._watch_pending()
            if b - 1 in early:
                self._settle_early(part, batch, b - 1)
        self._count("events", hi - lo)
        self._count("predictions", hi - lo)
        if hi - lo >= TOGETHER or len(self._taken) >= TOGETHER:
            self.predict_taken()

    def _uncut(
        self, part: _Partition, batch: Batch, lo: int, hi: int, after: set[int]
    ) -> Iterator[tuple[int, int, I64]]:
        """Stretches [a, b) of rows between which nothing happens, and their clock; what happens before row a is done.

        A wait ends where the watermark passes a tick, forgetting is due where the shared clock passes a step; both
        before the row that passes. A stretch also ends after each row of `after`.
        """
        clocks = part.clocks.tolist()
        mine, limit = (0, clocks[1]) if batch.role == "events" else (1, clocks[0])
        clock, tick = batch.clock[lo:hi], self.tick
        if clock[0] < clocks[mine]:
            clock = np.maximum(clock, clocks[mine])
        last = int(clock[-1])
        cuts = [lo, *(row + 1 for row in after), hi]
        if self.delayed and min(last, limit) // tick > clocks[2]:
            cuts += [lo + row for row in _rises(clock, tick, clocks[2], limit)]
        shares = batch.role == "events" and not self._mute
        if shares:
            shared = int(self._clock[0])
            for step, _, _ in self._decays:
                if last // step > shared // step:
                    cuts += [lo + row for row in _rises(clock, step, shared // step, last)]
        for a, b in ((lo, hi),) if len(cuts) == 2 else pairwise(sorted(set(cuts))):
            first, last = int(clock[a - lo]), int(clock[b - 1 - lo])
            if shares:
                self._forget(int(self._clock[0]), max(first, shared))
                self._clock[0] = max(last, shared)
            if self.delayed:
                self._pass_tick(part, min(first, limit))
            part.clocks[mine] = last
            yield a, b, clock[a - lo : b - lo]

    def _forget(self, before: int, now: int) -> None:
        if before == BEFORE_ALL:
            return
        for step, half_life, decay in self._decays:
            steps = now // step - before // step
            if steps > 0:
                self._catch_up()
                decay(2.0 ** (-steps * step / half_life))

    def _pass_tick(self, part: _Partition, watermark: int) -> None:
        """End the waits that are over at this watermark."""
        tick = watermark // self.tick
        if tick > part.clocks[2]:
            if self._taken and (not math.isnan(self.otherwise) or any(t.part is part for t in self._taken)):
                self.predict_taken()  # they go into pending before others leave it
            part.clocks[2] = tick
            if len(part.pending):
                self._expire(part, part.pending.first_after("clock", tick * self.tick - self.within))
            if len(part.early):
                self._forget_early(part, part.early.first_after("clock", tick * self.tick - self.early_us))

    def predict_taken(self) -> None:
        """Predict the events taken since the last time, in their order, and remember them in pending."""
        if not self._taken:
            return
        self._learn_met()
        taken, self._taken = self._taken, []
        rows_of = [(t.batch, slice(t.lo, t.hi)) for t in taken]
        time, groups = _joined([b.time[r] for b, r in rows_of]), _joined([b.groups[r] for b, r in rows_of])
        values, y = _joined([b.values[r] for b, r in rows_of]), _joined([b.y[r] for b, r in rows_of])
        numeric = _joined([b.numeric[r] for b, r in rows_of])
        categories = _joined([b.categories[r] for b, r in rows_of])
        if self.immediate and (unusable := np.isinf(y)).any():
            y = np.where(unusable, np.float32(np.nan), y)
            self._count("unusable", int(unusable.sum()))
        out = taken[0].out if len(taken) == 1 else np.empty((len(time), self.outputs), np.float32)
        self.enter("features")
        (self._look_at_folds if self._mute else self._fold_events).run(time, groups, values, y, numeric)
        if (infinite := np.isinf(numeric)).any():  # log of zero, overflow: nothing that can be learned from
            numeric = np.where(infinite, np.float32(np.nan), numeric)  # the batch stays as it was, for another try
            self._count("infinite", int(infinite.sum()))
        self.enter("model")
        weight = None
        if self.immediate and self.weighted:
            weight = _joined([_weight_of(b, r) for b, r in rows_of])
        x, truth = Rows(numeric, categories), _truth(y, weight)
        if self.explain:
            said = self._predict_and_explain(taken, x, y, truth, time, out)
        else:
            said = self._predict(x, y, truth, time, out, None)
        ends = list(accumulate(len(t.out) for t in taken))
        if len(taken) > 1:
            for t, end in zip(taken, ends, strict=True):
                t.out[:] = out[end - len(t.out) : end]
        if not np.isfinite(out if said is None else said.each).all():
            self._refuse(taken, out, said)
        if said is not None and said.by is not None:
            for t, end in zip(taken, ends, strict=True):
                assert t.by is not None
                t.by[:] = said.by[end - len(t.by) : end]
        if self.immediate:
            self._labels_in_events(y, weight, out, said)
        elif self.delayed:
            self.enter("labels")
            rows = taken[0].part.pending.blank(len(time))
            columns = taken[0].part.pending.named(rows)
            columns["key"] = _joined([b.key_hash[r] for b, r in rows_of])
            columns["clock"] = _joined([t.clock for t in taken])
            columns["time"], columns["prediction"] = time, out
            if said is not None:
                columns["said"] = said.each.transpose(1, 0, 2)
            columns["numeric"], columns["categories"] = numeric, categories
            columns["groups"] = groups[:, self.label_groups]
            for t, end in zip(taken, ends, strict=True):
                added = t.part.pending.append(rows[end - len(t.out) : end])
                self._count("repeated", len(t.out) - added)

    def _predict(self, x: Rows, y: F32, truth: Truth, time: I64, out: F32, contributions: F32 | None) -> Said | None:
        """Predict rows of events to out (B, O), and learn what is to be learned from them."""
        if self._mute:
            return self.learning.predict(x, out, contributions)
        if self.immediate:
            return self.learning.test_then_learn(x, y, truth, time, out, contributions)
        return self.learning.predict_then_observe(x, out, contributions)

    def _predict_and_explain(
        self, taken: list[_Taken], x: Rows, y: F32, truth: Truth, time: I64, out: F32
    ) -> Said | None:
        """As `_predict`; what weighed most in each prediction goes to the batches."""
        explained = Explained.blank(len(y), self.explain)
        step = rows_at_one_go(self.outputs, self.n + self.k)
        said = []
        for a in range(0, len(y), step):
            at = slice(a, a + step)
            contributions = np.empty((len(y[at]), self.outputs, self.n + self.k + 1), np.float32)
            rows, labels = Rows(x.numeric[at], x.categories[at]), Truth(truth.y[at], truth.weight[at])
            said.append(self._predict(rows, y[at], labels, time[at], out[at], contributions))
            heaviest(contributions, out[at], explained.part(a, a + step))
        a = 0
        for t in taken:
            b = a + len(t.out)
            assert t.batch.explained is not None
            for to, found in zip(t.batch.explained, explained, strict=True):
                to[t.lo : t.hi] = found[a:b]
            a = b
        return joined(said)

    def _refuse(self, taken: list[_Taken], out: F32, said: Said | None) -> None:
        """Say which of these predictions, or of what the models said, is not finite."""
        each = out[None] if said is None else said.each
        row, which = np.argwhere(~np.isfinite(each).all(2).T)[0].tolist()
        whose = f" of model {self.contest.names[which]!r}" if self.contest is not None else ""
        at = row
        for t in taken:
            if at < len(t.out):
                break
            at -= len(t.out)
        raise NotFinite(
            f"{self.pipeline.events.topic}[{t.batch.partition}]@{t.batch.offset[t.lo + at]}: the prediction{whose} is "
            f"{each[which, row].tolist()}, not finite; the model is broken and nothing of this cycle is published; "
            f"{REMEDY}"
        )

    # -- labels

    def _labels_in_events(self, y: F32, weight: F32 | None, out: F32, said: Said | None) -> None:
        known = ~np.isnan(y)
        count = int(known.sum())
        if not count:
            return
        self._count("labels", count)
        self._count("joined", count)
        self._count_examples(count, None if weight is None else weight[known])
        assert self.metrics is not None
        self.metrics.update(y[known], out[known])
        if said is not None:
            self.learning.score(y[known], said.each[:, known])

    def _count_examples(self, rows: int, weight: F32 | None) -> None:
        """Count rows that met their label, of these weights, as learned from or not."""
        learned = 0 if self._mute else rows if weight is None else int(np.count_nonzero(weight))
        self._count("examples", learned)
        self._count("unlearned", rows - learned)

    def _labels(self, part: _Partition, batch: Batch, lo: int, hi: int) -> None:
        self.predict_taken()
        for a, b, clock in self._uncut(part, batch, lo, hi, set()):
            self._join(part, batch, a, b, clock)
        self._count("labels", hi - lo)

    def _join(self, part: _Partition, batch: Batch, a: int, b: int, clock: I64) -> None:
        self.enter("labels")
        found, rows = part.pending.claim(batch.key_hash[a:b])
        if len(rows) == b - a:
            at: Any = slice(a, b)
        else:
            at = a + np.flatnonzero(found >= 0)
            self._count("duplicates", int((found == SETTLED).sum()))
            absent = found == ABSENT
            if absent.any():
                self._unmet(part, batch, a + np.flatnonzero(absent), clock[absent])
        self._count("joined", len(rows))
        weight = _weight_of(batch, at) if self.weighted else None
        self._meet(rows, batch.time[at], batch.y[at], batch.values[at], weight)
        self._watch_misplaced()

    def _unmet(self, part: _Partition, batch: Batch, rows: I64, clock: I64) -> None:
        """Labels whose event does not wait here: late, repeated, misplaced, or early."""
        keys = batch.key_hash[rows]
        gone = part.gone.find(keys)
        known = gone >= 0
        settled = int(part.gone.column["settled"][gone[known] & part.gone.mask].sum())
        self._count("duplicates", settled)
        self._count("late", int(known.sum()) - settled)
        elsewhere = np.zeros(len(rows), bool)
        for other in self.partitions.values():
            if other is not part and len(other.pending):
                elsewhere |= other.pending.find(keys) >= 0
        elsewhere &= ~known
        self._count("misplaced", int(elsewhere.sum()))
        rest = ~known & ~elsewhere
        if rest.any():
            at = rows[rest]
            new = part.early.blank(len(at))
            columns = part.early.named(new)
            columns["key"], columns["clock"], columns["time"] = keys[rest], clock[rest], batch.time[at]
            columns["y"], columns["values"] = batch.y[at], batch.values[at]
            if self.weighted:
                columns["weight"] = _weight_of(batch, at)
            self._count("duplicates", len(at) - part.early.append(new))

    def _early_matches(self, part: _Partition, batch: Batch, lo: int, hi: int) -> set[int]:
        """Rows of the batch whose label is here already; the first of each label."""
        if not len(part.early):
            return set()
        found = part.early.find(batch.key_hash[lo:hi])
        rows = np.flatnonzero(found >= 0)
        return set((lo + rows[np.unique(found[rows], return_index=True)[1]]).tolist())

    def _settle_early(self, part: _Partition, batch: Batch, row: int) -> None:
        """An event has come whose label was here before it."""
        self.predict_taken()
        key = batch.key_hash[row : row + 1]
        _, labels = part.early.claim(key)
        if not len(labels):
            return  # its wait ended at a tick just now
        _, rows = part.pending.claim(key)
        if not len(rows):
            self._count("duplicates", 1)
            return
        self._count("joined", 1)
        label = part.early.named(labels)
        names = ("time", "y", "values", "weight") if self.weighted else ("time", "y", "values")
        self._meet(rows, *(np.ascontiguousarray(label[name]) for name in names))

    def _forget_early(self, part: _Partition, until: int) -> None:
        rows = part.early.rows(part.early.begin, until)
        self._count("orphans", int((rows[:, FLAG] == 0).sum()))
        part.early.leave(until)

    def _expire(self, part: _Partition, until: int) -> None:
        """Let predictions go whose wait is over; those without a label are learned as `otherwise`, if declared."""
        pending = part.pending
        if until == pending.begin:
            return
        if not math.isnan(self.otherwise):
            rows = pending.rows(pending.begin, until)
            left = rows[rows[:, FLAG] == 0]
            y = np.full(len(left), self.otherwise, np.float32)
            time = np.full(len(left), int(part.clocks[2]) * self.tick)
            self._meet(left, time, y, np.full((len(left), self.label_values), np.nan))
        self._count("expired", pending.move(until, part.gone, GONE))

    def _meet(self, rows: U64, time: I64, y: F32, values: NDArray[np.float64], weight: F32 | None = None) -> None:
        """Predictions have met their label, in this order: take the examples; `_learn_met` learns them.

        rows    uint64 (B, W)  as they waited in pending
        weight  float32 (B,); None: 1 each
        """
        if not len(rows):
            return
        self._count_examples(len(rows), weight)
        if self._mute:
            assert self.metrics is not None
            waited = rows.view(self._waiting_row)[:, 0]
            self.metrics.update(y, waited["prediction"])
            self.learning.score(y, self.learning.said(waited["prediction"], waited))
            return
        self._met.append((rows, time, y, values, np.ones(len(y), np.float32) if weight is None else weight))

    def _catch_up(self) -> None:
        """Do what was left for later; whatever looks at what was learned, or changes it, calls this first."""
        self._learn_met()
        self.predict_taken()

    def _learn_met(self) -> None:
        """Learn the examples taken since the last time, in their order, from the features of prediction time."""
        if not self._met:
            return
        taken, self._met = self._met, []
        self.enter("model")
        rows, time, y, values, weight = taken[0] if len(taken) == 1 else map(np.concatenate, zip(*taken, strict=True))
        waited = rows.view(self._waiting_row)[:, 0]
        prediction, groups, numeric, categories = (
            np.ascontiguousarray(waited[name]) for name in ("prediction", "groups", "numeric", "categories")
        )
        assert self.metrics is not None
        self.metrics.update(y, prediction)
        self._fold_labels.run(time, groups, values, y, _NOTHING_READ)
        self.learning.learn(Rows(numeric, categories), y, self.learning.said(prediction, waited), time, weight)

    def _end_of_stream(self, part: _Partition, role: Role) -> None:
        """A mark was read. Once both topics of a partition have theirs, every wait of the partition ends."""
        part.clocks[3 if role == "events" else 4] = 1
        if part.clocks[3] and (part.clocks[4] or not self.delayed):
            self.predict_taken()
            self._expire(part, part.pending.end)
            self._forget_early(part, part.early.end)
            part.clocks[3:] = 0

    # -- what stops a stream

    def _watch_bad_share(self, batch: Batch, lo: int, hi: int, dead: list[DeadLetter]) -> int | None:
        """Count the records of a piece, good ones and bad ones, in their order.

        Where too many of the last BAD_WINDOW are bad, sets stop_reason and returns the offset behind the first bad
        record at which they are; then only the records up to there are counted.
        """
        window, at = self.arrays["bad"], self.arrays["bad_at"]
        if not dead:
            if np.count_nonzero(window.view(np.bool_)):
                window[(at[0] + np.arange(hi - lo))[-BAD_WINDOW:] % BAD_WINDOW] = 0
            at[0] += hi - lo
            return None
        offsets = np.concatenate([batch.offset[lo:hi], np.array([letter.record.offset for letter in dead], np.int64)])
        order = np.argsort(offsets, kind="stable")
        bad = (order >= hi - lo).astype(np.uint8)
        sums = np.cumsum(np.concatenate([[0], np.roll(window, -at[0] % BAD_WINDOW), bad]), dtype=np.int64)
        limit = self.pipeline.max_bad_share
        of_last = sums[BAD_WINDOW + 1 :] - sums[1:-BAD_WINDOW]  # bad ones among the last BAD_WINDOW, after each record
        over = np.flatnonzero(bad & (of_last > limit * BAD_WINDOW))
        end = None
        if len(over):
            last = int(over[0])
            letter, count = dead[order[last] - (hi - lo)], int(of_last[last])
            bad, end = bad[: last + 1], letter.record.offset + 1
            self.stop_reason = (
                f"{count} of the last {BAD_WINDOW:,} records were bad, {count / BAD_WINDOW:.0%} where max_bad_share is "
                f"{limit:.0%}: has a schema changed? "
                f"The last: {self._topic(batch.role)}[{letter.partition}]@{letter.record.offset}: "
                f"{letter.reason}{f' at `{letter.path}`' if letter.path else ''}"
            )
        window[(at[0] + np.arange(len(bad)))[-BAD_WINDOW:] % BAD_WINDOW] = bad[-BAD_WINDOW:]
        at[0] += len(bad)
        return end

    def _topic(self, role: Role) -> str:
        labels = self.pipeline.labels
        return str(labels.topic) if role == "labels" and labels is not None else self.pipeline.events.topic

    def _watch_pending(self) -> None:
        limit = self.pipeline.pending_limit
        if limit is None or not self.delayed:
            return
        if sum(len(part.pending) for part in self.partitions.values()) + sum(t.hi - t.lo for t in self._taken) > limit:
            self.predict_taken()  # keys that wait already take no room
        if (rows := sum(len(part.pending) for part in self.partitions.values())) > limit:
            labels = self.pipeline.labels
            assert labels is not None
            self.stop_reason = (
                f"{rows:,} predictions wait for their label, pending_limit is {limit:,}: do labels arrive on "
                f"{labels.topic}? Otherwise wait less long (within={labels.within!r}) or raise the limit"
            )

    def _watch_misplaced(self) -> None:
        misplaced = self.counters_now("misplaced")
        if not misplaced or self.arrays["forgiven"][0]:
            return
        seen = misplaced + self.counters_now("joined")
        if misplaced > MISPLACED_SHARE * MISPLACED_WINDOW and seen <= MISPLACED_WINDOW:
            labels = self.pipeline.labels
            assert labels is not None
            self.stop_reason = (
                f"{misplaced} of the first {seen} labels lie in another partition than their event: "
                f"{self.pipeline.events.topic} and {labels.topic} are not partitioned alike. Produce both with the "
                f"record key `{self.pipeline.events.key}`, the same partitioner and the same number of partitions"
            )

    # -- state as a value

    def state(self) -> EngineState:
        """All that was learned. Shared arrays are the live ones: copy them before the next piece is processed."""
        self._catch_up()
        muted: dict[Role, dict[str, int]] = {}
        for (role, partition), offset in self._muted.items():
            muted.setdefault(role, {})[str(partition)] = offset
        meta = {
            "pipeline": self.pipeline.name,
            "declaration": self.pipeline.describe(),
            "numeric": list(self.pipeline.numeric),
            "categories": list(self.pipeline.categories),
            "label_groups": [self.groups[g].name for g in self.label_groups],
            "label_values": list(value_columns(self.pipeline, "label")),
            "metrics": {name: finite(value) for name, value in (self.results() | self.counters()).items()},
            "muted": muted,
        } | ({"opaque": {name: part.config() for name, part in self._opaque.items()}} if self._opaque else {})
        if self.contest is not None:
            meta["models"] = list(self.contest.names)
            meta["metrics_of_models"] = {
                model: {name: finite(value) for name, value in told.items()}
                for model, told in self.results_of_models().items()
            }
        shared = {name: array for name, array in self.arrays.items() if name not in self._derived}
        for name, g in self._slotted.items():
            shared[name] = shared[name][: self.tables[g].size]
        shared |= {f"{OPAQUE}{name}": np.frombuffer(part.dump(), np.uint8) for name, part in self._opaque.items()}
        return EngineState(shared, {p: part.state() for p, part in self.partitions.items()}, meta)

    def load(self, state: EngineState) -> None:
        """Take over a state; raises SnapshotError where it does not fit this pipeline.

        What is opaque in it is unpickled: whoever got it from elsewhere has verified its signature.
        """
        for name, array in self.arrays.items():
            if name in self._derived:
                continue
            given = state.shared.get(name)
            room = array[: len(given)] if given is not None and name in self._growing else array
            if given is None or given.dtype != array.dtype or given.shape != room.shape:
                came = "nothing" if given is None else f"{given.dtype} {given.shape}"
                raise SnapshotError(
                    f"array `{name}` of pipeline {self.pipeline.name!r}: expected {array.dtype} {array.shape}, got "
                    f"{came}; was the snapshot made with another feature list or another table size?"
                )
        for name, part in self._opaque.items():
            dump = state.shared.get(f"{OPAQUE}{name}")
            if dump is None:
                raise SnapshotError(
                    f"the snapshot has no state of {part!r} of pipeline {self.pipeline.name!r}: was it made with "
                    "another model? Give the pipeline another name to begin anew"
                )
            part.load(dump.tobytes())
        for name, array in self.arrays.items():
            if name in self._growing:
                given = state.shared[name]
                array[: len(given)] = given
                array[len(given) :] = self.layout[name].fill
            elif name not in self._derived:
                array[...] = state.shared[name]
        for table in self.tables:
            table.reindex()
        self.model.push()
        self._met, self._taken = [], []
        self.learning.put_back()
        muted: Mapping[Role, Mapping[str, int]] = state.meta.get("muted", {})
        self._muted = {(role, int(p)): offset for role, of in muted.items() for p, offset in of.items()}
        for marks in [*self._touched.values(), *self.changed.values()]:
            marks[:] = 1  # all of it is new to `check_finite`, and to whoever copies it
        self.partitions = {}
        for p, arrays in state.partitions.items():
            self.load_partition(p, arrays)

    def load_partition(self, partition: int, arrays: Mapping[str, NDArray]) -> None:
        """Take over the state of one partition."""
        part = _Partition(self)
        part.load(arrays)
        self.partitions[partition] = part

    def warm_up(self) -> None:
        """Compile every kernel (or load it from Numba's cache), without a trace in the state."""
        hashing.warm_up()
        self.model.warm_up(explain=bool(self.explain))
        twin = Engine(self.pipeline)
        twin.model.rehearse()
        twin.own(0)
        now = 0
        for role in ("events", "labels", "events") if self.delayed else ("events",):
            twin.process(self._blank(role, now), 0, 2)
            now += 3 * self.within + 1
        twin.finish()
        twin.partitions[0].gone.find(np.ones((1, 2), np.uint64))  # as a label does that comes late

    def _blank(self, role: Role, now: int) -> Batch:
        """Two rows of nothing in particular."""
        time = np.array([now, now + 1])
        return Batch(
            role=role, partition=0, start=0, next=2, offset=np.arange(2), time=time, clock=time, keys=Spans.none(2),
            record_keys=Spans.none(2), key_hash=np.array([[1, 1], [2, 2]], np.uint64),
            numeric=np.zeros((2, self.n), np.float32), categories=np.ones((2, self.k), np.uint64),
            groups=np.ones((2, len(self.groups)), np.uint64), values=np.zeros((2, self._value_columns[role])),
            y=np.zeros(2, np.float32),
        )  # fmt: skip


def _dead(batch: Batch, start: int, next: int) -> list[DeadLetter]:
    """The records of a piece that could not be used."""
    return [letter for letter in batch.dead if start <= letter.record.offset < next] if batch.dead else []


def finite(value: float | int | None) -> float | int | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _rises(clock: I64, step: int, before: int, limit: int) -> list[int]:
    """Rows at which min(clock, limit) // step is greater than at the row before; `before`: that of the first row.

    clock  int64 (B,)  never falls, and passes a step
    """
    rows, last = [], min(int(clock[-1]), limit)
    while before < last // step:
        rows.append(int(clock.searchsorted(max((before + 1) * step, BEFORE_ALL))))
        before = min(int(clock[rows[-1]]), limit) // step
    return rows


def _weight_of(batch: Batch, rows: Any) -> F32:
    """The weights of some rows, float32; 1 each where the batch does not tell them."""
    return np.ones(len(batch), np.float32)[rows] if batch.weight is None else batch.weight[rows]


def _truth(y: F32, weight: F32 | None) -> Truth:
    """What is to be learned from labels (B,) in events: nothing of those with the weight 0."""
    if weight is None:
        return Truth(y[:, None], np.ones(len(y), np.float32))
    return Truth(np.where(weight > 0, y, np.float32(np.nan))[:, None], weight)


def _joined(columns: list[NDArray]) -> NDArray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)
