"""Passive-aggressive models equal River's step by step, and so the paper's rule."""

import math

import numpy as np
import pytest
from river import datasets, linear_model, preprocessing

from headrace.models import PAClassifier, PARegressor, Rows, StandardScaler, Truth

ROWS = 400
SETTINGS = [
    {"C": 1.0, "mode": 1},
    {"C": 0.01, "mode": 1},
    {"C": 0.1, "mode": 2},
    {"C": 0.1, "mode": 1, "learn_intercept": False},
    {"C": 0.01, "mode": 2, "learn_intercept": False},
]


def river_model(task, eps=0.1, **settings):
    """River's model; the regressor with the loss of the paper, since its own maps labels from [0, 1] to [-1, 1]."""
    if task == "binary":
        return linear_model.PAClassifier(**settings)
    river = linear_model.PARegressor(eps=eps, **settings)
    river.loss = lambda y, raw: max(abs(raw - y) - eps, 0.0)
    return river


def as_dicts(x, i):
    """Row i as River sees it: numbers, indicators of what is missing, and one feature per category."""
    numbers = {j: float(v) for j, v in enumerate(x.numeric[i]) if not math.isnan(v)}
    others = {f"missing {j}": 1.0 for j, v in enumerate(x.numeric[i]) if math.isnan(v)}
    return numbers, others | {int(h): 1.0 for h in x.categories[i] if h}


def river_predictions(river, x, truth):
    """What River predicts for each row, scaled, before it learns the row; a weight multiplies C."""
    scaler, most = preprocessing.StandardScaler(), river.C
    binary = isinstance(river, linear_model.PAClassifier)
    for i, (y, weight) in enumerate(zip(truth.y[:, 0], truth.weight, strict=True)):
        numbers, others = as_dicts(x, i)
        row = scaler.transform_one(numbers) | others
        yield river.predict_proba_one(row)[True] if binary else river.predict_one(row)
        scaler.learn_one(numbers)
        river.C = most * float(weight)
        river.learn_one(scaler.transform_one(numbers) | others, bool(y) if binary else float(y))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("task", "ours"), [("binary", PAClassifier), ("value", PARegressor)])
def test_equals_river_step_by_step(task, ours, settings, bind, stream):
    x, truth = stream(ROWS, 1, task)
    if ours is PARegressor:
        settings = settings | {"eps": 0.5}
    river = river_model(task, **settings)
    expected = list(river_predictions(river, x, truth))
    bound = bind(StandardScaler(half_life=None) | ours(bits=12, **settings))
    out = np.empty((ROWS, 1))
    bound.chain.test_then_learn(x, truth, out)

    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-9, atol=1e-9)
    assert np.ptp(out) > 0.3, "the model has learned something, so there was something to compare"
    assert bound.state["1/columns"][:, 0] == pytest.approx([river.weights[j] for j in range(3)], rel=1e-9, abs=1e-9)
    assert bound.state["1/bias"][0, 0] == pytest.approx(river.intercept, rel=1e-9, abs=1e-9)
    assert bool(bound.state["1/bias"][0, 0]) == settings.get("learn_intercept", True)


def numbers_of(data):
    names = list(data[0][0])
    x = np.array([[row[name] for name in names] for row, _ in data], np.float32)
    y = np.array([float(y) for _, y in data], np.float32).reshape(-1, 1)
    return Rows(x, np.empty((len(x), 0), np.uint64)), Truth(y, np.ones(len(x), np.float32))


@pytest.mark.parametrize(
    ("data", "task", "ours", "settings", "error"),
    [
        (datasets.Phishing, "binary", PAClassifier, {"C": 0.01}, 0.1048),
        (datasets.Bananas, "binary", PAClassifier, {"C": 0.01, "mode": 2}, 0.4691),
        (datasets.TrumpApproval, "value", PARegressor, {"C": 1.0, "mode": 2}, 0.9897),
    ],
)
def test_equals_river_on_its_own_data(data, task, ours, settings, error, bind):
    x, truth = numbers_of(list(data()))
    expected = list(river_predictions(river_model(task, **settings), x, truth))
    bound = bind(StandardScaler(half_life=None) | ours(bits=6, **settings), x.numeric.shape[1], 0)
    out = np.empty(truth.y.shape)
    bound.chain.test_then_learn(x, truth, out)
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-9, atol=1e-9)
    wrong = np.mean((out > 0.5) != truth.y) if task == "binary" else np.mean(abs(out - truth.y))
    assert wrong == pytest.approx(error, abs=5e-5)


@pytest.mark.parametrize(("ours", "labels"), [(PAClassifier, "binary"), (PARegressor, "value")])
def test_float32_state_ends_with_the_error_of_float64(ours, labels, bind, stream):
    x, truth = stream(3000, 3, labels)
    errors = []
    for dtype in ("float64", "float32"):
        bound = bind(StandardScaler() | ours(0.05, dtype=dtype, bits=12))
        assert bound.state["1/table"].dtype == dtype
        out = np.empty((3000, 1))
        bound.chain.test_then_learn(x, truth, out)
        errors.append(np.mean(abs(out - truth.y)))
    assert errors[1] == pytest.approx(errors[0], abs=1e-3)


def test_step_ends_at_the_margin_and_no_step_is_taken_within_it(bind):
    x = Rows(np.array([[0.6, -0.8]], np.float32), np.empty((1, 0), np.uint64))
    out, one = np.empty((1, 1)), np.ones(1, np.float32)
    for y in (3.0, -3.0):
        bound = bind(PARegressor(100.0, eps=0.5, learn_intercept=False, bits=6), 2, 0)
        truth = Truth(np.full((1, 1), y, np.float32), one)
        bound.chain.learn(x, truth)
        bound.chain.predict(x, out)
        assert out[0, 0] == pytest.approx(y - math.copysign(0.5, y), rel=1e-6)
        bound.chain.learn(x, Truth(np.full((1, 1), out[0, 0] + 0.49, np.float32), one))
        again = np.empty((1, 1))
        bound.chain.predict(x, again)
        assert again[0, 0] == out[0, 0]
    classifier = bind(PAClassifier(100.0, learn_intercept=False, bits=6), 2, 0)
    classifier.chain.learn(x, Truth(np.zeros((1, 1), np.float32), one))
    classifier.chain.predict(x, out)
    assert out[0, 0] == pytest.approx(1 / (1 + math.e), rel=1e-6)


def test_weight_of_zero_or_less_is_not_learned(bind, stream):
    x, truth = stream(50, 2)
    bound = bind(PAClassifier(bits=6))
    bits = bound.bits()
    bound.chain.learn(x, Truth(truth.y, np.tile(np.float32([0, -1]), 25)))
    assert bound.bits() == bits
    bound.chain.learn(x, truth)
    assert bound.bits() != bits


def test_touched_says_which_slots_were_written(bind, stream):
    bound = bind(PAClassifier(bits=12))
    x, truth = stream(30, 3)
    bound.chain.learn(x, truth)
    written = np.flatnonzero(bound.state["0/table"][:, 0])
    assert np.flatnonzero(bound.touched["0/table"]).tolist() == sorted({r >> 6 for r in written})
