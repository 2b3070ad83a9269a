"""Records as they lie in Kafka, alone and in the runs in which they are fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .record_batches import RecordBatches

Headers = tuple[tuple[str, bytes | None], ...]
Partition = tuple[str, int]  # topic, number; equal to the TopicPartition of aiokafka and the TP of Faust


class Record(NamedTuple):
    """One record as it lay in Kafka."""

    offset: int
    timestamp: int  # milliseconds since the epoch
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Fetched(NamedTuple):
    """The records of one partition from `start` up to, not including, `next`.

    Offsets may have holes (compaction, transaction markers, aborted transactions), and `records` may be empty: then
    only the position moved. Runs of one partition join: the start of one is the next of the one before.
    `record_batches.unpack` makes a table of one or more.
    """

    topic: str
    partition: int
    start: int
    next: int
    records: RecordBatches | list[Record]  # as they were fetched; their length is an upper bound of their number
    end: int  # nothing at or after it could be read when this was fetched: the last stable offset
    generation: int  # of the consumer group; -1 outside a group
    size: int  # bytes of memory, roughly

    @property
    def at_end(self) -> bool:
        """Whether the partition was read to its end with this run."""
        return self.next >= self.end


class Haul:
    """What was fetched at one go of some partitions of a topic, one run of each: the value of one event of Faust.

    runs        in any order
    generation  of the consumer group, that of each run
    """

    def __init__(self, runs: Sequence[Fetched], release: Callable[[Fetched], None]) -> None:
        self.runs, self.generation = runs, runs[0].generation
        self._release = release
        self._left = {run.partition: run for run in runs}

    def release(self, run: Fetched) -> bool:
        """Let go of a run, so that it makes room for others; True when it was the last: the event can be acked now."""
        if self._left.pop(run.partition, None) is not None:
            self._release(run)
        return not self._left

    def release_all(self) -> None:
        """Let go of all runs that are left."""
        for run in list(self._left.values()):
            self.release(run)
