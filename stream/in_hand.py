"""What a worker has in hand: runs of records, until they are decoded, and until their offsets are committed."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

from ..connectors import record_batches
from ..connectors.record_batches import RecordBatches
from ..connectors.records import Fetched, Haul, Record
from .align import Aligner, Partition
from .slices import Piece, Role, Slices

IDLE_SECONDS = 5.0  # a partition that gave nothing for so long holds the others back no longer
SLICE_RECORDS = 20_000  # runs are joined up to so many records before they are decoded: 12 ms of work at one go


class InHand:
    """Runs of the partitions that are ours. `take` and `at_end` are called by who computes, all else in the event loop.

    runs     of each partition, fetched and not decoded yet
    fetched  the offset up to which each partition has come to us
    ends     the end of each partition, where it is known
    """

    def __init__(self) -> None:
        self.runs: dict[Partition, deque[Fetched]] = {}
        self.fetched: dict[Partition, int] = {}
        self.ends: dict[Partition, int] = {}
        self._unacked: defaultdict[Partition, deque[tuple[Fetched, Any]]] = defaultdict(deque)  # runs, events of Faust
        self._heard: dict[Partition, float] = {}  # when a partition last gave something

    def begin(self, starts: Mapping[Partition, int]) -> None:
        """These partitions are ours from now on, and come from these offsets on."""
        self.fetched = dict(starts)
        self.runs = {partition: deque() for partition in self.fetched}
        self._heard = dict.fromkeys(self.fetched, time.monotonic())

    def add(self, event: Any, roles: Mapping[str, Role]) -> None:
        """Take the haul of an event of Faust; roles: of each topic."""
        haul: Haul = event.value
        now = time.monotonic()
        for run in haul.runs:
            partition = (roles[run.topic], run.partition)
            self.runs[partition].append(run)
            self._unacked[partition].append((run, event))
            self.fetched[partition] = run.next
            self._heard[partition] = now

    def take(self, waiting: list[Partition]) -> Slices:
        """What was fetched of the first of these partitions, which leave the list, to be decoded at one go.

        Of each one run or some up to SLICE_RECORDS, and no further partition once there are so many of all: each go has
        its price, but its rows stay in memory until the last partition of it is let on.
        """
        pieces: list[Piece] = []
        parts: list[list[RecordBatches | list[Record]]] = []
        records = 0
        while waiting and records < SLICE_RECORDS:
            partition = waiting.pop(0)
            runs = self.runs[partition]
            taken = [runs.popleft()]
            count = len(taken[0].records)
            while runs and count < SLICE_RECORDS:
                taken.append(runs.popleft())
                count += len(taken[-1].records)
            pieces.append(Piece(*partition, taken[0].start, taken[-1].next))
            parts.append([run.records for run in taken])
            records += count
        return Slices(pieces, *record_batches.unpack_all(parts))

    def at_end(self, aligner: Aligner) -> set[Partition]:
        """Partitions that hold nothing back: read to their end, or silent for long."""
        now = time.monotonic()
        for p in self.fetched:
            if self.runs.get(p) or not aligner.is_empty(p):
                self._heard[p] = now  # of a long run that is being worked off more may follow: not silent yet
        silent = now - IDLE_SECONDS
        return {
            p
            for p, next in self.fetched.items()
            if not self.runs.get(p) and (next >= self.ends.get(p, next + 1) or self._heard.get(p, 0.0) < silent)
        }

    def committed(self, offsets: Mapping[Partition, int]) -> None:
        """Ack what lies before these offsets."""
        for partition, offset in offsets.items():
            unacked = self._unacked[partition]
            while unacked and unacked[0][0].next <= offset:
                run, event = unacked.popleft()
                if event.value.release(run):
                    event.ack()

    def let_go(self) -> None:
        """Ack all, committed or not: what was not is read again, by whoever owns the partition next."""
        for unacked in self._unacked.values():
            for _, event in unacked:
                event.ack()
        self._unacked.clear()
        self.runs = {}
