"""Labels(weight=...): how much is learned from an example, from its record to the model."""

import math
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import polars as pl
import pytest
from engine_run import SIDE, T0, Click, Run, Sale, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, optim, tree

from headrace import DeclarationError, Events, Labels, Pipeline, Predictions, SnapshotReader, category, mean, numeric
from headrace.connectors.store import SnapshotStore
from headrace.models import (
    ADWIN,
    FTRL,
    SGD,
    Array,
    Configured,
    HoeffdingTreeClassifier,
    Learner,
    LogisticRegression,
    Metrics,
    StandardScaler,
    allocate,
    register,
)
from headrace.stream.check import report
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.poison import process_carefully
from headrace.stream.remap import carry_over
from headrace.stream.slices import Record, Slice
from headrace.stream.snapshot import NAN_ALLOWED, pack
from headrace.stream.standing import Position, Standing


class Weighed(Sale, kw_only=True):
    weight: float | None = None
    trusted: bool = True


class Visit(Click, kw_only=True):
    weight: float | None = None


@register
@dataclass(eq=False)
class Totals(Configured, Learner):
    """Learns in micro-batches what weight came of each label."""

    updates: str = "micro_batch"
    batch_size: int = 7

    def layout(self, spec):
        return {"totals": Array((2,), "float64"), "rows": Array((1,), "float64")}

    def bind(self, spec, state, touched):
        self.totals, self.rows = state["totals"], state["rows"]

    def predict(self, x, out):
        out[:] = (self.totals[1] + 1) / (self.totals.sum() + 2)

    def learn(self, x, truth):
        for y, weight in zip(truth.y[:, 0], truth.weight, strict=True):
            if not np.isnan(y):
                self.totals[int(y)] += weight
                self.rows += 1


MODELS = {
    "sequential": StandardScaler(half_life="1h") | LogisticRegression(FTRL(half_life="2h"), bits=8),
    "micro-batches": StandardScaler(half_life="1h") | Totals(),
}


def pipeline(weight="weight", delayed=True, model="sequential", otherwise=None, features=None, **more):
    labels = (
        Labels("sales", Weighed, value="sold", weight=weight, within="1h", otherwise=otherwise, **SIDE)
        if delayed
        else Labels(value="sold", weight=weight)
    )
    return Pipeline(
        name="weighed",
        events=Events("visits", Visit, **SIDE),
        labels=labels,
        features=features or [numeric("price"), category("site"), mean("label", by="site", over="6h", capacity=9)],
        model=MODELS[model] if isinstance(model, str) else model,
        predictions=Predictions("scores"),
        **more,
    )


def visit(i, minutes=0.0, site="a", price=1.0, **more):
    return {"id": str(i), "time": T0 + 60 * minutes, "site": site, "price": price, **more}


def sale(i, minutes=0.0, sold=True, weight=1.0, **more):
    return {"id": str(i), "time": T0 + 60 * minutes, "sold": sold, "weight": weight, **more}


def turns(seed, events=200, delayed=True, early=2.0):
    """(role, rows) in turn: visits over five hours, and the sales of most, some up to 2 minutes before their event."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(events):
        at, site = float(300 * i / events), "abcde"[rng.integers(5)]
        sold, weight = bool(rng.random() < (0.2 if site < "c" else 0.8)), float(rng.choice([0.0, 0.5, 1.0, 3.0]))
        row = visit(i, at, site, float(rng.normal(5, 3)))
        rows.append((at, "events", row | ({} if delayed else {"sold": sold if i % 9 else None, "weight": weight})))
        if delayed and rng.random() < 0.9:
            later = at + float(rng.exponential(10)) - early
            rows.append((later, "labels", sale(i, later, sold, weight)))
    found = []
    for _, role, row in sorted(rows, key=lambda row: row[0]):
        if found and found[-1][0] == role:
            found[-1][1].append(row)
        else:
            found.append((role, [row]))
    return found


# --- how much is learned


@pytest.mark.parametrize("delayed", [False, True])
def test_weight_multiplies_the_step_that_an_example_makes(delayed):
    """One plain step of gradient descent from zero: P = 1/2, and the bias moves by lr * weight / 2."""
    for weight in (0.25, 1.0, 8.0):
        run = Run(pipeline(delayed=delayed, model=LogisticRegression(SGD(0.1), base_rate=False, bits=6)))
        told = {} if delayed else {"sold": True, "weight": weight}
        run.feed("events", [visit(1, **told)])
        if delayed:
            run.feed("labels", [sale(1, 5, True, weight)])
        assert run.engine.counters()["examples"] == 1
        assert run.engine.arrays["model/0/bias"][0, 0] == pytest.approx(0.05 * weight)


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_example_of_weight_0_is_scored_and_not_learned(model, delayed):
    run, plain = Run(pipeline(delayed=delayed, model=model)), Run(pipeline(delayed=delayed, model=model))
    told = {} if delayed else {"sold": True, "weight": 0.0}
    for one, more in ((run, told), (plain, {})):
        one.feed("events", [visit(1, **more), visit(2, 1.0, "b")])
    if delayed:
        run.feed("labels", [sale(1, 5, weight=0.0)])
        plain.feed("labels", [sale("unknown", 5)])
    for one in (run, plain):
        one.engine.end_cycle()
    assert run.counts("joined", "examples", "unlearned") == (1, 0, 1)
    assert run.engine.results()["labels"] == 1
    for name, array in run.engine.arrays.items():
        if name.startswith("model/"):
            np.testing.assert_array_equal(array, plain.engine.arrays[name], name)


def test_examples_of_weight_0_do_not_fill_a_micro_batch():
    run = Run(pipeline(model="micro-batches"))
    run.feed("events", [visit(i) for i in range(12)])
    run.feed("labels", [sale(i, 5, weight=0.0 if i % 2 else 2.0) for i in range(12)])
    assert run.engine.arrays["model/1/rows"][0] == 0
    run.feed("events", [visit(i, 6) for i in (20, 21)])
    run.feed("labels", [sale(20, 7, False, weight=4.0)])
    run.feed("events", [visit(30, 8)])
    assert run.engine.arrays["model/1/rows"][0] == 7
    assert run.engine.arrays["model/1/totals"].tolist() == [4.0, 12.0]


def test_expired_event_is_learned_as_otherwise_with_weight_1():
    run = Run(pipeline(model="micro-batches", otherwise=False))
    run.feed("events", [visit(1), visit(2)])
    run.feed("labels", [sale(1, 5, weight=6.0)])
    run.engine.finish()
    assert run.engine.arrays["model/1/totals"].tolist() == [1.0, 6.0]


def test_early_label_keeps_its_weight():
    run = Run(pipeline(model="micro-batches"))
    run.feed("labels", [sale(1, 0, weight=6.0), sale(2, 0, weight=0.0)])
    run.feed("events", [visit(1), visit(2)])
    run.engine.end_cycle()
    assert run.engine.arrays["model/1/totals"].tolist() == [0.0, 6.0]
    assert run.counts("joined", "examples", "unlearned") == (2, 1, 1)


def test_weight_may_be_an_expression():
    weight = pl.when("trusted").then(pl.col("weight").fill_null(1.0) * 2).otherwise(0.0)
    run = Run(pipeline(weight, model="micro-batches"))
    run.feed("events", [visit(i) for i in range(4)])
    run.feed("labels", [sale(0, 1, weight=None), sale(1, 1, weight=5.0), sale(2, 1, trusted=False), sale(3, 1, False)])
    run.engine.end_cycle()
    assert run.engine.arrays["model/1/totals"].tolist() == [2.0, 12.0]


@pytest.mark.parametrize("delayed", [False, True])
def test_metrics_and_aggregates_take_each_label_once(delayed):
    """Those of a run with weights are those of the same predictions and labels without."""
    run = Run(pipeline(delayed=delayed))
    seen, labels = {}, {}
    metrics = Metrics("binary")
    metrics.bind(allocate(metrics.layout()))
    for role, rows in turns(3, delayed=delayed):
        out = run.feed(role, rows)
        if role == "events":
            seen |= {row["id"]: p for row, p in zip(rows, out)}
        labels |= {row["id"]: row["sold"] for row in rows if row.get("sold") is not None}
    run.engine.predict_taken()
    assert run.counts("joined") == (len(labels),)
    results = run.engine.results()
    losses = [-math.log(seen[i] if sold else 1 - seen[i]) for i, sold in labels.items()]
    assert results["labels"] == len(labels)
    assert results["log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    other = Run(pipeline(None, delayed=delayed))
    for role, rows in turns(3, delayed=delayed):
        other.feed(role, rows)
    other.engine.results()  # nothing is left for later
    for name, array in run.engine.arrays.items():
        if name.startswith("aggregate/"):
            np.testing.assert_array_equal(array, other.engine.arrays[name], name)


# --- beside River


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("kind", ["logistic", "tree"])
def test_engine_with_weights_learns_as_river_does(kind, delayed):
    if kind == "logistic":
        ours = LogisticRegression(SGD(0.01), base_rate=False, intercept_lr=0.01, bits=6)
        rivers = linear_model.LogisticRegression(optim.SGD(0.01), intercept_lr=0.01)
    else:
        told = dict(grace_period=20, delta=0.3, leaf_prediction="mc")
        ours = HoeffdingTreeClassifier(**told)
        rivers = tree.HoeffdingTreeClassifier(**told, splitter=tree.splitter.GaussianSplitter())
    run, prices, compared = Run(pipeline(delayed=delayed, model=ours, features=[numeric("price")])), {}, 0
    for role, rows in turns(4, 400, delayed, early=0.0):
        got = run.feed(role, rows)
        for at, row in enumerate(rows):
            if role == "events":
                prices[row["id"]] = {"price": float(np.float32(row["price"]))}
                wanted = rivers.predict_proba_one(prices[row["id"]])
                if wanted:  # a tree of River says nothing before its first label
                    assert got[at] == pytest.approx(wanted.get(True, 0.0), rel=1e-4, abs=1e-6)
                    compared += 1
            if row.get("sold") is not None and row["weight"] > 0:
                rivers.learn_one(prices[row["id"]], row["sold"], w=row["weight"])
    assert compared > 380


# --- wherever it is cut


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=4), seed=st.integers(0, 3))
@pytest.mark.parametrize("how", ["later", "in the event", "drift", "micro-batches"])
def test_result_does_not_depend_on_the_cuts(how, cuts, seed):
    delayed = how not in ("in the event",)
    drift = ADWIN(0.5, clock=1, action="boost") if how == "drift" else None
    declared = pipeline(delayed=delayed, model=how if how in MODELS else "sequential", drift=drift, otherwise=False if delayed else None)  # fmt: skip
    whole, cut = Run(declared), Run(declared)
    for role, rows in turns(seed, 120, delayed):
        out = whole.feed(role, rows)
        np.testing.assert_array_equal(cut.feed(role, rows, cuts=[c for c in cuts if c < len(rows)]), out)
    for run in (whole, cut):
        run.engine.end_cycle()
    assert_same(whole, cut)
    assert 0 < whole.counts("unlearned")[0] < whole.counts("examples")[0]


@pytest.mark.parametrize("drift", [None, ADWIN(0.5, clock=1, action="reset")])
def test_labels_in_events_are_heard_by_a_detector_whatever_their_weight(drift):
    run, plain = Run(pipeline(delayed=False, drift=drift)), Run(pipeline(delayed=False))
    for role, rows in turns(5, 300, delayed=False):
        run.feed(role, rows)
        plain.feed(role, rows)
    assert run.counts("examples", "unlearned", "joined") == plain.counts("examples", "unlearned", "joined")
    if drift is not None:
        assert run.engine.arrays["drift/marks"][0] == run.counts("joined")[0]


def test_state_undone_or_loaded_goes_on_with_the_weights_of_early_labels():
    one, two = Run(pipeline()), Run(pipeline())
    rows = turns(6)
    half = next(i for i in range(len(rows) // 2, len(rows)) if one_early(rows[: i + 1]))
    for role, some in rows[: half + 1]:
        one.feed(role, some)
    state = one.engine.state()
    assert len(set(state.partitions[0]["early/weight"].tolist())) > 0
    meta = msgspec.json.decode(msgspec.json.encode(state.meta))
    two.engine.load(replace(state, meta=meta, shared={name: array.copy() for name, array in state.shared.items()}))
    two.ends = dict(one.ends)
    undo, ends = one.engine.undo_point(), dict(one.ends)
    outs = [one.feed(role, some) for role, some in rows[half + 1 :]]
    undo()
    one.ends = ends
    for run in (one, two):
        for (role, some), out in zip(rows[half + 1 :], outs):
            np.testing.assert_array_equal(run.feed(role, some), out)
    assert_same(one, two)


def test_weights_of_a_batch_without_its_poison_are_those_of_the_other_rows():
    @register
    @dataclass(eq=False)
    class Picky(Totals):
        updates: str = "sequential"
        batch_size: int = 1

        def learn(self, x, truth):
            if (truth.weight == 13).any():
                raise ArithmeticError("13")
            super().learn(x, truth)

    for delayed in (False, True):
        run = Run(pipeline(model=Picky(), delayed=delayed))
        weights = [1.0, 13.0, 0.5, 4.0]
        told = [{} if delayed else {"sold": True, "weight": w} for w in weights]
        batch = run.batch("events", [visit(i, **more) for i, more in enumerate(told)])
        if delayed:
            run.engine.process(batch, 0, 4)
            batch = run.batch("labels", [sale(i, 1, weight=w) for i, w in enumerate(weights)])
        _, poison = process_carefully(run.engine, batch, 0, 4)
        assert poison == [1]
        run.engine.end_cycle()
        assert run.engine.arrays["model/0/totals"].tolist() == [0.0, 5.5]


def one_early(rows):
    """Whether a label came before its event."""
    events = {row["id"] for role, some in rows if role == "events" for row in some}
    return any(row["id"] not in events for role, some in rows if role == "labels" for row in some)


# --- records


BAD = [
    (b"-1", "the weight is -1; expected a number from 0 to 3.4e+38"),
    (b"-1e-300", "the weight is -1e-300"),
    (b"1e39", "the weight is 1e+39"),
    (b"null", "no weight: `weight` is null or NaN"),
]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("weight", "reason"), BAD)
def test_weight_that_cannot_be_makes_a_dead_letter(weight, reason, fast):
    row = b'{"id":"1","time":1.0,"sold":true,"weight":%b}'
    for role, delayed in (("labels", True), ("events", False)):
        decoder = Decoder(pipeline(delayed=delayed), role, fast=fast)
        values = [
            row.replace(b',"sold"', b',"site":"a","price":1.0,"sold"') % w for w in (b"2", weight, b"0", b"1e-30")
        ]
        batch = decoder.decode(Slice(role, 0, 0, 4, [Record(i, 10**6, None, v) for i, v in enumerate(values)]))
        assert batch.offset.tolist() == [0, 2, 3]
        assert batch.weight.dtype == np.float32
        assert batch.weight.tolist() == [2.0, 0.0, np.float32(1e-30)]
        (letter,) = batch.dead
        assert letter.path == "$.weight"
        assert letter.reason.startswith(reason)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weight_of_a_frame_that_is_not_finite_makes_a_dead_letter(weight):
    frame = pl.DataFrame([visit(i, sold=True, weight=weight if i == 1 else 1.0) for i in range(3)])
    results = pipeline(delayed=False).evaluate(frame)
    assert (results["dead_letters"], results["examples"]) == (1, 2)


def test_event_without_a_label_needs_no_weight():
    for fast in (False, True):
        value = b'{"id":"1","time":1.0,"site":"a","price":1.0,"sold":null,"weight":-5}'
        decoder = Decoder(pipeline(delayed=False), "events", fast=fast)
        batch = decoder.decode(Slice("events", 0, 0, 1, [Record(0, 10**6, None, value)]))
        assert not batch.dead and np.isnan(batch.y[0]) and np.isfinite(batch.weight[0])


@pytest.mark.parametrize("delayed", [False, True])
def test_both_decoders_give_the_same_weights(delayed):
    expression = pl.col("weight").fill_null(2.0) ** 2
    role = "labels" if delayed else "events"
    rng = np.random.default_rng(0)
    weights = [None, 0, 1, -0.0, 1e18, 1e-30, -3.5, 3e19, *rng.lognormal(0, 3, 200).tolist()]
    rows = [visit(i, sold=True, weight=w) if not delayed else sale(i, weight=w) for i, w in enumerate(weights)]
    records = [Record(i, (T0 + 9) * 1000, None, msgspec.json.encode(row)) for i, row in enumerate(rows)]
    for weight in ("weight", expression):
        fast, plain = (
            Decoder(pipeline(weight, delayed), role, fast=fast).decode(Slice(role, 0, 0, len(rows), records))
            for fast in (True, False)
        )
        assert fast.weight.tobytes() == plain.weight.tobytes()
        assert [(d.record.offset, d.reason, d.path) for d in fast.dead] == [(d.record.offset, d.reason, d.path) for d in plain.dead]  # fmt: skip
        assert len(fast) == len(rows) - (2 if isinstance(weight, str) else 0) - (0 if isinstance(weight, str) else 1)


def test_without_weights_a_batch_has_none():
    batch = Decoder(pipeline(None), "labels").decode(Slice("labels", 0, 0, 1, [Record(0, 10**12, None, msgspec.json.encode(sale(1)))]))  # fmt: skip
    assert batch.weight is None


# --- declared


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (2.0, r"labels.weight: expected a field or a Polars expression, got float 2.0"),
        ("wieght", r"labels.weight: Weighed has no field `wieght`; did you mean `weight`"),
        ("price", r"labels.weight: `price` is of Visit; a label and its weight are made of the fields of Weighed"),
        ("id", r'labels.weight: .*"id".* is str, and weight= takes numbers and bools'),
        (pl.col("weight") / pl.col("weight").sum(), r"labels.weight: .* is not row by row"),
    ],
)
def test_weight_declared_wrongly_says_what_to_write(weight, match):
    with pytest.raises(DeclarationError, match=match):
        pipeline(weight)


def test_weight_is_part_of_what_a_pipeline_learns_and_absent_where_there_is_none():
    assert "weight" not in pipeline(None).describe()["labels"]
    assert len({pipeline(w).fingerprint for w in (None, "weight", pl.col("weight") * 2)}) == 3
    assert ("weight", 'pl.col("weight"); of 0: scored and not learned') in [
        (subject, text.replace('"weight";', 'pl.col("weight");')) for subject, text in report(pipeline())["label"]
    ]


@pytest.mark.parametrize("change", [(None, "weight"), ("weight", None), ("weight", pl.col("weight") * 2)])
def test_snapshot_of_before_fits_when_labels_are_weighted_otherwise(change):
    was, now = (Run(pipeline(weight)) for weight in change)
    was.feed("labels", [sale("early", 0, weight=4.0)])
    was.feed("events", [visit(i, 1) for i in range(9)])
    state, notes = carry_over(was.engine.state(), Engine(now.pipeline))
    assert notes == ["labels are weighted otherwise"]
    now.engine.load(state)
    now.ends = dict(was.ends)
    now.feed("events", [visit("early", 2)])
    assert now.counts("joined", "examples") == (1, 1)
    early = state.partitions[0]["early/weight"]
    assert early.tolist() == [4.0 if change[0] == "weight" else 1.0]


def test_reader_asks_for_no_weight(redis_url, unique):
    declared = replace(pipeline(delayed=False), name=unique)
    run = Run(declared)
    for role, rows in turns(1, 50, delayed=False):
        run.feed(role, rows)
    arrays, meta = pack(Standing(run.engine, Position(run.ends, 0, 0)))
    SnapshotStore(redis_url, unique, 0).publish(arrays, meta, 1, NAN_ALLOWED)
    row = visit(99, 301, sold=True)
    with SnapshotReader(declared, redis_url) as reader:
        assert (
            reader.predict([row, row | {"weight": -3.0}]).tolist()
            == [run.feed("events", [row | {"sold": None}])[0]] * 2
        )
