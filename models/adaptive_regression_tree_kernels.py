"""An adaptive tree of values in Numba: as that of classes, but for what an error is and how errors are compared."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from .alternate_kernels import (
    GIVEN_UP,
    ONE_IN_E,
    TAKEN,
    Adaptive,
    AdaptiveSettings,
    begin_alternate,
    drop_alternate,
    drop_below,
    kept_from,
    take_alternate,
    take_nodes,
    take_slot,
    watch,
    watch_anew,
)
from .compiling import copy_into, kernel
from .moments_kernels import fold_in, moments_at, variance_of
from .random_kernels import poisson
from .regression_tree_kernels import (
    clear_model,
    clear_regression_slot,
    find_value_split,
    learn_value_at_leaf,
    split_regression,
    value_at,
)
from .tree_nodes import (
    ATTEMPT,
    DEPTH,
    FORGET,
    LEFT,
    NODES,
    PARENT,
    PASSIVE,
    SLOT,
    SLOTS,
    SPLIT,
    TOTAL,
    Columns,
    RegressionSettings,
    RegressionTree,
    step_down,
)


@kernel
def compare_values(at: int, adaptive: Adaptive, choices: AdaptiveSettings) -> int:
    """1: the alternate of a branch is better than it, -1: it is worse, 0: nobody can tell yet. By a z-test."""
    mine, other = moments_at(adaptive.errors[at]), moments_at(adaptive.errors[int(adaptive.alternate[at])])
    if not (other[0] > choices.window and mine[0] > choices.window):
        return 0
    z = (other[1] - mine[1]) / math.sqrt(variance_of(other) / other[0] + variance_of(mine) / mine[0])
    if not 1.0 + math.erf(-abs(z) / math.sqrt(2.0)) <= choices.significance:
        return 0
    return 1 if other[1] < mine[1] else -1


@kernel
def learn_adaptive_value_leaf(
    node: int, numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree,
    adaptive: Adaptive, settings: RegressionSettings, choices: AdaptiveSettings, columns: Columns, stack: ndarray,
    kept: ndarray, places: ndarray,
) -> float:  # fmt: skip
    """Learn at a leaf that one row has the target y, split the leaf if it is due; the weight that was learned."""
    error = abs(y - value_at(node, numeric, tree, settings))
    if choices.bootstrap:
        weight *= max(poisson(ONE_IN_E, choices.key, adaptive.drawn, 0), 1)
    watch(node, error, choices.drift_delta, adaptive)
    learn_value_at_leaf(
        node, numeric, categories, y, weight, tree, settings, places, choices.key, adaptive.drawn, 0
    )  # fmt: skip
    total = tree.targets[node, 0]
    if tree.links[node, PASSIVE] != 0 or total - tree.weights[node, ATTEMPT] < settings.grace_period:
        return weight
    if tree.links[node, DEPTH] >= settings.max_depth:
        tree.links[node, PASSIVE] = 1
        return weight
    what, place, where, v, left, right = find_value_split(node, tree, settings, stack, kept)
    if what == FORGET:
        clear_regression_slot(int(tree.links[node, SLOT]), True, tree)
    elif what == SPLIT:
        first = take_nodes(kept_from(node, tree), tree, adaptive)
        if first != 0:
            split_regression(
                node, place, where, v, left, right, first, take_slot(tree, adaptive), tree, columns
            )  # fmt: skip
            watch_anew(node, adaptive)
    tree.weights[node, ATTEMPT] = total
    return weight


@kernel
def learn_adaptive_value(
    numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree, adaptive: Adaptive,
    settings: RegressionSettings, choices: AdaptiveSettings, columns: Columns, stack: ndarray, kept: ndarray,
    places: ndarray, path: ndarray,
) -> bool:  # fmt: skip
    """Learn that one row has the target y, from the root down; what has to be swapped is swapped at the end.

    Whether nodes came or went. path int32 (3, M): scratch
    """
    links, weights, targets = tree.links, tree.weights, tree.targets
    if tree.size[NODES] == 0:
        tree.size[NODES] = 1
        tree.size[SLOTS] = 1
        links[0, PARENT] = -1
    node, many, changed = 0, 0, False
    while links[node, LEFT] != 0:
        path[0, many] = node
        many += 1
        node, _ = step_down(
            node, numeric, categories, links, tree.column, tree.threshold, tree.value, weights, columns.keys,
            columns.places,
        )  # fmt: skip
    error = abs(y - value_at(node, numeric, tree, settings)) if many > 0 else 0.0
    for d in range(many):
        at = int(path[0, d])
        path[1, d] = 0  # whether its alternate takes its place
        fold_in(y, weight, targets[at])
        learns = False
        if watch(at, error, choices.drift_delta, adaptive) and adaptive.alternate[at] == 0:
            changed = True
            adaptive.errors[at] = 0.0
            other = begin_alternate(at, tree, adaptive)
            learns = other != 0
            if learns:
                clear_model(int(links[other, SLOT]), tree)
                targets[other] = 0.0
        elif adaptive.alternate[at] != 0:
            verdict = compare_values(at, adaptive, choices)
            learns = verdict == 0
            if verdict > 0:
                path[1, d] = 1
                adaptive.changes[TAKEN] += 1
                adaptive.changes[GIVEN_UP] += drop_below(at, False, tree, adaptive, path[2])
                learns = at == 0  # as River: only that of the root learns the row that it is taken with
            elif verdict < 0:
                changed = True
                drop_alternate(at, tree, adaptive)
                adaptive.changes[GIVEN_UP] += 1
        if learns:
            other = int(adaptive.alternate[at])
            learn_adaptive_value_leaf(
                other, numeric, categories, y, weight, tree, adaptive, settings, choices, columns, stack, kept, places
            )
            if links[other, LEFT] != 0:
                path[1, d] = 1  # as River: an alternate that splits takes the place of its branch at once
    learned = learn_adaptive_value_leaf(
        node, numeric, categories, y, weight, tree, adaptive, settings, choices, columns, stack, kept, places
    )
    changed = changed or links[node, LEFT] != 0
    for d in range(many):
        weights[path[0, d], TOTAL] += learned
    for d in range(many - 1, -1, -1):
        if path[1, d] != 0:
            changed = True
            at = int(path[0, d])
            copy_into(targets[at], targets[int(adaptive.alternate[at])])
            take_alternate(at, tree, adaptive, path[2])
    return changed


@kernel
def adaptive_value_of(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, adaptive: Adaptive, settings: RegressionSettings,
    columns: Columns,
) -> float:  # fmt: skip
    """The mean of what the leaf of a row and the alternates on its way predict; 0 before anything was learned."""
    if tree.size[NODES] == 0:
        return 0.0
    links = tree.links
    total = many = 0.0
    node, there = 0, True
    while links[node, LEFT] != 0:
        if adaptive.alternate[node] != 0:
            times = 1.0 if there else 2.0  # as River, which meets a node twice where the row lacks what is asked above
            total += times * value_at(int(adaptive.alternate[node]), numeric, tree, settings)
            many += times
        node, there = step_down(
            node, numeric, categories, links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
            columns.places,
        )  # fmt: skip
    return (total + value_at(node, numeric, tree, settings)) / (many + 1.0)


@kernel
def predict_adaptive_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, adaptive: Adaptive, settings: RegressionSettings,
    columns: Columns, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); the state is only read."""
    for i in range(numeric.shape[0]):
        out[i, 0] = adaptive_value_of(numeric[i], categories[i], tree, adaptive, settings, columns)


@kernel
def learn_adaptive_values(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, tree: RegressionTree,
    adaptive: Adaptive, settings: RegressionSettings, choices: AdaptiveSettings, columns: Columns, stack: ndarray,
    kept: ndarray, places: ndarray, path: ndarray, out: ndarray,
) -> bool:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i]; whether nodes came or went, but for the first.

    Arguments as in `learn_values`, and

    adaptive         the rest of the state, changed in place
    places, path     int32 (N + K,), (3, M)  scratch

    Result does not depend on where the stream is cut.
    Source: Bifet and Gavalda (2009), Adaptive learning from evolving data streams.
    """
    changed = False
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            out[i, 0] = adaptive_value_of(before[i], categories[i], tree, adaptive, settings, columns)
        t = np.float64(y[i, 0])
        w = np.float64(weight[i])
        if t - t == 0.0 and w > 0.0 and w - w == 0.0:
            changed |= learn_adaptive_value(
                numeric[i], categories[i], t, w, tree, adaptive, settings, choices, columns, stack, kept, places, path
            )
    return changed
