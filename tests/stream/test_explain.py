"""What an engine says weighed most in its predictions, and what a reader says of all features."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from engine_run import SIDE, T0, Sale
from engine_run import Run as PlainRun
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Best, DeclarationError, Events, Labels, Pipeline, Predictions, category, cross, mean, numeric
from headrace.connectors.store import SnapshotStore
from headrace.models import (
    ADWIN,
    FTRL,
    Blend,
    HoeffdingTreeClassifier,
    LogisticRegression,
    NoChange,
    SoftmaxRegression,
    StandardScaler,
)
from headrace.stream import deferred
from headrace.stream.check import report
from headrace.stream.encode import Served, encode_predictions
from headrace.stream.explain import NO_FEATURE, Explained, heaviest
from headrace.stream.fast_encode import prediction_rows
from headrace.stream.reader import SnapshotReader
from headrace.stream.snapshot import NAN_ALLOWED, pack
from headrace.stream.standing import Position, Standing


class Click(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float | None
    sold: bool | None = None
    what: str | None = None


NAMES = ("price", "log price", "mean_label_by_site_6h", "site", "site_x_dearer")
LATER = Labels("sales", Sale, value="sold", within="1h", **SIDE)
IN_EVENT = Labels(value="sold")
OF_THREE = Labels(value="what", classes=["a", "b", "c"])
LOGISTIC = StandardScaler(half_life=None) | LogisticRegression(FTRL(half_life=None), bits=8)
SOFTMAX = StandardScaler(half_life=None) | SoftmaxRegression(FTRL(half_life=None), bits=8)
TREE = HoeffdingTreeClassifier(grace_period=20, delta=0.5)
BLEND = StandardScaler() | Blend(LOGISTIC, TREE, NoChange())


def pipeline(explain=3, model=LOGISTIC, labels=IN_EVENT, **more):
    dearer = pl.col("price") > 5
    return Pipeline(
        name="explained",
        events=Events("clicks", Click, **SIDE),
        labels=labels,
        features=[
            numeric("price"), numeric(pl.col("price").abs().log1p(), name="log price"), category("site"),
            cross("site", dearer.alias("dearer")),
            mean(pl.col("price") if labels is OF_THREE else "label", by="site", over="6h", name=NAMES[2], capacity=9),
        ],
        model=model,
        predictions=Predictions("scores", explain=explain),
        **more,
    )  # fmt: skip


def clicks(seed, events=120):
    rng = np.random.default_rng(seed)
    for i in range(events):
        site, price = "abcde"[rng.integers(5)], float(rng.normal(5, 3))
        sold = bool(rng.random() < (0.2 if site < "c" else 0.8))
        yield {
            "id": f"{seed}-{i}", "time": T0 + 60 * i, "site": site, "price": price if i % 8 else None,
            "sold": sold if i % 9 else None, "what": "abc"[int(price > 4) + (site > "c")],
        }  # fmt: skip


class Run(PlainRun):
    """An engine, what it says of its predictions, and the records that go out."""

    def pieces(self, rows, **how):
        """What was predicted of these events, piece by piece."""
        return [done.predicted for done in self.process("events", list(rows), **how) if done.predicted is not None]

    def records(self, pieces):
        served = Served("explained", 1, None, self.pipeline.classes, NAMES)
        plain = [value for piece in pieces for _, value, _, _ in encode_predictions(piece, "clicks", served)]
        rows, _ = prediction_rows({0: pieces}, "clicks", served)
        assert list(rows.values) == plain
        return [json.loads(value) for value in plain]


def taught(declared):
    """One that has learned from labels, where they come later."""
    run = Run(declared)
    if run.engine.delayed:
        rows = [row | {"time": row["time"] - 86_400} for row in clicks(9, 60)]
        run.feed("events", rows)
        sales = [{"id": row["id"], "time": row["time"] + 60, "sold": row["site"] > "b"} for row in rows]
        run.feed("labels", sales)
    return run


def joined(pieces):
    explained = [piece.explained for piece in pieces]
    return Explained(*map(np.concatenate, zip(*explained)))


def by_hand(run, rows):
    """(predictions, contributions) row by row, each as if it were the next event."""
    found = []
    for row in rows:
        found.append(run.engine.look_closely(run.batch("events", [row])))
        run.feed("events", [row])
    return np.concatenate([out for out, _ in found]), np.concatenate([parts for _, parts in found])


CASES = {
    "labels in the event": lambda: pipeline(),
    "labels later": lambda: pipeline(labels=LATER),
    "tree": lambda: pipeline(model=TREE),
    "blend": lambda: pipeline(model=BLEND),
    "several classes": lambda: pipeline(model=SOFTMAX, labels=OF_THREE),
    "drift": lambda: pipeline(drift=ADWIN(0.5, clock=1, action="reset")),
}


@pytest.mark.parametrize("labels", [IN_EVENT, LATER])
def test_of_several_models_the_one_that_served_is_explained(labels):
    models = {"tree": TREE, "logistic": LOGISTIC}
    several = replace(pipeline(labels=labels), model=None, models=models, serve=Best("6h", lead=0.1))
    run, rows = taught(several), list(clicks(1, 300))
    pieces = run.pieces(rows, later=True)
    by = np.concatenate([piece.by for piece in pieces])
    if labels is IN_EVENT:
        assert len(set(by.tolist())) == 2
    found = joined(pieces)
    for at, model in enumerate(models.values()):
        alone = joined(taught(pipeline(model=model, labels=labels)).pieces(rows, later=True))
        assert (found.feature[by == at] == alone.feature[by == at]).all()
        assert (found.contribution[by == at] == alone.contribution[by == at]).all()


@pytest.mark.parametrize("case", CASES)
def test_what_weighed_most_is_said_of_the_prediction_that_was_made(case):
    quietly = replace(CASES[case](), predictions=Predictions("scores"))
    run, twin, silent = taught(CASES[case]()), taught(CASES[case]()), taught(quietly)
    rows = list(clicks(1))
    pieces, quiet = run.pieces(rows), silent.pieces(rows)
    out, contributions = by_hand(twin, rows)
    assert pieces[0].out.tobytes() == out.tobytes() == quiet[0].out.tobytes()
    said = run.records(pieces)
    assert all("explain" not in record for record in silent.records(quiet))
    classes = run.pipeline.classes
    several = 0
    for record, row in zip(said, contributions):
        of = classes.index(max(record["prediction"], key=record["prediction"].get)) if classes else 0
        order = [f for f in np.argsort(-np.abs(row[of, :-1]), kind="stable") if row[of, f]][:3]
        assert [told["feature"] for told in record["explain"]] == [NAMES[f] for f in order]
        assert [np.float32(told["contribution"]) for told in record["explain"]] == [row[of, f] for f in order]
        several += len(order) == 3
    assert several > 60
    for name, array in run.engine.state().shared.items():
        np.testing.assert_array_equal(array, silent.engine.state().shared[name], name)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=6), later=st.booleans(), room=st.sampled_from([1, 7, 10**6]))
@pytest.mark.parametrize("case", CASES)
def test_explanations_do_not_depend_on_the_cuts(case, cuts, later, room):
    rows = list(clicks(2))
    whole = joined(Run(CASES[case]()).pieces(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deferred, "rows_at_one_go", lambda outputs, features: room)
        got = joined(Run(CASES[case]()).pieces(rows, cuts=cuts, later=later))
    assert got.feature.tobytes() == whole.feature.tobytes()
    assert got.contribution.tobytes() == whole.contribution.tobytes()


def test_muted_events_are_explained_too():
    run = Run(pipeline())
    run.feed("events", list(clicks(1)))
    rows = list(clicks(3, 20))
    run.engine.mute({("events", 0): 10**6})
    _, contributions = by_hand(run, rows)
    pieces = run.pieces([row | {"id": f"again {i}"} for i, row in enumerate(rows)])
    for at, row in enumerate(contributions[:, 0]):
        features = pieces[0].explained.feature[at]
        assert [f for f in features if f >= 0] == [f for f in np.argsort(-np.abs(row[:-1]), kind="stable") if row[f]][
            :3
        ]


def test_more_features_than_there_are_tells_all_of_them():
    run = Run(pipeline(explain=50))
    pieces = run.pieces(clicks(1))
    assert pieces[0].explained.feature.shape == (120, 50)
    assert {one["feature"] for one in run.records(pieces)[-1]["explain"]} == set(NAMES)


@pytest.mark.parametrize("top", [1, 2, 5, 9])
def test_heaviest_is_a_stable_sort_by_absolute_value(top):
    rng = np.random.default_rng(top)
    contributions = rng.choice(np.float32([0, 0, 1, -1, 2, -2, 0.5, 3e38, -1e-45, np.nan]), (400, 3, 8))
    out = rng.choice(np.float32([0.1, 0.2, 0.7]), (400, 3))
    to = Explained(np.full((400, top), 77, np.int32), np.full((400, top), 77, np.float32))
    heaviest(contributions, out, to)
    for row, chosen, features, parts in zip(contributions, out.argmax(1), *to):
        heavy = np.nan_to_num(np.abs(row[chosen, :-1]))
        order = [f for f in np.argsort(-heavy, kind="stable") if heavy[f]][:top]
        assert features.tolist() == order + [NO_FEATURE] * (top - len(order))
        assert parts.tolist() == row[chosen, order].tolist() + [0.0] * (top - len(order))


# --- declared


@pytest.mark.parametrize("explain", [0, -1, True, "3", 2.0])
def test_number_of_features_is_checked(explain):
    with pytest.raises(DeclarationError, match=r"predictions.explain: expected a whole number, 1 or more, got"):
        pipeline(explain=explain)


def test_model_that_cannot_explain_is_refused():
    with pytest.raises(DeclarationError, match=r"predictions.explain: NoChange\(eps=0.01\) cannot say"):
        pipeline(model=NoChange())
    assert pipeline(model=NoChange(), explain=None).predictions.explain is None


def test_check_says_that_predictions_are_explained():
    assert ("scores", "a prediction for each event: P(true), with the 3 features that weighed most") in report(
        pipeline()
    )["writes"]


def test_explaining_does_not_change_what_a_snapshot_fits():
    assert pipeline(explain=3).fingerprint == pipeline(explain=None).fingerprint


def test_page_shows_a_pipeline_that_is_declared_well(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "learners" / "explain.md").read_text()
    (tmp_path / "shown.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    assert runpy.run_path(str(tmp_path / "shown.py"))["pipeline"].predictions.explain == 3


# --- the reader


def test_reader_explains_its_predictions(redis_url, unique):
    for case, labels, model in (("a", LATER, LOGISTIC), ("b", OF_THREE, SOFTMAX)):
        declared = replace(pipeline(labels=labels, model=model), name=f"{unique}-{case}")
        run = Run(declared)
        run.feed("events", list(clicks(1)))
        if labels is LATER:
            run.feed("labels", [{"id": r["id"], "time": T0 + 7300, "sold": bool(r["sold"])} for r in clicks(1)])
        store = SnapshotStore(redis_url, declared.name, 0)
        arrays, meta = pack(Standing(run.engine, Position(run.ends, 0, 0)))
        store.publish(arrays, meta, 1, NAN_ALLOWED)
        rows = [row | {"time": T0 + 7300.0} for row in clicks(4, 30)]
        with SnapshotReader(declared, redis_url) as reader:
            told, predicted = reader.explain(rows), reader.predict(rows)
            assert reader.explain([]) == []
        for one, p in zip(told, predicted, strict=True):
            assert set(one.contributions) == set(NAMES)
            assert sorted(one.contributions.values(), key=abs, reverse=True) == list(one.contributions.values())
            assert one.label == (declared.classes[int(p.argmax())] if declared.classes else None)
            assert one.prediction == p.max()
            if one.link == "logit":
                raw = one.base + sum(one.contributions.values())
                assert 1 / (1 + np.exp(-raw)) == pytest.approx(p, rel=1e-5)
        assert {one.link for one in told} == {"logit" if labels is LATER else "softmax"}
