"""Linear models equal their references step by step: River where it has the rule, a plain Python twin where not.

FTRL has Vowpal Wabbit as well: what it predicted of each row before it learned it stands in ftrl_of_vowpal_wabbit.txt.
`python tests/models/test_linear_reference.py PYTHON` writes that file anew with the vowpalwabbit of another Python.
"""

import math
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from river import datasets, evaluate, linear_model, metrics, optim, preprocessing

from headrace.models import FTRL, SGD, AdaGrad, LinearRegression, LogisticRegression, Rows, StandardScaler, Truth
from headrace.models.linear import LOSSES as CODES
from headrace.models.linear_kernels import LOGISTIC, slope_of
from headrace.models.slot_kernels import slot_of

ROWS = 400
LOSSES = {
    "log": ("binary", optim.losses.Log()),
    "squared": ("value", optim.losses.Squared()),
    "absolute": ("value", optim.losses.Absolute()),
    "quantile": ("value", optim.losses.Quantile(0.8)),
    "huber": ("value", optim.losses.Huber(0.8)),
    "poisson": ("count", optim.losses.Poisson()),
}
OPTIMIZERS = {
    "sgd": (SGD(0.02), lambda: optim.SGD(0.02), 0.0),
    "sgd_l2": (SGD(0.02, l2=0.1), lambda: optim.SGD(0.02), 0.1),
    "adagrad": (AdaGrad(0.1, half_life=None), lambda: optim.AdaGrad(0.1), 0.0),
    "adagrad_l2": (AdaGrad(0.3, eps=1e-3, l2=0.05, half_life=None), lambda: optim.AdaGrad(0.3, eps=1e-3), 0.05),
}


def learner(loss, optimizer, **settings):
    settings = {"bits": 12, "base_rate": False} | settings
    if loss == "log":
        return LogisticRegression(optimizer, **settings)
    return LinearRegression(optimizer, loss=loss, quantile=0.5 if loss == "huber" else 0.8, delta=0.8, **settings)


def as_dicts(x, i):
    """Row i as River sees it: numbers, indicators of what is missing, and one feature per category."""
    numbers = {j: float(v) for j, v in enumerate(x.numeric[i]) if not math.isnan(v)}
    others = {f"missing {j}": 1.0 for j, v in enumerate(x.numeric[i]) if math.isnan(v)}
    return numbers, others | {int(h): 1.0 for h in x.categories[i] if h}


def river_predictions(model, scaler, x, truth):
    """What River predicts for each row before it learns the row, and the model it ends with."""
    for i, (y, weight) in enumerate(zip(truth.y[:, 0], truth.weight, strict=True)):
        numbers, others = as_dicts(x, i)
        row = scaler.transform_one(numbers) | others if scaler else numbers | others
        if isinstance(model, linear_model.LogisticRegression):
            yield model.predict_proba_one(row)[True]
        else:
            yield model.predict_one(row)
        if scaler:
            scaler.learn_one(numbers)
            row = scaler.transform_one(numbers) | others
        model.learn_one(row, float(y), w=float(weight))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_sgd_and_adagrad_equal_river_step_by_step(loss, optimizer, bind, stream):
    ours, river_optimizer, l2 = OPTIMIZERS[optimizer]
    labels, river_loss = LOSSES[loss]
    x, truth = stream(ROWS, 1, labels)
    kind = linear_model.LogisticRegression if loss == "log" else linear_model.LinearRegression
    river = kind(optimizer=river_optimizer(), loss=river_loss, l2=l2, intercept_lr=0.01)
    expected = list(river_predictions(river, preprocessing.StandardScaler(), x, truth))

    bound = bind(StandardScaler(half_life=None) | learner(loss, ours, intercept_lr=0.01))
    out = np.empty((ROWS, 1))
    bound.chain.test_then_learn(x, truth, out)

    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-9, atol=1e-9)
    assert np.ptp(out) > 0.3, "the model has learned something, so there was something to compare"
    weights = {j: bound.state["1/columns"][j, 0] for j in range(3)}
    weights |= {f"missing {j}": bound.state["1/missing"][j, 0] for j in range(3)}
    slots = {h: slot_of(np.uint64(h), np.uint64(52)) for h in np.unique(x.categories).tolist() if h}
    assert len(set(slots.values())) == len(slots), "the table has a slot for every category"
    weights |= {h: bound.state["1/table"][slot, 0] for h, slot in slots.items()}
    assert weights == pytest.approx({name: river.weights[name] for name in weights}, rel=1e-9, abs=1e-9)
    assert bound.state["1/bias"][0, 0] == pytest.approx(river.intercept, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_slope_equals_river_at_every_kink(loss):
    river = LOSSES[loss][1]
    for y in (0.0, 1.0):
        for raw in (-25.0, -1.0, 0.0, 1.0, 25.0):
            slope = slope_of(CODES.get(loss, LOGISTIC), raw, y, 0.8)
            assert slope == pytest.approx(river.gradient(int(y) if loss == "log" else y, raw), rel=1e-9, abs=1e-12)


def test_learner_without_scaler_equals_river(bind, stream):
    x, truth = stream(ROWS, 2)
    river = linear_model.LogisticRegression(optim.SGD(0.001), intercept_lr=0.05)
    bound = bind(LogisticRegression(SGD(0.001), base_rate=False, intercept_lr=0.05, bits=12))
    out = np.empty((ROWS, 1))
    bound.chain.test_then_learn(x, truth, out)
    np.testing.assert_allclose(out[:, 0], list(river_predictions(river, None, x, truth)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("data", "lr", "accuracy"),
    [
        (datasets.Bananas, 0.005, 0.5432),
        (datasets.Phishing, 0.005, 0.8872),
        (datasets.Bananas, 0.01, 0.5372),  # River's defaults
        (datasets.Phishing, 0.01, 0.8928),
    ],
)
def test_equals_river_on_its_own_data(data, lr, accuracy, bind):
    rows = [row for row, _ in data()]
    x = np.array([[row[name] for name in rows[0]] for row in rows], np.float32)
    y = np.array([label for _, label in data()], np.float32).reshape(-1, 1)
    x, truth = Rows(x, np.empty((len(y), 0), np.uint64)), Truth(y, np.ones(len(y), np.float32))
    river = linear_model.LogisticRegression(optim.SGD(lr))
    expected = list(river_predictions(river, preprocessing.StandardScaler(), x, truth))

    learner = LogisticRegression(SGD(lr), base_rate=False, intercept_lr=0.01, bits=6)
    bound = bind(StandardScaler(half_life=None) | learner, len(rows[0]), 0)
    out = np.empty((len(y), 1))
    bound.chain.test_then_learn(x, truth, out)

    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-9, atol=1e-9)
    assert np.mean((out > 0.5) == y) == pytest.approx(accuracy, abs=5e-5)
    whole = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(lr))
    metric = evaluate.progressive_val_score(data(), whole, metrics.Accuracy())
    assert metric.get() == pytest.approx(accuracy, abs=5e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad_l2"])
def test_class_weights_equal_those_of_rivers_loss(optimizer, bind, stream):
    ours, river_optimizer, l2 = OPTIMIZERS[optimizer]
    x, truth = stream(ROWS, 7)
    loss = optim.losses.Log(weight_pos=3.3, weight_neg=0.4)
    river = linear_model.LogisticRegression(river_optimizer(), loss=loss, l2=l2, intercept_lr=0.01)
    expected = list(river_predictions(river, preprocessing.StandardScaler(), x, truth))
    for class_weight in ({True: 3.3, False: 0.4}, [0.4, 3.3]):
        bound = bind(
            StandardScaler(half_life=None) | learner("log", ours, intercept_lr=0.01, class_weight=class_weight)
        )
        out = np.empty((ROWS, 1))
        bound.chain.test_then_learn(x, truth, out)
        np.testing.assert_allclose(out[:, 0], expected, rtol=1e-9, atol=1e-9)


def test_class_weights_are_weights_of_the_examples(bind, stream):
    x, truth = stream(ROWS, 8)
    bounds = [bind(LogisticRegression(FTRL(), class_weight=weight, bits=12)) for weight in ({True: 4.0}, None)]
    bounds[0].chain.learn(x, truth)
    bounds[1].chain.learn(x, Truth(truth.y, np.where(truth.y[:, 0] == 1, 4, 1).astype(np.float32) * truth.weight))
    assert bounds[0].bits() == bounds[1].bits()


@pytest.mark.parametrize("optimizer", [SGD(0.02), AdaGrad(0.1), FTRL(0.1, l1=0.5)])
@pytest.mark.parametrize(("loss", "labels"), [("log", "binary"), ("squared", "value"), ("poisson", "count")])
def test_float32_state_ends_with_the_loss_of_float64(loss, labels, optimizer, bind, stream):
    x, truth = stream(3000, 3, labels)
    losses = []
    for dtype in ("float64", "float32"):
        bound = bind(StandardScaler() | learner(loss, optimizer, dtype=dtype, base_rate=True))
        assert bound.state["1/table"].dtype == dtype
        out = np.empty((len(truth.y), 1))
        bound.chain.test_then_learn(x, truth, out)
        y = truth.y
        losses.append(np.mean(-np.log(np.where(y > 0, out, 1 - out)) if loss == "log" else np.abs(y - out)))
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


class Twin:
    """A linear model of dictionaries, one coordinate after another; rows are {name: value}."""

    def __init__(self, optimizer, loss, base_rate, parameter=0.8):
        self.optimizer, self.loss, self.base_rate, self.parameter = optimizer, loss, base_rate, parameter
        self.z, self.n = {}, {}
        self.mean, self.count = {"log": (0.5, 1.0), "poisson": (1.0, 0.0)}.get(loss, (0.0, 0.0))

    def weight(self, name):
        o = self.optimizer
        z, n = self.z.get(name, 0.0), self.n.get(name, 0.0)
        if not isinstance(o, FTRL):
            return z
        l1, l2 = (0.0, 0.0) if name == "bias" else (o.l1, o.l2)
        return 0.0 if abs(z) <= l1 else -(z - math.copysign(l1, z)) / ((o.beta + math.sqrt(n)) / o.alpha + l2)

    def step(self, name, g):
        o, w = self.optimizer, self.weight(name)
        if isinstance(o, FTRL):
            n = self.n.get(name, 0.0)
            sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / o.alpha
            self.z[name] = self.z.get(name, 0.0) + g - sigma * w
        else:
            g += 0.0 if name == "bias" else o.l2 * w
            n = self.n.get(name, 0.0)
            rate = o.lr / math.sqrt(n + g * g + o.eps) if isinstance(o, AdaGrad) else o.lr
            self.z[name] = w - rate * g
        self.n[name] = n + g * g

    def base(self):
        if not self.base_rate:
            return 0.0
        m = self.mean
        return math.log(m / (1 - m)) if self.loss == "log" else math.log(max(m, 1e-3)) if self.loss == "poisson" else m

    def predict(self, row):
        raw = sum(self.weight(name) * v for name, v in row.items()) + self.weight("bias") + self.base()
        return 1 / (1 + math.exp(-raw)) if self.loss == "log" else math.exp(raw) if self.loss == "poisson" else raw

    def learn(self, row, y, weight):
        if not self.base_rate or self.count > 0:
            p = self.predict(row)
            slope = {
                "squared": 2 * (p - y),
                "absolute": 1.0 if p > y else -1.0,
                "quantile": float(y < p) - self.parameter,
                "huber": min(max(p - y, -self.parameter), self.parameter),
            }.get(self.loss, p - y) * weight
            for name, v in [*row.items(), ("bias", 1.0)]:
                self.step(name, slope * v)
        self.count += weight
        self.mean += weight / self.count * (y - self.mean)

    def decay(self, factor):
        before = {name: self.weight(name) for name in self.z}
        self.n = {name: n * factor for name, n in self.n.items()}
        if isinstance(self.optimizer, FTRL):
            for name, w in before.items():  # the z that gives the same weight under the new n
                if w:
                    l1, l2 = (0.0, 0.0) if name == "bias" else (self.optimizer.l1, self.optimizer.l2)
                    stiffness = (self.optimizer.beta + math.sqrt(self.n[name])) / self.optimizer.alpha + l2
                    self.z[name] = math.copysign(l1, -w) - w * stiffness
        self.count *= factor


@pytest.mark.parametrize("base_rate", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        FTRL(),
        FTRL(0.5, 0.1, l1=0.7, l2=0.3),
        FTRL(0.1, 0.0, l1=0.0, l2=0.0),
        AdaGrad(0.2, l2=0.01),
        SGD(0.01, half_life="1d"),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_rule_equals_its_plain_twin_with_forgetting_between(loss, optimizer, base_rate, bind, stream):
    x, truth = stream(ROWS, 4, LOSSES[loss][0])
    truth.weight[40::17] = -0.5
    bound = bind(StandardScaler() | learner(loss, optimizer, base_rate=base_rate))
    twin, scaler = Twin(optimizer, loss, base_rate), preprocessing.StandardScaler()
    ((_, _), (half_life, decay)) = bound.chain.decays()
    assert half_life in (30 * 86_400_000_000, 86_400_000_000)
    out = np.empty((ROWS, 1))
    for start, stop in pairwise([0, 1, 90, 200, 201, ROWS]):
        part = [a[start:stop] for a in (*x, *truth)]
        bound.chain.test_then_learn(type(x)(*part[:2]), type(truth)(*part[2:]), out[start:stop])
        for i in range(start, stop):
            numbers, others = as_dicts(x, i)
            expected = twin.predict(scaler.transform_one(numbers) | others)
            assert out[i, 0] == pytest.approx(expected, rel=1e-9, abs=1e-9), i
            scaler.learn_one(numbers)
            twin.learn(scaler.transform_one(numbers) | others, float(truth.y[i, 0]), float(truth.weight[i]))
        decay(0.9)
        twin.decay(0.9)
    assert np.ptp(out) > 0.3


def test_l1_keeps_what_tells_something_and_nothing_else(bind, stream):
    x, truth = stream(2000, 5)
    noise = np.random.default_rng(0).permutation(truth.y)
    kept = []
    for y in (truth.y, noise):
        bound = bind(StandardScaler() | learner("log", FTRL(0.1, l1=100.0), base_rate=True))
        bound.chain.test_then_learn(x, type(truth)(y, truth.weight), np.empty((2000, 1), np.float32))
        z = np.concatenate([bound.state[name][:, 0] for name in ("1/columns", "1/missing", "1/table")])
        assert np.count_nonzero(z) > 20
        kept.append(int(np.count_nonzero(np.abs(z) > 100)))
    assert kept[0] >= 2
    assert kept[1] == 0


# --- Vowpal Wabbit

WABBIT = Path(__file__).parent / "ftrl_of_vowpal_wabbit.txt"
FTRLS = (
    (0.1, 1.0, 0.0, 0.0),
    (0.5, 0.3, 0.5, 0.2),
    (0.05, 1.0, 2.0, 0.0),
    (2.0, 0.0, 0.1, 0.01),
)  # alpha, beta, l1, l2


def rows_for_wabbit():
    """Numbers, categories and labels of 300 rows, from whole numbers alone."""
    i, j = np.arange(300)[:, None], np.arange(3)
    x = ((i * (37 + 2 * j) + j * 17 + i * i) % 101 - 50) / 16
    kinds = (i[:, 0] * 13 + i[:, 0] ** 2 // 7) % 5
    return x, kinds, (x @ [1.0, -0.5, 0.25] + kinds - 2 + np.sin(i[:, 0]) > 0).astype(int)


def predictions_of_wabbit(python, alpha, beta, l1, l2):
    """P(true) of each row, before it was learned; no bias, which l1 and l2 concern there and not here."""
    settings = dict(ftrl_alpha=alpha, ftrl_beta=beta, l1=l1, l2=l2, loss_function="logistic", link="logistic")
    lines = [
        f"{2 * y - 1} | {' '.join(f'n{j}:{v!r}' for j, v in enumerate(row))} c{kind}\n"
        for row, kind, y in zip(*(array.tolist() for array in rows_for_wabbit()), strict=True)
    ]
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        rows, told = Path(folder, "rows"), Path(folder, "told")
        rows.write_text("".join(lines))
        command = [python, "-m", "vowpalwabbit", "--ftrl", *options, "--noconstant", "-d", str(rows), "-p", str(told)]
        subprocess.run([*command, "--quiet"], check=True)
        return told.read_text().split()


@pytest.mark.parametrize("at", range(len(FTRLS)))
def test_ftrl_equals_vowpal_wabbit_step_by_step(at, bind):
    expected = np.loadtxt(WABBIT)[:, at]
    numbers, kinds, y = rows_for_wabbit()
    alpha, beta, l1, l2 = FTRLS[at]
    ours = LogisticRegression(FTRL(alpha, beta, l1, l2, half_life=None), base_rate=False, intercept_lr=0.0, bits=12)
    bound, out = bind(ours, 3, 1), np.empty((len(y), 1))
    x = Rows(numbers.astype(np.float32), (kinds[:, None] + 1).astype(np.uint64) << np.uint64(52))
    bound.chain.test_then_learn(x, Truth(y[:, None].astype(np.float32), np.ones(len(y), np.float32)), out)
    np.testing.assert_allclose(out[:, 0], expected, rtol=0, atol=2e-6)  # it prints six decimals
    assert np.ptp(out) > 0.5 and (out[5:, 0] != 0.5).any()


if __name__ == "__main__":
    columns = [predictions_of_wabbit(sys.argv[1], *settings) for settings in FTRLS]
    of = "# P(true) by vowpalwabbit 9.11.9, float32; a column for each of FTRLS in test_linear_reference.py"
    WABBIT.write_text("\n".join([of, *map(" ".join, zip(*columns, strict=True))]) + "\n")
