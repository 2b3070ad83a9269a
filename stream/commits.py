"""Cycles on their way out: what each gave, its place in the journal and its offsets, one cycle after the other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ..connectors.groups import Member
from ..connectors.leases import Slots
from ..connectors.reading import read_range
from ..connectors.record_writer import MAX_RECORD_BYTES
from ..connectors.records import Partition as TopicPartition
from ..connectors.records import Record
from ..connectors.transactions import CycleProducer, Output, Records
from .cycle import Cycle, merge
from .declaration import Pipeline
from .encode import JournalRecord, encode_dead_letter
from .journal import LAG_CYCLES
from .pace import Pace
from .poison import as_they_came
from .slices import DeadLetter, Role
from .standing import Position, Standing
from .start_over import Starts

COMMIT_SECONDS = 0.25  # between two commits of offsets without transactions, where the worker is not behind
HEADERS_ROOM = 20_000  # of a dead letter, for the headers that say why


class Sent(NamedTuple):
    """A cycle whose outputs are out."""

    cycle: Cycle
    offsets: dict[TopicPartition, int]  # to commit
    position: Position  # after it


class Commits:
    """Writes and commits cycles, in their order. Methods are called in the event loop.

    In transactions a cycle is out and committed at one go. Without them it is out first; its offsets follow by
    themselves, with those of the cycles that go out meanwhile. After an error nothing more can be committed.

    producer      from `begin` on
    member        in the name of which offsets are committed
    owned         the partitions that are ours since the last record of the journal, if they have changed: the next
                  record says so
    committed_at  when a cycle was committed last, by the monotonic clock
    began         when the commit began that is under way; None: none is
    """

    producer: CycleProducer

    def __init__(self, pipeline: Pipeline, address: str, pace: Pace, on_committed: Callable[[Sent], None]) -> None:
        """on_committed  called once for each cycle, when its offsets are committed, too"""
        self._pipeline, self._address, self._pace, self._on_committed = pipeline, address, pace, on_committed
        self._exactly_once = pipeline.delivery == "exactly_once"
        self._slot = 0
        self.member = Member(-1, "")
        self.owned: list[int] | None = None
        self.committed_at: float | None = None
        self.began: float | None = None
        self._committing: deque[asyncio.Task[None]] = deque()  # cycles on their way out, one after the other
        self._sent: deque[Sent] = deque()  # cycles whose outputs are out and whose offsets are not committed yet
        self._settling: asyncio.Task[None] | None = None  # the commit of their offsets
        self._settle_now = asyncio.Event()  # somebody waits for it, or enough cycles do
        self._settled_at = 0.0

    def begin(self, slot: int) -> None:
        """Commit as this slot; called once."""
        self._slot = slot
        self.producer = CycleProducer(
            self._address,
            transactional_id=f"{self._pipeline.group}-{slot}" if self._exactly_once else None,
            compression=self._pipeline.predictions.compression,
        )

    async def start(self, redis: str) -> None:
        """Connect, and end what a predecessor of this slot left open."""
        await self.producer.start()
        if self._exactly_once:
            await _forget_pending(self.producer, self._pipeline, redis)

    @property
    def all_settled(self) -> bool:
        """Whether the offsets of all cycles that are out are committed."""
        return not self._sent

    @property
    def under_way(self) -> int:
        """Cycles that are not committed yet."""
        return len(self._sent) + len(self._committing)

    def hand_over(self, standing: Standing, cycle: Cycle, stop: str | None) -> None:
        """Commit a cycle beside the stream, after those before it; if one of them fails, so does this."""
        before = self._committing[-1] if self._committing else None
        self._committing.append(asyncio.create_task(self._send(standing, cycle, stop=stop, after=before)))

    async def commit(
        self,
        standing: Standing,
        *,
        stop: str | None = None,
        adopted: list[int] | None = None,
        rollback: dict[str, Any] | None = None,
    ) -> None:
        """Commit a cycle that only tells something to the journal; nothing else may be under way.

        stop      why it is the last one
        adopted   partitions that were taken in
        rollback  from where on and up to where nothing is learned
        """
        await self._send(standing, Cycle(), stop=stop, adopted=adopted, rollback=rollback)
        await self.all_committed()

    async def sent_out(self, but: int = 0) -> None:
        """Wait until the outputs of all cycles but the last `but` are out.

        Raises what has gone wrong with them, or with a commit.
        """
        if self._settling is not None and self._settling.done():
            await self._settled()
        while len(self._committing) > but:
            await self._committing[0]
            self._committing.popleft()

    async def all_committed(self) -> None:
        """Wait for the commits under way. Raises as `sent_out`."""
        await self.sent_out()
        await self._settled()

    def abandon(self) -> None:
        """After an error: what was not committed will not be."""
        for task in self._committing:
            task.cancel()  # which also keeps asyncio from reporting a failure that was heard of from the one before
        self._committing.clear()
        if self._settling is not None:
            self._settling.cancel()

    async def _send(
        self,
        standing: Standing,
        cycle: Cycle,
        *,
        stop: str | None = None,
        adopted: list[int] | None = None,
        rollback: dict[str, Any] | None = None,
        after: asyncio.Task[None] | None = None,
    ) -> None:
        """Write what a cycle gave and its place in the journal; in transactions its offsets, too."""
        if after is not None:
            await after
        pipeline = self._pipeline
        outputs: dict[TopicPartition, Records] = dict(cycle.outputs)
        dead = cycle.dead
        if cycle.poison:
            dead = await asyncio.to_thread(as_they_came, dead, set(cycle.poison), self._read_again)
        outputs |= self._letters(dead)
        owned, self.owned = self.owned, None
        number = standing.position.cycle
        record = JournalRecord(
            slot=self._slot,
            cycle=number,
            owned=owned,
            adopted=adopted or [],
            rollback=rollback,
            poison=cycle.poison,
            pieces=merge(cycle.pieces),
            stop=stop,
        )
        journal = (pipeline.journal_topic, 0)
        outputs[journal] = [(str(self._slot).encode(), record.encode(), (), None)]
        position = {**standing.position.offsets, **cycle.offsets()}
        touched = {piece.partition for piece in cycle.pieces}
        offsets = {  # both topics of a partition: whoever has committed one has its state
            (pipeline.topics[role], of): offset for (role, of), offset in position.items() if of in touched
        }
        self.began = time.monotonic()
        if self._exactly_once:
            written = await self.producer.commit_cycle(outputs, offsets, pipeline.group, self.member, str(self._slot))
        else:
            written = await self.producer.send_outputs(outputs)
        standing.position = Position(position, written[journal] + 1, number + 1)
        sent = Sent(cycle, offsets, standing.position)
        if self._exactly_once:
            self._settle(sent)
            return
        self._sent.append(sent)
        if self._pace.behind or len(self._sent) >= LAG_CYCLES // 2:
            self._settle_now.set()
        if self._settling is None or self._settling.done():
            await self._settled()
            self._settling = asyncio.create_task(self._commit_sent())

    async def _commit_sent(self) -> None:
        """Without transactions: commit the offsets of all that is out, and of what goes out meanwhile, now and then."""
        while self._sent:
            left = self._settled_at + COMMIT_SECONDS - time.monotonic()
            if left > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._settle_now.wait()
            self._settle_now.clear()
            self._settled_at = time.monotonic()
            sent = list(self._sent)
            offsets = {partition: offset for cycle in sent for partition, offset in cycle.offsets.items()}
            await self.producer.commit_offsets(offsets, self._pipeline.group, self.member, str(self._slot))
            for cycle in sent:
                self._sent.popleft()
                self._settle(cycle)

    def _settle(self, sent: Sent) -> None:
        """A cycle is committed: others may know."""
        self.committed_at = time.monotonic()
        self.began = self.committed_at if self._sent else None
        self._on_committed(sent)

    async def _settled(self) -> None:
        """Wait until the offsets of all that is out are committed."""
        if self._settling is not None:
            task, self._settling = self._settling, None
            if not task.done():
                self._settle_now.set()
            await task

    def _letters(self, dead: list[DeadLetter]) -> dict[TopicPartition, list[Output]]:
        letters: defaultdict[TopicPartition, list[Output]] = defaultdict(list)
        for letter in dead:
            topic = self._pipeline.topics[letter.role]
            output = encode_dead_letter(letter, topic, MAX_RECORD_BYTES - HEADERS_ROOM)
            letters[self._pipeline.predictions.dead_letters, letter.partition].append(output)
        return letters

    def _read_again(self, role: Role, number: int, offset: int) -> Record:
        """One record as it lies in its topic."""
        (record,) = read_range(self._address, self._pipeline.topics[role], number, offset, offset + 1)
        return record


async def _forget_pending(producer: CycleProducer, pipeline: Pipeline, redis: str) -> None:
    """See that no offsets of the group stay unstable for ever, or nobody could begin at them.

    Those of the producer's slot. After a start that came to nothing also those of slots that nobody holds any more.
    """
    journal = (pipeline.journal_topic, 0)
    await producer.forget_pending(pipeline.group, journal)
    if not Starts.so_far().fruitless:
        return
    slots = await asyncio.to_thread(Slots(redis, pipeline.name).look)
    for number in (number for number, slot in slots.items() if slot.exists and slot.holder is None):
        other = CycleProducer(producer.address, transactional_id=f"{pipeline.group}-{number}")
        try:
            await other.start()
            await other.forget_pending(pipeline.group, journal)
        finally:
            await other.close()
