"""From the newest snapshot to the committed offsets: the cycles between are processed again, as the journal says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ..connectors.reading import RangeReader, read_range
from ..connectors.records import Partition as TopicPartition
from ..connectors.store import SnapshotStore
from ..connectors.topics import end_offsets, first_offsets
from ..errors import InputError, StreamStopped
from .align import Partition
from .declaration import Pipeline
from .decode import Batch, Decoder
from .encode import JournalRecord
from .engine import Engine
from .remap import carry_over
from .slices import Piece, Role, Slice
from .snapshot import BEGINNING, Position, unpack

log = logging.getLogger("headrace")

WINDOW_CYCLES = 50  # whose input is read and decoded at one go
WINDOW_RECORDS = 100_000


class Restored(NamedTuple):
    """Where a worker begins.

    version       of the snapshot that was loaded; 0: there is none
    last_learned  the wall time at which its last example was learned; None: it has learned none
    """

    position: Position
    version: int
    last_learned: float | None


def restore(engine: Engine, store: SnapshotStore) -> Restored:
    """Load the newest whole snapshot, if there is one."""
    snapshot = store.load_newest_whole()
    if snapshot is None:
        return Restored(BEGINNING, 0, None)
    state, position = unpack(snapshot.arrays, snapshot.meta, engine.pipeline)
    state, changes = carry_over(state, engine)
    if changes:
        log.warning(
            "the declaration has changed since snapshot %d: %s; the rest is kept, and a replay gives what the new "
            "declaration would have learned",
            snapshot.version,
            ", ".join(changes),
        )
    engine.load(state)
    return Restored(position, snapshot.version, snapshot.meta.get("last_learned"))


def check_journal(pipeline: Pipeline, address: str, slot: int, position: Position, resume: bool) -> None:
    """Raise InputError when the journal is not the one that `position` speaks of, StreamStopped when this slot's last
    cycle ended in a stop and `resume` is not given: going on would stop again."""
    first, end = _bounds(pipeline, address)
    if position.journal > end:
        raise InputError(
            f"{pipeline.journal_topic} ends at offset {end:,}, the newest snapshot was taken at {position.journal:,}: "
            "was the topic deleted, or is this another broker? Give the pipeline another name to begin anew"
        )
    stop = None
    for record, _ in _cycles(pipeline, address, slot, max(first, position.journal), end):
        stop = record.stop
    if stop is not None and not resume:
        raise StreamStopped(
            f"pipeline {pipeline.name!r} stopped for a reason that is still there: {stop}\n"
            "Mend the cause, then start it with --resume: it goes on behind the records that were read"
        )


def replay(
    engine: Engine,
    decoders: Mapping[Role, Decoder],
    address: str,
    slot: int,
    position: Position,
    until: Mapping[Partition, int],
    go_on: Callable[[int, int], bool],
) -> Position:
    """Process again what this slot committed after `position`, until its partitions stand at the offsets of `until`.

    go_on(done, all) is told now and then how many records are done; when it returns False, the replay ends there.
    Returns the position that the engine has reached. Raises InputError when a topic no longer holds what has to be
    read again.
    """
    pipeline = engine.pipeline
    offsets, journal, cycle = dict(position.offsets), position.journal, position.cycle
    goal = sum(max(0, offset - offsets.get(partition, 0)) for partition, offset in until.items())
    if not goal:
        return position
    first, end = _bounds(pipeline, address)
    if first > journal:
        raise InputError(
            f"{pipeline.journal_topic} begins at offset {first:,}, the newest snapshot needs it from {journal:,} on: "
            "its retention must outlast the snapshots. Give the pipeline another name to begin anew"
        )
    done = 0
    for window in _windows(_cycles(pipeline, address, slot, journal, end, until)):
        batches = _decode(pipeline, decoders, address, [piece for record, _ in window for piece in record.pieces])
        for record, next in window:
            for number in record.disowned:
                engine.disown(number)
                offsets = {p: offset for p, offset in offsets.items() if p[1] != number}
            for piece in record.pieces:
                engine.own(piece.partition)
                engine.process(batches[piece.role, piece.partition], piece.start, piece.next)
                offsets[piece.role, piece.partition] = piece.next
                done += piece.next - piece.start
            engine.end_cycle()
            if record.stop is not None:
                engine.forgive()
            engine.stop_reason = None  # the journal says where the worker stopped
            journal, cycle = next, record.cycle + 1
        if not go_on(done, goal):
            break
    return Position(offsets, journal, cycle)


def _bounds(pipeline: Pipeline, address: str) -> tuple[int, int]:
    """The journal's first offset and its end."""
    at: TopicPartition = (pipeline.journal_topic, 0)
    return first_offsets(address, [at])[at], end_offsets(address, [at])[at]


def _cycles(
    pipeline: Pipeline, address: str, slot: int, start: int, end: int, until: Mapping[Partition, int] | None = None
) -> Iterator[tuple[JournalRecord, int]]:
    """This slot's cycles in the journal's offsets [start, end), each with the journal offset behind it.

    Without transactions the journal may hold a cycle whose offsets were never committed. The worker that came after
    did it again under the same number: of each number the last one counts, and the very last one of all only when it
    does not go beyond `until`.
    """
    held: tuple[JournalRecord, int] | None = None
    for record in read_range(address, pipeline.journal_topic, 0, start, end):
        told = JournalRecord.decode(record.value or b"")
        if told.slot != slot:
            continue
        if held is not None and told.cycle > held[0].cycle:
            yield held
        held = told, record.offset + 1
    if held is not None and all(
        piece.next <= (until or {}).get((piece.role, piece.partition), piece.next) for piece in held[0].pieces
    ):
        yield held


def _windows(cycles: Iterator[tuple[JournalRecord, int]]) -> Iterator[list[tuple[JournalRecord, int]]]:
    """Some cycles at a time: their input is read and decoded at one go."""
    window: list[tuple[JournalRecord, int]] = []
    size = 0
    for record, next in cycles:
        if record.disowned and window:  # clocks begin anew: what lies before is decoded apart
            yield window
            window, size = [], 0
        window.append((record, next))
        size += sum(piece.next - piece.start for piece in record.pieces)
        if len(window) >= WINDOW_CYCLES or size >= WINDOW_RECORDS:
            yield window
            window, size = [], 0
    if window:
        yield window


def _decode(
    pipeline: Pipeline, decoders: Mapping[Role, Decoder], address: str, pieces: list[Piece]
) -> dict[Partition, Batch]:
    """The input of many pieces, decoded whole: one batch for each partition."""
    topics: dict[Role, str] = {"events": pipeline.events.topic}
    if pipeline.labels is not None and pipeline.labels.topic is not None:
        topics["labels"] = pipeline.labels.topic
    spans: dict[Partition, tuple[int, int]] = {}
    for role, partition, start, next in pieces:
        begin, end = spans.get((role, partition), (start, next))
        spans[role, partition] = min(begin, start), max(end, next)
    if not spans:
        return {}
    starts = {(topics[role], partition): start for (role, partition), (start, _) in spans.items()}
    with RangeReader(address, starts) as reader:
        return {
            (role, partition): decoders[role].decode(
                Slice(role, partition, start, next, reader.read(topics[role], partition, until=next))
            )
            for (role, partition), (start, next) in spans.items()
        }
