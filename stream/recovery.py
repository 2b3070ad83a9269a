"""From the newest snapshot to the end of the journal: the cycles between are processed again, as the journal says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from ..connectors.reading import read_range
from ..connectors.store import SnapshotStore
from ..connectors.topics import committed_by, first_offsets, partitions_of
from ..errors import InputError, StreamStopped
from .align import Partition
from .declaration import Pipeline
from .decode import Decoder
from .encode import JournalRecord
from .engine import Engine
from .journal import Extent, Told, cycles, extent, settled
from .remap import carry_over
from .rereading import Part, Rereader
from .slices import Role, flat
from .snapshot import unpack, unpack_left
from .standing import Left, Position, Standing
from .survey import Survey

log = logging.getLogger("headrace")

Item = TypeVar("Item")
GoOn = Callable[[int, int], bool]  # is told (records done, records in all) about every second; False: stop here

SAY_SECONDS = 1.0
LAST_CYCLES = 10_000  # of the journal, that are looked at where somebody may have gone on with a partition
GROUP_ROWS = 8_192  # handed from the thread that decodes to the one that learns
GROUP_STEPS = 1_024


class Lost(StreamStopped):
    """A state cannot be rebuilt in full: what it was learned from is gone."""


class Pending(NamedTuple):
    """What the journal tells of a slot behind its newest snapshot.

    stop      why it stopped last, if it did and is told to go on nevertheless
    rollback  whether a model that was no longer finite is left behind
    """

    cycles: int
    stop: str | None
    rollback: bool


def restore(engine: Engine, store: SnapshotStore) -> Standing:
    """Load the newest whole snapshot of a slot into `engine`, which has learned nothing yet, if there is one."""
    snapshot = store.load_newest_whole()
    if snapshot is None:
        return Standing(engine)
    state, position = unpack(snapshot.arrays, snapshot.meta, engine.pipeline, signed=snapshot.signed)
    left = unpack_left(snapshot.arrays, snapshot.meta)
    frozen = {number: of.arrays for number, of in left.items()}
    state, changes = carry_over(replace(state, partitions=state.partitions | frozen), engine)
    if changes:
        log.warning(
            "the declaration has changed since snapshot %d: %s; the rest is kept, and a replay gives what the new "
            "declaration would have learned",
            snapshot.version,
            ", ".join(changes),
        )
    left = {number: Left(state.partitions.pop(number), of.offsets) for number, of in left.items()}
    engine.load(state)
    return Standing(engine, position, left, snapshot.version, snapshot.meta.get("last_learned"))


def check_journal(pipeline: Pipeline, address: str, slot: int, position: Position, resume: bool) -> Pending:
    """Raise InputError when the journal is not the one that `position` speaks of, StreamStopped when this slot's last
    cycle ended in a stop and `resume` is not given: going on would stop again."""
    held = settled(pipeline, address)
    assert held is not None
    if position.journal > held.end:
        raise InputError(
            f"{pipeline.journal_topic} ends at offset {held.end:,}, the newest snapshot was taken at "
            f"{position.journal:,}: was the topic deleted, or is this another broker? Give the pipeline another name "
            "to begin anew"
        )
    count, stop, rollback = 0, None, False
    for told in cycles(pipeline, address, slot, max(held.first, position.journal), held.end, None):
        count, stop, rollback = count + 1, told.cycle.stop, rollback or told.cycle.rollback is not None
    if stop is not None and not resume:
        raise StreamStopped(
            f"pipeline {pipeline.name!r} stopped for a reason that is still there: {stop}\n"
            "Mend the cause, then start it with --resume: it goes on behind the records that were read"
        )
    return Pending(count, stop, rollback)


def replay(
    standing: Standing,
    decoders: Mapping[Role, Decoder],
    address: str,
    slot: int,
    committed: Mapping[Partition, int],
    lost: str,
    go_on: GoOn,
) -> bool:
    """Process again, in `standing`, what this slot committed after it; False when go_on said stop: call it again.

    The slot's own last transaction must have ended. Others' are waited for, for what lies behind one cannot be read.
    committed  offsets of the group that are known already; for others, and for whose they are, the group is asked
    lost       "stop": raise Lost when something is gone that was learned from, before anything is processed;
               "earliest": go on with what is there
    go_on      is called between two cycles; (0, 0) while there is nothing to do but wait

    Raises InputError for a journal that is broken. What the engine raises is raised here.
    """
    return _replay(standing, decoders, address, slot, committed, {}, lost, go_on)


def adopt(
    pipeline: Pipeline,
    address: str,
    store_of: Callable[[int], SnapshotStore],
    slot: int,
    wanted: Mapping[int, Mapping[Role, int]],
    lost: str,
    go_on: GoOn,
) -> dict[int, Left]:
    """The states of partitions as they were when `slot` had committed the offsets `wanted`, and not more.

    From that slot's newest snapshot and journal, in an engine of its own, which is dropped afterwards: what waits for
    a label holds features that were made from the other slot's aggregates. Empty when go_on said stop.

    Raises Unreachable and Refused when trying again can help; Lost as `replay`, and when the journal does not tell how
    the partitions came to stand there.
    """
    decoders = {role: Decoder(pipeline, role) for role in pipeline.topics}
    offsets = {(role, number): offset for number, of in wanted.items() for role, offset in of.items()}
    standing = restore(Engine(pipeline), store_of(slot))
    if pipeline.delivery == "exactly_once":
        _check_that_nobody_went_on(pipeline, address, standing.position.journal, offsets)
    if any(standing.stands_at(number) != of for number, of in wanted.items()) and not _replay(
        standing, decoders, address, slot, offsets, offsets, lost, go_on
    ):
        return {}
    standing.own(())
    for number, of in wanted.items():
        for role, at in standing.stands_at(number).items():
            if at > of.get(role, at):
                raise StreamStopped(
                    f"{pipeline.topics[role]}[{number}]: slot {slot} has learned up to offset {at:,}, group "
                    f"{pipeline.group} stands at {of[role]:,}: were its offsets set back? Set them to those of a "
                    f"snapshot (headrace snapshots show {pipeline.name}), or give the pipeline another name to begin "
                    "anew"
                )
        standing.skip_to(number, of)
    standing.own(())
    return {number: standing.left[number] for number in wanted}


def _check_that_nobody_went_on(pipeline: Pipeline, address: str, start: int, wanted: Mapping[Partition, int]) -> None:
    """Raise StreamStopped where the journal, from `start` on and at its end, tells of more than the group: see
    `claims.tell_again`. What comes of the partitions would otherwise be predicted and learned again."""
    journal = extent(pipeline, address)
    start = max(journal.first, min(start, journal.end - LAST_CYCLES))
    for record in read_range(address, pipeline.journal_topic, 0, start, journal.stable):
        cycle = JournalRecord.decode(record.value)
        for piece in cycle.pieces:
            at = wanted.get((piece.role, piece.partition), piece.next)
            if piece.next > at:
                raise StreamStopped(
                    f"{pipeline.topics[piece.role]}[{piece.partition}]: slot {cycle.slot} has processed it up to "
                    f"offset {piece.next:,}, group {pipeline.group} stands at {at:,}: were its offsets set back? Set "
                    f"them to those of a snapshot (headrace snapshots show {pipeline.name}), or give the pipeline "
                    "another name to begin anew"
                )


def _replay(
    standing: Standing,
    decoders: Mapping[Role, Decoder],
    address: str,
    slot: int,
    committed: Mapping[Partition, int],
    wanted: Mapping[Partition, int],
    lost: str,
    go_on: GoOn,
) -> bool:
    """As `replay`; ends before the end of the journal where the partitions of `wanted` stand at these offsets."""
    pipeline = standing.engine.pipeline
    topics = pipeline.topics
    roles = {topic: role for role, topic in topics.items()}
    group = {
        (roles[topic], number): told
        for (topic, number), told in committed_by(address, pipeline.group).items()
        if topic in roles
    }
    committed = {**{partition: told.offset for partition, told in group.items()}, **committed}
    survey = None
    if wanted:  # they may lie before a transaction that is open
        survey = _survey(standing, address, topics, slot, extent(pipeline, address), committed, wanted)
    if survey is None or not survey.reaches(wanted):
        if (journal := settled(pipeline, address, lambda: go_on(0, 0))) is None:
            return False
        survey = _survey(standing, address, topics, slot, journal, committed, wanted)
    held = wanted or {partition: told.offset for partition, told in group.items() if told.metadata == str(slot)}
    survey.compare(held)
    loss = survey.loss(topics)
    if loss is not None:
        _say_lost(pipeline, slot, loss, lost)
    if survey.cycles and not standing.position.journal:
        log.info(
            "no snapshot of slot %d in Redis: rebuilding from the journal, %s records", slot, f"{survey.records:,}"
        )
    with closing(cycles(pipeline, address, slot, survey.start, survey.end, committed)) as following:
        if survey.cycles and not _process(standing, following, survey, topics, decoders, address, go_on):
            return False
    if loss is not None:
        for number in {number for _, number in held}:
            at = standing.stands_at(number)  # a commit may be readable in the journal before it is in the group
            standing.skip_to(
                number, {role: max(offset, at.get(role, 0)) for (role, of), offset in held.items() if of == number}
            )
    return True


def _survey(
    standing: Standing,
    address: str,
    topics: Mapping[Role, str],
    slot: int,
    journal: Extent,
    committed: Mapping[Partition, int],
    wanted: Mapping[Partition, int],
) -> Survey:
    """What lies ahead, up to the end of the journal or to where `wanted` is reached."""
    start = max(journal.first, standing.position.journal)
    survey = Survey(standing, _first(address, topics) if start < journal.stable else {}, start, start)
    trimmed = journal.first > standing.position.journal
    for told in cycles(standing.engine.pipeline, address, slot, start, journal.stable, committed):
        survey.add(told, trimmed)
        if survey.reaches(wanted):
            break
    return survey


def _first(address: str, topics: Mapping[Role, str]) -> dict[Partition, int]:
    """The first offset that each partition holds."""
    roles = {topic: role for role, topic in topics.items()}
    places = [(topic, number) for topic, count in partitions_of(address, roles).items() for number in range(count)]
    return {(roles[topic], number): offset for (topic, number), offset in first_offsets(address, places).items()}


def _say_lost(pipeline: Pipeline, slot: int, loss: str, lost: str) -> None:
    if lost != "earliest":
        raise Lost(
            f"slot {slot} of pipeline {pipeline.name!r} cannot be brought back to where it was: {loss}. Start the "
            "worker with --lost earliest to go on with what is there, or give the pipeline another name to begin anew"
        )
    log.warning("slot %d goes on with what is there: %s", slot, loss)


class _Begin(NamedTuple):
    """What a cycle says before its pieces."""

    told: Told


class _End(NamedTuple):
    """All pieces of a cycle were handed out."""

    told: Told


_Step = _Begin | Part | _End


def _process(
    standing: Standing,
    following: Iterator[Told],
    survey: Survey,
    topics: Mapping[Role, str],
    decoders: Mapping[Role, Decoder],
    address: str,
    go_on: GoOn,
) -> bool:
    """Process cycles; what comes next is read and decoded in another thread meanwhile."""
    engine, done, said = standing.engine, 0, time.monotonic()
    rollbacks = list(survey.rollbacks)
    with (
        Rereader(address, topics, decoders, survey.starts, survey.ends, survey.poison) as reader,
        closing(_grouped(_steps(following, survey, reader))) as groups,
        closing(_ahead(groups)) as ready,
    ):
        for group in ready:
            for step in group:
                if isinstance(step, Part):
                    at = step.start
                    while at < step.next:  # a stop that the journal does not tell of stops nothing
                        at = engine.process(step.batch, at, step.next, later=True).piece.next
                    done += step.next - step.start
                elif isinstance(step, _Begin):
                    _begin(standing, step.told, rollbacks)
                else:
                    _end(standing, step.told)
                    if time.monotonic() - said > SAY_SECONDS:
                        said = time.monotonic()
                        if not go_on(done, survey.records):
                            return False
    go_on(done, survey.records)
    return True


def _begin(standing: Standing, told: Told, rollbacks: list[dict[str, Any]]) -> None:
    cycle = told.cycle
    if cycle.owned is not None:
        standing.own(cycle.owned)
    for number in cycle.adopted:
        standing.begin(number)  # the state that came is in no snapshot
    for rollback in [r for r in rollbacks if r.get("since", 0) <= told.offset]:
        rollbacks.remove(rollback)
        offsets, at = flat(rollback["muted"]), standing.position.offsets
        standing.engine.mute({partition: until for partition, until in offsets.items() if at.get(partition, 0) < until})
    for piece in cycle.pieces:
        standing.engine.own(piece.partition)


def _end(standing: Standing, told: Told) -> None:
    engine, cycle = standing.engine, told.cycle
    engine.end_cycle()
    if cycle.stop is not None:
        engine.forgive()
    engine.stop_reason = None  # the journal says where the worker stopped
    reached: dict[Partition, int] = {(p.role, p.partition): p.next for p in cycle.pieces}
    standing.position = Position({**standing.position.offsets, **reached}, told.offset + 1, cycle.cycle + 1)


def _steps(following: Iterator[Told], survey: Survey, reader: Rereader) -> Iterator[_Step]:
    for told in following:
        yield _Begin(told)
        for piece in told.cycle.pieces:
            yield from reader.parts(survey.clip(piece))
        yield _End(told)


def _grouped(steps: Iterator[_Step]) -> Generator[list[_Step], None, None]:
    """Steps in lists: one that is handed over to another thread has its price."""
    group: list[_Step] = []
    rows = 0
    for step in steps:
        group.append(step)
        if isinstance(step, Part):
            rows += step.next - step.start
        if rows >= GROUP_ROWS or len(group) >= GROUP_STEPS:
            yield group
            group, rows = [], 0
    yield group


def _ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items, the next of which is made in another thread while one is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="headrace-replay") as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
