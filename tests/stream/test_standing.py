"""Which partitions a slot owns, which it keeps frozen, and where each stands; no server is needed."""

import json

import msgspec
import numpy as np
import pytest

from headrace import Events, Labels, Pipeline, Predictions, count, mean, numeric
from headrace.models import FTRL, LogisticRegression
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.slices import Record, Slice
from headrace.stream.standing import BEGINNING, Left, Standing

T0 = 1_700_000_000


class Click(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


PIPELINE = Pipeline(
    name="clicks",
    events=Events("clicks", Click, key="id", time="time", unit="s"),
    labels=Labels("sales", Sale, key="id", time="time", unit="s", value="sold", within="1h"),
    features=[numeric("price"), count(by="site", over="1h", capacity=9), mean("label", by="site", over="6h")],
    model=LogisticRegression(FTRL(alpha=0.1), bits=10),
    predictions=Predictions("scores"),
)


class Slot(Standing):
    """A standing that processes clicks (partition, first number, count) and their sales."""

    def clicks(self, p, first, count):
        rows = [{"id": f"{p}-{i}", "time": T0 + 60 * i, "site": "ab"[i % 2], "price": float(i % 7)} for i in
                range(first, first + count)]  # fmt: skip
        self._process("events", p, first, rows)

    def sales(self, p, first, count):
        self._process(
            "labels", p, first,
            [{"id": f"{p}-{i}", "time": T0 + 60 * i + 30, "sold": i % 3 == 0} for i in range(first, first + count)],
        )  # fmt: skip

    def _process(self, role, p, first, rows):
        records = [Record(first + i, 2 * 10**12, None, json.dumps(row).encode()) for i, row in enumerate(rows)]
        batch = Decoder(PIPELINE, role).decode(Slice(role, p, first, first + len(rows), records))
        self.engine.process(batch, batch.start, batch.next)
        self.engine.end_cycle()
        self.position = self.position._replace(offsets={**self.position.offsets, (role, p): batch.next})


@pytest.fixture
def slot():
    """Partitions 0 and 1, each with 20 clicks, of which the first 10 have their sale."""
    slot = Slot(Engine(PIPELINE))
    slot.own([0, 1])
    for p in (0, 1):
        slot.clicks(p, 0, 20)
        slot.sales(p, 0, 10)
    return slot


def assert_same_arrays(one, two):
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], name)


def test_partition_that_goes_is_frozen_and_comes_back_as_it_was(slot):
    frozen = slot.engine.partitions[1].state()
    slot.own([0])
    assert set(slot.engine.partitions) == {0}
    assert slot.position.offsets == {("events", 0): 20, ("labels", 0): 10}
    assert slot.left[1].offsets == slot.stands_at(1) == {"events": 20, "labels": 10}
    assert_same_arrays(slot.left[1].arrays, frozen)
    slot.clicks(0, 20, 20)
    slot.own([1])
    assert set(slot.left) == {0}
    assert slot.position.offsets == {("events", 1): 20, ("labels", 1): 10}
    assert_same_arrays(slot.engine.partitions[1].state(), frozen)
    slot.sales(1, 10, 10)
    assert slot.engine.counters()["joined"] == 30


def test_what_is_frozen_does_not_move_with_what_goes_on(slot):
    slot.own([0])
    kept = {name: array.copy() for name, array in slot.left[1].arrays.items()}
    slot.own([0, 1])
    left = Left(kept, slot.stands_at(1))
    slot.adopt(1, left)
    before = {name: array.copy() for name, array in left.arrays.items()}
    slot.sales(1, 10, 10)
    slot.clicks(1, 20, 50)
    assert_same_arrays(left.arrays, before)


def test_partition_that_was_never_here_begins_and_nothing_is_known_of_it(slot):
    slot.own([0, 1, 2])
    assert slot.stands_at(2) == slot.stands_at(7) == {}
    slot.clicks(2, 100, 5)
    assert slot.stands_at(2) == {"events": 105}
    assert slot.engine.counters()["pending"] == 25


def test_owning_what_is_owned_changes_nothing(slot):
    offsets, before = dict(slot.position.offsets), slot.engine.partitions[1].state()
    slot.own([1, 0])
    assert slot.position.offsets == offsets
    assert slot.left == {}
    assert_same_arrays(slot.engine.partitions[1].state(), before)


def test_adopted_state_takes_the_place_of_what_is_here(slot):
    other = Slot(Engine(PIPELINE))
    other.own([1, 2])
    other.clicks(1, 20, 7)
    other.own([])
    for prepare in (lambda: None, lambda: slot.own([0])):  # owned, or left
        prepare()
        slot.adopt(1, other.left[1])
        assert_same_arrays(slot.engine.partitions[1].state(), other.left[1].arrays)
        assert slot.stands_at(1) == {"events": 27}
        assert slot.left == {}
    slot.adopt(2, other.left[2])
    assert slot.stands_at(2) == {}
    assert set(slot.engine.partitions) == {0, 1, 2}


def test_partition_can_begin_anew(slot):
    slot.begin(1)
    assert slot.stands_at(1) == {}
    slot.own([1])
    slot.begin(0)
    assert (slot.left, slot.position.offsets) == ({}, {})
    assert slot.engine.counters()["pending"] == 0


def test_partition_can_be_moved_on_over_what_was_not_learned(slot):
    slot.own([0])
    for number in (0, 1, 5):
        slot.skip_to(number, {"events": 90, "labels": 80})
        assert slot.stands_at(number) == {"events": 90, "labels": 80}
    assert len(slot.left[1].arrays["pending/key"]) == len(slot.engine.partitions[0].pending) == 20
    assert set(slot.engine.partitions) == {0, 5}


def test_two_standings_begin_with_nothing_in_common(slot):
    assert (BEGINNING.offsets, Standing(Engine(PIPELINE)).left) == ({}, {})
