"""What a feature adds to a prediction: held beside what happens without it, and beside plain accounts of trees."""

from itertools import permutations

import numpy as np
import pytest

from headrace.errors import DeclarationError
from headrace.models import (
    FTRL,
    Explainer,
    GaussianNB,
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    LinearRegression,
    LogisticRegression,
    MultinomialNB,
    NoChange,
    PAClassifier,
    Rows,
    SoftmaxRegression,
    StandardScaler,
    Truth,
    as_chain,
)
from headrace.models.tree_kernels import DEPTH, LEFT, SLOT
from headrace.models.trees import key_of

TREE = {"grace_period": 30, "delta": 0.1, "tau": 0.2}


def taught(bind, stream, model, rows=2000, task="", **shape):
    """A model that has learned a stream without missing values, and rows of the same kind."""
    bound = bind(model, task=task, **shape)
    labels = {"binary": "binary", "multiclass": "classes", "regression": "value"}[bound.spec.task]
    x, truth = stream(rows + 50, 0, labels, **shape)
    x.numeric[np.isnan(x.numeric)] = 1.0
    part = type(stream(0))(x, truth)
    first = part.piece(0, rows)
    bound.chain.test_then_learn(first.x, first.truth, np.empty((rows, bound.spec.outputs), np.float32))
    return bound, part.piece(rows, rows + 50).x


def explained(bound, x):
    features = x.numeric.shape[1] + x.categories.shape[1]
    out = np.empty((len(x.numeric), bound.spec.outputs, features + 1), np.float32)
    bound.chain.explain(x, out)
    return out.astype(np.float64)


def predicted(bound, x):
    out = np.empty((len(x.numeric), bound.spec.outputs))
    bound.chain.predict(x, out)
    return out


def without(x, feature):
    """The rows without one feature."""
    numeric, categories = x.numeric.copy(), x.categories.copy()
    if feature < numeric.shape[1]:
        numeric[:, feature] = np.nan
    else:
        categories[:, feature - numeric.shape[1]] = 0
    return Rows(numeric, categories)


def raw_scores(bound, x):
    """Log-odds, or logarithms less their mean over the classes."""
    p = predicted(bound, x)
    if p.shape[1] == 1:
        return np.log(p) - np.log1p(-p)
    return np.log(p) - np.log(p).mean(1, keepdims=True)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("make", [GaussianNB, MultinomialNB])
def test_naive_bayes_without_a_feature_lacks_its_contribution(bind, stream, make, task):
    bound, x = taught(bind, stream, make(bits=8), 300, task)
    parts = explained(bound, x)
    for feature in range(5):
        difference = raw_scores(bound, x) - raw_scores(bound, without(x, feature))
        np.testing.assert_allclose(parts[:, :, feature], difference, atol=2e-5)


@pytest.mark.parametrize(
    "model", [LogisticRegression(FTRL(), bits=8), SoftmaxRegression(FTRL(), bits=8), PAClassifier(0.01, bits=8)]
)
def test_linear_model_without_a_category_lacks_its_contribution(bind, stream, model):
    bound, x = taught(bind, stream, StandardScaler() | model)
    parts = explained(bound, x)
    for feature in (3, 4):
        added = parts[:, :, feature] - (parts[:, :, feature].mean(1, keepdims=True) if parts.shape[1] > 1 else 0)
        np.testing.assert_allclose(added, raw_scores(bound, x) - raw_scores(bound, without(x, feature)), atol=2e-5)
    assert (explained(bound, without(x, 4))[:, :, 4] == 0).all()


def test_linear_contribution_is_weight_times_scaled_value_and_of_a_missing_one_the_indicators_weight(bind, stream):
    bound, x = taught(bind, stream, StandardScaler() | LinearRegression(FTRL(), bits=8), task="regression")
    x = without(x, 1)
    parts = explained(bound, x)[:, 0]
    scaled = np.empty(x.numeric.shape)
    bound.chain.parts[0].apply(x, Rows(scaled, x.categories))

    def weight(z, n):  # of FTRL(alpha=0.1, beta=1)
        return -z / ((1.0 + np.sqrt(n)) / bound.chain.learner.optimizer.alpha)

    weights, missing = weight(*bound.state["1/columns"].T), weight(*bound.state["1/missing"].T)
    np.testing.assert_allclose(parts[:, 0], scaled[:, 0] * weights[0], rtol=1e-5)
    np.testing.assert_allclose(parts[:, 1], missing[1], rtol=1e-5)
    base = weight(*bound.state["1/bias"][0]) + bound.state["1/base_mean"][0]
    np.testing.assert_allclose(parts[:, -1], base, rtol=1e-5)


# --- trees


def below(state, node, values):
    """Of all leaves below a node, what `values` of them add up to."""
    left = int(state["0/links"][node, LEFT])
    return values[node] if left == 0 else below(state, left, values) + below(state, left + 1, values)


def walk(bound, x, row):
    """The nodes that a row without missing values passes, each with the place of the column it asks; -1 at the leaf."""
    state, spec = bound.state, bound.spec
    places = {int(key_of("numeric", name)): j for j, name in enumerate(spec.numeric)}
    places |= {int(key_of("category", name)): len(spec.numeric) + k for k, name in enumerate(spec.categories)}
    node, path = 0, []
    while left := int(state["0/links"][node, LEFT]):
        place = places[int(state["0/column"][node])]
        path.append((node, place))
        if place < len(spec.numeric):
            goes_left = x.numeric[row, place] <= state["0/threshold"][node]
        else:
            goes_left = x.categories[row, place - len(spec.numeric)] == state["0/value"][node]
        node = left if goes_left else left + 1
    return [*path, (node, -1)]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_tree_explains_by_what_the_shares_change_on_the_way_down(bind, stream, task):
    bound, x = taught(bind, stream, HoeffdingTreeClassifier(leaf_prediction="mc", **TREE), 3000, task)
    x.categories[x.categories == 0] = 1
    got, counts = explained(bound, x), bound.state["0/counts"]
    first = counts.shape[1] - bound.spec.outputs
    assert bound.state["0/links"][:, DEPTH].max() > 2
    for row in range(50):
        path = walk(bound, x, row)
        shares = [below(bound.state, node, counts) for node, _ in path]
        shares = [(of / of.sum())[first:] for of in shares]
        wanted = np.zeros((bound.spec.outputs, 6))
        wanted[:, -1] = shares[0]
        for (_, place), here, there in zip(path, shares, shares[1:]):
            wanted[:, place] += there - here
        np.testing.assert_allclose(got[row], wanted, atol=1e-6)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_naive_bayes_of_a_leaf_over_two_columns_is_shared_as_shapley_has_it(bind, stream, task):
    """Of two columns the declared order and the reverse are all there are."""
    bound, x = taught(
        bind, stream, HoeffdingTreeClassifier(leaf_prediction="nb", max_nodes=1), 400, task, numeric=1, categories=1
    )
    got = explained(bound, x)
    counts = bound.state["0/counts"][0]
    values = {(): np.broadcast_to((counts / counts.sum())[-bound.spec.outputs :], (50, bound.spec.outputs))}
    values |= {
        (0,): predicted(bound, without(x, 1)),
        (1,): predicted(bound, without(x, 0)),
        (0, 1): predicted(bound, x),
    }
    wanted = np.zeros((50, bound.spec.outputs, 2))
    for order in permutations((0, 1)):
        for at, feature in enumerate(order):
            wanted[:, :, feature] += (values[tuple(sorted(order[: at + 1]))] - values[tuple(sorted(order[:at]))]) / 2
    np.testing.assert_allclose(got[:, :, :2], wanted, atol=1e-6)
    assert np.abs(wanted).max() > 0.05


@pytest.mark.parametrize("leaf_prediction", ["mean", "model"])
def test_regression_tree_explains_by_what_the_means_change_and_by_its_linear_models(bind, stream, leaf_prediction):
    model = HoeffdingTreeRegressor(leaf_prediction=leaf_prediction, lr=1e-4, **TREE)
    bound, x = taught(bind, stream, model, 3000)
    x.categories[x.categories == 0] = 1
    got, state = explained(bound, x)[:, 0], bound.state
    assert state["0/links"][:, DEPTH].max() > 1
    count, total = state["0/targets"][:, 0], state["0/targets"][:, 0] * state["0/targets"][:, 1]
    for row in range(50):
        path = walk(bound, x, row)
        means = [below(state, node, total) / below(state, node, count) for node, _ in path]
        wanted = np.zeros(6)
        wanted[-1] = means[0]
        for (_, place), here, there in zip(path, means, means[1:]):
            wanted[place] += there - here
        if leaf_prediction == "model":
            slot = state["0/links"][path[-1][0], SLOT]
            wanted[:3] += state["0/coefficients"][:, slot] * x.numeric[row]
            wanted[-1] += state["0/intercepts"][slot] - means[-1]
        np.testing.assert_allclose(got[row], wanted, rtol=1e-4, atol=1e-4)


def test_branch_on_a_feature_that_is_gone_adds_to_the_base(bind, stream):
    bound, x = taught(bind, stream, HoeffdingTreeClassifier(leaf_prediction="mc", **TREE), 3000)
    chain = bound.chain.unbound()
    spec = bound.spec._replace(numeric=("other", "n1", "n2"), categories=("another", "c1"))
    chain.bind(spec, bound.state, bound.touched)
    out, contributions = np.empty((50, 1), np.float32), np.empty((50, 1, 6), np.float32)
    chain.predict(x, out)
    chain.explain(x, contributions)
    assert np.abs(contributions[:, :, [0, 3]]).max() == 0
    np.testing.assert_allclose(contributions.sum(2), out, atol=1e-6)


# --- who explains


def test_learner_that_cannot_explain_says_who_can(bind, stream):
    bound, x = bind(StandardScaler() | NoChange()), stream(3).x
    with pytest.raises(DeclarationError, match=r"NoChange\(eps=0.01\) cannot say.*linear models.*trees can"):
        bound.chain.explain(x, np.empty((3, 1, 6), np.float32))


def test_subclass_that_predicts_in_its_own_way_does_not_explain_in_that_of_its_parent():
    class Half(LogisticRegression):
        def predict(self, x, out):
            super().predict(x, out)
            out *= 0.5

    class Quiet(LogisticRegression):
        pass

    assert as_chain(Quiet()).explainer
    with pytest.raises(DeclarationError, match="cannot say what each feature adds"):
        as_chain(Half()).explainer  # noqa: B018


def test_contributions_of_another_shape_are_refused(bind, stream):
    bound, x = bind(LogisticRegression(bits=6)), stream(3).x
    for wrong in (np.empty((3, 1, 5), np.float32), np.empty((3, 1, 6)), np.empty((3, 6), np.float32)):
        with pytest.raises(ValueError, match=r"contributions: expected.*float32 array \(3, 1, 6\)"):
            bound.chain.explain(x, wrong)


def test_learner_of_ones_own_explains_row_by_row_without_a_fused_kernel(bind, stream):
    class Nearest(Explainer):
        """Predicts the first number times the mean of the labels so far."""

        updates, batch_size = "sequential", 1

        def layout(self, spec):
            return NoChange().layout(spec)

        def bind(self, spec, state, touched):
            self.last = state["last"]

        def predict(self, x, out):
            out[:, 0] = self.last[0] + np.nan_to_num(x.numeric[:, 0])

        def learn(self, x, truth):
            self.last[0] = truth.y[-1, 0]

        def link(self, spec):
            return "identity"

        def explain(self, x, out):
            out[:] = 0
            out[:, 0, 0], out[:, 0, -1] = np.nan_to_num(x.numeric[:, 0]), self.last[0]

    bound, (x, truth) = bind(StandardScaler() | Nearest(), task="regression"), stream(20)
    truth = Truth(np.arange(20, dtype=np.float32)[:, None], truth.weight)
    out, contributions = np.empty((20, 1), np.float32), np.empty((20, 1, 6), np.float32)
    bound.chain.test_then_learn(x, truth, out, contributions=contributions)
    np.testing.assert_allclose(contributions.sum(2), out, rtol=1e-6)
    assert contributions[:, 0, -1].tolist() == [0, *range(19)]
