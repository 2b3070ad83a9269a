"""Softmax regression equals its references step by step: River where it has the rule, a plain NumPy twin where not."""

import math
from itertools import pairwise

import numpy as np
import pytest
from river import datasets, linear_model, metrics, optim, preprocessing

from headrace.models import FTRL, SGD, AdaGrad, LogisticRegression, Rows, SoftmaxRegression, StandardScaler, Truth

ROWS, CLASSES = 400, 3
OPTIMIZERS = {
    "sgd": (SGD(0.02), lambda: optim.SGD(0.02), 0.0),
    "sgd_l2": (SGD(0.02, l2=0.1), lambda: optim.SGD(0.02), 0.1),
    "adagrad": (AdaGrad(0.1, half_life=None), lambda: optim.AdaGrad(0.1), 0.0),
    "adagrad_l2": (AdaGrad(0.3, eps=1e-3, l2=0.05, half_life=None), lambda: optim.AdaGrad(0.3, eps=1e-3), 0.05),
}


def as_dicts(x, i):
    """Row i as River sees it: numbers, indicators of what is missing, and one feature per category."""
    numbers = {j: float(v) for j, v in enumerate(x.numeric[i]) if not math.isnan(v)}
    others = {f"missing {j}": 1.0 for j, v in enumerate(x.numeric[i]) if math.isnan(v)}
    return numbers, others | {int(h): 1.0 for h in x.categories[i] if h}


def told(river, classes):
    """The model of River, told what classes there are, before it has seen them."""
    for label in classes:
        river.weights[label]
    return river


def river_predictions(river, classes, x, truth):
    """What River predicts for each row, scaled, before it learns the row."""
    scaler = preprocessing.StandardScaler()
    for i, y in enumerate(truth.y[:, 0]):
        numbers, others = as_dicts(x, i)
        predicted = river.predict_proba_one(scaler.transform_one(numbers) | others)
        yield [predicted[label] for label in classes]
        scaler.learn_one(numbers)
        river.learn_one(scaler.transform_one(numbers) | others, int(y))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sgd_and_adagrad_equal_river_step_by_step(optimizer, bind, stream):
    ours, river_optimizer, l2 = OPTIMIZERS[optimizer]
    x, truth = stream(ROWS, 1, "classes")
    truth.weight[:] = 1.0  # River's model knows no other
    river = told(linear_model.SoftmaxRegression(river_optimizer(), l2=l2), range(CLASSES))
    expected = list(river_predictions(river, range(CLASSES), x, truth))

    learner = SoftmaxRegression(ours, base_rate=False, intercept_lr=0.0, bits=12)
    bound = bind(StandardScaler(half_life=None) | learner)
    out = np.empty((ROWS, CLASSES))
    bound.chain.test_then_learn(x, truth, out)

    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)
    assert (np.ptp(out, axis=0) > 0.3).all(), "the model has learned something, so there was something to compare"
    for c in range(CLASSES):
        assert bound.state["1/columns"][:, c, 0] == pytest.approx([river.weights[c][j] for j in range(3)], rel=1e-9)
        missing = [river.weights[c][f"missing {j}"] for j in range(3)]
        assert bound.state["1/missing"][:, c, 0] == pytest.approx(missing, rel=1e-9)
    assert not bound.state["1/bias"][:, 0].any()


@pytest.mark.parametrize(("lr", "accuracy", "of_river"), [(0.005, 0.7883, 0.7887), (0.01, 0.8238, 0.8251)])
def test_equals_river_on_image_segments(lr, accuracy, of_river, bind):
    data = list(datasets.ImageSegments())
    names, classes = list(data[0][0]), sorted({y for _, y in data})
    x = Rows(
        np.array([[row[name] for name in names] for row, _ in data], np.float32), np.empty((len(data), 0), np.uint64)
    )
    y = np.array([classes.index(label) for _, label in data])
    truth = Truth(y.astype(np.float32).reshape(-1, 1), np.ones(len(data), np.float32))
    river = told(linear_model.SoftmaxRegression(optim.SGD(lr)), range(7))
    expected = np.array(list(river_predictions(river, range(7), x, truth)))

    learner = SoftmaxRegression(SGD(lr), base_rate=False, intercept_lr=0.0, bits=6)
    bound = bind(StandardScaler(half_life=None) | learner, len(names), 0, outputs=7)
    out = np.empty((len(data), 7))
    bound.chain.test_then_learn(x, truth, out)

    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)
    assert np.mean(out.argmax(1) == y) == pytest.approx(accuracy, abs=5e-5)
    as_it_comes = preprocessing.StandardScaler() | linear_model.SoftmaxRegression(optim.SGD(lr))
    metric = metrics.Accuracy()
    for row, label in data:
        metric.update(label, as_it_comes.predict_one(row))
        as_it_comes.learn_one(row, label)
    assert metric.get() == pytest.approx(of_river, abs=5e-5)  # which learns the classes as they come


class Twin:
    """Softmax regression of dictionaries of vectors, one number for each class; rows are {name: value}."""

    def __init__(self, optimizer, base_rate, class_weight):
        self.optimizer, self.base_rate, self.class_weight = optimizer, base_rate, class_weight
        self.z, self.n, self.counts = {}, {}, np.full(CLASSES, 0.5)

    def penalties(self, name):
        return (0.0, 0.0) if name == "bias" else (getattr(self.optimizer, "l1", 0.0), self.optimizer.l2)

    def stiffness(self, name):
        o = self.optimizer
        return (o.beta + np.sqrt(self.n[name])) / o.alpha + self.penalties(name)[1]

    def weight(self, name):
        z = self.z.setdefault(name, np.zeros(CLASSES))
        self.n.setdefault(name, np.zeros(CLASSES))
        if not isinstance(self.optimizer, FTRL):
            return z
        l1, _ = self.penalties(name)
        return np.where(abs(z) > l1, -(z - np.sign(z) * l1) / np.maximum(self.stiffness(name), 1e-300), 0.0)

    def predict(self, row):
        raw = sum(self.weight(name) * v for name, v in row.items()) + self.weight("bias")
        if self.base_rate:
            raw = raw + np.log(np.maximum(self.counts / self.counts.sum(), 1e-6))
        e = np.exp(raw - raw.max())
        return e / e.sum()

    def learn(self, row, y, weight):
        o, weight = self.optimizer, weight * self.class_weight[y]
        slopes = (self.predict(row) - np.eye(CLASSES)[y]) * weight
        for name, v in [*row.items(), ("bias", 1.0)]:
            w, g = self.weight(name), slopes * v
            if not isinstance(o, FTRL):
                g = g + self.penalties(name)[1] * w
            n, m = self.n[name], self.n[name] + g * g
            if isinstance(o, FTRL):
                self.z[name] = self.z[name] + g - (np.sqrt(m) - np.sqrt(n)) / o.alpha * w
            else:
                self.z[name] = w - (o.lr / np.sqrt(m + o.eps) if isinstance(o, AdaGrad) else o.lr) * g
            self.n[name] = m
        self.counts[y] = max(self.counts[y] + weight, 0.0)

    def decay(self, factor):
        before = {name: self.weight(name) for name in list(self.z)}
        self.n = {name: n * factor for name, n in self.n.items()}
        if isinstance(self.optimizer, FTRL):
            for name, w in before.items():  # the z that gives the same weight under the new n
                l1, _ = self.penalties(name)
                self.z[name] = np.where(w != 0, -np.sign(w) * l1 - w * self.stiffness(name), self.z[name])
        self.counts *= factor


@pytest.mark.parametrize("class_weight", [None, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("base_rate", [False, True])
@pytest.mark.parametrize(
    "optimizer", [FTRL(), FTRL(0.5, 0.1, l1=0.7, l2=0.3), AdaGrad(0.2, l2=0.01), SGD(0.01, half_life="1d")]
)
def test_every_rule_equals_its_plain_twin_with_forgetting_between(optimizer, base_rate, class_weight, bind, stream):
    x, truth = stream(ROWS, 4, "classes")
    truth.weight[40::17] = -0.5
    truth.y[5::31] = np.nan
    learner = SoftmaxRegression(optimizer, base_rate=base_rate, class_weight=class_weight, bits=12)
    bound = bind(StandardScaler() | learner)
    twin, scaler = Twin(optimizer, base_rate, class_weight or [1.0] * 3), preprocessing.StandardScaler()
    ((_, _), (_, decay)) = bound.chain.decays()
    out = np.empty((ROWS, CLASSES))
    for start, stop in pairwise([0, 1, 90, 200, 201, ROWS]):
        part = [a[start:stop] for a in (*x, *truth)]
        bound.chain.test_then_learn(Rows(*part[:2]), Truth(*part[2:]), out[start:stop])
        for i in range(start, stop):
            numbers, others = as_dicts(x, i)
            expected = twin.predict(scaler.transform_one(numbers) | others)
            assert out[i] == pytest.approx(expected, rel=1e-9, abs=1e-9), i
            scaler.learn_one(numbers)
            if not math.isnan(truth.y[i, 0]):
                row = scaler.transform_one(numbers) | others
                twin.learn(row, int(truth.y[i, 0]), float(truth.weight[i]))
        decay(0.9)
        twin.decay(0.9)
    assert (np.ptp(out, axis=0) > 0.3).all()


@pytest.mark.parametrize("optimizer", [SGD(0.02), AdaGrad(0.1), FTRL(0.1, l1=0.5)])
def test_float32_state_ends_with_the_loss_of_float64(optimizer, bind, stream):
    x, truth = stream(3000, 3, "classes")
    losses = []
    for dtype in ("float64", "float32"):
        bound = bind(StandardScaler() | SoftmaxRegression(optimizer, dtype=dtype, bits=12))
        assert bound.state["1/table"].dtype == bound.state["1/columns"].dtype == dtype
        out = np.empty((3000, CLASSES))
        bound.chain.test_then_learn(x, truth, out)
        losses.append(np.mean(-np.log(np.take_along_axis(out, truth.y.astype(int), 1))))
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert losses[0] < 1.0


def test_two_classes_are_a_logistic_regression_of_twice_the_step(bind, stream):
    """The two weights of a feature move in opposite directions, and their difference twice as far."""
    x, truth = stream(ROWS, 6)
    several = bind(StandardScaler() | SoftmaxRegression(SGD(0.01), bits=12), task="multiclass", outputs=2)
    one = bind(StandardScaler() | LogisticRegression(SGD(0.02), bits=12))
    out, expected = np.empty((ROWS, 2)), np.empty((ROWS, 1))
    several.chain.test_then_learn(x, truth, out)
    one.chain.test_then_learn(x, truth, expected)
    np.testing.assert_allclose(out[:, 1:], expected, rtol=1e-9)
    np.testing.assert_allclose(out.sum(1), 1.0, rtol=1e-12)


def test_cold_model_predicts_the_frequencies_of_the_classes(bind):
    y = np.random.default_rng(0).choice(3, 1000, p=[0.05, 0.15, 0.8])
    x = Rows(np.empty((1000, 0), np.float32), np.empty((1000, 0), np.uint64))
    truth = Truth(y.astype(np.float32).reshape(-1, 1), np.ones(1000, np.float32))
    for class_weight in ([1.0, 1.0, 1.0], [2.0, 0.0, 0.25]):
        bound = bind(SoftmaxRegression(FTRL(1e-9), class_weight=class_weight, bits=6), 0, 0)
        out = np.empty((1000, 3), np.float32)
        bound.chain.test_then_learn(x, truth, out)
        seen = 0.5 + np.cumsum(np.eye(3)[y] * class_weight, axis=0)[:-1]
        np.testing.assert_allclose(out[1:], seen / seen.sum(1, keepdims=True), rtol=1e-4)
        np.testing.assert_allclose(out[0], 1 / 3, rtol=1e-6)


def test_no_class_is_held_to_be_rarer_than_one_in_a_million_nor_less_than_never_seen(bind):
    bound = bind(SoftmaxRegression(FTRL(1e-9), bits=6), 0, 0)
    x, out = Rows(np.empty((1, 0), np.float32), np.empty((1, 0), np.uint64)), np.empty((1, 3))
    predicted = []
    for weight in (1e12, -2e12, 1.0, 1.0):  # of class 0: more is taken back than was learned
        bound.chain.learn(x, Truth(np.zeros((1, 1), np.float32), np.full(1, weight, np.float32)))
        bound.chain.predict(x, out)
        predicted.append(out[0].tolist())
    assert predicted[0] == pytest.approx([1.0, 1e-6, 1e-6], rel=1e-3)
    assert predicted[1] == pytest.approx([1e-6, 0.5, 0.5], rel=1e-3)
    assert predicted[3] == pytest.approx([2 / 3, 1 / 6, 1 / 6], rel=1e-3)


def test_label_that_is_no_class_is_not_learned(bind, stream):
    x, truth = stream(20, 7, "classes")
    bound = bind(SoftmaxRegression(bits=6))
    bits = bound.bits()
    for y in (3.0, -1.0, -0.5, 1e30, np.inf, np.nan):
        bound.chain.learn(x, Truth(np.full((20, 1), y, np.float32), truth.weight))
        assert bound.bits() == bits
    bound.chain.learn(x, truth)
    assert bound.bits() != bits


@pytest.mark.parametrize("classes", [2, 3, 7, 64, 100])
def test_touched_and_used_say_which_rows_were_written(classes, bind, stream):
    bound = bind(SoftmaxRegression(FTRL(), bits=8), outputs=classes)
    part = stream(12, 3, "classes", categories=1)
    x, truth = Rows(part.x.numeric, np.repeat(part.x.categories, 2, axis=1)), part.truth
    truth.y[:] = np.minimum(truth.y, classes - 1)
    bound.chain.learn(x, truth)
    written = np.flatnonzero(bound.state["0/table"][:, 1])
    assert len(written) % classes == 0 and len(written) > classes
    assert np.flatnonzero(bound.touched["0/table"]).tolist() == sorted({r >> 6 for r in written})
    assert np.flatnonzero(bound.state["0/used"]).tolist() == sorted({r // classes >> 3 for r in written})
    bound.touched["0/table"][:] = 0
    evidence = bound.state["0/table"][:, 1].copy()
    bound.chain.decays()[0][1](0.5)
    assert np.array_equal(bound.state["0/table"][:, 1], evidence / 2)
    assert set(np.flatnonzero(bound.touched["0/table"]).tolist()) >= {r >> 6 for r in written}
