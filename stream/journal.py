"""What the journal tells of one slot: its cycles, in the order in which they were committed."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import NamedTuple

from kafka import IsolationLevel, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec

from ..connectors.reading import read_range
from ..connectors.topics import ask
from ..errors import InputError
from .align import Partition
from .declaration import Pipeline
from .encode import JournalRecord

log = logging.getLogger("headrace")

LAG_CYCLES = 64  # written without transactions before their offsets are committed, at most
LOOK_SECONDS = 0.05
SAY_SECONDS = 1.0
REMIND_SECONDS = 30.0


class Told(NamedTuple):
    """One cycle, and the journal offset of the record that tells of it."""

    cycle: JournalRecord
    offset: int


class Extent(NamedTuple):
    """What the journal holds: offsets from `first` on, up to `stable` to be read, up to `end` written."""

    first: int
    stable: int
    end: int


def extent(pipeline: Pipeline, address: str) -> Extent:
    """What the journal holds now."""
    place = TopicPartition(pipeline.journal_topic, 0)
    offsets = (
        (OffsetSpec.LATEST, IsolationLevel.READ_UNCOMMITTED),  # first: what ends meanwhile is no hindrance
        (OffsetSpec.LATEST, IsolationLevel.READ_COMMITTED),
        (OffsetSpec.EARLIEST, IsolationLevel.READ_COMMITTED),
    )

    def question(admin: KafkaAdminClient) -> Extent:
        end, stable, first = (
            admin.list_partition_offsets({place: which}, isolation_level=level)[place].offset
            for which, level in offsets
        )
        return Extent(first, stable, end)

    return ask(address, question)


def settled(pipeline: Pipeline, address: str, go_on: Callable[[], bool] = lambda: True) -> Extent | None:
    """The journal as it is now, once all that is written by now can be read; None when go_on, asked every second, said
    no.

    Nothing behind an open transaction can be read, whosever it is. That of a worker that died stays open for a while.
    """
    now = extent(pipeline, address)
    end, said, asked = now.end, -REMIND_SECONDS, (began := time.monotonic())
    while now.stable < end:
        time.sleep(LOOK_SECONDS)
        now, clock = extent(pipeline, address), time.monotonic()
        if clock - began > SAY_SECONDS and clock - said > REMIND_SECONDS:
            said = clock
            log.info(
                "waiting for the end of a transaction that some worker left open in %s at offset %s; the broker ends "
                "it within half a minute",
                pipeline.journal_topic, f"{now.stable:,}",
            )  # fmt: skip
        if clock - asked > SAY_SECONDS:
            asked = clock
            if not go_on():
                return None
    return Extent(now.first, end, end)


def committed_as_told(pipeline: Pipeline, address: str) -> tuple[dict[Partition, int], dict[int, int]]:
    """Up to where each topic partition was processed, and by partition number which slot did so last.

    In transactions this is what was committed to the group, whatever the group says. Reads the whole journal.
    """
    told: dict[Partition, int] = {}
    slots: dict[int, int] = {}
    journal = settled(pipeline, address)
    assert journal is not None
    for record in read_range(address, pipeline.journal_topic, 0, journal.first, journal.end):
        cycle = JournalRecord.decode(record.value)
        for piece in cycle.pieces:
            told[piece.role, piece.partition], slots[piece.partition] = piece.next, cycle.slot
    return told, slots


def cycles(
    pipeline: Pipeline, address: str, slot: int, start: int, end: int, committed: Mapping[Partition, int] | None
) -> Generator[Told, None, None]:
    """This slot's cycles in the journal's offsets [start, end).

    Without transactions the journal may end in cycles whose offsets were never committed, LAG_CYCLES at most. The
    worker that came after did them again, from the first one's number on: what comes under a number takes the place of
    all that came under it and above. The last ones of all count up to the first that goes beyond `committed`, the
    offsets of the group (None: all of them count).
    """
    told = _told(pipeline, address, slot, start, end)
    if pipeline.delivery == "exactly_once":
        yield from told
        return
    held: deque[Told] = deque()
    for following in told:
        while held and held[-1].cycle.cycle >= following.cycle.cycle:
            held.pop()
        held.append(following)
        if len(held) > LAG_CYCLES:
            yield held.popleft()
    for following in held:
        if committed is not None and any(
            p.next > committed.get((p.role, p.partition), 0) for p in following.cycle.pieces
        ):
            return
        yield following


def _told(pipeline: Pipeline, address: str, slot: int, start: int, end: int) -> Iterator[Told]:
    if start >= end:
        return
    for record in read_range(address, pipeline.journal_topic, 0, start, end):
        try:
            cycle = JournalRecord.decode(record.value)
        except InputError as error:
            raise InputError(f"{pipeline.journal_topic}[0]@{record.offset}: {error}") from None
        if cycle.slot == slot:
            yield Told(cycle, record.offset)
