"""Baselines equal River's dummies step by step, and the metrics say of themselves what the baselines reach."""

import numpy as np
import pytest
from river import datasets, dummy, stats

from headrace.models import Metrics, NoChange, Prior, Rows, RunningMean, Truth, allocate

BANANAS, PHISHING = datasets.Bananas, datasets.Phishing
SEGMENTS, APPROVAL = datasets.ImageSegments, datasets.TrumpApproval


def labels_of(dataset):
    """The labels of one of River's data sets as numbers, and what the numbers stand for."""
    found = [y for _, y in dataset()]
    if isinstance(found[0], float):
        return np.array(found, np.float32), []
    names = sorted(set(found))
    return np.array([names.index(y) for y in found], np.float32), names


def alone(y, weight=None):
    """Labels without features."""
    B = len(y)
    weight = np.ones(B, np.float32) if weight is None else np.asarray(weight, np.float32)
    x = Rows(np.empty((B, 0), np.float32), np.empty((B, 0), np.uint64))
    return x, Truth(np.asarray(y, np.float32).reshape(-1, 1), weight)


@pytest.fixture
def predicted(bind):
    """predicted(model, y, weight=None, classes=0): what the model says before each label, float64 (B, O)."""

    def predicted(model, y, weight=None, classes=0, task=""):
        task = task or ("regression" if classes == 0 else "binary" if classes == 2 else "multiclass")
        bound = bind(model, 0, 0, task, classes if task == "multiclass" else 1)
        out = np.empty((len(y), bound.spec.outputs))
        bound.chain.test_then_learn(*alone(y, weight), out)
        return out

    return predicted


def river_probabilities(model, y, classes):
    """What a classifier of River says of each class before each label; 1 / C before it has seen one."""
    out = np.full((len(y), classes), 1 / classes)
    for i, label in enumerate(y.astype(int).tolist()):
        if i:
            told = model.predict_proba_one({})
            out[i] = [told.get(c, 0.0) for c in range(classes)]
        model.learn_one({}, label)
    return out


@pytest.mark.parametrize("dataset", [BANANAS, PHISHING, SEGMENTS])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Prior(start=0.0, half_life=None), dummy.PriorClassifier), (NoChange(eps=0.0), dummy.NoChangeClassifier)],
    ids=["prior", "no change"],
)
def test_classifiers_equal_river_step_by_step(predicted, dataset, ours, theirs):
    y, names = labels_of(dataset)
    expected = river_probabilities(theirs(), y, len(names))
    out = predicted(ours, y, classes=len(names))
    np.testing.assert_allclose(out, expected if len(names) > 2 else expected[:, 1:], rtol=1e-12)
    if len(names) == 2:
        many = predicted(ours, y, classes=2, task="multiclass")
        np.testing.assert_allclose(many, expected, rtol=1e-12)


@pytest.mark.parametrize("dataset", [APPROVAL, BANANAS])
def test_running_mean_equals_river_step_by_step(predicted, dataset):
    y, _ = labels_of(dataset)
    weight = np.random.default_rng(0).choice(np.float32([1, 0.5, 3]), len(y))
    river, mean, expected = dummy.StatisticRegressor(stats.Mean()), stats.Mean(), []
    weighted = []
    for label, w in zip(y.tolist(), weight.tolist(), strict=True):
        expected.append(river.predict_one({}))
        weighted.append(mean.get())
        river.learn_one({}, label)
        mean.update(label, w)
    np.testing.assert_allclose(predicted(RunningMean(half_life=None), y)[:, 0], expected, rtol=1e-9)
    np.testing.assert_allclose(predicted(RunningMean(half_life=None), y, weight)[:, 0], weighted, rtol=1e-9)


@pytest.mark.parametrize("dataset", [BANANAS, PHISHING, SEGMENTS, APPROVAL])
def test_metrics_know_what_the_baselines_reach(predicted, dataset):
    """The figure that stands beside a model's is the one that the baseline itself gets when it is the model."""
    y, names = labels_of(dataset)
    classes = len(names)

    def figures(model):
        out = predicted(model, y, classes=classes)
        metrics = Metrics("multiclass", classes) if classes > 2 else Metrics("binary" if names else "regression")
        metrics.bind(allocate(metrics.layout()))
        later = slice(0 if names else 1, None)  # of a regression the first label is foretold by none
        metrics.update(y[later], out[later])
        return metrics.results()

    if names:
        told = figures(Prior(half_life=None))
        assert told["log_loss"] == pytest.approx(told["log_loss_prior"], rel=1e-5)
        told = figures(NoChange())
        first = 1 if np.argmax([1 / classes] * classes) == y[0] else 0
        if classes == 2:
            first = int(y[0] == 1)  # a half is taken for true
        hits = told["accuracy_no_change"] * (len(y) - 1)
        assert told["accuracy"] == pytest.approx((hits + first) / len(y), rel=1e-9)
        return
    whole = Metrics("regression")
    whole.bind(allocate(whole.layout()))
    whole.update(y, y)
    for model, name in ((RunningMean(half_life=None), "running_mean"), (NoChange(), "no_change")):
        told = figures(model)
        assert told["mae"] == pytest.approx(whole.results()[f"mae_{name}"], rel=1e-5)
        assert told["rmse"] == pytest.approx(whole.results()[f"rmse_{name}"], rel=1e-5)


def test_prior_counts_its_start_and_follows_the_stream_sooner_after_it_forgot(bind):
    bound = bind(Prior(start=1.0), 0, 0, "multiclass", 3)
    out = np.empty((1, 3))
    bound.chain.learn(*alone([2, 2, 1]))
    bound.chain.predict(alone([0])[0], out)
    np.testing.assert_allclose(out[0], [1 / 6, 2 / 6, 3 / 6])
    ((half_life, decay),) = bound.chain.decays()
    assert half_life == 30 * 86_400_000_000
    decay(0.5)
    bound.chain.learn(*alone([0]))
    bound.chain.predict(alone([0])[0], out)
    np.testing.assert_allclose(out[0], [1.5 / 4, 1 / 4, 1.5 / 4])


@pytest.mark.parametrize("model", [Prior(), RunningMean()], ids=repr)
def test_negative_weight_takes_back_what_was_learned(bind, model):
    bound, plain = bind(model.unbound(), 0, 0), bind(model.unbound(), 0, 0)
    bound.chain.learn(*alone([1, 0, 1, 0, 0], [1, 2, 0.5, -2, 1]))
    plain.chain.learn(*alone([1, 1, 0], [1, 0.5, 1]))
    for name, array in plain.state.items():
        np.testing.assert_allclose(bound.state[name], array, rtol=1e-12)


def test_what_is_taken_back_too_often_leaves_nothing_behind(bind):
    prior, mean = bind(Prior(), 0, 0), bind(RunningMean(), 0, 0)
    for bound in (prior, mean):
        bound.chain.learn(*alone([1, 1, 0, 0], [1, -3, 1, -9]))
        out = np.empty((1, 1))
        bound.chain.predict(alone([0])[0], out)
        assert out[0, 0] == (0.5 if bound is prior else 0.0)
        assert not any(array.any() for array in bound.state.values())


@pytest.mark.parametrize("model", [Prior(), NoChange()], ids=repr)
def test_label_that_is_no_class_is_not_learned(bind, model):
    bound, plain = (bind(model.unbound(), 0, 0, "multiclass", 3) for _ in range(2))
    bound.chain.learn(*alone([1, 3, -1, 0.5, np.nan, np.inf, 3e38]))
    plain.chain.learn(*alone([1]))
    assert bound.bits() == plain.bits()


def test_no_change_holds_its_certainty_and_shares_the_rest(predicted):
    out = predicted(NoChange(eps=0.1), [2, 0, 0, 1], classes=5)
    np.testing.assert_allclose(out[0], 0.2)
    np.testing.assert_allclose(out[1:3], [[0.025, 0.025, 0.9, 0.025, 0.025], [0.9, 0.025, 0.025, 0.025, 0.025]])
    np.testing.assert_allclose(out.sum(1), 1.0)
    assert predicted(NoChange(eps=0.1), [1, 0, 0], classes=2)[:, 0].tolist() == [0.5, 0.9, pytest.approx(0.1)]
    values = [7.5, np.nan, -3, 2, 9]
    assert predicted(NoChange(), values, [1, 1, 1, 0, -1])[:, 0].tolist() == [0, 7.5, 7.5, -3, -3]
