"""An engine that listens for drift: when it hears one, and what it then does to the model."""

import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from engine_run import BEYOND, SIDE, T0, Click, Sale, assert_same
from engine_run import Run as PlainRun
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from headrace import DeclarationError, Events, Labels, Pipeline, Predictions, category, mean, numeric
from headrace.models import (
    ADWIN,
    DDM,
    FTRL,
    KSWIN,
    SGD,
    Array,
    Configured,
    Learner,
    LinearRegression,
    LogisticRegression,
    PageHinkley,
    Rows,
    StandardScaler,
    Truth,
    allocate,
    allocate_touched,
    register,
)
from headrace.models.drift import watched
from headrace.stream import evaluate_report
from headrace.stream.check import report
from headrace.stream.drift import BLOCK
from headrace.stream.engine import Engine
from headrace.stream.remap import carry_over
from headrace.stream.slices import Record, Slice

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example runs an engine; shrinking one takes minutes


@register
@dataclass(eq=False)
class Slow(Configured, Learner):
    """Learns in micro-batches: a step towards the mean label of each, the smaller the more evidence there is."""

    updates: str = "micro_batch"
    batch_size: int = 7

    def layout(self, spec):
        return {"p": Array((1,), "float64", 0.5), "n": Array((1,), "float64")}

    def bind(self, spec, state, touched):
        self.p, self.n = state["p"], state["n"]

    def predict(self, x, out):
        out[:] = self.p[0]

    def learn(self, x, truth):
        known = truth.y[~np.isnan(truth.y)]
        if len(known):
            self.n += len(known)
            self.p += len(known) / (self.n + 20) * (known.mean() - self.p)

    def decays(self):
        return [(3_600_000_000, self.decay)]

    def decay(self, factor):
        self.n *= factor


# The sequential one forgets a few times in five hours alone: blocks of examples are learned at one go.
MODELS = {
    "sequential": lambda: StandardScaler(half_life="160h") | LogisticRegression(FTRL(half_life="90h"), bits=8),
    "micro-batches": lambda: StandardScaler(half_life="1h") | Slow(),
}
QUICK = {"min_instances": 5, "threshold": 1.0}  # fires every few blocks


def pipeline(drift=None, model="sequential", delayed=True, otherwise=None, **changes):
    """With labels on a topic of their own, or in the event."""
    labels = (
        Labels("sales", Sale, value="sold", within="1h", otherwise=otherwise, **SIDE)
        if delayed
        else Labels(value="sold")
    )
    fields = dict(
        name="drifting",
        events=Events("clicks", Click, **SIDE),
        labels=labels,
        features=[numeric("price"), category("site"), mean("label", by="site", over="6h", capacity=9)],
        model=MODELS[model]() if isinstance(model, str) else model,
        predictions=Predictions("scores"),
        drift=drift,
    )
    return Pipeline(**(fields | changes))


class Run(PlainRun):
    """With what these tests ask of one."""

    def feed(self, role, rows, cuts=()):
        return super().feed(role, rows, cuts=cuts)

    def feed_all(self, turns):
        return np.concatenate([self.feed(role, rows) for role, rows in turns])

    def count(self, name):
        return self.counts(name)[0]

    def learner(self):
        """The arrays of the learner, which comes after a scaler."""
        return {name: array.copy() for name, array in self.engine.arrays.items() if name.startswith("model/1/")}


def stream(seed, events=400, delayed=True):
    """(role, rows) in turn: clicks over five hours, and the sales of most; who buys what changes three times."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(events):
        at, site, price = float(300 * i / events), "abcde"[rng.integers(5)], float(rng.normal(5, 3))
        score = (price - 5) * (1 if i // 100 % 2 else -1) + (site < "c")
        sold = bool(rng.random() < 1 / (1 + np.exp(-score)))
        row = {"id": str(i), "time": T0 + 60 * at, "site": site, "price": price}
        rows.append((at, "events", row | ({} if delayed else {"sold": sold if i % 9 else None})))
        if delayed and rng.random() < 0.9:
            later = at + float(rng.exponential(5)) - 1  # some come before their event
            rows.append((later, "labels", {"id": str(i), "time": T0 + 60 * later, "sold": sold}))
    turns = []
    for _, role, row in sorted(rows, key=lambda row: row[0]):
        if turns and turns[-1][0] == role:
            turns[-1][1].append(row)
        else:
            turns.append((role, [row]))
    return turns


# --- when it hears, and when it acts


@pytest.mark.parametrize("detector", [PageHinkley(**QUICK), ADWIN(0.5, clock=1), DDM(5, 1.0), KSWIN(0.1, 40, 20)])
def test_detector_hears_the_loss_of_the_predictions_that_were_made_before_the_label(detector):
    run = Run(pipeline(detector, delayed=False))
    turns = stream(1, delayed=False)
    out = run.feed_all(turns)
    rows = [row for _, of in turns for row in of]
    known = [i for i, row in enumerate(rows) if row["sold"] is not None]
    y = np.array([rows[i]["sold"] for i in known], np.float32)
    alone = detector.unbound()
    alone.bind(run.engine.spec, allocate(alone.layout(run.engine.spec)), {})
    fired = np.empty(len(known), bool)
    alone.update(watched(detector.on, "binary", y, out[known][:, None]), fired)
    assert run.count("drifts") == fired.sum() > 0
    last = int(np.flatnonzero(fired)[-1])
    results = run.engine.results()
    assert results["last_drift_example"] == last
    assert results["last_drift_time"] == pytest.approx(rows[known[last]]["time"], abs=1e-5)


def test_delayed_label_is_heard_with_the_prediction_that_waited_for_it():
    detector = PageHinkley(**QUICK)
    run = Run(pipeline(detector, features=[numeric("price")]))
    rows = [(role, row) for role, rows in stream(1) for row in rows]
    waiting, labels = {}, []
    for first in range(0, 400, 40):  # events of half an hour, which learn nothing from one another, then their labels
        chunk = {
            of: [row for role, row in rows if role == of and first <= int(row["id"]) < first + 40]
            for of in ("events", "labels")
        }
        waiting |= dict(zip((row["id"] for row in chunk["events"]), run.feed("events", chunk["events"])))
        run.feed("labels", chunk["labels"])
        labels += chunk["labels"]
    assert run.count("joined") == len(labels)
    y = np.array([row["sold"] for row in labels], np.float32)
    p = np.array([waiting[row["id"]] for row in labels], np.float32)
    alone, fired = detector.unbound(), np.empty(len(labels), bool)
    alone.bind(run.engine.spec, state := allocate(alone.layout(run.engine.spec)), {})
    alone.update(watched("loss", "binary", y, p[:, None]), fired)
    assert run.count("drifts") == fired.sum() > 0
    np.testing.assert_array_equal(run.engine.arrays["drift/detector/sums"], state["sums"])
    assert run.engine.results()["last_drift_time"] == pytest.approx(labels[np.flatnonzero(fired)[-1]]["time"], abs=1e-5)


def test_rows_without_a_label_after_the_end_of_a_block_are_predicted_by_the_model_that_was_acted_on():
    rows = stream(3, 200, delayed=False)[0][1]
    for i, row in enumerate(rows):
        row["sold"] = None if i % (BLOCK + 5) >= BLOCK else (i // 50 + (row["price"] > 5)) % 2 == 0
    whole, cut = (
        Run(pipeline(PageHinkley(**QUICK, action="reset"), delayed=False, features=[numeric("price")]))
        for _ in range(2)
    )
    expected = [whole.feed("events", rows[a : a + BLOCK + 5]) for a in range(0, 200, BLOCK + 5)]
    got = [cut.feed("events", [row]) for row in rows]
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(expected))
    assert whole.engine.results()["drift_actions"] > 1


@pytest.mark.parametrize("delayed", [False, True])
def test_report_counts_and_changes_nothing(delayed):
    turns = stream(2, delayed=delayed)
    runs = Run(pipeline(PageHinkley(**QUICK), delayed=delayed)), Run(pipeline(delayed=delayed))
    np.testing.assert_array_equal(runs[0].feed_all(turns), runs[1].feed_all(turns))
    counters = [run.engine.counters() for run in runs]
    assert counters[0].pop("drifts") > 0 == counters[1].pop("drifts")
    assert counters[0] == counters[1]
    one, two = runs[0].shared(), runs[1].shared()
    assert {name for name in one if name not in two} == {"drift/detector/sums", "drift/marks"}
    for name, array in two.items():
        if name != "counters":
            np.testing.assert_array_equal(array, one[name], name)


@pytest.mark.parametrize("action", ["boost", "reset"])
def test_label_in_the_event_is_learned_as_a_plain_account_of_blocks_says(action):
    """Row by row with model and detector alone; after each 32nd example what became due is done."""
    detector = PageHinkley(**QUICK, action=action, boost=0.2)
    declared = pipeline(detector, delayed=False, features=[numeric("price"), numeric("time")])
    run = Run(declared)
    turns = stream(3, delayed=False)
    out = run.feed_all(turns)

    model, alone = declared.model.unbound(), detector.unbound()
    spec = declared.spec
    layout = model.layout(spec)
    state, touched = allocate(layout), allocate_touched(layout)
    model.bind(spec, state, touched)
    alone.bind(spec, allocate(alone.layout(spec)), {})
    fired, rose, predicted = np.empty(1, bool), np.empty(1, bool), np.empty((1, 1), np.float32)
    heard, due, acted, fell, none = 0, False, 0, 0, np.empty((1, 0), np.uint64)
    clock = None
    for i, row in enumerate(row for _, rows in turns for row in rows):
        now = int(row["time"] * 1e6)
        for half_life, decay in model.decays():  # as event time passes
            step = half_life // 64
            steps = 0 if clock is None else now // step - clock // step
            if steps:
                decay(2.0 ** (-steps * step / half_life))
        clock = now
        x = Rows(np.array([[row["price"], row["time"]]], np.float32), none)
        y = np.array([np.nan if row["sold"] is None else row["sold"]], np.float32)
        model.test_then_learn(x, Truth(y[:, None], np.ones(1, np.float32)), predicted)
        assert predicted[0, 0] == out[i], i
        if row["sold"] is None:
            continue
        alone.hear(watched("loss", "binary", y, predicted), fired, rose)
        heard, due, fell = heard + 1, due or rose[0], fell + (fired[0] and not rose[0])
        if heard % BLOCK == 0 and due:
            due, acted = False, acted + 1
            if action == "boost":
                model.learner.decay(0.2)
            else:
                for name, array in model.learner.layout(spec).items():
                    state[f"1/{name}"][:] = array.fill
    assert run.engine.results()["drift_actions"] == acted > 2 and fell > 0
    for name, array in state.items():
        np.testing.assert_array_equal(array, run.engine.arrays[f"model/{name}"], name)


def test_reset_puts_the_learner_at_its_beginning_and_keeps_the_scaler():
    run = Run(pipeline(PageHinkley(**QUICK, action="reset")))
    watch = run.engine.drift
    run.feed_all(stream(4)[:100])
    before = run.shared()
    for marks in run.engine.shared.touched.values():
        marks[:] = 0
    watch._act()
    new = Run(pipeline()).learner()
    for name, array in run.learner().items():
        np.testing.assert_array_equal(array, new[name], name)
        assert not np.array_equal(before["model/1/table"], new["model/1/table"])
    for name in ("model/0/mean", "model/0/count", "metrics/sums"):
        np.testing.assert_array_equal(run.engine.arrays[name], before[name])
    assert all(marks.all() for marks in run.engine.shared.touched.values())  # so that a snapshot holds what changed
    run.feed_all(stream(5)[:1])


def test_boost_scales_the_evidence_of_the_learner_and_keeps_what_is_predicted():
    run = Run(pipeline(PageHinkley(**QUICK, action="boost", boost=0.25)))
    run.feed_all(stream(4)[:100])
    before, learner = run.shared(), run.learner()
    rows = [row for role, of in stream(6) for row in of if role == "events"][:20]
    looked = run.decoders["events"].decode(Slice("events", 0, 0, 20, [Record(i, T0 * 1000, None, json.dumps(r).encode()) for i, r in enumerate(rows)]))  # fmt: skip
    predicted = run.engine.look(looked)
    run.engine.drift._act()
    np.testing.assert_array_equal(run.engine.arrays["model/1/table"][:, 1], learner["model/1/table"][:, 1] * 0.25)
    np.testing.assert_array_equal(run.engine.arrays["model/0/count"], before["model/0/count"])
    np.testing.assert_allclose(run.engine.look(looked), predicted, rtol=1e-5)


@pytest.mark.parametrize("action", ["boost", "reset"])
def test_a_model_that_acts_on_a_drift_recovers_sooner(action):
    def late_loss(drift):
        rng = np.random.default_rng(0)
        price = rng.normal(size=6_000)
        sold = rng.random(6_000) < 1 / (1 + np.exp(np.where(np.arange(6_000) < 3_000, -3, 3) * price))
        rows = pl.DataFrame({"id": np.arange(6_000).astype(str), "time": T0 + np.arange(6_000.0), "site": "a", "price": price, "sold": sold})  # fmt: skip
        model = LogisticRegression(FTRL(half_life="30d"), bits=6)
        return pipeline(drift, model, delayed=False, features=[numeric("price")]).evaluate(rows)

    without, acting = late_loss(None), late_loss(ADWIN(action=action))
    assert acting["drifts"] >= 1 and "last_drift_time" not in without
    assert acting["log_loss"] < 0.93 * without["log_loss"]


# --- cuts, cycles, state


@settings(max_examples=4, deadline=None, phases=UNSHRUNK)
@given(
    seed=st.integers(0, 1000), cut_seed=st.integers(0, 1000), otherwise=st.sampled_from([None, False]),
    detector=st.sampled_from([PageHinkley(**QUICK), ADWIN(0.5, clock=1), DDM(5, 1.0), KSWIN(0.1, 40, 20)]),
)  # fmt: skip
@pytest.mark.parametrize("action", ["report", "boost", "reset"])
@pytest.mark.parametrize("delayed", [False, True])
def test_nothing_depends_on_where_slices_and_cycles_are_cut(delayed, action, seed, cut_seed, otherwise, detector):
    declared = pipeline(replace(detector, action=action), delayed=delayed, otherwise=otherwise)
    whole, cut = Run(declared), Run(declared)
    rng = np.random.default_rng(cut_seed)
    expected, got = [], []
    turns = stream(seed, 250, delayed)
    for role, rows in (
        turns if delayed else [(role, rows[a : a + 90]) for role, rows in turns for a in range(0, 250, 90)]
    ):
        expected.append(whole.feed(role, rows))
        at = int(rng.integers(0, len(rows) + 1))
        for part in (rows[:at], rows[at:]):
            cuts = set(rng.integers(1, len(part), 3).tolist()) if len(part) > 1 else ()
            got.append(cut.feed(role, part, cuts))
            if rng.random() < 0.3:
                cut.engine.end_cycle()
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(expected))
    assert_same(whole, cut)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("action", ["boost", "reset"])
@pytest.mark.parametrize("delayed", [False, True])
def test_an_engine_that_loads_a_state_or_is_put_back_goes_on_as_the_one_that_gave_it(model, action, delayed):
    declared = pipeline(PageHinkley(**QUICK, action=action), model, delayed, otherwise=False if delayed else None)
    turns = stream(7, delayed=delayed)
    if not delayed:
        turns = [("events", turns[0][1][a : a + 10]) for a in range(0, 400, 10)]
    one, two = Run(declared), Run(declared)
    half = len(turns) // 3
    one.feed_all(turns[:half])
    one.engine.end_cycle()
    state = one.engine.state()
    two.engine.load(replace(state, shared={name: array.copy() for name, array in state.shared.items()}))
    two.ends = dict(one.ends)
    undo, ends = one.engine.undo_point(), dict(one.ends)
    expected = one.feed_all(turns[half:])
    drifts = one.count("drifts")
    np.testing.assert_array_equal(two.feed_all(turns[half:]), expected)
    assert_same(one, two)
    undo()
    one.ends = ends
    assert 0 < one.count("drifts") < drifts
    np.testing.assert_array_equal(one.feed_all(turns[half:]), expected)
    assert_same(one, two)


def test_micro_batches_are_learned_and_acted_on():
    acting = Run(pipeline(PageHinkley(**QUICK, action="boost"), "micro-batches"))
    plain = Run(pipeline(None, "micro-batches"))
    for run in (acting, plain):
        run.feed_all(stream(8))
        run.engine.end_cycle()
    assert acting.count("examples") == plain.count("examples")
    assert acting.count("drifts") > 0
    assert acting.learner()["model/1/n"] < plain.learner()["model/1/n"]


@pytest.mark.parametrize("delayed", [False, True])
def test_while_muted_nothing_is_heard(delayed):
    run = Run(pipeline(PageHinkley(**QUICK, action="reset"), delayed=delayed))
    turns = stream(9, delayed=delayed)
    if not delayed:
        turns = [("events", turns[0][1][:200]), ("events", turns[0][1][200:])]
    half = len(turns) // 2
    run.feed_all(turns[:half])
    run.engine.end_cycle()
    before, drifts = run.shared(), run.count("drifts")
    run.engine.mute({(role, 0): BEYOND for role in run.decoders})
    run.feed_all(turns[half:])
    after = run.shared()
    assert run.count("unlearned") > 100 and run.count("drifts") == drifts > 0
    for name in before:
        if name.startswith(("drift/", "model/")):
            np.testing.assert_array_equal(before[name], after[name], name)


# --- declaring it


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: pipeline(ADWIN), "drift: expected a detector, got the class ADWIN; write ADWIN()"),
        (lambda: pipeline("adwin"), "drift: expected a detector of headrace.models, such as ADWIN(), got str 'adwin'"),
        (lambda: pipeline(ADWIN(), labels=None), "without labels there is none"),
        (
            lambda: pipeline(
                ADWIN(on="error"), LinearRegression(), labels=Labels(value="price"), features=[numeric("time")]
            ),
            "drift: ADWIN(on='error') counts wrong classes, and a regression has none; use on='loss'",
        ),
        (lambda: pipeline(ADWIN(action="boost"), LogisticRegression(SGD())), "which is nothing"),
        (lambda: pipeline(ADWIN(action="boost"), StandardScaler()), "cannot learn a label"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_remedy(declare, words):
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert words in str(caught.value)


def test_regression_hears_the_absolute_error():
    declared = pipeline(
        PageHinkley(5, threshold=10.0), StandardScaler() | LinearRegression(),
        labels=Labels(value=pl.col("price") * 2), features=[numeric("time")],
    )  # fmt: skip
    run = Run(declared)
    run.feed_all(stream(1, delayed=False))
    assert run.count("drifts") > 0


def test_pipeline_without_a_detector_describes_itself_as_before():
    plain, hearing = pipeline(), pipeline(ADWIN(action="boost"))
    assert "drift" not in plain.describe()
    assert hearing.describe()["drift"] == ADWIN(action="boost").config()
    assert plain.fingerprint != hearing.fingerprint
    assert {"drift/marks", "drift/detector/sums"}.isdisjoint(Engine(plain).arrays)


def test_snapshot_of_a_pipeline_without_detector_or_with_another_is_carried_over():
    plain = Run(pipeline())
    plain.feed_all(stream(1))
    hearing = Run(pipeline(PageHinkley(**QUICK, action="reset")))
    hearing.feed_all(stream(1))

    def carried(run, declared):
        state = run.engine.state()
        engine = Engine(declared)
        state = replace(state, meta=json.loads(json.dumps(state.meta)))
        state, notes = carry_over(state, engine)
        engine.load(state)
        return engine, notes

    engine, notes = carried(plain, pipeline(ADWIN()))
    assert notes == ["drift is declared otherwise"] and not engine.arrays["drift/detector/sums"].any()
    engine, notes = carried(hearing, pipeline(ADWIN()))
    assert notes == ["drift is declared otherwise"] and not engine.arrays["drift/marks"].any()
    np.testing.assert_array_equal(engine.arrays["model/1/table"], hearing.engine.arrays["model/1/table"])
    engine, notes = carried(hearing, pipeline(PageHinkley(**QUICK, action="boost")))  # goes on hearing
    assert notes == ["drift is declared otherwise"] and engine.arrays["drift/marks"].any()
    assert carried(hearing, pipeline())[1] == ["drift is declared otherwise"]
    assert carried(hearing, pipeline(PageHinkley(**QUICK, action="reset")))[1] == []


def test_check_and_the_report_of_an_evaluation_tell_of_it():
    declared = pipeline(PageHinkley(**QUICK, action="boost"), delayed=False)
    assert (
        "drift",
        f"{declared.drift!r} hears the loss; a drift makes the learner keep 0.1 of its evidence",
    ) in report(declared)["model"]
    rows = [row for _, of in stream(1, delayed=False) for row in of]
    results = declared.evaluate(pl.DataFrame(rows))
    assert results["drifts"] > 0
    table = evaluate_report.report(results)
    cells = [list(column.cells) for column in table.columns]
    assert f"{results['drifts']:,}" in cells[1] and f"{results['last_drift_example']:,}" in cells[1]
    assert any("2023-11-1" in cell for cell in cells[3])
