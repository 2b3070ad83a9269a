"""The life of a worker: recover, then cycle after cycle until told to stop.

All methods run in the event loop of the Faust app, except `_work`, which runs in the one compute thread; the engine,
the aligner and the decoders are touched by it alone while it runs. While one cycle commits, the next is computed; while
the worker is behind one more may wait for its commit, so that neither of the two waits for the other's slow moments.
Where there is little to do, `_work` runs in the event loop too: each change of the thread takes as long as a hundred
rows.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

from ..connectors.topics import remove_member
from ..connectors.transport import Assigned
from ..errors import HeadraceError, InputError, SnapshotError, StreamStopped
from ..models.base import NotFinite
from .align import Aligner, Partition
from .claims import by_role, say_place
from .commits import Commits, Sent
from .computing import Computing, careful_about, told_careful
from .cycle import Cycle
from .declaration import Pipeline
from .decode import Decoder
from .engine import Engine
from .in_hand import InHand
from .journal import LAG_CYCLES
from .kernels import load_kernels
from .ownership import Ownership, store_of
from .pace import Pace
from .poison import Poisoned
from .process import settle
from .publisher import SnapshotPublisher, Table
from .recovery import check_journal, restore
from .report import FIGURES_SECONDS, Figures, Report, Status, watch
from .settings import Settings
from .slices import nested
from .snapshot import place
from .snapshot_schedule import SnapshotSchedule
from .stages import COMPUTE_THREAD, Profile, Stages
from .standing import Standing
from .start_over import StartOver, succeeded

log = logging.getLogger("headrace")

Answer = TypeVar("Answer")

LOOK_SECONDS = 0.02  # how often to look whether what waits may go on
WAIT_SECONDS = 3.0  # a commit that takes longer waits for the broker
SILENT_SECONDS = 5.0  # so does a consumer that heard nothing for so long


class Runner:
    """One worker of a pipeline, an `Owner` for the transport; `add` is called by the agent.

    What health and metrics look at, besides the properties: `status`, `figures`, `stages`, of `commits` when the last
    one was, of `snapshots` how long the last one took.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, fail: Callable[[BaseException], None]) -> None:
        self.pipeline, self.settings, self.fail = pipeline, settings, fail
        self.slot = 0
        self.standing: Standing | None = None
        self.publisher: SnapshotPublisher | None = None
        self.stages, self.status, self.figures = Stages(), Status(), Figures()
        self.pace, self.hand = Pace(pipeline.latency_us / 1e6), InHand()
        self.commits = Commits(pipeline, settings.broker, self.pace, self._note_committed)
        self.computing: Computing  # from the end of the start on

        self._compute = ThreadPoolExecutor(1, thread_name_prefix=COMPUTE_THREAD)
        self._warming: Future[Engine]
        self._ready, self._fresh, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._begun = self._at_work = False
        self._revoking = self._stopping = False
        self._ownership = Ownership(
            pipeline,
            settings,
            self.status,
            self.figures,
            self.commits,
            in_compute=self._in_compute,
            wake=self._fresh.set,
            interrupted=lambda: self._stopping or self._revoking,
        )
        self.snapshots = SnapshotSchedule(
            pipeline.snapshots.every_us / 1e6, self.stages.enter, self._ownership.adoption.unpublished
        )
        profile = Profile(self.stages) if settings.profile else None
        self._report = Report(self.figures, lambda: sum(self.lag().values()), profile)
        self._careful = told_careful(os.environ)
        self._silent: Callable[[], float | None] = lambda: None

    def begin(self, slot: int) -> None:
        """This worker has got its slot; called once, before `run`."""
        self.slot, self.name = slot, f"{self.pipeline.group}-{slot}"
        self.commits.begin(slot)
        self._ownership.begin(slot)
        self._store = store_of(self.pipeline, self.settings, slot)

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
        return self._ownership.adoption.sources

    @property
    def ready(self) -> bool:
        """Whether partitions are assigned, the replay is done and no partition waits for its state."""
        return self.status.state == "running" and not self.adopting

    @property
    def held(self) -> bool:
        """Whether what is here waits for another partition to advance in event time."""
        if self.status.state != "running" or self._at_work:
            return False
        return any(not self.computing.aligner.is_empty(p) for p in self.hand.fetched)

    @property
    def waits(self) -> dict[str, str]:
        """What is away and why, by its name, "broker" or "Redis"."""
        waits, now = {}, time.monotonic()
        silent = self._silent()
        if (began := self.commits.began) is not None and now - began > WAIT_SECONDS:
            waits["broker"] = f"no answer to a commit for {now - began:.0f} s"
        elif silent is not None and silent > SILENT_SECONDS:
            waits["broker"] = f"nothing was heard of {self.settings.broker} for {silent:.0f} s"
        problem = self._ownership.adoption.problem or (self.publisher.problem if self.publisher is not None else None)
        if problem is not None:
            waits["Redis"] = problem
        return waits

    def lag(self) -> dict[Partition, int]:
        """Records of each partition that are in Kafka and not committed yet."""
        offsets = self.standing.position.offsets if self.standing is not None else {}
        starts = self._ownership.starts
        return {p: max(0, end - offsets.get(p, starts.get(p, 0))) for p, end in self.hand.ends.items()}

    # -- what the transport calls

    async def before_start(self) -> None:
        """Offsets may be asked for once a predecessor's transaction is ended."""
        await self._ready.wait()

    def patience(self) -> float:
        """In the consumer's thread."""
        return self.pace.patience_seconds

    def assigned(self, assigned: Assigned) -> None:
        """Partitions are ours from now on. Nothing of an earlier assignment is in hand any more."""
        self._ownership.assign(assigned)
        self._revoking = False
        self.commits.member = assigned.member
        self.hand.begin(self._ownership.starts)
        self._fresh.set()

    def revoking(self, partitions: set[Any]) -> None:
        """The rebalance waits until nothing is in hand: finish the cycle, let go of the rest."""
        self._revoking = True
        if self._ownership.pending is not None:
            self.hand.let_go()  # nothing of this assignment was touched: the rebalance need not wait for the replay
        self._fresh.set()

    def revoked(self, partitions: set[Any]) -> None:
        """What comes next is `assigned`."""

    def add(self, event: Any) -> None:
        """Take a haul of runs from the agent."""
        if self._revoking or self._stopping or event.value.generation != self.commits.member.generation:
            event.ack()  # not committed: whoever owns the partition next reads it again
            return
        self.hand.add(event, self.pipeline.roles)
        self._fresh.set()

    # -- the life of a worker

    async def run(self, ends: Callable[[], dict[Any, int]], silent: Callable[[], float | None] = lambda: None) -> None:
        """Until `close` is called. An error goes to `fail`.

        ends    gives the end of each topic partition
        silent  gives the seconds since the broker was last heard of
        """
        self._begun, self._silent, ownership = True, silent, self._ownership
        watching = asyncio.create_task(watch(lambda: self.waits))
        try:
            await self._start()
            while not self._stopping:
                self.hand.ends = by_role(self.pipeline, ends())
                if self._revoking:
                    await self._let_go()
                    await self._pause(1.0)
                elif ownership.pending is not None:
                    await ownership.unless_forgotten(ownership.recover(self.computing, ownership.pending))
                else:
                    await ownership.unless_forgotten(ownership.take_in(self.computing))
                    if not await self._cycle():
                        soon = self.held or self.snapshots.wanted
                        await self._pause(LOOK_SECONDS if soon else FIGURES_SECONDS if self.figures.old else 1.0)
                self._report.say_if_due()
            await self._finish()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.fail(error)
        finally:
            watching.cancel()
            ownership.adoption.abandon()
            self._closed.set()

    async def close(self) -> None:
        """Finish the cycle in hand, publish a last snapshot."""
        if self._begun:
            at = "" if self.standing is None else f": finishing cycle {self.standing.position.cycle:,}"
            log.info("told to stop%s", at)
            self._stopping = True
            self._fresh.set()
            await self._closed.wait()
            await self.commits.producer.close()
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
        log.info("done: %s events so far", f"{self.figures.of_pipeline.get('events', 0):,}")

    async def abandon(self) -> None:
        """After an error: let go of what is in hand; what was not committed is read again."""
        self._stopping = True
        self.commits.abandon()
        self.hand.let_go()
        if self._begun:
            await self.commits.producer.close()
        self._compute.shutdown(wait=False)

    async def _start(self) -> None:
        self.status.state = "connecting"
        await self.commits.start(self.settings.redis)
        standing = self.standing = await self._in_compute(self._build)
        pointer = await asyncio.to_thread(self._store.current)
        token = -1 if pointer is None else pointer.token
        publisher = SnapshotPublisher(
            self._store,
            version=standing.version,
            token=token,
            tables={f"shared/{name}": Table(*table) for name, table in standing.engine.model_tables().items()},
            on_error=lambda error: log.error("%s", error),
        )
        rest = (array.nbytes for array in standing.engine.arrays.values())
        await self._in_compute(functools.partial(publisher.reserve, sum(rest)))
        self._equip(standing, publisher)
        self.snapshots.next()
        self._ready.set()
        self.status.state = "waiting for partitions"

    def _equip(self, standing: Standing, publisher: SnapshotPublisher) -> None:
        """All that cycles are computed with is here."""
        self.standing, self.publisher = standing, publisher
        plain = self.settings.plain
        self.computing = Computing(
            standing=standing,
            decoders={role: Decoder(self.pipeline, role, fast=not plain) for role in self.pipeline.topics},
            aligner=Aligner(self.pipeline.alignment_us),
            hand=self.hand,
            pace=self.pace,
            stages=self.stages,
            publisher=publisher,
            snapshots=self.snapshots,
            write=None if plain else self.commits.producer.write,
            careful=self._careful,
        )

    def warm_up(self) -> None:
        """Begin to load or compile the kernels: that takes as long as to connect, and needs nothing of it."""
        self._warming = self._compute.submit(load_kernels, self.pipeline, self.stages.enter)

    def _build(self) -> Standing:
        engine = self._warming.result()
        standing = restore(engine, self._store)
        self.figures.note(engine)
        if standing.version:
            events = self.figures.of_pipeline["events"]
            log.info("snapshot %d loaded: %s events so far", standing.version, f"{events:,}")
        settings = self.settings
        check_journal(self.pipeline, settings.broker, self.slot, standing.position, settings.resume)
        settle()
        return standing

    # -- cycles

    async def _cycle(self) -> bool:
        """Compute one cycle and hand it to the commit; whether there was anything to do."""
        self._ownership.forget_left(self._standing())
        if not self.computing.has_work():
            self.pace.adapt(behind=False)
            await self.commits.sent_out()
            self.figures.note_if_due(self._engine())
            await self._snapshot_if_settled()
            return False
        if not self.pace.behind:
            await self.commits.sent_out()  # what is little is computed when it can go out, with what has come meanwhile
        cycle = await self._computed()
        if not cycle.pieces:
            await self.commits.sent_out()
            await self._snapshot_if_settled()
            return False
        await self.commits.sent_out(but=1)
        if self.commits.under_way >= LAG_CYCLES:
            await self.commits.all_committed()
        stop_reason = self._engine().stop_reason
        self.commits.hand_over(self._standing(), cycle, stop_reason)
        if stop_reason is not None:
            await self.commits.all_committed()
            raise StreamStopped(stop_reason)
        await self._check_publisher()
        self.snapshots.prepare_if_due(self._publisher())
        return True

    async def _computed(self) -> Cycle:
        """Compute a cycle; where that cannot be, commit what was computed before, and say what follows."""
        try:
            return self._timed(self._work) if self.computing.is_little() else await self._in_compute(self._work)
        except InputError:  # a record is too large
            await self.commits.all_committed()
            raise
        except NotFinite as broken:
            await self.commits.all_committed()
            await self._give_up(broken, self.computing.cycle.reached())
        except Poisoned as poisoned:
            await self.commits.all_committed()
            where = say_place(self.pipeline, (poisoned.role, poisoned.partition))
            raise StartOver(
                f"{poisoned}; going through {where} up to offset {poisoned.next:,} record by record",
                careful_about(poisoned),
            ) from poisoned

    async def _give_up(self, broken: HeadraceError, reached: Mapping[Partition, int]) -> NoReturn:
        """The model is not finite. Nothing of it goes out, but the journal says so, or a restart would end here too.

        reached  the offsets up to which it had read when that was seen: a rollback learns nothing up to there
        """
        if self.pipeline.snapshots.on_nan == "stop" or self._engine().muted:  # muted: the snapshot itself is no better
            await self.commits.commit(self._standing(), stop=str(broken))
            raise StreamStopped(str(broken))
        muted = {**self._standing().position.offsets, **reached}
        rollback = {"muted": nested(muted), "since": self._publisher().token + 1}
        await self.commits.commit(self._standing(), rollback=rollback)
        raise StartOver(
            f"{broken}. Going back to the model of snapshot {self.version}, which learns nothing up to here"
        )

    def _work(self) -> Cycle:
        """Compute a cycle, and take the snapshot that waits for its end."""
        cycle = self.computing.compute()
        self.figures.old = True
        self.figures.note_if_due(self._engine())
        if cycle.pieces:
            cycle.taken = self.snapshots.end_cycle(self._publisher(), self._standing())
        return cycle

    def _note_committed(self, sent: Sent) -> None:
        """A cycle is committed: others may know."""
        cycle, _, position = sent
        if cycle.taken:
            self._publisher().publish(position.journal - 1, **place(position))
            self.snapshots.taken = False
        self.status.progress += 1
        succeeded()
        self.computing.committed(position.offsets)
        self.hand.committed(cycle.offsets())

    # -- snapshots

    async def _snapshot_if_settled(self) -> None:
        if self.commits.all_settled:
            await self._snapshot_if_due()

    async def _snapshot_if_due(self, force: bool = False) -> None:
        """As `SnapshotSchedule.take_if_due`."""
        await self._check_publisher()
        await self.snapshots.take_if_due(self._publisher(), self._standing(), self._in_compute, force)

    async def _check_publisher(self) -> None:
        error = self._publisher().error
        if isinstance(error, SnapshotError):
            await self.commits.all_committed()
            await self._give_up(error, {})
        if error is not None:
            raise error

    # -- the end of an assignment, and of the worker

    async def _let_go(self) -> None:
        """Commit what is computed and let go of everything that is not."""
        await self.commits.all_committed()
        self.hand.let_go()
        self._ownership.let_go(self.computing)
        self.hand.fetched.clear()
        if self._ownership.replayed:
            self.snapshots.due_at = 0.0  # who gets our partitions then has little to replay
        self.status.state = "waiting for partitions"

    async def _finish(self) -> None:
        if self.standing is None or self.publisher is None:
            return
        await self.commits.all_committed()
        await self._in_compute(lambda: self.figures.note(self._engine()))
        if self._ownership.pending is None and self.status.state == "running":
            away = self.publisher.problem is not None
            await asyncio.to_thread(self.publisher.flush, 1.0 if away else 5.0)
            await self._snapshot_if_due(force=True)
            if await asyncio.to_thread(self.publisher.flush, 3.0 if away else 10.0):
                log.info("snapshot %d holds all that was learned", self.version)
            else:
                log.warning("the last snapshot was not published; the next start replays from the one before")
        await self._let_go()

    # -- small things

    def _standing(self) -> Standing:
        assert self.standing is not None
        return self.standing

    def _engine(self) -> Engine:
        return self._standing().engine

    def _publisher(self) -> SnapshotPublisher:
        assert self.publisher is not None
        return self.publisher

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
