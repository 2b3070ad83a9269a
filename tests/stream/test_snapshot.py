"""What a snapshot holds: an engine that loads one goes on as the engine that gave it, to the bit."""

import json
from itertools import groupby

import msgspec
import numpy as np
import pytest

from headrace import Events, Labels, Pipeline, Predictions, SnapshotError, category, count, cross, last, mean, numeric
from headrace.connectors.store import SnapshotStore
from headrace.models import FTRL, LogisticRegression, StandardScaler
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.slices import Record, Slice
from headrace.stream.snapshot import NAN_ALLOWED, pack, unpack, unpack_left
from headrace.stream.standing import Position, Standing

T0 = 1_700_000_000  # seconds
PARTITIONS = 3


class Click(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float
    shop: str | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool
    amount: float = 0.0


FEATURES = (
    numeric("price"), category("site"), cross("site", "shop"), count(by="site", over="1h", capacity=5),
    mean("price", by="shop", half_life="1h", capacity=9), mean("label", by="site", over="6h", capacity=9),
    last("amount", by="site", capacity=5),
)  # fmt: skip


def clicks(name: str, features=FEATURES, bits: int = 12) -> Pipeline:
    return Pipeline(
        name=name,
        events=Events("clicks", Click, key="id", time="time", unit="s"),
        labels=Labels(
            "sales", Sale, key="id", time="time", unit="s", value="sold", within="1h", otherwise=False, early="30m"
        ),
        features=features,
        model=StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.1, half_life="2h"), bits=bits),
        predictions=Predictions("scores"),
    )


def stream(seed: int, events: int) -> list[tuple[str, int, list[dict]]]:
    """(role, partition, rows) in order of time; labels come early, in time, late, twice and for unknown keys."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(events):
        minute, site = float(rng.uniform(0, 300)), "abcdef"[rng.integers(6)]
        row = {"id": f"k{i}", "site": site, "price": float(rng.normal(5, 3)), "shop": [None, "x", "y"][rng.integers(3)]}
        found.append((minute, "events", i % PARTITIONS, row))
        for _ in range(rng.choice(3, p=[0.1, 0.8, 0.1])):
            label = {"id": f"k{i}", "sold": bool(rng.random() < (0.2 if site < "d" else 0.8)), "amount": minute}
            found.append((minute + float(rng.exponential(25)) - 8, "labels", i % PARTITIONS, label))
    found += [(float(m), "labels", 0, {"id": f"unknown {m}", "sold": True}) for m in range(0, 300, 20)]
    found.sort(key=lambda item: item[0])
    return [
        (role, p, [row | {"time": T0 + 60 * minute} for minute, _, _, row in rows])
        for (role, p), rows in groupby(found, key=lambda item: item[1:3])
    ]


class Worker:
    """An engine that owns all partitions and knows its offsets."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.engine = Engine(pipeline)
        self.decoders = {role: Decoder(pipeline, role) for role in ("events", "labels")}
        self.offsets = {(role, p): 0 for role in self.decoders for p in range(PARTITIONS)}
        self.cycle = 0
        for p in range(PARTITIONS):
            self.engine.own(p)

    def feed(self, role: str, p: int, rows: list[dict]) -> np.ndarray:
        start, values = self.offsets[role, p], [json.dumps(row).encode() for row in rows]
        records = [Record(start + i, (T0 + 10**6) * 1000, None, value) for i, value in enumerate(values)]
        batch = self.decoders[role].decode(Slice(role, p, start, start + len(rows), records))
        done = self.engine.process(batch, batch.start, batch.next)
        self.engine.end_cycle()
        self.offsets[role, p], self.cycle = batch.next, self.cycle + 1
        return done.predicted.out if done.predicted else np.empty((0, 1), np.float32)

    def standing(self) -> Standing:
        return Standing(self.engine, Position(dict(self.offsets), journal=2 * self.cycle, cycle=self.cycle))


def assert_same_arrays(one: Worker, two: Worker) -> None:
    (a, _), (b, _) = pack(Standing(one.engine)), pack(Standing(two.engine))
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)


@pytest.mark.parametrize("stop", [0.0, 0.4, 0.9])
def test_worker_that_loads_a_snapshot_goes_on_as_the_one_that_published_it(redis_url, unique, stop):
    pipeline = clicks(unique)
    store = SnapshotStore(redis_url, unique, chunk_bytes=4096)
    rows = stream(seed=7, events=300)
    at = int(stop * len(rows))
    one = Worker(pipeline)
    for item in rows[:at]:
        one.feed(*item)
    if stop:
        counters = one.engine.counters()
        assert min(counters[name] for name in ("pending", "early", "joined")) > 0
        assert all(len(part.pending) for part in one.engine.partitions.values())
    arrays, meta = pack(one.standing())
    store.publish(arrays, meta, token=0, allow_nan=NAN_ALLOWED)

    found = SnapshotStore(redis_url, unique).load()
    state, position = unpack(found.arrays, found.meta, clicks(unique))
    assert position == one.standing().position
    two = Worker(clicks(unique))
    two.engine.load(state)
    two.offsets, two.cycle = dict(position.offsets), position.cycle
    assert_same_arrays(one, two)
    for item in rows[at:]:
        np.testing.assert_array_equal(one.feed(*item), two.feed(*item))
    one.engine.finish()
    two.engine.finish()
    assert_same_arrays(one, two)
    assert one.engine.counters() == two.engine.counters()
    assert one.engine.counters()["joined"] > 200


def test_loaded_engine_shares_no_memory_with_what_it_was_loaded_from():
    pipeline = clicks("clicks")
    rows = stream(seed=1, events=100)
    one = Worker(pipeline)
    for item in rows[:80]:
        one.feed(*item)
    arrays, meta = pack(one.standing())
    arrays = {name: array.copy() for name, array in arrays.items()}
    kept = {name: array.copy() for name, array in arrays.items()}
    state, _ = unpack(arrays, json.loads(json.dumps(meta)), pipeline)
    two = Worker(pipeline)
    two.engine.load(state)
    for item in rows[80:]:
        two.feed(*item)
    for name, array in kept.items():
        np.testing.assert_array_equal(arrays[name], array, name)


def test_snapshot_says_what_it_stands_for():
    one = Worker(clicks("clicks"))
    for item in stream(seed=1, events=50):
        one.feed(*item)
    _, meta = pack(one.standing())
    assert meta == json.loads(json.dumps(meta, allow_nan=False))
    assert meta["pipeline"] == "clicks"
    assert meta["numeric"] == list(one.engine.pipeline.numeric)
    assert meta["offsets"]["events"] == {str(p): one.offsets["events", p] for p in range(PARTITIONS)}
    assert meta["metrics"]["events"] == 50
    assert {"headrace", "numpy", "numba", "polars", "python"} <= meta["libraries"].keys()


def test_partitions_that_have_left_stay_in_the_snapshot_beside_those_that_are_owned(redis_url, unique):
    one = Worker(clicks(unique))
    for item in stream(seed=3, events=120):
        one.feed(*item)
    standing = one.standing()
    at = standing.stands_at(1)
    standing.own([0, 2])
    assert any(np.isnan(array).any() for array in standing.left[1].arrays.values() if array.dtype.kind == "f")
    arrays, meta = pack(standing)
    SnapshotStore(redis_url, unique).publish(arrays, meta, token=0, allow_nan=NAN_ALLOWED)

    found = SnapshotStore(redis_url, unique).load()
    state, position = unpack(found.arrays, found.meta, clicks(unique))
    assert set(state.partitions) == {0, 2}
    assert position == standing.position
    left = unpack_left(found.arrays, found.meta)
    assert left.keys() == {1}
    assert left[1].offsets == at
    assert left[1].arrays.keys() == standing.left[1].arrays.keys()
    for name, array in standing.left[1].arrays.items():
        np.testing.assert_array_equal(left[1].arrays[name], array, name)


def test_snapshot_from_before_partitions_could_leave_is_read():
    arrays, meta = pack(Worker(clicks("clicks")).standing())
    del meta["left"], meta["last_learned"]
    assert unpack_left(arrays, meta) == {}
    assert set(unpack(arrays, meta, clicks("clicks"))[0].partitions) == {0, 1, 2}


def test_snapshot_of_another_pipeline_is_refused_by_name():
    arrays, meta = pack(Standing(Engine(clicks("clicks"))))
    with pytest.raises(SnapshotError, match="the snapshot is of pipeline 'clicks', not of 'views'"):
        unpack(arrays, meta, clicks("views"))


@pytest.mark.parametrize(
    ("change", "array"),
    [
        ({"features": (*FEATURES, numeric("price", name="again"))}, "model/"),
        ({"features": FEATURES[1:]}, "model/"),
        ({"features": (*FEATURES, count(by="site", over="5m", capacity=5))}, "model/"),
        ({"bits": 13}, "model/"),
    ],
    ids=["another", "one-less", "aggregate", "table"],
)
def test_state_that_does_not_fit_is_refused_and_the_engine_stays_as_it_was(change, array):
    worker = Worker(clicks("clicks"))
    for item in stream(seed=1, events=60):
        worker.feed(*item)
    before = Worker(clicks("clicks"))
    before.engine.load(worker.engine.state())
    state, _ = unpack(*pack(Standing(Engine(clicks("clicks", **change)))), worker.engine.pipeline)
    message = (
        rf"array `.*{array}.*` of pipeline 'clicks': expected .*, got .*; was the snapshot made with another feature"
    )
    with pytest.raises(SnapshotError, match=message):
        worker.engine.load(state)
    assert_same_arrays(worker, before)
