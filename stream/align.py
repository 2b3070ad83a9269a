"""Which piece of which partition comes next, so that events and labels advance together in event time.

In a backlog one fetch may hold a week of events. Taken in turn with a week of labels, labels would come long before
their event, or their event would be predicted by a model that has seen its future. So they take turns: events go on
as far as the labels allow, then labels as far as the events allow; of each the partition furthest back goes first.

    events may run ahead of labels, and partitions of one kind ahead of each other, by at most `alignment`;
    labels never run ahead of events: no prediction is made by a model that has seen its future.

A partition that is read to its end holds nothing back. What was decided is recorded in the journal, so nothing here
needs to be repeatable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from .decode import Batch
from .slices import Role

Partition = tuple[Role, int]

BEFORE_ALL = -(2**62)
AFTER_ALL = 2**62


class Next(NamedTuple):
    """The part of a batch to process: offsets [start, next), which end the batch or not."""

    batch: Batch
    start: int
    next: int


@dataclass
class _Queue:
    clock: int = BEFORE_ALL
    batches: deque[Batch] = field(default_factory=deque)
    start: int = 0  # the first offset not handed out yet, of the first batch
    row: int = 0  # the first row not handed out yet, of the first batch
    head: int = BEFORE_ALL  # the clock that the next row would set

    def look(self) -> None:
        """Set head, after the first row not handed out has changed."""
        clocks = self.batches[0].clock if self.batches else ()
        self.head = max(self.clock, int(clocks[self.row])) if self.row < len(clocks) else self.clock


class Aligner:
    """Holds decoded batches of the partitions that a worker owns, and hands out pieces of them."""

    def __init__(self, alignment: int | None) -> None:
        """alignment: microseconds of event time; None: pieces are handed out as they come."""
        self.alignment = alignment
        self.queues: dict[Partition, _Queue] = {}
        self.role: Role = "events"  # whose turn it is

    def own(self, partition: Partition, clock: int = BEFORE_ALL) -> None:
        """Begin to own a partition whose clock stands at `clock`; whatever is still here of it is forgotten."""
        self.queues[partition] = _Queue(clock)

    def disown(self, partition: Partition) -> None:
        """Forget a partition and what is still here of it."""
        self.queues.pop(partition, None)

    def add(self, batch: Batch) -> None:
        """Take the next batch of a partition that is owned."""
        queue = self.queues[batch.role, batch.partition]
        queue.batches.append(batch)
        if len(queue.batches) == 1:
            queue.start, queue.row = batch.start, 0
            queue.look()

    def is_empty(self, partition: Partition) -> bool:
        """Whether nothing of a partition waits here."""
        queue = self.queues.get(partition)
        return not (queue and queue.batches)

    def next(self, at_end: Container[Partition]) -> Next | None:
        """The piece to process next; None: nothing is here, or what is here must wait for partitions not `at_end`.

        One role goes on until it is held, then the other: so pieces are as long as `alignment` lets them be. In turn by
        the clock alone, each would end at the next row of another partition.
        """
        if self.alignment is None:
            return self._furthest_back(("events", "labels"), at_end)
        following = self._furthest_back((self.role,), at_end)
        if following is None:
            self.role = "labels" if self.role == "events" else "events"
            following = self._furthest_back((self.role,), at_end)
        return following

    def _furthest_back(self, roles: tuple[Role, ...], at_end: Container[Partition]) -> Next | None:
        """What may be taken of the partition that is furthest back among those of these roles."""
        head, chosen = AFTER_ALL, None
        for partition, queue in self.queues.items():
            if queue.batches and queue.head <= head and partition[0] in roles and (
                queue.head < head or (chosen and partition < chosen)  # at equal times events go before labels
            ):  # fmt: skip
                head, chosen = queue.head, partition
        if chosen is None:
            return None
        limit = AFTER_ALL
        if self.alignment is not None:
            for partition, queue in self.queues.items():
                if partition == chosen or (not queue.batches and partition in at_end):
                    continue
                bound = queue.head  # the clock where nothing is here
                if chosen[0] == "events" or partition[0] == "labels":
                    bound += self.alignment
                elif queue.batches:
                    bound -= 1  # the event goes before a label of the same time
                if bound < limit:
                    limit = bound
        return self._take(self.queues[chosen], limit) if head <= limit else None

    def _take(self, queue: _Queue, limit: int) -> Next:
        """Hand out the rows of a partition's first batch whose clock is at most limit."""
        batch, start = queue.batches[0], queue.start
        last = int(batch.clock.searchsorted(limit, side="right"))
        if last == len(batch):
            if len(batch):
                queue.clock = max(queue.clock, int(batch.clock[-1]))
            queue.batches.popleft()
            queue.row = 0
            if queue.batches:
                queue.start = queue.batches[0].start
            queue.look()
            return Next(batch, start, batch.next)
        queue.row, queue.start = last, int(batch.offset[last])
        queue.look()
        return Next(batch, start, queue.start)
