"""What the group says was committed, held against what is known here: whose state of a partition is the newest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import TypeVar

from ..connectors.groups import Committed, Member
from ..connectors.records import Partition as TopicPartition
from ..connectors.topics import committed_by
from ..connectors.transactions import CycleProducer
from ..errors import HeadraceError, StreamStopped
from .align import BEFORE_ALL, Partition
from .declaration import Pipeline
from .journal import committed_as_told
from .slices import Role
from .standing import Standing
from .start_over import StartOver

log = logging.getLogger("headrace")

Answer = TypeVar("Answer")

FORGET_SECONDS = 2.0  # how often to ask whether others have gone on with partitions that left


def by_role(pipeline: Pipeline, told: Mapping[TopicPartition, Answer]) -> dict[Partition, Answer]:
    """What is told of our topics, by role; a user's agents may read others."""
    roles = pipeline.roles
    return {(roles[topic], number): of for (topic, number), of in told.items() if topic in roles}


def say_place(pipeline: Pipeline, partition: Partition) -> str:
    """In words: clicks[3]."""
    return f"{pipeline.topics[partition[0]]}[{partition[1]}]"


def check_committed(
    standing: Standing, version: int, committed: Mapping[Partition, int], mine: Mapping[Partition, int]
) -> None:
    """Raise StreamStopped where the group knows nothing of a partition of `mine` that was learned from.

    version  of the snapshot that it was learned from
    """
    engine = standing.engine
    pipeline = engine.pipeline
    learned = {p: offset for p, offset in standing.position.offsets.items() if engine.clock(*p) != BEFORE_ALL}
    lost = sorted(p for p in mine if p in learned and p not in committed)
    if lost:
        name, place = pipeline.name, say_place(pipeline, lost[0])
        raise StreamStopped(
            f"snapshot {version} of {name!r} stands at offset {learned[lost[0]]:,} of {place}, "
            f"but group {pipeline.group} has no committed offset there: was the group deleted, or is this "
            f"another broker? Set the group's offsets to the snapshot's (headrace snapshots show {name}), or give "
            "the pipeline another name to begin anew"
        )


def source(
    standing: Standing, here_slot: int, number: int, committed: Mapping[Partition, int], by: Mapping[Partition, str]
) -> tuple[int, dict[Role, int]] | None:
    """The slot that has the state of a partition as of its committed offsets, and these; None: it is here.

    here_slot  the slot whose `standing` this is
    by         what was written beside each committed offset: the slot that committed it

    Raises StreamStopped where the state here is ahead of what is committed.
    """
    pipeline = standing.engine.pipeline
    at = {role: offset for (role, of), offset in committed.items() if of == number}
    slots = {by.get((role, number), "") for role in at}
    slot = next((int(slot) for slot in slots if slot.isdigit()), None)
    here = standing.stands_at(number)
    if slot == here_slot:
        here = at | here  # of a topic that is not in here nothing was processed
    if all(here.get(role) == offset for role, offset in at.items()):
        return None  # nobody has gone on with it since
    role = max(at, key=lambda role: here.get(role, 0) - at[role])
    if here.get(role, 0) > at[role]:
        raise StreamStopped(
            f"{say_place(pipeline, (role, number))}: the model has learned up to offset {here[role]:,}, group "
            f"{pipeline.group} stands at {at[role]:,}: were its offsets set back? Set them to those of a snapshot "
            f"(headrace snapshots show {pipeline.name}), or give the pipeline another name to begin anew"
        )
    if slot is not None and slot != here_slot:
        return slot, at
    for role, offset in at.items():
        if here and here.get(role, 0) < offset:
            log.warning(
                "%s: the model has learned up to offset %s and goes on at %s: what lies between was not learned",
                say_place(pipeline, (role, number)), f"{here.get(role, 0):,}", f"{offset:,}",
            )  # fmt: skip
    return None


async def tell_again(
    pipeline: Pipeline,
    producer: CycleProducer,
    member: Member,
    given: Mapping[Partition, int | None],
    by: Mapping[Partition, str],
) -> StartOver | None:
    """Where the broker has forgotten what was committed, commit that again; the worker then has to start over.

    Kafka 4.1 can: a coordinator that becomes leader twice within the time that its log takes to load may load a
    part of it, and then answer with offsets of long ago. The journal knows better: its records were committed in
    the same transactions. Offsets that a user has set name no slot, and stay as they are. None: nothing is forgotten.

    given  the committed offsets as the group has told them
    by     what was written beside each
    """
    committed = {p: offset for p, offset in given.items() if offset is not None and by[p]}
    told, slots = await asyncio.to_thread(committed_as_told, pipeline, producer.address)
    behind = sorted(p for p, offset in committed.items() if offset < told.get(p, 0))
    if not behind:
        return None
    for number in {number for _, number in behind}:
        right = {
            (pipeline.topics[role], of): max(offset, told.get((role, of), 0))
            for (role, of), offset in committed.items()
            if of == number
        }
        await producer.commit_cycle({}, right, pipeline.group, member, str(slots[number]))
    first = behind[0]
    return StartOver(
        f"{say_place(pipeline, first)}: group {pipeline.group} stands at offset {committed[first]:,}, the journal "
        f"says that {told[first]:,} was committed: a broker has forgotten commits. Told it again"
    )


class Departed:
    """Lets go of the states of partitions that left us, once another slot has committed what comes after them.

    Called in the event loop.
    """

    def __init__(self, pipeline: Pipeline, address: str) -> None:
        self._pipeline, self._address = pipeline, address
        self._asking: asyncio.Task[dict[TopicPartition, Committed]] | None = None
        self._due = 0.0

    def forget(self, standing: Standing, slot: int) -> None:
        """Let go of what can be by the last answer of the group; ask it again every FORGET_SECONDS."""
        now = time.monotonic()
        if self._asking is not None and self._asking.done():
            task, self._asking = self._asking, None
            with contextlib.suppress(HeadraceError):  # then later
                for partition, told in by_role(self._pipeline, task.result()).items():
                    if told.metadata not in ("", str(slot)):
                        standing.left.pop(partition[1], None)
        elif self._asking is None and standing.left and now >= self._due:
            self._due = now + FORGET_SECONDS
            question = asyncio.to_thread(committed_by, self._address, self._pipeline.group)
            self._asking = asyncio.create_task(question)

    def abandon(self) -> None:
        """What is being answered is of an assignment that ends."""
        self._asking = None
