"""Trees equal River's node by node: the same splits at the same example, the same counts, the same predictions."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from river import datasets, linear_model, optim, preprocessing, tree
from river.tree.nodes.branch import DTBranch, NominalBinaryBranch

from headrace import models
from headrace.errors import DeclarationError
from headrace.models import (
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    Rows,
    Spec,
    StandardScaler,
    Truth,
    allocate,
)
from headrace.models.search_tree_kernels import rounded
from headrace.models.tree_nodes import (
    ATTEMPT,
    BAYES_RIGHT,
    DEPTH,
    KNOWN,
    LEFT,
    MAJORITY_RIGHT,
    MEAN_ERROR,
    MODEL_ERROR,
    NODES,
    PASSIVE,
    REFUSED,
    SLOT,
    TOTAL,
)
from headrace.models.trees import key_of

EAGER = {"grace_period": 40, "delta": 0.05}
SETTINGS = {
    "default": {},
    "eager": EAGER,
    "majority": {"leaf_prediction": "mc"} | EAGER,
    "bayes": {"leaf_prediction": "nb", "nb_threshold": 60} | EAGER,
    "gini": {"split_criterion": "gini", "n_splits": 25} | EAGER,
    "no_preprune": {"merit_preprune": False, "tau": 0.3} | EAGER,
    "shallow": {"max_depth": 2} | EAGER,
    "picky": {"min_branch_fraction": 0.2, "max_share_to_split": 0.8, "tau": 0.2, "grace_period": 30},
}


def river_tree(n_splits=10, **settings):
    return tree.HoeffdingTreeClassifier(splitter=tree.splitter.GaussianSplitter(n_splits), **settings)


def river_rows(x):
    """Rows as River sees them: what is missing is not there."""
    for numbers, categories in zip(x.numeric, x.categories, strict=True):
        row = {f"n{j}": float(v) for j, v in enumerate(numbers) if np.isfinite(v)}
        yield row | {f"c{k}": int(h) for k, h in enumerate(categories) if h}


def run_river(river, x, truth, outputs):
    """Test, then learn; the predictions, and the number of nodes after each row."""
    out, nodes = np.zeros((len(truth.y), max(outputs, 2))), []
    for i, row in enumerate(river_rows(x)):
        for c, p in river.predict_proba_one(row).items():
            out[i, c] = p
        river.learn_one(row, int(truth.y[i, 0]), w=float(truth.weight[i]))
        nodes.append(river._root.n_nodes)
    return (out[:, 1:2] if outputs == 1 else out), nodes


def run_ours(bound, x, truth):
    """The same of ours; rows may be float64, as they are between the parts of a chain."""
    out, nodes = np.zeros((len(truth.y), bound.spec.outputs)), []
    learner = bound.chain.learner
    for i in range(len(out)):
        row = slice(i, i + 1)
        learner.test_then_learn(
            Rows(x.numeric[row], x.categories[row]), Truth(truth.y[row], truth.weight[row]), out[row]
        )
        nodes.append(int(bound.state["0/size"][NODES]))
    return out, nodes


def assert_same_nodes(theirs, bound, node=0, exact=True):
    """Every node and every observer below, to the bit; how many branches there are."""
    state = {name.removeprefix("0/"): array for name, array in bound.state.items()}
    links, weights, counts = state["links"][node], state["weights"][node], state["counts"][node]
    known = [int(c) for c in state["classes"][node, : links[KNOWN]]]
    ours = [(c, counts[c]) for c in known]
    # River's categories put the classes in another order where it predicted before it learned, so not there
    assert same(ours, list(theirs.stats.items())) if exact else same(sorted(ours), sorted(theirs.stats.items()), False)
    assert links[DEPTH] == theirs.depth
    assert weights[TOTAL] == pytest.approx(theirs.total_weight, rel=1e-9)
    if isinstance(theirs, DTBranch):
        nominal = isinstance(theirs, NominalBinaryBranch)
        assert state["column"][node] == key_of("category" if nominal else "numeric", theirs.feature)
        assert (
            same(state["value"][node], theirs.value)
            if nominal
            else same(state["threshold"][node], theirs.threshold, exact)
        )
        left = int(links[LEFT])
        return 1 + sum(
            assert_same_nodes(child, bound, left + side, exact) for side, child in enumerate(theirs.children)
        )
    assert links[LEFT] == 0
    assert (links[SLOT] >= 0) == theirs.is_active()
    if not theirs.is_active():
        return 0
    assert same(weights[ATTEMPT], theirs.last_split_attempt_at, exact)
    if hasattr(theirs, "_mc_correct_weight"):
        assert (weights[MAJORITY_RIGHT], weights[BAYES_RIGHT]) == (theirs._mc_correct_weight, theirs._nb_correct_weight)
    slot = links[SLOT]
    for name, splitter in theirs.splitters.items():
        column = int(name[1:])
        if name.startswith("c"):
            totals, values, table = (state[a][column, slot] for a in ("category_totals", "values", "value_counts"))
            expected = {c: counts for c, counts in splitter._att_dist_per_class.items() if counts}
            assert {c for c in range(len(totals)) if totals[c, 0]} == set(expected)
            for c, by_value in expected.items():
                assert {int(v): n for v, n in zip(values, table[:, c]) if n} == by_value
                assert totals[c, 0] == sum(by_value.values())
        else:
            for c, gaussian in splitter._att_dist_per_class.items():
                moments = gaussian._var.mean.n, gaussian._var.mean._mean, gaussian._var._S
                edges = splitter._min_per_class[c], splitter._max_per_class[c]
                assert same(state["gaussians"][column, slot, c, :5].tolist(), [*moments, *edges], exact)
    return 0


def same(ours, theirs, exact=True):
    return ours == theirs if exact else np.allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_tree_equals_river_node_by_node(name, seed, bind, stream):
    labels, outputs = ("binary", 1) if seed % 2 else ("classes", 3)
    x, truth = stream(1500, seed, labels, numeric=4, categories=0)
    if seed == 3:  # ties: few values, no missing ones, weights of 1
        x = Rows(np.round(np.nan_to_num(x.numeric) / 10), x.categories)
        truth = Truth(truth.y, np.ones_like(truth.weight))
    river = river_tree(**SETTINGS[name])
    expected, their_nodes = run_river(river, x, truth, outputs)
    bound = bind(HoeffdingTreeClassifier(**SETTINGS[name]), 4, 0, "binary" if seed % 2 else "multiclass")
    out, nodes = run_ours(bound, x, truth)
    assert nodes == their_nodes
    branches = assert_same_nodes(river._root, bound)
    assert branches > 1 or name in ("default", "picky")
    np.testing.assert_allclose(out[1:], expected[1:], rtol=1e-9, atol=1e-12)
    assert (out[0] == 1 / max(outputs, 2)).all()


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_tree_with_categories_equals_river_with_binary_splits(seed, bind, stream):
    labels, outputs = ("binary", 1) if seed % 2 else ("classes", 3)
    x, truth = stream(2000, seed, labels)
    river = river_tree(**EAGER, binary_split=True, nominal_attributes=["c0", "c1"])
    expected, their_nodes = run_river(river, x, truth, outputs)
    bound = bind(HoeffdingTreeClassifier(**EAGER, category_values=8), 3, 2, "binary" if seed % 2 else "multiclass")
    out, nodes = run_ours(bound, x, truth)
    assert nodes == their_nodes
    assert assert_same_nodes(river._root, bound, exact=False) > 2
    assert np.count_nonzero(bound.state["0/value"]) > 0
    np.testing.assert_allclose(out[1:], expected[1:], rtol=1e-6, atol=1e-9)


def of_river(dataset):
    """A bundled data set as rows and labels, and the names of its classes in order."""
    rows = list(dataset)
    names = list(dict.fromkeys(name for x, _ in rows for name in x))
    numeric = np.array([[x.get(name, np.nan) for name in names] for x, _ in rows], np.float64)
    classes = sorted({y for _, y in rows})
    y = np.array([[classes.index(y)] for _, y in rows], np.float32)
    return Rows(numeric, np.empty((len(rows), 0), np.uint64)), Truth(y, np.ones(len(rows), np.float32)), len(classes)


@pytest.mark.parametrize(
    ("dataset", "accuracy"),
    [(datasets.Bananas, 0.6431), (datasets.Phishing, 0.8799), (datasets.ImageSegments, 0.7783)],
)
def test_bundled_data_sets_give_the_tree_and_the_accuracy_of_river(dataset, accuracy, bind):
    x, truth, classes = of_river(dataset())
    outputs = 1 if classes == 2 else classes
    river = river_tree()
    expected, their_nodes = run_river(river, x, truth, outputs)
    task = "binary" if classes == 2 else "multiclass"
    bound = bind(HoeffdingTreeClassifier(), x.numeric.shape[1], 0, task, outputs)
    out, nodes = run_ours(bound, x, truth)
    assert nodes == their_nodes
    assert_same_nodes(river._root, bound)
    np.testing.assert_allclose(out[1:], expected[1:], rtol=1e-9, atol=1e-12)
    predicted = out[:, 0] > 0.5 if classes == 2 else out.argmax(1)
    right = (predicted == truth.y[:, 0])[1:]  # River has no prediction for the first
    assert right.mean() == pytest.approx(accuracy, abs=5e-5)


def grown(bind, stream, rows=1500, **settings):
    bound = bind(HoeffdingTreeClassifier(**EAGER | settings), 3, 2, "binary")
    part = stream(rows, 5)
    out = np.empty((rows, 1), np.float32)
    bound.chain.test_then_learn(*part, out)
    return bound, part, out


def test_full_tree_goes_on_learning_and_counts_what_it_could_not_split(bind, stream):
    bound, part, _ = grown(bind, stream, max_nodes=6)
    size, links = bound.state["0/size"], bound.state["0/links"]
    assert size[NODES] == 5
    assert size[REFUSED] > 0
    leaves = [node for node in range(5) if links[node, LEFT] == 0]
    assert len(leaves) == 3
    before = bound.state["0/counts"][leaves].sum()
    bound.chain.learn(*part)
    assert size[NODES] == 5
    assert bound.state["0/counts"][leaves].sum() == pytest.approx(before + part.truth.weight.sum())
    free, _, _ = grown(bind, stream)
    assert free.state["0/size"][NODES] > 5
    assert free.state["0/size"][REFUSED] == 0


def test_every_leaf_has_a_slot_of_its_own(bind, stream):
    bound, _, _ = grown(bind, stream, max_nodes=31)
    size, links = bound.state["0/size"], bound.state["0/links"]
    nodes = size[NODES]
    slots = sorted(links[:nodes, SLOT][links[:nodes, LEFT] == 0])
    assert slots == list(range((nodes + 1) // 2))
    assert size.tolist()[1] == len(slots)


@pytest.mark.parametrize(
    ("n", "k", "outputs", "nodes", "values"), [(3, 2, 1, 7, 4), (5, 0, 4, 100, 32), (0, 3, 1, 1, 1)]
)
def test_memory_is_what_the_docstring_says(n, k, outputs, nodes, values):
    spec = Spec(("n",) * n, ("c",) * k, "binary" if outputs == 1 else "multiclass", outputs)
    layout = HoeffdingTreeClassifier(max_nodes=nodes, category_values=values).layout(spec)
    c, s = max(outputs, 2), (nodes + 1) // 2
    stated = 24 + nodes * (76 + 12 * c) + s * (4 + n * (4 + 48 * c) + k * (4 + 16 * c + values * (8 + 8 * c)))
    assert sum(array.nbytes for array in allocate(layout).values()) == stated


def test_infinite_is_missing_and_huge_is_not(bind, stream):
    outs = []
    for hole in (np.nan, np.inf, -np.inf):
        bound, part = bind(HoeffdingTreeClassifier(**EAGER), 3, 2, "binary"), stream(600, 6)
        numeric = np.where(np.isnan(part.x.numeric), np.float32(hole), part.x.numeric)
        outs.append(np.empty((600, 1)))
        bound.chain.test_then_learn(Rows(numeric, part.x.categories), part.truth, outs[-1])
    assert (outs[0] == outs[1]).all()
    assert (outs[0] == outs[2]).all()


def test_rows_without_a_class_or_a_weight_above_zero_are_predicted_and_not_learned(bind, stream):
    bound, part, _ = grown(bind, stream)
    bits = bound.bits()
    for y, weight in ((np.nan, 1.0), (np.inf, 1.0), (1.0, 0.0), (1.0, -1.0), (0.0, np.nan), (0.0, np.inf)):
        truth = Truth(np.full_like(part.truth.y, y), np.full_like(part.truth.weight, weight))
        out = np.full((len(truth.y), 1), np.nan, np.float32)
        bound.chain.test_then_learn(part.x, truth, out)
        assert ((out >= 0) & (out <= 1)).all()
    assert bound.bits() == bits
    many = bind(HoeffdingTreeClassifier(), 3, 2, "multiclass")
    for y in (3.0, -1.0):
        many.chain.learn(part.x, Truth(np.full_like(part.truth.y, y), part.truth.weight))
    assert many.state["0/size"][NODES] == 0


def test_probabilities_of_classes_add_up_to_one(bind, stream):
    bound = bind(HoeffdingTreeClassifier(**EAGER), 3, 2, "multiclass")
    out = np.empty((1000, 3))
    bound.chain.test_then_learn(*stream(1000, 7, "classes"), out)
    np.testing.assert_allclose(out.sum(1), 1.0, rtol=1e-9)


def test_common_value_is_split_on_though_rare_ones_are_many(bind):
    bound = bind(HoeffdingTreeClassifier(category_values=4), 0, 1, "binary")
    values = np.arange(10, 410, dtype=np.uint64)
    values[201::2] = 7
    y = (values == 7).astype(np.float32).reshape(-1, 1)
    bound.chain.learn(Rows(np.empty((400, 0), np.float32), values.reshape(-1, 1)), Truth(y, np.ones(400, np.float32)))
    assert bound.state["0/size"][NODES] == 3
    assert bound.state["0/value"][0] == 7
    assert bound.state["0/counts"][:3].tolist() == [[300, 100], [0, 100], [300, 0]]


def test_branches_find_their_columns_when_features_come_and_go(bind, stream):
    bound, part, _ = grown(bind, stream)
    model = bound.declared_anew(("new", "n2", "n0", "n1"), ("c1", "c0")).chain
    expected, out = np.empty((2, 200, 1))
    x = part.piece(0, 200).x
    bound.chain.predict(x, expected)
    moved = np.column_stack([np.full(200, np.nan, np.float32), x.numeric[:, [2, 0, 1]]])
    model.predict(Rows(np.ascontiguousarray(moved), np.ascontiguousarray(x.categories[:, ::-1])), out)
    np.testing.assert_allclose(out, expected, rtol=1e-9)

    model, _, state, _ = bound.declared_anew(("n1",), ())  # branches on other columns send all to the heavier child
    size = state["0/size"][NODES]
    model.learn(Rows(x.numeric[:, 1:2].copy(), np.empty((200, 0), np.uint64)), Truth(*(a[:200] for a in part.truth)))
    assert state["0/size"][NODES] >= size


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"grace_period": 0}, r"HoeffdingTreeClassifier\(grace_period=\).*above 0"),
        ({"delta": 1.5}, r"\(delta=\).*at most 1"),
        ({"max_nodes": 0}, r"\(max_nodes=\).*from 1 to.*got 0"),
        ({"max_depth": 2.5}, r"\(max_depth=\).*whole number"),
        ({"category_values": True}, r"\(category_values=\).*whole number"),
        ({"leaf_prediction": "mean"}, "expected one of mc, nb, nba.*'mean'"),
        ({"split_criterion": "hellinger"}, "expected one of info_gain, gini.*'hellinger'"),
        ({"merit_preprune": 1}, r"\(merit_preprune=\).*True or False"),
    ],
)
def test_a_tree_declared_wrongly_says_what_to_write(settings, match):
    with pytest.raises(DeclarationError, match=match):
        HoeffdingTreeClassifier(**settings)


@pytest.mark.parametrize(
    ("task", "outputs", "match"),
    [("regression", 1, "a regression task.*HoeffdingTreeRegressor"), (None, 1, "no labels")],
)
def test_task_without_classes_is_refused(task, outputs, match):
    with pytest.raises(DeclarationError, match=match):
        HoeffdingTreeClassifier().layout(Spec(("a",), (), task, outputs))


# --- regression

REGRESSION = {
    "default": {},
    "eager": EAGER,
    "mean": {"leaf_prediction": "mean", "tau": 0.3} | EAGER,
    "model": {"leaf_prediction": "model", "lr": 0.02, "intercept_lr": 0.1} | EAGER,
    "coarse": {"digits": 0, "model_selector_decay": 0.8, "merit_preprune": False} | EAGER,
    "shallow": {"max_depth": 2, "min_samples_split": 30} | EAGER,
    "patient": {"grace_period": 25, "delta": 1e-9, "tau": 0.0, "digits": 2},
}


def river_regression_tree(digits=1, lr=0.01, intercept_lr=0.01, **settings):
    return tree.HoeffdingTreeRegressor(
        splitter=tree.splitter.TEBSTSplitter(digits),
        leaf_model=linear_model.LinearRegression(optim.SGD(lr), intercept_lr=intercept_lr),
        **settings,
    )


def run_river_regression(river, before, after, truth):
    out, nodes = [], []
    for i, (x, learned) in enumerate(zip(river_rows(before), river_rows(after))):
        out.append(river.predict_one(x))
        river.learn_one(learned, float(truth.y[i, 0]), w=float(truth.weight[i]))
        nodes.append(river._root.n_nodes)
    return np.array(out).reshape(-1, 1), nodes


def run_our_regression(bound, before, after, truth):
    out, nodes = np.zeros((len(truth.y), 1)), []
    for i in range(len(out)):
        row = slice(i, i + 1)
        rows = [Rows(x.numeric[row], x.categories[row]) for x in (before, after)]
        bound.chain.learner.test_then_learn(rows[0], Truth(truth.y[row], truth.weight[row]), out[row], rows[1])
        nodes.append(int(bound.state["0/size"][NODES]))
    return out, nodes


def moments_of(var):
    return [var.mean.n, var.mean._mean, var._S]


def search_tree(node):
    """What River's search tree holds, node by node."""
    if node is None:
        return None
    return [node.att_val, moments_of(node.estimator), search_tree(node._left), search_tree(node._right)]


def our_search_tree(state, column, slot, node=0):
    left, right = state["children"][column, slot, node]
    return [
        state["values"][column, slot, node],
        state["moments"][column, slot, node].tolist(),
        our_search_tree(state, column, slot, left) if left else None,
        our_search_tree(state, column, slot, right) if right else None,
    ]


def assert_same_regression(theirs, bound, node=0):
    """Every node, model and search tree below, to the bit; how many branches there are."""
    state = {name.removeprefix("0/"): array for name, array in bound.state.items()}
    links, weights, slot = state["links"][node], state["weights"][node], state["links"][node, SLOT]
    assert state["targets"][node].tolist() == moments_of(theirs.stats)
    assert links[DEPTH] == theirs.depth
    assert weights[TOTAL] == pytest.approx(theirs.total_weight, rel=1e-9)
    if isinstance(theirs, DTBranch):
        nominal = isinstance(theirs, NominalBinaryBranch)
        assert state["column"][node] == key_of("category" if nominal else "numeric", theirs.feature)
        assert (state["value"] if nominal else state["threshold"])[node] == (
            theirs.value if nominal else theirs.threshold
        )
        left = int(links[LEFT])
        return 1 + sum(assert_same_regression(child, bound, left + side) for side, child in enumerate(theirs.children))
    assert links[LEFT] == 0
    assert (links[PASSIVE] == 0) == theirs.is_active()
    if hasattr(theirs, "_leaf_model"):
        coefficients = {f"n{j}": w for j, w in enumerate(state["coefficients"][:, slot]) if w}
        assert coefficients == pytest.approx({name: w for name, w in theirs._leaf_model.weights.items() if w}, rel=1e-9)
        assert state["intercepts"][slot] == pytest.approx(theirs._leaf_model.intercept, rel=1e-9)
    if hasattr(theirs, "_fmse_mean"):
        assert weights[[MEAN_ERROR, MODEL_ERROR]] == pytest.approx([theirs._fmse_mean, theirs._fmse_model], rel=1e-9)
    if theirs.is_active():
        assert weights[ATTEMPT] == theirs.last_split_attempt_at
        for name, splitter in theirs.splitters.items():
            column = int(name[1:])
            if name.startswith("c"):
                rows = zip(state["categories"][column, slot], state["category_moments"][column, slot])
                assert {int(v): m.tolist() for v, m in rows if v} == {
                    v: moments_of(var) for v, var in splitter._statistics.items()
                }
            elif state["used"][column, slot]:
                assert our_search_tree(state, column, slot) == search_tree(splitter._root)
            else:
                assert splitter._root is None
    return 0


def standardised(x):
    numeric = (x.numeric - np.nanmean(x.numeric, 0)) / np.nanstd(x.numeric, 0)
    return Rows(numeric.astype(np.float32), x.categories)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", REGRESSION)
def test_regression_tree_equals_river_node_by_node(name, seed, bind, stream):
    x, truth = stream(1200, seed, "value", numeric=4, categories=0)
    x = standardised(x)
    if seed == 2:  # ties: few values, no missing ones, weights of 1
        x = Rows(np.round(np.nan_to_num(x.numeric) * 2) / 4, x.categories)
        truth = Truth(np.round(truth.y), np.ones_like(truth.weight))
    river = river_regression_tree(**REGRESSION[name])
    expected, their_nodes = run_river_regression(river, x, x, truth)
    bound = bind(HoeffdingTreeRegressor(**REGRESSION[name], max_values=1200), 4, 0, "regression")
    out, nodes = run_our_regression(bound, x, x, truth)
    assert nodes == their_nodes
    branches = assert_same_regression(river._root, bound)
    assert branches > 1 or name in ("default", "patient")
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_regression_tree_with_categories_equals_river_with_binary_splits(seed, bind, stream):
    x, truth = stream(1500, seed, "value")
    x = standardised(x)
    settings = EAGER | {"leaf_prediction": "mean"}
    river = river_regression_tree(**settings, binary_split=True, nominal_attributes=["c0", "c1"])
    expected, their_nodes = run_river_regression(river, x, x, truth)
    bound = bind(HoeffdingTreeRegressor(**settings, max_values=1500, category_values=8), 3, 2, "regression")
    out, nodes = run_our_regression(bound, x, x, truth)
    assert nodes == their_nodes
    assert assert_same_regression(river._root, bound) > 2
    assert np.count_nonzero(bound.state["0/value"]) > 0
    np.testing.assert_allclose(out, expected, rtol=1e-9)


def test_trump_approval_gives_the_tree_and_the_error_of_river(bind):
    rows = list(datasets.TrumpApproval())
    names = list(rows[0][0])
    scaler, before, after = preprocessing.StandardScaler(), [], []
    for x, _ in rows:
        before.append([scaler.transform_one(x)[name] for name in names])
        scaler.learn_one(x)
        after.append([scaler.transform_one(x)[name] for name in names])
    none = np.empty((len(rows), 0), np.uint64)
    before, after = Rows(np.array(before), none), Rows(np.array(after), none)
    truth = Truth(np.array([[y] for _, y in rows], np.float32), np.ones(len(rows), np.float32))
    river = river_regression_tree()
    expected, their_nodes = run_river_regression(river, before, after, truth)
    bound = bind(HoeffdingTreeRegressor(), len(names), 0, "regression")
    out, nodes = run_our_regression(bound, before, after, truth)
    assert nodes == their_nodes
    assert_same_regression(river._root, bound)
    np.testing.assert_allclose(out, expected, rtol=1e-9)
    assert np.abs(out - truth.y).mean() == pytest.approx(0.956, abs=5e-4)

    raw = Rows(np.array([[x[name] for name in names] for x, _ in rows], np.float32), none)
    chained = bind(StandardScaler(half_life=None) | HoeffdingTreeRegressor(), len(names), 0, "regression")
    chained.chain.test_then_learn(raw, truth, out)
    assert np.abs(out - truth.y).mean() == pytest.approx(0.956, abs=5e-3)


def test_numbers_are_rounded_as_decimals():
    rng = np.random.default_rng(0)
    for digits in (0, 1, 2, 6):
        halves = (rng.integers(-10_000, 10_000, 2000) + 0.5) / 10**digits
        for x in (*halves, *rng.normal(size=1000), 0.15, 2.675, 1e17 / 3, -1e100, 0.0):
            for near in (x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf)):
                assert rounded(near, 10.0**digits) == round(float(near), digits), (near, digits)


def test_full_regression_tree_and_full_columns_go_on_learning(bind, stream):
    x, truth = stream(3000, 5, "value")
    x = standardised(x)
    errors = []
    for settings in ({}, {"max_nodes": 6}, {"max_values": 8}):
        bound = bind(HoeffdingTreeRegressor(**EAGER | settings), 3, 2, "regression")
        out = np.empty((3000, 1))
        bound.chain.test_then_learn(x, truth, out)
        size, used = bound.state["0/size"], bound.state["0/used"]
        errors.append(np.abs(out - truth.y)[1000:].mean())
        assert (size[REFUSED] > 0) == ("max_nodes" in settings)
        assert size[NODES] == 5 if "max_nodes" in settings else size[NODES] > 5
        assert used.max() <= settings.get("max_values", 256)
        leaves = [n for n in range(size[NODES]) if bound.state["0/links"][n, LEFT] == 0]
        assert np.isfinite(bound.state["0/targets"][leaves]).all()
    assert max(errors) < 1.5 * errors[0]


@pytest.mark.parametrize(
    ("n", "k", "nodes", "values", "kept"), [(3, 2, 7, 9, 4), (5, 0, 100, 256, 32), (0, 3, 1, 2, 1)]
)
def test_memory_of_a_regression_tree_is_what_the_docstring_says(n, k, nodes, values, kept):
    model = HoeffdingTreeRegressor(max_nodes=nodes, max_values=values, category_values=kept)
    layout = model.layout(Spec(("n",) * n, ("c",) * k, "regression", 1))
    stated = 24 + nodes * 100 + (nodes + 1) // 2 * (12 + n * (16 + 40 * values) + k * (4 + 32 * kept))
    assert sum(array.nbytes for array in allocate(layout).values()) == stated


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"digits": -1}, r"HoeffdingTreeRegressor\(digits=\).*from 0 to 15"),
        ({"leaf_prediction": "nba"}, "expected one of mean, model, adaptive.*'nba'"),
        ({"min_samples_split": 0}, r"\(min_samples_split=\).*at least 1"),
        ({"model_selector_decay": 2}, r"\(model_selector_decay=\).*at most 1"),
    ],
)
def test_a_regression_tree_declared_wrongly_says_what_to_write(settings, match):
    with pytest.raises(DeclarationError, match=match):
        HoeffdingTreeRegressor(**settings)


def test_task_without_a_value_is_refused():
    with pytest.raises(DeclarationError, match=r"a binary task.*HoeffdingTreeClassifier"):
        HoeffdingTreeRegressor().layout(Spec(("a",), (), "binary", 1))


def test_no_kernel_of_trees_and_forests_counts_who_refers_to_an_array():
    """One that does costs a multiple of its work and nothing else would show it."""
    files = [file for file in Path(models.__path__[0]).glob("*.py") if "from .compiling import" in file.read_text()]
    assert {"tree_kernels", "forest_kernels", "tree_explain_kernels", "mondrian_kernels"} <= {
        file.stem for file in files
    }
    kernels = {
        function
        for file in files
        for function in vars(import_module(f"headrace.models.{file.stem}")).values()
        if hasattr(function, "targetoptions")
    }
    assert len(kernels) > 150
    assert [kernel.__name__ for kernel in kernels if kernel.targetoptions.get("_nrt", True)] == []
