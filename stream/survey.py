"""What a replay will have to do, and what of it can be done no more: found out before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from .align import Partition
from .journal import Told
from .slices import Piece, Role
from .standing import Standing


@dataclass
class Survey:
    """Cycles of one slot that come after `standing`, which stays as it is.

    first     of each partition the first record that its topic still holds
    start, end      of the journal, what was looked at
    at        where each partition would stand after the cycles seen so far
    starts, ends    what is to be read of each partition
    records   to process again
    poison    records that were made dead letters because the model raised on them
    rollbacks what the journal says of a model that was no longer finite
    deleted   records that would have to be processed and that the topic does not hold any more, by partition
    untold    and those of which the journal does not tell any more
    skipped   numbers of cycles that the journal does not hold any more: from, up to
    strange   partitions whose state came from another slot and is in no snapshot
    """

    standing: Standing
    first: Mapping[Partition, int]
    start: int
    end: int
    at: dict[Partition, int] = field(default_factory=dict)
    starts: dict[Partition, int] = field(default_factory=dict)
    ends: dict[Partition, int] = field(default_factory=dict)
    cycles: int = 0
    records: int = 0
    poison: dict[Partition, set[int]] = field(default_factory=dict)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    deleted: dict[Partition, int] = field(default_factory=dict)
    untold: dict[Partition, int] = field(default_factory=dict)
    skipped: tuple[int, int] | None = None
    strange: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.at = dict(self.standing.position.offsets)
        for number, left in self.standing.left.items():
            self.at |= {(role, number): offset for role, offset in left.offsets.items()}
        self._cycle = self.standing.position.cycle
        self._awaited: set[int] = set()  # adopted, and nothing was processed since
        self._seen: set[Partition] = set()

    def add(self, told: Told, trimmed: bool) -> None:
        """Take in the next cycle. `trimmed`: the beginning of the journal is gone.

        Raises InputError when a cycle is missing, or there twice.
        """
        cycle = told.cycle
        if cycle.cycle != self._cycle:
            if self.cycles or not trimmed or cycle.cycle < self._cycle:
                raise InputError(
                    f"journal, offset {told.offset:,}: cycle {cycle.cycle:,} of slot {cycle.slot}, expected "
                    f"{self._cycle:,}: were records of the journal removed or copied? Give the pipeline another name "
                    "to begin anew"
                )
            self.skipped = self._cycle, cycle.cycle
        self._cycle = cycle.cycle + 1
        self.cycles += 1
        self.end = told.offset + 1
        if cycle.rollback is not None:
            self.rollbacks.append(cycle.rollback)
        for number in cycle.adopted:
            self._awaited.add(number)
            self.at = {p: offset for p, offset in self.at.items() if p[1] != number}
        if cycle.owned is not None:
            self._awaited &= set(cycle.owned)
        for role, number, offset in cycle.poison:
            self.poison.setdefault((role, number), set()).add(offset)
        for piece in cycle.pieces:
            self._piece(piece)

    def _piece(self, piece: Piece) -> None:
        partition: Partition = (piece.role, piece.partition)
        if piece.partition in self._awaited:
            self._awaited.discard(piece.partition)
            self.strange.add(piece.partition)
        if self.skipped is not None and partition not in self._seen:
            _add(self.untold, partition, piece.start - self.at.get(partition, 0))
        self._seen.add(partition)
        clipped = self.clip(piece)
        _add(self.deleted, partition, clipped.start - piece.start)
        self.at[partition] = piece.next
        self.records += clipped.next - clipped.start
        if clipped.start < clipped.next:
            self.starts.setdefault(partition, clipped.start)
            self.ends[partition] = clipped.next

    def compare(self, held: Mapping[Partition, int]) -> None:
        """Take in what the slot has committed, by the offsets of the group: the cycles should lead there."""
        known = {number for _, number in self.at}
        for (role, number), offset in held.items():
            at = self.at.get((role, number), offset if number in known else 0)
            _add(self.untold, (role, number), offset - at)

    def reaches(self, wanted: Mapping[Partition, int]) -> bool:
        """Whether the cycles seen so far lead to these offsets."""
        return bool(wanted) and all(self.at.get(partition) == offset for partition, offset in wanted.items())

    def loss(self, topics: Mapping[Role, str]) -> str | None:
        """What is gone, in words; None: nothing is."""
        said = []
        if total := sum(self.deleted.values()) + sum(self.untold.values()):
            said.append(f"{total:,} records that it learned from are gone")
        for (role, number), records in sorted(self.deleted.items()):
            first = self.first[role, number]
            said.append(f"{topics[role]}[{number}] begins at offset {first:,}, {records:,} of them lay before it")
        for (role, number), records in sorted(self.untold.items()):
            said.append(f"the journal does not tell any more of {records:,} of them in {topics[role]}[{number}]")
        if self.skipped is not None:
            said.append(f"cycles {self.skipped[0]:,} to {self.skipped[1] - 1:,} are not in the journal")
        if self.strange:
            numbers = ", ".join(map(str, sorted(self.strange)))
            said.append(
                f"the predictions that waited in partitions {numbers} had come from another slot, and no snapshot "
                "holds them"
            )
        return "; ".join(said) or None

    def clip(self, piece: Piece) -> Piece:
        """What of a piece can still be read."""
        first = self.first.get((piece.role, piece.partition), 0)
        return piece._replace(start=min(max(piece.start, first), piece.next))


def _add(counts: dict[Partition, int], partition: Partition, records: int) -> None:
    if records > 0:
        counts[partition] = counts.get(partition, 0) + records
