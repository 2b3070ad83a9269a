"""Adaptive trees equal River's node by node: the same splits, alternates and swaps at the same example."""

import numpy as np
import pytest
from river import drift, linear_model, optim, tree
from river.tree.nodes.branch import DTBranch

from headrace.errors import DeclarationError
from headrace.models import (
    HoeffdingAdaptiveTreeClassifier,
    HoeffdingAdaptiveTreeRegressor,
    Rows,
    Spec,
    Truth,
    allocate,
)
from headrace.models.alternate_kernels import BEGUN, GIVEN_UP, TAKEN
from headrace.models.random_kernels import uniform
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
    PARENT,
    PASSIVE,
    REFUSED,
    SLOT,
    SLOTS,
    TOTAL,
)
from headrace.models.trees import key_of

EAGER = {"grace_period": 40, "delta": 0.05, "drift_window_threshold": 40, "drift_delta": 0.05}
SETTINGS = {
    "default": {"grace_period": 100},
    "eager": EAGER,
    "majority": {"leaf_prediction": "mc"} | EAGER,
    "bayes": {"leaf_prediction": "nb", "nb_threshold": 60} | EAGER,
    "gini": {"split_criterion": "gini", "n_splits": 25} | EAGER,
    "shallow": {"max_depth": 1, "switch_significance": 0.3} | EAGER,
    "doubtful": {"delta": 1e-6, "tau": 0.0, "grace_period": 60, "drift_window_threshold": 20, "drift_delta": 0.3},
}
DEPENDENT = {"binary_split": True, "nominal_attributes": ["c0", "c1"]}


class Draws:
    """Our generator in the place of River's."""

    def __init__(self, key):
        self.key, self.drawn = key, np.zeros(1, np.uint64)

    def random(self):
        return uniform(self.key, self.drawn, 0)


def drifting(stream, rows, seed, labels="binary", **columns):
    """A stream that changes its mind: labels turn to others, then to noise, then back."""
    x, truth = stream(rows, seed, labels, **columns)
    rng = np.random.default_rng(seed)
    y, quarter = truth.y[:, 0], rows // 4
    classes = 3 if labels == "classes" else 2
    y[quarter : 2 * quarter] = (y[quarter : 2 * quarter] + 1) % classes
    y[2 * quarter : 3 * quarter] = rng.random(quarter) < 0.9
    return x, truth


def river_rows(x):
    """Rows as River sees them: what is missing is not there."""
    for numbers, categories in zip(x.numeric, x.categories, strict=True):
        row = {f"n{j}": float(v) for j, v in enumerate(numbers) if np.isfinite(v)}
        yield row | {f"c{k}": int(h) for k, h in enumerate(categories) if h}


def river_tree(drift_delta=0.002, n_splits=10, **settings):
    settings = {"bootstrap_sampling": False} | settings
    return tree.HoeffdingAdaptiveTreeClassifier(
        splitter=tree.splitter.GaussianSplitter(n_splits), drift_detector=drift.ADWIN(drift_delta), **settings
    )


def run_river(river, x, truth, outputs):
    """Test, then learn; the predictions, and after each row nodes, alternates, and swaps."""
    out, steps = np.zeros((len(truth.y), max(outputs, 2))), []
    for i, row in enumerate(river_rows(x)):
        for c, p in river.predict_proba_one(row).items():
            out[i, c] = p
        river.learn_one(row, int(truth.y[i, 0]), w=float(truth.weight[i]))
        steps.append(their_step(river))
    out[0] = 1 / out.shape[1]  # River: nothing
    return (out[:, 1:2] if outputs == 1 else out), steps


def their_step(river):
    swaps = river._n_alternate_trees, river._n_switch_alternate_trees, river._n_pruned_alternate_trees
    return river._root.n_nodes, *swaps


def run_ours(bound, x, truth):
    out, steps = np.zeros((len(truth.y), bound.spec.outputs)), []
    for i in range(len(out)):
        row = slice(i, i + 1)
        bound.chain.learner.test_then_learn(
            Rows(x.numeric[row], x.categories[row]), Truth(truth.y[row], truth.weight[row]), out[row]
        )
        steps.append((nodes_below(bound.state["0/links"]), *bound.state["0/changes"][[BEGUN, TAKEN, GIVEN_UP]]))
    return out, steps


def nodes_below(links, node=0):
    left = int(links[node, LEFT])
    return 1 + nodes_below(links, left) + nodes_below(links, left + 1) if left else 1


def assert_same_nodes(theirs, bound, node=0, parent=-1):
    """Every node below, alternates too, to the bit; how many branches there are."""
    state = {name.removeprefix("0/"): array for name, array in bound.state.items()}
    links, weights, counts = state["links"][node], state["weights"][node], state["counts"][node]
    ours = {int(c): counts[c] for c in state["classes"][node, : links[KNOWN]]}
    assert ours == pytest.approx(theirs.stats, rel=1e-9)
    assert (links[DEPTH], links[PARENT]) == (theirs.depth, parent)
    assert weights[TOTAL] == pytest.approx(theirs.total_weight, rel=1e-9)
    assert state["errors"][node, :2] == pytest.approx([theirs._mean_error.n, theirs._mean_error.get()])
    width = 0 if theirs.drift_detector.drift_detected else theirs.drift_detector.width
    assert state["window_sums"][node, 0] == width
    if isinstance(theirs, DTBranch):
        nominal = hasattr(theirs, "value")
        assert state["column"][node] == key_of("category" if nominal else "numeric", theirs.feature)
        if nominal:
            assert state["value"][node] == theirs.value
        else:
            assert state["threshold"][node] == pytest.approx(theirs.threshold, rel=1e-9)
        alternate = int(state["alternate"][node])
        assert (alternate != 0) == (theirs._alternate_tree is not None)
        if alternate:
            assert_same_nodes(theirs._alternate_tree, bound, alternate)
        left = int(links[LEFT])
        return 1 + sum(assert_same_nodes(child, bound, left + side, node) for side, child in enumerate(theirs.children))
    assert links[LEFT] == 0
    assert (links[SLOT] >= 0) == theirs.is_active()
    if theirs.is_active():
        assert weights[ATTEMPT] == pytest.approx(theirs.last_split_attempt_at, rel=1e-9)
        if bound.chain.learner.leaf_prediction == "nba":
            right = weights[MAJORITY_RIGHT], weights[BAYES_RIGHT]
            assert right == pytest.approx((theirs._mc_correct_weight, theirs._nb_correct_weight))
    return 0


def assert_nothing_is_lost(bound):
    """Each node and slot in use hangs in the tree or is free, once; nodes that are free are clear."""
    state = {name.removeprefix("0/"): array for name, array in bound.state.items()}
    links, alternate = state["links"], state["alternate"]
    nodes, slots, walk = [0], [], [0]
    while walk:
        at = walk.pop()
        if links[at, LEFT] == 0:
            slots += [links[at, SLOT]] if links[at, SLOT] >= 0 else []
            continue
        below = [links[at, LEFT], links[at, LEFT] + 1]
        walk += below
        nodes += below
        if alternate[at]:
            walk.append(alternate[at])
            nodes += [alternate[at], alternate[at] + 1]
    free = [n for first in state["free_nodes"][: state["free"][0]] for n in (first, first + 1)]
    free_slots = list(state["free_slots"][: state["free"][1]])
    assert sorted(nodes + free) == list(range(state["size"][NODES]))
    assert sorted(slots + free_slots) == list(range(state["size"][SLOTS]))
    for name in ("links", "column", "threshold", "value", "weights", "alternate", "errors", "window_totals"):
        assert not state[name][free].any(), name


@pytest.mark.parametrize(("labels", "outputs"), [("binary", 1), ("classes", 3)])
@pytest.mark.parametrize("name", SETTINGS)
def test_adaptive_tree_equals_river_node_by_node_and_swap_by_swap(name, labels, outputs, bind, stream):
    x, truth = drifting(stream, 2400, 1, labels, numeric=4, categories=0)
    river = river_tree(**SETTINGS[name])
    expected, their_steps = run_river(river, x, truth, outputs)
    model = HoeffdingAdaptiveTreeClassifier(bootstrap_sampling=False, **SETTINGS[name])
    bound = bind(model, 4, 0, "binary" if outputs == 1 else "multiclass", outputs)
    out, steps = run_ours(bound, x, truth)
    assert steps == their_steps
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-12)
    assert_same_nodes(river._root, bound)
    assert_nothing_is_lost(bound)
    _, begun, taken, _ = steps[-1]
    assert begun > 0
    assert taken > 0 or name != "shallow"


@pytest.mark.parametrize("bootstrap", [False, True])
def test_adaptive_tree_with_categories_and_draws_equals_river(bootstrap, bind, stream):
    x, truth = drifting(stream, 3000, 2)
    river = river_tree(**EAGER | DEPENDENT, bootstrap_sampling=bootstrap)
    bound = bind(HoeffdingAdaptiveTreeClassifier(bootstrap_sampling=bootstrap, seed=5, **EAGER), 3, 2, "binary")
    river._rng = Draws(np.uint64(5))
    expected, their_steps = run_river(river, x, truth, 1)
    out, steps = run_ours(bound, x, truth)
    assert steps == their_steps
    np.testing.assert_allclose(out, expected, rtol=1e-8, atol=1e-12)
    assert_same_nodes(river._root, bound)
    assert_nothing_is_lost(bound)
    assert (bound.state["0/drawn"][0] > 3000) == bootstrap
    assert bound.state["0/drawn"][0] == river._rng.drawn[0]


# --- regression

VALUES = {
    "default": {"grace_period": 100},
    "eager": EAGER,
    "mean": {"leaf_prediction": "mean", "tau": 0.3} | EAGER,
    "model": {"leaf_prediction": "model", "lr": 0.02} | EAGER,
    "shallow": {"max_depth": 1, "switch_significance": 0.3} | EAGER,
    "doubtful": {"delta": 1e-6, "tau": 0.0, "grace_period": 60, "drift_window_threshold": 20, "drift_delta": 0.3},
}


def drifting_values(stream, rows, seed, **columns):
    """As `drifting`, of values; numbers are scaled."""
    x, truth = stream(rows, seed, "value", **columns)
    numeric = (x.numeric - np.nanmean(x.numeric, 0)) / np.nanstd(x.numeric, 0)
    quarter = rows // 4
    truth.y[quarter : 2 * quarter] *= -1
    truth.y[2 * quarter : 3 * quarter] = 3 + np.random.default_rng(seed).normal(size=(quarter, 1)) / 4
    return Rows(numeric.astype(np.float32), x.categories), truth


def river_regression_tree(drift_delta=0.002, lr=0.01, **settings):
    settings = {"bootstrap_sampling": False} | settings
    return tree.HoeffdingAdaptiveTreeRegressor(
        splitter=tree.splitter.TEBSTSplitter(1),
        leaf_model=linear_model.LinearRegression(optim.SGD(lr)),
        drift_detector=drift.ADWIN(drift_delta),
        **settings,
    )


def run_river_regression(river, x, truth):
    out, steps = [], []
    for i, row in enumerate(river_rows(x)):
        out.append(river.predict_one(row))
        river.learn_one(row, float(truth.y[i, 0]), w=float(truth.weight[i]))
        steps.append(their_step(river))
    return np.array(out).reshape(-1, 1), steps


def moments_of(var):
    return pytest.approx([var.mean.n, var.mean.get(), var._S], rel=1e-9, abs=1e-9)


def assert_same_regression(theirs, bound, node=0, parent=-1):
    """Every node below, alternates too."""
    state = {name.removeprefix("0/"): array for name, array in bound.state.items()}
    links, weights = state["links"][node], state["weights"][node]
    assert state["targets"][node].tolist() == moments_of(theirs.stats)
    assert state["errors"][node].tolist() == moments_of(theirs._error_tracker)
    assert (links[DEPTH], links[PARENT]) == (theirs.depth, parent)
    assert weights[TOTAL] == pytest.approx(theirs.total_weight, rel=1e-9)
    if isinstance(theirs, DTBranch):
        nominal = hasattr(theirs, "value")
        assert state["column"][node] == key_of("category" if nominal else "numeric", theirs.feature)
        asked = (state["value"] if nominal else state["threshold"])[node]
        assert asked == (theirs.value if nominal else theirs.threshold)
        alternate = int(state["alternate"][node])
        assert (alternate != 0) == (theirs._alternate_tree is not None)
        if alternate:
            assert_same_regression(theirs._alternate_tree, bound, alternate)
        for side, child in enumerate(theirs.children):
            assert_same_regression(child, bound, int(links[LEFT]) + side, node)
        return
    assert links[LEFT] == 0
    assert (links[PASSIVE] == 0) == theirs.is_active()
    if hasattr(theirs, "_leaf_model"):
        coefficients = {f"n{j}": w for j, w in enumerate(state["coefficients"][:, links[SLOT]]) if w}
        assert coefficients == pytest.approx({name: w for name, w in theirs._leaf_model.weights.items() if w}, rel=1e-6)
        assert state["intercepts"][links[SLOT]] == pytest.approx(theirs._leaf_model.intercept, rel=1e-6)
    if hasattr(theirs, "_fmse_mean"):
        assert weights[[MEAN_ERROR, MODEL_ERROR]] == pytest.approx([theirs._fmse_mean, theirs._fmse_model], rel=1e-6)


@pytest.mark.parametrize("name", VALUES)
def test_adaptive_regression_tree_equals_river_node_by_node_and_swap_by_swap(name, bind, stream):
    x, truth = drifting_values(stream, 2000, 1, numeric=4, categories=0)
    river = river_regression_tree(**VALUES[name])
    expected, their_steps = run_river_regression(river, x, truth)
    model = HoeffdingAdaptiveTreeRegressor(bootstrap_sampling=False, max_values=2000, **VALUES[name])
    bound = bind(model, 4, 0, "regression")
    out, steps = run_ours(bound, x, truth)
    assert steps == their_steps
    np.testing.assert_allclose(out, expected, rtol=1e-7, atol=1e-9)
    assert_same_regression(river._root, bound)
    assert_nothing_is_lost(bound)
    _, begun, taken, _ = steps[-1]
    assert begun > 0
    assert taken > 0 or name != "shallow"


@pytest.mark.parametrize("bootstrap", [False, True])
def test_adaptive_regression_tree_with_categories_and_draws_equals_river(bootstrap, bind, stream):
    x, truth = drifting_values(stream, 2400, 2)
    settings = {"leaf_prediction": "mean"} | EAGER
    river = river_regression_tree(**settings | DEPENDENT, bootstrap_sampling=bootstrap)
    model = HoeffdingAdaptiveTreeRegressor(
        bootstrap_sampling=bootstrap, seed=5, max_values=2400, category_values=8, **settings
    )
    bound = bind(model, 3, 2, "regression")
    river._rng = Draws(np.uint64(5))
    expected, their_steps = run_river_regression(river, x, truth)
    out, steps = run_ours(bound, x, truth)
    assert steps == their_steps
    np.testing.assert_allclose(out, expected, rtol=1e-7, atol=1e-9)
    assert_same_regression(river._root, bound)
    assert_nothing_is_lost(bound)
    assert bound.state["0/drawn"][0] == river._rng.drawn[0]


# --- what both keep


def test_full_adaptive_tree_goes_on_and_finds_room_again(bind, stream):
    x, truth = drifting(stream, 6000, 3)
    bound = bind(HoeffdingAdaptiveTreeClassifier(max_nodes=11, **EAGER), 3, 2, "binary")
    used = []
    for i in range(0, 6000, 50):
        bound.chain.learn(Rows(x.numeric[i : i + 50], x.categories[i : i + 50]), Truth(*(a[i : i + 50] for a in truth)))
        used.append(int(bound.state["0/size"][NODES] - 2 * bound.state["0/free"][0]))
    assert bound.state["0/size"][REFUSED] > 0
    assert max(used) <= 11
    full = used.index(7)  # the last four are for leaves beside branches
    assert min(used[full:]) < 7  # a swap gave nodes back
    assert bound.state["0/changes"][BEGUN] > 1
    assert_nothing_is_lost(bound)


def test_adaptive_tree_learns_anew_what_a_tree_does_not(bind, stream):
    """After the labels have turned, the adaptive tree is soon right again."""
    x, truth = stream(8000, 4)
    truth.y[4000:] = 1 - truth.y[4000:]
    wrong = []
    for settings in ({"drift_delta": 0.002}, {"drift_delta": 1e-300}):
        bound = bind(HoeffdingAdaptiveTreeClassifier(grace_period=100, **settings), 3, 2, "binary")
        out = np.empty((8000, 1))
        bound.chain.test_then_learn(x, truth, out)
        wrong.append(((out > 0.5) != truth.y)[6000:].mean())
    assert wrong[0] < 0.9 * wrong[1]


def test_seed_makes_the_draws_and_nothing_is_drawn_without_them(bind, stream):
    part = stream(500, 0)
    bits = {}
    for seed, bootstrap in ((0, True), (1, True), (0, False), (1, False)):
        bound = bind(HoeffdingAdaptiveTreeClassifier(seed=seed, bootstrap_sampling=bootstrap), 3, 2, "binary")
        bound.chain.learn(*part)
        bits[seed, bootstrap] = bound.bits()
    assert bits[0, True] != bits[1, True]
    assert bits[0, False] == bits[1, False]


@pytest.mark.parametrize(("n", "k", "classes", "nodes", "values"), [(3, 2, 2, 7, 4), (5, 0, 3, 100, 32)])
def test_memory_of_an_adaptive_tree_is_what_the_docstring_says(n, k, classes, nodes, values):
    model = HoeffdingAdaptiveTreeClassifier(max_nodes=nodes, category_values=values)
    spec = Spec(("n",) * n, ("c",) * k, "binary" if classes == 2 else "multiclass", 1 if classes == 2 else classes)
    slots = (nodes + 1) // 2
    plain = 24 + nodes * (76 + 12 * classes)
    plain += slots * (4 + n * (4 + 48 * classes) + k * (4 + 16 * classes + values * (8 + 8 * classes)))
    stated = plain + 48 + nodes * 2740 + slots * 8
    assert sum(array.nbytes for array in allocate(model.layout(spec)).values()) == stated


def test_memory_of_an_adaptive_regression_tree_is_what_the_docstring_says():
    n, k, nodes, values, kept = 3, 2, 7, 9, 4
    model = HoeffdingAdaptiveTreeRegressor(max_nodes=nodes, max_values=values, category_values=kept)
    layout = model.layout(Spec(("n",) * n, ("c",) * k, "regression", 1))
    plain = 24 + nodes * 100 + (nodes + 1) // 2 * (12 + n * (16 + 40 * values) + k * (4 + 32 * kept))
    assert sum(array.nbytes for array in allocate(layout).values()) == plain + 48 + nodes * 2740 + (nodes + 1) // 2 * 8


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"drift_delta": 0}, r"HoeffdingAdaptiveTreeClassifier\(drift_delta=\).*above 0"),
        ({"switch_significance": 2}, r"\(switch_significance=\).*at most 1"),
        ({"drift_window_threshold": 0}, r"\(drift_window_threshold=\).*at least 1"),
        ({"bootstrap_sampling": 1}, r"\(bootstrap_sampling=\).*True or False"),
        ({"seed": -1}, r"\(seed=\).*whole number"),
        ({"grace_period": 0}, r"HoeffdingAdaptiveTreeClassifier\(grace_period=\)"),
    ],
)
def test_an_adaptive_tree_declared_wrongly_says_what_to_write(settings, match):
    with pytest.raises(DeclarationError, match=match):
        HoeffdingAdaptiveTreeClassifier(**settings)


def test_regression_is_referred_to_the_adaptive_regressor():
    with pytest.raises(DeclarationError, match=r"a regression task.*HoeffdingAdaptiveTreeRegressor"):
        HoeffdingAdaptiveTreeClassifier().layout(Spec(("a",), (), "regression", 1))


def test_classes_are_referred_to_the_adaptive_classifier():
    with pytest.raises(DeclarationError, match=r"HoeffdingAdaptiveTreeRegressor.*HoeffdingAdaptiveTreeClassifier"):
        HoeffdingAdaptiveTreeRegressor().layout(Spec(("a",), (), "binary", 1))
    with pytest.raises(DeclarationError, match=r"HoeffdingAdaptiveTreeRegressor\(drift_delta=\)"):
        HoeffdingAdaptiveTreeRegressor(drift_delta=0)
