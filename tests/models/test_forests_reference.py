"""Forests equal River's row by row where River draws our random numbers; with its own, they lie within its spread."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from river import datasets, drift, forest, linear_model, optim, preprocessing, tree
from river.tree.splitter.nominal_splitter_classif import NominalSplitterClassif

from headrace.errors import DeclarationError
from headrace.models import (
    ARFClassifier,
    ARFRegressor,
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    Rows,
    Spec,
    StandardScaler,
    Truth,
    allocate,
    allocate_touched,
    as_chain,
)
from headrace.models.forest_kernels import DRIFTS, GROWS, SERVES, WARNINGS
from headrace.models.random_kernels import key_of_member, poisson, uniform
from headrace.models.tree_nodes import NODES, REFUSED

NAMES = ["n0", "n1", "n2", "n3", "c0", "c1"]
SHAKY = {"warning_delta": 0.3, "drift_delta": 0.15}  # warns and drifts all the time


class Draws:
    """Our generators in the place of River's, which has one for all trees: `member` says whose turn it is."""

    def __init__(self, seed, members):
        self.keys = [np.uint64(key_of_member(np.uint64(seed), t)) for t in range(members)]
        self.drawn = np.zeros(members, np.uint64)
        self.member = 0

    def random(self):
        return uniform(self.keys[self.member], self.drawn, self.member)

    def sample(self, population, k):
        chosen = sorted(population, key=NAMES.index)
        for i in range(k):
            other = i + int(self.random() * (len(chosen) - i))
            chosen[i], chosen[other] = chosen[other], chosen[i]
        return chosen[:k]


class InTurns:
    """A forest of River whose generator knows which tree it draws for."""

    def __iter__(self):
        for member, model in enumerate(self.data):
            self._rng.member = member
            yield model


class TheirClassifier(InTurns, forest.ARFClassifier):
    pass


class TheirRegressor(InTurns, forest.ARFRegressor):
    pass


def changing(stream, rows, seed, labels="binary", **columns):
    """A stream of which every other quarter has other labels; all weights are 1, for River's forests know none."""
    x, truth = stream(rows, seed, labels, **columns)
    quarter = rows // 4
    classes = 3 if labels == "classes" else 2
    for start in (quarter, 3 * quarter):
        truth.y[start : start + quarter] = (truth.y[start : start + quarter] + 1) % classes
    truth.weight[:] = 1
    return x, truth


def river_rows(x):
    for numbers, categories in zip(x.numeric, x.categories, strict=True):
        row = {f"n{j}": float(v) for j, v in enumerate(numbers) if np.isfinite(v)}
        yield row | {f"c{k}": int(h) for k, h in enumerate(categories) if h}


def adwin(delta):
    return drift.NoDrift() if delta is None else drift.ADWIN(delta)


def their_forest(seed, n_models, max_features, warning_delta, drift_delta, **settings):
    river = TheirClassifier(
        n_models=n_models,
        max_features=max_features,
        warning_detector=adwin(warning_delta),
        drift_detector=adwin(drift_delta),
        splitter=tree.splitter.GaussianSplitter(10),
        binary_split=True,
        nominal_attributes=["c0", "c1"],
        **settings,
    )
    river._rng = Draws(seed, n_models)
    return river


def run_theirs(river, x, truth, outputs):
    """Test, then learn; the predictions, and after each row the nodes, warnings and drifts of each tree."""
    out, steps = np.zeros((len(truth.y), max(outputs, 2))), []
    for i, row in enumerate(river_rows(x)):
        for c, p in river.predict_proba_one(row).items():
            out[i, c] = p
        river.learn_one(row, int(truth.y[i, 0]))
        steps.append(their_step(river))
    out[out.sum(1) == 0] = 1 / out.shape[1]  # River: nothing
    return (out[:, 1:2] if outputs == 1 else out), steps


def their_regression_forest(seed, n_models, max_features, warning_delta, drift_delta, **settings):
    river = TheirRegressor(
        n_models=n_models,
        max_features=max_features,
        warning_detector=adwin(warning_delta),
        drift_detector=adwin(drift_delta),
        splitter=tree.splitter.TEBSTSplitter(1),
        leaf_model=linear_model.LinearRegression(optim.SGD(0.01)),
        binary_split=True,
        nominal_attributes=["c0", "c1"],
        **settings,
    )
    river._rng = Draws(seed, n_models)
    return river


def run_their_regression(river, x, truth):
    out, steps = [], []
    for i, row in enumerate(river_rows(x)):
        out.append(river.predict_one(row))
        river.learn_one(row, float(truth.y[i, 0]))
        steps.append(their_step(river))
    return np.array(out).reshape(-1, 1), steps


def their_step(river):
    return [
        (model._root.n_nodes if model._root else 0, river.n_warnings_detected(t), river.n_drifts_detected(t))
        for t, model in enumerate(river.data)
    ]


def run_ours(bound, x, truth):
    out, steps = np.zeros((len(truth.y), bound.spec.outputs)), []
    state = bound.state
    for i in range(len(out)):
        row = slice(i, i + 1)
        bound.chain.test_then_learn(
            Rows(x.numeric[row], x.categories[row]), Truth(truth.y[row], truth.weight[row]), out[row]
        )
        serving = 2 * np.arange(len(state["0/members"])) + state["0/members"][:, SERVES]
        nodes, changes = state["0/size"][serving, NODES], state["0/changes"]
        steps.append(list(zip(nodes.tolist(), changes[:, WARNINGS].tolist(), changes[:, DRIFTS].tolist())))
    return out, steps


def assert_grew_and_changed_as_declared(steps, settings):
    """Trees have split; they warned and drifted where that is on, and for certain where they are shaky."""
    _, warnings, drifts = np.array(steps[-1]).T
    assert np.array(steps)[:, :, 0].max() > 1
    assert warnings.sum() == 0 or settings["warning_delta"] is not None
    assert drifts.sum() == 0 or settings["drift_delta"] is not None
    if settings["drift_delta"] == SHAKY["drift_delta"]:
        assert warnings.sum() > 0
        assert drifts.sum() > 0


@pytest.mark.parametrize(
    ("settings", "labels", "categories"),
    [
        ({"max_features": 2, "warning_delta": 0.2, "drift_delta": 0.1}, "binary", 2),
        ({"max_features": 3, "leaf_prediction": "mc"} | SHAKY, "classes", 0),
        ({"max_features": 2, "leaf_prediction": "nb", "lambda_value": 1} | SHAKY, "binary", 2),
        ({"max_features": 1, "drift_delta": None, "warning_delta": 0.2}, "binary", 0),
        ({"max_features": 4, "warning_delta": None, "drift_delta": 0.01, "lambda_value": 2}, "classes", 2),
        ({"max_features": 2, "disable_weighted_vote": True, "max_depth": 2} | SHAKY, "binary", 0),
    ],
)
def test_forest_equals_river_that_draws_the_same_numbers(settings, labels, categories, bind, stream):
    # all weights are whole, so that no leaf is due by a rounding error
    settings = {"n_models": 3, "warning_delta": 0.01, "drift_delta": 0.001, "grace_period": 39.5} | settings
    outputs = 3 if labels == "classes" else 1
    x, truth = changing(stream, 900, 4, labels, numeric=4, categories=categories)
    river = their_forest(7, **settings)
    expected, their_steps = run_theirs(river, x, truth, outputs)
    bound = bind(ARFClassifier(seed=7, **settings), 4, categories, "multiclass" if outputs == 3 else "binary", outputs)
    out, steps = run_ours(bound, x, truth)
    assert steps == their_steps
    np.testing.assert_allclose(out, expected, rtol=1e-7, atol=1e-9)
    assert bound.state["0/drawn"].tolist() == river._rng.drawn.tolist()
    grows = [model is not None for model in river._background or []]
    assert bound.state["0/members"][:, GROWS].astype(bool).tolist() == (grows or [False] * 3)
    assert_grew_and_changed_as_declared(steps, settings)


class InOrder(dict):
    """In the place of the set in which River keeps the values of a category."""

    def add(self, value):
        self.setdefault(value)


@pytest.mark.parametrize(("seed", "labels"), [(1, "binary"), (8, "classes")])
def test_of_values_equally_good_to_split_by_the_first_that_came_is_taken(seed, labels, bind, stream, monkeypatch):
    settings = {"n_models": 3, "max_features": 2, "warning_delta": 0.2, "drift_delta": 0.1, "grace_period": 39.5}
    task, outputs = ("binary", 1) if labels == "binary" else ("multiclass", 3)
    x, truth = changing(stream, 900, seed, labels, numeric=4, categories=2)
    bound = bind(ARFClassifier(seed=7, **settings), 4, 2, task, outputs)
    out, steps = run_ours(bound, x, truth)
    _, steps_of_a_set = run_theirs(their_forest(7, **settings), x, truth, outputs)
    keeps_in_a_set = NominalSplitterClassif.__init__

    def keep_in_order(splitter):
        keeps_in_a_set(splitter)
        splitter._att_values = InOrder()

    monkeypatch.setattr(NominalSplitterClassif, "__init__", keep_in_order)
    expected, their_steps = run_theirs(their_forest(7, **settings), x, truth, outputs)
    assert steps == their_steps != steps_of_a_set
    np.testing.assert_allclose(out, expected, rtol=1e-7, atol=1e-9)


def test_forest_of_one_tree_is_that_tree(bind, stream):
    """Where all columns are observed and nothing drifts, a tree that learns with the weights drawn is the forest."""
    x, truth = stream(2000, 1)
    settings = {"grace_period": 50, "delta": 0.01, "max_nodes": 101}
    bound = bind(
        ARFClassifier(n_models=1, max_features=None, warning_delta=None, drift_delta=None, seed=3, **settings), 3, 2
    )
    single = bind(HoeffdingTreeClassifier(**settings), 3, 2)
    key, drawn = np.uint64(key_of_member(np.uint64(3), 0)), np.zeros(1, np.uint64)
    weights = [poisson(np.exp(-6.0), key, drawn, 0) for _ in range(2000)]
    out, expected = np.empty((2000, 1)), np.empty((2000, 1))
    bound.chain.test_then_learn(x, truth, out)
    single.chain.test_then_learn(x, Truth(truth.y, np.float32(weights * truth.weight)), expected)
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    assert bound.state["0/size"][0, NODES] == single.state["0/size"][NODES] > 1
    assert bound.state["0/gaussians"][:, :51].tobytes() == single.state["0/gaussians"].tobytes()


def test_member_is_scored_by_the_weight_of_the_rows_that_it_got_right(bind, stream):
    x, truth = stream(500, 1)
    bound = bind(ARFClassifier(n_models=1, warning_delta=None, drift_delta=None), 3, 2)
    out = np.empty((500, 1))
    bound.chain.test_then_learn(x, truth, out)
    right = ((out > 0.5) == truth.y)[:, 0]
    right[0] = False  # nothing was known yet
    assert len(set(truth.weight)) > 2
    np.testing.assert_allclose(bound.state["0/scores"][0], [truth.weight[right].sum(), truth.weight.sum()])


@pytest.mark.parametrize(("name", "middle", "spread"), [("Bananas", 0.883, 0.006), ("Phishing", 0.910, 0.008)])
def test_accuracy_lies_within_the_spread_of_rivers_seeds(name, middle, spread):
    """River 0.26.1, ten seeds: Bananas .883, Phishing .910 on average."""
    pairs = list(getattr(datasets, name)())
    numeric = np.array([list(row.values()) for row, _ in pairs], np.float32)
    x = Rows(numeric, np.zeros((len(pairs), 0), np.uint64))
    truth = Truth(np.array([[y] for _, y in pairs], np.float32), np.ones(len(pairs), np.float32))
    spec = Spec(tuple(pairs[0][0]), (), "binary")
    accuracies = []
    for seed in range(10):
        model = ARFClassifier(seed=seed)
        layout = model.layout(spec)
        model.bind(spec, allocate(layout), allocate_touched(layout))
        out = np.empty((len(pairs), 1), np.float32)
        model.test_then_learn(x, truth, out)
        accuracies.append(((out > 0.5) == (truth.y > 0.5)).mean())
    assert len(set(accuracies)) > 1
    assert np.mean(accuracies) == pytest.approx(middle, abs=spread)


@pytest.mark.parametrize(
    ("settings", "categories"),
    [
        ({"max_features": 2}, 0),
        ({"max_features": 3, "leaf_prediction": "mean", "aggregation_method": "mean"} | SHAKY, 2),
        ({"max_features": 2, "leaf_prediction": "model", "lambda_value": 1} | SHAKY, 0),
        ({"max_features": 1, "drift_delta": None, "warning_delta": 0.2, "n_models": 4}, 0),
        ({"max_features": 4, "warning_delta": None, "drift_delta": 0.1, "lambda_value": 2, "max_depth": 2}, 0),
    ],
)
def test_regression_forest_equals_river_that_draws_the_same_numbers(settings, categories, bind, stream):
    settings = {"n_models": 3, "warning_delta": 0.01, "drift_delta": 0.001, "grace_period": 39.5} | settings
    x, truth = stream(800, 3, "value", numeric=4, categories=categories)
    truth.weight[:] = 1
    truth.y[200:400] *= -1
    truth.y[600:] *= -1
    x = Rows(((x.numeric - np.nanmean(x.numeric, 0)) / np.nanstd(x.numeric, 0)).astype(np.float32), x.categories)
    river = their_regression_forest(7, **settings)
    expected, their_steps = run_their_regression(river, x, truth)
    bound = bind(ARFRegressor(seed=7, max_values=800, max_nodes=2001, **settings), 4, categories, "regression")
    out, steps = run_ours(bound, x, truth)
    assert steps == their_steps
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-8)
    assert bound.state["0/drawn"].tolist() == river._rng.drawn.tolist()
    assert_grew_and_changed_as_declared(steps, settings)


def test_regression_forest_of_one_tree_is_that_tree(bind, stream):
    x, truth = stream(2000, 1, "value")
    settings = {"grace_period": 50, "delta": 0.01, "max_nodes": 101, "max_values": 50, "leaf_prediction": "mean"}
    alone = {"n_models": 1, "max_features": None, "warning_delta": None, "drift_delta": None, "seed": 3}
    bound = bind(ARFRegressor(**alone, **settings), 3, 2)
    single = bind(HoeffdingTreeRegressor(**settings), 3, 2)
    key, drawn = np.uint64(key_of_member(np.uint64(3), 0)), np.zeros(1, np.uint64)
    weights = [poisson(np.exp(-6.0), key, drawn, 0) for _ in range(2000)]
    out, expected = np.empty((2000, 1)), np.empty((2000, 1))
    bound.chain.test_then_learn(x, truth, out)
    single.chain.test_then_learn(x, Truth(truth.y, np.float32(weights * truth.weight)), expected)
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    assert bound.state["0/size"][0, NODES] == single.state["0/size"][NODES] > 1


def test_error_of_regression_lies_within_the_spread_of_rivers_seeds():
    """On TrumpApproval, both behind a scaler: each side's ten seeds reach into the other's."""
    pairs = list(datasets.TrumpApproval())
    numeric = np.array([list(row.values()) for row, _ in pairs], np.float32)
    x = Rows(numeric, np.zeros((len(pairs), 0), np.uint64))
    truth = Truth(np.array([[y] for _, y in pairs], np.float32), np.ones(len(pairs), np.float32))
    spec = Spec(tuple(pairs[0][0]), (), "regression")
    errors, theirs = [], []
    for seed in range(10):
        model = as_chain(StandardScaler(half_life=None) | ARFRegressor(seed=seed))
        layout = model.layout(spec)
        model.bind(spec, allocate(layout), allocate_touched(layout))
        out = np.empty((len(pairs), 1), np.float32)
        model.test_then_learn(x, truth, out)
        errors.append(np.abs(out - truth.y).mean())
    for seed in range(4):
        river = preprocessing.StandardScaler() | forest.ARFRegressor(seed=seed)
        loss = 0.0
        for row, y in pairs:
            loss += abs(river.predict_one(row) - y) / len(pairs)
            river.learn_one(row, y)
        theirs.append(loss)
    assert min(errors) < max(theirs)
    assert max(errors) > min(theirs)
    assert np.mean(errors) == pytest.approx(np.mean(theirs), rel=0.1)


def test_draws_are_uniform_poisson_and_different_for_each_member():
    drawn = np.zeros(4, np.uint64)
    keys = [np.uint64(key_of_member(np.uint64(0), t)) for t in range(4)]
    numbers = np.array([[uniform(keys[t], drawn, t) for _ in range(4000)] for t in range(3)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.abs(np.corrcoef(numbers) - np.eye(3)).max() < 0.05
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] / 1200 - 1).max() < 0.1
    counts = np.array([poisson(np.exp(-6.0), keys[3], drawn, 3) for _ in range(4000)])
    assert counts.mean() == pytest.approx(6, abs=0.12)
    assert counts.var() == pytest.approx(6, rel=0.08)
    assert drawn[:3].tolist() == [4000] * 3
    assert drawn[3] == counts.sum() + 4000


def test_leaf_observes_as_many_columns_as_it_draws(bind, stream):
    x, truth = stream(600, 2, numeric=7, categories=2)
    bound = bind(ARFClassifier(n_models=4, max_features="sqrt"), 7, 2)
    bound.chain.learn(x, truth)
    seen = bound.state["0/seen"]
    first = np.concatenate([bound.state["0/first"], bound.state["0/category_first"]])
    assert set(seen[seen > 0].tolist()) == {3}
    assert ((first > 0).sum(0) == seen).all()
    assert len({tuple(column) for column in (first[:, seen > 0] > 0).T.tolist()}) > 4
    unseen = bound.state["0/first"] == 0
    assert not bound.state["0/gaussians"][unseen].any()


@pytest.mark.parametrize(
    ("wanted", "columns", "many"),
    [("sqrt", 10, 3), ("log2", 10, 3), (4, 10, 4), (40, 10, 10), (0.5, 10, 5), (0.01, 10, 1), ("sqrt", 0, 1)],
)
def test_max_features_counts_columns(wanted, columns, many, bind, stream):
    bound = bind(ARFClassifier(n_models=1, max_features=wanted), columns, 0)
    x, truth = stream(1, 0, numeric=max(columns, 1), categories=0)
    x = Rows(np.ones((1, columns), np.float32), x.categories)
    for _ in range(5):
        bound.chain.learn(x, truth)
    assert bound.state["0/seen"][0] == min(many, columns)


def test_seed_makes_the_forest(bind, stream):
    part = stream(300, 0)
    bits = []
    for seed in (0, 0, 1):
        bound = bind(ARFClassifier(seed=seed), 3, 2)
        bound.chain.learn(*part)
        bits.append(bound.bits())
    assert bits[0] == bits[1] != bits[2]


def test_full_forest_goes_on_learning(bind, stream):
    x, truth = stream(4000, 5)
    wrong = []
    for settings in ({}, {"max_nodes": 6}):
        bound = bind(ARFClassifier(n_models=3, drift_delta=None, warning_delta=None, **settings), 3, 2)
        out = np.empty((4000, 1))
        bound.chain.test_then_learn(x, truth, out)
        size = bound.state["0/size"]
        wrong.append(((out > 0.5) != truth.y)[2000:].mean())
        assert (size[:, REFUSED].sum() > 0) == bool(settings)
    assert size[:, NODES].max() == 5
    assert wrong[1] < wrong[0] + 0.1


@pytest.mark.parametrize(
    ("make", "labels", "of_nodes", "of_slots"),
    [
        (ARFClassifier, "binary", ["counts", "classes"], ["gaussians", "category_totals", "values", "value_counts"]),
        (
            ARFRegressor,
            "value",
            ["targets"],
            ["intercepts", "coefficients", "used", "categories", "category_moments"],  # used: of values and moments
        ),
    ],
)
def test_trees_that_are_replaced_leave_nothing_behind(bind, stream, make, labels, of_nodes, of_slots):
    """Every tree is all that it has learned since it began: what its nodes and slots hold beyond its size is zero."""
    x, truth = changing(stream, 4000, 6, labels)
    bound = bind(make(n_models=3, max_nodes=101, **SHAKY), 3, 2)
    bound.chain.learn(x, truth)
    state = {name.removeprefix("0/"): array for name, array in bound.state.items()}
    assert (state["changes"] > 1).all()
    for at, (nodes, slots, _) in enumerate(state["size"]):
        for name in ("links", "column", "threshold", "value", "weights", *of_nodes):
            assert not state[name][101 * at + nodes : 101 * (at + 1)].any(), name
        rest = slice(51 * at + slots, 51 * (at + 1))
        for name in ("seen", "first", "category_first", *of_slots):
            assert not (state[name][rest] if state[name].ndim == 1 else state[name][:, rest]).any(), name


def test_forest_goes_on_when_features_come_and_go(bind, stream):
    x, truth = stream(1500, 7)
    bound = bind(ARFClassifier(n_models=3), 3, 2)
    bound.chain.learn(x, truth)
    model = bound.declared_anew(("new", "n2", "n0", "n1"), ("c1", "c0")).chain
    expected, out = np.empty((2, 1500, 1))
    bound.chain.predict(x, expected)
    moved = np.column_stack([np.full(1500, np.nan, np.float32), x.numeric[:, [2, 0, 1]]])
    moved = Rows(np.ascontiguousarray(moved), np.ascontiguousarray(x.categories[:, ::-1]))
    model.predict(moved, out)
    np.testing.assert_allclose(out, expected, rtol=1e-9)
    moved.numeric[:, 0] = truth.y[:, 0]
    for _ in range(3):
        model.learn(moved, truth)
    model.predict(moved, out)
    assert ((out > 0.5) == truth.y).mean() > ((expected > 0.5) == truth.y).mean() + 0.05


@pytest.mark.parametrize(("n", "k", "classes", "nodes", "values", "models"), [(3, 2, 2, 7, 4, 2), (5, 0, 3, 10, 32, 9)])
def test_memory_of_a_forest_is_what_the_docstring_says(n, k, classes, nodes, values, models):
    model = ARFClassifier(n_models=models, max_nodes=nodes, category_values=values)
    spec = Spec(("n",) * n, ("c",) * k, "binary" if classes == 2 else "multiclass", 1 if classes == 2 else classes)
    slots = (nodes + 1) // 2
    one = 24 + nodes * (76 + 12 * classes)
    one += slots * (4 + n * (4 + 48 * classes) + k * (4 + 16 * classes + values * (8 + 8 * classes)))
    assert sum(array.nbytes for array in allocate(model.layout(spec)).values()) == 2 * models * one + models * 5472


def test_memory_of_a_regression_forest_is_what_the_docstring_says():
    n, k, nodes, values, kept, models = 3, 2, 7, 9, 4, 5
    model = ARFRegressor(n_models=models, max_nodes=nodes, max_values=values, category_values=kept)
    layout = model.layout(Spec(("n",) * n, ("c",) * k, "regression", 1))
    one = 24 + nodes * 100 + (nodes + 1) // 2 * (12 + n * (16 + 40 * values) + k * (4 + 32 * kept))
    assert sum(array.nbytes for array in allocate(layout).values()) == 2 * models * one + models * 5480


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n_models": 0}, r"ARFClassifier\(n_models=\).*1 to 500.*got 0"),
        ({"max_features": "half"}, r"\(max_features=\).*'sqrt', 'log2'.*'half'"),
        ({"max_features": 0}, r"\(max_features=\).*got 0"),
        ({"max_features": 1.5}, r"\(max_features=\).*got 1.5"),
        ({"max_features": True}, r"\(max_features=\).*got True"),
        ({"lambda_value": 0}, r"\(lambda_value=\).*above 0"),
        ({"warning_delta": 0}, r"\(warning_delta=\).*above 0"),
        ({"drift_delta": 2}, r"\(drift_delta=\).*at most 1"),
        ({"disable_weighted_vote": None}, r"\(disable_weighted_vote=\).*True or False"),
        ({"seed": 1.0}, r"\(seed=\).*whole number"),
        ({"max_nodes": 1 << 24}, r"\(max_nodes=\)"),
        ({"tau": -1}, r"ARFClassifier\(tau=\)"),
    ],
)
def test_a_forest_declared_wrongly_says_what_to_write(settings, match):
    with pytest.raises(DeclarationError, match=match):
        ARFClassifier(**settings)


def test_regression_is_referred_to_the_other_forest():
    with pytest.raises(DeclarationError, match=r"a regression task.*ARFRegressor"):
        ARFClassifier().layout(Spec(("a",), (), "regression", 1))


def test_a_regression_forest_declared_wrongly_says_what_to_write():
    with pytest.raises(DeclarationError, match=r"ARFRegressor\(aggregation_method=\).*'median' or 'mean'.*'mode'"):
        ARFRegressor(aggregation_method="mode")
    with pytest.raises(DeclarationError, match=r"ARFRegressor\(max_features=\)"):
        ARFRegressor(max_features=-1)
    with pytest.raises(DeclarationError, match=r"a binary task.*ARFClassifier"):
        ARFRegressor().layout(Spec(("a",), (), "binary", 1))


WITHOUT_NUMBA = """
import numpy as np
from headrace.models import *

def run():
    rng, outs = np.random.default_rng(5), []
    eager = {"grace_period": 10, "delta": 0.5, "max_nodes": 15, "drift_delta": 0.9, "seed": 3}
    for task, model in (
        ("binary", HoeffdingAdaptiveTreeClassifier(drift_window_threshold=10, **eager)),
        ("regression", HoeffdingAdaptiveTreeRegressor(drift_window_threshold=10, **eager)),
        ("binary", ARFClassifier(n_models=2, warning_delta=0.95, **eager)),
        ("regression", ARFRegressor(n_models=2, warning_delta=0.95, max_values=8, **eager)),
    ):
        spec = Spec(("a", "b"), ("c",), task, 1)
        chain = as_chain(model)
        state = allocate(chain.layout(spec))
        chain.bind(spec, state, {})
        x = Rows(rng.normal(size=(150, 2)).astype("f4"), rng.integers(0, 5, (150, 1), dtype=np.uint64))
        x.numeric[::9] = np.nan
        y = (x.numeric[:, :1] > 0) ^ (np.arange(150) > 75).reshape(-1, 1)
        out = np.empty((150, 1))
        chain.test_then_learn(x, Truth(y.astype("f4"), np.ones(150, "f4")), out)
        outs += [array.ravel()[array.ravel() != 0].astype(float).tolist() for array in (*state.values(), out)]
    return outs
"""


def test_kernels_of_forests_do_the_same_with_the_jit_off():
    here = {}
    exec(WITHOUT_NUMBA, here)
    code = WITHOUT_NUMBA + "\nimport json\nnp.seterr(all='ignore')\nprint(json.dumps(run()))"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    for compiled, plain in zip(here["run"](), json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-9)


def test_pipeline_shown_is_declared_well(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "learners" / "forests.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "shown.py").write_text(snippet)
    pipeline = runpy.run_path(str(tmp_path / "shown.py"))["pipeline"]
    assert pipeline.spec.task == "binary"
    assert pipeline.model.n_models == 10
