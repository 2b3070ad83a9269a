"""A forest of values in Numba: as that of classes, but for how far off it was in place of whether it was wrong."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .adwin_kernels import hear
from .compiling import inlined, kernel
from .forest_kernels import DRIFTS, GROWS, SERVES, WARNINGS
from .moments_kernels import fold_in, moments_at, variance_of
from .random_kernels import key_of_member, poisson
from .regression_tree_kernels import clear_model, learn_value, value_of
from .tree_nodes import NODES, SLOTS, Columns, RegressionSettings, RegressionTree


class RegressionForest(NamedTuple):
    """What a forest keeps beside a `RegressionTree`, whose arrays 2 T trees share, as in `Forest`."""

    members: ndarray  # int32 (T, 2): which of its trees serves, whether the other one grows
    deviations: ndarray  # float64 (T, 3): count, mean and sum of squares of label less prediction
    changes: ndarray  # int64 (T, 2): warnings, drifts
    window_totals: ndarray  # float64 (T, 2, LEVELS, BUCKETS + 1): the windows of `hear`, for warnings and for drifts
    window_held: ndarray  # int64 (T, 2, LEVELS)
    window_sums: ndarray  # float64 (T, 2, 3)
    drawn: ndarray  # uint64 (T,): random numbers drawn


class RegressionForestSettings(NamedTuple):
    """What a forest of values is told beside `RegressionSettings`."""

    seed: np.uint64
    least: float  # exp(-lambda)
    median: bool  # or mean
    warning_delta: float  # 0: no warnings
    drift_delta: float  # 0: no drifts


@kernel
def clear_regression_tree(at: int, tree: RegressionTree) -> None:
    """Make one of the trees of a forest as if it had never been used."""
    size = tree.size[at]
    begin = at * (tree.links.shape[0] // tree.size.shape[0])
    end = begin + int(size[NODES])
    tree.links[begin:end] = 0
    tree.column[begin:end] = 0
    tree.threshold[begin:end] = 0.0
    tree.value[begin:end] = 0
    tree.weights[begin:end] = 0.0
    tree.targets[begin:end] = 0.0
    first = at * (tree.seen.shape[0] // tree.size.shape[0])
    for slot in range(first, first + int(size[SLOTS])):
        clear_model(slot, tree)
    size[:] = 0


@inlined
def watch_value_member(
    t: int, deviation: float, tree: RegressionTree, forest: RegressionForest, choices: RegressionForestSettings
) -> None:
    """Tell a member of a forest by how much it was wrong: a warning begins a tree in the background, a drift uses it.

    Heard is where the deviation lies between three standard deviations below 0 and three above: 0 to 1, mostly.
    """
    members = forest.members[t]
    totals, held, sums = forest.window_totals[t], forest.window_held[t], forest.window_sums[t]
    fold_in(deviation, 1.0, forest.deviations[t])
    spread = math.sqrt(variance_of(moments_at(forest.deviations[t])))
    heard = (deviation + 3.0 * spread) / (6.0 * spread) if spread > 0.0 else 0.5
    if choices.warning_delta > 0.0 and hear(heard, choices.warning_delta, totals[0], held[0], sums[0]):
        clear_regression_tree(2 * t + 1 - int(members[SERVES]), tree)
        members[GROWS] = 1
        forest.changes[t, WARNINGS] += 1
    if choices.drift_delta > 0.0 and hear(heard, choices.drift_delta, totals[1], held[1], sums[1]):
        clear_regression_tree(2 * t + int(members[SERVES]), tree)
        if members[GROWS] != 0:
            members[SERVES] = 1 - members[SERVES]
            members[GROWS] = 0
            totals[0] = 0.0
            held[0] = 0
            sums[0] = 0.0
        forest.changes[t, DRIFTS] += 1


@kernel
def middle_of(values: ndarray, median: bool) -> float:
    """The median or the mean of a few numbers, (T,), which are sorted in place."""
    T = values.shape[0]
    if not median:
        total = 0.0
        for k in range(T):
            total += values[k]
        return total / T
    for k in range(1, T):
        x = values[k]
        at = k
        while at > 0 and values[at - 1] > x:
            values[at] = values[at - 1]
            at -= 1
        values[at] = x
    return 0.5 * (values[(T - 1) // 2] + values[T // 2])


@kernel
def predict_forest_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, forest: RegressionForest,
    settings: RegressionSettings, choices: RegressionForestSettings, columns: Columns, values: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); the state is only read. Arguments as in `learn_forest_values`."""
    B, T = numeric.shape[0], forest.members.shape[0]
    nodes = tree.links.shape[0] // (2 * T)
    for t in range(T):
        at = 2 * t + int(forest.members[t, SERVES])
        for i in range(B):
            values[i, t], _, _ = value_of(
                numeric[i], categories[i], tree, tree.size[at], at * nodes, settings, columns
            )  # fmt: skip
    for i in range(B):
        out[i, 0] = middle_of(values[i], choices.median)


@kernel
def learn_forest_values(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray,
    tree: RegressionTree, forest: RegressionForest, settings: RegressionSettings, choices: RegressionForestSettings,
    columns: Columns, stack: ndarray, kept: ndarray, places: ndarray, values: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Member by member, and row by row: predict before[i], then learn numeric[i]. Arguments as in `learn_values`, and

    same             whether before and numeric are one array: rows are then predicted once
    forest           the rest of the state, changed in place
    places           int32 (N + K,)  scratch
    values           float64 (B, T)  scratch; (0, T) where no predictions are wanted

    Result does not depend on where the stream is cut.
    Source: Gomes and others (2018), Adaptive random forests for data stream regression.
    """
    B, T = numeric.shape[0], forest.members.shape[0]
    nodes = tree.links.shape[0] // (2 * T)
    wanted = out.shape[0] > 0
    for t in range(T):
        key = key_of_member(choices.seed, t)
        for i in range(B):
            serving = 2 * t + int(forest.members[t, SERVES])
            predicted, node, asked = 0.0, -1, True
            if wanted:
                predicted, node, asked = value_of(
                    before[i], categories[i], tree, tree.size[serving], serving * nodes, settings, columns
                )
                values[i, t] = predicted
            label = np.float64(y[i, 0])
            w = np.float64(weight[i])
            if not (label - label == 0.0 and w > 0.0 and w - w == 0.0):
                continue
            if not (wanted and same):
                predicted, node, asked = value_of(
                    numeric[i], categories[i], tree, tree.size[serving], serving * nodes, settings, columns
                )
            many = poisson(choices.least, key, forest.drawn, t)
            if many == 0:
                continue
            for which in range(2):  # the tree in the background first, as River
                if which == 1 or forest.members[t, GROWS] != 0:
                    at, own_leaf = (serving, node) if which == 1 else (serving ^ 1, -1)
                    learn_value(
                        numeric[i], categories[i], label, w * many, tree, tree.size[at], at, settings, columns, stack,
                        kept, places, key, forest.drawn, t, own_leaf, asked,
                    )  # fmt: skip
            watch_value_member(t, label - predicted, tree, forest, choices)
    for i in range(B if wanted else 0):
        out[i, 0] = middle_of(values[i], choices.median)
