"""What must be true before a worker starts: what is missing is said at once, with the remedy."""

from __future__ import annotations

import logging
import socket

from redis.exceptions import ResponseError

from ..connectors.store import SnapshotStore
from ..connectors.topics import create_topics, partitions_of
from ..errors import HeadraceError, InputError, Unreachable
from .declaration import Pipeline
from .settings import WEB_HOST

log = logging.getLogger("headrace")

FOR_GOOD = ("no permissions", "DB index", "wrong kind of value")  # answers of Redis that stay as they are
JOURNAL_SETTINGS = {"retention.ms": "-1", "cleanup.policy": "delete"}


def check_redis(pipeline: Pipeline, address: str) -> None:
    """Warn of a Redis that may lose snapshots. Raises Unreachable and Refused as Redis answers."""
    if warning := SnapshotStore(address, pipeline.name).ping():
        log.warning("%s", warning)


def can_pass(error: HeadraceError) -> bool:
    """Whether a server that answers so may answer otherwise later, with no one mending our settings."""
    told = error.__cause__
    if isinstance(error, Unreachable) or getattr(told, "retriable", False):
        return True
    return isinstance(told, ResponseError) and not any(words in str(told) for words in FOR_GOOD)


def check_port(port: int) -> None:
    """Raise InputError when the port of the web server is taken, or not ours to take."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((WEB_HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} for /metrics cannot be used ({error.strerror}); give another with --web-port, one for "
                "each worker"
            ) from None


def prepare_topics(pipeline: Pipeline, address: str) -> int:
    """Check the input topics and create the output topics that are missing; returns the number of partitions.

    Raises InputError for a missing input topic and for numbers of partitions that do not fit, Unreachable and Refused
    as the broker answers.
    """
    events, out, inputs = pipeline.events.topic, pipeline.predictions, list(pipeline.topics.values())
    outputs = [out.topic, out.dead_letters]
    found = partitions_of(address, [*inputs, *outputs, pipeline.journal_topic])
    missing = [topic for topic in inputs if topic not in found]
    if missing:
        create = f"kafka-topics.sh --bootstrap-server {address} --create --partitions 4 --topic {missing[0]}"
        raise InputError(
            f"pipeline {pipeline.name!r} reads topic {' and '.join(missing)}, which broker {address} does not have. "
            f"A typo? Otherwise create it: {create}"
        )
    counts = {topic: found[topic] for topic in inputs}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
        raise InputError(
            f"pipeline {pipeline.name!r}: events and labels need the same number of partitions, so that a label lies "
            f"where its event is: {listed}. Make a new topic with as many partitions as the other, and copy"
        )
    partitions = found[events]
    for topic in outputs:
        if found.get(topic, partitions) < partitions:
            raise InputError(
                f"topic {topic} has {found[topic]} partitions, {events} has {partitions}: prediction and dead "
                f"letter go to the partition of their event. Add partitions to {topic}"
            )
    if found.get(pipeline.journal_topic, 1) != 1:
        raise InputError(
            f"topic {pipeline.journal_topic} has {found[pipeline.journal_topic]} partitions; the journal is one order "
            "of all cycles and needs exactly one. Delete the topic if it is not a journal, it is made anew"
        )
    create_topics(
        address,
        dict.fromkeys(outputs, partitions) | {pipeline.journal_topic: 1},
        settings={pipeline.journal_topic: JOURNAL_SETTINGS},
    )
    return partitions
