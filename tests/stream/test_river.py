"""Models of River in pipelines: their state is a pickle, which is signed, verified, replayed and undone."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import redis
from engine_run import SIDE, T0
from engine_run import Run as OneRun
from object_state import state_of
from river import anomaly, forest, linear_model, naive_bayes, preprocessing

from headrace import (
    DeclarationError,
    Events,
    InputError,
    Labels,
    Pipeline,
    Predictions,
    SnapshotError,
    SnapshotReader,
    numeric,
)
from headrace.connectors.store import SnapshotStore
from headrace.models import ADWIN, LogisticRegression, River, StandardScaler
from headrace.stream.check import report
from headrace.stream.engine import Engine
from headrace.stream.load import load_pipeline
from headrace.stream.poison import process_carefully
from headrace.stream.remap import carry_over
from headrace.stream.settings import Settings, hmac_key
from headrace.stream.signing import require_key
from headrace.stream.snapshot import NAN_ALLOWED, pack, unpack
from headrace.stream.standing import Position, Standing

KEY = b"a secret of some length"
TEXT_KEY = KEY.decode()
NAMES = ("price", "height")


class Visit(msgspec.Struct):
    id: str
    time: float
    price: float | None = None
    height: float | None = None
    site: str = "a"
    sold: bool | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


def scaled_logistic():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def declare(river, labels="later", name="visits", **changes):
    parts = dict(
        name=name,
        events=Events("visits", Visit, **SIDE),
        labels={
            "later": Labels("sales", Sale, value="sold", within="1h", **SIDE),
            "at once": Labels(value="sold"),
            "none": None,
        }[labels],
        features=[numeric("price"), numeric("height")],
        model=River(river),
        predictions=Predictions("scores"),
    )
    return Pipeline(**(parts | changes))


def visits(seed, count, first=0):
    rng = np.random.default_rng(seed)
    for i in range(first, first + count):
        price = None if rng.random() < 0.1 else float(rng.normal(5, 3))
        height = float(rng.normal(2, 1))
        sold = bool((price or 5) + 2 * height + rng.normal() > 9)
        yield {"id": f"v{i}", "time": T0 + i, "price": price, "height": height, "site": "abc"[i % 3], "sold": sold}


def sale(visit, after=10.0):
    return {"id": visit["id"], "time": visit["time"] + after, "sold": visit["sold"]}


class Run(OneRun):
    """An engine with one partition, whose cycles end with each slice."""

    def feed(self, role, rows):
        out = super().feed(role, rows)
        self.engine.end_cycle()
        return out

    @property
    def river(self):
        return self.engine.model.learner._work


def features(visit):
    return {name: float(np.float32(visit[name])) for name in NAMES if visit[name] is not None}


# ---- what is learned


def test_delayed_labels_teach_river_the_features_as_of_the_prediction_in_the_order_of_the_labels():
    run, hand = Run(declare(scaled_logistic())), scaled_logistic()
    rows = list(visits(1, 300))
    waiting, out, expected = [], [], []
    for at in range(0, 300, 20):
        events = rows[at : at + 20]
        out += run.feed("events", events).tolist()
        expected += [hand.predict_proba_one(features(row))[True] for row in events]
        waiting += events
        known, waiting = waiting[-25:-5][::-1], waiting[:-25] + waiting[-5:]
        run.feed("labels", [sale(row) | {"time": T0 + at + 20} for row in known])
        for row in known:
            hand.learn_one(features(row), row["sold"])
    np.testing.assert_array_equal(np.float32(out), np.float32(expected))
    assert state_of(run.river) == state_of(hand)
    assert run.engine.counters()["examples"] == 295


def test_label_in_the_event_is_learned_before_the_next_event_is_predicted():
    run, hand = Run(declare(scaled_logistic(), "at once")), scaled_logistic()
    rows = list(visits(2, 100))
    rows[7] = rows[7] | {"sold": None}
    expected = []
    for row in rows:
        expected.append(hand.predict_proba_one(features(row))[True])
        if row["sold"] is not None:
            hand.learn_one(features(row), row["sold"])
    np.testing.assert_array_equal(run.feed("events", rows), np.float32(expected))
    assert state_of(run.river) == state_of(hand)


@pytest.mark.parametrize("labels", ["none", "later", "at once"])
def test_anomaly_detector_learns_every_event_and_labels_only_measure_it(labels):
    model = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(n_trees=5, window_size=20, seed=1)
    run, hand = Run(declare(model, labels)), model.clone()
    rows, expected = list(visits(3, 200)), []
    for row in rows:
        expected.append(hand.score_one(features(row)))
        hand.learn_one(features(row))
    if labels == "later":
        rows = [{name: v for name, v in row.items() if name != "sold"} for row in rows]
    np.testing.assert_array_equal(run.feed("events", rows), np.float32(expected))
    if labels == "later":
        run.feed("labels", [sale(row) for row in visits(3, 200)])
    assert len(np.unique(expected)) > 20
    assert state_of(run.river) == state_of(hand)
    assert run.engine.counters()["examples"] == (0 if labels == "none" else 200)
    assert bool(run.engine.results()) == (labels != "none")
    assert run.pipeline.task == (None if labels == "none" else "binary")


def test_muted_rows_teach_nothing():
    for labels, model in (("none", anomaly.OneClassSVM()), ("later", scaled_logistic())):
        run = Run(declare(model, labels))
        rows = list(visits(4, 20))
        run.engine.mute({("events", 0): 20, ("labels", 0): 20})
        run.feed("events", rows)
        if labels == "later":
            run.feed("labels", [sale(row) for row in rows])
        asked = model.clone()  # what it is asked may leave a trace: pipelines of River plan their steps then
        for row in rows:
            (asked.score_one if labels == "none" else asked.predict_proba_one)(features(row))
        assert state_of(run.river) == state_of(asked), labels


def test_drift_starts_river_over_from_what_was_declared():
    run = Run(declare(scaled_logistic(), "at once", drift=ADWIN(delta=0.5, action="reset")))
    rows = list(visits(5, 600))
    for row in rows[300:]:
        row["sold"] = not row["sold"]
    run.feed("events", rows)
    assert run.engine.results()["drift_actions"] > 0
    assert run.river["LogisticRegression"].optimizer.n_iterations < 500


def test_odd_answers_are_counted_and_shown(tmp_path):
    run = Run(declare(naive_bayes.GaussianNB(), "at once"))
    run.feed("events", visits(6, 10))
    counters = run.engine.counters()
    assert (counters["unanswered"], counters["undeclared"]) == (1, 0)  # before the first label
    results = declare(naive_bayes.GaussianNB(), "at once").evaluate(pl.DataFrame(list(visits(6, 50))))
    assert results["unanswered"] == 1


# ---- state


def test_state_goes_on_bit_for_bit_in_another_engine_and_undo_takes_back_what_was_learned():
    model = forest.ARFClassifier(n_models=3, seed=1, grace_period=20)
    runs = [Run(declare(model, "at once")) for _ in range(3)]
    rows, more = list(visits(7, 150)), list(visits(8, 150, 150))
    runs[0].feed("events", rows)
    runs[2].feed("events", rows)
    runs[1].engine.load(runs[0].engine.state())
    undo = runs[2].engine.undo_point()
    for _ in range(2):
        runs[2].feed("events", visits(9, 100, 500))
        undo()
        runs[2].ends["events", 0] = 150
    runs[1].ends["events", 0] = 150
    outs = [run.feed("events", more).tobytes() for run in runs]
    assert outs[0] == outs[1] == outs[2]
    assert state_of(runs[0].river) == state_of(runs[1].river) == state_of(runs[2].river)
    for name, array in runs[0].engine.state().shared.items():
        if not name.startswith("opaque/"):
            np.testing.assert_array_equal(array, runs[1].engine.state().shared[name], name)
            np.testing.assert_array_equal(array, runs[2].engine.state().shared[name], name)


def test_state_without_the_pickle_is_refused():
    run, other = Run(declare(scaled_logistic())), Run(declare(scaled_logistic()))
    state = run.engine.state()
    del state.shared["opaque/0/river"]
    with pytest.raises(SnapshotError, match=r"no state of River\(StandardScaler.*another name"):
        other.engine.load(state)


def test_warm_up_leaves_no_trace_and_does_not_ask_river():
    run = Run(declare(Touchy(), "at once", features=[numeric("height")]))  # which cannot take the rows of a warm-up
    run.engine.warm_up()
    assert state_of(run.river) == state_of(Touchy())


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (lambda: preprocessing.StandardScaler(with_std=False) | linear_model.LogisticRegression(),
         "`0/river.model.StandardScaler.with_std` was True, is False"),
        (lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(l2=0.5),
         r"`0/river.model.LogisticRegression.l2` was 0.0, is 0.5"),
        (lambda: naive_bayes.GaussianNB(), "`0/river.model` was Pipeline, is GaussianNB"),
    ],
)  # fmt: skip
def test_model_declared_otherwise_is_refused_and_says_what_has_changed(now, told):
    run = Run(declare(scaled_logistic()))
    run.feed("events", visits(9, 30))
    state = run.engine.state()
    state.meta = json.loads(json.dumps(state.meta))
    carried, notes = carry_over(state, Engine(declare(scaled_logistic())))
    assert not notes and carried.shared.keys() == state.shared.keys()
    with pytest.raises(SnapshotError, match=told):
        carry_over(state, Engine(declare(now())))
    with pytest.raises(SnapshotError, match="`0/river` was another, is not there"):
        carry_over(state, Engine(declare(scaled_logistic(), model=StandardScaler() | LogisticRegression())))


def test_features_may_change_and_river_goes_on():
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    run = Run(declare(model, "at once"))
    run.feed("events", visits(10, 50))
    more = declare(model, "at once", features=[numeric("height"), numeric(pl.col("price") * 2, name="double")])
    other = Run(more)
    state, notes = carry_over(run.engine.state(), other.engine)
    assert len(notes) == 2
    other.engine.load(state)
    weights = dict(run.river["LogisticRegression"].weights)
    assert dict(other.river["LogisticRegression"].weights) == weights and weights.keys() == {"price", "height"}
    other.ends["events", 0] = 50
    other.feed("events", visits(11, 20, 50))
    assert other.river["LogisticRegression"].weights.keys() == {"price", "height", "double"}


# ---- what raises


class Touchy(linear_model.LogisticRegression):
    """Raises where the height is 13, half done."""

    where = "predict"

    def learn_one(self, x, y, w=1.0):
        super().learn_one(x, y, w)
        if self.where == "learn" and x["height"] == 13.0:
            raise ZeroDivisionError("13")

    def predict_proba_one(self, x):
        if 1 / x["height"] and self.where == "predict" and x["height"] == 13.0:
            raise ValueError("13 is\n too high")
        return super().predict_proba_one(x)


class TouchyTeacher(Touchy):
    where = "learn"


@pytest.mark.parametrize("model", [Touchy, TouchyTeacher])
@pytest.mark.parametrize("labels", ["at once", "later"])
def test_record_on_which_river_raises_becomes_a_dead_letter_and_the_rest_is_as_if_it_had_never_come(model, labels):
    careful, plain = (Run(declare(model(), labels)) for _ in range(2))
    rows = [row | {"height": 13.0} if i in (5, 6, 33) else row for i, row in enumerate(visits(12, 40))]
    bad = {5, 6, 33}
    at = {
        "events": bad if labels == "at once" or model is Touchy else set(),
        "labels": bad if model is TouchyTeacher else set(),
    }
    for role in careful.decoders:
        sent = rows if role == "events" else [sale(row) for row in rows if row["height"] != 13.0 or model is not Touchy]
        batch = careful.batch(role, sent)
        processed, poison = process_carefully(careful.engine, batch, batch.start, batch.next)
        careful.engine.end_cycle()
        assert set(poison) == at[role]
        plain.feed(role, [b"bad" if i in at[role] else row for i, row in enumerate(sent)])
        reasons = {letter.reason for done in processed for letter in done.dead}
        if at[role]:
            said = "ValueError: 13 is too high" if model is Touchy else "ZeroDivisionError: 13"
            assert reasons == {f"the model raised {said}"}
    assert state_of(careful.river) == state_of(plain.river)
    assert careful.engine.counters() == plain.engine.counters()


@pytest.mark.parametrize("model", [Touchy, TouchyTeacher])
def test_evaluate_goes_on_where_river_raises(model):
    frame = pl.DataFrame([row | {"height": 13.0} if i in (5, 33) else row for i, row in enumerate(visits(13, 60))])
    results = declare(model(), "at once").evaluate(frame)
    assert (results["dead_letters"], results["bad_events"], results["events"], results["examples"]) == (2, 2, 58, 58)
    sales = pl.DataFrame([sale(row) for row in visits(13, 60)])
    results = declare(model(), "later").evaluate(frame.drop("sold"), sales)
    assert results["dead_letters"] == 2
    assert results["examples"] == 58


# ---- signed, or not at all


class Marker:
    """A pickle that does something where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def publish(run, url, key, token=1):
    store = SnapshotStore(url, run.pipeline.name, hmac_key=key)
    standing = Standing(run.engine, Position({("events", 0): 1}, token + 1, 1))
    store.publish(*pack(standing), token, NAN_ALLOWED)
    return store


def test_pickle_is_not_loaded_unless_its_signature_was_verified(redis_url, unique, tmp_path):
    run = Run(declare(scaled_logistic(), name=unique))
    run.feed("events", visits(14, 30))
    harmful = str(tmp_path / "harm")
    dump = run.engine.model.learner.dump()
    run.engine.model.learner.dump = lambda: dump.partition(b"\n")[0] + b"\n" + pickle.dumps(Marker(harmful))
    publish(run, redis_url, None)
    unsigned = SnapshotStore(redis_url, unique).load()
    assert not unsigned.signed
    with pytest.raises(SnapshotError, match=r"`shared/opaque/0/river`.*not verified.*HEADRACE_HMAC_KEY"):
        unpack(unsigned.arrays, unsigned.meta, run.pipeline, signed=unsigned.signed)
    with pytest.raises(SnapshotError, match="is not signed"):
        SnapshotReader(run.pipeline, redis_url, hmac_key=KEY)
    publish(run, redis_url, b"the key of somebody else", token=2)
    with pytest.raises(SnapshotError, match="has another signature"):
        SnapshotReader(run.pipeline, redis_url, hmac_key=KEY)
    assert not os.path.exists(harmful)
    publish(run, redis_url, KEY, token=3)  # whoever has the key may do that
    SnapshotReader(run.pipeline, redis_url, hmac_key=KEY).close()
    assert os.path.exists(harmful)


def test_signed_snapshot_is_served_and_one_that_was_altered_is_not(redis_url, unique):
    run = Run(declare(scaled_logistic(), "at once", name=unique))
    run.feed("events", visits(15, 100))
    store = publish(run, redis_url, KEY)
    rows = [{k: v for k, v in row.items() if k != "sold"} for row in visits(16, 30, 100)]
    with pytest.raises(InputError, match=r"River\(StandardScaler.*signed.*HEADRACE_HMAC_KEY.*hmac_key=.*evaluate"):
        SnapshotReader(run.pipeline, redis_url)
    with SnapshotReader(run.pipeline, redis_url, hmac_key=KEY) as reader:
        got = reader.predict(rows)
        assert reader.predict(rows).tobytes() == got.tobytes()
    expected = [run.river.predict_proba_one(features(row))[True] for row in rows]
    np.testing.assert_array_equal(got, np.float32(expected))
    other = declare(linear_model.LogisticRegression(), "at once", name=unique)
    with pytest.raises(SnapshotError, match="was made with model"):
        SnapshotReader(other, redis_url, hmac_key=KEY)
    (entry,) = [array for array in store.show().arrays if array.name == "shared/opaque/0/river"]
    redis.Redis.from_url(redis_url).setrange(f"{store.name}:chunk:{entry.chunks[0][0]}", 40, b"\0\0")
    with pytest.raises(SnapshotError, match="was altered"):
        SnapshotReader(run.pipeline, redis_url, hmac_key=KEY)


def test_key_comes_from_the_environment_and_is_never_shown():
    assert hmac_key({}) is None and hmac_key({"HEADRACE_HMAC_KEY": " "}) is None
    assert hmac_key({"HEADRACE_HMAC_KEY": f"{TEXT_KEY}\n"}) == KEY
    with pytest.raises(InputError, match=r"HEADRACE_HMAC_KEY has 5 bytes.*16 or more.*token_hex"):
        hmac_key({"HEADRACE_HMAC_KEY": "short"})
    settings = Settings.from_environment({"HEADRACE_HMAC_KEY": TEXT_KEY})
    assert settings.hmac_key == KEY and TEXT_KEY not in repr(settings)


def test_models_with_arrays_alone_need_no_key():
    plain = declare(scaled_logistic(), model=StandardScaler() | LogisticRegression())
    require_key(plain, None)
    require_key(declare(scaled_logistic()), KEY)
    with pytest.raises(InputError, match="is kept only signed"):
        require_key(declare(scaled_logistic()), None)


def test_check_says_that_a_key_is_needed_and_what_an_anomaly_detector_does():
    sections = report(declare(scaled_logistic()))
    assert "HEADRACE_HMAC_KEY" in dict(sections["model"])["keeps"]
    sections = report(declare(anomaly.OneClassSVM(), "none"))
    assert dict(sections["label"])["none"] == "the pipeline predicts and the model learns from the features alone"
    assert dict(sections["writes"])["scores"] == "a prediction for each event: the score"
    sections = report(declare(anomaly.OneClassSVM()))  # labels only tell how good scores are
    assert dict(sections["writes"])["scores"] == "a prediction for each event: the score"


def test_bare_river_model_in_a_pipeline_is_told_to_be_wrapped():
    with pytest.raises(DeclarationError, match=r"LogisticRegression of river; write River\(\.\.\.\) around it"):
        declare(scaled_logistic(), model=linear_model.LogisticRegression())


# ---- real workers

RIVER_SHOP = """
from headrace.models import River
from river import compose, linear_model, preprocessing, tree

model = River(
    (compose.SelectType(float) | preprocessing.StandardScaler())
    + (compose.SelectType(str) | preprocessing.OneHotEncoder())
    | tree.HoeffdingTreeClassifier(grace_period=50, leaf_prediction="mc")
)
pipeline = Pipeline(**(parts | dict(latency="20ms", snapshots=Snapshots("200ms"), model=model)))
app = pipeline.app
"""


def declare_in(shop, text):
    """Give a shop another model."""
    shop.file.write_text(shop.file.read_text() + text)
    shop.pipeline = load_pipeline(str(shop.file))


def assert_stands_as_by_hand(shop):
    snapshot = SnapshotStore(shop.redis_url, shop.name, hmac_key=KEY).load_newest_whole()
    engine, expected = shop.by_hand()
    state = engine.state()
    found, _ = unpack(snapshot.arrays, snapshot.meta, shop.pipeline, signed=True)
    for name, array in state.shared.items():
        if not name.startswith("opaque/"):
            np.testing.assert_array_equal(found.shared[name], array, name)
    loaded = Engine(shop.pipeline)
    loaded.load(found)
    assert state_of(loaded.model.learner._work) == state_of(engine.model.learner._work)
    got = {p["source"]: p["prediction"] for of in shop.predictions().values() for p in of}
    assert got == expected


def test_worker_that_is_killed_goes_on_with_the_same_river_object(open_shop, visits_and_sales):
    shop = open_shop("river", partitions=1)
    declare_in(shop, RIVER_SHOP)
    rows = visits_and_sales(31, 900)
    sales = [sum(role == "labels" for role, _ in part) for part in (rows[:900], rows)]
    worker = shop.start(HEADRACE_HMAC_KEY=TEXT_KEY)
    shop.produce(rows[:600])
    worker.until(snapshot_version=1, events=200)
    shop.produce(rows[600:900])
    worker.until(labels=sales[0])
    assert worker.end(signal.SIGKILL) == -9
    again = shop.start(HEADRACE_HMAC_KEY=TEXT_KEY)
    again.until(labels=sales[0])
    assert re.search(r"snapshot \d+ loaded", again.printed)
    shop.produce(rows[900:])
    again.until(events=900, labels=sales[1])
    assert again.end(signal.SIGKILL) == -9
    last = shop.start(HEADRACE_HMAC_KEY=TEXT_KEY)
    last.until(events=900, labels=sales[1])
    assert last.end() == 0
    assert "Traceback" not in last.printed
    assert shop.sources() == shop.events()
    assert_stands_as_by_hand(shop)

    keyless = shop.start()
    assert keyless.ends() == 1
    assert "is kept only signed" in keyless.printed and "HEADRACE_HMAC_KEY" in keyless.printed
    assert "Traceback" not in keyless.printed and TEXT_KEY not in last.printed
    other = shop.start(HEADRACE_HMAC_KEY="not the key that it was signed with")
    assert other.ends() == 1
    assert "has another signature" in other.printed
    shop.file.write_text(shop.file.read_text().replace("grace_period=50", "grace_period=60"))
    changed = shop.start(HEADRACE_HMAC_KEY=TEXT_KEY)
    assert changed.ends() == 1
    assert "grace_period` was 50, is 60" in changed.printed


RAISING = """
from headrace.models import River
from touchy import Touchy

changes = dict(latency="20ms", max_cycle_rows=200, snapshots=Snapshots("300ms"))
pipeline = Pipeline(**(parts | changes | dict(model=River(Touchy()), features=[numeric("price")])))
app = pipeline.app
"""
TOUCHY = """
from river import linear_model


class Touchy(linear_model.LogisticRegression):
    def learn_one(self, x, y, w=1.0):
        super().learn_one(x, y, w)
        if x.get("price") == 667.0:
            raise ZeroDivisionError("667")

    def predict_proba_one(self, x):
        if x.get("price") == 666.0:
            raise ValueError("666 is no price")
        return super().predict_proba_one(x)
"""


def test_records_on_which_river_raises_become_dead_letters_of_a_worker(open_shop, visits_and_sales):
    shop = open_shop("river raises", partitions=1)
    (shop.folder / "touchy.py").write_text(TOUCHY)
    declare_in(shop, RAISING)
    rows = visits_and_sales(32, 500)
    sold = {row["id"] for role, row in rows if role == "labels"}
    ids = [row["id"] for role, row in rows if role == "events" and row["id"] in sold]
    odd = {ids[100]: 666.0, ids[200]: 667.0}
    rows = [
        (role, row | {"price": odd[row["id"]]} if "price" in row and row["id"] in odd else row) for role, row in rows
    ]
    shop.produce(rows)
    worker = shop.start(HEADRACE_HMAC_KEY=TEXT_KEY)
    worker.until(events=499, bad_events=1, bad_labels=1)
    assert worker.end() == 0
    letters = [record for of in shop.read(shop.pipeline.predictions.dead_letters).values() for record in of]
    told = {json.loads(record.value)["id"]: dict(record.headers)["headrace-reason"].decode() for record in letters}
    assert told == {
        ids[100]: "the model raised ValueError: 666 is no price", ids[200]: "the model raised ZeroDivisionError: 667"
    }  # fmt: skip


OF_THE_FILE = """
from headrace.models import River
from river import compose, linear_model


def double(x):
    return {name: 2 * value for name, value in x.items()}


model = River(compose.FuncTransformer(double) | linear_model.LogisticRegression())
pipeline = Pipeline(**(parts | dict(model=model, features=[numeric("price")])))
app = pipeline.app
"""


def test_evaluate_of_the_command_line_needs_no_key(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "learners" / "river.md").read_text()
    (tmp_path / "phones.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1))
    frame = pl.DataFrame(
        {"id": [f"p{i}" for i in range(400)], "time": [float(T0 + i) for i in range(400)],
         "seconds": np.random.default_rng(1).exponential(60, 400), "country": ["de", "fr"] * 200,
         "dropped": [i % 2 == 0 for i in range(400)]}
    )  # fmt: skip
    frame.write_ndjson(tmp_path / "calls.ndjson")
    environment = {name: value for name, value in os.environ.items() if name != "HEADRACE_HMAC_KEY"}
    done = subprocess.run(
        [Path(sys.executable).parent / "headrace", "evaluate", "phones.py", "--events", "calls.ndjson", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["events"] == results["examples"] == 400
    assert results["accuracy"] > 0.9


def test_functions_of_the_pipeline_file_are_refused_by_a_worker(open_shop):
    shop = open_shop("river functions", partitions=1)
    declare_in(shop, OF_THE_FILE)
    worker = shop.start(HEADRACE_HMAC_KEY=TEXT_KEY)
    assert worker.ends() == 1
    assert "into a module of their own beside it" in worker.printed
