"""Mondrian forests equal River's node by node where River draws our random numbers; with its own, within its spread."""

import numpy as np
import pytest
from river import forest
from river.tree.mondrian.mondrian_tree_nodes import MondrianBranch

from headrace.models import AMFClassifier, AMFRegressor
from headrace.models.mondrian_kernels import LEFT, PARENT, TIME, TOTAL, TREE, WEIGHT, key_of_tree, uniform
from headrace.models.trees import key_of

TREES = 3
PLAIN = {"n_estimators": TREES, "max_nodes": 4001}


class Draws:
    """Our random numbers in the place of those of one of River's trees; `row` is the one that it learns."""

    def __init__(self, seed, tree):
        self.key, self.drawn, self.row = np.uint64(key_of_tree(np.uint64(seed), tree)), np.zeros(1, np.uint64), {}

    def random(self):
        return uniform(self.key, self.drawn, 0)

    def uniform(self, low, high):
        return low + (high - low) * self.random()

    def choices(self, population, weights, k):
        """One of the columns, laid end to end: numbers before categories, the indicator that is 1 before another."""
        assert k == 1
        ends = sorted(zip(population, weights), key=lambda end: (end[0][0] != "n", end[0][1], -self.row[end[0]]))
        at = self.random() * sum(weight for _, weight in ends)
        for name, weight in ends:
            at -= weight
            if at < 0:
                return [name]
        return [ends[-1][0]]


def river_rows(x):
    """Dicts without what is missing; a category as 64 indicators of the first 6 bits of its hash."""
    for numbers, categories in zip(x.numeric, x.categories, strict=True):
        row = {f"n{j}": float(v) for j, v in enumerate(numbers) if np.isfinite(v)}
        for k, value in enumerate(map(int, categories)):
            if value:
                row |= {f"c{k}={bucket:02}": float(bucket == value >> 58) for bucket in range(64)}
        yield row


def their_forest(make, seed, classes, **settings):
    """A forest of River that draws our numbers and knows from the start how many classes there are."""
    river = make(n_estimators=TREES, seed=1, **settings)
    river._initialize_trees()
    if classes:
        river._classes = set(range(classes))
    for t, tree in enumerate(river.data):
        tree._rng = Draws(seed, t)
        if classes:
            tree._classes, tree._idx_to_class = set(range(classes)), list(range(classes))
            tree._class_to_idx = {c: c for c in range(classes)}
    return river


def run_theirs(river, x, truth, classes):
    """Test, then learn: predictions (B, C) or (B, 1)."""
    out = np.zeros((len(truth.y), max(classes, 1)))
    for i, row in enumerate(river_rows(x)):
        if classes:
            out[i] = [river.predict_proba_one(row)[c] for c in range(classes)]
        else:
            out[i] = river.predict_one(row)
        for tree in river.data:
            tree._rng.row = row
        river.learn_one(row, int(truth.y[i, 0]) if classes else float(truth.y[i, 0]))
    return out


def assert_same_tree(state, t, theirs, spec, classes):
    """Each node of ours holds what the node of River's tree in its place holds."""
    state = {name.removeprefix("0/"): array for name, array in state.items()}
    room = len(state["links"]) // TREES
    names = {int(key_of("numeric", name)): (name, None) for name in spec.numeric}
    names |= {int(key_of("category", name)): (name, None) for name in spec.categories}
    pairs, nodes = [(t * room, theirs._root)], 0
    while pairs:
        node, their = pairs.pop()
        nodes += 1
        np.testing.assert_allclose(
            state["numbers"][node, [TIME, TOTAL, WEIGHT, TREE]],
            [their.time, their.n_samples, their.weight, their.log_weight_tree],
            rtol=1e-9,
            atol=1e-9,
        )
        told = np.pad(their.counts, (0, classes - len(their.counts))) if classes else [their._mean.get()]
        np.testing.assert_allclose(state["told"][node], told, rtol=1e-9)
        for j, name in enumerate(spec.numeric):
            assert bool(state["known"][j, node]) == (name in their.memory_range_min)
            if name in their.memory_range_min:
                bounds = their.memory_range_min[name], their.memory_range_max[name]
                assert state["ranges"][j, node].tolist() == list(bounds)
        for k, name in enumerate(spec.categories):
            came = [int(state["buckets"][k, node]) >> bucket & 1 for bucket in range(64)]
            assert came == [their.memory_range_max.get(f"{name}={bucket:02}", 0) for bucket in range(64)]
        left = state["links"][node, LEFT]
        assert (left == 0) == their.is_leaf
        if left:
            assert state["links"][[left, left + 1], PARENT].tolist() == [node, node]
            asked = names[int(state["column"][node])][0]
            if asked in spec.numeric:
                assert their.feature == asked
                assert state["threshold"][node] == pytest.approx(their.threshold, rel=1e-9)
            else:
                assert their.feature == f"{asked}={int(state['threshold'][node]):02}"
            pairs += [(left, their.children[0]), (left + 1, their.children[1])]
    assert nodes == state["size"][t] == theirs._n_nodes
    assert state["drawn"][t] == theirs._rng.drawn[0]
    return nodes


def by_the_heavier(branch):
    left, right = branch.children
    return (1, right) if left.n_samples < right.n_samples else (0, left)


@pytest.mark.parametrize(
    ("labels", "settings", "categories"),
    [
        ("binary", {}, 2),
        ("classes", {"dirichlet": 0.1, "split_pure": True}, 1),
        ("classes", {"step": 0.3, "max_nodes": 41}, 0),
        ("binary", {"use_aggregation": False}, 1),
        ("value", {"step": 0.05}, 2),
        ("value", {"max_nodes": 75}, 1),
        ("value", {"use_aggregation": False}, 0),
    ],
)
def test_every_node_and_prediction_equals_that_of_river_with_the_same_draws(
    labels, settings, categories, bind, stream, monkeypatch
):
    """River asks the child of larger loss where a column is missing; both here the one that has seen more."""
    monkeypatch.setattr(MondrianBranch, "most_common_path", by_the_heavier)
    x, truth = stream(250, 3, labels, numeric=3, categories=categories)
    truth.weight[:] = 1
    task, classes = {"binary": ("binary", 2), "classes": ("multiclass", 3), "value": ("regression", 0)}[labels]
    ours, theirs = (AMFClassifier, forest.AMFClassifier) if classes else (AMFRegressor, forest.AMFRegressor)
    river = their_forest(theirs, 7, classes, **settings)
    expected = run_theirs(river, x, truth, classes)
    bound = bind(ours(seed=7, **PLAIN | settings), 3, categories, task)
    out = np.zeros((250, bound.spec.outputs))
    bound.chain.test_then_learn(x, truth, out)
    np.testing.assert_allclose(out, expected[:, 1:] if labels == "binary" else expected, rtol=1e-9, atol=1e-12)
    nodes = [assert_same_tree(bound.state, t, river.data[t], bound.spec, classes) for t in range(TREES)]
    assert min(nodes) > 30
