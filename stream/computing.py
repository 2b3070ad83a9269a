"""One cycle is computed: what is in hand is decoded, aligned and processed, and what goes out of it is encoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..connectors.record_writer import Rows
from ..connectors.records import Partition as TopicPartition
from ..connectors.transactions import Records
from .align import Aligner, Next, Partition
from .cycle import Cycle, end_cycle, run_cycle
from .decode import Decoder
from .encode import Served, encode_predictions
from .fast_encode import prediction_rows
from .in_hand import InHand
from .pace import Pace
from .poison import Poisoned
from .publisher import SnapshotPublisher
from .slices import Role
from .snapshot_schedule import SnapshotSchedule
from .stages import Stages
from .standing import Standing

CAREFUL = "HEADRACE_CAREFUL"  # events:0:1200: up to offset 1200 of events[0] a record is known to raise
LITTLE_ROWS = 500  # are a millisecond or two of work

Write = Callable[[Rows, Mapping[TopicPartition, int]], Mapping[TopicPartition, Records]]


@dataclass
class Computing:
    """What a cycle is computed from. `compute` may run in any thread; while it does nobody else touches these.

    write    makes record batches of rows, as `CycleProducer.write` does; None: predictions are encoded one by one
    careful  up to which offset of a partition a record is known to raise
    cycle    the one in hand, or the last
    """

    standing: Standing
    decoders: Mapping[Role, Decoder]
    aligner: Aligner
    hand: InHand
    pace: Pace
    stages: Stages
    publisher: SnapshotPublisher
    snapshots: SnapshotSchedule
    write: Write | None
    careful: dict[Partition, int] = field(default_factory=dict)
    cycle: Cycle = field(default_factory=Cycle)

    def has_work(self) -> bool:
        """Whether anything is here of partitions that are live."""
        queues = self.aligner.queues
        return any(self.hand.runs.get(p) or queue.batches for p, queue in queues.items())

    def is_little(self) -> bool:
        """Whether the next cycle is so short that the event loop can wait for it."""
        if self.pace.behind or self.careful or not self.standing.engine.model.quick:
            return False
        rows = sum(len(batch) for queue in self.aligner.queues.values() for batch in queue.batches)
        for runs in self.hand.runs.values():
            for run in runs:
                rows += len(run.records)
                if rows > LITTLE_ROWS:
                    return False
        return rows <= LITTLE_ROWS

    def compute(self) -> Cycle:
        """Decode, align, process, until the cycle is full or nothing may go on. Raises as `run_cycle`, `end_cycle`."""
        engine = self.standing.engine
        cycle = self.cycle = Cycle()
        until = time.monotonic() + self.pace.cycle_seconds
        limit = engine.pipeline.max_cycle_rows
        learned = "events" if engine.model.unsupervised else "examples"
        before = engine.counters_now(learned)

        def is_long(cycle: Cycle) -> bool:
            return cycle.rows >= limit or time.monotonic() >= until

        def is_full(cycle: Cycle) -> bool:
            # a snapshot is taken at the end of a cycle; one without pieces would only wait for the commits before it
            due = bool(cycle.pieces) and self.snapshots.waits_for_cycle(self.publisher)
            return is_long(cycle) or due

        fetched, careful = self.hand.runs, self._is_careful if self.careful else None
        while True:
            hungry = [
                p for p, runs in fetched.items() if runs and p in self.aligner.queues and self.aligner.is_empty(p)
            ]
            self._decode(hungry)
            pieces = len(cycle.pieces)
            run_cycle(engine, self.aligner, self.hand.at_end(self.aligner), is_full, cycle, careful)
            if is_full(cycle) or engine.stop_reason is not None or (not hungry and pieces == len(cycle.pieces)):
                break
        self.pace.adapt(behind=is_long(cycle) and self.has_work())
        if cycle.pieces:
            end_cycle(engine, cycle)
            self._encode(cycle)
        if engine.counters_now(learned) > before:
            self.standing.last_learned = time.time()
        return cycle

    def _decode(self, hungry: list[Partition]) -> None:
        """Give the aligner the next of these partitions."""
        for role, decoder in self.decoders.items():
            waiting = [partition for partition in hungry if partition[0] == role]
            while waiting:
                self.stages.enter("unpack")
                taken = self.hand.take(waiting)
                self.stages.enter("decode")
                for batch in decoder.decode_all(taken):
                    self.aligner.add(batch)

    def _encode(self, cycle: Cycle) -> None:
        """The prediction records of a cycle, as they go out."""
        self.stages.enter("encode")
        pipeline, learned = self.standing.engine.pipeline, self.standing.last_learned
        topic, age = pipeline.events.topic, None if learned is None else time.time() - learned
        features, models = pipeline.numeric + pipeline.categories, tuple(pipeline.models or ())
        name = models[0] if models else pipeline.name
        served = Served(name, self.publisher.version, age, pipeline.classes, features, models)
        to = pipeline.predictions.topic
        if self.write is None:
            for number, predicted in cycle.predicted.items():
                cycle.outputs[to, number] = [
                    out for piece in predicted for out in encode_predictions(piece, topic, served)
                ]
            return
        rows, ends = prediction_rows(cycle.predicted, topic, served)
        cycle.outputs |= self.write(rows, {(to, number): end for number, end in ends.items()})

    def _is_careful(self, following: Next) -> bool:
        """Whether something in this piece raised before."""
        partition = following.batch.role, following.batch.partition
        return following.start < self.careful.get(partition, 0)

    def committed(self, offsets: Mapping[Partition, int]) -> None:
        """What is known to raise before these offsets is behind us."""
        self.careful = {p: until for p, until in self.careful.items() if offsets.get(p, until) < until}


def careful_about(poisoned: Poisoned) -> dict[str, str]:
    """What the next start is told of records that raised, in its environment."""
    return {CAREFUL: f"{poisoned.role}:{poisoned.partition}:{poisoned.next}"}


def told_careful(environment: Mapping[str, str]) -> dict[Partition, int]:
    """What `careful_about` of the start before has told."""
    told = environment.get(CAREFUL, "")
    if not told:
        return {}
    role, number, offset = told.split(":")
    return {("events" if role == "events" else "labels", int(number)): int(offset)}
