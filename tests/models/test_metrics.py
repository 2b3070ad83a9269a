"""Progressive metrics equal scikit-learn's and plain NumPy's, whatever the cuts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error

from headrace.errors import DeclarationError
from headrace.models import Metrics, allocate


def bound(task, outputs=1):
    metrics = Metrics(task, outputs)
    state = allocate(metrics.layout())
    metrics.bind(state)
    return metrics, state


def results(task, y, p):
    metrics, _ = bound(task, np.shape(p)[1] if np.ndim(p) == 2 else 1)
    metrics.update(np.asarray(y, np.float32), np.asarray(p, np.float32))
    return metrics.results()


def binary(rows=5000, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, spread, rows)
    y = rng.random(rows) < 1 / (1 + np.exp(-logit))
    return y.astype(np.float32), (1 / (1 + np.exp(-logit - 0.3))).astype(np.float32)


@pytest.mark.parametrize("spread", [0.05, 1.5, 6.0])
def test_binary_metrics_equal_their_references(spread):
    y, p = binary(20_000, 1, spread)
    got = results("binary", y, p)
    rate = float(y.mean(dtype=np.float64))
    assert got["labels"] == 20_000
    assert got["log_loss"] == pytest.approx(log_loss(y, np.clip(p.astype(np.float64), 2**-24, 1 - 2**-24)), rel=1e-9)
    assert got["log_loss_constant"] == pytest.approx(log_loss(y, np.full(20_000, rate)), rel=1e-9)
    assert got["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-4 if spread > 1 else 1e-3)
    assert got["accuracy"] == pytest.approx(np.mean((p >= 0.5) == y))
    assert got["accuracy_majority"] == pytest.approx(max(rate, 1 - rate))
    assert got["accuracy_no_change"] == pytest.approx(np.mean(y[1:] == y[:-1]))


def test_a_tie_counts_half_in_the_auc():
    assert results("binary", [0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5])["auc"] == 0.5
    assert results("binary", [0, 1, 1], [0.2, 0.2, 0.9])["auc"] == 0.75


def test_a_certain_error_costs_what_float32_can_tell():
    got = results("binary", [0, 1], [1.0, 0.0])
    assert got["log_loss"] == pytest.approx(24 * np.log(2))
    assert got["auc"] == 0.0


LABELS = {
    "normal": lambda rng: rng.normal(1000, 3, 20_000),
    "skewed": lambda rng: rng.lognormal(0, 2, 20_000),
    "delays": lambda rng: np.round(rng.exponential(40, 20_000) - 20),
    "mostly_zero": lambda rng: np.where(rng.random(20_000) < 0.9, 0, rng.exponential(5, 20_000)),
    "drifting": lambda rng: rng.normal(0, 1, 20_000) + np.arange(20_000) / 1000,
    "constant_then_not": lambda rng: np.where(np.arange(20_000) < 2000, 7, rng.normal(50, 10, 20_000)),
    "few": lambda rng: rng.normal(5, 2, 300),
    "just_as_many_as_are_kept": lambda rng: rng.normal(5, 2, 1024),
    "one_more": lambda rng: rng.normal(5, 2, 1025),
    "huge": lambda rng: rng.normal(0, 1e30, 3000),
}


@pytest.mark.parametrize("kind", LABELS)
def test_regression_metrics_equal_their_references(kind):
    rng = np.random.default_rng(2)
    y = LABELS[kind](rng).astype(np.float32)
    p = (y * 0.9 + rng.normal(size=len(y))).astype(np.float32)
    got = results("regression", y, p)
    y, p = y.astype(np.float64), p.astype(np.float64)
    assert got["labels"] == len(y)
    assert got["mae"] == pytest.approx(mean_absolute_error(y, p), rel=1e-9)
    assert got["rmse"] == pytest.approx(root_mean_squared_error(y, p), rel=1e-9)
    assert got["rmse_constant"] == pytest.approx(y.std(), rel=1e-9)
    assert got["mae_constant"] == pytest.approx(np.abs(y - np.median(y)).mean(), rel=5e-3)


def test_every_label_after_the_first_thousand_lies_in_one_bin():
    metrics, state = bound("regression")
    for rows in (1000, 24, 1, 1, 500):
        metrics.update(np.arange(rows), np.zeros(rows))
        counted = metrics.results()["labels"]
        assert state["counts"].sum() == (counted if counted > 1024 else 0)
    assert state["totals"].sum() == np.arange(1000).sum() + np.arange(24).sum() + np.arange(500).sum()


def test_recent_loss_forgets_the_old():
    y = np.zeros(100_000, np.float32)
    p = np.where(np.arange(100_000) < 50_000, 0.5, 0.1).astype(np.float32)
    got = results("binary", y, p)
    assert got["recent_log_loss"] == pytest.approx(-np.log(0.9), rel=0.05)
    assert results("binary", y[:100], p[:100])["recent_log_loss"] == pytest.approx(np.log(2))
    assert results("regression", y, p)["recent_mae"] == pytest.approx(0.1, rel=0.05)


def classes(rows=5000, C=4, seed=0):
    """Labels that come in runs, and P that know something of them; in float32 they do not quite sum to one."""
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.integers(0, C, rows), rng.integers(1, 4, rows))[:rows]
    score = rng.normal(size=(rows, C)) + 2 * np.eye(C)[y]
    p = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    return y.astype(np.float32), p.astype(np.float32)


@pytest.mark.parametrize("C", [2, 4, 30])
def test_multiclass_metrics_equal_their_references(C):
    y, p = classes(20_000, C)
    got = results("multiclass", y, p)
    shares = np.bincount(y.astype(int), minlength=C) / 20_000
    exact = p.astype(np.float64) / p.astype(np.float64).sum(1, keepdims=True)
    assert got["labels"] == 20_000
    assert got["log_loss"] == pytest.approx(log_loss(y, exact, labels=range(C)), rel=1e-9)
    constant = log_loss(y, np.tile(shares, (20_000, 1)), labels=range(C))
    assert got["log_loss_constant"] == pytest.approx(constant, rel=1e-9)
    assert got["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert got["accuracy_majority"] == pytest.approx(shares.max())
    assert got["accuracy_no_change"] == pytest.approx(np.mean(y[1:] == y[:-1]))
    assert abs(got["recent_log_loss"] - got["log_loss"]) < 0.1
    assert "auc" not in got


def test_two_classes_are_a_binary_task():
    y, p = binary(3000, 1)
    one, two = results("binary", y, p), results("multiclass", y, np.column_stack([1 - p, p]))
    one.pop("auc")
    assert one == pytest.approx(two, rel=1e-6)


def test_probabilities_of_classes_are_taken_relative_to_their_sum():
    y, p = classes(1000)
    wanted = results("multiclass", y, p)
    assert results("multiclass", y, p * np.float32(8)) == wanted
    assert results("multiclass", [1, 0], [[-1, 3, 1], [0, 0, 0]])["log_loss"] == pytest.approx(
        (np.log(4 / 3) + np.log(3)) / 2
    )
    certain = results("multiclass", [1, 1], [[1, 0, 0], [0, 1, 0]])
    assert certain["log_loss"] == pytest.approx(12 * np.log(2), rel=1e-6)
    assert certain["accuracy"] == 0.5


def test_of_classes_that_are_as_likely_the_first_was_meant():
    assert results("multiclass", [0, 1, 2], np.full((3, 3), 1 / 3))["accuracy"] == pytest.approx(1 / 3)
    assert results("multiclass", [1, 1], [[0.2, 0.4, 0.4]] * 2)["accuracy"] == 1.0


@pytest.mark.parametrize("odd", [np.nan, np.inf, -1, 4, 0.5, 3e38])
def test_a_label_that_is_no_class_and_a_prediction_that_is_no_number_are_passed_over(odd):
    y, p = classes(50)
    wanted = results("multiclass", y, p)
    assert results("multiclass", np.insert(y, 9, odd), np.insert(p, 9, 0.25, axis=0)) == wanted
    broken = np.insert(p, 9, [0.1, np.nan, 0.1, np.inf], axis=0)
    assert results("multiclass", np.insert(y, 9, 2), broken) == wanted


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_first_label_is_foretold_by_none(task):
    C = 1 if task == "binary" else 2
    for labels, right in (([0], None), ([0, 1], 0.0), ([0, 0, 1], 0.5)):
        assert results(task, labels, np.full((len(labels), C), 0.5))["accuracy_no_change"] == right


@pytest.mark.parametrize("C", [2, 5])
def test_loss_of_the_prior_is_that_of_saying_the_frequencies_so_far(C):
    rng = np.random.default_rng(C)
    y = rng.choice(C, 2000, p=np.r_[0.9, np.full(C - 1, 0.1 / (C - 1))])
    counts, loss = np.full(C, 0.5), 0.0
    for t in y:
        loss -= np.log(counts[t] / counts.sum())
        counts[t] += 1
    got = results("binary", y, np.full(2000, 0.5)) if C == 2 else results("multiclass", y, np.full((2000, C), 1 / C))
    assert got["log_loss_prior"] == pytest.approx(loss / 2000, rel=1e-12)
    assert got["log_loss_prior"] > got["log_loss_constant"]


@pytest.mark.parametrize("kind", LABELS)
def test_baselines_of_a_regression_are_those_of_the_labels_before(kind):
    y = LABELS[kind](np.random.default_rng(3)).astype(np.float32)
    got = results("regression", y, np.zeros(len(y), np.float32))
    y = y.astype(np.float64)
    mean = np.cumsum(y)[:-1] / np.arange(1, len(y))
    for name, error in (("running_mean", y[1:] - mean), ("no_change", np.diff(y))):
        assert got[f"mae_{name}"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
        assert got[f"rmse_{name}"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)


def test_state_of_an_earlier_version_goes_on_without_the_baselines_that_it_does_not_know():
    y, p = binary(3000, 5)
    whole, state = bound("regression")
    older, old_state = bound("regression")
    whole.update(y[:2000], p[:2000])
    for name, array in state.items():
        old_state[name][:] = array
    old_state["sums"][9:] = 0
    for metrics in (whole, older):
        metrics.update(y[2000:], p[2000:])
    known = {name: v for name, v in whole.results().items() if "no_change" not in name and "running" not in name}
    assert older.results() == known | dict.fromkeys(whole.results().keys() - known.keys())
    assert len(whole.results()) == len(known) + 4


MANY = {"binary": 1, "multiclass": 3, "regression": 1}


@pytest.mark.parametrize("task", MANY)
@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 1500), max_size=5))
def test_metrics_do_not_depend_on_the_cuts(task, cuts):
    y, p = binary(1500, 3) if MANY[task] == 1 else classes(1500, 3)
    p = p.reshape(1500, -1)
    y[5], p[7] = np.nan, np.nan
    whole, whole_state = bound(task, MANY[task])
    whole.update(y.reshape(-1, 1), p)
    cut, cut_state = bound(task, MANY[task])
    for a, b in pairwise([0, *sorted(cuts), 1500]):
        cut.update(y[a:b], p[a:b])
    assert all(cut_state[name].tobytes() == whole_state[name].tobytes() for name in whole_state)
    assert whole.results() == cut.results()
    assert whole.results()["labels"] == 1498


def test_metrics_go_on_from_saved_state():
    y, p = binary(3000, 4)
    first, state = bound("regression")
    first.update(y[:2000], p[:2000])
    second, moved = bound("regression")
    for name, array in state.items():
        moved[name][:] = array
    first.update(y[2000:], p[2000:])
    second.update(y[2000:], p[2000:])
    assert first.results() == second.results()


@pytest.mark.parametrize("task", MANY)
def test_nothing_is_told_before_the_first_label(task):
    metrics, _ = bound(task, MANY[task])
    metrics.warm_up()
    metrics.update(np.empty(0, np.float32), np.empty((0, MANY[task]), np.float32))
    metrics.update(np.float32([np.nan]), np.full((1, MANY[task]), 0.5, np.float32))
    told = metrics.results()
    assert told.pop("labels") == 0
    assert set(told.values()) == {None}


def test_one_label_tells_what_it_can():
    got = results("binary", [1], [0.25])
    assert got["log_loss"] == pytest.approx(np.log(4))
    assert got["log_loss_prior"] == pytest.approx(np.log(2))
    assert got["auc"] is None
    assert got["accuracy_no_change"] is None
    got = results("regression", [3], [5])
    assert (got["mae_constant"], got["mae_no_change"], got["rmse_running_mean"]) == (0.0, None, None)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(DeclarationError, match="'binary', 'multiclass' or 'regression', got 'ranking'"):
        Metrics("ranking")
    with pytest.raises(DeclarationError, match="multiclass task has 2 or more classes, got outputs=1"):
        Metrics("multiclass")
    with pytest.raises(DeclarationError, match="regression task has 1 output, got outputs=2"):
        Metrics("regression", 2)
    with pytest.raises(ValueError, match="3 labels and 2 predictions"):
        results("binary", [0, 1, 0], [0.5, 0.5])
    metrics, _ = bound("multiclass", 3)
    with pytest.raises(ValueError, match=r"expected a P for each of 3 classes, got \(2, 2\)"):
        metrics.update(np.zeros(2), np.zeros((2, 2)))
