"""A Faust transport in which one event is a haul: all that was fetched at one go, a run of records of each partition.

Faust does membership, assignment and flow; this file takes the runs from aiokafka's fetcher, sets the offsets they
begin at, and sees that none is lost or repeated over a rebalance. Topics that are not among `Settings.topics` arrive
record by record and are committed by Faust, so that a user's own agents may live in the same app.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import ConsumerStoppedError, KafkaConnectionError, KafkaError
from faust.transport.drivers import aiokafka as stock
from faust.types import TP, ConsumerMessage
from mode.utils.futures import notify

from ..errors import Refused, StreamStopped, Unreachable
from .fetching import keep_bytes, leave, take
from .groups import Committed, Member, Rebalanced, stable_offsets
from .record_batches import records_of
from .records import Fetched, Haul, Partition

FETCH_THREAD = "headrace-fetch"
LOOK_SECONDS = 0.001  # how often to ask whether what is here may be taken
FLOW_SECONDS = 0.02  # how often to ask whether the flow has resumed
DRAIN_RECORDS = 50_000  # taken at one go, so that the heartbeats of the consumer's thread are not late
QUIET_SECONDS = 1.0  # without a record; from then on nobody is held up by a fetch that waits longer
QUIET_MAX_WAIT_MS = 500
CONNECT_SECONDS = 0.5  # between two attempts
STOP_SECONDS = 3.0  # for each part of stopping


class Assigned(NamedTuple):
    """What the group gave to this worker, and where it reads on."""

    member: Member
    starts: dict[Partition, int]  # the offset of the next record of each partition
    committed: dict[Partition, int | None]  # None: this group never committed this partition
    committed_by: dict[Partition, str]  # what was written beside each committed offset
    gone: dict[Partition, int]  # records from the committed offset on that exist no more: passed over


class Owner(Protocol):
    """Who works on the runs. All is called in the app's event loop."""

    async def before_start(self) -> None:
        """Return when committed offsets may be asked for: what a predecessor left open has been ended."""

    def patience(self) -> float:
        """Seconds from one take of runs to the next; 0: all that there is was taken, and more is waited for.

        Each take has its cost: while there is other work, what comes had better be taken seldom, and more of it. Called
        in the consumer's thread.
        """

    def assigned(self, assigned: Assigned) -> None:
        """Partitions were given; their first runs come after this returns."""

    def revoking(self, partitions: set[TP]) -> None:
        """Partitions are being taken away. Now commit what is in hand at once, and ack all that will not be committed.

        The rebalance waits until every run is acked.
        """

    def revoked(self, partitions: set[TP]) -> None:
        """Partitions were taken away; runs of theirs are void."""


@dataclass(frozen=True)
class Settings:
    """How the topics that arrive in runs are read."""

    topics: frozenset[str]
    starts: Mapping[str, Literal["earliest", "latest"]] = field(default_factory=dict)  # without a committed offset
    lost: Literal["stop", "earliest"] = "stop"  # where the record at the committed offset exists no more
    max_wait_ms: int = 50  # a fetch waits so long for a first record; a broker answers one at a time. Longer in silence
    collect_seconds: float = 0.0025  # from a take to the next fetch, which finds more then: each has its cost
    max_bytes_in_hand: int = 64 << 20  # fetched and not yet acked; shared out evenly: with half, 8 partitions starve
    max_run_records: int = 20_000
    raw: bool = True  # record batches are handed on as they were fetched; else aiokafka reads them into Records


class Runs(faust.Schema):
    """The schema of the topics that arrive in runs: the event's value is a Haul; decoding is the engine's."""

    def compile(self, app: Any, **options: Any) -> Any:
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, None, message)

        return decode


class ConsumerThread(stock.AIOKafkaConsumerThread):
    """The thread of aiokafka's consumer: everything that must not be torn from a generation happens in it."""

    consumer: Consumer
    seek_epoch = 0  # counts the seeks; a run taken before the last one is void
    _waiter: asyncio.Future[None] | None = None
    _pushing: asyncio.Task[None] | None = None
    _drained = 0.0  # when runs were taken last, or sought
    _listens_since = 0.0  # when there was room for a fetch; wall time, as aiokafka's

    async def on_start(self) -> None:
        """Connect; from then on nothing that ends the consumer goes unnoticed.

        aiokafka keeps an error of its background tasks for the next poll, and none comes while Faust waits for
        partitions: the worker would idle for ever.
        """
        threading.current_thread().name = FETCH_THREAD
        if not await connect(self, super().on_start, lambda: self._ensure_consumer().stop()):
            return
        self._listens_since = time.time()
        consumer = self._ensure_consumer()
        if self.consumer.settings.raw:
            keep_bytes(consumer._fetcher)
        self._fetch_later(consumer._fetcher)
        coordinator, hand_over = consumer._coordinator, consumer._coordinator._push_error_to_user

        def push(error: Exception) -> Any:
            self._fail(error)
            return hand_over(error)

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(error)

        coordinator._push_error_to_user = push
        for task in (coordinator._coordination_task, consumer._fetcher._fetch_task):
            task.add_done_callback(ended)
        self._pushing = asyncio.create_task(self._push(consumer))
        self._pushing.add_done_callback(ended)

    async def on_thread_stop(self) -> None:
        """Disconnect, also while the broker is away or a rebalance is under way.

        aiokafka is then cancelled by its own fetcher, or waits for an answer, and Faust would wait for this thread for
        ever.
        """
        consumer = self._consumer
        if self._pushing is not None:
            self._pushing.cancel()
        parts = [super().on_thread_stop, *([consumer.stop, consumer._client.close] if consumer else [])]
        for part in parts:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await part()
            except (asyncio.CancelledError, TimeoutError):
                pass

    def _fail(self, error: BaseException) -> None:
        asyncio.run_coroutine_threadsafe(self.consumer.fail(error), self.parent_loop)

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Round robin, Faust's choice, gives partition p of two topics to different workers
        consumer._partition_assignment_strategy = [RangePartitionAssignor]
        consumer._isolation_level = "read_committed"
        # Faust's 1,500 ms would let an idle partition hold up the busy ones of its broker
        consumer._fetch_max_wait_ms = self.consumer.settings.max_wait_ms
        return consumer

    async def seek(self) -> Assigned:
        """Set every partition to its committed offset, waiting out open transactions.

        Raises Rebalanced when the group moves on meanwhile.
        """
        consumer = self._ensure_consumer()
        coordinator, partitions = consumer._coordinator, consumer.assignment()
        member = Member(coordinator.generation, coordinator.member_id, self.app.conf.consumer_group_instance_id)
        committed = await stable_offsets(coordinator, sorted(partitions))
        first, end = await self._bounds(consumer, partitions)
        if (coordinator.generation, coordinator.member_id) != member[:2] or consumer.assignment() != partitions:
            raise Rebalanced(f"group {coordinator.group_id} rebalanced while its start offsets were asked for")
        known = {partition: found for partition, found in committed.items() if found is not None}
        starts, gone = self._starts(known, first, end)
        self.seek_epoch += 1
        self._listens_since, self._drained = time.time(), asyncio.get_running_loop().time()
        for partition, offset in starts.items():  # no await since the check
            consumer.seek(TopicPartition(*partition), offset)
        return Assigned(
            member,
            starts,
            {partition: found and found.offset for partition, found in committed.items()},
            {partition: found.metadata for partition, found in known.items()},
            gone,
        )

    async def _bounds(
        self, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
    ) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """The first offset that each partition still holds, and its end; asked for side by side."""
        answers = await asyncio.gather(consumer.beginning_offsets(partitions), consumer.end_offsets(partitions))
        first, end = [{(tp.topic, tp.partition): offset for tp, offset in answer.items()} for answer in answers]
        return first, end

    def _starts(
        self, committed: Mapping[Partition, Committed], first: Mapping[Partition, int], end: Mapping[Partition, int]
    ) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """Where to begin in each partition, and how many records are passed over because they are gone.

        Raises StreamStopped when that is not what the user has chosen, or when a topic ends before what was read of it.
        """
        settings, group = self.consumer.settings, self.app.conf.id
        default = self.app.conf.consumer_auto_offset_reset
        starts = {p: end[p] if settings.starts.get(p[0], default) == "latest" else first[p] for p in first}
        starts |= {partition: found.offset for partition, found in committed.items()}
        for topic, number in committed:
            if starts[topic, number] > end[topic, number]:
                raise StreamStopped(
                    f"{topic}[{number}] ends at offset {end[topic, number]:,}, group {group} has read it up to "
                    f"{starts[topic, number]:,}: was the topic deleted and made anew, or is this another broker? Set "
                    "the offsets of the group, or give the pipeline another name to begin anew"
                )
        gone = {partition: first[partition] - at for partition, at in starts.items() if at < first[partition]}
        if gone and settings.lost == "stop":
            told = ", ".join(f"{count:,} of {t}[{n}] from offset {starts[t, n]:,} on" for (t, n), count in gone.items())
            raise StreamStopped(
                f"records that group {group} has not read are gone, deleted by the topic's retention or by hand: "
                f"{told}. To go on from the earliest that is left: --lost earliest (HEADRACE_LOST=earliest); or set "
                "the offsets of the group yourself"
            )
        return starts | {partition: first[partition] for partition in gone}, gone

    async def _push(self, consumer: AIOKafkaConsumer) -> None:
        """Hand runs to the app's loop as they come. A request of the app's for each would cost a change of threads."""
        while True:
            if not self.consumer.flow_active:
                await asyncio.sleep(FLOW_SECONDS)
            elif runs := await self._next_runs(consumer):
                self.consumer.hand_over(runs, self.parent_loop)

    async def _next_runs(self, consumer: AIOKafkaConsumer) -> list[tuple[int, Fetched]]:
        """Wait for runs, tagged with the epoch of their seek; none when the flow has stopped.

        Raises what the coordinator cannot get over, an authorization for one.
        """
        fetcher, subscriptions = consumer._fetcher, consumer._subscription
        loop, owner = asyncio.get_running_loop(), self.consumer.transport.owner
        while self.consumer.flow_active:
            if consumer._closed or fetcher._closed:
                raise ConsumerStoppedError
            self._waiter = waiter = fetcher._create_fetch_waiter()  # before looking: no wake-up is missed
            # What was taken before a rebalance must not be handed over after the new seek, nor what was fetched
            # after it be taken before: while the flow stands still nobody would deliver it
            flows = not subscriptions.reassignment_in_progress
            may = not self.consumer.delivering and loop.time() >= self._drained + owner.patience()
            runs = list(self._drain(consumer)) if flows and may else []
            if runs:
                self._drained, self._listens_since = loop.time(), time.time()
            self._set_wait(fetcher)
            if runs:
                waiter.cancel()
                return runs
            soon = LOOK_SECONDS if fetcher._records and not may else QUIET_SECONDS
            # aiokafka has a member leave the group that does not fetch for long: one whose app hangs
            with nullcontext() if self.consumer.delivering else subscriptions.fetch_context():
                await asyncio.wait([waiter], timeout=soon if flows else FLOW_SECONDS)
            if not waiter.done():
                waiter.cancel()
            elif not waiter.cancelled():
                waiter.result()
        return []

    def _set_wait(self, fetcher: Fetcher) -> None:
        """Say how long the next fetch waits for a first record; it never waits for a second."""
        silent = not fetcher._records and asyncio.get_running_loop().time() - self._drained > QUIET_SECONDS
        fetcher._fetch_max_wait_ms = QUIET_MAX_WAIT_MS if silent else self.consumer.settings.max_wait_ms

    def _fetch_later(self, fetcher: Fetcher) -> None:
        """From now on aiokafka fetches a moment after each take, not at once, unless more waits than is worked off.

        A broker could wait for more as well, but keeps a book of every fetch that does, and its clock is coarse.
        """
        actions, loop = fetcher._get_actions_per_node, asyncio.get_running_loop()
        owner, collect = self.consumer.transport.owner, self.consumer.settings.collect_seconds

        def later(assignment: Any) -> Any:
            left = self._drained + collect - loop.time()
            if left > 0 and not owner.patience():
                return [], {}, left, False, []  # nothing to do; look again then
            return actions(assignment)

        fetcher._get_actions_per_node = later

    def _drain(self, consumer: AIOKafkaConsumer) -> Iterator[tuple[int, Fetched]]:
        fetcher: Fetcher = consumer._fetcher
        generation, records = consumer._coordinator.generation, 0
        for tp in list(fetcher._records):
            if not consumer._subscription.is_assigned(tp):
                del fetcher._records[tp]
            elif records >= DRAIN_RECORDS or not self.consumer.wants(TP(*tp)):
                leave(fetcher, tp)
            elif run := take(fetcher, tp, self.consumer.settings.max_run_records, generation):
                records += len(run.records)
                yield self.seek_epoch, run

    def wake(self) -> None:
        """Look again at what there is to take; callable from any thread."""

        def look() -> None:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

        if self._waiter is not None:
            self.thread_loop.call_soon_threadsafe(look)

    def ends(self) -> dict[TP, int]:
        """The last stable offset of each partition, as of its last fetch; callable from any thread."""
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = subscription and subscription.assignment
        states = {tp: assignment.state_value(tp) for tp in assignment.tps} if assignment else {}
        return {TP(*tp): state.lso for tp, state in states.items() if state.lso is not None}

    def silent_seconds(self) -> float | None:
        """As Consumer.silent_seconds; callable from any thread."""
        consumer = self._consumer
        subscription = consumer and consumer._subscription.subscription
        assignment = subscription and subscription.assignment
        if consumer is None or not assignment or all(tp in consumer._fetcher._records for tp in assignment.tps):
            return None
        heard = max(assignment.state_value(tp).timestamp or 0 for tp in assignment.tps) / 1000
        return max(0.0, time.time() - max(heard, self._listens_since))


class Consumer(stock.Consumer):
    """Hands runs to the app in order, bounds what is in hand, and asks for the right start after a rebalance."""

    transport: Transport
    _thread: ConsumerThread

    def __init__(self, transport: Transport, *args: Any, **options: Any) -> None:
        self.settings = transport.settings
        self._next: dict[TP, int] = {}  # where the next run of each partition has to begin
        self._in_hand: dict[TP, int] = {}  # bytes delivered and not yet acked
        self._delivered: defaultdict[TP, deque[int]] = defaultdict(deque)  # offsets that Faust may commit once acked
        self.delivering = False  # runs were handed over and are not delivered yet
        self._handed: asyncio.Queue[list[tuple[int, Fetched]]] = asyncio.Queue()
        self._failed = False
        super().__init__(transport, *args, **options)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # what the owner asks

    def ends(self) -> dict[TP, int]:
        """The offset at which nothing more could be read, per partition, as of its last fetch.

        A partition whose runs were taken up to there is at its end, also when it is empty and there never was a run.
        Those never fetched from are left out.
        """
        return {tp: end for tp, end in self._thread.ends().items() if tp in self._next}

    def silent_seconds(self) -> float | None:
        """Seconds since any broker last answered a fetch, with records or without; it does so twice a second and more.

        None when none is asked: nothing is assigned, or of every partition something waits to be taken.
        """
        return self._thread.silent_seconds()

    async def fail(self, error: BaseException) -> None:
        """Crash the app with this error, in words of ours; those that follow from it are not told again."""
        if not self._failed and not self.app.should_stop:
            self._failed = True
            await self.app.crash(self._in_words(error))

    def _in_words(self, error: BaseException) -> BaseException:
        group, brokers = self.app.conf.id, ", ".join(url.partition("://")[2] for url in map(str, self.transport.url))
        if not isinstance(error, KafkaError):
            return error
        if error.retriable:
            return Unreachable(f"group {group}: broker {brokers} went away: {error!r}")
        return Refused(f"group {group}: broker {brokers} refused to go on: {error.__cause__ or error!r}")

    # asked in the consumer's thread

    def wants(self, tp: TP) -> bool:
        """Whether a run of this partition would be welcome now; callable from any thread."""
        in_hand = self._in_hand.get(tp, 0)
        return tp in self._get_active_partitions() and (not in_hand or in_hand < self._share())

    def _share(self) -> int:
        return self.settings.max_bytes_in_hand // max(len(self._in_hand), 1)

    def hand_over(self, runs: list[tuple[int, Fetched]], loop: asyncio.AbstractEventLoop) -> None:
        """Have runs delivered in the app's loop; no more may come while `delivering`."""
        self.delivering = True
        loop.call_soon_threadsafe(self._handed.put_nowait, runs)

    # from run to event

    async def _drain_messages(self, fetcher: Any) -> None:
        while not (self._stopped.is_set() or fetcher._stopped.is_set()):
            try:
                await self._deliver(await self._handed.get())
            except asyncio.CancelledError:
                if self.app.should_stop:
                    return  # Faust would begin this anew in the middle of a rebalance
                raise
            except Exception as error:
                await self.fail(error)
                await asyncio.Event().wait()  # until it is stopped: there is nobody to raise to
            finally:
                self.delivering = False

    async def _deliver(self, runs: Iterable[tuple[int, Fetched]]) -> None:
        hauls: defaultdict[str, list[Fetched]] = defaultdict(list)
        for epoch, run in runs:
            current = run.generation == self.app.consumer_generation_id and epoch == self._thread.seek_epoch
            if self.flow_active and current:  # else a seek to the committed offsets follows
                self._take_on(run)
                hauls[run.topic].append(run)
        for topic, of in hauls.items():
            if topic in self.settings.topics:
                last = of[-1]
                tp = TP(topic, last.partition)
                await self.callback(self._message(tp, last.next - 1, Haul(of, self._release), last.generation))
            else:
                await self.wait_first(self._deliver_records(of), self.suspend_flow.wait())

    def _take_on(self, run: Fetched) -> None:
        tp = TP(run.topic, run.partition)
        expected = self._next[tp]
        if run.start != expected:
            gap = (
                f"{tp.topic}[{tp.partition}] goes on at offset {run.start:,}, expected {expected:,}: the records "
                "between are gone, deleted by the topic's retention or by hand"
            )
            if self.settings.lost == "earliest":
                raise Refused(gap)  # who starts again goes on from the earliest that is left, and says so
            raise StreamStopped(
                f"{gap}. Start it again with --lost earliest (HEADRACE_LOST=earliest) to go on from the earliest that "
                "is left, or set the offsets of the group"
            )
        self._next[tp] = run.next
        self.app.monitor.track_tp_end_offset(tp, run.end)
        if run.topic in self.settings.topics:
            self._in_hand[tp] += run.size

    async def _deliver_records(self, runs: Iterable[Fetched]) -> None:
        for run in runs:
            tp = TP(run.topic, run.partition)
            for record in records_of([run.records]):
                self._delivered[tp].append(record.offset)
                message = self._message(tp, record.offset, record.value, run.generation)
                message.key, message.headers, message.timestamp = (
                    record.key, list(record.headers), record.timestamp / 1000,
                )  # fmt: skip
                await self.callback(message)

    def _message(self, tp: TP, offset: int, value: Any, generation: int) -> ConsumerMessage:
        return ConsumerMessage(
            tp.topic, tp.partition, offset, time.time(), 0, None, None, value, None, tp=tp, generation_id=generation
        )

    def on_buffer_drop(self, tp: TP) -> None:
        super().on_buffer_drop(tp)
        self._thread.wake()

    # acknowledged and committed

    def ack(self, message: Any) -> bool:
        """Let go of a haul, with all its runs that are left: a rebalance waits for it no longer. Commits nothing.

        For other topics: Faust may commit the record.
        """
        if message.topic not in self.settings.topics:
            return bool(super().ack(message))
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        message.value.release_all()
        return True

    def _release(self, run: Fetched) -> None:
        tp = TP(run.topic, run.partition)
        if run.generation == self.app.consumer_generation_id and tp in self._in_hand:
            before = self._in_hand[tp]
            self._in_hand[tp] = max(before - run.size, 0)
            if before >= self._share():
                self._thread.wake()

    def _new_offset(self, tp: TP) -> int | None:
        # Faust's own can pass over records that are not acked
        delivered, acked, offset = self._delivered[tp], self._acked_index[tp], None
        while delivered and delivered[0] in acked:
            acked.discard(last := delivered.popleft())
            offset = last + 1
        self._acked[tp].clear()
        return offset

    def verify_event_path(self, now: float, tp: TP) -> None:
        if tp.topic not in self.settings.topics:  # Faust would miss its own commits
            super().verify_event_path(now, tp)

    # rebalance: revoked, (assigned), sought; then the flow resumes

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self.transport.owner.revoking(revoked)
        self._get_active_partitions().difference_update(revoked)
        self._paused_partitions.difference_update(revoked)
        await self._on_partitions_revoked(revoked)  # waits until every run in hand is acked
        for tp in revoked:  # not before, as Faust does: finished work would be forgotten
            for book in (self._next, self._in_hand, self._delivered, self._acked, self._acked_index):
                book.pop(tp, None)
            for book in (self._gap, self._read_offset, self._committed_offset):
                book.pop(tp, None)
        self.transport.owner.revoked(revoked)

    async def perform_seek(self) -> None:
        """Begin at the committed offsets. Called after every assignment, before the flow resumes.

        Faust waits for broker_request_timeout and then idles for ever, holding its partitions: crash before that.
        After an error this never returns, for the flow must not resume; the app is being stopped.
        """
        patience = 0.9 * self.app.conf.broker_request_timeout
        try:
            async with asyncio.timeout(patience):
                await self.transport.owner.before_start()
                try:
                    assigned = await self._thread.call_thread(self._thread.seek)
                except Rebalanced:
                    await asyncio.Event().wait()  # another seek follows and cancels this one
        except TimeoutError:
            late = f"no start offsets for group {self.app.conf.id} within {patience:g} s; is the broker well?"
            await self.fail(Unreachable(late))
            await asyncio.Event().wait()
        except Exception as error:
            await self.fail(error)
            await asyncio.Event().wait()
        for partition, offset in assigned.starts.items():
            tp = TP(*partition)
            self._next[tp] = self._read_offset[tp] = self._committed_offset[tp] = offset
            self._in_hand[tp] = 0
            self._delivered[tp].clear()
            self._acked[tp].clear()
            self._acked_index[tp].clear()
        self.transport.owner.assigned(assigned)


class Producer(stock.Producer):
    """Faust's own, for what a user's agents send."""

    async def on_start(self) -> None:
        """Connect."""
        await connect(self, super().on_start, lambda: self._ensure_producer().stop())


async def connect(service: Any, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> bool:
    """Start a client of Kafka, again and again while the broker is away; Faust would end with the first refusal.

    False when the service was told to stop meanwhile.
    """
    while not service.should_stop:
        try:
            await start()
            return True
        except KafkaConnectionError:
            await stop()
            await asyncio.sleep(CONNECT_SECONDS)
    return False


class Transport(stock.Transport):
    """Give this to a Faust app by overriding App._new_transport."""

    Consumer = Consumer
    Producer = Producer

    def __init__(self, url: Any, app: Any, owner: Owner, settings: Settings) -> None:
        super().__init__(url, app)
        self.owner = owner
        self.settings = settings
