"""The life of a worker: recover, then cycle after cycle until told to stop.

All methods run in the event loop of the Faust app, except `_work`, which runs in the one compute thread; the engine,
the aligner and the decoders are touched by it alone while it runs. While one cycle commits, the next is computed; while
the worker is behind one more may wait for its commit, so that neither of the two waits for the other's slow moments.
Where there is little to do, `_work` runs in the event loop too: each change of the thread takes as long as a hundred
rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, TypeVar

from numba.core.event import install_timer

from ..connectors import record_batches, record_writer, spans
from ..connectors.groups import Member
from ..connectors.leases import Slots
from ..connectors.reading import read_range
from ..connectors.record_batches import RecordBatches
from ..connectors.record_writer import MAX_RECORD_BYTES
from ..connectors.records import Fetched, Haul, Record
from ..connectors.records import Partition as TopicPartition
from ..connectors.store import SnapshotStore
from ..connectors.topics import committed_by, remove_member
from ..connectors.transactions import CycleProducer, Output, Records
from ..connectors.transport import Assigned
from ..errors import HeadraceError, InputError, SnapshotError, StreamStopped
from ..models.base import NotFinite
from . import arrow_text, fast_encode, fast_json, publisher
from .adoption import Adoption
from .align import BEFORE_ALL, Aligner, Next, Partition
from .contest import say_losses
from .cycle import Cycle, end_cycle, merge, run_cycle
from .declaration import Pipeline
from .decode import Decoder
from .encode import JournalRecord, Served, encode_dead_letter, encode_predictions
from .engine import Engine
from .fast_encode import prediction_rows
from .journal import LAG_CYCLES, committed_as_told
from .poison import Poisoned, as_they_came
from .process import settle, undisturbed
from .publisher import SnapshotPublisher, Table
from .recovery import adopt, check_journal, replay, restore
from .settings import Settings
from .slices import Piece, Role, Slices, nested
from .snapshot import NAN_ALLOWED, libraries, pack, place
from .stages import COMPUTE_THREAD, Profile, Stages
from .standing import Left, Position, Standing
from .start_over import StartOver, Starts, succeeded

log = logging.getLogger("headrace")

Answer = TypeVar("Answer")

IDLE_SECONDS = 5.0  # a partition that gave nothing for so long holds the others back no longer
COMMIT_SECONDS = 0.25  # between two commits of offsets without transactions, where the worker is not behind
BEHIND_SECONDS = 0.1  # a cycle may take so long while more waits than it takes; the latency, if that is longer
TAKE_SECONDS = 0.02  # between two takes of what was fetched, where the worker is behind
LITTLE_ROWS = 500  # are a millisecond or two of work
SLICE_RECORDS = 20_000  # runs are joined up to so many records before they are decoded: 12 ms of work at one go
LOOK_SECONDS = 0.02  # how often to look whether what waits may go on
REPORT_SECONDS = 5.0
FIGURES_SECONDS = 0.5
HEADERS_ROOM = 20_000  # of a dead letter, for the headers that say why
WAIT_SECONDS = 3.0  # a commit that takes longer waits for the broker
SILENT_SECONDS = 5.0  # so does a consumer that heard nothing for so long
SAY_SECONDS = 30.0
FORGET_SECONDS = 2.0  # how often to ask whether others have gone on with partitions that left


CAREFUL = "HEADRACE_CAREFUL"  # events:0:1200: up to offset 1200 of events[0] a record is known to raise


class Sent(NamedTuple):
    """A cycle whose outputs are out."""

    cycle: Cycle
    offsets: dict[TopicPartition, int]  # to commit
    position: Position  # after it


class Runner:
    """One worker of a pipeline. `owner` methods are called by the transport, `add` by the agent.

    What health and metrics look at:

    state      what it does or waits for, in words
    waits      what is away and why, by its name, "broker" or "Redis"
    replaying  cycles of the journal are being processed again
    progress   grows with whatever gets done
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, fail: Callable[[BaseException], None]) -> None:
        self.pipeline, self.settings, self.fail = pipeline, settings, fail
        self.topic_of = pipeline.topics
        self.topics: dict[str, Role] = {topic: role for role, topic in self.topic_of.items()}
        self.slot = 0
        self.state = "starting"
        self.replaying = False
        self.progress = 0
        self.replay_left = 0  # records
        self.standing: Standing | None = None
        self.figures: dict[str, float | int | None] = {}  # counters and metrics, as of a moment ago
        self.figures_of_models: dict[str, dict[str, float | int | None]] = {}  # where there are several
        self.ends: dict[Partition, int] = {}
        self.stall_seconds = 0.0
        self.stages = Stages()
        self._profile = Profile(self.stages) if settings.profile else None
        self.committed_at: float | None = None  # when a cycle was committed last, by the monotonic clock
        self.publisher: SnapshotPublisher | None = None

        self._compute = ThreadPoolExecutor(1, thread_name_prefix=COMPUTE_THREAD)
        self._warming: Future[Engine]
        self._ready, self._fresh, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._begun = self._replayed = self._at_work = False
        self._member = Member(-1, "")
        self._assigned: Assigned | None = None  # partitions given to us that recovery has not seen to yet
        self._given: Assigned  # the last that were given
        self._starts: dict[Partition, int] = {}
        self._revoking = self._stopping = False
        self._owned: list[int] | None = None  # what we own since the last record of the journal, if it has changed
        self._adoption = Adoption(self._fetch_states, self._fresh.set)
        self._runs: dict[Partition, deque[Fetched]] = {}  # fetched, not decoded yet
        self._unacked: defaultdict[Partition, deque[tuple[Fetched, Any]]] = defaultdict(deque)  # runs, events of Faust
        self._fetched: dict[Partition, int] = {}  # the offset up to which each partition has come to us
        self._heard: dict[Partition, float] = {}  # when a partition last gave something
        self._careful = _careful(os.environ.get(CAREFUL, ""))
        self._computing = Cycle()
        self._committing: deque[asyncio.Task[None]] = deque()  # cycles on their way out, one after the other
        self._sent: deque[Sent] = deque()  # cycles whose outputs are out and whose offsets are not committed yet
        self._settling: asyncio.Task[None] | None = None  # the commit of their offsets
        self._settle_now = asyncio.Event()  # somebody waits for it, or enough cycles do
        self._settled_at = 0.0
        self._behind = False  # more waited for the last cycle than it took
        self._latency_seconds = self._cycle_seconds = pipeline.latency_us / 1e6
        self._commit_began: float | None = None
        self._silent: Callable[[], float | None] = lambda: None
        self._forgetting: asyncio.Task[dict[Any, Any]] | None = None
        self._snapshot_due = self._figures_due = self._forget_due = 0.0
        self._snapshot_wanted = self._figures_old = False
        self._taken = False  # a snapshot is copied, and the cycle that it was copied after is not committed yet
        self._reported = (0.0, 0)

    def begin(self, slot: int) -> None:
        """This worker has got its slot; called once, before `run`."""
        pipeline, settings = self.pipeline, self.settings
        self.slot, self.name = slot, f"{pipeline.group}-{slot}"
        exactly_once = pipeline.delivery == "exactly_once"
        self._producer = CycleProducer(
            settings.broker,
            transactional_id=self.name if exactly_once else None,
            compression=pipeline.predictions.compression,
        )
        self._store = self._store_of(slot)

    def _store_of(self, slot: int) -> SnapshotStore:
        return SnapshotStore(
            self.settings.redis,
            self.pipeline.name,
            slot,
            self.pipeline.snapshots.keep,
            hmac_key=self.settings.hmac_key,
        )

    # -- what health and metrics ask

    @property
    def version(self) -> int:
        """Of the last published snapshot; 0: none yet."""
        if self.publisher is not None:
            return self.publisher.version
        return self.standing.version if self.standing is not None else 0

    @property
    def adopting(self) -> dict[int, int]:
        """Partitions that wait for their state, and the slot that it comes from."""
        return self._adoption.sources

    @property
    def ready(self) -> bool:
        """Whether partitions are assigned, the replay is done and no partition waits for its state."""
        return self.state == "running" and not self.adopting

    @property
    def held(self) -> bool:
        """Whether what is here waits for another partition to advance in event time."""
        return (
            self.state == "running" and not self._at_work and any(not self.aligner.is_empty(p) for p in self._fetched)
        )

    @property
    def waits(self) -> dict[str, str]:
        waits, now = {}, time.monotonic()
        silent = self._silent()
        if self._commit_began is not None and now - self._commit_began > WAIT_SECONDS:
            waits["broker"] = f"no answer to a commit for {now - self._commit_began:.0f} s"
        elif silent is not None and silent > SILENT_SECONDS:
            waits["broker"] = f"nothing was heard of {self.settings.broker} for {silent:.0f} s"
        problem = self._adoption.problem or (self.publisher.problem if self.publisher is not None else None)
        if problem is not None:
            waits["Redis"] = problem
        return waits

    def lag(self) -> dict[Partition, int]:
        """Records of each partition that are in Kafka and not committed yet."""
        offsets = self.standing.position.offsets if self.standing is not None else {}
        return {p: max(0, end - offsets.get(p, self._starts.get(p, 0))) for p, end in self.ends.items()}

    # -- what the transport calls

    async def before_start(self) -> None:
        """Offsets may be asked for once a predecessor's transaction is ended."""
        await self._ready.wait()

    def patience(self) -> float:
        """In the consumer's thread: nothing waits while there is nothing else to do."""
        return TAKE_SECONDS if self._behind else 0.0

    def assigned(self, assigned: Assigned) -> None:
        """Partitions are ours from now on. Nothing of an earlier assignment is in hand any more."""
        self._assigned = self._given = assigned
        self._revoking = False
        self._member = assigned.member
        self._starts = self._mine(assigned.starts)
        self._fetched = dict(self._starts)
        self._runs = {partition: deque() for partition in self._fetched}
        self._heard = dict.fromkeys(self._fetched, time.monotonic())
        self._fresh.set()

    def revoking(self, partitions: set[Any]) -> None:
        """The rebalance waits until nothing is in hand: finish the cycle, let go of the rest."""
        self._revoking = True
        if self._assigned is not None:
            self._let_go_of_runs()  # nothing of this assignment was touched: the rebalance need not wait for the replay
        self._fresh.set()

    def revoked(self, partitions: set[Any]) -> None:
        """What comes next is `assigned`."""

    def add(self, event: Any) -> None:
        """Take a haul of runs from the agent."""
        haul: Haul = event.value
        if self._revoking or self._stopping or haul.generation != self._member.generation:
            event.ack()  # not committed: whoever owns the partition next reads it again
            return
        now = time.monotonic()
        for run in haul.runs:
            partition = (self.topics[run.topic], run.partition)
            self._runs[partition].append(run)
            self._unacked[partition].append((run, event))
            self._fetched[partition] = run.next
            self._heard[partition] = now
        self._fresh.set()

    # -- the life of a worker

    async def run(self, ends: Callable[[], dict[Any, int]], silent: Callable[[], float | None] = lambda: None) -> None:
        """Until `close` is called. An error goes to `fail`.

        ends    gives the end of each topic partition
        silent  gives the seconds since the broker was last heard of
        """
        self._begun, self._silent = True, silent
        watching = asyncio.create_task(self._watch())
        try:
            await self._start()
            while not self._stopping:
                self.ends = self._mine(ends())
                if self._revoking:
                    await self._let_go()
                    await self._pause(1.0)
                elif self._assigned is not None:
                    await self._unless_forgotten(self._recover(self._assigned))
                else:
                    await self._unless_forgotten(self._take_in())
                    if not await self._cycle():
                        soon = self.held or self._snapshot_wanted
                        await self._pause(LOOK_SECONDS if soon else FIGURES_SECONDS if self._figures_old else 1.0)
                self._report()
            await self._finish()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.fail(error)
        finally:
            watching.cancel()
            self._adoption.abandon()
            self._closed.set()

    async def close(self) -> None:
        """Finish the cycle in hand, publish a last snapshot."""
        if self._begun:
            at = "" if self.standing is None else f": finishing cycle {self.standing.position.cycle:,}"
            log.info("told to stop%s", at)
            self._stopping = True
            self._fresh.set()
            await self._closed.wait()
            await self._producer.close()
        self._compute.shutdown(wait=False)

    async def leave(self) -> None:
        """Out of the group, so that others take over at once; a static member never goes by itself.

        Only when the consumer has stopped: it would come back.
        """
        if self._begun:
            try:
                await asyncio.to_thread(remove_member, self.settings.broker, self.pipeline.group, self.name)
            except HeadraceError as error:
                log.info("the group keeps this member until its session ends: %s", error)
        log.info("done: %s events so far", f"{self.figures.get('events', 0):,}")

    async def abandon(self) -> None:
        """After an error: let go of what is in hand; what was not committed is read again."""
        self._stopping = True
        for task in self._committing:
            task.cancel()  # which also keeps asyncio from reporting a failure that was heard of from the one before
        self._committing.clear()
        if self._settling is not None:
            self._settling.cancel()
        self._let_go_of_runs()
        if self._begun:
            await self._producer.close()
        self._compute.shutdown(wait=False)

    async def _start(self) -> None:
        self.state = "connecting"
        await self._producer.start()  # ends what a predecessor of this slot left open
        if self.pipeline.delivery == "exactly_once":
            await self._forget_pending()
        standing = self.standing = await self._in_compute(self._build)
        pointer = await asyncio.to_thread(self._store.current)
        token = -1 if pointer is None else pointer.token
        self.publisher = SnapshotPublisher(
            self._store,
            version=standing.version,
            token=token,
            tables={f"shared/{name}": Table(*table) for name, table in standing.engine.model_tables().items()},
            on_error=lambda error: log.error("%s", error),
        )
        rest = (array.nbytes for array in standing.engine.arrays.values())
        await self._in_compute(functools.partial(self.publisher.reserve, sum(rest)))
        fast = not self.settings.plain
        self.decoders: dict[Role, Decoder] = {role: Decoder(self.pipeline, role, fast=fast) for role in self.topic_of}
        self.aligner = Aligner(self.pipeline.alignment_us)
        self._snapshot_due = time.monotonic() + self.pipeline.snapshots.every_us / 1e6
        self._ready.set()
        self.state = "waiting for partitions"

    async def _forget_pending(self) -> None:
        """See that no offsets of the group stay unstable for ever, or nobody could begin at them.

        Those of this slot. After a start that came to nothing also those of slots that nobody holds any more.
        """
        settings, journal = self.settings, (self.pipeline.journal_topic, 0)
        await self._producer.forget_pending(self.pipeline.group, journal)
        if not Starts.so_far().fruitless:
            return
        slots = await asyncio.to_thread(Slots(settings.redis, self.pipeline.name).look)
        for number in (number for number, slot in slots.items() if slot.exists and slot.holder is None):
            producer = CycleProducer(settings.broker, transactional_id=f"{self.pipeline.group}-{number}")
            try:
                await producer.start()
                await producer.forget_pending(self.pipeline.group, journal)
            finally:
                await producer.close()

    def warm_up(self) -> None:
        """Begin to load or compile the kernels: that takes as long as to connect, and needs nothing of it."""
        self._warming = self._compute.submit(self._warm_up)

    def _warm_up(self) -> Engine:
        engine = Engine(self.pipeline)
        engine.enter = self.stages.enter
        began = time.perf_counter()
        with install_timer("numba:compile", lambda seconds: None) as compiling:
            for part in (spans, record_batches, record_writer, fast_json, arrow_text, fast_encode, engine, publisher):
                part.warm_up()
        libraries()  # or the first snapshot would wait for their files
        if (seconds := time.perf_counter() - began) > 2 and compiling.done:
            log.info("compiled the kernels in %.1f s; from now on they are in the cache", seconds)
        return engine

    def _build(self) -> Standing:
        engine = self._warming.result()
        standing = restore(engine, self._store)
        self._note_figures(engine)
        if standing.version:
            log.info("snapshot %d loaded: %s events so far", standing.version, f"{self.figures['events']:,}")
        settings = self.settings
        check_journal(self.pipeline, settings.broker, self.slot, standing.position, settings.resume)
        settle()
        return standing

    async def _recover(self, assigned: Assigned) -> None:
        """Bring the engine to where the group's offsets stand, and see which partitions can go on from there."""
        standing, settings = self._standing(), self.settings
        mine = self._mine(assigned.starts)
        committed = {p: offset for p, offset in self._mine(assigned.committed).items() if offset is not None}
        self._check_committed(committed, mine)
        if not self._replayed:
            self.state, self.replaying = "replaying", True
            self._replayed = await self._in_compute(
                lambda: replay(
                    standing, self.decoders, settings.broker, self.slot, committed, settings.lost, self._say_replay
                )
            )
            self.replaying, self.replay_left = False, 0
        if not self._replayed or self._assigned is not assigned or self._revoking or self._stopping:
            return  # another rebalance came meanwhile
        for partition, gone in self._mine(assigned.gone).items():
            log.warning(
                "%s: %s records are gone that were not read yet; going on at offset %s",
                self._place(partition), f"{gone:,}", f"{mine[partition]:,}",
            )  # fmt: skip
        by = self._mine(assigned.committed_by)
        numbers = sorted({number for _, number in mine})
        wanted = {number: source for number in numbers if (source := self._source(number, committed, by)) is not None}
        await self._own([number for number in numbers if number not in wanted], mine)
        for number in wanted:
            standing.left.pop(number, None)  # it is older than what is committed
        self._adoption.begin(wanted, numbers)
        self._assigned = None
        self.state = "running"
        log.info("%s owns partitions %s", self.name, ", ".join(map(str, numbers)) or "none")

    async def _unless_forgotten(self, recovery: Awaitable[None]) -> None:
        """Recover; where that cannot be, see whether the broker has forgotten what was committed, and tell it again.

        Kafka 4.1 can: a coordinator that becomes leader twice within the time that its log takes to load may load a
        part of it, and then answer with offsets of long ago. The journal knows better: its records were committed in
        the same transactions. Offsets that a user has set name no slot, and stay as they are.
        """
        try:
            await recovery
        except StreamStopped:
            if self.pipeline.delivery != "exactly_once":
                raise
            given, by = self._mine(self._given.committed), self._mine(self._given.committed_by)
            committed = {p: offset for p, offset in given.items() if offset is not None and by[p]}
            told, slots = await asyncio.to_thread(committed_as_told, self.pipeline, self.settings.broker)
            behind = sorted(p for p, offset in committed.items() if offset < told.get(p, 0))
            if not behind:
                raise
            for number in {number for _, number in behind}:
                right = {
                    (self.topic_of[role], of): max(offset, told.get((role, of), 0))
                    for (role, of), offset in committed.items()
                    if of == number
                }
                slot = str(slots[number])
                await self._producer.commit_cycle({}, right, self.pipeline.group, self._member, slot)
            first = behind[0]
            raise StartOver(
                f"{self._place(first)}: group {self.pipeline.group} stands at offset {committed[first]:,}, the journal "
                f"says that {told[first]:,} was committed: a broker has forgotten commits. Told it again"
            ) from None

    async def _own(self, numbers: list[int], starts: dict[Partition, int]) -> None:
        """Own exactly these partitions, whose states are here or begin now, and read on at `starts`."""
        standing = self._standing()
        before = set(standing.engine.partitions)
        await self._in_compute(lambda: standing.own(numbers))
        if before != set(numbers):
            self._owned = numbers
        offsets = {p: offset for p, offset in starts.items() if p[1] in numbers}
        standing.position = standing.position._replace(offsets=offsets)
        for partition in list(self.aligner.queues):
            self.aligner.disown(partition)
        waiting = self._adoption.unpublished()
        self._go_live([number for number in numbers if number not in waiting])

    def _go_live(self, numbers: Collection[int]) -> None:
        """What comes of these partitions is processed from now on."""
        engine = self._engine()
        for role, number in self._starts:
            if number in numbers:
                self.aligner.own((role, number), engine.clock(role, number))

    def _source(
        self, number: int, committed: dict[Partition, int], by: dict[Partition, str]
    ) -> tuple[int, dict[Role, int]] | None:
        """The slot that has the state of a partition as of its committed offsets, and these; None: it is here."""
        at = {role: offset for (role, of), offset in committed.items() if of == number}
        slots = {by.get((role, number), "") for role in at}
        slot = next((int(slot) for slot in slots if slot.isdigit()), None)
        here = self._standing().stands_at(number)
        if slot == self.slot:
            here = at | here  # of a topic that is not in here nothing was processed
        if all(here.get(role) == offset for role, offset in at.items()):
            return None  # nobody has gone on with it since
        role = max(at, key=lambda role: here.get(role, 0) - at[role])
        place = self._place((role, number))
        if here.get(role, 0) > at[role]:
            raise StreamStopped(
                f"{place}: the model has learned up to offset {here[role]:,}, group {self.pipeline.group} stands at "
                f"{at[role]:,}: were its offsets set back? Set them to those of a snapshot (headrace snapshots show "
                f"{self.pipeline.name}), or give the pipeline another name to begin anew"
            )
        if slot is not None and slot != self.slot:
            return slot, at
        if here:
            log.warning(
                "%s: the model has learned up to offset %s and goes on at %s: what lies between was not learned",
                place, f"{here.get(role, 0):,}", f"{at[role]:,}",
            )  # fmt: skip
        return None

    def _check_committed(self, committed: dict[Partition, int], mine: dict[Partition, int]) -> None:
        standing, name = self._standing(), self.pipeline.name
        learned = {p: offset for p, offset in standing.position.offsets.items() if self._has_clock(p)}
        lost = sorted(p for p in mine if p in learned and p not in committed)
        if lost:
            raise StreamStopped(
                f"snapshot {self.version} of {name!r} stands at offset {learned[lost[0]]:,} of {self._place(lost[0])}, "
                f"but group {self.pipeline.group} has no committed offset there: was the group deleted, or is this "
                f"another broker? Set the group's offsets to the snapshot's (headrace snapshots show {name}), or give "
                "the pipeline another name to begin anew"
            )

    def _has_clock(self, partition: Partition) -> bool:
        return self._engine().clock(*partition) != BEFORE_ALL

    def _say_replay(self, done: int, goal: int) -> bool:
        """In the compute thread: how far a replay is, and whether it shall go on."""
        self.progress += 1
        if goal:
            self.state, self.replay_left = f"replaying {done:,} of {goal:,} records", goal - done
            log.info("%s from the journal", self.state)
            self._note_figures(self._engine())
        return not (self._stopping or self._revoking)

    # -- partitions that come from another slot

    def _fetch_states(
        self, slot: int, wanted: Mapping[int, Mapping[Role, int]], go_on: Callable[[int, int], bool]
    ) -> dict[int, Left]:
        """In a thread of its own: the states of partitions as another slot left them."""
        return adopt(self.pipeline, self.settings.broker, self._store_of, slot, wanted, self.settings.lost, go_on)

    async def _take_in(self) -> None:
        """Take in what has come from other slots; what a snapshot holds by now is live."""
        publisher, standing = self._publisher(), self._standing()
        if arrived := self._adoption.arrived():
            await self._committed()

            def take() -> None:
                for number, left in arrived.items():
                    standing.adopt(number, left)

            await self._in_compute(take)
            starts = {p: offset for p, offset in self._starts.items() if p[1] in arrived}
            standing.position = standing.position._replace(offsets=standing.position.offsets | starts)
            self._owned = sorted(standing.engine.partitions)
            await self._commit(Cycle(), adopted=sorted(arrived))
            self._adoption.taken_in(arrived, standing.position.journal - 1)
            self._snapshot_due = 0.0
        if live := self._adoption.published(publisher.token):
            self._go_live(live)
            log.info("%s goes on with partitions %s", self.name, ", ".join(map(str, live)))

    async def _forget_left(self) -> None:
        """Let go of the states of partitions that left us, once another slot has committed what comes after them."""
        standing, now = self._standing(), time.monotonic()
        if self._forgetting is not None and self._forgetting.done():
            task, self._forgetting = self._forgetting, None
            with contextlib.suppress(HeadraceError):  # then later
                for partition, told in self._mine(task.result()).items():
                    if told.metadata not in ("", str(self.slot)):
                        standing.left.pop(partition[1], None)
        elif self._forgetting is None and standing.left and now >= self._forget_due:
            self._forget_due = now + FORGET_SECONDS
            question = asyncio.to_thread(committed_by, self.settings.broker, self.pipeline.group)
            self._forgetting = asyncio.create_task(question)

    # -- cycles

    async def _cycle(self) -> bool:
        """Compute one cycle and hand it to the commit; whether there was anything to do."""
        await self._forget_left()
        if not self._has_work():
            self._adapt(behind=False)
            await self._sent_out()
            if self._figures_old and time.monotonic() >= self._figures_due:
                self._note_figures(self._engine())
            if not self._sent:
                await self._snapshot_if_due()
            return False
        if not self._behind:
            await self._sent_out()  # what is little is computed when it can go out, with what has come meanwhile
        try:
            cycle = self._timed(self._work) if self._is_little() else await self._in_compute(self._work)
        except InputError:  # a record is too large
            await self._committed()
            raise
        except NotFinite as broken:
            await self._committed()
            await self._give_up(broken, self._computing.reached())
        except Poisoned as poisoned:
            await self._committed()
            raise StartOver(
                f"{poisoned}; going through {self._place((poisoned.role, poisoned.partition))} up to offset "
                f"{poisoned.next:,} record by record",
                {CAREFUL: f"{poisoned.role}:{poisoned.partition}:{poisoned.next}"},
            ) from poisoned
        if not cycle.pieces:
            await self._sent_out()
            if not self._sent:
                await self._snapshot_if_due()
            return False
        await self._sent_out(but=1)
        if len(self._sent) + len(self._committing) >= LAG_CYCLES:
            await self._committed()
        stop_reason = self._engine().stop_reason
        before = self._committing[-1] if self._committing else None
        self._committing.append(asyncio.create_task(self._send(cycle, stop=stop_reason, after=before)))
        if stop_reason is not None:
            await self._committed()
            raise StreamStopped(stop_reason)
        await self._prepare_snapshot_if_due()
        return True

    def _has_work(self) -> bool:
        """Whether anything is here of partitions that are live."""
        queues = self.aligner.queues
        return any(self._runs.get(p) or queue.batches for p, queue in queues.items())

    def _is_little(self) -> bool:
        """Whether the next cycle is so short that the event loop can wait for it."""
        if self._behind or self._careful or not self._engine().model.quick:
            return False
        rows = sum(len(batch) for queue in self.aligner.queues.values() for batch in queue.batches)
        for runs in self._runs.values():
            for run in runs:
                rows += len(run.records)
                if rows > LITTLE_ROWS:
                    return False
        return rows <= LITTLE_ROWS

    async def _give_up(self, broken: HeadraceError, reached: Mapping[Partition, int]) -> NoReturn:
        """The model is not finite. Nothing of it goes out, but the journal says so, or a restart would end here too.

        reached  the offsets up to which it had read when that was seen: a rollback learns nothing up to there
        """
        if self.pipeline.snapshots.on_nan == "stop" or self._engine().muted:  # muted: the snapshot itself is no better
            await self._commit(Cycle(), stop=str(broken))
            raise StreamStopped(str(broken))
        muted = {**self._standing().position.offsets, **reached}
        await self._commit(Cycle(), rollback={"muted": nested(muted), "since": self._publisher().token + 1})
        raise StartOver(
            f"{broken}. Going back to the model of snapshot {self.version}, which learns nothing up to here"
        )

    def _work(self) -> Cycle:
        """Decode, align, process, until the cycle is full or nothing may go on."""
        engine, publisher = self._engine(), self._publisher()
        cycle = self._computing = Cycle()
        until = time.monotonic() + self._cycle_seconds
        limit = self.pipeline.max_cycle_rows
        learned = "events" if engine.model.unsupervised else "examples"
        before = engine.counters_now(learned)

        def is_long(cycle: Cycle) -> bool:
            return cycle.rows >= limit or time.monotonic() >= until

        def is_full(cycle: Cycle) -> bool:
            # a snapshot is taken at the end of a cycle; one without pieces would only wait for the commits before it
            due = bool(cycle.pieces) and publisher.prepared and self._snapshot_wanted
            return is_long(cycle) or due

        fetched, careful = self._runs, self._is_careful if self._careful else None
        while True:
            hungry = [
                p for p, runs in fetched.items() if runs and p in self.aligner.queues and self.aligner.is_empty(p)
            ]
            for role, decoder in self.decoders.items():
                waiting = [partition for partition in hungry if partition[0] == role]
                while waiting:
                    taken = self._take(waiting)
                    self.stages.enter("decode")
                    for batch in decoder.decode_all(taken):
                        self.aligner.add(batch)
            pieces = len(cycle.pieces)
            run_cycle(engine, self.aligner, self._at_end(), is_full, cycle, careful)
            if is_full(cycle) or engine.stop_reason is not None or (not hungry and pieces == len(cycle.pieces)):
                break
        self._adapt(behind=is_long(cycle) and self._has_work())
        if cycle.pieces:
            end_cycle(engine, cycle)
            self._encode(cycle)
        if engine.counters_now(learned) > before:
            self._standing().last_learned = time.time()
        self._figures_old = True
        if time.monotonic() >= self._figures_due:
            self._note_figures(engine)
        publisher = self._publisher()
        if cycle.pieces and self._snapshot_wanted and publisher.prepared:
            if publisher.ready:
                cycle.taken = self._taken = self._take_snapshot()
            else:
                publisher.prepare()
        return cycle

    def _adapt(self, behind: bool) -> None:
        """A cycle ends within the pipeline's latency; while the worker is behind they get longer, which is cheaper."""
        aim, self._behind = self._latency_seconds, behind
        self._cycle_seconds = min(2 * self._cycle_seconds, max(aim, BEHIND_SECONDS)) if behind else aim

    def _encode(self, cycle: Cycle) -> None:
        """The prediction records of a cycle, as they go out."""
        self.stages.enter("encode")
        pipeline, learned = self.pipeline, self._standing().last_learned
        topic, age = pipeline.events.topic, None if learned is None else time.time() - learned
        features, models = pipeline.numeric + pipeline.categories, tuple(pipeline.models or ())
        name = models[0] if models else pipeline.name
        served = Served(name, self.version, age, pipeline.classes, features, models)
        to = pipeline.predictions.topic
        if self.settings.plain:
            for number, predicted in cycle.predicted.items():
                cycle.outputs[to, number] = [
                    out for piece in predicted for out in encode_predictions(piece, topic, served)
                ]
            return
        rows, ends = prediction_rows(cycle.predicted, topic, served)
        cycle.outputs |= self._producer.write(rows, {(to, number): end for number, end in ends.items()})

    def _take_snapshot(self) -> bool:
        """Copy the state as it is now."""
        self.stages.enter("snapshot")
        began = time.perf_counter()
        with undisturbed():
            taken = self._publisher().take(*pack(self._standing()), NAN_ALLOWED)
        self.stall_seconds = time.perf_counter() - began
        self._snapshot_wanted = self._snapshot_wanted and not taken
        return taken

    def _take(self, waiting: list[Partition]) -> Slices:
        """What was fetched of the first of these partitions, which leave the list, to be decoded at one go.

        Of each one run or some up to SLICE_RECORDS, and no further partition once there are so many of all: each go has
        its price, but its rows stay in memory until the last partition of it is let on.
        """
        self.stages.enter("unpack")
        pieces: list[Piece] = []
        parts: list[list[RecordBatches | list[Record]]] = []
        records = 0
        while waiting and records < SLICE_RECORDS:
            partition = waiting.pop(0)
            runs = self._runs[partition]
            taken = [runs.popleft()]
            count = len(taken[0].records)
            while runs and count < SLICE_RECORDS:
                taken.append(runs.popleft())
                count += len(taken[-1].records)
            pieces.append(Piece(*partition, taken[0].start, taken[-1].next))
            parts.append([run.records for run in taken])
            records += count
        return Slices(pieces, *record_batches.unpack_all(parts))

    def _note_figures(self, engine: Engine) -> None:
        """What log and metrics show, for they must not look at an engine at work."""
        self.figures = engine.results() | engine.counters()
        self.figures_of_models = engine.results_of_models()
        self._figures_due, self._figures_old = time.monotonic() + FIGURES_SECONDS, False

    def _at_end(self) -> set[Partition]:
        """Partitions that hold nothing back: read to their end, or silent for long."""
        now = time.monotonic()
        for p in self._fetched:
            if self._runs.get(p) or not self.aligner.is_empty(p):
                self._heard[p] = now  # of a long run that is being worked off more may follow: not silent yet
        silent = now - IDLE_SECONDS
        return {
            p
            for p, next in self._fetched.items()
            if not self._runs.get(p) and (next >= self.ends.get(p, next + 1) or self._heard.get(p, 0.0) < silent)
        }

    def _is_careful(self, following: Next) -> bool:
        """Whether something in this piece raised before."""
        partition = following.batch.role, following.batch.partition
        return following.start < self._careful.get(partition, 0)

    async def _commit(
        self,
        cycle: Cycle,
        *,
        stop: str | None = None,
        adopted: list[int] | None = None,
        rollback: dict[str, Any] | None = None,
    ) -> None:
        """Write what a cycle gave, its place in the journal, and its offsets; `stop`: why it is the last one."""
        await self._send(cycle, stop=stop, adopted=adopted, rollback=rollback)
        await self._committed()

    async def _send(
        self,
        cycle: Cycle,
        *,
        stop: str | None = None,
        adopted: list[int] | None = None,
        rollback: dict[str, Any] | None = None,
        after: asyncio.Task[None] | None = None,
    ) -> None:
        """As `_commit`. Without transactions it ends when the outputs are out; the offsets follow by themselves.

        after  the sending of the cycle before, that may still be under way; if that fails, so does this
        """
        if after is not None:
            await after
        pipeline, standing = self.pipeline, self._standing()
        outputs: dict[TopicPartition, Records] = dict(cycle.outputs)
        dead = cycle.dead
        if cycle.poison:
            dead = await asyncio.to_thread(as_they_came, dead, set(cycle.poison), self._read_again)
        letters: defaultdict[TopicPartition, list[Output]] = defaultdict(list)
        for letter in dead:
            output = encode_dead_letter(letter, self.topic_of[letter.role], MAX_RECORD_BYTES - HEADERS_ROOM)
            letters[pipeline.predictions.dead_letters, letter.partition].append(output)
        outputs |= letters
        owned, self._owned = self._owned, None
        number = standing.position.cycle
        record = JournalRecord(
            slot=self.slot,
            cycle=number,
            owned=owned,
            adopted=adopted or [],
            rollback=rollback,
            poison=cycle.poison,
            pieces=merge(cycle.pieces),
            stop=stop,
        )
        journal = (pipeline.journal_topic, 0)
        outputs[journal] = [(str(self.slot).encode(), record.encode(), (), None)]
        position = {**standing.position.offsets, **cycle.offsets()}
        touched = {piece.partition for piece in cycle.pieces}
        offsets = {  # both topics of a partition: whoever has committed one has its state
            (self.topic_of[role], of): offset for (role, of), offset in position.items() if of in touched
        }
        self._commit_began = time.monotonic()
        if pipeline.delivery == "exactly_once":
            written = await self._producer.commit_cycle(outputs, offsets, pipeline.group, self._member, str(self.slot))
        else:
            written = await self._producer.send_outputs(outputs)
        standing.position = Position(position, written[journal] + 1, number + 1)
        sent = Sent(cycle, offsets, standing.position)
        if pipeline.delivery == "exactly_once":
            self._settle(sent)
            return
        self._sent.append(sent)
        if self._behind or len(self._sent) >= LAG_CYCLES // 2:
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
            await self._producer.commit_offsets(offsets, self.pipeline.group, self._member, str(self.slot))
            for cycle in sent:
                self._sent.popleft()
                self._settle(cycle)

    def _settle(self, sent: Sent) -> None:
        """A cycle is committed: others may know."""
        cycle, _, position = sent
        self.committed_at = time.monotonic()
        self._commit_began = self.committed_at if self._sent else None
        if cycle.taken:
            self._publisher().publish(position.journal - 1, **place(position))
            self._taken = False
        self.progress += 1
        succeeded()
        self._careful = {p: until for p, until in self._careful.items() if position.offsets.get(p, until) < until}
        for (role, of), offset in cycle.offsets().items():
            unacked = self._unacked[role, of]
            while unacked and unacked[0][0].next <= offset:
                run, event = unacked.popleft()
                if event.value.release(run):
                    event.ack()

    async def _sent_out(self, but: int = 0) -> None:
        """Wait until the outputs of all cycles but the last `but` are out.

        Raises what has gone wrong with them, or with a commit.
        """
        if self._settling is not None and self._settling.done():
            await self._settled()
        while len(self._committing) > but:
            await self._committing[0]
            self._committing.popleft()

    async def _settled(self) -> None:
        """Wait until the offsets of all that is out are committed."""
        if self._settling is not None:
            task, self._settling = self._settling, None
            if not task.done():
                self._settle_now.set()
            await task

    async def _committed(self) -> None:
        """Wait for the commit under way."""
        await self._sent_out()
        await self._settled()

    async def _snapshot_if_due(self, force: bool = False) -> None:
        """Take a snapshot between two cycles and publish it; nothing may be computing or committing.

        What is large is copied before, beside the stream, which may go on at any moment; not with `force`.
        """
        publisher, standing = self._publisher(), self._standing()
        await self._check_publisher()
        token = standing.position.journal - 1
        due = force or self._snapshot_wanted or time.monotonic() >= self._snapshot_due
        if due and not publisher.busy and token > publisher.token:
            if not (force or publisher.ready):
                self._snapshot_wanted = publisher.prepare()
                return
            self._snapshot_next()
            await self._in_compute(self._take_snapshot)
            publisher.publish(token, **place(standing.position))
        elif due and not publisher.busy and token >= 0:
            self._snapshot_next()
            publisher.check()

    async def _prepare_snapshot_if_due(self) -> None:
        """The stream is busy: what is large is copied beside it, the rest at the end of a cycle soon."""
        publisher = self._publisher()
        await self._check_publisher()
        if time.monotonic() >= self._snapshot_due and not publisher.busy and not self._taken:
            self._snapshot_next()
            self._snapshot_wanted = publisher.prepare()

    async def _check_publisher(self) -> None:
        error = self._publisher().error
        if isinstance(error, SnapshotError):
            await self._committed()
            await self._give_up(error, {})
        if error is not None:
            raise error

    def _snapshot_next(self) -> None:
        every = self.pipeline.snapshots.every_us / 1e6
        self._snapshot_due = time.monotonic() + (min(every, 1.0) if self._adoption.unpublished() else every)

    async def _let_go(self) -> None:
        """Commit what is computed and let go of everything that is not."""
        await self._committed()
        self._adoption.abandon()
        self._forgetting = None  # what it answers is of the assignment that ends
        self._let_go_of_runs()
        for partition in list(self.aligner.queues):
            self.aligner.disown(partition)
        self._fetched.clear()
        if self._replayed:
            self._snapshot_due = 0.0  # who gets our partitions then has little to replay
        self.state = "waiting for partitions"

    def _let_go_of_runs(self) -> None:
        for unacked in self._unacked.values():
            for _, event in unacked:
                event.ack()
        self._unacked.clear()
        self._runs = {}

    async def _finish(self) -> None:
        if self.standing is None or self.publisher is None:
            return
        await self._committed()
        await self._in_compute(lambda: self._note_figures(self._engine()))
        if self._assigned is None and self.state == "running":
            away = self.publisher.problem is not None
            await asyncio.to_thread(self.publisher.flush, 1.0 if away else 5.0)
            await self._snapshot_if_due(force=True)
            if await asyncio.to_thread(self.publisher.flush, 3.0 if away else 10.0):
                log.info("snapshot %d holds all that was learned", self.version)
            else:
                log.warning("the last snapshot was not published; the next start replays from the one before")
        await self._let_go()

    # -- small things

    def _read_again(self, role: Role, number: int, offset: int) -> Record:
        """One record as it lies in its topic."""
        (record,) = read_range(self.settings.broker, self.topic_of[role], number, offset, offset + 1)
        return record

    def _standing(self) -> Standing:
        assert self.standing is not None
        return self.standing

    def _engine(self) -> Engine:
        return self._standing().engine

    def _publisher(self) -> SnapshotPublisher:
        assert self.publisher is not None
        return self.publisher

    def _place(self, partition: Partition) -> str:
        return f"{self.topic_of[partition[0]]}[{partition[1]}]"

    def _mine(self, offsets: Mapping[TopicPartition, Answer]) -> dict[Partition, Answer]:
        """What is told of our topics, by role; a user's agents may read others."""
        return {(self.topics[topic], number): at for (topic, number), at in offsets.items() if topic in self.topics}

    async def _in_compute(self, work: Callable[[], Answer]) -> Answer:
        self._at_work = True
        try:
            return await asyncio.get_running_loop().run_in_executor(self._compute, self._timed, work)
        finally:
            self._at_work = False

    def _timed(self, work: Callable[[], Answer]) -> Answer:
        try:
            return work()
        finally:
            self.stages.enter("wait")

    async def _pause(self, seconds: float) -> None:
        """Wait for something new, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._fresh.wait()
        except TimeoutError:
            pass
        self._fresh.clear()

    async def _watch(self) -> None:
        """Say what is waited for when it goes away, every half a minute, and when it is back."""
        said: dict[str, float] = {}
        while True:
            await asyncio.sleep(1.0)
            waits, now = self.waits, time.monotonic()
            waits.pop("Redis", None)  # who misses it says so
            for name, why in waits.items():
                if now - said.get(name, -SAY_SECONDS) >= SAY_SECONDS:
                    said[name] = now
                    log.warning("waiting for the %s: %s", name, why)
            for name in said.keys() - waits.keys():
                del said[name]
                log.info("the %s answers again", name)

    def _report(self) -> None:
        """A line of progress now and then, when there was any."""
        now = time.monotonic()
        then, events_then = self._reported
        if self.standing is None or now - then < REPORT_SECONDS:
            return
        figures = self.figures
        events = int(figures["events"] or 0)
        if events > events_then and then:
            loss = figures.get("log_loss", figures.get("mae"))
            baseline = figures.get("log_loss_constant", figures.get("mae_constant"))
            shown = "" if loss is None else f", loss {loss:.4f} (constant {baseline:.4f})"
            shown += say_losses(self.figures_of_models)
            rate = (events - events_then) / (now - then)
            log.info("%s events, %s/s, lag %s%s", f"{events:,}", f"{rate:,.0f}", f"{sum(self.lag().values()):,}", shown)
            if self._profile is not None:
                log.info("%s", self._profile.line())
        self._reported = now, events


def _careful(told: str) -> dict[Partition, int]:
    """What the worker before us told: events:0:1200."""
    if not told:
        return {}
    role, number, offset = told.split(":")
    return {("events" if role == "events" else "labels", int(number)): int(offset)}
