"""What one slot has learned and where in the topics it stands, with the frozen states of partitions that left it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from numpy.typing import NDArray

from .align import Partition
from .engine import Engine
from .slices import Role


class Position(NamedTuple):
    """Where in the topics a state stands.

    offsets  of each partition that is owned the next record to process
    journal  the next record of the journal to replay
    cycle    the number of the next cycle
    """

    offsets: dict[Partition, int]
    journal: int
    cycle: int


BEGINNING = Position({}, 0, 0)


class Left(NamedTuple):
    """The state of one partition, frozen: its arrays, and of each topic the next record to process."""

    arrays: dict[str, NDArray]
    offsets: dict[Role, int]


@dataclass
class Standing:
    """Touched by one thread at a time. What changes the partitions here is done in the same way live and in replay.

    left          partitions that another slot may own by now, as they were when they left
    version       of the snapshot that it began from; 0: there was none
    last_learned  the wall time at which the last example was learned; None: none was
    """

    engine: Engine
    position: Position = BEGINNING
    left: dict[int, Left] = field(default_factory=dict)
    version: int = 0
    last_learned: float | None = None

    def own(self, numbers: Collection[int]) -> None:
        """Own exactly these partitions: those that go are frozen, those that come go on as they were or begin."""
        for number in sorted(set(self.engine.partitions) - set(numbers)):
            self._freeze(number)
        for number in sorted(set(numbers) - set(self.engine.partitions)):
            if number in self.left:
                self.adopt(number, self.left[number])
            else:
                self.engine.own(number)

    def adopt(self, number: int, left: Left) -> None:
        """Own a partition with this state, whatever is here of it."""
        self.begin(number)
        self.engine.load_partition(number, left.arrays)
        self._move({**self.position.offsets, **{(role, number): offset for role, offset in left.offsets.items()}})

    def begin(self, number: int) -> None:
        """Own a partition with a state in which nothing has happened yet, whatever is here of it."""
        self.left.pop(number, None)
        self.engine.disown(number)
        self._move({p: offset for p, offset in self.position.offsets.items() if p[1] != number})
        self.engine.own(number)

    def skip_to(self, number: int, offsets: Mapping[Role, int]) -> None:
        """Say that a partition stands at these offsets, although what lies before them was not learned."""
        if number in self.left:
            self.left[number] = self.left[number]._replace(offsets=dict(offsets))
            return
        self.engine.own(number)
        self._move({**self.position.offsets, **{(role, number): offset for role, offset in offsets.items()}})

    def stands_at(self, number: int) -> dict[Role, int]:
        """Of each topic the next record to process, of a partition that is owned or left; without those that are not
        known: nothing of that topic was processed here yet."""
        if number in self.left:
            return dict(self.left[number].offsets)
        return {role: offset for (role, of), offset in self.position.offsets.items() if of == number}

    def _freeze(self, number: int) -> None:
        offsets = self.stands_at(number)
        arrays = self.engine.disown(number)
        assert arrays is not None
        self.left[number] = Left(arrays, offsets)
        self._move({p: offset for p, offset in self.position.offsets.items() if p[1] != number})

    def _move(self, offsets: dict[Partition, int]) -> None:
        self.position = self.position._replace(offsets=offsets)
