"""Engines that learn from labels that come later, and hand over what they have learned."""

import json
from dataclasses import replace

import numpy as np
from engine_run import SIDE, Click, Sale

from headrace import Events, Labels, Pipeline, Predictions, category, mean, numeric
from headrace.models import FTRL, SGD, LogisticRegression, StandardScaler
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.remap import carry_over
from headrace.stream.slices import Record, Slice

FTRLS = StandardScaler() | LogisticRegression(FTRL(), bits=8)
SGDS = StandardScaler() | LogisticRegression(SGD(0.01), bits=8)
FEATURES = (numeric("price"), category("site"), mean("label", by="site", over="6h", capacity=9))


def declared(features=FEATURES, **models):
    """One model where `model` is given, else those that are given by their names."""
    serve, drift = models.pop("serve", None), models.pop("drift", None)
    return Pipeline(
        name="clicks",
        events=Events("clicks", Click, **SIDE),
        labels=Labels("sales", Sale, value="sold", within="2h", **SIDE),
        features=features,
        predictions=Predictions("scores"),
        serve=serve,
        drift=drift,
        **(models if "model" in models else {"models": models}),
    )


def feed(engine, role, first, count, step=None):
    """Rows of events or labels, processed in pieces of so many; what was predicted of the last piece."""
    rng = np.random.default_rng(first)
    rows = []
    for i in range(first, first + count):
        row = {"id": str(i), "time": 1.7e9 + 60 * i + (30 if role == "labels" else 0)}
        more = {"sold": bool(i % 2)} if role == "labels" else {"site": "abc"[i % 3], "price": rng.normal() + i % 2}
        rows.append(json.dumps(row | more).encode())
    records = [Record(first + i, 2 * 10**12, None, row) for i, row in enumerate(rows)]
    batch = Decoder(engine.pipeline, role).decode(Slice(role, 0, first, first + count, records))
    step = step or count
    return [engine.process(batch, at, at + step) for at in range(first, first + count, step)][-1].predicted


def learned(**models):
    """An engine that has learned, with 40 predictions that wait for their label."""
    engine = Engine(declared(**models))
    engine.own(0)
    for first in range(0, 200, 20):
        feed(engine, "events", first, 20)
        if first < 160:
            feed(engine, "labels", first, 20)
    engine.end_cycle()
    return engine


def state_of(engine):
    state = engine.state()
    shared = {name: array.copy() for name, array in state.shared.items()}
    return replace(state, shared=shared, meta=json.loads(json.dumps(state.meta)))


def taken_over(before, features=FEATURES, **models):
    """An engine of a new declaration that goes on from another's state, and what it says of the difference."""
    engine = Engine(declared(features, **models))
    state, notes = carry_over(state_of(before), engine)
    engine.load(state)
    return engine, notes


def under(engine, prefix):
    return {name.removeprefix(prefix): array for name, array in engine.arrays.items() if name.startswith(prefix)}


def assert_same(a, b):
    assert a.keys() == b.keys() and a
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)


def go_on(*engines):
    """The same events and labels for all; the predictions that each of them served."""
    out = []
    for engine in engines:
        out.append(feed(engine, "events", 200, 30).out)
        feed(engine, "labels", 160, 60)
        engine.end_cycle()
    return out
