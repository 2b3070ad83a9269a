"""Progressive metrics equal scikit-learn's and plain NumPy's, whatever the cuts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score, root_mean_squared_error

from headrace.errors import DeclarationError
from headrace.models import Metrics, allocate


def bound(task):
    metrics = Metrics(task)
    state = allocate(metrics.layout())
    metrics.bind(state)
    return metrics, state


def results(task, y, p):
    metrics, _ = bound(task)
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


@pytest.mark.parametrize("task", ["binary", "regression"])
@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 1500), max_size=5))
def test_metrics_do_not_depend_on_the_cuts(task, cuts):
    y, p = binary(1500, 3)
    y[5], p[7] = np.nan, np.nan
    whole, whole_state = bound(task)
    whole.update(y.reshape(-1, 1), p.reshape(-1, 1))
    cut, cut_state = bound(task)
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


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_nothing_is_told_before_the_first_label(task):
    metrics, _ = bound(task)
    metrics.warm_up()
    metrics.update(np.empty(0, np.float32), np.empty(0, np.float32))
    metrics.update(np.float32([np.nan]), np.float32([0.5]))
    told = metrics.results()
    assert told.pop("labels") == 0
    assert set(told.values()) == {None}


def test_one_label_tells_what_it_can():
    got = results("binary", [1], [0.25])
    assert got["log_loss"] == pytest.approx(np.log(4))
    assert got["auc"] is None
    assert got["accuracy_no_change"] is None
    assert results("regression", [3], [5])["mae_constant"] == 0.0


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(DeclarationError, match="'binary' or 'regression', got 'multiclass'"):
        Metrics("multiclass")
    with pytest.raises(ValueError, match="3 labels and 2 predictions"):
        results("binary", [0, 1, 0], [0.5, 0.5])
