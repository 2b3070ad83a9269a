"""Quantile and Poisson regressions are judged by losses that equal scikit-learn's, beside baselines; labels below 0."""

import numpy as np
import pytest
from sklearn.metrics import mean_pinball_loss, mean_poisson_deviance

from headrace.errors import DeclarationError
from headrace.models import (
    FTRL,
    SGD,
    AdaGrad,
    Average,
    LinearRegression,
    Metrics,
    Rows,
    RunningMean,
    StandardScaler,
    Truth,
    allocate,
    as_chain,
)
from headrace.models.measures import LEAST_RATE, Measure

DEVIANCE = Measure("poisson_deviance")
LABELS = {
    "value": lambda rng, rows: rng.normal(50, 20, rows),
    "skewed": lambda rng, rows: rng.lognormal(0, 1.5, rows),
    "count": lambda rng, rows: rng.poisson(rng.gamma(2, 2, rows)),
}


def counted(measure, y, p, cuts=()):
    metrics = Metrics("regression", measure=measure)
    metrics.bind(allocate(metrics.layout()))
    for labels, predictions in zip(*(np.split(np.asarray(a, np.float32), cuts) for a in (y, p)), strict=True):
        metrics.update(labels, predictions)
    return metrics.results()


def drawn(kind, rows):
    rng = np.random.default_rng(4)
    y = LABELS[kind](rng, rows).astype(np.float32)
    return y, (np.abs(y) * rng.uniform(0.3, 2, rows) + 0.1).astype(np.float32)


def before(y):
    """What the running mean and no change say of all labels but the first."""
    y = y.astype(np.float64)
    return np.cumsum(y)[:-1] / np.arange(1, len(y)), y[:-1]


@pytest.mark.parametrize("rows", [700, 20_000])
@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.9, 1])
@pytest.mark.parametrize("kind", LABELS)
def test_pinball_loss_and_its_baselines_equal_scikit_learns(kind, quantile, rows):
    y, p = drawn(kind, rows)
    got = counted(Measure("pinball", quantile), y, p)
    mean, change = before(y)
    assert got["pinball"] == pytest.approx(mean_pinball_loss(y, p, alpha=quantile), rel=1e-6)
    assert got["pinball_running_mean"] == pytest.approx(mean_pinball_loss(y[1:], mean, alpha=quantile), rel=1e-6)
    assert got["pinball_no_change"] == pytest.approx(mean_pinball_loss(y[1:], change, alpha=quantile), rel=1e-6)
    best = mean_pinball_loss(y, np.full(rows, np.quantile(y, quantile)), alpha=quantile)
    assert got["pinball_constant"] == pytest.approx(best, rel=1e-6 if rows < 1024 else 1e-2)
    assert abs(got["recent_pinball"] / got["pinball"] - 1) < 0.1


@pytest.mark.parametrize("kind", ["skewed", "count"])
def test_poisson_deviance_and_its_baselines_equal_scikit_learns(kind):
    y, p = drawn(kind, 20_000)
    got = counted(DEVIANCE, y, p)
    mean, change = (np.maximum(said, LEAST_RATE) for said in before(y))
    exact = y.astype(np.float64)
    assert got["poisson_deviance"] == pytest.approx(mean_poisson_deviance(exact, p.astype(np.float64)), rel=1e-9)
    assert got["poisson_deviance_running_mean"] == pytest.approx(mean_poisson_deviance(exact[1:], mean), rel=1e-9)
    assert got["poisson_deviance_no_change"] == pytest.approx(mean_poisson_deviance(exact[1:], change), rel=1e-9)
    best = mean_poisson_deviance(exact, np.full(len(y), exact.mean()))
    assert got["poisson_deviance_constant"] == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("measure", [Measure("pinball", 0.9), DEVIANCE])
def test_measure_leaves_the_other_figures_alone_and_knows_no_cuts(measure):
    y, p = drawn("count", 3000)
    whole, plain = counted(measure, y, p), counted(None, y, p)
    assert plain.items() < whole.items() and len(whole) == len(plain) + 5
    assert counted(measure, y, p, cuts=[0, 1, 2, 900, 1024, 2999]) == whole


@pytest.mark.parametrize("measure", [Measure("pinball", 0.9), DEVIANCE])
def test_losses_of_rows_are_those_that_are_summed(measure):
    y, p = drawn("count", 500)
    y[7], p[9] = np.nan, np.inf
    known = np.isfinite(y) & np.isfinite(p)
    losses = measure.losses(y, p[:, None])
    assert np.isnan(losses[~known]).all() and np.isfinite(losses[known]).all()
    assert counted(measure, y, p)[measure.name] == pytest.approx(losses[known].mean(), rel=1e-12)


def test_deviance_passes_labels_below_zero_over_and_holds_rates_above_it():
    y, p = drawn("count", 100)
    wanted, got = counted(DEVIANCE, y, p), counted(DEVIANCE, np.insert(y, 50, -1), np.insert(p, 50, 2))
    names = [name for name in wanted if "poisson" in name]
    assert [got[name] for name in names] == [wanted[name] for name in names]
    assert (wanted["labels"], got["labels"]) == (100, 101)
    for rate in (0.0, -3.0):
        dear = counted(DEVIANCE, [2], [rate])["poisson_deviance"]
        assert dear == pytest.approx(mean_poisson_deviance([2], [LEAST_RATE]))
    zeros = counted(DEVIANCE, [0, 0], [0, 0])
    assert (zeros["poisson_deviance"], zeros["poisson_deviance_constant"]) == (pytest.approx(0, abs=1e-6), 0.0)


@pytest.mark.parametrize("measure", [Measure("pinball", 0.9), DEVIANCE])
def test_no_label_tells_nothing(measure):
    assert {value for name, value in counted(measure, [], []).items() if name != "labels"} == {None}
    assert counted(measure, [3], [2])[f"{measure.name}_no_change"] is None


def test_classes_have_no_measure():
    with pytest.raises(DeclarationError, match="is for a regression, got the task 'binary'"):
        Metrics("binary", measure=DEVIANCE)


def test_who_is_judged_by_what():
    high, rate = LinearRegression(loss="quantile", quantile=0.9), LinearRegression(loss="poisson")
    assert as_chain(StandardScaler() | high).measure() == Measure("pinball", 0.9)
    assert as_chain(rate).measure() == DEVIANCE
    assert as_chain(Average(high, StandardScaler() | high)).measure() == Measure("pinball", 0.9)
    others = [LinearRegression(loss=loss) for loss in ("squared", "absolute", "huber")]
    for model in (*others, RunningMean(), Average(high, rate), Average(high, RunningMean())):
        assert as_chain(model).measure() is None


# --- labels below 0 of a Poisson regression

LEARNERS = {
    "ftrl": lambda: LinearRegression(FTRL(0.05), loss="poisson", bits=8),
    "sgd": lambda: LinearRegression(SGD(0.01), loss="poisson", bits=8, base_rate=False, dtype="float32"),
    "scaled": lambda: StandardScaler() | LinearRegression(AdaGrad(0.05), loss="poisson", bits=8),
    "average": lambda: StandardScaler() | Average(
        LinearRegression(FTRL(0.05), loss="poisson", bits=8), StandardScaler() | LinearRegression(SGD(0.01), loss="poisson", bits=8)
    ),
}  # fmt: skip


def without_counts(bound):
    return {name: bits for name, bits in bound.bits().items() if "labels_below_zero" not in name}


@pytest.mark.parametrize("name", LEARNERS)
def test_poisson_learns_nothing_of_a_label_below_zero_and_counts_it(name, bind, stream):
    x, truth = stream(300, 6, "count")
    below = np.zeros(300, bool)
    below[[0, 5, 6, 100, 299]] = True
    odd, unknown = (np.where(below[:, None], np.float32(value), truth.y) for value in (-1, np.nan))
    odd[5], unknown[5] = -1e30, np.nan
    one, two = bind(LEARNERS[name](), task="regression"), bind(LEARNERS[name](), task="regression")
    said = np.empty((2, 300, 1), np.float32)
    one.chain.test_then_learn(x, Truth(odd, truth.weight), said[0])
    two.chain.test_then_learn(x, Truth(unknown, truth.weight), said[1])
    times = 2 if name == "average" else 1
    assert said[0].tobytes() == said[1].tobytes()
    assert without_counts(one) == without_counts(two)
    assert (one.chain.counters(), two.chain.counters()) == ({"labels_below_zero": 5 * times}, {"labels_below_zero": 0})

    one.chain.learn(x, Truth(odd, truth.weight))  # as they come late
    two.chain.learn(Rows(x.numeric[~below], x.categories[~below]), Truth(truth.y[~below], truth.weight[~below]))
    assert without_counts(one) == without_counts(two)
    assert one.chain.counters() == {"labels_below_zero": 10 * times}
    one.chain.warm_up(explain=True)
    one.chain.predict(x, said[0])
    assert one.chain.counters() == {"labels_below_zero": 10 * times}


def test_poisson_counts_a_row_once_that_is_explained_too(bind, stream):
    x, truth = stream(20, 6, "count")
    truth.y[3] = -2
    bound = bind(StandardScaler() | LinearRegression(loss="poisson", bits=8))
    bound.chain.test_then_learn(x, truth, np.empty((20, 1), np.float32), contributions=np.empty((20, 1, 6), np.float32))
    assert bound.chain.counters() == {"labels_below_zero": 1}


@pytest.mark.parametrize("loss", ["squared", "absolute", "quantile", "huber"])
def test_other_losses_learn_labels_below_zero(loss, bind, stream):
    x, truth = stream(100, 6, "value")
    one, two = (bind(LinearRegression(loss=loss, bits=8)) for _ in range(2))
    one.chain.learn(x, Truth(-truth.y, truth.weight))
    two.chain.learn(x, Truth(truth.y, truth.weight))
    assert one.chain.counters() == {} and "0/labels_below_zero" not in one.state
    assert one.state["0/base_mean"] == -two.state["0/base_mean"]
