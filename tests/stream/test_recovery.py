"""From a snapshot to the end of the journal, over real topics, a real journal and real snapshots; without a worker."""

import asyncio
import json
import logging
import time
from zlib import crc32

import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import KafkaAdminClient

from headrace import Events, InputError, Labels, Pipeline, Predictions, StreamStopped, category, count, mean, numeric
from headrace.connectors.store import SnapshotStore
from headrace.connectors.topics import create_topics, end_offsets
from headrace.models import FTRL, LogisticRegression, StandardScaler
from headrace.models.base import REGISTRY
from headrace.stream import recovery, rereading
from headrace.stream.decode import Decoder
from headrace.stream.encode import JournalRecord
from headrace.stream.engine import Engine
from headrace.stream.journal import LAG_CYCLES
from headrace.stream.poison import without
from headrace.stream.recovery import Lost, adopt, check_journal, replay, restore
from headrace.stream.slices import Piece, Record, Slice, nested
from headrace.stream.snapshot import NAN_ALLOWED, pack
from headrace.stream.standing import BEGINNING, Position, Standing

PARTITIONS = 2


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


class InSteps(LogisticRegression):
    """Learns when so many examples are there, and at the end of each cycle."""

    updates, batch_size = "micro_batch", 64


def declared(name, also=(), model=None, **changes):
    return Pipeline(
        name=name,
        events=Events(f"{name}.visits", Visit, key="id", time="time", unit="s"),
        labels=Labels(f"{name}.sales", Sale, key="id", time="time", unit="s", value="sold", within="20m"),
        features=[
            numeric("price"), category("site"), count(by="site", over="1h", capacity=50),
            mean("label", by="site", over="6h", capacity=50), *also,
        ],
        model=model or StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.1, half_life="2h"), bits=10),
        predictions=Predictions(f"{name}.scores"),
        **changes,
    )  # fmt: skip


class World:
    """Topics with visits and sales, and a journal that slots write by hand."""

    def __init__(self, kafka, redis_url, name, **changes):
        self.kafka, self.redis_url, self.name = kafka, redis_url, name
        self.pipeline = declared(name, **changes)
        self.topics = {"events": f"{name}.visits", "labels": f"{name}.sales"}
        create_topics(kafka, dict.fromkeys(self.topics.values(), PARTITIONS) | {self.pipeline.journal_topic: 1})
        self.producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5)
        self.now = int(time.time() * 1000)  # an older one would be deleted by the retention
        self.records = {(role, p): [] for role in self.topics for p in range(PARTITIONS)}

    def produce(self, rows):
        """Send ("events" or "labels", row), each to the partition of its id."""
        for role, row in rows:
            p, value = crc32(row["id"].encode()) % PARTITIONS, json.dumps(row).encode()
            of = self.records[role, p]
            of.append(Record(len(of), self.now, None, value))
            self.producer.send(self.topics[role], value, partition=p, timestamp_ms=self.now)
        self.producer.flush()

    def write(self, *records):
        """Write records of the journal; returns the offset of the last."""
        for record in records:
            value = record if isinstance(record, bytes) else record.encode()
            offset = self.producer.send(self.pipeline.journal_topic, value, partition=0).get(10).offset
        return offset

    def pieces(self, *numbers, until=1.0, step=40):
        """What there is in some partitions up to a part of it, in turns of `step` records: (role, p, start, next)."""
        ends = {of: int(until * len(records)) for of, records in self.records.items() if of[1] in numbers}
        starts = range(0, max(ends.values(), default=0), step)
        return [
            Piece(*of, start, min(start + step, end)) for start in starts for of, end in ends.items() if start < end
        ]

    def store(self, slot=0):
        return SnapshotStore(self.redis_url, self.name, slot)

    def commit(self, slot, offsets):
        """Commit offsets of the group, as a worker of this slot would."""
        consumer = KafkaConsumer(bootstrap_servers=self.kafka, group_id=self.pipeline.group, enable_auto_commit=False)
        places = {TopicPartition(self.topics[role], p): offset for (role, p), offset in offsets.items()}
        consumer.assign(list(places))
        consumer.commit({tp: OffsetAndMetadata(offset, str(slot), -1) for tp, offset in places.items()})
        consumer.close()

    def delete(self, topic, partition, before):
        admin = KafkaAdminClient(bootstrap_servers=self.kafka)
        admin.delete_records({TopicPartition(topic, partition): before})
        admin.close()

    def replayed(self, standing=None, slot=0, lost="stop", committed=None, go_on=lambda done, goal: True):
        """A standing (a new one, as the newest snapshot has it) after its replay."""
        standing = standing or restore(Engine(self.pipeline), self.store(slot))
        assert replay(standing, self.decoders(), self.kafka, slot, committed or {}, lost, go_on)
        return standing

    def adopted(self, slot, wanted, lost="stop"):
        return adopt(self.pipeline, self.kafka, self.store, slot, wanted, lost, lambda done, goal: True)

    def decoders(self):
        return {role: Decoder(self.pipeline, role) for role in self.topics}


class Live:
    """A slot at work: every piece is decoded alone, every cycle is told to the journal."""

    def __init__(self, world, slot=0, owned=range(PARTITIONS)):
        self.world, self.slot = world, slot
        self.standing = Standing(Engine(world.pipeline))
        self.decoders = world.decoders()
        self.cycle(owned=list(owned))

    def cycle(self, *pieces, owned=None, adopted=None, poison=(), stop=None):
        """adopted: {number: state}. Returns the offset in the journal."""
        standing, engine = self.standing, self.standing.engine
        for number, left in (adopted or {}).items():
            standing.adopt(number, left)
        if owned is not None:
            standing.own(owned)
        done = []
        for role, p, start, next in pieces:
            records = self.world.records[role, p][start:next]
            batch = self.decoders[role].decode(Slice(role, p, start, next, records))
            batch = without(batch, {offset: "it raised" for of, number, offset in poison if (of, number) == (role, p)})
            done.append(engine.process(batch, start, next).piece)
            if engine.stop_reason is not None:
                stop = engine.stop_reason
                break
        engine.end_cycle()
        if stop is not None:
            engine.forgive()
        number = standing.position.cycle
        record = JournalRecord(self.slot, number, done, stop, owned, sorted(adopted or []), None, list(poison))
        at = self.world.write(record)
        offsets = {(piece.role, piece.partition): piece.next for piece in done}
        standing.position = Position({**standing.position.offsets, **offsets}, at + 1, number + 1)
        return at

    def work(self, pieces, each=3):
        """Some pieces a cycle."""
        for at in range(0, len(pieces), each):
            self.cycle(*pieces[at : at + each])

    def roll_back(self, muted, since):
        """The model is not finite: it dies, and the journal says so."""
        rollback = {"muted": nested(muted), "since": since}
        self.world.write(JournalRecord(self.slot, self.standing.position.cycle, rollback=rollback))

    def publish(self):
        arrays, meta = pack(self.standing)
        self.world.store(self.slot).publish(arrays, meta, self.standing.position.journal - 1, NAN_ALLOWED)


def cycle(number, *pieces, slot=0, **more):
    """A record of the journal; pieces of visits are (partition, start, next)."""
    return JournalRecord(slot, number, [Piece("events", *piece) for piece in pieces], **more)


def assert_same(one, two):
    (a, meta), (b, other) = pack(one), pack(two)
    assert meta == other | {"last_learned": meta["last_learned"]}
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)


@pytest.fixture
def world(kafka, redis_url, unique, visits_and_sales):
    """Some 150 visits in each of two partitions, with their sales."""
    world = World(kafka, redis_url, unique)
    world.produce(visits_and_sales(1, 300))
    yield world
    world.producer.close()


@pytest.fixture
def open_world(kafka, redis_url, unique, visits_and_sales):
    opened = []

    def open_one(**changes):
        world = World(kafka, redis_url, unique, **changes)
        world.produce(visits_and_sales(1, 300))
        opened.append(world)
        return world

    yield open_one
    for world in opened:
        world.producer.close()


# --- replay


def test_replay_processes_the_pieces_of_its_slot_alone(world):
    world.write(cycle(0, (0, 0, 50)), cycle(0, (1, 0, 99), slot=1), cycle(1, (0, 50, 60), (0, 60, 80)))
    standing = world.replayed()
    assert standing.position == Position({("events", 0): 80}, 3, 2)
    assert standing.engine.counters()["events"] == 80


@pytest.mark.parametrize("records", [7, 100, 8192])
def test_replay_gives_the_state_of_the_worker_to_the_bit(world, monkeypatch, records):
    monkeypatch.setattr(rereading, "FIRST_RECORDS", records)
    monkeypatch.setattr(rereading, "MOST_RECORDS", records)
    monkeypatch.setattr(recovery, "GROUP_STEPS", 5)
    live, pieces = Live(world), world.pieces(0, 1)
    live.work(pieces[:7])
    live.publish()
    live.work(pieces[7:])
    assert live.standing.engine.counters()["joined"] > 100
    assert min(len(part.pending) for part in live.standing.engine.partitions.values()) > 0
    restored = world.replayed()
    assert restored.version == 1
    assert_same(restored, live.standing)
    assert_same(world.replayed(Standing(Engine(world.pipeline))), live.standing)


def test_replay_ends_cycles_where_the_worker_ended_them(open_world, monkeypatch):
    monkeypatch.setitem(REGISTRY, "InSteps", InSteps)
    world = open_world(model=InSteps(bits=10))
    live, pieces = Live(world), world.pieces(0, 1, step=17)
    live.work(pieces, each=2)
    other = Live(world, 1)
    other.work(pieces, each=5)
    assert_same(world.replayed(), live.standing)
    assert any((pack(live.standing)[0][name] != array).any() for name, array in pack(other.standing)[0].items())


def test_records_that_the_worker_passed_over_do_not_move_the_clock(world, visits_and_sales):
    first = len(world.records["events", 0])
    world.produce([("events", {"id": "ahead 4", "time": 1_700_090_000, "site": "a"})] * 5)
    world.produce(visits_and_sales(2, 200, first=300))
    live, end = Live(world), len(world.records["events", 0])
    assert end > first + 50
    live.cycle(Piece("events", 0, 0, first), Piece("labels", 0, 0, 100))
    live.cycle(Piece("events", 0, first + 5, end - 10), Piece("labels", 0, 100, 150))
    live.cycle(Piece("events", 0, end - 10, end))
    assert live.standing.engine.counters()["pending"] > 50
    assert_same(world.replayed(), live.standing)


def test_replay_without_a_snapshot_says_that_it_begins_at_the_beginning(world, caplog):
    caplog.set_level(logging.INFO, "headrace")
    live = Live(world)
    live.work(world.pieces(0))
    assert_same(world.replayed(), live.standing)
    total = sum(live.standing.position.offsets.values())
    assert f"no snapshot of slot 0 in Redis: rebuilding from the journal, {total} records" in caplog.text


def test_first_start_of_a_pipeline_replays_nothing_and_says_nothing(world, caplog):
    caplog.set_level(logging.INFO, "headrace")
    standing = world.replayed()
    assert standing.position == BEGINNING
    assert [record for record in caplog.records if record.name == "headrace"] == []


def test_a_stop_in_the_journal_is_forgiven_where_it_lies(open_world):
    world = open_world(max_bad_share=0.05)
    first = len(world.records["events", 0])
    world.produce([("events", {"id": f"bad {i}", "time": "never"}) for i in range(200)])
    end = len(world.records["events", 0])
    live = Live(world)
    live.cycle(Piece("events", 0, 0, first))
    live.cycle(Piece("events", 0, first, end))
    at = live.standing.position.offsets["events", 0]
    assert first < at < end
    live.cycle(Piece("events", 0, at, end - 10))
    standing = world.replayed()
    assert standing.engine.stop_reason is None
    assert_same(standing, live.standing)


def test_a_stop_that_the_journal_does_not_tell_of_stops_nothing(open_world):
    world = open_world(max_bad_share=0.05)
    first = len(world.records["events", 0])
    world.produce([("events", {"id": f"bad {i}", "time": "never"}) for i in range(200)])
    end = len(world.records["events", 0])
    world.write(cycle(0, (0, 0, end)))  # by a worker that was told of another share
    engine = world.replayed().engine
    counters = engine.counters()
    assert (counters["events"], counters["bad_events"]) == (first, end - first)
    assert engine.stop_reason is None


def test_cycle_that_was_never_committed_is_left_out_and_the_one_that_was_done_in_its_place_counts(open_world):
    """The worker died between outputs and offsets, twice."""
    world = open_world(delivery="at_least_once")
    world.write(
        cycle(0, (0, 0, 30)),
        cycle(1, (0, 30, 90)),  # died; then again, with other cuts
        cycle(1, (0, 30, 50)),
        cycle(2, (0, 50, 70)),
        cycle(3, (0, 70, 95)),  # died
    )
    world.commit(0, {("events", 0): 70})
    standing = world.replayed()
    assert standing.engine.counters()["events"] == 70
    assert (standing.position.offsets, standing.position.cycle) == ({("events", 0): 70}, 3)
    world.write(cycle(3, (0, 70, 80)))
    assert replay(standing, world.decoders(), world.kafka, 0, {("events", 0): 80}, "stop", lambda *_: True)
    assert standing.engine.counters()["events"] == 80
    assert standing.position.cycle == 4


def test_cycles_that_ran_ahead_of_the_commit_of_their_offsets_are_left_out(open_world):
    """Outputs do not wait for the offsets before them: the worker may die with some cycles on the way."""
    world = open_world(delivery="at_least_once")
    world.write(
        cycle(0, (0, 0, 30)),
        cycle(1, (0, 30, 50)),  # died with these three; then again, in two
        cycle(2, (0, 50, 60)),
        cycle(3, (0, 60, 70)),
        cycle(1, (0, 30, 65)),
        cycle(2, (0, 65, 75)),
        cycle(3, (0, 75, 80)),  # died with these
        cycle(4, (0, 80, 95)),
    )
    world.commit(0, {("events", 0): 75})
    standing = world.replayed()
    assert standing.engine.counters()["events"] == 75
    assert (standing.position.offsets, standing.position.cycle) == ({("events", 0): 75}, 3)


def test_as_many_cycles_as_may_run_ahead_are_left_out(open_world):
    world = open_world(delivery="at_least_once")
    ahead = [cycle(1 + i, (0, 30 + i, 31 + i)) for i in range(LAG_CYCLES)]
    world.write(cycle(0, (0, 0, 30)), *ahead, *ahead)
    world.commit(0, {("events", 0): 30})
    assert world.replayed().position.offsets == {("events", 0): 30}


def test_very_first_cycle_that_was_never_committed_is_left_out(open_world):
    world = open_world(delivery="at_least_once")
    world.write(cycle(0, (0, 0, 30)))
    assert world.replayed().position == BEGINNING


def test_replay_that_shall_not_go_on_says_how_far_it_came_and_can_be_resumed(world, monkeypatch):
    monkeypatch.setattr(recovery, "SAY_SECONDS", 0.0)
    live = Live(world)
    for piece in ((0, 30), (30, 60), (60, 90)):
        live.cycle(Piece("events", 0, *piece))
    standing, told = Standing(Engine(world.pipeline)), []

    def until_30(done, goal):
        told.append((done, goal))
        return done < 30

    assert not replay(standing, world.decoders(), world.kafka, 0, {}, "stop", until_30)
    assert told == [(0, 90), (30, 90)]
    assert standing.position == Position({("events", 0): 30}, 2, 2)
    told.clear()
    assert world.replayed(standing, go_on=lambda done, goal: told.append((done, goal)) or True) is standing
    assert (told[0], told[-1]) == ((30, 60), (60, 60))
    assert_same(standing, live.standing)


def test_nothing_is_replayed_when_the_snapshot_is_the_last_word(world):
    live = Live(world)
    live.work(world.pieces(0, 1))
    live.publish()
    Live(world, 1, [])  # what other slots write is none of its business
    calls = []
    assert_same(world.replayed(go_on=lambda *told: calls.append(told) or True), live.standing)
    assert calls == []


# --- partitions that come and go


def test_partition_that_left_comes_back_as_it_was(world):
    live, pieces = Live(world), world.pieces(0, 1)
    of = {n: [piece for piece in pieces if piece.partition == n] for n in (0, 1)}
    live.work(of[0][:2] + of[1][:4])
    at = live.standing.stands_at(1)
    live.cycle(of[0][2], owned=[0])
    assert live.standing.stands_at(1) == at == {"events": of[1][2].next, "labels": of[1][3].next}
    assert set(live.standing.left) == {1}
    live.publish()
    live.work(of[0][3:5])
    live.cycle(owned=[1])
    live.work(of[1][4:])
    assert_same(world.replayed(), live.standing)
    assert_same(world.replayed(Standing(Engine(world.pipeline))), live.standing)
    assert world.replayed().engine.counters()["joined"] > 100


def test_partition_moves_to_another_slot_and_back_and_every_label_meets_its_prediction(world):
    """
    slot 0   p0 p0+p1 | p0    p0    | p0     p0 + p1
    slot 1            |    p1    p1 | p1 ->
    """
    zero, one = Live(world), Live(world, 1, [])
    pieces = world.pieces(0, 1, step=20)
    of = {n: [piece for piece in pieces if piece.partition == n] for n in (0, 1)}
    thirds = [len(of[1]) // 3, 2 * len(of[1]) // 3]
    zero.work(of[0][:4])
    zero.publish()
    zero.work(of[0][4:6] + of[1][: thirds[0]])

    zero.cycle(of[0][6], owned=[0])
    came = world.adopted(0, {1: zero.standing.left[1].offsets})
    for name, array in zero.standing.left[1].arrays.items():
        np.testing.assert_array_equal(came[1].arrays[name], array, name)
    one.cycle(owned=[1], adopted=came)
    one.publish()
    one.work(of[1][thirds[0] : thirds[1]])
    zero.work(of[0][7:9])
    assert_same(world.replayed(slot=1), one.standing)
    assert_same(world.replayed(slot=0), zero.standing)

    zero.publish()  # with partition 1 as it left, which nobody needs any more
    one.cycle(owned=[])
    back = world.adopted(1, {1: one.standing.left[1].offsets})
    zero.cycle(owned=[0, 1], adopted=back)
    zero.publish()
    zero.work(of[0][9:] + of[1][thirds[1] :])
    assert_same(world.replayed(slot=0), zero.standing)
    assert set(zero.standing.left) == set()

    counts = [live.standing.engine.counters() for live in (zero, one)]
    total = {name: counts[0][name] + counts[1][name] for name in counts[0]}
    assert total["events"] == sum(len(of) for (role, _), of in world.records.items() if role == "events")
    assert total["joined"] == sum(len(of) for (role, _), of in world.records.items() if role == "labels")
    assert min(count["joined"] for count in counts) > 20


def test_state_of_a_partition_is_taken_from_what_the_other_slot_kept_when_it_went_on(world):
    zero, pieces = Live(world), world.pieces(0, 1)
    zero.work(pieces[:6])
    left_at = zero.standing.stands_at(1)
    zero.cycle(owned=[0])
    zero.work([piece for piece in pieces[6:] if piece.partition == 0])
    zero.publish()
    world.delete(world.pipeline.journal_topic, 0, zero.standing.position.journal)  # the snapshot alone tells
    came = world.adopted(0, {1: left_at})
    assert came[1].offsets == left_at
    for name, array in zero.standing.left[1].arrays.items():
        np.testing.assert_array_equal(came[1].arrays[name], array, name)


def test_of_another_slots_journal_no_more_is_processed_than_needed(world):
    zero, pieces = Live(world), world.pieces(0, 1)
    zero.work(pieces[:6])
    wanted = zero.standing.stands_at(1)
    frozen = zero.standing.engine.partitions[1].state()
    zero.cycle(owned=[0])
    zero.work([piece for piece in pieces[6:] if piece.partition == 0])
    told: list[tuple[int, int]] = []
    came = adopt(
        world.pipeline, world.kafka, world.store, 0, {1: wanted}, "stop", lambda *so_far: told.append(so_far) or True
    )
    records = sum(piece.next - piece.start for piece in pieces[:6])
    assert told[-1] == (records, records)
    for name, array in frozen.items():
        np.testing.assert_array_equal(came[1].arrays[name], array, name)


def test_partition_of_which_only_one_topic_was_read_is_found(world):
    zero = Live(world)
    zero.cycle(Piece("events", 1, 0, 50))
    zero.cycle(owned=[0])
    came = world.adopted(0, {1: {"events": 50, "labels": 0}})
    assert len(came[1].arrays["pending/key"]) == 50
    assert came[1].offsets == {"events": 50, "labels": 0}


def test_offsets_that_were_set_back_are_told_from_a_state_that_is_gone(world):
    zero = Live(world)
    zero.cycle(Piece("events", 1, 0, 50))
    zero.publish()
    with pytest.raises(
        StreamStopped, match=r"visits\[1\]: slot 0 has processed it up to offset 50, group .* stands at 30: "
    ):
        world.adopted(0, {1: {"events": 30, "labels": 0}})
    with pytest.raises(Lost, match=r"20 of them in .*visits\[1\]"):
        world.adopted(0, {1: {"events": 70, "labels": 0}})
    assert world.adopted(0, {1: {"events": 70, "labels": 0}}, lost="earliest")[1].offsets == {"events": 70, "labels": 0}


def test_offsets_that_were_set_back_behind_a_snapshot_are_told_without_transactions_too(open_world):
    world = open_world(delivery="at_least_once")
    zero = Live(world)
    zero.cycle(Piece("events", 1, 0, 50))
    zero.publish()
    with pytest.raises(
        StreamStopped, match=r"visits\[1\]: slot 0 has learned up to offset 50, group .* stands at 30: "
    ):
        world.adopted(0, {1: {"events": 30, "labels": 0}})


def test_adoption_that_shall_not_go_on_gives_nothing(world, monkeypatch):
    monkeypatch.setattr(recovery, "SAY_SECONDS", 0.0)
    zero = Live(world)
    zero.work(world.pieces(0, 1))
    wanted = {1: zero.standing.stands_at(1)}
    assert adopt(world.pipeline, world.kafka, world.store, 0, wanted, "stop", lambda *_: False) == {}


def test_what_left_is_carried_over_to_a_declaration_with_another_feature(world):
    live, pieces = Live(world), world.pieces(0, 1)
    live.work(pieces[:6])
    live.cycle(owned=[0])
    live.publish()
    world.pipeline = declared(world.name, also=[category("id")])
    standing = restore(Engine(world.pipeline), world.store())
    before = live.standing.left[1]
    assert standing.stands_at(1) == before.offsets
    assert standing.left[1].arrays["pending/categories"].shape[1] == 2
    standing.own([0, 1])
    assert len(standing.engine.partitions[1].pending) == len(before.arrays["pending/key"]) > 0


# --- a transaction that some worker left open


def test_replay_waits_for_the_transaction_of_another_slot_that_lies_before_ours(world, monkeypatch, caplog):
    """slot 1: open ...................... committed
    slot 0:        cycle 1, cycle 2, dies
    """
    caplog.set_level(logging.INFO, "headrace")
    monkeypatch.setattr("headrace.stream.journal.SAY_SECONDS", 0.0)
    live = Live(world)
    live.work(world.pieces(0)[:3])
    topic = world.pipeline.journal_topic

    async def scenario():
        other = AIOKafkaProducer(bootstrap_servers=world.kafka, transactional_id=world.name)
        await other.start()
        await other.begin_transaction()
        await other.send_and_wait(topic, cycle(0, (1, 0, 9), slot=1).encode(), partition=0)
        await asyncio.to_thread(live.work, world.pieces(0)[3:])
        standing, asked, waits = Standing(Engine(world.pipeline)), asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def go_on(done, goal):
            if goal == 0:
                waits.append(len(waits))
                loop.call_soon_threadsafe(asked.set)
            return len(waits) != 3

        ask = lambda: replay(standing, world.decoders(), world.kafka, 0, {}, "stop", go_on)  # noqa: E731
        assert not await asyncio.to_thread(ask)  # told not to go on while it waits
        assert standing.position == BEGINNING
        asked.clear()
        replaying = asyncio.create_task(asyncio.to_thread(ask))
        await asyncio.wait_for(asked.wait(), 30)
        assert not replaying.done()
        assert standing.position == BEGINNING
        await other.commit_transaction()
        assert await asyncio.wait_for(replaying, 30)
        await other.stop()
        return standing

    assert_same(asyncio.run(scenario()), live.standing)
    assert f"waiting for the end of a transaction that some worker left open in {topic} at offset 2" in caplog.text


def test_state_that_lies_before_an_open_transaction_is_taken_over_at_once(world):
    zero, pieces = Live(world), world.pieces(0, 1)
    zero.work(pieces[:6])
    wanted = {1: zero.standing.stands_at(1)}

    async def scenario():
        dead = AIOKafkaProducer(bootstrap_servers=world.kafka, transactional_id=world.name)
        await dead.start()
        await dead.begin_transaction()
        await dead.send_and_wait(world.pipeline.journal_topic, cycle(0, slot=7).encode(), partition=0)
        came = await asyncio.wait_for(asyncio.to_thread(world.adopted, 0, wanted), 30)
        assert end_offsets(world.kafka, [(world.pipeline.journal_topic, 0)]) == {
            (world.pipeline.journal_topic, 0): zero.standing.position.journal
        }, "it was open all the time"
        await dead.abort_transaction()
        await dead.stop()
        return came

    came = asyncio.run(scenario())
    zero.standing.own([0])
    for name, array in zero.standing.left[1].arrays.items():
        np.testing.assert_array_equal(came[1].arrays[name], array, name)


def test_state_that_lies_behind_an_open_transaction_is_waited_for(world, monkeypatch):
    monkeypatch.setattr("headrace.stream.journal.SAY_SECONDS", 0.0)
    zero, pieces = Live(world), world.pieces(0, 1)
    zero.work(pieces[:3])

    async def scenario():
        dead = AIOKafkaProducer(bootstrap_servers=world.kafka, transactional_id=world.name)
        await dead.start()
        await dead.begin_transaction()
        await dead.send_and_wait(world.pipeline.journal_topic, cycle(0, slot=7).encode(), partition=0)
        await asyncio.to_thread(zero.work, pieces[3:6])
        wanted, waits, loop = {1: zero.standing.stands_at(1)}, asyncio.Event(), asyncio.get_running_loop()

        def go_on(done, goal):
            loop.call_soon_threadsafe(waits.set)
            return True

        fetching = asyncio.create_task(
            asyncio.to_thread(adopt, world.pipeline, world.kafka, world.store, 0, wanted, "stop", go_on)
        )
        await asyncio.wait_for(waits.wait(), 30)
        assert not fetching.done()
        await dead.abort_transaction()
        came = await asyncio.wait_for(fetching, 30)
        await dead.stop()
        return came

    came = asyncio.run(scenario())
    zero.standing.own([0])
    for name, array in zero.standing.left[1].arrays.items():
        np.testing.assert_array_equal(came[1].arrays[name], array, name)


# --- what is gone


def test_records_that_the_topic_holds_no_more_are_counted_and_the_rest_is_learned(world, caplog):
    live = Live(world)
    live.cycle(Piece("events", 0, 0, 50), Piece("events", 1, 0, 40))
    live.publish()
    live.cycle(Piece("events", 0, 50, 70), Piece("events", 1, 40, 60))
    live.cycle(Piece("events", 0, 70, 90), Piece("labels", 0, 0, 30))
    world.delete(world.topics["events"], 0, 75)
    standing = restore(Engine(world.pipeline), world.store())
    before, _ = pack(standing)
    before = {name: array.copy() for name, array in before.items()}
    said = (
        "25 records that it learned from are gone; "
        rf"{world.name}.visits\[0\] begins at offset 75, 25 of them lay before it\. "
    )
    with pytest.raises(Lost, match=said + r".*--lost earliest"):
        world.replayed(standing)
    for name, array in pack(standing)[0].items():
        np.testing.assert_array_equal(array, before[name], name)

    world.replayed(standing, lost="earliest")
    assert "slot 0 goes on with what is there: 25 records" in caplog.text
    other = restore(Engine(world.pipeline), world.store())
    expected = Live(world)
    expected.standing = other
    other.position = other.position._replace(offsets={**other.position.offsets, ("events", 0): 70})
    expected.cycle(Piece("events", 1, 40, 60))
    expected.cycle(Piece("events", 0, 75, 90), Piece("labels", 0, 0, 30))
    assert standing.position.offsets == live.standing.position.offsets == other.position.offsets
    assert standing.position.cycle == live.standing.position.cycle
    for name, array in pack(other)[0].items():
        np.testing.assert_array_equal(pack(standing)[0][name], array, name)


def test_cycles_that_the_journal_tells_no_more_are_counted_in_records(world):
    live = Live(world)
    live.cycle(Piece("events", 0, 0, 50), Piece("labels", 0, 0, 20))
    live.publish()
    live.cycle(Piece("events", 0, 50, 60), Piece("events", 1, 0, 11))
    last = live.cycle(Piece("events", 1, 11, 40))
    live.cycle(Piece("events", 0, 60, 70))
    world.commit(0, {("events", 0): 70, ("labels", 0): 20, ("events", 1): 40, ("labels", 1): 0})
    world.delete(world.pipeline.journal_topic, 0, last)
    match = (
        "21 records that it learned from are gone; "
        rf"the journal does not tell any more of 10 of them in {world.name}.visits\[0\]; "
        rf"the journal does not tell any more of 11 of them in {world.name}.visits\[1\]; "
        "cycles 2 to 2 are not in the journal"
    )
    with pytest.raises(Lost, match=match):
        world.replayed()
    standing = world.replayed(lost="earliest")
    assert standing.engine.counters()["events"] == 50 + 29 + 10
    assert standing.position.offsets == {("events", 0): 70, ("labels", 0): 20, ("events", 1): 40, ("labels", 1): 0}
    assert standing.position.cycle == live.standing.position.cycle


def test_cycle_that_the_journal_tells_and_the_group_not_yet_is_not_taken_back_where_others_are_lost(world):
    live = Live(world)
    live.cycle(Piece("events", 0, 0, 50))
    world.delete(world.pipeline.journal_topic, 0, live.standing.position.journal)
    live.cycle(Piece("events", 0, 50, 60))
    world.commit(0, {("events", 0): 50, ("labels", 0): 0})
    standing = world.replayed(lost="earliest")
    assert standing.stands_at(0) == {"events": 60, "labels": 0}
    assert standing.engine.counters()["events"] == 10


def test_journal_that_tells_nothing_any_more_leaves_what_the_group_holds(world):
    live = Live(world)
    live.cycle(Piece("events", 0, 0, 50), Piece("labels", 0, 0, 20))
    world.commit(0, {("events", 0): 50, ("labels", 0): 20})
    world.commit(1, {("events", 1): 30})
    world.delete(world.pipeline.journal_topic, 0, live.standing.position.journal)
    with pytest.raises(Lost, match=r"70 records .* of 50 of them in .*visits\[0\].*; .* of 20 of them in .*sales\[0\]"):
        world.replayed()
    standing = world.replayed(lost="earliest")
    assert standing.stands_at(0) == {"events": 50, "labels": 20}
    assert standing.stands_at(1) == {}
    assert standing.engine.counters()["events"] == 0


def test_journal_that_lost_nothing_of_this_slot_will_do(world):
    live = Live(world)
    live.cycle(Piece("events", 0, 0, 50))
    live.publish()
    other = Live(world, 1, [1])
    other.cycle(Piece("events", 1, 0, 50))
    live.cycle(Piece("events", 0, 50, 60))
    world.commit(0, {("events", 0): 60, ("labels", 0): 0})
    world.commit(1, {("events", 1): 50, ("labels", 1): 0})
    world.delete(world.pipeline.journal_topic, 0, other.standing.position.journal)
    assert_same(world.replayed(), live.standing)
    live.publish()
    world.delete(world.pipeline.journal_topic, 0, live.standing.position.journal)
    assert_same(world.replayed(), live.standing)


def test_partition_that_came_from_another_slot_and_is_in_no_snapshot_is_lost(world, caplog):
    zero, one = Live(world), Live(world, 1, [])
    zero.cycle(Piece("events", 1, 0, 60))
    zero.cycle(owned=[0])
    one.cycle(owned=[1], adopted=world.adopted(0, {1: {"events": 60, "labels": 0}}))
    one.publish()
    one.cycle(Piece("events", 1, 60, 80))
    one.cycle(Piece("labels", 1, 0, 50))
    assert_same(world.replayed(slot=1), one.standing)
    blank = Standing(Engine(world.pipeline))
    with pytest.raises(Lost, match="the predictions that waited in partitions 1 had come from another slot"):
        world.replayed(blank, slot=1)
    assert blank.engine.partitions == {}
    world.replayed(blank, slot=1, lost="earliest")
    assert blank.stands_at(1) == one.standing.stands_at(1)
    counters = blank.engine.counters()
    assert counters["events"] == 20
    assert counters["joined"] + counters["early"] == 50


def test_partition_that_came_and_was_not_begun_is_fetched_again(world):
    """The worker died before the snapshot that would have held it; what it had kept of old is of no use."""
    zero, one = Live(world), Live(world, 1, [])
    zero.cycle(Piece("events", 1, 0, 60))
    zero.cycle(owned=[0])
    one.cycle(owned=[1], adopted=world.adopted(0, {1: {"events": 60, "labels": 0}}))
    one.publish()
    one.cycle(Piece("events", 1, 60, 80))
    one.cycle(owned=[])
    zero.cycle(owned=[0, 1], adopted=world.adopted(1, {1: {"events": 80, "labels": 0}}))
    standing = world.replayed(slot=0)
    assert standing.stands_at(1) == {}
    assert standing.left == {}
    assert len(standing.engine.partitions[1].pending) == 0
    assert standing.position.cycle == zero.standing.position.cycle


# --- records that the model raised on


def test_poisoned_records_are_dead_letters_again(world):
    world.produce([("events", {"id": f"ahead {i}", "time": 1_700_100_000, "site": "a"}) for i in range(9)])
    live, pieces = Live(world), world.pieces(0, 1)
    ahead = len(world.records["events", 0]) - 2  # it would end every wait
    poison = [("events", 0, 3), ("events", 0, ahead), ("labels", 1, 12)]
    for at, piece in enumerate(pieces):
        mine = [p for p in poison if p[:2] == (piece.role, piece.partition) and piece.start <= p[2] < piece.next]
        live.cycle(piece, poison=mine)
        if at == 1:
            live.publish()
    counters = live.standing.engine.counters()
    assert (counters["dead_letters"], counters["bad_events"], counters["bad_labels"]) == (3, 2, 1)
    assert_same(world.replayed(), live.standing)
    assert_same(world.replayed(Standing(Engine(world.pipeline))), live.standing)


# --- a model that was no longer finite


def test_rollback_learns_nothing_from_the_snapshot_on_up_to_where_the_model_broke(world):
    """
    cycles    1 2 | 3 4    5 broke
    snapshot      1
    again           3 4 |  5 6         up to 5 nothing is learned
    """
    live, pieces = Live(world), world.pieces(0, 1)
    live.work(pieces[:8])
    live.publish()
    token = live.standing.position.journal - 1
    snapshot = {name: array.copy() for name, array in pack(live.standing)[0].items()}
    live.work(pieces[8:12])
    muted = live.standing.position.offsets | {(piece.role, piece.partition): piece.next for piece in pieces[12:15]}
    live.roll_back(muted, since=token + 1)

    live.standing = standing = world.replayed()
    assert standing.engine.muted
    learned = {name for name in snapshot if name.startswith(("shared/model/", "shared/aggregate/", "shared/group/"))}
    for name in learned:
        np.testing.assert_array_equal(pack(standing)[0][name], snapshot[name], name)
    assert standing.engine.counters()["events"] == sum(p.next - p.start for p in pieces[:12] if p.role == "events")
    live.work(pieces[12:15])
    assert not standing.engine.muted
    assert_same(world.replayed(), standing)
    assert_same(world.replayed(Standing(Engine(world.pipeline))), standing)  # which learns what came before snapshot 1
    live.work(pieces[15:18])
    live.publish()
    live.work(pieces[18:])
    assert_same(world.replayed(), standing)
    assert_same(world.replayed(Standing(Engine(world.pipeline))), standing)
    assert any((pack(standing)[0][name] != snapshot[name]).any() for name in learned if "model" in name)


def test_rollback_is_over_though_a_partition_gave_nothing_meanwhile(world):
    live, pieces = Live(world), world.pieces(0)
    live.cycle(Piece("events", 1, 0, 20))
    live.work(pieces[:4], each=2)
    live.publish()
    muted = live.standing.position.offsets | {(piece.role, 0): piece.next for piece in pieces[4:6]}
    live.roll_back(muted, since=live.standing.position.journal)
    live.standing = world.replayed()
    assert live.standing.engine.muted
    live.work(pieces[4:6])
    assert not live.standing.engine.muted


def test_rollback_is_part_of_a_snapshot_that_is_taken_before_its_end(world):
    live, pieces = Live(world), world.pieces(0, 1)
    live.work(pieces[:8])
    live.publish()
    token = live.standing.position.journal - 1
    muted = live.standing.position.offsets | {(piece.role, piece.partition): piece.next for piece in pieces[8:15]}
    live.roll_back(muted, since=token + 1)
    live.standing = world.replayed()
    live.work(pieces[8:10])
    live.publish()
    live.work(pieces[10:])
    assert_same(world.replayed(), live.standing)
    counters = live.standing.engine.counters()
    assert counters["unlearned"] > 0
    assert counters["examples"] + counters["unlearned"] == counters["joined"]


def test_state_that_comes_from_a_slot_that_was_rolled_back_is_that_of_the_slot(world):
    zero, pieces = Live(world), world.pieces(0, 1)
    zero.work(pieces[:8])
    zero.publish()
    token = zero.standing.position.journal - 1
    muted = zero.standing.position.offsets | {(piece.role, piece.partition): piece.next for piece in pieces[8:11]}
    zero.roll_back(muted, since=token + 1)
    zero.standing = world.replayed()
    zero.work(pieces[8:14])
    zero.cycle(owned=[0])
    wanted = zero.standing.left[1]
    came = world.adopted(0, {1: wanted.offsets})[1]
    for name, array in wanted.arrays.items():
        np.testing.assert_array_equal(came.arrays[name], array, name)


# --- the journal itself


def test_stop_in_the_journal_is_refused_until_told_to_resume(world):
    def check(slot=0, resume=False):
        return check_journal(world.pipeline, world.kafka, slot, BEGINNING, resume)

    assert check() == (0, None, False)
    world.write(cycle(0, (0, 0, 50)), cycle(1, (0, 50, 60), stop="too many bad"), cycle(0, (1, 0, 9), slot=1))
    assert check(slot=1) == (1, None, False)
    with pytest.raises(StreamStopped, match=r"stopped for a reason that is still there: too many bad\n.*--resume"):
        check()
    assert check(resume=True) == (2, "too many bad", False)
    world.write(cycle(2, (0, 60, 70), rollback={"muted": {"events": {"0": 70}}}))
    assert check() == (3, None, True)


def test_stop_is_refused_without_transactions_too(open_world):
    world = open_world(delivery="at_least_once")
    world.write(cycle(0, (0, 0, 50)), cycle(1, (0, 50, 60), stop="too many bad"))
    with pytest.raises(StreamStopped, match="--resume"):
        check_journal(world.pipeline, world.kafka, 0, BEGINNING, resume=False)


def test_journal_that_was_made_anew_is_noticed(world):
    world.write(cycle(0, (0, 0, 50)))
    with pytest.raises(InputError, match=r"journal ends at offset 1, the newest snapshot was taken at 9"):
        check_journal(world.pipeline, world.kafka, 0, Position({}, 9, 9), resume=False)


@pytest.mark.parametrize("numbers", [(0, 2), (0, 0), (1,), (0, 1, 0)])
def test_cycle_that_is_missing_or_there_twice_is_an_error(world, numbers):
    for at, number in enumerate(numbers):
        world.write(cycle(number, (0, 10 * at, 10 * at + 10)))
    standing = Standing(Engine(world.pipeline))
    with pytest.raises(InputError, match=rf"offset {len(numbers) - 1}: cycle {numbers[-1]} of slot 0, expected"):
        world.replayed(standing)
    assert standing.position == BEGINNING


@pytest.mark.parametrize("delivery", ["at_least_once"])
def test_missing_cycle_is_noticed_without_transactions_too(open_world, delivery):
    world = open_world(delivery=delivery)
    world.write(cycle(0, (0, 0, 10)), cycle(2, (0, 10, 20)), cycle(3, (0, 20, 30)))
    with pytest.raises(InputError, match="cycle 2 of slot 0, expected 1"):
        world.replayed(committed={("events", 0): 30})


@pytest.mark.parametrize("value", [b"", b"{}", b"[1]", b'{"format":1,"slot":0,"cycle":0,"pieces":[]}', b"\xff"])
def test_what_is_no_record_of_a_journal_is_an_error_that_says_where(world, value):
    world.write(cycle(0, (0, 0, 10)), value)
    with pytest.raises(
        InputError, match=rf"{world.name}.*journal\[0\]@1: (no record of a journal|a journal record of format 1)"
    ):
        world.replayed()
