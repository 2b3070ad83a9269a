"""From the newest snapshot to the committed offsets: the cycles between are processed again, as the journal tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..connectors.reading import RangeReader, read_last, read_range
from ..connectors.records import Partition as TopicPartition
from ..connectors.store import SnapshotStore
from ..connectors.topics import end_offsets, first_offsets
from ..errors import InputError, StreamStopped
from .align import Partition
from .declaration import Pipeline
from .decode import Batch, Decoder
from .encode import JournalRecord
from .engine import Engine
from .slices import Piece, Role, Slice
from .snapshot import BEGINNING, Position, unpack

WINDOW_CYCLES = 50  # journal records whose input is read and decoded at one go
WINDOW_RECORDS = 100_000


def restore(engine: Engine, store: SnapshotStore) -> tuple[Position, int]:
    """Load the newest whole snapshot; returns its position and version, or the beginning and 0 when there is none."""
    snapshot = store.load_newest_whole()
    if snapshot is None:
        return BEGINNING, 0
    state, position = unpack(snapshot.arrays, snapshot.meta, engine.pipeline)
    engine.load(state)
    return position, snapshot.version


def refuse_after_stop(pipeline: Pipeline, address: str, slot: int) -> None:
    """Raise StreamStopped when the last cycle of the journal ended in a stop: going on would stop again."""
    last = read_last(address, pipeline.journal_topic, 0)
    record = JournalRecord.decode(last.value) if last is not None and last.value else None
    if record is not None and record.slot == slot and record.stop is not None:
        raise StreamStopped(
            f"pipeline {pipeline.name!r} stopped for a reason that is still there: {record.stop}\n"
            "Mend the cause, then start it with --resume: it goes on behind the records that were read"
        )


def replay(
    engine: Engine,
    decoders: Mapping[Role, Decoder],
    address: str,
    slot: int,
    position: Position,
    until: Mapping[Partition, int],
    say: Callable[[int, int], None],
) -> Position:
    """Process again what this slot committed after `position`, until its partitions stand at the offsets of `until`.

    say(done, all) is told how many records are done, now and then. Raises InputError when a topic no longer holds
    what has to be read again.
    """
    pipeline = engine.pipeline
    offsets, journal, cycle = dict(position.offsets), position.journal, position.cycle
    if all(offsets.get(partition, 0) >= offset for partition, offset in until.items()):
        return position
    goal = sum(max(0, offset - offsets.get(partition, 0)) for partition, offset in until.items())
    done = 0
    for window, journal_next in _windows(pipeline, address, slot, journal):
        batches = _decode(pipeline, decoders, address, [piece for record in window for piece in record.pieces])
        for record in window:
            for piece in record.pieces:
                engine.own(piece.partition)
                engine.process(batches[piece.role, piece.partition], piece.start, piece.next)
                offsets[piece.role, piece.partition] = piece.next
                done += piece.next - piece.start
            engine.end_cycle()
            if record.stop is not None:
                engine.forgive()
            cycle = record.cycle + 1
        journal = journal_next
        say(done, goal)
    return Position(offsets, journal, cycle)


def _windows(pipeline: Pipeline, address: str, slot: int, journal: int) -> Iterator[tuple[list[JournalRecord], int]]:
    """This slot's cycles from journal offset `journal` to the journal's end, some at a time, and where each ends."""
    at: TopicPartition = (pipeline.journal_topic, 0)
    first, end = first_offsets(address, [at])[at], end_offsets(address, [at])[at]
    if first > journal:
        raise InputError(
            f"{pipeline.journal_topic} begins at offset {first:,}, the newest snapshot needs it from {journal:,} on"
        )
    window: list[JournalRecord] = []
    size = 0
    for record in read_range(address, *at, journal, end):
        told = JournalRecord.decode(record.value or b"")
        if told.slot == slot:
            window.append(told)
            size += sum(piece.next - piece.start for piece in told.pieces)
        if len(window) >= WINDOW_CYCLES or size >= WINDOW_RECORDS:
            yield window, record.offset + 1
            window, size = [], 0
    yield window, end


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
