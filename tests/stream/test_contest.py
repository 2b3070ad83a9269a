"""Several models on one stream: each is as if alone, one of them serves, and who it was is told."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from engine_run import SIDE, T0, Averages, Click, Sale
from engine_run import Run as OneRun
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from headrace import (
    Best,
    DeclarationError,
    Events,
    Labels,
    Pipeline,
    Predictions,
    category,
    count,
    mean,
    numeric,
)
from headrace.models import (
    FTRL,
    SGD,
    Array,
    Average,
    Learner,
    LinearRegression,
    LogisticRegression,
    PageHinkley,
    Prior,
    SoftmaxRegression,
    StandardScaler,
)
from headrace.models.base import Configured, NotFinite, register
from headrace.stream.check import report
from headrace.stream.encode import Served, encode_predictions
from headrace.stream.evaluate_report import report as figures
from headrace.stream.fast_encode import prediction_rows
from headrace.stream.poison import process_carefully

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example runs engines; shrinking one takes minutes
HOUR = 3600


@register
@dataclass(eq=False)
class Steps(Averages):
    """Raises on a price."""

    def predict(self, x, out):
        if (x.numeric[:, 0] == 13).any():
            raise ValueError("cannot take 13")
        super().predict(x, out)


MODELS = {
    "linear": lambda: StandardScaler(half_life="20h") | LogisticRegression(FTRL(0.2, half_life="9h"), bits=8),
    "both": lambda: Average(StandardScaler(half_life="3h") | LogisticRegression(SGD(0.05), bits=7), Prior()),
    "steps": lambda: Steps(),
}


def pipeline(models=("linear", "both", "steps"), delayed=True, otherwise=None, **changes):
    """With labels on a topic of their own, or in the event. models: names, or models by name; a text: `model`."""
    later = Labels("sales", Sale, value="sold", within="1h", otherwise=otherwise, **SIDE)
    if isinstance(models, tuple):
        models = {name: MODELS[name]() for name in models}
    made = {"model": MODELS[models]()} if isinstance(models, str) else {"models": models}
    fields = dict(
        name="contest",
        events=Events("clicks", Click, **SIDE),
        labels=later if delayed else Labels(value="sold"),
        features=[
            numeric("price"), category("site"), count(by="site", over="1h", capacity=9),
            mean("label", by="site", over="6h", capacity=9),
        ],
        predictions=Predictions("scores"),
        **made,
    )  # fmt: skip
    return Pipeline(**(fields | changes))


class Run(OneRun):
    """An engine with two partitions, which keeps who made each prediction."""

    def __init__(self, declared):
        super().__init__(declared, partitions=2)
        self.out, self.by, self.pieces = [], [], []

    def feed(self, role, rows, partition=0, cuts=(), later=False):
        for done in self.process(role, rows, partition, cuts, later):
            piece = done.predicted
            if piece is not None:
                self.pieces.append(piece)
                self.out.append(piece.out)
                self.by += [None] * len(piece.out) if piece.by is None else piece.by.tolist()
        return self

    def feed_all(self, runs, cuts=None, later=False):
        for i, (role, rows) in enumerate(runs):
            at = () if cuts is None else sorted(cuts.integers(0, len(rows) + 1, 2).tolist())
            self.feed(role, rows, i % 2 if role == "both" else 0, at, later)
        return self

    def predictions(self):
        return np.concatenate(self.out)

    def arrays(self, prefix=""):
        self.engine.counters()  # does what was left for later
        return {n.removeprefix(prefix): a.copy() for n, a in self.engine.arrays.items() if n.startswith(prefix)}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)


def stream(seed=0, events=240, hours=9, delayed=True):
    """(role, rows) in order of time. What makes a sale turns round after half of the time."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(events):
        at = T0 + HOUR * hours * (i + rng.random()) / events
        site, price = "abcd"[rng.integers(4)], float(rng.normal(5, 3))
        likely = (price > 5) != (i > events / 2)
        sold = bool(rng.random() < (0.9 if likely else 0.1))
        click = {"id": str(i), "time": at, "site": site, "price": price}
        rows.append((at, "events", click if delayed else click | {"sold": sold if rng.random() < 0.9 else None}))
        if delayed and rng.random() < 0.9:
            late = at + float(rng.exponential(1200)) - 60
            rows.append((late, "labels", {"id": str(i), "time": late, "sold": sold}))
    runs = []
    for _, role, row in sorted(rows, key=lambda row: row[0]):
        if not runs or runs[-1][0] != role or len(runs[-1][1]) >= 16:
            runs.append((role, []))
        runs[-1][1].append(row)
    return runs


# --- each as if alone


@pytest.mark.parametrize("drift", [None, PageHinkley(min_instances=5, threshold=1.0, action="reset")])
@pytest.mark.parametrize("delayed", [True, False])
def test_each_model_predicts_learns_and_is_scored_to_the_bit_as_the_only_one(delayed, drift):
    declared = dict(delayed=delayed, otherwise=False if delayed else None, drift=drift)
    contest = Run(pipeline(**declared)).feed_all(stream(1, delayed=delayed))
    contest.engine.end_cycle()
    for name in MODELS:
        alone = Run(pipeline(name, **declared)).feed_all(stream(1, delayed=delayed))
        alone.engine.end_cycle()
        assert_same(contest.arrays(f"model/{name}/"), alone.arrays("model/"))
        assert_same(contest.arrays(f"contest/{name}/"), alone.arrays("metrics/"))
        assert_same(contest.arrays(f"drift/{name}/"), alone.arrays("drift/"))
        told = contest.engine.results_of_models()[name]
        results = alone.engine.results()
        assert {what: told[what] for what in results} == results
        assert drift is None or told["drifts"] == alone.engine.counters()["drifts"]
        if name == "linear":
            np.testing.assert_array_equal(contest.predictions(), alone.predictions())
            assert_same(contest.arrays("metrics/"), alone.arrays("metrics/"))
    assert contest.engine.results_of_models()["linear"]["served"] == 240
    drifts = [told.get("drifts", 0) for told in contest.engine.results_of_models().values()]
    assert contest.engine.counters()["drifts"] == sum(drifts)
    assert drift is None or sum(drifts) > 1
    assert [told["serves"] for told in contest.engine.results_of_models().values()] == [1, 0, 0]


def test_waiting_rows_hold_what_each_model_said_when_the_event_came():
    run = Run(pipeline()).feed_all(stream(2)[:30])
    waits = run.engine.partitions[0].state()
    assert waits["pending/said"].shape == (len(waits["pending/key"]), 3, 1)
    for i, name in enumerate(MODELS):
        alone = Run(pipeline(name)).feed_all(stream(2)[:30])
        said = alone.engine.partitions[0].state()["pending/prediction"]
        assert len(np.unique(said)) > 2
        np.testing.assert_array_equal(waits["pending/said"][:, i], said)
    np.testing.assert_array_equal(waits["pending/said"][:, 0], waits["pending/prediction"])


@settings(max_examples=12, deadline=None, phases=UNSHRUNK)
@given(
    seed=st.integers(0, 99), cut_seed=st.integers(0, 99), delayed=st.booleans(), later=st.booleans(),
    lead=st.sampled_from([None, 0.0, 1.0]), drift=st.booleans(),
)  # fmt: skip
def test_state_predictions_and_who_served_do_not_depend_on_the_cuts(seed, cut_seed, delayed, later, lead, drift):
    declared = pipeline(
        delayed=delayed,
        serve=None if lead is None else Best("1h", lead=lead),
        drift=PageHinkley(min_instances=5, threshold=1.0, action="reset") if drift else None,
    )
    whole = Run(declared).feed_all(stream(seed, delayed=delayed))
    cut = Run(declared).feed_all(stream(seed, delayed=delayed), np.random.default_rng(cut_seed), later)
    np.testing.assert_array_equal(cut.predictions(), whole.predictions())
    assert cut.by == whole.by
    assert cut.engine.counters() == whole.engine.counters()
    assert_same(cut.arrays(), whole.arrays())
    assert (len(set(whole.by)) > 1) or lead != 0.0


# --- who serves


def by_hand(runs, delayed, lead, window):
    """Who served each event, by the declaration's words, in plain Python: from what models alone have predicted."""
    names = list(MODELS)
    half_life = window / 3
    alone = {name: Run(pipeline(name, delayed=delayed)) for name in names}
    gained, squares, serving, by, switches, clock = {}, {}, 0, [], 0, None
    said = {}

    def learn(key, sold):
        nonlocal serving, switches
        loss = [-math.log(p if sold else 1 - p) for p in np.clip(np.float64(said.pop(key)), 2**-24, 1 - 2**-24)]
        for i in range(3):
            for j in range(3):
                gained[i, j] = gained.get((i, j), 0.0) + loss[i] - loss[j]
                squares[i, j] = squares.get((i, j), 0.0) + (loss[i] - loss[j]) ** 2
        ahead = [(gained[serving, j], j) for j in range(3) if gained[serving, j] > lead * squares[serving, j] ** 0.5]
        if ahead and max(ahead)[0] > 0:
            serving, switches = max(ahead)[1], switches + 1

    for role, rows in runs:
        for row in rows:
            if role == "events":
                steps = [math.floor(t * 64 / half_life) for t in (clock or row["time"], row["time"])]
                for sums in (gained, squares):
                    for at in sums:
                        sums[at] *= 2.0 ** (-(steps[1] - steps[0]) / 64)
                clock = max(clock or 0, row["time"])
            for name in names:
                alone[name].feed(role, [row])
            if role == "events":
                by.append(serving)
                said[row["id"]] = [float(alone[name].out[-1][0, 0]) for name in names]
                if not delayed and row["sold"] is not None:
                    learn(row["id"], row["sold"])
            elif row["id"] in said:
                learn(row["id"], row["sold"])
    return by, switches


def in_time(runs):
    """Without the labels that come before their event, or near the end of its wait."""
    came, kept = {}, []
    for role, rows in runs:
        rows = [r for r in rows if role == "events" or (r["id"] in came and r["time"] - came[r["id"]] < 0.9 * HOUR)]
        came |= {row["id"]: row["time"] for row in rows if role == "events"}
        kept += [(role, rows)] if rows else []
    return kept


@pytest.mark.parametrize("lead", [0.0, 1.5])
@pytest.mark.parametrize("delayed", [True, False])
def test_best_serves_whichever_lost_least_of_late_by_its_lead(delayed, lead):
    kept = in_time(stream(5, 120, 6, delayed))
    by, switches = by_hand(kept, delayed, lead, 3 * HOUR)
    run = Run(pipeline(delayed=delayed, serve=Best("3h", lead=lead))).feed_all(kept)
    assert run.by == by
    assert run.engine.results()["switches"] == switches > (3 if lead == 0.0 else 0)
    told = run.engine.results_of_models()
    assert [told[name]["served"] for name in MODELS] == [by.count(i) for i in range(3)]
    assert sum(one["serves"] for one in told.values()) == 1


def test_what_is_served_is_what_the_one_that_serves_said_and_its_loss_is_of_that():
    runs = in_time(stream(3))
    run = Run(pipeline(serve=Best("2h", lead=0.5)))
    alone = {name: Run(pipeline(name)).feed_all(runs) for name in MODELS}
    run.feed_all(runs)
    each = np.array([alone[name].predictions() for name in MODELS])
    np.testing.assert_array_equal(run.predictions(), each[run.by, np.arange(240)])
    assert len(set(run.by)) > 1
    y = np.full(240, np.nan, np.float32)
    for role, rows in runs:
        for row in rows:
            if role == "labels":
                y[int(row["id"])] = row["sold"]
    ids = [int(row["id"]) for role, rows in runs for row in rows if role == "events"]
    p = np.clip(run.predictions()[:, 0].astype(float), 2**-24, 1 - 2**-24)
    y = y[ids].astype(float)
    known = ~np.isnan(y)
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p))[known].mean()
    assert run.engine.counters()["joined"] == known.sum()
    assert run.engine.results()["log_loss"] == pytest.approx(loss, rel=1e-9)


def test_best_follows_a_stream_that_turns_round_and_comes_back():
    models = {"up": Fixed(0.9), "down": Fixed(0.1)}
    run = Run(pipeline(models, delayed=False, serve=Best("1h")))
    for hour, sold in enumerate([True, False, True]):
        rows = [
            {"id": f"{hour}-{i}", "time": T0 + HOUR * (3 * hour + i / 100), "site": "a", "price": 1.0, "sold": sold}
            for i in range(100)
        ]
        run.feed("events", rows)
    by = np.array(run.by)
    assert by[0] == 0 and by[99] == 0 and by[199] == 1 and by[299] == 0
    assert np.count_nonzero(np.diff(by)) == 2 == run.engine.results()["switches"]
    assert (by[100:] == 1).argmax() < 10  # what is three hours old says little any more


@register
@dataclass(eq=False)
class Fixed(Configured, Learner):
    """Says the same of everything."""

    p: float = 0.5
    updates, batch_size = "sequential", 1

    def layout(self, spec):
        return {"p": Array((1,), "float64", self.p)}

    def bind(self, spec, state, touched):
        self.state = state["p"]

    def predict(self, x, out):
        out[:] = self.state[0]

    def learn(self, x, truth):
        pass


def test_small_pieces_that_are_predicted_at_one_go_tell_who_served_each_row():
    declared = pipeline({"up": Fixed(0.9), "down": Fixed(0.1)}, delayed=False, serve=Best("900h", lead=0.0))
    declared = replace(declared, features=[numeric("price")])
    whole, pieces = Run(declared), Run(declared)
    rows = [
        {"id": f"{i}", "time": T0 + i, "site": "a", "price": 1.0, "sold": bool(sold)}
        for i, sold in enumerate(np.random.default_rng(1).integers(0, 2, 60))
    ]
    whole.feed("events", rows)
    pieces.feed("events", rows, cuts=range(1, 60, 7), later=True)
    assert pieces.by == whole.by and np.count_nonzero(np.diff(whole.by)) > 3
    np.testing.assert_array_equal(pieces.predictions(), whole.predictions())


def test_models_that_are_equal_do_not_take_turns():
    models = {"a": Fixed(0.3), "b": Fixed(0.3)}
    run = Run(pipeline(models, delayed=False, serve=Best(lead=0.0))).feed_all(stream(0, delayed=False))
    assert set(run.by) == {0} and run.engine.results()["switches"] == 0


# --- state


@pytest.mark.parametrize("delayed", [True, False])
def test_engine_that_loads_a_state_goes_on_as_the_one_that_gave_it(delayed):
    declared = pipeline(delayed=delayed, serve=Best("1h", lead=0.0), drift=PageHinkley(min_instances=5, threshold=1.0))
    runs = stream(4, delayed=delayed)
    half = len(runs) // 2
    first = Run(declared).feed_all(runs[:half])
    first.engine.end_cycle()
    state = first.engine.state()
    state = replace(
        state, shared={n: a.copy() for n, a in state.shared.items()}, meta=json.loads(json.dumps(state.meta))
    )
    assert state.meta["models"] == list(MODELS)
    assert state.meta["metrics_of_models"]["both"]["labels"] > 0
    second = Run(declared)
    second.engine.load(state)
    second.ends = dict(first.ends)
    before = len(first.by)
    for run in (first, second):
        run.feed_all(runs[half:])
    assert second.by == first.by[before:] and len(set(second.by)) > 1
    np.testing.assert_array_equal(second.predictions(), first.predictions()[before:])
    assert_same(second.arrays(), first.arrays())


def test_undo_puts_all_models_back():
    declared = pipeline(serve=Best("2h", lead=0.0))
    runs = stream(6)
    run, straight = Run(declared).feed_all(runs[:10]), Run(declared).feed_all(runs[:10])
    undo, ends, by = run.engine.undo_point(), dict(run.ends), list(run.by)
    run.feed_all(runs[10:14])
    run.engine.end_cycle()
    undo()
    run.ends, run.by = ends, by
    for one in (run, straight):
        one.feed_all(runs[10:])
        one.engine.end_cycle()
    assert run.by == straight.by
    assert_same(run.arrays(), straight.arrays())


def test_record_on_which_a_challenger_raises_is_a_dead_letter_for_all():
    runs = [(role, rows) for role, rows in stream(7) if role == "events"]
    run, clean = Run(pipeline()), Run(pipeline())
    rows = runs[0][1] + runs[1][1]
    bad = [*rows[:5], rows[5] | {"id": "bad", "price": 13.0}, *rows[5:]]
    batch = run.batch("events", bad)
    _, poison = process_carefully(run.engine, batch, 0, len(bad))
    assert poison == [5]
    clean.feed("events", rows)
    assert_same(run.arrays("model/"), clean.arrays("model/"))
    assert_same(run.arrays("contest/"), clean.arrays("contest/"))


def test_while_muted_no_model_learns_and_what_they_say_is_scored():
    run = Run(pipeline(serve=Best("2h", lead=0.0))).feed_all(stream(8)[:10])
    run.engine.end_cycle()
    before = run.arrays()
    run.engine.mute({(role, p): 10**9 for role in ("events", "labels") for p in (0, 1)})
    run.feed_all(stream(8)[10:])
    run.engine.end_cycle()
    goes_on = {"contest/served", "counters", "bad_at"} | {
        f"{of}/{name}"
        for of in ("metrics", *(f"contest/{m}" for m in MODELS))
        for name in ("sums", "positives", "negatives")
    }
    moved = {name for name, array in run.arrays().items() if (array != before[name]).any()}
    assert moved == goes_on
    assert run.engine.results_of_models()["both"]["labels"] == run.engine.counters()["joined"]


@pytest.mark.parametrize("delayed", [True, False])
def test_challenger_whose_prediction_is_not_finite_stops_the_cycle_and_is_named(delayed):
    run = Run(pipeline(delayed=delayed)).feed_all(stream(9, delayed=delayed)[:2])
    run.engine.arrays["model/steps/0/p"][:] = np.nan
    with pytest.raises(NotFinite, match=r"clicks\[0\]@\d+: the prediction of model 'steps' is \[nan\], not finite"):
        run.feed("events", stream(9, delayed=delayed)[2][1])
    with pytest.raises(NotFinite, match=r"steps/0/p\[0\] is nan"):
        run.engine.check_finite()


def test_tables_of_all_models_are_told_with_their_marks():
    run = Run(pipeline()).feed_all(stream(1)[:20])
    run.engine.end_cycle()
    names = set(run.engine.model_tables())
    assert {"model/linear/1/table", "model/both/0/0/1/table"} <= names
    for table, marks in run.engine.model_tables().values():
        assert len(marks) == -(-len(table) // 64)


def test_look_predicts_with_the_one_that_serves_and_changes_nothing():
    run = Run(pipeline(serve=Best("2h", lead=0.0))).feed_all(stream(3))
    assert run.engine.contest.serves != 0
    last = [row for role, rows in stream(3) for row in rows if role == "events"][-9:]
    batch = run.batch("events", [row | {"id": f"new {row['id']}"} for row in last])
    before = run.arrays()
    looked = run.engine.look(batch)
    assert_same(run.arrays(), before)
    assert run.engine.process(batch, batch.start, batch.next).predicted.out[0] == looked[0]  # as if the next event


# --- prediction records


@pytest.mark.parametrize("classes", [(), ("no", "yes")])
def test_prediction_records_name_the_model_that_made_them_in_both_encoders(classes):
    run = Run(pipeline(serve=Best("2h", lead=0.0))).feed_all(stream(3), np.random.default_rng(0))
    assert len(set(run.by)) > 1
    served = Served("linear", 3, 0.25, classes, models=tuple(MODELS))
    pieces = [replace(p, out=np.hstack([1 - p.out, p.out])) if classes else p for p in run.pieces]
    one_by_one = [record for piece in pieces for record in encode_predictions(piece, "clicks", served)]
    rows, ends = prediction_rows({0: pieces}, "clicks", served)
    assert ends == {0: len(one_by_one)}
    assert [bytes(value) for value in rows.values.take(slice(None))] == [value for _, value, _, _ in one_by_one]
    assert [json.loads(value)["model"] for _, value, _, _ in one_by_one] == [[*MODELS][by] for by in run.by]


def test_where_the_first_serves_its_name_stands_in_each_record():
    run = Run(pipeline()).feed_all(stream(3)[:4])
    served = Served("linear", 3, 0.25, (), models=tuple(MODELS))
    assert set(run.by) == {None}
    told = [json.loads(v)["model"] for p in run.pieces for _, v, _, _ in encode_predictions(p, "clicks", served)]
    assert set(told) == {"linear"}


# --- what is shown


def frames(seed=0):
    runs = stream(seed)
    sides = {role: [row for r, rows in runs for row in rows if r == role] for role in ("events", "labels")}
    return pl.DataFrame(sides["events"]), pl.DataFrame(sides["labels"])


def text_of(results):
    from rich.console import Console

    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(figures(results))
    return console.export_text()


@pytest.mark.parametrize("serve", [None, Best("1h", lead=0.0)])
def test_evaluate_has_a_column_for_each_model(serve):
    results = pipeline(serve=serve).evaluate(*frames())
    assert list(results["models"]) == list(MODELS)
    for name in MODELS:
        alone = pipeline(name).evaluate(*frames())
        assert results["models"][name]["log_loss"] == alone["log_loss"]
    text = text_of(results)
    (losses,) = [line for line in text.splitlines() if line.startswith("log loss")]
    shown = [f"{results['models'][name]['log_loss']:.4f}" for name in MODELS]
    head = text.splitlines()[0].split()
    if serve is None:
        assert losses.split()[2:5] == shown and head[:4] == ["linear", "(serves)", "both", "steps"]
        assert results["log_loss"] == results["models"]["linear"]["log_loss"]
    else:
        assert losses.split()[2:6] == [f"{results['log_loss']:.4f}", *shown]
        assert head[:4] == ["served", *MODELS]
        assert f"switches {results['switches']}" in " ".join(text.split())
    json.dumps(results)


def test_a_model_alone_has_no_such_columns():
    results = pipeline("linear").evaluate(*frames())
    assert "models" not in results
    assert text_of(results).splitlines()[0].split() == ["value", "baseline"]


def test_check_lists_the_models_and_who_serves():
    first = report(pipeline())["model"]
    assert [text for subject, text in first if subject in ("linear:", "both:", "steps:")] == [
        "serves", "in its shadow", "in its shadow",
    ]  # fmt: skip
    best = dict(report(pipeline(serve=Best("6h")))["model"])
    assert "best of late" in best["serves"] and "6h" in best["serves"] and "linear at first" in best["serves"]


# --- declarations


def test_order_of_the_models_and_who_serves_are_part_of_the_description():
    prints = {
        pipeline(models, serve=serve).fingerprint
        for models in (("linear", "steps"), ("steps", "linear"))
        for serve in (None, Best("6h"), Best("7h"))
    }
    assert len(prints) == 6
    told = pipeline(("linear", "steps"), serve=Best("6h")).describe()
    assert told["serve"] == {"name": "Best", "window": "6h", "lead": 2.0, "first": "linear"}
    assert list(told["models"]) == ["linear", "steps"] and "model" not in told
    assert pipeline(("steps", "linear")).describe()["serve"] == "steps"
    assert "model" in pipeline("linear").describe() and "serve" not in pipeline("linear").describe()


def test_models_of_a_pipeline_are_its_own():
    models = {"a": Prior()}
    declared = pipeline(models)
    models["b"] = Prior()
    assert list(declared.models) == ["a"]


def test_several_classes_and_values_are_contests_too():
    labels = Labels(value=pl.col("site"), classes=["a", "b", "c", "d"])
    models = {"soft": StandardScaler() | SoftmaxRegression(FTRL(), bits=6), "prior": Prior()}
    rows = frames()[0]
    features = [numeric("price")]
    results = pipeline(models, labels=labels, features=features, serve=Best("1h")).evaluate(rows)
    assert {name: told["labels"] for name, told in results["models"].items()} == {"soft": 240, "prior": 240}
    models = {"slow": LinearRegression(SGD(1e-4)), "quick": LinearRegression(FTRL())}
    values = Labels(value=pl.col("price"))
    features = [category("site")]
    results = pipeline(models, labels=values, features=features, serve=Best("1h")).evaluate(rows)
    assert results["models"]["slow"]["mae"] != results["models"]["quick"]["mae"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(models={}), r"models: expected \{\"a\": ..., \"b\": ...\}"),
        (dict(models=[Prior()]), "models: expected"),
        (dict(model=Prior()), "models: there is model= as well; give one of the two"),
        (dict(models=None), "model: expected a model of headrace.models.*None"),
        (dict(models={"a/b": Prior()}), "expected names of a letter.*'a/b'"),
        (dict(models={"0": Prior()}), "expected names of a letter.*'0'"),
        (dict(models={3: Prior()}), "expected names of a letter.*got 3"),
        (dict(models={"a": Prior(), "b": LinearRegression()}), r"models\['b'\]: LinearRegression learns a regression"),
        (dict(models={"a": Prior}), r"models\['a'\]: expected a model, got the class Prior; write Prior\(\)"),
        (dict(models={"a": StandardScaler()}), r"models\['a'\]: .*cannot learn a label"),
        (dict(models={f"m{i}": Prior() for i in range(101)}), "100 models at most, got 101"),
        (dict(serve="best"), r"serve: expected Best\(window=\"6h\"\) or None"),
        (dict(models=None, model=Prior(), serve=Best()), "serve: chooses among models=.*leave it away"),
        (dict(labels=None), "models: without labels none of them could be scored"),
        (
            dict(models={"a": Prior(), "b": Steps()}, drift=PageHinkley(action="boost")),
            r"boost scales down what Steps\(.*which is nothing",
        ),
    ],
)
def test_contest_declared_wrongly_says_what_to_write(change, match):
    changes = {"features": [numeric("price")]} if "labels" in change else {}
    with pytest.raises(DeclarationError, match=match):
        pipeline(**changes | change)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Best("soon"), r"Best\(window=\)"),
        (lambda: Best(lead=-1), r"Best\(lead=\).*at least 0"),
        (lambda: Best(lead=math.nan), r"Best\(lead=\)"),
    ],
)
def test_best_declared_wrongly_says_what_to_write(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()
