"""What a feature adds to a prediction: held beside what happens without it, and beside plain accounts of trees."""

from itertools import permutations

import numpy as np
import pytest
from river import linear_model

from headrace.errors import DeclarationError
from headrace.models import (
    FTRL,
    SGD,
    AMFClassifier,
    AMFRegressor,
    ARFClassifier,
    ARFRegressor,
    Average,
    Blend,
    Explainer,
    GaussianNB,
    HoeffdingAdaptiveTreeClassifier,
    HoeffdingAdaptiveTreeRegressor,
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    LinearRegression,
    LogisticRegression,
    MultinomialNB,
    NoChange,
    PAClassifier,
    Prior,
    River,
    Rows,
    RunningMean,
    SoftmaxRegression,
    StandardScaler,
    Truth,
    as_chain,
    build,
)
from headrace.models.alternate_kernels import WRONG
from headrace.models.average_kernels import IDENTITY, LOG, LOGIT, SOFTMAX, add_changes, predict_of
from headrace.models.forest_kernels import SERVES
from headrace.models.mondrian_kernels import SHARE, TOTAL
from headrace.models.tree_nodes import DEPTH, KNOWN, LEFT, NODES, SLOT
from headrace.models.trees import key_of

TREE = {"grace_period": 30, "delta": 0.1, "tau": 0.2}
RESTLESS = {"drift_window_threshold": 30, "drift_delta": 0.9}


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


@pytest.mark.parametrize("make", [GaussianNB, MultinomialNB])
def test_class_that_was_never_seen_has_a_base_of_its_own_and_nothing_else(bind, stream, make):
    bound, (x, truth) = bind(make(bits=8), task="multiclass"), stream(100, labels="classes")
    truth.y[truth.y == 2] = 0
    bound.chain.learn(x, truth)
    parts = explained(bound, x)
    assert (parts[:, 2, -1] == np.float32(-1e30)).all()
    assert not parts[:, 2, :-1].any()
    assert (predicted(bound, x)[:, 2] == 0).all()


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("make", [GaussianNB, MultinomialNB])
def test_only_one_of_two_classes_that_was_seen_is_a_base_and_nothing_else(bind, stream, make, label):
    bound, (x, truth) = bind(make(bits=8), task="binary"), stream(100)
    truth.y[:] = label
    bound.chain.learn(x, truth)
    parts = explained(bound, x)
    assert (parts[:, 0, -1] == np.float32(1e30 if label else -1e30)).all()
    assert not parts[:, :, :-1].any()
    assert (predicted(bound, x) == label).all()


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


def is_another(state, node, category):
    """Whether a branch of a tree does not ask for this category."""
    return category != state["0/value"][node]


def walk(bound, x, row, node=0, category_goes_right=is_another):
    """The nodes below one that a row without missing values passes, with the places of what they ask; -1 at the leaf."""
    state, spec = bound.state, bound.spec
    places = {int(key_of("numeric", name)): j for j, name in enumerate(spec.numeric)}
    places |= {int(key_of("category", name)): len(spec.numeric) + k for k, name in enumerate(spec.categories)}
    path = []
    while left := int(state["0/links"][node, LEFT]):
        place = places[int(state["0/column"][node])]
        path.append((node, place))
        if place < len(spec.numeric):
            right = x.numeric[row, place] > state["0/threshold"][node]
        else:
            right = category_goes_right(state, node, x.categories[row, place - len(spec.numeric)])
        node = left + right
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


def test_class_that_a_leaf_knows_and_has_no_weight_of_explains_as_it_votes(bind):
    """One row of class 0 lies so far from the others that none of its weight is left where it fell."""
    rng, y = np.random.default_rng(0), np.float32(np.arange(700) % 2)
    numeric = (rng.normal(size=700) + np.where(y, 0, 100)).astype(np.float32).reshape(-1, 1)
    numeric[2] = -1
    x, none = Rows(numeric, np.empty((700, 0), np.uint64)), np.empty((20, 0), np.uint64)
    bound = bind(HoeffdingTreeClassifier(grace_period=600, leaf_prediction="nb"), numeric=1, categories=0)
    bound.chain.learn(x, Truth(y.reshape(-1, 1), np.ones(700, np.float32)))
    assert bound.state["0/counts"][1, 0] == 0 < bound.state["0/counts"][1, 1]
    assert bound.state["0/links"][1, KNOWN] == 2
    x = Rows(rng.normal(size=(20, 1)).astype(np.float32), none)
    np.testing.assert_allclose(explained(bound, x).sum(2), predicted(bound, x), atol=1e-6)


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


@pytest.mark.parametrize(
    "model", [HoeffdingTreeClassifier(leaf_prediction="mc", **TREE), AMFClassifier(n_estimators=3, max_nodes=255)]
)
def test_branch_on_a_feature_that_is_gone_adds_to_the_base(bind, stream, model):
    bound, x = taught(bind, stream, model, 3000)
    chain = bound.chain.unbound()
    spec = bound.spec._replace(numeric=("other", "n1", "n2"), categories=("another", "c1"))
    chain.bind(spec, bound.state, bound.touched)
    out, contributions = np.empty((50, 1), np.float32), np.empty((50, 1, 6), np.float32)
    chain.predict(x, out)
    chain.explain(x, contributions)
    assert np.abs(contributions[:, :, [0, 3]]).max() == 0
    np.testing.assert_allclose(contributions.sum(2), out, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        HoeffdingTreeClassifier(**TREE),
        HoeffdingTreeRegressor(**TREE),
        AMFClassifier(n_estimators=2, max_nodes=255),
    ],
)
def test_columns_whose_keys_share_a_place_in_the_table_are_told_apart(bind, stream, model):
    sharing = [name for name in map(str, range(300)) if key_of("numeric", name) % 16 == 15][:3]
    told = []
    for names in (("n0", "n1", "n2"), tuple(sharing)):
        bound = bind(build(model.config()), numeric=3, categories=0)
        bound.chain.bind(bound.spec._replace(numeric=names), bound.state, bound.touched)
        x, truth = stream(1500, 0, "value" if bound.spec.task == "regression" else "binary", categories=0)
        out, contributions = np.empty((1500, 1), np.float32), np.empty((1500, 1, 4), np.float32)
        bound.chain.test_then_learn(x, truth, out, contributions=contributions)
        told.append((out, contributions))
    assert (np.abs(contributions).max((0, 1)) > 0).all()
    for one, other in zip(*told):
        np.testing.assert_array_equal(one, other)


# --- leaves that predict together


def shares_below(bound, node):
    """Shares of the classes among all that is below a node; of values, their mean."""
    state = bound.state
    if "0/counts" in state:
        of = below(state, node, state["0/counts"])
        return (of / of.sum())[-bound.spec.outputs :]
    count = state["0/targets"][:, 0]
    return below(state, node, count * state["0/targets"][:, 1]).reshape(1) / (below(state, node, count) or 1)


def ways(bound, path):
    """What explains each node of a path, the last one the leaf, were it the leaf: (nodes, O, N + K + 1)."""
    shares = [shares_below(bound, node) for node, _ in path]
    steps = np.zeros((len(path), bound.spec.outputs, 6))
    steps[0, :, -1] = shares[0]
    for at, ((_, place), here, there) in enumerate(zip(path, shares, shares[1:])):
        steps[at + 1, :, place] += there - here
    return steps.cumsum(0)


def turned(bind, stream, model, more, task):
    """A model that has learned a stream, and then `more` rows whose labels say the contrary; and rows like those."""
    bound, labels = bind(model, task=task), {"multiclass": "classes", "regression": "value"}.get(task, task)
    x, truth = stream(4050 + more, 0, labels)
    x.numeric[np.isnan(x.numeric)], x.categories[x.categories == 0] = 1.0, 1
    y = truth.y.copy()
    y[4000:] = {"binary": 1, "multiclass": 2, "regression": 10}[task] - y[4000:]
    first = type(stream(0))(x, Truth(y, truth.weight)).piece(0, 4000 + more)
    bound.chain.test_then_learn(first.x, first.truth, np.empty((4000 + more, bound.spec.outputs), np.float32))
    return bound, Rows(x.numeric[-50:], x.categories[-50:])


ADAPTIVE = TREE | {
    "grace_period": 200, "drift_window_threshold": 1000, "drift_delta": 0.02, "bootstrap_sampling": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (HoeffdingAdaptiveTreeClassifier(leaf_prediction="mc", **ADAPTIVE), "binary"),
        (HoeffdingAdaptiveTreeClassifier(leaf_prediction="mc", **ADAPTIVE), "multiclass"),
        (HoeffdingAdaptiveTreeRegressor(leaf_prediction="mean", **ADAPTIVE), "regression"),
    ],
)
def test_leaf_beside_a_branch_explains_as_the_way_there_and_counts_as_it_votes(bind, stream, model, task):
    bound, x = turned(bind, stream, model, 200, task=task)
    got, state, beside = explained(bound, x), bound.state, 0
    for row in range(50):
        path = walk(bound, x, row)
        parts, weights = [], []
        for (node, _), way in zip(path, ways(bound, path)):
            leaf = node if node == path[-1][0] else int(state["0/alternate"][node])
            if leaf == 0 or (leaf != node and task != "regression" and not state["0/counts"][leaf].any()):
                continue
            beside += leaf != node
            way = way.copy()
            way[:, -1] += shares_below(bound, leaf) - shares_below(bound, node)
            error = state["0/errors"][leaf, WRONG]
            parts.append(way)
            weights.append(1 / error**2 if task != "regression" and error > 0 else 1)
        np.testing.assert_allclose(got[row], np.average(parts, axis=0, weights=weights), rtol=1e-4, atol=1e-5)
    assert beside > 20
    x.numeric[::2], x.categories[::3] = np.nan, 0  # what lies below a branch that finds nothing to ask counts twice
    np.testing.assert_allclose(explained(bound, x).sum(2), predicted(bound, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_forest_explains_as_its_trees_do_and_they_count_as_they_vote(bind, stream, task, weighted):
    model = ARFClassifier(
        n_models=4, leaf_prediction="mc", disable_weighted_vote=not weighted, **TREE | {"max_nodes": 31}
    )
    bound, x = turned(bind, stream, model, 500, task=task)
    got, state = explained(bound, x), bound.state
    serving = 2 * np.arange(4) + state["0/members"][:, SERVES]
    assert (state["0/size"][serving, NODES] > 3).any()
    shares = state["0/scores"][:, 0] / state["0/scores"][:, 1] if weighted else np.ones(4)
    assert not weighted or np.ptp(shares) > 0.01
    for row in range(50):
        parts = [ways(bound, walk(bound, x, row, tree * 31))[-1] for tree in serving]
        np.testing.assert_allclose(got[row], np.average(parts, axis=0, weights=shares), atol=1e-6)


@pytest.mark.parametrize(("n_models", "method"), [(4, "median"), (5, "median"), (1, "median"), (4, "mean")])
def test_forest_of_values_explains_as_its_trees_in_the_middle_do_or_as_all_of_them(bind, stream, n_models, method):
    model = ARFRegressor(
        n_models=n_models, aggregation_method=method, leaf_prediction="mean", **TREE | {"max_nodes": 31}
    )
    bound, x = turned(bind, stream, model, 500, task="regression")
    got, state = explained(bound, x), bound.state
    serving = 2 * np.arange(n_models) + state["0/members"][:, SERVES]
    assert (state["0/size"][serving, NODES] > 3).any()
    for row in range(50):
        parts = np.array([ways(bound, walk(bound, x, row, tree * 31))[-1] for tree in serving])
        if method == "median":
            order = parts.sum((1, 2)).argsort(kind="stable")
            parts = parts[order[[(n_models - 1) // 2, n_models // 2]]]
        np.testing.assert_allclose(got[row], parts.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        HoeffdingTreeClassifier(**TREE | {"max_nodes": 63}),
        ARFClassifier(n_models=4, warning_delta=0.5, drift_delta=0.3, **TREE | {"max_nodes": 63}),
        ARFClassifier(n_models=4, warning_delta=0.5, drift_delta=0.3, **TREE | {"max_nodes": 3}),  # all of one size
        HoeffdingAdaptiveTreeClassifier(**TREE | {"max_nodes": 63}, **RESTLESS),
        HoeffdingTreeRegressor(**TREE | {"max_nodes": 63}),
        HoeffdingAdaptiveTreeRegressor(**TREE | {"max_nodes": 63}, **RESTLESS),
        ARFRegressor(n_models=4, warning_delta=0.5, drift_delta=0.3, **TREE | {"max_nodes": 63}),
    ],
)
def test_rows_explained_as_they_are_learned_are_explained_as_if_each_were_asked_for_alone(bind, stream, model):
    """In one go only what a row changed is counted anew: here leaves split, and trees are replaced and begin again."""
    values = type(model).__name__.endswith("Regressor")
    x, truth = stream(1500, 2, "value" if values else "classes")
    y = truth.y.copy()
    y[700:] = (100 if values else 2) - y[700:]
    y[::9] = np.nan
    whole, asked = (bind(build(model.config()), task="regression" if values else "multiclass") for _ in range(2))
    outputs = whole.spec.outputs
    out, got = np.empty((1500, outputs), np.float32), np.empty((1500, outputs, 6), np.float32)
    whole.chain.test_then_learn(x, Truth(y, truth.weight), out, contributions=got)
    one, part = np.empty((1, outputs, 6), np.float32), type(stream(0))(x, Truth(y, truth.weight))
    for i in range(1500):
        row = part.piece(i, i + 1)
        asked.chain.explain(row.x, one)
        assert one.tobytes() == got[i].tobytes(), i
        asked.chain.test_then_learn(row.x, row.truth, out[i : i + 1])
    if "0/changes" in whole.state:
        assert np.sum(whole.state["0/changes"], 0).min() > 3
    assert whole.state["0/size"].reshape(-1, 3)[:, NODES].max() >= 3


def test_trees_that_have_learned_nothing_say_that_nothing_is_known(bind, stream):
    for model, task, base in (
        (ARFClassifier(n_models=2), "multiclass", 1 / 3),
        (HoeffdingAdaptiveTreeClassifier(), "binary", 1 / 2),
        (ARFRegressor(n_models=2), "regression", 0),
        (HoeffdingAdaptiveTreeRegressor(), "regression", 0),
        (AMFClassifier(n_estimators=2), "multiclass", 1 / 3),
        (AMFRegressor(n_estimators=2), "regression", 0),
    ):
        got = explained(bind(model, task=task), stream(3).x)
        assert (got[:, :, :-1] == 0).all()
        np.testing.assert_allclose(got[:, :, -1], base, rtol=1e-6)


# --- Mondrian forests


def is_in_the_bucket(state, node, category):
    """Whether a category is in the bucket that a branch of a Mondrian tree asks for."""
    return int(category) >> 58 == state["0/threshold"][node]


@pytest.mark.parametrize("aggregates", [True, False])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_mondrian_forest_explains_by_the_mean_over_prunings_of_what_each_changes_on_the_way(
    bind, stream, task, aggregates
):
    make = AMFRegressor if task == "regression" else AMFClassifier
    model = make(n_estimators=3, step=0.05, use_aggregation=aggregates, max_nodes=255)
    bound, x = taught(bind, stream, model, 1000, task)
    x.categories[x.categories == 0] = 1
    got, numbers, told = explained(bound, x), bound.state["0/numbers"], bound.state["0/told"]

    def said(node):
        of = told[node] if task == "regression" else (told[node] + 0.5) / (numbers[node, TOTAL] + 0.5 * told.shape[1])
        return of[-bound.spec.outputs :]

    shares = []
    for row in range(50):
        wanted = np.zeros((bound.spec.outputs, 6))
        for tree in range(3):
            path = walk(bound, x, row, tree * 255, is_in_the_bucket)
            pruned, rest = np.zeros_like(wanted), 1.0  # one that is cut at the node
            pruned[:, -1] = said(path[0][0])
            for at, (node, place) in enumerate(path):
                share = 1.0 if place < 0 else numbers[node, SHARE]
                shares.append(share)
                wanted += rest * share * pruned / 3
                rest *= 1 - share
                if place >= 0:
                    pruned[:, place] += said(path[at + 1][0]) - said(node)
        np.testing.assert_allclose(got[row], wanted, rtol=1e-5, atol=1e-5)
    assert not aggregates or np.mean((np.array(shares) > 0.01) & (np.array(shares) < 0.99)) > 0.1
    assert np.abs(got[:, :, :-1]).max() > 0.01


# --- averages


def test_average_of_values_explains_by_the_mean_of_what_its_learners_say(bind, stream):
    learners = LinearRegression(FTRL(), bits=8), HoeffdingTreeRegressor(max_nodes=31, **TREE)
    bound, x = taught(bind, stream, Average(*learners, weights=[1, 3]), task="regression")
    alone = [taught(bind, stream, learner, task="regression")[0] for learner in learners]
    wanted = np.average([explained(one, x) for one in alone], axis=0, weights=[1, 3])
    np.testing.assert_allclose(explained(bound, x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("task", "make"), [("binary", LogisticRegression), ("multiclass", SoftmaxRegression)])
def test_average_of_p_explains_each_by_what_a_feature_changes_of_p_as_shapley_has_it(bind, stream, task, make):
    """Of two columns the declared order and the reverse are all there are."""
    shape = {"numeric": 1, "categories": 1}
    bound, x = taught(bind, stream, Average(make(FTRL(), bits=8), HoeffdingTreeClassifier(**TREE)), 1000, task, **shape)
    linear, tree = (
        taught(bind, stream, one, 1000, task, **shape)[0]
        for one in (make(FTRL(), bits=8), HoeffdingTreeClassifier(**TREE))
    )
    raw = explained(linear, x)

    def p(*features):
        score = raw[:, :, -1] + raw[:, :, list(features)].sum(2)
        if task == "binary":
            return 1 / (1 + np.exp(-score))
        return np.exp(score) / np.exp(score).sum(1, keepdims=True)

    first, second = (p(0) - p() + p(0, 1) - p(1)) / 2, (p(1) - p() + p(0, 1) - p(0)) / 2
    wanted = (np.stack([first, second, p()], axis=2) + explained(tree, x)) / 2
    np.testing.assert_allclose(explained(bound, x), wanted, atol=1e-6)
    assert bound.chain.explainer.link(bound.spec) == "identity"


def test_average_with_one_that_cannot_explain_names_it():
    with pytest.raises(DeclarationError, match=r"^NoChange\(eps=0.01\) cannot say"):
        as_chain(Average(LogisticRegression(), StandardScaler() | Average(NoChange()))).explainer  # noqa: B018


@pytest.mark.parametrize("outer", [Average, Blend])
def test_blend_or_average_is_refused_by_the_name_of_the_learner_that_cannot_explain(outer):
    class Guess(NoChange):
        """May look at features in a way of its own."""

    for one in (River(linear_model.LogisticRegression()), Guess()):
        with pytest.raises(DeclarationError, match=rf"^\S*{type(one).__name__}\(.* cannot say"):
            as_chain(outer(LogisticRegression(), StandardScaler() | one)).explainer  # noqa: B018
    with pytest.raises(DeclarationError, match=r"^Prior\(.* cannot say"):  # nobody looks at features
        as_chain(outer(Prior(), NoChange())).explainer  # noqa: B018


@pytest.mark.parametrize("link", [IDENTITY, LOGIT, LOG, SOFTMAX])
def test_what_features_change_of_a_prediction_adds_up_to_it(link):
    rng = np.random.default_rng(link)
    raw = (rng.normal(size=(200, 3, 9)) * rng.choice([1e-6, 1, 10], (200, 1, 1))).astype(np.float32)
    weights, got = rng.random(200), np.ones(raw.shape)  # it adds to what is there
    add_changes(raw, link, weights, got)
    for row, of, weight in zip(got - 1, raw.astype(np.float64), weights):
        wanted = of.sum(1)
        if link != IDENTITY:
            predict_of(of.sum(1), link, wanted)
        np.testing.assert_allclose(row.sum(1), weight * wanted, rtol=1e-9, atol=1e-13 * max(1, np.abs(row).max()))


# --- blends


def shares_by_hand(parts, linked):
    """What each feature adds to the scores of a learner of classes, from what adds up to its raw scores (O, F + 1)."""
    outputs, features = len(parts), parts.shape[1] - 1
    out = np.zeros(parts.shape)

    def score(raw):
        p = raw
        if linked:
            p = 1 / (1 + np.exp(-raw)) if outputs == 1 else np.exp(raw) / np.exp(raw).sum()
        least = 0.002 / max(outputs, 2)
        p = np.clip(p, least, 1 - least)
        return np.log(p / (1 - p)) if outputs == 1 else np.log(p) - np.log(p).mean()

    for order in (range(features), reversed(range(features))):
        raw = parts[:, -1].copy()
        out[:, -1] = score(raw)
        for f in order:
            before = score(raw)
            raw += parts[:, f]
            out[:, f] += (score(raw) - before) / 2
    return out


@pytest.mark.parametrize(
    ("task", "labels", "makes"),
    [
        ("binary", "binary", [lambda: LogisticRegression(FTRL(), bits=8), lambda: HoeffdingTreeClassifier(**TREE)]),
        ("multiclass", "classes", [lambda: SoftmaxRegression(FTRL(), bits=8), lambda: HoeffdingTreeClassifier(**TREE)]),
        ("regression", "value", [lambda: LinearRegression(FTRL(), bits=8), lambda: HoeffdingTreeRegressor(**TREE)]),
    ],
)
def test_blend_explains_a_row_by_the_weights_it_was_predicted_with(bind, stream, task, labels, makes):
    x, truth = stream(600, 1, labels)
    truth.weight[:] = 1.0
    blend, alone = bind(Blend(*(make() for make in makes), memories=[5]), task=task), []
    for make in makes:
        one = bind(make(), task=task)
        out, parts = np.empty((600, one.spec.outputs), np.float32), np.empty((600, one.spec.outputs, 6), np.float32)
        one.chain.test_then_learn(x, truth, out, contributions=parts)
        parts = parts.astype(np.float64)
        if task != "regression":
            linked = one.chain.explainer.link(one.spec) != "identity"
            parts = np.array([shares_by_hand(row, linked) for row in parts])
        alone.append(parts)
    got, out = np.empty((600, blend.spec.outputs, 6), np.float32), np.empty((600, blend.spec.outputs), np.float32)
    moved = []
    for i in range(600):  # the weights before the row is learned
        weights = blend.chain.learner._weights_now()
        moved.append(np.abs(weights - 0.5).max())
        row = Rows(x.numeric[i : i + 1], x.categories[i : i + 1]), Truth(truth.y[i : i + 1], truth.weight[i : i + 1])
        blend.chain.test_then_learn(*row, out[i : i + 1], contributions=got[i : i + 1])
        wanted = np.tensordot(weights, [parts[i] for parts in alone], 1)
        np.testing.assert_allclose(got[i], wanted, rtol=1e-3, atol=2e-4)
    assert max(moved) > 0.1
    whole = np.empty_like(got)
    again = bind(Blend(*(make() for make in makes), memories=[5]), task=task)
    again.chain.test_then_learn(x, truth, np.empty_like(out), contributions=whole)
    assert whole.tobytes() == got.tobytes()
    raw = got.astype(np.float64).sum(2)
    if task == "binary":
        raw = 1 / (1 + np.exp(-raw))
    elif task == "multiclass":
        raw = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    np.testing.assert_allclose(raw, out, rtol=2e-4, atol=2e-4)


def test_blend_explains_a_linear_model_by_its_own_contributions(bind, stream):
    bound, x = taught(bind, stream, Blend(LogisticRegression(SGD(0.001), bits=8)), 300, "binary")
    alone, _ = taught(bind, stream, LogisticRegression(SGD(0.001), bits=8), 300, "binary")
    (weight,) = bound.chain.learner._weights_now()
    assert abs(weight - 1) > 0.1
    np.testing.assert_allclose(explained(bound, x), weight * explained(alone, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outer", [Average, Blend])
@pytest.mark.parametrize(
    ("task", "make", "baselines"),
    [
        ("regression", lambda: LinearRegression(FTRL(), bits=8), [RunningMean, NoChange]),
        ("binary", lambda: HoeffdingTreeClassifier(**TREE), [Prior, NoChange]),
    ],
)
def test_baselines_beside_others_add_to_the_base_alone(bind, stream, outer, task, make, baselines):
    bound, x = taught(bind, stream, outer(make(), *(one() for one in baselines)), 300, task)
    alone = [taught(bind, stream, one(), 300, task)[0] for one in (make, *baselines)]
    parts, said = explained(alone[0], x), [predicted(one, x) for one in alone[1:]]
    if outer is Blend:
        weights = bound.chain.learner._weights_now()
        if task == "binary":
            parts = np.array([shares_by_hand(row, False) for row in parts])
            said = [np.log(p / (1 - p)) for p in said]
    else:
        weights = np.full(3, 1 / 3)
    got = explained(bound, x)
    np.testing.assert_allclose(got[:, :, :-1], weights[0] * parts[:, :, :-1], rtol=1e-4, atol=1e-4)
    assert np.abs(got[:, :, :-1]).max() > 0.001
    said = sum(w * of for w, of in zip(weights[1:], said))
    np.testing.assert_allclose(got[:, :, -1], weights[0] * parts[:, :, -1] + said, rtol=1e-4, atol=1e-4)


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
