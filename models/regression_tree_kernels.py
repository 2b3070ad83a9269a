"""The arithmetic of Hoeffding trees of values in Numba: leaves keep moments, search trees and a linear model.

Letters and rules as in tree_nodes.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from .compiling import inlined, kernel
from .moments_kernels import Moments, fold_in, moments_at, taken_away
from .search_tree_kernels import best_value_below, insert, prune, reduction_of, rounded
from .tree_columns import draw_columns, find_value, see_column
from .tree_nodes import (
    ATTEMPT,
    DEPTH,
    FORGET,
    LARGEST,
    LARGEST_SLOPE,
    LARGEST_VALUE,
    LEFT,
    MEAN_ERROR,
    MEAN_ONLY,
    MEAN_OR_MODEL,
    MODEL_ERROR,
    NODES,
    PARENT,
    PASSIVE,
    REFUSED,
    SLOT,
    SLOTS,
    SPLIT,
    STAY,
    TOTAL,
    Columns,
    RegressionSettings,
    RegressionTree,
    add_above,
    leaf_of,
)


@inlined
def model_of(node: int, numeric: ndarray, tree: RegressionTree) -> float:
    """What the linear model of a leaf says of a row; a missing number adds nothing."""
    slot = int(tree.links[node, SLOT])
    raw = 0.0
    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            raw += tree.coefficients[j, slot] * min(max(x, -LARGEST), LARGEST)
    return min(max(raw + tree.intercepts[slot], -LARGEST_VALUE), LARGEST_VALUE)


@inlined
def value_at(node: int, numeric: ndarray, tree: RegressionTree, settings: RegressionSettings) -> float:
    """What a leaf predicts for a row."""
    errors = tree.weights[node]
    if settings.prediction == MEAN_ONLY or (
        settings.prediction == MEAN_OR_MODEL and errors[MEAN_ERROR] < errors[MODEL_ERROR]
    ):
        return min(max(tree.targets[node, 1], -LARGEST_VALUE), LARGEST_VALUE)
    return model_of(node, numeric, tree)


@inlined
def value_of(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, size: ndarray, root: int,
    settings: RegressionSettings, columns: Columns,
) -> tuple[float, int, bool]:  # fmt: skip
    """The prediction of the tree below a root for one row, and what `leaf_of` says of it. size (3,): of that tree.

    Before anything was learned 0, and the leaf is -1.
    """
    if size[NODES] == 0:
        return 0.0, -1, True
    node, asked = leaf_of(
        root, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
        columns.places,
    )  # fmt: skip
    return value_at(node, numeric, tree, settings), node, asked


@kernel
def clear_regression_slot(slot: int, columns_too: bool, tree: RegressionTree) -> None:
    """Forget what a leaf has observed, and which columns it has seen too, or not; its model stays."""
    if columns_too:
        tree.seen[slot] = 0
        for j in range(tree.first.shape[0]):
            tree.first[j, slot] = 0
        for k in range(tree.category_first.shape[0]):
            tree.category_first[k, slot] = 0
    for j in range(tree.first.shape[0]):
        tree.used[j, slot] = 0
    for k in range(tree.category_first.shape[0]):
        tree.categories[k, slot] = 0
        tree.category_moments[k, slot] = 0.0


@kernel
def clear_model(slot: int, tree: RegressionTree) -> None:
    """Make a slot as if it had never been used."""
    clear_regression_slot(slot, True, tree)
    tree.intercepts[slot] = 0.0
    for j in range(tree.coefficients.shape[0]):
        tree.coefficients[j, slot] = 0.0


@kernel
def split_regression(
    node: int, place: int, where: float, v: int, left: Moments, right: Moments, first: int, new: int,
    tree: RegressionTree, columns: Columns,
) -> None:  # fmt: skip
    """Make a leaf a branch on this column, with the nodes first and first + 1 as leaves.

    They begin with these targets and with its model; the left one takes its slot, the right one the slot `new`.
    """
    slot = int(tree.links[node, SLOT])
    tree.column[node] = columns.by_place[place]
    if place < tree.first.shape[0]:
        tree.threshold[node] = where
    else:
        tree.value[node] = tree.categories[place - tree.first.shape[0], slot, v]
    clear_regression_slot(slot, True, tree)
    clear_regression_slot(new, True, tree)
    for j in range(tree.coefficients.shape[0]):
        tree.coefficients[j, new] = tree.coefficients[j, slot]
    tree.intercepts[new] = tree.intercepts[slot]
    for side in range(2):
        child = first + side
        targets = right if side == 1 else left
        tree.links[child, LEFT] = 0
        tree.links[child, PARENT] = node
        tree.links[child, PASSIVE] = 0
        tree.links[child, DEPTH] = tree.links[node, DEPTH] + 1
        tree.links[child, SLOT] = new if side == 1 else slot
        for i in range(3):
            tree.targets[child, i] = targets[i]
        tree.weights[child, TOTAL] = targets[0]
        tree.weights[child, ATTEMPT] = targets[0]
        tree.weights[child, MEAN_ERROR] = tree.weights[node, MEAN_ERROR]
        tree.weights[child, MODEL_ERROR] = tree.weights[node, MODEL_ERROR]
    tree.links[node, LEFT] = first
    tree.links[node, SLOT] = -1
    more = left[0] + right[0] - tree.weights[node, TOTAL]
    while node >= 0:
        tree.weights[node, TOTAL] += more
        node = int(tree.links[node, PARENT])


@kernel
def best_category(whole: Moments, least: float, values: ndarray, moments: ndarray) -> tuple[float, int]:
    """Merit and place of the best value to split a category by, values (V,), moments (V, 3); -inf: there is none.

    Of equals the lowest hash.
    """
    best, where = -math.inf, 0
    for v in range(values.shape[0]):
        if values[v] != 0:
            left = moments_at(moments[v])
            merit = reduction_of(whole, left, taken_away(whole, left), least)
            if merit > best or (merit == best and values[v] < values[where]):
                best, where = merit, v
    return best, where


@kernel
def find_value_split(
    node: int, tree: RegressionTree, settings: RegressionSettings, stack: ndarray, kept: ndarray
) -> tuple[int, int, float, int, Moments, Moments]:
    """What to do with a leaf that is due, and the best split: column, threshold, place of value, both sides.

    SPLIT  the second best column is worse than the best by more than the bound, as a ratio
    FORGET not to split is the best: what the leaf observed is forgotten and observed anew
    STAY   not sure yet; values without a chance were dropped
    """
    slot = int(tree.links[node, SLOT])
    whole = moments_at(tree.targets[node])
    least = settings.min_samples_split
    N = tree.first.shape[0]
    candidates = 1 if settings.merit_preprune else 0
    best, second, place, when = -math.inf, -math.inf, -1, 0
    where = 0.0
    v = 0
    left, right = whole, whole
    for p in range(N + tree.category_first.shape[0]):
        came = int(tree.first[p, slot] if p < N else tree.category_first[p - N, slot])
        if came == 0:
            continue
        candidates += 1
        t, u, a, b = 0.0, 0, whole, whole
        if p < N:
            merit, t, a, b = best_value_below(
                whole, least, int(tree.used[p, slot]), tree.values[p, slot], tree.children[p, slot],
                tree.moments[p, slot], stack,
            )  # fmt: skip
        else:
            merit, u = best_category(whole, least, tree.categories[p - N, slot], tree.category_moments[p - N, slot])
            a = moments_at(tree.category_moments[p - N, slot, u])
            b = taken_away(whole, a)
        if merit > best or (merit == best and came > when):  # of equals, the one that came last
            second = best
            best, place, when, where, v, left, right = merit, p, came, t, u, a, b
        else:
            second = max(second, merit)

    bound = math.sqrt(settings.log_confidence / (2.0 * whole[0]))
    if candidates == 0:
        return STAY, 0, 0.0, 0, whole, whole
    if candidates == 1 or (best > 0.0 and (second / best < 1.0 - bound or bound < settings.tau)):
        return (FORGET if best == -math.inf else SPLIT), place, where, v, left, right
    if best > 0.0 and second > 0.0:
        for j in range(N):
            if tree.first[j, slot] != 0:
                tree.used[j, slot] = prune(
                    whole, best, second / best - 2.0 * bound, least, int(tree.used[j, slot]),
                    tree.values[j, slot], tree.children[j, slot], tree.moments[j, slot], stack, kept,
                )  # fmt: skip
    return STAY, 0, 0.0, 0, whole, whole


@kernel
def try_to_split_regression(
    node: int, member: int, tree: RegressionTree, size: ndarray, settings: RegressionSettings, columns: Columns,
    stack: ndarray, kept: ndarray,
) -> None:  # fmt: skip
    """Do with a leaf that is due what `find_value_split` says, if there is room.

    member  which of the trees that share the arrays in equal parts
    size    (3,)  of that tree
    """
    total = tree.targets[node, 0]
    what, place, where, v, left, right = find_value_split(node, tree, settings, stack, kept)
    if what == FORGET:
        clear_regression_slot(int(tree.links[node, SLOT]), settings.features == 0, tree)
    elif what == SPLIT:
        trees = tree.size.size // 3
        nodes = tree.links.shape[0] // trees
        if size[NODES] + 2 > nodes:
            size[REFUSED] += 1
        else:
            first = member * nodes + int(size[NODES])
            new = member * (tree.seen.shape[0] // trees) + int(size[SLOTS])
            size[NODES] += 2
            size[SLOTS] += 1
            split_regression(node, place, where, v, left, right, first, new, tree, columns)
    tree.weights[node, ATTEMPT] = total


@kernel
def observe_target(y: float, value: np.uint64, weight: float, start: float, values: ndarray, moments: ndarray) -> None:
    """Fold the target of a value of a category into values (V,), moments (V, 3); room is made as in `observe_value`."""
    place = find_value(value, values)
    if place < 0:
        place = find_value(np.uint64(0), values)
        if place < 0:
            V = values.shape[0]
            first = int(start % float(V))
            lightest = math.inf
            for i in range(V):
                at = (first + i) % V
                if moments[at, 0] < lightest:
                    place, lightest = at, moments[at, 0]
            if lightest > weight:
                return
        values[place] = value
        moments[place] = 0.0
    fold_in(y, weight, moments[place])


@inlined
def learn_value_at_leaf(
    node: int, numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree,
    settings: RegressionSettings, places: ndarray, key: np.uint64, drawn: ndarray, member: int,
) -> None:  # fmt: skip
    """Learn at a leaf that one row has the target y.

    places, key, drawn, member   as in `draw_columns`; used where the leaf draws the columns that it observes
    """
    slot = int(tree.links[node, SLOT])
    targets = tree.targets[node]
    raw = 0.0
    if settings.prediction != MEAN_ONLY:
        raw = model_of(node, numeric, tree)
    if settings.prediction == MEAN_OR_MODEL:
        errors = tree.weights[node]
        errors[MEAN_ERROR] = settings.model_selector_decay * errors[MEAN_ERROR] + (y - targets[1]) * (y - targets[1])
        errors[MODEL_ERROR] = settings.model_selector_decay * errors[MODEL_ERROR] + (y - raw) * (y - raw)
    fold_in(y, weight, targets)
    tree.weights[node, TOTAL] = targets[0]
    if settings.prediction != MEAN_ONLY:
        slope = min(max(2.0 * (raw - y) * weight, -LARGEST_SLOPE), LARGEST_SLOPE)
        tree.intercepts[slot] -= settings.intercept_lr * slope
        for j in range(numeric.shape[0]):
            x = np.float64(numeric[j])
            if x - x == 0.0:
                tree.coefficients[j, slot] -= settings.lr * (slope * min(max(x, -LARGEST), LARGEST))
    if tree.links[node, PASSIVE] != 0:
        return

    some = settings.features > 0
    if some and tree.seen[slot] == 0:
        draw_columns(
            numeric, categories, settings.features, slot, tree.seen, tree.first, tree.category_first, places, key,
            drawn, member,
        )  # fmt: skip
    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0 and not (some and tree.first[j, slot] == 0):
            see_column(tree.first, j, slot, tree.seen)
            tree.used[j, slot] = insert(
                rounded(min(max(x, -LARGEST), LARGEST), settings.factor), y, weight, int(tree.used[j, slot]),
                tree.values[j, slot], tree.children[j, slot], tree.moments[j, slot],
            )  # fmt: skip
    for k in range(categories.shape[0]):
        if categories[k] != 0 and not (some and tree.category_first[k, slot] == 0):
            see_column(tree.category_first, k, slot, tree.seen)
            kept_here = tree.categories[k, slot], tree.category_moments[k, slot]
            observe_target(y, categories[k], weight, targets[0], *kept_here)


@inlined
def learn_value(
    numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree, size: ndarray, at: int,
    settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray, places: ndarray, key: np.uint64,
    drawn: ndarray, member: int, node: int, asked: bool,
) -> None:  # fmt: skip
    """Learn that one row has the target y in the tree `at` of those that share the arrays; size (3,): of that tree.

    places, key, drawn, member   as in `draw_columns`
    node, asked                  as in `learn_row`
    """
    trees = tree.size.size // 3
    root = at * (tree.links.shape[0] // trees)
    if size[NODES] == 0:
        size[NODES] = 1
        size[SLOTS] = 1
        tree.links[root, PARENT] = -1
        tree.links[root, SLOT] = at * (tree.seen.shape[0] // trees)
        node = root
    links, weights = tree.links, tree.weights
    if node < 0:
        node, asked = leaf_of(
            root, numeric, categories, links, tree.column, tree.threshold, tree.value, weights, columns.keys,
            columns.places,
        )  # fmt: skip
    add_above(node, weight, links, weights)
    learn_value_at_leaf(node, numeric, categories, y, weight, tree, settings, places, key, drawn, member)
    if links[node, PASSIVE] != 0 or not asked:
        return  # as River: a row that lacks what a branch asks is learned, and no cause to split
    if links[node, DEPTH] >= settings.max_depth:
        links[node, PASSIVE] = 1
    elif tree.targets[node, 0] - weights[node, ATTEMPT] >= settings.grace_period:
        try_to_split_regression(node, at, tree, size, settings, columns, stack, kept)


@kernel
def predict_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, settings: RegressionSettings, columns: Columns,
    out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); the state is only read. Arguments as in `learn_values`."""
    for i in range(numeric.shape[0]):
        out[i, 0] = value_of(numeric[i], categories[i], tree, tree.size, 0, settings, columns)[0]


@kernel
def learn_values(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray,
    tree: RegressionTree, settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing
    same             whether before and numeric are one array: rows then go down once
    categories       uint64  (B, K)  0: missing
    y, weight        float32 (B, 1), (B,)  a row with a label that is not finite, or a weight that is not above 0 and
                                     finite, is predicted and not learned
    tree             the state, changed in place
    settings, columns                as their classes say
    stack, kept      int32 (4 V + 4, 2), float64 (V, 6)   scratch
    out              float (B, 1), or (0, 1) where no predictions are wanted

    Result does not depend on where the stream is cut.
    Source: Ikonomovska, Gama and Dzeroski (2011), Learning model trees from evolving data streams.
    """
    nothing, none_drawn = columns.places[:0], columns.keys[:0]  # a single tree draws nothing
    node, asked = -1, True
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            out[i, 0], node, asked = value_of(before[i], categories[i], tree, tree.size, 0, settings, columns)
        t = np.float64(y[i, 0])
        w = np.float64(weight[i])
        if t - t == 0.0 and w > 0.0 and w - w == 0.0:
            if not same:
                node = -1
            learn_value(
                numeric[i], categories[i], t, w, tree, tree.size, 0, settings, columns, stack, kept, nothing,
                np.uint64(0), none_drawn, 0, node, asked,
            )  # fmt: skip
