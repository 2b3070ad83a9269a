"""Aggregates against plain Python over a list of what came before; keys against a plain least-recently-used dict."""

import json
import math
from collections import OrderedDict

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Events, Pipeline, Predictions, count, ewm, last, max, mean, min, seconds_since, std, sum
from headrace.models import LogisticRegression
from headrace.models.base import allocate
from headrace.stream.aggregates import PANES, Fold, FoldPlan, GroupTable, group_layout
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.slices import Record, Slice

MINUTE = 60_000_000
HOUR = 60 * MINUTE
FEATURES = [
    count(by="k", over="1h"), sum("v", by="k", over="1h"), mean("v", by="k", over="1h"), std("v", by="k", over="1h"),
    min("v", by="k", over="1h"), max("v", by="k", over="1h"), count(by="k", half_life="1h"),
    sum("v", by="k", half_life="1h"), mean("v", by="k", half_life="1h"), std("v", by="k", half_life="1h"),
    ewm("v", by="k", half_life="1h"), last("v", by="k"), last("v", by="k", over="1h"), seconds_since(by="k"),
]  # fmt: skip
IDS = [f.name for f in FEATURES]


class Bench:
    """One aggregate with its group, fed with rows."""

    def __init__(self, feature, capacity=1000):
        feature = feature.__class__(**{**vars(feature), "capacity": capacity})
        self.fold = Fold(feature)
        self.table = GroupTable(**allocate(group_layout(capacity)))
        self.arrays = allocate(self.fold.layout())

    def feed(self, keys, times, values, fold=True):
        keys = np.asarray(keys, np.uint64).reshape(-1, 1)
        out = np.full((len(keys), 1), -7.0, np.float32)
        values = np.asarray(values, np.float64).reshape(-1, 1)
        plan = FoldPlan([self.table.row(0, True)], [self.fold.row(self.arrays, 0, fold, 0, 0)])
        plan.run(np.asarray(times, np.int64), keys, values, np.full(len(keys), np.nan, np.float32), out)
        return out[:, 0]


def expected(feature, history, now):
    """What `feature` must read at `now` after the (time, value) of one key."""
    if feature.kind in ("last", "seconds_since"):
        known = [(t, v) for t, v in history if feature.kind == "seconds_since" or not math.isnan(v)]
        if not known:
            return math.nan
        newest = builtin_max(t for t, _ in known)
        if feature.over and now - newest > feature.over:
            return math.nan
        value = [v for t, v in known if t == newest][-1]
        return value if feature.kind == "last" else builtin_max(now - newest, 0) / 1e6
    rows = [(t, v) for t, v in history if feature.kind == "count" or not math.isnan(v)]
    if feature.over:
        width = feature.over // PANES
        rows = [(1.0, v) for t, v in rows if now // width - PANES < t // width <= now // width]
    else:
        rows = [(0.5 ** ((now - t) / feature.half_life), v) for t, v in rows]
    weight = math.fsum(w for w, _ in rows)
    if feature.kind == "count":
        return weight
    total = math.fsum(w * v for w, v in rows)
    if feature.kind == "sum":
        return total
    if not rows or (feature.kind == "std" and feature.over and len(rows) < 2):
        return math.nan
    if feature.kind in ("min", "max"):
        return (builtin_max if feature.kind == "max" else builtin_min)(v for _, v in rows)
    centre = total / weight
    if feature.kind in ("mean", "ewm"):
        return centre
    return math.sqrt(math.fsum(w * (v - centre) ** 2 for w, v in rows) / weight)


builtin_max, builtin_min = __builtins__["max"], __builtins__["min"]


@pytest.mark.parametrize("feature", FEATURES, ids=IDS)
def test_each_row_reads_what_the_rows_before_it_left(feature):
    rng = np.random.default_rng(7)
    rows = 600
    keys = rng.integers(1, 9, rows)
    times = 1_700_000_000_000_000 + np.cumsum(rng.integers(0, 8 * MINUTE, rows))
    values = np.where(rng.random(rows) < 0.1, np.nan, rng.normal(1e3, 5, rows))
    got = Bench(feature).feed(keys, times, values)
    for i in range(rows):
        history = [(int(times[j]), float(values[j])) for j in range(i) if keys[j] == keys[i]]
        if feature.kind == "count":
            history = [(t, 0.0) for (t, _), v in zip(history, values[:i][keys[:i] == keys[i]]) if not np.isnan(v)]
        if feature.kind == "seconds_since":
            history = [(t, v) for t, v in history if not math.isnan(v)]
        assert got[i] == pytest.approx(expected(feature, history, int(times[i])), rel=1e-5, abs=1e-4, nan_ok=True), i


@pytest.mark.parametrize("feature", FEATURES, ids=IDS)
@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 199), max_size=12), seed=st.integers(0, 99))
def test_aggregates_ignore_where_the_stream_is_cut(feature, cuts, seed):
    rng = np.random.default_rng(seed)
    keys, values = rng.integers(0, 30, 200), rng.normal(size=200)
    times = 10**15 + rng.integers(0, 3 * HOUR, 200)  # out of order too
    whole, cut = Bench(feature, capacity=20), Bench(feature, capacity=20)
    expected_rows = whole.feed(keys, times, values)
    edges = [0, *sorted(cuts), 200]
    got = np.concatenate([cut.feed(keys[a:b], times[a:b], values[a:b]) for a, b in zip(edges, edges[1:])])
    np.testing.assert_array_equal(got, expected_rows)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(cut.arrays[name], array, name)


def test_a_window_of_an_hour_covers_55_to_60_minutes():
    bench = Bench(count(by="k", over="1h"))
    #        pane of 5 minutes:  |0....|5....| ... |55...|60...
    start = 3_600_000_000 * 1000
    bench.feed([1], [start], [0])  # at the very beginning of a pane
    assert bench.feed([1], [start + 60 * MINUTE - 1], [np.nan]) == 1
    assert bench.feed([1], [start + 60 * MINUTE], [np.nan]) == 0
    bench.feed([2], [start + 5 * MINUTE - 1], [0])  # at the very end of one
    assert bench.feed([2], [start + 60 * MINUTE - 1], [np.nan]) == 1
    assert bench.feed([2], [start + 60 * MINUTE], [np.nan]) == 0  # after 55 minutes and a bit


def test_the_least_recently_used_key_is_evicted_and_its_values_are_forgotten():
    rng = np.random.default_rng(3)
    bench, capacity = Bench(sum("v", by="k", over="7d"), capacity=50), 50
    twin: OrderedDict[int, float] = OrderedDict()
    evicted = 0
    for _ in range(40):
        keys = rng.zipf(1.3, 64) % 400 + 1
        got = bench.feed(keys, np.full(64, 10**15), np.ones(64))
        for key, value in zip(keys.tolist(), got.tolist()):
            assert value == twin.get(key, 0.0)
            twin[key] = twin.get(key, 0.0) + 1.0
            twin.move_to_end(key)
            if len(twin) > capacity:
                twin.popitem(last=False)
                evicted += 1
    assert bench.table.evicted == evicted > 100


def test_a_missing_key_reads_as_unknown_and_leaves_nothing():
    bench = Bench(mean("v", by="k", over="1h"))
    assert np.isnan(bench.feed([0, 0], [10**15, 10**15], [1.0, 2.0])).all()
    assert bench.table.size == 0


def test_rows_that_only_read_change_nothing_but_a_slot_that_begins_anew():
    bench = Bench(mean("v", by="k", over="1h"), capacity=1)
    bench.feed([5], [10**15], [4.0])
    assert bench.feed([5, 6, 5], [10**15] * 3, [9.0] * 3, fold=False).tolist()[0] == 4.0
    assert np.isnan(bench.feed([5], [10**15], [1.0]))  # 6 took its slot, and 5 came back to an empty one


class Payment(msgspec.Struct):
    id: str
    time: float
    payer: str
    amount: float


def test_values_too_great_to_be_squared_count_as_missing_and_leave_every_array_finite():
    pipeline = Pipeline(
        name="payments",
        events=Events("payments", Payment, key="id", time="time", unit="s"),
        labels=None,
        features=[sum("amount", by="payer", over="1h"), std("amount", by="payer", over="1h")],
        model=LogisticRegression(bits=6),
        predictions=Predictions("scores"),
    )
    amounts = [1.0, 1e308, 1e308, -1e200, 3.0, 0.0]
    records = [
        Record(i, 0, None, json.dumps({"id": str(i), "time": i, "payer": "a", "amount": amount}).encode())
        for i, amount in enumerate(amounts)
    ]
    engine = Engine(pipeline)
    engine.own(0)
    batch = Decoder(pipeline, "events").decode(Slice("events", 0, 0, len(records), records))
    engine.process(batch, 0, len(records))
    assert batch.numeric[-1, 0] == 4.0  # what the last one reads: 1 + 3
    arrays = {name: array for name, array in engine.arrays.items() if array.dtype.kind == "f"}
    assert all(np.isfinite(array).all() for name, array in arrays.items() if name.startswith("aggregate/"))
