"""A pipeline whose features change between two runs keeps what it has learned, by name."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from headrace import Events, Labels, Pipeline, Predictions, SnapshotError, category, count, cross, last, mean, numeric
from headrace.models import FTRL, SGD, LinearRegression, LogisticRegression, StandardScaler
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.remap import carry_over
from headrace.stream.slices import Record, Slice


class Click(msgspec.Struct):
    id: str
    time: float
    site: str
    shop: str
    price: float
    age: float


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool
    amount: float


FEATURES = [
    numeric("price"), category("site"), numeric("age"), cross("site", "shop"), count(by="site", over="1h", capacity=9),
    mean("label", by="shop", over="6h", capacity=9), last("amount", by="site", capacity=9),
]  # fmt: skip


def declared(features, **changes):
    fields = dict(
        name="clicks",
        events=Events("clicks", Click, key="id", time="time", unit="s"),
        labels=Labels("sales", Sale, key="id", time="time", unit="s", value="sold", within="1h"),
        model=StandardScaler() | LogisticRegression(FTRL(), bits=10),
        predictions=Predictions("scores"),
    )
    return Pipeline(features=features, **(fields | changes))


def rows(role, first, count):
    rng = np.random.default_rng(first)
    out = []
    for i in range(first, first + count):
        row = {"id": str(i), "time": 1.7e9 + 60 * i + (30 if role == "labels" else 0)}
        if role == "events":
            row |= {"site": "ab"[i % 2], "shop": "xyz"[i % 3], "price": rng.normal(), "age": rng.normal()}
        else:
            row |= {"sold": bool(i % 2), "amount": float(i)}
        out.append(json.dumps(row).encode())
    return out


def feed(engine, role, first, count):
    records = [Record(first + i, 2 * 10**12, None, row) for i, row in enumerate(rows(role, first, count))]
    batch = Decoder(engine.pipeline, role).decode(Slice(role, 0, first, first + count, records))
    done = engine.process(batch, first, first + count)
    return done.predicted.out if done.predicted else None


def learned(features=FEATURES):
    engine = Engine(declared(features))
    engine.own(0)
    for first in range(0, 200, 20):
        feed(engine, "events", first, 20)
        feed(engine, "labels", first, 15)
    engine.end_cycle()
    return engine


def copied(engine):
    state = engine.state()
    shared = {name: array.copy() for name, array in state.shared.items()}
    return replace(state, shared=shared, meta=json.loads(json.dumps(state.meta)))


def changed(features):
    engine = Engine(declared(features))
    state, notes = carry_over(copied(learned()), engine)
    engine.load(state)
    return engine, notes


def test_same_declaration_takes_the_state_as_it_is():
    engine, notes = changed(FEATURES)
    assert notes == []
    np.testing.assert_array_equal(feed(engine, "events", 200, 30), feed(learned(), "events", 200, 30))


def test_features_in_another_order_predict_and_learn_the_same():
    engine, notes = changed(FEATURES[::-1])
    original = learned()
    assert notes == []
    for first in (200, 220):
        np.testing.assert_allclose(feed(engine, "events", first, 20), feed(original, "events", first, 20), rtol=1e-6)
        feed(engine, "labels", first - 20, 40)  # also those that waited when the declaration changed
        feed(original, "labels", first - 20, 40)
    assert engine.counters() == original.counters()


def test_a_removed_feature_is_left_behind_and_the_others_keep_their_weights():
    engine, notes = changed([f for f in FEATURES if f.name not in ("price", "count_by_site_1h")])
    assert sorted(notes) == ["`count_by_site_1h` is gone", "`price` is gone"]
    columns, before = engine.arrays["model/1/columns"], learned()
    old = before.pipeline.numeric.index("age")
    new = engine.pipeline.numeric.index("age")
    np.testing.assert_array_equal(columns[new], before.arrays["model/1/columns"][old])
    assert np.isfinite(feed(engine, "events", 200, 30)).all()


def test_a_new_feature_begins_at_its_fill_and_is_learned():
    engine, notes = changed([numeric("price", name="price_again"), *FEATURES])
    assert notes == ["`price_again` is new"]
    assert not engine.arrays["model/1/columns"][0].any()
    np.testing.assert_allclose(feed(engine, "events", 200, 1), feed(learned(), "events", 200, 1), rtol=1e-6)
    feed(engine, "labels", 200, 1)
    feed(engine, "events", 201, 20)
    feed(engine, "labels", 201, 20)
    engine.end_cycle()
    assert engine.arrays["model/1/columns"][0].any()


def test_an_aggregate_that_is_declared_otherwise_begins_anew():
    other = [
        mean("label", by="shop", over="3h", capacity=9, name=f.name) if f.name.startswith("mean") else f
        for f in FEATURES
    ]
    engine, notes = changed(other)
    assert notes == ["`mean_label_by_shop_6h` is declared otherwise"]
    assert (
        engine.arrays["aggregate/mean_label_by_shop_6h/pane"]
        == Engine(declared(other)).arrays["aggregate/mean_label_by_shop_6h/pane"]
    ).all()
    assert (engine.arrays["aggregate/last_amount_by_site/seen"] > 0).any()


def test_another_task_is_refused():
    labels = Labels("sales", Sale, key="id", time="time", unit="s", value="amount", within="1h")
    engine = Engine(declared(FEATURES, labels=labels, model=StandardScaler() | LinearRegression(FTRL(), bits=10)))
    with pytest.raises(SnapshotError, match="has task binary, the pipeline declares regression"):
        carry_over(copied(learned()), engine)


def test_another_optimizer_is_refused_by_its_array_also_where_features_change():
    engine = Engine(declared(FEATURES[1:], model=StandardScaler() | LogisticRegression(SGD(0.1), bits=10)))
    state, _ = carry_over(copied(learned()), engine)
    with pytest.raises(
        SnapshotError, match=r"`model/1/columns` .* expected float64 \(\d+, 1\), got float64 \(\d+, 2\)"
    ):
        engine.load(state)


def test_state_of_a_version_that_knew_fewer_baselines_is_taken_over():
    labels = Labels("sales", Sale, key="id", time="time", unit="s", value="amount", within="1h")
    pipeline = declared(FEATURES[:3], labels=labels, model=StandardScaler() | LinearRegression(FTRL(), bits=10))
    first, again, unable = (Engine(pipeline) for _ in range(3))
    first.own(0)
    feed(first, "events", 0, 20)
    feed(first, "labels", 0, 15)
    older = copied(first)
    older.shared["metrics/sums"] = older.shared["metrics/sums"][:9]
    state, notes = carry_over(older, again)
    assert notes == []
    again.load(state)
    for engine in (first, again):
        feed(engine, "events", 20, 20)
        feed(engine, "labels", 15, 20)
    known, found = first.results(), again.results()
    missing = {name for name, value in found.items() if value is None}
    assert missing == {"mae_no_change", "rmse_no_change", "mae_running_mean", "rmse_running_mean"}
    assert all(known[name] is not None for name in known)
    assert {name: known[name] for name in known.keys() - missing} == {
        name: found[name] for name in known.keys() - missing
    }
    later = copied(first)
    later.shared["metrics/sums"] = np.zeros(99)
    with pytest.raises(SnapshotError, match=r"array `metrics/sums` .* got float64 \(99,\)"):
        unable.load(later)
