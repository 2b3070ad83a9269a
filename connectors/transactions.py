"""Sending what one cycle produced, together with the offsets it stands for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaConnectionError,
    KafkaError,
    ProducerFenced,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.sender import TxnOffsetCommitHandler
from aiokafka.producer.transaction_manager import TransactionState

from ..errors import InputError, Refused, Unreachable
from . import groups
from .groups import CommitRefused, Member, TxnOffsetCommit
from .records import Headers, Partition

Output = tuple[bytes | None, bytes | None, Headers, int | None]  # key, value, headers, timestamp in ms or None for now

BATCH_BYTES = 900_000  # a broker takes 1,048,588 unless it is told otherwise
MAX_RECORD_BYTES = 1_000_000
END_SECONDS = 5.0  # for an abort, and for closing; the next producer of this id ends what is left

_FENCED = (ProducerFenced, InvalidProducerEpoch, InvalidProducerIdMapping, InvalidTxnState)


class CycleProducer:
    """Commits cycles: with a transactional id all of a cycle or nothing, without one at least once.

    A cycle's outputs are sent and acknowledged before its offsets are: aiokafka would commit the offsets even if an
    output was refused, and a broker that gets both at once holds up the outputs. After an error the producer is
    spent, for what is engine state by then is ahead of what is committed: start anew. One cycle at a time.
    """

    def __init__(
        self,
        address: str,
        *,
        transactional_id: str | None = None,
        transaction_timeout_seconds: float = 10.0,
        compression: str | None = None,  # gzip, snappy, lz4, zstd
    ) -> None:
        self.address = address
        self.transactional_id = transactional_id
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

    async def start(self, patience_seconds: float = 10.0) -> None:
        """Connect; with a transactional id, fence who held it before and end its transaction.

        Tries again until patience_seconds have gone, then raises Unreachable.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_seconds
        while True:
            producer = AIOKafkaProducer(**self._settings)
            try:
                async with asyncio.timeout_at(deadline):
                    await producer.start()
            except (KafkaError, OSError, TimeoutError) as error:
                await producer.stop()
                if isinstance(error, KafkaError) and not error.retriable:
                    raise Refused(f"broker {self.address} refused the producer: {error!r}") from error
                if loop.time() >= deadline:
                    raise Unreachable(
                        f"broker {self.address} did not answer within {patience_seconds:g} s; is it running, and is "
                        "the address right?"
                    ) from error
                await asyncio.sleep(min(0.2, deadline - loop.time()))
            except BaseException:
                await producer.stop()
                raise
            else:
                self._producer, self._spent = producer, ""
                return

    async def commit_cycle(
        self,
        outputs: Mapping[Partition, Sequence[Output]],
        offsets: Mapping[Partition, int],
        group: str,
        member: Member,
    ) -> dict[Partition, int]:
        """Write outputs, then commit offsets (the next to read) to the group; return each partition's first new offset.

        Raises InputError when a record is above MAX_RECORD_BYTES (nothing was sent then, and the producer is as
        before), CommitRefused when the group or a successor with this transactional id has gone on, Refused when the
        broker does not take an output. Waits as long as the broker is away.
        """
        if self._spent or self._producer is None:
            raise Refused(f"this producer cannot commit: {self._spent}; restart the worker")
        producer = self._producer
        batches = {to: encode(producer, to, records) for to, records in outputs.items() if records}
        if not batches and not offsets:
            return {}
        self._spent = "its last commit did not end"
        try:
            first = await self._commit(producer, batches, offsets, group, member)
        except _FENCED as error:
            raise CommitRefused(
                f"transactional id {self.transactional_id} was fenced ({type(error).__name__}): another worker holds "
                f"it, or the transaction outlived its {self._settings['transaction_timeout_ms'] / 1000:g} s"
            ) from error
        except KafkaConnectionError as error:
            raise Unreachable(f"broker {self.address} went away during a commit: {error!r}") from error
        except KafkaError as error:
            raise Refused(f"broker {self.address} did not take the cycle's commit: {error!r}") from error
        self._spent = ""
        return first

    async def _commit(
        self,
        producer: AIOKafkaProducer,
        batches: Mapping[Partition, list[BatchBuilder]],
        offsets: Mapping[Partition, int],
        group: str,
        member: Member,
    ) -> dict[Partition, int]:
        if self.transactional_id is None:
            first = await send_all(producer, batches)
            await groups.commit_offsets(producer.client, group, member, offsets)
            return first
        await producer.begin_transaction()
        try:
            first = await send_all(producer, batches)
            if offsets:
                await send_offsets(producer, offsets, group, member)
        except BaseException:
            await self._abort(producer)
            raise
        await producer.commit_transaction()
        return first

    async def _abort(self, producer: AIOKafkaProducer) -> None:
        # After ABORTABLE_ERROR aiokafka's abort sends no EndTxn and forgets what was sent, so that the *next* commit
        # would publish it. There is none: this producer is spent, and the broker ends the transaction by its timeout.
        if producer._txn_manager.state in (TransactionState.IN_TRANSACTION, TransactionState.ABORTABLE_ERROR):
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await producer.abort_transaction()

    async def close(self) -> None:
        """Abort what is open, then disconnect; aiokafka alone would leave the transaction open until its timeout."""
        producer, self._producer, self._spent = self._producer, None, "it was closed"
        if producer is None:
            return
        if self.transactional_id is not None:
            await self._abort(producer)
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await producer.stop()


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


async def send_all(
    producer: AIOKafkaProducer, batches: Mapping[Partition, Sequence[BatchBuilder]]
) -> dict[Partition, int]:
    """Send batches, partitions side by side, and wait until all are acknowledged; raises the first refusal.

    Within a partition one after the other: a batch that waits for another in an outage would time out.
    """

    async def send(to: Partition, batches: Sequence[BatchBuilder]) -> int:
        topic, number = to
        first = None
        for batch in batches:
            try:
                acknowledged = await (await producer.send_batch(batch, topic, partition=number))
            except _FENCED:
                raise
            except KafkaError as error:
                raise Refused(f"{topic}[{number}] did not take {batch.record_count()} records: {error!r}") from error
            first = acknowledged.offset if first is None else first
        return int(first or 0)

    tasks = {to: asyncio.ensure_future(send(to, rows)) for to, rows in batches.items()}
    try:
        await asyncio.gather(*tasks.values())
    finally:
        for task in tasks.values():
            task.cancel()
    return {to: task.result() for to, task in tasks.items()}


async def send_offsets(
    producer: AIOKafkaProducer, offsets: Mapping[Partition, int], group: str, member: Member
) -> None:
    """Add offsets to the open transaction; raises CommitRefused, after which the transaction can be aborted."""

    async def commit(offsets: Mapping[Any, Any], group: str) -> None:
        node = await sender._find_coordinator(CoordinationType.GROUP, group)
        await _GroupOffsets(sender, offsets, group, member).do(node)

    sender = producer._sender
    sender._do_txn_offset_commit = commit
    rows = {TopicPartition(*partition): offset for partition, offset in offsets.items()}
    await producer.send_offsets_to_transaction(rows, group)


class _GroupOffsets(TxnOffsetCommitHandler):
    """aiokafka's handler, with the member's generation in the request."""

    def __init__(self, sender: Any, offsets: Mapping[Any, Any], group: str, member: Member) -> None:
        super().__init__(sender, offsets, group)
        self._member = member

    def create_request(self) -> TxnOffsetCommit:
        manager = self._sender._txn_manager
        return TxnOffsetCommit(
            manager.transactional_id,
            (manager.producer_id, manager.producer_epoch),
            self._group_id,
            self._member,
            {(tp.topic, tp.partition): offset.offset for tp, offset in self._offsets.items()},
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
