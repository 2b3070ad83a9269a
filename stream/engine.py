"""The core: pieces of decoded slices go in, predictions and dead letters come out. Pure: no IO, no clock, no threads.

The Faust worker, `headrace evaluate`, replay after a crash and the tests drive this same engine. The same pieces in the
same order give the same state, bit for bit, wherever they are cut; with a learner that learns in micro-batches also
wherever `end_cycle` falls the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..connectors.spans import Spans
from ..models.base import Array, Rows
from ..models.chain import under
from ..models.metrics import Metrics
from . import hashing
from .align import BEFORE_ALL
from .columns import value_columns
from .contest import Contest
from .counters import COUNTERS, Counters
from .declaration import Pipeline
from .decode import Batch
from .deferred import Deferred, Taken
from .explain import Explained
from .finite import Looks, finite
from .folding import Folding
from .label_join import PartitionState, Terms
from .learning import Learning
from .processed import Predicted, Processed
from .shared import EngineState, Shared
from .slices import DeadLetter, Piece, Role, flat, nested
from .stopping import Stops

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

FORGETTING_STEPS = 64  # what forgets does so at multiples of half_life / FORGETTING_STEPS
TOGETHER = 512  # rows, or pieces: with fewer, events wait for those of other partitions to be predicted at one go


class Engine:
    """A pipeline at work on the pieces it is given."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.spec = pipeline.spec
        self._counters = Counters()
        self.contest = Contest(pipeline, self._counters.add) if pipeline.models is not None else None
        self.learning: Learning | Contest = self.contest or Learning(
            pipeline.model, pipeline.spec, pipeline.drift, self._counters.add
        )
        self.model = self.learning.model
        self.drift = self.learning.drift
        self.n, self.k, self.outputs = len(pipeline.numeric), len(pipeline.categories), self.spec.outputs
        labels = pipeline.labels
        self.delayed = pipeline.delayed
        self.folding = Folding(pipeline, immediate=labels is not None and not self.delayed)
        self.metrics: Metrics | None = None
        if labels is not None and self.spec.task is not None:
            self.metrics = Metrics(self.spec.task, self.outputs, self.learning.measure)
        self.enter: Callable[[str], None] = lambda stage: None  # told which stage of the work begins; see stages.py
        self._deferred = Deferred(
            pipeline, self.learning, self.folding, self.metrics, self._counters, lambda stage: self.enter(stage)
        )
        self._terms = Terms.of(pipeline, self.folding.value_columns["labels"], self._deferred.pending)
        self._stops = Stops(pipeline)
        self.stop_reason: str | None = None  # set when the share of bad records or misplaced labels says: stop here
        self.explain = pipeline.predictions.explain or 0  # features named with each prediction
        self._bind()
        self.partitions: dict[int, PartitionState] = {}
        self._muted: dict[tuple[Role, int], int] = {}  # rows before these offsets leave the shared state as it is

    def _bind(self) -> None:
        layout = self.learning.arrays() | self.folding.layout()
        if self.metrics is not None:
            layout |= {f"metrics/{k}": a for k, a in self.metrics.layout().items()}
        layout["counters"] = Array((len(COUNTERS),), "int64")
        layout["clock"] = Array((1,), "int64", BEFORE_ALL)  # the greatest event time, over all partitions
        layout |= self._stops.layout()
        # a state may hold fewer rows: keys in use, counters and sums of before
        growing = {*self.folding.slotted, *self.learning.growing, "counters", "metrics/sums"}
        self.shared = Shared(layout, self.model, self.spec, growing, self.folding.derived)
        self.layout, self.arrays = layout, self.shared.arrays
        self.learning.bind(self.arrays, self.shared.touched)
        self._looks = Looks(self.model.layout(self.spec), under("model/", self.arrays), self.shared.touched)
        self.folding.bind(self.arrays)
        if self.metrics is not None:
            self.metrics.bind(under("metrics/", self.arrays))
        self._counters.bind(self.arrays["counters"])
        self._stops.bind(self.arrays)
        self._clock: I64 = self.arrays["clock"]
        self._decays = [
            (max(1, half_life // FORGETTING_STEPS), half_life, decay) for half_life, decay in self.model.decays()
        ]

    # -- what is known

    def counters(self) -> dict[str, int]:
        """Counts since the beginning of the stream, with what waits now: `pending` predictions, `early` labels."""
        self._deferred.catch_up()
        counts = self._counters.all() | self.model.counters()
        counts["evicted"] = self.folding.evicted()
        counts["pending"] = sum(p.pending.unsettled() for p in self.partitions.values())
        counts["early"] = sum(p.early.unsettled() for p in self.partitions.values())
        return counts

    def counters_now(self, name: str) -> int:
        """One of the counters; cheap."""
        return self._counters.now(name)

    def results(self) -> dict[str, float | int | None]:
        """Progressive metrics: each loss is of the prediction that was made before its label was known."""
        self._deferred.catch_up()
        learning = self.learning.results()
        return self.metrics.results() | learning if self.metrics is not None else learning

    def results_of_models(self) -> dict[str, dict[str, float | int | None]]:
        """The same of each model, where there are several: of what it said, whether or not that was served."""
        self._deferred.catch_up()
        return self.contest.results_of_models() if self.contest is not None else {}

    def clock(self, role: Role, partition: int) -> int:
        """The event time that a topic partition has reached, in microseconds; far below zero: none yet."""
        part = self.partitions.get(partition)
        return int(part.clocks[0 if role == "events" else 1]) if part is not None else BEFORE_ALL

    def own(self, partition: int) -> None:
        """Begin with a partition that has no state yet."""
        if partition not in self.partitions:
            self.partitions[partition] = PartitionState(self._terms, self._counters.add)

    def disown(self, partition: int) -> dict[str, NDArray] | None:
        """Let go of a partition: its state, from which `load_partition` goes on; None where it is not owned."""
        self._deferred.predict()
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
        bad = self._stops.watch_bad_share(batch, lo, hi, dead)
        if bad is not None:
            next, self.stop_reason = bad
            hi, dead = int(batch.offset.searchsorted(next)), _dead(batch, start, next)
        if dead:
            self._counters.add("dead_letters", len(dead))
            self._counters.add(f"bad_{batch.role}", len(dead))
        rows = hi - lo if batch.role == "events" else 0
        by = np.empty(rows, np.uint8) if self.contest is not None and self.contest.best is not None else None
        predicted = Predicted(batch, lo, hi, np.empty((rows, self.outputs), np.float32), by)
        if self.explain and rows and batch.explained is None:
            batch.explained = Explained.blank(len(batch), self.explain)
        heard, at = start, lo  # the first record that is not muted, and its row
        if place in self._muted:
            heard = min(self._muted[place], next)
        if heard > start:
            self._deferred.catch_up()  # what was taken before is not muted
            self._deferred.mute = True
            at = int(batch.offset.searchsorted(heard))
            self._stretch(part, start, heard, lo, at, predicted)
            self._deferred.predict()
            self._deferred.mute = False
        if self._muted.get(place, next + 1) <= next:
            del self._muted[place]
        self._stretch(part, max(start, heard), next, at, hi, predicted)
        if not later:
            self._deferred.predict()
        return Processed(Piece(batch.role, batch.partition, start, next), predicted if rows else None, dead)

    def _stretch(self, part: PartitionState, start: int, next: int, lo: int, hi: int, to: Predicted) -> None:
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
        self._deferred.catch_up()
        numeric = batch.numeric.copy()
        self.folding.looks.run(batch.time, batch.groups, batch.values, batch.y, numeric)
        numeric[np.isinf(numeric)] = np.nan
        return Rows(numeric, batch.categories)

    def predict_taken(self) -> None:
        """Predict the events that were taken and not predicted yet: see `process`."""
        self._deferred.predict()

    def model_tables(self) -> dict[str, tuple[NDArray, NDArray[np.uint8]]]:
        """The tables of the model, by their names in `state()`, each with the marks of what changed in it."""
        return self.shared.tables()

    def end_cycle(self) -> None:
        """A cycle ends: a learner that learns in micro-batches learns its last, short one."""
        self._deferred.catch_up()
        self.learning.end_cycle()
        self.model.pull()
        self.shared.note_changed()

    def check_finite(self) -> None:
        """Raise NotFinite when a number of the model is NaN or infinite; for a worker, before each cycle goes out.

        Looks at all that was written since the last look, but for arrays beyond CHECKED_BYTES: those (a table of more
        than 2**20 weights) are looked at when a snapshot is published.
        """
        self._looks.check(self.pipeline.name)
        for marks in self.shared.touched.values():
            marks[:] = 0

    def undo_point(self) -> Callable[[], None]:
        """A function that puts the engine back to where it stands now, all of it, as often as it is called.

        Copies all arrays, and dumps what is opaque. What a model keeps elsewhere is not put back.
        """
        self._deferred.predict()
        undo_shared = self.shared.undo_point()
        partitions = {p: part.state() for p, part in self.partitions.items()}
        met, unlearned = list(self._deferred.met), self.learning.unlearned()
        muted, stop_reason = dict(self._muted), self.stop_reason

        def undo() -> None:
            undo_shared()
            self.partitions = {}
            for p, state in partitions.items():
                self.load_partition(p, state)
            self._deferred.drop(list(met))
            self.learning.put_back(unlearned)
            self._muted, self.stop_reason = dict(muted), stop_reason

        return undo

    def forgive(self) -> None:
        """Go on after a stop: the share of bad records is taken anew, misplaced labels are only counted."""
        self.stop_reason = None
        self._stops.forgive()

    def finish(self) -> None:
        """The streams have ended: every wait ends now."""
        self._deferred.predict()
        for partition in sorted(self.partitions):
            self._deferred.meet(self.partitions[partition].end())
        self.end_cycle()

    def _rows(self, part: PartitionState, lo: int, hi: int, to: Predicted) -> None:
        """Process rows [lo, hi) of the batch of `to`, which predictions of events go to."""
        if hi > lo and to.batch.role == "events":
            self._events(part, lo, hi, to)
        elif hi > lo:
            self._labels(part, to.batch, lo, hi)

    # -- events

    def _events(self, part: PartitionState, lo: int, hi: int, to: Predicted) -> None:
        batch, out, by = to.batch, to.out, to.by
        early = part.early_matches(batch, lo, hi)
        for a, b, clock in self._uncut(part, batch, lo, hi, early):
            rows = slice(a - to.lo, b - to.lo)
            self._deferred.taken.append(Taken(part, batch, a, b, clock, out[rows], None if by is None else by[rows]))
            self._watch_pending()
            if b - 1 in early:
                self._deferred.predict()
                self._deferred.meet(part.settle_early(batch, b - 1))
        self._counters.add("events", hi - lo)
        self._counters.add("predictions", hi - lo)
        if hi - lo >= TOGETHER or len(self._deferred.taken) >= TOGETHER:
            self._deferred.predict()

    def _uncut(
        self, part: PartitionState, batch: Batch, lo: int, hi: int, after: set[int]
    ) -> Iterator[tuple[int, int, I64]]:
        """Stretches [a, b) of rows between which nothing happens, and their clock; what happens before row a is done.

        A wait ends where the watermark passes a tick, forgetting is due where the shared clock passes a step; both
        before the row that passes. A stretch also ends after each row of `after`.
        """
        clocks = part.clocks.tolist()
        mine, limit = (0, clocks[1]) if batch.role == "events" else (1, clocks[0])
        clock, tick = batch.clock[lo:hi], self._terms.tick
        if clock[0] < clocks[mine]:
            clock = np.maximum(clock, clocks[mine])
        last = int(clock[-1])
        cuts = [lo, *(row + 1 for row in after), hi]
        if self.delayed and min(last, limit) // tick > clocks[2]:
            cuts += [lo + row for row in _rises(clock, tick, clocks[2], limit)]
        shares = batch.role == "events" and not self._deferred.mute
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
                self._deferred.catch_up()
                decay(2.0 ** (-steps * step / half_life))

    def _pass_tick(self, part: PartitionState, watermark: int) -> None:
        """End the waits that are over at this watermark."""
        tick = watermark // self._terms.tick
        if tick > part.clocks[2]:
            taken = self._deferred.taken
            if taken and (not math.isnan(self._terms.otherwise) or any(t.part is part for t in taken)):
                self._deferred.predict()  # they go into pending before others leave it
            self._deferred.meet(part.pass_tick(tick))

    def _end_of_stream(self, part: PartitionState, role: Role) -> None:
        """A mark was read. Once both topics of a partition have theirs, every wait of the partition ends."""
        part.clocks[3 if role == "events" else 4] = 1
        if part.clocks[3] and (part.clocks[4] or not self.delayed):
            self._deferred.predict()
            self._deferred.meet(part.end())
            part.clocks[3:] = 0

    # -- labels

    def _labels(self, part: PartitionState, batch: Batch, lo: int, hi: int) -> None:
        self._deferred.predict()
        for a, b, clock in self._uncut(part, batch, lo, hi, set()):
            self.enter("labels")
            self._deferred.meet(part.join(batch, a, b, clock, self.partitions.values()))
            self._watch_misplaced()
        self._counters.add("labels", hi - lo)

    # -- what stops a stream

    def _watch_pending(self) -> None:
        limit = self.pipeline.pending_limit
        if limit is None or not self.delayed:
            return
        taken = sum(t.hi - t.lo for t in self._deferred.taken)
        if sum(len(part.pending) for part in self.partitions.values()) + taken > limit:
            self._deferred.predict()  # keys that wait already take no room
        if (rows := sum(len(part.pending) for part in self.partitions.values())) > limit:
            self.stop_reason = self._stops.too_many_wait(rows)

    def _watch_misplaced(self) -> None:
        why = self._stops.watch_misplaced(self._counters)
        if why is not None:
            self.stop_reason = why

    # -- state as a value

    def state(self) -> EngineState:
        """All that was learned. Shared arrays are the live ones: copy them before the next piece is processed.

        Taken between two cycles: examples that wait for a micro-batch to fill are not part of it.
        """
        self._deferred.catch_up()
        self.model.pull()
        opaque = {name: part.config() for name, part in self.model.opaque().items()}
        meta: dict[str, Any] = {
            "pipeline": self.pipeline.name,
            "declaration": self.pipeline.describe(),
            "numeric": list(self.pipeline.numeric),
            "categories": list(self.pipeline.categories),
            "label_groups": [self.folding.groups[g].name for g in self.folding.label_groups],
            "label_values": list(value_columns(self.pipeline, "label")),
            "metrics": finite(self.results() | self.counters()),
            "muted": nested(self._muted),
        } | ({"opaque": opaque} if opaque else {})
        if self.contest is not None:
            meta["models"] = list(self.contest.names)
            meta["voices"] = [learning.voices for learning in self.contest.learnings]  # columns of pending/voices
            meta["metrics_of_models"] = finite(self.results_of_models())
        shared = self.shared.save(self.folding.used())
        return EngineState(shared, {p: part.state() for p, part in self.partitions.items()}, meta)

    def load(self, state: EngineState) -> None:
        """Take over a state; raises SnapshotError where it does not fit this pipeline.

        What is opaque in it is unpickled: whoever got it from elsewhere has verified its signature.
        """
        self.shared.load(state.shared, self.pipeline.name)
        self.folding.reindex()
        self._deferred.drop()
        self.learning.put_back()
        self._muted = flat(state.meta.get("muted", {}))
        self.partitions = {}
        for p, arrays in state.partitions.items():
            self.load_partition(p, arrays)

    def load_partition(self, partition: int, arrays: Mapping[str, NDArray]) -> None:
        """Take over the state of one partition."""
        part = PartitionState(self._terms, self._counters.add)
        wanted, given = self._deferred.voices, arrays.get("pending/voices")
        if wanted and (given is None or given.shape[1] != wanted):  # of another model
            blank = np.full((len(arrays["pending/key"]), wanted), np.nan, np.float32)
            arrays = {**arrays, "pending/voices": blank}
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
            now += 3 * self._terms.within + 1
        twin.finish()
        twin.partitions[0].gone.find(np.ones((1, 2), np.uint64))  # as a label does that comes late

    def _blank(self, role: Role, now: int) -> Batch:
        """Two rows of nothing in particular."""
        time = np.array([now, now + 1])
        return Batch(
            role=role, partition=0, start=0, next=2, offset=np.arange(2), time=time, clock=time, keys=Spans.none(2),
            record_keys=Spans.none(2), key_hash=np.array([[1, 1], [2, 2]], np.uint64),
            numeric=np.zeros((2, self.n), np.float32), categories=np.ones((2, self.k), np.uint64),
            groups=np.ones((2, len(self.folding.groups)), np.uint64),
            values=np.zeros((2, self.folding.value_columns[role])),
            y=np.zeros(2, np.float32),
        )  # fmt: skip


def _dead(batch: Batch, start: int, next: int) -> list[DeadLetter]:
    """The records of a piece that could not be used."""
    return [letter for letter in batch.dead if start <= letter.record.offset < next] if batch.dead else []


def _rises(clock: I64, step: int, before: int, limit: int) -> list[int]:
    """Rows at which min(clock, limit) // step is greater than at the row before; `before`: that of the first row.

    clock  int64 (B,)  never falls, and passes a step
    """
    rows, last = [], min(int(clock[-1]), limit)
    while before < last // step:
        rows.append(int(clock.searchsorted(max((before + 1) * step, BEFORE_ALL))))
        before = min(int(clock[rows[-1]]), limit) // step
    return rows
