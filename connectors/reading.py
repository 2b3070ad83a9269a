"""Reading ranges of partitions without a group, as fast as the worker does: for replay and the journal.

Synchronous, so use it in a thread without an event loop (asyncio.to_thread). Each reader has a thread of its own that
fetches and unpacks what comes next while the caller works on what it has.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from ..errors import InputError, Unreachable
from .fetching import keep_bytes, leave, take
from .record_batches import unpack
from .record_table import RecordTable
from .records import Fetched, Partition, Record

Answer = TypeVar("Answer")
Run = tuple[Fetched, RecordTable]

NO_RECORDS = RecordTable.of([])

RUN_RECORDS = 20_000
FETCH_BYTES = 4 << 20  # of one partition at a time


class RangeReader:
    """Reads committed records of several partitions, each from a start offset onwards.

    with RangeReader(address, {("flights.departures", 0): 1200}) as reader:
        records = reader.read("flights.departures", 0, until=1500)

    Of each partition one run is read ahead, and one fetch of FETCH_BYTES behind it. Raises Unreachable when the broker
    does not answer for patience_seconds.
    """

    def __init__(self, address: str, starts: Mapping[Partition, int], *, patience_seconds: float = 10.0) -> None:
        self.address = address
        self._next = {TopicPartition(*partition): offset for partition, offset in starts.items()}
        self._buffers: dict[TopicPartition, RecordTable] = {}  # fetched and not handed out yet
        self._ahead: dict[TopicPartition, concurrent.futures.Future[Run]] = {}  # what comes next, asked for before
        self._patience = patience_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-read", daemon=True)
        self._consumer: AIOKafkaConsumer | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait_for(self._submit(self._start()))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for asked in self._ahead.values():
            asked.cancel()
        if self._consumer is not None:
            with contextlib.suppress(TimeoutError):
                self._submit(self._stop(self._consumer)).result(self._patience)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def read(self, topic: str, partition: int, until: int) -> list[Record]:
        """The records from where the last read of this partition ended up to, not including, offset `until`.

        Raises as `read_table` does.
        """
        found, next = list[Record](), -1
        while next < until:
            table, next = self.read_table(topic, partition, until)
            found += table.records()
        return found

    def read_table(self, topic: str, partition: int, until: int) -> tuple[RecordTable, int]:
        """Records from where the last read of this partition ended, and the offset up to which these are all.

        That is `until`, or less where another run goes on. Raises InputError when the topic no longer holds them, or
        does not hold them yet (an open transaction counts as not yet; a marker does not).
        """
        tp = TopicPartition(topic, partition)
        is_old = tp in self._ahead  # what was asked for ahead may have met an end that lies further by now
        while not len(buffer := self._buffers.get(tp, NO_RECORDS)) and self._next[tp] < until:
            run, self._buffers[tp] = self._wait_for(
                self._ahead.pop(tp) if tp in self._ahead else self._submit(self._fetch(tp))
            )
            self._ahead[tp] = self._submit(self._fetch(tp))
            if run.next < until and run.at_end and not is_old:
                raise InputError(f"{topic}[{partition}] ends at offset {run.end:,}, expected records up to {until:,}")
            self._next[tp], is_old = run.next, False
        wanted = int(np.searchsorted(buffer.offset, until))
        self._buffers[tp] = buffer.take(slice(wanted, None))
        next = until if wanted < len(buffer) else min(until, self._next[tp])
        return buffer.take(slice(0, wanted)), next

    def _submit(self, work: Coroutine[Any, Any, Answer]) -> concurrent.futures.Future[Answer]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait_for(self, asked: concurrent.futures.Future[Answer]) -> Answer:
        try:
            return asked.result(self._patience)
        except OffsetOutOfRangeError as error:
            (lost,) = [f"{tp.topic}[{tp.partition}] at offset {offset:,}" for tp, offset in error.args[0].items()]
            raise InputError(f"{lost}: deleted by the topic's retention or by hand, or not written yet") from error
        except (TimeoutError, KafkaError, OSError) as error:
            asked.cancel()
            topics = ", ".join(sorted({tp.topic for tp in self._next}))
            raise Unreachable(
                f"broker {self.address} does not answer, or sent nothing of {topics} for {self._patience:g} s "
                f"({error!r}); is it running, is the address right, does the topic exist?"
            ) from error

    async def _start(self) -> None:
        self._consumer = consumer = AIOKafkaConsumer(
            bootstrap_servers=self.address,
            isolation_level="read_committed",
            auto_offset_reset="none",
            enable_auto_commit=False,
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        await consumer.start()
        keep_bytes(consumer._fetcher)
        consumer.assign(list(self._next))
        for tp, offset in self._next.items():
            consumer.seek(tp, offset)

    async def _stop(self, consumer: AIOKafkaConsumer) -> None:
        try:
            await consumer.stop()
        except asyncio.CancelledError:  # by aiokafka itself, where the broker is away
            await consumer._client.close()

    async def _fetch(self, wanted: TopicPartition) -> Run:
        """What comes next of a partition; an empty run that is at its end when there is nothing more by now."""
        assert self._consumer is not None
        fetcher = self._consumer._fetcher
        state = self._consumer._subscription.subscription.assignment.state_value(wanted)
        answered, answers = state.timestamp, 0
        while True:
            waiter = fetcher._create_fetch_waiter()
            for tp in list(fetcher._records):
                if tp != wanted:
                    leave(fetcher, tp)
                elif run := take(fetcher, tp, RUN_RECORDS):
                    waiter.cancel()
                    return run, unpack([run.records])
            if state.timestamp != answered:
                answered, answers = state.timestamp, answers + 1
            # the first answer may be to a fetch from before: the end lay there then
            if wanted not in fetcher._records and answers > 1 and state.position >= state.lso:
                waiter.cancel()
                at = state.position
                return Fetched(wanted.topic, wanted.partition, at, at, [], state.lso, -1, 0), NO_RECORDS
            await asyncio.wait([waiter], timeout=0.05)  # an answer without records wakes nobody
            waiter.cancel()


def read_range(
    address: str, topic: str, partition: int, start: int, until: int, step: int = 10_000
) -> Iterator[Record]:
    """The committed records with offsets from `start` up to, not including, `until`; a few thousand in memory.

    Raises as RangeReader.read does.
    """
    with RangeReader(address, {(topic, partition): start}) as reader:
        while start < until:
            start = min(start + step, until)
            yield from reader.read(topic, partition, until=start)
