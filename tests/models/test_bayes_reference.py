"""Naive Bayes equals its references step by step: River where it has the rule, counts of all rows so far where not."""

import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from river import compose, datasets, metrics, naive_bayes, preprocessing
from sklearn.naive_bayes import CategoricalNB

from headrace.errors import DeclarationError
from headrace.models import GaussianNB, MultinomialNB, Rows, Spec, StandardScaler, Truth, as_chain
from headrace.models.slot_kernels import slot_of

ROWS = 300
TASKS = {"binary": ("binary", 1), "classes": ("multiclass", 3)}
every_task = pytest.mark.parametrize("labels", TASKS)


class WeightedGaussianNB(naive_bayes.GaussianNB):
    """River's, whose Gaussians know weights while it does not."""

    def learn_one(self, x, y, w=1.0):
        self.class_counts[y] += w
        for j, value in x.items():
            self.gaussians[y][j].update(value, w)


class WeightedMultinomialNB(naive_bayes.MultinomialNB):
    def learn_one(self, x, y, w=1.0):
        self.class_counts[y] += w
        for token, occurrences in x.items():
            self.feature_counts[token][y] += w * occurrences
            self.class_totals[y] += w * occurrences


def as_dict(x, i):
    """Row i as River sees it: the numbers that are there, and each category as a token that occurs once."""
    numbers = {j: float(v) for j, v in enumerate(x.numeric[i]) if np.isfinite(v)}
    return numbers | {int(h): 1.0 for h in x.categories[i] if h}


def river_predictions(model, x, truth, outputs):
    """(B, O): what River predicts for each row before it learns the row; before the first label all classes alike."""
    out = np.zeros((len(truth.y), outputs))
    classes = max(outputs, 2)
    for i, (y, weight) in enumerate(zip(truth.y[:, 0], truth.weight, strict=True)):
        row = as_dict(x, i)
        found = model.predict_proba_one(row) or dict.fromkeys(range(classes), 1 / classes)
        out[i] = [found.get(c, 0.0) for c in (range(outputs) if outputs > 1 else [1])]
        model.learn_one(row, int(y), **({} if weight == 1 else {"w": float(weight)}))
    return out


def predictions(bound, x, truth):
    out = np.full((len(truth.y), bound.spec.outputs), np.nan)
    bound.chain.test_then_learn(x, truth, out)
    return out


def counts_of(x):
    """The rows with whole numbers from 0 on where they have any."""
    x.numeric[:] = np.clip(np.rint(x.numeric / 8), 0, 5)
    return x


@every_task
@pytest.mark.parametrize("weights", [False, True])
def test_gaussian_equals_river_step_by_step(labels, weights, bind, stream):
    task, outputs = TASKS[labels]
    x, truth = stream(ROWS, 1, labels, categories=0)
    if not weights:
        truth.weight[:] = 1
    river = WeightedGaussianNB() if weights else naive_bayes.GaussianNB()
    bound = bind(GaussianNB(half_life=None), 3, 0, task, outputs)
    out = predictions(bound, x, truth)
    np.testing.assert_allclose(out, river_predictions(river, x, truth, outputs), rtol=1e-9, atol=1e-12)
    assert np.ptp(out) > 0.3, "the model has learned something, so there was something to compare"
    for c, n in river.class_counts.items():
        assert bound.state["0/class_count"][c] == pytest.approx(n, rel=1e-12)
        for j, gaussian in river.gaussians[c].items():
            assert bound.state["0/count"][j, c] == pytest.approx(gaussian.n_samples, rel=1e-12)
            assert bound.state["0/mean"][j, c] == pytest.approx(gaussian.mu, rel=1e-9)
            assert bound.state["0/variance"][j, c] == pytest.approx(gaussian.sigma**2, rel=1e-9)


def test_gaussian_behind_a_scaler_equals_river_with_one(bind, stream):
    x, truth = stream(ROWS, 2, "classes", categories=0)
    truth.weight[:] = 1
    river = compose.Pipeline(preprocessing.StandardScaler(), naive_bayes.GaussianNB())
    bound = bind(StandardScaler(half_life=None) | GaussianNB(half_life=None), 3, 0, "multiclass", 3)
    out = predictions(bound, x, truth)
    np.testing.assert_allclose(out, river_predictions(river, x, truth, 3), rtol=1e-7, atol=1e-9)


@every_task
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 0.01])
def test_multinomial_equals_river_step_by_step(labels, weights, alpha, bind, stream):
    """Tokens of both kinds: River takes categories as words that occur once."""
    task, outputs = TASKS[labels]
    x, truth = stream(ROWS, 3, labels)
    x = counts_of(x)
    if not weights:
        truth.weight[:] = 1
    river = (WeightedMultinomialNB if weights else naive_bayes.MultinomialNB)(alpha=alpha)
    bound = bind(MultinomialNB(alpha, bits=12, half_life=None), 3, 2, task, outputs)
    out = predictions(bound, x, truth)
    np.testing.assert_allclose(out, river_predictions(river, x, truth, outputs), rtol=1e-9, atol=1e-12)
    assert np.ptp(out) > 0.3
    hashes = np.unique(x.categories[x.categories != 0])
    assert len({slot_of(h, np.uint64(52)) for h in hashes}) == len(hashes) == bound.state["0/distinct"][0]


# --- on real data, as River comes with it


def read(dataset):
    """(rows, Rows, labels float32 (B, 1), outputs) of a data set of River; a label is the place of its class in order."""
    rows, labels = zip(*dataset)
    classes = sorted(set(labels))
    x = np.array([list(row.values()) for row in rows], np.float32)
    y = np.array([[classes.index(label)] for label in labels], np.float32)
    return rows, Rows(x, np.zeros((len(x), 0), np.uint64)), y, 1 if len(classes) == 2 else len(classes)


REAL = {  # and the accuracy of River, which predicts each row before it learns it
    "bananas": (datasets.Bananas, GaussianNB, naive_bayes.GaussianNB, 0.6154),
    "phishing": (datasets.Phishing, GaussianNB, naive_bayes.GaussianNB, 0.8847),
    "image segments": (datasets.ImageSegments, GaussianNB, naive_bayes.GaussianNB, 0.7337),
    "phishing as counts": (datasets.Phishing, MultinomialNB, naive_bayes.MultinomialNB, 0.7710),
}


@pytest.mark.parametrize("name", REAL)
def test_predictions_and_accuracy_on_real_data_are_those_of_river(name, bind):
    dataset, ours, rivers, accuracy = REAL[name]
    rows, x, y, outputs = read(dataset())
    truth = Truth(y, np.ones(len(y), np.float32))
    bound = bind(ours(half_life=None), x.numeric.shape[1], 0, "binary" if outputs == 1 else "multiclass", outputs)
    out = predictions(bound, x, truth)
    np.testing.assert_allclose(out, river_predictions(rivers(), x, truth, outputs), rtol=1e-6, atol=1e-9)
    guesses = out[:, 0] > 0.5 if outputs == 1 else out.argmax(axis=1)
    assert (guesses == y[:, 0])[1:].mean() == pytest.approx(accuracy, abs=1e-3)

    river, score = rivers(), metrics.Accuracy()  # on numbers as they are in the file, which ours rounds to float32
    for i, (row, label) in enumerate(zip(rows, y[:, 0].tolist())):
        if i:
            score.update(label, river.predict_one(row))
        river.learn_one(row, label)
    assert score.get() == pytest.approx(accuracy, abs=1e-3)


# --- categories of the Gaussian, weights, forgetting: counts of all rows so far


class Twin:
    """Gaussian naive Bayes from scratch for each row: moments and frequencies of every row that was learned before."""

    def __init__(self, classes, bits, alpha):
        self.classes, self.shift, self.alpha = classes, np.uint64(64 - bits), alpha
        self.x, self.slots, self.y, self.weight = [], [], [], []
        self.first = {}  # slot -> the category that was first to have a value there

    def slots_of(self, categories):
        return [None if h == 0 else int(slot_of(h, self.shift)) for h in categories]

    def learn(self, x, categories, y, weight):
        self.x.append(x.astype(np.float64))
        self.slots.append(self.slots_of(categories))
        self.y.append(y)
        self.weight.append(weight)
        for k, slot in enumerate(self.slots[-1]):
            if slot is not None:
                self.first.setdefault(slot, k)

    def forget(self, factor):
        self.weight = [w * factor for w in self.weight]

    def predict(self, x, categories):
        y, weight = np.array(self.y), np.array(self.weight)
        seen = [c for c in range(self.classes) if weight[y == c].sum() > 0] if len(y) else []
        if not seen:
            return np.full(self.classes, 1 / self.classes)
        scores = np.full(self.classes, -np.inf)
        for c in seen:
            mine, w = np.array(self.x)[y == c], weight[y == c]
            scores[c] = math.log(w.sum())
            for j, value in enumerate(x):
                there = np.isfinite(mine[:, j])
                density = 0.0
                if np.isfinite(value) and there.any():
                    mean = np.average(mine[there, j], weights=w[there])
                    variance = np.average((mine[there, j] - mean) ** 2, weights=w[there])
                    if variance > 0:
                        density = math.exp(-((value - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
                scores[c] += math.log(1e-9 + density) if np.isfinite(value) else 0.0
            learned = [self.slots[i] for i in np.flatnonzero(y == c)]
            for k, slot in enumerate(self.slots_of(categories)):
                if slot is not None:
                    here = sum(v for row, v in zip(learned, w) for s in row if s == slot)
                    any_ = sum(v for row, v in zip(learned, w) if row[k] is not None)
                    distinct = sum(first == k for first in self.first.values())
                    scores[c] += math.log((here + self.alpha) / (any_ + self.alpha * (distinct + 1)))
        odds = np.exp(scores - scores.max())
        return odds / odds.sum()


@every_task
@pytest.mark.parametrize("bits", [6, 12])
def test_gaussian_with_categories_equals_counts_of_all_rows_so_far(labels, bits, bind, stream):
    task, outputs = TASKS[labels]
    x, truth = stream(120, 5, labels)
    truth.y[::9] = np.nan
    x.numeric[5:15, 1] = np.inf
    bound = bind(GaussianNB(alpha=0.5, bits=bits), 3, 2, task, outputs)
    twin = Twin(max(outputs, 2), bits, 0.5)
    for i in range(120):
        expected = twin.predict(x.numeric[i], x.categories[i])
        one = Rows(x.numeric[i : i + 1], x.categories[i : i + 1])
        out = predictions(bound, one, Truth(truth.y[i : i + 1], truth.weight[i : i + 1]))
        np.testing.assert_allclose(out[0], expected if outputs > 1 else expected[1:], rtol=1e-9, atol=1e-12)
        if np.isfinite(truth.y[i, 0]):
            twin.learn(x.numeric[i], x.categories[i], int(truth.y[i, 0]), float(truth.weight[i]))
        if i % 40 == 30:
            bound.chain.decays()[0][1](0.3)
            twin.forget(0.3)


def test_gaussian_with_categories_alone_equals_the_categorical_naive_bayes_of_scikit_learn(bind):
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 5, (400, 2))
    y = (kinds.sum(axis=1) + rng.integers(0, 4, 400)) // 4
    hashes = rng.integers(1, 2**64, (5, 2), dtype=np.uint64)
    x = Rows(np.empty((400, 0), np.float32), hashes[kinds, [0, 1]])
    bound = bind(GaussianNB(alpha=2.0, bits=12), 0, 2, "multiclass", 3)
    bound.chain.learn(x, Truth(y.astype(np.float32).reshape(-1, 1), np.ones(400, np.float32)))
    out = np.empty((400, 3))
    bound.chain.predict(x, out)
    theirs = CategoricalNB(alpha=2.0, min_categories=6).fit(kinds, y)  # the sixth: values to come
    np.testing.assert_allclose(out, theirs.predict_proba(kinds), rtol=1e-9)


LEARNERS = {"gaussian": lambda: GaussianNB(bits=8), "multinomial": lambda: MultinomialNB(bits=8)}
both = pytest.mark.parametrize("name", LEARNERS)


@both
def test_multiclass_results_do_not_depend_on_the_cuts(name, bind, stream):
    part = stream(200, 6, "classes")
    part.truth.y[::7] = np.nan
    part.truth.weight[3::11] = -1
    whole, cut = (bind(LEARNERS[name](), task="multiclass", outputs=3) for _ in range(2))
    out = predictions(whole, *part)
    pieces = [predictions(cut, *part.piece(a, b)) for a, b in pairwise([0, 1, 2, 50, 51, 130, 200])]
    assert np.concatenate(pieces).tobytes() == out.tobytes()
    assert whole.bits() == cut.bits()
    np.testing.assert_allclose(out.sum(axis=1), 1.0, rtol=1e-12)


@both
def test_negative_weight_takes_back_what_was_learned_in_any_order(name, bind, stream):
    part = stream(80, 7)
    part.truth.weight[:] = np.random.default_rng(1).uniform(0.1, 2, 80)  # their sums are rounded
    both_, half = bind(LEARNERS[name]()), bind(LEARNERS[name]())
    half.chain.learn(*part.piece(0, 40))
    both_.chain.learn(*part)
    order = np.random.default_rng(0).permutation(np.arange(40, 80))
    taken = Rows(part.x.numeric[order], part.x.categories[order])
    both_.chain.learn(taken, Truth(part.truth.y[order], -part.truth.weight[order]))
    for array in half.state.keys() - {"0/seen", "0/distinct", "0/known"}:
        np.testing.assert_allclose(both_.state[array], half.state[array], rtol=1e-9, atol=1e-9, err_msg=array)
    both_.chain.learn(part.piece(0, 40).x, Truth(part.truth.y[:40], -part.truth.weight[:40]))
    for array in both_.state.keys() - {"0/seen", "0/distinct", "0/known"}:
        assert not both_.state[array].any(), f"{array} holds nothing any more, not even rounding"
    out = np.empty((80, 1))
    both_.chain.predict(part.x, out)
    assert (out == 0.5).all()


@both
def test_taking_back_what_was_never_learned_leaves_no_count_below_zero(name, bind, stream):
    part = stream(60, 8)
    bound = bind(LEARNERS[name]())
    bound.chain.learn(*part.piece(0, 20))
    bound.chain.learn(part.x, Truth(part.truth.y, -2 * part.truth.weight))
    counts = {name: array for name, array in bound.state.items() if name != "0/mean"}
    assert all((array >= 0).all() for array in counts.values())
    out = predictions(bound, *part)
    assert np.isfinite(out).all() and ((out >= 0) & (out <= 1)).all()


@both
def test_total_of_a_class_loses_no_more_than_its_value_had(name, bind):
    """One of two values is taken back more often than it was learned."""
    bound = bind(LEARNERS[name](), 0, 1)
    a, b = np.uint64(12345), np.uint64(987654321)
    for value, weight in ((a, 2), (b, 3), (a, -5)):
        x = Rows(np.empty((1, 0), np.float32), np.full((1, 1), value))
        bound.chain.learn(x, Truth(np.ones((1, 1), np.float32), np.full(1, weight, np.float32)))
    total = bound.state["0/value_count"][0] if name == "gaussian" else bound.state["0/length"]
    assert total.tolist() == [0.0, 3.0]


@both
def test_two_halves_merge_as_their_arrays_declare(name, bind, stream):
    part = stream(200, 9)
    whole, first, second = (bind(LEARNERS[name]()) for _ in range(3))
    whole.chain.learn(*part)
    first.chain.learn(*part.piece(0, 90))
    second.chain.learn(*part.piece(90, 200))
    for array, declared in whole.chain.layout(whole.spec).items():
        a, b = first.state[array], second.state[array]
        if declared.merge == "sum":
            merged = a + b
        elif declared.merge == "max":
            merged = np.maximum(a, b)
        else:
            n, m = first.state[declared.by], second.state[declared.by]
            apart = first.state["0/mean"] - second.state["0/mean"]
            merged = (n * a + m * b) / (n + m)
            if array == "0/variance":
                merged += n * m * apart**2 / (n + m) ** 2
        np.testing.assert_allclose(merged, whole.state[array], rtol=1e-9, err_msg=array)


# --- nasty values


@both
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_before_the_first_label_all_classes_are_alike_and_later_one_not_seen_is_impossible(name, task, bind, stream):
    outputs = 1 if task == "binary" else 3
    bound, part = bind(LEARNERS[name](), task=task, outputs=outputs), stream(20, 0)
    out = np.empty((20, outputs))
    bound.chain.predict(part.x, out)
    assert (out == 1 / max(outputs, 2)).all()
    part.truth.y[:] = 0
    bound.chain.learn(*part)
    bound.chain.predict(part.x, out)
    assert out.tolist() == [[0.0] if task == "binary" else [1.0, 0.0, 0.0]] * 20


@both
def test_label_that_is_no_class_and_weight_that_is_nothing_are_not_learned(name, bind, stream):
    part = stream(8, 0)
    part.truth.y[:, 0] = [-1, 3, 0.5, np.nan, np.inf, -np.inf, 1e30, 1]
    part.truth.weight[7] = 0
    bound = bind(LEARNERS[name](), task="multiclass", outputs=3)
    bound.chain.learn(*part)
    predictions(bound, *part)
    assert not any(array.any() for array in bound.state.values())
    binary = bind(LEARNERS[name]())
    binary.chain.learn(*part)
    assert binary.state["0/class_count"].tolist() == pytest.approx(
        [part.truth.weight[0], part.truth.weight[[1, 2, 6]].sum()]
    )


@both
def test_missing_infinite_and_unknown_values_say_nothing_of_the_class(name, bind, stream):
    bound, part = bind(LEARNERS[name]()), stream(100, 4)
    bound.chain.learn(*part)
    nothing = Rows(np.array([[np.nan, np.inf, -np.inf]], np.float32), np.zeros((1, 2), np.uint64))
    out = np.empty((1, 1))
    bound.chain.predict(nothing, out)
    false, true = bound.state["0/class_count"]
    assert out[0, 0] == pytest.approx(true / (false + true))


def test_constant_column_and_huge_numbers_equal_river(bind):
    rng = np.random.default_rng(1)
    numeric = np.stack([np.full(60, 7.0), rng.choice([1e30, -1e30, 3e38, 1.0], 60), rng.normal(size=60)], 1)
    x = Rows(numeric.astype(np.float32), np.empty((60, 0), np.uint64))
    truth = Truth((rng.random((60, 1)) < 0.5).astype(np.float32), np.ones(60, np.float32))
    bound = bind(GaussianNB(half_life=None), 3, 0)
    out = predictions(bound, x, truth)
    np.testing.assert_allclose(out, river_predictions(naive_bayes.GaussianNB(), x, truth, 1), rtol=1e-9, atol=1e-12)


def test_variance_of_a_small_spread_far_from_zero_is_kept(bind):
    values = (1e6 + np.array([0, 1, 2, 3] * 50)).astype(np.float32).reshape(-1, 1)
    x = Rows(values, np.empty((200, 0), np.uint64))
    bound = bind(GaussianNB(), 1, 0)
    bound.chain.learn(x, Truth(np.zeros((200, 1), np.float32), np.ones(200, np.float32)))
    assert bound.state["0/variance"][0, 0] == pytest.approx(1.25)


def test_count_below_zero_is_no_occurrence(bind, stream):
    x, truth = stream(100, 2)
    bounds = bind(MultinomialNB(bits=8)), bind(MultinomialNB(bits=8))
    x.numeric[:] = np.where(np.isnan(x.numeric), 0, x.numeric)
    above = Rows(np.maximum(x.numeric, 0), x.categories)
    assert x.numeric.min() < 0
    assert predictions(bounds[0], x, truth).tobytes() == predictions(bounds[1], above, truth).tobytes()
    assert bounds[0].bits() == bounds[1].bits()


@both
def test_long_rows_equal_river_though_their_likelihood_is_below_the_least_float(name, bind):
    rng = np.random.default_rng(3)
    y = rng.integers(0, 6, 80)
    numeric = rng.poisson(1 + y[:, None], (80, 60)).astype(np.float32)
    hashes = rng.integers(1, 2**64, (3, 40), dtype=np.uint64)
    categories = hashes[rng.integers(0, 3, (80, 40)), np.arange(40)]
    if name == "gaussian":
        numeric[::2] += 1e6  # far from every mean: 1e-9 to the power of 60
        model, river, categories = GaussianNB(half_life=None), naive_bayes.GaussianNB(), categories[:, :0].copy()
    else:
        model, river = MultinomialNB(1e-9, half_life=None), naive_bayes.MultinomialNB(1e-9)
    x, truth = Rows(numeric, categories), Truth(y.astype(np.float32).reshape(-1, 1), np.ones(80, np.float32))
    out = predictions(bind(model, 60, categories.shape[1], "multiclass", 6), x, truth)
    np.testing.assert_allclose(out, river_predictions(river, x, truth, 6), rtol=1e-6, atol=1e-9)


@both
def test_decay_equals_having_learned_with_lesser_weights(name, bind, stream):
    part = stream(200, 3)
    decayed, lesser = bind(LEARNERS[name]()), bind(LEARNERS[name]())
    decayed.chain.learn(*part)
    decayed.chain.decays()[0][1](0.25)
    lesser.chain.learn(part.x, Truth(part.truth.y, part.truth.weight / 4))
    for array in decayed.state:
        np.testing.assert_allclose(decayed.state[array], lesser.state[array], rtol=1e-9, err_msg=array)
    assert decayed.state["0/table"].any()


def test_column_forgotten_until_nothing_is_left_begins_anew(bind):
    bound = bind(GaussianNB(), 1, 0)
    truth = Truth(np.zeros((1, 1), np.float32), np.ones(1, np.float32))
    for value in (1e30, 2e30, 0.1):
        bound.chain.learn(Rows(np.full((1, 1), value, np.float32), np.empty((1, 0), np.uint64)), truth)
        if value == 2e30:
            bound.chain.decays()[0][1](1e-200)
            bound.chain.decays()[0][1](1e-200)
    state = [bound.state[f"0/{array}"][0, 0] for array in ("count", "mean", "variance")]
    assert state == [1.0, float(np.float32(0.1)), 0.0]


@both
def test_touched_and_seen_say_which_slots_were_written(name, bind, stream):
    bound = bind((GaussianNB if name == "gaussian" else MultinomialNB)(bits=12))
    part = stream(30, 3)
    written = sorted({int(slot_of(h, np.uint64(52))) for h in np.unique(part.x.categories) if h})
    for learn in (bound.chain.learn, lambda *part: predictions(bound, *part)):
        bound.touched["0/table"][:] = 0
        learn(*part)
        assert np.flatnonzero(bound.touched["0/table"]).tolist() == sorted({r >> 6 for r in written})
        assert np.flatnonzero(bound.state["0/seen"]).tolist() == written


def test_decay_lets_categories_fade_and_numbers_stand(bind, stream):
    part = stream(400, 5)
    bound = bind(GaussianNB(bits=8))
    bound.chain.learn(*part)
    numbers = Rows(part.x.numeric, np.zeros_like(part.x.categories))
    categories = Rows(np.full_like(part.x.numeric, np.nan), part.x.categories)
    false, true = bound.state["0/class_count"]
    before, after, faded = np.empty((3, 400, 1))
    bound.chain.predict(numbers, before)
    bound.touched["0/table"][:] = 0
    bound.chain.decays()[0][1](1e-9)
    bound.chain.predict(numbers, after)
    bound.chain.predict(categories, faded)
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(faded, true / (false + true), rtol=1e-5)
    written = np.flatnonzero(bound.state["0/table"].any(axis=1))
    assert np.flatnonzero(bound.state["0/seen"]).tolist() == written.tolist()
    assert np.flatnonzero(bound.touched["0/table"]).tolist() == sorted({r >> 6 for r in written})


# --- declarations


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GaussianNB(alpha=0), r"GaussianNB\(alpha=\).*at least 1e-09"),
        (lambda: MultinomialNB(float("nan")), r"MultinomialNB\(alpha=\)"),
        (lambda: MultinomialNB(bits=31), r"MultinomialNB\(bits=\).*from 6 to 30.*31"),
        (lambda: GaussianNB(half_life="soon"), r"GaussianNB\(half_life=\).*'30d'"),
    ],
)
def test_setting_that_does_not_fit_is_refused(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()


@both
@pytest.mark.parametrize(("task", "outputs"), [("regression", 1), (None, 1), ("binary", 2), ("multiclass", 1)])
def test_task_without_classes_is_refused(name, task, outputs):
    with pytest.raises(DeclarationError, match=r"learns a binary task.*the pipeline declares.*use LinearRegression"):
        as_chain(LEARNERS[name]()).layout(Spec(("a",), (), task, outputs))


def test_pipeline_of_the_documentation_is_one():
    text = (Path(__file__).parents[2] / "docs/learners/naive_bayes.md").read_text()
    scope = {"__name__": __name__}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    assert as_chain(scope["pipeline"].model).learner.half_life == "7d"
