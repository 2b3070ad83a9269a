"""The life of a worker: recover, then cycle after cycle until told to stop.

All methods run in the event loop of the Faust app, except `_work`, which runs in the one compute thread; the engine,
the aligner and the decoders are touched by it alone while it runs. While one cycle commits, the next is computed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..connectors.groups import CommitRefused, Member
from ..connectors.records import Fetched
from ..connectors.records import Partition as TopicPartition
from ..connectors.store import SnapshotStore
from ..connectors.topics import remove_member
from ..connectors.transactions import MAX_RECORD_BYTES, CycleProducer, Output
from ..connectors.transport import Assigned
from ..errors import HeadraceError, StreamStopped
from .align import BEFORE_ALL, Aligner, Partition
from .cycle import Cycle, merge, run_cycle
from .declaration import Pipeline
from .decode import Decoder
from .encode import JournalRecord, Served, encode_dead_letter
from .engine import Engine
from .publisher import SnapshotPublisher
from .recovery import check_journal, replay, restore
from .settings import Settings
from .slices import Role, Slice
from .snapshot import BEGINNING, NAN_ALLOWED, Position, pack

log = logging.getLogger("headrace")

Answer = TypeVar("Answer")

IDLE_SECONDS = 5.0  # a partition that gave nothing for so long holds the others back no longer
SLICE_RECORDS = 2_000  # runs are joined up to so many records before they are decoded
LOOK_SECONDS = 0.02  # how often to look whether what waits may go on
REPORT_SECONDS = 5.0
FIGURES_SECONDS = 0.5
HEADERS_ROOM = 20_000  # of a dead letter, for the headers that say why


class Runner:
    """One worker of a pipeline. `owner` methods are called by the transport, `add` by the agent."""

    def __init__(self, pipeline: Pipeline, settings: Settings, fail: Callable[[BaseException], None]) -> None:
        self.pipeline, self.settings, self.fail = pipeline, settings, fail
        self.topics: dict[str, Role] = {pipeline.events.topic: "events"}
        if pipeline.labels is not None and pipeline.labels.topic is not None:
            self.topics[pipeline.labels.topic] = "labels"
        self.topic_of: dict[Role, str] = {role: topic for topic, role in self.topics.items()}
        self.name = f"{pipeline.group}-{settings.slot}"
        self.state = "starting"  # what it does or waits for, in words, for log and metrics
        self.engine: Engine | None = None
        self.position: Position = BEGINNING
        self.figures: dict[str, float | int | None] = {}  # counters and metrics, as of a moment ago
        self.last_learned: float | None = None
        self.ends: dict[Partition, int] = {}
        self.stall_seconds = 0.0
        self.publisher: SnapshotPublisher | None = None

        exactly_once = pipeline.delivery == "exactly_once"
        self._producer = CycleProducer(settings.broker, transactional_id=self.name if exactly_once else None)
        self._store = SnapshotStore(settings.redis, pipeline.name, settings.slot, pipeline.snapshots.keep)
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="headrace-compute")
        self._ready, self._fresh, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._begun = False
        self._loaded = 0  # the version of the snapshot that was loaded; 0: none
        self._member = Member(-1, "")
        self._assigned: Assigned | None = None  # partitions given to us that recovery has not seen to yet
        self._revoking = self._stopping = False
        self._disowned: list[int] = []  # partitions whose state was dropped, which the journal does not tell yet
        self._runs: dict[Partition, deque[Fetched]] = {}  # fetched, not decoded yet
        self._unacked: defaultdict[Partition, deque[Any]] = defaultdict(deque)  # events of Faust, oldest first
        self._fetched: dict[Partition, int] = {}  # the offset up to which each partition has come to us
        self._heard: dict[Partition, float] = {}  # when a partition last gave something
        self._committing: asyncio.Task[None] | None = None
        self._snapshot_due = self._figures_due = 0.0
        self._reported = (0.0, 0)

    @property
    def version(self) -> int:
        """Of the last published snapshot; 0: none yet."""
        return self.publisher.version if self.publisher is not None else self._loaded

    # -- what the transport calls

    async def before_start(self) -> None:
        """Offsets may be asked for once a predecessor's transaction is ended."""
        await self._ready.wait()

    def assigned(self, assigned: Assigned) -> None:
        """Partitions are ours from now on. Nothing of an earlier assignment is in hand any more."""
        self._assigned, self._revoking = assigned, False
        self._member = assigned.member
        self._fetched = self._mine(assigned.starts)
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
        """Take one run of records from the agent."""
        run: Fetched = event.value
        if self._revoking or self._stopping or run.generation != self._member.generation:
            event.ack()  # not committed: whoever owns the partition next reads it again
            return
        partition = (self.topics[run.topic], run.partition)
        self._runs[partition].append(run)
        self._unacked[partition].append(event)
        self._fetched[partition] = run.next
        self._heard[partition] = time.monotonic()
        self._fresh.set()

    # -- the life of a worker

    async def run(self, ends: Callable[[], dict[Any, int]]) -> None:
        """Until `close` is called; `ends()` gives the end of each topic partition. An error goes to `fail`."""
        self._begun = True
        try:
            await self._start()
            while not self._stopping:
                self.ends = self._mine(ends())
                if self._revoking:
                    await self._let_go()
                    await self._pause(1.0)
                elif self._assigned is not None:
                    await self._recover(self._assigned)
                elif not await self._cycle():
                    await self._pause(LOOK_SECONDS if self._is_held() else 1.0)
                self._report()
            await self._finish()
        except asyncio.CancelledError:
            raise
        except CommitRefused as error:
            slot = self.settings.slot
            self.fail(CommitRefused(f"{error}. If another worker runs with slot {slot}, start one with another --slot"))
        except BaseException as error:
            self.fail(error)
        finally:
            self._closed.set()

    async def close(self) -> None:
        """Finish the cycle in hand, publish a last snapshot."""
        if self._begun:
            log.info("told to stop: finishing cycle %s", f"{self.position.cycle:,}")
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
        if self._committing is not None:
            self._committing.cancel()
        self._let_go_of_runs()
        await self._producer.close()
        self._compute.shutdown(wait=False)

    async def _start(self) -> None:
        self.state = "connecting"
        await self._producer.start()  # ends what a predecessor of this slot left open
        engine = self.engine = await self._in_compute(self._build)
        token = -1
        pointer = await asyncio.to_thread(self._store.current)
        if pointer is not None:
            token = pointer.token
        self.publisher = SnapshotPublisher(
            self._store, version=self._loaded, token=token, on_error=lambda error: log.error("%s", error)
        )
        self.decoders: dict[Role, Decoder] = {role: Decoder(self.pipeline, role) for role in self.topic_of}
        self.aligner = Aligner(self.pipeline.labels.alignment_us if self.pipeline.labels and engine.delayed else None)
        self._snapshot_due = time.monotonic() + self.pipeline.snapshots.every_us / 1e6
        self._ready.set()
        self.state = "waiting for partitions"

    def _build(self) -> Engine:
        engine = Engine(self.pipeline)
        began = time.perf_counter()
        engine.warm_up()
        if (seconds := time.perf_counter() - began) > 2:
            log.info("compiled the kernels in %.1f s; from now on they are in the cache", seconds)
        self.position, self._loaded, self.last_learned = restore(engine, self._store)
        self._note_figures(engine)
        if self._loaded:
            log.info("snapshot %d loaded: %s events so far", self._loaded, f"{self.figures['events']:,}")
        settings = self.settings
        check_journal(self.pipeline, settings.broker, settings.slot, self.position, settings.resume)
        gc.freeze()  # what is here stays
        gc.set_threshold(100_000, 20, 100)  # records come and go by the thousand and are no cycles
        return engine

    async def _recover(self, assigned: Assigned) -> None:
        """Bring the engine to where the group's offsets stand."""
        engine = self._engine()
        mine = self._mine(assigned.starts)
        committed = {p: offset for p, offset in self._mine(assigned.committed).items() if offset is not None}
        self._check_committed(committed, mine)
        self.state = "replaying"
        self.position = await self._in_compute(
            lambda: replay(
                engine,
                self.decoders,
                self.settings.broker,
                self.settings.slot,
                self.position,
                committed,
                self._say_replay,
            )
        )
        if self._assigned is not assigned or self._revoking or self._stopping:
            return  # another rebalance came meanwhile
        moved: dict[int, str] = {}
        for partition, offset in committed.items():
            at = self.position.offsets.get(partition)
            if at is not None and at > offset:
                raise StreamStopped(
                    f"{self._place(partition)}: the model has learned up to offset {at:,}, group {self.pipeline.group} "
                    f"stands at {offset:,}: were its offsets set back? Set them to those of a snapshot (headrace "
                    f"snapshots show {self.pipeline.name}), or give the pipeline another name to begin anew"
                )
            if at != offset:
                moved[partition[1]] = f"{self._place(partition)} up to offset {offset:,}"
        for number, place in moved.items():
            log.warning(
                "another worker has read %s: the predictions that wait for their label there stay behind, and those "
                "labels will count as orphans",
                place,
            )
            self._disown(number)
        owned = {p for _, p in mine}
        for number in set(engine.partitions) - owned:
            self._disown(number)
        self.position = self.position._replace(
            offsets={**{p: o for p, o in self.position.offsets.items() if p[1] in owned}, **mine}
        )
        for partition in list(self.aligner.queues):
            self.aligner.disown(partition)
        for role, number in mine:
            engine.own(number)
            self.aligner.own((role, number), engine.clock(role, number))
        self._assigned = None
        self.state = "running"
        log.info("%s owns partitions %s", self.name, ", ".join(map(str, sorted(owned))) or "none")

    def _check_committed(self, committed: dict[Partition, int], mine: dict[Partition, int]) -> None:
        engine, name = self._engine(), self.pipeline.name
        learned = {p: offset for p, offset in self.position.offsets.items() if engine.clock(*p) != BEFORE_ALL}
        lost = sorted(p for p in mine if p in learned and p not in committed)
        if lost:
            raise StreamStopped(
                f"snapshot {self.version} of {name!r} stands at offset {learned[lost[0]]:,} of {self._place(lost[0])}, "
                f"but group {self.pipeline.group} has no committed offset there: was the group deleted, or is this "
                f"another broker? Set the group's offsets to the snapshot's (headrace snapshots show {name}), or give "
                "the pipeline another name to begin anew"
            )

    def _say_replay(self, done: int, goal: int) -> bool:
        """In the compute thread: how far a replay is, and whether it shall go on."""
        self.state = f"replaying {done:,} of {goal:,} records"
        log.info("%s from the journal", self.state)
        self._note_figures(self._engine())
        return not (self._stopping or self._revoking)

    def _disown(self, number: int) -> None:
        self._engine().disown(number)
        self._disowned.append(number)

    async def _cycle(self) -> bool:
        """Compute one cycle and hand it to the commit; whether there was anything to do."""
        try:
            cycle = await self._in_compute(self._work)
        except StreamStopped as stop:  # a model that is broken: nothing of this cycle goes out, but the reason does
            await self._committed()
            await self._commit(Cycle(), str(stop))
            raise
        await self._committed()
        if not cycle.pieces:
            await self._snapshot_if_due()
            return False
        stop_reason = self._engine().stop_reason
        self._committing = asyncio.create_task(self._commit(cycle, stop_reason))
        if stop_reason is not None:
            await self._committed()
            raise StreamStopped(stop_reason)
        if time.monotonic() >= self._snapshot_due:
            await self._committed()
            await self._snapshot_if_due()
        return True

    def _work(self) -> Cycle:
        """In the compute thread: decode, align, process, until the cycle is full or nothing may go on."""
        engine, cycle = self._engine(), Cycle()
        until = time.monotonic() + self.pipeline.cycle_us / 1e6
        limit = self.pipeline.max_cycle_rows
        examples = engine.counters_now("examples")

        def is_full(cycle: Cycle) -> bool:
            return cycle.rows >= limit or time.monotonic() >= until

        served = Served(
            self.pipeline.name, self.version, None if self.last_learned is None else time.time() - self.last_learned
        )
        fetched = self._runs
        while True:
            hungry = [p for p, runs in fetched.items() if runs and self.aligner.is_empty(p)]
            for partition in hungry:
                self.aligner.add(self.decoders[partition[0]].decode(self._take(partition)))
            pieces = len(cycle.pieces)
            run_cycle(engine, self.aligner, self._at_end(), served, is_full, cycle)
            if is_full(cycle) or engine.stop_reason is not None or (not hungry and pieces == len(cycle.pieces)):
                break
        if cycle.pieces:
            engine.end_cycle()
        if engine.counters_now("examples") > examples:
            self.last_learned = time.time()
        if time.monotonic() >= self._figures_due:
            self._note_figures(engine)
        return cycle

    def _take(self, partition: Partition) -> Slice:
        """What was fetched of a partition, one run or some up to SLICE_RECORDS, as one slice: each has its price."""
        runs = self._runs[partition]
        first = runs.popleft()
        records, end = first.records, first.next
        if runs and len(records) < SLICE_RECORDS:
            records = list(records)
            while runs and len(records) < SLICE_RECORDS:
                run = runs.popleft()
                records += run.records
                end = run.next
        return Slice(*partition, first.start, end, records)

    def _note_figures(self, engine: Engine) -> None:
        """In the compute thread: what log and metrics show, for they must not look at an engine at work."""
        self.figures = engine.results() | engine.counters()
        self._figures_due = time.monotonic() + FIGURES_SECONDS

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

    def _is_held(self) -> bool:
        """Whether something waits for another partition to advance."""
        return self.state == "running" and any(not self.aligner.is_empty(p) for p in self._fetched)

    async def _commit(self, cycle: Cycle, stop: str | None) -> None:
        """Write what a cycle gave, and its offsets; `stop` is why it is the last one, if it is."""
        pipeline = self.pipeline
        outputs: dict[TopicPartition, list[Output]] = {}
        for number, predictions in cycle.predictions.items():
            outputs[pipeline.predictions.topic, number] = predictions
        for letter in cycle.dead:
            output = encode_dead_letter(letter, self.topic_of[letter.role], MAX_RECORD_BYTES - HEADERS_ROOM)
            outputs.setdefault((pipeline.predictions.dead_letters, letter.partition), []).append(output)
        number = self.position.cycle
        disowned, self._disowned = self._disowned, []
        record = JournalRecord(self.settings.slot, number, merge(cycle.pieces), stop, disowned)
        journal = (pipeline.journal_topic, 0)
        outputs[journal] = [(str(self.settings.slot).encode(), record.encode(), (), None)]
        next = cycle.offsets()
        offsets = {(self.topic_of[role], p): offset for (role, p), offset in next.items()}
        written = await self._producer.commit_cycle(outputs, offsets, pipeline.group, self._member)
        self.position = Position({**self.position.offsets, **next}, written[journal] + 1, number + 1)
        for partition, offset in next.items():
            events = self._unacked[partition]
            while events and events[0].value.next <= offset:
                events.popleft().ack()

    async def _committed(self) -> None:
        """Wait for the commit under way."""
        if self._committing is not None:
            task, self._committing = self._committing, None
            await task

    async def _snapshot_if_due(self, force: bool = False) -> None:
        """Hand the state between two cycles to the publisher; nothing may be computing or committing."""
        publisher = self.publisher
        assert publisher is not None
        if publisher.error is not None:
            raise publisher.error
        if not force and time.monotonic() < self._snapshot_due:
            return
        self._snapshot_due = time.monotonic() + self.pipeline.snapshots.every_us / 1e6
        token = self.position.journal - 1
        if publisher.busy or token < 0 or token <= publisher.token:
            return

        def stage() -> None:
            arrays, meta = pack(self._engine(), self.position)
            meta["last_learned"] = self.last_learned
            publisher.stage(arrays, meta, token, NAN_ALLOWED)

        began = time.perf_counter()
        await self._in_compute(stage)
        self.stall_seconds = time.perf_counter() - began

    async def _let_go(self) -> None:
        """Commit what is computed and let go of everything that is not."""
        await self._committed()
        self._let_go_of_runs()
        for partition in list(self.aligner.queues):
            self.aligner.disown(partition)
        self._fetched.clear()
        self.state = "waiting for partitions"

    def _let_go_of_runs(self) -> None:
        for events in self._unacked.values():
            for event in events:
                event.ack()
        self._unacked.clear()
        self._runs = {}

    async def _finish(self) -> None:
        if self.engine is None or self.publisher is None:
            return
        await self._committed()
        await self._in_compute(lambda: self._note_figures(self._engine()))
        if self._assigned is None and self.state == "running":
            await asyncio.to_thread(self.publisher.flush, 5.0)
            await self._snapshot_if_due(force=True)
            if await asyncio.to_thread(self.publisher.flush, 10.0):
                log.info("snapshot %d holds all that was learned", self.version)
            else:
                log.warning("the last snapshot was not published; the next start replays from the one before")
        await self._let_go()

    # -- small things

    def _engine(self) -> Engine:
        assert self.engine is not None
        return self.engine

    def _place(self, partition: Partition) -> str:
        return f"{self.topic_of[partition[0]]}[{partition[1]}]"

    def _mine(self, offsets: Mapping[TopicPartition, Answer]) -> dict[Partition, Answer]:
        """What is told of our topics, by role; a user's agents may read others."""
        return {(self.topics[topic], number): at for (topic, number), at in offsets.items() if topic in self.topics}

    async def _in_compute(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._compute, work)

    async def _pause(self, seconds: float) -> None:
        """Wait for something new, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._fresh.wait()
        except TimeoutError:
            pass
        self._fresh.clear()

    def lag(self) -> dict[Partition, int]:
        """Records of each partition that are in Kafka and not committed yet."""
        return {p: max(0, end - self.position.offsets.get(p, 0)) for p, end in self.ends.items()}

    def _report(self) -> None:
        """A line of progress now and then, when there was any."""
        now = time.monotonic()
        then, events_then = self._reported
        if self.engine is None or now - then < REPORT_SECONDS:
            return
        figures = self.figures
        events = int(figures["events"] or 0)
        if events > events_then and then:
            loss = figures.get("log_loss", figures.get("mae"))
            baseline = figures.get("log_loss_constant", figures.get("mae_constant"))
            shown = "" if loss is None else f", loss {loss:.4f} (constant {baseline:.4f})"
            rate = (events - events_then) / (now - then)
            log.info("%s events, %s/s, lag %s%s", f"{events:,}", f"{rate:,.0f}", f"{sum(self.lag().values()):,}", shown)
        self._reported = now, events
