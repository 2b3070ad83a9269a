"""From a snapshot's position to the committed offsets, over a real journal."""

import numpy as np
import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from headrace import InputError, StreamStopped
from headrace.stream.decode import Decoder
from headrace.stream.encode import JournalRecord
from headrace.stream.engine import Engine
from headrace.stream.recovery import check_journal, replay
from headrace.stream.slices import Piece
from headrace.stream.snapshot import BEGINNING, Position, pack


@pytest.fixture
def shop(open_shop, visits_and_sales):
    """Visits on two partitions, 100 and some each, without a worker."""
    shop = open_shop("recovery")
    shop.produce([row for row in visits_and_sales(1, 300) if row[0] == "events"])
    shop.create({shop.pipeline.journal_topic: 1})
    return shop


def journal(shop, *records):
    for record in records:
        shop.send(shop.pipeline.journal_topic, record.encode())


def cycle(number, *pieces, slot=0, **more):
    """A record of the journal; pieces of visits are (partition, start, next)."""
    return JournalRecord(slot, number, [Piece("events", *piece) for piece in pieces], **more)


def decoders(shop):
    return {role: Decoder(shop.pipeline, role) for role in ("events", "labels")}


def replayed(shop, until, position=BEGINNING, engine=None, go_on=lambda done, goal: True):
    """(engine, position) after a replay up to the offsets `until` of visits, by partition."""
    engine = engine or Engine(shop.pipeline)
    offsets = {("events", number): offset for number, offset in until.items()}
    return engine, replay(engine, decoders(shop), shop.kafka, 0, position, offsets, go_on)


def assert_same(one, two):
    for name, array in pack(one, BEGINNING)[0].items():
        np.testing.assert_array_equal(array, pack(two, BEGINNING)[0][name], name)


def test_replay_processes_the_pieces_of_its_slot_alone(shop):
    journal(shop, cycle(0, (0, 0, 50)), cycle(0, (1, 0, 99), slot=1), cycle(1, (0, 50, 60), (0, 60, 80)))
    engine, position = replayed(shop, {0: 80})
    assert position == Position({("events", 0): 80}, 3, 2)
    assert engine.counters()["events"] == 80
    half, at = replayed(shop, {0: 50})
    assert_same(engine, replayed(shop, {0: 80}, at, half)[0])


def test_cycle_that_was_never_committed_is_left_out_and_the_one_that_was_done_in_its_place_counts(shop):
    """As delivery="at_least_once" leaves them: the worker died between outputs and offsets, twice."""
    journal(
        shop,
        cycle(0, (0, 0, 30)),
        cycle(1, (0, 30, 90)),  # died; then again, with other cuts
        cycle(1, (0, 30, 50)),
        cycle(2, (0, 50, 70)),
        cycle(3, (0, 70, 95)),  # died
    )
    engine, position = replayed(shop, {0: 70})
    assert engine.counters()["events"] == 70
    assert (position.offsets, position.cycle) == ({("events", 0): 70}, 3)
    journal(shop, cycle(3, (0, 70, 80)))
    engine, position = replayed(shop, {0: 80}, position, engine)
    assert engine.counters()["events"] == 80
    assert position.cycle == 4


def test_state_of_a_partition_that_was_lost_is_dropped_where_the_worker_dropped_it(shop):
    journal(shop, cycle(0, (0, 0, 40), (1, 0, 40)), cycle(1, (0, 40, 60), disowned=[1]), cycle(2, (1, 70, 80)))
    engine, position = replayed(shop, {0: 60, 1: 80})
    assert position.offsets == {("events", 0): 60, ("events", 1): 80}
    assert engine.counters()["events"] == 110
    assert len(engine.partitions[1].pending) == 10


def test_replay_that_shall_not_go_on_says_how_far_it_came_and_can_be_resumed(shop, monkeypatch):
    monkeypatch.setattr("headrace.stream.recovery.WINDOW_CYCLES", 1)
    journal(shop, cycle(0, (0, 0, 30)), cycle(1, (0, 30, 60)), cycle(2, (0, 60, 90)))
    told = []
    engine, position = replayed(shop, {0: 90}, go_on=lambda done, goal: told.append((done, goal)) or False)
    assert told == [(30, 90)]
    assert position == Position({("events", 0): 30}, 1, 1)
    engine, position = replayed(shop, {0: 90}, position, engine)
    assert position == Position({("events", 0): 90}, 3, 3)
    assert_same(engine, replayed(shop, {0: 90})[0])


def test_nothing_is_replayed_when_the_snapshot_stands_at_the_committed_offsets(shop):
    position = Position({("events", 0): 50}, 7, 3)
    assert replayed(shop, {0: 50}, position)[1] == position


def test_stop_in_the_journal_is_refused_until_told_to_resume(shop):
    check_journal(shop.pipeline, shop.kafka, 0, BEGINNING, resume=False)
    journal(shop, cycle(0, (0, 0, 50)), cycle(1, (0, 50, 60), stop="too many bad"), cycle(5, (1, 0, 9), slot=1))
    check_journal(shop.pipeline, shop.kafka, 1, BEGINNING, resume=False)
    with pytest.raises(StreamStopped, match=r"stopped for a reason that is still there: too many bad\n.*--resume"):
        check_journal(shop.pipeline, shop.kafka, 0, BEGINNING, resume=False)
    check_journal(shop.pipeline, shop.kafka, 0, BEGINNING, resume=True)
    journal(shop, cycle(2, (0, 60, 70)))
    check_journal(shop.pipeline, shop.kafka, 0, BEGINNING, resume=False)


def test_journal_that_was_made_anew_is_noticed(shop):
    journal(shop, cycle(0, (0, 0, 50)))
    with pytest.raises(InputError, match=r"journal ends at offset 1, the newest snapshot was taken at 9"):
        check_journal(shop.pipeline, shop.kafka, 0, Position({}, 9, 9), resume=False)


def test_journal_that_has_lost_what_is_needed_is_noticed(shop):
    journal(shop, cycle(0, (0, 0, 50)), cycle(1, (0, 50, 60)))
    admin = KafkaAdminClient(bootstrap_servers=shop.kafka)
    admin.delete_records({TopicPartition(shop.pipeline.journal_topic, 0): 1})
    admin.close()
    with pytest.raises(InputError, match=r"journal begins at offset 1, the newest snapshot needs it from 0 on"):
        replayed(shop, {0: 60})
