"""How partitions become ours: where each goes on, from whose state, and from when on what comes of it is processed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from ..connectors.store import SnapshotStore
from ..connectors.transport import Assigned
from ..errors import StreamStopped
from .adoption import Adoption
from .align import Partition
from .claims import Departed, by_role, check_committed, say_place, source, tell_again
from .commits import Commits
from .computing import Computing
from .declaration import Pipeline
from .recovery import adopt, replay
from .report import Figures, Status
from .settings import Settings
from .slices import Role
from .standing import Left, Standing

log = logging.getLogger("headrace")

InCompute = Callable[[Callable[[], Any]], Awaitable[Any]]


def store_of(pipeline: Pipeline, settings: Settings, slot: int) -> SnapshotStore:
    """Where the snapshots of a slot are."""
    return SnapshotStore(settings.redis, pipeline.name, slot, pipeline.snapshots.keep, hmac_key=settings.hmac_key)


class Ownership:
    """The partitions of a worker. Methods are called in the event loop, while nothing is computed.

    pending   an assignment that `recover` has not seen to yet; None: there is none
    starts    where the partitions of the last assignment go on
    replayed  the engine was brought from its snapshot to where the group's offsets stand
    adoption  partitions whose state comes from another slot
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Settings,
        status: Status,
        figures: Figures,
        commits: Commits,
        *,
        in_compute: InCompute,
        wake: Callable[[], None],
        interrupted: Callable[[], bool],
    ) -> None:
        """
        in_compute   has something done in the compute thread
        wake         called when there is something to take in
        interrupted  whether the worker is to stop, or to let go of its partitions; asked in the compute thread, too
        """
        self._pipeline, self._settings, self._status, self._figures = pipeline, settings, status, figures
        self._commits, self._in_compute, self._interrupted = commits, in_compute, interrupted
        self._slot = 0
        self.pending: Assigned | None = None
        self.starts: dict[Partition, int] = {}
        self.replayed = False
        self.adoption = Adoption(self._fetch_states, wake)
        self._departed = Departed(pipeline, settings.broker)
        self._given: Assigned  # the last that were given

    def begin(self, slot: int) -> None:
        """Own partitions as this slot; called once."""
        self._slot = slot

    def assign(self, assigned: Assigned) -> None:
        """The group gives us these partitions, and no others."""
        self.pending = self._given = assigned
        self.starts = by_role(self._pipeline, assigned.starts)

    async def recover(self, computing: Computing, assigned: Assigned) -> None:
        """Bring the engine to where the group's offsets stand, and see which partitions can go on from there."""
        pipeline, standing = self._pipeline, computing.standing
        mine = by_role(pipeline, assigned.starts)
        committed = {p: offset for p, offset in by_role(pipeline, assigned.committed).items() if offset is not None}
        check_committed(standing, computing.publisher.version, committed, mine)
        if not self.replayed:
            await self._replay(computing, committed)
        if not self.replayed or self.pending is not assigned or self._interrupted():
            return  # another rebalance came meanwhile
        for partition, gone in by_role(pipeline, assigned.gone).items():
            log.warning(
                "%s: %s records are gone that were not read yet; going on at offset %s",
                say_place(pipeline, partition), f"{gone:,}", f"{mine[partition]:,}",
            )  # fmt: skip
        by = by_role(pipeline, assigned.committed_by)
        numbers = sorted({number for _, number in mine})
        sources = {number: source(standing, self._slot, number, committed, by) for number in numbers}
        wanted = {number: found for number, found in sources.items() if found is not None}
        await self._own(computing, [number for number in numbers if number not in wanted], mine)
        for number in wanted:
            standing.left.pop(number, None)  # it is older than what is committed
        self.adoption.begin(wanted, numbers)
        self.pending = None
        self._status.state = "running"
        log.info("%s owns partitions %s", self._name, ", ".join(map(str, numbers)) or "none")

    async def take_in(self, computing: Computing) -> None:
        """Take in what has come from other slots; what a snapshot holds by now is live."""
        standing = computing.standing
        if arrived := self.adoption.arrived():
            await self._commits.all_committed()

            def take() -> None:
                for number, left in arrived.items():
                    standing.adopt(number, left)

            await self._in_compute(take)
            starts = {p: offset for p, offset in self.starts.items() if p[1] in arrived}
            standing.position = standing.position._replace(offsets=standing.position.offsets | starts)
            self._commits.owned = sorted(standing.engine.partitions)
            await self._commits.commit(standing, adopted=sorted(arrived))
            self.adoption.taken_in(arrived, standing.position.journal - 1)
            computing.snapshots.due_at = 0.0
        if live := self.adoption.published(computing.publisher.token):
            self._go_live(computing, live)
            log.info("%s goes on with partitions %s", self._name, ", ".join(map(str, live)))

    async def unless_forgotten(self, recovery: Awaitable[None]) -> None:
        """Recover; where that cannot be, see whether the broker has forgotten what was committed, and tell it again."""
        try:
            await recovery
        except StreamStopped:
            pipeline, commits, given = self._pipeline, self._commits, self._given
            if pipeline.delivery != "exactly_once":
                raise
            committed, by = by_role(pipeline, given.committed), by_role(pipeline, given.committed_by)
            forgotten = await tell_again(pipeline, commits.producer, commits.member, committed, by)
            if forgotten is None:
                raise
            raise forgotten from None

    def forget_left(self, standing: Standing) -> None:
        """Let go of the states of partitions that left us and that another slot has gone on with."""
        self._departed.forget(standing, self._slot)

    def let_go(self, computing: Computing) -> None:
        """Nothing is live any more, and nothing is waited for."""
        self.adoption.abandon()
        self._departed.abandon()
        for partition in list(computing.aligner.queues):
            computing.aligner.disown(partition)

    @property
    def _name(self) -> str:
        return f"{self._pipeline.group}-{self._slot}"

    async def _replay(self, computing: Computing, committed: Mapping[Partition, int]) -> None:
        settings, status, engine = self._settings, self._status, computing.standing.engine

        def say(done: int, goal: int) -> bool:
            """In the compute thread: how far it is, and whether it shall go on."""
            status.progress += 1
            if goal:
                status.state, status.replay_left = f"replaying {done:,} of {goal:,} records", goal - done
                log.info("%s from the journal", status.state)
                self._figures.note(engine)
            return not self._interrupted()

        status.state, status.replaying = "replaying", True
        self.replayed = await self._in_compute(
            lambda: replay(
                computing.standing, computing.decoders, settings.broker, self._slot, committed, settings.lost, say
            )
        )
        status.replaying, status.replay_left = False, 0

    async def _own(self, computing: Computing, numbers: list[int], starts: Mapping[Partition, int]) -> None:
        """Own exactly these partitions, whose states are here or begin now, and read on at `starts`."""
        standing = computing.standing
        before = set(standing.engine.partitions)
        await self._in_compute(lambda: standing.own(numbers))
        if before != set(numbers):
            self._commits.owned = numbers
        offsets = {p: offset for p, offset in starts.items() if p[1] in numbers}
        standing.position = standing.position._replace(offsets=offsets)
        for partition in list(computing.aligner.queues):
            computing.aligner.disown(partition)
        waiting = self.adoption.unpublished()
        self._go_live(computing, [number for number in numbers if number not in waiting])

    def _go_live(self, computing: Computing, numbers: Collection[int]) -> None:
        """What comes of these partitions is processed from now on."""
        engine = computing.standing.engine
        for role, number in self.starts:
            if number in numbers:
                computing.aligner.own((role, number), engine.clock(role, number))

    def _fetch_states(
        self, slot: int, wanted: Mapping[int, Mapping[Role, int]], go_on: Callable[[int, int], bool]
    ) -> dict[int, Left]:
        """In a thread of its own: the states of partitions as another slot left them."""
        pipeline, settings = self._pipeline, self._settings
        return adopt(
            pipeline, settings.broker, lambda of: store_of(pipeline, settings, of), slot, wanted, settings.lost, go_on
        )
