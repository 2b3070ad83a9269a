"""Reading ranges of partitions without a group, as fast as the worker does: for replay and the journal.

Synchronous: each reader has an event loop of its own, so use it in a thread without one (asyncio.to_thread).
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from ..errors import InputError, Unreachable
from .fetching import leave, take
from .records import Fetched, Partition, Record

Answer = TypeVar("Answer")

RUN_RECORDS = 20_000


class RangeReader:
    """Reads committed records of several partitions, each from a start offset onwards.

    with RangeReader(address, {("flights.departures", 0): 1200}) as reader:
        records = reader.read("flights.departures", 0, until=1500)

    At most one fetch of each other partition is read ahead. Raises Unreachable when the broker does not answer for
    patience_seconds.
    """

    def __init__(self, address: str, starts: Mapping[Partition, int], *, patience_seconds: float = 10.0) -> None:
        self.address = address
        self._next = {TopicPartition(*partition): offset for partition, offset in starts.items()}
        self._buffers: dict[TopicPartition, collections.deque[Record]] = {tp: collections.deque() for tp in self._next}
        self._patience = patience_seconds
        self._loop = asyncio.new_event_loop()
        self._consumer: AIOKafkaConsumer | None = None

    def __enter__(self) -> Self:
        try:
            self._run(self._start())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            self._loop.run_until_complete(self._consumer.stop())
        self._loop.close()

    def read(self, topic: str, partition: int, until: int) -> list[Record]:
        """The records from where the last read of this partition ended up to, not including, offset `until`.

        Raises InputError when the topic no longer holds them, or does not hold them yet (an open transaction counts
        as not yet; a marker does not).
        """
        tp = TopicPartition(topic, partition)
        buffer, found = self._buffers[tp], []
        while True:
            while buffer and buffer[0].offset < until:
                found.append(buffer.popleft())
            if buffer or self._next[tp] >= until:
                return found
            run = self._run(self._fetch(tp))
            if run.next < until and run.at_end:
                raise InputError(f"{topic}[{partition}] ends at offset {run.end:,}, expected records up to {until:,}")
            buffer.extend(run.records)

    def _run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        async def bounded() -> Answer:
            async with asyncio.timeout(self._patience):
                return await work

        try:
            return self._loop.run_until_complete(bounded())
        except OffsetOutOfRangeError as error:
            (lost,) = [f"{tp.topic}[{tp.partition}] at offset {offset:,}" for tp, offset in error.args[0].items()]
            raise InputError(f"{lost}: deleted by the topic's retention or by hand, or not written yet") from error
        except (TimeoutError, KafkaError, OSError) as error:
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
        )
        await consumer.start()
        consumer.assign(list(self._next))
        for tp, offset in self._next.items():
            consumer.seek(tp, offset)

    async def _fetch(self, wanted: TopicPartition) -> Fetched:
        """What comes next of a partition; an empty run that is at its end when there is nothing more by now."""
        assert self._consumer is not None
        fetcher, asked = self._consumer._fetcher, int(time.time() * 1000)
        state = self._consumer._subscription.subscription.assignment.state_value(wanted)
        while True:
            waiter = fetcher._create_fetch_waiter()
            for tp in list(fetcher._records):
                if tp != wanted:
                    leave(fetcher, tp)
                elif run := take(fetcher, tp, RUN_RECORDS):
                    waiter.cancel()
                    self._next[tp] = run.next
                    return run
            if wanted not in fetcher._records and (state.timestamp or 0) > asked and state.position >= state.lso:
                waiter.cancel()
                return Fetched(wanted.topic, wanted.partition, state.position, state.position, [], state.lso, -1, 0)
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
