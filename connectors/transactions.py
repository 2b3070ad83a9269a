"""Sending what one cycle produced, together with the offsets it stands for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    NodeNotReadyError,
    ProducerFenced,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.sender import BACKOFF_OVERRIDE, AddPartitionsToTxnHandler, TxnOffsetCommitHandler
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.structs import OffsetAndMetadata

from ..errors import HeadraceError, InputError, Refused, Unreachable
from . import groups
from .groups import CommitRefused, Member, TxnOffsetCommit
from .record_writer import BATCH_BYTES, MAX_RECORD_BYTES, Rows, SealedBatch, write_batches
from .records import Headers, Partition

Output = tuple[bytes | None, bytes | None, Headers, int | None]  # key, value, headers, timestamp in ms or None for now
Batch: TypeAlias = BatchBuilder | SealedBatch
Records: TypeAlias = Sequence[Output] | Sequence[SealedBatch]  # of one partition; batches are what `write` gave
Done = TypeVar("Done")

COMMIT_SECONDS = 30.0
CONCURRENT_SECONDS = 0.002  # until a transaction is begun again whose predecessor's markers were not written yet
LITTLE_BYTES = 50_000  # are compressed before another thread would have begun
END_SECONDS = 5.0  # for an abort; the next producer of this id ends what is left
STOP_SECONDS = 3.0

_FENCED = (ProducerFenced, InvalidProducerEpoch, InvalidProducerIdMapping, InvalidTxnState)


class CycleProducer:
    """Commits cycles: with a transactional id all of a cycle or nothing, without one at least once.

    A cycle's outputs are sent and acknowledged before its offsets are: aiokafka would commit the offsets even if an
    output was refused, and a broker that gets both at once holds up the outputs. After an error the producer is
    spent, for what is engine state by then is ahead of what is committed: start anew. One cycle at a time; without
    transactions the outputs of the next may be sent while the offsets of the last are committed.

    commit_seconds  how long a commit may take, in which a broker may restart; then nobody knows whether it happened
    """

    def __init__(
        self,
        address: str,
        *,
        transactional_id: str | None = None,
        transaction_timeout_seconds: float = 10.0,
        compression: str | None = None,  # gzip, snappy, lz4, zstd
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        self.address = address
        self.transactional_id = transactional_id
        self.commit_seconds = commit_seconds
        self._settings: dict[str, Any] = {
            "bootstrap_servers": address,
            "transactional_id": transactional_id,
            "transaction_timeout_ms": int(transaction_timeout_seconds * 1000),
            "enable_idempotence": True,
            "compression_type": compression,
            "max_batch_size": BATCH_BYTES,
            "max_request_size": 4 << 20,
            "request_timeout_ms": 10_000,
        }
        self._producer: AIOKafkaProducer | None = None
        self._spent: str = "it was not started"
        self._doing = ""  # the part of a commit that is under way, for the message when it hangs

    async def start(self, patience_seconds: float = 10.0) -> None:
        """Connect; with a transactional id, fence who held it before and end its transaction.

        Tries again until patience_seconds have gone, then raises Unreachable; raises Refused when the broker says no.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_seconds
        while True:
            producer = AIOKafkaProducer(**self._settings)
            _look_again(producer)
            _begin_again_soon(producer)
            _heed(producer)
            try:
                async with asyncio.timeout_at(deadline):
                    await producer.start()
            except (KafkaError, OSError, TimeoutError) as error:
                await _stop(producer)
                if isinstance(error, KafkaError) and not error.retriable:
                    raise Refused(f"broker {self.address} refused the producer: {error!r}") from error
                if loop.time() >= deadline:
                    raise Unreachable(self._late_start(producer, patience_seconds)) from error
                await asyncio.sleep(min(0.2, deadline - loop.time()))
            except BaseException:
                await _stop(producer)
                raise
            else:
                self._producer, self._spent = producer, ""
                return

    def _late_start(self, producer: AIOKafkaProducer, seconds: float) -> str:
        if self.transactional_id is not None and producer.client.cluster.brokers():
            return (
                f"broker {self.address} did not give out transactional id {self.transactional_id} within {seconds:g} "
                "s: a transaction of its last holder has not ended yet, or its coordinator is not available"
            )
        return f"broker {self.address} did not answer within {seconds:g} s; is it running, and is the address right?"

    async def forget_pending(self, group: str, partition: Partition) -> None:
        """Have the group let go of offsets of this transactional id whose transaction has ended without its knowing.

        A coordinator of Kafka 4.1 that becomes leader twice while its log loads may know of a commit and not of its
        end: its offsets stay unstable for ever, for whoever asks. The end of any other transaction of the same id
        clears them: of one that is aborted here. `partition` is any that exists; no offset of it is committed.

        Raises as commit_cycle does.
        """
        if self._spent or self._producer is None:
            raise Refused(f"this producer cannot commit: {self._spent}; restart the worker")
        producer = self._producer
        try:
            async with asyncio.timeout(self.commit_seconds):
                await producer.begin_transaction()
                await send_offsets(producer, {partition: 0}, group, Member(-1, ""))
                await producer.abort_transaction()
        except TimeoutError as error:
            raise Unreachable(
                f"broker {self.address} did not end a transaction within {self.commit_seconds:g} s"
            ) from error
        except Exception as error:
            raise self._in_words(error) from error

    def write(self, rows: Rows, ends: Mapping[Partition, int]) -> dict[Partition, list[SealedBatch]]:
        """Many records, without an object for each, as outputs of one cycle; all have the time of now.

        They are compressed when they are sent: beside the computing of the next cycle.

        ends  of each partition, in the order of the rows, the row behind its last

        In any thread, before the producer is started, too. Raises InputError when a record is above MAX_RECORD_BYTES.
        """
        return write_batches(
            rows,
            int(time.time() * 1000),
            to=ends,
            transactional=self.transactional_id is not None,
        )

    async def commit_cycle(
        self,
        outputs: Mapping[Partition, Records],
        offsets: Mapping[Partition, int],
        group: str,
        member: Member,
        metadata: str = "",
    ) -> dict[Partition, int]:
        """Write outputs, then commit offsets (the next to read) to the group; return each partition's first new offset.

        metadata is kept by the group beside each of the offsets.

        Raises InputError when a record is above MAX_RECORD_BYTES (nothing was sent then, and the producer is as
        before), CommitRefused when the group or a successor with this transactional id has gone on, Refused when the
        broker does not take an output, Unreachable when the commit did not end within commit_seconds: it may have
        happened or not, and whoever holds this transactional id next finds out. An outage that is shorter is waited
        out. An abort may take END_SECONDS more.
        """
        producer = self._usable()
        batches = await self._encode_all(producer, outputs)
        if not batches and not offsets:
            return {}
        if self.transactional_id is not None:
            return await self._end(self._transact(producer, batches, offsets, group, member, metadata))
        first = await self._end(self._send(producer, batches))
        await self.commit_offsets(offsets, group, member, metadata)
        return first

    async def send_outputs(self, outputs: Mapping[Partition, Records]) -> dict[Partition, int]:
        """The first half of `commit_cycle` without transactions; what is sent can be read at once. Raises as that."""
        producer = self._usable()
        return await self._end(self._send(producer, await self._encode_all(producer, outputs)))

    async def commit_offsets(
        self, offsets: Mapping[Partition, int], group: str, member: Member, metadata: str = ""
    ) -> None:
        """The second half of `commit_cycle` without transactions, of one cycle or some. Raises as that."""
        producer = self._usable()
        await self._end(self._offsets(producer, offsets, group, member, metadata))

    def _usable(self) -> AIOKafkaProducer:
        if self._spent or self._producer is None:
            raise Refused(f"this producer cannot commit: {self._spent}; restart the worker")
        return self._producer

    async def _end(self, work: Awaitable[Done]) -> Done:
        """Wait for a part of a commit within its time; after anything else than success the producer is spent."""
        spent, producer = True, self._usable()
        try:
            async with asyncio.timeout(self.commit_seconds):
                done = await work
            spent = False
            return done
        except TimeoutError as error:  # an abort would wait for the same
            raise Unreachable(
                f"broker {self.address} did not end a commit within {self.commit_seconds:g} s, and hangs in "
                f"{self._doing}: a broker is away, or too few replicas of a topic are in sync"
            ) from error
        except asyncio.CancelledError:
            await self._abort(producer)
            raise
        except Exception as error:
            await self._abort(producer)
            raise self._in_words(error) from error
        finally:
            if spent:
                self._spent = "its last commit did not end"

    async def _encode_all(
        self, producer: AIOKafkaProducer, outputs: Mapping[Partition, Records]
    ) -> dict[Partition, Sequence[Batch]]:
        batches = {to: self._encode(producer, to, records) for to, records in outputs.items() if records}
        if (compression := self._settings["compression_type"]) is not None:
            sealed = [batch for some in batches.values() for batch in some if isinstance(batch, SealedBatch)]
            if sum(batch.size() for batch in sealed) > LITTLE_BYTES:
                await asyncio.to_thread(_compress, sealed, compression)
            else:
                _compress(sealed, compression)
        return batches

    def _encode(self, producer: AIOKafkaProducer, to: Partition, records: Records) -> Sequence[Batch]:
        if isinstance(records[0], SealedBatch):
            return cast(Sequence[SealedBatch], records)
        return encode(producer, to, cast(Sequence[Output], records))

    async def _send(
        self, producer: AIOKafkaProducer, batches: Mapping[Partition, Sequence[Batch]]
    ) -> dict[Partition, int]:
        self._doing = "writing outputs to " + ", ".join(sorted({topic for topic, _ in batches}))
        return await send_all(producer, batches)

    async def _offsets(
        self, producer: AIOKafkaProducer, offsets: Mapping[Partition, int], group: str, member: Member, metadata: str
    ) -> None:
        self._doing = f"committing the offsets of group {group}"
        await groups.commit_offsets(producer._sender, group, member, offsets, metadata)

    async def _transact(
        self,
        producer: AIOKafkaProducer,
        batches: Mapping[Partition, Sequence[Batch]],
        offsets: Mapping[Partition, int],
        group: str,
        member: Member,
        metadata: str,
    ) -> dict[Partition, int]:
        self._doing = f"looking for {', '.join(sorted({topic for topic, _ in batches}))}"
        for topic in {topic for topic, _ in batches}:  # or a refusal could come before the batches it is for
            await producer.partitions_for(topic)
        await producer.begin_transaction()
        for partition in batches:  # all in one request, and before the group
            producer._txn_manager.maybe_add_partition_to_txn(TopicPartition(*partition))
        sending = asyncio.ensure_future(self._send(producer, batches))
        adding = asyncio.ensure_future(send_offsets(producer, offsets, group, member, metadata, after=sending))
        try:
            first = await sending
            self._doing = f"committing the offsets of group {group}"
            await adding
        finally:
            for task in (sending, adding):
                task.cancel()
            await asyncio.gather(sending, adding, return_exceptions=True)
        self._doing = f"ending the transaction of {self.transactional_id}"
        await producer.commit_transaction()
        return first

    def _in_words(self, error: Exception) -> HeadraceError:
        """One of ours for whatever aiokafka raises; an AssertionError of its own, too."""
        if isinstance(error, HeadraceError):
            return error
        if isinstance(error, _FENCED):
            return CommitRefused(
                f"transactional id {self.transactional_id} was fenced ({type(error).__name__}): another worker holds "
                f"it, or the transaction outlived its {self._settings['transaction_timeout_ms'] / 1000:g} s"
            )
        if isinstance(error, OSError) or getattr(error, "retriable", False):
            return Unreachable(f"broker {self.address} went away in {self._doing}: {error!r}")
        return Refused(f"broker {self.address} did not take the cycle's commit, in {self._doing}: {error!r}")

    async def _abort(self, producer: AIOKafkaProducer) -> None:
        # After ABORTABLE_ERROR aiokafka's abort sends no EndTxn and forgets what was sent, so that the *next* commit
        # would publish it. There is none: this producer is spent, and the broker ends the transaction by its timeout.
        if producer._txn_manager.state in (TransactionState.IN_TRANSACTION, TransactionState.ABORTABLE_ERROR):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(END_SECONDS):
                    await producer.abort_transaction()

    async def close(self) -> None:
        """Abort what is open, then disconnect; aiokafka alone would leave the transaction open until its timeout.

        Takes END_SECONDS and STOP_SECONDS at most, also when the broker is away.
        """
        producer, self._producer, self._spent = self._producer, None, "it was closed"
        if producer is None:
            return
        if self.transactional_id is not None:
            await self._abort(producer)
        await _stop(producer)


def _compress(batches: Iterable[SealedBatch], compression: str) -> None:
    for batch in batches:
        batch.compress(compression)


def _look_again(producer: AIOKafkaProducer) -> None:
    """Let aiokafka look for a coordinator again after any failure that can pass; a lost connection would end it."""
    lookup = producer.client.coordinator_lookup

    async def patient(kind: CoordinationType, key: str) -> int:
        try:
            return int(await lookup(kind, key))
        except AssertionError as error:  # a broker that has just begun may know of no broker
            raise NodeNotReadyError(str(error)) from error
        except KafkaError as error:
            if error.retriable:
                raise NodeNotReadyError(str(error)) from error
            raise

    producer.client.coordinator_lookup = patient


def _begin_again_soon(producer: AIOKafkaProducer) -> None:
    """A transaction right after another finds the markers of the last unwritten: aiokafka would wait 20 ms for them."""
    sender = producer._sender

    async def add(partitions: Any) -> bool:
        node = await sender._find_coordinator(CoordinationType.TRANSACTION, sender._txn_manager.transactional_id)
        return bool(await _AddPartitions(sender, partitions).do(node))

    sender._do_add_partitions_to_txn = add


class _AddPartitions(AddPartitionsToTxnHandler):
    def handle_response(self, response: Any) -> float | None:
        """None when the request is settled, else the seconds after which it is sent again."""
        seconds: float | None = super().handle_response(response)
        return CONCURRENT_SECONDS if seconds == BACKOFF_OVERRIDE else seconds


async def _stop(producer: AIOKafkaProducer) -> None:
    """Disconnect within STOP_SECONDS; aiokafka alone waits until what is queued was sent."""
    sending = producer._sender.sender_task
    try:
        async with asyncio.timeout(STOP_SECONDS - 1):
            await producer.stop()
    except Exception:  # whatever it is, the connections must go, and nothing may be sent any more
        if sending is not None and not sending.done():
            sending.cancel()
            await asyncio.wait([sending], timeout=0.5)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(0.5):
                await producer.client.close()
    _hush(producer)


def _heed(producer: AIOKafkaProducer) -> None:
    """Have no failure of a batch reported by asyncio as never retrieved: who waited for the commit was told."""
    accumulator = producer._message_accumulator
    append = accumulator._append_batch

    def append_and_heed(builder: Batch, to: TopicPartition) -> Any:
        batch = append(builder, to)
        for waiter in (batch.future, batch._drain_waiter):
            waiter.add_done_callback(_retrieve)
        return batch

    accumulator._append_batch = append_and_heed


def _hush(producer: AIOKafkaProducer) -> None:
    """The same for what is left when it has stopped."""
    batches = [batch for queue in producer._message_accumulator._batches.values() for batch in queue]
    for waiter in [producer._txn_manager._transaction_waiter, *(batch._drain_waiter for batch in batches)]:
        if waiter is not None and waiter.done():
            _retrieve(waiter)


def _retrieve(waiter: asyncio.Future[Any]) -> None:
    if not waiter.cancelled():
        waiter.exception()


def encode(producer: AIOKafkaProducer, to: Partition, records: Iterable[Output]) -> list[BatchBuilder]:
    """Record batches of at most BATCH_BYTES (a larger record is alone in its batch).

    Raises InputError for a record above MAX_RECORD_BYTES.
    """
    batches: list[BatchBuilder] = []
    count = 0

    def start() -> Callable[..., Any]:
        if batches:
            batches[-1]._relative_offset = count
        batches.append(producer.create_batch())
        return batches[-1]._builder.append  # past BatchBuilder.append: 0.2 us a record, not 0.5

    append = start()
    for key, value, headers, timestamp in records:
        if append(count, timestamp, key, value, list(headers)) is None:
            append, count = start(), 0
            append(count, timestamp, key, value, list(headers))
        if not count and batches[-1].size() > MAX_RECORD_BYTES:  # an empty batch takes any record
            raise InputError(
                f"a record of {batches[-1].size():,} bytes for {to[0]}[{to[1]}] is above the limit of "
                f"{MAX_RECORD_BYTES:,} bytes; cut it before it is sent"
            )
        count += 1
    batches[-1]._relative_offset = count
    for batch in batches:
        batch.close()
    return batches


async def send_all(producer: AIOKafkaProducer, batches: Mapping[Partition, Sequence[Batch]]) -> dict[Partition, int]:
    """Send batches, partitions side by side, and wait until all are acknowledged; raises the first refusal.

    Within a partition one after the other: a batch that waits for another in an outage would time out.
    """
    if not batches:
        return {}
    queued: dict[Partition, asyncio.Future[Any]] = {}
    tasks: dict[Partition, asyncio.Task[int]] = {}
    for to, some in batches.items():
        acknowledged = _queue(producer, to, some[0]) if len(some) == 1 else None
        if acknowledged is not None:
            queued[to] = acknowledged
        else:
            tasks[to] = asyncio.create_task(_send_in_turn(producer, to, some))
    waiting = [*queued.values(), *tasks.values()]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)  # which cancels nothing
        for to, answer in queued.items():
            if answer in done and answer.exception() is not None:
                with _refused_in_words(to, batches[to][0]):
                    answer.result()
        for task in tasks.values():
            if task in done:
                task.result()
    except BaseException:
        for task in tasks.values():
            task.cancel()
        for left in waiting:
            left.add_done_callback(_retrieve)
        raise
    first = {to: int(answer.result().offset) for to, answer in queued.items()}
    return first | {to: task.result() for to, task in tasks.items()}


def _queue(producer: AIOKafkaProducer, to: Partition, batch: Batch) -> asyncio.Future[Any] | None:
    """What producer.send_batch does where it need not wait nor raise, without its tasks; None: it is for send_batch.

    The future is the batch's own, which must not be cancelled.
    """
    accumulator, transactions = producer._message_accumulator, producer._txn_manager
    at = TopicPartition(*to)
    if (
        at.partition not in (producer.client.cluster.partitions_for_topic(at.topic) or ())
        or (transactions and transactions.transactional_id is not None and not transactions.is_in_transaction())
        or accumulator._closed
        or accumulator._exception is not None
        or accumulator._batches.get(at)
    ):
        return None
    future: asyncio.Future[Any] = accumulator._append_batch(batch, at).future
    return future


async def _send_in_turn(producer: AIOKafkaProducer, to: Partition, batches: Sequence[Batch]) -> int:
    """Send batches of one partition, each when the last is acknowledged; return the offset of the first."""
    first = None
    for batch in batches:
        with _refused_in_words(to, batch):
            answer = await producer.send_batch(batch, to[0], partition=to[1])
            answer.add_done_callback(_retrieve)
            acknowledged = await answer
        first = acknowledged.offset if first is None else first
    return int(first or 0)


@contextlib.contextmanager
def _refused_in_words(to: Partition, batch: Batch) -> Iterator[None]:
    """Say which partition did not take how much."""
    try:
        yield
    except _FENCED:
        raise
    except KafkaError as error:
        kind = Unreachable if error.retriable else Refused
        raise kind(f"{to[0]}[{to[1]}] did not take {batch.record_count()} records: {error!r}") from error


async def send_offsets(
    producer: AIOKafkaProducer,
    offsets: Mapping[Partition, int],
    group: str,
    member: Member,
    metadata: str = "",
    after: asyncio.Future[Any] | None = None,
) -> None:
    """Add offsets to the open transaction; raises CommitRefused, after which the transaction can be aborted.

    after  what the broker must have before them. The group is added to the transaction meanwhile; when `after` fails
           the offsets are not sent
    """

    async def commit(offsets: Mapping[Any, Any], group: str) -> None:
        if after is not None:
            await asyncio.wait([after])
            if after.cancelled() or after.exception() is not None:
                _, _, waiting = sender._txn_manager._pending_txn_offsets.popleft()  # or an abort would wait for them
                waiting.cancel()
                return
        node = await sender._find_coordinator(CoordinationType.GROUP, group)
        await _GroupOffsets(sender, offsets, group, member, metadata).do(node)

    if not offsets:
        return
    sender = producer._sender
    sender._do_txn_offset_commit = commit
    rows = {TopicPartition(*partition): OffsetAndMetadata(offset, "") for partition, offset in offsets.items()}
    waiting = sender._txn_manager.add_offsets_to_txn(rows, group)
    waiting.add_done_callback(_retrieve)
    await asyncio.shield(waiting)


class _GroupOffsets(TxnOffsetCommitHandler):
    """aiokafka's handler, with the member's generation in the request."""

    def __init__(self, sender: Any, offsets: Mapping[Any, Any], group: str, member: Member, metadata: str) -> None:
        super().__init__(sender, offsets, group)
        self._member, self._metadata = member, metadata

    def create_request(self) -> TxnOffsetCommit:
        manager = self._sender._txn_manager
        return TxnOffsetCommit(
            manager.transactional_id,
            (manager.producer_id, manager.producer_epoch),
            self._group_id,
            self._member,
            {(tp.topic, tp.partition): offset.offset for tp, offset in self._offsets.items()},
            self._metadata,
        )

    def handle_response(self, response: Any) -> float | None:
        """None when the request is settled, else the seconds after which it is sent again."""
        manager = self._sender._txn_manager
        codes = {code for _, rows, _ in response.topics for _, code, _ in rows} - {0}
        if codes & groups.FENCED.keys():
            raise ProducerFenced
        if codes and codes <= groups.TRANSIENT:
            if codes != {groups.LOADING}:
                self._sender._coordinator_dead(CoordinationType.GROUP)
            return float(self._default_backoff)
        if codes:
            # not manager.error_transaction(): that forgets what the abort has to end
            _, _, waiting = manager._pending_txn_offsets.popleft()
            waiting.set_exception(CommitRefused(groups.refusal(self._group_id, self._member, codes)))
            return None
        for tp, offset in list(self._offsets.items()):
            manager.offset_committed(tp, offset.offset, self._group_id)
        return None
