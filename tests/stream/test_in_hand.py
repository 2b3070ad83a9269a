"""What a worker has in hand: taken in turn, at its end or silent, acked once it is committed; no server is needed."""

import time

import msgspec
import pytest

from headrace import Events, Labels, Pipeline, Predictions, numeric
from headrace.connectors.records import Fetched, Haul, Record
from headrace.models import LogisticRegression
from headrace.stream import in_hand
from headrace.stream.align import Aligner
from headrace.stream.decode import Decoder
from headrace.stream.in_hand import InHand


class Click(msgspec.Struct):
    id: str
    price: float
    sold: bool | None = None


PIPELINE = Pipeline(
    name="clicks",
    events=Events("clicks", Click, key="id"),
    labels=Labels(value="sold"),
    features=[numeric("price")],
    model=LogisticRegression(bits=6),
    predictions=Predictions("scores"),
)
ZERO, ONE = ("events", 0), ("events", 1)


class Event:
    """One of Faust's, which counts how often it is acked."""

    def __init__(self, *runs):
        self.released, self.acked = [], 0
        self.value = Haul(runs, self.released.append)

    def ack(self):
        self.acked += 1


def run(partition, start, next):
    records = [Record(i, 2 * 10**12, None, b'{"id": "%d", "price": 1}' % i) for i in range(start, next)]
    return Fetched("clicks", partition, start, next, records, next, -1, 100)


@pytest.fixture
def hand():
    """Partitions 0 and 1 from offset 0 on."""
    hand = InHand()
    hand.begin({ZERO: 0, ONE: 0})
    return hand


def add(hand, *runs):
    event = Event(*runs)
    hand.add(event, PIPELINE.roles)
    return event


def test_event_is_acked_when_all_of_it_is_committed_and_each_run_gives_its_room_back_by_itself(hand):
    first, second = add(hand, run(0, 0, 3), run(1, 0, 2)), add(hand, run(0, 3, 5))
    told = []
    for offsets in ({ZERO: 2}, {ZERO: 3}, {ZERO: 4, ONE: 1}, {ZERO: 4, ONE: 2}, {ZERO: 5}):
        hand.committed(offsets)
        told.append((len(first.released), first.acked, second.acked))
    assert told == [(0, 0, 0), (1, 0, 0), (1, 0, 0), (2, 1, 0), (2, 1, 1)]


def test_runs_are_taken_together_until_they_are_enough_and_none_is_left_out(hand, monkeypatch):
    monkeypatch.setattr(in_hand, "SLICE_RECORDS", 5)
    for start in (0, 3, 6):
        add(hand, run(0, start, start + 3))
    add(hand, run(1, 0, 2))
    waiting = [ZERO, ONE]
    assert [piece[1:] for piece in hand.take(waiting).pieces] == [(0, 0, 6)]
    assert waiting == [ONE]
    assert [piece[1:] for piece in hand.take([ZERO, ONE]).pieces] == [(0, 6, 9), (1, 0, 2)]
    assert hand.fetched == {ZERO: 9, ONE: 2}


def test_partition_is_at_its_end_where_that_is_known_and_nothing_of_it_waits(hand):
    add(hand, run(0, 0, 3), run(1, 0, 3))
    aligner = Aligner(None)
    hand.ends = {ZERO: 3, ONE: 4}
    assert hand.at_end(aligner) == set()
    hand.take([ZERO, ONE])
    assert hand.at_end(aligner) == {ZERO}
    hand.ends = {ONE: 3}
    assert hand.at_end(aligner) == {ONE}


def test_partition_is_silent_some_time_after_what_it_gave_was_worked_off(hand, monkeypatch):
    monkeypatch.setattr(in_hand, "IDLE_SECONDS", 0.01)
    add(hand, run(0, 0, 3), run(1, 0, 3))
    aligner = Aligner(None)
    time.sleep(0.02)
    assert hand.at_end(aligner) == set()
    aligner.own(ZERO)
    for batch in Decoder(PIPELINE, "events").decode_all(hand.take([ZERO])):
        aligner.add(batch)
    hand.take([ONE])
    time.sleep(0.02)
    assert hand.at_end(aligner) == {ONE}
    aligner.next(set())
    time.sleep(0.02)
    assert hand.at_end(aligner) == {ZERO, ONE}


def test_what_is_let_go_is_acked_and_committed_no_more(hand):
    event, other = add(hand, run(0, 0, 3)), add(hand, run(1, 0, 3))
    hand.committed({ZERO: 3})
    hand.let_go()
    hand.committed({ZERO: 3, ONE: 3})
    assert (event.acked, other.acked) == (1, 1)
    assert not hand.runs
