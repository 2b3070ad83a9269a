"""What each feature adds to the value of a tree, or of several, in Numba: along a row's path, and at its leaf.

Letters and rules as in tree_nodes.py; A nodes of all trees.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from .adaptive_regression_tree_kernels import learn_adaptive_values
from .alternate_kernels import Adaptive, AdaptiveSettings
from .compiling import inlined, kernel
from .forest_kernels import SERVES
from .regression_forest_kernels import RegressionForest, RegressionForestSettings, learn_forest_values
from .regression_tree_kernels import learn_values, value_of
from .tree_explain_kernels import Explaining, add_children, add_up, add_weighted, put_in_order
from .tree_nodes import (
    LARGEST,
    LARGEST_VALUE,
    LEFT,
    MEAN_ERROR,
    MEAN_ONLY,
    MEAN_OR_MODEL,
    MODEL_ERROR,
    NODES,
    PARENT,
    SLOT,
    Columns,
    RegressionSettings,
    RegressionTree,
    leaf_of,
    place_of,
    step_down,
)


@inlined
def mean_of(sums: ndarray, node: int) -> float:
    """The mean of the targets below a node; 0 where there are none."""
    mean = sums[node, 1] / sums[node, 0] if sums[node, 0] > 0.0 else 0.0
    return min(max(mean, -LARGEST_VALUE), LARGEST_VALUE)


@kernel
def sum_below(root: int, tree: RegressionTree, room: Explaining) -> int:
    """Write weight and sum of the targets below each node to room.sums; how many nodes room.order then has."""
    many = put_in_order(root, tree.links, room.order)
    order = room.order[:many]
    for at in range(many):
        write_target(order[at], tree, room.sums)
    add_up(tree.links, order, room.sums)
    return many


@inlined
def write_target(leaf: int, tree: RegressionTree, sums: ndarray) -> None:
    """Write weight and sum of the targets of a leaf to its row of sums (A, 2)."""
    count, mean = tree.targets[leaf, 0], tree.targets[leaf, 1]
    sums[leaf, 0] = count
    sums[leaf, 1] = count * mean


@inlined
def go_on_with_value(
    node: int, numeric: ndarray, categories: ndarray, tree: RegressionTree, columns: Columns, sums: ndarray,
    out: ndarray,
) -> tuple[int, bool]:  # fmt: skip
    """As `go_on`, of what the mean changes; out (N + K + 1,)."""
    child, there = step_down(
        node, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
        columns.places,
    )  # fmt: skip
    place = place_of(tree.column[node], columns.keys, columns.places)
    out[place if place >= 0 else out.shape[0] - 1] += mean_of(sums, child) - mean_of(sums, node)
    return child, there


@inlined
def add_model(
    leaf: int, weight: float, numeric: ndarray, tree: RegressionTree, settings: RegressionSettings, sums: ndarray,
    out: ndarray,
) -> None:  # fmt: skip
    """Add to out (N + K + 1,), by a weight, by what a leaf that predicts by its linear model differs from its mean."""
    errors = tree.weights[leaf]
    if settings.prediction == MEAN_ONLY or (
        settings.prediction == MEAN_OR_MODEL and errors[MEAN_ERROR] < errors[MODEL_ERROR]
    ):
        return
    slot = int(tree.links[leaf, SLOT])
    out[out.shape[0] - 1] += weight * (tree.intercepts[slot] - mean_of(sums, leaf))
    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            part = tree.coefficients[j, slot] * min(max(x, -LARGEST), LARGEST)
            out[j] += weight * min(max(part, -LARGEST_VALUE), LARGEST_VALUE)


@kernel
def explain_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, settings: RegressionSettings, columns: Columns,
    room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the predictions of B rows to out (B, 1, N + K + 1); the state is only read.

    Last is the mean of all targets that the leaves hold. A branch adds to its column by what the mean of what is below
    changes on the way to the child; one whose feature is gone adds to the last. Where a leaf predicts by its linear
    model each column adds its weight times its value besides, and to the last comes by what the intercept differs from
    the mean of the leaf.
    Other arguments as in `learn_values`.
    Source: Saabas (2014), Interpreting random forests.
    """
    if tree.size[NODES] == 0:
        out[:] = 0.0
        return
    sum_below(0, tree, room)
    for i in range(numeric.shape[0]):
        explain_value(numeric[i], categories[i], tree, settings, columns, room.sums, out[i, 0])


@inlined
def explain_value(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, settings: RegressionSettings, columns: Columns,
    sums: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_values`, of one row to out (N + K + 1,), of a tree whose sums are there."""
    out[:] = 0.0
    out[out.shape[0] - 1] = mean_of(sums, 0)
    node = 0
    while tree.links[node, LEFT] != 0:
        node, _ = go_on_with_value(node, numeric, categories, tree, columns, sums, out)
    add_model(node, 1.0, numeric, tree, settings, sums, out)
    for f in range(out.shape[0]):
        out[f] = min(max(np.float64(out[f]), -LARGEST_VALUE), LARGEST_VALUE)


@inlined
def sum_learned(
    root: int, numeric: ndarray, categories: ndarray, tree: RegressionTree, columns: Columns, sums: ndarray
) -> None:
    """Make sums what `sum_below` would, where since then a row was learned below the root and no leaf has split."""
    node, _ = leaf_of(
        root, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
        columns.places,
    )  # fmt: skip
    write_target(node, tree, sums)
    node = int(tree.links[node, PARENT])
    while node >= 0:
        add_children(node, tree.links, sums)
        node = int(tree.links[node, PARENT])


@kernel
def explain_then_learn_values(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray,
    tree: RegressionTree, settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray,
    room: Explaining, out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_values`."""
    counted = 0  # nodes, by the sums as they stand
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        if counted == 0 or counted != tree.size[NODES]:
            explain_values(before[row], categories[row], tree, settings, columns, room, contributions[row])
            counted = int(tree.size[NODES])
        else:
            explain_value(before[i], categories[i], tree, settings, columns, room.sums, contributions[i, 0])
        learn_values(
            before[row], numeric[row], same, categories[row], y[row], weight[row], tree, settings, columns, stack,
            kept, out[row],
        )  # fmt: skip
        if counted > 0:
            sum_learned(0, numeric[i], categories[i], tree, columns, room.sums)


@inlined
def add_value(
    leaf: int, node: int, weight: float, numeric: ndarray, tree: RegressionTree, settings: RegressionSettings,
    room: Explaining,
) -> None:  # fmt: skip
    """As `add_leaf`, of what a leaf predicts."""
    whole = room.whole[0]
    add_weighted(weight, room.way, room.whole)
    whole[whole.shape[0] - 1] += weight * (mean_of(room.sums, leaf) - mean_of(room.sums, node))
    add_model(leaf, weight, numeric, tree, settings, room.sums, whole)


@inlined
def write_values(total: float, whole: ndarray, out: ndarray) -> None:
    """Write what several leaves added, by the total of their weights, to out (1, N + K + 1)."""
    for f in range(out.shape[1]):
        out[0, f] = min(max(whole[0, f] / total, -LARGEST_VALUE), LARGEST_VALUE)


@kernel
def explain_adaptive_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, adaptive: Adaptive, settings: RegressionSettings,
    columns: Columns, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_values`, of an adaptive tree: the mean over its leaf and the alternates, as in `explain_adaptive`."""
    if tree.size[NODES] == 0:
        out[:] = 0.0
        return
    sum_adaptive(tree, adaptive, room)
    for i in range(numeric.shape[0]):
        explain_adaptive_value(numeric[i], categories[i], tree, adaptive, settings, columns, room, out[i])


@kernel
def sum_adaptive(tree: RegressionTree, adaptive: Adaptive, room: Explaining) -> None:
    """As `sum_below`, of an adaptive tree and its alternates."""
    for at in range(sum_below(0, tree, room)):
        other = int(adaptive.alternate[room.order[at]])
        if other != 0:
            write_target(other, tree, room.sums)


@inlined
def sum_learned_adaptive(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, adaptive: Adaptive, columns: Columns, sums: ndarray
) -> None:
    """Make sums what `sum_adaptive` would, where since then a row was learned and no node came or went."""
    node = 0
    while tree.links[node, LEFT] != 0:
        other = int(adaptive.alternate[node])
        if other != 0:
            write_target(other, tree, sums)
        node, _ = step_down(
            node, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
            columns.places,
        )  # fmt: skip
    sum_learned(node, numeric, categories, tree, columns, sums)


@inlined
def explain_adaptive_value(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, adaptive: Adaptive, settings: RegressionSettings,
    columns: Columns, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_adaptive_values`, of one row to out (1, N + K + 1), of a tree whose sums are there."""
    F = out.shape[1] - 1
    room.way[:] = 0.0
    room.whole[:] = 0.0
    room.way[0, F] = mean_of(room.sums, 0)
    many = 0.0
    node, there = 0, True
    while tree.links[node, LEFT] != 0:
        if adaptive.alternate[node] != 0:
            times = 1.0 if there else 2.0  # as it predicts
            add_value(int(adaptive.alternate[node]), node, times, numeric, tree, settings, room)
            many += times
        node, there = go_on_with_value(node, numeric, categories, tree, columns, room.sums, room.way[0])
    add_value(node, node, 1.0, numeric, tree, settings, room)
    write_values(many + 1.0, room.whole, out)


@kernel
def explain_then_learn_adaptive_values(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, tree: RegressionTree,
    adaptive: Adaptive, settings: RegressionSettings, choices: AdaptiveSettings, columns: Columns, stack: ndarray,
    kept: ndarray, places: ndarray, path: ndarray, room: Explaining, out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_adaptive_values`."""
    counted = False  # whether the sums are those of the tree as it stands
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        if counted:
            explain_adaptive_value(
                before[i], categories[i], tree, adaptive, settings, columns, room, contributions[i]
            )  # fmt: skip
        else:
            explain_adaptive_values(
                before[row], categories[row], tree, adaptive, settings, columns, room, contributions[row]
            )
            counted = tree.size[NODES] > 0
        if learn_adaptive_values(
            before[row], numeric[row], categories[row], y[row], weight[row], tree, adaptive, settings, choices, columns,
            stack, kept, places, path, out[row],
        ):  # fmt: skip
            counted = False
        if counted:
            sum_learned_adaptive(numeric[i], categories[i], tree, adaptive, columns, room.sums)


@kernel
def weigh_members(values: ndarray, median: bool, weights: ndarray) -> None:
    """Write by what each of a few numbers (T,) counts in their mean or their median; of equals the first is lowest."""
    T = values.shape[0]
    for t in range(T):
        place = 0
        for k in range(T):
            place += values[k] < values[t] or (values[k] == values[t] and k < t)
        weights[t] = 0.5 * ((place == (T - 1) // 2) + (place == T // 2)) if median else 1.0 / T


@kernel
def explain_forest_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, forest: RegressionForest,
    settings: RegressionSettings, choices: RegressionForestSettings, columns: Columns, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_values`, of a forest: the mean over the trees that serve, or over the one or two in the middle."""
    room.counted[:] = 0
    for i in range(numeric.shape[0]):
        explain_forest_value(numeric[i], categories[i], tree, forest, settings, choices, columns, room, out[i])


@inlined
def explain_forest_value(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, forest: RegressionForest,
    settings: RegressionSettings, choices: RegressionForestSettings, columns: Columns, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_forest_values`, of one row to out (1, N + K + 1).

    Sums are counted of the trees that have a say and of which room.counted says that they are not yet.
    """
    F, T = out.shape[1] - 1, forest.members.shape[0]
    nodes = tree.links.shape[0] // (2 * T)
    values, weights = room.values[0], room.weights
    for t in range(T):
        at = 2 * t + int(forest.members[t, SERVES])
        values[t], _, _ = value_of(numeric, categories, tree, tree.size[at], at * nodes, settings, columns)
    weigh_members(values, choices.median, weights)
    room.whole[:] = 0.0
    for t in range(T):
        at = 2 * t + int(forest.members[t, SERVES])
        if weights[t] == 0.0 or tree.size[at, NODES] == 0:  # an empty tree predicts 0
            continue
        node = at * nodes
        if room.counted[t] == 0:
            room.served[t], room.counted[t] = at, sum_below(node, tree, room)
        room.way[:] = 0.0
        room.way[0, F] = mean_of(room.sums, node)
        while tree.links[node, LEFT] != 0:
            node, _ = go_on_with_value(node, numeric, categories, tree, columns, room.sums, room.way[0])
        add_value(node, node, weights[t], numeric, tree, settings, room)
    write_values(1.0, room.whole, out)


@kernel
def explain_then_learn_forest_values(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray,
    tree: RegressionTree, forest: RegressionForest, settings: RegressionSettings, choices: RegressionForestSettings,
    columns: Columns, stack: ndarray, kept: ndarray, places: ndarray, room: Explaining, out: ndarray,
    contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_forest_values`."""
    served, counted, T = room.served, room.counted, forest.members.shape[0]
    nodes = tree.links.shape[0] // (2 * T)
    counted[:] = 0
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        explain_forest_value(before[i], categories[i], tree, forest, settings, choices, columns, room, contributions[i])
        learn_forest_values(
            before[row], numeric[row], same, categories[row], y[row], weight[row], tree, forest, settings, choices,
            columns, stack, kept, places, room.values, out[row],
        )  # fmt: skip
        for t in range(T):
            at = 2 * t + int(forest.members[t, SERVES])
            if counted[t] > 0 and served[t] == at and tree.size[at, NODES] == counted[t]:
                sum_learned(at * nodes, numeric[i], categories[i], tree, columns, room.sums)
            else:
                counted[t] = 0
